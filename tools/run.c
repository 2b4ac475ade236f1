/* run.c: see run.h */
#include "run.h"
#include "watch.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- text */

enum { PIECE = 262144 }; /* tokens sampled between two saves; piece k has seed + k */

/* a number that changes with the teacher's weights (FNV-1a over the first megabyte of its first
   tensor) */
static unsigned long long fingerprint(mhk_model *teacher) {
  const mhk_tensor *x = mhk_model_at(teacher, 0);
  const unsigned char *p = (const unsigned char *)x->data;
  size_t i, bytes = (size_t)x->count * mhk_dtype_bytes(x->dtype);
  unsigned long long h = 1469598103934665603ull;
  for (i = 0; i < bytes && i < 1000000; i++) h = (h ^ p[i]) * 1099511628211ull;
  return h;
}

/* Reads what an earlier run sampled into ids; returns how many tokens of it are usable. */
static mhk_index read_sampled(mhk_context *ctx, const char *path, const char *label, int32_t *ids, mhk_index wanted) {
  mhk_index n = 0;
  if (cli_exists(path)) {
    mhk_file *f = mhk_file_open(ctx, path);
    const mhk_stored *x = f ? mhk_file_find(f, "tokens") : NULL;
    const char *found = f ? mhk_file_metadata(f, "mohawk.sample", NULL) : NULL;
    if (x && found && strcmp(found, label) == 0) {
      int32_t *all = (int32_t *)malloc((size_t)x->count * sizeof *all + 1);
      if (all && mhk_file_read_i32(ctx, x, all) == MHK_OK) {
        n = x->count < wanted ? x->count / PIECE * PIECE : wanted;
        memcpy(ids, all, (size_t)n * sizeof *ids);
      }
      free(all);
    }
    mhk_file_close(f);
    mhk_clear_error(ctx); /* a file that cannot be read is written again */
  }
  return n;
}

static int write_sampled(mhk_context *ctx, const char *path, const char *label, const int32_t *ids, mhk_index n) {
  const char *metadata[2];
  mhk_stored x;
  memset(&x, 0, sizeof x);
  metadata[0] = "mohawk.sample";
  metadata[1] = label;
  x.name = "tokens";
  x.dtype = MHK_I32;
  x.rank = 1;
  x.shape[0] = n;
  x.count = n;
  x.data = ids;
  x.bytes = (size_t)n * sizeof *ids;
  return mhk_file_write(ctx, path, 1, &x, 1, metadata) == MHK_OK ? CLI_GO : cli_context_error(ctx);
}

/* progress of one piece as progress of all of them */
typedef struct sampling {
  cli_task task;
  mhk_index before, total;
} sampling;

static int report_piece(void *user, mhk_index done, mhk_index total) {
  sampling *s = (sampling *)user;
  (void)total;
  return cli_task_report(&s->task, s->before + done, s->total);
}

/* One piece more. Returns its tokens, 0 after Ctrl-C, or -1 after a message. */
static mhk_index sample_piece(mhk_context *ctx, mhk_model *teacher, int32_t *ids, mhk_index tokens, uint64_t seed,
                              sampling *all) {
  mhk_corpus *piece = mhk_corpus_sample(teacher, tokens, seed, report_piece, all);
  const int32_t *values;
  mhk_index n = mhk_corpus_tokens(piece, &values);
  if (!piece || mhk_failed(ctx)) {
    cli_context_error(ctx);
    return -1;
  }
  if (n > tokens) n = tokens;
  if (cli_stopped()) n = 0;
  if (n > 0) memcpy(ids, values, (size_t)n * sizeof *ids);
  mhk_corpus_destroy(piece);
  return n;
}

mhk_corpus *run_sampled_text(mhk_context *ctx, mhk_model *teacher, const char *path, mhk_index tokens, uint64_t seed) {
  char label[96];
  sampling all;
  cli_buffer amount, speed;
  mhk_corpus *text = NULL;
  mhk_index n, found;
  int32_t *ids = (int32_t *)malloc((size_t)tokens * sizeof *ids + 1);
  if (!ids) {
    cli_error("out of memory for %s tokens of text", cli_count((double)tokens, &amount));
    return NULL;
  }
  snprintf(label, sizeof label, "seed=%llu teacher=%016llx", (unsigned long long)seed, fingerprint(teacher));
  n = found = read_sampled(ctx, path, label, ids, tokens);
  cli_task_start(&all.task, "text", "sampling", 1);
  all.total = tokens;
  while (n < tokens) {
    mhk_index more;
    all.before = n;
    more = sample_piece(ctx, teacher, ids + n, tokens - n < PIECE ? tokens - n : PIECE, seed + (uint64_t)(n / PIECE),
                        &all);
    if (more <= 0 || write_sampled(ctx, path, label, ids, n + more) != CLI_GO) {
      free(ids);
      return NULL;
    }
    n += more;
  }
  if (found == tokens) {
    cli_progress_show(&all.task.progress, 1, "%-9s %s tokens written by the teacher, from %s", "text",
                      cli_count((double)n, &amount), path);
  } else {
    cli_progress_show(&all.task.progress, 1, "%-9s %s tokens sampled from the teacher, %s tokens/s", "text",
                      cli_count((double)n, &amount),
                      cli_count((double)(n - found) / (cli_clock() - all.task.started), &speed));
  }
  text = mhk_corpus_from_tokens(ctx, ids, n, mhk_tokenizer_start(mhk_model_tokenizer(teacher)));
  if (!text) cli_context_error(ctx);
  free(ids);
  return text;
}

int run_read_texts(run_texts *t, int n, const char *const *files, int encoding, int all) {
  int i, good = 1;
  memset(t, 0, sizeof *t);
  t->n = n;
  for (i = 0; good && i < n; i++) {
    if (all || encoding != CLI_UTF8 || cli_is_stream(files[i]))
      good = cli_read(files[i], &t->read[i]) == CLI_GO && cli_to_utf8(&t->read[i], encoding, files[i]) == CLI_GO;
    t->text[i] = t->read[i].text;
    t->length[i] = t->read[i].n;
  }
  return good ? CLI_GO : CLI_FAILED;
}

void run_free_texts(run_texts *t) {
  int i;
  for (i = 0; i < t->n; i++) free(t->read[i].text);
}

mhk_corpus *run_encode_texts(mhk_context *ctx, mhk_tokenizer *k, const run_texts *t, const mhk_corpus_desc *desc) {
  mhk_corpus_desc d = *desc;
  mhk_corpus *text;
  d.texts = t->text;
  d.lengths = t->length;
  text = mhk_corpus_load(ctx, k, &d);
  if (text) return text;
  cli_context_error(ctx);
  if (strstr(mhk_message(ctx), "looks like UTF-16")) cli_error("use --encoding utf16");
  if (strstr(mhk_message(ctx), "may be Latin-1")) cli_error("use --encoding latin1");
  return NULL;
}

mhk_corpus *run_token_file(mhk_context *ctx, mhk_model *model, const char *path) {
  const int vocabulary = mhk_model_config(model)->vocab_size;
  mhk_file *f = mhk_file_open(ctx, path);
  const mhk_stored *x = f ? mhk_file_find(f, "tokens") : NULL;
  int32_t *ids = x ? (int32_t *)malloc((size_t)x->count * sizeof *ids + 1) : NULL;
  mhk_corpus *text = NULL;
  mhk_index i = 0;
  if (f && (!x || x->dtype != MHK_I32 || x->rank != 1))
    cli_error("%s has no list of tokens: it is not a text.safetensors of mohawk distill", path);
  else if (x && !ids)
    cli_error("out of memory for %lld tokens of %s", (long long)x->count, path);
  else if (x && mhk_file_read_i32(ctx, x, ids) == MHK_OK) {
    while (i < x->count && ids[i] >= 0 && ids[i] < vocabulary) i++;
    if (i < x->count)
      cli_error("%s: token %lld is %d, but the model has %d: it is from another teacher", path, (long long)i, ids[i],
                vocabulary);
    else
      text = mhk_corpus_from_tokens(ctx, ids, x->count, mhk_tokenizer_start(mhk_model_tokenizer(model)));
  }
  if (mhk_failed(ctx)) cli_context_error(ctx);
  free(ids);
  mhk_file_close(f);
  return text;
}

mhk_corpus *run_load_text(mhk_context *ctx, mhk_model *model, mhk_model *other_model, const mhk_corpus_desc *desc,
                        int encoding) {
  mhk_tokenizer *k = mhk_model_tokenizer(model);
  mhk_corpus *text = NULL;
  run_texts t;
  if (desc->n_files == 1 && cli_ends_with(desc->files[0], ".safetensors")) {
    if (!desc->repeat || desc->repeat[0] == 1) return run_token_file(ctx, model, desc->files[0]);
    cli_error("%s has tokens, which are used once: --repeat is for text files", desc->files[0]);
    return NULL;
  }
  if (!k && other_model) k = mhk_model_tokenizer(other_model);
  if (!k) {
    cli_no_tokenizer(model, "the model");
    return NULL;
  }
  if (run_read_texts(&t, desc->n_files, desc->files, encoding, 0) == CLI_GO) text = run_encode_texts(ctx, k, &t, desc);
  run_free_texts(&t);
  return text;
}

mhk_corpus *run_load_files(mhk_context *ctx, mhk_model *model, const cli_files *text, const cli_numbers *repeat,
                           const cli_numbers *max_document, int seed, int encoding) {
  mhk_corpus_desc desc;
  int times[CLI_MAX_LIST], i;
  size_t most[CLI_MAX_LIST];
  if (repeat->n > text->n || max_document->n > text->n) {
    cli_error("--text has %d files, but --%s has %d values", text->n,
              repeat->n > text->n ? "repeat" : "max-document", repeat->n > text->n ? repeat->n : max_document->n);
    return NULL;
  }
  memset(&desc, 0, sizeof desc);
  for (i = 0; i < text->n; i++) {
    times[i] = (int)cli_number_at(repeat, i, 1);
    most[i] = (size_t)cli_number_at(max_document, i, 0);
  }
  desc.n_files = text->n;
  desc.files = text->path;
  desc.repeat = times;
  desc.max_document_of = most;
  desc.seed = (uint64_t)seed;
  return run_load_text(ctx, model, NULL, &desc, encoding);
}

mhk_corpus *run_some_text(mhk_context *ctx, mhk_model *model, int n, const char *const *files, int encoding,
                          mhk_index tokens) {
  static const char *const bundled[] = {"examples/story.txt"};
  mhk_corpus_desc desc = {.n_files = n, .files = files};
  mhk_corpus *text;
  cli_task task;
  if (n == 0 && mhk_model_tokenizer(model) && cli_exists(bundled[0])) {
    desc.n_files = 1;
    desc.files = bundled;
  }
  if (desc.n_files > 0) return run_load_text(ctx, model, NULL, &desc, encoding);
  cli_task_start(&task, "text", "sampling", 1);
  text = mhk_corpus_sample(model, tokens, 1, cli_task_report, &task);
  cli_progress_clear();
  if (!text) cli_context_error(ctx);
  return text;
}

/* ---------------------------------------------------------------- log */

static const char log_header[] = "stage,step,tokens,loss,relative,learning_rate,grad_norm,tokens_per_second\n";

static int log_path(char *path, size_t capacity, const char *folder) {
  return cli_join(path, capacity, folder, "log.csv");
}

run_point *run_read_log(const char *folder, int stage, double step, int *n) {
  char path[1024], line[512];
  run_point *points = NULL;
  int room = 0;
  FILE *f;
  *n = 0;
  if (log_path(path, sizeof path, folder) != CLI_GO) return NULL;
  f = cli_open(path, "r");
  while (f && fgets(line, sizeof line, f)) {
    run_point p;
    if (sscanf(line, "%d,%lf,%lf,%lf,%lf,%lf,%lf,%lf", &p.stage, &p.step, &p.tokens, &p.loss, &p.relative, &p.lr,
               &p.grad_norm, &p.rate) != 8)
      continue;
    if (p.stage > stage || (p.stage == stage && p.step > step))
      continue; /* written after the checkpoint that the run continues from */
    if (*n == room) {
      run_point *larger = (run_point *)realloc(points, (size_t)(room = room * 2 + 1024) * sizeof *points);
      if (!larger) break;
      points = larger;
    }
    points[(*n)++] = p;
  }
  if (f) fclose(f);
  return points;
}

static void write_point(FILE *f, const run_point *p) {
  fprintf(f, "%d,%.0f,%.0f,%.9g,%.6g,%.6g,%.6g,%.1f\n", p->stage, p->step, p->tokens, p->loss, p->relative, p->lr,
          p->grad_norm, p->rate);
}

/* The log opened for more lines, without those that the resumed run will write again. */
static FILE *open_log(const char *folder, const mhk_progress_info *at) {
  char path[1024];
  cli_output o;
  int i, n = 0;
  run_point *points;
  if (log_path(path, sizeof path, folder) != CLI_GO || cli_output_open(&o, path) != CLI_GO) return NULL;
  points = at->resumed ? run_read_log(folder, at->stage, (double)at->step, &n) : NULL;
  fputs(log_header, o.file);
  for (i = 0; i < n; i++) write_point(o.file, &points[i]);
  free(points);
  return cli_output_close(&o) == CLI_GO ? cli_open(path, "a") : NULL;
}

/* ---------------------------------------------------------------- training */

/* mean relative error of the matrices over all heads that train; NaN outside stage 1 */
static double mean_relative(const mhk_progress_info *info, const mhk_config *c) {
  double sum = 0;
  int l, h, n = 0;
  if (!info->relative) return NAN;
  for (l = 0; l < c->n_layer; l++) {
    if (c->mixer[l] == MHK_MIXER_ATTENTION) continue;
    for (h = 0; h < c->ssm_heads; h++, n++) sum += info->relative[l * c->ssm_heads + h];
  }
  return n ? sum / n : NAN;
}

static void show_progress(cli_progress *line, const mhk_progress_info *info, double relative, int taught,
                          int last) {
  static const char *const names[] = {"", "matrices", "hidden states", "predictions"};
  static const char *const losses[] = {"", "||dM||", "||dX||", "loss"};
  cli_buffer bar, speed, left;
  char closeness[48] = "", stage[16] = "training";
  double share = info->steps > 0 ? (double)info->step / (double)info->steps : 1;
  if (!cli_progress_due(line, last)) return;
  if (!isnan(relative)) snprintf(closeness, sizeof closeness, "   relative %.3f", relative);
  if (taught) snprintf(stage, sizeof stage, "stage %d", info->stage);
  cli_progress_show(line, last, "%s   %-18s %s  %3.0f %%   %s %-6.4g%s   %s tokens/s   %s %s", stage,
                    taught ? names[info->stage] : "next token", cli_bar(share, &bar), 100 * share, losses[info->stage],
                    info->loss_average, closeness, cli_count(info->tokens_per_second, &speed),
                    cli_time(last ? info->seconds : info->seconds_left, &left), last ? "in all" : "left");
}

static void json_progress(cli_json *j, const mhk_progress_info *info, double relative) {
  json_open(j, NULL, '{');
  json_text(j, "event", "progress");
  json_count(j, "stage", info->stage);
  json_count(j, "step", (double)info->step);
  json_count(j, "steps", (double)info->steps);
  json_count(j, "tokens", (double)info->tokens);
  json_count(j, "total_tokens", (double)info->total_tokens);
  json_real(j, "loss", info->loss);
  json_real(j, "loss_average", info->loss_average);
  if (!isnan(relative)) json_real(j, "relative_error", relative);
  json_real(j, "learning_rate", info->lr);
  json_real(j, "tokens_per_second", info->tokens_per_second);
  json_real(j, "seconds_left", info->seconds_left);
  json_close(j);
}

/* everything that one update leaves behind: the log, the progress line, the JSON line */
typedef struct reporter {
  FILE *log;
  watch *watch;
  cli_progress line;
  double json_shown;
} reporter;

static void report(reporter *p, const run *r, mhk_trainer *tr, const mhk_progress_info *info) {
  double relative = mean_relative(info, mhk_model_config(mhk_student(tr)));
  int last = info->stage_done || cli_stopped();
  if (p->log) {
    run_point point;
    point.stage = info->stage;
    point.step = (double)info->step;
    point.tokens = (double)info->tokens;
    point.loss = info->loss;
    point.relative = relative;
    point.lr = info->lr;
    point.grad_norm = info->grad_norm;
    point.rate = info->tokens_per_second;
    write_point(p->log, &point);
    fflush(p->log); /* a checkpoint may follow at any time */
  }
  show_progress(&p->line, info, relative, r->desc.teacher || r->desc.outputs, last);
  if (r->json && (last || cli_clock() - p->json_shown >= 1)) {
    json_progress(r->json, info, relative);
    p->json_shown = cli_clock();
  }
  if (info->stage_done) memset(&p->line, 0, sizeof p->line);
}

/* The stage that had just ended when the checkpoint was written that the run goes on from; 0: none
   had. */
static int stage_before(const run *r, const mhk_progress_info *info) {
  int stage = info->stage;
  if (!info->resumed || (info->step > 0 && info->step < info->steps)) return 0;
  if (info->step > 0) return stage;
  for (stage--; stage > 0 && r->desc.stages[stage - 1].tokens == 0; stage--) {
  }
  return stage;
}

/* The loss above which a stage of n updates has diverged. In its first updates it may get many
   times worse before it gets better. Predictions are then worse than those of every token alike. */
static double most_loss(const mhk_config *c, int stage, double first, int n) {
  if (stage == 3) return fmax(2 * first, 1.5 * log((double)c->vocab_size));
  return (n < 20 ? 100 : stage == 1 ? 20 : 2) * first;
}

/* Whether a stage that has ended brought its loss down, by the log. One that left it higher than it
   found it is warned about; one that diverged is a failure, which says what to change. */
static run_result judge_stage(const run *r, int stage, const mhk_model *student) {
  double first = 0, last = 0;
  mhk_distill_desc plain = r->desc;
  const double used = mhk_distill_defaults(&r->desc).stages[stage - 1].lr;
  double lower = used / 4;
  char what[16] = "the training";
  int i, n, of = 0, tenth;
  run_point *points = r->desc.out ? run_read_log(r->desc.out, stage, HUGE_VAL, &n) : NULL;
  if (!points) return RUN_DONE;
  for (i = 0; i < n; i++) of += points[i].stage == stage;
  tenth = of / 10 > 1 ? of / 10 : 1;
  for (i = 0; i < tenth; i++) {
    first += points[n - of + i].loss / tenth;
    last += points[n - 1 - i].loss / tenth;
  }
  free(points);
  plain.stages[stage - 1].lr = 0;
  if (plain.teacher && used > mhk_distill_defaults(&plain).stages[stage - 1].lr)
    lower = mhk_distill_defaults(&plain).stages[stage - 1].lr;
  if (of < 2 || last <= 1.02 * first) return RUN_DONE;
  if (plain.teacher || plain.outputs) snprintf(what, sizeof what, "stage %d", stage);
  if (last <= most_loss(mhk_model_config(student), stage, first, of)) {
    cli_warning("%s left its loss higher than it found it: %.4g at first, %.4g at the end", what, first, last);
    return RUN_DONE;
  }
  cli_error("%s diverged: its loss was %.4g at first and %.4g at the end, at a learning rate of up to %.2g. Start "
            "again with --fresh and a lower --lr%s, for example %.2g",
            what, first, last, used, plain.teacher ? " for this stage" : "", lower);
  return RUN_FAILED;
}

/* What follows a stage, which may have been trained by an earlier start. */
static run_result end_stage(const run *r, int stage, mhk_model *student) {
  const run_result result = judge_stage(r, stage, student);
  return result == RUN_DONE && r->after_stage ? r->after_stage(r->user, stage, student) : result;
}

run_result run_distill(mhk_context *ctx, const run *r, mhk_trainer **trainer) {
  mhk_trainer *tr = *trainer = mhk_distill(ctx, &r->desc);
  const mhk_progress_info *info = mhk_progress(tr);
  run_result result = RUN_DONE;
  reporter p;
  mhk_index step;
  int stage, more = 1;
  memset(&p, 0, sizeof p);
  if (!tr || !info || mhk_failed(ctx)) {
    cli_context_error(ctx);
    return RUN_FAILED;
  }
  if (info->resumed && info->step < info->steps)
    cli_note("resuming from the checkpoint in %s: stage %d, update %lld of %lld", r->desc.out, info->stage,
             (long long)info->step, (long long)info->steps);
  if (r->started && (result = r->started(r->user, info, mhk_student(tr))) != RUN_DONE) return result;
  if (r->desc.out) p.log = open_log(r->desc.out, info);
  if (r->desc.out && r->desc.teacher) {
    p.watch = watch_open(ctx, r->desc.out, r->desc.teacher, mhk_student(tr), r->watched ? r->watched : r->desc.corpus,
                         info);
    if (!p.watch) result = RUN_FAILED;
  }
  stage = stage_before(r, info); /* what follows a stage may not have happened: do it again */
  if (result == RUN_DONE && stage > 0) result = end_stage(r, stage, mhk_student(tr));
  while (more && result == RUN_DONE) {
    stage = info->stage;
    step = info->step;
    more = mhk_train_step(tr);
    info = mhk_progress(tr);
    if (mhk_failed(ctx)) {
      cli_context_error(ctx);
      result = RUN_FAILED;
    } else if (info->stage != stage || info->step != step) {
      report(&p, r, tr, info);
      if (p.watch && watch_update(p.watch, info, mhk_student(tr)) != CLI_GO) result = RUN_FAILED;
      if (result == RUN_DONE && r->after_update) result = r->after_update(r->user, info, mhk_student(tr));
      if (result == RUN_DONE && info->stage_done) result = end_stage(r, info->stage, mhk_student(tr));
    }
    if (result == RUN_DONE && more && cli_stopped()) result = RUN_STOPPED;
    if (result == RUN_STOPPED && r->desc.out && mhk_checkpoint(tr) != MHK_OK) {
      cli_context_error(ctx);
      result = RUN_FAILED;
    }
  }
  watch_close(p.watch);
  if (p.log && (ferror(p.log) | fclose(p.log)) != 0)
    cli_warning("%s/log.csv is incomplete: %s", r->desc.out, strerror(errno));
  return result;
}

/* Changes a run in one way, as far as it must to need no more than `have`; writes the option.
   Returns 0 where that way is not open. */
enum { LAYERS, RECOMPUTE, BATCH, MIXERS, LENGTH, WAYS }; /* those first that change the result least */
static int change(mhk_distill_desc *d, int way, double have, char option[64]) {
  d->update_tokens = 0;
  if (way == MIXERS && !d->teacher) return 0;
  if (way == LAYERS && (d->stages[0].clip > 0 || d->stages[1].clip > 0)) return 0;
  if (way == LAYERS) d->layer_by_layer = 1, snprintf(option, 64, " --one-layer-at-a-time");
  if (way == RECOMPUTE) d->recompute = 1, snprintf(option, 64, " --recompute");
  if (way == MIXERS) d->stages[2].trains = MHK_TRAIN_MIXERS, snprintf(option, 64, " --train mixers");
  if (way == BATCH) {
    while (d->batch > 1 && mhk_distill_bytes(d) > have) d->batch /= 2;
    snprintf(option, 64, " --batch %lld", (long long)d->batch);
  }
  if (way == LENGTH) {
    while (d->length > 32 && mhk_distill_bytes(d) > have) d->length /= 2;
    snprintf(option, 64, " --length %lld", (long long)d->length);
  }
  return 1;
}

double run_smaller(mhk_distill_desc d, double have, char *options, size_t room) {
  const mhk_distill_desc whole = d;
  double need = mhk_distill_bytes(&d), less;
  int way, used[WAYS] = {0};
  char option[WAYS][64];
  for (way = 0; way < WAYS && need > have; way++) {
    mhk_distill_desc changed = d;
    if (!change(&changed, way, have, option[way]) || (less = mhk_distill_bytes(&changed)) >= need) continue;
    used[way] = 1;
    d = changed;
    need = less;
  }
  for (way = 0; way < LENGTH && need <= have; way++) { /* what a later way has made needless */
    mhk_distill_desc without = d;
    if (way == LAYERS) without.layer_by_layer = whole.layer_by_layer;
    if (way == RECOMPUTE) without.recompute = whole.recompute;
    if (way == BATCH) without.batch = whole.batch;
    if (way == MIXERS) without.stages[2].trains = whole.stages[2].trains;
    if (!used[way] || (less = mhk_distill_bytes(&without)) > have) continue;
    used[way] = 0;
    d = without;
    need = less;
  }
  for (way = 0; way < WAYS; way++)
    if (used[way]) snprintf(options + strlen(options), room - strlen(options), "%s", option[way]);
  return need;
}

/* Says of stages 1 and 2 whether they fit without stage 3, which then is a run of its own; "" where
   they do not or are none. */
static const char *first_stages(const mhk_distill_desc *desc, double have, char text[160]) {
  mhk_distill_desc d = *desc;
  cli_buffer bytes;
  text[0] = 0;
  if (d.stages[2].tokens == 0 || d.stages[0].tokens + d.stages[1].tokens == 0) return text;
  d.stages[2].tokens = 0;
  if (mhk_distill_bytes(&d) <= have)
    snprintf(text, 160, ", or stages 1 and 2 alone: --tokens %lld,%lld,0 (%s)", (long long)d.stages[0].tokens,
             (long long)d.stages[1].tokens, cli_bytes(mhk_distill_bytes(&d), &bytes));
  return text;
}

int run_check_memory(mhk_context *ctx, const mhk_distill_desc *desc, int force) {
  const double need = mhk_distill_bytes(desc), have = cli_memory_free();
  const mhk_distill_desc whole = mhk_distill_defaults(desc);
  char options[256] = "", alone[160];
  double less;
  cli_buffer a, b, c;
  if (mhk_failed(ctx)) return cli_context_error(ctx);
  if (have <= 0 || need <= have || force) {
    cli_note("%s needs up to %s of memory; %s free here", desc->out, cli_bytes(need, &a),
             have > 0 ? cli_bytes(have, &b) : "an unknown amount");
    return CLI_GO;
  }
  less = run_smaller(whole, have, options, sizeof options);
  first_stages(&whole, have, alone);
  if (less <= have)
    return cli_error("%s needs %s of memory, but %s are free: try%s (%s)%s", desc->out, cli_bytes(need, &a),
                     cli_bytes(have, &b), options, cli_bytes(less, &c), alone);
  return cli_error("%s needs %s of memory, but %s are free; with%s it still needs %s%s", desc->out, cli_bytes(need, &a),
                   cli_bytes(have, &b), options[0] ? options : " no option", cli_bytes(less, &c), alone);
}

void run_say_stopped(const char *out, cli_json *json) {
  cli_say_resume(out);
  if (!json) return;
  json_open(json, NULL, '{');
  json_text(json, "event", "stopped");
  json_text(json, "out", out);
  json_close(json);
}

int run_save(mhk_context *ctx, mhk_model *m, const char *out, const char *name, int dtype, cli_json *json) {
  static const mhk_dtype types[] = {MHK_F32, MHK_F16, MHK_BF16};
  char path[1024];
  if (cli_join(path, sizeof path, out, name) != CLI_GO) return CLI_FAILED;
  if (mhk_save(m, path, types[dtype]) != MHK_OK) return cli_context_error(ctx);
  if (json) {
    json_open(json, NULL, '{');
    json_text(json, "event", "saved");
    json_text(json, "path", path);
    json_real(json, "memory_peak_bytes", (double)mhk_memory_peak(ctx));
    json_close(json);
  } else {
    printf("saved     %s (safetensors, config.json, tokenizer.json)\n", path);
  }
  return CLI_OK;
}

/* ---------------------------------------------------------------- evaluation */

int run_evaluate(mhk_context *ctx, mhk_model *m, const mhk_evaluate_desc *desc, const char *title,
                 mhk_evaluation *result) {
  cli_task task;
  mhk_evaluate_desc d = *desc;
  d.progress = cli_task_report;
  d.user = &task;
  cli_task_start(&task, "measuring", title, (double)d.length);
  if (mhk_evaluate(m, &d, result) != MHK_OK) return cli_context_error(ctx);
  cli_progress_clear();
  return cli_stopped() ? CLI_FAILED : CLI_GO;
}

/* the mean of two means over na and nb things, and its standard error */
static void join(double na, double a, double ea, double nb, double b, double eb, double *mean, double *error) {
  *mean = (na * a + nb * b) / (na + nb);
  *error = sqrt(na * ea * na * ea + nb * eb * nb * eb) / (na + nb);
}

mhk_evaluation run_join(const mhk_evaluation *a, const mhk_evaluation *b) {
  mhk_evaluation r;
  double na = (double)a->tokens, nb = (double)b->tokens;
  int i;
  memset(&r, 0, sizeof r);
  for (i = 0; i < 4; i++) {
    r.cross_entropy_quarter[i] = (na * a->cross_entropy_quarter[i] + nb * b->cross_entropy_quarter[i]) / (na + nb);
    r.kl_quarter[i] = (na * a->kl_quarter[i] + nb * b->kl_quarter[i]) / (na + nb);
    r.agreement_quarter[i] = (na * a->agreement_quarter[i] + nb * b->agreement_quarter[i]) / (na + nb);
  }
  r.state_bytes = a->state_bytes;
  r.tokens = a->tokens + b->tokens;
  join(na, a->cross_entropy, a->cross_entropy_error, nb, b->cross_entropy, b->cross_entropy_error, &r.cross_entropy,
       &r.cross_entropy_error);
  join(na, a->kl, a->kl_error, nb, b->kl, b->kl_error, &r.kl, &r.kl_error);
  join(na, a->agreement, a->agreement_error, nb, b->agreement, b->agreement_error, &r.agreement, &r.agreement_error);
  return r;
}

const char *run_error(double error, int width, int digits, cli_buffer *b) {
  if (isnan(error)) snprintf(b->text, sizeof b->text, "%*s", width > 0 ? width + 4 : 0, "");
  else snprintf(b->text, sizeof b->text, " +- %*.*f", width, digits, error);
  return b->text;
}

void run_print_header(FILE *out) {
  fprintf(out, "%s%-24s %17s   %17s   %17s   %8s%s\n", cli_bold(out), "", "cross-entropy", "KL to teacher",
          "same next token", "state", cli_plain(out));
}

void run_print_row(FILE *out, const char *name, const mhk_evaluation *e, int with_teacher) {
  cli_buffer bytes, a, b;
  fprintf(out, "%-24s %8.3f%s", name, e->cross_entropy, run_error(e->cross_entropy_error, 5, 3, &a));
  if (with_teacher) {
    fprintf(out, "   %8.3f%s   %6.1f%s %%", e->kl, run_error(e->kl_error, 5, 3, &a), 100 * e->agreement,
            run_error(100 * e->agreement_error, 4, 1, &b));
  } else {
    fprintf(out, "%40s", "");
  }
  fprintf(out, "   %8s\n", cli_bytes(e->state_bytes, &bytes));
}

static void json_quarters(cli_json *j, const char *key, const double *quarters) {
  int i;
  json_open(j, key, '[');
  for (i = 0; i < 4; i++) json_real(j, NULL, quarters[i]);
  json_close(j);
}

void run_json_evaluation(cli_json *j, const mhk_evaluation *e, int with_teacher) {
  json_real(j, "cross_entropy", e->cross_entropy);
  json_real(j, "cross_entropy_error", e->cross_entropy_error);
  json_real(j, "perplexity", exp(e->cross_entropy));
  json_real(j, "perplexity_error", exp(e->cross_entropy) * e->cross_entropy_error);
  if (with_teacher) {
    json_real(j, "kl", e->kl);
    json_real(j, "kl_error", e->kl_error);
    json_real(j, "agreement", e->agreement);
    json_real(j, "agreement_error", e->agreement_error);
  }
  json_quarters(j, "cross_entropy_by_quarter", e->cross_entropy_quarter);
  if (with_teacher) {
    json_quarters(j, "kl_by_quarter", e->kl_quarter);
    json_quarters(j, "agreement_by_quarter", e->agreement_quarter);
  }
  json_count(j, "state_bytes", e->state_bytes);
  json_count(j, "predictions", (double)e->tokens);
}

void run_json_milestone(cli_json *j, int stage, double tokens, const mhk_evaluation *e, int with_teacher,
                        const char *sample) {
  json_open(j, NULL, '{');
  json_count(j, "stage", stage);
  json_count(j, "tokens", tokens);
  run_json_evaluation(j, e, with_teacher);
  if (sample) json_text(j, "sample", sample);
  json_close(j);
}

static void json_model(cli_json *j, const char *key, const mhk_config *c) {
  static const mhk_index contexts[3] = {256, 2048, 16384};
  char mixers[4096];
  int i;
  json_open(j, key, '{');
  json_text(j, "mixers", run_mixers(c, mixers, sizeof mixers));
  json_count(j, "layers", c->n_layer);
  json_count(j, "width", c->d_model);
  json_count(j, "parameters", mhk_config_parameters(c));
  json_open(j, "state_bytes", '[');
  for (i = 0; i < 3; i++) json_count(j, NULL, mhk_config_state_bytes(c, contexts[i]));
  json_close(j);
  json_close(j);
}

void run_json_models(cli_json *j, const mhk_config *teacher, const mhk_config *student) {
  json_open(j, "models", '{');
  json_model(j, "teacher", teacher);
  json_model(j, "student", student);
  json_close(j);
}

char *run_speak(mhk_context *ctx, mhk_model *m, const char *prompt, int tokens) {
  const mhk_sampling sampling = {.temperature = 0.7, .top_p = 0.9, .seed = 7};
  mhk_session *session = mhk_session_create(m, NULL);
  const size_t room = (size_t)tokens * 64;
  char *text = (char *)calloc(1, room);
  size_t used = 0;
  int i;
  mhk_feed_text(session, prompt);
  for (i = 0; text && i < tokens && mhk_sample(session, &sampling) >= 0; i++) {
    const char *more = mhk_text_out(session);
    const size_t n = strlen(more);
    if (used + n >= room) break;
    memcpy(text + used, more, n);
    used += n;
  }
  if (!text) cli_error("out of memory");
  else if (mhk_failed(ctx)) {
    free(text);
    text = NULL;
    cli_context_error(ctx);
  }
  mhk_session_destroy(session);
  return text;
}

const char *run_mixers(const mhk_config *c, char *text, size_t capacity) {
  static const char *const names[] = {"", "Phi", "Phi-Mamba", "Mamba-2", "Llama", "Llama-Mamba"}; /* by mhk_arch */
  int l, kept = 0, said = 0;
  size_t used;
  for (l = 0; l < c->n_layer; l++) kept += c->mixer[l] == MHK_MIXER_ATTENTION;
  snprintf(text, capacity, "%s", names[c->arch]);
  if (kept == 0 || c->arch == MHK_ARCH_PHI || c->arch == MHK_ARCH_LLAMA) return text;
  used = strlen(text);
  used += (size_t)snprintf(text + used, capacity - used, " with attention in layer%s", kept > 1 ? "s" : "");
  for (l = 0; l < c->n_layer && used < capacity; l++)
    if (c->mixer[l] == MHK_MIXER_ATTENTION) {
      said++;
      used += (size_t)snprintf(text + used, capacity - used, "%s %d", said == 1 ? "" : said == kept ? " and" : ",", l);
    }
  return text;
}
