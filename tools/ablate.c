/* mohawk ablate: a table of distillations at an equal budget of tokens. */
#include "ablate.h"
#include "record.h"
#include "run.h"
#include "settings.h"
#include <ctype.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define SHORT 0.04          /* what --short leaves of the budget, as for the demo */
#define BUDGET 600000       /* of a preset */
#define EVAL_TOKENS 32768   /* sampled from the teacher to measure on, as for the demo */
#define EVAL_SHORT 2048
#define TEXT_MOST 2e6       /* sampled from the teacher to train on */
#define TEXT_SEED 1
#define EVAL_SEED 1000003

typedef struct settings {
  const char *teacher, *out, *table;
  cli_files run;
  cli_numbers seeds;
  double every;
  mhk_index budget;
  int preset, short_run, jobs, threads, fresh, json, dry_run;
  cli_words words;
} settings;

static const settings defaults = {
    .teacher = "examples/tiny", .out = "mohawk-ablation", .preset = -1, .every = 10, .threads = 1};

static const cli_option options[] = {
    {NULL, NULL, CLI_HEADING, 0, 0, 0, "which experiments"},
    {"preset", "stages|hybrid|start", CLI_CHOICE, CLI_AT(preset), 0, 0,
     "stages: which stages there are and how stages 1 and 2 share their tokens, from the paper's start (--recipe "
     "paper); hybrid: which layers keep attention; start: how the new mixers begin"},
    {"run", "\"NAME: OPTIONS\"...", CLI_FILES, CLI_AT(run), 0, 0,
     "a row of the table: options of mohawk distill for it alone"},
    {"table", "FILE", CLI_TEXT, CLI_AT(table), 0, 0, "rows from a file, one such line each; # starts a comment"},
    {"seeds", "N,...", CLI_NUMBERS, CLI_AT(seeds), 1, 2e9, "each row once for each of these (default 1,2,3)"},
    {"budget", "TOKENS", CLI_COUNT, CLI_AT(budget), 1, 1e15,
     "tokens of all stages together: each row's --tokens are its shares (default of presets 0.6M; otherwise --tokens "
     "as they are)"},
    {"short", NULL, CLI_FLAG, CLI_AT(short_run), 0, 0,
     "use a small fraction of the budget: checks that everything runs, not what comes out"},
    {NULL, NULL, CLI_HEADING, 0, 0, 0, "how they run"},
    {"teacher", "DIR", CLI_TEXT, CLI_AT(teacher), 0, 0, "the teacher (default examples/tiny, the bundled one)"},
    {"out", "DIR", CLI_TEXT, CLI_AT(out), 0, 0,
     "output folder: ablation.svg, ablation.json and a folder for each run (default mohawk-ablation)"},
    {"jobs", "N", CLI_INT, CLI_AT(jobs), 1, 1024,
     "runs side by side (default: as many as cores have room for; results do not depend on it)"},
    {"threads", "N", CLI_INT, CLI_AT(threads), 1, 4096, "threads of each run (default 1; results do not depend on it)"},
    {"every", "SECONDS", CLI_REAL, CLI_AT(every), 0.1, 1e6,
     "seconds between lines of progress if there is no terminal (default 10)"},
    {"dry-run", NULL, CLI_FLAG, CLI_AT(dry_run), 0, 0, "only print the rows with their tokens and options"},
    {"fresh", NULL, CLI_FLAG, CLI_AT(fresh), 0, 0, "start over even if --out has results"},
    {"json", NULL, CLI_FLAG, CLI_AT(json), 0, 0, "print ablation.json instead of the table"},
};

/* ---------------------------------------------------------------- rows */

/* a row from "NAME: OPTIONS" */
static int add_row(ablate_table *t, const char *line) {
  const char *colon = strchr(line, ':');
  ablate_row *r = &t->rows[t->n_rows];
  size_t n = colon ? (size_t)(colon - line) : 0;
  char *word, *next;
  int i;
  while (n > 0 && isspace((unsigned char)line[n - 1])) n--;
  if (n == 0) return cli_error("\"%.80s\" is not NAME: OPTIONS", line);
  if (n >= ABLATE_NAME) return cli_error("\"%.60s...\": a name has at most %d characters", line, ABLATE_NAME - 1);
  if (t->n_rows == ABLATE_MOST) return cli_error("more than %d experiments", ABLATE_MOST);
  memset(r, 0, sizeof *r);
  memcpy(r->name, line, n);
  for (i = 0; i < t->n_rows; i++)
    if (strcmp(t->rows[i].name, r->name) == 0) return cli_error("two experiments are called \"%s\"", r->name);
  r->memory = (char *)malloc(strlen(colon) + 1);
  if (!r->memory) return cli_error("out of memory");
  strcpy(r->memory, colon + 1);
  for (word = r->memory; *word; word = next) {
    while (isspace((unsigned char)*word)) word++;
    for (next = word; *next && !isspace((unsigned char)*next);) next++;
    if (*next) *next++ = 0;
    if (!*word) break;
    if (r->n_words == CLI_COUNT_OF(r->words)) return cli_error("%s has more than %d options", r->name, r->n_words);
    r->words[r->n_words++] = word;
  }
  if (r->n_words > 0 && strncmp(r->words[0], "--", 2) != 0) {
    cli_error("%s: \"%s\" is not an option", r->name, r->words[0]);
    free(r->memory);
    return CLI_FAILED;
  }
  t->n_rows++;
  return CLI_GO;
}

CLI_PRINTF(2, 3) static int add_rowf(ablate_table *t, const char *format, ...);
static int add_rowf(ablate_table *t, const char *format, ...) {
  char line[256];
  va_list args;
  va_start(args, format);
  vsnprintf(line, sizeof line, format, args);
  va_end(args);
  return add_row(t, line);
}

/* The paper's question: what each stage is worth when all have the same tokens in all. Stage 3 has
   a third where there are others; without stage 2 before it, or alone, it wants a higher rate. */
static int preset_stages(ablate_table *t, const double *lr) {
  static const int part[4] = {1, 2, 4, 6}; /* stage 1's eighths of the tokens of stages 1 and 2; of 1+2+3: 3 */
  const double high = 4 * lr[2];
  int i, code = add_rowf(t, "3 alone: --tokens 0,0,24 --lr -,-,%g", high);
  if (code == CLI_GO) code = add_rowf(t, "1+3: --tokens 16,0,8 --lr %g,-,%g", lr[0], high);
  if (code == CLI_GO) code = add_rowf(t, "2+3: --tokens 0,16,8");
  if (code == CLI_GO) code = add_rowf(t, "1+2: --tokens 9,15,0");
  if (code == CLI_GO) code = add_rowf(t, "1+2+3: --tokens 6,10,8");
  for (i = 0; i < 4 && code == CLI_GO; i++)
    code = add_rowf(t, "1+2+3, split %d/8: --tokens %d,%d,8", part[i], 2 * part[i], 16 - 2 * part[i]);
  return code;
}

/* n of L layers in equal distances */
static void spread(int n, int L, char *text, size_t room) {
  int i;
  text[0] = 0;
  for (i = 0; i < n; i++)
    snprintf(text + strlen(text), room - strlen(text), "%s%d", i ? "," : "", (2 * i + 1) * L / (2 * n));
}

static int preset_hybrid(ablate_table *t, int L) {
  char layers[64];
  const int most = L < 5 ? L : 5, single = L < 4 ? L : 4;
  int i, n, code = add_row(t, "none kept:");
  for (i = 0; i < single && code == CLI_GO; i++)
    code = add_rowf(t, "layer %d: --keep-attention %d", (2 * i + 1) * L / (2 * single), (2 * i + 1) * L / (2 * single));
  for (n = 2; n < most && code == CLI_GO; n++) {
    spread(n, L, layers, sizeof layers);
    code = add_rowf(t, "layers %s: --keep-attention %s", layers, layers);
  }
  return code;
}

static int preset_start(ablate_table *t) {
  int code = add_row(t, "identity: --init identity --no-calibrate");
  if (code == CLI_GO) code = add_row(t, "random: --init random --no-calibrate");
  if (code == CLI_GO) code = add_row(t, "attention: --init attention --no-calibrate");
  return code == CLI_GO ? add_row(t, "attention, calibrated: --init attention --calibrate") : code;
}

static int read_table(ablate_table *t, const char *path) {
  cli_content text;
  char *line, *next;
  int code = CLI_GO;
  if (cli_read(path, &text) != CLI_GO) return CLI_FAILED;
  for (line = text.text; *line && code == CLI_GO; line = next) {
    next = line + strcspn(line, "\n");
    if (*next) *next++ = 0;
    while (isspace((unsigned char)*line)) line++;
    if (*line && *line != '#') code = add_row(t, line);
  }
  free(text.text);
  return code;
}

static int make_rows(const settings *s, ablate_table *t, mhk_model *teacher) {
  const mhk_distill_desc plain = {.teacher = teacher};
  const mhk_distill_desc best = mhk_distill_defaults(&plain);
  const double lr[3] = {best.stages[0].lr, best.stages[1].lr, best.stages[2].lr};
  int i, code = CLI_GO;
  if (s->preset == 0) code = preset_stages(t, lr);
  if (s->preset == 1) code = preset_hybrid(t, mhk_model_config(teacher)->n_layer);
  if (s->preset == 2) code = preset_start(t);
  if (code == CLI_GO && s->table) code = read_table(t, s->table);
  for (i = 0; i < s->run.n && code == CLI_GO; i++) code = add_row(t, s->run.path[i]);
  if (code == CLI_GO && t->n_rows == 0) return cli_error("the table %s has no rows", s->table ? s->table : "");
  return code;
}

/* ---------------------------------------------------------------- settings of each run */

static void *field(void *of, const char *name) {
  const cli_option *o = cli_find_option(&command_distill, name, strlen(name));
  return (char *)of + o->at;
}

/* Options that all rows have, those of one row behind them: into settings of mohawk distill. */
static int read_row(const settings *s, mhk_model *teacher, const ablate_row *r, void *of) {
  const mhk_distill_desc plain = {.teacher = teacher};
  const mhk_distill_desc best = mhk_distill_defaults(&plain);
  char *argv[600], rates[96];
  int argc = 0, i, code;
  argv[argc++] = (char *)"--teacher";
  argv[argc++] = (char *)s->teacher;
  if (s->preset == 0) {
    snprintf(rates, sizeof rates, "%g,%g,%g", best.stages[0].lr, best.stages[1].lr, best.stages[2].lr);
    argv[argc++] = (char *)"--recipe=paper";
    argv[argc++] = (char *)"--decay=0.5";
    argv[argc++] = (char *)"--batch=4";
    argv[argc++] = (char *)"--lr";
    argv[argc++] = rates;
  }
  for (i = 0; i < s->words.n; i++) argv[argc++] = (char *)s->words.word[i];
  for (i = 0; i < r->n_words; i++) argv[argc++] = r->words[i];
  memcpy(of, command_distill.defaults, command_distill.size);
  code = cli_read_options(&command_distill, of, argc, argv);
  if (code == CLI_GO && command_distill.check) code = command_distill.check(of);
  return code == CLI_GO ? code : cli_error("these are the options of \"%s\"", r->name);
}

/* Tokens of each stage: whole updates that add up to the budget. */
static int share_out(const settings *s, ablate_row *r, void *of) {
  cli_numbers *tokens = (cli_numbers *)field(of, "tokens");
  mhk_distill_desc d;
  double shares[3], all = 0, budget, update, left;
  int i, last = -1;
  memset(&d, 0, sizeof d);
  d.recipe = (mhk_recipe) * (const int *)field(of, "recipe");
  d.batch = *(const mhk_index *)field(of, "batch");
  d.length = *(const mhk_index *)field(of, "length");
  d.update_tokens = *(const mhk_index *)field(of, "update-tokens");
  d = mhk_distill_defaults(&d);
  for (i = 0; i < 3; i++) {
    shares[i] = cli_number_at(tokens, i, (double)d.stages[i].tokens);
    all += shares[i];
    if (shares[i] > 0) last = i;
  }
  if (last < 0) return cli_error("\"%s\" has no tokens in any stage", r->name);
  update = (double)d.update_tokens;
  budget = s->budget > 0 ? (double)s->budget : s->preset >= 0 ? BUDGET : all;
  if (s->short_run) budget *= SHORT;
  left = floor(budget / update);
  for (i = 0; i < 3; i++) {
    const double n = i == last ? left : fmin(floor(shares[i] / all * budget / update + 0.5), left);
    r->tokens[i] = n * update;
    left -= n;
    if (shares[i] > 0 && n < 1)
      return cli_error("\"%s\": %.0f tokens in all leave not one update of %.0f tokens for stage %d", r->name, budget,
                       update, i + 1);
  }
  tokens->n = 3;
  memcpy(tokens->value, r->tokens, sizeof r->tokens);
  return CLI_GO;
}

int ablate_last(const ablate_row *r) { return r->tokens[2] > 0 ? 3 : r->tokens[1] > 0 ? 2 : 1; }

/* ---------------------------------------------------------------- plans */

/* options that do not change what comes out */
static const char *const aside[] = {"out",     "threads", "fresh",  "json",        "dry-run",
                                    "force",   "every",   "strict", "keep-stages", "checkpoint-seconds",
                                    NULL};

/* settings as text, without some; malloc'ed, NULL after a message */
static char *settings_text(void *of, const char *const *not, const char *before) {
  cli_output o;
  if (cli_output_open(&o, NULL) != CLI_GO) return NULL;
  fputs(before, o.file);
  settings_lines(o.file, &command_distill, of, not);
  return cli_output_text(&o);
}

/* What two runs have in common if they are the same up to this stage. */
static char *prefix_text(const ablate_row *r, const void *of, int stage) {
  static const char *const not[] = {"out",         "threads",     "fresh",   "json",    "dry-run",
                                    "force",       "every",       "strict",  "keep-stages", "checkpoint-seconds",
                                    "temperature", "hard-labels", "own-stream", "recompute", NULL};
  static const char *const each[] = {"tokens", "lr", "warmup", "decay", "weight-decay", "clip"};
  char before[64];
  void *copy = malloc(command_distill.size);
  char *text;
  int i, k;
  if (!copy) return NULL;
  memcpy(copy, of, command_distill.size);
  for (i = 0; i < CLI_COUNT_OF(each); i++) {
    cli_numbers *list = (cli_numbers *)field(copy, each[i]);
    double value[3];
    for (k = 0; k < 3; k++) value[k] = k < stage ? cli_number_at(list, k, NAN) : NAN;
    memcpy(list->value, value, sizeof value);
    list->n = 3;
  }
  /* the last stage decides which weights a checkpoint has */
  snprintf(before, sizeof before, "%d\n", ablate_last(r));
  text = settings_text(copy, not, before);
  free(copy);
  return text;
}

/* Finds for each run an earlier one that has the same stages, the more the better. */
static int find_leaders(ablate_table *t) {
  int i, k, stage, code = CLI_GO;
  for (stage = 2; stage >= 1 && code == CLI_GO; stage--) {
    char **keys = (char **)calloc((size_t)t->n_jobs, sizeof *keys);
    for (i = 0; i < t->n_jobs && keys && code == CLI_GO; i++) {
      ablate_job *j = &t->jobs[i];
      const ablate_row *r = &t->rows[j->row];
      if (r->tokens[stage - 1] == 0 || ablate_last(r) <= stage) continue;
      keys[i] = prefix_text(r, j->settings, stage);
      if (!keys[i]) code = CLI_FAILED;
      for (k = 0; k < i && keys[i] && j->leader < 0; k++) {
        if (!keys[k] || strcmp(keys[k], keys[i]) != 0) continue;
        j->leader = k;
        j->stage = stage;
        t->jobs[k].leads = 1;
      }
    }
    for (i = 0; i < t->n_jobs && keys; i++) free(keys[i]);
    free(keys);
  }
  return code;
}

/* a name as a folder's */
static void folder_name(const char *name, double seed, char *out, size_t room) {
  size_t i;
  for (i = 0; name[i] && i + 16 < room; i++) {
    const char c = name[i];
    out[i] = (char)(isalnum((unsigned char)c) || strchr("+-._,", c) ? c : '_');
  }
  snprintf(out + i, room - i, "-%.0f", seed);
}

static int make_job(const settings *s, ablate_table *t, mhk_model *teacher, const char *before, ablate_job *j) {
  char name[ABLATE_NAME + 32];
  ablate_row *r = &t->rows[j->row];
  int i;
  j->leader = -1;
  j->settings = malloc(command_distill.size);
  if (!j->settings) return cli_error("out of memory");
  if (read_row(s, teacher, r, j->settings) != CLI_GO || share_out(s, r, j->settings) != CLI_GO) return CLI_FAILED;
  *(int *)field(j->settings, "seed") = (int)t->seeds[j->seed];
  *(int *)field(j->settings, "no-eval") = 0;
  folder_name(r->name, t->seeds[j->seed], name, sizeof name);
  if (cli_join(j->folder, sizeof j->folder, t->out, name) != CLI_GO) return CLI_FAILED;
  for (i = 0; &t->jobs[i] != j; i++)
    if (strcmp(t->jobs[i].folder, j->folder) == 0)
      return cli_error("\"%s\" and \"%s\" would have one folder, %s: give one of them another name",
                       t->rows[t->jobs[i].row].name, r->name, j->folder);
  j->plan = settings_text(j->settings, aside, before);
  return j->plan ? CLI_GO : CLI_FAILED;
}

/* ---------------------------------------------------------------- text */

/* What the teacher writes, kept in out: so many tokens, not what another table left there. */
static int sample_text(mhk_context *ctx, mhk_model *teacher, const char *path, double tokens, uint64_t seed) {
  mhk_corpus *text = cli_exists(path) ? run_token_file(ctx, teacher, path) : NULL;
  const int other = text && mhk_corpus_tokens(text, NULL) > (mhk_index)tokens;
  mhk_corpus_destroy(text);
  mhk_clear_error(ctx); /* a file that cannot be read is written again */
  if (other && remove(path) != 0) return cli_error("cannot remove %s, which has another number of tokens", path);
  text = run_sampled_text(ctx, teacher, path, (mhk_index)tokens, seed);
  mhk_corpus_destroy(text);
  return text ? CLI_GO : CLI_FAILED;
}

/* the tokens of the largest row, which --budget and presets give */
static double largest(const settings *s, const ablate_table *t) {
  double most = s->budget > 0 ? (double)s->budget : s->preset >= 0 ? BUDGET : 0;
  int i;
  if (s->short_run) most *= SHORT;
  for (i = 0; i < t->n_rows; i++) most = fmax(most, t->rows[i].tokens[0] + t->rows[i].tokens[1] + t->rows[i].tokens[2]);
  return fmin(most, TEXT_MOST);
}

/* Texts that all runs have: those given, or what the teacher writes, once, into out. */
static int give_texts(mhk_context *ctx, settings *s, const ablate_table *t, mhk_model *teacher) {
  static char text[1024], eval[1024];
  cli_words *words = &s->words;
  void *of = malloc(command_distill.size);
  const ablate_row none = {.name = "all rows"};
  int code = of ? read_row(s, teacher, &none, of) : cli_error("out of memory");
  if (words->n + 4 > CLI_COUNT_OF(words->word)) code = cli_error("too many options");
  if (code == CLI_GO) code = cli_make_folders(s->out);
  if (code == CLI_GO && ((const cli_files *)field(of, "text"))->n == 0) {
    const mhk_index given = *(const mhk_index *)field(of, "sample-tokens");
    code = cli_join(text, sizeof text, s->out, "text.safetensors");
    if (code == CLI_GO)
      code = sample_text(ctx, teacher, text, given > 0 ? (double)given : fmax(largest(s, t), 4096), TEXT_SEED);
    words->word[words->n++] = "--text";
    words->word[words->n++] = text;
  }
  if (code == CLI_GO && ((const cli_files *)field(of, "eval"))->n == 0) {
    code = cli_join(eval, sizeof eval, s->out, "eval.safetensors");
    if (code == CLI_GO) code = sample_text(ctx, teacher, eval, s->short_run ? EVAL_SHORT : EVAL_TOKENS, EVAL_SEED);
    words->word[words->n++] = "--eval";
    words->word[words->n++] = eval;
  }
  free(of);
  return code;
}

/* the program and the files that all runs read, as comments of a settings file */
static int say_inputs(mhk_context *ctx, const settings *s, mhk_model *teacher, char *before, size_t room) {
  record_inputs in = {NULL, 0};
  const ablate_row none = {.name = "all rows"};
  void *of = malloc(command_distill.size);
  const char *const lists[2] = {"text", "eval"};
  int i, k, code = of ? read_row(s, teacher, &none, of) : cli_error("out of memory");
  if (code == CLI_GO) code = record_add(&in, ctx, "teacher", s->teacher);
  for (i = 0; i < 2 && code == CLI_GO; i++) {
    const cli_files *files = (const cli_files *)field(of, lists[i]);
    for (k = 0; k < files->n && code == CLI_GO; k++) {
      code = record_add(&in, ctx, lists[i], files->path[k]);
      if (code == CLI_GO && in.list[in.n - 1].bytes < 0)
        code = cli_error("--%s is a pipe, but each run reads it: make it a file", lists[i]);
    }
  }
  snprintf(before, room, "# mohawk %s\n", mhk_version());
  for (i = 0; i < in.n; i++)
    snprintf(before + strlen(before), room - strlen(before), "# %s xxh64 %016llx\n", in.list[i].path,
             (unsigned long long)in.list[i].hash);
  record_inputs_free(&in);
  free(of);
  return code;
}

/* ---------------------------------------------------------------- all of it */

static const char *title_of(const settings *s) {
  static const char *const titles[] = {"what each stage is worth", "which layers keep attention",
                                       "how the new mixers begin"};
  return s->preset >= 0 ? titles[s->preset] : "ablation";
}

static int make_jobs(mhk_context *ctx, const settings *s, ablate_table *t, mhk_model *teacher) {
  char before[8192];
  int i, k, code = s->dry_run ? CLI_GO : say_inputs(ctx, s, teacher, before, sizeof before);
  if (s->dry_run) before[0] = 0;
  for (i = 0; i < t->n_rows && code == CLI_GO; i++)
    for (k = 0; k < t->n_seeds && code == CLI_GO; k++) {
      ablate_job *j = &t->jobs[t->n_jobs];
      j->row = i;
      j->seed = k;
      code = make_job(s, t, teacher, before, j);
      t->n_jobs++;
    }
  return code == CLI_GO ? find_leaders(t) : code;
}

/* Whether all rows can be read, before any work is done. */
static int check_rows(const settings *s, ablate_table *t, mhk_model *teacher) {
  void *of = malloc(command_distill.size);
  int i, code = of ? CLI_GO : cli_error("out of memory");
  for (i = 0; i < t->n_rows && code == CLI_GO; i++) {
    code = read_row(s, teacher, &t->rows[i], of);
    if (code == CLI_GO) code = share_out(s, &t->rows[i], of);
  }
  free(of);
  return code;
}

/* A table is fair when all rows have the same tokens: says where they have not. */
static void note_budgets(const ablate_table *t) {
  double least = 1e300, most = 0;
  int i;
  for (i = 0; i < t->n_rows; i++) {
    const double all = t->rows[i].tokens[0] + t->rows[i].tokens[1] + t->rows[i].tokens[2];
    least = fmin(least, all);
    most = fmax(most, all);
  }
  if (most > 1.02 * least)
    cli_warning("rows have from %.0f to %.0f tokens in all: --budget gives all the same", least, most);
}

static void print_plan(const ablate_table *t) {
  int i, k;
  for (i = 0; i < t->n_rows; i++) {
    const ablate_row *r = &t->rows[i];
    printf("%-24s %9.0f %9.0f %9.0f  ", r->name, r->tokens[0], r->tokens[1], r->tokens[2]);
    for (k = 0; k < r->n_words; k++) printf(" %s", r->words[k]);
    printf("\n");
  }
  for (i = 0; i < t->n_jobs; i++)
    if (t->jobs[i].leader >= 0)
      printf("%s goes on from stage %d of %s\n", t->jobs[i].folder, t->jobs[i].stage,
             t->jobs[t->jobs[i].leader].folder);
}

static int carry_out(mhk_context *ctx, settings *s, ablate_table *t) {
  mhk_model *teacher = cli_load(ctx, s->teacher);
  int cores = cli_cores("");
  if (!teacher) return cli_context_error(ctx);
  if (cores < 1) cores = mhk_threads(ctx);
  t->side_by_side = s->jobs > 0 ? s->jobs : cores / s->threads > 1 ? cores / s->threads : 1;
  if (make_rows(s, t, teacher) != CLI_GO || check_rows(s, t, teacher) != CLI_GO) return CLI_FAILED;
  cli_catch_signals();
  if (!s->dry_run && give_texts(ctx, s, t, teacher) != CLI_GO) return CLI_FAILED;
  if (make_jobs(ctx, s, t, teacher) != CLI_GO) return CLI_FAILED;
  mhk_model_destroy(teacher);
  note_budgets(t);
  if (s->dry_run) {
    print_plan(t);
    return CLI_OK;
  }
  if (ablate_run(ctx, t) != CLI_GO) return CLI_FAILED;
  return ablate_report(t, s->json) == CLI_GO ? CLI_OK : CLI_FAILED;
}

static int ablate(mhk_context *ctx, void *user) {
  settings *s = (settings *)user;
  ablate_table t;
  int i, code;
  memset(&t, 0, sizeof t);
  t.out = s->out;
  t.teacher = s->teacher;
  t.preset = s->preset;
  t.title = title_of(s);
  t.threads = s->threads;
  t.fresh = s->fresh;
  t.n_seeds = s->seeds.n ? s->seeds.n : 3;
  for (i = 0; i < t.n_seeds && i < ABLATE_SEEDS; i++) t.seeds[i] = s->seeds.n ? s->seeds.value[i] : i + 1;
  cli_quiet(s->json);
  cli_every(s->every);
  t.rows = (ablate_row *)calloc(ABLATE_MOST, sizeof *t.rows);
  t.jobs = (ablate_job *)calloc((size_t)(ABLATE_MOST * t.n_seeds), sizeof *t.jobs);
  code = t.rows && t.jobs ? carry_out(ctx, s, &t) : cli_error("out of memory");
  if (code != CLI_OK && cli_stopped()) cli_say_resume(s->out);
  for (i = 0; i < t.n_jobs; i++) {
    free(t.jobs[i].settings);
    free(t.jobs[i].plan);
  }
  for (i = 0; i < t.n_rows; i++) free(t.rows[i].memory);
  free(t.rows);
  free(t.jobs);
  return code;
}

static int check(void *user) {
  const settings *s = (const settings *)user;
  int i;
  for (i = 0; i < s->words.n; i++)
    if (strcmp(s->words.word[i], "--seed") == 0 || strncmp(s->words.word[i], "--seed=", 7) == 0) {
      cli_error("--seed is of one run: --seeds lists those of the table");
      return CLI_USAGE;
    }
  for (i = 0; i < s->seeds.n; i++)
    if (isnan(s->seeds.value[i]) || floor(s->seeds.value[i]) != s->seeds.value[i] || s->seeds.n > ABLATE_SEEDS) {
      cli_error("--seeds are up to %d whole numbers", ABLATE_SEEDS);
      return CLI_USAGE;
    }
  if (s->preset >= 0 || s->run.n > 0 || s->table) return CLI_GO;
  return cli_missing(&command_ablate, "--preset, --table or --run");
}

const cli_command command_ablate = {
    .name = "ablate",
    .summary = "run a table of distillations at an equal budget of tokens",
    .synopsis = "--preset stages|hybrid|start | --table FILE | --run \"NAME: OPTIONS\"... [options]",
    .about = "Distills one student for each row of a table and each seed, side by side on the machine's cores, "
             "measures them on held-out text, prints what came out with its spread and draws it. Rows that have stages "
             "in common share them. Ctrl-C saves; the same command goes on, and does not run again what is finished.",
    .example = "mohawk ablate --run \"16: --d-state 16\" \"64: --d-state 64\" --budget 1M --text corpus.txt",
    CLI_OPTIONS(options),
    CLI_SETTINGS(defaults),
    .check = check,
    .body = ablate,
    .others = &command_distill,
    .others_at = CLI_AT(words),
};
