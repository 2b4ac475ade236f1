/* PyTorch's own files: what torch.save wrote, and archives and pickles that lie. */
#include "archive.h"
#include "models.h"
#define TEST_OWN_PYTORCH
#include "foreign.h"

/* its memory is counted, and its n-th allocation fails */
static size_t used_now, used_most;
static long blocks, fails_at;
static void *counted(void *old, size_t n, size_t size, int zeros) {
  size_t *block;
  if (fails_at > 0 && --fails_at == 0) return NULL;
  block = (size_t *)realloc(old ? (size_t *)old - 2 : NULL, n * size + 16);
  if (!block) return NULL;
  if (old) used_now -= block[0];
  else blocks++;
  if (zeros) memset(block + 2, 0, n * size);
  used_now += block[0] = n * size;
  if (used_now > used_most) used_most = used_now;
  return block + 2;
}
static void uncounted(void *p) {
  if (!p) return;
  used_now -= ((size_t *)p)[-2];
  blocks--;
  free((size_t *)p - 2);
}
#define calloc(n, size) counted(NULL, n, size, 1)
#define realloc(old, bytes) counted(old, bytes, 1, 0)
#define free uncounted
#include "../tools/pytorch.c"
#undef calloc
#undef realloc
#undef free

static mhk_context *ctx;

#define FIXTURE "tests/golden/pytorch_model.bin"

/* ---- what torch.save wrote */

static void values(const mhk_file *f, const char *name, mhk_dtype dtype, int rank, mhk_index first, mhk_index n,
                   const double *want) {
  const mhk_stored *x = mhk_file_find(f, name);
  mhk_real got[64];
  mhk_index i;
  REQUIRE(x && n <= 64, "%s is missing", name);
  REQUIRE(x->dtype == dtype && x->rank == rank && x->count == n && (rank == 0 || x->shape[0] == first),
          "%s: %s, %d axes, %lld elements", name, mhk_dtype_name(x->dtype), x->rank, (long long)x->count);
  CHECK(x->bytes == (size_t)n * mhk_dtype_bytes(dtype), "%s has %lld bytes", name, (long long)x->bytes);
  mhk_file_read(ctx, x, got);
  CHECK_OK(ctx);
  for (i = 0; i < n; i++)
    CHECK(got[i] == (mhk_real)want[i], "%s[%lld] is %.17g, should be %.17g", name, (long long)i, (double)got[i],
          want[i]);
}

/* what tests/golden/pytorch_model.bin holds, element by element */
static void fixture(const mhk_file *f) {
  static const double f32[] = {-2.5, -1.5, -0.5, 0.5, 1.5, 2.5}, turned[] = {-2.5, 0.5, -1.5, 1.5, -0.5, 2.5},
                      f64[] = {0.1, -1e300};
  static const double f16[] = {0.5, -1, 65504, 5.9604644775390625e-08}, i8[] = {-128, 127}, u8[] = {0, 255},
                      i16[] = {-32768, 32767};
  static const double i32[] = {-2147483648.0, 2147483647.0}, i64[] = {1099511627776.0, -1}, truth[] = {1, 0}, seven = 7,
                      scalar = 3.25;
  const mhk_stored *x, *y;
  mhk_real got[40], bf16[3];
  char name[256] = "a_long_name.";
  int i, j, k;
  REQUIRE(f, "%s", mhk_message(ctx));
  /* and a number, a list and None, which are none */
  CHECK(mhk_file_count(f) == 17, "%d tensors", mhk_file_count(f));
  values(f, "f32", MHK_F32, 2, 2, 6, f32);
  values(f, "turned", MHK_F32, 2, 3, 6, turned);
  values(f, "row", MHK_F32, 1, 3, 3, f32 + 3);
  values(f, "f16", MHK_F16, 2, 2, 4, f16);
  values(f, "i8", MHK_I8, 1, 2, 2, i8);
  values(f, "u8", MHK_U8, 1, 2, 2, u8);
  values(f, "i16", MHK_I16, 1, 2, 2, i16);
  values(f, "i32", MHK_I32, 1, 2, 2, i32);
  values(f, "i64", MHK_I64, 1, 2, 2, i64);
  values(f, "bool", MHK_BOOL, 1, 2, 2, truth);
  values(f, "parameter", MHK_F32, 1, 1, 1, &seven);
  values(f, "scalar", MHK_F32, 0, 0, 1, &scalar);
  values(f, "nothing", MHK_F32, 2, 0, 0, &seven);
  if (sizeof(mhk_real) == sizeof(double)) values(f, "f64", MHK_F64, 1, 2, 2, f64);
  x = mhk_file_find(f, "bf16");
  mhk_file_read(ctx, x, bf16);
  CHECK(bf16[0] == (mhk_real)1.5 && fabs((double)bf16[1] / -3e38 - 1) < 4e-3 && fabs((double)bf16[2] / 1e-40 - 1) < 0.1,
        "bf16 %g %g %g", (double)bf16[0], (double)bf16[1], (double)bf16[2]);
  memset(name + 12, 'x', 200);
  CHECK(mhk_file_find(f, name) != NULL, "a long name is missing");
  x = mhk_file_find(f, "wide"); /* (2,4,5) seen as (5,2,4) */
  REQUIRE(x && x->rank == 3 && x->shape[0] == 5 && x->shape[1] == 2 && x->shape[2] == 4, "wide");
  mhk_file_read(ctx, x, got);
  for (i = 0; i < 5; i++)
    for (j = 0; j < 2; j++)
      for (k = 0; k < 4; k++)
        CHECK(got[(i * 2 + j) * 4 + k] == (mhk_real)((j * 4 + k) * 5 + i), "wide (%d,%d,%d)", i, j, k);
  x = mhk_file_find(f, "f32");
  y = mhk_file_find(f, "row");
  CHECK((const char *)y->data == (const char *)x->data + 12, "a part of a tensor was copied");
  CHECK((uintptr_t)x->data % 16 == 0, "tensors are not aligned as they are in the file");
  CHECK(mhk_file_metadata(f, "format", NULL) == NULL, "metadata from nowhere");
}

TEST(what_torch_saved) {
  mhk_file *f = foreign_file_open(ctx, FIXTURE);
  fixture(f);
  mhk_file_close(f);
  CHECK_OK(ctx);
}

TEST(folders_and_shards) {
  size_t n = 0;
  char *bytes = test_read_file(FIXTURE, &n), text[2000], *end = text;
  mhk_file *f = foreign_file_open(ctx, FIXTURE);
  int i;
  REQUIRE(bytes && f, "%s", mhk_message(ctx));
  end += sprintf(end, "{\"weight_map\":{");
  for (i = 0; i < mhk_file_count(f); i++)
    end += sprintf(end, "%s\"%s\":\"pytorch_model-00001-of-00002.bin\"", i ? "," : "", mhk_file_at(f, i)->name);
  mhk_file_close(f);
  sprintf(end, ",\"other\":\"pytorch_model-00002-of-00002.bin\"}}");
  CHECK(test_write_file(test_path("pytorch_model-00001-of-00002.bin"), bytes, n), "cannot write");
  free(bytes);
  remove(test_path("pytorch_model.bin"));
  { /* shards of both kinds under one index */
    static const float one = 1;
    mhk_stored x;
    memset(&x, 0, sizeof x);
    x.name = "other";
    x.dtype = MHK_F32;
    x.count = 1;
    x.data = &one;
    mhk_file_write(ctx, test_path("pytorch_model-00002-of-00002.bin"), 1, &x, 0, NULL);
  }
  CHECK(test_write_file(test_path("pytorch_model.bin.index.json"), text, strlen(text)), "cannot write");
  f = foreign_file_open(ctx, test_path(""));
  CHECK(mhk_file_count(f) == 18 && mhk_file_find(f, "other") && mhk_file_find(f, "turned"), "%d tensors: %s",
        mhk_file_count(f), mhk_message(ctx));
  mhk_file_close(f);
  CHECK_OK(ctx);
}

/* ---- archives made here */

static mhk_file *opened;

/* opens the archive that was made from memory of exactly its size */
static mhk_file *reopen(void) {
  static unsigned char *exact;
  mhk_file_close(opened);
  free(exact);
  exact = (unsigned char *)malloc(made_n ? made_n : 1);
  memcpy(exact, made, made_n);
  opened = foreign_file_open_memory(ctx, "the file in memory", exact, made_n);
  return opened;
}

/* 1 to 6 */
static const unsigned char numbers[24] = {0, 0, 0x80, 0x3F, 0, 0, 0,    0x40, 0, 0, 0x40, 0x40,
                                          0, 0, 0x80, 0x40, 0, 0, 0xA0, 0x40, 0, 0, 0xC0, 0x40};

static mhk_file *opened_pickle(const char *pickle, size_t n) {
  part parts[4] = {
      {"x/data.pkl", NULL, 0}, {"x/byteorder", "little", 6}, {"x/data/0", numbers, 24}, {"x/version", "3\n", 2}};
  parts[0].data = pickle;
  parts[0].n = n;
  archive(4, parts, 0);
  return reopen();
}

#define START "\x80\x02}("
#define UTF8(length, text) "X" length "\0\0\0" text
#define STORAGE(type, key, count) "(" UTF8("\7", "storage") "ctorch\n" type "\n" UTF8("\1", key) UTF8("\3", \
  "cpu") count "tQ"
#define FLOATS STORAGE("FloatStorage", "0", "K\6")
#define HOOKS "ccollections\nOrderedDict\n)R"
#define REBUILD "ctorch._utils\n_rebuild_tensor_v2\n"
#define TENSOR_OF(storage, offset, shape, strides) REBUILD "(" storage offset shape strides "\x89" HOOKS "tR"
#define TENSOR TENSOR_OF(FLOATS, "K\0", "K\2K\3\x86", "K\3K\1\x86")
#define PICKLE(text) opened_pickle(text, sizeof text - 1)

static void refused(int line, const char *text, size_t n, mhk_result code, const char *message) {
  mhk_file *f = opened_pickle(text, n);
  CHECK(!f && mhk_error(ctx) == code && strstr(mhk_message(ctx), message),
        "line %d: result %d, \"%s\" does not contain \"%s\"", line, (int)mhk_error(ctx), mhk_message(ctx), message);
  mhk_clear_error(ctx);
}
#define REFUSED(text, code, message) refused(__LINE__, text, sizeof text - 1, code, message)
#define F MHK_ERROR_FORMAT
#define U MHK_ERROR_UNSUPPORTED

TEST(pickles_that_are_right) {
  static const double all[] = {1, 2, 3, 4, 5, 6}, column[] = {2, 5}, rest[] = {3, 4, 5};
  const mhk_file *f = PICKLE(START UTF8("\1", "a") TENSOR "u.");
  values(f, "a", MHK_F32, 2, 2, 6, all);
  f = PICKLE("\x80\x02}" UTF8("\1", "a") TENSOR "s.");
  values(f, "a", MHK_F32, 2, 2, 6, all);
  f = PICKLE("\x80\x02" HOOKS "(" UTF8("\1", "a") "ctorch._utils\n_rebuild_parameter\n" TENSOR "\x88" HOOKS
                                                  "\x87R"
                                                  "u}" UTF8("\1", "m") "Nsb.");
  values(f, "a", MHK_F32, 2, 2, 6, all);
  f = PICKLE(START UTF8("\1", "a") TENSOR_OF(FLOATS, "K\1", "K\2\x85", "K\3\x85") UTF8("\1", "b")
                 TENSOR_OF(FLOATS, "K\2", "K\3\x85", "K\1\x85") "u.");
  values(f, "a", MHK_F32, 1, 2, 2, column);
  values(f, "b", MHK_F32, 1, 3, 3, rest);
  /* an axis of one element may have any stride; kept and recalled values; whole numbers of every
     width; lists and floats that are no tensors */
  f = PICKLE(START UTF8("\1", "a") "q\0" TENSOR_OF(FLOATS "r\1\0\0\0", "\x8a\0", "M\1\0J\6\0\0\0\x86",
                                                   "\x8a\x02\0\1\x8a\1\1\x86") UTF8("\1", "b") REBUILD
             "(j\1\0\0\0K\0K\3\x85K\1\x85\x88" HOOKS
             "tR" UTF8("\1", "l") "](K\1h\0e" UTF8("\1", "m") "]K\1a" UTF8("\1", "f") "G?\xf0\0\0\0\0\0\0K\5Nu.");
  values(f, "a", MHK_F32, 2, 1, 6, all);
  values(f, "b", MHK_F32, 1, 3, 3, all);
  CHECK(mhk_file_count(f) == 2, "%d tensors", mhk_file_count(f));
  f = PICKLE("\x80\x02}.");
  CHECK(f && mhk_file_count(f) == 0, "an empty dictionary: %s", mhk_message(ctx));
  CHECK_OK(ctx);
}

TEST(pickles_that_are_wrong) {
  /* what would be run elsewhere */
  REFUSED(
      "\x80\x02"
      "cos\nsystem\n" UTF8("\2", "ls") "\x85R.",
      U, "byte 2 of its pickle: it names os.system, which a dictionary of tensors does not need: refused");
  REFUSED("\x80\x02" "c__builtin__\neval\n.", U, "__builtin__.eval");
  REFUSED("\x80\x02" "ctorch\nFloatStorage2\n.", U, "torch.FloatStorage2");
  REFUSED("\x80\x02" "ctorch.FloatStorage\n\n.", U, "torch.FloatStorage.");
  REFUSED("\x80\x02" "c\xff\x01\n\n.", U, "it names ...");
  REFUSED("\x80\x02" "cos\nsystem", F, "a name does not end");
  REFUSED("\x80\x02(S'os'\nios\nsystem\n.", U,
          "instruction 0x53, which a dictionary of tensors does not need: refused");
  REFUSED("\x80\x02(ios\nsystem\n.", U, "instruction 0x69");
  REFUSED("\x80\x02(cos\nsystem\no.", U, "os.system");
  REFUSED("\x80\x02}(o.", U, "instruction 0x6F");
  REFUSED("\x80\x02)\x81.", U, "0x81");
  REFUSED("\x80\x02" "Pid\n.", U, "0x50");
  REFUSED("\x80\x02" "\x82\1.", U, "0x82");
  REFUSED("\x80\x02" "\x93.", U, "0x93");
  REFUSED("\x80\x02" "\x80\x02}.", U, "0x80");
  REFUSED("\x80\x04\x95\0\0\0\0\0\0\0\0.", U, "byte 0 of its pickle: only protocol 2");
  REFUSED("", U, "only protocol 2");
  REFUSED("}.", U, "only protocol 2");
  /* a machine that is fed nonsense */
  REFUSED("\x80\x02", F, "byte 2 of its pickle: it ends without a STOP instruction");
  REFUSED("\x80\x02.", F, "0 values on its stack");
  REFUSED("\x80\x02}}.", F, "2 values");
  REFUSED("\x80\x02}.}", F, "1 bytes left");
  REFUSED("\x80\x02N.", F, "needs a dictionary of tensors and finds something else");
  REFUSED("\x80\x02(.", F, "needs a dictionary of tensors");
  REFUSED("\x80\x02t.", F, "needs a mark and there is none");
  REFUSED("\x80\x02u.", F, "needs a mark");
  REFUSED("\x80\x02" "e.", F, "needs a mark");
  REFUSED("\x80\x02(Nu.", F, "needs a dictionary and finds nothing");
  REFUSED("\x80\x02N(NNu.", F, "needs a dictionary and finds something else");
  REFUSED("\x80\x02}(Nu.", F, "a key without a value");
  REFUSED("\x80\x02}Ns.", F, "needs a dictionary and finds nothing");
  REFUSED("\x80\x02}(Ns.", F, "needs a key and finds something else");
  REFUSED("\x80\x02}Ne.", F, "needs a mark");
  REFUSED("\x80\x02}Na.", F, "needs a list");
  REFUSED("\x80\x02N\x86.", F, "needs 2 values and there are 1");
  REFUSED("\x80\x02NN(N\x87.", F, "needs 3 values and there are 1");
  REFUSED("\x80\x02R.", F, "needs a tuple of arguments and finds nothing");
  REFUSED("\x80\x02)R.", F, "needs a function and finds nothing");
  REFUSED("\x80\x02})R.", F, "it calls something that is not a function");
  REFUSED("\x80\x02" "ctorch\nFloatStorage\n)R.", F, "not a function");
  REFUSED("\x80\x02" "ccollections\nOrderedDict\n]\x85R.", U, "OrderedDict made from arguments");
  REFUSED("\x80\x02Q.", F, "needs a tuple");
  REFUSED("\x80\x02]Nb.", F, "a dictionary that gets attributes");
  REFUSED("\x80\x02h\0.", F, "memo 0 is empty");
  REFUSED("\x80\x02}q\1h\2.", F, "memo 2 is empty");
  REFUSED("\x80\x02}j\xff\xff\xff\xff.", F, "memo 4294967295 is empty");
  REFUSED("\x80\x02}r\xff\xff\xff\xff.", F, "a value is stored in memo 4294967295, far above");
  REFUSED("\x80\x02(q\0.", F, "needs a value to keep");
  REFUSED("\x80\x02X\xff\xff\xff\xff.", F, "needs 4294967295 bytes, but 1 are left");
  REFUSED("\x80\x02X\1\0.", F, "needs 4 bytes");
  REFUSED("\x80\x02K", F, "needs 1 bytes");
  REFUSED("\x80\x02G1234567", F, "needs 8 bytes, but 7");
  REFUSED("\x80\x02\x8a\x09" "123456789.", U, "a whole number of 9 bytes");
  REFUSED("\x80\x02\x8a\xff.", F, "needs 255 bytes");
}

TEST(tensors_that_are_wrong) {
  /* storages */
  REFUSED(START UTF8("\1", "a") TENSOR_OF(STORAGE("FloatStorage", "1", "K\6"), "K\0", "K\6\x85", "K\1\x85") "u.", F,
          "the storage x/data/1 is not in the archive");
  REFUSED(START UTF8("\1", "a") TENSOR_OF(STORAGE("FloatStorage", "0", "K\7"), "K\0", "K\6\x85", "K\1\x85") "u.", F,
          "7 elements of type F32, its entry has 24 bytes");
  REFUSED(START UTF8("\1", "a") TENSOR_OF(STORAGE("FloatStorage", "0", "K\5"), "K\0", "K\5\x85", "K\1\x85") "u.", F,
          "5 elements of type F32");
  REFUSED(START UTF8("\1", "a") TENSOR_OF(STORAGE("HalfStorage", "0", "K\6"), "K\0", "K\6\x85", "K\1\x85") "u.", F,
          "6 elements of type F16");
  REFUSED(START UTF8("\1", "a")
              TENSOR_OF(STORAGE("FloatStorage", "0", "J\xff\xff\xff\xff"), "K\0", "K\6\x85", "K\1\x85") "u.",
          F, "-1 elements");
  REFUSED(START UTF8("\1", "a") TENSOR_OF(STORAGE("FloatStorage", "0", "\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f"),
                                          "K\0", "K\6\x85", "K\1\x85") "u.",
          F, "9223372036854775807 elements");
  REFUSED(START UTF8("\1", "a")
              TENSOR_OF(STORAGE("FloatStorage", "0", "\x8a\x08\6\0\0\0\0\0\0\x40"), "K\0", "K\6\x85", "K\1\x85") "u.",
          F, "4611686018427387910 elements");
  REFUSED(START "(" UTF8("\7", "storagx") "ctorch\nFloatStorage\n" UTF8("\1", "0") UTF8("\3", "cpu") "K\6tQNu.", F,
          "does not describe a storage");
  REFUSED(START "(" UTF8("\7", "storage") "N" UTF8("\1", "0") UTF8("\3", "cpu") "K\6tQNu.", F,
          "does not describe a storage");
  REFUSED(START "(" UTF8("\7", "storage") "ctorch\nFloatStorage\nK\0" UTF8("\3", "cpu") "K\6tQNu.", F,
          "does not describe a storage");
  REFUSED(START "(" UTF8("\7", "storage") "ctorch\nFloatStorage\n" UTF8("\1", "0") UTF8("\3", "cpu") "tQNu.", F,
          "does not describe a storage");
  REFUSED(START ")QNu.", F, "does not describe a storage");
  /* tensors of a storage of 6 elements */
  REFUSED(START UTF8("\1", "a") TENSOR_OF(FLOATS, "K\1", "K\6\x85", "K\1\x85") "u.", F,
          "extends outside its storage of 6 elements");
  REFUSED(START UTF8("\1", "a") TENSOR_OF(FLOATS, "K\0", "K\6\x85", "K\2\x85") "u.", F, "extends outside");
  REFUSED(START UTF8("\1", "a") TENSOR_OF(FLOATS, "K\6", "K\1\x85", "K\1\x85") "u.", F, "extends outside");
  REFUSED(START UTF8("\1", "a") TENSOR_OF(FLOATS, "K\6", ")", ")") "u.", F, "extends outside");
  REFUSED(START UTF8("\1", "a") TENSOR_OF(FLOATS, "K\7", "K\0\x85", "K\1\x85") "u.", F, "starts outside");
  REFUSED(START UTF8("\1", "a") TENSOR_OF(FLOATS, "J\xff\xff\xff\xff", "K\1\x85", "K\1\x85") "u.", F, "starts outside");
  REFUSED(START UTF8("\1", "a") TENSOR_OF(FLOATS, "K\0", "J\xff\xff\xff\xff\x85", "K\1\x85") "u.", F,
          "invalid size or stride");
  REFUSED(START UTF8("\1", "a") TENSOR_OF(FLOATS, "K\0", "K\2\x85", "J\xff\xff\xff\xff\x85") "u.", F,
          "invalid size or stride");
  REFUSED(START UTF8("\1", "a")
              TENSOR_OF(FLOATS, "K\0", "K\2\x85", "\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x85") "u.",
          F, "");
  REFUSED(START UTF8("\1", "a")
              TENSOR_OF(FLOATS, "K\0", "\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x3fK\5\x86", "K\1K\1\x86") "u.",
          F, "");
  REFUSED(START UTF8("\1", "a") TENSOR_OF(
              FLOATS, "K\0", "K\0\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x3f\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x3f\x87",
              "K\1K\1K\1\x87") "u.",
          F, "invalid size");
  REFUSED(START UTF8("\1", "a") TENSOR_OF(FLOATS, "K\0", "M\0\x10M\0\x10\x86", "K\0K\0\x86") "u.", U,
          "more elements than its storage (6), so it repeats some");
  REFUSED(START UTF8("\1", "a") TENSOR_OF(FLOATS, "K\0", "K\7\x85", "K\0\x85") "u.", U, "repeats some");
  REFUSED(START UTF8("\1", "a") TENSOR_OF(FLOATS, "K\0", "(K\1K\1K\1K\1K\1K\1t", "(K\1K\1K\1K\1K\1K\1t") "u.", U,
          "6 axes");
  REFUSED(START UTF8("\1", "a") TENSOR_OF(FLOATS, "K\0", "K\6\x85", "K\6K\1\x86") "u.", F,
          "does not describe a tensor");
  REFUSED(START UTF8("\1", "a") TENSOR_OF(FLOATS, "K\0", "K\6", "K\1") "u.", F, "does not describe a tensor");
  REFUSED(START UTF8("\1", "a") TENSOR_OF("N", "K\0", "K\6\x85", "K\1\x85") "u.", F, "does not describe a tensor");
  REFUSED(START UTF8("\1", "a") TENSOR_OF(FLOATS, "N", "K\6\x85", "K\1\x85") "u.", F, "does not describe a tensor");
  REFUSED(START UTF8("\1", "a") TENSOR_OF(FLOATS, "K\0", "N\x85", "K\1\x85") "u.", F, "invalid size or stride");
  REFUSED(START UTF8("\1", "a") REBUILD ")Ru.", F, "does not describe a tensor");
  REFUSED(START UTF8("\1", "a") "ctorch._utils\n_rebuild_parameter\n)Ru.", F, "does not describe a parameter");
  REFUSED(START UTF8("\1", "a") "ctorch._utils\n_rebuild_parameter\n(NNNtRu.", F, "does not describe a parameter");
  /* names */
  REFUSED(START UTF8("\1", "a") TENSOR UTF8("\1", "a") TENSOR "u.", F, "tensor a appears twice");
  REFUSED(START UTF8("\0", "") TENSOR "u.", F, "tensor 0 has no usable name");
  REFUSED(START UTF8("\1", "\xff") TENSOR "u.", F, "no usable name");
  REFUSED(START UTF8("\1", "\0") TENSOR "u.", F, "no usable name");
  REFUSED(START "K\1" TENSOR "u.", F, "no usable name");
  REFUSED(START UTF8("\5", "model") "}" UTF8("\1", "a") TENSOR "su.", U,
          "contains a dictionary \"model\" instead of named tensors: save only that dictionary");
}

/* many kept values used many times over: neither memory nor time may grow with what they would
   unfold to */
TEST(bombs) {
  static char text[60000];
  size_t n = 0, i;
  test_memory memory;
  mhk_context *kept = ctx;
  mhk_file_close(opened);
  opened = NULL;
  ctx = test_context(&memory, 0, 0);
  used_most = 0;
  memcpy(text, "\x80\x02}N\x85q\0", 7), n = 7; /* tuples of tuples: 2^120 leaves */
  for (i = 1; i <= 120; i++, n += 7)
    text[n] = 'h', text[n + 1] = (char)(i - 1), text[n + 2] = 'h', text[n + 3] = (char)(i - 1), text[n + 4] = '\x86',
    text[n + 5] = 'q', text[n + 6] = (char)i;
  CHECK(!opened_pickle(text, n) && mhk_error(ctx) == F, "opened");
  mhk_clear_error(ctx);
  memcpy(text, "\x80\x02}", 3), n = 3;
  memset(text + n, '(', 50000), n += 50000; /* marks upon marks */
  text[n++] = '.';
  CHECK(!opened_pickle(text, n) && mhk_error(ctx) == F, "opened");
  mhk_clear_error(ctx);
  /* one long name for thousands of tensors */
  memcpy(text, "\x80\x02}X\xa0\x0f\0\0", 8), n = 8;
  memset(text + n, 'x', 4000), n += 4000;
  memcpy(text + n, "q\0", 2), n += 2;
  memcpy(text + n, TENSOR "q\1s(", sizeof TENSOR + 3), n += sizeof TENSOR + 3;
  for (i = 0; i < 10000; i++) memcpy(text + n, "h\0h\1", 4), n += 4;
  memcpy(text + n, "u.", 2), n += 2;
  CHECK(!opened_pickle(text, n) && strstr(mhk_message(ctx), "appears twice"), "%s", mhk_message(ctx));
  mhk_clear_error(ctx);
  /* the same elements turned again and again: copies larger than the file are refused */
  memcpy(text, START, 4), n = 4;
  memcpy(text + n, UTF8("\1", "a") TENSOR_OF(FLOATS, "K\0", "K\3K\2\x86", "K\1K\3\x86") "q\1",
         sizeof(UTF8("\1", "a") TENSOR_OF(FLOATS, "K\0", "K\3K\2\x86", "K\1K\3\x86") "q\1") - 1);
  n += sizeof(UTF8("\1", "a") TENSOR_OF(FLOATS, "K\0", "K\3K\2\x86", "K\1K\3\x86") "q\1") - 1;
  for (i = 0; i < 2000; i++)
    n += (size_t)sprintf(text + n, "X%c", 4), memcpy(text + n, "\0\0\0", 3), n += 3,
        n += (size_t)sprintf(text + n, "%04dh\1", (int)i);
  memcpy(text + n, "u.", 2), n += 2;
  CHECK(!opened_pickle(text, n) && strstr(mhk_message(ctx), "transposed tensors together are larger than the file"),
        "%s", mhk_message(ctx));
  CHECK(used_most + mhk_memory_peak(ctx) < 20000000, "%.1f MB were used",
        (double)(used_most + mhk_memory_peak(ctx)) * 1e-6);
  CHECK(used_now == 0 && blocks == 0, "%ld blocks are left", blocks);
  mhk_destroy(ctx);
  opened = NULL;
  CHECK(memory.bytes == 0, "%lld bytes are left", (long long)memory.bytes);
  ctx = kept;
}

/* ---- the archive itself */

static void archive_refused(int line, mhk_result code, const char *message) {
  mhk_file *f = reopen();
  CHECK(!f && mhk_error(ctx) == code && strstr(mhk_message(ctx), message),
        "line %d: result %d, \"%s\" does not contain \"%s\"", line, (int)mhk_error(ctx), mhk_message(ctx), message);
  mhk_clear_error(ctx);
}
#define ARCHIVE_REFUSED(code, message) archive_refused(__LINE__, code, message)

static unsigned char *entry_of(int i) { /* in the directory */
  unsigned char *p = made + directory;
  while (i-- > 0) p += 46 + p[28] + p[30] + p[32];
  return p;
}

TEST(archives_that_are_right) {
  static const double all[] = {1, 2, 3, 4, 5, 6};
  static const char pickle[] = START UTF8("\1", "a") TENSOR "u.";
  const part flat[2] = {{"data.pkl", pickle, sizeof pickle - 1}, {"data/0", numbers, 24}};
  const part deep[2] = {{"a/b/data.pkl", pickle, sizeof pickle - 1}, {"a/b/data/0", numbers, 24}};
  archive(2, flat, 0);
  values(reopen(), "a", MHK_F32, 2, 2, 6, all);
  archive(2, deep, 1);
  values(reopen(), "a", MHK_F32, 2, 2, 6, all);
  archive(2, flat, 0); /* a comment behind the directory */
  made[made_n - 2] = 3;
  put("abc", 3);
  values(reopen(), "a", MHK_F32, 2, 2, 6, all);
  archive(2, flat, 0); /* checksums that were not computed (torch.serialization.set_crc32_options) */
  memset(entry_of(0) + 16, 0, 4);
  values(reopen(), "a", MHK_F32, 2, 2, 6, all);
}

static const char small_pickle[] = START UTF8("\1", "a") TENSOR "u.";
static const part parts[3] = {
    {"x/data.pkl", small_pickle, sizeof small_pickle - 1}, {"x/data/0", numbers, 24}, {"x/byteorder", "little", 6}};

TEST(archives_with_wrong_parts) {
  const part big[3] = {parts[0], parts[1], {"x/byteorder", "big", 3}}, twice[3] = {parts[0], parts[1], parts[1]};
  const part two[3] = {parts[0], parts[1], {"y/data.pkl", small_pickle, sizeof small_pickle - 1}};
  archive(3, big, 0);
  ARCHIVE_REFUSED(U, "has byte order \"big\"; only \"little\" is supported");
  archive(3, twice, 0);
  ARCHIVE_REFUSED(F, "its entry x/data/0 appears twice");
  archive(3, two, 0);
  ARCHIVE_REFUSED(U, "several pickles");
  archive(2, parts + 1, 0);
  ARCHIVE_REFUSED(F, "a zip archive without data.pkl");
  archive(3, parts, 0), made[made_n - 10 - 4]--, made_n--; /* cut */
  ARCHIVE_REFUSED(F, "it is truncated");
  archive(3, parts, 0), made_n = 40;
  ARCHIVE_REFUSED(F, "it is truncated");
  archive(3, parts, 0), made_n = 4;
  ARCHIVE_REFUSED(F, "it is truncated");
  archive(3, parts, 0), made_n = 3;
  ARCHIVE_REFUSED(F, "it is truncated");
  archive(3, parts, 0), entry_of(0)[16] ^= 1;
  ARCHIVE_REFUSED(F, "the checksum of its pickle is wrong");
  archive(3, parts, 0), made[60] ^= 1;
  ARCHIVE_REFUSED(F, "the checksum of its pickle is wrong");
  archive(3, parts, 0), entry_of(1)[8] |= 1;
  ARCHIVE_REFUSED(U, "x/data/0 is encrypted");
  archive(3, parts, 0), entry_of(1)[10] = 8;
  ARCHIVE_REFUSED(U, "x/data/0 is compressed (zip method 8)");
  archive(3, parts, 0), made[8] = 8; /* only the local header says so */
  ARCHIVE_REFUSED(F, "places x/data.pkl at byte 0, but it is not there");
  archive(3, parts, 0), made[30] = 'y';
  ARCHIVE_REFUSED(F, "x/data.pkl has another name in the zip directory");
}

TEST(archives_with_wrong_directories) {
  unsigned char *end;
  int wide;
  archive(3, parts, 0), entry_of(1)[20]++;
  ARCHIVE_REFUSED(F, "its entry x/data/0 claims 24 bytes");
  archive(3, parts, 0), entry_of(1)[20] = entry_of(1)[24] = 255, entry_of(1)[21] = entry_of(1)[25] = 255;
  ARCHIVE_REFUSED(F, "its entry x/data/0 claims 65535 bytes");
  archive(3, parts, 0), entry_of(0)[20] += 40, entry_of(0)[24] += 40;
  ARCHIVE_REFUSED(F, "its entry x/data/0 overlaps the one before it");
  archive(3, parts, 0), entry_of(1)[42] += 1;
  ARCHIVE_REFUSED(F, "places x/data/0 at byte");
  archive(3, parts, 0), memset(entry_of(1) + 42, 255, 4);
  ARCHIVE_REFUSED(F, "places x/data/0 at byte 4294967295");
  archive(3, parts, 0), entry_of(1)[0] = 0;
  ARCHIVE_REFUSED(F, "directory is damaged");
  archive(3, parts, 0), memset(entry_of(2) + 28, 255, 2);
  ARCHIVE_REFUSED(F, "directory is damaged");
  archive(3, parts, 0), memset(entry_of(2) + 30, 255, 2);
  ARCHIVE_REFUSED(F, "directory is damaged");
  archive(3, parts, 0), made[made_n - 12] = 2; /* an entry that is not counted */
  ARCHIVE_REFUSED(F, "directory is damaged");
  archive(3, parts, 0), made[made_n - 12] = 4;
  ARCHIVE_REFUSED(F, "cannot be the");
  archive(3, parts, 0), made[made_n - 11] = 99; /* thousands of them */
  ARCHIVE_REFUSED(F, "cannot be the");
  archive(3, parts, 0), memset(made + made_n - 10, 255, 4);
  ARCHIVE_REFUSED(F, "cannot be the 4294967295 bytes");
  archive(3, parts, 0), memset(made + made_n - 6, 255, 4);
  ARCHIVE_REFUSED(F, "bytes from byte 4294967295");
  archive(3, parts, 0), made[made_n - 6]++;
  ARCHIVE_REFUSED(F, "cannot be the");
  archive(3, parts, 1), memset(made + made_n - 22 - 12, 255, 8); /* where the wide end is */
  ARCHIVE_REFUSED(F, "the end of its zip directory is damaged");
  archive(3, parts, 1), made[made_n - 22 - 12]++;
  ARCHIVE_REFUSED(F, "the end of its zip directory is damaged");
  archive(3, parts, 1), memset(made + made_n - 22 - 20 - 8, 255, 8); /* the directory's place */
  ARCHIVE_REFUSED(F, "bytes from byte 18446744073709551615");
  archive(3, parts, 1), memset(made + made_n - 22 - 20 - 24, 255, 8); /* entries */
  ARCHIVE_REFUSED(F, "its zip directory of 18446744073709551615 entries");
  for (wide = 0; wide < 3; wide++) { /* zip64 fields: size, packed size, place */
    archive(3, parts, 1);
    end = entry_of(1);
    memset(end + 46 + end[28] + 5 + 4 + 8 * wide, 255, 8);
    ARCHIVE_REFUSED(F, wide == 2 ? "at byte 18446744073709551615, but it is not there" : "its entry x/data/0 claims");
  }
  archive(3, parts, 1), entry_of(1)[46 + 8 + 5 + 2] = 8; /* a field too short for three sizes leaves 0xFFFFFFFF */
  ARCHIVE_REFUSED(F, "x/data/0");
}

/* every cut and many changed bytes: an error or tensors within the file, never a read outside */
TEST(cut_and_changed) {
  size_t n = 0, i;
  unsigned char *bytes = (unsigned char *)test_read_file(FIXTURE, &n);
  uint64_t random = 3;
  int k, good = 0;
  mhk_real *room = (mhk_real *)malloc(sizeof *room * 4096);
  REQUIRE(bytes && n < sizeof made, "no fixture");
  memcpy(made, bytes, n);
  for (made_n = n - 1; made_n > 0; made_n -= made_n > 64 ? 61 : 1) {
    CHECK(!reopen() && (mhk_error(ctx) == F || mhk_error(ctx) == U), "cut to %d bytes: %s", (int)made_n,
          mhk_message(ctx));
    mhk_clear_error(ctx);
  }
  for (k = 0; k < 4000; k++) {
    const int changes = 1 + (int)(test_random(&random) % 3);
    mhk_file *f;
    memcpy(made, bytes, n);
    made_n = n;
    for (i = 0; i < (size_t)changes; i++) {
      /* mostly in the pickle and the directory, where the meaning is */
      const size_t at = (size_t)(test_random(&random) % (i % 2 ? n : 2400));
      made[k % 2 ? n - 1 - at : at] = (unsigned char)test_random(&random);
    }
    if (k % 2 == 0) { /* with its checksum unknown the pickle is read however it looks */
      size_t e;
      for (e = n - 46; e > 0; e--)
        if (memcmp(bytes + e, "PK\1\2", 4) == 0 && e + 60 < n &&
            memcmp(bytes + e + 46, "pytorch_model/data.pkl", 22) == 0)
          memset(made + e + 16, 0, 4);
    }
    f = reopen();
    if (f) {
      int t;
      good++;
      for (t = 0; t < mhk_file_count(f); t++) {
        const mhk_stored *x = mhk_file_at(f, t);
        if (x->count <= 4096) mhk_file_read(ctx, x, room);
      }
      CHECK_OK(ctx);
    } else
      CHECK(mhk_error(ctx) == F || mhk_error(ctx) == U, "change %d: %s", k, mhk_message(ctx));
    mhk_clear_error(ctx);
  }
  CHECK(good > 100 && good < 3900, "%d of 4000 changed files were opened", good);
  free(room);
  free(bytes);
}

/* the n-th allocation of the context or of the reader fails, for every n: an error, no leak */
static void allocations_fail(int in_reader) {
  long n;
  int done = 0;
  size_t length = 0;
  char *bytes = test_read_file(FIXTURE, &length);
  for (n = 1; n < 500 && !done; n++) {
    test_memory memory;
    mhk_context *c = test_context(&memory, in_reader ? 0 : n, 0);
    if (c) {
      fails_at = in_reader ? n : 0;
      mhk_file *f = foreign_file_open_memory(c, "the file in memory", bytes, length);
      fails_at = 0;
      done = mhk_file_count(f) == 17;
      CHECK(done || mhk_error(c) == MHK_ERROR_MEMORY, "call %ld: %s", n, mhk_message(c));
      mhk_file_close(f);
      mhk_destroy(c);
    }
    CHECK(memory.bytes == 0 && memory.blocks == 0 && !memory.wrong_size && blocks == 0, "call %ld leaks %ld bytes", n,
          (long)memory.bytes);
  }
  CHECK(done && n > 3, "%ld calls", n);
  free(bytes);
}
TEST(allocations_that_fail) {
  mhk_file_close(opened);
  opened = NULL;
  allocations_fail(0);
  allocations_fail(1);
}

/* ---- whole models */

static char warned[400];
static void listen(void *user, mhk_log_level level, const char *text) {
  (void)user;
  if (level == MHK_LOG_WARNING) snprintf(warned, sizeof warned, "%s", text);
}

static char *whole(char *p, unsigned long number) {
  int i;
  *p++ = 'J';
  for (i = 0; i < 4; i++, number >>= 8) *p++ = (char)(number & 255);
  return p;
}

/* all tensors of a model's file in one storage, as a state dict */
static void archive_model(const mhk_file *f, const char *path) {
  static char pickle[1 << 16];
  static unsigned char values[1 << 18];
  part parts[2] = {{"m/data.pkl", pickle, 0}, {"m/data/0", values, 0}};
  char *p = pickle, storage[160];
  size_t n = 0, length;
  int i, k;
  for (i = 0; i < mhk_file_count(f); i++) {
    const mhk_stored *x = mhk_file_at(f, i);
    REQUIRE(x->dtype == MHK_F32 && 4 * n + x->bytes <= sizeof values, "tensor %d does not fit", i);
    memcpy(values + 4 * n, x->data, x->bytes);
    n += (size_t)x->count;
  }
#define TAKE(text) (memcpy(p, text, sizeof text - 1), p += sizeof text - 1)
#define WHOLE(number) (p = whole(p, (unsigned long)(number)))
  TAKE("\x80\x02}(");
  parts[1].n = 4 * n;
  length = sizeof(UTF8("\7", "storage")) - 1;
  memcpy(storage, UTF8("\7", "storage"), length);
  for (i = 0, n = 0; i < mhk_file_count(f); i++) {
    const mhk_stored *x = mhk_file_at(f, i);
    const char name_length = (char)strlen(x->name);
    mhk_index stride = x->count;
    TAKE("X"), *p++ = name_length, TAKE("\0\0\0");
    memcpy(p, x->name, strlen(x->name)), p += strlen(x->name);
    TAKE(REBUILD "((");
    memcpy(p, storage, length), p += length;
    TAKE("ctorch\nFloatStorage\n" UTF8("\1", "0") UTF8("\3", "cpu"));
    WHOLE(parts[1].n / 4), TAKE("tQ");
    WHOLE(n), TAKE("(");
    for (k = 0; k < x->rank; k++) WHOLE(x->shape[k]);
    TAKE("t(");
    for (k = 0; k < x->rank; k++) {
      stride /= x->shape[k];
      WHOLE(stride);
    }
    TAKE("t\x89" HOOKS "tR");
    n += (size_t)x->count;
  }
  TAKE("u.");
  parts[0].n = (size_t)(p - pickle);
  archive(2, parts, 0);
  CHECK(test_write_file(path, made, made_n), "cannot write %s", path);
}

/* bytes as the 256 tokens that a vocabulary must have, and one more; the model's vocabulary is
   larger */
static void write_vocabulary(const char *vocabulary, const char *merges) {
  char text[8000], *p = text;
  int b, next = 256;
  p += sprintf(p, "{");
  for (b = 0; b < 256; b++) {
    const int c = (b > 32 && b < 127) || (b > 160 && b != 173) ? b : next++;
    p += sprintf(p, "\"\\u%04x\": %d, ", c, b);
  }
  sprintf(p, "\"ab\": 256, \"<|endoftext|>\": 257}");
  CHECK(test_write_file(vocabulary, text, strlen(text)), "cannot write");
  CHECK(test_write_file(merges, "#version: 0.2\na b\n", 18), "cannot write");
}

TEST(a_model_of_pytorch_with_an_old_vocabulary_loads_as_its_safetensors_do) {
  mhk_config config = model_config(PHI_MAMBA);
  mhk_context_desc d;
  mhk_load_desc strict;
  mhk_context *c;
  mhk_model *m, *again;
  mhk_file *f;
  int32_t ids[4];
  int i;
  memset(&d, 0, sizeof d);
  memset(&strict, 0, sizeof strict);
  d.log = listen;
  strict.strict = 1;
  warned[0] = 0;
  c = mhk_create(&d);
  config.vocab_size = 258;
  m = mhk_model_create(c, &config, 1);
  mhk_save(m, test_path("old"), MHK_F32);
  f = mhk_file_open(c, test_path("old"));
  REQUIRE(f, "%s", mhk_message(c));
  archive_model(f, test_path("old/pytorch_model.bin"));
  mhk_file_close(f);
  remove(test_path("old/model.safetensors"));
  write_vocabulary(test_path("old/vocab.json"), test_path("old/merges.txt"));
  again = foreign_load(c, test_path("old"), &strict);
  REQUIRE(again, "%s", mhk_message(c));
  CHECK(!warned[0], "%s", warned);
  for (i = 0; i < mhk_model_count(m); i++) {
    const mhk_tensor *x = mhk_model_at(m, i), *y = mhk_model_at(again, i);
    CHECK(x->count == y->count && !memcmp(x->data, y->data, (size_t)x->count * sizeof(float)), "tensor %d differs", i);
  }
  CHECK(mhk_encode(mhk_model_tokenizer(again), "xab<|endoftext|>", 16, ids, 4) == 3 && ids[0] == 'x' && ids[1] == 256 &&
            ids[2] == 257 && mhk_tokenizer_end(mhk_model_tokenizer(again)) == 257,
        "other ids");
  mhk_model_destroy(again);
  again = foreign_load(c, test_path("old/pytorch_model.bin"), &strict);
  CHECK(again && mhk_model_tokenizer(again), "the file beside its config.json: %s", mhk_message(c));
  /* saved it is a model that the library reads, and still the vocabulary's */
  mhk_save(again, test_path("new.safetensors"), MHK_F32);
  mhk_model_destroy(again);
  again = mhk_load_with(c, test_path("new.safetensors"), &strict);
  CHECK(again && mhk_tokenizer_size(mhk_model_tokenizer(again)) == 258, "%s", mhk_message(c));
  mhk_model_destroy(again);
  /* a vocabulary that cannot be read leaves the model without one, and the sentence names it */
  remove(test_path("old/merges.txt"));
  again = foreign_load(c, test_path("old"), NULL);
  CHECK(again && !mhk_model_tokenizer(again) && strstr(warned, "old/vocab.json without merges.txt"), "%s", warned);
  CHECK(!foreign_load(c, test_path("old"), &strict), "strict");
  CHECK_FAILS(c, MHK_ERROR_UNSUPPORTED, "without merges.txt");
  remove(test_path("old/vocab.json"));
  mhk_destroy(c);
  CHECK(used_now == 0 && blocks == 0, "%ld blocks are left", blocks);
}

/* the library alone says which command reads such files */
TEST(library_names_the_command) {
  size_t n = 0;
  char *bytes = test_read_file(FIXTURE, &n);
  CHECK(!mhk_file_open(ctx, FIXTURE), "opened");
  CHECK_FAILS(ctx, MHK_ERROR_UNSUPPORTED,
              FIXTURE " is an archive of PyTorch, which the library does not read: `mohawk");
  CHECK(!mhk_file_open_memory(ctx, bytes, n), "opened");
  CHECK_FAILS(ctx, MHK_ERROR_UNSUPPORTED, "`mohawk convert --model");
  test_make_folder(test_path("alone"));
  CHECK(test_write_file(test_path("alone/pytorch_model.bin"), bytes, n), "cannot write");
  CHECK(!mhk_file_open(ctx, test_path("alone")), "opened");
  CHECK_FAILS(ctx, MHK_ERROR_UNSUPPORTED, "alone/pytorch_model.bin is");
  CHECK(!mhk_load(ctx, test_path("alone")), "loaded");
  CHECK_FAILS(ctx, MHK_ERROR_UNSUPPORTED, "`mohawk convert --model");
  free(bytes);
}

int main(int argc, char **argv) {
  int result;
  test_begin(argc, argv);
  ctx = mhk_create(NULL);
  RUN(what_torch_saved);
  RUN(folders_and_shards);
  RUN(pickles_that_are_right);
  RUN(pickles_that_are_wrong);
  RUN(tensors_that_are_wrong);
  RUN(bombs);
  RUN(archives_that_are_right);
  RUN(archives_with_wrong_parts);
  RUN(archives_with_wrong_directories);
  RUN(cut_and_changed);
  RUN(allocations_that_fail);
  RUN(a_model_of_pytorch_with_an_old_vocabulary_loads_as_its_safetensors_do);
  RUN(library_names_the_command);
  mhk_file_close(opened);
  result = test_end();
  mhk_destroy(ctx);
  return result;
}
