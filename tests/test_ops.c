/* Every op against the reference and plain loops in double, its gradient against finite
   differences, and the equalities that must hold between ops. Built twice: float, and double where
   the bounds are tight. */
#define MOHAWK_REFERENCE
#include "models.h"

#define IS_DOUBLE (sizeof(mhk_real) == 8)
#define CLOSE (IS_DOUBLE ? 1e-12 : 1e-5)      /* values */
#define CLOSE_GRAD (IS_DOUBLE ? 1e-11 : 3e-5) /* gradients of two ways to compute the same */
#define NUMERIC (IS_DOUBLE ? 1e-6 : 4e-2)     /* gradients against finite differences */

static mhk_context *ctx;
static mhk_tape *tape;

static void start(void) {
  ctx = mhk_create(NULL);
  tape = mhk_tape_create(ctx);
}
static double *doubles(mhk_index n) { return (double *)calloc((size_t)n + 1, sizeof(double)); }

/* n numbers in double, as the reference reads them; finish() frees them */
static double *kept[4096];
static int n_kept;
static double *exact(const mhk_real *x, mhk_index n) {
  if (n_kept == 4096) exit(3);
  double *y = kept[n_kept++] = doubles(n);
  for (mhk_index i = 0; i < n; i++) y[i] = (double)x[i];
  return y;
}

static void finish(void) {
  CHECK_OK(ctx);
  while (n_kept) free(kept[--n_kept]);
  mhk_destroy(ctx);
  ctx = NULL;
}

static mhk_tensor *parameter5(int rank, mhk_index a, mhk_index b, mhk_index c, mhk_index d, double low, double high,
                              uint64_t seed) {
  mhk_index shape[5];
  mhk_tensor *x;
  shape[0] = a, shape[1] = b, shape[2] = c, shape[3] = d, shape[4] = 1;
  x = mhk_parameter(ctx, "x", rank, shape, NULL);
  if (x) test_fill(mhk_data(x), x->count, low, high, seed);
  return x;
}
#define P1(a, seed) parameter5(1, a, 1, 1, 1, -1, 1, seed)
#define P2(a, b, seed) parameter5(2, a, b, 1, 1, -1, 1, seed)
#define P3(a, b, c, seed) parameter5(3, a, b, c, 1, -1, 1, seed)
#define P4(a, b, c, d, seed) parameter5(4, a, b, c, d, -1, 1, seed)

/* a random weight of x's shape, the same for the same shape: sum(x * weight) reaches every
   element */
static mhk_tensor *weights_like(mhk_tape *t, const mhk_tensor *x, uint64_t seed) {
  mhk_tensor *w = x ? mhk_tensor_new(t, x->rank, x->shape, NULL) : NULL;
  if (w) test_fill(mhk_data(w), w->count, -1, 1, seed);
  return w;
}
static mhk_tensor *weighted_sum(mhk_tape *t, mhk_tensor *x, uint64_t seed) {
  return mhk_sum(t, mhk_mul(t, x, weights_like(t, x, seed)));
}

/* --------------------------------------------------------------------------- finite differences */

typedef struct op_case op_case;
struct op_case {
  mhk_tensor *(*build)(mhk_tape *t, op_case *c);
  mhk_tensor *in[10];
  const int32_t *ids;
  const int32_t *doc;
  double number;
  int flag;
};

static mhk_tensor *scalar_of(mhk_tape *t, void *user) {
  op_case *c = (op_case *)user;
  mhk_tensor *y = c->build(t, c);
  return y && y->rank == 0 ? y : weighted_sum(t, y, 99);
}

static void check_gradients(const char *name, op_case *c) {
  int i;
  for (i = 0; i < (int)(sizeof c->in / sizeof *c->in); i++)
    if (c->in[i] && c->in[i]->requires_grad) {
      mhk_gradient_report r;
      double error;
      memset(&r, 0, sizeof r);
      error = mhk_check_gradient(tape, scalar_of, c, c->in[i], &r);
      CHECK(error <= NUMERIC,
            "%s, input %d: gradient of element %lld is %.9g, finite differences give %.9g (off by %.2e) %s", name, i,
            (long long)r.at, r.analytic, r.numeric, error, mhk_message(ctx));
      CHECK(r.checked > 0, "%s, input %d: nothing was checked", name, i);
      mhk_tape_reset(tape);
    }
}

#define BUILD(name, expression) \
  static mhk_tensor *name(mhk_tape *t, op_case *c) { return expression; }
BUILD(b_add, mhk_add(t, c->in[0], c->in[1]))
BUILD(b_sub, mhk_sub(t, c->in[0], c->in[1]))
BUILD(b_mul, mhk_mul(t, c->in[0], c->in[1]))
BUILD(b_scale, mhk_scale(t, c->in[0], -1.7))
BUILD(b_square, mhk_square(t, c->in[0]))
BUILD(b_sqrt, mhk_sqrt(t, c->in[0]))
BUILD(b_exp, mhk_exp(t, c->in[0]))
BUILD(b_log, mhk_log(t, c->in[0]))
BUILD(b_sigmoid, mhk_sigmoid(t, c->in[0]))
BUILD(b_softplus, mhk_softplus(t, c->in[0]))
BUILD(b_silu, mhk_silu(t, c->in[0]))
BUILD(b_gelu, mhk_gelu(t, c->in[0]))
BUILD(b_sum, mhk_square(t, mhk_sum(t, c->in[0])))
BUILD(b_mean, mhk_square(t, mhk_mean(t, c->in[0])))
BUILD(b_sum_last, mhk_sum_last(t, c->in[0]))
BUILD(b_softmax, mhk_softmax(t, c->in[0]))
BUILD(b_matmul, mhk_matmul(t, c->in[0], c->in[1], c->flag))
BUILD(b_columns, mhk_columns(t, c->in[0], 2, 3))
BUILD(b_swap, mhk_swap_heads(t, c->in[0]))
BUILD(b_embedding, mhk_embedding(t, c->in[0], c->ids, 2, 5))
BUILD(b_linear, mhk_linear(t, c->in[0], c->in[1], c->in[2]))
BUILD(b_linear_gelu, mhk_linear_gelu(t, c->in[0], c->in[1], c->in[2]))
BUILD(b_linear_add, mhk_linear_add(t, c->in[0], c->in[1], c->in[2], c->in[3]))
BUILD(b_layer_norm, mhk_layer_norm(t, c->in[0], c->in[1], c->in[2], 1e-5))
BUILD(b_rms_norm, mhk_rms_norm(t, c->in[0], c->in[1], 1e-5))
BUILD(b_gate, mhk_gate(t, c->in[0], c->in[1], c->in[2]))
BUILD(b_rotary, mhk_rotary(t, c->in[0], 4, 100, c->doc))
static mhk_attention_desc within(const int32_t *doc) { /* documents */
  mhk_attention_desc d;
  memset(&d, 0, sizeof d);
  d.doc = doc;
  return d;
}
static mhk_tensor *attention(mhk_tape *t, mhk_tensor *q, mhk_tensor *k, mhk_tensor *v, const int32_t *doc) {
  const mhk_attention_desc d = within(doc);
  return mhk_attention(t, q, k, v, &d);
}
static mhk_tensor *attention_matrix(mhk_tape *t, mhk_tensor *q, mhk_tensor *k, const int32_t *doc) {
  const mhk_attention_desc d = within(doc);
  return mhk_attention_matrix(t, q, k, &d);
}
BUILD(b_attention, attention(t, c->in[0], c->in[1], c->in[2], c->doc))
BUILD(b_attention_matrix, attention_matrix(t, c->in[0], c->in[1], c->doc))
/* in: q, k, v, scale, rest; ids: the windows */
static mhk_tensor *b_windows(mhk_tape *t, op_case *c) {
  const mhk_attention_desc d = {c->doc, c->ids, c->in[3], c->in[4]};
  return c->in[2] ? mhk_attention(t, c->in[0], c->in[1], c->in[2], &d)
                  : mhk_attention_matrix(t, c->in[0], c->in[1], &d);
}
static mhk_tensor *conv(mhk_tape *t, mhk_tensor *x, mhk_tensor *w, mhk_tensor *b, int silu, const int32_t *doc) {
  const mhk_conv1d_desc d = {doc, silu, 0, NULL, NULL};
  return mhk_conv1d(t, x, w, b, &d);
}
BUILD(b_conv, conv(t, c->in[0], c->in[1], c->in[2], c->flag, c->doc))
BUILD(b_cross_entropy, mhk_cross_entropy(t, c->in[0], c->ids))
BUILD(b_cross_entropy_soft, mhk_cross_entropy_soft(t, c->in[0], c->in[1], c->number))
BUILD(b_kl, mhk_kl(t, c->in[0], c->in[1]))
BUILD(b_hidden, mhk_hidden_distance(t, c->in[0], c->in[1]))
BUILD(b_matrix_distance, mhk_matrix_distance(t, c->in[0], c->in[1]))
BUILD(b_ssd_matrix, mhk_ssd_matrix(t, c->in[0], c->in[1], c->in[2], c->in[3], c->doc))
/* in: log_a, B, C, D, q, k; and with windows row_gain, column_gain, scale, rest */
static mhk_orientation_desc orientation_of(mhk_tensor *const *in, const int32_t *doc) {
  mhk_orientation_desc d;
  memset(&d, 0, sizeof d);
  d.log_a = in[0], d.Bm = in[1], d.Cm = in[2], d.D = in[3], d.q = in[4], d.k = in[5], d.doc = doc;
  return d;
}
static mhk_orientation_desc orientation_with(mhk_tensor *const *in, const int32_t *windows, const int32_t *doc) {
  mhk_orientation_desc d = orientation_of(in, doc);
  d.row_gain = in[6], d.column_gain = in[7], d.scale = in[8], d.rest = in[9], d.windows = windows;
  return d;
}
static mhk_tensor *orientation(mhk_tape *t, mhk_tensor *const *in, const int32_t *doc, double *relative) {
  mhk_orientation_desc d = orientation_of(in, doc);
  d.relative = relative;
  return mhk_matrix_orientation(t, &d);
}
BUILD(b_orientation, orientation(t, c->in, c->doc, NULL))
static mhk_tensor *b_orientation_with(mhk_tape *t, op_case *c) {
  const mhk_orientation_desc d = orientation_with(c->in, c->ids, c->doc);
  return mhk_matrix_orientation(t, &d);
}
BUILD(b_reshape, mhk_square(t, mhk_reshape(t, c->in[0], 1, &c->in[0]->count)))
BUILD(b_rows, mhk_square(t, mhk_rows(t, c->in[0], 1, 2)))

static mhk_tensor *b_conv_split(mhk_tape *t, op_case *c) {
  static const mhk_index widths[3] = {2, 1, 4};
  mhk_tensor *out[3];
  int i;
  mhk_tensor *sum = NULL;
  const mhk_conv1d_desc d = {c->doc, c->flag, 3, widths, out};
  if (!mhk_conv1d(t, c->in[0], c->in[1], c->in[2], &d)) return NULL;
  for (i = 0; i < 3; i++) {
    mhk_tensor *s = weighted_sum(t, out[i], (uint64_t)(50 + i));
    sum = sum ? mhk_add(t, sum, s) : s;
  }
  return sum;
}

/* y and the final state */
static mhk_tensor *b_ssd(mhk_tape *t, op_case *c) {
  mhk_ssd_desc d;
  mhk_tensor *final_state = NULL, *y;
  memset(&d, 0, sizeof d);
  d.D = c->in[4];
  d.initial_state = c->in[5];
  d.final_state = &final_state;
  d.doc = c->doc;
  d.chunk = (mhk_index)c->number;
  d.form = (mhk_ssd_form)c->flag;
  y = mhk_ssd(t, c->in[0], c->in[1], c->in[2], c->in[3], &d);
  return mhk_add(t, weighted_sum(t, y, 71), weighted_sum(t, final_state, 72));
}

static op_case op(mhk_tensor *(*build)(mhk_tape *, op_case *), mhk_tensor *a, mhk_tensor *b, mhk_tensor *c,
                  mhk_tensor *d) {
  op_case o;
  memset(&o, 0, sizeof o);
  o.build = build;
  o.in[0] = a;
  o.in[1] = b;
  o.in[2] = c;
  o.in[3] = d;
  return o;
}

static void frozen(mhk_tensor *x) {
  if (x) x->requires_grad = 0;
}

TEST(gradients_elementwise) {
  op_case c;
  mhk_tensor *scalar, *a;
  start();
  c = op(b_add, P3(2, 3, 5, 1), P3(2, 3, 5, 2), NULL, NULL), check_gradients("add", &c);
  c = op(b_add, P3(2, 3, 5, 1), P1(5, 2), NULL, NULL), check_gradients("add a vector", &c);
  scalar = parameter5(0, 1, 1, 1, 1, 0.5, 0.6, 3);
  c = op(b_add, P3(2, 3, 5, 1), scalar, NULL, NULL), check_gradients("add a scalar", &c);
  c = op(b_sub, P3(2, 3, 5, 1), P3(2, 3, 5, 2), NULL, NULL), check_gradients("sub", &c);
  c = op(b_sub, P3(2, 3, 5, 1), P1(5, 2), NULL, NULL), check_gradients("sub a vector", &c);
  c = op(b_sub, P3(2, 3, 5, 1), scalar, NULL, NULL), check_gradients("sub a scalar", &c);
  c = op(b_mul, P3(2, 3, 5, 1), P3(2, 3, 5, 2), NULL, NULL), check_gradients("mul", &c);
  c = op(b_mul, P3(2, 3, 5, 1), P1(5, 2), NULL, NULL), check_gradients("mul by a vector", &c);
  c = op(b_mul, P3(2, 3, 5, 1), scalar, NULL, NULL), check_gradients("mul by a scalar", &c);
  a = P3(2, 3, 5, 1);
  c = op(b_mul, a, a, NULL, NULL), c.in[1] = a, check_gradients("mul by itself", &c);
  c = op(b_scale, P3(2, 3, 5, 1), NULL, NULL, NULL), check_gradients("scale", &c);
  c = op(b_square, P3(2, 3, 5, 1), NULL, NULL, NULL), check_gradients("square", &c);
  c = op(b_exp, P3(2, 3, 5, 1), NULL, NULL, NULL), check_gradients("exp", &c);
  c = op(b_sigmoid, P3(2, 3, 5, 1), NULL, NULL, NULL), check_gradients("sigmoid", &c);
  c = op(b_softplus, parameter5(2, 7, 5, 1, 1, -4, 4, 1), NULL, NULL, NULL), check_gradients("softplus", &c);
  c = op(b_silu, parameter5(2, 7, 5, 1, 1, -4, 4, 1), NULL, NULL, NULL), check_gradients("silu", &c);
  c = op(b_gelu, parameter5(2, 7, 5, 1, 1, -4, 4, 1), NULL, NULL, NULL), check_gradients("gelu", &c);
  c = op(b_sqrt, parameter5(2, 3, 5, 1, 1, 0.5, 2, 1), NULL, NULL, NULL), check_gradients("sqrt", &c);
  c = op(b_log, parameter5(2, 3, 5, 1, 1, 0.5, 2, 1), NULL, NULL, NULL), check_gradients("log", &c);
  c = op(b_sum, P3(2, 3, 5, 1), NULL, NULL, NULL), check_gradients("sum", &c);
  c = op(b_mean, parameter5(3, 2, 3, 5, 1, 0, 1, 1), NULL, NULL, NULL), check_gradients("mean", &c);
  c = op(b_sum_last, P3(2, 3, 5, 1), NULL, NULL, NULL), check_gradients("sum_last", &c);
  c = op(b_softmax, P3(2, 3, 5, 1), NULL, NULL, NULL), check_gradients("softmax", &c);
  c = op(b_columns, P3(2, 3, 7, 1), NULL, NULL, NULL), check_gradients("columns", &c);
  c = op(b_swap, P4(2, 3, 4, 5, 1), NULL, NULL, NULL), check_gradients("swap_heads", &c);
  c = op(b_reshape, P3(2, 3, 5, 1), NULL, NULL, NULL), check_gradients("reshape", &c);
  c = op(b_rows, P3(4, 3, 5, 1), NULL, NULL, NULL), check_gradients("rows", &c);
  finish();
}

TEST(gradients_products) {
  static const int32_t ids[10] = {3, 0, 6, 3, 3, 1, 2, 6, 0, 5};
  op_case c;
  start();
  c = op(b_matmul, P3(2, 3, 5, 1), P3(2, 5, 4, 2), NULL, NULL), check_gradients("matmul", &c);
  c = op(b_matmul, P3(2, 3, 5, 1), P3(2, 4, 5, 2), NULL, NULL), c.flag = 1,
  check_gradients("matmul with b transposed", &c);
  c = op(b_matmul, P2(3, 5, 1), P2(5, 17, 2), NULL, NULL), check_gradients("matmul, two axes", &c);
  c = op(b_embedding, P2(7, 3, 1), NULL, NULL, NULL), c.ids = ids, check_gradients("embedding", &c);
  c = op(b_linear, P3(2, 3, 7, 1), P2(5, 7, 2), P1(5, 3), NULL), check_gradients("linear", &c);
  c = op(b_linear, P3(2, 3, 7, 1), P2(5, 7, 2), NULL, NULL), check_gradients("linear without bias", &c);
  c = op(b_linear, P2(1, 7, 1), P2(1, 7, 2), P1(1, 3), NULL), check_gradients("linear of one row to one column", &c);
  c = op(b_linear_gelu, P3(2, 3, 7, 1), P2(5, 7, 2), P1(5, 3), NULL), check_gradients("linear_gelu", &c);
  c = op(b_linear_gelu, P3(2, 3, 7, 1), P2(5, 7, 2), NULL, NULL), check_gradients("linear_gelu without bias", &c);
  c = op(b_linear_add, P3(2, 3, 7, 1), P2(5, 7, 2), P1(5, 3), P3(2, 3, 5, 4)), check_gradients("linear_add", &c);
  c = op(b_linear_add, P3(2, 3, 7, 1), P2(5, 7, 2), NULL, P3(2, 3, 5, 4)),
  check_gradients("linear_add without bias", &c);
  c = op(b_layer_norm, P3(2, 3, 7, 1), P1(7, 2), P1(7, 3), NULL), check_gradients("layer_norm", &c);
  c = op(b_rms_norm, P3(2, 3, 7, 1), P1(7, 2), NULL, NULL), check_gradients("rms_norm", &c);
  c = op(b_gate, P3(2, 3, 7, 1), P3(2, 3, 7, 2), P1(7, 3), NULL), check_gradients("gate", &c);
  c = op(b_gate, P3(2, 3, 7, 1), P3(2, 3, 7, 2), NULL, NULL), check_gradients("gate without bias", &c);
  finish();
}

static const int32_t doc_2x9[18] = {4, 4, 4, 7, 7, 4, 4, 4, 4, 0, 1, 1, 1, 1, 1, 1, 2, 3};

TEST(gradients_mixers) {
  op_case c;
  int packed, form, chunk, kind;
  start();
  for (packed = 0; packed < 2; packed++) {
    const int32_t *doc = packed ? doc_2x9 : NULL;
    c = op(b_rotary, P4(2, 9, 3, 6, 1), NULL, NULL, NULL), c.doc = doc, check_gradients("rotary", &c);
    c = op(b_attention, P4(2, 9, 3, 5, 1), P4(2, 9, 3, 5, 2), P4(2, 9, 3, 5, 3), NULL), c.doc = doc,
    check_gradients("attention", &c);
    c = op(b_attention, P4(2, 9, 4, 5, 1), P4(2, 9, 2, 5, 2), P4(2, 9, 2, 5, 3), NULL), c.doc = doc,
    check_gradients("attention, grouped", &c);
    c = op(b_attention_matrix, P4(2, 9, 4, 5, 1), P4(2, 9, 2, 5, 2), NULL, NULL), c.doc = doc,
    check_gradients("attention_matrix", &c);
    {
      static const int32_t windows[4] = {3, MHK_WINDOW_ALL, 0, 20};
      c = op(b_windows, P4(2, 9, 4, 5, 1), P4(2, 9, 2, 5, 2), P4(2, 9, 2, 3, 3), P1(4, 4)), c.doc = doc;
      c.ids = windows, c.in[4] = P3(2, 9, 4, 5);
      check_gradients("attention with windows, scale and rest", &c);
      c.in[2] = NULL, check_gradients("attention_matrix with windows, scale and rest", &c);
      mhk_data(c.in[3])[0] = 0, check_gradients("attention_matrix with a scale of 0", &c);
      c.in[2] = P4(2, 9, 2, 3, 3), check_gradients("attention with a scale of 0", &c);
      c.ids = NULL, check_gradients("attention with scale and rest", &c);
      c.ids = windows, c.in[3] = c.in[4] = NULL, check_gradients("attention with windows", &c);
    }
    c = op(b_conv, P3(2, 9, 7, 1), P3(7, 1, 4, 2), P1(7, 3), NULL), c.doc = doc, check_gradients("conv1d", &c);
    c.flag = 1, check_gradients("conv1d with silu", &c);
    c = op(b_conv, P3(2, 9, 7, 1), P3(7, 1, 2, 2), NULL, NULL), c.doc = doc,
    check_gradients("conv1d of width 2 without bias", &c);
    c = op(b_conv_split, P3(2, 9, 7, 1), P3(7, 1, 4, 2), P1(7, 3), NULL), c.doc = doc, c.flag = packed,
    check_gradients("conv1d in parts", &c);
    for (form = 0; form < 3; form++)
      for (chunk = 0; chunk <= 4; chunk += 4) {
        char name[80];
        snprintf(name, sizeof name, "ssd, form %d, chunk %d, packed %d", form, chunk, packed);
        memset(&c, 0, sizeof c);
        c.build = b_ssd;
        c.in[0] = P4(2, 9, 4, 3, 1);
        c.in[1] = parameter5(3, 2, 9, 4, 1, -1.5, -0.05, 2);
        c.in[2] = P4(2, 9, 2, 5, 3);
        c.in[3] = P4(2, 9, 2, 5, 4);
        c.in[4] = P1(4, 5);
        c.in[5] = P4(2, 4, 3, 5, 6);
        c.doc = doc;
        c.number = chunk;
        c.flag = form;
        check_gradients(name, &c);
      }
    c = op(b_ssd_matrix, parameter5(3, 2, 9, 4, 1, -1.5, -0.05, 2), P4(2, 9, 2, 5, 3), P4(2, 9, 2, 5, 4), P1(4, 5)),
    c.doc = doc;
    check_gradients("ssd_matrix", &c);
    c.in[3] = NULL, check_gradients("ssd_matrix without D", &c);
    c = op(b_orientation, parameter5(3, 2, 9, 4, 1, -1.5, -0.05, 2), P4(2, 9, 2, 5, 3), P4(2, 9, 2, 5, 4), P1(4, 5)),
    c.doc = doc;
    c.in[4] = P4(2, 9, 4, 6, 7), c.in[5] = P4(2, 9, 2, 6, 8);
    frozen(c.in[4]), frozen(c.in[5]);
    check_gradients("matrix_orientation", &c);
    for (kind = 0; kind < 4; kind++) { /* every kind of head, together and alone */
      static const int32_t windows[4][4] = {{0, 3, MHK_WINDOW_ALL, 20}, {1, 1, 1, 1}, {2, 4, 5, 7}, {0, 0, 0, 0}};
      char name[80];
      snprintf(name, sizeof name, "matrix_orientation of windows, kind %d, packed %d", kind, packed);
      c.build = b_orientation_with;
      c.ids = windows[kind];
      c.in[6] = parameter5(3, 2, 9, 4, 1, -0.5, 2, 9);
      c.in[7] = kind == 1 ? NULL : parameter5(3, 2, 9, 4, 1, 0.2, 2, 10);
      c.in[8] = P1(4, 11), c.in[9] = P3(2, 9, 4, 12);
      check_gradients(name, &c);
    }
  }
  finish();
}

TEST(gradients_losses) {
  static const int32_t labels[6] = {2, -1, 0, 4, 4, -100};
  op_case c;
  start();
  c = op(b_cross_entropy, parameter5(3, 2, 3, 5, 1, -3, 3, 1), NULL, NULL, NULL), c.ids = labels,
  check_gradients("cross_entropy", &c);
  c = op(b_cross_entropy_soft, parameter5(3, 2, 3, 5, 1, -3, 3, 1), parameter5(3, 2, 3, 5, 1, -3, 3, 2), NULL, NULL);
  frozen(c.in[1]);
  c.number = 1, check_gradients("cross_entropy_soft", &c);
  c.number = 2.5, check_gradients("cross_entropy_soft at a temperature", &c);
  c = op(b_kl, parameter5(3, 2, 3, 5, 1, -3, 3, 1), parameter5(3, 2, 3, 5, 1, -3, 3, 2), NULL, NULL);
  frozen(c.in[1]);
  check_gradients("kl", &c);
  c = op(b_hidden, P3(2, 3, 5, 1), P3(2, 3, 5, 2), NULL, NULL);
  frozen(c.in[1]);
  check_gradients("hidden_distance", &c);
  c = op(b_matrix_distance, P4(2, 3, 5, 5, 1), P4(2, 3, 5, 5, 2), NULL, NULL);
  frozen(c.in[1]);
  check_gradients("matrix_distance", &c);
  finish();
}

/* ------------------------------------------------------------------- values against plain loops */

typedef mhk_tensor *(*unary_op)(mhk_tape *, mhk_tensor *);
static double f_sqrt(double x) { return sqrt(x); }
static double f_square(double x) { return x * x; }
static double f_exp(double x) { return exp(x); }
static double f_log(double x) { return log(x); }

TEST(values_elementwise) {
  static const unary_op ops[] = {mhk_square, mhk_exp, mhk_sigmoid, mhk_softplus, mhk_silu, mhk_gelu, mhk_sqrt, mhk_log};
  static double (*const plain[])(double) = {f_square,      f_exp,         mhk__ref_sigmoid, mhk__ref_softplus,
                                            mhk__ref_silu, mhk__ref_gelu, f_sqrt,           f_log};
  static const char *const names[] = {"square", "exp", "sigmoid", "softplus", "silu", "gelu", "sqrt", "log"};
  static const mhk_index sizes[] = {1, 2, 7, 8, 9, 31, 1000, 70001};
  size_t s, o;
  mhk_index i;
  start();
  mhk_tape_record(tape, 0);
  for (s = 0; s < sizeof sizes / sizeof *sizes; s++) {
    const mhk_index n = sizes[s];
    mhk_tensor *a, *b, *x;
    double *want = doubles(n);
    mhk_tape_reset(tape);
    a = mhk_tensor_new(tape, 1, &n, NULL);
    b = mhk_tensor_new(tape, 1, &n, NULL);
    test_fill(mhk_data(a), n, -9, 9, 1);
    test_fill(mhk_data(b), n, 0.01, 9, 2);
    for (o = 0; o < 8; o++) {
      x = o < 6 ? a : b;
      for (i = 0; i < n; i++) want[i] = plain[o]((double)mhk_data(x)[i]);
      CHECK_CLOSE_TO_DOUBLE(names[o], mhk_data(ops[o](tape, x)), want, n, CLOSE);
      /* each element for itself, so that a bad tail or a bad range cannot hide behind a large
         one */
      {
        const mhk_tensor *y = ops[o](tape, x);
        for (i = 0; i < n && y; i++)
          if (!(fabs((double)mhk_data(y)[i] - want[i]) <= 20 * CLOSE * (fabs(want[i]) + 1e-2))) break;
        CHECK(!y || i == n, "%s of %.9g is %.9g, should be %.9g", names[o], (double)mhk_data(x)[i],
              (double)mhk_data(y)[i], want[i]);
      }
    }
    for (i = 0; i < n; i++) want[i] = (double)mhk_data(a)[i] + (double)mhk_data(b)[i];
    CHECK_CLOSE_TO_DOUBLE("add", mhk_data(mhk_add(tape, a, b)), want, n, CLOSE);
    for (i = 0; i < n; i++) want[i] = (double)mhk_data(a)[i] - (double)mhk_data(b)[i];
    CHECK_CLOSE_TO_DOUBLE("sub", mhk_data(mhk_sub(tape, a, b)), want, n, CLOSE);
    for (i = 0; i < n; i++) want[i] = (double)mhk_data(a)[i] * (double)mhk_data(b)[i];
    CHECK_CLOSE_TO_DOUBLE("mul", mhk_data(mhk_mul(tape, a, b)), want, n, CLOSE);
    for (i = 0; i < n; i++) want[i] = (double)mhk_data(a)[i] * 0.3;
    CHECK_CLOSE_TO_DOUBLE("scale", mhk_data(mhk_scale(tape, a, 0.3)), want, n, CLOSE);
    for (i = 0, want[0] = 0; i < n; i++) want[0] += (double)mhk_data(b)[i];
    CHECK_CLOSE_TO_DOUBLE("sum", mhk_data(mhk_sum(tape, b)), want, 1, CLOSE);
    want[0] /= (double)n;
    CHECK_CLOSE_TO_DOUBLE("mean", mhk_data(mhk_mean(tape, b)), want, 1, CLOSE);
    free(want);
  }
  finish();
}

TEST(values_extremes) {
  static const mhk_real values[] = {-1000, -100, -88, -30, -1e-6f, 0, 1e-6f, 30, 88, 100, 1000};
  const mhk_index n = sizeof values / sizeof *values, row[2] = {1, sizeof values / sizeof *values};
  mhk_tensor *x, *y;
  mhk_index i;
  int k;
  double sum = 0;
  const int32_t label = 10, other = 0;
  start();
  x = mhk_tensor_new(tape, 1, &n, values);
  for (k = 0; k < 4; k++) {
    const unary_op ops[] = {mhk_softplus, mhk_silu, mhk_gelu, mhk_sigmoid};
    double (*const plain[])(double) = {mhk__ref_softplus, mhk__ref_silu, mhk__ref_gelu, mhk__ref_sigmoid};
    y = ops[k](tape, x);
    for (i = 0; i < n && y; i++) {
      const double v = (double)values[i], want = k == 1 && v < -700 ? 0 : k == 3 && v < -700 ? 0 : plain[k](v);
      CHECK(fabs((double)mhk_data(y)[i] - want) <= 1e-6 * fabs(want) + 1e-12, "function %d of %g is %g, should be %g",
            k, v, (double)mhk_data(y)[i], want);
    }
  }
  y = mhk_softmax(tape, mhk_reshape(tape, x, 2, row));
  for (i = 0; i < n && y; i++) sum += (double)mhk_data(y)[i];
  CHECK(fabs(sum - 1) < 1e-6, "softmax over a wide range sums to %g", sum);
  y = mhk_cross_entropy(tape, mhk_reshape(tape, x, 2, row), &label);
  CHECK(fabs(mhk_value(y)) < 1e-6, "cross entropy of a sure thing is %g", mhk_value(y));
  y = mhk_cross_entropy(tape, mhk_reshape(tape, x, 2, row), &other);
  CHECK(fabs(mhk_value(y) - 2000) < 1e-3, "cross entropy of an impossible thing is %g", mhk_value(y));
  {
    const int32_t none = -1;
    y = mhk_cross_entropy(tape, mhk_reshape(tape, x, 2, row), &none);
    CHECK(mhk_value(y) == 0, "cross entropy of no rows is %g", mhk_value(y));
  }
  finish();
}

/* c (m,n) += x (m,k) w (n,k)^T */
static void plain_linear(double *c, const mhk_real *x, const mhk_real *w, mhk_index m, mhk_index n, mhk_index k) {
  mhk__ref_product(m, n, k, mhk__ref_strided(exact(x, m * k), k, 1), mhk__ref_strided(exact(w, n * k), 1, k), c);
}

static uint16_t to_bf16(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return (uint16_t)((u + 0x7FFF + ((u >> 16) & 1)) >> 16);
}
/* exact for the multiples of 1/256 below 2 that the test uses */
static uint16_t to_f16(float f) {
  const int sign = f < 0;
  int e = 0;
  double a = fabs((double)f);
  if (a == 0) return (uint16_t)(sign << 15);
  while (a >= 2) a /= 2, e++;
  while (a < 1 && e > -14) a *= 2, e--;
  if (a < 1) return (uint16_t)(sign << 15 | (int)(a * 1024));
  return (uint16_t)(sign << 15 | (e + 15) << 10 | (int)((a - 1) * 1024));
}

/* the gradient that goes through a stored weight to x; w: its numbers */
static void linear_gradient(const char *name, const mhk_tensor *x, const mhk_tensor *w, mhk_tensor *stored,
                            mhk_tensor *b, mhk_index m, mhk_index n, mhk_index k) {
  const mhk_index shape[2] = {m, k};
  mhk_tensor *y, *x2;
  mhk_real *dy = (mhk_real *)malloc(sizeof *dy * (size_t)(m * n));
  double *dx = doubles(m * k);
  mhk_tape_record(tape, 1);
  x2 = mhk_require_grad(tape, mhk_tensor_new(tape, 2, shape, mhk_data(x)));
  y = mhk_linear(tape, x2, stored, b);
  test_fill(dy, m * n, -1, 1, 5);
  mhk_backward_from(tape, y, dy);
  mhk__ref_product(m, k, n, mhk__ref_strided(exact(dy, m * n), n, 1),
                   mhk__ref_strided(exact(mhk_data(w), n * k), k, 1), dx);
  CHECK_CLOSE_TO_DOUBLE(name, x2 ? x2->grad : NULL, dx, m * k, CLOSE);
  mhk_tape_record(tape, 0);
  free(dy);
  free(dx);
}

/* a linear layer, with what may follow it; kind: MHK_REAL, F32, F16, BF16; want: room for m x n */
static void linear_case(mhk_index m, mhk_index n, mhk_index k, int kind, int bias, double *want) {
  mhk_index shape[2], i;
  mhk_tensor *x, *b, *w, *r, stored;
  uint16_t *half = (uint16_t *)malloc(sizeof *half * (size_t)(n * k));
  float *single = (float *)malloc(sizeof *single * (size_t)(n * k));
  char name[80];
  mhk_tape_reset(tape);
  shape[0] = m, shape[1] = k;
  x = mhk_tensor_new(tape, 2, shape, NULL);
  shape[0] = n;
  w = mhk_tensor_new(tape, 2, shape, NULL);
  b = mhk_tensor_new(tape, 1, &n, NULL);
  shape[0] = m, shape[1] = n;
  r = mhk_tensor_new(tape, 2, shape, NULL);
  test_fill(mhk_data(x), m * k, -1, 1, 1);
  test_fill(mhk_data(w), n * k, -1, 1, 2);
  test_fill(mhk_data(b), n, -1, 1, 3);
  test_fill(mhk_data(r), m * n, -1, 1, 4);
  stored = *w;
  for (i = 0; i < n * k; i++) {
    mhk_real *v = mhk_data(w) + i;
    if (kind >= 2) *v = (mhk_real)(floor((double)*v * 256) / 256);
    single[i] = (float)*v;
    half[i] = kind == 2 ? to_f16((float)*v) : to_bf16((float)*v);
    if (kind == 3) *v = (mhk_real)mhk__ref_bf16(half[i]);
  }
  if (kind) {
    stored.dtype = kind == 1 ? MHK_F32 : kind == 2 ? MHK_F16 : MHK_BF16;
    stored.data = kind == 1 ? (void *)single : (void *)half;
    stored.requires_grad = 0;
  }
  for (i = 0; i < m * n; i++) want[i] = bias ? (double)mhk_data(b)[i % n] : 0;
  plain_linear(want, mhk_data(x), mhk_data(w), m, n, k);
  snprintf(name, sizeof name, "linear %lldx%lldx%lld, weights %s, bias %d", (long long)m, (long long)n,
           (long long)k, mhk_dtype_name(stored.dtype), bias);
  CHECK_CLOSE_TO_DOUBLE(name, mhk_data(mhk_linear(tape, x, &stored, bias ? b : NULL)), want, m * n, CLOSE);
  for (i = 0; i < m * n; i++) want[i] += (double)mhk_data(r)[i];
  CHECK_CLOSE_TO_DOUBLE(name, mhk_data(mhk_linear_add(tape, x, &stored, bias ? b : NULL, r)), want, m * n, CLOSE);
  for (i = 0; i < m * n; i++) want[i] = mhk__ref_gelu(want[i] - (double)mhk_data(r)[i]);
  CHECK_CLOSE_TO_DOUBLE(name, mhk_data(mhk_linear_gelu(tape, x, &stored, bias ? b : NULL)), want, m * n, CLOSE);
  if (k > 1 && kind) linear_gradient(name, x, w, &stored, bias ? b : NULL, m, n, k);
  free(half);
  free(single);
}

TEST(values_linear) {
  static const mhk_index sizes[][3] = {{1, 1, 1},     {1, 5, 3},      {2, 7, 9},     {3, 1, 17},
                                       {5, 33, 64},   {7, 16, 1},     {13, 130, 67}, {65, 31, 129},
                                       {67, 97, 300}, {129, 257, 65}, {1, 301, 515}};
  size_t s;
  int kind, bias;
  start();
  mhk_tape_record(tape, 0);
  for (s = 0; s < sizeof sizes / sizeof *sizes; s++) {
    const mhk_index m = sizes[s][0], n = sizes[s][1], k = sizes[s][2];
    double *want = doubles(m * n);
    for (kind = 0; kind < 4; kind++)
      for (bias = 0; bias < 2; bias++) linear_case(m, n, k, kind, bias, want);
    free(want);
  }
  finish();
}

TEST(values_linear_weight_gradient) {
  static const mhk_index sizes[][3] = {{1, 3, 5}, {37, 19, 23}, {65, 130, 33}, {200, 17, 67}};
  size_t s;
  start();
  for (s = 0; s < sizeof sizes / sizeof *sizes; s++) {
    const mhk_index m = sizes[s][0], n = sizes[s][1], k = sizes[s][2];
    mhk_tensor *x = P2(m, k, 1), *w = P2(n, k, 2), *b = P1(n, 3), *y;
    double *dw = doubles(n * k), *db = doubles(n), *dx = doubles(m * k);
    mhk_real *dy = (mhk_real *)malloc(sizeof *dy * (size_t)(m * n));
    mhk_index i, j;
    test_fill(dy, m * n, -1, 1, 4);
    y = mhk_linear(tape, x, w, b);
    mhk_backward_from(tape, y, dy);
    y = mhk_linear(tape, x, w, b); /* gradients add up */
    mhk_backward_from(tape, y, dy);
    for (i = 0; i < 2; i++) {
      const mhk__ref_matrix d = mhk__ref_strided(exact(dy, m * n), n, 1), back = mhk__ref_strided(d.at, 1, n);
      mhk__ref_product(n, k, m, back, mhk__ref_strided(exact(mhk_data(x), m * k), k, 1), dw);
      mhk__ref_product(m, k, n, d, mhk__ref_strided(exact(mhk_data(w), n * k), k, 1), dx);
      for (j = 0; j < m * n; j++) db[j % n] += d.at[j];
    }
    CHECK_CLOSE_TO_DOUBLE("x", x->grad, dx, m * k, CLOSE);
    CHECK_CLOSE_TO_DOUBLE("weight", w->grad, dw, n * k, CLOSE);
    CHECK_CLOSE_TO_DOUBLE("bias", b->grad, db, n, CLOSE);
    mhk_tape_reset(tape);
    free(dw), free(db), free(dx), free(dy);
  }
  finish();
}

TEST(values_empty) { /* no rows: nothing to do, or an error that says so, but no crash */
  const mhk_index none[2] = {0, 5}, w_shape[2] = {3, 5};
  mhk_tensor *x, *w, *y;
  start();
  x = mhk_tensor_new(tape, 2, none, NULL);
  w = mhk_tensor_new(tape, 2, w_shape, NULL);
  y = mhk_linear(tape, x, w, NULL);
  CHECK((y && y->count == 0 && y->shape[1] == 3) || mhk_failed(ctx), "a linear layer of no rows gave %lld numbers",
        (long long)(y ? y->count : -1));
  mhk_clear_error(ctx);
  finish();
}

TEST(values_products) {
  static const mhk_index sizes[][4] = {{1, 1, 1, 1}, {2, 3, 5, 7}, {3, 17, 33, 9}, {1, 65, 66, 67}};
  size_t s;
  int transposed;
  start();
  mhk_tape_record(tape, 0);
  for (s = 0; s < 4; s++)
    for (transposed = 0; transposed < 2; transposed++) {
      const mhk_index b = sizes[s][0], m = sizes[s][1], n = sizes[s][2], k = sizes[s][3];
      mhk_tensor *x = P3(b, m, k, 1), *w = transposed ? P3(b, n, k, 2) : P3(b, k, n, 2);
      double *want = doubles(b * m * n);
      for (mhk_index h = 0; h < b; h++) {
        const double *right = exact(mhk_data(w) + h * k * n, k * n);
        mhk__ref_product(m, n, k, mhk__ref_strided(exact(mhk_data(x) + h * m * k, m * k), k, 1),
                         transposed ? mhk__ref_strided(right, 1, k) : mhk__ref_strided(right, n, 1),
                         want + h * m * n);
      }
      CHECK_CLOSE_TO_DOUBLE("matmul", mhk_data(mhk_matmul(tape, x, w, transposed)), want, b * m * n, CLOSE);
      free(want);
    }
  finish();
}

TEST(values_norms) {
  static const mhk_index widths[] = {1, 2, 7, 8, 33, 130};
  size_t s;
  start();
  mhk_tape_record(tape, 0);
  for (s = 0; s < sizeof widths / sizeof *widths; s++) {
    const mhk_index n = widths[s], rows = 11;
    mhk_tensor *x = P2(rows, n, 1), *w = P1(n, 2), *b = P1(n, 3), *z = P2(rows, n, 4);
    double *want = doubles(rows * n);
    mhk_index i, j;
    for (i = 0; i < rows; i++) {
      double mean;
      mhk__ref_normalize((int)n, exact(mhk_data(x) + i * n, n), 1e-5, 1, &mean, want + i * n);
      for (j = 0; j < n; j++) want[i * n + j] = want[i * n + j] * (double)mhk_data(w)[j] + (double)mhk_data(b)[j];
    }
    CHECK_CLOSE_TO_DOUBLE("layer_norm", mhk_data(mhk_layer_norm(tape, x, w, b, 1e-5)), want, rows * n,
                          n == 2 ? 20 * CLOSE : CLOSE);
    for (i = 0; i < rows; i++) {
      double mean;
      mhk__ref_normalize((int)n, exact(mhk_data(x) + i * n, n), 1e-5, 0, &mean, want + i * n);
      for (j = 0; j < n; j++) want[i * n + j] *= (double)mhk_data(w)[j];
    }
    CHECK_CLOSE_TO_DOUBLE("rms_norm", mhk_data(mhk_rms_norm(tape, x, w, 1e-5)), want, rows * n, CLOSE);
    for (i = 0; i < rows; i++) mhk__ref_softmax((int)n, exact(mhk_data(x) + i * n, n), want + i * n);
    CHECK_CLOSE_TO_DOUBLE("softmax", mhk_data(mhk_softmax(tape, x)), want, rows * n, CLOSE);
    for (i = 0; i < rows; i++)
      for (j = 0; j < n; j++)
        want[i * n + j] =
            (double)mhk_data(x)[i * n + j] * mhk__ref_silu((double)mhk_data(z)[i * n + j] + (double)mhk_data(b)[j]);
    CHECK_CLOSE_TO_DOUBLE("gate", mhk_data(mhk_gate(tape, x, z, b)), want, rows * n, CLOSE);
    for (i = 0; i < rows; i++)
      for (j = 0, want[i] = 0; j < n; j++) want[i] += (double)mhk_data(x)[i * n + j];
    CHECK_CLOSE_TO_DOUBLE("sum_last", mhk_data(mhk_sum_last(tape, x)), want, rows, CLOSE);
    free(want);
  }
  finish();
}

TEST(values_moves) {
  static const int32_t ids[6] = {4, 0, 2, 2, 3, 1};
  mhk_tensor *x, *y, *w;
  mhk_index b, i, h, p;
  int wrong = 0;
  start();
  mhk_tape_record(tape, 0);
  x = P4(2, 3, 4, 5, 1);
  w = P2(5, 7, 2);
  y = mhk_swap_heads(tape, x);
  for (b = 0; b < 2; b++)
    for (i = 0; i < 3; i++)
      for (h = 0; h < 4; h++)
        for (p = 0; p < 5; p++)
          wrong += mhk_data(x)[((b * 3 + i) * 4 + h) * 5 + p] != mhk_data(y)[((b * 4 + h) * 3 + i) * 5 + p];
  CHECK(!wrong, "swap_heads: %d wrong", wrong);
  y = mhk_columns(tape, x, 1, 3);
  for (i = 0, wrong = 0; i < 24; i++)
    for (p = 0; p < 3; p++) wrong += mhk_data(x)[i * 5 + 1 + p] != mhk_data(y)[i * 3 + p];
  CHECK(!wrong && y->shape[3] == 3, "columns: %d wrong", wrong);
  y = mhk_embedding(tape, w, ids, 2, 3);
  for (i = 0, wrong = 0; i < 6; i++)
    for (p = 0; p < 7; p++) wrong += mhk_data(w)[ids[i] * 7 + p] != mhk_data(y)[i * 7 + p];
  CHECK(!wrong && y->rank == 3, "embedding: %d wrong", wrong);
  finish();
}

TEST(values_losses) {
  static const int32_t labels[7] = {2, -1, 0, 4, 4, -100, 1};
  const mhk_index rows = 7, V = 129;
  mhk_tensor *x, *y;
  double ce = 0, soft = 0, kl = 0, distance = 0, matrix = 0;
  mhk_index i, counted = 0;
  start();
  mhk_tape_record(tape, 0);
  x = parameter5(2, rows, V, 1, 1, -4, 4, 1);
  y = parameter5(2, rows, V, 1, 1, -4, 4, 2);
  for (i = 0; i < rows; i++) {
    const double *logits = exact(mhk_data(x) + i * V, V), *target = exact(mhk_data(y) + i * V, V);
    double p[129], d[129];
    if (labels[i] >= 0) ce += mhk__ref_cross_entropy((int)V, logits, labels[i], d), counted++;
    soft += mhk__ref_cross_entropy_soft((int)V, logits, target, 2, p, d) / (double)rows;
    kl += mhk__ref_kl((int)V, logits, target, p, d) / (double)rows;
    distance += mhk__ref_distance((int)V, logits, target, NULL) / (double)rows;
  }
  ce /= (double)counted;
  CHECK(fabs(mhk_value(mhk_cross_entropy(tape, x, labels)) - ce) <= 10 * CLOSE * ce, "cross entropy %.9g", ce);
  CHECK(fabs(mhk_value(mhk_cross_entropy_soft(tape, x, y, 2)) - soft) <= 10 * CLOSE * soft, "soft cross entropy %.9g",
        soft);
  CHECK(fabs(mhk_value(mhk_kl(tape, x, y)) - kl) <= 10 * CLOSE * kl, "kl %.9g", kl);
  CHECK(fabs(mhk_value(mhk_kl(tape, x, x))) <= 10 * CLOSE, "kl of a model with itself is %g",
        mhk_value(mhk_kl(tape, x, x)));
  CHECK(fabs(mhk_value(mhk_hidden_distance(tape, x, y)) - distance) <= 10 * CLOSE * distance, "hidden distance %.9g",
        distance);
  x = P4(2, 3, 9, 9, 1);
  y = P4(2, 3, 9, 9, 2);
  for (i = 0; i < 6; i++)
    matrix += mhk__ref_distance(81, exact(mhk_data(x) + i * 81, 81), exact(mhk_data(y) + i * 81, 81), NULL) / 6;
  CHECK(fabs(mhk_value(mhk_matrix_distance(tape, x, y)) - matrix) <= 10 * CLOSE * matrix, "matrix distance %.9g",
        matrix);
  /* no distance, no gradient: not NaN */
  mhk_tape_record(tape, 1);
  mhk_backward(tape, mhk_add(tape, mhk_matrix_distance(tape, x, mhk_detach(tape, x)),
                             mhk_hidden_distance(tape, x, mhk_detach(tape, x))));
  for (i = 0; x->grad && i < x->count; i++)
    if (x->grad[i] != x->grad[i] || fabs((double)x->grad[i]) > 1) break;
  CHECK(!x->grad || i == x->count, "the gradient of no distance is %g", (double)x->grad[i]);
  finish();
}

/* where documents start; position of each token in its document */
static void plain_positions(const int32_t *doc, mhk_index B, mhk_index T, mhk_index *position, mhk_index *first) {
  mhk_index b, i;
  for (b = 0; b < B; b++)
    for (i = 0; i < T; i++) {
      const int starts = i && doc && doc[b * T + i] != doc[b * T + i - 1];
      position[b * T + i] = i == 0 || starts ? 0 : position[b * T + i - 1] + 1;
      first[b * T + i] = i == 0 ? 0 : starts ? i : first[b * T + i - 1];
    }
}

/* documents of random lengths */
static int32_t *random_documents(mhk_index B, mhk_index T, uint64_t seed) {
  int32_t *doc = (int32_t *)malloc(sizeof *doc * (size_t)(B * T));
  mhk_index b, i;
  for (b = 0; b < B; b++)
    for (i = 0; i < T; i++)
      doc[b * T + i] = i == 0 ? (int32_t)(test_random(&seed) % 3) : doc[b * T + i - 1] + (test_random(&seed) % 7 == 0);
  return doc;
}

TEST(values_rotary) {
  enum { B = 2, T = 1013, H = 3, P = 9 };
  const int dim = 6;
  mhk_index position[B * T], first[B * T], b, i, h, p;
  int packed;
  start();
  mhk_tape_record(tape, 0);
  for (packed = 0; packed < 2; packed++) {
    int32_t *doc = packed ? random_documents(B, T, 5) : NULL;
    mhk_tensor *x = P4(B, T, H, P, 1), *y;
    double *want = doubles(x->count);
    plain_positions(doc, B, T, position, first);
    for (b = 0; b < B; b++)
      for (i = 0; i < T; i++)
        for (h = 0; h < H; h++) {
          const mhk_real *v = mhk_data(x) + ((b * T + i) * H + h) * P;
          double *w = want + ((b * T + i) * H + h) * P;
          for (p = 0; p < P; p++) w[p] = (double)v[p];
          mhk__ref_rotary(dim, 10000, (double)position[b * T + i], w, w);
        }
    y = mhk_rotary(tape, x, dim, 10000, doc);
    CHECK_CLOSE_TO_DOUBLE("rotary", mhk_data(y), want, x->count, IS_DOUBLE ? 1e-11 : 1e-5);
    free(want);
    free(doc);
  }
  finish();
}

/* rows [0,T) of one head (or channel): n numbers each of x (B,T,heads,n), as doubles one after
   another */
static double *head_of(const mhk_tensor *x, mhk_index heads, mhk_index n, mhk_index b, mhk_index h) {
  const mhk_index T = x->shape[1];
  double *y = doubles(T * n);
  mhk_index i, j;
  for (i = 0; i < T; i++)
    for (j = 0; j < n; j++) y[i * n + j] = (double)mhk_data(x)[((b * T + i) * heads + h) * n + j];
  return y;
}
static void put_head(double *y, const double *from, mhk_index T, mhk_index heads, mhk_index n, mhk_index b,
                     mhk_index h) {
  mhk_index i;
  for (i = 0; i < T; i++) memcpy(y + ((b * T + i) * heads + h) * n, from + i * n, (size_t)n * sizeof *y);
}
/* (B,T): the first token of each one's document */
static int *firsts_of(const int32_t *doc, mhk_index B, mhk_index T) {
  mhk_index *position = (mhk_index *)malloc(sizeof *position * (size_t)(B * T)),
            *first = (mhk_index *)malloc(sizeof *first * (size_t)(B * T)), i;
  int *out = (int *)malloc(sizeof *out * (size_t)(B * T));
  plain_positions(doc, B, T, position, first);
  for (i = 0; i < B * T; i++) out[i] = (int)first[i];
  free(position);
  free(first);
  return out;
}

/* the attention matrix (B,H,T,T) */
static double *plain_windows_matrix(const mhk_tensor *q, const mhk_tensor *k, const mhk_attention_desc *d) {
  const mhk_index B = q->shape[0], T = q->shape[1], H = q->shape[2], N = q->shape[3], G = k->shape[2];
  double *m = doubles(B * H * T * T);
  int *first = firsts_of(d->doc, B, T);
  mhk_index b, h;
  for (b = 0; b < B; b++)
    for (h = 0; h < H; h++) {
      const int window = d->windows ? (int)d->windows[h] : MHK_WINDOW_ALL, plain = d->windows && window < 0;
      double *one_q = head_of(q, H, N, b, h), *one_k = head_of(k, G, N, b, h / (H / G)),
             *rest = d->rest && !plain ? head_of(d->rest, H, 1, b, h) : NULL;
      const double scale = d->scale && !plain ? (double)mhk_data(d->scale)[h] : 1 / sqrt((double)N);
      const mhk__ref_attention r = {(int)T, (int)T,        (int)N, 0,     one_q, one_k,
                                    NULL,   first + b * T, window, scale, rest};
      mhk__ref_attention_matrix(&r, m + (b * H + h) * T * T, NULL);
      free(one_q), free(one_k), free(rest);
    }
  free(first);
  return m;
}
static double *plain_attention_matrix(const mhk_tensor *q, const mhk_tensor *k, const int32_t *doc) {
  const mhk_attention_desc d = within(doc);
  return plain_windows_matrix(q, k, &d);
}

/* matrix (B,H,T,T) times x (B,T,G,P), heads grouped -> (B,T,H,P) */
static double *plain_mix(const double *m, const mhk_tensor *x, mhk_index H) {
  const mhk_index B = x->shape[0], T = x->shape[1], G = x->shape[2], P = x->shape[3];
  double *y = doubles(B * T * H * P), *out = doubles(T * P);
  mhk_index b, h;
  for (b = 0; b < B; b++)
    for (h = 0; h < H; h++) {
      double *one = head_of(x, G, P, b, h / (H / G));
      mhk__ref_mix((int)T, (int)T, (int)P, m + (b * H + h) * T * T, one, out);
      put_head(y, out, T, H, P, b, h);
      free(one);
    }
  free(out);
  return y;
}

TEST(values_attention) {
  static const mhk_index lengths[] = {1, 2, 3, 17, 31, 32, 33, 63, 64, 65, 127, 128, 130, 200};
  static const mhk_index heads[][3] = {{3, 3, 5}, {4, 2, 16}, {2, 1, 33}};
  size_t s, g;
  int packed;
  start();
  mhk_tape_record(tape, 0);
  for (s = 0; s < sizeof lengths / sizeof *lengths; s++)
    for (g = 0; g < 3; g++)
      for (packed = 0; packed < 2; packed++) {
        const mhk_index B = 2, T = lengths[s], H = heads[g][0], G = heads[g][1], P = heads[g][2];
        int32_t *doc = packed ? random_documents(B, T, s) : NULL;
        mhk_tensor *q = parameter5(4, B, T, H, P, -3, 3, 1), *k = parameter5(4, B, T, G, P, -3, 3, 2),
                   *v = P4(B, T, G, P, 3);
        double *m = plain_attention_matrix(q, k, doc), *y = plain_mix(m, v, H);
        char name[80];
        snprintf(name, sizeof name, "attention, T %d, heads %d/%d of %d, packed %d", (int)T, (int)H, (int)G, (int)P,
                 packed);
        CHECK_CLOSE_TO_DOUBLE(name, mhk_data(attention_matrix(tape, q, k, doc)), m, B * H * T * T, CLOSE);
        CHECK_CLOSE_TO_DOUBLE(name, mhk_data(attention(tape, q, k, v, doc)), y, B * T * H * P, CLOSE);
        mhk_tape_reset(tape);
        free(m), free(y), free(doc);
      }
  finish();
}

enum { WINDOWS = 8 };
/* list number n of windows for four heads: each size, and heads that are absent or see all */
static const int32_t *windows_of(int n, mhk_index T) {
  static int32_t list[4];
  const int32_t sizes[WINDOWS] = {1, 2, 7, 16, 31, 33, 64, (int32_t)T + 5};
  list[0] = sizes[n];
  list[1] = n % 3 == 0 ? 0 : sizes[(n + 3) % WINDOWS];
  list[2] = sizes[(n + 5) % WINDOWS];
  list[3] = n % 3 == 2 ? sizes[n] : MHK_WINDOW_ALL;
  return list;
}

TEST(values_attention_in_windows) {
  static const mhk_index lengths[] = {1, 2, 3, 4, 5, 15, 17, 31, 32, 47, 64, 65, 97, 130, 200};
  int s, n;
  start();
  mhk_tape_record(tape, 0);
  for (s = 0; s < (int)(sizeof lengths / sizeof *lengths); s++)
    for (n = 0; n < WINDOWS; n++) {
      const mhk_index B = 2, T = lengths[s], H = 4, G = n % 2 ? 4 : 2, N = n % 3 ? 16 : 5, P = n % 4 ? 9 : 32;
      int32_t *doc = n % 2 ? random_documents(B, T, (uint64_t)s) : NULL;
      mhk_tensor *q = parameter5(4, B, T, H, N, -3, 3, 1), *k = parameter5(4, B, T, G, N, -3, 3, 2),
                 *v = P4(B, T, G, P, 3);
      const mhk_attention_desc d = {doc, windows_of(n, T), (n + s) % 3 ? P1(H, 4) : NULL,
                                    (n + s) % 4 ? parameter5(3, B, T, H, 1, -4, 4, 5) : NULL};
      double *m = plain_windows_matrix(q, k, &d), *y = plain_mix(m, v, H);
      char name[80];
      snprintf(name, sizeof name, "attention in windows, T %d, list %d", (int)T, n);
      CHECK_CLOSE_TO_DOUBLE(name, mhk_data(mhk_attention_matrix(tape, q, k, &d)), m, B * H * T * T, CLOSE);
      CHECK_CLOSE_TO_DOUBLE(name, mhk_data(mhk_attention(tape, q, k, v, &d)), y, B * T * H * P, CLOSE);
      mhk_tape_reset(tape);
      free(m), free(y), free(doc);
    }
  finish();
}

/* the output and all gradients of attention in windows: (B,T,H,P), and those of q, k, v, scale,
   rest; by tiles or, matrix, as a product of the matrix and v */
static void windows_results(mhk_tensor *const *in, const mhk_attention_desc *d, int matrix, mhk_real **out) {
  const mhk_index H = in[0]->shape[2];
  mhk_tensor *y;
  mhk_real *dy;
  int i;
  y = matrix ? mhk_swap_heads(tape, mhk_matmul(tape, mhk_attention_matrix(tape, in[0], in[1], d),
                                               mhk_swap_heads(tape, in[2]), 0))
             : mhk_attention(tape, in[0], in[1], in[2], d);
  CHECK(y && y->shape[2] == H, "%s", mhk_message(ctx));
  dy = (mhk_real *)malloc(sizeof *dy * (size_t)y->count);
  test_fill(dy, y->count, -1, 1, 4);
  mhk_backward_from(tape, y, dy);
  out[5] = (mhk_real *)malloc(sizeof **out * (size_t)y->count);
  memcpy(out[5], mhk_data(y), sizeof **out * (size_t)y->count);
  for (i = 0; i < 5; i++) {
    out[i] = (mhk_real *)malloc(sizeof **out * (size_t)in[i]->count);
    memcpy(out[i], in[i]->grad, sizeof **out * (size_t)in[i]->count);
    mhk_zero_grad(in[i]);
  }
  free(dy);
  mhk_tape_reset(tape);
}

TEST(attention_in_windows_is_its_matrix_on_any_number_of_threads) {
  static const mhk_index lengths[] = {2, 33, 64, 65, 130};
  static const char *const names[6] = {"q", "k", "v", "scale", "rest", "y"};
  int s, n, i;
  start();
  for (s = 0; s < 5; s++)
    for (n = 0; n < WINDOWS; n++) {
      const mhk_index B = 2, T = lengths[s], H = 4, N = 7, P = 12;
      int32_t *doc = n % 2 ? random_documents(B, T, 7) : NULL;
      mhk_tensor *const in[5] = {P4(B, T, H, N, 1), P4(B, T, H, N, 2), P4(B, T, H, P, 3), P1(H, 4), P3(B, T, H, 5)};
      const mhk_attention_desc d = {doc, windows_of(n, T), in[3], in[4]};
      const mhk_index counts[6] = {in[0]->count, in[1]->count, in[2]->count, H, B * T * H, B * T * H * P};
      mhk_real *tiles[6], *matrix[6], *again[6];
      windows_results(in, &d, 0, tiles);
      windows_results(in, &d, 1, matrix);
      mhk_set_threads(ctx, 3);
      windows_results(in, &d, 0, again);
      mhk_set_threads(ctx, 1);
      for (i = 0; i < 6; i++) {
        char name[80];
        snprintf(name, sizeof name, "%s of attention in windows, T %d, list %d", names[i], (int)T, n);
        CHECK_CLOSE(name, tiles[i], matrix[i], counts[i], CLOSE_GRAD);
        CHECK_SAME(name, again[i], tiles[i], counts[i]);
        free(tiles[i]), free(matrix[i]), free(again[i]);
      }
      free(doc);
    }
  finish();
}

/* What a description does not limit is plain attention, to the bit. */
TEST(a_window_of_everything_is_plain_attention) {
  static const int32_t all[4] = {MHK_WINDOW_ALL, MHK_WINDOW_ALL, MHK_WINDOW_ALL, MHK_WINDOW_ALL};
  int form;
  start();
  for (form = 0; form < 2; form++) {
    mhk_tensor *q = P4(2, 70, 4, 16, 1), *k = P4(2, 70, 2, 16, 2), *v = P4(2, 70, 2, 16, 3);
    const mhk_attention_desc d = {NULL, all, P1(4, 4), P3(2, 70, 4, 5)};
    mhk_tensor *plain = form ? mhk_attention_matrix(tape, q, k, NULL) : mhk_attention(tape, q, k, v, NULL),
               *wide = form ? mhk_attention_matrix(tape, q, k, &d) : mhk_attention(tape, q, k, v, &d);
    CHECK_SAME("a window of everything", mhk_data(wide), mhk_data(plain), plain->count);
    mhk_backward(tape, weighted_sum(tape, wide, 9));
    for (mhk_index i = 0; i < d.rest->count; i++)
      CHECK(!d.rest->grad || d.rest->grad[i] == 0, "a rest that does not count has a gradient");
    for (mhk_index i = 0; i < 4; i++)
      CHECK(!d.scale->grad || d.scale->grad[i] == 0, "a scale that does not count has a gradient");
    mhk_tape_reset(tape);
  }
  finish();
}

/* attention's gradient in tiles against the matrix's: both ways on the tape */
TEST(attention_is_its_matrix) {
  static const mhk_index lengths[] = {1, 33, 64, 65, 130};
  size_t s;
  int packed;
  start();
  for (s = 0; s < sizeof lengths / sizeof *lengths; s++)
    for (packed = 0; packed < 2; packed++) {
      const mhk_index B = 2, T = lengths[s], H = 3, P = 7;
      int32_t *doc = packed ? random_documents(B, T, 7) : NULL;
      mhk_tensor *q = P4(B, T, H, P, 1), *k = P4(B, T, H, P, 2), *v = P4(B, T, H, P, 3), *in[3], *y, *m;
      mhk_real *grads[3], *dy = (mhk_real *)malloc(sizeof *dy * (size_t)(B * T * H * P));
      int i;
      in[0] = q, in[1] = k, in[2] = v;
      test_fill(dy, B * T * H * P, -1, 1, 4);
      y = attention(tape, q, k, v, doc);
      mhk_backward_from(tape, y, dy);
      for (i = 0; i < 3; i++) {
        grads[i] = (mhk_real *)malloc(sizeof **grads * (size_t)in[i]->count);
        memcpy(grads[i], in[i]->grad, sizeof **grads * (size_t)in[i]->count);
        mhk_zero_grad(in[i]);
      }
      m = attention_matrix(tape, q, k, doc);
      y = mhk_swap_heads(tape, mhk_matmul(tape, m, mhk_swap_heads(tape, v), 0));
      mhk_backward_from(tape, y, dy);
      for (i = 0; i < 3; i++)
        if (T == 1 && i < 2) { /* one token attends to itself whatever q and k are: nothing but rounding */
          mhk_index j;
          for (j = 0; j < in[i]->count && fabs((double)grads[i][j]) < 1e-6; j++) {}
          CHECK(j == in[i]->count, "the gradient of a single token's %s is %g", i ? "key" : "query",
                (double)grads[i][j]);
        } else
          CHECK_CLOSE("attention's gradient", grads[i], in[i]->grad, in[i]->count, CLOSE_GRAD);
      for (i = 0; i < 3; i++) free(grads[i]);
      free(dy), free(doc);
      mhk_tape_reset(tape);
    }
  finish();
}

static double *plain_conv(const mhk_tensor *x, const mhk_tensor *w, const mhk_tensor *bias, int with_silu,
                          const int32_t *doc) {
  const mhk_index B = x->shape[0], T = x->shape[1], C = x->shape[2], W = w->shape[2];
  double *y = doubles(x->count), *z = doubles(T), *taps = doubles(W);
  int *first = firsts_of(doc, B, T);
  mhk_index b, i, c;
  for (b = 0; b < B; b++)
    for (c = 0; c < C; c++) {
      double *one = head_of(x, C, 1, b, c);
      mhk__ref_conv r = {(int)T, (int)W, one, NULL, taps, bias ? (double)mhk_data(bias)[c] : 0, first + b * T};
      for (i = 0; i < W; i++) taps[i] = (double)mhk_data(w)[c * W + i];
      mhk__ref_conv_forward(&r, z);
      for (i = 0; i < T; i++) z[i] = with_silu ? mhk__ref_silu(z[i]) : z[i];
      put_head(y, z, T, C, 1, b, c);
      free(one);
    }
  free(z), free(taps), free(first);
  return y;
}

TEST(values_conv1d) {
  static const mhk_index lengths[] = {1, 2, 3, 4, 19, 65};
  size_t s;
  mhk_index W;
  int variant;
  start();
  mhk_tape_record(tape, 0);
  for (s = 0; s < sizeof lengths / sizeof *lengths; s++)
    for (W = 2; W <= 5; W++)
      for (variant = 0; variant < 8; variant++) {
        const mhk_index B = 2, T = lengths[s], C = 19;
        static const mhk_index widths[3] = {11, 1, 7};
        mhk_tensor *x = P3(B, T, C, 1), *w = P3(C, 1, W, 2), *b = variant & 1 ? P1(C, 3) : NULL, *y, *parts[3];
        int32_t *doc = variant & 2 ? random_documents(B, T, 9) : NULL;
        double *want;
        mhk_index c, j, i;
        int wrong = 0;
        want = plain_conv(x, w, b, variant >> 2, doc);
        const mhk_conv1d_desc split = {doc, variant >> 2, 3, widths, parts};
        y = conv(tape, x, w, b, variant >> 2, doc);
        CHECK_CLOSE_TO_DOUBLE("conv1d", mhk_data(y), want, B * T * C, CLOSE);
        CHECK(mhk_conv1d(tape, x, w, b, &split) == parts[0], "the first part is not what is returned");
        for (j = 0, c = 0, wrong = 0; j < 3 && y; c += widths[j++])
          for (i = 0; i < B * T; i++)
            wrong += memcmp(mhk_data(parts[j]) + i * widths[j], mhk_data(y) + i * C + c,
                            sizeof(mhk_real) * (size_t)widths[j]) != 0;
        CHECK(!wrong, "the parts of conv1d differ from the whole in %d places", wrong);
        mhk_tape_reset(tape);
        free(want), free(doc);
      }
  finish();
}

/* ---------------------------------------------------------------------------------------- SSD */

/* y (B,T,H,P) and the final state (B,H,P,N): by the recurrence, and held against the other two
   forms of the reference */
static void plain_ssd(const mhk_tensor *x, const mhk_tensor *a, const mhk_tensor *Bm, const mhk_tensor *Cm,
                      const mhk_tensor *D, const mhk_tensor *h0, const int32_t *doc, double *y, double *state) {
  const mhk_index B = x->shape[0], T = x->shape[1], H = x->shape[2], P = x->shape[3], G = Bm->shape[2],
                  N = Bm->shape[3];
  double *states = doubles((T + 1) * P * N), *out = doubles(T * P), *again = doubles(T * P), *h_again = doubles(P * N),
         *M = doubles(T * T);
  mhk_index b, h, i, wrong = 0;
  for (b = 0; b < B; b++)
    for (h = 0; h < H; h++) {
      double *xs = head_of(x, H, P, b, h), *as = head_of(a, H, 1, b, h), *bs = head_of(Bm, G, N, b, h / (H / G)),
             *cs = head_of(Cm, G, N, b, h / (H / G));
      const mhk__ref_ssd r = {(int)T, (int)P, (int)N, xs, as, bs, cs, D ? (double)mhk_data(D)[h] : 0};
      for (i = 1; doc && i < T; i++)
        if (doc[b * T + i] != doc[b * T + i - 1]) as[i] = -HUGE_VAL;
      for (i = 0; i < P * N; i++) states[i] = h_again[i] = h0 ? (double)mhk_data(h0)[(b * H + h) * P * N + i] : 0;
      mhk__ref_ssd_recurrent(&r, states, out);
      put_head(y, out, T, H, P, b, h);
      memcpy(state + (b * H + h) * P * N, states + T * P * N, sizeof *state * (size_t)(P * N));
      mhk__ref_ssd_chunked(&r, 16, h_again, M, again);
      for (i = 0; i < T * P; i++) wrong += !(fabs(again[i] - out[i]) <= 1e-11);
      for (i = 0; i < P * N; i++) wrong += !(fabs(h_again[i] - states[T * P * N + i]) <= 1e-11);
      if (!h0) {
        mhk__ref_ssd_matrix(&r, M);
        mhk__ref_mix((int)T, (int)T, (int)P, M, xs, again);
        for (i = 0; i < T * P; i++) wrong += !(fabs(again[i] - out[i]) <= 1e-11);
      }
      free(xs), free(as), free(bs), free(cs);
    }
  CHECK(!wrong, "the reference's forms of SSD differ in %lld places", (long long)wrong);
  free(states), free(out), free(again), free(h_again), free(M);
}

/* the matrix (B,H,T,T) is lower triangular and times x (B,T,H,P) is what is wanted */
static void check_mixes(const char *name, const mhk_tensor *m, const mhk_tensor *x, const double *want) {
  const mhk_index T = x->shape[1], all = x->shape[0] * x->shape[2] * T * T;
  double *md, *mixed;
  mhk_index i;
  CHECK(m && m->count == all, "%s: wrong size", name);
  if (!m || m->count != all) return;
  md = doubles(all);
  for (i = 0; i < all; i++) md[i] = (double)mhk_data(m)[i];
  mixed = plain_mix(md, x, x->shape[2]);
  for (i = 0; i < x->count; i++)
    if (!(fabs(mixed[i] - want[i]) <= 40 * CLOSE)) break;
  CHECK(i == x->count, "%s: M x is %.9g, should be %.9g (element %lld)", name, mixed[i], want[i], (long long)i);
  for (i = 0; i < all; i++)
    if (i % T > i / T % T && md[i] != 0) break;
  CHECK(i == all, "%s: not lower triangular", name);
  free(md), free(mixed);
}

TEST(ssd_is_its_matrix) {
  static const mhk_index lengths[] = {1, 2, 3, 5, 7, 13, 15, 16, 17, 31, 53, 63, 64, 65, 97, 127, 128, 129};
  static const mhk_index chunks[] = {0, 1, 3, 16, 64};
  static const mhk_index shapes[][4] = {{3, 3, 5, 7}, {4, 2, 16, 16}, {4, 1, 3, 33}};
  size_t s, g, c;
  int variant;
  start();
  mhk_tape_record(tape, 0);
  for (s = 0; s < sizeof lengths / sizeof *lengths; s++)
    for (g = 0; g < 3; g++)
      for (variant = 0; variant < 8; variant++) {
        const mhk_index B = 2, T = lengths[s], H = shapes[g][0], G = shapes[g][1], P = shapes[g][2], N = shapes[g][3];
        mhk_tensor *x = P4(B, T, H, P, 1), *a = parameter5(3, B, T, H, 1, -2, -0.001, 2), *Bm = P4(B, T, G, N, 3),
                   *Cm = P4(B, T, G, N, 4);
        mhk_tensor *D = variant & 1 ? P1(H, 5) : NULL, *h0 = variant & 2 ? P4(B, H, P, N, 6) : NULL, *final_state, *y;
        int32_t *doc = variant & 4 ? random_documents(B, T, s) : NULL;
        double *want = doubles(B * T * H * P), *state = doubles(B * H * P * N);
        mhk_ssd_desc d;
        char name[100];
        plain_ssd(x, a, Bm, Cm, D, h0, doc, want, state);
        memset(&d, 0, sizeof d);
        d.D = D, d.initial_state = h0, d.final_state = &final_state, d.doc = doc;
        for (c = 0; c <= sizeof chunks / sizeof *chunks; c++) {
          const int recurrent = c == sizeof chunks / sizeof *chunks;
          d.form = recurrent ? MHK_SSD_RECURRENT : c == 0 ? MHK_SSD_AUTO : MHK_SSD_CHUNKED;
          d.chunk = recurrent ? 0 : chunks[c];
          final_state = NULL;
          y = mhk_ssd(tape, x, a, Bm, Cm, &d);
          snprintf(name, sizeof name, "ssd, T %d, shape %d, variant %d, %s %d", (int)T, (int)g, variant,
                   recurrent ? "recurrent" : "chunk", (int)d.chunk);
          CHECK_CLOSE_TO_DOUBLE(name, mhk_data(y), want, B * T * H * P, CLOSE);
          CHECK_CLOSE_TO_DOUBLE(name, mhk_data(final_state), state, B * H * P * N, CLOSE);
        }
        snprintf(name, sizeof name, "ssd_matrix, T %d, shape %d, variant %d", (int)T, (int)g, variant);
        if (!h0) check_mixes(name, mhk_ssd_matrix(tape, a, Bm, Cm, D, doc), x, want);
        mhk_tape_reset(tape);
        free(want), free(state), free(doc);
      }
  finish();
}

/* gradients of the chunked and the recurrent form against the matrix's */
TEST(ssd_gradients_agree) {
  static const mhk_index lengths[] = {1, 15, 16, 17, 64, 65, 131};
  size_t s;
  int packed, form;
  start();
  for (s = 0; s < sizeof lengths / sizeof *lengths; s++)
    for (packed = 0; packed < 2; packed++) {
      const mhk_index B = 2, T = lengths[s], H = 4, G = 2, P = 5, N = 7;
      int32_t *doc = packed ? random_documents(B, T, 3) : NULL;
      mhk_tensor *in[5], *y, *m;
      mhk_real *grads[3][5], *dy = (mhk_real *)malloc(sizeof *dy * (size_t)(B * T * H * P));
      int i;
      in[0] = P4(B, T, H, P, 1), in[1] = parameter5(3, B, T, H, 1, -1, -0.001, 2), in[2] = P4(B, T, G, N, 3),
      in[3] = P4(B, T, G, N, 4), in[4] = P1(H, 5);
      test_fill(dy, B * T * H * P, -1, 1, 6);
      for (form = 0; form < 3; form++) {
        if (form < 2) {
          mhk_ssd_desc d;
          memset(&d, 0, sizeof d);
          d.D = in[4], d.doc = doc, d.form = form ? MHK_SSD_RECURRENT : MHK_SSD_CHUNKED, d.chunk = 16;
          y = mhk_ssd(tape, in[0], in[1], in[2], in[3], &d);
        } else {
          m = mhk_ssd_matrix(tape, in[1], in[2], in[3], in[4], doc);
          y = mhk_swap_heads(tape, mhk_matmul(tape, m, mhk_swap_heads(tape, in[0]), 0));
        }
        mhk_backward_from(tape, y, dy);
        for (i = 0; i < 5; i++) {
          grads[form][i] = (mhk_real *)malloc(sizeof ***grads * (size_t)in[i]->count);
          memcpy(grads[form][i], in[i]->grad, sizeof ***grads * (size_t)in[i]->count);
          mhk_zero_grad(in[i]);
        }
      }
      for (form = 0; form < 2; form++)
        for (i = 0; i < 5; i++) {
          char name[80];
          snprintf(name, sizeof name, "gradient of input %d, T %d, %s", i, (int)T, form ? "recurrent" : "chunked");
          CHECK_CLOSE(name, grads[form][i], grads[2][i], in[i]->count, CLOSE_GRAD);
        }
      for (form = 0; form < 3; form++)
        for (i = 0; i < 5; i++) free(grads[form][i]);
      free(dy), free(doc);
      mhk_tape_reset(tape);
    }
  finish();
}

/* strong and absent decay over a long sequence: no overflow, no loss of precision */
TEST(ssd_long) {
  static const double decays[] = {0, -1e-5, -0.5, -30, -300};
  const mhk_index B = 1, T = 3000, H = 2, P = 2, N = 3;
  size_t s;
  start();
  mhk_tape_record(tape, 0);
  for (s = 0; s < sizeof decays / sizeof *decays; s++) {
    mhk_tensor *x = P4(B, T, H, P, 1), *a = parameter5(3, B, T, H, 1, 1.1 * decays[s], decays[s], 2),
               *Bm = P4(B, T, H, N, 3), *Cm = P4(B, T, H, N, 4), *y;
    double *want = doubles(B * T * H * P), *state = doubles(B * H * P * N);
    mhk_ssd_desc d;
    plain_ssd(x, a, Bm, Cm, NULL, NULL, NULL, want, state);
    memset(&d, 0, sizeof d);
    d.form = MHK_SSD_CHUNKED;
    y = mhk_ssd(tape, x, a, Bm, Cm, &d);
    CHECK_CLOSE_TO_DOUBLE("long ssd", mhk_data(y), want, B * T * H * P, IS_DOUBLE ? 1e-11 : 2e-5);
    mhk_tape_reset(tape);
    free(want), free(state);
  }
  finish();
}

TEST(matrix_orientation_is_fused) {
  static const mhk_index lengths[] = {1, 2, 31, 32, 33, 64, 65, 130, 200};
  size_t s;
  int variant;
  start();
  for (s = 0; s < sizeof lengths / sizeof *lengths; s++)
    for (variant = 0; variant < 4; variant++) {
      const mhk_index B = 2, T = lengths[s], H = 4, G = variant & 1 ? 2 : 4, N = 7, K = variant & 1 ? 2 : 4, P = 9;
      int32_t *doc = variant & 2 ? random_documents(B, T, s) : NULL;
      mhk_tensor *in[6], *q = P4(B, T, H, P, 7), *k = P4(B, T, K, P, 8), *loss, *student, *teacher;
      mhk_real *grads[4];
      double value, relative[4], plain_relative[4] = {0, 0, 0, 0};
      mhk_index b, h, j;
      int i;
      in[0] = parameter5(3, B, T, H, 1, -1, -0.001, 2), in[1] = P4(B, T, G, N, 3), in[2] = P4(B, T, G, N, 4),
      in[3] = variant == 1 ? NULL : P1(H, 5);
      frozen(q), frozen(k);
      in[4] = q, in[5] = k;
      loss = orientation(tape, in, doc, relative);
      value = mhk_value(loss);
      mhk_backward(tape, loss);
      for (i = 0; i < 4; i++) {
        if (!in[i]) continue;
        grads[i] = (mhk_real *)malloc(sizeof **grads * (size_t)in[i]->count);
        memcpy(grads[i], in[i]->grad, sizeof **grads * (size_t)in[i]->count);
        mhk_zero_grad(in[i]);
      }
      student = mhk_ssd_matrix(tape, in[0], in[1], in[2], in[3], doc);
      teacher = attention_matrix(tape, q, k, doc);
      loss = mhk_matrix_distance(tape, student, teacher);
      CHECK(fabs(value - mhk_value(loss)) <= 10 * CLOSE * value, "T %d, variant %d: fused %.9g, from the matrices %.9g",
            (int)T, variant, value, mhk_value(loss));
      mhk_backward(tape, loss);
      for (i = 0; i < 4; i++)
        if (in[i]) {
          char name[80];
          snprintf(name, sizeof name, "orientation's gradient of input %d, T %d, variant %d", i, (int)T, variant);
          CHECK_CLOSE(name, grads[i], in[i]->grad, in[i]->count, CLOSE_GRAD);
          free(grads[i]);
        }
      for (b = 0; b < B; b++)
        for (h = 0; h < H; h++) {
          double off = 0, size = 0;
          for (j = 0; j < T * T; j++) {
            const double x = (double)mhk_data(student)[(b * H + h) * T * T + j],
                         y = (double)mhk_data(teacher)[(b * H + h) * T * T + j];
            off += (x - y) * (x - y), size += y * y;
          }
          plain_relative[h] += sqrt(off / size) / (double)B;
        }
      for (h = 0; h < H; h++)
        CHECK(fabs(relative[h] - plain_relative[h]) <= 20 * CLOSE * plain_relative[h],
              "relative error of head %d is %.9g, should be %.9g", (int)h, relative[h], plain_relative[h]);
      free(doc);
      mhk_tape_reset(tape);
    }
  finish();
}

/* gradients of n inputs from a loss; they are zeroed */
static void loss_gradients(mhk_tensor *loss, mhk_tensor *const *in, int n, mhk_real **out) {
  mhk_backward(tape, loss);
  for (int i = 0; i < n; i++) {
    out[i] = (mhk_real *)calloc((size_t)in[i]->count, sizeof **out);
    if (in[i]->grad) memcpy(out[i], in[i]->grad, sizeof **out * (size_t)in[i]->count);
    mhk_zero_grad(in[i]);
  }
}

/* Where no state is, the student is attention in windows; where nothing is seen exactly, gains are
   factors of B and C. On three threads the bits are those of one. */
TEST(orientation_of_a_whole_mixer_is_that_of_its_parts) {
  static const int32_t lists[2][4] = {{1, 5, MHK_WINDOW_ALL, 40}, {70, 1000, 64, 2}};
  start();
  for (int s = 0; s < 3; s++) { /* two lists of windows, and gains */
    const mhk_index B = 2, T = 130, H = 4, N = 7;
    int32_t *doc = s == 1 ? random_documents(B, T, 7) : NULL;
    mhk_tensor *in[10] = {parameter5(3, B, T, H, 1, -1, -0.001, 2), P4(B, T, H, N, 3), P4(B, T, H, N, 4), NULL,
                          P4(B, T, H, 9, 5), P4(B, T, 2, 9, 6), P3(B, T, H, 7), P3(B, T, H, 8), P1(H, 9),
                          P3(B, T, H, 10)};
    mhk_tensor *const both[4] = {in[1], in[2], s < 2 ? in[8] : in[0], s < 2 ? in[9] : in[0]};
    mhk_tensor *teacher, *student, *loss[2];
    mhk_real *grads[3][4];
    const mhk_attention_desc seen = {doc, lists[s % 2], in[8], in[9]};
    mhk_orientation_desc d = orientation_with(in, s < 2 ? lists[s] : NULL, doc);
    double relative[4];
    frozen(in[4]), frozen(in[5]);
    d.relative = relative;
    if (s < 2) {
      memset(mhk_data(in[7]), 0, sizeof(mhk_real) * (size_t)in[7]->count);
      student = mhk_attention_matrix(tape, in[2], in[1], &seen);
    } else {
      mhk_tensor *scaled[2];
      for (int i = 0; i < 2; i++) {
        scaled[i] = P4(B, T, H, N, 3 + (uint64_t)i);
        for (mhk_index j = 0; j < scaled[i]->count; j++)
          mhk_data(scaled[i])[j] *= mhk_data(in[7 - i])[j / N];
      }
      student = mhk_ssd_matrix(tape, in[0], scaled[0], scaled[1], NULL, NULL);
    }
    teacher = mhk_detach(tape, attention_matrix(tape, in[4], in[5], doc));
    loss[1] = mhk_matrix_distance(tape, student, teacher);
    loss_gradients(loss[1], both, 4, grads[1]);
    for (int threads = 1; threads <= 3; threads += 2) {
      mhk_set_threads(ctx, threads);
      loss[0] = mhk_matrix_orientation(tape, &d);
      loss_gradients(loss[0], both, 4, grads[threads - 1]);
      CHECK(fabs(mhk_value(loss[0]) - mhk_value(loss[1])) <= 10 * CLOSE * mhk_value(loss[1]),
            "case %d: fused %.9g, from the matrices %.9g", s, mhk_value(loss[0]), mhk_value(loss[1]));
    }
    mhk_set_threads(ctx, 1);
    for (int i = 0; i < 4; i++) {
      if (s < 2 || i >= 2)
        CHECK_CLOSE("gradient of a whole mixer", grads[0][i], grads[1][i], both[i]->count, CLOSE_GRAD);
      CHECK_SAME("gradient on three threads", grads[2][i], grads[0][i], both[i]->count);
      for (int k = 0; k < 3; k++) free(grads[k][i]);
    }
    free(doc);
    mhk_tape_reset(tape);
  }
  finish();
}

TEST(memory_of_matrix_orientation_grows_with_the_text_only) {
  static const int32_t windows[2] = {33, MHK_WINDOW_ALL};
  for (int with = 0; with < 2; with++) {
    const mhk_index T = 2048, all = T * T * (mhk_index)sizeof(mhk_real);
    start();
    mhk_set_threads(ctx, 1);
    mhk_tensor *in[10] = {parameter5(3, 1, T, 2, 1, -1, -0.001, 2), P4(1, T, 2, 4, 3), P4(1, T, 2, 4, 4), P1(2, 5),
                          P4(1, T, 2, 4, 6), P4(1, T, 2, 4, 7), P3(1, T, 2, 8), P3(1, T, 2, 9), P1(2, 10),
                          P3(1, T, 2, 11)};
    const mhk_orientation_desc d = with ? orientation_with(in, windows, NULL) : orientation_of(in, NULL);
    frozen(in[4]), frozen(in[5]);
    mhk_backward(tape, mhk_matrix_orientation(tape, &d));
    CHECK(mhk_memory_peak(ctx) < (size_t)all / 4, "%lld bytes, one matrix has %lld", (long long)mhk_memory_peak(ctx),
          (long long)all);
    finish();
  }
}

/* ---------------------------------------------------------------------------------------- tape */

typedef struct cube_user {
  double factor;
} cube_user;
static void cube_forward(const mhk_op *o) {
  const double f = ((const cube_user *)o->user)->factor;
  mhk_index i;
  for (i = 0; i < o->out->count; i++)
    mhk_data(o->out)[i] = (mhk_real)(f * pow((double)mhk_data(o->in[0])[i], 3) + (double)mhk_data(o->in[1])[i]);
}
static void cube_backward(const mhk_op *o) {
  const double f = ((const cube_user *)o->user)->factor;
  mhk_index i;
  if (mhk_wants_grad(o->tape, o->in[0]))
    for (i = 0; i < o->out->count; i++)
      o->in[0]->grad[i] += (mhk_real)(3 * f * pow((double)mhk_data(o->in[0])[i], 2) * (double)o->out->grad[i]);
  if (mhk_wants_grad(o->tape, o->in[1]))
    for (i = 0; i < o->out->count; i++) o->in[1]->grad[i] += o->out->grad[i];
}
static mhk_tensor *cube(mhk_tape *t, mhk_tensor *a, mhk_tensor *b) {
  mhk_tensor *in[2];
  cube_user u; /* on the stack: copied */
  u.factor = 1.5;
  in[0] = a, in[1] = b;
  if (!a) return NULL;
  const mhk_custom_desc d = {2, in, a->rank, a->shape, cube_forward, cube_backward, &u, sizeof u};
  return mhk_custom(t, &d);
}
BUILD(b_cube, cube(t, c->in[0], c->in[1]))

TEST(custom_ops) {
  op_case c;
  mhk_tensor *a, *b, *y;
  start();
  a = P2(3, 5, 1), b = P2(3, 5, 2);
  c = op(b_cube, a, b, NULL, NULL), check_gradients("an op of one's own", &c);
  y = cube(tape, a, mhk_detach(tape, b));
  CHECK(y && fabs((double)mhk_data(y)[7] - (1.5 * pow((double)mhk_data(a)[7], 3) + (double)mhk_data(b)[7])) < 1e-6,
        "wrong value");
  mhk_zero_grad(a), mhk_zero_grad(b);
  mhk_backward(tape, mhk_sum(tape, y));
  CHECK(a->grad && a->grad[3] != 0, "no gradient");
  CHECK(!b->grad || b->grad[3] == 0, "a detached input got a gradient");
  finish();
}

/* y = x^2, with the squares in scratch memory and one task a row */
typedef struct rows {
  const mhk_op *op;
  mhk_real *square;
  mhk_index wide;
  int backward;
} rows;
static void row_task(void *arg, mhk_index task, int worker) {
  const rows *r = (const rows *)arg;
  const mhk_real *x = mhk_data(r->op->in[0]) + task * r->wide;
  mhk_real *mine = r->square + worker * r->wide;
  mhk_index i;
  for (i = 0; i < r->wide; i++) mine[i] = r->backward ? 2 * x[i] : x[i] * x[i];
  for (i = 0; i < r->wide; i++) {
    if (r->backward) r->op->in[0]->grad[task * r->wide + i] += mine[i] * r->op->out->grad[task * r->wide + i];
    else mhk_data(r->op->out)[task * r->wide + i] = mine[i];
  }
}
static void rows_run(const mhk_op *op, int backward) {
  rows r = {op, NULL, op->out->shape[1], backward};
  r.square = (mhk_real *)mhk_scratch(op, (size_t)mhk_threads(op->out->ctx) * (size_t)r.wide * sizeof(mhk_real));
  if (r.square) mhk_parallel(op, op->out->shape[0], row_task, &r);
}
static void rows_forward(const mhk_op *op) { rows_run(op, 0); }
static void rows_backward(const mhk_op *op) {
  if (mhk_wants_grad(op->tape, op->in[0])) rows_run(op, 1);
}
static mhk_tensor *rows_op(mhk_tape *t, mhk_tensor *x) {
  const mhk_custom_desc d = {1, &x, 2, x->shape, rows_forward, rows_backward, NULL, 0};
  return mhk_custom(t, &d);
}
BUILD(b_own_rows, rows_op(t, c->in[0]))

TEST(custom_ops_on_threads_with_scratch_memory) {
  op_case c;
  mhk_tensor *x, *y;
  size_t peak = 0;
  int i;
  start();
  mhk_set_threads(ctx, 3);
  x = P2(70, 40, 1);
  c = op(b_own_rows, x, NULL, NULL, NULL), check_gradients("rows on threads", &c);
  for (i = 0; i < 300; i++) {
    y = rows_op(tape, x);
    REQUIRE(y, "%s", mhk_message(ctx));
    CHECK(mhk_data(y)[2799] == mhk_data(x)[2799] * mhk_data(x)[2799], "wrong value");
    mhk_tape_reset(tape);
    if (i == 1) peak = mhk_memory_peak(ctx);
  }
  CHECK(mhk_memory_peak(ctx) == peak, "scratch memory grows from %lld to %lld bytes", (long long)peak,
        (long long)mhk_memory_peak(ctx));
  finish();
}

TEST(checker_sees_a_wrong_gradient) { /* the checker itself: a backward that is 1 % off is found, and where */
  op_case c;
  mhk_gradient_report r;
  mhk_tensor *x;
  mhk_real before[15];
  start();
  x = P3(1, 3, 5, 1);
  memcpy(before, mhk_data(x), sizeof before);
  c = op(b_square, x, NULL, NULL, NULL);
  CHECK(mhk_check_gradient(tape, scalar_of, &c, x, &r) <= NUMERIC, "square: %g", r.error);
  CHECK(r.checked == 15, "%lld of 15 checked", (long long)r.checked);
  CHECK_SAME("x after the check", mhk_data(x), before, 15);
  c = op(b_reshape, P3(20, 30, 2, 1), NULL, NULL, NULL);
  mhk_check_gradient(tape, scalar_of, &c, c.in[0], &r);
  CHECK(r.checked > 128 && r.checked <= 256, "%lld checked of 1200", (long long)r.checked);
  finish();
}

static void wrong_backward(const mhk_op *o) {
  mhk_index i;
  if (mhk_wants_grad(o->tape, o->in[0]))
    for (i = 0; i < o->out->count; i++) o->in[0]->grad[i] += (i == 4 ? (mhk_real)0.5 : (mhk_real)1) * o->out->grad[i];
}
static void copy_forward(const mhk_op *o) {
  memcpy(o->out->data, o->in[0]->data, sizeof(mhk_real) * (size_t)o->out->count);
}
static mhk_tensor *copy_op(mhk_tape *t, mhk_tensor *const *in, void (*backward)(const mhk_op *op)) {
  const mhk_custom_desc d = {1, in, 1, in[0]->shape, copy_forward, backward, NULL, 0};
  return mhk_custom(t, &d);
}
BUILD(b_wrong, copy_op(t, c->in, wrong_backward))
static void writing_backward(const mhk_op *o) { /* right, but for = in place of += */
  mhk_index i;
  if (mhk_wants_grad(o->tape, o->in[0]))
    for (i = 0; i < o->out->count; i++) o->in[0]->grad[i] = o->out->grad[i];
}
BUILD(b_writes, copy_op(t, c->in, writing_backward))
TEST(checker_finds_the_element) {
  op_case c;
  mhk_gradient_report r;
  start();
  c = op(b_wrong, P1(9, 1), NULL, NULL, NULL);
  CHECK(mhk_check_gradient(tape, scalar_of, &c, c.in[0], &r) > 0.01, "a wrong gradient passed with error %g", r.error);
  CHECK(r.at == 4, "the worst element is %lld, not 4", (long long)r.at);
  finish();
}

TEST(checker_finds_a_gradient_that_is_written_and_not_added_to) {
  op_case c;
  mhk_gradient_report r;
  start();
  c = op(b_writes, P1(9, 1), NULL, NULL, NULL);
  CHECK(mhk_check_gradient(tape, scalar_of, &c, c.in[0], &r) > 0.5, "it passed with error %g", r.error);
  finish();
}

TEST(views) {
  const mhk_index flat = 30, two[2] = {6, 5};
  mhk_tensor *x, *a, *b;
  mhk_index i;
  int wrong = 0;
  start();
  x = P3(2, 3, 5, 1);
  a = mhk_reshape(tape, x, 1, &flat);
  b = mhk_rows(tape, mhk_reshape(tape, x, 2, two), 2, 3);
  CHECK(a && a->data == x->data && a->count == 30, "a view shares the memory");
  CHECK(b && mhk_data(b) == mhk_data(x) + 10 && b->shape[0] == 3 && b->base &&
            mhk_data(b->base) + b->base_offset == mhk_data(b),
        "rows of a view");
  mhk_backward(tape, mhk_add(tape, mhk_sum(tape, mhk_scale(tape, a, 2)), mhk_sum(tape, mhk_scale(tape, b, 3))));
  for (i = 0; i < 30; i++) wrong += !x->grad || x->grad[i] != (i >= 10 && i < 25 ? 5 : 2);
  CHECK(!wrong, "%d gradients are wrong", wrong);
  CHECK(mhk_rows(tape, x, 1, 2) == NULL && mhk_failed(ctx), "rows out of range");
  mhk_clear_error(ctx);
  finish();
}

TEST(no_grad_makes_no_records) {
  mhk_tensor *x, *w;
  mhk_tape_mark before, after;
  mhk_model *m;
  int32_t tokens[10];
  int i, recorded;
  start();
  x = P2(3, 5, 1), w = P2(4, 5, 2);
  before = mhk_tape_here(tape);
  recorded = mhk_tape_record(tape, 0);
  CHECK(recorded == 1, "recording is on at first");
  mhk_linear(tape, x, w, NULL);
  after = mhk_tape_here(tape);
  CHECK(after.records == before.records, "%lld records while recording is off",
        (long long)(after.records - before.records));
  CHECK(mhk_tape_record(tape, 1) == 0, "recording was off");
  frozen(x), frozen(w);
  mhk_linear(tape, x, w, NULL);
  after = mhk_tape_here(tape);
  CHECK(after.records == before.records, "%lld records of constants", (long long)(after.records - before.records));
  w->requires_grad = 1;
  mhk_backward(tape, mhk_sum(tape, mhk_gelu(tape, mhk_linear(tape, x, w, NULL))));
  CHECK(w->grad && w->grad[0] != 0, "the weight has a gradient");
  CHECK(!x->grad || x->grad[0] == 0, "a constant got a gradient");
  /* a saved and loaded model is frozen: no record at all, no gradient memory */
  mhk_tape_reset(tape);
  m = model_new(ctx, HYBRID, 3);
  mhk_save(m, test_path("frozen"), MHK_F32);
  m = mhk_load(ctx, test_path("frozen"));
  REQUIRE_OK(ctx);
  model_tokens(tokens, 10, 31, 1);
  before = mhk_tape_here(tape);
  mhk_forward(tape, m, tokens, 2, 5, NULL);
  after = mhk_tape_here(tape);
  CHECK(after.records == before.records, "a frozen model leaves %lld records",
        (long long)(after.records - before.records));
  for (i = 0; i < mhk_model_count(m); i++)
    CHECK(!mhk_model_at(m, i)->grad && !mhk_model_at(m, i)->requires_grad, "%s is not frozen",
          mhk_model_at(m, i)->name);
  finish();
}

TEST(frozen_parameters_get_no_gradient) {
  mhk_model *m;
  mhk_tensor *logits;
  int32_t tokens[10], labels[10];
  int i;
  start();
  m = model_new(ctx, HYBRID, 3);
  for (i = 0; i < mhk_model_count(m); i += 2) mhk_model_at(m, i)->requires_grad = 0;
  model_zero_grads(m);
  model_tokens(tokens, 10, 31, 1);
  model_tokens(labels, 10, 31, 2);
  logits = mhk_forward(tape, m, tokens, 2, 5, NULL);
  mhk_backward(tape, mhk_cross_entropy(tape, logits, labels));
  REQUIRE_OK(ctx);
  for (i = 0; i < mhk_model_count(m); i++) {
    const mhk_tensor *x = mhk_model_at(m, i);
    double sum = 0;
    mhk_index j;
    for (j = 0; x->grad && j < x->count; j++) sum += fabs((double)x->grad[j]);
    if (i % 2 == 0)
      CHECK(sum == 0, "%s is frozen and has a gradient", x->name);
    else
      CHECK(sum > 0 || strstr(x->name, "k_proj.bias"), "%s has no gradient", x->name);
  }
  finish();
}

TEST(marks) {
  mhk_tensor *x, *y;
  mhk_tape_mark mark;
  int i;
  start();
  x = P2(3, 5, 1);
  y = mhk_square(tape, x);
  mark = mhk_tape_here(tape);
  for (i = 0; i < 100; i++) {
    mhk_tensor *z = mhk_exp(tape, mhk_scale(tape, y, 2));
    CHECK(z != NULL, "%s", mhk_message(ctx));
    mhk_tape_rewind(tape, mark);
  }
  mhk_backward(tape, mhk_sum(tape, y));
  for (i = 0; i < 15; i++)
    CHECK(x->grad && fabs((double)x->grad[i] - 2 * (double)mhk_data(x)[i]) < 1e-6, "element %d", i);
  finish();
}

static mhk_tensor *some_block(mhk_tape *t, void *user, mhk_tensor *x) {
  mhk_tensor **p = (mhk_tensor **)user;
  mhk_tensor *u = mhk_layer_norm(t, x, p[0], p[1], 1e-5);
  return mhk_linear_add(t, mhk_linear_gelu(t, u, p[2], p[3]), p[4], NULL, x);
}

TEST(recompute_is_the_same) {
  mhk_tensor *p[5], *x, *y, *in[6];
  mhk_real *grads[6], value[21];
  int i, pass;
  start();
  p[0] = P1(7, 1), p[1] = P1(7, 2), p[2] = P2(11, 7, 3), p[3] = P1(11, 4), p[4] = P2(7, 11, 5);
  x = P2(3, 7, 6);
  for (i = 0; i < 5; i++) in[i] = p[i];
  in[5] = x;
  for (pass = 0; pass < 2; pass++) {
    y = x;
    for (i = 0; i < 3; i++) y = pass ? mhk_recompute(tape, some_block, p, y) : some_block(tape, p, y);
    if (pass)
      CHECK_SAME("value", mhk_data(y), value, 21);
    else
      memcpy(value, mhk_data(y), sizeof value);
    mhk_backward(tape, mhk_sum(tape, mhk_square(tape, y)));
    for (i = 0; i < 6; i++)
      if (pass) {
        CHECK_SAME("gradient", in[i]->grad, grads[i], in[i]->count);
        free(grads[i]);
      } else {
        grads[i] = (mhk_real *)malloc(sizeof **grads * (size_t)in[i]->count);
        memcpy(grads[i], in[i]->grad, sizeof **grads * (size_t)in[i]->count);
        mhk_zero_grad(in[i]);
      }
    mhk_tape_reset(tape);
  }
  finish();
}

/* --------------------------------------------------------------------------------- whole models */

static mhk_real *forward_backward(mhk_tape *t, mhk_model *m, const int32_t *tokens, mhk_index B, mhk_index T,
                                  const mhk_forward_desc *desc, uint64_t seed, mhk_real **grads, mhk_index *n_grads) {
  mhk_tensor *logits;
  mhk_real *out, *dy;
  model_zero_grads(m);
  logits = mhk_forward(t, m, tokens, B, T, desc);
  if (!logits) return NULL;
  out = (mhk_real *)malloc(sizeof *out * (size_t)logits->count);
  memcpy(out, logits->data, sizeof *out * (size_t)logits->count);
  dy = (mhk_real *)malloc(sizeof *dy * (size_t)logits->count);
  test_fill(dy, logits->count, -1, 1, seed);
  mhk_backward_from(t, logits, dy);
  free(dy);
  *grads = model_numbers(m, 1, n_grads);
  mhk_tape_reset(t);
  return out;
}

TEST(models_recompute) {
  int kind;
  start();
  for (kind = 0; kind < MODEL_KINDS; kind++) {
    mhk_model *m = model_new(ctx, kind, 3);
    int32_t tokens[74];
    mhk_real *a, *b, *ga, *gb;
    mhk_index n;
    mhk_forward_desc d;
    memset(&d, 0, sizeof d);
    model_tokens(tokens, 74, 31, 1);
    a = forward_backward(tape, m, tokens, 2, 37, NULL, 7, &ga, &n);
    d.recompute = 1;
    b = forward_backward(tape, m, tokens, 2, 37, &d, 7, &gb, &n);
    REQUIRE(a && b, "%s: %s", model_kind_name(kind), mhk_message(ctx));
    CHECK_SAME(model_kind_name(kind), b, a, 74 * 31);
    CHECK_SAME(model_kind_name(kind), gb, ga, n);
    free(a), free(b), free(ga), free(gb);
    mhk_model_destroy(m);
  }
  finish();
}

TEST(recompute_with_frozen_layers_below) {
  mhk_model *m;
  int32_t tokens[9];
  mhk_real *out[2], *grads[2];
  mhk_index n;
  mhk_forward_desc d;
  int i;
  start();
  m = model_new(ctx, HYBRID, 3);
  for (i = 0; i < mhk_model_count(m); i++) { /* only the last block learns */
    mhk_tensor *x = mhk_model_at(m, i);
    x->requires_grad = strstr(x->name, ".2.") != NULL;
  }
  memset(&d, 0, sizeof d);
  model_tokens(tokens, 9, 31, 1);
  for (d.recompute = 0; d.recompute < 2; d.recompute++) {
    out[d.recompute] = forward_backward(tape, m, tokens, 1, 9, &d, 7, &grads[d.recompute], &n);
    REQUIRE_OK(ctx);
  }
  CHECK_SAME("logits", out[1], out[0], 9 * 31);
  CHECK_SAME("gradients", grads[1], grads[0], n);
  for (i = 0; i < 2; i++) free(out[i]), free(grads[i]);
  finish();
}

TEST(models_packed_is_separate) {
  static const mhk_index lengths[] = {5, 1, 17, 2, 12}; /* 37 tokens */
  int kind;
  start();
  for (kind = 0; kind < MODEL_KINDS; kind++) {
    mhk_model *m = model_new(ctx, kind, 3);
    int32_t tokens[37], doc[37];
    mhk_real *packed, *grads, *sum, dy[37 * 31];
    mhk_index n, i, at = 0;
    size_t d;
    mhk_forward_desc f;
    memset(&f, 0, sizeof f);
    model_tokens(tokens, 37, 31, 1);
    for (d = 0, i = 0; d < 5; d++)
      for (at = 0; at < lengths[d]; at++) doc[i++] = (int32_t)(d % 2);
    f.doc = doc;
    packed = forward_backward(tape, m, tokens, 1, 37, &f, 7, &grads, &n);
    REQUIRE(packed != NULL, "%s: %s", model_kind_name(kind), mhk_message(ctx));
    test_fill(dy, 37 * 31, -1, 1, 7);
    model_zero_grads(m);
    for (d = 0, at = 0; d < 5; at += lengths[d++]) {
      mhk_tensor *logits = mhk_forward(tape, m, tokens + at, 1, lengths[d], NULL);
      char name[100];
      snprintf(name, sizeof name, "%s, document %d", model_kind_name(kind), (int)d);
      CHECK_CLOSE(name, packed + at * 31, mhk_data(logits), lengths[d] * 31, CLOSE);
      mhk_backward_from(tape, logits, dy + at * 31); /* adds to what is there */
      mhk_tape_reset(tape);
    }
    sum = model_numbers(m, 1, &n);
    CHECK_CLOSE(model_kind_name(kind), grads, sum, n, CLOSE_GRAD);
    free(packed), free(grads), free(sum);
    mhk_model_destroy(m);
  }
  finish();
}

TEST(models_gradients) { /* the whole model against finite differences, a few parameters of each kind */
  int kind, i;
  start();
  for (kind = 0; kind < MODEL_KINDS; kind++) {
    mhk_model *m = model_new(ctx, kind, 3);
    int32_t tokens[14], labels[14];
    mhk_real *analytic;
    mhk_index n, at = 0;
    double worst = 0, scale = 0;
    const char *worst_name = "";
    model_tokens(tokens, 14, 31, 1);
    model_tokens(labels, 14, 31, 2);
    model_zero_grads(m);
    mhk_backward(tape, mhk_cross_entropy(tape, mhk_forward(tape, m, tokens, 2, 7, NULL), labels));
    analytic = model_numbers(m, 1, &n);
    for (i = 0; i < n; i++) scale = fmax(scale, fabs((double)analytic[i]));
    mhk_tape_reset(tape);
    mhk_tape_record(tape, 0);
    for (i = 0; i < mhk_model_count(m); at += mhk_model_at(m, i++)->count) {
      mhk_tensor *x = mhk_model_at(m, i);
      const mhk_index j = x->count / 3;
      const double h = IS_DOUBLE ? 1e-5 : 2e-2;
      const mhk_real old = mhk_data(x)[j];
      double up, down, error;
      mhk_data(x)[j] = (mhk_real)((double)old + h);
      up = mhk_value(mhk_cross_entropy(tape, mhk_forward(tape, m, tokens, 2, 7, NULL), labels));
      mhk_data(x)[j] = (mhk_real)((double)old - h);
      down = mhk_value(mhk_cross_entropy(tape, mhk_forward(tape, m, tokens, 2, 7, NULL), labels));
      mhk_data(x)[j] = old;
      error = fabs((up - down) / (2 * h) - (double)analytic[at + j]) / scale;
      if (error > worst || error != error) worst = error, worst_name = x->name;
      mhk_tape_reset(tape);
    }
    mhk_tape_record(tape, 1);
    CHECK(worst <= (IS_DOUBLE ? 1e-6 : 3e-2), "%s: %s is off by %.2e of the largest gradient", model_kind_name(kind),
          worst_name, worst);
    free(analytic);
    mhk_model_destroy(m);
  }
  finish();
}

static mhk_model *mixer_of;
static mhk_tensor *b_mixer(mhk_tape *t, op_case *c) {
  mhk_forward_desc d;
  memset(&d, 0, sizeof d);
  d.doc = c->doc;
  return mhk_forward_mixer(t, mixer_of, 1, c->in[0], &d);
}

/* gates, windows, kept heads: every number of what comes in and of the layer's parameters */
TEST(gradients_of_mixers_with_options) {
  static const int32_t doc[18] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2};
  int kind, packed, i;
  start();
  for (kind = GATED; kind < MODEL_KINDS; kind++)
    for (packed = 0; packed < 2; packed++) {
      mhk_model *m = mixer_of = model_new(ctx, kind, 3);
      op_case c = op(b_mixer, P3(packed ? 1 : 2, packed ? 18 : 9, mhk_model_config(m)->d_model, 1), NULL, NULL, NULL);
      if (packed) c.doc = doc;
      check_gradients(model_kind_name(kind), &c);
      for (i = 0; i < mhk_model_count(m); i++) {
        mhk_gradient_report r;
        mhk_tensor *x = mhk_model_at(m, i);
        if (!strstr(x->name, "layers.1.mixer")) continue;
        CHECK(mhk_check_gradient(tape, scalar_of, &c, x, &r) <= NUMERIC,
              "%s, %s: gradient of element %lld is %.9g, finite differences give %.9g %s", model_kind_name(kind),
              x->name, (long long)r.at, r.analytic, r.numeric, mhk_message(ctx));
        mhk_tape_reset(tape);
      }
      mhk_model_destroy(m);
    }
  finish();
}

TEST(residuals_and_pieces) { /* mhk_forward is its pieces */
  int kind, l;
  start();
  mhk_tape_record(tape, 0);
  for (kind = 0; kind < MODEL_KINDS; kind++) {
    mhk_model *m = model_new(ctx, kind, 3);
    const mhk_config *c = mhk_model_config(m);
    int32_t tokens[14];
    mhk_tensor *residuals[8], *x, *logits;
    mhk_forward_desc f;
    memset(&f, 0, sizeof f);
    f.residuals = residuals;
    model_tokens(tokens, 14, 31, 1);
    logits = mhk_forward(tape, m, tokens, 2, 7, &f);
    x = mhk_forward_embedding(tape, m, tokens, 2, 7);
    REQUIRE(logits && x, "%s: %s", model_kind_name(kind), mhk_message(ctx));
    for (l = 0; l < c->n_layer; l++) {
      mhk_tensor *u, *y, *M;
      CHECK_SAME(model_kind_name(kind), mhk_data(residuals[l]), mhk_data(x), x->count);
      u = mhk_forward_norm(tape, m, l, x);
      y = mhk_forward_mixer(tape, m, l, u, NULL);
      REQUIRE(u && y, "%s: %s", model_kind_name(kind), mhk_message(ctx));
      CHECK(y->rank == 3 && y->shape[2] == c->d_model, "%s: shape of the mixer's output", model_kind_name(kind));
      M = mhk_forward_matrix(tape, m, l, u, NULL);
      CHECK(M && M->rank == 4 && M->shape[2] == 7 && M->shape[3] == 7, "%s: shape of the matrix: %s",
            model_kind_name(kind), mhk_message(ctx));
      y = mhk_forward_mlp(tape, m, l, u, mhk_add(tape, x, y));
      x = mhk_forward_block(tape, m, l, x, NULL);
      REQUIRE(x && y, "%s: %s", model_kind_name(kind), mhk_message(ctx));
      CHECK_CLOSE(model_kind_name(kind), mhk_data(y), mhk_data(x), x->count, IS_DOUBLE ? 1e-12 : 1e-5);
    }
    CHECK_SAME(model_kind_name(kind), mhk_data(residuals[c->n_layer]), mhk_data(x), x->count);
    CHECK_SAME(model_kind_name(kind), mhk_data(mhk_forward_head(tape, m, x)), mhk_data(logits), logits->count);
    mhk_tape_reset(tape);
    mhk_model_destroy(m);
  }
  finish();
}

static mhk_tensor *layer_tensor(mhk_model *m, int layer, const char *name) {
  const int attention = mhk_model_config(m)->mixer[layer] == MHK_MIXER_ATTENTION;
  char full[160];
  if (mhk_model_config(m)->arch == MHK_ARCH_PHI || mhk_model_config(m)->arch == MHK_ARCH_LLAMA)
    snprintf(full, sizeof full, "model.layers.%d.self_attn.%s", layer, name);
  else
    snprintf(full, sizeof full, "backbone.layers.%d.mixer.%s%s", layer, attention ? "self_attn." : "", name);
  return mhk_model_find(m, full);
}

/* RMSNorm of each n of E features for itself, in place */
static void norm_groups(mhk_tensor *y, mhk_index E, mhk_index n, double eps, const mhk_tensor *weight) {
  mhk_real *v = mhk_data(y);
  mhk_index i, j;
  for (i = 0; i < y->count; i += n) {
    double square = 0;
    for (j = 0; j < n; j++) square += (double)v[i + j] * (double)v[i + j] / (double)n;
    for (j = 0; j < n; j++)
      v[i + j] = (mhk_real)((double)v[i + j] / sqrt(square + eps) * (double)mhk_data(weight)[i % E + j]);
  }
}

TEST(mixers_are_their_matrices) { /* a mixer's output from its matrix and public ops alone */
  const mhk_index B = 2, T = 19;
  int kind, l;
  start();
  mhk_tape_record(tape, 0);
  for (kind = 0; kind < MODEL_KINDS; kind++) {
    mhk_model *m = model_new(ctx, kind, 3);
    const mhk_config *c = mhk_model_config(m);
    for (l = 0; l < c->n_layer; l++) {
      const int attention = c->mixer[l] == MHK_MIXER_ATTENTION, mamba2 = c->mixer[l] == MHK_MIXER_MAMBA2;
      const mhk_index E = (mhk_index)c->ssm_heads * c->ssm_head_dim, GN = (mhk_index)c->ssm_groups * c->d_state;
      mhk_tensor *u = P3(B, T, c->d_model, 40 + l), *M = mhk_forward_matrix(tape, m, l, u, NULL), *x, *z = NULL, *y,
                 *out;
      mhk_index shape[4], i;
      double *md, *mixed;
      REQUIRE(M != NULL, "%s: %s", model_kind_name(kind), mhk_message(ctx));
      shape[0] = B, shape[1] = T, shape[2] = attention ? c->n_kv_head : c->ssm_heads,
      shape[3] = attention ? c->head_dim : c->ssm_head_dim;
      if (attention)
        x = mhk_linear(tape, u, layer_tensor(m, l, "v_proj.weight"), layer_tensor(m, l, "v_proj.bias"));
      else {
        mhk_tensor *p = mhk_linear(tape, u, layer_tensor(m, l, "in_proj.weight"), layer_tensor(m, l, "in_proj.bias"));
        z = mhk_columns(tape, p, mamba2 ? 0 : E + 2 * GN, E);
        x = conv(tape, mhk_columns(tape, p, mamba2 ? E : 0, E + 2 * GN), layer_tensor(m, l, "conv1d.weight"),
                       layer_tensor(m, l, "conv1d.bias"), c->conv_silu, NULL);
        x = mhk_columns(tape, x, 0, E);
      }
      x = mhk_reshape(tape, x, 4, shape);
      REQUIRE(x != NULL, "%s: %s", model_kind_name(kind), mhk_message(ctx));
      md = doubles(M->count);
      for (i = 0; i < M->count; i++) md[i] = (double)mhk_data(M)[i];
      mixed = plain_mix(md, x, M->shape[1]);
      shape[2] = M->shape[1] * shape[3];
      y = mhk_tensor_new(tape, 3, shape, NULL);
      for (i = 0; y && i < y->count; i++) mhk_data(y)[i] = (mhk_real)mixed[i];
      if (attention)
        out = mhk_linear(tape, y, layer_tensor(m, l, kind < LLAMA ? "dense.weight" : "o_proj.weight"),
                          layer_tensor(m, l, kind < LLAMA ? "dense.bias" : "o_proj.bias"));
      else {
        y = mhk_gate(tape, y, z, layer_tensor(m, l, "z_bias"));
        if (mamba2 && y) norm_groups(y, E, E / c->ssm_groups, c->norm_eps, layer_tensor(m, l, "norm.weight"));
        out = mhk_linear(tape, y, layer_tensor(m, l, "out_proj.weight"), layer_tensor(m, l, "out_proj.bias"));
      }
      REQUIRE(out != NULL, "%s: %s", model_kind_name(kind), mhk_message(ctx));
      CHECK_CLOSE(model_kind_name(kind), mhk_data(mhk_forward_mixer(tape, m, l, u, NULL)), mhk_data(out), out->count,
                  2 * CLOSE);
      free(md), free(mixed);
    }
    mhk_tape_reset(tape);
    mhk_model_destroy(m);
  }
  finish();
}

/* ----------------------------------------------------------------------------- instruction sets */

TEST(instruction_sets_agree) {
  static const mhk_isa isas[] = {MHK_ISA_SCALAR, MHK_ISA_BEST, MHK_ISA_AVX2,
                                 MHK_ISA_AVX512, MHK_ISA_NEON, MHK_ISA_WASM};
  mhk_real *want[MODEL_KINDS], *want_grads[MODEL_KINDS];
  size_t s;
  int kind;
  memset(want, 0, sizeof want);
  for (s = 0; s < sizeof isas / sizeof *isas; s++) {
    ctx = test_machine(isas[s], MHK_BF16_BEST, 1);
    if (!ctx) continue;
    tape = mhk_tape_create(ctx);
    for (kind = 0; kind < MODEL_KINDS; kind++) {
      mhk_model *m = model_new(ctx, kind, 3);
      int32_t tokens[74];
      mhk_real *a, *g;
      mhk_index n;
      model_tokens(tokens, 74, 31, 1);
      a = forward_backward(tape, m, tokens, 2, 37, NULL, 7, &g, &n);
      REQUIRE(a != NULL, "%s: %s", mhk_isa_name(ctx), mhk_message(ctx));
      if (s == 0)
        want[kind] = a, want_grads[kind] = g;
      else {
        CHECK_CLOSE(mhk_isa_name(ctx), a, want[kind], 74 * 31, CLOSE);
        CHECK_CLOSE(mhk_isa_name(ctx), g, want_grads[kind], n, CLOSE_GRAD);
        free(a), free(g);
      }
      mhk_model_destroy(m);
    }
    finish();
  }
  for (kind = 0; kind < MODEL_KINDS; kind++) free(want[kind]), free(want_grads[kind]);
}

/* A log decay of minus infinity, or too large for any sum, forgets what came before, in every form
   and its gradient; the decays after it keep their digits. */
static void check_resets(mhk_index T) {
  const mhk_index B = 2, H = 4, G = 2, P = 5, N = 7;
  mhk_tensor *in[5], *q = P4(B, T, H, P, 7), *k = P4(B, T, H, P, 8), *y, *final_state, *loss[2];
  double *want = doubles(B * T * H * P), *state = doubles(B * H * P * N);
  mhk_real *grads[3][5], *dy = (mhk_real *)malloc(sizeof *dy * (size_t)(B * T * H * P));
  mhk_index j;
  int i, form;
  frozen(q), frozen(k);
  in[0] = P4(B, T, H, P, 1), in[1] = parameter5(3, B, T, H, 1, -1, -0.001, 2), in[2] = P4(B, T, G, N, 3),
  in[3] = P4(B, T, G, N, 4), in[4] = P1(H, 5);
  for (j = 0; j < in[1]->count; j++)
    if (j % 11 == 0 || j % 37 == 4 || (j / H) % T == 16)
      mhk_data(in[1])[j] = j % 3 ? -(mhk_real)INFINITY : (mhk_real)-1e30;
  plain_ssd(in[0], in[1], in[2], in[3], in[4], NULL, NULL, want, state);
  test_fill(dy, B * T * H * P, -1, 1, 6);
  for (form = 0; form < 3; form++) {
    if (form < 2) {
      mhk_ssd_desc d;
      memset(&d, 0, sizeof d);
      d.D = in[4], d.form = form ? MHK_SSD_RECURRENT : MHK_SSD_CHUNKED, d.chunk = 16, d.final_state = &final_state;
      y = mhk_ssd(tape, in[0], in[1], in[2], in[3], &d);
      CHECK_CLOSE_TO_DOUBLE("final state", mhk_data(final_state), state, B * H * P * N, CLOSE);
      CHECK_CLOSE_TO_DOUBLE(form ? "recurrent" : "chunked", mhk_data(y), want, B * T * H * P, CLOSE);
    } else
      y = mhk_swap_heads(tape, mhk_matmul(tape, mhk_ssd_matrix(tape, in[1], in[2], in[3], in[4], NULL),
                                          mhk_swap_heads(tape, in[0]), 0));
    mhk_backward_from(tape, y, dy);
    for (i = 0; i < 5; i++) {
      grads[form][i] = (mhk_real *)malloc(sizeof ***grads * (size_t)in[i]->count);
      memcpy(grads[form][i], in[i]->grad, sizeof ***grads * (size_t)in[i]->count);
      mhk_zero_grad(in[i]);
    }
  }
  for (i = 0; i < 5; i++) { /* NaN is never close */
    CHECK_CLOSE("chunked, gradient", grads[0][i], grads[2][i], in[i]->count, CLOSE_GRAD);
    CHECK_CLOSE("recurrent, gradient", grads[1][i], grads[2][i], in[i]->count, CLOSE_GRAD);
  }
  mhk_tensor *const both[6] = {in[1], in[2], in[3], in[4], q, k};
  for (form = 0; form < 2; form++) {
    loss[form] = form ? mhk_matrix_distance(tape, mhk_ssd_matrix(tape, in[1], in[2], in[3], in[4], NULL),
                                            mhk_attention_matrix(tape, q, k, NULL))
                      : orientation(tape, both, NULL, NULL);
    mhk_backward(tape, loss[form]);
    for (i = 1; i < 5; i++) {
      memcpy(grads[form][i], in[i]->grad, sizeof ***grads * (size_t)in[i]->count);
      mhk_zero_grad(in[i]);
    }
  }
  CHECK(fabs(mhk_value(loss[0]) - mhk_value(loss[1])) <= 10 * CLOSE * mhk_value(loss[1]),
        "fused %.9g, from the matrices %.9g", mhk_value(loss[0]), mhk_value(loss[1]));
  for (i = 1; i < 5; i++) CHECK_CLOSE("orientation's gradient", grads[0][i], grads[1][i], in[i]->count, CLOSE_GRAD);
  for (form = 0; form < 3; form++)
    for (i = 0; i < 5; i++) free(grads[form][i]);
  free(dy), free(want), free(state);
}

/* what is no decay: NaN gives NaN from its token on, a positive one grows, in every form */
static void check_odd_decays(void) {
  const mhk_index B = 1, T = 40, H = 2, P = 3, N = 4;
  mhk_tensor *x = P4(B, T, H, P, 1), *a = parameter5(3, B, T, H, 1, -0.1, 0.1, 2), *Bm = P4(B, T, H, N, 3),
             *Cm = P4(B, T, H, N, 4), *y;
  double *want = doubles(B * T * H * P), *state = doubles(B * H * P * N);
  mhk_ssd_desc d;
  int form;
  mhk_index i;
  mhk_tape_record(tape, 0);
  memset(&d, 0, sizeof d);
  plain_ssd(x, a, Bm, Cm, NULL, NULL, NULL, want, state);
  for (form = 0; form < 2; form++) {
    d.form = form ? MHK_SSD_RECURRENT : MHK_SSD_CHUNKED;
    y = mhk_ssd(tape, x, a, Bm, Cm, &d);
    CHECK_CLOSE_TO_DOUBLE("decays of both signs", mhk_data(y), want, B * T * H * P, CLOSE);
  }
  mhk_data(a)[5 * H] = (mhk_real)NAN;
  for (form = 0; form < 2; form++) {
    mhk_index nans = 0;
    d.form = form ? MHK_SSD_RECURRENT : MHK_SSD_CHUNKED;
    y = mhk_ssd(tape, x, a, Bm, Cm, &d);
    for (i = 0; i < T * P; i++) nans += mhk_data(y)[i / P * H * P + i % P] != mhk_data(y)[i / P * H * P + i % P];
    CHECK(nans == (T - 5) * P, "%s: %lld of %lld numbers from token 5 on are NaN", form ? "recurrent" : "chunked",
          (long long)nans, (long long)((T - 5) * P));
  }
  mhk_tape_record(tape, 1);
  free(want), free(state);
}

TEST(decays_that_forget) {
  static const mhk_isa isas[] = {MHK_ISA_SCALAR, MHK_ISA_AVX2, MHK_ISA_AVX512, MHK_ISA_NEON, MHK_ISA_WASM};
  static const mhk_index lengths[] = {1, 15, 16, 17, 64, 65, 131};
  size_t s, l;
  for (s = 0; s < sizeof isas / sizeof *isas; s++) {
    mhk_context_desc d;
    memset(&d, 0, sizeof d);
    d.isa = isas[s];
    ctx = mhk_create(&d);
    tape = mhk_tape_create(ctx);
    if (tape) { /* else this machine has not got it */
      for (l = 0; l < sizeof lengths / sizeof *lengths; l++) check_resets(lengths[l]), mhk_tape_reset(tape);
      check_odd_decays();
      CHECK_OK(ctx);
    }
    mhk_destroy(ctx);
  }
}

/* three parameters of which one has no gradient, on one thread and on three, against the formula in
   double */
TEST(adamw) {
  enum { MANY = 70001, FEW = 5, STILL = 3, ALL = MANY + FEW + STILL };
  static mhk_real first[ALL];
  mhk_index sizes[3] = {MANY, STILL, FEW};
  int threads, i, keep;
  for (threads = 1; threads <= 3; threads += 2)
    for (keep = 0; keep < 2; keep++) {
      mhk_context *ctx = mhk_create(NULL);
      mhk_tensor *x[3];
      mhk_adamw_desc d;
      mhk_real *moments = (mhk_real *)calloc(2 * ALL, sizeof *moments);
      double *p = (double *)malloc(4 * ALL * sizeof *p), *m = p + ALL, *v = m + ALL, *g = v + ALL;
      mhk_index at = 0, j;
      int64_t step;
      uint64_t seed = 7;
      if (!moments || !p) exit(3);
      mhk_set_threads(ctx, threads);
      memset(&d, 0, sizeof d);
      d.lr = 0.01;
      d.beta2 = 0.95;
      d.weight_decay = 0.1;
      d.scale = 0.5;
      d.keep_grad = keep;
      for (i = 0; i < 3; at += sizes[i++]) {
        x[i] = mhk_parameter(ctx, "x", 1, &sizes[i], NULL);
        for (j = 0; j < sizes[i]; j++) {
          mhk_data(x[i])[j] = (mhk_real)test_uniform(&seed, -1, 1);
          p[at + j] = (double)mhk_data(x[i])[j];
          m[at + j] = v[at + j] = 0;
          if (i != 1) x[i]->grad[j] = (mhk_real)(0.25 + (double)((i + j) % 5));
        }
      }
      x[1]->grad = NULL;
      for (step = 1; step <= 3; step++) {
        mhk_adamw_desc all = d; /* as zeros of the description are understood */
        all.beta1 = 0.9;
        all.eps = 1e-8;
        for (i = 0, at = 0; i < 3; at += sizes[i++]) {
          for (j = 0; i != 1 && j < sizes[i]; j++) g[j] = (double)x[i]->grad[j];
          if (i != 1) mhk__ref_adamw((int)sizes[i], &all, (int)step, g, p + at, m + at, v + at);
        }
        CHECK(mhk_adamw(ctx, 3, x, moments, step, &d) == MHK_OK, "%s", mhk_message(ctx));
        for (i = 0, at = 0; i < 3; i += 2) /* gradients are zeros afterwards, or as they were */
          for (j = 0; j < sizes[i]; j++) at += (double)x[i]->grad[j] != (keep ? 0.25 + (double)((i + j) % 5) : 0);
        CHECK(at == 0, "%lld gradients are not what they should be", (long long)at);
      }
      for (i = 0, at = 0; i < 3; at += sizes[i++]) {
        CHECK_CLOSE_TO_DOUBLE("adamw", mhk_data(x[i]), p + at, sizes[i], 1e-6);
        if (keep == 0 && threads == 1) memcpy(first + at, mhk_data(x[i]), (size_t)sizes[i] * sizeof(mhk_real));
        if (keep == 0 && threads > 1) CHECK_SAME("adamw on three threads", mhk_data(x[i]), first + at, sizes[i]);
      }
      CHECK(mhk_adamw(ctx, 0, NULL, NULL, 1, &d) == MHK_OK, "%s", mhk_message(ctx));
      CHECK(mhk_adamw(ctx, 3, x, moments, 0, &d) == MHK_ERROR_ARGUMENT, "%s", mhk_message(ctx));
      mhk_clear_error(ctx);
      d.beta1 = 1;
      CHECK(mhk_adamw(ctx, 3, x, moments, 1, &d) == MHK_ERROR_ARGUMENT, "%s", mhk_message(ctx));
      mhk_clear_error(ctx);
      d.beta1 = 0;
      CHECK(mhk_adamw(ctx, 3, x, NULL, 1, &d) == MHK_ERROR_ARGUMENT, "%s", mhk_message(ctx));
      mhk_clear_error(ctx);
      x[2] = NULL;
      CHECK(mhk_adamw(ctx, 3, x, moments, 1, &d) == MHK_ERROR_ARGUMENT, "%s", mhk_message(ctx));
      mhk_destroy(ctx);
      free(moments);
      free(p);
    }
}

int main(int argc, char **argv) {
  test_begin(argc, argv);
  RUN(adamw);
  RUN(gradients_elementwise);
  RUN(gradients_products);
  RUN(gradients_mixers);
  RUN(gradients_losses);
  RUN(values_elementwise);
  RUN(values_extremes);
  RUN(values_linear);
  RUN(values_linear_weight_gradient);
  RUN(values_empty);
  RUN(values_products);
  RUN(values_norms);
  RUN(values_moves);
  RUN(values_losses);
  RUN(values_rotary);
  RUN(values_attention);
  RUN(values_attention_in_windows);
  RUN(attention_in_windows_is_its_matrix_on_any_number_of_threads);
  RUN(a_window_of_everything_is_plain_attention);
  RUN(attention_is_its_matrix);
  RUN(values_conv1d);
  RUN(ssd_is_its_matrix);
  RUN(ssd_gradients_agree);
  RUN(ssd_long);
  RUN(decays_that_forget);
  RUN(matrix_orientation_is_fused);
  RUN(orientation_of_a_whole_mixer_is_that_of_its_parts);
  RUN(memory_of_matrix_orientation_grows_with_the_text_only);
  RUN(custom_ops);
  RUN(custom_ops_on_threads_with_scratch_memory);
  RUN(checker_sees_a_wrong_gradient);
  RUN(checker_finds_the_element);
  RUN(checker_finds_a_gradient_that_is_written_and_not_added_to);
  RUN(views);
  RUN(no_grad_makes_no_records);
  RUN(frozen_parameters_get_no_gradient);
  RUN(marks);
  RUN(recompute_is_the_same);
  RUN(models_recompute);
  RUN(recompute_with_frozen_layers_below);
  RUN(models_packed_is_separate);
  RUN(models_gradients);
  RUN(gradients_of_mixers_with_options);
  RUN(residuals_and_pieces);
  RUN(mixers_are_their_matrices);
  RUN(instruction_sets_agree);
  return test_end();
}
