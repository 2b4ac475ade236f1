/* pytorch.c: PyTorch's files (torch.save of a state dict, PyTorch 1.6 and later): a zip archive of
   raw tensors, and a pickle that describes them.

   The pickle is a program for a stack machine. This reader knows the 31 instructions that
   torch.save needs for a dictionary of tensors (protocol 2), and the names of its storages and of
   four functions, which stand for what is done here; nothing is looked up or called. Its memory and
   time grow with the bytes of the pickle, whatever these say: no shared value is ever unfolded. */
#include "foreign.h"
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- memory */

/* Blocks that are freed together. */
typedef struct pool_block {
  struct pool_block *before;
  size_t used, room; /* bytes behind this header */
} pool_block;
typedef struct pool {
  mhk_context *ctx; /* for errors */
  pool_block *last;
} pool;
enum { POOL_BLOCK = 1 << 16, POOL_HEADER = 64 };

/* n zeroed things of a size; NULL after an error */
static void *pool_take(pool *p, size_t n, size_t size) {
  const size_t bytes = n <= SIZE_MAX / 2 / size ? (n * size + 15) / 16 * 16 : SIZE_MAX / 2;
  if (!p->last || bytes > p->last->room - p->last->used) {
    const size_t room = bytes > POOL_BLOCK ? bytes : POOL_BLOCK;
    pool_block *b = (pool_block *)calloc(1, POOL_HEADER + room);
    if (!b) {
      mhk_fail(p->ctx, MHK_ERROR_MEMORY, "out of memory: %.0f bytes to read a file of PyTorch", (double)bytes);
      return NULL;
    }
    b->room = room;
    b->before = p->last;
    p->last = b;
  }
  p->last->used += bytes;
  return (char *)p->last + POOL_HEADER + p->last->used - bytes;
}

static void pool_free(pool *p) {
  while (p->last) {
    pool_block *before = p->last->before;
    free(p->last);
    p->last = before;
  }
}

/* ---------------------------------------------------------------- the archive */

/* a little-endian whole number of up to 8 bytes */
static uint64_t little(const unsigned char *p, size_t bytes) {
  uint64_t x = 0;
  while (bytes > 0) x = (x << 8) | p[--bytes];
  return x;
}

static int text_order(const char *a, size_t a_length, const char *b, size_t b_length) {
  const int order = memcmp(a, b, a_length < b_length ? a_length : b_length);
  return order ? order : a_length < b_length ? -1 : a_length > b_length;
}

#define ZIP_ENTRY 0x04034B50u    /* signatures of APPNOTE.TXT 6.3: a local header, */
#define ZIP_DIRECTORY 0x02014B50u /* an entry of the directory, */
#define ZIP_END 0x06054B50u       /* its end, */
#define ZIP_END64 0x06064B50u     /* its end with sizes of 64 bits */
#define ZIP_LOCATOR 0x07064B50u   /* and the position of that end */
#define PICKLE_MOST ((size_t)1 << 23) /* bytes: enough for about 50000 tensors */

typedef struct zip_part {
  const unsigned char *name;
  size_t name_length, header, begin, bytes; /* header: offset of the entry; begin: offset of its bytes */
  uint32_t crc;                             /* 0: unknown */
} zip_part;

/* orders for qsort() of pointers */
static int zip_part_place_order(const void *a, const void *b) {
  const zip_part *x = *(const zip_part *const *)a, *y = *(const zip_part *const *)b;
  return x->header < y->header ? -1 : x->header > y->header;
}

static int zip_part_name_order(const void *a, const void *b) {
  const zip_part *x = *(const zip_part *const *)a, *y = *(const zip_part *const *)b;
  return text_order((const char *)x->name, x->name_length, (const char *)y->name, y->name_length);
}

/* reads one entry of the directory, `left` bytes before its end; returns its length, or 0 */
static size_t zip_entry(mhk_context *ctx, const char *path, const foreign_bytes *b, size_t directory,
                             const unsigned char *p, size_t left, zip_part *out) {
  size_t at;
  const unsigned char *x;
  char shown[64];
  if (left < 46 || little(p, 4) != ZIP_DIRECTORY)
    return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: its zip directory is damaged", path), (size_t)0;
  const unsigned flags = (unsigned)little(p + 8, 2);
  const unsigned method = (unsigned)little(p + 10, 2);
  uint64_t packed = little(p + 20, 4);
  uint64_t bytes = little(p + 24, 4);
  uint64_t header = little(p + 42, 4);
  const size_t name = (size_t)little(p + 28, 2);
  const size_t extra = (size_t)little(p + 30, 2);
  const size_t whole = 46 + name + extra + (size_t)little(p + 32, 2);
  if (whole > left) return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: its zip directory is damaged", path), (size_t)0;
  foreign_printable(p + 46, name, shown);
  /* sizes that need 64 bits are in the field with id 1, in this order */
  for (x = p + 46 + name, at = 0; extra - at >= 4;) {
    const size_t id = (size_t)little(x + at, 2), end = at + 4 + (size_t)little(x + at + 2, 2);
    if (end > extra) break;
    at += 4;
    if (id == 1) {
      uint64_t *fields[3];
      fields[0] = &bytes, fields[1] = &packed, fields[2] = &header;
      for (int i = 0; i < 3; i++)
        if (*fields[i] == 0xFFFFFFFFu && end - at >= 8) {
          *fields[i] = little(x + at, 8);
          at += 8;
        }
    }
    at = end;
  }
  if (flags & 1) return mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "%s: its entry %s is encrypted", path, shown), (size_t)0;
  if (method != 0)
    return mhk_fail(ctx, MHK_ERROR_UNSUPPORTED,
                    "%s: its entry %s is compressed (zip method %u); only uncompressed entries are supported, as "
                    "torch.save writes them",
                    path, shown, method),
           (size_t)0;
  const unsigned char *local = b->data + (header <= directory ? (size_t)header : 0);
  if (header > directory || directory - (size_t)header < 30 || little(local, 4) != ZIP_ENTRY ||
      little(local + 8, 2) != 0 || little(local + 26, 2) != name)
    return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: its zip directory places %s at byte %llu, but it is not there",
                    path, shown, (unsigned long long)header),
           (size_t)0;
  out->header = (size_t)header;
  out->begin = 30 + name + (size_t)little(local + 28, 2);
  if (out->begin > directory - out->header || packed != bytes || bytes > directory - out->header - out->begin)
    return mhk_fail(ctx, MHK_ERROR_FORMAT,
                    "%s: its entry %s claims %llu bytes from byte %llu; the file has %lld bytes", path, shown,
                    (unsigned long long)bytes, (unsigned long long)(out->header + out->begin), (long long)b->size),
           (size_t)0;
  if (memcmp(local + 30, p + 46, name) != 0)
    return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: its entry %s has another name in the zip directory", path, shown),
           (size_t)0;
  out->begin += out->header;
  out->bytes = (size_t)bytes;
  out->name = p + 46;
  out->name_length = name;
  out->crc = (uint32_t)little(p + 16, 4);
  return whole;
}

static const zip_part **zip_no_entries(mhk_context *ctx, const char *path, const char *what) {
  mhk_fail(ctx, MHK_ERROR_FORMAT, "%s%s", path, what);
  return NULL;
}

/* The entries of an archive, sorted by name, none twice, none over another. */
static const zip_part **zip_entries(pool *scratch, const char *path, const foreign_bytes *b, size_t *count) {
  mhk_context *ctx = scratch->ctx;
  const size_t least = b->size > 65557 ? b->size - 65557 : 0;
  size_t end, at, size, whole;
  zip_part *entries;
  const zip_part **order;
  size_t i;
  char shown[64];
  for (end = b->size >= 22 ? b->size - 22 : 0; b->size >= 22; end--) { /* a comment of any length may follow it */
    if (little(b->data + end, 4) == ZIP_END && little(b->data + end + 20, 2) == b->size - end - 22)
      break;
    if (end == least) break;
  }
  const unsigned char *p = b->data + end;
  if (b->size < 22 || little(p, 4) != ZIP_END || little(p + 20, 2) != b->size - end - 22)
    return zip_no_entries(ctx, path, " starts like a zip archive but has no directory at its end: it is truncated");
  uint64_t n = little(p + 10, 2);
  uint64_t length = little(p + 12, 4);
  uint64_t start = little(p + 16, 4);
  if (end >= 20 && little(p - 20, 4) == ZIP_LOCATOR) {
    const uint64_t record = little(p - 12, 8);
    if (end < 76 || record > end - 76 || little(b->data + (size_t)record, 4) != ZIP_END64)
      return zip_no_entries(ctx, path, ": the end of its zip directory is damaged");
    end = (size_t)record;
    n = little(b->data + end + 32, 8);
    length = little(b->data + end + 40, 8);
    start = little(b->data + end + 48, 8);
  }
  if (start > end || length != end - start || n > length / 46) {
    mhk_fail(ctx, MHK_ERROR_FORMAT,
             "%s: its zip directory of %llu entries cannot be the %llu bytes from byte %llu", path,
             (unsigned long long)n, (unsigned long long)length, (unsigned long long)start);
    return NULL;
  }
  *count = (size_t)n;
  entries = (zip_part *)pool_take(scratch, *count, sizeof *entries);
  order = (const zip_part **)pool_take(scratch, *count, sizeof *order);
  if (!entries || !order) return NULL;
  for (i = 0, at = (size_t)start, size = (size_t)length; i < *count; i++, at += whole, size -= whole) {
    whole = zip_entry(ctx, path, b, (size_t)start, b->data + at, size, &entries[i]);
    if (whole == 0) return NULL;
    order[i] = &entries[i];
  }
  if (size != 0)
    return zip_no_entries(ctx, path, ": its zip directory is damaged");
  qsort(order, *count, sizeof *order, zip_part_place_order);
  for (i = 1; i < *count; i++)
    if (order[i - 1]->begin + order[i - 1]->bytes > order[i]->header) {
      mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: its entry %s overlaps the one before it", path,
               foreign_printable(order[i]->name, order[i]->name_length, shown));
      return NULL;
    }
  qsort(order, *count, sizeof *order, zip_part_name_order);
  for (i = 1; i < *count; i++)
    if (zip_part_name_order(&order[i - 1], &order[i]) == 0) {
      mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: its entry %s appears twice", path,
               foreign_printable(order[i]->name, order[i]->name_length, shown));
      return NULL;
    }
  return order;
}

/* CRC-32 of zip (ISO 3309) */
static uint32_t crc32(const unsigned char *p, size_t n) {
  uint32_t table[16], crc = 0xFFFFFFFFu, i;
  for (i = 0; i < 16; i++) {
    uint32_t x = i;
    for (int bit = 0; bit < 4; bit++) x = x & 1 ? (x >> 1) ^ 0xEDB88320u : x >> 1;
    table[i] = x;
  }
  for (size_t at = 0; at < n; at++) {
    crc ^= p[at];
    crc = (crc >> 4) ^ table[crc & 15];
    crc = (crc >> 4) ^ table[crc & 15];
  }
  return crc ^ 0xFFFFFFFFu;
}

typedef enum pickled_type {
  PICKLED_OTHER = 1, /* None, lists, floats: values that tensors do not need */
  PICKLED_MARK,
  PICKLED_BOOL,
  PICKLED_INTEGER,
  PICKLED_TEXT,
  PICKLED_TUPLE,
  PICKLED_DICTIONARY,
  PICKLED_PAIR, /* of a dictionary */
  PICKLED_STORAGE_TYPE,
  PICKLED_ORDERED_DICTIONARY, /* functions */
  PICKLED_REBUILD_TENSOR,
  PICKLED_REBUILD_PARAMETER,
  PICKLED_STORAGE,
  PICKLED_TENSOR
} pickled_type;

typedef struct pickled {
  pickled_type type;
  mhk_dtype dtype;              /* storages and their types, tensors */
  int64_t n;                    /* the integer; bytes of the text; items of the tuple; elements of the storage */
  const unsigned char *bytes;   /* text; storage; first element of the tensor */
  struct pickled **items;  /* of the tuple */
  struct pickled *first, *last, *next; /* pairs of the dictionary */
  struct pickled *key, *value;         /* of the pair */
  mhk_index shape[MHK_MAX_RANK], stride[MHK_MAX_RANK], count; /* tensors; strides in elements */
  int rank, gather;             /* gather: the elements are not in order */
} pickled;

typedef struct unpickler {
  pool *scratch;
  const char *path;
  const foreign_bytes *file;
  const zip_part *const *entries;
  size_t n_entries;
  const unsigned char *prefix; /* of all entries' names */
  size_t prefix_length;
  const unsigned char *p;
  size_t n, at, op; /* op: offset of the instruction */
  pickled **stack, **memo;
  size_t depth, stack_room, memo_room;
  pickled *spare;
  int spares;
} unpickler;

#if defined(__GNUC__) || defined(__clang__)
__attribute__((format(printf, 3, 4)))
#endif
static int pickle_fail(unpickler *r, mhk_result code, const char *format, ...) {
  char text[512];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  mhk_fail(r->scratch->ctx, code, "%s, byte %lld of its pickle: %s", r->path, (long long)r->op, text);
  return 0;
}

static pickled *pickle_node(unpickler *r, pickled_type type) {
  pickled *x;
  if (r->spares == 0) {
    r->spare = (pickled *)pool_take(r->scratch, 64, sizeof *x);
    if (!r->spare) return NULL;
    r->spares = 64;
  }
  x = r->spare++;
  r->spares--;
  x->type = type;
  return x;
}

/* reserves room for `need` pointers in a list */
static int pickle_room(unpickler *r, pickled ***list, size_t *room, size_t need) {
  size_t more = *room ? *room : 64;
  pickled **larger;
  if (need <= *room) return 1;
  while (more < need) more *= 2;
  larger = (pickled **)pool_take(r->scratch, more, sizeof *larger);
  if (!larger) return 0;
  if (*room) memcpy(larger, *list, *room * sizeof *larger);
  *list = larger;
  *room = more;
  return 1;
}

static int pickle_push(unpickler *r, pickled *x) {
  if (!x || !pickle_room(r, &r->stack, &r->stack_room, r->depth + 1)) return 0;
  r->stack[r->depth++] = x;
  return 1;
}

/* the top value, which must have a type (0: any except a mark) */
static pickled *pickle_top(unpickler *r, int type, const char *what) {
  pickled *x = r->depth ? r->stack[r->depth - 1] : NULL;
  if (x && (type ? (int)x->type == type : x->type != PICKLED_MARK)) return x;
  pickle_fail(r, MHK_ERROR_FORMAT, "the instruction needs %s and finds %s", what,
                   x ? "something else" : "nothing");
  return NULL;
}

static pickled *pickle_pop(unpickler *r, int type, const char *what) {
  pickled *x = pickle_top(r, type, what);
  if (x) r->depth--;
  return x;
}

/* pops everything down to the last mark, and the mark; the popped values stay at *items until the
   next push */
static int pickle_marked(unpickler *r, pickled ***items, size_t *n) {
  size_t at = r->depth;
  while (at > 0 && r->stack[at - 1]->type != PICKLED_MARK) at--;
  if (at == 0) return pickle_fail(r, MHK_ERROR_FORMAT, "the instruction needs a mark and there is none");
  *items = r->stack + at;
  *n = r->depth - at;
  r->depth = at - 1;
  return 1;
}

static int pickle_tuple(unpickler *r, pickled **items, size_t n) {
  pickled *x = pickle_node(r, PICKLED_TUPLE);
  if (!x) return 0;
  x->n = (int64_t)n;
  if (n) {
    x->items = (pickled **)pool_take(r->scratch, n, sizeof *items);
    if (!x->items) return 0;
    memcpy(x->items, items, n * sizeof *items);
  }
  return pickle_push(r, x);
}

static int pickle_pair(unpickler *r, pickled *dictionary, pickled *key, pickled *value) {
  pickled *x = pickle_node(r, PICKLED_PAIR);
  if (!x) return 0;
  x->key = key;
  x->value = value;
  if (dictionary->last)
    dictionary->last->next = x;
  else
    dictionary->first = x;
  dictionary->last = x;
  return 1;
}

static int pickled_is(const pickled *x, const char *text) {
  return x->type == PICKLED_TEXT && (size_t)x->n == strlen(text) && memcmp(x->bytes, text, (size_t)x->n) == 0;
}

/* Pushes what a name stands for, of those that a dictionary of tensors needs; refuses all
   others. */
static int pickle_global(unpickler *r) {
  static const struct {
    char name[40]; /* module and name, as in the file */
    pickled_type type;
    mhk_dtype dtype;
  } known[] = {{"collections\nOrderedDict\n", PICKLED_ORDERED_DICTIONARY, MHK_F32},
               {"torch._utils\n_rebuild_tensor_v2\n", PICKLED_REBUILD_TENSOR, MHK_F32},
               {"torch._utils\n_rebuild_parameter\n", PICKLED_REBUILD_PARAMETER, MHK_F32},
               {"torch\nFloatStorage\n", PICKLED_STORAGE_TYPE, MHK_F32},
               {"torch\nHalfStorage\n", PICKLED_STORAGE_TYPE, MHK_F16},
               {"torch\nBFloat16Storage\n", PICKLED_STORAGE_TYPE, MHK_BF16},
               {"torch\nDoubleStorage\n", PICKLED_STORAGE_TYPE, MHK_F64},
               {"torch\nCharStorage\n", PICKLED_STORAGE_TYPE, MHK_I8},
               {"torch\nByteStorage\n", PICKLED_STORAGE_TYPE, MHK_U8},
               {"torch\nShortStorage\n", PICKLED_STORAGE_TYPE, MHK_I16},
               {"torch\nIntStorage\n", PICKLED_STORAGE_TYPE, MHK_I32},
               {"torch\nLongStorage\n", PICKLED_STORAGE_TYPE, MHK_I64},
               {"torch\nBoolStorage\n", PICKLED_STORAGE_TYPE, MHK_BOOL}};
  size_t length = 0, n_lines, i;
  char shown[64];
  for (n_lines = 0; n_lines < 2; length++) {
    if (r->at + length >= r->n) return pickle_fail(r, MHK_ERROR_FORMAT, "a name does not end");
    if (r->p[r->at + length] == '\n') n_lines++;
  }
  for (i = 0; i < sizeof known / sizeof known[0]; i++)
    if (length == strlen(known[i].name) && memcmp(r->p + r->at, known[i].name, length) == 0) {
      pickled *x = pickle_node(r, known[i].type);
      if (!x) return 0;
      x->dtype = known[i].dtype;
      r->at += length;
      return pickle_push(r, x);
    }
  foreign_printable(r->p + r->at, length - 1, shown);
  for (char *c = shown; *c; c++)
    if (*c == '?') *c = '.';
  return pickle_fail(r, MHK_ERROR_UNSUPPORTED, "it names %s, which a dictionary of tensors does not need: refused",
                          shown);
}

/* ("storage", type, key, location, elements): the bytes of entry data/key */
static int pickle_storage(unpickler *r) {
  pickled *args = pickle_pop(r, PICKLED_TUPLE, "a tuple that describes a storage"), **x, *out;
  char name[300], shown[64];
  const zip_part *found = NULL, *const *entry;
  zip_part wanted;
  const zip_part *const key = &wanted;
  if (!args) return 0;
  x = args->items;
  if (args->n != 5 || !pickled_is(x[0], "storage") || x[1]->type != PICKLED_STORAGE_TYPE ||
      x[2]->type != PICKLED_TEXT || x[3]->type != PICKLED_TEXT || x[4]->type != PICKLED_INTEGER)
    return pickle_fail(r, MHK_ERROR_FORMAT,
                            "this does not describe a storage: (\"storage\", type, key, location, elements) is needed");
  if (r->prefix_length + (size_t)x[2]->n > sizeof name - 8)
    return pickle_fail(r, MHK_ERROR_FORMAT, "the key of a storage is too long");
  memcpy(name, r->prefix, r->prefix_length);
  memcpy(name + r->prefix_length, "data/", 5);
  memcpy(name + r->prefix_length + 5, x[2]->bytes, (size_t)x[2]->n);
  wanted.name = (const unsigned char *)name;
  wanted.name_length = r->prefix_length + 5 + (size_t)x[2]->n;
  entry = (const zip_part *const *)bsearch(&key, r->entries, r->n_entries, sizeof *r->entries, zip_part_name_order);
  if (entry) found = *entry;
  if (!found)
    return pickle_fail(r, MHK_ERROR_FORMAT, "the storage %s is not in the archive",
                            foreign_printable(wanted.name, wanted.name_length, shown));
  const size_t size = mhk_dtype_bytes(x[1]->dtype);
  if (x[4]->n < 0 || (uint64_t)x[4]->n > (uint64_t)(found->bytes / size) || (size_t)x[4]->n * size != found->bytes)
    return pickle_fail(r, MHK_ERROR_FORMAT,
                            "the storage %s should have %lld elements of type %s, its entry has %lld bytes",
                            foreign_printable(wanted.name, wanted.name_length, shown), (long long)x[4]->n,
                            mhk_dtype_name(x[1]->dtype), (long long)found->bytes);
  out = pickle_node(r, PICKLED_STORAGE);
  if (!out) return 0;
  out->dtype = x[1]->dtype;
  out->n = x[4]->n;
  out->bytes = r->file->data + found->begin;
  return pickle_push(r, out);
}

/* (storage, offset, shape, strides, requires_grad, hooks) */
static int pickle_tensor(unpickler *r, const pickled *args) {
  pickled **x = args->items, *out;
  int64_t last, next = 1, count = 1, whole = 1;
  int i, empty = 0;
  if (args->n != 6 || x[0]->type != PICKLED_STORAGE || x[1]->type != PICKLED_INTEGER ||
      x[2]->type != PICKLED_TUPLE || x[3]->type != PICKLED_TUPLE || x[2]->n != x[3]->n ||
      x[4]->type != PICKLED_BOOL || x[5]->type != PICKLED_DICTIONARY)
    return pickle_fail(
        r, MHK_ERROR_FORMAT,
        "this does not describe a tensor: (storage, offset, shape, strides, requires_grad, hooks) is needed");
  if (x[2]->n > MHK_MAX_RANK)
    return pickle_fail(r, MHK_ERROR_UNSUPPORTED, "a tensor has %lld axes; this version supports up to %d",
                            (long long)x[2]->n, MHK_MAX_RANK);
  out = pickle_node(r, PICKLED_TENSOR);
  if (!out) return 0;
  out->dtype = x[0]->dtype;
  out->rank = (int)x[2]->n;
  for (i = 0; i < MHK_MAX_RANK; i++) out->shape[i] = 1;
  last = x[1]->n;
  if (last < 0 || last > x[0]->n)
    return pickle_fail(r, MHK_ERROR_FORMAT, "a tensor starts outside its storage of %lld elements",
                            (long long)x[0]->n);
  for (i = 0; i < out->rank; i++) {
    const pickled *size = x[2]->items[i], *stride = x[3]->items[i];
    if (size->type != PICKLED_INTEGER || stride->type != PICKLED_INTEGER || size->n < 0 || stride->n < 0 ||
        size->n > PTRDIFF_MAX || stride->n > PTRDIFF_MAX)
      return pickle_fail(r, MHK_ERROR_FORMAT, "axis %d of a tensor has an invalid size or stride", i);
    out->shape[i] = (mhk_index)size->n;
    out->stride[i] = (mhk_index)stride->n;
    empty |= size->n == 0;
    if (size->n > 0 && whole > PTRDIFF_MAX / size->n)
      return pickle_fail(r, MHK_ERROR_FORMAT, "axis %d of a tensor has an invalid size or stride", i);
    if (size->n > 0) whole *= size->n;
  }
  for (i = out->rank - 1; i >= 0 && !empty; i--) {
    const int64_t steps = (int64_t)out->shape[i] - 1, stride = (int64_t)out->stride[i];
    if (steps > 0 && stride > (x[0]->n - last) / steps)
      return pickle_fail(r, MHK_ERROR_FORMAT, "a tensor extends outside its storage of %lld elements",
                              (long long)x[0]->n);
    last += steps * stride;
    out->gather |= steps > 0 && stride != next;
    if ((int64_t)out->shape[i] > x[0]->n / count)
      return pickle_fail(r, MHK_ERROR_UNSUPPORTED,
                              "a tensor has more elements than its storage (%lld), so it repeats some",
                              (long long)x[0]->n);
    count *= (int64_t)out->shape[i];
    next = count;
  }
  if (!empty && last >= x[0]->n)
    return pickle_fail(r, MHK_ERROR_FORMAT, "a tensor extends outside its storage of %lld elements",
                            (long long)x[0]->n);
  out->count = empty ? 0 : (mhk_index)count;
  out->bytes = x[0]->bytes + (size_t)x[1]->n * mhk_dtype_bytes(out->dtype);
  return pickle_push(r, out);
}

static int pickle_reduce(unpickler *r) {
  const pickled *args = pickle_pop(r, PICKLED_TUPLE, "a tuple of arguments"), *function;
  if (!args) return 0;
  function = pickle_pop(r, 0, "a function");
  if (!function) return 0;
  switch (function->type) {
    case PICKLED_REBUILD_TENSOR: return pickle_tensor(r, args);
    case PICKLED_ORDERED_DICTIONARY:
      if (args->n == 0) return pickle_push(r, pickle_node(r, PICKLED_DICTIONARY));
      return pickle_fail(r, MHK_ERROR_UNSUPPORTED, "an OrderedDict made from arguments");
    case PICKLED_REBUILD_PARAMETER: /* (tensor, requires_grad, hooks) */
      if (args->n == 3 && args->items[0]->type == PICKLED_TENSOR) return pickle_push(r, args->items[0]);
      return pickle_fail(r, MHK_ERROR_FORMAT,
                              "this does not describe a parameter: (tensor, requires_grad, hooks) is needed");
    default: return pickle_fail(r, MHK_ERROR_FORMAT, "it calls something that is not a function");
  }
}

/* returns the next n bytes and moves past them */
static const unsigned char *pickle_take(unpickler *r, uint64_t n) {
  const unsigned char *p = r->p + r->at;
  if (n > r->n - r->at) {
    pickle_fail(r, MHK_ERROR_FORMAT, "the instruction needs %llu bytes, but %lld are left", (unsigned long long)n,
                     (long long)(r->n - r->at));
    return NULL;
  }
  r->at += (size_t)n;
  return p;
}

static int pickle_integer(unpickler *r, size_t bytes, int is_signed) {
  const unsigned char *p = pickle_take(r, bytes);
  if (!p) return 0;
  if (bytes > 8) return pickle_fail(r, MHK_ERROR_UNSUPPORTED, "a whole number of %lld bytes", (long long)bytes);
  pickled *x = pickle_node(r, PICKLED_INTEGER);
  if (!x) return 0;
  uint64_t bits = little(p, bytes);
  if (is_signed && bytes > 0 && (p[bytes - 1] & 0x80)) {
    if (bytes < 8) bits |= ~(uint64_t)0 << (8 * bytes);
    x->n = -(int64_t)(~bits) - 1;
  } else
    x->n = (int64_t)bits;
  return pickle_push(r, x);
}

static int pickle_memo(unpickler *r, size_t bytes, int put) {
  const unsigned char *p = pickle_take(r, bytes);
  if (!p) return 0;
  const size_t at = (size_t)little(p, bytes);
  if (put) { /* memo numbers are assigned in order, so none is above the number of bytes read */
    pickled *x = pickle_top(r, 0, "a value to keep");
    if (!x) return 0;
    if (at >= r->at)
      return pickle_fail(r, MHK_ERROR_FORMAT, "a value is stored in memo %llu, far above those in use",
                              (unsigned long long)at);
    if (!pickle_room(r, &r->memo, &r->memo_room, at + 1)) return 0;
    r->memo[at] = x;
    return 1;
  }
  if (at >= r->memo_room || !r->memo[at])
    return pickle_fail(r, MHK_ERROR_FORMAT, "memo %llu is empty", (unsigned long long)at);
  return pickle_push(r, r->memo[at]);
}

/* runs one instruction; returns 1 to continue, 0 on errors */
static int pickle_step(unpickler *r, int code) {
  pickled *x, *y, **items = NULL;
  const unsigned char *p;
  size_t n = 0, i;
  switch (code) {
    case '(': return pickle_push(r, pickle_node(r, PICKLED_MARK));
    case '}': return pickle_push(r, pickle_node(r, PICKLED_DICTIONARY));
    case ']':
    case 'N': return pickle_push(r, pickle_node(r, PICKLED_OTHER));
    case 'G': return pickle_take(r, 8) && pickle_push(r, pickle_node(r, PICKLED_OTHER));
    case 0x88:
    case 0x89: return pickle_push(r, pickle_node(r, PICKLED_BOOL));
    case 'K': return pickle_integer(r, 1, 0);
    case 'M': return pickle_integer(r, 2, 0);
    case 'J': return pickle_integer(r, 4, 1);
    case 0x8A: return (p = pickle_take(r, 1)) != NULL && pickle_integer(r, *p, 1);
    case 'X':
      if ((p = pickle_take(r, 4)) == NULL || (x = pickle_node(r, PICKLED_TEXT)) == NULL) return 0;
      x->n = (int64_t)little(p, 4);
      x->bytes = pickle_take(r, (uint64_t)x->n);
      return x->bytes && pickle_push(r, x);
    case ')': return pickle_tuple(r, NULL, 0);
    case 0x85:
    case 0x86:
    case 0x87:
      n = (size_t)(code - 0x84);
      for (i = 0; i < n; i++)
        if (i >= r->depth || r->stack[r->depth - 1 - i]->type == PICKLED_MARK)
          return pickle_fail(r, MHK_ERROR_FORMAT, "the instruction needs %d values and there are %d", (int)n,
                                  (int)i);
      r->depth -= n;
      return pickle_tuple(r, r->stack + r->depth, n);
    case 't': return pickle_marked(r, &items, &n) && pickle_tuple(r, items, n);
    case 'a': return pickle_pop(r, 0, "a value") && pickle_top(r, PICKLED_OTHER, "a list");
    case 'e': return pickle_marked(r, &items, &n) && pickle_top(r, PICKLED_OTHER, "a list");
    case 's':
      if ((y = pickle_pop(r, 0, "a value")) == NULL || (x = pickle_pop(r, 0, "a key")) == NULL) return 0;
      return pickle_top(r, PICKLED_DICTIONARY, "a dictionary") &&
             pickle_pair(r, r->stack[r->depth - 1], x, y);
    case 'u':
      if (!pickle_marked(r, &items, &n) ||
          (x = pickle_top(r, PICKLED_DICTIONARY, "a dictionary")) == NULL)
        return 0;
      if (n % 2) return pickle_fail(r, MHK_ERROR_FORMAT, "a key without a value");
      for (i = 0; i < n; i += 2)
        if (!pickle_pair(r, x, items[i], items[i + 1])) return 0;
      return 1;
    case 'q': return pickle_memo(r, 1, 1);
    case 'r': return pickle_memo(r, 4, 1);
    case 'h': return pickle_memo(r, 1, 0);
    case 'j': return pickle_memo(r, 4, 0);
    case 'c': return pickle_global(r);
    case 'Q': return pickle_storage(r);
    case 'R': return pickle_reduce(r);
    case 'b': /* the attributes of an OrderedDict hold versions of modules */
      return pickle_pop(r, 0, "attributes") &&
             pickle_top(r, PICKLED_DICTIONARY, "a dictionary that gets attributes");
    default:
      return pickle_fail(r, MHK_ERROR_UNSUPPORTED,
                              "instruction 0x%02X, which a dictionary of tensors does not need: refused",
                              (unsigned)code);
  }
}

/* the result of the pickle, or NULL */
static pickled *unpickle(unpickler *r) {
  if (r->n < 2 || r->p[0] != 0x80 || r->p[1] != 2) {
    pickle_fail(r, MHK_ERROR_UNSUPPORTED, "only protocol 2 is supported, which torch.save writes");
    return NULL;
  }
  for (r->at = 2;;) {
    r->op = r->at;
    if (r->at >= r->n) {
      pickle_fail(r, MHK_ERROR_FORMAT, "it ends without a STOP instruction");
      return NULL;
    }
    const int code = r->p[r->at++];
    if (code == '.') break;
    if (!pickle_step(r, code)) return NULL;
  }
  if (r->depth != 1 || r->at != r->n) {
    pickle_fail(r, MHK_ERROR_FORMAT,
                     "it ends with %lld values on its stack and %lld bytes left; it must end with 1 and 0",
                     (long long)r->depth, (long long)(r->n - r->at));
    return NULL;
  }
  return pickle_top(r, PICKLED_DICTIONARY, "a dictionary of tensors");
}

/* pairs by key, for qsort() of pointers; the same key again is found at once, so that time does not
   grow with what is shared */
static int pickled_key_order(const void *a, const void *b) {
  const pickled *x = (*(const pickled *const *)a)->key, *y = (*(const pickled *const *)b)->key;
  return x == y ? 0 : text_order((const char *)x->bytes, (size_t)x->n, (const char *)y->bytes, (size_t)y->n);
}

/* ---------------------------------------------------------------- the tensors */

/* What an mhk_file of PyTorch's stands on. */
typedef struct pytorch {
  mhk_context *ctx;
  pool kept, scratch;
  foreign_bytes *maps; /* of the shards; data NULL: of another kind */
  mhk_file **others;   /* shards that are safetensors */
  int n_shards;
  mhk_stored *tensors;
  int *shard_of; /* of each tensor */
  size_t n, room;
} pytorch;

static void pytorch_close(void *user) {
  pytorch *p = (pytorch *)user;
  for (int i = 0; i < p->n_shards; i++) {
    if (p->maps) foreign_unmap(&p->maps[i]);
    if (p->others) mhk_file_close(p->others[i]);
  }
  pool_free(&p->kept);
  pool_free(&p->scratch);
  free(p->tensors);
  free(p->shard_of);
  free(p);
}

static pytorch *pytorch_new(mhk_context *ctx, int n_shards) {
  pytorch *p = (pytorch *)calloc(1, sizeof *p);
  if (!p) {
    mhk_fail(ctx, MHK_ERROR_MEMORY, "out of memory for a file of PyTorch");
    return NULL;
  }
  p->ctx = p->kept.ctx = p->scratch.ctx = ctx;
  p->maps = (foreign_bytes *)pool_take(&p->kept, (size_t)n_shards, sizeof *p->maps);
  p->others = (mhk_file **)pool_take(&p->kept, (size_t)n_shards, sizeof *p->others);
  p->n_shards = n_shards;
  return p;
}

/* room for n tensors more */
static int pytorch_room(pytorch *p, size_t n) {
  const size_t room = p->n + n;
  mhk_stored *tensors = NULL;
  int *shard_of = NULL;
  if (room <= p->room) return 1;
  if (room <= INT_MAX / 2) {
    tensors = (mhk_stored *)realloc(p->tensors, room * sizeof *tensors);
    if (tensors) p->tensors = tensors;
    shard_of = (int *)realloc(p->shard_of, room * sizeof *shard_of);
    if (shard_of) p->shard_of = shard_of;
  }
  if (!tensors || !shard_of)
    return mhk_fail(p->ctx, MHK_ERROR_MEMORY, "out of memory for %.0f tensors", (double)room), 0;
  p->room = room;
  return 1;
}

/* the elements of a tensor in order, copied */
static const void *pickled_gather(pool *kept, const pickled *x) {
  const size_t size = mhk_dtype_bytes(x->dtype);
  unsigned char *out = (unsigned char *)pool_take(kept, (size_t)x->count, size), *to = out;
  mhk_index at[MHK_MAX_RANK] = {0}, from = 0;
  for (mhk_index i = 0; i < x->count && out; i++, to += size) {
    memcpy(to, x->bytes + (size_t)from * size, size);
    for (int k = x->rank - 1; k >= 0; k--) {
      from += x->stride[k];
      if (++at[k] < x->shape[k]) break;
      from -= at[k] * x->stride[k];
      at[k] = 0;
    }
  }
  return out;
}

/* Is it a name: UTF-8, not empty, not endless, no zero in it? */
static int pickled_name(const pickled *x) {
  static const unsigned least[] = {0, 0, 0x80, 0x800, 0x10000};
  const unsigned char *p = x->bytes;
  if (x->type != PICKLED_TEXT || x->n == 0 || x->n > 4096) return 0;
  for (int64_t i = 0; i < x->n;) {
    const unsigned c = p[i];
    const int length = c == 0 ? 0 : c < 0x80 ? 1 : c < 0xC0 ? 0 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : c < 0xF8 ? 4 : 0;
    unsigned long code = length > 1 ? c & (0x7Fu >> length) : c;
    if (length == 0 || length > x->n - i) return 0;
    for (int k = 1; k < length; k++) {
      if ((p[i + k] & 0xC0) != 0x80) return 0;
      code = code << 6 | (p[i + k] & 0x3Fu);
    }
    if (length > 1 && (code < least[length] || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000))) return 0;
    i += length;
  }
  return 1;
}

/* The pickle of an archive, with the unpickler set to its start; NULL after an error. */
static const zip_part *find_pickle(unpickler *r) {
  mhk_context *ctx = r->scratch->ctx;
  const foreign_bytes *b = r->file;
  const zip_part *pickle = NULL;
  const char *why = NULL;
  char shown[64];
  for (size_t i = 0; i < r->n_entries; i++) {
    const zip_part *e = r->entries[i];
    if (e->name_length < 8 || memcmp(e->name + e->name_length - 8, "data.pkl", 8) != 0) continue;
    if (e->name_length > 8 && e->name[e->name_length - 9] != '/') continue;
    if (pickle) {
      mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "%s contains several pickles; it must be one state dict", r->path);
      return NULL;
    }
    pickle = e;
  }
  if (!pickle)
    why = " is a zip archive without data.pkl, so torch.save did not write it";
  else if (pickle->bytes > PICKLE_MOST) {
    mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "%s: its pickle has %lld bytes; the limit is %lld", r->path,
             (long long)pickle->bytes, (long long)PICKLE_MOST);
    return NULL;
  } else if (pickle->crc && pickle->crc != crc32(b->data + pickle->begin, pickle->bytes))
    why = ": the checksum of its pickle is wrong: the file is damaged";
  if (why) {
    mhk_fail(ctx, MHK_ERROR_FORMAT, "%s%s", r->path, why);
    return NULL;
  }
  r->prefix = pickle->name;
  r->prefix_length = pickle->name_length - 8;
  r->p = b->data + pickle->begin;
  r->n = pickle->bytes;
  for (size_t i = 0; i < r->n_entries; i++) {
    const zip_part *e = r->entries[i];
    if (e->name_length == r->prefix_length + 9 && memcmp(e->name, r->prefix, r->prefix_length) == 0 &&
        memcmp(e->name + r->prefix_length, "byteorder", 9) == 0 &&
        (e->bytes != 6 || memcmp(b->data + e->begin, "little", 6) != 0)) {
      mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "%s has byte order \"%s\"; only \"little\" is supported", r->path,
               foreign_printable(b->data + e->begin, e->bytes, shown));
      return NULL;
    }
  }
  return pickle;
}

/* The pairs of a state dict that are tensors, sorted by name, none twice; NULL after an error. */
static const pickled **dictionary_tensors(pool *scratch, const char *path, const pickled *root, size_t *n) {
  const pickled *inner = NULL, **order;
  size_t count = 0;
  char shown[64];
  for (const pickled *x = root->first; x; x = x->next) {
    if (x->value->type == PICKLED_DICTIONARY && x->value->first && x->key->type == PICKLED_TEXT && !inner) inner = x;
    count += x->value->type == PICKLED_TENSOR;
  }
  if (count == 0 && inner) {
    mhk_fail(scratch->ctx, MHK_ERROR_UNSUPPORTED,
             "%s contains a dictionary \"%s\" instead of named tensors: save only that dictionary", path,
             foreign_printable(inner->key->bytes, (size_t)inner->key->n, shown));
    return NULL;
  }
  order = (const pickled **)pool_take(scratch, count, sizeof *order);
  if (!order) return NULL;
  *n = 0;
  for (const pickled *x = root->first; x; x = x->next) {
    if (x->value->type != PICKLED_TENSOR) continue; /* for example a step counter */
    if (!pickled_name(x->key)) {
      mhk_fail(scratch->ctx, MHK_ERROR_FORMAT, "%s: tensor %lld has no usable name", path, (long long)*n);
      return NULL;
    }
    order[(*n)++] = x;
  }
  qsort(order, count, sizeof *order, pickled_key_order);
  for (size_t i = 1; i < count; i++)
    if (pickled_key_order(&order[i - 1], &order[i]) == 0) {
      mhk_fail(scratch->ctx, MHK_ERROR_FORMAT, "%s: tensor %s appears twice", path,
               foreign_printable(order[i]->key->bytes, (size_t)order[i]->key->n, shown));
      return NULL;
    }
  return order;
}

/* Adds the tensors of an archive; 0 after an error. */
static int read_archive(pytorch *p, int shard, const char *path, const foreign_bytes *b) {
  const pickled *root, **order = NULL;
  unpickler r;
  size_t n = 0, copied = 0;
  memset(&r, 0, sizeof r);
  r.scratch = &p->scratch;
  r.path = path;
  r.file = b;
  r.entries = zip_entries(&p->scratch, path, b, &r.n_entries);
  root = r.entries && find_pickle(&r) ? unpickle(&r) : NULL;
  if (root) order = dictionary_tensors(&p->scratch, path, root, &n);
  if (!order || !pytorch_room(p, n)) return 0;
  for (size_t i = 0; i < n; i++, p->n++) {
    const pickled *key = order[i]->key, *t = order[i]->value;
    mhk_stored *x = &p->tensors[p->n];
    char *name = (char *)pool_take(&p->kept, (size_t)key->n + 1, 1);
    if (name) memcpy(name, key->bytes, (size_t)key->n);
    memset(x, 0, sizeof *x);
    x->name = name;
    x->dtype = t->dtype;
    x->rank = t->rank;
    memcpy(x->shape, t->shape, sizeof t->shape);
    x->count = t->count;
    x->bytes = (size_t)t->count * mhk_dtype_bytes(t->dtype);
    x->data = t->bytes;
    if (t->gather) {
      if (x->bytes > b->size - copied)
        return mhk_fail(p->ctx, MHK_ERROR_UNSUPPORTED, "%s: its transposed tensors together are larger than the file",
                        path),
               0;
      copied += x->bytes;
      x->data = pickled_gather(&p->kept, t);
    }
    p->shard_of[p->n] = shard;
    if (!x->name || !x->data) return 0;
  }
  pool_free(&p->scratch);
  return 1;
}

/* All tensors as a file, which takes p over. */
static mhk_file *pytorch_file(pytorch *p, const char *name, int good) {
  if (good && !mhk_failed(p->ctx)) return mhk_file_of(p->ctx, name, (int)p->n, p->tensors, pytorch_close, p);
  pytorch_close(p);
  return NULL;
}

mhk_file *foreign_file_open_memory(mhk_context *ctx, const char *name, const void *data, size_t bytes) {
  const foreign_bytes b = {(const unsigned char *)data, bytes};
  pytorch *p = mhk_failed(ctx) ? NULL : pytorch_new(ctx, 0);
  return p ? pytorch_file(p, name, read_archive(p, 0, name, &b)) : NULL;
}

/* ---------------------------------------------------------------- shards */

typedef struct indexed {
  const char *tensor, *file;
  int shard;
} indexed;

static int by_file(const void *a, const void *b) {
  return strcmp(((const indexed *)a)->file, ((const indexed *)b)->file);
}
static int by_tensor(const void *a, const void *b) {
  return strcmp(((const indexed *)a)->tensor, ((const indexed *)b)->tensor);
}

/* The "weight_map" of an index, sorted by file, or NULL after an error. A shard is next to its
   index: a name that leads elsewhere is refused. */
static indexed *read_index(pool *kept, const char *path, const foreign_bytes *text, size_t *n) {
  foreign_json all = {(const char *)text->data, (const char *)text->data + text->size}, root, map, each, key, value;
  indexed *list;
  size_t count = 0;
  if (!foreign_json_value(&all, &root) || !foreign_json_find(root, "weight_map", &map) || *map.at != '{') {
    mhk_fail(kept->ctx, MHK_ERROR_FORMAT, "%s has no \"weight_map\" from tensors to files", path);
    return NULL;
  }
  for (each = map; foreign_json_member(&each, &key, &value);) count++;
  if (!each.at || count == 0) {
    mhk_fail(kept->ctx, MHK_ERROR_FORMAT, "%s: \"weight_map\" is empty or no JSON object", path);
    return NULL;
  }
  list = (indexed *)pool_take(kept, count, sizeof *list);
  *n = count;
  count = 0;
  for (each = map; list && foreign_json_member(&each, &key, &value); count++) {
    char *name = (char *)pool_take(kept, (size_t)(key.end - key.at), 1);
    char *file = (char *)pool_take(kept, (size_t)(value.end - value.at) + 1, 1);
    if (!name || !file) return NULL;
    if (foreign_json_text(key, name) < 0 || foreign_json_text(value, file) < 1 || file[0] == '.' ||
        strpbrk(file, "/\\:")) {
      mhk_fail(kept->ctx, MHK_ERROR_FORMAT,
               "%s: the file of tensor %.200s must be a plain file name in the folder of the index, not %.*s", path,
               name, (int)(value.end - value.at < 200 ? value.end - value.at : 200), value.at);
      return NULL;
    }
    list[count].tensor = name;
    list[count].file = file;
  }
  if (list) qsort(list, count, sizeof *list, by_file);
  return list;
}

/* index and shards must agree */
static int check_index(const pytorch *p, const char *path, indexed *list, size_t n) {
  qsort(list, n, sizeof *list, by_tensor);
  for (size_t i = 0; i < p->n; i++) {
    indexed wanted = {p->tensors[i].name, NULL, 0}, *found;
    found = (indexed *)bsearch(&wanted, list, n, sizeof *list, by_tensor);
    if (!found || found->shard != p->shard_of[i])
      return mhk_fail(p->ctx, MHK_ERROR_FORMAT, "%s does not name tensor %.200s, which its file has", path,
                      wanted.tensor),
             0;
    found->file = NULL; /* seen */
  }
  for (size_t i = 0; i < n; i++)
    if (list[i].file)
      return mhk_fail(p->ctx, MHK_ERROR_FORMAT, "%s says that tensor %.200s is in %.200s, which does not have it", path,
                      list[i].tensor, list[i].file),
             0;
  return 1;
}

/* Adds the tensors of a file, of either kind. */
static int add_shard(pytorch *p, int shard, const char *path) {
  foreign_bytes *b = &p->maps[shard];
  if (!foreign_map(p->ctx, path, b)) return 0;
  if (b->size >= 4 && memcmp(b->data, "PK\3\4", 4) == 0) return read_archive(p, shard, path, b);
  foreign_unmap(b);
  mhk_file *f = p->others[shard] = mhk_file_open(p->ctx, path);
  if (!f || !pytorch_room(p, (size_t)mhk_file_count(f))) return 0;
  for (int i = 0; i < mhk_file_count(f); i++) {
    p->tensors[p->n] = *mhk_file_at(f, i);
    p->shard_of[p->n++] = shard;
  }
  return 1;
}

/* Opens the shards that an index names. */
static mhk_file *open_index(mhk_context *ctx, const char *path) {
  char folder[1064], file[1264];
  pool kept = {ctx, NULL};
  foreign_bytes text;
  pytorch *p = NULL;
  size_t n = 0;
  int good = 0, shards = 0;
  indexed *list;
  if (!foreign_map(ctx, path, &text)) return NULL;
  list = read_index(&kept, path, &text, &n);
  foreign_unmap(&text);
  for (size_t i = 0; list && i < n; i++) {
    shards += i > 0 && strcmp(list[i - 1].file, list[i].file) != 0;
    list[i].shard = shards;
  }
  if (list && ++shards > 100000)
    mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "%s names %d files: too many", path, shards);
  else if (list)
    p = pytorch_new(ctx, shards);
  foreign_folder_of(folder, sizeof folder, path);
  good = p && p->maps && p->others;
  for (size_t i = 0; i < n && good; i++) {
    if (i > 0 && list[i].shard == list[i - 1].shard) continue;
    good = foreign_join(file, sizeof file, folder, list[i].file);
    if (!good) mhk_fail(ctx, MHK_ERROR_FILE, "%s: the path of %.200s is too long", path, list[i].file);
    good = good && add_shard(p, list[i].shard, file);
  }
  good = good && check_index(p, path, list, n);
  pool_free(&kept);
  return p ? pytorch_file(p, path, good) : NULL;
}

mhk_file *pytorch_open(mhk_context *ctx, const char *path, int is_index) {
  pytorch *p;
  if (is_index) return open_index(ctx, path);
  p = pytorch_new(ctx, 1);
  return p ? pytorch_file(p, path, p->maps && p->others && add_shard(p, 0, path)) : NULL;
}
