/* Files that others wrote: how they are opened, what of them counts, what is warned about, what is
   refused. */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L /* mkfifo, truncate, symlink */
#endif
#include "models.h"
#ifndef _WIN32
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#endif

#define TINY "examples/tiny"

static mhk_context *ctx;
static char warnings[8192]; /* of the context, one a line */
static int n_warnings;

static void keep_warning(void *user, mhk_log_level level, const char *text) {
  const size_t have = strlen(warnings);
  (void)user;
  if (level != MHK_LOG_WARNING) return;
  n_warnings++;
  snprintf(warnings + have, sizeof warnings - have, "%s\n", text);
}

static void no_warnings(void) {
  n_warnings = 0;
  warnings[0] = 0;
}

static int write_text(const char *path, const char *text) { return test_write_file(path, text, strlen(text)); }

/* a file's text with the first `from` in it replaced; the caller frees it */
static char *changed(const char *text, const char *from, const char *to) {
  const char *at = strstr(text, from);
  char *out = (char *)malloc(strlen(text) + strlen(to) + 1);
  CHECK(at != NULL, "no %s in %s", from, text);
  if (!at) at = text + strlen(text), from = "";
  sprintf(out, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
  return out;
}

static mhk_model *load_strictly(const char *path) {
  mhk_load_desc d;
  memset(&d, 0, sizeof d);
  d.strict = 1;
  return mhk_load_with(ctx, path, &d);
}

/* logits of the last of a few tokens, in memory of its own */
static void logits_of(mhk_model *m, mhk_real *out) {
  static const int32_t tokens[] = {7, 2, 30, 11, 4, 4, 19, 1, 25};
  mhk_session *s = mhk_session_create(m, NULL);
  mhk_feed(s, tokens, 9);
  if (mhk_logits(s, 0)) memcpy(out, mhk_logits(s, 0), (size_t)mhk_model_config(m)->vocab_size * sizeof *out);
  CHECK_OK(ctx);
  mhk_session_destroy(s);
}

#ifndef _WIN32
TEST(only_regular_files_are_opened_by_name_and_nothing_waits) {
  static const char *const folders[] = {"fifo_weights", "fifo_config"};
  const char *path[3];
  mhk_model *m = model_new(ctx, PHI, 3);
  mhk_session *s = mhk_session_create(m, NULL);
  struct sockaddr_un address;
  int i, listener = socket(AF_UNIX, SOCK_STREAM, 0);
  path[0] = test_path("fifo.safetensors");
  path[1] = "/dev/zero";
  path[2] = test_path("socket");
  remove(path[0]);
  remove(path[2]);
  memset(&address, 0, sizeof address);
  address.sun_family = AF_UNIX;
  snprintf(address.sun_path, sizeof address.sun_path, "%s", path[2]);
  REQUIRE(mkfifo(path[0], 0600) == 0 && listener >= 0, "no pipe to test with");
  if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0) path[2] = path[0];
  for (i = 0; i < 3; i++) {
    CHECK(!mhk_load(ctx, path[i]), "loaded");
    CHECK_FAILS(ctx, MHK_ERROR_FILE, "it is not a regular file");
    CHECK(!mhk_file_open(ctx, path[i]), "opened");
    CHECK_FAILS(ctx, MHK_ERROR_FILE, "it is not a regular file");
    CHECK(!mhk_tokenizer_load(ctx, path[i]), "opened");
    CHECK_FAILS(ctx, MHK_ERROR_FILE, "it is not a regular file");
    CHECK(mhk_session_load(s, 0, path[i]) != MHK_OK, "opened");
    CHECK_FAILS(ctx, MHK_ERROR_FILE, "it is not a regular file");
  }
  for (i = 0; i < 2; i++) { /* in a model's folder */
    char inside[600];
    mhk_save(m, test_path(folders[i]), MHK_F32);
    snprintf(inside, sizeof inside, "%s/%s", test_path(folders[i]), i ? "config.json" : "model.safetensors.index.json");
    remove(inside);
    CHECK(mkfifo(inside, 0600) == 0, "no pipe");
    CHECK(i ? !mhk_load(ctx, test_path(folders[i])) : !mhk_file_open(ctx, inside), "loaded");
    CHECK_FAILS(ctx, MHK_ERROR_FILE, "it is not a regular file");
  }
  close(listener);
  mhk_model_destroy(m);
}

TEST(a_model_that_was_read_lives_without_its_file) {
  mhk_load_desc d;
  mhk_real first[31], second[31], third[31];
  mhk_model *m = model_new(ctx, HYBRID, 3), *back;
  logits_of(m, first);
  mhk_save(m, test_path("whole.safetensors"), MHK_F32);
  memset(&d, 0, sizeof d);
  d.read = 1;
  back = mhk_load_with(ctx, test_path("whole.safetensors"), &d);
  REQUIRE_OK(ctx);
  logits_of(back, second);
  CHECK(truncate(test_path("whole.safetensors"), 100) == 0, "cannot cut");
  logits_of(back, third);
  CHECK_SAME("as saved", second, first, 31);
  CHECK_SAME("after the file was cut", third, second, 31);
  CHECK(mhk_memory_in_use(ctx) > 4 * (size_t)mhk_config_parameters(mhk_model_config(m)),
        "the context does not hold the file");
  CHECK(!mhk_load_with(ctx, test_path("whole.safetensors"), &d), "loaded what is cut");
  CHECK_FAILS(ctx, MHK_ERROR_FORMAT, "whole.safetensors");
  mhk_model_destroy(back);
  mhk_model_destroy(m);
}
#endif

TEST(strict_loading_refuses_what_else_is_a_warning) {
  char *config, *odd;
  mhk_model *m = model_new(ctx, PHI_MAMBA, 3);
  mhk_save(m, test_path("odd"), MHK_F32);
  config = test_read_file(test_path("odd/config.json"), NULL);
  REQUIRE(config != NULL, "%s", mhk_message(ctx));
  odd = changed(config, "\"d_state\"", "\"d_steak\": 1, \"d_state\"");
  write_text(test_path("odd/config.json"), odd);
  mhk_model_destroy(m);
  no_warnings();
  m = mhk_load(ctx, test_path("odd"));
  CHECK(m && n_warnings == 1 && strstr(warnings, "d_steak"), "%s%s", warnings, mhk_message(ctx));
  mhk_model_destroy(m);
  CHECK(!load_strictly(test_path("odd")), "loaded");
  CHECK_FAILS(ctx, MHK_ERROR_UNSUPPORTED, "d_steak");
  m = mhk_load(ctx, test_path("odd")); /* the next one is as usual */
  CHECK(m != NULL, "%s", mhk_message(ctx));
  mhk_model_destroy(m);
  m = load_strictly(TINY);
  CHECK(m != NULL, "%s", mhk_message(ctx));
  mhk_model_destroy(m);
  CHECK(!mhk_load_with(NULL, TINY, NULL), "loaded without a context");
  free(odd);
  free(config);
}

/* ---- tensors */

static mhk_stored numbers_named(const char *name, int rank, mhk_index a, mhk_index b, const void *data) {
  mhk_stored x;
  memset(&x, 0, sizeof x);
  x.name = name;
  x.dtype = MHK_REAL;
  x.rank = rank;
  x.shape[0] = a;
  x.shape[1] = b;
  x.count = a * (rank > 1 ? b : 1);
  x.data = data;
  x.bytes = (size_t)x.count * sizeof(mhk_real);
  return x;
}

/* the tensors of a file of numbers, from its byte order to the host's; returns how many */
static int copy_tensors(mhk_file *f, mhk_stored *x) {
  int i;
  for (i = 0; i < mhk_file_count(f); i++) {
    mhk_real *numbers;
    x[i] = *mhk_file_at(f, i);
    numbers = (mhk_real *)malloc(sizeof *numbers * (size_t)x[i].count);
    mhk_file_read(ctx, &x[i], numbers);
    x[i].data = numbers;
    x[i].dtype = MHK_REAL;
    x[i].bytes = sizeof *numbers * (size_t)x[i].count;
  }
  return i;
}
static void free_tensors(mhk_stored *x, int n) {
  while (n > 0) free((void *)(uintptr_t)x[--n].data);
}

/* Writes the tensors of folder `from` and extra ones to folder `to` with the same config.json, in
   which the text `old` becomes `text` (NULL: nothing does). */
static void with_tensors(const char *from, const char *to, const mhk_stored *extra, int n_extra, const char *old,
                         const char *text) {
  static mhk_stored x[128];
  char path[600], *config, *other;
  mhk_file *f = mhk_file_open(ctx, test_path(from));
  int i, n;
  n = copy_tensors(f, x);
  for (i = 0; i < n_extra; i++) x[n++] = extra[i];
  test_make_folder(test_path(to));
  snprintf(path, sizeof path, "%s/model.safetensors", test_path(to));
  mhk_file_write(ctx, path, n, x, 0, NULL);
  free_tensors(x, n - n_extra);
  mhk_file_close(f);
  snprintf(path, sizeof path, "%s/config.json", test_path(from));
  config = test_read_file(path, NULL);
  CHECK(config != NULL, "no %s: %s", path, mhk_message(ctx));
  other = old && config ? changed(config, old, text) : NULL;
  snprintf(path, sizeof path, "%s/config.json", test_path(to));
  write_text(path, other ? other : config ? config : "");
  free(other);
  free(config);
}

TEST(tensors_that_a_model_does_not_use_are_a_warning_with_a_list) {
  static const char *const names[] = {"model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.1.attn.masked_bias",
                                      "optimizer.step"};
  mhk_real some[4] = {1, 2, 3, 4}, want[31], got[31];
  mhk_stored extra[3];
  mhk_model *m = model_new(ctx, PHI, 3);
  int i;
  mhk_save(m, test_path("phi"), MHK_F32);
  logits_of(m, want);
  for (i = 0; i < 3; i++) extra[i] = numbers_named(names[i], 1, 4, 1, some);
  with_tensors("phi", "extra", extra, 3, NULL, NULL);
  mhk_model_destroy(m);
  no_warnings();
  m = mhk_load(ctx, test_path("extra"));
  REQUIRE_OK(ctx);
  CHECK(n_warnings == 1 && strstr(warnings, "3 tensors that the model does not use"), "%s", warnings);
  for (i = 0; i < 3; i++) CHECK(strstr(warnings, names[i]), "%s is not in %s", names[i], warnings);
  logits_of(m, got);
  CHECK_SAME("logits", got, want, 31);
  mhk_model_destroy(m);
  CHECK(!load_strictly(test_path("extra")), "loaded");
  CHECK_FAILS(ctx, MHK_ERROR_UNSUPPORTED, "optimizer.step");
}

/* a layer more, or a part that config.json switches off: another model, not a leftover */
TEST(tensors_that_contradict_the_configuration_are_refused) {
  static const struct { int kind; const char *name;
  } cases[] = {{PHI, "model.layers.2.fc9"}, /* no part of a model: a warning */
               {PHI, "model.layers.0.self_attn.q_layernorm.weight"},
               {PHI, "model.layers.2.mlp.fc1.weight"},
               {MAMBA2, "lm_head.bias"},
               {MAMBA2, "backbone.layers.1.mixer.in_proj.bias"},
               {MAMBA2, "backbone.norm_f.bias"},
               {MAMBA2, "backbone.layers.0.norm.bias"},
               {MAMBA2, "backbone.layers.7.mixer.A_log"},
               {MAMBA2, "backbone.layers.0.mlp.fc1.weight"},
               {PHI_MAMBA, "backbone.layers.1.mixer.out_proj.bias"}};
  mhk_real some[4] = {1, 2, 3, 4};
  size_t i;
  for (i = 0; i < sizeof cases / sizeof *cases; i++) {
    mhk_stored extra = numbers_named(cases[i].name, 1, 4, 1, some);
    mhk_model *m = model_new(ctx, cases[i].kind, 3);
    mhk_save(m, test_path("plain"), MHK_F32);
    mhk_model_destroy(m);
    with_tensors("plain", "contrary", &extra, 1, NULL, NULL);
    m = mhk_load(ctx, test_path("contrary"));
    if (i == 0)
      CHECK(m != NULL, "%s", mhk_message(ctx));
    else {
      CHECK(!m, "%s: loaded", cases[i].name);
      CHECK_FAILS(ctx, MHK_ERROR_CONFIG, cases[i].name);
    }
    mhk_model_destroy(m);
  }
}

TEST(a_head_of_its_own_counts_where_the_configuration_ties_it) {
  static const int kinds[] = {PHI, MAMBA2_BIASES};
  int i;
  for (i = 0; i < 2; i++) {
    mhk_real want[31], got[31];
    mhk_model *m = model_new(ctx, kinds[i], 3), *back;
    mhk_stored extra;
    int k;
    logits_of(m, want);
    mhk_save(m, test_path("untied"), MHK_F32);
    with_tensors("untied", "separate", NULL, 0, "\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true");
    no_warnings();
    back = mhk_load(ctx, test_path("separate"));
    REQUIRE_OK(ctx);
    CHECK(n_warnings == 1 && strstr(warnings, "ties lm_head.weight to the embedding"), "%s", warnings);
    logits_of(back, got);
    CHECK_SAME("the file's head", got, want, 31);
    CHECK(!load_strictly(test_path("separate")), "loaded");
    CHECK_FAILS(ctx, MHK_ERROR_UNSUPPORTED, "ties lm_head.weight");
    for (k = 0; k < 2; k++) { /* saving keeps it, without a doubt left */
      const char *path = test_path(k ? "separate.safetensors" : "separate_again");
      mhk_model *again;
      mhk_save(back, path, MHK_F32);
      no_warnings();
      again = mhk_load(ctx, path);
      REQUIRE_OK(ctx);
      CHECK(n_warnings == 0, "%s", warnings);
      logits_of(again, got);
      CHECK_SAME("the head that was saved", got, want, 31);
      mhk_model_destroy(again);
    }
    mhk_model_destroy(back);
    mhk_model_destroy(m);
    /* the embedding once more is no other head, in whatever type */
    m = model_new(ctx, kinds[i] == PHI ? PHI : MAMBA2, 3);
    for (k = 0; k < 2; k++) {
      mhk_config c = *mhk_model_config(m);
      mhk_tensor *e =
          mhk_model_find(m, c.arch == MHK_ARCH_PHI ? "model.embed_tokens.weight" : "backbone.embeddings.weight");
      double wide[31 * 24];
      mhk_index j;
      mhk_model *tied;
      c.tie_embeddings = 1;
      tied = mhk_model_create(ctx, &c, 3);
      memcpy(mhk_data(mhk_model_at(tied, 0)), mhk_data(e), (size_t)e->count * sizeof(mhk_real));
      mhk_save(tied, test_path("tied"), MHK_F32);
      for (j = 0; j < e->count; j++) wide[j] = (double)mhk_data(e)[j];
      extra = numbers_named("lm_head.weight", 2, 31, 24, k ? (const void *)wide : e->data);
      if (k) extra.dtype = MHK_F64, extra.bytes = sizeof wide;
      with_tensors("tied", "twice", &extra, 1, NULL, NULL);
      mhk_model_destroy(tied);
      no_warnings();
      tied = load_strictly(test_path("twice"));
      CHECK(tied && n_warnings == 0 && mhk_model_config(tied)->tie_embeddings, "%s%s", warnings, mhk_message(ctx));
      mhk_model_destroy(tied);
    }
    mhk_model_destroy(m);
  }
}

/* a tensor that the model does not use may have any type; one that it uses may not */
TEST(types_that_are_not_read_matter_only_where_they_are_used) {
  mhk_model *m = model_new(ctx, PHI, 3);
  char *data;
  size_t n, i, places = 0;
  static const char from[] = "\"dtype\":\"U16\"", to[] = "\"dtype\":\"C64\"";
  static const uint16_t some[4] = {1, 2, 3, 4};
  mhk_stored extra = numbers_named("leftover", 1, 4, 1, some);
  extra.dtype = MHK_U16;
  extra.bytes = sizeof some;
  mhk_save(m, test_path("phi"), MHK_F32);
  mhk_model_destroy(m);
  with_tensors("phi", "odd_type", &extra, 1, NULL, NULL);
  data = test_read_file(test_path("odd_type/model.safetensors"), &n);
  REQUIRE(data != NULL, "%s", mhk_message(ctx));
  for (i = 0; i + sizeof from <= n; i++)
    if (memcmp(data + i, from, sizeof from - 1) == 0) {
      memcpy(data + i, to, sizeof to - 1);
      places++;
    }
  CHECK(places == 1, "%d places", (int)places);
  test_write_file(test_path("odd_type/model.safetensors"), data, n);
  no_warnings();
  m = mhk_load(ctx, test_path("odd_type"));
  CHECK(m && n_warnings == 1 && strstr(warnings, "leftover"), "%s%s", warnings, mhk_message(ctx));
  mhk_model_destroy(m);
  for (i = 0; i + 32 < n; i++)
    if (memcmp(data + i, "lm_head.weight\":{\"dtype\":\"F32\"", 30) == 0) memcpy(data + i + 26, "F34", 3);
  test_write_file(test_path("odd_type/model.safetensors"), data, n);
  CHECK(!mhk_load(ctx, test_path("odd_type")), "loaded");
  CHECK_FAILS(ctx, MHK_ERROR_CONFIG, "lm_head.weight has type F34 in model.safetensors");
  free(data);
}

/* ---- settings */

enum { honoured, quiet, warned, refused, ends, sampling };
enum {
  phi,
  rope,
  mamba2,
  state_spaces,
  ssm_cfg,
  language_model,
  mixer_model,
  block,
  core_input,
  attention_input,
  generation
};
static const struct { int where; const char *key, *value; int does; } keys[] = {
#define KEY(where, key, value, does) {where, key, value, does},
#include "keys.h"
#undef KEY
};

typedef struct text { char t[4096]; } text;

/* A JSON object: pairs of key and value from base, but for the one called key, which has the given
   value (NULL: it is left out if it is not in base). */
static text object(const char *const (*base)[2], const char *key, const char *value) {
  text x;
  char *at = x.t;
  *at++ = '{';
  for (; base && (*base)[0]; base++)
    if (!value || strcmp((*base)[0], key) != 0)
      at += sprintf(at, "%s\"%s\": %s", at[-1] == '{' ? "" : ", ", (*base)[0], (*base)[1]);
  if (value) at += sprintf(at, "%s\"%s\": %s", at[-1] == '{' ? "" : ", ", key, value);
  strcpy(at, "}");
  return x;
}

/* the smallest config.json of each kind, with one setting more or another one */
static text configuration(int where, const char *key, const char *value) {
  static const char *const of_phi[][2] = {
      {"model_type", "\"phi\""},  {"vocab_size", "32"},         {"hidden_size", "24"}, {"intermediate_size", "96"},
      {"num_hidden_layers", "2"}, {"num_attention_heads", "3"}, {NULL, NULL}};
  static const char *const of_mamba2[][2] = {{"model_type", "\"mamba2\""}, {"vocab_size", "32"}, {"hidden_size", "24"},
                                             {"num_hidden_layers", "2"},   {"num_heads", "6"},   {"head_dim", "8"},
                                             {"state_size", "5"},          {"n_groups", "1"},    {NULL, NULL}};
  static const char *const of_spaces[][2] = {{"d_model", "24"},
                                             {"n_layer", "2"},
                                             {"vocab_size", "31"},
                                             {"ssm_cfg", "{\"layer\": \"Mamba2\", \"headdim\": 8}"},
                                             {NULL, NULL}};
  static const char *const of_ssm[][2] = {{"layer", "\"Mamba2\""}, {"headdim", "8"}, {NULL, NULL}};
  static const char *const of_language[][2] = {{"vocab_size", "31"}, {NULL, NULL}};
  static const char *const of_mixers[][2] = {{"d_model", "24"}, {"n_layer", "2"}, {NULL, NULL}};
  static const char *const of_block[][2] = {{"CoreType", "\"modules.mixers.discrete_mamba2\""},
                                            {"core_input", "{\"n_v_heads\": 3, \"n_qk_heads\": 3}"},
                                            {NULL, NULL}};
  static const char *const of_core[][2] = {{"n_v_heads", "3"}, {"n_qk_heads", "3"}, {NULL, NULL}};
  static const char *const of_attention[][2] = {{"num_attention_heads", "3"}, {NULL, NULL}};
  text x, inner, language, mixers, attention;
  switch (where) {
    case phi: return object(of_phi, key, value);
    case rope: inner = object(NULL, key, value); return object(of_phi, "rope_parameters", inner.t);
    case mamba2: return object(of_mamba2, key, value);
    case state_spaces: return object(of_spaces, key, value);
    case ssm_cfg: inner = object(of_ssm, key, value); return object(of_spaces, "ssm_cfg", inner.t);
    default: break;
  }
  inner = object(of_core, key, where == core_input ? value : NULL);
  inner = object(of_block, where == block ? key : "core_input", where == block ? value : inner.t);
  language = object(of_language, key, where == language_model ? value : NULL);
  mixers = object(of_mixers, key, where == mixer_model ? value : NULL);
  attention = object(of_attention, key, where == attention_input ? value : NULL);
  snprintf(x.t, sizeof x.t,
           "{\"LanguageModel\": {\"input\": %.900s}, \"MixerModel\": {\"input\": %.900s}, \"Block1\": %.900s, "
           "\"Block2\": {\"CoreType\": "
           "\"modules.mixers.phi_attention\", \"core_input\": %.900s}}",
           language.t, mixers.t, inner.t, attention.t);
  return x;
}

static mhk_result read_config(const text *x, mhk_config *c) {
  memset(c, 0, sizeof *c);
  return mhk_config_parse(ctx, x->t, strlen(x->t), "config.json", c);
}

TEST(every_setting_of_a_configuration_is_honoured_or_said_to_have_no_effect_or_refused) {
  mhk_config usual, c;
  size_t i, k = 0, at;
  for (i = 0; i < sizeof keys / sizeof *keys; i++) {
    text x;
    mhk_result r;
    if (keys[i].where == generation) continue;
    x = configuration(keys[i].where, "", NULL);
    no_warnings();
    REQUIRE(read_config(&x, &usual) == MHK_OK && n_warnings == 0, "%s: %s%s", x.t, mhk_message(ctx), warnings);
    x = configuration(keys[i].where, keys[i].key, keys[i].value);
    r = read_config(&x, &c);
    for (at = 0; at < sizeof c && ((char *)&c)[at] == ((char *)&usual)[at]; at++) {}
    switch (keys[i].does) {
      case honoured:
        CHECK(r == MHK_OK && n_warnings == 0 && at < sizeof c, "%s is not honoured: %s%s", x.t, mhk_message(ctx),
              warnings);
        break;
      case warned:
        CHECK(r == MHK_OK && at == sizeof c && n_warnings == 1 && strstr(warnings, keys[i].key),
              "%s is not warned about: %s%s", x.t, mhk_message(ctx), warnings);
        break;
      case refused: CHECK(r != MHK_OK && strlen(mhk_message(ctx)) > 20, "%s is not refused", x.t); break;
      default:
        CHECK(r == MHK_OK && at == sizeof c && n_warnings == 0, "%s is not quiet: %s%s", x.t, mhk_message(ctx),
              warnings);
        break;
    }
    mhk_clear_error(ctx);
    k++;
  }
  CHECK(k > 150, "only %d settings", (int)k);
}

/* Whatever a setting says: an error with a sentence, or a configuration that makes sense; and
   weights that then do not fit are told so. */
TEST(settings_of_any_value_are_refused_or_make_a_configuration) {
  static const char *const values[] = {"-1",
                                       "0",
                                       "1",
                                       "7",
                                       "65537",
                                       "16777217",
                                       "2147483647",
                                       "2147483648",
                                       "9223372036854775807",
                                       "1e308",
                                       "-1e308",
                                       "1e999",
                                       "0.5",
                                       "1e-320",
                                       "Infinity",
                                       "-Infinity",
                                       "\"x\"",
                                       "true",
                                       "[]",
                                       "[1, 2, 3]",
                                       "[2147483647]",
                                       "{}",
                                       "{\"__float__\": \"NaN\"}"};
  mhk_model *m = model_new(ctx, PHI, 3);
  size_t i, k;
  mhk_save(m, test_path("any"), MHK_F32);
  mhk_model_destroy(m);
  for (i = 0; i < sizeof keys / sizeof *keys; i++)
    for (k = 0; keys[i].where != generation && k < sizeof values / sizeof *values; k++) {
      const text x = configuration(keys[i].where, keys[i].key, values[k]);
      mhk_config c;
      no_warnings();
      if (read_config(&x, &c) == MHK_OK) {
        char out[65536];
        CHECK(mhk_config_check(ctx, &c) == MHK_OK && mhk_config_parameters(&c) > 0 &&
                  mhk_config_format(&c, out, sizeof out) > 0,
              "%s: %s", x.t, mhk_message(ctx));
      } else
        CHECK(strlen(mhk_message(ctx)) > 20, "%s: %s", x.t, mhk_message(ctx));
      mhk_clear_error(ctx);
      if (keys[i].does != honoured) continue;
      write_text(test_path("any/config.json"), x.t);
      m = mhk_load(ctx, test_path("any"));
      CHECK(m || strlen(mhk_message(ctx)) > 20, "%s: %s", x.t, mhk_message(ctx));
      mhk_model_destroy(m);
      mhk_clear_error(ctx);
    }
}

TEST(rope_scaling_counts_before_rope_parameters_and_both_before_the_settings_beside_them) {
  static const char *const cases[] = {
      "\"rope_theta\": 7.0", "\"rope_theta\": 5.0, \"rope_parameters\": {\"rope_theta\": 7.0}",
      "\"rope_parameters\": {\"rope_theta\": 5.0}, \"rope_scaling\": {\"rope_type\": \"default\", \"rope_theta\": 7.0}",
      "\"rope_parameters\": {\"rope_theta\": 7.0}, \"rope_scaling\": {}",
      "\"rope_parameters\": {\"rope_theta\": 7.0}, \"rope_scaling\": null"};
  text x = configuration(phi, "", NULL);
  size_t i, n = strlen(x.t) - 1;
  for (i = 0; i < 5; i++) {
    mhk_config c;
    sprintf(x.t + n, ", %s}", cases[i]);
    CHECK(read_config(&x, &c) == MHK_OK && c.rope_theta == 7, "%s: %s, %g", x.t, mhk_message(ctx), c.rope_theta);
    mhk_clear_error(ctx);
  }
}

TEST(the_layout_of_state_spaces_gives_the_same_logits) {
  static const int kinds[] = {
      MAMBA2, MAMBA2_BIASES}; /* one group of B and C and a tied head; two, biases, and a head of its own */
  int i, k;
  for (i = 0; i < 2; i++) {
    mhk_model *m = model_new(ctx, kinds[i], 3), *back;
    mhk_stored x[64];
    mhk_real want[31], got[31];
    text config;
    mhk_file *f;
    int n;
    logits_of(m, want);
    mhk_save(m, test_path("theirs"), MHK_F32);
    f = mhk_file_open(ctx, test_path("theirs"));
    REQUIRE_OK(ctx);
    n = copy_tensors(f, x);
    for (k = 0; k < n; k++)
      if (strcmp(x[k].name, "backbone.embeddings.weight") == 0) x[k].name = "backbone.embedding.weight";
    test_make_folder(test_path("spaces"));
    mhk_file_write(ctx, test_path("spaces/model.safetensors"), n, x, 0, NULL);
    free_tensors(x, n);
    mhk_file_close(f);
    for (k = 0; k < 2;
         k++) { /* their configuration; that of Hugging Face's library beside their name of the embedding */
      char *same = test_read_file(test_path("theirs/config.json"), NULL);
      sprintf(config.t,
              "{\"d_model\": 24, \"d_intermediate\": 0, \"n_layer\": 2, \"vocab_size\": 25, "
              "\"pad_vocab_size_multiple\": 31, \"tie_embeddings\": %s, \"attn_layer_idx\": [], "
              "\"attn_cfg\": {}, \"rms_norm\": true, \"ssm_cfg\": {\"layer\": \"Mamba2\", \"d_state\": 5, \"headdim\": "
              "8, \"ngroups\": %d, \"bias\": %s}}",
              i ? "false" : "true", i + 1, i ? "true" : "false");
      write_text(test_path("spaces/config.json"), k && same ? same : config.t);
      free(same);
      no_warnings();
      back = load_strictly(test_path("spaces"));
      REQUIRE_OK(ctx);
      logits_of(back, got);
      CHECK_CLOSE("logits", got, want, 31, 1e-6);
      mhk_save(back, test_path("spaces_saved"), MHK_F32);
      mhk_model_destroy(back);
      back = load_strictly(test_path("spaces_saved"));
      REQUIRE_OK(ctx);
      logits_of(back, got);
      CHECK_CLOSE("logits after saving", got, want, 31, 1e-6);
      mhk_model_destroy(back);
    }
    mhk_model_destroy(m);
  }
}

/* models that look like a Mamba-2 and are none, each with a sentence of its own */
TEST(neighbors_of_a_mamba2_are_refused_by_name) {
  static const struct { const char *config, *says;
  } cases[] = {{"{\"d_model\":768,\"n_layer\":24,\"vocab_size\":50277,\"ssm_cfg\":{},\"rms_norm\":true,\"residual_in_"
                "fp32\":true,\"fused_add_norm\":true}",
                "describes a Mamba-1"},
               {"{\"d_model\":768,\"n_layer\":24,\"vocab_size\":50277}", "describes a Mamba-1"},
               {"{\"d_model\":24,\"n_layer\":2,\"vocab_size\":31,\"ssm_cfg\":{\"layer\":\"Mamba2\",\"headdim\":8},"
                "\"attn_layer_idx\":[1,3],\"attn_cfg\":{\"num_heads\":3}}",
                "attn_layer_idx names 2 layers of attention"},
               {"{\"d_model\":24,\"n_layer\":2,\"vocab_size\":31,\"ssm_cfg\":{\"layer\":\"Mamba2\",\"headdim\":8},\"d_"
                "intermediate\":48}",
                "a Mamba-2 with MLPs between its layers"},
               {"{\"d_model\":24,\"n_layer\":2,\"vocab_size\":31,\"ssm_cfg\":{\"layer\":\"Mamba2\",\"headdim\":8},"
                "\"rms_norm\":false}",
                "rms_norm is \"false\""},
               {"{\"model_type\":\"mamba\",\"architectures\":[\"MambaForCausalLM\"],\"hidden_size\":768}",
                "describes \"MambaForCausalLM\""},
               {"{\"model_type\":\"phi\",\"architectures\":[\"Mamba2ForCausalLM\"],\"hidden_size\":768}",
                "two different models"}};
  size_t i;
  for (i = 0; i < sizeof cases / sizeof *cases; i++) {
    mhk_config c;
    CHECK(mhk_config_parse(ctx, cases[i].config, strlen(cases[i].config), NULL, &c) != MHK_OK &&
              strstr(mhk_message(ctx), cases[i].says),
          "%s: %s", cases[i].config, mhk_message(ctx));
    mhk_clear_error(ctx);
  }
}

/* ---- ends of text */

/* the bundled teacher in a folder of its own, with eos_token_id of config.json and, unless NULL, a
   generation_config.json */
static mhk_model *teacher_with(const char *folder, const char *config_ends, const char *generation_config) {
  char *config = test_read_file(TINY "/config.json", NULL), *other, path[600];
  mhk_model *m = mhk_load(ctx, TINY);
  mhk_save(m, test_path(folder), MHK_BF16);
  mhk_model_destroy(m);
  CHECK(config != NULL, "no " TINY);
  if (!config) return NULL;
  other = changed(config, "\"eos_token_id\": 0,", config_ends);
  snprintf(path, sizeof path, "%s/config.json", test_path(folder));
  write_text(path, other);
  snprintf(path, sizeof path, "%s/generation_config.json", test_path(folder));
  remove(path);
  if (generation_config) write_text(path, generation_config);
  free(other), free(config);
  no_warnings();
  return mhk_load(ctx, test_path(folder));
}

static void check_ends(const char *what, const mhk_model *m, const char *want) {
  char got[256] = "";
  const int32_t *ids;
  int i, n = mhk_model_ends(m, &ids);
  for (i = 0; i < n; i++) sprintf(got + strlen(got), "%s%d", i ? "," : "", (int)ids[i]);
  CHECK(strcmp(got, want) == 0, "%s: the text ends at %s, not at %s%s", what, got, want, mhk_message(ctx));
}

TEST(ends_of_text_come_from_generation_config_then_config_and_the_tokenizer) {
  static const struct { const char *config, *generation, *want;
  } cases[] = {{"\"eos_token_id\": 7,", NULL,
                "7,0"}, /* the tokenizer's besides: the library writes a 2 where nobody said anything */
               {"\"eos_token_id\": [7, 9],", NULL, "7,9,0"},
               {"\"eos_token_id\": 0,", NULL, "0"},
               {"\"eos_token_id\": null,", NULL, "0"},
               {"", NULL, "0"},
               {"\"eos_token_id\": -1,", NULL, "0"},
               {"\"eos_token_id\": 7,", "{\"eos_token_id\": 5}", "5"},
               {"\"eos_token_id\": 7,", "{\"eos_token_id\": [5, 3]}", "5,3"},
               {"\"eos_token_id\": 7,", "{\"eos_token_id\": 5, \"_from_model_config\": true}", "5,0"},
               {"\"eos_token_id\": 7,", "{\"eos_token_id\": null}", "7,0"},
               {"\"eos_token_id\": 7,", "{\"temperature\": 0.6}", "7,0"},
               {"\"eos_token_id\": 5000,", NULL, "5000,0"}};
  size_t i;
  for (i = 0; i < sizeof cases / sizeof *cases; i++) {
    mhk_model *m = teacher_with("ends", cases[i].config, cases[i].generation), *back;
    REQUIRE_OK(ctx);
    CHECK(n_warnings == 0, "%s", warnings);
    check_ends(cases[i].generation ? cases[i].generation : cases[i].config, m, cases[i].want);
    mhk_save(m, test_path("ends_saved"), MHK_BF16);
    back = mhk_load(ctx, test_path("ends_saved"));
    check_ends("saved to a folder", back, cases[i].want);
    mhk_model_destroy(back);
    mhk_save(m, test_path("ends.safetensors"), MHK_BF16);
    back = mhk_load(ctx, test_path("ends.safetensors"));
    check_ends("saved to a file", back, cases[i].want);
    mhk_model_destroy(back);
    back = mhk_quantize(m, NULL);
    check_ends("quantized", back, cases[i].want);
    mhk_model_destroy(back);
    back = mhk_student_create(ctx, m, NULL);
    check_ends("the student", back, cases[i].want);
    mhk_save(back, test_path("ends_saved"), MHK_F32);
    mhk_model_destroy(back);
    back = mhk_load(ctx, test_path("ends_saved"));
    check_ends("the student, saved", back, cases[i].want);
    mhk_model_destroy(back);
    mhk_model_destroy(m);
  }
}

TEST(ends_of_text_can_be_set_and_are_exactly_those) {
  static const int32_t some[] = {4, 8}, bad[] = {4, -8};
  mhk_model *m = mhk_load(ctx, TINY), *back;
  check_ends("loaded", m, "0");
  CHECK(mhk_model_set_ends(m, some, 2) == MHK_OK, "%s", mhk_message(ctx));
  check_ends("set", m, "4,8");
  mhk_save(m, test_path("set"), MHK_BF16);
  back = load_strictly(test_path("set"));
  check_ends("saved", back, "4,8");
  mhk_model_destroy(back);
  mhk_model_set_ends(m, NULL, 0);
  check_ends("none", m, "");
  mhk_save(m, test_path("set.safetensors"), MHK_BF16);
  back = load_strictly(test_path("set.safetensors"));
  check_ends("none, saved", back, "");
  mhk_model_destroy(back);
  CHECK(mhk_model_set_ends(m, bad, 2) != MHK_OK, "set");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "the end of text -8 is not a token");
  CHECK(mhk_model_set_ends(m, NULL, 2) != MHK_OK, "set");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "2 ends of text");
  CHECK(mhk_model_set_ends(m, some, 1001) != MHK_OK, "set");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "1001 ends of text");
  CHECK(mhk_model_ends(NULL, NULL) == 0 && mhk_model_set_ends(NULL, some, 1) != MHK_OK, "not a model");
  mhk_model_destroy(m);
}

/* the bias of the head makes one token certain: then the text ends there, however it is drawn */
TEST(a_text_ends_at_any_of_them) {
  static const int32_t two[] = {5, 300};
  const mhk_sampling *usual = NULL;
  mhk_model *m = mhk_load(ctx, TINY);
  mhk_tensor *bias;
  int i;
  mhk_model_make_trainable(m);
  mhk_model_set_ends(m, two, 2);
  bias = mhk_model_find(m, "lm_head.bias");
  REQUIRE_OK(ctx);
  for (i = 0; i < 2; i++) {
    mhk_session *s = mhk_session_create(m, NULL), *d = mhk_session_create(m, NULL);
    mhk_speculation_desc desc;
    mhk_speculation *x;
    mhk_corpus *text;
    const int32_t *ids;
    mhk_index k, n, starts = 0;
    mhk_data(bias)[two[i]] += 1000;
    mhk_feed_text(s, "Once");
    CHECK(mhk_sample(s, usual) == -1 && mhk_stopped(s) == MHK_STOP_END, "stopped: %d, %s", (int)mhk_stopped(s),
          mhk_message(ctx));
    mhk_session_reset(s, MHK_ALL);
    mhk_feed_text(s, "Once");
    mhk_feed_text(d, "Once");
    memset(&desc, 0, sizeof desc);
    desc.target = s;
    desc.draft = d;
    x = mhk_speculation_create(&desc);
    CHECK(mhk_speculate(x, usual) == -1 && mhk_stopped(s) == MHK_STOP_END, "stopped: %d, %s", (int)mhk_stopped(s),
          mhk_message(ctx));
    mhk_speculation_destroy(x);
    text = mhk_corpus_sample(m, 64, 3, NULL, NULL); /* start, end, start, end... */
    n = mhk_corpus_tokens(text, &ids);
    CHECK(n == 64, "%d tokens, %s", (int)n, mhk_message(ctx));
    for (k = 0; k < n; k++) starts += ids[k] == 0;
    CHECK(starts == 32, "%d of 64 tokens start a document", (int)starts);
    mhk_corpus_destroy(text);
    mhk_data(bias)[two[i]] -= 1000;
    mhk_session_destroy(s);
    mhk_session_destroy(d);
  }
  mhk_model_destroy(m);
  CHECK_OK(ctx);
}

TEST(settings_of_generation_that_would_change_the_text_are_said) {
  size_t i;
  for (i = 0; i < sizeof keys / sizeof *keys; i++) {
    text x;
    mhk_model *m;
    if (keys[i].where != generation) continue;
    x = object(NULL, keys[i].key, keys[i].value);
    m = teacher_with("generation", "\"eos_token_id\": 7,", x.t);
    switch (keys[i].does) {
      case ends:
        CHECK(m && n_warnings == 0, "%s: %s%s", x.t, mhk_message(ctx), warnings);
        check_ends(x.t, m, "3,5");
        break;
      case warned:
        CHECK(m && n_warnings == 1 && strstr(warnings, keys[i].key), "%s is not warned about: %s%s", x.t,
              mhk_message(ctx), warnings);
        break;
      case sampling:
      case quiet: CHECK(m && n_warnings == 0, "%s is not quiet: %s%s", x.t, mhk_message(ctx), warnings); break;
      default: CHECK(!m && strlen(mhk_message(ctx)) > 20, "%s is not refused", x.t);
    }
    mhk_clear_error(ctx);
    mhk_model_destroy(m);
  }
}

/* ---- tokenizers */

TEST(a_tokenizer_larger_than_the_vocabulary_is_a_warning_until_such_a_token_is_fed) {
  char *json = test_read_file(TINY "/tokenizer.json", NULL);
  mhk_model *m = model_new(ctx, PHI, 3); /* 31 rows */
  mhk_session *s;
  mhk_save(m, test_path("small"), MHK_F32);
  mhk_model_destroy(m);
  write_text(test_path("small/tokenizer.json"), json ? json : "");
  free(json);
  CHECK(!load_strictly(test_path("small")), "loaded");
  CHECK_FAILS(ctx, MHK_ERROR_UNSUPPORTED, "the tokenizer has ids up to 1023, but the model's vocabulary ends at 30");
  no_warnings();
  m = mhk_load(ctx, test_path("small"));
  REQUIRE_OK(ctx);
  CHECK(mhk_model_tokenizer(m) && !mhk_model_tokenizer_error(m), "has no tokenizer");
  CHECK(n_warnings == 1 && strstr(warnings, "the model's vocabulary ends at 30"), "%s", warnings);
  s = mhk_session_create(m, NULL);
  CHECK(mhk_feed_text(s, "Once upon a time") != MHK_OK, "fed");
  CHECK(strstr(mhk_message(ctx), "token"), "%s", mhk_message(ctx));
  mhk_clear_error(ctx);
  CHECK(mhk_session_position(s, 0) == 0, "something was fed");
  mhk_session_destroy(s);
  mhk_model_destroy(m);
}

TEST(a_tokenizer_that_cannot_be_read_leaves_the_model_without_and_says_why) {
  static const struct { const char *name, *text, *why;
  } cases[] = {{"tokenizer.json", "{", "line 1"},
               {"tokenizer.json", "{\"model\": {\"type\": \"WordPiece\"}}", "WordPiece"},
               {"tokenizer.model", "x", "is an unsupported kind of tokenizer"},
               {"vocab.json", "{}", "`mohawk convert --model"}};
  size_t i;
  for (i = 0; i < sizeof cases / sizeof *cases; i++) {
    char path[600];
    mhk_model *m = model_new(ctx, PHI, 3);
    mhk_session *s;
    mhk_save(m, test_path("mute"), MHK_F32);
    mhk_model_destroy(m);
    m = mhk_load(ctx, test_path("mute"));
    CHECK(m && !mhk_model_tokenizer(m) && !mhk_model_tokenizer_error(m), "there is none: %s", mhk_message(ctx));
    mhk_model_destroy(m);
    snprintf(path, sizeof path, "%s/%s", test_path("mute"), cases[i].name);
    write_text(path, cases[i].text);
    no_warnings();
    m = mhk_load(ctx, test_path("mute"));
    REQUIRE_OK(ctx);
    CHECK(!mhk_model_tokenizer(m) && n_warnings == 1 && strstr(warnings, cases[i].why), "%s", warnings);
    CHECK(mhk_model_tokenizer_error(m) && strstr(mhk_model_tokenizer_error(m), cases[i].why), "%s",
          mhk_model_tokenizer_error(m));
    s = mhk_session_create(m, NULL);
    CHECK(mhk_feed_text(s, "hello") != MHK_OK, "fed");
    CHECK_FAILS(ctx, MHK_ERROR_STATE, cases[i].why);
    mhk_session_destroy(s);
    mhk_model_destroy(m);
    CHECK(!load_strictly(test_path("mute")), "loaded");
    CHECK(strstr(mhk_message(ctx), cases[i].why), "%s", mhk_message(ctx));
    mhk_clear_error(ctx);
    remove(path);
  }
  CHECK(mhk_model_tokenizer_error(NULL) == NULL, "not a model");
}

int main(int argc, char **argv) {
  mhk_context_desc d;
  memset(&d, 0, sizeof d);
  d.log = keep_warning;
  ctx = mhk_create(&d);
  test_begin(argc, argv);
#ifndef _WIN32
  RUN(only_regular_files_are_opened_by_name_and_nothing_waits);
  RUN(a_model_that_was_read_lives_without_its_file);
#endif
  RUN(strict_loading_refuses_what_else_is_a_warning);
  RUN(tensors_that_a_model_does_not_use_are_a_warning_with_a_list);
  RUN(tensors_that_contradict_the_configuration_are_refused);
  RUN(a_head_of_its_own_counts_where_the_configuration_ties_it);
  RUN(types_that_are_not_read_matter_only_where_they_are_used);
  RUN(every_setting_of_a_configuration_is_honoured_or_said_to_have_no_effect_or_refused);
  RUN(settings_of_any_value_are_refused_or_make_a_configuration);
  RUN(rope_scaling_counts_before_rope_parameters_and_both_before_the_settings_beside_them);
  RUN(the_layout_of_state_spaces_gives_the_same_logits);
  RUN(neighbors_of_a_mamba2_are_refused_by_name);
  RUN(ends_of_text_come_from_generation_config_then_config_and_the_tokenizer);
  RUN(ends_of_text_can_be_set_and_are_exactly_those);
  RUN(a_text_ends_at_any_of_them);
  RUN(settings_of_generation_that_would_change_the_text_are_said);
  RUN(a_tokenizer_larger_than_the_vocabulary_is_a_warning_until_such_a_token_is_fed);
  RUN(a_tokenizer_that_cannot_be_read_leaves_the_model_without_and_says_why);
  mhk_destroy(ctx);
  return test_end();
}
