/* Sampling: distributions held against a plain reference in double, penalties, stops, text that
   streams, errors. */
#include "models.h"

enum { MOST = 1024 };

/* the model's own distribution at a temperature; negative: greedy */
static mhk_sampling plain(double temperature) {
  mhk_sampling s;
  memset(&s, 0, sizeof s);
  s.greedy = temperature < 0;
  s.exact = 1;
  if (temperature > 0) s.temperature = temperature;
  return s;
}

/* --------------------------------------------------------------- the reference: sort everything */

static const double *ordered_by;
static int by_value(const void *a, const void *b) { /* falling; equal ones by id */
  const int x = *(const int *)a, y = *(const int *)b;
  if (ordered_by[x] > ordered_by[y]) return -1;
  if (ordered_by[x] < ordered_by[y]) return 1;
  return x < y ? -1 : x > y;
}

static void scale_to_one(double *p, int V) {
  double sum = 0;
  int i;
  for (i = 0; i < V; i++) sum += p[i];
  for (i = 0; i < V; i++) p[i] /= sum;
}

/* zeroes all but the first of order whose probabilities together reach share, at least one */
static void keep_share(double *p, const int *order, int V, double share) {
  double run = 0;
  int i;
  for (i = 0; i < V; i++) {
    if (i > 0 && run >= share) p[order[i]] = 0;
    run += p[order[i]];
  }
  scale_to_one(p, V);
}

/* What mhk_probabilities() promises, in its order and without haste. Returns how many tokens are
   left. */
static int reference(const mhk_real *logits, int V, const mhk_sampling *s, const int32_t *recent, int n, double *p) {
  static double x[MOST], key[MOST];
  static int order[MOST];
  int i, j, k, left = 0;
  for (i = 0; i < V; i++) x[i] = (double)logits[i];
  for (i = 0; i < s->n_bias; i++) x[s->bias[i].token] += s->bias[i].value;
  for (i = 0; i < V; i++) { /* each token: how often is it among the last ones? */
    int seen = 0;
    for (j = 0; j < n; j++)
      if (recent[j] == i && (s->penalty_tokens == 0 || j >= n - s->penalty_tokens)) seen++;
    if (seen && s->repetition > 0) x[i] = x[i] < 0 ? x[i] * s->repetition : x[i] / s->repetition;
    if (seen) x[i] -= s->presence;
    x[i] -= seen * s->frequency;
    order[i] = i;
  }
  ordered_by = x;
  qsort(order, (size_t)V, sizeof *order, by_value);
  for (i = 0; i < V; i++)
    p[i] = s->greedy ? i == order[0] : exp((x[i] - x[order[0]]) / (s->temperature > 0 ? s->temperature : 1));
  if (s->greedy) return 1;
  for (i = s->top_k; s->top_k > 0 && i < V; i++) p[order[i]] = 0;
  scale_to_one(p, V);
  if (s->top_p > 0 && s->top_p < 1) keep_share(p, order, V, s->top_p);
  if (s->min_p > 0)
    for (i = V - 1; i > 0; i--)
      if (p[order[i]] < s->min_p * p[order[0]]) p[order[i]] = 0;
  scale_to_one(p, V);
  if (s->typical > 0 && s->typical < 1) {
    double entropy = 0;
    for (i = 0; i < V; i++)
      if (p[i] > 0) entropy -= p[i] * log(p[i]);
    for (i = 0; i < V; i++) key[i] = p[i] > 0 ? -fabs(-log(p[i]) - entropy) : -1e300;
    ordered_by = key;
    for (k = 0; k < V; k++) order[k] = k;
    qsort(order, (size_t)V, sizeof *order, by_value);
    keep_share(p, order, V, s->typical);
  }
  for (i = 0; i < V; i++) left += p[i] > 0;
  return left;
}

static void hold_against_reference(const char *what, const mhk_real *logits, int V, const mhk_sampling *s,
                                   const int32_t *recent, int n) {
  static double p[MOST + 2], want[MOST];
  static int32_t scratch[MOST + 2];
  double sum = 0;
  mhk_index left;
  int i, wanted;
  p[V] = p[V + 1] = 77;
  scratch[V] = scratch[V + 1] = 77;
  left = mhk_probabilities(logits, V, s, recent, n, p, scratch);
  wanted = reference(logits, V, s, recent, n, want);
  CHECK(left == wanted, "%s, %d tokens: %d are left, should be %d", what, V, (int)left, wanted);
  for (i = 0; i < V; i++) {
    sum += p[i];
    if (!(fabs(p[i] - want[i]) <= 1e-12) || (p[i] > 0) != (want[i] > 0)) {
      CHECK(0, "%s, %d tokens: p[%d] is %.17g, should be %.17g", what, V, i, p[i], want[i]);
      break;
    }
  }
  CHECK(fabs(sum - 1) < 1e-12, "%s: the sum is %.17g", what, sum);
  CHECK(p[V] == 77 && p[V + 1] == 77 && scratch[V] == 77 && scratch[V + 1] == 77, "%s: written past the end", what);
}

TEST(distributions) {
  static const int sizes[] = {1, 2, 3, 16, 17, 301, 1024};
  static const double temperatures[] = {0, 0.6, 1.7, -1};
  static mhk_real logits[MOST];
  int32_t recent[40];
  uint64_t seed = 11;
  int round, v;
  for (round = 0; round < 400; round++) {
    const int V = sizes[round % 7];
    const uint64_t with = test_random(&seed);
    mhk_token_bias bias[3];
    mhk_sampling s = plain(temperatures[with % 4]);
    char what[200];
    int i;
    test_fill(logits, V, -9, 9, 100 + (uint64_t)round);
    if (with & 16) s.top_k = (int)(test_random(&seed) % (uint64_t)(V + 2));
    if (with & 32) s.top_p = fmin(1, test_uniform(&seed, 0.01, 1.05));
    if (with & 64) s.min_p = test_uniform(&seed, 0.0001, 0.3);
    if (with & 128) s.typical = fmin(1, test_uniform(&seed, 0.01, 1.05));
    if (with & 256) s.repetition = test_uniform(&seed, 0.7, 1.5);
    if (with & 512) s.frequency = test_uniform(&seed, -0.5, 1);
    if (with & 1024) s.presence = test_uniform(&seed, -0.5, 1);
    if (with & 2048) s.penalty_tokens = 1 + (int)(test_random(&seed) % 45);
    for (i = 0; i < 40; i++) recent[i] = (int32_t)(test_random(&seed) % (uint64_t)(V < 20 ? V : 20));
    for (i = 0; i < 3; i++) {
      bias[i].token = (int32_t)(test_random(&seed) % (uint64_t)V);
      bias[i].value = i == 2 && V > 1 ? -INFINITY : test_uniform(&seed, -3, 3);
    }
    s.bias = bias;
    s.n_bias = (int)(with >> 20 & 3);
    snprintf(what, sizeof what,
             "temperature %g, top_k %d, top_p %g, min_p %g, typical %g, penalties %g %g %g over %d, bias %d",
             s.temperature, s.top_k, s.top_p, s.min_p, s.typical, s.repetition, s.frequency, s.presence,
             s.penalty_tokens, s.n_bias);
    hold_against_reference(what, logits, V, &s, recent, 40);
  }
  /* equally good tokens: the smaller ids stay */
  for (v = 0; v < 64; v++) logits[v] = 2;
  for (round = 1; round < 64; round++) {
    mhk_sampling s = plain(1);
    s.top_k = round;
    hold_against_reference("all equal, top_k", logits, 64, &s, NULL, 0);
    s.top_k = 0;
    s.top_p = round / 64.0;
    hold_against_reference("all equal, top_p", logits, 64, &s, NULL, 0);
    s.top_p = 0;
    s.typical = round / 64.0;
    hold_against_reference("all equal, typical", logits, 64, &s, NULL, 0);
  }
  { /* far apart: exponentials that are zero */
    mhk_sampling s = plain(0.001);
    s.top_p = 0.999999;
    s.typical = 0.9;
    test_fill(logits, 301, -90, 90, 5);
    hold_against_reference("cold", logits, 301, &s, NULL, 0);
  }
}

/* zeros mean what NULL means, and what they are said to mean */
TEST(a_zeroed_description_is_the_usual_one) {
  static mhk_real logits[301];
  double usual[301], p[301];
  int32_t scratch[301];
  mhk_sampling s;
  mhk_index left;
  int i, best = 0;
  memset(&s, 0, sizeof s);
  test_fill(logits, 301, -9, 9, 5);
  for (i = 0; i < 301; i++)
    if (logits[i] > logits[best]) best = i;
  left = mhk_probabilities(logits, 301, NULL, NULL, 0, usual, scratch);
  CHECK(left > 1 && left < 301, "%d tokens are left without a description", (int)left);
  CHECK(mhk_probabilities(logits, 301, &s, NULL, 0, p, scratch) == left && !memcmp(p, usual, sizeof p),
        "a zeroed description is not NULL");
  s.temperature = 0.8, s.top_p = 0.95;
  CHECK(mhk_probabilities(logits, 301, &s, NULL, 0, p, scratch) == left && !memcmp(p, usual, sizeof p),
        "the usual one is not 0.8 and 0.95");
  s.temperature = 1, s.top_p = 1;
  CHECK(mhk_probabilities(logits, 301, &s, NULL, 0, usual, scratch) == 301, "tokens were filtered by nothing");
  s.temperature = s.top_p = 0, s.exact = 1;
  CHECK(mhk_probabilities(logits, 301, &s, NULL, 0, p, scratch) == 301 && !memcmp(p, usual, sizeof p),
        "exact is not the model's own distribution");
  s.greedy = 1, s.temperature = 3;
  CHECK(mhk_probabilities(logits, 301, &s, NULL, 0, p, scratch) == 1 && p[best] == 1, "greedy is not the likeliest");
}

TEST(impossible_distributions) {
  mhk_real logits[8] = {0, 1, 2, 3, 4, 5, 6, 7};
  const mhk_token_bias far = {8, 1}, nan_bias = {1, NAN}, all[2] = {{0, -INFINITY}, {1, -INFINITY}};
  mhk_sampling s = plain(1);
  double p[8];
  int32_t scratch[8];
  const int32_t strange[4] = {-1, 8, 2000000000, 7};
  CHECK(mhk_probabilities(NULL, 8, &s, NULL, 0, p, scratch) == 0 &&
            mhk_probabilities(logits, 0, &s, NULL, 0, p, scratch) == 0 &&
            mhk_probabilities(logits, 8, &s, NULL, 0, NULL, scratch) == 0 &&
            mhk_probabilities(logits, 8, &s, NULL, 0, p, NULL) == 0 &&
            mhk_probabilities(logits, 8, &s, NULL, 3, p, scratch) == 0,
        "something was made of nothing");
  s.bias = &far, s.n_bias = 1;
  CHECK(mhk_probabilities(logits, 8, &s, NULL, 0, p, scratch) == 0, "bias of a token outside");
  s.bias = &nan_bias;
  CHECK(mhk_probabilities(logits, 8, &s, NULL, 0, p, scratch) == 0, "bias that is no number");
  s.bias = all, s.n_bias = 2;
  CHECK(mhk_probabilities(logits, 2, &s, NULL, 0, p, scratch) == 0, "all tokens are forbidden");
  CHECK(mhk_probabilities(logits, 3, &s, NULL, 0, p, scratch) == 1 && p[2] == 1, "one token is left");
  s.temperature = NAN;
  CHECK(mhk_probabilities(logits, 8, &s, NULL, 0, p, scratch) == 0, "temperature that is no number");
  s = plain(1);
  s.penalty_tokens = -1;
  CHECK(mhk_probabilities(logits, 8, &s, NULL, 0, p, scratch) == 0, "negative penalty_tokens");
  s = plain(1);
  s.presence = 100;
  CHECK(mhk_probabilities(logits, 8, &s, strange, 4, p, scratch) == 8 && p[7] < 1e-30,
        "ids outside the vocabulary among the recent ones");
  logits[3] = (mhk_real)NAN;
  CHECK(mhk_probabilities(logits, 8, &s, NULL, 0, p, scratch) == 0, "a logit that is no number");
  logits[3] = (mhk_real)INFINITY;
  CHECK(mhk_probabilities(logits, 8, &s, NULL, 0, p, scratch) == 0, "an infinite logit");
  logits[3] = (mhk_real)-INFINITY;
  CHECK(mhk_probabilities(logits, 8, &s, NULL, 0, p, scratch) > 0 && p[3] == 0, "a token that cannot be");
}

TEST(draws) { /* every token is drawn in its own stretch of [0,1), and no other */
  static const int sizes[] = {1, 2, 15, 16, 17, 32, 45, 301};
  double p[302];
  uint64_t seed = 3;
  int c, i;
  for (c = 0; c < 8; c++) {
    const int V = sizes[c];
    double run = 0;
    int last = 0, first = -1;
    for (i = 0; i < V; i++) p[i] = test_random(&seed) % 3 == 0 && i != V / 2 ? 0 : test_uniform(&seed, 0.01, 1);
    p[V] = 1e9;
    scale_to_one(p, V);
    for (i = 0; i < V; i++) {
      if (p[i] > 0) {
        CHECK(mhk_draw(p, V, run + p[i] * 0.5) == i, "%d tokens: %d in place of %d", V,
              (int)mhk_draw(p, V, run + p[i] * 0.5), i);
        last = i;
        if (first < 0) first = i;
      }
      run += p[i];
    }
    CHECK(
        mhk_draw(p, V, 0) == first && mhk_draw(p, V, 1 - 1.0 / 9007199254740992.0) == last && mhk_draw(p, V, 1) == last,
        "the ends of %d", V);
  }
  p[0] = 0;
  CHECK(mhk_draw(p, 1, 0.5) == -1 && mhk_draw(p, 0, 0.5) == -1 && mhk_draw(NULL, 3, 0.5) == -1, "a draw from nothing");
}

TEST(the_same_everywhere) { /* what these logits and this seed give, on every machine */
  static const int32_t want[24] = {184, 32,  90, 42,  249, 168, 45,  178, 55,  132, 142, 252,
                                   255, 200, 42, 210, 294, 100, 236, 129, 152, 194, 77,  132};
  mhk_real logits[300];
  double p[300];
  int32_t scratch[300], got[24];
  uint64_t seed = 2024;
  int i;
  mhk_sampling s = plain(1.3);
  s.top_k = 90, s.top_p = 0.97, s.min_p = 0.001, s.typical = 0.95, s.repetition = 1.1, s.frequency = 0.25,
  s.penalty_tokens = 10;
  for (i = 0; i < 300; i++) logits[i] = (mhk_real)((i * 7919) % 301) / 32;
  for (i = 0; i < 24; i++) {
    CHECK(mhk_probabilities(logits, 300, &s, got, i, p, scratch) > 0, "no distribution");
    got[i] = mhk_draw(p, 300, test_uniform(&seed, 0, 1));
    CHECK(got[i] == want[i], "draw %d is %d, should be %d", i, (int)got[i], (int)want[i]);
  }
}

/* --------------------------------------------------------------------------------- in a session */

TEST(frequencies) { /* 6000 draws of a session with everything on, against the reference */
  mhk_context *ctx = mhk_create(NULL);
  mhk_session *s = mhk_session_create(model_new(ctx, HYBRID, 5), NULL);
  const int32_t prompt[4] = {3, 4, 3, 9};
  const mhk_token_bias bias[2] = {{7, 1.5}, {11, -INFINITY}};
  mhk_sampling h = plain(3);
  double p[31], chi = 0;
  int count[31] = {0}, i, v, cells;
  h.top_k = 25, h.top_p = 0.9, h.min_p = 0.02, h.typical = 0.9, h.repetition = 1.2, h.frequency = 0.1, h.presence = 0.2,
  h.bias = bias, h.n_bias = 2, h.seed = 99;
  mhk_feed(s, prompt, 4);
  REQUIRE_OK(ctx);
  cells = reference(mhk_logits(s, 0), 31, &h, prompt, 4, p);
  for (i = 0; i < 6000; i++) {
    int32_t id;
    mhk_session_reset(s, MHK_ALL);
    mhk_feed(s, prompt, 4);
    id = mhk_sample(s, &h);
    h.seed = 0;
    if (id >= 0 && id < 31) count[id]++;
  }
  for (v = 0; v < 31; v++) {
    if (p[v] > 0) chi += pow(count[v] - 6000 * p[v], 2) / (6000 * p[v]);
    CHECK(p[v] > 0 || count[v] == 0, "token %d was filtered out and drawn %d times", v, count[v]);
  }
  CHECK(cells > 4 && chi < cells + 4.5 * sqrt(2.0 * cells) + 5, "chi-square %g with %d degrees of freedom", chi,
        cells - 1);
  CHECK_OK(ctx);
  mhk_destroy(ctx);
}

/* the last tokens of each row, prompt and drawn ones, through a buffer that is moved now and
   then */
TEST(what_penalties_remember) {
  mhk_context *ctx = mhk_create(NULL);
  mhk_session_desc d;
  mhk_session *s;
  mhk_sampling h = plain(-1);
  double p[31];
  int32_t seen[2][80], prompt[18], token[2];
  int i, row, n = 0;
  memset(&d, 0, sizeof d);
  d.batch = 2;
  d.recent = 7;
  d.capacity = 100;
  h.presence = 3, h.frequency = 1;
  s = mhk_session_create(model_new(ctx, PHI, 6), &d);
  model_tokens(prompt, 18, 31, 8);
  mhk_feed(s, prompt, 9); /* more than is remembered */
  REQUIRE_OK(ctx);
  for (row = 0; row < 2; row++) memcpy(seen[row], prompt + 9 * row, 9 * sizeof(int32_t));
  for (n = 9, i = 0; i < 40; i++, n++) {
    int32_t want[2];
    h.penalty_tokens = i % 8;
    for (row = 0; row < 2; row++) {
      int v;
      reference(mhk_logits(s, 0) + 31 * row, 31, &h, seen[row] + n - 7, 7, p);
      for (v = 0; v < 31; v++)
        if (p[v] > 0) want[row] = v;
    }
    mhk_sample_batch(s, &h, token);
    REQUIRE_OK(ctx);
    for (row = 0; row < 2; row++) {
      CHECK(token[row] == want[row], "row %d, draw %d: %d, should be %d", row, i, (int)token[row], (int)want[row]);
      seen[row][n] = token[row];
    }
  }
  mhk_session_reset(s, MHK_ALL); /* forgets them */
  mhk_feed(s, prompt, 1);
  h.penalty_tokens = 0;
  for (row = 0; row < 2; row++) {
    int v, want = 0;
    reference(mhk_logits(s, 0) + 31 * row, 31, &h, prompt + row, 1, p);
    for (v = 0; v < 31; v++)
      if (p[v] > 0) want = v;
    seen[row][0] = want;
  }
  mhk_sample_batch(s, &h, token);
  CHECK(token[0] == seen[0][0] && token[1] == seen[1][0], "after a reset %d, %d, should be %d, %d", (int)token[0],
        (int)token[1], (int)seen[0][0], (int)seen[1][0]);
  CHECK_OK(ctx);
  mhk_destroy(ctx);
}

/* the greedy token under penalties on what was seen, by the reference */
static int32_t penalised(const mhk_session *s, const mhk_sampling *h, const int32_t *seen, int n) {
  double p[31];
  int v;
  reference(mhk_logits(s, 0), 31, h, seen, n, p);
  for (v = 0; v < 30 && p[v] <= 0;) v++;
  return v;
}

TEST(penalties_follow_the_state) { /* back in time and into another session */
  static const int kinds[2] = {PHI, HYBRID};
  int c;
  for (c = 0; c < 2; c++) {
    mhk_context *ctx = mhk_create(NULL);
    mhk_model *m = model_new(ctx, kinds[c], 6);
    mhk_session_desc d;
    mhk_session *s, *other;
    mhk_sampling h = plain(-1);
    const int32_t prompt[8] = {5, 6, 7, 8, 9, 10, 11, 12};
    int32_t want;
    h.presence = 30; /* nothing that was seen comes again */
    memset(&d, 0, sizeof d);
    d.snapshots = 2;
    s = mhk_session_create(m, &d);
    mhk_feed(s, prompt, 3);
    mhk_session_snapshot(s, 0);
    mhk_feed(s, prompt + 3, 5);
    CHECK(mhk_session_rewind(s, 0, 3) == 3, "no way back");
    mhk_feed(s, prompt, 1);
    want = penalised(s, &h, prompt, 3);
    CHECK(mhk_sample(s, &h) == want, "after going back what came later counts");
    d.batch = 2, d.recent = 4;
    other = mhk_session_create(m, &d);
    mhk_session_reset(s, MHK_ALL);
    mhk_feed(s, prompt, 8);
    mhk_session_copy(other, 0, s, 0);
    mhk_session_copy(other, 1, other, 0);
    want = penalised(s, &h, prompt + 4, 4);
    {
      int32_t token[2] = {-1, -1};
      mhk_sample_batch(other, &h, token);
      CHECK(token[0] == want && token[1] == want, "copies remember something else: %d, %d, should be %d", (int)token[0],
            (int)token[1], (int)want);
    }
    { /* as bytes: into a session that remembers as much, and one that remembers less */
      const size_t bytes = mhk_session_state_bytes(s, 0);
      unsigned char *state = (unsigned char *)malloc(bytes);
      const int32_t all = penalised(s, &h, prompt, 8);
      int32_t token[2] = {-1, -1};
      REQUIRE(state != NULL && mhk_session_save_memory(s, 0, state, bytes) == MHK_OK, "%s", mhk_message(ctx));
      mhk_session_reset(s, MHK_ALL);
      mhk_session_load_memory(s, 0, state, bytes);
      CHECK(mhk_sample(s, &h) == all, "a state loaded remembers something else");
      mhk_session_load_memory(other, 0, state, bytes);
      mhk_session_load_memory(other, 1, state, bytes);
      mhk_sample_batch(other, &h, token);
      CHECK(token[0] == want && token[1] == want, "loaded into less room: %d, %d, should be %d", (int)token[0],
            (int)token[1], (int)want);
      free(state);
    }
    CHECK_OK(ctx);
    mhk_destroy(ctx);
  }
}

/* ---------------------------------------------------------------------------------------- text */

/* Makes the session say text, token by token, by a bias nothing can resist; appends what comes out
   to said. Returns how many tokens were taken. */
static int say(mhk_session *s, mhk_tokenizer *k, const char *text, const mhk_sampling *how, char *said) {
  int32_t ids[256];
  const mhk_index n = mhk_encode(k, text, strlen(text), ids, 256);
  int i;
  for (i = 0; i < n; i++) {
    mhk_token_bias force;
    mhk_sampling h = *how;
    force.token = ids[i], force.value = 1e6;
    h.bias = &force, h.n_bias = 1, h.greedy = 1;
    if (mhk_sample(s, &h) != ids[i]) {
      strcat(said, mhk_text_out(s));
      break;
    }
    strcat(said, mhk_text_out(s));
  }
  return i;
}

TEST(stop_strings) {
  static const char text[] = "The na\xC3\xAFve dragon \xF0\x9F\x90\x89 said: stop. Don't stop!\n\nUser: why?\nThe end";
  static const char *const single[] = {"stop!", ".",         "ve dr",         "\xF0\x9F\x90\x89", "T",
                                       "end",   "\n\nUser:", "nothing of it", "The end.",         "e"};
  mhk_context *ctx = mhk_create(NULL);
  mhk_model *m = mhk_load(ctx, "examples/tiny");
  mhk_tokenizer *k = mhk_model_tokenizer(m);
  mhk_session *s = mhk_session_create(m, NULL);
  mhk_sampling h = plain(1);
  int32_t ids[256];
  const int n = (int)mhk_encode(k, text, strlen(text), ids, 256);
  int i;
  REQUIRE_OK(ctx);
  for (i = 0; i < 11; i++) {
    const char *stop = i < 10 ? single[i] : "";
    const char *found = i < 10 ? strstr(text, stop) : NULL;
    char said[512] = "", want[512];
    int taken;
    mhk_session_reset(s, MHK_ALL);
    mhk_feed_text(s, "Once");
    h.stop_strings = &stop;
    h.n_stop_strings = i < 10;
    taken = say(s, k, text, &h, said);
    REQUIRE_OK(ctx);
    strcpy(want, text);
    if (found) want[found - text] = 0;
    CHECK(found || !strncmp(text, said, strlen(said)), "\"%s\" is no start of the text", said);
    CHECK(strlen(text) - strlen(said) < strlen(stop) + 1 || found, "%d bytes are held back",
          (int)(strlen(text) - strlen(said)));
    CHECK((taken < n) == !!found && (mhk_stopped(s) == MHK_STOP_STRING) == !!found,
          "\"%s\": %d of %d tokens, reason %d", stop, taken, n, (int)mhk_stopped(s));
    strcat(said, mhk_text_rest(s));
    CHECK(!strcmp(mhk_text_rest(s), ""), "the rest comes twice");
    CHECK(!strcmp(said, want), "stop \"%s\": \"%s\", should be \"%s\"", stop, said, want);
  }
  { /* several: where the first one is complete */
    static const char *const several[] = {"zzz", "said: stop. D", "aid"};
    char said[512] = "";
    mhk_session_reset(s, MHK_ALL);
    mhk_feed_text(s, "Once");
    h.stop_strings = several, h.n_stop_strings = 3;
    say(s, k, text, &h, said);
    CHECK(!strcmp(said, "The na\xC3\xAFve dragon \xF0\x9F\x90\x89 s") ||
              !strcmp(said, "The na\xC3\xAFve dragon \xF0\x9F\x90\x89 "),
          "\"%s\"", said);
  }
  CHECK_OK(ctx);
  mhk_destroy(ctx);
}

TEST(stop_tokens) {
  mhk_context *ctx = mhk_create(NULL);
  mhk_model *m = mhk_load(ctx, "examples/tiny");
  mhk_tokenizer *k = mhk_model_tokenizer(m);
  mhk_session *s = mhk_session_create(m, NULL), *other;
  mhk_sampling h = plain(-1);
  static const char *const waits[] = {" a time there"};
  mhk_token_bias end;
  int32_t stops[2], ids[8];
  char said[256] = "";
  mhk_real before[1024];
  h.stop_tokens = stops, h.n_stop_tokens = 2;
  stops[0] = 3;
  mhk_encode(k, ".", 1, stops + 1, 1);
  REQUIRE(mhk_encode(k, ".", 1, ids, 8) == 1, "a full stop is not one token");
  mhk_feed_text(s, "Once");
  CHECK(say(s, k, " upon a time.", &h, said) == (int)mhk_encode(k, " upon a time", 12, ids, 8),
        "it did not stop at the full stop");
  CHECK(!strcmp(said, " upon a time") && mhk_stopped(s) == MHK_STOP_TOKEN, "\"%s\", reason %d", said,
        (int)mhk_stopped(s));
  mhk_session_reset(s, MHK_ALL);
  h.n_stop_tokens = 0;
  h.stop_strings = waits, h.n_stop_strings = 1;
  said[0] = 0;
  mhk_feed_text(s, "Once");
  say(s, k, " upon a time", &h, said);
  CHECK(!strcmp(said, " upon"), "\"%s\" with the rest held back", said);
  other = mhk_session_create(m, NULL);
  mhk_session_copy(other, 0, s, 0);
  CHECK(!strcmp(mhk_text_out(other), "") && !strcmp(mhk_text_rest(other), " a time"), "a copy holds back \"%s\"",
        mhk_text_out(other));
  memcpy(before, mhk_logits(s, 0), sizeof before);
  end.token = mhk_tokenizer_end(k), end.value = 1e6;
  h.bias = &end, h.n_bias = 1;
  CHECK(mhk_sample(s, &h) == -1 && mhk_stopped(s) == MHK_STOP_END && !strcmp(mhk_text_out(s), " a time"),
        "the end brings \"%s\"", mhk_text_out(s));
  CHECK_SAME("logits after the end, which is not fed", mhk_logits(s, 0), before, 1024);
  CHECK_OK(ctx);
  mhk_destroy(ctx);
}

TEST(characters_stay_whole) { /* every way a text with long characters splits into tokens; a broken one at the end */
  static const char text[] = "\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80 \xE6\xBC\xA2\xE5\xAD\x97\xF0\x9F\xA6\x89.";
  mhk_context *ctx = mhk_create(NULL);
  mhk_model *m = mhk_load(ctx, "examples/tiny");
  mhk_tokenizer *k = mhk_model_tokenizer(m);
  mhk_session *s = mhk_session_create(m, NULL);
  mhk_sampling h = plain(-1);
  int32_t ids[64];
  const int n = (int)mhk_encode(k, text, strlen(text), ids, 64);
  char said[256] = "";
  int i;
  REQUIRE(n > 14, "the text is only %d tokens", n);
  mhk_feed_text(s, "Once");
  for (i = 0; i < n; i++) {
    mhk_token_bias force;
    const char *out;
    force.token = ids[i], force.value = 1e6;
    h.bias = &force, h.n_bias = 1;
    REQUIRE(mhk_sample(s, &h) == ids[i], "token %d was not drawn", (int)ids[i]);
    out = mhk_text_out(s);
    CHECK(((unsigned char)out[0] & 0xC0) != 0x80, "token %d starts inside a character", i);
    strcat(said, out);
  }
  CHECK(!strcmp(said, text), "\"%s\"", said);
  say(s, k, "\xE2\x82", &h, said);
  CHECK(!strcmp(said, text), "\"%s\" shows half a character", said);
  CHECK(!strcmp(mhk_text_rest(s), "\xEF\xBF\xBD"), "the rest is \"%s\"", mhk_text_rest(s));
  CHECK_OK(ctx);
  mhk_destroy(ctx);
}

/* ------------------------------------------------------------------------- speculative decoding */

static mhk_speculation *speculate(mhk_session *target, mhk_session *draft, int tokens) {
  mhk_speculation_desc d;
  d.target = target;
  d.draft = draft;
  d.tokens = tokens;
  return mhk_speculation_create(&d);
}

/* What one mhk_speculate() did to the counts: a pass only when all that the one before gave is
   returned, of at most most drafted tokens; of as many each time, or adaptively: not fewer than
   before after all were accepted, else fewer or one. last: tokens drafted for the pass before,
   negative where some were refused, 0: none yet; left: how many tokens of it are left to return, -1
   after finishing. */
static void check_pass(mhk_speculation_info before, mhk_speculation_info now, int fixed, int *last, int *left) {
  const int drafted = (int)(now.drafted - before.drafted), accepted = (int)(now.accepted - before.accepted),
            passes = (int)(now.passes - before.passes);
  CHECK(now.tokens == before.tokens + 1 && passes >= 0 && passes <= 1, "a call returns %d tokens in %d passes",
        (int)(now.tokens - before.tokens), passes);
  if (before.tokens == 0 || *left < 0) { /* the first one, or after finishing: drawn from logits that are there */
    CHECK(passes == 0 && drafted == 0, "the first token takes %d passes", passes);
    *left = 0;
    return;
  }
  CHECK((passes == 1) == (*left == 0), "%d passes with %d tokens left", passes, *left);
  if (!passes) {
    CHECK(drafted == 0 && accepted == 0, "tokens drafted without a pass");
    --*left;
    return;
  }
  CHECK(accepted >= 0 && accepted <= drafted, "%d of %d drafted tokens accepted in a pass", accepted, drafted);
  if (fixed)
    CHECK(drafted == fixed, "a pass over %d drafted tokens, not %d", drafted, fixed);
  else {
    CHECK(drafted >= 1 && drafted <= 7, "%d tokens drafted for a pass", drafted);
    if (*last > 0) CHECK(drafted >= *last, "%d tokens drafted where all of %d were accepted", drafted, *last);
    if (*last < 0)
      CHECK(drafted == 1 || drafted < -*last, "%d tokens drafted where some of %d were refused", drafted, -*last);
    *last = accepted == drafted ? drafted : -drafted;
  }
  *left = accepted;
}

/* n greedy tokens and their text after a prompt, by the target alone; returns how many came */
static int alone(mhk_session *s, const char *prompt, const mhk_sampling *h, int32_t *out, int n, char *text) {
  int i;
  text[0] = 0;
  mhk_session_reset(s, MHK_ALL);
  mhk_feed_text(s, prompt);
  for (i = 0; i < n && (out[i] = mhk_sample(s, h)) >= 0; i++) strcat(text, mhk_text_out(s));
  return i;
}

/* token for token what the target writes alone: attention, state-space and hybrid targets, good
   drafts and bad ones */
TEST(greedy_speculation) {
  enum { N = 90 };
  static const int lengths[] = {1, 3, 0, 16};
  static const char prompt[] = "Once upon a time there was";
  mhk_context *ctx = mhk_create(NULL);
  mhk_model *m[4];
  mhk_student_desc sd;
  mhk_session_desc d;
  const int keep[2] = {1, 2};
  int i, j, c;
  memset(&sd, 0, sizeof sd);
  memset(&d, 0, sizeof d);
  d.capacity = 160;
  m[0] = mhk_load(ctx, "examples/tiny");
  m[1] = mhk_student_create(ctx, m[0], NULL);
  sd.keep_attention = keep, sd.n_keep_attention = 2;
  m[2] = mhk_student_create(ctx, m[0], &sd);
  sd.init = MHK_INIT_RANDOM, sd.seed = 3;
  m[3] = mhk_student_create(ctx, m[0], &sd); /* another mind */
  REQUIRE_OK(ctx);
  for (i = 0; i < 3; i++) {
    mhk_session *target = mhk_session_create(m[i], &d), *plain_one = mhk_session_create(m[i], &d);
    int32_t want[N + 8];
    static char text[4000], said[4000];
    mhk_sampling h = plain(-1);
    int n = alone(plain_one, prompt, &h, want, N, text);
    for (j = 0; j < 4; j++) {
      mhk_session *draft = mhk_session_create(m[j], &d);
      for (c = 0; c < 4; c++) {
        mhk_speculation *x;
        mhk_speculation_info count;
        int k, same = 1, last = 0, left = 0;
        mhk_session_reset(target, MHK_ALL);
        mhk_session_reset(draft, MHK_ALL);
        mhk_feed_text(target, prompt);
        mhk_feed_text(draft, prompt);
        x = speculate(target, draft, lengths[c]);
        REQUIRE_OK(ctx);
        said[0] = 0;
        for (k = 0; k < n && same; k++) {
          const mhk_speculation_info before = mhk_speculation_progress(x);
          const int32_t id = mhk_speculate(x, &h);
          check_pass(before, mhk_speculation_progress(x), lengths[c], &last, &left);
          same = id == want[k];
          CHECK(same, "target %d, draft %d, %d tokens: token %d is %d, should be %d", i, j, lengths[c], k, (int)id,
                (int)want[k]);
          strcat(said, mhk_text_out(target));
          if (k == 40) { /* and on again */
            mhk_speculation_finish(x);
            left = -1;
          }
        }
        REQUIRE_OK(ctx);
        CHECK(!strcmp(said, text), "target %d, draft %d: another text", i, j);
        count = mhk_speculation_progress(x);
        CHECK(count.tokens == n && count.accepted <= count.drafted && count.passes <= n &&
                  count.passes + count.accepted >= n - 2,
              "%d tokens in %d passes", (int)count.tokens, (int)count.passes);
        if (i == j)
          CHECK(count.accepted > count.drafted - 3 && count.passes < (lengths[c] == 1 ? n * 2 / 3 : n / 2),
                "%d of %d accepted in %d passes by itself", (int)count.accepted, (int)count.drafted, (int)count.passes);
        if (lengths[c] == 0) CHECK(i == j || count.drafted < 7 * count.passes, "bad drafts do not get shorter");
        mhk_speculation_destroy(x); /* the sessions go on by themselves, both from here */
        CHECK(mhk_session_position(target, 0) == mhk_session_position(plain_one, 0) &&
                  mhk_session_position(draft, 0) == mhk_session_position(target, 0),
              "positions %d and %d, should be %d", (int)mhk_session_position(target, 0),
              (int)mhk_session_position(draft, 0), (int)mhk_session_position(plain_one, 0));
        CHECK_CLOSE("logits after speculation", mhk_logits(target, 0), mhk_logits(plain_one, 0), 1024, 1e-4);
        CHECK(mhk_logits(draft, 0) != NULL, "the draft has no logits");
      }
      mhk_session_destroy(draft);
    }
    mhk_session_destroy(target);
    mhk_session_destroy(plain_one);
  }
  CHECK_OK(ctx);
  mhk_destroy(ctx);
}

/* Refused drafts are taken back out of windows and caches of kept heads: token for token what the
   target writes alone. */
TEST(greedy_speculation_takes_back_windows) {
  enum { N = 60 };
  static const int lengths[] = {1, 3, 12};
  int kind, c, k;
  for (kind = GATED; kind <= KEPT_HEADS; kind++) {
    mhk_context *ctx = mhk_create(NULL);
    mhk_model *m = model_new(ctx, kind, 5), *other = model_new(ctx, WINDOWED, 6);
    mhk_session *target = mhk_session_create(m, NULL), *draft = mhk_session_create(other, NULL);
    mhk_sampling h = plain(-1);
    int32_t prompt[11], want[N];
    model_tokens(prompt, 11, 31, 2);
    mhk_feed(target, prompt, 11);
    for (k = 0; k < N; k++) want[k] = mhk_sample(target, &h);
    for (c = 0; c < 3; c++) {
      mhk_speculation *x;
      mhk_speculation_info count;
      mhk_session_reset(target, MHK_ALL);
      mhk_session_reset(draft, MHK_ALL);
      mhk_feed(target, prompt, 11);
      mhk_feed(draft, prompt, 11);
      x = speculate(target, draft, lengths[c]);
      for (k = 0; k < N; k++) {
        const int32_t id = mhk_speculate(x, &h);
        CHECK(id == want[k], "%s, %d drafted: token %d is %d, should be %d", model_kind_name(kind), lengths[c], k,
              (int)id, (int)want[k]);
      }
      count = mhk_speculation_progress(x);
      CHECK(count.accepted < count.drafted, "no draft was refused");
      REQUIRE_OK(ctx);
      mhk_speculation_destroy(x);
      CHECK(mhk_session_position(target, 0) == 11 + N && mhk_session_position(draft, 0) == 11 + N, "positions");
    }
    CHECK_OK(ctx);
    mhk_destroy(ctx);
  }
}

/* Feeds path (n tokens) after the prompt and gives the distribution of the next token by the
   reference. */
static void next_after(mhk_session *s, const int32_t *path, int n, const mhk_sampling *h, double *p) {
  mhk_session_reset(s, MHK_ALL);
  mhk_feed(s, path, n);
  reference(mhk_logits(s, 0), 31, h, path, n, p);
}

static double chi_square(const int *count, const double *p, int n, int draws, int *cells) {
  double chi = 0, rest = 0;
  int i, others = 0;
  *cells = 0;
  for (i = 0; i < n; i++) {
    if (p[i] * draws >= 5) {
      chi += pow(count[i] - p[i] * draws, 2) / (p[i] * draws);
      ++*cells;
    } else {
      others += count[i];
      rest += p[i] * draws;
    }
  }
  return chi + pow(others - rest, 2) / (rest + 1);
}

/* Probabilities of the second and third token of one round together, and of the fourth: of all that
   can follow three tokens. by_draft: of the second, if the draft's word were taken for it. */
static void all_rounds(mhk_session *target, mhk_session *draft, int32_t *path, const mhk_sampling *h, double *pair,
                       double *third, double *by_draft) {
  static double p1[31], p2[31], p3[31], p4[31];
  int a, b, e, v;
  next_after(target, path, 3, h, p1); /* the first token is the target's own; the next three are drafted */
  for (a = 0; a < 31; a++) {
    if (p1[a] <= 0) continue;
    path[3] = a;
    next_after(draft, path, 4, h, p2);
    for (v = 0; v < 31; v++) by_draft[v] += p1[a] * p2[v];
    next_after(target, path, 4, h, p2);
    for (b = 0; b < 31; b++) {
      if (p2[b] <= 0) continue;
      path[4] = b;
      next_after(target, path, 5, h, p3);
      for (e = 0; e < 31; e++) {
        if (p3[e] <= 0) continue;
        pair[31 * b + e] += p1[a] * p2[b] * p3[e];
        path[5] = e;
        next_after(target, path, 6, h, p4);
        for (v = 0; v < 31; v++) third[v] += p1[a] * p2[b] * p3[e] * p4[v];
      }
    }
  }
}

TEST(speculation_is_exact) { /* pairs of tokens of one round, 4000 times, against all that can happen */
  enum { DRAWS = 4000, WAYS = 6 };
  static const int targets[3] = {PHI, PHI_MAMBA, HYBRID}, drafts[3] = {PHI_MAMBA, HYBRID, PHI_MAMBA_ROTARY};
  int c;
  for (c = 0; c < 3; c++) {
    mhk_context *ctx = mhk_create(NULL);
    mhk_session *target = mhk_session_create(model_new(ctx, targets[c], 5), NULL);
    mhk_session *draft = mhk_session_create(model_new(ctx, drafts[c], 9), NULL);
    mhk_speculation *x = speculate(target, draft, 3);
    const mhk_token_bias bias = {7, 0.5};
    int32_t path[7] = {3, 4, 9};
    static double pair[31 * 31], by_draft[31], third[31];
    static int counts[31 * 31], thirds[31];
    mhk_sampling h = plain(4);
    int i, b, e, v, cells;
    double chi;
    memset(pair, 0, sizeof pair), memset(third, 0, sizeof third), memset(counts, 0, sizeof counts),
        memset(thirds, 0, sizeof thirds);
    memset(by_draft, 0, sizeof by_draft);
    h.seed = 4 + (uint64_t)c;
    h.top_k = WAYS;
    if (c == 1) h.top_p = 0.9, h.frequency = 0.5, h.presence = 0.2, h.repetition = 1.1;
    if (c == 2) h.typical = 0.9, h.min_p = 0.02, h.bias = &bias, h.n_bias = 1, h.presence = 0.5, h.penalty_tokens = 2;
    all_rounds(target, draft, path, &h, pair, third, by_draft);
    REQUIRE_OK(ctx);
    for (i = 0; i < DRAWS; i++) {
      int32_t got[4];
      mhk_session_reset(target, MHK_ALL);
      mhk_session_reset(draft, MHK_ALL);
      mhk_feed(target, path, 3);
      mhk_feed(draft, path, 3);
      for (v = 0; v < 4; v++) {
        got[v] = mhk_speculate(x, &h);
        h.seed = 0;
        REQUIRE(got[v] >= 0 && got[v] < 31, "nothing was drawn: %s", mhk_message(ctx));
      }
      CHECK(pair[31 * got[1] + got[2]] > 0 && third[got[3]] > 0, "%d, %d, %d cannot be", (int)got[1], (int)got[2],
            (int)got[3]);
      counts[31 * got[1] + got[2]]++;
      thirds[got[3]]++;
      mhk_speculation_finish(x);
    }
    chi = chi_square(counts, pair, 31 * 31, DRAWS, &cells);
    CHECK(cells > 8 && chi < cells + 4.5 * sqrt(2.0 * cells) + 3, "case %d: chi-square of the pairs %g with %d cells",
          c, chi, cells);
    chi = chi_square(thirds, third, 31, DRAWS, &cells);
    CHECK(cells > 4 && chi < cells + 4.5 * sqrt(2.0 * cells) + 3, "case %d: chi-square of the third %g with %d cells",
          c, chi, cells);
    { /* the draft alone would not pass */
      int firsts[31] = {0};
      for (b = 0; b < 31; b++)
        for (e = 0; e < 31; e++) firsts[b] += counts[31 * b + e];
      chi = chi_square(firsts, by_draft, 31, DRAWS, &cells);
      CHECK(chi > 5 * (cells + 20), "case %d: the draft has the same distribution: chi-square %g", c, chi);
    }
    {
      const mhk_speculation_info n = mhk_speculation_progress(x);
      CHECK(n.accepted > n.drafted / 20 && n.accepted < n.drafted * 19 / 20, "case %d: %d of %d accepted", c,
            (int)n.accepted, (int)n.drafted);
    }
    CHECK_OK(ctx);
    mhk_destroy(ctx);
  }
}

TEST(speculation_stops) { /* in the middle of a round, as alone; the sessions then are where the text is */
  mhk_context *ctx = mhk_create(NULL);
  mhk_model *teacher = mhk_load(ctx, "examples/tiny"), *student = mhk_student_create(ctx, teacher, NULL);
  mhk_session *target = mhk_session_create(teacher, NULL), *draft = mhk_session_create(student, NULL),
              *one = mhk_session_create(teacher, NULL);
  mhk_speculation *x = speculate(target, draft, 6);
  mhk_sampling h = plain(-1);
  int32_t ids[80];
  static char text[4000], said[4000], all[4000];
  int at;
  REQUIRE_OK(ctx);
  alone(one, "The rabbit", &h, ids, 60, all);
  for (at = 20; at + 12 < (int)strlen(all) && at < 80; at += 7) {
    char stop[8];
    const char *stops = stop;
    int32_t stop_token = ids[at / 4];
    int n, k = 0;
    memcpy(stop, all + at, 7), stop[7] = 0;
    h = plain(-1);
    if (at % 2) h.stop_strings = &stops, h.n_stop_strings = 1;
    else h.stop_tokens = &stop_token, h.n_stop_tokens = 1;
    n = alone(one, "The rabbit", &h, ids, 60, text);
    strcat(text, mhk_text_out(one));
    mhk_session_reset(target, MHK_ALL);
    mhk_session_reset(draft, MHK_ALL);
    mhk_feed_text(target, "The rabbit");
    mhk_feed_text(draft, "The rabbit");
    said[0] = 0;
    while (k < 60 && mhk_speculate(x, &h) >= 0) {
      strcat(said, mhk_text_out(target));
      k++;
    }
    strcat(said, mhk_text_out(target));
    REQUIRE_OK(ctx);
    CHECK(k == n && n < 60 && !strcmp(said, text) && mhk_stopped(target) == mhk_stopped(one),
          "%d tokens in place of %d: \"%s\" in place of \"%s\"", k, n, said, text);
    CHECK(mhk_session_position(target, 0) == mhk_session_position(one, 0) &&
              mhk_session_position(draft, 0) == mhk_session_position(one, 0),
          "another place");
    CHECK_CLOSE("logits where it stopped", mhk_logits(target, 0), mhk_logits(one, 0), 1024, 1e-4);
  }
  CHECK_OK(ctx);
  mhk_destroy(ctx);
}

TEST(speculation_at_the_edges) {
  test_memory memory;
  mhk_context *ctx = test_context(&memory, 0, 0);
  mhk_model *phi, *mamba;
  mhk_session_desc d;
  mhk_session *target, *draft, *wide;
  mhk_speculation *x;
  mhk_sampling h = plain(1);
  const int32_t prompt[5] = {3, 4, 5, 6, 7};
  long before = 0;
  int i;
  phi = model_new(ctx, PHI, 5), mamba = model_new(ctx, PHI_MAMBA, 6);
  memset(&d, 0, sizeof d);
  d.capacity = 30;
  target = mhk_session_create(phi, &d);
  draft = mhk_session_create(mamba, NULL);
  d.batch = 2;
  wide = mhk_session_create(phi, &d);
  CHECK(!speculate(target, target, 0) && mhk_error(ctx) == MHK_ERROR_ARGUMENT, "a session with itself");
  mhk_clear_error(ctx);
  CHECK(!speculate(wide, draft, 0) && mhk_error(ctx) == MHK_ERROR_ARGUMENT, "two sequences");
  mhk_clear_error(ctx);
  CHECK(!speculate(target, draft, 17), "17 tokens");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "16");
  CHECK(!speculate(NULL, draft, 3) && !mhk_speculation_create(NULL) && mhk_speculate(NULL, &h) == -1 &&
            mhk_speculation_finish(NULL) != MHK_OK && mhk_speculation_progress(NULL).tokens == 0,
        "NULL");
  mhk_speculation_destroy(NULL);
  x = speculate(target, draft, 4);
  CHECK(mhk_speculate(x, &h) == -1, "before any token");
  CHECK_FAILS(ctx, MHK_ERROR_STATE, "feed");
  mhk_feed(target, prompt, 5);
  mhk_feed(draft, prompt, 5);
  for (i = 0; i < 26; i++) { /* a cache of 30 is full when 25 more tokens are in it; drafts get shorter before that */
    CHECK(mhk_speculate(x, &h) >= 0, "token %d: %s", i, mhk_message(ctx));
    if (i == 3) before = memory.allocations;
  }
  CHECK(memory.allocations == before, "%ld allocations while speculating", memory.allocations - before);
  CHECK_OK(ctx);
  CHECK(mhk_speculate(x, &h) == -1, "a 32nd token fits a cache of 30");
  CHECK_FAILS(ctx, MHK_ERROR_STATE, "30");
  mhk_destroy(ctx);
  CHECK(memory.blocks == 0 && !memory.wrong_size, "memory is left");
}

TEST(mistakes) {
  mhk_context *ctx = mhk_create(NULL);
  mhk_session_desc d;
  mhk_model *m = model_new(ctx, PHI_MAMBA, 5);
  mhk_session *s = mhk_session_create(m, NULL);
  const int32_t prompt[2] = {3, 4};
  const char *too_long = "0123456789012345678901234567890123456789012345678901234567890123456789", *empty = "";
  const mhk_token_bias outside = {31, 1};
  mhk_token_bias none[31];
  mhk_sampling h = plain(1);
  int i;
  mhk_feed(s, prompt, 2);
  h.penalty_tokens = 257;
  CHECK(mhk_sample(s, &h) == -1, "more tokens than are remembered");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "recent");
  h = plain(1), h.stop_strings = &too_long, h.n_stop_strings = 1;
  CHECK(mhk_sample(s, &h) == -1, "a long stop string");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "stop_bytes");
  h.stop_strings = &empty;
  CHECK(mhk_sample(s, &h) == -1, "an empty stop string");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "empty");
  h = plain(1), h.bias = &outside, h.n_bias = 1;
  CHECK(mhk_sample(s, &h) == -1, "bias outside");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "vocabulary");
  for (i = 0; i < 31; i++) none[i].token = i, none[i].value = -INFINITY;
  h.bias = none, h.n_bias = 31;
  CHECK(mhk_sample(s, &h) == -1, "no token is possible");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "exclude every token");
  CHECK(mhk_sample(s, NULL) >= 0, "the session does not go on");
  CHECK_OK(ctx);
  CHECK(mhk_stopped(NULL) == MHK_STOP_NONE && !strcmp(mhk_text_rest(NULL), "") && !strcmp(mhk_text_rest(s), ""),
        "NULL");
  memset(&d, 0, sizeof d);
  d.recent = -1;
  CHECK(!mhk_session_create(m, &d), "a negative memory");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "recent");
  d.recent = PTRDIFF_MAX / 8;
  CHECK(!mhk_session_create(m, &d), "an endless memory");
  CHECK(mhk_failed(ctx), "no error");
  mhk_clear_error(ctx);
  mhk_destroy(ctx);
}

TEST(no_allocation) { /* with everything on, after the first draw */
  test_memory memory;
  mhk_context *ctx = test_context(&memory, 0, 0);
  mhk_session *s;
  const mhk_token_bias bias = {7, 1.5};
  const int32_t stop_token = 1;
  const char *stop = "no such words";
  mhk_sampling h = plain(0.9);
  long before = 0;
  int i;
  s = mhk_session_create(mhk_load(ctx, "examples/tiny"), NULL);
  h.top_k = 200, h.top_p = 0.95, h.min_p = 0.001, h.typical = 0.9, h.repetition = 1.1, h.frequency = 0.1,
  h.bias = &bias, h.n_bias = 1;
  h.stop_tokens = &stop_token, h.n_stop_tokens = 1, h.stop_strings = &stop, h.n_stop_strings = 1;
  mhk_feed_text(s, "Once upon a time");
  for (i = 0; i < 300; i++) {
    if (mhk_sample(s, &h) < 0) {
      mhk_session_reset(s, MHK_ALL);
      mhk_feed(s, &bias.token, 1);
    }
    if (i == 2) before = memory.allocations;
  }
  CHECK(memory.allocations == before, "300 draws took %ld allocations", memory.allocations - before);
  CHECK_OK(ctx);
  mhk_destroy(ctx);
  CHECK(memory.blocks == 0 && !memory.wrong_size, "memory is left");
}

int main(int argc, char **argv) {
  test_begin(argc, argv);
  RUN(distributions);
  RUN(a_zeroed_description_is_the_usual_one);
  RUN(impossible_distributions);
  RUN(draws);
  RUN(the_same_everywhere);
  RUN(frequencies);
  RUN(what_penalties_remember);
  RUN(penalties_follow_the_state);
  RUN(stop_strings);
  RUN(stop_tokens);
  RUN(characters_stay_whole);
  RUN(greedy_speculation);
  RUN(greedy_speculation_takes_back_windows);
  RUN(speculation_is_exact);
  RUN(speculation_stops);
  RUN(speculation_at_the_edges);
  RUN(mistakes);
  RUN(no_allocation);
  return test_end();
}
