/* A teacher's outputs in place of its weights: recorded and given back the same bits, other logits
   against a direct computation, and what is refused. */
#include "models.h"

enum { BATCH = 2, LENGTH = 16, TEXT = 700, UPDATES = 4, PARTS = 4000 };

/* what was recorded, in the order in which it came */
typedef struct tape_deck {
  mhk_output part[PARTS];
  int n, at, logits, skips, answer; /* logits: at most so many of each token, the largest; 0: all */
  const int32_t *text;
} tape_deck;

static int keep(void *user, const mhk_output *o) {
  tape_deck *d = (tape_deck *)user;
  mhk_output *to = &d->part[d->n];
  if (d->n == PARTS) return -9;
  d->n++;
  *to = *o;
  to->x = o->n ? (mhk_real *)malloc((size_t)o->n * sizeof(mhk_real)) : NULL;
  if (o->n) memcpy(to->x, o->x, (size_t)o->n * sizeof(mhk_real));
  return o->part == MHK_PART_START && d->skips;
}

static int give(void *user, const mhk_output *o) {
  tape_deck *d = (tape_deck *)user;
  while (d->at < d->n && d->part[d->at].stage < o->stage) d->at++;
  if (d->at == d->n || d->answer) return d->answer ? d->answer : -8;
  const mhk_output *from = &d->part[d->at++];
  if (from->part != o->part || from->layer != o->layer || from->batch != o->batch || from->stage != o->stage ||
      from->n != o->n || from->B != o->B || from->T != o->T)
    return -7;
  if (o->n) memcpy(o->x, from->x, (size_t)o->n * sizeof(mhk_real));
  return 0;
}

static void deck_free(tape_deck *d) {
  for (int i = 0; i < d->n; i++) free(d->part[i].x);
  free(d);
}

static mhk_distill_desc description(mhk_context *ctx, int kind) {
  static const int kept[] = {0};
  mhk_distill_desc d;
  int32_t tokens[TEXT];
  memset(&d, 0, sizeof d);
  d.teacher = model_new(ctx, kind, 7);
  model_tokens(tokens, TEXT, 31, 4);
  for (int i = 0; i < TEXT; i += 37) tokens[i] = 0;
  d.corpus = mhk_corpus_from_tokens(ctx, tokens, TEXT, 0);
  d.student_desc.keep_attention = kept;
  d.batch = BATCH;
  d.length = LENGTH;
  for (int i = 0; i < 3; i++) d.stages[i].tokens = UPDATES * BATCH * LENGTH;
  d.seed = 3;
  return d;
}

/* trains to the end; the caller frees the weights */
static mhk_real *train(mhk_context *ctx, const mhk_distill_desc *d, mhk_index *n, double *loss) {
  mhk_trainer *tr = mhk_distill(ctx, d);
  mhk_real *weights;
  while (mhk_train_step(tr)) continue;
  CHECK_OK(ctx);
  if (mhk_failed(ctx)) return NULL;
  *loss = mhk_progress(tr)->loss;
  weights = model_numbers(mhk_student(tr), 0, n);
  mhk_trainer_destroy(tr);
  return weights;
}

TEST(the_same_bits_as_with_the_teacher) {
  static const int kinds[] = {PHI, LLAMA, QWEN3};
  for (int i = 0; i < 3 * 6; i++) {
    const int kind = kinds[i / 6], way = i % 6;
    mhk_context *ctx = mhk_create(NULL);
    mhk_distill_desc d = description(ctx, kind), recorded;
    tape_deck *deck = (tape_deck *)calloc(1, sizeof *deck);
    mhk_index n = 0, k = 0;
    double loss = 0, other = 0;
    mhk_real *want, *got;
    mhk_trainer *tr;
    d.windows = way == 1 ? MHK_WINDOWS_PACKED : MHK_WINDOWS_RANDOM;
    d.student_desc.n_keep_attention = way == 2;
    d.update_tokens = way == 3 ? 2 * BATCH * LENGTH : 0;
    if (way == 4) d.stages[1].trains = MHK_TRAIN_ALL;
    if (way == 5) d.stages[2].own_stream = -1, d.stages[0].tokens = 0;
    want = train(ctx, &d, &n, &loss);
    recorded = d;
    recorded.outputs = keep;
    recorded.outputs_user = deck;
    recorded.record = 1;
    if (way < 4) recorded.share = 1, recorded.stages[2].trains = MHK_TRAIN_MIXERS;
    tr = mhk_distill(ctx, &recorded);
    while (mhk_train_step(tr)) continue;
    CHECK_OK(ctx);
    mhk_trainer_destroy(tr);
    d.outputs = give;
    d.outputs_user = deck;
    got = train(ctx, &d, &k, &other);
    REQUIRE(want && got, "%s, way %d: no weights", model_kind_name(kind), way);
    CHECK(loss == other, "%s, way %d: loss %.17g, with the teacher %.17g", model_kind_name(kind), way, other, loss);
    CHECK_SAME(model_kind_name(kind), got, want, n);
    CHECK(deck->at == deck->n, "%d of %d parts were used", deck->at, deck->n);
    free(want), free(got);
    deck_free(deck);
    mhk_destroy(ctx);
  }
}

TEST(a_student_alone) { /* stages 2 and 3, without the teacher's model */
  mhk_context *ctx = mhk_create(NULL);
  mhk_distill_desc d = description(ctx, PHI), r;
  tape_deck *deck = (tape_deck *)calloc(1, sizeof *deck);
  mhk_index n = 0, k = 0;
  double loss = 0, other = 0;
  mhk_real *want, *got;
  mhk_trainer *tr;
  d.stages[0].tokens = 0;
  d.student = mhk_student_create(ctx, d.teacher, NULL);
  want = train(ctx, &d, &n, &loss);
  r = d;
  r.student = NULL;
  r.outputs = keep, r.outputs_user = deck, r.record = 1;
  tr = mhk_distill(ctx, &r);
  while (mhk_train_step(tr)) continue;
  d.student = mhk_student_create(ctx, d.teacher, NULL);
  d.teacher = NULL;
  d.outputs = give, d.outputs_user = deck;
  CHECK(mhk_distill_defaults(&d).stages[2].own_stream > 0 && mhk_distill_defaults(&d).stages[2].hard_labels <= 0,
        "the defaults are those without a teacher");
  got = train(ctx, &d, &k, &other);
  REQUIRE(want && got, "no weights");
  CHECK(loss == other, "loss %.17g, with the teacher %.17g", other, loss);
  CHECK_SAME("a student alone", got, want, n);
  free(want), free(got);
  deck_free(deck);
  mhk_destroy(ctx);
}

/* ---- other logits than the teacher's: the loss and its gradients, by hand */

enum { V = 31, LARGEST = 5 };

/* p (rows,V): as a recording of the largest logits means it, those exactly and the rest evenly */
static void targets(const mhk_real *x, mhk_index rows, double *p, mhk_real *logits) {
  for (mhk_index r = 0; r < rows; r++, x += V, p += V, logits += V) {
    double all = 0, left = 1;
    int rank[V];
    for (int i = 0; i < V; i++) all += exp((double)x[i]);
    for (int i = 0; i < V; i++) {
      rank[i] = 0;
      for (int j = 0; j < V; j++) rank[i] += x[j] > x[i] || (x[j] == x[i] && j < i);
      if (rank[i] < LARGEST) left -= exp((double)x[i]) / all;
    }
    for (int i = 0; i < V; i++) p[i] = rank[i] < LARGEST ? exp((double)x[i]) / all : left / (V - LARGEST);
    for (int i = 0; i < V; i++) logits[i] = rank[i] < LARGEST ? x[i] : (mhk_real)log(left * all / (V - LARGEST));
  }
}

typedef struct by_hand {
  double p[BATCH * LENGTH * V];
  mhk_real logits[BATCH * LENGTH * V];
  int32_t tokens[BATCH * LENGTH];
  mhk_model *teacher;
  mhk_context *ctx;
} by_hand;

static int give_largest(void *user, const mhk_output *o) {
  by_hand *h = (by_hand *)user;
  if (o->part == MHK_PART_START) memcpy(h->tokens, o->tokens, sizeof h->tokens);
  if (o->part != MHK_PART_LOGITS) return 0;
  mhk_tape *t = mhk_tape_create(h->ctx);
  mhk_tape_record(t, 0);
  targets(mhk_data(mhk_forward(t, h->teacher, o->tokens, o->B, o->T, NULL)), o->B * o->T, h->p, h->logits);
  mhk_tape_destroy(t);
  memcpy(o->x, h->logits, sizeof h->logits);
  return 0;
}

static const by_hand *direct_of; /* of the op below */
static void direct_forward(const mhk_op *op) { /* - sum p log q, the mean over tokens */
  const mhk_real *x = mhk_data(op->in[0]);
  double sum = 0;
  for (int r = 0; r < BATCH * LENGTH; r++) {
    double z = 0;
    for (int i = 0; i < V; i++) z += exp((double)x[r * V + i]);
    for (int i = 0; i < V; i++) sum -= direct_of->p[r * V + i] * ((double)x[r * V + i] - log(z));
  }
  mhk_data(op->out)[0] = (mhk_real)(sum / (BATCH * LENGTH));
}
static void direct_backward(const mhk_op *op) { /* (q - p) / tokens */
  const mhk_real *x = mhk_data(op->in[0]);
  if (!mhk_wants_grad(op->tape, op->in[0])) return;
  for (int r = 0; r < BATCH * LENGTH; r++) {
    double z = 0;
    for (int i = 0; i < V; i++) z += exp((double)x[r * V + i]);
    for (int i = 0; i < V; i++)
      op->in[0]->grad[r * V + i] += (mhk_real)((exp((double)x[r * V + i]) / z - direct_of->p[r * V + i]) *
                                               (double)op->out->grad[0] / (BATCH * LENGTH));
  }
}

TEST(the_largest_logits_against_a_direct_computation) {
  mhk_context *ctx = mhk_create(NULL);
  mhk_distill_desc d = description(ctx, PHI);
  by_hand *h = (by_hand *)calloc(1, sizeof *h);
  mhk_custom_desc op;
  mhk_index n = 0, one = 1;
  memset(&op, 0, sizeof op);
  h->teacher = d.teacher;
  h->ctx = ctx;
  d.stages[0].tokens = d.stages[1].tokens = 0;
  d.stages[2].own_stream = -1;
  d.student = mhk_student_create(ctx, d.teacher, NULL);
  mhk_model *other = mhk_student_create(ctx, d.teacher, NULL);
  d.teacher = NULL;
  d.outputs = give_largest, d.outputs_user = h;
  mhk_trainer *tr = mhk_distill(ctx, &d);
  mhk_train_step(tr);
  REQUIRE_OK(ctx);
  mhk_tape *t = mhk_tape_create(ctx);
  mhk_tensor *logits = mhk_forward(t, other, h->tokens, BATCH, LENGTH, NULL);
  direct_of = h;
  op.inputs = 1, op.in = &logits, op.rank = 1, op.shape = &one;
  op.forward = direct_forward, op.backward = direct_backward;
  model_zero_grads(other);
  mhk_tensor *loss = mhk_custom(t, &op);
  mhk_backward(t, loss);
  REQUIRE_OK(ctx);
  CHECK(fabs(mhk_value(loss) - mhk_progress(tr)->loss) < 1e-5, "%.9g, directly %.9g", mhk_progress(tr)->loss,
        mhk_value(loss));
  mhk_real *got = model_numbers(d.student, 1, &n), *want = model_numbers(other, 1, &n);
  CHECK_CLOSE("gradients", got, want, n, 1e-5);
  free(got), free(want);
  free(h);
  mhk_destroy(ctx);
}

/* ---- what is refused */

TEST(what_is_refused) {
  mhk_context *ctx = mhk_create(NULL);
  const mhk_distill_desc good = description(ctx, PHI);
  tape_deck *deck = (tape_deck *)calloc(1, sizeof *deck);
  mhk_distill_desc d;
  mhk_trainer *tr;
  int32_t tokens[LENGTH] = {0};
  for (int i = 0; i < 7; i++) {
    d = good;
    d.outputs = give, d.outputs_user = deck;
    if (i == 0) d.layer_by_layer = 1;
    if (i == 1) d.teacher_type = MHK_Q8;
    if (i == 2) d.record = 1, d.outputs = NULL;
    if (i == 3) d.record = 1, d.corpus = NULL;
    if (i == 4) d.record = 1, d.out = "nowhere";
    if (i == 5) d.record = 1, d.student = mhk_student_create(ctx, d.teacher, NULL), d.teacher = NULL;
    if (i == 6) d.student = mhk_student_create(ctx, d.teacher, NULL), d.teacher = NULL; /* stage 1 */
    CHECK(!mhk_distill(ctx, &d), "case %d", i);
    CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, i < 2 ? "from elsewhere" : i < 5 ? "to record" : "need a teacher");
  }
  d = good;
  d.outputs = give, d.outputs_user = deck;
  d.stages[0].tokens = 0;
  deck->answer = -3;
  tr = mhk_distill(ctx, &d);
  CHECK(!mhk_train_step(tr), "outputs that fail");
  CHECK_FAILS(ctx, MHK_ERROR_STATE, "failed with -3 in batch 0 of stage 2");
  mhk_train_on(tr, 3, tokens, 1, LENGTH, NULL, 1e-3);
  CHECK_FAILS(ctx, MHK_ERROR_STATE, "mhk_train_on()");
  /* what was kept already is not computed again */
  d.record = 1, d.outputs = keep;
  deck->skips = 1;
  tr = mhk_distill(ctx, &d);
  while (mhk_train_step(tr)) continue;
  CHECK_OK(ctx);
  CHECK(deck->n == 2 * UPDATES, "%d parts of batches that are not wanted", deck->n);
  for (int i = 0; i < deck->n; i++) CHECK(deck->part[i].part == MHK_PART_START, "part %d", (int)deck->part[i].part);
  deck_free(deck);
  mhk_destroy(ctx);
}

TEST(xxh64) { /* as xxh64sum prints it */
  unsigned char bytes[100];
  for (int i = 0; i < 100; i++) bytes[i] = (unsigned char)i;
  CHECK(mhk_xxh64(NULL, 0) == 0xef46db3751d8e999u, "of nothing: %llx", (unsigned long long)mhk_xxh64(NULL, 0));
  CHECK(mhk_xxh64("a", 1) == 0xd24ec4f1a98c6e5bu, "of \"a\": %llx", (unsigned long long)mhk_xxh64("a", 1));
  CHECK(mhk_xxh64(bytes, 100) == 0x6ac1e58032166597u, "of 100 bytes: %llx", (unsigned long long)mhk_xxh64(bytes, 100));
}

int main(int argc, char **argv) {
  test_begin(argc, argv);
  RUN(the_same_bits_as_with_the_teacher);
  RUN(a_student_alone);
  RUN(the_largest_logits_against_a_direct_computation);
  RUN(what_is_refused);
  RUN(xxh64);
  return test_end();
}
