/* mohawk bench --context: what one more token costs, and what its context takes, as the context
   grows. */
#include "bench.h"
#include "../picture.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { FIRST = 64, STEPS = 300, TOKENS = 1024, MOST_CONTEXTS = 16 };

typedef struct costs {
  const char *name;
  mhk_session *session;
  double ms[MOST_CONTEXTS], bytes[MOST_CONTEXTS]; /* NAN: not measured */
} costs;

static int feed(costs *c, const int32_t *tokens, mhk_index until) {
  mhk_index n;
  /* the same tokens again and again: they do not matter */
  while ((n = until - mhk_session_position(c->session, 0)) > 0)
    if (mhk_feed(c->session, tokens, n < TOKENS ? n : TOKENS) != MHK_OK || cli_stopped()) return 0;
  return 1;
}

/* Fills the context up to n tokens and takes the median of some steps there; returns seconds that
   filling took, negative after an error. */
static double cost_at(costs *c, const int32_t *tokens, mhk_index n, int i) {
  const double started = cli_clock();
  const int steps = n < STEPS ? (int)n : STEPS;
  double ms[STEPS], filled;
  int k;
  if (!feed(c, tokens, n - steps / 2)) return -1;
  filled = cli_clock() - started;
  for (k = 0; k < steps; k++) { /* from just before n to just behind it */
    double before;
    if (k == steps / 2) c->bytes[i] = (double)mhk_session_state_bytes(c->session, 0);
    before = cli_clock();
    if (mhk_feed(c->session, tokens + k, 1) != MHK_OK) return -1;
    ms[k] = 1e3 * (cli_clock() - before);
  }
  c->ms[i] = bench_median(ms, steps);
  return filled;
}

static int draw(const char *path, const double *contexts, costs *c, int n) {
  picture_curve ms[2], mb[2];
  picture_chart charts[2];
  double megabytes[2][MOST_CONTEXTS];
  cli_output out;
  int i, k;
  for (i = 0; i < 2; i++) {
    for (k = 0; k < n; k++) megabytes[i][k] = c[i].bytes[k] / 1e6;
    ms[i].name = mb[i].name = c[i].name;
    ms[i].x = mb[i].x = contexts;
    ms[i].n = mb[i].n = n;
    ms[i].y = c[i].ms;
    mb[i].y = megabytes[i];
    charts[i].title = i ? "memory of the context, MB" : "one more token, ms";
    charts[i].x_label = "tokens of context";
    charts[i].curves = i ? mb : ms;
    charts[i].n = 2;
  }
  if (cli_output_open(&out, path) != CLI_GO) return CLI_FAILED;
  picture_charts_svg(out.file, charts, 2);
  return cli_output_close(&out);
}

/* the table, one line a context, and the picture */
static int measure(const char *path, const char *isa, const double *contexts, int n, costs *c, const int32_t *tokens,
                   int json) {
  cli_json lines;
  int i, k, more[2] = {1, 1};
  json_start(&lines, stdout, 0);
  if (!json)
    printf("%s%10s %14s %14s %14s %14s%s\n", cli_bold(stdout), "context", "teacher, ms", "student, ms", "teacher, MB",
           "student, MB", cli_plain(stdout));
  for (k = 0; k < n; k++) {
    for (i = 0; i < 2; i++) {
      double seconds;
      c[i].ms[k] = c[i].bytes[k] = NAN;
      if (!more[i]) continue;
      seconds = cost_at(&c[i], tokens, (mhk_index)contexts[k], k);
      if (seconds < 0) return CLI_FAILED;
      more[i] = seconds * (i ? 4 : 16) < 120; /* the next one takes four times as long, with attention sixteen times */
    }
    if (json) {
      json_open(&lines, NULL, '{');
      json_count(&lines, "context", contexts[k]);
      json_text(&lines, "isa", isa);
      json_real(&lines, "teacher_ms", c[0].ms[k]);
      json_real(&lines, "student_ms", c[1].ms[k]);
      json_real(&lines, "teacher_bytes", c[0].bytes[k]);
      json_real(&lines, "student_bytes", c[1].bytes[k]);
      json_close(&lines);
    } else {
      printf("%10.0f", contexts[k]);
      for (i = 0; i < 4; i++) {
        const double x = i < 2 ? c[i].ms[k] : c[i - 2].bytes[k] / 1e6;
        if (isfinite(x)) {
          printf(" %14.4f", x);
        } else {
          printf(" %14s", "-");
        }
      }
      putchar('\n');
      fflush(stdout);
    }
  }
  if (!json && !isfinite(c[0].ms[n - 1])) printf("-: it takes more than two minutes to fill the teacher's context\n");
  if (draw(path, contexts, c, n) != CLI_GO) return CLI_FAILED;
  if (!json) printf("written: %s\n", path);
  return CLI_OK;
}

int bench_context(const char *path, const char *model, int threads, mhk_isa isa, double most, int json) {
  mhk_context *ctx = cli_context_on(threads, isa);
  mhk_session_desc d;
  double contexts[MOST_CONTEXTS], at;
  costs c[2];
  int32_t tokens[TOKENS];
  mhk_model *teacher, *student;
  int i, n = 0, code;
  if (!ctx) return CLI_FAILED;
  /* 1M, read as 1e6, takes in 2^20 */
  for (at = FIRST; at <= most * 1.05 && n < MOST_CONTEXTS; at *= 4) contexts[n++] = at;
  memset(&d, 0, sizeof d);
  memset(c, 0, sizeof c);
  teacher = cli_load(ctx, model);
  student = mhk_student_create(ctx, teacher, NULL); /* its weights do not matter here */
  for (i = 0; i < TOKENS; i++)
    tokens[i] = (int32_t)(i * 7919 % (teacher ? mhk_model_config(teacher)->vocab_size : 1));
  c[0].name = "teacher";
  c[1].name = "student";
  d.capacity = (mhk_index)contexts[n - 1] + STEPS;
  c[0].session = mhk_session_create(teacher, &d);
  c[1].session = mhk_session_create(student, &d);
  cli_catch_signals();
  code = mhk_failed(ctx) ? CLI_FAILED : measure(path, mhk_isa_name(ctx), contexts, n, c, tokens, json);
  if (mhk_failed(ctx)) cli_error("%s", mhk_message(ctx));
  mhk_destroy(ctx);
  return code;
}
