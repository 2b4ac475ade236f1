/* record.h: what a run was made of, beside what it made: run.json in its folder. */
#ifndef MOHAWK_RECORD_H
#define MOHAWK_RECORD_H

#include "cli.h"

/* A file that decides a run's result. A folder stands for the files in it that a model is read
   from. */
typedef struct record_input {
  const char *option; /* that names it or its folder */
  char path[1024];
  double bytes; /* negative: a pipe, which cannot be read again */
  uint64_t hash; /* of all of it */
} record_input;
typedef struct record_inputs {
  record_input *list; /* record_inputs_free() */
  int n;
} record_inputs; /* zero to start */
/* Adds a file or a model's folder, hashed whole at the speed of the disk. CLI_GO, or CLI_FAILED
   after a message. */
int record_add(record_inputs *in, mhk_context *ctx, const char *option, const char *path);
void record_inputs_free(record_inputs *in);

/* Writes folder/run.json: command, versions, machine, inputs, settings without those in `not`. */
int record_write(const char *folder, mhk_context *ctx, const cli_command *c, const void *settings,
                 const char *const *not, const record_inputs *in);

/* From now on a run is expected to have the inputs that this run.json names: record_check() says
   which differ. anyway: that is a warning. */
void record_expect(const char *run_json, int anyway);
int record_check(const record_inputs *in, const mhk_context *ctx); /* CLI_GO, or CLI_FAILED after a message */

/* the program that built this one, as "gcc 12.2.0" */
const char *record_compiler(void);

#endif
