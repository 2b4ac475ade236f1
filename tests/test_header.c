/* The header as a file: contents against banners, sections that only look upward, examples that
   compile as printed, what a program sees of it after including it, and how it links. Needs a C
   compiler (CC) at run time; the C++ parts are skipped without one (CXX). */
#include "source.h"
#include "test.h"

#define WARNINGS "-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion -Werror"

static char *header, *plain; /* as it is; with comments and strings blanked, same length */
static size_t length;

static const char *compiler(void) { return getenv("CC") ? getenv("CC") : "cc"; }
static const char *cxx_compiler(void) { return getenv("CXX") ? getenv("CXX") : "c++"; }

/* Runs a command; on failure prints the start of what it said. */
static int shell(const char *format, ...) {
  char command[4096], full[5000];
  const char *log = test_path("command.log");
  va_list args;
  int code;
  va_start(args, format);
  vsnprintf(command, sizeof command, format, args);
  va_end(args);
  snprintf(full, sizeof full, "(%s) >%s 2>&1 </dev/null", command, log);
  code = system(full);
  return code == 0;
}
static void show_log(void) {
  char *text = test_read_file(test_path("command.log"), NULL);
  if (text) printf("%.1500s\n", text);
  free(text);
}
#define SHELL(...) \
  (shell(__VA_ARGS__) ? test_one_more_check() : (show_log(), test_failure(__FILE__, __LINE__, "command succeeds", \
    __VA_ARGS__)))

static void write_text(const char *name, const char *text) {
  CHECK(test_write_file(test_path(name), text, strlen(text)), "cannot write %s", name);
}

static void load(void) {
  if (header) return;
  header = test_read_file("mohawk.h", &length);
  if (!header) {
    printf("mohawk.h is not here: run this from the top folder\n");
    exit(1);
  }
  plain = blanked(header, length);
}

static int line_of(const char *at) {
  int n = 1;
  const char *p;
  for (p = header; p < at; p++) n += *p == '\n';
  return n;
}

/* Lines of a file: code up to 120 columns; lines of nothing but a comment, which are read as prose,
   up to 100. */
static void check_lines(const char *path, const char *text) {
  char *code = blanked(text, strlen(text));
  const char *p = text, *end;
  int n = 0;
  for (; *p; p = *end ? end + 1 : end) {
    const char *rest = code + (p - text);
    int most;
    end = p + strcspn(p, "\n");
    rest += strspn(rest, " ");
    most = end > p && (*rest == '\n' || *rest == 0 || !strncmp(rest, "//", 2)) ? 100 : 120;
    n++;
    CHECK(end - p <= most, "%s, line %d has %d columns: %d are allowed", path, n, (int)(end - p), most);
    CHECK(!memchr(p, '\t', (size_t)(end - p)), "%s, line %d has a tab", path, n);
    CHECK(end == p || (end[-1] != ' ' && end[-1] != '\r'), "%s, line %d ends with a space", path, n);
  }
  free(code);
}

/* Gives every C source of the project to `each`, mohawk.h first. */
static void each_source(void (*each)(const char *path, const char *text)) {
  char *list, *path, *next;
  int files = 0;
  SHELL("ls mohawk.h tests/*.[ch] tests/*/*.[ch] tools/*.[ch] tools/*/*.[ch] tools/*/*.cpp examples/*.c examples/*.cc "
        "examples/*/*.[ch]");
  list = test_read_file(test_path("command.log"), NULL);
  CHECK(list != NULL, "there is no list of files");
  for (path = list; path && *path; path = next) {
    char *text;
    next = path + strcspn(path, "\n");
    if (*next) *next++ = 0;
    text = test_read_file(path, NULL);
    CHECK(text != NULL, "%s cannot be read", path);
    if (text) each(path, text);
    files += text != NULL;
    free(text);
  }
  free(list);
  CHECK(files > 60, "only %d files were read", files);
}

TEST(lines_fit) { each_source(check_lines); }

/* ------------------------------------------------------------------------------------- budgets */

enum {
  MOST_BYTES = 1184000, /* of the header; it may only become smaller */
  MOST_LINES = 80, /* of a function, */
  MOST_KERNEL_LINES = 120, /* of one that is compiled for each instruction set */
  MOST_NESTING = 5,
  MOST_PUBLIC_PARAMETERS = 7,
  MOST_PARAMETERS = 10,
  MOST_UNEXPLAINED = 30 /* lines of a static function without a comment above */
};

static int functions_seen;

/* what a file's functions break, one text each */
typedef struct findings {
  int n, functions;
  char what[400][160];
} findings;

static void find(findings *out, const char *path, const function *f, const char *what, int n, int most) {
  if (n <= most || out->n == 400) return;
  snprintf(out->what[out->n++], sizeof *out->what, "%s %s: %s", path, f->name, what);
}

static void find_over_budget(findings *out, const char *path, const char *text) {
  enum { MOST = 4000 };
  function *list = (function *)malloc(MOST * sizeof *list);
  int i;
  out->n = 0;
  out->functions = find_functions(text, list, MOST);
  for (i = 0; i < out->functions; i++) {
    const function *f = &list[i];
    find(out, path, f, "lines", f->lines, f->is_kernel ? MOST_KERNEL_LINES : MOST_LINES);
    find(out, path, f, "nesting", f->nesting, MOST_NESTING);
    find(out, path, f, "parameters", f->parameters, f->is_public ? MOST_PUBLIC_PARAMETERS : MOST_PARAMETERS);
    if (f->is_public && !f->is_defined) find(out, path, f, "no comment", !f->is_commented, 0);
    if (f->is_static && !f->is_commented) find(out, path, f, "no comment", f->lines, MOST_UNEXPLAINED);
  }
  free(list);
}

static void check_budget(const char *path, const char *text) {
  static findings found;
  int i;
  find_over_budget(&found, path, text);
  CHECK(found.functions >= 0, "%s: a bracket is not closed", path);
  functions_seen += found.functions;
  for (i = 0; i < found.n; i++) CHECK(0, "%s: over the budget of a function", found.what[i]);
}

TEST(the_header_stays_small) {
  CHECK(length <= MOST_BYTES, "mohawk.h has %lld bytes: %d are allowed", (long long)length, (int)MOST_BYTES);
}

TEST(functions_fit_their_budget) {
  functions_seen = 0;
  each_source(check_budget);
  CHECK(functions_seen > 2000, "only %d functions were found", functions_seen);
}

/* the reader of functions finds what it is there to find, and nothing else */
TEST(budgets_are_seen) {
  static const char *const wanted[] = {
      "x.c long_one: lines",         "x.c long_one: no comment", "x.c deep: nesting",
      "x.c many: parameters",        "x.c mhk_many: parameters", "x.c mhk_bare: no comment",
      "x.c long_kernel: lines",      "x.c long_kernel: no comment", "x.c bare_kernel: no comment",
      "x.c after_odd_brackets: nesting"};
  static findings found;
  char line[80], *text = (char *)calloc(1, 100000);
  size_t i;
  int n;
  strcat(text, "#define MACRO(x) { x }\n/* } { */ static const char *s = \"}{\\\"\", c = '{';\n"
               "MHKDEF int mhk_bare(int a);\n\n/* said */\nMHKDEF int mhk_said(int a);\nMHKDEF int mhk_too(int a);\n\n"
               "MHKDEF int mhk_behind(int a); /* said */\n\n"
               "/* many */\nMHKDEF int mhk_many(int, int, int, int, int, int, int, int);\n"
               "struct s { int x[3]; };\nstatic int x[] = {1, 2};\n");
  strcat(text, "static int many(int a, int (*b)(int, int), int c, int d, int e, int f, int g, int h, int i, int j, "
               "int k) { return 1; }\n"
               "static int few(int (*b)(int, int, int, int, int, int, int, int, int, int, int, int)) { return b; }\n"
               "static int deep(int a) {\n  for (;;) if (a) while (a) { switch (a) { case 1: if (a) do a++; while (a); "
               "} }\n  return 1;\n}\n"
               "static int flat(int a) {\n  if (a) a++;\n  else if (a == 1) a--;\n  else if (a == 2) a--;\n  else if "
               "(a == 3) a--;\n  else if (a == 4) a--;\n  else if (a == 5) { a--; }\n  return a;\n}\n");
  strcat(text, "static int odd(int a) {\n#ifdef A\n  if (a) {\n#else\n  if (!a) {\n#endif\n    a++;\n  }\n  return "
               "a;\n}\nstatic int after_odd_brackets(int a) { if (a) if (a) if (a) if (a) if (a) if (a) a++; }\n");
  for (n = 0; n < 4; n++) {
    static const char *const heads[] = {"static int long_one(int a) {\n", "TEST(long_enough) {\n",
                                        "#ifdef MHK__TEMPLATE\nstatic int MHK__N(bare_kernel)(int a) {\n",
                                        "static int MHK__N(long_kernel)(int a) {\n"};
    static const int lines[] = {79, 78, 118, 119};
    int k;
    strcat(text, heads[n]);
    for (k = 0; k < lines[n]; k++) snprintf(line, sizeof line, "  a += %d;\n", k), strcat(text, line);
    strcat(text, "}\n");
  }
  strcat(text, "#endif\n");
  find_over_budget(&found, "x.c", text);
  CHECK(found.functions == 15, "%d functions were found", found.functions);
  CHECK(found.n == (int)(sizeof wanted / sizeof *wanted), "%d findings", found.n);
  for (i = 0; i < sizeof wanted / sizeof *wanted; i++) {
    for (n = 0; n < found.n && strcmp(found.what[n], wanted[i]); n++) {}
    CHECK(n < found.n, "it does not find \"%s\"", wanted[i]);
  }
  for (n = 0; n < found.n; n++) {
    for (i = 0; i < sizeof wanted / sizeof *wanted && strcmp(found.what[n], wanted[i]); i++) {}
    CHECK(i < sizeof wanted / sizeof *wanted, "it finds \"%s\"", found.what[n]);
  }
  find_over_budget(&found, "x.c", "int f(void) { return 1; }\nint g(void) { if (1) { return 2; }\n");
  CHECK(found.functions < 0, "it does not see that a bracket is not closed");
  free(text);
}

/* C2y spells them 0o666 and warns about the others, which no older C can read */
TEST(no_octal_numbers) {
  const char *p;
  for (p = plain + 1; *p; p++)
    CHECK(*p != '0' || !isdigit((unsigned char)p[1]) || isalnum((unsigned char)p[-1]) || strchr("_.", p[-1]),
          "line %d has the octal number %.6s", line_of(header + (p - plain)), p);
}

TEST(version) {
  char number[40];
  snprintf(number, sizeof number, "%d.%d.%d", MHK_VERSION_MAJOR, MHK_VERSION_MINOR, MHK_VERSION_PATCH);
  CHECK(!strcmp(number, MHK_VERSION), "MHK_VERSION is %s, the numbers say %s", MHK_VERSION, number);
  CHECK(!strcmp(mhk_version(), MHK_VERSION), "mhk_version() is %s", mhk_version());
  snprintf(number, sizeof number, "#define MHK__TEXT %d\n",
           10000 * MHK_VERSION_MAJOR + 100 * MHK_VERSION_MINOR + MHK_VERSION_PATCH);
  CHECK(strstr(header, number) != NULL, "the version of the text is not that of the interface: no %s", number);
  {
    const char *first = header + strspn(header, " /*\n"), *end = first + strcspn(first, "\n"), *v;
    for (v = first; v < end; v++)
      if (*v == 'v' && isdigit((unsigned char)v[1]))
        CHECK(!strncmp(v + 1, MHK_VERSION, strlen(MHK_VERSION)), "the first line says %.10s", v);
  }
}

/* ------------------------------------------------------------------------ contents and sections */

enum { MOST_SECTIONS = 64 };
static struct section {
  char tag[40], title[40];
  const char *at;
} sections[MOST_SECTIONS];
static int n_sections;

static int read_tag(const char *at, char *tag) { /* at ">>" */
  size_t n = 0;
  for (at += 2; isalnum((unsigned char)*at) || *at == '_' || *at == '-'; at++)
    if (n < 38) tag[n++] = *at;
  tag[n] = 0;
  return n > 0;
}

/* a banner is a comment whose first line is a rule and whose second holds TITLE: ... >>tag */
static void find_sections(void) {
  const char *p = header;
  if (n_sections) return;
  while ((p = strstr(p, "/* ====")) != NULL) {
    const char *line = strchr(p, '\n'), *end, *mark;
    if (!line) break;
    line++;
    end = line + strcspn(line, "\n");
    for (mark = line; mark + 1 < end && !(mark[0] == '>' && mark[1] == '>'); mark++) {}
    if (mark + 1 < end && n_sections < MOST_SECTIONS) {
      struct section *s = &sections[n_sections];
      size_t n = 0;
      const char *t = line + strspn(line, " ");
      while (n < 38 && (isupper((unsigned char)t[n]) || isdigit((unsigned char)t[n]) || t[n] == ' ' || t[n] == '-'))
        n++;
      while (n && t[n - 1] == ' ') n--;
      memcpy(s->title, t, n);
      s->title[n] = 0;
      s->at = p;
      if (read_tag(mark, s->tag)) n_sections++;
    }
    p = end;
  }
}

TEST(contents) {
  const char *page_end, *p;
  int listed = 0;
  find_sections();
  REQUIRE(n_sections > 5, "%d sections", n_sections);
  page_end = sections[0].at;
  for (p = header; (p = strstr(p, ">>")) != NULL; p += 2) { /* every mention of a tag, anywhere */
    char tag[40];
    int known = 0, i;
    if (!read_tag(p, tag) || !strcmp(tag, "tag") || !isalpha((unsigned char)tag[0])) continue;
    for (i = 0; i < n_sections; i++) known |= !strcmp(tag, sections[i].tag);
    CHECK(known, "line %d names >>%s, there is no such section", line_of(p), tag);
  }
  p = strstr(header, "CONTENTS (");
  REQUIRE(p != NULL, "there are no contents");
  for (; (p = strstr(p, ">>")) != NULL && p < page_end; p += 2) {
    char tag[40], line[300];
    const char *start = p;
    size_t n, i;
    if (!read_tag(p, tag)) continue;
    if (!strcmp(tag, "tag")) continue; /* how to search */
    while (start > header && start[-1] != '\n') start--;
    n = strcspn(start, "\n");
    if (n >= sizeof line) n = sizeof line - 1;
    for (i = 0; i < n; i++) line[i] = (char)toupper((unsigned char)start[i]);
    line[n] = 0;
    REQUIRE(listed < n_sections, "the contents list >>%s, there is no such section", tag);
    CHECK(!strcmp(tag, sections[listed].tag), "the contents list >>%s where >>%s stands", tag, sections[listed].tag);
    CHECK(strstr(line, sections[listed].title) != NULL, "the contents do not call >>%s %s", tag,
          sections[listed].title);
    listed++;
  }
  CHECK(listed == n_sections, "%d sections, %d in the contents (the first missing is >>%s)", n_sections, listed,
        listed < n_sections ? sections[listed].tag : "");
}

/* ---------------------------------------------------------------------------------------- words */

/* finds a phrase in any case and across line ends; NULL if it is absent */
static const char *find_phrase(const char *text, const char *end, const char *phrase) {
  for (; text < end; text++) {
    const char *p = text, *q = phrase;
    while (*q && p < end) {
      if (*q == ' ' && isspace((unsigned char)*p)) {
        q++;
        while (p < end && isspace((unsigned char)*p)) p++;
      } else if (tolower((unsigned char)*p) == tolower((unsigned char)*q)) {
        p++, q++;
      } else {
        break;
      }
    }
    if (!*q) return text;
  }
  return NULL;
}

TEST(chapters_use_the_words_of_the_field) { /* a reader who searches for them arrives */
  static const char *const words[][2] = {
      {"products", "GEMM"},
      {"products", "GEMV"},
      {"attention", "FlashAttention"},
      {"attention", "online softmax"},
      {"ssd", "chunked scan"},
      {"ssd", "state-space duality"},
      {"losses", "matrix orientation"},
      {"losses", "hidden-state alignment"},
      {"losses", "knowledge distillation"},
      {"mohawk", "matrix orientation"},
      {"mohawk", "hidden-state alignment"},
      {"mohawk", "knowledge distillation"},
      {"mohawk", "weight transfer"},
  };
  size_t w;
  find_sections();
  for (w = 0; w < sizeof words / sizeof *words; w++) {
    int i = 0;
    while (i < n_sections && strcmp(sections[i].tag, words[w][0])) i++;
    REQUIRE(i < n_sections, "there is no section >>%s", words[w][0]);
    CHECK(find_phrase(sections[i].at, i + 1 < n_sections ? sections[i + 1].at : header + length, words[w][1]) != NULL,
          "the section >>%s does not say \"%s\"", words[w][0], words[w][1]);
  }
}

/* Phrases that make a native reader stumble, and British spellings: the project is spelled as its
   names are. */
static void check_phrases(const char *path, const char *text) {
  static const char *const phrases[] = {
      "be had",       "stands twice",    "in turns",        "makes no sense", "make no sense",  "of no meaning",
      "was given no", "is no number",    "is no checkpoint", "is no valid",   "not known here", "not done here",
      "is told.",     "are told",        "lies beside",     "one's own",      "at the place",   "optimiser",
      "normalis",     "tokenis",                 "neighbour",      "behaviour",      "colour",
      "licence",      "distils",         "centre",          "is cut off",   "so many others", "in place of the one",
  };
  const char *end = text + strlen(text);
  size_t i;
  for (i = 0; i < sizeof phrases / sizeof *phrases; i++) {
    const char *at = find_phrase(text, end, phrases[i]), *p;
    int line = 1;
    for (p = text; at && p < at; p++) line += *p == '\n';
    CHECK(!at, "%s, line %d says \"%s\"", path, line, phrases[i]);
  }
}
static void check_phrases_of_the_product(const char *path, const char *text) {
  if (strncmp(path, "tests/", 6)) check_phrases(path, text);
}

TEST(no_words_that_stumble) {
  static const char *const pages[] = {"README.md", "tools/bench/README.md", "tests/golden/README.md", "tools/mohawk.1"};
  size_t i;
  each_source(check_phrases_of_the_product);
  for (i = 0; i < sizeof pages / sizeof *pages; i++) {
    char *text = test_read_file(pages[i], NULL);
    CHECK(text != NULL, "%s is missing", pages[i]);
    if (text) check_phrases(pages[i], text);
    free(text);
  }
}

/* words from p to the end of its sentence, at most to end; *next: where the following one starts */
static int words_of_sentence(const char *p, const char *end, const char **next) {
  int words = 0;
  while (p < end) {
    int letters = 0;
    while (p < end && isspace((unsigned char)*p)) p++;
    for (; p < end && !isspace((unsigned char)*p); p++) letters |= isalnum((unsigned char)*p) != 0;
    words += letters;
    if (p > next[0] && strchr(".!?", p[-1])) break;
  }
  *next = p;
  return words;
}

/* numbers in a cell of a table that ends at '|' */
static int numbers_of_cell(const char *p) {
  int n = 0;
  while (*p && *p != '|' && *p != '\n') {
    if (!isdigit((unsigned char)*p++)) continue;
    n++;
    while (isdigit((unsigned char)*p) || (*p == '.' && isdigit((unsigned char)p[1]))) p++;
  }
  return n;
}

TEST(readme_is_short_and_plain) { /* lines, words of a sentence, numbers of a cell */
  char *text = test_read_file("README.md", NULL), *line, *next;
  int lines = 0, code = 0;
  REQUIRE(text != NULL, "there is no README.md");
  for (line = text; *line; line = next) {
    char *end = line + strcspn(line, "\n");
    next = *end ? end + 1 : end;
    lines++;
    if (!strncmp(line, "```", 3)) code = !code;
    if (code || *line == '#' || *line == '!' || *line == '`') continue;
    if (*line == '|') {
      const char *cell;
      for (cell = line + 1; cell < end; cell += strcspn(cell, "|\n") + 1)
        CHECK(numbers_of_cell(cell) <= 2, "README.md, line %d: a cell with %d numbers", lines, numbers_of_cell(cell));
      continue;
    }
    if (line == text || line[-1] != '\n' || (line > text + 1 && line[-2] != '\n' && *line != '*')) continue;
    {
      const char *p = line, *stop = line; /* a paragraph, or an item of a list */
      while (*stop && !(*stop == '\n' && (stop[1] == '\n' || stop[1] == '*' || stop[1] == '#'))) stop++;
      while (p < stop) {
        const char *start = p, *after = p;
        const int words = words_of_sentence(p, stop, &after);
        p = after;
        CHECK(words <= 35, "README.md, line %d: a sentence of %d words: %.60s", lines, words, start);
      }
    }
  }
  CHECK(lines < 140, "README.md has %d lines", lines);
  free(text);
}

static int section_of(const char *at_header) {
  int s = n_sections;
  while (s > 0 && sections[s - 1].at > at_header) s--;
  return s - 1;
}

/* Where each function is defined (its section), then every call from a section above it. */
TEST(sections_look_upward) {
  static struct {
    char name[64];
    int section;
  } defined[4096];
  int n = 0, i, calls = 0;
  const char *p = plain, *implementation;
  find_sections();
  for (i = 0; i < n_sections && strcmp(sections[i].tag, "platform"); i++) {}
  REQUIRE(i < n_sections, "there is no section >>platform");
  implementation = plain + (sections[i].at - header);
  for (p = plain; *p; p += strcspn(p, "\n"), p += *p == '\n')
    if (p > implementation &&
        /* a definition: the parameter list is followed by { */
        (!strncmp(p, "static ", 7) || !strncmp(p, "MHKDEF ", 7))) {
      const char *open = p, *name, *close;
      int depth = 0;
      while (*open && *open != '(' && *open != ';' && *open != '{' && *open != '=') open++;
      if (*open != '(') continue;
      for (name = open; name > p && is_word(name[-1]); name--) {}
      for (close = open; *close; close++) {
        depth += (*close == '(') - (*close == ')');
        if (!depth) break;
      }
      close++;
      while (isspace((unsigned char)*close)) close++;
      if (*close != '{' || strncmp(name, "mhk_", 4) || open - name > 62 || n >= 4096) continue;
      memcpy(defined[n].name, name, (size_t)(open - name));
      defined[n].name[open - name] = 0;
      defined[n].section = section_of(header + (name - plain));
      n++;
    }
  CHECK(n > 200, "only %d functions were found", n);
  for (p = implementation; *p; p++)
    /* MHK__N() makes a kernel's name of another */
    if (!is_word(p[-1]) && !strncmp(p, "mhk_", 4) && strncmp(p - 7, "MHK__N(", 7)) {
      const char *end = p;
      while (is_word(*end)) end++;
      for (i = 0; i < n; i++)
        if (strlen(defined[i].name) == (size_t)(end - p) && !memcmp(defined[i].name, p, (size_t)(end - p))) {
          const int here = section_of(header + (p - plain));
          calls++;
          CHECK(defined[i].section <= here, "line %d, in >>%s, uses %s of >>%s below it", line_of(header + (p - plain)),
                sections[here].tag, defined[i].name, sections[defined[i].section].tag);
        }
      p = end - 1;
    }
  CHECK(calls > 500, "only %d calls were found", calls);
}

/* every declared function is in some test */
TEST(every_function_is_tested) {
  static const char *const names[] = {"tests/test_errors.c",    "tests/test_ops.c",         "tests/test_golden.c",
                                      "tests/test_sessions.c",  "tests/test_determinism.c", "tests/test_memory.c",
                                      "tests/test_precision.c", "tests/test_inference.c",   "tests/test_sampling.c",
                                      "tests/test_quant.c",     "tests/test_foreign.c",     "tests/test_writing.c",
                                      "tests/test_files.c",     "tests/test_tokenizer.c",   "tests/test_models.c",
                                      "tests/test_outputs.c"};
  enum { FILES = sizeof names / sizeof *names };
  char *tests[FILES];
  const char *p = plain, *end;
  int i, n = 0;
  for (i = 0; i < FILES; i++) {
    tests[i] = test_read_file(names[i], NULL);
    REQUIRE(tests[i] != NULL, "no %s", names[i]);
  }
  end = strstr(header, "IMPLEMENTATION\n   ==="); /* declarations end there */
  end = end ? plain + (end - header) : plain + length;
  for (; (p = strstr(p, "MHKDEF ")) != NULL && p < end; p += 7) {
    const char *open = strchr(p, '('), *name;
    char function[80];
    int found = 0;
    if (!open || memchr(p, '\n', (size_t)(open - p))) continue;
    for (name = open; is_word(name[-1]); name--) {}
    snprintf(function, sizeof function, "%.*s(", (int)(open - name), name);
    if (strncmp(function, "mhk_", 4)) continue;
    for (i = 0; i < FILES; i++) found |= strstr(tests[i], function) != NULL;
    CHECK(found, "no test calls %s)", function);
    n++;
  }
  CHECK(n > 100, "only %d functions were found", n);
  for (i = 0; i < FILES; i++) free(tests[i]);
}

/* ------------------------------------------------------------------------------------- examples */

/* The first complete program in text from `from` on: from its first #define or #include to the
   closing brace of main, indentation removed.
 */
static char *program_in(const char *text, const char *from, const char *until) {
  const char *define = strstr(from, "#define MOHAWK_IMPLEMENTATION"), *line, *p;
  char *out;
  size_t n = 0, indent;
  if (!define || (until && define > until)) return NULL;
  for (line = define; line > text && line[-1] != '\n'; line--) {}
  indent = (size_t)(define - line);
  out = (char *)malloc(strlen(line) + 2);
  for (p = line; *p;) {
    const size_t size = strcspn(p, "\n");
    const size_t skip = strspn(p, " ") < indent ? strspn(p, " ") : indent;
    memcpy(out + n, p + skip, size - skip);
    n += size - skip;
    out[n++] = '\n';
    if (size - skip == 1 && p[skip] == '}') break; /* a brace in the first column ends main */
    p += size + (p[size] == '\n');
  }
  out[n] = 0;
  return out;
}

/* Compiles a program strictly and runs it where every path that it loads is the bundled model. */
static void try_program(const char *name, const char *code, int run) {
  char file[64];
  const char *p;
  snprintf(file, sizeof file, "%s.c", name);
  write_text(file, code);
  CHECK(strstr(code, "int main(") != NULL, "%s: no main", name);
  SHELL("%s -std=c99 %s -O0 -I. %s -o %s -lm", compiler(), WARNINGS, test_path(file), test_path(name));
  if (!run) return;
  for (p = code; (p = strstr(p, "mhk_load(")) != NULL; p++) {
    const char *quote = strchr(p, '"');
    if (quote && quote - p < 40) {
      const int size = (int)strcspn(quote + 1, "\"");
      shell("cd %s && mkdir -p \"$(dirname '%.*s')\" && rm -rf '%.*s' && ln -s \"$OLDPWD/examples/tiny\" '%.*s'",
            test_path(""), size, quote + 1, size, quote + 1, size, quote + 1);
    }
  }
  SHELL("cd %s && ./%s && ./%s | grep -q '[a-z]'", test_path(""), name, name);
}

TEST(quick_start) {
  char *code;
  find_sections();
  REQUIRE(n_sections > 0, "no sections");
  code = program_in(header, header, sections[0].at);
  REQUIRE(code != NULL, "there is no quick start on the front page");
  try_program("quick_start", code, 1);
  free(code);
}

TEST(readme_examples) {
  char *readme = test_read_file("README.md", NULL);
  const char *p = readme;
  int n = 0;
  if (!readme) {
    SKIP("there is no README.md");
    return;
  }
  while ((p = strstr(p, "```c\n")) != NULL) {
    const char *end = strstr(p + 5, "```");
    char *code;
    if (!end) break;
    code = (char *)malloc((size_t)(end - p));
    memcpy(code, p + 5, (size_t)(end - p - 5));
    code[end - p - 5] = 0;
    if (strstr(code, "int main(")) {
      char name[32];
      snprintf(name, sizeof name, "readme_%d", ++n);
      try_program(name, code, 0);
    }
    free(code);
    p = end + 3;
  }
  CHECK(n > 0, "README.md has no C example with a main");
  free(readme);
}

TEST(example_programs) {
  SHELL(
      "for f in examples/*.c; do [ -e \"$f\" ] && [ $f != examples/mpi.c ] || continue; %s -std=c99 -Wall -Wextra "
      "-O0 -I. \"$f\" -o %s -lm || exit 1; done",
      compiler(), test_path("example"));
  /* one prompt, its state copied, saved and loaded: the greedy continuation is that of the prompt
     itself */
  SHELL("%s -std=c99 -O1 -I. examples/prefix.c -o %s -lm && %s examples/tiny 'Once upon a time' %s >%s", compiler(),
        test_path("prefix"), test_path("prefix"), test_path("prefix.state"), test_path("prefix.txt"));
  /* a mixer of one's own, from its definition to the text of a distilled student */
  SHELL("%s -std=c99 -O1 -I. examples/new_mixer.c -o %s -lm && %s examples/tiny %s >%s", compiler(),
        test_path("new_mixer"), test_path("new_mixer"), test_path("new_mixer_student"), test_path("new_mixer.txt"));
  SHELL("grep -q 'stage 3  update 5 of 5' %s && grep -q 'examples.capped_ssd' %s/config.json",
        test_path("new_mixer.txt"), test_path("new_mixer_student"));
  SHELL(
      "grep -q '^1: ...' %s && grep -q '^3: ...' %s && grep -q '^loaded: ....*[a-z]' %s && grep -q 'tokens: fed in' %s",
      test_path("prefix.txt"), test_path("prefix.txt"), test_path("prefix.txt"), test_path("prefix.txt"));
}

/* -------------------------------------------------------------------------- what a program sees */

TEST(compiles_strictly) { /* .ci/run does it for more compilers and with their optimizers' warnings */
  static const char *const variants[] = {"", "-DMOHAWK_DOUBLE", "-DMOHAWK_STATIC"};
  size_t i;
  write_text("implementation.c", "#define MOHAWK_IMPLEMENTATION\n#include \"mohawk.h\"\n");
  write_text("implementation.cc", "#define MOHAWK_IMPLEMENTATION\n#include \"mohawk.h\"\n");
  write_text("declarations.c",
             "#include \"mohawk.h\"\n#include \"mohawk.h\"\nint main(void) { return mhk_create(NULL) == NULL; }\n");
  for (i = 0; i < 3; i++)
    SHELL("%s -std=c99 %s %s -fsyntax-only -I. %s", compiler(), WARNINGS, variants[i], test_path("implementation.c"));
  SHELL("%s -std=c99 %s -fsyntax-only -I. %s", compiler(), WARNINGS, test_path("declarations.c"));
  if (!shell("%s --version", cxx_compiler())) {
    printf("C++ is skipped: no compiler (%s)\n", cxx_compiler());
    return;
  }
  SHELL("%s -std=c++11 %s -fsyntax-only -I. %s", cxx_compiler(), WARNINGS, test_path("implementation.cc"));
}

TEST(leaves_nothing_behind) {
  char *before, *after;
  const char *p;
  write_text("implementation.c", "#define MOHAWK_IMPLEMENTATION\n#include \"mohawk.h\"\n");
  write_text("empty.c", "int empty;\n");
  SHELL("%s -std=c99 -I. -E -dM %s >%s", compiler(), test_path("implementation.c"), test_path("after.txt"));
  SHELL("%s -std=c99 -I. -E -dM %s >%s", compiler(), test_path("empty.c"), test_path("before.txt"));
  before = test_read_file(test_path("before.txt"), NULL);
  after = test_read_file(test_path("after.txt"), NULL);
  REQUIRE(before && after, "no list of macros");
  /* macros may stay where their names say whose they are, but for those that steer the file */
  for (p = header; (p = strstr(p, "#define ")) != NULL; p += 8) {
    const char *name = p + 8;
    CHECK(!strncmp(name, "MHK_", 4) || !strncmp(name, "MHKDEF", 6) || !strncmp(name, "MOHAWK_", 7) ||
              !strncmp(name, "WIN32_LEAN_AND_MEAN", 19) || !strncmp(name, "NOMINMAX", 8),
          "a macro without a prefix: %.40s", name);
  }
  CHECK(!strstr(after, "#define MHK__PASS ") && !strstr(after, "#define MHK__TEMPLATE") &&
            !strstr(after, "#define MHK__TEXT "),
        "a pass has not ended");
  CHECK(strstr(after, "#define __AVX2__") == NULL || strstr(before, "#define __AVX2__") != NULL,
        "the instruction set stays switched");
  free(before), free(after);
  /* warnings switched off inside are on again after it */
  write_text("pragmas.c", "#define MOHAWK_IMPLEMENTATION\n#define MOHAWK_STATIC\n#include \"mohawk.h\"\n"
                          "static int nobody_calls_this(int x) { return x; }\nint main(void) { return 0; }\n");
  CHECK(!shell("%s -std=c99 -Wall -Wextra -Werror -O0 -I. -c %s -o %s", compiler(), test_path("pragmas.c"),
               test_path("pragmas.o")),
        "an unused function after the header gives no warning: a pragma was not popped");
}

/* -------------------------------------------------------------------------------------- linking */

#define PROGRAM_BODY \
  "  mhk_context *ctx = mhk_create(NULL);\n  mhk_tape *t = mhk_tape_create(ctx);\n  const mhk_index n = 3;\n" \
  "  mhk_real v[3] = {1, 2, 3};\n" \
  "  double s = mhk_value(mhk_sum(t, mhk_tensor_new(t, 1, &n, v)));\n  if (mhk_failed(ctx)) s = -1;\n" \
  "  mhk_destroy(ctx);\n  return s;\n"

TEST(links) {
  const char *cc = compiler();
  write_text("impl.c", "#define MOHAWK_IMPLEMENTATION\n#include \"mohawk.h\"\n");
  write_text("one.c", "#include \"mohawk.h\"\ndouble one(void);\ndouble one(void) {\n" PROGRAM_BODY "}\n");
  write_text("two.c",
             "#include \"mohawk.h\"\ndouble one(void);\nint main(void) { mhk_context *c = mhk_create(NULL); int bad = "
             "one() != 6; mhk_destroy(c); return bad; }\n");
  SHELL("%s -std=c99 -O0 -I. -c %s -o %s && %s -std=c99 -O0 -I. %s %s %s -o %s -lm && %s", cc, test_path("impl.c"),
        test_path("impl.o"), cc, test_path("one.c"), test_path("two.c"), test_path("impl.o"), test_path("several"),
        test_path("several"));
  /* two private copies in one program */
  write_text("s1.c",
             "#define MOHAWK_IMPLEMENTATION\n#define MOHAWK_STATIC\n#include \"mohawk.h\"\ndouble one(void);\ndouble "
             "one(void) {\n" PROGRAM_BODY "}\n");
  write_text("s2.c",
             "#define MOHAWK_IMPLEMENTATION\n#define MOHAWK_STATIC\n#include \"mohawk.h\"\ndouble one(void);\nstatic "
             "double two(void) {\n" PROGRAM_BODY "}\nint main(void) { return one() != two(); }\n");
  SHELL("%s -std=c99 -Wall -Wextra -Werror -O0 -I. %s %s -o %s -lm && %s", cc, test_path("s1.c"), test_path("s2.c"),
        test_path("static"), test_path("static"));
  if (shell("%s --version", cxx_compiler())) { /* C++ that uses an implementation compiled as C */
    write_text("plus.cc",
               "#include \"mohawk.h\"\nextern \"C\" double one(void);\nint main() { return one() != 6 || "
               "mhk_version()[0] == 0; }\n");
    SHELL("%s -std=c99 -O0 -I. -c %s -o %s && %s -std=c++11 -O0 -I. %s %s %s -o %s -lm && %s", cc, test_path("one.c"),
          test_path("one.o"), cxx_compiler(), test_path("plus.cc"), test_path("one.o"), test_path("impl.o"),
          test_path("plus"), test_path("plus"));
  }
}

TEST(options) {
  const char *cc = compiler();
  write_text("allocator.c",
             "#include <stdlib.h>\nstatic int blocks, calls;\nstatic void *my_malloc(size_t n) { blocks++, calls++; "
             "return malloc(n); }\n"
             "static void my_free(void *p) { blocks--; free(p); }\n#define MOHAWK_MALLOC(n) my_malloc(n)\n#define "
             "MOHAWK_FREE(p) my_free(p)\n"
             "#define MOHAWK_NO_SIMD\n#define MOHAWK_IMPLEMENTATION\n#include \"mohawk.h\"\nstatic double one(void) "
             "{\n" PROGRAM_BODY "}\nint main(void) { return one() != 6 || blocks != 0 || calls == 0; }\n");
  SHELL("%s -std=c99 -O0 -I. %s -o %s -lm && %s", cc, test_path("allocator.c"), test_path("allocator"),
        test_path("allocator"));
}

/* the command fails, and what it said contains the text */
static void fails_saying(const char *text, const char *command) {
  char *said;
  CHECK(!shell("%s", command), "%s succeeds", command);
  said = test_read_file(test_path("command.log"), NULL);
  CHECK(said && strstr(said, text), "%s does not say \"%s\" but \"%.300s\"", command, text, said ? said : "");
  free(said);
}

/* Under another name: found where it is told; where it is not, the message says what to define,
   whether there is nothing of the old name or a header of another version. */
TEST(renamed) {
  const char *cc = compiler();
  char command[1000], *other, *number;
  SHELL("rm -rf %s && mkdir -p %s && cp mohawk.h %s/mhk.h", test_path("vendor"), test_path("vendor"),
        test_path("vendor"));
  write_text("renamed.c", "#define MOHAWK_IMPLEMENTATION\n#include \"vendor/mhk.h\"\n");
  SHELL("%s -std=c99 -DMOHAWK_HEADER_NAME='\"mhk.h\"' -fsyntax-only %s", cc, test_path("renamed.c"));
  snprintf(command, sizeof command, "%s -std=c99 -E %s", cc, test_path("renamed.c"));
  fails_saying("there is none: #define MOHAWK_HEADER_NAME to the name it is included by", command);
  other = (char *)malloc(length + 1);
  memcpy(other, header, length + 1);
  number = strstr(other, "#define MHK__TEXT ");
  REQUIRE(number != NULL, "the text has no version");
  number[18] = '9';
  CHECK(test_write_file(test_path("vendor/mohawk.h"), other, length), "cannot write");
  fails_saying("another file or version: #define MOHAWK_HEADER_NAME to the name it is included by", command);
  write_text("vendor/mohawk.h", "#pragma once\n");
  fails_saying("another file or version: #define MOHAWK_HEADER_NAME to the name it is included by", command);
  /* the declarations of one version, the implementation of another */
  CHECK(test_write_file(test_path("vendor/mohawk.h"), other, length), "cannot write");
  write_text("mixed.c", "#include \"mohawk.h\"\n#define MOHAWK_IMPLEMENTATION\n#include \"vendor/mohawk.h\"\n");
  snprintf(command, sizeof command, "%s -std=c99 -I. -E %s", cc, test_path("mixed.c"));
  fails_saying("from another version of this header", command);
  free(other);
}

/* Flags that take away NaN, infinities or the order of sums are refused, by the compiler where they
   have a macro, else by the first context. Others are none of our business. */
TEST(fast_math) {
  static const char *const refused[] = {"-ffast-math", "-Ofast", "-ffinite-math-only", "-funsafe-math-optimizations",
                                        "-fassociative-math -fno-signed-zeros -fno-trapping-math", "-fno-honor-nans"};
  static const char *const small = "-DMOHAWK_NO_TRAINING -DMOHAWK_NO_STDIO -DMOHAWK_NO_SIMD -I.";
  const char *cc = compiler(), *harmless = "-freciprocal-math -fno-signed-zeros -fno-trapping-math -fno-math-errno";
  size_t i;
  write_text("fast.c", "#define MOHAWK_IMPLEMENTATION\n#include \"mohawk.h\"\n#include <stdio.h>\n"
                       "int main(void) {\n  mhk_context *ctx = mhk_create(NULL);\n"
                       "  const int bad = mhk_failed(ctx);\n"
                       "  puts(mhk_message(ctx));\n  mhk_destroy(ctx);\n  return bad;\n}\n");
  for (i = 0; i < sizeof refused / sizeof *refused; i++) {
    char command[2000];
    /* not a flag of this compiler */
    if (!shell("echo 'int i;' | %s %s -x c -fsyntax-only -", cc, refused[i])) continue;
    snprintf(command, sizeof command, "%s %s %s -E %s >%s && %s -std=c99 -O1 %s %s %s -o %s -lm && %s", cc, refused[i],
             small, test_path("fast.c"), test_path("fast.i"), cc, refused[i], small, test_path("fast.c"),
             test_path("fast"), test_path("fast"));
    fails_saying("define MOHAWK_ALLOW_FAST_MATH to try anyway", command);
  }
  SHELL("%s -std=c99 -O1 %s %s %s -o %s -lm && %s", cc, harmless, small, test_path("fast.c"), test_path("fast"),
        test_path("fast"));
  SHELL("%s -std=c99 -O1 -ffast-math -DMOHAWK_ALLOW_FAST_MATH %s %s -o %s -lm && %s", cc, small, test_path("fast.c"),
        test_path("fast"), test_path("fast"));
}

/* What other headers define as macros, as they do it: no name of ours is one of these words, and a
   name before a ( none of those with arguments. */
static const char *const macros =
    /* Windows */
    "#define small char\n#define hyper double\n#define near\n#define far\n#define NEAR\n#define FAR\n#define pascal\n"
    "#define cdecl\n#define interface struct\n#define IN\n#define OUT\n#define OPTIONAL\n#define ERROR 0\n"
    "#define CONST const\n#define VOID void\n#define THIS void\n#define PURE = 0\n#define STRICT 1\n#define TRUE "
    "1\n#define FALSE 0\n"
    "#define ABSOLUTE 1\n#define RELATIVE 2\n#define OPAQUE 2\n#define TRANSPARENT 1\n#define DIFFERENCE 11\n#define "
    "INFINITE 1\n"
    "#define rad1 0x420\n#define chx1 0x410\n#define edt1 0x480\n#define stc1 0x440\n#define lst1 0x460\n#define cmb1 "
    "0x470\n"
    "#define grp1 0x430\n#define frm1 0x434\n#define rct1 0x438\n#define ico1 0x43c\n#define ctl1 0x4a0\n#define psh1 "
    "0x400\n"
    "#define min(a, b) ((a) < (b) ? (a) : (b))\n#define max(a, b) ((a) > (b) ? (a) : (b))\n#define environ "
    "other_environ\n"
    /* X11 */
    "#define Bool int\n#define Status int\n#define None 0L\n#define True 1\n#define False 0\n#define Always 2\n#define "
    "Success 0\n"
    "#define Above 0\n#define Below 1\n#define Complex 0\n#define Nonconvex 1\n#define Convex 2\n#define GrayScale 1\n"
    "#define KeyPress 2\n#define FocusIn 9\n#define Unsorted 0\n#define CurrentTime 0L\n"
    /* Qt */
    "#define slots\n#define signals public\n#define emit\n#define foreach(x, y) for (x : y)\n#define forever for (;;)\n"
    /* Arduino and its processors */
    "#define HIGH 1\n#define LOW 0\n#define INPUT 0\n#define OUTPUT 1\n#define PI 3.14\n#define EULER 2.718\n#define "
    "SERIAL 0\n"
    "#define DISPLAY 1\n#define CHANGE 1\n#define FALLING 2\n#define RISING 3\n#define DEFAULT 1\n#define EXTERNAL 0\n"
    "#define INTERNAL 3\n#define B0 0\n#define B1 1\n#define B00 0\n#define A0 14\n#define D0 3\n#define SP 0\n#define "
    "SREG 1\n"
    "#define RNG 1\n#define CRC 2\n#define HASH 3\n#define FLASH 4\n#define F(text) text\n#define bit(n) (1UL << (n))\n"
    "#define word(...) word_of(__VA_ARGS__)\n#define sq(x) ((x) * (x))\n#define abs(x) ((x) > 0 ? (x) : -(x))\n"
    "#define round(x) ((long)((x) + 0.5))\n#define radians(x) (x)\n#define degrees(x) (x)\n#define constrain(x, a, b) "
    "(x)\n"
    "#define interrupts() 0\n#define lowByte(w) (w)\n#define highByte(w) (w)\n#define bitRead(x, n) (x)\n"
    /* complex.h, Apple's, curses, POSIX systems, and what programs like to define */
    "#define I 1.0\n#define complex _Complex\n#define imaginary _Imaginary\n#define nil 0\n#define Nil 0\n#define YES "
    "1\n#define NO 0\n"
    "#define check(x) none\n#define verify(x) none\n#define require(x, label) none\n#define OK 0\n#define ERR (-1)\n"
    "#define lines CUR_numbers[2]\n#define columns CUR_numbers[0]\n#define box(w, v, h) none\n#define move(y, x) none\n"
    "#define clear() none\n#define erase() none\n#define refresh() none\n#define border(a, b) none\n#define timeout(x) "
    "none\n"
    "#define scroll(x) none\n#define unix 1\n#define linux 1\n#define i386 1\n#define sun 1\n#define mips 1\n#define "
    "arm 1\n"
    "#define major(x) none\n#define minor(x) none\n#define swap(a, b) none\n#define likely(x) (x)\n#define unlikely(x) "
    "(x)\n"
    "#define countof(x) none\n#define _(text) text\n#define N_(text) text\n#define TEXT(x) x\n#define MIN(a, b) none\n"
    "#define MAX(a, b) none\n#define ABS(x) none\n#define CLAMP(x, a, b) none\n#define BIT(n) none\n#define UNUSED(x) "
    "none\n"
    "#define SWAP(a, b) none\n#define ARRAY_SIZE(x) none\n#define DEBUG 1\n#define NDEBUG 1\n";

TEST(macros_of_other_headers) {
  static const char *const before =
      "#include <float.h>\n#include <limits.h>\n#include <math.h>\n#include <stdarg.h>\n#include <stddef.h>\n"
      "#include <stdint.h>\n#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <time.h>\n"
      "#if defined(__x86_64__)\n#include <immintrin.h>\n#endif\n";
  static const char *const after = "#define MOHAWK_IMPLEMENTATION\n#include \"mohawk.h\"\n";
  const size_t room = strlen(before) + strlen(macros) + strlen(after) + 1;
  char *text = (char *)malloc(room);
  const char *p, *at;
  for (p = macros; (p = strstr(p, "#define ")) != NULL;) {
    const char *name = p += 8;
    size_t n = 0;
    while (is_word(name[n])) n++;
    for (at = plain; *at; at++) {
      if (!is_word(*at) || (at > plain && is_word(at[-1]))) continue;
      if (strncmp(at, name, n) != 0 || is_word(at[n])) continue;
      CHECK(name[n] == '(' && at[n] != '(', "line %d: others define %.*s as a macro", line_of(header + (at - plain)),
            (int)n, name);
    }
  }
  snprintf(text, room, "%s%s%s", before, macros, after);
  write_text("macros.c", text);
  write_text("macros.cc", text);
  SHELL("%s -std=c99 -Wall -Wextra -Werror -fsyntax-only -I. %s", compiler(), test_path("macros.c"));
  if (shell("%s --version", cxx_compiler()))
    SHELL("%s -std=c++11 -Wall -Wextra -Werror -fsyntax-only -I. %s", cxx_compiler(), test_path("macros.cc"));
  free(text);
}

/* Inference only, without files, both: no warning, nothing of libc but memory, strings and numbers,
   and the same tokens as the whole header. */
TEST(small_builds) {
  static const char *const variants[] = {"-DMOHAWK_NO_TRAINING", "-DMOHAWK_NO_STDIO",
                                         "-DMOHAWK_NO_TRAINING -DMOHAWK_NO_STDIO"};
  static const char *const allowed[] = {
      "memchr",  "memcmp",  "memcpy", "memmove", "memset", "strcat", "strchr",   "strcmp", "strcpy", "strlen",
      "strncmp", "strrchr", "strspn", "strstr",  "cos",    "exp",    "expf",     "floor",  "frexp",  "ldexp",
      /* which asks Linux on AArch64 what the processor has */
      "log",     "log1p",   "pow",    "sin",     "sqrt",   "sqrtf",  "getauxval"};
  const char *cc = compiler();
  mhk_context *ctx = mhk_create(NULL);
  mhk_session *s;
  mhk_sampling greedy;
  char want[400] = "", *text, *line;
  size_t i, k;
  write_text("small.c",
             "static unsigned char my_heap[1 << 16];\n#define MOHAWK_MALLOC(n) ((n) ? (void *)my_heap : (void "
             "*)0)\n#define MOHAWK_FREE(p) ((void)(p))\n"
             "#define MOHAWK_IMPLEMENTATION\n#include \"mohawk.h\"\n");
  for (i = 0; i < 3; i++) {
    SHELL("%s -std=c99 %s %s -DMOHAWK_STATIC -fsyntax-only -I. %s", cc, WARNINGS, variants[i], test_path("small.c"));
    SHELL("%s -std=c99 %s %s -O0 -I. -c %s -o %s", cc, WARNINGS, variants[i], test_path("small.c"),
          test_path("small.o"));
  }
  if (shell("nm --version")) {
    SHELL("nm -u %s >%s", test_path("small.o"), test_path("symbols.txt"));
    text = test_read_file(test_path("symbols.txt"), NULL);
    REQUIRE(text != NULL, "no symbols");
    for (line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
      char name[200] = "";
      if (sscanf(line, " U %199s", name) != 1 || !strncmp(name, "__stack_chk", 11) ||
          !strcmp(name, "_GLOBAL_OFFSET_TABLE_"))
        continue;
      for (k = 0; k < sizeof allowed / sizeof *allowed && strcmp(name, allowed[k]); k++) {}
      CHECK(k < sizeof allowed / sizeof *allowed, "inference from memory calls %s", name);
    }
    free(text);
  }
  mhk_save(mhk_load(ctx, "examples/tiny"), test_path("tiny.safetensors"), MHK_BF16);
  memset(&greedy, 0, sizeof greedy);
  greedy.greedy = 1;
  s = mhk_session_create(mhk_load(ctx, test_path("tiny.safetensors")), NULL);
  mhk_feed_text(s, "Once upon a time");
  for (i = 0; i < 20; i++) sprintf(want + strlen(want), "%d ", (int)mhk_sample(s, &greedy));
  REQUIRE(!mhk_failed(ctx), "%s", mhk_message(ctx));
  write_text("small_main.c",
             "#define MOHAWK_IMPLEMENTATION\n#include \"mohawk.h\"\n#include <stdio.h>\n"
             "int main(int argc, char **argv) {\n  FILE *f = argc > 1 ? fopen(argv[1], \"rb\") : NULL;\n  static "
             "unsigned char data[4000000];\n"
             "  const size_t bytes = f ? fread(data, 1, sizeof data, f) : 0;\n"
             "  mhk_context *ctx = mhk_create(NULL);\n "
             " mhk_sampling greedy;\n  int i;\n"
             "  mhk_session *s = mhk_session_create(mhk_load_memory(ctx, data, bytes), NULL);\n  memset(&greedy, 0, "
             "sizeof greedy);\n  greedy.greedy = 1;\n"
             "  mhk_feed_text(s, \"Once upon a time\");\n"
             "  for (i = 0; i < 20; i++) printf(\"%d \", (int)mhk_sample(s, "
             "&greedy));\n"
             "  if (mhk_failed(ctx)) printf(\"%s\", mhk_message(ctx));\n  mhk_destroy(ctx);\n  return 0;\n}\n");
  for (i = 0; i < 3; i++) {
    SHELL("%s -std=c99 %s -O1 -I. %s -o %s -lm && %s %s >%s", cc, variants[i], test_path("small_main.c"),
          test_path("small"), test_path("small"), test_path("tiny.safetensors"), test_path("small.txt"));
    text = test_read_file(test_path("small.txt"), NULL);
    CHECK(text && !strcmp(text, want), "%s: %s instead of %s", variants[i], text ? text : "nothing", want);
    free(text);
  }
  mhk_destroy(ctx);
}

TEST(symbols) {
  static const char *const never[] = {"printf", "snprintf", "puts",   "putchar", "exit", "abort",    "__assert_fail",
                                      "_exit",  "system", "srand",   "rand", "setlocale"};
  char *text;
  char *line;
  size_t i;
  if (!shell("nm --version")) {
    SKIP("no nm");
    return;
  }
  write_text("impl.c", "#define MOHAWK_IMPLEMENTATION\n#include \"mohawk.h\"\n"); /* it also runs alone */
  SHELL("%s -std=c99 -O0 -I. -c %s -o %s && nm %s >%s", compiler(), test_path("impl.c"), test_path("impl.o"),
        test_path("impl.o"), test_path("symbols.txt"));
  text = test_read_file(test_path("symbols.txt"), NULL);
  REQUIRE(text != NULL, "no symbols");
  for (line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
    char kind = 0, name[200] = "";
    if (sscanf(line, "%*x %c %199s", &kind, name) != 2 && sscanf(line, " %c %199s", &kind, name) != 2) continue;
    CHECK(!strchr("BbDdC", kind), "%s is a global that can change (%c)", name, kind);
    if (kind == 'T') CHECK(!strncmp(name, "mhk_", 4) && strncmp(name, "mhk__", 5), "%s is visible from outside", name);
    if (kind == 'U')
      for (i = 0; i < sizeof never / sizeof *never; i++) CHECK(strcmp(name, never[i]), "the library calls %s", name);
  }
  free(text);
}

int main(int argc, char **argv) {
  test_begin(argc, argv);
  load();
  RUN(lines_fit);
  RUN(budgets_are_seen);
  RUN(the_header_stays_small);
  RUN(functions_fit_their_budget);
  RUN(no_octal_numbers);
  RUN(version);
  RUN(contents);
  RUN(chapters_use_the_words_of_the_field);
  RUN(no_words_that_stumble);
  RUN(readme_is_short_and_plain);
  RUN(sections_look_upward);
  RUN(every_function_is_tested);
  RUN(quick_start);
  RUN(readme_examples);
  RUN(example_programs);
  RUN(compiles_strictly);
  RUN(leaves_nothing_behind);
  RUN(links);
  RUN(options);
  RUN(renamed);
  RUN(fast_math);
  RUN(macros_of_other_headers);
  RUN(small_builds);
  RUN(symbols);
  free(header);
  free(plain);
  return test_end();
}
