/* Training on the next token of a text, without a teacher. */
#include "models.h"

enum { BATCH = 4, LENGTH = 32, TEXT = 2000, UPDATES = 6 };

static mhk_distill_desc description(mhk_context *ctx, int kind) {
  mhk_distill_desc d;
  int32_t tokens[TEXT];
  memset(&d, 0, sizeof d);
  d.student = model_new(ctx, kind, 7);
  model_tokens(tokens, TEXT, 31, 4);
  for (int i = 0; i < TEXT; i += 37) tokens[i] = 0;
  d.corpus = mhk_corpus_from_tokens(ctx, tokens, TEXT, 0);
  d.batch = BATCH;
  d.length = LENGTH;
  d.stages[2].tokens = UPDATES * BATCH * LENGTH;
  d.stages[2].lr = 1e-2;
  d.stages[2].warmup = -1;
  d.seed = 3;
  return d;
}

/* the loss of a batch, and its gradients in the model, from ops alone */
static double by_hand(mhk_context *ctx, mhk_model *m, const int32_t *tokens) {
  mhk_tape *t = mhk_tape_create(ctx);
  int32_t labels[BATCH * LENGTH];
  mhk_tensor *loss;
  double value;
  for (int i = 0; i < BATCH * LENGTH; i++) labels[i] = (i + 1) % LENGTH ? tokens[i + 1] : -1;
  loss = mhk_cross_entropy(t, mhk_forward(t, m, tokens, BATCH, LENGTH, NULL), labels);
  value = mhk_value(loss);
  mhk_backward(t, loss);
  mhk_tape_destroy(t);
  return value;
}

TEST(the_loss_is_the_cross_entropy_of_the_next_token) {
  for (int kind = PHI; kind < MODEL_KINDS; kind++) {
    mhk_context *ctx = mhk_create(NULL);
    int32_t tokens[BATCH * LENGTH];
    mhk_model *m = model_new(ctx, kind, 7);
    mhk_tape *t = mhk_tape_create(ctx);
    mhk_evaluate_desc e;
    mhk_evaluation measured;
    mhk_stage_loss_desc d;
    mhk_index n;
    mhk_real *want, *got;
    double loss, hand;
    memset(&d, 0, sizeof d);
    memset(&e, 0, sizeof e);
    model_tokens(tokens, BATCH * LENGTH, 31, 5);
    d.student = m;
    d.stage = 3;
    d.tokens = tokens;
    d.B = BATCH;
    d.T = LENGTH;
    model_zero_grads(m);
    hand = by_hand(ctx, m, tokens);
    want = model_numbers(m, 1, &n);
    model_zero_grads(m);
    loss = mhk_stage_loss(t, &d);
    got = model_numbers(m, 1, &n);
    e.corpus = mhk_corpus_from_tokens(ctx, tokens, BATCH * LENGTH, -1);
    e.length = LENGTH;
    mhk_evaluate(m, &e, &measured);
    CHECK_OK(ctx);
    CHECK(loss == hand, "%s: %.17g, by hand %.17g", model_kind_name(kind), loss, hand);
    CHECK(fabs(loss - measured.cross_entropy) < 2e-6 * loss, "%s: %.17g, measured %.17g", model_kind_name(kind), loss,
          measured.cross_entropy);
    CHECK_SAME(model_kind_name(kind), got, want, n);
    free(want), free(got);
    mhk_destroy(ctx);
  }
}

/* trains with threads, or in two pieces through a checkpoint; the caller frees the weights */
static mhk_real *train(int kind, int threads, const char *out, mhk_index *n, double loss[2]) {
  mhk_real *weights = NULL;
  for (int piece = out ? 0 : 1; piece < 2; piece++) {
    const mhk_context_desc c = {.threads = threads};
    mhk_context *ctx = mhk_create(&c);
    mhk_distill_desc d = description(ctx, kind);
    mhk_trainer *tr;
    d.out = out;
    d.fresh = !piece;
    tr = mhk_distill(ctx, &d);
    if (out && piece) CHECK(tr && mhk_progress(tr)->resumed, "not resumed");
    for (int i = 0; i < (piece ? UPDATES : UPDATES / 2); i++) {
      mhk_train_step(tr);
      if (tr && i == 0 && !(out && piece)) loss[0] = mhk_progress(tr)->loss;
    }
    if (!piece) mhk_checkpoint(tr);
    CHECK_OK(ctx);
    if (piece && tr) loss[1] = mhk_progress(tr)->loss;
    if (piece && tr) weights = model_numbers(mhk_student(tr), 0, n);
    mhk_destroy(ctx);
  }
  return weights;
}

TEST(same_bits_on_any_number_of_threads_and_after_a_stop) {
  static const int kinds[] = {PHI, HYBRID, GATED};
  for (int i = 0; i < 3; i++) {
    mhk_index n = 0, k = 0;
    double loss[2] = {0, 0}, other[2] = {0, 0};
    mhk_real *want = train(kinds[i], 1, NULL, &n, loss), *got;
    REQUIRE(want, "no weights");
    CHECK(loss[1] < loss[0] - 0.1, "%s: the loss goes from %g to %g", model_kind_name(kinds[i]), loss[0], loss[1]);
    got = train(kinds[i], 3, NULL, &k, other);
    CHECK_SAME("three threads", got, want, n);
    CHECK(!memcmp(other, loss, sizeof loss), "%.17g, with three threads %.17g", loss[1], other[1]);
    free(got);
    got = train(kinds[i], 2, test_path("training"), &k, other);
    CHECK_SAME("stopped", got, want, n);
    CHECK(!memcmp(other, loss, sizeof loss), "%.17g, stopped %.17g", loss[1], other[1]);
    free(got), free(want);
  }
}

TEST(memory_is_foreseen_and_nothing_is_spent_on_targets) {
  mhk_context *ctx = mhk_create(NULL);
  mhk_distill_desc d = description(ctx, PHI);
  double alone, taught;
  size_t before;
  mhk_trainer *tr;
  d.batch = 64;
  d.stages[2].tokens = 2 * 64 * LENGTH;
  alone = mhk_distill_bytes(&d);
  before = mhk_memory_in_use(ctx);
  tr = mhk_distill(ctx, &d);
  while (mhk_train_step(tr)) continue;
  CHECK_OK(ctx);
  CHECK((double)(mhk_memory_peak(ctx) - before) <= alone, "%.0f bytes, %g were foreseen",
        (double)(mhk_memory_peak(ctx) - before), alone);
  d.batch = 4096;
  alone = mhk_distill_bytes(&d);
  d.teacher = model_new(ctx, PHI, 1);
  taught = mhk_distill_bytes(&d);
  CHECK(alone < taught, "%g bytes alone, %g with a teacher", alone, taught);
  mhk_destroy(ctx);
}

TEST(what_needs_a_teacher_says_so) {
  mhk_context *ctx = mhk_create(NULL);
  const mhk_distill_desc good = description(ctx, PHI);
  int32_t tokens[LENGTH] = {0};
  mhk_distill_desc d = mhk_distill_defaults(&good);
  mhk_trainer *tr;
  CHECK(d.stages[2].hard_labels == 1 && d.stages[2].own_stream < 0 && d.stages[0].tokens == 0, "the defaults");
  memset(d.stages, 0, sizeof d.stages);
  d = mhk_distill_defaults(&d);
  CHECK(d.stages[0].tokens == 0 && d.stages[1].tokens == 0 && d.stages[2].tokens == 2000000, "the default budget");
  d = good;
  d.student = NULL;
  CHECK(!mhk_distill(ctx, &d) && mhk_distill_bytes(&d) == 0, "without a model");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "needs a teacher");
  for (int stage = 0; stage < 2; stage++) {
    d = good;
    d.stages[stage].tokens = 10000;
    CHECK(!mhk_distill(ctx, &d), "stage %d", stage + 1);
    CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "only stage 3 runs");
  }
  d = good;
  d.teacher_type = MHK_Q8;
  CHECK(!mhk_distill(ctx, &d), "a teacher_type");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "teacher_type need a teacher");
  d = good;
  d.stages[2].own_stream = 0.06;
  CHECK(!mhk_distill(ctx, &d), "own_stream");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "own_stream");
  tr = mhk_distill(ctx, &good);
  REQUIRE(tr, "%s", mhk_message(ctx));
  mhk_train_on(tr, 3, tokens, 1, LENGTH, NULL, 1e-3);
  CHECK_OK(ctx);
  mhk_train_on(tr, 2, tokens, 1, LENGTH, NULL, 1e-3);
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "stage 2 needs a teacher");
  mhk_destroy(ctx);
}

TEST(a_weight_that_is_not_finite_is_named) {
  mhk_context *ctx = mhk_create(NULL);
  mhk_distill_desc d = description(ctx, PHI);
  mhk_trainer *tr = mhk_distill(ctx, &d);
  mhk_data(mhk_model_find(d.student, "model.layers.1.mlp.fc1.weight"))[3] = (mhk_real)NAN;
  CHECK(!mhk_train_step(tr), "it trained");
  CHECK_FAILS(ctx, MHK_ERROR_STATE, "model.layers.1.mlp.fc1.weight of the student");
  mhk_destroy(ctx);
}

int main(int argc, char **argv) {
  test_begin(argc, argv);
  RUN(the_loss_is_the_cross_entropy_of_the_next_token);
  RUN(same_bits_on_any_number_of_threads_and_after_a_stop);
  RUN(memory_is_foreseen_and_nothing_is_spent_on_targets);
  RUN(what_needs_a_teacher_says_so);
  RUN(a_weight_that_is_not_finite_is_named);
  return test_end();
}
