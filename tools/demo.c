/* mohawk demo: a small trained Phi becomes a state-space model in three stages, measured and
   drawn. */
#include "demo.h"
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
#define PICTURE_LAYER 0
#define PICTURE_HEAD 1
#define PICTURE_TOKENS 64
#define TRAIN_SEED 1
#define EVAL_SEED 1000003
#define SPEAK_TOKENS 60
#define PROMPT "Once upon a time, there was a boy called"

static const demo_entry entries[DEMO_MODELS] = {
    {"teacher", "the Transformer that is distilled", -1, 0},
    {"untrained",
     "embedding, MLPs, norms and head of the teacher; mixers initialized from its attention weights and calibrated on "
     "a few windows of text",
     -1, 0},
    {"after stage 1", "matrix orientation: mixing matrices match, layer by layer", 0, 1},
    {"after stage 2", "hidden-state alignment: block outputs match, layer by layer", 0, 2},
    {"after stage 3", "knowledge distillation: the finished student", 0, 3},
    {"stage 3 alone", "the same student with the whole budget in stage 3", 1, 3},
    {"hybrid", "all three stages, with one layer that keeps attention", 2, 3},
    {"window 16", "all three stages; each head also sees the last 16 tokens exactly", 3, 3},
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
  float *matrices[DEMO_PANELS];
  const char *saving; /* folder of the run in progress */
  double started;
  demo_results r;
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

/* takes away what earlier calls trained */
static void forget(const demo *d) {
  char folder[1024], path[1024];
  int i, k;
  for (i = 0; i < DEMO_RUNS; i++) {
    if (out_path(d, folder, sizeof folder, d->r.runs[i].folder) != CLI_GO) continue;
    for (k = 1; k <= 3; k++)
      if (stage_path(path, sizeof path, folder, k) == CLI_GO) remove(path);
    if (cli_join(path, sizeof path, folder, "checkpoint.safetensors") == CLI_GO) remove(path);
    if (cli_join(path, sizeof path, folder, "checkpoint.previous.safetensors") == CLI_GO) remove(path);
  }
}

/* What decides the results. When the folder holds results of another plan they are not used. */
static int make_plan(demo *d) {
  char path[1024], plan[512], found[512] = "";
  const double *b = d->r.budget;
  cli_output o;
  size_t n = 0;
  FILE *f;
  snprintf(plan, sizeof plan,
           "mohawk %s teacher %s tokens %.0f %.0f %.0f of %.0f, rates %g %g %g %g, batch %d x %d, attention in %d, "
           "window %d, seed %d\n",
           mhk_version(), d->s->teacher, b[0], b[1], b[2], d->r.text_tokens, LR_1, LR_2, LR_3, LR_ALONE, BATCH, LENGTH,
           HYBRID_LAYER, WINDOW, TRAIN_SEED);
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
  const double *b = d->r.budget, rates[3] = {LR_1, LR_2, LR_3};
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
  if (out_path(d, folder, sizeof folder, d->r.runs[number].folder) != CLI_GO || cli_make_folders(folder) != CLI_GO)
    return RUN_FAILED;
  r.desc.out = d->saving = folder;
  r.after_stage = after_stage;
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
  double all = d->r.budget[0] + d->r.budget[1] + d->r.budget[2];
  run_result result = RUN_DONE;
  int i;
  for (i = 0; i < DEMO_RUNS && result == RUN_DONE; i++) {
    static const char *const labels[DEMO_RUNS] = {"student", "alone", "hybrid", "window"};
    const mhk_config *c = d->r.runs[i].student;
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
  if (out_path(d, folder, sizeof folder, d->r.runs[e->run].folder) != CLI_GO ||
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

static int measure_all(demo *d) {
  int i;
  d->model[UNTRAINED] = start(d);
  for (i = 0; i < DEMO_MODELS; i++) {
    demo_model *m = &d->r.models[i];
    const mhk_evaluate_desc samples = {.teacher = d->teacher, .corpus = d->samples, .length = LENGTH},
                            story = {.teacher = d->teacher, .corpus = d->story, .length = LENGTH};
    m->is = entries[i];
    m->tokens = trained_on(d, &m->is);
    if (m->is.run >= 0) d->model[i] = load_stage(d, &m->is);
    if (!d->model[i]) return CLI_FAILED;
    if (run_evaluate(d->ctx, d->model[i], &samples, m->is.name, &m->samples) != CLI_GO ||
        run_evaluate(d->ctx, d->model[i], &story, m->is.name, &m->story) != CLI_GO)
      return CLI_FAILED;
    m->all = run_join(&m->samples, &m->story);
  }
  return CLI_GO;
}

static void print_table(const demo *d) {
  int i;
  cli_buffer a, b;
  printf("\nmeasured on held-out text: %s tokens of teacher samples, %s of %s\n",
         cli_count(d->r.sample_tokens, &a), cli_count(d->r.story_tokens, &b), d->s->story);
  run_print_header(stdout);
  for (i = 0; i < DEMO_MODELS; i++) run_print_row(stdout, d->r.models[i].is.name, &d->r.models[i].all, i > 0);
}

/* ---------------------------------------------------------------- speaking and drawing */

static char *speak(mhk_model *m) {
  enum { ROOM = SPEAK_TOKENS * 64 };
  mhk_sampling sampling;
  mhk_session *session = mhk_session_create(m, NULL);
  char *text = (char *)calloc(1, ROOM);
  size_t used = 0;
  int i;
  memset(&sampling, 0, sizeof sampling);
  sampling.temperature = 0.7;
  sampling.top_p = 0.9;
  sampling.seed = 7;
  mhk_feed_text(session, PROMPT);
  for (i = 0; text && i < SPEAK_TOKENS && mhk_sample(session, &sampling) >= 0; i++) {
    const char *more = mhk_text_out(session);
    size_t n = strlen(more);
    if (used + n >= ROOM) break;
    memcpy(text + used, more, n);
    used += n;
  }
  mhk_session_destroy(session);
  return text;
}

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
    d->r.models[i].text = speak(d->model[i]);
    if (mhk_failed(d->ctx)) return cli_context_error(d->ctx);
    if (i == TEACHER || i >= STUDENT) print_spoken(d->r.models[i].is.name, d->r.models[i].text);
  }
  printf("\n");
  return CLI_GO;
}

/* matrices of the teacher, of the student at three points of its life and of the student with a
   window, and how far all their heads are from the teacher's */
static int draw(demo *d) {
  static const char *const titles[DEMO_PANELS] = {"teacher", "student, untrained", "student, after stage 1",
                                                  "student, after stage 3", "student, window 16"};
  static const int sources[DEMO_PANELS] = {TEACHER, UNTRAINED, STAGE_1_DONE, STUDENT, WINDOWED};
  const int layers = d->r.teacher->n_layer, heads = d->r.teacher->n_head;
  const int32_t *tokens;
  char path[1024];
  cli_output o;
  int i, l, h;
  d->r.T = mhk_corpus_tokens(d->story, &tokens);
  if (d->r.T > PICTURE_TOKENS) d->r.T = PICTURE_TOKENS;
  d->r.distance = (double *)calloc((size_t)(DEMO_PANELS * layers * heads), sizeof *d->r.distance);
  if (!d->r.distance) return cli_error("out of memory");
  for (l = 0; l < layers; l++) {
    float *m[DEMO_PANELS] = {NULL};
    for (i = 0; i < DEMO_PANELS; i++) {
      m[i] = picture_matrices(d->ctx, d->model[sources[i]], d->teacher, l, tokens, d->r.T);
      for (h = 0; m[0] && m[i] && h < heads; h++)
        d->r.distance[(i * layers + l) * heads + h] =
            picture_distance(m[i] + h * d->r.T * d->r.T, m[0] + h * d->r.T * d->r.T, d->r.T);
    }
    for (i = 0; i < DEMO_PANELS; i++) {
      if (l == d->r.layer) {
        d->matrices[i] = m[i];
      } else {
        free(m[i]);
      }
    }
  }
  for (i = 0; i < DEMO_PANELS; i++) {
    if (!d->matrices[i]) return CLI_FAILED;
    d->r.panels[i].title = titles[i];
    d->r.panels[i].matrix = d->matrices[i] + d->r.head * d->r.T * d->r.T;
  }
  if (out_path(d, path, sizeof path, "matrices.svg") != CLI_GO || cli_output_open(&o, path) != CLI_GO)
    return CLI_FAILED;
  picture_svg(o.file, d->r.panels, DEMO_PANELS, d->r.T);
  return cli_output_close(&o);
}

/* ---------------------------------------------------------------- all of it */

/* teacher, budgets, the students' shapes, and the plan that they make */
static int prepare(demo *d) {
  static const char *const names[DEMO_RUNS] = {"three stages", "stage 3 alone", "hybrid", "window 16"};
  static const char *const folders[DEMO_RUNS] = {"pure", "alone", "hybrid", "window"};
  static const double budget[3] = {STAGE_1, STAGE_2, STAGE_3};
  const double x = scale(d->s), update = BATCH * LENGTH;
  mhk_distill_desc run;
  cli_buffer n, threads;
  char mixers[64];
  int i;
  d->teacher = cli_load(d->ctx, d->s->teacher);
  if (!d->teacher) return cli_context_error(d->ctx);
  d->r.out = d->s->out;
  d->r.teacher_path = d->s->teacher;
  d->r.prompt = PROMPT;
  d->r.short_run = d->s->short_run;
  d->r.length = LENGTH;
  d->r.hybrid_layer = HYBRID_LAYER;
  d->r.layer = PICTURE_LAYER;
  d->r.head = PICTURE_HEAD;
  d->r.teacher = mhk_model_config(d->teacher);
  if (d->r.teacher->n_layer <= HYBRID_LAYER)
    return cli_error("the demo needs a teacher with at least %d layers; %s has %d", HYBRID_LAYER + 1, d->s->teacher,
                     d->r.teacher->n_layer);
  for (i = 0; i < 3; i++) d->r.budget[i] = fmax(update, floor(budget[i] * x / update + 0.5) * update);
  d->r.text_tokens = fmax(16 * LENGTH, floor(TEXT_TOKENS * x));
  d->r.sample_tokens = fmax(8 * LENGTH, floor(EVAL_TOKENS * (d->s->short_run ? SHORT : 1)));
  for (i = 0; i < DEMO_RUNS; i++) {
    d->r.runs[i].name = names[i];
    d->r.runs[i].folder = folders[i];
    fill_run(d, i, &run);
    d->r.runs[i].student = mhk_model_config(mhk_student_create(d->ctx, d->teacher, &run.student_desc));
  }
  d->model[TEACHER] = d->teacher;
  if (mhk_failed(d->ctx)) return cli_context_error(d->ctx);
  printf("teacher   %s, %d layers, d_model %d, %s parameters (%s); %s\n",
         run_mixers(d->r.teacher, mixers, sizeof mixers), d->r.teacher->n_layer, d->r.teacher->d_model,
         cli_count(mhk_config_parameters(d->r.teacher), &n), d->s->teacher, cli_threads(d->ctx, &threads));
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
  d->r.story_tokens = (double)mhk_corpus_tokens(d->story, NULL);
  d->text = run_sampled_text(d->ctx, d->teacher, path, (mhk_index)d->r.text_tokens, TRAIN_SEED);
  if (!d->text || out_path(d, path, sizeof path, "eval.safetensors") != CLI_GO) return CLI_FAILED;
  d->samples = run_sampled_text(d->ctx, d->teacher, path, (mhk_index)d->r.sample_tokens, EVAL_SEED);
  return d->samples ? CLI_GO : CLI_FAILED;
}

static int write_results(demo *d) {
  char student[1024], json[1024], html[1024], folder[1024];
  cli_buffer b;
  int i;
  if (out_path(d, student, sizeof student, "student") != CLI_GO ||
      out_path(d, json, sizeof json, "results.json") != CLI_GO ||
      out_path(d, html, sizeof html, "report.html") != CLI_GO)
    return CLI_FAILED;
  for (i = 0; i < DEMO_RUNS; i++) {
    demo_training *t = &d->r.runs[i];
    if (out_path(d, folder, sizeof folder, t->folder) != CLI_GO) return CLI_FAILED;
    t->points = run_read_log(folder, 4, 0, &t->n_points);
  }
  if (d->started > 0) d->r.seconds = cli_clock() - d->started;
  if (mhk_save(d->model[STUDENT], student, MHK_F32) != MHK_OK) return cli_context_error(d->ctx);
  if (report_json(&d->r, json) != CLI_GO || report_html(&d->r, html) != CLI_GO) return CLI_FAILED;
  printf("saved     %s (safetensors, config.json, tokenizer.json),\n          %s, %s, %s/matrices.svg\n", student, html,
         json, d->s->out);
  if (d->r.seconds > 0) printf("took      %s\n", cli_time(d->r.seconds, &b));
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
  for (i = 0; i < DEMO_MODELS; i++) free(d.r.models[i].text);
  for (i = 0; i < DEMO_RUNS; i++) free(d.r.runs[i].points);
  for (i = 0; i < DEMO_PANELS; i++) free(d.matrices[i]);
  free(d.r.distance);
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
