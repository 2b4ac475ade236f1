/* probes.c: see probes.h */
#include "probes.h"
#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const probe probes[] = {
    {PROBE_FIRST, 32, "a passage, first read", "first_32"},
    {PROBE_AGAIN, 32, "the same, read again", "again_32"},
    {PROBE_PASSAGE, 32, "the same, written", "passage_32"},
    {PROBE_COPY, 16, "copying 16 words", "copy_16"},
    {PROBE_COPY, 64, "copying 64 words", "copy_64"},
    {PROBE_PAIRS, 8, "value of 1 of 8 keys", "pairs_8"},
    {PROBE_PAIRS, 32, "value of 1 of 32 keys", "pairs_32"},
    {PROBE_NEEDLE, 10, "pair 10 % into a text", "needle_10"},
    {PROBE_NEEDLE, 50, "pair 50 % into a text", "needle_50"},
    {PROBE_NEEDLE, 90, "pair 90 % into a text", "needle_90"},
};

const probe *probe_at(int i) { return i >= 0 && i < CLI_COUNT_OF(probes) ? &probes[i] : NULL; }

enum { GIVEN = 4, CHOICES = 8 }; /* tokens of a passage that are given again; words to choose a needle from */

double probe_chance(const probe *p) {
  return p->task <= PROBE_PASSAGE ? 0 : 1.0 / (p->task == PROBE_NEEDLE ? CHOICES : p->size);
}

/* ---------------------------------------------------------------- words */

/* xorshift64* (Vigna 2016): the same trials on every machine */
static uint64_t draw(uint64_t *state) {
  *state ^= *state >> 12;
  *state ^= *state << 25;
  *state ^= *state >> 27;
  return *state * 2685821657736338717ull;
}

static mhk_index draw_below(uint64_t *state, mhk_index n) { return (mhk_index)((draw(state) >> 16) % (uint64_t)n); }

/* whether a token is a whole word of letters after a space, which only the context suggests */
static int is_word(mhk_tokenizer *k, int32_t id) {
  size_t n, i;
  const char *text = mhk_token_bytes(k, id, &n);
  if (!text || n < 4 || text[0] != ' ') return 0;
  for (i = 1; i < n; i++)
    if (!isalpha((unsigned char)text[i])) return 0;
  return 1;
}

/* The ids of words, malloc'ed: all ids where a vocabulary has too few of them. NULL after a
   message. */
static int32_t *find_words(mhk_tokenizer *k, mhk_index *n) {
  const int size = mhk_tokenizer_size(k);
  int32_t *words = (int32_t *)malloc((size_t)size * sizeof *words), id;
  *n = 0;
  if (!words) {
    cli_error("out of memory for the probes");
    return NULL;
  }
  for (id = 0; id < size; id++)
    if (is_word(k, id)) words[(*n)++] = id;
  if (*n >= 128) return words;
  for (id = 0; id < size; id++) words[id] = id;
  *n = size;
  return words;
}

/* n different words at random: the first n of a shuffle */
static void draw_words(uint64_t *state, int32_t *words, mhk_index n_words, mhk_index n, int32_t *out) {
  mhk_index i;
  for (i = 0; i < n; i++) {
    const mhk_index other = i + draw_below(state, n_words - i);
    const int32_t word = words[other];
    words[other] = words[i];
    out[i] = words[i] = word;
  }
}

/* ---------------------------------------------------------------- trials */

/* All trials of one probe: texts (trials,length + answer), of which the model is given length
   tokens and must find the others, and the words to choose from (trials,choice); no choice: the
   whole vocabulary, V. */
typedef struct quiz {
  mhk_index length, answer, choice;
  int V, writes; /* writes: what the model has found is its context, not what is right */
  int32_t *texts, *choices;
} quiz;

static void quiz_free(quiz *q) {
  free(q->texts);
  free(q->choices);
}

/* One trial at prompt and answer; pairs and passages are words in the order in which they stand. */
static void write_trial(const probe *p, const probe_source *s, uint64_t *state, int32_t *words, mhk_index n_words,
                        quiz *q, int trial) {
  int32_t *prompt = q->texts + trial * (q->length + q->answer), *answer = prompt + q->length,
          *choice = q->choices + trial * q->choice;
  const int32_t start = mhk_tokenizer_start(s->tokenizer), *text;
  int32_t pair[1 + CHOICES];
  mhk_index i;
  *prompt++ = start >= 0 ? start : 0;
  if (p->task <= PROBE_PASSAGE) {
    const mhk_index all = mhk_corpus_tokens(s->text, &text), before = p->task == PROBE_FIRST ? 0 : p->size;
    text += draw_below(state, all - p->size);
    memcpy(prompt, text, (size_t)before * sizeof *prompt);
    memcpy(prompt + before, text, GIVEN * sizeof *prompt);
    memcpy(answer, text + GIVEN, (size_t)q->answer * sizeof *answer);
  } else if (p->task == PROBE_COPY) {
    draw_words(state, words, n_words, p->size, prompt);
    memcpy(prompt + p->size, prompt, 2 * sizeof *prompt);
    memcpy(choice, prompt, (size_t)p->size * sizeof *prompt);
    memcpy(answer, prompt + 2, (size_t)q->answer * sizeof *answer);
  } else if (p->task == PROBE_PAIRS) {
    draw_words(state, words, n_words, 2 * p->size, prompt);
    i = 2 * draw_below(state, p->size);
    prompt[2 * p->size] = prompt[i];
    answer[0] = prompt[i + 1];
    for (i = 0; i < p->size; i++) choice[i] = prompt[2 * i + 1];
  } else {
    const mhk_index n = q->length - 4, all = mhk_corpus_tokens(s->text, &text), at = n * p->size / 100;
    text += draw_below(state, all - n + 1);
    draw_words(state, words, n_words, q->choice + 1, pair);
    memcpy(choice, pair + 1, (size_t)q->choice * sizeof *choice);
    memcpy(prompt, text, (size_t)at * sizeof *prompt);
    memcpy(prompt + at, pair, 2 * sizeof *pair);
    memcpy(prompt + at + 2, text + at, (size_t)(n - at) * sizeof *prompt);
    prompt[n + 2] = pair[0];
    answer[0] = pair[1];
  }
}

static int write_quiz(const probe *p, const probe_source *s, int32_t *words, mhk_index n_words, quiz *q) {
  static const int given[] = {GIVEN, GIVEN, GIVEN, 2, 1, 1};
  const int passage = p->task <= PROBE_PASSAGE; /* three probes of the same passages */
  uint64_t state = s->seed * 0x9E3779B97F4A7C15ull + (passage ? 0 : (uint64_t)p->task * 1000) + (uint64_t)p->size + 1;
  int i;
  q->writes = p->task == PROBE_PASSAGE;
  q->answer = passage || p->task == PROBE_COPY ? p->size - given[p->task] : 1;
  q->length = 1 + (p->task == PROBE_PAIRS ? 2 * p->size : p->task == PROBE_FIRST ? 0 : p->size) + given[p->task];
  if (p->task == PROBE_NEEDLE) q->length = s->length;
  q->choice = passage ? 0 : p->task == PROBE_NEEDLE ? CHOICES : p->size;
  q->choices = (int32_t *)malloc((size_t)(PROBE_TRIALS * q->choice) * sizeof(int32_t) + 1);
  q->texts = (int32_t *)malloc((size_t)(PROBE_TRIALS * (q->length + q->answer)) * sizeof(int32_t));
  if (!q->texts || !q->choices) return cli_error("out of memory for the probes");
  for (i = 0; i < PROBE_TRIALS; i++) write_trial(p, s, &state, words, n_words, q, i);
  return CLI_GO;
}

/* the most likely word that may be chosen in a trial */
static int32_t most_likely(const mhk_real *logits, const quiz *q, int trial) {
  const int32_t *choice = q->choices + trial * q->choice;
  int32_t i, at = q->choice ? choice[0] : 0;
  for (i = 1; i < (q->choice ? (int32_t)q->choice : q->V); i++) {
    const int32_t word = q->choice ? choice[i] : i;
    if (logits[word] > logits[at]) at = word;
  }
  return at;
}

enum { TOGETHER = 8 }; /* trials in one session, which bounds the memory of large models */

/* what stands in some of the trials, as sequences of a session */
typedef struct answering {
  const quiz *q;
  int first, right[TOGETHER]; /* right: how many tokens of each trial were found */
} answering;

/* The logits after a token: is the most likely next one right? Returns it. */
static int32_t judge(answering *a, mhk_index sequence, mhk_index at, const mhk_real *logits) {
  const mhk_index trial = a->first + sequence;
  const int32_t found = most_likely(logits, a->q, (int)trial);
  a->right[sequence] += found == a->q->texts[trial * (a->q->length + a->q->answer) + at + 1];
  return found;
}

static void take_logits(void *user, mhk_index sequence, mhk_index at, const mhk_real *logits) {
  answering *a = (answering *)user;
  if (at + 1 >= a->q->length) judge(a, sequence, at, logits);
}

/* TOGETHER trials from a->first: in one piece, or token by token where the model writes itself */
static void answer_some(mhk_session *session, answering *a) {
  const quiz *q = a->q;
  const int32_t *texts[TOGETHER];
  mhk_index lengths[TOGETHER], t;
  int32_t next[TOGETHER];
  mhk_feed_desc feed = {.tokens = texts, .lengths = lengths, .take = q->writes ? NULL : take_logits, .user = a};
  int i;
  memset(a->right, 0, sizeof a->right);
  for (i = 0; i < TOGETHER; i++) {
    texts[i] = q->texts + (a->first + i) * (q->length + q->answer);
    lengths[i] = q->writes ? q->length : q->length + q->answer - 1;
  }
  mhk_session_reset(session, MHK_ALL);
  if (mhk_feed_batch(session, &feed) != MHK_OK) return;
  for (t = 0; q->writes && t < q->answer; t++) {
    for (i = 0; i < TOGETHER; i++) next[i] = judge(a, i, q->length - 1 + t, mhk_logits(session, i));
    if (t + 1 < q->answer && mhk_feed(session, next, 1) != MHK_OK) return;
  }
}

static int answer_quiz(mhk_context *ctx, mhk_model *m, const quiz *q, probe_score *score) {
  const mhk_session_desc desc = {.batch = TOGETHER, .capacity = q->length + q->answer};
  mhk_session *session = mhk_session_create(m, &desc);
  answering a = {.q = q};
  double sum = 0, squares = 0;
  int k;
  for (; a.first < PROBE_TRIALS && !mhk_failed(ctx) && !cli_stopped(); a.first += TOGETHER) {
    answer_some(session, &a);
    for (k = 0; k < TOGETHER; k++) {
      const double share = (double)a.right[k] / (double)q->answer;
      sum += share;
      squares += share * share;
    }
  }
  score->accuracy = sum / PROBE_TRIALS;
  score->error = sqrt(fmax(squares / PROBE_TRIALS - score->accuracy * score->accuracy, 0) / (PROBE_TRIALS - 1));
  if (mhk_failed(ctx)) return cli_context_error(ctx);
  mhk_session_destroy(session);
  return cli_stopped() ? CLI_FAILED : CLI_GO;
}

int probe_run(mhk_context *ctx, mhk_model *m, const probe_source *source, const char *title, probe_score *scores) {
  cli_progress progress;
  mhk_index n_words;
  int32_t *words = find_words(source->tokenizer, &n_words);
  int i, code = words ? CLI_GO : CLI_FAILED;
  memset(&progress, 0, sizeof progress);
  for (i = 0; i < CLI_COUNT_OF(probes) && code == CLI_GO; i++) {
    quiz q;
    memset(&q, 0, sizeof q);
    q.V = mhk_model_config(m)->vocab_size;
    cli_progress_show(&progress, 0, "%-9s %-18s %s", "probing", title, probes[i].name);
    code = write_quiz(&probes[i], source, words, n_words, &q);
    if (code == CLI_GO) code = answer_quiz(ctx, m, &q, &scores[i]);
    quiz_free(&q);
  }
  cli_progress_clear();
  free(words);
  return code;
}
