/* report.c: results.json and report.html of the demo. */
#include "demo.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- results.json */

int report_json(const demo_results *r, const char *path) {
  cli_output o;
  cli_json j;
  int i;
  if (cli_output_open(&o, path) != CLI_GO) return CLI_FAILED;
  json_start(&j, o.file, 1);
  json_open(&j, NULL, '[');
  for (i = 0; i < DEMO_MODELS; i++) {
    const demo_model *m = &r->models[i];
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

/* ---------------------------------------------------------------- report.html */

static const char head[] =
    "<!doctype html>\n"
    "<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
    "content=\"width=device-width,initial-scale=1\">\n"
    "<title>mohawk: a Phi becomes a state-space model</title><link rel=\"icon\" href=\"data:,\">\n"
    "<style>\n"
    ":root{color-scheme:light "
    "dark;--ink:#1f2328;--soft:#57606a;--line:#d0d7de;--page:#fff;--card:#f6f8fa;--c0:#0b62c4;--"
    "c1:#b35900;--c2:#1a7f4b;--c3:#8546c4}\n"
    "@media(prefers-color-scheme:dark){:root{--ink:#e6e8eb;--soft:#a0a8b2;--line:#3a4048;--page:"
    "#14161a;--card:#1d2026;--c0:#6db1ff;--c1:#f0a35a;--c2:#5fd39a;--c3:#c79bff}}\n"
    "*{box-sizing:border-box}body{margin:0;background:var(--page);color:var(--ink);font:16px/"
    "1.55 system-ui,sans-serif}\n"
    "main{max-width:66rem;margin:0 auto;padding:1.5rem 1rem "
    "4rem}h1{font-size:1.7rem;line-height:1.2;margin:.5rem 0}h2{font-size:1.2rem;margin:2.4rem "
    "0 .4rem}\n"
    "p{max-width:46rem;margin:.5rem "
    "0}.soft,figcaption{color:var(--soft);font-size:.9rem}figure{margin:0}figcaption{max-width:"
    "46rem;margin-top:.4rem}\n"
    ".scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;"
    "margin:.6rem 0;min-width:46rem;width:100%}\n"
    "th,td{padding:.4rem .6rem;border-bottom:1px solid "
    "var(--line);text-align:right;vertical-align:top;white-space:nowrap}th{font-weight:600}\n"
    "th:first-child,td:first-child{text-align:left;padding-left:0;white-space:normal}td "
    "small{color:var(--soft)}td:first-child small{display:block;min-width:11rem;max-width:19rem}\n"
    ".best td{background:var(--card)}\n"
    ".grid{display:grid;gap:1.2rem "
    "2rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,25rem),1fr));margin:.8rem 0}\n"
    ".three{grid-template-columns:repeat(auto-fill,minmax(min(100%,17rem),1fr))}svg{display:"
    "block;width:100%;height:auto}.legend{max-width:22rem}\n"
    ".c0{color:var(--c0)}.c1{color:var(--c1)}.c2{color:var(--c2)}.c3{color:var(--c3)}\n"
    "dl{margin:.6rem 0;display:grid;gap:.2rem 1rem;grid-template-columns:minmax(7rem,11rem) "
    "minmax(0,1fr)}dt{font-weight:600}dd{margin:0 0 .7rem;max-width:46rem;overflow-wrap:anywhere}\n"
    "@media(max-width:36rem){dl{grid-template-columns:minmax(0,1fr)}dd{margin-bottom:.9rem}table{min-"
    "width:33rem}td:first-child small{display:none}th,td{padding:.4rem .45rem}}\n"
    "table.small{min-width:0;width:auto;font-size:.9rem}.small "
    "td:first-child{white-space:nowrap}\n"
    "pre{background:var(--card);padding:.8rem;border-radius:.4rem;overflow-x:auto;font-size:."
    "88rem}code{font-size:.92em}\n"
    "</style></head><body><main>\n";

static const demo_model *find(const demo_results *r, const char *name) {
  int i;
  for (i = 0; i < DEMO_MODELS; i++)
    if (strcmp(r->models[i].is.name, name) == 0) return &r->models[i];
  return &r->models[0];
}

/* what was done, and in one sentence what came of it */
static void write_opening(FILE *f, const demo_results *r) {
  const demo_model *student = find(r, "after stage 3"), *alone = find(r, "stage 3 alone"),
                   *hybrid = find(r, "hybrid"), *window = find(r, "window 16");
  const double spread =
      2 * sqrt(student->all.kl_error * student->all.kl_error + alone->all.kl_error * alone->all.kl_error);
  const double gain = alone->all.kl - student->all.kl;
  cli_buffer a, b, c, n, m;
  fputs(head, f);
  fputs("<h1>A Phi becomes a state-space model</h1>\n", f);
  fprintf(f,
          "<p>The teacher is a trained Phi with %d layers, width %d and %s parameters. The student has the same "
          "layers, but a state-space mixer replaces each attention, so its memory does not grow with the text. It "
          "learned from %s tokens that the teacher generated: %s for matrix orientation, %s for hidden-state "
          "alignment and %s for knowledge distillation.</p>\n",
          r->teacher->n_layer, r->teacher->d_model, cli_count(mhk_config_parameters(r->teacher), &n),
          cli_count(r->text_tokens, &m), cli_count(r->budget[0], &a), cli_count(r->budget[1], &b),
          cli_count(r->budget[2], &c));
  fprintf(f,
          "<p><strong>The three stages end with a KL divergence of %.3f from the teacher. With stage 3 alone, the "
          "same number of tokens ends with %.3f%s.",
          student->all.kl, alone->all.kl,
          fabs(gain) < spread ? " (no clear difference)"
          : gain > 0          ? ""
                              : " (the first two stages did not help here)");
  fprintf(f,
          "</strong> If layer %d keeps attention, it is %.3f. If each head also sees the last 16 tokens exactly, it is "
          "%.3f, with a memory that still does not grow.</p>\n",
          r->hybrid_layer, hybrid->all.kl, window->all.kl);
  if (r->short_run)
    fputs("<p class=\"soft\">This was a short run: it checks that everything works, not how good the student "
          "gets.</p>\n", f);
}

static void write_row(FILE *f, const demo_model *m, int is_teacher) {
  cli_buffer n, bytes;
  fprintf(f, "<tr%s><td>%s<small>%s</small></td>", strcmp(m->is.name, "after stage 3") == 0 ? " class=\"best\"" : "",
          m->is.name, m->is.meaning);
  fprintf(f, "<td>%.3f <small>&plusmn; %.3f</small></td>", m->all.cross_entropy, m->all.cross_entropy_error);
  if (is_teacher) {
    fprintf(f, "<td></td><td></td><td></td><td>%s</td><td></td></tr>\n", cli_bytes(m->all.state_bytes, &bytes));
    return;
  }
  fprintf(f, "<td>%.3f <small>&plusmn; %.3f</small></td>", m->all.kl, m->all.kl_error);
  fprintf(f, "<td>%.1f <small>&plusmn; %.1f %%</small></td>", 100 * m->all.agreement, 100 * m->all.agreement_error);
  fprintf(f, "<td>%.3f <small>&plusmn; %.3f</small></td>", m->story.kl, m->story.kl_error);
  fprintf(f, "<td>%s</td><td>%s</td></tr>\n", cli_bytes(m->all.state_bytes, &bytes), cli_count(m->tokens, &n));
}

/* how far finished students are from the teacher early and late in a window */
static void write_quarters(FILE *f, const demo_results *r) {
  int i, q;
  fputs("<figure><div class=\"scroll\"><table class=\"small\"><thead><tr><th>KL by position</th>", f);
  for (q = 0; q < 4; q++) fprintf(f, "<th>%d to %d</th>", q * r->length / 4, (q + 1) * r->length / 4 - 1);
  fputs("</tr></thead><tbody>\n", f);
  for (i = 0; i < DEMO_MODELS; i++) {
    const demo_model *m = &r->models[i];
    if (m->is.stage < 3) continue;
    fprintf(f, "<tr><td>%s</td>", m->is.name);
    for (q = 0; q < 4; q++) fprintf(f, "<td>%.3f</td>", m->all.kl_quarter[q]);
    fputs("</tr>\n", f);
  }
  fputs("</tbody></table></div><figcaption>KL to the teacher by the position of the token in its window. What a window "
        "shows exactly is a smaller part of a longer text, so a student with a window is best at the "
        "start.</figcaption></figure>\n",
        f);
}

static void write_table(FILE *f, const demo_results *r) {
  cli_buffer a, b;
  int i;
  fputs("<h2>Measured on held-out text</h2>\n<figure><div "
        "class=\"scroll\"><table><thead><tr><th>model</th><th>cross-entropy</th><th>KL to teacher</th><th>same next "
        "token</th><th>KL on the story</th>"
        "<th>memory</th><th>tokens</th></tr></thead><tbody>\n",
        f);
  for (i = 0; i < DEMO_MODELS; i++) write_row(f, &r->models[i], i == 0);
  fprintf(f,
          "</tbody></table></div><figcaption>Nats per token, over %s tokens that the teacher generated with another "
          "seed and a story of %s tokens written for this project, in windows of %d; &plusmn; is one standard error "
          "over windows. The first three columns cover both texts. Same next token: how often student and teacher "
          "rank the same token first. Memory: what decoding keeps of a text of %d tokens, in float32. "
          "Tokens: trained on. One seed.</figcaption></figure>\n",
          cli_count(r->sample_tokens, &a), cli_count(r->story_tokens, &b), r->length, r->length);
  write_quarters(f, r);
}

/* ---- curves */

enum { BINS = 100 };

typedef enum field { LOSS, RELATIVE } field;

/* The updates of one stage as at most BINS means, x in tokens trained before and during it; the
   arrays hold BINS values. */
static int bin_curve(const demo_training *t, int stage, field what, double *x, double *y) {
  double before = 0;
  int i, n, first = -1, end = 0, bins;
  for (i = 0; i < t->n_points; i++) {
    const run_point *p = &t->points[i];
    if (p->stage == stage) {
      if (first < 0) first = i;
      end = i + 1;
    } else if (p->stage < stage && (i + 1 == t->n_points || t->points[i + 1].stage != p->stage)) {
      before += p->tokens; /* all of an earlier stage */
    }
  }
  if (first < 0) return 0;
  bins = end - first < BINS ? end - first : BINS;
  for (n = 0; n < bins; n++) {
    int from = first + (int)((double)(end - first) * n / bins),
        to = first + (int)((double)(end - first) * (n + 1) / bins);
    double sum = 0;
    for (i = from; i < to; i++) sum += what == LOSS ? t->points[i].loss : t->points[i].relative;
    y[n] = sum / (to - from);
    x[n] = before + t->points[to - 1].tokens;
  }
  return bins;
}

static void write_chart(FILE *f, const demo_results *r, const char *title, int stage, field what) {
  double x[DEMO_RUNS][BINS], y[DEMO_RUNS][BINS];
  picture_curve curves[DEMO_RUNS];
  int i;
  for (i = 0; i < DEMO_RUNS; i++) {
    curves[i].name = r->runs[i].name;
    curves[i].x = x[i];
    curves[i].y = y[i];
    curves[i].n = i == 1 ? 0 : bin_curve(&r->runs[i], stage, what, x[i], y[i]); /* run 1 has another loss */
  }
  picture_curves_svg(f, title, "training tokens", curves, DEMO_RUNS);
}

static void write_curves(FILE *f, const demo_results *r) {
  fputs("<h2>Training</h2>\n<figure><div class=\"grid\">\n", f);
  write_chart(f, r, "Stage 1: distance of the matrices", 1, LOSS);
  write_chart(f, r, "Stage 1: relative error of the matrices", 1, RELATIVE);
  write_chart(f, r, "Stage 2: distance of block outputs", 2, LOSS);
  write_chart(f, r, "Stage 3: loss", 3, LOSS);
  fprintf(f,
          "</div><figcaption>Each point is a mean over updates. Stages 1 and 2 sum over the layers that train. In the "
          "hybrid these are three of %d, so its curves are lower. The loss of stage 3 is the cross-entropy plus "
          "the distance between the hidden states, weighted with 0.06 falling to 0. The student with stage "
          "3 alone trains without that term, so its loss is not comparable and not shown. A curve may leave the top of "
          "its chart during its first updates.</figcaption></figure>\n",
          r->teacher->n_layer);
}

/* ---- matrices */

/* four pictures of one head, and how far all heads are from the teacher's */
static void write_matrices(FILE *f, const demo_results *r) {
  const int layers = r->teacher->n_layer, heads = r->teacher->n_head;
  int i, l, h;
  fprintf(f, "<h2>Mixing matrix of layer %d, head %d</h2>\n<figure><div class=\"grid three\">\n", r->layer,
          r->head);
  for (i = 0; i < DEMO_PANELS; i++) picture_panel_svg(f, &r->panels[i], r->T);
  fputs("</div><div class=\"legend\">\n", f);
  picture_legend_svg(f);
  fprintf(f,
          "</div><figcaption>The first %lld tokens of the story. Row: output token; column: source token. The "
          "teacher's rows sum to one. The student's weights may be negative and are not bounded. Colors show the root "
          "of the weight, so that small weights are visible, and end at -0.5 and 1. Student matrices are computed "
          "from the teacher's hidden states, as in stage 1. Stages 2 and 3 do not require equal matrices, so they may "
          "differ again.</figcaption></figure>\n",
          (long long)r->T);
  fputs("<figure><div class=\"scroll\"><table class=\"small\"><thead><tr><th>relative error of the matrices, heads 0, "
        "1, ...</th>",
        f);
  for (i = 1; i < DEMO_PANELS; i++) fprintf(f, "<th>%s</th>", r->panels[i].title + strlen("student, "));
  fputs("</tr></thead><tbody>\n", f);
  for (l = 0; l < layers; l++) {
    fprintf(f, "<tr><td>layer %d</td>", l);
    for (i = 1; i < DEMO_PANELS; i++) {
      fputs("<td>", f);
      for (h = 0; h < heads; h++) fprintf(f, "%s%.2f", h ? "&ensp;" : "", r->distance[(i * layers + l) * heads + h]);
      fputs("</td>", f);
    }
    fputs("</tr>\n", f);
  }
  fputs("</tbody></table></div><figcaption>||M<sub>student</sub> &minus; M<sub>teacher</sub>||<sub>F</sub> / "
        "||M<sub>teacher</sub>||<sub>F</sub> on the "
        "same tokens.</figcaption></figure>\n",
        f);
}

static void write_texts(FILE *f, const demo_results *r) {
  int i;
  fputs("<h2>Continuations of the same prompt</h2>\n<p>&ldquo;", f);
  picture_escape(f, r->prompt);
  fputs(" &hellip;&rdquo;</p>\n<dl>\n", f);
  for (i = 0; i < DEMO_MODELS; i++) {
    fprintf(f, "<dt>%s</dt><dd>", r->models[i].is.name);
    picture_escape(f, r->models[i].text ? r->models[i].text : "");
    fputs("</dd>\n", f);
  }
  fputs("</dl>\n<p class=\"soft\">Sampled with one seed, temperature 0.7 and top-p 0.9, and not selected. Do not "
        "expect more from a teacher with a million parameters.</p>\n",
        f);
}

/* one model: what its mixers are, and its memory by length of the text */
static void write_model(FILE *f, const char *name, const mhk_config *c, const mhk_index *contexts) {
  const int teacher = c->arch == MHK_ARCH_PHI || c->arch == MHK_ARCH_LLAMA;
  char mixers[128], window[32] = "none";
  cli_buffer n, bytes;
  int i;
  if (c->window > 0) snprintf(window, sizeof window, "%d tokens", c->window);
  fprintf(f, "<tr><td>%s</td><td>%s</td><td>%s</td><td>%s</td><td>%s</td>", name,
          run_mixers(c, mixers, sizeof mixers), teacher ? "" : window,
          teacher ? "" : c->gates ? "yes" : "no", cli_count(mhk_config_parameters(c), &n));
  for (i = 0; i < 3; i++) fprintf(f, "<td>%s</td>", cli_bytes(mhk_config_state_bytes(c, contexts[i]), &bytes));
  fputs("</tr>\n", f);
}

static void write_models(FILE *f, const demo_results *r) {
  const mhk_index contexts[3] = {256, 2048, 16384};
  int i;
  fputs("<h2>Mixers and decoding memory</h2>\n<figure><div class=\"scroll\"><table class=\"small\"><thead><tr>"
        "<th>model</th><th>mixers</th><th>window</th><th>gates</th><th>parameters</th>",
        f);
  for (i = 0; i < 3; i++) fprintf(f, "<th>after %lld tokens</th>", (long long)contexts[i]);
  fputs("</tr></thead><tbody>\n", f);
  write_model(f, "teacher", r->teacher, contexts);
  for (i = 0; i < DEMO_RUNS; i++) write_model(f, r->runs[i].name, r->runs[i].student, contexts);
  fputs("</tbody></table></div><figcaption>Window: how many of the last tokens each head sees exactly. Gates: learned "
        "weights for what enters and leaves the state. Memory is computed from the shapes, one sequence, "
        "float32.</figcaption></figure>\n",
        f);
}

static void write_end(FILE *f, const demo_results *r) {
  cli_buffer n;
  fprintf(f,
          "<h2>Next steps</h2>\n<pre>build/mohawk generate --model %s/student --prompt \"The little "
          "rabbit\"\nbuild/mohawk inspect %s/student\nbuild/mohawk eval --model %s/student --teacher %s --text "
          "examples/story.txt</pre>\n",
          r->out, r->out, r->out, r->teacher_path);
  fprintf(f,
          "<p class=\"soft\">Written by mohawk %s%s%s. Bundled teacher: trained on stories by Pratham Books and "
          "African Storybook, CC-BY, and "
          "public-domain books.</p>\n</main></body></html>\n",
          mhk_version(), r->seconds > 0 ? " after " : "", r->seconds > 0 ? cli_time(r->seconds, &n) : "");
}

int report_html(const demo_results *r, const char *path) {
  cli_output o;
  if (cli_output_open(&o, path) != CLI_GO) return CLI_FAILED;
  write_opening(o.file, r);
  write_table(o.file, r);
  write_curves(o.file, r);
  write_matrices(o.file, r);
  write_texts(o.file, r);
  write_models(o.file, r);
  write_end(o.file, r);
  return cli_output_close(&o);
}
