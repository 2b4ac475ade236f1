/* mohawk bench: how fast the parts are, next to what the machine can do at all.
   tools/bench/peers.py compares with other programs through --serve. */
#include "bench.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_ROUNDS 1000
#define MAX_MODELS 8

typedef struct settings {
  const char *filter, *isa, *out, *model, *context, *curve, *rows;
  cli_numbers threads;
  double seconds, most;
  int json, list, serve;
} settings;

typedef struct row {
  const bench_case *c;
  int threads, rounds;
  char isa[16], unit[16];
  double ms[MAX_ROUNDS], other[MAX_ROUNDS]; /* other: of c->other, times c->scale, in the same rounds */
  double bytes[MAX_ROUNDS];                 /* a second of plain reads, in the same rounds where c->bytes says so */
  double memory, fma;
} row;

typedef struct bench {
  const settings *s;
  bench_case list[BENCH_MAX_CASES];
  int n, n_models;
  char paths[MAX_MODELS][1024];
  const char *models[MAX_MODELS]; /* those of paths that are there */
  FILE *table; /* NULL: none */
  cli_json file, lines;
  int printed;
} bench;

static const settings defaults = {.isa = "best",
                                  .out = "build/bench.json",
                                  .model = "examples/tiny",
                                  .rows = "build/bench.json",
                                  .seconds = 1,
                                  .most = 1 << 20};

static const cli_option options[] = {
    {"filter", "TEXT,...", CLI_TEXT, CLI_AT(filter), 0, 0,
     "run only cases whose name contains one of these; =NAME: the one of that name; scaling: those that show what more "
     "threads bring"},
    {"threads", "N,...", CLI_NUMBERS, CLI_AT(threads), 1, 256, "thread counts (default: 1 and one per core)"},
    {"isa", "NAME,...", CLI_TEXT, CLI_AT(isa), 0, 0,
     "instruction sets: best, scalar, avx2, avx512, neon, wasm (default best); MHK_ISA takes precedence"},
    {"seconds", "X", CLI_REAL, CLI_AT(seconds), 0.001, 1000, "time for each row, at least three rounds (default 1)"},
    {"model", "PATH,...", CLI_TEXT, CLI_AT(model), 0, 0,
     "Phi teachers (default examples/tiny): the first for all model cases, the others for decoding only; start_model "
     "accepts any model, also a quantized file"},
    {"out", "FILE", CLI_TEXT, CLI_AT(out), 0, 0, "write the results as JSON to this file (default build/bench.json)"},
    {"context", "FILE", CLI_TEXT, CLI_AT(context), 0, 0,
     "draw the time and memory of a token against the length of the context, for the first model and a student of its "
     "shape, as SVG, and measure nothing else"},
    {"context-most", "N", CLI_REAL, CLI_AT(most), 64, 1 << 26, "the longest context for --context (default 1M)"},
    {"curve", "FILE", CLI_TEXT, CLI_AT(curve), 0, 0,
     "draw the speed of each row in --rows against the number of threads, as SVG, print a table, and measure nothing"},
    {"rows", "FILE", CLI_TEXT, CLI_AT(rows), 0, 0, "results for --curve (default build/bench.json)"},
    CLI_STRICT,
    {"json", NULL, CLI_FLAG, CLI_AT(json), 0, 0, "print one JSON object per row instead of the table"},
    {"list", NULL, CLI_FLAG, CLI_AT(list), 0, 0, "list the cases (that --filter leaves) and measure nothing"},
    {"serve", NULL, CLI_FLAG, CLI_AT(serve), 0, 0,
     "read lines \"CASE THREADS ROUNDS\" and answer each with a JSON object, for measuring alternately with other "
     "libraries"},
};

/* ---------------------------------------------------------------- names */

static int matches_word(const bench_case *c, const char *word) {
  if (strcmp(word, "scaling") == 0) return bench_scaling_title(c->name) != NULL;
  return *word == '=' ? strcmp(c->name, word + 1) == 0 : strstr(c->name, word) != NULL;
}

/* whether one of the words of --filter, separated by commas, is for a case */
static int matches(const bench_case *c, const char *words) {
  while (words && *words) {
    char word[64];
    size_t n = strcspn(words, ",");
    snprintf(word, sizeof word, "%.*s", n > 63 ? 63 : (int)n, words);
    if (n > 0 && matches_word(c, word)) return 1;
    words += n + (words[n] == ',');
  }
  return 0;
}

/* the next instruction set of the list, or -1 after a message; 0 at the end */
static int next_isa(const char **words, mhk_isa *isa) {
  static const char *const names[] = {"best", "scalar", "avx2", "avx512", "neon", "wasm"};
  const char *near;
  char word[32];
  size_t n = strcspn(*words, ",");
  int i;
  if (n == 0) return 0;
  snprintf(word, sizeof word, "%.*s", n > 31 ? 31 : (int)n, *words);
  *words += n + ((*words)[n] == ',');
  for (i = 0; i < CLI_COUNT_OF(names); i++)
    if (strcmp(word, names[i]) == 0) {
      *isa = (mhk_isa)i;
      return 1;
    }
  near = cli_nearest(word, names, CLI_COUNT_OF(names));
  cli_error("--isa %s is not one of best, scalar, avx2, avx512, neon, wasm%s%s%s", word, near ? ": did you mean " : "",
            near ? near : "", near ? "?" : "");
  return -1;
}

/* ---------------------------------------------------------------- numbers */

static double least(const double *x, int n) {
  double m = INFINITY;
  int i;
  for (i = 0; i < n; i++) m = fmin(m, x[i]);
  return m;
}

static double ratio_of(const row *r) {
  double each[MAX_ROUNDS];
  int i;
  if (!r->c->other[0]) return NAN;
  for (i = 0; i < r->rounds; i++) each[i] = r->other[i] / r->ms[i];
  return bench_median(each, r->rounds);
}

static double limit_of(const row *r) { return r->c->bytes > 0 ? bench_median(r->bytes, r->rounds) : r->fma; }

/* ---------------------------------------------------------------- output */

static void json_word(cli_json *j, const char *key, const char *word) {
  if (word) {
    json_text(j, key, word);
  } else {
    json_real(j, key, NAN);
  }
}

static void json_row(cli_json *j, const row *r) {
  const bench_case *c = r->c;
  const double ms = bench_median(r->ms, r->rounds);
  const int compared = c->other[0] != 0;
  const double limit = limit_of(r), reached = (c->bytes > 0 ? c->bytes : c->flop) / (1e-3 * ms);
  json_open(j, NULL, '{');
  json_text(j, "case", c->name);
  json_count(j, "threads", r->threads);
  json_text(j, "isa", r->isa);
  json_real(j, "ours_ms", ms);
  json_word(j, "peer", compared ? c->why : NULL);
  json_real(j, "peer_ms", compared ? bench_median(r->other, r->rounds) : NAN);
  json_real(j, "ratio", ratio_of(r));
  json_real(j, "gflops", c->flop > 0 ? c->flop / (1e6 * ms) : NAN);
  json_real(j, "percent_of_limit", c->flop > 0 ? 100 * reached / limit : NAN);
  json_word(j, "limit", c->flop <= 0 ? NULL : c->bytes > 0 ? "read" : strcmp(r->unit, r->isa) == 0 ? "fma" : r->unit);
  json_real(j, "limit_rate", c->flop > 0 ? 1e-9 * limit : NAN); /* GB/s or GFLOP/s */
  json_real(j, "ours_min_ms", least(r->ms, r->rounds));
  json_count(j, "rounds", r->rounds);
  json_count(j, "ours_memory", r->memory); /* bytes beyond weights and inputs */
  json_close(j);
}

static void print_row(bench *b, const row *r) {
  const bench_case *c = r->c;
  const double ms = bench_median(r->ms, r->rounds);
  if (b->printed++ == 0)
    fprintf(b->table, "%s%-30s %3s %-7s %11s %9s %9s  %-16s %6s%s\n", cli_bold(b->table), "case", "thr", "isa", "ms",
            "GFLOP/s", "of limit", "peer", "ratio", cli_plain(b->table));
  fprintf(b->table, "%-30s %3d %-7s %11.3f", c->name, r->threads, r->isa, ms);
  if (c->flop > 0) {
    const double share = (c->bytes > 0 ? c->bytes : c->flop) / (1e-3 * ms) / limit_of(r);
    fprintf(b->table, " %9.1f %4.0f %% %s", c->flop / (1e6 * ms), 100 * share, c->bytes > 0 ? "rd" : "  ");
  } else {
    fprintf(b->table, " %9s %9s", "-", "-");
  }
  if (c->other[0]) {
    fprintf(b->table, "  %-16s %6.2f\n", c->why, ratio_of(r));
  } else {
    fprintf(b->table, "  %-16s %6s\n", "-", "-");
  }
  fflush(b->table);
}

/* ---------------------------------------------------------------- measuring */

/* one round of a row, into place r->rounds; CLI_GO or CLI_FAILED */
static int round_of(row *r, bench_work *ours, bench_work *other) {
  double a, b = 0;
  bench_threads(ours, r->threads);
  a = bench_run(ours);
  if (other) {
    bench_threads(other, r->threads);
    b = bench_run(other);
  }
  if (a < 0 || b < 0) return CLI_FAILED;
  if (r->c->bytes > 0) r->bytes[r->rounds] = bench_limit_read(r->threads);
  r->ms[r->rounds] = 1e3 * a;
  r->other[r->rounds] = 1e3 * b * r->c->scale;
  return CLI_GO;
}

/* The memory a case may take is only known well for those that take much. */
static int fits(const bench_case *c) {
  const double need = c->kind == BENCH_CORE ? (double)c->m * 32 * 64 * 4 * (c->back ? 16 : 8) : 0;
  const double there = cli_memory_free();
  if (there <= 0 || need < 0.8 * there) return 1;
  cli_note("skipped %s: it needs more memory than is free", c->name);
  return 0;
}

/* One case at all thread counts, which take turns: rows for the table and the file. */
static int measure_case(bench *b, const bench_case *c, mhk_isa isa, row *rows, int n_rows) {
  bench_work *ours, *other = NULL;
  int i, code = CLI_GO, more = 1, rounds = 0;
  double started;
  if (!fits(c)) return CLI_GO;
  ours = bench_open(c, (int)b->s->threads.value[0], isa);
  if (!ours) return CLI_FAILED;
  if (c->other[0]) {
    const bench_case *o = bench_find(b->list, b->n, c->other);
    other = o ? bench_open(o, 1, isa) : NULL;
    if (!other) {
      bench_close(ours);
      return CLI_FAILED;
    }
  }
  for (i = 0; i < n_rows && code == CLI_GO; i++) { /* once for nothing: memory is allocated, caches fill */
    memset(&rows[i], 0, sizeof rows[i]);
    rows[i].c = c;
    rows[i].threads = bench_threads(ours, (int)b->s->threads.value[i]);
    snprintf(rows[i].isa, sizeof rows[i].isa, "%s", bench_isa(ours));
    snprintf(rows[i].unit, sizeof rows[i].unit, "%s", bench_unit(ours));
    rows[i].fma = bench_limit_fma(rows[i].unit, rows[i].threads);
    started = cli_clock();
    code = round_of(&rows[i], ours, other);
    if (cli_clock() - started > 4 * b->s->seconds) rows[i].rounds = 1; /* too long to throw away */
  }
  started = cli_clock();
  while (more && code == CLI_GO && !cli_stopped() && rounds < MAX_ROUNDS - 1) {
    const double spent = cli_clock() - started, budget = b->s->seconds * n_rows;
    if ((rounds >= 3 && spent > budget) || (rounds >= 1 && spent > 4 * budget)) break;
    if (rows[0].rounds > 0 && rounds == 0 && n_rows * rows[0].ms[0] > 16e3 * budget) break;
    for (i = 0; i < n_rows && code == CLI_GO; i++) {
      code = round_of(&rows[i], ours, other);
      if (code == CLI_GO) rows[i].rounds++;
    }
    rounds++;
  }
  for (i = 0; i < n_rows && code == CLI_GO; i++) {
    rows[i].memory = bench_memory(ours);
    if (rows[i].rounds == 0) continue;
    rows[i].fma = bench_limit_fma(rows[i].unit, rows[i].threads);
    json_row(&b->file, &rows[i]);
    if (b->table) {
      print_row(b, &rows[i]);
    } else {
      json_row(&b->lines, &rows[i]);
    }
  }
  bench_close(ours);
  bench_close(other);
  return code;
}

static int measure(bench *b) {
  const settings *s = b->s;
  row *rows = (row *)malloc((size_t)s->threads.n * sizeof *rows);
  int i, code = CLI_GO;
  if (!rows) return cli_error("out of memory");
  for (i = 0; i < b->n && code == CLI_GO && !cli_stopped(); i++) {
    const char *words = s->isa;
    mhk_isa isa;
    if (s->filter && !matches(&b->list[i], s->filter)) continue;
    while (code == CLI_GO && next_isa(&words, &isa) > 0)
      code = measure_case(b, &b->list[i], isa, rows, s->threads.n);
  }
  free(rows);
  if (code == CLI_GO && cli_stopped()) return CLI_FAILED;
  return code;
}

/* whether --filter and --isa name things that exist */
static int check_names(const bench *b) {
  const char *words = b->s->isa;
  mhk_isa isa;
  int i, more;
  while ((more = next_isa(&words, &isa)) > 0) {
  }
  if (more < 0) return CLI_USAGE;
  if (!b->s->filter) return CLI_GO;
  for (i = 0; i < b->n; i++)
    if (matches(&b->list[i], b->s->filter)) return CLI_GO;
  cli_error("--filter %s matches no case: --list names them", b->s->filter);
  return CLI_USAGE;
}

/* Answers lines until there are no more. The last case stays open: the next line may ask for it
   again. */
static int serve(bench *b) {
  char line[256], name[64];
  const char *words = b->s->isa;
  bench_work *w = NULL;
  mhk_isa isa;
  row *r = (row *)calloc(1, sizeof *r);
  int more = r ? next_isa(&words, &isa) : -1;
  while (more > 0 && fgets(line, sizeof line, stdin)) {
    int threads = 0, rounds = 0, fresh, code = CLI_GO;
    const bench_case *c = NULL;
    if (sscanf(line, "%63s %d %d", name, &threads, &rounds) == 3) c = bench_find(b->list, b->n, name);
    if (!c || threads < 1 || threads > 256 || rounds < 1 || rounds > MAX_ROUNDS || !fits(c)) {
      json_open(&b->lines, NULL, '{');
      json_text(&b->lines, "unsupported", name);
      json_close(&b->lines);
      continue;
    }
    fresh = !w || r->c != c;
    if (fresh) {
      bench_close(w);
      w = bench_open(c, threads, isa);
      if (!w) break;
    }
    fresh |= r->threads != threads;
    r->c = c;
    r->threads = bench_threads(w, threads);
    r->rounds = 0;
    snprintf(r->isa, sizeof r->isa, "%s", bench_isa(w));
    snprintf(r->unit, sizeof r->unit, "%s", bench_unit(w));
    r->fma = bench_limit_fma(r->unit, r->threads);
    if (fresh) code = round_of(r, w, NULL);
    while (code == CLI_GO && r->rounds < rounds) {
      code = round_of(r, w, NULL);
      if (code == CLI_GO) r->rounds++;
    }
    if (code != CLI_GO) break;
    r->memory = bench_memory(w);
    json_row(&b->lines, r);
  }
  bench_close(w);
  free(r);
  return more > 0 && feof(stdin) ? CLI_OK : more < 0 ? CLI_USAGE : CLI_FAILED;
}

/* 1 and all that there are, unless given */
static void choose_threads(settings *s, int all) {
  int i;
  if (s->threads.n == 0) {
    s->threads.value[0] = 1;
    s->threads.value[1] = all;
    s->threads.n = all > 1 ? 2 : 1;
  }
  for (i = 0; i < s->threads.n; i++)
    if (!(s->threads.value[i] >= 1)) s->threads.value[i] = 1;
}

static int to_file(bench *b) {
  char folder[1024];
  const char *slash = strrchr(b->s->out, '/');
  cli_output out;
  int code = check_names(b);
  if (code != CLI_GO) return code;
  if (slash && slash != b->s->out) {
    snprintf(folder, sizeof folder, "%.*s", (int)(slash - b->s->out), b->s->out);
    code = cli_make_folders(folder);
    if (code != CLI_GO) return code;
  }
  code = cli_output_open(&out, b->s->out);
  if (code != CLI_GO) return code;
  cli_catch_signals();
  json_start(&b->file, out.file, 1);
  json_open(&b->file, NULL, '[');
  code = measure(b);
  json_close(&b->file);
  if (cli_output_close(&out) != CLI_GO) return CLI_FAILED;
  if (b->table && code == CLI_GO) fprintf(b->table, "written: %s\n", b->s->out);
  return code == CLI_GO ? CLI_OK : code;
}

static void find_models(bench *b) {
  const char *at = b->s->model;
  int i;
  for (i = 0; i < MAX_MODELS && *at; i++) {
    const size_t n = strcspn(at, ",");
    char *path = b->paths[i], config[1024];
    snprintf(path, sizeof b->paths[i], "%.*s", n > 1023 ? 1023 : (int)n, at);
    at += n + (at[n] == ',');
    if (cli_ends_with(path, ".safetensors")
            ? cli_exists(path)
            : cli_join(config, sizeof config, path, "config.json") == CLI_GO && cli_exists(config))
      b->models[b->n_models++] = path;
  }
}

static int context(const bench *b) {
  const settings *s = b->s;
  const char *words = s->isa;
  mhk_isa isa;
  if (next_isa(&words, &isa) < 0) return CLI_USAGE;
  if (*words) {
    cli_error("--context needs one instruction set, not --isa %s", s->isa);
    return CLI_USAGE;
  }
  return bench_context(s->context, b->n_models ? b->models[0] : s->model, (int)s->threads.value[0], isa, s->most,
                       s->json);
}

static int list(bench *b) {
  int i;
  for (i = 0; i < b->n; i++)
    if (!b->s->filter || matches(&b->list[i], b->s->filter)) printf("%s\n", b->list[i].name);
  return CLI_OK;
}

static int run(mhk_context *ctx, void *user) {
  settings *s = (settings *)user;
  bench *b = (bench *)calloc(1, sizeof *b);
  int code;
  if (!b) return cli_error("out of memory");
  choose_threads(s, mhk_threads(ctx));
  b->s = s;
  find_models(b);
  b->n = bench_list(b->list, b->models, b->n_models);
  b->table = s->json ? NULL : stdout;
  json_start(&b->lines, stdout, 0);
  code = s->curve     ? bench_curve(s->curve, s->rows)
         : s->context ? context(b)
         : s->list    ? list(b)
         : s->serve   ? serve(b)
                      : to_file(b);
  free(b);
  return code;
}

const cli_command command_bench = {
    .name = "bench",
    .summary = "measure the speed of this machine",
    .synopsis = "[options]",
    .about = "Measures products, mixers, layers, training steps and a small model. Compares each with the limit of "
             "the machine: multiply-adds or memory reads. Times are medians; thread counts alternate. `make "
             "bench-peers` compares with other libraries.",
    .example = "mohawk bench --filter sgemm,core --threads 1,2",
    CLI_OPTIONS(options),
    CLI_SETTINGS(defaults),
    .body = run,
};
