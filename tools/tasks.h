/* tasks.h: multiple-choice and completion tasks, scored by log-likelihood: `mohawk eval --task`. */
#ifndef MOHAWK_TASKS_H
#define MOHAWK_TASKS_H

#include "cli.h"

typedef struct task_desc {
  const cli_files *models, *tasks; /* paths of models, and of JSONL files, - for standard input */
  const char *delimiter;           /* between context and continuation, with \n, \t and \\; NULL: see the help */
  const char *rows;                /* file for the log-likelihoods of all rows as JSONL; NULL: none */
  mhk_index limit;                 /* rows of each file, from its start; 0: all */
  mhk_index length;                /* tokens that a model sees at most; 0: its own limit */
  mhk_index batch;                 /* sequences that are scored together */
  int start;                       /* put the start token before each context */
  int json;
} task_desc;

/* Scores all models on all tasks and prints the table, or one JSON object. Returns an exit code. */
int task_run(mhk_context *ctx, const task_desc *d);

#endif
