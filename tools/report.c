/* mohawk report: what run folders hold, as one HTML file. See report.h. */
#include "report.h"
#include "settings.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- JSON */

char *report_string(foreign_json object, const char *name) {
  foreign_json value;
  char *text;
  if (!foreign_json_find(object, name, &value) || *value.at != '"') return NULL;
  text = (char *)malloc((size_t)(value.end - value.at) + 1);
  if (text && foreign_json_text(value, text) >= 0) return text;
  free(text);
  return NULL;
}

/* The next value of a list, whose at stands behind its bracket; 0: there is none. */
static int next_value(foreign_json *list, foreign_json *value) {
  while (list->at < list->end && strchr(", \n\r\t", *list->at)) list->at++;
  return list->at < list->end && *list->at != ']' && foreign_json_value(list, value);
}

static int find_list(foreign_json object, const char *name, foreign_json *list) {
  if (!foreign_json_find(object, name, list) || *list->at != '[') return 0;
  list->at++;
  return 1;
}

/* up to n numbers of a list; returns how many there are, -1 where one is none */
static int numbers(foreign_json object, const char *name, double *out, int n) {
  foreign_json list, value;
  int i;
  if (!find_list(object, name, &list)) return 0;
  for (i = 0; i < n && next_value(&list, &value); i++) {
    char *end;
    out[i] = strtod(value.at, &end);
    if (end != value.end) return -1;
  }
  return i;
}

/* ---------------------------------------------------------------- results.json */

static int wrong(const char *folder, const char *name, const char *what) {
  return cli_error("%s/%s is damaged: %s", folder, name, what);
}

/* A file of JSON in a folder, kept in *text; 0 where it is not there, -1 after a message. */
static int read_json(const char *folder, const char *name, cli_content *text, foreign_json *value) {
  char path[1024];
  foreign_json j, more;
  value->at = NULL;
  if (cli_join(path, sizeof path, folder, name) != CLI_GO) return -1;
  if (!cli_exists(path)) return 0;
  memset(text, 0, sizeof *text);
  if (cli_read(path, text) != CLI_GO) return -1;
  j.at = text->text;
  j.end = text->text + text->n;
  if (foreign_json_value(&j, value) && *value->at == '{' && !foreign_json_value(&j, &more)) return 1;
  wrong(folder, name, "it is not one JSON object");
  return -1;
}

/* An evaluation. Returns 0 when its numbers are none. */
static int read_measure(foreign_json x, report_measure *m, int with_teacher) {
  m->cross_entropy = settings_number(x, "cross_entropy", NAN);
  m->cross_entropy_error = settings_number(x, "cross_entropy_error", NAN);
  m->kl = settings_number(x, "kl", NAN);
  m->kl_error = settings_number(x, "kl_error", NAN);
  m->agreement = settings_number(x, "agreement", NAN);
  m->agreement_error = settings_number(x, "agreement_error", NAN);
  m->state_bytes = settings_number(x, "state_bytes", NAN);
  m->predictions = settings_number(x, "predictions", 0);
  if (numbers(x, "kl_by_quarter", m->kl_quarter, 4) != 4) m->kl_quarter[0] = NAN;
  m->sample = report_string(x, "sample");
  return isfinite(m->cross_entropy) && (!with_teacher || (isfinite(m->kl) && isfinite(m->agreement)));
}

static void read_model(foreign_json results, const char *name, report_model *m) {
  foreign_json models, x;
  char *text;
  if (!foreign_json_find(results, "models", &models) || !foreign_json_find(models, name, &x)) return;
  text = report_string(x, "mixers");
  if (!text) return;
  snprintf(m->mixers, sizeof m->mixers, "%s", text);
  free(text);
  m->parameters = settings_number(x, "parameters", 0);
  m->layers = settings_number(x, "layers", 0);
  m->width = settings_number(x, "width", 0);
  m->there = numbers(x, "state_bytes", m->bytes, 3) == 3;
}

static int by_tokens(const void *a, const void *b) {
  const report_measure *x = (const report_measure *)a, *y = (const report_measure *)b;
  return x->tokens != y->tokens ? (x->tokens > y->tokens) - (x->tokens < y->tokens) : x->stage - y->stage;
}

double report_before(const report_run *r, int stage) {
  double tokens = 0;
  int i;
  for (i = 0; i + 1 < stage; i++) tokens += r->tokens[i];
  return tokens;
}

static int read_results(report_run *r) {
  foreign_json list, value, kl;
  if (foreign_json_find(r->results, "finished", &value)) r->finished = *value.at == 't';
  r->prompt = report_string(r->results, "prompt");
  read_model(r->results, "teacher", &r->teacher_model);
  read_model(r->results, "student", &r->student_model);
  if (foreign_json_find(r->results, "teacher", &value)) {
    if (!read_measure(value, &r->teacher, 0))
      return wrong(r->folder, "results.json", "its teacher has no cross_entropy");
    r->has_teacher = 1;
  }
  if (!find_list(r->results, "evaluations", &list)) return CLI_GO;
  while (r->n_measures < REPORT_MEASURES && next_value(&list, &value)) {
    report_measure *m = &r->measures[r->n_measures++];
    const double stage = settings_number(value, "stage", -1);
    if (!(stage >= 0 && stage <= 3) || !read_measure(value, m, foreign_json_find(value, "kl", &kl)))
      return wrong(r->folder, "results.json",
                   "an evaluation has no stage from 0 to 3, cross_entropy, kl and agreement");
    m->stage = (int)stage;
    m->tokens = settings_number(value, "tokens", report_before(r, m->stage + 1));
    if (!(m->tokens >= 0 && m->tokens < 1e18))
      return wrong(r->folder, "results.json", "an evaluation has no number of tokens");
  }
  qsort(r->measures, (size_t)r->n_measures, sizeof *r->measures, by_tokens);
  return CLI_GO;
}

/* ---------------------------------------------------------------- a run */

/* The log, read strictly but for a last line without its end. */
static int read_log(report_run *r) {
  char path[1024], line[512];
  int number = 0, i;
  FILE *f;
  if (cli_join(path, sizeof path, r->folder, "log.csv") != CLI_GO) return CLI_FAILED;
  f = cli_open(path, "r");
  if (!f)
    return cli_error("%s has no log.csv, which mohawk distill and mohawk train write: it is no run folder", r->folder);
  while (fgets(line, sizeof line, f) && strchr(line, '\n')) {
    double stage;
    if (number++ > 0 && (sscanf(line, "%lf,%*f,%*f,%*f", &stage) != 1 || !(stage >= 1 && stage <= 3))) {
      fclose(f);
      return cli_error("%s is damaged: line %d is no update of a stage from 1 to 3", path, number);
    }
  }
  fclose(f);
  r->points = run_read_log(r->folder, 4, 0, &r->n_points);
  for (i = 0; i < r->n_points; i++)
    if (r->points[i].stage < 1 || r->points[i].stage > 3 || !(r->points[i].tokens > 0 && r->points[i].tokens < 1e18) ||
        !isfinite(r->points[i].loss))
      return cli_error("%s is damaged: update %d has no stage, tokens and loss", path, i + 1);
  return CLI_GO;
}

/* Tokens of each stage: as planned, and where it has ended as many as were trained. */
static void find_tokens(report_run *r) {
  foreign_json settings;
  int i, last = r->n_points ? r->points[r->n_points - 1].stage : 0;
  if (r->results.at) numbers(r->results, "tokens", r->tokens, 3);
  if (r->record.at && !r->results.at && foreign_json_find(r->record, "settings", &settings)) {
    if (r->trains) r->tokens[2] = settings_number(settings, "tokens", 0);
    else numbers(settings, "tokens", r->tokens, 3);
  }
  for (i = 0; i < 3; i++)
    if (!(r->tokens[i] >= 0 && r->tokens[i] < 1e15)) r->tokens[i] = 0;
  for (i = 0; i < r->n_points; i++) {
    const run_point *p = &r->points[i];
    if (i + 1 < r->n_points && r->points[i + 1].stage == p->stage) continue;
    if (p->stage < last || r->finished || p->tokens > r->tokens[p->stage - 1]) r->tokens[p->stage - 1] = p->tokens;
  }
}

static void find_kind(report_run *r) {
  foreign_json settings, value;
  r->kind = r->tokens[0] == 0 && r->tokens[1] == 0 ? REPORT_ALONE : REPORT_STAGES;
  if (!r->record.at || !foreign_json_find(r->record, "settings", &settings)) return;
  if (foreign_json_find(settings, "window", &value) && settings_number(settings, "window", 0) > 0)
    r->kind = REPORT_WINDOW;
  if (foreign_json_find(settings, "windows", &value)) r->kind = REPORT_WINDOW;
  if (foreign_json_find(settings, "keep-attention", &value) || foreign_json_find(settings, "keep-heads", &value) ||
      foreign_json_find(settings, "keep", &value))
    r->kind = REPORT_KEPT;
}

/* The relative errors at the moments of which there are matrices: of the last line of each head up
   to there. */
static int find_relative(report_run *r) {
  const watch_probes *p = &r->probes;
  int i, k;
  for (i = 0; i < WATCH_MOMENTS; i++) {
    const size_t n = (size_t)p->layers * (size_t)p->heads;
    if (!p->student[i]) continue;
    r->relative[i] = (double *)calloc(n, sizeof(double));
    if (!r->relative[i]) return cli_error("out of memory");
    for (k = 0; k < r->n_heads; k++) {
      const watch_head *h = &r->heads[k];
      if (h->layer >= p->layers || h->head >= p->heads)
        return wrong(r->folder, "heads.csv", "it names heads that probes.safetensors has not");
      if (h->stage == i) r->relative[i][h->layer * p->heads + h->head] = h->relative;
    }
  }
  return CLI_GO;
}

static int read_run(mhk_context *ctx, report_run *r, const char *folder, const char *name) {
  const char *last = folder;
  char *command;
  size_t n = strlen(folder);
  r->folder = folder;
  while (n > 1 && folder[n - 1] == '/') n--;
  for (last = folder + n; last > folder && last[-1] != '/';) last--;
  if (name) snprintf(r->name, sizeof r->name, "%s", name);
  else snprintf(r->name, sizeof r->name, "%.*s", (int)(folder + n - last), last);
  if (read_json(folder, "run.json", &r->record_text, &r->record) < 0 ||
      read_json(folder, "results.json", &r->results_text, &r->results) < 0 || read_log(r) != CLI_GO)
    return CLI_FAILED;
  command = r->record.at ? report_string(r->record, "command") : NULL;
  r->trains = command && strcmp(command, "train") == 0;
  free(command);
  find_tokens(r);
  if (r->results.at && read_results(r) != CLI_GO) return CLI_FAILED;
  find_tokens(r); /* once more: a finished run has its tokens from the log */
  find_kind(r);
  if (watch_read_heads(folder, 4, 0, &r->heads, &r->n_heads) != CLI_GO ||
      watch_read_probes(ctx, folder, &r->probes) != CLI_GO)
    return CLI_FAILED;
  return find_relative(r);
}

static void free_run(report_run *r) {
  int i;
  free(r->record_text.text);
  free(r->results_text.text);
  free(r->points);
  for (i = 0; i < r->n_measures; i++) free(r->measures[i].sample);
  free(r->teacher.sample);
  free(r->prompt);
  free(r->heads);
  watch_free_probes(&r->probes);
  for (i = 0; i < WATCH_MOMENTS; i++) free(r->relative[i]);
}

/* ---------------------------------------------------------------- a table of experiments */

/* the KL of a row's run with one seed: its last stage's */
static double last_kl(foreign_json run) {
  foreign_json list, value;
  double kl = NAN;
  if (!find_list(run, "after", &list)) return NAN;
  while (next_value(&list, &value)) kl = settings_number(value, "kl", NAN);
  return kl;
}

static int read_table(report_table *t, const char *folder) {
  static const char what[] = "it is not what mohawk ablate writes";
  foreign_json rows, row, runs, run;
  t->folder = folder;
  if (read_json(folder, "ablation.json", &t->text, &t->root) < 0) return CLI_FAILED;
  if (!find_list(t->root, "rows", &rows)) return wrong(folder, "ablation.json", what);
  while (t->n < REPORT_ROWS && next_value(&rows, &row)) {
    char *name = report_string(row, "name");
    int k = 0;
    if (!name || numbers(row, "tokens", t->tokens[t->n], 3) != 3 || !find_list(row, "runs", &runs)) {
      free(name);
      return wrong(folder, "ablation.json", what);
    }
    snprintf(t->name[t->n], sizeof t->name[0], "%s", name);
    free(name);
    while (k < REPORT_SEEDS && next_value(&runs, &run)) {
      t->seeds[k] = settings_number(run, "seed", k);
      t->kl[t->n][k++] = last_kl(run);
    }
    if (k > t->n_seeds) t->n_seeds = k;
    for (; k < REPORT_SEEDS; k++) t->kl[t->n][k] = NAN;
    t->n++;
  }
  return t->n ? CLI_GO : wrong(folder, "ablation.json", "it has no rows");
}

/* ---------------------------------------------------------------- all of it */

static int is_table(const char *folder) {
  char path[1024];
  return cli_join(path, sizeof path, folder, "ablation.json") == CLI_GO && cli_exists(path);
}

int report_write(mhk_context *ctx, const char *path, int n, const char *const *folders, const report_about *about) {
  report *r = (report *)calloc(1, sizeof *r);
  cli_output o;
  int i, code = r ? CLI_GO : cli_error("out of memory");
  if (r && about) r->about = *about;
  for (i = 0; i < n && code == CLI_GO; i++) {
    if (is_table(folders[i]) ? r->n_tables == REPORT_RUNS : r->n == REPORT_RUNS)
      code = cli_error("a report shows at most %d runs and as many tables", REPORT_RUNS);
    else if (is_table(folders[i])) code = read_table(&r->table[r->n_tables++], folders[i]);
    else code = read_run(ctx, &r->run[r->n++], folders[i], r->about.names ? r->about.names[i] : NULL);
  }
  if (code == CLI_GO) code = cli_output_open(&o, path);
  if (code == CLI_GO) {
    page_write(o.file, r);
    code = cli_output_close(&o);
  }
  if (code == CLI_GO && r->about.svg) code = cli_output_open(&o, r->about.svg);
  if (code == CLI_GO && r->about.svg) {
    const int any = page_figure(o.file, r);
    code = cli_output_close(&o);
    if (code == CLI_GO && !any)
      code = cli_error("%s is empty: no run was measured during training (see mohawk distill --eval)", r->about.svg);
  }
  for (i = 0; r && i < r->n; i++) free_run(&r->run[i]);
  for (i = 0; r && i < r->n_tables; i++) free(r->table[i].text.text);
  free(r);
  return code;
}

typedef struct settings {
  cli_files folders;
  const char *out, *svg;
} settings;

static const settings defaults = {.out = "report.html"};

static const cli_option options[] = {
    {NULL, "FOLDER...", CLI_REST, CLI_AT(folders), 1, 0, NULL},
    {"out", "FILE", CLI_TEXT, CLI_AT(out), 0, 0, "the report (default report.html)"},
    {"svg", "FILE", CLI_TEXT, CLI_AT(svg), 0, 0, "also the figure of what each stage bought, alone"},
};

static int report_command(mhk_context *ctx, void *user) {
  const settings *s = (const settings *)user;
  report_about about;
  memset(&about, 0, sizeof about);
  about.svg = s->svg;
  if (report_write(ctx, s->out, s->folders.n, s->folders.path, &about) != CLI_GO) return CLI_FAILED;
  printf("saved     %s%s%s\n", s->out, s->svg ? ", " : "", s->svg ? s->svg : "");
  return CLI_OK;
}

const cli_command command_report = {
    .name = "report",
    .summary = "write a page about runs: what each stage bought, losses, matrices",
    .synopsis = "FOLDER... [--out FILE] [--svg FILE]",
    .about =
        "Writes one HTML file about folders that mohawk distill, mohawk train and mohawk ablate wrote, finished or "
        "not: what came out, what each stage bought, losses, relative errors of all heads, mixing matrices, "
        "samples, settings. It opens without a network and prints. Several runs are drawn over each other. "
        "mohawk distill --report writes it during the run.",
    .example = "mohawk report run1 run2 --out report.html",
    CLI_OPTIONS(options),
    CLI_SETTINGS(defaults),
    .body = report_command,
};
