/* Files that lie: JSON, numbers and safetensors, in and out. JSON is tested through the
   configuration reader, which uses it. */
#include "test.h"

static mhk_context *ctx;

/* ---- JSON and numbers */

static mhk_result parse(const char *text, size_t length) {
  mhk_config c;
  char *exact = (char *)malloc(length ? length : 1); /* so that the address sanitizer sees a read past the end */
  mhk_result r;
  memcpy(exact, text, length);
  r = mhk_config_parse(ctx, exact, length, "the text", &c);
  free(exact);
  return r;
}

static void json_bad(const char *text, const char *message) {
  mhk_result r = parse(text, strlen(text));
  CHECK(r == MHK_ERROR_FORMAT && strstr(mhk_message(ctx), message), "%s: result %d, \"%s\" does not contain \"%s\"",
        text, (int)r, mhk_message(ctx), message);
  mhk_clear_error(ctx);
}

static void json_good(const char *text) {
  mhk_result r = parse(text, strlen(text)); /* a configuration it is not, but JSON */
  CHECK(r != MHK_ERROR_FORMAT && r != MHK_OK, "%s: result %d: %s", text, (int)r, mhk_message(ctx));
  mhk_clear_error(ctx);
}

TEST(json_that_is_wrong) {
  json_bad("", "line 1, byte 0: expected a value, found the end of the text");
  json_bad("   ", "expected a value");
  json_bad("{", "byte 1: expected a key in quotes or '}', found the end");
  json_bad("{\n\n\"a\" 1}", "line 3, byte 7: expected ':' after a key, found '1'");
  json_bad("{\"a\":1,}", "expected a key in quotes, found '}'");
  json_bad("{\"a\":1 \"b\":2}", "expected ',' or '}'");
  json_bad("{\"a\":}", "expected a value, found '}'");
  json_bad("{a:1}", "expected a key in quotes");
  json_bad("{'a':1}", "expected a key in quotes");
  json_bad("[1,]", "expected a value, found ']'");
  json_bad("[1 2]", "expected ',' or ']'");
  json_bad("[1", "expected ',' or ']', found the end");
  json_bad("[,1]", "expected a value");
  json_bad("[1}", "expected ',' or ']', found '}'");
  json_bad("{\"a\":1]", "expected ',' or '}', found ']'");
  json_bad("{} x", "expected nothing more after the value, found 'x'");
  json_bad("{}{}", "expected nothing more");
  json_bad("nul", "expected the word null");
  json_bad("[truE]", "expected the word true, found 'E'");
  json_bad("[NaN]", "expected a value, found 'N'");
  json_bad("[+1]", "expected a value");
  json_bad("[.5]", "expected a value");
  json_bad("[01]", "no digit after a leading zero");
  json_bad("[-]", "expected a digit");
  json_bad("[1.]", "a digit after the decimal point");
  json_bad("[1.e3]", "a digit after the decimal point");
  json_bad("[1e]", "a digit of the exponent");
  json_bad("[1e+]", "a digit of the exponent");
  json_bad("[0x10]", "expected ',' or ']', found 'x'");
  json_bad("[1_000]", "expected ',' or ']'");
  json_bad("[\"abc]", "expected the closing quote");
  json_bad("[\"a\nb\"]", "no control character inside a string");
  json_bad("[\"\\x\"]", "after a backslash, found 'x'");
  json_bad("[\"\\u12G4\"]", "four hexadecimal digits");
  json_bad("[\"\\u12", "four hexadecimal digits");
  json_bad("[\"\\ud800\"]", "the low surrogate of a pair");
  json_bad("[\"\\ud800\\u0041\"]", "the low surrogate of a pair");
  json_bad("[\"\\udc00\"]", "no low surrogate without a high surrogate");
  json_bad("[\"\xff\"]", "expected valid UTF-8, found the byte 0xFF");
  json_bad("[\"\xc0\x80\"]", "expected valid UTF-8");     /* overlong */
  json_bad("[\"\xe0\x80\x80\"]", "expected valid UTF-8"); /* overlong */
  json_bad("[\"\xed\xa0\x80\"]", "expected valid UTF-8"); /* a surrogate */
  json_bad("[\"\xf4\x90\x80\x80\"]", "expected valid UTF-8");
  json_bad("[\"\xe2\x82", "expected valid UTF-8");
  json_bad("\xef\xbb\xbf{}", "expected a value, found the byte 0xEF");
  json_bad("{\"a\":1,\"b\":2,\"a\":3}", "the key \"a\" appears twice");
  json_bad("{\"a\":1,\"\\u0061\":3}", "the key \"a\" appears twice");
  json_bad("// no\n{}", "expected a value, found '/'");
}

TEST(json_that_is_right) {
  json_good("{}");
  json_good(" \t\r\n[ ] ");
  json_good("null");
  json_good("-0.5e-3");
  json_good("12");
  json_good("\"\"");
  json_good("[[],{},[{}],\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0000\\u20ac\\ud83d\\ude00\",1E5,-0,0.0,1e-05,true,false,null]");
  json_good("{\"\":1,\"a\":{\"a\":{\"a\":[]}}}");
  json_good("[\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\xef\xbf\xbd\"]");
  json_good("[1000000000000000019884624838656, 123456789012345678901234567890.5e-400]");
}

TEST(json_depth_and_size) {
  char text[512], *big;
  int depth, i;
  size_t n = 0, room = 4000000;
  for (depth = 99; depth <= 102; depth++) {
    memset(text, '[', (size_t)depth);
    memset(text + depth, ']', (size_t)depth);
    text[2 * depth] = 0;
    if (depth <= 100)
      json_good(text);
    else
      json_bad(text, "no more than 100 nested brackets");
  }
  memset(text, '[', sizeof text - 1);
  text[sizeof text - 1] = 0;
  json_bad(text, "no more than 100 nested brackets");
  /* a vocabulary of 100000 entries, with and without a repeated key; quadratic time would show */
  big = (char *)malloc(room);
  big[n++] = '{';
  for (i = 0; i < 100000; i++) n += (size_t)snprintf(big + n, room - n, "%s\"token %d\":%d", i ? "," : "", i, i);
  strcpy(big + n, "}");
  json_good(big);
  strcpy(big + n, ",\"token 77777\":0}");
  json_bad(big, "the key \"token 77777\" appears twice");
  free(big);
}

/* every start of a text, and random changes of it: any answer but a crash */
TEST(json_cut_and_changed) {
  const char *text =
      "{\"model_type\":\"phi\",\"hidden_size\":48,\"num_attention_heads\":4,\"num_hidden_layers\":2,\"vocab_size\":61,"
      "\"intermediate_size\":192,"
      "\"rope_theta\":1e4,\"x\":[1,2,{\"y\":\"\\u20ac\xe2\x82\xac\"}],\"z\":null,\"hidden_act\":\"gelu_new\"}";
  const size_t n = strlen(text);
  uint64_t random = 1;
  size_t i;
  for (i = 0; i < n; i++) {
    CHECK(parse(text, i) == MHK_ERROR_FORMAT, "the first %d bytes were accepted", (int)i);
    mhk_clear_error(ctx);
  }
  CHECK(parse(text, n) == MHK_OK, "%s", mhk_message(ctx));
  for (i = 0; i < 20000; i++) {
    char changed[512];
    int k, changes = 1 + (int)(test_random(&random) % 4);
    memcpy(changed, text, n);
    for (k = 0; k < changes; k++) changed[test_random(&random) % n] = (char)(test_random(&random) & 255);
    parse(changed, n);
    mhk_clear_error(ctx);
  }
}

static int theta_of(const char *number, double *theta) {
  char text[2048];
  mhk_config c;
  snprintf(text, sizeof text,
           "{\"model_type\":\"phi\",\"hidden_size\":8,\"num_attention_heads\":2,\"num_hidden_layers\":1,\"vocab_size\":"
           "9,\"intermediate_size\":8,\"rope_theta\":%s}",
           number);
  if (mhk_config_parse(ctx, text, strlen(text), NULL, &c)) return 0;
  *theta = c.rope_theta;
  return 1;
}

TEST(numbers_are_read_exactly) {
  static const char numbers[][64] = {"1e-05",
                                     "10000.0",
                                     "10000",
                                     "1000000000000000019884624838656",
                                     "0.1",
                                     "1e22",
                                     "1e23",
                                     "9007199254740993",
                                     "8.5e-300",
                                     "123456789012345678901234567890e-20",
                                     "2.2250738585072011e-308",
                                     "4.9e-324",
                                     "1.7976931348623157e299",
                                     "0.30000000000000004",
                                     "9007199254740992.9999999999999999999999999",
                                     "5e-1",
                                     "1E+2",
                                     "179769313486231570000000000000000000000.0"};
  uint64_t random = 7;
  size_t i;
  double got;
  char text[128];
  for (i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
    const double want = strtod(numbers[i], NULL);
    if (CHECK(theta_of(numbers[i], &got), "%s: %s", numbers[i], mhk_message(ctx)), mhk_failed(ctx)) {
      mhk_clear_error(ctx);
      continue;
    }
    CHECK(got == want, "%s is read as %.17g, should be %.17g", numbers[i], got, want);
  }
  for (i = 0; i < 3000; i++) {
    double want = test_uniform(&random, 1, 10) * pow(10, (double)(int)(test_random(&random) % 500) - 250);
    snprintf(text, sizeof text, "%.*e", (int)(test_random(&random) % 30), want);
    want = strtod(text, NULL);
    CHECK(theta_of(text, &got) && got == want, "%s is read as %.17g, should be %.17g", text, got, want);
  }
}

TEST(numbers_are_written_exactly) {
  uint64_t random = 9;
  int i;
  mhk_config c, back;
  char text[4096];
  REQUIRE(mhk_config_preset(ctx, "phi-1", &c) == MHK_OK, "%s", mhk_message(ctx));
  for (i = 0; i < 2000; i++) {
    size_t n;
    c.rope_theta = test_uniform(&random, 1, 10) * pow(10, (double)(int)(test_random(&random) % 500) - 250);
    if (i % 2) c.rope_theta = (double)(float)test_uniform(&random, 0, 20000) + 1; /* few binary digits */
    c.norm_eps = test_uniform(&random, 0, 1e-3);
    n = mhk_config_format(&c, text, sizeof text);
    CHECK(mhk_config_parse(ctx, text, n, NULL, &back) == MHK_OK && back.rope_theta == c.rope_theta &&
              back.norm_eps == c.norm_eps,
          "%.17g and %.17g came back as %.17g and %.17g (%s)", c.rope_theta, c.norm_eps, back.rope_theta, back.norm_eps,
          mhk_message(ctx));
    mhk_clear_error(ctx);
  }
  c.norm_eps = 1e-5;
  c.rope_theta = 10000;
  mhk_config_format(&c, text, sizeof text);
  CHECK(strstr(text, "\"layer_norm_eps\": 1e-05,") && strstr(text, "\"rope_theta\": 10000.0,") &&
            strstr(text, "\"partial_rotary_factor\": 0.5,"),
        "%s", text);
}

/* ---- safetensors in */

static size_t put_header(unsigned char *out, const char *header) {
  const size_t n = strlen(header);
  int i;
  for (i = 0; i < 8; i++) out[i] = (unsigned char)((uint64_t)n >> (8 * i));
  memcpy(out + 8, header, n);
  return n + 8;
}

/* a file of this header and so many bytes of data, in memory of exactly its size; free *block after
   closing */
static mhk_file *open_text(const char *header, size_t data, unsigned char **block) {
  const size_t n = strlen(header) + 8 + data;
  size_t i;
  *block = (unsigned char *)malloc(n);
  i = put_header(*block, header);
  for (; i < n; i++) (*block)[i] = (unsigned char)(i * 37);
  return mhk_file_open_memory(ctx, *block, n);
}

static void header_bad(const char *header, size_t data, mhk_result code, const char *message) {
  unsigned char *block;
  mhk_file *f = open_text(header, data, &block);
  CHECK(!f && mhk_error(ctx) == code && strstr(mhk_message(ctx), message),
        "%s: result %d, \"%s\" does not contain \"%s\"", header, (int)mhk_error(ctx), mhk_message(ctx), message);
  mhk_clear_error(ctx);
  mhk_file_close(f);
  free(block);
}

static void header_good(const char *header, size_t data, int tensors) {
  unsigned char *block;
  mhk_file *f = open_text(header, data, &block);
  CHECK(f && mhk_file_count(f) == tensors, "%s: %s", header, mhk_message(ctx));
  mhk_clear_error(ctx);
  mhk_file_close(f);
  free(block);
}

#define T(name, dtype, shape, begin, end) "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape \
  ",\"data_offsets\":[" #begin "," #end "]}"

TEST(headers_that_are_wrong) {
  const mhk_result F = MHK_ERROR_FORMAT;
  header_bad("", 0, F, "does not start with '{'");
  header_bad(" ", 0, F, "does not start with '{'");
  header_bad(" []", 0, F, "does not start with '{'");
  header_bad("[]", 0, F, "does not start with '{'");
  header_bad("{}", 4, F, "has 4 bytes of data, but its tensors account for 0");
  header_bad("{" T("a", "F32", "[2]", 0, 8) "}", 12, F, "has 12 bytes of data, but its tensors account for 8");
  header_bad("{" T("a", "F32", "[2]", 0, 8) "}", 4, F, "tensor a claims bytes 0 to 8 of the data, which has 4 bytes");
  header_bad("{" T("a", "F32", "[2]", 0, 12) "}", 12, F,
             "tensor a of shape (2) and type F32 needs 8 bytes, but its data_offsets give 12");
  header_bad("{" T("a", "F32", "[2]", 8, 0) "}", 8, F, "claims bytes 8 to 0");
  header_bad("{" T("a", "F32", "[2]", -8, 0) "}", 8, F, "claims bytes -8 to 0");
  header_bad("{" T("a", "F32", "[2]", 0, 8) "," T("b", "F32", "[2]", 4, 12) "}", 12, F,
             "starts at byte 4 of the data instead of 8: there is an overlap before it");
  header_bad("{" T("a", "F32", "[1]", 0, 4) "," T("b", "F32", "[1]", 8, 12) "}", 12, F,
             "tensor b starts at byte 8 of the data instead of 4: there is a hole before it");
  header_bad("{" T("a", "F32", "[1]", 4, 8) "}", 8, F, "there is a hole");
  header_bad("{" T("a", "F32", "[1]", 0, 4) "," T("b", "F32", "[1]", 0, 4) "}", 4, F, "there is an overlap");
  header_bad("{" T("a", "F32", "[1]", 0, 4) "," T("a", "F32", "[1]", 4, 8) "}", 8, F, "the key \"a\" appears twice");
  header_bad("{" T("a", "F8_E4M3", "[1]", 0, 2) "}", 1, F, "claims bytes 0 to 2");
  header_bad("{" T("a", "C64", "[4294967296,4294967296]", 0, 2) "}", 2, F, "of tensor a has an invalid size");
  header_bad("{" T("a", "U8", "[0,1,1,1,4294967296,4294967296]", 0, 0) "}", 0, F,
             sizeof(mhk_index) > 4 ? "axis 5 of tensor a has an invalid size"
                                   : "axis 4 of tensor a has an invalid size");
  header_bad("{" T("a", "F32", "[-1]", 0, 4) "}", 4, F, "axis 0 of tensor a has an invalid size");
  header_bad("{" T("a", "F32", "[1.5]", 0, 4) "}", 4, F, "axis 0 of tensor a");
  header_bad("{" T("a", "F32", "[4294967296,4294967296,4]", 0, 4) "}", 4, F, "of tensor a has an invalid size");
  header_bad("{" T("a", "U8", "[9223372036854775807,2]", 0, 4) "}", 4, F, "of tensor a has an invalid size");
  header_bad("{" T("a", "U8", "[18446744073709551617]", 0, 1) "}", 1, F, "axis 0 of tensor a");
  header_bad("{" T("a", "F64", "[2305843009213693952]", 0, 0) "}", 0, F, "axis 0 of tensor a");
  header_bad("{" T("a", "F32", "{}", 0, 4) "}", 4, F, "tensor a needs \"dtype\", \"shape\" and two \"data_offsets\"");
  header_bad("{" T("a", "F32", "[\"1\"]", 0, 4) "}", 4, F, "axis 0 of tensor a");
  header_bad("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4, F, "tensor a needs");
  header_bad("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 4, F, "tensor a needs");
  header_bad("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[\"0\",\"4\"]}}", 4, F, "claims bytes ? to ?");
  header_bad("{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, F, "tensor a needs");
  header_bad("{\"a\":{\"dtype\":1,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, F, "tensor a needs");
  header_bad("{\"a\":7}", 4, F, "tensor a needs");
  header_bad("{\"a\\u0000b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, F, "contains a zero byte");
  header_bad("{\"__metadata__\":[]}", 0, F, "__metadata__ must be an object");
  header_bad("{\"__metadata__\":{\"a\":1}}", 0, F, "the value of \"a\" in __metadata__ must be a string");
  header_bad("{\"__metadata__\":{}} {", 0, F, "nothing more after the value");
}

TEST(headers_that_are_right) {
  header_good("{}", 0, 0);
  header_good(" \n\t{}", 0, 0);
  header_good("{\"__metadata__\":null}", 0, 0);
  header_good("{\"__metadata__\":null," T("a", "F32", "[1]", 0, 4) "}", 4, 1);
  header_good("{\"__metadata__\":{}}   ", 0, 0);
  header_good("{" T("a", "F32", "[]", 0, 4) "}", 4, 1);
  header_good("{" T("a", "F32", "[0]", 0, 0) "}", 0, 1);
  header_good("{" T("a", "F32", "[0,5]", 0, 0) "," T("b", "U8", "[3]", 0, 3) "," T("c", "F64", "[7,0]", 3, 3) "}", 3,
              3);
  header_good("{" T("b", "BF16", "[2]", 4, 8) "," T("a", "F32", "[1]", 0, 4) "}", 8, 2);
  header_good(
      "{" T("z", "BOOL", "[1]", 0, 1) "," T("y", "I64", "[1]", 1, 9) "," T("x", "F64", "[1,1,1,1,1]", 9, 17) "}", 17,
      3);
}

TEST(types_and_ranks_that_are_not_read_leave_the_file_usable) {
  static const char header[] =
      "{" T("a", "F8_E4M3", "[3]", 0, 3) "," T("b", "F32", "[1]", 3, 7) "," T("c", "U8", "[1,2,1,1,2,1,3]", 7, 19) "}";
  unsigned char *block;
  mhk_real b = 0;
  int32_t c[12];
  mhk_file *f = open_text(header, 19, &block);
  const mhk_stored *x = mhk_file_find(f, "a");
  REQUIRE(f && x && x->dtype == 0 && x->bytes == 3 && x->count == 3 && x->rank == 1, "%s", mhk_message(ctx));
  CHECK(mhk_file_read(ctx, x, &b) != MHK_OK, "read");
  CHECK_FAILS(ctx, MHK_ERROR_UNSUPPORTED, "tensor a has an unsupported type");
  CHECK(mhk_file_read(ctx, mhk_file_find(f, "b"), &b) == MHK_OK, "%s", mhk_message(ctx));
  x = mhk_file_find(f, "c");
  CHECK(x && x->rank == 5 && x->shape[3] == 1 && x->shape[4] == 6 && x->count == 12,
        "axes beyond the fifth are folded into it");
  CHECK(mhk_file_read_i32(ctx, x, c) == MHK_OK, "%s", mhk_message(ctx));
  mhk_file_close(f);
  free(block);
}

TEST(lengths_that_are_wrong) {
  unsigned char block[64];
  size_t n, i;
  memset(block, 0, sizeof block);
  for (n = 0; n < 8; n++) {
    CHECK(!mhk_file_open_memory(ctx, block, n), "a file of %d bytes was accepted", (int)n);
    CHECK_FAILS(ctx, MHK_ERROR_FORMAT, "too short for a safetensors file, which starts with 8 bytes of header length");
  }
  CHECK(!mhk_file_open_memory(ctx, block, 16), "a header of length 0 was accepted");
  CHECK_FAILS(ctx, MHK_ERROR_FORMAT, "does not start with '{'");
  for (i = 0; i < 8; i++) block[i] = 0xFF;
  CHECK(!mhk_file_open_memory(ctx, block, sizeof block), "a header of 2^64-1 bytes was accepted");
  CHECK_FAILS(ctx, MHK_ERROR_FORMAT, "give a header of 18446744073709551615 bytes, but the file has 64");
  CHECK(!mhk_file_open_memory(ctx, NULL, 10), "NULL was accepted");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "NULL");
}

/* looks at everything in a file */
static double touch(mhk_file *f) {
  double sum = 0;
  int i;
  for (i = 0; i < mhk_file_count(f); i++) {
    const mhk_stored *x = mhk_file_at(f, i);
    mhk_real *out = (mhk_real *)malloc(((size_t)x->count + 1) * sizeof *out);
    int32_t *ids = (int32_t *)malloc(((size_t)x->count + 1) * sizeof *ids);
    mhk_index k;
    size_t b;
    for (b = 0; b < x->bytes; b++) sum += ((const unsigned char *)x->data)[b];
    mhk_file_read(ctx, x, out);
    for (k = 0; k < x->count; k++) sum += out[k] > 0;
    if (mhk_file_read_i32(ctx, x, ids)) mhk_clear_error(ctx);
    CHECK(mhk_file_find(f, x->name) == x, "%s is not found", x->name);
    free(out);
    free(ids);
  }
  return sum;
}

/* a small file, whole in memory */
static unsigned char *small_file(size_t *length) {
  static const float a[6] = {1, -2, 3.5f, 1e-30f, 65504, 0};
  static const int64_t ids[3] = {1, -2, 3};
  static const unsigned char flags[5] = {0, 1, 1, 0, 1};
  static const char *const metadata[] = {"format", "pt", "quote \" and \xe2\x82\xac",
                                         "line\nend\t\\ \x01 \xf0\x9f\x98\x80"};
  mhk_stored x[3];
  const char *path = test_path("small.safetensors");
  memset(x, 0, sizeof x);
  x[0].name = "flags";
  x[0].dtype = MHK_BOOL;
  x[0].rank = 1;
  x[0].shape[0] = x[0].count = 5;
  x[0].data = flags;
  x[1].name = "a.weight";
  x[1].dtype = MHK_F32;
  x[1].rank = 2;
  x[1].shape[0] = 2;
  x[1].shape[1] = 3;
  x[1].count = 6;
  x[1].data = a;
  x[2].name = "ids";
  x[2].dtype = MHK_I64;
  x[2].rank = 1;
  x[2].shape[0] = x[2].count = 3;
  x[2].data = ids;
  mhk_file_write(ctx, path, 3, x, 2, metadata);
  CHECK_OK(ctx);
  return (unsigned char *)test_read_file(path, length);
}

TEST(files_cut_and_changed) {
  size_t n, i;
  unsigned char *whole = small_file(&n), *part;
  uint64_t random = 3;
  int opened = 0;
  REQUIRE(whole, "the file was not written");
  for (i = 0; i < n; i++) { /* every start of it, in memory of exactly that size */
    mhk_file *f;
    part = (unsigned char *)malloc(i ? i : 1);
    memcpy(part, whole, i);
    f = mhk_file_open_memory(ctx, part, i);
    CHECK(!f && mhk_error(ctx) == MHK_ERROR_FORMAT, "the first %d bytes were accepted", (int)i);
    mhk_clear_error(ctx);
    mhk_file_close(f);
    free(part);
  }
  part = (unsigned char *)malloc(n);
  for (i = 0; i < 20000; i++) { /* random changes: an answer or an error */
    int k, changes = 1 + (int)(test_random(&random) % 3);
    mhk_file *f;
    memcpy(part, whole, n);
    for (k = 0; k < changes; k++) {
      unsigned char *at = part + test_random(&random) % n;
      *at = i % 2 ? (unsigned char)(*at ^ (1 << (test_random(&random) & 7))) : (unsigned char)test_random(&random);
    }
    f = mhk_file_open_memory(ctx, part, n);
    CHECK((f != NULL) == !mhk_failed(ctx), "a result and an error at once");
    if (f) {
      touch(f);
      opened++;
    }
    mhk_file_close(f);
    mhk_clear_error(ctx);
  }
  CHECK(opened > 100 && opened < 19000, "%d of 20000 changed files were opened", opened);
  free(part);
  free(whole);
}

/* ---- conversions */

static void read_one(mhk_dtype dtype, const void *bytes, int n, const double *want) {
  mhk_real out[16];
  unsigned char shifted[160];
  mhk_stored x;
  int i, shift;
  memset(&x, 0, sizeof x);
  x.name = "x";
  x.dtype = dtype;
  x.rank = 1;
  x.shape[0] = x.count = n;
  x.bytes = (size_t)n * mhk_dtype_bytes(dtype);
  for (shift = 0; shift < 3; shift++) { /* aligned or not */
    memcpy(shifted + shift, bytes, x.bytes);
    x.data = shifted + shift;
    CHECK(mhk_file_read(ctx, &x, out) == MHK_OK, "%s", mhk_message(ctx));
    for (i = 0; i < n; i++)
      CHECK(out[i] == (mhk_real)want[i] || (out[i] != out[i] && want[i] != want[i]),
            "%s element %d is %.9g, should be %.9g", mhk_dtype_name(dtype), i, (double)out[i], want[i]);
  }
}

TEST(number_types) { /* bytes as they stand in a file: little-endian */
  {
    static const unsigned char b[] = {0x00, 0x3C, 0x00, 0xC0, 0xFF, 0x7B, 0x01, 0x00, 0xFF, 0x03,
                                      0x00, 0x04, 0x00, 0x7C, 0x00, 0xFC, 0x00, 0x7E, 0x00, 0x80};
    const double want[] = {
        1, -2, 65504, 5.9604644775390625e-08, 6.097555160522461e-05, 6.103515625e-05, INFINITY, -INFINITY, NAN, -0.0};
    read_one(MHK_F16, b, 10, want);
  }
  {
    static const unsigned char b[] = {0x80, 0x3F, 0x00, 0xC0, 0x7F, 0x7F, 0x80, 0x7F, 0x01, 0x00};
    const double want[] = {1, -2, 3.3895313892515355e+38, INFINITY, 9.183549615799121e-41};
    read_one(MHK_BF16, b, 5, want);
  }
  {
    static const unsigned char b[] = {0xCD, 0xCC, 0xCC, 0x3D, 0x00, 0x00, 0x80, 0xBF};
    const double want[] = {0.10000000149011612, -1};
    read_one(MHK_F32, b, 2, want);
  }
  {
    static const unsigned char b[] = {0, 0, 0, 0, 0, 0, 0xF0, 0xBF, 0x9A, 0x99, 0x99, 0x99, 0x99, 0x99, 0xB9, 0x3F};
    const double want[] = {-1, 0.1};
    read_one(MHK_F64, b, 2, want);
  }
  {
    static const unsigned char b[] = {0x80, 0x7F, 0xFF, 0x00};
    const double want_signed[] = {-128, 127, -1, 0}, want_unsigned[] = {128, 127, 255, 0};
    read_one(MHK_I8, b, 4, want_signed);
    read_one(MHK_U8, b, 4, want_unsigned);
  }
  {
    static const unsigned char b[] = {0x00, 0x80, 0xFF, 0xFF, 0x34, 0x12};
    const double want_signed[] = {-32768, -1, 0x1234}, want_unsigned[] = {32768, 65535, 0x1234};
    read_one(MHK_I16, b, 3, want_signed);
    read_one(MHK_U16, b, 3, want_unsigned);
  }
  {
    static const unsigned char b[] = {0x00, 0x00, 0x00, 0x80, 0xFF, 0xFF, 0xFF, 0xFF, 0x01, 0x00, 0x01, 0x00};
    const double want_signed[] = {-2147483648.0, -1, 65537}, want_unsigned[] = {2147483648.0, 4294967295.0, 65537};
    read_one(MHK_I32, b, 3, want_signed);
    read_one(MHK_U32, b, 3, want_unsigned);
  }
  {
    static const unsigned char b[] = {0, 0, 0, 0, 0, 0, 0, 0x80, 0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF};
    const double want_signed[] = {-9223372036854775808.0, -2},
                 want_unsigned[] = {9223372036854775808.0, 18446744073709551614.0};
    read_one(MHK_I64, b, 2, want_signed);
    read_one(MHK_U64, b, 2, want_unsigned);
  }
}

TEST(integers_must_fit) {
  static const unsigned char wide[] = {0xFF, 0xFF, 0xFF, 0x7F, 0, 0, 0, 0,    0, 0, 0, 0x80,
                                       0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0x80, 0, 0, 0, 0};
  int32_t out[3];
  mhk_real real[3];
  mhk_stored x;
  memset(&x, 0, sizeof x);
  x.name = "tokens";
  x.dtype = MHK_I64;
  x.rank = 1;
  x.shape[0] = x.count = 2;
  x.bytes = 16;
  x.data = wide;
  CHECK(mhk_file_read_i32(ctx, &x, out) == MHK_OK, "%s", mhk_message(ctx));
  CHECK(out[0] == INT32_MAX && out[1] == INT32_MIN, "%d and %d", (int)out[0], (int)out[1]);
  x.shape[0] = x.count = 3;
  x.bytes = 24;
  mhk_file_read_i32(ctx, &x, out);
  CHECK_FAILS(ctx, MHK_ERROR_FORMAT, "element 2 of tensor tokens is 2147483648, which does not fit in 32 bits");
  x.dtype = MHK_F64;
  mhk_file_read_i32(ctx, &x, out);
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "tensor tokens has type F64; it must have an integer type");
  x.bytes = 23;
  mhk_file_read(ctx, &x, real);
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "3 elements");
  x.data = NULL;
  mhk_file_read(ctx, &x, real);
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "NULL");
}

/* ---- out and in again */

/* what stands little-endian in a file is what was given in the machine's own order */
static int same_values(const mhk_stored *x, const void *given) {
  const unsigned char *a = (const unsigned char *)x->data, *b = (const unsigned char *)given;
  const size_t size = mhk_dtype_bytes(x->dtype);
  const uint16_t one = 1;
  size_t i;
  for (i = 0; i < x->bytes; i++)
    if (a[i] != b[*(const unsigned char *)&one ? i : i - i % size + size - 1 - i % size]) return 0;
  return 1;
}

TEST(written_and_read) {
  enum { N = 17 };
  unsigned char data[13][8 * N];
  static const mhk_dtype types[13] = {MHK_BF16, MHK_F32, MHK_U8,  MHK_F64, MHK_F16, MHK_I8,  MHK_I16,
                                      MHK_U16,  MHK_I32, MHK_U32, MHK_I64, MHK_U64, MHK_BOOL};
  static const char names[13][16] = {"bf16", "f32", "u8",  "f64", "f16", "i8",  "i16",
                                     "u16",  "i32", "u32", "i64", "u64", "bool"};
  static const char *const metadata[] = {"case", "{\"a\": [1, 2]}", "empty", ""};
  const char *path = test_path("round.safetensors");
  mhk_stored x[15];
  mhk_file *f;
  uint64_t random = 5;
  size_t length;
  int i;
  const char *text;
  unsigned char *bytes;
  memset(x, 0, sizeof x);
  for (i = 0; i < 15; i++) {
    int k;
    x[i].name = i < 13 ? names[i] : i == 13 ? "a scalar" : "nothing";
    x[i].dtype = i < 13 ? types[i] : MHK_F32;
    x[i].rank = i < 13 ? 2 : i == 13 ? 0 : 3;
    for (k = 0; k < MHK_MAX_RANK; k++) x[i].shape[k] = 1;
    if (i < 13) x[i].shape[1] = N;
    if (i == 14) x[i].shape[1] = 0;
    x[i].count = i < 13 ? N : i == 13 ? 1 : 0;
    x[i].data = i < 13 ? data[i] : data[1];
    if (i < 13)
      for (k = 0; k < 8 * N; k++) data[i][k] = (unsigned char)test_random(&random);
  }
  REQUIRE(mhk_file_write(ctx, path, 15, x, 2, metadata) == MHK_OK, "%s", mhk_message(ctx));
  bytes = (unsigned char *)test_read_file(path, &length);
  REQUIRE(bytes, "no file");
  CHECK(bytes[0] % 8 == 0, "the header's length %d is no multiple of 8", bytes[0]);
  free(bytes);
  f = mhk_file_open(ctx, path);
  REQUIRE(f, "%s", mhk_message(ctx));
  CHECK(mhk_file_count(f) == 15, "%d tensors", mhk_file_count(f));
  for (i = 0; i < 15; i++) {
    const mhk_stored *y = mhk_file_find(f, x[i].name);
    REQUIRE(y, "%s is missing", x[i].name);
    CHECK(y->dtype == x[i].dtype && y->rank == x[i].rank && y->count == x[i].count &&
              memcmp(y->shape, x[i].shape, sizeof y->shape) == 0,
          "%s has changed", x[i].name);
    CHECK((uintptr_t)y->data % mhk_dtype_bytes(y->dtype) == 0, "%s is not aligned", x[i].name);
    CHECK(y->bytes == (size_t)y->count * mhk_dtype_bytes(y->dtype) && same_values(y, x[i].data), "%s has other bits",
          x[i].name);
    if (i > 0)
      CHECK(strcmp(mhk_file_at(f, i - 1)->name, mhk_file_at(f, i)->name) < 0, "not sorted by name");
  }
  CHECK(!mhk_file_find(f, "f3") && !mhk_file_find(f, "") && !mhk_file_find(f, "zzz") && !mhk_file_find(NULL, "f32"),
        "something is found that is not there");
  CHECK(!mhk_file_at(f, -1) && !mhk_file_at(f, 15), "places outside");
  text = mhk_file_metadata(f, "case", &length);
  CHECK(text && strcmp(text, metadata[1]) == 0 && length == strlen(metadata[1]), "metadata: %s", text ? text : "none");
  text = mhk_file_metadata(f, "empty", &length);
  CHECK(text && length == 0 && text[0] == 0, "empty metadata");
  CHECK(!mhk_file_metadata(f, "absent", NULL), "absent metadata");
  mhk_file_close(f);
  bytes = small_file(&length); /* with characters that must be escaped */
  f = mhk_file_open_memory(ctx, bytes, length);
  text = mhk_file_metadata(f, "quote \" and \xe2\x82\xac", NULL);
  CHECK(text && strcmp(text, "line\nend\t\\ \x01 \xf0\x9f\x98\x80") == 0, "metadata: %s", text ? text : "none");
  mhk_file_close(f);
  free(bytes);
  CHECK_OK(ctx);
}

/* a file that takes long to write says how far it is */
static int writing_said;
static char writing_last[200];
static void writing_log(void *user, mhk_log_level level, const char *text) {
  (void)user;
  writing_said += level == MHK_LOG_INFO;
  snprintf(writing_last, sizeof writing_last, "%.199s", text);
}
TEST(long_writes_tell_their_progress) {
  enum { PARTS = 18, PART = 1 << 22 }; /* 18 x 4 MiB, the same memory again and again */
  static const char names[PARTS][2] = {"a", "b", "c", "d", "e", "f", "g", "h", "i",
                                       "j", "k", "l", "m", "n", "o", "p", "q", "r"};
  char *part = (char *)calloc(PART, 1);
  mhk_stored x[PARTS];
  mhk_context_desc desc;
  mhk_context *c;
  int i;
  memset(&desc, 0, sizeof desc);
  desc.log = writing_log;
  c = mhk_create(&desc);
  memset(x, 0, sizeof x);
  for (i = 0; i < PARTS; i++) {
    x[i].name = names[i];
    x[i].dtype = MHK_U8;
    x[i].rank = 1;
    x[i].shape[0] = x[i].count = PART;
    x[i].data = part;
  }
  REQUIRE(part && mhk_file_write(c, test_path("long.safetensors"), 15, x, 0, NULL) == MHK_OK, "%s", mhk_message(c));
  CHECK(writing_said == 0, "a file of 63 MB is told of %d times", writing_said);
  CHECK(mhk_file_write(c, test_path("long.safetensors"), PARTS, x, 0, NULL) == MHK_OK, "%s", mhk_message(c));
  CHECK(writing_said == 1 && strstr(writing_last, "long.safetensors: 67 of 75 MB"), "%d times: %s", writing_said,
        writing_last);
  remove(test_path("long.safetensors"));
  mhk_destroy(c);
  free(part);
}

TEST(writing_what_cannot_be_written) {
  static const float a[2] = {1, 2};
  static const char *const metadata[] = {"a", "1", "a", "2", "b", "\xff", "c", NULL};
  const char *path = test_path("never.safetensors");
  mhk_stored x[2];
  memset(x, 0, sizeof x);
  x[0].name = "a";
  x[0].dtype = MHK_F32;
  x[0].rank = 1;
  x[0].shape[0] = x[0].count = 2;
  x[0].data = a;
  x[1] = x[0];
  mhk_file_write(ctx, path, 2, x, 0, NULL);
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "cannot write two tensors named a");
  x[1].name = "__metadata__";
  mhk_file_write(ctx, path, 2, x, 0, NULL);
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "not __metadata__");
  x[1].name = "b\xff";
  mhk_file_write(ctx, path, 2, x, 0, NULL);
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "valid UTF-8");
  x[1].name = "b";
  x[1].count = 3;
  mhk_file_write(ctx, path, 2, x, 0, NULL);
  CHECK_FAILS(ctx, MHK_ERROR_SHAPE, "tensor b of shape (2) cannot have 3 elements");
  x[1].count = 2;
  x[1].data = NULL;
  mhk_file_write(ctx, path, 2, x, 0, NULL);
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "and data");
  x[1].data = a;
  mhk_file_write(ctx, path, 2, x, 2, metadata);
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "the metadata key \"a\" is given twice");
  mhk_file_write(ctx, path, 2, x, 1, metadata + 4);
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "the metadata \"b\" is not valid UTF-8");
  mhk_file_write(ctx, path, 2, x, 1, metadata + 6);
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "NULL");
  mhk_file_write(ctx, test_path("no such folder/x.safetensors"), 2, x, 0, NULL);
  CHECK_FAILS(ctx, MHK_ERROR_FILE, "x.safetensors: ");
  mhk_file_write(ctx, NULL, 2, x, 0, NULL);
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "path");
  CHECK(!test_read_file(path, NULL), "a file was left behind");
  /* what stands there stays until the new file is whole */
  CHECK(mhk_file_write(ctx, path, 1, x, 0, NULL) == MHK_OK, "%s", mhk_message(ctx));
  mhk_file_write(ctx, path, 2, x, 2, metadata);
  mhk_clear_error(ctx);
  {
    mhk_file *f = mhk_file_open(ctx, path);
    CHECK(mhk_file_count(f) == 1, "the old file is gone: %s", mhk_message(ctx));
    mhk_file_close(f);
  }
  remove(path);
}

/* ---- folders and shards */

static void text_file(const char *name, const char *text) {
  const char *path = test_path(name);
  CHECK(test_write_file(path, text, strlen(text)), "cannot write %s", path);
}

static void shard(const char *name, const char *a, const char *b) {
  static const float values[3] = {1, 2, 3};
  mhk_stored x[2];
  int i, n = b ? 2 : 1;
  memset(x, 0, sizeof x);
  for (i = 0; i < n; i++) {
    x[i].name = i ? b : a;
    x[i].dtype = MHK_F32;
    x[i].rank = 1;
    x[i].shape[0] = x[i].count = 3;
    x[i].data = values;
  }
  mhk_file_write(ctx, test_path(name), n, x, 0, NULL);
  CHECK_OK(ctx);
}

#define INDEX "shards/model.safetensors.index.json"

static void index_bad(const char *index, mhk_result code, const char *message) {
  mhk_file *f;
  text_file(INDEX, index);
  f = mhk_file_open(ctx, test_path("shards"));
  CHECK(!f && mhk_error(ctx) == code && strstr(mhk_message(ctx), message),
        "%s: result %d, \"%s\" does not contain \"%s\"", index, (int)mhk_error(ctx), mhk_message(ctx), message);
  mhk_clear_error(ctx);
  mhk_file_close(f);
}

TEST(shards) {
  const mhk_result F = MHK_ERROR_FORMAT;
  const char *good =
      "{\"metadata\":{\"total_size\":36},\"weight_map\":{\"a\":\"s1.safetensors\",\"b\":\"s2.safetensors\",\"c\":\"s1."
      "safetensors\"}}";
  mhk_file *f;
  test_make_folder(test_path("shards"));
  /* of an earlier run */
  remove(test_path("shards/pytorch_model.bin")), remove(test_path("shards/model.safetensors")),
      remove(test_path(INDEX));
  CHECK(!mhk_file_open(ctx, test_path("shards")), "an empty folder was opened");
  CHECK_FAILS(ctx, MHK_ERROR_FILE, "has no model.safetensors and no index of one");
  text_file("shards/model.safetensors", "not a header");
  CHECK(!mhk_file_open(ctx, test_path("shards")), "twelve letters were opened");
  CHECK_FAILS(ctx, MHK_ERROR_FORMAT, "model.safetensors is not a safetensors file");
  remove(test_path("shards/model.safetensors"));
  shard("shards/s1.safetensors", "a", "c");
  shard("shards/s2.safetensors", "b", NULL);
  shard("secret.safetensors", "b", NULL);
  text_file(INDEX, good);
  f = mhk_file_open(ctx, test_path("shards"));
  REQUIRE(f, "%s", mhk_message(ctx));
  CHECK(mhk_file_count(f) == 3 && mhk_file_find(f, "a") && mhk_file_find(f, "b") && mhk_file_find(f, "c"),
        "%d tensors", mhk_file_count(f));
  touch(f);
  mhk_file_close(f);
  f = mhk_file_open(ctx, test_path(INDEX));
  CHECK(mhk_file_count(f) == 3, "an index by its path: %s", mhk_message(ctx));
  mhk_file_close(f);
  index_bad("{}", F, "has no \"weight_map\"");
  index_bad("{\"weight_map\":{}}", F, "has no \"weight_map\"");
  index_bad("{\"weight_map\":", F, "line 1, byte 14");
  index_bad("{\"weight_map\":{\"b\":\"../secret.safetensors\"}}", F,
            "a plain file name in the folder of the index, not \"../secret.safetensors\"");
  index_bad("{\"weight_map\":{\"b\":\"/etc/passwd\"}}", F, "plain file name");
  index_bad("{\"weight_map\":{\"b\":\"c:x\"}}", F, "plain file name");
  index_bad("{\"weight_map\":{\"b\":\"a\\\\b\"}}", F, "plain file name");
  index_bad("{\"weight_map\":{\"b\":\"..\"}}", F, "plain file name");
  index_bad("{\"weight_map\":{\"b\":\"\"}}", F, "plain file name");
  index_bad("{\"weight_map\":{\"b\":\"s2.safetensors\\u0000\"}}", F, "plain file name");
  index_bad("{\"weight_map\":{\"b\":1}}", F, "plain file name");
  index_bad("{\"weight_map\":{\"b\":\"s3.safetensors\"}}", MHK_ERROR_FILE, "s3.safetensors: ");
  index_bad("{\"weight_map\":{\"a\":\"s2.safetensors\",\"b\":\"s2.safetensors\"}}", F,
            "says that tensor a is in s2.safetensors, which does not have it");
  index_bad("{\"weight_map\":{\"a\":\"s1.safetensors\",\"b\":\"s1.safetensors\",\"c\":\"s1.safetensors\"}}", F,
            "tensor b is in s1.safetensors");
  index_bad("{\"weight_map\":{\"a\":\"s1.safetensors\",\"b\":\"s2.safetensors\"}}", F,
            "does not name tensor c, which is in");
  shard("shards/s2.safetensors", "b", "a");
  index_bad(good, F, "tensor a appears twice");
  text_file("shards/s2.safetensors", "short");
  index_bad(good, F, "s2.safetensors has 5 bytes");
  /* a single file comes before an index */
  shard("shards/model.safetensors", "whole", NULL);
  f = mhk_file_open(ctx, test_path("shards"));
  CHECK(mhk_file_count(f) == 1 && mhk_file_find(f, "whole"), "%s", mhk_message(ctx));
  mhk_file_close(f);
}

/* ---- tensors that another reader found */

static int released;
static void release(void *user) { released += *(int *)user; }

/* released exactly once, whatever happens */
static mhk_file *file_of(int n, const mhk_stored *x) {
  static int one = 1;
  mhk_file *f;
  released = 0;
  f = mhk_file_of(ctx, "somewhere.else", n, x, release, &one);
  CHECK(released == !f, "released %d times", released);
  return f;
}

TEST(tensors_in_memory_are_a_file) {
  /* 1 to 6, little-endian */
  static const unsigned char values[24] = {0, 0, 0x80, 0x3F, 0, 0, 0,    0x40, 0, 0, 0x40, 0x40,
                                           0, 0, 0x80, 0x40, 0, 0, 0xA0, 0x40, 0, 0, 0xC0, 0x40};
  mhk_stored x[2];
  mhk_real got[6];
  mhk_file *f;
  int i;
  memset(x, 0, sizeof x);
  for (i = 0; i < 2; i++) {
    x[i].name = i ? "a" : "b";
    x[i].dtype = MHK_F32;
    x[i].rank = 2;
    x[i].shape[0] = 3;
    x[i].shape[1] = 2;
    x[i].count = 6;
    x[i].data = values;
  }
  f = file_of(2, x);
  REQUIRE_OK(ctx);
  CHECK(mhk_file_count(f) == 2 && !strcmp(mhk_file_at(f, 0)->name, "a") && mhk_file_find(f, "b")->data == values &&
            mhk_file_find(f, "b")->bytes == 24 && mhk_file_find(f, "b")->shape[2] == 1,
        "%d tensors", mhk_file_count(f));
  mhk_file_read(ctx, mhk_file_find(f, "a"), got);
  CHECK(got[0] == 1 && got[5] == 6, "other values");
  CHECK(!mhk_file_metadata(f, "format", NULL), "metadata from nowhere");
  mhk_file_close(f);
  CHECK(released == 1, "released %d times", released);
  mhk_file_close(file_of(0, NULL));
  CHECK(released == 1, "released %d times", released);
  CHECK_OK(ctx);
  x[0].name = "a";
  CHECK(!file_of(2, x), "one name twice");
  CHECK_FAILS(ctx, MHK_ERROR_FORMAT, "tensor a appears twice: in somewhere.else");
  x[0].name = NULL;
  CHECK(!file_of(2, x), "no name");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "tensor 0 (no name)");
  x[0].name = "b";
  x[0].count = 7;
  CHECK(!file_of(2, x), "too many elements");
  CHECK_FAILS(ctx, MHK_ERROR_SHAPE, "tensor b of shape (3,2) cannot have 7 elements");
  CHECK(!file_of(-1, x) && mhk_error(ctx) == MHK_ERROR_ARGUMENT, "a negative number");
  CHECK(!file_of(2, x), "in a context that has failed");
  mhk_clear_error(ctx);
}

TEST(paths) {
  char longer[3000];
  CHECK(!mhk_file_open(ctx, test_path("absent.safetensors")), "opened");
  CHECK_FAILS(ctx, MHK_ERROR_FILE, "absent.safetensors: ");
  CHECK(!mhk_file_open(ctx, test_path("absent.json")), "opened");
  CHECK_FAILS(ctx, MHK_ERROR_FILE, "absent.json: ");
  CHECK(!mhk_file_open(ctx, NULL), "opened");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "path");
  CHECK(!mhk_file_open(ctx, ""), "opened");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "path");
  memset(longer, 'x', sizeof longer - 1);
  longer[sizeof longer - 1] = 0;
  CHECK(!mhk_file_open(ctx, longer), "opened");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "too long");
  text_file("empty.safetensors", "");
  CHECK(!mhk_file_open(ctx, test_path("empty.safetensors")), "opened");
  CHECK_FAILS(ctx, MHK_ERROR_FORMAT, "empty.safetensors has 0 bytes");
  CHECK(!mhk_file_open(NULL, "x"), "opened without a context");
  mhk_file_close(NULL);
  CHECK(mhk_file_count(NULL) == 0 && !mhk_file_metadata(NULL, "a", NULL), "NULL files");
}

/* the n-th allocation fails, for every n: an error, no leak */
TEST(allocations_that_fail) {
  long n;
  int done = 0;
  size_t length;
  unsigned char *bytes = small_file(&length);
  text_file("shards/s2.safetensors", "x");
  for (n = 1; n < 500 && !done; n++) {
    test_memory memory;
    mhk_context *c = test_context(&memory, n, 0);
    mhk_file *f;
    if (c) {
      f = mhk_file_open_memory(c, bytes, length);
      if (f) {
        mhk_stored all[3];
        int i;
        for (i = 0; i < 3; i++) all[i] = *mhk_file_at(f, i);
        done = mhk_file_write(c, test_path("copy.safetensors"), 3, all, 0, NULL) == MHK_OK;
      }
      CHECK(done || mhk_error(c) == MHK_ERROR_MEMORY, "call %ld: %s", n, mhk_message(c));
      mhk_file_close(f);
      mhk_destroy(c);
    }
    CHECK(memory.bytes == 0 && memory.blocks == 0 && !memory.wrong_size, "call %ld leaks %ld bytes", n,
          (long)memory.bytes);
  }
  CHECK(done && n > 3, "%ld calls", n);
  free(bytes);
}

int main(int argc, char **argv) {
  int result;
  test_begin(argc, argv);
  ctx = mhk_create(NULL);
  RUN(json_that_is_wrong);
  RUN(json_that_is_right);
  RUN(json_depth_and_size);
  RUN(json_cut_and_changed);
  RUN(numbers_are_read_exactly);
  RUN(numbers_are_written_exactly);
  RUN(headers_that_are_wrong);
  RUN(headers_that_are_right);
  RUN(types_and_ranks_that_are_not_read_leave_the_file_usable);
  RUN(lengths_that_are_wrong);
  RUN(files_cut_and_changed);
  RUN(number_types);
  RUN(integers_must_fit);
  RUN(written_and_read);
  RUN(long_writes_tell_their_progress);
  RUN(writing_what_cannot_be_written);
  RUN(shards);
  RUN(tensors_in_memory_are_a_file);
  RUN(paths);
  RUN(allocations_that_fail);
  result = test_end();
  mhk_destroy(ctx);
  return result;
}
