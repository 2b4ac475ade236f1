/* new_loss.c: a loss of your own. Distillation with the reverse KL divergence, KL(student ||
   teacher), in place of the cross-entropy that mohawk.h trains with: the student avoids what the
   teacher finds unlikely, where the usual direction makes it cover all that the teacher finds
   likely.

     cc -O3 -I. examples/new_loss.c -lm -o new_loss
     ./new_loss [TEACHER [TEXT]]

   A loss is a function that makes a tensor of one number from tensors on a tape. If the ops of
   mohawk.h are not enough, as here, an op of your own computes its value and its gradient. With
   q = softmax(x) of the student and p = softmax(y) of the teacher, over V tokens:

     KL = sum_i q_i (log q_i - log p_i)        dKL/dx_i = q_i (log q_i - log p_i - KL) */
#define MOHAWK_IMPLEMENTATION
#include "mohawk.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BATCH = 4, LENGTH = 64, UPDATES = 40 };

/* log softmax of one row into out */
static void log_softmax(const mhk_real *x, mhk_index V, double *out) {
  double most = (double)x[0], sum = 0;
  mhk_index i;
  for (i = 1; i < V; i++) most = fmax(most, (double)x[i]);
  for (i = 0; i < V; i++) sum += exp((double)x[i] - most);
  for (i = 0; i < V; i++) out[i] = (double)x[i] - most - log(sum);
}

enum { MOST_V = 1 << 16 };
static double log_q[MOST_V], log_p[MOST_V]; /* of one row */

/* KL of row r, whose logarithms it leaves behind */
static double row_kl(const mhk_op *op, mhk_index r) {
  const mhk_index V = op->in[0]->shape[2];
  double kl = 0;
  mhk_index i;
  log_softmax(mhk_data(op->in[0]) + r * V, V, log_q);
  log_softmax(mhk_data(op->in[1]) + r * V, V, log_p);
  for (i = 0; i < V; i++) kl += exp(log_q[i]) * (log_q[i] - log_p[i]);
  return kl;
}

static void forward(const mhk_op *op) {
  const mhk_index rows = op->in[0]->count / op->in[0]->shape[2];
  double sum = 0;
  mhk_index r;
  for (r = 0; r < rows; r++) sum += row_kl(op, r);
  mhk_data(op->out)[0] = (mhk_real)(sum / (double)rows);
}

static void backward(const mhk_op *op) {
  const mhk_index V = op->in[0]->shape[2], rows = op->in[0]->count / V;
  mhk_index r, i;
  if (!mhk_wants_grad(op->tape, op->in[0])) return; /* the teacher's are never wanted */
  for (r = 0; r < rows; r++) {
    const double kl = row_kl(op, r), scale = (double)op->out->grad[0] / (double)rows;
    for (i = 0; i < V; i++)
      op->in[0]->grad[r * V + i] += (mhk_real)(scale * exp(log_q[i]) * (log_q[i] - log_p[i] - kl));
  }
}

/* the loss: student and teacher (B,T,V) -> the mean over tokens */
static mhk_tensor *reverse_kl(mhk_tape *t, mhk_tensor *student, mhk_tensor *teacher) {
  static const mhk_index one = 1;
  mhk_tensor *in[2];
  mhk_custom_desc d;
  if (!student || !teacher || student->shape[2] > MOST_V) return NULL;
  in[0] = student, in[1] = teacher;
  memset(&d, 0, sizeof d);
  d.inputs = 2;
  d.in = in;
  d.rank = 1;
  d.shape = &one;
  d.forward = forward;
  d.backward = backward;
  return mhk_custom(t, &d);
}

/* a gradient of your own is checked by finite differences, at logits like any */
static mhk_tensor *logits_like_any(mhk_context *ctx, double phase) {
  const mhk_index shape[3] = {1, 2, 7};
  mhk_tensor *x = mhk_parameter(ctx, "x", 3, shape, NULL);
  mhk_index i;
  for (i = 0; x && i < x->count; i++) mhk_data(x)[i] = (mhk_real)(2 * sin(phase * (double)(i + 1)));
  return x;
}
static mhk_tensor *checked(mhk_tape *t, void *user) {
  mhk_tensor **both = (mhk_tensor **)user;
  return reverse_kl(t, both[0], both[1]);
}

/* One update of the student on windows at random places of the text. Returns the loss. */
static double update(mhk_tape *tape, mhk_model *student, mhk_model *teacher, const mhk_corpus *corpus,
                     uint32_t *random) {
  const int32_t *text;
  const mhk_index n = mhk_corpus_tokens(corpus, &text);
  int32_t tokens[BATCH * LENGTH];
  mhk_tensor *target, *loss;
  double value;
  int b, recording;
  for (b = 0; b < BATCH; b++) {
    *random = *random * 1664525u + 1013904223u;
    memcpy(tokens + b * LENGTH, text + (mhk_index)(*random >> 8) % (n - LENGTH), LENGTH * sizeof *tokens);
  }
  recording = mhk_tape_record(tape, 0); /* the teacher needs no gradients */
  target = mhk_forward(tape, teacher, tokens, BATCH, LENGTH, NULL);
  mhk_tape_record(tape, recording);
  loss = reverse_kl(tape, mhk_forward(tape, student, tokens, BATCH, LENGTH, NULL), target);
  value = mhk_value(loss);
  mhk_backward(tape, loss);
  mhk_tape_reset(tape);
  return value;
}

int main(int argc, char **argv) {
  const char *file = argc > 2 ? argv[2] : "examples/story.txt";
  mhk_context *ctx = mhk_create(NULL);
  mhk_tape *tape = mhk_tape_create(ctx);
  mhk_model *teacher = mhk_load(ctx, argc > 1 ? argv[1] : "examples/tiny"), *student;
  mhk_tensor *both[2], *trained[4096];
  mhk_real *moments;
  mhk_corpus_desc text;
  mhk_corpus *corpus;
  mhk_adamw_desc adamw;
  double error, loss = 0, before = 0;
  uint32_t random = 1;
  size_t numbers = 0;
  int step, i, n, failed;
  both[0] = logits_like_any(ctx, 0.7);
  both[1] = logits_like_any(ctx, 1.9);
  error = mhk_check_gradient(tape, checked, both, both[0], NULL);
  printf("gradient of the loss: error %.1e against finite differences\n", error);

  memset(&text, 0, sizeof text);
  text.n_files = 1;
  text.files = &file;
  corpus = mhk_corpus_load(ctx, mhk_model_tokenizer(teacher), &text);
  student = mhk_student_create(ctx, teacher, NULL); /* a new one, which starts from the teacher's weights */
  n = mhk_model_count(student);
  for (i = 0; i < n && i < 4096; i++) numbers += (size_t)mhk_model_at(student, i)->count;
  for (i = 0; i < n && i < 4096; i++) trained[i] = mhk_model_at(student, i);
  moments = (mhk_real *)calloc(2 * numbers + 1, sizeof *moments); /* of AdamW: two numbers for each */
  memset(&adamw, 0, sizeof adamw);
  adamw.lr = 1e-3;
  for (step = 1; step <= UPDATES && moments && !mhk_failed(ctx); step++) {
    loss = update(tape, student, teacher, corpus, &random);
    mhk_adamw(ctx, i, trained, moments, step, &adamw); /* and sets the gradients to 0 */
    if (step == 1) before = loss;
    if (step % 10 == 0) printf("update %3d of %d  KL(student || teacher) %.4f\n", step, UPDATES, loss);
  }

  if (mhk_failed(ctx)) fprintf(stderr, "%s\n", mhk_message(ctx));
  failed = mhk_failed(ctx) || !(error < 0.01) || !(loss < 0.8 * before);
  free(moments);
  mhk_destroy(ctx);
  return failed;
}
