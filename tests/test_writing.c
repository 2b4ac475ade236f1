/* What is written is whole: two writers, killed writers, full disks, links, and what a folder held before. */
#define _DEFAULT_SOURCE
#define _DARWIN_C_SOURCE
#include "models.h"
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* a copy of a path that outlives test_path() */
typedef struct place {
  char path[512];
} place;
static place at(const char *name) {
  place p;
  snprintf(p.path, sizeof p.path, "%s", test_path(name));
  return p;
}

static void shell(const char *command, const char *path) {
  char text[700];
  snprintf(text, sizeof text, command, path);
  CHECK(system(text) == 0, "%s", text);
}

static void empty_folder(const char *path) { shell("rm -rf '%1$s' && mkdir -p '%1$s'", path); }

/* files of a folder whose names contain text */
static int count_files(const char *folder, const char *text) {
  DIR *d = opendir(folder);
  struct dirent *e;
  int n = 0;
  while (d && (e = readdir(d)) != NULL) n += e->d_name[0] != '.' && strstr(e->d_name, text) != NULL;
  if (d) closedir(d);
  return n;
}

static int holds(const char *path, const char *text) {
  size_t n = 0;
  char *found = test_read_file(path, &n);
  const int same = found && n == strlen(text) && memcmp(found, text, n) == 0;
  free(found);
  return same;
}

static void wait_for(double seconds) {
  struct timespec t;
  t.tv_sec = (time_t)seconds;
  t.tv_nsec = (long)((seconds - (double)t.tv_sec) * 1e9);
  nanosleep(&t, NULL);
}

/* a child that does work(user) again and again until it is killed */
static pid_t start(void (*work)(void *user, int round), void *user) {
  pid_t child;
  fflush(stdout);
  child = fork();
  if (child == 0) {
    int round;
    for (round = 0;; round++) work(user, round);
  }
  return child;
}
static void stop(pid_t child) {
  kill(child, SIGKILL);
  waitpid(child, NULL, 0);
}

/* ---------------------------------------------------------------------------------------- one file */

/* a file whose every byte says who wrote it; the two differ in length */
static void write_large(void *user, int round) {
  const int who = *(const int *)user;
  static char bytes[3000000];
  const place p = at("two/file");
  mhk_context *ctx = mhk_create(NULL);
  (void)round;
  memset(bytes, 'a' + who, sizeof bytes);
  mhk_file_write_bytes(ctx, p.path, bytes, sizeof bytes - (size_t)who * 777777);
  if (mhk_failed(ctx)) test_write_file(test_path("two.failed"), mhk_message(ctx), strlen(mhk_message(ctx)));
  mhk_destroy(ctx);
}

TEST(a_reader_sees_the_whole_file_of_one_of_two_writers) {
  const place folder = at("two"), path = at("two/file"), failed = at("two.failed");
  int who[2] = {0, 1}, i, reads, seen[2] = {0, 0};
  pid_t children[2];
  empty_folder(folder.path);
  remove(failed.path);
  write_large(&who[0], 0);
  for (i = 0; i < 2; i++) children[i] = start(write_large, &who[i]);
  for (reads = 0; reads < 300; reads++) {
    size_t n = 0, k;
    char *bytes = test_read_file(path.path, &n);
    REQUIRE(bytes && n > 0, "there was no file at read %d", reads);
    for (k = 1; k < n && bytes[k] == bytes[0]; k++) {}
    CHECK(k == n && n == 3000000 - (size_t)(bytes[0] - 'a') * 777777, "%ld bytes of %c, then %c at %ld", (long)n, bytes[0], bytes[k < n ? k : 0], (long)k);
    seen[bytes[0] == 'b']++;
    free(bytes);
  }
  for (i = 0; i < 2; i++) stop(children[i]);
  CHECK(seen[0] && seen[1], "one of two writers was never read: %d and %d", seen[0], seen[1]);
  CHECK(access(failed.path, F_OK) != 0, "a writer failed: %s", test_read_file(failed.path, NULL));
  write_large(&who[0], 0);
  CHECK(count_files(folder.path, "") == 1, "killed writers left %d files beside the one", count_files(folder.path, "") - 1);
}

TEST(links_are_replaced_and_never_written_through) {
  const place folder = at("links"), path = at("links/a"), target = at("links/target"), temporary = at("links/a.new"), fifo = at("links/fifo");
  mhk_context *ctx = mhk_create(NULL);
  struct stat info;
  empty_folder(folder.path);
  test_write_file(target.path, "precious", 8);
  CHECK(symlink("target", path.path) == 0 && symlink("target", temporary.path) == 0, "no links here");
  CHECK(mhk_file_write_bytes(ctx, path.path, "new", 3) == MHK_OK, "%s", mhk_message(ctx));
  CHECK(holds(target.path, "precious") && holds(path.path, "new"), "the file behind a link was written");
  CHECK(lstat(path.path, &info) == 0 && S_ISREG(info.st_mode), "the link is still there");
  remove(temporary.path);
  CHECK(link(target.path, temporary.path) == 0, "no hard links here");
  mhk_file_write_bytes(ctx, path.path, "newer", 5);
  CHECK(holds(target.path, "precious") && holds(path.path, "newer"), "a file with two names was written");
  CHECK_OK(ctx);
  CHECK(mkfifo(fifo.path, 0600) == 0, "no pipes here");
  mhk_file_write_bytes(ctx, fifo.path, "x", 1);
  CHECK_FAILS(ctx, MHK_ERROR_FILE, "it is not a regular file");
  CHECK(stat(fifo.path, &info) == 0 && S_ISFIFO(info.st_mode), "a pipe was replaced by a file");
  mhk_file_write_bytes(ctx, folder.path, "x", 1);
  CHECK_FAILS(ctx, MHK_ERROR_FILE, "links");
  mhk_file_write_bytes(ctx, path.path, NULL, 1);
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "NULL");
  mhk_destroy(ctx);
}

TEST(a_new_file_has_the_permissions_of_the_old_one) {
  const place path = at("mode");
  mhk_context *ctx = mhk_create(NULL);
  const mode_t before = umask(022);
  struct stat info;
  remove(path.path);
  mhk_file_write_bytes(ctx, path.path, "a", 1);
  CHECK(stat(path.path, &info) == 0 && (info.st_mode & 0777) == 0644, "a new file has %o", (unsigned)info.st_mode & 0777);
  chmod(path.path, 0600);
  mhk_file_write_bytes(ctx, path.path, "b", 1);
  CHECK(stat(path.path, &info) == 0 && (info.st_mode & 0777) == 0600, "a private file became %o", (unsigned)info.st_mode & 0777);
  umask(before);
  CHECK_OK(ctx);
  mhk_destroy(ctx);
}

/* in a child: a disk that is full after so many bytes, or a folder that cannot be written */
static int save_badly(const char *path, rlim_t most, const char *says) {
  int status = 0;
  pid_t child;
  fflush(stdout);
  child = fork();
  if (child == 0) {
    mhk_context *ctx = mhk_create(NULL);
    mhk_model *m = model_new(ctx, PHI, 5);
    struct rlimit limit;
    limit.rlim_cur = limit.rlim_max = most;
    signal(SIGXFSZ, SIG_IGN);
    if (most != RLIM_INFINITY)
      setrlimit(RLIMIT_FSIZE, &limit);
    else if (chmod(path, 0555) != 0 || (geteuid() == 0 && seteuid(65534) != 0))
      _exit(3);
    mhk_save(m, path, MHK_F32);
    _exit(mhk_error(ctx) == MHK_ERROR_FILE && strstr(mhk_message(ctx), says) ? 0 : 1);
  }
  if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status)) return -1;
  return WEXITSTATUS(status);
}

TEST(a_full_disk_and_a_read_only_folder_leave_the_old_model) {
  const place folder = at("full"), model = at("full/model"), file = at("full/model.safetensors");
  mhk_context *ctx = mhk_create(NULL);
  mhk_model *m = model_new(ctx, HYBRID, 4), *back;
  mhk_index n, k;
  mhk_real *want = model_numbers(m, 0, &n), *got;
  const char *paths[2];
  int i, most;
  paths[0] = model.path;
  paths[1] = file.path;
  empty_folder(folder.path);
  for (i = 0; i < 2; i++) {
    REQUIRE(mhk_save(m, paths[i], MHK_F32) == MHK_OK, "%s", mhk_message(ctx));
    for (most = 0; most < 60000; most += 9000) CHECK(save_badly(paths[i], (rlim_t)most, strerror(EFBIG)) == 0, "a disk of %d bytes was enough", most);
    if (i == 0) {
      CHECK(save_badly(paths[i], RLIM_INFINITY, strerror(EACCES)) == 0, "a folder that is read-only was written");
      chmod(paths[i], 0755);
    }
    back = mhk_load(ctx, paths[i]);
    REQUIRE_OK(ctx);
    mhk_model_make_trainable(back);
    got = model_numbers(back, 0, &k);
    REQUIRE(n == k, "another model");
    CHECK_SAME("the old model", got, want, n);
    free(got);
  }
  CHECK(count_files(folder.path, ".new") + count_files(model.path, ".new") == 0, "half files are left");
  free(want);
  mhk_destroy(ctx);
}

/* ---------------------------------------------------------------------------------------- one folder of a model */

/* two models that differ in everything a folder holds but the shapes of the weights: the first one has a tokenizer */
static mhk_model *one_of_two(mhk_context *ctx, int which) {
  mhk_config c = model_config(PHI);
  mhk_model *m;
  c.vocab_size = 1024;
  c.rope_theta = which ? 20000 : 10000;
  m = mhk_model_create(ctx, &c, (uint64_t)which + 3);
  if (which == 0) mhk_model_set_tokenizer(m, mhk_tokenizer_load(ctx, "examples/tiny"));
  return m;
}

/* 0 or 1: the folder holds that one; -1: none, by the message; -2: some of each */
static int which_of_two(const char *path) {
  mhk_context *ctx = mhk_create(NULL);
  mhk_model *found = mhk_load(ctx, path), *is;
  int which = -1;
  if (!found) {
    if (!strstr(mhk_message(ctx), "config.json") && !strstr(mhk_message(ctx), "holds neither")) which = -2;
    if (which == -2) printf("%s\n", mhk_message(ctx));
  } else {
    which = mhk_model_config(found)->rope_theta > 15000;
    is = one_of_two(ctx, which);
    mhk_model_make_trainable(found);
    if (memcmp(mhk_data(mhk_model_tensor(found, 0)), mhk_data(mhk_model_tensor(is, 0)), 1000) != 0 || (mhk_model_tokenizer(found) != NULL) != (which == 0))
      which = -2;
  }
  mhk_destroy(ctx);
  return which;
}

TEST(what_a_folder_held_does_not_come_back) {
  static const char *const left[] = {"tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json", "encoder.json", "vocab.bpe"};
  const place folder = at("held_before"), notes = at("held_before/notes.txt"), bin = at("held_before/pytorch_model.bin");
  mhk_context *ctx = mhk_create(NULL);
  char path[600];
  int i, round;
  empty_folder(folder.path);
  test_write_file(notes.path, "keep", 4);
  test_write_file(bin.path, "keep", 4);
  for (round = 0; round < 2; round++) {
    for (i = 0; i < 6; i++) {
      snprintf(path, sizeof path, "%s/%s", folder.path, left[i]);
      test_write_file(path, "{}", 2);
    }
    CHECK(mhk_save(one_of_two(ctx, 0), folder.path, MHK_F32) == MHK_OK && which_of_two(folder.path) == 0, "%s", mhk_message(ctx));
    CHECK(holds(path, "{}"), "%s is not read beside tokenizer.json and was removed", path);
    CHECK(mhk_save(one_of_two(ctx, 1), folder.path, MHK_F32) == MHK_OK && which_of_two(folder.path) == 1, "%s", mhk_message(ctx));
  }
  CHECK(count_files(folder.path, "") == 4, "%d files are there in place of 4", count_files(folder.path, ""));
  CHECK(holds(notes.path, "keep") && holds(bin.path, "keep"), "a file that is none of the model's was removed");
  mhk_save(model_new(ctx, MAMBA2, 3), folder.path, MHK_F32); /* another architecture and vocabulary */
  CHECK(mhk_load(ctx, folder.path) != NULL, "%s", mhk_message(ctx));
  mhk_destroy(ctx);
}

static void save_alternately(void *user, int round) {
  mhk_context *ctx = mhk_create(NULL);
  mhk_model *m[2];
  int i;
  for (i = 0; i < 2; i++) m[i] = one_of_two(ctx, i);
  for (i = round % 2; !mhk_failed(ctx); i++) mhk_save(m[i % 2], (const char *)user, MHK_F32);
  test_write_file(test_path("save.failed"), mhk_message(ctx), strlen(mhk_message(ctx)));
  _exit(1);
}

TEST(a_save_that_is_killed_leaves_the_old_model_or_the_new_one_or_none) {
  const place folder = at("killed_saves"), failed = at("save.failed");
  uint64_t random = 5;
  int kills, seen[3] = {0, 0, 0}, writers, i, which;
  remove(failed.path);
  empty_folder(folder.path);
  for (kills = 0; kills < 40; kills++) {
    pid_t child[2];
    writers = 1 + kills % 2;
    for (i = 0; i < writers; i++) child[i] = start(save_alternately, (void *)(uintptr_t)folder.path);
    wait_for(test_uniform(&random, 0.01, 0.08));
    for (i = 0; i < writers; i++) stop(child[i]);
    which = which_of_two(folder.path);
    REQUIRE(which >= -1, "after %d kills there is some of each", kills + 1);
    seen[which + 1]++;
  }
  CHECK(access(failed.path, F_OK) != 0, "a save failed: %s", test_read_file(failed.path, NULL));
  if (test_state.verbose) printf("none %d, first %d, second %d\n", seen[0], seen[1], seen[2]);
  CHECK(seen[1] + seen[2] > 0, "none %d, first %d, second %d times", seen[0], seen[1], seen[2]);
  {
    mhk_context *ctx = mhk_create(NULL);
    for (i = 0; i < 2; i++) CHECK(mhk_save(one_of_two(ctx, i), folder.path, MHK_F32) == MHK_OK && which_of_two(folder.path) == i, "%s", mhk_message(ctx));
    mhk_destroy(ctx);
  }
  CHECK(count_files(folder.path, "") == 2, "killed saves left %d files", count_files(folder.path, "") - 2);
}

/* ---------------------------------------------------------------------------------------- one folder of a run */

static mhk_distill_desc run_desc(mhk_context *ctx, const char *out) {
  static int32_t tokens[400];
  mhk_distill_desc d;
  mhk_config c = model_config(PHI);
  int s;
  c.n_layer = 1;
  model_tokens(tokens, 400, c.vocab_size, 7);
  memset(&d, 0, sizeof d);
  d.teacher = mhk_model_create(ctx, &c, 3);
  d.text = mhk_text_from_tokens(ctx, tokens, 400, -1);
  for (s = 0; s < 3; s++) d.stages[s].tokens = 4 * 32;
  d.batch = 2;
  d.length = 16;
  d.student_desc.chunk_size = 8;
  d.out = out;
  d.checkpoint_seconds = -1;
  return d;
}

static void hold_folder(void *user, int round) {
  mhk_context *ctx = mhk_create(NULL);
  const mhk_distill_desc d = run_desc(ctx, (const char *)user);
  mhk_trainer *tr = mhk_distill(ctx, &d);
  (void)round;
  mhk_train_step(tr);
  mhk_checkpoint(tr);
  test_write_file(test_path("held"), mhk_failed(ctx) ? mhk_message(ctx) : "yes", mhk_failed(ctx) ? strlen(mhk_message(ctx)) : 3);
  for (;;) wait_for(1);
}

TEST(one_trainer_writes_to_a_folder) {
  const place out = at("run"), held = at("held"), lock = at("run/run.lock");
  mhk_context *ctx = mhk_create(NULL);
  mhk_distill_desc d = run_desc(ctx, out.path);
  mhk_trainer *tr;
  char who[64];
  pid_t child;
  int i;
  empty_folder(out.path);
  tr = mhk_distill(ctx, &d);
  REQUIRE_OK(ctx);
  mhk_distill(ctx, &d);
  snprintf(who, sizeof who, "process %ld on ", (long)getpid());
  CHECK_FAILS(ctx, MHK_ERROR_STATE, who);
  mhk_train_step(tr);
  CHECK(mhk_checkpoint(tr) == MHK_OK, "the second trainer disturbed the first: %s", mhk_message(ctx));
  mhk_trainer_destroy(tr);
  CHECK(access(lock.path, F_OK) != 0, "the lock's file is still there");
  remove(held.path);
  child = start(hold_folder, (void *)(uintptr_t)out.path);
  for (i = 0; i < 500 && access(held.path, F_OK) != 0; i++) wait_for(0.02);
  wait_for(0.05);
  CHECK(holds(held.path, "yes"), "the child: %s", test_read_file(held.path, NULL));
  mhk_distill(ctx, &d);
  snprintf(who, sizeof who, "process %ld on ", (long)child);
  CHECK_FAILS(ctx, MHK_ERROR_STATE, who);
  d.rank = 1, d.world = 2, d.exchange = (int (*)(void *, mhk_real *, size_t))(uintptr_t)1; /* never called */
  mhk_distill(ctx, &d);
  CHECK(mhk_error(ctx) != MHK_OK && !strstr(mhk_message(ctx), "in use"), "a worker that does not write was locked out: %s", mhk_message(ctx));
  mhk_clear_error(ctx);
  stop(child);
  d.rank = 0, d.world = 0, d.exchange = NULL;
  tr = mhk_distill(ctx, &d);
  CHECK(tr && mhk_progress(tr)->resumed, "the lock outlived its process: %s", mhk_message(ctx));
  mhk_destroy(ctx);
  CHECK(count_files(out.path, "lock") == 0, "the lock's file is still there");
}

int main(int argc, char **argv) {
  test_begin(argc, argv);
  RUN(a_reader_sees_the_whole_file_of_one_of_two_writers);
  RUN(links_are_replaced_and_never_written_through);
  RUN(a_new_file_has_the_permissions_of_the_old_one);
  RUN(a_full_disk_and_a_read_only_folder_leave_the_old_model);
  RUN(what_a_folder_held_does_not_come_back);
  RUN(a_save_that_is_killed_leaves_the_old_model_or_the_new_one_or_none);
  RUN(one_trainer_writes_to_a_folder);
  return test_end();
}
