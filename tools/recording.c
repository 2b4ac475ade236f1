/* recording.c: see recording.h */
#include "recording.h"
#include "foreign.h"
#include "settings.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define FORMAT "mohawk recording 1"

/* one tensor of a batch */
typedef struct recording_part {
  mhk_stored stored;
  char name[24];
  void *data;
  size_t room;
} recording_part;

static void hex(uint64_t x, char text[17]) {
  int i;
  for (i = 0; i < 16; i++) text[i] = "0123456789abcdef"[x >> (60 - 4 * i) & 15];
  text[16] = 0;
}

/* a hash of what came before and of more */
static uint64_t chained(uint64_t sum, const void *data, size_t bytes) {
  const uint64_t sums[2] = {sum, mhk_xxh64(data, bytes)};
  return mhk_xxh64(sums, sizeof sums);
}

/* the same with a tensor's name and numbers */
static uint64_t chained_tensor(uint64_t sum, const mhk_stored *x) {
  const uint64_t sums[3] = {sum, mhk_xxh64(x->name, strlen(x->name)), mhk_xxh64(x->data, x->bytes)};
  return mhk_xxh64(sums, sizeof sums);
}

/* ---------------------------------------------------------------- what it is for */

/* A hash of all weights, as they are stored. */
static uint64_t weights_hash(const mhk_model *m) {
  uint64_t sum = 0;
  int i;
  for (i = 0; i < mhk_model_count(m); i++) {
    const mhk_tensor *x = mhk_model_at(m, i);
    sum = chained(sum, x->data, (size_t)x->count * mhk_dtype_bytes(x->dtype));
  }
  return sum;
}

/* What a recording and a run must have in common, as text: names in recording.json, and what
   messages call it. */
enum {
  TEACHER, TEXT, TOKENS, SEED, WINDOWS, BATCH, LENGTH, UPDATE, LAYERS, WIDTH, VOCABULARY, TOP, OWN, PRECISION, TYPE,
  KEPT
};
static const char *const facts[RECORDING_FACTS][2] = {
    {"teacher_xxh64", "teacher weights with XXH64"},
    {"text_xxh64", "--text whose tokens have XXH64"},
    {"text_tokens", "--text with as many tokens as"},
    {"seed", "--seed"},
    {"windows", "--placement"},
    {"batch", "--batch"},
    {"length", "--length"},
    {"update_tokens", "--update-tokens"},
    {"layers", "a teacher with as many layers as"},
    {"d_model", "a teacher of d_model"},
    {"vocabulary", "a vocabulary of"},
    {"top", "--top"},
    {"own_stream", "hidden states in stage 3 (--own-stream):"},
    {"precision", "--precision"},
    {"teacher_type", "--teacher-type"},
    {"keep_attention", "--keep-attention"}};

/* Both sides of the comparison: what is not known stays empty. */
static void take_facts(const recording_use *u, char f[RECORDING_FACTS][64]) {
  const mhk_distill_desc *d = u->desc;
  const mhk_config *c = mhk_model_config(u->teacher ? u->teacher : d->teacher ? d->teacher : d->student);
  const int32_t *tokens;
  const mhk_index n = mhk_corpus_tokens(d->corpus, &tokens);
  int i, n_kept = 0;
  memset(f, 0, RECORDING_FACTS * sizeof *f);
  if (u->teacher) hex(weights_hash(u->teacher), f[TEACHER]);
  hex(mhk_xxh64(tokens, (size_t)n * sizeof *tokens), f[TEXT]);
#define PUT(at, x) snprintf(f[at], sizeof f[at], "%lld", (long long)(x))
  PUT(TOKENS, n);
  PUT(SEED, d->seed);
  snprintf(f[WINDOWS], sizeof f[WINDOWS], "%s", d->windows == MHK_WINDOWS_PACKED ? "packed" : "random");
  PUT(BATCH, d->batch);
  PUT(LENGTH, d->length);
  PUT(UPDATE, d->update_tokens);
  PUT(LAYERS, c->n_layer);
  PUT(WIDTH, c->d_model);
  PUT(VOCABULARY, c->vocab_size);
  if (u->top) PUT(TOP, u->top);
  snprintf(f[OWN], sizeof f[OWN], "%s", d->stages[2].own_stream > 0 ? "yes" : "no");
#undef PUT
  snprintf(f[PRECISION], sizeof f[PRECISION], "%s", d->precision == MHK_PRECISION_BF16 ? "bf16" : "f32");
  snprintf(f[TYPE], sizeof f[TYPE], "%s", d->teacher_type ? mhk_dtype_name(d->teacher_type) : "stored");
  snprintf(f[KEPT], sizeof f[KEPT], "none");
  for (i = 0; i < d->student_desc.n_keep_attention && n_kept < 56; i++)
    n_kept += snprintf(f[KEPT] + n_kept, 60 - (size_t)n_kept, "%s%d", i ? "," : "",
                       d->student_desc.keep_attention[i]);
}

/* tokens of a stage in whole updates */
static double stage_tokens(const mhk_distill_desc *d, int i) {
  return (double)(d->stages[i].tokens / d->update_tokens * d->update_tokens);
}

/* recording.json. finished: with what the logits leave out. */
static int write_facts(const recording *r, const recording_use *u, int finished) {
  char path[1024];
  cli_output o;
  cli_json j;
  int i;
  if (cli_join(path, sizeof path, r->folder, "recording.json") != CLI_GO || cli_output_open(&o, path) != CLI_GO)
    return CLI_FAILED;
  json_start(&j, o.file, 1);
  json_open(&j, NULL, '{');
  json_text(&j, "format", FORMAT);
  json_text(&j, "mohawk", mhk_version());
  json_text(&j, "id", r->id);
  for (i = 0; i < RECORDING_FACTS; i++) json_text(&j, facts[i][0], r->fact[i]);
  json_open(&j, "tokens", '[');
  for (i = 0; i < 3; i++) json_count(&j, NULL, stage_tokens(u->desc, i));
  json_close(&j);
  json_raw(&j, "finished", finished ? "true" : "false");
  if (finished && r->tokens > 0) json_real(&j, "mass_left_out", r->left_out / (double)r->tokens);
  json_close(&j);
  return cli_output_close(&o);
}

/* a member of recording.json as text; "" where there is none */
static const char *member(foreign_json object, const char *name, char text[64]) {
  foreign_json value;
  text[0] = 0;
  if (foreign_json_find(object, name, &value) && value.end - value.at < 60 && foreign_json_text(value, text) < 0)
    text[0] = 0;
  return text;
}

/* Reads recording.json and holds it against a use. reading: a run may see less than was recorded,
   and what decides how outputs were computed is the recording's. */
static int check_facts(recording *r, const recording_use *u, int reading) {
  char path[1024], text[64];
  foreign_json found, list, value;
  int i;
  if (cli_join(path, sizeof path, r->folder, "recording.json") != CLI_GO) return CLI_FAILED;
  if (settings_json_file(path, &found) != CLI_GO) return CLI_FAILED;
  if (strcmp(member(found, "format", text), FORMAT) != 0)
    return cli_error("%s is no recording that this version reads: its format is \"%s\", not \"" FORMAT "\"", path,
                     text);
  for (i = 0; i < RECORDING_FACTS; i++) {
    const char *was = member(found, facts[i][0], text);
    if (!r->fact[i][0]) continue;
    if (reading && (i == PRECISION || i == TYPE || i == KEPT)) continue;
    if (reading && i == OWN && (u->desc->stages[2].tokens == 0 || strcmp(was, "yes") == 0)) continue;
    if (strcmp(was, r->fact[i]) != 0)
      return cli_error("%s was recorded with %s %s, but this run has %s%s", r->folder, facts[i][1], was[0] ? was : "?",
                       r->fact[i], i == OWN ? ": give --own-stream 0, or record without it" : "");
  }
  if (!foreign_json_find(found, "tokens", &list) || *list.at != '[') return cli_error("%s names no tokens", path);
  list.at++;
  for (i = 0; i < 3; i++) {
    const double now = stage_tokens(u->desc, i);
    double was = -1, later = 0;
    int k;
    if (foreign_json_value(&list, &value)) was = strtod(value.at, NULL);
    while (list.at < list.end && strchr(", \n", *list.at)) list.at++;
    for (k = i + 1; k < 3; k++) later += stage_tokens(u->desc, k);
    if (was == now || (reading && later == 0 && now <= was)) continue;
    return cli_error("%s was recorded with %.0f --tokens in stage %d, but this run has %.0f, so it sees other windows "
                     "of the text",
                     r->folder, was, i + 1, now);
  }
  if (strlen(member(found, "id", text)) != 16) return cli_error("%s names no id", path);
  strcpy(r->id, text);
  if (!reading) return CLI_GO;
  r->top = (int)strtol(member(found, "top", text), NULL, 10);
  if (r->top < 1 || r->top > r->vocabulary)
    return cli_error("%s: top is \"%s\", not 1 to %d", path, text, r->vocabulary);
  return CLI_GO;
}

static int start(recording *r, mhk_context *ctx, const char *folder, const recording_use *u) {
  const mhk_config *c =
      mhk_model_config(u->teacher ? u->teacher : u->desc->teacher ? u->desc->teacher : u->desc->student);
  const uint16_t one = 1;
  memset(r, 0, sizeof *r);
  if (*(const unsigned char *)&one != 1)
    return cli_error("recordings are read and written on little-endian machines only");
  r->ctx = ctx;
  r->folder = folder;
  r->top = u->top;
  r->vocabulary = c->vocab_size;
  take_facts(u, r->fact);
  return CLI_GO;
}

int recording_create(recording *r, mhk_context *ctx, const char *folder, const recording_use *u) {
  char path[1024];
  uint64_t sum = 0;
  int i;
  if (start(r, ctx, folder, u) != CLI_GO) return CLI_FAILED;
  for (i = 0; i < RECORDING_FACTS; i++) sum = chained(sum, r->fact[i], strlen(r->fact[i]));
  for (i = 0; i < 3; i++) {
    const double n = stage_tokens(u->desc, i);
    sum = chained(sum, &n, sizeof n);
  }
  hex(sum, r->id);
  if (cli_make_folders(folder) != CLI_GO || cli_join(path, sizeof path, folder, "recording.json") != CLI_GO)
    return CLI_FAILED;
  if (cli_exists(path)) return check_facts(r, u, 0);
  return write_facts(r, u, 0);
}

int recording_finish(recording *r, const recording_use *u) { return write_facts(r, u, 1); }

int recording_open(recording *r, mhk_context *ctx, const char *folder, const recording_use *u) {
  return start(r, ctx, folder, u) == CLI_GO ? check_facts(r, u, 1) : CLI_FAILED;
}

void recording_close(recording *r) {
  int i;
  mhk_file_close(r->file);
  for (i = 0; i < r->n_parts || i < r->room; i++) free(r->parts[i].data);
  free(r->parts);
  free(r->work);
  memset(r, 0, sizeof *r);
}

uint64_t recording_number(const recording *r) { return (uint64_t)strtoull(r->id, NULL, 16); }

double recording_bytes(const recording_use *u) {
  const mhk_distill_desc *d = u->desc;
  const mhk_config *c = mhk_model_config(u->teacher);
  const double stream = (double)c->d_model * sizeof(float), layers = c->n_layer - d->student_desc.n_keep_attention;
  return stage_tokens(d, 1) * (4 + 2 * layers * stream) +
         stage_tokens(d, 2) * (4 + (d->stages[2].own_stream > 0 ? c->n_layer * stream : 0) +
                               (u->top < c->vocab_size ? 8.0 * u->top + 4 : 4.0 * c->vocab_size));
}

/* ---------------------------------------------------------------- one batch */

static const char *batch_path(recording *r, const mhk_output *o) {
  if (snprintf(r->path, sizeof r->path, "%s/stage%d-%06lld.safetensors", r->folder, o->stage, (long long)o->batch) >=
      (int)sizeof r->path)
    r->path[0] = 0;
  return r->path;
}

/* over names and data of all tensors, sorted by name */
static uint64_t checksum(const mhk_file *f) {
  uint64_t sum = 0;
  int i;
  for (i = 0; i < mhk_file_count(f); i++) sum = chained_tensor(sum, mhk_file_at(f, i));
  return sum;
}

static int fail(recording *r, const char *why) {
  mhk_fail(r->ctx, MHK_ERROR_FORMAT, "the recording %s: %s. `mohawk record` with its options writes it again", r->path,
           why);
  return -1;
}

static int has_tensor(const recording *r, const char *name, mhk_dtype dtype, mhk_index n, const mhk_stored **x) {
  *x = mhk_file_find(r->file, name);
  return *x && (*x)->dtype == dtype && (*x)->count == n;
}

static int same_list(recording *r, const char *name, const int32_t *list, mhk_index n) {
  const mhk_stored *x;
  return has_tensor(r, name, MHK_I32, n, &x) && memcmp(x->data, list, (size_t)n * sizeof *list) == 0;
}

/* Opens a batch and checks all of it. Returns what is wrong, or NULL. */
static const char *open_batch(recording *r, const mhk_output *o) {
  const mhk_index rows = o->B * o->T;
  const char *text;
  char sum[17];
  mhk_file_close(r->file);
  r->file = mhk_file_open(r->ctx, batch_path(r, o));
  if (!r->file) return "";
  text = mhk_file_metadata(r->file, "mohawk.recording", NULL);
  if (!text || strcmp(text, r->id) != 0) return "it belongs to another recording";
  text = mhk_file_metadata(r->file, "checksum", NULL);
  hex(checksum(r->file), sum);
  if (!text || strcmp(text, sum) != 0) return "its checksum is wrong, so it is damaged";
  if (!same_list(r, "tokens", o->tokens, rows) || (o->doc && !same_list(r, "doc", o->doc, rows)))
    return "it has other windows of text than this run";
  return NULL;
}

static void part_name(const mhk_output *o, char name[24]) {
  snprintf(name, 24, "%s.%d", o->part == MHK_PART_HIDDEN ? "hidden" : o->part == MHK_PART_MIXER ? "mixer" : "block",
           o->layer);
}

/* ---------------------------------------------------------------- writing */

/* room for one more tensor of the batch, or NULL */
static void *add_part(recording *r, const char *name, mhk_dtype dtype, const mhk_output *o, mhk_index last) {
  recording_part *p;
  const size_t bytes = (size_t)(o->B * o->T) * (size_t)last * 4;
  if (r->n_parts == r->room) {
    p = (recording_part *)realloc(r->parts, (size_t)(r->room + 64) * sizeof *p);
    if (!p) return NULL;
    memset(p + r->room, 0, 64 * sizeof *p);
    r->parts = p;
    r->room += 64;
  }
  p = &r->parts[r->n_parts];
  if (p->room < bytes) {
    void *data = realloc(p->data, bytes);
    if (!data) return NULL;
    p->data = data;
    p->room = bytes;
  }
  snprintf(p->name, sizeof p->name, "%s", name);
  memset(&p->stored, 0, sizeof p->stored);
  p->stored.dtype = dtype;
  p->stored.rank = last > 1 ? 3 : 2;
  p->stored.shape[0] = o->B;
  p->stored.shape[1] = o->T;
  p->stored.shape[2] = last;
  p->stored.count = o->B * o->T * last;
  p->stored.bytes = bytes;
  r->n_parts++;
  return p->data;
}

/* Whether token a comes before b among the largest logits: of two equal ones, the lower. */
static int above(const mhk_real *x, int32_t a, int32_t b) { return x[a] > x[b] || (x[a] >= x[b] && a < b); }

/* moves place i of a heap of n tokens, whose least is at the root, down to where it belongs */
static void sink(const mhk_real *x, int32_t *heap, int i, int n) {
  int k;
  while ((k = 2 * i + 1) < n) {
    const int32_t token = heap[i];
    if (k + 1 < n && above(x, heap[k], heap[k + 1])) k++;
    if (!above(x, token, heap[k])) return;
    heap[i] = heap[k];
    heap[k] = token;
    i = k;
  }
}

/* The k largest of V logits, in order; *rest: the logit that gives the others their mass when all
   of them have it. Returns that mass. */
static double take_top(const mhk_real *x, int V, int k, int32_t *tokens, float *values, float *rest) {
  double all = 0, others = 0, most;
  int i, n;
  for (i = 0; i < k; i++) tokens[i] = i;
  for (n = k / 2; n-- > 0;) sink(x, tokens, n, k);
  for (i = k; i < V; i++) {
    if (!above(x, i, tokens[0])) continue;
    tokens[0] = i;
    sink(x, tokens, 0, k);
  }
  for (n = k - 1; n > 0; n--) { /* the least goes to the end */
    const int32_t least = tokens[0];
    tokens[0] = tokens[n];
    tokens[n] = least;
    sink(x, tokens, 0, n);
  }
  most = (double)x[tokens[0]];
  for (i = 0; i < k; i++) {
    values[i] = (float)x[tokens[i]];
    all += exp((double)values[i] - most);
  }
  for (i = 0; i < V; i++)
    if (above(x, tokens[k - 1], i)) others += exp((double)x[i] - most);
  *rest = others > 0 ? (float)(most + log(others / (V - k))) : (float)(most - 200);
  return others / (all + others);
}

static int write_logits(recording *r, const mhk_output *o) {
  const mhk_index rows = o->B * o->T;
  const int V = (int)(o->n / rows);
  float *values, *rest;
  int32_t *tokens;
  mhk_index i;
  if (r->top >= V) {
    void *data = add_part(r, "logits", MHK_F32, o, V);
    if (data) memcpy(data, o->x, (size_t)o->n * sizeof(float));
    return data ? 0 : -1;
  }
  values = (float *)add_part(r, "top.values", MHK_F32, o, r->top);
  tokens = (int32_t *)add_part(r, "top.tokens", MHK_I32, o, r->top);
  rest = (float *)add_part(r, "top.rest", MHK_F32, o, 1);
  if (!values || !tokens || !rest) return -1;
  for (i = 0; i < rows; i++)
    r->left_out += take_top(o->x + i * V, V, r->top, tokens + i * r->top, values + i * r->top, rest + i);
  r->tokens += rows;
  return 0;
}

static int by_part(const void *a, const void *b) {
  return strcmp(((const mhk_stored *)a)->name, ((const mhk_stored *)b)->name);
}

static int write_batch(recording *r, const mhk_output *o, double left_out) {
  mhk_stored list[3 * MHK_MAX_LAYERS + 8];
  char text[17], mass[32];
  const char *metadata[6] = {"mohawk.recording", r->id, "checksum", text, "mass_left_out", mass};
  uint64_t sum = 0;
  int i;
  for (i = 0; i < r->n_parts; i++) {
    list[i] = r->parts[i].stored;
    list[i].name = r->parts[i].name;
    list[i].data = r->parts[i].data;
  }
  qsort(list, (size_t)r->n_parts, sizeof *list, by_part);
  for (i = 0; i < r->n_parts; i++) sum = chained_tensor(sum, &list[i]);
  hex(sum, text);
  snprintf(mass, sizeof mass, "%.17g", left_out);
  return mhk_file_write(r->ctx, batch_path(r, o), r->n_parts, list, 3, metadata) == MHK_OK ? 0 : -1;
}

int recording_write(void *user, const mhk_output *o) {
  recording *r = (recording *)user;
  const mhk_index rows = o->B * o->T;
  char name[24];
  void *data;
  if (o->part == MHK_PART_START) {
    r->before = r->left_out;
    r->n_parts = 0;
    if (cli_exists(batch_path(r, o))) {
      const char *wrong = open_batch(r, o), *mass = wrong ? NULL : mhk_file_metadata(r->file, "mass_left_out", NULL);
      const double left_out = mass ? strtod(mass, NULL) : -1;
      if (left_out >= 0 && left_out <= (double)rows) { /* an earlier start wrote it */
        if (o->stage == 3 && r->top < r->vocabulary) r->tokens += rows;
        r->left_out += left_out;
        r->kept++;
        return 1;
      }
      mhk_clear_error(r->ctx); /* it is written again */
    }
    data = add_part(r, "tokens", MHK_I32, o, 1);
    if (data) memcpy(data, o->tokens, (size_t)rows * sizeof *o->tokens);
    if (data && o->doc) {
      data = add_part(r, "doc", MHK_I32, o, 1);
      if (data) memcpy(data, o->doc, (size_t)rows * sizeof *o->doc);
    }
    return data ? 0 : -1;
  }
  if (o->part == MHK_PART_END) return write_batch(r, o, r->left_out - r->before);
  if (o->part == MHK_PART_LOGITS) return write_logits(r, o);
  part_name(o, name);
  data = add_part(r, name, MHK_F32, o, o->n / rows);
  if (data) memcpy(data, o->x, (size_t)o->n * sizeof(float));
  return data ? 0 : -1;
}

/* ---------------------------------------------------------------- reading */

/* n finite numbers of a tensor */
static int read_numbers(recording *r, const char *name, mhk_index n, mhk_real *x) {
  const mhk_stored *found;
  char why[96];
  mhk_index i;
  if (!has_tensor(r, name, MHK_F32, n, &found)) {
    if (strncmp(name, "block", 5) == 0 && mhk_file_find(r->file, "tokens"))
      return fail(r, "it has what mixers give, but norms or MLPs of this student are no longer the teacher's");
    snprintf(why, sizeof why, "it has no %s of %lld numbers", name, (long long)n);
    return fail(r, why);
  }
  memcpy(x, found->data, (size_t)n * sizeof *x);
  for (i = 0; i < n; i++)
    if (!isfinite((double)x[i])) {
      snprintf(why, sizeof why, "number %lld of %s is not finite", (long long)i, name);
      return fail(r, why);
    }
  return 0;
}

static int read_logits(recording *r, const mhk_output *o) {
  const mhk_index rows = o->B * o->T, k = r->top;
  const mhk_index V = o->n / rows;
  const mhk_stored *tokens;
  mhk_real *values, *rest;
  mhk_index i, j;
  if (k >= V) return read_numbers(r, "logits", o->n, o->x);
  if (!r->work) r->work = malloc((size_t)(rows * (k + 1)) * sizeof(mhk_real));
  if (!r->work) return fail(r, "out of memory");
  values = (mhk_real *)r->work;
  rest = values + rows * k;
  if (read_numbers(r, "top.values", rows * k, values) < 0 || read_numbers(r, "top.rest", rows, rest) < 0) return -1;
  if (!has_tensor(r, "top.tokens", MHK_I32, rows * k, &tokens)) return fail(r, "it has no top.tokens");
  for (i = 0; i < rows; i++) {
    mhk_real *to = o->x + i * V;
    for (j = 0; j < V; j++) to[j] = rest[i];
    for (j = 0; j < k; j++) {
      int32_t token;
      memcpy(&token, (const char *)tokens->data + (size_t)(i * k + j) * sizeof token, sizeof token);
      if (token < 0 || token >= V) return fail(r, "it has a token outside the vocabulary");
      to[token] = values[i * k + j];
    }
  }
  return 0;
}

int recording_read(void *user, const mhk_output *o) {
  recording *r = (recording *)user;
  char name[24];
  if (o->part == MHK_PART_START) {
    const char *wrong = cli_exists(batch_path(r, o)) ? open_batch(r, o) : "it is missing";
    return !wrong ? 0 : *wrong ? fail(r, wrong) : -1;
  }
  if (o->part == MHK_PART_END) {
    mhk_file_close(r->file);
    r->file = NULL;
    return 0;
  }
  if (o->part == MHK_PART_LOGITS) return read_logits(r, o);
  part_name(o, name);
  return read_numbers(r, name, o->n, o->x);
}
