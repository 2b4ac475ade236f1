/* mohawk convert: a model in any layout that is read, written as safetensors. */
#include "cli.h"
#include <string.h>

typedef struct settings {
  const char *model, *out, *tokenizer;
  int dtype, no_tokenizer;
} settings;

static const mhk_dtype types[] = {MHK_F32, MHK_F16, MHK_BF16};

static int parse(settings *s, int argc, char **argv) {
  const cli_option options[] = {
      {"model", "PATH", CLI_TEXT, &s->model, 0, 0, "a model's folder, or one file beside its config.json (required)"},
      {"out", "PATH", CLI_TEXT, &s->out, 0, 0,
       "a folder; or, when it ends in .safetensors, one file that holds weights, configuration and tokenizer "
       "(required)"},
      {"dtype", "f32|f16|bf16", CLI_CHOICE, &s->dtype, 0, 0,
       "how weights are stored (default: as they are in the model)"},
      {"tokenizer", "PATH", CLI_TEXT, &s->tokenizer, 0, 0,
       "put in the tokenizer of this folder, when the model comes without"},
      {"no-tokenizer", NULL, CLI_FLAG, &s->no_tokenizer, 0, 0, "write none, whatever lies beside the model"},
      CLI_STRICT,
  };
  const cli_command c = {
      "convert",
      "--model PATH --out PATH [--dtype f32|f16|bf16]",
      "Writes a model as safetensors, whatever layout it comes in: the authors' pytorch_model.bin (or "
      "shards of it), safetensors in one file or in shards, config.json as Hugging Face's library or as "
      "the authors write it.",
      "mohawk convert --model phi-mamba/ --tokenizer phi-1_5/ --out phi-mamba.safetensors",
      options,
      CLI_COUNT_OF(options),
      NULL};
  int code = cli_parse(&c, argc, argv);
  if (code == CLI_GO && !s->model) code = cli_missing(&c, "--model PATH");
  if (code == CLI_GO && !s->out) code = cli_missing(&c, "--out PATH");
  return code;
}

/* the type of the largest weight, among those that can be written */
static mhk_dtype stored_type(const mhk_model *m) {
  const mhk_tensor *largest = mhk_model_at(m, 0);
  int i;
  for (i = 1; i < mhk_model_count(m); i++)
    if (mhk_model_at(m, i)->count > largest->count) largest = mhk_model_at(m, i);
  return largest->dtype == MHK_F16 || largest->dtype == MHK_BF16 || largest->quantized ? largest->dtype : MHK_F32;
}

static int convert(mhk_context *ctx, const settings *s) {
  mhk_model *m = cli_load(ctx, s->model);
  mhk_dtype dtype;
  double parameters = 0;
  cli_buffer count;
  int i;
  if (!m) return cli_context_error(ctx);
  if (s->tokenizer && mhk_model_set_tokenizer(m, mhk_tokenizer_load(ctx, s->tokenizer)) != MHK_OK)
    return cli_context_error(ctx);
  if (s->no_tokenizer) mhk_model_set_tokenizer(m, NULL);
  if (!s->no_tokenizer && cli_keeps_tokenizer(m, s->out) != CLI_GO) return CLI_FAILED;
  dtype = s->dtype < 0 ? stored_type(m) : types[s->dtype];
  if (mhk_save(m, s->out, dtype) != MHK_OK) return cli_context_error(ctx);
  for (i = 0; i < mhk_model_count(m); i++) parameters += (double)mhk_model_at(m, i)->count;
  printf("saved     %s: %s parameters, %s%s\n", s->out, cli_count(parameters, &count), mhk_dtype_name(dtype),
         mhk_model_tokenizer(m) ? ", with its tokenizer" : ", without a tokenizer");
  return CLI_OK;
}

int command_convert(int argc, char **argv) {
  settings s;
  mhk_context *ctx;
  int code;
  memset(&s, 0, sizeof s);
  s.dtype = -1;
  code = parse(&s, argc, argv);
  if (code != CLI_GO) return code;
  ctx = cli_context(1);
  code = ctx ? convert(ctx, &s) : CLI_FAILED;
  mhk_destroy(ctx);
  return code;
}
