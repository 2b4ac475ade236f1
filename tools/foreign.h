/* foreign.h: models in layouts that mohawk.h does not read, opened as what it does: weights that
   torch.save wrote (pytorch_model.bin and shards of it), and vocabularies from before
   tokenizer.json. */
#ifndef MOHAWK_FOREIGN_H
#define MOHAWK_FOREIGN_H

#include "../mohawk.h"
#include <stdio.h>

/* mhk_file_open() that opens PyTorch's files too: one archive, pytorch_model.bin.index.json, or a
   folder with either. Tensors are mapped; only those that do not stand in order are copied. */
mhk_file *foreign_file_open(mhk_context *ctx, const char *path);
/* One archive in memory, which must stay; name is for messages. */
mhk_file *foreign_file_open_memory(mhk_context *ctx, const char *name, const void *data, size_t bytes);
/* mhk_tokenizer_load() that reads vocab.json with merges.txt (and added_tokens.json) and
   encoder.json with vocab.bpe too: one of them, or their folder. */
mhk_tokenizer *foreign_tokenizer_load(mhk_context *ctx, const char *path);
/* mhk_load_with() that reads folders with any of these. desc may be NULL; its weights and tokenizer
   are. */
mhk_model *foreign_load(mhk_context *ctx, const char *path, const mhk_load_desc *desc);

/* ---- shared by the files behind this interface */

/* A file's bytes, mapped. */
typedef struct foreign_bytes {
  const unsigned char *data;
  size_t size;
} foreign_bytes;
int foreign_map(mhk_context *ctx, const char *path, foreign_bytes *out); /* 0 after an error that names the file */
void foreign_unmap(foreign_bytes *b);
int foreign_is_file(const char *path);
int foreign_is_folder(const char *path);
int foreign_starts(const char *path, const char *bytes); /* whether it is a file with these first */
/* A new file in a folder (with its slash, or "") that goes when it is closed or the process ends;
   NULL after an error. */
FILE *foreign_scratch(mhk_context *ctx, const char *folder);
int foreign_map_scratch(mhk_context *ctx, FILE *file, foreign_bytes *out); /* until it is closed; 0 after an error */
/* folder/name; 0 when it does not fit */
int foreign_join(char *out, size_t room, const char *folder, const char *name);
/* the folder of a path with its slash, or "" */
void foreign_folder_of(char *out, size_t room, const char *path);

/* text from a file for a message: '?' replaces what is not printable */
const char *foreign_printable(const unsigned char *text, size_t length, char out[64]);

/* Text that grows; zero to start. failed: memory is out. */
typedef struct foreign_text {
  char *data; /* a 0 stands behind it; the caller frees it */
  size_t n, room;
  int failed;
} foreign_text;
void foreign_add(foreign_text *t, const char *data, size_t n);
void foreign_put(foreign_text *t, const char *text);
void foreign_add_string(foreign_text *t, const char *s, size_t n); /* bytes as a JSON string */

/* JSON, as far as it must be understood here: values are found, not converted. */
typedef struct foreign_json {
  const char *at, *end;
} foreign_json;
/* The value that starts here, its spaces left out, into *value; the reader goes on behind it. 0
   when there is none or its brackets and quotes do not close. */
int foreign_json_value(foreign_json *j, foreign_json *value);
/* The first member of an object, then the next ones, up to 0: there are no more. j starts as the
   object's value. Keys have their quotes. What is no member ends it with j->at NULL. */
int foreign_json_member(foreign_json *j, foreign_json *key, foreign_json *value);
/* value of a member by its plain name; 0: it is not there, or this is no object */
int foreign_json_find(foreign_json object, const char *name, foreign_json *value);
/* A string's text, 0-terminated, into out, which has room for the value's bytes; -1: it is no
   string, or has a zero or half a character in it. */
int foreign_json_text(foreign_json string, char *out);

mhk_file *pytorch_open(mhk_context *ctx, const char *path, int is_index);
/* Is there such a vocabulary, and no tokenizer.json? Then its first file: vocab.json or
   encoder.json. */
int vocabulary_find(const char *path, char *file, size_t room);
/* It as a tokenizer.json (malloc), with its tokenizer_config.json as config; NULL after an error.
   What is wrong in it mhk_tokenizer_create() will say. */
char *vocabulary_text(mhk_context *ctx, const char *file, mhk_tokenizer_desc *desc, foreign_bytes *config);
/* A vocab.json and a merges.txt in memory as a tokenizer.json (malloc, with a 0 behind it); NULL
   when memory is out. */
char *vocabulary_join(const foreign_bytes *vocabulary, const foreign_bytes *merges, size_t *length);

#endif
