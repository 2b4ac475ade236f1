/* mohawk: distills Transformers into state-space models, runs them, measures them. One file a
   subcommand; this one chooses. */
#include "cli.h"
#include <string.h>

const cli_command *const cli_commands[] = {
    &command_train,    &command_distill,   &command_record, &command_rerun,  &command_ablate,   &command_report,
    &command_generate, &command_eval,      &command_inspect, &command_matrix, &command_matrices, &command_heads,
    &command_convert,  &command_quantize,  &command_tokenizer, &command_demo, &command_bench,    &command_completion,
};
const int cli_n_commands = CLI_COUNT_OF(cli_commands);

static void print_help(FILE *out) {
  int i;
  fprintf(out,
          "usage: mohawk COMMAND [options]\n\nmohawk %s distills Transformers into state-space models on a "
          "CPU.\n\n%scommands%s\n",
          mhk_version(), cli_bold(out), cli_plain(out));
  for (i = 0; i < cli_n_commands; i++)
    fprintf(out, "  %-10s %s\n", cli_commands[i]->name, cli_commands[i]->summary);
  fprintf(out,
          "\n`mohawk COMMAND --help` shows the options of a command, `mohawk --version` the version.\n\n%sstart "
          "here%s\n"
          "  mohawk distill --teacher phi-1_5/ --text corpus.txt --out run1\n"
          "  mohawk generate --model run1/student --prompt \"The little rabbit\"\n",
          cli_bold(out), cli_plain(out));
}

int main(int argc, char **argv) {
  const char *names[CLI_COUNT_OF(cli_commands)], *near;
  int i;
  argv = cli_start(argc, argv);
  if (argc < 2) {
    print_help(stderr);
    return CLI_USAGE;
  }
  for (i = 0; i < CLI_COUNT_OF(cli_commands); i++) {
    names[i] = cli_commands[i]->name;
    if (strcmp(argv[1], cli_commands[i]->name) == 0) {
      int code = cli_run(cli_commands[i], argc - 2, argv + 2);
      if (fflush(stdout) != 0 || ferror(stdout)) code = cli_error("cannot write to standard output");
      return code;
    }
  }
  if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
    print_help(stdout);
    return CLI_OK;
  }
  if (strcmp(argv[1], "--version") == 0) {
    printf("mohawk %s\n", mhk_version());
    return CLI_OK;
  }
  near = cli_nearest(argv[1], names, CLI_COUNT_OF(cli_commands));
  if (near) {
    cli_error("unknown command \"%s\": did you mean \"%s\"?", argv[1], near);
  } else {
    cli_error("unknown command \"%s\": `mohawk --help` lists the commands", argv[1]);
  }
  return CLI_USAGE;
}
