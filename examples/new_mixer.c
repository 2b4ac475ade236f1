/* new_mixer.c: your own mixer and loss on the tape, with a gradient check by finite differences.

     cc -O3 -I. examples/new_mixer.c -lm -o new_mixer

   The mixer is a state-space layer with a soft cap x / sqrt(1 + x^2) on its output. mohawk.h has no
   such op, so this file defines its forward and backward. Everything else uses existing ops. */
#define MOHAWK_IMPLEMENTATION
#include "mohawk.h"
#include <math.h>
#include <stdio.h>

static void cap_forward(const mhk_op *op) {
  const mhk_real *x = mhk_data(op->in[0]);
  mhk_real *y = mhk_data(op->out);
  mhk_index i;
  for (i = 0; i < op->out->count; i++) y[i] = x[i] / (mhk_real)sqrt(1.0 + (double)x[i] * (double)x[i]);
}

static void cap_backward(const mhk_op *op) { /* dy/dx = (1 + x^2)^(-3/2) */
  const mhk_real *x = mhk_data(op->in[0]);
  mhk_index i;
  if (!mhk_wants_grad(op->tape, op->in[0])) return;
  for (i = 0; i < op->out->count; i++)
    op->in[0]->grad[i] += op->out->grad[i] * (mhk_real)pow(1.0 + (double)x[i] * (double)x[i], -1.5);
}

static mhk_tensor *cap(mhk_tape *t, mhk_tensor *x) {
  mhk_custom_desc d;
  if (!x) return NULL;
  memset(&d, 0, sizeof d);
  d.inputs = 1;
  d.in = &x;
  d.rank = x->rank;
  d.shape = x->shape;
  d.forward = cap_forward;
  d.backward = cap_backward;
  return mhk_custom(t, &d);
}

/* B sequences of T tokens, H heads of P values, states of N */
enum { B = 2, T = 12, H = 2, P = 3, N = 4 };
typedef struct problem {
  mhk_tensor *x, *decay, *b, *c, *target;
} problem;

/* the mixer and its loss: mean squared distance from the target */
static mhk_tensor *loss(mhk_tape *t, void *user) {
  problem *p = (problem *)user;
  mhk_tensor *log_a = mhk_scale(t, mhk_softplus(t, p->decay), -1.0); /* a = exp(-softplus(decay)), between 0 and 1 */
  mhk_tensor *y = cap(t, mhk_ssd(t, p->x, log_a, p->b, p->c, NULL));
  return mhk_mean(t, mhk_square(t, mhk_sub(t, y, p->target)));
}

/* a tensor of sine waves: any smooth values will do */
static mhk_tensor *waves(mhk_context *ctx, const char *name, int rank, mhk_index last, double speed) {
  mhk_index shape[4], i;
  mhk_tensor *x;
  shape[0] = B, shape[1] = T, shape[2] = H, shape[3] = last;
  x = mhk_parameter(ctx, name, rank, shape, NULL);
  for (i = 0; x && i < x->count; i++) mhk_data(x)[i] = (mhk_real)sin(speed * (double)(i + 1));
  return x;
}

int main(void) {
  mhk_context *ctx = mhk_create(NULL);
  mhk_tape *t = mhk_tape_create(ctx);
  problem p;
  mhk_tensor *in[4];
  mhk_gradient_report report;
  int i, bad = 0;
  p.x = in[0] = waves(ctx, "x", 4, P, 0.7);
  p.decay = in[1] = waves(ctx, "decay", 3, 1, 0.9);
  p.b = in[2] = waves(ctx, "B", 4, N, 1.1);
  p.c = in[3] = waves(ctx, "C", 4, N, 1.3);
  p.target = mhk_detach(t, waves(ctx, "target", 4, P, 1.7));
  for (i = 0; i < 4 && !mhk_failed(ctx); i++) {
    double error = mhk_check_gradient(t, loss, &p, in[i], &report);
    printf("%-6s worst element %3lld: tape %+.6f, finite differences %+.6f, error %.1e\n", in[i]->name,
           (long long)report.at, report.analytic, report.numeric, error);
    bad |= !(error < 0.02); /* float32; build with -DMOHAWK_DOUBLE for 1e-6 */
  }
  if (mhk_failed(ctx)) fprintf(stderr, "%s\n", mhk_message(ctx));
  bad |= mhk_failed(ctx);
  mhk_destroy(ctx);
  return bad;
}
