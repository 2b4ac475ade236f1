/* mohawk eval: how well a model predicts text, and how close it is to its teacher. */
#include "probes.h"
#include "run.h"
#include "tasks.h"
#include <math.h>
#include <string.h>

typedef struct settings {
  const char *teacher, *delimiter, *rows;
  cli_files models, text, tasks;
  mhk_index length, windows, max_document, limit, batch;
  int threads, json, encoding, probes, seed, without, start;
} settings;

static const settings defaults = {.seed = 1, .batch = 16};

static const cli_option options[] = {
    {"model", "PATH...", CLI_FILES, CLI_AT(models), 1, 0,
     "the model to evaluate, a folder or a .safetensors file; with --task, one or more of them (required)"},
    {"length", "N", CLI_COUNT, CLI_AT(length), 2, 1e7,
     "tokens per window (default 256); with --task, the most tokens that a model sees (default: its own limit)"},
    {"threads", "N", CLI_INT, CLI_AT(threads), 1, 4096, "number of threads (default: one per core)"},
    CLI_STRICT,
    CLI_JSON(CLI_AT(json)),
    {NULL, NULL, CLI_HEADING, 0, 0, 0, "on text"},
    {"text", "FILE...", CLI_FILES, CLI_AT(text), 0, 0,
     "text to evaluate on, - for standard input; <|endoftext|> separates documents"},
    CLI_ENCODING(CLI_AT(encoding)),
    {"teacher", "PATH", CLI_TEXT, CLI_AT(teacher), 0, 0,
     "compare with this model: KL(teacher, model) and how often the next tokens agree"},
    {"windows", "N", CLI_COUNT, CLI_AT(windows), 0, 1e12,
     "number of windows from the start of the text; 0: all (default 0)"},
    {"max-document", "BYTES", CLI_COUNT, CLI_AT(max_document), 0, 1e15,
     "split documents at the first line end after this many bytes; 0: never (default 0)"},
    {"without", "nothing|state|window", CLI_CHOICE, CLI_AT(without), 0, 0,
     "leave out what heads with windows keep in their state, or what they see exactly: how much of the model each part "
     "is"},
    {"probes", NULL, CLI_FLAG, CLI_AT(probes), 0, 0,
     "also let the model generate what only its context can tell it, made from words of its vocabulary: copy a "
     "passage, recall the value of a key, find a pair at a depth of a text of --length tokens; with --teacher, let "
     "both"},
    {"seed", "N", CLI_INT, CLI_AT(seed), 1, 2e9, "seed of the probes (default 1)"},
    {NULL, NULL, CLI_HEADING, 0, 0, 0, "on tasks, by log-likelihood, counted as lm-evaluation-harness does"},
    {"task", "FILE...", CLI_FILES, CLI_AT(tasks), 0, 0,
     "JSONL files, - for standard input, each with rows of one form: context and continuation (right: greedy decoding "
     "gives exactly the continuation), query, choices and gold (right: the likeliest choice is number gold; acc_norm "
     "divides log-likelihoods by the characters of the choice), or context_options, continuation and gold (right: "
     "the continuation is likeliest after context number gold)"},
    {"delimiter", "TEXT", CLI_TEXT, CLI_AT(delimiter), 0, 0,
     "what stands between context and continuation, with \\n, \\t and \\\\ (default: a space, unless one stands "
     "there); for example '\\nAnswer: '"},
    {"limit", "N", CLI_COUNT, CLI_AT(limit), 0, 1e12, "rows of each file, from its start; 0: all (default 0)"},
    {"batch", "N", CLI_COUNT, CLI_AT(batch), 1, 4096, "sequences that are scored together (default 16)"},
    {"start-token", NULL, CLI_FLAG, CLI_AT(start), 0, 0,
     "put the token that starts a text before each context; otherwise it stands only for an empty one"},
    {"rows", "FILE", CLI_TEXT, CLI_AT(rows), 0, 0, "write the log-likelihoods of every row, one JSON object a line"},
};

static const char *const parts[] = {"nothing", "state", "window"}; /* as mhk_without */

static int check(void *user) {
  settings *s = (settings *)user;
  const char *wrong = s->teacher ? "--teacher" : s->probes ? "--probes" : s->without ? "--without" : "--windows";
  if (s->tasks.n == 0 && s->text.n == 0) return cli_missing(&command_eval, "--text FILE... or --task FILE...");
  if (s->tasks.n > 0) {
    if (s->text.n == 0 && !s->teacher && !s->probes && !s->without && !s->windows) return CLI_GO;
    if (s->text.n > 0) cli_error("--text and --task exclude each other");
    else cli_error("%s belongs to --text: it means nothing with --task", wrong);
    return CLI_USAGE;
  }
  if (s->models.n > 1) {
    cli_error("--text is evaluated with one --model, not with %d", s->models.n);
    return CLI_USAGE;
  }
  if (s->length == 0) s->length = 256;
  if (!s->probes || (s->length >= 40 && !s->without)) return CLI_GO;
  cli_error(s->without ? "--probes asks the whole model: it cannot be limited by --without"
                       : "--probes needs windows that a passage fits into: --length 40 or more");
  return CLI_USAGE;
}

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
  const int one = isnan(e->cross_entropy_error);
  cli_buffer bytes, other, b;
  printf("cross-entropy    %8.4f%s nats per token\n", e->cross_entropy, run_error(e->cross_entropy_error, 0, 4, &b));
  printf("perplexity       %8.3f%s\n", perplexity, run_error(perplexity * e->cross_entropy_error, 0, 3, &b));
  if (s->teacher) {
    printf("KL to teacher    %8.4f%s nats per token\n", e->kl, run_error(e->kl_error, 0, 4, &b));
    printf("same next token  %8.2f%s %%\n", 100 * e->agreement, run_error(100 * e->agreement_error, 0, 2, &b));
  }
  printf("over             %8lld predictions in %s of %lld tokens%s\n", (long long)e->tokens,
         one ? "one window" : "windows", (long long)s->length, one ? ": too few for a standard error" : "");
  print_positions(s, e);
  printf("state            %8s after %lld tokens", cli_bytes(e->state_bytes, &bytes), (long long)s->length);
  printf(s->teacher ? "; the teacher's: %s\n" : "\n", cli_bytes(teacher_bytes, &other));
}

/* the scores of model and teacher; teacher NULL: none */
static void print_probes(const probe_score *model, const probe_score *teacher) {
  int i;
  printf("%-24s %8s %14s%s\n", "probes, accuracy in %", "chance", "model", teacher ? "          teacher" : "");
  for (i = 0; probe_at(i); i++) {
    const double chance = 100 * probe_chance(probe_at(i));
    printf("  %-22s %8.*f %8.1f +- %3.1f", probe_at(i)->name, chance > 0, chance, 100 * model[i].accuracy,
           100 * model[i].error);
    if (teacher) printf("   %7.1f +- %3.1f", 100 * teacher[i].accuracy, 100 * teacher[i].error);
    putchar('\n');
  }
}

static void json_probes(cli_json *j, const char *key, const probe_score *scores) {
  int i;
  json_open(j, key, '{');
  for (i = 0; probe_at(i); i++) {
    json_open(j, probe_at(i)->key, '{');
    json_real(j, "accuracy", scores[i].accuracy);
    json_real(j, "error", scores[i].error);
    json_real(j, "chance", probe_chance(probe_at(i)));
    json_close(j);
  }
  json_close(j);
}

/* from the models to the printed figures */
static int evaluate_text(mhk_context *ctx, const settings *s) {
  const char *path = s->models.path[0];
  mhk_model *m = cli_load(ctx, path), *teacher = s->teacher ? cli_load(ctx, s->teacher) : NULL;
  mhk_evaluate_desc measured = {.teacher = teacher, .length = s->length, .windows = s->windows,
                                .without = (mhk_without)s->without};
  probe_source source = {.length = s->length, .seed = (uint64_t)s->seed};
  probe_score scores[PROBE_MOST], teachers[PROBE_MOST];
  mhk_corpus_desc desc;
  mhk_evaluation e;
  double teacher_bytes;
  int i;
  if (mhk_failed(ctx)) return cli_context_error(ctx);
  memset(&desc, 0, sizeof desc);
  desc.n_files = s->text.n;
  desc.files = s->text.path;
  desc.max_document = (size_t)s->max_document;
  for (i = 0; i < s->text.n; i++)
    if (cli_ends_with(s->text.path[i], ".jsonl"))
      cli_warning("%s is read as plain text, with its braces and keys; for rows of a task: --task %s", s->text.path[i],
                  s->text.path[i]);
  measured.corpus = run_load_text(ctx, m, teacher, &desc, s->encoding);
  if (!measured.corpus || run_evaluate(ctx, m, &measured, path, &e) != CLI_GO) return CLI_FAILED;
  source.tokenizer = mhk_model_tokenizer(m) ? mhk_model_tokenizer(m) : mhk_model_tokenizer(teacher);
  source.text = measured.corpus;
  if (s->probes && (probe_run(ctx, m, &source, "model", scores) != CLI_GO ||
                    (teacher && probe_run(ctx, teacher, &source, "teacher", teachers) != CLI_GO)))
    return CLI_FAILED;
  teacher_bytes = teacher ? mhk_config_state_bytes(mhk_model_config(teacher), s->length) : 0;
  if (s->json) {
    cli_json j;
    json_start(&j, stdout, 0);
    json_open(&j, NULL, '{');
    json_text(&j, "model", path);
    if (s->teacher) json_text(&j, "teacher", s->teacher);
    run_json_evaluation(&j, &e, s->teacher != NULL);
    if (s->teacher) json_count(&j, "teacher_state_bytes", teacher_bytes);
    json_count(&j, "length", (double)s->length);
    if (s->without) json_text(&j, "without", parts[s->without]);
    if (s->probes) json_probes(&j, "probes", scores);
    if (s->probes && teacher) json_probes(&j, "teacher_probes", teachers);
    json_close(&j);
  } else {
    if (s->without) printf("without the %s\n", parts[s->without]);
    print(s, &e, teacher_bytes);
    if (s->probes) print_probes(scores, teacher ? teachers : NULL);
  }
  return CLI_OK;
}

static int evaluate(mhk_context *ctx, void *user) {
  const settings *s = (const settings *)user;
  const task_desc d = {.models = &s->models, .tasks = &s->tasks, .delimiter = s->delimiter, .rows = s->rows,
                       .limit = s->limit, .length = s->length, .batch = s->batch, .start = s->start, .json = s->json};
  cli_quiet(s->json);
  cli_catch_signals();
  return s->tasks.n > 0 ? task_run(ctx, &d) : evaluate_text(ctx, s);
}

const cli_command command_eval = {
    .name = "eval",
    .summary = "measure cross-entropy, perplexity, agreement and KL on text, or accuracy on tasks",
    .synopsis = "--model PATH --text FILE... [options]\n       mohawk eval --model PATH... --task FILE... [options]",
    .about = "Measures cross-entropy and perplexity on text, and with --teacher the distance from the teacher, each "
             "with its standard error over windows, also by position in a window, and beside the bytes of state that "
             "the model keeps. With --task, measures accuracy on tasks with its standard error over rows, for one or "
             "more models in one table.",
    .example = "mohawk eval --model run1/student --teacher phi-1_5/ --text heldout.txt",
    CLI_OPTIONS(options),
    CLI_SETTINGS(defaults),
    .check = check,
    .body = evaluate,
};
