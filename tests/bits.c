/* Prints a hash of what every op, model, session and training computes, for each instruction set
   that is here: a line `set precision what hash`. Two builds of the header agree to the bit where
   their lines agree. `make bits` keeps the lines in build/bits.txt, `make bits BASE=revision`
   compares them with those of the header at another revision of the repository. Hashes hold for one
   compiler, its flags and its libm: they are compared, never recorded in the project. */
#define MOHAWK_IMPLEMENTATION
#include "test.h"

#if MHK_VERSION_MINOR < 3 /* names and arguments of older headers */
#define mhk_rotary(t, x, dim, theta, doc) mhk_rotary(t, x, dim, theta, doc, 0)
#define mhk_attention(t, q, k, v, d) mhk_attention(t, q, k, v, (d)->doc, NULL)
#define mhk_conv1d(t, x, w, bias, d) mhk_conv1d(t, x, w, bias, (d)->silu, (d)->doc, NULL)
#define mhk_matrix_orientation(t, d) \
  mhk_matrix_orientation(t, (d)->log_a, (d)->Bm, (d)->Cm, (d)->D, (d)->q, (d)->k, (d)->doc, (d)->relative)
#define mhk_evaluate(m, d, e) mhk_evaluate(m, (d)->teacher, (d)->corpus, (d)->length, (d)->windows, NULL, NULL, e)
typedef struct mhk_conv1d_desc { const int32_t *doc; int silu; } mhk_conv1d_desc;
typedef struct mhk_orientation_desc {
  mhk_tensor *log_a, *Bm, *Cm, *D, *q, *k;
  const int32_t *doc;
  double *relative;
} mhk_orientation_desc;
typedef struct mhk_evaluate_desc {
  mhk_model *teacher;
  mhk_text *text;
  mhk_index length, windows;
} mhk_evaluate_desc;
#define mhk_corpus mhk_text
#define corpus text
#define mhk_corpus_from_tokens mhk_text_from_tokens
#define mhk_corpus_sample mhk_text_sample
#define mhk_corpus_tokens mhk_text_tokens
#define mhk_model_count mhk_model_tensors
#define mhk_model_at mhk_model_tensor
#define mhk_session_state_bytes mhk_session_state_size
#define mhk_session_save_memory mhk_session_save
#define mhk_logits mhk_logits_of
#endif
#if MHK_VERSION_MINOR == 3
#define mhk_attention(t, q, k, v, d) mhk_attention(t, q, k, v, (d)->doc)
#endif
#if MHK_VERSION_MINOR < 4
#define mhk_attention_matrix(t, q, k, d) mhk_attention_matrix(t, q, k, (d)->doc)
typedef struct mhk_attention_desc { const int32_t *doc; } mhk_attention_desc;
#endif
#if MHK_VERSION_MINOR < 2
#define mhk_quantize mhk_quantise
#define mhk_quantize_desc mhk_quantise_desc
#endif
#include "models.h"

enum { MOST_LEAVES = 12, LONGEST = 131 };

static struct {
  mhk_context *ctx;
  mhk_tape *tape;
  mhk_tensor *leaves[MOST_LEAVES];
  int n_leaves;
  const char *precision;
  uint64_t seed;
} run;

static uint64_t hash_start(void) { return UINT64_C(0xCBF29CE484222325); }
static uint64_t hash_of(uint64_t h, const void *data, size_t n) {
  const unsigned char *p = (const unsigned char *)data;
  for (size_t i = 0; i < n; i++) h = (h ^ p[i]) * UINT64_C(0x100000001B3);
  return h;
}
static uint64_t hash_tensor(uint64_t h, const mhk_tensor *x) {
  if (!x) return h + 1;
  h = hash_of(h, x->data, mhk_tensor_bytes(x));
  return x->grad ? hash_of(h, x->grad, sizeof *x->grad * (size_t)x->count) : h + 2;
}

static void say(const char *what, const char *size, uint64_t h) {
  printf("%s %s %s%s%s %016llx\n", mhk_isa_name(run.ctx), run.precision, what, size[0] ? "_" : "", size,
         (unsigned long long)h);
  if (mhk_failed(run.ctx)) printf("  failed: %s\n", mhk_message(run.ctx));
  mhk_clear_error(run.ctx);
}

/* ---------------------------------------------------------------------------------------- ops */

/* a new input of the op at hand, numbers in [low,high), that wants a gradient */
static mhk_tensor *between(double low, double high, int rank, const mhk_index *shape) {
  mhk_tensor *x = mhk_tensor_new(run.tape, rank, shape, NULL);
  if (!x) return NULL;
  test_fill(mhk_data(x), x->count, low, high, ++run.seed);
  mhk_require_grad(run.tape, x);
  if (run.n_leaves < MOST_LEAVES) run.leaves[run.n_leaves++] = x;
  return x;
}
static mhk_tensor *in1(mhk_index a) { return between(-1, 1, 1, &a); }
static mhk_tensor *in3(mhk_index a, mhk_index b, mhk_index c) {
  const mhk_index s[3] = {a, b, c};
  return between(-1, 1, 3, s);
}
static mhk_tensor *in4(mhk_index a, mhk_index b, mhk_index c, mhk_index d) {
  const mhk_index s[4] = {a, b, c, d};
  return between(-1, 1, 4, s);
}
static mhk_tensor *decays(mhk_index a, mhk_index b, mhk_index c) {
  const mhk_index s[3] = {a, b, c};
  return between(-1, 0, 3, s);
}
static mhk_tensor *positive(mhk_index a, mhk_index b) {
  const mhk_index s[2] = {a, b};
  return between(0.1, 2, 2, s);
}
static mhk_tensor *in2(mhk_index a, mhk_index b) {
  const mhk_index s[2] = {a, b};
  return between(-2, 2, 2, s);
}

/* what the op gave and, after a backward pass from random cotangents, the gradients of its
   inputs */
static void out(const char *what, const char *size, mhk_tensor *y) {
  uint64_t h = hash_tensor(hash_start(), y);
  if (y && y->requires_grad) {
    mhk_real *cotangent = (mhk_real *)malloc(sizeof *cotangent * (size_t)y->count);
    test_fill(cotangent, y->count, -1, 1, 99);
    mhk_backward_from(run.tape, y, cotangent);
    free(cotangent);
  }
  for (int i = 0; i < run.n_leaves; i++) h = hash_tensor(h, run.leaves[i]);
  say(what, size, h);
  mhk_tape_reset(run.tape);
  run.n_leaves = 0;
  run.seed = 0;
}

/* what works element by element, and rows: norms, softmax, losses, sums */
static void elementwise(mhk_index n, const char *size) {
  mhk_tape *t = run.tape;
  out("add", size, mhk_add(t, in2(3, n), in2(3, n)));
  out("add_vector", size, mhk_add(t, in2(3, n), in1(n)));
  out("sub", size, mhk_sub(t, in2(3, n), in2(3, n)));
  out("mul", size, mhk_mul(t, in2(3, n), in2(3, n)));
  out("scale", size, mhk_scale(t, in2(3, n), 0.3));
  out("square", size, mhk_square(t, in2(3, n)));
  out("sqrt", size, mhk_sqrt(t, positive(3, n)));
  out("exp", size, mhk_exp(t, in2(3, n)));
  out("log", size, mhk_log(t, positive(3, n)));
  out("sigmoid", size, mhk_sigmoid(t, in2(3, n)));
  out("softplus", size, mhk_softplus(t, in2(3, n)));
  out("silu", size, mhk_silu(t, in2(3, n)));
  out("gelu", size, mhk_gelu(t, in2(3, n)));
  out("sum", size, mhk_sum(t, in2(3, n)));
  out("mean", size, mhk_mean(t, in2(3, n)));
  out("sum_last", size, mhk_sum_last(t, in2(3, n)));
  out("softmax", size, mhk_softmax(t, in2(3, n)));
  out("columns", size, mhk_columns(t, in2(3, n), 0, n / 2 + 1));
  out("layer_norm", size, mhk_layer_norm(t, in2(3, n), in1(n), in1(n), 1e-5));
  out("rms_norm", size, mhk_rms_norm(t, in2(3, n), in1(n), 1e-5));
  out("gate", size, mhk_gate(t, in2(3, n), in2(3, n), in1(n)));
  out("hidden_distance", size, mhk_hidden_distance(t, in2(3, n), in2(3, n)));
  out("kl", size, mhk_kl(t, in2(3, n), in2(3, n)));
  out("cross_entropy_soft", size, mhk_cross_entropy_soft(t, in2(3, n), in2(3, n), 1.5));
  {
    const int32_t labels[3] = {0, -1, (int32_t)n / 2};
    const int32_t tokens[6] = {2, 0, 1, 1, 2, 0};
    out("cross_entropy", size, mhk_cross_entropy(t, in2(3, n), labels));
    out("embedding", size, mhk_embedding(t, in2(3, n), tokens, 2, 3));
  }
}

static void products(mhk_index m, mhk_index n, mhk_index k, const char *size) {
  mhk_tape *t = run.tape;
  out("linear", size, mhk_linear(t, in2(m, k), in2(n, k), in1(n)));
  out("linear_gelu", size, mhk_linear_gelu(t, in2(m, k), in2(n, k), in1(n)));
  out("linear_add", size, mhk_linear_add(t, in2(m, k), in2(n, k), NULL, in2(m, n)));
  out("matmul", size, mhk_matmul(t, in3(2, m, k), in3(2, k, n), 0));
  out("matmul_transposed", size, mhk_matmul(t, in3(2, m, k), in3(2, n, k), 1));
}

/* documents of B rows of T tokens: a boundary after a third of the second row */
static const int32_t *documents(mhk_index B, mhk_index T) {
  static int32_t doc[2 * LONGEST];
  for (mhk_index i = 0; i < B * T; i++) doc[i] = i >= T + T / 3;
  return doc;
}

/* attention, convolution and SSD with their matrices, in documents where packed */
static void mixers(mhk_index T, mhk_index H, mhk_index G, mhk_index P, mhk_index N, int packed, const char *size) {
  mhk_tape *t = run.tape;
  const mhk_index B = 2;
  const int32_t *doc = packed ? documents(B, T) : NULL;
  mhk_ssd_desc d;
  mhk_attention_desc seen;
  memset(&d, 0, sizeof d);
  memset(&seen, 0, sizeof seen);
  d.doc = seen.doc = doc;
  out("rotary", size, mhk_rotary(t, in4(B, T, H, P), (int)P / 4 * 2, 10000, doc));
  out("swap_heads", size, mhk_swap_heads(t, in4(B, T, H, P)));
  out("attention", size, mhk_attention(t, in4(B, T, H, P), in4(B, T, G, P), in4(B, T, G, P), &seen));
  out("attention_matrix", size, mhk_attention_matrix(t, in4(B, T, H, P), in4(B, T, G, P), &seen));
  for (int silu = 0; silu < 2; silu++) {
    const mhk_index w[3] = {H * P, 1, 4};
    mhk_conv1d_desc conv;
    memset(&conv, 0, sizeof conv);
    conv.doc = doc;
    conv.silu = silu;
    out(silu ? "conv1d_silu" : "conv1d", size,
        mhk_conv1d(t, in3(B, T, H * P), between(-1, 1, 3, w), in1(H * P), &conv));
  }
  for (int form = MHK_SSD_CHUNKED; form <= MHK_SSD_RECURRENT; form++) {
    d.form = (mhk_ssd_form)form;
    d.D = in1(H);
    d.initial_state = in4(B, H, P, N);
    out(form == MHK_SSD_CHUNKED ? "ssd_chunked" : "ssd_recurrent", size,
        mhk_ssd(t, in4(B, T, H, P), decays(B, T, H), in4(B, T, G, N), in4(B, T, G, N), &d));
  }
  out("ssd_matrix", size, mhk_ssd_matrix(t, decays(B, T, H), in4(B, T, G, N), in4(B, T, G, N), in1(H), doc));
  {
    double relative[16] = {0};
    mhk_tensor *log_a = decays(B, T, H), *b = in4(B, T, G, N), *c = in4(B, T, G, N), *D = in1(H);
    mhk_tensor *q = mhk_detach(t, in4(B, T, H, P)), *k = mhk_detach(t, in4(B, T, G, P));
    mhk_orientation_desc matrices;
    memset(&matrices, 0, sizeof matrices);
    matrices.log_a = log_a, matrices.Bm = b, matrices.Cm = c, matrices.D = D, matrices.q = q, matrices.k = k;
    matrices.doc = doc, matrices.relative = relative;
    out("matrix_orientation", size, mhk_matrix_orientation(t, &matrices));
    say("matrix_orientation_relative", size, hash_of(hash_start(), relative, sizeof relative));
  }
  out("matrix_distance", size, mhk_matrix_distance(t, in4(B, H, T, T), in4(B, H, T, T)));
}

static void ops(void) {
  elementwise(1, "1");
  elementwise(37, "37");
  elementwise(128, "128");
  products(1, 19, 33, "1x19x33");
  products(3, 64, 64, "3x64x64");
  products(7, 33, 50, "7x33x50");
  products(66, 130, 71, "66x130x71");
  products(128, 128, 128, "128x128x128");
  mixers(1, 2, 1, 8, 5, 0, "1");
  mixers(31, 4, 2, 16, 16, 0, "31");
  mixers(LONGEST, 2, 2, 24, 13, 0, "131");
  mixers(LONGEST, 4, 1, 32, 64, 1, "131_packed");
}

/* -------------------------------------------------------------------------- models and sessions */

static uint64_t hash_file(const char *path) {
  size_t n = 0;
  char *text = test_read_file(path, &n);
  const uint64_t h = text ? hash_of(hash_start(), text, n) : 0;
  free(text);
  return h;
}

/* prefill of 37 tokens, the state after it, and 200 sampled ones */
static void conversation(mhk_model *m, const char *what, const char *size) {
  mhk_session *s = mhk_session_create(m, NULL);
  int32_t tokens[37], token;
  uint64_t h = hash_start();
  mhk_sampling how;
  memset(&how, 0, sizeof how);
  how.seed = 5;
  how.temperature = 0.9;
  how.top_p = 0.95;
  model_tokens(tokens, 37, m ? mhk_model_config(m)->vocab_size : 1, 8);
  mhk_feed(s, tokens, 37);
  if (s) {
    const size_t bytes = mhk_session_state_bytes(s, 0);
    void *state = malloc(bytes);
    h = hash_of(h, mhk_logits(s, 0), sizeof(mhk_real) * (size_t)mhk_model_config(m)->vocab_size);
    mhk_session_save_memory(s, 0, state, bytes);
    h = hash_of(h, state, bytes);
    free(state);
  }
  for (int i = 0; i < 200 && s; i++) {
    if (mhk_sample_batch(s, &how, &token) != MHK_OK) break;
    h = hash_of(h, &token, sizeof token);
  }
  say(what, size, h);
  mhk_session_destroy(s);
}

static void model_of_kind(int kind) {
  const char *name = model_kind_name(kind);
  mhk_model *m = model_new(run.ctx, kind, 3);
  int32_t tokens[2 * 40];
  uint64_t h;
  mhk_tensor *logits;
  model_tokens(tokens, 80, 31, 4);
  logits = mhk_forward(run.tape, m, tokens, 2, 40, NULL);
  h = hash_tensor(hash_start(), logits);
  mhk_backward(run.tape, mhk_mean(run.tape, mhk_square(run.tape, logits)));
  for (int i = 0; i < mhk_model_count(m); i++) h = hash_tensor(h, mhk_model_at(m, i));
  say("model", name, h);
  mhk_tape_reset(run.tape);
  conversation(m, "conversation", name);
  mhk_save(m, test_path("bits.safetensors"), MHK_BF16);
  say("saved_bf16", name, hash_file(test_path("bits.safetensors")));
  mhk_model_destroy(m);
}

static void quantized(void) {
  static const mhk_dtype types[] = {MHK_Q8, MHK_Q4};
  mhk_config c = model_config(HYBRID);
  c.d_model = 64, c.d_mlp = 128, c.head_dim = 32, c.n_head = c.n_kv_head = 2, c.rotary_dim = 16;
  c.ssm_heads = c.ssm_groups = 2, c.ssm_head_dim = 32, c.d_state = 32;
  mhk_model *m = mhk_model_create(run.ctx, &c, 7);
  for (int i = 0; i < 2; i++) {
    mhk_quantize_desc d;
    memset(&d, 0, sizeof d);
    d.type = types[i];
    mhk_model *q = mhk_quantize(m, &d);
    conversation(q, "conversation", mhk_dtype_name(types[i]));
    mhk_save(q, test_path("bits.safetensors"), types[i]);
    say("saved", mhk_dtype_name(types[i]), hash_file(test_path("bits.safetensors")));
    mhk_model_destroy(q);
  }
  mhk_model_destroy(m);
}

/* --------------------------------------------------------------------------------- distillation */

/* 20 updates of each stage: losses and weights */
static void distillation(int hybrid) {
  static const int kept[] = {1};
  mhk_model *teacher = model_new(run.ctx, PHI, 11);
  int32_t tokens[4000];
  mhk_distill_desc d;
  mhk_trainer *tr;
  double losses[60];
  int n = 0;
  memset(&d, 0, sizeof d);
  memset(losses, 0, sizeof losses);
  model_tokens(tokens, 4000, 31, 12);
  d.corpus = mhk_corpus_from_tokens(run.ctx, tokens, 4000, 0);
  d.teacher = teacher;
  d.batch = 2;
  d.length = 33;
  d.windows = hybrid ? MHK_WINDOWS_PACKED : MHK_WINDOWS_RANDOM;
  d.precision = strcmp(run.precision, "bf16") ? MHK_PRECISION_FULL : MHK_PRECISION_BF16;
  if (hybrid) {
    d.student_desc.keep_attention = kept;
    d.student_desc.n_keep_attention = 1;
  }
#ifdef MHK_WINDOW_ALL /* headers without such heads start students plainly */
  d.student_desc.gates = d.student_desc.bias = d.student_desc.calibrate = -1;
#endif
  for (int i = 0; i < 3; i++) { /* no defaults, which recipes may change */
    d.stages[i].tokens = 20 * d.batch * d.length;
    d.stages[i].lr = 1e-3;
    d.stages[i].own_stream = -1;
  }
  tr = mhk_distill(run.ctx, &d);
  while (mhk_train_step(tr) && n < 60) losses[n++] = mhk_progress(tr)->loss;
  say("losses", hybrid ? "hybrid" : "pure", hash_of(hash_start(), losses, sizeof losses));
  uint64_t h = hash_start();
  for (int i = 0; tr && i < mhk_model_count(mhk_student(tr)); i++)
    h = hash_of(h, mhk_model_at(mhk_student(tr), i)->data, mhk_tensor_bytes(mhk_model_at(mhk_student(tr), i)));
  say("student", hybrid ? "hybrid" : "pure", h);
  if (tr) {
    mhk_evaluation e;
    mhk_evaluate_desc measured;
    memset(&e, 0, sizeof e);
    memset(&measured, 0, sizeof measured);
    measured.teacher = teacher;
    measured.corpus = d.corpus;
    measured.length = 64;
    measured.windows = 8;
    mhk_evaluate(mhk_student(tr), &measured, &e);
    say("evaluation", hybrid ? "hybrid" : "pure", /* what every revision measures */
        hash_of(hash_start(), &e, offsetof(mhk_evaluation, agreement_error) + sizeof e.agreement_error));
  }
  mhk_trainer_destroy(tr);
}

#ifndef MOHAWK_DOUBLE
static void bundled_teacher(void) {
  mhk_model *m = mhk_load(run.ctx, "examples/tiny");
  size_t n = 0;
  char *story = test_read_file("examples/story.txt", &n);
  if (m && story) {
    static int32_t ids[20000];
    const mhk_index count = mhk_encode(mhk_model_tokenizer(m), story, n, ids, 20000);
    say("encode", "story", hash_of(hash_start(), ids, sizeof *ids * (size_t)(count > 0 ? count : 0)));
    conversation(m, "conversation", "teacher");
    mhk_corpus *text = mhk_corpus_sample(m, 600, 3, NULL, NULL);
    const int32_t *tokens = NULL;
    const mhk_index sampled = mhk_corpus_tokens(text, &tokens);
    say("text_sample", "600", hash_of(hash_start(), tokens, tokens ? sizeof *tokens * (size_t)sampled : 0));
  }
  free(story);
}
#endif

static void everything(mhk_isa isa, int bf16) {
  mhk_context_desc d;
  memset(&d, 0, sizeof d);
  d.isa = isa;
  d.threads = 2;
  d.bf16_unit = MHK_BF16_PLAIN;
#if MHK_VERSION_MINOR >= 3
  d.precision = bf16 ? MHK_PRECISION_BF16 : MHK_PRECISION_FULL;
#endif
  run.ctx = mhk_create(&d);
  if (!mhk_failed(run.ctx)) {
    run.precision = bf16 ? "bf16" : sizeof(mhk_real) == 8 ? "double" : "float";
#if MHK_VERSION_MINOR < 3
    mhk_set_precision(run.ctx, bf16 ? MHK_PRECISION_BF16 : MHK_PRECISION_FULL);
#endif
    run.tape = mhk_tape_create(run.ctx);
    ops();
    for (int kind = 0; kind < MODEL_KINDS; kind++) model_of_kind(kind);
    quantized();
    distillation(0);
    distillation(1);
#ifndef MOHAWK_DOUBLE
    if (!bf16) bundled_teacher();
#endif
  }
  mhk_destroy(run.ctx);
}

int main(int argc, char **argv) {
  static const mhk_isa sets[] = {MHK_ISA_SCALAR, MHK_ISA_AVX2, MHK_ISA_AVX512, MHK_ISA_NEON, MHK_ISA_WASM};
  test_begin(argc, argv);
  for (int i = 0; i < 5; i++) {
    everything(sets[i], 0);
    if (sizeof(mhk_real) == 4) everything(sets[i], 1);
  }
  return 0;
}
