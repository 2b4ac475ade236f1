/* What a session computes, keeps and gives back: against the tape's forward pass and a float64
   reference of attention with a window, in any cut of the tokens, alone and beside others; its
   memory, its states as values, snapshots. */
#include "models.h"

#define V 31 /* vocabulary of the small models */
#ifdef MOHAWK_DOUBLE
#define CLOSE 1e-11
#else
#define CLOSE 3e-5
#endif

static mhk_session *session_of(mhk_model *m, mhk_index batch, mhk_index capacity, mhk_index chunk) {
  mhk_session_desc d;
  memset(&d, 0, sizeof d);
  d.batch = batch;
  d.capacity = capacity;
  d.chunk = chunk;
  return mhk_session_create(m, &d);
}

/* logits of every token: (batch,most,V); NaN where none came, and a count of those that came out of
   order */
typedef struct collected {
  mhk_real *logits;
  mhk_index most, first[8], last[8];
  int disorder;
} collected;
static void collect(void *user, mhk_index sequence, mhk_index index, const mhk_real *logits) {
  collected *c = (collected *)user;
  const mhk_index at = c->first[sequence] + index;
  if (at >= c->most || at <= c->last[sequence]) c->disorder++;
  c->last[sequence] = at;
  memcpy(c->logits + (sequence * c->most + at) * V, logits, sizeof *logits * V);
}
static void collecting(collected *c, mhk_real *room, mhk_index batch, mhk_index most) {
  mhk_index i;
  memset(c, 0, sizeof *c);
  c->logits = room;
  c->most = most;
  for (i = 0; i < 8; i++) c->last[i] = -1;
  for (i = 0; i < batch * most * V; i++) room[i] = (mhk_real)NAN;
}
static mhk_result feed_batch(mhk_session *s, const int32_t *const *tokens, const mhk_index *lengths) {
  mhk_feed_desc feed;
  memset(&feed, 0, sizeof feed);
  feed.tokens = tokens;
  feed.lengths = lengths;
  return mhk_feed_batch(s, &feed);
}
/* feeds n tokens of sequence 0 in parts and collects all logits */
static void feed_parts(mhk_session *s, const int32_t *tokens, mhk_index n, mhk_index part, collected *c) {
  mhk_index at;
  for (at = 0; at < n; at += part) {
    const int32_t *here = tokens + at;
    const mhk_index length = n - at < part ? n - at : part;
    c->first[0] = at;
    mhk_feed_desc feed;
    memset(&feed, 0, sizeof feed);
    feed.tokens = &here;
    feed.lengths = &length;
    feed.take = collect;
    feed.user = c;
    mhk_feed_batch(s, &feed);
  }
}

TEST(the_tape_in_any_cut) {
  static const mhk_index chunks[] = {0, 1, 3, 4, 5, 8, 9, 16, 37}, parts[] = {37, 1, 2, 7, 20};
  static mhk_real got[37 * V];
  int kind;
  size_t i, j;
  for (kind = 0; kind <= MODEL_KINDS; kind++) {
    mhk_context *ctx = mhk_create(NULL);
    /* one more: heads whose decays are minus infinity, which forget everything at every token */
    const int resets = kind == MODEL_KINDS;
    const char *what = resets ? "mamba2 that forgets" : model_kind_name(kind);
    mhk_model *m = model_new(ctx, resets ? MAMBA2 : kind, 3);
    mhk_tape *tape = mhk_tape_create(ctx);
    int32_t tokens[37];
    mhk_tensor *want;
    model_tokens(tokens, 37, V, 1);
    if (resets)
      mhk_data(mhk_model_find(m, "backbone.layers.0.mixer.A_log"))[0] =
          mhk_data(mhk_model_find(m, "backbone.layers.1.mixer.A_log"))[2] = 1000;
    mhk_tape_record(tape, 0);
    want = mhk_forward(tape, m, tokens, 1, 37, NULL);
    REQUIRE(want != NULL, "%s: %s", what, mhk_message(ctx));
    for (i = 0; i < sizeof chunks / sizeof *chunks; i++) {
      mhk_session *s = session_of(m, 1, 37, chunks[i]);
      for (j = 0; j < sizeof parts / sizeof *parts; j++) {
        char name[100];
        collected c;
        collecting(&c, got, 1, 37);
        mhk_session_reset(s, MHK_ALL);
        feed_parts(s, tokens, 37, parts[j], &c);
        snprintf(name, sizeof name, "%s, chunks of %d, fed by %d", what, (int)chunks[i], (int)parts[j]);
        CHECK(c.disorder == 0 && mhk_session_position(s, 0) == 37, "%s: %d out of order", name, c.disorder);
        CHECK_CLOSE(name, got, mhk_data(want), 37 * V, CLOSE);
        CHECK_CLOSE(name, mhk_logits(s, 0), got + 36 * V, V, 1e-6);
      }
      mhk_session_destroy(s);
    }
    CHECK_OK(ctx);
    mhk_destroy(ctx);
  }
}

/* Gates, biases, windows and kept heads in every combination, with as many groups of B and C as
   heads and fewer, states narrower and wider than a head: logits of all positions, a window of 5
   filled, slid and far behind, in parts that end before, at and after its edges. */
TEST(options_in_every_combination) {
  enum { T = 149, W = 5 };
  static const int32_t windows[][6] = {{0, 0, 0, 0, 0, 0}, {W, W, W, W, W, W}, {1, W, 0, 300, 2, W},
                                       {MHK_WINDOW_ALL, 0, W, MHK_WINDOW_ALL, MHK_WINDOW_ALL, 1},
                                       {MHK_WINDOW_ALL, 0, 0, MHK_WINDOW_ALL, MHK_WINDOW_ALL, MHK_WINDOW_ALL}};
  static const mhk_index parts[] = {T, 1, W - 1, W, W + 1, 9, 64}, chunks[] = {0, 10};
  static const int states[] = {3, 8, 19};
  static mhk_real got[T * V];
  int32_t tokens[T];
  size_t i, j;
  int k;
  model_tokens(tokens, T, V, 1);
  for (k = 0; k < 2 * 2 * 2 * 3 * 5; k++) {
    const int32_t *heads = windows[k / 24];
    mhk_context *ctx = mhk_create(NULL);
    mhk_config c = model_config(PHI_MAMBA_ROTARY);
    mhk_model *m;
    mhk_tape *tape = mhk_tape_create(ctx);
    mhk_tensor *want;
    c.gates = k % 2;
    c.proj_bias = k / 2 % 2;
    c.ssm_groups = k / 4 % 2 ? 1 : 3;
    c.d_state = states[k / 8 % 3];
    c.ssm_rotary_dim = 2;
    c.windows = heads;
    m = model_from(ctx, &c, 3);
    mhk_tape_record(tape, 0);
    want = mhk_forward(tape, m, tokens, 1, T, NULL);
    REQUIRE(want != NULL, "combination %d: %s", k, mhk_message(ctx));
    for (i = 0; i < sizeof chunks / sizeof *chunks; i++) {
      mhk_session *s = session_of(m, 1, T, chunks[i]);
      for (j = 0; j < sizeof parts / sizeof *parts; j++) {
        char name[100];
        collected all;
        collecting(&all, got, 1, T);
        mhk_session_reset(s, MHK_ALL);
        feed_parts(s, tokens, T, parts[j], &all);
        snprintf(name, sizeof name, "combination %d, chunks of %d, fed by %d", k, (int)chunks[i], (int)parts[j]);
        CHECK_CLOSE(name, got, mhk_data(want), T * V, CLOSE);
      }
    }
    CHECK_OK(ctx);
    mhk_destroy(ctx);
  }
}

TEST(stored_types) { /* 16-bit weights: the same numbers as their float32 copies */
  static const mhk_dtype types[] = {MHK_BF16, MHK_F16};
  int kind, i;
  for (kind = 0; kind < MODEL_KINDS; kind++)
    for (i = 0; i < 2; i++) {
      mhk_context *ctx = mhk_create(NULL);
      mhk_model *a, *b;
      mhk_session *sa, *sb;
      int32_t tokens[21];
      mhk_save(model_new(ctx, kind, 3), test_path("stored"), types[i]);
      a = mhk_load(ctx, test_path("stored"));
      b = mhk_load(ctx, test_path("stored"));
      mhk_model_make_trainable(b);
      sa = session_of(a, 1, 40, 0);
      sb = session_of(b, 1, 40, 0);
      model_tokens(tokens, 21, V, 1);
      mhk_feed(sa, tokens, 20);
      mhk_feed(sb, tokens, 20);
      REQUIRE_OK(ctx);
      CHECK_CLOSE(model_kind_name(kind), mhk_logits(sa, 0), mhk_logits(sb, 0), V, CLOSE);
      mhk_feed(sa, tokens + 20, 1);
      mhk_feed(sb, tokens + 20, 1);
      CHECK_CLOSE(model_kind_name(kind), mhk_logits(sa, 0), mhk_logits(sb, 0), V, CLOSE);
      CHECK_OK(ctx);
      mhk_destroy(ctx);
    }
}

/* Prompts of different lengths in one session: each as in a session of its own; then steps at
   different positions, one of them started again. */
TEST(ragged_batches) {
  static const mhk_index lengths[][4] = {{1, 17, 0, 30}, {5, 5, 5, 5}, {40, 2, 3, 1}, {0, 0, 9, 0}, {12, 13, 14, 15}};
  int kind;
  size_t plan;
  for (kind = 0; kind < MODEL_KINDS; kind++)
    for (plan = 0; plan < sizeof lengths / sizeof *lengths; plan++) {
      mhk_context *ctx = mhk_create(NULL);
      mhk_model *m = model_new(ctx, kind, 5);
      mhk_session *all = session_of(m, 4, 64, 16), *one[4];
      int32_t tokens[4][48];
      const int32_t *at[4];
      mhk_index n[4];
      int b, step;
      for (b = 0; b < 4; b++) {
        model_tokens(tokens[b], 48, V, (uint64_t)b + 1);
        at[b] = tokens[b];
        one[b] = session_of(m, 1, 64, 16);
        mhk_feed(one[b], tokens[b], lengths[plan][b]);
      }
      feed_batch(all, at, lengths[plan]);
      REQUIRE_OK(ctx);
      for (b = 0; b < 4; b++) {
        CHECK(mhk_session_position(all, b) == lengths[plan][b], "position %d", (int)mhk_session_position(all, b));
        CHECK((mhk_logits(all, b) != NULL) == (lengths[plan][b] > 0),
              "sequence %d: logits without a token or none with", b);
        if (mhk_logits(all, b))
          CHECK_CLOSE(model_kind_name(kind), mhk_logits(all, b), mhk_logits(one[b], 0), V, CLOSE);
      }
      mhk_session_reset(all, 1);
      mhk_session_reset(one[1], MHK_ALL);
      CHECK(mhk_session_position(all, 1) == 0 && !mhk_logits(all, 1) &&
                (mhk_logits(all, 0) != NULL) == (lengths[plan][0] > 0),
            "a sequence that was reset");
      for (step = 0; step < 5; step++) {
        int32_t next[4];
        for (b = 0; b < 4; b++) {
          next[b] = tokens[b][40 + step];
          mhk_feed(one[b], next + b, 1);
        }
        mhk_feed(all, next, 1);
        REQUIRE_OK(ctx);
        for (b = 0; b < 4; b++)
          CHECK_CLOSE(model_kind_name(kind), mhk_logits(all, 0) + b * V, mhk_logits(one[b], 0), V, CLOSE);
      }
      for (b = 0; b < 4; b++) { /* two of four */
        at[b] = tokens[b] + 20;
        n[b] = b % 2 ? 3 : 0;
        if (n[b]) mhk_feed(one[b], at[b], 3);
      }
      feed_batch(all, at, n);
      for (b = 0; b < 4; b++)
        CHECK_CLOSE(model_kind_name(kind), mhk_logits(all, 0) + b * V, mhk_logits(one[b], 0), V, CLOSE);
      CHECK_OK(ctx);
      mhk_destroy(ctx);
    }
}

TEST(neighbors_change_nothing) { /* the bits of a sequence do not depend on what others hold */
  int kind;
  for (kind = 0; kind < MODEL_KINDS; kind++) {
    mhk_context *ctx = mhk_create(NULL);
    mhk_model *m = model_new(ctx, kind, 5);
    mhk_session *a = session_of(m, 3, 64, 16), *b = session_of(m, 3, 64, 16), *alone = session_of(m, 1, 64, 16);
    int32_t x[40], y[40], z[40];
    const int32_t *at[3];
    mhk_index n[3] = {23, 29, 31};
    model_tokens(x, 40, V, 1);
    model_tokens(y, 40, V, 2);
    model_tokens(z, 40, V, 3);
    at[0] = x, at[1] = y, at[2] = z;
    feed_batch(a, at, n);
    at[0] = z, at[2] = x, n[0] = 9, n[2] = 37;
    feed_batch(b, at, n);
    mhk_feed(alone, y, 29);
    REQUIRE_OK(ctx);
    CHECK_SAME(model_kind_name(kind), mhk_logits(a, 1), mhk_logits(b, 1), V);
    /* pieces of more than 4 rows: the same sums */
    CHECK_SAME(model_kind_name(kind), mhk_logits(a, 1), mhk_logits(alone, 0), V);
    mhk_destroy(ctx);
  }
}

/* ---- a Phi model in float64, attention seeing window keys (0: all) ---- */

static const mhk_real *weight(const mhk_model *m, int layer, const char *name) {
  char full[128];
  const mhk_tensor *x;
  if (layer < 0)
    snprintf(full, sizeof full, "%s", name);
  else
    snprintf(full, sizeof full, "model.layers.%d.%s", layer, name);
  x = mhk_model_find(m, full);
  if (!x) CHECK(x != NULL, "there is no %s", full);
  return mhk_data(x);
}
static void norm64(int n, double eps, const mhk_real *w, const mhk_real *b, const double *x, double *y) {
  double mean = 0, var = 0;
  int i;
  for (i = 0; i < n; i++) mean += x[i] / n;
  for (i = 0; i < n; i++) var += (x[i] - mean) * (x[i] - mean) / n;
  for (i = 0; i < n; i++) y[i] = (x[i] - mean) / sqrt(var + eps) * (double)w[i] + (double)b[i];
}
static void linear64(int n, int k, const mhk_real *w, const mhk_real *b, const double *x, double *y) {
  int i, j;
  for (i = 0; i < n; i++) {
    y[i] = (double)b[i];
    for (j = 0; j < k; j++) y[i] += (double)w[i * k + j] * x[j];
  }
}
static void heads64(const mhk_config *c, int n, double *x, int position, const mhk_real *w, const mhk_real *b) {
  int h, i;
  for (h = 0; h < n; h++, x += c->head_dim) {
    if (w) norm64(c->head_dim, c->norm_eps, w, b, x, x);
    for (i = 0; i < c->rotary_dim / 2; i++) {
      const double angle = position * pow(c->rope_theta, -2.0 * i / c->rotary_dim), p = x[i],
                   q = x[i + c->rotary_dim / 2];
      x[i] = p * cos(angle) - q * sin(angle);
      x[i + c->rotary_dim / 2] = q * cos(angle) + p * sin(angle);
    }
  }
}
#define MOST 60

/* logits of a Phi in double, as its equations say them; window: how far back a token sees, 0:
   all */
static void phi64(const mhk_model *m, const int32_t *tokens, int T, int window, double *logits) {
  static double x[MOST][24], q[MOST][24], k[MOST][24], v[MOST][24], u[MOST][24], hidden[128], o[24], y[24];
  const mhk_config *c = mhk_model_config(m);
  const int D = c->d_model, P = c->head_dim;
  int l, t, s, h, i;
  for (t = 0; t < T; t++)
    for (i = 0; i < D; i++) x[t][i] = (double)weight(m, -1, "model.embed_tokens.weight")[tokens[t] * D + i];
  for (l = 0; l < c->n_layer; l++) {
    for (t = 0; t < T; t++) {
      norm64(D, c->norm_eps, weight(m, l, "input_layernorm.weight"), weight(m, l, "input_layernorm.bias"), x[t], u[t]);
      linear64(D, D, weight(m, l, "self_attn.q_proj.weight"), weight(m, l, "self_attn.q_proj.bias"), u[t], q[t]);
      linear64(c->n_kv_head * P, D, weight(m, l, "self_attn.k_proj.weight"), weight(m, l, "self_attn.k_proj.bias"),
               u[t], k[t]);
      linear64(c->n_kv_head * P, D, weight(m, l, "self_attn.v_proj.weight"), weight(m, l, "self_attn.v_proj.bias"),
               u[t], v[t]);
      heads64(c, c->n_head, q[t], t, c->qk_layernorm ? weight(m, l, "self_attn.q_layernorm.weight") : NULL,
              c->qk_layernorm ? weight(m, l, "self_attn.q_layernorm.bias") : NULL);
      heads64(c, c->n_kv_head, k[t], t, c->qk_layernorm ? weight(m, l, "self_attn.k_layernorm.weight") : NULL,
              c->qk_layernorm ? weight(m, l, "self_attn.k_layernorm.bias") : NULL);
    }
    for (t = 0; t < T; t++) {
      const int first = window && t - window + 1 > 0 ? t - window + 1 : 0;
      for (h = 0; h < c->n_head; h++) {
        const int g = h / (c->n_head / c->n_kv_head);
        double sum = 0, e[MOST];
        for (i = 0; i < P; i++) o[h * P + i] = 0;
        for (s = first; s <= t; s++) {
          double dot = 0;
          for (i = 0; i < P; i++) dot += q[t][h * P + i] * k[s][g * P + i];
          sum += e[s] = exp(dot / sqrt((double)P));
        }
        for (s = first; s <= t; s++)
          for (i = 0; i < P; i++) o[h * P + i] += e[s] / sum * v[s][g * P + i];
      }
      linear64(D, D, weight(m, l, "self_attn.dense.weight"), weight(m, l, "self_attn.dense.bias"), o, y);
      for (i = 0; i < D; i++) x[t][i] += y[i];
      linear64(c->d_mlp, D, weight(m, l, "mlp.fc1.weight"), weight(m, l, "mlp.fc1.bias"), u[t], hidden);
      for (i = 0; i < c->d_mlp; i++)
        hidden[i] *= 0.5 * (1 + tanh(0.7978845608028654 * (hidden[i] + 0.044715 * hidden[i] * hidden[i] * hidden[i])));
      linear64(D, c->d_mlp, weight(m, l, "mlp.fc2.weight"), weight(m, l, "mlp.fc2.bias"), hidden, y);
      for (i = 0; i < D; i++) x[t][i] += y[i];
    }
  }
  for (t = 0; t < T; t++) {
    norm64(D, c->norm_eps, weight(m, -1, "model.final_layernorm.weight"), weight(m, -1, "model.final_layernorm.bias"),
           x[t], u[t]);
    linear64(V, D, weight(m, -1, "lm_head.weight"), weight(m, -1, "lm_head.bias"), u[t], logits + t * V);
  }
}

TEST(sliding_windows) {
  static const int windows[] = {0, 1, 2, 7, 33, 60};
  static const mhk_index chunks[] = {1, 5, 9, 40, 0}, parts[] = {60, 1, 13};
  static double want[MOST * V];
  static mhk_real got[MOST * V];
  int kind;
  size_t w, c, p;
  for (kind = PHI; kind <= PHI_GROUPED; kind++)
    for (w = 0; w < sizeof windows / sizeof *windows; w++) {
      mhk_context *ctx = mhk_create(NULL);
      mhk_model *m = model_new(ctx, kind, 3);
      int32_t tokens[MOST];
      model_tokens(tokens, MOST, V, 1);
      phi64(m, tokens, MOST, windows[w], want);
      for (c = 0; c < sizeof chunks / sizeof *chunks; c++) {
        mhk_session_desc d;
        mhk_session *s;
        memset(&d, 0, sizeof d);
        d.capacity = windows[w] ? 3 : MOST; /* of no meaning with a window */
        d.window = windows[w];
        d.chunk = chunks[c];
        s = mhk_session_create(m, &d);
        for (p = 0; p < sizeof parts / sizeof *parts; p++) {
          collected seen;
          char name[100];
          collecting(&seen, got, 1, MOST);
          mhk_session_reset(s, MHK_ALL);
          feed_parts(s, tokens, MOST, parts[p], &seen);
          REQUIRE_OK(ctx);
          snprintf(name, sizeof name, "%s, window %d, chunks of %d, fed by %d", model_kind_name(kind), windows[w],
                   (int)chunks[c], (int)parts[p]);
          CHECK_CLOSE_TO_DOUBLE(name, got, want, MOST * V, CLOSE);
        }
        mhk_session_destroy(s);
      }
      mhk_destroy(ctx);
    }
}

TEST(full_caches) {
  static const int kinds[] = {PHI, HYBRID, KEPT_HEADS};
  int i;
  for (i = 0; i < 3; i++) {
    mhk_context *ctx = mhk_create(NULL);
    mhk_model *m = model_new(ctx, kinds[i], 5);
    mhk_session *s = session_of(m, 2, 10, 4), *same = session_of(m, 2, 10, 4);
    int32_t tokens[20];
    const int32_t *at[2];
    mhk_index n[2] = {8, 10};
    mhk_real before[2 * V];
    model_tokens(tokens, 20, V, 1);
    at[0] = at[1] = tokens;
    feed_batch(s, at, n);
    feed_batch(same, at, n);
    REQUIRE_OK(ctx);
    memcpy(before, mhk_logits(s, 0), sizeof before);
    n[0] = 1, n[1] = 1;
    CHECK(feed_batch(s, at, n) == MHK_ERROR_STATE, "an eleventh token fits a cache of 10");
    CHECK_FAILS(ctx, MHK_ERROR_STATE, "holds 10 of 10 tokens and 1 more");
    n[0] = 3, n[1] = 0;
    feed_batch(s, at, n);
    CHECK_FAILS(ctx, MHK_ERROR_STATE, "holds 8 of 10 tokens and 3 more");
    n[0] = 2;
    tokens[1] = V;
    feed_batch(s, at, n);
    CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "31");
    CHECK_SAME("logits after refused feeds", mhk_logits(s, 0), before, 2 * V);
    CHECK(mhk_session_position(s, 0) == 8, "a refused feed moved the position");
    tokens[1] = 3;
    feed_batch(s, at, n);
    feed_batch(same, at, n);
    CHECK_OK(ctx);
    CHECK_SAME("after refused feeds", mhk_logits(s, 0), mhk_logits(same, 0), 2 * V);
    mhk_destroy(ctx);
  }
}

typedef struct some_logits { mhk_real rows[8][V]; mhk_index index[8], sequence[8]; int n; } some_logits;
static void take_some(void *user, mhk_index sequence, mhk_index index, const mhk_real *logits) {
  some_logits *x = (some_logits *)user;
  if (x->n == 8) return;
  memcpy(x->rows[x->n], logits, sizeof x->rows[0]);
  x->index[x->n] = index;
  x->sequence[x->n++] = sequence;
}

TEST(scores_and_chosen_positions) {
  int kind;
  for (kind = 0; kind < MODEL_KINDS; kind++) {
    mhk_context *ctx = mhk_create(NULL);
    mhk_model *m = model_new(ctx, kind, 5);
    mhk_session *s = session_of(m, 2, 64, 7), *steps = session_of(m, 1, 64, 0);
    int32_t tokens[30];
    double got[26], want;
    some_logits some;
    mhk_feed_desc feed;
    unsigned char wanted[30] = {0};
    const unsigned char *flags[2];
    const int32_t *at[2];
    mhk_index n[2];
    int i, v;
    model_tokens(tokens, 30, V, 2);
    at[0] = at[1] = tokens;
    n[0] = 0, n[1] = 4;
    CHECK(mhk_score(s, 1, tokens, 3, got) == MHK_ERROR_STATE, "a score before any token");
    CHECK_FAILS(ctx, MHK_ERROR_STATE, "feed sequence 1");
    feed_batch(s, at, n);
    mhk_score(s, 1, tokens + 4, 26, got);
    REQUIRE_OK(ctx);
    CHECK(mhk_session_position(s, 1) == 30 && mhk_session_position(s, 0) == 0, "a score moves its sequence only");
    mhk_feed(steps, tokens, 4);
    for (i = 0; i < 26; i++) {
      double sum = 0;
      for (v = 0; v < V; v++) sum += exp((double)mhk_logits(steps, 0)[v]);
      want = (double)mhk_logits(steps, 0)[tokens[4 + i]] - log(sum);
      CHECK(fabs(got[i] - want) < 1e-4, "%s: token %d scores %.8f, should be %.8f", model_kind_name(kind), i, got[i],
            want);
      mhk_feed(steps, tokens + 4 + i, 1);
    }
    CHECK_CLOSE("logits after a score", mhk_logits(s, 1), mhk_logits(steps, 0), V, CLOSE);
    mhk_session_reset(s, MHK_ALL);
    mhk_session_reset(steps, MHK_ALL);
    memset(&some, 0, sizeof some);
    wanted[0] = wanted[13] = wanted[29] = 1;
    flags[0] = wanted, flags[1] = NULL;
    n[0] = 30, n[1] = 2;
    memset(&feed, 0, sizeof feed);
    feed.tokens = at;
    feed.lengths = n;
    feed.take = take_some;
    feed.user = &some;
    feed.wanted = flags;
    mhk_feed_batch(s, &feed);
    REQUIRE(some.n == 5, "%d rows of logits instead of 5", some.n);
    for (i = 0; i < 30; i++) {
      int r;
      mhk_feed(steps, tokens + i, 1);
      for (r = 0; r < 5; r++)
        if (some.index[r] == i) CHECK_CLOSE("a chosen position", some.rows[r], mhk_logits(steps, 0), V, CLOSE);
    }
    CHECK_OK(ctx);
    mhk_destroy(ctx);
  }
}

/* ---- memory ---- */

static int text_too(int kind) { return kind == MODEL_KINDS; } /* one more: the bundled model with its tokenizer */

/* Everything that two sessions can do, with three sequences each or with one that reads text. */
static void use_two(mhk_session *s, mhk_session *other, int batch, int32_t *tokens) {
  const int32_t *at[3];
  mhk_index n[3] = {41, 3, 17};
  mhk_sampling how;
  double scores[20];
  int32_t id;
  int i;
  memset(&how, 0, sizeof how);
  at[0] = at[1] = at[2] = tokens;
  if (batch) {
    feed_batch(s, at, n);
    mhk_feed(s, tokens, 2);
    mhk_score(s, 2, tokens, 20, scores);
    for (i = 0; i < 30; i++) mhk_sample_batch(s, &how, tokens);
    mhk_session_copy(s, 1, s, 0);
    mhk_session_copy(other, 2, s, 1);
    mhk_session_snapshot(s, 0);
    mhk_session_rewind(s, 0, 20);
    mhk_feed(other, tokens, 5);
  } else {
    mhk_feed_text(s,
                  "Once upon a time there was a mouse; it ate the moon, every night a little more, until nobody "
                  "could see it any more. \n\n\n 1234567890 "
                  "donaudampfschifffahrtselektrizitaetenhauptbetriebswerkbauunterbeamtengesellschaft "
                  "\xF0\x9F\x90\xAD\xF0\x9F\x90\xAD!");
    for (i = 0; i < 30; i++)
      if (mhk_sample(s, NULL) < 0) break;
    mhk_session_copy(other, 0, s, 0);
    id = mhk_sample(other, NULL);
    CHECK(id >= -1, "a sample");
  }
}

/* given: the caller has the memory */
static void one_block(int kind, int threads, int given) {
  test_memory memory;
  mhk_context *ctx = test_context(&memory, 0, threads);
  mhk_model *m;
  mhk_session_desc d;
  mhk_session *s, *other;
  size_t size, before;
  long count;
  unsigned char *buffer = NULL;
  int32_t tokens[60];
  int i;
  memset(&d, 0, sizeof d);
  m = text_too(kind) ? mhk_load(ctx, "examples/tiny") : model_new(ctx, kind, 5);
  model_tokens(tokens, 60, V, 2);
  d.batch = text_too(kind) ? 1 : 3;
  d.capacity = 400;
  d.chunk = 19;
  d.snapshots = 2;
  d.snapshot_every = 11;
  size = mhk_session_bytes(m, &d);
  REQUIRE(size > 0, "%s", mhk_message(ctx));
  if (given) {
    buffer = (unsigned char *)malloc(size + 33);
    memset(buffer, 0xA5, size + 33);
    d.memory = buffer + 1; /* not aligned */
    d.memory_bytes = size - 1;
    CHECK(!mhk_session_create(m, &d), "a block that is too small");
    CHECK_FAILS(ctx, MHK_ERROR_MEMORY, "and needs");
    d.memory_bytes = size;
  }
  before = memory.bytes;
  count = memory.allocations;
  s = mhk_session_create(m, &d);
  REQUIRE(s != NULL, "%s", mhk_message(ctx));
  CHECK(memory.allocations == count + (given ? 0 : 1) && memory.bytes == before + (given ? 0 : size),
        "%ld allocations, %.0f bytes instead of %.0f", memory.allocations - count,
        (double)(memory.bytes - before), (double)size);
  d.memory = NULL;
  other = mhk_session_create(m, &d);
  memory.fail_at = 1; /* from here on there is nothing */
  memory.allocations = 0;
  use_two(s, other, d.batch == 3, tokens);
  CHECK_OK(ctx);
  CHECK(memory.allocations == 0, "%s, %d threads: %ld allocations after creation",
        text_too(kind) ? "tiny" : model_kind_name(kind), threads, memory.allocations);
  memory.fail_at = 0;
  if (given) {
    CHECK(buffer[0] == 0xA5, "the byte before the block was written");
    for (i = 0; i < 32; i++)
      CHECK(buffer[size + 1 + (size_t)i] == 0xA5, "byte %d behind the block was written", i);
  }
  mhk_session_destroy(other);
  mhk_session_destroy(s);
  CHECK(memory.bytes == before, "the session left %.0f bytes", (double)memory.bytes - (double)before);
  mhk_destroy(ctx);
  CHECK(memory.blocks == 0, "%d blocks are left", (int)memory.blocks);
  free(buffer);
}

TEST(one_block_known_beforehand) {
  int kind, threads, given;
  for (kind = 0; kind <= MODEL_KINDS; kind++)
    for (threads = 1; threads < 4; threads += 2)
      for (given = 0; given < 2; given++) one_block(kind, threads, given);
}

TEST(more_threads_than_planned) { /* a session made with one thread stays inside its block */
  mhk_context *ctx = mhk_create(NULL);
  mhk_model *m = mhk_load(ctx, "examples/tiny");
  mhk_session *a = session_of(m, 1, 300, 0), *b;
  int32_t tokens[200];
  model_tokens(tokens, 200, 1024, 2);
  mhk_feed(a, tokens, 200);
  mhk_session_reset(a, MHK_ALL);
  mhk_set_threads(ctx, 4);
  b = session_of(m, 1, 300, 0);
  CHECK(mhk_session_bytes(m, NULL) > 0, "%s", mhk_message(ctx));
  mhk_feed(a, tokens, 200);
  mhk_feed(b, tokens, 200);
  REQUIRE_OK(ctx);
  CHECK_SAME("on 1 and 4 threads", mhk_logits(a, 0), mhk_logits(b, 0), 1024);
  mhk_feed(a, tokens, 1);
  mhk_feed(b, tokens, 1);
  CHECK_SAME("a step on 1 and 4 threads", mhk_logits(a, 0), mhk_logits(b, 0), 1024);
  CHECK_OK(ctx);
  mhk_destroy(ctx);
}

TEST(impossible_descriptions) {
  mhk_context *ctx = mhk_create(NULL);
  mhk_model *m = model_new(ctx, HYBRID, 5);
  mhk_session_desc d;
  memset(&d, 0, sizeof d);
  d.batch = -1;
  CHECK(!mhk_session_create(m, &d), "a negative batch");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "batch is -1");
  d.batch = 0;
  d.window = -3;
  CHECK(mhk_session_bytes(m, &d) == 0, "a negative window");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "window is -3");
  d.window = 0;
  d.capacity = PTRDIFF_MAX / 8;
  CHECK(mhk_session_bytes(m, &d) == 0, "a cache beyond the address space");
  CHECK_FAILS(ctx, MHK_ERROR_MEMORY, "address space");
  d.capacity = 10;
  d.window = PTRDIFF_MAX / 4;
  CHECK(mhk_session_bytes(m, &d) == 0, "a window beyond the address space");
  CHECK_FAILS(ctx, MHK_ERROR_MEMORY, "address space");
  mhk_destroy(ctx);
}

/* Words of any length: the ids of mhk_encode(), in memory that is told beforehand where it is the
   caller's. */
TEST(long_words) {
  test_memory memory;
  mhk_context *ctx = test_context(&memory, 0, 0);
  mhk_model *m = mhk_load(ctx, "examples/tiny");
  mhk_tokenizer *k = mhk_model_tokenizer(m);
  static const size_t sizes[] = {1024, 1025, 5000};
  static char text[5000], block[1 << 23];
  static int32_t ids[5001];
  mhk_session_desc d;
  mhk_session *s, *t, *given;
  mhk_index n;
  size_t i, word;
  long bytes;
  memset(&d, 0, sizeof d);
  d.capacity = 6000;
  d.chunk = 64;
  s = mhk_session_create(m, &d);
  t = mhk_session_create(m, &d);
  d.capacity = 1500;
  d.memory = block;
  d.memory_bytes = sizeof block;
  given = mhk_session_create(m, &d);
  REQUIRE_OK(ctx);
  for (i = 0; i < sizeof text; i++) text[i] = (char)('a' + i * i % 26);
  ids[0] = mhk_tokenizer_start(k);
  for (word = 0; word < 3; word++) {
    mhk_session_reset(s, MHK_ALL);
    mhk_session_reset(t, MHK_ALL);
    bytes = (long)memory.bytes;
    mhk_feed_bytes(s, text, sizes[word]);
    CHECK((long)memory.bytes == bytes, "a word of %d bytes left %ld bytes", (int)sizes[word],
          (long)memory.bytes - bytes);
    n = mhk_encode(k, text, sizes[word], ids + 1, 5000);
    mhk_feed(t, ids, n + 1);
    REQUIRE_OK(ctx);
    CHECK(mhk_session_position(s, 0) == n + 1, "%d ids instead of %d", (int)mhk_session_position(s, 0), (int)n + 1);
    CHECK_SAME("a long word", mhk_logits(s, 0), mhk_logits(t, 0), 1024);
  }
  memory.fail_at = 1;
  memory.allocations = 0;
  mhk_feed_bytes(given, text, 1024);
  CHECK_OK(ctx);
  CHECK(mhk_feed_bytes(given, text, 1025) != MHK_OK, "a word of 1025 bytes in the caller's memory");
  CHECK_FAILS(ctx, MHK_ERROR_MEMORY, "word_bytes");
  CHECK(memory.allocations == 0, "%ld allocations", memory.allocations);
  memory.fail_at = 0;
  mhk_session_destroy(given);
  d.word_bytes = 5000;
  d.capacity = 6000;
  i = mhk_session_bytes(m, &d);
  CHECK(i > 5000 * 32, "%.0f bytes", (double)i);
  d.memory = malloc(i);
  d.memory_bytes = i;
  given = mhk_session_create(m, &d);
  REQUIRE_OK(ctx);
  memory.fail_at = 1;
  memory.allocations = 0;
  mhk_feed_bytes(given, text, 5000);
  CHECK_OK(ctx);
  CHECK(memory.allocations == 0, "%ld allocations", memory.allocations);
  memory.fail_at = 0;
  CHECK_SAME("a word of 5000 bytes in the caller's memory", mhk_logits(given, 0), mhk_logits(t, 0), 1024);
  d.word_bytes = (size_t)-1;
  CHECK(mhk_session_bytes(m, &d) == 0, "a word as long as memory");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "word_bytes");
  mhk_destroy(ctx);
  free(d.memory);
  CHECK(memory.blocks == 0, "%d blocks are left", (int)memory.blocks);
}

/* Text of many kinds through tokenizers that copy it: in the caller's memory, and the ids of
   mhk_encode(). */
TEST(normalized_prompts_in_the_callers_memory) {
  static const char *const normalizers[] = {"null", "{\"type\": \"NFC\"}"};
  test_memory memory;
  mhk_context *ctx = test_context(&memory, 0, 0);
  mhk_model *m = mhk_load(ctx, "examples/tiny");
  size_t length = 0, size, n = 0;
  /* setting another tokenizer ends the model's own */
  char *json = test_read_file("examples/tiny/tokenizer.json", &length);
  const char *at = json ? strstr(json, "\"normalizer\": null") : NULL;
  static char changed[80000], text[4500];
  static int32_t ids[4501];
  static const char *const pieces[] = {"e\xCC\x81",    "o\xCC\x88", " ", "\n", "the", "\xEA\xB0\x80\xE1\x86\xA8",
                                       "longer words "};
  uint64_t random = 3;
  int kind;
  REQUIRE(at && length + 100 < sizeof changed, "the bundled tokenizer");
  while (n + 20 < sizeof text) {
    const char *piece = pieces[test_random(&random) % 7];
    memcpy(text + n, piece, strlen(piece));
    n += strlen(piece);
  }
  for (kind = 0; kind < 4; kind++) {
    const char *space = strstr(at, "\"add_prefix_space\": false");
    mhk_session_desc d;
    mhk_session *s;
    mhk_tokenizer *k;
    mhk_index count;
    sprintf(changed, "%.*s\"normalizer\": %s%.*s\"add_prefix_space\": %s%s", (int)(at - json), json,
            normalizers[kind & 1], (int)(space - at - 18), at + 18, kind & 2 ? "true" : "false", space + 25);
    k = mhk_tokenizer_load_memory(ctx, changed, strlen(changed));
    mhk_model_set_tokenizer(m, k);
    memset(&d, 0, sizeof d);
    d.capacity = 4500;
    size = mhk_session_bytes(m, &d);
    d.memory = malloc(size);
    d.memory_bytes = size;
    s = mhk_session_create(m, &d);
    REQUIRE_OK(ctx);
    memory.fail_at = 1;
    memory.allocations = 0;
    mhk_feed_bytes(s, text, n);
    CHECK_OK(ctx);
    CHECK(memory.allocations == 0, "kind %d: %ld allocations", kind, memory.allocations);
    memory.fail_at = 0;
    count = mhk_encode_prompt(k, text, n, ids, 4501);
    CHECK(ids[0] == mhk_tokenizer_start(k) && mhk_session_position(s, 0) == count, "kind %d: %d ids instead of %d",
          kind, (int)mhk_session_position(s, 0), (int)count);
    mhk_session_destroy(s);
    free(d.memory);
  }
  free(json);
  mhk_destroy(ctx);
}

/* The token that starts a text: not twice, not where it is not wanted, never in the middle. */
TEST(start_token) {
  mhk_context *ctx = mhk_create(NULL);
  mhk_model *m = mhk_load(ctx, "examples/tiny");
  mhk_session_desc d;
  mhk_session *s;
  memset(&d, 0, sizeof d);
  s = mhk_session_create(m, &d);
  mhk_feed_text(s, "a");
  CHECK(mhk_session_position(s, 0) == 2, "position %d", (int)mhk_session_position(s, 0));
  mhk_session_reset(s, MHK_ALL);
  mhk_feed_text(s, "<|endoftext|>a");
  CHECK(mhk_session_position(s, 0) == 2, "a start token that was typed: position %d", (int)mhk_session_position(s, 0));
  mhk_feed_bytes(s, "a\0b", 3);
  CHECK(mhk_session_position(s, 0) == 5, "a zero character: position %d", (int)mhk_session_position(s, 0));
  mhk_session_reset(s, MHK_ALL);
  mhk_feed_bytes(s, NULL, 0);
  CHECK(mhk_session_position(s, 0) == 1, "no text: position %d", (int)mhk_session_position(s, 0));
  d.no_start = 1;
  s = mhk_session_create(m, &d);
  mhk_feed_text(s, "a");
  CHECK(mhk_session_position(s, 0) == 1, "no start token: position %d", (int)mhk_session_position(s, 0));
  REQUIRE_OK(ctx);
  CHECK(mhk_feed_text(s, NULL) != MHK_OK, "the text is missing");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "the text is missing");
  mhk_destroy(ctx);
}

/* ---- states ---- */

/* every damaged byte of a state is found, and the sequence stays as it was */
static void damage(mhk_context *ctx, mhk_session *b, unsigned char *state, size_t bytes) {
  size_t i;
  for (i = 0; i < bytes; i += i < 64 || i > bytes - 12 ? 1 : 97) {
    const mhk_index before = mhk_session_position(b, 0);
    state[i] ^= 0x41;
    CHECK(mhk_session_load_memory(b, 0, state, bytes) != MHK_OK && mhk_session_position(b, 0) == before,
          "byte %d was changed and nobody saw", (int)i);
    mhk_clear_error(ctx);
    state[i] ^= 0x41;
  }
  for (i = 0; i < bytes; i += i < 80 ? 1 : 61) {
    CHECK(mhk_session_load_memory(b, 0, state, i) != MHK_OK, "%d of %d bytes were enough", (int)i, (int)bytes);
    mhk_clear_error(ctx);
  }
}

static int has_caches(int kind) {
  return kind <= PHI_GROUPED || kind == HYBRID || kind == KEPT_HEADS || kind == LLAMA || kind == QWEN3 ||
         kind == LLAMA_MAMBA;
}

/* Another model, another layout, other weights: d describes a session of m that could take the
   state, which is the one of sequence 1 of a. */
static void refuse_elsewhere(mhk_context *ctx, int kind, mhk_model *m, mhk_session *a, mhk_session_desc d,
                             const unsigned char *state, size_t bytes) {
  const int windowed = d.window > 0;
  {
    mhk_model *other = model_new(ctx, kind, 6), *same = model_new(ctx, kind, 5);
    mhk_session *s = mhk_session_create(other, &d), *t = mhk_session_create(same, &d);
    mhk_session_load_memory(s, 0, state, bytes);
    CHECK_FAILS(ctx, MHK_ERROR_STATE, "another model");
    CHECK(mhk_session_load_memory(t, 0, state, bytes) == MHK_OK, "the same weights made again: %s",
          mhk_message(ctx));
    mhk_session_copy(t, 0, a, 1);
    CHECK_FAILS(ctx, MHK_ERROR_STATE, "the same model");
  }
  if (!windowed && has_caches(kind)) { /* too long for the cache there */
    mhk_session *s = session_of(m, 1, 22, 0);
    mhk_session_load_memory(s, 0, state, bytes);
    CHECK_FAILS(ctx, MHK_ERROR_STATE, "holds 22");
    mhk_session_copy(s, 0, a, 1);
    CHECK_FAILS(ctx, MHK_ERROR_STATE, "holds 22");
  }
  if (windowed && has_caches(kind)) { /* a larger window wants keys that are gone */
    mhk_session *s;
    d.window = 17;
    s = mhk_session_create(m, &d);
    mhk_session_load_memory(s, 0, state, bytes);
    CHECK_FAILS(ctx, MHK_ERROR_STATE, "smaller window");
  }
}

/* window: 0 for none */
static void state_is_a_value(int kind, mhk_index window) {
  mhk_context *ctx = mhk_create(NULL);
  mhk_model *m = model_new(ctx, kind, 5);
  mhk_session_desc d;
  mhk_session *a, *b;
  int32_t tokens[40];
  const int32_t *at[3];
  mhk_index n[3] = {0, 23, 0};
  size_t bytes, i;
  unsigned char *state;
  memset(&d, 0, sizeof d);
  d.batch = 3;
  d.capacity = 64;
  d.window = window;
  d.chunk = 8;
  a = mhk_session_create(m, &d);
  d.batch = 1;
  d.chunk = 11;
  d.capacity = 41;
  b = mhk_session_create(m, &d);
  model_tokens(tokens, 40, V, 2);
  at[0] = at[1] = at[2] = tokens;
  feed_batch(a, at, n);
  bytes = mhk_session_state_bytes(a, 1);
  state = (unsigned char *)malloc(bytes + 8);
  memset(state, 0xA5, bytes + 8);
  mhk_session_save_memory(a, 1, state, bytes);
  REQUIRE_OK(ctx);
  for (i = 0; i < 8; i++) CHECK(state[bytes + i] == 0xA5, "written behind the state");
  CHECK(mhk_session_save_memory(a, 1, state, bytes - 1) == MHK_ERROR_ARGUMENT, "no room for the state");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "room");
  mhk_session_load_memory(b, 0, state, bytes);
  mhk_session_copy(a, 2, a, 1);
  REQUIRE_OK(ctx);
  CHECK(mhk_session_position(b, 0) == 23 && mhk_session_position(a, 2) == 23, "positions");
  CHECK_SAME(model_kind_name(kind), mhk_logits(b, 0), mhk_logits(a, 1), V);
  CHECK_SAME(model_kind_name(kind), mhk_logits(a, 2), mhk_logits(a, 1), V);
  for (i = 0; i < 3; i++) { /* both go on with the same bits: one row at a time */
    n[1] = n[2] = 1;
    at[1] = at[2] = tokens + 23 + i;
    feed_batch(a, at, n);
    mhk_feed(b, at[1], 1);
    REQUIRE_OK(ctx);
    CHECK_SAME(model_kind_name(kind), mhk_logits(b, 0), mhk_logits(a, 1), V);
    CHECK_SAME(model_kind_name(kind), mhk_logits(a, 2), mhk_logits(a, 1), V);
  }
  /* forks go their own ways */
  n[1] = n[2] = 1;
  at[1] = tokens + 30, at[2] = tokens + 31;
  feed_batch(a, at, n);
  mhk_feed(b, at[1], 1);
  CHECK_SAME(model_kind_name(kind), mhk_logits(b, 0), mhk_logits(a, 1), V);
  CHECK(memcmp(mhk_logits(a, 1), mhk_logits(a, 2), sizeof(mhk_real) * V) != 0, "a fork follows its origin");
  damage(ctx, b, state, bytes);
  /* files */
  mhk_session_save(a, 2, test_path("state"));
  mhk_session_load(b, 0, test_path("state"));
  REQUIRE_OK(ctx);
  CHECK_SAME("through a file", mhk_logits(b, 0), mhk_logits(a, 2), V);
  mhk_session_load(b, 0, test_path("no such file"));
  CHECK_FAILS(ctx, MHK_ERROR_FILE, "no such file");
  mhk_session_save(a, 2, test_path("no such folder/state"));
  CHECK_FAILS(ctx, MHK_ERROR_FILE, "no such folder");
  refuse_elsewhere(ctx, kind, m, a, d, state, bytes);
  free(state);
  CHECK_OK(ctx);
  mhk_destroy(ctx);
}

TEST(states_are_values) {
  int kind;
  for (kind = 0; kind < MODEL_KINDS; kind++) {
    state_is_a_value(kind, 0);
    state_is_a_value(kind, 9);
  }
}

TEST(a_state_has_the_bytes_of_its_configuration) { /* besides head, logits, remembered tokens and checksum */
  int kind, n;
  for (kind = 0; kind < MODEL_KINDS; kind++)
    for (n = 0; n < 40; n += 13) {
      mhk_context *ctx = mhk_create(NULL);
      mhk_model *m = model_new(ctx, kind, 5);
      mhk_session *s = session_of(m, 1, 64, 0);
      int32_t tokens[40];
      model_tokens(tokens, 40, V, 2);
      mhk_feed(s, tokens, n);
      REQUIRE_OK(ctx);
      CHECK((double)mhk_session_state_bytes(s, 0) - (64 + 8 + 4 * 256 + V * (double)sizeof(mhk_real)) ==
                mhk_config_state_bytes(mhk_model_config(m), n),
            "%s, %d tokens: %.0f bytes, the configuration says %.0f", model_kind_name(kind), n,
            (double)mhk_session_state_bytes(s, 0), mhk_config_state_bytes(mhk_model_config(m), n));
      mhk_destroy(ctx);
    }
}

/* the same tensors and as many bytes, but heads have changed windows: another model */
TEST(states_of_other_windows_are_refused) {
  static const int32_t swapped[] = {9, 0, 1, 4, 1000, 16};
  mhk_context *ctx = mhk_create(NULL);
  mhk_config c = model_config(WINDOWS_BY_HEAD);
  mhk_model *m = model_new(ctx, WINDOWS_BY_HEAD, 5), *other;
  mhk_session *a = session_of(m, 1, 0, 0), *b;
  int32_t tokens[20];
  unsigned char *state;
  size_t bytes;
  c.windows = swapped;
  other = model_from(ctx, &c, 5);
  b = session_of(other, 1, 0, 0);
  model_tokens(tokens, 20, V, 2);
  mhk_feed(a, tokens, 20);
  REQUIRE_OK(ctx);
  bytes = mhk_session_state_bytes(a, 0);
  CHECK(bytes == mhk_session_state_bytes(b, 0), "the sizes differ already");
  state = (unsigned char *)malloc(bytes);
  mhk_session_save_memory(a, 0, state, bytes);
  mhk_session_load_memory(b, 0, state, bytes);
  CHECK_FAILS(ctx, MHK_ERROR_STATE, "another model");
  CHECK(mhk_session_position(b, 0) == 0, "a refused state changed the position");
  free(state);
  mhk_destroy(ctx);
}

TEST(snapshots_and_rewinding) {
  int kind, window;
  for (kind = 0; kind < MODEL_KINDS; kind++)
    for (window = 0; window < 2; window++) {
      mhk_context *ctx = mhk_create(NULL);
      mhk_model *m = model_new(ctx, kind, 5);
      const int attention_only = (kind <= PHI_GROUPED || kind == LLAMA || kind == QWEN3) && !window;
      mhk_session_desc d;
      mhk_session *s;
      int32_t tokens[64];
      mhk_real want[64][V];
      mhk_index i, back;
      memset(&d, 0, sizeof d);
      d.capacity = 64;
      d.window = window ? 9 : 0;
      d.chunk = 16;
      d.snapshots = 3;
      d.snapshot_every = 10;
      s = mhk_session_create(m, &d);
      model_tokens(tokens, 64, V, 2);
      for (i = 0; i < 64; i++) {
        mhk_feed(s, tokens + i, 1);
        REQUIRE_OK(ctx);
        memcpy(want[i], mhk_logits(s, 0), sizeof want[i]);
      }
      /* kept: 40, 50, 60 */
      back = mhk_session_rewind(s, 0, 57);
      CHECK(back == (attention_only ? 57 : 50), "%s: back to %d", model_kind_name(kind), (int)back);
      CHECK(mhk_session_position(s, 0) == back && !mhk_logits(s, 0), "after rewinding");
      for (i = back; i < 64; i++) {
        mhk_feed(s, tokens + i, 1);
        CHECK_SAME(model_kind_name(kind), mhk_logits(s, 0), want[i], V); /* the same steps: the same bits */
      }
      back = mhk_session_rewind(s, 0, 45);
      CHECK(back == (attention_only ? 45 : 40), "%s: back to %d", model_kind_name(kind), (int)back);
      mhk_feed(s, tokens + back, 46 - back);
      mhk_session_snapshot(s, 0);
      mhk_feed(s, tokens + 46, 1);
      back = mhk_session_rewind(s, 0, 46);
      CHECK(back == 46, "%s: a snapshot on request at 46, back to %d", model_kind_name(kind), (int)back);
      mhk_feed(s, tokens + 46, 18);
      CHECK_CLOSE(model_kind_name(kind), mhk_logits(s, 0), want[63], V, CLOSE);
      CHECK(mhk_session_rewind(s, 0, 65) == -1, "forward");
      CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "65");
      back = mhk_session_rewind(s, 0, 3);
      CHECK(back == (attention_only ? 3 : 0), "%s: back to %d", model_kind_name(kind), (int)back);
      mhk_feed(s, tokens + back, 64 - back);
      CHECK_CLOSE(model_kind_name(kind), mhk_logits(s, 0), want[63], V, CLOSE);
      CHECK_OK(ctx);
      mhk_destroy(ctx);
    }
}

TEST(threads_change_no_bit) {
  int kind, threads;
  for (kind = 0; kind < MODEL_KINDS + 1; kind++) {
    static mhk_real first[3 * 1024];
    for (threads = 1; threads <= 3; threads++) {
      mhk_context_desc cd;
      mhk_context *ctx;
      mhk_model *m;
      mhk_session *s;
      int32_t tokens[200];
      const int32_t *at[3];
      mhk_index n[3] = {200, 3, 77}, size;
      memset(&cd, 0, sizeof cd);
      cd.threads = threads;
      ctx = mhk_create(&cd);
      m = kind == MODEL_KINDS ? mhk_load(ctx, "examples/tiny") : model_new(ctx, kind, 5);
      size = kind == MODEL_KINDS ? 1024 : V;
      s = session_of(m, 3, 300, 64);
      model_tokens(tokens, 200, (int)size, 2);
      at[0] = at[1] = at[2] = tokens;
      feed_batch(s, at, n);
      mhk_feed(s, tokens, 1);
      REQUIRE_OK(ctx);
      if (threads == 1)
        memcpy(first, mhk_logits(s, 0), sizeof *first * (size_t)(3 * size));
      else
        CHECK_SAME(kind == MODEL_KINDS ? "tiny" : model_kind_name(kind), mhk_logits(s, 0), first, 3 * size);
      mhk_destroy(ctx);
    }
  }
}

TEST(a_model_in_training) { /* a session sees the weights as they are when it is fed */
  mhk_context *ctx = mhk_create(NULL);
  mhk_model *m = model_new(ctx, MAMBA2, 5);
  mhk_session *a = session_of(m, 1, 10, 0), *b;
  int32_t tokens[9];
  int i;
  model_tokens(tokens, 9, V, 2);
  mhk_feed(a, tokens, 9);
  for (i = 0; i < mhk_model_count(m); i++) {
    mhk_tensor *x = mhk_model_at(m, i);
    mhk_index j;
    for (j = 0; j < x->count; j++) mhk_data(x)[j] *= (mhk_real)1.125;
  }
  mhk_session_reset(a, MHK_ALL);
  b = session_of(m, 1, 10, 0);
  mhk_feed(a, tokens, 9);
  mhk_feed(b, tokens, 9);
  CHECK_SAME("a session older than the weights", mhk_logits(a, 0), mhk_logits(b, 0), V);
  CHECK_OK(ctx);
  mhk_destroy(ctx);
}

/* a file in the caller's memory, aligned or not: the same numbers, nothing copied that need not
   be */
TEST(from_memory) {
  const uint16_t one = 1;
  const int little_endian = *(const unsigned char *)&one;
  mhk_context *ctx = mhk_create(NULL);
  mhk_model *m = model_new(ctx, HYBRID, 3), *n;
  size_t size, i;
  char *bytes, *moved;
  int t;
  mhk_save(m, test_path("one.safetensors"), MHK_BF16);
  m = mhk_load(ctx, test_path("one.safetensors"));
  bytes = test_read_file(test_path("one.safetensors"), &size);
  REQUIRE(m && bytes, "%s", mhk_message(ctx));
  moved = (char *)malloc(size + 1);
  memcpy(moved + 1, bytes, size);
  for (i = 0; i < 2; i++) {
    n = mhk_load_memory(ctx, i ? moved + 1 : bytes, size);
    REQUIRE(n != NULL, "%s", mhk_message(ctx));
    for (t = 0; t < mhk_model_count(m); t++) {
      const mhk_tensor *a = mhk_model_at(m, t), *b = mhk_model_at(n, t);
      const size_t each = mhk_dtype_bytes(a->dtype);
      CHECK(a->dtype == b->dtype && !memcmp(a->data, b->data, (size_t)a->count * each), "%s differs", a->name);
      if (little_endian && i == 0 && a->dtype == MHK_BF16)
        CHECK((const char *)b->data >= bytes && (const char *)b->data < bytes + size, "%s was copied", a->name);
    }
    mhk_model_destroy(n);
  }
  for (i = 0; i < size; i += i < 64 ? 1 : 509) {
    CHECK(!mhk_load_memory(ctx, bytes, i), "%d of %d bytes are a model", (int)i, (int)size);
    mhk_clear_error(ctx);
  }
  free(bytes);
  CHECK(!mhk_load_memory(ctx, NULL, 10), "a model at NULL");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "NULL");
  mhk_save(m, test_path("folder"), MHK_F32);
  bytes = test_read_file(test_path("folder/model.safetensors"), &size);
  CHECK(!mhk_load_memory(ctx, bytes, size), "a file without a configuration is a model");
  CHECK_FAILS(ctx, MHK_ERROR_FORMAT, "config.json");
  free(bytes);
  free(moved);
  mhk_destroy(ctx);
}

int main(int argc, char **argv) {
  test_begin(argc, argv);
  RUN(the_tape_in_any_cut);
  RUN(options_in_every_combination);
  RUN(stored_types);
  RUN(ragged_batches);
  RUN(neighbors_change_nothing);
  RUN(sliding_windows);
  RUN(full_caches);
  RUN(scores_and_chosen_positions);
  RUN(one_block_known_beforehand);
  RUN(more_threads_than_planned);
  RUN(impossible_descriptions);
  RUN(long_words);
  RUN(normalized_prompts_in_the_callers_memory);
  RUN(start_token);
  RUN(states_are_values);
  RUN(a_state_has_the_bytes_of_its_configuration);
  RUN(states_of_other_windows_are_refused);
  RUN(snapshots_and_rewinding);
  RUN(threads_change_no_bit);
  RUN(a_model_in_training);
  RUN(from_memory);
  return test_end();
}
