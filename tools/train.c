/* mohawk train: text in; tokenizer and a trained model out. */
#include "bpe.h"
#include "dryrun.h"
#include "foreign.h"
#include "record.h"
#include "run.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct settings {
  const char *tokenizer, *out;
  cli_files text, eval;
  cli_numbers keep;
  double lr, warmup, decay, weight_decay, clip, seconds, every;
  mhk_index tokens, batch, length, update_tokens, eval_windows, eval_length;
  int arch, recipe, d_model, layers, heads, d_mlp, d_state, window, vocab_size;
  int decays, placement, seed, threads, precision, recompute, dtype;
  int dry_run, fresh, force, no_eval, encoding, json;
} settings;

enum { PHI, PHI_MAMBA }; /* --arch */

/* a run being prepared and carried out */
typedef struct training {
  const settings *s;
  mhk_context *ctx;
  mhk_tokenizer *tokenizer;
  mhk_corpus *eval_text; /* NULL: none */
  run r;
  cli_json json;
  record_inputs inputs;
} training;

static const settings defaults = {.out = "mohawk-train", .d_model = 128, .layers = 4, .vocab_size = 2048,
                                  .tokens = 2000000, .batch = 4, .length = 256, .warmup = 0.05, .decay = 0.5,
                                  .weight_decay = 0.1, .clip = 1, .decays = 1, .eval_windows = 128, .seed = 1,
                                  .every = 10};

static const cli_option options[] = {
    {NULL, NULL, CLI_HEADING, 0, 0, 0, "what"},
    {"text", "FILE...", CLI_FILES, CLI_AT(text), 1, 0, "training text; <|endoftext|> separates documents (required)"},
    CLI_ENCODING(CLI_AT(encoding)),
    {"eval", "FILE...", CLI_FILES, CLI_AT(eval), 0, 0,
     "held-out text to evaluate on at the end. Without it, a twentieth of --text is held out: whole documents at "
     "random, at most as many tokens as --eval-windows has"},
    {"out", "DIR", CLI_TEXT, CLI_AT(out), 0, 0,
     "output folder for checkpoints, log.csv and the model (default mohawk-train)"},
    {"tokenizer", "PATH", CLI_TEXT, CLI_AT(tokenizer), 0, 0,
     "a tokenizer.json, or a model folder that has one. Without it, one is trained on --text, as `mohawk tokenizer` "
     "does it"},
    {"vocab-size", "N", CLI_INT, CLI_AT(vocab_size), BPE_LEAST, 1 << 24,
     "tokens of the tokenizer that is trained (default 2048)"},
    {NULL, NULL, CLI_HEADING, 0, 0, 0, "model"},
    {"arch", "phi|phi-mamba", CLI_CHOICE, CLI_AT(arch), 0, 0,
     "phi: a Transformer, which can be a teacher for `mohawk distill` (default). phi-mamba: the same blocks with "
     "state-space mixers, from random weights: what a student is without its teacher"},
    {"d-model", "N", CLI_INT, CLI_AT(d_model), 1, 65536, "width (default 128)"},
    {"layers", "N", CLI_INT, CLI_AT(layers), 1, MHK_MAX_LAYERS, "number of blocks (default 4)"},
    {"heads", "N", CLI_INT, CLI_AT(heads), 1, 4096, "heads of a mixer (default: one for each 32 of --d-model)"},
    {"d-mlp", "N", CLI_INT, CLI_AT(d_mlp), 1, 1 << 20, "width of the MLPs (default 4 x d-model)"},
    {"keep-attention", "L,...", CLI_NUMBERS, CLI_AT(keep), 0, 255,
     "phi-mamba: layers with attention, counted from 0: a hybrid"},
    {"d-state", "N", CLI_INT, CLI_AT(d_state), 1, 4096, "phi-mamba: state size (default: the size of a head)"},
    {"window", "W", CLI_INT, CLI_AT(window), 0, 1 << 24,
     "phi-mamba: tokens that every head sees exactly, beside its state (default 0)"},
    {"recipe", "best|paper", CLI_CHOICE, CLI_AT(recipe), 0, 0,
     "phi-mamba: best (default): gates, biases, rotary B and C, as `mohawk distill` makes students; paper: none of "
     "them"},
    {"dtype", "f32|f16|bf16", CLI_CHOICE, CLI_AT(dtype), 0, 0, "type of the saved weights (default f32)"},
    {NULL, NULL, CLI_HEADING, 0, 0, 0, "training"},
    {"tokens", "N", CLI_COUNT, CLI_AT(tokens), 1, 1e15, "tokens to train on (default 2M)"},
    {"lr", "X", CLI_REAL, CLI_AT(lr), 1e-12, 10,
     "peak learning rate (default: 4e-3 at width 128, half of that at twice the width, at most 8e-3)"},
    {"warmup", "X", CLI_REAL, CLI_AT(warmup), 0, 1, "fraction of the run for its warmup (default 0.05)"},
    {"decay", "X", CLI_REAL, CLI_AT(decay), 0, 1, "fraction of the run for its linear decay (default 0.5)"},
    {"weight-decay", "X", CLI_REAL, CLI_AT(weight_decay), 0, 10, "weight decay of AdamW (default 0.1)"},
    {"weight-decay-on", "all|matrices", CLI_CHOICE, CLI_AT(decays), 0, 0,
     "which tensors get weight decay (default matrices)"},
    {"clip", "X", CLI_REAL, CLI_AT(clip), 0, 1e9, "maximum gradient norm; 0: no clipping (default 1)"},
    {"batch", "N", CLI_COUNT, CLI_AT(batch), 1, 1e6, "sequences per batch (default 4)"},
    {"length", "N", CLI_COUNT, CLI_AT(length), 2, 1e7, "tokens per sequence (default 256)"},
    {"update-tokens", "N", CLI_COUNT, CLI_AT(update_tokens), 1, 1e12,
     "tokens per update, by accumulating gradients (default batch x length)"},
    {"placement", "random|packed", CLI_CHOICE, CLI_AT(placement), 0, 0,
     "sequences at random positions, or documents packed in order with boundaries (default random)"},
    {"eval-windows", "N", CLI_COUNT, CLI_AT(eval_windows), 0, 1e12, "windows to evaluate on; 0: all (default 128)"},
    {"eval-length", "N", CLI_COUNT, CLI_AT(eval_length), 2, 1e7,
     "tokens per window of the evaluation (default: --length)"},
    {"no-eval", NULL, CLI_FLAG, CLI_AT(no_eval), 0, 0, "hold no text out, do not evaluate"},
    {NULL, NULL, CLI_HEADING, 0, 0, 0, "run"},
    {"seed", "N", CLI_INT, CLI_AT(seed), 1, 2e9, "seed of the weights and of the sequences (default 1)"},
    CLI_THREADS(CLI_AT(threads)),
    {"precision", "f32|bf16", CLI_CHOICE, CLI_AT(precision), 0, 0,
     "operands of the matrix products in linear layers during training (default f32; see `mohawk distill --help all`)"},
    {"recompute", NULL, CLI_FLAG, CLI_AT(recompute), 0, 0,
     "recompute blocks in the backward pass: less memory, a third more time"},
    {"checkpoint-seconds", "N", CLI_REAL, CLI_AT(seconds), 0.01, 1e9,
     "seconds between checkpoints; the last two are kept (default 60)"},
    {"dry-run", NULL, CLI_FLAG, CLI_AT(dry_run), 0, 0,
     "only say what memory and time the run will take here, from a few updates"},
    {"fresh", NULL, CLI_FLAG, CLI_AT(fresh), 0, 0, "start over even if --out has a checkpoint"},
    {"force", NULL, CLI_FLAG, CLI_AT(force), 0, 0, "start even if there seems to be too little memory"},
    {"every", "SECONDS", CLI_REAL, CLI_AT(every), 0.1, 1e6,
     "seconds between lines of progress if there is no terminal (default 10)"},
    {"json", NULL, CLI_FLAG, CLI_AT(json), 0, 0, "print JSON lines instead of text"},
};

/* ---------------------------------------------------------------- tokenizer and text */

/* The tokenizer of --tokenizer, or one trained on the texts. CLI_GO, or CLI_FAILED after a
   message. */
static int make_tokenizer(training *t, const run_texts *texts) {
  const settings *s = t->s;
  const bpe_desc desc = {texts->n, texts->text, texts->length, s->vocab_size, 2};
  size_t length;
  int size;
  char *json;
  if (s->tokenizer) {
    t->tokenizer = foreign_tokenizer_load(t->ctx, s->tokenizer);
    if (t->tokenizer) return CLI_GO;
    cli_context_error(t->ctx);
    return cli_error("--tokenizer takes a tokenizer.json or the folder of a model; without it, one is trained on "
                     "--text");
  }
  json = bpe_train(t->ctx, &desc, &length, &size);
  if (!json) return CLI_FAILED;
  t->tokenizer = mhk_tokenizer_load_memory(t->ctx, json, length);
  free(json);
  if (!t->tokenizer) return cli_context_error(t->ctx);
  if (size < s->vocab_size)
    cli_warning("the text has pairs for only %d tokens, not the %d of --vocab-size", size, s->vocab_size);
  return CLI_GO;
}

/* Takes the last twentieth of the text for the evaluation, at least one window. */
static int hold_out(training *t) {
  const settings *s = t->s;
  const mhk_index length = s->eval_length ? s->eval_length : s->length;
  const int32_t *tokens;
  const int32_t start = mhk_tokenizer_start(t->tokenizer);
  mhk_corpus *all = t->r.desc.corpus;
  const mhk_index n = mhk_corpus_tokens(all, &tokens);
  mhk_index held = n / 20;
  if (s->eval_windows > 0 && held / length > s->eval_windows) held = s->eval_windows * length;
  if (held < length) held = length;
  if (n - held < s->length)
    return cli_error("the text has %lld tokens, too few for a sequence of %lld and a window of %lld to evaluate on: "
                     "give more --text, a smaller --length, or --no-eval",
                     (long long)n, (long long)s->length, (long long)length);
  t->eval_text = mhk_corpus_from_tokens(t->ctx, tokens + n - held, held, start);
  t->r.desc.corpus = mhk_corpus_from_tokens(t->ctx, tokens, n - held, start);
  mhk_corpus_destroy(all);
  return t->eval_text && t->r.desc.corpus ? CLI_GO : cli_context_error(t->ctx);
}

/* Tokenizer, text and held-out text. */
static int load_text(training *t) {
  const settings *s = t->s;
  const mhk_corpus_desc source = {.n_files = s->text.n, .files = s->text.path, .seed = (uint64_t)s->seed},
                        held = {.n_files = s->eval.n, .files = s->eval.path};
  run_texts texts;
  int code = run_read_texts(&texts, s->text.n, s->text.path, s->encoding, !s->tokenizer);
  cli_buffer amount;
  if (code == CLI_GO) code = make_tokenizer(t, &texts);
  if (code == CLI_GO) t->r.desc.corpus = run_encode_texts(t->ctx, t->tokenizer, &texts, &source);
  run_free_texts(&texts);
  if (!t->r.desc.corpus) return CLI_FAILED;
  cli_note("%s tokens of text; the tokenizer has %d",
           cli_count((double)mhk_corpus_tokens(t->r.desc.corpus, NULL), &amount), mhk_tokenizer_size(t->tokenizer));
  if (s->no_eval) return CLI_GO;
  if (s->eval.n == 0) return hold_out(t);
  if (run_read_texts(&texts, s->eval.n, s->eval.path, s->encoding, 0) == CLI_GO)
    t->eval_text = run_encode_texts(t->ctx, t->tokenizer, &texts, &held);
  run_free_texts(&texts);
  return t->eval_text ? CLI_GO : CLI_FAILED;
}

/* ---------------------------------------------------------------- model */

static mhk_config phi_config(const settings *s, int vocabulary) {
  mhk_config c;
  int l;
  memset(&c, 0, sizeof c);
  c.arch = MHK_ARCH_PHI;
  c.n_layer = s->layers;
  c.d_model = s->d_model;
  c.vocab_size = vocabulary;
  c.d_mlp = s->d_mlp ? s->d_mlp : 4 * s->d_model;
  c.norm_eps = 1e-5;
  c.max_position = s->length > 2048 ? (int)s->length : 2048;
  c.n_head = c.n_kv_head = s->heads ? s->heads : s->d_model < 64 ? 1 : s->d_model / 32;
  c.head_dim = s->d_model / c.n_head;
  c.rotary_dim = c.head_dim < 4 ? 2 : c.head_dim / 4 * 2; /* half of a head, as in Phi-1 and 1.5 */
  c.rope_theta = 10000;
  for (l = 0; l < c.n_layer; l++) c.mixer[l] = MHK_MIXER_ATTENTION;
  return c;
}

/* A model with new weights, as mhk_model_create() draws them: linear layers uniform within
   1/sqrt(row). At width 768 that has the standard deviation of 0.02 that GPT-2 and Phi start with;
   in narrow models, where it is larger, it is better, at width 128 by 0.13 nats in a Phi and 0.28
   in a Phi-Mamba after 0.4 million tokens. What a Phi and a Phi-Mamba have in common is the same at
   the same seed. NULL after a message. */
static mhk_model *make_model(const training *t) {
  const settings *s = t->s;
  const mhk_config c = phi_config(s, mhk_tokenizer_size(t->tokenizer));
  const int off = s->recipe == 1 ? -1 : 0;
  mhk_student_desc desc = {.window = s->window, .gates = off, .bias = off, .rotary_dim = off, .d_state = s->d_state,
                           .init = MHK_INIT_RANDOM, .seed = (uint64_t)s->seed};
  int keep[CLI_MAX_LIST], i;
  mhk_model *m = NULL, *phi;
  for (i = 0; i < s->keep.n; i++) keep[i] = (int)cli_number_at(&s->keep, i, -1);
  desc.keep_attention = keep;
  desc.n_keep_attention = s->keep.n;
  phi = mhk_model_create(t->ctx, &c, (uint64_t)s->seed);
  if (s->arch == PHI) {
    m = phi;
  } else if (phi) {
    m = mhk_student_create(t->ctx, phi, &desc);
    mhk_model_destroy(phi);
  }
  if (m) mhk_model_set_tokenizer(m, t->tokenizer);
  if (!mhk_failed(t->ctx)) return m;
  cli_context_error(t->ctx);
  return NULL;
}

/* ---------------------------------------------------------------- run */

/* in a description 0 means default and negative none; at the command line 0 means 0 */
static double given(double x) { return x > 0 ? x : -1; }

/* The default learning rate is measured at width 128. From there it falls with the width nearly as
   GPT-3's do (Brown et al. 2020, table 2.1): 6.7e-4 at 768 (there 6e-4), 3.3e-4 at 1536 (2.5e-4),
   2e-4 at 2560 (1.6e-4). */
static void fill(training *t, mhk_model *m) {
  const settings *s = t->s;
  mhk_distill_desc *desc = &t->r.desc;
  mhk_stage_desc *stage = &desc->stages[2];
  desc->student = m;
  stage->tokens = s->tokens;
  stage->lr = s->lr > 0 ? s->lr : s->d_model < 64 ? 8e-3 : 4e-3 * 128 / s->d_model;
  stage->warmup = given(s->warmup);
  stage->decay = given(s->decay);
  stage->weight_decay = given(s->weight_decay);
  stage->clip = given(s->clip);
  desc->batch = s->batch;
  desc->length = s->length;
  desc->update_tokens = s->update_tokens ? s->update_tokens : s->batch * s->length;
  desc->windows = (mhk_windows)s->placement;
  desc->decays = (mhk_decays)s->decays;
  desc->recompute = s->recompute;
  desc->precision = (mhk_precision)s->precision;
  desc->seed = (uint64_t)s->seed;
  desc->out = s->out;
  desc->checkpoint_seconds = s->seconds;
  desc->fresh = s->fresh;
}

/* Measures a few updates and says what the run takes. */
static int dry_run(training *t) {
  enum { UPDATES = 3 };
  mhk_distill_desc d = t->r.desc;
  dry_cost cost = {.updates = d.stages[2].tokens / d.update_tokens};
  double start, now, least = 0;
  mhk_trainer *tr;
  int i;
  d.out = NULL;
  d.stages[2].tokens = UPDATES * d.update_tokens;
  tr = mhk_distill(t->ctx, &d);
  start = cli_clock();
  for (i = 0; i < UPDATES && mhk_train_step(tr); i++) { /* the first one allocates */
    now = cli_clock();
    if (i == 0 || now - start < least) least = now - start;
    start = now;
  }
  if (mhk_failed(t->ctx)) return cli_context_error(t->ctx);
  cost.seconds = least * (double)cost.updates;
  cost.bytes = (double)mhk_memory_peak(t->ctx);
  dry_print("training", 3, &cost, (double)d.update_tokens, t->s->json);
  return CLI_OK;
}

static void json_begin(training *t, const mhk_model *m) {
  const mhk_config *c = mhk_model_config(m);
  char mixers[4096];
  json_start(&t->json, stdout, 0);
  t->r.json = &t->json;
  json_open(&t->json, NULL, '{');
  json_text(&t->json, "event", "start");
  json_text(&t->json, "out", t->s->out);
  json_text(&t->json, "model", run_mixers(c, mixers, sizeof mixers));
  json_real(&t->json, "parameters", mhk_config_parameters(c));
  json_count(&t->json, "vocabulary", c->vocab_size);
  json_count(&t->json, "text_tokens", (double)mhk_corpus_tokens(t->r.desc.corpus, NULL));
  json_real(&t->json, "learning_rate", t->r.desc.stages[2].lr);
  json_real(&t->json, "memory_bytes", mhk_distill_bytes(&t->r.desc));
  json_count(&t->json, "threads", mhk_threads(t->ctx));
  json_close(&t->json);
}

/* results.json, as mohawk distill writes it; e NULL: nothing was measured */
static int write_results(const training *t, const mhk_evaluation *e) {
  const mhk_index update = t->r.desc.update_tokens, tokens = t->r.desc.stages[2].tokens / update * update;
  char path[1024];
  cli_output o;
  cli_json j;
  if (cli_join(path, sizeof path, t->s->out, "results.json") != CLI_GO || cli_output_open(&o, path) != CLI_GO)
    return CLI_FAILED;
  json_start(&j, o.file, 1);
  json_open(&j, NULL, '{');
  json_open(&j, "tokens", '[');
  json_count(&j, NULL, 0);
  json_count(&j, NULL, 0);
  json_count(&j, NULL, (double)tokens);
  json_close(&j);
  json_open(&j, "evaluations", '[');
  if (e) {
    json_open(&j, NULL, '{');
    json_count(&j, "stage", 3);
    json_count(&j, "tokens", (double)tokens);
    run_json_evaluation(&j, e, 0);
    json_close(&j);
  }
  json_close(&j);
  json_raw(&j, "finished", "true");
  json_close(&j);
  return cli_output_close(&o);
}

static int measure(training *t, mhk_model *m) {
  const settings *s = t->s;
  const mhk_evaluate_desc desc = {.corpus = t->eval_text,
                                  .length = s->eval_length ? s->eval_length : s->length,
                                  .windows = s->eval_windows};
  mhk_evaluation e;
  cli_buffer b;
  char mixers[4096];
  if (run_evaluate(t->ctx, m, &desc, "model", &e) != CLI_GO) return CLI_FAILED;
  if (s->json) {
    json_open(&t->json, NULL, '{');
    json_text(&t->json, "event", "evaluation");
    run_json_evaluation(&t->json, &e, 0);
    json_close(&t->json);
  } else {
    run_mixers(mhk_model_config(m), mixers, sizeof mixers);
    printf("%s: cross-entropy %.3f%s, perplexity %.2f, on %lld held-out tokens\n", mixers, e.cross_entropy,
           run_error(e.cross_entropy_error, 0, 3, &b), exp(e.cross_entropy), (long long)e.tokens);
    fflush(stdout);
  }
  return write_results(t, &e);
}

/* ---------------------------------------------------------------- what a run was */

static int hash_inputs(training *t) {
  const settings *s = t->s;
  int i, code = s->tokenizer ? record_add(&t->inputs, t->ctx, "tokenizer", s->tokenizer) : CLI_GO;
  for (i = 0; i < s->text.n && code == CLI_GO; i++) code = record_add(&t->inputs, t->ctx, "text", s->text.path[i]);
  for (i = 0; i < s->eval.n && code == CLI_GO; i++) code = record_add(&t->inputs, t->ctx, "eval", s->eval.path[i]);
  return code == CLI_GO ? record_check(&t->inputs, t->ctx) : code;
}

/* The trainer is there, so the folder is this run's: writes the options with which it, and a later
   version with other defaults, does the same. */
static run_result started(void *user, const mhk_progress_info *info, mhk_model *student) {
  static const char *const not[] = {"dry-run", "fresh", "force", "every", "json", NULL};
  training *t = (training *)user;
  const mhk_distill_desc r = mhk_distill_defaults(&t->r.desc);
  const mhk_config c = phi_config(t->s, BPE_LEAST);
  settings e = *t->s;
  (void)info;
  (void)student;
  e.lr = r.stages[2].lr;
  e.update_tokens = r.update_tokens;
  e.seconds = r.checkpoint_seconds;
  e.heads = c.n_head;
  e.d_mlp = c.d_mlp;
  if (!e.eval_length) e.eval_length = e.length;
  return record_write(t->s->out, t->ctx, &command_train, &e, not, &t->inputs) == CLI_GO ? RUN_DONE : RUN_FAILED;
}

/* from the model to the saved model */
static int run_training(training *t, mhk_model *m) {
  mhk_trainer *trainer = NULL;
  run_result result;
  int code;
  if (run_check_memory(t->ctx, &t->r.desc, t->s->force) != CLI_GO || cli_make_folders(t->s->out) != CLI_GO)
    return CLI_FAILED;
  if (t->s->json) json_begin(t, m);
  t->r.started = started;
  t->r.user = t;
  result = run_distill(t->ctx, &t->r, &trainer);
  if (result == RUN_FAILED && strstr(mhk_message(t->ctx), " diverged "))
    cli_error("start again with --fresh and a lower --lr, for example --lr %.2g", t->r.desc.stages[2].lr / 4);
  if (result == RUN_FAILED) return CLI_FAILED;
  code = result == RUN_DONE && (t->eval_text ? measure(t, m) : write_results(t, NULL)) == CLI_GO
             ? run_save(t->ctx, m, t->s->out, "model", t->s->dtype, t->r.json)
             : CLI_FAILED;
  if (code != CLI_OK && cli_stopped()) run_say_stopped(t->s->out, t->r.json);
  return code;
}

static int train(mhk_context *ctx, void *user) {
  training t;
  mhk_model *m;
  char mixers[4096];
  cli_buffer n, threads;
  int code;
  memset(&t, 0, sizeof t);
  t.s = (const settings *)user;
  t.ctx = ctx;
  cli_quiet(t.s->json);
  cli_every(t.s->every);
  cli_catch_signals();
  if (load_text(&t) != CLI_GO || (!t.s->dry_run && hash_inputs(&t) != CLI_GO) || !(m = make_model(&t))) {
    record_inputs_free(&t.inputs);
    return CLI_FAILED;
  }
  fill(&t, m);
  cli_note("%s, %s parameters; learning rate %.2g; %s", run_mixers(mhk_model_config(m), mixers, sizeof mixers),
           cli_count(mhk_config_parameters(mhk_model_config(m)), &n), t.r.desc.stages[2].lr,
           cli_threads(ctx, &threads));
  code = t.s->dry_run ? dry_run(&t) : run_training(&t, m);
  record_inputs_free(&t.inputs);
  return code;
}

static int check(void *user) {
  const settings *s = (const settings *)user;
  const mhk_config c = phi_config(s, BPE_LEAST);
  const mhk_index update = s->update_tokens ? s->update_tokens : s->batch * s->length;
  int i;
  if (s->tokens < update) {
    cli_error("--tokens %lld are fewer than the %lld of one update: raise them, or lower --batch or --length",
              (long long)s->tokens, (long long)update);
    return CLI_USAGE;
  }
  if (s->d_model % c.n_head != 0 || c.head_dim % 2 != 0) {
    cli_error("--d-model %d and %s%d heads: a head needs an even number of features; make --d-model %d, or choose "
              "--heads",
              s->d_model, s->heads ? "" : "by default ", c.n_head, (s->d_model / (2 * c.n_head) + 1) * 2 * c.n_head);
    return CLI_USAGE;
  }
  if (s->arch == PHI && (s->keep.n || s->d_state || s->window || s->recipe)) {
    cli_error("--keep-attention, --d-state, --window and --recipe need --arch phi-mamba: a Phi is attention alone");
    return CLI_USAGE;
  }
  for (i = 0; i < s->keep.n; i++)
    if (!(s->keep.value[i] < s->layers)) {
      cli_error("--keep-attention: there is no layer %.0f; --layers %d are 0 to %d", s->keep.value[i], s->layers,
                s->layers - 1);
      return CLI_USAGE;
    }
  return CLI_GO;
}

const cli_command command_train = {
    .name = "train",
    .summary = "train a Phi, or a Phi-Mamba from scratch, on text",
    .synopsis = "--text FILE... [--arch phi|phi-mamba] [options]",
    .about = "Trains a model on text to predict its next token, and a tokenizer for it unless --tokenizer names one. "
             "The trainer is that of stage 3 of `mohawk distill`, with the text in place of a teacher. Ctrl-C saves; "
             "run the same command again to resume.",
    .example = "mohawk train --text corpus.txt --d-model 256 --layers 8 --vocab-size 4096 --tokens 50M --out teacher",
    CLI_OPTIONS(options),
    CLI_SETTINGS(defaults),
    .check = check,
    .body = train,
};
