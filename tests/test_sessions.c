/* Trained models against what PyTorch computed from the same weights (the bundled teacher, or any
   folder of model folders with --dir), and the properties of sessions and sampling. */
#include "json.h"
#include "models.h"
#include "foreign.h"
#include <dirent.h>
#include <sys/stat.h>

static const char *folder; /* --dir: only that */
static int models_checked, tokenizers_checked;

static int exists(const char *dir, const char *name) {
  char path[2048];
  struct stat info;
  snprintf(path, sizeof path, "%s/%s", dir, name);
  return stat(path, &info) == 0;
}

static json *open_json(const char *dir, const char *name, char **text) {
  char path[2048];
  snprintf(path, sizeof path, "%s/%s", dir, name);
  *text = test_read_file(path, NULL);
  return *text ? json_parse(*text) : NULL;
}

/* rows of text, ids, decoded */
static void check_tokens(mhk_context *ctx, mhk_tokenizer *k, const char *dir, const char *name) {
  char *text;
  json *j = open_json(dir, name, &text);
  const json *row;
  int rows = 0, wrong = 0;
  if (!j) return;
  for (row = json_at(j, "rows") ? json_at(j, "rows")->child : NULL; row; row = row->next, rows++) {
    const json *t = json_at(row, "text"), *d = json_at(row, "decoded");
    int n = 0;
    int32_t *want = json_ids(json_at(row, "ids"), &n), *got = (int32_t *)malloc(sizeof *got * (t->length + 1));
    const mhk_index count = mhk_encode(k, t->text, t->length, got, (mhk_index)t->length);
    char *back = (char *)malloc(t->length * 4 + 16);
    mhk_index bytes;
    int same = count == n;
    if (same && n) same = memcmp(got, want, sizeof *got * (size_t)n) == 0;
    CHECK(same, "%s/%s, row %d: \"%.60s\" becomes %d ids, should be %d, or they differ %s", dir, name, rows, t->text,
          (int)count, n, mhk_message(ctx));
    bytes = mhk_decode(k, want, n, back, t->length * 4 + 16);
    if (d) {
      same = bytes == (mhk_index)d->length && memcmp(back, d->text, d->length) == 0;
      CHECK(same, "%s/%s, row %d: decodes to \"%.*s\", should be \"%.60s\"", dir, name, rows,
            bytes > 60  ? 60
            : bytes > 0 ? (int)bytes
                        : 0,
            back, d->text);
    }
    wrong += !same;
    free(want), free(got), free(back);
  }
  CHECK(rows > 0, "%s/%s has no rows", dir, name);
  printf("  %-22s %d of %d texts\n", name, rows - wrong, rows);
  json_free(j);
  free(text);
}

static int32_t argmax(const mhk_real *x, mhk_index n, double *gap) {
  mhk_index i, best = 0;
  double second = -INFINITY;
  for (i = 1; i < n; i++)
    if (x[i] > x[best]) best = i;
  for (i = 0; i < n; i++)
    if (i != best && (double)x[i] > second) second = (double)x[i];
  if (gap) *gap = (double)x[best] - second;
  return (int32_t)best;
}

/* greedy continuation; a different pick counts only where the best two are at least 1e-3 apart */
static int check_greedy(mhk_context *ctx, mhk_model *m, const char *what, const int32_t *prompt, int n_prompt,
                        const int32_t *want, int n, const char *text) {
  mhk_session_desc d;
  mhk_session *s;
  mhk_sampling greedy;
  char said[4096] = "";
  int i, same = 1;
  memset(&d, 0, sizeof d);
  d.capacity = n_prompt + n + 1;
  memset(&greedy, 0, sizeof greedy);
  greedy.greedy = 1;
  s = mhk_session_create(m, &d);
  mhk_feed(s, prompt, n_prompt);
  for (i = 0; i < n && same; i++) {
    double gap = 0;
    int32_t best, id;
    if (!mhk_logits(s, 0)) break;
    best = argmax(mhk_logits(s, 0), mhk_model_config(m)->vocab_size, &gap);
    id = mhk_sample(s, &greedy);
    CHECK(id == best || (id == -1 && best == mhk_tokenizer_end(mhk_model_tokenizer(m))),
          "%s: greedy sampling gave %d, the largest logit is %d's", what, (int)id, (int)best);
    if (best != want[i]) {
      CHECK(gap < 1e-3, "%s: token %d is %d, should be %d (the gap to the next is %g)", what, i, (int)best,
            (int)want[i], gap);
      same = 0;
    }
    if (id < 0) break;
    if (strlen(said) + strlen(mhk_text_out(s)) < sizeof said) strcat(said, mhk_text_out(s));
  }
  if (same && text && *text)
    CHECK(strncmp(said, text, strlen(said)) == 0 && strlen(said) + 4 >= strlen(text),
          "%s: says \"%s\", should be \"%s\"", what, said, text);
  CHECK_OK(ctx);
  mhk_session_destroy(s);
  return same;
}

/* a folder that holds a tokenizer and nothing else */
static void check_tokenizer(const char *dir) {
  mhk_context *ctx = mhk_create(NULL);
  mhk_tokenizer *k = mhk_tokenizer_load(ctx, dir);
  CHECK(k != NULL, "%s: %s", dir, mhk_message(ctx));
  if (k) check_tokens(ctx, k, dir, "expected.json");
  tokenizers_checked++;
  mhk_destroy(ctx);
}

/* how far a row of logits is off the expected negative log-likelihood of the token after it */
static double nll_error(const mhk_real *row, mhk_index V, int32_t next, double want) {
  double top = -INFINITY, sum = 0;
  mhk_index v;
  for (v = 0; v < V; v++) top = fmax(top, (double)row[v]);
  for (v = 0; v < V; v++) sum += exp((double)row[v] - top);
  return top + log(sum) - (double)row[next] - want;
}

/* the logits of all rows of tokens that expected.safetensors holds, and their losses */
static void check_logits(mhk_context *ctx, mhk_model *m, const mhk_file *f, const char *dir) {
  const mhk_stored *ft = mhk_file_find(f, "tokens"), *fl = mhk_file_find(f, "logits"), *fn = mhk_file_find(f, "nll"),
                   *one = mhk_file_find(f, "one_token_logits");
  const mhk_index V = mhk_model_config(m)->vocab_size;
  mhk_tape *tape = mhk_tape_create(ctx);
  mhk_index rows, T, kept = fl ? fl->shape[1] : 0, r, i;
  double worst = 0, worst_nll = 0, mean = 0;
  int32_t *tokens;
  mhk_real *want, *nll;
  CHECK(ft != NULL, "%s has no tokens: %s", dir, mhk_message(ctx));
  if (!ft) return;
  mhk_tape_record(tape, 0);
  rows = ft->shape[0];
  T = ft->shape[1];
  tokens = (int32_t *)malloc(sizeof *tokens * (size_t)ft->count);
  want = (mhk_real *)malloc(sizeof *want * (size_t)((fl ? fl->count : 1) + V));
  nll = (mhk_real *)malloc(sizeof *nll * (size_t)(fn ? fn->count : 1));
  mhk_file_read_i32(ctx, ft, tokens);
  if (fl) mhk_file_read(ctx, fl, want);
  if (fn) mhk_file_read(ctx, fn, nll);
  for (r = 0; r < rows; r++) {
    const mhk_tensor *logits = mhk_forward(tape, m, tokens + r * T, 1, T, NULL);
    CHECK(logits != NULL, "%s: %s", dir, mhk_message(ctx));
    if (!logits) break;
    if (fl && r < fl->shape[0])
      worst = fmax(worst,
                   CHECK_CLOSE("logits", mhk_data(logits) + (T - kept) * V, want + r * kept * V, kept * V, 5e-5));
    for (i = 0; fn && i < T - 1; i++) {
      const double off = nll_error(mhk_data(logits) + i * V, V, tokens[r * T + i + 1], (double)nll[r * (T - 1) + i]);
      worst_nll = fmax(worst_nll, fabs(off));
      mean += off / (double)(rows * (T - 1));
    }
    mhk_tape_reset(tape);
  }
  CHECK(worst_nll < 1e-3, "%s: a token's negative log-likelihood is off by %g", dir, worst_nll);
  CHECK(fabs(mean) < 1e-5, "%s: the mean negative log-likelihood is off by %g", dir, mean);
  printf("  %-22s logits within %.1e of the largest, nll within %.1e, its mean within %.1e\n", "expected.safetensors",
         worst, worst_nll, fabs(mean));
  if (one && one->count == V) {
    mhk_file_read(ctx, one, want);
    CHECK_CLOSE("one_token_logits", mhk_data(mhk_forward(tape, m, tokens, 1, 1, NULL)), want, V, 5e-5);
  }
  free(tokens), free(want), free(nll);
  mhk_tape_destroy(tape);
}

/* the greedy continuation that expected.safetensors holds, if it does */
static void check_stored_greedy(mhk_context *ctx, mhk_model *m, const mhk_file *f) {
  const mhk_stored *ft = mhk_file_find(f, "greedy_prompt"), *fl = mhk_file_find(f, "greedy_continuation");
  int32_t *prompt, *want;
  if (!ft || !fl) return;
  prompt = (int32_t *)malloc(sizeof *prompt * (size_t)ft->count);
  want = (int32_t *)malloc(sizeof *want * (size_t)fl->count);
  mhk_file_read_i32(ctx, ft, prompt);
  mhk_file_read_i32(ctx, fl, want);
  check_greedy(ctx, m, "greedy_continuation", prompt, (int)ft->count, want, (int)fl->count, NULL);
  free(prompt), free(want);
}

/* all continuations of greedy.json, and the ids of their prompts */
static void check_greedy_file(mhk_context *ctx, mhk_model *m, const char *dir) {
  mhk_tokenizer *k = mhk_model_tokenizer(m);
  char *text;
  json *j = open_json(dir, "greedy.json", &text);
  const json *g;
  int same = 0, all = 0;
  if (!j) return;
  for (g = json_at(j, "greedy") ? json_at(j, "greedy")->child : NULL; g; g = g->next, all++) {
    int n_prompt, n;
    int32_t *prompt = json_ids(json_at(g, "prompt_ids"), &n_prompt),
            *want = json_ids(json_at(g, "continuation_ids"), &n);
    if (k) { /* text goes in as the teachers were trained: after one end-of-text token */
      const char *words = json_text(g, "prompt");
      int32_t ids[512];
      const mhk_index count = mhk_encode(k, words, strlen(words), ids, 512);
      CHECK(count == n_prompt - 1 && prompt[0] == mhk_tokenizer_end(k) &&
                !memcmp(ids, prompt + 1, sizeof *ids * (size_t)count),
            "the prompt's ids differ: %s", words);
    }
    same += check_greedy(ctx, m, json_text(g, "prompt"), prompt, n_prompt, want, n, json_text(g, "text"));
    free(prompt), free(want);
  }
  printf("  %-22s %d of %d continuations to the last token\n", "greedy.json", same, all);
  json_free(j);
  free(text);
}

/* Holds a model folder against what lies beside it: texts, tokens, logits, greedy continuations. */
static void check_model(const char *dir) {
  mhk_context_desc cd;
  mhk_context *ctx;
  mhk_model *m;
  mhk_tokenizer *k;
  char path[2048];
  if (!exists(dir, "config.json") && !exists(dir, "expected.json")) return;
  printf("%s\n", dir);
  if (!exists(dir, "config.json")) {
    check_tokenizer(dir);
    return;
  }
  models_checked++;
  memset(&cd, 0, sizeof cd);
  cd.threads = -1;
  ctx = mhk_create(&cd);
  m = foreign_load(ctx, dir, NULL);
  CHECK(m != NULL, "%s: %s", dir, mhk_message(ctx));
  if (m) {
    k = mhk_model_tokenizer(m);
    if (exists(dir, "tokenizer.json")) CHECK(k != NULL, "%s: the tokenizer beside the weights was not loaded", dir);
    if (k) check_tokens(ctx, k, dir, "tokens.json");
    if (exists(dir, "expected.safetensors")) {
      mhk_file *f;
      snprintf(path, sizeof path, "%s/expected.safetensors", dir);
      f = mhk_file_open(ctx, path);
      check_logits(ctx, m, f, dir);
      check_stored_greedy(ctx, m, f);
    }
    check_greedy_file(ctx, m, dir);
    CHECK_OK(ctx);
  }
  mhk_destroy(ctx);
}

static int by_name(const void *a, const void *b) { return strcmp((const char *)a, (const char *)b); }

TEST(models) {
  const char *dir = folder ? folder : "examples";
  char names[256][256], path[1024];
  DIR *d;
  struct dirent *e;
  int n = 0, i;
  if (exists(dir, "config.json")) {
    check_model(dir);
    return;
  }
  d = opendir(dir);
  REQUIRE(d != NULL, "there is no folder %s", dir);
  while ((e = readdir(d)) != NULL && n < 256)
    if (e->d_name[0] != '.' && strlen(e->d_name) < 256) strcpy(names[n++], e->d_name);
  closedir(d);
  qsort(names, (size_t)n, sizeof *names, by_name);
  for (i = 0; i < n; i++) {
    if (snprintf(path, sizeof path, "%s/%s", dir, names[i]) < (int)sizeof path) check_model(path);
  }
  printf("%d models checked\n", models_checked);
  CHECK(models_checked + tokenizers_checked > 0, "no model folders in %s", dir);
}

/* ------------------------------------------------------------------------------------- sessions */

static mhk_sampling sampling(double temperature, int top_k, double top_p, double min_p, uint64_t seed) {
  mhk_sampling s;
  memset(&s, 0, sizeof s);
  s.exact = 1;
  s.greedy = temperature < 0;
  if (temperature > 0) s.temperature = temperature;
  s.top_k = top_k;
  s.top_p = top_p;
  s.min_p = min_p;
  s.seed = seed;
  return s;
}

TEST(feeding_in_parts) {
  static const int parts[] = {1, 5, 1, 30};
  int kind;
  for (kind = 0; kind < MODEL_KINDS; kind++) {
    mhk_context *ctx = mhk_create(NULL);
    mhk_model *m = model_new(ctx, kind, 5);
    mhk_session_desc d;
    mhk_session *a, *b;
    int32_t tokens[74], some[74];
    int i, at = 0, row, p;
    memset(&d, 0, sizeof d);
    d.batch = 2;
    d.capacity = 64;
    model_tokens(tokens, 74, 31, 9);
    a = mhk_session_create(m, &d);
    b = mhk_session_create(m, &d);
    CHECK(mhk_logits(a, 0) == NULL, "logits before any token");
    mhk_feed(a, tokens, 37);
    for (p = 0; p < 4; at += parts[p++]) {
      for (row = 0; row < 2; row++)
        for (i = 0; i < parts[p]; i++) some[row * parts[p] + i] = tokens[row * 37 + at + i];
      mhk_feed(b, some, parts[p]);
    }
    REQUIRE_OK(ctx);
    CHECK_CLOSE(model_kind_name(kind), mhk_logits(b, 0), mhk_logits(a, 0), 62, 2e-5);
    mhk_session_reset(b, MHK_ALL);
    mhk_feed(b, tokens, 37);
    CHECK_SAME(model_kind_name(kind), mhk_logits(b, 0), mhk_logits(a, 0), 62);
    CHECK_OK(ctx);
    mhk_destroy(ctx);
  }
}

/* the first logits of a session of this description, fed and sampled as described */
static void first_logits(mhk_model *m, const mhk_session_desc *d, const mhk_sampling *how, mhk_real *logits) {
  static const int32_t tokens[3] = {3, 4, 5};
  mhk_session *s = mhk_session_create(m, d);
  mhk_feed(s, tokens, 3);
  mhk_sample(s, how);
  CHECK(mhk_session_bytes(m, d) == mhk_session_bytes(m, NULL), "the sizes of sessions");
  if (mhk_logits(s, 0)) memcpy(logits, mhk_logits(s, 0), sizeof *logits * 31);
  mhk_session_destroy(s);
}

/* every description that may be NULL means the same all zero */
TEST(zeroed_descriptions_are_null) {
  static const struct {
    mhk_context_desc context;
    mhk_session_desc session;
    mhk_sampling sampling;
    mhk_student_desc student;
    mhk_quantize_desc quantize;
    mhk_load_desc load;
    mhk_forward_desc forward;
    mhk_ssd_desc ssd;
    mhk_conv1d_desc conv;
    mhk_distill_desc distill;
  } zero;
  static const mhk_index x4[] = {1, 5, 2, 4}, x3[] = {1, 5, 2}, w[] = {2, 1, 3};
  static mhk_real all[31 * 8];
  const int32_t tokens[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  mhk_context *ctx = mhk_create(NULL), *other = mhk_create(&zero.context);
  mhk_model *teacher = model_new(ctx, PHI, 5), *m[2];
  mhk_tape *t = mhk_tape_create(ctx);
  mhk_distill_desc d[2];
  mhk_real logits[2][31] = {{0}, {1}};
  int i;
  CHECK(mhk_threads(ctx) == mhk_threads(other) && !strcmp(mhk_isa_name(ctx), mhk_isa_name(other)), "contexts");
  first_logits(teacher, NULL, NULL, logits[0]);
  first_logits(teacher, &zero.session, &zero.sampling, logits[1]);
  CHECK_SAME("sessions and sampling", logits[0], logits[1], 31);
  mhk_tape_record(t, 0);
  for (i = 0; i < 4; i++) {
    m[0] = i == 0 ? mhk_student_create(ctx, teacher, NULL) : i == 1 ? mhk_quantize(model_new(ctx, PHI_MAMBA, 5), NULL)
         : i == 2 ? mhk_load_with(ctx, "examples/tiny", NULL) : teacher;
    m[1] = i == 0 ? mhk_student_create(ctx, teacher, &zero.student)
         : i == 1 ? mhk_quantize(model_new(ctx, PHI_MAMBA, 5), &zero.quantize)
         : i == 2 ? mhk_load_with(ctx, "examples/tiny", &zero.load) : teacher;
    mhk_tensor *a = mhk_forward(t, m[0], tokens, 1, 8, NULL), *b = mhk_forward(t, m[1], tokens, 1, 8, &zero.forward);
    REQUIRE(a && b && a->count == b->count, "forward %d: %s", i, mhk_message(ctx));
    CHECK(!memcmp(mhk_data(a), mhk_data(b), mhk_tensor_bytes(a)), "students, quantization, loading or forward: %d", i);
  }
  test_fill(all, 31 * 8, -1, -0.1, 3);
  {
    mhk_tensor *x = mhk_tensor_new(t, 4, x4, all), *log_a = mhk_tensor_new(t, 3, x3, all),
               *taps = mhk_tensor_new(t, 3, w, all);
    CHECK_SAME("ssd", mhk_data(mhk_ssd(t, x, log_a, x, x, NULL)), mhk_data(mhk_ssd(t, x, log_a, x, x, &zero.ssd)), 40);
    CHECK_SAME("conv1d", mhk_data(mhk_conv1d(t, log_a, taps, NULL, NULL)),
               mhk_data(mhk_conv1d(t, log_a, taps, NULL, &zero.conv)), 10);
  }
  d[0] = mhk_distill_defaults(NULL);
  d[1] = mhk_distill_defaults(&zero.distill);
  CHECK(d[0].batch == d[1].batch && d[0].stages[2].tokens == d[1].stages[2].tokens &&
            d[0].stages[0].lr == d[1].stages[0].lr && d[0].student_desc.init == d[1].student_desc.init,
        "the defaults of a distillation");
  CHECK_OK(ctx);
  mhk_destroy(ctx);
  mhk_destroy(other);
}

TEST(a_full_cache_is_an_error) {
  mhk_context *ctx = mhk_create(NULL);
  mhk_session_desc d;
  mhk_session *s;
  int32_t tokens[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  memset(&d, 0, sizeof d);
  d.capacity = 10;
  s = mhk_session_create(model_new(ctx, PHI, 5), &d);
  mhk_feed(s, tokens, 8);
  REQUIRE_OK(ctx);
  CHECK(mhk_feed(s, tokens, 8) == MHK_ERROR_STATE, "16 tokens fit a cache of 10");
  CHECK_FAILS(ctx, MHK_ERROR_STATE, "10");
  s = mhk_session_create(model_new(ctx, PHI_MAMBA, 5), &d); /* a state-space model has no such limit */
  mhk_feed(s, tokens, 8);
  mhk_feed(s, tokens, 8);
  CHECK_OK(ctx);
  tokens[3] = 31;
  mhk_feed(s, tokens, 8);
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "31");
  mhk_destroy(ctx);
}

static void draw(mhk_session *s, const int32_t *prompt, int n_prompt, const mhk_sampling *how, int32_t *out, int n) {
  mhk_sampling h = *how;
  int i;
  mhk_session_reset(s, MHK_ALL);
  mhk_feed(s, prompt, n_prompt);
  for (i = 0; i < n; i++) {
    out[i] = mhk_sample(s, &h);
    h.seed = 0;
  }
}

TEST(sampling_properties) {
  mhk_context *ctx = mhk_create(NULL);
  mhk_model *m = mhk_load(ctx, "examples/tiny");
  mhk_session *s = mhk_session_create(m, NULL);
  static const int32_t prompt[] = {0, 47, 78, 338, 697, 259, 554};
  int32_t a[40], b[40], greedy[40];
  mhk_sampling h;
  int i, same;
  REQUIRE_OK(ctx);
  h = sampling(-1, 0, 0, 0, 0), draw(s, prompt, 7, &h, greedy, 40);
  h = sampling(1, 1, 0, 0, 5), draw(s, prompt, 7, &h, a, 40);
  CHECK(!memcmp(a, greedy, sizeof a), "top_k 1 is not greedy");
  h = sampling(1, 0, 1e-9, 0, 5), draw(s, prompt, 7, &h, a, 40);
  CHECK(!memcmp(a, greedy, sizeof a), "a tiny top_p is not greedy");
  h = sampling(1, 0, 0, 1, 5), draw(s, prompt, 7, &h, a, 40);
  CHECK(!memcmp(a, greedy, sizeof a), "min_p 1 is not greedy");
  h = sampling(1e-4, 0, 0, 0, 5), draw(s, prompt, 7, &h, a, 40);
  CHECK(!memcmp(a, greedy, sizeof a), "a temperature near zero is not greedy");
  h = sampling(1, 0, 0, 0, 77), draw(s, prompt, 7, &h, a, 40);
  h = sampling(1, 0, 0, 0, 77), draw(s, prompt, 7, &h, b, 40);
  /* the seed counts when it differs from the session's last, so the second run goes on with the
     generator: begin anew */
  mhk_session_destroy(s);
  s = mhk_session_create(m, NULL);
  h = sampling(1, 0, 0, 0, 77), draw(s, prompt, 7, &h, b, 40);
  CHECK(!memcmp(a, b, sizeof a), "the same seed gave something else");
  h = sampling(1, 0, 0, 0, 78), draw(s, prompt, 7, &h, b, 40);
  CHECK(memcmp(a, b, sizeof a) != 0, "another seed gave the same 40 tokens");
  for (i = same = 0; i < 40; i++) same += a[i] == greedy[i];
  CHECK(same < 40, "sampling at temperature 1 is greedy");
  /* top_k 5: every token among the five most likely */
  mhk_session_reset(s, MHK_ALL);
  mhk_feed(s, prompt, 7);
  for (i = 0; i < 40; i++) {
    mhk_real logits[1024];
    int32_t id;
    int v, better = 0;
    memcpy(logits, mhk_logits(s, 0), sizeof logits);
    h = sampling(2, 5, 0, 0, 0);
    id = mhk_sample(s, &h);
    if (id < 0) break;
    for (v = 0; v < 1024; v++) better += logits[v] > logits[id];
    CHECK(better < 5, "token %d has rank %d", (int)id, better + 1);
    CHECK(mhk_text_out(s) != NULL, "no text");
  }
  CHECK_OK(ctx);
  mhk_destroy(ctx);
}

TEST(sampling_frequencies) { /* 6000 draws against the probabilities */
  mhk_context *ctx = mhk_create(NULL);
  mhk_model *m = model_new(ctx, PHI_MAMBA, 5);
  mhk_session *s = mhk_session_create(m, NULL);
  const int32_t prompt[2] = {3, 4};
  mhk_sampling h = sampling(0.7, 0, 0, 0, 12345);
  int count[31] = {0}, i, v;
  double p[31], sum = 0, chi = 0;
  mhk_feed(s, prompt, 2);
  REQUIRE_OK(ctx);
  for (v = 0; v < 31; v++) sum += p[v] = exp((double)mhk_logits(s, 0)[v] / 0.7);
  for (i = 0; i < 6000; i++) {
    int32_t id;
    mhk_session_reset(s, MHK_ALL);
    mhk_feed(s, prompt, 2);
    id = mhk_sample(s, &h);
    h.seed = 0;
    if (id >= 0 && id < 31) count[id]++;
  }
  for (v = 0; v < 31; v++) chi += pow(count[v] - 6000 * p[v] / sum, 2) / (6000 * p[v] / sum);
  CHECK(chi < 70, "chi-square %g with 30 degrees of freedom", chi); /* p = 5e-5 */
  CHECK_OK(ctx);
  mhk_destroy(ctx);
}

TEST(batches) { /* each row as if it were alone */
  mhk_context *ctx = mhk_create(NULL);
  mhk_model *m = mhk_load(ctx, "examples/tiny");
  static const int32_t prompts[3][3] = {{0, 47, 78}, {0, 332, 467}, {0, 712, 309}};
  mhk_session_desc d;
  mhk_session *all, *one;
  mhk_sampling greedy = sampling(-1, 0, 0, 0, 0), random = sampling(1, 0, 0, 0, 9);
  int32_t tokens[20][3];
  int i, row;
  memset(&d, 0, sizeof d);
  d.batch = 3;
  d.capacity = 64;
  all = mhk_session_create(m, &d);
  mhk_feed(all, &prompts[0][0], 3);
  for (i = 0; i < 20; i++) mhk_sample_batch(all, &greedy, tokens[i]);
  REQUIRE_OK(ctx);
  d.batch = 1;
  one = mhk_session_create(m, &d);
  for (row = 0; row < 3; row++) {
    mhk_session_reset(one, MHK_ALL);
    mhk_feed(one, prompts[row], 3);
    for (i = 0; i < 20; i++) {
      int32_t id;
      double gap;
      argmax(mhk_logits(one, 0), 1024, &gap);
      mhk_sample_batch(one, &greedy, &id);
      if (id != tokens[i][row]) {
        CHECK(gap < 1e-3, "row %d, token %d: %d in a batch, %d alone", row, i, (int)tokens[i][row], (int)id);
        break;
      }
    }
  }
  mhk_session_reset(all, MHK_ALL);
  mhk_feed(all, &prompts[0][0], 3);
  for (i = 0; i < 10; i++) mhk_sample_batch(all, &random, tokens[i]);
  for (i = 0; i < 10; i++)
    for (row = 0; row < 3; row++) CHECK(tokens[i][row] >= 0 && tokens[i][row] < 1024, "token %d", (int)tokens[i][row]);
  CHECK_OK(ctx);
  mhk_destroy(ctx);
}

TEST(text_in_text_out) {
  mhk_context *ctx = mhk_create(NULL);
  mhk_model *m = mhk_load(ctx, "examples/tiny");
  mhk_session *a = mhk_session_create(m, NULL), *b = mhk_session_create(m, NULL);
  mhk_tokenizer *k = mhk_model_tokenizer(m);
  int32_t ids[32];
  mhk_index n;
  ids[0] = mhk_tokenizer_end(k);
  n = mhk_encode(k, "Once upon a time", 16, ids + 1, 31);
  mhk_feed(a, ids, n + 1);
  mhk_feed_text(b, "Once upon a time");
  REQUIRE_OK(ctx);
  CHECK_SAME("logits of text and of its ids", mhk_logits(b, 0), mhk_logits(a, 0), 1024);
  n = mhk_encode(k, ", there", 7, ids, 32);
  mhk_feed(a, ids, n);
  mhk_feed_text(b, ", there"); /* in the middle nothing is put before it */
  CHECK_SAME("logits of more text", mhk_logits(b, 0), mhk_logits(a, 0), 1024);
  CHECK_OK(ctx);
  mhk_destroy(ctx);
}

TEST(end_of_text) { /* -1 when the end is drawn; here the head wants nothing else */
  mhk_context *ctx = mhk_create(NULL);
  mhk_model *m = mhk_load(ctx, "examples/tiny");
  mhk_session *s;
  mhk_sampling h = sampling(1, 0, 0, 0, 3);
  int32_t token = -5;
  mhk_model_make_trainable(m);
  REQUIRE_OK(ctx);
  mhk_data(mhk_model_find(m, "lm_head.bias"))[mhk_tokenizer_end(mhk_model_tokenizer(m))] = 100;
  s = mhk_session_create(m, NULL);
  mhk_feed_text(s, "The end.\n");
  CHECK(mhk_sample(s, &h) == -1, "the end of the text was not seen");
  CHECK(!strcmp(mhk_text_out(s), ""), "the end has text: %s", mhk_text_out(s));
  mhk_session_reset(s, MHK_ALL);
  mhk_feed_text(s, "The end.\n");
  CHECK(mhk_sample_batch(s, &h, &token) == MHK_OK && token == mhk_tokenizer_end(mhk_model_tokenizer(m)), "token %d",
        (int)token);
  CHECK_OK(ctx);
  mhk_destroy(ctx);
}

TEST(one_file) { /* a model, its configuration and its tokenizer in one file */
  mhk_context *ctx = mhk_create(NULL);
  mhk_model *m = mhk_load(ctx, "examples/tiny"), *n;
  mhk_session *a, *b;
  mhk_save(m, test_path("tiny.safetensors"), MHK_BF16);
  n = mhk_load(ctx, test_path("tiny.safetensors"));
  REQUIRE_OK(ctx);
  a = mhk_session_create(m, NULL);
  b = mhk_session_create(n, NULL);
  mhk_feed_text(a, "It was a dark night");
  mhk_feed_text(b, "It was a dark night");
  REQUIRE_OK(ctx);
  CHECK_SAME("logits", mhk_logits(b, 0), mhk_logits(a, 0), 1024);
  mhk_destroy(ctx);
}

/* ---- a mixer of one's own: heads of decaying sums, S_t = a_t S_t-1 + x_t B_t^T, y_t = S_t C_t */

static int own_tensor(const mhk_config *c, int i, mhk_mixer_tensor *x) {
  const mhk_index H = c->ssm_heads, E = H * c->ssm_head_dim, N = c->d_state;
  if (i == 0) x->name = "in_proj.weight", x->shape[0] = E + 2 * H * N + H, x->shape[1] = c->d_model, x->in_matrix = 1;
  if (i == 1) x->name = "out_proj.weight", x->shape[0] = c->d_model, x->shape[1] = E;
  if (i == 2) x->name = "out_proj.bias", x->shape[0] = c->d_model;
  if (i == 3) x->name = "scale", x->shape[0] = E, x->value = 0.75;
  x->rank = i < 2 ? 2 : 1;
  x->start = i < 2 ? MHK_START_LINEAR : i == 2 ? MHK_START_BIAS : MHK_START_VALUE;
  return i < 4;
}

static mhk_tensor *own_part(mhk_tape *t, mhk_tensor *x, mhk_index first, mhk_index heads, mhk_index each) {
  mhk_index shape[4];
  if (!x) return NULL;
  shape[0] = x->shape[0], shape[1] = x->shape[1], shape[2] = heads, shape[3] = each;
  return mhk_reshape(t, mhk_columns(t, x, first, heads * each), each > 1 ? 4 : 3, shape);
}

static mhk_tensor *own_forward(mhk_tape *t, const mhk_config *c, mhk_tensor *const *w, mhk_tensor *u,
                               const int32_t *doc) {
  const mhk_index H = c->ssm_heads, P = c->ssm_head_dim, N = c->d_state;
  mhk_tensor *in = mhk_linear(t, u, w[0], NULL), *y;
  mhk_ssd_desc d;
  mhk_index shape[3];
  memset(&d, 0, sizeof d);
  d.doc = doc;
  y = mhk_ssd(t, own_part(t, in, 0, H, P), mhk_scale(t, mhk_softplus(t, own_part(t, in, H * (P + 2 * N), H, 1)), -1),
              own_part(t, in, H * P, H, N), own_part(t, in, H * (P + N), H, N), &d);
  if (!y) return NULL;
  shape[0] = y->shape[0], shape[1] = y->shape[1], shape[2] = H * P;
  return mhk_linear(t, mhk_mul(t, mhk_reshape(t, y, 3, shape), w[3]), w[1], w[2]);
}

static mhk_tensor *own_matrix(mhk_tape *t, const mhk_config *c, mhk_tensor *const *w, mhk_tensor *u,
                              const int32_t *doc) {
  const mhk_index H = c->ssm_heads, P = c->ssm_head_dim, N = c->d_state;
  mhk_tensor *in = mhk_linear(t, u, w[0], NULL);
  return mhk_ssd_matrix(t, mhk_scale(t, mhk_softplus(t, own_part(t, in, H * (P + 2 * N), H, 1)), -1),
                        own_part(t, in, H * P, H, N), own_part(t, in, H * (P + N), H, N), NULL, doc);
}

static mhk_index own_state(const mhk_config *c) { return (mhk_index)c->ssm_heads * c->ssm_head_dim * c->d_state; }
static mhk_index own_work(const mhk_config *c) {
  return (mhk_index)c->ssm_heads * (2 * c->ssm_head_dim + 2 * c->d_state + 1);
}

static void own_rows(mhk_index rows, mhk_index columns, const mhk_real *w, const mhk_real *x, mhk_real *y) {
  mhk_index i, k;
  for (i = 0; i < rows; i++)
    for (y[i] = 0, k = 0; k < columns; k++) y[i] += w[i * columns + k] * x[k];
}

static void own_step(const mhk_config *c, const mhk_real *const *w, const mhk_real *u, mhk_real *state, mhk_real *work,
                     mhk_real *y) {
  const mhk_index H = c->ssm_heads, P = c->ssm_head_dim, N = c->d_state;
  mhk_real *x = work, *B = x + H * P, *C = B + H * N, *decay = C + H * N, *o = decay + H;
  mhk_index h, p, n;
  own_rows(H * (P + 2 * N + 1), c->d_model, w[0], u, x);
  for (h = 0; h < H; h++) {
    const mhk_real a = (mhk_real)(1 / (1 + exp((double)decay[h]))); /* exp(-softplus) */
    for (p = 0; p < P; p++) {
      mhk_real *s = state + (h * P + p) * N, sum = 0;
      for (n = 0; n < N; n++) {
        s[n] = a * s[n] + x[h * P + p] * B[h * N + n];
        sum += s[n] * C[h * N + n];
      }
      o[h * P + p] = sum * w[3][h * P + p];
    }
  }
  own_rows(c->d_model, H * P, w[1], o, y);
  for (h = 0; h < c->d_model; h++) y[h] += w[2][h];
}

static mhk_mixer own_mixer(void) {
  mhk_mixer m;
  memset(&m, 0, sizeof m);
  m.name = "tests.decaying_sums";
  m.tensor = own_tensor;
  m.forward = own_forward;
  m.matrix = own_matrix;
  m.state = own_state;
  m.work = own_work;
  m.step = own_step;
  return m;
}

/* a run of all three stages: 3 updates each */
static mhk_distill_desc own_run(mhk_model *teacher, mhk_corpus *corpus) {
  static const int keep[] = {1};
  mhk_distill_desc d;
  int i;
  memset(&d, 0, sizeof d);
  d.teacher = teacher;
  d.corpus = corpus;
  d.student_desc.mixer = "tests.decaying_sums";
  d.student_desc.keep_attention = keep;
  d.student_desc.n_keep_attention = 1;
  d.batch = 2;
  d.length = 16;
  d.checkpoint_seconds = -1;
  for (i = 0; i < 3; i++) d.stages[i].tokens = 3 * 32;
  return d;
}

static mhk_corpus *own_corpus(mhk_context *ctx) {
  int32_t tokens[500];
  uint64_t random = 5;
  int i;
  for (i = 0; i < 500; i++) tokens[i] = (int32_t)(test_random(&random) % 31);
  return mhk_corpus_from_tokens(ctx, tokens, 500, -1);
}

static mhk_model *own_teacher(mhk_context *ctx) {
  mhk_config c = model_config(PHI);
  c.n_layer = 3;
  c.mixer[2] = MHK_MIXER_ATTENTION;
  return mhk_model_create(ctx, &c, 3);
}

TEST(a_mixer_of_ones_own_trains_and_resumes_to_the_same_bits) {
  mhk_context *ctx = mhk_create(NULL);
  const mhk_mixer mine = own_mixer();
  mhk_model *teacher = own_teacher(ctx), *whole, *resumed, *start;
  mhk_corpus *corpus = own_corpus(ctx);
  mhk_distill_desc d = own_run(teacher, corpus);
  mhk_trainer *tr;
  int i, n, moved = 0;
  CHECK(!mhk_distill(ctx, &d), "trained a mixer that nobody knows");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "there is no mixer tests.decaying_sums: give it to mhk_mixer_add() first");
  REQUIRE(mhk_mixer_add(ctx, &mine), "%s", mhk_message(ctx));
  start = mhk_student_create(ctx, teacher, &d.student_desc);
  tr = mhk_distill(ctx, &d);
  for (n = 0; mhk_train_step(tr); n++) CHECK(mhk_progress(tr)->loss > 0, "a loss of %g", mhk_progress(tr)->loss);
  REQUIRE(n == 9 && !mhk_failed(ctx), "%d updates: %s", n, mhk_message(ctx));
  whole = mhk_student(tr);
  CHECK(mhk_model_config(whole)->mixer[0] == MHK_MIXER_OWN && mhk_model_config(whole)->mixer[1] == MHK_MIXER_ATTENTION,
        "mixers of the student");
  for (i = 0; i < mhk_model_count(whole); i++)
    moved += memcmp(mhk_data(mhk_model_at(whole, i)), mhk_data(mhk_model_at(start, i)),
                    mhk_tensor_bytes(mhk_model_at(whole, i))) != 0;
  CHECK(moved == mhk_model_count(whole), "%d of %d tensors changed", moved, mhk_model_count(whole));
  mhk_trainer_destroy(tr);
  d.out = test_path("own_run");
  d.fresh = 1;
  tr = mhk_distill(ctx, &d);
  for (i = 0; i < 4; i++) mhk_train_step(tr); /* into the second stage */
  REQUIRE(mhk_checkpoint(tr) == MHK_OK, "%s", mhk_message(ctx));
  mhk_trainer_destroy(tr);
  d.fresh = 0;
  tr = mhk_distill(ctx, &d);
  REQUIRE(tr && mhk_progress(tr)->resumed, "not resumed: %s", mhk_message(ctx));
  while (mhk_train_step(tr)) {}
  REQUIRE_OK(ctx);
  resumed = mhk_student(tr);
  for (i = 0; i < mhk_model_count(whole); i++)
    CHECK_SAME(mhk_model_at(whole, i)->name, mhk_data(mhk_model_at(resumed, i)),
               mhk_data(mhk_model_at(whole, i)), mhk_model_at(whole, i)->count);
  mhk_destroy(ctx);
}

TEST(a_mixer_of_ones_own_is_saved_loaded_and_runs_as_on_the_tape) {
  static const int lengths[] = {1, 15, 17, 31, 53};
  mhk_context *ctx = mhk_create(NULL), *other = mhk_create(NULL);
  const mhk_mixer mine = own_mixer();
  mhk_model *teacher, *m, *small;
  mhk_distill_desc d;
  mhk_session_desc sd;
  mhk_session *s, *whole;
  mhk_tape *t;
  int32_t tokens[53];
  mhk_real kept[31];
  char *state;
  size_t bytes;
  int i, k;
  mhk_mixer_add(ctx, &mine);
  teacher = own_teacher(ctx);
  d = own_run(teacher, NULL);
  m = mhk_student_create(ctx, teacher, &d.student_desc);
  REQUIRE(mhk_save(m, test_path("own"), MHK_F32) == MHK_OK, "%s", mhk_message(ctx));
  CHECK(!mhk_load(other, test_path("own")), "loaded without the mixer");
  CHECK_FAILS(other, MHK_ERROR_UNSUPPORTED, "CoreType is \"tests.decaying_sums\"");
  CHECK(!mhk_load(other, test_path("own")), "loaded without the mixer");
  CHECK_FAILS(other, MHK_ERROR_UNSUPPORTED, "mhk_mixer_add()");
  m = mhk_load(ctx, test_path("own"));
  REQUIRE(m && mhk_model_config(m)->own, "%s", mhk_message(ctx));
  for (i = 0; i < 53; i++) tokens[i] = (i * i + 7) % 31;
  memset(&sd, 0, sizeof sd);
  sd.chunk = 16;
  sd.snapshots = 2;
  t = mhk_tape_create(ctx);
  for (k = 0; k < 5; k++) {
    const int n = lengths[k];
    mhk_tensor *y = mhk_forward(t, m, tokens, 1, n, NULL);
    s = mhk_session_create(m, &sd);
    whole = mhk_session_create(m, &sd);
    REQUIRE_OK(ctx);
    mhk_feed(whole, tokens, n);
    for (i = 0; i < n; i++) mhk_feed(s, tokens + i, 1);
    CHECK_CLOSE("prefill", mhk_logits(whole, 0), mhk_data(y) + (n - 1) * 31, 31, 2e-5);
    CHECK_CLOSE("steps", mhk_logits(s, 0), mhk_logits(whole, 0), 31, 2e-5);
    mhk_session_destroy(s);
    mhk_session_destroy(whole);
    mhk_tape_reset(t);
  }
  /* the state as a value: saved, loaded, copied, gone back to */
  s = mhk_session_create(m, &sd);
  whole = mhk_session_create(m, &sd);
  mhk_feed(s, tokens, 20);
  mhk_session_snapshot(s, 0);
  bytes = mhk_session_state_bytes(s, 0);
  state = (char *)malloc(bytes);
  mhk_session_save_memory(s, 0, state, bytes);
  mhk_feed(s, tokens + 20, 3);
  REQUIRE_OK(ctx);
  memcpy(kept, mhk_logits(s, 0), sizeof kept);
  mhk_session_load_memory(whole, 0, state, bytes);
  mhk_feed(whole, tokens + 20, 3);
  CHECK_SAME("loaded", mhk_logits(whole, 0), kept, 31);
  CHECK(mhk_session_rewind(s, 0, 20) == 20, "%s", mhk_message(ctx));
  mhk_feed(s, tokens + 20, 3);
  CHECK_SAME("rewound", mhk_logits(s, 0), kept, 31);
  mhk_session_reset(whole, 0);
  mhk_session_copy(whole, 0, s, 0);
  CHECK_SAME("copied", mhk_logits(whole, 0), kept, 31);
  CHECK(mhk_session_ssm(s, 0, 0) && !mhk_session_conv(s, 0, 0) && !mhk_session_ssm(s, 0, 1), "its numbers");
  free(state);
  /* quantized: its own tensors stay numbers */
  small = mhk_quantize(m, NULL);
  REQUIRE(small, "%s", mhk_message(ctx));
  CHECK(mhk_model_find(small, "backbone.layers.0.mixer.in_proj.weight")->dtype == MHK_REAL, "quantized");
  s = mhk_session_create(small, NULL);
  mhk_feed(s, tokens, 20);
  CHECK_OK(ctx);
  mhk_destroy(other);
  mhk_destroy(ctx);
}

static int own_flat_tensor(const mhk_config *c, int i, mhk_mixer_tensor *x) {
  (void)c;
  x->name = "w";
  x->rank = 2;
  x->shape[0] = 3;
  return i == 0;
}
static int own_endless_tensor(const mhk_config *c, int i, mhk_mixer_tensor *x) {
  static const char *const names[] = {"a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p"};
  (void)c;
  x->name = names[i % 16];
  x->rank = x->shape[0] = 1;
  return 1;
}
static int own_twins_tensor(const mhk_config *c, int i, mhk_mixer_tensor *x) {
  own_endless_tensor(c, 0, x);
  return i < 2;
}
static mhk_tensor *own_narrow(mhk_tape *t, const mhk_config *c, mhk_tensor *const *w, mhk_tensor *u,
                              const int32_t *doc) {
  (void)c, (void)w, (void)doc;
  return mhk_columns(t, u, 0, 3);
}

TEST(a_mixer_of_ones_own_that_makes_no_sense) {
  mhk_context *ctx = mhk_create(NULL);
  mhk_model *teacher = own_teacher(ctx), *m;
  mhk_corpus *corpus = own_corpus(ctx);
  mhk_distill_desc d = own_run(teacher, corpus);
  mhk_tape *t = mhk_tape_create(ctx);
  const int32_t tokens[2] = {1, 2};
  mhk_mixer mine = own_mixer();
  mhk_config c = model_config(PHI_MAMBA);
  CHECK(!mhk_mixer_add(ctx, NULL), "added nothing");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "a mixer needs a name");
  mine.name = "with blanks";
  CHECK(!mhk_mixer_add(ctx, &mine), "added");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "a mixer needs a name of 1 to 63 letters");
  mine = own_mixer();
  mine.step = NULL;
  CHECK(!mhk_mixer_add(ctx, &mine), "added");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "the mixer tests.decaying_sums lacks the function step");
  mine = own_mixer();
  mine.forward = NULL;
  CHECK(!mhk_mixer_add(ctx, &mine), "added");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "lacks the function forward");
  mine = own_mixer();
  mine.name = "modules.mixers.phi_attention";
  CHECK(!mhk_mixer_add(ctx, &mine), "added");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "there is already a mixer with the name modules.mixers.phi_attention");
  /* without a matrix there is no stage 1 */
  mine = own_mixer();
  mine.matrix = NULL;
  mhk_mixer_add(ctx, &mine);
  CHECK(!mhk_mixer_add(ctx, &mine), "added twice");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "there is already a mixer with the name tests.decaying_sums");
  mhk_train_step(mhk_distill(ctx, &d));
  CHECK_FAILS(ctx, MHK_ERROR_CONFIG, "stage 1 compares matrices, and the mixer tests.decaying_sums has none: skip");
  /* configurations and shapes */
  c.mixer[0] = MHK_MIXER_OWN;
  mhk_config_check(ctx, &c);
  CHECK_FAILS(ctx, MHK_ERROR_CONFIG, "own must be what mhk_mixer_add() returned");
  mine.name = "flat", mine.tensor = own_flat_tensor;
  c.own = mhk_mixer_add(ctx, &mine);
  mhk_config_check(ctx, &c);
  CHECK_FAILS(ctx, MHK_ERROR_CONFIG, "w of the mixer flat has 0 elements along axis 1");
  mine.name = "endless", mine.tensor = own_endless_tensor;
  c.own = mhk_mixer_add(ctx, &mine);
  mhk_config_check(ctx, &c);
  CHECK_FAILS(ctx, MHK_ERROR_CONFIG, "the mixer endless has more than 16 tensors");
  mine.name = "twins", mine.tensor = own_twins_tensor;
  c.own = mhk_mixer_add(ctx, &mine);
  mhk_config_check(ctx, &c);
  CHECK_FAILS(ctx, MHK_ERROR_CONFIG, "the mixer twins has two tensors with the name a");
  mine = own_mixer();
  mine.name = "narrow", mine.forward = own_narrow;
  c.own = mhk_mixer_add(ctx, &mine);
  m = mhk_model_create(ctx, &c, 1);
  REQUIRE_OK(ctx);
  CHECK(!mhk_forward(t, m, tokens, 1, 2, NULL), "forward");
  CHECK_FAILS(ctx, MHK_ERROR_SHAPE, "forward of the mixer narrow returned (1,2,3), it must return (1,2,24)");
  mhk_destroy(ctx);
}

int main(int argc, char **argv) {
  int i;
  test_begin(argc, argv);
  for (i = 1; i < argc; i++)
    if (!strcmp(argv[i], "--dir") && i + 1 < argc) folder = argv[++i];
  RUN(models);
  if (folder) return test_end();
  RUN(feeding_in_parts);
  RUN(zeroed_descriptions_are_null);
  RUN(a_full_cache_is_an_error);
  RUN(sampling_properties);
  RUN(sampling_frequencies);
  RUN(batches);
  RUN(text_in_text_out);
  RUN(end_of_text);
  RUN(one_file);
  RUN(a_mixer_of_ones_own_trains_and_resumes_to_the_same_bits);
  RUN(a_mixer_of_ones_own_is_saved_loaded_and_runs_as_on_the_tape);
  RUN(a_mixer_of_ones_own_that_makes_no_sense);
  return test_end();
}
