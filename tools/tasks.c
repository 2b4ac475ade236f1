/* tasks.c: see tasks.h. Requests are made and counted as EleutherAI's lm-evaluation-harness (0.4)
   does it, so that figures can be compared: what is encoded, where it is split, how it is
   truncated, and what divides a log-likelihood. */
#include "tasks.h"
#include "jsonl.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- tasks */

typedef enum form { FORM_COMPLETION, FORM_CHOICES, FORM_CONTEXTS, FORMS } form;
static const char *const form_names[FORMS] = {"completion", "choices", "contexts"};
static const char *const form_fields[FORMS] = {"\"context\" and \"continuation\"",
                                               "\"query\", \"choices\" and \"gold\"",
                                               "\"context_options\", \"continuation\" and \"gold\""};

/* What a log-likelihood is asked for; the options of a row are adjacent. */
typedef struct option {
  jsonl_text context, continuation;
} option;

typedef struct item {
  mhk_index line, first; /* in the file; of its options */
  int n, gold;
} item;

typedef struct task {
  const char *path;
  char name[64];
  form form;
  cli_content content; /* of the file: holds the texts */
  item *items;
  mhk_index n_items, item_room;
  option *options;
  mhk_index n_options, option_room;
} task;

static void task_free(task *t) {
  free(t->content.text);
  free(t->items);
  free(t->options);
}

/* room for one more of a list; NULL after a message */
static void *grow(void *list, mhk_index n, mhk_index *room, size_t each) {
  void *larger = list;
  if (n == *room) {
    larger = realloc(list, (size_t)(*room = 2 * *room + 256) * each);
    if (!larger) {
      free(list);
      cli_error("out of memory for %lld rows", (long long)*room);
    }
  }
  return larger;
}

static int add_option(task *t, jsonl_text context, jsonl_text continuation) {
  t->options = (option *)grow(t->options, t->n_options, &t->option_room, sizeof *t->options);
  if (!t->options) return -1;
  t->options[t->n_options].context = context;
  t->options[t->n_options++].continuation = continuation;
  return 0;
}

/* the fields of all forms, as a row has them */
typedef struct row {
  jsonl_text context, continuation, query;
  jsonl_texts choices, contexts;
  mhk_index gold;
  jsonl_field fields[6];
} row;
enum { CONTEXT, CONTINUATION, QUERY, CHOICES, CONTEXTS, GOLD };

static void row_start(row *r) {
  const jsonl_field fields[6] = {{"context", JSONL_TEXT, &r->context, 0},
                                 {"continuation", JSONL_TEXT, &r->continuation, 0},
                                 {"query", JSONL_TEXT, &r->query, 0},
                                 {"choices", JSONL_TEXTS, &r->choices, 0},
                                 {"context_options", JSONL_TEXTS, &r->contexts, 0},
                                 {"gold", JSONL_COUNT, &r->gold, 0}};
  memcpy(r->fields, fields, sizeof fields);
}

/* the form of a row; -1 after a message */
static int form_of(const jsonl_reader *file, const row *r) {
  static const unsigned char needs[FORMS][6] = {{1, 1, 0, 0, 0, 0}, {0, 0, 1, 1, 0, 1}, {0, 1, 0, 0, 1, 1}};
  static const int first[FORMS] = {CONTEXT, QUERY, CONTEXTS};
  int f, i, found = -1;
  for (f = 0; f < FORMS; f++) {
    if (!r->fields[first[f]].found) continue;
    if (found >= 0)
      return jsonl_wrong(file, "it has both \"%s\" and \"%s\", which belong to different forms",
                         r->fields[first[found]].name, r->fields[first[f]].name);
    found = f;
  }
  if (found < 0) return jsonl_wrong(file, "it has none of the fields \"context\", \"query\" and \"context_options\"");
  for (i = 0; i < 6; i++)
    if (needs[found][i] && !r->fields[i].found)
      return jsonl_wrong(file, "the field \"%s\" is missing: a row has %s", r->fields[i].name, form_fields[found]);
  return found;
}

static int check_row(const jsonl_reader *file, const task *t, const row *r, int f) {
  const jsonl_texts *list = f == FORM_CHOICES ? &r->choices : &r->contexts;
  const char *name = f == FORM_CHOICES ? "choices" : "context_options";
  int i;
  if (t->n_items > 0 && f != (int)t->form)
    return jsonl_wrong(file, "it has %s, but the rows before it %s: one file holds one form", form_fields[f],
                       form_fields[t->form]);
  if (f != FORM_CHOICES && r->continuation.n == 0) return jsonl_wrong(file, "\"continuation\" is empty");
  if (f == FORM_COMPLETION) return 0;
  if (list->n < 2) return jsonl_wrong(file, "\"%s\" needs at least two strings", name);
  if (r->gold >= list->n)
    return jsonl_wrong(file, "\"gold\" is %lld, but \"%s\" has only the strings 0 to %d", (long long)r->gold, name,
                       list->n - 1);
  for (i = 0; i < list->n; i++)
    if (f == FORM_CHOICES && list->text[i].n == 0) return jsonl_wrong(file, "string %d of \"choices\" is empty", i);
  return 0;
}

static int add_row(const jsonl_reader *file, task *t, const row *r) {
  const int f = form_of(file, r);
  item *x;
  int i;
  if (f < 0 || check_row(file, t, r, f) < 0) return -1;
  t->items = (item *)grow(t->items, t->n_items, &t->item_room, sizeof *t->items);
  if (!t->items) return -1;
  t->form = (form)f;
  x = &t->items[t->n_items++];
  x->line = file->line;
  x->first = t->n_options;
  x->gold = f == FORM_COMPLETION ? 0 : (int)r->gold;
  x->n = f == FORM_COMPLETION ? 1 : f == FORM_CHOICES ? r->choices.n : r->contexts.n;
  for (i = 0; i < x->n; i++)
    if (add_option(t, f == FORM_COMPLETION ? r->context : f == FORM_CHOICES ? r->query : r->contexts.text[i],
                   f == FORM_CHOICES ? r->choices.text[i] : r->continuation) < 0)
      return -1;
  return 0;
}

/* the name of a file without folder and ending */
static void short_name(const char *path, char *out, size_t room) {
  const char *slash = strrchr(path, '/');
  size_t n;
  snprintf(out, room, "%s", slash ? slash + 1 : path);
  n = strlen(out);
  if (cli_ends_with(out, ".jsonl") && n > 6) out[n - 6] = 0;
}

static int task_read(task *t, const char *path, mhk_index limit) {
  jsonl_reader file = {.name = strcmp(path, "-") == 0 ? "standard input" : path, .content = &t->content};
  row r;
  int found = 0;
  t->path = path;
  short_name(path, t->name, sizeof t->name);
  if (cli_read(path, &t->content) != CLI_GO) return CLI_FAILED;
  row_start(&r);
  while ((limit == 0 || t->n_items < limit) && (found = jsonl_next(&file, r.fields, 6)) > 0)
    if (add_row(&file, t, &r) < 0) return CLI_FAILED;
  if (found < 0) return CLI_FAILED;
  return t->n_items > 0 ? CLI_GO : cli_error("%s has no rows", file.name);
}

/* ---------------------------------------------------------------- requests */

/* An option as tokens: those of the context first. */
typedef struct request {
  mhk_index at, n, context; /* first of the ids, their number, and how many are context */
  double log_likelihood;
  int greedy; /* each token of the continuation is the likeliest */
} request;

typedef struct scoring {
  mhk_context *ctx;
  const task_desc *d;
  const task *t;
  mhk_tokenizer *k;
  mhk_model *m;
  mhk_index longest; /* tokens that the model sees at most, of any request */
  mhk_index cut;     /* requests that lost the start of their context */
  int32_t *ids;
  mhk_index n_ids, id_room;
  request *requests;
} scoring;

/* bytes of white space at the end of a text, as Python's str.rstrip() knows it */
static size_t space_at_end(jsonl_text x) {
  static const char *const wide[] = {"\xC2\x85",     "\xC2\xA0",     "\xE1\x9A\x80", "\xE2\x80\xA8",
                                     "\xE2\x80\xA9", "\xE2\x80\xAF", "\xE2\x81\x9F", "\xE3\x80\x80"};
  size_t n = x.n;
  int i;
  while (n > 0) {
    const unsigned char *end = (const unsigned char *)x.at + n, last = end[-1];
    size_t width = (last >= 9 && last <= 13) || (last >= 28 && last <= 32);
    if (n >= 3 && end[-3] == 0xE2 && end[-2] == 0x80 && last >= 0x80 && last <= 0x8A) width = 3;
    for (i = 0; width == 0 && i < CLI_COUNT_OF(wide); i++) {
      const size_t k = strlen(wide[i]);
      if (n >= k && memcmp(end - k, wide[i], k) == 0) width = k;
    }
    if (width == 0) break;
    n -= width;
  }
  return x.n - n;
}

/* What stands between context and continuation: what was asked for, else a space, where neither
   side has one. */
static int add_delimiter(const scoring *s, const option *o, cli_content *text) {
  const char *p = s->d->delimiter;
  int code = CLI_GO;
  if (!p) {
    const int spaced = space_at_end(o->context) > 0 || strchr(" \t\n\r", o->continuation.at[0]);
    return cli_add(text, " ", !spaced);
  }
  for (; *p && code == CLI_GO; p++) {
    char c = *p;
    if (c == '\\' && p[1] && strchr("nt\\", p[1])) c = *++p == 'n' ? '\n' : *p == 't' ? '\t' : '\\';
    code = cli_add(text, &c, 1);
  }
  return code;
}

/* makes room for n more tokens */
static int reserve(scoring *s, mhk_index n) {
  int32_t *larger;
  if (s->n_ids + n <= s->id_room) return CLI_GO;
  s->id_room = 2 * (s->n_ids + n) + 4096;
  larger = (int32_t *)realloc(s->ids, (size_t)s->id_room * sizeof *s->ids);
  if (!larger) return cli_error("out of memory for the tokens of %s", s->t->path);
  s->ids = larger;
  return CLI_GO;
}

/* n bytes as tokens behind those that are there; their number, -1 after a message */
static mhk_index encode(scoring *s, const char *text, size_t n) {
  for (;;) {
    const mhk_index room = s->id_room - s->n_ids, found = mhk_encode(s->k, text, n, s->ids + s->n_ids, room);
    if (found < 0) cli_context_error(s->ctx);
    if (found <= room) return found;
    if (reserve(s, found) != CLI_GO) return -1;
  }
}

/* One option as a request. White space at the end of the context belongs to the continuation;
   both are encoded together, and the context is as many tokens as it has alone. An empty context
   is the start token. text is scratch memory. */
static int make_request(scoring *s, const option *o, const item *x, mhk_index limit, request *q, cli_content *text) {
  const size_t bytes = o->context.n - space_at_end(o->context);
  const int32_t start = mhk_tokenizer_start(s->k);
  const char *wrong = NULL;
  mhk_index alone, all, cut;
  text->n = 0;
  if (cli_add(text, o->context.at, o->context.n) != CLI_GO || add_delimiter(s, o, text) != CLI_GO ||
      cli_add(text, o->continuation.at, o->continuation.n) != CLI_GO || reserve(s, 1) != CLI_GO)
    return CLI_FAILED;
  q->at = s->n_ids;
  q->context = bytes == 0 || s->d->start;
  if (q->context && start < 0) wrong = "the context is empty, and the tokenizer has no start token in its place";
  if (q->context) s->ids[s->n_ids++] = start;
  alone = encode(s, text->text, bytes);
  all = alone < 0 ? -1 : encode(s, text->text, text->n);
  if (all < 0) return CLI_FAILED;
  s->n_ids += all;
  q->n = s->n_ids - q->at;
  q->context += alone;
  if (!wrong && q->context >= q->n) wrong = "the continuation adds no token to the context";
  if (!wrong && q->n - q->context > limit) wrong = "the continuation is longer than the model's context (see --length)";
  if (wrong) return cli_error("%s, line %lld: %s", s->t->path, (long long)x->line, wrong);
  cut = q->n - (limit + 1);
  if (cut > 0) {
    q->at += cut;
    q->n -= cut;
    q->context -= cut;
    s->cut++;
  }
  if (q->n - 1 > s->longest) s->longest = q->n - 1;
  return CLI_GO;
}

static mhk_index limit_of(const scoring *s) {
  const int own = mhk_model_config(s->m)->max_position;
  return s->d->length ? s->d->length : own > 0 ? own : 2048;
}

static int make_requests(scoring *s) {
  const mhk_index limit = limit_of(s);
  cli_content text;
  mhk_index i;
  int k, code = CLI_GO;
  memset(&text, 0, sizeof text);
  s->requests = (request *)calloc((size_t)s->t->n_options, sizeof *s->requests);
  if (!s->requests) return cli_error("out of memory for the rows of %s", s->t->path);
  for (i = 0; i < s->t->n_items && code == CLI_GO; i++)
    for (k = 0; k < s->t->items[i].n && code == CLI_GO; k++) {
      const mhk_index at = s->t->items[i].first + k;
      code = make_request(s, &s->t->options[at], &s->t->items[i], limit, &s->requests[at], &text);
    }
  free(text.text);
  if (code == CLI_GO && s->cut > 0)
    cli_note("%s: %lld of %lld requests are longer than %lld tokens and lost the start of their context", s->t->path,
             (long long)s->cut, (long long)s->t->n_options, (long long)limit);
  return code;
}

/* ---------------------------------------------------------------- log-likelihoods */

/* Requests that are scored together, one a sequence of the session. */
typedef struct batch {
  const scoring *s;
  mhk_session *session;
  mhk_index first, n, vocab;
  mhk_index *done;                /* tokens that each sequence has seen */
  mhk_index *lengths;             /* and feeds now */
  const int32_t **tokens;
  unsigned char *marks;           /* (batch,longest): logits that are wanted */
  const unsigned char **wanted;
} batch;

static void batch_free(batch *b) {
  mhk_session_destroy(b->session);
  free(b->done);
  free(b->lengths);
  free(b->tokens);
  free(b->marks);
  free(b->wanted);
}

static int batch_create(batch *b, const scoring *s) {
  const size_t n = (size_t)s->d->batch;
  const mhk_session_desc desc = {.batch = s->d->batch, .capacity = s->longest, .recent = 1};
  b->s = s;
  b->vocab = mhk_model_config(s->m)->vocab_size;
  b->done = (mhk_index *)calloc(n, sizeof *b->done);
  b->lengths = (mhk_index *)calloc(n, sizeof *b->lengths);
  b->tokens = (const int32_t **)calloc(n, sizeof *b->tokens);
  b->wanted = (const unsigned char **)calloc(n, sizeof *b->wanted);
  b->marks = (unsigned char *)calloc(n * (size_t)s->longest, 1);
  if (!b->done || !b->lengths || !b->tokens || !b->wanted || !b->marks)
    return cli_error("out of memory for %lld sequences of %lld tokens", (long long)n, (long long)s->longest);
  b->session = mhk_session_create(s->m, &desc);
  return b->session ? CLI_GO : cli_context_error(s->ctx);
}

/* the logits after a token of a sequence: what the next one is worth */
static void take_logits(void *user, mhk_index sequence, mhk_index index, const mhk_real *logits) {
  const batch *b = (const batch *)user;
  request *q = &b->s->requests[b->first + sequence];
  const int32_t next = b->s->ids[q->at + b->done[sequence] + index + 1];
  double sum = 0, top;
  mhk_index v, best = 0;
  for (v = 1; v < b->vocab; v++)
    if (logits[v] > logits[best]) best = v;
  top = (double)logits[best];
  for (v = 0; v < b->vocab; v++) sum += exp((double)logits[v] - top);
  q->log_likelihood += (double)logits[next] - top - log(sum);
  q->greedy = q->greedy && best == next;
}

/* Feeds all sequences up to their ends, or to where lengths says; reads their logits if take. */
static int batch_feed(batch *b, int take) {
  const mhk_feed_desc feed = {.tokens = b->tokens, .lengths = b->lengths, .take = take ? take_logits : NULL, .user = b,
                              .wanted = b->wanted};
  mhk_index i;
  if (mhk_feed_batch(b->session, &feed) != MHK_OK) return cli_context_error(b->s->ctx);
  for (i = 0; i < b->n; i++) b->done[i] += b->lengths[i];
  return CLI_GO;
}

/* tokens that a request and one after it have in common, of those before the last of the context */
static mhk_index common(const scoring *s, const request *a, const request *b) {
  const mhk_index most = (a->context < b->context ? a->context : b->context) - 1;
  mhk_index n = 0;
  while (n < most && s->ids[a->at + n] == s->ids[b->at + n]) n++;
  return n;
}

/* What the options of a row have in common is computed once: the first feeds it, the others copy
   its state. first: of the row's options in this batch; n of them. */
static int share(batch *b, const mhk_index *first, const mhk_index *count, mhk_index groups) {
  const request *q = &b->s->requests[b->first];
  mhk_index g, i, k, any = 0;
  for (i = 0; i < b->n; i++) b->lengths[i] = 0;
  for (g = 0; g < groups; g++) {
    i = first[g];
    for (k = 1; k < count[g]; k++) {
      const mhk_index n = common(b->s, &q[i], &q[i + k]);
      if (k == 1 || n < b->lengths[i]) b->lengths[i] = n;
    }
    any += b->lengths[i];
  }
  if (any == 0) return CLI_GO;
  if (batch_feed(b, 0) != CLI_GO) return CLI_FAILED;
  for (g = 0; g < groups; g++)
    for (k = 1; k < count[g] && b->done[first[g]] > 0; k++) {
      if (mhk_session_copy(b->session, first[g] + k, b->session, first[g]) != MHK_OK)
        return cli_context_error(b->s->ctx);
      b->done[first[g] + k] = b->done[first[g]];
    }
  return CLI_GO;
}

/* Scores the requests [first,first+n); row: the item that the first of them belongs to. */
static int batch_score(batch *b, mhk_index item_at) {
  const task *t = b->s->t;
  mhk_index *first = (mhk_index *)malloc(2 * (size_t)b->n * sizeof *first), *count = first + b->n, groups = 0, i = 0;
  int code;
  if (!first) return cli_error("out of memory for %lld sequences", (long long)b->n);
  if (mhk_session_reset(b->session, MHK_ALL) != MHK_OK) cli_context_error(b->s->ctx);
  for (; i < b->n; item_at++, groups++) {
    const mhk_index end = t->items[item_at].first + t->items[item_at].n - b->first;
    first[groups] = i;
    i = end < b->n ? end : b->n;
    count[groups] = i - first[groups];
  }
  for (i = 0; i < b->s->d->batch; i++) {
    b->done[i] = b->lengths[i] = 0;
    b->tokens[i] = i < b->n ? b->s->ids + b->s->requests[b->first + i].at : NULL;
  }
  code = share(b, first, count, groups);
  for (i = 0; i < b->n && code == CLI_GO; i++) {
    request *q = &b->s->requests[b->first + i];
    unsigned char *marks = b->marks + i * b->s->longest;
    mhk_index p;
    q->greedy = 1;
    b->lengths[i] = q->n - 1 - b->done[i];
    b->tokens[i] = b->s->ids + q->at + b->done[i];
    b->wanted[i] = marks;
    for (p = 0; p < b->lengths[i]; p++) marks[p] = b->done[i] + p + 1 >= q->context;
  }
  if (code == CLI_GO) code = batch_feed(b, 1);
  free(first);
  return code;
}

/* the log-likelihoods of all requests; CLI_FAILED after a message, without one after Ctrl-C */
static int score_requests(scoring *s, const char *title) {
  cli_task progress;
  batch b;
  mhk_index i = 0, done = 0, total = 0, row = 0;
  int code;
  memset(&b, 0, sizeof b);
  for (i = 0; i < s->t->n_options; i++) total += s->requests[i].n - 1;
  cli_task_start(&progress, "scoring", title, 1);
  code = batch_create(&b, s);
  for (; code == CLI_GO && b.first < s->t->n_options; b.first += b.n) {
    if (cli_task_report(&progress, done, total)) code = CLI_FAILED;
    b.n = s->t->n_options - b.first < s->d->batch ? s->t->n_options - b.first : s->d->batch;
    while (s->t->items[row].first + s->t->items[row].n <= b.first) row++;
    if (code == CLI_GO) code = batch_score(&b, row);
    for (i = 0; i < b.n; i++) done += s->requests[b.first + i].n - 1;
  }
  cli_progress_clear();
  batch_free(&b);
  for (i = 0; code == CLI_GO && i < s->t->n_options; i++)
    if (!isfinite(s->requests[i].log_likelihood))
      code = cli_error("%s: a log-likelihood is not finite: the model's weights may be damaged", title);
  return code;
}

/* ---------------------------------------------------------------- scores */

typedef struct score {
  double acc, acc_error, norm, norm_error; /* norm: NaN where there is none */
  double mean, mean_error;                 /* log-likelihood of the right option */
  double chance;                           /* accuracy of guessing */
} score;

/* characters of a text: what lm-evaluation-harness divides by */
static double characters(jsonl_text x) {
  size_t i, n = 0;
  for (i = 0; i < x.n; i++) n += ((unsigned char)x.at[i] & 0xC0) != 0x80;
  return (double)n;
}

/* the option of an item with the highest log-likelihood, the first of equals */
static int pick(const scoring *s, const item *x, int normalized) {
  double best = -INFINITY;
  int k, found = 0;
  for (k = 0; k < x->n; k++) {
    const double value = s->requests[x->first + k].log_likelihood /
                         (normalized ? characters(s->t->options[x->first + k].continuation) : 1);
    if (value > best) {
      best = value;
      found = k;
    }
  }
  return found;
}

/* mean and its standard error from sums */
static void settle(double sum, double squares, double n, double *mean, double *error) {
  const double variance = n > 1 ? (squares - sum * sum / n) / (n - 1) : 0;
  *mean = sum / n;
  *error = variance > 0 ? sqrt(variance / n) : 0;
}

static score count_up(const scoring *s) {
  const double n = (double)s->t->n_items;
  double right = 0, right_norm = 0, sum = 0, squares = 0;
  score r;
  mhk_index i;
  memset(&r, 0, sizeof r);
  for (i = 0; i < s->t->n_items; i++) {
    const item *x = &s->t->items[i];
    const request *q = &s->requests[x->first + x->gold];
    right += s->t->form == FORM_COMPLETION ? q->greedy : pick(s, x, 0) == x->gold;
    right_norm += pick(s, x, 1) == x->gold;
    sum += q->log_likelihood;
    squares += q->log_likelihood * q->log_likelihood;
    r.chance += s->t->form == FORM_COMPLETION ? 0 : 1.0 / (x->n * n);
  }
  settle(right, right, n, &r.acc, &r.acc_error);
  settle(right_norm, right_norm, n, &r.norm, &r.norm_error);
  settle(sum, squares, n, &r.mean, &r.mean_error);
  if (s->t->form != FORM_CHOICES) r.norm = r.norm_error = NAN;
  return r;
}

static void write_rows(FILE *out, const scoring *s, const char *model) {
  mhk_index i;
  int k;
  for (i = 0; i < s->t->n_items; i++) {
    const item *x = &s->t->items[i];
    cli_json j;
    json_start(&j, out, 0);
    json_open(&j, NULL, '{');
    json_text(&j, "model", model);
    json_text(&j, "task", s->t->path);
    json_count(&j, "line", (double)x->line);
    json_open(&j, "log_likelihoods", '[');
    for (k = 0; k < x->n; k++) json_real(&j, NULL, s->requests[x->first + k].log_likelihood);
    json_close(&j);
    json_open(&j, "tokens", '[');
    for (k = 0; k < x->n; k++)
      json_count(&j, NULL, (double)(s->requests[x->first + k].n - s->requests[x->first + k].context));
    json_close(&j);
    if (s->t->form == FORM_COMPLETION) {
      json_count(&j, "greedy", s->requests[x->first].greedy);
    } else {
      json_count(&j, "pick", pick(s, x, 0));
      if (s->t->form == FORM_CHOICES) json_count(&j, "pick_norm", pick(s, x, 1));
      json_count(&j, "gold", x->gold);
    }
    json_close(&j);
  }
}

/* ---------------------------------------------------------------- the table */

typedef struct results {
  const task_desc *d;
  task *tasks;
  score *scores; /* (models,tasks) */
} results;

/* the mean of a model's accuracies over the tasks, with its standard error */
static void average(const results *r, int model, double *mean, double *error) {
  const int n = r->d->tasks->n;
  int i;
  *mean = *error = 0;
  for (i = 0; i < n; i++) {
    const score *x = &r->scores[model * n + i];
    *mean += x->acc / n;
    *error += x->acc_error * x->acc_error;
  }
  *error = sqrt(*error) / n;
}

enum { MOST_CELL = 32, PAGE = 96 };

static void percent(char *cell, double mean, double error) {
  snprintf(cell, MOST_CELL, "%.1f +- %.1f", 100 * mean, 100 * error);
}

/* The cell of a column of a task: 0 accuracy, 1 what else its form has. model -1: what the column
   is, -2: what guessing gets. Returns 0 where there is no such column. */
static int task_cell(const results *r, int i, int column, int model, char *cell) {
  const form f = r->tasks[i].form;
  const score *x = &r->scores[(model < 0 ? 0 : model) * r->d->tasks->n + i];
  if (column > 1 || (column == 1 && f == FORM_CONTEXTS)) return 0;
  *cell = 0;
  if (model == -1) {
    snprintf(cell, MOST_CELL, "%s", column == 0 ? "acc" : f == FORM_CHOICES ? "acc_norm" : "perplexity");
  } else if (model == -2) {
    if (column == 0 && f != FORM_COMPLETION) snprintf(cell, MOST_CELL, "%.1f", 100 * x->chance);
  } else if (column == 0) {
    percent(cell, x->acc, x->acc_error);
  } else if (f == FORM_CHOICES) {
    percent(cell, x->norm, x->norm_error);
  } else {
    snprintf(cell, MOST_CELL, "%.4g +- %.2g", exp(-x->mean), exp(-x->mean) * x->mean_error);
  }
  return 1;
}

/* the cell of a column of the table; the last one is the average of several tasks */
static int cell_of(const results *r, int column, int model, char *cell, const char **task_name) {
  double mean, error;
  int i, k;
  *task_name = "";
  for (i = 0; i < r->d->tasks->n; i++)
    for (k = 0; task_cell(r, i, k, model, cell); k++)
      if (column-- == 0) {
        *task_name = k == 0 ? r->tasks[i].name : "";
        return 1;
      }
  if (column > 0 || r->d->tasks->n < 2) return 0;
  *cell = 0;
  *task_name = "mean";
  if (model == -1) snprintf(cell, MOST_CELL, "acc");
  if (model < 0) return 1;
  average(r, model, &mean, &error);
  percent(cell, mean, error);
  return 1;
}

static int width_of(const results *r, int column) {
  const char *name;
  char cell[MOST_CELL];
  int m, width = 0;
  for (m = -2; m < r->d->models->n; m++) {
    if (!cell_of(r, column, m, cell, &name)) return 0;
    if ((int)strlen(cell) > width) width = (int)strlen(cell);
    if ((int)strlen(name) > width) width = (int)strlen(name);
  }
  return width;
}

/* columns [from,to) for the models and what guessing gets, after names of this width */
static void print_columns(const results *r, int from, int to, int names) {
  const char *name;
  char cell[MOST_CELL];
  int c, m;
  printf("%s%-*s", cli_bold(stdout), names, "");
  for (c = from; c < to; c++) {
    cell_of(r, c, -1, cell, &name);
    printf("  %*s", width_of(r, c), name);
  }
  printf("\n%-*s", names, "accuracy in %");
  for (m = -1; m <= r->d->models->n; m++) {
    const int model = m == r->d->models->n ? -2 : m;
    if (m >= 0) printf("%-*s", names, model == -2 ? "guessing" : r->d->models->path[m]);
    for (c = from; c < to; c++) {
      cell_of(r, c, model, cell, &name);
      printf("  %*s", width_of(r, c), cell);
    }
    printf("%s\n", m == -1 ? cli_plain(stdout) : "");
  }
}

/* behind the columns of the task that column from is the first of; from where there is no such
   column */
static int group_end(const results *r, int from) {
  const char *name;
  char cell[MOST_CELL];
  int to = from;
  while (cell_of(r, to, -1, cell, &name) && (to == from || !*name)) to++;
  return to;
}

static int width_between(const results *r, int from, int to) {
  int width = 0;
  for (; from < to; from++) width += 2 + width_of(r, from);
  return width;
}

static void print_table(const results *r) {
  int names = 14, from = 0, m;
  for (m = 0; m < r->d->models->n; m++)
    if ((int)strlen(r->d->models->path[m]) > names) names = (int)strlen(r->d->models->path[m]);
  while (width_of(r, from) > 0) {
    int to = group_end(r, from), width = names + width_between(r, from, to), next = group_end(r, to);
    while (next > to && width + width_between(r, to, next) <= PAGE) {
      width += width_between(r, to, next);
      to = next;
      next = group_end(r, to);
    }
    if (from > 0) putchar('\n');
    print_columns(r, from, to, names);
    from = to;
  }
}

/* all figures as one object */
static void print_json(const results *r) {
  const int n = r->d->tasks->n;
  double mean, error;
  cli_json j;
  int m, i;
  json_start(&j, stdout, 0);
  json_open(&j, NULL, '{');
  json_open(&j, "models", '[');
  for (m = 0; m < r->d->models->n; m++) {
    json_open(&j, NULL, '{');
    json_text(&j, "model", r->d->models->path[m]);
    json_open(&j, "tasks", '[');
    for (i = 0; i < n; i++) {
      const score *x = &r->scores[m * n + i];
      json_open(&j, NULL, '{');
      json_text(&j, "task", r->tasks[i].path);
      json_text(&j, "form", form_names[r->tasks[i].form]);
      json_count(&j, "rows", (double)r->tasks[i].n_items);
      json_real(&j, "acc", x->acc);
      json_real(&j, "acc_error", x->acc_error);
      if (!isnan(x->norm)) json_real(&j, "acc_norm", x->norm);
      if (!isnan(x->norm)) json_real(&j, "acc_norm_error", x->norm_error);
      if (r->tasks[i].form != FORM_COMPLETION) json_real(&j, "chance", x->chance);
      json_real(&j, "log_likelihood", x->mean);
      json_real(&j, "log_likelihood_error", x->mean_error);
      json_close(&j);
    }
    json_close(&j);
    average(r, m, &mean, &error);
    json_real(&j, "mean_acc", mean);
    json_real(&j, "mean_acc_error", error);
    json_close(&j);
  }
  json_close(&j);
  json_close(&j);
}

/* ---------------------------------------------------------------- all of it */

static int score_task(mhk_context *ctx, const results *r, mhk_model *m, int model, int i, FILE *rows) {
  const char *path = r->d->models->path[model];
  scoring s = {.ctx = ctx, .d = r->d, .t = &r->tasks[i], .m = m, .k = mhk_model_tokenizer(m)};
  char title[96];
  int code = make_requests(&s);
  snprintf(title, sizeof title, "%.60s, %.30s", path, r->tasks[i].name);
  if (code == CLI_GO) code = score_requests(&s, title);
  if (code == CLI_GO) r->scores[model * r->d->tasks->n + i] = count_up(&s);
  if (code == CLI_GO && rows) write_rows(rows, &s, path);
  free(s.ids);
  free(s.requests);
  return code;
}

static int score_all(mhk_context *ctx, const results *r, FILE *rows) {
  int m, i, code = CLI_GO;
  for (m = 0; m < r->d->models->n && code == CLI_GO; m++) {
    mhk_model *model = cli_load(ctx, r->d->models->path[m]);
    if (!model) return cli_context_error(ctx);
    if (!mhk_model_tokenizer(model)) return cli_no_tokenizer(model, r->d->models->path[m]);
    for (i = 0; i < r->d->tasks->n && code == CLI_GO; i++) code = score_task(ctx, r, model, m, i, rows);
    mhk_model_destroy(model);
  }
  return code;
}

/* the tasks are read, and the file for rows is open */
static int run_tasks(mhk_context *ctx, results *r) {
  cli_output o;
  int code = CLI_GO;
  r->scores = (score *)calloc((size_t)(r->d->models->n * r->d->tasks->n), sizeof *r->scores);
  if (!r->scores) return cli_error("out of memory");
  if (r->d->rows && cli_output_open(&o, r->d->rows) != CLI_GO) return CLI_FAILED;
  code = score_all(ctx, r, r->d->rows ? o.file : NULL);
  if (r->d->rows && code != CLI_GO) cli_output_drop(&o);
  else if (r->d->rows) code = cli_output_close(&o);
  if (code != CLI_GO) return CLI_FAILED;
  if (r->d->json) print_json(r);
  else print_table(r);
  return CLI_OK;
}

int task_run(mhk_context *ctx, const task_desc *d) {
  results r = {.d = d};
  int i, code = CLI_GO;
  r.tasks = (task *)calloc((size_t)d->tasks->n, sizeof *r.tasks);
  if (!r.tasks) return cli_error("out of memory");
  for (i = 0; i < d->tasks->n && code == CLI_GO; i++) code = task_read(&r.tasks[i], d->tasks->path[i], d->limit);
  code = code == CLI_GO ? run_tasks(ctx, &r) : CLI_FAILED;
  for (i = 0; i < d->tasks->n; i++) task_free(&r.tasks[i]);
  free(r.tasks);
  free(r.scores);
  return code;
}
