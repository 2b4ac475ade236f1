/* dryrun.c: see dryrun.h

   Time is a straight line in the number of layers: what happens once (embedding, head) and what
   each layer adds. Two or three short runs with one and two layers of the teacher find both. Memory
   is what two layers touch, and weights, gradients and moments of the others, whose sizes are
   known. A small teacher is measured as a whole, by the blocks that it allocates. */
#include "dryrun.h"
#include <stdlib.h>
#include <string.h>

enum { UPDATES = 3 };
#define WHOLE 1e9 /* bytes of a run that is measured as a whole */

/* which layers of the teacher take part, and which of them keep attention */
typedef struct part {
  int layers[MHK_MAX_LAYERS], keep[MHK_MAX_LAYERS];
  int n, n_keep;
} part;

static int layer_of(const char *name) {
  const char *at = strstr(name, ".layers.");
  return at ? atoi(at + 8) : -1;
}

/* a teacher with the first n layers of this one, in their memory */
static mhk_model *shallow(mhk_context *ctx, mhk_model *teacher, int n, const char *folder) {
  mhk_config c = *mhk_model_config(teacher);
  mhk_load_desc desc;
  mhk_stored *list = (mhk_stored *)calloc((size_t)mhk_model_count(teacher), sizeof *list);
  char path[1024], *json;
  size_t length;
  int i, k = 0;
  memset(&desc, 0, sizeof desc);
  c.n_layer = n;
  length = mhk_config_format(&c, NULL, 0);
  json = (char *)malloc(length + 1);
  if (!list || !json || cli_join(path, sizeof path, folder, "config.json") != CLI_GO) {
    free(list), free(json);
    return NULL;
  }
  mhk_config_format(&c, json, length + 1);
  for (i = 0; i < mhk_model_count(teacher); i++) {
    const mhk_tensor *x = mhk_model_at(teacher, i);
    if (layer_of(x->name) >= n) continue;
    list[k].name = x->name;
    list[k].dtype = x->dtype;
    list[k].rank = x->rank;
    memcpy(list[k].shape, x->shape, sizeof list[k].shape);
    list[k].count = x->count;
    list[k].data = x->data;
    list[k++].bytes = mhk_tensor_bytes(x);
  }
  desc.weights = mhk_file_of(ctx, "the teacher", k, list, NULL, NULL);
  mhk_file_write_bytes(ctx, path, json, length);
  teacher = mhk_load_with(ctx, folder, &desc);
  remove(path);
  free(list), free(json);
  return teacher;
}

/* the run on these layers, with a few updates of each stage, on tokens that mean nothing */
static mhk_distill_desc excerpt(const mhk_distill_desc *run, const part *p, int32_t *windows) {
  mhk_distill_desc d = mhk_distill_defaults(run);
  const int heads = mhk_model_config(run->teacher)->n_head;
  int i;
  for (i = 0; i < 3; i++)
    if (d.stages[i].tokens > 0) d.stages[i].tokens = UPDATES * d.update_tokens;
  for (i = 0; i < p->n && d.student_desc.windows; i++)
    memcpy(windows + i * heads, run->student_desc.windows + p->layers[i] * heads, (size_t)heads * sizeof *windows);
  if (d.student_desc.windows) d.student_desc.windows = windows;
  d.student_desc.keep_attention = p->keep;
  d.student_desc.n_keep_attention = p->n_keep;
  d.out = NULL;
  d.corpus = NULL;
  return d;
}

/* What the run has by the end of a stage beyond the part of it that was measured. */
static double unmeasured(mhk_distill_desc run, mhk_distill_desc measured, int stage) {
  const int all = run.stages[2].tokens > 0 && run.stages[2].trains != MHK_TRAIN_MIXERS; /* nothing is shared */
  int i;
  for (i = stage; i < 3 && !all; i++) run.stages[i].tokens = measured.stages[i].tokens = 0;
  return mhk_distill_bytes(&run) - mhk_distill_bytes(&measured);
}

/* The shortest of a few equal updates counts for all of them: the first one allocates. */
static void step_through(mhk_context *ctx, mhk_trainer *tr, int whole, const double before[2], dry_cost cost[3]) {
  double start = cli_clock(), least = 0;
  int done = 0;
  while (mhk_train_step(tr)) {
    const double now = cli_clock();
    dry_cost *at = &cost[mhk_progress(tr)->stage - 1];
    if (done % UPDATES == 0 || now - start < least) least = now - start;
    if (++done % UPDATES == 0) at->seconds += least * (double)at->updates; /* layer by layer, there are more of these */
    at->bytes = whole ? (double)mhk_memory_peak(ctx) - before[0] : cli_memory_touched() - before[1];
    start = cli_clock();
  }
}

static int measure(const mhk_distill_desc *run, int threads, const char *folder, const part *p, dry_cost cost[3]) {
  mhk_context *ctx = cli_context(threads);
  const mhk_config *c = mhk_model_config(run->teacher);
  int32_t *windows = (int32_t *)calloc((size_t)p->n * (size_t)c->n_head, sizeof *windows), *tokens;
  mhk_distill_desc d = excerpt(run, p, windows);
  const mhk_index n = d.length * d.batch;
  mhk_index i;
  int code = CLI_FAILED;
  memset(cost, 0, 3 * sizeof *cost);
  for (i = 0; i < 3; i++) cost[i].updates = run->stages[i].tokens / d.update_tokens;
  tokens = (int32_t *)calloc((size_t)n, sizeof *tokens);
  for (i = 0; tokens && i < n; i++) tokens[i] = (int32_t)(i * 7919 % c->vocab_size);
  d.teacher = shallow(ctx, run->teacher, p->n, folder);
  if (tokens) d.corpus = mhk_corpus_from_tokens(ctx, tokens, n, -1);
  if (windows && d.teacher && d.corpus) {
    const double before[2] = {(double)mhk_memory_in_use(ctx), cli_memory_touched()};
    const int whole = p->n == c->n_layer;
    step_through(ctx, mhk_distill(ctx, &d), whole || before[1] <= 0, before, cost);
    for (i = 0; i < 3; i++)
      if (!whole && cost[i].updates > 0) cost[i].bytes += unmeasured(*run, d, (int)i + 1);
    code = mhk_failed(ctx) ? CLI_FAILED : CLI_GO;
  }
  if (code != CLI_GO) cli_context_error(ctx);
  free(windows), free(tokens);
  mhk_destroy(ctx);
  return code;
}

/* time += times * (more - less) */
static void extend(dry_cost cost[3], int times, const dry_cost more[3], const dry_cost less[3]) {
  int i;
  for (i = 0; i < 3; i++) cost[i].seconds += times * (more[i].seconds - less[i].seconds);
}

int dry_measure(const mhk_distill_desc *run, int threads, const char *folder, dry_cost cost[3]) {
  const mhk_student_desc *student = &run->student_desc;
  const int layers = mhk_model_config(run->teacher)->n_layer, kept = student->n_keep_attention, made = layers - kept;
  dry_cost one[3], more[3];
  part p;
  int l, i;
  memset(&p, 0, sizeof p);
  for (l = 0; l < layers; l++) p.layers[l] = l;
  if (layers <= 2 || mhk_distill_bytes(run) < WHOLE) {
    if (kept > 0) memcpy(p.keep, student->keep_attention, (size_t)kept * sizeof *p.keep);
    p.n = layers;
    p.n_keep = kept;
    return measure(run, threads, folder, &p, cost);
  }
  for (l = 0, p.n = 0; l < layers; l++) { /* windows are those of the first layers with new mixers */
    for (i = 0; i < kept && student->keep_attention[i] != l; i++) {}
    if (i == kept) p.layers[p.n++] = l;
  }
  p.n = 1;
  if (measure(run, threads, folder, &p, one) != CLI_GO) return CLI_FAILED;
  memcpy(cost, one, sizeof one);
  p.n = 2;
  if (made > 1) {
    if (measure(run, threads, folder, &p, more) != CLI_GO) return CLI_FAILED;
    memcpy(cost, more, sizeof more);
    extend(cost, made - 2, more, one);
  }
  if (kept == 0) return CLI_GO;
  p.n_keep = 1; /* layer 0, so that stages 1 and 2 go through it */
  if (measure(run, threads, folder, &p, more) != CLI_GO) return CLI_FAILED;
  extend(cost, kept, more, one);
  return CLI_GO;
}

void dry_print(const char *name, int stage, const dry_cost *c, double update_tokens, int json) {
  const double tokens = (double)c->updates * update_tokens;
  cli_buffer memory, count, speed, time;
  if (json) {
    cli_json j;
    json_start(&j, stdout, 0);
    json_open(&j, NULL, '{');
    json_text(&j, "event", "dry_run");
    json_count(&j, "stage", stage);
    json_real(&j, "memory_bytes", c->bytes);
    json_count(&j, "tokens", tokens);
    json_real(&j, "seconds", c->seconds);
    json_close(&j);
  } else
    printf("%s   %s of memory, %s tokens at %s tokens/s in %s\n", name, cli_bytes(c->bytes, &memory),
           cli_count(tokens, &count), cli_count(tokens / c->seconds, &speed), cli_time(c->seconds, &time));
}
