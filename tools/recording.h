/* recording.h: a teacher's outputs for the windows of text that a run sees, in a folder: what
   `mohawk record` writes and `mohawk distill --recording` reads.

   recording.json says what they were recorded for. Each batch of stage 2 or 3 is a safetensors file
   of its own, stage2-000000.safetensors and so on, with a checksum: "tokens" (B,T); "hidden.L" and
   "mixer.L" (or "block.L") (B,T,D); for stage 3 "logits" (B,T,V) or, of the largest k, "top.values"
   and "top.tokens" (B,T,k) and "top.rest" (B,T), the logit that each other token gets. */
#ifndef MOHAWK_RECORDING_H
#define MOHAWK_RECORDING_H

#include "cli.h"

enum { RECORDING_FACTS = 16 };

typedef struct recording {
  mhk_context *ctx;
  const char *folder;
  char fact[RECORDING_FACTS][64]; /* what it is recorded for, or what a run has */
  char id[17];       /* of what it was recorded for */
  int top;           /* logits of each token; as many as the vocabulary: all of them */
  int vocabulary;
  double left_out;   /* sum over `tokens` tokens of the probability outside the largest logits; */
  double before;     /* the same before this batch */
  mhk_index tokens, kept; /* kept: batches that were there already */
  struct recording_part *parts; /* of the batch that is written */
  int n_parts, room;
  mhk_file *file; /* that is read, */
  char path[1024]; /* here */
  void *work;
} recording;

/* What these outputs are for: the text, the windows in it, and the teacher (NULL: as
   recording.json says). */
typedef struct recording_use {
  const mhk_distill_desc *desc; /* with its defaults */
  mhk_model *teacher;
  int top; /* 0: as recording.json says */
} recording_use;

/* Begins a recording, or goes on with one of the same use. CLI_GO, or CLI_FAILED after a
   message. */
int recording_create(recording *r, mhk_context *ctx, const char *folder, const recording_use *use);
/* Says what was left out in recording.json. The same. */
int recording_finish(recording *r, const recording_use *use);
/* Opens one for a run; names what differs. The same. */
int recording_open(recording *r, mhk_context *ctx, const char *folder, const recording_use *use);
void recording_close(recording *r);
/* mhk_distill_desc.outputs, with a recording as user */
int recording_write(void *user, const mhk_output *o);
int recording_read(void *user, const mhk_output *o);
/* for mhk_distill_desc.outputs_id */
uint64_t recording_number(const recording *r);
/* bytes that a use takes on the disk, without headers */
double recording_bytes(const recording_use *use);

#endif
