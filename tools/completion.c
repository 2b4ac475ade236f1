/* mohawk completion: what a shell completes, and manual pages, from the tables of options. */
#include "cli.h"
#include <ctype.h>
#include <string.h>

typedef struct settings {
  cli_files words;
} settings;

static const settings defaults = {.words = {.n = 0}};

static const cli_option options[] = {
    {NULL, "bash|zsh|man [COMMAND]", CLI_REST, CLI_AT(words), 1, 0, NULL},
};

/* ---------------------------------------------------------------- options of a command */

/* Calls each for every option of a command, and of those whose options it passes on. */
static void each_option(const cli_command *c, void (*each)(const cli_option *o)) {
  int i;
  for (i = 0; i < c->n_options; i++)
    if (c->options[i].name) each(&c->options[i]);
  for (i = 0; c->others && i < c->others->n_options; i++) {
    const cli_option *o = &c->others->options[i];
    if (o->name && !cli_find_option(c, o->name, strlen(o->name))) each(o);
  }
  for (i = 0; c->also && i < c->also->n_options; i++) {
    const cli_option *o = &c->also->options[i];
    const size_t n = o->name ? strlen(o->name) : 0;
    if (n && !cli_find_option(c, o->name, n) && !cli_find_option(c->others, o->name, n)) each(o);
  }
}

enum { VALUE_NONE, VALUE_ANY, VALUE_WORDS, VALUE_FILES, VALUE_FOLDERS };

/* what stands behind an option */
static int value_of(const cli_option *o) {
  if (o->kind == CLI_FLAG || o->kind == CLI_STRICTLY) return VALUE_NONE;
  if (o->kind == CLI_CHOICE) return VALUE_WORDS;
  if (strncmp(o->argument, "DIR", 3) == 0) return VALUE_FOLDERS;
  if (strncmp(o->argument, "FILE", 4) == 0 || strncmp(o->argument, "PATH", 4) == 0) return VALUE_FILES;
  return VALUE_ANY;
}

static void words_of(const char *choice) {
  for (; *choice; choice++) putchar(*choice == '|' ? ' ' : *choice);
}

/* ---------------------------------------------------------------- bash */

static void bash_name(const cli_option *o) { printf(" --%s", o->name); }

static void bash_value(const cli_option *o) {
  const int value = value_of(o);
  if (value == VALUE_NONE) return;
  printf("        --%s) ", o->name);
  if (value == VALUE_WORDS) {
    printf("words=\"");
    words_of(o->argument);
    printf("\" ;;\n");
  } else {
    printf("%s ;;\n", value == VALUE_FILES ? "files=-f" : value == VALUE_FOLDERS ? "files=-d" : "none=1");
  }
}

/* A function that finds the option before the word, and offers what may stand behind it. */
static void bash(void) {
  int i;
  printf("# bash completion for mohawk, from `mohawk completion bash`\n"
         "_mohawk() {\n"
         "  local current=${COMP_WORDS[COMP_CWORD]} option= command=${COMP_WORDS[1]} words= files= none= i\n"
         "  COMPREPLY=()\n"
         "  if [ \"$COMP_CWORD\" -eq 1 ]; then\n"
         "    words=\"");
  for (i = 0; i < cli_n_commands; i++) printf("%s ", cli_commands[i]->name);
  printf("--help --version\"\n"
         "  else\n"
         "    # the option that the word belongs to: those of files go on up to the next\n"
         "    for ((i = COMP_CWORD - 1; i > 1; i--)); do\n"
         "      case ${COMP_WORDS[i]} in --*) option=${COMP_WORDS[i]}; break ;; esac\n"
         "    done\n"
         "    case $command in\n");
  for (i = 0; i < cli_n_commands; i++) {
    printf("    %s)\n      case $option in\n        --settings) files=-f ;;\n", cli_commands[i]->name);
    each_option(cli_commands[i], bash_value);
    printf("      esac\n      case $current in -*) words=\"--settings --help");
    each_option(cli_commands[i], bash_name);
    printf("\" files= none= ;; esac\n      ;;\n");
  }
  printf("    esac\n"
         "    [ -n \"$words$files$none\" ] || files=-f\n"
         "  fi\n"
         "  if [ -n \"$words\" ]; then\n"
         "    COMPREPLY=($(compgen -W \"$words\" -- \"$current\"))\n"
         "  elif [ -n \"$files\" ]; then\n"
         "    local IFS=$'\\n'\n"
         "    compopt -o filenames 2>/dev/null\n"
         "    COMPREPLY=($(compgen $files -- \"$current\"))\n"
         "  fi\n"
         "}\n"
         "complete -F _mohawk mohawk\n");
}

/* ---------------------------------------------------------------- zsh */

/* text inside '...' and, if in_brackets, inside [...] of a specification */
static void zsh_text(const char *text, int in_brackets) {
  for (; *text; text++) {
    if (*text == '\'') {
      printf("'\\''");
    } else {
      if (strchr(in_brackets ? "[]\\" : ":\\", *text)) putchar('\\');
      putchar(*text);
    }
  }
}

static void zsh_option(const cli_option *o) {
  static const char *const actions[] = {"", ":", "", ":_files", ":_files -/"};
  const int value = value_of(o);
  printf(" \\\n        '");
  if (o->kind == CLI_FILES) printf("*");
  printf("--%s[", o->name);
  zsh_text(o->help, 1);
  printf("]");
  if (value != VALUE_NONE) {
    printf(":");
    zsh_text(o->argument, 0);
    printf("%s", actions[value]);
  }
  if (value == VALUE_WORDS) {
    printf(":(");
    words_of(o->argument);
    printf(")");
  }
  printf("'");
}

/* A function with the specifications of _arguments for each command. */
static void zsh(void) {
  int i;
  printf("#compdef mohawk\n"
         "# zsh completion for mohawk, from `mohawk completion zsh`\n"
         "_mohawk() {\n"
         "  local -a commands\n"
         "  commands=(\n");
  for (i = 0; i < cli_n_commands; i++) {
    printf("    '%s:", cli_commands[i]->name);
    zsh_text(cli_commands[i]->summary, 0);
    printf("'\n");
  }
  printf("  )\n"
         "  if (( CURRENT == 2 )); then\n"
         "    _describe command commands\n"
         "    return\n"
         "  fi\n"
         "  local command=$words[2]\n"
         "  shift words\n"
         "  (( CURRENT-- ))\n"
         "  case $command in\n");
  for (i = 0; i < cli_n_commands; i++) {
    printf("    %s)\n      _arguments \\\n        '--settings[options from a file]:FILE:_files' \\\n"
           "        '--help[what the command does, and its options]'",
           cli_commands[i]->name);
    each_option(cli_commands[i], zsh_option);
    printf(" \\\n        '*:file:_files'\n      ;;\n");
  }
  printf("  esac\n"
         "}\n"
         "_mohawk \"$@\"\n");
}

/* ---------------------------------------------------------------- manual pages */

/* words of running text, in mdoc */
static void man_text(const char *text) {
  const char *start = text;
  for (; *text; text++) {
    if (text == start && (*text == '.' || *text == '\'')) printf("\\&");
    if (*text == '-') printf("\\-");
    else if (*text == '"') printf("\\(dq");
    else if (*text == '\\') printf("\\e");
    else putchar(*text);
  }
}

static void man_sentence(const char *text) {
  if (*text) putchar(toupper((unsigned char)*text));
  if (*text) man_text(text + 1);
  printf(".\n");
}

static void man_options(const cli_command *c) {
  int i, open = 0;
  for (i = 0; i < c->n_options; i++) {
    const cli_option *o = &c->options[i];
    if (o->kind == CLI_REST) continue;
    if (o->kind == CLI_HEADING) {
      if (open) printf(".El\n");
      printf(".Pp\n.Em ");
      man_text(o->help);
      printf("\n");
      open = 0;
      continue;
    }
    if (!open) printf(".Bl -tag -width Ds\n");
    open = 1;
    printf(".It Fl \\-");
    man_text(o->name);
    if (o->argument) {
      printf(" Ar ");
      man_text(o->argument);
    }
    printf("\n");
    man_sentence(o->help);
  }
  if (open) printf(".El\n");
}

static void man(const cli_command *c) {
  const char *at;
  printf(".\\\" from `mohawk completion man %s`\n.Dd\n.Dt MOHAWK\\-", c->name);
  for (at = c->name; *at; at++) putchar(toupper((unsigned char)*at));
  printf(" 1\n.Os mohawk %s\n.Sh NAME\n.Nm mohawk\\-%s\n.Nd ", mhk_version(), c->name);
  man_text(c->summary);
  printf("\n.Sh SYNOPSIS\n.Nm mohawk %s\n.No ", c->name);
  man_text(c->synopsis);
  printf("\n.Sh DESCRIPTION\n");
  man_text(c->about);
  printf("\n.Pp\nThe options are:\n");
  man_options(c);
  if (c->others && c->also)
    printf("All options of\n.Xr mohawk\\-%s 1\nor\n.Xr mohawk\\-%s 1\nmay be given too.\n", c->others->name,
           c->also->name);
  else if (c->others)
    printf("All options of\n.Xr mohawk\\-%s 1\nmay be given too.\n", c->others->name);
  printf(".Pp\nOptions may also come from a file:\n.Bl -tag -width Ds\n.It Fl \\-settings Ar FILE\n"
         "Lines\n.Dq name = value ,\nor a run.json; the command line wins.\n.El\n"
         ".Sh EXIT STATUS\n0 after success, 1 after an error or Ctrl\\-C, 2 after an invalid command line.\n"
         ".Sh EXAMPLES\n.Dl ");
  man_text(c->example);
  printf("\n.Sh SEE ALSO\n.Xr mohawk 1\n");
}

/* ---------------------------------------------------------------- which */

static int completion(mhk_context *ctx, void *user) {
  const settings *s = (const settings *)user;
  const char *what = s->words.path[0];
  int i;
  (void)ctx;
  if (strcmp(what, "man") != 0 && s->words.n > 1) return cli_error("\"%s\" is one word too many", s->words.path[1]);
  if (strcmp(what, "bash") == 0) bash();
  else if (strcmp(what, "zsh") == 0) zsh();
  else if (strcmp(what, "man") != 0) return cli_error("completion is for bash, zsh or man, not \"%s\"", what);
  else if (s->words.n == 1) /* what there are pages of */
    for (i = 0; i < cli_n_commands; i++) puts(cli_commands[i]->name);
  for (i = 0; i < cli_n_commands && s->words.n == 2; i++)
    if (strcmp(s->words.path[1], cli_commands[i]->name) == 0) {
      man(cli_commands[i]);
      return CLI_OK;
    }
  return s->words.n < 2 ? CLI_OK : cli_error("there is no command %s", s->words.path[1]);
}

const cli_command command_completion = {
    .name = "completion",
    .summary = "print completion for bash or zsh, or the manual page of a command",
    .synopsis = "bash|zsh|man [COMMAND]",
    .about = "Prints a script with which bash or zsh completes commands, options, their words, and files; or the "
             "manual page of one command in mdoc (without COMMAND: which there are). All come from the tables of "
             "options that --help shows. `make install` installs them.",
    .example = "eval \"$(mohawk completion bash)\"",
    CLI_OPTIONS(options),
    CLI_SETTINGS(defaults),
    .body = completion,
};
