/* jsonl.h: files of JSON objects, one a line, read strictly: a line that is not one valid object is
   an error that names file, line and what is wrong. */
#ifndef MOHAWK_JSONL_H
#define MOHAWK_JSONL_H

#include "cli.h"

/* A string of such a file: UTF-8, not 0-terminated, in the memory of its content. */
typedef struct jsonl_text {
  const char *at;
  size_t n;
} jsonl_text;

/* What a value of a field must be. */
typedef enum jsonl_kind {
  JSONL_TEXT,  /* jsonl_text */
  JSONL_TEXTS, /* jsonl_texts: a list of strings */
  JSONL_COUNT  /* mhk_index: a whole number from 0 to 1e9 */
} jsonl_kind;

enum { JSONL_MOST_TEXTS = 64 };
typedef struct jsonl_texts {
  jsonl_text text[JSONL_MOST_TEXTS];
  int n;
} jsonl_texts;

/* A field that the caller understands; others in a row are checked and left out. */
typedef struct jsonl_field {
  const char *name;
  jsonl_kind kind;
  void *value;
  int found; /* receives whether the row has it */
} jsonl_field;

/* A file that is read: zero but for name and content. Strings are decoded in place, so content
   changes and must outlive them. */
typedef struct jsonl_reader {
  const char *name;      /* of the file, for messages */
  cli_content *content;
  size_t at;
  mhk_index line;        /* that was read last, from 1 */
} jsonl_reader;

/* The next row into the values of n fields; empty lines are passed over. 1: there was one, 0: the
   file has ended, -1 after a message. */
int jsonl_next(jsonl_reader *r, jsonl_field *fields, int n);
/* Says what is wrong with the row that was read last, after file and line. Returns -1. */
CLI_PRINTF(2, 3) int jsonl_wrong(const jsonl_reader *r, const char *format, ...);

#endif
