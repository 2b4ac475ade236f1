/* ablate.h: a table of experiments, between ablate.c, which makes it, experiments.c, which runs it,
   and findings.c, which says what came out. */
#ifndef MOHAWK_ABLATE_H
#define MOHAWK_ABLATE_H

#include "cli.h"
#include "process.h"

enum { ABLATE_MOST = 64, ABLATE_SEEDS = 16, ABLATE_NAME = 48 };

/* what one evaluation found */
typedef struct ablate_result {
  int there;
  double kl, cross_entropy, agreement;
} ablate_result;

/* one row of the table */
typedef struct ablate_row {
  char name[ABLATE_NAME];
  char *words[128]; /* its own options of mohawk distill */
  int n_words;
  char *memory; /* of the words */
  double tokens[3];
} ablate_row;

enum { JOB_WAITS, JOB_RUNS, JOB_DONE, JOB_FAILED };

/* one row with one seed: a run of mohawk distill in a folder of its own */
typedef struct ablate_job {
  int row, seed; /* places in the table */
  char folder[1024];
  void *settings; /* of mohawk distill */
  char *plan;     /* its settings file */
  int leader, stage; /* the job that has the same stages up to this one, -1: none */
  int leads;      /* others wait for its stages */
  int state, tries;
  process p;
  double done;    /* tokens trained */
  ablate_result after[4]; /* each stage */
} ablate_job;

typedef struct ablate_table {
  const char *out, *title, *teacher;
  int preset; /* -1: the user's own */
  ablate_row *rows;
  int n_rows;
  double seeds[ABLATE_SEEDS];
  int n_seeds;
  ablate_job *jobs; /* row by row, in it seed by seed */
  int n_jobs;
  int side_by_side, threads, fresh;
  double every;
} ablate_table;

/* experiments.c: runs what is not done yet, side by side. CLI_GO, or CLI_FAILED after a message or
   Ctrl-C. */
int ablate_run(mhk_context *ctx, ablate_table *t);

/* findings.c: the table on stdout, out/ablation.svg and out/ablation.json, or that on stdout */
int ablate_report(const ablate_table *t, int json);

/* the last stage that a row trains: 1 to 3 */
int ablate_last(const ablate_row *r);

#endif
