/* What is written is whole: two writers, killed writers, full disks, links, and what a folder held
   before. */
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
  char text[1200];
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

/* ------------------------------------------------------------------------------------- one file */

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
    CHECK(k == n && n == 3000000 - (size_t)(bytes[0] - 'a') * 777777, "%ld bytes of %c, then %c at %ld", (long)n,
          bytes[0], bytes[k < n ? k : 0], (long)k);
    seen[bytes[0] == 'b']++;
    free(bytes);
  }
  for (i = 0; i < 2; i++) stop(children[i]);
  CHECK(seen[0] && seen[1], "one of two writers was never read: %d and %d", seen[0], seen[1]);
  CHECK(access(failed.path, F_OK) != 0, "a writer failed: %s", test_read_file(failed.path, NULL));
  write_large(&who[0], 0);
  CHECK(count_files(folder.path, "") == 1, "killed writers left %d files beside the one",
        count_files(folder.path, "") - 1);
}

/* model after model of the same shapes, told apart by their configurations and by every weight */
static void save_others(void *user, int round) {
  mhk_context *ctx = mhk_create(NULL);
  mhk_config c = model_config(PHI);
  mhk_model *m;
  int i;
  mhk_index j;
  c.rope_theta = 10000 + round;
  m = mhk_model_create(ctx, &c, 1);
  for (i = 0; i < mhk_model_count(m); i++)
    for (j = 0; j < mhk_model_at(m, i)->count; j++)
      mhk_data(mhk_model_at(m, i))[j] = (mhk_real)c.rope_theta;
  mhk_save(m, (const char *)user, MHK_F32);
  mhk_destroy(ctx);
}

TEST(a_model_loaded_while_others_are_saved_is_one_of_them) {
  place folder = at("turns");
  int i, loaded = 0, refused = 0, others = 0;
  double last = 0;
  pid_t child;
  empty_folder(folder.path);
  save_others(folder.path, 0);
  child = start(save_others, folder.path);
  for (i = 0; i < 600; i++) {
    mhk_context *ctx = mhk_create(NULL);
    mhk_model *m = mhk_load(ctx, folder.path);
    if (m) {
      const double theta = mhk_model_config(m)->rope_theta;
      const mhk_tensor *x = mhk_model_at(m, mhk_model_count(m) - 1);
      CHECK(fabs(mhk_value(x) - theta) < 0.5, "the configuration says %g, the weights are those of %g", theta,
            mhk_value(x));
      loaded++;
      others += theta != last;
      last = theta;
    } else {
      CHECK(mhk_error(ctx) == MHK_ERROR_FILE, "refused: %s", mhk_message(ctx));
      refused++;
    }
    mhk_destroy(ctx);
  }
  stop(child);
  CHECK(others > 1, "%d of %d were another one than before, %d were refused", others, loaded, refused);
}

TEST(links_are_replaced_and_never_written_through) {
  const place folder = at("links"), path = at("links/a"), target = at("links/target"), temporary = at("links/a.new"),
              fifo = at("links/fifo");
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
  CHECK(stat(path.path, &info) == 0 && (info.st_mode & 0777) == 0644, "a new file has %o",
        (unsigned)info.st_mode & 0777);
  chmod(path.path, 0600);
  mhk_file_write_bytes(ctx, path.path, "b", 1);
  CHECK(stat(path.path, &info) == 0 && (info.st_mode & 0777) == 0600, "a private file became %o",
        (unsigned)info.st_mode & 0777);
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
    for (most = 0; most < 60000; most += 9000)
      CHECK(save_badly(paths[i], (rlim_t)most, strerror(EFBIG)) == 0, "a disk of %d bytes was enough", most);
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

/* ------------------------------------------------------------------------ one folder of a model */

/* two models that differ in everything a folder holds but the shapes of the weights: the first one
   has a tokenizer */
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
    if (!strstr(mhk_message(ctx), "config.json") && !strstr(mhk_message(ctx), "has no model.safetensors")) which = -2;
    if (which == -2) printf("%s\n", mhk_message(ctx));
  } else {
    which = mhk_model_config(found)->rope_theta > 15000;
    is = one_of_two(ctx, which);
    mhk_model_make_trainable(found);
    if (memcmp(mhk_data(mhk_model_at(found, 0)), mhk_data(mhk_model_at(is, 0)), 1000) != 0 ||
        (mhk_model_tokenizer(found) != NULL) != (which == 0))
      which = -2;
  }
  mhk_destroy(ctx);
  return which;
}

TEST(what_a_folder_held_does_not_come_back) {
  static const char *const left[] = {"tokenizer_config.json", "vocab.json",   "merges.txt",
                                     "added_tokens.json",     "encoder.json", "vocab.bpe"};
  const place folder = at("held_before"), notes = at("held_before/notes.txt"),
              bin = at("held_before/pytorch_model.bin");
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
    CHECK(mhk_save(one_of_two(ctx, 0), folder.path, MHK_F32) == MHK_OK && which_of_two(folder.path) == 0, "%s",
          mhk_message(ctx));
    CHECK(holds(path, "{}"), "%s is not read beside tokenizer.json and was removed", path);
    CHECK(mhk_save(one_of_two(ctx, 1), folder.path, MHK_F32) == MHK_OK && which_of_two(folder.path) == 1, "%s",
          mhk_message(ctx));
  }
  CHECK(count_files(folder.path, "") == 4, "%d files are there in place of 4", count_files(folder.path, ""));
  CHECK(holds(notes.path, "keep") && holds(bin.path, "keep"), "a file that is none of the model's was removed");
  mhk_save(model_new(ctx, MAMBA2, 3), folder.path, MHK_F32); /* another architecture and vocabulary */
  CHECK(mhk_load(ctx, folder.path) != NULL, "%s", mhk_message(ctx));
  mhk_destroy(ctx);
}

static double seconds_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
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
  double each;
  mhk_context *ctx = mhk_create(NULL);
  remove(failed.path);
  empty_folder(folder.path);
  each = seconds_now();
  for (i = 0; i < 2; i++) mhk_save(one_of_two(ctx, i), folder.path, MHK_F32);
  each = seconds_now() - each;
  CHECK_OK(ctx);
  mhk_destroy(ctx);
  for (kills = 0; kills < 30; kills++) {
    pid_t child[2];
    writers = 1 + kills % 2;
    for (i = 0; i < writers; i++) child[i] = start(save_alternately, (void *)(uintptr_t)folder.path);
    wait_for(test_uniform(&random, 0.2 * each, 3 * each));
    for (i = 0; i < writers; i++) stop(child[i]);
    which = which_of_two(folder.path);
    REQUIRE(which >= -1, "after %d kills there is some of each", kills + 1);
    seen[which + 1]++;
  }
  CHECK(access(failed.path, F_OK) != 0, "a save failed: %s", test_read_file(failed.path, NULL));
  if (test_state.verbose) printf("none %d, first %d, second %d\n", seen[0], seen[1], seen[2]);
  CHECK(seen[1] + seen[2] > 0, "none %d, first %d, second %d times", seen[0], seen[1], seen[2]);
  ctx = mhk_create(NULL);
  for (i = 0; i < 2; i++)
    CHECK(mhk_save(one_of_two(ctx, i), folder.path, MHK_F32) == MHK_OK && which_of_two(folder.path) == i, "%s",
          mhk_message(ctx));
  mhk_destroy(ctx);
  CHECK(count_files(folder.path, "") == 2, "killed saves left %d files", count_files(folder.path, "") - 2);
}

/* -------------------------------------------------------------------------- one folder of a run */

static mhk_distill_desc run_desc(mhk_context *ctx, const char *out) {
  static int32_t tokens[400];
  mhk_distill_desc d;
  mhk_config c = model_config(PHI);
  int s;
  c.n_layer = 1;
  model_tokens(tokens, 400, c.vocab_size, 7);
  memset(&d, 0, sizeof d);
  d.teacher = mhk_model_create(ctx, &c, 3);
  d.corpus = mhk_corpus_from_tokens(ctx, tokens, 400, -1);
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
  test_write_file(test_path("held"), mhk_failed(ctx) ? mhk_message(ctx) : "yes",
                  mhk_failed(ctx) ? strlen(mhk_message(ctx)) : 3);
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
  CHECK(mhk_error(ctx) != MHK_OK && !strstr(mhk_message(ctx), "in use"),
        "a worker that does not write was locked out: %s", mhk_message(ctx));
  mhk_clear_error(ctx);
  stop(child);
  d.rank = 0, d.world = 0, d.exchange = NULL;
  tr = mhk_distill(ctx, &d);
  CHECK(tr && mhk_progress(tr)->resumed, "the lock outlived its process: %s", mhk_message(ctx));
  mhk_destroy(ctx);
  CHECK(count_files(out.path, "lock") == 0, "the lock's file is still there");
}

/* -------------------------------------------------------------------------- damaged checkpoints */

static uint64_t turned(uint64_t x, int bits) { return x << bits | x >> (64 - bits); }
static uint64_t bytes_at(const unsigned char *p, int n) {
  uint64_t x = 0;
  while (n > 0) x = x << 8 | p[--n];
  return x;
}

/* XXH64 with seed 0, straight from its specification */
static uint64_t xxh64(const unsigned char *p, size_t n) {
  static const uint64_t P1 = UINT64_C(0x9E3779B185EBCA87), P2 = UINT64_C(0xC2B2AE3D27D4EB4F),
                        P3 = UINT64_C(0x165667B19E3779F9), P4 = UINT64_C(0x85EBCA77C2B2AE63),
                        P5 = UINT64_C(0x27D4EB2F165667C5);
  uint64_t v[4], h = P5;
  size_t left = n;
  int i;
  v[0] = P1 + P2, v[1] = P2, v[2] = 0, v[3] = 0 - P1;
  for (; left >= 32; left -= 32)
    for (i = 0; i < 4; i++, p += 8) v[i] = turned(v[i] + bytes_at(p, 8) * P2, 31) * P1;
  if (n >= 32) {
    h = turned(v[0], 1) + turned(v[1], 7) + turned(v[2], 12) + turned(v[3], 18);
    for (i = 0; i < 4; i++) h = (h ^ turned(v[i] * P2, 31) * P1) * P1 + P4;
  }
  h += n;
  for (; left >= 8; left -= 8, p += 8) h = turned(h ^ turned(bytes_at(p, 8) * P2, 31) * P1, 27) * P1 + P4;
  for (; left >= 4; left -= 4, p += 4) h = turned(h ^ bytes_at(p, 4) * P1, 23) * P2 + P3;
  for (; left > 0; left--, p++) h = turned(h ^ *p * P5, 11) * P1;
  h = (h ^ h >> 33) * P2;
  h = (h ^ h >> 29) * P3;
  return h ^ h >> 32;
}

typedef struct heard {
  int warnings;
  char last[1200];
} heard;
static void hear(void *user, mhk_log_level level, const char *text) {
  heard *h = (heard *)user;
  if (level != MHK_LOG_WARNING) return;
  h->warnings++;
  snprintf(h->last, sizeof h->last, "%s", text);
}

static mhk_context *hearing(heard *h) {
  mhk_context_desc d;
  memset(&d, 0, sizeof d);
  memset(h, 0, sizeof *h);
  d.log = hear;
  d.log_user = h;
  return mhk_create(&d);
}

/* Goes on with the run in a folder for so many updates (-1: to its end), with a checkpoint after
   each, in any number of contexts. Returns the student's numbers, or NULL with the message in
   said. */
static mhk_real *go_on(const char *out, int updates, mhk_windows windows, mhk_index *n, heard *h, char said[1024]) {
  mhk_context *ctx = hearing(h);
  mhk_distill_desc d = run_desc(ctx, out);
  mhk_trainer *tr;
  mhk_real *numbers = NULL;
  d.windows = windows;
  tr = mhk_distill(ctx, &d);
  while (updates-- != 0 && mhk_train_step(tr)) mhk_checkpoint(tr);
  snprintf(said, 1024, "%s", mhk_message(ctx));
  if (!mhk_failed(ctx)) numbers = model_numbers(mhk_student(tr), 0, n);
  mhk_destroy(ctx);
  return numbers;
}

/* damages a copy of a file's bytes; returns its new length. kind 0: a bit of the header, 1: a bit
   of the tensors, 2: zeros, 3: cut short, 4: longer */
static size_t damage(unsigned char *b, size_t n, int kind, uint64_t *random) {
  const size_t header = 8 + (size_t)bytes_at(b, 8);
  size_t where, k;
  switch (kind) {
    case 0:
      where = (size_t)(test_random(random) % header);
      b[where] ^= (unsigned char)(1 << test_random(random) % 8);
      return n;
    case 1:
      where = header + (size_t)(test_random(random) % (n - header));
      b[where] ^= (unsigned char)(1 << test_random(random) % 8);
      return n;
    case 2:
      where = (size_t)(test_random(random) % (n / 512)) * 512;
      for (k = where; k < n && k < where + 4096; k++) b[k] = 0;
      return n;
    case 3: return (size_t)(test_random(random) % n);
    default:
      k = 1 + (size_t)(test_random(random) % 4096);
      for (where = n; where < n + k; where++) b[where] = (unsigned char)test_random(random);
      return n + k;
  }
}

TEST(every_damage_of_a_checkpoint_shows) {
  static const int kinds[5] = {90, 90, 50, 40, 30};
  static const char *const names[5] = {"a bit of the header", "a bit of the tensors", "zeros", "cut short", "longer"};
  const place out = at("damaged"), file = at("damaged/checkpoint.safetensors");
  unsigned char *sound, *bytes;
  size_t n = 0;
  uint64_t random = 11;
  mhk_index count;
  mhk_real *want;
  heard h;
  char said[1024];
  int kind, i, refused = 0;
  CHECK(xxh64((const unsigned char *)"", 0) == UINT64_C(0xEF46DB3751D8E999) &&
            xxh64((const unsigned char *)"abc", 3) == UINT64_C(0x44BC2CF5AD770999),
        "this is not XXH64");
  empty_folder(out.path);
  free(go_on(out.path, 5, MHK_WINDOWS_RANDOM, &count, &h, said));
  sound = (unsigned char *)test_read_file(file.path, &n);
  REQUIRE(sound != NULL, "no checkpoint: %s", said);
  CHECK(bytes_at(sound + n - 8, 8) == xxh64(sound, n - 8),
        "the last eight bytes are not the XXH64 of what is before them");
  bytes = (unsigned char *)malloc(n + 5000);
  want = go_on(out.path, -1, MHK_WINDOWS_RANDOM, &count, &h, said);
  for (kind = 0; kind < 5; kind++)
    for (i = 0; i < kinds[kind]; i++) {
      mhk_index k;
      mhk_real *got;
      size_t length;
      memcpy(bytes, sound, n);
      length = damage(bytes, n, kind, &random);
      if (length == n && memcmp(bytes, sound, n) == 0) {
        i--; /* zeros on zeros */
        continue;
      }
      empty_folder(out.path);
      test_write_file(file.path, bytes, length);
      got = go_on(out.path, -1, MHK_WINDOWS_RANDOM, &k, &h, said);
      if (!got && strstr(said, "checkpoint.safetensors") && strstr(said, "--fresh"))
        refused++;
      else
        CHECK(got && k == count && memcmp(got, want, sizeof *want * (size_t)k) == 0, "%s: another student, or: %s",
              names[kind], said);
      free(got);
    }
  CHECK(refused == 300, "%d of 300 damaged checkpoints were refused", refused);
  free(want), free(bytes), free(sound);
}

/* Changes a value of the state in a checkpoint, with a checksum that is right again. */
static void forge(unsigned char *b, size_t n, int value, uint64_t to) {
  char digits[17];
  char *state = NULL;
  size_t i;
  for (i = 0; i + 8 < n && !state; i++)
    if (memcmp(b + i, "\"state\":\"", 9) == 0) state = (char *)b + i + 9;
  REQUIRE(state != NULL, "no state");
  snprintf(digits, sizeof digits, "%016llx", (unsigned long long)to);
  memcpy(state + 17 * value, digits, 16);
  to = xxh64(b, n - 8);
  for (i = 0; i < 8; i++, to >>= 8) b[n - 8 + i] = (unsigned char)to;
}

TEST(a_checkpoint_that_contradicts_itself_is_refused) {
  static const struct {
    mhk_windows windows;
    int value;
    uint64_t to;
    const char *says;
  } cases[] = {
      {MHK_WINDOWS_RANDOM, 0, 4, "position in the run"},
      {MHK_WINDOWS_RANDOM, 0, 3, "different numbers of updates"},
      {MHK_WINDOWS_RANDOM, 1, 4, "its stage is over"},
      {MHK_WINDOWS_RANDOM, 1, 2, "different numbers of updates"},
      {MHK_WINDOWS_RANDOM, 2, 1, "finished"},
      {MHK_WINDOWS_RANDOM, 3, 0, "no stage"},
      {MHK_WINDOWS_RANDOM, 3, 3, "different numbers of updates"},
      {MHK_WINDOWS_RANDOM, 4, 7, "different numbers of updates"},
      {MHK_WINDOWS_RANDOM, 9, 1, "windows are random"},
      {MHK_WINDOWS_RANDOM, 12, UINT64_C(0x7FF8) << 48, "not a number"},
      {MHK_WINDOWS_RANDOM, 13, UINT64_C(0xBFF0) << 48, "not a number"},
      {MHK_WINDOWS_PACKED, 10, 1, "position in the text"},
      {MHK_WINDOWS_PACKED, 11, 400, "position in a document"},
  };
  const place out = at("contradicts"), file = at("contradicts/checkpoint.safetensors");
  size_t c;
  for (c = 0; c < sizeof cases / sizeof *cases; c++) {
    mhk_index count;
    unsigned char *b;
    size_t n = 0;
    heard h;
    char said[1024];
    empty_folder(out.path);
    free(go_on(out.path, 5, cases[c].windows, &count, &h, said)); /* stage 2 of 3, after 1 update of 4 */
    b = (unsigned char *)test_read_file(file.path, &n);
    REQUIRE(b != NULL, "%s", said);
    forge(b, n, cases[c].value, cases[c].to);
    empty_folder(out.path);
    test_write_file(file.path, b, n);
    CHECK(!go_on(out.path, -1, cases[c].windows, &count, &h, said) && strstr(said, cases[c].says),
          "value %d became %llx: %s", cases[c].value, (unsigned long long)cases[c].to, said);
    free(b);
  }
}

TEST(a_checkpoint_of_version_1_is_resumed_with_a_warning) {
  const place out = at("version1"), file = at("version1/checkpoint.safetensors");
  mhk_context *ctx = mhk_create(NULL);
  const char *metadata[6] = {"format", "mohawk checkpoint 1", "state", NULL, "run", NULL};
  char state[14 * 17], said[1024];
  mhk_stored list[100];
  mhk_index n, k;
  mhk_real *want, *got;
  mhk_file *f;
  heard h;
  int i, count = 0;
  empty_folder(out.path);
  want = go_on(out.path, -1, MHK_WINDOWS_RANDOM, &n, &h, said);
  empty_folder(out.path);
  free(go_on(out.path, 6, MHK_WINDOWS_RANDOM, &k, &h, said));
  f = mhk_file_open(ctx, file.path);
  REQUIRE(want && f && mhk_file_count(f) < 100, "%s", said);
  for (i = 0; i < mhk_file_count(f); i++)
    if (strcmp(mhk_file_at(f, i)->name, "checksum.xxh64") != 0) {
      mhk_real *numbers;
      list[count] = *mhk_file_at(f, i);
      numbers = (mhk_real *)malloc(list[count].bytes + 1);
      mhk_file_read(ctx, &list[count], numbers); /* in the order of this machine's bytes */
      list[count++].data = numbers;
    }
  CHECK(count == mhk_file_count(f) - 1, "no checksum among the tensors");
  snprintf(state, sizeof state, "%s", mhk_file_metadata(f, "state", NULL)); /* without its last value */
  metadata[3] = state;
  metadata[5] = mhk_file_metadata(f, "run", NULL);
  CHECK(mhk_file_write(ctx, file.path, count, list, 3, metadata) == MHK_OK, "%s", mhk_message(ctx));
  while (count > 0) free((void *)(uintptr_t)list[--count].data);
  got = go_on(out.path, -1, MHK_WINDOWS_RANDOM, &k, &h, said);
  CHECK(h.warnings == 1 && strstr(h.last, "older version"), "%d warnings: %s", h.warnings, h.last);
  REQUIRE(got && k == n, "%s", said);
  CHECK_SAME("a run that went on from version 1", got, want, n);
  free(got), free(want);
  mhk_destroy(ctx);
}

TEST(the_checkpoint_before_a_damaged_one_is_used_and_that_is_said) {
  const place out = at("before"), last = at("before/checkpoint.safetensors"),
              before = at("before/checkpoint.previous.safetensors");
  mhk_index n, k;
  heard h;
  char said[1024];
  mhk_real *want, *got;
  int way;
  empty_folder(out.path);
  want = go_on(out.path, -1, MHK_WINDOWS_PACKED, &n, &h, said);
  REQUIRE(want != NULL, "%s", said);
  for (way = 0; way < 3; way++) {
    size_t length = 0;
    unsigned char *b;
    empty_folder(out.path);
    free(go_on(out.path, 7, MHK_WINDOWS_PACKED, &k, &h, said));
    CHECK(h.warnings == 0, "%s", h.last);
    CHECK(count_files(out.path, "") == 2, "%d files after some checkpoints", count_files(out.path, ""));
    b = (unsigned char *)test_read_file(last.path, &length);
    REQUIRE(b != NULL, "not a checkpoint");
    b[length / 2] ^= 4;
    if (way == 1)
      remove(last.path); /* as when the process is killed between two renames */
    else
      test_write_file(last.path, b, length);
    /* writes one: the damaged one must not push the sound one out */
    free(go_on(out.path, 1, MHK_WINDOWS_PACKED, &k, &h, said));
    CHECK(h.warnings == 1 && strstr(h.last, last.path) && strstr(h.last, before.path) &&
              strstr(h.last, way == 1 ? "does not exist" : "checksum"),
          "%s", h.last);
    test_write_file(last.path, b, length);
    got = go_on(out.path, -1, MHK_WINDOWS_PACKED, &k, &h, said);
    CHECK(h.warnings == 1, "%s", h.last);
    REQUIRE(got && k == n, "%s", said);
    CHECK_SAME("a run with damaged checkpoints", got, want, n);
    free(got);
    test_write_file(last.path, b, length);
    test_write_file(before.path, b, length / 2);
    CHECK(!go_on(out.path, -1, MHK_WINDOWS_PACKED, &k, &h, said), "two damaged checkpoints were taken");
    CHECK(strstr(said, last.path) && strstr(said, before.path) && strstr(said, "--fresh"), "%s", said);
    free(b);
  }
  {
    mhk_context *ctx = mhk_create(NULL);
    mhk_distill_desc d = run_desc(ctx, out.path);
    mhk_trainer *tr;
    d.fresh = 1;
    tr = mhk_distill(ctx, &d);
    mhk_train_step(tr);
    CHECK(mhk_checkpoint(tr) == MHK_OK && count_files(out.path, "previous") == 0,
          "a fresh run keeps a checkpoint of the one before: %s", mhk_message(ctx));
    mhk_destroy(ctx);
  }
  free(want);
}

int main(int argc, char **argv) {
  test_begin(argc, argv);
  RUN(a_reader_sees_the_whole_file_of_one_of_two_writers);
  RUN(a_model_loaded_while_others_are_saved_is_one_of_them);
  RUN(links_are_replaced_and_never_written_through);
  RUN(a_new_file_has_the_permissions_of_the_old_one);
  RUN(a_full_disk_and_a_read_only_folder_leave_the_old_model);
  RUN(what_a_folder_held_does_not_come_back);
  RUN(a_save_that_is_killed_leaves_the_old_model_or_the_new_one_or_none);
  RUN(one_trainer_writes_to_a_folder);
  RUN(every_damage_of_a_checkpoint_shows);
  RUN(a_checkpoint_that_contradicts_itself_is_refused);
  RUN(a_checkpoint_of_version_1_is_resumed_with_a_warning);
  RUN(the_checkpoint_before_a_damaged_one_is_used_and_that_is_said);
  return test_end();
}
