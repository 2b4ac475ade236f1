/* experiments.c: the runs of a table, side by side, each a process of its own. */
#include "ablate.h"
#include "settings.h"
#include <stdlib.h>
#include <string.h>

enum { TRIES = 8 }; /* a system may free a killed process's lock only a moment later */

/* ---------------------------------------------------------------- what is there already */

static int path_of(const ablate_job *j, const char *name, char *path, size_t room) {
  return cli_join(path, room, j->folder, name);
}

static int is_there(const ablate_job *j, const char *name) {
  char path[1024];
  return path_of(j, name, path, sizeof path) == CLI_GO && cli_exists(path);
}

static void stage_file(int stage, char *name, size_t room) {
  snprintf(name, room, "stage%d/checkpoint.safetensors", stage);
}

/* whether the folder was begun with this plan */
static int is_planned(const ablate_job *j) {
  char path[1024];
  cli_content found;
  int same;
  if (path_of(j, "settings.txt", path, sizeof path) != CLI_GO || !cli_exists(path)) return 0;
  if (cli_read(path, &found) != CLI_GO) return 0;
  same = strcmp(found.text, j->plan) == 0;
  free(found.text);
  return same;
}

/* Takes away what another plan left, and writes this one. */
static int plan(const ablate_job *j) {
  static const char *const left[] = {"results.json", "checkpoint.safetensors", "checkpoint.previous.safetensors",
                                     "stage1/checkpoint.safetensors", "stage2/checkpoint.safetensors"};
  char path[1024];
  cli_output o;
  int i;
  if (cli_make_folders(j->folder) != CLI_GO) return CLI_FAILED;
  for (i = 0; i < CLI_COUNT_OF(left); i++) {
    if (path_of(j, left[i], path, sizeof path) != CLI_GO) return CLI_FAILED;
    if (cli_exists(path) && remove(path) != 0) return cli_error("cannot remove %s, which is of other settings", path);
  }
  if (path_of(j, "settings.txt", path, sizeof path) != CLI_GO || cli_output_open(&o, path) != CLI_GO)
    return CLI_FAILED;
  fputs(j->plan, o.file);
  return cli_output_close(&o);
}

/* Reads what a run found. 1: it is finished, 0: not yet, -1 after a message. */
static int read_results(ablate_job *j) {
  char path[1024];
  foreign_json found, list, value;
  int stage;
  if (!is_there(j, "results.json")) return 0;
  if (path_of(j, "results.json", path, sizeof path) != CLI_GO || settings_json_file(path, &found) != CLI_GO) return -1;
  if (!foreign_json_find(found, "finished", &value) || *value.at != 't') return 0;
  if (!foreign_json_find(found, "evaluations", &list) || *list.at != '[') return 0;
  for (list.at++; foreign_json_value(&list, &value);) {
    while (list.at < list.end && strchr(", \n", *list.at)) list.at++;
    stage = (int)settings_number(value, "stage", 0);
    if (stage < 0 || stage > 3) continue;
    j->after[stage].there = 1;
    j->after[stage].kl = settings_number(value, "kl", 0);
    j->after[stage].cross_entropy = settings_number(value, "cross_entropy", 0);
    j->after[stage].agreement = settings_number(value, "agreement", 0);
  }
  return 1;
}

static double tokens_of(const ablate_table *t, const ablate_job *j) {
  const double *n = t->rows[j->row].tokens;
  return n[0] + n[1] + n[2];
}

/* tokens trained so far, from the last line of its log */
static double read_done(const ablate_table *t, const ablate_job *j) {
  char path[1024], tail[512] = "", *line;
  double tokens = 0;
  int stage = 0, i;
  FILE *f;
  if (path_of(j, "log.csv", path, sizeof path) != CLI_GO || !(f = cli_open(path, "rb"))) return 0;
  if (fseek(f, -(long)sizeof tail + 1, SEEK_END) != 0) rewind(f);
  tail[fread(tail, 1, sizeof tail - 1, f)] = 0;
  fclose(f);
  line = strrchr(tail, '\n'); /* a line without its end is being written */
  if (line) *line = 0;
  line = strrchr(tail, '\n');
  if (sscanf(line ? line + 1 : tail, "%d,%*f,%lf", &stage, &tokens) != 2 || stage < 1 || stage > 3) return 0;
  for (i = 0; i < stage - 1; i++) tokens += t->rows[j->row].tokens[i];
  return tokens;
}

/* ---------------------------------------------------------------- starting and ending */

/* The state that another run left at the end of a stage, from where this one goes on. */
static int take_stage(mhk_context *ctx, const ablate_job *leader, const ablate_job *j) {
  char name[48], from[1024], to[1024];
  foreign_bytes b;
  int code;
  stage_file(j->stage, name, sizeof name);
  if (path_of(leader, name, from, sizeof from) != CLI_GO ||
      path_of(j, "checkpoint.safetensors", to, sizeof to) != CLI_GO)
    return CLI_FAILED;
  if (!foreign_map(ctx, from, &b)) return cli_context_error(ctx);
  code = mhk_file_write_bytes(ctx, to, b.data, b.size) == MHK_OK ? CLI_GO : cli_context_error(ctx);
  foreign_unmap(&b);
  return code;
}

/* whether the stages that it shares are there, or will never be */
static int is_ready(const ablate_table *t, const ablate_job *j) {
  char name[48];
  const ablate_job *leader;
  if (j->state != JOB_WAITS) return 0;
  if (j->leader < 0 || is_there(j, "checkpoint.safetensors")) return 1;
  leader = &t->jobs[j->leader];
  stage_file(j->stage, name, sizeof name);
  return is_there(leader, name) || leader->state == JOB_DONE || leader->state == JOB_FAILED;
}

static int start(mhk_context *ctx, const ablate_table *t, ablate_job *j) {
  char settings[1024], said[1024], threads[16], name[48];
  char *argv[16];
  int n = 1;
  if (path_of(j, "settings.txt", settings, sizeof settings) != CLI_GO ||
      path_of(j, "said.txt", said, sizeof said) != CLI_GO)
    return CLI_FAILED;
  stage_file(j->stage, name, sizeof name);
  if (j->leader >= 0 && !is_there(j, "checkpoint.safetensors") && is_there(&t->jobs[j->leader], name) &&
      take_stage(ctx, &t->jobs[j->leader], j) != CLI_GO)
    return CLI_FAILED;
  snprintf(threads, sizeof threads, "%d", t->threads);
  argv[n++] = (char *)"distill";
  argv[n++] = (char *)"--settings";
  argv[n++] = settings;
  argv[n++] = (char *)"--out";
  argv[n++] = j->folder;
  argv[n++] = (char *)"--threads";
  argv[n++] = threads;
  argv[n++] = (char *)"--json";
  argv[n++] = (char *)"--checkpoint-seconds";
  argv[n++] = (char *)"20";
  if (j->leads) argv[n++] = (char *)"--keep-stages";
  argv[n] = NULL;
  if (process_start(&j->p, argv, said) != CLI_GO) return CLI_FAILED;
  j->state = JOB_RUNS;
  return CLI_GO;
}

/* what a run said last as "mohawk: ...", malloc'ed, or NULL */
static char *last_words(const ablate_job *j) {
  char path[1024], *at, *found = NULL;
  cli_content said;
  if (path_of(j, "said.txt", path, sizeof path) != CLI_GO || cli_read(path, &said) != CLI_GO) return NULL;
  for (at = said.text; (at = strstr(at, "mohawk: ")) != NULL; at += 8)
    if (at == said.text || at[-1] == '\n') found = at;
  if (found) memmove(said.text, found, strlen(found) + 1);
  if (found) said.text[strcspn(said.text, "\n")] = 0;
  if (found) return said.text;
  free(said.text);
  return NULL;
}

/* A process has ended. */
static void end(const ablate_table *t, ablate_job *j, int exit_code) {
  char *words;
  j->state = JOB_WAITS;
  j->done = read_done(t, j);
  if (exit_code == CLI_OK && read_results(j) > 0) {
    j->state = JOB_DONE;
    j->done = tokens_of(t, j);
    return;
  }
  if (cli_stopped()) return;
  words = last_words(j);
  if (words && strstr(words, "lock") && ++j->tries < TRIES) {
    process_sleep(0.25);
  } else {
    j->state = JOB_FAILED;
    cli_error("%s with seed %.0f failed (%s/said.txt): %s", t->rows[j->row].name, t->seeds[j->seed], j->folder,
              words ? words : "it ended without a word");
  }
  free(words);
}

/* ---------------------------------------------------------------- all of them */

typedef struct course {
  cli_progress line;
  double started, before; /* before: tokens that were trained when this call began */
} course;

static void show(const ablate_table *t, course *c, int last) {
  double all = 0, done = 0, rate, seconds = cli_clock() - c->started;
  char running[128] = "";
  cli_buffer bar, speed, left;
  int i, finished = 0;
  if (!cli_progress_due(&c->line, last)) return;
  for (i = 0; i < t->n_jobs; i++) {
    ablate_job *j = &t->jobs[i];
    if (j->state == JOB_RUNS) j->done = read_done(t, j);
    if (j->state == JOB_RUNS && strlen(running) < 60)
      snprintf(running + strlen(running), sizeof running - strlen(running), "%s%.30s (%.0f)", running[0] ? ", " : "",
               t->rows[j->row].name, t->seeds[j->seed]);
    finished += j->state == JOB_DONE;
    all += tokens_of(t, j);
    done += j->done;
  }
  rate = seconds > 0 ? (done - c->before) / seconds : 0;
  cli_progress_show(&c->line, last, "%d of %d runs   %s  %3.0f %%   %s tokens/s   %s %s   %s", finished, t->n_jobs,
                    cli_bar(all > 0 ? done / all : 1, &bar), all > 0 ? 100 * done / all : 100, cli_count(rate, &speed),
                    cli_time(last ? seconds : rate > 0 ? (all - done) / rate : 1e9, &left), last ? "in all" : "left",
                    running);
}

/* Asks all to save what they have, and waits. */
static void stop_all(const ablate_table *t) {
  int i, code, running = 1;
  for (i = 0; i < t->n_jobs; i++)
    if (t->jobs[i].state == JOB_RUNS) process_stop(&t->jobs[i].p);
  while (running) {
    for (i = running = 0; i < t->n_jobs; i++) {
      ablate_job *j = &t->jobs[i];
      if (j->state == JOB_RUNS && process_ended(&j->p, &code)) end(t, j, code);
      running |= j->state == JOB_RUNS;
    }
    if (running) process_sleep(0.05);
  }
}

/* Looks at each once: how many run, and how many are not over. */
static int look(mhk_context *ctx, const ablate_table *t, int *open) {
  int i, code, running = 0;
  *open = 0;
  for (i = 0; i < t->n_jobs; i++) {
    ablate_job *j = &t->jobs[i];
    if (j->state == JOB_RUNS && process_ended(&j->p, &code)) end(t, j, code);
    running += j->state == JOB_RUNS;
    *open += j->state == JOB_RUNS || j->state == JOB_WAITS;
  }
  /* all rows with the first seed, then all with the next: a whole table comes first */
  for (i = 0; i < t->n_jobs && running < t->side_by_side && !cli_stopped(); i++) {
    ablate_job *j = &t->jobs[i % t->n_rows * t->n_seeds + i / t->n_rows];
    if (!is_ready(t, j)) continue;
    if (start(ctx, t, j) != CLI_GO) return CLI_FAILED;
    running++;
  }
  return CLI_GO;
}

int ablate_run(mhk_context *ctx, ablate_table *t) {
  course c;
  int i, open = 1, failed = 0, code = CLI_GO, there = 0;
  memset(&c, 0, sizeof c);
  for (i = 0; i < t->n_jobs; i++) {
    ablate_job *j = &t->jobs[i];
    const int planned = !t->fresh && is_planned(j);
    if (!planned && plan(j) != CLI_GO) return CLI_FAILED;
    if (planned && read_results(j) > 0) j->state = JOB_DONE;
    j->done = j->state == JOB_DONE ? tokens_of(t, j) : planned ? read_done(t, j) : 0;
    there += j->state == JOB_DONE;
    c.before += j->done;
  }
  if (there > 0) cli_note("%d of %d runs are in %s already", there, t->n_jobs, t->out);
  c.started = cli_clock();
  while (code == CLI_GO && open > 0 && !cli_stopped()) {
    code = look(ctx, t, &open);
    show(t, &c, open == 0);
    if (code == CLI_GO && open > 0 && !cli_stopped()) process_sleep(0.1);
  }
  if (code != CLI_GO || open > 0) stop_all(t);
  for (i = 0; i < t->n_jobs; i++) failed += t->jobs[i].state == JOB_FAILED;
  if (code == CLI_GO && failed > 0)
    code = cli_error("%d of %d runs failed: the same command runs them again", failed, t->n_jobs);
  return code == CLI_GO && !cli_stopped() ? CLI_GO : CLI_FAILED;
}
