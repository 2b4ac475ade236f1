/* Small models for the comparisons with PyTorch. write_models [FOLDER]: writes one of each kind
   with its tokens and logits, FOLDER/NAME/config.json, model.safetensors and logits.safetensors,
   for interop.py. write_models --read FOLDER...: reads the model and tokens.safetensors of each
   folder; its logits go to mohawk.safetensors, the model to again/, and the gradients of the loss
   of next tokens to gradients.safetensors, for test_random_models.py. */
#include "models.h"
#include "foreign.h"

/* tokens and logits (B,T,V) of a model as a file */
static void write_logits(mhk_context *ctx, mhk_tape *t, mhk_model *m, const int32_t *tokens, mhk_index B, mhk_index T,
                         const char *path) {
  mhk_tensor *logits = mhk_forward(t, m, tokens, B, T, NULL);
  mhk_stored out[2];
  float *single;
  mhk_index i;
  if (!logits) return;
  single = (float *)malloc((size_t)logits->count * sizeof *single);
  if (!single) return;
  for (i = 0; i < logits->count; i++) single[i] = (float)mhk_data(logits)[i];
  memset(out, 0, sizeof out);
  out[0].name = "logits";
  out[0].dtype = MHK_F32;
  out[0].rank = 3;
  out[0].shape[0] = B, out[0].shape[1] = T, out[0].shape[2] = logits->count / (B * T);
  out[0].count = logits->count;
  out[0].data = single;
  out[0].bytes = (size_t)logits->count * sizeof *single;
  out[1].name = "tokens";
  out[1].dtype = MHK_I32;
  out[1].rank = 2;
  out[1].shape[0] = B, out[1].shape[1] = T;
  out[1].count = B * T;
  out[1].data = tokens;
  out[1].bytes = (size_t)(B * T) * sizeof *tokens;
  mhk_file_write(ctx, path, 2, out, 0, NULL);
  free(single);
  mhk_tape_reset(t);
}

/* the gradients of all parameters, of the mean cross-entropy of next tokens */
static void write_gradients(mhk_context *ctx, mhk_tape *t, mhk_model *m, const int32_t *tokens, mhk_index B,
                            mhk_index T, const char *path) {
  int32_t labels[1024];
  const int n = mhk_model_count(m);
  int k = 0;
  mhk_stored *out = (mhk_stored *)calloc((size_t)n, sizeof *out);
  if (!out || T < 2 || mhk_model_make_trainable(m) != MHK_OK) {
    free(out);
    return;
  }
  for (mhk_index i = 0; i < B * T; i++) labels[i] = i % T == T - 1 ? -1 : tokens[i + 1];
  mhk_tape_record(t, 1);
  mhk_backward(t, mhk_cross_entropy(t, mhk_forward(t, m, tokens, B, T, NULL), labels));
  for (int i = 0; i < n && !mhk_failed(ctx); i++) {
    const mhk_tensor *x = mhk_model_at(m, i);
    if (!x->grad) continue;
    out[k].name = x->name;
    out[k].dtype = MHK_F32;
    out[k].rank = x->rank;
    memcpy(out[k].shape, x->shape, sizeof x->shape);
    out[k].count = x->count;
    out[k].data = x->grad;
    out[k++].bytes = (size_t)x->count * sizeof(float);
  }
  mhk_file_write(ctx, path, k, out, 0, NULL);
  mhk_tape_record(t, 0);
  mhk_tape_reset(t);
  free(out);
}

static void read_one(mhk_context *ctx, mhk_tape *t, const char *folder) {
  char path[1024];
  int32_t tokens[1024];
  mhk_model *m = foreign_load(ctx, folder, NULL);
  const mhk_stored *x;
  mhk_file *f;
  snprintf(path, sizeof path, "%s/tokens.safetensors", folder);
  f = mhk_file_open(ctx, path);
  x = mhk_file_find(f, "tokens");
  if (m && x && x->rank == 2 && x->count <= 1024 && mhk_file_read_i32(ctx, x, tokens) == MHK_OK) {
    snprintf(path, sizeof path, "%s/mohawk.safetensors", folder);
    write_logits(ctx, t, m, tokens, x->shape[0], x->shape[1], path);
    snprintf(path, sizeof path, "%s/again", folder);
    mhk_save(m, path, MHK_F32);
    snprintf(path, sizeof path, "%s/gradients.safetensors", folder);
    write_gradients(ctx, t, m, tokens, x->shape[0], x->shape[1], path);
  }
  mhk_file_close(f);
  mhk_model_destroy(m);
  if (mhk_failed(ctx)) fprintf(stderr, "%s\n", mhk_message(ctx));
  mhk_clear_error(ctx);
}

int main(int argc, char **argv) {
  static const char *const names[] = {"phi",    "phi_grouped", "phi_mamba",    "phi_mamba_rotary",
                                      "hybrid", "mamba2",      "mamba2_biases", "gated",
                                      "windowed", "windows_by_head", "kept_heads", "llama",
                                      "qwen3",  "mistral",     "llama_mamba",  "qwen2"};
  const char *folder = argc > 1 ? argv[1] : "build/interop";
  mhk_context *ctx = mhk_create(NULL);
  mhk_tape *t = mhk_tape_create(ctx);
  char path[1024];
  int kind, i;
  mhk_tape_record(t, 0);
  if (strcmp(folder, "--read") == 0) {
    for (i = 2; i < argc; i++) read_one(ctx, t, argv[i]);
    mhk_destroy(ctx);
    return 0;
  }
  for (kind = 0; kind <= MODEL_KINDS && !mhk_failed(ctx); kind++) {
    mhk_config c = model_config(kind < MODEL_KINDS ? kind : MISTRAL);
    mhk_model *m;
    if (kind == MODEL_KINDS) c.qkv_bias = 1; /* which makes it a Qwen2 */
    m = model_from(ctx, &c, 11);
    int32_t tokens[2 * 37];
    model_tokens(tokens, 2 * 37, 31, 12);
    snprintf(path, sizeof path, "%s/%s", folder, names[kind]);
    mhk_save(m, path, MHK_F32);
    snprintf(path, sizeof path, "%s/%s/logits.safetensors", folder, names[kind]);
    write_logits(ctx, t, m, tokens, 2, 37, path);
  }
  if (mhk_failed(ctx)) fprintf(stderr, "%s\n", mhk_message(ctx));
  kind = mhk_failed(ctx);
  mhk_destroy(ctx);
  return kind;
}