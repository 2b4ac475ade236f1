/* draw.c: a training loop of your own that draws its progress: the learning rate, the order of the
   stages and when to stop are yours, and a picture of the losses is rewritten as they come.

     cc -O3 -fopenmp -I. examples/draw.c -lm -o draw
     ./draw examples/tiny corpus.txt progress.svg        (and open progress.svg in a browser)

   mhk_train_on() is one update of a stage on tokens of your own, at a learning rate of your own. It
   has no schedule, checkpoints or text: examples/distill.c has them. */
#define MOHAWK_IMPLEMENTATION
#include "mohawk.h"
#include <stdio.h>
#include <string.h>

enum { BATCH = 4, LENGTH = 64, MOST = 300, EACH = 25 }; /* updates: at most, and of each stage at least */

/* the losses so far, each stage in a panel of its own */
static int draw(const char *path, double loss[4][MOST], const int updates[4]) {
  static const char *const names[] = {"", "1 matrices", "2 hidden states", "3 predictions"};
  FILE *out = fopen(path, "w");
  int stage, i;
  if (!out) return 0;
  fprintf(out, "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 660 220' font-family='sans-serif' "
               "font-size='12'>\n<rect width='660' height='220' fill='white'/>\n");
  for (stage = 1; stage <= 3; stage++) {
    const double left = 20 + 215 * (stage - 1), *y = loss[stage];
    double low = y[0], high = y[0];
    for (i = 0; i < updates[stage]; i++) {
      if (y[i] < low) low = y[i];
      if (y[i] > high) high = y[i];
    }
    fprintf(out, "<text x='%g' y='16'>stage %s</text>\n", left, names[stage]);
    if (updates[stage] < 2) continue;
    fprintf(out, "<text x='%g' y='210' fill='#555'>%.3g, from %.3g</text>\n<polyline fill='none' stroke='#0072b2' "
                 "stroke-width='1.5' points='", left, y[updates[stage] - 1], y[0]);
    for (i = 0; i < updates[stage]; i++)
      fprintf(out, "%.1f,%.1f ", left + 190.0 * i / (updates[stage] - 1),
              190 - 160 * (y[i] - low) / (high - low + 1e-9));
    fprintf(out, "'/>\n");
  }
  fprintf(out, "</svg>\n");
  return fclose(out) == 0;
}

/* a stage is over when its last losses are hardly lower than those before them */
static int goes_on(const double *loss, int n) {
  double last = 0, before = 0;
  int i;
  if (n < EACH) return 1;
  for (i = 1; i <= EACH / 2; i++) last += loss[n - i], before += loss[n - EACH / 2 - i];
  return n < MOST && last < 0.97 * before;
}

int main(int argc, char **argv) {
  static const double rate[] = {0, 1e-2, 5e-3, 5e-4};
  static double loss[4][MOST];
  const char *picture = argc > 3 ? argv[3] : "progress.svg";
  int updates[4] = {0, 0, 0, 0}, stage, b, failed;
  int32_t tokens[BATCH * LENGTH];
  const int32_t *all;
  uint32_t random = 1;
  mhk_context_desc options;
  mhk_context *ctx;
  mhk_distill_desc run;
  mhk_corpus_desc text;
  mhk_trainer *trainer;
  mhk_index n;
  if (argc < 3) {
    fprintf(stderr, "usage: draw TEACHER TEXT [PICTURE]\n");
    return 2;
  }
  memset(&options, 0, sizeof options);
  options.threads = -1; /* all CPUs */
  ctx = mhk_create(&options);
  memset(&text, 0, sizeof text);
  text.n_files = 1;
  text.files = (const char *const *)&argv[2];
  memset(&run, 0, sizeof run);
  run.teacher = mhk_load(ctx, argv[1]);
  run.corpus = mhk_corpus_load(ctx, mhk_model_tokenizer(run.teacher), &text); /* for the calibrated start */
  trainer = mhk_distill(ctx, &run);
  n = mhk_corpus_tokens(run.corpus, &all);
  for (stage = 1; stage <= 3 && n > LENGTH; stage++)
    while (!mhk_failed(ctx) && goes_on(loss[stage], updates[stage])) {
      for (b = 0; b < BATCH; b++) { /* windows at random places */
        random = random * 1664525u + 1013904223u;
        memcpy(tokens + b * LENGTH, all + (mhk_index)(random >> 8) % (n - LENGTH), LENGTH * sizeof *tokens);
      }
      loss[stage][updates[stage]] =
          mhk_train_on(trainer, stage, tokens, BATCH, LENGTH, NULL, rate[stage] * (updates[stage] < 10 ? 0.3 : 1));
      updates[stage]++;
      if (updates[stage] % 5 == 0 && !draw(picture, loss, updates)) fprintf(stderr, "cannot write %s\n", picture);
    }
  for (stage = 1; stage <= 3 && updates[stage] > 0; stage++)
    printf("stage %d  %3d updates  loss %.4g, from %.4g\n", stage, updates[stage], loss[stage][updates[stage] - 1],
           loss[stage][0]);
  failed = mhk_failed(ctx) || !updates[3] || !draw(picture, loss, updates);
  if (mhk_failed(ctx)) fprintf(stderr, "%s\n", mhk_message(ctx));
  mhk_destroy(ctx);
  return failed;
}
