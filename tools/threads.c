/* threads.c: how many threads compute best here: one for each core that this process may use. Two
   threads of a core share its multipliers, and threads beyond a quota of time wait for each other.
   See cli.h. */
#if defined(__APPLE__) && !defined(_DARWIN_C_SOURCE)
#define _DARWIN_C_SOURCE /* sysctlbyname */
#endif
#include "cli.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#if defined(_WIN32)
#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#include <windows.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#include <sys/types.h>
#endif

#if defined(_WIN32)

int cli_cores(const char *root) {
  SYSTEM_LOGICAL_PROCESSOR_INFORMATION *found;
  DWORD_PTR mine = 0, all = 0;
  DWORD bytes = 0, i;
  int n = 0;
  (void)root;
  GetLogicalProcessorInformation(NULL, &bytes);
  found = (SYSTEM_LOGICAL_PROCESSOR_INFORMATION *)malloc(bytes ? bytes : 1);
  if (found && GetLogicalProcessorInformation(found, &bytes) &&
      GetProcessAffinityMask(GetCurrentProcess(), &mine, &all))
    for (i = 0; i < bytes / sizeof *found; i++)
      n += found[i].Relationship == RelationProcessorCore && (found[i].ProcessorMask & mine) != 0;
  free(found);
  return n;
}

#elif defined(__APPLE__)

int cli_cores(const char *root) {
  int n = 0;
  size_t size = sizeof n;
  (void)root;
  /* the fast ones, where there are two kinds */
  if (sysctlbyname("hw.perflevel0.physicalcpu", &n, &size, NULL, 0) == 0 && n > 0) return n;
  size = sizeof n;
  return sysctlbyname("hw.physicalcpu", &n, &size, NULL, 0) == 0 && n > 0 ? n : 0;
}

#else /* Linux, by its files */

enum { MOST_CPUS = 4096, PATH_MOST = 1024, LINE_MOST = 4096 };

static FILE *open_under(const char *root, const char *path) {
  char full[2 * PATH_MOST];
  return snprintf(full, sizeof full, "%s%s", root, path) < (int)sizeof full ? fopen(full, "r") : NULL;
}

/* the first line of a file that starts with a word; 0: there is none */
static int read_line(const char *root, const char *path, const char *start, char *line) {
  FILE *f = open_under(root, path);
  int found = 0;
  while (f && !found && fgets(line, LINE_MOST, f)) found = strncmp(line, start, strlen(start)) == 0;
  if (f) fclose(f);
  return found;
}

/* marks the CPUs of a list such as 0-3,8; returns how many there are */
static int read_list(const char *text, char *cpus) {
  int n = 0;
  memset(cpus, 0, MOST_CPUS);
  for (;;) {
    char *end;
    long at = strtol(text, &end, 10), last = at;
    if (end == text) return n;
    if (*end == '-') last = strtol(end + 1, &end, 10);
    for (; at >= 0 && at <= last && at < MOST_CPUS; at++) {
      n += !cpus[at];
      cpus[at] = 1;
    }
    if (*end != ',') return n;
    text = end + 1;
  }
}

/* cores of which at least one thread is among the CPUs of this process; 0: unknown */
static int cores_allowed(const char *root) {
  char line[LINE_MOST], path[PATH_MOST], allowed[MOST_CPUS], siblings[MOST_CPUS];
  int cpu, first, n = 0;
  if (!read_line(root, "/proc/self/status", "Cpus_allowed_list:", line)) return 0;
  read_list(line + strlen("Cpus_allowed_list:"), allowed);
  for (cpu = 0; cpu < MOST_CPUS; cpu++) {
    if (!allowed[cpu]) continue;
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
    first = cpu;
    if (read_line(root, path, "", line) && read_list(line, siblings) > 0)
      for (first = 0; first < cpu && !(siblings[first] && allowed[first]);) first++;
    n += first == cpu; /* each core is counted with the first of its threads */
  }
  return n;
}

/* Time in units of CPUs that one control group has; INFINITY: no bound. unified: version 2 */
static double quota_of(const char *root, const char *group, int unified) {
  static const char *const folders[] = {"/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"};
  char path[PATH_MOST], line[LINE_MOST];
  double quota = 0, period = 0;
  int i;
  snprintf(path, sizeof path, "/sys/fs/cgroup%s/cpu.max", group);
  if (unified)
    return read_line(root, path, "", line) && sscanf(line, "%lf %lf", &quota, &period) == 2 && quota > 0 && period > 0
               ? quota / period
               : INFINITY;
  for (i = 0; i < CLI_COUNT_OF(folders); i++) {
    snprintf(path, sizeof path, "%s%s/cpu.cfs_quota_us", folders[i], group);
    if (!read_line(root, path, "", line) || sscanf(line, "%lf", &quota) != 1) continue;
    snprintf(path, sizeof path, "%s%s/cpu.cfs_period_us", folders[i], group);
    if (quota > 0 && read_line(root, path, "", line) && sscanf(line, "%lf", &period) == 1 && period > 0)
      return quota / period;
  }
  return INFINITY;
}

/* the least of a group and those around it; inside a container only the outermost may be seen */
static double quota_around(const char *root, char *group, int unified) {
  double least = INFINITY;
  group[strcspn(group, "\n")] = 0;
  if (strcmp(group, "/") == 0) *group = 0;
  for (;;) {
    char *slash = strrchr(group, '/');
    least = fmin(least, quota_of(root, group, unified));
    if (!*group || !slash) return least;
    *slash = 0;
  }
}

/* whether a list separated by commas has the word cpu */
static int has_cpu(const char *list, const char *end) {
  while (list < end) {
    const size_t n = strcspn(list, ",:");
    if (n == 3 && strncmp(list, "cpu", 3) == 0) return 1;
    list += n + 1;
  }
  return 0;
}

/* lines NUMBER:CONTROLLERS:GROUP, of version 2 without controllers */
static double quota_allowed(const char *root) {
  FILE *f = open_under(root, "/proc/self/cgroup");
  char line[LINE_MOST];
  double least = INFINITY;
  while (f && fgets(line, sizeof line, f)) {
    char *controllers = strchr(line, ':'), *group = controllers ? strchr(controllers + 1, ':') : NULL;
    if (!group) continue;
    if (group == controllers + 1 || has_cpu(controllers + 1, group))
      least = fmin(least, quota_around(root, group + 1, group == controllers + 1));
  }
  if (f) fclose(f);
  return least;
}

int cli_cores(const char *root) {
  const int cores = cores_allowed(root);
  const double quota = fmax(1, floor(quota_allowed(root)));
  return cores > quota ? (int)quota : cores;
}

#endif
