/* mohawk rerun: a run once more, from what it wrote down. */
#include "record.h"
#include "settings.h"
#include <stdio.h>
#include <string.h>

/* The command that a run.json is of, or NULL after a message. */
static const cli_command *command_of(const char *path) {
  foreign_json run, value;
  char name[64];
  if (settings_json_file(path, &run) != CLI_GO) return NULL;
  name[0] = 0;
  if (foreign_json_find(run, "command", &value) && (size_t)(value.end - value.at) < sizeof name)
    foreign_json_text(value, name);
  if (strcmp(name, "train") == 0) return &command_train;
  if (strcmp(name, "distill") == 0) return &command_distill;
  cli_error("%s is of mohawk %s, not of mohawk distill or mohawk train", path, name);
  return NULL;
}

typedef struct settings {
  cli_files folder;
  const char *out;
  int anyway;
  cli_words words;
} settings;

static const settings defaults = {.out = NULL};

static const cli_option options[] = {
    {NULL, "FOLDER", CLI_REST, CLI_AT(folder), 1, 0, NULL},
    {"out", "DIR", CLI_TEXT, CLI_AT(out), 0, 0, "output folder of the new run (default FOLDER.rerun)"},
    {"anyway", NULL, CLI_FLAG, CLI_AT(anyway), 0, 0,
     "go on if a file is not what it was: by default that is an error that names it"},
};

static int rerun(mhk_context *ctx, void *user) {
  settings *s = (settings *)user;
  static char record[1024], out[1024]; /* the other command keeps pointers to them */
  char *argv[CLI_COUNT_OF(s->words.word) + 4];
  const char *folder = s->folder.path[0];
  size_t n = strlen(folder);
  const cli_command *command;
  int argc = 0, i;
  (void)ctx;
  if (s->folder.n > 1) return cli_error("one folder at a time: %s, then %s", folder, s->folder.path[1]);
  if (cli_join(record, sizeof record, folder, "run.json") != CLI_GO) return CLI_FAILED;
  if (!cli_exists(record))
    return cli_error("%s has no run.json, which mohawk distill and mohawk train write when they start", folder);
  command = command_of(record);
  if (!command) return CLI_FAILED;
  while (n > 1 && folder[n - 1] == '/') n--;
  if (n + 7 >= sizeof out) return cli_error("the path %.80s... is too long", folder);
  snprintf(out, sizeof out, "%.*s.rerun", (int)n, folder);
  argv[argc++] = (char *)"--settings";
  argv[argc++] = record;
  argv[argc++] = (char *)"--out";
  argv[argc++] = s->out ? (char *)s->out : out;
  for (i = 0; i < s->words.n; i++) argv[argc++] = (char *)s->words.word[i];
  record_expect(record, s->anyway);
  return cli_run(command, argc, argv);
}

const cli_command command_rerun = {
    .name = "rerun",
    .summary = "run a distillation or training once more, from the run.json in its folder",
    .synopsis = "FOLDER [--out NEW] [options]",
    .about = "Runs what mohawk distill or mohawk train did in FOLDER once more, with the settings in FOLDER/run.json, "
             "and checks that teacher and text are what they were. Same program, same instruction set: the same bits, "
             "at any number of threads. Other options change the run.",
    .example = "mohawk rerun run1 --out run2 --seed 2",
    CLI_OPTIONS(options),
    CLI_SETTINGS(defaults),
    .body = rerun,
    .others = &command_distill,
    .also = &command_train,
    .others_at = CLI_AT(words),
};
