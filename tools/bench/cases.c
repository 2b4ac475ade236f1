/* cases.c: the cases of `mohawk bench`, all through the public interface of mohawk.h. See
   bench.h. */
#include "bench.h"
#include <ctype.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define HEADS 32 /* of Phi-1.5 */
#define HEAD 64
#define MAX_COPIES 64
#define MAX_TENSORS 256 /* of the models made here */
#define COLD_BYTES ((double)((size_t)512 << 20)) /* more weights than a cache holds */

/* the matrices of Phi-Mamba 1.5B: those of a layer, then the head. One token reads LAYERS layers,
   which a few stand for in turn. */
static const struct {
  int n, k, rest;
} decode_shapes[] = {{10272, 2048, 32}, {2048, 2048, 0}, {8192, 2048, 0}, {2048, 8192, 0}, {51200, 2048, 0}};
#define LAYERS 24
#define LAYERS_HELD 3
#define LAYERS_FED 2 /* of a prompt's, which the others cost as much as; its embedding and head are left out */
#define GROUP(type) ((type) == MHK_Q8 ? 64 : 32) /* as mhk_quantize() has it by default */

struct bench_work {
  bench_case c;
  mhk_context *ctx;
  mhk_tape *tape;
  mhk_tape_mark start;       /* inputs lie before it, results after it */
  mhk_tensor *in[4];
  mhk_tensor frozen[MAX_COPIES]; /* weights without gradient */
  mhk_quantized quantized[MAX_COPIES]; /* what they consist of */
  int copies;
  void *memory;              /* of frozen */
  mhk_real *cotangent;
  mhk_model *teacher, *student;
  mhk_trainer *trainer;
  mhk_session *session;
  mhk_isa isa;
  int32_t *tokens;
  mhk_real *moments;         /* AdamW's, two for each parameter */
  int64_t updates;           /* done with them */
  size_t base;               /* bytes held when all is made */
};

/* ---------------------------------------------------------------- the list */

CLI_PRINTF(4, 5)
static bench_case *add(bench_case *list, int *n, bench_kind kind, const char *format, ...) {
  bench_case *c = &list[*n];
  va_list args;
  if (*n >= BENCH_MAX_CASES) return c - 1;
  memset(c, 0, sizeof *c);
  va_start(args, format);
  vsnprintf(c->name, sizeof c->name, format, args);
  va_end(args);
  c->kind = kind;
  ++*n;
  return c;
}

/* products of T tokens of a core with 32 heads of 64, attention or state space in chunks of 32,
   what is causal counted half */
static double core_flop(int attention, double T) {
  return attention ? 2 * T * T * HEAD * HEADS : 2 * T * HEADS * (16.0 * (HEAD + HEAD) + 2.0 * HEAD * HEAD);
}

static double mixer_flop(int attention, double T) {
  const double D = HEADS * HEAD;
  return 2 * T * D * (attention ? 4 * D : 5 * D + HEADS) + core_flop(attention, T);
}

/* a training step of 4 x 512 tokens through 6 layers of width 256 with 8 heads of 32 */
static double step_flop(int attention) {
  const double D = 256, H = 8, L = 6, V = 4096, B = 4, T = 512;
  const double lin = 2 * D * (L * (attention ? 12 * D : 11 * D + 2 * H * 64 + H) + V);
  const double core = L * (attention ? 2 * T * D : 2 * (16.0 * (64 + 32) + 2 * 64 * 32) * H);
  return 3 * B * T * (lin + core);
}

static void list_products(bench_case *list, int *n) {
  static const int shapes[][3] = {{512, 1024, 256}, {2048, 2048, 2048}, {512, 8192, 2048}, {512, 2048, 8192}};
  static const char *const names[] = {"sgemm", "sgemm_dx", "sgemm_dw"};
  static const int rows[] = {2048, 8192};
  int i, back, wide;
  for (back = 0; back < 3; back++)
    for (i = 0; i < CLI_COUNT_OF(shapes); i++) {
      const int *s = shapes[i];
      bench_case *c = add(list, n, BENCH_LINEAR, "%s_%d_%d_%d", names[back], s[0], s[1], s[2]);
      c->m = s[0];
      c->n = s[1];
      c->k = s[2];
      c->back = back;
      c->flop = 2.0 * s[0] * s[1] * s[2];
    }
  {
    bench_case *c = add(list, n, BENCH_MATMUL, "batch_64_of_64_64_64");
    c->m = c->n = 64;
    c->flop = 2.0 * 64 * 64 * 64 * 64;
  }
  for (wide = 1; wide >= 0; wide--)
    for (i = 0; i < 2; i++) {
      bench_case *c = add(list, n, BENCH_GEMV, "gemv_%s_%d_2048", wide ? "f32" : "bf16", rows[i]);
      c->n = rows[i];
      c->k = 2048;
      c->wide = wide;
      c->flop = 2.0 * rows[i] * 2048;
      c->bytes = (wide ? 4.0 : 2.0) * rows[i] * 2048;
    }
}

/* bytes of matrix i of decode_shapes: its elements, the scales of quantized ones, the rows that
   stay numbers */
static void decode_bytes(mhk_dtype type, int i, size_t part[3]) {
  const size_t quantized = type == MHK_Q8 || type == MHK_Q4, n = (size_t)decode_shapes[i].n,
               k = (size_t)decode_shapes[i].k;
  const size_t rest = quantized ? (size_t)decode_shapes[i].rest : 0, count = (n - rest) * k;
  part[0] = quantized ? count / (type == MHK_Q8 ? 1 : 2) : count * mhk_dtype_bytes(type);
  part[1] = quantized ? count / GROUP(type) * 2 : 0;
  part[2] = rest * k * sizeof(mhk_real);
}

static void list_decoding(bench_case *list, int *n) {
  static const struct {
    const char *name;
    mhk_dtype type;
  } types[] = {{"f32", MHK_REAL}, {"bf16", MHK_BF16}, {"q8", MHK_Q8}, {"q4", MHK_Q4}};
  int i, j;
  for (i = 0; i < CLI_COUNT_OF(types); i++) {
    bench_case *c = add(list, n, BENCH_DECODE, "decode_%s", types[i].name);
    c->type = types[i].type;
    for (j = 0; j < CLI_COUNT_OF(decode_shapes); j++) {
      const double times = j < CLI_COUNT_OF(decode_shapes) - 1 ? LAYERS : 1;
      size_t part[3];
      decode_bytes(c->type, j, part);
      c->flop += times * 2.0 * decode_shapes[j].n * decode_shapes[j].k;
      c->bytes += times * (double)(part[0] + part[1] + part[2]);
    }
  }
}

/* with bfloat16 operands, next to float32 */
static void list_narrow(bench_case *list, int *n) {
  static const char *const names[][2] = {{"bf16gemm_512_1024_256", "sgemm_512_1024_256"},
                                         {"bf16gemm_2048_2048_2048", "sgemm_2048_2048_2048"},
                                         {"bf16gemm_dx_2048_2048_2048", "sgemm_dx_2048_2048_2048"},
                                         {"bf16gemm_dw_2048_2048_2048", "sgemm_dw_2048_2048_2048"},
                                         {"step_phi_bf16", "step_phi"},
                                         {"step_phi_mamba_bf16", "step_phi_mamba"}};
  int i;
  for (i = 0; i < CLI_COUNT_OF(names); i++) {
    const bench_case *wide = bench_find(list, *n, names[i][1]);
    bench_case *c = add(list, n, wide->kind, "%s", names[i][0]);
    c->m = wide->m;
    c->n = wide->n;
    c->k = wide->k;
    c->back = wide->back;
    c->wide = wide->wide;
    c->flop = wide->flop;
    c->narrow = 1;
    strcpy(c->other, names[i][1]);
    c->scale = 1;
    c->why = "mohawk float32";
  }
}

/* cores, mixers, prompts, training steps and stage 1 */
static void list_layers(bench_case *list, int *n) {
  static const char *const kinds[] = {"ssd", "attention"}, *const ways[] = {"forward", "backward"};
  int T, back, wide;
  for (back = 0; back < 2; back++)
    for (wide = 1; wide >= 0; wide--)
      for (T = 512; T <= 8192; T *= 2) {
        bench_case *c = add(list, n, BENCH_CORE, "core_%s_%s_%d", kinds[wide], ways[back], T);
        c->m = T;
        c->back = back;
        c->wide = wide;
        c->flop = (back ? 3 : 1) * core_flop(wide, T);
      }
  for (T = 512; T <= 8192; T *= 4)
    for (back = 0; back < (T <= 2048 ? 2 : 1); back++)
      for (wide = 1; wide >= 0; wide--) {
        bench_case *c = add(list, n, BENCH_MIXER, "mixer_%s_%s_%d", kinds[wide], ways[back], T);
        c->m = T;
        c->back = back;
        c->wide = wide;
        c->flop = (back ? 3 : 1) * mixer_flop(wide, T);
      }
  for (wide = 1; wide >= 0; wide--) {
    bench_case *c = add(list, n, BENCH_PREFILL, wide ? "prefill_2048" : "prefill_2048_int8");
    c->m = 2048;
    c->wide = wide;
    if (wide) c->flop = LAYERS * (mixer_flop(0, 2048) + 2.0 * 2048 * 2 * 8192 * HEADS * HEAD);
  }
  for (wide = 1; wide >= 0; wide--) {
    bench_case *c = add(list, n, BENCH_STEP, wide ? "step_phi" : "step_phi_mamba");
    c->wide = wide;
    c->flop = step_flop(wide);
  }
  for (T = 512; T <= 2048; T *= 4) add(list, n, BENCH_STAGE1, "stage1_layer_%d", T)->m = T;
  for (T = 1; T <= 3; T += 2) add(list, n, BENCH_UPDATE, "stage%d_update_small", T)->m = T;
}

/* gates and windows of a student against one without */
static void list_options(bench_case *list, int *n) {
  static const struct {
    const char *name;
    int gates, window;
  } options[] = {{"gates", 1, 0}, {"window_16", 0, 16}, {"window_32", 0, 32}, {"window_16_gates", 1, 16}};
  static const char *const of[] = {"tokens_student", "prefill_2048", "step_phi_mamba"};
  int i, j;
  add(list, n, BENCH_TOKENS, "%s", of[0])->m = 128;
  for (i = 0; i < CLI_COUNT_OF(of); i++)
    for (j = 0; j < CLI_COUNT_OF(options); j++) {
      const bench_case *base = bench_find(list, *n, of[i]);
      bench_case *c = add(list, n, base->kind, "%s_%s", of[i], options[j].name);
      c->m = base->m;
      c->wide = base->wide;
      c->gates = options[j].gates;
      c->window = options[j].window;
      snprintf(c->other, sizeof c->other, "%s", of[i]);
      c->scale = 1;
      c->why = "mohawk without";
    }
}

/* cases of ours against cases of ours */
static void list_comparisons(bench_case *list, int *n) {
  int T;
  for (T = 128; T <= 8192; T *= 2) {
    bench_case *c = add(list, n, BENCH_CORE, "ssd_or_attention_%d", T);
    c->m = T;
    c->flop = core_flop(0, T);
    snprintf(c->other, sizeof c->other, "core_attention_forward_%d", T);
    c->scale = 1;
    c->why = "mohawk attention";
  }
  for (T = 512; T <= 65536; T *= 2) {
    bench_case *c = add(list, n, BENCH_CORE, "ssd_flat_%d", T);
    c->m = T;
    c->flop = core_flop(0, T);
    strcpy(c->other, "core_ssd_forward_2048");
    c->scale = T / 2048.0;
    c->why = "mohawk at T 2048";
  }
}

/* the last part of a path, without .safetensors, of letters, digits and _ only */
static void short_name(const char *path, char *name, size_t size) {
  size_t n = strlen(path), from, i;
  while (n > 1 && path[n - 1] == '/') n--;
  for (from = n; from > 0 && path[from - 1] != '/';) from--;
  if (cli_ends_with(path, ".safetensors")) n -= strlen(".safetensors");
  for (i = 0; i + 1 < size && from + i < n; i++)
    name[i] = isalnum((unsigned char)path[from + i]) ? path[from + i] : '_';
  name[i] = 0;
}

const char *bench_scaling_title(const char *name) {
  static const char *const titles[][2] = {
      {"sgemm_2048_2048_2048", "product of 2048 x 2048 x 2048"},
      {"core_attention_forward_2048", "attention, T 2048"},
      {"core_ssd_forward_2048", "SSD, T 2048"},
      {"core_ssd_backward_2048", "SSD with backward, T 2048"},
      {"step_phi", "training step: Phi"},
      {"step_phi_mamba", "training step: Phi-Mamba"},
      {"stage1_update_small", "stage 1: one update, 8 layers of 256"},
      {"stage3_update_small", "stage 3: one update, 8 layers of 256"},
      {"distill_tiny", "distilling the bundled teacher"}};
  int i;
  for (i = 0; i < CLI_COUNT_OF(titles); i++)
    if (strcmp(name, titles[i][0]) == 0) return titles[i][1];
  return NULL;
}

int bench_list(bench_case *list, const char *const *models, int n_models) {
  static const char *const parts[] = {"model_forward_teacher", "model_forward_student", "model_decode_teacher",
                                      "model_decode_student",  "model_decode_student_int8"};
  int n = 0, i, k, given;
  list_products(list, &n);
  list_decoding(list, &n);
  list_layers(list, &n);
  list_options(list, &n);
  list_narrow(list, &n);
  list_comparisons(list, &n);
  for (k = 0; k < n_models; k++) {
    char name[24];
    given = n;
    if (k == 0) {
      add(list, &n, BENCH_START, "start_model");
      add(list, &n, BENCH_DISTILL, "distill_tiny");
      for (i = 0; i < CLI_COUNT_OF(parts); i++) add(list, &n, BENCH_MODEL, "%s", parts[i])->m = i;
    } else {
      short_name(models[k], name, sizeof name);
      for (i = 2; i < CLI_COUNT_OF(parts); i++) add(list, &n, BENCH_MODEL, "%s_%s", parts[i], name)->m = i;
    }
    for (; given < n; given++) list[given].model = models[k];
  }
  return n;
}

const bench_case *bench_find(const bench_case *list, int n, const char *name) {
  static bench_case made;
  int i, T = 0;
  for (i = 0; i < n; i++)
    if (strcmp(list[i].name, name) == 0) return &list[i];
  if (sscanf(name, "core_attention_forward_%d", &T) == 1 && T > 0) { /* shorter ones than the list has */
    memset(&made, 0, sizeof made);
    snprintf(made.name, sizeof made.name, "core_attention_forward_%d", T);
    made.kind = BENCH_CORE;
    made.m = T;
    made.wide = 1;
    made.flop = core_flop(1, T);
    return &made;
  }
  return NULL;
}

/* ---------------------------------------------------------------- inputs */

static uint32_t draw_state = 1;

/* evenly from -0.5 to 0.5 */
static double draw(void) {
  draw_state = draw_state * 1664525u + 1013904223u;
  return (double)(draw_state >> 8) / 16777216.0 - 0.5;
}

static void fill(mhk_real *x, mhk_index n) {
  mhk_index i;
  if (x)
    for (i = 0; i < n; i++) x[i] = (mhk_real)draw();
}

static mhk_tensor *input(bench_work *w, int place, int rank, mhk_index a, mhk_index b, mhk_index c, mhk_index d) {
  mhk_index shape[4];
  mhk_tensor *x;
  shape[0] = a;
  shape[1] = b;
  shape[2] = c;
  shape[3] = d;
  x = mhk_tensor_new(w->tape, rank, shape, NULL);
  if (x) fill(mhk_data(x), x->count);
  return w->in[place] = x;
}

static void describe(bench_work *w, mhk_tensor *t, void *data, mhk_index n, mhk_index k, mhk_dtype dtype) {
  mhk_index i;
  t->data = data;
  t->rank = 2;
  for (i = 0; i < MHK_MAX_RANK; i++) t->shape[i] = i == 0 ? n : i == 1 ? k : 1;
  t->count = n * k;
  t->dtype = dtype;
  t->ctx = w->ctx;
}

/* size bytes that begin at a cache line, w->memory */
static char *hold(bench_work *w, size_t size) {
  w->memory = malloc(size + 64);
  return w->memory ? (char *)w->memory + (64 - ((uintptr_t)w->memory & 63)) % 64 : NULL;
}

static void fill_bf16(uint16_t *x, mhk_index n) {
  mhk_index i;
  for (i = 0; i < n; i++) {
    const float number = (float)draw();
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    x[i] = (uint16_t)(bits >> 16);
  }
}

/* weights (n,k) that want no gradient, in copies behind each other */
static int freeze(bench_work *w, mhk_index n, mhk_index k, mhk_dtype dtype, int copies) {
  const size_t size = mhk_dtype_bytes(dtype), each = (size_t)(n * k) * size;
  char *first = hold(w, each * (size_t)copies);
  int c;
  w->copies = copies;
  if (!first) return 0;
  if (dtype == MHK_BF16) {
    fill_bf16((uint16_t *)(void *)first, n * k);
  } else {
    fill((mhk_real *)(void *)first, n * k);
  }
  for (c = 0; c < copies; c++) {
    if (c > 0) memcpy(first + (size_t)c * each, first, each);
    describe(w, &w->frozen[c], first + (size_t)c * each, n, k, dtype);
  }
  return 1;
}

static int cotangent(bench_work *w, mhk_index n) {
  w->cotangent = (mhk_real *)malloc((size_t)n * sizeof(mhk_real));
  fill(w->cotangent, n);
  return w->cotangent != NULL;
}

static int tokens(bench_work *w, mhk_index n, int vocabulary) {
  mhk_index i;
  w->tokens = (int32_t *)malloc((size_t)n * sizeof *w->tokens);
  if (w->tokens)
    for (i = 0; i < n; i++) w->tokens[i] = (int32_t)((draw() + 0.5) * vocabulary) % vocabulary;
  return w->tokens != NULL;
}

static mhk_model *model(bench_work *w, int attention, int layers, int width, int heads, int mlp, int vocabulary) {
  mhk_config c;
  int l;
  if (mhk_config_preset(w->ctx, attention ? "phi-1.5" : "phi-mamba-1.5b", &c) != MHK_OK) return NULL;
  c.n_layer = layers;
  c.d_model = width;
  c.d_mlp = mlp;
  c.vocab_size = vocabulary;
  for (l = layers; l < MHK_MAX_LAYERS; l++) c.mixer[l] = 0;
  if (attention) {
    c.n_head = c.n_kv_head = heads;
    c.head_dim = width / heads;
    c.rotary_dim = c.head_dim / 2;
  } else {
    c.ssm_heads = c.ssm_groups = heads;
    c.ssm_head_dim = width / heads;
    c.d_state = 64;
    c.gates = w->c.gates;
    c.window = w->c.window;
  }
  return mhk_model_create(w->ctx, &c, 1);
}

static int prepare_linear(bench_work *w) {
  const bench_case *c = &w->c;
  mhk_index shape[2];
  input(w, 0, 2, c->m, c->k, 1, 1);
  if (c->back == 1) mhk_require_grad(w->tape, w->in[0]);
  if (c->back == 2) {
    shape[0] = c->n;
    shape[1] = c->k;
    w->in[1] = mhk_parameter(w->ctx, "weight", 2, shape, NULL);
    if (w->in[1]) fill(mhk_data(w->in[1]), w->in[1]->count);
  } else {
    if (!freeze(w, c->n, c->k, MHK_REAL, 1)) return 0;
    w->in[1] = &w->frozen[0];
  }
  return cotangent(w, c->m * c->n);
}

static int prepare_core(bench_work *w) {
  const mhk_index T = w->c.m;
  int i, n = w->c.wide ? 3 : 4;
  input(w, 0, 4, 1, T, HEADS, HEAD);
  if (w->c.wide) {
    input(w, 1, 4, 1, T, HEADS, HEAD);
  } else {
    mhk_tensor *a = input(w, 1, 3, 1, T, HEADS, 1);
    mhk_index j;
    if (a)
      for (j = 0; j < a->count; j++) mhk_data(a)[j] = (mhk_real)-log1p(exp(3 * (double)mhk_data(a)[j]));
  }
  input(w, 2, 4, 1, T, HEADS, HEAD);
  if (!w->c.wide) input(w, 3, 4, 1, T, HEADS, HEAD);
  if (!w->c.back) return 1;
  for (i = 0; i < n; i++) mhk_require_grad(w->tape, w->in[i]);
  return cotangent(w, T * HEADS * HEAD);
}

/* The head comes first and is random; the layers are copies of its beginning. */
static int prepare_decode(bench_work *w) {
  const mhk_dtype type = w->c.type;
  const int kinds = CLI_COUNT_OF(decode_shapes), head = kinds - 1;
  size_t part[3], whole = 0;
  char *at, *first;
  int i;
  input(w, 0, 2, 1, 2048, 1, 1);
  input(w, 1, 2, 1, 8192, 1, 1);
  w->copies = LAYERS_HELD * (kinds - 1) + 1;
  for (i = 0; i < w->copies; i++) {
    decode_bytes(type, i ? (i - 1) % (kinds - 1) : head, part);
    whole += part[0] + part[1] + part[2];
  }
  first = at = hold(w, whole);
  if (!at) return 0;
  for (i = 0; i < w->copies; i++) {
    const int shape = i ? (i - 1) % (kinds - 1) : head;
    mhk_quantized *q = &w->quantized[i];
    decode_bytes(type, shape, part);
    describe(w, &w->frozen[i], at, decode_shapes[shape].n, decode_shapes[shape].k, type);
    if (i > 0) {
      memcpy(at, first, part[0]);
    } else if (type == MHK_BF16) {
      fill_bf16((uint16_t *)(void *)at, w->frozen[i].count);
    } else if (type == MHK_REAL) {
      fill((mhk_real *)(void *)at, w->frozen[i].count);
    } else {
      size_t j;
      for (j = 0; j < part[0]; j++) at[j] = (char)(unsigned char)((draw() + 0.5) * 256);
    }
    if (part[1] > 0) {
      uint16_t *scale = (uint16_t *)(void *)(at + part[0]);
      size_t j;
      for (j = 0; j < part[1] / 2; j++) scale[j] = (uint16_t)(0x1C00 + j % 1024); /* from 2^-8 */
      fill((mhk_real *)(void *)(at + part[0] + part[1]), (mhk_index)(part[2] / sizeof(mhk_real)));
      q->q = at;
      q->scale = scale;
      q->rest = part[2] ? (const mhk_real *)(const void *)(at + part[0] + part[1]) : NULL;
      q->rows = decode_shapes[shape].n - (q->rest ? decode_shapes[shape].rest : 0);
      q->group = GROUP(type);
      w->frozen[i].quantized = q;
    }
    at += part[0] + part[1] + part[2];
  }
  return 1;
}

/* of distill_tiny, or of one update */
static int prepare_distill(bench_work *w) {
  mhk_distill_desc d;
  w->teacher = w->c.kind == BENCH_UPDATE ? model(w, 1, 8, 256, 8, 1024, 4096) : cli_load(w->ctx, w->c.model);
  if (!w->teacher || !tokens(w, 8 * 256, mhk_model_config(w->teacher)->vocab_size)) return 0;
  memset(&d, 0, sizeof d);
  d.teacher = w->teacher;
  d.stages[0].tokens = 500000;
  d.stages[1].tokens = 1000000;
  d.stages[2].tokens = 1500000;
  w->trainer = mhk_distill(w->ctx, &d);
  return 1;
}

static int prepare_prefill(bench_work *w) {
  w->student = model(w, 0, LAYERS_FED, HEADS * HEAD, HEADS, 8192, 64);
  if (!w->c.wide) w->student = mhk_quantize(w->student, NULL);
  return tokens(w, w->c.m, 64);
}

/* inputs, weights and models of a case; 0 after an error */
static int prepare(bench_work *w) {
  const bench_case *c = &w->c;
  mhk_student_desc s;
  switch (c->kind) {
    case BENCH_LINEAR: return prepare_linear(w);
    case BENCH_MATMUL:
      input(w, 0, 3, c->m, c->n, c->n, 1);
      input(w, 1, 3, c->m, c->n, c->n, 1);
      return 1;
    case BENCH_GEMV:
      input(w, 0, 2, 1, c->k, 1, 1);
      return freeze(w, c->n, c->k, c->wide ? MHK_REAL : MHK_BF16, (int)fmin(MAX_COPIES, COLD_BYTES / c->bytes));
    case BENCH_DECODE: return prepare_decode(w);
    case BENCH_CORE: return prepare_core(w);
    case BENCH_MIXER:
      w->student = model(w, c->wide, 1, HEADS * HEAD, HEADS, 64, 64);
      input(w, 0, 3, 1, c->m, HEADS * HEAD, 1);
      if (c->back) mhk_require_grad(w->tape, w->in[0]);
      return cotangent(w, c->m * HEADS * HEAD);
    case BENCH_PREFILL: return prepare_prefill(w);
    case BENCH_START: return 1;
    case BENCH_TOKENS:
      w->student = model(w, 0, 6, 256, 8, 1024, 4096);
      return tokens(w, c->m, 4096);
    case BENCH_STEP:
      w->student = model(w, c->wide, 6, 256, 8, 1024, 4096);
      if (w->student)
        w->moments = (mhk_real *)calloc((size_t)(2 * mhk_config_parameters(mhk_model_config(w->student))) + 65536,
                                        sizeof(mhk_real));
      return w->moments && tokens(w, 2 * 4 * 512, 4096);
    case BENCH_STAGE1:
      w->teacher = model(w, 1, 1, HEADS * HEAD, HEADS, 64, 64);
      memset(&s, 0, sizeof s);
      s.d_state = 64;
      s.rotary_dim = -1;
      w->student = mhk_student_create(w->ctx, w->teacher, &s);
      return tokens(w, c->m, 64);
    case BENCH_UPDATE:
    case BENCH_DISTILL: return prepare_distill(w);
    case BENCH_MODEL:
      w->teacher = cli_load(w->ctx, w->c.model);
      w->student = mhk_student_create(w->ctx, w->teacher, NULL);
      if (c->m == 4) w->student = mhk_quantize(w->student, NULL);
      return w->teacher && tokens(w, 8 * 256, mhk_model_config(w->teacher)->vocab_size);
  }
  return 0;
}

bench_work *bench_open(const bench_case *c, int threads, mhk_isa isa) {
  bench_work *w = (bench_work *)calloc(1, sizeof *w);
  mhk_context_desc desc;
  if (!w) {
    cli_error("out of memory");
    return NULL;
  }
  memset(&desc, 0, sizeof desc);
  desc.threads = threads;
  desc.isa = isa;
  desc.precision = c->narrow ? MHK_PRECISION_BF16 : MHK_PRECISION_FULL;
  draw_state = 1;
  w->c = *c;
  w->isa = isa;
  w->ctx = mhk_create(&desc);
  w->tape = mhk_tape_create(w->ctx);
  if (!prepare(w) || mhk_failed(w->ctx)) {
    if (mhk_failed(w->ctx)) {
      cli_error("%s: %s", c->name, mhk_message(w->ctx));
    } else {
      cli_error("%s: out of memory", c->name);
    }
    bench_close(w);
    return NULL;
  }
  w->start = mhk_tape_here(w->tape);
  w->base = mhk_memory_in_use(w->ctx);
  return w;
}

void bench_close(bench_work *w) {
  if (!w) return;
  mhk_destroy(w->ctx);
  free(w->memory);
  free(w->cotangent);
  free(w->tokens);
  free(w->moments);
  free(w);
}

int bench_threads(bench_work *w, int threads) {
  const int before = mhk_threads(w->ctx);
  mhk_set_threads(w->ctx, threads);
  if (mhk_threads(w->ctx) != before) { /* a session has memory for the threads there were when it was made */
    mhk_session_destroy(w->session);
    w->session = NULL;
  }
  return mhk_threads(w->ctx);
}

const char *bench_isa(const bench_work *w) { return mhk_isa_name(w->ctx); }

const char *bench_unit(const bench_work *w) {
  const char *unit = mhk_bf16_name(w->ctx);
  if (!w->c.narrow || strcmp(unit, "plain") == 0) return mhk_isa_name(w->ctx);
  return strcmp(unit, "amx") == 0 ? "bf16-amx" : "bf16-avx512";
}

double bench_memory(const bench_work *w) {
  const size_t peak = mhk_memory_peak(w->ctx);
  return peak > w->base ? (double)(peak - w->base) : 0;
}

/* ---------------------------------------------------------------- one repetition */

/* AdamW over a model's parameters, gradients zeroed on the way */
static void adamw(bench_work *w) {
  mhk_tensor *x[MAX_TENSORS];
  mhk_adamw_desc d;
  const int n = mhk_model_count(w->student);
  int i;
  for (i = 0; i < n && i < MAX_TENSORS; i++) x[i] = mhk_model_at(w->student, i);
  memset(&d, 0, sizeof d);
  d.lr = 1e-4;
  d.beta2 = 0.95;
  d.weight_decay = 0.1;
  mhk_adamw(w->ctx, i, x, w->moments, ++w->updates, &d);
}

static double run_linear(bench_work *w) {
  double start = cli_clock();
  mhk_tensor *y;
  mhk_tape_record(w->tape, w->c.back != 0);
  y = mhk_linear(w->tape, w->in[0], w->in[1], NULL);
  if (w->c.back) {
    start = cli_clock();
    mhk_backward_from(w->tape, y, w->cotangent);
  }
  return cli_clock() - start;
}

static double run_gemv(bench_work *w) {
  double start = cli_clock();
  int i;
  mhk_tape_record(w->tape, 0);
  for (i = 0; i < w->copies; i++) {
    mhk_linear(w->tape, w->in[0], &w->frozen[i], NULL);
    mhk_tape_rewind(w->tape, w->start);
  }
  return (cli_clock() - start) / w->copies;
}

static double run_decode(bench_work *w) {
  const int kinds = CLI_COUNT_OF(decode_shapes) - 1;
  double start = cli_clock();
  int i;
  mhk_tape_record(w->tape, 0);
  for (i = 0; i <= LAYERS * kinds; i++) {
    mhk_tensor *matrix = &w->frozen[i < LAYERS * kinds ? 1 + i % (LAYERS_HELD * kinds) : 0];
    mhk_linear(w->tape, w->in[matrix->shape[1] == 8192], matrix, NULL);
    mhk_tape_rewind(w->tape, w->start);
  }
  return cli_clock() - start;
}

static double run_layer(bench_work *w) {
  double start = cli_clock();
  mhk_tensor *y;
  mhk_tape_record(w->tape, w->c.back);
  if (w->c.kind == BENCH_MATMUL) {
    y = mhk_matmul(w->tape, w->in[0], w->in[1], 0);
  } else if (w->c.kind == BENCH_MIXER) {
    y = mhk_forward_mixer(w->tape, w->student, 0, w->in[0], NULL);
  } else if (w->c.wide) {
    y = mhk_attention(w->tape, w->in[0], w->in[1], w->in[2], NULL);
  } else {
    y = mhk_ssd(w->tape, w->in[0], w->in[1], w->in[2], w->in[3], NULL);
  }
  if (w->c.back) mhk_backward_from(w->tape, y, w->cotangent);
  return cli_clock() - start;
}

static double run_step(bench_work *w) {
  double start = cli_clock();
  mhk_tensor *logits = mhk_forward(w->tape, w->student, w->tokens, 4, 512, NULL);
  mhk_backward(w->tape, mhk_cross_entropy(w->tape, logits, w->tokens + 4 * 512));
  adamw(w);
  return cli_clock() - start;
}

static double run_update(bench_work *w, int stage) {
  double start = cli_clock();
  mhk_train_on(w->trainer, stage, w->tokens, 8, 256, NULL, 1e-4);
  return cli_clock() - start;
}

/* all updates of 0.5 + 1 + 1.5 M tokens, as long as one of each stage times their number */
static double run_distill(bench_work *w) {
  static const double tokens_of[] = {0.5e6, 1e6, 1.5e6};
  double seconds = 0;
  int stage;
  for (stage = 1; stage <= 3; stage++) seconds += run_update(w, stage) * floor(tokens_of[stage - 1] / (8 * 256));
  return seconds;
}

/* 0 and 1: logits of 8 x 256 tokens by teacher and student; 2 and 3: 128 tokens one by one; 4: by
   the student in int8 */
static double run_model(bench_work *w) {
  mhk_model *m = w->c.m == 0 || w->c.m == 2 ? w->teacher : w->student;
  double start = cli_clock();
  mhk_session_desc desc;
  mhk_session *session;
  mhk_index i;
  mhk_tape_record(w->tape, 0);
  if (w->c.m < 2) {
    mhk_forward(w->tape, m, w->tokens, 8, 256, NULL);
    return cli_clock() - start;
  }
  memset(&desc, 0, sizeof desc);
  desc.capacity = 256;
  session = mhk_session_create(m, &desc);
  start = cli_clock();
  for (i = 0; i < 128; i++) mhk_feed(session, w->tokens + i, 1);
  start = cli_clock() - start;
  mhk_session_destroy(session);
  return start;
}

static double run_tokens(bench_work *w) {
  double start;
  mhk_index i;
  if (!w->session) w->session = mhk_session_create(w->student, NULL);
  mhk_session_reset(w->session, MHK_ALL);
  start = cli_clock();
  for (i = 0; i < w->c.m; i++) mhk_feed(w->session, w->tokens + i, 1);
  return cli_clock() - start;
}

static double run_prefill(bench_work *w) {
  double start;
  if (!w->session) w->session = mhk_session_create(w->student, NULL);
  mhk_session_reset(w->session, MHK_ALL);
  start = cli_clock();
  mhk_feed(w->session, w->tokens, w->c.m);
  return (cli_clock() - start) * LAYERS / LAYERS_FED;
}

/* in a context of its own, as a program does it; what the system does to start a process is not in
   it */
static double run_start(bench_work *w) {
  mhk_context_desc d;
  double start = cli_clock();
  mhk_context *ctx;
  mhk_session *s;
  memset(&d, 0, sizeof d);
  d.threads = mhk_threads(w->ctx);
  d.isa = w->isa;
  ctx = mhk_create(&d);
  s = mhk_session_create(cli_load(ctx, w->c.model), NULL);
  mhk_feed_text(s, "x");
  start = cli_clock() - start; /* its logits are there; choosing a token feeds it, which is the next token's time */
  if (mhk_failed(ctx)) mhk_fail(w->ctx, mhk_error(ctx), "%s", mhk_message(ctx));
  mhk_destroy(ctx);
  return start;
}

double bench_run(bench_work *w) {
  double seconds = 0, start;
  mhk_tape_rewind(w->tape, w->start);
  switch (w->c.kind) {
    case BENCH_LINEAR: seconds = run_linear(w); break;
    case BENCH_GEMV: seconds = run_gemv(w); break;
    case BENCH_DECODE: seconds = run_decode(w); break;
    case BENCH_MATMUL:
    case BENCH_CORE:
    case BENCH_MIXER: seconds = run_layer(w); break;
    case BENCH_PREFILL: seconds = run_prefill(w); break;
    case BENCH_START: seconds = run_start(w); break;
    case BENCH_TOKENS: seconds = run_tokens(w); break;
    case BENCH_STEP: seconds = run_step(w); break;
    case BENCH_STAGE1:
      start = cli_clock();
      mhk_stage_loss(w->tape, &(mhk_stage_loss_desc){w->student, w->teacher, 1, w->tokens, 1, w->c.m, NULL, NULL, NULL,
                                                     NULL});
      seconds = cli_clock() - start;
      break;
    case BENCH_DISTILL: seconds = run_distill(w); break;
    case BENCH_UPDATE: seconds = run_update(w, (int)w->c.m); break;
    case BENCH_MODEL: seconds = run_model(w); break;
  }
  mhk_tape_rewind(w->tape, w->start);
  if (!mhk_failed(w->ctx)) return seconds;
  cli_error("%s: %s", w->c.name, mhk_message(w->ctx));
  return -1;
}
