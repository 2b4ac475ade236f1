/* web.c: what the page and its worker call. Everything goes through the interface of mohawk.h; the
   page holds contexts, models, sessions and trainers as plain numbers (addresses in the module's
   memory) and asks web_message() after each call. `make web` compiles it. */
#define MOHAWK_IMPLEMENTATION
#define MOHAWK_NO_STDIO
#include "../../mohawk.h"
#include <emscripten.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT EMSCRIPTEN_KEEPALIVE
#define PROBE 64 /* tokens of the matrices that are drawn */

EXPORT mhk_context *web_create(void) { return mhk_create(NULL); }
/* "" while all is well; reading it makes the context usable again */
EXPORT const char *web_message(mhk_context *ctx) {
  static char text[1024];
  text[0] = 0;
  if (mhk_failed(ctx)) {
    strncpy(text, ctx ? mhk_message(ctx) : "out of memory", sizeof text - 1);
    mhk_clear_error(ctx);
  }
  return text;
}
EXPORT const char *web_isa(mhk_context *ctx) { return mhk_isa_name(ctx); }

/* ---------------------------------------------------------------- models */

/* a .safetensors file with everything in it; data stays where it is as long as the model */
EXPORT mhk_model *web_load(mhk_context *ctx, const void *data, size_t bytes) {
  return mhk_load_memory(ctx, data, bytes);
}
EXPORT int web_layers(mhk_model *m) { return mhk_model_config(m)->n_layer; }
EXPORT int web_heads(mhk_model *m) { return mhk_model_config(m)->n_head; }
/* type of the weights: of the largest tensor's */
EXPORT const char *web_weights(mhk_model *m) {
  const mhk_tensor *most = mhk_model_at(m, 0);
  int i;
  for (i = 1; i < mhk_model_count(m); i++)
    if (mhk_model_at(m, i)->count > most->count) most = mhk_model_at(m, i);
  return mhk_dtype_name(most->dtype);
}
EXPORT double web_parameters(mhk_model *m) { return mhk_config_parameters(mhk_model_config(m)); }
EXPORT int web_vocabulary(mhk_model *m) { return mhk_model_config(m)->vocab_size; }

/* ---------------------------------------------------------------- writing */

/* capacity: tokens that attention layers can remember; a state-space model ignores it. snapshots:
   states to go back to */
static mhk_session_desc session_desc(int capacity, int snapshots) {
  mhk_session_desc d;
  memset(&d, 0, sizeof d);
  d.capacity = capacity;
  d.snapshots = snapshots;
  return d;
}
EXPORT mhk_session *web_session(mhk_model *m, int capacity, int snapshots) {
  const mhk_session_desc d = session_desc(capacity, snapshots);
  return mhk_session_create(m, &d);
}
/* bytes of a session, work space and all, without making it; 0: more than there are addresses */
EXPORT double web_session_size(mhk_context *ctx, mhk_model *m, int capacity) {
  const mhk_session_desc d = session_desc(capacity, 0);
  const size_t size = mhk_session_bytes(m, &d);
  if (size == 0) mhk_clear_error(ctx);
  return (double)size;
}
/* keeps the state as it is now, and goes back to it */
EXPORT void web_keep(mhk_session *s) { mhk_session_snapshot(s, 0); }
EXPORT void web_back(mhk_session *s, int position) { mhk_session_rewind(s, 0, position); }
/* bytes of what the session has to keep of the tokens so far: constant for a state-space model */
EXPORT double web_state(mhk_session *s) { return (double)mhk_session_state_bytes(s, 0); }
/* how many tokens a text has */
EXPORT int web_count(mhk_model *m, const char *text) {
  return (int)mhk_encode(mhk_model_tokenizer(m), text, strlen(text), NULL, 0);
}
EXPORT void web_session_end(mhk_session *s) { mhk_session_destroy(s); }
EXPORT void web_prompt(mhk_session *s, const char *text) { mhk_feed_text(s, text); }
/* the next token, -1 at the end of the text; temperature 0: always the most likely one */
EXPORT int web_next(mhk_session *s, double temperature, double top_p, int seed) {
  mhk_sampling p;
  memset(&p, 0, sizeof p);
  p.temperature = temperature;
  p.greedy = temperature == 0;
  p.top_p = top_p;
  p.seed = (uint64_t)(unsigned)seed;
  return mhk_sample(s, &p);
}
EXPORT const char *web_text(mhk_session *s) { return mhk_text_out(s); }
/* reads n tokens that some text could have: what they say changes no cost */
EXPORT void web_read(mhk_session *s, int n, int vocabulary) {
  int32_t part[256];
  unsigned x = 1;
  int i, k;
  for (; n > 0; n -= k) {
    k = n < 256 ? n : 256;
    for (i = 0; i < k; i++) {
      x = x * 1664525u + 1013904223u;
      part[i] = (int32_t)((x >> 8) % (unsigned)vocabulary);
    }
    mhk_feed(s, part, k);
  }
}

/* ---------------------------------------------------------------- distilling */

/* more tokens of the teacher's own, after the n that are there; returns how many there are now. ids
   has room for all of them. */
EXPORT int web_sample_text(mhk_model *teacher, int32_t *ids, int n, int more, int seed) {
  const int32_t *tokens;
  mhk_corpus *x = mhk_corpus_sample(teacher, more, (uint64_t)(unsigned)seed, NULL, NULL);
  mhk_index got = mhk_corpus_tokens(x, &tokens);
  if (got > 0) memcpy(ids + n, tokens, (size_t)got * sizeof *ids);
  mhk_corpus_destroy(x);
  return n + (int)got;
}
EXPORT mhk_corpus *web_text_from(mhk_context *ctx, mhk_model *teacher, const int32_t *ids, int n) {
  return mhk_corpus_from_tokens(ctx, ids, n, mhk_tokenizer_start(mhk_model_tokenizer(teacher)));
}

/* what the next run does in stage 1, 2 or 3: tokens, 0: skipped; top learning rate, 0: the
   library's */
static mhk_stage_desc stages[3];
EXPORT void web_stage(int stage, int tokens, double lr) {
  if (stage < 1 || stage > 3) return;
  stages[stage - 1].tokens = tokens;
  stages[stage - 1].lr = lr;
}
EXPORT mhk_trainer *web_distil(mhk_context *ctx, mhk_model *teacher, mhk_model *student, mhk_corpus *text, int batch,
                               int length, int seed) {
  mhk_distill_desc d;
  memset(&d, 0, sizeof d);
  d.teacher = teacher;
  d.student = student;
  d.corpus = text;
  memcpy(d.stages, stages, sizeof stages);
  d.batch = batch;
  d.length = length;
  d.seed = (uint64_t)(unsigned)seed;
  return mhk_distill(ctx, &d);
}
EXPORT mhk_model *web_student(mhk_context *ctx, mhk_model *teacher) {
  mhk_model *m = mhk_student_create(ctx, teacher, NULL);
  if (m) mhk_model_set_tokenizer(m, mhk_model_tokenizer(teacher));
  return m;
}
EXPORT int web_step(mhk_trainer *t) { return mhk_train_step(t); }
/* what the last step did: stage, stage done, step, steps, tokens, tokens of the stage, loss, its
   running mean, tokens a second, seconds left of the stage, learning rate */
EXPORT const double *web_progress(mhk_trainer *t) {
  static double out[11];
  const mhk_progress_info *p = mhk_progress(t);
  memset(out, 0, sizeof out);
  if (!p) return out;
  out[0] = p->stage;
  out[1] = p->stage_done;
  out[2] = (double)p->step;
  out[3] = (double)p->steps;
  out[4] = (double)p->tokens;
  out[5] = (double)p->total_tokens;
  out[6] = p->loss;
  out[7] = p->loss_average;
  out[8] = p->tokens_per_second;
  out[9] = p->seconds_left;
  out[10] = p->lr;
  return out;
}

/* cross-entropy, KL to the teacher, share of the same next token */
EXPORT const double *web_evaluate(mhk_model *m, mhk_model *teacher, mhk_corpus *text, int length, int windows) {
  static double out[3];
  mhk_evaluate_desc d;
  mhk_evaluation e;
  memset(&d, 0, sizeof d);
  memset(&e, 0, sizeof e);
  d.teacher = teacher;
  d.corpus = text;
  d.length = length;
  d.windows = windows;
  mhk_evaluate(m, &d, &e);
  out[0] = e.cross_entropy;
  out[1] = e.kl;
  out[2] = e.agreement;
  return out;
}

/* ---------------------------------------------------------------- matrices */

/* the teacher's residual streams over the first tokens of a text: what every student's layers read
   in stages 1 and 2 */
typedef struct probe {
  mhk_tape *streams, *work;
  mhk_model *teacher;
  mhk_tensor *stream[MHK_MAX_LAYERS + 1];
  float *out; /* (L,H,PROBE,PROBE) */
} probe;

EXPORT int web_probe_tokens(void) { return PROBE; }
EXPORT probe *web_probe(mhk_context *ctx, mhk_model *teacher, mhk_corpus *text) {
  const mhk_config *c = mhk_model_config(teacher);
  const int32_t *tokens;
  mhk_forward_desc d;
  probe *p = (probe *)calloc(1, sizeof *p);
  if (p) p->out = (float *)calloc((size_t)c->n_layer * (size_t)c->n_head, PROBE * PROBE * sizeof *p->out);
  if (!p || !p->out || mhk_corpus_tokens(text, &tokens) < PROBE) {
    mhk_fail(ctx, MHK_ERROR_MEMORY, "no memory or no text for the matrices");
    free(p);
    return NULL;
  }
  p->teacher = teacher;
  p->streams = mhk_tape_create(ctx);
  p->work = mhk_tape_create(ctx);
  mhk_tape_record(p->streams, 0);
  mhk_tape_record(p->work, 0);
  memset(&d, 0, sizeof d);
  d.residuals = p->stream;
  mhk_forward(p->streams, teacher, tokens, 1, PROBE, &d);
  return p;
}
/* matrices of all layers and heads of the teacher or of a student of it: (L,H,PROBE,PROBE),
   overwritten by the next call */
EXPORT const float *web_matrices(probe *p, mhk_model *m) {
  const mhk_config *c = mhk_model_config(p->teacher);
  const mhk_index n = (mhk_index)c->n_head * PROBE * PROBE;
  int l;
  for (l = 0; l < c->n_layer; l++) {
    mhk_tensor *matrix;
    mhk_tape_reset(p->work);
    matrix = mhk_forward_matrix(p->work, m, l, mhk_forward_norm(p->work, m, l, p->stream[l]), NULL);
    if (matrix && matrix->count == n) memcpy(p->out + l * n, mhk_data(matrix), (size_t)n * sizeof *p->out);
  }
  return p->out;
}
