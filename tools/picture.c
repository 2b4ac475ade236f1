/* picture.c: see picture.h */
#include "picture.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- matrices */

float *picture_matrices(mhk_context *ctx, mhk_model *m, mhk_model *teacher, int layer, const int32_t *tokens,
                        mhk_index T) {
  mhk_tensor *streams[MHK_MAX_LAYERS + 1], *u, *matrix;
  mhk_forward_desc desc;
  float *out = NULL;
  mhk_tape *t = mhk_tape_create(ctx);
  mhk_index i;
  memset(&desc, 0, sizeof desc);
  memset(streams, 0, sizeof streams);
  desc.residuals = streams;
  mhk_tape_record(t, 0);
  mhk_forward(t, teacher, tokens, 1, T, &desc);
  u = mhk_forward_norm(t, m, layer, streams[layer]);
  matrix = mhk_forward_matrix(t, m, layer, u, NULL);
  if (matrix && !mhk_failed(ctx)) {
    out = (float *)malloc((size_t)matrix->count * sizeof *out);
    if (!out)
      cli_error("out of memory for %d matrices of %lld x %lld", (int)matrix->shape[1], (long long)T, (long long)T);
    for (i = 0; out && i < matrix->count; i++) out[i] = (float)mhk_data(matrix)[i];
  } else {
    cli_context_error(ctx);
  }
  mhk_tape_destroy(t);
  return out;
}

double picture_distance(const float *a, const float *b, mhk_index T) {
  double difference = 0, size = 0;
  mhk_index i;
  for (i = 0; i < T * T; i++) {
    difference += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
    size += (double)b[i] * (double)b[i];
  }
  return sqrt(difference / size);
}

/* ---------------------------------------------------------------- colors */

/* Entries are colored by the signed root of their value, so that small weights stay visible: 0
   is dark, positive ones go over brown to yellow, negative ones to blue. Lightness grows evenly
   (OKLab, Ottosson 2020), so that the size is seen without color; v and -v stay apart for
   color-blind readers, which the test of `mohawk report` measures. */
enum { ZERO = 127, STEPS = 255, NOTHING = 255 };

static int color_index(double value) {
  double u = value < 0 ? -sqrt(-value) : sqrt(value);
  if (!(u > -1)) u = -1;
  if (u > 1) u = 1;
  return (int)floor(ZERO + ZERO * u + 0.5);
}

static unsigned char gamma_byte(double x) {
  double y = x <= 0.0031308 ? 12.92 * x : 1.055 * pow(x, 1 / 2.4) - 0.055;
  return (unsigned char)floor(255 * (y < 0 ? 0 : y > 1 ? 1 : y) + 0.5);
}

/* linear sRGB of a color in OKLCh */
static void linear_of(double lightness, double chroma, double hue, double rgb[3]) {
  const double a = chroma * cos(hue), b = chroma * sin(hue);
  const double l = pow(lightness + 0.3963377774 * a + 0.2158037573 * b, 3);
  const double m = pow(lightness - 0.1055613458 * a - 0.0638541728 * b, 3);
  const double k = pow(lightness - 0.0894841775 * a - 1.2914855480 * b, 3);
  rgb[0] = 4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * k;
  rgb[1] = -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * k;
  rgb[2] = -0.0041960863 * l - 0.7034186147 * m + 1.7076147010 * k;
}

static int in_gamut(const double rgb[3]) {
  return fmin(rgb[0], fmin(rgb[1], rgb[2])) >= 0 && fmax(rgb[0], fmax(rgb[1], rgb[2])) <= 1;
}

static void color_of(int index, unsigned char rgb[3]) {
  const double u = (double)(index - ZERO) / ZERO, s = fabs(u), degree = 0.017453292519943295;
  const double lightness = 0.21 + (u < 0 ? 0.62 : 0.74) * s, hue = degree * (u < 0 ? 262 - 22 * s : 45 + 55 * s);
  double chroma = 0.02 + (u < 0 ? 0.15 : 0.16) * pow(s, 0.7), x[3];
  int i;
  linear_of(lightness, chroma, hue, x);
  for (; !in_gamut(x) && chroma > 1e-3; linear_of(lightness, chroma, hue, x)) chroma *= 0.99;
  for (i = 0; i < 3; i++) rgb[i] = gamma_byte(x[i]);
}

int picture_index(double value) { return color_index(value); }
double picture_value(int index) {
  const double u = (double)(index - ZERO) / ZERO;
  return u < 0 ? -u * u : u * u;
}
void picture_color(int index, char text[8]) {
  unsigned char rgb[3];
  color_of(index, rgb);
  snprintf(text, 8, "#%02x%02x%02x", rgb[0], rgb[1], rgb[2]);
}

/* ------------------------------------------------ PNG: a palette, stored blocks, no compression */

typedef struct bytes {
  unsigned char *data;
  size_t n;
} bytes;

static void put(bytes *b, const void *data, size_t n) {
  memcpy(b->data + b->n, data, n);
  b->n += n;
}

static void put32(bytes *b, unsigned long x) {
  unsigned char four[4];
  int i;
  for (i = 0; i < 4; i++) four[i] = (unsigned char)(x >> (24 - 8 * i) & 255);
  put(b, four, 4);
}

static unsigned long crc32_of(const unsigned char *p, size_t n) {
  unsigned long c = 0xFFFFFFFFul;
  size_t i;
  int k;
  for (i = 0; i < n; i++) {
    c ^= p[i];
    for (k = 0; k < 8; k++) c = c & 1 ? 0xEDB88320ul ^ c >> 1 : c >> 1;
  }
  return c ^ 0xFFFFFFFFul;
}

static size_t chunk_begin(bytes *b, const char *type) {
  put32(b, 0);
  put(b, type, 4);
  return b->n;
}

static void chunk_end(bytes *b, size_t start) {
  bytes length;
  length.data = b->data + start - 8;
  length.n = 0;
  put32(&length, (unsigned long)(b->n - start));
  put32(b, crc32_of(b->data + start - 4, b->n - start + 4));
}

/* raw scanlines as a zlib stream of stored blocks */
static void put_stored(bytes *b, const unsigned char *raw, size_t n) {
  unsigned long s1 = 1, s2 = 0;
  size_t at, i;
  put(b, "\x78\x01", 2);
  for (at = 0; at < n; at += 65535) {
    size_t k = n - at < 65535 ? n - at : 65535;
    unsigned char head[5];
    head[0] = at + k == n;
    head[1] = (unsigned char)(k & 255);
    head[2] = (unsigned char)(k >> 8);
    head[3] = (unsigned char)~head[1];
    head[4] = (unsigned char)~head[2];
    put(b, head, 5);
    put(b, raw + at, k);
  }
  for (i = 0; i < n; i++) {
    s1 = (s1 + raw[i]) % 65521;
    s2 = (s2 + s1) % 65521;
  }
  put32(b, s2 << 16 | s1);
}

/* color indices (height,width) as a PNG in memory, malloc'ed; data NULL when there is none */
static bytes encode_png(const unsigned char *index, size_t width, size_t height) {
  const size_t n = height * (width + 1);
  unsigned char *raw = (unsigned char *)malloc(n), rgb[3], alpha[256];
  size_t start, y;
  bytes b;
  int i;
  b.n = 0;
  b.data = (unsigned char *)malloc(n + n / 65535 * 5 + 2048);
  if (raw && b.data) {
    for (y = 0; y < height; y++) {
      raw[y * (width + 1)] = 0; /* no filter */
      memcpy(raw + y * (width + 1) + 1, index + y * width, width);
    }
    put(&b, "\x89PNG\r\n\x1a\n", 8);
    start = chunk_begin(&b, "IHDR");
    put32(&b, (unsigned long)width);
    put32(&b, (unsigned long)height);
    put(&b, "\x08\x03\0\0\0", 5); /* 8 bits, palette */
    chunk_end(&b, start);
    start = chunk_begin(&b, "PLTE");
    for (i = 0; i < 256; i++) {
      color_of(i < STEPS ? i : ZERO, rgb);
      put(&b, rgb, 3);
      alpha[i] = i == NOTHING ? 0 : 255;
    }
    chunk_end(&b, start);
    start = chunk_begin(&b, "tRNS");
    put(&b, alpha, 256);
    chunk_end(&b, start);
    start = chunk_begin(&b, "IDAT");
    put_stored(&b, raw, n);
    chunk_end(&b, start);
    chunk_end(&b, chunk_begin(&b, "IEND"));
  } else {
    free(b.data);
    b.data = NULL;
  }
  free(raw);
  return b;
}

/* what a matrix looks like: nothing above the diagonal */
static unsigned char pixel(const float *matrix, mhk_index T, mhk_index row, mhk_index column) {
  return (unsigned char)(column > row ? NOTHING : color_index((double)matrix[row * T + column]));
}

int picture_png(FILE *out, const picture_panel *panels, int n, mhk_index T, int scale) {
  const size_t side = (size_t)T * (size_t)scale, gap = side / 16 + 1, width = (size_t)n * (side + gap) - gap;
  unsigned char *index = (unsigned char *)malloc(width * side);
  size_t x, y;
  bytes png;
  int p;
  if (!index) return 0;
  memset(index, NOTHING, width * side);
  for (p = 0; p < n; p++)
    for (y = 0; y < side; y++)
      for (x = 0; x < side; x++)
        index[y * width + (size_t)p * (side + gap) + x] =
            pixel(panels[p].matrix, T, (mhk_index)y / scale, (mhk_index)x / scale);
  png = encode_png(index, width, side);
  if (png.data) fwrite(png.data, 1, png.n, out);
  free(index);
  free(png.data);
  return png.data != NULL;
}

/* ---------------------------------------------------------------- SVG */

void picture_escape(FILE *out, const char *text) {
  for (; *text; text++) {
    switch (*text) {
      case '<': fputs("&lt;", out); break;
      case '>': fputs("&gt;", out); break;
      case '&': fputs("&amp;", out); break;
      case '"': fputs("&quot;", out); break;
      default: fputc(*text, out);
    }
  }
}

void picture_base64(FILE *out, const unsigned char *p, size_t n) {
  static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  size_t i;
  for (i = 0; i < n; i += 3) {
    unsigned long x = (unsigned long)p[i] << 16 | (i + 1 < n ? (unsigned long)p[i + 1] << 8 : 0) |
                      (i + 2 < n ? (unsigned long)p[i + 2] : 0);
    fputc(digits[x >> 18], out);
    fputc(digits[x >> 12 & 63], out);
    fputc(i + 1 < n ? digits[x >> 6 & 63] : '=', out);
    fputc(i + 2 < n ? digits[x & 63] : '=', out);
  }
}

void picture_text(FILE *out, double x, double y, const char *anchor, const char *more, const char *text) {
  fprintf(out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\"%s>", x, y, anchor, more);
  picture_escape(out, text);
  fputs("</text>", out);
}

/* where things stand in a panel and in the legend, in SVG units */
enum {
  LEFT = 42,
  TOP = 24,
  SIDE = 200,
  PANEL_WIDTH = LEFT + SIDE + 8,
  PANEL_HEIGHT = TOP + SIDE + 38,
  LEGEND_WIDTH = 320,
  LEGEND_HEIGHT = 52
};

static void draw_image(FILE *out, const float *matrix, mhk_index T) {
  unsigned char *index = (unsigned char *)malloc((size_t)T * (size_t)T);
  bytes png;
  mhk_index i;
  if (!index) return;
  for (i = 0; i < T * T; i++) index[i] = pixel(matrix, T, i / T, i % T);
  png = encode_png(index, (size_t)T, (size_t)T);
  if (png.data) {
    fprintf(out,
            "<image x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" style=\"image-rendering:pixelated\" "
            "href=\"data:image/png;base64,",
            LEFT, TOP, SIDE, SIDE);
    picture_base64(out, png.data, png.n);
    fputs("\"/>", out);
  }
  free(index);
  free(png.data);
}

static void draw_panel(FILE *out, const picture_panel *panel, mhk_index T) {
  char label[32], turn[64];
  int i;
  picture_text(out, LEFT, 15, "start", " font-weight=\"600\" font-size=\"13\"", panel->title);
  draw_image(out, panel->matrix, T);
  fprintf(out, "<path d=\"M%d %dV%dH%d\" fill=\"none\" stroke=\"currentColor\" stroke-opacity=\".6\"/>", LEFT, TOP,
          TOP + SIDE, LEFT + SIDE);
  for (i = 0; i <= 4; i++) {
    double at = SIDE * (double)i / 4;
    snprintf(label, sizeof label, "%lld", (long long)(i == 4 ? T - 1 : T * i / 4));
    picture_text(out, LEFT + at, TOP + SIDE + 14, i == 4 ? "end" : i ? "middle" : "start", "", label);
    if (i) picture_text(out, LEFT - 5, TOP + at + (i == 4 ? 0 : 4), "end", "", label);
  }
  picture_text(out, LEFT + SIDE / 2, TOP + SIDE + 30, "middle", "", "column: token that is read");
  snprintf(turn, sizeof turn, " transform=\"rotate(-90 %d %d)\"", 10, TOP + SIDE / 2);
  picture_text(out, 10, TOP + SIDE / 2 + 4, "middle", turn, "row: token that writes");
}

/* All colors there are. Entries beyond 1 have the colors of the ends, which the labels say. */
static void draw_legend(FILE *out) {
  static const double ticks[] = {-1, -0.5, -0.1, 0, 0.1, 0.5, 1};
  const double x0 = 30, width = 260;
  char label[32], color[8];
  int i, n = 64;
  for (i = 0; i < n; i++) {
    picture_color((int)floor(2.0 * ZERO * (i + 0.5) / n + 0.5), color);
    fprintf(out, "<rect x=\"%.2f\" y=\"18\" width=\"%.2f\" height=\"12\" fill=\"%s\"/>", x0 + width * i / n,
            width / n + 0.3, color);
  }
  for (i = 0; i < CLI_COUNT_OF(ticks); i++) {
    const double x = x0 + width * color_index(ticks[i]) / (2.0 * ZERO);
    fprintf(out, "<path d=\"M%.1f 30v4\" stroke=\"currentColor\"/>", x);
    snprintf(label, sizeof label, "%s%g", ticks[i] == -1 ? "\u2264 " : ticks[i] == 1 ? "\u2265 " : "", ticks[i]);
    picture_text(out, x, 46, "middle", "", label);
  }
  picture_text(out, x0, 12, "start", "", "weight: row writes, column is read");
}

void picture_start(FILE *out, int width, int height, const char *label) {
  fprintf(out, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"", width,
          height);
  picture_escape(out, label);
  fputs("\" font-family=\"system-ui,sans-serif\" font-size=\"11\" fill=\"currentColor\"", out);
}

void picture_panel_svg(FILE *out, const picture_panel *panel, mhk_index T) {
  picture_start(out, PANEL_WIDTH, PANEL_HEIGHT, panel->title);
  fputs(">", out);
  draw_panel(out, panel, T);
  fputs("</svg>\n", out);
}

void picture_legend_svg(FILE *out) {
  picture_start(out, LEGEND_WIDTH, LEGEND_HEIGHT,
                "color scale from -1 over 0 to 1; entries beyond have the colors of the ends");
  fputs(">", out);
  draw_legend(out);
  fputs("</svg>\n", out);
}

/* the start of a file of its own, readable on light and dark */
static void file_start(FILE *out, int wide, int high, const char *title) {
  picture_start(out, wide, high, title);
  fprintf(out, " width=\"%d\" height=\"%d\">\n", wide, high);
  fputs("<style>svg{color:#1f2328;background:#fff}@media(prefers-color-scheme:dark){svg{color:#e6e6e6;background:#"
        "14161a}}</style>\n",
        out);
}

void picture_svg(FILE *out, const picture_panel *panels, int n, mhk_index T) {
  const int wide = n * PANEL_WIDTH > LEGEND_WIDTH ? n * PANEL_WIDTH : LEGEND_WIDTH;
  int i;
  file_start(out, wide, PANEL_HEIGHT + LEGEND_HEIGHT + 8, "mixing matrices");
  for (i = 0; i < n; i++) {
    fprintf(out, "<g transform=\"translate(%d 0)\">", i * PANEL_WIDTH);
    draw_panel(out, &panels[i], T);
    fputs("</g>\n", out);
  }
  fprintf(out, "<g transform=\"translate(%d %d)\">", LEFT - 20, PANEL_HEIGHT + 4);
  draw_legend(out);
  fputs("</g>\n</svg>\n", out);
}

/* ---------------------------------------------------------------- maps of heads */

enum { MAP_LEFT = 44, MAP_TOP = 62, MAP_GAP = 14, MAP_LEAST = 400, MAP_MOST_NUMBERS = 12 };

/* One cell, colored by its share of the largest; its number in it where cells are wide enough, else
   for the pointer only. */
static void draw_cell(FILE *out, double x, double y, int wide, int high, double value, double largest,
                      const char *name) {
  const double share = largest > 0 && value > 0 ? value / largest : 0;
  unsigned char rgb[3];
  char text[32];
  color_of(color_index(share), rgb);
  fprintf(out,
          "<g><title>%s: %.4f</title><rect x=\"%.0f\" y=\"%.0f\" width=\"%d\" height=\"%d\" fill=\"#%02x%02x%02x\"/>",
          name, value, x, y, wide - 1, high - 1, rgb[0], rgb[1], rgb[2]);
  if (wide > 30) {
    snprintf(text, sizeof text, "%.3f", value);
    picture_text(out, x + wide / 2.0, y + high / 2.0 + 4, "middle", share > 0.35 ? " fill=\"#000\"" : " fill=\"#fff\"",
            text);
  }
  fputs("</g>\n", out);
}

void picture_heads_svg(FILE *out, const picture_heads *p) {
  const int numbers = p->heads <= MAP_MOST_NUMBERS, wide = numbers ? 46 : 20, high = numbers ? 26 : 18;
  const int right = MAP_LEFT + p->heads * wide + MAP_GAP, width = right + 62 > MAP_LEAST ? right + 62 : MAP_LEAST;
  double most = 0, most_layer = 0;
  char name[64];
  int l, h;
  for (l = 0; l < p->layers; l++) {
    if (p->layer_kl[l] > most_layer) most_layer = p->layer_kl[l];
    for (h = 0; h < p->heads; h++)
      if (p->kl[l * p->heads + h] > most) most = p->kl[l * p->heads + h];
  }
  file_start(out, width, MAP_TOP + p->layers * high + 12, p->title);
  picture_text(out, 10, 20, "start", " font-weight=\"600\" font-size=\"13\"", p->title);
  picture_text(out, 10, 37, "start", "", "in nats; yellow: the most; whole layers have their own scale");
  picture_text(out, 10, MAP_TOP - 8, "start", "", "layer");
  for (h = 0; h < p->heads; h++) {
    snprintf(name, sizeof name, numbers ? "head %d" : "%d", h);
    if (numbers || h % 4 == 0) picture_text(out, MAP_LEFT + h * wide + wide / 2.0, MAP_TOP - 8, "middle", "", name);
  }
  picture_text(out, right + 23, MAP_TOP - 8, "middle", "", "whole layer");
  for (l = 0; l < p->layers; l++) {
    const double y = MAP_TOP + l * high;
    snprintf(name, sizeof name, "%d", l);
    picture_text(out, MAP_LEFT - 8, y + high / 2.0 + 4, "end", "", name);
    for (h = 0; h < p->heads; h++) {
      snprintf(name, sizeof name, "layer %d, head %d", l, h);
      draw_cell(out, MAP_LEFT + h * wide, y, wide, high, p->kl[l * p->heads + h], most, name);
    }
    snprintf(name, sizeof name, "layer %d", l);
    draw_cell(out, right, y, 46, high, p->layer_kl[l], most_layer, name);
  }
  fputs("</svg>\n", out);
}

/* ---------------------------------------------------------------- curves */

enum { CHART_WIDTH = 420, CHART_HEIGHT = 264, CHART_LEFT = 46, CHART_TOP = 28, CHART_RIGHT = 408, CHART_BOTTOM = 208 };

/* x0 and x1 are powers of two; logarithmic: y0 and y1 are powers of ten */
typedef struct chart {
  double x0, x1, y0, y1;
  int logarithmic;
} chart;

static double chart_x(const chart *c, double x) {
  return CHART_LEFT + (CHART_RIGHT - CHART_LEFT) * (log2(x) - c->x0) / (c->x1 - c->x0);
}
static double chart_y(const chart *c, double y) {
  const double v = c->logarithmic ? log10(y) : y;
  return CHART_BOTTOM - (CHART_BOTTOM - CHART_TOP) * ((v < c->y1 ? v : c->y1) - c->y0) / (c->y1 - c->y0);
}

/* 1, 2 or 5 times a power of ten, about a quarter of the range */
static double tick_step(double range) {
  double power = pow(10, floor(log10(range / 4))), x = range / 4 / power;
  return power * (x < 1.5 ? 1 : x < 3.5 ? 2 : x < 7.5 ? 5 : 10);
}

/* The range that shows every curve, logarithmic where it is wide. On a linear scale the first
   points may leave it at the top, for losses fall steeply at first. */
static chart chart_range(const picture_curve *curves, int n) {
  double top = -INFINITY;
  chart c;
  int i, k;
  c.x0 = INFINITY;
  c.x1 = 1e-9;
  c.y0 = INFINITY;
  c.y1 = -INFINITY;
  for (i = 0; i < n; i++)
    for (k = 0; k < curves[i].n; k++) {
      double y = curves[i].y[k];
      if (!isfinite(y)) continue;
      if (curves[i].x[k] < c.x0) c.x0 = curves[i].x[k];
      if (curves[i].x[k] > c.x1) c.x1 = curves[i].x[k];
      if (y > top) top = y;
      if (y < c.y0) c.y0 = y;
      if (y > c.y1 && k >= curves[i].n / 20) c.y1 = y;
    }
  c.x0 = log2(c.x0);
  c.x1 = log2(c.x1);
  if (!(c.x1 > c.x0)) c.x0 = c.x1 - 1;
  if (!(c.y1 > c.y0)) {
    c.y0 = isfinite(c.y0) ? c.y0 - 0.5 : 0;
    c.y1 = c.y0 + 1;
  }
  c.logarithmic = c.y0 > 0 && top > 8 * c.y0;
  if (c.logarithmic) {
    c.y0 = log10(c.y0);
    c.y1 = log10(top);
  }
  c.y1 += 0.04 * (c.y1 - c.y0);
  c.y0 -= 0.04 * (c.y1 - c.y0);
  return c;
}

/* 250000 as "250 k", by thousands or by 1024 */
void picture_round(char *text, size_t capacity, double v, double thousand) {
  const int power = v >= thousand * thousand - 0.5 ? 2 : v >= thousand - 0.5 ? 1 : 0;
  static const char *const units[] = {"", " k", " M"};
  snprintf(text, capacity, "%g%s", v / pow(thousand, power), units[power]);
}

static void draw_mark(FILE *out, const chart *c, double v, const char *label) {
  const double at = chart_x(c, v);
  picture_text(out, at, CHART_BOTTOM + 15, at > CHART_RIGHT - 12 ? "end" : "middle", "", label);
}

/* a line across the chart at y */
static void draw_line(FILE *out, const chart *c, double y) {
  char label[32];
  fprintf(out, "<path d=\"M%d %.1fH%d\" stroke=\"currentColor\" stroke-opacity=\".15\"/>", CHART_LEFT, chart_y(c, y),
          CHART_RIGHT);
  snprintf(label, sizeof label, "%g", y);
  picture_text(out, CHART_LEFT - 6, chart_y(c, y) + 4, "end", "", label);
}

static void draw_grid(FILE *out, const chart *c, const char *x_label) {
  const double dy = tick_step(c->y1 - c->y0);
  static const double steps[3] = {1, 2, 5};
  char label[64];
  double v;
  int i;
  if (c->logarithmic) {
    for (i = 3 * (int)floor(c->y0); i <= 3 * (int)ceil(c->y1); i++) {
      v = steps[(i % 3 + 3) % 3] * pow(10, floor(i / 3.0));
      if (log10(v) >= c->y0 && log10(v) <= c->y1) draw_line(out, c, v);
    }
  } else {
    for (v = ceil(c->y0 / dy) * dy; v <= c->y1; v += dy) draw_line(out, c, fabs(v) < dy * 1e-6 ? 0 : v);
  }
  for (i = (int)ceil(c->x0 / 2); i <= (int)floor(c->x1 / 2); i++) {
    picture_round(label, sizeof label, pow(4, i), 1024);
    draw_mark(out, c, pow(4, i), label);
  }
  fprintf(out, "<path d=\"M%d %dH%d\" stroke=\"currentColor\" stroke-opacity=\".6\"/>", CHART_LEFT, CHART_BOTTOM,
          CHART_RIGHT);
  picture_text(out, (CHART_LEFT + CHART_RIGHT) / 2.0, CHART_BOTTOM + 30, "middle", "", x_label);
}

static void draw_curve(FILE *out, const chart *c, const picture_curve *curve, int number) {
  int k, pen = 0;
  fprintf(out,
          "<path class=\"c%d\" fill=\"none\" stroke=\"currentColor\" stroke-width=\"1.8\" stroke-linejoin=\"round\" "
          "d=\"",
          number);
  for (k = 0; k < curve->n; k++) {
    double y = curve->y[k];
    if (!isfinite(y)) continue;
    fprintf(out, "%c%.1f %.1f", pen++ ? 'L' : 'M', chart_x(c, curve->x[k]), chart_y(c, y));
  }
  fputs("\"/>", out);
}

static void draw_chart(FILE *out, const picture_chart *p) {
  const chart c = chart_range(p->curves, p->n);
  double x = CHART_LEFT;
  int i;
  picture_text(out, CHART_LEFT, 16, "start", " font-weight=\"600\" font-size=\"13\"", p->title);
  draw_grid(out, &c, p->x_label);
  for (i = 0; i < p->n; i++) draw_curve(out, &c, &p->curves[i], i);
  for (i = 0; p->n > 1 && i < p->n; i++) {
    if (p->curves[i].n == 0) continue;
    fprintf(out, "<path class=\"c%d\" d=\"M%.1f %dh16\" stroke=\"currentColor\" stroke-width=\"3\"/>", i, x,
            CHART_HEIGHT - 10);
    picture_text(out, x + 20, CHART_HEIGHT - 6, "start", "", p->curves[i].name);
    x += 34 + 6.2 * (double)strlen(p->curves[i].name);
  }
}

void picture_charts_svg(FILE *out, const picture_chart *charts, int n) {
  int i;
  file_start(out, n * CHART_WIDTH, CHART_HEIGHT, charts[0].title);
  fputs(
      "<style>.c0{color:#8250df}.c1{color:#0969da}@media(prefers-color-scheme:dark){.c0{color:#c297ff}.c1{color:#"
      "6cb6ff}}"
      "</style>\n",
      out);
  for (i = 0; i < n; i++) {
    fprintf(out, "<g transform=\"translate(%d 0)\">", i * CHART_WIDTH);
    draw_chart(out, &charts[i]);
    fputs("</g>\n", out);
  }
  fputs("</svg>\n", out);
}
/* ---------------------------------------------------------------- threads */

enum {
  THREADS_WIDE = 300,
  THREADS_HIGH = 232,
  THREADS_LEFT = 42,
  THREADS_TOP = 30,
  THREADS_SIDE = 172,
  THREADS_HEAD = 50
};

/* powers of two from 2^x0, 2^y0 on */
typedef struct threads_scale {
  double x0, x1, y0, y1, most;
} threads_scale;

static double threads_x(const threads_scale *s, double x) {
  return THREADS_LEFT + THREADS_SIDE * (log2(x) - s->x0) / (s->x1 - s->x0);
}
static double threads_y(const threads_scale *s, double y) {
  return THREADS_TOP + THREADS_SIDE * (s->y1 - log2(y)) / (s->y1 - s->y0);
}

static threads_scale threads_range(const picture_chart *charts, int n) {
  threads_scale s = {0, 1, 0, 1, 1};
  int i, j, k;
  for (i = 0; i < n; i++)
    for (j = 0; j < charts[i].n; j++)
      for (k = 0; k < charts[i].curves[j].n; k++) {
        const double x = charts[i].curves[j].x[k], y = charts[i].curves[j].y[k];
        if (!isfinite(y)) continue;
        s.most = fmax(s.most, x);
        s.y0 = fmin(s.y0, log2(y));
        s.y1 = fmax(s.y1, log2(y));
      }
  s.x1 = fmax(s.x1, log2(s.most));
  s.y1 = fmax(s.y1, s.x1) + 0.1;
  s.y0 -= 0.2;
  return s;
}

/* marks at powers of two, and the ideal line */
static void threads_grid(FILE *out, const threads_scale *s) {
  char label[32];
  int i;
  for (i = (int)ceil(s->y0); i <= (int)floor(s->y1); i++) {
    const double y = threads_y(s, pow(2, i));
    fprintf(out, "<path d=\"M%d %.1fh%d\" stroke=\"currentColor\" stroke-opacity=\".15\"/>", THREADS_LEFT, y,
            THREADS_SIDE);
    snprintf(label, sizeof label, "%g", pow(2, i));
    picture_text(out, THREADS_LEFT - 6, y + 4, "end", "", label);
  }
  for (i = 0; i <= (int)floor(s->x1); i++) {
    snprintf(label, sizeof label, "%g", pow(2, i));
    picture_text(out, threads_x(s, pow(2, i)), THREADS_TOP + THREADS_SIDE + 15, "middle", "", label);
  }
  picture_text(out, THREADS_LEFT + THREADS_SIDE + 14, THREADS_TOP + THREADS_SIDE + 15, "start", "", "threads");
  fprintf(out,
          "<path d=\"M%.1f %.1fL%.1f %.1f\" stroke=\"currentColor\" stroke-opacity=\".6\" stroke-dasharray=\"2 3\"/>",
          threads_x(s, 1), threads_y(s, 1), threads_x(s, s->most), threads_y(s, s->most));
}

static void threads_curve(FILE *out, const threads_scale *s, const picture_curve *curve, int number) {
  int k, pen = 0;
  fprintf(out, "<g class=\"c%d\"><path fill=\"none\" stroke=\"currentColor\" stroke-width=\"1.8\" d=\"", number);
  for (k = 0; k < curve->n; k++)
    if (isfinite(curve->y[k]))
      fprintf(out, "%c%.1f %.1f", pen++ ? 'L' : 'M', threads_x(s, curve->x[k]), threads_y(s, curve->y[k]));
  fputs("\"/>", out);
  for (k = 0; k < curve->n; k++)
    if (isfinite(curve->y[k]))
      fprintf(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"2.5\" fill=\"currentColor\"/>", threads_x(s, curve->x[k]),
              threads_y(s, curve->y[k]));
  fputs("</g>", out);
}

/* a name at the end of a line */
typedef struct threads_label {
  double y;
  char text[48];
  const char *color;
} threads_label;

/* Names from the top down, none over another. */
static void threads_labels(FILE *out, threads_label *labels, int n) {
  int i, k;
  for (i = 1; i < n; i++)
    for (k = i; k > 0 && labels[k].y < labels[k - 1].y; k--) {
      const threads_label upper = labels[k];
      labels[k] = labels[k - 1];
      labels[k - 1] = upper;
    }
  for (i = 0; i < n; i++) {
    if (i > 0 && labels[i].y < labels[i - 1].y + 12) labels[i].y = labels[i - 1].y + 12;
    picture_text(out, THREADS_LEFT + THREADS_SIDE + 8, labels[i].y + 4, "start", labels[i].color, labels[i].text);
  }
}

static void threads_chart(FILE *out, const threads_scale *s, const picture_chart *p) {
  threads_label labels[4];
  int i, k, n = 0;
  picture_text(out, THREADS_LEFT, 18, "start", " font-weight=\"600\" font-size=\"12\"", p->title);
  threads_grid(out, s);
  labels[n].y = threads_y(s, s->most);
  strcpy(labels[n].text, "ideal");
  labels[n++].color = "";
  for (i = 0; i < p->n && n < CLI_COUNT_OF(labels); i++) {
    const picture_curve *c = &p->curves[i];
    for (k = c->n - 1; k >= 0 && !isfinite(c->y[k]); k--) {}
    if (k < 0) continue;
    threads_curve(out, s, c, i);
    labels[n].y = threads_y(s, c->y[k]);
    snprintf(labels[n].text, sizeof labels[n].text, "%.30s %.*f", c->name, c->y[k] < 9.95 ? 1 : 0, c->y[k]);
    labels[n++].color = i ? " class=\"t1\"" : " class=\"t0\"";
  }
  threads_labels(out, labels, n);
}

void picture_threads_svg(FILE *out, const char *title, const char *below, const picture_chart *charts, int n) {
  const threads_scale s = threads_range(charts, n);
  const int across = n < 3 ? n : 3;
  int i;
  file_start(out, across * THREADS_WIDE, THREADS_HEAD + (n + 2) / 3 * THREADS_HIGH, title);
  fputs(
      "<style>.c0{color:#0969da}.c1{color:#bc4c00}.t0{fill:#0969da}.t1{fill:#bc4c00}"
      "@media(prefers-color-scheme:dark){.c0{color:#6cb6ff}.c1{color:#f0a35a}.t0{fill:#6cb6ff}.t1{fill:#f0a35a}}"
      "</style>\n",
      out);
  picture_text(out, 10, 20, "start", " font-weight=\"600\" font-size=\"13\"", title);
  picture_text(out, 10, 37, "start", "", below);
  for (i = 0; i < n; i++) {
    fprintf(out, "\n<g transform=\"translate(%d %d)\">", i % 3 * THREADS_WIDE, THREADS_HEAD + i / 3 * THREADS_HIGH);
    threads_chart(out, &s, &charts[i]);
    fputs("</g>", out);
  }
  fputs("\n</svg>\n", out);
}

/* ---------------------------------------------------------------- means with whiskers */

enum {
  WHISKER_WIDE = 300,
  WHISKER_HIGH = 236,
  WHISKER_LEFT = 46,
  WHISKER_TOP = 28,
  WHISKER_ACROSS = 236,
  WHISKER_DOWN = 166,
  WHISKER_HEAD = 74
};
static const double whisker_low = -3; /* decades of y, from here to 1 */

/* marks that differ without color: circle, square, triangle, diamond, hexagon, none */
static void whisker_mark(FILE *out, int curve, double x, double y) {
  static const char *const shapes[] = {"", "m-2.6-2.6h5.2v5.2h-5.2z", "m0-3.4l3.2 5.6h-6.4z",
                                       "m0-3.6l3.6 3.6-3.6 3.6-3.6-3.6z", "m-3 0l1.5-2.8h3l1.5 2.8-1.5 2.8h-3z"};
  if (curve == 0) fprintf(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"2.7\" fill=\"currentColor\"/>", x, y);
  else if (curve < 5) fprintf(out, "<path d=\"M%.1f %.1f%s\" fill=\"currentColor\"/>", x, y, shapes[curve]);
}

static double whisker_x(const picture_whisker_page *p, double x) {
  const double first = log2(p->x[0]), last = log2(p->x[p->n - 1]);
  return WHISKER_LEFT + (last > first ? WHISKER_ACROSS * (log2(x) - first) / (last - first) : WHISKER_ACROSS / 2.0);
}

/* any value down to 1e-9, which lies far below the edge */
static double whisker_y(double y) {
  return WHISKER_TOP + WHISKER_DOWN * log10(fmin(fmax(y, 1e-9), 1)) / whisker_low;
}

/* A curve, cut where it leaves the chart at the bottom; whiskers and marks where it is inside. */
static void whisker_curve(FILE *out, const picture_whisker_page *p, const picture_whiskers *c, int curve) {
  const double *mean = c->mean + curve * p->n, *error = c->error + curve * p->n, edge = WHISKER_TOP + WHISKER_DOWN;
  int k, pen = 0;
  fprintf(out, "<g class=\"f%d\"><title>", curve);
  picture_escape(out, p->names[curve]);
  fprintf(out, "</title><path fill=\"none\" stroke=\"currentColor\" stroke-width=\"1.8\"%s d=\"",
          curve == p->curves - 1 ? " stroke-dasharray=\"4 3\"" : "");
  for (k = 0; k < p->n; k++) {
    const double x = whisker_x(p, p->x[k]), y = whisker_y(mean[k]);
    if (k > 0 && (y > edge) != (whisker_y(mean[k - 1]) > edge)) {
      const double x0 = whisker_x(p, p->x[k - 1]), y0 = whisker_y(mean[k - 1]);
      fprintf(out, "%c%.1f %.1f", pen ? 'L' : 'M', x0 + (x - x0) * (edge - y0) / (y - y0), edge);
      pen = 1;
    }
    if (y > edge) pen = 0;
    else fprintf(out, "%c%.1f %.1f", pen++ ? 'L' : 'M', x, y);
  }
  fputs("\"/>", out);
  for (k = 0; k < p->n; k++) {
    const double x = whisker_x(p, p->x[k]), y = whisker_y(mean[k]);
    if (y > edge) continue;
    fprintf(out, "<path d=\"M%.1f %.1fV%.1f\" stroke=\"currentColor\"/>", x, whisker_y(mean[k] + 2 * error[k]),
            fmin(edge, whisker_y(mean[k] - 2 * error[k])));
    whisker_mark(out, curve, x, y);
  }
  fputs("</g>\n", out);
}

static void whisker_chart(FILE *out, const picture_whisker_page *p, const picture_whiskers *c) {
  char label[32];
  int i, k;
  picture_text(out, WHISKER_LEFT, 18, "start", " font-weight=\"600\" font-size=\"12\"", c->title);
  for (i = 0; i >= (int)whisker_low; i--) {
    const double y = whisker_y(pow(10, i));
    fprintf(out, "<path d=\"M%d %.1fh%d\" stroke=\"currentColor\" stroke-opacity=\"%s\"/>", WHISKER_LEFT, y,
            WHISKER_ACROSS, i == (int)whisker_low ? ".6" : ".15");
    snprintf(label, sizeof label, "%g", pow(10, i));
    picture_text(out, WHISKER_LEFT - 6, y + 4, "end", "", label);
  }
  for (k = 0; k < p->n; k++) {
    snprintf(label, sizeof label, "%g", p->x[k]);
    picture_text(out, whisker_x(p, p->x[k]), WHISKER_TOP + WHISKER_DOWN + 15, "middle", "", label);
  }
  picture_text(out, WHISKER_LEFT + WHISKER_ACROSS / 2.0, WHISKER_TOP + WHISKER_DOWN + 30, "middle", "", p->x_label);
  for (k = p->curves - 1; k >= 0; k--) whisker_curve(out, p, c, k);
}

void picture_whiskers_svg(FILE *out, const picture_whisker_page *p) {
  const int across = p->n_charts < 3 ? p->n_charts : 3, least = 2;
  double x = 10;
  int i;
  file_start(out, (across < least ? least : across) * WHISKER_WIDE, WHISKER_HEAD + (p->n_charts + 2) / 3 * WHISKER_HIGH,
             p->title);
  fputs(
      "<style>.f0{color:#8250df}.f1{color:#57606a}.f2{color:#bc4c00}.f3{color:#0969da}.f4{color:#1a7f37}"
      "@media(prefers-color-scheme:dark){.f0{color:#c297ff}.f1{color:#9aa4ae}.f2{color:#f0a35a}.f3{color:#6cb6ff}"
      ".f4{color:#57c173}}</style>\n",
      out);
  picture_text(out, 10, 20, "start", " font-weight=\"600\" font-size=\"13\"", p->title);
  picture_text(out, 10, 37, "start", "", p->below);
  for (i = 0; i < p->curves; i++) {
    fprintf(out, "<g class=\"f%d\"><path d=\"M%.1f 56h22\" stroke=\"currentColor\" stroke-width=\"1.8\"%s/>", i, x,
            i == p->curves - 1 ? " stroke-dasharray=\"4 3\"" : "");
    whisker_mark(out, i, x + 11, 56);
    fputs("</g>", out);
    picture_text(out, x + 27, 60, "start", "", p->names[i]);
    x += 42 + 6.2 * (double)strlen(p->names[i]);
  }
  for (i = 0; i < p->n_charts; i++) {
    fprintf(out, "\n<g transform=\"translate(%d %d)\">", i % 3 * WHISKER_WIDE, WHISKER_HEAD + i / 3 * WHISKER_HIGH);
    whisker_chart(out, p, &p->charts[i]);
    fputs("</g>", out);
  }
  fputs("\n</svg>\n", out);
}

/* ---------------------------------------------------------------- bars */

enum { BARS_WIDE = 720, BARS_LEFT = 190, BARS_RIGHT = 620, BARS_TOP = 52, BARS_ROW = 24, BARS_BELOW = 34 };

/* mean, least and most of the values that are there; returns how many */
static int spread_of(const double *values, int n, double *mean, double *least, double *most) {
  double sum = 0;
  int i, k = 0;
  *least = INFINITY;
  *most = -INFINITY;
  for (i = 0; i < n; i++) {
    if (!isfinite(values[i])) continue;
    sum += values[i];
    *least = fmin(*least, values[i]);
    *most = fmax(*most, values[i]);
    k++;
  }
  *mean = k ? sum / k : NAN;
  return k;
}

static void draw_bar(FILE *out, const picture_bars *p, int i, double largest) {
  const double *values = p->values + i * p->seeds;
  const double y = BARS_TOP + i * BARS_ROW, scale = (BARS_RIGHT - BARS_LEFT) / largest;
  double mean, least, most;
  char text[32];
  int k;
  picture_text(out, BARS_LEFT - 8, y + 14, "end", "", p->names[i]);
  if (spread_of(values, p->seeds, &mean, &least, &most) == 0) return;
  fprintf(out, "<rect class=\"c0\" x=\"%d\" y=\"%.0f\" width=\"%.1f\" height=\"16\" fill=\"currentColor\" "
               "fill-opacity=\".55\"/>",
          BARS_LEFT, y + 2, scale * mean);
  if (most > least)
    fprintf(out, "<path d=\"M%.1f %.0fH%.1f\" stroke=\"currentColor\" stroke-width=\"1.5\"/>",
            BARS_LEFT + scale * least, y + 10, BARS_LEFT + scale * most);
  for (k = 0; k < p->seeds; k++)
    if (isfinite(values[k]))
      fprintf(out, "<circle cx=\"%.1f\" cy=\"%.0f\" r=\"2.5\" fill=\"currentColor\"/>",
              BARS_LEFT + scale * values[k], y + 10);
  snprintf(text, sizeof text, "%.3f", mean);
  picture_text(out, BARS_LEFT + scale * most + 8, y + 14, "start", "", text);
}

/* Returns its height. */
static int draw_bars(FILE *out, const picture_bars *p) {
  double mean, least, most, largest = 0, step, v;
  char label[32];
  int i;
  for (i = 0; i < p->n; i++)
    if (spread_of(p->values + i * p->seeds, p->seeds, &mean, &least, &most) > 0) largest = fmax(largest, most);
  if (!(largest > 0)) largest = 1;
  picture_text(out, 10, 20, "start", " font-weight=\"600\" font-size=\"13\"", p->title);
  picture_text(out, 10, 37, "start", "", p->below);
  step = tick_step(largest);
  for (v = 0; v <= largest * 1.0001; v += step) {
    const double x = BARS_LEFT + (BARS_RIGHT - BARS_LEFT) * v / largest;
    fprintf(out, "<path d=\"M%.1f %dV%d\" stroke=\"currentColor\" stroke-opacity=\".15\"/>", x, BARS_TOP,
            BARS_TOP + p->n * BARS_ROW);
    snprintf(label, sizeof label, "%g", v);
    picture_text(out, x, BARS_TOP + p->n * BARS_ROW + 14, "middle", "", label);
  }
  for (i = 0; i < p->n; i++) draw_bar(out, p, i, largest);
  return BARS_TOP + p->n * BARS_ROW + BARS_BELOW;
}

void picture_bars_svg(FILE *out, const picture_bars *charts, int n) {
  int i, high = 0;
  for (i = 0; i < n; i++) high += BARS_TOP + charts[i].n * BARS_ROW + BARS_BELOW;
  file_start(out, BARS_WIDE, high, charts[0].title);
  fputs("<style>.c0{color:#8250df}@media(prefers-color-scheme:dark){.c0{color:#c297ff}}</style>\n", out);
  for (i = high = 0; i < n; i++) {
    fprintf(out, "<g transform=\"translate(0 %d)\">", high);
    high += draw_bars(out, &charts[i]);
    fputs("</g>\n", out);
  }
  fputs("</svg>\n", out);
}
