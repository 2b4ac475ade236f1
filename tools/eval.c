/* mohawk eval: how well a model predicts text, and how close it is to its teacher. */
#include "run.h"
#include <math.h>
#include <string.h>

typedef struct settings {
  const char *model, *teacher;
  cli_files text;
  mhk_index length, windows, max_document;
  int threads, json, encoding;
} settings;

static const settings defaults = {.length = 256};

static const cli_option options[] = {
    {"model", "PATH", CLI_TEXT, CLI_AT(model), 1, 0,
     "the model to evaluate: a folder or a .safetensors file (required)"},
    {"text", "FILE...", CLI_FILES, CLI_AT(text), 1, 0,
     "text to evaluate on, - for standard input; <|endoftext|> separates documents (required)"},
    CLI_ENCODING(CLI_AT(encoding)),
    {"teacher", "PATH", CLI_TEXT, CLI_AT(teacher), 0, 0,
     "compare with this model: KL(teacher, model) and how often the next tokens agree"},
    {"length", "N", CLI_COUNT, CLI_AT(length), 2, 1e7, "tokens per window (default 256)"},
    {"windows", "N", CLI_COUNT, CLI_AT(windows), 0, 1e12,
     "number of windows from the start of the text; 0: all (default 0)"},
    {"max-document", "BYTES", CLI_COUNT, CLI_AT(max_document), 0, 1e15,
     "split documents at the first line end after this many bytes; 0: never (default 0)"},
    {"threads", "N", CLI_INT, CLI_AT(threads), 1, 4096, "number of threads (default: all CPUs)"},
    CLI_STRICT,
    {"json", NULL, CLI_FLAG, CLI_AT(json), 0, 0, "print one JSON object instead of text"},
};

/* a measure at the four quarters of a window, times scale */
static void print_quarters(const char *name, const double *quarters, double scale) {
  int i;
  printf("  %-15s", name);
  for (i = 0; i < 4; i++) printf(" %10.4f", scale * quarters[i]);
  putchar('\n');
}

static void print_positions(const settings *s, const mhk_evaluation *e) {
  char range[64];
  int i;
  printf("at tokens        ");
  for (i = 0; i < 4; i++) {
    snprintf(range, sizeof range, "%lld-%lld", (long long)((s->length * i + 3) / 4),
             (long long)((s->length * (i + 1) + 3) / 4 - 1));
    printf(" %10s", range);
  }
  putchar('\n');
  print_quarters("cross-entropy", e->cross_entropy_quarter, 1);
  if (!s->teacher) return;
  print_quarters("KL to teacher", e->kl_quarter, 1);
  print_quarters("same next, %", e->agreement_quarter, 100);
}

static void print(const settings *s, const mhk_evaluation *e, double teacher_bytes) {
  const double perplexity = exp(e->cross_entropy);
  cli_buffer bytes, other;
  printf("cross-entropy    %8.4f +- %.4f nats per token\n", e->cross_entropy, e->cross_entropy_error);
  printf("perplexity       %8.3f +- %.3f\n", perplexity, perplexity * e->cross_entropy_error);
  if (s->teacher) {
    printf("KL to teacher    %8.4f +- %.4f nats per token\n", e->kl, e->kl_error);
    printf("same next token  %8.2f +- %.2f %%\n", 100 * e->agreement, 100 * e->agreement_error);
  }
  printf("over             %8lld predictions in windows of %lld tokens\n", (long long)e->tokens, (long long)s->length);
  print_positions(s, e);
  printf("state            %8s after %lld tokens", cli_bytes(e->state_bytes, &bytes), (long long)s->length);
  printf(s->teacher ? "; the teacher's: %s\n" : "\n", cli_bytes(teacher_bytes, &other));
}

/* from the models to the printed figures */
static int evaluate(mhk_context *ctx, void *user) {
  const settings *s = (const settings *)user;
  mhk_model *m = cli_load(ctx, s->model), *teacher = s->teacher ? cli_load(ctx, s->teacher) : NULL;
  mhk_evaluate_desc measured = {.teacher = teacher, .length = s->length, .windows = s->windows};
  mhk_corpus_desc desc;
  mhk_evaluation e;
  double teacher_bytes;
  cli_quiet(s->json);
  cli_catch_signals();
  if (mhk_failed(ctx)) return cli_context_error(ctx);
  memset(&desc, 0, sizeof desc);
  desc.n_files = s->text.n;
  desc.files = s->text.path;
  desc.max_document = (size_t)s->max_document;
  measured.corpus = run_load_text(ctx, m, teacher, &desc, s->encoding);
  if (!measured.corpus || run_evaluate(ctx, m, &measured, s->model, &e) != CLI_GO) return CLI_FAILED;
  teacher_bytes = teacher ? mhk_config_state_bytes(mhk_model_config(teacher), s->length) : 0;
  if (s->json) {
    cli_json j;
    json_start(&j, stdout, 0);
    json_open(&j, NULL, '{');
    json_text(&j, "model", s->model);
    if (s->teacher) json_text(&j, "teacher", s->teacher);
    run_json_evaluation(&j, &e, s->teacher != NULL);
    if (s->teacher) json_count(&j, "teacher_state_bytes", teacher_bytes);
    json_count(&j, "length", (double)s->length);
    json_close(&j);
  } else {
    print(s, &e, teacher_bytes);
  }
  return CLI_OK;
}

const cli_command command_eval = {
    .name = "eval",
    .summary = "measure cross-entropy, perplexity, agreement and KL on text",
    .synopsis = "--model PATH --text FILE... [options]",
    .about = "Measures cross-entropy and perplexity on text, and with --teacher the distance from the teacher, each "
             "with its standard error over windows, also by position in a window, and beside the bytes of state that "
             "the model keeps.",
    .example = "mohawk eval --model run1/student --teacher phi-1_5/ --text heldout.txt",
    CLI_OPTIONS(options),
    CLI_SETTINGS(defaults),
    .body = evaluate,
};
