/* new_mixer.c: a mixer of your own as the layer of a model. It is defined once for training (on the
   tape) and once for inference (a step with a state), then distilled from a Transformer, saved,
   loaded and run; at the end both definitions are checked against each other.

     cc -O3 -I. examples/new_mixer.c -lm -o new_mixer
     ./new_mixer [TEACHER [OUT]]

   While you write it, -O0 -DMOHAWK_NO_SIMD in place of -O3 compiles in two seconds, and
   -DMOHAWK_DOUBLE checks gradients to 1e-6. Once they are right, -fopenmp gives it threads; an op
   runs its loops on them with mhk_parallel() and has room with mhk_scratch().

   The mixer is a state-space layer whose output passes a soft cap x / sqrt(1 + x^2). With H heads
   of P values, states of N, and x, B, C and decay projected from the input u:

     S_t = a_t S_t-1 + x_t B_t^T    a_t = exp(-softplus(decay_t)), between 0 and 1
     y_t = cap(S_t C_t)

   The cap is an op that mohawk.h does not have, so it brings its own backward pass; everything else
   is put together from ops that do. */
#define MOHAWK_IMPLEMENTATION
#include "mohawk.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- the op */

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

/* An op of your own is checked by finite differences. The checker presets the gradient of x, so =
   in place of += is found, too. */
static mhk_tensor *cap_squared(mhk_tape *t, void *x) { return mhk_mean(t, mhk_square(t, cap(t, (mhk_tensor *)x))); }
static double cap_error(mhk_context *ctx) {
  mhk_index shape = 12, i;
  mhk_tensor *x = mhk_parameter(ctx, "x", 1, &shape, NULL);
  for (i = 0; x && i < shape; i++) mhk_data(x)[i] = (mhk_real)sin(0.7 * (double)(i + 1));
  return mhk_check_gradient(mhk_tape_create(ctx), cap_squared, x, x, NULL);
}

/* ---- the mixer: its tensors */

enum { IN, OUT };

/* which tensors a layer has, and how they start */
static int tensor(const mhk_config *c, int i, mhk_mixer_tensor *x) {
  const mhk_index H = c->ssm_heads, P = c->ssm_head_dim, N = c->d_state;
  x->rank = 2;
  x->start = MHK_START_LINEAR;
  if (i == IN) { /* rows of x, B, C and decay */
    x->name = "in_proj.weight";
    x->shape[0] = H * (P + N + N + 1);
    x->shape[1] = c->d_model;
    x->in_matrix = 1;
  } else {
    x->name = "out_proj.weight";
    x->shape[0] = c->d_model;
    x->shape[1] = H * P;
  }
  return i <= OUT;
}

/* ---- on the tape */

/* columns of in (B,T,...) as heads: (B,T,H,each), or (B,T,H) of one each */
static mhk_tensor *heads(mhk_tape *t, mhk_tensor *in, mhk_index first, mhk_index H, mhk_index each) {
  mhk_index shape[4];
  if (!in) return NULL;
  shape[0] = in->shape[0], shape[1] = in->shape[1], shape[2] = H, shape[3] = each;
  return mhk_reshape(t, mhk_columns(t, in, first, H * each), each > 1 ? 4 : 3, shape);
}

typedef struct parts {
  mhk_tensor *x, *b, *c, *log_a;
} parts;

static parts project(mhk_tape *t, const mhk_config *c, mhk_tensor *const *w, mhk_tensor *u) {
  const mhk_index H = c->ssm_heads, P = c->ssm_head_dim, N = c->d_state;
  mhk_tensor *in = mhk_linear(t, u, w[IN], NULL);
  parts p;
  p.x = heads(t, in, 0, H, P);
  p.b = heads(t, in, H * P, H, N);
  p.c = heads(t, in, H * (P + N), H, N);
  p.log_a = mhk_scale(t, mhk_softplus(t, heads(t, in, H * (P + 2 * N), H, 1)), -1.0);
  return p;
}

/* u (B,T,D) -> (B,T,D) for whole sequences, with gradients */
static mhk_tensor *forward(mhk_tape *t, const mhk_config *c, mhk_tensor *const *w, mhk_tensor *u, const int32_t *doc) {
  parts p = project(t, c, w, u);
  mhk_ssd_desc desc;
  mhk_tensor *y;
  mhk_index shape[3];
  memset(&desc, 0, sizeof desc);
  desc.doc = doc;
  y = cap(t, mhk_ssd(t, p.x, p.log_a, p.b, p.c, &desc));
  if (!y) return NULL;
  shape[0] = y->shape[0], shape[1] = y->shape[1], shape[2] = y->shape[2] * y->shape[3];
  return mhk_linear(t, mhk_reshape(t, y, 3, shape), w[OUT], NULL);
}

/* how much token s counts at t, for stage 1: the mixer without its cap */
static mhk_tensor *matrix(mhk_tape *t, const mhk_config *c, mhk_tensor *const *w, mhk_tensor *u, const int32_t *doc) {
  parts p = project(t, c, w, u);
  return mhk_ssd_matrix(t, p.log_a, p.b, p.c, NULL, doc);
}

/* ---- in a session */

static mhk_index state(const mhk_config *c) { return (mhk_index)c->ssm_heads * c->ssm_head_dim * c->d_state; }
static mhk_index work(const mhk_config *c) {
  return (mhk_index)c->ssm_heads * (2 * c->ssm_head_dim + 2 * c->d_state + 1);
}

static void rows_times(mhk_index rows, mhk_index n, const mhk_real *w, const mhk_real *x, mhk_real *y) {
  mhk_index i, k;
  for (i = 0; i < rows; i++)
    for (y[i] = 0, k = 0; k < n; k++) y[i] += w[i * n + k] * x[k];
}

/* the same for one token of one sequence, whose past is the state */
static void step(const mhk_config *c, const mhk_real *const *w, const mhk_real *u, mhk_real *s, mhk_real *room,
                 mhk_real *out) {
  const mhk_index H = c->ssm_heads, P = c->ssm_head_dim, N = c->d_state;
  mhk_real *x = room, *b = x + H * P, *cc = b + H * N, *decay = cc + H * N, *y = decay + H;
  mhk_index h, p, n;
  rows_times(H * (P + N + N + 1), c->d_model, w[IN], u, x);
  for (h = 0; h < H; h++) {
    const mhk_real a = (mhk_real)(1.0 / (1.0 + exp((double)decay[h]))); /* exp(-softplus(decay)) */
    for (p = 0; p < P; p++, s += N) {
      mhk_real sum = 0;
      for (n = 0; n < N; n++) {
        s[n] = a * s[n] + x[h * P + p] * b[h * N + n];
        sum += s[n] * cc[h * N + n];
      }
      y[h * P + p] = sum / (mhk_real)sqrt(1.0 + (double)sum * (double)sum);
    }
  }
  rows_times(c->d_model, H * P, w[OUT], y, out);
}

static mhk_mixer capped(void) {
  mhk_mixer m;
  memset(&m, 0, sizeof m);
  m.name = "examples.capped_ssd"; /* config.json says so */
  m.tensor = tensor;
  m.forward = forward;
  m.matrix = matrix;
  m.state = state;
  m.work = work;
  m.step = step;
  return m;
}

/* ---- its life: distilled, saved, loaded, run */

/* a few updates of each stage; a real run takes thousands (examples/distill.c) */
static void distill(mhk_context *ctx, mhk_model *teacher, const char *out) {
  mhk_distill_desc run;
  mhk_trainer *trainer;
  int more = 1;
  memset(&run, 0, sizeof run);
  run.teacher = teacher;
  run.student_desc.mixer = "examples.capped_ssd";
  run.corpus = mhk_corpus_sample(teacher, 4000, 1, NULL, NULL); /* no corpus: what the teacher writes */
  run.batch = 4;
  run.length = 64;
  run.stages[0].tokens = run.stages[1].tokens = run.stages[2].tokens = 5 * 256;
  trainer = mhk_distill(ctx, &run);
  while (more && !mhk_failed(ctx)) {
    const mhk_progress_info *p;
    more = mhk_train_step(trainer);
    p = mhk_progress(trainer);
    if (more && p)
      printf("stage %d  update %lld of %lld  loss %.4f\n", p->stage, (long long)p->step, (long long)p->steps, p->loss);
  }
  mhk_save(mhk_student(trainer), out, MHK_F32);
}

/* worst distance of the session's logits from the tape's, over their largest */
static double disagreement(mhk_context *ctx, mhk_model *m) {
  int32_t tokens[67];
  mhk_tape *t = mhk_tape_create(ctx);
  mhk_session *s = mhk_session_create(m, NULL);
  double worst = 0, most = 0;
  const mhk_real *fed, *taped;
  int i;
  for (i = 0; i < 67; i++) tokens[i] = (int32_t)(i * 37 % mhk_model_config(m)->vocab_size);
  mhk_feed(s, tokens, 66); /* prefill */
  mhk_feed(s, tokens + 66, 1);
  fed = mhk_logits(s, 0);
  taped = mhk_data(mhk_forward(t, m, tokens, 1, 67, NULL));
  if (mhk_failed(ctx)) return HUGE_VAL;
  taped += 66 * mhk_model_config(m)->vocab_size;
  for (i = 0; i < mhk_model_config(m)->vocab_size; i++) {
    worst = fmax(worst, fabs((double)(fed[i] - taped[i])));
    most = fmax(most, fabs((double)taped[i]));
  }
  mhk_session_destroy(s);
  return worst / most;
}

/* from the definition to generated text; fails where tape and session differ */
int main(int argc, char **argv) {
  const char *out = argc > 2 ? argv[2] : "new_mixer_student";
  mhk_context *ctx = mhk_create(NULL);
  const mhk_mixer mine = capped();
  mhk_model *teacher, *student;
  mhk_session *s;
  double error = HUGE_VAL, gradient = cap_error(ctx);
  int i;
  printf("gradient of the cap: error %.1e against finite differences\n", gradient);
  mhk_mixer_add(ctx, &mine); /* before models that have it */
  teacher = mhk_load(ctx, argc > 1 ? argv[1] : "examples/tiny");
  if (teacher) distill(ctx, teacher, out);
  student = mhk_failed(ctx) ? NULL : mhk_load(ctx, out);
  if (student) {
    error = disagreement(ctx, student);
    s = mhk_session_create(student, NULL);
    mhk_feed_text(s, "It was a dark night");
    for (i = 0; i < 20 && mhk_sample(s, NULL) >= 0; i++) fputs(mhk_text_out(s), stdout);
    printf("\ntape and session differ by %.1e of the largest logit\n", error);
  }
  if (mhk_failed(ctx)) fprintf(stderr, "%s\n", mhk_message(ctx));
  i = mhk_failed(ctx) || !(error < 1e-4) || !(gradient < (sizeof(mhk_real) == 8 ? 1e-6 : 1e-3));
  mhk_destroy(ctx);
  return i;
}
