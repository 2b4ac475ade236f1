/* mohawk matrix: one head's mixing matrix, teacher beside students, drawn; those of all heads as
   numbers. */
#include "picture.h"
#include "run.h"
#include <stdlib.h>
#include <string.h>

typedef struct settings {
  const char *teacher, *prompt, *out, *save;
  cli_files models, text;
  int layer, head, scale, json, encoding;
  mhk_index tokens;
} settings;

static const settings defaults = {.out = "matrix.svg", .tokens = 64, .scale = 4};

static const cli_option options[] = {
    {"teacher", "PATH", CLI_TEXT, CLI_AT(teacher), 1, 0,
     "the teacher (required); students get its hidden states as input, as in stage 1"},
    {"model", "PATH...", CLI_FILES, CLI_AT(models), 0, 0, "students to show next to it"},
    {"layer", "L", CLI_INT, CLI_AT(layer), 0, MHK_MAX_LAYERS - 1, "layer, counted from 0 (default 0)"},
    {"head", "H", CLI_INT, CLI_AT(head), 0, 1e6, "head, counted from 0 (default 0)"},
    {"prompt", "TEXT", CLI_TEXT, CLI_AT(prompt), 0, 0, "the text"},
    {"text", "FILE", CLI_FILES, CLI_AT(text), 0, 0, "or use the start of this file"},
    CLI_ENCODING(CLI_AT(encoding)),
    {"tokens", "N", CLI_COUNT, CLI_AT(tokens), 2, 4096, "maximum number of tokens (default 64)"},
    {"out", "FILE", CLI_TEXT, CLI_AT(out), 0, 0,
     "an .svg with axes and legend, or a .png of the matrices only (default matrix.svg)"},
    {"save", "FILE", CLI_TEXT, CLI_AT(save), 0, 0,
     "also write the matrices of all layers and heads as numbers: an .npy for NumPy, float32 (model, layer, head, "
     "token, source) with the teacher as model 0, or a .csv with a line for each weight"},
    {"scale", "N", CLI_INT, CLI_AT(scale), 1, 64, "pixels per entry in a .png (default 4)"},
    CLI_STRICT,
    {"json", NULL, CLI_FLAG, CLI_AT(json), 0, 0, "print the distances as one JSON object instead of text"},
};

static int check(void *user) {
  const settings *s = (const settings *)user;
  if (!s->prompt && s->text.n == 0) return cli_missing(&command_matrix, "--prompt TEXT or --text FILE");
  if (!cli_ends_with(s->out, ".svg") && !cli_ends_with(s->out, ".png"))
    cli_error("--out %s: the picture is an .svg or a .png, as the name says", s->out);
  else if (s->save && !cli_ends_with(s->save, ".npy") && !cli_ends_with(s->save, ".csv"))
    cli_error("--save %s: the numbers are an .npy or a .csv, as the name says", s->save);
  else
    return CLI_GO;
  return CLI_USAGE;
}

/* the first tokens of the prompt or file; 0 after a message */
static mhk_index read_tokens(mhk_context *ctx, const settings *s, mhk_model *teacher, int32_t *ids) {
  mhk_tokenizer *k = mhk_model_tokenizer(teacher);
  mhk_index n = 0;
  if (s->prompt && k) {
    n = mhk_encode_prompt(k, s->prompt, strlen(s->prompt), ids, s->tokens);
  } else {
    mhk_corpus_desc desc;
    const int32_t *all;
    mhk_corpus *text;
    memset(&desc, 0, sizeof desc);
    desc.n_files = s->text.n;
    desc.files = s->text.path;
    text = run_load_text(ctx, teacher, NULL, &desc, s->encoding);
    if (!text) return 0;
    n = mhk_corpus_tokens(text, &all);
    memcpy(ids, all, (size_t)(n < s->tokens ? n : s->tokens) * sizeof *ids);
  }
  if (n > s->tokens) n = s->tokens;
  if (n < 2) cli_error("the text is too short: at least two tokens are needed");
  return n < 2 ? 0 : n;
}

static int write_picture(const settings *s, const picture_panel *panels, int n, mhk_index T) {
  cli_output o;
  int drawn = 1;
  if (cli_output_open(&o, s->out) != CLI_GO) return CLI_FAILED;
  if (cli_ends_with(s->out, ".png")) {
    drawn = picture_png(o.file, panels, n, T, s->scale);
  } else {
    picture_svg(o.file, panels, n, T);
  }
  if (drawn) return cli_output_close(&o);
  cli_output_drop(&o);
  return cli_error("out of memory for a picture of %lld x %lld tokens", (long long)T, (long long)T);
}

/* ---------------------------------------------------------------- numbers */

/* the matrices of all models, (n,layers,heads,T,T), as --save writes them */
typedef struct numbers {
  float *value;
  int n, layers, heads;
  mhk_index T;
} numbers;

static float *head_of(const numbers *x, int i, int layer, int head) {
  return x->value + ((((mhk_index)i * x->layers + layer) * x->heads) + head) * x->T * x->T;
}

/* Computes those of model i. CLI_GO, or CLI_FAILED after a message. */
static int add_model(mhk_context *ctx, const numbers *x, int i, mhk_model *m, mhk_model *teacher, const int32_t *ids) {
  int l;
  for (l = 0; l < x->layers; l++) {
    float *all = picture_matrices(ctx, m, teacher, l, ids, x->T);
    if (!all) return CLI_FAILED;
    memcpy(head_of(x, i, l, 0), all, (size_t)(x->heads * x->T * x->T) * sizeof *all);
    free(all);
  }
  return CLI_GO;
}

/* The format of numpy.lib.format, version 1.0: a header of text, padded to 64 bytes, and the
   numbers in the order of bytes that it names. */
static void write_npy(FILE *f, const numbers *x) {
  const uint32_t one = 1;
  char text[256];
  int used = snprintf(text, sizeof text,
                      "{'descr': '%cf4', 'fortran_order': False, 'shape': (%d, %d, %d, %lld, %lld), }",
                      *(const char *)&one ? '<' : '>', x->n, x->layers, x->heads, (long long)x->T, (long long)x->T);
  const int length = (10 + used + 1 + 63) / 64 * 64 - 10;
  fprintf(f, "\223NUMPY\1%c%c%c%s%*s\n", 0, length % 256, length / 256, text, length - used - 1, "");
  fwrite(x->value, sizeof *x->value, (size_t)(x->n * x->layers * x->heads * x->T * x->T), f);
}

static void write_csv(FILE *f, const settings *s, const numbers *x) {
  int i, l, h;
  mhk_index t, from;
  fputs("model,layer,head,token,source,weight\n", f);
  for (i = 0; i < x->n; i++)
    for (l = 0; l < x->layers; l++)
      for (h = 0; h < x->heads; h++)
        for (t = 0; t < x->T; t++)
          for (from = 0; from <= t; from++)
            fprintf(f, "\"%s\",%d,%d,%lld,%lld,%.9g\n", i ? s->models.path[i - 1] : "teacher", l, h, (long long)t,
                    (long long)from, (double)head_of(x, i, l, h)[t * x->T + from]);
}

static int write_numbers(const settings *s, const numbers *x) {
  cli_output o;
  if (cli_output_open(&o, s->save) != CLI_GO) return CLI_FAILED;
  if (cli_ends_with(s->save, ".npy")) write_npy(o.file, x);
  else write_csv(o.file, s, x);
  return cli_output_close(&o);
}

/* distances of all heads of model i from the teacher's, by layer */
static void json_heads(cli_json *j, const numbers *x, int i) {
  int l, h;
  for (l = 0; l < x->layers; l++) {
    json_open(j, NULL, '[');
    for (h = 0; h < x->heads; h++)
      json_real(j, NULL, picture_distance(head_of(x, i, l, h), head_of(x, 0, l, h), x->T));
    json_close(j);
  }
}

static void tell_json(const settings *s, const picture_panel *panels, const numbers *all, int n, mhk_index T) {
  cli_json j;
  int i;
  json_start(&j, stdout, 0);
  json_open(&j, NULL, '{');
  json_text(&j, "out", s->out);
  json_count(&j, "tokens", (double)T);
  json_open(&j, "relative_error", '{');
  for (i = 1; i < n; i++) json_real(&j, panels[i].title, picture_distance(panels[i].matrix, panels[0].matrix, T));
  json_close(&j);
  if (s->save) {
    json_text(&j, "save", s->save);
    json_open(&j, "relative_error_of_heads", '{');
    for (i = 1; i < n; i++) {
      json_open(&j, panels[i].title, '[');
      json_heads(&j, all, i);
      json_close(&j);
    }
    json_close(&j);
  }
  json_close(&j);
}

static void tell(const settings *s, const picture_panel *panels, const numbers *all, int n, mhk_index T) {
  int i;
  if (s->json) {
    tell_json(s, panels, all, n, T);
    return;
  }
  for (i = 1; i < n; i++)
    printf("%-40s relative error %.3f\n", panels[i].title, picture_distance(panels[i].matrix, panels[0].matrix, T));
  printf("saved     %s: layer %d, head %d, %lld tokens\n", s->out, s->layer, s->head, (long long)T);
  if (s->save)
    printf("saved     %s: %d models, %d layers, %d heads, %lld tokens\n", s->save, all->n, all->layers, all->heads,
           (long long)T);
}

/* the model i of the picture: 0 is the teacher; NULL after a message */
static mhk_model *load(mhk_context *ctx, const settings *s, mhk_model *teacher, int i) {
  const mhk_config *c = mhk_model_config(teacher), *mine;
  mhk_model *m = i == 0 ? teacher : cli_load(ctx, s->models.path[i - 1]);
  if (!m) {
    cli_context_error(ctx);
    return NULL;
  }
  mine = mhk_model_config(m);
  if (mine->n_layer == c->n_layer && mine->d_model == c->d_model) {
    if (i == 0 || mine->ssm_heads == 0 || mine->ssm_heads == c->n_head) return m;
    cli_error("%s is not a student of this teacher: it has %d heads, not %d", s->models.path[i - 1], mine->ssm_heads,
              c->n_head);
    return NULL;
  }
  cli_error("%s is not a student of this teacher: it has %d layers of width %d, not %d of %d", s->models.path[i - 1],
            mine->n_layer, mine->d_model, c->n_layer, c->d_model);
  return NULL;
}

/* the end of a path, as much of it as fits over a panel */
static const char *short_name(const char *path) {
  const char *slash;
  while (strlen(path) > 26 && (slash = strchr(path, '/')) != NULL && slash[1] != 0) path = slash + 1;
  return path;
}

enum { MOST = 8 };

static int draw(mhk_context *ctx, const settings *s, mhk_model *teacher, const int32_t *ids, mhk_index T) {
  picture_panel panels[MOST];
  float *matrices[MOST];
  numbers all = {NULL, s->models.n + 1, mhk_model_config(teacher)->n_layer, mhk_model_config(teacher)->n_head, T};
  int n, i, code = CLI_FAILED;
  if (s->save) {
    all.value = (float *)malloc((size_t)all.n * (size_t)all.layers * (size_t)(all.heads * T * T) * sizeof *all.value);
    if (!all.value) return cli_error("out of memory for all matrices of %lld tokens: fewer --tokens", (long long)T);
  }
  for (n = 0; n <= s->models.n; n++) {
    mhk_model *m = load(ctx, s, teacher, n);
    if (m && s->save && add_model(ctx, &all, n, m, teacher, ids) != CLI_GO) m = NULL;
    matrices[n] = m ? picture_matrices(ctx, m, teacher, s->layer, ids, T) : NULL;
    if (!matrices[n]) break;
    panels[n].title = n == 0 ? "teacher" : short_name(s->models.path[n - 1]);
    panels[n].matrix = matrices[n] + (mhk_index)s->head * T * T;
  }
  if (n == s->models.n + 1 && write_picture(s, panels, n, T) == CLI_GO &&
      (!s->save || write_numbers(s, &all) == CLI_GO)) {
    tell(s, panels, &all, n, T);
    code = CLI_OK;
  }
  for (i = 0; i < n; i++) free(matrices[i]);
  free(all.value);
  return code;
}

static int matrix(mhk_context *ctx, void *user) {
  const settings *s = (const settings *)user;
  mhk_model *teacher = cli_load(ctx, s->teacher);
  const mhk_config *c = mhk_model_config(teacher);
  int32_t *ids;
  mhk_index T;
  int code = CLI_FAILED;
  if (!teacher) return cli_context_error(ctx);
  if (s->layer >= c->n_layer || s->head >= c->n_head)
    return cli_error("there is no layer %d, head %d: the teacher has layers 0 to %d and heads 0 to %d", s->layer,
                     s->head, c->n_layer - 1, c->n_head - 1);
  if (s->models.n >= MOST)
    return cli_error("%d models are too many for one picture: the limit is %d", s->models.n, MOST - 1);
  ids = (int32_t *)malloc((size_t)s->tokens * sizeof *ids);
  if (!ids) return cli_error("out of memory for %lld tokens", (long long)s->tokens);
  T = read_tokens(ctx, s, teacher, ids);
  if (T > 0) code = draw(ctx, s, teacher, ids, T);
  free(ids);
  return code;
}

const cli_command command_matrix = {
    .name = "matrix",
    .summary = "draw the mixing matrix of one head, teacher next to student",
    .synopsis = "--teacher PATH [--model PATH...] [options]",
    .about = "Draws the mixing matrix of one head: each row is a token, each column a token that it reads. Prints the "
             "distance of each model from the teacher, ||M - M_teacher||_F / ||M_teacher||_F. --save exports the "
             "matrices of all heads.",
    .example = "mohawk matrix --teacher examples/tiny --model build/demo/student --layer 1 --text "
               "examples/story.txt --out matrix.svg",
    CLI_OPTIONS(options),
    CLI_SETTINGS(defaults),
    .check = check,
    .body = matrix,
};
