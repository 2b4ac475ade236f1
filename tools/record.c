/* record.c: see record.h */
#include "record.h"
#include "settings.h"
#include <dirent.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- inputs */

static int add_file(record_inputs *in, mhk_context *ctx, const char *option, const char *path) {
  record_input *larger = (record_input *)realloc(in->list, ((size_t)in->n + 1) * sizeof *larger), *x;
  foreign_bytes bytes;
  if (!larger) return cli_error("out of memory");
  in->list = larger;
  x = &in->list[in->n];
  memset(x, 0, sizeof *x);
  x->option = option;
  if (strlen(path) >= sizeof x->path) return cli_error("the path %.80s... is too long", path);
  strcpy(x->path, path);
  x->bytes = -1;
  if (!cli_is_stream(path)) {
    if (!foreign_map(ctx, path, &bytes)) return cli_context_error(ctx);
    x->bytes = (double)bytes.size;
    x->hash = mhk_xxh64(bytes.data, bytes.size);
    foreign_unmap(&bytes);
  }
  in->n++;
  return CLI_GO;
}

/* whether a model is read from a file of this name in a folder */
static int is_part(const char *name) {
  static const char *const whole[] = {"config.json",    "tokenizer.json", "tokenizer_config.json", "vocab.json",
                                      "merges.txt",     "encoder.json",   "vocab.bpe",             "added_tokens.json"};
  int i;
  for (i = 0; i < CLI_COUNT_OF(whole); i++)
    if (strcmp(name, whole[i]) == 0) return 1;
  return (strncmp(name, "model", 5) == 0 || strncmp(name, "pytorch_model", 13) == 0) &&
         (cli_ends_with(name, ".safetensors") || cli_ends_with(name, ".bin") || cli_ends_with(name, ".index.json"));
}

static int by_name(const void *a, const void *b) { return strcmp((const char *)a, (const char *)b); }

int record_add(record_inputs *in, mhk_context *ctx, const char *option, const char *path) {
  char (*names)[256], file[1024];
  struct dirent *entry;
  DIR *folder;
  int i, n = 0, code = CLI_GO;
  if (!foreign_is_folder(path)) return add_file(in, ctx, option, path);
  names = (char(*)[256])calloc(1024, sizeof *names);
  folder = names ? opendir(path) : NULL;
  if (!folder) {
    free(names);
    return cli_error("cannot list the folder %s", path);
  }
  while ((entry = readdir(folder)) != NULL && n < 1024)
    if (is_part(entry->d_name) && strlen(entry->d_name) < sizeof *names) strcpy(names[n++], entry->d_name);
  closedir(folder);
  qsort(names, (size_t)n, sizeof *names, by_name); /* folders list their files in any order */
  for (i = 0; i < n && code == CLI_GO; i++) {
    code = cli_join(file, sizeof file, path, names[i]);
    if (code == CLI_GO) code = add_file(in, ctx, option, file);
  }
  free(names);
  return code;
}

void record_inputs_free(record_inputs *in) {
  free(in->list);
  memset(in, 0, sizeof *in);
}

/* ---------------------------------------------------------------- run.json */

const char *record_compiler(void) {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "another";
#endif
}

static void hash_text(uint64_t hash, char text[17]) {
  int i;
  for (i = 0; i < 16; i++) text[i] = "0123456789abcdef"[hash >> (60 - 4 * i) & 15];
  text[16] = 0;
}

int record_write(const char *folder, mhk_context *ctx, const cli_command *c, const void *settings,
                 const char *const *not, const record_inputs *in) {
  char path[1024], hash[17];
  cli_output o;
  cli_json j;
  int i;
  if (cli_join(path, sizeof path, folder, "run.json") != CLI_GO || cli_output_open(&o, path) != CLI_GO)
    return CLI_FAILED;
  json_start(&j, o.file, 1);
  json_open(&j, NULL, '{');
  json_text(&j, "command", c->name);
  json_text(&j, "mohawk", mhk_version());
  json_text(&j, "compiler", record_compiler());
  json_text(&j, "instruction_set", mhk_isa_name(ctx));
  json_text(&j, "arithmetic", sizeof(mhk_real) == 8 ? "float64" : "float32");
  json_count(&j, "threads", mhk_threads(ctx));
  json_text(&j, "hash", "XXH64 of the whole file");
  json_open(&j, "inputs", '[');
  for (i = 0; i < in->n; i++) {
    json_open(&j, NULL, '{');
    json_text(&j, "option", in->list[i].option);
    json_text(&j, "path", in->list[i].path);
    if (in->list[i].bytes >= 0) {
      hash_text(in->list[i].hash, hash);
      json_count(&j, "bytes", in->list[i].bytes);
      json_text(&j, "xxh64", hash);
    }
    json_close(&j);
  }
  json_close(&j);
  json_open(&j, "settings", '{');
  settings_json(&j, c, settings, not);
  json_close(&j);
  json_close(&j);
  return cli_output_close(&o);
}

/* ---------------------------------------------------------------- the same again */

static struct {
  const char *path; /* NULL: nothing is expected */
  int anyway;
} expected;

void record_expect(const char *run_json, int anyway) {
  expected.path = run_json;
  expected.anyway = anyway;
}

/* a string member's text, "" where there is none */
static const char *member(foreign_json object, const char *name, char *text, size_t room) {
  foreign_json value;
  text[0] = 0;
  if (foreign_json_find(object, name, &value) && (size_t)(value.end - value.at) < room) foreign_json_text(value, text);
  return text;
}

/* results may differ in their last bits where the program or its kernels are others */
static void note_program(foreign_json run, const mhk_context *ctx) {
  const char *const names[3] = {"mohawk", "compiler", "instruction_set"},
                    *const now[3] = {mhk_version(), record_compiler(), mhk_isa_name(ctx)};
  char then[256];
  int i;
  for (i = 0; i < 3; i++)
    if (strcmp(member(run, names[i], then, sizeof then), now[i]) != 0)
      cli_warning("%s was made with %s %s, this is %s: results may differ in their last bits%s", expected.path,
                  i == 2 ? "the instruction set" : names[i], then, now[i],
                  i == 2 ? " (MHK_ISA chooses the instruction set)" : "");
}

static int say_different(const char *path, const char *how) {
  if (expected.anyway) {
    cli_warning("%s %s", path, how);
    return CLI_GO;
  }
  return cli_error("%s %s, so this would be another run: restore it, or give --anyway", path, how);
}

int record_check(const record_inputs *in, const mhk_context *ctx) {
  foreign_json run, list, value;
  char was[1024], hash[17];
  int i = 0, code = CLI_GO;
  if (!expected.path) return CLI_GO;
  if (settings_json_file(expected.path, &run) != CLI_GO) return CLI_FAILED;
  if (!foreign_json_find(run, "inputs", &list) || *list.at != '[')
    return cli_error("%s names no inputs", expected.path);
  note_program(run, ctx);
  for (list.at++; code == CLI_GO && foreign_json_value(&list, &value); i++) {
    char then[64];
    while (list.at < list.end && strchr(", \n", *list.at)) list.at++;
    member(value, "path", was, sizeof was);
    member(value, "xxh64", then, sizeof then);
    if (i >= in->n) {
      code = say_different(was, "was an input and is none now");
      continue;
    }
    hash_text(in->list[i].hash, hash);
    if (!then[0]) code = say_different(was, "was a pipe, which cannot be read again");
    else if (strcmp(then, hash) != 0) code = say_different(in->list[i].path, "is not what it was (its XXH64 differs)");
  }
  if (code == CLI_GO && i < in->n) code = say_different(in->list[i].path, "is an input that was not there");
  return code;
}
