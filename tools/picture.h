/* picture.h: mixing matrices and curves as PNG and SVG. */
#ifndef MOHAWK_PICTURE_H
#define MOHAWK_PICTURE_H

#include "cli.h"

/* The mixing matrices of one layer over tokens (T), heads one after the other (H,T,T), malloc'ed. A
   student's layer sees the teacher's residual stream, as in stage 1; for the teacher's own matrices
   m is the teacher. NULL after a message. */
float *picture_matrices(mhk_context *ctx, mhk_model *m, mhk_model *teacher, int layer, const int32_t *tokens,
                        mhk_index T);
/* || a - b ||_F / || b ||_F of two (T,T) matrices */
double picture_distance(const float *a, const float *b, mhk_index T);

typedef struct picture_panel {
  const char *title;
  const float *matrix; /* (T,T), zero above the diagonal */
} picture_panel;

/* One panel as an <svg> element with axes, to stand in a page (its lines take the color of the
   text around it). */
void picture_panel_svg(FILE *out, const picture_panel *panel, mhk_index T);
void picture_legend_svg(FILE *out);
/* All panels beside each other with the legend, as a file of its own, readable on light and
   dark. */
void picture_svg(FILE *out, const picture_panel *panels, int n, mhk_index T);
/* The panels without any text, each entry scale pixels wide. Returns 0 when memory does not
   suffice. */
int picture_png(FILE *out, const picture_panel *panels, int n, mhk_index T, int scale);

/* An entry's color: one of 255, 127 for 0. */
int picture_index(double value);
double picture_value(int index);
void picture_color(int index, char text[8]); /* "#rrggbb" */

typedef struct picture_curve {
  const char *name;
  const double *x, *y;
  int n;
} picture_curve;

typedef struct picture_chart {
  const char *title, *x_label;
  const picture_curve *curves;
  int n;
} picture_chart;
/* Charts beside each other as a file of its own, readable on light and dark. x is above 0 and drawn
   to a logarithmic scale, with marks at powers of four: 64, 256, 1k, ... */
void picture_charts_svg(FILE *out, const picture_chart *charts, int n);

/* Charts of what more threads bring, three in a row, as a file of its own: x counts threads, y is a
   speed, both above 0. Their scales are logarithmic and the same in all charts, with a line for x
   times the speed 1 and the curves' names at their ends. below: a line under the title. */
void picture_threads_svg(FILE *out, const char *title, const char *below, const picture_chart *charts, int n);

/* One chart: mean and standard error of each curve at each x, both (curves,n). */
typedef struct picture_whiskers {
  const char *title;
  const double *mean, *error;
} picture_whiskers;
/* Charts of the same curves, six at most, three charts in a row. x: powers of two, or between. The
   last curve is dashed, as a bound of the others. */
typedef struct picture_whisker_page {
  const char *title, *below, *x_label;
  const char *const *names;
  const double *x;
  const picture_whiskers *charts;
  int curves, n, n_charts;
} picture_whisker_page;
/* A file of its own, readable on light and dark. Both scales are logarithmic, y from 0.001 to 1;
   where a curve falls below, it ends at the edge. */
void picture_whiskers_svg(FILE *out, const picture_whisker_page *p);

/* What each of some things reached, once for each seed, as bars: the mean, with a line from the
   least to the most and a dot for each seed. */
typedef struct picture_bars {
  const char *title, *below; /* below: a line under the title */
  const char *const *names; /* n */
  const double *values;     /* (n,seeds); NaN: none */
  int n, seeds;
} picture_bars;
/* Charts below each other as a file of its own, readable on light and dark. */
void picture_bars_svg(FILE *out, const picture_bars *charts, int n);

/* What each head of a model loses without sight of the distance, as a map of layers and heads. */
typedef struct picture_heads {
  const char *title;
  int layers, heads;
  const double *kl, *layer_kl; /* (layers,heads), and of whole layers (layers) */
} picture_heads;
/* A file of its own, readable on light and dark. */
void picture_heads_svg(FILE *out, const picture_heads *p);

/* ---- what pictures are made of, for those elsewhere */
void picture_escape(FILE *out, const char *text); /* for XML and HTML */
void picture_start(FILE *out, int width, int height, const char *label); /* an <svg, whose > is still to come */
void picture_text(FILE *out, double x, double y, const char *anchor, const char *more, const char *text);
void picture_base64(FILE *out, const unsigned char *p, size_t n);
/* 250000 as "250 k", by thousands or by 1024 */
void picture_round(char *text, size_t capacity, double v, double thousand);

#endif
