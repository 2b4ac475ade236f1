/* The tokenizer: against Hugging Face's answers, against itself, and against files that are
   wrong. */
#include "test.h"
#include "foreign.h"
#include "json.h"
#include <time.h>

#define TINY "examples/tiny"

/* ids of n bytes; the caller frees them */
static int32_t *encode(mhk_tokenizer *k, const char *text, size_t n, mhk_index *count) {
  int32_t *ids = (int32_t *)malloc((n + 2) * sizeof *ids);
  *count = ids ? mhk_encode(k, text, n, ids, (mhk_index)n + 2) : -1;
  return ids;
}

/* decode(encode(text)) is text */
static void check_round_trip(mhk_tokenizer *k, const char *what, const char *text, size_t n) {
  mhk_index count, bytes;
  int32_t *ids = encode(k, text, n, &count);
  char *back = (char *)malloc(n + 1);
  CHECK(count >= 0 && count <= (mhk_index)n, "%s: %lld ids for %lld bytes", what, (long long)count, (long long)n);
  bytes = mhk_decode(k, ids, count, back, n + 1);
  CHECK(bytes == (mhk_index)n && !memcmp(back, text, n), "%s: %lld bytes came back as %lld, or as others", what,
        (long long)n, (long long)bytes);
  free(back);
  free(ids);
}

/* the same ids from two tokenizers */
static void check_same_ids(const char *what, mhk_tokenizer *a, mhk_tokenizer *b, const char *text, size_t n) {
  mhk_index i, count[2];
  int32_t *x = encode(a, text, n, &count[0]), *y = encode(b, text, n, &count[1]);
  for (i = 0; i < count[0] && i < count[1] && x[i] == y[i]; i++) continue;
  CHECK(count[0] == count[1] && i == count[0], "%s: \"%.40s\": %lld and %lld ids, the first %lld the same", what, text,
        (long long)count[0], (long long)count[1], (long long)i);
  free(x);
  free(y);
}

/* The rows of a file of Hugging Face's answers. */
static void check_rows(mhk_tokenizer *k, const char *path, int least) {
  size_t n = 0;
  char *text = test_read_file(path, &n);
  json *file;
  const json *row;
  int rows = 0;
  REQUIRE(text, "%s cannot be read", path);
  file = json_parse(text);
  CHECK((int)json_number(file, "vocab_size", -1) == mhk_tokenizer_size(k), "%s: the vocabulary has %d ids", path,
        mhk_tokenizer_size(k));
  row = json_at(file, "rows");
  for (row = row ? row->child : NULL; row; row = row->next, rows++) {
    const json *source = json_at(row, "text"), *decoded = json_at(row, "decoded");
    int want_n, i = 0;
    int32_t *want = json_ids(json_at(row, "ids"), &want_n);
    mhk_index got_n, bytes;
    int32_t *got = encode(k, source->text, source->length, &got_n);
    char *back = (char *)malloc(decoded->length + 1);
    while (i < want_n && i < got_n && got[i] == want[i]) i++;
    CHECK(got_n == want_n && i == want_n, "%s, row %d \"%.40s\": %lld ids instead of %d, the first %d right", path,
          rows, source->text, (long long)got_n, want_n, i);
    bytes = mhk_decode(k, want, want_n, back, decoded->length + 1);
    CHECK(bytes == (mhk_index)decoded->length && !memcmp(back, decoded->text, decoded->length),
          "%s, row %d \"%.40s\" is decoded differently", path, rows, source->text);
    check_round_trip(k, path, source->text, source->length);
    free(back);
    free(got);
    free(want);
  }
  CHECK(rows >= least, "%s has %d rows", path, rows);
  json_free(file);
  free(text);
}

TEST(bundled) {
  mhk_context *ctx = mhk_create(NULL);
  mhk_tokenizer *k = mhk_tokenizer_load(ctx, TINY), *file = mhk_tokenizer_load(ctx, TINY "/tokenizer.json");
  size_t n = 0, length = 0;
  char *text = test_read_file(TINY "/tokenizer.json", &n);
  const char *json_text;
  REQUIRE_OK(ctx);
  check_rows(k, TINY "/tokens.json", 40);
  check_same_ids("folder and file", k, file, "The little rabbit ran home.", 27);
  CHECK(mhk_tokenizer_size(k) == 1024 && mhk_tokenizer_end(k) == 0, "size %d, end %ld", mhk_tokenizer_size(k),
        (long)mhk_tokenizer_end(k));
  CHECK(mhk_tokenizer_id(k, "<|endoftext|>") == 0 && mhk_tokenizer_id(k, "<|endoftext") == -1 &&
            mhk_tokenizer_id(k, "") == -1,
        "ids of added tokens");
  CHECK(!strcmp(mhk_token_bytes(k, 0, &length), "<|endoftext|>") && length == 13, "the bytes of token 0");
  CHECK(!mhk_token_bytes(k, 1024, NULL) && !mhk_token_bytes(k, -1, NULL), "ids that do not exist");
  json_text = mhk_tokenizer_json(k, &length);
  CHECK(json_text && text && length == n && !memcmp(json_text, text, n), "the file is kept as it is");
  free(text);
  mhk_destroy(ctx);
}

/* Checks a tokenizer outside the project when it is there. */
static void check_outside(const char *folder, const char *rows) {
  const char *shared = getenv("MOHAWK_SHARED");
  char path[600], expected[700];
  mhk_context *ctx;
  mhk_tokenizer *k, *again;
  const char *json_text;
  size_t length = 0;
  FILE *f;
  snprintf(path, sizeof path, "%s/%s", shared ? shared : "../shared", folder);
  snprintf(expected, sizeof expected, "%s/%s", path, rows);
  f = fopen(expected, "rb");
  if (!f) {
    printf("skipped: %s is not there\n", expected);
    return;
  }
  fclose(f);
  ctx = mhk_create(NULL);
  k = foreign_tokenizer_load(ctx, path);
  if (CHECK_OK(ctx), k) {
    check_rows(k, expected, 40);
    json_text = mhk_tokenizer_json(k, &length);
    again = mhk_tokenizer_load_memory(ctx, json_text, length);
    if (CHECK_OK(ctx), again) {
      check_rows(again, expected, 40);
      CHECK(mhk_tokenizer_end(again) == mhk_tokenizer_end(k) && mhk_tokenizer_end(k) >= 0,
            "the end-of-text token is lost on the way through tokenizer.json");
    }
  }
  mhk_destroy(ctx);
}

TEST(outside) {
  check_outside("data/tokenizers/gpt2", "expected.json");
  check_outside("data/tokenizers/phi", "expected.json");
  check_outside("models/small", "tokens.json");
  check_outside("models/tiny_llama", "tokens.json");
  check_outside("models/tiny_qwen2", "tokens.json");
  check_outside("models/tiny_qwen3", "tokens.json");
}

/* ---- small tokenizers made here */

typedef struct text {
  char *data;
  size_t n, room;
} text;

static void put(text *t, const char *format, ...) {
  va_list args;
  int n;
  va_start(args, format);
  n = vsnprintf(NULL, 0, format, args);
  va_end(args);
  if (t->n + (size_t)n + 1 > t->room) {
    t->room = 2 * (t->room + (size_t)n + 1);
    t->data = (char *)realloc(t->data, t->room);
  }
  va_start(args, format);
  vsnprintf(t->data + t->n, (size_t)n + 1, format, args);
  va_end(args);
  t->n += (size_t)n;
}

/* a byte as vocabularies write it, escaped for JSON */
static const char *byte_text(int byte) {
  static char out[4][8];
  static int turn;
  char *p = out[turn++ % 4];
  int c = byte <= 32 ? byte + 256 : byte >= 127 && byte <= 160 ? byte - 127 + 289 : byte == 173 ? 323 : byte;
  snprintf(p, 8, "\\u%04x", (unsigned)c);
  return p;
}

/* A tokenizer.json with the 256 bytes as ids 0 to 255. NULL: nothing there. vocabulary, merges and
   added are what stands in the brackets. */
static text make_tokenizer(const char *vocabulary, const char *merges, const char *added, const char *pre_tokenizer,
                           const char *model, const char *root) {
  text t = {NULL, 0, 0};
  int b;
  put(&t, "{\"added_tokens\": [%s], \"pre_tokenizer\": %s, %s \"model\": {\"type\": \"BPE\", %s \"vocab\": {",
      added ? added : "",
      pre_tokenizer ? pre_tokenizer : "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true}",
      root ? root : "", model ? model : "");
  for (b = 0; b < 256; b++) put(&t, "%s\"%s\": %d", b ? ", " : "", byte_text(b), b);
  put(&t, "%s}, \"merges\": [%s]}}", vocabulary ? vocabulary : "", merges ? merges : "");
  return t;
}

static mhk_tokenizer *parse_and_free(mhk_context *ctx, text t) {
  mhk_tokenizer *k = mhk_tokenizer_load_memory(ctx, t.data, t.n);
  free(t.data);
  return k;
}

static void check_ids(mhk_tokenizer *k, const char *source, int n, const int *want) {
  int32_t got[64];
  mhk_index count = mhk_encode(k, source, strlen(source), got, 64);
  int i = 0;
  while (i < n && i < count && got[i] == want[i]) i++;
  CHECK(count == n && i == n, "\"%s\" is %lld ids instead of %d; at %d %ld instead of %d", source, (long long)count, n,
        i, i < count ? (long)got[i] : -1L, i < n ? want[i] : -1);
}

/* UTF-8 of a character; returns its bytes */
static size_t put_character(char *out, uint32_t c) {
  size_t n = 0;
  if (c < 0x80)
    out[n++] = (char)c;
  else {
    if (c < 0x800)
      out[n++] = (char)(0xC0 | c >> 6);
    else {
      if (c < 0x10000)
        out[n++] = (char)(0xE0 | c >> 12);
      else {
        out[n++] = (char)(0xF0 | c >> 18);
        out[n++] = (char)(0x80 | (c >> 12 & 63));
      }
      out[n++] = (char)(0x80 | (c >> 6 & 63));
    }
    out[n++] = (char)(0x80 | (c & 63));
  }
  return n;
}

/* Every code point: a letter, a number, white space or something else? A vocabulary whose merges
   join a last byte with x, 1 or ! shows which of them stays in one word with the character. The
   checksum is of Hugging Face's classes, which are those of Unicode 16.0. */
TEST(classes) {
  static const char next[] = "x1!";
  mhk_context *ctx = mhk_create(NULL);
  text vocabulary = {NULL, 0, 0}, merges = {NULL, 0, 0};
  mhk_tokenizer *k;
  uint64_t hash = UINT64_C(0xCBF29CE484222325);
  long counts[4] = {0, 0, 0, 0};
  uint32_t c;
  int b, i;
  for (b = 0; b < 256; b++)
    for (i = 0; i < 3; i++) {
      put(&vocabulary, ", \"%s%c\": %d", byte_text(b), next[i], 256 + 3 * b + i);
      put(&merges, "%s[\"%s\", \"%c\"]", b || i ? ", " : "", byte_text(b), next[i]);
    }
  k = parse_and_free(ctx, make_tokenizer(vocabulary.data, merges.data, NULL, NULL, NULL, NULL));
  free(vocabulary.data);
  free(merges.data);
  REQUIRE_OK(ctx);
  for (c = 0; c < 0x110000; c++) {
    char source[8];
    size_t n = 0;
    int joined = 0, with = 0;
    if (c >= 0xD800 && c < 0xE000) continue;
    n = put_character(source, c);
    for (i = 0; i < 3; i++) {
      source[n] = next[i];
      if (mhk_encode(k, source, n + 1, NULL, 0) == (mhk_index)n) {
        joined++;
        with = i;
      }
    }
    /* 0 other, 1 letter, 2 number; a space goes with all, other white space with none */
    with = joined == 1 ? (with + 1) % 3 : 3;
    counts[with]++;
    hash = (hash ^ (uint64_t)with) * UINT64_C(0x100000001B3);
  }
  CHECK(counts[1] == 141028 && counts[2] == 1911 && counts[3] == 25, "%ld letters, %ld numbers, %ld spaces", counts[1],
        counts[2], counts[3]);
  CHECK(hash == UINT64_C(0x3E1EB78B22042D10), "the classes of some characters are wrong");
  mhk_destroy(ctx);
}

/* Words and merges, on a vocabulary where they are easy to see. */
TEST(words) {
  static const char vocabulary[] =
      ", \"ab\": 256, \"abc\": 257, \"bc\": 258, \"\\u0120a\": 259, \"'s\": 260, \"\\u0120\\u0120\": 261, \"s'\": 262, "
      "\"aa\": 263";
  static const char merges[] =
      "\"a b\", \"ab c\", [\"b\", \"c\"], \"\\u0120 a\", \"' s\", \"\\u0120 \\u0120\", \"s '\", \"a a\"";
  static const int abc[] = {257}, xbc[] = {'x', 258}, spaces[] = {261, 259}, two[] = {' ', '\n', 'a'},
                   s[] = {'a', 260, 260};
  static const int quote[] = {'!', '\'', 's'}, bad[] = {0xC3, 'a', 0xE2, 0x82, 'b'}, aaa[] = {263, 'a'},
                   last[] = {'a', 261};
  static const int first[] = {' ', 256}, none[] = {0}, all[] = {'x', 259, '!'};
  mhk_context *ctx = mhk_create(NULL);
  mhk_tokenizer *k = parse_and_free(ctx, make_tokenizer(vocabulary, merges, NULL, NULL, NULL, NULL)), *prefix, *whole,
                *ignore;
  REQUIRE_OK(ctx);
  check_ids(k, "", 0, none);
  check_ids(k, "abc", 1, abc);
  check_ids(k, "xbc", 2, xbc);
  check_ids(k, "   a", 2, spaces); /* the last of several spaces goes with the word */
  check_ids(k, " \na", 3, two);
  check_ids(k, "a's's", 3, s);
  check_ids(k, "!'s", 3, quote); /* the run of signs took the apostrophe */
  check_ids(k, "\xC3" "a\xE2\x82" "b", 5, bad);
  check_ids(k, "aaa", 2, aaa);
  check_ids(k, "a  ", 2, last);
  check_ids(k, "x a!", 3, all);
  prefix = parse_and_free(ctx, make_tokenizer(vocabulary, merges, NULL,
                                              "{\"type\": \"ByteLevel\", \"add_prefix_space\": true}", NULL, NULL));
  check_ids(prefix, "ab", 2, first); /* "ab" has the lower rank than " a" */
  whole = parse_and_free(
      ctx, make_tokenizer(vocabulary, merges, NULL, "{\"type\": \"ByteLevel\", \"use_regex\": false}", NULL, NULL));
  ignore = parse_and_free(ctx, make_tokenizer(", \"xyz\": 256", NULL, NULL, NULL, "\"ignore_merges\": true,", NULL));
  REQUIRE_OK(ctx);
  check_ids(whole, "!'s", 2, (const int[]){'!', 260});
  check_ids(ignore, "xyz xyz", 5, (const int[]){256, ' ', 'x', 'y', 'z'});
  mhk_destroy(ctx);
}

/* words follow each other without a gap, and their ids are those of the text */
static void check_words(mhk_tokenizer *k, const char *text, size_t n) {
  mhk_index want_n, got_n = 0, count;
  int32_t *want = encode(k, text, n, &want_n), *got = (int32_t *)malloc((n + 1) * sizeof *got);
  size_t at, length;
  for (at = 0; at < n; at += length, got_n += count) {
    length = mhk_tokenizer_word(k, text + at, n - at);
    REQUIRE(length > 0 && length <= n - at, "%d bytes of %d", (int)length, (int)(n - at));
    count = mhk_encode(k, text + at, length, got + got_n, (mhk_index)(n - at));
  }
  CHECK(got_n == want_n && !memcmp(got, want, (size_t)want_n * sizeof *got), "%lld ids of words, %lld of the text",
        (long long)got_n, (long long)want_n);
  free(want), free(got);
}

TEST(words_by_words) {
  static const char text[] = "I'll say: 'it''s  12 o\'clock',\n\n  we've\tgone \xC3\xA9t\xC3\xA9\xE2\x80\x83 x\xC3 ";
  static const size_t want[] = {1, 3, 4, 1, 2, 2, 2, 1, 1, 3, 2, 1, 5, 2, 3, 3, 3, 1, 4, 6, 3, 2, 1, 1};
  mhk_context *ctx = mhk_create(NULL);
  mhk_tokenizer *k = mhk_tokenizer_load(ctx, TINY);
  size_t at, n = 0;
  char *story = test_read_file("examples/story.txt", &n);
  at = 0;
  for (size_t i = 0; i < sizeof want / sizeof *want; at += want[i++])
    CHECK(mhk_tokenizer_word(k, text + at, sizeof text - 1 - at) == want[i], "word %d has %d bytes, not %d", (int)i,
          (int)mhk_tokenizer_word(k, text + at, sizeof text - 1 - at), (int)want[i]);
  CHECK(at == sizeof text - 1, "words of %d bytes, text of %d", (int)at, (int)sizeof text - 1);
  check_words(k, text, sizeof text - 1);
  if (story) check_words(k, story, n);
  free(story);
  CHECK(mhk_tokenizer_word(k, text, 0) == 0 && mhk_tokenizer_word(NULL, text, 3) == 0, "words of nothing");
  mhk_destroy(ctx);
}

/* Pre-tokenizers of two members, as JSON: a pattern, which JSON escapes once more, and ByteLevel
   with these settings. */
#define PAIR(first, settings) \
  "{\"type\": \"Sequence\", \"pretokenizers\": [" first ", {\"type\": \"ByteLevel\", \"trim_offsets\": true" settings \
    "}]}"
#define SPLIT(pattern) \
  PAIR("{\"type\": \"Split\", \"pattern\": {\"Regex\": \"" pattern \
         "\"}, \"behavior\": \"Isolated\", \"invert\": false}", \
       ", \"add_prefix_space\": false, \"use_regex\": false")
#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\\\p{L}+| ?\\\\p{N}+| ?[^\\\\s\\\\p{L}\\\\p{N}]+|\\\\s+(?!\\\\S)|\\\\s+"
#define QWEN2(numbers) \
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|" numbers \
  "| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"
#define SMOLLM2 PAIR("{\"type\": \"Digits\", \"individual_digits\": true}", ", \"add_prefix_space\": false")

/* Each pattern: a text with | between its words, and a checksum of the words of every text of up to
   four of 15 signs, both as Hugging Face's pre-tokenizers cut them. */
TEST(patterns) {
  static const struct pattern {
    const char *pre_tokenizer;
    uint64_t hash;
    const char *words;
  } patterns[] = {
      {SPLIT(GPT2), UINT64_C(0xFC6845D593F1159D),
       "it|'s| we|'|LL| don|'|T| '|\305\277x|'|Re| \t|\t|b|\302\240|c|\343\200\200| \344\275\240| 1234| "
       "5\342\205\247\302\275| | 6|!!!|\r\n\n| a| !?|\n | !|b| \n\n \r | x|\t|7|\t|!|  | (|ab|()|c| '"},
      {SPLIT(QWEN2("\\\\p{N}")), UINT64_C(0xE8B9335CEAF37BCF),
       "it|'s| we|'LL| don|'T| '|\305\277x|'Re| \t|\tb|\302\240c|\343\200\200| \344\275\240| |1|2|3|4| "
       "|5|\342\205\247|\302\275| | |6|!!!\r\n\n| a| !?\n| | !|b| \n\n \r| | x|\t|7|\t|!|  | (|ab|()|c| '"},
      {SPLIT(QWEN2("\\\\p{N}{1,3}")), UINT64_C(0x297EF254A9EE224B),
       "it|'s| we|'LL| don|'T| '|\305\277x|'Re| \t|\tb|\302\240c|\343\200\200| \344\275\240| |123|4| "
       "|5\342\205\247\302\275| | |6|!!!\r\n\n| a| !?\n| | !|b| \n\n \r| | x|\t|7|\t|!|  | (|ab|()|c| '"},
      {SMOLLM2, UINT64_C(0xDC5F404C95BE1E3D),
       "it|'s| we|'|LL| don|'|T| '|\305\277x|'|Re| \t|\t|b|\302\240|c|\343\200\200| \344\275\240| |1|2|3|4| "
       "|5|\342\205\247|\302\275|  |6|!!!|\r\n\n| a| !?|\n | !|b| \n\n \r | x|\t|7|\t|!|  | (|ab|()|c| '"}};
  static const char *const signs[] = {"a",  "S", "t",        "1", "\xD9\xA3", " ",        "\n",          "\r",
                                      "\t", "\xC2\xA0", "!", "'", "\xC5\xBF", "\xCC\x81", "\xE4\xBD\xA0"};
  mhk_context *ctx = mhk_create(NULL);
  size_t p, n, at, length;
  for (p = 0; p < sizeof patterns / sizeof *patterns; p++) {
    mhk_tokenizer *k = parse_and_free(ctx, make_tokenizer(NULL, NULL, NULL, patterns[p].pre_tokenizer, NULL, NULL));
    const char *words = patterns[p].words;
    char source[300];
    uint64_t hash = UINT64_C(0xCBF29CE484222325);
    long i, left, most = 15;
    REQUIRE_OK(ctx);
    for (n = 0; *words; words++)
      if (*words != '|') source[n++] = *words;
    words = patterns[p].words;
    for (at = 0; at < n; at += length, words += length + 1) {
      length = mhk_tokenizer_word(k, source + at, n - at);
      CHECK(length == strcspn(words, "|"), "pattern %d: the word at byte %d has %d bytes, not %d", (int)p, (int)at,
            (int)length, (int)strcspn(words, "|"));
      length = strcspn(words, "|");
    }
    for (; most <= 15 * 15 * 15 * 15; most *= 15)
      for (i = 0; i < most; i++) { /* the digits of i to base 15, the first sign in the highest */
        long place = most / 15;
        for (n = 0, left = i; place > 0; left %= place, place /= 15) {
          strcpy(source + n, signs[left / place]);
          n += strlen(source + n);
        }
        for (at = 0; at < n; at += length) {
          length = mhk_tokenizer_word(k, source + at, n - at);
          hash = (hash ^ length) * UINT64_C(0x100000001B3);
        }
        hash *= UINT64_C(0x100000001B3);
      }
    CHECK(hash == patterns[p].hash, "pattern %d cuts some text elsewhere", (int)p);
    check_round_trip(k, "a pattern", patterns[p].words, strlen(patterns[p].words));
  }
  mhk_destroy(ctx);
}

/* Parts as Qwen2 and Llama 3 ship them: NFC comes before words; a word that is a token is one, even
   if no merge makes it; special tokens stand between words. */
TEST(patterns_with_the_rest_of_a_tokenizer) {
  static const char added[] = "{\"id\": 300, \"content\": \"<|eot_id|>\", \"special\": true, \"normalized\": false}";
  mhk_context *ctx = mhk_create(NULL);
  mhk_tokenizer *qwen = parse_and_free(
      ctx, make_tokenizer(", \"\\u00c3\\u00a9\": 256, \"!\\u010a\": 257, \"12\": 258",
                          "\"\\u00c3 \\u00a9\", \"! \\u010a\", \"1 2\"", added, SPLIT(QWEN2("\\\\p{N}")), NULL,
                          "\"normalizer\": {\"type\": \"NFC\"},"));
  mhk_tokenizer *llama =
      parse_and_free(ctx, make_tokenizer(", \"123\": 256, \"'LL\": 257, \"\\u0120x\": 258", NULL, added,
                                         SPLIT(QWEN2("\\\\p{N}{1,3}")), "\"ignore_merges\": true,", NULL));
  REQUIRE_OK(ctx);
  check_ids(qwen, "e\xCC\x81!\n12", 4, (const int[]){256, 257, '1', '2'});
  check_ids(qwen, "!<|eot_id|>\n", 3, (const int[]){'!', 300, '\n'});
  check_ids(llama, "1234'LL x<|eot_id|>123", 6, (const int[]){256, '4', 257, 258, 300, 256});
  mhk_destroy(ctx);
}

TEST(added_tokens) {
#define ADDED(id, content, strip, normalized) \
  "{\"id\": " #id ", \"content\": \"" content "\", \"single_word\": false, \"lstrip\": " #strip ", \"rstrip\": " \
    #strip \
  ", \"normalized\": " #normalized ", \"special\": false}"
  static const char added[] = ADDED(300, "<m>", true, false) ", " ADDED(301, "aa", false, false) ", " ADDED(
      302, "aaaa", false, false) ", " ADDED(303, "aab", false, false) ", " ADDED(304, "x<", false,
                                                                                 true) ", " ADDED(305, "\\u00e9\\u00e9",
                                                                                                  false, true);
  mhk_context *ctx = mhk_create(NULL);
  mhk_tokenizer *k = parse_and_free(ctx, make_tokenizer(NULL, NULL, added, NULL, NULL, NULL)), *again;
  REQUIRE_OK(ctx);
  check_ids(k, "aaa", 2, (const int[]){301, 'a'});
  check_ids(k, "aaab", 3, (const int[]){301, 'a', 'b'}); /* leftmost first, then longest */
  check_ids(k, "aaaaab", 3, (const int[]){302, 'a', 'b'});
  check_ids(k, "baab", 2, (const int[]){'b', 303});
  check_ids(k, "x<m>", 2, (const int[]){'x', 300}); /* tokens that are not normalized are looked for first */
  check_ids(k, "x<y", 2, (const int[]){304, 'y'});
  check_ids(k, "c \n<m>\xE3\x80\x80 d", 3, (const int[]){'c', 300, 'd'});
  check_ids(k, "<m> <m>", 2, (const int[]){300, 300});
  check_ids(k, "a <m>   <m>b", 4, (const int[]){'a', 300, 300, 'b'});
  check_ids(k, "\xC3\xA9\xC3\xA9", 1, (const int[]){305});
  again = parse_and_free(
      ctx,
      make_tokenizer(NULL, NULL, ADDED(300, "<m>", true, false) ", " ADDED(301, "  ", false, false), NULL, NULL, NULL));
  /* the space belongs to the first token and is the second one */
  check_ids(again, "<m>  a", 3, (const int[]){300, 301, 'a'});
  check_round_trip(k, "added", "aaaab x< \xC3\xA9\xC3\xA9", 13);
  CHECK(mhk_tokenizer_id(k, "x<") == 304 && mhk_tokenizer_id(k, "aa") == 301 && mhk_tokenizer_id(k, "x") == -1,
        "ids of added tokens");
  CHECK(mhk_tokenizer_size(k) == 306 && mhk_tokenizer_end(k) == -1 && !mhk_token_bytes(k, 280, NULL), "size %d",
        mhk_tokenizer_size(k));
  mhk_destroy(ctx);
}

#define NFC "\"normalizer\": {\"type\": \"NFC\"},"

/* FNV-1a over what text comes back as */
static uint64_t hash_back(mhk_tokenizer *k, const char *source, size_t n, uint64_t hash) {
  int32_t ids[256];
  char back[256];
  const mhk_index count = mhk_encode(k, source, n, ids, 256), bytes = mhk_decode(k, ids, count, back, sizeof back);
  mhk_index i;
  for (i = 0; i < bytes; i++) hash = (hash ^ (unsigned char)back[i]) * UINT64_C(0x100000001B3);
  return hash;
}

/* The checksums are of Python 3.6's unicodedata.normalize("NFC"), whose Unicode 9.0 is that of
   Hugging Face's tokenizers. */
TEST(normalization_of_every_code_point_and_of_sequences) {
  static const uint32_t ranges[16][2] = {{0x300, 0x70},   {0x340, 0x20},    {0x1100, 0x100}, {0xAC00, 0x40},
                                         {0xC0, 0xC0},    {0x900, 0x500},   {0xF40, 0x90},   {0x1F00, 0x100},
                                         {0x1E00, 0xF6},  {0x3040, 0x60},   {0xF900, 0x200}, {0x11080, 0x60},
                                         {0x1D150, 0x80}, {0x2F800, 0x200}, {0x41, 0x40},    {0x591, 0x30}};
  const uint64_t start = UINT64_C(0xCBF29CE484222325);
  mhk_context *ctx = mhk_create(NULL);
  mhk_tokenizer *k = parse_and_free(ctx, make_tokenizer(NULL, NULL, NULL, NULL, NULL, NFC));
  uint64_t hash = start, random = 1;
  char source[64];
  size_t n;
  uint32_t c;
  int round;
  REQUIRE_OK(ctx);
  for (c = 0; c < 0x110000; c++) {
    if (c >= 0xD800 && c < 0xE000) continue;
    source[0] = 'x';
    n = 1 + put_character(source + 1, c);
    source[n++] = 'a';
    hash = hash_back(k, source, n, hash);
  }
  CHECK(hash == UINT64_C(0x9F28CD76A3256244), "some character is normalized wrongly");
  hash = start;
  for (round = 0; round < 20000; round++) {
    uint64_t left = 1 + test_random(&random) % 8;
    for (n = 0; left > 0; left--) {
      const uint32_t *range = ranges[test_random(&random) % 16];
      n += put_character(source + n, range[0] + (uint32_t)(test_random(&random) % range[1]));
    }
    hash = (hash_back(k, source, n, hash) ^ '\n') * UINT64_C(0x100000001B3);
  }
  CHECK(hash == UINT64_C(0xA199DEC6F3862DC9), "some sequence is normalized wrongly");
  mhk_destroy(ctx);
}

#define TOKEN(id, content, flags) "{\"id\": " #id ", \"content\": \"" content "\"" flags "}"
#define NORMALIZED ", \"normalized\": true"

/* Added tokens beside a normalizer: those that are normalized are looked for in normalized text,
   the others in the text as it is. */
TEST(added_tokens_and_normalization) {
  static const char added[] = TOKEN(300, "e\\u0301e\\u0301", NORMALIZED) ", " TOKEN(301, "o\\u0301", "") ", " TOKEN(
      302, "   ", NORMALIZED) ", " TOKEN(303, "  ", NORMALIZED) ", " TOKEN(304, "<m>",
                                                                           NORMALIZED
                                                                           ", \"lstrip\": true, \"rstrip\": true");
  mhk_context *ctx = mhk_create(NULL);
  mhk_tokenizer *k =
      parse_and_free(ctx, make_tokenizer(", \"\\u00c3\\u00a9\": 256", "\"\\u00c3 \\u00a9\"", added, NULL, NULL, NFC));
  REQUIRE_OK(ctx);
  check_ids(k, "e\xCC\x81", 1, (const int[]){256});
  check_ids(k, "\xC3\xA9", 1, (const int[]){256});
  check_ids(k, "\xC3\xA9" "e\xCC\x81", 1, (const int[]){300});
  /* a token of raw text, and its like in normalized text */
  check_ids(k, "o\xCC\x81\xC3\xB3", 3, (const int[]){301, 0xC3, 0xB3});
  check_ids(k, "e\xCC\x81     x", 4, (const int[]){256, 302, 303, 'x'});
  check_ids(k, "e\xCC\x81 <m> x", 3, (const int[]){256, 304, 'x'});
  check_ids(k, "\xE1\x84\x92\xE1\x85\xA1\xE1\x86\xAB\xFF\xCC\x81", 6,
            (const int[]){0xED, 0x95, 0x9C, 0xFF, 0xCC, 0x81});
  CHECK(mhk_tokenizer_id(k,
                         "e\xCC\x81"
                         "e\xCC\x81") == 300 &&
            mhk_tokenizer_id(k, "\xC3\xA9\xC3\xA9") == -1,
        "ids of added tokens");
  mhk_destroy(ctx);
}

/* Long texts are normalized a part at a time: where they are cut changes nothing, and the time
   stays linear. */
TEST(normalization_of_long_texts) {
  static const char *const pieces[] = {"e\xCC\x81",
                                       " ",
                                       "  ",
                                       "\n",
                                       "the",
                                       "<m>",
                                       "a b",
                                       "\xE3\x80\x80",
                                       "a\xCC\xA7\xCC\x81",
                                       "1",
                                       "'s",
                                       "\xEA\xB0\x80\xE1\x86\xA8"};
  static const char *const added[] = {
      TOKEN(300, "  ", NORMALIZED) ", " TOKEN(301, "<m>", NORMALIZED ", \"lstrip\": true"),
      TOKEN(301, "<m>", NORMALIZED ", \"rstrip\": true"), TOKEN(302, "b a", NORMALIZED)};
  mhk_context *ctx = mhk_create(NULL);
  const size_t room = 30000;
  char *source = (char *)malloc(room), *normal = (char *)malloc(room), *big = (char *)malloc(1200001);
  mhk_tokenizer *k = NULL;
  uint64_t random = 9;
  mhk_index count, other, i;
  int32_t *ids, *want;
  int round, kind;
  for (kind = 0; kind < 3; kind++) {
    /* bytes of normalized text */
    mhk_tokenizer *back = parse_and_free(ctx, make_tokenizer(NULL, NULL, NULL, NULL, NULL, NFC));
    k = parse_and_free(ctx, make_tokenizer(", \"th\": 256, \"the\": 257, \"\\u0120\\u0120\": 258",
                                           "\"t h\", \"th e\", \"\\u0120 \\u0120\"", added[kind], NULL, NULL, NFC));
    REQUIRE_OK(ctx);
    for (round = 0; round < 40; round++) {
      size_t n = 0, length;
      while (n + 20 < (round % 2 ? 9000u : 700u)) {
        const char *piece = pieces[test_random(&random) % (sizeof pieces / sizeof *pieces)];
        memcpy(source + n, piece, strlen(piece));
        n += strlen(piece);
      }
      ids = encode(back, source, n, &count);
      length = (size_t)mhk_decode(back, ids, count, normal, room);
      free(ids);
      ids = encode(k, source, n, &count);
      want = encode(k, normal, length, &other);
      for (i = 0; i < count && i < other && ids[i] == want[i]; i++) continue;
      CHECK(count == other && i == count, "kind %d, round %d: %lld and %lld ids, the first %lld the same", kind, round,
            (long long)count, (long long)other, (long long)i);
      free(ids);
      free(want);
    }
  }
  /* no place to cut, and then a character without end */
  for (i = 0; i < 400000; i++) memcpy(big + 3 * i, "e\xCC\x81", 3);
  CHECK(mhk_encode(k, big, 1200000, NULL, 0) == 800000, "400,000 accented letters");
  big[0] = 'a';
  for (i = 0; i < 300000; i++) memcpy(big + 1 + 4 * i, "\xCC\x81\xCC\xA7", 4);
  CHECK(mhk_encode(k, big, 1200001, NULL, 0) == 1200001 - 1, "a letter with 600,000 accents");
  memset(big, ' ', 1000000); /* each of them may take all that follow */
  k = parse_and_free(
      ctx, make_tokenizer(NULL, NULL, TOKEN(300, "  ", ", \"lstrip\": true, \"rstrip\": true"), NULL, NULL, NULL));
  CHECK(mhk_encode(k, big, 1000000, NULL, 0) == 500000, "half a million pairs of spaces");
  CHECK_OK(ctx);
  free(source);
  free(normal);
  free(big);
  mhk_destroy(ctx);
}

static int warnings;
static char warning[1200];
static void count_warning(void *user, mhk_log_level level, const char *text) {
  (void)user;
  if (level != MHK_LOG_WARNING) return;
  warnings++;
  snprintf(warning, sizeof warning, "%s", text);
}

/* What Hugging Face's tokenizers make of added tokens that a tool got wrong. */
TEST(odd_added_tokens) {
  mhk_context_desc desc;
  mhk_context *ctx;
  mhk_tokenizer *k;
  memset(&desc, 0, sizeof desc);
  desc.log = count_warning;
  ctx = mhk_create(&desc);
  /* empty: not there */
  k = parse_and_free(ctx, make_tokenizer(NULL, NULL, TOKEN(256, "", "") ", " TOKEN(256, "<x>", ""), NULL, NULL, NULL));
  check_ids(k, "a<x>", 2, (const int[]){'a', 256});
  /* twice */
  k = parse_and_free(ctx,
                     make_tokenizer(NULL, NULL, TOKEN(256, "<x>", "") ", " TOKEN(256, "<x>", ""), NULL, NULL, NULL));
  check_ids(k, "a<x>", 2, (const int[]){'a', 256});
  k = parse_and_free(
      ctx, make_tokenizer(NULL, NULL,
                          TOKEN(256, "<x>", "") ", " TOKEN(257, "<x>", ", \"lstrip\": true") ", " TOKEN(257, "<y>", ""),
                          NULL, NULL, NULL));
  check_ids(k, "a <x><y>", 3, (const int[]){'a', 256, 257}); /* the first one's id, the last one's flags */
  k = parse_and_free(ctx,
                     make_tokenizer(NULL, NULL, TOKEN(97, "a", "") ", " TOKEN(97, "a", NORMALIZED), NULL, NULL, NULL));
  check_ids(k, "ba", 2, (const int[]){'b', 'a'});
  k = parse_and_free(ctx, make_tokenizer(NULL, NULL, TOKEN(256, "a\\u0000b", ""), NULL, NULL, NULL));
  CHECK(k && mhk_encode(k, "xa\0b", 4, NULL, 0) == 2, "an added token with a zero character");
  REQUIRE_OK(ctx);
  CHECK(warnings == 0, "\"%s\"", warning);
  k = parse_and_free(ctx, make_tokenizer(", \"hi\": 256", "\"h i\"", TOKEN(257, "hi", "") ", " TOKEN(257, "<x>", ""),
                                         NULL, NULL, NULL));
  check_ids(k, "a<x>hi", 3, (const int[]){'a', 257, 256}); /* the vocabulary's id counts */
  CHECK(warnings == 1 && strstr(warning, "\"hi\" has id 257") && strstr(warning, "becomes 256"),
        "%d warnings, the last \"%s\"", warnings, warning);
  k = parse_and_free(ctx, make_tokenizer(NULL, NULL, TOKEN(5, "<x>", "") ", " TOKEN(256, "<y>", ""), NULL, NULL, NULL));
  check_ids(k, "a<x><y>", 3, (const int[]){'a', 256, 257}); /* an id that is taken */
  CHECK(warnings == 3 && mhk_tokenizer_size(k) == 258, "%d warnings, %d tokens", warnings, mhk_tokenizer_size(k));
  CHECK_OK(ctx);
  mhk_destroy(ctx);
}

/* Text that is no UTF-8 is refused or told, by the share of what is wrong; from files and from
   memory. */
TEST(training_text_is_utf8) {
  static const char good[] = "Once upon a time \xE2\x82\xAC <|endoftext|> there was\r\na mouse.";
  const char *path = test_path("text.txt");
  mhk_context_desc desc;
  mhk_context *ctx;
  mhk_tokenizer *k;
  mhk_corpus *a, *b;
  mhk_corpus_desc d;
  const int32_t *x, *y;
  mhk_index n;
  char bytes[4000];
  const char *texts[1] = {bytes}, *const files[1] = {path};
  size_t lengths[1], i;
  memset(&desc, 0, sizeof desc);
  desc.log = count_warning;
  ctx = mhk_create(&desc);
  k = mhk_tokenizer_load(ctx, TINY);
  memset(&d, 0, sizeof d);
  d.n_files = 1;
  d.files = files;
  warnings = 0;
  test_write_file(path, good, sizeof good - 1);
  a = mhk_corpus_load(ctx, k, &d);
  memcpy(bytes, "\xEF\xBB\xBF", 3); /* a byte order mark, which is no text */
  memcpy(bytes + 3, good, sizeof good);
  d.texts = texts;
  b = mhk_corpus_load(ctx, k, &d);
  REQUIRE_OK(ctx);
  n = mhk_corpus_tokens(a, &x);
  CHECK(n > 10 && n == mhk_corpus_tokens(b, &y) && !memcmp(x, y, (size_t)n * sizeof *x),
        "from memory: %d tokens instead of %d", (int)mhk_corpus_tokens(b, NULL), (int)n);
  CHECK(warnings == 0, "\"%s\"", warning);
  d.lengths = lengths;
  lengths[0] = sizeof bytes;
  memset(bytes, 'a', sizeof bytes);
  bytes[2100] = '\xE9';
  CHECK(mhk_corpus_load(ctx, k, &d) != NULL && warnings == 1 && strstr(warning, "text.txt") &&
            strstr(warning, "byte 2100") && strstr(warning, "1 of its 4000 bytes"),
        "%d warnings, the last \"%s\"", warnings, warning);
  CHECK_OK(ctx);
  for (i = 0; i < sizeof bytes; i += 50) bytes[i] = '\xE9';
  CHECK(!mhk_corpus_load(ctx, k, &d), "Latin-1");
  CHECK_FAILS(ctx, MHK_ERROR_FORMAT,
              "text.txt is not UTF-8 text: 2.0 % of its bytes are zero or invalid, the first at byte 0: "
              "it may be Latin-1");
  for (i = 0; i < sizeof bytes; i++) bytes[i] = (char)(i % 2 ? 0 : 'a');
  CHECK(!mhk_corpus_load(ctx, k, &d), "UTF-16");
  CHECK_FAILS(ctx, MHK_ERROR_FORMAT, "the first at byte 1: it looks like UTF-16");
  memcpy(bytes, "\x1F\x8B\x08", 3);
  for (i = 3; i < sizeof bytes; i++) bytes[i] = (char)(unsigned char)(i * i * 37 >> 3);
  CHECK(!mhk_corpus_load(ctx, k, &d), "gzip");
  CHECK_FAILS(ctx, MHK_ERROR_FORMAT, "gzip");
  memset(bytes, 0, sizeof bytes);
  CHECK(!mhk_corpus_load(ctx, k, &d), "zeros");
  CHECK_FAILS(ctx, MHK_ERROR_FORMAT, "nothing but zeros");
  mhk_destroy(ctx);
}

/* A folder with a tokenizer.json of the 256 bytes and three added tokens, and a
   tokenizer_config.json; NULL: none. */
static mhk_tokenizer *load_configured(mhk_context *ctx, const char *root, const char *config) {
  static const char added[] = TOKEN(256, "<|endoftext|>", "") ", " TOKEN(257, "<s>", "") ", " TOKEN(258, "</s>", "");
  const char *path = test_path("configured/tokenizer.json");
  char folder[512];
  mhk_tokenizer *k, *in_memory;
  mhk_tokenizer_desc desc;
  int warned;
  text t = make_tokenizer(", \"\\u0120a\": 259", "\"\\u0120 a\"", added, NULL, NULL, root);
  snprintf(folder, sizeof folder, "%.*s", (int)(strlen(path) - strlen("/tokenizer.json")), path);
  test_make_folder(folder);
  CHECK(test_write_file(path, t.data, t.n), "cannot write %s", path);
  remove(test_path("configured/tokenizer_config.json"));
  if (config)
    CHECK(test_write_file(test_path("configured/tokenizer_config.json"), config, strlen(config)),
          "cannot write a tokenizer_config.json");
  warnings = 0;
  k = mhk_tokenizer_load(ctx, folder);
  warned = warnings;
  if (k) { /* and the same from memory */
    memset(&desc, 0, sizeof desc);
    desc.json = t.data;
    desc.length = t.n;
    desc.config = config;
    desc.config_length = config ? strlen(config) : 0;
    in_memory = mhk_tokenizer_create(ctx, &desc);
    CHECK(in_memory && mhk_tokenizer_start(k) == mhk_tokenizer_start(in_memory) &&
              mhk_tokenizer_end(k) == mhk_tokenizer_end(in_memory) && warnings == 2 * warned &&
              mhk_encode_prompt(k, "x", 1, NULL, 0) == mhk_encode_prompt(in_memory, "x", 1, NULL, 0),
          "other tokens from memory: %s", mhk_message(ctx));
    mhk_tokenizer_destroy(in_memory);
    desc.length = 1;
    desc.name = "half a file";
    CHECK(!mhk_tokenizer_create(ctx, &desc), "a bracket");
    CHECK_FAILS(ctx, MHK_ERROR_FORMAT, "half a file, line 1, byte 1");
  }
  warnings = warned;
  free(t.data);
  return k;
}

#define TEMPLATE(before, after) \
  "\"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": [" before \
    "{\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}" after \
  "], \"pair\": [], \"special_tokens\": {}},"
#define SPECIAL(token) "{\"SpecialToken\": {\"id\": \"" token "\", \"type_id\": 0}}"

/* Which tokens start and end a text, and whether prompts get the first. */
TEST(start_and_end_tokens) {
  static const struct tokens {
    const char *root, *config;
    int start, end, prompt, warnings; /* prompt: ids of "x" with what goes before it */
  } tokens[] = {
      {NULL, NULL, 256, 256, 2, 0},
      {NULL, "{\"eos_token\": \"</s>\"}", 256, 258, 2, 0},
      {NULL, "{\"eos_token\": {\"content\": \"</s>\", \"lstrip\": false}, \"bos_token\": {\"content\": \"<s>\"}}", 257,
       258, 2, 0},
      {NULL, "{\"eos_token\": null, \"bos_token\": null, \"add_bos_token\": null}", 256, 256, 2, 0},
      {NULL, "{\"eos_token\": \"a\"}", 256, 'a', 2, 0}, /* of the vocabulary, but no added one */
      {NULL, "{\"eos_token\": \"<no>\"}", 256, 256, 2, 1},
      {NULL, "{\"bos_token\": \"<s>\", \"add_bos_token\": false}", 257, 256, 1, 0},
      {NULL, "{\"bos_token\": \"<s>\", \"add_bos_token\": true, \"tokenizer_class\": \"GPT2Tokenizer\"}", 257, 256, 2,
       0},
      {NULL, "{\"tokenizer_class\": \"GPT2Tokenizer\"}", 256, 256, 1, 0}, /* these put none */
      {NULL, "{\"tokenizer_class\": \"CodeGenTokenizer\"}", 256, 256, 1, 0},
      /* but a space, here */
      {NULL, "{\"tokenizer_class\": \"GPTNeoXTokenizerFast\", \"add_prefix_space\": true}", 256, 256, 2, 0},
      {NULL, "{\"tokenizer_class\": \"TokenizersBackend\"}", 256, 256, 2, 0},
      {TEMPLATE(SPECIAL("<s>") ", ", ""), NULL, 257, 256, 2, 0},
      {TEMPLATE("", ""), NULL, 256, 256, 1, 0},
      {TEMPLATE("", ", " SPECIAL("</s>")), NULL, 256, 256, 1, 1},
      {TEMPLATE(SPECIAL("<s>") ", " SPECIAL("</s>") ", ", ""), NULL, 257, 256, 2, 1},
      {"\"post_processor\": {\"type\": \"ByteLevel\"},", NULL, 256, 256, 2, 0},
      {"\"post_processor\": {\"type\": \"BertProcessing\", \"sep\": [\"</s>\", 258], \"cls\": [\"<s>\", 257]},", NULL,
       256, 256, 2, 1},
      {TEMPLATE(SPECIAL("<s>") ", ", ""), "{\"bos_token\": \"<|endoftext|>\", \"tokenizer_class\": \"GPT2Tokenizer\"}",
       257, 256, 2, 0},
  };
  mhk_context_desc desc;
  mhk_context *ctx;
  int i;
  memset(&desc, 0, sizeof desc);
  desc.log = count_warning;
  ctx = mhk_create(&desc);
  for (i = 0; i < (int)(sizeof tokens / sizeof *tokens); i++) {
    const struct tokens *w = tokens + i;
    mhk_tokenizer *k = load_configured(ctx, w->root, w->config);
    REQUIRE_OK(ctx);
    CHECK(mhk_tokenizer_start(k) == w->start && mhk_tokenizer_end(k) == w->end,
          "case %d: texts start with %d and end with %d", i, (int)mhk_tokenizer_start(k), (int)mhk_tokenizer_end(k));
    CHECK(mhk_encode_prompt(k, "x", 1, NULL, 0) == w->prompt, "case %d: %d ids", i,
          (int)mhk_encode_prompt(k, "x", 1, NULL, 0));
    CHECK(warnings == w->warnings, "case %d: %d warnings, the last \"%s\"", i, warnings, warnings ? warning : "");
    mhk_tokenizer_destroy(k);
  }
  CHECK(!load_configured(ctx, NULL, "[]"), "a tokenizer_config.json that is a list");
  CHECK_FAILS(ctx, MHK_ERROR_FORMAT, "tokenizer_config.json must be");
  CHECK(!load_configured(ctx, NULL, "{\"add_bos_token\": 1}"), "a flag that is a number");
  CHECK_FAILS(ctx, MHK_ERROR_FORMAT, "add_bos_token");
  CHECK(!load_configured(ctx, NULL, "{\"eos_token\": 1}"), "a token that is a number");
  CHECK_FAILS(ctx, MHK_ERROR_FORMAT, "eos_token");
  mhk_destroy(ctx);
}

/* They go with the model: into a folder, into one file, into a copy. */
TEST(start_and_end_tokens_are_saved) {
  static const char config[] = "{\"bos_token\": \"<s>\", \"eos_token\": \"</s>\", \"add_bos_token\": false}";
  mhk_context *ctx = mhk_create(NULL);
  mhk_model *m = mhk_load(ctx, TINY);
  const char *one = test_path("configured.safetensors");
  char folder[512];
  mhk_model *again[3];
  int i;
  snprintf(folder, sizeof folder, "%.*s-folder", (int)(strlen(one) - strlen(".safetensors")), one);
  mhk_model_set_tokenizer(m, load_configured(ctx, NULL, config));
  mhk_save(m, one, MHK_F32);
  mhk_save(m, folder, MHK_F32);
  again[0] = mhk_load(ctx, one);
  again[1] = mhk_load(ctx, folder);
  again[2] = mhk_quantize(m, NULL);
  REQUIRE_OK(ctx);
  for (i = 0; i < 3; i++) {
    mhk_tokenizer *k = mhk_model_tokenizer(again[i]);
    CHECK(mhk_tokenizer_start(k) == 257 && mhk_tokenizer_end(k) == 258 && mhk_encode_prompt(k, "x", 1, NULL, 0) == 1,
          "way %d: texts start with %d and end with %d", i, (int)mhk_tokenizer_start(k), (int)mhk_tokenizer_end(k));
  }
  mhk_destroy(ctx);
}

/* Every key of the two files that Hugging Face's libraries write or read, and what becomes of it: a
   difference in ids, a warning, an error, or nothing since it changes no id (test_random_text.py
   holds the list against the libraries). The value is one that asks for something. */
enum { HONOURED, WARNED, REFUSED, WITHOUT_EFFECT };
static const struct key {
  const char *key, *value;
  int fate;
} tokenizer_keys[] = {
    {"version", "\"2.0\"", REFUSED},
    {"truncation", "{\"direction\": \"Right\", \"max_length\": 2, \"strategy\": \"LongestFirst\", \"stride\": 0}",
     WITHOUT_EFFECT},
    {"padding",
     "{\"strategy\": {\"Fixed\": 9}, \"direction\": \"Right\", \"pad_to_multiple_of\": null, \"pad_id\": 0, "
     "\"pad_type_id\": 0, \"pad_token\": \"a\"}",
     WITHOUT_EFFECT},
    {"added_tokens", "[{\"id\": 300, \"content\": \"hi\"}]", HONOURED},
    {"normalizer", "{\"type\": \"NFC\"}", HONOURED},
    {"normalizer", "{\"type\": \"Lowercase\"}", REFUSED},
    {"normalizer", "{\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"NFC\"}, {\"type\": \"NFD\"}]}", REFUSED},
    {"pre_tokenizer", "{\"type\": \"ByteLevel\", \"add_prefix_space\": true}", HONOURED},
    {"pre_tokenizer", "{\"type\": \"Metaspace\"}", REFUSED},
    {"post_processor", "{\"type\": \"RobertaProcessing\"}", WARNED},
    {"decoder", "{\"type\": \"WordPiece\"}", REFUSED},
    {"model.type", "\"WordPiece\"", REFUSED},
    {"model.dropout", "0.5", REFUSED},
    {"model.unk_token", "\"a\"", WITHOUT_EFFECT}, /* there is a token for each byte */
    {"model.continuing_subword_prefix", "\"##\"", REFUSED},
    {"model.end_of_word_suffix", "\"</w>\"", REFUSED},
    {"model.fuse_unk", "true", WITHOUT_EFFECT},
    {"model.byte_fallback", "true", REFUSED},
    {"model.ignore_merges", "true", HONOURED},
    {"model.vocab", "[]", REFUSED},
    {"model.merges", "{}", REFUSED},
    {"added_tokens.id", "\"x\"", REFUSED},
    {"added_tokens.content", "3", REFUSED},
    {"added_tokens.single_word", "true", REFUSED},
    {"added_tokens.lstrip", "true", HONOURED},
    {"added_tokens.rstrip", "true", HONOURED},
    /* honoured where there is a normalizer: added_tokens_and_normalization */
    {"added_tokens.normalized", "true", WITHOUT_EFFECT},
    /* of what decoding leaves out when asked, which it is not here */
    {"added_tokens.special", "true", WITHOUT_EFFECT},
    {"config.bos_token", "\"<|nothing|>\"", WARNED},
    {"config.eos_token", "\"<|nothing|>\"", WARNED},
    {"config.add_bos_token", "false", HONOURED},
    {"config.add_eos_token", "true", WARNED},
    /* honoured with the classes that are made anew: start_and_end_tokens */
    {"config.add_prefix_space", "true", WITHOUT_EFFECT},
    {"config.tokenizer_class", "\"GPT2Tokenizer\"", HONOURED},
    {"config.added_tokens_decoder", "{\"300\": {\"content\": \"<|new|>\"}}", WARNED},
    {"config.clean_up_tokenization_spaces", "true", WARNED},
    {"config.split_special_tokens", "true", WARNED},
    {"config.unk_token", "\"a\"", WITHOUT_EFFECT},
    {"config.pad_token", "\"a\"", WITHOUT_EFFECT},
    {"config.sep_token", "\"a\"", WITHOUT_EFFECT},
    {"config.cls_token", "\"a\"", WITHOUT_EFFECT},
    {"config.mask_token", "\"a\"", WITHOUT_EFFECT},
    {"config.extra_special_tokens", "[\"<|new|>\"]", WARNED},
    {"config.additional_special_tokens", "[\"<|new|>\"]", WARNED},
    {"config.model_specific_special_tokens", "{}", WITHOUT_EFFECT},
    {"config.model_max_length", "2", WITHOUT_EFFECT}, /* there it is a warning only */
    {"config.model_input_names", "[\"input_ids\"]", WITHOUT_EFFECT},
    {"config.return_token_type_ids", "true", WITHOUT_EFFECT},
    {"config.trim_offsets", "false", WITHOUT_EFFECT},
    {"config.errors", "\"strict\"", WITHOUT_EFFECT}, /* of decoding; U+FFFD here */
    {"config.padding_side", "\"left\"", WITHOUT_EFFECT},
    {"config.truncation_side", "\"left\"", WITHOUT_EFFECT},
    {"config.chat_template", "\"{{ messages }}\"", WITHOUT_EFFECT}, /* prompts are taken as they are */
    {"config.backend", "\"tokenizers\"", WITHOUT_EFFECT},
    {"config.is_local", "true", WITHOUT_EFFECT},
    {"config.name_or_path", "\"x\"", WITHOUT_EFFECT},
    {"config.chat_control_tokens", "[\"<|new|>\"]", WITHOUT_EFFECT},
    {"config.files_loaded", "[]", WITHOUT_EFFECT},
    {"config.max_len", "2", WITHOUT_EFFECT},
    {"config.processor_class", "\"x\"", WITHOUT_EFFECT},
    {"config.response_schema", "{}", WITHOUT_EFFECT},
    {"config.response_template", "\"x\"", WITHOUT_EFFECT},
    {"config.verbose", "true", WITHOUT_EFFECT},
};

/* ids and more of a tokenizer with one key; -1: refused */
static long key_marks(mhk_context *ctx, const struct key *x) {
  static const char source[] = "abc hi <q> e\xCC\x81 ab";
  int32_t ids[64];
  text t = {NULL, 0, 0};
  const char *key = x ? x->key : "", *value = x ? x->value : "";
  const int in_model = !strncmp(key, "model.", 6), in_added = !strncmp(key, "added_tokens.", 13),
            in_config = !strncmp(key, "config.", 7);
  mhk_tokenizer *k;
  mhk_index n, i;
  long mark;
  int b;
  put(&t, "{");
  if (x && !in_model && !in_added && !in_config) put(&t, "\"%s\": %s, ", key, value);
  if (strcmp(key, "pre_tokenizer"))
    put(&t, "\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false}, ");
  if (strcmp(key, "added_tokens")) {
    put(&t, "\"added_tokens\": [{");
    if (in_added) put(&t, "\"%s\": %s, ", key + 13, value);
    if (strcmp(key, "added_tokens.id")) put(&t, "\"id\": 256, ");
    if (strcmp(key, "added_tokens.content")) put(&t, "\"content\": \"<q>\", ");
    put(&t, "\"more\": 0}, {\"id\": 257, \"content\": \"<|endoftext|>\"}], ");
  }
  put(&t, "\"model\": {");
  if (in_model) put(&t, "\"%s\": %s, ", key + 6, value);
  if (strcmp(key, "model.merges")) put(&t, "\"merges\": [\"b c\", \"a b\", \"ab c\"], ");
  if (strcmp(key, "model.vocab")) {
    put(&t, "\"vocab\": {\"bc\": 258, \"ab\": 259, \"abc\": 260");
    for (b = 0; b < 256; b++) put(&t, ", \"%s\": %d", byte_text(b), b);
    put(&t, "}");
  } else
    put(&t, "\"unk_token\": null");
  put(&t, "}}");
  test_write_file(test_path("configured/tokenizer.json"), t.data, t.n);
  free(t.data);
  t.data = NULL;
  t.n = t.room = 0;
  put(&t, in_config ? "{\"%s\": %s}" : "{}", key + 7, value);
  test_write_file(test_path("configured/tokenizer_config.json"), t.data, t.n);
  free(t.data);
  warnings = 0;
  k = mhk_tokenizer_load(ctx, test_path("configured/tokenizer.json"));
  if (!k) return -1;
  n = mhk_encode_prompt(k, source, sizeof source - 1, ids, 64);
  for (mark = 17 * mhk_tokenizer_start(k) + mhk_tokenizer_end(k), i = 0; i < n; i++)
    mark = (mark * 31 + ids[i]) % 1000003;
  mhk_tokenizer_destroy(k);
  return mark;
}

TEST(every_key_is_honoured_or_named) {
  mhk_context_desc desc;
  mhk_context *ctx;
  long plain;
  int i;
  memset(&desc, 0, sizeof desc);
  desc.log = count_warning;
  ctx = mhk_create(&desc);
  mhk_tokenizer_destroy(load_configured(ctx, NULL, NULL)); /* makes the folder */
  plain = key_marks(ctx, NULL);
  REQUIRE_OK(ctx);
  for (i = 0; i < (int)(sizeof tokenizer_keys / sizeof *tokenizer_keys); i++) {
    const struct key *x = tokenizer_keys + i;
    const char *name = strrchr(x->key, '.') ? strrchr(x->key, '.') + 1 : x->key;
    const long mark = key_marks(ctx, x);
    CHECK((mark == -1) == (x->fate == REFUSED), "%s %s: %s", x->key, x->value, mhk_message(ctx));
    if (mark == -1) {
      if (strcmp(name, "type"))
        CHECK(strstr(mhk_message(ctx), name), "%s: \"%s\" does not name it", x->key, mhk_message(ctx));
      mhk_clear_error(ctx);
      continue;
    }
    CHECK((warnings > 0) == (x->fate == WARNED), "%s: %d warnings", x->key, warnings);
    if (warnings) CHECK(strstr(warning, name), "%s: \"%s\" does not name it", x->key, warning);
    CHECK((mark != plain) == (x->fate == HONOURED), "%s %s %s", x->key, x->value,
          mark != plain ? "changes ids" : "changes nothing");
  }
  mhk_destroy(ctx);
}

/* vocab.json with merges.txt and added_tokens.json, encoder.json with vocab.bpe: made from the
   bundled tokenizer.json. */
/* the tiny tokenizer and the files of the old layouts with the same tokens */
typedef struct old_layout {
  mhk_context *ctx;
  mhk_tokenizer *k;
  json *file;
  char *data, folder[512];
  const json *vocabulary; /* of file */
  text merges;
  const char *vocabulary_path, *merges_path, *added_path;
} old_layout;

static const char source[] = "The little rabbit    said: <|endoftext|>it's \xE2\x82\xAC 5.\n\n  And\tthen?   ";

static int old_layout_open(old_layout *o) {
  const json *merge;
  size_t n = 0;
  memset(o, 0, sizeof *o);
  o->ctx = mhk_create(NULL);
  o->k = mhk_tokenizer_load(o->ctx, TINY);
  o->data = test_read_file(TINY "/tokenizer.json", &n);
  o->vocabulary_path = test_path("vocab.json");
  o->merges_path = test_path("merges.txt");
  o->added_path = test_path("added_tokens.json");
  snprintf(o->folder, sizeof o->folder, "%.*s", (int)(strlen(o->vocabulary_path) - strlen("/vocab.json")),
           o->vocabulary_path);
  if (!o->k || !o->data) return 0;
  o->file = json_parse(o->data);
  o->vocabulary = json_at(o->file, "model.vocab");
  put(&o->merges, "#version: 0.2\n");
  for (merge = json_at(o->file, "model.merges")->child; merge; merge = merge->next)
    put(&o->merges, "%s %s\r\n", json_text(merge, "0"), json_text(merge, "1"));
  remove(o->added_path);
  return test_write_file(o->vocabulary_path, o->vocabulary->start,
                         (size_t)(o->vocabulary->end - o->vocabulary->start)) &&
         test_write_file(o->merges_path, o->merges.data, o->merges.n);
}

static void old_layout_close(old_layout *o) {
  remove(o->vocabulary_path);
  remove(o->merges_path);
  remove(o->added_path);
  free(o->merges.data);
  json_free(o->file);
  free(o->data);
  mhk_destroy(o->ctx);
}

static void check_vocabulary_and_merges(old_layout *o) {
  mhk_tokenizer *x, *again;
  size_t length = 0;
  x = foreign_tokenizer_load(o->ctx, o->folder);
  REQUIRE_OK(o->ctx);
  CHECK(!mhk_tokenizer_load(o->ctx, o->folder), "the library read it");
  CHECK_FAILS(o->ctx, MHK_ERROR_UNSUPPORTED,
              "vocab.json is a vocabulary in an old layout, which the library does not read: `mohawk");
  check_same_ids("vocab.json", o->k, x, source, sizeof source - 1);
  CHECK(mhk_tokenizer_end(x) == 0 && mhk_tokenizer_id(x, "<|endoftext|>") == 0, "the end-of-text token");
  check_rows(x, TINY "/tokens.json", 40);
  again = mhk_tokenizer_load_memory(o->ctx, mhk_tokenizer_json(x, &length), strlen(mhk_tokenizer_json(x, NULL)));
  check_same_ids("its tokenizer.json", x, again, source, sizeof source - 1);
  CHECK(length == strlen(mhk_tokenizer_json(x, NULL)), "the length of the tokenizer.json is %lld", (long long)length);
  CHECK_OK(o->ctx);
}

static void check_added_tokens(old_layout *o) {
  mhk_tokenizer *x, *again;
  size_t length = 0;
  int32_t id;
  CHECK(test_write_file(o->added_path, "{\"    \": 1030, \"\\t\": 1024}", 26), "cannot write %s", o->added_path);
  x = foreign_tokenizer_load(o->ctx, o->merges_path);
  REQUIRE_OK(o->ctx);
  CHECK(mhk_tokenizer_size(x) == 1031 && mhk_tokenizer_id(x, "    ") == 1030 && mhk_tokenizer_id(x, "\t") == 1024,
        "added tokens of added_tokens.json");
  check_round_trip(x, "added_tokens.json", source, sizeof source - 1);
  again = mhk_tokenizer_load_memory(o->ctx, mhk_tokenizer_json(x, &length), strlen(mhk_tokenizer_json(x, NULL)));
  check_same_ids("its tokenizer.json", x, again, source, sizeof source - 1);
  id = 1027;
  CHECK(mhk_decode(x, &id, 1, NULL, 0) == -1, "a gap was decoded");
  CHECK_FAILS(o->ctx, MHK_ERROR_ARGUMENT, "id 1027");
  CHECK(test_write_file(o->added_path, "{\"    \": 7}", 11), "cannot write %s", o->added_path);
  x = foreign_tokenizer_load(o->ctx, o->folder);
  REQUIRE_OK(o->ctx);
  CHECK(mhk_tokenizer_id(x, "    ") == 1024, "id 7 is taken, and this is no new one");
  CHECK(test_write_file(o->added_path, "[]", 2) && !foreign_tokenizer_load(o->ctx, o->folder),
        "added_tokens.json should be an object");
  CHECK_FAILS(o->ctx, MHK_ERROR_FORMAT, "with merges.txt and added_tokens.json: \"added_tokens\" must be an array");
  remove(o->added_path);
}

static void check_wrong_layouts(old_layout *o) {
  mhk_tokenizer *x;
  size_t good;
  good = o->merges.n;
  put(&o->merges, "\nTt he\n");
  CHECK(test_write_file(o->merges_path, o->merges.data, o->merges.n) && !foreign_tokenizer_load(o->ctx, o->folder),
        "a merge of unknown tokens");
  CHECK_FAILS(o->ctx, MHK_ERROR_FORMAT, "\"Tt\", which is not in the vocabulary");
  o->merges.n = good;
  put(&o->merges, "t h e\n");
  CHECK(test_write_file(o->merges_path, o->merges.data, o->merges.n) && !foreign_tokenizer_load(o->ctx, o->folder),
        "a merge of three");
  CHECK_FAILS(o->ctx, MHK_ERROR_FORMAT, "must be \"left right\"");
  remove(o->merges_path);
  CHECK(!foreign_tokenizer_load(o->ctx, o->folder), "merges.txt is gone");
  CHECK_FAILS(o->ctx, MHK_ERROR_FORMAT, "vocab.json without merges.txt");
  remove(o->vocabulary_path);
  CHECK(!foreign_tokenizer_load(o->ctx, o->folder), "nothing there");
  CHECK_FAILS(o->ctx, MHK_ERROR_FILE, "has no tokenizer.json");
  CHECK(test_write_file(test_path("encoder.json"), o->vocabulary->start,
                        (size_t)(o->vocabulary->end - o->vocabulary->start)) &&
            test_write_file(test_path("vocab.bpe"), o->merges.data, good),
        "cannot write encoder.json");
  x = foreign_tokenizer_load(o->ctx, test_path("vocab.bpe"));
  CHECK_OK(o->ctx);
  check_same_ids("encoder.json", o->k, x, source, sizeof source - 1);
  remove(test_path("encoder.json"));
  remove(test_path("vocab.bpe"));
}

TEST(other_layouts) {
  old_layout o;
  REQUIRE(old_layout_open(&o), "cannot make %s from %s", o.vocabulary_path, TINY "/tokenizer.json");
  check_vocabulary_and_merges(&o);
  check_added_tokens(&o);
  check_wrong_layouts(&o);
  old_layout_close(&o);
}

/* Any bytes come back; the parts before and after a random cut, decoded one by one, too. */
TEST(any_bytes) {
  mhk_context *ctx = mhk_create(NULL);
  mhk_tokenizer *k = mhk_tokenizer_load(ctx, TINY);
  uint64_t random = 7;
  int round, i;
  REQUIRE_OK(ctx);
  for (round = 0; round < 600; round++) {
    char bytes[300];
    const int n = (int)(test_random(&random) % sizeof bytes), kind = round % 4;
    for (i = 0; i < n; i++) {
      const uint64_t r = test_random(&random);
      switch (kind) {
        case 0: bytes[i] = (char)(unsigned char)r; break;
        case 1: bytes[i] = (char)(0x80 | (r & 0x7F)); break;
        case 2: bytes[i] = "abe th\n'1 <|\xE2\x82\xAC"[r % 15]; break;
        default: bytes[i] = "abcd"[r % 4];
      }
    }
    check_round_trip(k, "random bytes", bytes, (size_t)n);
  }
  mhk_destroy(ctx);
}

/* Merging by hand, one pair at a time, for words short and long: the lowest rank first, the
   leftmost of them first. */
TEST(merge_order) {
  mhk_context *ctx = mhk_create(NULL);
  mhk_tokenizer *k = mhk_tokenizer_load(ctx, TINY);
  size_t n = 0;
  char *data = test_read_file(TINY "/tokenizer.json", &n);
  json *file;
  const json *m;
  int merges = 0, round, i, j;
  int32_t(*pair)[3];
  uint64_t random = 11;
  REQUIRE_OK(ctx);
  REQUIRE(data, "%s cannot be read", TINY "/tokenizer.json");
  file = json_parse(data);
  pair = (int32_t(*)[3])malloc((size_t)json_at(file, "model.merges")->n * sizeof *pair);
  for (m = json_at(file, "model.merges")->child; m; m = m->next) {
    char whole[64];
    const json *id;
    int part;
    for (part = 0; part < 3; part++) {
      snprintf(whole, sizeof whole, "%s%s", part == 1 ? "" : json_text(m, "0"), part == 0 ? "" : json_text(m, "1"));
      for (id = json_at(file, "model.vocab")->child; id && strcmp(id->key, whole); id = id->next) continue;
      pair[merges][part] = id ? (int32_t)id->number : -1;
    }
    merges++;
  }
  for (round = 0; round < 40; round++) {
    char word[200];
    int32_t ids[200], got[200];
    int count = 2 + (int)(test_random(&random) % (round % 2 ? 30 : 190));
    mhk_index got_n;
    for (i = 0; i < count; i++) word[i] = "etaoinshrdlu"[test_random(&random) % (round % 3 ? 12 : 3)];
    for (i = 0; i < count; i++) mhk_encode(k, word + i, 1, &ids[i], 1);
    got_n = mhk_encode(k, word, (size_t)count, got, 200);
    for (;;) {
      int best = merges, at = 0;
      for (i = 0; i + 1 < count; i++)
        for (j = 0; j < best; j++)
          if (pair[j][0] == ids[i] && pair[j][1] == ids[i + 1]) {
            best = j;
            at = i;
          }
      if (best == merges) break;
      ids[at] = pair[best][2];
      count--;
      for (i = at + 1; i < count; i++) ids[i] = ids[i + 1];
    }
    CHECK(got_n == count && !memcmp(got, ids, (size_t)count * sizeof *ids),
          "round %d: %lld ids instead of %d, or others", round, (long long)got_n, count);
  }
  free(pair);
  json_free(file);
  free(data);
  mhk_destroy(ctx);
}

/* A megabyte of several kinds. Nothing is timed against a limit: quadratic time would take
   hours. */
TEST(megabyte) {
  static const char *const parts[] = {"a",   "The little rabbit ran home, and then it's late. ", " ", "\n",
                                      "the", "<|endoftext", "\xE6\x97\xA5\xE6\x9C\xAC", "\x80", "!?"};
  mhk_context *ctx = mhk_create(NULL);
  mhk_tokenizer *k = mhk_tokenizer_load(ctx, TINY);
  const size_t n = 1000000;
  char *big = (char *)malloc(n), what[64];
  size_t i, p;
  REQUIRE_OK(ctx);
  for (p = 0; p < sizeof parts / sizeof *parts; p++) {
    const size_t length = strlen(parts[p]);
    const clock_t start = clock();
    for (i = 0; i < n; i++) big[i] = parts[p][i % length];
    snprintf(what, sizeof what, "a megabyte of \"%.12s\"", parts[p]);
    check_round_trip(k, what, big, n);
    if (test_state.verbose) printf("%s: %.2f s\n", what, (double)(clock() - start) / CLOCKS_PER_SEC);
  }
  CHECK_OK(ctx);
  free(big);
  mhk_destroy(ctx);
}

TEST(room) {
  mhk_context *ctx = mhk_create(NULL);
  mhk_tokenizer *k = mhk_tokenizer_load(ctx, TINY);
  static const char source[] = "The little rabbit ran home.";
  int32_t ids[32], some[32];
  char out[64];
  mhk_index n, bytes;
  REQUIRE_OK(ctx);
  n = mhk_encode(k, source, sizeof source - 1, ids, 32);
  memset(some, 0xFF, sizeof some);
  CHECK(mhk_encode(k, source, sizeof source - 1, some, 3) == n && some[2] == ids[2] && some[3] == -1,
        "only three ids fit");
  CHECK(mhk_encode(k, source, sizeof source - 1, NULL, 0) == n, "counting ids");
  memset(out, '#', sizeof out);
  bytes = mhk_decode(k, ids, n, out, 5);
  CHECK(bytes == (mhk_index)sizeof source - 1 && !memcmp(out, "The l#", 6), "only five bytes fit");
  CHECK(mhk_decode(k, ids, n, NULL, 0) == bytes && mhk_decode(k, NULL, 0, NULL, 0) == 0, "counting bytes");
  ids[1] = 5000;
  CHECK(mhk_decode(k, ids, n, out, sizeof out) == -1, "id 5000 was decoded");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "id 5000 at position 1");
  CHECK(mhk_encode(NULL, source, 1, ids, 1) == -1 && mhk_decode(NULL, ids, 1, out, 1) == -1 &&
            mhk_tokenizer_size(NULL) == 0 && mhk_tokenizer_end(NULL) == -1 && mhk_tokenizer_start(NULL) == -1 &&
            mhk_encode_prompt(NULL, "a", 1, ids, 1) == -1 && mhk_tokenizer_id(NULL, "a") == -1 &&
            !mhk_token_bytes(NULL, 0, NULL) && !mhk_tokenizer_json(NULL, NULL) && !mhk_tokenizer_load(NULL, TINY) &&
            !mhk_tokenizer_load_memory(NULL, "{}", 2),
        "NULL");
  mhk_tokenizer_destroy(NULL);
  CHECK(mhk_encode(k, NULL, 1, ids, 1) == -1, "no text");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "the text is missing");
  CHECK(!mhk_tokenizer_load(ctx, NULL) && mhk_encode(k, "a", 1, ids, 1) == -1, "a failed context does nothing");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "path");
  mhk_tokenizer_destroy(k);
  mhk_destroy(ctx);
}

/* Pieces of a text, cut everywhere: always whole characters, and together what Python's
   decode(errors="replace") gives. */
TEST(streaming) {
  static const char source[] =
      "a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80|"
      "\x80\xC0\xC3z\xE2\x82z\xF0\x9F\x98z\xED\xA0\x80\xE0\x80\xF4\x90\xF5\xFF\xF0\x9F";
#define R "\xEF\xBF\xBD"
  static const char want[] = "a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80|" R R R "z" R "z" R "z" R R R R R R R R R R;
  const size_t n = sizeof source - 1;
  size_t step, i;
  for (step = 1; step <= n; step++) {
    mhk_stream s;
    char out[256], *piece;
    size_t used = 0;
    memset(&s, 0, sizeof s);
    for (i = 0; i < n; i += step) {
      const size_t length = n - i < step ? n - i : step, room = 3 * (length + 4);
      size_t got;
      piece = (char *)malloc(room); /* of its own, so that the address sanitizer sees one byte too many */
      got = mhk_stream_push(&s, source + i, length, piece);
      CHECK(got <= room && (got == 0 || ((unsigned char)piece[0] & 0xC0) != 0x80), "a piece starts inside a character");
      memcpy(out + used, piece, got);
      used += got;
      free(piece);
    }
    used += mhk_stream_finish(&s, out + used);
    CHECK(used == sizeof want - 1 && !memcmp(out, want, used), "pieces of %lld bytes give other text (%lld bytes)",
          (long long)step, (long long)used);
    CHECK(mhk_stream_finish(&s, out) == 0, "nothing is held after the end");
  }
  CHECK(mhk_stream_push(NULL, "a", 1, NULL) == 0 && mhk_stream_finish(NULL, NULL) == 0, "NULL");
}

static const struct wrong {
  const char *vocabulary, *merges, *added, *pre_tokenizer, *model, *root;
  mhk_result code;
  const char *message;
} wrong_values[] = {
    {", \"aa\": 5", NULL, NULL, NULL, NULL, NULL, MHK_ERROR_FORMAT, "id 5 of \"aa\""},
    {", \"a\": 256", NULL, NULL, NULL, NULL, NULL, MHK_ERROR_FORMAT, "twice"},
    {", \"aa\": -1", NULL, NULL, NULL, NULL, NULL, MHK_ERROR_FORMAT, "the id of token \"aa\""},
    {", \"aa\": 1.5", NULL, NULL, NULL, NULL, NULL, MHK_ERROR_FORMAT, "the id of token \"aa\""},
    {", \"aa\": \"256\"", NULL, NULL, NULL, NULL, NULL, MHK_ERROR_FORMAT, "the id of token \"aa\""},
    {", \"aa\": 1e300", NULL, NULL, NULL, NULL, NULL, MHK_ERROR_FORMAT, "the id of token \"aa\""},
    {", \"aa\": 2147483646", NULL, NULL, NULL, NULL, NULL, MHK_ERROR_FORMAT, "far above"},
    {", \"aa\": 99999999999999999999", NULL, NULL, NULL, NULL, NULL, MHK_ERROR_FORMAT, "the id of token \"aa\""},
    {", \"\": 256", NULL, NULL, NULL, NULL, NULL, MHK_ERROR_FORMAT, "empty"},
    {", \"a\\u0000\": 256", NULL, NULL, NULL, NULL, NULL, MHK_ERROR_FORMAT, "zero character"},
    {NULL, "\"a b\"", NULL, NULL, NULL, NULL, MHK_ERROR_FORMAT, "makes a token"},
    {NULL, "\"a bb\"", NULL, NULL, NULL, NULL, MHK_ERROR_FORMAT, "names \"bb\""},
    {NULL, "[\"aa\", \"b\"]", NULL, NULL, NULL, NULL, MHK_ERROR_FORMAT, "names \"aa\""},
    {NULL, "\"ab\"", NULL, NULL, NULL, NULL, MHK_ERROR_FORMAT, "the merge at byte"},
    {NULL, "\"a  b\"", NULL, NULL, NULL, NULL, MHK_ERROR_FORMAT, "the merge at byte"},
    {NULL, "[\"a\"]", NULL, NULL, NULL, NULL, MHK_ERROR_FORMAT, "the merge at byte"},
    {NULL, "[\"a\", 3]", NULL, NULL, NULL, NULL, MHK_ERROR_FORMAT, "the merge at byte"},
    {NULL, "7", NULL, NULL, NULL, NULL, MHK_ERROR_FORMAT, "the merge at byte"},
    {NULL, NULL, "{\"id\": 256}", NULL, NULL, NULL, MHK_ERROR_FORMAT, "has no \"content\" string"},
    {NULL, NULL, "{\"content\": \"<q>\"}", NULL, NULL, NULL, MHK_ERROR_FORMAT, "the id of token"},
    {NULL, NULL, "{\"id\": 256, \"content\": \"<q>\", \"lstrip\": 1}", NULL, NULL, NULL, MHK_ERROR_FORMAT,
     "\"lstrip\""},
    {NULL, NULL, "{\"id\": 256, \"content\": \"<q>\", \"single_word\": true}", NULL, NULL, NULL,
     MHK_ERROR_UNSUPPORTED, "single_word"},
    {NULL, NULL, "3", NULL, NULL, NULL, MHK_ERROR_FORMAT, "has no \"content\" string"},
    {NULL, NULL, NULL, "null", NULL, NULL, MHK_ERROR_UNSUPPORTED, "pre_tokenizer null"},
    {NULL, NULL, NULL, "3", NULL, NULL, MHK_ERROR_UNSUPPORTED, "pre_tokenizer without a type"},
    {NULL, NULL, NULL, "{\"type\": \"Whitespace\"}", NULL, NULL, MHK_ERROR_UNSUPPORTED, "pre_tokenizer Whitespace"},
    {NULL, NULL, NULL, PAIR("{\"type\": \"Digits\"}", ""), NULL, NULL, MHK_ERROR_UNSUPPORTED,
     "pre_tokenizer Sequence of Digits is"},
    {NULL, NULL, NULL, PAIR("{\"type\": \"Digits\", \"individual_digits\": false}", ""), NULL, NULL,
     MHK_ERROR_UNSUPPORTED, "pre_tokenizer Sequence of Digits is"},
    {NULL, NULL, NULL, PAIR("{\"type\": \"Digits\", \"individual_digits\": 1}", ""), NULL, NULL, MHK_ERROR_FORMAT,
     "\"individual_digits\""},
    {NULL, NULL, NULL, PAIR("{\"type\": \"Digits\", \"individual_digits\": true}", ", \"use_regex\": false"), NULL,
     NULL, MHK_ERROR_UNSUPPORTED, "pre_tokenizer Sequence of Digits is"},
    {NULL, NULL, NULL, PAIR("{\"type\": \"Digits\", \"individual_digits\": true}", ", \"add_prefix_space\": true"),
     NULL, NULL, MHK_ERROR_UNSUPPORTED, "pre_tokenizer Sequence of Digits is"},
    {NULL, NULL, NULL, PAIR("{}", ""), NULL, NULL, MHK_ERROR_UNSUPPORTED, "pre_tokenizer Sequence is"},
    {NULL, NULL, NULL, PAIR("null", ""), NULL, NULL, MHK_ERROR_UNSUPPORTED, "pre_tokenizer Sequence is"},
    {NULL, NULL, NULL, SPLIT(QWEN2("\\\\p{N}{1,2}")), NULL, NULL, MHK_ERROR_UNSUPPORTED,
     "Sequence of Split with the pattern (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,2}| ?"},
    {NULL, NULL, NULL, SPLIT(QWEN2("\\\\p{N}") "|"), NULL, NULL, MHK_ERROR_UNSUPPORTED, "Qwen2, Llama 3 or SmolLM2"},
    {NULL, NULL, NULL, SPLIT(""), NULL, NULL, MHK_ERROR_UNSUPPORTED, "Sequence of Split with the pattern  is"},
    {NULL, NULL, NULL,
     PAIR("{\"type\": \"Split\", \"pattern\": {\"Regex\": \"" GPT2 "\"}, \"behavior\": \"Removed\"}",
          ", \"use_regex\": false"),
     NULL, NULL, MHK_ERROR_UNSUPPORTED, "Sequence of Split"},
    {NULL, NULL, NULL,
     PAIR("{\"type\": \"Split\", \"pattern\": {\"Regex\": \"" GPT2 "\"}, \"behavior\": \"Isolated\"}", ""),
     NULL, NULL, MHK_ERROR_UNSUPPORTED, "Sequence of Split"},
    {NULL, NULL, NULL,
     PAIR("{\"type\": \"Split\", \"pattern\": {\"String\": \"" GPT2 "\"}, \"behavior\": \"Isolated\"}",
          ", \"use_regex\": false"),
     NULL, NULL, MHK_ERROR_UNSUPPORTED, "Sequence of Split is"},
    {NULL, NULL, NULL, "{\"type\": \"ByteLevel\", \"use_regex\": 0}", NULL, NULL, MHK_ERROR_FORMAT, "\"use_regex\""},
    {NULL, NULL, NULL, NULL, "\"byte_fallback\": true,", NULL, MHK_ERROR_UNSUPPORTED, "byte_fallback"},
    {NULL, NULL, NULL, NULL, "\"dropout\": 0.1,", NULL, MHK_ERROR_UNSUPPORTED, "dropout"},
    {NULL, NULL, NULL, NULL, "\"end_of_word_suffix\": \"</w>\",", NULL, MHK_ERROR_UNSUPPORTED, "end_of_word_suffix"},
    {NULL, NULL, NULL, NULL, "\"continuing_subword_prefix\": \"##\",", NULL, MHK_ERROR_UNSUPPORTED,
     "continuing_subword_prefix"},
    {NULL, NULL, NULL, NULL, NULL, "\"normalizer\": {\"type\": \"NFKC\"},", MHK_ERROR_UNSUPPORTED, "normalizer NFKC"},
    {NULL, NULL, NULL, NULL, NULL, "\"decoder\": {\"type\": \"Metaspace\"},", MHK_ERROR_UNSUPPORTED,
     "decoder Metaspace"},
};
static const char *const wrong_texts[][2] = {
    {"", "value"},
    {"{}", "no \"model\""},
    {"[]", "no \"model\""},
    {"{\"model\": {\"type\": \"Unigram\"}}", "Unigram"},
    {"{\"pre_tokenizer\": {\"type\": \"ByteLevel\"}, \"model\": {\"vocab\": [], \"merges\": []}}", "\"vocab\""},
    {"{\"pre_tokenizer\": {\"type\": \"ByteLevel\"}, \"model\": {\"vocab\": {}}}", "\"merges\""},
    {"{\"pre_tokenizer\": {\"type\": \"ByteLevel\"}, \"model\": {\"vocab\": {}, \"merges\": []}}",
     "no token for byte 0x20"},
    {"{\"pre_tokenizer\": {\"type\": \"ByteLevel\"}, \"model\": {\"vocab\": {}, \"merges\": []}, \"added_tokens\": "
     "{}}",
     "added_tokens"}};

TEST(wrong_files) {
  test_memory memory;
  mhk_context *ctx = test_context(&memory, 0, 0);
  size_t i, before;
  for (i = 0; i < sizeof wrong_values / sizeof *wrong_values; i++) {
    const struct wrong *w = &wrong_values[i];
    mhk_tokenizer *k =
        parse_and_free(ctx, make_tokenizer(w->vocabulary, w->merges, w->added, w->pre_tokenizer, w->model, w->root));
    CHECK(!k, "case %d was taken", (int)i);
    CHECK_FAILS(ctx, w->code, w->message);
    mhk_tokenizer_destroy(k);
  }
  for (i = 0; i < sizeof wrong_texts / sizeof *wrong_texts; i++) {
    CHECK(!mhk_tokenizer_load_memory(ctx, wrong_texts[i][0], strlen(wrong_texts[i][0])), "\"%s\" was taken",
          wrong_texts[i][0]);
    if (mhk_error(ctx) == MHK_ERROR_UNSUPPORTED)
      CHECK_FAILS(ctx, MHK_ERROR_UNSUPPORTED, wrong_texts[i][1]);
    else
      CHECK_FAILS(ctx, MHK_ERROR_FORMAT, wrong_texts[i][1]);
  }
  CHECK(!mhk_tokenizer_load_memory(ctx, NULL, 0), "no text");
  CHECK_FAILS(ctx, MHK_ERROR_ARGUMENT, "the text is missing");
  CHECK(!mhk_tokenizer_load(ctx, "no/such/folder"), "nothing there");
  CHECK_FAILS(ctx, MHK_ERROR_FILE, "no/such/folder");
  CHECK(!mhk_tokenizer_load(ctx, TINY "/config.json"), "that is no tokenizer");
  CHECK_FAILS(ctx, MHK_ERROR_FORMAT, "no \"model\"");
  before = memory.bytes;
  CHECK(before < 4000000, "%lld bytes are held though no tokenizer was made", (long long)before);
  mhk_destroy(ctx);
  CHECK(memory.blocks == 0 && !memory.wrong_size, "%lld blocks leaked", (long long)memory.blocks);
}

/* Random damage: an error or a tokenizer that works, never a crash. */
TEST(damaged_files) {
  static const char source[] = "abc aa  ab's\n12 <q>  \xE2\x82\xAC\xFF zz e\xCC\x81";
  mhk_context *ctx = mhk_create(NULL);
  text t = make_tokenizer(
      ", \"ab\": 256, \"abc\": 257, \"aa\": 258, \"\\u0120a\": 259", "\"a b\", [\"ab\", \"c\"], \"a a\", \"\\u0120 a\"",
      "{\"id\": 260, \"content\": \"<q>\", \"lstrip\": true, \"rstrip\": true, \"normalized\": false}, "
      "{\"id\": 261, \"content\": \"zz\"}",
      NULL, "\"dropout\": null, \"ignore_merges\": false,",
      "\"normalizer\": {\"type\": \"NFC\"}, \"decoder\": {\"type\": \"ByteLevel\"},");
  char *copy = (char *)malloc(2 * t.n);
  uint64_t random = 3;
  int round, good = 0;
  for (round = 0; round < 3000; round++) {
    size_t n = t.n, at, length;
    int edits = 1 + (int)(test_random(&random) % 3);
    mhk_tokenizer *k;
    memcpy(copy, t.data, n);
    while (edits-- > 0) {
      at = (size_t)(test_random(&random) % n);
      /* more at both ends: the middle is dull */
      if (test_random(&random) % 2) at = (size_t)(test_random(&random) % 2 ? n - 1 - at % 200 : at % 400);
      length = (size_t)(test_random(&random) % 12);
      if (length > n - at) length = n - at;
      switch (test_random(&random) % 4) {
        case 0: copy[at] = (char)test_random(&random); break;
        case 1: copy[at] = "0123456789{}[]\",:\\ae"[test_random(&random) % 20]; break;
        case 2:
          memmove(copy + at, copy + at + length, n - at - length);
          n -= length;
          break;
        default: memmove(copy + at, copy + (size_t)(test_random(&random) % (n - length)), length); break;
      }
    }
    k = mhk_tokenizer_load_memory(ctx, copy, n);
    CHECK((k != NULL) == !mhk_failed(ctx), "round %d: a result and an error, or neither", round);
    if (k) {
      int32_t ids[64];
      mhk_index i, count = mhk_encode(k, source, sizeof source - 1, ids, 64);
      CHECK(count > 0 && count < 64, "round %d: %lld ids", round, (long long)count);
      for (i = 0; i < count; i++)
        CHECK(mhk_token_bytes(k, ids[i], NULL) != NULL, "round %d: id %ld does not exist", round, (long)ids[i]);
      good++;
    }
    mhk_clear_error(ctx);
    mhk_tokenizer_destroy(k);
  }
  CHECK(good > 50 && good < 2950, "%d of %d damaged files were taken", good, round);
  free(copy);
  free(t.data);
  mhk_destroy(ctx);
}

/* The n-th allocation fails, for every n: an error, nothing leaked, nothing crashed. */
TEST(out_of_memory) {
  char word[200];
  long fail_at;
  int done = 0;
  const char *vocabulary_path = test_path("memory/vocab.json"), *merges_path = test_path("memory/merges.txt");
  char folder[512];
  text t = make_tokenizer(", \"aa\": 256", "\"a a\"", "{\"id\": 257, \"content\": \"<q>\", \"normalized\": true}",
                          "{\"type\": \"ByteLevel\", \"add_prefix_space\": true}", NULL, NFC);
  const char *vocabulary = strstr(t.data, "\"vocab\": ") + 9;
  snprintf(folder, sizeof folder, "%.*s", (int)(strlen(vocabulary_path) - strlen("/vocab.json")), vocabulary_path);
  test_make_folder(folder);
  REQUIRE(test_write_file(vocabulary_path, vocabulary, (size_t)(strchr(vocabulary, '}') + 1 - vocabulary)) &&
              test_write_file(merges_path, "a a\n", 4),
          "cannot write %s", vocabulary_path);
  memset(word, 'a', sizeof word);
  memcpy(word + 196, "e\xCC\x81x", 4);
  for (fail_at = 1; !done && fail_at < 5000; fail_at++) {
    test_memory memory;
    mhk_context *ctx = test_context(&memory, fail_at, 0);
    if (ctx) {
      mhk_tokenizer *k = mhk_tokenizer_load_memory(ctx, t.data, t.n), *pair = foreign_tokenizer_load(ctx, folder);
      int32_t ids[256];
      mhk_index n = mhk_encode(k, word, sizeof word, ids, 256);
      const char *json_text = mhk_tokenizer_json(pair, NULL);
      if (mhk_failed(ctx))
        CHECK(mhk_error(ctx) == MHK_ERROR_MEMORY && (n == -1 || !json_text), "allocation %ld failed: %s", fail_at,
              mhk_message(ctx));
      else {
        /* the space, 98 pairs, an accented letter in two bytes and another */
        CHECK(n == 102 && json_text, "%lld ids", (long long)n);
        done = 1;
      }
    }
    mhk_destroy(ctx);
    CHECK(memory.blocks == 0 && memory.bytes == 0 && !memory.wrong_size, "allocation %ld failed: %lld blocks leaked",
          fail_at, (long long)memory.blocks);
  }
  CHECK(done && fail_at > 10, "%ld allocations are not enough", fail_at);
  remove(vocabulary_path);
  remove(merges_path);
  free(t.data);
}

int main(int argc, char **argv) {
  test_begin(argc, argv);
  RUN(bundled);
  RUN(outside);
  RUN(classes);
  RUN(words);
  RUN(words_by_words);
  RUN(patterns);
  RUN(patterns_with_the_rest_of_a_tokenizer);
  RUN(added_tokens);
  RUN(normalization_of_every_code_point_and_of_sequences);
  RUN(added_tokens_and_normalization);
  RUN(normalization_of_long_texts);
  RUN(odd_added_tokens);
  RUN(training_text_is_utf8);
  RUN(start_and_end_tokens);
  RUN(start_and_end_tokens_are_saved);
  RUN(every_key_is_honoured_or_named);
  RUN(other_layouts);
  RUN(any_bytes);
  RUN(merge_order);
  RUN(megabyte);
  RUN(room);
  RUN(streaming);
  RUN(wrong_files);
  RUN(damaged_files);
  RUN(out_of_memory);
  return test_end();
}
