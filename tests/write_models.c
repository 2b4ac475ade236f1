/* Writes a small model of each kind with its tokens and logits, for tests/interop.py to read with PyTorch: FOLDER/NAME/config.json,
   model.safetensors and logits.safetensors. */
#include "models.h"

int main(int argc, char **argv) {
  static const char *const names[] = {"phi", "phi_grouped", "phi_mamba", "phi_mamba_rotary", "hybrid", "mamba2", "mamba2_biases"};
  const char *folder = argc > 1 ? argv[1] : "build/interop";
  mhk_context *ctx = mhk_create(NULL);
  mhk_tape *t = mhk_tape_create(ctx);
  char path[1024];
  int kind;
  mhk_tape_record(t, 0);
  for (kind = 0; kind < MODEL_KINDS && !mhk_failed(ctx); kind++) {
    mhk_model *m = model_new(ctx, kind, 11);
    int32_t tokens[2 * 37];
    mhk_tensor *logits;
    mhk_file_tensor out[2];
    float single[2 * 37 * 31];
    int i;
    model_tokens(tokens, 2 * 37, 31, 12);
    snprintf(path, sizeof path, "%s/%s", folder, names[kind]);
    mhk_save(m, path, MHK_F32);
    logits = mhk_forward(t, m, tokens, 2, 37, NULL);
    if (!logits) break;
    for (i = 0; i < 2 * 37 * 31; i++) single[i] = (float)mhk_data(logits)[i];
    memset(out, 0, sizeof out);
    out[0].name = "logits";
    out[0].dtype = MHK_F32;
    out[0].rank = 3;
    out[0].shape[0] = 2, out[0].shape[1] = 37, out[0].shape[2] = 31;
    out[0].count = 2 * 37 * 31;
    out[0].data = single;
    out[0].bytes = sizeof single;
    out[1].name = "tokens";
    out[1].dtype = MHK_I32;
    out[1].rank = 2;
    out[1].shape[0] = 2, out[1].shape[1] = 37;
    out[1].count = 2 * 37;
    out[1].data = tokens;
    out[1].bytes = sizeof tokens;
    snprintf(path, sizeof path, "%s/%s/logits.safetensors", folder, names[kind]);
    mhk_file_write(ctx, path, 2, out, 0, NULL);
    mhk_tape_reset(t);
  }
  if (mhk_failed(ctx)) fprintf(stderr, "%s\n", mhk_message(ctx));
  kind = mhk_failed(ctx);
  mhk_destroy(ctx);
  return kind;
}
