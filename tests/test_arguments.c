/* Every public function with arguments that make no sense. arguments.awk reads the declarations of
   mohawk.h and writes build/arguments.h, which calls each function with values from here: ARG(type)
   has those of a parameter, BASE(type) a description that is right, whose fields are then changed
   one at a time. A function that is new is called at once; a parameter of a new type fails the
   first test, which says what to add. Expected of any call: no crash, no undefined behavior (where
   sanitizers look), no lost memory, an end; and an error code comes with a message. What cannot be
   checked is not asked for: buffers are large enough for what their sizes say. `--calls n` makes n
   calls of a function in place of 250. */
#include <float.h>
#include <limits.h>
#if defined(__unix__) || defined(__APPLE__)
#include <signal.h>
#include <unistd.h>
#define HAS_ALARM
#endif
#include "models.h"

enum { MOST_PARAMETERS = 12, ROOM = 1 << 16 };
typedef struct function function;
typedef struct call {
  const function *f;
  int pick[MOST_PARAMETERS]; /* which value of each parameter; 0 makes sense, 1 is NULL where it can be */
} call;
struct function {
  const char *name;
  void (*call)(const call *c);
  int n, tells; /* returns a mhk_result */
  struct { const char *name, *type; int (*count)(void); } parameter[MOST_PARAMETERS];
};

static int returned, most_calls = 250;
static const char *changed; /* which field of a description */

/* The objects there are. Memory ends early, so that large sizes are an error soon. */
static struct {
  test_memory memory;
  mhk_context *ctx;
  mhk_tape *tape;
  mhk_model *model, *teacher, *mamba, *quantized;
  mhk_tokenizer *tokenizer;
  mhk_session *session, *draft;
  mhk_speculation *speculation;
  mhk_corpus *text;
  mhk_trainer *trainer;
  mhk_file *file;
  mhk_tensor *tensor[16];
} w;
static union {
  mhk_real real[ROOM];
  double d[ROOM];
  int32_t i[ROOM];
  char text[ROOM];
  mhk_tensor *tensor[16];
} output[2];
static mhk_real reals[4096];
static int32_t zeros[4096], minus_ones[4096], large[4096], documents[4096];

static char tokenizer_json[8000];
static void make_tokenizer(void) { /* the 256 bytes, a word and the end of the text */
  int b;
  size_t n = (size_t)sprintf(
      tokenizer_json,
      "{\"pre_tokenizer\": {\"type\": \"ByteLevel\"}, \"added_tokens\": [{\"id\": 257, \"content\": \"<|endoftext|>\", "
      "\"special\": true}], \"model\": {\"type\": \"BPE\", \"vocab\": {");
  for (b = 0; b < 256; b++) {
    const int c = b <= 32 ? b + 256 : b >= 127 && b <= 160 ? b - 127 + 289 : b == 173 ? 323 : b;
    n += (size_t)sprintf(tokenizer_json + n, "\"\\u%04x\": %d, ", (unsigned)c, b);
  }
  sprintf(tokenizer_json + n, "\"ab\": 256}, \"merges\": [\"a b\"]}}");
}

/* Sizes of the caller's arrays, which nobody can check: not larger than what is there. A function
   that reads its array so far is to be added here. */
static int is_size(const char *owner, const char *name) {
  static const char *const sizes[] = {"mhk_adamw n",
                                      "mhk_parallel tasks",
                                      "mhk_encode capacity",
                                      "mhk_encode_prompt capacity",
                                      "mhk_decode n",
                                      "mhk_feed n",
                                      "mhk_score n",
                                      "mhk_corpus_from_tokens n",
                                      "mhk_probabilities V",
                                      "mhk_probabilities n_recent",
                                      "mhk_draw V",
                                      "mhk_file_write n",
                                      "mhk_file_write n_metadata",
                                      "field n_bias",
                                      "field inputs",
                                      "field user_bytes",
                                      "field n_stop_tokens",
                                      "field n_stop_strings",
                                      "field n_files",
                                      "field n_keep_attention",
                                      "field memory_bytes"};
  size_t i;
  char both[100];
  snprintf(both, sizeof both, "%s %s", owner, name);
  for (i = 0; i < sizeof sizes / sizeof *sizes; i++)
    if (!strcmp(both, sizes[i])) return 1;
  return 0;
}

enum { INTEGERS = 10, DOUBLES = 10 };
static int64_t integer(int n, int size) {
  static const int64_t values[INTEGERS] = {1, 0, -1, 3, 2, 7, INT_MAX, INT_MIN, PTRDIFF_MAX, PTRDIFF_MIN};
  return size && n >= 6 ? 2 : values[n];
}
static double number(int n) {
  static const double values[DOUBLES] = {0.5, 0, -1, 1, 7, 1e300, -1e300, 0, 0, 0};
  return n == 7 ? (double)NAN : n == 8 ? (double)INFINITY : n == 9 ? -(double)INFINITY : values[n];
}
static int chosen(const call *c, int i) { return c->pick[i]; }
static int is(const call *c, int i, const char *function_name, const char *name) {
  return (!function_name || strstr(c->f->name, function_name)) && !strcmp(c->f->parameter[i].name, name);
}

/* changes field number n of a description; counts them when n is -1 */
#define CHANGE_INTEGER(type, name, field) \
  if (n >= at && n < at + INTEGERS) { \
    field = (type)integer(n - at, is_size("field", strrchr("." name, '.') + 1)); \
    *what = name; \
  } \
  at += INTEGERS;
#define CHANGE_DOUBLE(name, field) \
  if (n >= at && n < at + DOUBLES) { \
    field = number(n - at); \
    *what = name; \
  } \
  at += DOUBLES;
#define CHANGE_POINTER(name, field) \
  if (n == at) { \
    field = NULL; \
    *what = name; \
  } \
  at++;

#define ARG(name, type, values) \
  static int count_##name(void) { return values; } \
  static type arg_##name(const call *c, int i)
#define BASE(type) static void base_##type(type *d)

ARG(int, int, INTEGERS) { return (int)integer(chosen(c, i), is_size(c->f->name, c->f->parameter[i].name)); }
ARG(mhk_index, mhk_index, INTEGERS) {
  return (mhk_index)integer(chosen(c, i), is_size(c->f->name, c->f->parameter[i].name));
}
ARG(size_t, size_t, INTEGERS) { /* of an array beside it */
  const size_t n = (size_t)integer(chosen(c, i), 1);
  return n > ROOM ? 5 : n;
}
ARG(int32_t, int32_t, INTEGERS) { return (int32_t)integer(chosen(c, i), 0); }
ARG(int64_t, int64_t, INTEGERS) { return integer(chosen(c, i), 0); }
ARG(uint64_t, uint64_t, INTEGERS) { return (uint64_t)integer(chosen(c, i), 0); }
ARG(double, double, DOUBLES) { return number(chosen(c, i)); }
ARG(mhk_dtype, mhk_dtype, 18) { return (mhk_dtype)(chosen(c, i) == 17 ? INT_MAX : chosen(c, i) - 1); }
ARG(mhk_init, mhk_init, 6) { return (mhk_init)(chosen(c, i) == 5 ? INT_MIN : chosen(c, i)); }
ARG(mhk_result, mhk_result, 5) { return (mhk_result)(chosen(c, i) == 4 ? 99 : -chosen(c, i)); }

ARG(mhk_context_p, mhk_context *, 2) {
  if (chosen(c, i)) return NULL;
  return !strcmp(c->f->name, "mhk_destroy") ? mhk_create(NULL) : w.ctx;
}
ARG(mhk_tape_p, mhk_tape *, 3) {
  if (chosen(c, i) == 1) return NULL;
  if (!strcmp(c->f->name, "mhk_tape_destroy")) return mhk_tape_create(w.ctx);
  if (chosen(c, i) == 2) mhk_tape_record(w.tape, 0);
  return w.tape;
}
ARG(mhk_model_p, mhk_model *, 5) {
  mhk_model *const models[5] = {is(c, i, NULL, "teacher") ? w.teacher : w.model, NULL, w.teacher, w.mamba, w.quantized};
  if (!strcmp(c->f->name, "mhk_model_destroy")) return chosen(c, i) ? NULL : model_new(w.ctx, PHI, 1);
  return models[chosen(c, i)];
}
ARG(mhk_tokenizer_p, mhk_tokenizer *, 2) {
  if (chosen(c, i)) return NULL;
  return !strcmp(c->f->name, "mhk_tokenizer_destroy")
             ? mhk_tokenizer_load_memory(w.ctx, tokenizer_json, strlen(tokenizer_json))
             : w.tokenizer;
}
ARG(mhk_session_p, mhk_session *, 3) {
  if (chosen(c, i) == 1) return NULL;
  if (!strcmp(c->f->name, "mhk_session_destroy")) return mhk_session_create(w.model, NULL);
  return chosen(c, i) ? w.draft : w.session;
}
ARG(mhk_speculation_p, mhk_speculation *, 2) { return chosen(c, i) ? NULL : w.speculation; }
ARG(mhk_corpus_p, mhk_corpus *, 2) {
  if (chosen(c, i)) return NULL;
  return !strcmp(c->f->name, "mhk_corpus_destroy") ? mhk_corpus_from_tokens(w.ctx, zeros, 9, -1) : w.text;
}
ARG(mhk_trainer_p, mhk_trainer *, 2) { return chosen(c, i) ? NULL : w.trainer; }
ARG(mhk_file_p, mhk_file *, 2) { return chosen(c, i) ? NULL : w.file; }

static const struct { int rank; mhk_index shape[4]; int gradient;
} tensors[] = {{4, {1, 3, 2, 4}, 1}, {0, {0}, 0},       {0, {0}, 1},
               {1, {4}, 0},          {2, {3, 4}, 1},    {3, {1, 3, 2}, 1},
               {4, {1, 3, 1, 4}, 1}, {2, {0, 3}, 0},    {2, {0, PTRDIFF_MAX / 4096}, 0},
               {3, {4, 1, 2}, 1},    {3, {1, 3, 4}, 0}, {2, {4, 4}, 1},
               {4, {1, 0, 2, 4}, 1}, {1, {2}, 0},       {2, {31, 24}, 0}};
enum { TENSORS = sizeof tensors / sizeof *tensors };
ARG(mhk_tensor_p, mhk_tensor *, TENSORS) {
  /* what makes sense where it is not four axes: function, parameter, tensor */
  static const struct { const char *f, *parameter; int tensor;
  } likely[] = {{"mhk_linear", "x", 4},
                {"mhk_linear", "weight", 11},
                {"mhk_linear", "bias", 3},
                {"mhk_linear", "residual", 4},
                {"norm", "weight", 3},
                {"norm", "bias", 3},
                {"mhk_conv1d", "x", 10},
                {"mhk_conv1d", "weight", 9},
                {"mhk_conv1d", "bias", 3},
                {"mhk_embedding", "weight", 4},
                {"mhk_ssd", "log_a", 5},
                {"mhk_ssd", "D", 13},
                {"mhk_backward", "loss", 2},
                {"mhk_gate", "z_bias", 3}};
  size_t k;
  int n = chosen(c, i);
  for (k = 0; n == 0 && k < sizeof likely / sizeof *likely; k++)
    if (strstr(c->f->name, likely[k].f) && !strcmp(c->f->parameter[i].name, likely[k].parameter)) n = likely[k].tensor;
  return n == 1 ? NULL : n == TENSORS - 1 ? mhk_model_at(w.quantized, 0) : w.tensor[n];
}
ARG(mhk_tensor_pconst_p, mhk_tensor *const *, 4) {
  static mhk_tensor *list[16];
  int k;
  if (chosen(c, i) == 1) return NULL;
  for (k = 0; k < 16; k++)
    list[k] = chosen(c, i) == 2   ? (k == 1 ? NULL : w.tensor[4])
              : chosen(c, i) == 3 ? mhk_model_at(w.quantized, k)
                                  : w.tensor[2];
  return list;
}
ARG(mhk_tape_mark, mhk_tape_mark, 3) {
  mhk_tape_mark m = mhk_tape_here(w.tape);
  if (chosen(c, i) == 1) memset(&m, 0, sizeof m);
  if (chosen(c, i) == 2) m.chunk = 77, m.used = SIZE_MAX, m.records = PTRDIFF_MIN;
  return m;
}
ARG(const_mhk_index_p, const mhk_index *, 7) {
  static const mhk_index values[7][8] = {{4, 1, 1, 1, 1, 1, 1, 1},
                                         {0},
                                         {0},
                                         {3, 4, 1, 1, 1},
                                         {-1, 2, -3, 1, 1},
                                         {PTRDIFF_MAX, PTRDIFF_MAX, 3, 1, 1},
                                         {0, PTRDIFF_MAX, PTRDIFF_MAX, 1, 2}};
  const int n = chosen(c, i);
  if (n > 4 && is(c, i, "mhk_feed", "lengths")) return values[4]; /* as many tokens as there are */
  return n == 1 ? NULL : values[n];
}
ARG(const_int32_t_p, const int32_t *, 5) {
  const int32_t *const values[5] = {zeros, NULL, minus_ones, large, documents};
  return values[chosen(c, i)];
}
ARG(const_mhk_real_p, const mhk_real *, 2) { return chosen(c, i) ? NULL : reals; }
ARG(const_double_p, const double *, 2) { return chosen(c, i) ? NULL : (output[0].d[0] = 0.5, output[0].d); }
ARG(const_char_pconst_p, const char *const *, 3) {
  static const char *list[16];
  int k;
  for (k = 0; k < 16; k++) list[k] = chosen(c, i) == 2 ? NULL : "a";
  return chosen(c, i) == 1 ? NULL : list;
}
static const char *valid_text(const call *c, int i) {
  if (is(c, i, "mhk_load", "path") || is(c, i, "mhk_file_open", "path") || is(c, i, "mhk_tokenizer_load", "path"))
    return "examples/tiny";
  if (is(c, i, NULL, "path")) return test_path("arguments.safetensors");
  if (is(c, i, "mhk_tokenizer_load_memory", "json")) return tokenizer_json;
  if (is(c, i, "mhk_config_preset", "name")) return "phi-1.5";
  if (is(c, i, "mhk_file_find", "name") || is(c, i, "model_find", "name")) return "x";
  return "ab ab <|endoftext|>b and what is no token, in a text that is as long as sizes here are";
}
ARG(const_char_p, const char *, 4) { /* `%` would be a format that wants more arguments */
  static char room[ROOM]; /* a caller may say that there are more bytes */
  const char *const values[4] = {valid_text(c, i), NULL, "", "\xff\xfe{\"[1e999, \"\\ud800\", nul 0x1 -- \x80"};
  if (!values[chosen(c, i)] || chosen(c, i) == 0) return values[chosen(c, i)];
  if (chosen(c, i) == 3 && is(c, i, NULL, "path")) return test_path("no\xff\xfesuch/name\x80");
  return strcpy(room, values[chosen(c, i)]);
}
ARG(const_void_p, const void *, 2) { return chosen(c, i) ? NULL : (const void *)zeros; }
ARG(void_p, void *, 2) { return chosen(c, i) ? NULL : (void *)output[1].text; }
ARG(char_p, char *, 2) { return chosen(c, i) ? NULL : output[0].text; }
ARG(mhk_real_p, mhk_real *, 2) { return chosen(c, i) ? NULL : output[0].real; }
ARG(double_p, double *, 2) { return chosen(c, i) ? NULL : output[is(c, i, NULL, "relative")].d; }
ARG(int32_t_p, int32_t *, 2) { return chosen(c, i) ? NULL : output[1].i; }
ARG(size_t_p, size_t *, 2) {
  static size_t n;
  return chosen(c, i) ? NULL : &n;
}
ARG(const_int32_t_p_p, const int32_t **, 2) {
  static const int32_t *p;
  return chosen(c, i) ? NULL : &p;
}
ARG(mhk_config_p, mhk_config *, 2) {
  static mhk_config config;
  return chosen(c, i) ? NULL : &config;
}
ARG(mhk_gradient_report_p, mhk_gradient_report *, 2) {
  static mhk_gradient_report report;
  return chosen(c, i) ? NULL : &report;
}
ARG(mhk_evaluation_p, mhk_evaluation *, 2) {
  static mhk_evaluation result;
  return chosen(c, i) ? NULL : &result;
}
ARG(mhk_stream_p, mhk_stream *, 4) {
  static mhk_stream s;
  static const int held[4] = {2, 0, -5, INT_MAX};
  s.n_held = held[chosen(c, i)];
  return chosen(c, i) == 1 ? NULL : &s;
}

static int stop_at_once(void *user, mhk_index done, mhk_index total) {
  (void)user, (void)total;
  return done > 30;
}
static void take_logits(void *user, mhk_index sequence, mhk_index index, const mhk_real *logits) {
  output[0].real[0] = logits[0];
  (void)user, (void)sequence, (void)index;
}
static mhk_tensor *block(mhk_tape *t, void *user, mhk_tensor *x) {
  (void)user;
  return mhk_square(t, x);
}
static mhk_tensor *to_scalar(mhk_tape *t, void *user) {
  (void)user;
  return mhk_sum(t, mhk_square(t, w.tensor[4]));
}
static void do_nothing(const mhk_op *op) { (void)op; }
static void no_task(void *arg, mhk_index task, int worker) {
  (void)arg;
  (void)task;
  (void)worker;
}
static void release_nothing(void *user) { (void)user; }
typedef mhk_tensor *(*scalar_fn)(mhk_tape *t, void *user);
ARG(mhk_progress_fn, mhk_progress_fn, 2) { return chosen(c, i) ? NULL : stop_at_once; }
ARG(mhk_release_fn, mhk_release_fn, 2) { return chosen(c, i) ? NULL : release_nothing; }
ARG(mhk_block_fn, mhk_block_fn, 2) { return chosen(c, i) ? NULL : block; }
ARG(mhk_task_fn, mhk_task_fn, 2) { return chosen(c, i) ? NULL : no_task; }
ARG(const_mhk_op_p, const mhk_op *, 3) {
  static mhk_op op;
  op.tape = chosen(c, i) == 1 ? NULL : w.tape;
  return chosen(c, i) == 2 ? NULL : &op;
}
static int no_tensor(const mhk_config *c, int n, mhk_mixer_tensor *x) { return !c + !x + n < 0; }
static mhk_tensor *same_tensor(mhk_tape *t, const mhk_config *c, mhk_tensor *const *x, mhk_tensor *u,
                               const int32_t *doc) {
  return t && c && x && !doc ? u : NULL;
}
static mhk_index no_state(const mhk_config *c) { return !c; }
static void no_step(const mhk_config *c, const mhk_real *const *x, const mhk_real *u, mhk_real *state, mhk_real *room,
                    mhk_real *y) {
  (void)c, (void)x, (void)u, (void)state, (void)room, (void)y;
}
ARG(const_mhk_mixer_p, const mhk_mixer *, 4) {
  static mhk_mixer m;
  memset(&m, 0, sizeof m);
  if (chosen(c, i) < 2) m.name = chosen(c, i) ? "" : "a_mixer", m.tensor = no_tensor;
  m.forward = same_tensor, m.state = no_state, m.step = no_step;
  return chosen(c, i) == 3 ? NULL : &m;
}
ARG(function_mhk_tensor_p, scalar_fn, 2) { return chosen(c, i) ? NULL : to_scalar; }

BASE(mhk_context_desc) { memset(d, 0, sizeof *d); }
BASE(mhk_config) {
  *d = model_config(HYBRID);
  d->vocab_size = 258;
}
BASE(mhk_load_desc) { memset(d, 0, sizeof *d); }
BASE(mhk_tokenizer_desc) {
  memset(d, 0, sizeof *d);
  d->json = tokenizer_json;
  d->length = strlen(tokenizer_json);
}
BASE(mhk_quantize_desc) { memset(d, 0, sizeof *d); }
BASE(mhk_forward_desc) {
  memset(d, 0, sizeof *d);
  d->doc = documents;
  d->residuals = output[0].tensor;
}
BASE(mhk_student_desc) {
  static const int layer[8] = {1, 0, 0, 0, 0, 0, 0, 0};
  memset(d, 0, sizeof *d);
  d->keep_attention = layer;
  d->n_keep_attention = 1;
}
BASE(mhk_adamw_desc) {
  memset(d, 0, sizeof *d);
  d->lr = 1e-3;
}
BASE(mhk_ssd_desc) {
  memset(d, 0, sizeof *d);
  d->D = w.tensor[13];
  d->final_state = output[0].tensor;
}
BASE(mhk_session_desc) {
  memset(d, 0, sizeof *d);
  d->capacity = 32;
  d->snapshots = 2;
  d->memory = output[0].real;
  d->memory_bytes = 7;
}
BASE(mhk_sampling) {
  static const mhk_token_bias bias[8] = {{1, 0.5}, {INT32_MAX, 1}};
  static const char *const stops[8] = {"aaaa", NULL, "", "b", "", "", "", ""};
  memset(d, 0, sizeof *d);
  d->bias = bias;
  d->n_bias = 1;
  d->stop_tokens = zeros;
  d->n_stop_tokens = 1;
  d->stop_strings = stops;
  d->n_stop_strings = 1;
}
BASE(mhk_feed_desc) {
  static const int32_t *const tokens[16] = {zeros, documents};
  static const mhk_index lengths[16] = {3, 2};
  static const unsigned char some[64] = {1, 0, 1}, *const wanted[16] = {some};
  memset(d, 0, sizeof *d);
  d->tokens = tokens;
  d->lengths = lengths;
  d->take = take_logits;
  d->wanted = wanted;
}
BASE(mhk_speculation_desc) {
  d->target = w.session;
  d->draft = w.draft;
  d->tokens = 2;
}
BASE(mhk_custom_desc) {
  static mhk_tensor *in[16]; /* more than the most that an op may have */
  static const mhk_index shape[8] = {2, 3, 1, 1, 1, 1, 1, 1};
  for (int i = 0; i < 16; i++) in[i] = w.tensor[4];
  memset(d, 0, sizeof *d);
  d->inputs = 2;
  d->in = in;
  d->rank = 2;
  d->shape = shape;
  d->forward = d->backward = do_nothing;
  d->user = zeros;
  d->user_bytes = 8;
}
BASE(mhk_attention_desc) {
  static const int32_t windows[8] = {2, MHK_WINDOW_ALL, 0, 1, 1, 1, 1, 1};
  memset(d, 0, sizeof *d);
  d->doc = documents;
  d->windows = windows;
  d->scale = w.tensor[13];
  d->rest = w.tensor[5];
}
BASE(mhk_conv1d_desc) {
  static const mhk_index widths[8] = {2, 1, 1, 1, 1, 1, 1, 1};
  memset(d, 0, sizeof *d);
  d->parts = 2;
  d->widths = widths;
  d->out = output[0].tensor;
  d->doc = documents;
}
BASE(mhk_orientation_desc) {
  memset(d, 0, sizeof *d);
  d->log_a = w.tensor[5];
  d->Bm = d->Cm = w.tensor[0];
  d->D = w.tensor[13];
  d->q = d->k = w.tensor[0];
  d->relative = output[0].d;
}
BASE(mhk_evaluate_desc) {
  memset(d, 0, sizeof *d);
  d->teacher = w.teacher;
  d->corpus = w.text;
  d->length = 8;
  d->windows = 3;
  d->progress = stop_at_once;
}
BASE(mhk_stage_loss_desc) {
  static const mhk_stage_desc settings = {0};
  memset(d, 0, sizeof *d);
  d->student = w.model;
  d->teacher = w.teacher;
  d->stage = 2;
  d->tokens = zeros;
  d->B = d->T = 3;
  d->settings = &settings;
  d->layer_loss = output[0].d;
  d->relative = output[1].d;
}
BASE(mhk_corpus_desc) {
  static const char *const files[8] = {"tests/test.h", "nowhere", NULL, "", NULL, NULL, NULL, NULL};
  static const int repeat[8] = {1, INT_MAX, -1, 0, 0, 0, 0, 0};
  static const size_t most[8] = {100, SIZE_MAX, 0, 1, 1, 1, 1, 1};
  memset(d, 0, sizeof *d);
  d->files = files;
  d->n_files = 1;
  d->repeat = repeat;
  d->max_document_of = most;
}
BASE(mhk_distill_desc) {
  memset(d, 0, sizeof *d);
  d->teacher = w.teacher;
  d->corpus = w.text;
  d->batch = 2;
  d->length = 8;
  d->stages[0].tokens = d->stages[1].tokens = d->stages[2].tokens = 64;
}
BASE(mhk_stored) {
  memset(d, 0, sizeof *d);
  d->name = "x";
  d->dtype = MHK_F32;
  d->rank = 1;
  d->shape[0] = 3;
  d->shape[1] = d->shape[2] = d->shape[3] = d->shape[4] = 1;
  d->count = 3;
  d->data = zeros;
  d->bytes = 12;
}

#if defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wformat-security" /* mhk_fail() with a text that has no conversions */
#endif
#include "arguments.h"
enum { FUNCTIONS = sizeof functions / sizeof *functions };

static void *limited_alloc(void *user, size_t bytes) {
  test_memory *m = (test_memory *)user;
  return bytes > ((size_t)1 << 24) || m->bytes + bytes > ((size_t)1 << 26) ? NULL : test_alloc(user, bytes);
}

static mhk_model *model_of(int kind) {
  mhk_config config = model_config(kind);
  config.vocab_size = 258;
  return mhk_model_create(w.ctx, &config, 1);
}

/* one of everything that a function may be given */
static void world_begin(void) {
  mhk_context_desc d;
  mhk_distill_desc run;
  mhk_session_desc session;
  mhk_speculation_desc both;
  int i;
  memset(&w, 0, sizeof w);
  memset(&d, 0, sizeof d);
  d.allocator.alloc = limited_alloc;
  d.allocator.release = test_release;
  d.allocator.user = &w.memory;
  w.ctx = mhk_create(&d);
  w.tape = mhk_tape_create(w.ctx);
  w.model = model_of(HYBRID);
  w.teacher = model_of(PHI);
  w.mamba = model_of(MAMBA2_BIASES);
  w.tokenizer = mhk_tokenizer_load_memory(w.ctx, tokenizer_json, strlen(tokenizer_json));
  mhk_model_set_tokenizer(w.model, w.tokenizer);
  w.quantized = mhk_quantize(w.model, NULL);
  memset(&session, 0, sizeof session);
  session.capacity = 40;
  session.snapshots = 2;
  w.session = mhk_session_create(w.model, &session);
  w.draft = mhk_session_create(w.mamba, &session);
  both.target = mhk_session_create(w.model, &session);
  both.draft = mhk_session_create(w.mamba, &session);
  both.tokens = 2;
  mhk_feed(w.session, zeros, 3);
  mhk_feed(both.target, zeros, 3);
  mhk_feed(both.draft, zeros, 3);
  w.speculation = mhk_speculation_create(&both);
  w.text = mhk_corpus_from_tokens(w.ctx, documents, 200, 3);
  base_mhk_distill_desc(&run);
  run.out = test_path("run");
  run.fresh = 1;
  w.trainer = mhk_distill(w.ctx, &run);
  w.file = mhk_file_open(w.ctx, "examples/tiny");
  CHECK(w.trainer && w.quantized && w.speculation && w.file, "the objects: %s", mhk_message(w.ctx));
  for (i = 0; i < TENSORS - 1; i++) w.tensor[i] = NULL;
}

/* new tensors on the tape for each call */
static void refill(void) {
  int i;
  mhk_clear_error(w.ctx);
  mhk_tape_reset(w.tape);
  mhk_tape_record(w.tape, 1);
  for (i = 0; i < TENSORS - 1; i++) {
    w.tensor[i] = mhk_tensor_new(w.tape, tensors[i].rank, tensors[i].shape,
                                 tensors[i].rank == 2 && tensors[i].shape[0] == 0 ? NULL : reals);
    if (tensors[i].gradient) mhk_require_grad(w.tape, w.tensor[i]);
    CHECK(w.tensor[i] != NULL, "tensor %d: %s", i, mhk_message(w.ctx));
  }
}

static void world_end(const char *after) {
  mhk_destroy(w.ctx);
  CHECK(w.memory.bytes == 0 && w.memory.blocks == 0 && !w.memory.wrong_size, "after calls of %s %lld bytes are lost",
        after, (long long)w.memory.bytes);
}

static char now[1000]; /* the call, for whoever looks when it does not come back */
static void write_down(const call *c) {
  size_t n = (size_t)snprintf(now, sizeof now, "%s(", c->f->name);
  int i;
  for (i = 0; i < c->f->n && n < sizeof now - 60; i++)
    n += (size_t)snprintf(now + n, sizeof now - n, "%s%s #%d", i ? ", " : "", c->f->parameter[i].name, c->pick[i]);
  snprintf(now + n, sizeof now - n, ")");
}
#ifdef HAS_ALARM
static void too_long(int signal_number) {
  (void)signal_number;
  if (write(1, now, strlen(now)) >= 0 && write(1, " does not end\n", 14) >= 0) _exit(1);
}
#endif

/* what a context is reached through */
static int is_object(const char *type) {
  static const char *const types[] = {"mhk_context_p", "mhk_tape_p",        "mhk_model_p",  "mhk_tensor_p",
                                      "mhk_session_p", "mhk_speculation_p", "mhk_trainer_p"};
  size_t i;
  for (i = 0; i < sizeof types / sizeof *types; i++)
    if (!strcmp(type, types[i])) return 1;
  return 0;
}

static void one_call(call *c) {
  int i, missing = 0;
  const char *path = test_path("last_call");
  if (test_state.verbose) write_down(c), test_write_file(path, now, strlen(now));
  refill();
  returned = 0;
  changed = NULL;
#ifdef HAS_ALARM
  write_down(c);
  alarm(60);
#endif
  c->f->call(c);
#ifdef HAS_ALARM
  alarm(0);
#endif
  for (i = 0; i < c->f->n; i++) missing |= c->pick[i] == 1 && is_object(c->f->parameter[i].type);
  if (c->f->tells && returned != MHK_OK && !missing && !mhk_failed(w.ctx)) {
    write_down(c);
    CHECK(0, "%s returns error %d and the context has none (%s)", now, returned, changed ? changed : "");
  }
  if (mhk_failed(w.ctx)) {
    if (!*mhk_message(w.ctx)) {
      write_down(c);
      CHECK(0, "%s fails without a message", now);
    }
  }
}

/* a function with every value of every parameter, and with many of their combinations */
static void all_calls(const function *f) {
  uint64_t seed = 7;
  double all = 1;
  long done = 0, k;
  int i, counts[MOST_PARAMETERS],
      ends = strstr(f->name, "destroy") || strstr(f->name, "close") || strstr(f->name, "finish");
  call c;
  memset(&c, 0, sizeof c);
  c.f = f;
  for (i = 0; i < f->n; i++) all *= counts[i] = f->parameter[i].count();
  world_begin();
  /* each value of each parameter; then all together where they are few, else some */
  for (i = 0; i < f->n; i++)
    for (c.pick[i] = counts[i] - 1; c.pick[i] >= 0; c.pick[i]--) {
      one_call(&c);
      if (++done % 100 == 0 || ends) world_end(f->name), world_begin();
      if (c.pick[i] == 0) break;
    }
  for (k = 0; k < (all < most_calls ? (long)all : most_calls - done); k++) {
    long rest = k;
    for (i = 0; i < f->n; i++) {
      c.pick[i] = all < most_calls         ? (int)(rest % counts[i])
                  : test_random(&seed) % 2 ? 0
                                           : (int)(test_random(&seed) % (uint64_t)counts[i]);
      rest /= counts[i];
    }
    one_call(&c);
    if (++done % 100 == 0 || ends) world_end(f->name), world_begin();
  }
  world_end(f->name);
}

static const function *current;
static void function_test(void) { all_calls(current); }

TEST(every_parameter_has_values) {
  int i;
  for (i = 0; unknown[i]; i++) CHECK(0, "%s", unknown[i]);
  CHECK(FUNCTIONS > 150, "%d functions were found in mohawk.h", (int)FUNCTIONS);
}

int main(int argc, char **argv) {
  int i;
  test_begin(argc, argv);
  for (i = 1; i + 1 < argc; i++)
    if (!strcmp(argv[i], "--calls")) most_calls = atoi(argv[i + 1]);
#ifdef HAS_ALARM
  signal(SIGALRM, too_long);
#endif
  make_tokenizer();
  for (i = 0; i < 4096; i++) {
    reals[i] = (mhk_real)((i * 7 % 11) - 5) / 8;
    minus_ones[i] = -1;
    large[i] = INT32_MAX;
    documents[i] = i / 3 % 4;
  }
  RUN(every_parameter_has_values);
  for (i = 0; i < FUNCTIONS; i++) {
    current = &functions[i];
    test_run(functions[i].name, function_test);
  }
  return test_end();
}
