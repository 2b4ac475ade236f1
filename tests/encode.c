/* For test_random_text.py: strings on standard input, each after its length in bytes and a line
   end, and their ids on standard output, a line each: those of mhk_encode(), then how many
   mhk_encode_prompt() gives; with --words first, the bytes of each word instead. Arguments:
   tokenizers' folders or files. A string goes through each of them. */
#include "foreign.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv) {
  mhk_context *ctx = mhk_create(NULL);
  mhk_tokenizer *k[64];
  mhk_index room = 0, n, i;
  int32_t *ids = NULL;
  char *text = NULL;
  long length;
  int t, words = argc > 1 && strcmp(argv[1], "--words") == 0;
  argv += words;
  argc -= words;
  for (t = 1; t < argc && t < 64; t++) k[t] = foreign_tokenizer_load(ctx, argv[t]);
  while (!mhk_failed(ctx) && scanf("%ld%*c", &length) == 1) {
    if (3 * length + 8 > room) { /* normalized text is at most three times as long */
      room = 3 * length + 8;
      text = (char *)realloc(text, (size_t)room);
      ids = (int32_t *)realloc(ids, (size_t)room * sizeof *ids);
    }
    if (!text || !ids || fread(text, 1, (size_t)length, stdin) != (size_t)length) break;
    for (t = 1; t < argc && t < 64; t++) {
      for (i = 0; words && i < length; i += n)
        printf("%d ", (int)(n = (mhk_index)mhk_tokenizer_word(k[t], text + i, (size_t)(length - i))));
      if (words) {
        putchar('\n');
        continue;
      }
      n = mhk_encode(k[t], text, (size_t)length, ids, room);
      for (i = 0; i < n; i++) printf("%d ", (int)ids[i]);
      printf("%d\n", (int)mhk_encode_prompt(k[t], text, (size_t)length, NULL, 0));
    }
  }
  if (mhk_failed(ctx)) fprintf(stderr, "%s\n", mhk_message(ctx));
  t = mhk_failed(ctx);
  free(text);
  free(ids);
  mhk_destroy(ctx);
  return t;
}
