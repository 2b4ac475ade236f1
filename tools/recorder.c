/* mohawk record: a teacher's outputs, once, for runs elsewhere. */
#include "recording.h"
#include "run.h"
#include <string.h>

typedef struct settings {
  const char *teacher, *out;
  cli_files text;
  cli_numbers keep, tokens, repeat, max_document;
  double own_stream, every;
  mhk_index batch, length, update_tokens;
  int top, recipe, placement, seed, threads, precision, teacher_type, dry_run, force, encoding, json;
} settings;

static const settings defaults = {.out = "mohawk-recording", .own_stream = -1, .top = 64, .seed = 1, .every = 10};

static const cli_option options[] = {
    {NULL, NULL, CLI_HEADING, 0, 0, 0, "what"},
    {"teacher", "DIR", CLI_TEXT, CLI_AT(teacher), 1, 0, "the teacher, as for `mohawk distill` (required)"},
    {"text", "FILE...", CLI_FILES, CLI_AT(text), 1, 0,
     "training text, as for `mohawk distill`; or the text.safetensors of a run (required)"},
    CLI_ENCODING(CLI_AT(encoding)),
    {"out", "DIR", CLI_TEXT, CLI_AT(out), 0, 0,
     "folder of the recording; if it has a part of the same one, the rest is written (default mohawk-recording)"},
    {"top", "K", CLI_INT, CLI_AT(top), 1, 1 << 24,
     "logits of each token, the largest ones; the probability that they leave out is spread evenly over the other "
     "tokens. As many as the vocabulary has, or more: all, and runs have the same bits as with the teacher "
     "(default 64)"},
    {NULL, NULL, CLI_HEADING, 0, 0, 0, "the run that it is for: the same options as there"},
    {"recipe", "best|paper", CLI_CHOICE, CLI_AT(recipe), 0, 0, "the source of the defaults (default best)"},
    {"keep-attention", "L,...", CLI_NUMBERS, CLI_AT(keep), 0, 255,
     "layers that keep attention, counted from 0: they are left out of stage 2"},
    {"tokens", "A,B,C", CLI_NUMBERS, CLI_AT(tokens), 0, 1e15,
     "tokens of the stages. Of stage 1, which needs the teacher itself, nothing is recorded (default 0,0.75M,2M; "
     "paper: 0,1M,1.5M)"},
    {"own-stream", "X", CLI_REAL, CLI_AT(own_stream), 0, 1000,
     "0: no hidden states for stage 3, which takes less room; the run then needs --own-stream 0 (default 0.06; "
     "paper: 0)"},
    {"batch", "N", CLI_COUNT, CLI_AT(batch), 1, 1e6, "sequences per batch (default 4; paper: 8)"},
    {"length", "N", CLI_COUNT, CLI_AT(length), 2, 1e7, "tokens per sequence (default 256)"},
    {"update-tokens", "N", CLI_COUNT, CLI_AT(update_tokens), 1, 1e12, "tokens per update (default batch x length)"},
    {"placement", "random|packed", CLI_CHOICE, CLI_AT(placement), 0, 0,
     "sequences at random positions, or documents packed in order with boundaries (default random)"},
    {"repeat", "N,...", CLI_NUMBERS, CLI_AT(repeat), 1, 1000, "how many times each file of --text is used (default 1)"},
    {"max-document", "BYTES,...", CLI_NUMBERS, CLI_AT(max_document), 0, 1e15,
     "split documents at the first line end after this many bytes; one value for each file of --text; 0: never "
     "(default 0)"},
    {"seed", "N", CLI_INT, CLI_AT(seed), 1, 2e9, "seed of the windows (default 1)"},
    {"precision", "f32|bf16", CLI_CHOICE, CLI_AT(precision), 0, 0, "operands of the matrix products (default f32)"},
    {"teacher-type", "stored|int8|int4", CLI_CHOICE, CLI_AT(teacher_type), 0, 0,
     "type of the weights that compute the outputs; int8 and int4 are copies in memory (default stored)"},
    {NULL, NULL, CLI_HEADING, 0, 0, 0, "run"},
    CLI_THREADS(CLI_AT(threads)),
    {"dry-run", NULL, CLI_FLAG, CLI_AT(dry_run), 0, 0, "only say how large the recording will be"},
    {"force", NULL, CLI_FLAG, CLI_AT(force), 0, 0, "start even if the disk has too little room"},
    {"every", "SECONDS", CLI_REAL, CLI_AT(every), 0.1, 1e6,
     "seconds between lines of progress if there is no terminal (default 10)"},
    CLI_STRICT,
    CLI_JSON(CLI_AT(json)),
};

static int fill(const settings *s, mhk_context *ctx, mhk_distill_desc *d, int keep[CLI_MAX_LIST]) {
  int i;
  d->recipe = (mhk_recipe)s->recipe;
  {
    const mhk_distill_desc recipe = mhk_distill_defaults(d);
    for (i = 0; i < 3; i++)
      d->stages[i].tokens =
          (mhk_index)cli_number_at(&s->tokens, i, i == 0 && s->tokens.n == 0 ? 0 : (double)recipe.stages[i].tokens);
  }
  if (d->stages[1].tokens + d->stages[2].tokens == 0)
    return cli_error("--tokens leaves nothing to record: stage 2 or 3 needs tokens");
  d->stages[2].own_stream = s->own_stream > 0 ? s->own_stream : s->own_stream < 0 ? 0 : -1;
  d->stages[2].trains = MHK_TRAIN_MIXERS; /* nothing is trained, but the student's other weights are shared */
  d->share = 1;
  d->student_desc.calibrate = -1;
  for (i = 0; i < s->keep.n; i++) keep[i] = (int)cli_number_at(&s->keep, i, -1);
  d->student_desc.keep_attention = keep;
  d->student_desc.n_keep_attention = s->keep.n;
  d->batch = s->batch;
  d->length = s->length;
  d->update_tokens = s->update_tokens;
  d->windows = (mhk_windows)s->placement;
  d->precision = (mhk_precision)s->precision;
  d->teacher_type = s->teacher_type == 1 ? MHK_Q8 : s->teacher_type == 2 ? MHK_Q4 : (mhk_dtype)0;
  d->seed = (uint64_t)s->seed;
  d->outputs = recording_write;
  d->record = 1;
  d->teacher = cli_load(ctx, s->teacher);
  return d->teacher ? CLI_GO : cli_context_error(ctx);
}

/* Says how large it will be; refuses when the disk has less. */
static int check_room(const settings *s, const recording_use *u) {
  const double bytes = recording_bytes(u), disk = cli_disk_free(s->out);
  const mhk_index *tokens[2] = {&u->desc->stages[1].tokens, &u->desc->stages[2].tokens};
  cli_buffer a, b, n[2];
  if (s->dry_run && s->json) {
    cli_json j;
    json_start(&j, stdout, 0);
    json_open(&j, NULL, '{');
    json_real(&j, "bytes", bytes);
    json_real(&j, "disk_free", disk);
    json_close(&j);
  } else if (s->dry_run) {
    printf("%s for %s tokens of stage 2 and %s of stage 3; %s free\n", cli_bytes(bytes, &a),
           cli_count((double)*tokens[0], &n[0]), cli_count((double)*tokens[1], &n[1]),
           disk > 0 ? cli_bytes(disk, &b) : "an unknown amount");
  } else {
    cli_note("the recording takes %s on the disk of %s; %s free there", cli_bytes(bytes, &a), s->out,
             disk > 0 ? cli_bytes(disk, &b) : "an unknown amount");
  }
  if (s->dry_run || s->force || disk <= 0 || bytes <= disk) return CLI_GO;
  return cli_error("%s is on a disk with %s free, but the recording takes %s: try fewer --tokens, a smaller --top, "
                   "--own-stream 0, or another --out",
                   s->out, cli_bytes(disk, &b), cli_bytes(bytes, &a));
}

/* all batches; RUN_STOPPED after Ctrl-C */
static run_result record_all(mhk_context *ctx, const mhk_distill_desc *d) {
  mhk_trainer *tr = mhk_distill(ctx, d);
  const mhk_progress_info *p = mhk_progress(tr);
  cli_task task;
  cli_buffer done, rate, left;
  double total = 0, before = 0;
  int stage, i, more = tr != NULL;
  for (i = 1; i < 3; i++) total += (double)(d->stages[i].tokens / d->update_tokens * d->update_tokens);
  cli_task_start(&task, "record", "tokens", 1);
  while (more && !cli_stopped()) {
    stage = p->stage;
    more = mhk_train_step(tr);
    if (mhk_failed(ctx) || stage == 1 || !more) continue;
    before += (double)d->update_tokens;
    if (cli_progress_due(&task.progress, before >= total)) {
      const double speed = before / (cli_clock() - task.started);
      cli_progress_show(&task.progress, before >= total, "%-9s %s tokens, %s tokens/s, %s left", "record",
                        cli_count(before, &done), cli_count(speed, &rate), cli_time((total - before) / speed, &left));
    }
  }
  if (mhk_failed(ctx)) {
    cli_context_error(ctx);
    return RUN_FAILED;
  }
  return more ? RUN_STOPPED : RUN_DONE;
}

static void say(const settings *s, const recording *r) {
  const double mass = r->tokens > 0 ? r->left_out / (double)r->tokens : 0;
  if (s->json) {
    cli_json j;
    json_start(&j, stdout, 0);
    json_open(&j, NULL, '{');
    json_text(&j, "path", s->out);
    json_text(&j, "id", r->id);
    json_count(&j, "top", r->top);
    json_real(&j, "mass_left_out", mass);
    json_count(&j, "batches_kept", (double)r->kept);
    json_close(&j);
    return;
  }
  printf("recorded  %s", s->out);
  if (r->top < r->vocabulary && r->tokens > 0)
    printf(": the %d largest of %d logits, which leave out %.3g %% of the probability", r->top, r->vocabulary,
           100 * mass);
  printf("\n");
}

/* the command: what it needs, room for it, and all batches */
static int record_outputs(mhk_context *ctx, void *user) {
  const settings *s = (const settings *)user;
  mhk_distill_desc d, whole;
  recording_use use;
  recording r;
  run_result result;
  int keep[CLI_MAX_LIST];
  memset(&d, 0, sizeof d);
  memset(&r, 0, sizeof r);
  cli_quiet(s->json);
  cli_every(s->every);
  if (fill(s, ctx, &d, keep) != CLI_GO) return CLI_FAILED;
  whole = mhk_distill_defaults(&d);
  use.desc = &whole;
  use.teacher = d.teacher;
  use.top = mhk_model_config(d.teacher)->vocab_size;
  if (s->top < use.top) use.top = s->top;
  if (check_room(s, &use) != CLI_GO) return CLI_FAILED;
  if (s->dry_run) return CLI_OK;
  cli_catch_signals();
  d.corpus = run_load_files(ctx, d.teacher, &s->text, &s->repeat, &s->max_document, s->seed, s->encoding);
  if (!d.corpus) return CLI_FAILED;
  whole.corpus = d.corpus;
  if (recording_create(&r, ctx, s->out, &use) != CLI_GO) return CLI_FAILED;
  d.outputs_user = &r;
  d.update_tokens = whole.update_tokens;
  result = record_all(ctx, &d);
  if (result == RUN_STOPPED) cli_say_resume(s->out);
  if (result == RUN_DONE && recording_finish(&r, &use) != CLI_GO) result = RUN_FAILED;
  if (result == RUN_DONE) say(s, &r);
  recording_close(&r);
  return result == RUN_DONE ? CLI_OK : CLI_FAILED;
}

const cli_command command_record = {
    .name = "record",
    .summary = "record a teacher's outputs, to distill without it elsewhere",
    .synopsis = "--teacher DIR --text FILE... [options]",
    .about = "Computes what stages 2 and 3 of `mohawk distill` need of a teacher, each new layer's input and output "
             "and the logits, once, for the windows of text that a run with the same options sees. `mohawk distill "
             "--recording DIR --from STUDENT` then trains without the teacher. Ctrl-C stops; run the same command "
             "again to go on.",
    .example = "mohawk record --teacher phi-1_5/ --text corpus.txt --tokens 0,1M,2M --out recording",
    CLI_OPTIONS(options),
    CLI_SETTINGS(defaults),
    .body = record_outputs,
};
