/* mohawk distill: teacher in, state-space student out. */
#include "dryrun.h"
#include "heads.h"
#include "record.h"
#include "recording.h"
#include "report.h"
#include "settings.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct settings {
  const char *teacher, *from, *recording, *out, *rotary, *windows, *keep_heads, *keep_auto;
  cli_files text, eval;
  cli_numbers keep, tokens, lr, warmup, decay, weight_decay, clip, repeat, max_document;
  double temperature, hard_labels, own_stream, seconds, every;
  mhk_index batch, length, update_tokens, sample_tokens, eval_windows, eval_length, eval_max_document, context;
  int d_state, groups, chunk, recipe, init, train, decays, placement, dtype, seed, threads, window;
  int precision, recompute, one_layer, teacher_type, dry_run, keep_stages, fresh, force, no_eval, json, encoding;
  int report;
  int gates, no_gates, bias, no_bias, calibrate, no_calibrate;
} settings;

/* a run being prepared and carried out */
typedef struct distillation {
  const settings *s;
  mhk_context *ctx;
  mhk_model *teacher;
  mhk_corpus *eval_text;
  int keep[MHK_MAX_LAYERS];
  int32_t *windows; /* (n_layer,n_head), MHK_WINDOW_ALL in kept layers too; */
  int32_t *others;  /* the same for the student's description, which has kept layers apart */
  double auto_bytes; /* --keep auto:BYTES; 0: no */
  int auto_mean;    /* --windows auto:MEAN; 0: no */
  run r;
  cli_json json;
  mhk_evaluation after[4]; /* index: stage */
  int measured[4];
  const mhk_config *student; /* of the trainer's; NULL: not there yet */
  /* for --report */
  mhk_evaluation of_teacher;
  int teacher_measured;
  char *samples[4], *teacher_sample, prompt[512];
  double report_due;
  int header; /* of the table of evaluations: it is there */
  record_inputs inputs;
  recording played; /* --recording */
  settings effective; /* with the values of all defaults, and where they are texts: */
  char rotary[16];
} distillation;

static const settings defaults = {.out = "mohawk-out", .own_stream = -1, .eval_windows = 128, .seed = 1, .every = 10};

static const cli_option options[] = {
    {NULL, NULL, CLI_HEADING, 0, 0, 0, "what"},
    {"teacher", "DIR", CLI_TEXT, CLI_AT(teacher), 0, 0,
     "the teacher: a folder with config.json, safetensors and tokenizer.json (required, but not with --recording and "
     "--from)"},
    {"text", "FILE...", CLI_FILES, CLI_AT(text), 0, 0,
     "training text; <|endoftext|> separates documents; or the text.safetensors of a run. Without it, the teacher "
     "generates the text"},
    CLI_ENCODING(CLI_AT(encoding)),
    {"out", "DIR", CLI_TEXT, CLI_AT(out), 0, 0,
     "output folder for checkpoints, log.csv and the student (default mohawk-out)"},
    {"eval", "FILE...", CLI_FILES, CLI_AT(eval), 0, 0,
     "held-out text to evaluate teacher and student on, at the start and after each stage (default: new samples of the "
     "teacher)"},
    {"from", "DIR", CLI_TEXT, CLI_AT(from), 0, 0,
     "start from this student, as another run saved it, instead of a new one; stages that it has behind it get 0 "
     "--tokens"},
    {"recording", "DIR", CLI_TEXT, CLI_AT(recording), 0, 0,
     "the teacher's outputs for stages 2 and 3, from `mohawk record` with the same text, seed and sizes, in place of "
     "its weights. The teacher is then needed for stage 1 and for a new student, but not with --from, a student that "
     "still has its norms and MLPs, such as one after stage 1"},
    {"recipe", "best|paper", CLI_CHOICE, CLI_AT(recipe), 0, 0,
     "best (default): initialization from attention, calibrated, gates, biases, rotary B and C, alignment of hidden "
     "states in stage 3, learning rate decay over the second half of each stage; paper: initialization as identity, "
     "none of these additions, decay over the last tenth. The options below override single settings"},
    {NULL, NULL, CLI_HEADING, 0, 0, 0, "student"},
    {"keep-attention", "L,...", CLI_NUMBERS, CLI_AT(keep), 0, 255,
     "layers that keep attention, counted from 0: the student becomes a hybrid"},
    {"keep-heads", "L.H,...", CLI_TEXT, CLI_AT(keep_heads), 0, 0,
     "heads that keep attention, layer and head counted from 0; their keys and values grow with the text"},
    {"keep", "auto:BYTES", CLI_TEXT, CLI_AT(keep_auto), 0, 0,
     "keep the heads that look furthest, as many as this much state per sequence has room for after --context tokens"},
    {"context", "T", CLI_COUNT, CLI_AT(context), 1, 1e12,
     "tokens after which --keep counts the state (default: --length)"},
    {"window", "W", CLI_INT, CLI_AT(window), 0, 1 << 24,
     "tokens that every head sees exactly, beside its state: constant memory (default 0)"},
    {"windows", "L.H=W,...,W", CLI_TEXT, CLI_AT(windows), 0, 0,
     "the same by head, the last number for all others; or auto:MEAN, in all as many tokens as MEAN for each head has, "
     "more for heads that look far"},
    {"gates", NULL, CLI_FLAG, CLI_AT(gates), 0, 0, "gates on B and C (default: from --recipe), or"},
    {"no-gates", NULL, CLI_FLAG, CLI_AT(no_gates), 0, 0, "none"},
    {"bias", NULL, CLI_FLAG, CLI_AT(bias), 0, 0, "biases in the mixers' projections (default: from --recipe), or"},
    {"no-bias", NULL, CLI_FLAG, CLI_AT(no_bias), 0, 0, "none"},
    {"calibrate", NULL, CLI_FLAG, CLI_AT(calibrate), 0, 0,
     "start with the decays and sizes that a batch of the teacher's matrices has (default: from --recipe), or"},
    {"no-calibrate", NULL, CLI_FLAG, CLI_AT(no_calibrate), 0, 0, "do not"},
    {"init", "default|identity|attention|random", CLI_CHOICE, CLI_AT(init), 0, 0,
     "initialization of the new mixers (default: from --recipe)"},
    {"rotary", "teacher|none|N", CLI_TEXT, CLI_AT(rotary), 0, 0,
     "rotary embedding on the first N features of B and C (default: from --recipe)"},
    {"d-state", "N", CLI_INT, CLI_AT(d_state), 1, 4096, "state size (default: the teacher's head size)"},
    {"groups", "N", CLI_INT, CLI_AT(groups), 1, 65536,
     "groups of heads that share B and C, as a teacher's heads share keys (default: one for each head)"},
    {"chunk", "N", CLI_INT, CLI_AT(chunk), 1, 65536, "chunk_size in the student's config.json (default 128)"},
    {"dtype", "f32|f16|bf16", CLI_CHOICE, CLI_AT(dtype), 0, 0, "type of the saved weights (default f32)"},
    {NULL, NULL, CLI_HEADING, 0, 0, 0, "stages; one value for all three stages, or A,B,C for each; - is the default"},
    {"tokens", "A,B,C", CLI_NUMBERS, CLI_AT(tokens), 0, 1e15,
     "tokens for matrix orientation, hidden-state alignment, knowledge distillation; 0 skips a stage (default "
     "0.25M,0.75M,2M; paper: 0.5M,1M,1.5M)"},
    {"lr", "A,B,C", CLI_NUMBERS, CLI_AT(lr), 0, 10, "peak learning rates (default: from stage and model width)"},
    {"warmup", "A,B,C", CLI_NUMBERS, CLI_AT(warmup), 0, 1,
     "fraction of a stage for the warmup of the learning rate (default 0.05)"},
    {"decay", "A,B,C", CLI_NUMBERS, CLI_AT(decay), 0, 1,
     "fraction of a stage for the linear decay of the learning rate (default 0.5)"},
    {"weight-decay", "A,B,C", CLI_NUMBERS, CLI_AT(weight_decay), 0, 10, "weight decay of AdamW (default 0.1)"},
    {"weight-decay-on", "all|matrices", CLI_CHOICE, CLI_AT(decays), 0, 0,
     "which trained tensors get weight decay (default all)"},
    {"clip", "A,B,C", CLI_NUMBERS, CLI_AT(clip), 0, 1e9, "maximum gradient norm; 0: no clipping (default 0,0,1)"},
    {"temperature", "X", CLI_REAL, CLI_AT(temperature), 0.01, 100,
     "stage 3: temperature on the student's logits (default 1)"},
    {"hard-labels", "X", CLI_REAL, CLI_AT(hard_labels), 0, 1000,
     "stage 3: weight of cross-entropy against the text (default 0)"},
    {"own-stream", "X", CLI_REAL, CLI_AT(own_stream), 0, 1000,
     "stage 3: weight of the alignment of hidden states on the student's own inputs, which falls to 0 over the stage; "
     "0: none (default 0.06; paper: 0)"},
    {"train", "all|mixers", CLI_CHOICE, CLI_AT(train), 0, 0, "stage 3: which parts train (default all)"},
    {NULL, NULL, CLI_HEADING, 0, 0, 0, "data"},
    {"batch", "N", CLI_COUNT, CLI_AT(batch), 1, 1e6, "sequences per batch (default 4; paper: 8)"},
    {"length", "N", CLI_COUNT, CLI_AT(length), 2, 1e7, "tokens per sequence (default 256)"},
    {"update-tokens", "N", CLI_COUNT, CLI_AT(update_tokens), 1, 1e12,
     "tokens per update, by accumulating gradients (default batch x length)"},
    {"placement", "random|packed", CLI_CHOICE, CLI_AT(placement), 0, 0,
     "sequences at random positions, or documents packed in order with boundaries (default random)"},
    {"repeat", "N,...", CLI_NUMBERS, CLI_AT(repeat), 1, 1000, "how many times each file of --text is used (default 1)"},
    {"max-document", "BYTES,...", CLI_NUMBERS, CLI_AT(max_document), 0, 1e15,
     "split documents at the first line end after this many bytes; one value for each file of --text; 0: never "
     "(default 0)"},
    {"sample-tokens", "N", CLI_COUNT, CLI_AT(sample_tokens), 64, 1e12,
     "tokens that the teacher generates without --text (default: the budget, at most 2M)"},
    {"eval-windows", "N", CLI_COUNT, CLI_AT(eval_windows), 0, 1e12, "windows to evaluate on; 0: all (default 128)"},
    {"eval-length", "N", CLI_COUNT, CLI_AT(eval_length), 2, 1e7,
     "tokens per window of the evaluation (default: --length)"},
    {"eval-max-document", "BYTES", CLI_COUNT, CLI_AT(eval_max_document), 0, 1e15,
     "as --max-document, for --eval (default 0)"},
    {"no-eval", NULL, CLI_FLAG, CLI_AT(no_eval), 0, 0, "do not evaluate"},
    {NULL, NULL, CLI_HEADING, 0, 0, 0, "run"},
    {"seed", "N", CLI_INT, CLI_AT(seed), 1, 2e9, "seed of the new mixers, the windows and the samples (default 1)"},
    CLI_THREADS(CLI_AT(threads)),
    {"precision", "f32|bf16", CLI_CHOICE, CLI_AT(precision), 0, 0,
     "operands of the matrix products in linear layers during training. bf16 is faster on processors with AVX512-BF16 "
     "(AMD) or AMX and slower elsewhere; sums, weights and everything else stay float32 (default f32)"},
    {"recompute", NULL, CLI_FLAG, CLI_AT(recompute), 0, 0,
     "stage 3 recomputes blocks in the backward pass: less memory, a third more time"},
    {"one-layer-at-a-time", NULL, CLI_FLAG, CLI_AT(one_layer), 0, 0,
     "stages 1 and 2 train one layer on all their tokens, then the next: the same bits, with gradients and moments of "
     "one layer in memory and the hidden states of all tokens in files in --out"},
    {"teacher-type", "stored|int8|int4", CLI_CHOICE, CLI_AT(teacher_type), 0, 0,
     "type of the weights that compute the teacher's targets; int8 and int4 are copies in memory (default stored)"},
    {"keep-stages", NULL, CLI_FLAG, CLI_AT(keep_stages), 0, 0,
     "also keep the students after stages 1 and 2, in stage1 and stage2 of --out, with the checkpoint of that moment"},
    {"report", NULL, CLI_FLAG, CLI_AT(report), 0, 0,
     "write report.html into --out every ten seconds, to be watched in a browser, and once more at the end; also "
     "evaluate the teacher, the student before the training and after each stage, and let all of them continue a text"},
    {"checkpoint-seconds", "N", CLI_REAL, CLI_AT(seconds), 0.01, 1e9,
     "seconds between checkpoints; the last two are kept (default 60)"},
    {"dry-run", NULL, CLI_FLAG, CLI_AT(dry_run), 0, 0,
     "only say what memory and time each stage will take here, from a few updates of a teacher with one and two "
     "layers, and what to change if it does not fit"},
    {"fresh", NULL, CLI_FLAG, CLI_AT(fresh), 0, 0, "start over even if --out has a checkpoint"},
    {"force", NULL, CLI_FLAG, CLI_AT(force), 0, 0, "start even if there seems to be too little memory"},
    {"every", "SECONDS", CLI_REAL, CLI_AT(every), 0.1, 1e6,
     "seconds between lines of progress if there is no terminal (default 10)"},
    CLI_STRICT,
    {"json", NULL, CLI_FLAG, CLI_AT(json), 0, 0, "print JSON lines instead of text"},
};

/* in a description 0 means default and negative none; at the command line 0 means 0 */
static double given(const cli_numbers *numbers, int i) {
  double x = cli_number_at(numbers, i, NAN);
  return isnan(x) ? 0 : x > 0 ? x : -1;
}

static void fill_stage(const settings *s, int i, mhk_stage_desc *stage) {
  mhk_distill_desc recipe;
  memset(&recipe, 0, sizeof recipe);
  recipe.recipe = (mhk_recipe)s->recipe;
  stage->tokens = (mhk_index)cli_number_at(&s->tokens, i, (double)mhk_distill_defaults(&recipe).stages[i].tokens);
  if (i == 0 && s->tokens.n == 0 && !s->teacher) stage->tokens = 0;
  stage->lr = cli_number_at(&s->lr, i, 0);
  stage->warmup = given(&s->warmup, i);
  stage->decay = given(&s->decay, i);
  stage->weight_decay = given(&s->weight_decay, i);
  stage->clip = given(&s->clip, i);
  if (i < 2) return;
  stage->temperature = s->temperature;
  stage->hard_labels = s->hard_labels;
  if (s->own_stream >= 0) stage->own_stream = s->own_stream > 0 ? s->own_stream : -1;
  stage->trains = s->train == 1 ? MHK_TRAIN_MIXERS : MHK_TRAIN_DEFAULT;
}

/* in a description 0 is the recipe's choice */
static int switched(int on, int off) { return on ? 1 : off ? -1 : 0; }

/* the number in "auto:NUMBER"; 0 where text says something else, -1 after a message */
static double automatic(const char *option, const char *text) {
  double x = 0;
  const char *end;
  if (!text || strncmp(text, "auto:", 5) != 0) return 0;
  end = cli_read_number(text + 5, &x);
  if (end && *end == 0 && x >= 1) return x;
  cli_error("--%s %s: auto: needs a number of 1 or more behind it", option, text);
  return -1;
}

/* whose sizes and tokenizer count: the teacher, or with a recording of one the student */
static mhk_model *shaped(const distillation *d) { return d->teacher ? d->teacher : d->r.desc.student; }

/* Windows, heads and layers as they were given; what is chosen from the text follows later. */
static int fill_windows(distillation *d) {
  const settings *s = d->s;
  const mhk_config *teacher = mhk_model_config(shaped(d));
  const mhk_index heads = (mhk_index)teacher->n_layer * teacher->n_head;
  mhk_index i;
  int h;
  d->auto_bytes = automatic("keep", s->keep_auto);
  d->auto_mean = (int)automatic("windows", s->windows);
  if (d->auto_bytes < 0 || d->auto_mean < 0) return CLI_FAILED;
  d->windows = (int32_t *)calloc((size_t)heads + 1, sizeof *d->windows);
  d->others = (int32_t *)calloc((size_t)heads + 1, sizeof *d->others);
  if (!d->windows || !d->others) return cli_error("out of memory for %lld heads", (long long)heads);
  for (i = 0; i < heads; i++) d->windows[i] = d->auto_mean ? d->auto_mean : s->window;
  if (s->windows && !d->auto_mean && head_parse_windows(s->windows, teacher, d->windows) != CLI_GO) return CLI_FAILED;
  if (s->keep_heads && head_parse_kept(s->keep_heads, teacher, d->windows) != CLI_GO) return CLI_FAILED;
  for (i = 0; i < s->keep.n; i++) {
    const int l = (int)cli_number_at(&s->keep, (int)i, -1);
    if (l < 0 || l >= teacher->n_layer)
      return cli_error("--keep-attention: there is no layer %d; the teacher has layers 0 to %d", l,
                       teacher->n_layer - 1);
    for (h = 0; h < teacher->n_head; h++) d->windows[l * teacher->n_head + h] = MHK_WINDOW_ALL;
  }
  return CLI_GO;
}

/* Says the windows in the description. A layer that keeps all its heads is kept attention. */
static void use_windows(distillation *d) {
  mhk_student_desc *student = &d->r.desc.student_desc;
  const mhk_config *teacher = mhk_model_config(shaped(d));
  const int heads = teacher->n_head;
  int l, h, same = 1;
  student->n_keep_attention = 0;
  for (l = 0; l < teacher->n_layer; l++) {
    const int kept = head_keeps_layer(d->windows, l, heads);
    if (kept) d->keep[student->n_keep_attention++] = l;
    for (h = l * heads; h < (l + 1) * heads; h++) {
      d->others[h] = kept ? d->s->window : d->windows[h];
      same &= d->others[h] == d->s->window;
    }
  }
  student->keep_attention = d->keep;
  student->window = d->s->window;
  student->windows = same ? NULL : d->others;
}

static int fill_student(distillation *d, mhk_student_desc *student) {
  const settings *s = d->s;
  const mhk_config *teacher = mhk_model_config(shaped(d));
  if (s->from) {
    d->r.desc.student = cli_load(d->ctx, s->from);
    if (!d->r.desc.student || mhk_model_make_trainable(d->r.desc.student) != MHK_OK) return cli_context_error(d->ctx);
    return fill_windows(d);
  }
  student->d_state = s->d_state;
  student->groups = s->groups;
  student->gates = switched(s->gates, s->no_gates);
  student->bias = switched(s->bias, s->no_bias);
  student->calibrate = switched(s->calibrate, s->no_calibrate);
  student->chunk_size = s->chunk;
  student->seed = (uint64_t)s->seed;
  student->init = (mhk_init)s->init;
  if (s->rotary && strcmp(s->rotary, "none") == 0) {
    student->rotary_dim = -1;
  } else if (s->rotary && strcmp(s->rotary, "teacher") == 0) {
    student->rotary_dim = teacher->rotary_dim > 0 ? teacher->rotary_dim : -1;
  } else if (s->rotary) {
    student->rotary_dim = atoi(s->rotary);
    if (student->rotary_dim <= 0)
      return cli_error("--rotary %s is not teacher, none or a number of features", s->rotary);
  }
  if (fill_windows(d) != CLI_GO) return CLI_FAILED;
  use_windows(d);
  return CLI_GO;
}

/* the student without windows, for what its state takes */
static mhk_config shape_of(const distillation *d) {
  const mhk_student_desc *student = &d->r.desc.student_desc;
  mhk_config c = head_student_shape(mhk_model_config(shaped(d)));
  if (student->d_state) c.d_state = student->d_state;
  if (student->groups) c.ssm_groups = student->groups;
  c.gates = student->gates > 0 || (student->gates == 0 && d->r.desc.recipe == MHK_RECIPE_BEST);
  return c;
}

/* Chooses heads and windows from the first sequences of the text, as `mohawk heads` does. */
static int choose(distillation *d) {
  const mhk_index length = mhk_distill_defaults(&d->r.desc).length;
  const int window = d->auto_mean ? d->auto_mean : d->s->window;
  head_budget b = {.shape = shape_of(d), .context = d->s->context ? d->s->context : length, .bytes = d->auto_bytes};
  head_scan *scan;
  char flags[4096];
  cli_buffer bytes;
  int code = CLI_GO;
  if (!d->auto_mean && d->auto_bytes <= 0) return CLI_GO;
  scan = head_scan_open(d->ctx, d->teacher, d->r.desc.corpus, 8, length);
  if (!scan) return CLI_FAILED;
  b.least = b.largest = window;
  b.keeps = 1;
  if (d->auto_bytes > 0) code = head_choose(scan, &b, d->windows);
  if (code == CLI_GO && d->auto_mean) {
    b.bytes = head_bytes(&b.shape, d->windows, b.context);
    b.least = window > 1 ? window / 2 : 1;
    b.largest = (int)(length / 2);
    b.keeps = 0;
    code = head_choose(scan, &b, d->windows);
  }
  head_scan_close(scan);
  if (code != CLI_GO) return code;
  head_flags(mhk_model_config(d->teacher), d->windows, flags, sizeof flags);
  cli_note("chosen from the text: %s, %s of state after %lld tokens", flags[0] ? flags : "nothing to keep",
           cli_bytes(head_bytes(&b.shape, d->windows, b.context), &bytes), (long long)b.context);
  use_windows(d);
  return CLI_GO;
}

/* says once what of the student that comes only mohawk reads */
static void say_layout(const distillation *d) {
  const mhk_student_desc *student = &d->r.desc.student_desc;
  const int best = d->r.desc.recipe == MHK_RECIPE_BEST;
  const char *said[3] = {NULL, NULL, NULL};
  int n = 0;
  if (student->rotary_dim > 0 || (best && student->rotary_dim == 0)) said[n++] = "rotary B and C";
  if (student->gates > 0 || (best && student->gates == 0)) said[n++] = "gates";
  if (student->window || student->windows) said[n++] = "windows of heads";
  if (n > 0)
    cli_note("the student leaves the authors' layout, with keys of its own for %s%s%s%s%s; --recipe paper keeps it",
             said[0], n == 3 ? ", " : n == 2 ? " and " : "", n > 1 ? said[1] : "", n == 3 ? " and " : "",
             n == 3 ? said[2] : "");
}

static int fill(distillation *d) {
  const settings *s = d->s;
  mhk_distill_desc *desc = &d->r.desc;
  int i;
  mhk_index tokens = 0;
  desc->teacher = d->teacher;
  desc->recipe = (mhk_recipe)s->recipe;
  for (i = 0; i < 3; i++) {
    fill_stage(s, i, &desc->stages[i]);
    tokens += desc->stages[i].tokens;
  }
  if (tokens == 0) return cli_error("--tokens leaves nothing to train: at least one stage needs tokens");
  desc->batch = s->batch;
  desc->length = s->length;
  desc->update_tokens = s->update_tokens;
  desc->windows = (mhk_windows)s->placement;
  desc->decays = (mhk_decays)s->decays;
  desc->recompute = s->recompute;
  desc->share = 1; /* the teacher stays loaded */
  desc->layer_by_layer = s->one_layer;
  desc->teacher_type = s->teacher_type == 1 ? MHK_Q8 : s->teacher_type == 2 ? MHK_Q4 : (mhk_dtype)0;
  desc->precision = (mhk_precision)s->precision;
  desc->seed = (uint64_t)s->seed;
  desc->out = s->out;
  desc->checkpoint_seconds = s->seconds;
  desc->fresh = s->fresh;
  return fill_student(d, &desc->student_desc);
}

/* ---------------------------------------------------------------- what a run was */

/* in a description a negative number is none, at the command line 0 */
static double none_is_0(double x) { return x > 0 ? x : 0; }

/* one number for each stage */
static void take_stages(const mhk_distill_desc *r, cli_numbers *list, size_t at) {
  int i;
  list->n = 3;
  for (i = 0; i < 3; i++)
    list->value[i] = none_is_0(*(const double *)(const void *)((const char *)&r->stages[i] + at));
}

/* a switch of the recipe, as one of its two options */
static void take_switch(int value, int best, int *on, int *off) {
  *on = value > 0 || (value == 0 && best);
  *off = !*on;
}

/* The options with which this run, and a later version with other defaults, does the same. */
static void resolve(distillation *d) {
  const mhk_distill_desc r = mhk_distill_defaults(&d->r.desc);
  const mhk_student_desc *student = &r.student_desc;
  const mhk_stage_desc *last = &r.stages[2];
  const int best = r.recipe == MHK_RECIPE_BEST;
  settings *e = &d->effective;
  int i;
  *e = *d->s;
  take_stages(&r, &e->lr, offsetof(mhk_stage_desc, lr));
  take_stages(&r, &e->warmup, offsetof(mhk_stage_desc, warmup));
  take_stages(&r, &e->decay, offsetof(mhk_stage_desc, decay));
  take_stages(&r, &e->weight_decay, offsetof(mhk_stage_desc, weight_decay));
  take_stages(&r, &e->clip, offsetof(mhk_stage_desc, clip));
  e->tokens.n = 3;
  for (i = 0; i < 3; i++) e->tokens.value[i] = (double)r.stages[i].tokens;
  e->temperature = last->temperature;
  e->hard_labels = last->hard_labels;
  e->own_stream = none_is_0(last->own_stream);
  e->batch = r.batch;
  e->length = r.length;
  e->update_tokens = r.update_tokens;
  e->seconds = r.checkpoint_seconds;
  e->eval_length = e->eval_length ? e->eval_length : r.length;
  if (e->text.n == 0 && e->sample_tokens == 0) {
    double budget = 0;
    for (i = 0; i < 3; i++) budget += (double)r.stages[i].tokens;
    e->sample_tokens = (mhk_index)fmin(budget, 2e6);
  }
  if (e->from) return;
  take_switch(student->gates, best, &e->gates, &e->no_gates);
  take_switch(student->bias, best, &e->bias, &e->no_bias);
  take_switch(student->calibrate, best, &e->calibrate, &e->no_calibrate);
  e->init = (int)student->init;
  e->chunk = student->chunk_size;
  e->groups = student->groups ? student->groups : mhk_model_config(d->teacher)->n_head;
  e->d_state = student->d_state ? student->d_state : mhk_model_config(d->teacher)->head_dim;
  snprintf(d->rotary, sizeof d->rotary, "%d", student->rotary_dim);
  e->rotary = student->rotary_dim < 0 ? "none" : d->rotary;
  if (student->rotary_dim == 0 || student->rotary_dim == mhk_model_config(d->teacher)->rotary_dim)
    e->rotary = "teacher";
}

static int hash_inputs(distillation *d) {
  const settings *s = d->s;
  char path[1024];
  int i, code = s->teacher ? record_add(&d->inputs, d->ctx, "teacher", s->teacher) : CLI_GO;
  if (code == CLI_GO && s->recording) code = cli_join(path, sizeof path, s->recording, "recording.json");
  if (code == CLI_GO && s->recording && !cli_exists(path))
    return cli_error("%s is no recording: it has no recording.json, which `mohawk record` writes", s->recording);
  if (code == CLI_GO && s->recording) code = record_add(&d->inputs, d->ctx, "recording", path);
  if (code == CLI_GO && s->from) code = record_add(&d->inputs, d->ctx, "from", s->from);
  for (i = 0; i < s->text.n && code == CLI_GO; i++) code = record_add(&d->inputs, d->ctx, "text", s->text.path[i]);
  for (i = 0; i < s->eval.n && code == CLI_GO; i++) code = record_add(&d->inputs, d->ctx, "eval", s->eval.path[i]);
  return code == CLI_GO ? record_check(&d->inputs, d->ctx) : code;
}

/* what is known of the run so far, in out/results.json */
static int results_path(const distillation *d, char *path, size_t room) {
  return cli_join(path, room, d->s->out, "results.json");
}

/* Evaluations of stages before this one, which an earlier start of the run made, as they stand
   there. */
static void json_earlier(const distillation *d, cli_json *j, foreign_json found, int stage) {
  foreign_json list, value;
  static char text[65536]; /* with what the student wrote */
  if (!foreign_json_find(found, "evaluations", &list) || *list.at != '[') return;
  for (list.at++; foreign_json_value(&list, &value);) {
    const double of = settings_number(value, "stage", 4);
    const size_t n = (size_t)(value.end - value.at);
    while (list.at < list.end && strchr(", \n", *list.at)) list.at++;
    if (of >= stage || d->measured[(int)of] || n >= sizeof text) continue;
    memcpy(text, value.at, n);
    text[n] = 0;
    json_raw(j, NULL, text);
  }
}

/* a member of the results as an earlier start of the run left it */
static void json_kept(cli_json *j, foreign_json found, const char *name) {
  foreign_json value;
  char *text;
  if (!found.at || !foreign_json_find(found, name, &value)) return;
  text = (char *)calloc(1, (size_t)(value.end - value.at) + 1);
  if (!text) return;
  memcpy(text, value.at, (size_t)(value.end - value.at));
  json_raw(j, name, text);
  free(text);
}

/* the teacher's own evaluation, and for --report what all models continue */
static void json_teacher(const distillation *d, cli_json *j, foreign_json found) {
  if (!d->teacher_measured) {
    json_kept(j, found, "prompt");
    json_kept(j, found, "teacher");
    return;
  }
  json_text(j, "prompt", d->prompt);
  json_open(j, "teacher", '{');
  run_json_evaluation(j, &d->of_teacher, 0);
  if (d->teacher_sample) json_text(j, "sample", d->teacher_sample);
  json_close(j);
}

/* tokens of whole updates up to the end of a stage */
static double trained_on(const distillation *d, int stage) {
  const mhk_distill_desc r = mhk_distill_defaults(&d->r.desc);
  double tokens = 0;
  int i;
  for (i = 0; i < stage; i++) tokens += (double)(r.stages[i].tokens / r.update_tokens * r.update_tokens);
  return tokens;
}

static int write_results(const distillation *d, int stage, int finished) {
  char path[1024];
  foreign_json found = {NULL, NULL};
  cli_output o;
  cli_json j;
  int i;
  if (results_path(d, path, sizeof path) != CLI_GO) return CLI_FAILED;
  if (cli_exists(path) && settings_json_file(path, &found) != CLI_GO) return CLI_FAILED;
  if (cli_output_open(&o, path) != CLI_GO) return CLI_FAILED;
  json_start(&j, o.file, 1);
  json_open(&j, NULL, '{');
  json_open(&j, "tokens", '[');
  for (i = 0; i < 3; i++) json_count(&j, NULL, d->effective.tokens.value[i]);
  json_close(&j);
  if (d->student && d->teacher) run_json_models(&j, mhk_model_config(d->teacher), d->student);
  json_teacher(d, &j, found);
  json_open(&j, "evaluations", '[');
  json_earlier(d, &j, found, stage);
  for (i = 0; i <= stage; i++) {
    if (!d->measured[i]) continue;
    run_json_milestone(&j, i, trained_on(d, i), &d->after[i], d->teacher != NULL, d->samples[i]);
  }
  json_close(&j);
  json_raw(&j, "finished", finished ? "true" : "false");
  json_close(&j);
  return cli_output_close(&o);
}

/* Results of another run in the folder are forgotten. A finished run with other budgets is an
   error that says why. */
static int check_finished(const distillation *d) {
  char path[1024], results[1024];
  foreign_json found, list, value;
  int i, more = 0;
  if (cli_join(path, sizeof path, d->s->out, "checkpoint.safetensors") != CLI_GO ||
      results_path(d, results, sizeof results) != CLI_GO)
    return CLI_FAILED;
  if (!cli_exists(results)) return CLI_GO;
  if (d->s->fresh || !cli_exists(path)) return remove(results) == 0 ? CLI_GO : cli_error("cannot remove %s", results);
  if (settings_json_file(results, &found) != CLI_GO) return CLI_FAILED;
  if (!foreign_json_find(found, "finished", &value) || *value.at != 't') return CLI_GO;
  if (!foreign_json_find(found, "tokens", &list) || *list.at != '[') return CLI_GO;
  list.at++;
  for (i = 0; i < 3 && foreign_json_value(&list, &value); i++) {
    more |= d->effective.tokens.value[i] != strtod(value.at, NULL);
    while (list.at < list.end && strchr(", ", *list.at)) list.at++;
  }
  if (!more) return CLI_GO;
  return cli_error("the run in %s is finished, with other --tokens. Its learning rate has come down to its end, and "
                   "with more tokens it would have been another from the start of the stage, so it cannot go on. To "
                   "train its student further: --from %s/student --tokens 0,0,N --out NEW; to start over: --fresh",
                   d->s->out, d->s->out);
}

/* The student after a stage, and the checkpoint at its end. */
static int keep_stage(const distillation *d, int stage, mhk_model *student) {
  char name[16], folder[1024], from[1024], to[1024];
  foreign_bytes b;
  int code;
  snprintf(name, sizeof name, "stage%d", stage);
  if (cli_join(folder, sizeof folder, d->s->out, name) != CLI_GO ||
      cli_join(from, sizeof from, d->s->out, "checkpoint.safetensors") != CLI_GO ||
      cli_join(to, sizeof to, folder, "checkpoint.safetensors") != CLI_GO)
    return CLI_FAILED;
  if (mhk_save(student, folder, MHK_F32) != MHK_OK || !foreign_map(d->ctx, from, &b)) return cli_context_error(d->ctx);
  code = mhk_file_write_bytes(d->ctx, to, b.data, b.size) == MHK_OK ? CLI_GO : cli_context_error(d->ctx);
  foreign_unmap(&b);
  return code;
}

/* ---------------------------------------------------------------- before the run */

/* Says what --one-layer-at-a-time needs on the disk; refuses when there is less. */
static int check_disk(const distillation *d) {
  const double files = mhk_distill_stream_bytes(&d->r.desc), disk = cli_disk_free(d->s->out);
  cli_buffer a, b;
  if (files > 0)
    cli_note("hidden states of all tokens of a stage take %s on the disk of %s while it runs; %s free there",
             cli_bytes(files, &a), d->s->out, disk > 0 ? cli_bytes(disk, &b) : "an unknown amount");
  if (disk > 0 && files > disk && !d->s->force)
    return cli_error("%s is on a disk with %s free, but --one-layer-at-a-time needs %s for %lld tokens: try fewer "
                     "--tokens for stages 1 and 2, or another --out",
                     d->s->out, cli_bytes(disk, &b), cli_bytes(files, &a),
                     (long long)(files / (double)sizeof(mhk_real) / mhk_model_config(shaped(d))->d_model));
  return CLI_GO;
}

/* Says what the run needs; refuses, with the remedy, when the machine has less. */
static int check_memory(const distillation *d) {
  return check_disk(d) == CLI_GO ? run_check_memory(d->ctx, &d->r.desc, d->s->force) : CLI_FAILED;
}

/* The run as dryrun.h measures it, with new mixers in place of those of a student that is there. */
static mhk_distill_desc to_measure(distillation *d) {
  mhk_distill_desc r = mhk_distill_defaults(&d->r.desc);
  mhk_student_desc *student = &r.student_desc;
  const mhk_config *c = mhk_model_config(r.student);
  int l;
  if (!c) return r;
  r.student = NULL;
  student->n_keep_attention = 0;
  for (l = 0; l < c->n_layer; l++)
    if (c->mixer[l] == MHK_MIXER_ATTENTION) d->keep[student->n_keep_attention++] = l;
  student->keep_attention = d->keep;
  student->window = c->window;
  student->windows = c->windows;
  student->gates = c->gates ? 1 : -1;
  student->bias = c->proj_bias ? 1 : -1;
  student->rotary_dim = c->ssm_rotary_dim ? c->ssm_rotary_dim : -1;
  student->d_state = c->d_state;
  return r;
}

/* Measures what the run will take, and says what to change where that is more than there is. */
static int dry_run(distillation *d) {
  const mhk_distill_desc r = to_measure(d);
  const double have = cli_memory_free();
  char path[1024], stage[16], options[256] = "";
  dry_cost cost[3];
  cli_buffer a, b;
  double need = 0;
  int i, code;
  if (check_disk(d) != CLI_GO || cli_join(path, sizeof path, d->s->out, "dry-run") != CLI_GO ||
      cli_make_folders(path) != CLI_GO)
    return CLI_FAILED;
  code = dry_measure(&r, mhk_threads(d->ctx), path, cost);
  remove(path);
  remove(d->s->out); /* stays unless it is empty */
  if (code != CLI_GO) return CLI_FAILED;
  for (i = 0; i < 3; i++) {
    if (cost[i].updates == 0) continue;
    cost[i].bytes += (double)mhk_memory_in_use(d->ctx); /* of the teacher: what is not mapped */
    snprintf(stage, sizeof stage, "stage %d", i + 1);
    dry_print(stage, i + 1, &cost[i], (double)mhk_distill_defaults(&d->r.desc).update_tokens, d->s->json);
    need = cost[i].bytes > need ? cost[i].bytes : need;
  }
  if (have <= 0 || need <= have) return CLI_OK;
  run_smaller(mhk_distill_defaults(&d->r.desc), have, options, sizeof options);
  return cli_error("%s needs %s of memory, but %s are free: try%s", d->s->out, cli_bytes(need, &a), cli_bytes(have, &b),
                   options[0] ? options : " a smaller teacher");
}

static mhk_corpus *sample(distillation *d, const char *name, mhk_index tokens, uint64_t seed) {
  char path[1024];
  if (cli_join(path, sizeof path, d->s->out, name) != CLI_GO) return NULL;
  return run_sampled_text(d->ctx, d->teacher, path, tokens, seed);
}

/* held-out text that the teacher writes */
static int sample_eval(distillation *d) {
  const mhk_index length = mhk_distill_defaults(&d->r.desc).length;
  d->eval_text = sample(d, "eval.safetensors", 32 * length, (uint64_t)d->s->seed + 1000003u);
  return d->eval_text ? CLI_GO : CLI_FAILED;
}

static int load_text(distillation *d) {
  const settings *s = d->s;
  mhk_distill_desc *desc = &d->r.desc;
  mhk_corpus_desc eval;
  cli_buffer amount;
  double budget = 0;
  int i;
  for (i = 0; i < 3; i++) budget += (double)desc->stages[i].tokens;
  if (s->text.n > 0) {
    desc->corpus = run_load_files(d->ctx, shaped(d), &s->text, &s->repeat, &s->max_document, s->seed, s->encoding);
    if (desc->corpus) cli_note("%s tokens of text", cli_count((double)mhk_corpus_tokens(desc->corpus, NULL), &amount));
  } else {
    mhk_index n = s->sample_tokens ? s->sample_tokens : (mhk_index)(budget < 2e6 ? budget : 2e6);
    desc->corpus = sample(d, "text.safetensors", n, (uint64_t)s->seed);
  }
  if (!desc->corpus || s->no_eval) return desc->corpus ? CLI_GO : CLI_FAILED;
  if (s->eval.n == 0) return d->teacher ? sample_eval(d) : CLI_GO;
  memset(&eval, 0, sizeof eval);
  eval.n_files = s->eval.n;
  eval.files = s->eval.path;
  eval.max_document = (size_t)s->eval_max_document;
  d->eval_text = run_load_text(d->ctx, shaped(d), NULL, &eval, s->encoding);
  return d->eval_text ? CLI_GO : CLI_FAILED;
}

/* ---------------------------------------------------------------- evaluations */

/* stage -1: of the teacher itself */
static void print_measure(distillation *d, int stage) {
  static const char *const names[] = {"teacher", "untrained", "after stage 1", "after stage 2", "after stage 3"};
  const mhk_evaluation *e = stage < 0 ? &d->of_teacher : &d->after[stage];
  if (d->s->json) {
    json_open(&d->json, NULL, '{');
    json_text(&d->json, "event", stage < 0 ? "teacher" : "evaluation");
    if (stage >= 0) json_count(&d->json, "stage", stage);
    run_json_evaluation(&d->json, e, stage >= 0 && d->teacher);
    json_close(&d->json);
    return;
  }
  if (!d->header) run_print_header(stdout);
  d->header = 1;
  run_print_row(stdout, d->s->from && stage == 0 ? "at the start" : names[stage + 1], e,
                stage >= 0 && d->teacher);
  fflush(stdout);
}

/* Text that a model writes after the first tokens of the held-out text; nothing without a
   tokenizer. */
static int speak(distillation *d, mhk_model *m, char **text) {
  enum { PROMPT = 12, TOKENS = 60 };
  mhk_tokenizer *k = mhk_model_tokenizer(d->teacher);
  const int32_t *tokens;
  const mhk_index n = mhk_corpus_tokens(d->eval_text, &tokens), first = n > 0 && tokens[0] == mhk_tokenizer_start(k);
  mhk_index size;
  if (!k) return CLI_GO;
  if (!d->prompt[0]) {
    size = mhk_decode(k, tokens + first, n - first < PROMPT ? n - first : PROMPT, d->prompt, sizeof d->prompt);
    if (size < 0 || size >= (mhk_index)sizeof d->prompt) d->prompt[0] = 0;
  }
  if (!d->prompt[0]) return mhk_failed(d->ctx) ? cli_context_error(d->ctx) : CLI_GO;
  free(*text);
  *text = run_speak(d->ctx, m, d->prompt, TOKENS);
  return *text ? CLI_GO : CLI_FAILED;
}

/* KL after the last stage before this one that was measured, also by an earlier start; 0: none
   was */
static int measured_before(const distillation *d, int stage, double *kl, double *error) {
  char path[1024];
  foreign_json found, list, value;
  double at = -1;
  int i;
  if (results_path(d, path, sizeof path) == CLI_GO && cli_exists(path) && settings_json_file(path, &found) == CLI_GO &&
      foreign_json_find(found, "evaluations", &list) && *list.at == '[') {
    for (list.at++; foreign_json_value(&list, &value);) {
      const double of = settings_number(value, "stage", 4);
      if (of < stage && of > at) {
        at = of;
        *kl = settings_number(value, "kl", 0);
        *error = settings_number(value, "kl_error", 0);
      }
      while (list.at < list.end && strchr(", \n", *list.at)) list.at++;
    }
  }
  for (i = (int)at + 1; i < stage; i++)
    if (d->measured[i]) at = i, *kl = d->after[i].kl, *error = d->after[i].kl_error;
  return at >= 0;
}

/* a stage never leaves a student worse in silence */
static void compare(const distillation *d, int stage) {
  const mhk_evaluation *now = &d->after[stage];
  double kl = 0, error = 0;
  if (stage == 0 || !measured_before(d, stage, &kl, &error)) return;
  if (now->kl <= kl + 2 * sqrt(error * error + (isnan(now->kl_error) ? 0 : now->kl_error * now->kl_error))) return;
  cli_warning("stage %d left the student further from its teacher than it was: KL %.3f before, %.3f after. It may need "
              "more --tokens or a lower --lr; 0 --tokens leave it out",
              stage, kl, now->kl);
}

/* stage -1: of the teacher itself */
static int measure(distillation *d, int stage, mhk_model *student) {
  const settings *s = d->s;
  const mhk_evaluate_desc desc = {
      .teacher = stage < 0 ? NULL : d->teacher,
      .corpus = d->eval_text,
      .length = s->eval_length ? s->eval_length : mhk_distill_defaults(&d->r.desc).length,
      .windows = s->eval_windows,
  };
  mhk_evaluation *e = stage < 0 ? &d->of_teacher : &d->after[stage];
  if (run_evaluate(d->ctx, student, &desc, stage < 0 ? "teacher" : "student", e) != CLI_GO) return CLI_FAILED;
  if (s->report && d->teacher && speak(d, student, stage < 0 ? &d->teacher_sample : &d->samples[stage]) != CLI_GO)
    return CLI_FAILED;
  *(stage < 0 ? &d->teacher_measured : &d->measured[stage]) = 1;
  print_measure(d, stage);
  if (stage >= 0 && d->teacher) compare(d, stage);
  return CLI_GO;
}

/* the teacher, and the student before it is trained */
static int measure_start(distillation *d, mhk_model *student) {
  if (measure(d, -1, d->teacher) != CLI_GO || measure(d, 0, student) != CLI_GO) return CLI_FAILED;
  return write_results(d, 0, 0);
}

static run_result after_stage(void *user, int stage, mhk_model *student) {
  distillation *d = (distillation *)user;
  if (d->s->keep_stages && stage > 0 && stage < 3 && keep_stage(d, stage, student) != CLI_GO) return RUN_FAILED;
  if (!d->eval_text) return RUN_DONE;
  d->report_due = fmin(d->report_due, 0); /* the next report is of this */
  if (measure(d, stage, student) == CLI_GO) return write_results(d, stage, 0) == CLI_GO ? RUN_DONE : RUN_FAILED;
  return cli_stopped() ? RUN_STOPPED : RUN_FAILED;
}

/* The report as things stand. What goes wrong with it does not end a run: it is said once. */
static void write_report(distillation *d, const mhk_progress_info *info) {
  const double start = cli_clock();
  const report_live live = {info ? info->stage : 0,
                            info && info->steps > 0 ? (double)info->step / (double)info->steps : 0,
                            info && info->step > 0 ? info->seconds_left : -1};
  const report_about about = {.live = info ? &live : NULL};
  char path[1024];
  if (!d->s->report || d->report_due < 0 || (info && start < d->report_due)) return;
  if (cli_join(path, sizeof path, d->s->out, "report.html") != CLI_GO ||
      report_write(d->ctx, path, 1, &d->s->out, &about) != CLI_GO) {
    mhk_clear_error(d->ctx);
    d->report_due = -1;
    return;
  }
  d->report_due = cli_clock() + fmax(10, 20 * (cli_clock() - start)); /* a twentieth of the time at most */
}

static run_result after_update(void *user, const mhk_progress_info *info, mhk_model *student) {
  (void)student;
  write_report((distillation *)user, info);
  return RUN_DONE;
}

/* from the last update to the saved student */
static int finish(distillation *d, mhk_model *student) {
  const mhk_stage_desc *stages = d->r.desc.stages;
  int last = stages[2].tokens > 0 ? 3 : stages[1].tokens > 0 ? 2 : stages[0].tokens > 0 ? 1 : 0;
  if (d->eval_text && !d->measured[last] && measure(d, last, student) != CLI_GO) return CLI_FAILED;
  if (run_save(d->ctx, student, d->s->out, "student", d->s->dtype, d->s->json ? &d->json : NULL) != CLI_OK)
    return CLI_FAILED;
  return write_results(d, last, 1) == CLI_GO ? CLI_OK : CLI_FAILED;
}

/* ---------------------------------------------------------------- the start */

/* updates of a stage, and the tokens that they take of what was asked for */
static mhk_index updates_of(const mhk_distill_desc *r, int i) { return r->stages[i].tokens / r->update_tokens; }

static void json_begin(distillation *d, const mhk_model *student) {
  const mhk_distill_desc r = mhk_distill_defaults(&d->r.desc);
  char flags[4096];
  int i;
  json_open(&d->json, NULL, '{');
  json_text(&d->json, "event", "start");
  if (d->teacher) json_text(&d->json, "teacher", d->s->teacher);
  if (d->s->recording) json_text(&d->json, "recording", d->s->recording);
  json_text(&d->json, "out", d->s->out);
  if (d->teacher) json_real(&d->json, "teacher_parameters", mhk_config_parameters(mhk_model_config(d->teacher)));
  json_real(&d->json, "student_parameters", mhk_config_parameters(mhk_model_config(student)));
  json_open(&d->json, "stages", '[');
  for (i = 0; i < 3; i++) {
    json_open(&d->json, NULL, '{');
    json_count(&d->json, "updates", (double)updates_of(&r, i));
    json_count(&d->json, "tokens", (double)(updates_of(&r, i) * r.update_tokens));
    json_real(&d->json, "learning_rate", r.stages[i].lr);
    json_close(&d->json);
  }
  json_close(&d->json);
  json_count(&d->json, "text_tokens", (double)mhk_corpus_tokens(r.corpus, NULL));
  json_real(&d->json, "memory_bytes", mhk_distill_bytes(&d->r.desc));
  json_count(&d->json, "threads", mhk_threads(d->ctx));
  head_flags(mhk_model_config(shaped(d)), d->windows, flags, sizeof flags);
  json_text(&d->json, "heads", flags); /* what was given or chosen, as options */
  json_close(&d->json);
}

/* Opens --recording, for the run that the description says. */
static int play(distillation *d) {
  const mhk_distill_desc whole = mhk_distill_defaults(&d->r.desc);
  const recording_use use = {.desc = &whole, .teacher = d->teacher};
  if (recording_open(&d->played, d->ctx, d->s->recording, &use) != CLI_GO) return CLI_FAILED;
  d->r.desc.outputs = recording_read;
  d->r.desc.outputs_user = &d->played;
  d->r.desc.outputs_id = recording_number(&d->played);
  return CLI_GO;
}

/* what will be trained, and for how long */
static void say_plan(const distillation *d, const mhk_model *student) {
  const mhk_distill_desc r = mhk_distill_defaults(&d->r.desc);
  const mhk_config *c = mhk_model_config(student);
  char mixers[4096], asked[64];
  cli_buffer n, state;
  int i;
  cli_note("student %s, %s parameters, %s of state after %lld tokens", run_mixers(c, mixers, sizeof mixers),
           cli_count(mhk_config_parameters(c), &n), cli_bytes(mhk_config_state_bytes(c, r.length), &state),
           (long long)r.length);
  for (i = 0; i < 3; i++) {
    const mhk_index updates = updates_of(&r, i), tokens = updates * r.update_tokens;
    if (updates == 0) continue;
    snprintf(asked, sizeof asked, tokens < r.stages[i].tokens ? " of the %lld asked for: whole updates" : "",
             (long long)r.stages[i].tokens);
    cli_note("stage %d: %lld updates of %lld tokens, %lld in all%s; learning rate %.2g", i + 1, (long long)updates,
             (long long)r.update_tokens, (long long)tokens, asked, r.stages[i].lr);
  }
}

/* How long the run will take, by a few updates of each stage, where these are a small part of it.
   CLI_GO, or CLI_FAILED after a message. */
static int say_time(distillation *d) {
  enum { WORTH = 300 }; /* updates */
  const mhk_distill_desc r = to_measure(d);
  char path[1024];
  dry_cost cost[3];
  cli_buffer time, threads;
  double seconds = 0;
  mhk_index updates = 0;
  int i, code;
  for (i = 0; i < 3; i++) updates += updates_of(&r, i);
  if (d->s->json || d->s->recording || updates < WORTH ||
      cli_join(path, sizeof path, d->s->out, "checkpoint.safetensors") != CLI_GO ||
      (cli_exists(path) && !d->s->fresh))
    return CLI_GO;
  if (cli_join(path, sizeof path, d->s->out, "dry-run") != CLI_GO || cli_make_folders(path) != CLI_GO)
    return CLI_FAILED;
  code = dry_measure(&r, mhk_threads(d->ctx), path, cost);
  remove(path);
  if (code != CLI_GO) return CLI_FAILED;
  for (i = 0; i < 3; i++) seconds += cost[i].updates > 0 ? cost[i].seconds : 0;
  cli_note("about %s in all on %s, and evaluations", cli_time(seconds, &time), cli_threads(d->ctx, &threads));
  return CLI_GO;
}

/* the trainer is there, so the folder is this run's */
static run_result started(void *user, const mhk_progress_info *info, mhk_model *student) {
  static const char *const not[] = {"dry-run", "fresh", "force", "every", "strict", "json", "report", NULL};
  distillation *d = (distillation *)user;
  d->student = mhk_model_config(student);
  if (record_write(d->s->out, d->ctx, &command_distill, &d->effective, not, &d->inputs) != CLI_GO) return RUN_FAILED;
  if (d->s->json) json_begin(d, student);
  else say_plan(d, student);
  if (d->eval_text && d->teacher && !info->resumed && measure_start(d, student) != CLI_GO)
    return cli_stopped() ? RUN_STOPPED : RUN_FAILED;
  return RUN_DONE;
}

/* Refuses a run that would change nothing: one where all that stages 1 and 2 train is attention. */
static int check_trains(const distillation *d) {
  const mhk_distill_desc *r = &d->r.desc;
  const mhk_config *c = mhk_model_config(r->student ? r->student : d->teacher);
  int l, kept = r->student ? 0 : r->student_desc.n_keep_attention;
  for (l = 0; r->student && l < c->n_layer; l++) kept += c->mixer[l] == MHK_MIXER_ATTENTION;
  if (kept < c->n_layer || (r->stages[2].tokens > 0 && r->stages[2].trains != MHK_TRAIN_MIXERS)) return CLI_GO;
  return cli_error("nothing would be trained: every layer keeps its attention, so there are no new mixers; keep fewer, "
                   "or give stage 3 --tokens without --train mixers");
}

/* from the description to the saved student */
static int train(distillation *d) {
  const settings *s = d->s;
  mhk_trainer *trainer = NULL;
  run_result result;
  int code;
  if (fill(d) != CLI_GO) return CLI_FAILED;
  if (s->recording) d->r.desc.outputs = recording_read; /* for the defaults; play() gives it one */
  if (s->dry_run) return dry_run(d);
  if (check_memory(d) != CLI_GO || cli_make_folders(s->out) != CLI_GO) return CLI_FAILED;
  resolve(d);
  if (hash_inputs(d) != CLI_GO || check_finished(d) != CLI_GO) return CLI_FAILED;
  cli_catch_signals();
  if (s->json) {
    json_start(&d->json, stdout, 0);
    d->r.json = &d->json;
  }
  if (load_text(d) != CLI_GO) {
    if (cli_stopped()) run_say_stopped(d->s->out, d->s->json ? &d->json : NULL);
    return CLI_FAILED;
  }
  if (choose(d) != CLI_GO || check_trains(d) != CLI_GO || (s->recording && play(d) != CLI_GO)) return CLI_FAILED;
  if (!s->from && mhk_model_config(d->r.desc.teacher)->arch == MHK_ARCH_PHI) say_layout(d);
  if (say_time(d) != CLI_GO) return CLI_FAILED;
  d->r.started = started;
  d->r.after_stage = after_stage;
  if (s->report) d->r.after_update = after_update;
  d->r.watched = d->eval_text;
  d->r.user = d;
  result = run_distill(d->ctx, &d->r, &trainer);
  if (result == RUN_FAILED) {
    mhk_clear_error(d->ctx); /* it has been told; the report no longer says that the run goes on */
    write_report(d, NULL);
    return CLI_FAILED;
  }
  code = result == RUN_DONE ? finish(d, mhk_student(trainer)) : CLI_FAILED;
  write_report(d, NULL);
  if (code != CLI_OK && cli_stopped()) run_say_stopped(d->s->out, d->s->json ? &d->json : NULL);
  return code;
}

static int distill(mhk_context *ctx, void *user) {
  distillation d;
  cli_buffer n, threads;
  int code, i;
  memset(&d, 0, sizeof d);
  d.s = (const settings *)user;
  d.ctx = ctx;
  cli_quiet(d.s->json);
  cli_every(d.s->every);
  if (d.s->teacher) d.teacher = cli_load(ctx, d.s->teacher);
  if (mhk_failed(ctx)) return cli_context_error(ctx);
  if (d.teacher)
    cli_note("teacher %s, %s parameters; %s", d.s->teacher,
             cli_count(mhk_config_parameters(mhk_model_config(d.teacher)), &n), cli_threads(ctx, &threads));
  code = train(&d);
  record_inputs_free(&d.inputs);
  recording_close(&d.played);
  for (i = 0; i < 4; i++) free(d.samples[i]);
  free(d.teacher_sample);
  free(d.windows);
  free(d.others);
  return code;
}

/* the first option of those that make a new student, or NULL */
static const char *makes_student(const settings *s) {
  const struct {
    const char *name;
    int given;
  } all[] = {{"keep-attention", s->keep.n > 0},    {"keep-heads", s->keep_heads != NULL},
             {"keep", s->keep_auto != NULL},       {"window", s->window > 0},
             {"windows", s->windows != NULL},      {"gates", s->gates},
             {"no-gates", s->no_gates},            {"bias", s->bias},
             {"no-bias", s->no_bias},              {"calibrate", s->calibrate},
             {"no-calibrate", s->no_calibrate},    {"init", s->init != 0},
             {"rotary", s->rotary != NULL},        {"d-state", s->d_state > 0},
             {"groups", s->groups > 0},            {"chunk", s->chunk > 0}};
  int i;
  for (i = 0; i < CLI_COUNT_OF(all); i++)
    if (all[i].given) return all[i].name;
  return NULL;
}

/* "--windows packed" was --placement before heads had windows; it still means that */
static int check(void *user) {
  settings *s = (settings *)user;
  const int packed = s->windows && strcmp(s->windows, "packed") == 0;
  const char *both = s->gates && s->no_gates ? "gates" : s->bias && s->no_bias ? "bias" : NULL;
  if (s->calibrate && s->no_calibrate) both = "calibrate";
  if (packed || (s->windows && strcmp(s->windows, "random") == 0)) {
    s->placement = packed;
    s->windows = NULL;
  }
  if (!s->teacher && !(s->recording && s->from))
    return cli_missing(&command_distill, s->recording ? "--teacher DIR or --from DIR" : "--teacher DIR");
  if (s->recording && (s->text.n == 0 || s->dry_run || s->one_layer || s->teacher_type)) {
    cli_error(s->text.n == 0 ? "--recording needs the --text that it was made of"
                             : "--recording goes with none of --dry-run, --one-layer-at-a-time and --teacher-type");
  } else if (s->from && makes_student(s)) {
    cli_error("--%s is for a new student, but --from names one that is there: leave one of the two out",
              makes_student(s));
  } else if (both) {
    cli_error("--%s and --no-%s contradict each other", both, both);
  } else if (s->window > 0 && s->windows) {
    cli_error("--window is for all heads, --windows for each: give one of the two, the last number of --windows is "
              "for all others");
  } else if (s->keep_auto && strncmp(s->keep_auto, "auto:", 5) != 0) {
    cli_error("--keep %s is not auto:BYTES; --keep-heads and --keep-attention name heads and layers", s->keep_auto);
  } else if (s->keep_auto && s->windows && strncmp(s->windows, "auto:", 5) != 0) {
    cli_error("--keep auto: chooses among heads with one window: give --window, or --windows auto:MEAN");
  } else {
    return CLI_GO;
  }
  return CLI_USAGE;
}

const cli_command command_distill = {
    .name = "distill",
    .summary = "distill a Transformer into a state-space model",
    .synopsis = "--teacher DIR [--text FILE...] [options]",
    .about = "Distills a Phi, or a Llama, Mistral, Qwen2 or Qwen3, into a state-space model of the same blocks in the "
             "three stages of MOHAWK. Ctrl-C saves; run the same command again to resume.",
    .example = "mohawk distill --teacher phi-1_5/ --text corpus.txt --keep-attention 4,10,16,22 --out run1",
    .often = " teacher text eval out from tokens lr window windows keep-attention keep batch length threads dry-run "
             "keep-stages fresh json ",
    CLI_OPTIONS(options),
    CLI_SETTINGS(defaults),
    .check = check,
    .body = distill,
};
