/* process.c: see process.h */
#include "process.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#if defined(_WIN32)
#include <io.h>
#include <process.h>
#include <windows.h>
#else
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#endif
#if defined(__linux__)
#include <sys/prctl.h>
#endif

#if defined(_WIN32)

int process_start(process *p, char **argv, const char *said) {
  const int file = _open(said, _O_WRONLY | _O_CREAT | _O_TRUNC, 0666), out = _dup(1), error = _dup(2);
  argv[0] = (char *)cli_program();
  p->id = 0;
  if (file >= 0) {
    fflush(NULL);
    _dup2(file, 1);
    _dup2(file, 2);
    p->id = (long long)_spawnvp(_P_NOWAIT, argv[0], (const char *const *)argv);
    _dup2(out, 1);
    _dup2(error, 2);
    _close(file);
  }
  _close(out);
  _close(error);
  if (file >= 0 && p->id > 0) return CLI_GO;
  p->id = 0;
  return cli_error("cannot start %s: %s", argv[0], strerror(errno));
}

int process_ended(process *p, int *code) {
  DWORD result = 1;
  if (WaitForSingleObject((HANDLE)(intptr_t)p->id, 0) == WAIT_TIMEOUT) return 0;
  GetExitCodeProcess((HANDLE)(intptr_t)p->id, &result);
  CloseHandle((HANDLE)(intptr_t)p->id);
  *code = (int)result;
  p->id = 0;
  return 1;
}

/* there is no polite way: it goes on from its last checkpoint */
void process_stop(const process *p) { TerminateProcess((HANDLE)(intptr_t)p->id, 1); }
void process_sleep(double seconds) { Sleep((DWORD)(1000 * seconds)); }

#else

/* what the new process does before it is another program */
static void become(char **argv, const char *said, pid_t parent) {
  const int in = open("/dev/null", O_RDONLY), out = open(said, O_WRONLY | O_CREAT | O_TRUNC, 0666);
  signal(SIGINT, SIG_DFL);
  signal(SIGTERM, SIG_DFL);
  setpgid(0, 0); /* Ctrl-C is for the parent, which says when to stop */
#if defined(__linux__)
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(127);
#else
  (void)parent;
#endif
  if (in < 0 || out < 0 || dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(out, 2) < 0) _exit(127);
#if defined(__linux__)
  execv("/proc/self/exe", argv);
#endif
  execvp(argv[0], argv);
  _exit(127);
}

int process_start(process *p, char **argv, const char *said) {
  const pid_t parent = getpid();
  pid_t child;
  argv[0] = (char *)cli_program();
  fflush(NULL);
  child = fork();
  if (child == 0) become(argv, said, parent);
  p->id = child > 0 ? child : 0;
  return child > 0 ? CLI_GO : cli_error("cannot start %s: %s", argv[0], strerror(errno));
}

int process_ended(process *p, int *code) {
  int status = 0;
  const pid_t ended = waitpid((pid_t)p->id, &status, WNOHANG);
  if (ended == 0 || (ended < 0 && errno == EINTR)) return 0;
  *code = ended < 0 ? 127 : WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  p->id = 0;
  return 1;
}

void process_stop(const process *p) { kill((pid_t)p->id, SIGTERM); }

void process_sleep(double seconds) {
  struct timespec t;
  t.tv_sec = (time_t)seconds;
  t.tv_nsec = (long)(1e9 * (seconds - (double)t.tv_sec));
  nanosleep(&t, NULL);
}

#endif
