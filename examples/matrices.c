/* matrices.c: the mixing matrix of every layer and head of a model, read as numbers: how far each
   head looks back, how much of a row is on the token itself, and a picture of all of them.

     cc -O3 -I. examples/matrices.c -lm -o matrices
     ./matrices examples/tiny "Once upon a time there was a fox." matrices.pgm

   M[t,s] says how much token s counts at token t. In attention it is a softmax, whose rows sum to
   1; in a state-space layer a product of decays, B and C, of either sign. mhk_forward_matrix()
   computes (B,H,T,T) for both, on the hidden state that reaches the layer. */
#define MOHAWK_IMPLEMENTATION
#include "mohawk.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 64 }; /* tokens */

/* of one matrix, over the sizes of its entries */
static void describe(const mhk_real *m, mhk_index T, int layer, mhk_index head) {
  double size = 0, distance = 0, own = 0;
  mhk_index t, s;
  for (t = 0; t < T; t++)
    for (s = 0; s <= t; s++) {
      const double x = fabs((double)m[t * T + s]);
      size += x;
      distance += x * (double)(t - s);
      if (s == t) own += x;
    }
  printf("%5d %5d   %10.2f   %10.0f %%\n", layer, (int)head, distance / size, 100 * own / size);
}

/* into a picture, gray from 0 (white) to the largest entry of its row (black) */
static void paint(unsigned char *at, mhk_index width, const mhk_real *m, mhk_index T) {
  mhk_index t, s;
  for (t = 0; t < T; t++) {
    double most = 1e-30;
    for (s = 0; s <= t; s++) most = fmax(most, fabs((double)m[t * T + s]));
    for (s = 0; s < T; s++)
      at[t * width + s] = (unsigned char)(255 - 255 * (s <= t ? fabs((double)m[t * T + s]) / most : 0));
  }
}

int main(int argc, char **argv) {
  const char *words = argc > 2 ? argv[2] : "Once upon a time there was a little fox who could not sleep.";
  const char *path = argc > 3 ? argv[3] : "matrices.pgm";
  mhk_context *ctx = mhk_create(NULL);
  mhk_model *model = mhk_load(ctx, argc > 1 ? argv[1] : "build/demo/student");
  const mhk_config *c = mhk_model_config(model);
  mhk_tape *tape = mhk_tape_create(ctx);
  int32_t tokens[MOST];
  mhk_index T = mhk_encode(mhk_model_tokenizer(model), words, strlen(words), tokens, MOST);
  mhk_tensor *x, *m;
  unsigned char *picture = NULL;
  mhk_index H = 0, width = 0, h;
  int l, failed;
  FILE *out = NULL;
  if (T > MOST) T = MOST;
  mhk_tape_record(tape, 0); /* no gradients */
  x = mhk_forward_embedding(tape, model, tokens, 1, T);
  if (!mhk_failed(ctx)) printf("layer  head   looks back   on itself\n");
  for (l = 0; !mhk_failed(ctx) && l < c->n_layer; l++) {
    m = mhk_forward_matrix(tape, model, l, mhk_forward_norm(tape, model, l, x), NULL); /* (1,H,T,T) */
    if (!m) break;
    if (!picture) {
      H = m->shape[1];
      width = H * (T + 2);
      picture = (unsigned char *)malloc((size_t)(width * c->n_layer * (T + 2)));
      if (!picture) break;
      memset(picture, 255, (size_t)(width * c->n_layer * (T + 2)));
    }
    for (h = 0; h < m->shape[1] && h < H; h++) {
      describe(mhk_data(m) + h * T * T, T, l, h);
      paint(picture + l * (T + 2) * width + h * (T + 2), width, mhk_data(m) + h * T * T, T);
    }
    x = mhk_forward_block(tape, model, l, x, NULL); /* to the next layer */
  }
  if (picture && !mhk_failed(ctx)) out = fopen(path, "wb");
  if (out) {
    fprintf(out, "P5 %d %d 255\n", (int)width, (int)(c->n_layer * (T + 2)));
    fwrite(picture, 1, (size_t)(width * c->n_layer * (T + 2)), out);
  }
  failed = !out || ferror(out) != 0;
  if (out && fclose(out) != 0) failed = 1;
  if (mhk_failed(ctx)) fprintf(stderr, "%s\n", mhk_message(ctx));
  else if (failed) fprintf(stderr, "cannot write %s\n", path);
  free(picture);
  mhk_destroy(ctx);
  return failed;
}
