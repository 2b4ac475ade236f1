/* bpe.c: see bpe.h

   Each different word is kept once, with its count and its tokens. Pairs know their count and the
   words that they occur in, so a merge touches only these: time grows with the number of different
   words and of changes, not with merges times text. A heap gives the most frequent pair; counts in
   it that are no longer true are corrected when they come up. */
#include "bpe.h"
#include "foreign.h"
#include <stdlib.h>
#include <string.h>

static const char end_of_text[] = "<|endoftext|>";
#define NONE UINT32_MAX

/* ---------------------------------------------------------------- strings with numbers */

typedef struct string {
  size_t at, n; /* in bytes */
  int64_t count;
} string;

typedef struct strings {
  cli_content bytes;
  string *list;
  uint32_t *slots; /* numbers; NONE: empty */
  uint32_t n, room, mask;
} strings;

/* n elements more fit into list, which may move. CLI_GO, or CLI_FAILED after a message. */
static int make_room(void **list, size_t size, uint32_t n, uint32_t *room) {
  uint32_t larger;
  void *moved;
  if (n < *room) return CLI_GO;
  larger = *room < NONE / 4 ? 2 * *room + 1024 : 0;
  moved = larger ? realloc(*list, (size_t)larger * size) : NULL;
  if (!moved) return cli_error("out of memory for a tokenizer of this text: train it on a part of the text");
  *list = moved;
  *room = larger;
  return CLI_GO;
}

static uint32_t hash_bytes(const char *p, size_t n) { /* FNV-1a */
  uint64_t h = 1469598103934665603u;
  size_t i;
  for (i = 0; i < n; i++) h = (h ^ (unsigned char)p[i]) * 1099511628211u;
  return (uint32_t)(h ^ h >> 32);
}

/* slots for n entries, at least half of them empty; NULL after a message */
static uint32_t *make_slots(uint32_t n, uint32_t *mask) {
  uint32_t size = 1024, *slots;
  while (size / 2 <= n && size < 0x80000000u) size *= 2;
  slots = (uint32_t *)malloc((size_t)size * sizeof *slots);
  if (!slots) {
    cli_error("out of memory for a tokenizer of this text: train it on a part of the text");
    return NULL;
  }
  memset(slots, 255, (size_t)size * sizeof *slots);
  *mask = size - 1;
  return slots;
}

static uint32_t *string_slot(const strings *s, const char *p, size_t n) {
  uint32_t at = hash_bytes(p, n) & s->mask;
  for (; s->slots[at] != NONE; at = (at + 1) & s->mask) {
    const string *x = &s->list[s->slots[at]];
    if (x->n == n && memcmp(s->bytes.text + x->at, p, n) == 0) break;
  }
  return &s->slots[at];
}

static int strings_grow(strings *s) {
  uint32_t i;
  free(s->slots);
  s->slots = make_slots(2 * s->n, &s->mask);
  if (!s->slots) return CLI_FAILED;
  for (i = 0; i < s->n; i++) *string_slot(s, s->bytes.text + s->list[i].at, s->list[i].n) = i;
  return CLI_GO;
}

/* the number of these bytes, which are added unless they are there; NONE after a message */
static uint32_t string_number(strings *s, const char *p, size_t n) {
  uint32_t *slot;
  if ((!s->slots || s->n > s->mask / 2) && strings_grow(s) != CLI_GO) return NONE;
  slot = string_slot(s, p, n);
  if (*slot != NONE) return *slot;
  if (make_room((void **)&s->list, sizeof *s->list, s->n, &s->room) != CLI_GO) return NONE;
  s->list[s->n].at = s->bytes.n;
  s->list[s->n].n = n;
  s->list[s->n].count = 0;
  *slot = s->n;
  return cli_add(&s->bytes, p, n) == CLI_GO ? s->n++ : NONE;
}

static void strings_free(strings *s) {
  free(s->bytes.text);
  free(s->list);
  free(s->slots);
}

/* ---------------------------------------------------------------- the state of a training */

typedef struct pair {
  uint32_t left, right;
  uint32_t words;  /* the first of its places, NONE: none */
  uint32_t merge;  /* that changed its count last */
  int64_t count;
} pair;

typedef struct place {
  uint32_t word, next;
} place;

typedef struct candidate {
  int64_t count;
  uint32_t left, right, pair;
} candidate;

typedef struct training {
  strings words, tokens; /* a token's number is its id */
  uint32_t *ids;         /* of all words, each where its bytes are */
  uint32_t *lengths;     /* of all words, in tokens */
  pair *pairs;
  uint32_t *slots;
  place *places;
  candidate *heap;
  uint32_t *grown; /* pairs whose count this merge raised */
  uint32_t n_pairs, pair_room, mask, n_places, place_room, n_heap, heap_room, n_grown, grown_room;
  uint32_t merge; /* the number of this one; 0: before the first */
  int64_t least;
  int failed;
  cli_content vocabulary, merges; /* as in vocab.json and merges.txt */
} training;

static uint32_t *pair_slot(const training *t, uint32_t left, uint32_t right) {
  uint32_t at = (uint32_t)(((uint64_t)left << 32 | right) * 0x9E3779B97F4A7C15u >> 32) & t->mask;
  for (; t->slots[at] != NONE; at = (at + 1) & t->mask)
    if (t->pairs[t->slots[at]].left == left && t->pairs[t->slots[at]].right == right) break;
  return &t->slots[at];
}

/* the number of a pair, which is added unless it is there; NONE after a message */
static uint32_t pair_number(training *t, uint32_t left, uint32_t right) {
  uint32_t *slot, i;
  if (!t->slots || t->n_pairs > t->mask / 2) {
    free(t->slots);
    t->slots = make_slots(2 * t->n_pairs, &t->mask);
    if (!t->slots) return NONE;
    for (i = 0; i < t->n_pairs; i++) *pair_slot(t, t->pairs[i].left, t->pairs[i].right) = i;
  }
  slot = pair_slot(t, left, right);
  if (*slot != NONE) return *slot;
  if (make_room((void **)&t->pairs, sizeof *t->pairs, t->n_pairs, &t->pair_room) != CLI_GO) return NONE;
  const pair new_pair = {left, right, NONE, NONE, 0};
  t->pairs[t->n_pairs] = new_pair;
  *slot = t->n_pairs;
  return t->n_pairs++;
}

/* Adds the pairs of a word to their counts, or takes them away. */
static void count_pairs(training *t, uint32_t word, int add) {
  const uint32_t *ids = t->ids + t->words.list[word].at;
  const int64_t count = t->words.list[word].count;
  uint32_t i;
  for (i = 0; i + 1 < t->lengths[word] && !t->failed; i++) {
    const uint32_t p = pair_number(t, ids[i], ids[i + 1]);
    pair *x = &t->pairs[p];
    t->failed = p == NONE;
    if (t->failed) return;
    x->count += add ? count : -count;
    if (!add) continue;
    if (x->merge != t->merge) {
      x->merge = t->merge;
      t->failed |= make_room((void **)&t->grown, sizeof *t->grown, t->n_grown, &t->grown_room) != CLI_GO;
      if (!t->failed) t->grown[t->n_grown++] = p;
    }
    if (x->words != NONE && t->places[x->words].word == word) continue;
    t->failed |= make_room((void **)&t->places, sizeof *t->places, t->n_places, &t->place_room) != CLI_GO;
    if (t->failed) return;
    t->places[t->n_places].word = word;
    t->places[t->n_places].next = x->words;
    x->words = t->n_places++;
  }
}

/* ---------------------------------------------------------------- the most frequent pair */

static int before(const candidate *a, const candidate *b) {
  if (a->count != b->count) return a->count > b->count;
  return a->left != b->left ? a->left < b->left : a->right < b->right;
}

static void heap_add(training *t, uint32_t p) {
  const candidate x = {t->pairs[p].count, t->pairs[p].left, t->pairs[p].right, p};
  uint32_t i = t->n_heap;
  if (x.count < t->least) return;
  t->failed |= make_room((void **)&t->heap, sizeof *t->heap, t->n_heap, &t->heap_room) != CLI_GO;
  if (t->failed) return;
  t->n_heap++;
  for (; i > 0 && before(&x, &t->heap[(i - 1) / 2]); i = (i - 1) / 2) t->heap[i] = t->heap[(i - 1) / 2];
  t->heap[i] = x;
}

static candidate heap_take(training *t) {
  const candidate top = t->heap[0], x = t->heap[--t->n_heap];
  uint32_t i = 0, child;
  while ((child = 2 * i + 1) < t->n_heap) {
    if (child + 1 < t->n_heap && before(&t->heap[child + 1], &t->heap[child])) child++;
    if (!before(&t->heap[child], &x)) break;
    t->heap[i] = t->heap[child];
    i = child;
  }
  t->heap[i] = x;
  return top;
}

static void heap_add_grown(training *t) {
  uint32_t i;
  for (i = 0; i < t->n_grown && !t->failed; i++) heap_add(t, t->grown[i]);
  t->n_grown = 0;
}

/* the most frequent pair, NONE when none is frequent enough */
static uint32_t best_pair(training *t) {
  while (t->n_heap > 0 && !t->failed) {
    const candidate top = heap_take(t);
    if (t->pairs[top.pair].count == top.count) return top.pair;
    heap_add(t, top.pair);
  }
  return NONE;
}

/* ---------------------------------------------------------------- text */

/* one word more, or once more */
static void count_word(training *t, const char *p, size_t n) {
  const uint32_t word = n < NONE ? string_number(&t->words, p, n) : NONE;
  if (n >= NONE) cli_error("the text has %.0f bytes without a break, which are too many for a word", (double)n);
  t->failed |= word == NONE;
  if (!t->failed) t->words.list[word].count++;
}

/* how much of the text has been counted */
typedef struct counting {
  double done, all, started;
  cli_progress line;
} counting;

static void show_counting(counting *c) {
  const double seconds = cli_clock() - c->started, share = c->done / c->all;
  cli_buffer bar, speed, left;
  if (!cli_progress_due(&c->line, 0) || seconds < 1 || c->done <= 0) return;
  cli_progress_show(&c->line, 0, "tokenizer counting words     %s  %3.0f %%   %s/s   %s left", cli_bar(share, &bar),
                    100 * share, cli_bytes(c->done / seconds, &speed), cli_time(seconds / share - seconds, &left));
}

static void count_document(training *t, const mhk_tokenizer *k, const char *p, size_t n, counting *c) {
  size_t at, length, shown = 0;
  for (at = 0; at < n && !t->failed; at += length) {
    length = mhk_tokenizer_word(k, p + at, n - at);
    count_word(t, p + at, length);
    c->done += (double)length;
    if (at < shown) continue;
    shown = at + 65536;
    t->failed |= cli_stopped();
    show_counting(c);
  }
}

/* the start of the next separator of documents, or the end of the text */
static size_t document_end(const char *p, size_t n) {
  const char *at = p;
  while (n - (size_t)(at - p) >= sizeof end_of_text - 1) {
    at = (const char *)memchr(at, '<', n - (size_t)(at - p));
    if (!at || n - (size_t)(at - p) < sizeof end_of_text - 1) break;
    if (memcmp(at, end_of_text, sizeof end_of_text - 1) == 0) return (size_t)(at - p);
    at++;
  }
  return n;
}

static void count_text(training *t, const mhk_tokenizer *k, const char *p, size_t n, counting *c) {
  if (n >= 3 && memcmp(p, "\xEF\xBB\xBF", 3) == 0) p += 3, n -= 3; /* a byte order mark */
  while (n > 0 && !t->failed) {
    const size_t length = document_end(p, n), skip = length < n ? length + sizeof end_of_text - 1 : n;
    count_document(t, k, p, length, c);
    p += skip;
    n -= skip;
  }
}

/* ---------------------------------------------------------------- what is written */

/* The character that stands for a byte, as GPT-2 chose: itself if it can be seen, else one of those
   from U+0100. */
static unsigned character_of(int byte) {
  int b, hidden = 0;
  for (b = 0; b <= byte; b++)
    if (b < 33 || (b > 126 && b < 161) || b == 173) hidden++;
    else if (b == byte) return (unsigned)byte;
  return 255u + (unsigned)hidden;
}

static int add_token(cli_content *to, const strings *tokens, uint32_t id, int in_json) {
  const string *x = &tokens->list[id];
  int code = CLI_GO;
  size_t i;
  if (id == 0) return cli_add(to, end_of_text, sizeof end_of_text - 1);
  for (i = 0; i < x->n && code == CLI_GO; i++) {
    const unsigned c = character_of((unsigned char)tokens->bytes.text[x->at + i]);
    char text[3] = {'\\', (char)c, 0};
    if (c >= 128) text[0] = (char)(0xC0 | c >> 6), text[1] = (char)(0x80 | (c & 63));
    const int escaped = in_json && (c == '"' || c == '\\'), from = c < 128 && !escaped;
    code = cli_add(to, text + from, (size_t)(2 - from));
  }
  return code;
}

static char *tokenizer_json(training *t, size_t *length) {
  foreign_bytes vocabulary, merges;
  cli_content *v = &t->vocabulary;
  char number[32], *json;
  uint32_t id;
  v->n = 0;
  for (id = 0; id < t->tokens.n && !t->failed; id++) {
    t->failed |= cli_add(v, id ? ",\"" : "{\"", 2) != CLI_GO || add_token(v, &t->tokens, id, 1) != CLI_GO;
    snprintf(number, sizeof number, "\":%u", (unsigned)id);
    t->failed |= cli_add(v, number, strlen(number)) != CLI_GO;
  }
  t->failed |= cli_add(v, "}", 1) != CLI_GO || cli_add(&t->merges, "", 0) != CLI_GO;
  if (t->failed) return NULL;
  vocabulary.data = (const unsigned char *)v->text;
  vocabulary.size = v->n;
  merges.data = (const unsigned char *)t->merges.text;
  merges.size = t->merges.n;
  json = vocabulary_join(&vocabulary, &merges, length);
  if (!json) cli_error("out of memory for a tokenizer.json of %u tokens", (unsigned)t->tokens.n);
  return json;
}

/* ---------------------------------------------------------------- merging */

/* <|endoftext|>, then the bytes in the order of their characters; ids receives those of bytes */
static void first_tokens(training *t, uint32_t ids[256]) {
  unsigned c;
  int b;
  t->failed |= string_number(&t->tokens, end_of_text, sizeof end_of_text - 1) == NONE;
  for (c = 0; c < 512; c++)
    for (b = 0; b < 256; b++) {
      const char byte = (char)b;
      if (character_of(b) == c) t->failed |= (ids[b] = string_number(&t->tokens, &byte, 1)) == NONE;
    }
}

/* The words as tokens, and the pairs in them. */
static void start_words(training *t, const uint32_t ids[256]) {
  size_t i;
  uint32_t w;
  t->ids = (uint32_t *)malloc((t->words.bytes.n + 1) * sizeof *t->ids);
  t->lengths = (uint32_t *)malloc(((size_t)t->words.n + 1) * sizeof *t->lengths);
  if (!t->ids || !t->lengths) {
    t->failed = 1;
    cli_error("out of memory for the words of the text: train the tokenizer on a part of it");
    return;
  }
  for (i = 0; i < t->words.bytes.n; i++) t->ids[i] = ids[(unsigned char)t->words.bytes.text[i]];
  for (w = 0; w < t->words.n && !t->failed; w++) {
    t->lengths[w] = (uint32_t)t->words.list[w].n;
    count_pairs(t, w, 1);
  }
  heap_add_grown(t);
}

/* the id of the token that a pair becomes */
static uint32_t joined(training *t, const pair *p) {
  const string left = t->tokens.list[p->left], right = t->tokens.list[p->right];
  char *bytes = (char *)malloc(left.n + right.n);
  uint32_t id = NONE;
  if (bytes) {
    memcpy(bytes, t->tokens.bytes.text + left.at, left.n);
    memcpy(bytes + left.n, t->tokens.bytes.text + right.at, right.n);
    id = string_number(&t->tokens, bytes, left.n + right.n);
  }
  free(bytes);
  return id;
}

static void merge_in_word(training *t, uint32_t word, uint32_t left, uint32_t right, uint32_t id) {
  uint32_t *ids = t->ids + t->words.list[word].at, n = t->lengths[word], i, k = 0;
  for (i = 0; i + 1 < n && (ids[i] != left || ids[i + 1] != right); i++) {}
  if (i + 1 >= n) return; /* another merge took the pair here */
  count_pairs(t, word, 0);
  for (i = 0; i < n; i++) {
    const int here = i + 1 < n && ids[i] == left && ids[i + 1] == right;
    ids[k++] = here ? id : ids[i];
    i += (uint32_t)here;
  }
  t->lengths[word] = k;
  count_pairs(t, word, 1);
}

static void merge(training *t, uint32_t number) {
  const pair p = t->pairs[number];
  const uint32_t id = joined(t, &p);
  uint32_t at, next;
  t->failed |= id == NONE || add_token(&t->merges, &t->tokens, p.left, 0) != CLI_GO ||
               cli_add(&t->merges, " ", 1) != CLI_GO || add_token(&t->merges, &t->tokens, p.right, 0) != CLI_GO ||
               cli_add(&t->merges, "\n", 1) != CLI_GO;
  t->pairs[number].words = NONE;
  for (at = p.words; at != NONE && !t->failed; at = next) {
    next = t->places[at].next;
    merge_in_word(t, t->places[at].word, p.left, p.right, id);
  }
  heap_add_grown(t);
}

/* Counts the words of the texts. */
static void count_all(training *t, mhk_context *ctx, const bpe_desc *desc) {
  size_t length;
  char *json = tokenizer_json(t, &length); /* bytes alone: it knows where words end */
  mhk_tokenizer *k = json ? mhk_tokenizer_load_memory(ctx, json, length) : NULL;
  counting c;
  int i;
  memset(&c, 0, sizeof c);
  c.started = cli_clock();
  for (i = 0; i < desc->n_texts; i++) c.all += (double)desc->lengths[i];
  free(json);
  if (json && !k) cli_context_error(ctx);
  t->failed |= !k;
  for (i = 0; i < desc->n_texts && !t->failed; i++) count_text(t, k, desc->texts[i], desc->lengths[i], &c);
  mhk_tokenizer_destroy(k);
  if (!t->failed && t->words.n == 0) t->failed = cli_error("there is no text to train a tokenizer on");
}

static void training_free(training *t) {
  strings_free(&t->words);
  strings_free(&t->tokens);
  free(t->ids), free(t->lengths), free(t->pairs), free(t->slots), free(t->places), free(t->heap), free(t->grown);
  free(t->vocabulary.text), free(t->merges.text);
}

char *bpe_train(mhk_context *ctx, const bpe_desc *desc, size_t *length, int *size) {
  uint32_t ids[256], best;
  training t;
  cli_task task;
  char *json = NULL;
  memset(&t, 0, sizeof t);
  t.least = desc->least > 1 ? desc->least : 1;
  first_tokens(&t, ids);
  if (!t.failed) count_all(&t, ctx, desc);
  if (!t.failed) start_words(&t, ids);
  cli_task_start(&task, "tokenizer", "merging", 1);
  while (!t.failed && (int64_t)t.tokens.n < desc->vocab_size && (best = best_pair(&t)) != NONE) {
    t.merge++;
    merge(&t, best);
    t.failed |= cli_task_report(&task, (mhk_index)t.tokens.n, desc->vocab_size);
  }
  if (!t.failed) json = tokenizer_json(&t, length);
  *size = (int)t.tokens.n;
  cli_progress_clear();
  training_free(&t);
  return json;
}
