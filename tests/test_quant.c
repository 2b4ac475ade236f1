/* Quantized weights: the layout, products with them on every instruction set, files, what
   quantizing costs. */
#define MOHAWK_REFERENCE
#include "models.h"

static const mhk_isa sets[] = {MHK_ISA_SCALAR, MHK_ISA_AVX2, MHK_ISA_AVX512, MHK_ISA_NEON, MHK_ISA_WASM};

/* ---- a quantized matrix of random bytes, and the numbers it stands for, as the reference tells
   them from the documented layout */

typedef struct matrix {
  mhk_quantized q;
  mhk_tensor t;
  unsigned char *bytes;
  uint16_t *scales;
  mhk_real *rest;
  double *values; /* (N,K) */
} matrix;

#define GUARD 64 /* bytes before and behind, which make any sum they get into NaN */

/* A quantized matrix of random integers and scales, with guards around them, and its values in
   double. */
static int matrix_new(matrix *m, mhk_context *ctx, mhk_dtype type, int group, mhk_index N, mhk_index K, mhk_index rest,
                      uint64_t seed) {
  const mhk_index rows = N - rest, blocks = (rows + 15) / 16, groups = K / group, scales = blocks * groups * 16;
  const mhk_index bytes = type == MHK_Q8 ? blocks * 16 * K : blocks * 8 * K;
  mhk_index i, n, k;
  memset(m, 0, sizeof *m);
  m->bytes = (unsigned char *)malloc((size_t)(bytes + 2 * GUARD + 1));
  m->scales = (uint16_t *)malloc((size_t)scales * 2 + 2 * GUARD);
  m->rest = (mhk_real *)malloc((size_t)(rest * K + 1) * sizeof *m->rest);
  m->values = (double *)malloc((size_t)(N * K + 1) * sizeof *m->values);
  if (!m->bytes || !m->scales || !m->rest || !m->values) return 0;
  for (i = 0; i < bytes + 2 * GUARD + 1; i++) m->bytes[i] = (unsigned char)test_random(&seed);
  for (i = 0; i < scales + GUARD; i++) m->scales[i] = 0x7E00;
  for (i = 0; i < scales; i++)
    m->scales[GUARD / 2 + i] =
        (uint16_t)(i % 7 == 3 ? test_random(&seed) & 0x83FF
                              : (test_random(&seed) & 0x83FF) | (8 + test_random(&seed) % 8) << 10);
  test_fill(m->rest, rest * K, -1, 1, seed + 1);
  m->q.q = m->bytes + GUARD + 1; /* no kernel may need alignment */
  m->q.scale = m->scales + GUARD / 2;
  m->q.rest = rest ? m->rest : NULL;
  m->q.rows = rows;
  m->q.group = group;
  for (n = 0; n < N; n++)
    for (k = 0; k < K; k++) m->values[n * K + k] = mhk__ref_dequantized(&m->q, type, K, n, k);
  m->t.dtype = type;
  m->t.rank = 2;
  for (i = 0; i < MHK_MAX_RANK; i++) m->t.shape[i] = 1;
  m->t.shape[0] = N;
  m->t.shape[1] = K;
  m->t.count = N * K;
  m->t.ctx = ctx;
  m->t.quantized = &m->q;
  m->t.data = m->bytes + GUARD + 1;
  m->t.name = "w";
  return 1;
}

static void matrix_free(matrix *m) {
  free(m->bytes);
  free(m->scales);
  free(m->rest);
  free(m->values);
}

/* x (M,K) with groups of very different size, one of zeros */
static mhk_real *rows_new(mhk_index M, mhk_index K, uint64_t seed) {
  mhk_real *x = (mhk_real *)malloc((size_t)(M * K + 1) * sizeof *x);
  mhk_index i;
  if (x) test_fill(x, M * K, -1, 1, seed);
  for (i = 0; x && i < M * K; i++) x[i] *= i / 32 % 5 == 4 ? 0 : (mhk_real)(i / 32 % 3 == 1 ? 100 : 0.25);
  return x;
}

static const mhk_real *product(mhk_context *ctx, mhk_tape *t, const matrix *w, mhk_index first, mhk_index N,
                               mhk_index M, const mhk_real *x, const mhk_real *bias, const mhk_real *residual) {
  const mhk_index shape[2] = {M, w->t.shape[1]}, out[2] = {M, N};
  mhk_tensor wt = w->t, *view, *in, *b;
  wt.ctx = ctx;
  mhk_tape_reset(t);
  mhk_tape_record(t, 0);
  in = mhk_tensor_new(t, 2, shape, x);
  b = bias ? mhk_tensor_new(t, 1, &N, bias) : NULL;
  view = mhk_rows(t, &wt, first, N);
  return mhk_data(residual ? mhk_linear_add(t, in, view, b, mhk_tensor_new(t, 2, out, residual))
                           : mhk_linear(t, in, view, b));
}

/* contexts of one and of four threads, with a tape each */
typedef struct pair {
  mhk_context *ctx, *four;
  mhk_tape *t, *t4;
} pair;

/* one product with everything that may follow it, against sums in double, and on four threads */
static void check_product(const pair *on, mhk_dtype type, int group, mhk_index N, mhk_index K, mhk_index rest,
                          mhk_index first, mhk_index M) {
  matrix w;
  const mhk_index rows = N - first;
  mhk_real *x = rows_new(M, K, (uint64_t)(N * K + M)), *residual = rows_new(M, rows, 7), bias[256];
  const mhk_real *y, *y4;
  mhk_index i, n, k, g;
  if (!matrix_new(&w, on->ctx, type, group, N, K, rest, (uint64_t)(N + 3 * K)) || !x || !residual) return;
  test_fill(bias, rows, -1, 1, 3);
  y = product(on->ctx, on->t, &w, first, rows, M, x, bias, residual);
  y4 = product(on->four, on->t4, &w, first, rows, M, x, bias, residual);
  CHECK_OK(on->ctx);
  for (i = 0; i < M && y; i++)
    for (n = 0; n < rows; n++) {
      const double *v = w.values + (first + n) * K;
      double sum = (double)bias[n] + (double)residual[i * rows + n], size = fabs(sum), room = 0;
      for (g = 0; g < K; g += group) {
        double most = 0, weight = 0;
        for (k = g; k < g + group; k++) {
          const double p = v[k] * (double)x[i * K + k];
          sum += p;
          size += fabs(p);
          weight += fabs(v[k]);
          if (fabs((double)x[i * K + k]) > most) most = fabs((double)x[i * K + k]);
        }
        room += most * weight * 0.51 / 32512; /* the integers of x */
      }
      CHECK(fabs((double)y[i * rows + n] - sum) <= room + 1e-6 * size,
            "%s, %s in groups of %d, row %lld of %lld from %lld of %lld, K %lld: %.9g, should be %.9g +- %.2g",
            mhk_isa_name(on->ctx), mhk_dtype_name(type), group, (long long)i, (long long)M, (long long)(first + n),
            (long long)N, (long long)K, (double)y[i * rows + n], sum, room + 1e-6 * size);
    }
  if (M && y) CHECK_SAME("four threads", y4, y, M * rows);
  matrix_free(&w);
  free(x);
  free(residual);
}

/* both types in groups of both sizes, whole and from rows further down, some of them numbers */
static void check_shape(const pair *on, mhk_index N, mhk_index K, mhk_index M) {
  int type, group;
  for (type = MHK_Q8; type <= MHK_Q4; type++)
    for (group = 32; group <= 64; group += 32) {
      if (K % group) continue;
      check_product(on, (mhk_dtype)type, group, N, K, 0, 0, M);
      if (N > 16 && M < 10) {
        check_product(on, (mhk_dtype)type, group, N, K, 3, 0, M);     /* numbers at the end */
        /* rows from the middle of a block on */
        check_product(on, (mhk_dtype)type, group, N, K, 3, 5, M);
        check_product(on, (mhk_dtype)type, group, N, K, 3, N - 2, M); /* numbers only */
      }
    }
}

TEST(products) {
  static const mhk_index Ns[] = {1, 15, 16, 17, 40, 130}, Ks[] = {32, 64, 96, 192, 1088},
                         Ms[] = {0, 1, 2, 3, 4, 5, 7, 8, 9, 20};
  size_t s, n, k, m;
  for (s = 0; s < sizeof sets / sizeof *sets; s++) {
    pair on;
    on.ctx = test_machine(sets[s], MHK_BF16_BEST, 1);
    on.four = test_machine(sets[s], MHK_BF16_BEST, 4);
    on.t = mhk_tape_create(on.ctx);
    on.t4 = mhk_tape_create(on.four);
    for (n = 0; on.ctx && n < sizeof Ns / sizeof *Ns; n++)
      for (k = 0; k < sizeof Ks / sizeof *Ks; k++)
        for (m = 0; m < sizeof Ms / sizeof *Ms; m++)
          if (Ns[n] * Ks[k] * Ms[m] <= 400000 || m % 3 == 0) check_shape(&on, Ns[n], Ks[k], Ms[m]);
    for (n = 0; on.ctx && n < 2; n++) { /* about as many rows as are made integers at once, or as are still worth it */
      check_product(&on, n ? MHK_Q4 : MHK_Q8, 32, 40, 64, 3, 5, 65);
      check_product(&on, n ? MHK_Q4 : MHK_Q8, 32, 40, 64, 3, 5, 515);
    }
    mhk_destroy(on.ctx);
    mhk_destroy(on.four);
  }
}

/* NaN and infinity of x reach y, and only the rows they belong to */
TEST(numbers_that_are_none) {
  static const double bad[] = {NAN, INFINITY, -INFINITY, 3e38, 1e-38};
  size_t s, i;
  for (s = 0; s < sizeof sets / sizeof *sets; s++) {
    mhk_context *ctx = test_machine(sets[s], MHK_BF16_BEST, 1);
    mhk_tape *t = mhk_tape_create(ctx);
    int type;
    for (type = MHK_Q8; ctx && type <= MHK_Q4; type++)
      for (i = 0; i < sizeof bad / sizeof *bad; i++) {
        matrix w;
        mhk_real *x = rows_new(3, 64, 5);
        const mhk_real *y;
        mhk_index n;
        REQUIRE(matrix_new(&w, ctx, (mhk_dtype)type, 32, 16, 64, 0, 9) && x, "memory");
        w.scales[GUARD / 2] = 0x3C00;
        x[64 + 7] = (mhk_real)bad[i];
        y = product(ctx, t, &w, 0, 16, 3, x, NULL, NULL);
        REQUIRE_OK(ctx);
        for (n = 0; n < 16; n++) {
          CHECK(y[n] - y[n] == 0 && y[32 + n] - y[32 + n] == 0, "rows beside %g have %g and %g", bad[i], (double)y[n],
                (double)y[32 + n]);
          if (!(fabs(bad[i]) <= 1e38)) continue;
          CHECK(y[16 + n] - y[16 + n] == 0, "the row of %g has %g", bad[i], (double)y[16 + n]);
        }
        if (!(fabs(bad[i]) < INFINITY)) CHECK(y[16] - y[16] != 0, "the row of %g has %g", bad[i], (double)y[16]);
        matrix_free(&w);
        free(x);
      }
    mhk_destroy(ctx);
  }
}

/* reading, looking up and the gradient of x */
/* a matrix read element by element, through views, as an embedding, and the gradient through it */
static void elements(mhk_context *ctx, mhk_tape *t, mhk_dtype type, int group) {
  static const int32_t tokens[4] = {0, 16, 38, 7};
  const mhk_index N = 39, K = 192, M = 11, xs[2] = {M, K};
  matrix w;
  mhk_real *x = rows_new(M, K, 5), row[192], part[20];
  double *want = (double *)calloc((size_t)(M * K), sizeof *want);
  mhk_tensor *e, *in, *y, *view;
  mhk_index i, n, k;
  REQUIRE(matrix_new(&w, ctx, type, group, N, K, 6, 9) && x && want, "memory");
  for (n = 0; n < N; n++) {
    CHECK(mhk_tensor_read(&w.t, n * K, K, row) == MHK_OK, "%s", mhk_message(ctx));
    CHECK_CLOSE_TO_DOUBLE("a row read", row, w.values + n * K, K, 1e-7);
  }
  mhk_tensor_read(&w.t, 5 * K + 100, 20, part);
  CHECK_CLOSE_TO_DOUBLE("a part of a row", part, w.values + 5 * K + 100, 20, 1e-7);
  mhk_tape_reset(t);
  mhk_tape_record(t, 1);
  view = mhk_rows(t, &w.t, 30, 5);
  mhk_tensor_read(view, K, K, row);
  CHECK_CLOSE_TO_DOUBLE("a row of a view", row, w.values + 31 * K, K, 1e-7);
  mhk_tensor_read(mhk_rows(t, mhk_detach(t, view), 2, 2), K, K, row);
  CHECK_CLOSE_TO_DOUBLE("a row of a view of a view", row, w.values + 33 * K, K, 1e-7);
  e = mhk_embedding(t, &w.t, tokens, 2, 2);
  REQUIRE_OK(ctx);
  for (i = 0; i < 4; i++)
    CHECK_CLOSE_TO_DOUBLE("an embedding", mhk_data(e) + i * K, w.values + tokens[i] * K, K, 1e-7);
  in = mhk_require_grad(t, mhk_tensor_new(t, 2, xs, x));
  y = mhk_linear(t, in, &w.t, NULL);
  mhk_backward(t, mhk_sum(t, y));
  REQUIRE_OK(ctx);
  for (i = 0; i < M; i++)
    for (n = 0; n < N; n++)
      for (k = 0; k < K; k++) want[i * K + k] += w.values[n * K + k];
  CHECK_CLOSE_TO_DOUBLE("the gradient of x", in->grad, want, M * K, 2e-6);
  CHECK(mhk_reshape(t, &w.t, 1, &w.t.count) == NULL, "a quantized matrix was given another shape");
  CHECK_FAILS(ctx, MHK_ERROR_UNSUPPORTED, "quantized row by row");
  mhk_tensor_read(&w.t, N * K - 3, 4, part);
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "4 elements from element 7485 of w: it has 7488");
  matrix_free(&w);
  free(x);
  free(want);
}

TEST(elements_and_gradients) {
  size_t s;
  int type, group;
  for (s = 0; s < sizeof sets / sizeof *sets; s++) {
    mhk_context *ctx = test_machine(sets[s], MHK_BF16_BEST, 1);
    mhk_tape *t = mhk_tape_create(ctx);
    for (type = MHK_Q8; ctx && type <= MHK_Q4; type++)
      for (group = 32; group <= 64; group += 32) elements(ctx, t, (mhk_dtype)type, group);
    mhk_destroy(ctx);
  }
}

/* ---- models */

/* sizes that groups divide; the one odd width of grouped Phi stays, so that one matrix cannot be
   quantized */
static mhk_model *model_wide(mhk_context *ctx, int kind, int factor, uint64_t seed) {
  mhk_config c = model_config(kind);
  mhk_model *m;
  int i;
  c.d_model = 96 * factor;
  if (c.n_head) c.head_dim = c.d_model / c.n_head;
  if (kind >= LLAMA) c.rotary_dim = c.head_dim;
  if (c.ssm_heads) c.ssm_head_dim = 32 * factor;
  if (c.d_mlp && kind != PHI_GROUPED) c.d_mlp = 4 * c.d_model;
  m = mhk_model_create(ctx, &c, seed);
  for (i = 0; i < mhk_model_count(m); i++) {
    mhk_tensor *x = mhk_model_at(m, i);
    mhk_index j;
    uint64_t s = seed * 1000 + (uint64_t)i;
    for (j = 0; j < x->count; j++) mhk_data(x)[j] += (mhk_real)(float)test_uniform(&s, -0.02, 0.02);
  }
  return m;
}

static mhk_real *read_all(const mhk_tensor *x) {
  mhk_real *v = (mhk_real *)malloc((size_t)(x->count + 1) * sizeof *v);
  if (v) mhk_tensor_read(x, 0, x->count, v);
  return v;
}

static int ends_with(const char *text, const char *end) {
  return strlen(text) >= strlen(end) && strcmp(text + strlen(text) - strlen(end), end) == 0;
}

/* which tensors are quantized, how well, and that nothing else changes */
static void check_quantized(const mhk_model *m, const mhk_model *q, mhk_dtype type, int group) {
  int i;
  for (i = 0; i < mhk_model_count(m); i++) {
    const mhk_tensor *x = mhk_model_at(m, i), *y = mhk_model_at(q, i);
    mhk_real *v = read_all(x), *w = read_all(y);
    const mhk_index K = x->shape[1];
    const int few = ends_with(x->name, "gates.weight") || ends_with(x->name, "window_rest.weight");
    const int matrix = x->rank == 2 && K % 32 == 0 && !few;
    const mhk_index rest = ends_with(x->name, "in_proj.weight") ? mhk_model_config(m)->ssm_heads : 0;
    mhk_index n, k;
    CHECK(strcmp(x->name, y->name) == 0 && (y->quantized != NULL) == matrix && y->dtype == (matrix ? type : MHK_REAL),
          "%s became %s", x->name, mhk_dtype_name(y->dtype));
    if (!matrix) {
      CHECK_SAME(x->name, w, v, x->count);
    } else {
      const mhk_index g = y->quantized->group;
      CHECK(g == (K % group ? 32 : group) && y->quantized->rows == x->shape[0] - rest, "%s: groups of %d, %lld rows",
            x->name, (int)g, (long long)y->quantized->rows);
      CHECK_SAME("rows that stay", w + (x->shape[0] - rest) * K, v + (x->shape[0] - rest) * K, rest * K);
      for (n = 0; n < x->shape[0] - rest; n++)
        for (k = 0; k < K; k += g) {
          double most = 0, off = 0, worst = 0, plain = 0;
          mhk_index j;
          for (j = k; j < k + g; j++) most = fabs((double)v[n * K + j]) > most ? fabs((double)v[n * K + j]) : most;
          for (j = k; j < k + g; j++) {
            const double e = (double)v[n * K + j] - (double)w[n * K + j],
                         p = (double)v[n * K + j] - most / 7 * floor((double)v[n * K + j] / (most / 7) + 0.5);
            off += e * e;
            plain += p * p;
            worst = fabs(e) > worst ? fabs(e) : worst;
          }
          if (type == MHK_Q8)
            CHECK(worst <= most / 127 * 0.57, "%s, row %lld: off by %g of %g", x->name, (long long)n, worst, most);
          else
            CHECK(off <= plain * 1.001 && worst <= most / 5, "%s, row %lld: off by %g, rounding to sevenths by %g",
                  x->name, (long long)n, sqrt(off), sqrt(plain));
        }
    }
    free(v);
    free(w);
  }
}

static mhk_real *logits_of(mhk_model *m, mhk_index T, mhk_index *count) {
  int32_t tokens[64];
  mhk_tape *t = mhk_tape_create(mhk_model_at(m, 0)->ctx);
  mhk_tensor *y;
  mhk_real *out = NULL;
  model_tokens(tokens, T, mhk_model_config(m)->vocab_size, 7);
  mhk_tape_record(t, 0);
  y = mhk_forward(t, m, tokens, 1, T, NULL);
  *count = y ? y->count : 0;
  if (y) out = (mhk_real *)malloc(sizeof *out * (size_t)y->count);
  if (out) memcpy(out, mhk_data(y), sizeof *out * (size_t)y->count);
  mhk_tape_destroy(t);
  return out;
}

static void check_same_model(mhk_model *a, mhk_model *b) {
  mhk_index n, k;
  mhk_real *x, *y;
  int i;
  REQUIRE(a && b && mhk_model_count(a) == mhk_model_count(b), "one of two models is missing");
  for (i = 0; i < mhk_model_count(a); i++) {
    const mhk_tensor *p = mhk_model_at(a, i), *q = mhk_model_at(b, i);
    CHECK(p->dtype == q->dtype, "%s is %s here and %s there", p->name, mhk_dtype_name(p->dtype),
          mhk_dtype_name(q->dtype));
    x = read_all(p);
    y = read_all(q);
    CHECK_SAME(p->name, x, y, p->count);
    free(x);
    free(y);
  }
  x = logits_of(a, 9, &n);
  y = logits_of(b, 9, &k);
  CHECK(n == k && n > 0, "%lld and %lld logits", (long long)n, (long long)k);
  CHECK_SAME("logits", x, y, n);
  free(x);
  free(y);
}

/* a quantized model through files: the same bits, mapped where they lie, moved or damaged */
static void save_and_load(mhk_context *ctx, mhk_model *q, mhk_dtype type) {
  const char *one = test_path("q.safetensors"), *again = test_path("again.safetensors"), *folder = test_path("q"),
             *numbers = test_path("f.safetensors");
  mhk_model *m;
  char *bytes, *moved, *other;
  size_t size = 0, size2 = 0;
  int shift, i;
  REQUIRE(mhk_save(q, one, type) == MHK_OK, "%s", mhk_message(ctx));
  m = mhk_load(ctx, one);
  REQUIRE_OK(ctx);
  check_same_model(q, m);
  /* every matrix starts at a cache line of the file, which is mapped at a page */
  for (i = 0; i < mhk_model_count(m); i++) {
    const mhk_tensor *x = mhk_model_at(m, i);
    if (x->quantized) CHECK((uintptr_t)x->quantized->q % 64 == 0, "%s is not aligned", x->name);
  }
  mhk_save(m, again, type);
  mhk_model_destroy(m);
  bytes = test_read_file(one, &size);
  other = test_read_file(again, &size2);
  REQUIRE(bytes && other, "the files cannot be read");
  CHECK(size == size2 && memcmp(bytes, other, size) == 0, "saved again it is another file");
  for (shift = 0; shift < 4; shift++) { /* from memory, at any alignment */
    moved = (char *)malloc(size + 4);
    REQUIRE(moved, "memory");
    memcpy(moved + shift, bytes, size);
    m = mhk_load_memory(ctx, moved + shift, size);
    REQUIRE_OK(ctx);
    check_same_model(q, m);
    mhk_model_destroy(m);
    free(moved);
  }
  free(bytes);
  free(other);
  REQUIRE(mhk_save(q, folder, type) == MHK_OK, "%s", mhk_message(ctx));
  m = mhk_load(ctx, folder);
  check_same_model(q, m);
  mhk_model_destroy(m);
  REQUIRE(mhk_save(q, numbers, MHK_F32) == MHK_OK, "%s", mhk_message(ctx)); /* and back to numbers */
  m = mhk_load(ctx, numbers);
  REQUIRE_OK(ctx);
  for (i = 0; i < mhk_model_count(m); i++) {
    mhk_real *x = read_all(mhk_model_at(m, i)), *y = read_all(mhk_model_at(q, i));
    CHECK(mhk_model_at(m, i)->dtype == MHK_F32, "%s is %s", mhk_model_at(m, i)->name,
          mhk_dtype_name(mhk_model_at(m, i)->dtype));
    CHECK_CLOSE(mhk_model_at(m, i)->name, x, y, mhk_model_at(m, i)->count, 1e-7);
    free(x);
    free(y);
  }
  mhk_model_destroy(m);
}

TEST(quantized_models) {
  int kind, type, group;
  for (kind = 0; kind < MODEL_KINDS; kind++) {
    mhk_context *ctx = mhk_create(NULL);
    mhk_model *m = model_wide(ctx, kind, kind % 2 ? 2 : 1, 3);
    for (type = MHK_Q8; type <= MHK_Q4; type++)
      for (group = 32; group <= 64; group += 32) {
        mhk_quantize_desc d;
        mhk_model *q;
        memset(&d, 0, sizeof d);
        d.type = (mhk_dtype)type;
        d.group = group;
        q = mhk_quantize(m, &d);
        REQUIRE(q && !mhk_failed(ctx), "%s: %s", model_kind_name(kind), mhk_message(ctx));
        check_quantized(m, q, (mhk_dtype)type, group);
        save_and_load(ctx, q, (mhk_dtype)type);
        mhk_model_destroy(q);
      }
    mhk_destroy(ctx);
  }
}

/* defaults, another type for embedding and head, quantizing what is quantized, training it again */
TEST(descriptions) {
  mhk_context *ctx = mhk_create(NULL);
  mhk_model *m = model_wide(ctx, PHI_MAMBA_ROTARY, 2, 4), *q = mhk_quantize(m, NULL), *r;
  mhk_quantize_desc d;
  mhk_real *x, *y;
  REQUIRE_OK(ctx);
  CHECK(mhk_model_find(q, "lm_head.weight")->dtype == MHK_Q8 &&
            mhk_model_find(q, "lm_head.weight")->quantized->group == 64,
        "the default is not Q8 in groups of 64");
  memset(&d, 0, sizeof d);
  d.type = MHK_Q4;
  d.ends = MHK_Q8;
  r = mhk_quantize(m, &d);
  REQUIRE_OK(ctx);
  CHECK(mhk_model_find(r, "lm_head.weight")->dtype == MHK_Q8 &&
            mhk_model_find(r, "backbone.embedding.weight")->dtype == MHK_Q8 &&
            mhk_model_find(r, "backbone.layers.0.mlp.fc1.weight")->dtype == MHK_Q4 &&
            mhk_model_find(r, "backbone.layers.0.mlp.fc1.weight")->quantized->group == 32,
        "Q4 with ends of Q8 is something else");
  CHECK(mhk_tensor_bytes(mhk_model_find(r, "backbone.layers.0.mlp.fc1.weight")) == 768 * 192 / 2 + 768 * 6 * 2,
        "%lld bytes", (long long)mhk_tensor_bytes(mhk_model_find(r, "backbone.layers.0.mlp.fc1.weight")));
  save_and_load(ctx, r, MHK_Q4);
  mhk_model_destroy(r);
  r = mhk_quantize(q, NULL); /* numbers that are multiples of a scale stay */
  x = read_all(mhk_model_find(q, "lm_head.weight"));
  y = read_all(mhk_model_find(r, "lm_head.weight"));
  CHECK_CLOSE("quantized twice", y, x, mhk_model_find(q, "lm_head.weight")->count, 1e-6);
  free(x);
  x = read_all(mhk_model_find(r, "lm_head.weight"));
  CHECK(mhk_model_make_trainable(r) == MHK_OK && mhk_model_find(r, "lm_head.weight")->dtype == MHK_REAL &&
            !mhk_model_find(r, "lm_head.weight")->quantized,
        "%s", mhk_message(ctx));
  CHECK_SAME("trainable again", mhk_data(mhk_model_find(r, "lm_head.weight")), x,
             mhk_model_find(r, "lm_head.weight")->count);
  free(x);
  free(y);
  d.type = MHK_BF16;
  CHECK(!mhk_quantize(m, &d), "quantized as BF16");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "not as BF16");
  d.type = MHK_Q4;
  d.group = 16;
  CHECK(!mhk_quantize(m, &d), "groups of 16");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "groups of 16");
  mhk_data(mhk_model_find(m, "backbone.layers.1.mlp.fc2.weight"))[5 * 768 + 3] = (mhk_real)INFINITY;
  CHECK(!mhk_quantize(m, NULL), "infinity was quantized");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "backbone.layers.1.mlp.fc2.weight cannot be quantized: a weight of row 5");
  mhk_data(mhk_model_find(m, "backbone.layers.1.mlp.fc2.weight"))[5 * 768 + 3] = (mhk_real)NAN;
  CHECK(!mhk_quantize(m, NULL), "NaN was quantized");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "row 5");
  CHECK(!mhk_quantize(NULL, NULL), "no model was quantized");
  mhk_destroy(ctx);
}

/* token by token and all at once: the integers of x cost next to nothing */
TEST(steps_and_prefill) {
  int kind, type;
  for (kind = 0; kind < MODEL_KINDS; kind++)
    for (type = MHK_Q8; type <= MHK_Q4; type++) {
      mhk_context *ctx = mhk_create(NULL);
      mhk_quantize_desc d;
      mhk_model *m = model_wide(ctx, kind, 1, 5), *q;
      mhk_session *s;
      mhk_index n, V = mhk_model_config(m)->vocab_size;
      mhk_real *all;
      int32_t tokens[24];
      int i;
      memset(&d, 0, sizeof d);
      d.type = (mhk_dtype)type;
      q = mhk_quantize(m, &d);
      s = mhk_session_create(q, NULL);
      REQUIRE_OK(ctx);
      model_tokens(tokens, 24, (int)V, 7);
      all = logits_of(q, 24, &n);
      mhk_feed(s, tokens, 11);
      for (i = 11; i < 24; i++) {
        mhk_feed(s, tokens + i, 1);
        CHECK_CLOSE("a step", mhk_logits(s, 0), all + i * V, V, 5e-4);
      }
      CHECK_OK(ctx);
      free(all);
      mhk_destroy(ctx);
    }
}

/* a student of the bundled teacher, made in a moment */
static mhk_model *student_of(mhk_context *ctx, mhk_model *teacher, mhk_corpus *text) {
  mhk_distill_desc d;
  mhk_trainer *tr;
  memset(&d, 0, sizeof d);
  d.teacher = teacher;
  d.corpus = text;
  d.batch = 4;
  d.length = 64;
  d.stages[0].tokens = 3000;
  d.stages[1].tokens = 6000;
  d.stages[2].tokens = 9000;
  tr = mhk_distill(ctx, &d);
  while (mhk_train_step(tr)) {
  }
  return mhk_student(tr);
}

/* how much the predictions of the bundled teacher and of its student move */
TEST(predictions) {
  static const double ce[2] = {0.01, 0.15}, kl[2] = {0.002, 0.15};
  static const char *const files[] = {"examples/story.txt"};
  mhk_context *ctx = mhk_create(NULL);
  mhk_model *tiny = mhk_load(ctx, "examples/tiny");
  mhk_corpus_desc td;
  mhk_corpus *text;
  mhk_evaluate_desc measured;
  int type, which;
  memset(&td, 0, sizeof td);
  td.n_files = 1;
  td.files = files;
  text = mhk_corpus_load(ctx, mhk_model_tokenizer(tiny), &td);
  REQUIRE_OK(ctx);
  for (which = 0; which < 2; which++) {
    mhk_model *m = which ? student_of(ctx, tiny, text) : tiny;
    REQUIRE_OK(ctx);
    for (type = MHK_Q8; type <= MHK_Q4; type++) {
      mhk_quantize_desc d;
      mhk_evaluation before, after;
      mhk_model *q;
      memset(&d, 0, sizeof d);
      d.type = (mhk_dtype)type;
      q = mhk_quantize(m, &d);
      memset(&measured, 0, sizeof measured);
      measured.corpus = text, measured.length = 128, measured.windows = 8;
      mhk_evaluate(m, &measured, &before);
      measured.teacher = m;
      mhk_evaluate(q, &measured, &after);
      REQUIRE_OK(ctx);
      CHECK(fabs(after.cross_entropy - before.cross_entropy) < ce[type - MHK_Q8] && after.kl < kl[type - MHK_Q8] &&
                after.kl > 0,
            "%s as %s: cross-entropy %.5f, was %.5f, KL %.6f", which ? "the student" : "tiny",
            mhk_dtype_name((mhk_dtype)type), after.cross_entropy, before.cross_entropy, after.kl);
      if (test_state.verbose)
        printf("%s as %s: cross-entropy %.5f, was %.5f, KL %.6f\n", which ? "the student" : "tiny",
               mhk_dtype_name((mhk_dtype)type), after.cross_entropy, before.cross_entropy, after.kl);
      mhk_model_destroy(q);
    }
  }
  mhk_destroy(ctx);
}

/* ---- files that lie */

/* the file f with one tensor changed is refused with this code and message */
static void bad_file(mhk_context *ctx, const mhk_file *f, const char *change, const char *from, mhk_dtype dtype,
                     int rank, const mhk_index *shape, mhk_result code, const char *message) {
  const int n = mhk_file_count(f);
  mhk_stored *list = (mhk_stored *)malloc((size_t)n * sizeof *list);
  const char *metadata[2] = {"config.json", NULL};
  const char *path = test_path("bad.safetensors");
  mhk_model *m;
  static const mhk_real zeros[65536];
  int i, j = 0;
  metadata[1] = mhk_file_metadata(f, "config.json", NULL);
  REQUIRE(list, "memory");
  for (i = 0; i < n; i++) {
    list[j] = *mhk_file_at(f, i);
    if (strcmp(list[j].name, from) == 0) {
      if (!change) continue; /* left out */
      list[j].name = change;
      list[j].dtype = dtype;
      list[j].rank = rank;
      list[j].data = zeros;
      for (list[j].count = 1; rank-- > 0;) list[j].count *= list[j].shape[rank] = shape[rank];
      REQUIRE((size_t)list[j].count <= sizeof zeros / mhk_dtype_bytes(dtype), "the test's tensor is too large");
    }
    j++;
  }
  REQUIRE(mhk_file_write(ctx, path, j, list, 1, metadata) == MHK_OK, "%s", mhk_message(ctx));
  m = mhk_load(ctx, path);
  CHECK(!m, "a file with a wrong %s was loaded", from);
  CHECK_FAILS(ctx, code, message);
  mhk_model_destroy(m);
  free(list);
}

TEST(files_that_lie) {
  mhk_context *ctx = mhk_create(NULL);
  mhk_model *m = model_wide(ctx, PHI_MAMBA, 1, 6), *q = mhk_quantize(m, NULL), *r;
  const char *path = test_path("good.safetensors");
  const char *fc1 = "backbone.layers.0.mlp.fc1.weight", *in = "backbone.layers.0.mixer.in_proj.weight",
             *scale = "backbone.layers.0.mlp.fc1.weight_scale", *rest = "backbone.layers.0.mixer.in_proj.weight_rest";
  mhk_file *f;
  char *bytes, *copy;
  size_t size = 0;
  uint64_t seed = 1;
  mhk_index s[4];
  int i;
  REQUIRE(q && mhk_save(q, path, MHK_Q8) == MHK_OK, "%s", mhk_message(ctx));
  f = mhk_file_open(ctx, path);
  REQUIRE_OK(ctx);
#define SHAPE(a, b, c, d) (s[0] = a, s[1] = b, s[2] = c, s[3] = d, s)
  bad_file(ctx, f, NULL, scale, MHK_F16, 0, NULL, MHK_ERROR_CONFIG,
           "fc1.weight is quantized and needs backbone.layers.0.mlp.fc1.weight_scale");
  bad_file(ctx, f, scale, scale, MHK_F32, 3, SHAPE(24, 3, 16, 1), MHK_ERROR_CONFIG,
           "_scale of type F16 and shape (24,96 / 32 or 64,16)");
  bad_file(ctx, f, scale, scale, MHK_F16, 3, SHAPE(24, 6, 16, 1), MHK_ERROR_CONFIG, "_scale of type F16");
  bad_file(ctx, f, scale, scale, MHK_F16, 3, SHAPE(24, 0, 16, 1), MHK_ERROR_CONFIG, "_scale of type F16");
  bad_file(ctx, f, scale, scale, MHK_F16, 3, SHAPE(23, 3, 16, 1), MHK_ERROR_CONFIG, "_scale of type F16");
  bad_file(ctx, f, scale, scale, MHK_F16, 2, SHAPE(24, 48, 1, 1), MHK_ERROR_CONFIG, "_scale of type F16");
  bad_file(ctx, f, scale, scale, MHK_F16, 3, SHAPE(24, 3, 15, 1), MHK_ERROR_CONFIG, "_scale of type F16");
  bad_file(ctx, f, fc1, fc1, MHK_U8, 4, SHAPE(24, 24, 16, 4), MHK_ERROR_CONFIG, "must have the shape (24,12,16,4)");
  bad_file(ctx, f, fc1, fc1, MHK_I8, 4, SHAPE(23, 24, 16, 4), MHK_ERROR_CONFIG, "must have the shape (24,24,16,4)");
  bad_file(ctx, f, fc1, fc1, MHK_I8, 4, SHAPE(24, 24, 4, 16), MHK_ERROR_CONFIG, "must have the shape (24,24,16,4)");
  bad_file(ctx, f, fc1, fc1, MHK_I8, 2, SHAPE(384, 96, 1, 1), MHK_ERROR_CONFIG, "has type I8");
  bad_file(ctx, f, fc1, fc1, MHK_I16, 4, SHAPE(24, 24, 16, 4), MHK_ERROR_CONFIG,
           "backbone.layers.0.mlp.fc1.weight is (24,24,16,4)");
  bad_file(ctx, f, rest, rest, MHK_F32, 2, SHAPE(3, 95, 1, 1), MHK_ERROR_CONFIG, "_rest must be F32");
  bad_file(ctx, f, rest, rest, MHK_F16, 2, SHAPE(3, 96, 1, 1), MHK_ERROR_CONFIG, "_rest must be F32");
  bad_file(ctx, f, rest, rest, MHK_F32, 2, SHAPE(500, 96, 1, 1), MHK_ERROR_CONFIG, "_rest must be F32 with fewer than");
  /* fewer blocks then */
  bad_file(ctx, f, rest, rest, MHK_F32, 2, SHAPE(30, 96, 1, 1), MHK_ERROR_CONFIG, "is quantized and needs");
  bad_file(ctx, f, NULL, in, MHK_F32, 0, NULL, MHK_ERROR_CONFIG, "missing: backbone.layers.0.mixer.in_proj.weight");
  bad_file(ctx, f, "backbone.layers.0.norm_scale", scale, MHK_F16, 1, SHAPE(3, 1, 1, 1), MHK_ERROR_CONFIG,
           "unexpected: backbone.layers.0.norm_scale");
  mhk_file_close(f);
  /* any change of the data is another model and no more; a change of the header may be anything but
     a crash */
  bytes = test_read_file(path, &size);
  REQUIRE(bytes, "the file cannot be read");
  for (i = 0; i < 300; i++) {
    size_t at, length = size, header = 0;
    int k;
    for (k = 7; k >= 0; k--) header = header << 8 | (unsigned char)bytes[k];
    if (i % 10 == 9) length = (size_t)(test_random(&seed) % size);
    copy = (char *)malloc(length + 1);
    REQUIRE(copy, "memory");
    memcpy(copy, bytes, length);
    for (k = 0; k < 1 + i % 4 && length; k++) {
      at = (size_t)(test_random(&seed) % (i % 3 ? header + 8 : length));
      if (at < length) copy[at] = (char)test_random(&seed);
    }
    r = mhk_load_memory(ctx, copy, length);
    if (r) {
      mhk_index n;
      free(logits_of(r, 3, &n));
    }
    mhk_model_destroy(r);
    mhk_clear_error(ctx);
    free(copy);
  }
  free(bytes);
  CHECK(!mhk_load_memory(ctx, "", 0) && !mhk_load_memory(ctx, NULL, 100), "a model came out of nothing");
  mhk_clear_error(ctx);
  mhk_destroy(ctx);
}

static void count_warnings(void *user, mhk_log_level level, const char *text) {
  if (level == MHK_LOG_WARNING && strstr(text, "no matrix of the model can be quantized")) ++*(int *)user;
}

TEST(a_model_without_rows_to_quantize_is_saved_as_numbers) {
  static const char *const names[] = {"narrow", "narrow.safetensors"};
  mhk_context_desc d;
  mhk_context *ctx;
  mhk_model *m;
  mhk_index n, k;
  mhk_real *want;
  int warned = 0, i;
  memset(&d, 0, sizeof d);
  d.log = count_warnings;
  d.log_user = &warned;
  ctx = mhk_create(&d);
  m = model_new(ctx, PHI_GROUPED, 3); /* rows of 24 and 53 */
  want = model_numbers(m, 0, &n);
  for (i = 0; i < 4; i++) {
    mhk_model *back;
    mhk_real *got;
    CHECK(mhk_save(m, test_path(names[i / 2]), i % 2 ? MHK_Q4 : MHK_Q8) == MHK_OK, "%s", mhk_message(ctx));
    CHECK(warned == i + 1, "%d warnings after %d saves", warned, i + 1);
    back = mhk_load(ctx, test_path(names[i / 2]));
    REQUIRE_OK(ctx);
    mhk_model_make_trainable(back);
    got = model_numbers(back, 0, &k);
    CHECK(k == n, "%lld numbers came back, not %lld", (long long)k, (long long)n);
    CHECK_SAME(names[i / 2], got, want, n);
    free(got);
    mhk_model_destroy(back);
  }
  free(want);
  mhk_destroy(ctx);
}

/* every allocation may fail */
TEST(no_memory) {
  test_memory memory;
  char path[512];
  long n = 0, step;
  int done = 0;
  strcpy(path, test_path("memory.safetensors"));
  {
    mhk_context *ctx = mhk_create(NULL);
    mhk_model *m = model_wide(ctx, HYBRID, 1, 6);
    REQUIRE(mhk_save(m, path, MHK_F32) == MHK_OK, "%s", mhk_message(ctx));
    mhk_destroy(ctx);
  }
  for (step = 1; !done; step++) {
    mhk_context *ctx;
    mhk_model *m, *q;
    ctx = test_context(&memory, 0, 0);
    m = mhk_load(ctx, path);
    REQUIRE_OK(ctx);
    memory.allocations = 0;
    memory.fail_at = step;
    q = mhk_quantize(m, NULL);
    if (q) mhk_save(q, test_path("memory2.safetensors"), MHK_Q8);
    if (!mhk_failed(ctx)) done = 1;
    else CHECK(mhk_error(ctx) == MHK_ERROR_MEMORY, "allocation %ld failed: %s", step, mhk_message(ctx));
    n = step;
    mhk_destroy(ctx);
    CHECK(memory.blocks == 0 && !memory.wrong_size, "allocation %ld failed: %d blocks are left", step,
          (int)memory.blocks);
  }
  CHECK(n > 5, "quantizing and saving made %ld allocations", n - 1);
}

int main(int argc, char **argv) {
  test_begin(argc, argv);
  RUN(products);
  RUN(numbers_that_are_none);
  RUN(elements_and_gradients);
  RUN(quantized_models);
  RUN(descriptions);
  RUN(steps_and_prefill);
  RUN(predictions);
  RUN(files_that_lie);
  RUN(a_model_without_rows_to_quantize_is_saved_as_numbers);
  RUN(no_memory);
  return test_end();
}
