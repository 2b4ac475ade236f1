/* peer.h: what the small programs that time other libraries share. Each reads lines "CASE THREADS
   ROUNDS [MODE]" from standard input and answers each with one line of JSON: the median time of so
   many rounds after one that does not count, or that it has no such case. They have the case names
   and sizes of `mohawk bench`. */
#ifndef PEER_H
#define PEER_H

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PEER_COLD ((size_t)512 << 20) /* bytes of weights that are read in turn: no cache holds them */
#define PEER_MAX_COPIES 64
#define PEER_MAX_ROUNDS 1000

typedef enum peer_kind {
  PEER_LINEAR,
  PEER_DX,
  PEER_DW,
  PEER_BATCH,
  PEER_GEMV,
  PEER_DECODE, /* one token through the matrices of Phi-Mamba 1.5B; the program makes its own */
  PEER_ATTENTION, /* 32 heads of 64, m tokens, forward; the program makes its own inputs */
  PEER_SSD
} peer_kind;

/* y (m,n) = x (m,k) times the transpose of w (n,k); dx: y times w; dw: the transpose of y times
   x */
typedef struct peer_case {
  peer_kind kind;
  int m, n, k, bf16, copies; /* copies of w, used in turn */
  int threads;
  char name[64], mode[32], type[8]; /* type of the weights, PEER_DECODE: f32, bf16, q8, q4 */
  float *x, *y, *w;
} peer_case;

/* Given by each program. prepare returns 0 for a case that the library does not have. */
static int peer_prepare(peer_case *c);
static void peer_run(peer_case *c, int copy);
static void peer_finish(peer_case *c);

static double peer_clock(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static float *peer_numbers(size_t n) {
  void *memory = NULL;
  size_t i;
  uint32_t state = 1;
  float *x;
  if (posix_memalign(&memory, 64, n * sizeof(float)) != 0) exit(1);
  x = (float *)memory;
  for (i = 0; i < n; i++) {
    state = state * 1664525u + 1013904223u;
    x[i] = (float)(state >> 8) / 16777216.0f - 0.5f;
  }
  return x;
}

/* the numbers in the name of a case; 0 where the name is of none that peers have */
static int peer_parse(peer_case *c) {
  int m = 1, n = 0, k = 0, end = 0;
  if (sscanf(c->name, "sgemm_%d_%d_%d%n", &m, &n, &k, &end) == 3) {
    c->kind = PEER_LINEAR;
  } else if (sscanf(c->name, "sgemm_dx_%d_%d_%d%n", &m, &n, &k, &end) == 3) {
    c->kind = PEER_DX;
  } else if (sscanf(c->name, "sgemm_dw_%d_%d_%d%n", &m, &n, &k, &end) == 3) {
    c->kind = PEER_DW;
  } else if (sscanf(c->name, "batch_64_of_%d_%d_%d%n", &m, &n, &k, &end) == 3) {
    c->kind = PEER_BATCH;
  } else if (sscanf(c->name, "gemv_f32_%d_%d%n", &n, &k, &end) == 2) {
    c->kind = PEER_GEMV;
  } else if (sscanf(c->name, "gemv_bf16_%d_%d%n", &n, &k, &end) == 2) {
    c->kind = PEER_GEMV;
    c->bf16 = 1;
  } else if (sscanf(c->name, "decode_%7[a-z0-9]%n", c->type, &end) == 1) {
    c->kind = PEER_DECODE;
  } else if (sscanf(c->name, "core_attention_forward_%d%n", &m, &end) == 1) {
    c->kind = PEER_ATTENTION;
  } else if (sscanf(c->name, "core_ssd_forward_%d%n", &m, &end) == 1) {
    c->kind = PEER_SSD;
  } else {
    return 0;
  }
  c->m = m;
  c->n = n;
  c->k = k;
  c->copies = 1;
  if (c->kind == PEER_GEMV) {
    const size_t fit = PEER_COLD / ((size_t)n * (size_t)k * (c->bf16 ? 2 : 4));
    c->copies = fit > PEER_MAX_COPIES ? PEER_MAX_COPIES : (int)fit;
  }
  return c->name[end] == 0;
}

static int peer_open(peer_case *c) {
  const size_t batch = c->kind == PEER_BATCH ? 64 : 1, m = (size_t)c->m, n = (size_t)c->n, k = (size_t)c->k;
  size_t i;
  if (c->kind == PEER_ATTENTION || c->kind == PEER_SSD || c->kind == PEER_DECODE) return peer_prepare(c);
  c->x = peer_numbers(batch * m * k);
  c->y = peer_numbers(batch * m * n);
  c->w = peer_numbers(batch * n * k);
  if (c->copies > 1 && !c->bf16) {
    float *w = (float *)realloc(c->w, (size_t)c->copies * n * k * sizeof(float));
    if (!w) exit(1);
    c->w = w;
    for (i = 1; i < (size_t)c->copies; i++) memcpy(w + i * n * k, w, n * k * sizeof(float));
  }
  return peer_prepare(c);
}

static void peer_close(peer_case *c) {
  peer_finish(c);
  free(c->x);
  free(c->y);
  free(c->w);
  c->x = c->y = c->w = NULL;
  c->name[0] = 0;
}

/* one round: seconds of a product */
static double peer_round(peer_case *c) {
  const double start = peer_clock();
  int i;
  for (i = 0; i < c->copies; i++) peer_run(c, i);
  return (peer_clock() - start) / c->copies;
}

static int peer_compare(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

int main(void) {
  static double ms[PEER_MAX_ROUNDS];
  peer_case now;
  char line[256];
  int open = 0;
  memset(&now, 0, sizeof now);
  while (fgets(line, sizeof line, stdin)) {
    peer_case asked;
    int rounds = 0, i;
    memset(&asked, 0, sizeof asked);
    i = sscanf(line, "%63s %d %d %31s", asked.name, &asked.threads, &rounds, asked.mode);
    if (i < 3 || rounds < 1 || rounds > PEER_MAX_ROUNDS || !peer_parse(&asked)) {
      printf("{\"unsupported\": \"%s\"}\n", asked.name);
      fflush(stdout);
      continue;
    }
    if (!open || strcmp(now.name, asked.name) != 0 || strcmp(now.mode, asked.mode) != 0 ||
        now.threads != asked.threads) {
      if (open) peer_close(&now);
      now = asked;
      open = peer_open(&now);
      if (!open) {
        printf("{\"unsupported\": \"%s\"}\n", asked.name);
        fflush(stdout);
        peer_close(&now);
        continue;
      }
      peer_round(&now);
    }
    for (i = 0; i < rounds; i++) ms[i] = 1e3 * peer_round(&now);
    qsort(ms, (size_t)rounds, sizeof ms[0], peer_compare);
    printf("{\"case\": \"%s\", \"threads\": %d, \"mode\": \"%s\", \"ms\": %.6f, \"min_ms\": %.6f}\n", now.name,
           now.threads, now.mode, 0.5 * (ms[rounds / 2] + ms[(rounds - 1) / 2]), ms[0]);
    fflush(stdout);
  }
  return 0;
}

#endif
