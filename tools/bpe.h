/* bpe.h: trains byte-level BPE tokenizers. */
#ifndef MOHAWK_BPE_H
#define MOHAWK_BPE_H

#include "cli.h"

typedef struct bpe_desc {
  int n_texts;
  const char *const *texts; /* UTF-8; <|endoftext|> separates documents */
  const size_t *lengths;    /* in bytes */
  int vocab_size;           /* the most tokens, BPE_LEAST or more */
  mhk_index least;          /* a pair must occur this many times to become a token */
} bpe_desc;
enum { BPE_LEAST = 257 }; /* <|endoftext|> and the 256 bytes */

/* A tokenizer.json (malloc, *length bytes with a 0 behind them), which depends on the texts alone:
   GPT-2's words, and of all pairs of neighboring tokens in them the one that occurs most often
   becomes the next token; of equally frequent ones the one whose left token has the lower id, then
   the one whose right token has. Ids: 0 is <|endoftext|>, then the bytes in the order of the
   characters that stand for them, then the merges. The same as the BpeTrainer of Hugging Face's
   tokenizers. Sennrich, Haddow & Birch 2016, "Neural Machine Translation of Rare Words with Subword
   Units". NULL after a message, or after Ctrl-C. *size receives the number of tokens. */
char *bpe_train(mhk_context *ctx, const bpe_desc *desc, size_t *length, int *size);

#endif
