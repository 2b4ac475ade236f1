/* mohawk matrices: how well structured matrices fit the attention matrices of a model. */
#include "families.h"
#include "heads.h"
#include "picture.h"
#include "run.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct settings {
  cli_files paths;
  const char *from, *heads, *svg, *save;
  cli_numbers layers, orders;
  int at, threads, json, encoding;
  mhk_index windows, length;
} settings;

static const settings defaults = {.windows = 2, .length = 64, .orders = {{1, 2, 4, 8, 16, 32, 64}, 7}};

static const cli_option options[] = {
    {NULL, "MODEL [TEXT...]", CLI_REST, CLI_AT(paths), 0, 0, NULL},
    {"from", "FILE", CLI_TEXT, CLI_AT(from), 0, 0,
     "in place of a model: causal matrices from a safetensors file, each tensor (T,T), (heads,T,T) or "
     "(windows,heads,T,T)"},
    {"layers", "L,...", CLI_NUMBERS, CLI_AT(layers), 0, MHK_MAX_LAYERS - 1, "only these layers (default: all)"},
    {"heads", "L.H,...", CLI_TEXT, CLI_AT(heads), 0, 0, "only these heads, as 2.1,0.3 (default: all)"},
    {"length", "N", CLI_COUNT, CLI_AT(length), 2, 1024,
     "tokens per window: matrices are N x N (default 64; twice as many take several times as long)"},
    {"windows", "N", CLI_COUNT, CLI_AT(windows), 1, 1e6, "windows of text (default 2)"},
    {"orders", "R,...", CLI_NUMBERS, CLI_AT(orders), 1, 1024,
     "orders of the families, ascending (default 1,2,4,8,16,32,64, as far as the length goes)"},
    {"at", "R", CLI_INT, CLI_AT(at), 1, 1024,
     "order at which layers and heads are listed (default: the middle one); --json has them at all orders"},
    {"svg", "FILE", CLI_TEXT, CLI_AT(svg), 0, 0, "draw the distances against the order, for all heads and each layer"},
    {"save", "FILE", CLI_TEXT, CLI_AT(save), 0, 0, "write the matrices as safetensors, in the form that --from reads"},
    CLI_ENCODING(CLI_AT(encoding)),
    CLI_THREADS(CLI_AT(threads)),
    CLI_STRICT,
    CLI_JSON(CLI_AT(json)),
};

/* Matrices that belong together: a layer, or a tensor of a file. Those of a window are adjacent. */
typedef struct group {
  char name[64];
  mhk_index first, windows, heads;
  int layer, *head; /* numbers of the heads, malloc'ed */
} group;

/* what is measured and said */
typedef struct report {
  const settings *s;
  int orders[FAMILY_MOST_ORDERS], n_orders, at; /* at: the place of the order for lists */
  mhk_index T, n;
  group *groups;
  int n_groups;
  double *M;             /* (n,T,T) */
  family_errors *errors; /* (n) */
} report;

static int check(void *user) {
  const settings *s = (const settings *)user;
  int i;
  if (s->paths.n == 0 && !s->from) return cli_missing(&command_matrices, "a MODEL or --from FILE");
  if (s->from && (s->paths.n > 0 || s->heads || s->layers.n > 0)) {
    cli_error("--from measures all matrices of its file: it goes with no model, --layers or --heads");
    return CLI_USAGE;
  }
  if (s->orders.n > FAMILY_MOST_ORDERS) {
    cli_error("--orders has %d numbers: %d are the limit", s->orders.n, (int)FAMILY_MOST_ORDERS);
    return CLI_USAGE;
  }
  for (i = 0; i < s->orders.n; i++) {
    const double r = s->orders.value[i];
    if (r >= 1 && floor(r) == r && (i == 0 || r > s->orders.value[i - 1])) continue;
    cli_error("--orders are whole numbers in ascending order, as 1,4,16");
    return CLI_USAGE;
  }
  return CLI_GO;
}

/* ---------------------------------------------------------------- matrices */

/* memory for one more group of matrices; NULL after a message */
static group *add_group(report *r, mhk_index windows, mhk_index heads) {
  const size_t each = (size_t)(r->T * r->T), n = (size_t)(r->n + windows * heads);
  group *all = (group *)realloc(r->groups, (size_t)(r->n_groups + 1) * sizeof *all), *g;
  double *M = n <= (size_t)1 << 24 ? (double *)realloc(r->M, n * each * sizeof *M) : NULL;
  if (all) r->groups = all;
  if (M) r->M = M;
  g = all ? &all[r->n_groups] : NULL;
  if (g) {
    memset(g, 0, sizeof *g);
    g->head = (int *)calloc((size_t)heads, sizeof *g->head);
  }
  if (!g || !M || !g->head) {
    cli_error("out of memory for %.0f matrices of %lld x %lld", (double)n, (long long)r->T, (long long)r->T);
    return NULL;
  }
  g->first = r->n;
  g->windows = windows;
  g->heads = heads;
  r->n += windows * heads;
  r->n_groups++;
  return g;
}

static double *matrix_at(const report *r, mhk_index i) { return r->M + i * r->T * r->T; }

/* which heads of a model are measured: chosen (n_layer,n_head) */
static int choose(const report *r, const mhk_config *c, int32_t *chosen) {
  const settings *s = r->s;
  int i, l, h;
  for (i = 0; i < s->layers.n; i++)
    if (!(s->layers.value[i] < c->n_layer) || floor(s->layers.value[i]) != s->layers.value[i])
      return cli_error("--layers: there is no layer %g, the model has layers 0 to %d", s->layers.value[i],
                       c->n_layer - 1);
  if (s->heads && head_parse_kept(s->heads, c, chosen) != CLI_GO) return CLI_FAILED;
  for (l = 0; l < c->n_layer; l++) {
    int wanted = s->layers.n == 0;
    for (i = 0; i < s->layers.n; i++) wanted |= (int)s->layers.value[i] == l;
    for (h = 0; h < c->n_head; h++) {
      int32_t *x = &chosen[l * c->n_head + h];
      *x = wanted && c->mixer[l] == MHK_MIXER_ATTENTION && (!s->heads || *x == MHK_WINDOW_ALL);
    }
  }
  return CLI_GO;
}

static int add_groups(report *r, const mhk_config *c, const int32_t *chosen) {
  int l, h, n;
  for (l = 0; l < c->n_layer; l++) {
    group *g;
    for (n = h = 0; h < c->n_head; h++) n += chosen[l * c->n_head + h] != 0;
    if (n == 0) continue;
    g = add_group(r, r->s->windows, n);
    if (!g) return CLI_FAILED;
    g->layer = l;
    snprintf(g->name, sizeof g->name, "layer %d", l);
    for (n = h = 0; h < c->n_head; h++)
      if (chosen[l * c->n_head + h]) g->head[n++] = h;
  }
  return r->n_groups > 0 ? CLI_GO : cli_error("no head that was chosen has attention: there is nothing to measure");
}

/* the attention matrices of one window of tokens */
static int read_window(mhk_context *ctx, const report *r, mhk_model *m, const int32_t *tokens, mhk_index window) {
  mhk_tensor *streams[MHK_MAX_LAYERS + 1];
  const mhk_forward_desc desc = {.residuals = streams, .last_only = 1};
  mhk_tape *t = mhk_tape_create(ctx);
  mhk_index k, i;
  int g;
  mhk_tape_record(t, 0);
  mhk_forward(t, m, tokens, 1, r->T, &desc);
  for (g = 0; g < r->n_groups && !mhk_failed(ctx); g++) {
    const group *x = &r->groups[g];
    const mhk_tape_mark mark = mhk_tape_here(t);
    const mhk_real *all = mhk_data(mhk_forward_matrix(t, m, x->layer, mhk_forward_norm(t, m, x->layer,
                                                                                       streams[x->layer]), NULL));
    for (k = 0; all && k < x->heads; k++) {
      double *M = matrix_at(r, x->first + window * x->heads + k);
      for (i = 0; i < r->T * r->T; i++) M[i] = (double)all[x->head[k] * r->T * r->T + i];
    }
    mhk_tape_rewind(t, mark);
  }
  mhk_tape_destroy(t);
  return mhk_failed(ctx) ? cli_context_error(ctx) : CLI_GO;
}

static int read_model(mhk_context *ctx, report *r) {
  const settings *s = r->s;
  mhk_model *m = cli_load(ctx, s->paths.path[0]);
  const mhk_config *c = mhk_model_config(m);
  mhk_corpus *text;
  const int32_t *tokens;
  int32_t *chosen;
  mhk_index w;
  int code;
  if (!m) return cli_context_error(ctx);
  r->T = s->length;
  text = run_some_text(ctx, m, s->paths.n - 1, s->paths.path + 1, s->encoding, s->windows * s->length);
  if (!text || cli_stopped()) return CLI_FAILED;
  if (mhk_corpus_tokens(text, &tokens) < s->windows * s->length)
    return cli_error("the text is too short: it has %lld tokens, and --windows %lld of --length %lld need %lld",
                     (long long)mhk_corpus_tokens(text, &tokens), (long long)s->windows, (long long)s->length,
                     (long long)(s->windows * s->length));
  chosen = (int32_t *)calloc((size_t)c->n_layer * (size_t)(c->n_head + 1), sizeof *chosen);
  if (!chosen) return cli_error("out of memory");
  code = choose(r, c, chosen);
  if (code == CLI_GO) code = add_groups(r, c, chosen);
  free(chosen);
  for (w = 0; w < s->windows && code == CLI_GO; w++) code = read_window(ctx, r, m, tokens + w * s->length, w);
  mhk_corpus_destroy(text);
  mhk_model_destroy(m);
  return code;
}

/* whether all matrices of a group differ from zero, which no distance is relative to */
static int check_group(const report *r, const group *g) {
  mhk_index i, k;
  for (i = g->first; i < g->first + g->windows * g->heads; i++) {
    for (k = 0; k < r->T * r->T && matrix_at(r, i)[k] == 0; k++) {}
    if (k == r->T * r->T) return cli_error("%s: tensor %s has a matrix of zeros", r->s->from, g->name);
  }
  return CLI_GO;
}

/* one tensor of a file of matrices */
static int read_tensor(mhk_context *ctx, report *r, const mhk_stored *x) {
  const mhk_index side = x->rank >= 2 ? x->shape[x->rank - 1] : 0;
  const mhk_index windows = x->rank == 4 ? x->shape[0] : 1, heads = x->rank >= 3 ? x->shape[x->rank - 3] : 1;
  mhk_index i, k;
  mhk_real *values;
  group *g;
  if (x->rank < 2 || x->rank > 4 || side != x->shape[x->rank - 2] || side < 2 || side > 1024 || x->count == 0)
    return cli_error("%s: tensor %s is none of (T,T), (heads,T,T) and (windows,heads,T,T), T from 2 to 1024",
                     r->s->from, x->name);
  if (r->n_groups > 0 && side != r->T)
    return cli_error("%s: tensor %s has matrices of %lld x %lld, others of %lld x %lld", r->s->from, x->name,
                     (long long)side, (long long)side, (long long)r->T, (long long)r->T);
  r->T = side;
  g = add_group(r, windows, heads);
  values = g ? (mhk_real *)malloc((size_t)x->count * sizeof *values) : NULL;
  if (!values) return g ? cli_error("out of memory for tensor %s", x->name) : CLI_FAILED;
  snprintf(g->name, sizeof g->name, "%.60s", x->name);
  g->layer = r->n_groups - 1;
  for (k = 0; k < heads; k++) g->head[k] = (int)k;
  if (mhk_file_read(ctx, x, values) != MHK_OK) {
    free(values);
    return cli_context_error(ctx);
  }
  for (i = 0; i < x->count; i++) {
    const mhk_index row = i / side % side, column = i % side;
    if (isfinite((double)values[i]) && (column <= row || values[i] == 0)) {
      matrix_at(r, g->first)[i] = (double)values[i];
      continue;
    }
    free(values);
    return cli_error("%s: tensor %s is not causal: row %lld, column %lld is %s", r->s->from, x->name, (long long)row,
                     (long long)column, column > row ? "not 0" : "not finite");
  }
  free(values);
  return check_group(r, g);
}

static int read_file(mhk_context *ctx, report *r) {
  mhk_file *f = mhk_file_open(ctx, r->s->from);
  int i, code = CLI_GO;
  if (!f) return cli_context_error(ctx);
  if (mhk_file_count(f) == 0) code = cli_error("%s has no tensors", r->s->from);
  for (i = 0; i < mhk_file_count(f) && code == CLI_GO; i++) code = read_tensor(ctx, r, mhk_file_at(f, i));
  mhk_file_close(f);
  return code;
}

/* all matrices as a file that --from reads */
static int save(mhk_context *ctx, const report *r) {
  mhk_stored *all = (mhk_stored *)calloc((size_t)r->n_groups, sizeof *all);
  char(*names)[64] = (char(*)[64])calloc((size_t)r->n_groups, sizeof *names);
  mhk_result result = MHK_ERROR_MEMORY;
  int g;
  for (g = 0; all && names && g < r->n_groups; g++) {
    const group *x = &r->groups[g];
    const mhk_index shape[4] = {x->windows, x->heads, r->T, r->T};
    if (r->s->from) snprintf(names[g], sizeof names[g], "%s", x->name);
    else snprintf(names[g], sizeof names[g], "layers.%03d", x->layer);
    all[g].name = names[g];
    all[g].dtype = MHK_F64;
    all[g].rank = 4;
    memcpy(all[g].shape, shape, sizeof shape);
    all[g].count = x->windows * x->heads * r->T * r->T;
    all[g].data = matrix_at(r, x->first);
    all[g].bytes = (size_t)all[g].count * sizeof(double);
  }
  if (all && names) result = mhk_file_write(ctx, r->s->save, r->n_groups, all, 0, NULL);
  free(all);
  free(names);
  if (result == MHK_ERROR_MEMORY && !mhk_failed(ctx)) return cli_error("out of memory");
  return result == MHK_OK ? CLI_GO : cli_context_error(ctx);
}

/* ---------------------------------------------------------------- measuring */

/* what all threads share */
typedef struct fitting {
  report *r;
  mhk_index done, total;
  double started;
  cli_progress line;
  char message[256]; /* the first error */
} fitting;

/* a fit has ended: counted and shown */
static int fitted(void *user) {
  fitting *x = (fitting *)user;
#ifdef _OPENMP
#pragma omp critical(mohawk_matrices)
#endif
  {
    const double seconds = cli_clock() - x->started, share = (double)++x->done / (double)x->total;
    cli_buffer bar, left;
    if (cli_progress_due(&x->line, 0) && seconds > 0)
      cli_progress_show(&x->line, 0, "fitting   %lld matrices  %s  %3.0f %%   %.1f fits/s   %s left",
                        (long long)x->r->n, cli_bar(share, &bar), 100 * share, (double)x->done / seconds,
                        cli_time(seconds / share - seconds, &left));
  }
  return cli_stopped();
}

/* All matrices, each by one thread with a context of its own: what a matrix gets depends on nothing
   else. */
static int measure(report *r, int threads) {
  fitting x = {.r = r, .total = 2 * r->n * r->n_orders, .started = cli_clock()};
  const family_desc d = {.T = r->T, .orders = r->orders, .n = r->n_orders, .fitted = fitted, .user = &x};
  mhk_index i;
  if (threads > r->n) threads = (int)r->n;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
#endif
  {
    mhk_context *ctx = mhk_create(NULL);
#ifdef _OPENMP
#pragma omp for schedule(dynamic)
#endif
    for (i = 0; i < r->n; i++) {
      if (cli_stopped() || mhk_failed(ctx)) continue;
      family_measure(ctx, matrix_at(r, i), &d, &r->errors[i]);
    }
    if (mhk_failed(ctx)) {
#ifdef _OPENMP
#pragma omp critical(mohawk_matrices)
#endif
      snprintf(x.message, sizeof x.message, "%s", ctx ? mhk_message(ctx) : "out of memory");
    }
    mhk_destroy(ctx);
  }
  cli_progress_clear();
  if (x.message[0]) return cli_error("%s", x.message);
  return cli_stopped() ? CLI_FAILED : CLI_GO;
}

/* ---------------------------------------------------------------- means */

typedef struct mean {
  double mean, error; /* error: standard error; NaN of one matrix */
} mean;

/* Of a family at an order, over heads and windows; g, k: of a group and of a head in it only, -1:
   of all. */
static mean mean_of(const report *r, int f, int o, int g, mhk_index k) {
  double sum = 0, squares = 0, n = 0;
  mhk_index i;
  mean m;
  int a;
  for (a = g < 0 ? 0 : g; a < (g < 0 ? r->n_groups : g + 1); a++)
    for (i = 0; i < r->groups[a].windows * r->groups[a].heads; i++) {
      if (k >= 0 && i % r->groups[a].heads != k) continue;
      sum += r->errors[r->groups[a].first + i].relative[f][o];
      n++;
    }
  m.mean = sum / n;
  for (a = g < 0 ? 0 : g; a < (g < 0 ? r->n_groups : g + 1); a++)
    for (i = 0; i < r->groups[a].windows * r->groups[a].heads; i++) {
      const double off = r->errors[r->groups[a].first + i].relative[f][o] - m.mean;
      if (k < 0 || i % r->groups[a].heads == k) squares += off * off;
    }
  m.error = n > 1 ? sqrt(squares / (n - 1) / n) : NAN;
  return m;
}

static int unfinished(const report *r) {
  int n = 0;
  mhk_index i;
  for (i = 0; i < r->n; i++) n += r->errors[i].unfinished;
  return n;
}

/* the expected order of families, worst first */
static const family expected[] = {FAMILY_TOEPLITZ, FAMILY_CAUSAL_LOW_RANK, FAMILY_SSD, FAMILY_SEMISEPARABLE};

/* Whether the means of an order stand as expected; to 0.001, below which fits are not continued.
   *first receives the place in expected of the first that is closer than the one behind it. */
static int as_expected(const report *r, int o, int *first) {
  for (*first = 0; *first + 1 < CLI_COUNT_OF(expected); (*first)++)
    if (mean_of(r, expected[*first], o, -1, -1).mean + 1e-3 < mean_of(r, expected[*first + 1], o, -1, -1).mean)
      return 0;
  return 1;
}

/* ---------------------------------------------------------------- text */

enum { PAGE = 96, NAMES = 17, CELL = 15 };

static void print_mean(mean m) {
  char text[32];
  if (isnan(m.error)) snprintf(text, sizeof text, "%.3f", m.mean);
  else snprintf(text, sizeof text, "%.3f +- %.3f", m.mean, m.error);
  printf("  %14s", text);
}

static void print_orders(const report *r) {
  const int most = (PAGE - NAMES) / (CELL + 1);
  int from, o, f;
  for (from = 0; from < r->n_orders; from += most) {
    printf("%s%-*s", cli_bold(stdout), (int)NAMES, "order");
    for (o = from; o < r->n_orders && o < from + most; o++) printf("  %14d", r->orders[o]);
    printf("%s\n", cli_plain(stdout));
    for (f = 0; f < FAMILIES; f++) {
      printf("%-*s", (int)NAMES, family_names[f]);
      for (o = from; o < r->n_orders && o < from + most; o++) print_mean(mean_of(r, f, o, -1, -1));
      putchar('\n');
    }
    putchar('\n');
  }
}

/* every layer and head at one order */
static void print_heads(const report *r) {
  char name[80];
  mhk_index k;
  int g, f;
  printf("%sat order %-8d", cli_bold(stdout), r->orders[r->at]);
  for (f = 0; f < FAMILIES; f++) printf("  %15s", family_names[f]);
  printf("%s\n", cli_plain(stdout));
  for (g = 0; g < r->n_groups; g++) {
    printf("%-*s", (int)NAMES, r->groups[g].name);
    for (f = 0; f < FAMILIES; f++) putchar(' '), print_mean(mean_of(r, f, r->at, g, -1));
    putchar('\n');
    for (k = 0; k < r->groups[g].heads; k++) {
      snprintf(name, sizeof name, "  head %d", r->groups[g].head[k]);
      printf("%-*s", (int)NAMES, name);
      for (f = 0; f < FAMILIES; f++) putchar(' '), print_mean(mean_of(r, f, r->at, g, k));
      putchar('\n');
    }
  }
}

/* the orders where the means stand as expected, or where the first pair that does not is number
   first in expected; returns how many */
static int print_listed(const report *r, int holds, int first) {
  int o, at, n = 0;
  for (o = 0; o < r->n_orders; o++)
    if (as_expected(r, o, &at) == holds && (holds || at == first)) printf("%s %d", n++ ? "," : "", r->orders[o]);
  return n;
}

/* whether families stand as the paper found them, and why not */
static void print_verdict(const report *r) {
  static const char *const why[] = {"heads that look at the last few tokens are nearly Toeplitz, and of high rank",
                                    "the fits of SSD have not converged", "the fits have not converged"};
  int o, first, at;
  printf("\nExpected, worst first: Toeplitz, causal low rank, SSD, semi-separable. So it is at order");
  if (print_listed(r, 1, 0) == 0) printf(" none");
  printf(".\n");
  for (first = 0; first + 1 < CLI_COUNT_OF(expected); first++) {
    for (o = 0; o < r->n_orders && (as_expected(r, o, &at) || at != first); o++) {}
    if (o == r->n_orders) continue;
    printf("%s is closer than %s at order", family_names[expected[first]], family_names[expected[first + 1]]);
    print_listed(r, 0, first);
    printf(": %s.\n", why[first]);
  }
  if (unfinished(r) > 0)
    printf("%d of %lld fits ended after %d updates, before they had converged.\n", unfinished(r),
           (long long)(2 * r->n * r->n_orders), (int)FAMILY_MOST_UPDATES);
}

static void print_report(const report *r) {
  mhk_index heads = 0;
  int g;
  for (g = 0; g < r->n_groups; g++) heads += r->groups[g].heads;
  printf("distance of attention matrices from structured ones, ||X - M||_F / ||M||_F: means and standard errors\nof "
         "%lld heads, %lld matrices of %lld x %lld\n\n",
         (long long)heads, (long long)r->n, (long long)r->T, (long long)r->T);
  print_orders(r);
  print_heads(r);
  print_verdict(r);
}

/* ---------------------------------------------------------------- JSON, SVG */

static void json_means(cli_json *j, const report *r, int g, mhk_index k) {
  int f, o;
  for (f = 0; f < FAMILIES; f++) {
    json_open(j, family_keys[f], '{');
    json_open(j, "mean", '[');
    for (o = 0; o < r->n_orders; o++) json_real(j, NULL, mean_of(r, f, o, g, k).mean);
    json_close(j);
    json_open(j, "error", '[');
    for (o = 0; o < r->n_orders; o++) json_real(j, NULL, mean_of(r, f, o, g, k).error);
    json_close(j);
    json_close(j);
  }
}

/* all that was measured, as one object */
static void print_json(const report *r) {
  cli_json j;
  mhk_index k;
  int g, o, first;
  json_start(&j, stdout, 0);
  json_open(&j, NULL, '{');
  json_text(&j, r->s->from ? "from" : "model", r->s->from ? r->s->from : r->s->paths.path[0]);
  json_count(&j, "length", (double)r->T);
  json_count(&j, "matrices", (double)r->n);
  json_open(&j, "orders", '[');
  for (o = 0; o < r->n_orders; o++) json_count(&j, NULL, r->orders[o]);
  json_close(&j);
  json_open(&j, "all", '{');
  json_means(&j, r, -1, -1);
  json_close(&j);
  json_open(&j, "layers", '[');
  for (g = 0; g < r->n_groups; g++) {
    json_open(&j, NULL, '{');
    json_text(&j, "name", r->groups[g].name);
    json_count(&j, "layer", r->groups[g].layer);
    json_means(&j, r, g, -1);
    json_open(&j, "heads", '[');
    for (k = 0; k < r->groups[g].heads; k++) {
      json_open(&j, NULL, '{');
      json_count(&j, "head", r->groups[g].head[k]);
      json_means(&j, r, g, k);
      json_close(&j);
    }
    json_close(&j);
    json_close(&j);
  }
  json_close(&j);
  json_open(&j, "as_expected", '[');
  for (o = 0; o < r->n_orders; o++) json_count(&j, NULL, as_expected(r, o, &first));
  json_close(&j);
  json_count(&j, "unfinished_fits", unfinished(r));
  json_close(&j);
}

/* the picture of all heads and each layer */
static int draw(const report *r) {
  const size_t each = (size_t)(FAMILIES * r->n_orders);
  double *numbers = (double *)malloc((size_t)(r->n_groups + 1) * 2 * each * sizeof *numbers);
  double orders[FAMILY_MOST_ORDERS];
  picture_whiskers *charts = (picture_whiskers *)calloc((size_t)r->n_groups + 1, sizeof *charts);
  char below[160];
  cli_output o;
  int g, f, k, code = CLI_FAILED;
  if (!numbers || !charts) cli_error("out of memory for a picture of %d layers", r->n_groups);
  for (g = -1; numbers && charts && g < r->n_groups; g++) {
    double *mean_at = numbers + (size_t)(g + 1) * 2 * each, *error_at = mean_at + each;
    charts[g + 1].title = g < 0 ? "all heads" : r->groups[g].name;
    charts[g + 1].mean = mean_at;
    charts[g + 1].error = error_at;
    for (f = 0; f < FAMILIES; f++)
      for (k = 0; k < r->n_orders; k++) {
        const mean m = mean_of(r, f, k, g, -1);
        *mean_at++ = m.mean;
        *error_at++ = isnan(m.error) ? 0 : m.error;
      }
  }
  for (k = 0; k < r->n_orders; k++) orders[k] = r->orders[k];
  snprintf(below, sizeof below,
           "||X - M||_F / ||M||_F of %lld matrices of %lld x %lld; whiskers: 2 standard errors; nothing is drawn below "
           "0.001",
           (long long)r->n, (long long)r->T, (long long)r->T);
  if (numbers && charts && cli_output_open(&o, r->s->svg) == CLI_GO) {
    const picture_whisker_page page = {.title = "How far attention matrices are from structured ones", .below = below,
                                       .x_label = "order", .names = family_names, .curves = FAMILIES, .x = orders,
                                       .n = r->n_orders, .charts = charts, .n_charts = r->n_groups + 1};
    picture_whiskers_svg(o.file, &page);
    code = cli_output_close(&o);
  }
  free(numbers);
  free(charts);
  return code;
}

/* ---------------------------------------------------------------- from options to report */

/* the orders that fit the matrices, and which of them the lists are for */
static int set_orders(report *r) {
  const settings *s = r->s;
  int i;
  for (i = 0; i < s->orders.n && s->orders.value[i] <= (double)r->T; i++)
    r->orders[r->n_orders++] = (int)s->orders.value[i];
  if (r->n_orders == 0)
    return cli_error("--orders: %g is more than matrices of %lld x %lld can have", s->orders.value[0], (long long)r->T,
                     (long long)r->T);
  r->at = (r->n_orders - 1) / 2;
  for (i = 0; s->at && i < r->n_orders; i++)
    if (r->orders[i] == s->at) r->at = i;
  if (!s->at || r->orders[r->at] == s->at) return CLI_GO;
  return cli_error("--at %d is none of the orders that are measured", s->at);
}

static int report_on(mhk_context *ctx, report *r) {
  if (set_orders(r) != CLI_GO || (r->s->save && save(ctx, r) != CLI_GO)) return CLI_FAILED;
  r->errors = (family_errors *)calloc((size_t)r->n, sizeof *r->errors);
  if (!r->errors) return cli_error("out of memory for %lld matrices", (long long)r->n);
  if (measure(r, mhk_threads(ctx)) != CLI_GO || (r->s->svg && draw(r) != CLI_GO)) return CLI_FAILED;
  if (r->s->json) print_json(r);
  else print_report(r);
  return CLI_OK;
}

static int matrices(mhk_context *ctx, void *user) {
  report r = {.s = (const settings *)user};
  int g, code;
  cli_quiet(r.s->json);
  cli_catch_signals();
  code = r.s->from ? read_file(ctx, &r) : read_model(ctx, &r);
  code = code == CLI_GO ? report_on(ctx, &r) : CLI_FAILED;
  for (g = 0; g < r.n_groups; g++) free(r.groups[g].head);
  free(r.groups);
  free(r.M);
  free(r.errors);
  return code;
}

const cli_command command_matrices = {
    .name = "matrices",
    .summary = "measure how well structured matrices fit a model's attention",
    .synopsis = "MODEL [TEXT...] [options]\n       mohawk matrices --from FILE [options]",
    .about = "Projects the attention matrices M of a model's heads on families of matrices and prints the "
             "distances ||X - M||_F / ||M||_F, with standard errors over heads and windows. In closed form: "
             "Toeplitz (the mean of each diagonal), low rank (the first r terms of the SVD), causal low rank (the "
             "same, zero above the diagonal). By gradient descent: SSD, M[t,s] = (C_t . B_s) a_{s+1} ... a_t with "
             "r numbers in B_s and C_t and one decay a token; and semi-separable, with r decays a token, one for "
             "each number. Each fit is the best of three: SSD starts from the SVD, from near it and from the order"
             " before, semi-separable from the SSD fit, the SVD and the order before. AdamW's learning rate, 0.02 "
             "at first, halves when 100 updates come less than 0.1 % closer than the 100 before; after seven "
             "times, or at a distance of 0.0005, a fit has converged. The lower bound holds for the last two: "
             "blocks on and below the diagonal have rank r, so the singular values beyond r of blocks without "
             "common entries are lost. With decays above 0, SSD and semi-separable matrices of an order have the "
             "same closure (decays can be moved into B and C), so what lies between them is what descent finds "
             "with numbers of moderate size. Without TEXT it measures on examples/story.txt if that is there, "
             "otherwise on text that the model generates.",
    .example = "mohawk matrices examples/tiny --svg matrices.svg",
    CLI_OPTIONS(options),
    CLI_SETTINGS(defaults),
    .check = check,
    .body = matrices,
};
