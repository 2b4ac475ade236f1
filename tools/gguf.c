/* gguf.c: see gguf.h. Written after the GGUF specification (docs/gguf.md of ggml) and ggml's layout
   of quantized blocks. Names of tensors and settings are those of llama.cpp for the architectures
   llama, qwen2 and qwen3. Nothing in the file is believed: counts, lengths, types and offsets are
   held against the bytes that are there. */
#include "gguf.h"
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* types of values */
enum { GGUF_U8, GGUF_I8, GGUF_U16, GGUF_I16, GGUF_U32, GGUF_I32, GGUF_F32, GGUF_BOOL, GGUF_STRING, GGUF_ARRAY };
enum { GGUF_U64 = 10, GGUF_I64, GGUF_F64, GGUF_TYPES };
static const unsigned char gguf_sizes[GGUF_TYPES] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

typedef struct gguf_value {
  foreign_bytes key, data; /* data: of all elements; of a string its text */
  unsigned type;           /* of its elements, if it is an array */
  int array, seen;
  uint64_t count;
} gguf_value;

typedef struct gguf_tensor {
  foreign_bytes name;
  const struct gguf_type *type;
  unsigned number; /* of its type */
  int rank, used;
  uint64_t shape[4]; /* fastest first */
  uint64_t count, offset, bytes;
} gguf_tensor;

/* a tensor of the model that is written */
typedef struct gguf_wanted {
  char name[96];
  gguf_tensor *x;
  int rank, heads; /* heads: of rotated rows, which are stored in another order; 0: rows as they are */
  uint64_t rows, columns;
} gguf_wanted;

typedef struct gguf {
  mhk_context *ctx;
  const gguf_desc *desc;
  const char *name;
  const unsigned char *at, *end;
  gguf_value *values;
  gguf_tensor *tensors;
  gguf_wanted *wanted;
  size_t n_values, n_tensors, n_wanted;
  const unsigned char *data; /* of the tensors */
  char arch[16], shown[64], message[400];
  mhk_config config;
} gguf;

/* ---------------------------------------------------------------- quantized blocks */

static uint64_t gguf_little(const unsigned char *p, int bytes) {
  uint64_t x = 0;
  while (bytes-- > 0) x = x << 8 | p[bytes];
  return x;
}

static float gguf_half(const unsigned char *p) {
  const unsigned bits = (unsigned)gguf_little(p, 2), e = bits >> 10 & 31u, m = bits & 1023u;
  const float x = e == 31 ? (m ? NAN : INFINITY) : e ? ldexpf((float)(1024u + m), (int)e - 25) : ldexpf((float)m, -24);
  return bits >> 15 ? -x : x;
}
static float gguf_single(const unsigned char *p) {
  const uint32_t bits = (uint32_t)gguf_little(p, 4);
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
static int gguf_signed(unsigned char x) { return x < 128 ? x : x - 256; }

/* Each makes one block of numbers. A product of a scale and an integer has few enough digits to be
   exact, so that no compiler's fused operations change the sum that may follow. */

/* scale d, 32 signed bytes */
static void gguf_q8_0(const unsigned char *p, float *out) {
  const float d = gguf_half(p);
  for (int i = 0; i < 32; i++) out[i] = d * (float)gguf_signed(p[2 + i]);
}
/* scale d, 32 numbers of four bits: the first half of them in the low ones */
static void gguf_q4_0(const unsigned char *p, float *out) {
  const float d = gguf_half(p);
  for (int i = 0; i < 16; i++) {
    out[i] = d * (float)((int)(p[2 + i] & 15u) - 8);
    out[i + 16] = d * (float)((int)(p[2 + i] >> 4) - 8);
  }
}
/* the same with a smallest value m in place of -8 d */
static void gguf_q4_1(const unsigned char *p, float *out) {
  const float d = gguf_half(p), m = gguf_half(p + 2);
  for (int i = 0; i < 16; i++) {
    out[i] = d * (float)(p[4 + i] & 15u) + m;
    out[i + 16] = d * (float)(p[4 + i] >> 4) + m;
  }
}
/* Eight parts of 32 numbers, each with a scale and a smallest value of six bits, in units of d and
   -m. The six bits of the last four parts are spread: four in bytes 8 to 11, two above those of the
   first four parts. */
static void gguf_q4_k(const unsigned char *p, float *out) {
  const float d = gguf_half(p), m = gguf_half(p + 2);
  const unsigned char *s = p + 4, *q = p + 16;
  for (int j = 0; j < 8; j++) {
    const unsigned scale = j < 4 ? s[j] & 63u : (s[j + 4] & 15u) | (unsigned)(s[j - 4] >> 6) << 4;
    const unsigned least = j < 4 ? s[j + 4] & 63u : (unsigned)(s[j + 4] >> 4) | (unsigned)(s[j] >> 6) << 4;
    const float a = d * (float)scale, b = m * (float)least;
    for (int i = 0; i < 32; i++) {
      const unsigned byte = q[32 * (j / 2) + i];
      out[32 * j + i] = a * (float)(j % 2 ? byte >> 4 : byte & 15u) - b;
    }
  }
}
/* Sixteen parts of 16 numbers of six bits, four in ql and two in qh, each part with a signed scale
   in units of d. */
static void gguf_q6_k(const unsigned char *p, float *out) {
  const float d = gguf_half(p + 208);
  for (int half = 0; half < 2; half++) {
    const unsigned char *low = p + 64 * half, *high = p + 128 + 32 * half, *scale = p + 192 + 8 * half;
    for (int i = 0; i < 128; i++) {
      const int row = i / 32, column = i % 32; /* of the 4 rows of 32 that one half has */
      const unsigned l = low[32 * (row % 2) + column] >> (row / 2 * 4) & 15u, h = high[column] >> (2 * row) & 3u;
      const float a = d * (float)gguf_signed(scale[i / 16]);
      out[128 * half + i] = a * (float)((int)(l | h << 4) - 32);
    }
  }
}

typedef struct gguf_type {
  const char *name;
  unsigned number;
  int block, bytes;                                 /* numbers of a block, and its bytes */
  mhk_dtype out;                                    /* the type that they become */
  void (*open)(const unsigned char *p, float *out); /* NULL: their bytes stay as they are */
} gguf_type;
enum { GGUF_BLOCK_MOST = 256 };
static const gguf_type gguf_types[] = {{"F32", 0, 1, 4, MHK_F32, NULL},
                                       {"F16", 1, 1, 2, MHK_F16, NULL},
                                       {"BF16", 30, 1, 2, MHK_BF16, NULL},
                                       {"Q8_0", 8, 32, 34, MHK_F32, gguf_q8_0},
                                       {"Q4_0", 2, 32, 18, MHK_F32, gguf_q4_0},
                                       {"Q4_1", 3, 32, 20, MHK_F32, gguf_q4_1},
                                       {"Q4_K", 12, 256, 144, MHK_F32, gguf_q4_k},
                                       {"Q6_K", 14, 256, 210, MHK_F32, gguf_q6_k}};
enum { GGUF_KNOWN = sizeof gguf_types / sizeof *gguf_types };

/* ---------------------------------------------------------------- reading */

/* Returns 0, as what failed does. */
#if defined(__GNUC__) || defined(__clang__)
__attribute__((format(printf, 3, 4)))
#endif
static int gguf_wrong(gguf *g, mhk_result code, const char *format, ...) {
  char text[400];
  va_list list;
  va_start(list, format);
  vsnprintf(text, sizeof text, format, list);
  va_end(list);
  mhk_fail(g->ctx, code, "%s: %s", g->name, text);
  return 0;
}
static const char *gguf_shown(gguf *g, foreign_bytes text) { return foreign_printable(text.data, text.size, g->shown); }
static int gguf_memory(gguf *g) { return gguf_wrong(g, MHK_ERROR_MEMORY, "out of memory"); }

static int gguf_is_text(foreign_bytes b, const char *text) {
  return b.size == strlen(text) && memcmp(b.data, text, b.size) == 0;
}

/* The next bytes; NULL when the file ends before. what: a sentence about them, as "the key 3". */
static const unsigned char *gguf_take(gguf *g, uint64_t n, const char *what) {
  const unsigned char *p = g->at;
  if (n > (uint64_t)(g->end - g->at)) {
    gguf_wrong(g, MHK_ERROR_FORMAT, "the file ends inside %s, which needs %llu bytes of the %lld that are left", what,
               (unsigned long long)n, (long long)(g->end - g->at));
    return NULL;
  }
  g->at += n;
  return p;
}
static int gguf_number(gguf *g, int bytes, uint64_t *out, const char *what) {
  const unsigned char *p = gguf_take(g, (uint64_t)bytes, what);
  if (p) *out = gguf_little(p, bytes);
  return p != NULL;
}
static int gguf_text(gguf *g, foreign_bytes *out, const char *what) {
  uint64_t n;
  if (!gguf_number(g, 8, &n, what)) return 0;
  out->data = gguf_take(g, n, what);
  out->size = (size_t)n;
  return out->data != NULL;
}

/* the value of a key, whose name has been read */
static int gguf_read_value(gguf *g, gguf_value *v) {
  char what[100];
  uint64_t type, n;
  const unsigned char *from;
  foreign_bytes text;
  snprintf(what, sizeof what, "the value of %s", gguf_shown(g, v->key));
  if (!gguf_number(g, 4, &type, what)) return 0;
  v->array = type == GGUF_ARRAY;
  v->count = 1;
  if (v->array && (!gguf_number(g, 4, &type, what) || !gguf_number(g, 8, &v->count, what))) return 0;
  if (type >= GGUF_TYPES || type == GGUF_ARRAY)
    return gguf_wrong(g, MHK_ERROR_FORMAT, "%s has the type %llu%s; types are 0 to 12, and arrays (9) hold no arrays",
                      what, (unsigned long long)type, v->array ? " for its elements" : "");
  v->type = (unsigned)type;
  if (type == GGUF_STRING && !v->array) return gguf_text(g, &v->data, what);
  from = g->at;
  if (type == GGUF_STRING) {
    for (n = 0; n < v->count; n++)
      if (!gguf_text(g, &text, what)) return 0;
  } else if (v->count > (uint64_t)(g->end - g->at) || !gguf_take(g, v->count * gguf_sizes[type], what))
    return mhk_failed(g->ctx) ? 0
                              : gguf_wrong(g, MHK_ERROR_FORMAT,
                                           "%s says that it has %llu elements; the file has %lld "
                                           "bytes left",
                                           what, (unsigned long long)v->count, (long long)(g->end - g->at));
  v->data.data = from;
  v->data.size = (size_t)(g->at - from);
  return 1;
}

static int gguf_order(foreign_bytes x, foreign_bytes y) {
  const size_t n = x.size < y.size ? x.size : y.size;
  const int c = n ? memcmp(x.data, y.data, n) : 0;
  return c ? c : (x.size > y.size) - (x.size < y.size);
}
static int gguf_value_order(const void *a, const void *b) {
  return gguf_order(((const gguf_value *)a)->key, ((const gguf_value *)b)->key);
}
static int gguf_tensor_order(const void *a, const void *b) {
  return gguf_order(((const gguf_tensor *)a)->name, ((const gguf_tensor *)b)->name);
}
static int gguf_place_order(const void *a, const void *b) {
  const gguf_tensor *x = *(const gguf_tensor *const *)a, *y = *(const gguf_tensor *const *)b;
  return (x->offset > y->offset) - (x->offset < y->offset);
}

/* one tensor's name, shape, type and place */
static int gguf_read_tensor(gguf *g, gguf_tensor *x, uint64_t alignment) {
  char what[100];
  uint64_t rank, number;
  if (!gguf_text(g, &x->name, "the name of a tensor")) return 0;
  snprintf(what, sizeof what, "the tensor %s", gguf_shown(g, x->name));
  if (!gguf_number(g, 4, &rank, what)) return 0;
  if (rank < 1 || rank > 4)
    return gguf_wrong(g, MHK_ERROR_FORMAT, "%s has %llu axes: it must have 1 to 4", what, (unsigned long long)rank);
  x->rank = (int)rank;
  x->count = 1;
  for (int i = 0; i < 4; i++) {
    x->shape[i] = 1;
    if (i < x->rank && !gguf_number(g, 8, &x->shape[i], what)) return 0;
    if (x->shape[i] < 1 || x->shape[i] > (uint64_t)PTRDIFF_MAX / 8 / x->count)
      return gguf_wrong(g, MHK_ERROR_FORMAT, "%s has %llu elements along axis %d: none, or more than there can be",
                        what, (unsigned long long)x->shape[i], i);
    x->count *= x->shape[i];
  }
  if (!gguf_number(g, 4, &number, what) || !gguf_number(g, 8, &x->offset, what)) return 0;
  x->number = (unsigned)number;
  for (int i = 0; i < GGUF_KNOWN; i++)
    if (gguf_types[i].number == number) x->type = &gguf_types[i];
  if (!x->type)
    return gguf_wrong(g, MHK_ERROR_UNSUPPORTED,
                      "%s is stored in ggml's type %llu; supported are F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K and Q6_K",
                      what, (unsigned long long)number);
  if (x->shape[0] % (uint64_t)x->type->block)
    return gguf_wrong(g, MHK_ERROR_FORMAT, "%s has rows of %llu elements, which is no multiple of %s's blocks of %d",
                      what, (unsigned long long)x->shape[0], x->type->name, x->type->block);
  if (x->offset % alignment)
    return gguf_wrong(g, MHK_ERROR_FORMAT, "%s starts at %llu, which is no multiple of general.alignment %llu", what,
                      (unsigned long long)x->offset, (unsigned long long)alignment);
  x->bytes = x->count / (uint64_t)x->type->block * (uint64_t)x->type->bytes;
  return 1;
}

static gguf_value *gguf_find(gguf *g, const char *key) {
  gguf_value like;
  gguf_value *v;
  like.key.data = (const unsigned char *)key;
  like.key.size = strlen(key);
  v = g->n_values ? (gguf_value *)bsearch(&like, g->values, g->n_values, sizeof like, gguf_value_order) : NULL;
  if (v) v->seen = 1;
  return v;
}
static gguf_tensor *gguf_find_tensor(gguf *g, const char *name) {
  gguf_tensor like;
  like.name.data = (const unsigned char *)name;
  like.name.size = strlen(name);
  return g->n_tensors ? (gguf_tensor *)bsearch(&like, g->tensors, g->n_tensors, sizeof like, gguf_tensor_order) : NULL;
}

/* a whole number of any type; 0: it is none, or does not fit */
static int gguf_integer(const gguf_value *v, const unsigned char *p, int64_t *out) {
  const int bytes = gguf_sizes[v->type],
            is_signed = v->type == GGUF_I8 || v->type == GGUF_I16 || v->type == GGUF_I32 || v->type == GGUF_I64;
  uint64_t x;
  if (v->type == GGUF_F32 || v->type >= GGUF_F64 || v->type == GGUF_BOOL || v->type == GGUF_STRING) return 0;
  x = gguf_little(p, bytes);
  if (is_signed && x >> (8 * bytes - 1)) x |= bytes < 8 ? ~(uint64_t)0 << (8 * bytes) : 0;
  if (!is_signed && x > INT64_MAX) return 0;
  memcpy(out, &x, 8);
  return 1;
}

/* A setting of the architecture, or with a dot in front any key. Without it otherwise; below low,
   it must be there. */
static const char *gguf_key(const gguf *g, const char *name, char out[100]) {
  snprintf(out, 100, "%s%s%s", name[0] == '.' ? "" : g->arch, name[0] == '.' ? "" : ".", name + (name[0] == '.'));
  return out;
}
static int gguf_whole(gguf *g, const char *name, int low, int high, int otherwise) {
  char key[100];
  const gguf_value *v = gguf_find(g, gguf_key(g, name, key));
  int64_t x = 0;
  if (mhk_failed(g->ctx)) return low;
  if (!v && otherwise < low) return gguf_wrong(g, MHK_ERROR_FORMAT, "the key %s is missing", key), low;
  if (!v) return otherwise;
  if (v->array || !gguf_integer(v, v->data.data, &x))
    gguf_wrong(g, MHK_ERROR_FORMAT, "%s must be one whole number%s", key, v->array ? ", not a list" : "");
  else if (x < low || x > high)
    gguf_wrong(g, MHK_ERROR_FORMAT, "%s is %lld: it must be a whole number from %d to %d", key, (long long)x, low,
               high);
  else
    return (int)x;
  return low;
}
/* the decimal number with the fewest digits that is this float: settings were written as decimals
   */
static double gguf_decimal(float x) {
  char text[40];
  double y = (double)x;
  for (int digits = 6; digits <= 9; digits++) {
    snprintf(text, sizeof text, "%.*g", digits, (double)x);
    y = strtod(text, NULL);
    if ((float)y >= x && (float)y <= x) break;
  }
  return y;
}
static double gguf_real(gguf *g, const char *name, double low, double high, double otherwise) {
  char key[100];
  const gguf_value *v = gguf_find(g, gguf_key(g, name, key));
  double x = 0;
  if (mhk_failed(g->ctx)) return low;
  if (!v && otherwise < low) return gguf_wrong(g, MHK_ERROR_FORMAT, "the key %s is missing", key), low;
  if (!v) return otherwise;
  if (!v->array && v->type == GGUF_F32)
    x = gguf_decimal(gguf_single(v->data.data));
  else if (!v->array && v->type == GGUF_F64) {
    const uint64_t bits = gguf_little(v->data.data, 8);
    memcpy(&x, &bits, 8);
  } else
    return gguf_wrong(g, MHK_ERROR_FORMAT, "%s must be one real number", key), low;
  if (x >= low && x <= high) return x;
  return gguf_wrong(g, MHK_ERROR_FORMAT, "%s is %g: it must be a number from %g to %g", key, x, low, high), low;
}
static int gguf_flag(gguf *g, const char *key, int otherwise) {
  const gguf_value *v = gguf_find(g, key);
  if (!v || mhk_failed(g->ctx)) return otherwise;
  if (v->array || v->type != GGUF_BOOL || v->data.data[0] > 1)
    return gguf_wrong(g, MHK_ERROR_FORMAT, "%s must be true or false", key);
  return v->data.data[0];
}
/* a text; data NULL: there is none */
static foreign_bytes gguf_word(gguf *g, const char *key) {
  const foreign_bytes none = {NULL, 0};
  const gguf_value *v = gguf_find(g, key);
  if (!v) return none;
  if (!v->array && v->type == GGUF_STRING) return v->data;
  gguf_wrong(g, MHK_ERROR_FORMAT, "%s must be a text", key);
  return none;
}

/* all of the file but the tensors' bytes */
static int gguf_open(gguf *g) {
  const unsigned char *start = g->at;
  uint64_t version, n_tensors, n_values, alignment;
  gguf_tensor **order;
  size_t i;
  if ((size_t)(g->end - g->at) < 4 || memcmp(g->at, "GGUF", 4))
    return gguf_wrong(g, MHK_ERROR_FORMAT, "it does not start with GGUF");
  g->at += 4;
  if (!gguf_number(g, 4, &version, "its version")) return 0;
  if (version != 2 && version != 3)
    return gguf_wrong(g, MHK_ERROR_UNSUPPORTED, "its GGUF version is %llu%s; 2 and 3 are supported",
                      (unsigned long long)version, version & 0xFFFFu ? "" : " (numbers are stored big-endian)");
  if (!gguf_number(g, 8, &n_tensors, "its number of tensors") || !gguf_number(g, 8, &n_values, "its number of keys"))
    return 0;
  /* the fewest bytes that a key (13) and a tensor (32) take */
  if (n_values > (uint64_t)(g->end - g->at) / 13 || n_tensors > (uint64_t)(g->end - g->at) / 32)
    return gguf_wrong(g, MHK_ERROR_FORMAT,
                      "it says that it has %llu keys and %llu tensors; %lld bytes cannot hold them",
                      (unsigned long long)n_values, (unsigned long long)n_tensors, (long long)(g->end - g->at));
  g->values = (gguf_value *)calloc((size_t)n_values + 1, sizeof *g->values);
  g->tensors = (gguf_tensor *)calloc((size_t)n_tensors + 1, sizeof *g->tensors);
  if (!g->values || !g->tensors) return gguf_memory(g);
  for (; g->n_values < n_values; g->n_values++)
    if (!gguf_text(g, &g->values[g->n_values].key, "the name of a key") || !gguf_read_value(g, &g->values[g->n_values]))
      return 0;
  qsort(g->values, g->n_values, sizeof *g->values, gguf_value_order);
  for (i = 1; i < g->n_values; i++)
    if (gguf_value_order(&g->values[i - 1], &g->values[i]) == 0)
      return gguf_wrong(g, MHK_ERROR_FORMAT, "the key %s is there twice", gguf_shown(g, g->values[i].key));
  alignment = (uint64_t)gguf_whole(g, ".general.alignment", 1, 1 << 20, 32);
  if (mhk_failed(g->ctx)) return 0;
  if (alignment & (alignment - 1))
    return gguf_wrong(g, MHK_ERROR_FORMAT, "general.alignment is %llu: it must be a power of two",
                      (unsigned long long)alignment);
  for (; g->n_tensors < n_tensors; g->n_tensors++)
    if (!gguf_read_tensor(g, &g->tensors[g->n_tensors], alignment)) return 0;
  qsort(g->tensors, g->n_tensors, sizeof *g->tensors, gguf_tensor_order);
  for (i = 1; i < g->n_tensors; i++)
    if (gguf_tensor_order(&g->tensors[i - 1], &g->tensors[i]) == 0)
      return gguf_wrong(g, MHK_ERROR_FORMAT, "the tensor %s is there twice", gguf_shown(g, g->tensors[i].name));
  const uint64_t before = (uint64_t)(g->at - start), pad = (alignment - before % alignment) % alignment;
  uint64_t left = (uint64_t)(g->end - g->at);
  left = left > pad ? left - pad : 0;
  g->data = left ? g->at + pad : g->end;
  order = (gguf_tensor **)calloc(g->n_tensors + 1, sizeof(void *));
  if (!order) return gguf_memory(g);
  for (i = 0; i < g->n_tensors; i++) order[i] = &g->tensors[i];
  qsort(order, g->n_tensors, sizeof *order, gguf_place_order);
  for (i = 0; i < g->n_tensors && !mhk_failed(g->ctx); i++) {
    const gguf_tensor *x = order[i];
    if (x->offset > left || x->bytes > left - x->offset)
      gguf_wrong(g, MHK_ERROR_FORMAT, "the tensor %s has %llu bytes from %llu on; the file has %llu bytes of tensors",
                 gguf_shown(g, x->name), (unsigned long long)x->bytes, (unsigned long long)x->offset,
                 (unsigned long long)left);
    else if (i && order[i - 1]->offset + order[i - 1]->bytes > x->offset)
      gguf_wrong(g, MHK_ERROR_FORMAT, "the tensor %s starts inside another one", gguf_shown(g, x->name));
  }
  free(order);
  return !mhk_failed(g->ctx);
}

/* ---------------------------------------------------------------- configuration */

static int gguf_has(gguf *g, const char *part) {
  char name[64];
  snprintf(name, sizeof name, "blk.0.%s", part);
  return gguf_find_tensor(g, name) != NULL;
}

/* What Llama 3 does to the frequencies is stored as one factor each, which here must come from its
   rule: its settings are found again. */
static int gguf_read_factors(gguf *g, mhk_config *c) {
  static const double two_pi = 6.283185307179586;
  gguf_tensor *x = gguf_find_tensor(g, "rope_freqs.weight");
  const int half = c->rotary_dim / 2;
  float factor = 1;
  if (!x) return 1;
  x->used = 1;
  if (x->number != 0 || x->count != (uint64_t)half)
    return gguf_wrong(g, MHK_ERROR_FORMAT,
                      "rope_freqs.weight must be %d numbers in F32, one for two features of a head", half);
  for (int i = 0; i < half; i++) {
    const float f = gguf_single(g->data + x->offset + 4 * (size_t)i);
    if (!(f >= 1 && f < 1e6f)) return gguf_wrong(g, MHK_ERROR_FORMAT, "rope_freqs.weight[%d] is %g", i, (double)f);
    if (f > factor) factor = f;
  }
  if (!(factor > 1)) return 1;
  if (c->rope != MHK_ROPE_DEFAULT)
    return gguf_wrong(g, MHK_ERROR_UNSUPPORTED, "both rope_freqs.weight and %s.rope.scaling scale the frequencies",
                      g->arch);
  for (int original = 16; original <= 1 << 20; original *= 2) {
    int same = 1;
    for (int i = 0; i < half && same; i++) {
      const double turns = original * pow(c->rope_theta, -2.0 * i / c->rotary_dim) / two_pi, fast = (turns - 1) / 3;
      const double want = fast <= 0 ? (double)factor : fast >= 1 ? 1 : 1 / ((1 - fast) / (double)factor + fast);
      same = fabs((double)gguf_single(g->data + x->offset + 4 * (size_t)i) / want - 1) < 1e-4;
    }
    if (!same) continue;
    c->rope = MHK_ROPE_LLAMA3;
    c->rope_factor = gguf_decimal(factor);
    c->rope_low = 1;
    c->rope_high = 4;
    c->rope_original = original;
    if (original == 8192) break; /* theirs; short heads fit others, too */
  }
  return c->rope == MHK_ROPE_LLAMA3 ||
         gguf_wrong(g, MHK_ERROR_UNSUPPORTED,
                    "the factors of rope_freqs.weight are not those of Llama 3 (low_freq_factor 1, high_freq_factor 4, "
                    "an original length that is a power of two)");
}

static int gguf_read_scaling(gguf *g, mhk_config *c) {
  char key[100];
  const foreign_bytes type = gguf_word(g, gguf_key(g, "rope.scaling.type", key));
  const double factor = gguf_real(g, "rope.scaling.factor", 0, 1e6, gguf_real(g, "rope.scale_linear", 0, 1e6, 0));
  gguf_find(g, gguf_key(g, "rope.scaling.original_context_length", key));
  gguf_find(g, gguf_key(g, "rope.scaling.finetuned", key));
  if (mhk_failed(g->ctx)) return 0;
  if (type.data && !gguf_is_text(type, "none") && !gguf_is_text(type, "linear"))
    return gguf_wrong(g, MHK_ERROR_UNSUPPORTED,
                      "%s.rope.scaling.type is %s; none and linear are supported, and Llama 3's "
                      "factors in rope_freqs.weight",
                      g->arch, gguf_shown(g, type));
  if (gguf_is_text(type, "none") || !(factor > 0) || factor == 1) return 1;
  c->rope = MHK_ROPE_LINEAR;
  c->rope_factor = factor;
  return 1;
}

/* settings and tensors say what the model is */
static int gguf_read_config(gguf *g) {
  static const char known[3][8] = {"llama", "qwen2", "qwen3"};
  mhk_config *c = &g->config;
  char key[100];
  const foreign_bytes arch = gguf_word(g, "general.architecture");
  const gguf_tensor *embedding;
  int i;
  if (mhk_failed(g->ctx)) return 0;
  if (!arch.data) return gguf_wrong(g, MHK_ERROR_FORMAT, "the key general.architecture is missing");
  for (i = 0; i < 3 && !gguf_is_text(arch, known[i]); i++) continue;
  if (i == 3)
    return gguf_wrong(g, MHK_ERROR_UNSUPPORTED,
                      "general.architecture is %s; llama (with Mistral and SmolLM2), qwen2 and "
                      "qwen3 are supported",
                      gguf_shown(g, arch));
  strcpy(g->arch, known[i]);
  if (gguf_whole(g, ".split.count", 0, 65535, 0) > 1)
    return gguf_wrong(g, MHK_ERROR_UNSUPPORTED,
                      "it is one of %d parts of a model (split.count): join them first, with "
                      "llama-gguf-split --merge",
                      gguf_whole(g, ".split.count", 0, 65535, 0));
  if (gguf_whole(g, "expert_count", 0, 65535, 0) > 0)
    return gguf_wrong(g, MHK_ERROR_UNSUPPORTED, "%s.expert_count is not 0: mixtures of experts are not supported",
                      g->arch);
  embedding = gguf_find_tensor(g, "token_embd.weight");
  if (!embedding)
    return mhk_failed(g->ctx) ? 0 : gguf_wrong(g, MHK_ERROR_FORMAT, "the tensor token_embd.weight is missing");
  c->arch = MHK_ARCH_LLAMA;
  c->n_layer = gguf_whole(g, "block_count", 1, MHK_MAX_LAYERS, -1);
  c->d_model = gguf_whole(g, "embedding_length", 1, 1 << 24, -1);
  c->d_mlp = gguf_whole(g, "feed_forward_length", 1, 1 << 24, -1);
  c->n_head = gguf_whole(g, "attention.head_count", 1, 65536, -1);
  c->n_kv_head = gguf_whole(g, "attention.head_count_kv", 1, 65536, c->n_head);
  c->max_position = gguf_whole(g, "context_length", 1, INT32_MAX, -1);
  c->norm_eps = gguf_real(g, "attention.layer_norm_rms_epsilon", 0, 1, -1);
  c->rope_theta = gguf_real(g, "rope.freq_base", 1e-3, 1e12, 10000);
  c->attention_window = gguf_whole(g, "attention.sliding_window", 0, INT32_MAX, 0);
  if (mhk_failed(g->ctx)) return 0;
  c->head_dim =
      gguf_whole(g, "attention.key_length", 1, 65536, c->d_model / c->n_head > 0 ? c->d_model / c->n_head : 1);
  c->rotary_dim = gguf_whole(g, "rope.dimension_count", 1, 65536, c->head_dim);
  i = gguf_whole(g, "attention.value_length", 1, 65536, c->head_dim);
  if (mhk_failed(g->ctx)) return 0;
  if (i != c->head_dim || c->rotary_dim != c->head_dim)
    return gguf_wrong(g, MHK_ERROR_UNSUPPORTED,
                      "%s.attention.key_length is %d, value_length %d and rope.dimension_count %d; "
                      "only one size for all three is supported",
                      g->arch, c->head_dim, i, c->rotary_dim);
  if (embedding->rank != 2 || embedding->shape[1] > INT32_MAX / 2)
    return gguf_wrong(g, MHK_ERROR_FORMAT, "the tensor token_embd.weight must be a matrix of tokens by features");
  c->vocab_size = (int)embedding->shape[1];
  i = gguf_whole(g, "vocab_size", 1, INT32_MAX, c->vocab_size);
  if (!mhk_failed(g->ctx) && i != c->vocab_size)
    return gguf_wrong(g, MHK_ERROR_FORMAT, "%s.vocab_size is %d, but token_embd.weight has %d rows", g->arch, i,
                      c->vocab_size);
  c->tie_embeddings = gguf_find_tensor(g, "output.weight") == NULL;
  c->qkv_bias = gguf_has(g, "attn_q.bias");
  c->out_bias = gguf_has(g, "attn_output.bias");
  c->mlp_bias = gguf_has(g, "ffn_down.bias");
  c->qk_layernorm = gguf_has(g, "attn_q_norm.weight");
  for (i = 0; i < c->n_layer; i++) c->mixer[i] = MHK_MIXER_ATTENTION;
  if (!gguf_read_scaling(g, c) || !gguf_read_factors(g, c)) return 0;
  if (mhk_config_check(g->ctx, c) != MHK_OK) {
    snprintf(g->message, sizeof g->message, "%s", mhk_message(g->ctx));
    mhk_clear_error(g->ctx);
    return gguf_wrong(g, MHK_ERROR_CONFIG, "%s", g->message);
  }
  /* descriptions of what the tensors say, too */
  for (i = 0; i < (int)g->n_values; i++) {
    const foreign_bytes k = g->values[i].key;
    if (g->values[i].seen || k.size <= strlen(g->arch) || memcmp(k.data, g->arch, strlen(g->arch)) ||
        k.data[strlen(g->arch)] != '.' || !g->desc->note)
      continue;
    snprintf(key, sizeof key, "%s: the setting %s has no effect here", "GGUF", gguf_shown(g, k));
    g->desc->note(key);
  }
  return 1;
}

/* ---------------------------------------------------------------- tokenizer */

enum { GGUF_NORMAL = 1, GGUF_UNKNOWN, GGUF_CONTROL, GGUF_USER_DEFINED, GGUF_UNUSED, GGUF_BYTE };

/* The pre-tokenizers, as tokenizer.json has them: of Llama 3, of Qwen2 to Qwen3, of SmolLM. */
#define GGUF_SPLIT(numbers)                                                                                            \
  "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":"                              \
  "\"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|" numbers                                    \
  "| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"},"                           \
  "\"behavior\":\"Isolated\",\"invert\":false},{\"type\":\"ByteLevel\",\"add_prefix_space\":false,"                    \
  "\"trim_offsets\":true,\"use_regex\":false}]}"
static const struct gguf_pre {
  const char *name;
  int nfc, ignore_merges, start; /* start: a text starts with bos_token_id unless add_bos_token says otherwise */
  const char *json;
} gguf_pres[] = {
    {"llama-bpe", 0, 1, 1, GGUF_SPLIT("\\\\p{N}{1,3}")},
    {"qwen2", 1, 0, 0, GGUF_SPLIT("\\\\p{N}")},
    {"smollm", 0, 0, 0,
     "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\",\"individual_digits\":true},{\"type\":"
     "\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":true}]}"}};

/* whether bytes are UTF-8 without a zero */
static int gguf_is_utf8(foreign_bytes b) {
  size_t i = 0;
  while (i < b.size) {
    const unsigned c = b.data[i];
    const size_t more = c < 0x80 ? 0 : c < 0xC2 ? 4 : c < 0xE0 ? 1 : c < 0xF0 ? 2 : c < 0xF5 ? 3 : 4;
    if (!c || more == 4 || b.size - i <= more) return 0;
    for (size_t k = 1; k <= more; k++)
      if ((b.data[i + k] & 0xC0u) != 0x80) return 0;
    if (more >= 2) {
      const unsigned next = b.data[i + 1];
      if ((c == 0xE0 && next < 0xA0) || (c == 0xED && next >= 0xA0) || (c == 0xF0 && next < 0x90) ||
          (c == 0xF4 && next >= 0x90))
        return 0;
    }
    i += more + 1;
  }
  return 1;
}

typedef struct gguf_tokens {
  foreign_bytes *text;
  uint64_t n;
  const gguf_value *types; /* NULL: all are normal */
} gguf_tokens;

static int64_t gguf_token_type(const gguf_tokens *k, uint64_t i) {
  int64_t type = GGUF_NORMAL;
  if (k->types) gguf_integer(k->types, k->types->data.data + i * gguf_sizes[k->types->type], &type);
  return type;
}

static int gguf_text_order(const void *a, const void *b) {
  return gguf_order(*(const foreign_bytes *)a, *(const foreign_bytes *)b);
}

/* texts and types of all tokens, none of them twice */
static int gguf_read_tokens(gguf *g, gguf_tokens *k) {
  const gguf_value *v = gguf_find(g, "tokenizer.ggml.tokens");
  const unsigned char *p;
  foreign_bytes *sorted;
  uint64_t i;
  if (!v || !v->array || v->type != GGUF_STRING)
    return gguf_wrong(g, MHK_ERROR_FORMAT, "tokenizer.ggml.tokens must be a list of texts");
  if (v->count != (uint64_t)g->config.vocab_size)
    return gguf_wrong(g, MHK_ERROR_FORMAT, "tokenizer.ggml.tokens has %llu tokens, but token_embd.weight has %d rows",
                      (unsigned long long)v->count, g->config.vocab_size);
  k->types = gguf_find(g, "tokenizer.ggml.token_type");
  if (k->types &&
      (!k->types->array || k->types->count != v->count || (k->types->type != GGUF_I32 && k->types->type != GGUF_U32)))
    return gguf_wrong(g, MHK_ERROR_FORMAT,
                      "tokenizer.ggml.token_type must be a list of %llu whole numbers of 32 bits, one "
                      "for each token",
                      (unsigned long long)v->count);
  k->n = v->count;
  k->text = (foreign_bytes *)calloc((size_t)k->n, 2 * sizeof *k->text);
  if (!k->text) return gguf_memory(g);
  sorted = k->text + k->n;
  for (i = 0, p = v->data.data; i < k->n; i++) {
    k->text[i].size = (size_t)gguf_little(p, 8);
    k->text[i].data = p + 8;
    p += 8 + k->text[i].size;
    sorted[i] = k->text[i];
    if (!k->text[i].size || !gguf_is_utf8(k->text[i]))
      return gguf_wrong(g, MHK_ERROR_FORMAT, "tokenizer.ggml.tokens: token %llu is %s", (unsigned long long)i,
                        k->text[i].size ? "no UTF-8" : "empty");
    const int64_t type = gguf_token_type(k, i);
    if (type < GGUF_NORMAL || type > GGUF_UNUSED)
      return gguf_wrong(g, MHK_ERROR_UNSUPPORTED,
                        "tokenizer.ggml.token_type: token %llu has the type %lld; byte-level BPE has "
                        "1 to 5",
                        (unsigned long long)i, (long long)type);
  }
  qsort(sorted, (size_t)k->n, sizeof *sorted, gguf_text_order);
  for (i = 1; i < k->n; i++)
    if (gguf_order(sorted[i - 1], sorted[i]) == 0)
      return gguf_wrong(g, MHK_ERROR_FORMAT, "tokenizer.ggml.tokens has the token %s twice", gguf_shown(g, sorted[i]));
  return 1;
}

static void gguf_put_merges(gguf *g, foreign_text *t) {
  const gguf_value *v = gguf_find(g, "tokenizer.ggml.merges");
  const unsigned char *p;
  if (!v || !v->array || v->type != GGUF_STRING) {
    gguf_wrong(g, MHK_ERROR_FORMAT, "tokenizer.ggml.merges must be a list of texts");
    return;
  }
  p = v->data.data;
  for (uint64_t i = 0; i < v->count; i++) {
    const foreign_bytes merge = {p + 8, (size_t)gguf_little(p, 8)};
    const unsigned char *space = merge.size ? (const unsigned char *)memchr(merge.data, ' ', merge.size) : NULL;
    p += 8 + merge.size;
    if (!space || memchr(space + 1, ' ', merge.size - (size_t)(space + 1 - merge.data)) || !gguf_is_utf8(merge)) {
      gguf_wrong(g, MHK_ERROR_FORMAT,
                 "tokenizer.ggml.merges: entry %llu must be two parts of a token with a blank between",
                 (unsigned long long)i);
      return;
    }
    if (i) foreign_put(t, ",");
    foreign_add_string(t, (const char *)merge.data, merge.size);
  }
}

static void gguf_put_token(foreign_text *t, const gguf_tokens *k, int id) {
  foreign_add_string(t, (const char *)k->text[id].data, k->text[id].size);
}

/* ids of special tokens: -1: there is none */
static int gguf_token_id(gguf *g, const char *name) { return gguf_whole(g, name, -1, g->config.vocab_size - 1, -1); }

/* the rest of a post-processor that puts a token before a text */
static void gguf_put_start(foreign_text *json, const gguf_tokens *k, int start) {
  char part[80];
  foreign_put(json, ",{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":");
  gguf_put_token(json, k, start);
  foreign_put(json,
              ",\"type_id\":0}},{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],\"pair\":[{\"SpecialToken\":{\"id\":");
  gguf_put_token(json, k, start);
  foreign_put(
      json,
      ",\"type_id\":0}},{\"Sequence\":{\"id\":\"A\",\"type_id\":0}},{\"Sequence\":{\"id\":\"B\",\"type_id\":1}}],"
      "\"special_tokens\":{");
  gguf_put_token(json, k, start);
  foreign_put(json, ":{\"id\":");
  gguf_put_token(json, k, start);
  snprintf(part, sizeof part, ",\"ids\":[%d],\"tokens\":[", start);
  foreign_put(json, part);
  gguf_put_token(json, k, start);
  foreign_put(json, "]}}}]}");
}

/* the tokens that are found in a text before words are */
static void gguf_put_added(foreign_text *json, const gguf_tokens *k) {
  char part[80];
  int n = 0;
  for (uint64_t i = 0; i < k->n; i++) {
    const int64_t type = gguf_token_type(k, i);
    if (type == GGUF_NORMAL || type == GGUF_UNUSED) continue;
    snprintf(part, sizeof part, "%s{\"id\":%llu,\"content\":", n++ ? "," : "", (unsigned long long)i);
    foreign_put(json, part);
    gguf_put_token(json, k, (int)i);
    foreign_put(json, ",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":false,\"special\":");
    foreign_put(json, type == GGUF_USER_DEFINED ? "false}" : "true}");
  }
}

static void gguf_put_vocabulary(foreign_text *json, const gguf_tokens *k) {
  char part[80];
  int n = 0;
  for (uint64_t i = 0; i < k->n; i++) {
    if (gguf_token_type(k, i) == GGUF_UNUSED) continue;
    if (n++) foreign_put(json, ",");
    gguf_put_token(json, k, (int)i);
    snprintf(part, sizeof part, ":%llu", (unsigned long long)i);
    foreign_put(json, part);
  }
}

/* tokenizer_config.json */
static void gguf_write_settings(gguf *g, const gguf_tokens *k, int add, foreign_text *config) {
  static const char keys[4][2][40] = {{".tokenizer.ggml.bos_token_id", "bos_token"},
                                      {".tokenizer.ggml.eos_token_id", "eos_token"},
                                      {".tokenizer.ggml.unknown_token_id", "unk_token"},
                                      {".tokenizer.ggml.padding_token_id", "pad_token"}};
  char part[160];
  foreign_put(config, add ? "{\"add_bos_token\":true" : "{\"add_bos_token\":false");
  for (int i = 0; i < 4; i++) {
    const int id = gguf_token_id(g, keys[i][0]);
    snprintf(part, sizeof part, ",\"%s\":", keys[i][1]);
    foreign_put(config, part);
    if (id >= 0)
      gguf_put_token(config, k, id);
    else
      foreign_put(config, "null");
  }
  const foreign_bytes chat = gguf_word(g, "tokenizer.chat_template");
  if (chat.data && gguf_is_utf8(chat)) {
    foreign_put(config, ",\"chat_template\":");
    foreign_add_string(config, (const char *)chat.data, chat.size);
  }
  snprintf(part, sizeof part,
           ",\"clean_up_tokenization_spaces\":false,\"model_max_length\":%d,"
           "\"tokenizer_class\":\"PreTrainedTokenizerFast\"}",
           g->config.max_position);
  foreign_put(config, part);
}

/* tokenizer.json and tokenizer_config.json */
static int gguf_write_tokenizer(gguf *g, foreign_text *json, foreign_text *config) {
  static const char level[] =
      "{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":%s,\"use_regex\":true}";
  const struct gguf_pre *how = NULL;
  const foreign_bytes model = gguf_word(g, "tokenizer.ggml.model"), pre = gguf_word(g, "tokenizer.ggml.pre");
  gguf_tokens k = {NULL, 0, NULL};
  char part[160];
  if (!mhk_failed(g->ctx) && !gguf_is_text(model, "gpt2"))
    gguf_wrong(g, MHK_ERROR_UNSUPPORTED,
               "tokenizer.ggml.model is %s; byte-level BPE (gpt2) is supported; the model without "
               "its tokenizer: --no-tokenizer",
               model.data ? gguf_shown(g, model) : "missing");
  for (size_t i = 0; i < sizeof gguf_pres / sizeof *gguf_pres; i++)
    if (pre.data && gguf_is_text(pre, gguf_pres[i].name)) how = &gguf_pres[i];
  if (!mhk_failed(g->ctx) && !how)
    gguf_wrong(g, MHK_ERROR_UNSUPPORTED,
               "tokenizer.ggml.pre is %s; llama-bpe, qwen2 and smollm are supported; the model "
               "without its tokenizer: --no-tokenizer",
               pre.data ? gguf_shown(g, pre) : "missing");
  if (mhk_failed(g->ctx) || !gguf_read_tokens(g, &k)) {
    free(k.text);
    return 0;
  }
  foreign_put(json, "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":[");
  gguf_put_added(json, &k);
  foreign_put(json, how->nfc ? "],\"normalizer\":{\"type\":\"NFC\"},\"pre_tokenizer\":"
                             : "],\"normalizer\":null,\"pre_tokenizer\":");
  foreign_put(json, how->json);
  const int start = gguf_token_id(g, ".tokenizer.ggml.bos_token_id"),
            add = start >= 0 && gguf_flag(g, "tokenizer.ggml.add_bos_token", how->start);
  foreign_put(json, ",\"post_processor\":");
  snprintf(part, sizeof part, level, "false");
  if (add) foreign_put(json, "{\"type\":\"Sequence\",\"processors\":[");
  foreign_put(json, part);
  if (add) gguf_put_start(json, &k, start);
  snprintf(part, sizeof part, level, "true");
  foreign_put(json, ",\"decoder\":");
  foreign_put(json, part);
  foreign_put(json,
              ",\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,\"continuing_subword_prefix\":null,"
              "\"end_of_word_suffix\":null,\"fuse_unk\":false,\"byte_fallback\":false,\"ignore_merges\":");
  foreign_put(json, how->ignore_merges ? "true,\"vocab\":{" : "false,\"vocab\":{");
  gguf_put_vocabulary(json, &k);
  foreign_put(json, "},\"merges\":[");
  gguf_put_merges(g, json);
  foreign_put(json, "]}}");

  gguf_write_settings(g, &k, add, config);
  free(k.text);
  return !mhk_failed(g->ctx);
}

/* the tokens that end a text */
static void gguf_write_generation(gguf *g, foreign_text *t) {
  const int start = gguf_token_id(g, ".tokenizer.ggml.bos_token_id"),
            end = gguf_token_id(g, ".tokenizer.ggml.eos_token_id"),
            turn = gguf_token_id(g, ".tokenizer.ggml.eot_token_id");
  char part[80];
  if (end < 0) return;
  if (turn >= 0 && turn != end)
    snprintf(part, sizeof part, "{\"eos_token_id\":[%d,%d]", end, turn);
  else
    snprintf(part, sizeof part, "{\"eos_token_id\":%d", end);
  foreign_put(t, part);
  if (start >= 0) {
    snprintf(part, sizeof part, ",\"bos_token_id\":%d", start);
    foreign_put(t, part);
  }
  foreign_put(t, "}");
}

/* ---------------------------------------------------------------- weights */

/* Adds a tensor to those that are written. layer -1: none. columns 0: a vector of rows. */
static void gguf_want(gguf *g, int layer, const char *name, const char *stored, uint64_t rows, uint64_t columns,
                      int heads) {
  gguf_wanted *w = &g->wanted[g->n_wanted];
  char at[96];
  if (mhk_failed(g->ctx)) return;
  if (layer < 0) {
    snprintf(w->name, sizeof w->name, "%s", name);
    snprintf(at, sizeof at, "%s", stored);
  } else {
    snprintf(w->name, sizeof w->name, "model.layers.%d.%s", layer, name);
    snprintf(at, sizeof at, "blk.%d.%s", layer, stored);
  }
  gguf_tensor *x = w->x = gguf_find_tensor(g, at);
  if (!x) {
    gguf_wrong(g, MHK_ERROR_FORMAT, "the tensor %s is missing", at);
    return;
  }
  const uint64_t across = columns ? columns : rows, down = columns ? rows : 1;
  if (x->shape[0] != across || x->shape[1] != down || x->shape[2] != 1 || x->shape[3] != 1) {
    gguf_wrong(g, MHK_ERROR_FORMAT,
               "the tensor %s has the shape (%llu,%llu,%llu,%llu), fastest first; its configuration says "
               "(%llu,%llu)",
               at, (unsigned long long)x->shape[0], (unsigned long long)x->shape[1], (unsigned long long)x->shape[2],
               (unsigned long long)x->shape[3], (unsigned long long)across, (unsigned long long)down);
    return;
  }
  x->used = 1;
  w->rank = columns ? 2 : 1;
  w->heads = heads;
  w->rows = columns || heads ? rows : 1; /* a vector without an order of its own is one row */
  w->columns = columns ? columns : heads ? 1 : rows;
  if (!columns && heads && x->type->block > 1)
    gguf_wrong(g, MHK_ERROR_UNSUPPORTED, "the tensor %s is a bias in %s; F32, F16 and BF16 are supported", at,
               x->type->name);
  g->n_wanted++;
}

/* all tensors of the configuration; others in the file are an error */
static int gguf_want_all(gguf *g) {
  static const char *const parts[7][2] = {{"self_attn.q_proj", "attn_q"}, {"self_attn.k_proj", "attn_k"},
                                          {"self_attn.v_proj", "attn_v"}, {"self_attn.o_proj", "attn_output"},
                                          {"mlp.gate_proj", "ffn_gate"},  {"mlp.up_proj", "ffn_up"},
                                          {"mlp.down_proj", "ffn_down"}};
  const mhk_config *c = &g->config;
  const uint64_t D = (uint64_t)c->d_model, V = (uint64_t)c->vocab_size, M = (uint64_t)c->d_mlp,
                 P = (uint64_t)c->head_dim, Q = P * (uint64_t)c->n_head, K = P * (uint64_t)c->n_kv_head;
  const uint64_t rows[7] = {Q, K, K, D, M, M, D}, columns[7] = {D, D, D, Q, D, D, M};
  const int llama = strcmp(g->arch, "llama") == 0; /* only here rows of queries and keys are in pairs that rotate */
  const int heads[7] = {llama ? c->n_head : 0, llama ? c->n_kv_head : 0, 0, 0, 0, 0, 0};
  const int bias[7] = {c->qkv_bias, c->qkv_bias, c->qkv_bias, c->out_bias, c->mlp_bias, c->mlp_bias, c->mlp_bias};
  char name[64], stored[64];
  g->wanted = (gguf_wanted *)calloc(3 + 18 * (size_t)c->n_layer, sizeof *g->wanted);
  if (!g->wanted) return gguf_memory(g);
  gguf_want(g, -1, "model.embed_tokens.weight", "token_embd.weight", V, D, 0);
  gguf_want(g, -1, "model.norm.weight", "output_norm.weight", D, 0, 0);
  if (!c->tie_embeddings) gguf_want(g, -1, "lm_head.weight", "output.weight", V, D, 0);
  for (int l = 0; l < c->n_layer; l++) {
    gguf_want(g, l, "input_layernorm.weight", "attn_norm.weight", D, 0, 0);
    gguf_want(g, l, "post_attention_layernorm.weight", "ffn_norm.weight", D, 0, 0);
    if (c->qk_layernorm) {
      gguf_want(g, l, "self_attn.q_norm.weight", "attn_q_norm.weight", P, 0, 0);
      gguf_want(g, l, "self_attn.k_norm.weight", "attn_k_norm.weight", P, 0, 0);
    }
    for (int i = 0; i < 7; i++) {
      snprintf(name, sizeof name, "%s.weight", parts[i][0]);
      snprintf(stored, sizeof stored, "%s.weight", parts[i][1]);
      gguf_want(g, l, name, stored, rows[i], columns[i], heads[i]);
      if (!bias[i]) continue;
      snprintf(name, sizeof name, "%s.bias", parts[i][0]);
      snprintf(stored, sizeof stored, "%s.bias", parts[i][1]);
      gguf_want(g, l, name, stored, rows[i], 0, heads[i]);
    }
  }
  for (size_t i = 0; i < g->n_tensors && !mhk_failed(g->ctx); i++)
    if (!g->tensors[i].used)
      return gguf_wrong(g, MHK_ERROR_UNSUPPORTED, "the tensor %s is no part of a %s model that is supported",
                        gguf_shown(g, g->tensors[i].name), g->arch);
  return !mhk_failed(g->ctx);
}

static int gguf_put_bytes(gguf *g, const void *data, size_t n) {
  if (n == 0 || g->desc->put(g->desc->user, data, n)) return 1;
  return mhk_failed(g->ctx) ? 0 : gguf_wrong(g, MHK_ERROR_FILE, "cannot write what becomes of it: is the disk full?");
}

/* n numbers, whole blocks, from p */
static int gguf_put_row(gguf *g, const gguf_type *type, const unsigned char *p, uint64_t n) {
  enum { ROOM = 4096 };
  float numbers[GGUF_BLOCK_MOST];
  unsigned char out[4 * ROOM];
  size_t filled = 0;
  if (!type->open) return gguf_put_bytes(g, p, (size_t)n * (size_t)type->bytes);
  for (; n > 0; n -= (uint64_t)type->block, p += type->bytes) {
    type->open(p, numbers);
    for (int i = 0; i < type->block; i++) {
      uint32_t bits;
      memcpy(&bits, &numbers[i], 4);
      for (int b = 0; b < 4; b++) out[filled++] = (unsigned char)(bits >> (8 * b) & 255u);
    }
    if (filled == sizeof out || n == (uint64_t)type->block) {
      if (!gguf_put_bytes(g, out, filled)) return 0;
      filled = 0;
    }
  }
  return 1;
}

/* Row r of a head of transformers turns with row r + P/2, that of llama.cpp with the next one:
   there pairs are neighbors. */
static int gguf_put_tensor(gguf *g, const gguf_wanted *w) {
  const gguf_type *type = w->x->type;
  const unsigned char *p = g->data + w->x->offset;
  const uint64_t row = w->columns / (uint64_t)type->block * (uint64_t)type->bytes, P = (uint64_t)g->config.head_dim;
  for (uint64_t r = 0; r < w->rows; r++) {
    const uint64_t in = r % P, from = w->heads ? r - in + 2 * (in % (P / 2)) + in / (P / 2) : r;
    if (!gguf_put_row(g, type, p + from * row, w->columns)) return 0;
  }
  return 1;
}

static void gguf_put_member(foreign_text *t, const char *key, const foreign_text *value) {
  if (!value->n) return;
  foreign_put(t, ",");
  foreign_add_string(t, key, strlen(key));
  foreign_put(t, ":");
  foreign_add_string(t, value->data, value->n);
}

/* The whole file: header, then the tensors, those of 4 bytes a number first, so that all are
   aligned. */
static int gguf_write(gguf *g) {
  foreign_text json = {NULL, 0, 0, 0}, config = json, generation = json, settings = json, header = json;
  unsigned char size[8];
  char part[160];
  uint64_t at = 0;
  const size_t length = mhk_config_format(&g->config, NULL, 0);
  int good = gguf_want_all(g);
  if (good && !g->desc->no_tokenizer) good = gguf_write_tokenizer(g, &json, &config);
  if (good) gguf_write_generation(g, &generation);
  settings.data = good ? (char *)malloc(length + 1) : NULL;
  if (settings.data) settings.n = mhk_config_format(&g->config, settings.data, length + 1);
  good = good && (settings.data || gguf_memory(g));
  if (good) {
    foreign_put(&header, "{\"__metadata__\":{\"format\":\"pt\"");
    gguf_put_member(&header, "config.json", &settings);
    gguf_put_member(&header, "tokenizer.json", &json);
    gguf_put_member(&header, "tokenizer_config.json", &config);
    gguf_put_member(&header, "generation_config.json", &generation);
    foreign_put(&header, "}");
  }
  for (int narrow = 0; narrow < 2 && good; narrow++)
    for (size_t i = 0; i < g->n_wanted; i++) {
      const gguf_wanted *w = &g->wanted[i];
      const uint64_t bytes = w->x->count * mhk_dtype_bytes(w->x->type->out);
      if ((w->x->type->out != MHK_F32) != narrow) continue;
      foreign_put(&header, ",");
      foreign_add_string(&header, w->name, strlen(w->name));
      snprintf(part, sizeof part, ":{\"dtype\":\"%s\",\"shape\":[%llu", mhk_dtype_name(w->x->type->out),
               (unsigned long long)(w->rank == 2 ? w->rows : w->x->count));
      foreign_put(&header, part);
      snprintf(part, sizeof part, ",%llu", (unsigned long long)w->columns);
      if (w->rank == 2) foreign_put(&header, part);
      snprintf(part, sizeof part, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)at,
               (unsigned long long)(at + bytes));
      foreign_put(&header, part);
      at += bytes;
    }
  foreign_put(&header, "}");
  while (!header.failed && (header.n + 8) % 64) foreign_put(&header, " ");
  if (good && (json.failed || config.failed || generation.failed || header.failed)) good = gguf_memory(g);
  for (int i = 0; i < 8; i++) size[i] = (unsigned char)((uint64_t)header.n >> (8 * i) & 255u);
  good = good && !mhk_failed(g->ctx) && gguf_put_bytes(g, size, 8) && gguf_put_bytes(g, header.data, header.n);
  for (int narrow = 0; narrow < 2; narrow++)
    for (size_t i = 0; i < g->n_wanted && good; i++)
      if ((g->wanted[i].x->type->out != MHK_F32) == narrow) good = gguf_put_tensor(g, &g->wanted[i]);
  free(json.data);
  free(config.data);
  free(generation.data);
  free(settings.data);
  free(header.data);
  return good;
}

int gguf_unpack(mhk_context *ctx, const gguf_desc *desc) {
  gguf g;
  int good;
  if (mhk_failed(ctx)) return 0;
  memset(&g, 0, sizeof g);
  g.ctx = ctx;
  g.desc = desc;
  g.name = desc->name;
  g.at = desc->file.data;
  g.end = g.at + desc->file.size;
  good = gguf_open(&g) && gguf_read_config(&g) && gguf_write(&g);
  free(g.values);
  free(g.tensors);
  free(g.wanted);
  return good;
}
