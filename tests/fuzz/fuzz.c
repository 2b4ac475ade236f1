/* Every format that is read, under libFuzzer, and everything that can be done with what was read.
   `make fuzz` builds and runs it.

     fuzz --target=NAME [options of libFuzzer] [folders of seeds]

   Some inputs are folders in one piece: a line of letters that choose what is done, then the files,
   each after a line `=== name`. In JSON there, @bytes stands for the 256 tokens of single bytes; a
   .safetensors file written as its JSON header gets the header's length and the data, a .bin file
   written as a pickle gets its archive. States and checkpoints are edits of a good one (see
   edited()), whose checksum is then made right again: what a checksum would stop is not what is
   looked for. A target aborts where a promise is broken: what was saved must load and be the same,
   ids must decode to the text, a state must continue alike. */
#define _XOPEN_SOURCE 700
#define MOHAWK_IMPLEMENTATION /* here: checksums are made right with its functions */
#include "../models.h"        /* and mohawk.h */
#undef MOHAWK_IMPLEMENTATION
#include "../archive.h"
#include "../foreign.h"
#include <dirent.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

enum { MEMORY_MOST = 48 << 20 };

/* aborts when a promise is broken, and says which one */
#define PROMISE(ctx, condition) ((condition) ? (void)0 : broken(__LINE__, #condition, mhk_message(ctx)))
static void broken(int line, const char *condition, const char *message) {
  fprintf(stderr, "fuzz.c:%d: not so: %s  (%s)\n", line, condition, message);
  abort();
}

/* ------------------------------------------------------------------------------------- contexts */

static size_t memory_used;
static void *limited_alloc(void *user, size_t bytes) {
  void *block;
  (void)user;
  if (bytes > MEMORY_MOST || memory_used > MEMORY_MOST - bytes) return NULL;
  block = malloc(bytes);
  if (block) memory_used += bytes;
  return block;
}
static void limited_release(void *user, void *block, size_t bytes) {
  (void)user;
  memory_used -= bytes;
  free(block);
}
static void listen(void *user, mhk_log_level level, const char *message) {
  *(size_t *)user += strlen(message) + (size_t)level;
}
static mhk_context *limited_context(int plain) {
  static size_t heard;
  mhk_context_desc d;
  memset(&d, 0, sizeof d);
  d.allocator.alloc = limited_alloc;
  d.allocator.release = limited_release;
  d.log = listen;
  d.log_user = &heard;
  d.isa = plain ? MHK_ISA_SCALAR : MHK_ISA_BEST;
  return mhk_create(&d);
}

/* Whether the last call worked, and from here on a context that does. Most errors are the input's
   business; lack of memory is none for a tiny model. */
static int at_ease;
static int starved(mhk_context *ctx) { return !at_ease && mhk_error(ctx) == MHK_ERROR_MEMORY; }
static int fine(mhk_context *ctx) {
  const int ok = !mhk_failed(ctx);
  PROMISE(ctx, ok || mhk_message(ctx)[0]);
  PROMISE(ctx, !at_ease || mhk_error(ctx) != MHK_ERROR_MEMORY);
  mhk_clear_error(ctx);
  return ok;
}

/* ------------------------------------------------------------------------- folders in one piece */

static char scratch[300];

static const char *at(const char *name) {
  static char path[8][700];
  static int turn;
  char *p = path[turn++ % 8];
  snprintf(p, sizeof path[0], "%s/%s", scratch, name);
  return p;
}
static void empty(const char *folder) {
  DIR *d = opendir(folder);
  struct dirent *e;
  while (d && (e = readdir(d)) != NULL) {
    char path[700];
    if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
    snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
    if (remove(path) != 0) {
      empty(path);
      remove(path);
    }
  }
  if (d) closedir(d);
}
static void leave(void) {
  empty(scratch);
  remove(scratch);
}

typedef struct bytes { unsigned char *data; size_t n, room; } bytes;
static void add(bytes *b, const void *data, size_t n) {
  if (b->n + n + 1 > b->room) {
    b->room = 2 * (b->n + n + 1);
    b->data = (unsigned char *)realloc(b->data, b->room);
    if (!b->data) abort();
  }
  if (n) memcpy(b->data + b->n, data, n);
  b->n += n;
  b->data[b->n] = 0;
}
static void add_text(bytes *b, const char *text) { add(b, text, strlen(text)); }

/* the 256 tokens of a byte-level vocabulary, ids 0 to 255 */
static void add_byte_tokens(bytes *b) {
  int i, next = 256;
  for (i = 0; i < 256; i++) {
    const int whole = (i > 32 && i < 127) || (i > 160 && i != 173), c = whole ? i : next++;
    char text[32];
    if (c < 128)
      snprintf(text, sizeof text, "%s\"%s%c\":%d", i ? "," : "", c == '"' || c == '\\' ? "\\" : "", c, i);
    else
      snprintf(text, sizeof text, "%s\"%c%c\":%d", i ? "," : "", 0xC0 | c >> 6, 0x80 | (c & 63), i);
    add_text(b, text);
  }
}

/* JSON with @bytes replaced */
static void add_json(bytes *b, const char *json, size_t n) {
  size_t i;
  for (i = 0; i < n; i++)
    if (json[i] == '@' && n - i >= 6 && !memcmp(json + i, "@bytes", 6)) {
      add_byte_tokens(b);
      i += 5;
    } else
      add(b, json + i, 1);
}

/* a safetensors file of its header: the length before it, and behind it as much data as it speaks
   of, up to a limit */
static void add_safetensors(bytes *b, const char *header, size_t n) {
  const char key[] = "\"data_offsets\":[";
  unsigned long most = 0, from, to;
  size_t i;
  unsigned char length[8];
  bytes text = {0};
  add(&text, header, n);
  for (i = 0; i + sizeof key < n; i++)
    if (!memcmp(header + i, key, sizeof key - 1) &&
        sscanf((char *)text.data + i + sizeof key - 1, "%lu,%lu", &from, &to) == 2 && to > most && to < 65536)
      most = to;
  for (i = 0; i < 8; i++) length[i] = (unsigned char)((uint64_t)n >> 8 * i);
  add(b, length, 8);
  add(b, header, n);
  for (i = 0; i < most; i++) {
    const unsigned char c = (unsigned char)(i * 37);
    add(b, &c, 1);
  }
  free(text.data);
}

/* an archive of a pickle and three storages */
static void add_archive(bytes *b, const void *pickle, size_t n, int wide) {
  static const unsigned char storage[64] = {1, 2, 3};
  const part parts[4] = {
      {"x/data.pkl", pickle, n}, {"x/data/0", storage, 64}, {"x/data/1", storage, 24}, {"x/data/2", storage, 0}};
  if (n > sizeof made / 2) return;
  archive(4, parts, wide);
  add(b, made, made_n);
}

static int ends_with(const char *name, const char *end) {
  return strlen(name) >= strlen(end) && !strcmp(name + strlen(name) - strlen(end), end);
}
static void add_file(bytes *b, const char *name, const char *data, size_t n) {
  if (ends_with(name, ".safetensors") && n && data[0] == '{')
    add_safetensors(b, data, n);
  else if (ends_with(name, ".bin") && n && (unsigned char)data[0] == 0x80)
    add_archive(b, data, n, n % 2 != 0);
  else if (ends_with(name, ".json"))
    add_json(b, data, n);
  else
    add(b, data, n);
}

typedef struct section { char name[40]; bytes content; } section; /* content.data ends with a 0 */
typedef struct folder { char letters[32]; section list[8]; int n; } folder;

static int has(const folder *f, char letter) { return strchr(f->letters, letter) != NULL; }
/* the last of a name: it is the one that a folder then holds */
static section *find(folder *f, const char *name) {
  int i;
  for (i = f->n - 1; i >= 0; i--)
    if (!strcmp(f->list[i].name, name)) return &f->list[i];
  return NULL;
}
static folder read_folder(const uint8_t *data, size_t size) {
  const char *p = (const char *)data, *end = p + size;
  folder f;
  size_t n = 0;
  memset(&f, 0, sizeof f);
  for (; p < end && *p != '\n'; p++)
    if (n + 1 < sizeof f.letters && *p > ' ') f.letters[n++] = *p;
  if (p < end) p++;
  while (f.n < 8 && end - p > 4 && !memcmp(p, "=== ", 4)) {
    section *s = &f.list[f.n++];
    const char *from;
    n = 0;
    for (p += 4; p < end && *p != '\n'; p++)
      if (n + 1 < sizeof s->name && *p && strchr("abcdefghijklmnopqrstuvwxyz0123456789._-", *p)) s->name[n++] = *p;
    if (p < end) p++;
    add(&s->content, NULL, 0);
    for (from = p; p < end && !(end - p > 4 && p[0] == '\n' && !memcmp(p + 1, "=== ", 4)); p++) {}
    if (!s->name[0] || s->name[0] == '.') strcpy(s->name, "unnamed");
    add_file(&s->content, s->name, from, (size_t)(p - from));
    if (p < end) p++;
  }
  return f;
}
static void write_folder(const folder *f) {
  int i;
  for (i = 0; i < f->n; i++) test_write_file(at(f->list[i].name), f->list[i].content.data, f->list[i].content.n);
}
static void free_folder(folder *f) {
  int i;
  for (i = 0; i < f->n; i++) free(f->list[i].content.data);
}

/* Changes good as the edits say, each four bytes and what follows: what is done, a place (two
   bytes), a length, and for all but removing as many bytes. */
static bytes edited(const void *good, size_t n, const uint8_t *e, size_t size) {
  bytes b = {0};
  add(&b, good, n);
  while (size >= 4) {
    const size_t place = ((size_t)e[1] | (size_t)e[2] << 8) % (b.n + 1), wanted = e[3] % 40;
    const int what = e[0] % 4;
    size_t k = what == 2 ? wanted : wanted < size - 4 ? wanted : size - 4;
    if (what == 0 || what == 2) { /* in place of what is there, or nothing in place of it */
      if (k > b.n - place) k = b.n - place;
      if (what == 0) memcpy(b.data + place, e + 4, k);
      else memmove(b.data + place, b.data + place + k, b.n - place - k), b.n -= k;
    } else if (what == 1) { /* between */
      add(&b, e + 4, k);
      memmove(b.data + place + k, b.data + place, b.n - k - place);
      memcpy(b.data + place, e + 4, k);
    } else
      b.n = place;
    if (what >= 2) k = 0;
    e += 4 + k;
    size -= 4 + k;
  }
  return b;
}
static void sum_up(bytes *b, uint64_t sum) {
  if (b->n >= 8) mhk__put_bytes(b->data + b->n - 8, sum, 8);
}

/* ----------------------------------------------------------------------------- files of tensors */

/* all that a file which opened may be asked: its tensors, its metadata, a copy written again */
static void use_file(mhk_context *ctx, const mhk_file *f) {
  static mhk_real values[1 << 14];
  static int32_t numbers[1 << 14];
  bytes list = {0};
  int i, whole = 1;
  for (i = 0; i < mhk_file_count(f); i++) {
    const mhk_stored *x = mhk_file_at(f, i);
    PROMISE(ctx, mhk_file_find(f, x->name) == x);
    if (x->count > 1 << 14) {
      whole = 0;
      continue;
    }
    /* dtype 0: a type that can be passed over, not read */
    PROMISE(ctx, !x->dtype || mhk_file_read(ctx, x, values) == MHK_OK);
    mhk_file_read_i32(ctx, x, numbers);
    fine(ctx);
    add(&list, x, sizeof *x);
  }
  mhk_file_metadata(f, "format", NULL);
  if (f && whole) {
    const char *const metadata[] = {"format", "pt"};
    const mhk_stored *all = (const mhk_stored *)(const void *)list.data;
    mhk_file *again;
    mhk_file_write(ctx, at("again.safetensors"), mhk_file_count(f), all, 1, metadata);
    if (fine(ctx)) {
      again = mhk_file_open(ctx, at("again.safetensors"));
      PROMISE(ctx, again ? mhk_file_count(again) == mhk_file_count(f) : starved(ctx));
      for (i = 0; again && i < mhk_file_count(f); i++) {
        const mhk_stored *x = mhk_file_at(f, i), *y = mhk_file_at(again, i);
        PROMISE(ctx, !strcmp(x->name, y->name) && x->bytes == y->bytes);
        PROMISE(ctx, !x->bytes || !memcmp(x->data, y->data, x->bytes));
      }
    }
    fine(ctx);
  }
  free(list.data);
}

static void open_bytes(const char *name, const uint8_t *data, size_t size) {
  mhk_context *ctx = limited_context(0);
  bytes b = {0};
  add_file(&b, name, (const char *)data, size);
  use_file(ctx, ends_with(name, ".bin") ? foreign_file_open_memory(ctx, name, b.data, b.n)
                                        : mhk_file_open_memory(ctx, b.data, b.n));
  mhk_destroy(ctx);
  free(b.data);
}
static void target_safetensors(const uint8_t *data, size_t size) { open_bytes(".safetensors", data, size); }
static void target_archive(const uint8_t *data, size_t size) { open_bytes(".bin", data, size); }

static void target_shards(const uint8_t *data, size_t size) {
  mhk_context *ctx = limited_context(0);
  folder f = read_folder(data, size);
  write_folder(&f);
  use_file(ctx, foreign_file_open(ctx, scratch));
  mhk_destroy(ctx);
  free_folder(&f);
}

/* ----------------------------------------------------------------------------------- tokenizers */

/* Words of a text, its ids and the way back, whole and in pieces. exact: the text comes back. */
static void use_tokenizer(mhk_context *ctx, mhk_tokenizer *k, const char *text, size_t n, int exact) {
  int32_t *ids = (int32_t *)malloc(sizeof *ids * (2 * n + 8)), id;
  const size_t room = 64 * n + 64;
  char *back = (char *)malloc(room), *out = (char *)malloc(3 * (room + 4) + 16);
  mhk_stream stream;
  mhk_index count, length;
  size_t bytes_of, at;
  for (at = 0; at < n; at += bytes_of) {
    bytes_of = mhk_tokenizer_word(k, text + at, n - at);
    PROMISE(ctx, bytes_of > 0 && bytes_of <= n - at);
  }
  memset(&stream, 0, sizeof stream);
  count = mhk_encode(k, text, n, ids, (mhk_index)(2 * n + 8));
  PROMISE(ctx, count < 0 || mhk_encode(k, text, n, NULL, 0) == count);
  if (count > (mhk_index)(2 * n + 8)) count = (mhk_index)(2 * n + 8);
  length = count >= 0 ? mhk_decode(k, ids, count, back, room) : -1;
  PROMISE(ctx, count < 0 || length >= 0);
  if (exact && count >= 0) PROMISE(ctx, length == (mhk_index)n && (n == 0 || !memcmp(back, text, n)));
  if (length > (mhk_index)room) length = (mhk_index)room;
  for (id = 0; id < length;) { /* in pieces, whose sizes the text gives */
    const int32_t some = 1 + (int32_t)((unsigned char)back[id] % 5), most = (int32_t)length - id;
    mhk_stream_push(&stream, back + id, (size_t)(some < most ? some : most), out);
    id += some;
  }
  mhk_stream_finish(&stream, out);
  for (id = -1; id <= mhk_tokenizer_size(k) && id < 2000; id++) mhk_token_bytes(k, id, &bytes_of);
  PROMISE(ctx, mhk_tokenizer_end(k) < mhk_tokenizer_size(k));
  snprintf(back, room < 40 ? room : 40, "%.*s", (int)n, text);
  mhk_tokenizer_id(k, back);
  fine(ctx);
  free(ids);
  free(back);
  free(out);
}

/* Do ids decode to the text that they come from? Not where the tokenizer changes it, or knows an
   added token as other bytes than its text. */
static int gives_back(mhk_tokenizer *k) {
  int set;
  mhk_index i;
  for (set = 0; set < 2; set++)
    for (i = 0; i < k->added[set].n; i++) {
      const mhk__added *a = k->added[set].tokens[i];
      size_t n;
      const char *bytes = mhk_token_bytes(k, a->id, &n);
      if (a->lstrip || a->rstrip || n != a->content_length || memcmp(bytes, a->content, n) != 0) return 0;
    }
  return !k->nfc && !k->prefix_space;
}

static void target_tokenizer(const uint8_t *data, size_t size) {
  mhk_context *ctx = limited_context(0);
  folder f = read_folder(data, size);
  section *json = find(&f, "tokenizer.json"), *text = find(&f, "text");
  const char *words = text ? (const char *)text->content.data : "Hello, it's 2024.\r\n  fa\xC3\xA7" "ade <|endoftext|>";
  const size_t n = text ? text->content.n : strlen(words);
  mhk_tokenizer *k;
  if (json && f.n <= 2)
    k = mhk_tokenizer_load_memory(ctx, (const char *)json->content.data, json->content.n);
  else {
    write_folder(&f);
    k = foreign_tokenizer_load(ctx, scratch);
  }
  if (fine(ctx) && k) {
    const char *again = mhk_tokenizer_json(k, NULL);
    use_tokenizer(ctx, k, words, n, gives_back(k));
    if (again) {
      mhk_tokenizer *same = mhk__tokenizer_copy(ctx, k);
      PROMISE(ctx, same || starved(ctx));
      if (same) {
        int32_t a[64], b[64];
        const mhk_index count = mhk_encode(k, words, n, a, 64);
        PROMISE(ctx, mhk_encode(same, words, n, b, 64) == count);
        if (count > 0) PROMISE(ctx, !memcmp(a, b, sizeof *a * (size_t)(count < 64 ? count : 64)));
      }
    }
  }
  mhk_destroy(ctx);
  free_folder(&f);
}

/* --------------------------------------------------------------------------------------- models */

static int tiny(const mhk_config *c) {
  return mhk_config_parameters(c) < 60000 && c->n_layer <= 6 && mhk_config_state_bytes(c, 32) < 1e6 &&
         c->vocab_size <= 3000 && c->n_head <= 64 && c->ssm_heads <= 64;
}
static mhk_session *session_of(mhk_model *m, mhk_index window) {
  mhk_session_desc d;
  memset(&d, 0, sizeof d);
  d.capacity = 40;
  d.window = window;
  d.chunk = 5;
  d.snapshots = 2;
  d.snapshot_every = 3;
  d.recent = 5;
  return mhk_session_create(m, &d);
}
static int same_logits(const mhk_session *a, const mhk_session *b, int V) {
  const mhk_real *x = mhk_logits(a, 0), *y = mhk_logits(b, 0);
  return x && y && !memcmp(x, y, sizeof *x * (size_t)V);
}

static void speculate(mhk_context *ctx, mhk_model *m, mhk_model *draft, const int32_t *tokens,
                      const mhk_sampling *how) {
  mhk_speculation_desc d;
  mhk_speculation *x;
  int i;
  memset(&d, 0, sizeof d);
  d.target = session_of(m, 0);
  d.draft = session_of(draft, 0);
  mhk_feed(d.target, tokens, 2);
  mhk_feed(d.draft, tokens, 2);
  x = mhk_speculation_create(&d);
  for (i = 0; i < 6; i++) mhk_speculate(x, i % 2 ? NULL : how);
  mhk_speculation_finish(x);
  mhk_speculation_destroy(x);
  fine(ctx);
  mhk_session_destroy(d.target);
  mhk_session_destroy(d.draft);
}

/* a session of the model: feeding, sampling, rewinding, and states saved, loaded and copied */
static void use_session(mhk_context *ctx, mhk_model *m, const int32_t *tokens, mhk_index window) {
  const int V = mhk_model_config(m)->vocab_size;
  mhk_session *s = session_of(m, window), *other;
  mhk_sampling how;
  double chances[4];
  void *state;
  size_t n;
  int i;
  if (!fine(ctx)) return;
  PROMISE(ctx, mhk_feed(s, tokens, 6) == MHK_OK);
  mhk_feed_bytes(s, "A word, <|endoftext|>\0\xC3", 23);
  fine(ctx);
  memset(&how, 0, sizeof how);
  how.top_p = 0.9;
  how.presence = 0.5;
  /* logits may be anything, which is an error */
  for (i = 0; i < 3 && mhk_session_position(s, 0) < 30; i++) mhk_sample(s, &how);
  mhk_text_rest(s);
  fine(ctx);
  n = mhk_session_state_bytes(s, 0);
  state = malloc(n);
  PROMISE(ctx, mhk_session_save_memory(s, 0, state, n) == MHK_OK);
  mhk_session_rewind(s, 0, 4);
  PROMISE(ctx, mhk_feed(s, tokens, 1) == MHK_OK);
  other = session_of(m, window);
  if (fine(ctx) && other) {
    PROMISE(ctx, mhk_session_load_memory(s, 0, state, n) == MHK_OK);
    PROMISE(ctx, mhk_session_save(s, 0, at("state")) == MHK_OK);
    PROMISE(ctx, mhk_session_load(other, 0, at("state")) == MHK_OK);
    mhk_feed(s, tokens, 2);
    mhk_feed(other, tokens, 2);
    PROMISE(ctx, !fine(ctx) || same_logits(s, other, V));
    PROMISE(ctx, mhk_session_copy(other, 0, s, 0) == MHK_OK && same_logits(s, other, V));
    mhk_session_reset(other, MHK_ALL);
    mhk_session_reset(s, MHK_ALL);
    mhk_feed(s, tokens, 1);
    mhk_score(s, 0, tokens, 4, chances);
    fine(ctx);
    mhk_session_destroy(other);
  }
  free(state);
  mhk_session_destroy(s);
}

static void use_tape(mhk_context *ctx, mhk_model *m, const int32_t *tokens) {
  const int32_t doc[6] = {0, 0, 1, 1, 1, 1};
  mhk_tape *t = mhk_tape_create(ctx);
  mhk_forward_desc d;
  memset(&d, 0, sizeof d);
  d.doc = doc;
  d.recompute = 1;
  PROMISE(ctx, mhk_backward(t, mhk_cross_entropy(t, mhk_forward(t, m, tokens, 1, 6, &d), tokens)) == MHK_OK);
  mhk_tape_destroy(t);
}

/* what a teacher is for */
static void use_teacher(mhk_context *ctx, mhk_model *m, const int32_t *tokens) {
  mhk_student_desc how;
  mhk_distill_desc d;
  mhk_trainer *tr;
  mhk_evaluation result;
  const int kept = 0;
  int i;
  memset(&how, 0, sizeof how);
  memset(&d, 0, sizeof d);
  d.corpus = mhk_corpus_from_tokens(ctx, tokens, 24, tokens[0]);
  if (mhk_model_config(m)->n_layer > 1) {
    how.keep_attention = &kept;
    how.n_keep_attention = 1;
  }
  d.student = mhk_student_create(ctx, m, &how);
  d.teacher = m;
  d.batch = 1;
  d.length = 6;
  for (i = 0; i < 3; i++) d.stages[i].tokens = 6;
  tr = mhk_distill(ctx, &d);
  while (mhk_train_step(tr)) mhk_progress(tr);
  fine(ctx);
  {
    const mhk_evaluate_desc measured = {d.student, d.corpus, 6, 2, NULL, NULL};
    mhk_evaluate(m, &measured, &result);
  }
  fine(ctx);
  mhk_trainer_destroy(tr);
  mhk_model_destroy(d.student);
  mhk_corpus_destroy(d.corpus);
}

static int same_files(const char *a, const char *b) {
  size_t n = 0, k = 0;
  char *x = test_read_file(a, &n), *y = test_read_file(b, &k);
  const int same = x && y && n == k && !memcmp(x, y, n);
  free(x);
  free(y);
  return same;
}

/* Saved, loaded and saved again: the same bytes. Then with the copy what changes a model. */
static void use_saved(mhk_context *ctx, mhk_model *m, const int32_t *tokens, mhk_dtype dtype, int whole_folder) {
  const char *one = at(whole_folder ? "one" : "one.safetensors"), *two = at(whole_folder ? "two" : "two.safetensors");
  mhk_model *copy;
  mhk_corpus *text;
  mhk_sampling how;
  mhk_save(m, one, dtype);
  if (!fine(ctx)) return;
  copy = mhk_load(ctx, one);
  PROMISE(ctx, copy || starved(ctx));
  if (copy && mhk_save(copy, two, dtype) == MHK_OK)
    PROMISE(ctx, whole_folder ? same_files(at("one/model.safetensors"), at("two/model.safetensors"))
                              : same_files(one, two));
  fine(ctx);
  if (!copy) return;
  text = mhk_corpus_sample(copy, 10, 1, NULL, NULL);
  fine(ctx);
  mhk_corpus_destroy(text);
  memset(&how, 0, sizeof how);
  how.top_k = 3;
  speculate(ctx, m, copy, tokens, &how);
  use_session(ctx, copy, tokens, dtype == MHK_Q8 ? 4 : 0);
  if (mhk_model_make_trainable(copy) == MHK_OK) use_tape(ctx, copy, tokens);
  fine(ctx);
  mhk_model_destroy(copy);
}

static void use_model(mhk_context *ctx, mhk_model *m, unsigned choice) {
  static const mhk_dtype types[] = {MHK_F32, MHK_Q8, MHK_BF16, MHK_Q4, MHK_F16};
  const mhk_config *c = mhk_model_config(m);
  int32_t tokens[24];
  if (!m || !tiny(c)) return;
  at_ease = 1;
  model_tokens(tokens, 24, c->vocab_size, choice);
  use_session(ctx, m, tokens, choice % 3 ? 0 : 4);
  use_tape(ctx, m, tokens);
  use_saved(ctx, m, tokens, types[choice % 5], choice % 2);
  if (c->arch == MHK_ARCH_PHI) use_teacher(ctx, m, tokens);
  at_ease = 0;
}

static void target_config(const uint8_t *data, size_t size) {
  mhk_context *ctx = limited_context(0);
  mhk_config c, again;
  mhk_config_parse(ctx, (const char *)data, size, "the text", &c);
  if (fine(ctx)) {
    const size_t n = mhk_config_format(&c, NULL, 0);
    char *a = (char *)malloc(n + 1), *b = (char *)malloc(n + 1);
    PROMISE(ctx, mhk_config_check(ctx, &c) == MHK_OK);
    PROMISE(ctx, n > 0 && mhk_config_format(&c, a, n + 1) == n);
    PROMISE(ctx, mhk_config_parse(ctx, a, n, "the same again", &again) == MHK_OK);
    PROMISE(ctx, mhk_config_format(&again, b, n + 1) == n && !strcmp(a, b));
    if (tiny(&c)) {
      mhk_model *m = mhk_model_create(ctx, &c, 7);
      if (fine(ctx)) use_model(ctx, m, (unsigned)size);
    }
    free(a);
    free(b);
  }
  mhk_destroy(ctx);
}

/* A section `tensors`: lines that change the list of what a model of this configuration has.
   `-name` leaves one out; `name TYPE sizes` adds or replaces. */
typedef struct weight { char name[100], dtype[8]; mhk_index shape[MHK_MAX_RANK]; int rank; } weight;
enum { WEIGHTS = 200 };

static int change_weights(weight *w, int n, const char *text) {
  while (*text) {
    weight x;
    const int drop = *text == '-';
    int used = 0, i;
    memset(&x, 0, sizeof x);
    if (sscanf(text + drop, "%99[^ \n]%n", x.name, &used) == 1) {
      text += drop + used;
      if (sscanf(text, " %7[A-Z0-9_]%n", x.dtype, &used) == 1) text += used;
      while (x.rank < MHK_MAX_RANK && *text == ' ') {
        char *end;
        const long size = strtol(text, &end, 10);
        if (end == text || size < 0 || size > 4096) break;
        x.shape[x.rank++] = size;
        text = end;
      }
      for (i = 0; i < n && strcmp(w[i].name, x.name); i++) {}
      if (drop && i < n)
        w[i] = w[--n];
      else if (!drop && i < WEIGHTS && !strpbrk(x.name, "\"\\") && x.dtype[0]) {
        w[i] = x;
        n += i == n;
      }
    }
    text += strcspn(text, "\n");
    if (*text) text++;
  }
  return n;
}

/* the safetensors file of some of the weights, every second one say; metadata: a JSON object or
   NULL */
static bytes weights_file(const weight *w, int n, int first, int step, const char *metadata, int odd) {
  static const uint32_t strange[] = {0x7FC07FC0, 0x7F807F80, 0xFF80FF80, 0x7F7F7F7F, 0x00010001, 0x80008000};
  bytes header = {0}, data = {0}, b = {0};
  int i, k;
  uint64_t seed = 5;
  unsigned char length[8];
  add_text(&header, "{");
  if (metadata) add_text(&header, metadata);
  for (i = first; i < n; i += step) {
    char text[400];
    size_t size = 1, from = data.n;
    mhk_index count = 1, j;
    for (k = MHK_F32; k <= MHK_BOOL; k++)
      if (!strcmp(w[i].dtype, mhk_dtype_name((mhk_dtype)k))) size = mhk_dtype_bytes((mhk_dtype)k);
    snprintf(text, sizeof text, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[", header.n > 1 ? "," : "", w[i].name,
             w[i].dtype);
    add_text(&header, text);
    for (k = 0; k < w[i].rank; k++) {
      snprintf(text, sizeof text, "%s%lld", k ? "," : "", (long long)w[i].shape[k]);
      add_text(&header, text);
      count = count > 1 << 20 ? count : count * w[i].shape[k];
    }
    if (count > 1 << 18) count = 0; /* a file that is wrong about it */
    for (j = 0; j < count; j++) {
      const double x = test_uniform(&seed, -0.3, 0.3);
      const float single = (float)x;
      uint32_t bits;
      memcpy(&bits, &single, 4);
      if (odd && test_random(&seed) % 61 == 0) bits = strange[test_random(&seed) % 6];
      if (!strcmp(w[i].dtype, "F16"))
        bits = (bits >> 16 & 0x8000) | (0x2C00 + (bits >> 13 & 0x0FFF));
      else if (size == 2)
        bits >>= 16;
      add(&data, size == 8 ? (const void *)&x : &bits, size);
    }
    snprintf(text, sizeof text, "],\"data_offsets\":[%zu,%zu]}", from, data.n);
    add_text(&header, text);
  }
  add_text(&header, "}");
  while (header.n % 8) add_text(&header, " ");
  for (i = 0; i < 8; i++) length[i] = (unsigned char)((uint64_t)header.n >> 8 * i);
  add(&b, length, 8);
  add(&b, header.data, header.n);
  add(&b, data.data, data.n);
  free(header.data);
  free(data.data);
  return b;
}

static void add_quoted(bytes *b, const unsigned char *text, size_t n) {
  size_t i;
  add_text(b, "\"");
  for (i = 0; i < n; i++) {
    char escape[8];
    snprintf(escape, sizeof escape, text[i] < 32 || text[i] == '"' || text[i] == '\\' ? "\\u%04x" : "%c", text[i]);
    add_text(b, escape);
  }
  add_text(b, "\"");
}

/* The weights that the configuration asks for, as the section `tensors` changes them. */
static int wanted_weights(folder *f, weight *w) {
  section *config = find(f, "config.json"), *tensors = find(f, "tensors");
  mhk_context *ctx = mhk_create(NULL);
  mhk_config c;
  mhk_model *m;
  int n = 0, k;
  if (config) mhk_config_parse(ctx, (const char *)config->content.data, config->content.n, "config.json", &c);
  if (config && !mhk_failed(ctx) && tiny(&c)) {
    m = mhk_model_create(ctx, &c, 1);
    for (; n < mhk_model_count(m) && n < WEIGHTS; n++) {
      const mhk_tensor *x = mhk_model_at(m, n);
      memset(&w[n], 0, sizeof w[n]);
      snprintf(w[n].name, sizeof w[n].name, "%s", x->name);
      strcpy(w[n].dtype, has(f, 'h') ? "F16" : has(f, 'b') ? "BF16" : has(f, 'd') ? "F64" : "F32");
      w[n].rank = x->rank;
      for (k = 0; k < x->rank; k++) w[n].shape[k] = x->shape[k];
    }
  }
  mhk_destroy(ctx);
  return tensors ? change_weights(w, n, (const char *)tensors->content.data) : n;
}

/* Letters: m one file in memory, s two shards, else a folder; h b d the type of weights, o odd
   numbers among them, x plain kernels, r read in place of mapped, t strict; q and 4 save it
   quantized and change that file as the section `edits` says */
static mhk_model *edited_model(mhk_context *ctx, mhk_model *m, folder *f, bytes *file) {
  section *edits = find(f, "edits");
  size_t n = 0;
  char *saved;
  mhk_save(m, at("saved.safetensors"), has(f, '4') ? MHK_Q4 : MHK_Q8);
  mhk_model_destroy(m);
  if (!fine(ctx)) return NULL;
  saved = test_read_file(at("saved.safetensors"), &n);
  free(file->data);
  *file = edited(saved, n, edits ? edits->content.data : NULL, edits ? edits->content.n : 0);
  free(saved);
  return mhk_load_memory(ctx, file->data, file->n);
}

/* a folder of files or one file, as a model that runs if it loads */
static void target_model(const uint8_t *data, size_t size) {
  static weight w[WEIGHTS];
  folder f = read_folder(data, size);
  mhk_context *ctx = limited_context(has(&f, 'x'));
  const int n = wanted_weights(&f, w), odd = has(&f, 'o');
  bytes file = {0};
  mhk_model *m;
  if (has(&f, 'm')) {
    bytes metadata = {0};
    int i;
    add_text(&metadata, "\"__metadata__\":{\"format\":\"pt\"");
    for (i = 0; i < f.n; i++) {
      add_text(&metadata, ",");
      add_quoted(&metadata, (const unsigned char *)f.list[i].name, strlen(f.list[i].name));
      add_text(&metadata, ":");
      add_quoted(&metadata, f.list[i].content.data, f.list[i].content.n);
    }
    add_text(&metadata, "}");
    file = weights_file(w, n, 0, 1, (const char *)metadata.data, odd);
    free(metadata.data);
    m = mhk_load_memory(ctx, file.data, file.n);
  } else {
    const int shards = has(&f, 's') ? 2 : 1;
    mhk_load_desc how;
    int i;
    for (i = 0; i < shards; i++) {
      bytes b = weights_file(w, n, i, shards, NULL, odd);
      test_write_file(at(shards == 1 ? "model.safetensors" : i ? "b.safetensors" : "a.safetensors"), b.data, b.n);
      free(b.data);
    }
    if (shards == 2) {
      add_text(&file, "{\"metadata\":{},\"weight_map\":{");
      for (i = 0; i < n; i++) {
        if (i) add_text(&file, ",");
        add_quoted(&file, (const unsigned char *)w[i].name, strlen(w[i].name));
        add_text(&file, i % 2 ? ":\"b.safetensors\"" : ":\"a.safetensors\"");
      }
      add_text(&file, "}}");
      test_write_file(at("model.safetensors.index.json"), file.data, file.n);
    }
    write_folder(&f);
    memset(&how, 0, sizeof how);
    how.read = has(&f, 'r');
    how.strict = has(&f, 't');
    m = foreign_load(ctx, scratch, &how);
  }
  if (m && tiny(mhk_model_config(m)) && (has(&f, 'q') || has(&f, '4'))) m = edited_model(ctx, m, &f, &file);
  if (fine(ctx)) use_model(ctx, m, (unsigned)size);
  mhk_destroy(ctx);
  free(file.data);
  free_folder(&f);
}

static int add_piece(void *b, const void *data, size_t n) {
  add((bytes *)b, data, n);
  return 1;
}

/* a GGUF file: what it becomes is a file, and perhaps a model that runs */
static void target_gguf(const uint8_t *data, size_t size) {
  mhk_context *ctx = limited_context(0);
  bytes file = {0};
  gguf_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.name = "a.gguf";
  desc.file.data = data;
  desc.file.size = size;
  desc.no_tokenizer = (int)(size % 2);
  desc.put = add_piece;
  desc.user = &file;
  if (gguf_unpack(ctx, &desc)) {
    mhk_file *f = mhk_file_open_memory(ctx, file.data, file.n);
    PROMISE(ctx, f || starved(ctx));
    mhk_file_close(f);
    mhk_model *m = mhk_load_memory(ctx, file.data, file.n);
    if (fine(ctx)) use_model(ctx, m, (unsigned)size);
  } else
    PROMISE(ctx, mhk_failed(ctx));
  fine(ctx);
  mhk_destroy(ctx);
  free(file.data);
}

/* ----------------------------------------------------------------------- states and checkpoints */

/* The first byte chooses the model and how much it has seen, the rest are edits. */
static void target_state(const uint8_t *data, size_t size) {
  static const int kinds[] = {HYBRID, PHI_GROUPED, MAMBA2};
  const int choice = size ? data[0] : 0, window = choice / 3 % 2 ? 5 : 0;
  mhk_context *ctx = limited_context(0);
  mhk_model *m = model_new(ctx, kinds[choice % 3], 3);
  mhk_session *s = session_of(m, window);
  const int32_t tokens[] = {1, 2, 3, 4, 5, 6, 7};
  bytes b;
  size_t n, i;
  void *good;
  mhk_feed(s, tokens, choice / 6 % 8);
  n = mhk_session_state_bytes(s, 0);
  good = malloc(n);
  PROMISE(ctx, mhk_session_save_memory(s, 0, good, n) == MHK_OK);
  b = edited(good, n, data + (size > 0), size ? size - 1 : 0);
  sum_up(&b, mhk__hash(UINT64_C(14695981039346656037), b.data, b.n < 8 ? 0 : b.n - 8));
  if (mhk_session_load_memory(s, 0, b.data, b.n) == MHK_OK) {
    mhk_sampling how;
    memset(&how, 0, sizeof how);
    how.presence = 1;
    how.repetition = 1.1;
    /* the numbers may be anything, and the cache full, which is an error */
    for (i = 0; i < 3; i++) mhk_sample(s, &how);
    fine(ctx);
    mhk_feed(s, tokens, 2);
    fine(ctx);
    mhk_session_snapshot(s, 0);
    mhk_session_rewind(s, 0, mhk_session_position(s, 0) - 1);
    fine(ctx);
    free(good);
    n = mhk_session_state_bytes(s, 0);
    good = malloc(n);
    PROMISE(ctx, mhk_session_save_memory(s, 0, good, n) == MHK_OK && mhk_session_load_memory(s, 0, good, n) == MHK_OK);
  }
  free(good);
  free(b.data);
  mhk_destroy(ctx);
}

static mhk_distill_desc run_of(mhk_context *ctx, int choice) {
  mhk_distill_desc d;
  int32_t tokens[90];
  int i;
  memset(&d, 0, sizeof d);
  model_tokens(tokens, 90, 31, 1);
  for (i = 0; i < 90; i += 13) tokens[i] = 0;
  d.teacher = model_new(ctx, PHI, 1);
  d.corpus = mhk_corpus_from_tokens(ctx, tokens, 90, 0);
  d.batch = 1;
  d.length = 8;
  d.windows = choice % 2 ? MHK_WINDOWS_PACKED : MHK_WINDOWS_RANDOM;
  for (i = 0; i < 3; i++) d.stages[i].tokens = 16;
  d.out = at("run");
  d.checkpoint_seconds = -1;
  return d;
}

/* The first byte chooses the run and after which update its checkpoint was written, the rest are
   edits. */
static void target_checkpoint(const uint8_t *data, size_t size) {
  static bytes good[2][7];
  const int choice = size ? data[0] : 0, step = choice / 2 % 7;
  bytes *from = &good[choice % 2][step], b;
  mhk_context *ctx = limited_context(0);
  mhk_distill_desc d = run_of(ctx, choice);
  mhk_trainer *tr;
  mhk__xxh64 sum;
  int i;
  if (!from->data) {
    size_t n = 0;
    char *file;
    tr = mhk_distill(ctx, &d);
    for (i = 0; i < step; i++) mhk_train_step(tr);
    PROMISE(ctx, mhk_checkpoint(tr) == MHK_OK);
    mhk_trainer_destroy(tr);
    file = test_read_file(at("run/checkpoint.safetensors"), &n);
    add(from, file, n);
    free(file);
    empty(at("run"));
  }
  b = edited(from->data, from->n, data + (size > 0), size ? size - 1 : 0);
  mhk__xxh64_start(&sum);
  mhk__xxh64_put(&sum, b.data, b.n < 8 ? 0 : b.n - 8);
  sum_up(&b, mhk__xxh64_end(&sum));
  test_make_folder(at("run"));
  test_write_file(at("run/checkpoint.safetensors"), b.data, b.n);
  tr = mhk_distill(ctx, &d);
  if (size <= 1) PROMISE(ctx, tr && mhk_progress(tr)->resumed);
  for (i = 0; i < (size % 4 ? 1 : 20) && mhk_train_step(tr); i++) mhk_progress(tr);
  PROMISE(ctx, i <= 6);
  mhk_checkpoint(tr);
  fine(ctx);
  free(b.data);
  mhk_destroy(ctx);
}

/* --------------------------------------------------------------------------- texts and sampling */

static mhk_tokenizer *small_tokenizer(mhk_context *ctx) {
  bytes b = {0};
  mhk_tokenizer *k;
  add_text(&b, "{\"added_tokens\":[{\"id\":256,\"content\":\"<|endoftext|>\",\"special\":true}],"
               "\"pre_tokenizer\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"vocab\":{");
  add_byte_tokens(&b);
  add_text(&b, ",\"th\":257,\"the\":258,\"\xC4\xA0the\":259},\"merges\":[\"t h\",\"th e\",\"\xC4\xA0 the\"]}}");
  k = mhk_tokenizer_load_memory(ctx, (const char *)b.data, b.n);
  PROMISE(ctx, k != NULL);
  free(b.data);
  return k;
}

/* Letters: 1 to 9 how often each file is used and how long documents may be, s shuffled */
static void target_text(const uint8_t *data, size_t size) {
  mhk_context *ctx = limited_context(0);
  folder f = read_folder(data, size);
  const char *files[8];
  char paths[8][700];
  int repeat[8], i;
  size_t most[8];
  mhk_corpus_desc d;
  mhk_corpus *x;
  memset(&d, 0, sizeof d);
  write_folder(&f);
  for (i = 0; i < f.n; i++) {
    const int letter = f.letters[i % (int)sizeof f.letters];
    snprintf(paths[i], sizeof paths[i], "%s", at(f.list[i].name));
    files[i] = paths[i];
    repeat[i] = letter ? letter % 4 : 1;
    most[i] = letter ? (size_t)letter % 16 * 5 : 0;
  }
  d.n_files = f.n;
  d.files = files;
  d.repeat = f.letters[0] ? repeat : NULL;
  d.max_document_of = f.letters[0] ? most : NULL;
  d.seed = has(&f, 's');
  x = mhk_corpus_load(ctx, small_tokenizer(ctx), &d);
  if (x) {
    const int32_t *tokens;
    const mhk_index n = mhk_corpus_tokens(x, &tokens);
    mhk_index j;
    for (j = 0; j < n; j++) PROMISE(ctx, tokens[j] >= 0 && tokens[j] < 260);
  }
  fine(ctx);
  mhk_destroy(ctx);
  free_folder(&f);
}

/* a number of any kind: small ones in words, all others as they are */
static double number_of(const uint8_t **p, size_t *n) {
  static const double known[] = {0,     1,        -1,        0.5, 0.9, 2,    -0.5,     1e-300,
                                 1e300, INFINITY, -INFINITY, NAN, 31,  1e-9, 0.999999, 1.0000001};
  double x = 0;
  if (*n == 0) return 0;
  if (**p < 240 || *n < 9) {
    x = known[**p % 16];
    ++*p, --*n;
    return x;
  }
  memcpy(&x, *p + 1, 8);
  *p += 9, *n -= 9;
  return x;
}

/* logits and settings of a sampler; what is drawn must be among what may be drawn */
static void target_sampling(const uint8_t *data, size_t size) {
  enum { V = 31 };
  mhk_context *ctx = limited_context(0);
  mhk_model *m = model_new(ctx, MAMBA2, 3);
  mhk_session *s;
  mhk_sampling how;
  mhk_token_bias bias[3];
  int32_t recent[5], scratch_ids[V], stops[2];
  const char *strings[2];
  char words[2][8];
  mhk_real logits[V];
  double p[V];
  mhk_index left;
  int i;
  memset(&how, 0, sizeof how);
  memset(words, 0, sizeof words);
  how.temperature = number_of(&data, &size);
  how.top_p = number_of(&data, &size);
  how.min_p = number_of(&data, &size);
  how.typical = number_of(&data, &size);
  how.repetition = number_of(&data, &size);
  how.frequency = number_of(&data, &size);
  how.presence = number_of(&data, &size);
  how.greedy = size && *data % 7 == 0;
  how.exact = size && *data % 3 == 0;
  how.top_k = size ? (int)(*data % 40) - 3 : 0;
  how.penalty_tokens = size ? (int)(*data / 40) - 1 : 0;
  how.seed = size;
  for (i = 0; i < 3; i++) {
    bias[i].token = size ? (int32_t)(*data % 36) - 2 : 0;
    bias[i].value = number_of(&data, &size);
  }
  for (i = 0; i < 2; i++) {
    stops[i] = size ? (int32_t)(*data % 36) - 2 : 0;
    memcpy(words[i], data, size < 7 ? size : 7);
    strings[i] = words[i];
  }
  how.bias = bias;
  how.n_bias = size ? *data % 4 : 0;
  how.stop_tokens = stops;
  how.n_stop_tokens = size ? *data % 3 : 0;
  how.stop_strings = strings;
  how.n_stop_strings = size ? *data / 3 % 3 : 0;
  for (i = 0; i < V; i++) logits[i] = (mhk_real)(size ? number_of(&data, &size) : 0.1 * i);
  for (i = 0; i < 5; i++) recent[i] = size > (size_t)i ? data[i] % 33 - 1 : i;
  left = mhk_probabilities(logits, V, &how, recent, 5, p, scratch_ids);
  PROMISE(ctx, left >= 0 && left <= V);
  if (left > 0) {
    double sum = 0;
    for (i = 0; i < V; i++) {
      PROMISE(ctx, p[i] >= 0 && p[i] <= 1.000001);
      sum += p[i];
    }
    PROMISE(ctx, sum > 0.999 && sum < 1.001);
    i = mhk_draw(p, V, 0.999999999);
    PROMISE(ctx, i >= 0 && i < V && p[i] > 0);
    i = mhk_draw(p, V, 0);
    PROMISE(ctx, i >= 0 && i < V && p[i] > 0);
  }
  s = session_of(m, 0);
  mhk_model_set_tokenizer(m, small_tokenizer(ctx));
  fine(ctx); /* it is larger than the model */
  mhk_feed(s, stops, 1);
  fine(ctx);
  mhk_feed(s, scratch_ids, 0);
  fine(ctx);
  for (i = 0; i < 3; i++) {
    const int32_t one = i;
    if (i == 0) mhk_feed(s, &one, 1);
    mhk_sample(s, &how);
    mhk_text_out(s);
    mhk_stopped(s);
  }
  mhk_text_rest(s);
  fine(ctx);
  mhk_destroy(ctx);
}

/* -------------------------------------------------------------------------------------- targets */

static const struct { const char *name; void (*run)(const uint8_t *data, size_t size); } targets[] = {
    {"safetensors", target_safetensors}, {"archive", target_archive}, {"shards", target_shards},
    {"tokenizer", target_tokenizer},     {"config", target_config},   {"model", target_model},
    {"gguf", target_gguf},
    {"state", target_state},             {"checkpoint", target_checkpoint},
    {"text", target_text},               {"sampling", target_sampling}};
enum { TARGETS = sizeof targets / sizeof *targets };
static int target = -1;

int LLVMFuzzerInitialize(int *argc, char ***argv) {
  const char *where = getenv("TMPDIR");
  int i, k;
  for (i = 1; i < *argc; i++)
    for (k = 0; k < TARGETS; k++)
      if (!strncmp((*argv)[i], "--target=", 9) && !strcmp((*argv)[i] + 9, targets[k].name)) target = k;
  if (target < 0) {
    fprintf(stderr, "--target=NAME, one of");
    for (k = 0; k < TARGETS; k++) fprintf(stderr, " %s", targets[k].name);
    fprintf(stderr, "\n");
    exit(2);
  }
  if (!where || !where[0]) where = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
  snprintf(scratch, sizeof scratch, "%s/mohawk-fuzz-%ld", where, (long)getpid());
  test_make_folder(scratch);
  atexit(leave);
  return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  targets[target].run(data, size);
  empty(scratch);
  if (memory_used) broken(__LINE__, "all memory is given back", "");
  return 0;
}
