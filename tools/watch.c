/* watch.c: see watch.h */
#include "watch.h"
#include "picture.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOMENTS_OF_STAGE = 50 };

struct watch {
  mhk_context *ctx;
  char folder[1024];
  mhk_model *teacher;
  watch_probes probes;
  int32_t tokens[WATCH_TOKENS];
  mhk_real *streams; /* of the teacher, in front of each layer (layers,T,D) */
  float *matrices; /* of the teacher (layers,heads,T,T) */
  double *relative; /* (layers,heads), of the last moment */
  FILE *heads;
};

const char *watch_moment(int moment) {
  static const char *const names[WATCH_MOMENTS] = {"start", "stage1", "stage2", "stage3"};
  return names[moment];
}

/* ---------------------------------------------------------------- heads.csv */

static const char heads_header[] = "stage,tokens,layer,head,relative\n";

static void write_head(FILE *f, const watch_head *h) {
  fprintf(f, "%d,%.0f,%d,%d,%.4g\n", h->stage, h->tokens, h->layer, h->head, h->relative);
}

int watch_read_heads(const char *folder, int stage, double tokens, watch_head **lines, int *n) {
  char path[1024], line[256];
  int room = 0, number = 1;
  FILE *f;
  *n = 0;
  *lines = NULL;
  if (cli_join(path, sizeof path, folder, "heads.csv") != CLI_GO) return CLI_FAILED;
  if (!cli_exists(path)) return CLI_GO;
  f = cli_open(path, "r");
  if (!f) return cli_error("cannot read %s: %s", path, strerror(errno));
  if (!fgets(line, sizeof line, f) || strcmp(line, heads_header) != 0) {
    fclose(f);
    return cli_error("%s is damaged: its first line is not %.*s", path, (int)strlen(heads_header) - 1, heads_header);
  }
  while (fgets(line, sizeof line, f)) {
    watch_head h;
    number++;
    if (!strchr(line, '\n')) break; /* a line that a kill left without its end */
    if (sscanf(line, "%d,%lf,%d,%d,%lf", &h.stage, &h.tokens, &h.layer, &h.head, &h.relative) != 5 || h.stage < 0 ||
        h.stage > 3 || !(h.tokens >= 0) || h.layer < 0 || h.layer >= MHK_MAX_LAYERS || h.head < 0 || h.head >= 65536 ||
        !(h.relative >= 0)) {
      fclose(f);
      free(*lines);
      *lines = NULL;
      return cli_error("%s is damaged: line %d is not stage, tokens, layer, head and a relative error", path, number);
    }
    if (h.stage > stage || (h.stage == stage && h.tokens > tokens)) continue;
    if (*n == room) {
      watch_head *larger = (watch_head *)realloc(*lines, (size_t)(room = room * 2 + 256) * sizeof *larger);
      if (!larger) break;
      *lines = larger;
    }
    (*lines)[(*n)++] = h;
  }
  fclose(f);
  return CLI_GO;
}

/* ---------------------------------------------------------------- probes.safetensors */

static size_t bytes_of(const watch_probes *p) {
  return (size_t)p->layers * (size_t)p->heads * (size_t)p->T * (size_t)(p->T + 1) / 2;
}

void watch_free_probes(watch_probes *p) {
  int i;
  free(p->teacher);
  for (i = 0; i < WATCH_MOMENTS; i++) free(p->student[i]);
  free(p->text);
  free(p->ends);
  memset(p, 0, sizeof *p);
}

/* whether a moment has the matrices of these heads */
static int is_of(const mhk_stored *x, const watch_probes *p) {
  return x->rank == 3 && x->shape[0] == p->layers && x->shape[1] == p->heads;
}

/* A tensor's bytes, which must be of this many, in memory of their own. */
static unsigned char *take(const mhk_stored *x, size_t bytes) {
  unsigned char *copy = x && x->dtype == MHK_U8 && x->bytes == bytes ? (unsigned char *)malloc(bytes + 1) : NULL;
  if (copy) memcpy(copy, x->data, bytes);
  return copy;
}

/* all of the file that is as it should be; 0 when something is not */
static int take_all(mhk_context *ctx, mhk_file *f, watch_probes *p) {
  const mhk_stored *x = mhk_file_find(f, "teacher"), *ends = mhk_file_find(f, "ends"), *text = mhk_file_find(f, "text");
  int i;
  if (!x || x->dtype != MHK_U8 || x->rank != 3 || x->shape[0] < 1 || x->shape[0] > MHK_MAX_LAYERS || x->shape[1] < 1 ||
      x->shape[1] > 65536)
    return 0;
  if (!ends || !text || ends->dtype != MHK_I32 || ends->rank != 1 || ends->count < 1 || ends->count > WATCH_TOKENS ||
      text->dtype != MHK_U8)
    return 0;
  p->layers = (int)x->shape[0];
  p->heads = (int)x->shape[1];
  p->T = (int)ends->count;
  p->teacher = take(x, bytes_of(p));
  p->text = (char *)take(text, text->bytes);
  p->ends = (int32_t *)malloc((size_t)p->T * sizeof *p->ends);
  if (!p->teacher || !p->text || !p->ends || mhk_file_read_i32(ctx, ends, p->ends) != MHK_OK) return 0;
  for (i = 0; i < p->T; i++)
    if (p->ends[i] < (i ? p->ends[i - 1] : 0) || (size_t)p->ends[i] > text->bytes) return 0;
  for (i = 0; i < WATCH_MOMENTS; i++) {
    x = mhk_file_find(f, watch_moment(i));
    if (x && (!is_of(x, p) || !(p->student[i] = take(x, bytes_of(p))))) return 0;
  }
  return 1;
}

int watch_read_probes(mhk_context *ctx, const char *folder, watch_probes *p) {
  char path[1024];
  mhk_file *f;
  int good;
  memset(p, 0, sizeof *p);
  if (cli_join(path, sizeof path, folder, "probes.safetensors") != CLI_GO) return CLI_FAILED;
  if (!cli_exists(path)) return CLI_GO;
  f = mhk_file_open(ctx, path);
  if (!f) return cli_context_error(ctx);
  good = take_all(ctx, f, p);
  mhk_file_close(f);
  if (good) return CLI_GO;
  watch_free_probes(p);
  return cli_error("%s is damaged: it has not the matrices that a run of mohawk distill writes", path);
}

static void describe(mhk_stored *x, const char *name, mhk_dtype dtype, const void *data, mhk_index count, size_t each) {
  memset(x, 0, sizeof *x);
  x->name = name;
  x->dtype = dtype;
  x->rank = 1;
  x->shape[0] = x->count = count;
  x->data = data;
  x->bytes = (size_t)count * each;
}

static int write_probes(const watch *w) {
  const watch_probes *p = &w->probes;
  mhk_stored list[WATCH_MOMENTS + 3];
  char path[1024];
  int i, n = 0;
  if (cli_join(path, sizeof path, w->folder, "probes.safetensors") != CLI_GO) return CLI_FAILED;
  describe(&list[n++], "ends", MHK_I32, p->ends, p->T, sizeof *p->ends);
  describe(&list[n++], "text", MHK_U8, p->text, p->ends[p->T - 1] > 0 ? p->ends[p->T - 1] : 1, 1);
  for (i = -1; i < WATCH_MOMENTS; i++) {
    mhk_stored *x = &list[n];
    if (i >= 0 && !p->student[i]) continue;
    describe(x, i < 0 ? "teacher" : watch_moment(i), MHK_U8, i < 0 ? p->teacher : p->student[i], (mhk_index)bytes_of(p),
             1);
    x->rank = 3;
    x->shape[0] = p->layers;
    x->shape[1] = p->heads;
    x->shape[2] = (mhk_index)p->T * (p->T + 1) / 2;
    n++;
  }
  return mhk_file_write(w->ctx, path, n, list, 0, NULL) == MHK_OK ? CLI_GO : cli_context_error(w->ctx);
}

/* ---------------------------------------------------------------- matrices */

/* The teacher's residual stream in front of each layer, computed block by block, so that little
   of it is on a tape at once. */
static int compute_streams(watch *w) {
  const mhk_index T = w->probes.T, D = mhk_model_config(w->teacher)->d_model, shape[3] = {1, T, D};
  mhk_tape *t = mhk_tape_create(w->ctx);
  const mhk_tape_mark start = mhk_tape_here(t);
  int l;
  mhk_tape_record(t, 0);
  for (l = 0; l < w->probes.layers && !mhk_failed(w->ctx); l++) {
    mhk_real *to = w->streams + l * T * D;
    const mhk_tensor *x = l == 0
                              ? mhk_forward_embedding(t, w->teacher, w->tokens, 1, T)
                              : mhk_forward_block(t, w->teacher, l - 1, mhk_tensor_new(t, 3, shape, to - T * D), NULL);
    if (x) memcpy(to, mhk_data(x), (size_t)(T * D) * sizeof *to);
    mhk_tape_rewind(t, start);
  }
  mhk_tape_destroy(t);
  return mhk_failed(w->ctx) ? cli_context_error(w->ctx) : CLI_GO;
}

/* The matrices of all layers, on the teacher's residual stream: those of the teacher into
   w->matrices where m is the teacher, otherwise how far they are from those, into w->relative.
   out: as bytes; NULL: not wanted. */
static int compute(watch *w, mhk_model *m, unsigned char *out) {
  const mhk_index T = w->probes.T, D = mhk_model_config(w->teacher)->d_model, square = T * T, shape[3] = {1, T, D};
  mhk_tape *t = mhk_tape_create(w->ctx);
  const mhk_tape_mark start = mhk_tape_here(t);
  int l, h;
  mhk_tape_record(t, 0);
  for (l = 0; l < w->probes.layers && !mhk_failed(w->ctx); l++) {
    mhk_tensor *u = mhk_forward_norm(t, m, l, mhk_tensor_new(t, 3, shape, w->streams + l * T * D)),
               *x = mhk_forward_matrix(t, m, l, u, NULL);
    for (h = 0; x && h < w->probes.heads; h++) {
      const mhk_real *from = mhk_data(x) + (x->shape[1] == w->probes.heads ? h : 0) * square;
      float *teacher = w->matrices + (l * w->probes.heads + h) * square;
      double difference = 0, size = 0;
      mhk_index i, k;
      for (i = 0; i < T; i++)
        for (k = 0; k <= i; k++) {
          const double v = (double)from[i * T + k];
          double d;
          if (m == w->teacher) teacher[i * T + k] = (float)v;
          d = v - (double)teacher[i * T + k];
          difference += d * d;
          size += (double)teacher[i * T + k] * (double)teacher[i * T + k];
          if (out) *out++ = (unsigned char)picture_index(v);
        }
      w->relative[l * w->probes.heads + h] = sqrt(difference / size);
    }
    mhk_tape_rewind(t, start);
  }
  mhk_tape_destroy(t);
  return mhk_failed(w->ctx) ? cli_context_error(w->ctx) : CLI_GO;
}

/* the text that stands where the matrices' tokens are */
static int take_text(watch *w, mhk_tokenizer *k) {
  watch_probes *p = &w->probes;
  size_t n = 0, length;
  int i;
  p->ends = (int32_t *)malloc((size_t)p->T * sizeof *p->ends);
  for (i = 0; i < p->T; i++) {
    length = 0;
    if (k) mhk_token_bytes(k, w->tokens[i], &length);
    n += length;
  }
  p->text = (char *)malloc(n + 1);
  if (!p->text || !p->ends) return cli_error("out of memory");
  p->text[0] = ' '; /* files have no tensors without elements */
  for (n = 0, i = 0; i < p->T; i++) {
    const char *bytes = k ? mhk_token_bytes(k, w->tokens[i], &length) : NULL;
    if (bytes) memcpy(p->text + n, bytes, length), n += length;
    p->ends[i] = (int32_t)n;
  }
  return CLI_GO;
}

/* A moment's line for each head, and at the start and the ends of stages its matrices. */
static int moment(watch *w, int stage, double tokens, int whole, mhk_model *student) {
  unsigned char *bytes = whole ? (unsigned char *)malloc(bytes_of(&w->probes)) : NULL;
  watch_head line;
  if (whole && !bytes) return cli_error("out of memory");
  if (compute(w, student, bytes) != CLI_GO) {
    free(bytes);
    return CLI_FAILED;
  }
  line.stage = stage;
  line.tokens = tokens;
  for (line.layer = 0; line.layer < w->probes.layers; line.layer++)
    for (line.head = 0; line.head < w->probes.heads; line.head++) {
      line.relative = w->relative[line.layer * w->probes.heads + line.head];
      write_head(w->heads, &line);
    }
  fflush(w->heads); /* a checkpoint may follow at any time */
  if (!whole) return CLI_GO;
  free(w->probes.student[stage]);
  w->probes.student[stage] = bytes;
  return write_probes(w);
}

/* whether what the folder has is of these tokens and this teacher */
static int goes_on(const watch *w, const watch_probes *found) {
  const watch_probes *p = &w->probes;
  return found->teacher && found->layers == p->layers && found->heads == p->heads && found->T == p->T &&
         memcmp(found->teacher, p->teacher, bytes_of(p)) == 0;
}

/* What an earlier start of the run left, without what this one will write again. */
static int take_earlier(watch *w, const mhk_progress_info *at, FILE *out) {
  watch_probes found;
  watch_head *lines;
  int i, n;
  if (watch_read_probes(w->ctx, w->folder, &found) != CLI_GO) {
    mhk_clear_error(w->ctx); /* the training needs none of it */
    memset(&found, 0, sizeof found);
  }
  for (i = 0; i < WATCH_MOMENTS && goes_on(w, &found); i++)
    if (i < at->stage || (i == at->stage && at->step == at->steps)) {
      w->probes.student[i] = found.student[i];
      found.student[i] = NULL;
    }
  watch_free_probes(&found);
  if (watch_read_heads(w->folder, at->stage, (double)at->tokens, &lines, &n) != CLI_GO) return CLI_GO;
  for (i = 0; i < n; i++) write_head(out, &lines[i]);
  free(lines);
  return CLI_GO;
}

/* heads.csv opened for more lines */
static int open_heads(watch *w, const mhk_progress_info *at) {
  char path[1024];
  cli_output o;
  if (cli_join(path, sizeof path, w->folder, "heads.csv") != CLI_GO || cli_output_open(&o, path) != CLI_GO)
    return CLI_FAILED;
  fputs(heads_header, o.file);
  if (at->resumed) take_earlier(w, at, o.file);
  if (cli_output_close(&o) != CLI_GO) return CLI_FAILED;
  w->heads = cli_open(path, "a");
  return w->heads ? CLI_GO : cli_error("cannot write %s: %s", path, strerror(errno));
}

watch *watch_open(mhk_context *ctx, const char *folder, mhk_model *teacher, mhk_model *student, mhk_corpus *text,
                  const mhk_progress_info *at) {
  const mhk_config *c = mhk_model_config(teacher);
  watch *w = (watch *)calloc(1, sizeof *w);
  const int32_t *tokens;
  mhk_index n = mhk_corpus_tokens(text, &tokens);
  size_t heads;
  int good;
  if (!w || strlen(folder) >= sizeof w->folder) {
    free(w);
    cli_error("out of memory");
    return NULL;
  }
  strcpy(w->folder, folder);
  w->ctx = ctx;
  w->teacher = teacher;
  w->probes.layers = c->n_layer;
  w->probes.heads = c->n_head;
  w->probes.T = (int)(n < WATCH_TOKENS ? n : WATCH_TOKENS);
  memcpy(w->tokens, tokens, (size_t)w->probes.T * sizeof *tokens);
  heads = (size_t)c->n_layer * (size_t)c->n_head;
  w->matrices = (float *)malloc(heads * (size_t)w->probes.T * (size_t)w->probes.T * sizeof *w->matrices);
  w->relative = (double *)malloc(heads * sizeof *w->relative);
  w->probes.teacher = (unsigned char *)malloc(bytes_of(&w->probes));
  w->streams = (mhk_real *)malloc((size_t)c->n_layer * (size_t)w->probes.T * (size_t)c->d_model * sizeof *w->streams);
  good = w->matrices && w->relative && w->probes.teacher && w->streams;
  if (!good) cli_error("out of memory for the matrices of %.0f heads", (double)heads);
  good = good && compute_streams(w) == CLI_GO && compute(w, teacher, w->probes.teacher) == CLI_GO &&
         take_text(w, mhk_model_tokenizer(teacher)) == CLI_GO && open_heads(w, at) == CLI_GO;
  if (good && !at->resumed) good = moment(w, 0, 0, 1, student) == CLI_GO;
  if (good) return w;
  watch_close(w);
  return NULL;
}

int watch_update(watch *w, const mhk_progress_info *at, mhk_model *student) {
  const mhk_index before = (at->step - 1) * MOMENTS_OF_STAGE / at->steps, now = at->step * MOMENTS_OF_STAGE / at->steps;
  if (now == before && !at->stage_done) return CLI_GO;
  return moment(w, at->stage, (double)at->tokens, at->stage_done, student);
}

void watch_close(watch *w) {
  if (!w) return;
  if (w->heads && (ferror(w->heads) | fclose(w->heads)) != 0)
    cli_warning("%s/heads.csv is incomplete: %s", w->folder, strerror(errno));
  watch_free_probes(&w->probes);
  free(w->streams);
  free(w->matrices);
  free(w->relative);
  free(w);
}
