/* mohawk demo: a small trained Phi becomes a state-space model in three stages, measured and
   drawn. */
#include "picture.h"
#include "record.h"
#include "report.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Budgets in tokens; --budget multiplies them. All students get the same in all. */
#define STAGE_1 150000
#define STAGE_2 300000
#define STAGE_3 450000
#define TEXT_TOKENS 450000 /* sampled from the teacher to train on */
#define EVAL_TOKENS 32768  /* sampled from the teacher to measure on */
#define SHORT 0.04         /* what --short leaves of all of them */

/* learning rates of the stages, and of distillation alone (the best of a search from 5e-4 to
   4e-3) */
#define LR_1 1e-2
#define LR_2 5e-3
#define LR_3 1e-3
#define LR_ALONE 2e-3
#define BATCH 4
#define LENGTH 256
#define HYBRID_LAYER 2 /* keeps its attention in the hybrid */
#define WINDOW 16      /* tokens that the student with a window sees exactly */
#define TRAIN_SEED 1
#define EVAL_SEED 1000003
#define SPEAK_TOKENS 60
#define PROMPT "Once upon a time, there was a boy called"

enum { DEMO_MODELS = 8, DEMO_RUNS = 4, DEMO_PANELS = 5, DEMO_MARKS = 2 };

typedef struct demo_entry {
  const char *name;    /* as in results.json */
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
} demo_training;

static const demo_entry entries[DEMO_MODELS] = {
    {"teacher", -1, 0},      {"untrained", -1, 0},    {"after stage 1", 0, 1}, {"after stage 2", 0, 2},
    {"after stage 3", 0, 3}, {"stage 3 alone", 1, 3}, {"hybrid", 2, 3},        {"window 16", 3, 3},
};
enum { TEACHER, UNTRAINED, STAGE_1_DONE, STUDENT = 4, WINDOWED = 7 };
enum { THREE_STAGES, ALONE, HYBRID, WITH_WINDOW }; /* the runs */

typedef struct settings {
  const char *teacher, *out, *story;
  double budget;
  int short_run, fresh, threads;
} settings;

typedef struct demo {
  const settings *s;
  mhk_context *ctx;
  mhk_model *teacher;
  mhk_model *model[DEMO_MODELS];
  mhk_corpus *text, *samples, *story;
  const char *saving; /* folder of the run in progress */
  int number;         /* its place */
  double started; /* 0: the demo was done in pieces */
  double text_tokens, story_tokens, sample_tokens, budget[3];
  demo_model models[DEMO_MODELS];
  demo_training runs[DEMO_RUNS];
  mhk_evaluation marks[DEMO_MARKS]; /* stage 3 alone, where the others end their stages 1 and 2 */
} demo;

static const settings defaults = {
    .teacher = "examples/tiny", .out = "build/demo", .story = "examples/story.txt", .budget = 1};

static const cli_option options[] = {
    {"teacher", "DIR", CLI_TEXT, CLI_AT(teacher), 0, 0, "a small teacher (default examples/tiny, the bundled one)"},
    {"out", "DIR", CLI_TEXT, CLI_AT(out), 0, 0, "output folder (default build/demo)"},
    {"story", "FILE", CLI_TEXT, CLI_AT(story), 0, 0, "text for the evaluation (default examples/story.txt)"},
    {"short", NULL, CLI_FLAG, CLI_AT(short_run), 0, 0,
     "use a small fraction of the budget: checks that everything runs, not how good it gets"},
    {"budget", "X", CLI_REAL, CLI_AT(budget), 0.01, 1000, "multiply the number of training tokens by X (default 1)"},
    CLI_STRICT,
    {"fresh", NULL, CLI_FLAG, CLI_AT(fresh), 0, 0, "start over instead of resuming"},
    CLI_THREADS(CLI_AT(threads)),
};

static int out_path(const demo *d, char *path, size_t capacity, const char *name) {
  return cli_join(path, capacity, d->s->out, name);
}

static double scale(const settings *s) { return s->budget * (s->short_run ? SHORT : 1); }

/* ---------------------------------------------------------------- the plan */

static int stage_path(char *path, size_t capacity, const char *folder, int stage) {
  char name[32];
  snprintf(name, sizeof name, "stage%d.safetensors", stage);
  return cli_join(path, capacity, folder, name);
}

static int mark_path(char *path, size_t capacity, const char *folder, int mark) {
  char name[32];
  snprintf(name, sizeof name, "mark%d.safetensors", mark + 1);
  return cli_join(path, capacity, folder, name);
}

/* takes away what earlier calls trained */
static void forget(const demo *d) {
  char folder[1024], path[1024];
  int i, k;
  for (i = 0; i < DEMO_RUNS; i++) {
    if (out_path(d, folder, sizeof folder, d->runs[i].folder) != CLI_GO) continue;
    for (k = 1; k <= 3; k++)
      if (stage_path(path, sizeof path, folder, k) == CLI_GO) remove(path);
    for (k = 0; k < DEMO_MARKS; k++)
      if (mark_path(path, sizeof path, folder, k) == CLI_GO) remove(path);
    if (cli_join(path, sizeof path, folder, "checkpoint.safetensors") == CLI_GO) remove(path);
    if (cli_join(path, sizeof path, folder, "checkpoint.previous.safetensors") == CLI_GO) remove(path);
  }
}

/* What decides the results. When the folder holds results of another plan they are not used. */
static int make_plan(demo *d) {
  char path[1024], plan[512], found[512] = "";
  const double *b = d->budget;
  cli_output o;
  size_t n = 0;
  FILE *f;
  snprintf(plan, sizeof plan,
           "mohawk %s teacher %s tokens %.0f %.0f %.0f of %.0f, rates %g %g %g %g, batch %d x %d, attention in %d, "
           "window %d, seed %d, marks %d\n",
           mhk_version(), d->s->teacher, b[0], b[1], b[2], d->text_tokens, LR_1, LR_2, LR_3, LR_ALONE, BATCH, LENGTH,
           HYBRID_LAYER, WINDOW, TRAIN_SEED, DEMO_MARKS);
  if (cli_make_folders(d->s->out) != CLI_GO || out_path(d, path, sizeof path, "plan.txt") != CLI_GO) return CLI_FAILED;
  f = cli_open(path, "rb");
  if (f) {
    n = fread(found, 1, sizeof found - 1, f);
    fclose(f);
  }
  found[n] = 0;
  if (!d->s->fresh && strcmp(plan, found) == 0) return CLI_GO;
  forget(d);
  if (cli_output_open(&o, path) != CLI_GO) return CLI_FAILED;
  fputs(plan, o.file);
  return cli_output_close(&o);
}

static void fill_run(const demo *d, int number, mhk_distill_desc *desc) {
  static const int keep[] = {HYBRID_LAYER};
  const double *b = d->budget, rates[3] = {LR_1, LR_2, LR_3};
  int i;
  memset(desc, 0, sizeof *desc);
  desc->teacher = d->teacher;
  desc->corpus = d->text;
  desc->batch = BATCH;
  desc->length = LENGTH;
  desc->seed = TRAIN_SEED;
  desc->student_desc.seed = TRAIN_SEED;
  if (number == ALONE) {
    desc->stages[2].tokens = (mhk_index)(b[0] + b[1] + b[2]);
    desc->stages[2].lr = LR_ALONE;
    desc->stages[2].own_stream = -1; /* predictions and nothing else */
    return;
  }
  for (i = 0; i < 3; i++) {
    desc->stages[i].tokens = (mhk_index)b[i];
    desc->stages[i].lr = rates[i];
  }
  if (number == HYBRID) {
    desc->student_desc.keep_attention = keep;
    desc->student_desc.n_keep_attention = 1;
  } else if (number == WITH_WINDOW) {
    desc->student_desc.window = WINDOW;
  }
}

/* ---------------------------------------------------------------- training */

static run_result after_stage(void *user, int stage, mhk_model *student) {
  demo *d = (demo *)user;
  char path[1024];
  if (stage_path(path, sizeof path, d->saving, stage) != CLI_GO) return RUN_FAILED;
  if (mhk_save(student, path, MHK_F32) == MHK_OK) return RUN_DONE;
  cli_context_error(d->ctx);
  return RUN_FAILED;
}

/* tokens of the first stages, as many as that mark says */
static double mark_tokens(const demo *d, int mark) { return d->budget[0] + (mark > 0 ? d->budget[1] : 0); }

/* stage 3 alone leaves a student where the others end a stage, so that its path is known too */
static run_result after_update(void *user, const mhk_progress_info *info, mhk_model *student) {
  demo *d = (demo *)user;
  char path[1024];
  int i;
  for (i = 0; i < DEMO_MARKS; i++) {
    if ((double)info->tokens != mark_tokens(d, i)) continue;
    if (mark_path(path, sizeof path, d->saving, i) != CLI_GO) return RUN_FAILED;
    if (mhk_save(student, path, MHK_F32) != MHK_OK) {
      cli_context_error(d->ctx);
      return RUN_FAILED;
    }
  }
  return RUN_DONE;
}

/* run.json, with the options of mohawk distill that do the same as this run */
static int write_record(const demo *d, int number) {
  static const char *const not[] = {"dry-run", "fresh", "force", "every", "strict", "json", NULL};
  mhk_distill_desc desc;
  char text[1024], tokens[96], lr[96], batch[16], length[16], seed[16], layer[16], window[16];
  const char *words[] = {"--teacher", d->s->teacher, "--text", text, "--out", d->saving, "--tokens", tokens, "--lr", lr,
                         "--batch", batch, "--length", length, "--seed", seed, "--eval", d->s->story,
                         "--eval-windows", "0", NULL, NULL};
  char *argv[CLI_COUNT_OF(words)];
  record_inputs inputs;
  void *options_of = malloc(command_distill.size);
  int i, code, argc = CLI_COUNT_OF(words) - 2;
  memset(&inputs, 0, sizeof inputs);
  fill_run(d, number, &desc);
  if (!options_of) return cli_error("out of memory");
  memcpy(options_of, command_distill.defaults, command_distill.size);
  code = out_path(d, text, sizeof text, "text.safetensors");
  snprintf(tokens, sizeof tokens, "%lld,%lld,%lld", (long long)desc.stages[0].tokens, (long long)desc.stages[1].tokens,
           (long long)desc.stages[2].tokens);
  snprintf(lr, sizeof lr, "%g,%g,%g", LR_1, LR_2, desc.stages[2].lr);
  snprintf(batch, sizeof batch, "%d", BATCH);
  snprintf(length, sizeof length, "%d", LENGTH);
  snprintf(seed, sizeof seed, "%d", TRAIN_SEED);
  snprintf(layer, sizeof layer, "%d", HYBRID_LAYER);
  snprintf(window, sizeof window, "%d", WINDOW);
  if (number != THREE_STAGES) {
    words[argc++] = number == ALONE ? "--own-stream" : number == HYBRID ? "--keep-attention" : "--window";
    words[argc++] = number == ALONE ? "0" : number == HYBRID ? layer : window;
  }
  for (i = 0; i < argc; i++) argv[i] = (char *)words[i];
  if (code == CLI_GO) code = cli_read_options(&command_distill, options_of, argc, argv);
  if (code == CLI_GO) code = record_add(&inputs, d->ctx, "teacher", d->s->teacher);
  if (code == CLI_GO) code = record_add(&inputs, d->ctx, "text", text);
  if (code == CLI_GO) code = record_add(&inputs, d->ctx, "eval", d->s->story);
  if (code == CLI_GO) code = record_write(d->saving, d->ctx, &command_distill, options_of, not, &inputs);
  record_inputs_free(&inputs);
  free(options_of);
  return code;
}

static run_result started(void *user, const mhk_progress_info *info, mhk_model *student) {
  const demo *d = (const demo *)user;
  (void)info;
  (void)student;
  return write_record(d, d->number) == CLI_GO ? RUN_DONE : RUN_FAILED;
}

/* every student that this run leaves behind is there */
static int run_complete(const mhk_distill_desc *desc) {
  char path[1024];
  int i;
  for (i = 0; i < 3; i++)
    if (desc->stages[i].tokens > 0 && (stage_path(path, sizeof path, desc->out, i + 1) != CLI_GO || !cli_exists(path)))
      return 0;
  return 1;
}

static run_result train(demo *d, int number) {
  char folder[1024];
  run r;
  mhk_trainer *trainer = NULL;
  mhk_model *student;
  run_result result;
  memset(&r, 0, sizeof r);
  fill_run(d, number, &r.desc);
  if (out_path(d, folder, sizeof folder, d->runs[number].folder) != CLI_GO || cli_make_folders(folder) != CLI_GO)
    return RUN_FAILED;
  r.desc.out = d->saving = folder;
  d->number = number;
  r.watched = d->story;
  r.started = started;
  r.after_stage = after_stage;
  if (number == ALONE) r.after_update = after_update;
  r.user = d;
  if (run_complete(&r.desc)) {
    printf("          already trained, in %s\n", folder);
    d->started = 0;
    return RUN_DONE;
  }
  result = run_distill(d->ctx, &r, &trainer);
  if (trainer && mhk_progress(trainer)->resumed) d->started = 0;
  student = mhk_student(trainer);
  mhk_trainer_destroy(trainer);
  mhk_model_destroy(student);
  return result;
}

static int train_all(demo *d) {
  char mixers[128];
  cli_buffer n;
  double all = d->budget[0] + d->budget[1] + d->budget[2];
  run_result result = RUN_DONE;
  int i;
  for (i = 0; i < DEMO_RUNS && result == RUN_DONE; i++) {
    static const char *const labels[DEMO_RUNS] = {"student", "alone", "hybrid", "window"};
    const mhk_config *c = d->runs[i].student;
    if (i == ALONE) {
      printf("%-9s the same student with stage 3 only, %s tokens\n", labels[i], cli_count(all, &n));
    } else {
      printf("%-9s %s%s, %d layers, %s parameters\n", labels[i], run_mixers(c, mixers, sizeof mixers),
             i == WITH_WINDOW ? " that sees 16 tokens exactly" : "", c->n_layer,
             cli_count(mhk_config_parameters(c), &n));
    }
    result = train(d, i);
  }
  return result == RUN_DONE ? CLI_GO : CLI_FAILED;
}

/* ---------------------------------------------------------------- measuring */

static mhk_model *load_stage(demo *d, const demo_entry *e) {
  char folder[1024], path[1024];
  mhk_model *m;
  if (out_path(d, folder, sizeof folder, d->runs[e->run].folder) != CLI_GO ||
      stage_path(path, sizeof path, folder, e->stage) != CLI_GO)
    return NULL;
  m = cli_load(d->ctx, path);
  if (!m) cli_context_error(d->ctx);
  return m;
}

/* tokens that the model of an entry was trained on, of the whole updates that fit the budgets */
static double trained_on(const demo *d, const demo_entry *e) {
  mhk_distill_desc desc;
  const double update = BATCH * LENGTH;
  double tokens = 0;
  int i;
  if (e->run < 0) return 0;
  fill_run(d, e->run, &desc);
  for (i = 0; i < e->stage; i++) tokens += floor((double)desc.stages[i].tokens / update) * update;
  return tokens;
}

/* the student as its training starts */
static mhk_model *start(demo *d) {
  mhk_distill_desc desc;
  mhk_trainer *trainer;
  mhk_model *student;
  fill_run(d, THREE_STAGES, &desc);
  trainer = mhk_distill(d->ctx, &desc);
  student = mhk_student(trainer);
  mhk_trainer_destroy(trainer);
  if (!student) cli_context_error(d->ctx);
  return student;
}

/* both texts as one evaluation, and each alone where it is wanted */
static int measure(demo *d, mhk_model *m, const char *name, mhk_evaluation *all, mhk_evaluation *samples,
                   mhk_evaluation *story) {
  const mhk_evaluate_desc of_samples = {.teacher = d->teacher, .corpus = d->samples, .length = LENGTH},
                          of_story = {.teacher = d->teacher, .corpus = d->story, .length = LENGTH};
  if (run_evaluate(d->ctx, m, &of_samples, name, samples) != CLI_GO ||
      run_evaluate(d->ctx, m, &of_story, name, story) != CLI_GO)
    return CLI_FAILED;
  *all = run_join(samples, story);
  return CLI_GO;
}

static int measure_mark(demo *d, int mark) {
  char folder[1024], path[1024];
  mhk_evaluation samples, story;
  mhk_model *m;
  int code;
  if (out_path(d, folder, sizeof folder, d->runs[ALONE].folder) != CLI_GO ||
      mark_path(path, sizeof path, folder, mark) != CLI_GO)
    return CLI_FAILED;
  m = cli_load(d->ctx, path);
  if (!m) return cli_context_error(d->ctx);
  code = measure(d, m, "stage 3 alone", &d->marks[mark], &samples, &story);
  mhk_model_destroy(m);
  return code;
}

static int measure_all(demo *d) {
  int i;
  d->model[UNTRAINED] = start(d);
  for (i = 0; i < DEMO_MODELS; i++) {
    demo_model *m = &d->models[i];
    m->is = entries[i];
    m->tokens = trained_on(d, &m->is);
    if (m->is.run >= 0) d->model[i] = load_stage(d, &m->is);
    if (!d->model[i]) return CLI_FAILED;
    if (measure(d, d->model[i], m->is.name, &m->all, &m->samples, &m->story) != CLI_GO) return CLI_FAILED;
  }
  for (i = 0; i < DEMO_MARKS; i++)
    if (measure_mark(d, i) != CLI_GO) return CLI_FAILED;
  return CLI_GO;
}

static void print_table(const demo *d) {
  int i;
  cli_buffer a, b;
  printf("\nmeasured on held-out text: %s tokens of teacher samples, %s of %s\n",
         cli_count(d->sample_tokens, &a), cli_count(d->story_tokens, &b), d->s->story);
  run_print_header(stdout);
  for (i = 0; i < DEMO_MODELS; i++) run_print_row(stdout, d->models[i].is.name, &d->models[i].all, i > 0);
}

/* ---------------------------------------------------------------- speaking and drawing */

/* on the screen: one line of text */
static void print_spoken(const char *name, const char *text) {
  printf("%-20s", name);
  for (; text && *text; text++) fputc(*text == '\n' ? ' ' : *text, stdout);
  fputc('\n', stdout);
}

static int speak_all(demo *d) {
  int i;
  printf("\n\"%s ...\"\n", PROMPT);
  for (i = 0; i < DEMO_MODELS; i++) {
    d->models[i].text = run_speak(d->ctx, d->model[i], PROMPT, SPEAK_TOKENS);
    if (!d->models[i].text) return CLI_FAILED;
    if (i == TEACHER || i >= STUDENT) print_spoken(d->models[i].is.name, d->models[i].text);
  }
  printf("\n");
  return CLI_GO;
}

typedef struct ranked {
  double error;
  int layer, head;
} ranked;

static int by_error(const void *a, const void *b) {
  const double x = ((const ranked *)a)->error, y = ((const ranked *)b)->error;
  return (x > y) - (x < y);
}

/* The finished student's head whose relative error is the median of all. */
static int median_head(demo *d, const int32_t *tokens, mhk_index T, ranked *median) {
  const int layers = mhk_model_config(d->teacher)->n_layer, heads = mhk_model_config(d->teacher)->n_head;
  ranked *all = (ranked *)malloc((size_t)(layers * heads) * sizeof *all);
  int l, h, good = all != NULL;
  for (l = 0; l < layers && good; l++) {
    float *teacher = picture_matrices(d->ctx, d->teacher, d->teacher, l, tokens, T),
          *student = teacher ? picture_matrices(d->ctx, d->model[STUDENT], d->teacher, l, tokens, T) : NULL;
    good = student != NULL;
    for (h = 0; good && h < heads; h++) {
      ranked *x = &all[l * heads + h];
      x->error = picture_distance(student + h * T * T, teacher + h * T * T, T);
      x->layer = l;
      x->head = h;
    }
    free(teacher);
    free(student);
  }
  if (good) {
    qsort(all, (size_t)(layers * heads), sizeof *all, by_error);
    *median = all[(layers * heads - 1) / 2];
  }
  free(all);
  return good ? CLI_GO : CLI_FAILED;
}

/* matrices.svg: one head of the teacher, of the student at three points of its life and of the
   student with a window */
static int draw(demo *d) {
  static const char *const titles[DEMO_PANELS] = {NULL, "student, untrained", "student, after stage 1",
                                                  "student, after stage 3", "student, window 16"};
  static const int sources[DEMO_PANELS] = {TEACHER, UNTRAINED, STAGE_1_DONE, STUDENT, WINDOWED};
  const int32_t *tokens;
  picture_panel panels[DEMO_PANELS];
  float *m[DEMO_PANELS] = {NULL};
  char path[1024], title[64];
  ranked median;
  cli_output o;
  mhk_index T = mhk_corpus_tokens(d->story, &tokens);
  int i, code;
  if (T > WATCH_TOKENS) T = WATCH_TOKENS;
  code = median_head(d, tokens, T, &median);
  if (code == CLI_GO) snprintf(title, sizeof title, "teacher, head %d.%d (median)", median.layer, median.head);
  for (i = 0; i < DEMO_PANELS && code == CLI_GO; i++) {
    m[i] = picture_matrices(d->ctx, d->model[sources[i]], d->teacher, median.layer, tokens, T);
    panels[i].title = i ? titles[i] : title;
    panels[i].matrix = m[i] ? m[i] + median.head * T * T : NULL;
    if (!m[i]) code = CLI_FAILED;
  }
  if (code == CLI_GO) code = out_path(d, path, sizeof path, "matrices.svg");
  if (code == CLI_GO) code = cli_output_open(&o, path);
  if (code == CLI_GO) {
    picture_svg(o.file, panels, DEMO_PANELS, T);
    code = cli_output_close(&o);
  }
  for (i = 0; i < DEMO_PANELS; i++) free(m[i]);
  return code;
}

/* ---------------------------------------------------------------- all of it */

/* teacher, budgets, the students' shapes, and the plan that they make */
static int prepare(demo *d) {
  static const char *const names[DEMO_RUNS] = {"three stages", "stage 3 alone", "hybrid", "window 16"};
  static const char *const folders[DEMO_RUNS] = {"pure", "alone", "hybrid", "window"};
  static const double budget[3] = {STAGE_1, STAGE_2, STAGE_3};
  const double x = scale(d->s), update = BATCH * LENGTH;
  const mhk_config *c;
  mhk_distill_desc run;
  cli_buffer n, threads;
  char mixers[64];
  int i;
  d->teacher = cli_load(d->ctx, d->s->teacher);
  if (!d->teacher) return cli_context_error(d->ctx);
  c = mhk_model_config(d->teacher);
  if (c->n_layer <= HYBRID_LAYER)
    return cli_error("the demo needs a teacher with at least %d layers; %s has %d", HYBRID_LAYER + 1, d->s->teacher,
                     c->n_layer);
  for (i = 0; i < 3; i++) d->budget[i] = fmax(update, floor(budget[i] * x / update + 0.5) * update);
  d->text_tokens = fmax(16 * LENGTH, floor(TEXT_TOKENS * x));
  d->sample_tokens = fmax(8 * LENGTH, floor(EVAL_TOKENS * (d->s->short_run ? SHORT : 1)));
  for (i = 0; i < DEMO_RUNS; i++) {
    d->runs[i].name = names[i];
    d->runs[i].folder = folders[i];
    fill_run(d, i, &run);
    d->runs[i].student = mhk_model_config(mhk_student_create(d->ctx, d->teacher, &run.student_desc));
  }
  d->model[TEACHER] = d->teacher;
  if (mhk_failed(d->ctx)) return cli_context_error(d->ctx);
  printf("teacher   %s, %d layers, d_model %d, %s parameters (%s); %s\n",
         run_mixers(c, mixers, sizeof mixers), c->n_layer, c->d_model,
         cli_count(mhk_config_parameters(c), &n), d->s->teacher, cli_threads(d->ctx, &threads));
  return make_plan(d);
}

static int load_texts(demo *d) {
  char path[1024];
  mhk_corpus_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.n_files = 1;
  desc.files = &d->s->story;
  d->story = run_load_text(d->ctx, d->teacher, NULL, &desc, CLI_UTF8);
  if (!d->story || out_path(d, path, sizeof path, "text.safetensors") != CLI_GO) return CLI_FAILED;
  d->story_tokens = (double)mhk_corpus_tokens(d->story, NULL);
  d->text = run_sampled_text(d->ctx, d->teacher, path, (mhk_index)d->text_tokens, TRAIN_SEED);
  if (!d->text || out_path(d, path, sizeof path, "eval.safetensors") != CLI_GO) return CLI_FAILED;
  d->samples = run_sampled_text(d->ctx, d->teacher, path, (mhk_index)d->sample_tokens, EVAL_SEED);
  return d->samples ? CLI_GO : CLI_FAILED;
}

/* all models, for programs */
static int write_json(const demo *d, const char *path) {
  cli_output o;
  cli_json j;
  int i;
  if (cli_output_open(&o, path) != CLI_GO) return CLI_FAILED;
  json_start(&j, o.file, 1);
  json_open(&j, NULL, '[');
  for (i = 0; i < DEMO_MODELS; i++) {
    const demo_model *m = &d->models[i];
    json_open(&j, NULL, '{');
    json_text(&j, "name", m->is.name);
    json_count(&j, "tokens", m->tokens);
    run_json_evaluation(&j, &m->all, 1);
    json_open(&j, "samples", '{');
    run_json_evaluation(&j, &m->samples, 1);
    json_close(&j);
    json_open(&j, "story", '{');
    run_json_evaluation(&j, &m->story, 1);
    json_close(&j);
    json_close(&j);
  }
  json_close(&j);
  return cli_output_close(&o);
}

/* results.json of one run, as mohawk distill writes it */
static int write_run(const demo *d, int number, const char *folder) {
  char path[1024];
  mhk_distill_desc desc;
  cli_output o;
  cli_json j;
  int i;
  if (cli_join(path, sizeof path, folder, "results.json") != CLI_GO || cli_output_open(&o, path) != CLI_GO)
    return CLI_FAILED;
  fill_run(d, number, &desc);
  json_start(&j, o.file, 1);
  json_open(&j, NULL, '{');
  json_open(&j, "tokens", '[');
  for (i = 0; i < 3; i++) json_count(&j, NULL, (double)desc.stages[i].tokens);
  json_close(&j);
  run_json_models(&j, mhk_model_config(d->teacher), d->runs[number].student);
  json_text(&j, "prompt", PROMPT);
  json_open(&j, "teacher", '{');
  run_json_evaluation(&j, &d->models[TEACHER].all, 0);
  json_text(&j, "sample", d->models[TEACHER].text);
  json_close(&j);
  json_open(&j, "evaluations", '[');
  if (number <= ALONE) /* both start as the same student */
    run_json_milestone(&j, 0, 0, &d->models[UNTRAINED].all, 1, number == ALONE ? NULL : d->models[UNTRAINED].text);
  for (i = 0; number == ALONE && i < DEMO_MARKS; i++)
    run_json_milestone(&j, 3, mark_tokens(d, i), &d->marks[i], 1, NULL);
  for (i = 0; i < DEMO_MODELS; i++)
    if (d->models[i].is.run == number)
      run_json_milestone(&j, d->models[i].is.stage, d->models[i].tokens, &d->models[i].all, 1,
                         d->models[i].text);
  json_close(&j);
  json_raw(&j, "finished", "true");
  json_close(&j);
  return cli_output_close(&o);
}

/* What programs and people read: results.json, those of the runs, the student, report.html. */
static int write_results(demo *d) {
  static char folders[DEMO_RUNS][1024];
  const char *paths[DEMO_RUNS], *names[DEMO_RUNS];
  char student[1024], json[1024], html[1024], svg[1024], note[512];
  report_about about = {.names = names, .note = note, .svg = svg};
  cli_buffer b, n;
  int i;
  if (out_path(d, student, sizeof student, "student") != CLI_GO ||
      out_path(d, json, sizeof json, "results.json") != CLI_GO ||
      out_path(d, html, sizeof html, "report.html") != CLI_GO || out_path(d, svg, sizeof svg, "stages.svg") != CLI_GO)
    return CLI_FAILED;
  for (i = 0; i < DEMO_RUNS; i++) {
    paths[i] = folders[i];
    names[i] = d->runs[i].name;
    if (out_path(d, folders[i], sizeof folders[i], d->runs[i].folder) != CLI_GO ||
        write_run(d, i, folders[i]) != CLI_GO)
      return CLI_FAILED;
  }
  snprintf(note, sizeof note,
           "The text to learn from is %s tokens that the teacher generated. Held-out text is %s more, generated with "
           "another seed, and a story written for this project.%s%s",
           cli_count(d->text_tokens, &b), cli_count(d->sample_tokens, &n),
           d->s->short_run ? " This was a short run: it checks that everything works, not how good the student gets."
                           : "",
           strcmp(d->s->teacher, defaults.teacher) == 0
               ? " The bundled teacher was trained on stories by Pratham Books and African Storybook, CC-BY, and "
                 "public-domain books; do not expect more from a million parameters."
               : "");
  if (mhk_save(d->model[STUDENT], student, MHK_F32) != MHK_OK) return cli_context_error(d->ctx);
  if (write_json(d, json) != CLI_GO || report_write(d->ctx, html, DEMO_RUNS, paths, &about) != CLI_GO)
    return CLI_FAILED;
  printf("saved     %s (safetensors, config.json, tokenizer.json),\n          %s, %s, %s, %s/matrices.svg\n", student,
         html, json, svg, d->s->out);
  if (d->started > 0) printf("took      %s\n", cli_time(cli_clock() - d->started, &b));
  return CLI_GO;
}

static int distil_and_report(demo *d) {
  if (prepare(d) != CLI_GO) return CLI_FAILED;
  cli_catch_signals();
  if (load_texts(d) != CLI_GO || train_all(d) != CLI_GO || measure_all(d) != CLI_GO) return CLI_FAILED;
  print_table(d);
  if (speak_all(d) != CLI_GO || draw(d) != CLI_GO || write_results(d) != CLI_GO) return CLI_FAILED;
  return CLI_OK;
}

static int run_demo(mhk_context *ctx, void *user) {
  demo d;
  int code, i;
  memset(&d, 0, sizeof d);
  d.s = (const settings *)user;
  d.started = cli_clock();
  d.ctx = ctx;
  code = distil_and_report(&d);
  if (code != CLI_OK && cli_stopped()) cli_say_resume(d.s->out);
  for (i = 0; i < DEMO_MODELS; i++) free(d.models[i].text);
  return code;
}

const cli_command command_demo = {
    .name = "demo",
    .summary = "distill and measure a small teacher in a few minutes",
    .synopsis = "[options]",
    .about = "Distills the bundled teacher into four students: one in three stages, one with stage 3 only, a hybrid, "
             "and one that also sees the last 16 tokens exactly. Measures them on held-out text and writes a report. "
             "Ctrl-C saves; run the same command again to resume.",
    .example = "make demo",
    CLI_OPTIONS(options),
    CLI_SETTINGS(defaults),
    .body = run_demo,
};
