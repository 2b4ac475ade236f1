/* report.h: what run folders hold, between report.c, which reads them, and page.c, which writes the
   report. */
#ifndef MOHAWK_REPORT_H
#define MOHAWK_REPORT_H

#include "foreign.h"
#include "run.h"
#include "watch.h"

enum { REPORT_RUNS = 8, REPORT_MEASURES = 32, REPORT_ROWS = 64, REPORT_SEEDS = 16 };

/* what results.json says of a student at one moment */
typedef struct report_measure {
  int stage;
  double tokens; /* trained on in all */
  double cross_entropy, cross_entropy_error, kl, kl_error, agreement, agreement_error, state_bytes, predictions;
  double kl_quarter[4];
  char *sample; /* malloc'ed, or NULL */
} report_measure;

typedef struct report_model {
  int there;
  char mixers[256];
  double parameters, layers, width, bytes[3]; /* bytes: memory after 256, 2048 and 16384 tokens */
} report_model;

/* decides color and mark, the same in all pictures */
typedef enum report_kind { REPORT_STAGES, REPORT_ALONE, REPORT_KEPT, REPORT_WINDOW } report_kind;

typedef struct report_run {
  const char *folder;
  char name[64];
  report_kind kind;
  int finished, has_teacher, trains; /* trains: without a teacher, mohawk train */
  cli_content record_text, results_text;
  foreign_json record, results; /* of run.json and results.json; at NULL: none */
  double tokens[3];
  run_point *points;
  int n_points;
  report_measure measures[REPORT_MEASURES], teacher;
  int n_measures;
  report_model teacher_model, student_model;
  char *prompt;
  watch_head *heads;
  int n_heads;
  watch_probes probes;
  double *relative[WATCH_MOMENTS]; /* (layers,heads) of the probes, NULL: none */
} report_run;

/* ablation.json */
typedef struct report_table {
  const char *folder;
  cli_content text;
  foreign_json root;
  int n, n_seeds;
  char name[REPORT_ROWS][64];
  double kl[REPORT_ROWS][REPORT_SEEDS], tokens[REPORT_ROWS][3];
  double seeds[REPORT_SEEDS];
} report_table;

/* a run that goes on */
typedef struct report_live {
  int stage;
  double share, seconds_left; /* of the stage; seconds_left negative: unknown */
} report_live;

/* what the report says beyond the folders; all may be zero */
typedef struct report_about {
  const char *const *names; /* of the runs */
  const char *note; /* a sentence under the first one */
  const char *svg; /* a file for the figure of what each stage bought; NULL: none */
  const report_live *live;
} report_about;

typedef struct report {
  report_run run[REPORT_RUNS];
  int n;
  report_table table[REPORT_RUNS];
  int n_tables;
  report_about about;
} report;

/* Reads the folders and writes the report. CLI_GO, or CLI_FAILED after a message. */
int report_write(mhk_context *ctx, const char *path, int n, const char *const *folders, const report_about *about);

void page_write(FILE *f, const report *r); /* page.c */
/* The figure of what each stage bought, as a file of its own; 0: nothing was measured. */
int page_figure(FILE *f, const report *r);
double report_before(const report_run *r, int stage); /* tokens of the stages before this one */
/* A string member, malloc'ed; NULL: there is none. */
char *report_string(foreign_json object, const char *name);

#endif
