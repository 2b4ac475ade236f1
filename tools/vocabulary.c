/* vocabulary.c: vocab.json with merges.txt and added_tokens.json, and encoder.json with vocab.bpe,
   as the tokenizer.json that holds the same. Texts are put together, not understood: mohawk.h
   checks what comes out. */
#include "foreign.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { VOCAB_PATH = 1064 };
static const char vocab_end[] = "\"<|endoftext|>\"";

/* ---------------------------------------------------------------- text that grows */

void foreign_add(foreign_text *t, const char *data, size_t n) {
  if (t->n + n + 1 > t->room && !t->failed) {
    const size_t room = 2 * (t->n + n) + 1024;
    char *larger = (char *)realloc(t->data, room);
    t->failed = !larger;
    if (larger) t->data = larger, t->room = room;
  }
  if (t->failed) return;
  if (n) memcpy(t->data + t->n, data, n);
  t->n += n;
  t->data[t->n] = 0;
}
void foreign_put(foreign_text *t, const char *text) { foreign_add(t, text, strlen(text)); }
static void vocab_raw(foreign_text *t, foreign_json x) { foreign_add(t, x.at, (size_t)(x.end - x.at)); }

void foreign_add_string(foreign_text *t, const char *s, size_t n) {
  char code[8];
  foreign_put(t, "\"");
  for (size_t i = 0; i < n; i++) {
    if ((unsigned char)s[i] >= 0x20 && s[i] != '"' && s[i] != '\\') {
      foreign_add(t, s + i, 1);
      continue;
    }
    snprintf(code, sizeof code, "\\u%04x", (unsigned)(unsigned char)s[i]);
    foreign_put(t, code);
  }
  foreign_put(t, "\"");
}

/* ---------------------------------------------------------------- added tokens */

typedef struct vocab_token {
  double id;
  foreign_json content; /* with its quotes */
  foreign_json settings; /* the object of an added_tokens_decoder; at NULL: none */
} vocab_token;

static int vocab_is(foreign_json x, const char *text) {
  return (size_t)(x.end - x.at) == strlen(text) && memcmp(x.at, text, strlen(text)) == 0;
}

static int vocab_by_id(const void *a, const void *b) {
  const vocab_token *x = (const vocab_token *)a, *y = (const vocab_token *)b;
  return (x->id > y->id) - (x->id < y->id);
}

static double vocab_number(foreign_json x) {
  char text[32];
  const size_t n = (size_t)(x.end - x.at) < sizeof text - 1 ? (size_t)(x.end - x.at) : sizeof text - 1;
  char *end;
  memcpy(text, x.at, n);
  text[n] = 0;
  const double id = strtod(text, &end);
  return *end || n == 0 || !(id >= 0) ? -1 : id; /* below 0: refused when the text is read */
}

static void vocab_added(foreign_text *t, const vocab_token *x) {
  const int end = vocab_is(x->content, vocab_end);
  char id[40];
  snprintf(id, sizeof id, "{\"id\":%.15g", x->id);
  foreign_put(t, id);
  if (x->settings.at) { /* { with the rest of its members */
    foreign_json rest = x->settings, key, value;
    if (foreign_json_member(&rest, &key, &value)) foreign_put(t, ",");
    foreign_add(t, x->settings.at + 1, (size_t)(x->settings.end - x->settings.at) - 1);
    return;
  }
  foreign_put(t, ",\"content\":");
  vocab_raw(t, x->content);
  foreign_put(t, ",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":");
  foreign_put(t, end ? "false,\"special\":true}" : "true,\"special\":false}");
}

/* The added tokens: those of added_tokens.json (text: id), else of added_tokens_decoder (id:
   object); and the vocabulary's end of text, which counts as one. In the order of their ids, as
   Hugging Face's tokenizers want them. */
static void vocab_all_added(foreign_text *t, foreign_json vocabulary, foreign_json added, foreign_json decoder) {
  foreign_json list = added.at ? added : decoder, each = list, key, value, end;
  size_t n = 0, room = 1;
  int has_end = 0;
  vocab_token *all;
  while (list.at && foreign_json_member(&each, &key, &value)) room++;
  if (list.at && !each.at) {
    foreign_put(t, "false"); /* no list: the text is refused */
    return;
  }
  all = (vocab_token *)calloc(room, sizeof *all);
  t->failed |= !all;
  if (t->failed) return;
  for (each = list; list.at && foreign_json_member(&each, &key, &value); n++) {
    if (added.at) {
      all[n].content = key;
      all[n].id = vocab_number(value);
    } else {
      foreign_json number = {key.at + 1, key.end - 1};
      all[n].id = vocab_number(number);
      all[n].settings = value;
      if (*value.at != '{') all[n].settings.at = NULL;
      if (*value.at != '{' || !foreign_json_find(value, "content", &all[n].content)) all[n].content = key;
    }
    has_end |= vocab_is(all[n].content, vocab_end);
  }
  if (!has_end && foreign_json_find(vocabulary, "<|endoftext|>", &end)) {
    all[n].id = vocab_number(end);
    all[n].content.at = vocab_end;
    all[n++].content.end = vocab_end + sizeof vocab_end - 1;
  }
  qsort(all, n, sizeof *all, vocab_by_id);
  foreign_put(t, "[");
  for (size_t i = 0; i < n; i++) {
    if (i) foreign_put(t, ",");
    vocab_added(t, &all[i]);
  }
  foreign_put(t, "]");
  free(all);
}

/* ---------------------------------------------------------------- all of it */

/* lines "left right" as a list */
static void vocab_merges(foreign_text *t, const char *p, size_t size) {
  const char *const end = p + size, *stop;
  int n = 0;
  foreign_put(t, "[");
  for (; p < end; p = stop + 1) {
    stop = (const char *)memchr(p, '\n', (size_t)(end - p));
    if (!stop) stop = end;
    size_t length = (size_t)(stop - p);
    if (length > 0 && p[length - 1] == '\r') length--;
    if (length == 0 || (length >= 8 && memcmp(p, "#version", 8) == 0)) continue;
    if (n++) foreign_put(t, ",");
    foreign_add_string(t, p, length);
  }
  foreign_put(t, "]");
}

/* the value that is all of a text, an object; at NULL: it is not */
static foreign_json vocab_object(const foreign_bytes *b) {
  foreign_json all = {(const char *)b->data, (const char *)b->data}, value = {NULL, NULL}, more;
  if (b->data) all.end += b->size;
  if (!b->data || !foreign_json_value(&all, &value) || *value.at != '{' || foreign_json_value(&all, &more) ||
      all.at != all.end)
    value.at = value.end = NULL;
  return value;
}

/* The tokenizer.json; where a part is damaged, null or false stands for it, which is refused
   later. */
static void vocab_write(foreign_text *t, const foreign_bytes *vocabulary, const foreign_bytes *merges,
                        const foreign_bytes *added, const foreign_bytes *config) {
  static const char level[] =
      "{\"type\":\"ByteLevel\",\"add_prefix_space\":%s,\"trim_offsets\":true,\"use_regex\":true}";
  const foreign_json vocab = vocab_object(vocabulary), settings = vocab_object(config);
  foreign_json list = {NULL, NULL}, decoder = {NULL, NULL};
  char part[160];
  if (added->data) {
    list = vocab_object(added);
    if (!list.at) list.at = list.end = "";
  }
  if (!settings.at || !foreign_json_find(settings, "added_tokens_decoder", &decoder) || *decoder.at != '{')
    decoder.at = NULL;
  foreign_put(t, "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":");
  if (list.at && list.at == list.end)
    foreign_put(t, "false"); /* added_tokens.json is no object */
  else
    vocab_all_added(t, vocab, list, decoder);
  foreign_put(t, ",\"normalizer\":null,\"pre_tokenizer\":");
  snprintf(part, sizeof part, level, "false");
  foreign_put(t, part);
  foreign_put(t, ",\"post_processor\":");
  snprintf(part, sizeof part, level, "true");
  foreign_put(t, part);
  foreign_put(t, ",\"decoder\":");
  foreign_put(t, part);
  foreign_put(t, ",\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,\"continuing_subword_prefix\":null,"
               "\"end_of_word_suffix\":null,\"fuse_unk\":false,\"byte_fallback\":false,\"ignore_merges\":false,"
               "\"vocab\":");
  if (vocab.at)
    vocab_raw(t, vocab);
  else
    foreign_put(t, "null");
  foreign_put(t, ",\"merges\":");
  if (merges->data)
    vocab_merges(t, (const char *)merges->data, merges->size);
  else
    foreign_put(t, "null");
  foreign_put(t, "}}");
}

char *vocabulary_join(const foreign_bytes *vocabulary, const foreign_bytes *merges, size_t *length) {
  const foreign_bytes none = {NULL, 0};
  foreign_text t = {NULL, 0, 0, 0};
  vocab_write(&t, vocabulary, merges, &none, &none);
  *length = t.n;
  if (!t.failed) return t.data;
  free(t.data);
  return NULL;
}

int vocabulary_find(const char *path, char *file, size_t room) {
  static const char first[2][16] = {"vocab.json", "encoder.json"}, second[2][16] = {"merges.txt", "vocab.bpe"};
  char folder[VOCAB_PATH];
  if (foreign_is_folder(path)) {
    if (foreign_join(file, room, path, "tokenizer.json") && foreign_is_file(file)) return 0;
    for (int i = 0; i < 2; i++)
      if (foreign_join(file, room, path, first[i]) && foreign_is_file(file)) return 1;
    return 0;
  }
  if (strlen(path) >= sizeof folder) return 0;
  foreign_folder_of(folder, sizeof folder, path);
  for (int i = 0; i < 2; i++)
    if (!strcmp(path + strlen(folder), first[i]) || !strcmp(path + strlen(folder), second[i]))
      return foreign_join(file, room, folder, first[i]);
  return 0;
}

char *vocabulary_text(mhk_context *ctx, const char *file, mhk_tokenizer_desc *desc, foreign_bytes *config) {
  const char *merges_name = "merges.txt";
  char folder[VOCAB_PATH], path[VOCAB_PATH + 32];
  foreign_bytes vocabulary, merges = {NULL, 0}, added = {NULL, 0};
  foreign_text t = {NULL, 0, 0, 0};
  size_t length;
  int good;
  memset(desc, 0, sizeof *desc);
  memset(config, 0, sizeof *config);
  foreign_folder_of(folder, sizeof folder, file);
  if (!strcmp(file + strlen(folder), "encoder.json")) merges_name = "vocab.bpe";
  good = foreign_map(ctx, file, &vocabulary);
  if (good && foreign_join(path, sizeof path, folder, merges_name) && foreign_is_file(path))
    good = foreign_map(ctx, path, &merges);
  if (good && foreign_join(path, sizeof path, folder, "added_tokens.json") && foreign_is_file(path))
    good = foreign_map(ctx, path, &added);
  if (good && foreign_join(path, sizeof path, folder, "tokenizer_config.json") && foreign_is_file(path))
    good = foreign_map(ctx, path, config);
  if (good) {
    vocab_write(&t, &vocabulary, &merges, &added, config);
    length = t.n;
    foreign_add(&t, "", 1);
    foreign_put(&t, file);
    foreign_put(&t, merges.data ? " with " : " without ");
    foreign_put(&t, merges_name);
    if (added.data) foreign_put(&t, " and added_tokens.json");
    if (t.failed) mhk_fail(ctx, MHK_ERROR_MEMORY, "out of memory for the vocabulary in %s", file);
    good = !t.failed;
  }
  foreign_unmap(&vocabulary);
  foreign_unmap(&merges);
  foreign_unmap(&added);
  if (!good) {
    free(t.data);
    return NULL;
  }
  desc->json = t.data;
  desc->length = length;
  desc->name = t.data + length + 1;
  desc->config = (const char *)config->data;
  desc->config_length = config->size;
  return t.data;
}
