/* Models: presets, configurations in and out, loading, saving, students. */
#include "test.h"

#define TINY "examples/tiny"

static mhk_context *ctx;

static mhk_result parse(const char *text, mhk_config *c) {
  return mhk_config_parse(ctx, text, strlen(text), "config.json", c);
}

static void config_bad(const char *text, mhk_result code, const char *message) {
  mhk_config c;
  mhk_result r = parse(text, &c);
  CHECK(r == code && strstr(mhk_message(ctx), message), "%s: result %d, \"%s\" does not contain \"%s\"", text, (int)r,
        mhk_message(ctx), message);
  mhk_clear_error(ctx);
}

/* every field */
static int same_config(const mhk_config *a, const mhk_config *b) {
  return a->arch == b->arch && a->n_layer == b->n_layer && a->d_model == b->d_model && a->vocab_size == b->vocab_size &&
         a->d_mlp == b->d_mlp && a->norm_eps == b->norm_eps && a->tie_embeddings == b->tie_embeddings &&
         a->max_position == b->max_position && a->n_head == b->n_head && a->n_kv_head == b->n_kv_head &&
         a->head_dim == b->head_dim && a->rotary_dim == b->rotary_dim && a->qk_layernorm == b->qk_layernorm &&
         a->rope_theta == b->rope_theta && a->ssm_heads == b->ssm_heads && a->ssm_groups == b->ssm_groups &&
         a->ssm_head_dim == b->ssm_head_dim && a->d_state == b->d_state && a->d_conv == b->d_conv &&
         a->chunk_size == b->chunk_size && a->ssm_rotary_dim == b->ssm_rotary_dim && a->conv_silu == b->conv_silu &&
         a->conv_bias == b->conv_bias && a->proj_bias == b->proj_bias && a->dt_min == b->dt_min &&
         a->dt_max == b->dt_max && a->pad_vocab_multiple == b->pad_vocab_multiple && a->gates == b->gates &&
         a->window == b->window && memcmp(a->mixer, b->mixer, sizeof a->mixer) == 0 && !a->windows == !b->windows &&
         (!a->windows ||
          memcmp(a->windows, b->windows, sizeof *a->windows * (size_t)a->n_layer * (size_t)a->ssm_heads) == 0);
}

/* out and in again */
static void round_trip(const char *what, const mhk_config *c) {
  char text[65536], small[16];
  mhk_config back;
  const size_t n = mhk_config_format(c, NULL, 0);
  CHECK(mhk_config_format(c, text, sizeof text) == n && strlen(text) == n, "%s: the length is not what was announced",
        what);
  CHECK(mhk_config_format(c, small, sizeof small) == n && strlen(small) == 15 && memcmp(small, text, 15) == 0,
        "%s: a short buffer", what);
  CHECK(parse(text, &back) == MHK_OK, "%s: %s", what, mhk_message(ctx));
  CHECK(mhk_failed(ctx) || same_config(c, &back), "%s comes back changed:\n%s", what, text);
  mhk_clear_error(ctx);
}

TEST(presets) {
  static const char names[][32] = {"phi-1",       "phi-1.5",    "phi-2", "phi-mamba-1.5b", "hybrid-phi-mamba-1.5b",
                                   "mamba2-130m", "mamba2-1.3b"};
  static const double parameters[] = {1418270720, 1418270720, 2779683840, 0, 0, 128989632, 1343757312};
  mhk_config c;
  size_t i;
  for (i = 0; i < sizeof names / sizeof names[0]; i++) {
    CHECK(mhk_config_preset(ctx, names[i], &c) == MHK_OK && mhk_config_check(ctx, &c) == MHK_OK, "%s: %s", names[i],
          mhk_message(ctx));
    if (parameters[i] > 0)
      CHECK(mhk_config_parameters(&c) == parameters[i], "%s has %.0f parameters, should have %.0f", names[i],
            mhk_config_parameters(&c), parameters[i]);
    round_trip(names[i], &c);
  }
  mhk_config_preset(ctx, "hybrid-phi-mamba-1.5b", &c);
  for (i = 0; i < 24; i++)
    CHECK((c.mixer[i] == MHK_MIXER_ATTENTION) == (i == 4 || i == 10 || i == 16 || i == 22),
          "layer %d of the hybrid has mixer %d", (int)i, c.mixer[i]);
  mhk_config_preset(ctx, "phi-2", &c);
  CHECK(c.head_dim == 80 && c.rotary_dim == 32, "phi-2: heads of %d, %d of it rotary", c.head_dim, c.rotary_dim);
  mhk_config_preset(ctx, "phi-9", &c);
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "unknown preset \"phi-9\": use phi-1, phi-1.5");
  CHECK(mhk_config_format(NULL, NULL, 0) == 0 && mhk_config_parameters(NULL) == 0, "NULL");
}

/* ---- config.json as it is met */

#define PHI_REST \
  ",\"vocab_size\":51200,\"hidden_size\":2048,\"intermediate_size\":8192,\"num_hidden_layers\":24," \
  "\"num_attention_heads\":32,\"layer_norm_eps\":1e-05"

TEST(phi_as_released) {
  const char *text =
      "{\"_name_or_path\":\"microsoft/"
      "phi-1_5\",\"architectures\":[\"PhiForCausalLM\"],\"attention_dropout\":0.0,\"bos_token_id\":null,"
      "\"embd_pdrop\":0.0,\"eos_token_id\":null,\"hidden_act\":\"gelu_new\",\"initializer_range\":0.02,"
      "\"max_position_"
      "embeddings\":2048,"
      "\"model_type\":\"phi\",\"num_key_value_heads\":null,\"partial_rotary_factor\":0.5,\"qk_layernorm\":false,"
      "\"resid_pdrop\":0.0,"
      "\"rope_scaling\":null,\"rope_theta\":10000.0,\"tie_word_embeddings\":false,\"torch_dtype\":\"float16\",\"use_"
      "cache\":true" PHI_REST "}";
  const char *newer =
      "{\"architectures\":[\"PhiForCausalLM\"],\"dtype\":\"float16\",\"model_type\":\"phi\","
      "\"partial_rotary_factor\":"
      "0.25,\"rope_parameters\":"
      "{\"partial_rotary_factor\":0.5,\"rope_theta\":10000.0,\"rope_type\":\"default\"}" PHI_REST "}";
  mhk_config c, preset;
  mhk_config_preset(ctx, "phi-1.5", &preset);
  CHECK(parse(text, &c) == MHK_OK && same_config(&c, &preset), "released: %s", mhk_message(ctx));
  mhk_clear_error(ctx);
  CHECK(parse(newer, &c) == MHK_OK && same_config(&c, &preset), "rope_parameters: %s", mhk_message(ctx));
  mhk_clear_error(ctx);
}

TEST(phi_that_is_not_supported) {
  const mhk_result U = MHK_ERROR_UNSUPPORTED, C = MHK_ERROR_CONFIG;
#define PHI "{\"model_type\":\"phi\"" PHI_REST
  config_bad(PHI ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2.0}}", U,
             "rope_scaling is \"linear\", which is not supported");
  config_bad(PHI ",\"rope_parameters\":{\"rope_type\":\"yarn\",\"factor\":2.0}}", U, "rope_parameters is \"yarn\"");
  config_bad(PHI ",\"hidden_act\":\"relu\"}", U,
             "hidden_act is \"relu\", which is not supported; supported: \"gelu_new\"");
  config_bad(PHI ",\"quantization_config\":{\"bits\":4}}", U, "quantization_config is set");
  config_bad("{\"architectures\":[\"GemmaForCausalLM\"],\"model_type\":\"gemma\"}", U,
             "\"GemmaForCausalLM\"; supported are PhiForCausalLM");
  config_bad("{\"model_type\":\"phi-msft\"}", U, "\"phi-msft\"");
  config_bad("{}", U, "a model without naming it");
  config_bad("[]", U, "a model without naming it");
  config_bad(PHI ",\"partial_rotary_factor\":1.5}", C, "partial_rotary_factor is 1.5: it must be between 0 and 1");
  config_bad(PHI ",\"num_key_value_heads\":5}", C, "32 attention heads cannot share 5 key/value heads evenly");
  config_bad(PHI ",\"rope_theta\":0}", C, "rope_theta is 0.0: it must be above 0");
  config_bad(PHI ",\"rope_theta\":\"x\"}", C, "rope_theta must be a number, but is x");
  config_bad(PHI ",\"qk_layernorm\":1}", C, "qk_layernorm must be true or false, but is 1");
  config_bad("{\"model_type\":\"phi\",\"hidden_size\":48}", C,
             "num_hidden_layers must be a whole number from 0 to 2147483647, but is missing");
  config_bad("{\"model_type\":\"phi\",\"hidden_size\":48.5}", C, "must be a whole number");
#undef PHI
#define PHI(size, heads, more) \
  "{\"model_type\":\"phi\",\"num_hidden_layers\":2,\"vocab_size\":61,\"intermediate_size\":8,\"hidden_size\":" #size \
    ",\"num_attention_heads\":" #heads more "}"
  config_bad(PHI(48, 4, ",\"partial_rotary_factor\":0.25"), C,
             "config.json: 3 rotary features per head are an odd number: partial_rotary_factor is 0.25 and the head "
             "size 12");
  config_bad(PHI(50, 4, ""), C, "hidden_size 50 cannot be divided into 4 attention heads");
  config_bad(PHI(48, 0, ""), C, "hidden_size 48 cannot be divided into 0 attention heads");
  config_bad(PHI(0, 4, ""), C, "hidden_size is 0: it must be between 1 and");
  config_bad(PHI(48, 4, ",\"layer_norm_eps\":0"), C, "the eps of the norms is 0.0");
  config_bad(PHI(2147483648, 4, ""), C, "hidden_size must be a whole number from 0 to 2147483647, but is 2147483648");
  config_bad(PHI(-48, 4, ""), C, "but is -48");
#undef PHI
}

TEST(config_check_says_what_is_wrong) {
  mhk_config c, good;
  mhk_config_preset(ctx, "hybrid-phi-mamba-1.5b", &good);
#define BAD(change, message) \
  c = good; \
  change; \
  mhk_config_check(ctx, &c); \
  CHECK_FAILS(ctx, MHK_ERROR_CONFIG, message)
  BAD(c.n_layer = 0, "the number of layers is 0: it must be between 1 and 256");
  BAD(c.n_layer = 257, "the number of layers is 257");
  BAD(c.arch = (mhk_arch)9, "architecture 9");
  BAD(c.arch = MHK_ARCH_PHI, "the mixer of layer 0 is 2; every layer of a Phi has attention");
  BAD(c.mixer[3] = 7, "the mixer of layer 3 is 7");
  BAD(c.d_model = -5, "d_model is -5");
  BAD(c.vocab_size = 51201, "a vocabulary of 51201 is not a multiple of pad_vocab_size_multiple 8");
  BAD(c.ssm_groups = 5,
      "32 state-space heads cannot share 5 groups of B and C evenly: n_v_heads must be a multiple of n_qk_heads");
  BAD(c.ssm_rotary_dim = 66, "66 rotary features do not fit in a state (d_state) of size 64");
  BAD(c.ssm_rotary_dim = 7, "rotary_dim 7 of B and C is odd");
  BAD(c.rotary_dim = 66, "66 rotary features do not fit in a head of size 64");
  BAD(c.d_conv = 0, "d_conv is 0");
  BAD(c.d_state = 0, "d_state is 0");
  BAD(c.rope_theta = NAN, "rope_theta is NaN");
  BAD(c.norm_eps = INFINITY, "the eps of the norms is Infinity");
  BAD(c.n_kv_head = 0, "num_key_value_heads is 0");
  BAD((c.d_model = 1 << 24, c.d_mlp = 0), "the width of the MLP is 0");
  mhk_config_preset(ctx, "mamba2-130m", &good);
  BAD(c.dt_min = 2; c.dt_max = 1, "time_step_limit is 2.0 to 1.0: the first");
  BAD(c.ssm_rotary_dim = 2, "only students have rotary features of B and C");
  BAD(c.d_mlp = 5, "the width of the MLP is 5: it must be between 0 and 0");
  mhk_config_check(ctx, NULL);
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "the configuration is missing");
}

#define DISCRETE(more) \
  "\"CoreType\":\"modules.mixers.discrete_mamba2\",\"core_input\":{\"d_state\":32,\"n_v_heads\":4," \
  "\"n_qk_heads\":4,\"d_conv\":4,\"conv_bias\":true,\"expand\":1," \
  "\"chunk_size\":128,\"activation\":\"identity\",\"bias\":false" more "}"
#define ATTENTION(more) \
  "\"CoreType\":\"modules.mixers.phi_attention\",\"core_input\":{\"hidden_size\":128,\"num_attention_heads\":4," \
  "\"num_key_value_heads\":4,\"max_position_embeddings\":2048," \
  "\"layer_norm_eps\":1e-05,\"qk_layernorm\":false,\"rope_theta\":10000.0,\"partial_rotary_factor\":0.5," \
  "\"rope_scaling\":null,\"attn_type\":\"eager\"" more "}"
#define MIXER(vocabulary, layers, blocks) \
  "{\"LanguageModel\":{\"input\":{\"vocab_size\":" #vocabulary \
    ",\"pad_vocab_size_multiple\":8}},\"MixerModel\":{\"input\":{\"d_model\":128," \
  "\"n_layer\":" #layers ",\"lm_head_prenorm\":\"layer\"}}," blocks "}"

TEST(phi_mamba_as_released) {
  const char *flat = MIXER(1021, 4, "\"Block1\":{\"n_layers\":4,\"BlockType\":\"modules.phi_block\"," DISCRETE("") "}");
  /* blocks count in the order in which they stand in the file */
  const char *hybrid =
      "{\"config\":" MIXER(1024, 4,
                           "\"Block1\":{\"n_layers\":2," DISCRETE("") "},\"Block3\":{\"n_layers\":1," ATTENTION(
                               "") "},\"Block2\":{\"n_layers\":1," DISCRETE("") "}") "}";
  const mhk_result U = MHK_ERROR_UNSUPPORTED, C = MHK_ERROR_CONFIG;
  mhk_config c;
  REQUIRE(parse(flat, &c) == MHK_OK, "%s", mhk_message(ctx));
  CHECK(c.arch == MHK_ARCH_PHI_MAMBA && c.n_layer == 4 && c.vocab_size == 1024 && c.pad_vocab_multiple == 8 &&
            c.d_mlp == 512 && c.ssm_heads == 4 && c.ssm_groups == 4 && c.ssm_head_dim == 32 && c.d_state == 32 &&
            c.d_conv == 4 && c.chunk_size == 128 && !c.conv_silu && c.conv_bias && !c.proj_bias && c.n_head == 0 &&
            c.norm_eps == 1e-5 && c.mixer[3] == MHK_MIXER_DISCRETE_MAMBA2,
        "flat: a setting is not what the file says");
  round_trip("flat", &c);
  REQUIRE(parse(hybrid, &c) == MHK_OK, "%s", mhk_message(ctx));
  CHECK(c.mixer[1] == MHK_MIXER_DISCRETE_MAMBA2 && c.mixer[2] == MHK_MIXER_ATTENTION &&
            c.mixer[3] == MHK_MIXER_DISCRETE_MAMBA2 && c.n_head == 4 && c.head_dim == 32 && c.rotary_dim == 16 &&
            c.rope_theta == 10000 && c.max_position == 2048,
        "hybrid: a setting is not what the file says");
  round_trip("hybrid", &c);
  /* what the authors' layout has no place for */
  c.d_mlp = 100;
  c.norm_eps = 1e-6;
  c.ssm_rotary_dim = 16;
  c.conv_silu = c.proj_bias = 1;
  c.conv_bias = 0;
  c.vocab_size = 1001;
  c.pad_vocab_multiple = 1;
  c.n_kv_head = 2;
  c.qk_layernorm = 1;
  c.ssm_groups = 2;
  c.tie_embeddings = 1;
  round_trip("unusual", &c);
  c.ssm_head_dim = 48; /* expand 1.5 */
  round_trip("expand 1.5", &c);
  for (c.head_dim = 7, c.n_head = c.n_kv_head = 1; c.head_dim < 200; c.head_dim++) /* factors with many digits */
    for (c.rotary_dim = 0; c.rotary_dim <= c.head_dim; c.rotary_dim += 2 + c.head_dim / 16 * 2)
      round_trip("rotary factors", &c);
  config_bad(MIXER(1024, 5, "\"Block1\":{\"n_layers\":4," DISCRETE("") "}"), C,
             "the blocks have 4 layers in total, but MixerModel.input.n_layer is 5");
  config_bad(MIXER(1024, 1, "\"Block1\":{\"n_layers\":1,\"CoreType\":\"modules.mixers.mlstm\"}"), U,
             "Block1.CoreType is \"modules.mixers.mlstm\"");
  config_bad(MIXER(1024, 1, "\"Block1\":{\"n_layers\":1,\"BlockType\":\"other\"," DISCRETE("") "}"), U,
             "Block1.BlockType is \"other\"");
  config_bad(MIXER(1024, 2,
                   "\"Block1\":{\"n_layers\":1," DISCRETE("") "},\"Block2\":{\"n_layers\":1," DISCRETE(
                       ",\"rotary_dim\":8") "}"),
             U, "Block2.core_input differs from an earlier block of its kind");
  config_bad(MIXER(1024, 1, "\"Block1\":{\"n_layers\":1," ATTENTION(",\"head_dim\":7") "}"), C,
             "3 rotary features per head are an odd number");
  config_bad(MIXER(1024, 1, "\"Block1\":{\"n_layers\":1," DISCRETE(",\"rotary_dim\":7") "}"), C,
             "rotary_dim 7 of B and C is odd");
  config_bad(MIXER(1024, 300, "\"Block1\":{\"n_layers\":300," DISCRETE("") "}"), U, "more than 256 layers");
  config_bad(MIXER(2147483647, 1, "\"Block1\":{\"n_layers\":1," DISCRETE("") "}"), C,
             "vocab_size must be a smaller number");
  config_bad(
      "{\"LanguageModel\":{\"input\":{\"vocab_size\":8}},\"MixerModel\":{\"input\":{\"d_model\":8,\"n_layer\":1,\"lm_"
      "head_prenorm\":\"rms\"}}}",
      U, "lm_head_prenorm is \"rms\"");
  config_bad("{\"MixerModel\":{}}", C,
             "LanguageModel.input.vocab_size must be a whole number from 0 to 2147483647, but is missing");
}

TEST(gates_and_windows_in_config_json) {
  static const int32_t by_head[] = {16, 0, 3, 16, 9, 9, MHK_WINDOW_ALL, 9};
  static const int32_t kept_only[] = {0, 0, 0, 0, 0, MHK_WINDOW_ALL, MHK_WINDOW_ALL, 0};
  static const int32_t all_kept[] = {-1, -1, -1, -1, 1, 2, 3, 4};
  const char *text =
      MIXER(1024, 3, "\"Block1\":{\"n_layers\":1," DISCRETE(",\"window\":16") "},"
                     "\"Block2\":{\"n_layers\":2," DISCRETE(
                         ",\"windows\":[3,9,0,17],\"attention_heads\":[2,1]") "}");
  const mhk_result C = MHK_ERROR_CONFIG;
  mhk_config c, d;
  char json[4096];
  REQUIRE(parse(text, &c) == MHK_OK && c.windows && !c.gates, "%s", mhk_message(ctx));
  static const int32_t wanted[] = {16, 16, 16, 16, 3, -1, -1, 17, 3, -1, -1, 17};
  CHECK(memcmp(c.windows, wanted, sizeof wanted) == 0, "the windows are not those of the file");
  round_trip("windows by head", &c);
  REQUIRE(parse(text, &d) == MHK_OK && d.windows == c.windows, "equal lists are kept once");
  c.windows = NULL;
  c.window = 12;
  c.gates = c.proj_bias = 1;
  round_trip("one window", &c);
  mhk_config_format(&c, json, sizeof json);
  CHECK(strstr(json, "\"window\": 12") && strstr(json, "\"gates\": true") && strstr(json, "\"bias\": true"), "%s",
        json);
  c.n_layer = 2;
  c.mixer[2] = 0;
  c.window = 0;
  c.windows = by_head;
  round_trip("some heads", &c);
  const double state = mhk_config_state_bytes(&c, 10);
  c.windows = kept_only;
  round_trip("kept heads", &c);
  CHECK(state - mhk_config_state_bytes(&c, 10) ==
            (double)sizeof(mhk_real) * ((16 + 3 + 16 + 3 * 9) * 65.0 + 32 * 32 - 10 * 64.0),
        "bytes of state with windows and with kept heads");
  CHECK(mhk_config_state_bytes(&c, 11) - mhk_config_state_bytes(&c, 10) == 2 * 64.0 * (double)sizeof(mhk_real),
        "two kept heads keep a key and a value of each token");
  c.windows = all_kept;
  round_trip("a layer of kept heads", &c);
  config_bad(MIXER(1024, 1, "\"Block1\":{\"n_layers\":1," DISCRETE(",\"windows\":[3,9]") "}"), C,
             "Block1.core_input.windows has 2 numbers: it must have one for each of n_v_heads 4");
  config_bad(MIXER(1024, 1, "\"Block1\":{\"n_layers\":1," DISCRETE(",\"windows\":[3,9,-1,2]") "}"), C,
             "windows must be a list of 1 to 4 whole numbers from 0 to");
  config_bad(MIXER(1024, 1, "\"Block1\":{\"n_layers\":1," DISCRETE(",\"attention_heads\":[4]") "}"), C,
             "attention_heads must be a list of 1 to 4 whole numbers from 0 to 3");
  config_bad(MIXER(1024, 1, "\"Block1\":{\"n_layers\":1," DISCRETE(",\"window\":99999999") "}"), C,
             "window is 99999999: it must be between 0 and 16777216");
  config_bad(MIXER(1024, 1, "\"Block1\":{\"n_layers\":1," DISCRETE(",\"gates\":1") "}"), C,
             "gates must be true or false");
  mhk_config_preset(ctx, "phi-1.5", &c);
  c.window = 16;
  mhk_config_check(ctx, &c);
  CHECK_FAILS(ctx, MHK_ERROR_CONFIG, "only layers of discrete Mamba-2 can have one");
  mhk_clear_error(ctx);
}

TEST(mamba2_as_written_by_libraries) {
#define MAMBA2(more) \
  "{\"architectures\":[\"Mamba2ForCausalLM\"],\"model_type\":\"mamba2\",\"hidden_size\":32,\"num_heads\":4," \
  "\"head_dim\":16,\"state_size\":12,\"n_groups\":1,\"expand\":2," \
  "\"conv_kernel\":4,\"vocab_size\":43,\"num_hidden_layers\":2,\"layer_norm_epsilon\":1e-05," \
  "\"tie_word_embeddings\":true,\"chunk_size\":16" more "}"
  const mhk_result U = MHK_ERROR_UNSUPPORTED, C = MHK_ERROR_CONFIG;
  mhk_config c;
  REQUIRE(parse(MAMBA2(""), &c) == MHK_OK, "%s", mhk_message(ctx));
  CHECK(c.arch == MHK_ARCH_MAMBA2 && c.ssm_heads == 4 && c.ssm_head_dim == 16 && c.ssm_groups == 1 && c.d_state == 12 &&
            c.tie_embeddings && c.conv_silu && c.conv_bias && !c.proj_bias && c.dt_max == 0 && c.d_mlp == 0,
        "a setting is not what the file says");
  round_trip("mamba2", &c);
  REQUIRE(parse(MAMBA2(",\"time_step_limit\":[0.0,Infinity]"), &c) == MHK_OK, "%s", mhk_message(ctx));
  CHECK(c.dt_min == 0 && c.dt_max == 0, "%g to %g", c.dt_min, c.dt_max);
  REQUIRE(parse(MAMBA2(",\"time_step_limit\":[0.0,{\"__float__\":\"Infinity\"}]"), &c) == MHK_OK, "%s",
          mhk_message(ctx));
  CHECK(c.dt_min == 0 && c.dt_max == 0, "%g to %g", c.dt_min, c.dt_max);
  REQUIRE(parse(MAMBA2(",\"time_step_limit\":[0.001,0.1],\"use_bias\":true,\"use_conv_bias\":false"), &c) == MHK_OK,
          "%s", mhk_message(ctx));
  CHECK(c.dt_min == 0.001 && c.dt_max == 0.1 && c.proj_bias && !c.conv_bias, "%g to %g", c.dt_min, c.dt_max);
  round_trip("mamba2 with limits", &c);
  c.dt_max = 0;
  round_trip("mamba2 with a lower limit", &c);
  config_bad(MAMBA2(",\"time_step_limit\":[NaN,1]"), MHK_ERROR_FORMAT, "found 'N'");
  config_bad(MAMBA2(",\"time_step_limit\":[0.1]"), C, "time_step_limit must be a list of two numbers");
  config_bad(MAMBA2(",\"time_step_limit\":[0.1,0.01]"), C, "the second larger than the first");
  config_bad(MAMBA2(",\"hidden_act\":\"gelu\""), U, "hidden_act is \"gelu\"");
  config_bad(MAMBA2(",\"rms_norm\":false"), U, "rms_norm is \"false\"");
  config_bad(
      "{\"model_type\":\"mamba2\",\"hidden_size\":32,\"num_hidden_layers\":1,\"vocab_size\":9,\"num_heads\":3,\"head_"
      "dim\":16}",
      C, "expand 2.0 of hidden_size 32 is not num_heads 3 times head_dim 16");
}

/* ---- loading */

TEST(the_bundled_teacher) {
  mhk_model *m = mhk_load(ctx, TINY);
  const mhk_config *c = mhk_model_config(m);
  mhk_tensor *x;
  double total = 0;
  int i;
  REQUIRE(m, "%s", mhk_message(ctx));
  CHECK(c->arch == MHK_ARCH_PHI && c->n_layer == 4 && c->d_model == 128 && c->n_head == 4 && c->vocab_size == 1024 &&
            c->rotary_dim == 16,
        "config");
  CHECK(mhk_model_count(m) == 61, "%d tensors", mhk_model_count(m));
  for (i = 0; i < mhk_model_count(m); i++) {
    x = mhk_model_at(m, i);
    total += (double)x->count;
    CHECK(mhk_model_find(m, x->name) == x && x->data && !x->requires_grad && !x->grad, "%s", x->name);
    CHECK(x->dtype == (x->rank == 2 ? MHK_BF16 : MHK_REAL), "%s has type %s", x->name, mhk_dtype_name(x->dtype));
  }
  CHECK(total == mhk_config_parameters(c), "%.0f weights, %.0f announced", total, mhk_config_parameters(c));
  CHECK(!mhk_model_find(m, "model") && !mhk_model_at(m, -1) && !mhk_model_at(m, 61), "absent tensors");
  CHECK(mhk_model_tokenizer(m) && mhk_tokenizer_size(mhk_model_tokenizer(m)) == 1024, "the tokenizer");
  CHECK(mhk_save(m, test_path("copy"), MHK_BF16) == MHK_OK, "%s", mhk_message(ctx));
  mhk_model_destroy(m);
  { /* bf16 in, bf16 out: the same bits */
    mhk_file *a = mhk_file_open(ctx, TINY), *b = mhk_file_open(ctx, test_path("copy"));
    REQUIRE(a && b && mhk_file_count(a) == mhk_file_count(b), "%s", mhk_message(ctx));
    for (i = 0; i < mhk_file_count(a); i++) {
      const mhk_stored *p = mhk_file_at(a, i), *q = mhk_file_at(b, i);
      CHECK(strcmp(p->name, q->name) == 0 && p->dtype == q->dtype && p->bytes == q->bytes &&
                memcmp(p->data, q->data, p->bytes) == 0,
            "%s has changed", p->name);
    }
    CHECK(mhk_file_metadata(b, "format", NULL) && strcmp(mhk_file_metadata(b, "format", NULL), "pt") == 0,
          "metadata format");
    mhk_file_close(a);
    mhk_file_close(b);
  }
}

/* the same configuration, names and bits */
static void same_model(const char *what, mhk_model *a, mhk_model *b) {
  int i;
  if (!a || !b) {
    CHECK(0, "%s: %s", what, mhk_message(ctx));
    return;
  }
  CHECK(same_config(mhk_model_config(a), mhk_model_config(b)), "%s: another configuration", what);
  CHECK(mhk_model_count(a) == mhk_model_count(b), "%s: %d and %d tensors", what, mhk_model_count(a),
        mhk_model_count(b));
  for (i = 0; i < mhk_model_count(a) && i < mhk_model_count(b); i++) {
    mhk_tensor *x = mhk_model_at(a, i), *y = mhk_model_at(b, i);
    CHECK(strcmp(x->name, y->name) == 0 && x->count == y->count, "%s: %s and %s", what, x->name, y->name);
    CHECK_SAME(x->name, mhk_data(x), mhk_data(y), x->count);
  }
}

/* 0 phi, 1 grouped phi, 2 phi-mamba, 3 hybrid, 4 mamba2 tied, 5 mamba2 with biases */
static void test_config(mhk_config *c, int kind) {
  int l;
  memset(c, 0, sizeof *c);
  c->n_layer = 3;
  c->d_model = 24;
  c->vocab_size = 37;
  c->norm_eps = 1e-5;
  c->arch = kind < 2 ? MHK_ARCH_PHI : kind < 4 ? MHK_ARCH_PHI_MAMBA : MHK_ARCH_MAMBA2;
  c->d_mlp = kind < 4 ? 50 : 0;
  c->max_position = kind == 4 || kind == 5 ? 0 : 128;
  for (l = 0; l < 3; l++)
    c->mixer[l] = (unsigned char)(kind < 2   ? MHK_MIXER_ATTENTION
                                  : kind < 4 ? MHK_MIXER_DISCRETE_MAMBA2
                                             : MHK_MIXER_MAMBA2);
  if (kind == 3) c->mixer[1] = MHK_MIXER_ATTENTION;
  if (kind < 2 || kind == 3) {
    c->n_head = 4;
    c->n_kv_head = kind == 1 ? 2 : 4;
    c->head_dim = 6;
    c->rotary_dim = 4;
    c->rope_theta = 10000;
    c->qk_layernorm = kind == 1;
  }
  if (kind >= 2) {
    c->ssm_heads = 4;
    c->ssm_groups = kind == 3 ? 2 : 4;
    c->ssm_head_dim = kind < 4 ? 6 : 12;
    c->d_state = 10;
    c->d_conv = 4;
    c->chunk_size = 16;
    c->conv_bias = 1;
    c->conv_silu = kind >= 4;
    c->proj_bias = kind == 5;
    if (kind < 4) c->pad_vocab_multiple = 1;
    c->tie_embeddings = kind == 4;
  }
}

TEST(saved_and_loaded) {
  int kind, single;
  for (kind = 0; kind < 6; kind++)
    for (single = 0; single < 2; single++) {
      mhk_config c;
      mhk_model *m, *back;
      char name[64];
      mhk_real *grad;
      int i;
      test_config(&c, kind);
      m = mhk_model_create(ctx, &c, 5 + (uint64_t)kind);
      REQUIRE(m, "kind %d: %s", kind, mhk_message(ctx));
      grad = mhk_model_at(m, 0)->grad;
      for (i = 0; i < mhk_model_count(m); i++) {
        mhk_tensor *x = mhk_model_at(m, i);
        CHECK(x->grad == grad && x->requires_grad && x->dtype == MHK_REAL, "%s: gradients are not one block", x->name);
        grad += x->count;
      }
      for (i = 0; i < mhk_model_count(m); i++) { /* what float32 holds, in the double build too */
        mhk_tensor *x = mhk_model_at(m, i);
        mhk_index k;
        for (k = 0; k < x->count; k++) mhk_data(x)[k] = (mhk_real)(float)mhk_data(x)[k];
      }
      snprintf(name, sizeof name, single ? "model%d.safetensors" : "model%d", kind);
      CHECK(mhk_save(m, test_path(name), (mhk_dtype)0) == MHK_OK, "kind %d: %s", kind, mhk_message(ctx));
      back = mhk_load(ctx, test_path(name));
      REQUIRE(back, "kind %d: %s", kind, mhk_message(ctx));
      CHECK(mhk_model_make_trainable(back) == MHK_OK, "kind %d: %s", kind, mhk_message(ctx));
      same_model(name, m, back);
      CHECK(mhk_save(back, test_path(name), MHK_F32) == MHK_OK, "over itself: %s", mhk_message(ctx));
      mhk_model_destroy(back);
      back = mhk_load(ctx, test_path(name)); /* saving a mapped model over its own file */
      REQUIRE(back, "kind %d: %s", kind, mhk_message(ctx));
      CHECK(mhk_save(back, test_path(name), MHK_F32) == MHK_OK, "mapped, over itself: %s", mhk_message(ctx));
      mhk_model_make_trainable(back);
      same_model(name, m, back);
      CHECK(mhk_model_find(m, "lm_head.weight") != NULL, "kind %d has no head", kind);
      mhk_model_destroy(m);
      mhk_model_destroy(back);
    }
  CHECK_OK(ctx);
}

TEST(what_a_killed_save_left_goes_with_the_next) {
  mhk_config c;
  FILE *f;
  test_config(&c, 0);
  mhk_model *m = mhk_model_create(ctx, &c, 11);
  mhk_save(m, test_path("left"), MHK_F32);
  f = fopen(test_path("left/config.json.new"), "wb"); /* of a model that was not to be */
  REQUIRE(f, "no file");
  fclose(f);
  CHECK(mhk_save(m, test_path("left"), MHK_F32) == MHK_OK, "%s", mhk_message(ctx));
  f = fopen(test_path("left/config.json.new"), "rb");
  CHECK(!f, "config.json.new is still there");
  if (f) fclose(f);
  mhk_model_destroy(m);
}

TEST(a_single_file_holds_everything) {
  mhk_model *m = mhk_load(ctx, TINY), *back;
  size_t a = 0, b = 0;
  const char *p, *q;
  REQUIRE(m, "%s", mhk_message(ctx));
  CHECK(mhk_save(m, test_path("tiny.safetensors"), MHK_F16) == MHK_OK, "%s", mhk_message(ctx));
  back = mhk_load(ctx, test_path("tiny.safetensors"));
  REQUIRE(back, "%s", mhk_message(ctx));
  CHECK(same_config(mhk_model_config(m), mhk_model_config(back)), "another configuration");
  p = mhk_tokenizer_json(mhk_model_tokenizer(m), &a);
  q = mhk_tokenizer_json(mhk_model_tokenizer(back), &b);
  CHECK(p && q && a == b && memcmp(p, q, a) == 0, "another tokenizer");
  CHECK(mhk_model_find(back, "lm_head.weight")->dtype == MHK_F16, "type %s",
        mhk_dtype_name(mhk_model_find(back, "lm_head.weight")->dtype));
  mhk_model_destroy(back);
  mhk_model_destroy(m);
  back = mhk_load(ctx, TINY "/model.safetensors"); /* config.json and tokenizer.json beside it */
  REQUIRE(back, "%s", mhk_message(ctx));
  CHECK(mhk_model_tokenizer(back) != NULL, "no tokenizer");
  mhk_model_destroy(back);
}

TEST(saving_what_cannot_be_saved) {
  mhk_config c;
  mhk_model *m;
  test_config(&c, 0);
  m = mhk_model_create(ctx, &c, 1);
  REQUIRE(m, "%s", mhk_message(ctx));
  mhk_data(mhk_model_find(m, "lm_head.weight"))[7] = 70000;
  mhk_save(m, test_path("large"), MHK_F16);
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "element 7 of lm_head.weight is 70000.0: too large for F16; write F32");
  CHECK(mhk_save(m, test_path("large"), MHK_BF16) == MHK_OK, "%s", mhk_message(ctx));
  mhk_save(m, test_path("large"), MHK_I32);
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "F32, F16, BF16, Q8 or Q4, not as I32");
  mhk_save(m, test_path("no/such/folder"), MHK_F32);
  CHECK_FAILS(ctx, MHK_ERROR_FILE, "cannot create the folder");
  mhk_save(m, "", MHK_F32);
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "path");
  mhk_model_destroy(m);
}

/* Writes model0's tensors changed: skip leaves one out, extra adds one, reshape[i] turned by 90
   degrees. */
static void broken(const char *folder, const char *skip, const char *extra, const char *reshape) {
  mhk_file *f = mhk_file_open(ctx, test_path("model0"));
  mhk_stored x[128];
  char path[512], *config;
  size_t length = 0;
  int i, n = 0;
  test_make_folder(test_path(folder));
  config = test_read_file(test_path("model0/config.json"), &length);
  snprintf(path, sizeof path, "%s/config.json", test_path(folder));
  CHECK(config && test_write_file(path, config, length), "cannot write %s", path);
  free(config);
  for (i = 0; i < mhk_file_count(f); i++) {
    x[n] = *mhk_file_at(f, i);
    if (skip && strstr(x[n].name, skip)) continue;
    if (reshape && strstr(x[n].name, reshape)) {
      x[n].shape[0] = mhk_file_at(f, i)->shape[1];
      x[n].shape[1] = mhk_file_at(f, i)->shape[0];
    }
    n++;
  }
  if (extra) {
    x[n] = x[0];
    x[n++].name = extra;
  }
  snprintf(path, sizeof path, "%s/model.safetensors", test_path(folder));
  mhk_file_write(ctx, path, n, x, 0, NULL);
  CHECK_OK(ctx);
  mhk_file_close(f);
}

TEST(weights_that_do_not_fit) {
  mhk_model *m;
  broken("b1", NULL, NULL, "layers.1.mlp.fc1.weight");
  CHECK(!mhk_load(ctx, test_path("b1")), "loaded");
  CHECK_FAILS(ctx, MHK_ERROR_CONFIG,
              "model.layers.1.mlp.fc1.weight is (24,50) in model.safetensors, but config.json asks for (50,24) "
              "(intermediate_size 50)");
  broken("b2", "fc2.bias", "model.layers.0.mlp.fc3.weight", NULL);
  CHECK(!mhk_load(ctx, test_path("b2")), "loaded");
  CHECK_FAILS(ctx, MHK_ERROR_CONFIG,
              "3 missing: model.layers.0.mlp.fc2.bias; model.layers.1.mlp.fc2.bias; model.layers.2.mlp.fc2.bias; 1 "
              "unexpected: model.layers.0.mlp.fc3.weight");
  broken("b3", "model.", NULL, "lm_head.weight");
  CHECK(!mhk_load(ctx, test_path("b3")), "loaded");
  CHECK(strstr(mhk_message(ctx), "45 missing: ") && strstr(mhk_message(ctx), " more") &&
            strstr(mhk_message(ctx), "(vocab_size 37, hidden_size 24)"),
        "%s", mhk_message(ctx));
  mhk_clear_error(ctx);
  broken("b4", NULL, "model.layers.0.self_attn.rotary_emb.inv_freq", NULL); /* old files have these */
  m = mhk_load(ctx, test_path("b4"));
  CHECK(m != NULL, "%s", mhk_message(ctx));
  mhk_model_destroy(m);
  CHECK(test_write_file(test_path("b4/config.json"), "{\"model_type\":\"phi\",", 20), "cannot write");
  CHECK(!mhk_load(ctx, test_path("b4")), "loaded");
  CHECK_FAILS(ctx, MHK_ERROR_FORMAT, "b4/config.json, line 1, byte 20: expected a key in quotes, found the end");
  remove(test_path("b4/config.json"));
  CHECK(!mhk_load(ctx, test_path("b4")), "loaded");
  CHECK_FAILS(ctx, MHK_ERROR_FILE, "cannot read");
  CHECK(!mhk_load(ctx, test_path("nowhere")), "loaded");
  CHECK_FAILS(ctx, MHK_ERROR_FILE, "nowhere");
  CHECK(!mhk_load(NULL, TINY), "loaded without a context");
}

/* ---- students */

static double at(mhk_model *m, const char *name, mhk_index i) {
  mhk_tensor *x = mhk_model_find(m, name);
  if (!x || !mhk_data(x) || i >= x->count) {
    CHECK(0, "there is no element %lld of %s", (long long)i, name);
    return NAN;
  }
  return (double)mhk_data(x)[i];
}

TEST(students_start_from_the_teacher) {
  static const int keep[] = {2};
  mhk_config c;
  mhk_student_desc d;
  mhk_model *teacher, *s, *again;
  mhk_tensor *in;
  mhk_distill_desc run;
  mhk_index i, D = 24, E = 24, GN = 4 * 6;
  double bytes;
  test_config(&c, 0);
  teacher = mhk_model_create(ctx, &c, 11);
  REQUIRE(teacher, "%s", mhk_message(ctx));
  memset(&d, 0, sizeof d);
  d.keep_attention = keep;
  d.n_keep_attention = 1;
  s = mhk_student_create(ctx, teacher, &d);
  REQUIRE(s, "%s", mhk_message(ctx));
  CHECK(mhk_model_config(s)->vocab_size == 37 && mhk_model_config(s)->pad_vocab_multiple == 1,
        "the vocabulary was padded to %d", mhk_model_config(s)->vocab_size);
  CHECK(mhk_model_config(s)->ssm_rotary_dim == 4 && mhk_model_config(s)->d_state == 6 &&
            mhk_model_config(s)->chunk_size == 128 && mhk_model_config(s)->ssm_groups == 4,
        "the student's shape");
  CHECK(mhk_model_config(s)->mixer[2] == MHK_MIXER_ATTENTION &&
            mhk_model_config(s)->mixer[1] == MHK_MIXER_DISCRETE_MAMBA2,
        "which layers keep attention");
  CHECK_SAME("embedding", mhk_data(mhk_model_find(s, "backbone.embedding.weight")),
             mhk_data(mhk_model_find(teacher, "model.embed_tokens.weight")), 37 * D);
  CHECK_SAME("head", mhk_data(mhk_model_find(s, "lm_head.weight")), mhk_data(mhk_model_find(teacher, "lm_head.weight")),
             37 * D);
  CHECK_SAME("fc1", mhk_data(mhk_model_find(s, "backbone.layers.1.mlp.fc1.weight")),
             mhk_data(mhk_model_find(teacher, "model.layers.1.mlp.fc1.weight")), 50 * D);
  CHECK_SAME("kept attention", mhk_data(mhk_model_find(s, "backbone.layers.2.mixer.self_attn.k_proj.weight")),
             mhk_data(mhk_model_find(teacher, "model.layers.2.self_attn.k_proj.weight")), D * D);
  in = mhk_model_find(s, "backbone.layers.1.mixer.in_proj.weight");
  REQUIRE(in && in->shape[0] == 2 * E + 2 * GN + 4, "in_proj");
  CHECK_SAME("x <- v", mhk_data(in), mhk_data(mhk_model_find(teacher, "model.layers.1.self_attn.v_proj.weight")),
             E * D);
  CHECK_SAME("B <- k", mhk_data(in) + E * D,
             mhk_data(mhk_model_find(teacher, "model.layers.1.self_attn.k_proj.weight")), GN * D);
  CHECK_SAME("C <- q", mhk_data(in) + (E + GN) * D,
             mhk_data(mhk_model_find(teacher, "model.layers.1.self_attn.q_proj.weight")), GN * D);
  CHECK_SAME("out <- dense", mhk_data(mhk_model_find(s, "backbone.layers.1.mixer.out_proj.weight")),
             mhk_data(mhk_model_find(teacher, "model.layers.1.self_attn.dense.weight")), D * D);
  for (i = 0; i < E * D; i++)
    CHECK(mhk_data(in)[(E + 2 * GN) * D + i] == 0, "z row element %lld is not 0", (long long)i);
  for (i = 0; i < E + 2 * GN; i++) {
    CHECK(at(s, "backbone.layers.1.mixer.conv1d.weight", 4 * i + 3) == 1 &&
              at(s, "backbone.layers.1.mixer.conv1d.weight", 4 * i + 2) == 0 &&
              at(s, "backbone.layers.1.mixer.conv1d.bias", i) == 0,
          "the convolution of channel %lld is no identity", (long long)i);
  }
  CHECK(fabs(at(s, "backbone.layers.1.mixer.z_bias", 5) - 1.278464542761) < 1e-6 &&
            at(s, "backbone.layers.1.mixer.D", 3) == 1,
        "gate and D");
  again = mhk_student_create(ctx, teacher, &d);
  same_model("the same seed", s, again);
  /* memory is planned for the student that will be made */
  memset(&run, 0, sizeof run);
  run.teacher = teacher;
  run.student_desc = d;
  run.stages[2].tokens = 4096;
  bytes = mhk_distill_bytes(&run);
  run.student = s;
  CHECK(bytes > 0 && bytes == mhk_distill_bytes(&run), "%.0f bytes before the student is made, then %.0f", bytes,
        mhk_distill_bytes(&run));
  mhk_model_destroy(again);
  mhk_model_destroy(s);
  mhk_model_destroy(teacher);
}

/* log-probabilities of one row of logits */
static void log_softmax(const mhk_real *x, int n, double *out) {
  double most = x[0], sum = 0;
  for (int i = 1; i < n; i++) most = x[i] > most ? x[i] : most;
  for (int i = 0; i < n; i++) sum += exp((double)x[i] - most);
  for (int i = 0; i < n; i++) out[i] = (double)x[i] - most - log(sum);
}

static int largest_of(const double *x, int n) {
  int at = 0;
  for (int i = 1; i < n; i++) at = x[i] > x[at] ? i : at;
  return at;
}

/* what mhk_evaluate() says of each quarter, from whole forward passes: sums[measure][quarter] and
   the number of predictions */
static void sum_quarters(mhk_model *m, mhk_model *teacher, const int32_t *tokens, mhk_index B, mhk_index T,
                         double sums[3][4], double *predictions) {
  const int V = mhk_model_config(m)->vocab_size;
  double p[64], q[64];
  mhk_tape *t = mhk_tape_create(ctx);
  const mhk_real *x = mhk_data(mhk_forward(t, m, tokens, B, T, NULL));
  const mhk_real *y = mhk_data(mhk_forward(t, teacher, tokens, B, T, NULL));
  for (mhk_index row = 0; row < B * T; row++) {
    const mhk_index j = row % T, quarter = j * 4 / T;
    if (j + 1 == T) continue;
    log_softmax(x + row * V, V, q);
    log_softmax(y + row * V, V, p);
    predictions[quarter]++;
    sums[0][quarter] -= q[tokens[row + 1]];
    for (int i = 0; i < V; i++) sums[1][quarter] += exp(p[i]) * (p[i] - q[i]);
    sums[2][quarter] += largest_of(p, V) == largest_of(q, V);
  }
  mhk_tape_destroy(t);
}

TEST(evaluations_by_quarter_of_the_window_are_what_forward_passes_say_and_add_up) {
  enum { T = 9, WINDOWS = 5 };
  int32_t tokens[T * WINDOWS];
  mhk_config c;
  mhk_evaluate_desc d;
  mhk_evaluation e;
  double sums[3][4] = {{0}}, predictions[4] = {0}, whole[3] = {0};
  test_config(&c, 0);
  mhk_model *teacher = mhk_model_create(ctx, &c, 11), *m = mhk_model_create(ctx, &c, 12);
  REQUIRE(teacher && m, "%s", mhk_message(ctx));
  for (int i = 0; i < T * WINDOWS; i++) tokens[i] = i * 7 % 37;
  memset(&d, 0, sizeof d);
  d.teacher = teacher;
  d.corpus = mhk_corpus_from_tokens(ctx, tokens, T * WINDOWS, -1);
  d.length = T;
  CHECK(mhk_evaluate(m, &d, &e) == MHK_OK, "%s", mhk_message(ctx));
  sum_quarters(m, teacher, tokens, WINDOWS, T, sums, predictions);
  const double *quarters[3] = {e.cross_entropy_quarter, e.kl_quarter, e.agreement_quarter};
  const double means[3] = {e.cross_entropy, e.kl, e.agreement};
  for (int i = 0; i < 3; i++) {
    for (int k = 0; k < 4; k++) {
      CHECK(fabs(quarters[i][k] - sums[i][k] / predictions[k]) < 1e-5, "measure %d, quarter %d: %.7f, not %.7f", i, k,
            quarters[i][k], sums[i][k] / predictions[k]);
      whole[i] += quarters[i][k] * predictions[k] / (double)e.tokens;
    }
    CHECK(fabs(whole[i] - means[i]) < 1e-9, "measure %d: quarters make %.9f, the whole is %.9f", i, whole[i], means[i]);
  }
  CHECK(e.kl_quarter[3] > 0 && e.state_bytes == mhk_config_state_bytes(&c, T), "%.0f bytes of state", e.state_bytes);
  /* windows of two tokens have one prediction, in the first quarter */
  d.length = 2;
  CHECK(mhk_evaluate(m, &d, &e) == MHK_OK && fabs(e.kl_quarter[0] - e.kl) < 1e-9 && e.kl_quarter[1] == 0 &&
            e.kl_quarter[3] == 0,
        "windows of two tokens");
  mhk_corpus_destroy(d.corpus);
  mhk_model_destroy(m);
  mhk_model_destroy(teacher);
}

/* the last row of the mixer of a teacher's only layer, on rows `from` to T of u (T,D), with these
   windows of its heads */
static void last_row(mhk_model *m, const mhk_real *u, mhk_index from, mhk_index T, const int32_t *windows,
                     mhk_real *out) {
  mhk_forward_desc d;
  mhk_tape *t = mhk_tape_create(ctx);
  const mhk_index D = mhk_model_config(m)->d_model, shape[3] = {1, T - from, D};
  mhk_tensor *y;
  memset(&d, 0, sizeof d);
  d.windows = windows;
  y = mhk_forward_mixer(t, m, 0, mhk_tensor_new(t, 3, shape, u + from * D), &d);
  REQUIRE(y, "%s", mhk_message(ctx));
  memcpy(out, mhk_data(y) + (T - from - 1) * D, (size_t)D * sizeof *out);
  mhk_tape_destroy(t);
}

/* A head that sees w tokens is one that was given no more than w; heads add up in a mixer. */
TEST(heads_of_a_forward_pass_that_see_their_last_tokens_only) {
  enum { T = 13, D = 24, H = 4, W = 5 };
  static const int32_t all_of_them[H] = {W, W, W, W}, none[H] = {0, 0, 0, 0}, one[H] = {-1, -1, W, -1};
  static const int32_t others[H] = {W, W, -1, W}, no_limit[H] = {-1, -1, -1, T};
  mhk_real u[T * D], plain[D], want[D], x[D], y[D];
  mhk_config c;
  mhk_model *m;
  int i;
  test_config(&c, 0);
  c.n_layer = 1;
  m = mhk_model_create(ctx, &c, 11);
  REQUIRE(m && c.d_model == D && c.n_head == H, "%s", mhk_message(ctx));
  for (i = 0; i < T * D; i++) u[i] = (mhk_real)sin(1.7 * i);
  last_row(m, u, 0, T, NULL, plain);
  last_row(m, u, 0, T, no_limit, x);
  CHECK_CLOSE("windows that hold everything", x, plain, D, 1e-5);
  last_row(m, u, T - W, T, NULL, want);
  last_row(m, u, 0, T, all_of_them, x);
  CHECK_CLOSE("all heads limited", x, want, D, 1e-5);
  last_row(m, u, 0, T, one, x);
  last_row(m, u, 0, T, others, y);
  for (i = 0; i < D; i++) x[i] += y[i] - plain[i];
  CHECK_CLOSE("one head limited, and the others", x, want, D, 1e-5);
  CHECK(fabs((double)(y[0] - plain[0])) > 1e-4 && fabs((double)(y[0] - want[0])) > 1e-4,
        "three heads make a difference");
  last_row(m, u, 0, T, none, x);
  CHECK_CLOSE("no heads at all", x, mhk_data(mhk_model_find(m, "model.layers.0.self_attn.dense.bias")), D, 1e-6);
  mhk_model_destroy(m);
}

/* in whole passes: in evaluations, the same when blocks are computed again for gradients */
TEST(limited_heads_in_evaluations_and_recomputed_blocks) {
  enum { T = 12, V = 37 };
  int32_t tokens[2 * T], windows[2][3 * 4];
  mhk_config c;
  mhk_evaluate_desc d;
  mhk_evaluation whole, limited, self, part;
  mhk_real *gradients[2];
  test_config(&c, 0);
  mhk_model *m = mhk_model_create(ctx, &c, 11);
  REQUIRE(m && c.n_layer == 3 && c.vocab_size == V, "%s", mhk_message(ctx));
  for (int i = 0; i < 2 * T; i++) tokens[i] = i * i % V;
  memset(&d, 0, sizeof d);
  d.teacher = m;
  d.corpus = mhk_corpus_from_tokens(ctx, tokens, 2 * T, -1);
  d.length = T;
  for (int i = 0; i < 12; i++) windows[0][i] = 2, windows[1][i] = i == 7 ? 2 : MHK_WINDOW_ALL;
  mhk_evaluate(m, &d, &self);
  d.head_windows = windows[0];
  mhk_evaluate(m, &d, &whole);
  d.head_windows = windows[1];
  mhk_evaluate(m, &d, &limited);
  REQUIRE_OK(ctx);
  d.head_windows = NULL;
  d.without = MHK_WITHOUT_WINDOW; /* layers of attention have no such parts */
  CHECK(mhk_evaluate(m, &d, &part) == MHK_OK && part.kl == 0, "a teacher without what it does not have");
  CHECK(self.kl == 0 && limited.kl > 1e-9 && whole.kl > 2 * limited.kl, "KL %g of all heads, %g of one", whole.kl,
        limited.kl);
  for (int k = 0; k < 2; k++) {
    mhk_tape *t = mhk_tape_create(ctx);
    mhk_forward_desc f;
    mhk_tensor *w = mhk_model_find(m, "model.layers.0.self_attn.k_proj.weight");
    int32_t list[12];
    memset(&f, 0, sizeof f);
    memcpy(list, windows[0], sizeof list);
    f.windows = list;
    f.recompute = k;
    mhk_zero_grad(w);
    mhk_tensor *loss = mhk_mean(t, mhk_square(t, mhk_forward(t, m, tokens, 2, T, &f)));
    memset(list, 0, sizeof list); /* it is the caller's again */
    mhk_backward(t, loss);
    gradients[k] = (mhk_real *)malloc((size_t)w->count * sizeof(mhk_real));
    memcpy(gradients[k], w->grad, (size_t)w->count * sizeof(mhk_real));
    if (k) CHECK_SAME("gradients", gradients[0], gradients[1], w->count);
    mhk_tape_destroy(t);
  }
  free(gradients[0]);
  free(gradients[1]);
  mhk_corpus_destroy(d.corpus);
  mhk_model_destroy(m);
}

/* the sum over a head's matrices (B,H,T,T) of x times y */
static double inner_product(const mhk_tensor *x, const mhk_tensor *y, mhk_index h) {
  const mhk_index H = x->shape[1], each = x->shape[2] * x->shape[3];
  double sum = 0;
  for (mhk_index b = 0; b < x->shape[0]; b++)
    for (mhk_index i = 0; i < each; i++)
      sum += (double)mhk_data(x)[(b * H + h) * each + i] * (double)mhk_data(y)[(b * H + h) * each + i];
  return sum;
}

/* the calibrated start against the matrices themselves, which it never makes */
TEST(a_calibrated_student_fits_the_teachers_matrices) {
  enum { L = 3, H = 4, B = 2, T = 37, D = 24, P = 6, A_LOG = 4 * D };
  static const int32_t windows[L * H] = {0, 0, 0, 0, 5, 0, MHK_WINDOW_ALL, 9, 3, 3, 3, 3};
  int32_t tokens[B * T];
  mhk_config c;
  mhk_student_desc d;
  mhk_forward_desc forward;
  mhk_tensor *hidden[L + 1];
  mhk_tape *tape = mhk_tape_create(ctx);
  test_config(&c, 0);
  mhk_model *teacher = mhk_model_create(ctx, &c, 11);
  for (int i = 0; i < mhk_model_count(teacher); i++) { /* attention that looks somewhere */
    mhk_tensor *x = mhk_model_at(teacher, i);
    for (mhk_index k = 0; strstr(x->name, "q_proj") && k < x->count; k++) mhk_data(x)[k] *= 4;
  }
  memset(&d, 0, sizeof d);
  d.windows = windows;
  mhk_model *s = mhk_student_create(ctx, teacher, &d), *other = mhk_student_create(ctx, teacher, &d);
  REQUIRE(s && other, "%s", mhk_message(ctx));
  for (int i = 0; i < B * T; i++) tokens[i] = (i * i + 3 * i) % 31;
  mhk_tape_record(tape, 0);
  memset(&forward, 0, sizeof forward);
  forward.residuals = hidden;
  mhk_forward(tape, teacher, tokens, B, T, &forward);
  CHECK(mhk_student_calibrate(s, teacher, tokens, B, T) == MHK_OK, "%s", mhk_message(ctx));
  mhk_set_threads(ctx, 3);
  mhk_student_calibrate(other, teacher, tokens, B, T);
  mhk_set_threads(ctx, 1);
  same_model("calibrated by three threads", s, other);
  for (int l = 0; l < L; l++) {
    char name[96];
    snprintf(name, sizeof name, "backbone.layers.%d.mixer.state_gain", l);
    mhk_tensor *u = mhk_forward_norm(tape, teacher, l, hidden[l]), *gain = mhk_model_find(s, name), *without = NULL,
               *M = mhk_forward_matrix(tape, s, l, u, NULL), *A = mhk_forward_matrix(tape, teacher, l, u, NULL);
    mhk_real gains[H];
    REQUIRE(M && A && (l == 0) == !gain, "%s", mhk_message(ctx));
    snprintf(name, sizeof name, "backbone.layers.%d.mixer.in_proj.bias", l);
    if (gain) {
      memcpy(gains, mhk_data(gain), sizeof gains);
      memset(mhk_data(gain), 0, sizeof gains);
      without = mhk_forward_matrix(tape, s, l, u, NULL);
      memcpy(mhk_data(gain), gains, sizeof gains);
    }
    for (int h = 0; h < H; h++) {
      const int w = windows[l * H + h];
      double distance = 0;
      for (int b = 0; b < B; b++)
        for (int t = T / 2; t < T; t++)
          for (int i = 0; i <= t; i++)
            distance += (t - i) * (double)mhk_data(A)[((b * H + h) * T + t) * T + i] / (B * (T - T / 2));
      const double decay = 1 / (1 + exp(at(s, name, A_LOG + h)));
      CHECK(fabs(decay - pow(2, -1 / fmax(0.5, distance))) < 1e-4, "layer %d, head %d: the decay is %g", l, h, decay);
      CHECK(w != MHK_WINDOW_ALL || inner_product(A, A, h) - inner_product(A, M, h) < 1e-4 * inner_product(A, A, h),
            "layer %d, head %d is kept and differs from the teacher's", l, h);
      if (w == MHK_WINDOW_ALL || (gain && w > 0 && fabs((double)gains[h]) >= 1)) continue;
      /* at the least distance, what is left is orthogonal to what is scaled */
      const double scaled = inner_product(M, M, h) - (w > 0 ? inner_product(M, without, h) : 0),
                   left = inner_product(A, M, h) - inner_product(M, M, h) -
                          (w > 0 ? inner_product(A, without, h) - inner_product(M, without, h) : 0);
      CHECK(fabs(left) < 2e-3 * fabs(scaled) + 1e-4 * inner_product(A, A, h),
            "layer %d, head %d, window %d: the matrix is not the nearest, %g of %g", l, h, w, left, scaled);
    }
  }
  mhk_student_calibrate(s, teacher, NULL, B, T);
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "needs a teacher and a batch of at least two tokens");
  mhk_tape_destroy(tape);
  mhk_model_destroy(s);
  mhk_model_destroy(other);
  mhk_model_destroy(teacher);
}

/* an evaluation leaves out what a forward pass leaves out */
TEST(evaluations_without_state_or_window) {
  enum { T = 16 };
  int32_t tokens[3 * T];
  mhk_config c;
  mhk_student_desc desc;
  mhk_evaluate_desc d;
  mhk_evaluation e;
  test_config(&c, 0);
  memset(&desc, 0, sizeof desc);
  desc.window = 3;
  mhk_model *teacher = mhk_model_create(ctx, &c, 11), *m = mhk_student_create(ctx, teacher, &desc);
  REQUIRE(m, "%s", mhk_message(ctx));
  for (int i = 0; i < 3 * T; i++) tokens[i] = i * 5 % 37;
  memset(&d, 0, sizeof d);
  d.corpus = mhk_corpus_from_tokens(ctx, tokens, 3 * T, -1);
  d.length = T;
  double entropy[3];
  for (int k = 0; k < 3; k++) {
    static const mhk_without parts[3] = {MHK_WITHOUT_NONE, MHK_WITHOUT_STATE, MHK_WITHOUT_WINDOW};
    mhk_forward_desc f;
    mhk_tape *t = mhk_tape_create(ctx);
    double sum = 0, p[64];
    memset(&f, 0, sizeof f);
    f.without = d.without = parts[k];
    const mhk_real *logits = mhk_data(mhk_forward(t, m, tokens, 3, T, &f));
    REQUIRE(logits && mhk_evaluate(m, &d, &e) == MHK_OK, "%s", mhk_message(ctx));
    for (int i = 0; i < 3 * T; i++) {
      if (i % T + 1 == T) continue;
      log_softmax(logits + i * 37, 37, p);
      sum -= p[tokens[i + 1]] / (3 * (T - 1));
    }
    CHECK(fabs(sum - e.cross_entropy) < 1e-5, "without %d: %.7f, a forward pass says %.7f", k, e.cross_entropy, sum);
    entropy[k] = sum;
    mhk_tape_destroy(t);
  }
  CHECK(entropy[0] != entropy[1] && entropy[0] != entropy[2] && entropy[1] != entropy[2], "parts make no difference");
  mhk_corpus_destroy(d.corpus);
  mhk_model_destroy(m);
  mhk_model_destroy(teacher);
}

TEST(students_of_other_shapes) {
  mhk_config c;
  mhk_student_desc d;
  mhk_model *teacher, *s;
  mhk_tensor *in;
  mhk_index i, D = 24, E = 24;
  test_config(&c, 0);
  teacher = mhk_model_create(ctx, &c, 11);
  REQUIRE(teacher, "%s", mhk_message(ctx));
  memset(&d, 0, sizeof d);
  /* identity, no rotary, its own d_state */
  d.init = MHK_INIT_IDENTITY;
  d.rotary_dim = -1;
  d.d_state = 9;
  s = mhk_student_create(ctx, teacher, &d);
  REQUIRE(s, "%s", mhk_message(ctx));
  CHECK(mhk_model_config(s)->ssm_rotary_dim == 0 && mhk_model_config(s)->d_state == 9 &&
            mhk_model_config(s)->n_head == 0 && mhk_model_config(s)->rope_theta == 0,
        "shape");
  in = mhk_model_find(s, "backbone.layers.0.mixer.in_proj.weight");
  for (i = 0; i < in->count; i++)
    CHECK(fabs((double)mhk_data(in)[i]) <= 1 / sqrt(24.0), "in_proj element %lld is %g", (long long)i,
          (double)mhk_data(in)[i]);
  /* N differs from P: B and C stay as identity has them */
  CHECK(mhk_model_init_mixers(s, teacher, MHK_INIT_ATTENTION, 3) == MHK_OK, "%s", mhk_message(ctx));
  CHECK_SAME("x <- v", mhk_data(in), mhk_data(mhk_model_find(teacher, "model.layers.0.self_attn.v_proj.weight")),
             E * D);
  for (i = E * D; i < (E + 2 * 36) * D; i++)
    CHECK(fabs((double)mhk_data(in)[i]) <= 1 / sqrt(24.0), "in_proj element %lld", (long long)i);
  CHECK(mhk_model_init_mixers(s, NULL, MHK_INIT_RANDOM, 3) == MHK_OK, "%s", mhk_message(ctx));
  mhk_model_init_mixers(s, NULL, MHK_INIT_ATTENTION, 3);
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "needs the teacher");
  mhk_model_destroy(s);
  mhk_model_destroy(teacher);
}

TEST(students_that_cannot_be) {
  mhk_config c;
  mhk_student_desc d;
  mhk_model *teacher;
  int l;
  test_config(&c, 0);
  teacher = mhk_model_create(ctx, &c, 11);
  REQUIRE(teacher, "%s", mhk_message(ctx));
  memset(&d, 0, sizeof d);
  d.d_state = 9;
  d.n_keep_attention = 1;
  d.keep_attention = &l;
  l = 3;
  CHECK(!mhk_student_create(ctx, teacher, &d), "made");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "cannot keep attention in layer 3: the teacher has layers 0 to 2");
  d.n_keep_attention = 0;
  d.rotary_dim = 7;
  CHECK(!mhk_student_create(ctx, teacher, &d), "made");
  CHECK_FAILS(ctx, MHK_ERROR_CONFIG, "rotary_dim 7 of B and C is odd");
  CHECK(!mhk_student_create(ctx, NULL, NULL), "made");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "needs a teacher");
  mhk_model_destroy(teacher);
}

TEST(recipes) {
  mhk_config c;
  mhk_distill_desc d, best, paper;
  mhk_trainer *tr;
  int i;
  memset(&d, 0, sizeof d);
  test_config(&c, 0);
  d.teacher = mhk_model_create(ctx, &c, 11);
  best = mhk_distill_defaults(&d);
  d.recipe = MHK_RECIPE_PAPER;
  paper = mhk_distill_defaults(&d);
  for (i = 0; i < 3; i++)
    CHECK(best.stages[i].decay == 0.5 && paper.stages[i].decay == 0.1 &&
              (best.stages[i].lr == paper.stages[i].lr) == (i < 2),
          "the recipes' stage %d", i + 1);
  CHECK(best.batch == 4 && paper.batch == 8 && best.stages[2].tokens == 2000000 && paper.stages[2].tokens == 1500000 &&
            best.stages[2].lr == 5e-4 && paper.stages[2].lr == 1e-3,
        "batch, budget and learning rate");
  CHECK(best.stages[2].own_stream == 0.06 && paper.stages[2].own_stream < 0, "own-stream alignment");
  CHECK(best.student_desc.init == MHK_INIT_ATTENTION && paper.student_desc.init == MHK_INIT_IDENTITY, "the start");
  CHECK(paper.student_desc.gates < 0 && paper.student_desc.bias < 0 && paper.student_desc.calibrate < 0,
        "what goes beyond the paper");
  tr = mhk_distill(ctx, &d);
  REQUIRE(tr, "%s", mhk_message(ctx));
  CHECK(mhk_model_config(mhk_student(tr))->ssm_rotary_dim == 0, "the paper's student has rotary B and C");
  d.stages[0].decay = 0.3, d.stages[2].own_stream = 0.5, d.stages[2].tokens = 64;
  d.student_desc.init = MHK_INIT_RANDOM, d.student_desc.rotary_dim = 2;
  paper = mhk_distill_defaults(&d);
  CHECK(paper.stages[0].decay == 0.3 && paper.stages[2].own_stream == 0.5 && paper.stages[0].tokens == 0 &&
            paper.stages[2].tokens == 64 && paper.student_desc.init == MHK_INIT_RANDOM &&
            paper.student_desc.rotary_dim == 2,
        "a recipe overrides what the caller says");
  CHECK_OK(ctx);
}

TEST(students_of_grouped_and_frozen_teachers) {
  mhk_config c;
  mhk_model *teacher, *s;
  mhk_tensor *in, *k;
  int h;
  test_config(&c, 1); /* 4 heads on 2 of keys and values */
  teacher = mhk_model_create(ctx, &c, 2);
  s = mhk_student_create(ctx, teacher, NULL);
  REQUIRE(s, "%s", mhk_message(ctx));
  in = mhk_model_find(s, "backbone.layers.0.mixer.in_proj.weight");
  k = mhk_model_find(teacher, "model.layers.0.self_attn.k_proj.weight");
  for (h = 0; h < 4; h++)
    CHECK_SAME("B of a head", mhk_data(in) + (24 + 6 * h) * 24, mhk_data(k) + 6 * (h / 2) * 24, 6 * 24);
  mhk_model_transfer(s, NULL);
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "needs a teacher");
  mhk_model_destroy(s);
  c.vocab_size = 38;
  s = mhk_model_create(ctx, &c, 2);
  mhk_model_transfer(s, teacher);
  CHECK_FAILS(ctx, MHK_ERROR_SHAPE,
              "model.embed_tokens.weight of the student is (38,24), model.embed_tokens.weight of the teacher is "
              "(37,24)");
  mhk_model_destroy(s);
  mhk_model_destroy(teacher);
  teacher = mhk_load(ctx, TINY); /* bf16, mapped */
  s = mhk_student_create(ctx, teacher, NULL);
  REQUIRE(s, "%s", mhk_message(ctx));
  CHECK(mhk_model_config(s)->vocab_size == 1024 && mhk_model_config(s)->pad_vocab_multiple == 8, "vocabulary");
  CHECK(mhk_model_make_trainable(teacher) == MHK_OK, "%s", mhk_message(ctx));
  in = mhk_model_find(s, "backbone.layers.3.mixer.in_proj.weight");
  CHECK_SAME("C <- q", mhk_data(in) + (128 + 128) * 128,
             mhk_data(mhk_model_find(teacher, "model.layers.3.self_attn.q_proj.weight")), 128 * 128);
  CHECK_SAME("head bias", mhk_data(mhk_model_find(s, "lm_head.bias")),
             mhk_data(mhk_model_find(teacher, "lm_head.bias")), 1024);
  mhk_model_destroy(teacher); /* the student has its own tokenizer */
  CHECK(mhk_model_tokenizer(s) && mhk_save(s, test_path("student"), MHK_F32) == MHK_OK, "%s", mhk_message(ctx));
  mhk_model_destroy(s);
  s = mhk_load(ctx, test_path("student"));
  REQUIRE(s, "%s", mhk_message(ctx));
  mhk_model_transfer(s, s);
  CHECK_FAILS(ctx, MHK_ERROR_STATE, "which are frozen: call mhk_model_make_trainable() first");
  CHECK(!mhk_student_create(ctx, s, NULL), "made");
  CHECK_FAILS(ctx, MHK_ERROR_UNSUPPORTED, "a student needs a Phi or Llama teacher; this one is a Phi-Mamba");
  mhk_model_destroy(s);
}

/* ---- files that lie, memory that runs out */

TEST(changed_models) {
  size_t weights = 0, text = 0, n;
  char *w = test_read_file(test_path("model3/model.safetensors"), &weights),
       *t = test_read_file(test_path("model3/config.json"), &text), *changed;
  uint64_t random = 17;
  int i, loaded = 0;
  REQUIRE(w && t, "no model to change");
  test_make_folder(test_path("changed"));
  for (i = 7, n = 0; i >= 0; i--) n = n << 8 | (unsigned char)w[i];
  for (i = 0; i < 400; i++) { /* config.json or the header of the weights */
    mhk_model *m;
    const size_t span = i % 2 ? text : n + 8;
    int k;
    changed = (char *)malloc(i % 2 ? text : weights);
    memcpy(changed, i % 2 ? t : w, i % 2 ? text : weights);
    for (k = 0; k < 1 + i % 3; k++)
      changed[test_random(&random) % span] =
          (char)(i % 4 < 2 ? '0' + (int)(test_random(&random) % 10) : (int)(test_random(&random) & 255));
    test_write_file(test_path("changed/config.json"), i % 2 ? changed : t, text);
    test_write_file(test_path("changed/model.safetensors"), i % 2 ? w : changed, weights);
    m = mhk_load(ctx, test_path("changed"));
    CHECK((m != NULL) == !mhk_failed(ctx), "a model and an error at once");
    loaded += m != NULL;
    mhk_model_destroy(m);
    mhk_clear_error(ctx);
    free(changed);
  }
  CHECK(loaded > 0 && loaded < 400, "%d loaded", loaded);
  free(w);
  free(t);
}

TEST(allocations_that_fail) {
  long n;
  int done = 0;
  for (n = 1; n < 3000 && !done; n++) {
    test_memory memory;
    mhk_context *c = test_context(&memory, n, 0);
    if (c) {
      mhk_model *teacher = mhk_load(c, test_path("model1")), *s = mhk_student_create(c, teacher, NULL);
      mhk_model_make_trainable(teacher);
      done = s && mhk_save(s, test_path("failing"), MHK_BF16) == MHK_OK;
      CHECK(done ? !mhk_failed(c) : mhk_error(c) == MHK_ERROR_MEMORY, "call %ld: %s", n, mhk_message(c));
      if (n % 2) {
        mhk_model_destroy(s);
        mhk_model_destroy(teacher);
      }
      mhk_destroy(c);
    }
    CHECK(memory.bytes == 0 && memory.blocks == 0 && !memory.wrong_size, "call %ld leaks %ld bytes", n,
          (long)memory.bytes);
  }
  CHECK(done && n > 5, "%ld calls", n);
}

int main(int argc, char **argv) {
  int result;
  test_begin(argc, argv);
  ctx = mhk_create(NULL);
  RUN(presets);
  RUN(phi_as_released);
  RUN(phi_that_is_not_supported);
  RUN(config_check_says_what_is_wrong);
  RUN(phi_mamba_as_released);
  RUN(gates_and_windows_in_config_json);
  RUN(mamba2_as_written_by_libraries);
  RUN(the_bundled_teacher);
  RUN(saved_and_loaded);
  RUN(what_a_killed_save_left_goes_with_the_next);
  RUN(a_single_file_holds_everything);
  RUN(saving_what_cannot_be_saved);
  RUN(weights_that_do_not_fit);
  RUN(students_start_from_the_teacher);
  RUN(evaluations_by_quarter_of_the_window_are_what_forward_passes_say_and_add_up);
  RUN(heads_of_a_forward_pass_that_see_their_last_tokens_only);
  RUN(limited_heads_in_evaluations_and_recomputed_blocks);
  RUN(a_calibrated_student_fits_the_teachers_matrices);
  RUN(evaluations_without_state_or_window);
  RUN(students_of_other_shapes);
  RUN(students_that_cannot_be);
  RUN(recipes);
  RUN(students_of_grouped_and_frozen_teachers);
  RUN(changed_models);
  RUN(allocations_that_fail);
  result = test_end();
  mhk_destroy(ctx);
  return result;
}
