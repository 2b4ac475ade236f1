/* findings.c: what a table of experiments found, as text, picture and JSON. */
#include "ablate.h"
#include "picture.h"
#include "settings.h"
#include <math.h>
#include <string.h>

/* a number over seeds */
typedef struct spread {
  double mean, least, most, error; /* error: standard error of the mean, NaN of one seed */
  int n;
} spread;

enum { KL, CROSS_ENTROPY, AGREEMENT };

static double number(const ablate_result *r, int which) {
  return !r->there ? NAN : which == KL ? r->kl : which == CROSS_ENTROPY ? r->cross_entropy : r->agreement;
}

static const ablate_job *job_of(const ablate_table *t, int row, int seed) { return &t->jobs[row * t->n_seeds + seed]; }

static spread spread_over(const ablate_table *t, int row, int stage, int which) {
  spread s = {0, INFINITY, -INFINITY, NAN, 0};
  double squares = 0;
  int i;
  for (i = 0; i < t->n_seeds; i++) {
    const double x = number(&job_of(t, row, i)->after[stage], which);
    if (isnan(x)) continue;
    s.mean += x;
    s.least = fmin(s.least, x);
    s.most = fmax(s.most, x);
    s.n++;
  }
  s.mean = s.n ? s.mean / s.n : NAN;
  for (i = 0; i < t->n_seeds; i++) {
    const double x = number(&job_of(t, row, i)->after[stage], which);
    if (!isnan(x)) squares += (x - s.mean) * (x - s.mean);
  }
  if (s.n > 1) s.error = sqrt(squares / (s.n - 1) / s.n);
  return s;
}

static spread last_of(const ablate_table *t, int row, int which) {
  return spread_over(t, row, ablate_last(&t->rows[row]), which);
}

/* whether there is something to say of stage 2 alone */
static int has_middle(const ablate_table *t) {
  int i;
  for (i = 0; i < t->n_rows; i++)
    if (t->rows[i].tokens[1] > 0 && t->rows[i].tokens[2] > 0) return 1;
  return 0;
}

/* ---------------------------------------------------------------- text */

static void print_table(const ablate_table *t) {
  const int middle = has_middle(t);
  cli_buffer a, b, c;
  int i;
  printf("%s%-22s %7s %7s %7s   %-24s %-8s %-7s%s%s\n", cli_bold(stdout), "", "stage 1", "stage 2", "stage 3",
         "KL to teacher", "cross-e.", "same", middle ? "  KL after stage 2" : "", cli_plain(stdout));
  for (i = 0; i < t->n_rows; i++) {
    const ablate_row *r = &t->rows[i];
    const spread kl = last_of(t, i, KL), ce = last_of(t, i, CROSS_ENTROPY), same = last_of(t, i, AGREEMENT),
                 two = spread_over(t, i, 2, KL);
    printf("%-22s %7s %7s %7s   %.3f (%.3f to %.3f)   %.3f    %4.1f %%", r->name, cli_count(r->tokens[0], &a),
           cli_count(r->tokens[1], &b), cli_count(r->tokens[2], &c), kl.mean, kl.least, kl.most, ce.mean,
           100 * same.mean);
    if (middle && two.n > 0) printf("   %.3f (%.3f to %.3f)", two.mean, two.least, two.most);
    printf("\n");
  }
  printf("means over %d seed%s; in brackets the least and the most of them\n", t->n_seeds, t->n_seeds == 1 ? "" : "s");
}

static int row_named(const ablate_table *t, const char *name) {
  int i;
  for (i = 0; i < t->n_rows; i++)
    if (strcmp(t->rows[i].name, name) == 0) return i;
  return -1;
}

/* Without one stage, its tokens in the others: what was lost. */
static double print_without(const ablate_table *t, int stage, const char *name) {
  const int without = row_named(t, name), all = row_named(t, "1+2+3");
  const spread a = last_of(t, all, KL), b = last_of(t, without, KL);
  const int apart = b.least > a.most || b.most < a.least;
  printf("  stage %d %s at this budget: KL %.3f with it, %.3f with its tokens in the others (%+.0f %%)%s\n", stage,
         b.mean > a.mean ? "helps" : "does not help", a.mean, b.mean, 100 * (b.mean / a.mean - 1),
         t->n_seeds < 2 ? "" : apart ? ", all seeds apart" : ", within the spread of the seeds");
  return b.mean - a.mean;
}

/* the paper's findings, as far as they show here */
static void print_stages(const ablate_table *t) {
  const char *const rows[] = {"2+3", "1+2+3, split 1/8", "1+2+3, split 2/8", "1+2+3", "1+2+3, split 4/8",
                              "1+2+3, split 6/8"};
  static const int eighths[] = {0, 1, 2, 3, 4, 6};
  static const char *const says[] = {"tokens of stage 1 do not help stage 2 here",
                                     "the more tokens stage 1 gets, the better stage 2 ends, as far as this goes",
                                     "tokens of stage 1 help stage 2 up to a point, and then it lacks them"};
  double lost[3], best = INFINITY;
  int i, at = 0;
  printf("split a/8: what stage 1 has of the tokens of stages 1 and 2; 1+2+3 has 3/8\n\n"
         "what came out, from the paper's start (--recipe paper; the default start is calibrated and leaves less to "
         "stage 1),\nwith rates for this model size, four times as high in stage 3 where stage 2 is left out:\n");
  lost[0] = print_without(t, 1, "2+3");
  lost[1] = print_without(t, 2, "1+3");
  lost[2] = print_without(t, 3, "1+2");
  printf("  most is lost without stage %d\n",
         lost[1] >= lost[0] && lost[1] >= lost[2] ? 2 : lost[0] >= lost[2] ? 1 : 3);
  printf("  KL after stage 2, by stage 1's share of the tokens of both:");
  for (i = 0; i < CLI_COUNT_OF(rows); i++) {
    const double kl = spread_over(t, row_named(t, rows[i]), 2, KL).mean;
    printf(" %d/8 %.3f%s", eighths[i], kl, i + 1 < CLI_COUNT_OF(rows) ? "," : "");
    if (kl < best) {
      best = kl;
      at = i;
    }
  }
  printf("\n  %s\n", says[at == 0 ? 0 : at + 1 == CLI_COUNT_OF(rows) ? 1 : 2]);
}

/* ---------------------------------------------------------------- picture */

/* Two charts: what each row reached, and what those that train stages 2 and 3 had in between. */
static int draw(const ablate_table *t) {
  const char *names[2][ABLATE_MOST];
  static double values[2][ABLATE_MOST * ABLATE_SEEDS];
  picture_bars charts[2] = {{.names = names[0], .values = values[0], .seeds = t->n_seeds},
                            {.names = names[1], .values = values[1], .seeds = t->n_seeds}};
  char path[1024], title[160], below[160];
  cli_output o;
  cli_buffer tokens;
  int i, k, c;
  for (i = 0; i < t->n_rows; i++)
    for (c = 0; c < 2; c++) {
      if (c == 1 && !(t->rows[i].tokens[1] > 0 && t->rows[i].tokens[2] > 0)) continue;
      names[c][charts[c].n] = t->rows[i].name;
      for (k = 0; k < t->n_seeds; k++)
        values[c][charts[c].n * t->n_seeds + k] =
            number(&job_of(t, i, k)->after[c == 1 ? 2 : ablate_last(&t->rows[i])], KL);
      charts[c].n++;
    }
  snprintf(title, sizeof title, "%s: KL to the teacher, lower is better", t->title);
  snprintf(below, sizeof below, "%s tokens each; bar: mean of %d seed%s, dots: each, line: least to most",
           cli_count(t->rows[0].tokens[0] + t->rows[0].tokens[1] + t->rows[0].tokens[2], &tokens), t->n_seeds,
           t->n_seeds == 1 ? "" : "s");
  charts[0].title = title;
  charts[0].below = below;
  charts[1].title = "the same after stage 2";
  charts[1].below = "of the rows that train both stages 2 and 3";
  if (cli_join(path, sizeof path, t->out, "ablation.svg") != CLI_GO || cli_output_open(&o, path) != CLI_GO)
    return CLI_FAILED;
  picture_bars_svg(o.file, charts, charts[1].n > 0 ? 2 : 1);
  return cli_output_close(&o);
}

/* ---------------------------------------------------------------- JSON */

static void json_spread(cli_json *j, const char *key, const spread *s) {
  json_open(j, key, '{');
  json_real(j, "mean", s->mean);
  json_real(j, "least", s->least);
  json_real(j, "most", s->most);
  json_real(j, "standard_error", s->error);
  json_close(j);
}

static void json_run(cli_json *j, const ablate_table *t, const ablate_job *job) {
  int stage;
  json_open(j, NULL, '{');
  json_count(j, "seed", t->seeds[job->seed]);
  json_text(j, "folder", job->folder);
  json_open(j, "after", '[');
  for (stage = 1; stage <= 3; stage++) {
    if (!job->after[stage].there) continue;
    json_open(j, NULL, '{');
    json_count(j, "stage", stage);
    json_real(j, "kl", job->after[stage].kl);
    json_real(j, "cross_entropy", job->after[stage].cross_entropy);
    json_real(j, "agreement", job->after[stage].agreement);
    json_close(j);
  }
  json_close(j);
  json_close(j);
}

static void json_row(cli_json *j, const ablate_table *t, int row) {
  static const char *const keys[] = {"kl", "cross_entropy", "agreement"};
  const ablate_row *r = &t->rows[row];
  int i;
  json_open(j, NULL, '{');
  json_text(j, "name", r->name);
  json_open(j, "options", '[');
  for (i = 0; i < r->n_words; i++) json_text(j, NULL, r->words[i]);
  json_close(j);
  json_open(j, "tokens", '[');
  for (i = 0; i < 3; i++) json_count(j, NULL, r->tokens[i]);
  json_close(j);
  for (i = 0; i < 3; i++) {
    const spread s = last_of(t, row, i);
    json_spread(j, keys[i], &s);
  }
  json_open(j, "runs", '[');
  for (i = 0; i < t->n_seeds; i++) json_run(j, t, job_of(t, row, i));
  json_close(j);
  json_close(j);
}

static void write_json(FILE *out, const ablate_table *t) {
  cli_json j;
  int i;
  json_start(&j, out, 1);
  json_open(&j, NULL, '{');
  json_text(&j, "title", t->title);
  json_text(&j, "mohawk", mhk_version());
  json_text(&j, "teacher", t->teacher);
  json_count(&j, "seeds", t->n_seeds);
  json_open(&j, "rows", '[');
  for (i = 0; i < t->n_rows; i++) json_row(&j, t, i);
  json_close(&j);
  json_close(&j);
}

int ablate_report(const ablate_table *t, int json) {
  char path[1024];
  cli_output o;
  if (draw(t) != CLI_GO || cli_join(path, sizeof path, t->out, "ablation.json") != CLI_GO ||
      cli_output_open(&o, path) != CLI_GO)
    return CLI_FAILED;
  write_json(o.file, t);
  if (cli_output_close(&o) != CLI_GO) return CLI_FAILED;
  if (json) {
    write_json(stdout, t);
    return CLI_GO;
  }
  print_table(t);
  if (t->preset == 0) print_stages(t);
  printf("saved     %s/ablation.svg, %s\n", t->out, path);
  return CLI_GO;
}
