/* Errors are sentences that name the thing; functions given NULL, or whose context has failed, do
   nothing. */
#include "models.h"

static mhk_context *ctx;
static mhk_tape *tape;

static void start(void) {
  ctx = mhk_create(NULL);
  tape = mhk_tape_create(ctx);
}
static void finish(void) {
  CHECK_OK(ctx);
  mhk_destroy(ctx);
}
static mhk_tensor *zeros(int rank, mhk_index a, mhk_index b, mhk_index c, mhk_index d) {
  mhk_index shape[4];
  shape[0] = a, shape[1] = b, shape[2] = c, shape[3] = d;
  return mhk_tensor_new(tape, rank, shape, NULL);
}

static char logged[4096];
static int log_lines;
static void log_to(void *user, mhk_log_level level, const char *message) {
  (void)user;
  if (level == MHK_LOG_ERROR) log_lines++;
  snprintf(logged, sizeof logged, "%s", message);
}

TEST(first_error_stays) {
  mhk_context_desc d;
  memset(&d, 0, sizeof d);
  d.log = log_to;
  log_lines = 0;
  ctx = mhk_create(&d);
  CHECK(!mhk_failed(ctx) && mhk_error(ctx) == MHK_OK && !strcmp(mhk_message(ctx), ""), "a new context has an error: %s",
        mhk_message(ctx));
  CHECK(mhk_fail(ctx, MHK_ERROR_STATE, "first %d", 1) == MHK_ERROR_STATE, "mhk_fail returns its code");
  mhk_fail(ctx, MHK_ERROR_FILE, "second");
  CHECK(mhk_failed(ctx) && mhk_error(ctx) == MHK_ERROR_STATE && !strcmp(mhk_message(ctx), "first 1"),
        "the first error was replaced by: %s", mhk_message(ctx));
  CHECK(log_lines == 1 && !strcmp(logged, "first 1"), "%d lines in the log, the last is %s", log_lines, logged);
  mhk_clear_error(ctx);
  CHECK(!mhk_failed(ctx) && !strcmp(mhk_message(ctx), ""), "the error was not cleared");
  mhk_destroy(ctx);
}

TEST(contexts) {
  mhk_context_desc d;
  CHECK(!strcmp(mhk_version(), MHK_VERSION), "%s is not %s", mhk_version(), MHK_VERSION);
  memset(&d, 0, sizeof d);
  d.parallel_workers = 0;
  d.parallel_for = (mhk_parallel_fn)0;
  d.threads = -7;
  ctx = mhk_create(&d);
  CHECK(ctx && mhk_failed(ctx), "-7 threads");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "-7");
  mhk_destroy(ctx);
  d.threads = 0;
  d.isa = MHK_ISA_BEST;
  d.allocator.alloc = test_alloc; /* without release */
  ctx = mhk_create(&d);
  CHECK(ctx == NULL || mhk_failed(ctx), "half an allocator was taken");
  mhk_destroy(ctx);
  ctx = mhk_create(NULL);
  CHECK(mhk_threads(ctx) == 1, "%d threads by default", mhk_threads(ctx));
  mhk_set_threads(ctx, 0);
  CHECK(mhk_threads(ctx) == 1, "%d threads", mhk_threads(ctx));
  mhk_set_threads(ctx, -3);
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "-3");
  CHECK(strlen(mhk_isa_name(ctx)) > 3, "instruction set %s", mhk_isa_name(ctx));
  mhk_destroy(ctx);
}

/* A context has what was asked for, or a sentence that names it and what there is. Asked by the
   description or by the environment, which comes first. No code of a missing set has run: that
   would have ended this program. */
static void ask(int isa, int unit, int by_environment) {
  static const char *const isas[] = {"", "scalar", "avx2", "avx512", "neon", "wasm"};
  static const char *const units[] = {"", "plain", "avx512", "amx"};
  const char *name = isa <= MHK_ISA_WASM ? isas[isa] : "best";
  const char *unit_name = unit <= MHK_BF16_AMX ? units[unit] : "best";
  char message[200];
  mhk_context_desc d;
  memset(&d, 0, sizeof d);
  test_environment("MHK_ISA", by_environment ? name : NULL);
  test_environment("MHK_BF16_UNIT", by_environment ? unit_name : NULL);
  d.isa = (mhk_isa)(by_environment ? MHK_ISA_SCALAR : isa);
  d.bf16_unit = (mhk_bf16_unit)(by_environment ? MHK_BF16_PLAIN : unit);
  ctx = mhk_create(&d);
  REQUIRE(ctx != NULL, "no context");
  if (!mhk_failed(ctx)) {
    CHECK(!name[0] || !strcmp(mhk_isa_name(ctx), name), "%s was asked for, %s came", name, mhk_isa_name(ctx));
    CHECK(!unit_name[0] || !strcmp(mhk_bf16_name(ctx), unit_name), "%s was asked for, %s came", unit_name,
          mhk_bf16_name(ctx));
  } else {
    if (name[0] && strcmp(mhk_isa_name(ctx), name) != 0)
      snprintf(message, sizeof message, "the instruction set %s is not available here: the best one is ", name);
    else
      snprintf(message, sizeof message, "the bfloat16 unit %s is not available here with the instruction set %s: the ",
               unit_name, mhk_isa_name(ctx));
    CHECK(isa > MHK_ISA_SCALAR || unit > MHK_BF16_PLAIN, "%s", mhk_message(ctx));
    CHECK_FAILS(ctx, MHK_ERROR_UNSUPPORTED, message);
    CHECK(!strcmp(mhk_bf16_name(ctx), "plain"), "after the error the unit is %s", mhk_bf16_name(ctx));
  }
  mhk_destroy(ctx);
}
TEST(asking_for_what_the_processor_lacks) {
  static const char *const variables[] = {"MHK_ISA", "MHK_BF16_UNIT"};
  char saved[2][40];
  int isa, unit, i;
  for (i = 0; i < 2; i++) {
    const char *value = getenv(variables[i]);
    snprintf(saved[i], sizeof saved[i], "%s", value ? value : "");
  }
  for (isa = 0; isa <= MHK_ISA_WASM; isa++)
    for (unit = 0; unit <= MHK_BF16_AMX; unit++)
      for (i = 0; i < 2; i++) ask(isa, unit, i);
  ask(77, 0, 0);
  ask(0, 77, 0);
  for (i = 0; i < 2; i++) { /* words that name nothing */
    test_environment("MHK_ISA", i ? "scalar" : "sse2");
    test_environment("MHK_BF16_UNIT", i ? "vnni" : "plain");
    ctx = mhk_create(NULL);
    CHECK_FAILS(
        ctx, MHK_ERROR_ARGUMENT,
        i ? "MHK_BF16_UNIT is \"vnni\": it must be plain, avx512 or amx" : "MHK_ISA is \"sse2\": it must be scalar");
    mhk_destroy(ctx);
  }
  for (i = 0; i < 2; i++) test_environment(variables[i], saved[i][0] ? saved[i] : NULL);
}

TEST(ops_name_the_shapes) {
  const int32_t ids[4] = {0, 1, 9, 2};
  mhk_tensor *a, *b;
  start();
  a = zeros(2, 3, 5, 1, 1), b = zeros(2, 3, 4, 1, 1);
  CHECK(mhk_add(tape, a, b) == NULL, "3x5 + 3x4");
  CHECK_FAILS(ctx, MHK_ERROR_SHAPE, "(3,5)");
  CHECK(mhk_linear(tape, a, b, NULL) == NULL, "linear");
  CHECK_FAILS(ctx, MHK_ERROR_SHAPE, "(3,4)");
  CHECK(mhk_matmul(tape, a, b, 0) == NULL, "matmul");
  CHECK_FAILS(ctx, MHK_ERROR_SHAPE, "(3,5)");
  CHECK(mhk_layer_norm(tape, a, zeros(1, 4, 1, 1, 1), NULL, 1e-5) == NULL, "layer_norm");
  CHECK(mhk_failed(ctx), "layer_norm");
  mhk_clear_error(ctx);
  CHECK(mhk_reshape(tape, a, 1, &a->shape[1]) == NULL, "reshape of 15 numbers to 5");
  CHECK_FAILS(ctx, MHK_ERROR_SHAPE, "15");
  CHECK(mhk_columns(tape, a, 3, 4) == NULL, "columns 3 to 7 of 5");
  CHECK(mhk_failed(ctx), "columns");
  mhk_clear_error(ctx);
  CHECK(mhk_embedding(tape, a, ids, 2, 2) == NULL, "token 9 of 3");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "9");
  CHECK(mhk_cross_entropy(tape, b, ids) == NULL, "label 9 of 4");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "9");
  CHECK(mhk_attention(tape, zeros(4, 1, 3, 3, 4), zeros(4, 1, 3, 2, 4), zeros(4, 1, 3, 2, 4), NULL) == NULL,
        "3 heads in 2 groups");
  CHECK(mhk_failed(ctx), "attention");
  mhk_clear_error(ctx);
  CHECK(mhk_ssd(tape, zeros(4, 1, 3, 3, 4), zeros(3, 1, 3, 3, 1), zeros(4, 1, 3, 2, 4), zeros(4, 1, 3, 2, 4), NULL) ==
            NULL,
        "3 heads in 2 groups");
  CHECK(mhk_failed(ctx), "ssd");
  mhk_clear_error(ctx);
  CHECK(mhk_rotary(tape, zeros(4, 1, 3, 2, 4), 3, 10000, NULL) == NULL, "3 rotary features");
  CHECK(mhk_failed(ctx), "rotary");
  mhk_clear_error(ctx);
  CHECK(mhk_rotary(tape, zeros(4, 1, 3, 2, 4), 6, 10000, NULL) == NULL, "6 rotary features of 4");
  CHECK(mhk_failed(ctx), "rotary");
  mhk_clear_error(ctx);
  CHECK(mhk_conv1d(tape, zeros(3, 1, 3, 5, 1), zeros(3, 4, 1, 4, 1), NULL, NULL) == NULL,
        "conv1d of 5 channels with 4");
  CHECK(mhk_failed(ctx), "conv1d");
  mhk_clear_error(ctx);
  CHECK(mhk_backward(tape, a) != MHK_OK, "backward from 15 numbers");
  CHECK(mhk_failed(ctx), "backward");
  mhk_clear_error(ctx);
  CHECK(!mhk_parameter(ctx, "p", 2, NULL, NULL), "a parameter without a shape");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "needs a shape");
  CHECK(mhk_backward_from(tape, a, NULL) != MHK_OK, "backward without a cotangent");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "its cotangent is missing");
  {
    const mhk_custom_desc op = {2, NULL, 1, &a->count, NULL, NULL, NULL, 0};
    CHECK(mhk_custom(tape, &op) == NULL, "an op without forward");
  }
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "forward");
  CHECK(!mhk_cross_entropy(tape, a, NULL), "no labels");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "labels");
  CHECK(!mhk_embedding(tape, a, NULL, 2, 2), "no tokens");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "NULL");
  CHECK(!mhk_embedding(tape, a, ids, PTRDIFF_MAX, 2), "2^64 tokens");
  CHECK_FAILS(ctx, MHK_ERROR_MEMORY, "does not fit");
  CHECK(!mhk_rows(tape, a, 1, PTRDIFF_MAX), "as many rows as there can be");
  CHECK_FAILS(ctx, MHK_ERROR_SHAPE, "rows");
  {
    const mhk_index huge[3] = {(mhk_index)1 << 40, (mhk_index)1 << 40, 7}, negative[1] = {-3};
    CHECK(mhk_tensor_new(tape, 3, huge, NULL) == NULL && mhk_error(ctx) == MHK_ERROR_MEMORY, "2^80 numbers: %s",
          mhk_message(ctx));
    mhk_clear_error(ctx);
    CHECK(mhk_tensor_new(tape, 1, negative, NULL) == NULL && mhk_failed(ctx), "-3 numbers");
    mhk_clear_error(ctx);
    CHECK(mhk_tensor_new(tape, 6, huge, NULL) == NULL && mhk_failed(ctx), "rank 6");
    mhk_clear_error(ctx);
  }
  finish();
}

TEST(attention_names_what_is_wrong_with_its_description) {
  start();
  CHECK(mhk_attention(tape, zeros(4, 1, 3, 2, 4), zeros(4, 1, 3, 2, 4), zeros(4, 1, 3, 1, 4), NULL) == NULL,
        "values of 1 head for keys of 2");
  CHECK_FAILS(ctx, MHK_ERROR_SHAPE, "values (B,T,G,P)");
  for (int wrong = 0; wrong < 3; wrong++) {
    const int32_t windows[2] = {5, wrong == 0 ? -2 : 0};
    const mhk_attention_desc d = {NULL, windows, zeros(1, wrong == 1 ? 3 : 2, 1, 1, 1),
                                  wrong == 2 ? zeros(3, 1, 2, 3, 1) : zeros(3, 1, 3, 2, 1)};
    CHECK(mhk_attention_matrix(tape, zeros(4, 1, 3, 2, 4), zeros(4, 1, 3, 2, 4), &d) == NULL, "wrong %d", wrong);
    CHECK_FAILS(ctx, wrong ? MHK_ERROR_SHAPE : MHK_ERROR_ARGUMENT,
                wrong == 0   ? "the window of head 1 is -2"
                : wrong == 1 ? "the scale (H)"
                             : "the rest (B,T,H)");
  }
  finish();
}

TEST(orientation_names_what_is_wrong_with_its_description) {
  static const char *const wanted[5] = {"the window of head 1 is -2", "the scale (H)", "the rest (B,T,H)",
                                        "row_gain must be (B,T,H)", "column_gain must be (B,T,H)"};
  start();
  for (int wrong = 0; wrong < 5; wrong++) {
    const int32_t windows[2] = {5, wrong == 0 ? -2 : 0};
    mhk_orientation_desc d;
    memset(&d, 0, sizeof d);
    d.q = d.k = d.Bm = d.Cm = zeros(4, 1, 3, 2, 4);
    d.log_a = zeros(3, 1, 3, 2, 1);
    d.windows = windows;
    d.scale = zeros(1, wrong == 1 ? 3 : 2, 1, 1, 1);
    d.rest = wrong == 2 ? zeros(3, 1, 2, 3, 1) : d.log_a;
    d.row_gain = wrong == 3 ? zeros(3, 1, 3, 1, 1) : d.log_a;
    d.column_gain = wrong == 4 ? zeros(2, 3, 2, 1, 1) : NULL;
    CHECK(mhk_matrix_orientation(tape, &d) == NULL, "wrong %d", wrong);
    CHECK_FAILS(ctx, wrong ? MHK_ERROR_SHAPE : MHK_ERROR_ARGUMENT, wanted[wrong]);
  }
  finish();
}

static mhk_config changed(const char *preset) {
  mhk_config c;
  CHECK(mhk_config_preset(ctx, preset, &c) == MHK_OK, "%s: %s", preset, mhk_message(ctx));
  return c;
}

TEST(configurations) {
  mhk_config c;
  static const char *const presets[] = {"phi-1",       "phi-1.5",    "phi-2", "phi-mamba-1.5b", "hybrid-phi-mamba-1.5b",
                                        "mamba2-130m", "mamba2-1.3b"};
  static const double parameters[] = {1.418e9, 1.418e9, 2.780e9, 0, 0, 0.1289e9, 1.344e9};
  size_t i;
  start();
  for (i = 0; i < sizeof presets / sizeof *presets; i++) {
    char text[20000];
    mhk_config back;
    size_t n;
    c = changed(presets[i]);
    CHECK(mhk_config_check(ctx, &c) == MHK_OK, "%s: %s", presets[i], mhk_message(ctx));
    if (parameters[i] > 0)
      CHECK(fabs(mhk_config_parameters(&c) / parameters[i] - 1) < 0.002, "%s has %.0f parameters", presets[i],
            mhk_config_parameters(&c));
    n = mhk_config_format(&c, NULL, 0);
    CHECK(n > 100 && n < sizeof text && mhk_config_format(&c, text, sizeof text) == n && strlen(text) == n,
          "%s takes %lld bytes", presets[i], (long long)n);
    memset(&back, 0, sizeof back);
    CHECK(mhk_config_parse(ctx, text, n, presets[i], &back) == MHK_OK, "%s: %s", presets[i], mhk_message(ctx));
    CHECK(back.arch == c.arch && back.n_layer == c.n_layer && back.d_model == c.d_model &&
              back.vocab_size == c.vocab_size && back.d_mlp == c.d_mlp && back.n_head == c.n_head &&
              back.n_kv_head == c.n_kv_head && back.head_dim == c.head_dim && back.rotary_dim == c.rotary_dim &&
              back.rope_theta == c.rope_theta && back.ssm_heads == c.ssm_heads && back.ssm_groups == c.ssm_groups &&
              back.ssm_head_dim == c.ssm_head_dim && back.d_state == c.d_state && back.d_conv == c.d_conv &&
              back.conv_silu == c.conv_silu && back.norm_eps == c.norm_eps && back.tie_embeddings == c.tie_embeddings &&
              !memcmp(back.mixer, c.mixer, (size_t)c.n_layer),
          "%s does not survive its config.json: %s", presets[i], text);
  }
  CHECK(mhk_config_preset(ctx, "phi-99", &c) != MHK_OK, "phi-99");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "phi-99");
  c = changed("phi-1.5");
  c.head_dim = 12, c.n_head = 4, c.n_kv_head = 4, c.d_model = 48, c.rotary_dim = 3;
  CHECK(mhk_config_check(ctx, &c) == MHK_ERROR_CONFIG, "3 rotary features");
  CHECK(strstr(mhk_message(ctx), "3 rotary features") && strstr(mhk_message(ctx), "12"), "%s", mhk_message(ctx));
  mhk_clear_error(ctx);
  c = changed("phi-1.5"), c.n_kv_head = 5;
  mhk_config_check(ctx, &c);
  CHECK_FAILS(ctx, MHK_ERROR_CONFIG, "5");
  c = changed("phi-1.5"), c.n_layer = 0;
  mhk_config_check(ctx, &c);
  CHECK_FAILS(ctx, MHK_ERROR_CONFIG, "layer");
  c = changed("phi-1.5"), c.n_layer = 1000;
  mhk_config_check(ctx, &c);
  CHECK_FAILS(ctx, MHK_ERROR_CONFIG, "1000");
  c = changed("phi-mamba-1.5b"), c.ssm_groups = 7;
  mhk_config_check(ctx, &c);
  CHECK_FAILS(ctx, MHK_ERROR_CONFIG, "7");
  c = changed("mamba2-130m"), c.d_model = -1;
  mhk_config_check(ctx, &c);
  CHECK_FAILS(ctx, MHK_ERROR_CONFIG, "-1");
  c = changed("mamba2-130m"), c.mixer[3] = 99;
  mhk_config_check(ctx, &c);
  CHECK(mhk_error(ctx) == MHK_ERROR_CONFIG || mhk_error(ctx) == MHK_ERROR_UNSUPPORTED, "mixer 99: %s",
        mhk_message(ctx));
  mhk_clear_error(ctx);
  finish();
}

static void parse_fails(const char *json, mhk_result code, const char *text) {
  mhk_config c;
  if (mhk_config_parse(ctx, json, strlen(json), "that.json", &c) == MHK_OK)
    CHECK(0, "taken: %s", json);
  else if (code == MHK_OK)
    CHECK(strstr(mhk_message(ctx), text) != NULL, "\"%s\" does not contain %s", mhk_message(ctx), text);
  else
    CHECK(mhk_error(ctx) == code && strstr(mhk_message(ctx), text), "error %d, \"%s\" does not contain %s",
          (int)mhk_error(ctx), mhk_message(ctx), text);
  mhk_clear_error(ctx);
}

TEST(configurations_as_text) {
  start();
  parse_fails("", MHK_ERROR_FORMAT, "that.json");
  parse_fails("{", MHK_ERROR_FORMAT, "that.json");
  parse_fails("[1,2]", MHK_OK, "that.json");
  parse_fails("{\"model_type\": \"phi\",}", MHK_ERROR_FORMAT, "that.json");
  parse_fails("{\"model_type\": \"gemma\"}", MHK_OK, "gemma");
  parse_fails("{\"model_type\": \"phi\"}", MHK_OK, "num_hidden_layers");
  parse_fails("{\"model_type\": \"phi\", \"num_hidden_layers\": 2, \"hidden_size\": \"many\"}", MHK_OK, "hidden_size");
  parse_fails("{\"model_type\": \"phi\", \"num_hidden_layers\": 2, \"hidden_size\": 1e99}", MHK_OK, "hidden_size");
  finish();
}

static void replace(char *text, const char *from, const char *to) {
  char *at = strstr(text, from);
  if (at && strlen(from) == strlen(to)) memcpy(at, to, strlen(to));
}

TEST(models_that_do_not_fit) {
  char *config, path[600];
  size_t n;
  mhk_model *m;
  start();
  CHECK(mhk_load(ctx, "build/test/there/is/no/such/model") == NULL, "loaded nothing");
  CHECK_FAILS(ctx, MHK_ERROR_FILE, "build/test/there/is/no/such/model");
  CHECK(mhk_load(ctx, "tests") == NULL, "loaded the tests");
  CHECK(mhk_failed(ctx) && strstr(mhk_message(ctx), "tests"), "%s", mhk_message(ctx));
  mhk_clear_error(ctx);
  m = model_new(ctx, PHI, 3);
  mhk_save(m, test_path("bad"), MHK_F32);
  REQUIRE_OK(ctx);
  snprintf(path, sizeof path, "%s/config.json", test_path("bad"));
  config = test_read_file(path, &n);
  REQUIRE(config != NULL, "no %s", path);
  replace(config, "\"intermediate_size\": 96", "\"intermediate_size\": 80");
  test_write_file(path, config, n);
  CHECK(mhk_load(ctx, test_path("bad")) == NULL, "loaded with the wrong width");
  CHECK(mhk_error(ctx) == MHK_ERROR_CONFIG || mhk_error(ctx) == MHK_ERROR_FORMAT, "error %d", (int)mhk_error(ctx));
  CHECK(strstr(mhk_message(ctx), "mlp.fc1.weight") && strstr(mhk_message(ctx), "(96,24)") &&
            strstr(mhk_message(ctx), "(80,24)"),
        "the message does not say what: %s", mhk_message(ctx));
  mhk_clear_error(ctx);
  replace(config, "\"intermediate_size\": 80", "\"intermediate_size\": 96");
  replace(config, "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
  test_write_file(path, config, n);
  CHECK(mhk_load(ctx, test_path("bad")) == NULL && strstr(mhk_message(ctx), "model.layers.2."),
        "a layer is missing: %s", mhk_message(ctx));
  mhk_clear_error(ctx);
  replace(config, "\"num_hidden_layers\": 3", "\"num_hidden_layers\": 1");
  test_write_file(path, config, n);
  CHECK(mhk_load(ctx, test_path("bad")) == NULL && strstr(mhk_message(ctx), "model.layers.1."), "a layer too many: %s",
        mhk_message(ctx));
  mhk_clear_error(ctx);
  free(config);
  CHECK(mhk_save(m, "build/test/there/is/no/folder", MHK_F32) == MHK_ERROR_FILE, "saved nowhere");
  CHECK_FAILS(ctx, MHK_ERROR_FILE, "build/test/there/is/no/folder");
  CHECK(mhk_save(m, test_path("x"), MHK_I8) != MHK_OK, "saved as bytes");
  CHECK(mhk_failed(ctx), "no error");
  mhk_clear_error(ctx);
  finish();
}

TEST(damaged_files) { /* cut anywhere, or with bytes changed anywhere: an error or a model, never a crash */
  char *data;
  size_t n, cut, header;
  uint64_t seed = 5;
  int i, loaded = 0;
  start();
  mhk_save(model_new(ctx, HYBRID, 3), test_path("whole.safetensors"), MHK_BF16);
  data = test_read_file(test_path("whole.safetensors"), &n);
  REQUIRE(data != NULL, "%s", mhk_message(ctx));
  header = 8 + (size_t)((unsigned char)data[0] | (unsigned char)data[1] << 8 | (unsigned char)data[2] << 16);
  for (i = 0; i < 60; i++) {
    cut = i < 30 ? (size_t)i * header / 30 : header + (size_t)(i - 30) * (n - header - 1) / 30;
    test_write_file(test_path("cut.safetensors"), data, cut);
    CHECK(mhk_load(ctx, test_path("cut.safetensors")) == NULL && mhk_failed(ctx) &&
              strstr(mhk_message(ctx), "cut.safetensors"),
          "cut to %lld bytes: %s", (long long)cut, mhk_message(ctx));
    mhk_clear_error(ctx);
  }
  for (i = 0; i < 600; i++) {
    char *bad = (char *)malloc(n);
    int changes = 1 + (int)(test_random(&seed) % 3);
    mhk_model *m;
    memcpy(bad, data, n);
    while (changes--) bad[test_random(&seed) % header] = (char)test_random(&seed);
    test_write_file(test_path("bad.safetensors"), bad, n);
    m = mhk_load(ctx, test_path("bad.safetensors"));
    CHECK(m || mhk_failed(ctx), "neither a model nor an error");
    CHECK(m || strlen(mhk_message(ctx)) > 20, "the message is %s", mhk_message(ctx));
    loaded += m != NULL;
    mhk_clear_error(ctx);
    mhk_model_destroy(m);
    free(bad);
  }
  CHECK(loaded < 600, "nothing was noticed");
  free(data);
  finish();
}

TEST(distillation) {
  mhk_distill_desc d;
  int32_t tokens[100] = {0};
  start();
  memset(&d, 0, sizeof d);
  CHECK(mhk_distill(ctx, &d) == NULL, "no teacher");
  CHECK(mhk_failed(ctx) && strstr(mhk_message(ctx), "teacher"), "%s", mhk_message(ctx));
  mhk_clear_error(ctx);
  d.teacher = model_new(ctx, PHI_MAMBA, 3);
  d.corpus = mhk_corpus_from_tokens(ctx, tokens, 100, -1);
  d.stages[0].tokens = 100000;
  CHECK(mhk_distill(ctx, &d) == NULL, "a teacher without attention");
  CHECK(mhk_failed(ctx), "no error");
  mhk_clear_error(ctx);
  d.teacher = model_new(ctx, PHI, 3);
  d.length = 200;
  CHECK(mhk_distill(ctx, &d) == NULL, "windows of 200 from a text of 100");
  CHECK(mhk_failed(ctx) && strstr(mhk_message(ctx), "200") && strstr(mhk_message(ctx), "100"), "%s", mhk_message(ctx));
  mhk_clear_error(ctx);
  d.length = 20;
  d.batch = -1;
  CHECK(mhk_distill(ctx, &d) == NULL && mhk_failed(ctx), "a batch of -1");
  mhk_clear_error(ctx);
  d.batch = 2;
  d.world = 2;
  d.rank = 2;
  CHECK(mhk_distill(ctx, &d) == NULL && mhk_failed(ctx), "worker 2 of 0..1");
  mhk_clear_error(ctx);
  d.world = d.rank = 0;
  { /* the longest path for checkpoints is one that all their files fit */
    char out[1100];
    mhk_trainer *tr;
    snprintf(out, sizeof out, "%s", test_path("long"));
    mkdir(out, 0777);
    while (strlen(out) < 969) strcat(out, strlen(out) < 968 ? "/." : "/");
    d.out = out;
    CHECK(mhk_distill(ctx, &d) == NULL, "a path of %d bytes", (int)strlen(out));
    CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "has 969 bytes: 968 are the most");
    out[968] = 0;
    tr = mhk_distill(ctx, &d);
    CHECK(tr && mhk_checkpoint(tr) == MHK_OK && mhk_checkpoint(tr) == MHK_OK, "%s", mhk_message(ctx));
    mhk_trainer_destroy(tr);
    tr = mhk_distill(ctx, &d);
    CHECK(tr != NULL, "%s", mhk_message(ctx));
    mhk_trainer_destroy(tr);
    mhk_clear_error(ctx);
    d.out = NULL;
  }
  {
    int keep[1] = {2};
    d.student_desc.keep_attention = keep;
    d.student_desc.n_keep_attention = 1;
    CHECK(mhk_distill(ctx, &d) == NULL && mhk_failed(ctx) && strstr(mhk_message(ctx), "2"), "layer 2 of 2 kept: %s",
          mhk_message(ctx));
    mhk_clear_error(ctx);
  }
  finish();
}

TEST(diverged_training) { /* a learning rate that makes NaN stops with a sentence */
  mhk_distill_desc d;
  mhk_trainer *tr;
  int32_t tokens[400];
  int i;
  start();
  memset(&d, 0, sizeof d);
  model_tokens(tokens, 400, 31, 3);
  d.teacher = model_new(ctx, PHI, 3);
  d.corpus = mhk_corpus_from_tokens(ctx, tokens, 400, -1);
  d.batch = 2;
  d.length = 16;
  d.stages[2].tokens = 32 * 200;
  d.stages[2].lr = 1e30;
  d.stages[2].warmup = -1;
  tr = mhk_distill(ctx, &d);
  for (i = 0; i < 200 && mhk_train_step(tr); i++) {}
  CHECK(mhk_failed(ctx), "training at a learning rate of 1e30 went well");
  CHECK_FAILS(ctx, MHK_ERROR_STATE, "diverge");
  finish();
}

TEST(diverged_training_names_what_was_first) {
  static const char *const tensors[3] = {"model.layers.1.self_attn.q_proj.weight", "model.embed_tokens.weight",
                                         "lm_head.bias"};
  mhk_distill_desc d;
  mhk_trainer *tr;
  int32_t tokens[400];
  int i, stage;
  for (stage = 1; stage <= 3; stage++)
    for (i = 0; i < (stage == 3 ? 3 : 2); i++) { /* a teacher that is broken is named, and no learning rate is blamed */
      start();
      memset(&d, 0, sizeof d);
      model_tokens(tokens, 400, 31, 3);
      d.teacher = model_new(ctx, PHI, 3);
      d.student = mhk_student_create(ctx, d.teacher, NULL);
      REQUIRE(mhk_model_find(d.teacher, tensors[i]) != NULL, "%s is not there", tensors[i]);
      mhk_data(mhk_model_find(d.teacher, tensors[i]))[i ? tokens[3] * (i == 1 ? 24 : 1) : 2] =
          i == 1 ? (mhk_real)INFINITY : (mhk_real)NAN;
      d.corpus = mhk_corpus_from_tokens(ctx, tokens, 400, -1);
      d.batch = 2;
      d.length = 180;
      d.stages[stage - 1].tokens = 360 * 3;
      tr = mhk_distill(ctx, &d);
      for (; mhk_train_step(tr);) {}
      CHECK(mhk_error(ctx) == MHK_ERROR_STATE && strstr(mhk_message(ctx), "of the teacher") &&
                strstr(mhk_message(ctx), tensors[i]) && strstr(mhk_message(ctx), "no learning rate helps") &&
                !strstr(mhk_message(ctx), "lower learning rate"),
            "stage %d: %s", stage, mhk_message(ctx));
      mhk_clear_error(ctx);
      finish();
    }
  for (stage = 1; stage <= 3; stage++) { /* finite weights whose products are not: which layer of whom */
    start();
    memset(&d, 0, sizeof d);
    model_tokens(tokens, 400, 31, 3);
    d.teacher = model_new(ctx, PHI, 3);
    d.student = mhk_student_create(ctx, d.teacher, NULL);
    for (i = 0; i < 24 * 24; i++)
      mhk_data(mhk_model_find(d.student, "backbone.layers.1.mixer.in_proj.weight"))[48 * 24 + i] =
          (mhk_real)(sizeof(mhk_real) == 4 ? 3e38 : 1e308);
    d.corpus = mhk_corpus_from_tokens(ctx, tokens, 400, -1);
    d.batch = 2;
    d.length = 16;
    d.stages[stage - 1].tokens = 32 * 3;
    d.stages[stage - 1].lr = 0.125;
    tr = mhk_distill(ctx, &d);
    for (; mhk_train_step(tr);) {}
    CHECK(mhk_error(ctx) == MHK_ERROR_STATE && strstr(mhk_message(ctx), "in layer 1 of the student") &&
              strstr(mhk_message(ctx), "0.125") && strstr(mhk_message(ctx), "lower learning rate"),
          "stage %d: %s", stage, mhk_message(ctx));
    mhk_clear_error(ctx);
    finish();
  }
}

/* A number that is none, or makes no sense, is named before anything is done: where, which, its
   value and what would be right. */
#define REFUSED(call, where, value) \
  do { \
    call; \
    CHECK(mhk_error(ctx) == MHK_ERROR_ARGUMENT && strstr(mhk_message(ctx), where) && strstr(mhk_message(ctx), \
        value) && \
              strstr(mhk_message(ctx), "must be"), \
          "%s: %s", #call, mhk_failed(ctx) ? mhk_message(ctx) : "taken"); \
    mhk_clear_error(ctx); \
  } while (0)

/* where the numbers of a stage and of a sampler stand */
typedef struct number {
  size_t at;
  const char *name;
} number;
static const number fields[] = {{offsetof(mhk_stage_desc, lr), "lr"},
              {offsetof(mhk_stage_desc, lr_low), "lr_low"},
              {offsetof(mhk_stage_desc, warmup), "warmup"},
              {offsetof(mhk_stage_desc, decay), "decay"},
              {offsetof(mhk_stage_desc, weight_decay), "weight_decay"},
              {offsetof(mhk_stage_desc, clip), "clip"},
              {offsetof(mhk_stage_desc, temperature), "temperature"},
              {offsetof(mhk_stage_desc, hard_labels), "hard_labels"},
              {offsetof(mhk_stage_desc, own_stream), "own_stream"}};
static const number settings[] = {{offsetof(mhk_sampling, temperature), "temperature"},
                {offsetof(mhk_sampling, top_p), "top_p"},
                {offsetof(mhk_sampling, min_p), "min_p"},
                {offsetof(mhk_sampling, typical), "typical"},
                {offsetof(mhk_sampling, repetition), "repetition"},
                {offsetof(mhk_sampling, frequency), "frequency"},
                {offsetof(mhk_sampling, presence), "presence"}};

TEST(numbers_that_are_none_are_named) {
  static const double odd[] = {NAN, INFINITY, -INFINITY};
  static const char *const text[] = {"nan", "inf", "-inf"};
  mhk_tensor *x, *row, *p[1];
  mhk_real moments[8] = {0};
  mhk_adamw_desc adamw;
  mhk_distill_desc d;
  mhk_sampling how;
  mhk_session *s;
  mhk_trainer *tr;
  int32_t tokens[100] = {0};
  size_t i, k;
  start();
  x = zeros(4, 1, 3, 2, 4), row = zeros(1, 4, 1, 1, 1), p[0] = row;
  memset(&d, 0, sizeof d);
  d.teacher = model_new(ctx, PHI, 3);
  d.corpus = mhk_corpus_from_tokens(ctx, tokens, 100, -1);
  d.batch = 1;
  d.length = 8;
  d.recipe = (mhk_recipe)2;
  CHECK(!mhk_distill(ctx, &d), "a recipe that does not exist");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "unknown recipe 2");
  d.recipe = MHK_RECIPE_BEST;
  tr = mhk_distill(ctx, &d);
  s = mhk_session_create(d.teacher, NULL);
  mhk_feed(s, tokens, 3);
  for (i = 0; i < 3; i++) {
    REFUSED(mhk_scale(tape, x, odd[i]), "scale", text[i]);
    REFUSED(mhk_layer_norm(tape, x, row, NULL, odd[i]), "layer_norm: eps", text[i]);
    REFUSED(mhk_rms_norm(tape, x, row, odd[i]), "rms_norm: eps", text[i]);
    REFUSED(mhk_rotary(tape, x, 4, odd[i], NULL), "rotary: theta", text[i]);
    REFUSED(mhk_cross_entropy_soft(tape, x, x, odd[i]), "temperature", text[i]);
    REFUSED(mhk_train_on(tr, 1, tokens, 1, 8, NULL, odd[i]), "learning rate", text[i]);
    memset(&adamw, 0, sizeof adamw), adamw.lr = odd[i];
    REFUSED(mhk_adamw(ctx, 1, p, moments, 1, &adamw), "adamw: lr", text[i]);
    memset(&adamw, 0, sizeof adamw), adamw.weight_decay = odd[i];
    REFUSED(mhk_adamw(ctx, 1, p, moments, 1, &adamw), "adamw: weight_decay", text[i]);
    memset(&adamw, 0, sizeof adamw), adamw.scale = odd[i];
    REFUSED(mhk_adamw(ctx, 1, p, moments, 1, &adamw), "adamw: scale", text[i]);
    for (k = 0; k < sizeof fields / sizeof *fields; k++) {
      mhk_stage_desc stage;
      memset(&stage, 0, sizeof stage);
      memcpy((char *)&stage + fields[k].at, &odd[i], sizeof odd[i]);
      d.stages[1] = stage;
      d.stages[1].tokens = 64;
      REFUSED(mhk_distill(ctx, &d), fields[k].name, text[i]);
      {
        const mhk_stage_loss_desc loss = {mhk_student(tr), d.teacher, 2, tokens, 1, 8, NULL, &stage, NULL, NULL};
        REFUSED(mhk_stage_loss(tape, &loss), fields[k].name, text[i]);
      }
      memset(&d.stages[1], 0, sizeof stage);
    }
    for (k = 0; k < sizeof settings / sizeof *settings; k++) {
      memset(&how, 0, sizeof how);
      memcpy((char *)&how + settings[k].at, &odd[i], sizeof odd[i]);
      REFUSED(mhk_sample(s, &how), settings[k].name, text[i]);
    }
  }
  memset(&how, 0, sizeof how), how.temperature = -1;
  REFUSED(mhk_sample(s, &how), "temperature is -1", "not below 0");
  memset(&how, 0, sizeof how), how.top_p = -0.5;
  REFUSED(mhk_sample(s, &how), "top_p is -0.5", "from 0 to 1");
  memset(&how, 0, sizeof how), how.top_p = 7;
  REFUSED(mhk_sample(s, &how), "top_p is 7", "from 0 to 1");
  memset(&how, 0, sizeof how), how.min_p = -3;
  REFUSED(mhk_sample(s, &how), "min_p is -3", "from 0 to 1");
  memset(&how, 0, sizeof how), how.top_k = -5;
  REFUSED(mhk_sample(s, &how), "top_k is -5", "not below 0");
  REFUSED(mhk_scale(tape, x, 1e300 * (sizeof(mhk_real) == 4 ? 1 : 1e8 * 1e8)), "factor",
          sizeof(mhk_real) == 4 ? "1e+300" : "inf");
  CHECK(mhk_session_position(s, 0) == 3, "a refused sample fed a token");
  finish();
}

/* Every public function, given nothing. A line each: a new function without one is found by
   tests/test_header.c. First tapes and ops. */
static void null_tapes(mhk_context *c) {
  mhk_tape *t = NULL;
  mhk_tensor *x = NULL;
  mhk_tape_mark mark;
  memset(&mark, 0, sizeof mark);
  CHECK(mhk_tape_create(c) == NULL, "a tape");
  mhk_tape_destroy(t), mhk_tape_reset(t), mhk_tape_record(t, 1), mhk_tape_rewind(t, mark);
  mark = mhk_tape_here(t);
  CHECK(!mhk_tensor_new(t, 0, NULL, NULL) && !mhk_reshape(t, x, 0, NULL) && !mhk_rows(t, x, 0, 1) && !mhk_detach(t, x),
        "views of nothing");
  mhk_require_grad(t, x), mhk_zero_grad(x);
  CHECK(!mhk_parameter(c, NULL, 0, NULL, NULL), "a parameter");
  CHECK(mhk_backward(t, x) != MHK_OK && mhk_backward_from(t, x, NULL) != MHK_OK,
        "backward");
  CHECK(!mhk_recompute(t, NULL, NULL, x) && !mhk_custom(t, NULL) &&
            !mhk_wants_grad(t, x),
        "custom");
  CHECK(mhk_check_gradient(t, NULL, NULL, x, NULL) != 0, "a check of nothing passes");
  CHECK(!mhk_add(t, x, x) && !mhk_sub(t, x, x) && !mhk_mul(t, x, x) && !mhk_scale(t, x, 1) && !mhk_square(t, x) &&
            !mhk_sqrt(t, x) && !mhk_exp(t, x) && !mhk_log(t, x) && !mhk_sigmoid(t, x) && !mhk_softplus(t, x) &&
            !mhk_silu(t, x) && !mhk_gelu(t, x) && !mhk_sum(t, x) && !mhk_mean(t, x) && !mhk_sum_last(t, x) &&
            !mhk_softmax(t, x) && !mhk_matmul(t, x, x, 0) && !mhk_columns(t, x, 0, 0) && !mhk_swap_heads(t, x) &&
            !mhk_embedding(t, x, NULL, 1, 1) && !mhk_linear(t, x, x, x) && !mhk_linear_gelu(t, x, x, x) &&
            !mhk_linear_add(t, x, x, x, x) && !mhk_layer_norm(t, x, x, x, 1) && !mhk_rms_norm(t, x, x, 1) &&
            !mhk_gate(t, x, x, x) && !mhk_rotary(t, x, 0, 1, NULL) && !mhk_attention(t, x, x, x, NULL) &&
            !mhk_attention_matrix(t, x, x, NULL) && !mhk_conv1d(t, x, x, x, NULL) &&
            !mhk_ssd(t, x, x, x, x, NULL) &&
            !mhk_ssd_matrix(t, x, x, x, x, NULL) && !mhk_cross_entropy(t, x, NULL) &&
            !mhk_cross_entropy_soft(t, x, x, 1) && !mhk_kl(t, x, x) && !mhk_hidden_distance(t, x, x) &&
            !mhk_matrix_distance(t, x, x) && !mhk_matrix_orientation(t, NULL),
        "an op of nothing gave something");
}

/* models, passes through them, files and tokenizers */
static void null_models(mhk_context *c) {
  mhk_tape *t = NULL;
  mhk_tensor *x = NULL;
  mhk_model *m = NULL;
  mhk_config config;
  mhk_stream stream;
  char buffer[16];
  memset(&config, 0, sizeof config);
  memset(&stream, 0, sizeof stream);
  CHECK(mhk_config_preset(c, NULL, &config) != MHK_OK && mhk_config_preset(c, "phi-2", NULL) != MHK_OK &&
            mhk_config_check(c, NULL) != MHK_OK && mhk_config_parse(c, NULL, 0, NULL, NULL) != MHK_OK &&
            mhk_config_format(NULL, NULL, 0) == 0 && mhk_config_parameters(NULL) == 0 &&
            mhk_config_state_bytes(NULL, 3) == 0,
        "a configuration of nothing");
  CHECK(!mhk_load(c, NULL) && !mhk_model_create(c, NULL, 1) && mhk_save(m, NULL, MHK_F32) != MHK_OK &&
            !mhk_model_config(m) && !mhk_model_tokenizer(m) && mhk_model_set_tokenizer(m, NULL) != MHK_OK &&
            mhk_model_count(m) == 0 && !mhk_model_at(m, 0) && !mhk_model_find(m, NULL) &&
            mhk_model_make_trainable(m) != MHK_OK && !mhk_student_create(c, NULL, NULL) &&
            mhk_model_transfer(m, m) != MHK_OK && mhk_model_init_mixers(m, m, MHK_INIT_DEFAULT, 1) != MHK_OK,
        "a model of nothing");
  mhk_model_destroy(m);
  CHECK(!mhk_forward(t, m, NULL, 1, 1, NULL) && !mhk_forward_embedding(t, m, NULL, 1, 1) &&
            !mhk_forward_norm(t, m, 0, x) && !mhk_forward_mixer(t, m, 0, x, NULL) &&
            !mhk_forward_block(t, m, 0, x, NULL) && !mhk_forward_head(t, m, x) && !mhk_forward_mlp(t, m, 0, x, x) &&
            !mhk_scratch(NULL, 8) && !mhk_forward_matrix(t, m, 0, x, NULL),
        "a pass through nothing");
  CHECK(!mhk_file_open(c, NULL) && !mhk_file_open_memory(c, NULL, 0) && mhk_file_count(NULL) == 0 &&
            !mhk_file_at(NULL, 0) && !mhk_file_find(NULL, NULL) && !mhk_file_metadata(NULL, NULL, NULL) &&
            mhk_file_read(c, NULL, NULL) != MHK_OK && mhk_file_read_i32(c, NULL, NULL) != MHK_OK &&
            mhk_file_write(c, NULL, 0, NULL, 0, NULL) != MHK_OK,
        "a file of nothing");
  mhk_file_close(NULL);
  CHECK(!mhk_tokenizer_load(c, NULL) && !mhk_tokenizer_load_memory(c, NULL, 0) &&
            mhk_encode(NULL, NULL, 0, NULL, 0) <= 0 && mhk_decode(NULL, NULL, 0, NULL, 0) <= 0 &&
            mhk_tokenizer_size(NULL) == 0 &&
            mhk_tokenizer_id(NULL, NULL) == -1 && !mhk_token_bytes(NULL, 0, NULL) && mhk_tokenizer_end(NULL) == -1 &&
            !mhk_tokenizer_json(NULL, NULL),
        "a tokenizer of nothing");
  mhk_tokenizer_destroy(NULL);
  CHECK(mhk_stream_push(&stream, NULL, 0, buffer) == 0 && mhk_stream_finish(&stream, buffer) == 0 &&
            mhk_stream_push(NULL, NULL, 0, NULL) == 0 && mhk_stream_finish(NULL, NULL) == 0,
        "a stream of nothing");
}

static void null_sessions(void) {
  mhk_model *m = NULL;
  int32_t id = 0;
  CHECK(!mhk_session_create(m, NULL) && mhk_feed(NULL, NULL, 0) != MHK_OK && mhk_feed_text(NULL, NULL) != MHK_OK &&
            !mhk_logits(NULL, 0) && mhk_sample(NULL, NULL) == -1 && mhk_sample_batch(NULL, NULL, &id) != MHK_OK &&
            mhk_text_out(NULL) != NULL,
        "a session of nothing");
  CHECK(mhk_session_bytes(m, NULL) == 0 && mhk_session_position(NULL, 0) == 0 &&
            mhk_session_reset(NULL, 0) != MHK_OK && !mhk_logits(NULL, 0) &&
            mhk_feed_batch(NULL, NULL) != MHK_OK &&
            mhk_score(NULL, 0, &id, 1, NULL) != MHK_OK && mhk_session_state_bytes(NULL, 0) == 0 &&
            mhk_session_save_memory(NULL, 0, NULL, 0) != MHK_OK &&
            mhk_session_load_memory(NULL, 0, NULL, 0) != MHK_OK &&
            mhk_session_save(NULL, 0, NULL) != MHK_OK && mhk_session_load(NULL, 0, NULL) != MHK_OK &&
            mhk_session_copy(NULL, 0, NULL, 0) != MHK_OK && mhk_session_snapshot(NULL, 0) != MHK_OK &&
            mhk_session_rewind(NULL, 0, 0) == -1 && !mhk_session_conv(NULL, 0, 0) && !mhk_session_ssm(NULL, 0, 0),
        "the states of nothing");
  mhk_session_destroy(NULL), mhk_session_reset(NULL, MHK_ALL);
}

static void null_training(mhk_context *c) {
  mhk_tape *t = NULL;
  mhk_model *m = NULL;
  mhk_distill_desc distill;
  CHECK(!mhk_corpus_load(c, NULL, NULL) && !mhk_corpus_from_tokens(c, NULL, 3, -1) &&
            !mhk_corpus_sample(m, 10, 1, NULL, NULL) && mhk_corpus_tokens(NULL, NULL) == 0,
        "a text of nothing");
  mhk_corpus_destroy(NULL);
  distill = mhk_distill_defaults(NULL);
  CHECK(distill.batch > 0 && distill.length > 0 && distill.stages[0].tokens == 250000 &&
            distill.stages[1].tokens == 750000 && distill.stages[2].tokens == 2000000,
        "defaults of nothing");
  CHECK(mhk_distill_bytes(NULL) == 0 && !mhk_distill(c, NULL) && mhk_train_step(NULL) == 0 && !mhk_progress(NULL) &&
            !mhk_student(NULL) && mhk_checkpoint(NULL) != MHK_OK,
        "a trainer of nothing");
  {
    const double loss = mhk_train_on(NULL, 1, NULL, 1, 1, NULL, 1),
                 other = mhk_stage_loss(t, NULL);
    CHECK(loss != loss && other != other, "the loss of nothing is %g, %g", loss, other);
  }
  mhk_trainer_destroy(NULL);
  CHECK(mhk_evaluate(m, NULL, NULL) != MHK_OK, "an evaluation of nothing");
}

static void all_null(mhk_context *c) {
  mhk_set_threads(c, 1);
  mhk_threads(c), mhk_isa_name(c), mhk_memory_in_use(c), mhk_memory_peak(c);
  mhk_clear_error(NULL), mhk_fail(NULL, MHK_ERROR_STATE, "x");
  CHECK(mhk_failed(NULL) && mhk_error(NULL) != MHK_OK && mhk_message(NULL) != NULL, "no context is a failed context");
  mhk_destroy(NULL);
  CHECK(mhk_dtype_bytes((mhk_dtype)99) == 0 && mhk_dtype_name((mhk_dtype)99) != NULL, "an unknown type");
  CHECK(mhk_data(NULL) == NULL && mhk_value(NULL) != mhk_value(NULL), "not a tensor");
  null_tapes(c);
  null_models(c);
  null_sessions();
  null_training(c);
}

TEST(nothing_in_nothing_out) {
  all_null(NULL);
  ctx = mhk_create(NULL);
  mhk_fail(ctx, MHK_ERROR_STATE, "already failed");
  all_null(ctx);
  CHECK(mhk_error(ctx) == MHK_ERROR_STATE && !strcmp(mhk_message(ctx), "already failed"),
        "the first error was replaced: %s", mhk_message(ctx));
  mhk_destroy(ctx);
}

TEST(failed_contexts_do_nothing) {
  mhk_model *m;
  mhk_session *s;
  mhk_tensor *x;
  mhk_tape_mark before, after;
  const int32_t tokens[3] = {1, 2, 3};
  mhk_real logit;
  size_t memory;
  start();
  m = model_new(ctx, HYBRID, 3);
  s = mhk_session_create(m, NULL);
  mhk_feed(s, tokens, 3);
  logit = mhk_logits(s, 0)[0];
  x = zeros(2, 3, 5, 1, 1);
  mhk_fail(ctx, MHK_ERROR_STATE, "already failed");
  memory = mhk_memory_in_use(ctx);
  before = mhk_tape_here(tape);
  CHECK(!mhk_add(tape, x, x) && !mhk_forward(tape, m, tokens, 1, 3, NULL) &&
            mhk_feed(s, tokens, 3) == MHK_ERROR_STATE && mhk_sample(s, NULL) == -1,
        "something was done");
  CHECK(!mhk_load(ctx, "examples/tiny") && mhk_save(m, test_path("never"), MHK_F32) == MHK_ERROR_STATE &&
            !mhk_student_create(ctx, m, NULL),
        "something was done");
  CHECK(mhk_backward(tape, x) == MHK_ERROR_STATE && !mhk_tape_create(ctx) && !mhk_session_create(m, NULL),
        "something was done");
  after = mhk_tape_here(tape);
  CHECK(before.used == after.used && before.chunk == after.chunk && before.records == after.records &&
            mhk_memory_in_use(ctx) <= memory,
        "memory was used");
  {
    FILE *f;
    char path[600];
    snprintf(path, sizeof path, "%s/config.json", test_path("never"));
    f = fopen(path, "rb");
    CHECK(!f, "a failed context saved a model");
    if (f) fclose(f);
  }
  mhk_clear_error(ctx);
  CHECK(mhk_logits(s, 0)[0] == logit, "the session changed");
  CHECK(mhk_feed(s, tokens, 3) == MHK_OK, "after clearing the error it goes on: %s", mhk_message(ctx));
  finish();
}

/* Messages come from a formatter of the header's own: it must say what printf says. */
#define SAYS(...) \
  do { \
    char want[800]; \
    snprintf(want, sizeof want, __VA_ARGS__); \
    mhk_fail(ctx, MHK_ERROR_ARGUMENT, __VA_ARGS__); \
    CHECK(!strcmp(mhk_message(ctx), want), "\"%s\" instead of \"%s\"", mhk_message(ctx), want); \
    mhk_clear_error(ctx); \
  } while (0)
TEST(messages_are_printf) {
  static const double numbers[] = {
      0,    1,    -1,       0.5,  1.5,   2.5, 0.1,     1e300,    -1e-300,   5e-324,   1.7976931348623157e308,
      1e15, 1e16, 99995,    1e-5, 0.999, 1e9, 3.14159, 999999.5, 9.9999995, 1.234e-5, 1e-4,
      1e22, 0.25, 12345.678};
  mhk_context *ctx = mhk_create(NULL);
  char format[80];
  uint64_t seed = 3;
  size_t i;
  SAYS("%d %i %u %x %X %c %s %%", -5, INT32_MIN, 7u, 0xabcu, 0xABCu, 'q', "text");
  SAYS("%lld %ld %zu %td %llu %lu", (long long)INT64_MIN, -3L, (size_t)-1, (ptrdiff_t)-9, ~0ull, 8ul);
  SAYS("[%5d] [%-5d] [%05d] [%5s] [%-5s] [%.2s] [%.*s] [%*d] [%02X] [%04x]", 42, 42, -42, "ab", "ab", "abcdef", 3,
       "abcdef", 7, -1, 5u, 31u);
  SAYS("%g %g %g %f", INFINITY, -INFINITY, -0.25, 1e10);
  for (i = 0; i < sizeof numbers / sizeof *numbers; i++)
    SAYS("%g %.1f %.0f %.3g %.17g %e %.16e %.0e [%12.3g] [%-12.3g]", numbers[i], numbers[i], numbers[i], numbers[i],
         numbers[i], numbers[i], numbers[i], numbers[i], numbers[i], numbers[i]);
  for (i = 0; i < 3000; i++) {
    const double x = ldexp((double)(int64_t)test_random(&seed), -(int)(test_random(&seed) % 900));
    SAYS("%.*e %.*g %g", (int)(i % 18), x, (int)(i % 17) + 1, x, x);
    if (fabs(x) < 1e200) SAYS("%.*f", (int)(i % 9), x);
  }
  mhk_fail(ctx, MHK_ERROR_ARGUMENT, "%03000d", 7); /* longer than the message's room */
  CHECK(strlen(mhk_message(ctx)) > 1000 && strlen(mhk_message(ctx)) < 3000, "%d characters",
        (int)strlen(mhk_message(ctx)));
  mhk_clear_error(ctx);
  /* widths beyond any integer, from a format made at run time */
  snprintf(format, sizeof format, "[%s]", "%99999999999999999999d %.99999999999999999999f");
  mhk_fail(ctx, MHK_ERROR_ARGUMENT, format, 7, 0.5);
  CHECK(mhk_message(ctx)[0] == '[', "the message is %.20s", mhk_message(ctx));
  mhk_destroy(ctx);
}

int main(int argc, char **argv) {
  test_begin(argc, argv);
  RUN(first_error_stays);
  RUN(contexts);
  RUN(asking_for_what_the_processor_lacks);
  RUN(ops_name_the_shapes);
  RUN(attention_names_what_is_wrong_with_its_description);
  RUN(orientation_names_what_is_wrong_with_its_description);
  RUN(configurations);
  RUN(configurations_as_text);
  RUN(models_that_do_not_fit);
  RUN(damaged_files);
  RUN(distillation);
  RUN(diverged_training);
  RUN(diverged_training_names_what_was_first);
  RUN(numbers_that_are_none_are_named);
  RUN(nothing_in_nothing_out);
  RUN(failed_contexts_do_nothing);
  RUN(messages_are_printf);
  return test_end();
}
