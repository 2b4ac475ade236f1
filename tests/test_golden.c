/* The header against reference numbers: tests/golden, or any folder with files of those names
   (--dir path). Shapes and settings come from the files. --report prints the worst error of each
   group of tensors. */
#include "test.h"
#include "json.h"

static const char *folder = "tests/golden";
static int report;

#define IS_DOUBLE (sizeof(mhk_real) == 8)
#define TOLERANCE (IS_DOUBLE ? 2e-7 : 2e-5)
#define LOSS_TOLERANCE (IS_DOUBLE ? 1e-6 : 1e-5)
#define WEIGHT_TOLERANCE 1e-4

typedef struct golden {
  mhk_context *ctx;
  mhk_tape *tape;
  mhk_file *file;
  char *text; /* the settings, and what json_parse made of them */
  json *settings;
  struct {
    char name[64], at[160];
    double worst, tolerance;
  } groups[40]; /* tensors reported together, with the worst error */
  int n_groups, group;
  double tolerance; /* of the current group */
} golden;

/* what is compared from now on belongs to this group */
static void group(golden *g, const char *name, double tolerance) {
  for (g->group = 0; g->group < g->n_groups && strcmp(g->groups[g->group].name, name); g->group++) {}
  if (g->group == 40) g->group = 39;
  if (g->group == g->n_groups) {
    snprintf(g->groups[g->group].name, sizeof g->groups[0].name, "%.60s", name);
    g->groups[g->group].tolerance = tolerance;
    g->n_groups++;
  }
  g->tolerance = tolerance;
}

static void note(golden *g, const char *name, double error) {
  if (error < g->groups[g->group].worst) return;
  g->groups[g->group].worst = error;
  snprintf(g->groups[g->group].at, sizeof g->groups[0].at, "%.150s", name);
}

static int open_golden(golden *g, const char *name) {
  char path[1024];
  FILE *f;
  size_t length = 0;
  const char *text;
  memset(g, 0, sizeof *g);
  snprintf(path, sizeof path, "%s/%s.safetensors", folder, name);
  f = fopen(path, "rb");
  if (!f) {
    SKIP("there is no %s", path);
    return 0;
  }
  fclose(f);
  if (report) printf("%s\n", name);
  g->ctx = mhk_create(NULL);
  g->tape = mhk_tape_create(g->ctx);
  g->file = mhk_file_open(g->ctx, path);
  text = mhk_file_metadata(g->file, "case", &length);
  CHECK(text != NULL, "%s has no settings: %s", path, mhk_message(g->ctx));
  if (!text) {
    mhk_destroy(g->ctx);
    return 0;
  }
  g->text = (char *)malloc(length + 1);
  memcpy(g->text, text, length);
  g->text[length] = 0;
  g->settings = json_parse(g->text);
  return 1;
}

static void close_golden(golden *g) {
  int i;
  for (i = 0; report && i < g->n_groups; i++)
    if (g->groups[i].at[0])
      printf("  %-34s worst %.2e, allowed %.0e  %s\n", g->groups[i].name, g->groups[i].worst, g->groups[i].tolerance,
             g->groups[i].at);
  CHECK_OK(g->ctx);
  json_free(g->settings);
  free(g->text);
  mhk_destroy(g->ctx);
}

static const mhk_stored *find(golden *g, const char *prefix, const char *name) {
  char full[512];
  snprintf(full, sizeof full, "%s%s", prefix, name);
  return mhk_file_find(g->file, full);
}

/* the file's numbers; the caller frees them. NULL when there is no such tensor. */
static mhk_real *values(golden *g, const char *prefix, const char *name, mhk_index *count) {
  const mhk_stored *x = find(g, prefix, name);
  mhk_real *v;
  if (!x) return NULL;
  v = (mhk_real *)malloc(sizeof *v * (size_t)(x->count + 1));
  mhk_file_read(g->ctx, x, v);
  if (count) *count = x->count;
  return v;
}

static int32_t *integers(golden *g, const char *name) {
  const mhk_stored *x = mhk_file_find(g->file, name);
  int32_t *v;
  if (!x) return NULL;
  v = (int32_t *)malloc(sizeof *v * (size_t)(x->count + 1));
  mhk_file_read_i32(g->ctx, x, v);
  return v;
}

static mhk_tensor *input(golden *g, const char *name, int grad) {
  const mhk_stored *x = mhk_file_find(g->file, name);
  mhk_real *v = values(g, "", name, NULL);
  mhk_tensor *t = x ? mhk_tensor_new(g->tape, x->rank, x->shape, v) : NULL;
  free(v);
  if (t && grad) mhk_require_grad(g->tape, t);
  return t;
}

/* the sum of y's elements, each times its cotangent: what flows back into y is the cotangent */
static mhk_tensor *weighted(golden *g, mhk_tensor *y, const mhk_real *cotangent) {
  if (!y) return NULL;
  return mhk_sum(g->tape, mhk_mul(g->tape, y, mhk_tensor_new(g->tape, y->rank, y->shape, cotangent)));
}

/* got against the tensor prefix+name of the file; nothing happens when the file has no such
   tensor */
static void compare(golden *g, const char *prefix, const char *name, const mhk_real *got, mhk_index count) {
  char full[512];
  mhk_index n = 0;
  mhk_real *want = values(g, prefix, name, &n);
  if (!want) return;
  snprintf(full, sizeof full, "%s%s", prefix, name);
  CHECK(!mhk_failed(g->ctx), "%s: %s", full, mhk_message(g->ctx));
  CHECK(got != NULL, "%s: nothing was computed", full);
  CHECK(!got || n == count, "%s has %lld numbers, %lld were computed", full, (long long)n, (long long)count);
  if (got && n == count) note(g, full, CHECK_CLOSE(full, got, want, n, g->tolerance));
  free(want);
}

static void compare_tensor(golden *g, const char *prefix, const char *name, const mhk_tensor *x) {
  const mhk_stored *f = find(g, prefix, name);
  int i;
  if (!f) return;
  if (x && x->rank == f->rank)
    for (i = 0; i < f->rank; i++)
      CHECK(x->shape[i] == f->shape[i], "%s%s: axis %d is %lld, not %lld", prefix, name, i, (long long)x->shape[i],
            (long long)f->shape[i]);
  else
    CHECK(x != NULL, "%s%s: nothing was computed: %s", prefix, name, mhk_message(g->ctx));
  compare(g, prefix, name, mhk_data(x), x ? x->count : 0);
}

static void compare_scalar(golden *g, const char *name, double got, double tolerance) {
  mhk_index n;
  mhk_real *want = values(g, "", name, &n);
  if (!want) return;
  CHECK(fabs(got - (double)want[0]) <= tolerance * fabs((double)want[0]), "%s is %.9g, should be %.9g", name, got,
        (double)want[0]);
  note(g, name, fabs(got - (double)want[0]) / fabs((double)want[0]));
  free(want);
}

/* A model of the configuration with weights prefix+name of the file. */
static mhk_model *model(golden *g, const mhk_config *config, const char *prefix) {
  mhk_model *m = mhk_model_create(g->ctx, config, 1);
  size_t length = strlen(prefix);
  int i, used = 0, given = 0;
  CHECK(m != NULL, "no model: %s", mhk_message(g->ctx));
  if (!m) return NULL;
  for (i = 0; i < mhk_file_count(g->file); i++)
    given += strncmp(mhk_file_at(g->file, i)->name, prefix, length) == 0;
  for (i = 0; i < mhk_model_count(m); i++) {
    mhk_tensor *x = mhk_model_at(m, i);
    const mhk_stored *f = find(g, prefix, x->name);
    CHECK(f != NULL, "the file has no %s%s", prefix, x->name);
    if (!f) continue;
    CHECK(f->count == x->count, "%s%s has %lld numbers, the model %lld", prefix, x->name, (long long)f->count,
          (long long)x->count);
    if (f->count == x->count) mhk_file_read(g->ctx, f, mhk_data(x));
    used++;
  }
  CHECK(used == given, "the file gives %d tensors %s*, the model has %d of them", given, prefix, used);
  return m;
}

static void zero_grads(mhk_model *m) {
  int i;
  for (i = 0; i < mhk_model_count(m); i++) mhk_zero_grad(mhk_model_at(m, i));
}

/* Every gradient prefix+name; parameters without one in the file must have none, or zeros. */
static void compare_grads(golden *g, mhk_model *m, const char *prefix, const char *strip) {
  const size_t skip = strlen(strip);
  int i;
  for (i = 0; i < mhk_model_count(m); i++) {
    const mhk_tensor *x = mhk_model_at(m, i);
    const char *name = x->name;
    if (strncmp(name, strip, skip)) continue;
    if (find(g, prefix, name + skip)) {
      CHECK(x->grad != NULL, "%s%s: no gradient came", prefix, name + skip);
      compare(g, prefix, name + skip, x->grad, x->count);
    } else if (x->grad) {
      double sum = 0;
      mhk_index j;
      for (j = 0; j < x->count; j++) sum += fabs((double)x->grad[j]);
      CHECK(sum == 0, "%s%s has a gradient (sum of sizes %g); the loss does not depend on it", prefix, name + skip,
            sum);
    }
  }
}

static int parse_config(golden *g, const char *path, mhk_config *config) {
  const json *c = json_at(g->settings, path);
  CHECK(c != NULL, "the settings have no %s", path);
  if (!c) return 0;
  mhk_config_parse(g->ctx, c->start, (size_t)(c->end - c->start), path, config);
  CHECK_OK(g->ctx);
  return !mhk_failed(g->ctx);
}

/* --------------------------------------------------------------------------------- whole models */

/* logits, residuals, loss and gradients of a whole model */
static void language_model(const char *name) {
  golden g;
  mhk_config config;
  mhk_model *m;
  mhk_tensor *residuals[MHK_MAX_LAYERS + 1], *logits, *loss;
  mhk_forward_desc forward;
  const mhk_stored *shape;
  int32_t *tokens, *labels;
  mhk_index B, T, i;
  int l;
  if (!open_golden(&g, name)) return;
  if (!parse_config(&g, "config", &config) || !(m = model(&g, &config, "param."))) {
    close_golden(&g);
    return;
  }
  shape = mhk_file_find(g.file, "tokens");
  tokens = integers(&g, "tokens");
  B = shape->shape[0];
  T = shape->shape[1];
  labels = (int32_t *)malloc(sizeof *labels * (size_t)(B * T));
  for (i = 0; i < B * T; i++) labels[i] = i % T == T - 1 ? -1 : tokens[i + 1];

  memset(&forward, 0, sizeof forward);
  forward.residuals = residuals;
  memset(residuals, 0, sizeof residuals);
  logits = mhk_forward(g.tape, m, tokens, B, T, &forward);
  loss = mhk_cross_entropy(g.tape, logits, labels);
  group(&g, "logits", TOLERANCE);
  compare_tensor(&g, "", "logits", logits);
  group(&g, "loss", TOLERANCE);
  compare_scalar(&g, "loss", mhk_value(loss), TOLERANCE);
  group(&g, "residual stream", TOLERANCE);
  for (l = 0; l <= config.n_layer; l++) {
    char label[40];
    snprintf(label, sizeof label, "residual.%d", l);
    compare_tensor(&g, "", label, residuals[l]);
  }
  mhk_backward(g.tape, loss);
  group(&g, "gradients", TOLERANCE);
  compare_grads(&g, m, "grad.", "");

  if (mhk_file_find(g.file, "attention_matrix.0")) {
    mhk_tape_record(g.tape, 0);
    for (l = 0; l < config.n_layer; l++) {
      char label[40];
      mhk_tensor *u = mhk_forward_norm(g.tape, m, l, residuals[l]);
      group(&g, "attention matrices", TOLERANCE);
      snprintf(label, sizeof label, "attention_matrix.%d", l);
      compare_tensor(&g, "", label, mhk_forward_matrix(g.tape, m, l, u, NULL));
      group(&g, "mixer outputs", TOLERANCE);
      snprintf(label, sizeof label, "mixer_output.%d", l);
      compare_tensor(&g, "", label, mhk_forward_mixer(g.tape, m, l, u, NULL));
    }
  }
  free(tokens);
  free(labels);
  close_golden(&g);
}

TEST(phi) { language_model("phi"); }
TEST(phi_grouped) { language_model("phi_grouped"); }
TEST(mamba2) { language_model("mamba2"); }

/* --------------------------------------------------------------------------------- the SSD core */

/* SSD in chunks of several lengths: alone, from a state, and over packed documents */
static void ssd(const char *name) {
  static const char *const kinds[] = {"plain.", "state.", "packed."};
  static const mhk_index chunks[] = {0, 1, 7, 16, 64, 1024};
  golden g;
  int32_t *doc;
  int k;
  size_t c;
  if (!open_golden(&g, name)) return;
  doc = integers(&g, "doc");
  for (k = 0; k < 3; k++)
    for (c = 0; c < sizeof chunks / sizeof *chunks; c++) {
      const int with_state = k == 1, packed = k == 2;
      mhk_tensor *x, *log_a, *B, *C, *h0, *final_state = NULL, *y;
      mhk_real *dy, *dh;
      mhk_ssd_desc desc;
      if (!find(&g, kinds[k], "y")) continue;
      mhk_tape_reset(g.tape);
      mhk_tape_record(g.tape, 1);
      x = input(&g, "x", 1);
      log_a = input(&g, "log_a", 1);
      B = input(&g, "B", 1);
      C = input(&g, "C", 1);
      h0 = input(&g, "initial_state", 1);
      memset(&desc, 0, sizeof desc);
      desc.initial_state = with_state ? h0 : NULL;
      desc.final_state = &final_state;
      desc.doc = packed ? doc : NULL;
      desc.chunk = chunks[c];
      y = mhk_ssd(g.tape, x, log_a, B, C, &desc);
      group(&g, packed ? "packed" : with_state ? "from a state" : "plain", TOLERANCE);
      compare_tensor(&g, kinds[k], "y", y);
      compare_tensor(&g, kinds[k], "final_state", final_state);
      dy = values(&g, kinds[k], "cotangent_y", NULL);
      dh = values(&g, kinds[k], "cotangent_final_state", NULL);
      mhk_backward(g.tape, mhk_add(g.tape, weighted(&g, y, dy), weighted(&g, final_state, dh)));
      group(&g, packed ? "packed, gradients" : with_state ? "from a state, gradients" : "plain, gradients", TOLERANCE);
      compare(&g, kinds[k], "grad.x", x ? x->grad : NULL, x ? x->count : 0);
      compare(&g, kinds[k], "grad.log_a", log_a ? log_a->grad : NULL, log_a ? log_a->count : 0);
      compare(&g, kinds[k], "grad.B", B ? B->grad : NULL, B ? B->count : 0);
      compare(&g, kinds[k], "grad.C", C ? C->grad : NULL, C ? C->count : 0);
      if (with_state) compare(&g, kinds[k], "grad.initial_state", h0 ? h0->grad : NULL, h0 ? h0->count : 0);
      free(dy);
      free(dh);
      if (c) continue;
      /* token by token */
      mhk_tape_record(g.tape, 0);
      desc.form = MHK_SSD_RECURRENT;
      y = mhk_ssd(g.tape, x, log_a, B, C, &desc);
      group(&g, packed ? "packed, recurrent" : with_state ? "from a state, recurrent" : "plain, recurrent", TOLERANCE);
      compare_tensor(&g, kinds[k], "y", y);
      compare_tensor(&g, kinds[k], "final_state", final_state);
    }
  mhk_tape_reset(g.tape);
  mhk_tape_record(g.tape, 0);
  group(&g, "matrix", TOLERANCE);
  compare_tensor(&g, "", "matrix",
                 mhk_ssd_matrix(g.tape, input(&g, "log_a", 0), input(&g, "B", 0), input(&g, "C", 0), NULL, NULL));
  free(doc);
  close_golden(&g);
}

TEST(ssd_multihead) { ssd("ssd_multihead"); }
TEST(ssd_grouped) { ssd("ssd_grouped"); }

/* -------------------------------------------------------------------------- the student's mixer */

/* The state-space fields of a student from the settings at path. */
static void mixer_config(golden *g, const char *path, mhk_config *c) {
  const json *j = json_at(g->settings, path);
  const int d_model = (int)json_number(j, "d_model", c->d_model);
  c->arch = MHK_ARCH_PHI_MAMBA;
  c->d_model = d_model;
  c->ssm_heads = (int)json_number(j, "n_v_heads", 0);
  c->ssm_groups = (int)json_number(j, "n_qk_heads", c->ssm_heads);
  c->ssm_head_dim = c->ssm_heads ? (int)(json_number(j, "expand", 1) * d_model + 0.5) / c->ssm_heads : 0;
  c->d_state = (int)json_number(j, "d_state", 0);
  c->d_conv = (int)json_number(j, "d_conv", 4);
  c->chunk_size = (int)json_number(j, "chunk_size", 128);
  c->ssm_rotary_dim = (int)json_number(j, "rotary_dim", 0);
  c->conv_silu = strcmp(json_text(j, "activation"), "silu") == 0 || strcmp(json_text(j, "activation"), "swish") == 0;
  c->conv_bias = 1;
  c->pad_vocab_multiple = 1;
  c->rope_theta = json_number(j, "rope_theta", c->rope_theta > 0 ? c->rope_theta : c->ssm_rotary_dim ? 10000 : 0);
  c->proj_bias = (int)json_number(j, "bias", 0);
  c->gates = (int)json_number(j, "gates", 0);
  c->window = (int)json_number(j, "window", 0);
}

/* The windows of the heads of one layer, where they are not all alike, in room for 64. */
static void mixer_windows(golden *g, const char *path, mhk_config *c, int32_t *room) {
  const json *j = json_at(g->settings, path), *list = json_at(j, "windows"), *kept = json_at(j, "attention_heads"), *x;
  int h;
  if (!list && !kept) return;
  for (h = 0; h < c->ssm_heads && h < 64; h++) room[h] = c->window;
  for (x = list ? list->child : NULL, h = 0; x && h < 64; x = x->next) room[h++] = (int32_t)x->number;
  for (x = kept ? kept->child : NULL; x; x = x->next)
    if (x->number >= 0 && x->number < 64) room[(int)x->number] = MHK_WINDOW_ALL;
  c->window = 0;
  c->windows = room;
}

/* (B,n,D) of u (B,all,D), from token first on */
static mhk_tensor *part(golden *g, const mhk_stored *u, const mhk_real *v, mhk_index first, mhk_index n) {
  mhk_index shape[3], b, all = u->shape[1], D = u->shape[2];
  mhk_tensor *x;
  shape[0] = u->shape[0];
  shape[1] = n;
  shape[2] = D;
  x = mhk_tensor_new(g->tape, 3, shape, NULL);
  for (b = 0; x && b < shape[0]; b++)
    memcpy(mhk_data(x) + b * n * D, v + (b * all + first) * D, sizeof *v * (size_t)(n * D));
  return x;
}

/* prefix grad.u covers prefill and steps; the steps' part is zero */
static void compare_grad_u(golden *g, const char *name, const mhk_stored *f, const mhk_tensor *u) {
  mhk_index b, all = f->shape[1], n = u ? u->shape[1] : 0, D = f->shape[2];
  mhk_real *padded;
  if (!u || !u->grad || !mhk_file_find(g->file, name)) {
    CHECK(!mhk_file_find(g->file, name), "%s: no gradient came", name);
    return;
  }
  padded = (mhk_real *)calloc((size_t)f->count, sizeof *padded);
  for (b = 0; b < f->shape[0]; b++) memcpy(padded + b * all * D, u->grad + b * n * D, sizeof *padded * (size_t)(n * D));
  compare(g, "", name, padded, f->count);
  free(padded);
}

#define SMALL 1e-4 /* the stream of carrier(), beside the epsilon of its norms */

/* a tensor of the mixer of a model with one layer; NULL: it has none */
static mhk_tensor *mixer_tensor(const mhk_model *m, const char *name) {
  char full[128];
  snprintf(full, sizeof full, "backbone.layers.0.mixer.%s", name);
  return mhk_model_find(m, full);
}
/* x (rows,D) in the first columns of to (rows,4 D) */
static void carry_rows(const mhk_tensor *x, mhk_tensor *to) {
  mhk_index i, j;
  for (i = 0; x && to && i < x->shape[0]; i++)
    for (j = 0; j < x->shape[1]; j++) mhk_data(to)[i * to->shape[1] + j] = mhk_data(x)[i * x->shape[1] + j];
}

/* A session runs whole models. One whose only layer is the mixer of m, around it nothing that
   matters: the stream is [u, -u, y, -y], token i has row i of u, norms divide by the square root of
   their epsilon (next to it the variance vanishes) and multiply by it, the MLP is zero, the head
   reads y. */
static mhk_model *carrier(golden *g, const mhk_model *m, const mhk_real *u, mhk_index rows) {
  mhk_config c = *mhk_model_config(m);
  const mhk_index D = c.d_model;
  const char *const plain[] = {"z_bias",           "conv1d.weight", "conv1d.bias",  "D",
                               "window_rest.bias", "state_gain",    "in_proj.bias", "window_scale"},
             *const wide[] = {"in_proj.weight", "gates.weight", "window_rest.weight"};
  mhk_model *n;
  mhk_real *out, *embedding, *head;
  const mhk_real *out1;
  mhk_tensor *bias;
  mhk_index i, j, E;
  size_t k;
  c.d_model = (int)(4 * D);
  c.d_mlp = 1;
  c.norm_eps = 0.999;
  c.vocab_size = (int)(rows > D ? rows : D);
  n = mhk_model_create(g->ctx, &c, 1);
  if (!n) return NULL;
  for (i = 0; i < mhk_model_count(n); i++) {
    mhk_tensor *x = mhk_model_at(n, (int)i);
    for (j = 0; j < x->count; j++)
      mhk_data(x)[j] = strstr(x->name, "norm.weight") ? (mhk_real)(sqrt(c.norm_eps) / SMALL) : 0;
  }
  for (k = 0; k < sizeof plain / sizeof *plain; k++) {
    const mhk_tensor *x = mixer_tensor(m, plain[k]);
    if (x) memcpy(mhk_data(mixer_tensor(n, plain[k])), mhk_data(x), sizeof *u * (size_t)x->count);
  }
  for (k = 0; k < sizeof wide / sizeof *wide; k++) carry_rows(mixer_tensor(m, wide[k]), mixer_tensor(n, wide[k]));
  E = mixer_tensor(m, "out_proj.weight")->shape[1];
  out = mhk_data(mixer_tensor(n, "out_proj.weight"));
  out1 = mhk_data(mixer_tensor(m, "out_proj.weight"));
  bias = mixer_tensor(n, "out_proj.bias");
  embedding = mhk_data(mhk_model_at(n, 0));
  head = mhk_data(mhk_model_find(n, "lm_head.weight"));
  CHECK(strstr(mhk_model_at(n, 0)->name, "embedding") && head && out, "the carrier has other names");
  for (i = 0; i < D; i++) {
    for (j = 0; j < E; j++) {
      out[(2 * D + i) * E + j] = (mhk_real)SMALL * out1[i * E + j];
      out[(3 * D + i) * E + j] = -(mhk_real)SMALL * out1[i * E + j];
    }
    if (!bias) continue;
    mhk_data(bias)[2 * D + i] = (mhk_real)SMALL * mhk_data(mixer_tensor(m, "out_proj.bias"))[i];
    mhk_data(bias)[3 * D + i] = -mhk_data(bias)[2 * D + i];
  }
  for (i = 0; i < rows; i++)
    for (j = 0; j < D; j++) {
      embedding[i * 4 * D + j] = (mhk_real)SMALL * u[i * D + j];
      embedding[i * 4 * D + D + j] = -(mhk_real)SMALL * u[i * D + j];
    }
  for (i = 0; i < D; i++) head[i * 4 * D + 2 * D + i] = 1;
  return n;
}

typedef struct carried { mhk_real *y; mhk_index rows, D, first; } carried;
static void carry(void *user, mhk_index sequence, mhk_index index, const mhk_real *logits) {
  const carried *c = (const carried *)user;
  memcpy(c->y + ((sequence * c->rows) + c->first + index) * c->D, logits, sizeof *logits * (size_t)c->D);
}

/* the states of all sequences, the convolution's as (B,channels,d_conv-1) */
static void compare_states(golden *g, mhk_session *s, const mhk_config *c, mhk_index B, const char *conv_name,
                           const char *ssm_name) {
  const mhk_index channels = (mhk_index)c->ssm_heads * c->ssm_head_dim + 2 * (mhk_index)c->ssm_groups * c->d_state,
                  W = c->d_conv - 1;
  const mhk_index each = (mhk_index)c->ssm_head_dim * c->d_state, H = c->ssm_heads;
  mhk_real *conv = (mhk_real *)calloc((size_t)(B * channels * W), sizeof *conv),
           *ssm = (mhk_real *)calloc((size_t)(B * H * each), sizeof *ssm),
           *want = values(g, "", ssm_name, NULL);
  mhk_index b, i, w, states;
  for (b = 0; b < B && mhk_session_conv(s, b, 0); b++) {
    for (i = 0; i < channels; i++)
      for (w = 0; w < W; w++) conv[(b * channels + i) * W + w] = mhk_session_conv(s, b, 0)[w * channels + i];
    for (i = states = 0; want && i < H; i++) { /* kept heads have none */
      const int kept = c->windows && c->windows[i] == MHK_WINDOW_ALL;
      const mhk_real *from = kept ? want + (b * H + i) * each : mhk_session_ssm(s, b, 0) + states * each;
      memcpy(ssm + (b * H + i) * each, from, sizeof *ssm * (size_t)each);
      states += !kept;
    }
  }
  compare(g, "", conv_name, conv, B * channels * W);
  compare(g, "", ssm_name, ssm, B * H * each);
  free(conv);
  free(ssm);
  free(want);
}

/* the mixer in a session: a prefill, then single steps */
static void session_of_mixer(golden *g, const mhk_model *m, const mhk_real *u, mhk_index B, mhk_index prefill,
                             mhk_index steps) {
  const mhk_index T = prefill + steps, D = mhk_model_config(m)->d_model;
  const int32_t *at[16];
  mhk_index lengths[16], b, i;
  int32_t *tokens = (int32_t *)malloc(sizeof *tokens * (size_t)(B * T));
  mhk_real *y = (mhk_real *)calloc((size_t)(B * T * D), sizeof *y),
           *stepped = (mhk_real *)calloc((size_t)(B * steps * D), sizeof *y);
  mhk_session_desc d;
  mhk_session *s;
  carried c;
  mhk_feed_desc feed;
  memset(&d, 0, sizeof d);
  d.batch = B;
  s = mhk_session_create(carrier(g, m, u, B * T), &d);
  CHECK(s != NULL && B <= 16, "no session: %s", mhk_message(g->ctx));
  for (i = 0; i < B * T; i++) tokens[i] = (int32_t)i;
  for (b = 0; b < B; b++) {
    at[b] = tokens + b * T;
    lengths[b] = prefill;
  }
  c.y = y;
  c.D = D;
  c.rows = prefill;
  c.first = 0;
  memset(&feed, 0, sizeof feed);
  feed.tokens = at;
  feed.lengths = lengths;
  feed.take = carry;
  feed.user = &c;
  mhk_feed_batch(s, &feed);
  group(g, "session, prefill", TOLERANCE);
  compare(g, "", "output", y, B * prefill * D);
  group(g, "session, states after the prefill", TOLERANCE);
  compare_states(g, s, mhk_model_config(m), B, "conv_state", "ssm_state");
  c.y = stepped;
  c.rows = steps;
  for (i = 0; i < steps; i++) {
    for (b = 0; b < B; b++) {
      at[b] = tokens + b * T + prefill + i;
      lengths[b] = 1;
    }
    c.first = i;
    mhk_feed_batch(s, &feed);
  }
  group(g, "session, single steps", TOLERANCE);
  compare(g, "", "step_output", stepped, B * steps * D);
  compare_states(g, s, mhk_model_config(m), B, "step_conv_state", "step_ssm_state");
  CHECK_OK(g->ctx);
  free(tokens);
  free(y);
  free(stepped);
}

/* one pass over the tokens before the steps, as output or matrix: what it gives, all gradients */
static void forward_and_back(golden *g, mhk_model *m, const mhk_stored *fu, const mhk_real *v, mhk_index prefill,
                             const char *what) {
  char name[64];
  mhk_tensor *u, *y;
  mhk_real *cotangent;
  zero_grads(m);
  mhk_tape_reset(g->tape);
  u = mhk_require_grad(g->tape, part(g, fu, v, 0, prefill));
  y = strcmp(what, "matrix") ? mhk_forward_mixer(g->tape, m, 0, u, NULL) : mhk_forward_matrix(g->tape, m, 0, u, NULL);
  group(g, what, TOLERANCE);
  compare_tensor(g, "", what, y);
  snprintf(name, sizeof name, "cotangent_%s", what);
  cotangent = values(g, "", name, NULL);
  mhk_backward_from(g->tape, y, cotangent);
  snprintf(name, sizeof name, "%s, gradients", what);
  group(g, name, TOLERANCE);
  snprintf(name, sizeof name, "%s.grad.", what);
  compare_grads(g, m, name, "backbone.layers.0.mixer.");
  snprintf(name, sizeof name, "%s.grad.u", what);
  compare_grad_u(g, name, fu, u);
  free(cotangent);
}

/* the loss of stage 1 against a matrix of the teacher, and its gradients */
static void matrix_to_teacher(golden *g, mhk_model *m, const mhk_stored *fu, const mhk_real *v, mhk_index prefill) {
  const mhk_stored *f = find(g, "", "teacher_matrix");
  mhk_real *target = values(g, "", "teacher_matrix", NULL);
  mhk_tensor *loss;
  zero_grads(m);
  mhk_tape_reset(g->tape);
  loss = mhk_matrix_distance(g->tape, mhk_forward_matrix(g->tape, m, 0, part(g, fu, v, 0, prefill), NULL),
                             mhk_tensor_new(g->tape, f->rank, f->shape, target));
  mhk_backward(g->tape, loss);
  group(g, "stage 1", TOLERANCE);
  compare_tensor(g, "", "stage1_loss", loss);
  group(g, "stage 1, gradients", TOLERANCE);
  compare_grads(g, m, "stage1.grad.", "backbone.layers.0.mixer.");
  free(target);
}

/* The mixer on tokens, as a matrix, in the loss of stage 1, over packed documents, and step by step
   in a session. */
static void discrete_mamba2(const char *name) {
  golden g;
  mhk_config config;
  mhk_model *m;
  const mhk_stored *fu;
  mhk_real *v;
  mhk_forward_desc forward;
  int32_t *doc, windows[64];
  mhk_index B, prefill, steps;
  int i;
  if (!open_golden(&g, name)) return;
  memset(&config, 0, sizeof config);
  mixer_config(&g, "config", &config);
  mixer_windows(&g, "config", &config, windows);
  config.n_layer = 1;
  config.vocab_size = 8;
  config.d_mlp = 4 * config.d_model;
  config.norm_eps = 1e-5;
  config.mixer[0] = MHK_MIXER_DISCRETE_MAMBA2;
  m = mhk_model_create(g.ctx, &config, 1);
  CHECK(m != NULL, "no model: %s", mhk_message(g.ctx));
  fu = mhk_file_find(g.file, "u");
  if (!m || !fu) {
    close_golden(&g);
    return;
  }
  for (i = 0; i < mhk_model_count(m); i++) {
    static const char mixer[] = "backbone.layers.0.mixer.";
    mhk_tensor *x = mhk_model_at(m, i);
    const mhk_stored *f = strncmp(x->name, mixer, sizeof mixer - 1) ? NULL
                                                                    : find(&g, "param.", x->name + sizeof mixer - 1);
    CHECK(strncmp(x->name, mixer, sizeof mixer - 1) || (f && x->count == f->count), "no param. fits %s", x->name);
    if (f && x->count == f->count) mhk_file_read(g.ctx, f, mhk_data(x));
  }
  v = values(&g, "", "u", NULL);
  B = fu->shape[0];
  prefill = (mhk_index)json_number(g.settings, "prefill", 0);
  steps = (mhk_index)json_number(g.settings, "steps", 0);
  CHECK(prefill + steps == fu->shape[1], "u holds %lld tokens, prefill and steps are %lld", (long long)fu->shape[1],
        (long long)(prefill + steps));

  forward_and_back(&g, m, fu, v, prefill, "output");
  forward_and_back(&g, m, fu, v, prefill, "matrix");
  if (find(&g, "", "teacher_matrix")) matrix_to_teacher(&g, m, fu, v, prefill);

  mhk_tape_reset(g.tape);
  mhk_tape_record(g.tape, 0);
  doc = integers(&g, "doc");
  if (doc) {
    memset(&forward, 0, sizeof forward);
    forward.doc = doc;
    group(&g, "packed output", TOLERANCE);
    compare_tensor(&g, "", "packed_output", mhk_forward_mixer(g.tape, m, 0, part(&g, fu, v, 0, prefill), &forward));
  }

  session_of_mixer(&g, m, v, B, prefill, steps);
  free(doc);
  free(v);
  close_golden(&g);
}

TEST(discrete_mamba2) { discrete_mamba2("discrete_mamba2"); }
TEST(discrete_mamba2_grouped) { discrete_mamba2("discrete_mamba2_grouped"); }
TEST(discrete_mamba2_rotary) { discrete_mamba2("discrete_mamba2_rotary"); }
TEST(discrete_mamba2_bias) { discrete_mamba2("discrete_mamba2_bias"); }
TEST(discrete_mamba2_gates) { discrete_mamba2("discrete_mamba2_gates"); }
TEST(discrete_mamba2_window) { discrete_mamba2("discrete_mamba2_window"); }
TEST(discrete_mamba2_heads) { discrete_mamba2("discrete_mamba2_heads"); }
TEST(discrete_mamba2_windows) { discrete_mamba2("discrete_mamba2_windows"); }

/* --------------------------------------------------------------------------------------- stages */

/* The student's configuration: the teacher's, with the mixers of the settings. */
static void student_config(golden *g, const mhk_config *teacher, mhk_config *c) {
  const json *keep = json_at(g->settings, "attention_layers"), *j;
  int l;
  *c = *teacher;
  mixer_config(g, "mixer", c);
  c->tie_embeddings = 0;
  for (l = 0; l < c->n_layer; l++) c->mixer[l] = MHK_MIXER_DISCRETE_MAMBA2;
  for (j = keep ? keep->child : NULL; j; j = j->next)
    if (j->number >= 0 && j->number < c->n_layer) c->mixer[(int)j->number] = MHK_MIXER_ATTENTION;
  if (!keep || !keep->n) { /* no attention: its fields do not apply */
    c->n_head = c->n_kv_head = c->head_dim = c->rotary_dim = c->qk_layernorm = 0;
    if (!c->ssm_rotary_dim) c->rope_theta = 0;
  }
}

static int teacher_and_student(golden *g, mhk_model **teacher, mhk_model **student, mhk_config *config) {
  mhk_config teacher_config;
  *teacher = *student = NULL;
  if (!parse_config(g, "teacher", &teacher_config)) return 0;
  student_config(g, &teacher_config, config);
  *teacher = model(g, &teacher_config, "teacher.");
  *student = *teacher ? model(g, config, "student.") : NULL;
  return *student != NULL;
}

/* the losses of the three stages and their gradients */
static void stages(const char *name) {
  static const char *const kinds[] = {"stage1", "stage2", "stage3", "stage3.temperature2", "stage3.own_stream"};
  golden g;
  mhk_config config;
  mhk_model *teacher, *student;
  const mhk_stored *shape;
  int32_t *tokens;
  mhk_index B, T;
  int k, l;
  if (!open_golden(&g, name)) return;
  if (!teacher_and_student(&g, &teacher, &student, &config)) {
    close_golden(&g);
    return;
  }
  shape = mhk_file_find(g.file, "tokens");
  tokens = integers(&g, "tokens");
  B = shape->shape[0];
  T = shape->shape[1];
  mhk_tape_record(g.tape, 0);
  group(&g, "student's logits", TOLERANCE);
  compare_tensor(&g, "", "logits", mhk_forward(g.tape, student, tokens, B, T, NULL));
  mhk_tape_record(g.tape, 1);
  for (k = 0; k < 5; k++) {
    char label[80];
    double layers[MHK_MAX_LAYERS], loss;
    mhk_stage_desc desc;
    const int stage = k < 2 ? k + 1 : 3;
    memset(&desc, 0, sizeof desc);
    memset(layers, 0, sizeof layers);
    desc.own_stream = k == 4 ? json_number(g.settings, "own_stream", 0.03) : -1;
    desc.temperature = k == 3 ? 2 : 1;
    snprintf(label, sizeof label, "%s.loss", kinds[k]);
    if (!mhk_file_find(g.file, label)) continue;
    mhk_tape_reset(g.tape);
    zero_grads(student);
    const mhk_stage_loss_desc asked = {student, teacher, stage, tokens, B, T, NULL, &desc, layers, NULL};
    loss = mhk_stage_loss(g.tape, &asked);
    group(&g, kinds[k], TOLERANCE);
    CHECK_OK(g.ctx);
    compare_scalar(&g, label, loss, TOLERANCE);
    snprintf(label, sizeof label, "%s.loss_per_layer", kinds[k]);
    if (mhk_file_find(g.file, label)) {
      const mhk_stored *f = mhk_file_find(g.file, label);
      mhk_real got[MHK_MAX_LAYERS];
      mhk_index n = 0;
      for (l = 0; l < config.n_layer; l++) /* the file leaves out layers that keep their attention */
        if (f->count == config.n_layer || config.mixer[l] != MHK_MIXER_ATTENTION) got[n++] = (mhk_real)layers[l];
      compare(&g, "", label, got, n);
    }
    snprintf(label, sizeof label, "%s, gradients", kinds[k]);
    group(&g, label, TOLERANCE);
    snprintf(label, sizeof label, "%s.grad.", kinds[k]);
    compare_grads(&g, student, label, "");
    /* a frozen model gets none; this one was made trainable by its creation */
    for (l = 0; l < mhk_model_count(teacher); l++) {
      const mhk_tensor *x = mhk_model_at(teacher, l);
      double sum = 0;
      mhk_index i;
      for (i = 0; x->grad && i < x->count; i++) sum += fabs((double)x->grad[i]);
      CHECK(sum == 0, "the teacher's %s got a gradient in %s", x->name, kinds[k]);
    }
  }
  free(tokens);
  close_golden(&g);
}

TEST(stages) { stages("stages"); }
TEST(stages_hybrid) { stages("stages_hybrid"); }

/* ------------------------------------------------------------------------------------- training */

/* a trainer follows the file's learning rates: its own schedule, on a small run */
static void check_schedule(golden *g, mhk_model *teacher, int stage, mhk_index steps) {
  static const int32_t tokens[64];
  mhk_distill_desc d;
  mhk_trainer *trainer;
  mhk_index s;
  char path[60];
  const json *l;
  snprintf(path, sizeof path, "lr.stage%d", stage);
  l = json_at(g->settings, path);
  memset(&d, 0, sizeof d);
  d.teacher = teacher;
  d.corpus = mhk_corpus_from_tokens(g->ctx, tokens, 64, -1);
  d.batch = 1;
  d.length = 4;
  d.stages[stage - 1].tokens = d.length * steps;
  d.stages[stage - 1].lr = json_number(l, "top", 0);
  d.stages[stage - 1].lr_low = json_number(l, "low", 0);
  d.stages[stage - 1].warmup = json_number(l, "warmup_steps", 0) / (double)steps;
  d.stages[stage - 1].decay = json_number(l, "decay_steps", 0) / (double)steps;
  trainer = mhk_distill(g->ctx, &d);
  for (s = 0; s < steps && mhk_train_step(trainer); s++) {
    double want, own = mhk_progress(trainer)->lr;
    snprintf(path, sizeof path, "lr.stage%d.values.%d", stage, (int)s);
    want = json_number(g->settings, path, -1);
    CHECK(fabs(own - want) <= 1e-12 + 1e-9 * want, "learning rate of step %d in stage %d: %.12g, should be %.12g",
          (int)s, stage, own, want);
  }
  CHECK(s == steps, "%d updates instead of %d: %s", (int)s, (int)steps, mhk_message(g->ctx));
  mhk_trainer_destroy(trainer);
  mhk_corpus_destroy(d.corpus);
}

/* the description of a run, from the settings in the file */
static mhk_distill_desc run_desc(golden *g, mhk_model *teacher, mhk_model *student) {
  const double decay = json_number(g->settings, "optimizer.weight_decay", 0.1),
               clip = json_number(g->settings, "clip.max_norm", 1);
  mhk_distill_desc desc;
  int32_t *tokens = integers(g, "stage3.tokens");
  const mhk_stored *f = mhk_file_find(g->file, "stage3.tokens");
  int stage;
  memset(&desc, 0, sizeof desc);
  desc.teacher = teacher;
  desc.student = student;
  desc.batch = (mhk_index)json_number(g->settings, "batch", 1);
  desc.length = (mhk_index)json_number(g->settings, "length", 32);
  desc.beta1 = json_number(g->settings, "optimizer.beta1", 0.9);
  desc.beta2 = json_number(g->settings, "optimizer.beta2", 0.95);
  desc.eps = json_number(g->settings, "optimizer.eps", 1e-8);
  desc.decays = strstr(json_text(g->settings, "optimizer.decay"), "matri") ? MHK_DECAY_MATRICES : MHK_DECAY_ALL;
  for (stage = 0; stage < 3; stage++) {
    char path[32];
    snprintf(path, sizeof path, "steps.%d", stage);
    desc.stages[stage].tokens = (mhk_index)json_number(g->settings, path, 0) * desc.batch * desc.length;
    snprintf(path, sizeof path, "lr.stage%d.top", stage + 1);
    desc.stages[stage].lr = json_number(g->settings, path, 1e-3);
    desc.stages[stage].weight_decay = decay > 0 ? decay : -1;
    desc.stages[stage].clip = (int)json_number(g->settings, "clip.stage", 3) == stage + 1 ? clip : -1;
    desc.stages[stage].own_stream = -1;
    desc.stages[stage].temperature = 1;
  }
  if (tokens && f) desc.corpus = mhk_corpus_from_tokens(g->ctx, tokens, f->count, -1);
  free(tokens);
  return desc;
}

/* the learning rate of a step in the file */
static double run_rate(golden *g, int stage, int step) {
  char path[60];
  double rate;
  snprintf(path, sizeof path, "lr.stage%d.values.%d", stage, step);
  rate = json_number(g->settings, path, -1);
  CHECK(rate >= 0, "the settings have no learning rate for step %d of stage %d", step, stage);
  return rate;
}

/* all updates of a stage, each with the loss that the file has */
static void run_stage(golden *g, mhk_trainer *trainer, int stage) {
  char label[40];
  const mhk_stored *f;
  int32_t *tokens;
  mhk_real *losses;
  mhk_index s;
  snprintf(label, sizeof label, "stage%d.tokens", stage);
  f = mhk_file_find(g->file, label);
  tokens = integers(g, label);
  snprintf(label, sizeof label, "stage%d.loss", stage);
  losses = values(g, "", label, NULL);
  if (f && losses) group(g, label, LOSS_TOLERANCE);
  for (s = 0; f && losses && s < f->shape[0]; s++) {
    const double rate = run_rate(g, stage, (int)s), want = (double)losses[s],
                 loss = mhk_train_on(trainer, stage, tokens + s * f->shape[1] * f->shape[2], f->shape[1], f->shape[2],
                                     NULL, rate);
    char path[60];
    snprintf(path, sizeof path, "stage %d, step %d", stage, (int)s);
    CHECK(fabs(loss - want) <= LOSS_TOLERANCE * fabs(want), "%s: the loss is %.9g, should be %.9g", path, loss, want);
    note(g, path, fabs(loss - want) / fabs(want));
  }
  free(tokens);
  free(losses);
}

/* the student's weights against the file's, by the norm of their difference */
static void compare_final(golden *g, const mhk_model *student, int skip_keys) {
  int i;
  group(g, "final weights (norm)", WEIGHT_TOLERANCE);
  for (i = 0; i < mhk_model_count(student); i++) {
    const mhk_tensor *x = mhk_model_at(student, i);
    mhk_index n = 0, k;
    mhk_real *want = values(g, "final.", x->name, &n);
    double off = 0, size = 0;
    CHECK(want && n == x->count, "the file has no final.%s of the right size", x->name);
    if (!want || (skip_keys && strstr(x->name, "k_proj.bias"))) {
      free(want);
      continue;
    }
    for (k = 0; k < n; k++) {
      const double d = (double)mhk_data(x)[k] - (double)want[k];
      off += d * d;
      size += (double)want[k] * (double)want[k];
    }
    CHECK(sqrt(off) <= WEIGHT_TOLERANCE * sqrt(size), "final.%s is off by %.2e of its norm", x->name, sqrt(off / size));
    note(g, x->name, size > 0 ? sqrt(off / size) : sqrt(off));
    free(want);
  }
}

/* a whole distillation: the loss of each update, learning rates, and the weights at the end */
static void run(const char *name) {
  golden g;
  mhk_config config;
  mhk_model *teacher, *student;
  mhk_distill_desc desc;
  mhk_trainer *trainer;
  int stage;
  if (!open_golden(&g, name)) return;
  if (!teacher_and_student(&g, &teacher, &student, &config)) {
    close_golden(&g);
    return;
  }
  desc = run_desc(&g, teacher, student);
  trainer = mhk_distill(g.ctx, &desc);
  CHECK(trainer != NULL, "no trainer: %s", mhk_message(g.ctx));
  for (stage = 1; stage <= 3 && trainer; stage++) {
    check_schedule(&g, teacher, stage, (mhk_index)(desc.stages[stage - 1].tokens / (desc.batch * desc.length)));
    run_stage(&g, trainer, stage);
  }
  compare_final(&g, student, strstr(name, "hybrid") != NULL);
  close_golden(&g);
}

TEST(run) { run("run"); }
TEST(run_hybrid) { run("run_hybrid"); }

int main(int argc, char **argv) {
  int i;
  test_begin(argc, argv);
  for (i = 1; i < argc; i++)
    if (!strcmp(argv[i], "--dir") && i + 1 < argc)
      folder = argv[++i];
    else if (!strcmp(argv[i], "--report"))
      report = 1;
  RUN(phi);
  RUN(phi_grouped);
  RUN(mamba2);
  RUN(ssd_multihead);
  RUN(ssd_grouped);
  RUN(discrete_mamba2);
  RUN(discrete_mamba2_grouped);
  RUN(discrete_mamba2_rotary);
  RUN(discrete_mamba2_bias);
  RUN(discrete_mamba2_gates);
  RUN(discrete_mamba2_window);
  RUN(discrete_mamba2_heads);
  RUN(discrete_mamba2_windows);
  RUN(stages);
  RUN(stages_hybrid);
  RUN(run);
  RUN(run_hybrid);
  if (!test_state.list && !test_state.filter && test_state.skipped == 12) {
    printf("no reference numbers in %s\n", folder);
    test_state.failed++;
  }
  return test_end();
}
