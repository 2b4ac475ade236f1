/* mohawk bench --curve: what more threads bring, from the rows that a measurement left. */
#include "bench.h"
#include "../picture.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_CHARTS = 60, MOST_COUNTS = 16 };

/* times of one case; NAN: not measured */
typedef struct times {
  char name[48];
  int n;
  double threads[MOST_COUNTS], ours[MOST_COUNTS], theirs[MOST_COUNTS];
} times;

typedef struct measured {
  times of[MOST_CHARTS];
  int n;
  char machine[120];
} measured;

/* ---------------------------------------------------------------- reading */

/* what follows "key": in a row, or NULL; rows are written by json_row() or peers.py */
static const char *value_of(const char *row, const char *end, const char *key) {
  char quoted[32];
  const char *at;
  snprintf(quoted, sizeof quoted, "\"%s\":", key);
  at = strstr(row, quoted);
  if (!at || at >= end) return NULL;
  at += strlen(quoted);
  return at + strspn(at, " ");
}

static double number_of(const char *row, const char *end, const char *key) {
  const char *at = value_of(row, end, key);
  char *stop;
  const double x = at ? strtod(at, &stop) : NAN;
  return at && stop > at ? x : NAN;
}

static void text_of(const char *row, const char *end, const char *key, char *text, size_t size) {
  const char *at = value_of(row, end, key);
  const size_t n = at && *at == '"' ? strcspn(at + 1, "\"") : 0;
  snprintf(text, size, "%.*s", n < size ? (int)n : (int)size - 1, n ? at + 1 : "");
}

/* The case of a name, and where in it a number of threads stands, in order. NULL when there is no
   room. */
static times *find(measured *m, const char *name, double threads, int *place) {
  times *t;
  int i, k;
  for (i = 0; i < m->n && strcmp(m->of[i].name, name) != 0; i++) {}
  if (i == MOST_CHARTS) return NULL;
  t = &m->of[i];
  if (i == m->n) {
    memset(t, 0, sizeof *t);
    snprintf(t->name, sizeof t->name, "%s", name);
    m->n++;
  }
  for (i = 0; i < t->n && t->threads[i] < threads; i++) {}
  *place = i;
  if (i < t->n && t->threads[i] == threads) return t;
  if (t->n == MOST_COUNTS) return NULL;
  for (k = t->n++; k > i; k--) {
    t->threads[k] = t->threads[k - 1];
    t->ours[k] = t->ours[k - 1];
    t->theirs[k] = t->theirs[k - 1];
  }
  t->threads[i] = threads;
  t->ours[i] = t->theirs[i] = NAN;
  return t;
}

static void take_row(measured *m, const char *row, const char *end) {
  const double threads = number_of(row, end, "threads"), ours = number_of(row, end, "ours_ms");
  char name[48], peer[48];
  int place;
  times *t;
  text_of(row, end, "case", name, sizeof name);
  text_of(row, end, "peer", peer, sizeof peer);
  t = *name && threads >= 1 && ours > 0 ? find(m, name, threads, &place) : NULL;
  if (!t) return;
  t->ours[place] = ours;
  if (strncmp(peer, "PyTorch", 7) == 0) t->theirs[place] = number_of(row, end, "peer_ms");
  if (!*m->machine) text_of(row, end, "machine", m->machine, sizeof m->machine);
}

/* Rows of cases on one thread and more, in the order of the file. CLI_GO, or CLI_FAILED after a
   message. */
static int read_rows(measured *m, const char *path) {
  cli_content c;
  const char *row, *next;
  int i, k = 0;
  memset(&c, 0, sizeof c);
  if (cli_read(path, &c) != CLI_GO) return CLI_FAILED;
  for (row = c.text ? strstr(c.text, "\"case\":") : NULL; row; row = next) { /* its first key */
    next = strstr(row + 1, "\"case\":");
    take_row(m, row, next ? next : c.text + c.n);
  }
  free(c.text);
  for (i = 0; i < m->n; i++)
    if (m->of[i].n > 1 && m->of[i].threads[0] == 1) m->of[k++] = m->of[i];
  m->n = k;
  return k ? CLI_GO : cli_error("%s has no case on one thread and on more: measure with --threads 1,2,4", path);
}

/* ---------------------------------------------------------------- drawing */

static const char *title_of(const char *name) {
  const char *title = bench_scaling_title(name);
  return title ? title : name;
}

/* a cell of the table: a speed, or - */
static void cell(double x) {
  if (isfinite(x)) {
    printf(" %.*f |", x < 9.95 ? 1 : 0, x);
  } else {
    printf(" - |");
  }
}

/* How many times as fast as on one thread, as a table in Markdown: columns for the first case's
   numbers of threads, then PyTorch's own on the most, and its time over ours on one and the
   most. */
static void print_table(const measured *m) {
  const times *first = &m->of[0];
  int i, k;
  printf("| times as fast as on one thread |");
  for (k = 1; k < first->n; k++) printf(" %.0f threads |", first->threads[k]);
  printf(" PyTorch, %.0f threads | PyTorch / ours, 1 thread | %.0f threads |\n|---|", first->threads[first->n - 1],
         first->threads[first->n - 1]);
  for (k = 1; k < first->n + 3; k++) printf("---|");
  for (i = 0; i < m->n; i++) {
    const times *t = &m->of[i];
    const int last = t->n - 1;
    printf("\n| %s |", title_of(t->name));
    for (k = 1; k < first->n; k++) {
      int j;
      for (j = last; j > 0 && t->threads[j] != first->threads[k]; j--) {}
      cell(j > 0 ? t->ours[0] / t->ours[j] : NAN);
    }
    cell(t->theirs[0] / t->theirs[last]);
    cell(t->theirs[0] / t->ours[0]);
    cell(t->theirs[last] / t->ours[last]);
  }
  putchar('\n');
}

/* of one case: speeds in units of ours on one thread, in place of the times */
static void make_chart(times *t, picture_curve *curves, picture_chart *chart) {
  const double unit = t->ours[0];
  int k;
  for (k = 0; k < t->n; k++) {
    t->ours[k] = unit / t->ours[k];
    t->theirs[k] = unit / t->theirs[k];
  }
  curves[0].name = "mohawk";
  curves[1].name = "PyTorch";
  curves[0].x = curves[1].x = t->threads;
  curves[0].y = t->ours;
  curves[1].y = t->theirs;
  curves[0].n = curves[1].n = t->n;
  memset(chart, 0, sizeof *chart);
  chart->title = title_of(t->name);
  chart->curves = curves;
  chart->n = 2;
}

int bench_curve(const char *path, const char *rows) {
  measured *m = (measured *)calloc(1, sizeof *m);
  picture_curve curves[MOST_CHARTS][2];
  picture_chart charts[MOST_CHARTS];
  cli_output out;
  int i, code = m ? read_rows(m, rows) : cli_error("out of memory");
  if (code == CLI_GO) {
    print_table(m);
    for (i = 0; i < m->n; i++) make_chart(&m->of[i], curves[i], &charts[i]);
    code = cli_output_open(&out, path);
  }
  if (code == CLI_GO) {
    picture_threads_svg(out.file, "Speed against threads; mohawk on one thread is 1", m->machine, charts, m->n);
    code = cli_output_close(&out) == CLI_GO ? CLI_OK : CLI_FAILED;
  }
  free(m);
  return code;
}
