/* mohawk bench: how fast the parts are on this machine, at the shapes of one model. */
#include "run.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct settings {
  const char *model;
  mhk_index batch, length;
  double seconds;
  int threads, json;
} settings;

typedef struct bench {
  const settings *s;
  mhk_context *ctx;
  mhk_model *teacher, *student;
  mhk_tape *tape;
  int32_t *tokens;
  cli_json json;
} bench;

static int parse(settings *s, int argc, char **argv) {
  const cli_option options[] = {
      {"model", "DIR", CLI_TEXT, &s->model, 0, 0, "a Phi teacher (default examples/tiny)"},
      {"batch", "N", CLI_COUNT, &s->batch, 1, 1e6, "sequences at once (default 8)"},
      {"length", "N", CLI_COUNT, &s->length, 2, 1e6, "tokens a sequence (default 256)"},
      {"seconds", "X", CLI_REAL, &s->seconds, 0.01, 1000, "for each row (default 1)"},
      {"threads", "N", CLI_INT, &s->threads, 1, 4096, "threads (default: all the machine has)"},
      {"json", NULL, CLI_FLAG, &s->json, 0, 0, "one JSON object a row in place of text"},
  };
  const cli_command c = {"bench",
                         "[options]",
                         "Measures forward passes, the three stages and decoding with a teacher and its student. Each "
                         "row is the "
                         "fastest of several repetitions.",
                         "mohawk bench --model examples/tiny --threads 2",
                         options,
                         CLI_COUNT_OF(options),
                         NULL};
  return cli_parse(&c, argc, argv);
}

/* one repetition; returns the tokens it handled */
typedef mhk_index (*bench_fn)(bench *b, int what);

static mhk_index forward(bench *b, int what) {
  mhk_tape_reset(b->tape);
  mhk_tape_record(b->tape, 0);
  mhk_forward(b->tape, what == 0 ? b->teacher : b->student, b->tokens, b->s->batch, b->s->length, NULL);
  return b->s->batch * b->s->length;
}

static mhk_index stage(bench *b, int what) {
  mhk_tape_reset(b->tape);
  mhk_tape_record(b->tape, 1);
  mhk_stage_loss(b->tape, b->student, b->teacher, what, b->tokens, b->s->batch, b->s->length, NULL, NULL, NULL, NULL);
  return b->s->batch * b->s->length;
}

static mhk_index decode(bench *b, int what) {
  mhk_session_desc desc;
  mhk_session *session;
  mhk_index i;
  desc.batch = 1;
  desc.capacity = 256;
  session = mhk_session_create(what == 0 ? b->teacher : b->student, &desc);
  for (i = 0; i < 128; i++) mhk_feed(session, b->tokens + i % b->s->length, 1);
  mhk_session_destroy(session);
  return 128;
}

static void row(bench *b, const char *name, bench_fn f, int what) {
  double best = INFINITY, started = cli_clock();
  mhk_index tokens = 0;
  int repetitions = 0;
  cli_buffer speed;
  while ((repetitions < 3 || cli_clock() - started < b->s->seconds) && !mhk_failed(b->ctx)) {
    double start = cli_clock(), seconds;
    tokens = f(b, what);
    seconds = cli_clock() - start;
    if (repetitions++ > 0 && seconds < best) best = seconds; /* the first one allocates */
  }
  if (mhk_failed(b->ctx)) return;
  if (b->s->json) {
    json_open(&b->json, NULL, '{');
    json_text(&b->json, "name", name);
    json_real(&b->json, "tokens_per_second", (double)tokens / best);
    json_real(&b->json, "seconds", best);
    json_close(&b->json);
  } else {
    printf("%-34s %9s tokens/s   %9.2f ms\n", name, cli_count((double)tokens / best, &speed), 1000 * best);
    fflush(stdout);
  }
}

static int measure(bench *b) {
  const settings *s = b->s;
  const mhk_config *c;
  mhk_index i;
  b->teacher = mhk_load(b->ctx, s->model);
  b->student = mhk_student_create(b->ctx, b->teacher, NULL);
  b->tape = mhk_tape_create(b->ctx);
  b->tokens = (int32_t *)malloc((size_t)s->batch * (size_t)s->length * sizeof *b->tokens);
  if (mhk_failed(b->ctx)) return cli_context_error(b->ctx);
  if (!b->tokens) return cli_error("out of memory for %lld tokens", (long long)(s->batch * s->length));
  c = mhk_model_config(b->teacher);
  for (i = 0; i < s->batch * s->length; i++) b->tokens[i] = (int32_t)((i * 7919 + i / 13) % c->vocab_size);
  json_start(&b->json, stdout, 0);
  if (!s->json)
    printf("%s, %lld x %lld tokens, %d threads, %s\n", s->model, (long long)s->batch, (long long)s->length,
           mhk_threads(b->ctx), mhk_isa_name(b->ctx));
  row(b, "teacher, forward", forward, 0);
  row(b, "student, forward", forward, 1);
  row(b, "stage 1, loss and gradient", stage, 1);
  row(b, "stage 2, loss and gradient", stage, 2);
  row(b, "stage 3, loss and gradient", stage, 3);
  row(b, "teacher, decoding, one sequence", decode, 0);
  row(b, "student, decoding, one sequence", decode, 1);
  return mhk_failed(b->ctx) ? cli_context_error(b->ctx) : CLI_OK;
}

int command_bench(int argc, char **argv) {
  settings s;
  bench b;
  int code;
  memset(&s, 0, sizeof s);
  s.model = "examples/tiny";
  s.batch = 8;
  s.length = 256;
  s.seconds = 1;
  code = parse(&s, argc, argv);
  if (code != CLI_GO) return code;
  memset(&b, 0, sizeof b);
  b.s = &s;
  b.ctx = cli_context(s.threads);
  code = b.ctx ? measure(&b) : CLI_FAILED;
  free(b.tokens);
  mhk_destroy(b.ctx);
  return code;
}
