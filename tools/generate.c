/* mohawk generate: continues a prompt, token by token, as it comes. */
#include "cli.h"
#include <stdlib.h>
#include <string.h>

typedef struct settings {
  const char *model, *prompt, *system, *bias_text, *draft;
  mhk_index tokens;
  mhk_sampling sampling;
  mhk_token_bias bias[CLI_MAX_LIST];
  cli_numbers stop_numbers;
  int32_t stop_tokens[CLI_MAX_LIST + 1]; /* and the end of a turn */
  cli_files stops; /* not files: texts */
  int chat, seed, greedy, draft_tokens, threads, json, verbose, no_start, encoding;
  size_t prompt_bytes;
} settings;

/* How models that were trained on conversations expect them: start, then for each turn
   open ROLE close TEXT end after, and open assistant close where the answer goes. tokens: the
   special tokens it is made of, the first of which ends a turn. trims: no white space around a
   turn's text. */
typedef struct chat_format {
  const char *name, *start, *open, *close, *end, *after, *tokens[4];
  int trims;
} chat_format;
static const chat_format formats[] = {
    {"chatml", "", "<|im_start|>", "\n", "<|im_end|>", "\n", {"<|im_end|>", "<|im_start|>", NULL, NULL}, 0},
    {"llama3",
     "<|begin_of_text|>",
     "<|start_header_id|>",
     "<|end_header_id|>\n\n",
     "<|eot_id|>",
     "",
     {"<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"},
     1}};
/* NULL without --chat */
static const chat_format *chat_of(const settings *s) { return s->chat ? &formats[s->chat - 1] : NULL; }

static int add_words(cli_content *c, const char *text) { return cli_add(c, text, strlen(text)); }

static int is_white(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

static int add_turn(cli_content *c, const chat_format *f, const char *role, const char *text, size_t n) {
  while (f->trims && n > 0 && is_white(text[n - 1])) n--;
  for (; f->trims && n > 0 && is_white(*text); n--) text++;
  if (add_words(c, f->open) != CLI_GO || add_words(c, role) != CLI_GO || add_words(c, f->close) != CLI_GO ||
      cli_add(c, text, n) != CLI_GO || add_words(c, f->end) != CLI_GO)
    return CLI_FAILED;
  return add_words(c, f->after);
}

/* Makes the prompt a conversation of one turn that the assistant answers. */
static int wrap_prompt(settings *s, cli_content *c) {
  const chat_format *f = chat_of(s);
  if (!f) return CLI_GO;
  if (s->prompt_bytes == 0) return cli_error("--chat needs the user's words: --prompt TEXT");
  if (add_words(c, f->start) != CLI_GO ||
      (s->system && add_turn(c, f, "system", s->system, strlen(s->system)) != CLI_GO) ||
      add_turn(c, f, "user", s->prompt, s->prompt_bytes) != CLI_GO || add_words(c, f->open) != CLI_GO ||
      add_words(c, "assistant") != CLI_GO || add_words(c, f->close) != CLI_GO)
    return CLI_FAILED;
  s->prompt = c->text;
  s->prompt_bytes = c->n;
  return CLI_GO;
}

/* The format's special tokens must be those of the tokenizer; generation stops at the end of the
   turn. */
static int stop_at_turn(settings *s, mhk_tokenizer *k) {
  const chat_format *f = chat_of(s);
  size_t i;
  for (i = 0; f && i < sizeof f->tokens / sizeof *f->tokens && f->tokens[i]; i++)
    if (mhk_tokenizer_id(k, f->tokens[i]) < 0)
      return cli_error("--chat %s needs the special token %s, which the tokenizer of %s does not have: its model was "
                       "not trained on conversations of this format",
                       f->name, f->tokens[i], s->model);
  if (f) s->stop_tokens[s->sampling.n_stop_tokens++] = mhk_tokenizer_id(k, f->tokens[0]);
  return CLI_GO;
}

/* ID:VALUE,... */
static int parse_bias(settings *s) {
  const char *text = s->bias_text;
  for (; *text && s->sampling.n_bias < CLI_MAX_LIST; s->sampling.n_bias++) {
    mhk_token_bias *b = s->bias + s->sampling.n_bias;
    char *end;
    const long id = strtol(text, &end, 10);
    if (end == text || *end != ':' || id < 0 || id > INT32_MAX) break;
    b->token = (int32_t)id;
    text = end + 1;
    b->value = strtod(text, &end);
    if (end == text || (*end && *end != ',')) break;
    text = *end ? end + 1 : end;
  }
  s->sampling.bias = s->bias;
  if (!*text) return CLI_GO;
  cli_error("--bias %s: use token ids and what to add to their logits, as in 17:-2.5,300:-inf (%d at most)",
            s->bias_text, CLI_MAX_LIST);
  return CLI_USAGE;
}

/* what the options say about sampling, as its description takes it */
static int check(void *user) {
  settings *s = (settings *)user;
  int i;
  if (s->system && !s->chat) {
    cli_error("--system is the system turn of a conversation: it needs --chat chatml or --chat llama3");
    return CLI_USAGE;
  }
  for (i = 0; i < s->stop_numbers.n; i++) {
    const double x = s->stop_numbers.value[i];
    if (!(x >= 0 && x <= INT32_MAX)) {
      cli_error("--stop-token needs token ids");
      return CLI_USAGE;
    }
    s->stop_tokens[i] = (int32_t)x;
  }
  s->sampling.greedy = s->greedy || s->sampling.temperature == 0;
  s->sampling.seed = (uint64_t)s->seed;
  s->sampling.stop_tokens = s->stop_tokens;
  s->sampling.n_stop_tokens = s->stop_numbers.n;
  s->sampling.stop_strings = s->stops.path;
  s->sampling.n_stop_strings = s->stops.n;
  return s->bias_text ? parse_bias(s) : CLI_GO;
}

static const settings defaults = {
    .prompt = "", .tokens = 200, .sampling = {.temperature = 0.8, .top_p = 0.95}, .seed = 1};

static const cli_option options[] = {
    {"model", "PATH", CLI_TEXT, CLI_AT(model), 1, 0,
     "a model folder, or one .safetensors file with the whole model (required)"},
    {"prompt", "TEXT", CLI_TEXT, CLI_AT(prompt), 0, 0,
     "the text to continue, as --prompt=TEXT if it starts with --; - reads standard input and drops its last newline "
     "(default: empty, the start of a text)"},
    {"chat", "none|chatml|llama3", CLI_CHOICE, CLI_AT(chat), 0, 0,
     "the prompt is the user's turn of a conversation in the format of ChatML (Qwen, SmolLM2) or Llama 3, which starts "
     "its text itself; prints the answer alone, up to the end of its turn (default none)"},
    {"system", "TEXT", CLI_TEXT, CLI_AT(system), 0, 0,
     "with --chat: the system turn before the user's (default: there is none)"},
    CLI_ENCODING(CLI_AT(encoding)),
    {"no-start", NULL, CLI_FLAG, CLI_AT(no_start), 0, 0,
     "add no start token before the prompt (default: add one, unless the tokenizer's files say that there is none)"},
    {"tokens", "N", CLI_COUNT, CLI_AT(tokens), 1, 1e12,
     "maximum number of tokens (default 200); the model may end its text earlier"},
    {"temperature", "X", CLI_REAL, CLI_AT(sampling.temperature), 0, 100, "0: greedy (default 0.8)"},
    {"top-k", "N", CLI_INT, CLI_AT(sampling.top_k), 0, 1e9, "sample from the N most likely tokens; 0: all (default 0)"},
    {"top-p", "X", CLI_REAL, CLI_AT(sampling.top_p), 1e-6, 1,
     "sample from the most likely tokens with this total probability (default 0.95)"},
    {"min-p", "X", CLI_REAL, CLI_AT(sampling.min_p), 0, 1,
     "drop tokens below this fraction of the probability of the most likely one (default 0)"},
    {"typical", "X", CLI_REAL, CLI_AT(sampling.typical), 1e-6, 1,
     "typical sampling: sample from the tokens of most typical surprise with this total probability (default 1)"},
    {"repetition", "X", CLI_REAL, CLI_AT(sampling.repetition), 1e-3, 100,
     "divide positive logits of recent tokens by X, multiply negative ones (default 1)"},
    {"frequency", "X", CLI_REAL, CLI_AT(sampling.frequency), -100, 100,
     "subtract X from the logit of a token for each recent occurrence (default 0)"},
    {"presence", "X", CLI_REAL, CLI_AT(sampling.presence), -100, 100,
     "subtract X from the logits of recent tokens (default 0)"},
    {"penalty-tokens", "N", CLI_INT, CLI_AT(sampling.penalty_tokens), 1, 1e9,
     "number of recent tokens, including the prompt's (default 256)"},
    {"bias", "ID:X,...", CLI_TEXT, CLI_AT(bias_text), 0, 0, "add X to the logit of token ID; -inf forbids it"},
    {"stop", "TEXT...", CLI_FILES, CLI_AT(stops), 0, 0, "stop before the first of these texts, which is not printed"},
    {"stop-token", "ID,...", CLI_NUMBERS, CLI_AT(stop_numbers), 0, 0, "stop at these tokens"},
    {"seed", "N", CLI_INT, CLI_AT(seed), 1, 2e9, "seed of the random numbers (default 1)"},
    {"greedy", NULL, CLI_FLAG, CLI_AT(greedy), 0, 0, "always choose the most likely token"},
    {"draft", "PATH", CLI_TEXT, CLI_AT(draft), 0, 0,
     "speculative decoding: this student drafts tokens and the model verifies them; the output distribution stays the "
     "same"},
    {"draft-tokens", "N", CLI_INT, CLI_AT(draft_tokens), 1, 16,
     "tokens per draft (default: adapts to how many were accepted)"},
    {"threads", "N", CLI_INT, CLI_AT(threads), 1, 4096, "number of threads (default: one per core)"},
    CLI_STRICT,
    {"json", NULL, CLI_FLAG, CLI_AT(json), 0, 0, "print one JSON object at the end instead of text"},
    {"verbose", NULL, CLI_FLAG, CLI_AT(verbose), 0, 0,
     "print the speed at the end, with --draft also compared with the model alone"},
};

/* the prompt from standard input, without the line end that ends it */
static int read_prompt(settings *s, cli_content *input) {
  if (cli_read("-", input) != CLI_GO || cli_to_utf8(input, s->encoding, "the prompt") != CLI_GO) return CLI_FAILED;
  if (input->n > 0 && input->text[input->n - 1] == '\n') input->n--;
  if (input->n > 0 && input->text[input->n] == '\n' && input->text[input->n - 1] == '\r') input->n--;
  input->text[input->n] = 0;
  s->prompt = input->text;
  s->prompt_bytes = input->n;
  if (input->n >= 3 && memcmp(input->text, "\xEF\xBB\xBF", 3) == 0) { /* a byte order mark */
    s->prompt += 3;
    s->prompt_bytes -= 3;
  }
  return CLI_GO;
}

/* what a generation came to */
typedef struct outcome {
  mhk_index tokens;
  double seconds, seconds_alone; /* seconds_alone: of the model without its draft, for as many tokens */
  const char *reason;
  mhk_speculation_info counts;
} outcome;

static double share(mhk_index part, mhk_index of) { return of > 0 ? (double)part / (double)of : 0; }

static void print_json(const settings *s, const char *prompt, const cli_content *out, const outcome *o) {
  cli_json j;
  json_start(&j, stdout, 0);
  json_open(&j, NULL, '{');
  json_text(&j, "model", s->model);
  json_bytes(&j, "prompt", prompt, s->prompt_bytes);
  json_bytes(&j, "text", out->text ? out->text : "", out->n);
  json_count(&j, "tokens", (double)o->tokens);
  json_text(&j, "stopped", o->reason);
  json_real(&j, "seconds", o->seconds);
  json_real(&j, "tokens_per_second", o->seconds > 0 ? (double)o->tokens / o->seconds : 0);
  if (s->draft) {
    json_text(&j, "draft", s->draft);
    json_count(&j, "passes", (double)o->counts.passes);
    json_count(&j, "drafted", (double)o->counts.drafted);
    json_count(&j, "accepted", (double)o->counts.accepted);
    json_real(&j, "acceptance", share(o->counts.accepted, o->counts.drafted));
    json_real(&j, "tokens_per_pass", share(o->counts.tokens, o->counts.passes));
    json_real(&j, "seconds_alone", o->seconds_alone);
    json_real(&j, "speedup", o->seconds > 0 ? o->seconds_alone / o->seconds : 0);
  }
  json_close(&j);
}

static void print_speed(const settings *s, const outcome *o) {
  cli_note("%lld tokens in %.2f s: %.1f per second", (long long)o->tokens, o->seconds,
           o->seconds > 0 ? (double)o->tokens / o->seconds : 0);
  if (s->draft)
    cli_note(
        "%lld of %lld drafted tokens accepted (%.0f %%), %.2f tokens per pass of the model; the model alone needs "
        "%.2f s: %.2f times as fast with the draft",
        (long long)o->counts.accepted, (long long)o->counts.drafted, 100 * share(o->counts.accepted, o->counts.drafted),
        share(o->counts.tokens, o->counts.passes), o->seconds_alone,
        o->seconds > 0 ? o->seconds_alone / o->seconds : 0);
}

/* the next token of either way to draw */
static int32_t next_token(mhk_session *session, mhk_speculation *x, const mhk_sampling *how) {
  return x ? mhk_speculate(x, how) : mhk_sample(session, how);
}

/* text as it came: shown, or kept for JSON */
static int show(const settings *s, const char *text, cli_content *out) {
  if (s->json) return cli_add(out, text, strlen(text));
  fputs(text, stdout);
  fflush(stdout);
  return CLI_GO;
}

/* Continues the prompt: to standard output as it comes, or into out for JSON. */
static int go_on(mhk_context *ctx, settings *s, const char *prompt, cli_content *out) {
  static const char *const reasons[] = {"failure", "end of text", "stop token", "stop text"};
  mhk_model *m = cli_load(ctx, s->model), *student = s->draft ? cli_load(ctx, s->draft) : NULL;
  mhk_tokenizer *k = mhk_model_tokenizer(m);
  mhk_session_desc desc;
  mhk_session *session;
  mhk_speculation *x = NULL;
  outcome o;
  double start;
  int i;
  if (!m || (s->draft && !student)) return cli_context_error(ctx);
  if (!k) return cli_no_tokenizer(m, s->model);
  if (stop_at_turn(s, k) != CLI_GO) return CLI_FAILED;
  memset(&o, 0, sizeof o);
  o.reason = "tokens";
  memset(&desc, 0, sizeof desc);
  desc.capacity = mhk_encode_prompt(k, prompt, s->prompt_bytes, NULL, 0) + s->tokens + 2;
  desc.no_start = s->no_start || s->chat;
  desc.recent = s->sampling.penalty_tokens > 256 ? s->sampling.penalty_tokens : 256;
  for (i = 0; i < s->stops.n; i++)
    if (strlen(s->stops.path[i]) > desc.stop_bytes) desc.stop_bytes = strlen(s->stops.path[i]);
  session = mhk_session_create(m, &desc);
  if (student) {
    mhk_speculation_desc d;
    d.target = session;
    d.tokens = s->draft_tokens;
    mhk_model_set_tokenizer(student, k); /* the text is the same for both, even if the student has a tokenizer */
    d.draft = mhk_session_create(student, &desc);
    x = mhk_speculation_create(&d);
    mhk_feed_bytes(d.draft, prompt, s->prompt_bytes);
  }
  if (!s->json && !s->chat) fwrite(prompt, 1, s->prompt_bytes, stdout);
  mhk_feed_bytes(session, prompt, s->prompt_bytes);
  start = cli_clock();
  while (o.tokens < s->tokens) {
    const int32_t token = next_token(session, x, &s->sampling);
    if (show(s, mhk_text_out(session), out) != CLI_GO) return CLI_FAILED;
    if (token < 0) {
      o.reason = s->chat && mhk_stopped(session) == MHK_STOP_TOKEN && s->stop_numbers.n == 0
                     ? "end of turn"
                     : reasons[mhk_stopped(session)];
      break;
    }
    o.tokens++;
    if (cli_stopped()) {
      o.reason = "interrupt";
      break;
    }
  }
  o.seconds = cli_clock() - start;
  if (mhk_failed(ctx)) return cli_context_error(ctx);
  if (show(s, mhk_text_rest(session), out) != CLI_GO) return CLI_FAILED;
  if (!s->json) fputc('\n', stdout);
  if (x && (s->verbose || s->json)) {
    mhk_index n;
    o.counts = mhk_speculation_progress(x);
    mhk_speculation_finish(x);
    mhk_session_reset(session, MHK_ALL);
    mhk_feed_bytes(session, prompt, s->prompt_bytes);
    start = cli_clock();
    for (n = 0; n < o.tokens && !cli_stopped(); n++)
      if (mhk_sample(session, &s->sampling) < 0) break;
    o.seconds_alone = n > 0 ? (cli_clock() - start) / (double)n * (double)o.tokens : 0;
    if (mhk_failed(ctx)) return cli_context_error(ctx);
  }
  if (s->verbose) print_speed(s, &o);
  if (s->json) print_json(s, prompt, out, &o);
  return CLI_OK;
}

static int generate(mhk_context *ctx, void *user) {
  settings *s = (settings *)user;
  cli_content input, talk, out;
  int code;
  memset(&talk, 0, sizeof talk);
  memset(&input, 0, sizeof input);
  memset(&out, 0, sizeof out);
  s->prompt_bytes = strlen(s->prompt);
  code = strcmp(s->prompt, "-") == 0 ? read_prompt(s, &input) : CLI_GO;
  if (code == CLI_GO) code = wrap_prompt(s, &talk);
  cli_catch_signals();
  if (code == CLI_GO) code = go_on(ctx, s, s->prompt, &out);
  free(input.text);
  free(talk.text);
  free(out.text);
  return code;
}

const cli_command command_generate = {
    .name = "generate",
    .summary = "continue a prompt",
    .synopsis = "--model PATH [--prompt TEXT] [options]",
    .about = "Continues a prompt with a teacher, a student or a hybrid.",
    .example = "mohawk generate --model run1/student --prompt \"The little rabbit\" --tokens 100",
    CLI_OPTIONS(options),
    CLI_SETTINGS(defaults),
    .check = check,
    .body = generate,
};
