/* limits.c: the machine's own limits, measured without the library: multiply-adds that never leave
   the registers, reads of more memory than any cache holds, and the median of what was measured.
   See bench.h. */
#include "bench.h"
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
#define BENCH_X86
#include <immintrin.h>
#elif defined(__aarch64__) && (defined(__GNUC__) || defined(__clang__))
#define BENCH_NEON
#include <arm_neon.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

#define TWELVE(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define TWENTYFOUR(X) TWELVE(X) X(12) X(13) X(14) X(15) X(16) X(17) X(18) X(19) X(20) X(21) X(22) X(23)

/* Each runs rounds rounds of independent multiply-adds and returns something that depends on all of
   them. The numbers stay near 1: no denormals, no infinities. */
typedef float (*fma_loop)(long rounds, float start);

static float fma_plain(long rounds, float start) {
  float a[16], sum = 0;
  long r;
  int i;
  for (i = 0; i < 16; i++) a[i] = start + (float)i;
  for (r = 0; r < rounds; r++)
    for (i = 0; i < 16; i++) a[i] = a[i] * 0.999f + 0.001f;
  for (i = 0; i < 16; i++) sum += a[i];
  return sum;
}

/* The body of a loop in the registers of an instruction set, which says before: VECTOR, SET, ADD,
   STORE, and STEP(i), a round of register i. EACH: how many registers. */
#define MAKE(i) VECTOR a##i = SET(start + (float)i);
#define SUM(i) sum = ADD(sum, a##i);
#define LOOP(EACH) \
  VECTOR sum = SET(0); \
  float out[sizeof(VECTOR) / sizeof(float)]; \
  long r; \
  EACH(MAKE) \
  for (r = 0; r < rounds; r++) { \
    EACH(STEP) \
  } \
  EACH(SUM) \
  STORE(out, sum); \
  return out[0] + out[sizeof out / sizeof *out - 1];

#ifdef BENCH_X86
#define VECTOR __m128
#define SET _mm_set1_ps
#define ADD _mm_add_ps
#define STORE _mm_storeu_ps
#define STEP(i) a##i = _mm_add_ps(_mm_mul_ps(a##i, x), y);
static float fma_sse(long rounds, float start) {
  const VECTOR x = SET(0.999f), y = SET(0.001f);
  LOOP(TWELVE)
}
#undef VECTOR
#undef SET
#undef ADD
#undef STORE
#undef STEP
#define VECTOR __m256
#define SET _mm256_set1_ps
#define ADD _mm256_add_ps
#define STORE _mm256_storeu_ps
#define STEP(i) a##i = _mm256_fmadd_ps(a##i, x, y);
__attribute__((target("avx2,fma"))) static float fma_avx2(long rounds, float start) {
  const VECTOR x = SET(0.999f), y = SET(0.001f);
  LOOP(TWELVE)
}
#undef VECTOR
#undef SET
#undef ADD
#undef STORE
#undef STEP
#define VECTOR __m512
#define SET _mm512_set1_ps
#define ADD _mm512_add_ps
#define STORE _mm512_storeu_ps
#define STEP(i) a##i = _mm512_fmadd_ps(a##i, x, y);
__attribute__((target("avx512f"))) static float fma_avx512(long rounds, float start) {
  const VECTOR x = SET(0.999f), y = SET(0.001f);
  LOOP(TWENTYFOUR)
}
#undef STEP
#if defined(__x86_64__) && defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define BENCH_BF16
#define STEP(i) a##i = _mm512_dpbf16_ps(a##i, x, x);
__attribute__((target("avx512f,avx512bw,avx512bf16"))) static float dot_avx512(long rounds, float start) {
  const __m512bh x = _mm512_cvtne2ps_pbh(SET(0), SET(1e-6f));
  LOOP(TWENTYFOUR)
}
/* four tiles of sums from two of each operand; the library has asked the system for the tiles
   before */
__attribute__((target("avx512f,amx-tile,amx-bf16"))) static float dot_amx(long rounds, float start) {
  struct {
    uint8_t palette, first, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  } shape;
  float out[16 * 16];
  long r;
  int i;
  memset(&shape, 0, sizeof shape);
  shape.palette = 1;
  for (i = 0; i < 8; i++) {
    shape.bytes[i] = 64;
    shape.rows[i] = 16;
  }
  __asm__ volatile("" : : "r"(&shape) : "memory");
  _tile_loadconfig(&shape);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (r = 0; r < rounds; r++) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, out, 64);
  _tile_release();
  return start + out[0];
}
#endif
#endif

#ifdef BENCH_NEON
#define VECTOR float32x4_t
#define SET vdupq_n_f32
#define ADD vaddq_f32
#define STORE vst1q_f32
#define STEP(i) a##i = vfmaq_f32(y, a##i, x);
static float fma_neon(long rounds, float start) {
  const VECTOR x = SET(0.999f), y = SET(0.001f);
  LOOP(TWENTYFOUR)
}
#endif

/* the loop of an instruction set, its multiply-adds a round, and where its best is kept */
static fma_loop choose(const char *isa, double *flop, int *place) {
  *flop = 2.0 * 16;
  *place = 0;
#ifdef BENCH_BF16
  if (strcmp(isa, "bf16-amx") == 0) {
    *flop = 2.0 * 4 * 16 * 16 * 32;
    *place = 4;
    return dot_amx;
  }
  if (strcmp(isa, "bf16-avx512") == 0) {
    *flop = 2.0 * 24 * 32;
    *place = 5;
    return dot_avx512;
  }
#endif
#ifdef BENCH_X86
  if (strcmp(isa, "avx512") == 0) {
    *flop = 2.0 * 24 * 16;
    *place = 1;
    return fma_avx512;
  }
  if (strcmp(isa, "avx2") == 0) {
    *flop = 2.0 * 12 * 8;
    *place = 2;
    return fma_avx2;
  }
  *flop = 2.0 * 12 * 4;
  *place = 3;
  return fma_sse;
#endif
#ifdef BENCH_NEON
  if (strcmp(isa, "neon") == 0) {
    *flop = 2.0 * 24 * 4;
    *place = 1;
    return fma_neon;
  }
#endif
#ifndef BENCH_X86
  (void)isa;
  return fma_plain;
#endif
}

static volatile float kept;

static double fma_seconds(fma_loop loop, long rounds, int threads) {
  double start = cli_clock();
  float sum = 0;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) reduction(+ : sum)
#endif
  sum += loop(rounds, 1.0f + kept * 1e-30f);
#ifndef _OPENMP
  (void)threads;
#endif
  kept = sum;
  return cli_clock() - start;
}

#define MAX_THREADS 256

double bench_limit_fma(const char *isa, int threads) {
  static double best[6][MAX_THREADS + 1];
  double flop, seconds;
  int place, i;
  long rounds = 1000;
  fma_loop loop = choose(isa, &flop, &place);
  (void)fma_plain;
  if (threads < 1 || threads > MAX_THREADS) threads = 1;
  while (fma_seconds(loop, rounds, 1) < 0.004) rounds *= 2; /* alone: threads may have to wait for each other */
  for (i = 0; i < 6; i++) {
    seconds = fma_seconds(loop, rounds, threads);
    if (flop * (double)rounds * threads / seconds > best[place][threads])
      best[place][threads] = flop * (double)rounds * threads / seconds;
  }
  return best[place][threads];
}

/* ---- reading */

#define READ_BYTES ((size_t)512 << 20)

#define READ_PIECE ((size_t)1 << 20) /* as the tasks of a product with few rows are */

typedef struct read_way { int streams, in_pieces; size_t ahead; } read_way;

/* words from p on as streams side by side, with the lines ahead asked for or not */
static uint64_t read_words(const uint64_t *p, size_t words, int streams, size_t ahead) {
  const size_t each = words / (size_t)streams / 8 * 8;
  uint64_t s[8] = {0, 0, 0, 0, 0, 0, 0, 0}, sum = 0;
  size_t i;
  int j, k;
  for (i = 0; i < each; i += 8)
    for (k = 0; k < streams; k++) {
      const uint64_t *q = p + (size_t)k * each + i;
#if defined(__GNUC__) || defined(__clang__)
      if (ahead) __builtin_prefetch(q + ahead, 0, 2);
#endif
      for (j = 0; j < 8; j++) s[j] += q[j];
    }
  for (j = 0; j < 8; j++) sum += s[j];
  return sum;
}

/* bytes a second of one pass over the memory, each thread through a part of its own */
static double read_rate(const uint64_t *memory, int threads, const read_way *way) {
  const size_t share = READ_BYTES / sizeof *memory / (size_t)threads / 8 * 8;
  const size_t piece = way->in_pieces && share > READ_PIECE / sizeof *memory ? READ_PIECE / sizeof *memory : share;
  const double start = cli_clock();
  uint64_t sum = 0;
  int w;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(static, 1) reduction(+ : sum)
#endif
  for (w = 0; w < threads; w++) {
    size_t at;
    for (at = 0; at + piece <= share; at += piece)
      sum += read_words(memory + (size_t)w * share + at, piece, way->streams, way->ahead);
  }
  kept = (float)(sum % 3);
  return (double)(share / piece * piece * sizeof *memory) * threads / (cli_clock() - start);
}

double bench_limit_read(int threads) {
  static const int streams[] = {2, 4, 8};
  /* words: 512 bytes is best on AMD Zen 4, 1024 on Intel Sapphire Rapids */
  static const size_t aheads[] = {0, 64, 128};
  static uint64_t *memory;
  static read_way chosen[MAX_THREADS + 1];
  double best = 0;
  int i;
  if (threads < 1 || threads > MAX_THREADS) threads = 1;
  if (!memory) {
    memory = (uint64_t *)malloc(READ_BYTES);
    if (!memory) return 0;
    memset(memory, 1, READ_BYTES);
  }
  if (chosen[threads].streams == 0)
    for (i = 0; i < 18; i++) {
      read_way way;
      double rate;
      way.streams = streams[i % 3];
      way.ahead = aheads[i / 3 % 3];
      way.in_pieces = i / 9;
      rate = read_rate(memory, threads, &way);
      if (rate > best) {
        best = rate;
        chosen[threads] = way;
      }
    }
  return read_rate(memory, threads, &chosen[threads]);
}

/* ---------------------------------------------------------------- medians */

static int compare(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

double bench_median(const double *x, int n) {
  double *sorted = (double *)malloc((size_t)n * sizeof *sorted), m = NAN;
  if (sorted && n > 0) {
    memcpy(sorted, x, (size_t)n * sizeof *sorted);
    qsort(sorted, (size_t)n, sizeof *sorted, compare);
    m = n % 2 ? sorted[n / 2] : 0.5 * (sorted[n / 2 - 1] + sorted[n / 2]);
  }
  free(sorted);
  return m;
}
