/* cli.c: see cli.h */
#include "cli.h"
#include "foreign.h"
#include "settings.h"
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(_WIN32)
#include <direct.h>
#include <fcntl.h>
#include <io.h>
#include <windows.h>
#include <shellapi.h>
#undef near /* words that it takes for itself */
#undef far
#define isatty _isatty
#define fileno _fileno
#define FOLDER_ENDS "/\\:"
#else
#define FOLDER_ENDS "/"
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif
#endif

static struct {
  const char *program;
  int terminal;  /* stderr is one: lines may redraw themselves */
  int line_open; /* a redrawn line is on the screen, not ended */
  int quiet;
  int strict;
  double every;
  const cli_command *command; /* that runs, and its arguments */
  int argc;
  char **argv;
} cli;

static volatile sig_atomic_t cli_signalled;

/* ---------------------------------------------------------------- messages */

/* OpenMP's threads spin while they wait, which is a little faster on an idle machine and several
   times slower on one that has other work: a thread that spins holds a processor that a thread with
   work needs. OpenMP reads its environment before main, hence the second start. */
static void wait_asleep(char **argv) {
#if defined(__linux__) && defined(_OPENMP)
  char path[4096]; /* its own name: a process that was started as /proc/self/exe is called exe */
  const ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
  if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT") || getenv("KMP_BLOCKTIME")) return;
  if (setenv("GOMP_SPINCOUNT", "20000", 1) != 0 || setenv("KMP_BLOCKTIME", "1", 1) != 0) return;
  if (n > 0) {
    path[n] = 0;
    execv(path, argv); /* returns only if it fails */
  }
  execv("/proc/self/exe", argv);
#else
  (void)argv;
#endif
}

#if defined(_WIN32)
/* what the system calls the same, malloc'ed; NULL when that fails */
static wchar_t *wide_text(const char *text) {
  int n = MultiByteToWideChar(CP_UTF8, 0, text, -1, NULL, 0);
  wchar_t *out = n > 0 ? (wchar_t *)malloc((size_t)n * sizeof *out) : NULL;
  if (out) MultiByteToWideChar(CP_UTF8, 0, text, -1, out, n);
  return out;
}

/* The arguments in UTF-8: main() gets them in a code page that lacks most characters. They live as
   long as the program. */
static char **utf8_arguments(int argc, char **argv) {
  int i, n = 0;
  wchar_t **wide = CommandLineToArgvW(GetCommandLineW(), &n);
  char **out = (char **)calloc((size_t)argc + 1, sizeof *out);
  if (!wide || !out || n != argc) return argv;
  for (i = 0; i < argc; i++) {
    const int bytes = WideCharToMultiByte(CP_UTF8, 0, wide[i], -1, NULL, 0, NULL, NULL);
    out[i] = (char *)malloc(bytes > 0 ? (size_t)bytes : 1);
    if (!out[i] || bytes <= 0) return argv;
    WideCharToMultiByte(CP_UTF8, 0, wide[i], -1, out[i], bytes, NULL, NULL);
  }
  LocalFree(wide);
  return out;
}
int _CRT_glob = 0; /* MinGW would make several arguments of one with a star in it */
#endif

FILE *cli_open(const char *path, const char *mode) {
#if defined(_WIN32)
  wchar_t *name = wide_text(path), *how = wide_text(mode);
  FILE *f = name && how ? _wfopen(name, how) : NULL;
  free(name);
  free(how);
  return f;
#else
  return fopen(path, mode);
#endif
}

char **cli_start(int argc, char **argv) {
  const char *term = getenv("TERM");
  if (argc > 0) wait_asleep(argv);
#if defined(_WIN32)
  argv = utf8_arguments(argc, argv);
  SetConsoleOutputCP(CP_UTF8);
#endif
  cli.program = argc > 0 ? argv[0] : "mohawk";
  cli.terminal = isatty(fileno(stderr)) && !(term && strcmp(term, "dumb") == 0);
  cli.every = 10;
  return argv;
}

const char *cli_program(void) { return cli.program; }

void cli_progress_clear(void) {
  if (cli.line_open) fputs("\r\033[K", stderr);
  cli.line_open = 0;
}

static void message(const char *start, const char *format, va_list args) {
  cli_progress_clear();
  fputs(start, stderr);
  vfprintf(stderr, format, args);
  fputc('\n', stderr);
}

int cli_error(const char *format, ...) {
  va_list args;
  va_start(args, format);
  message("mohawk: ", format, args);
  va_end(args);
  return CLI_FAILED;
}

void cli_warning(const char *format, ...) {
  va_list args;
  va_start(args, format);
  message("mohawk: warning: ", format, args);
  va_end(args);
}

void cli_note(const char *format, ...) {
  va_list args;
  if (cli.quiet) return;
  va_start(args, format);
  message("mohawk: ", format, args);
  va_end(args);
}

int cli_context_error(const mhk_context *ctx) { return cli_error("%s", mhk_message(ctx)); }

static void log_message(void *user, mhk_log_level level, const char *text) {
  static cli_progress writing; /* of large files: rare lines where there is no terminal */
  (void)user;
  if (level == MHK_LOG_INFO && strncmp(text, "writing ", 8) == 0 && cli_progress_due(&writing, 0))
    cli_progress_show(&writing, 0, "%s", text);
  if (level == MHK_LOG_WARNING) cli_warning("%s", text); /* errors are reported once, by the caller */
}

mhk_context *cli_context(int threads) { return cli_context_on(threads, MHK_ISA_BEST); }

static int default_threads(void) {
  const char *given = getenv("OMP_NUM_THREADS");
  const int cores = given && *given ? 0 : cli_cores("");
  return cores > 0 ? cores : -1;
}

mhk_context *cli_context_on(int threads, mhk_isa isa) {
  mhk_context_desc desc;
  mhk_context *ctx;
  memset(&desc, 0, sizeof desc);
  desc.log = log_message;
  desc.threads = threads ? threads : default_threads();
  desc.isa = isa;
  ctx = mhk_create(&desc);
  if (mhk_failed(ctx)) {
    cli_context_error(ctx);
    mhk_destroy(ctx);
    return NULL;
  }
  return ctx;
}

int cli_strict(void) { return cli.strict; }

mhk_model *cli_load(mhk_context *ctx, const char *path) {
  mhk_load_desc desc;
  mhk_config shape;
  memset(&desc, 0, sizeof desc);
  desc.strict = cli.strict;
  if (path && !mhk_failed(ctx) && !cli_exists(path)) {
    const int named = mhk_config_preset(ctx, path, &shape) == MHK_OK;
    mhk_clear_error(ctx);
    if (named)
      mhk_fail(ctx, MHK_ERROR_FILE,
               "%s is the name of a shape, for `mohawk inspect`, and not a folder with weights: download the model, "
               "for example with `hf download microsoft/phi-1_5 --local-dir phi-1_5`, and name its folder",
               path);
  }
  return foreign_load(ctx, path, &desc);
}

int cli_no_tokenizer(const mhk_model *m, const char *path) {
  const char *why = mhk_model_tokenizer_error(m);
  if (why) return cli_error("%s has no tokenizer: %s", path, why);
  return cli_error("%s has no tokenizer: put the tokenizer.json that it was trained with next to its weights", path);
}

int cli_keeps_tokenizer(const mhk_model *m, const char *path) {
  const char *why = mhk_model_tokenizer_error(m);
  return why ? cli_error("%s would be saved without its tokenizer: %s. Use mohawk convert --tokenizer to give it "
                         "another one, or --no-tokenizer to save it without one",
                         path, why)
             : CLI_GO;
}

static int color(FILE *out) {
  const char *no = getenv("NO_COLOR"), *term = getenv("TERM");
  return !(no && *no) && isatty(fileno(out)) && !(term && strcmp(term, "dumb") == 0);
}

const char *cli_bold(FILE *out) { return color(out) ? "\033[1m" : ""; }
const char *cli_plain(FILE *out) { return color(out) ? "\033[0m" : ""; }

static void print_quoted(FILE *out, const char *word) {
  const char *c;
  int plain = *word != 0;
  for (c = word; *c; c++)
    if (!isalnum((unsigned char)*c) && !strchr("-_./,:=+@%", *c)) plain = 0;
  if (plain) {
    fputs(word, out);
    return;
  }
  fputc('\'', out);
  for (c = word; *c; c++) {
    if (*c == '\'') fputs("'\\''", out);
    else fputc(*c, out);
  }
  fputc('\'', out);
}

void cli_say_resume(const char *folder) {
  int i;
  cli_progress_clear();
  fprintf(stderr, "mohawk: stopped; progress is saved in %s. To resume, run:\n  ", folder);
  print_quoted(stderr, cli.program);
  fprintf(stderr, " %s", cli.command->name);
  for (i = 0; i < cli.argc; i++) {
    if (strcmp(cli.argv[i], "--fresh") == 0) continue;
    fputc(' ', stderr);
    print_quoted(stderr, cli.argv[i]);
  }
  fputc('\n', stderr);
}

/* ---------------------------------------------------------------- options */

/* the least number of letters to insert, drop or exchange */
static int edit_distance(const char *a, const char *b) {
  int row[64], n = (int)strlen(b), i, j;
  if (n > 62) return 99;
  for (j = 0; j <= n; j++) row[j] = j;
  for (i = 0; a[i]; i++) {
    int diagonal = row[0];
    row[0] = i + 1;
    for (j = 0; j < n; j++) {
      int up = row[j + 1], best = diagonal + (a[i] != b[j]);
      if (up + 1 < best) best = up + 1;
      if (row[j] + 1 < best) best = row[j] + 1;
      row[j + 1] = best;
      diagonal = up;
    }
  }
  return row[n];
}

const char *cli_nearest(const char *typed, const char *const *list, int n) {
  const char *best = NULL;
  int i, least = (int)strlen(typed) / 2 + 1;
  for (i = 0; i < n; i++) {
    int d = edit_distance(typed, list[i]);
    if (strncmp(list[i], typed, strlen(typed)) == 0) d = 0; /* the start of a longer word */
    if (d < least) {
      least = d;
      best = list[i];
    }
  }
  return best;
}

double cli_number_at(const cli_numbers *numbers, int i, double otherwise) {
  double x = otherwise;
  if (numbers->n == 1) x = numbers->value[0];
  if (numbers->n > i) x = numbers->value[i];
  return isnan(x) ? otherwise : x;
}

/* text wrapped at 96 columns, each line after the first indented */
static void print_wrapped(FILE *out, const char *text, int indent) {
  int column = indent, first = 1;
  while (*text) {
    int word = (int)strcspn(text, " ");
    if (!first && column + 1 + word > 96) {
      fprintf(out, "\n%*s", indent, "");
      column = indent;
    } else if (!first) {
      fputc(' ', out);
      column++;
    }
    fprintf(out, "%.*s", word, text);
    column += word;
    first = 0;
    text += word + (text[word] == ' ');
  }
  fputc('\n', out);
}

static void print_option(FILE *out, const cli_option *o) {
  int column;
  if (o->kind == CLI_REST) return;
  if (o->kind == CLI_HEADING) {
    fprintf(out, "\n%s%s%s\n", cli_bold(out), o->help, cli_plain(out));
    return;
  }
  column = fprintf(out, "  --%s%s%s", o->name, o->argument ? " " : "", o->argument ? o->argument : "");
  if (column > 27) {
    fputc('\n', out);
    column = 0;
  }
  fprintf(out, "%*s", 29 - column, "");
  print_wrapped(out, o->help, 29);
}

/* whether the short help shows an option */
static int used_often(const cli_command *c, const char *name) {
  char word[64];
  snprintf(word, sizeof word, " %s ", name);
  return strstr(c->often, word) != NULL;
}

static void print_command_help(FILE *out, const cli_command *c, int all) {
  const int some = c->often && !all;
  int i, left_out = 0;
  fprintf(out, "usage: mohawk %s %s\n\n", c->name, c->synopsis);
  print_wrapped(out, c->about, 0);
  if (some || c->options[0].kind != CLI_HEADING) fprintf(out, "\n%soptions%s\n", cli_bold(out), cli_plain(out));
  for (i = 0; i < c->n_options; i++) {
    const cli_option *o = &c->options[i];
    if (!some || (o->kind != CLI_HEADING && used_often(c, o->name))) print_option(out, o);
    else left_out += o->kind != CLI_HEADING;
  }
  if (c->others) {
    fprintf(out, "\nand all options of mohawk %s%s%s\n", c->others->name, c->also ? " or mohawk " : "",
            c->also ? c->also->name : "");
  }
  fprintf(out,
          "  --settings FILE            options from a file: lines \"name = value\", or a run.json; the command line "
          "wins\n"
          "  --help                     this text\n");
  if (left_out > 0) fprintf(out, "  --help all                 the same with all options, %d more\n", left_out);
  fprintf(out, "\n%sexample%s\n  %s\n", cli_bold(out), cli_plain(out), c->example);
}

const char *cli_read_number(const char *text, double *value) {
  char *end;
  double x = strtod(text, &end);
  if (end == text || !isfinite(x)) return NULL;
  if (*end == 'k' || *end == 'K') {
    x *= 1e3;
    end++;
  } else if (*end == 'M' || *end == 'm') {
    x *= 1e6;
    end++;
  } else if (*end == 'G' || *end == 'g') {
    x *= 1e9;
    end++;
  }
  *value = x;
  return end;
}

static int bad_value(const cli_option *o, const char *text) {
  const char *what = o->kind == CLI_NUMBERS ? "a list of numbers" : o->kind == CLI_REAL ? "a number" : "a whole number";
  if (o->kind == CLI_CHOICE) {
    cli_error("--%s %s is not one of %s", o->name, text, o->argument);
  } else if (o->high >= 1e5) { /* far beyond what anybody would type */
    cli_error("--%s %s is not %s of %g or more", o->name, text, what, o->low);
  } else {
    cli_error("--%s %s is not %s from %g to %g", o->name, text, what, o->low, o->high);
  }
  return CLI_USAGE;
}

static int in_bounds(const cli_option *o, double x) {
  return (o->low == 0 && o->high == 0) || (x >= o->low && x <= o->high);
}

static int set_numbers(const cli_option *o, cli_numbers *list, const char *text) {
  const char *p = text;
  list->n = 0;
  for (;;) {
    double x = NAN;
    const char *end = *p == '-' && (p[1] == ',' || p[1] == 0) ? p + 1 : cli_read_number(p, &x);
    if (!end || (*end != ',' && *end != 0) || list->n == CLI_MAX_LIST || (!isnan(x) && !in_bounds(o, x)))
      return bad_value(o, text);
    list->value[list->n++] = x;
    if (*end == 0) return CLI_GO;
    p = end + 1;
  }
}

static int set_choice(const cli_option *o, int *value, const char *text) {
  const char *word = o->argument;
  size_t n = strlen(text);
  int i;
  for (i = 0; *word; i++) {
    size_t k = strcspn(word, "|");
    if (k == n && strncmp(word, text, n) == 0) {
      *value = i;
      return CLI_GO;
    }
    word += k;
    if (*word == '|') word++;
  }
  return bad_value(o, text);
}

static int set_number(const cli_option *o, void *value, const char *text) {
  double x = 0;
  const char *end = cli_read_number(text, &x);
  if (!end || *end || !in_bounds(o, x)) return bad_value(o, text);
  if (o->kind == CLI_REAL) {
    *(double *)value = x;
  } else if (floor(x + 0.5) != x || fabs(x) > (o->kind == CLI_INT ? 2e9 : 9e15)) {
    return bad_value(o, text);
  } else if (o->kind == CLI_INT) {
    *(int *)value = (int)x;
  } else {
    *(mhk_index *)value = (mhk_index)x;
  }
  return CLI_GO;
}

static int set_option(const cli_option *o, void *value, const char *text) {
  switch (o->kind) {
    case CLI_TEXT: *(const char **)value = text; return CLI_GO;
    case CLI_NUMBERS: return set_numbers(o, (cli_numbers *)value, text);
    case CLI_CHOICE: return set_choice(o, (int *)value, text);
    case CLI_INT:
    case CLI_COUNT:
    case CLI_REAL: return set_number(o, value, text);
    case CLI_FILES:
    case CLI_REST:
    case CLI_STRICTLY:
    case CLI_FLAG:
    case CLI_HEADING: break;
  }
  return CLI_GO;
}

static int add_file(cli_files *files, const char *path, const char *what) {
  if (files->n == CLI_MAX_LIST) {
    cli_error("more than %d files for %s: join some of them", CLI_MAX_LIST, what);
    return CLI_USAGE;
  }
  files->path[files->n++] = path;
  return CLI_GO;
}

/* a flag given a word instead of by its name alone */
static int set_flag(const cli_option *o, int *value, const char *text) {
  static const char *const words[] = {"no", "false", "0", "yes", "true", "1"};
  int i;
  for (i = 0; i < CLI_COUNT_OF(words); i++)
    if (strcmp(text, words[i]) == 0) {
      *value = i >= 3;
      return CLI_GO;
    }
  cli_error("--%s %s: it is yes or no", o->name, text);
  return CLI_USAGE;
}

int cli_set_option(const cli_option *o, void *settings, const char *text) {
  void *value = (char *)settings + o->at;
  if (o->kind == CLI_FLAG) return set_flag(o, (int *)value, text);
  if (o->kind == CLI_STRICTLY) return set_flag(o, &cli.strict, text);
  if (o->kind == CLI_FILES) return add_file((cli_files *)value, text, o->name);
  return set_option(o, value, text);
}

int cli_has_value(const cli_option *o, const void *settings) {
  const void *value = (const char *)settings + o->at;
  switch (o->kind) {
    case CLI_TEXT: return *(const char *const *)value != NULL;
    case CLI_FILES: return ((const cli_files *)value)->n > 0;
    case CLI_NUMBERS: return ((const cli_numbers *)value)->n > 0;
    case CLI_FLAG: return *(const int *)value != 0;
    case CLI_STRICTLY: return cli.strict;
    case CLI_INT: return in_bounds(o, *(const int *)value);
    case CLI_COUNT: return in_bounds(o, (double)*(const mhk_index *)value);
    case CLI_REAL: return in_bounds(o, *(const double *)value);
    case CLI_CHOICE: return 1;
    case CLI_REST:
    case CLI_HEADING: break;
  }
  return 0;
}

int cli_unknown_option(const cli_command *c, const char *typed, size_t length) {
  const char *names[256], *near;
  char word[128];
  int i, n = 0;
  for (i = 0; i < c->n_options && n < 254; i++)
    if (c->options[i].name) names[n++] = c->options[i].name;
  for (i = 0; c->others && i < c->others->n_options && n < 254; i++)
    if (c->others->options[i].name) names[n++] = c->others->options[i].name;
  for (i = 0; c->also && i < c->also->n_options && n < 254; i++)
    if (c->also->options[i].name) names[n++] = c->also->options[i].name;
  names[n++] = "help";
  names[n++] = "settings";
  if (length >= sizeof word) length = sizeof word - 1;
  memcpy(word, typed, length);
  word[length] = 0;
  near = cli_nearest(word, names, n);
  if (near) {
    cli_error("unknown option --%s: did you mean --%s?", word, near);
  } else {
    cli_error("unknown option --%s: `mohawk %s --help` lists the options", word, c->name);
  }
  return CLI_USAGE;
}

int cli_missing(const cli_command *c, const char *option) {
  cli_error("%s needs %s (see `mohawk %s --help`)", c->name, option, c->name);
  return CLI_USAGE;
}

/* a command line as it is read */
typedef struct reading {
  const cli_command *command;
  char *settings;
  int argc, at; /* at: the argument that is read */
  char **argv;
  unsigned char filed[CLI_MAX_OPTIONS]; /* options that a settings file gave and no word since */
  char *others; /* settings of command->others, only to check */
} reading;

static void *value_of(const reading *r, const cli_option *o) { return r->settings + o->at; }

/* What a settings file said of this option, or of its opposite, no longer counts. */
static void forget_filed(reading *r, const cli_option *o) {
  const int negative = strncmp(o->name, "no-", 3) == 0;
  char name[64];
  const cli_option *opposite;
  if (o->kind == CLI_FILES && r->filed[o - r->command->options]) ((cli_files *)value_of(r, o))->n = 0;
  r->filed[o - r->command->options] = 0;
  if (o->kind != CLI_FLAG) return;
  snprintf(name, sizeof name, "%s%.50s", negative ? "" : "no-", o->name + (negative ? 3 : 0));
  opposite = cli_find_option(r->command, name, strlen(name));
  if (opposite && opposite->kind == CLI_FLAG && r->filed[opposite - r->command->options])
    *(int *)value_of(r, opposite) = 0;
}

/* The argument that is read belongs to option o; text is what stood after "=", or NULL. Returns
   CLI_GO or the exit code, at the last argument that belongs to it. */
static int take_option(reading *r, const cli_option *o, const char *text) {
  void *value = value_of(r, o);
  forget_filed(r, o);
  if (o->kind == CLI_FLAG || o->kind == CLI_STRICTLY) return cli_set_option(o, r->settings, text ? text : "yes");
  if (!text) {
    if (r->at + 1 >= r->argc || strncmp(r->argv[r->at + 1], "--", 2) == 0) {
      cli_error("--%s needs a value: --%s %s, or --%s=%s if it starts with --", o->name, o->name, o->argument,
                o->name, o->argument);
      return CLI_USAGE;
    }
    text = r->argv[++r->at];
  }
  if (o->kind == CLI_FILES) {
    int code = add_file((cli_files *)value, text, o->name);
    while (code == CLI_GO && r->at + 1 < r->argc && strncmp(r->argv[r->at + 1], "--", 2) != 0)
      code = add_file((cli_files *)value, r->argv[++r->at], o->name);
    return code;
  }
  return set_option(o, value, text);
}

const cli_option *cli_find_option(const cli_command *c, const char *typed, size_t length) {
  int i;
  for (i = 0; i < c->n_options; i++) {
    const char *name = c->options[i].name;
    if (name && strlen(name) == length && strncmp(name, typed, length) == 0) return &c->options[i];
  }
  return NULL;
}

/* an argument that belongs to no option */
static int take_rest(reading *r, const char *word) {
  const cli_command *c = r->command;
  int i;
  for (i = 0; i < c->n_options; i++)
    if (c->options[i].kind == CLI_REST) return add_file((cli_files *)value_of(r, &c->options[i]), word, c->name);
  cli_error("\"%s\" does not belong to an option (see `mohawk %s --help`)", word, c->name);
  return CLI_USAGE;
}

static int is_given(const cli_option *o, const void *value) {
  switch (o->kind) {
    case CLI_TEXT: return *(const char *const *)value != NULL;
    case CLI_FILES:
    case CLI_REST: return ((const cli_files *)value)->n > 0;
    default: return 1;
  }
}

/* whether all that must be given is there */
static int check_given(const reading *r) {
  char what[64];
  int i;
  for (i = 0; i < r->command->n_options; i++) {
    const cli_option *o = &r->command->options[i];
    if (o->low <= 0 || is_given(o, value_of(r, o))) continue;
    snprintf(what, sizeof what, "%s%s %s", o->name ? "--" : "a", o->name ? o->name : "", o->argument);
    return cli_missing(r->command, what);
  }
  return CLI_GO;
}

/* An option of another command: checked, and its words kept. */
static int pass_on(reading *r, const cli_command *command, const cli_option *o, const char *text) {
  cli_words *words = (cli_words *)(r->settings + r->command->others_at);
  reading other = {command, r->others, r->argc, r->at, r->argv, {0}, NULL};
  const int code = take_option(&other, o, text);
  for (; code == CLI_GO && r->at <= other.at; r->at++) {
    if (words->n == CLI_COUNT_OF(words->word)) return cli_error("more than %d words of options", words->n);
    words->word[words->n++] = r->argv[r->at];
  }
  r->at = other.at;
  return code;
}

/* The option that the argument at r->at, without its dashes, names. */
static int read_option(reading *r, const char *word) {
  const size_t length = strcspn(word, "=");
  const char *text = word[length] == '=' ? word + length + 1 : NULL;
  const cli_option *o = cli_find_option(r->command, word, length);
  if (o) return take_option(r, o, text);
  if (length == 8 && strncmp(word, "settings", length) == 0) { /* has been read */
    r->at += !text;
    return CLI_GO;
  }
  o = r->others ? cli_find_option(r->command->others, word, length) : NULL;
  if (o) return pass_on(r, r->command->others, o, text);
  o = r->command->also ? cli_find_option(r->command->also, word, length) : NULL;
  return o ? pass_on(r, r->command->also, o, text) : cli_unknown_option(r->command, word, length);
}

/* Reads what --settings names: before all other options, which win. */
static int read_settings(reading *r) {
  int i, code = CLI_GO;
  for (i = 0; i < r->argc && code == CLI_GO && strcmp(r->argv[i], "--") != 0; i++) {
    const char *path = NULL;
    if (strncmp(r->argv[i], "--settings=", 11) == 0) path = r->argv[i] + 11;
    if (strcmp(r->argv[i], "--settings") == 0) {
      path = i + 1 < r->argc ? r->argv[i + 1] : NULL;
      if (!path || strncmp(path, "--", 2) == 0) return cli_missing(r->command, "a file behind --settings");
    }
    if (path) code = settings_read(r->command, r->settings, path, r->filed);
  }
  return code;
}

/* Reads the whole command line into the settings. Returns CLI_GO, or the exit code. */
static int read_options(reading *r) {
  int code = read_settings(r), options = 1;
  for (; r->at < r->argc && code == CLI_GO; r->at++) {
    const char *word = r->argv[r->at];
    if (options && strcmp(word, "--") == 0) {
      options = 0;
    } else if (options && (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0)) {
      print_command_help(stdout, r->command, r->at + 1 < r->argc && strcmp(r->argv[r->at + 1], "all") == 0);
      return CLI_OK;
    } else if (!options || strncmp(word, "--", 2) != 0) {
      code = take_rest(r, word);
    } else {
      code = read_option(r, word + 2);
    }
  }
  return code == CLI_GO ? check_given(r) : code;
}

int cli_read_options(const cli_command *c, void *settings, int argc, char **argv) {
  reading r = {c, (char *)settings, argc, 0, argv, {0}, NULL};
  int code;
  if (c->others) {
    const size_t size = c->also && c->also->size > c->others->size ? c->also->size : c->others->size;
    r.others = (char *)calloc(1, size);
    if (!r.others) return cli_error("out of memory");
    memcpy(r.others, c->others->defaults, c->others->size);
  }
  code = read_options(&r);
  free(r.others);
  return code;
}

/* what --threads says; 0: nothing */
static int threads_of(const cli_command *c, const void *settings) {
  const cli_option *o = cli_find_option(c, "threads", strlen("threads"));
  return o && o->kind == CLI_INT ? *(const int *)(const void *)((const char *)settings + o->at) : 0;
}

int cli_run(const cli_command *c, int argc, char **argv) {
  void *settings = malloc(c->size);
  mhk_context *ctx;
  int code;
  if (!settings) return cli_error("out of memory");
  memcpy(settings, c->defaults, c->size);
  code = cli_read_options(c, settings, argc, argv);
  if (code == CLI_GO && c->check) code = c->check(settings);
  if (code == CLI_GO) {
    cli.command = c;
    cli.argc = argc;
    cli.argv = argv;
    ctx = cli_context(threads_of(c, settings));
    code = ctx ? c->body(ctx, settings) : CLI_FAILED;
    mhk_destroy(ctx);
  }
  free(settings);
  return code;
}

/* ---------------------------------------------------------------- numbers */

static const char *scaled(double n, const char *const *units, cli_buffer *b) {
  int i = 0;
  while (fabs(n) >= 999.5 && i < 4) {
    n /= 1000;
    i++;
  }
  snprintf(b->text, sizeof b->text, "%.*f%s", i == 0 ? 0 : fabs(n) < 9.995 ? 2 : fabs(n) < 99.95 ? 1 : 0, n, units[i]);
  return b->text;
}

const char *cli_threads(const mhk_context *ctx, cli_buffer *b) {
  snprintf(b->text, sizeof b->text, "%d thread%s", mhk_threads(ctx), mhk_threads(ctx) == 1 ? "" : "s");
  return b->text;
}

const char *cli_count(double n, cli_buffer *b) {
  static const char *const units[] = {"", " k", " M", " G", " T"};
  return scaled(n, units, b);
}

const char *cli_bytes(double n, cli_buffer *b) {
  static const char *const units[] = {" bytes", " kB", " MB", " GB", " TB"};
  return scaled(n, units, b);
}

const char *cli_time(double seconds, cli_buffer *b) {
  double s = seconds > 0 ? floor(seconds + 0.5) : 0, h = floor(s / 3600), m = floor((s - h * 3600) / 60);
  if (!(seconds < 3.6e7)) {
    snprintf(b->text, sizeof b->text, "?");
  } else if (h > 0) {
    snprintf(b->text, sizeof b->text, "%.0f:%02.0f:%02.0f", h, m, s - h * 3600 - m * 60);
  } else {
    snprintf(b->text, sizeof b->text, "%.0f:%02.0f", m, s - m * 60);
  }
  return b->text;
}

/* ---------------------------------------------------------------- time, memory, files, signals */

double cli_clock(void) {
#if defined(_WIN32)
  return (double)clock() / CLOCKS_PER_SEC;
#else
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
#endif
}

/* the number after key in a file of lines, or -1 */
static double number_in_file(const char *path, const char *key) {
  char line[256];
  double x = -1;
  FILE *f = fopen(path, "r");
  if (!f) return -1;
  while (x < 0 && fgets(line, sizeof line, f))
    if (strncmp(line, key, strlen(key)) == 0 && memchr("0123456789 \t", line[strlen(key)], 12))
      x = strtod(line + strlen(key), NULL);
  fclose(f);
  return x;
}

double cli_memory_free(void) {
  double bytes = number_in_file("/proc/meminfo", "MemAvailable:") * 1024;
  double limit = number_in_file("/sys/fs/cgroup/memory.max", ""),
         used = number_in_file("/sys/fs/cgroup/memory.current", "");
#if defined(_SC_PHYS_PAGES) && defined(_SC_PAGESIZE)
  if (bytes < 0) bytes = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
#endif
  if (limit > 0 && used >= 0 && (bytes < 0 || limit - used < bytes)) bytes = limit - used;
  return bytes > 0 ? bytes : 0;
}

double cli_memory_touched(void) {
  double kilobytes;
#if defined(__GLIBC__)
  malloc_trim(0); /* what was freed is not used */
#endif
  kilobytes = number_in_file("/proc/self/status", "RssAnon:");
  return kilobytes > 0 ? kilobytes * 1024 : 0;
}

double cli_disk_free(const char *path) {
#if defined(_WIN32)
  (void)path;
  return 0;
#else
  char folder[1024];
  struct statvfs info;
  size_t n = strlen(path);
  if (n == 0 || n >= sizeof folder) return 0;
  memcpy(folder, path, n + 1);
  while (statvfs(folder, &info) != 0) { /* a folder that does not exist yet will be on the disk of the one above */
    while (n > 0 && folder[n - 1] == '/') n--;
    while (n > 0 && folder[n - 1] != '/') n--;
    if (n == 0) strcpy(folder, ".");
    else folder[n] = 0;
    if (n == 0) return statvfs(folder, &info) == 0 ? (double)info.f_bavail * (double)info.f_frsize : 0;
  }
  return (double)info.f_bavail * (double)info.f_frsize;
#endif
}

int cli_exists(const char *path) {
#if defined(_WIN32)
  FILE *f = cli_open(path, "rb");
  if (f) fclose(f);
  return f != NULL;
#else
  struct stat info; /* opening a pipe to see whether it is there would wait for its writer */
  return stat(path, &info) == 0;
#endif
}

int cli_ends_with(const char *text, const char *end) {
  size_t n = strlen(text), k = strlen(end);
  return n >= k && strcmp(text + n - k, end) == 0;
}

static int make_folder(const char *path) {
#if defined(_WIN32)
  wchar_t *name = wide_text(path);
  const int made = name && (_wmkdir(name) == 0 || errno == EEXIST);
  free(name);
  return made;
#else
  return mkdir(path, 0777) == 0 || errno == EEXIST;
#endif
}

int cli_make_folders(const char *path) {
  char part[1024];
  size_t i, n = strlen(path);
  if (n == 0 || n >= sizeof part) return cli_error("the folder name \"%.80s\" is %s", path, n ? "too long" : "empty");
  for (i = 1; i <= n; i++) {
    if (path[i] != '/' && path[i] != 0) continue;
    memcpy(part, path, i);
    part[i] = 0;
    if (!make_folder(part)) return cli_error("cannot create the folder %s: %s", part, strerror(errno));
  }
  return CLI_GO;
}

int cli_join(char *out, size_t capacity, const char *folder, const char *name) {
  size_t n = strlen(folder);
  int slash = n > 0 && folder[n - 1] != '/';
  int length = snprintf(out, capacity, "%s%s%s", folder, slash ? "/" : "", name);
  return length >= 0 && (size_t)length < capacity ? CLI_GO : cli_error("the path %s/%s is too long", folder, name);
}

static int may_write(const char *folder) {
#if defined(_WIN32)
  wchar_t *name = wide_text(folder);
  const int may = name && _waccess(name, 2) == 0;
  free(name);
  return may;
#else
  return access(folder, 2) == 0;
#endif
}

/* what is written is collected first: in memory, or in a file without a name */
int cli_output_open(cli_output *o, const char *path) {
  char folder[1024];
  size_t n = path ? strlen(path) : 0;
  memset(o, 0, sizeof *o);
  if (n >= sizeof o->path) return cli_error("the path %s is too long", path);
  strcpy(o->path, path ? path : "");
  strcpy(folder, o->path);
  while (n > 0 && !strchr(FOLDER_ENDS, folder[n - 1])) n--;
  folder[n] = 0;
  if (path && !may_write(n ? folder : ".")) return cli_error("cannot write %s: %s", path, strerror(errno));
#if defined(_WIN32)
  {
    char *name = _tempnam(NULL, "mohawk");
    o->file = name ? fopen(name, "w+bD") : NULL;
    free(name);
  }
#else
  o->file = open_memstream(&o->data, &o->size);
#endif
  return o->file ? CLI_GO : cli_error("cannot write %s: %s", o->path, strerror(errno));
}

/* what was written, in o->data; whether something went wrong */
static int output_end(cli_output *o) {
  int bad = ferror(o->file);
#if defined(_WIN32)
  if (!bad && fseek(o->file, 0, SEEK_END) == 0) {
    o->size = (size_t)ftell(o->file);
    o->data = (char *)malloc(o->size + 1);
    rewind(o->file);
    bad = !o->data || fread(o->data, 1, o->size, o->file) != o->size;
    if (!bad) o->data[o->size] = 0;
  }
#endif
  return fclose(o->file) != 0 || bad;
}

int cli_output_close(cli_output *o) {
  int code = CLI_GO;
  mhk_context *ctx = output_end(o) ? NULL : cli_context(1);
  if (!ctx)
    code = cli_error("cannot write %s: out of memory", o->path);
  else if (mhk_file_write_bytes(ctx, o->path, o->data, o->size) != MHK_OK)
    code = cli_context_error(ctx);
  mhk_destroy(ctx);
  free(o->data);
  return code;
}

char *cli_output_text(cli_output *o) {
  if (!output_end(o) && o->data) return o->data;
  cli_error("out of memory for a text");
  free(o->data);
  return NULL;
}

void cli_output_drop(cli_output *o) {
  fclose(o->file);
  free(o->data);
}

/* ---------------------------------------------------------------- text that is read whole */

int cli_add(cli_content *c, const char *bytes, size_t n) {
  if (n + 1 > c->room - c->n) {
    const size_t room = 2 * (c->n + n) + 4096;
    char *larger = (char *)realloc(c->text, room);
    if (!larger) return cli_error("out of memory for %.0f bytes of text", (double)room);
    c->text = larger;
    c->room = room;
  }
  memcpy(c->text + c->n, bytes, n);
  c->n += n;
  c->text[c->n] = 0;
  return CLI_GO;
}

static int is_input(const char *path) { return strcmp(path, "-") == 0 || strcmp(path, "/dev/stdin") == 0; }

int cli_is_stream(const char *path) {
#if !defined(_WIN32)
  struct stat info;
  if (stat(path, &info) == 0 && S_ISFIFO(info.st_mode)) return 1;
#endif
  return is_input(path);
}

int cli_read(const char *path, cli_content *c) {
  char part[65536];
  FILE *f = is_input(path) ? stdin : cli_open(path, "rb");
  const char *name = f == stdin ? "standard input" : path;
  size_t n;
  int bad;
  memset(c, 0, sizeof *c);
  if (!f) return cli_error("cannot read %s: %s", path, strerror(errno));
#if defined(_WIN32)
  if (f == stdin) _setmode(_fileno(stdin), _O_BINARY); /* line ends stay as they are */
#endif
  bad = cli_add(c, "", 0) != CLI_GO;
  while (!bad && (n = fread(part, 1, sizeof part, f)) > 0) bad = cli_add(c, part, n) != CLI_GO;
  if (!bad && ferror(f)) {
    cli_error("cannot read %s: %s", name, strerror(errno));
    bad = 1;
  }
  if (f != stdin) fclose(f);
  if (!bad) return CLI_GO;
  free(c->text);
  c->text = NULL;
  return CLI_FAILED;
}

size_t cli_put_utf8(char *out, unsigned long c) {
  const int more = c < 0x80 ? 0 : c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
  int i;
  out[0] = (char)(more == 0 ? c : (0xFF00ul >> (more + 1) & 0xFF) | c >> 6 * more);
  for (i = 1; i <= more; i++) out[i] = (char)(0x80 | (c >> 6 * (more - i) & 0x3F));
  return (size_t)more + 1;
}

/* Which byte of two is the high one, 0 or 1: as a byte order mark says, else the one that is zero
   more often. */
static size_t high_byte(const unsigned char *p, size_t n) {
  size_t i, zeros[2] = {0, 0};
  if (n > 1 && p[0] == 0xFE && p[1] == 0xFF) return 0;
  if (n > 1 && p[0] == 0xFF && p[1] == 0xFE) return 1;
  for (i = 0; i < n; i++) zeros[i & 1] += p[i] == 0;
  return zeros[0] > zeros[1] ? 0 : 1;
}

int cli_to_utf8(cli_content *c, int encoding, const char *name) {
  const unsigned char *p = (const unsigned char *)c->text;
  const size_t high = encoding == CLI_UTF16 ? high_byte(p, c->n) : 0, step = encoding == CLI_UTF16 ? 2 : 1;
  size_t i, bad = 0;
  cli_content out;
  memset(&out, 0, sizeof out);
  if (encoding == CLI_UTF8) return CLI_GO;
  for (i = 0; i + step <= c->n; i += step) {
    char text[4];
    unsigned long x = p[i], low;
    if (step == 2) {
      x = (unsigned long)p[i + high] << 8 | p[i + 1 - high];
      if (i == 0 && x == 0xFEFF) continue;
      low = i + 3 < c->n ? (unsigned long)p[i + 2 + high] << 8 | p[i + 3 - high] : 0;
      if (x >= 0xD800 && x < 0xDC00 && low >= 0xDC00 && low < 0xE000) {
        x = 0x10000 + ((x - 0xD800) << 10) + (low - 0xDC00);
        i += 2;
      } else if (x >= 0xD800 && x < 0xE000) {
        x = 0xFFFD;
        bad++;
      }
    }
    if (cli_add(&out, text, cli_put_utf8(text, x)) != CLI_GO) {
      free(out.text);
      return CLI_FAILED;
    }
  }
  if (bad > 0 || i < c->n)
    cli_warning("%s is not all UTF-16: %.0f characters are invalid or truncated", name, (double)(bad + (i < c->n)));
  free(c->text);
  *c = out;
  return out.text ? CLI_GO : cli_add(c, "", 0);
}

static void on_signal(int number) {
  cli_signalled = 1;
  signal(number, SIG_DFL); /* the second one ends the program */
}

void cli_catch_signals(void) {
#if defined(_WIN32)
  signal(SIGINT, on_signal);
#else
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, NULL);
  sigaction(SIGTERM, &action, NULL);
#endif
}

int cli_stopped(void) { return cli_signalled != 0; }

/* ---------------------------------------------------------------- progress */

void cli_quiet(int quiet) { cli.quiet = quiet; }
void cli_every(double seconds) { cli.every = seconds; }

static int screen_width(void) {
  const char *columns = getenv("COLUMNS");
  int width = columns ? atoi(columns) : 0;
#if defined(TIOCGWINSZ)
  struct winsize size;
  if (ioctl(fileno(stderr), TIOCGWINSZ, &size) == 0 && size.ws_col > 0) width = size.ws_col;
#endif
  return width >= 20 ? width : 80;
}

int cli_progress_due(const cli_progress *p, int last) {
  if (cli.quiet) return 0;
  if (last || p->shown <= 0) return 1;
  return cli_clock() - p->shown >= (cli.terminal ? 0.1 : cli.every);
}

void cli_progress_show(cli_progress *p, int last, const char *format, ...) {
  char line[512];
  va_list args;
  if (!cli_progress_due(p, last)) return;
  va_start(args, format);
  vsnprintf(line, sizeof line, format, args);
  va_end(args);
  fflush(stdout); /* the lines of both streams in order */
  if (cli.terminal) {
    int width = screen_width() - 1;
    if (!last && width < (int)sizeof line) line[width] = 0;
    fprintf(stderr, "\r%s\033[K%s", line, last ? "\n" : "");
  } else {
    fprintf(stderr, "%s\n", line);
  }
  fflush(stderr);
  cli.line_open = cli.terminal && !last;
  p->shown = cli_clock();
}

const char *cli_bar(double share, cli_buffer *b) {
  int i, n = (int)(20 * (share < 0 ? 0 : share > 1 ? 1 : share) + 1e-9);
  for (i = 0; i < 20; i++) b->text[i] = i < n ? '#' : '-';
  b->text[20] = 0;
  return b->text;
}

void cli_task_start(cli_task *task, const char *title, const char *what, double each) {
  memset(task, 0, sizeof *task);
  task->title = title;
  task->what = what;
  task->started = cli_clock();
  task->each = each;
  task->first = -1;
}

int cli_task_report(void *user, mhk_index done, mhk_index total) {
  cli_task *task = (cli_task *)user;
  double seconds = cli_clock() - task->started, share = total > 0 ? (double)done / (double)total : 1, rate;
  cli_buffer bar, speed, left;
  if (task->first < 0) task->first = done;
  if (cli_stopped()) return 1;
  if (!cli_progress_due(&task->progress, 0)) return 0;
  rate = seconds > 0 ? (double)(done - task->first) / seconds : 0;
  if (rate <= 0) return 0;
  cli_progress_show(&task->progress, 0, "%-9s %-18s %s  %3.0f %%   %s tokens/s   %s left", task->title, task->what,
                    cli_bar(share, &bar), 100 * share, cli_count(rate * task->each, &speed),
                    cli_time((double)(total - done) / rate, &left));
  return 0;
}

/* ---------------------------------------------------------------- JSON */

void json_start(cli_json *j, FILE *out, int lines) {
  memset(j, 0, sizeof *j);
  j->out = out;
  j->lines = lines;
}

static void json_quoted(FILE *out, const char *text, size_t length) {
  size_t i;
  fputc('"', out);
  for (i = 0; i < length; i++) {
    unsigned char c = (unsigned char)text[i];
    if (c == '"' || c == '\\') {
      fprintf(out, "\\%c", c);
    } else if (c < 0x20 || c == 0x7f) {
      fprintf(out, "\\u%04x", (unsigned)c);
    } else {
      fputc(c, out);
    }
  }
  fputc('"', out);
}

static void json_key(cli_json *j, const char *key) {
  if (j->depth > 0) {
    if (j->filled[j->depth]++) fputs(j->lines && j->depth == 1 ? "," : ", ", j->out);
    if (j->lines && j->depth == 1) fputs("\n  ", j->out);
  }
  if (key) {
    json_quoted(j->out, key, strlen(key));
    fputs(": ", j->out);
  }
}

void json_open(cli_json *j, const char *key, char bracket) {
  json_key(j, key);
  fputc(bracket, j->out);
  if (j->depth < 15) j->depth++;
  j->close[j->depth] = bracket == '{' ? '}' : ']';
  j->filled[j->depth] = 0;
}

void json_close(cli_json *j) {
  if (j->lines && j->depth == 1) fputc('\n', j->out);
  fputc(j->close[j->depth], j->out);
  if (--j->depth == 0) {
    fputc('\n', j->out);
    fflush(j->out);
  }
}

void json_bytes(cli_json *j, const char *key, const char *text, size_t length) {
  json_key(j, key);
  json_quoted(j->out, text, length);
}

void json_text(cli_json *j, const char *key, const char *text) { json_bytes(j, key, text, strlen(text)); }

void json_real(cli_json *j, const char *key, double value) {
  json_key(j, key);
  if (isfinite(value)) {
    fprintf(j->out, "%.9g", value);
  } else {
    fputs("null", j->out);
  }
}

void json_count(cli_json *j, const char *key, double value) {
  json_key(j, key);
  fprintf(j->out, "%.0f", value);
}

void json_raw(cli_json *j, const char *key, const char *text) {
  json_key(j, key);
  fputs(text, j->out);
}
