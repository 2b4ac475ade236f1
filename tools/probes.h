/* probes.h: what a model can do with its context, tried by generation: a student may be near its
   teacher on text and yet not find again what stood there. */
#ifndef MOHAWK_PROBES_H
#define MOHAWK_PROBES_H

#include "cli.h"

/* A task that only the context can solve. Passages come from the text, words from the vocabulary,
   both drawn by seed. About words the model chooses, among all of a passage, all values, or eight,
   so that small models show something above chance too. */
typedef enum probe_task {
  PROBE_FIRST,   /* the first four of `size` tokens of the text: each next one, given those before it */
  PROBE_AGAIN,   /* the same after all of them: what reading them before is worth */
  PROBE_PASSAGE, /* the same, but the model writes on alone */
  PROBE_COPY,    /* `size` words, then the first two: each next one, given those before it */
  PROBE_PAIRS,   /* `size` pairs of key and value, then one of the keys: its value */
  PROBE_NEEDLE   /* one pair in a text of the given length, `size` percent of the way to its end, then the key */
} probe_task;
typedef struct probe {
  probe_task task;
  int size;
  const char *name; /* as tables show it, and */
  const char *key;  /* as JSON does */
} probe;
/* Probe i, or NULL behind the last. */
const probe *probe_at(int i);
enum { PROBE_MOST = 16, PROBE_TRIALS = 64 /* of each probe */ };

typedef struct probe_score {
  double accuracy, error; /* mean share of right tokens over trials, its standard error */
} probe_score;
double probe_chance(const probe *p); /* the accuracy of guessing */

/* Where the words come from: a tokenizer, which every model that is compared must share, a text for
   the needles to stand in, and how long it is. */
typedef struct probe_source {
  mhk_tokenizer *tokenizer;
  mhk_corpus *text;
  mhk_index length;
  uint64_t seed;
} probe_source;
/* Tries every probe with greedy decoding in a session. The same source asks every model the same.
   Returns CLI_GO, or CLI_FAILED after a message (none after Ctrl-C). */
int probe_run(mhk_context *ctx, mhk_model *m, const probe_source *source, const char *title, probe_score *scores);

#endif
