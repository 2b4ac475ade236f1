/* Files that others wrote: how they are opened, what of them counts, what is warned about, what is refused. */
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
  if (mhk_logits(s)) memcpy(out, mhk_logits(s), (size_t)mhk_model_config(m)->vocab_size * sizeof *out);
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
    CHECK(mhk_session_load_file(s, 0, path[i]) != MHK_OK, "opened");
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
  CHECK(mhk_memory_in_use(ctx) > 4 * (size_t)mhk_config_parameters(mhk_model_config(m)), "the context does not hold the file");
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
  mhk_destroy(ctx);
  return test_end();
}
