/* families.c: see families.h. The first three families have closed forms. SSD and semi-separable
   matrices are fitted by gradient descent on the tape. */
#include "families.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *const family_names[FAMILIES] = {"Toeplitz", "low rank", "causal low rank", "SSD", "semi-separable",
                                            "lower bound"};
const char *const family_keys[FAMILIES] = {"toeplitz", "low_rank", "causal_low_rank", "ssd", "semiseparable", "bound"};

/* ---------------------------------------------------------------- singular values */

static double dot(const double *a, const double *b, mhk_index n) {
  double sum = 0;
  mhk_index i;
  for (i = 0; i < n; i++) sum += a[i] * b[i];
  return sum;
}

static void rotate(double *a, double *b, mhk_index n, double c, double s) {
  mhk_index i;
  for (i = 0; i < n; i++) {
    const double x = a[i], y = b[i];
    a[i] = c * x - s * y;
    b[i] = s * x + c * y;
  }
}

/* One-sided Jacobi (Hestenes 1958): turns n vectors of length m, one after the other at a, by plane
   rotations until all are orthogonal. Their lengths are then the singular values. v (n,n) receives
   the same rotations of the unit vectors, unless it is NULL. */
static void jacobi(double *a, mhk_index n, mhk_index m, double *v) {
  mhk_index p, q;
  int sweep, turned = 1;
  for (p = 0; v && p < n * n; p++) v[p] = p % (n + 1) == 0;
  for (sweep = 0; turned && sweep < 60; sweep++) {
    turned = 0;
    for (p = 0; p < n - 1; p++)
      for (q = p + 1; q < n; q++) {
        double *x = a + p * m, *y = a + q * m, xy = dot(x, y, m), xx = dot(x, x, m), yy = dot(y, y, m), tau, t, c;
        if (fabs(xy) <= 1e-15 * sqrt(xx * yy) || xy == 0) continue;
        tau = (yy - xx) / (2 * xy);
        t = (tau < 0 ? -1 : 1) / (fabs(tau) + sqrt(1 + tau * tau));
        c = 1 / sqrt(1 + t * t);
        rotate(x, y, m, c, c * t);
        if (v) rotate(v + p * n, v + q * n, n, c, c * t);
        turned = 1;
      }
  }
}

static int larger(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x < y) - (x > y);
}

/* ---------------------------------------------------------------- one matrix at work */

/* M and what its fits need. squares[k]: the sum of squares that rank k leaves. */
typedef struct work {
  mhk_context *ctx;
  const family_desc *d;
  const double *M;
  double size, scale;   /* the sum of squares of M; factor on what is fitted, for one learning rate */
  double *left, *right; /* (T,T): vector k of M's SVD, its singular value in left, and the unit vector */
  double *block;        /* (T,T) and T more, scratch */
  mhk_real *target;     /* (T,T) */
  mhk_real *start[3];   /* where a fit starts: logits of decays, B, C, all (T,r) at most */
  mhk_real *best[3];    /* where it came closest */
  mhk_real *ended[3];   /* of all starts of an order */
  mhk_real *kept[2][3]; /* of the order before, of both families */
  mhk_real *moments, *scratch;
  family_errors *out;
  int stopped;
} work;

static double relative_of(const work *w, double squares) { return sqrt(squares > 0 ? squares / w->size : 0); }

/* sum of squares of M - X, X zero above the diagonal too */
static double distance(const work *w, const double *X) {
  double sum = 0;
  mhk_index i;
  for (i = 0; i < w->d->T * w->d->T; i++) sum += (w->M[i] - X[i]) * (w->M[i] - X[i]);
  return sum;
}

/* distance from the closest causal Toeplitz matrix */
static double toeplitz(const work *w) {
  const mhk_index T = w->d->T;
  mhk_index k, i;
  double squares = 0;
  for (k = 0; k < T; k++) {
    double mean = 0;
    for (i = k; i < T; i++) mean += w->M[i * T + i - k] / (double)(T - k);
    for (i = k; i < T; i++) squares += (w->M[i * T + i - k] - mean) * (w->M[i * T + i - k] - mean);
  }
  return relative_of(w, squares);
}

static void swap(double *a, double *b, mhk_index n) {
  mhk_index i;
  for (i = 0; i < n; i++) {
    const double x = a[i];
    a[i] = b[i];
    b[i] = x;
  }
}

/* M's singular value decomposition, the largest value first: M = sum over k of left_k right_k^T */
static void decompose(work *w) {
  const mhk_index T = w->d->T;
  mhk_index i, k;
  for (k = 0; k < T; k++)
    for (i = 0; i < T; i++) w->left[k * T + i] = w->M[i * T + k];
  jacobi(w->left, T, T, w->right);
  for (k = 0; k < T; k++) w->block[k] = dot(w->left + k * T, w->left + k * T, T);
  for (k = 0; k < T; k++) {
    mhk_index most = k;
    for (i = k + 1; i < T; i++)
      if (w->block[i] > w->block[most]) most = i;
    if (most == k) continue;
    swap(w->block + k, w->block + most, 1);
    swap(w->left + k * T, w->left + most * T, T);
    swap(w->right + k * T, w->right + most * T, T);
  }
}

/* distances of the first r terms of the SVD, and of the same without what is above the diagonal */
static void low_rank(const work *w, int at) {
  const mhk_index T = w->d->T, r = w->d->orders[at];
  double squares = 0, *X = w->block;
  mhk_index i, j, k;
  for (k = r; k < T; k++) squares += dot(w->left + k * T, w->left + k * T, T);
  w->out->relative[FAMILY_LOW_RANK][at] = relative_of(w, squares);
  memset(X, 0, (size_t)(T * T) * sizeof *X);
  for (k = 0; k < r; k++)
    for (i = 0; i < T; i++)
      for (j = 0; j <= i; j++) X[i * T + j] += w->left[k * T + i] * w->right[k * T + j];
  w->out->relative[FAMILY_CAUSAL_LOW_RANK][at] = relative_of(w, distance(w, X));
}

/* ---------------------------------------------------------------- the lower bound */

/* What the singular values of the block of rows [i,hi) and columns [lo,i] leave beyond the first r,
   for all orders, into tails. Such a block of a semi-separable matrix of order r has rank r at
   most, so this is how much of the block no such matrix can have (Eckart and Young 1936). */
static void block_tails(const work *w, mhk_index lo, mhk_index i, mhk_index hi, double *tails) {
  const mhk_index T = w->d->T, rows = hi - i, columns = i + 1 - lo, n = rows < columns ? rows : columns,
                  m = rows < columns ? columns : rows;
  double *values = w->block + T * T;
  mhk_index k, j;
  int o;
  for (k = 0; k < n; k++)
    for (j = 0; j < m; j++)
      w->block[k * m + j] = rows < columns ? w->M[(i + k) * T + lo + j] : w->M[(i + j) * T + lo + k];
  jacobi(w->block, n, m, NULL);
  for (k = 0; k < n; k++) values[k] = dot(w->block + k * m, w->block + k * m, m);
  qsort(values, (size_t)n, sizeof *values, larger);
  for (o = 0; o < w->d->n; o++)
    for (tails[o] = 0, k = n - 1; k >= w->d->orders[o]; k--) tails[o] += values[k];
}

/* Adds to squares[o], for the orders o with on[o], what rows and columns [lo,hi) must leave: of the
   block that leaves most, and, since they have no entry in common with it, of the triangles before
   and behind it. */
static void add_bound(const work *w, mhk_index lo, mhk_index hi, const unsigned char *on, double *squares) {
  double tails[FAMILY_MOST_ORDERS], most[FAMILY_MOST_ORDERS] = {0};
  mhk_index where[FAMILY_MOST_ORDERS] = {0}, i;
  unsigned char same[FAMILY_MOST_ORDERS], left[FAMILY_MOST_ORDERS];
  int o, k;
  for (i = lo; i < hi; i++) {
    block_tails(w, lo, i, hi, tails);
    for (o = 0; o < w->d->n; o++)
      if (on[o] && tails[o] > most[o]) {
        most[o] = tails[o];
        where[o] = i;
      }
  }
  for (o = 0; o < w->d->n; o++) left[o] = on[o] && most[o] > 0;
  for (o = 0; o < w->d->n; o++) {
    if (!left[o]) continue;
    for (k = 0; k < w->d->n; k++) {
      same[k] = left[k] && where[k] == where[o];
      if (same[k]) squares[k] += most[k];
    }
    add_bound(w, lo, where[o], same, squares);
    add_bound(w, where[o] + 1, hi, same, squares);
    for (k = 0; k < w->d->n; k++) left[k] = left[k] && !same[k];
  }
}

/* ---------------------------------------------------------------- semi-separable matrices */

/* X[t,s] = sum over n of C[t,n] B[s,n] a[s+1,n] ... a[t,n], zero above the diagonal: a, B, C (T,r)
   -> (T,T). For one s, x is the state that B_s leaves after each t. */
static void states_of(const mhk_real *a, const mhk_real *B, mhk_index s, mhk_index T, mhk_index r, mhk_real *x) {
  mhk_index t, n;
  memcpy(x + s * r, B + s * r, (size_t)r * sizeof *x);
  for (t = s + 1; t < T; t++)
    for (n = 0; n < r; n++) x[t * r + n] = a[t * r + n] * x[(t - 1) * r + n];
}

static void semiseparable_forward(const mhk_op *op) {
  const mhk_index T = op->in[0]->shape[0], r = op->in[0]->shape[1];
  const mhk_real *C = mhk_data(op->in[2]);
  mhk_real *out = mhk_data(op->out), *x = *(mhk_real *const *)op->user;
  mhk_index s, t, n;
  for (s = 0; s < T; s++) {
    states_of(mhk_data(op->in[0]), mhk_data(op->in[1]), s, T, r, x);
    for (t = 0; t < T; t++) {
      mhk_real sum[4] = {0, 0, 0, 0};
      for (n = 0; t >= s && n + 4 <= r; n += 4) {
        sum[0] += C[t * r + n] * x[t * r + n];
        sum[1] += C[t * r + n + 1] * x[t * r + n + 1];
        sum[2] += C[t * r + n + 2] * x[t * r + n + 2];
        sum[3] += C[t * r + n + 3] * x[t * r + n + 3];
      }
      for (; t >= s && n < r; n++) sum[0] += C[t * r + n] * x[t * r + n];
      out[t * T + s] = sum[0] + sum[1] + (sum[2] + sum[3]);
    }
  }
}

/* back through the recurrence of each s; y is the gradient of the state */
static void semiseparable_backward(const mhk_op *op) {
  const mhk_index T = op->in[0]->shape[0], r = op->in[0]->shape[1];
  const mhk_real *a = mhk_data(op->in[0]), *C = mhk_data(op->in[2]), *g = op->out->grad;
  mhk_real *x = *(mhk_real *const *)op->user, *y = x + T * r, *da, *dB, *dC;
  mhk_index s, t, n;
  for (n = 0; n < 3; n++)
    if (!mhk_wants_grad(op->tape, op->in[n])) return;
  da = op->in[0]->grad;
  dB = op->in[1]->grad;
  dC = op->in[2]->grad;
  for (s = 0; s < T; s++) {
    states_of(a, mhk_data(op->in[1]), s, T, r, x);
    memset(y, 0, (size_t)r * sizeof *y);
    for (t = T - 1; t >= s; t--) {
      const mhk_real gradient = g[t * T + s];
      for (n = 0; n < r; n++) {
        const mhk_index i = t * r + n;
        dC[i] += gradient * x[i];
        y[n] += gradient * C[i];
        if (t > s) {
          da[i] += y[n] * x[i - r];
          y[n] *= a[i];
        }
      }
    }
    for (n = 0; n < r; n++) dB[s * r + n] += y[n];
  }
}

/* ---------------------------------------------------------------- fits */

/* What is fitted: the logits of decays (T) or (T,r), B and C (T,r). */
typedef struct fit {
  work *w;
  family f;
  mhk_index r, decays; /* decays a token */
} fit;

/* the relative distance, squared, on the tape */
static mhk_tensor *loss_of(const fit *x, mhk_tape *t, mhk_tensor *const *p) {
  const mhk_index T = x->w->d->T, square[2] = {T, T}, decays[3] = {1, T, 1}, rows[4] = {1, T, 1, x->r};
  mhk_tensor *a, *X, *M = mhk_tensor_new(t, 2, square, x->w->target);
  if (x->f == FAMILY_SSD) { /* log sigmoid(p) = -softplus(-p) */
    a = mhk_scale(t, mhk_softplus(t, mhk_scale(t, p[0], -1)), -1);
    X = mhk_ssd_matrix(t, mhk_reshape(t, a, 3, decays), mhk_reshape(t, p[1], 4, rows), mhk_reshape(t, p[2], 4, rows),
                       NULL, NULL);
    X = mhk_reshape(t, X, 2, square);
  } else {
    mhk_tensor *in[3] = {mhk_sigmoid(t, p[0]), p[1], p[2]};
    const mhk_custom_desc desc = {.inputs = 3, .in = in, .rank = 2, .shape = square, .forward = semiseparable_forward,
                                  .backward = semiseparable_backward, .user = &x->w->scratch,
                                  .user_bytes = sizeof x->w->scratch};
    X = in[0] ? mhk_custom(t, &desc) : NULL;
  }
  return mhk_scale(t, mhk_sum(t, mhk_square(t, mhk_sub(t, X, M))), 1 / (x->w->size * x->w->scale * x->w->scale));
}

static mhk_index elements(const fit *x, int i) { return x->w->d->T * (i == 0 ? x->decays : x->r); }

static void keep(const fit *x, mhk_tensor *const *p) {
  int i;
  for (i = 0; i < 3; i++) memcpy(x->w->best[i], mhk_data(p[i]), (size_t)elements(x, i) * sizeof(mhk_real));
}

/* The rule of all fits: AdamW without weight decay. The learning rate halves when PATIENCE updates
   come less than one in a thousand closer than those before them, and after HALVINGS the fit has
   converged. */
enum { PATIENCE = 100, HALVINGS = 7 };
static const double FIRST_RATE = 0.02, LEAST_GAIN = 1e-3, EXACT = 5e-4;

/* Descends from w->start; returns the least distance, whose place is w->best. */
static double descend(const fit *x) {
  work *w = x->w;
  const mhk_index T = w->d->T, shape[2] = {T, x->r}, decays[2] = {T, x->decays};
  mhk_adamw_desc how = {.lr = FIRST_RATE, .beta1 = 0.9, .beta2 = 0.99};
  mhk_tape *t = mhk_tape_create(w->ctx);
  mhk_tensor *p[3];
  mhk_tape_mark mark;
  double least = INFINITY, lowest = INFINITY, before = INFINITY; /* of all updates, of the last PATIENCE */
  int i, k, halved = 0;
  memset(w->moments, 0, 2 * (size_t)(elements(x, 0) + 2 * elements(x, 1)) * sizeof *w->moments);
  for (i = 0; i < 3; i++)
    p[i] = mhk_require_grad(t, mhk_tensor_new(t, 2, i == 0 ? decays : shape, w->start[i]));
  mark = mhk_tape_here(t);
  for (k = 0; k < FAMILY_MOST_UPDATES && halved < HALVINGS && !mhk_failed(w->ctx); k++) {
    mhk_tensor *loss = loss_of(x, t, p);
    const double value = sqrt(mhk_value(loss));
    if (value < least) {
      least = value;
      keep(x, p);
    }
    if (least < EXACT || cli_stopped()) break;
    lowest = fmin(lowest, value);
    if (k % PATIENCE == PATIENCE - 1) {
      halved += lowest > before * (1 - LEAST_GAIN);
      how.lr = FIRST_RATE * pow(0.5, halved);
      before = lowest;
      lowest = INFINITY;
    }
    mhk_backward(t, loss);
    mhk_adamw(w->ctx, 3, p, w->moments, k + 1, &how);
    mhk_tape_rewind(t, mark);
  }
  w->out->unfinished += k == FAMILY_MOST_UPDATES;
  mhk_tape_destroy(t);
  return least;
}

/* The same numbers from -0.25 to 0.25 on every machine (Knuth's MMIX generator) */
static mhk_real draw(uint64_t *state) {
  *state = *state * 6364136223846793005ull + 1442695040888963407ull;
  return (mhk_real)((double)(*state >> 33) / 4294967296.0 - 0.25);
}

/* B and C from the SVD of M. Decays are slow, or with r of them a token as different as 0.98, 0.82
   and 0.27. */
static void start_from_svd(const work *w, mhk_index r, int each) {
  static const mhk_real logits[3] = {4, 1.5, -1};
  const mhk_index T = w->d->T;
  mhk_index t, n;
  for (t = 0; t < (each ? T * r : T); t++) w->start[0][t] = logits[each ? t % r % 3 : 0];
  for (n = 0; n < r; n++) {
    const double value = sqrt(dot(w->left + n * T, w->left + n * T, T)), root = sqrt(value * w->scale);
    for (t = 0; t < T; t++) {
      w->start[1][t * r + n] = (mhk_real)(w->right[n * T + t] * root);
      w->start[2][t * r + n] = (mhk_real)(value > 0 ? w->left[n * T + t] / value * root : 0);
    }
  }
}

static mhk_index least_of(mhk_index a, mhk_index b) { return a < b ? a : b; }

/* Where a fit of a smaller order ended, with the next singular vectors in B and zeros in C: the
   same matrix. */
static void start_from_kept(const work *w, mhk_real *const *kept, mhk_index before, mhk_index r, int each) {
  const mhk_index T = w->d->T;
  mhk_index t, n;
  start_from_svd(w, r, each);
  for (t = 0; t < T; t++) {
    for (n = 0; each && n < r; n++) w->start[0][t * r + n] = kept[0][t * before + least_of(n, before - 1)];
    if (!each) w->start[0][t] = kept[0][t];
    for (n = 0; n < r; n++) {
      w->start[2][t * r + n] = n < before ? kept[2][t * before + n] : 0;
      if (n < before) w->start[1][t * r + n] = kept[1][t * before + n];
    }
  }
}

/* the SVD's, moved at random, and faster decays: another place to start from */
static void start_elsewhere(const work *w, mhk_index r) {
  uint64_t state = (uint64_t)r;
  mhk_index i;
  start_from_svd(w, r, 0);
  for (i = 0; i < w->d->T; i++) w->start[0][i] = (mhk_real)2.5;
  for (i = 0; i < w->d->T * r; i++) {
    w->start[1][i] += draw(&state);
    w->start[2][i] += draw(&state);
  }
}

/* where SSD of the same order ended, each of its decays r times: the same matrix */
static void start_from_ssd(const work *w, mhk_index r) {
  const mhk_index T = w->d->T;
  mhk_index i;
  for (i = 0; i < T * r; i++) {
    w->start[0][i] = w->kept[0][0][i / r];
    w->start[1][i] = w->kept[0][1][i];
    w->start[2][i] = w->kept[0][2][i];
  }
}

/* Descends from w->start; what comes closer than *least is kept in w->ended. */
static void try_start(const fit *x, double *least) {
  const double value = descend(x);
  int i;
  if (!(value < *least)) return;
  *least = value;
  for (i = 0; i < 3; i++) memcpy(x->w->ended[i], x->w->best[i], (size_t)elements(x, i) * sizeof(mhk_real));
}

/* Fits one family at an order, after all smaller ones, from three places, since descent ends in
   local minima: SSD from the SVD, from near it, and from the order before; a semi-separable matrix
   from SSD of the same order, from the SVD with decays of its own, and from the order before. A fit
   that is exact already is not improved. */
static int fit_one(work *w, family f, int at) {
  const int each = f == FAMILY_SEMISEPARABLE;
  const mhk_index r = w->d->orders[at];
  const fit x = {.w = w, .f = f, .r = r, .decays = each ? r : 1};
  double least = INFINITY;
  int k, i;
  for (k = 0; k < (at > 0 ? 3 : 2) && least > EXACT; k++) {
    if (k == 2) start_from_kept(w, w->kept[each], w->d->orders[at - 1], r, each);
    else if (k == each) start_from_svd(w, r, each);
    else if (each) start_from_ssd(w, r);
    else start_elsewhere(w, r);
    try_start(&x, &least);
  }
  if (at > 0) least = fmin(least, w->out->relative[f][at - 1]); /* which may end before a smaller order does */
  w->out->relative[f][at] = each ? fmin(least, w->out->relative[FAMILY_SSD][at]) : least;
  for (i = 0; i < 3; i++) memcpy(w->kept[each][i], w->ended[i], (size_t)elements(&x, i) * sizeof(mhk_real));
  return !cli_stopped() && !mhk_failed(w->ctx) && !(w->d->fitted && w->d->fitted(w->d->user));
}

/* ---------------------------------------------------------------- all families */

static int measure(work *w) {
  const mhk_index T = w->d->T;
  const double first = toeplitz(w);
  double squares[FAMILY_MOST_ORDERS] = {0};
  unsigned char on[FAMILY_MOST_ORDERS];
  mhk_index i;
  int o;
  for (i = 0; i < T * T; i++) w->target[i] = (mhk_real)(w->M[i] * w->scale);
  decompose(w);
  memset(on, 1, sizeof on);
  add_bound(w, 0, T, on, squares);
  for (o = 0; o < w->d->n; o++) {
    w->out->relative[FAMILY_TOEPLITZ][o] = first;
    w->out->relative[FAMILY_BOUND][o] = relative_of(w, squares[o]);
    low_rank(w, o);
    if (!fit_one(w, FAMILY_SSD, o) || !fit_one(w, FAMILY_SEMISEPARABLE, o)) return 0;
  }
  return 1;
}

int family_measure(mhk_context *ctx, const double *M, const family_desc *d, family_errors *out) {
  const size_t each = (size_t)(d->T * d->T);
  work w = {.ctx = ctx, .d = d, .M = M, .out = out, .size = dot(M, M, d->T * d->T)};
  double *numbers = (double *)calloc(3 * each + (size_t)d->T, sizeof *numbers);
  mhk_real *reals = (mhk_real *)calloc(24 * each, sizeof *reals);
  int i, good = 0;
  memset(out, 0, sizeof *out);
  w.scale = 0.5 * sqrt((double)d->T / w.size);
  if (numbers && reals) {
    w.left = numbers;
    w.right = numbers + each;
    w.block = numbers + 2 * each;
    for (i = 0; i < 3; i++) {
      w.start[i] = reals + (size_t)i * each;
      w.best[i] = reals + (size_t)(3 + i) * each;
      w.ended[i] = reals + (size_t)(21 + i) * each;
      w.kept[0][i] = reals + (size_t)(6 + i) * each;
      w.kept[1][i] = reals + (size_t)(9 + i) * each;
    }
    w.moments = reals + 12 * each;
    w.scratch = reals + 18 * each;
    w.target = reals + 20 * each;
    good = measure(&w);
  } else {
    mhk_fail(ctx, MHK_ERROR_MEMORY, "out of memory for a matrix of %d x %d", (int)d->T, (int)d->T);
  }
  free(numbers);
  free(reals);
  return good;
}
