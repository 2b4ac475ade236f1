/* heads.c: see heads.h. How far heads look is measured by window ablation: the teacher runs with a
   head limited to its last tokens, and KL to the unlimited teacher says what that costs. */
#include "heads.h"
#include "picture.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- measuring */

struct head_scan {
  mhk_context *ctx;
  mhk_model *teacher;
  const int32_t *tokens;
  mhk_index B, T;
  mhk_tape *tape;
  mhk_tensor *streams[MHK_MAX_LAYERS + 1]; /* of the base, (B,T,D): inputs of blocks, and the last output */
  mhk_tensor *work, *target;               /* (B,T,D); logits of the unlimited teacher (B*T,V) */
  int32_t *base, *trial;                   /* (n_layer,n_head); trial is for callers in this file */
};

static mhk_index heads_of(const mhk_config *c) { return (mhk_index)c->n_layer * c->n_head; }

static int failed(const head_scan *s) { return mhk_failed(s->ctx) ? cli_context_error(s->ctx) : CLI_GO; }

static void copy_into(mhk_tensor *to, mhk_tensor *from) {
  if (to && from) memcpy(mhk_data(to), mhk_data(from), (size_t)to->count * sizeof(mhk_real));
}

/* block l with these windows, from x to out, without keeping anything else */
static void run_block(head_scan *s, int l, mhk_tensor *x, mhk_tensor *out, const int32_t *windows) {
  const mhk_tape_mark mark = mhk_tape_here(s->tape);
  mhk_forward_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.windows = windows;
  copy_into(out, mhk_forward_block(s->tape, s->teacher, l, x, &desc));
  mhk_tape_rewind(s->tape, mark);
}

/* logits of one window from a stream x (B,T,D): (1,T,V) */
static mhk_tensor *window_logits(head_scan *s, mhk_tensor *x, mhk_index b) {
  const mhk_index D = mhk_model_config(s->teacher)->d_model, rows[2] = {s->B * s->T, D}, shape[3] = {1, s->T, D};
  x = mhk_rows(s->tape, mhk_reshape(s->tape, x, 2, rows), b * s->T, s->T);
  return mhk_forward_head(s->tape, s->teacher, mhk_reshape(s->tape, x, 3, shape));
}

int head_scan_base(head_scan *s, const int32_t *windows) {
  const mhk_config *c = mhk_model_config(s->teacher);
  mhk_index i;
  int l;
  for (i = 0; i < heads_of(c); i++) s->base[i] = windows ? windows[i] : MHK_WINDOW_ALL;
  for (l = 0; l < c->n_layer && !mhk_failed(s->ctx); l++)
    run_block(s, l, s->streams[l], s->streams[l + 1], windows ? s->base : NULL);
  return failed(s);
}

/* memory for all that is kept, and the pass of the unlimited teacher */
static int scan_start(head_scan *s) {
  const mhk_config *c = mhk_model_config(s->teacher);
  const mhk_index shape[3] = {s->B, s->T, c->d_model}, all[2] = {s->B * s->T, c->vocab_size};
  const size_t lists = (size_t)heads_of(c) * sizeof(int32_t);
  mhk_index b;
  int l;
  s->base = (int32_t *)malloc(lists);
  s->trial = (int32_t *)malloc(lists);
  s->tape = mhk_tape_create(s->ctx);
  if (!s->base || !s->trial || !s->tape) return cli_error("out of memory for %d layers of heads", c->n_layer);
  mhk_tape_record(s->tape, 0);
  s->streams[0] = mhk_forward_embedding(s->tape, s->teacher, s->tokens, s->B, s->T);
  for (l = 1; l <= c->n_layer; l++) s->streams[l] = mhk_tensor_new(s->tape, 3, shape, NULL);
  s->work = mhk_tensor_new(s->tape, 3, shape, NULL);
  s->target = mhk_tensor_new(s->tape, 2, all, NULL);
  if (head_scan_base(s, NULL) != CLI_GO) return CLI_FAILED;
  for (b = 0; b < s->B && !mhk_failed(s->ctx); b++) {
    const mhk_tape_mark mark = mhk_tape_here(s->tape);
    mhk_tensor *logits = window_logits(s, s->streams[c->n_layer], b);
    copy_into(mhk_rows(s->tape, s->target, b * s->T, s->T), logits);
    mhk_tape_rewind(s->tape, mark);
  }
  return failed(s);
}

head_scan *head_scan_open(mhk_context *ctx, mhk_model *teacher, mhk_corpus *text, mhk_index B, mhk_index T) {
  const mhk_config *c = mhk_model_config(teacher);
  head_scan *s = (head_scan *)calloc(1, sizeof *s);
  int l;
  if (!s) {
    cli_error("out of memory");
    return NULL;
  }
  s->ctx = ctx;
  s->teacher = teacher;
  s->T = T;
  s->B = mhk_corpus_tokens(text, &s->tokens) / T;
  if (s->B > B) s->B = B;
  for (l = 0; l < c->n_layer && c->mixer[l] == MHK_MIXER_ATTENTION; l++) {
  }
  if (l < c->n_layer)
    cli_error("the heads of a teacher with attention in all layers are measured: layer %d of this one has none", l);
  else if (s->B < 1)
    cli_error("the text is too short: it has fewer than %lld tokens, which --length asks for", (long long)T);
  else if (scan_start(s) == CLI_GO)
    return s;
  head_scan_close(s);
  return NULL;
}

void head_scan_close(head_scan *s) {
  if (!s) return;
  mhk_tape_destroy(s->tape);
  free(s->base);
  free(s->trial);
  free(s);
}

double head_scan_kl(head_scan *s, const int32_t *windows) {
  const mhk_config *c = mhk_model_config(s->teacher);
  mhk_tensor *x;
  double sum = 0;
  const size_t lists = (size_t)c->n_head * sizeof *windows;
  mhk_index b;
  int l = 0;
  while (l < c->n_layer && memcmp(windows + l * c->n_head, s->base + l * c->n_head, lists) == 0) l++;
  x = s->streams[l];
  for (; l < c->n_layer && !mhk_failed(s->ctx); l++) {
    run_block(s, l, x, s->work, windows);
    x = s->work;
  }
  for (b = 0; b < s->B && !mhk_failed(s->ctx); b++) {
    const mhk_tape_mark mark = mhk_tape_here(s->tape);
    mhk_tensor *target = mhk_rows(s->tape, s->target, b * s->T, s->T), *logits = window_logits(s, x, b), *kl;
    kl = mhk_kl(s->tape, logits && target ? mhk_reshape(s->tape, logits, 2, target->shape) : NULL, target);
    if (kl) sum += (double)mhk_data(kl)[0];
    mhk_tape_rewind(s->tape, mark);
  }
  return failed(s) == CLI_GO ? fmax(sum / (double)s->B, 0) : NAN; /* rounding may leave it below */
}

/* ---------------------------------------------------------------- choosing */

/* from these heads on n heads see w tokens and the others what the base says */
static void limit(head_scan *s, mhk_index first, mhk_index n, int w) {
  mhk_index i;
  memcpy(s->trial, s->base, (size_t)heads_of(mhk_model_config(s->teacher)) * sizeof *s->trial);
  for (i = first; i < first + n; i++) s->trial[i] = w;
}

mhk_config head_student_shape(const mhk_config *teacher) {
  mhk_config c = *teacher;
  int l;
  c.arch = teacher->arch == MHK_ARCH_LLAMA ? MHK_ARCH_LLAMA_MAMBA : MHK_ARCH_PHI_MAMBA;
  c.attention_window = 0;
  c.ssm_heads = c.ssm_groups = teacher->n_head;
  c.ssm_head_dim = c.d_state = teacher->head_dim;
  c.d_conv = 4;
  c.chunk_size = 128;
  for (l = 0; l < c.n_layer; l++) c.mixer[l] = MHK_MIXER_DISCRETE_MAMBA2;
  return c;
}

int head_keeps_layer(const int32_t *windows, int layer, int heads) {
  int h = 0;
  while (h < heads && windows[layer * heads + h] == MHK_WINDOW_ALL) h++;
  return h == heads;
}

double head_bytes(const mhk_config *shape, const int32_t *windows, mhk_index context) {
  mhk_config c = *shape;
  int l, states = 0;
  c.windows = windows;
  for (l = 0; l < c.n_layer; l++) {
    if (head_keeps_layer(windows, l, shape->ssm_heads)) c.mixer[l] = MHK_MIXER_ATTENTION;
    states += c.mixer[l] != MHK_MIXER_ATTENTION;
  }
  if (states == 0) { /* without state-space mixers there is nothing that gates and windows are of */
    c.gates = 0;
    c.windows = NULL;
  }
  return mhk_config_state_bytes(&c, context);
}

enum { MOST_SIZES = 16 };

/* What heads may see, from little to everything, and what it costs. kl (heads,n): of the teacher
   with that head limited and no other. */
typedef struct head_sizes {
  int n, window[MOST_SIZES];
  double bytes[MOST_SIZES]; /* more than a head without window has */
  double *kl;
} head_sizes;

/* the sizes a budget allows, below the length of the text that they are measured on */
static void list_sizes(const head_scan *s, const head_budget *b, head_sizes *z) {
  const mhk_index heads = heads_of(mhk_model_config(s->teacher));
  int w = b->least, i;
  z->window[z->n++] = w;
  for (w = w ? 2 * w : 4; w <= b->largest && w < s->T && z->n + 1 < MOST_SIZES; w *= 2) z->window[z->n++] = w;
  if (b->keeps) z->window[z->n++] = MHK_WINDOW_ALL;
  memset(s->trial, 0, (size_t)heads * sizeof *s->trial);
  for (i = 0; i < z->n; i++) {
    s->trial[0] = z->window[i];
    z->bytes[i] = head_bytes(&b->shape, s->trial, b->context);
  }
  for (i = z->n - 1; i >= 0; i--) z->bytes[i] -= z->bytes[0];
}

/* KL of every head at every size. A head without window is one that sees its own token only, which
   makes the first few tokens worth their bytes; where the choice is between that and everything, it
   is one that sees 16, since near ones are what a state keeps. */
static int measure_sizes(head_scan *s, const int32_t *windows, head_sizes *z) {
  const mhk_index heads = heads_of(mhk_model_config(s->teacher));
  cli_task task;
  mhk_index i;
  z->kl = (double *)calloc((size_t)(heads * z->n), sizeof *z->kl);
  if (!z->kl) return cli_error("out of memory for %lld heads", (long long)heads);
  cli_task_start(&task, "heads", "how far they look", (double)(s->B * s->T));
  for (i = 0; i < heads * z->n; i++) {
    const mhk_index h = i / z->n;
    const int w = z->window[i % z->n];
    if (cli_task_report(&task, i, heads * z->n)) return CLI_FAILED;
    if (w == MHK_WINDOW_ALL || windows[h] == MHK_WINDOW_ALL) continue;
    limit(s, h, 1, w ? w : z->n == 2 ? 16 : 1);
    z->kl[i] = head_scan_kl(s, s->trial);
    if (isnan(z->kl[i])) return CLI_FAILED;
  }
  cli_progress_clear();
  return CLI_GO;
}

/* Spends the bytes that are left where they buy most; at (heads) is the size of each head. */
static void spend(const head_sizes *z, mhk_index heads, double bytes, int *at) {
  for (;;) {
    double best = 0;
    mhk_index h, head = -1;
    int k, to = 0;
    for (h = 0; h < heads; h++)
      for (k = at[h] + 1; at[h] >= 0 && k < z->n; k++) {
        const double cost = z->bytes[k] - z->bytes[at[h]], gain = z->kl[h * z->n + at[h]] - z->kl[h * z->n + k];
        if (cost <= bytes && gain > 0 && (cost <= 0 || gain / cost > best)) {
          best = cost > 0 ? gain / cost : INFINITY;
          head = h;
          to = k;
        }
      }
    if (head < 0) return;
    bytes -= z->bytes[to] - z->bytes[at[head]];
    at[head] = to;
  }
}

/* Bytes that are left of a budget with these windows; negative after a message, when it has too
   few. */
static double bytes_left(const head_budget *b, const int32_t *windows) {
  const double bytes = head_bytes(&b->shape, windows, b->context);
  cli_buffer asked, needed;
  if (bytes > b->bytes)
    cli_error("%s of state are too few: without more for any head, a student has %s after %lld tokens",
              cli_bytes(b->bytes, &asked), cli_bytes(bytes, &needed), (long long)b->context);
  return b->bytes - bytes;
}

/* Which heads keep their attention, and one of the sizes for each of the others, which
   share_tokens() replaces where the budget has room for windows of their own. */
static int choose_sizes(head_scan *s, const head_budget *budget, double bytes, int32_t *windows) {
  const mhk_index heads = heads_of(mhk_model_config(s->teacher));
  int *at = (int *)malloc((size_t)heads * sizeof *at), code; /* -1: decided */
  head_sizes z;
  mhk_index h;
  memset(&z, 0, sizeof z);
  if (!at) return cli_error("out of memory for %lld heads", (long long)heads);
  list_sizes(s, budget, &z);
  for (h = 0; h < heads; h++) at[h] = windows[h] == MHK_WINDOW_ALL ? -1 : 0;
  code = measure_sizes(s, windows, &z);
  if (code == CLI_GO) {
    spend(&z, heads, bytes, at);
    for (h = 0; h < heads; h++)
      if (at[h] >= 0) windows[h] = z.window[at[h]];
  }
  free(z.kl);
  free(at);
  return code;
}

/* Gives one more token to the heads that are not kept, in the order of kl, until none is left. */
static void give_rest(mhk_index heads, const double *kl, mhk_index rest, int32_t most, int32_t *windows) {
  int32_t given = 1;
  unsigned char *had = (unsigned char *)calloc((size_t)heads, 1);
  while (had && rest > 0) {
    mhk_index h, best = -1;
    for (h = 0; h < heads; h++)
      if (windows[h] != MHK_WINDOW_ALL && windows[h] < most && !had[h] && (best < 0 || kl[h] > kl[best])) best = h;
    if (best >= 0) {
      windows[best]++;
      had[best] = 1;
      rest--;
      given = 1;
    } else if (given) {
      memset(had, 0, (size_t)heads);
      given = 0;
    } else
      break; /* all see as much as they may */
  }
  free(had);
}

/* Shares a number of tokens among the heads that are not kept. Each gets half of the mean; the
   other half goes by what the teacher loses with that head alone limited to a quarter of the text.
   Of the ways tried, students trained with this one came closest to their teachers, closer than
   with the least sum of such losses, which leaves many heads too few. Below a mean of 16, all get
   the same. */
static int share_tokens(head_scan *s, double tokens, int32_t *windows) {
  const mhk_index heads = heads_of(mhk_model_config(s->teacher));
  const int32_t most = (int32_t)(3 * s->T / 4);
  double *kl = (double *)calloc((size_t)heads, sizeof *kl), sum = 0, mean;
  mhk_index h, n = 0, rest;
  cli_task task;
  if (!kl) return cli_error("out of memory for %lld heads", (long long)heads);
  for (h = 0; h < heads; h++) n += windows[h] != MHK_WINDOW_ALL;
  mean = n ? floor(tokens / (double)n) : 0;
  cli_task_start(&task, "heads", "how far they look", (double)(s->B * s->T));
  for (h = 0; mean >= 16 && h < heads; h++) {
    if (cli_task_report(&task, h, heads)) break;
    if (windows[h] == MHK_WINDOW_ALL) continue;
    limit(s, h, 1, (int)(s->T < 8 ? 2 : s->T / 4));
    kl[h] = head_scan_kl(s, s->trial);
    if (isnan(kl[h])) break;
    sum += kl[h];
  }
  if (mean >= 16 && h < heads) {
    free(kl);
    return CLI_FAILED;
  }
  cli_progress_clear();
  rest = (mhk_index)tokens;
  for (h = 0; h < heads; h++) {
    if (windows[h] == MHK_WINDOW_ALL) continue;
    const double base = sum > 0 ? floor(mean / 2) : mean,
                 more = sum > 0 ? (tokens - (double)n * base) * kl[h] / sum : 0;
    windows[h] = (int32_t)fmin(base + floor(more), most);
    rest -= windows[h];
  }
  if (mean >= 16) give_rest(heads, kl, rest, most, windows);
  free(kl);
  return CLI_GO;
}

int head_choose(head_scan *s, const head_budget *budget, int32_t *windows) {
  const mhk_index heads = heads_of(mhk_model_config(s->teacher));
  double left, none, one;
  mhk_index h, n = 0;
  for (h = 0; h < heads; h++)
    if (windows[h] != MHK_WINDOW_ALL) windows[h] = budget->least;
  left = bytes_left(budget, windows);
  if (left < 0 || (budget->keeps && choose_sizes(s, budget, left, windows) != CLI_GO)) return CLI_FAILED;
  if (budget->largest <= budget->least) return CLI_GO;
  for (h = 0; h < heads; h++) {
    n += windows[h] != MHK_WINDOW_ALL;
    if (windows[h] != MHK_WINDOW_ALL) windows[h] = 0;
  }
  none = head_bytes(&budget->shape, windows, budget->context);
  for (h = 0; h < heads; h++) windows[h] += windows[h] != MHK_WINDOW_ALL;
  one = head_bytes(&budget->shape, windows, budget->context);
  return n ? share_tokens(s, floor((budget->bytes - none) * (double)n / (one - none) + 1e-6), windows) : CLI_GO;
}

/* ---------------------------------------------------------------- windows as options */

/* "L.H" at text: the place of the head in a list; *end what follows. -1 after a message. */
static mhk_index parse_head(const char *text, const mhk_config *teacher, char **end) {
  const long layer = strtol(text, end, 10);
  long head = -1;
  if (*end > text && **end == '.') head = strtol(*end + 1, end, 10);
  if (layer >= 0 && layer < teacher->n_layer && head >= 0 && head < teacher->n_head)
    return layer * teacher->n_head + head;
  cli_error("\"%s\" names no head: layer.head, as 2.1; the teacher has layers 0 to %d and heads 0 to %d", text,
            teacher->n_layer - 1, teacher->n_head - 1);
  return -1;
}

int head_parse_kept(const char *text, const mhk_config *teacher, int32_t *windows) {
  char *end;
  for (;; text = end + 1) {
    const mhk_index h = parse_head(text, teacher, &end);
    if (h < 0) return CLI_FAILED;
    windows[h] = MHK_WINDOW_ALL;
    if (*end == 0) return CLI_GO;
    if (*end != ',') return cli_error("\"%s\" does not end a list of heads like 2.1,1.1", end);
  }
}

enum { NOT_SAID = -2 };

int head_parse_windows(const char *text, const mhk_config *teacher, int32_t *windows) {
  const char *at = text;
  char *end;
  long w;
  mhk_index h, i;
  for (i = 0; i < heads_of(teacher); i++) windows[i] = NOT_SAID;
  for (;; at = end + 1) {
    const int named = at[strcspn(at, "=,")] == '=';
    h = named ? parse_head(at, teacher, &end) : -1;
    if (named && (h < 0 || *end != '=')) return CLI_FAILED;
    if (named) at = end + 1;
    w = strtol(at, &end, 10);
    if (end == at || (*end != ',' && *end != 0) || w < 0 || w > 1 << 24)
      return cli_error("--windows %s: \"%s\" is not a number of tokens; it is a list like 2.1=64,1.1=32,8", text, at);
    if (named) windows[h] = (int32_t)w;
    for (i = 0; *end == 0 && i < heads_of(teacher); i++)
      if (windows[i] == NOT_SAID) windows[i] = named ? 0 : (int32_t)w;
    if (*end == 0) return CLI_GO;
    if (!named) return cli_error("--windows %s: the bare number is that of all other heads, so it comes last", text);
  }
}

/* the window that most heads have, which the others are exceptions from */
static int32_t common_window(const mhk_config *teacher, const int32_t *windows) {
  mhk_index i, k, n, most = 0;
  int32_t common = 0;
  for (i = 0; i < heads_of(teacher); i++) {
    if (windows[i] == MHK_WINDOW_ALL) continue;
    for (n = k = 0; k < heads_of(teacher); k++) n += windows[k] == windows[i];
    if (n > most || (n == most && windows[i] < common)) common = windows[i], most = n;
  }
  return common;
}

void head_flags(const mhk_config *teacher, const int32_t *windows, char *text, size_t capacity) {
  const int32_t common = common_window(teacher, windows);
  size_t n = 0;
  mhk_index i;
  int l, exceptions = 0, said = 0;
  text[0] = 0;
  for (i = 0; i < heads_of(teacher); i++) exceptions += windows[i] != MHK_WINDOW_ALL && windows[i] != common;
#define SAY(...) n += n < capacity ? (size_t)snprintf(text + n, capacity - n, __VA_ARGS__) : 0
  for (l = 0; l < teacher->n_layer; l++)
    if (head_keeps_layer(windows, l, teacher->n_head)) SAY("%s%d", said++ ? "," : "--keep-attention ", l);
  for (said = 0, i = 0; i < heads_of(teacher); i++)
    if (windows[i] == MHK_WINDOW_ALL && !head_keeps_layer(windows, (int)(i / teacher->n_head), teacher->n_head))
      SAY("%s%d.%d", said++ ? "," : n ? " --keep-heads " : "--keep-heads ", (int)(i / teacher->n_head),
          (int)(i % teacher->n_head));
  if (exceptions) {
    SAY("%s--windows ", n ? " " : "");
    for (i = 0; i < heads_of(teacher); i++)
      if (windows[i] != MHK_WINDOW_ALL && windows[i] != common)
        SAY("%d.%d=%d,", (int)(i / teacher->n_head), (int)(i % teacher->n_head), (int)windows[i]);
    SAY("%d", (int)common);
  } else if (common > 0) {
    SAY("%s--window %d", n ? " " : "", (int)common);
  }
#undef SAY
}

/* ---------------------------------------------------------------- the command */

typedef struct settings {
  cli_files paths;
  const char *svg;
  mhk_index batch, length, context;
  double bytes;
  int window, greedy, d_state, json, encoding, threads;
} settings;

static const settings defaults = {.batch = 8, .length = 256, .window = 16};

static const cli_option options[] = {
    {NULL, "TEACHER [TEXT...]", CLI_REST, CLI_AT(paths), 1, 0, NULL},
    {"window", "W", CLI_INT, CLI_AT(window), 1, 1 << 24, "tokens that a limited head sees (default 16)"},
    {"greedy", "N", CLI_INT, CLI_AT(greedy), 0, 1e6,
     "also start with all heads limited and free N of them, each time the one that lowers KL most"},
    {"bytes", "BYTES", CLI_REAL, CLI_AT(bytes), 1, 1e15,
     "propose which heads and layers a student should keep, and windows for the others, for this much state per "
     "sequence"},
    {"context", "T", CLI_COUNT, CLI_AT(context), 1, 1e12, "tokens after which state is counted (default: --length)"},
    {"d-state", "N", CLI_INT, CLI_AT(d_state), 1, 4096, "state size of the student (default: the teacher's head size)"},
    {"batch", "N", CLI_COUNT, CLI_AT(batch), 1, 1e6, "sequences to measure on (default 8)"},
    {"length", "N", CLI_COUNT, CLI_AT(length), 2, 1e7, "tokens per sequence (default 256)"},
    {"svg", "FILE", CLI_TEXT, CLI_AT(svg), 0, 0, "draw layers and heads"},
    CLI_ENCODING(CLI_AT(encoding)),
    CLI_THREADS(CLI_AT(threads)),
    CLI_STRICT,
    CLI_JSON(CLI_AT(json)),
};

enum { LIMITS = 5 };
static const int limits[LIMITS] = {8, 16, 32, 64, 128}; /* of all heads at once */

/* what is measured and said */
typedef struct report {
  const settings *s;
  const mhk_config *c;
  double *head, *layer; /* (n_layer,n_head), (n_layer) */
  double all[LIMITS];
  int *freed;           /* (greedy) heads in their order, */
  double *kl;           /* (1 + greedy) and KL before and after each */
  int n_freed;
  int32_t *windows;     /* the proposal, (n_layer,n_head) */
  cli_task task;
  mhk_index done, total;
} report;

/* KL of the teacher with the windows in s->trial; NaN after a message or Ctrl-C */
static double measure(report *r, head_scan *s) {
  if (cli_task_report(&r->task, r->done++, r->total)) return NAN;
  return head_scan_kl(s, s->trial);
}

/* each head, each layer, and all */
static int measure_alone(report *r, head_scan *s) {
  const mhk_index heads = heads_of(r->c);
  mhk_index i;
  int l;
  for (i = 0; i < heads; i++) {
    limit(s, i, 1, r->s->window);
    if (isnan(r->head[i] = measure(r, s))) return CLI_FAILED;
  }
  for (l = 0; l < r->c->n_layer; l++) {
    limit(s, (mhk_index)l * r->c->n_head, r->c->n_head, r->s->window);
    if (isnan(r->layer[l] = measure(r, s))) return CLI_FAILED;
  }
  for (l = 0; l < LIMITS; l++) {
    limit(s, 0, heads, limits[l]);
    if (isnan(r->all[l] = measure(r, s))) return CLI_FAILED;
  }
  return CLI_GO;
}

/* Frees heads one by one from the base where all are limited, which stays a base so that only
   layers from a freed head on run again. */
static int measure_greedy(report *r, head_scan *s) {
  const mhk_index heads = heads_of(r->c);
  mhk_index i;
  limit(s, 0, heads, r->s->window);
  r->kl[0] = head_scan_kl(s, s->trial);
  while (!isnan(r->kl[r->n_freed]) && r->n_freed < r->s->greedy && r->n_freed < heads) {
    double best = INFINITY;
    int head = -1;
    if (head_scan_base(s, s->trial) != CLI_GO) return CLI_FAILED;
    for (i = 0; i < heads; i++) {
      double kl;
      if (s->base[i] == MHK_WINDOW_ALL) continue;
      limit(s, i, 1, MHK_WINDOW_ALL);
      if (isnan(kl = measure(r, s))) return CLI_FAILED;
      if (kl < best) {
        best = kl;
        head = (int)i;
      }
    }
    r->freed[r->n_freed++] = head;
    r->kl[r->n_freed] = best;
    limit(s, head, 1, MHK_WINDOW_ALL);
  }
  return isnan(r->kl[r->n_freed]) ? CLI_FAILED : head_scan_base(s, NULL);
}

/* the shape of the student that is proposed; run.h's defaults have gates */
static mhk_config shape_of(const report *r) {
  mhk_config c = head_student_shape(r->c);
  c.gates = 1;
  if (r->s->d_state) c.d_state = r->s->d_state;
  return c;
}

static mhk_index context_of(const report *r) { return r->s->context ? r->s->context : r->s->length; }

static head_budget budget_of(const report *r) {
  head_budget b = {.shape = shape_of(r), .context = context_of(r), .bytes = r->s->bytes, .keeps = 1};
  b.largest = (int)(r->s->length / 2);
  return b;
}

static int measure_all(report *r, head_scan *s) {
  const mhk_index heads = heads_of(r->c);
  const head_budget budget = budget_of(r);
  mhk_index i;
  if (r->s->bytes > 0 && bytes_left(&budget, r->windows) < 0) return CLI_FAILED; /* before the work */
  r->total = heads + r->c->n_layer + LIMITS;
  for (i = 0; i < r->s->greedy && i < heads; i++) r->total += heads - i;
  cli_task_start(&r->task, "heads", "limited", (double)(s->B * s->T));
  if (measure_alone(r, s) != CLI_GO || (r->s->greedy && measure_greedy(r, s) != CLI_GO)) return CLI_FAILED;
  cli_progress_clear();
  return r->s->bytes > 0 ? head_choose(s, &budget, r->windows) : CLI_GO;
}

/* ---------------------------------------------------------------- what it says */

enum { MOST_COLUMNS = 12, MOST_LINES = 20 }; /* of a table of all heads; of a list of some */

/* the heads that lose most, for teachers with more heads than a line has room for */
static void print_first(const report *r) {
  const mhk_index heads = heads_of(r->c);
  double above = INFINITY;
  mhk_index above_head = -1, i;
  int n;
  printf("%-24s %8s\n", "layer.head", "KL");
  for (n = 0; n < MOST_LINES && n < heads; n++) {
    mhk_index best = -1;
    for (i = 0; i < heads; i++)
      if ((r->head[i] < above || (r->head[i] <= above && i > above_head)) && (best < 0 || r->head[i] > r->head[best]))
        best = i;
    above = r->head[best];
    above_head = best;
    printf("  %3d.%-18d %8.4f\n", (int)(best / r->c->n_head), (int)(best % r->c->n_head), above);
  }
}

static void print_table(const report *r) {
  const int wide = r->c->n_head > MOST_COLUMNS;
  int l, h;
  if (wide) print_first(r);
  printf("layer  ");
  for (h = 0; h < r->c->n_head && !wide; h++) printf("   head %-2d", h);
  printf("  whole layer\n");
  for (l = 0; l < r->c->n_layer; l++) {
    printf("%5d  ", l);
    for (h = 0; h < r->c->n_head && !wide; h++) printf("%10.4f", r->head[l * r->c->n_head + h]);
    printf("%13.4f\n", r->layer[l]);
  }
}

/* the proposal as options of `mohawk distill` */
static void say_options(const report *r, char *text, size_t capacity) {
  const int n = r->s->d_state ? snprintf(text, capacity, "--d-state %d ", r->s->d_state) : 0;
  head_flags(r->c, r->windows, text + n, capacity - (size_t)n);
}

static void print_report(const report *r, const head_scan *s) {
  char flags[4096];
  cli_buffer asked, has;
  const mhk_config shape = shape_of(r);
  int i;
  printf("KL to the unlimited teacher with one head limited to its last %d tokens, in nats (%lld tokens of text)\n",
         r->s->window, (long long)(s->B * s->T));
  print_table(r);
  printf("\nall heads limited to ");
  for (i = 0; i < LIMITS; i++) printf("%9d", limits[i]);
  printf("\n  KL                 ");
  for (i = 0; i < LIMITS; i++) printf("%9.4f", r->all[i]);
  printf("\n");
  if (r->s->greedy) printf("\nall heads limited to %d, freed one by one\n  none %13.4f\n", r->s->window, r->kl[0]);
  for (i = 0; i < r->n_freed; i++)
    printf("  %d.%-10d %7.4f\n", r->freed[i] / r->c->n_head, r->freed[i] % r->c->n_head, r->kl[i + 1]);
  if (r->s->bytes <= 0) return;
  say_options(r, flags, sizeof flags);
  printf("\nfor %s of state after %lld tokens, of which this student has %s:\n  mohawk distill --teacher %s%s%s\n",
         cli_bytes(r->s->bytes, &asked), (long long)context_of(r),
         cli_bytes(head_bytes(&shape, r->windows, context_of(r)), &has), r->s->paths.path[0], flags[0] ? " " : "",
         flags);
}

static void json_list(cli_json *j, const char *key, const double *x, int n) {
  int i;
  json_open(j, key, '[');
  for (i = 0; i < n; i++) json_real(j, NULL, x[i]);
  json_close(j);
}

static void json_proposal(cli_json *j, const report *r) {
  const mhk_config shape = shape_of(r);
  char flags[4096];
  mhk_index i;
  say_options(r, flags, sizeof flags);
  json_open(j, "proposal", '{');
  json_text(j, "options", flags);
  json_count(j, "budget_bytes", r->s->bytes);
  json_count(j, "state_bytes", head_bytes(&shape, r->windows, context_of(r)));
  json_count(j, "context", (double)context_of(r));
  json_open(j, "windows", '[');
  for (i = 0; i < heads_of(r->c); i++) json_count(j, NULL, r->windows[i]);
  json_close(j);
  json_close(j);
}

/* all that was measured, as one object */
static void print_json(const report *r, const head_scan *s) {
  char name[32];
  cli_json j;
  int i;
  json_start(&j, stdout, 0);
  json_open(&j, NULL, '{');
  json_text(&j, "teacher", r->s->paths.path[0]);
  json_count(&j, "window", r->s->window);
  json_count(&j, "tokens", (double)(s->B * s->T));
  json_open(&j, "heads", '[');
  for (i = 0; i < r->c->n_layer; i++) json_list(&j, NULL, r->head + i * r->c->n_head, r->c->n_head);
  json_close(&j);
  json_list(&j, "layers", r->layer, r->c->n_layer);
  json_open(&j, "all", '{');
  for (i = 0; i < LIMITS; i++) {
    snprintf(name, sizeof name, "%d", limits[i]);
    json_real(&j, name, r->all[i]);
  }
  json_close(&j);
  if (r->s->greedy) {
    json_list(&j, "greedy_kl", r->kl, r->n_freed + 1);
    json_open(&j, "greedy", '[');
    for (i = 0; i < r->n_freed; i++) {
      snprintf(name, sizeof name, "%d.%d", r->freed[i] / r->c->n_head, r->freed[i] % r->c->n_head);
      json_text(&j, NULL, name);
    }
    json_close(&j);
  }
  if (r->s->bytes > 0) json_proposal(&j, r);
  json_close(&j);
}

static int draw(const report *r) {
  picture_heads p = {.layers = r->c->n_layer, .heads = r->c->n_head, .kl = r->head, .layer_kl = r->layer};
  char title[96];
  cli_output o;
  snprintf(title, sizeof title, "KL with one head limited to its last %d tokens", r->s->window);
  p.title = title;
  if (cli_output_open(&o, r->s->svg) != CLI_GO) return CLI_FAILED;
  picture_heads_svg(o.file, &p);
  return cli_output_close(&o);
}

/* ---------------------------------------------------------------- from options to report */

static int report_on(report *r, head_scan *s) {
  const size_t heads = (size_t)heads_of(r->c), greedy = (size_t)r->s->greedy;
  int code = CLI_FAILED;
  r->head = (double *)calloc(heads, sizeof(double));
  r->layer = (double *)calloc((size_t)r->c->n_layer, sizeof(double));
  r->kl = (double *)calloc(greedy + 1, sizeof(double));
  r->freed = (int *)calloc(greedy + 1, sizeof(int));
  r->windows = (int32_t *)calloc(heads, sizeof(int32_t));
  if (!r->head || !r->layer || !r->kl || !r->freed || !r->windows) {
    cli_error("out of memory for %.0f heads", (double)heads);
  } else if (measure_all(r, s) == CLI_GO && (!r->s->svg || draw(r) == CLI_GO)) {
    if (r->s->json) print_json(r, s);
    else print_report(r, s);
    code = CLI_OK;
  }
  free(r->head);
  free(r->layer);
  free(r->kl);
  free(r->freed);
  free(r->windows);
  return code;
}

static int heads(mhk_context *ctx, void *user) {
  report r = {.s = (const settings *)user};
  mhk_model *teacher = cli_load(ctx, r.s->paths.path[0]);
  mhk_corpus *text;
  head_scan *s;
  int code;
  if (!teacher) return cli_context_error(ctx);
  cli_quiet(r.s->json);
  cli_catch_signals();
  r.c = mhk_model_config(teacher);
  text = run_some_text(ctx, teacher, r.s->paths.n - 1, r.s->paths.path + 1, r.s->encoding, r.s->batch * r.s->length);
  s = text && !cli_stopped() ? head_scan_open(ctx, teacher, text, r.s->batch, r.s->length) : NULL;
  if (!s) return CLI_FAILED;
  code = report_on(&r, s);
  head_scan_close(s);
  return code;
}

const cli_command command_heads = {
    .name = "heads",
    .summary = "measure how far each head of a teacher looks, and propose which to keep",
    .synopsis = "TEACHER [TEXT...] [options]",
    .about = "Limits one head of a teacher after the other to its last tokens, then all of a layer, and measures KL to "
             "the unlimited teacher: what a student loses that does not see further there. Without TEXT it measures on "
             "examples/story.txt if that is there, otherwise on text that the teacher generates.",
    .example = "mohawk heads examples/tiny --bytes 200k --context 2048",
    CLI_OPTIONS(options),
    CLI_SETTINGS(defaults),
    .body = heads,
};
