/* The same bits: on any number of threads, after save and load, after stop and resume. */
#define _XOPEN_SOURCE 700
#include "models.h"
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

/* a parallel-for of one's own that runs the tasks backwards and hands out workers in turn */
static void backwards(void *user, mhk_index tasks, void (*body)(void *arg, mhk_index task, int worker), void *arg) {
  mhk_index i;
  int *calls = (int *)user;
  (*calls)++;
  for (i = tasks; i-- > 0;) body(arg, i, (int)(i % 3));
}
static int backwards_calls;

#ifdef _OPENMP
enum { WAYS = 5 };
#else
enum { WAYS = 2 }; /* numbers of threads mean nothing */
#endif
static mhk_context *context(int way) {
  mhk_context_desc d;
  memset(&d, 0, sizeof d);
  if (way == 1) {
    d.parallel_for = backwards;
    d.parallel_user = &backwards_calls;
    d.parallel_workers = 3;
  } else
    d.threads = way == 0 ? 1 : way == 4 ? 7 : way;
  return mhk_create(&d);
}
static const char *way_name(int way) {
  static const char *const names[] = {"1 thread", "own threads, backwards", "2 threads", "3 threads", "7 threads"};
  return names[way];
}

static mhk_distill_desc description(mhk_context *ctx, mhk_index text_tokens) {
  mhk_distill_desc d;
  int32_t *tokens = (int32_t *)malloc(sizeof *tokens * (size_t)text_tokens);
  mhk_index i;
  memset(&d, 0, sizeof d);
  d.teacher = mhk_load(ctx, "examples/tiny");
  model_tokens(tokens, text_tokens, 1024, 4);
  for (i = 0; i < text_tokens; i += 37) tokens[i] = 0;
  d.corpus = mhk_corpus_from_tokens(ctx, tokens, text_tokens, 0);
  free(tokens);
  d.batch = 2;
  d.length = 48;
  for (i = 0; i < 3; i++) d.stages[i].tokens = 2 * 48 * 3; /* 3 updates a stage */
  d.seed = 3;
  return d;
}

static mhk_real *train(int way, int recompute, double own_stream, mhk_windows windows, mhk_index *count,
                       double *losses) {
  mhk_context *ctx = context(way);
  mhk_distill_desc d = description(ctx, 3000);
  mhk_trainer *tr;
  mhk_real *weights;
  int n = 0;
  d.recompute = recompute;
  d.stages[2].own_stream = own_stream;
  d.windows = windows;
  tr = mhk_distill(ctx, &d);
  while (mhk_train_step(tr))
    if (n < 16) losses[n++] = mhk_progress(tr)->loss;
  CHECK_OK(ctx);
  weights = mhk_failed(ctx) ? NULL : model_numbers(mhk_student(tr), 0, count);
  mhk_destroy(ctx);
  return weights;
}

TEST(training_on_any_number_of_threads) {
  double want_losses[16], losses[16];
  mhk_index n, k;
  mhk_real *want, *got;
  int way, i;
  memset(want_losses, 0, sizeof want_losses);
  want = train(0, 0, 0, MHK_WINDOWS_RANDOM, &n, want_losses);
  REQUIRE(want != NULL, "no weights");
  for (way = 1; way < WAYS; way++) {
    memset(losses, 0, sizeof losses);
    got = train(way, 0, 0, MHK_WINDOWS_RANDOM, &k, losses);
    CHECK(k == n, "another number of weights");
    CHECK_SAME(way_name(way), got, want, n);
    for (i = 0; i < 9; i++)
      CHECK(losses[i] == want_losses[i], "%s: loss %d is %.17g, was %.17g", way_name(way), i, losses[i],
            want_losses[i]);
    free(got);
  }
  CHECK(backwards_calls > 0, "the caller's parallel_for was never called");
  free(want);
  /* with own-stream alignment the gradients of a block's input are added up in another order:
     rounding only */
  want = train(1, 0, -1, MHK_WINDOWS_RANDOM, &n, losses);
  got = train(1, 1, -1, MHK_WINDOWS_RANDOM, &k, losses);
  CHECK_SAME("with recomputation", got, want, n);
  free(got);
  free(want);
}

TEST(packed_training_on_any_number_of_threads) {
  double losses[16];
  mhk_index n, k;
  mhk_real *want = train(0, 0, 0, MHK_WINDOWS_PACKED, &n, losses), *got;
  int way;
  REQUIRE(want != NULL, "no weights");
  for (way = 1; way < WAYS; way += 3) {
    got = train(way, 0, 0, MHK_WINDOWS_PACKED, &k, losses);
    CHECK_SAME(way_name(way), got, want, n);
    free(got);
  }
  free(want);
}

TEST(inference_on_any_number_of_threads) {
  mhk_real *want[MODEL_KINDS];
  int way, kind;
  for (way = 0; way < WAYS; way++) {
    mhk_context *ctx = context(way);
    mhk_tape *t = mhk_tape_create(ctx);
    for (kind = 0; kind < MODEL_KINDS; kind++) {
      mhk_model *m = model_new(ctx, kind, 5);
      int32_t tokens[400];
      mhk_tensor *logits;
      model_tokens(tokens, 400, 31, 6);
      mhk_tape_record(t, 0);
      logits = mhk_forward(t, m, tokens, 2, 200, NULL);
      REQUIRE_OK(ctx);
      if (way == 0) {
        want[kind] = (mhk_real *)malloc(sizeof(mhk_real) * (size_t)logits->count);
        memcpy(want[kind], logits->data, sizeof(mhk_real) * (size_t)logits->count);
      } else
        CHECK_SAME(way_name(way), mhk_data(logits), want[kind], logits->count);
      mhk_tape_reset(t);
      mhk_model_destroy(m);
    }
    mhk_destroy(ctx);
  }
  for (kind = 0; kind < MODEL_KINDS; kind++) free(want[kind]);
}

TEST(sampled_text_on_any_number_of_threads) {
  int32_t want[300];
  int way;
  for (way = 0; way < WAYS; way++) {
    mhk_context *ctx = context(way);
    mhk_model *m = mhk_load(ctx, "examples/tiny");
    mhk_corpus *x = mhk_corpus_sample(m, 300, 9, NULL, NULL);
    const int32_t *tokens = NULL;
    const mhk_index n = mhk_corpus_tokens(x, &tokens);
    REQUIRE_OK(ctx);
    REQUIRE(n >= 300 && tokens[0] == 0, "%lld tokens, the first is %d", (long long)n, (int)tokens[0]);
    if (way == 0)
      memcpy(want, tokens, sizeof want);
    else
      CHECK(!memcmp(want, tokens, sizeof want), "%s: another text", way_name(way));
    mhk_destroy(ctx);
  }
}

/* -------------------------------------------------------------------------------- save and load */

static void same_file(const char *a, const char *b) {
  size_t na = 0, nb = 0;
  char *x = test_read_file(a, &na), *y = test_read_file(b, &nb);
  CHECK(x && y && na == nb && !memcmp(x, y, na), "%s (%lld bytes) and %s (%lld bytes) differ", a, (long long)na, b,
        (long long)nb);
  free(x), free(y);
}

TEST(save_and_load) {
  static const mhk_dtype types[] = {MHK_F32, MHK_F16, MHK_BF16};
  mhk_context *ctx = mhk_create(NULL);
  mhk_tape *t = mhk_tape_create(ctx);
  int kind, i, one_file, d;
  mhk_tape_record(t, 0);
  for (kind = 0; kind < MODEL_KINDS; kind++) {
    mhk_model *m = model_new(ctx, kind, 5);
    int32_t tokens[40];
    mhk_real want[40 * 31];
    model_tokens(tokens, 40, 31, 6);
    memcpy(want, mhk_data(mhk_forward(t, m, tokens, 2, 20, NULL)), sizeof want);
    for (one_file = 0; one_file < 2; one_file++)
      for (d = 0; d < 3; d++) {
        const char *first = test_path(one_file ? "a.safetensors" : "a"),
                   *second = test_path(one_file ? "b.safetensors" : "b");
        mhk_model *back, *again;
        mhk_save(m, first, types[d]);
        back = mhk_load(ctx, first);
        REQUIRE(back != NULL, "%s: %s", model_kind_name(kind), mhk_message(ctx));
        CHECK(mhk_model_count(back) == mhk_model_count(m), "%d tensors, there were %d", mhk_model_count(back),
              mhk_model_count(m));
        CHECK(mhk_config_parameters(mhk_model_config(back)) == mhk_config_parameters(mhk_model_config(m)),
              "another number of parameters");
        if (d == 0 && sizeof(mhk_real) == 4)
          CHECK_SAME(model_kind_name(kind), mhk_data(mhk_forward(t, back, tokens, 2, 20, NULL)), want, 40 * 31);
        mhk_save(back, second, types[d]); /* what was rounded once is not rounded again */
        if (one_file)
          same_file(first, second);
        else {
          char a[600], b[600];
          snprintf(a, sizeof a, "%s/model.safetensors", first), snprintf(b, sizeof b, "%s/model.safetensors", second);
          same_file(a, b);
          snprintf(a, sizeof a, "%s/config.json", first), snprintf(b, sizeof b, "%s/config.json", second);
          same_file(a, b);
        }
        /* trainable copies hold the same numbers, and go out as the same file */
        again = mhk_load(ctx, first);
        mhk_model_make_trainable(again);
        CHECK_OK(ctx);
        for (i = 0; i < mhk_model_count(again); i++)
          CHECK(mhk_model_at(again, i)->dtype == MHK_REAL && mhk_model_at(again, i)->requires_grad,
                "%s is not trainable", mhk_model_at(again, i)->name);
        mhk_save(again, second, types[d]);
        if (one_file) same_file(first, second);
        mhk_tape_reset(t);
        mhk_model_destroy(back);
        mhk_model_destroy(again);
      }
    mhk_model_destroy(m);
  }
  CHECK_OK(ctx);
  mhk_destroy(ctx);
}

TEST(models_from_seeds) {
  mhk_context *ctx = mhk_create(NULL);
  int kind;
  for (kind = 0; kind < MODEL_KINDS; kind++) {
    const mhk_config c = model_config(kind);
    mhk_index n;
    mhk_real *a = model_numbers(mhk_model_create(ctx, &c, 7), 0, &n),
             *b = model_numbers(mhk_model_create(ctx, &c, 7), 0, &n);
    mhk_real *other = model_numbers(mhk_model_create(ctx, &c, 8), 0, &n);
    CHECK_SAME(model_kind_name(kind), a, b, n);
    CHECK(memcmp(a, other, sizeof *a * (size_t)n) != 0, "another seed gives the same weights");
    CHECK((double)n == mhk_config_parameters(&c), "%s: %lld numbers, the configuration says %.0f",
          model_kind_name(kind), (long long)n, mhk_config_parameters(&c));
    free(a), free(b), free(other);
  }
  CHECK_OK(ctx);
  mhk_destroy(ctx);
}

/* ------------------------------------------------------------------------------ stop and resume */

static void remove_folder(const char *path) {
  char command[700];
  snprintf(command, sizeof command, "rm -rf '%s'", path);
  if (system(command) != 0) printf("could not remove %s\n", path);
}

/* Runs to the end, or until `stop` updates were done, when it checkpoints. Returns the student's
   weights at the end. */
static mhk_real *run(const char *out, int stop, int lose, mhk_index *n, int *resumed, int *updates) {
  mhk_context *ctx = mhk_create(NULL);
  mhk_distill_desc d = description(ctx, 3000);
  mhk_trainer *tr;
  mhk_real *weights = NULL;
  int done = 0, more = 1;
  d.out = out;
  d.checkpoint_seconds = -1;
  tr = mhk_distill(ctx, &d);
  CHECK_OK(ctx);
  if (resumed) *resumed = mhk_progress(tr) ? mhk_progress(tr)->resumed : 0;
  while (more && (stop == 0 || done < stop)) {
    more = mhk_train_step(tr);
    done++;
  }
  if (stop) {
    mhk_checkpoint(tr);
    while (lose-- > 0) mhk_train_step(tr); /* work that no checkpoint holds */
  } else if (!mhk_failed(ctx))
    weights = model_numbers(mhk_student(tr), 0, n);
  CHECK_OK(ctx);
  if (updates) *updates = done;
  mhk_destroy(ctx);
  return weights;
}

TEST(stop_and_resume) {
  char out[600];
  mhk_index n, k;
  mhk_real *want, *got;
  int stop, resumed;
  snprintf(out, sizeof out, "%s", test_path("run"));
  want = run(NULL, 0, 0, &n, NULL, NULL);
  REQUIRE(want != NULL, "no weights");
  for (stop = 1; stop < 9; stop++) {
    remove_folder(out);
    run(out, stop, 0, &k, &resumed, NULL);
    CHECK(!resumed, "a fresh run says it was resumed");
    got = run(out, 0, 0, &k, &resumed, NULL);
    CHECK(resumed, "stopped after %d updates: not resumed", stop);
    REQUIRE(got != NULL && k == n, "no weights");
    CHECK_SAME("weights after a stop", got, want, n);
    free(got);
  }
  /* stopped many times */
  remove_folder(out);
  for (stop = 0; stop < 8; stop++) run(out, 1, 0, &k, NULL, NULL);
  got = run(out, 0, 0, &k, &resumed, NULL);
  CHECK_SAME("weights after eight stops", got, want, n);
  free(got);
  free(want);
}

/* the process goes away without a word, after updates that no checkpoint holds, also in the middle
   of writing one */
TEST(killed_and_resumed) {
  char out[600], half[700];
  mhk_index n, k;
  mhk_real *want, *got;
  int stop, resumed;
  snprintf(out, sizeof out, "%s", test_path("killed"));
  want = run(NULL, 0, 0, &n, NULL, NULL);
  REQUIRE(want != NULL, "no weights");
  for (stop = 2; stop < 9; stop += 3) {
    pid_t child;
    int status = 0;
    remove_folder(out);
    fflush(stdout);
    child = fork();
    if (child == 0) {
      mhk_context *ctx = mhk_create(NULL);
      mhk_distill_desc d = description(ctx, 3000);
      mhk_trainer *tr;
      int i;
      d.out = out;
      d.checkpoint_seconds = -1;
      tr = mhk_distill(ctx, &d);
      for (i = 0; i < stop; i++) mhk_train_step(tr);
      mhk_checkpoint(tr);
      mhk_train_step(tr);
      _exit(mhk_failed(ctx) ? 9 : 0);
    }
    REQUIRE(child > 0 && waitpid(child, &status, 0) == child, "no child process");
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child failed: %d", status);
    snprintf(half, sizeof half, "%s/checkpoint.safetensors.new", out);
    test_write_file(half, "half a checkpoint", 17);
    got = run(out, 0, 0, &k, &resumed, NULL);
    CHECK(resumed, "not resumed");
    REQUIRE(got != NULL && k == n, "no weights");
    CHECK_SAME("weights after a kill", got, want, n);
    free(got);
  }
  free(want);
}

TEST(another_description_does_not_resume) {
  char out[600];
  mhk_index n;
  mhk_context *ctx = mhk_create(NULL);
  mhk_distill_desc d;
  mhk_trainer *tr;
  snprintf(out, sizeof out, "%s", test_path("other"));
  remove_folder(out);
  run(out, 2, 0, &n, NULL, NULL);
  d = description(ctx, 3000);
  d.out = out;
  d.stages[0].lr = 0.0123;
  tr = mhk_distill(ctx, &d);
  CHECK(!tr, "another learning rate resumed the run");
  CHECK(mhk_failed(ctx) && (strstr(mhk_message(ctx), "lr") || strstr(mhk_message(ctx), "learning rate") ||
                            strstr(mhk_message(ctx), "rate")),
        "the message does not name the difference: %s", mhk_message(ctx));
  mhk_clear_error(ctx);
  d.fresh = 1;
  tr = mhk_distill(ctx, &d);
  CHECK(tr && mhk_progress(tr) && !mhk_progress(tr)->resumed, "fresh did not start over: %s", mhk_message(ctx));
  mhk_destroy(ctx);
}

TEST(accumulation) { /* an update of two half batches is the update of the whole one, but for rounding */
  mhk_real *want = NULL;
  mhk_index n = 0, k;
  int pass;
  for (pass = 0; pass < 2; pass++) {
    mhk_context *ctx = mhk_create(NULL);
    mhk_distill_desc d = description(ctx, 3000);
    mhk_trainer *tr;
    int s;
    for (s = 0; s < 3; s++) d.stages[s].tokens = 4 * 48 * 2;
    d.batch = pass ? 2 : 4;
    d.update_tokens = 4 * 48;
    tr = mhk_distill(ctx, &d);
    while (mhk_train_step(tr)) {}
    REQUIRE_OK(ctx);
    if (pass == 0)
      want = model_numbers(mhk_student(tr), 0, &n);
    else {
      mhk_real *got = model_numbers(mhk_student(tr), 0, &k);
      double off = 0, size = 0;
      mhk_index i;
      CHECK(k == n, "another number of weights");
      for (i = 0; i < n; i++) off += pow((double)got[i] - (double)want[i], 2), size += pow((double)want[i], 2);
      CHECK(sqrt(off / size) < 1e-3, "weights differ by %.2e of their norm", sqrt(off / size));
      free(got);
    }
    mhk_destroy(ctx);
  }
  free(want);
}

typedef struct exchange_state {
  size_t n;
  int calls;
} exchange_state;
static int watch(void *user, mhk_real *gradients, size_t n) {
  exchange_state *e = (exchange_state *)user;
  size_t i;
  for (i = 0; i < n; i++)
    if (gradients[i] != gradients[i]) return 1;
  e->calls++;
  e->n = n;
  return 0;
}
static int refuse(void *user, mhk_real *gradients, size_t n) {
  (void)user, (void)gradients, (void)n;
  return 1;
}
TEST(exchange) {
  mhk_context *ctx = mhk_create(NULL);
  mhk_distill_desc d = description(ctx, 3000);
  exchange_state e;
  mhk_trainer *tr;
  memset(&e, 0, sizeof e);
  d.exchange = watch;
  d.exchange_user = &e;
  tr = mhk_distill(ctx, &d);
  while (mhk_train_step(tr)) {}
  CHECK_OK(ctx);
  CHECK(e.calls == 9, "exchange was called %d times in 9 updates", e.calls);
  CHECK(e.n > 100, "%lld gradients", (long long)e.n);
  mhk_trainer_destroy(tr);
  d = description(ctx, 3000);
  d.exchange = refuse;
  tr = mhk_distill(ctx, &d);
  CHECK(mhk_train_step(tr) == 0 && mhk_failed(ctx), "a failed exchange did not stop the training");
  CHECK(strstr(mhk_message(ctx), "exchange") != NULL, "the message does not name the exchange: %s", mhk_message(ctx));
  mhk_destroy(ctx);
}

/* ------------------------------------------------------- shared memory, and layer after layer */

typedef struct order {
  const char *name, *out;
  int share, layer_by_layer, way, updates; /* updates of a stage */
} order;

/* A run in which stage 3 trains mixers, of a student that keeps attention in the `keep` layers
   given. It ends without another checkpoint after `stop` updates; 0: never; -1: with its stage. */
static mhk_real *ordered(const order *o, const int *keep, int n_keep, mhk_windows windows, int stop, mhk_index *n) {
  mhk_context *ctx = context(o->way);
  mhk_distill_desc d = description(ctx, 3000);
  mhk_trainer *tr;
  mhk_real *weights = NULL;
  int i, done = 0;
  d.batch = 1;
  d.length = 24;
  d.update_tokens = 48;
  for (i = 0; i < 3; i++) d.stages[i].tokens = o->updates * 48;
  if (o->updates > 9) d.stages[2].tokens = 48;
  d.stages[2].trains = MHK_TRAIN_MIXERS;
  d.windows = windows;
  d.student_desc.keep_attention = keep;
  d.student_desc.n_keep_attention = n_keep;
  d.share = o->share;
  d.layer_by_layer = o->layer_by_layer;
  d.out = o->out;
  d.checkpoint_seconds = -1;
  tr = mhk_distill(ctx, &d);
  while (mhk_train_step(tr) && ++done != stop && !(stop < 0 && mhk_progress(tr)->stage_done && d.out)) {}
  CHECK(!mhk_failed(ctx), "%s: %s", o->name, mhk_message(ctx));
  if (!mhk_failed(ctx)) weights = model_numbers(mhk_student(tr), 0, n);
  mhk_destroy(ctx);
  return weights;
}

TEST(shared_and_layer_by_layer_are_the_same_bits) {
  static const int keep[][2] = {{0, 0}, {0, 3}, {1, 2}};
  char out[600];
  int k, i;
  snprintf(out, sizeof out, "%s", test_path("ordered"));
  for (k = 0; k < 3; k++) {
    const order orders[] = {{"as usual", NULL, 0, 0, 0, 3},      {"shared", NULL, 1, 0, 0, 3},
                            {"layer by layer", NULL, 0, 1, 0, 3}, {"both", NULL, 1, 1, 1, 3},
                            {"both, in files", out, 1, 1, WAYS - 1, 3}};
    mhk_real *want = NULL;
    mhk_index n = 0, m = 0;
    for (i = 0; i < 5; i++) {
      mhk_real *got;
      remove_folder(out);
      got = ordered(&orders[i], keep[k], k ? 2 : 0, k == 1 ? MHK_WINDOWS_PACKED : MHK_WINDOWS_RANDOM, 0, &m);
      REQUIRE(got != NULL && (i == 0 || m == n), "%s: no weights", orders[i].name);
      if (i == 0) {
        want = got;
        n = m;
        continue;
      }
      CHECK_SAME(orders[i].name, got, want, n);
      free(got);
    }
    free(want);
  }
}

static int stream_files(const char *out) {
  char command[700];
  int n = -1;
  FILE *f;
  snprintf(command, sizeof command, "ls '%s' | grep -c '^stream'", out);
  f = popen(command, "r");
  if (f && fscanf(f, "%d", &n) != 1) n = -1;
  if (f) pclose(f);
  return n;
}

/* Layer by layer, a run that ends anywhere goes on to the same bits from its last checkpoint, and
   from the one before when that is damaged. */
TEST(layer_by_layer_goes_on) {
  static const int stops[] = {7, 1, 33, 50, 3, 38, 41, 2, 46, -1, 29, -1};
  char out[600], path[700];
  order o = {"undisturbed", NULL, 1, 1, 0, 40};
  mhk_index n, m;
  mhk_real *want = ordered(&o, NULL, 0, MHK_WINDOWS_RANDOM, 0, &n), *got;
  size_t i;
  snprintf(out, sizeof out, "%s", test_path("by_layer"));
  snprintf(path, sizeof path, "%s/checkpoint.safetensors", out);
  remove_folder(out);
  o.name = "in pieces";
  o.out = out;
  for (i = 0; i < sizeof stops / sizeof *stops; i++) {
    free(ordered(&o, NULL, 0, MHK_WINDOWS_RANDOM, stops[i], &m));
    CHECK(stream_files(out) <= 2 * (40 + 6), "%d files of hidden states", stream_files(out));
    if (i % 2) test_write_file(path, "damaged", 7);
  }
  got = ordered(&o, NULL, 0, MHK_WINDOWS_RANDOM, 0, &m);
  REQUIRE(want && got && m == n, "no weights");
  CHECK_SAME("a run in pieces", got, want, n);
  CHECK(stream_files(out) == 0, "%d files of hidden states are left", stream_files(out));
  /* as a kill leaves them between the checkpoint of a stage's end and their removal */
  for (i = 0; i < 85; i += 12) {
    snprintf(path, sizeof path, "%s/stream.0.%d", out, (int)i);
    test_write_file(path, "hidden", 6);
  }
  free(ordered(&o, NULL, 0, MHK_WINDOWS_RANDOM, 0, &m));
  CHECK(stream_files(out) == 0, "%d files of hidden states are left by a kill", stream_files(out));
  free(want);
  free(got);
}

TEST(layer_by_layer_refuses) {
  mhk_context *ctx = mhk_create(NULL);
  mhk_distill_desc d = description(ctx, 3000);
  mhk_trainer *tr;
  const int32_t tokens[4] = {1, 2, 3, 4};
  d.layer_by_layer = d.share = 1;
  d.stages[1].clip = 1;
  CHECK(!mhk_distill(ctx, &d) && strstr(mhk_message(ctx), "stage 2 clips"), "clip: %s", mhk_message(ctx));
  mhk_clear_error(ctx);
  d.stages[1].clip = 0;
  d.stages[2].tokens = 0;
  tr = mhk_distill(ctx, &d);
  mhk_train_on(tr, 1, tokens, 1, 4, NULL, 1e-3);
  CHECK(strstr(mhk_message(ctx), "trains on the corpus"), "a batch of one's own: %s", mhk_message(ctx));
  mhk_clear_error(ctx);
  mhk_train_on(tr, 3, tokens, 1, 4, NULL, 1e-3); /* what it trains is the teacher's */
  CHECK(strstr(mhk_message(ctx), "mhk_model_make_trainable()"), "stage 3: %s", mhk_message(ctx));
  mhk_clear_error(ctx);
  mhk_model_transfer(mhk_student(tr), d.teacher);
  CHECK(strstr(mhk_message(ctx), "mhk_model_make_trainable()"), "transfer: %s", mhk_message(ctx));
  mhk_clear_error(ctx);
  {
    mhk_model *student = mhk_student(tr);
    mhk_trainer_destroy(tr);
    CHECK(mhk_model_make_trainable(student) == MHK_OK && mhk_model_transfer(student, d.teacher) == MHK_OK, "%s",
          mhk_message(ctx));
    mhk_model_destroy(d.teacher); /* nothing is shared any more */
    mhk_save(student, test_path("own"), MHK_F32);
    CHECK_OK(ctx);
  }
  mhk_destroy(ctx);
}

int main(int argc, char **argv) {
  test_begin(argc, argv);
  RUN(killed_and_resumed); /* forks: before any threads are started */
  RUN(training_on_any_number_of_threads);
  RUN(packed_training_on_any_number_of_threads);
  RUN(inference_on_any_number_of_threads);
  RUN(sampled_text_on_any_number_of_threads);
  RUN(save_and_load);
  RUN(models_from_seeds);
  RUN(stop_and_resume);
  RUN(shared_and_layer_by_layer_are_the_same_bits);
  RUN(layer_by_layer_goes_on);
  RUN(layer_by_layer_refuses);
  RUN(another_description_does_not_resume);
  RUN(accumulation);
  RUN(exchange);
  return test_end();
}
