/* settings.c: see settings.h */
#include "settings.h"
#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- files that stay */

/* what was read, one block after the other: options point into it */
static struct kept {
  struct kept *before;
  char *text;
} *all_kept;

static int keep(char *text) {
  struct kept *k = (struct kept *)malloc(sizeof *k);
  if (!k) {
    free(text);
    return cli_error("out of memory");
  }
  k->before = all_kept;
  k->text = text;
  all_kept = k;
  return CLI_GO;
}

static int read_kept(const char *path, cli_content *c) {
  if (cli_read(path, c) != CLI_GO) return CLI_FAILED;
  if (keep(c->text) != CLI_GO) return CLI_FAILED;
  if (strlen(c->text) == c->n) return CLI_GO;
  return cli_error("%s is not a text file: it has a zero byte", path);
}

/* ---------------------------------------------------------------- reading */

/* where an option comes from, for messages */
typedef struct source {
  const cli_command *c;
  void *settings;
  const char *path;
  int line; /* 0: JSON */
  unsigned char *given;
} source;

static int say_where(const source *s) {
  if (s->line > 0) cli_error("this is line %d of %s", s->line, s->path);
  else cli_error("this is in %s", s->path);
  return CLI_USAGE;
}

static int set_one(const source *s, const char *name, size_t length, const char *text) {
  const cli_option *o = cli_find_option(s->c, name, length);
  if (!o) {
    cli_unknown_option(s->c, name, length);
    return say_where(s);
  }
  if (cli_set_option(o, s->settings, text) != CLI_GO) return say_where(s);
  if (s->given) s->given[o - s->c->options] = 1;
  return CLI_GO;
}

static char *trimmed(char *text) {
  char *end = text + strlen(text);
  while (end > text && isspace((unsigned char)end[-1])) *--end = 0;
  while (isspace((unsigned char)*text)) text++;
  return text;
}

static int read_lines(source *s, char *text) {
  char *line, *next;
  int code = CLI_GO;
  for (line = text; *line && code == CLI_GO; line = next) {
    char *equals, *name;
    next = line + strcspn(line, "\n");
    if (*next) *next++ = 0;
    s->line++;
    line = trimmed(line);
    if (*line == 0 || *line == '#') continue;
    equals = strchr(line, '=');
    if (!equals) {
      cli_error("\"%.60s\" is not name = value", line);
      return say_where(s);
    }
    *equals = 0;
    name = trimmed(line);
    code = set_one(s, name, strlen(name), trimmed(equals + 1));
  }
  return code;
}

/* A JSON value as it would stand behind --NAME=, in memory that stays; NULL after a message. */
static const char *plain_text(foreign_json value) {
  const size_t n = (size_t)(value.end - value.at);
  char *out = (char *)malloc(n + 1);
  if (!out || keep(out) != CLI_GO) return NULL;
  if (*value.at == '"') {
    if (foreign_json_text(value, out) >= 0) return out;
    cli_error("%.*s is not a string of characters", n < 60 ? (int)n : 60, value.at);
    return NULL;
  }
  memcpy(out, value.at, n);
  out[n] = 0;
  return strcmp(out, "null") == 0 ? "-" : out;
}

/* The values of a JSON list, joined by commas or set one by one. */
static int set_list(const source *s, const char *name, size_t length, foreign_json list) {
  const cli_option *o = cli_find_option(s->c, name, length);
  foreign_json value;
  cli_content joined;
  int code = CLI_GO;
  memset(&joined, 0, sizeof joined);
  if (!o) return set_one(s, name, length, ""); /* says so */
  for (list.at++; code == CLI_GO && foreign_json_value(&list, &value);) {
    const char *text = plain_text(value);
    if (!text) return say_where(s);
    if (o->kind == CLI_FILES) code = set_one(s, name, length, text);
    else if ((joined.n > 0 && cli_add(&joined, ",", 1) != CLI_GO) || cli_add(&joined, text, strlen(text)) != CLI_GO)
      code = CLI_FAILED;
    while (list.at < list.end && (isspace((unsigned char)*list.at) || *list.at == ',')) list.at++;
  }
  if (joined.text && keep(joined.text) != CLI_GO) return CLI_FAILED;
  if (code == CLI_GO && joined.text) code = set_one(s, name, length, joined.text);
  return code;
}

static int read_object(const source *s, foreign_json object) {
  foreign_json key, value, inner;
  int code = CLI_GO;
  if (foreign_json_find(object, "command", &value)) {
    const char *command = plain_text(value);
    if (!command || strcmp(command, s->c->name) != 0) {
      cli_error("%s has settings of mohawk %s, not of mohawk %s", s->path, command ? command : "?", s->c->name);
      return CLI_USAGE;
    }
  }
  if (foreign_json_find(object, "settings", &inner) && *inner.at == '{') object = inner;
  while (code == CLI_GO && foreign_json_member(&object, &key, &value)) {
    const size_t length = (size_t)(key.end - key.at) - 2;
    if (*value.at == '[') {
      code = set_list(s, key.at + 1, length, value);
    } else {
      const char *text = plain_text(value);
      code = text ? set_one(s, key.at + 1, length, text) : say_where(s);
    }
  }
  if (code == CLI_GO && !object.at) {
    cli_error("%s is not JSON that this can read", s->path);
    return CLI_USAGE;
  }
  return code;
}

/* the outermost value of a text; 0: it is none */
static int outermost(const cli_content *c, foreign_json *value) {
  foreign_json j = {c->text, c->text + c->n}, more;
  return foreign_json_value(&j, value) && *value->at == '{' && !foreign_json_value(&j, &more);
}

int settings_read(const cli_command *c, void *settings, const char *path, unsigned char *given) {
  source s = {c, settings, path, 0, given};
  cli_content text;
  foreign_json object;
  if (read_kept(path, &text) != CLI_GO) return CLI_USAGE;
  if (*trimmed(text.text) != '{') return read_lines(&s, text.text);
  text.n = strlen(text.text);
  if (outermost(&text, &object)) return read_object(&s, object);
  cli_error("%s starts like JSON, but its brackets or quotes do not close", path);
  return CLI_USAGE;
}

int settings_json_file(const char *path, foreign_json *value) {
  cli_content text;
  if (read_kept(path, &text) != CLI_GO) return CLI_FAILED;
  return outermost(&text, value) ? CLI_GO : cli_error("%s is damaged: it is not one JSON object", path);
}

double settings_number(foreign_json object, const char *name, double otherwise) {
  foreign_json value;
  char text[64];
  size_t n;
  double x;
  if (!foreign_json_find(object, name, &value)) return otherwise;
  n = (size_t)(value.end - value.at);
  if (n >= sizeof text) return otherwise;
  memcpy(text, value.at, n);
  text[n] = 0;
  return cli_read_number(text, &x) ? x : otherwise;
}

/* ---------------------------------------------------------------- writing */

/* the shortest decimal number that is read back as x */
static const char *number_text(double x, char *text, size_t room) {
  int digits;
  for (digits = 6; digits <= 17; digits++) {
    snprintf(text, room, "%.*g", fabs(x) < 1e15 && floor(x) == x ? 17 : digits, x);
    if (strtod(text, NULL) == x) break;
  }
  return text;
}

/* the word at a place of "a|b|c" */
static void word_at(const char *words, int place, char *text, size_t room) {
  while (place-- > 0 && strchr(words, '|')) words = strchr(words, '|') + 1;
  snprintf(text, room, "%.*s", (int)strcspn(words, "|"), words);
}

static int left_out(const char *name, const char *const *not) {
  for (; not && *not; not++)
    if (strcmp(name, *not) == 0) return 1;
  return 0;
}

static double number_of(const cli_option *o, const void *value) {
  return o->kind == CLI_INT ? *(const int *)value : o->kind == CLI_REAL ? *(const double *)value
                                                                         : (double)*(const mhk_index *)value;
}

/* the text of a value that is one word */
static const char *value_text(const cli_option *o, const void *value, char *text, size_t room) {
  const cli_numbers *list = (const cli_numbers *)value;
  char one[32];
  int i;
  text[0] = 0;
  switch (o->kind) {
    case CLI_FLAG:
    case CLI_STRICTLY: return "yes";
    case CLI_TEXT: return *(const char *const *)value;
    case CLI_CHOICE: word_at(o->argument, *(const int *)value, text, room); break;
    case CLI_NUMBERS:
      for (i = 0; i < list->n; i++)
        snprintf(text + strlen(text), room - strlen(text), "%s%s", i ? "," : "",
                 isnan(list->value[i]) ? "-" : number_text(list->value[i], one, sizeof one));
      break;
    default: number_text(number_of(o, value), text, room);
  }
  return text;
}

void settings_lines(FILE *out, const cli_command *c, const void *settings, const char *const *not) {
  char text[2048];
  int i, k;
  for (i = 0; i < c->n_options; i++) {
    const cli_option *o = &c->options[i];
    const void *value = (const char *)settings + o->at;
    if (!o->name || !cli_has_value(o, settings) || left_out(o->name, not)) continue;
    for (k = 0; o->kind == CLI_FILES && k < ((const cli_files *)value)->n; k++)
      fprintf(out, "%s = %s\n", o->name, ((const cli_files *)value)->path[k]);
    if (o->kind != CLI_FILES) fprintf(out, "%s = %s\n", o->name, value_text(o, value, text, sizeof text));
  }
}

/* a number as it was read, which json_real would round */
static void json_number(cli_json *j, const char *key, double x) {
  char text[32];
  json_raw(j, key, isnan(x) ? "null" : number_text(x, text, sizeof text));
}

static void json_value(cli_json *j, const cli_option *o, const void *value) {
  const cli_numbers *list = (const cli_numbers *)value;
  char text[256];
  int i;
  switch (o->kind) {
    case CLI_FLAG:
    case CLI_STRICTLY: json_raw(j, o->name, "true"); break;
    case CLI_FILES:
      json_open(j, o->name, '[');
      for (i = 0; i < ((const cli_files *)value)->n; i++) json_text(j, NULL, ((const cli_files *)value)->path[i]);
      json_close(j);
      break;
    case CLI_NUMBERS:
      json_open(j, o->name, '[');
      for (i = 0; i < list->n; i++) json_number(j, NULL, list->value[i]);
      json_close(j);
      break;
    case CLI_INT:
    case CLI_COUNT:
    case CLI_REAL: json_number(j, o->name, number_of(o, value)); break;
    default: json_text(j, o->name, value_text(o, value, text, sizeof text));
  }
}

void settings_json(cli_json *j, const cli_command *c, const void *settings, const char *const *not) {
  int i;
  for (i = 0; i < c->n_options; i++) {
    const cli_option *o = &c->options[i];
    if (o->name && cli_has_value(o, settings) && !left_out(o->name, not))
      json_value(j, o, (const char *)settings + o->at);
  }
}
