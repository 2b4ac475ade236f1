/* run.h: distillation runs, their text and their evaluation, as distill, eval and demo use them. */
#ifndef MOHAWK_RUN_H
#define MOHAWK_RUN_H

#include "cli.h"

/* Text that the teacher writes itself. It is kept in the file path and found there by the next run
   with the same teacher and seed; what was written when Ctrl-C came is kept too. NULL after an
   error that has been told, or after Ctrl-C. */
mhk_corpus *run_sampled_text(mhk_context *ctx, mhk_model *teacher, const char *path, mhk_index tokens, uint64_t seed);

typedef enum run_result { RUN_DONE, RUN_STOPPED, RUN_FAILED } run_result;

typedef struct run {
  mhk_distill_desc desc;
  cli_json *json; /* where progress goes as JSON lines; NULL: none */
  /* called when the trainer is there, which may go on from a checkpoint, and before its first
     update; the same for what it returns */
  run_result (*started)(void *user, const mhk_progress_info *info, mhk_model *student);
  /* called when a stage has ended, whose checkpoint is the last one; anything but RUN_DONE ends the
     run */
  run_result (*after_stage)(void *user, int stage, mhk_model *student);
  /* called after each update; the same for what it returns; NULL: not wanted */
  run_result (*after_update)(void *user, const mhk_progress_info *info, mhk_model *student);
  void *user;
  mhk_corpus *watched; /* its first tokens are those whose matrices are kept; NULL: those of the training text */
} run;

/* Trains to the end, to Ctrl-C (with a checkpoint written) or to an error that has been told.
   desc.out also receives log.csv, one line an update, and with a teacher what watch.h says.
   *trainer holds the student afterwards; it may be NULL after a failure. */
run_result run_distill(mhk_context *ctx, const run *r, mhk_trainer **trainer);

/* Says what the run needs; refuses, with the remedy, when the machine has less and force is 0.
   CLI_GO, or CLI_FAILED after a message. */
int run_check_memory(mhk_context *ctx, const mhk_distill_desc *desc, int force);
/* One change after the other that makes a run smaller, those first that change the result least;
   appends the options of those that help to `options`. Returns what the run then needs. */
double run_smaller(mhk_distill_desc d, double have, char *options, size_t room);
/* After Ctrl-C: how the run goes on; json NULL: none. */
void run_say_stopped(const char *out, cli_json *json);
/* Saves the result as the folder out/name, and says so. dtype: 0 f32, 1 f16, 2 bf16. Returns an
   exit code. */
int run_save(mhk_context *ctx, mhk_model *m, const char *out, const char *name, int dtype, cli_json *json);

/* One line of desc.out/log.csv. */
typedef struct run_point {
  int stage;
  double step, tokens, loss, relative, lr, grad_norm, rate;
} run_point;
/* The lines of a log up to update step of stage (stage 4: all of them), malloc'ed; *n receives how
   many. NULL when there are none. */
run_point *run_read_log(const char *folder, int stage, double step, int *n);

/* mhk_evaluate of what desc says, with a progress line. Returns CLI_GO, or CLI_FAILED after a
   message (none after Ctrl-C). */
int run_evaluate(mhk_context *ctx, mhk_model *m, const mhk_evaluate_desc *desc, const char *title,
                 mhk_evaluation *result);
/* a and b as one evaluation over the text of both */
mhk_evaluation run_join(const mhk_evaluation *a, const mhk_evaluation *b);
/* " +- 0.018" with that many digits; where one window has no standard error, blanks, none of width
   0 */
const char *run_error(double error, int width, int digits, cli_buffer *b);
void run_print_header(FILE *out);
void run_print_row(FILE *out, const char *name, const mhk_evaluation *e, int with_teacher);
void run_json_evaluation(cli_json *j, const mhk_evaluation *e, int with_teacher);
/* An evaluation of a student after these tokens of all stages, as an object of results.json.
   sample: text that it wrote, or NULL. */
void run_json_milestone(cli_json *j, int stage, double tokens, const mhk_evaluation *e, int with_teacher,
                        const char *sample);
/* What teacher and student are, as a member of results.json. */
void run_json_models(cli_json *j, const mhk_config *teacher, const mhk_config *student);
/* The prompt continued by this many tokens, with one seed, malloc'ed; NULL after a message. */
char *run_speak(mhk_context *ctx, mhk_model *m, const char *prompt, int tokens);

/* The contents of text files, pipes or standard input, in UTF-8. */
typedef struct run_texts {
  cli_content read[CLI_MAX_LIST];
  const char *text[CLI_MAX_LIST];
  size_t length[CLI_MAX_LIST];
  int n;
} run_texts;
/* encoding: CLI_UTF8 and so on. all: also of plain files, which mhk_corpus_load() could map itself.
   Returns CLI_GO, or CLI_FAILED after a message; free in either case. */
int run_read_texts(run_texts *t, int n, const char *const *files, int encoding, int all);
void run_free_texts(run_texts *t);
/* Such contents with a tokenizer; desc names the files. NULL after a message. */
mhk_corpus *run_encode_texts(mhk_context *ctx, mhk_tokenizer *k, const run_texts *t, const mhk_corpus_desc *desc);
/* The tokens of a file that run_sampled_text() wrote. NULL after a message. */
mhk_corpus *run_token_file(mhk_context *ctx, mhk_model *model, const char *path);
/* The text in files, pipes or standard input with a model's tokenizer, or with other_model's when
   it has none; one .safetensors file: its tokens. encoding: CLI_UTF8 and so on. NULL after a
   message. */
mhk_corpus *run_load_text(mhk_context *ctx, mhk_model *model, mhk_model *other_model, const mhk_corpus_desc *desc,
                        int encoding);
/* The text in training files: used as often as `repeat` says, documents split after max_document
   bytes, in the order of the seed; each has one value for all files or one for each. NULL after a
   message. */
mhk_corpus *run_load_files(mhk_context *ctx, mhk_model *model, const cli_files *text, const cli_numbers *repeat,
                           const cli_numbers *max_document, int seed, int encoding);
/* The text in n files, else examples/story.txt if it is there, else this many tokens that the model
   writes itself. NULL after a message. */
mhk_corpus *run_some_text(mhk_context *ctx, mhk_model *model, int n, const char *const *files, int encoding,
                          mhk_index tokens);
const char *run_mixers(const mhk_config *c, char *text,
                       size_t capacity); /* "Phi-Mamba with attention in layers 2 and 4" */

#endif
