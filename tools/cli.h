/* cli.h: what the subcommands of mohawk share: options, messages, progress, JSON, files,
   signals. */
#ifndef MOHAWK_CLI_H
#define MOHAWK_CLI_H

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L /* isatty, sigaction, clock_gettime; this file therefore comes first */
#endif

#include "../mohawk.h"
#include <stddef.h>
#include <stdio.h>

#if defined(__GNUC__) || defined(__clang__)
#define CLI_PRINTF(text, first) __attribute__((format(printf, text, first)))
#else
#define CLI_PRINTF(text, first)
#endif

/* ---- exit codes. CLI_GO: no reason to exit */
enum { CLI_GO = -1, CLI_OK = 0, CLI_FAILED = 1, CLI_USAGE = 2 };

/* ---- options */

#define CLI_MAX_LIST 64
#define CLI_MAX_OPTIONS 128 /* of a command */
typedef struct cli_files {
  const char *path[CLI_MAX_LIST];
  int n;
} cli_files;
typedef struct cli_numbers {
  double value[CLI_MAX_LIST];
  int n;
} cli_numbers; /* NaN where "-" was written */

/* words of a command line, as they stand there */
typedef struct cli_words {
  const char *word[256];
  int n;
} cli_words;

typedef enum cli_kind {
  CLI_HEADING, /* no option: a heading in the help */
  CLI_REST,    /* cli_files: arguments that belong to no option; without it there may be none */
  CLI_STRICTLY, /* --strict, for cli_load() */
  CLI_FLAG,    /* int, becomes 1 */
  CLI_TEXT,    /* const char * */
  CLI_INT,     /* int */
  CLI_COUNT,   /* mhk_index; k, M and G are understood in all numbers */
  CLI_REAL,    /* double */
  CLI_NUMBERS, /* cli_numbers, separated by commas */
  CLI_CHOICE,  /* int: the place of the word in argument "a|b|c" */
  CLI_FILES    /* cli_files: everything up to the next option */
} cli_kind;

typedef struct cli_option {
  const char *name;     /* without the dashes */
  const char *argument; /* as the help shows it; NULL: none */
  cli_kind kind;
  size_t at;        /* where its value stands in the command's settings: CLI_AT(field) */
  double low, high; /* bounds of numbers; both 0: none. low 1 of a text or files: it must be given */
  const char *help;
} cli_option;

/* A command is its settings, a table of options that fill them, and what it does with them. */
typedef struct cli_command {
  const char *name, *summary, *synopsis, *about, *example;
  const char *often; /* the options that --help shows, " a b c "; --help all shows all. NULL: there are few */
  const cli_option *options;
  int n_options;
  const void *defaults; /* the settings before options are read, size bytes */
  size_t size;
  /* What the table cannot say of the settings. Returns CLI_GO, or CLI_USAGE after a message. NULL:
     nothing. */
  int (*check)(void *settings);
  /* Does the work, with a context that has --threads threads (cli_context(0) where there is
     no such option) and goes afterwards with all that it holds. Returns an exit code. */
  int (*body)(mhk_context *ctx, void *settings);
  /* Options that only this command has are checked as its own, and their words kept in the
     cli_words at others_at: for a command that runs another. NULL: none. */
  const struct cli_command *others, *also; /* also: another one, for what `others` has no option of that name */
  size_t others_at;
} cli_command;

/* In the file of a command: a field of its type `settings`, and members of its description. */
#define CLI_AT(field) offsetof(settings, field)
#define CLI_OPTIONS(table) .options = table, .n_options = CLI_COUNT_OF(table)
#define CLI_SETTINGS(values) .defaults = &(values), .size = sizeof(values)

/* Reads the options and does what the command does. Returns its exit code: CLI_OK after --help,
   CLI_USAGE after a mistake, which has been explained. */
int cli_run(const cli_command *command, int argc, char **argv);
/* Reads a command line over settings that hold something already. Returns CLI_GO, CLI_OK after
   --help, or CLI_USAGE after a message. */
int cli_read_options(const cli_command *command, void *settings, int argc, char **argv);
/* the option whose name are the first length characters of typed, or NULL */
const cli_option *cli_find_option(const cli_command *command, const char *typed, size_t length);
/* Says that there is no such option, and which one is near. Returns CLI_USAGE. */
int cli_unknown_option(const cli_command *command, const char *typed, size_t length);
/* Gives an option in settings one value, as after --NAME=. A flag is yes or no, files are added one
   by one. Returns CLI_GO, or CLI_USAGE after a message. */
int cli_set_option(const cli_option *o, void *settings, const char *text);
/* whether settings hold a value that the option may have */
int cli_has_value(const cli_option *o, const void *settings);
/* Complains that an option is missing. Returns CLI_USAGE. */
int cli_missing(const cli_command *command, const char *option);
/* A number with an optional k, M or G; returns what follows it, or NULL. */
const char *cli_read_number(const char *text, double *value);
/* The word in list (n of them) nearest to what was typed, or NULL when none is near. */
const char *cli_nearest(const char *typed, const char *const *list, int n);
/* Entry i of numbers that are given once for all or once for each; otherwise where nothing was
   given. */
double cli_number_at(const cli_numbers *numbers, int i, double otherwise);

/* ---- messages, all on stderr as "mohawk: sentence" */
/* First of all in main. On Linux it may start the program once more, with OpenMP told to wait
   asleep. */
char **cli_start(int argc, char **argv); /* returns the arguments in UTF-8 */
const char *cli_program(void);
CLI_PRINTF(1, 2) int cli_error(const char *format, ...); /* returns CLI_FAILED */
CLI_PRINTF(1, 2) void cli_warning(const char *format, ...);
CLI_PRINTF(1, 2) void cli_note(const char *format, ...); /* progress: nothing where that is quiet */
int cli_context_error(const mhk_context *ctx); /* the context's sentence; returns CLI_FAILED */
/* A context whose warnings go to stderr. threads 0: OMP_NUM_THREADS, otherwise one a core. */
mhk_context *cli_context(int threads);
mhk_context *cli_context_on(int threads, mhk_isa isa);
/* Cores that this process may use, by its CPUs and its quota of time, rounded down; 0: unknown.
   root: what the paths of the system's files start with ("" but in tests). */
int cli_cores(const char *root);
/* A model in any layout that mohawk.h or foreign.h reads, as --strict says: every command that
   loads models has that option. */
mhk_model *cli_load(mhk_context *ctx, const char *path);
int cli_strict(void);
/* Says that a model has no tokenizer, and why. Returns CLI_FAILED. */
int cli_no_tokenizer(const mhk_model *m, const char *path);
/* Before a model is written: one whose tokenizer could not be read must not lose it unnoticed.
   CLI_GO, or CLI_FAILED after a message. */
int cli_keeps_tokenizer(const mhk_model *m, const char *path);
#define CLI_THREADS(at) \
  {"threads", "N", CLI_INT, at, 1, 4096, "number of threads (default: one per core; results do not depend on it)"}
#define CLI_JSON(at) {"json", NULL, CLI_FLAG, at, 0, 0, "print one JSON object instead of text"}
#define CLI_STRICT \
  {"strict", NULL, CLI_STRICTLY, 0, 0, 0, \
    "treat warnings during loading as errors, for example parts of a model that are not used"}
const char *cli_bold(FILE *out);               /* "" where color is not wanted */
const char *cli_plain(FILE *out);
/* After Ctrl-C: that all is saved in the folder, and the command line that goes on, which is the
   same without --fresh. */
void cli_say_resume(const char *folder);

/* ---- numbers as people read them; all return text in buffer */
typedef struct cli_buffer {
  char text[64];
} cli_buffer;
const char *cli_count(double n, cli_buffer *b);      /* 1.06 M */
const char *cli_bytes(double n, cli_buffer *b);      /* 31.2 GB */
const char *cli_time(double seconds, cli_buffer *b); /* 1:02:03 */
const char *cli_threads(const mhk_context *ctx, cli_buffer *b); /* 8 threads */

/* ---- time, memory, files, signals */
double cli_clock(void);
double cli_memory_free(void); /* bytes; 0: unknown */
double cli_memory_touched(void); /* bytes of memory of its own that the process uses; 0: unknown */
double cli_disk_free(const char *path); /* bytes of the disk where path is, or will be; 0: unknown */
int cli_exists(const char *path);
int cli_ends_with(const char *text, const char *end);
int cli_make_folders(const char *path); /* CLI_GO, or CLI_FAILED after a message */
int cli_join(char *out, size_t capacity, const char *folder, const char *name); /* the same */
/* A file that appears under its name when it is complete, as mhk_file_write_bytes() does it. */
typedef struct cli_output {
  FILE *file;
  char path[1024], *data;
  size_t size;
} cli_output;
/* CLI_GO, or CLI_FAILED after a message. path NULL: text for cli_output_text(), in no file. */
int cli_output_open(cli_output *o, const char *path);
int cli_output_close(cli_output *o);
char *cli_output_text(cli_output *o); /* in place of closing: malloc'ed; NULL after a message */
void cli_output_drop(cli_output *o); /* in place of closing: nothing is written */
FILE *cli_open(const char *path, const char *mode); /* fopen, whatever characters the path has */

/* Text that grows, for one that is read whole: from a pipe, or in another encoding. */
typedef struct cli_content {
  char *text; /* a 0 stands behind it; the caller frees it */
  size_t n, room;
} cli_content; /* zero to start */
int cli_add(cli_content *c, const char *text, size_t n); /* CLI_GO, or CLI_FAILED after a message */
enum { CLI_UTF8, CLI_LATIN1, CLI_UTF16 };
#define CLI_ENCODING(at) \
  {"encoding", "utf8|latin1|utf16", CLI_CHOICE, at, 0, 0, \
    "encoding of the text files; utf16 takes its byte order from the byte order mark (default utf8)"}
int cli_is_stream(const char *path);              /* a pipe, or - for standard input */
int cli_read(const char *path, cli_content *c);   /* the same */
int cli_to_utf8(cli_content *c, int encoding, const char *name); /* the same */
size_t cli_put_utf8(char *out, unsigned long c); /* the bytes (4 at most) of a character; returns how many */
void cli_catch_signals(void); /* from now on Ctrl-C only sets cli_stopped(); a second one ends the program */
int cli_stopped(void);

/* ---- progress: one line that redraws itself on a terminal, a line every few seconds elsewhere */
void cli_quiet(int quiet);      /* no progress at all (for --json) */
void cli_every(double seconds); /* between plain lines */
typedef struct cli_progress {
  double shown;
  int open;
} cli_progress; /* zero to start */
int cli_progress_due(const cli_progress *p, int last);
CLI_PRINTF(3, 4) void cli_progress_show(cli_progress *p, int last, const char *format, ...);
void cli_progress_clear(void);                    /* takes an unfinished line off the screen */
const char *cli_bar(double share, cli_buffer *b); /* ################---- */

/* A mhk_progress_fn and what it needs: shows tokens done, rate and time left; stops after
   Ctrl-C. */
typedef struct cli_task {
  const char *title, *what;
  double started, each; /* each: tokens that one step of the count stands for */
  mhk_index first;
  cli_progress progress;
} cli_task;
void cli_task_start(cli_task *task, const char *title, const char *what, double each);
int cli_task_report(void *task, mhk_index done, mhk_index total);

/* ---- JSON, written as it comes */
typedef struct cli_json {
  FILE *out;
  int depth, lines;
  char close[16];
  int filled[16];
} cli_json;
void json_start(cli_json *j, FILE *out, int lines); /* lines: each member of the outermost bracket on its own line */
void json_open(cli_json *j, const char *key, char bracket); /* key NULL inside a list */
void json_close(cli_json *j);
void json_text(cli_json *j, const char *key, const char *text);
void json_bytes(cli_json *j, const char *key, const char *text, size_t length);
void json_real(cli_json *j, const char *key, double value);
void json_count(cli_json *j, const char *key, double value);
void json_raw(cli_json *j, const char *key, const char *text); /* text is JSON already */

/* ---- the subcommands, one file each */
extern const cli_command command_train, command_distill, command_generate, command_eval, command_inspect,
    command_matrix, command_matrices, command_heads, command_convert, command_quantize, command_tokenizer,
    command_demo, command_bench, command_rerun, command_record, command_ablate, command_report, command_completion;
/* all of them, in the order of the help: in mohawk.c */
extern const cli_command *const cli_commands[];
extern const int cli_n_commands;

#define CLI_COUNT_OF(array) ((int)(sizeof(array) / sizeof((array)[0])))

#endif
