/* demo.h: what the demo found out, between demo.c, which does it, and report.c, which writes it
   down. */
#ifndef MOHAWK_DEMO_H
#define MOHAWK_DEMO_H

#include "picture.h"
#include "run.h"

enum { DEMO_MODELS = 8, DEMO_RUNS = 4, DEMO_PANELS = 5 };

typedef struct demo_entry {
  const char *name;    /* as in results.json */
  const char *meaning; /* for the report */
  int run, stage;      /* where it comes from; run -1: no training */
} demo_entry;

typedef struct demo_model {
  demo_entry is;
  double tokens; /* trained on */
  mhk_evaluation all, samples, story;
  char *text; /* the prompt continued, malloc'ed */
} demo_model;

typedef struct demo_training {
  const char *name, *folder;
  const mhk_config *student;
  run_point *points;
  int n_points;
} demo_training;

typedef struct demo_results {
  const char *out, *teacher_path, *prompt;
  const mhk_config *teacher;
  double text_tokens, story_tokens, sample_tokens, budget[3], seconds; /* seconds: 0 when the run was done in pieces */
  int short_run, length, hybrid_layer;
  demo_model models[DEMO_MODELS];
  demo_training runs[DEMO_RUNS];
  /* matrices of layer and head over T tokens: teacher, student untrained, after stage 1, after
     stage 3, student with a window */
  int layer, head;
  mhk_index T;
  picture_panel panels[DEMO_PANELS];
  double *distance; /* (DEMO_PANELS, layers, heads): relative error of each panel's model */
} demo_results;

int report_json(const demo_results *r, const char *path);
int report_html(const demo_results *r, const char *path);

#endif
