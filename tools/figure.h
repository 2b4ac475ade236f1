/* figure.h: the figures of a report, as <svg> elements of a page that has classes for their colors:
   k0, k1, ... of runs, soft and line of what is beside them. */
#ifndef MOHAWK_FIGURE_H
#define MOHAWK_FIGURE_H

#include "cli.h"

/* marks say what a run is without color: square, circle, diamond, triangle */
typedef struct figure_line {
  const char *name;
  int color, mark; /* color: k0, ... */
  const double *x, *y, *error; /* error: one standard error of y; NULL: none */
  int n;
} figure_line;

/* for a page, and one on a telephone; a file of its own */
typedef enum figure_form { FIGURE_WIDE, FIGURE_NARROW, FIGURE_FILE } figure_form;

/* What each stage bought: KL against tokens, both of the evaluations. bounds: where the stages end;
   0 at its place: there is none. colors, marks: style of a file of its own. */
void figure_stages(FILE *f, const figure_line *lines, int n, const double bounds[3], figure_form form,
                   const char *colors, const char *marks);

typedef struct figure_chart {
  const char *title, *y_label;
  const figure_line *lines; /* drawn in this order */
  int n;
  const double *faint_y; /* behind a single line: n values at its x, NULL: none */
  const double *rate; /* learning rates at the first line's x, NULL: none */
  double level; /* a dashed line across, NaN: none */
  const char *level_name;
  int level_left; /* its name stands at the left */
  const double *low, *high; /* a band around the first line, NULL: none */
} figure_chart;
/* Logarithmic in y, with all points in sight. */
void figure_curve(FILE *f, const figure_chart *c);

/* Rows of values, each a dot, with mean and spread, on a logarithmic scale. values: (n,each), NaN:
   none. mark: of each row. */
void figure_dots(FILE *f, const char *title, const char *x_label, int n, int each, const double *values,
                 const char *const *names, const int *colors);

void figure_mark(FILE *f, int mark, double x, double y, double size);

#endif
