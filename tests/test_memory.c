/* Memory: whatever the allocator refuses, and whenever, becomes an error, leaks nothing and crashes
   nothing; equal steps allocate only once; what is counted is what is held. */
#include "models.h"

typedef int (*scenario)(mhk_context *ctx); /* may stop anywhere once the context has failed */

static void prepare(void) { /* files the scenarios read */
  mhk_context *ctx = mhk_create(NULL);
  int kind;
  static const char text[] = "Once there was a mouse. It ate\nthe moon.<|endoftext|>\nThen it slept.\n";
  for (kind = 0; kind < MODEL_KINDS; kind++) {
    char name[20];
    snprintf(name, sizeof name, "m%d", kind);
    mhk_save(model_new(ctx, kind, 3), test_path(name), kind % 2 ? MHK_BF16 : MHK_F32);
  }
  test_write_file(test_path("text.txt"), text, sizeof text - 1);
  CHECK_OK(ctx);
  mhk_destroy(ctx);
}

static int load_folder(mhk_context *ctx) { return mhk_load(ctx, test_path("m4")) != NULL; }
static int load_phi(mhk_context *ctx) { return mhk_load(ctx, test_path("m1")) != NULL; }
static int load_trainable(mhk_context *ctx) {
  return mhk_model_make_trainable(mhk_load(ctx, test_path("m5"))) == MHK_OK;
}
static int load_with_tokenizer(mhk_context *ctx) { return mhk_load(ctx, "examples/tiny") != NULL; }
static int save_folder(mhk_context *ctx) {
  return mhk_save(mhk_load(ctx, test_path("m4")), test_path("out"), MHK_F16) == MHK_OK;
}
static int save_file(mhk_context *ctx) {
  return mhk_save(mhk_load(ctx, test_path("m0")), test_path("out.safetensors"), MHK_F32) == MHK_OK;
}
static int session(mhk_context *ctx) {
  static const int32_t tokens[6] = {1, 2, 3, 4, 5, 6};
  mhk_session_desc d;
  mhk_session *s;
  memset(&d, 0, sizeof d);
  d.capacity = 32;
  s = mhk_session_create(mhk_load(ctx, test_path("m4")), &d);
  return mhk_feed(s, tokens, 6) == MHK_OK && mhk_sample(s, NULL) != -2 && !mhk_failed(ctx);
}
static int speculation(mhk_context *ctx) {
  static const int32_t tokens[6] = {1, 2, 3, 4, 5, 6};
  mhk_model *m = mhk_load(ctx, test_path("m4"));
  mhk_speculation_desc d;
  int i, n = 0;
  d.target = mhk_session_create(m, NULL);
  d.draft = mhk_session_create(m, NULL);
  d.tokens = 3;
  mhk_feed(d.target, tokens, 6);
  mhk_feed(d.draft, tokens, 6);
  {
    mhk_speculation *x = mhk_speculation_create(&d);
    for (i = 0; i < 5; i++) n += mhk_speculate(x, NULL) >= 0;
  }
  return n == 5 && !mhk_failed(ctx);
}
static int text(mhk_context *ctx) {
  mhk_corpus_desc d;
  const char *files[1];
  memset(&d, 0, sizeof d);
  d.n_files = 1;
  d.files = files;
  files[0] = test_path("text.txt");
  d.seed = 3;
  return mhk_corpus_load(ctx, mhk_tokenizer_load(ctx, "examples/tiny"), &d) != NULL;
}
static int forward_backward(mhk_context *ctx) {
  static const int32_t tokens[12] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12},
                       labels[12] = {2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13};
  mhk_tape *t = mhk_tape_create(ctx);
  mhk_model *m = mhk_load(ctx, test_path("m4"));
  mhk_forward_desc f;
  memset(&f, 0, sizeof f);
  f.recompute = 1;
  mhk_model_make_trainable(m);
  return mhk_backward(t, mhk_cross_entropy(t, mhk_forward(t, m, tokens, 2, 6, &f), labels)) == MHK_OK;
}
static mhk_distill_desc small_run(mhk_context *ctx, const char *out) {
  mhk_distill_desc d;
  int32_t tokens[200];
  int i;
  memset(&d, 0, sizeof d);
  model_tokens(tokens, 200, 31, 5);
  d.teacher = mhk_load(ctx, test_path("m0"));
  d.corpus = mhk_corpus_from_tokens(ctx, tokens, 200, -1);
  d.batch = 2;
  d.length = 12;
  d.out = out;
  d.fresh = 1;
  for (i = 0; i < 3; i++) d.stages[i].tokens = 24;
  return d;
}
static int training(mhk_context *ctx) { /* one update of each stage */
  mhk_distill_desc d = small_run(ctx, NULL);
  mhk_trainer *tr = mhk_distill(ctx, &d);
  while (mhk_train_step(tr)) {}
  return tr && !mhk_failed(ctx);
}
static int training_by_layer(mhk_context *ctx) {
  mhk_distill_desc d = small_run(ctx, test_path("by_layer"));
  mhk_trainer *tr;
  d.share = d.layer_by_layer = 1;
  d.stages[2].trains = MHK_TRAIN_MIXERS;
  tr = mhk_distill(ctx, &d);
  while (mhk_train_step(tr)) {}
  return tr && !mhk_failed(ctx);
}
static int training_with_checkpoints(mhk_context *ctx) {
  mhk_distill_desc d = small_run(ctx, test_path("run"));
  mhk_trainer *tr = mhk_distill(ctx, &d);
  while (mhk_train_step(tr)) mhk_checkpoint(tr);
  d.fresh = 0;
  mhk_trainer_destroy(tr);
  tr = mhk_distill(ctx, &d);
  return tr && !mhk_failed(ctx);
}
static int evaluation(mhk_context *ctx) {
  mhk_evaluation e;
  int32_t tokens[100];
  model_tokens(tokens, 100, 31, 5);
  mhk_evaluate_desc d;
  memset(&d, 0, sizeof d);
  d.teacher = mhk_load(ctx, test_path("m0"));
  d.corpus = mhk_corpus_from_tokens(ctx, tokens, 100, -1);
  d.length = 20;
  return mhk_evaluate(mhk_load(ctx, test_path("m4")), &d, &e) == MHK_OK;
}
static int sampled_text(mhk_context *ctx) {
  return mhk_corpus_sample(mhk_load(ctx, test_path("m2")), 40, 3, NULL, NULL) != NULL;
}

/* Runs a scenario again and again, and each time one more allocation succeeds before one fails. */
static void fail_everywhere(const char *name, scenario run) {
  long n, step = 1, total = 0, failures = 0;
  for (n = 1;; n += step) {
    test_memory memory;
    mhk_context *ctx = test_context(&memory, n, 0);
    const int done = ctx && run(ctx);
    if (ctx) {
      if (memory.allocations >= n) {
        failures++;
        CHECK(!done, "%s: allocation %ld failed and nobody noticed", name, n);
        CHECK(mhk_error(ctx) == MHK_ERROR_MEMORY, "%s: allocation %ld failed with error %d: %s", name, n,
              (int)mhk_error(ctx), mhk_message(ctx));
        CHECK(strstr(mhk_message(ctx), "memory") != NULL, "%s: \"%s\" does not speak of memory", name,
              mhk_message(ctx));
      } else
        CHECK(done && !mhk_failed(ctx), "%s fails with all the memory it wants: %s", name, mhk_message(ctx));
      CHECK(mhk_memory_in_use(ctx) == memory.bytes, "%s: the context counts %lld bytes, it holds %lld", name,
            (long long)mhk_memory_in_use(ctx), (long long)memory.bytes);
    } else
      CHECK(memory.allocations >= n, "%s: no context", name);
    mhk_destroy(ctx);
    CHECK(memory.blocks == 0 && memory.bytes == 0, "%s: after failure %ld %lld bytes in %lld blocks are left", name, n,
          (long long)memory.bytes, (long long)memory.blocks);
    CHECK(!memory.wrong_size, "%s: a block was released with another size", name);
    total = memory.allocations;
    if (total < n) break;
    if (test_state.failures > 20) break;
#if defined(__SANITIZE_ADDRESS__)
    step = 1 + n / 12; /* every tensor is a block of its own there */
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
    step = 1 + n / 12;
#endif
#endif
  }
  if (test_state.verbose) printf("  %-28s %ld allocations, %ld failures tried\n", name, total, failures);
  CHECK(failures > 0, "%s: nothing failed", name);
}

TEST(failing_loads) {
  prepare();
  fail_everywhere("load a hybrid", load_folder);
  fail_everywhere("load a phi", load_phi);
  fail_everywhere("load to train", load_trainable);
  fail_everywhere("load with tokenizer", load_with_tokenizer);
}
TEST(failing_saves) {
  fail_everywhere("save a folder", save_folder);
  fail_everywhere("save a file", save_file);
}
TEST(failing_sessions) {
  fail_everywhere("session", session);
  fail_everywhere("speculation", speculation);
  fail_everywhere("evaluation", evaluation);
  fail_everywhere("sampled text", sampled_text);
}
TEST(failing_text) { fail_everywhere("text", text); }
TEST(failing_training) {
  fail_everywhere("forward and backward", forward_backward);
  fail_everywhere("training", training);
  fail_everywhere("training layer by layer", training_by_layer);
  fail_everywhere("training with checkpoints", training_with_checkpoints);
}

TEST(going_on_after_a_failure) { /* the error cleared and memory back, the same context works */
  test_memory memory;
  mhk_context *ctx;
  long n;
  for (n = 2; n < 12; n++) {
    ctx = test_context(&memory, n, 0);
    if (!ctx || mhk_failed(ctx)) {
      mhk_destroy(ctx);
      continue;
    }
    session(ctx);
    if (mhk_failed(ctx)) {
      mhk_clear_error(ctx);
      memory.fail_at = 0;
      CHECK(session(ctx), "after failure %ld: %s", n, mhk_message(ctx));
    }
    mhk_destroy(ctx);
    CHECK(memory.blocks == 0, "%lld blocks are left", (long long)memory.blocks);
  }
}

#if defined(__SANITIZE_ADDRESS__)
#define ONE_BLOCK_EACH 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ONE_BLOCK_EACH 1
#endif
#endif
#ifndef ONE_BLOCK_EACH /* with the address sanitizer arenas give their blocks back, so that it sees stale pointers */
TEST(equal_steps_allocate_once) {
  test_memory memory;
  mhk_context *ctx = test_context(&memory, 0, 2);
  mhk_distill_desc d = small_run(ctx, NULL);
  mhk_trainer *tr;
  int stage, i;
  for (stage = 0; stage < 3; stage++) d.stages[stage].tokens = 24 * 4;
  tr = mhk_distill(ctx, &d);
  for (stage = 1; stage <= 3; stage++)
    for (i = 0; i < 4; i++) {
      const long before = memory.allocations;
      mhk_train_step(tr);
      if (i >= 2)
        CHECK(memory.allocations == before, "step %d of stage %d allocates %ld times", i + 1, stage,
              memory.allocations - before);
    }
  CHECK_OK(ctx);
  mhk_destroy(ctx);
  CHECK(memory.blocks == 0, "%lld blocks are left", (long long)memory.blocks);
}

TEST(sessions_do_not_grow) {
  int kind;
  for (kind = 0; kind < MODEL_KINDS; kind++) {
    test_memory memory;
    mhk_context *ctx = test_context(&memory, 0, 2);
    char name[20];
    mhk_session_desc d;
    mhk_session *s;
    mhk_sampling sampling;
    int32_t token = 3;
    long before;
    int i;
    memset(&d, 0, sizeof d);
    memset(&sampling, 0, sizeof sampling);
    d.capacity = 300;
    snprintf(name, sizeof name, "m%d", kind);
    s = mhk_session_create(mhk_load(ctx, test_path(name)), &d);
    mhk_feed(s, &token, 1);
    mhk_sample_batch(s, &sampling, &token);
    mhk_sample_batch(s, &sampling, &token);
    before = memory.allocations;
    for (i = 0; i < 200; i++) mhk_sample_batch(s, &sampling, &token);
    CHECK(memory.allocations == before, "%s: 200 tokens took %ld allocations", model_kind_name(kind),
          memory.allocations - before);
    CHECK_OK(ctx);
    mhk_destroy(ctx);
  }
}
#endif

TEST(objects_give_their_memory_back) {
  test_memory memory;
  mhk_context *ctx = test_context(&memory, 0, 2);
  int round;
  size_t before = 0;
  for (round = 0; round < 4; round++) {
    mhk_model *m = mhk_load(ctx, test_path("m4"));
    mhk_tokenizer *k = mhk_tokenizer_load(ctx, "examples/tiny");
    mhk_session_desc d;
    mhk_session *s;
    mhk_tape *t = mhk_tape_create(ctx);
    mhk_file *f = mhk_file_open(ctx, test_path("m4"));
    int32_t tokens[5] = {1, 2, 3, 4, 5};
    mhk_corpus *x = mhk_corpus_from_tokens(ctx, tokens, 5, -1);
    memset(&d, 0, sizeof d);
    d.capacity = 16;
    s = mhk_session_create(m, &d);
    mhk_feed(s, tokens, 5);
    mhk_forward(t, m, tokens, 1, 5, NULL);
    CHECK_OK(ctx);
    mhk_corpus_destroy(x);
    mhk_file_close(f);
    mhk_tape_destroy(t);
    mhk_session_destroy(s);
    mhk_tokenizer_destroy(k);
    mhk_model_destroy(m);
    if (round == 1) before = memory.bytes;
    if (round > 1)
      CHECK(memory.bytes == before, "round %d leaves %lld bytes more", round,
            (long long)memory.bytes - (long long)before);
  }
  mhk_destroy(ctx);
  CHECK(memory.blocks == 0 && memory.bytes == 0, "%lld blocks are left", (long long)memory.blocks);
}

static size_t peak_seen;
static test_memory peak_memory;
static void *peak_alloc(void *user, size_t bytes) {
  void *p = test_alloc(user, bytes);
  if (peak_memory.bytes > peak_seen) peak_seen = peak_memory.bytes;
  return p;
}
/* way 0: as usual; 1: sharing, mixers only, recomputed; 2: and layer by layer, stages 1 and 2; 3:
   with targets of int8 */
static size_t peak_of(int way) {
  mhk_context_desc d;
  mhk_context *ctx;
  mhk_distill_desc run;
  mhk_trainer *tr;
  double estimate, took;
  size_t before;
  int i;
  memset(&d, 0, sizeof d);
  memset(&peak_memory, 0, sizeof peak_memory);
  peak_seen = 0;
  d.allocator.alloc = peak_alloc;
  d.allocator.release = test_release;
  d.allocator.user = &peak_memory;
  ctx = mhk_create(&d);
  run = small_run(ctx, NULL);
  run.teacher = mhk_load(ctx, "examples/tiny");
  run.batch = 4;
  run.length = 64;
  for (i = 0; i < 3; i++) run.stages[i].tokens = way >= 2 && i == 2 ? 0 : 4 * 64;
  run.share = run.recompute = way > 0;
  run.stages[2].trains = way > 0 ? MHK_TRAIN_MIXERS : MHK_TRAIN_DEFAULT;
  run.layer_by_layer = way >= 2;
  run.teacher_type = way == 3 ? MHK_Q8 : (mhk_dtype)0;
  CHECK_OK(ctx);
  before = mhk_memory_in_use(ctx);
  estimate = mhk_distill_bytes(&run);
  CHECK(mhk_distill_stream_bytes(&run) == (way >= 2 ? 4. * 64 * 128 * sizeof(mhk_real) : 0),
        "way %d: hidden states of %.0f bytes", way, mhk_distill_stream_bytes(&run));
  tr = mhk_distill(ctx, &run);
  while (mhk_train_step(tr)) {}
  CHECK_OK(ctx);
  CHECK(mhk_memory_peak(ctx) == peak_seen, "the context says its peak was %lld bytes, it was %lld",
        (long long)mhk_memory_peak(ctx), (long long)peak_seen);
  CHECK(mhk_memory_in_use(ctx) == peak_memory.bytes, "in use");
  took = (double)(peak_seen - before);
#ifndef ONE_BLOCK_EACH
  CHECK(estimate >= took, "way %d was estimated at %.2f MB and took %.2f", way, estimate * 1e-6, took * 1e-6);
#endif
  CHECK(estimate <= 4 * took, "way %d was estimated at %.2f MB and took only %.2f", way, estimate * 1e-6, took * 1e-6);
  mhk_destroy(ctx);
  return (size_t)took;
}

TEST(peak_and_estimate) {
  const size_t usual = peak_of(0), mixers = peak_of(1), layers = peak_of(2);
  peak_of(3);
  CHECK(mixers < usual && layers < mixers, "%lld bytes as usual, %lld for mixers, %lld layer by layer",
        (long long)usual, (long long)mixers, (long long)layers);
}

TEST(a_model_costs_its_file) { /* loading maps: almost nothing is allocated */
  test_memory memory;
  mhk_context *ctx = test_context(&memory, 0, 2);
  mhk_config c;
  const size_t before = memory.bytes;
  mhk_model *m = mhk_load(ctx, test_path("m4"));
  CHECK(m != NULL, "%s", mhk_message(ctx));
  CHECK(memory.bytes - before < 300000, "a small model took %lld bytes", (long long)(memory.bytes - before));
  mhk_config_preset(ctx, "phi-mamba-1.5b", &c);
  CHECK(!(mhk_config_state_bytes(&c, 10) < mhk_config_state_bytes(&c, 100000)),
        "the state of a state-space model grows");
  CHECK(fabs(mhk_config_state_bytes(&c, 10) - 24 * (32. * 64 * 64 + 3 * 2048. * 3) * sizeof(mhk_real)) <
            0.1 * mhk_config_state_bytes(&c, 10),
        "a phi-mamba-1.5b sequence has %.0f bytes of state", mhk_config_state_bytes(&c, 10));
  CHECK_OK(ctx);
  mhk_destroy(ctx);
}

int main(int argc, char **argv) {
  test_begin(argc, argv);
  RUN(failing_loads);
  RUN(failing_saves);
  RUN(failing_sessions);
  RUN(failing_text);
  RUN(failing_training);
  RUN(going_on_after_a_failure);
#ifndef ONE_BLOCK_EACH
  RUN(equal_steps_allocate_once);
  RUN(sessions_do_not_grow);
#endif
  RUN(objects_give_their_memory_back);
  RUN(peak_and_estimate);
  RUN(a_model_costs_its_file);
  return test_end();
}
