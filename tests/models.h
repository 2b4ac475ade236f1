/* Small models of every kind, for tests. Sizes are odd where they may be. */
#ifndef TEST_MODELS_H
#define TEST_MODELS_H
#include "test.h"

enum {
  PHI,
  PHI_GROUPED,
  PHI_MAMBA,
  PHI_MAMBA_ROTARY,
  HYBRID,
  MAMBA2,
  MAMBA2_BIASES,
#ifdef MHK_WINDOW_ALL /* bits.c compiles with headers that had no such heads */
  GATED,
  WINDOWED,
  WINDOWS_BY_HEAD,
  KEPT_HEADS,
#endif
#ifndef TEST_NO_LLAMA /* the same for this family */
  LLAMA,
  QWEN3,
  MISTRAL,
  LLAMA_MAMBA,
#endif
  MODEL_KINDS
};

static inline const char *model_kind_name(int kind) {
  static const char *const names[] = {"phi",    "phi, grouped heads",       "phi-mamba", "phi-mamba, rotary", "hybrid",
                                      "mamba2", "mamba2, groups and biases",
                                      "gated",  "windowed, gated",          "windows by head", "kept heads, hybrid",
                                      "llama, biases, scaled", "qwen3, scaled", "mistral", "llama-mamba, windowed"};
  return names[kind];
}

#ifdef MHK_WINDOW_ALL
/* What the heads of a student have beyond the paper's: every option alone and beside others,
   windows of 0, 1 and more tokens than any test has, fewer groups of B and C than heads, states
   narrower and wider than a head. */
static inline void model_options(mhk_config *c, int kind) {
  static const int32_t windows[] = {0, 9, 1, 4, 1000, 16},
                       kept[] = {5, MHK_WINDOW_ALL, 0, 0, 0, 0, MHK_WINDOW_ALL, 3, MHK_WINDOW_ALL};
  c->proj_bias = kind != WINDOWS_BY_HEAD;
  c->gates = kind == GATED || kind == WINDOWED;
  c->window = kind == WINDOWED ? 7 : 0;
  c->windows = kind == WINDOWS_BY_HEAD ? windows : kind == KEPT_HEADS ? kept : NULL;
  if (kind == GATED || kind == KEPT_HEADS) c->ssm_groups = 1;
  c->d_state = kind == GATED ? 13 : kind == WINDOWED ? 8 : kind == WINDOWS_BY_HEAD ? 6 : 11;
  if (kind == GATED) return;
  c->ssm_rotary_dim = 4;
  c->rope_theta = 10000;
}
#endif

#ifndef TEST_NO_LLAMA
/* What the Llama family has beyond a Phi, each somewhere: biases, both scalings of rotary
   frequencies, norms of queries and keys, heads that do not make up d_model, a window shorter than
   the tests' texts, and a student with all that the student of a Phi has. */
static inline mhk_config llama_config(int kind) {
  mhk_config c;
  int l;
  memset(&c, 0, sizeof c);
  c.arch = kind == LLAMA_MAMBA ? MHK_ARCH_LLAMA_MAMBA : MHK_ARCH_LLAMA;
  c.n_layer = kind == LLAMA_MAMBA ? 3 : 2;
  c.d_model = 24;
  c.vocab_size = 31;
  c.norm_eps = 1e-5;
  c.max_position = 512;
  c.d_mlp = 53;
  c.n_head = 4;
  c.n_kv_head = 2;
  c.head_dim = c.rotary_dim = kind == QWEN3 ? 10 : 6;
  c.rope_theta = 10000;
  c.tie_embeddings = kind == QWEN3 || kind == LLAMA_MAMBA;
  c.qk_layernorm = kind == QWEN3;
  c.qkv_bias = c.out_bias = c.mlp_bias = kind == LLAMA;
  c.attention_window = kind == MISTRAL ? 5 : 0;
  if (kind == LLAMA || kind == LLAMA_MAMBA) {
    c.rope = MHK_ROPE_LLAMA3;
    c.rope_low = 1;
    c.rope_high = 4;
    c.rope_original = 32;
  } else if (kind == QWEN3)
    c.rope = MHK_ROPE_LINEAR;
  c.rope_factor = c.rope ? 2.5 : 0;
  for (l = 0; l < c.n_layer; l++) c.mixer[l] = MHK_MIXER_ATTENTION;
  if (kind != LLAMA_MAMBA) return c;
  c.qkv_bias = 1;
  c.mixer[0] = c.mixer[2] = MHK_MIXER_DISCRETE_MAMBA2;
  c.ssm_heads = 4;
  c.ssm_groups = 2;
  c.ssm_head_dim = c.d_state = c.ssm_rotary_dim = 6;
  c.d_conv = 4;
  c.chunk_size = 16;
  c.conv_bias = c.proj_bias = c.gates = 1;
  c.window = 7;
  c.pad_vocab_multiple = 1;
  return c;
}
#endif

/* A small configuration of a kind: two or three layers, 24 wide, 31 tokens. */
static inline mhk_config model_config(int kind) {
  mhk_config c;
  int l, mamba2 = kind == MAMBA2 || kind == MAMBA2_BIASES, hybrid = kind == HYBRID;
#ifdef MHK_WINDOW_ALL
  hybrid |= kind == KEPT_HEADS;
#endif
#ifndef TEST_NO_LLAMA
  if (kind >= LLAMA) return llama_config(kind);
#endif
  memset(&c, 0, sizeof c);
  c.n_layer = hybrid ? 3 : 2;
  c.d_model = 24;
  c.vocab_size = 31;
  c.norm_eps = 1e-5;
  c.max_position = 512;
  if (kind == PHI || kind == PHI_GROUPED || hybrid) {
    c.n_head = kind == PHI_GROUPED ? 4 : 3;
    c.n_kv_head = kind == PHI_GROUPED ? 2 : 3;
    c.head_dim = c.d_model / c.n_head;
    c.rotary_dim = kind == PHI_GROUPED ? 2 : 4;
    c.qk_layernorm = kind == PHI_GROUPED;
    c.rope_theta = 10000;
  }
  if (!mamba2) c.d_mlp = kind == PHI_GROUPED ? 53 : 4 * c.d_model;
  if (kind == PHI || kind == PHI_GROUPED)
    c.arch = MHK_ARCH_PHI;
  else if (!mamba2) {
    c.arch = MHK_ARCH_PHI_MAMBA;
    c.ssm_heads = 3;
    c.ssm_groups = kind == PHI_MAMBA ? 1 : 3;
    c.ssm_head_dim = 8;
    c.d_state = kind == PHI_MAMBA ? 5 : 6;
    c.d_conv = 4;
    c.chunk_size = 16;
    c.conv_bias = 1;
    c.pad_vocab_multiple = 1;
    if (kind == PHI_MAMBA_ROTARY) {
      c.ssm_rotary_dim = 4;
      c.rope_theta = 10000;
    }
#ifdef MHK_WINDOW_ALL
    if (kind >= GATED) model_options(&c, kind);
#endif
  } else {
    c.arch = MHK_ARCH_MAMBA2;
    c.tie_embeddings = kind == MAMBA2;
    c.ssm_heads = 6;
    c.ssm_groups = kind == MAMBA2 ? 1 : 2;
    c.ssm_head_dim = 8;
    c.d_state = 5;
    c.d_conv = 4;
    c.chunk_size = 16;
    c.conv_silu = 1;
    c.conv_bias = 1;
    c.proj_bias = kind == MAMBA2_BIASES;
  }
  for (l = 0; l < c.n_layer; l++)
    c.mixer[l] = (unsigned char)(c.arch == MHK_ARCH_PHI || (hybrid && l == 1) ? MHK_MIXER_ATTENTION
                                 : mamba2                                     ? MHK_MIXER_MAMBA2
                                                                              : MHK_MIXER_DISCRETE_MAMBA2);
  return c;
}

/* A trainable model whose biases and norms are not at their neutral values. */
static inline mhk_model *model_from(mhk_context *ctx, const mhk_config *c, uint64_t seed) {
  mhk_model *m = mhk_model_create(ctx, c, seed);
  int i;
  for (i = 0; i < mhk_model_count(m); i++) {
    mhk_tensor *x = mhk_model_at(m, i);
    mhk_index j;
    uint64_t s = seed * 1000 + (uint64_t)i;
    for (j = 0; j < x->count; j++) mhk_data(x)[j] += (mhk_real)(float)test_uniform(&s, -0.2, 0.2);
  }
  return m;
}

static inline mhk_model *model_new(mhk_context *ctx, int kind, uint64_t seed) {
  const mhk_config c = model_config(kind);
  return model_from(ctx, &c, seed);
}

static inline void model_tokens(int32_t *tokens, mhk_index n, int vocabulary, uint64_t seed) {
  mhk_index i;
  for (i = 0; i < n; i++) tokens[i] = (int32_t)(test_random(&seed) % (uint64_t)vocabulary);
}

static inline void model_zero_grads(mhk_model *m) {
  int i;
  for (i = 0; i < mhk_model_count(m); i++) mhk_zero_grad(mhk_model_at(m, i));
}

/* all weights, or all gradients (zeros where there are none), one after another; the caller frees
   them */
static inline mhk_real *model_numbers(const mhk_model *m, int gradients, mhk_index *count) {
  mhk_index n = 0;
  mhk_real *v;
  int i;
  for (i = 0; i < mhk_model_count(m); i++) n += mhk_model_at(m, i)->count;
  v = (mhk_real *)calloc((size_t)n + 1, sizeof *v);
  *count = n;
  for (i = 0, n = 0; i < mhk_model_count(m); i++) {
    const mhk_tensor *x = mhk_model_at(m, i);
    if (!gradients)
      mhk_tensor_read(x, 0, x->count, v + n);
    else if (x->grad)
      memcpy(v + n, x->grad, sizeof *v * (size_t)x->count);
    n += x->count;
  }
  return v;
}
#endif
