/* Training with bfloat16 operands: what the linear layers compute and remember, what a distillation
   loses by it, and that a run cannot slip from one precision into the other. The kernels themselves
   are held in test_kernels.c. */
#define MOHAWK_REFERENCE
#include "test.h"

enum { ROWS = 19, IN = 37, OUT = 41 };

#ifdef MOHAWK_DOUBLE
#define EPS 1e-15
#else
#define EPS 1.2e-7
#endif

/* c (m,n) = sum over k of rounded(a) rounded(b), each by strides; both of at most ELEMENTS */
enum { ELEMENTS = OUT * IN };
static void product(double *c, mhk_index m, mhk_index n, mhk_index k, const mhk_real *a, mhk_index ar, mhk_index ac,
                    const mhk_real *b, mhk_index br, mhk_index bc) {
  double one[ELEMENTS], other[ELEMENTS];
  for (mhk_index i = 0; i < m * k; i++) one[i] = mhk__ref_bf16_round((double)a[i]);
  for (mhk_index i = 0; i < k * n; i++) other[i] = mhk__ref_bf16_round((double)b[i]);
  memset(c, 0, (size_t)(m * n) * sizeof *c);
  mhk__ref_product(m, n, k, mhk__ref_strided(one, ar, ac), mhk__ref_strided(other, br, bc), c);
}

/* forward and both gradients */
TEST(linear) {
  static const mhk_index x_shape[] = {ROWS, IN}, w_shape[] = {OUT, IN};
  int unit;
  for (unit = MHK_BF16_BEST; unit <= MHK_BF16_AMX; unit++) {
    mhk_context *ctx = test_machine_rounding(MHK_ISA_BEST, (mhk_bf16_unit)unit, 1, MHK_PRECISION_BF16);
    mhk_context *exact = test_machine(MHK_ISA_BEST, MHK_BF16_PLAIN, 1);
    mhk_tape *t, *plain = mhk_tape_create(exact);
    mhk_tensor *x, *w, *y, *full, *one;
    mhk_real g[ROWS * OUT];
    double want[ROWS * OUT + OUT * IN + ROWS * IN];
    if (!ctx) {
      mhk_destroy(exact);
      continue;
    }
    t = mhk_tape_create(ctx);
    x = mhk_require_grad(t, mhk_tensor_new(t, 2, x_shape, NULL));
    w = mhk_parameter(ctx, "w", 2, w_shape, NULL);
    REQUIRE_OK(ctx);
    test_fill(mhk_data(x), x->count, -1, 1, 1);
    test_fill(mhk_data(w), w->count, -1, 1, 2);
    test_fill(g, ROWS * OUT, -1, 1, 3);
    full = mhk_linear(plain, mhk_tensor_new(plain, 2, x_shape, mhk_data(x)),
                      mhk_tensor_new(plain, 2, w_shape, mhk_data(w)), NULL);
    REQUIRE_OK(exact);
    y = mhk_linear(t, x, w, NULL);
    one = mhk_linear(t, mhk_rows(t, x, 0, 4), w, NULL);
    REQUIRE_OK(ctx);
    product(want, ROWS, OUT, IN, mhk_data(x), IN, 1, mhk_data(w), 1, IN);
    CHECK_CLOSE_TO_DOUBLE("y", mhk_data(y), want, ROWS * OUT, 8 * EPS);
    CHECK(memcmp(mhk_data(y), mhk_data(full), sizeof(mhk_real) * ROWS * OUT) != 0, "the operands were not rounded");
    CHECK_CLOSE("four rows", mhk_data(one), mhk_data(full), 4 * OUT, 8 * EPS);
    CHECK(mhk_backward_from(t, y, g) == MHK_OK, "%s", mhk_message(ctx));
    product(want, ROWS, IN, OUT, g, OUT, 1, mhk_data(w), IN, 1);
    CHECK_CLOSE_TO_DOUBLE("dx", x->grad, want, ROWS * IN, 8 * EPS);
    product(want, OUT, IN, ROWS, g, 1, OUT, mhk_data(x), IN, 1);
    CHECK_CLOSE_TO_DOUBLE("dw", w->grad, want, OUT * IN, 8 * EPS);
    mhk_destroy(exact);
    mhk_destroy(ctx);
  }
}

TEST(errors) {
  mhk_context_desc d;
  mhk_context *ctx = test_machine(MHK_ISA_SCALAR, MHK_BF16_PLAIN, 1);
  CHECK(strcmp(mhk_bf16_name(ctx), "plain") == 0, "the plain unit is \"%s\"", mhk_bf16_name(ctx));
  mhk_destroy(ctx);
  memset(&d, 0, sizeof d);
  d.precision = (mhk_precision)7;
  ctx = mhk_create(&d);
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "precision 7");
  mhk_destroy(ctx);
}

/* ---- distillation ---- */

enum { UPDATES = 14, MOST = 3 * UPDATES, TEXT = 2048 };

static mhk_distill_desc description(mhk_context *ctx, mhk_precision precision, const char *out) {
  static int32_t text[TEXT]; /* by the teacher, once */
  static mhk_index n;
  mhk_distill_desc d;
  int i;
  memset(&d, 0, sizeof d);
  d.teacher = mhk_load(ctx, "examples/tiny");
  if (n == 0) {
    const int32_t *tokens;
    n = mhk_corpus_tokens(mhk_corpus_sample(d.teacher, TEXT, 5, NULL, NULL), &tokens);
    if (n > TEXT) n = TEXT;
    if (n > 0) memcpy(text, tokens, (size_t)n * sizeof *text);
  }
  d.corpus = mhk_corpus_from_tokens(ctx, text, n, 0);
  d.batch = 2;
  d.length = 48;
  for (i = 0; i < 3; i++) d.stages[i].tokens = UPDATES * d.batch * d.length;
  d.precision = precision;
  d.out = out;
  d.checkpoint_seconds = -1;
  return d;
}

/* the losses of a run; returns how many; *kl receives what is left between teacher and student, in
   full precision */
static int distill(mhk_context *ctx, mhk_precision precision, double *loss, double *kl) {
  mhk_distill_desc d = description(ctx, precision, NULL);
  mhk_trainer *tr = mhk_distill(ctx, &d);
  mhk_evaluate_desc measured;
  mhk_evaluation e;
  int n = 0;
  while (n < MOST && mhk_train_step(tr)) loss[n++] = mhk_progress(tr)->loss;
  memset(&e, 0, sizeof e);
  memset(&measured, 0, sizeof measured);
  measured.teacher = d.teacher;
  measured.corpus = d.corpus;
  measured.length = 48;
  measured.windows = 20;
  mhk_evaluate(mhk_student(tr), &measured, &e);
  CHECK_OK(ctx);
  *kl = e.kl;
  return n;
}

/* Every loss along the way stays within 1 % of float32's (operands are off by up to 2^-9, sums
   average that), and so does the result. */
TEST(curve) {
  double full[MOST], narrow[MOST], kl_full, kl_narrow, worst = 0, largest = 0;
  int i, n, unit, same = 1;
  mhk_context *ctx = test_machine(MHK_ISA_BEST, MHK_BF16_BEST, 1);
  n = distill(ctx, MHK_PRECISION_FULL, full, &kl_full);
  mhk_destroy(ctx);
  REQUIRE(n == MOST, "%d updates of %d", n, MOST);
  for (unit = MHK_BF16_PLAIN; unit <= MHK_BF16_AMX; unit++) {
    ctx = test_machine(MHK_ISA_BEST, (mhk_bf16_unit)unit, 1);
    if (!ctx) continue;
    n = distill(ctx, MHK_PRECISION_BF16, narrow, &kl_narrow);
    REQUIRE(n == MOST, "%d updates of %d by %s", n, MOST, mhk_bf16_name(ctx));
    for (i = 0; i < MOST; i++) {
      const double off = fabs(narrow[i] / full[i] - 1);
      if (off > worst) worst = off;
      if (fabs(full[i]) > largest) largest = fabs(full[i]);
      if (narrow[i] != full[i]) same = 0;
      CHECK(off < 0.01, "stage %d, update %d by %s: loss %g, with float32 %g", i / UPDATES + 1, i % UPDATES + 1,
            mhk_bf16_name(ctx), narrow[i], full[i]);
    }
    CHECK(!same, "%s gives the same losses as float32: nothing was rounded", mhk_bf16_name(ctx));
    CHECK(fabs(kl_narrow - kl_full) < 0.01 * kl_full, "KL to the teacher %g by %s, with float32 %g", kl_narrow,
          mhk_bf16_name(ctx), kl_full);
    if (test_state.verbose)
      printf("       %s: worst loss %.3f %% off, last %.6g (float32 %.6g), KL %.6g (%.6g)\n", mhk_bf16_name(ctx),
             100 * worst, narrow[MOST - 1], full[MOST - 1], kl_narrow, kl_full);
    mhk_destroy(ctx);
  }
}

/* the same bits on any number of threads; a resumed run goes on with the same bits, and only in the
   same precision */
TEST(resume) {
  const char *out = test_path("run");
  double whole[MOST], loss[MOST], kl;
  mhk_context *ctx = test_machine(MHK_ISA_BEST, MHK_BF16_BEST, 1);
  mhk_distill_desc d;
  mhk_trainer *tr;
  int n = distill(ctx, MHK_PRECISION_BF16, whole, &kl), i;
  mhk_destroy(ctx);
  REQUIRE(n == MOST, "%d updates of %d", n, MOST);
  ctx = test_machine(MHK_ISA_BEST, MHK_BF16_BEST, 1);
  mhk_set_threads(ctx, 3);
  d = description(ctx, MHK_PRECISION_BF16, out);
  d.fresh = 1;
  tr = mhk_distill(ctx, &d);
  for (n = 0; n < MOST / 2 && mhk_train_step(tr);) loss[n++] = mhk_progress(tr)->loss;
  CHECK(mhk_checkpoint(tr) == MHK_OK, "%s", mhk_message(ctx));
  mhk_destroy(ctx);
  ctx = test_machine(MHK_ISA_BEST, MHK_BF16_BEST, 1);
  d = description(ctx, MHK_PRECISION_FULL, out);
  CHECK(mhk_distill(ctx, &d) == NULL, "resumed in another precision");
  CHECK_FAILS(ctx, MHK_ERROR_STATE, "with products of BF16");
  d.precision = MHK_PRECISION_BF16;
  tr = mhk_distill(ctx, &d);
  CHECK(tr && mhk_progress(tr)->resumed, "not resumed: %s", mhk_message(ctx));
  while (n < MOST && mhk_train_step(tr)) loss[n++] = mhk_progress(tr)->loss;
  CHECK_OK(ctx);
  CHECK(n == MOST, "%d updates of %d", n, MOST);
  for (i = 0; i < n; i++) CHECK(loss[i] == whole[i], "update %d: loss %.17g, in one go %.17g", i, loss[i], whole[i]);
  d.precision = (mhk_precision)2;
  CHECK(mhk_distill(ctx, &d) == NULL, "a precision that is none");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "precision 2");
  mhk_destroy(ctx);
}

int main(int argc, char **argv) {
  test_begin(argc, argv);
  RUN(linear);
  RUN(errors);
  RUN(curve);
  RUN(resume);
  return test_end();
}
