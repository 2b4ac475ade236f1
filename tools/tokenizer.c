/* mohawk tokenizer: text in, tokenizer.json out. */
#include "bpe.h"
#include "foreign.h"
#include "run.h"
#include <stdlib.h>
#include <string.h>

typedef struct settings {
  cli_files text;
  const char *out;
  mhk_index least;
  int vocab_size, encoding, json;
} settings;

static const settings defaults = {.out = "tokenizer.json", .vocab_size = 2048, .least = 2};

static const cli_option options[] = {
    {"text", "FILE...", CLI_FILES, CLI_AT(text), 1, 0,
     "text to train on; <|endoftext|> separates documents and becomes token 0 (required)"},
    CLI_ENCODING(CLI_AT(encoding)),
    {"vocab-size", "N", CLI_INT, CLI_AT(vocab_size), BPE_LEAST, 1 << 24,
     "number of tokens (default 2048): <|endoftext|>, 256 bytes, and the rest merges of two tokens; fewer when the "
     "text has no more pairs"},
    {"min-frequency", "N", CLI_COUNT, CLI_AT(least), 1, 1e15,
     "how many times a pair must occur in the text to become a token (default 2)"},
    {"out", "PATH", CLI_TEXT, CLI_AT(out), 0, 0,
     "file to write, or a folder to write tokenizer.json into (default tokenizer.json)"},
    CLI_JSON(CLI_AT(json)),
};

static int print_result(const settings *s, const char *path, int size, mhk_index tokens, double bytes) {
  cli_json j;
  cli_buffer count;
  if (s->json) {
    json_start(&j, stdout, 0);
    json_open(&j, NULL, '{');
    json_text(&j, "path", path);
    json_count(&j, "tokens", size);
    json_count(&j, "text_bytes", bytes);
    json_count(&j, "text_tokens", (double)tokens);
    json_close(&j);
  } else {
    printf("saved     %s: %d tokens; the text has %s of them, %.2f bytes each\n", path, size,
           cli_count((double)tokens, &count), bytes / (double)tokens);
  }
  return CLI_OK;
}

/* Trains on texts, checks with the result that they are text, and writes it. */
static int make(mhk_context *ctx, const settings *s, const run_texts *t, const char *path) {
  const bpe_desc desc = {t->n, t->text, t->length, s->vocab_size, s->least};
  const mhk_corpus_desc source = {.n_files = t->n, .files = s->text.path};
  size_t length;
  int size, i, code = CLI_FAILED;
  double bytes = 0;
  char *json = bpe_train(ctx, &desc, &length, &size);
  mhk_tokenizer *k = json ? mhk_tokenizer_load_memory(ctx, json, length) : NULL;
  mhk_corpus *text = k ? run_encode_texts(ctx, k, t, &source) : NULL;
  for (i = 0; i < t->n; i++) bytes += (double)t->length[i];
  if (json && !k) cli_context_error(ctx);
  if (text && size < s->vocab_size)
    cli_warning("the text has pairs for only %d tokens, not %d: more text, or --min-frequency 1, gives more", size,
                s->vocab_size);
  if (text)
    code = mhk_file_write_bytes(ctx, path, json, length) == MHK_OK
               ? print_result(s, path, size, mhk_corpus_tokens(text, NULL), bytes)
               : cli_context_error(ctx);
  free(json);
  return code;
}

static int tokenizer(mhk_context *ctx, void *user) {
  const settings *s = (const settings *)user;
  char path[1024];
  run_texts t;
  int code = CLI_FAILED;
  cli_quiet(s->json);
  cli_catch_signals();
  if (!foreign_is_folder(s->out))
    snprintf(path, sizeof path, "%s", s->out);
  else if (cli_join(path, sizeof path, s->out, "tokenizer.json") != CLI_GO)
    return CLI_FAILED;
  if (strlen(s->out) >= sizeof path) return cli_error("the path %s is too long", s->out);
  if (run_read_texts(&t, s->text.n, s->text.path, s->encoding, 1) == CLI_GO) code = make(ctx, s, &t, path);
  run_free_texts(&t);
  return code;
}

const cli_command command_tokenizer = {
    .name = "tokenizer",
    .summary = "train a tokenizer on text",
    .synopsis = "--text FILE... [--vocab-size N] [--out PATH]",
    .about = "Trains a byte-level BPE tokenizer on text and writes it as tokenizer.json, which Hugging Face's "
             "tokenizers reads too. Words are GPT-2's. The pair of tokens that occurs most often becomes the next "
             "token; of equally frequent pairs, the one with the lower ids. The same text always gives the same "
             "tokenizer.",
    .example = "mohawk tokenizer --text corpus.txt --vocab-size 4096 --out tokenizer.json",
    CLI_OPTIONS(options),
    CLI_SETTINGS(defaults),
    .body = tokenizer,
};
