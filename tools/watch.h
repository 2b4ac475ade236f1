/* watch.h: what a run keeps of its mixing matrices while it trains, for `mohawk report`: heads.csv
   and probes.safetensors beside its log.csv. */
#ifndef MOHAWK_WATCH_H
#define MOHAWK_WATCH_H

#include "cli.h"

enum { WATCH_TOKENS = 64, WATCH_MOMENTS = 4 }; /* moments: the start and the end of each stage */

/* A line of heads.csv: one head's relative error, || M - M_teacher ||_F / || M_teacher ||_F. */
typedef struct watch_head {
  int stage; /* 0: before the training */
  double tokens; /* of the stage */
  int layer, head;
  double relative;
} watch_head;

/* What probes.safetensors holds: the matrices of all heads over T tokens, row by row up to the
   diagonal, as bytes that picture_value() understands. */
typedef struct watch_probes {
  int layers, heads, T;
  unsigned char *teacher, *student[WATCH_MOMENTS]; /* (layers,heads,T (T + 1) / 2) each, NULL: none */
  char *text; /* of the tokens, not always UTF-8 */
  int32_t *ends; /* of each token in text */
} watch_probes;

/* name of a moment in probes.safetensors: start, stage1, ... */
const char *watch_moment(int moment);
/* CLI_GO; CLI_FAILED after a message that names the file. Where there is no file all stays zero. */
int watch_read_probes(mhk_context *ctx, const char *folder, watch_probes *p);
void watch_free_probes(watch_probes *p);
/* Lines up to these tokens of this stage (stage 4: all), malloc'ed, NULL where there is no file;
   the same for what it returns. */
int watch_read_heads(const char *folder, int stage, double tokens, watch_head **lines, int *n);

/* A run that is watched. It changes nothing in the training. */
typedef struct watch watch;
/* Begins, or goes on with what the folder has where the run does. text: whose first tokens the
   matrices are drawn of. NULL after a message. */
watch *watch_open(mhk_context *ctx, const char *folder, mhk_model *teacher, mhk_model *student, mhk_corpus *text,
                  const mhk_progress_info *at);
/* After each update; matrices are computed at fifty moments of a stage. CLI_GO, or CLI_FAILED after
   a message. */
int watch_update(watch *w, const mhk_progress_info *at, mhk_model *student);
void watch_close(watch *w);

#endif
