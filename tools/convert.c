/* mohawk convert: a model in any layout that is read, written as safetensors. */
#include "cli.h"
#include "foreign.h"
#include "gguf.h"
#include <string.h>

typedef struct settings {
  const char *model, *out, *tokenizer;
  int dtype, no_tokenizer;
} settings;

static const mhk_dtype types[] = {MHK_F32, MHK_F16, MHK_BF16};

static const settings defaults = {.dtype = -1};

static const cli_option options[] = {
    {"model", "PATH", CLI_TEXT, CLI_AT(model), 1, 0,
     "a model folder, one file next to its config.json, or a GGUF file (required)"},
    {"out", "PATH", CLI_TEXT, CLI_AT(out), 1, 0,
     "a folder, or a name ending in .safetensors for one file with weights, configuration and tokenizer (required)"},
    {"dtype", "f32|f16|bf16", CLI_CHOICE, CLI_AT(dtype), 0, 0,
     "type of the stored weights (default: as in the model; f32 for quantized weights of GGUF)"},
    {"tokenizer", "PATH", CLI_TEXT, CLI_AT(tokenizer), 0, 0,
     "add the tokenizer of this folder, for a model that has none"},
    {"no-tokenizer", NULL, CLI_FLAG, CLI_AT(no_tokenizer), 0, 0, "write no tokenizer, even if the model has one"},
    CLI_STRICT,
};

/* the type of the largest weight, among those that can be written */
static mhk_dtype stored_type(const mhk_model *m) {
  const mhk_tensor *largest = mhk_model_at(m, 0);
  int i;
  for (i = 1; i < mhk_model_count(m); i++)
    if (mhk_model_at(m, i)->count > largest->count) largest = mhk_model_at(m, i);
  return largest->dtype == MHK_F16 || largest->dtype == MHK_BF16 || largest->quantized ? largest->dtype : MHK_F32;
}

static int convert_model(mhk_context *ctx, const settings *s, mhk_model *m) {
  mhk_dtype dtype;
  double parameters = 0;
  cli_buffer count;
  int i;
  if (!m) return cli_context_error(ctx);
  if (s->tokenizer && mhk_model_set_tokenizer(m, foreign_tokenizer_load(ctx, s->tokenizer)) != MHK_OK)
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

static int put(void *file, const void *data, size_t n) { return fwrite(data, 1, n, (FILE *)file) == n; }
static const char *noted; /* the first note about a GGUF, an error with --strict */
static char first_note[200];
static void note(const char *sentence) {
  if (!noted) noted = strncpy(first_note, sentence, sizeof first_note - 1);
  if (!cli_strict()) cli_warning("%s", sentence);
}

/* What a GGUF file becomes, in a file beside --out that is there only while it is used: memory does
   not grow with the weights, and no one else sees the file. */
static mhk_model *from_gguf(mhk_context *ctx, const settings *s, FILE **scratch, foreign_bytes *bytes) {
  gguf_desc desc;
  mhk_model *m = NULL;
  char folder[1024];
  memset(&desc, 0, sizeof desc);
  foreign_folder_of(folder, sizeof folder, s->out);
  if (folder[0] && cli_make_folders(folder) != CLI_GO) return NULL;
  *scratch = foreign_scratch(ctx, folder);
  desc.name = s->model;
  desc.no_tokenizer = s->no_tokenizer || s->tokenizer;
  desc.put = put;
  desc.user = *scratch;
  desc.note = note;
  if (*scratch && foreign_map(ctx, s->model, &desc.file)) {
    const int good = gguf_unpack(ctx, &desc);
    foreign_unmap(&desc.file);
    if (good && noted && cli_strict()) mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "%s (--strict)", noted);
    if (good && foreign_map_scratch(ctx, *scratch, bytes)) m = mhk_load_memory(ctx, bytes->data, bytes->size);
  }
  return m;
}

static int convert(mhk_context *ctx, void *user) {
  const settings *s = (const settings *)user;
  FILE *scratch = NULL;
  foreign_bytes bytes = {NULL, 0};
  mhk_model *m = foreign_starts(s->model, "GGUF") ? from_gguf(ctx, s, &scratch, &bytes) : cli_load(ctx, s->model);
  const int code = m || mhk_failed(ctx) ? convert_model(ctx, s, m) : CLI_FAILED;
  mhk_model_destroy(m);
  foreign_unmap(&bytes);
  if (scratch) fclose(scratch);
  return code;
}

const cli_command command_convert = {
    .name = "convert",
    .summary = "convert a model to safetensors",
    .synopsis = "--model PATH --out PATH [--dtype f32|f16|bf16]",
    .about =
        "Converts a model to safetensors and tokenizer.json. The input may be pytorch_model.bin or safetensors, in "
        "one file or in shards, with a config.json of Hugging Face's transformers or of the authors, and "
        "vocab.json with merges.txt; or GGUF of the architectures llama (with Mistral and SmolLM2), qwen2 and qwen3, "
        "with weights in F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K or Q6_K.",
    .example = "mohawk convert --model phi-mamba/ --tokenizer phi-1_5/ --out phi-mamba.safetensors",
    CLI_OPTIONS(options),
    CLI_SETTINGS(defaults),
    .body = convert,
};