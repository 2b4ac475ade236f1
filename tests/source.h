/* source.h: C sources read as text, for tests of how they are written: functions with their lines,
   nesting, parameters and comments. It knows as much of C as this project uses. */
#ifndef MOHAWK_SOURCE_H
#define MOHAWK_SOURCE_H

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

static int is_word(char c) { return isalnum((unsigned char)c) || c == '_'; }

static void blank(char *from, char *to) {
  for (; from < to; from++)
    if (*from != '\n') *from = ' ';
}

/* a copy of the same length with comments and the characters of strings blanked; the caller frees
   it */
static char *blanked(const char *text, size_t n) {
  char *code = (char *)malloc(n + 1), *p = code, *end;
  memcpy(code, text, n + 1);
  while (*p) {
    if (p[0] == '/' && p[1] == '*') {
      end = strstr(p + 2, "*/");
      end = end ? end + 2 : code + n;
      blank(p, end);
    } else if (p[0] == '/' && p[1] == '/') {
      end = p + strcspn(p, "\n");
      blank(p, end);
    } else if (*p == '"' || *p == '\'') {
      for (end = p + 1; *end && *end != *p && *end != '\n'; end++) end += *end == '\\' && end[1];
      blank(p + 1, end);
      end += *end && *end != '\n';
    } else {
      end = p + 1;
    }
    p = end;
  }
  return code;
}

/* the bracket that closes the one at p; NULL where none does */
static char *closing(char *p) {
  int depth = 0;
  for (; *p; p++) {
    depth += strchr("([{", *p) != NULL;
    depth -= strchr(")]}", *p) != NULL;
    if (depth == 0) return p;
  }
  return NULL;
}

/* the bracket that opens what p closes, not before from; NULL where none does */
static char *opening(char *p, const char *from) {
  int depth = 0;
  for (; p >= from; p--) {
    depth += strchr(")]}", *p) != NULL;
    depth -= strchr("([{", *p) != NULL;
    if (depth == 0) return p;
  }
  return NULL;
}

static char *skip_spaces(char *p) { return p + strspn(p, " \n\t"); }

static char *before_spaces(char *p, const char *from) { /* the last character before p that is no space, or from */
  for (p--; p > from && isspace((unsigned char)*p);) p--;
  return p;
}

/* Directives, with the lines that they go on in. Branches of #if stay, unless their braces are not
   balanced: of those only the first stays, and none where there is no other. Marks what stands
   between #ifdef MHK__TEMPLATE and its #endif. */
static void blank_directives(char *code, char *kernel) {
  enum { MOST = 32 };
  struct {
    char *from, *begin; /* of the branch; of all */
    int odd, branches, is_template;
  } open[MOST];
  char *p = code, *end, *word, *q;
  int depth = 0;
  for (; *p; p = *end ? end + 1 : end) {
    end = p + strcspn(p, "\n");
    word = p + strspn(p, " ");
    if (*word != '#') continue;
    while (*end && end[-1] == '\\') end += 1 + strcspn(end + 1, "\n");
    word += 1 + strspn(word + 1, " ");
    if (!strncmp(word, "if", 2) && depth < MOST) {
      open[depth].is_template = !strncmp(word, "ifdef MHK__TEMPLATE", 19);
      open[depth].from = open[depth].begin = end;
      open[depth].odd = open[depth].branches = 0;
      depth++;
    } else if ((!strncmp(word, "el", 2) || !strncmp(word, "endif", 5)) && depth > 0) {
      const int last = word[1] == 'n';
      int braces = 0;
      depth--;
      for (q = open[depth].from; q < p; q++) braces += (*q == '{') - (*q == '}');
      if (open[depth].branches == 0) open[depth].odd = braces != 0;
      if (open[depth].odd && (open[depth].branches > 0 || last)) blank(open[depth].from, p);
      open[depth].branches++;
      open[depth].from = end;
      if (last && open[depth].is_template)
        memset(kernel + (open[depth].begin - code), 1, (size_t)(p - open[depth].begin));
      if (!last) depth++;
    }
    blank(p, end);
  }
}

static int starts_with_word(const char *p, const char *word) {
  const size_t n = strlen(word);
  return !strncmp(p, word, n) && !is_word(p[n]);
}

/* Reads one statement at p and returns what follows it; *deepest becomes the number of blocks
   around its innermost part, depth of which are around itself. A block without braces counts. */
static char *read_statement(char *p, int depth, int *deepest) {
  static const char *const heads[] = {"if", "for", "while", "switch", "else", "do"};
  size_t i;
  char *q;
  p = skip_spaces(p);
  if (*p == '{') { /* depth counts it already where it belongs to a head */
    for (p = skip_spaces(p + 1); *p && *p != '}'; p = skip_spaces(p)) p = read_statement(p, depth, deepest);
    return *p ? p + 1 : p;
  }
  if (depth > *deepest) *deepest = depth;
  for (i = 0; i < sizeof heads / sizeof *heads; i++) {
    if (!starts_with_word(p, heads[i])) continue;
    p = skip_spaces(p + strlen(heads[i]));
    if (i == 4 && starts_with_word(p, "if")) return read_statement(p, depth, deepest);
    if (*p == '(') p = (q = closing(p)) ? q + 1 : p + strlen(p);
    p = skip_spaces(p);
    if (*p == ';') return p + 1;
    return read_statement(p, depth + 1, deepest);
  }
  for (q = p; is_word(*q);) q++;
  if (q > p && *q == '(' && closing(q)) { /* a macro with a block is a head too */
    char *after = skip_spaces(closing(q) + 1);
    if (*after == '{') return read_statement(after, depth + 1, deepest);
  }
  q = skip_spaces(q);
  if (starts_with_word(p, "case") || *q == ':') { /* a label */
    q = strchr(p, ':');
    return q ? read_statement(q + 1, depth, deepest) : p + strlen(p);
  }
  for (; *p && *p != ';' && *p != '}'; p++)
    if (strchr("([{", *p)) p = (q = closing(p)) ? q : p + strlen(p) - 1;
  return *p == ';' ? p + 1 : p;
}

typedef struct function {
  char name[96];
  int line, lines, nesting, parameters;
  int is_public;    /* MHKDEF */
  int is_static;
  int is_kernel;    /* part of what is compiled for each instruction set */
  int is_commented; /* above it; a declaration's may stand behind it, or above its group of lines */
  int is_defined;
  int is_test; /* TEST(name) */
} function;

static int count_parameters(const char *open, const char *close) {
  int n = 1, depth = 0;
  const char *p = open + 1;
  while (p < close && isspace((unsigned char)*p)) p++;
  if (p == close || (starts_with_word(p, "void") && p + 4 == close)) return 0;
  for (; p < close; p++) {
    depth += (strchr("([{", *p) != NULL) - (strchr(")]}", *p) != NULL);
    n += *p == ',' && depth == 0;
  }
  return n;
}

/* whether a comment that began a line ends right above the line at `at`, directives left aside;
   whole_group: or above the lines that follow each other without an empty one */
static int commented_above(const char *text, const char *at, int whole_group) {
  while (at > text) {
    const char *end = at - 1, *line = end, *open;
    while (line > text && line[-1] != '\n') line--;
    open = line + strspn(line, " ");
    if (*open == '#') {
      at = line;
      continue;
    }
    if (open == end) return 0;
    if (open[0] == '/' && open[1] == '/') return 1;
    if (end - line >= 2 && end[-1] == '/' && end[-2] == '*') {
      for (open = end - 2; open > text && !(open[0] == '/' && open[1] == '*');) open--;
      while (open > text && open[-1] == ' ') open--;
      if (open == text || open[-1] == '\n') return 1;
    }
    if (!whole_group) return 0;
    at = line;
  }
  return 0;
}

/* the name before the parameters at open: NAME(, or NAME inside MACRO(NAME)( */
static int read_name(char *open, const char *code, char *name, size_t room, const char **at) {
  char *end = before_spaces(open, code) + 1, *start;
  size_t n;
  if (end[-1] == ')') { /* MACRO(NAME)(parameters) */
    start = opening(end - 1, code);
    if (!start || start == code || !is_word(start[-1])) return 0;
    end--;
    start++;
  } else {
    for (start = end; start > code && is_word(start[-1]);) start--;
  }
  n = (size_t)(end - start);
  if (n == 0 || n >= room || isdigit((unsigned char)*start)) return 0;
  memcpy(name, start, n);
  name[n] = 0;
  *at = start;
  return 1;
}

static int line_number(const char *text, const char *at) {
  int n = 1;
  for (; text < at; text++) n += *text == '\n';
  return n;
}

/* what stands before the { or ; at end, as a function; 0 where it is none */
static int read_head(const char *text, char *code, char *end, function *f) {
  char *close = before_spaces(end, code), *open;
  const char *name, *line;
  memset(f, 0, sizeof *f);
  if (*close != ')') return 0;
  open = opening(close, code);
  if (!open || !read_name(open, code, f->name, sizeof f->name, &name)) return 0;
  if (!strcmp(f->name, "TEST") && (size_t)(close - open) < sizeof f->name) {
    f->is_test = 1;
    memcpy(f->name, open + 1, (size_t)(close - open));
    f->name[close - open - 1] = 0;
  }
  for (line = name; line > code && line[-1] != '\n';) line--;
  f->line = line_number(code, line);
  f->parameters = count_parameters(open, close);
  f->is_public = starts_with_word(line, "MHKDEF");
  f->is_static = starts_with_word(line, "static");
  f->is_defined = *end == '{';
  f->is_commented = commented_above(text, text + (line - code), !f->is_defined);
  if (!f->is_defined && text[end + 1 - code] != '\n') f->is_commented = 1; /* behind it */
  f->lines = line_number(line, end);
  return 1;
}

/* All functions that a source defines, and the public ones that it declares. Returns how many, at
   most `most`, or -1 where a bracket is not closed. */
static int find_functions(const char *text, function *list, int most) {
  const size_t size = strlen(text);
  char *code = blanked(text, size), *kernel = (char *)calloc(size + 1, 1), *p, *end;
  int n = 0;
  blank_directives(code, kernel);
  for (p = code; *p && n < most; p++) {
    function f;
    if (*p == '(' && closing(p)) p = closing(p);
    if (*p != '{' && *p != ';') continue;
    end = *p == '{' ? closing(p) : p;
    if (!end) {
      n = -1;
      break;
    }
    if (read_head(text, code, p, &f) && (f.is_defined || f.is_public)) {
      f.is_kernel = kernel[p - code];
      if (f.is_defined) {
        f.lines += line_number(p, end) - 1;
        read_statement(p, 0, &f.nesting);
      }
      list[n++] = f;
    }
    p = end;
  }
  free(kernel);
  free(code);
  return n;
}

#endif
