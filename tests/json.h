/* Just enough JSON for tests: parse once, look up by path, free once. */
#ifndef TEST_JSON_H
#define TEST_JSON_H

#include <ctype.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct json {
  char type; /* o a s n t f z (object, array, string, number, true, false, null) */
  char *key;
  double number;
  char *text; /* strings, as UTF-8; 0-terminated, may hold zeros */
  size_t length;
  const char *start, *end; /* where it stands in the source */
  struct json *child, *next;
  int n;
} json;

static inline void json_free(json *j) {
  while (j) {
    json *next = j->next;
    json_free(j->child);
    free(j->key);
    free(j->text);
    free(j);
    j = next;
  }
}

static inline const char *json_space(const char *p) {
  while (*p == ' ' || *p == '\n' || *p == '\t' || *p == '\r') p++;
  return p;
}

static inline unsigned json_hex(const char *p) {
  char hex[5];
  memcpy(hex, p, 4);
  hex[4] = 0;
  return (unsigned)strtoul(hex, NULL, 16);
}

/* The string at p, which is a quotation mark: *text receives it without escapes, malloc'ed. Returns
   what follows it. */
static inline const char *json_string(const char *p, char **text, size_t *length) {
  const char *q = p + 1;
  char *out;
  size_t n = 0;
  while (*q && *q != '"') q += *q == '\\' && q[1] ? 2 : 1;
  out = (char *)malloc((size_t)(q - p) * 3 + 4);
  for (p++; p < q; p++) {
    if (*p != '\\') {
      out[n++] = *p;
      continue;
    }
    p++;
    if (*p == 'u') {
      unsigned c = json_hex(p + 1);
      p += 4;
      if (c >= 0xD800 && c < 0xDC00 && p[1] == '\\' && p[2] == 'u') {
        c = 0x10000 + ((c - 0xD800) << 10) + (json_hex(p + 3) - 0xDC00);
        p += 6;
      }
      if (c < 0x80)
        out[n++] = (char)c;
      else if (c < 0x800) {
        out[n++] = (char)(0xC0 | c >> 6);
        out[n++] = (char)(0x80 | (c & 63));
      } else if (c < 0x10000) {
        out[n++] = (char)(0xE0 | c >> 12);
        out[n++] = (char)(0x80 | (c >> 6 & 63));
        out[n++] = (char)(0x80 | (c & 63));
      } else {
        out[n++] = (char)(0xF0 | c >> 18);
        out[n++] = (char)(0x80 | (c >> 12 & 63));
        out[n++] = (char)(0x80 | (c >> 6 & 63));
        out[n++] = (char)(0x80 | (c & 63));
      }
    } else
      out[n++] = *p == 'n' ? '\n' : *p == 't' ? '\t' : *p == 'r' ? '\r' : *p == 'b' ? '\b' : *p == 'f' ? '\f' : *p;
  }
  out[n] = 0;
  *text = out;
  *length = n;
  return *q ? q + 1 : q;
}

/* The value at *source, with all that is in it; *source moves behind it. */
static inline json *json_value(const char **source) {
  const char *p = json_space(*source);
  json *j = (json *)calloc(1, sizeof *j), **tail;
  j->start = p;
  if (*p == '{' || *p == '[') {
    const char close = *p == '{' ? '}' : ']';
    j->type = *p == '{' ? 'o' : 'a';
    p = json_space(p + 1);
    tail = &j->child;
    while (*p && *p != close) {
      char *key = NULL;
      size_t length;
      if (j->type == 'o') {
        p = json_space(json_string(p, &key, &length));
        p = json_space(p + (*p == ':'));
      }
      *tail = json_value(&p);
      (*tail)->key = key;
      tail = &(*tail)->next;
      j->n++;
      p = json_space(p);
      if (*p == ',') p = json_space(p + 1);
    }
    if (*p) p++;
  } else if (*p == '"') {
    j->type = 's';
    p = json_string(p, &j->text, &j->length);
  } else if (*p == 't' || *p == 'f' || *p == 'n') {
    j->type = *p == 'n' ? 'z' : *p;
    while (isalpha((unsigned char)*p)) p++;
  } else {
    char *end;
    j->type = 'n';
    j->number = strtod(p, &end);
    p = end > p ? end : p + (*p != 0);
  }
  j->end = p;
  *source = p;
  return j;
}

/* text must end with a 0 and stay while start and end are used */
static inline json *json_parse(const char *text) { return json_value(&text); }

/* The value at a path of keys and indices, "config.rows.3.text"; NULL if absent. */
static inline const json *json_at(const json *j, const char *path) {
  while (j && *path) {
    size_t n = strcspn(path, ".");
    const json *c = j->child;
    if (j->type == 'a') {
      long i = strtol(path, NULL, 10);
      while (c && i-- > 0) c = c->next;
    } else
      while (c && (strlen(c->key) != n || memcmp(c->key, path, n))) c = c->next;
    j = c;
    path += n + (path[n] == '.');
  }
  return j;
}
static inline double json_number(const json *j, const char *path, double otherwise) {
  j = json_at(j, path);
  return j && j->type == 'n' ? j->number : j && (j->type == 't' || j->type == 'f') ? j->type == 't' : otherwise;
}
static inline const char *json_text(const json *j, const char *path) {
  j = json_at(j, path);
  return j && j->type == 's' ? j->text : "";
}

/* an array of numbers as int32; the caller frees it */
static inline int32_t *json_ids(const json *j, int *n) {
  int32_t *ids = (int32_t *)malloc(((size_t)(j ? j->n : 0) + 1) * sizeof *ids);
  const json *c = j ? j->child : NULL;
  *n = 0;
  for (; c; c = c->next) ids[(*n)++] = (int32_t)c->number;
  return ids;
}
#endif
