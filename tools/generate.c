/* mohawk generate: continues a prompt, token by token, as it comes. */
#include "cli.h"
#include <stdlib.h>
#include <string.h>

typedef struct settings {
  const char *model, *prompt;
  mhk_index tokens;
  mhk_sampling sampling;
  int seed, greedy, threads, json;
} settings;

static int parse(settings *s, int argc, char **argv) {
  const cli_option options[] = {
      {"model", "PATH", CLI_TEXT, &s->model, 0, 0,
       "a model's folder, or one .safetensors file that holds all of it (required)"},
      {"prompt", "TEXT", CLI_TEXT, &s->prompt, 0, 0,
       "what to continue; - reads standard input without its last line end (default: nothing, the start of a text)"},
      {"tokens", "N", CLI_COUNT, &s->tokens, 1, 1e12,
       "tokens at most (default 200); the model may end its text earlier"},
      {"temperature", "X", CLI_REAL, &s->sampling.temperature, 0, 100, "0: greedy (default 0.8)"},
      {"top-k", "N", CLI_INT, &s->sampling.top_k, 0, 1e9, "draw from the N most likely tokens; 0: all (default 0)"},
      {"top-p", "X", CLI_REAL, &s->sampling.top_p, 1e-6, 1,
       "draw from the most likely tokens that make up this probability (default 0.95)"},
      {"min-p", "X", CLI_REAL, &s->sampling.min_p, 0, 1,
       "drop tokens below this share of the most likely one's probability (default 0)"},
      {"seed", "N", CLI_INT, &s->seed, 1, 2e9, "of the random numbers (default 1)"},
      {"greedy", NULL, CLI_FLAG, &s->greedy, 0, 0, "always the most likely token"},
      {"threads", "N", CLI_INT, &s->threads, 1, 4096, "threads (default: all the machine has)"},
      {"json", NULL, CLI_FLAG, &s->json, 0, 0, "one JSON object at the end in place of text as it comes"},
  };
  const cli_command c = {"generate",
                         "--model PATH [--prompt TEXT] [options]",
                         "Continues a prompt with a teacher, a student or a hybrid.",
                         "mohawk generate --model run1/student --prompt \"The little rabbit\" --tokens 100",
                         options,
                         CLI_COUNT_OF(options),
                         NULL};
  int code = cli_parse(&c, argc, argv);
  if (code == CLI_GO && !s->model) code = cli_missing(&c, "--model PATH");
  return code;
}

/* text that grows */
typedef struct growing {
  char *text;
  size_t length, room;
} growing;

static int grow(growing *g, const char *text, size_t n) {
  if (g->length + n + 1 > g->room) {
    size_t room = (g->length + n + 1) * 2;
    char *larger = (char *)realloc(g->text, room);
    if (!larger) return cli_error("out of memory for %lld bytes of text", (long long)room);
    g->text = larger;
    g->room = room;
  }
  memcpy(g->text + g->length, text, n);
  g->length += n;
  g->text[g->length] = 0;
  return CLI_GO;
}

static int read_input(growing *g) {
  char part[4096];
  size_t n;
  while ((n = fread(part, 1, sizeof part, stdin)) > 0)
    if (grow(g, part, n) != CLI_GO) return CLI_FAILED;
  if (g->length > 0 && g->text[g->length - 1] == '\n') g->text[--g->length] = 0; /* the one that ends the input */
  return ferror(stdin) ? cli_error("standard input could not be read") : CLI_GO;
}

static void print_json(const settings *s, const char *prompt, const growing *out, mhk_index tokens, double seconds,
                       const char *reason) {
  cli_json j;
  json_start(&j, stdout, 0);
  json_open(&j, NULL, '{');
  json_text(&j, "model", s->model);
  json_text(&j, "prompt", prompt);
  json_bytes(&j, "text", out->text ? out->text : "", out->length);
  json_count(&j, "tokens", (double)tokens);
  json_text(&j, "stopped", reason);
  json_real(&j, "seconds", seconds);
  json_real(&j, "tokens_per_second", seconds > 0 ? (double)tokens / seconds : 0);
  json_close(&j);
}

static int generate(mhk_context *ctx, const settings *s, const char *prompt, growing *out) {
  mhk_model *m = mhk_load(ctx, s->model);
  mhk_tokenizer *k = mhk_model_tokenizer(m);
  mhk_session_desc desc;
  mhk_session *session;
  const char *reason = "tokens";
  double start;
  mhk_index n = 0;
  if (!m) return cli_context_error(ctx);
  if (!k) return cli_error("%s has no tokenizer.json: put the teacher's beside it", s->model);
  memset(&desc, 0, sizeof desc);
  desc.capacity = mhk_encode(k, prompt, strlen(prompt), NULL, 0) + s->tokens + 2;
  session = mhk_session_create(m, &desc);
  if (!s->json) fputs(prompt, stdout);
  mhk_feed_text(session, prompt);
  start = cli_clock();
  for (; n < s->tokens; n++) {
    if (mhk_sample(session, &s->sampling) < 0) {
      reason = "end of text";
      break;
    }
    if (cli_stopped()) {
      reason = "interrupt";
      break;
    }
    if (s->json) {
      const char *text = mhk_text_out(session);
      if (grow(out, text, strlen(text)) != CLI_GO) return CLI_FAILED;
    } else {
      fputs(mhk_text_out(session), stdout);
      fflush(stdout);
    }
  }
  if (mhk_failed(ctx)) return cli_context_error(ctx);
  if (s->json) {
    print_json(s, prompt, out, n, cli_clock() - start, reason);
  } else {
    fputc('\n', stdout);
  }
  return CLI_OK;
}

int command_generate(int argc, char **argv) {
  settings s;
  growing input, out;
  mhk_context *ctx;
  int code;
  memset(&s, 0, sizeof s);
  memset(&input, 0, sizeof input);
  memset(&out, 0, sizeof out);
  s.prompt = "";
  s.tokens = 200;
  s.sampling.temperature = 0.8;
  s.sampling.top_p = 0.95;
  s.seed = 1;
  code = parse(&s, argc, argv);
  if (code != CLI_GO) return code;
  if (s.greedy || s.sampling.temperature == 0) s.sampling.temperature = -1;
  s.sampling.seed = (uint64_t)s.seed;
  if (strcmp(s.prompt, "-") == 0 && read_input(&input) != CLI_GO) return CLI_FAILED;
  cli_catch_signals();
  ctx = cli_context(s.threads);
  code = ctx ? generate(ctx, &s,
                        strcmp(s.prompt, "-") != 0 ? s.prompt
                        : input.text               ? input.text
                                                   : "",
                        &out)
             : CLI_FAILED;
  mhk_destroy(ctx);
  free(input.text);
  free(out.text);
  return code;
}
