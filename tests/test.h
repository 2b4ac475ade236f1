/* A small test frame. A program lists its tests in main:

     TEST(addition) { CHECK(1 + 1 == 2, "1 + 1 is %d", 1 + 1); }
     int main(int argc, char **argv) {
       test_begin(argc, argv);
       RUN(addition);
       return test_end();
     }

   Tests run in that order; `--filter text` runs those whose name contains text, `--list` names
   them. Those that the environment variable TEST_WITHOUT names, with blanks between them, are
   skipped: emulators are too slow for some. The last line is `name: N passed, N failed` with the
   tests counted, and the exit code is 1 when one failed. Programs run from the top folder of the
   project. Include mohawk.h (declarations) first or let this file do it. */
#ifndef TEST_H
#define TEST_H

#include "../mohawk.h"
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef _WIN32
#include <direct.h>
#define mkdir(path, mode) _mkdir(path)
#else
#include <sys/stat.h>
#endif

#define TEST(name) static void name##_test(void)
#define RUN(name) test_run(#name, name##_test)
/* CHECK goes on after a failure; REQUIRE leaves the function. Both print the message (printf
   format), its place and the condition. */
#define CHECK(condition, ...) ((condition) ? test_one_more_check() : test_failure(__FILE__, __LINE__, #condition, \
  __VA_ARGS__))
#define REQUIRE(condition, ...) \
  do { \
    if (condition) \
      test_one_more_check(); \
    else { \
      test_failure(__FILE__, __LINE__, #condition, __VA_ARGS__); \
      return; \
    } \
  } while (0)
/* says why the running test is not one: it counts as skipped unless a check fails */
#define SKIP(...) (test_state.skipping = 1, printf("skipped: " __VA_ARGS__), printf("\n"))
/* the context has not failed; prints its message otherwise */
#define CHECK_OK(ctx) CHECK(!mhk_failed(ctx), "%s", mhk_message(ctx))
#define REQUIRE_OK(ctx) REQUIRE(!mhk_failed(ctx), "%s", mhk_message(ctx))
/* the context has failed with the code and its message contains the text; the error is cleared */
#define CHECK_FAILS(ctx, code, text) test_fails(__FILE__, __LINE__, ctx, code, text)
/* n numbers within tolerance * max|want| of each other; what names them in the report */
#define CHECK_CLOSE(what, got, want, n, tolerance) test_close(__FILE__, __LINE__, what, got, want, NULL, n, tolerance)
#define CHECK_CLOSE_TO_DOUBLE(what, got, want, n, tolerance) test_close(__FILE__, __LINE__, what, got, NULL, want, n, \
  tolerance)
/* the same bytes */
#define CHECK_SAME(what, got, want, n) test_same(__FILE__, __LINE__, what, got, want, n)

typedef struct test_globals {
  const char *program, *filter, *running;
  int list, passed, failed, skipped, skipping, failures, verbose;
  long checks;
  char missing[120]; /* what test_machine() was asked for and this machine has not got */
  double worst; /* largest error test_close() saw, in units of the tolerance; the program may reset it */
} test_globals;
static test_globals test_state;

static inline void test_one_more_check(void) { test_state.checks++; }

#if defined(__GNUC__)
__attribute__((format(printf, 4, 5)))
#endif
static inline void test_failure(const char *file, int line, const char *condition, const char *format, ...) {
  va_list args;
  test_state.checks++;
  if (++test_state.failures > 20) return; /* of one test: enough to see what is wrong */
  printf("%s:%d: %s: ", file, line, test_state.running ? test_state.running : "");
  va_start(args, format);
  vprintf(format, args);
  va_end(args);
  printf("  [%s]\n", condition);
  fflush(stdout);
}

static inline void test_begin(int argc, char **argv) {
  int i;
  const char *name = argv[0], *slash;
  while ((slash = strpbrk(name, "/\\")) != NULL) name = slash + 1;
  memset(&test_state, 0, sizeof test_state);
  test_state.program = name;
  for (i = 1; i < argc; i++)
    if (!strcmp(argv[i], "--filter") && i + 1 < argc)
      test_state.filter = argv[++i];
    else if (!strcmp(argv[i], "--list"))
      test_state.list = 1;
    else if (!strcmp(argv[i], "--verbose"))
      test_state.verbose = 1;
}

static inline int test_is_named(const char *names, const char *name) {
  const size_t n = strlen(name);
  const char *p = names;
  while (p && (p = strstr(p, name)) != NULL) {
    if ((p == names || p[-1] == ' ') && (p[n] == 0 || p[n] == ' ')) return 1;
    p += n;
  }
  return 0;
}

static inline void test_run(const char *name, void (*body)(void)) {
  if (test_state.filter && !strstr(name, test_state.filter)) return;
  if (test_state.list) {
    printf("%s\n", name);
    return;
  }
  if (test_is_named(getenv("TEST_WITHOUT"), name)) {
    test_state.skipped++;
    return;
  }
  test_state.running = name;
  test_state.failures = 0;
  test_state.skipping = 0;
  body();
  if (test_state.failures) {
    test_state.failed++;
    printf("FAILED %s %s (%d checks)\n", test_state.program, name, test_state.failures);
  } else if (test_state.skipping)
    test_state.skipped++;
  else
    test_state.passed++;
  if (test_state.verbose) printf("%s %s\n", test_state.failures ? "not ok" : "ok    ", name);
  fflush(stdout);
  test_state.running = NULL;
}

static inline int test_end(void) {
  if (test_state.list) return 0;
  if (test_state.missing[0]) printf("%s: not here, so not tested:%s\n", test_state.program, test_state.missing);
  printf("%s: %d passed, %d failed", test_state.program, test_state.passed, test_state.failed);
  if (test_state.skipped) printf(" (%d skipped)", test_state.skipped);
  printf("\n");
  return test_state.failed != 0;
}

static inline void test_fails(const char *file, int line, mhk_context *ctx, mhk_result code, const char *text) {
  if (mhk_error(ctx) != code)
    test_failure(file, line, "mhk_error", "error %d with message \"%s\" instead of error %d", (int)mhk_error(ctx),
                 mhk_message(ctx), (int)code);
  else if (!strstr(mhk_message(ctx), text))
    test_failure(file, line, "mhk_message", "the message \"%s\" does not contain \"%s\"", mhk_message(ctx), text);
  else
    test_one_more_check();
  mhk_clear_error(ctx);
}

/* Returns the worst error relative to max|want| (NaN counts as infinite). */
static inline double test_close(const char *file, int line, const char *what, const mhk_real *got, const mhk_real *want,
                                const double *want_double, mhk_index n, double tolerance) {
  double scale = 0, worst = 0;
  mhk_index i, at = 0;
  if (!got || (!want && !want_double)) {
    test_failure(file, line, "not NULL", "%s: nothing to compare", what);
    return INFINITY;
  }
  for (i = 0; i < n; i++) {
    double w = fabs(want ? (double)want[i] : want_double[i]);
    if (w > scale) scale = w;
  }
  for (i = 0; i < n; i++) {
    double e = fabs((double)got[i] - (want ? (double)want[i] : want_double[i]));
    if (!(e <= worst)) {
      worst = e == e ? e : INFINITY;
      at = i;
      if (e != e) break;
    }
  }
  if (worst > tolerance * scale)
    test_failure(file, line, "close",
                 "%s: element %lld of %lld is %.9g, should be %.9g: off by %.2e of the largest, %.2e is allowed", what,
                 (long long)at, (long long)n, (double)got[at], want ? (double)want[at] : want_double[at],
                 scale > 0 ? worst / scale : worst, tolerance);
  else
    test_one_more_check();
  worst = scale > 0 ? worst / scale : worst;
  if (tolerance > 0 && worst / tolerance > test_state.worst) test_state.worst = worst / tolerance;
  return worst;
}

static inline void test_same(const char *file, int line, const char *what, const mhk_real *got, const mhk_real *want,
                             mhk_index n) {
  mhk_index i;
  if (!got || !want) {
    test_failure(file, line, "not NULL", "%s: nothing to compare", what);
    return;
  }
  for (i = 0; i < n; i++)
    if (memcmp(got + i, want + i, sizeof *got)) {
      test_failure(file, line, "same bits", "%s: element %lld of %lld is %.17g, should be %.17g exactly", what,
                   (long long)i, (long long)n, (double)got[i], (double)want[i]);
      return;
    }
  test_one_more_check();
}

/* Random numbers for tests: splitmix64. */
static inline uint64_t test_random(uint64_t *state) {
  uint64_t z = (*state += UINT64_C(0x9E3779B97F4A7C15));
  z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
  z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
  return z ^ (z >> 31);
}
/* uniform in [low,high) */
static inline double test_uniform(uint64_t *state, double low, double high) {
  return low + (high - low) * ((double)(test_random(state) >> 11) / 9007199254740992.0);
}
/* Fills x with numbers in [low,high) that float32 holds exactly. */
static inline void test_fill(mhk_real *x, mhk_index n, double low, double high, uint64_t seed) {
  mhk_index i;
  for (i = 0; i < n; i++) x[i] = (mhk_real)(float)test_uniform(&seed, low, high);
}

/* A whole file with a 0 after its end, or NULL. The caller frees it. */
static inline char *test_read_file(const char *path, size_t *length) {
  FILE *f = fopen(path, "rb");
  char *text = NULL;
  long size;
  if (!f) return NULL;
  if (fseek(f, 0, SEEK_END) == 0 && (size = ftell(f)) >= 0 && fseek(f, 0, SEEK_SET) == 0) {
    text = (char *)malloc((size_t)size + 1);
    if (text) {
      size_t n = fread(text, 1, (size_t)size, f);
      text[n] = 0;
      if (length) *length = n;
    }
  }
  fclose(f);
  return text;
}
static inline int test_write_file(const char *path, const void *data, size_t length) {
  FILE *f = fopen(path, "wb");
  size_t n = f ? fwrite(data, 1, length, f) : 0;
  if (f) fclose(f);
  return f && n == length;
}
/* Makes a folder and those above it. */
static inline void test_make_folder(const char *path) {
  char part[600];
  size_t i;
  for (i = 1; i <= strlen(path) && i < sizeof part; i++)
    if (path[i] == '/' || path[i] == 0) {
      memcpy(part, path, i);
      part[i] = 0;
      mkdir(part, 0777);
    }
}
/* $BUILD/test/PROGRAM/name (BUILD: build if unset), with the folder made: a place for files a test
   writes, of this build alone. Eight calls in turn may be in use at once. */
static inline const char *test_path(const char *name) {
  static char path[8][512];
  static int made, turn;
  const char *build = getenv("BUILD");
  char *p = path[turn++ % 8];
  if (!build || !build[0]) build = "build";
  if (!made) {
    snprintf(p, sizeof path[0], "%s/test/%s", build, test_state.program);
    test_make_folder(p);
    made = 1;
  }
  snprintf(p, sizeof path[0], "%s/test/%s/%s", build, test_state.program, name);
  return p;
}

#ifdef TEST_THREADS /* contexts that do not say otherwise have so many threads: for ThreadSanitizer */
static inline mhk_context *test_create(const mhk_context_desc *desc) {
  mhk_context_desc d;
  memset(&d, 0, sizeof d);
  if (desc) d = *desc;
  if (d.threads == 0 && !d.parallel_for) d.threads = TEST_THREADS;
  return mhk_create(&d);
}
#define mhk_create test_create
#endif

/* An allocator that counts, and can fail: fail_at n makes the n-th allocation from now on (1 is the
   next) and all later ones return NULL; 0 never fails. */
typedef struct test_memory {
  long allocations, fail_at;
  size_t bytes, blocks;
  int wrong_size;
} test_memory;
typedef union test_block {
  size_t bytes;
  long double align_1;
  void *align_2;
} test_block;
static inline void *test_alloc(void *user, size_t bytes) {
  test_memory *m = (test_memory *)user;
  test_block *b;
  m->allocations++;
  if (m->fail_at && m->allocations >= m->fail_at) return NULL;
  b = (test_block *)malloc(sizeof *b + bytes);
  if (!b) return NULL;
  b->bytes = bytes;
  m->bytes += bytes;
  m->blocks++;
  return b + 1;
}
static inline void test_release(void *user, void *block, size_t bytes) {
  test_memory *m = (test_memory *)user;
  test_block *b = (test_block *)block - 1;
  if (b->bytes != bytes) m->wrong_size = 1;
  m->bytes -= b->bytes;
  m->blocks--;
  free(b);
}
/* a context with such an allocator, counting from 0; NULL when that fails before there is one */
static inline mhk_context *test_context(test_memory *m, long fail_at, int threads) {
  mhk_context_desc d;
  memset(m, 0, sizeof *m);
  memset(&d, 0, sizeof d);
  m->fail_at = fail_at;
  d.allocator.alloc = test_alloc;
  d.allocator.release = test_release;
  d.allocator.user = m;
  d.threads = threads;
  return mhk_create(&d);
}

/* An environment variable for what follows; NULL removes it. */
static inline void test_environment(const char *name, const char *value) {
#ifdef _WIN32
  _putenv_s(name, value ? value : "");
#else
  if (value)
    setenv(name, value, 1);
  else
    unsetenv(name);
#endif
}

/* A context on an instruction set with a unit for bfloat16, for tests that walk all of them,
   whatever MHK_ISA and MHK_BF16_UNIT say; NULL where this machine or build has not got it, which
   the program says at its end. */
static inline mhk_context *test_machine_rounding(mhk_isa isa, mhk_bf16_unit unit, int threads,
                                                 mhk_precision precision) {
  static const char *const isas[] = {"", "scalar", "avx2", "avx512", "neon", "wasm"};
  static const char *const units[] = {"", "plain", "AVX512-BF16", "AMX"};
  static const char *const variables[] = {"MHK_ISA", "MHK_BF16_UNIT"};
  const char *what;
  char saved[2][40];
  mhk_context_desc d;
  mhk_context *ctx;
  int i;
  for (i = 0; i < 2; i++) {
    const char *value = getenv(variables[i]);
    snprintf(saved[i], sizeof saved[i], "%s", value ? value : "");
    if (value && (i == 0 ? isa != MHK_ISA_BEST : unit != MHK_BF16_BEST)) test_environment(variables[i], NULL);
  }
  memset(&d, 0, sizeof d);
  d.isa = isa;
  d.bf16_unit = unit;
#if MHK_VERSION_MINOR >= 3 /* tests/bits.c includes older headers */
  d.precision = precision;
#else
  (void)precision;
#endif
  d.threads = threads;
  ctx = mhk_create(&d);
  for (i = 0; i < 2; i++)
    if (saved[i][0]) test_environment(variables[i], saved[i]);
  if (!ctx) exit(3);
  if (!mhk_failed(ctx)) {
    const char *came = mhk_isa_name(ctx);
    CHECK(isa == MHK_ISA_BEST || !strcmp(came, isas[isa]), "%s was asked for, %s came", isas[isa], came);
    return ctx;
  }
  CHECK(isa > MHK_ISA_SCALAR || unit > MHK_BF16_PLAIN, "the scalar and the best set are everywhere: %s",
        mhk_message(ctx));
  if (isa != MHK_ISA_BEST && strcmp(mhk_isa_name(ctx), isas[isa]) != 0)
    what = isas[isa];
  else
    what = isa == MHK_ISA_BEST || isa == MHK_ISA_AVX512 ? units[unit] : "";
  if (!strstr(test_state.missing, what)) strcat(strcat(test_state.missing, " "), what);
  CHECK_FAILS(ctx, MHK_ERROR_UNSUPPORTED, "is not available here");
  mhk_destroy(ctx);
  return NULL;
}
static inline mhk_context *test_machine(mhk_isa isa, mhk_bf16_unit unit, int threads) {
  return test_machine_rounding(isa, unit, threads, MHK_PRECISION_FULL);
}
#endif