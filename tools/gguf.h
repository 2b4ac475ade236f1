/* gguf.h: GGUF, the files of llama.cpp and ggml, for `mohawk convert`. */
#ifndef MOHAWK_GGUF_H
#define MOHAWK_GGUF_H

#include "foreign.h"

typedef struct gguf_desc {
  const char *name;   /* of the file, for messages */
  foreign_bytes file; /* all of it */
  int no_tokenizer;   /* leave its tokenizer out, whatever it is */
  /* Receives the result piece by piece; 0: could not take it, which is then the error. */
  int (*put)(void *user, const void *data, size_t n);
  void *user;
  void (*note)(const char *sentence); /* what has no effect here; may be NULL */
} gguf_desc;

/* A model as the one safetensors file that mhk_load_memory() reads: configuration, tokenizer and
   weights, which keep the type F32, F16 or BF16 and become F32 where they are quantized. Memory
   does not grow with the weights. Returns 1; 0 after an error. */
int gguf_unpack(mhk_context *ctx, const gguf_desc *desc);

#endif
