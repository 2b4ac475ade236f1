/* jsonl.c: see jsonl.h */
#include "jsonl.h"
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_DEPTH = 32 };

/* one line that is read, up to end */
typedef struct line {
  const jsonl_reader *reader;
  char *start, *at, *end;
} line;

int jsonl_wrong(const jsonl_reader *r, const char *format, ...) {
  char text[512];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  cli_error("%s, line %lld: %s", r->name, (long long)r->line, text);
  return -1;
}

/* What should stand where the line is read. Returns -1. */
static int expected(const line *l, const char *what) {
  const long long column = (long long)(l->at - l->start) + 1;
  if (l->at >= l->end) return jsonl_wrong(l->reader, "the line ends where %s should stand", what);
  if ((unsigned char)*l->at < 0x20 || (unsigned char)*l->at >= 0x7F)
    return jsonl_wrong(l->reader, "%s should stand at byte %lld, not the byte 0x%02x", what, column,
                       (unsigned)(unsigned char)*l->at);
  return jsonl_wrong(l->reader, "%s should stand at byte %lld, not '%c'", what, column, *l->at);
}

static void space(line *l) {
  while (l->at < l->end && (*l->at == ' ' || *l->at == '\t' || *l->at == '\r')) l->at++;
}

static int take(line *l, char c) {
  space(l);
  if (l->at >= l->end || *l->at != c) return 0;
  l->at++;
  return 1;
}

/* ---------------------------------------------------------------- strings */

/* four hexadecimal digits behind \u; -1: they are none */
static long hex4(const line *l) {
  long code = 0;
  int i;
  if (l->end - l->at < 4) return -1;
  for (i = 0; i < 4; i++) {
    const char *digits = "0123456789abcdef", c = l->at[i], *d = strchr(digits, c >= 'A' && c <= 'F' ? c + 32 : c);
    if (!d || !c) return -1;
    code = 16 * code + (long)(d - digits);
  }
  return code;
}

/* What stands behind a backslash, into out, which lies before it; returns the bytes, 0 after a
   message. */
static size_t escape(line *l, char *out) {
  static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
  const char *found = l->at < l->end && *l->at ? strchr(from, *l->at) : NULL;
  long code, low;
  if (found) {
    *out = to[found - from];
    l->at++;
    return 1;
  }
  if (l->at >= l->end || *l->at != 'u') {
    expected(l, "one of \"\\/bfnrtu, after a backslash,");
    return 0;
  }
  l->at++;
  code = hex4(l);
  if (code < 0) {
    expected(l, "a code of four hexadecimal digits");
    return 0;
  }
  l->at += 4;
  if (code >= 0xD800 && code < 0xE000) {
    const int pair = code < 0xDC00 && l->end - l->at > 6 && l->at[0] == '\\' && l->at[1] == 'u';
    l->at += pair ? 2 : 0;
    low = pair ? hex4(l) : -1;
    if (low < 0xDC00 || low >= 0xE000) {
      expected(l, "the second half of a surrogate pair");
      return 0;
    }
    l->at += 4;
    code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
  }
  return cli_put_utf8(out, (unsigned long)code);
}

/* bytes of the UTF-8 character here, 0 when it is none */
static size_t character(const line *l) {
  const unsigned char *p = (const unsigned char *)l->at;
  const size_t left = (size_t)(l->end - l->at), n = p[0] < 0x80 ? 1 : p[0] < 0xE0 ? 2 : p[0] < 0xF0 ? 3 : 4;
  size_t i;
  if (n == 1) return 1;
  if (n > left || p[0] < 0xC2 || p[0] > 0xF4) return 0;
  for (i = 1; i < n; i++)
    if (p[i] >> 6 != 2) return 0;
  if ((p[0] == 0xE0 && p[1] < 0xA0) || (p[0] == 0xED && p[1] > 0x9F) || (p[0] == 0xF0 && p[1] < 0x90) ||
      (p[0] == 0xF4 && p[1] > 0x8F))
    return 0;
  return n;
}

/* A string, decoded in place, where it can only become shorter. */
static int read_text(line *l, jsonl_text *out) {
  char *to;
  if (!take(l, '"')) return expected(l, "a string in quotes");
  out->at = to = l->at;
  while (l->at < l->end && *l->at != '"') {
    size_t n;
    if ((unsigned char)*l->at < 0x20) return expected(l, "no control character (write it as an escape)");
    if (*l->at == '\\') {
      l->at++;
      n = escape(l, to);
      if (n == 0) return -1;
    } else {
      n = character(l);
      if (n == 0) return expected(l, "valid UTF-8");
      memmove(to, l->at, n);
      l->at += n;
    }
    to += n;
  }
  if (l->at >= l->end) return expected(l, "the closing quote of a string");
  l->at++;
  out->n = (size_t)(to - out->at);
  return 0;
}

/* ---------------------------------------------------------------- other values */

static size_t digits(line *l) {
  const char *start = l->at;
  while (l->at < l->end && *l->at >= '0' && *l->at <= '9') l->at++;
  return (size_t)(l->at - start);
}

/* passes over a number by JSON's grammar; *whole: it has neither sign, point nor exponent */
static int pass_number(line *l, int *whole) {
  const int minus = l->at < l->end && *l->at == '-';
  const char *start = l->at += minus;
  *whole = !minus;
  if (digits(l) == 0) return expected(l, "a value");
  if (*start == '0' && l->at - start > 1) return jsonl_wrong(l->reader, "a number starts with a zero too many");
  if (l->at < l->end && *l->at == '.') {
    l->at++;
    *whole = 0;
    if (digits(l) == 0) return expected(l, "a digit");
  }
  if (l->at < l->end && (*l->at == 'e' || *l->at == 'E')) {
    l->at++;
    *whole = 0;
    if (l->at < l->end && (*l->at == '+' || *l->at == '-')) l->at++;
    if (digits(l) == 0) return expected(l, "a digit");
  }
  return 0;
}

static int pass_value(line *l, int depth);

/* the inside of an object or list behind its bracket */
static int pass_members(line *l, char close, int depth) {
  jsonl_text key;
  if (take(l, close)) return 0;
  for (;;) {
    if (close == '}' && (read_text(l, &key) < 0 || (!take(l, ':') && expected(l, "a colon") < 0))) return -1;
    if (pass_value(l, depth + 1) < 0) return -1;
    if (take(l, close)) return 0;
    if (!take(l, ',')) return expected(l, close == '}' ? "a comma or }" : "a comma or ]");
  }
}

/* a value that nobody asked for: checked all the same */
static int pass_value(line *l, int depth) {
  static const char *const words[] = {"true", "false", "null"};
  jsonl_text text;
  int i;
  if (depth > MOST_DEPTH) return jsonl_wrong(l->reader, "brackets are nested more than %d deep", MOST_DEPTH);
  space(l);
  if (l->at < l->end && *l->at == '"') return read_text(l, &text);
  if (take(l, '{')) return pass_members(l, '}', depth);
  if (take(l, '[')) return pass_members(l, ']', depth);
  for (i = 0; i < CLI_COUNT_OF(words); i++)
    if ((size_t)(l->end - l->at) >= strlen(words[i]) && memcmp(l->at, words[i], strlen(words[i])) == 0) {
      l->at += strlen(words[i]);
      return 0;
    }
  return pass_number(l, &i);
}

static int read_texts(line *l, const char *name, jsonl_texts *out) {
  out->n = 0;
  if (!take(l, '[')) return jsonl_wrong(l->reader, "\"%s\" must be a list of strings", name);
  if (take(l, ']')) return 0;
  for (;;) {
    if (out->n == JSONL_MOST_TEXTS)
      return jsonl_wrong(l->reader, "\"%s\" has more than %d strings", name, JSONL_MOST_TEXTS);
    space(l);
    if (l->at < l->end && *l->at != '"') return jsonl_wrong(l->reader, "\"%s\" must be a list of strings", name);
    if (read_text(l, &out->text[out->n++]) < 0) return -1;
    if (take(l, ']')) return 0;
    if (!take(l, ',')) return expected(l, "a comma or ]");
  }
}

static int read_count(line *l, const char *name, mhk_index *out) {
  const char *start = l->at;
  int whole = 0;
  if (l->at < l->end && ((*l->at >= '0' && *l->at <= '9') || *l->at == '-') && pass_number(l, &whole) < 0) return -1;
  if (!whole || l->at - start > 9)
    return jsonl_wrong(l->reader, "\"%s\" must be a whole number of 0 or more, below 1000000000", name);
  for (*out = 0; start < l->at; start++) *out = 10 * *out + (*start - '0');
  return 0;
}

/* ---------------------------------------------------------------- rows */

static int read_field(line *l, jsonl_field *f) {
  if (f->found) return jsonl_wrong(l->reader, "\"%s\" stands there twice", f->name);
  f->found = 1;
  space(l);
  if (f->kind == JSONL_TEXTS) return read_texts(l, f->name, (jsonl_texts *)f->value);
  if (f->kind == JSONL_COUNT) return read_count(l, f->name, (mhk_index *)f->value);
  if (l->at < l->end && *l->at != '"') return jsonl_wrong(l->reader, "\"%s\" must be a string", f->name);
  return read_text(l, (jsonl_text *)f->value);
}

static int read_row(line *l, jsonl_field *fields, int n) {
  int i;
  if (!take(l, '{')) return expected(l, "an object, {...},");
  if (!take(l, '}')) {
    do {
      jsonl_text key;
      space(l);
      if (read_text(l, &key) < 0) return -1;
      if (!take(l, ':')) return expected(l, "a colon after a field's name");
      for (i = 0; i < n; i++)
        if (strlen(fields[i].name) == key.n && memcmp(fields[i].name, key.at, key.n) == 0) break;
      if ((i < n ? read_field(l, &fields[i]) : pass_value(l, 0)) < 0) return -1;
    } while (take(l, ','));
    if (!take(l, '}')) return expected(l, "a comma or }");
  }
  space(l);
  return l->at < l->end ? expected(l, "the end of the line") : 1;
}

int jsonl_next(jsonl_reader *r, jsonl_field *fields, int n) {
  int i;
  while (r->at < r->content->n) {
    line l;
    char *stop = (char *)memchr(r->content->text + r->at, '\n', r->content->n - r->at);
    l.reader = r;
    l.start = l.at = r->content->text + r->at;
    l.end = stop ? stop : r->content->text + r->content->n;
    r->at = (size_t)(l.end - r->content->text) + (stop != NULL);
    r->line++;
    if (r->line == 1 && l.end - l.at >= 3 && memcmp(l.at, "\xEF\xBB\xBF", 3) == 0) l.at += 3; /* a byte order mark */
    space(&l);
    if (l.at == l.end) continue;
    for (i = 0; i < n; i++) fields[i].found = 0;
    return read_row(&l, fields, n);
  }
  return 0;
}
