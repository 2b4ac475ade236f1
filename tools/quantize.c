/* mohawk quantize: a model with its matrices in 8 or 4 bits, in one file that maps. */
#include "run.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct settings {
  const char *model, *out;
  cli_files text;
  int type, ends, group, threads, encoding, no_tokenizer;
  mhk_index length, windows;
} settings;

static const mhk_dtype types[] = {MHK_Q8, MHK_Q4};

static const settings defaults = {.ends = -1, .length = 256, .windows = 128};

static const cli_option options[] = {
    {"model", "PATH", CLI_TEXT, CLI_AT(model), 1, 0, "the model to quantize: a folder or a file (required)"},
    {"out", "PATH", CLI_TEXT, CLI_AT(out), 1, 0,
     "a name ending in .safetensors for one file with configuration and tokenizer, or a folder (required)"},
    {"type", "int8|int4", CLI_CHOICE, CLI_AT(type), 0, 0, "bits per weight (default int8)"},
    {"ends", "int8|int4", CLI_CHOICE, CLI_AT(ends), 0, 0, "bits per weight of embedding and head (default: as --type)"},
    {"group", "N", CLI_INT, CLI_AT(group), 1, 1e9,
     "neighbors in a row that share a scale: 32 or 64 (default 64 for int8, 32 for int4)"},
    {"text", "FILE...", CLI_FILES, CLI_AT(text), 0, 0,
     "held-out text: measure cross-entropy before and after, and the KL between the two"},
    CLI_ENCODING(CLI_AT(encoding)),
    {"length", "N", CLI_COUNT, CLI_AT(length), 2, 1e7, "tokens per window of the text (default 256)"},
    {"windows", "N", CLI_COUNT, CLI_AT(windows), 0, 1e12,
     "number of windows from the start of the text; 0: all (default 128)"},
    {"threads", "N", CLI_INT, CLI_AT(threads), 1, 4096, "number of threads (default: one per core)"},
    {"no-tokenizer", NULL, CLI_FLAG, CLI_AT(no_tokenizer), 0, 0, "write no tokenizer, even if the model has one"},
    CLI_STRICT,
};

static int check(void *user) {
  const settings *s = (const settings *)user;
  if (s->group == 0 || s->group == 32 || s->group == 64) return CLI_GO;
  cli_error("--group %d: it must be 32 or 64", s->group);
  return CLI_USAGE;
}

/* root of sum (x - y)^2 over sum x^2; negative when there is no memory */
static double relative_error(const mhk_tensor *x, const mhk_tensor *y) {
  const mhk_index K = x->shape[1];
  mhk_real *v = (mhk_real *)malloc(2 * (size_t)K * sizeof *v);
  double off = 0, size = 0;
  mhk_index n, k;
  for (n = 0; v && n < x->shape[0]; n++) {
    mhk_tensor_read(x, n * K, K, v);
    mhk_tensor_read(y, n * K, K, v + K);
    for (k = 0; k < K; k++) {
      off += (double)(v[k] - v[K + k]) * (double)(v[k] - v[K + k]);
      size += (double)v[k] * (double)v[k];
    }
  }
  if (!v) return -1;
  free(v);
  return size > 0 ? sqrt(off / size) : 0;
}

static int measure(mhk_context *ctx, const settings *s, mhk_model *m, mhk_model *q) {
  mhk_corpus_desc desc;
  mhk_evaluate_desc measured = {.length = s->length, .windows = s->windows};
  mhk_evaluation before, after;
  cli_buffer b;
  memset(&desc, 0, sizeof desc);
  desc.n_files = s->text.n;
  desc.files = s->text.path;
  measured.corpus = run_load_text(ctx, m, NULL, &desc, s->encoding);
  if (!measured.corpus || run_evaluate(ctx, m, &measured, "before", &before) != CLI_GO) return CLI_FAILED;
  measured.teacher = m;
  if (run_evaluate(ctx, q, &measured, "after", &after) != CLI_GO) return CLI_FAILED;
  printf("cross-entropy    %8.4f%s nats per token, before %.4f: %+.4f\n", after.cross_entropy,
         run_error(after.cross_entropy_error, 0, 4, &b), before.cross_entropy,
         after.cross_entropy - before.cross_entropy);
  printf("KL to the model  %8.5f%s nats per token\n", after.kl, run_error(after.kl_error, 0, 5, &b));
  printf("same next token  %8.2f%s %%\n", 100 * after.agreement, run_error(100 * after.agreement_error, 0, 2, &b));
  printf("over             %8lld predictions in windows of %lld tokens\n", (long long)after.tokens,
         (long long)s->length);
  return CLI_OK;
}

static int quantize(mhk_context *ctx, void *user) {
  const settings *s = (const settings *)user;
  mhk_model *m = cli_load(ctx, s->model), *q;
  mhk_quantize_desc d;
  double before = 0, after = 0;
  cli_buffer a, b;
  int i;
  cli_catch_signals();
  memset(&d, 0, sizeof d);
  d.type = types[s->type];
  if (s->ends >= 0) d.ends = types[s->ends];
  d.group = s->group;
  if (s->no_tokenizer) mhk_model_set_tokenizer(m, NULL);
  if (m && !s->no_tokenizer && cli_keeps_tokenizer(m, s->out) != CLI_GO) return CLI_FAILED;
  q = mhk_quantize(m, &d);
  if (!q || mhk_save(q, s->out, d.type) != MHK_OK) return cli_context_error(ctx);
  for (i = 0; i < mhk_model_count(m); i++) {
    const mhk_tensor *x = mhk_model_at(m, i), *y = mhk_model_at(q, i);
    before += (double)mhk_tensor_bytes(x);
    after += (double)mhk_tensor_bytes(y);
    if (y->quantized) {
      const double error = relative_error(x, y);
      if (error < 0) return cli_error("not enough memory for a row of %s", x->name), CLI_FAILED;
      printf("  %-58s %s/%d  error %.5f\n", y->name, mhk_dtype_name(y->dtype), y->quantized->group, error);
    }
  }
  printf("saved     %s: %s of weights, %s before\n", s->out, cli_bytes(after, &a), cli_bytes(before, &b));
  return s->text.n ? measure(ctx, s, m, q) : CLI_OK;
}

const cli_command command_quantize = {
    .name = "quantize",
    .summary = "store a model with 8 or 4 bits per weight, in one file",
    .synopsis = "--model PATH --out PATH [--type int8|int4] [--group 32|64] [--text FILE...]",
    .about = "Stores embedding, head and projections as integers of 8 or 4 bits with one scale per group, chosen from "
             "the weights alone. Prints the relative error of each matrix: the root of the squared error over the "
             "root of the squared weights.",
    .example = "mohawk quantize --model run1/student --out student.safetensors --type int8 --text heldout.txt",
    CLI_OPTIONS(options),
    CLI_SETTINGS(defaults),
    .check = check,
    .body = quantize,
};
