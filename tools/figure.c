/* figure.c: see figure.h */
#include "figure.h"
#include "picture.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* where a figure's axes stand, and what they span; y is logarithmic */
typedef struct plot {
  double left, right, top, bottom, x0, x1, y0, y1;
} plot;

static double at_x(const plot *p, double x) { return p->left + (p->right - p->left) * (x - p->x0) / (p->x1 - p->x0); }
static double at_y(const plot *p, double y) {
  const double v = (log(y > 0 ? y : 1e-30) - log(p->y0)) / (log(p->y1) - log(p->y0));
  return p->bottom - (p->bottom - p->top) * fmin(fmax(v, 0), 1);
}

/* 1, 2 or 5 times a power of ten, about a fourth of the range */
static double step_of(double range) {
  const double power = pow(10, floor(log10(range / 4))), x = range / 4 / power;
  return power * (x < 1.5 ? 1 : x < 3.5 ? 2 : x < 7.5 ? 5 : 10);
}

void figure_mark(FILE *f, int mark, double x, double y, double size) {
  switch (mark) {
    case 0:
      fprintf(f, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"/>", x - size * 0.9, y - size * 0.9,
              size * 1.8, size * 1.8);
      break;
    case 1: fprintf(f, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%.1f\"/>", x, y, size); break;
    case 2:
      fprintf(f, "<path d=\"M%.1f %.1fl%.1f %.1fl%.1f %.1fl%.1f %.1fz\"/>", x, y - 1.3 * size, 1.1 * size, 1.3 * size,
              -1.1 * size, 1.3 * size, -1.1 * size, -1.3 * size);
      break;
    default:
      fprintf(f, "<path d=\"M%.1f %.1fl%.1f %.1fh%.1fz\"/>", x, y - 1.2 * size, 1.2 * size, 2.1 * size, -2.4 * size);
  }
}

/* widens a logarithmic range until it has marks to read it by */
static void widen(plot *p) {
  if (!(p->y0 > 0 && p->y1 >= p->y0)) p->y0 = 0.1, p->y1 = 1;
  p->y0 /= 1.12;
  p->y1 *= 1.12;
  while (p->y1 < 2.2 * p->y0) p->y0 /= 1.1, p->y1 *= 1.1;
}

static void grid_y(FILE *f, const plot *p) {
  static const double steps[3] = {1, 2, 5};
  const int many = log10(p->y1 / p->y0) > 3.2;
  char label[32];
  int i;
  for (i = 3 * (int)floor(log10(p->y0)); i <= 3 * (int)ceil(log10(p->y1)) + 2; i++) {
    const int digit = (i % 3 + 3) % 3;
    const double v = steps[digit] * pow(10, floor(i / 3.0)), y = at_y(p, v);
    if (v < p->y0 || v > p->y1 || (many && digit)) continue;
    fprintf(f, "<path class=\"line\" d=\"M%.1f %.1fH%.1f\"/>", p->left, y, p->right);
    snprintf(label, sizeof label, "%g", v);
    picture_text(f, p->left - 6, y + 4, "end", " class=\"soft\"", label);
  }
}

static void mark_x(FILE *f, const plot *p, double v, const char *anchor) {
  const double digits = v > 0 ? pow(10, 2 - floor(log10(v))) : 1; /* three of them */
  char label[32];
  picture_round(label, sizeof label, floor(v * digits + 0.5) / digits, 1000);
  fprintf(f, "<path class=\"axis\" d=\"M%.1f %.1fv4\"/>", at_x(p, v), p->bottom);
  picture_text(f, at_x(p, v), p->bottom + 17, anchor, " class=\"soft\"", label);
}

static void grid_x(FILE *f, const plot *p, const char *name) {
  const double step = step_of(p->x1 - p->x0);
  double v;
  fprintf(f, "<path class=\"axis\" d=\"M%.1f %.1fH%.1f\"/>", p->left, p->bottom, p->right);
  for (v = ceil(p->x0 / step) * step; v <= p->x1 * 1.0001; v += step)
    mark_x(f, p, v, at_x(p, v) > p->right - 12 ? "end" : "middle");
  picture_text(f, (p->left + p->right) / 2, p->bottom + 33, "middle", " class=\"soft\"", name);
}

static void whisker(FILE *f, const plot *p, double x, double y, double error) {
  if (!(error > 0)) return;
  fprintf(f, "<path class=\"whisker\" d=\"M%.1f %.1fV%.1f\"/>", at_x(p, x), at_y(p, y + 2 * error),
          at_y(p, fmax(y - 2 * error, p->y0)));
}

/* ---------------------------------------------------------------- what each stage bought */

typedef struct label {
  double y;
  int line;
} label;

static int by_y(const void *a, const void *b) {
  const double x = ((const label *)a)->y, y = ((const label *)b)->y;
  return (x > y) - (x < y);
}

/* bands of the stages, named as far as there is room */
static void bands(FILE *f, const plot *p, const double bounds[3], int wide) {
  static const char *const names[2][3] = {{"1 mix", "2 hidden states", "3 predictions"},
                                          {"1 mix tokens alike", "2 same hidden states", "3 same predictions"}};
  double from = 0;
  int i;
  for (i = 0; i < 3; i++) {
    const double a = at_x(p, from), b = at_x(p, bounds[i]);
    const char *name = names[wide][i];
    if (!(bounds[i] > from)) continue;
    fprintf(f, "<rect class=\"band%d\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"/>", i & 1, a, p->top, b - a,
            p->bottom - p->top);
    if (6.4 * (double)strlen(name) > b - a) name = names[0][i];
    if (6.4 * (double)strlen(name) > b - a) name = i == 0 ? "1" : i == 1 ? "2" : "3";
    picture_text(f, (a + b) / 2, p->top - 7, "middle", " class=\"soft\"", name);
    mark_x(f, p, bounds[i], !wide && b > p->right - 12 ? "end" : "middle");
    from = bounds[i];
  }
  mark_x(f, p, 0, "middle");
  fprintf(f, "<path class=\"axis\" d=\"M%.1f %.1fH%.1f\"/>", p->left, p->bottom, p->right);
}

static void stage_line(FILE *f, const plot *p, const figure_line *l) {
  int i;
  fprintf(f, "<g class=\"k%d\">", l->color);
  if (l->n > 1) {
    fprintf(f, "<path class=\"curve\"%s d=\"", l->mark == 1 ? " stroke-dasharray=\"5 4\"" : "");
    for (i = 0; i < l->n; i++) fprintf(f, "%c%.1f %.1f", i ? 'L' : 'M', at_x(p, l->x[i]), at_y(p, l->y[i]));
    fputs("\"/>", f);
  }
  for (i = 0; i < l->n; i++) {
    if (l->error) whisker(f, p, l->x[i], l->y[i], l->error[i]);
    figure_mark(f, l->mark, at_x(p, l->x[i]), at_y(p, l->y[i]), 4.5);
  }
  fputs("</g>", f);
}

void figure_stages(FILE *f, const figure_line *lines, int n, const double bounds[3], figure_form form,
                   const char *colors, const char *marks) {
  const int wide = form != FIGURE_NARROW;
  const int width = wide ? 760 : 380, height = wide ? 330 : 360;
  plot p = {44, wide ? 520 : 360, 30, wide ? 280 : 250, 0, 1, INFINITY, 0};
  label labels[16];
  char text[96];
  int i, k, m = 0;
  for (i = 0; i < n; i++)
    for (k = 0; k < lines[i].n; k++) {
      const double e = lines[i].error ? 2 * lines[i].error[k] : 0;
      p.x1 = fmax(p.x1, lines[i].x[k]);
      p.y1 = fmax(p.y1, lines[i].y[k] + e);
      p.y0 = fmin(p.y0, fmax(lines[i].y[k] - e, lines[i].y[k] / 3));
    }
  for (i = 0; i < 3; i++) p.x1 = fmax(p.x1, bounds[i]);
  p.y1 *= 1.4; /* for the numbers */
  widen(&p);
  picture_start(f, width, wide ? height : 300 + 17 * n,
                "KL from the teacher against tokens of training, stage by stage");
  if (form == FIGURE_FILE)
    fprintf(f, " width=\"%d\" height=\"%d\">\n<style>%s%ssvg{color:var(--ink);background:var(--page)}</style>\n", width,
            height, colors, marks);
  else
    fprintf(f, " class=\"%s\">", wide ? "wide" : "narrow");
  bands(f, &p, bounds, wide);
  grid_y(f, &p);
  picture_text(f, (p.left + p.right) / 2, p.bottom + 34, "middle", " class=\"soft\"", "tokens of training");
  for (i = n - 1; i >= 0; i--) stage_line(f, &p, &lines[i]);
  for (k = 0; n && k < lines[0].n; k++) { /* numbers at the marks of the first line */
    const double x = at_x(&p, lines[0].x[k]), y = at_y(&p, lines[0].y[k]);
    if (k + 1 == lines[0].n && wide) continue;
    snprintf(text, sizeof text, "%.3f", lines[0].y[k]);
    picture_text(f, x + (x > p.right - 40 ? -8 : 8), y - 9, x > p.right - 40 ? "end" : "start", " font-weight=\"600\"",
                 text);
  }
  for (i = 0; i < n && m < 16; i++)
    if (lines[i].n > 0) {
      labels[m].line = i;
      labels[m].y = wide ? at_y(&p, lines[i].y[lines[i].n - 1]) : 308 + 17 * m;
      m++;
    }
  if (wide) {
    qsort(labels, (size_t)m, sizeof *labels, by_y);
    for (i = 1; i < m; i++) labels[i].y = fmax(labels[i].y, labels[i - 1].y + 16);
    for (i = m; i-- > 0;) labels[i].y = fmin(labels[i].y, i + 1 == m ? p.bottom + 20 : labels[i + 1].y - 16);
  }
  for (i = 0; i < m; i++) {
    const figure_line *l = &lines[labels[i].line];
    const double x = wide ? p.right + 26 : p.left + 4;
    snprintf(text, sizeof text, "%.60s %.3f", l->name, l->y[l->n - 1]);
    fprintf(f, "<g class=\"k%d\">", l->color);
    if (!wide || fabs(labels[i].y - at_y(&p, l->y[l->n - 1])) > 1) figure_mark(f, l->mark, x - 9, labels[i].y, 3.5);
    picture_text(f, x, labels[i].y + 4, "start", labels[i].line ? "" : " font-weight=\"600\"", text);
    fputs("</g>", f);
  }
  fputs("</svg>\n", f);
}

/* ---------------------------------------------------------------- curves */

static void path_of(FILE *f, const plot *p, const double *x, const double *y, int n, const char *more) {
  int i, pen = 0;
  fprintf(f, "<path%s d=\"", more);
  for (i = 0; i < n; i++) {
    if (!isfinite(y[i]) || y[i] <= 0) continue;
    fprintf(f, "%c%.1f %.1f", pen++ ? 'L' : 'M', at_x(p, x[i]), at_y(p, y[i]));
  }
  fputs("\"/>", f);
}

static void include(plot *p, const double *y, int n) {
  int i;
  for (i = 0; y && i < n; i++)
    if (isfinite(y[i]) && y[i] > 0) p->y0 = fmin(p->y0, y[i]), p->y1 = fmax(p->y1, y[i]);
}

static void rate_strip(FILE *f, const plot *p, const double *x, const double *rate, int n) {
  double most = 0;
  int i;
  for (i = 0; i < n; i++) most = fmax(most, rate[i]);
  if (!(most > 0)) return;
  fprintf(f, "<path class=\"rate\" d=\"M%.1f %.1f", at_x(p, x[0]), p->bottom);
  for (i = 0; i < n; i++) fprintf(f, "L%.1f %.1f", at_x(p, x[i]), p->bottom - 22 * fmax(rate[i], 0) / most);
  fprintf(f, "L%.1f %.1fz\"/>", at_x(p, x[n - 1]), p->bottom);
}

void figure_curve(FILE *f, const figure_chart *c) {
  plot p = {52, 408, 46, 222, INFINITY, 0, INFINITY, 0};
  const figure_line *first = c->lines;
  char text[128];
  double x = 52;
  int i, k;
  for (i = 0; i < c->n; i++) {
    for (k = 0; k < c->lines[i].n; k++) p.x0 = fmin(p.x0, c->lines[i].x[k]), p.x1 = fmax(p.x1, c->lines[i].x[k]);
    include(&p, c->lines[i].y, c->lines[i].n);
  }
  include(&p, c->faint_y, first->n);
  include(&p, c->low, first->n);
  include(&p, c->high, first->n);
  include(&p, &c->level, 1);
  if (!(p.x1 > p.x0)) p.x0 = p.x1 - 1;
  if (p.x0 < 0.2 * p.x1) p.x0 = 0;
  widen(&p);
  snprintf(text, sizeof text, "%s: %s", c->title, c->y_label);
  picture_start(f, 420, 282, text);
  fputs(">", f);
  picture_text(f, 4, 16, "start", " font-weight=\"600\" font-size=\"13\"", c->title);
  picture_text(f, 4, 33, "start", " class=\"soft\"", c->y_label);
  if (c->rate && first->n > 1) rate_strip(f, &p, first->x, c->rate, first->n);
  grid_y(f, &p);
  grid_x(f, &p, "tokens of training");
  if (c->low && c->high && first->n > 1) {
    fprintf(f, "<path class=\"k%d faint\" d=\"", first->color);
    for (k = 0; k < first->n; k++)
      fprintf(f, "%c%.1f %.1f", k ? 'L' : 'M', at_x(&p, first->x[k]), at_y(&p, c->high[k]));
    for (k = first->n; k-- > 0;) fprintf(f, "L%.1f %.1f", at_x(&p, first->x[k]), at_y(&p, c->low[k]));
    fputs("z\"/>", f);
  }
  if (c->faint_y) {
    fprintf(f, "<g class=\"k%d\">", first->color);
    path_of(f, &p, first->x, c->faint_y, first->n, " class=\"thin\"");
    fputs("</g>", f);
  }
  if (isfinite(c->level)) {
    fprintf(f, "<path class=\"level\" d=\"M%.1f %.1fH%.1f\"/>", p.left, at_y(&p, c->level), p.right);
    picture_text(f, c->level_left ? p.left + 4 : p.right, at_y(&p, c->level) - 4, c->level_left ? "start" : "end",
                 " class=\"soft\"", c->level_name);
  }
  for (i = c->n; i-- > 0;) {
    const figure_line *l = &c->lines[i];
    if (l->n == 0) continue;
    fprintf(f, "<g class=\"k%d\">", l->color);
    path_of(f, &p, l->x, l->y, l->n, l->mark == 1 ? " class=\"curve\" stroke-dasharray=\"5 4\"" : " class=\"curve\"");
    figure_mark(f, l->mark, at_x(&p, l->x[l->n - 1]), at_y(&p, l->y[l->n - 1]), 3.5);
    fputs("</g>", f);
  }
  for (i = 0; c->n > 1 && i < c->n; i++) {
    const figure_line *l = &c->lines[i];
    if (l->n == 0) continue;
    fprintf(f, "<g class=\"k%d\">", l->color);
    figure_mark(f, l->mark, x, 272, 3.5);
    snprintf(text, sizeof text, "%.24s", l->name);
    picture_text(f, x + 8, 276, "start", "", text);
    fputs("</g>", f);
    x += 22 + 6 * (double)strlen(text);
  }
  fputs("</svg>\n", f);
}

/* ---------------------------------------------------------------- dots */

void figure_dots(FILE *f, const char *title, const char *x_label, int n, int each, const double *values,
                 const char *const *names, const int *colors) {
  enum { ROW = 34, TOP = 14 };
  const double left = 14, right = 340;
  double low = INFINITY, high = 0, v;
  char text[64];
  int i, k;
  for (i = 0; i < n * each; i++)
    if (isfinite(values[i]) && values[i] > 0) low = fmin(low, values[i]), high = fmax(high, values[i]);
  if (!(high > 0)) return;
  low /= 1.15;
  high *= 1.15;
  picture_start(f, 400, TOP + n * ROW + 40, title);
  fputs(" class=\"dots\">", f);
  for (i = 3 * (int)floor(log10(low)); i <= 3 * (int)ceil(log10(high)) + 2; i++) {
    static const double steps[3] = {1, 2, 5};
    v = steps[(i % 3 + 3) % 3] * pow(10, floor(i / 3.0));
    if (v < low || v > high) continue;
    fprintf(f, "<path class=\"line\" d=\"M%.1f %dV%d\"/>", left + (right - left) * log(v / low) / log(high / low), TOP,
            TOP + n * ROW);
    snprintf(text, sizeof text, "%g", v);
    picture_text(f, left + (right - left) * log(v / low) / log(high / low), TOP + n * ROW + 15, "middle",
                 " class=\"soft\"", text);
  }
  picture_text(f, (left + right) / 2, TOP + n * ROW + 32, "middle", " class=\"soft\"", x_label);
  for (i = 0; i < n; i++) {
    const double y = TOP + i * ROW + 24;
    double sum = 0, least = INFINITY, most = 0;
    int m = 0;
    for (k = 0; k < each; k++) {
      v = values[i * each + k];
      if (!isfinite(v) || v <= 0) continue;
      sum += v;
      least = fmin(least, v);
      most = fmax(most, v);
      m++;
    }
    picture_text(f, left, y - 10, "start", "", names[i]);
    if (m == 0) continue;
    fprintf(f, "<g class=\"k%d\">", colors[i]);
    fprintf(f, "<path class=\"whisker\" d=\"M%.1f %.1fH%.1f\"/>",
            left + (right - left) * log(least / low) / log(high / low), y,
            left + (right - left) * log(most / low) / log(high / low));
    for (k = 0; k < each; k++) {
      v = values[i * each + k];
      if (isfinite(v) && v > 0) figure_mark(f, 1, left + (right - left) * log(v / low) / log(high / low), y, 2.6);
    }
    v = sum / m;
    fprintf(f, "<path class=\"mean\" d=\"M%.1f %.1fv14\"/></g>", left + (right - left) * log(v / low) / log(high / low),
            y - 7);
    snprintf(text, sizeof text, "%.3f", v);
    picture_text(f, 396, y + 4, "end", " font-weight=\"600\"", text);
  }
  fputs("</svg>\n", f);
}
