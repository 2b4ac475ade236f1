/* Files under libFuzzer: clang -g -O1 -fsanitize=fuzzer,address,undefined tests/fuzz_files.c, then run it on a folder of seeds.
   What the bytes start with chooses the reader: '{' configuration and tokenizer, 0x80 a pickle (which is put into an archive here), 'M' a session's
   state (which gets its model's fingerprint and a right checksum here), everything else safetensors or an archive. Whatever is opened is read to its
   last byte, and a sequence with a loaded state goes on. */
#define MOHAWK_IMPLEMENTATION
#include "models.h" /* and mohawk.h */
#include "archive.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_all(mhk_context *ctx, const mhk_file *f) {
  static mhk_real values[1 << 16];
  static int32_t numbers[1 << 16];
  int i;
  for (i = 0; i < mhk_file_tensors(f); i++) {
    const mhk_file_tensor *x = mhk_file_tensor_at(f, i);
    if (mhk_file_find(f, x->name) != x) abort();
    if (x->count > 1 << 16) continue;
    if (mhk_file_read(ctx, x, values) != MHK_OK) abort();
    mhk_file_read_i32(ctx, x, numbers); /* may be of another type */
    mhk_clear_error(ctx);
  }
}

static void read_tokenizer(mhk_tokenizer *k, const char *text, mhk_index n) {
  int32_t ids[256];
  char back[256];
  mhk_index count;
  if (!k) return;
  if (n > 256) n = 256;
  count = mhk_encode(k, text, (size_t)n, ids, 256);
  if (count > 256) count = 256;
  if (count >= 0) mhk_decode(k, ids, count, back, sizeof back);
}

static void read_state(const uint8_t *data, size_t size) {
  static mhk_session *sessions[2]; /* without and with a window */
  static unsigned char state[1 << 16], good[1 << 16];
  const int window = (int)(size & 1);
  mhk_session *s;
  mhk_context *ctx;
  if (!sessions[window]) {
    mhk_session_desc d;
    memset(&d, 0, sizeof d);
    d.capacity = 40;
    d.window = window ? 5 : 0;
    d.recent = 6;
    sessions[window] = mhk_session_create(model_new(mhk_create(NULL), HYBRID, 3), &d);
  }
  s = sessions[window];
  ctx = s->object.ctx;
  memset(state, 0, sizeof state);
  memcpy(state, data, size < sizeof state ? size : sizeof state);
  if (mhk_session_save(s, 0, good, sizeof good) != MHK_OK) abort();
  memcpy(state, good, 24); /* version, numbers, model */
  if (size % 4 < 2) { /* as long as its numbers say */
    const double bytes = mhk__state_bytes(s, (double)mhk__get_bytes(state + 32, 8), (double)mhk__get_bytes(state + 48, 8));
    size = bytes < sizeof state ? (size_t)bytes : 0;
  }
  if (size < 72 || size > sizeof state) return;
  mhk__put_bytes(state + size - 8, mhk__hash(14695981039346656037u, state, size - 8), 8);
  if (mhk_session_load(s, 0, state, size) == MHK_OK) {
    mhk_sampling how;
    memset(&how, 0, sizeof how);
    how.presence = 1;
    mhk_sample(s, &how); /* the numbers may be anything, which is an error */
    mhk_clear_error(ctx);
    if (mhk_session_position(s, 0) < 40) mhk_feed(s, &window, 1);
  }
  mhk_clear_error(ctx);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static const unsigned char storage[64] = {1, 2, 3};
  mhk_context *ctx = mhk_create(NULL);
  if (size > 0 && data[0] == '{') {
    mhk_config config;
    mhk_config_parse(ctx, (const char *)data, size, "the text", &config);
    mhk_clear_error(ctx);
    read_tokenizer(mhk_tokenizer_parse(ctx, (const char *)data, size), (const char *)data, (mhk_index)size);
  } else if (size > 0 && data[0] == 0x80 && size < sizeof made / 2) {
    const part parts[4] = {{"x/data.pkl", data, size}, {"x/data/0", storage, 64}, {"x/data/1", storage, 24}, {"x/data/2", storage, 0}};
    archive(4, parts, size % 2 != 0);
    read_all(ctx, mhk_file_open_memory(ctx, made, made_n));
  } else if (size > 0 && data[0] == 'M')
    read_state(data, size);
  else
    read_all(ctx, mhk_file_open_memory(ctx, data, size));
  mhk_destroy(ctx);
  return 0;
}
