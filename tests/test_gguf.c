/* GGUF files written here, byte by byte: what they become, and files that lie. */
#include "test.h"
#define TEST_OWN_GGUF
#include "foreign.h"

/* the reader's memory is counted, and its n-th allocation fails */
static long blocks, fails_at;
static void *counted(size_t n, size_t size) {
  if (fails_at > 0 && --fails_at == 0) return NULL;
  blocks++;
  return calloc(n ? n : 1, size);
}
static void *counted_again(void *p, size_t n) {
  if (fails_at > 0 && --fails_at == 0) return NULL;
  blocks += p == NULL;
  return realloc(p, n);
}
static void uncounted(void *p) {
  blocks -= p != NULL;
  free(p);
}
#define calloc counted
#define malloc(n) counted(n, 1)
#define realloc counted_again
#define free uncounted
#include "../tools/gguf.c"
#include "../tools/vocabulary.c"
#undef calloc
#undef malloc
#undef realloc
#undef free

static mhk_context *ctx;

/* ---- writing */

typedef struct bytes {
  unsigned char *data;
  size_t n, room;
} bytes;
static void add(bytes *b, const void *data, size_t n) {
  if (b->n + n > b->room) b->data = (unsigned char *)realloc(b->data, b->room = 2 * (b->n + n) + 1000);
  if (n) memcpy(b->data + b->n, data, n);
  b->n += n;
}
static void number(bytes *b, uint64_t x, int n) {
  unsigned char p[8];
  for (int i = 0; i < 8; i++) p[i] = (unsigned char)(x >> (8 * i) & 255);
  add(b, p, (size_t)n);
}
static void text(bytes *b, const char *s) {
  number(b, strlen(s), 8);
  add(b, s, strlen(s));
}
static void real(bytes *b, float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  number(b, bits, 4);
}

/* the file that is made: its header in parts */
typedef struct made {
  bytes keys, infos, data, all;
  uint64_t n_keys, n_infos;
} made;
static void key(made *m, const char *name, unsigned type) {
  text(&m->keys, name);
  number(&m->keys, type, 4);
  m->n_keys++;
}
static void whole(made *m, const char *name, unsigned x) { key(m, name, GGUF_U32), number(&m->keys, x, 4); }
static void decimal(made *m, const char *name, float x) { key(m, name, GGUF_F32), real(&m->keys, x); }
static void word(made *m, const char *name, const char *x) { key(m, name, GGUF_STRING), text(&m->keys, x); }
static void flag(made *m, const char *name, int x) { key(m, name, GGUF_BOOL), number(&m->keys, (unsigned)x, 1); }
static void list(made *m, const char *name, unsigned type, unsigned n) {
  key(m, name, GGUF_ARRAY);
  number(&m->keys, type, 4);
  number(&m->keys, n, 8);
}
/* a tensor whose bytes the caller adds to m->data; columns 0: a vector */
static void info(made *m, const char *name, unsigned rows, unsigned columns, unsigned type) {
  while (m->data.n % 32) add(&m->data, "", 1);
  text(&m->infos, name);
  number(&m->infos, columns ? 2 : 1, 4);
  number(&m->infos, columns ? columns : rows, 8);
  if (columns) number(&m->infos, rows, 8);
  number(&m->infos, type, 4);
  number(&m->infos, m->data.n, 8);
  m->n_infos++;
}
/* in F32: the number of the row, plus by */
static void matrix(made *m, const char *name, unsigned rows, unsigned columns, float by) {
  info(m, name, rows, columns, 0);
  for (unsigned r = 0; r < rows; r++)
    for (unsigned c = 0; c < (columns ? columns : 1); c++) real(&m->data, (float)r + by);
}
static void finish(made *m) {
  add(&m->all, "GGUF", 4);
  number(&m->all, 3, 4);
  number(&m->all, m->n_infos, 8);
  number(&m->all, m->n_keys, 8);
  add(&m->all, m->keys.data, m->keys.n);
  add(&m->all, m->infos.data, m->infos.n);
  while (m->all.n % 32) add(&m->all, "", 1);
  add(&m->all, m->data.data, m->data.n);
  free(m->keys.data);
  free(m->infos.data);
  free(m->data.data);
}

enum { D = 256, HEADS = 4, KEYS = 2, P = 64, MLP = 32, TOKENS = 260 };

/* The 256 tokens of bytes as their characters, "he", and tokens of other types. */
static void tokens(made *m, const char *pre) {
  char one[8];
  int other = 0;
  word(m, "tokenizer.ggml.model", "gpt2");
  word(m, "tokenizer.ggml.pre", pre);
  list(m, "tokenizer.ggml.tokens", GGUF_STRING, TOKENS);
  for (int b = 0; b < 256; b++) {
    const int shown = (b > 32 && b < 127) || (b > 160 && b != 173), c = shown ? b : 256 + other++;
    memset(one, 0, sizeof one);
    if (c < 128)
      one[0] = (char)c;
    else
      one[0] = (char)(0xC0 | c >> 6), one[1] = (char)(0x80 | (c & 63));
    text(&m->keys, one);
  }
  text(&m->keys, "he");
  text(&m->keys, "<|end|>");
  text(&m->keys, "<user \"one\">");
  text(&m->keys, "[PAD259]");
  list(m, "tokenizer.ggml.token_type", GGUF_I32, TOKENS);
  for (int i = 0; i < TOKENS; i++) number(&m->keys, i < 257 ? 1 : i == 257 ? 3 : i == 258 ? 4 : 5, 4);
  list(m, "tokenizer.ggml.merges", GGUF_STRING, 1);
  text(&m->keys, "h e");
  whole(m, "tokenizer.ggml.bos_token_id", 257);
  whole(m, "tokenizer.ggml.eos_token_id", 257);
  whole(m, "tokenizer.ggml.eot_token_id", 258);
  word(m, "tokenizer.chat_template", "{{ \"no\nprogram\" }}");
}

/* A model with one layer whose ffn_down has blocks of the given type: rows of 32 numbers, or 256,
   where MLP is that. */
static made model(const char *arch, const char *pre, unsigned type, unsigned mlp, const void *block, size_t size) {
  made m;
  char name[64];
  memset(&m, 0, sizeof m);
  word(&m, "general.architecture", arch);
#define ARCH(what) (snprintf(name, sizeof name, "%s.%s", arch, what), name)
  whole(&m, ARCH("block_count"), 1);
  whole(&m, ARCH("context_length"), 512);
  whole(&m, ARCH("embedding_length"), D);
  whole(&m, ARCH("feed_forward_length"), mlp);
  whole(&m, ARCH("attention.head_count"), HEADS);
  whole(&m, ARCH("attention.head_count_kv"), KEYS);
  decimal(&m, ARCH("attention.layer_norm_rms_epsilon"), 1e-6f);
  decimal(&m, ARCH("rope.freq_base"), 5e5f);
  flag(&m, "tokenizer.ggml.add_bos_token", 0);
  tokens(&m, pre);
  matrix(&m, "token_embd.weight", TOKENS, D, 0.5f);
  matrix(&m, "output_norm.weight", D, 0, 1);
  matrix(&m, "blk.0.attn_norm.weight", D, 0, 2);
  matrix(&m, "blk.0.ffn_norm.weight", D, 0, 3);
  matrix(&m, "blk.0.attn_q.weight", HEADS * P, D, 0);
  matrix(&m, "blk.0.attn_k.weight", KEYS * P, D, 0.25f);
  matrix(&m, "blk.0.attn_v.weight", KEYS * P, D, 0);
  matrix(&m, "blk.0.attn_output.weight", D, HEADS * P, 0);
  matrix(&m, "blk.0.ffn_gate.weight", mlp, D, 0);
  matrix(&m, "blk.0.ffn_up.weight", mlp, D, 0);
  info(&m, "blk.0.ffn_down.weight", D, mlp, type);
  for (int r = 0; r < D; r++) add(&m.data, block, size);
  if (strcmp(arch, "qwen2") == 0) {
    matrix(&m, "blk.0.attn_q.bias", HEADS * P, 0, 0);
    matrix(&m, "blk.0.attn_k.bias", KEYS * P, 0, 0);
    matrix(&m, "blk.0.attn_v.bias", KEYS * P, 0, 0);
  } else if (strcmp(arch, "qwen3") == 0) {
    matrix(&m, "blk.0.attn_q_norm.weight", P, 0, 1);
    matrix(&m, "blk.0.attn_k_norm.weight", P, 0, 2);
    matrix(&m, "output.weight", TOKENS, D, 7);
  }
  return m;
}

static int put(void *user, const void *data, size_t n) {
  add((bytes *)user, data, n);
  return 1;
}
static int nothing_fits(void *user, const void *data, size_t n) {
  (void)user, (void)data, (void)n;
  return 0;
}
static char noted[200];
static void note(const char *sentence) { snprintf(noted, sizeof noted, "%s", sentence); }

/* The result in *out, which the caller frees; 0 after an error. */
static int unpack(mhk_context *c, const unsigned char *data, size_t n, int no_tokenizer, bytes *out) {
  gguf_desc desc;
  memset(&desc, 0, sizeof desc);
  memset(out, 0, sizeof *out);
  desc.name = "a.gguf";
  desc.file.data = data;
  desc.file.size = n;
  desc.no_tokenizer = no_tokenizer;
  desc.put = put;
  desc.user = out;
  desc.note = note;
  noted[0] = 0;
  const int good = gguf_unpack(c, &desc);
  CHECK(good == !mhk_failed(c), "%d, but %s", good, mhk_message(c));
  CHECK(blocks == 0, "%ld blocks of memory are left", blocks);
  return good;
}

/* ---- what files become */

static const unsigned char f32_block[4 * MLP] = {0};

TEST(rows_turn_back) {
  for (int kind = 0; kind < 3; kind++) {
    static const char *const arch[] = {"llama", "qwen2", "qwen3"}, *const pre[] = {"llama-bpe", "qwen2", "smollm"};
    made m = model(arch[kind], pre[kind], 0, MLP, f32_block, sizeof f32_block);
    static mhk_real got[HEADS * P * D];
    bytes out;
    finish(&m);
    unpack(ctx, m.all.data, m.all.n, 0, &out);
    CHECK_OK(ctx);
    mhk_file *f = mhk_file_open_memory(ctx, out.data, out.n);
    for (int keys = 0; keys < 2 && f; keys++) {
      const mhk_stored *x =
          mhk_file_find(f, keys ? "model.layers.0.self_attn.k_proj.weight" : "model.layers.0.self_attn.q_proj.weight");
      REQUIRE(x && x->count == (keys ? KEYS : HEADS) * P * D && mhk_file_read(ctx, x, got) == MHK_OK, "%s", arch[kind]);
      /* a llama's rows stand in pairs: 0 and 32 of a head of 64 first */
      for (int r = 0; r < (keys ? KEYS : HEADS) * P; r++) {
        const int in = r % P, from = kind ? r : r - in + (in < P / 2 ? 2 * in : 2 * (in - P / 2) + 1);
        CHECK(got[r * D + 5] == (mhk_real)((float)from + (keys ? 0.25f : 0)), "%s: row %d is %g", arch[kind], r,
              (double)got[r * D + 5]);
      }
    }
    mhk_file_close(f);
    mhk_model *model = mhk_load_memory(ctx, out.data, out.n);
    REQUIRE(model, "%s: %s", arch[kind], mhk_message(ctx));
    const mhk_config *c = mhk_model_config(model);
    CHECK(c->qkv_bias == (kind == 1) && c->qk_layernorm == (kind == 2) && c->tie_embeddings == (kind != 2) &&
              c->norm_eps == 1e-6 && c->rope_theta == 500000 && c->head_dim == P && c->max_position == 512,
          "%s: another configuration", arch[kind]);
    mhk_tokenizer *k = mhk_model_tokenizer(model);
    int32_t ids[16];
    const int32_t *ends;
    REQUIRE(k, "%s: %s", arch[kind], mhk_model_tokenizer_error(model));
    CHECK(mhk_encode(k, "he<|end|>e<user \"one\">12[PAD259]", 32, ids, 16) == 14 && ids[0] == 256 && ids[1] == 257 &&
              ids[2] == 'e' && ids[3] == 258 && ids[4] == '1' && ids[6] == '[',
          "other tokens");
    CHECK(mhk_model_ends(model, &ends) == 2 && ends[0] == 257 && ends[1] == 258, "other ends of text");
    mhk_model_destroy(model);
    free(out.data);
    free(m.all.data);
  }
}

/* One block of each type by hand: what the number i of the row must be. */
static double want_q8_0(int i) { return 0.5 * (i - 16); }
static double want_q4_0(int i) { return 2.0 * (i < 16 ? i - 8 : 7 - (i - 16)); }
static double want_q4_1(int i) { return (i < 16 ? 2.0 * i : 2.0 * (15 - (i - 16))) - 3; }
static double want_q4_k(int i) {
  return (7 * (i / 32) + 1) * (i / 32 % 2 ? 15 - i % 16 : i % 16) - 0.5 * (63 - 8 * (i / 32));
}
static double want_q6_k(int i) { return 0.25 * (i / 16 - 8) * (i * 5 % 64 - 32); }
static double want_f16(int i) { return i < 16 ? -1.5 : 65504; }
static double want_bf16(int i) { return i % 2 ? 3 : -0.15625; }

/* its bytes; returns how many */
static size_t make_block(unsigned type, unsigned char *p) {
  memset(p, 0, 256);
  switch (type) {
  case 1:
    for (int i = 0; i < 32; i++) p[2 * i] = i < 16 ? 0 : 0xFF, p[2 * i + 1] = i < 16 ? 0xBE : 0x7B;
    return 64;
  case 30:
    for (int i = 0; i < 32; i++) p[2 * i] = i % 2 ? 0x40 : 0x20, p[2 * i + 1] = i % 2 ? 0x40 : 0xBE;
    return 64;
  case 8:
    p[1] = 0x38; /* 0.5 */
    for (int i = 0; i < 32; i++) p[2 + i] = (unsigned char)(i - 16);
    return 34;
  case 2:
    p[1] = 0x40; /* 2 */
    for (int i = 0; i < 16; i++) p[2 + i] = (unsigned char)(i | (15 - i) << 4);
    return 18;
  case 3:
    p[1] = 0x40, p[3] = 0xC2; /* 2, -3 */
    for (int i = 0; i < 16; i++) p[4 + i] = (unsigned char)(i | (15 - i) << 4);
    return 20;
  case 12:
    p[1] = 0x3C, p[3] = 0x38; /* 1, 0.5 */
    for (int j = 0; j < 4; j++) {
      const int scale = 7 * j + 1, later = 7 * (j + 4) + 1, least = 63 - 8 * j, later_least = 63 - 8 * (j + 4);
      p[4 + j] = (unsigned char)(scale | later >> 4 << 6);
      p[8 + j] = (unsigned char)(least | later_least >> 4 << 6);
      p[12 + j] = (unsigned char)((later & 15) | (later_least & 15) << 4);
    }
    for (int i = 0; i < 128; i++) p[16 + i] = (unsigned char)(i % 16 | (15 - i % 16) << 4);
    return 144;
  default:
    p[209] = 0x34; /* 0.25 */
    for (int i = 0; i < 16; i++) p[192 + i] = (unsigned char)(i - 8);
    for (int i = 0; i < 256; i++) {
      const int q = i * 5 % 64, half = i / 128, row = i % 128 / 32, column = i % 32;
      p[64 * half + 32 * (row % 2) + column] |= (unsigned char)((q & 15) << (row / 2 * 4));
      p[128 + 32 * half + column] |= (unsigned char)(q >> 4 << 2 * row);
    }
    return 210;
  }
}

TEST(types) {
  static const struct {
    unsigned number, columns;
    mhk_dtype type;
    double (*want)(int i);
  } cases[] = {{1, 32, MHK_F16, want_f16},   {30, 32, MHK_BF16, want_bf16}, {8, 32, MHK_F32, want_q8_0},
               {2, 32, MHK_F32, want_q4_0},  {3, 32, MHK_F32, want_q4_1},   {12, 256, MHK_F32, want_q4_k},
               {14, 256, MHK_F32, want_q6_k}};
  static mhk_real got[256 * D];
  for (int k = 0; k < 7; k++) {
    unsigned char block[256];
    const size_t size = make_block(cases[k].number, block);
    made m = model("qwen2", "qwen2", cases[k].number, cases[k].columns, block, size);
    bytes out;
    finish(&m);
    unpack(ctx, m.all.data, m.all.n, 1, &out);
    CHECK_OK(ctx);
    mhk_file *f = mhk_file_open_memory(ctx, out.data, out.n);
    const mhk_stored *x = mhk_file_find(f, "model.layers.0.mlp.down_proj.weight");
    REQUIRE(x && x->dtype == cases[k].type && x->shape[0] == D && x->shape[1] == (mhk_index)cases[k].columns, "type %u",
            cases[k].number);
    mhk_file_read(ctx, x, got);
    for (int i = 0; i < (int)cases[k].columns; i++)
      CHECK(got[i] == (mhk_real)cases[k].want(i) && got[(size_t)(D - 1) * cases[k].columns + (size_t)i] == got[i],
            "type %u: number %d is %.9g, should be %.9g", cases[k].number, i, (double)got[i], cases[k].want(i));
    CHECK(mhk_file_metadata(f, "tokenizer.json", NULL) == NULL, "a tokenizer against no_tokenizer");
    mhk_file_close(f);
    mhk_model_destroy(mhk_load_memory(ctx, out.data, out.n));
    CHECK_OK(ctx);
    free(out.data);
    free(m.all.data);
  }
}

/* the configuration of a llama with more keys and tensors */
static mhk_config configured(void (*more)(made *m), int *good) {
  made m = model("llama", "smollm", 0, MLP, f32_block, sizeof f32_block);
  mhk_config c;
  bytes out;
  memset(&c, 0, sizeof c);
  more(&m);
  finish(&m);
  *good = unpack(ctx, m.all.data, m.all.n, 0, &out);
  mhk_file *f = *good ? mhk_file_open_memory(ctx, out.data, out.n) : NULL;
  size_t n = 0;
  const char *json = f ? mhk_file_metadata(f, "config.json", &n) : NULL;
  if (json) mhk_config_parse(ctx, json, n, "config.json", &c);
  mhk_file_close(f);
  free(out.data);
  free(m.all.data);
  return c;
}
static void linear(made *m) {
  word(m, "llama.rope.scaling.type", "linear"), decimal(m, "llama.rope.scaling.factor", 2.5f);
}
static void none(made *m) { word(m, "llama.rope.scaling.type", "none"), decimal(m, "llama.rope.scaling.factor", 2.5f); }
static void yarn(made *m) { word(m, "llama.rope.scaling.type", "yarn"); }
static void window(made *m) { whole(m, "llama.attention.sliding_window", 48); }
static void unknown(made *m) { decimal(m, "llama.logit_scale", 2); }
static void experts(made *m) { whole(m, "llama.expert_count", 8); }
static void extra(made *m) { matrix(m, "blk.0.ffn_gate_inp.weight", 8, D, 0); }
static void narrow(made *m) { whole(m, "llama.rope.dimension_count", 32); }
static void again(made *m) { whole(m, "llama.block_count", 1); }
static void aligned(made *m) { whole(m, "general.alignment", 48); }
static void parts(made *m) { key(m, "split.count", GGUF_U16), number(&m->keys, 4, 2); }
static void factors(made *m, double low, int original) {
  info(m, "rope_freqs.weight", P / 2, 0, 0);
  for (int i = 0; i < P / 2; i++) {
    /* Llama 3: waves longer than original / low turn 32 times as slowly, those shorter than
       original / high as ever */
    const double length = 6.283185307179586 * pow(500000, 2.0 * i / P), high = 4 * low, old = original;
    const double smooth = (old / length - low) / (high - low);
    real(&m->data, length < old / high ? 1 : length > old / low ? 32 : (float)(1 / ((1 - smooth) / 32 + smooth)));
  }
}
static void llama3(made *m) { factors(m, 1, 8192); }
static void shorter(made *m) { factors(m, 1, 256); }
static void others(made *m) { factors(m, 1.7, 8192); }

TEST(configurations) {
  int good;
  mhk_config c = configured(linear, &good);
  CHECK(good && c.rope == MHK_ROPE_LINEAR && c.rope_factor == 2.5 && !noted[0], "linear: %s", mhk_message(ctx));
  c = configured(none, &good);
  CHECK(good && c.rope == MHK_ROPE_DEFAULT, "none: %s", mhk_message(ctx));
  c = configured(window, &good);
  CHECK(good && c.attention_window == 48, "window %d: %s", c.attention_window, mhk_message(ctx));
  c = configured(llama3, &good);
  CHECK(good && c.rope == MHK_ROPE_LLAMA3 && c.rope_factor == 32 && c.rope_low == 1 && c.rope_high == 4 &&
            c.rope_original == 8192,
        "llama3: %s", mhk_message(ctx));
  c = configured(shorter, &good);
  CHECK(good && c.rope_original == 256, "llama3, %d: %s", c.rope_original, mhk_message(ctx));
  c = configured(unknown, &good);
  CHECK(good && strstr(noted, "llama.logit_scale"), "noted: %s", noted);
  configured(yarn, &good);
  CHECK_FAILS(ctx, MHK_ERROR_UNSUPPORTED, "llama.rope.scaling.type is yarn");
  configured(others, &good);
  CHECK_FAILS(ctx, MHK_ERROR_UNSUPPORTED, "rope_freqs.weight are not those of Llama 3");
  configured(experts, &good);
  CHECK_FAILS(ctx, MHK_ERROR_UNSUPPORTED, "llama.expert_count");
  configured(extra, &good);
  CHECK_FAILS(ctx, MHK_ERROR_UNSUPPORTED, "blk.0.ffn_gate_inp.weight is no part of a llama model");
  configured(narrow, &good);
  CHECK_FAILS(ctx, MHK_ERROR_UNSUPPORTED, "rope.dimension_count 32");
  configured(again, &good);
  CHECK_FAILS(ctx, MHK_ERROR_FORMAT, "the key llama.block_count is there twice");
  configured(aligned, &good);
  CHECK_FAILS(ctx, MHK_ERROR_FORMAT, "general.alignment is 48: it must be a power of two");
  configured(parts, &good);
  CHECK_FAILS(ctx, MHK_ERROR_UNSUPPORTED, "one of 4 parts");
}

/* ---- files that lie */

/* where text stands, or its end */
static size_t after(const bytes *b, const char *what) {
  const size_t n = strlen(what);
  for (size_t i = 0; i + n <= b->n; i++)
    if (memcmp(b->data + i, what, n) == 0) return i + n;
  CHECK(0, "%s is not there", what);
  return 0;
}

TEST(lies) {
  /* bytes behind the first place of a text, and what is said about them */
  static const struct {
    const char *where;
    int by;
    const char *with;
    int n;
    mhk_result code;
    const char *says;
  } cases[] = {
      {"GGUF", 0, "\4", 1, MHK_ERROR_UNSUPPORTED, "GGUF version is 4"},
      {"GGUF", 0, "\0\0\0\3", 4, MHK_ERROR_UNSUPPORTED, "big-endian"},
      {"GGUF", 4, "\377\377\377\377\377\377\377\377", 8, MHK_ERROR_FORMAT, "cannot hold them"},
      {"GGUF", 12, "\377\377\377\377\377\377\377\377", 8, MHK_ERROR_FORMAT, "cannot hold them"},
      {"GGUF", 20, "\377\377\377\377\377\377\377\377", 8, MHK_ERROR_FORMAT, "the file ends inside the name of a key"},
      {"general.architecture", 0, "\11\0\0\0\11", 5, MHK_ERROR_FORMAT, "arrays (9) hold no arrays"},
      {"general.architecture", 0, "\15", 1, MHK_ERROR_FORMAT, "has the type 13"},
      {"general.architecture", 0, "\4", 1, MHK_ERROR_FORMAT, ""},
      {"general.architecture", 11, "\377", 1, MHK_ERROR_FORMAT, "the value of general.architecture"},
      {"general.architecture", 12, "g", 1, MHK_ERROR_UNSUPPORTED, "general.architecture is glama"},
      {"llama.block_count", 4, "\0", 1, MHK_ERROR_FORMAT,
       "llama.block_count is 0: it must be a whole number from 1 to 256"},
      {"llama.block_count", 4, "\2", 1, MHK_ERROR_FORMAT, "the tensor blk.1.attn_norm.weight is missing"},
      {"llama.embedding_length", 4, "\0\2", 2, MHK_ERROR_UNSUPPORTED, ""},
      {"llama.embedding_length", 0, "\6", 1, MHK_ERROR_FORMAT, "llama.embedding_length must be one whole number"},
      {"llama.feed_forward_length", 4, "\41", 1, MHK_ERROR_FORMAT, "has the shape (256,32,1,1)"},
      {"llama.attention.head_count", 4, "\0\0\0\200", 4, MHK_ERROR_FORMAT, "llama.attention.head_count is 2147483648"},
      {"llama.attention.head_count_kv", 4, "\3", 1, MHK_ERROR_CONFIG, "3"},
      {"layer_norm_rms_epsilon", 4, "\0\0\300\177", 4, MHK_ERROR_FORMAT, "layer_norm_rms_epsilon"},
      {"tokenizer.ggml.add_bos_token", 4, "\2", 1, MHK_ERROR_FORMAT, "add_bos_token must be true or false"},
      {"tokenizer.ggml.model", 12, "q", 1, MHK_ERROR_UNSUPPORTED, "tokenizer.ggml.model is qpt2"},
      {"tokenizer.ggml.pre", 12, "q", 1, MHK_ERROR_UNSUPPORTED, "tokenizer.ggml.pre is qmollm"},
      {"tokenizer.ggml.tokens", 8, "\377\377\377\377\377", 5, MHK_ERROR_FORMAT, "tokenizer.ggml.tokens"},
      {"tokenizer.ggml.tokens", 16, "\377\377", 2, MHK_ERROR_FORMAT, ""},
      {"<user ", 0, "\377", 1, MHK_ERROR_FORMAT, "token 258 is no UTF-8"},
      {"[PAD259", -8, "\7\0\0\0\0\0\0\0<|end|>", 15, MHK_ERROR_FORMAT, ""},
      {"tokenizer.ggml.token_type", 16, "\6", 1, MHK_ERROR_UNSUPPORTED, "token 0 has the type 6"},
      {"tokenizer.ggml.token_type", 4, "\6", 1, MHK_ERROR_FORMAT, "tokenizer.ggml.token_type must be a list"},
      {"tokenizer.ggml.merges", 25, "_", 1, MHK_ERROR_FORMAT, "merges: entry 0"},
      {"tokenizer.ggml.eos_token_id", 4, "\4\1", 2, MHK_ERROR_FORMAT, "tokenizer.ggml.eos_token_id is 260"},
      {"token_embd.weight", 0, "\5", 1, MHK_ERROR_FORMAT, "the tensor token_embd.weight has 5 axes"},
      {"token_embd.weight", 4, "\0\0", 2, MHK_ERROR_FORMAT, "0 elements along axis 0"},
      {"token_embd.weight", 4, "\377\377\377\377\377\377\377\377", 8, MHK_ERROR_FORMAT, "elements along axis 0"},
      {"token_embd.weight", 12, "\377\377\377\377\377\377\377\77", 8, MHK_ERROR_FORMAT, "elements along axis 1"},
      {"token_embd.weight", 12, "\377\377\377\377", 4, MHK_ERROR_FORMAT, "bytes of tensors"},
      {"token_embd.weight", 20, "\6", 1, MHK_ERROR_UNSUPPORTED, "ggml's type 6"},
      {"token_embd.weight", 24, "\1", 1, MHK_ERROR_FORMAT, "no multiple of general.alignment 32"},
      {"token_embd.weight", 24, "\0\0\0\0\0\0\0\200", 8, MHK_ERROR_FORMAT, "bytes of tensors"},
      {"output_norm.weight", 16, "\40", 1, MHK_ERROR_FORMAT, "starts inside another one"},
      {"blk.0.attn_q", -1, "k", 1, MHK_ERROR_FORMAT, "the tensor blk.0.attn_k.weight is there twice"},
      {"blk.0.ffn_up", -1, "q", 1, MHK_ERROR_FORMAT, "the tensor blk.0.ffn_up.weight is missing"},
  };
  made m = model("llama", "smollm", 0, MLP, f32_block, sizeof f32_block);
  finish(&m);
  unsigned char *copy = (unsigned char *)malloc(m.all.n);
  for (int i = 0; i < (int)(sizeof cases / sizeof *cases); i++) {
    bytes out;
    memcpy(copy, m.all.data, m.all.n);
    memcpy(copy + (ptrdiff_t)after(&m.all, cases[i].where) + cases[i].by, cases[i].with, (size_t)cases[i].n);
    unpack(ctx, copy, m.all.n, 0, &out);
    if (cases[i].says[0])
      CHECK(mhk_error(ctx) == cases[i].code && strstr(mhk_message(ctx), cases[i].says) &&
                strstr(mhk_message(ctx), "a.gguf: "),
            "%s %d: error %d, %s", cases[i].where, cases[i].by, (int)mhk_error(ctx), mhk_message(ctx));
    else
      CHECK(mhk_failed(ctx), "%s %d: no error", cases[i].where, cases[i].by);
    mhk_clear_error(ctx);
    free(out.data);
  }
  free(copy);
  free(m.all.data);
}

/* Files that are cut, and files with wrong bytes before the tensors: an error, or a result that is
   a file. */
TEST(damage) {
  made m = model("qwen3", "qwen2", 0, MLP, f32_block, sizeof f32_block);
  uint64_t random = 1;
  int good = 0;
  finish(&m);
  const size_t head = after(&m.all, "output.weight") + 40;
  for (size_t n = 0; n < m.all.n; n += n < head ? 7 : 30011) {
    unsigned char *cut = (unsigned char *)malloc(n + !n); /* of its own, so that sanitizers see what lies behind */
    bytes out;
    memcpy(cut, m.all.data, n);
    CHECK(!unpack(ctx, cut, n, 0, &out), "%lld bytes are enough", (long long)n);
    mhk_clear_error(ctx);
    free(out.data);
    free(cut);
  }
  for (int k = 0; k < 3000; k++) {
    static const unsigned char odd[] = {0, 1, 9, 8, 127, 128, 255};
    unsigned char before[3];
    size_t at[3];
    bytes out;
    for (int i = 0; i <= k % 3; i++) {
      random = random * 6364136223846793005u + 1442695040888963407u;
      at[i] = (size_t)(random >> 33) % head;
      before[i] = m.all.data[at[i]];
      m.all.data[at[i]] = k % 2 ? odd[(random >> 20) % sizeof odd] : (unsigned char)(random >> 24);
    }
    if (unpack(ctx, m.all.data, m.all.n, 0, &out)) {
      mhk_file *f = mhk_file_open_memory(ctx, out.data, out.n);
      CHECK(f, "change %d became no file: %s", k, mhk_message(ctx));
      mhk_file_close(f);
      good++;
    }
    mhk_clear_error(ctx);
    free(out.data);
    for (int i = k % 3; i >= 0; i--) m.all.data[at[i]] = before[i];
  }
  CHECK(good > 50 && good < 2950, "%d of 3000 changed files were read", good);
  free(m.all.data);
}

TEST(what_fails_around_it) {
  made m = model("llama", "smollm", 0, MLP, f32_block, sizeof f32_block);
  bytes out;
  int done = 0;
  finish(&m);
  for (long n = 1; n < 100 && !done; n++) {
    fails_at = n;
    done = unpack(ctx, m.all.data, m.all.n, 0, &out);
    done = fails_at > 0;
    fails_at = 0;
    CHECK(done ? !mhk_failed(ctx) : mhk_error(ctx) == MHK_ERROR_MEMORY, "allocation %ld: %s", n, mhk_message(ctx));
    mhk_clear_error(ctx);
    free(out.data);
  }
  CHECK(done, "100 allocations");
  gguf_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.name = "a.gguf";
  desc.file.data = m.all.data;
  desc.file.size = m.all.n;
  desc.put = nothing_fits;
  CHECK(!gguf_unpack(ctx, &desc), "nothing was written");
  CHECK_FAILS(ctx, MHK_ERROR_FILE, "cannot write");
  free(m.all.data);
}

int main(int argc, char **argv) {
  test_begin(argc, argv);
  ctx = mhk_create(NULL);
  RUN(rows_turn_back);
  RUN(types);
  RUN(configurations);
  RUN(lies);
  RUN(damage);
  RUN(what_fails_around_it);
  mhk_destroy(ctx);
  return test_end();
}
