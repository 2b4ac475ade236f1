/* bench.h: what `mohawk bench` measures (cases.c) and what the machine could do at most
   (limits.c). */
#ifndef MOHAWK_BENCH_H
#define MOHAWK_BENCH_H

#include "../cli.h"

typedef enum bench_kind {
  BENCH_LINEAR,      /* m rows, k inputs, n outputs; back: 1 the gradient of the input, 2 of the weights */
  BENCH_MATMUL,      /* m products of n x n x n */
  BENCH_GEMV,        /* one row through weights that are not in cache; wide: float32, else bfloat16 */
  BENCH_DECODE,      /* one token through the matrices of Phi-Mamba 1.5B, not in cache, in the given type */
  BENCH_CORE,        /* 32 heads of 64, m tokens; wide: attention, else state space; back: with gradients */
  BENCH_MIXER,       /* one mixer layer at Phi-1.5's size, the same fields */
  BENCH_PREFILL,     /* m tokens of a prompt through a session of Phi-Mamba 1.5B */
  /* from nothing to the first token of a given model: context, file, session, a prompt of one
     word */
  BENCH_START,
  BENCH_STEP,        /* one training step of six layers */
  BENCH_TOKENS,      /* m tokens one by one through a session of six layers of that size */
  BENCH_STAGE1,      /* one stage-1 loss and its gradients, m tokens */
  BENCH_DISTILL,     /* the updates of one small distillation, from one update of each stage */
  BENCH_UPDATE,      /* one update of stage m: 8 x 256 tokens, a teacher of 8 layers of 256 */
  BENCH_MODEL        /* of a given teacher and its student: m 0 to 4, see cases.c */
} bench_kind;

typedef struct bench_case {
  char name[48];
  bench_kind kind;
  mhk_index m, n, k;
  int back, wide;
  int narrow;      /* linear layers with bfloat16 operands */
  int gates, window; /* of state-space layers, as in mhk_config */
  mhk_dtype type;  /* of the weights, BENCH_DECODE */
  double flop;     /* products only, causal ones counted half; 0: not counted */
  double bytes;    /* weights read, where reading is what takes the time */
  char other[48];  /* a case of ours to compare with in the same rounds; "": none */
  double scale;    /* that case's time is multiplied by this */
  const char *why; /* what the other one is, as its peer is named */
  const char *model; /* the given one that the last cases are of */
} bench_case;

#define BENCH_MAX_CASES 160
/* All cases: those that need a model with the first of n of them, decoding with the others too.
   Returns how many. */
int bench_list(bench_case *list, const char *const *models, int n);
const bench_case *bench_find(const bench_case *list, int n, const char *name);

/* A case that is ready to run: its own context, inputs made. NULL after a message. */
typedef struct bench_work bench_work;
bench_work *bench_open(const bench_case *c, int threads, mhk_isa isa);
double bench_run(bench_work *w); /* once: seconds of the part that counts, negative after a message */
int bench_threads(bench_work *w, int threads); /* from now on; returns how many there are */
const char *bench_isa(const bench_work *w);
/* what its products could do at most: bench_isa, or "bf16-..." for narrow cases */
const char *bench_unit(const bench_work *w);
double bench_memory(const bench_work *w); /* bytes at most, beyond weights and inputs */
void bench_close(bench_work *w);

/* The most this machine does. FLOP/s of independent multiply-adds with the registers of an
   instruction set or of a unit for bfloat16: the best seen by this process so far, each call
   measures again for some hundredths of a second. bytes/s of plain reads: one pass over 512 MiB by
   what was the fastest of 18 loops at this thread count. It is made in every round, as the
   bandwidth of a shared machine changes from second to second; a row's limit is the median. 0: no
   memory. */
double bench_limit_fma(const char *unit, int threads);
double bench_limit_read(int threads);

double bench_median(const double *x, int n); /* NAN where there is nothing or no memory */
/* Milliseconds for one more token and bytes of a sequence's state at contexts 64, 256, ... up to
   most, of a teacher and a student of its shape: a table or JSON lines, and a picture of both at
   path. Ends with an exit code. */
int bench_context(const char *path, const char *model, int threads, mhk_isa isa, double most, int json);
/* The title of a case by which many cores are judged; NULL: of any other. */
const char *bench_scaling_title(const char *name);
/* What more threads bring, drawn at path from rows of `mohawk bench` or peers.py, and as a table.
   Ends with an exit code. */
int bench_curve(const char *path, const char *rows);

#endif
