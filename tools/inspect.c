/* mohawk inspect: what a checkpoint holds and what running it costs. */
#include "heads.h"
#include "foreign.h"
#include <stdlib.h>
#include <string.h>

typedef struct settings {
  mhk_index context;
  int names, json;
  cli_files paths;
} settings;

static const settings defaults = {0};

static const cli_option options[] = {
    {NULL, "PATH", CLI_REST, CLI_AT(paths), 1, 0, NULL},
    {"names", NULL, CLI_FLAG, CLI_AT(names), 0, 0, "also list every tensor with its shape and type"},
    {"context", "T", CLI_COUNT, CLI_AT(context), 1, 1e12,
     "report the decoding memory after T tokens (default: the context length of the model)"},
    CLI_STRICT,
    CLI_JSON(CLI_AT(json)),
};

static const char *mixer_name(int kind) {
  switch (kind) {
    case MHK_MIXER_ATTENTION: return "attention";
    case MHK_MIXER_DISCRETE_MAMBA2: return "discrete Mamba-2";
    case MHK_MIXER_MAMBA2: return "Mamba-2";
    default: return "?";
  }
}

/* The same model with attention in every layer. */
static mhk_config with_attention(const mhk_config *c) {
  mhk_config a = *c;
  int l;
  if (a.n_head == 0) {
    a.n_head = a.ssm_heads;
    a.head_dim = a.ssm_head_dim;
  }
  if (a.n_kv_head == 0) a.n_kv_head = a.n_head;
  a.gates = a.window = 0;
  a.windows = NULL;
  /* no architecture that is known has no MLP beside attention; its width changes no state */
  if (a.arch == MHK_ARCH_MAMBA2) {
    a.arch = MHK_ARCH_PHI;
    a.d_mlp = 1;
  }
  for (l = 0; l < a.n_layer; l++) a.mixer[l] = MHK_MIXER_ATTENTION;
  return a;
}

/* how many tokens a head of a state-space layer sees exactly, or MHK_WINDOW_ALL */
static int window_of(const mhk_config *c, int layer, int head) {
  return c->windows ? (int)c->windows[layer * c->ssm_heads + head] : c->window;
}

static double stored_bytes(const mhk_model *m) {
  double bytes = 0;
  int i;
  for (i = 0; i < mhk_model_count(m); i++) {
    bytes += (double)mhk_tensor_bytes(mhk_model_at(m, i));
  }
  return bytes;
}

static mhk_index context_of(const settings *s, const mhk_config *c) {
  return s->context ? s->context : c->max_position ? c->max_position : 2048;
}

static int same_layers(const mhk_config *c, int a, int b) {
  int h;
  for (h = 0; c->mixer[a] == MHK_MIXER_DISCRETE_MAMBA2 && h < c->ssm_heads; h++)
    if (window_of(c, a, h) != window_of(c, b, h)) return 0;
  return c->mixer[a] == c->mixer[b];
}

/* ", heads see 8, 64, 8, all tokens exactly", or what is shorter when heads are alike */
static void print_windows(const mhk_config *c, int layer) {
  int h, same = 1;
  if (c->mixer[layer] != MHK_MIXER_DISCRETE_MAMBA2) return;
  for (h = 1; h < c->ssm_heads; h++) same &= window_of(c, layer, h) == window_of(c, layer, 0);
  if (same && window_of(c, layer, 0) == 0) return;
  printf(same ? ", each head sees" : ", heads see");
  for (h = 0; h < (same ? 1 : c->ssm_heads); h++) {
    if (window_of(c, layer, h) == MHK_WINDOW_ALL) printf("%s all", h ? "," : "");
    else printf("%s %d", h ? "," : "", window_of(c, layer, h));
  }
  printf(" tokens exactly");
}

/* layers that follow each other and are alike on one line */
static void print_mixers(const mhk_config *c) {
  int l = 0;
  printf("layers          %d\n", c->n_layer);
  while (l < c->n_layer) {
    int first = l;
    while (l < c->n_layer && same_layers(c, first, l)) l++;
    if (l - first == 1) printf("  %-13d %s", first, mixer_name(c->mixer[first]));
    else printf("  %2d to %-7d %s", first, l - 1, mixer_name(c->mixer[first]));
    print_windows(c, first);
    printf("\n");
  }
}

static void print_state(const settings *s, const mhk_config *c) {
  const mhk_index T = context_of(s, c), contexts[2] = {T, 8 * T};
  const mhk_config attention = with_attention(c), student = head_student_shape(c);
  cli_buffer here, there;
  int i;
  printf("decoding memory (float32), one sequence\n");
  for (i = 0; i < 2; i++) {
    printf("  after %-7lld %10s", (long long)contexts[i], cli_bytes(mhk_config_state_bytes(c, contexts[i]), &here));
    if (c->arch == MHK_ARCH_PHI || c->arch == MHK_ARCH_LLAMA) {
      printf("; as a %s-Mamba student: %s\n", c->arch == MHK_ARCH_PHI ? "Phi" : "Llama",
             cli_bytes(mhk_config_state_bytes(&student, contexts[i]), &there));
    } else {
      printf("; with attention in every layer: %s\n",
             cli_bytes(mhk_config_state_bytes(&attention, contexts[i]), &there));
    }
  }
}

static void print_config(const settings *s, const char *path, const mhk_config *c) {
  char kind[256];
  cli_buffer n, bytes;
  printf("%s%s%s\n", cli_bold(stdout), path, cli_plain(stdout));
  printf("model           %s\n", run_mixers(c, kind, sizeof kind));
  printf("parameters      %s (%.0f), %s in float32\n", cli_count(mhk_config_parameters(c), &n),
         mhk_config_parameters(c), cli_bytes(4 * mhk_config_parameters(c), &bytes));
  printf("width           %d, vocabulary %d%s\n", c->d_model, c->vocab_size,
         c->tie_embeddings ? ", head tied to the embedding" : "");
  if (c->d_mlp) printf("MLP             %d wide\n", c->d_mlp);
  if (c->n_head) {
    printf("attention       %d heads of %d", c->n_head, c->head_dim);
    if (c->n_kv_head != c->n_head) printf(", %d for keys and values", c->n_kv_head);
    printf(", rotary on %d features, theta %g%s\n", c->rotary_dim, c->rope_theta,
           c->qk_layernorm ? ", norms on q and k" : "");
  }
  if (c->ssm_heads) {
    printf("state space     %d heads of %d, state %d, %d groups of B and C, convolution of %d%s", c->ssm_heads,
           c->ssm_head_dim, c->d_state, c->ssm_groups, c->d_conv, c->conv_silu ? " with silu" : "");
    if (c->ssm_rotary_dim) printf(", rotary on %d features", c->ssm_rotary_dim);
    if (c->gates) printf(", gates");
    printf("\n");
  }
  if (c->max_position) printf("context         %d tokens\n", c->max_position);
  print_mixers(c);
  print_state(s, c);
}

static void print_tensor(const char *name, mhk_dtype dtype, int rank, const mhk_index *shape) {
  int i;
  printf("  %-58s %-5s (", name, mhk_dtype_name(dtype));
  for (i = 0; i < rank; i++) printf("%s%lld", i ? "," : "", (long long)shape[i]);
  printf(")\n");
}

static void json_tensor(cli_json *j, const char *name, mhk_dtype dtype, int rank, const mhk_index *shape) {
  int i;
  json_open(j, NULL, '{');
  json_text(j, "name", name);
  json_text(j, "dtype", mhk_dtype_name(dtype));
  json_open(j, "shape", '[');
  for (i = 0; i < rank; i++) json_count(j, NULL, (double)shape[i]);
  json_close(j);
  json_close(j);
}

/* windows by layer: -1 where a head sees everything */
static void json_config(cli_json *j, const settings *s, const mhk_config *c) {
  const mhk_config attention = with_attention(c);
  const mhk_index T = context_of(s, c);
  char kind[256];
  int l, h;
  json_text(j, "model", run_mixers(c, kind, sizeof kind));
  json_count(j, "parameters", mhk_config_parameters(c));
  json_count(j, "d_model", c->d_model);
  json_count(j, "vocab_size", c->vocab_size);
  json_count(j, "d_mlp", c->d_mlp);
  json_count(j, "heads", c->n_head ? c->n_head : c->ssm_heads);
  json_count(j, "head_dim", c->n_head ? c->head_dim : c->ssm_head_dim);
  json_count(j, "d_state", c->d_state);
  json_count(j, "gates", c->gates);
  json_open(j, "windows", '[');
  for (l = 0; l < c->n_layer; l++) {
    json_open(j, NULL, '[');
    for (h = 0; c->mixer[l] == MHK_MIXER_DISCRETE_MAMBA2 && h < c->ssm_heads; h++)
      json_count(j, NULL, window_of(c, l, h));
    json_close(j);
  }
  json_close(j);
  json_count(j, "max_position", c->max_position);
  json_open(j, "mixers", '[');
  for (l = 0; l < c->n_layer; l++) json_text(j, NULL, mixer_name(c->mixer[l]));
  json_close(j);
  json_count(j, "context", (double)T);
  json_count(j, "state_bytes", mhk_config_state_bytes(c, T));
  json_count(j, "attention_state_bytes", mhk_config_state_bytes(&attention, T));
}

static void json_begin(cli_json *j, const settings *s, const mhk_config *c) {
  json_start(j, stdout, 0);
  json_open(j, NULL, '{');
  json_text(j, "path", s->paths.path[0]);
  if (c) json_config(j, s, c);
}

/* all of a model: configuration, size, tokenizer, tensors */
static void show_model(const settings *s, const mhk_model *m) {
  const mhk_config *c = mhk_model_config(m);
  const mhk_tokenizer *k = mhk_model_tokenizer(m);
  cli_buffer bytes;
  cli_json j;
  const int32_t *ends;
  int i, n = mhk_model_ends(m, &ends);
  if (!s->json) {
    print_config(s, s->paths.path[0], c);
    printf("tensors         %d, %s as stored\n", mhk_model_count(m), cli_bytes(stored_bytes(m), &bytes));
    if (k) {
      printf("tokenizer       %d tokens\n", mhk_tokenizer_size(k));
    } else {
      printf("tokenizer       none\n");
    }
    for (i = 0; i < n; i++) printf("%s%d%s", i ? ", " : "a text ends at  ", (int)ends[i], i + 1 == n ? "\n" : "");
    for (i = 0; s->names && i < mhk_model_count(m); i++) {
      const mhk_tensor *x = mhk_model_at(m, i);
      print_tensor(x->name, x->dtype, x->rank, x->shape);
    }
    return;
  }
  json_begin(&j, s, c);
  json_count(&j, "bytes", stored_bytes(m));
  json_count(&j, "tokenizer_size", k ? mhk_tokenizer_size(k) : 0);
  json_open(&j, "ends", '[');
  for (i = 0; i < n; i++) json_count(&j, NULL, ends[i]);
  json_close(&j);
  json_open(&j, "tensors", '[');
  for (i = 0; i < mhk_model_count(m); i++) {
    const mhk_tensor *x = mhk_model_at(m, i);
    json_tensor(&j, x->name, x->dtype, x->rank, x->shape);
  }
  json_close(&j);
  json_close(&j);
}

/* the tensors of a safetensors or PyTorch file that is not a model */
static void show_file(const settings *s, const mhk_file *f) {
  double bytes = 0;
  cli_buffer total;
  cli_json j;
  int i;
  if (s->json) {
    json_begin(&j, s, NULL);
    json_open(&j, "tensors", '[');
  }
  for (i = 0; i < mhk_file_count(f); i++) {
    const mhk_stored *x = mhk_file_at(f, i);
    bytes += (double)x->bytes;
    if (s->json) {
      json_tensor(&j, x->name, x->dtype, x->rank, x->shape);
    } else {
      print_tensor(x->name, x->dtype, x->rank, x->shape);
    }
  }
  if (s->json) {
    json_close(&j);
    json_count(&j, "bytes", bytes);
    json_close(&j);
  } else {
    printf("%d tensors, %s\n", mhk_file_count(f), cli_bytes(bytes, &total));
  }
}

/* a known shape: nothing but its configuration */
static void show_shape(const settings *s, const mhk_config *c) {
  cli_json j;
  if (!s->json) {
    print_config(s, s->paths.path[0], c);
    return;
  }
  json_begin(&j, s, c);
  json_close(&j);
}

/* one path */
static int check(void *user) {
  const settings *s = (const settings *)user;
  if (s->paths.n == 1) return CLI_GO;
  cli_error("inspect needs one PATH, not %d", s->paths.n);
  return CLI_USAGE;
}

static int inspect(mhk_context *ctx, void *user) {
  const settings *s = (const settings *)user;
  const char *path = s->paths.path[0];
  char first[2048];
  mhk_config config;
  mhk_model *m;
  mhk_file *f;
  if (!cli_exists(path) && mhk_config_preset(ctx, path, &config) == MHK_OK) {
    show_shape(s, &config);
    return CLI_OK;
  }
  mhk_clear_error(ctx);
  m = cli_load(ctx, path);
  if (m) {
    show_model(s, m);
    return CLI_OK;
  }
  snprintf(first, sizeof first, "%s", mhk_message(ctx));
  mhk_clear_error(ctx);
  f = cli_ends_with(path, ".safetensors") || cli_ends_with(path, ".bin") ? foreign_file_open(ctx, path) : NULL;
  if (!f || cli_strict()) return cli_error("%s", first);
  show_file(s, f);
  return CLI_OK;
}

const cli_command command_inspect = {
    .name = "inspect",
    .summary = "show what a model contains and the memory it needs",
    .synopsis = "PATH [options]",
    .about = "Shows the configuration, size, mixers, tensors and decoding memory of a model folder or .safetensors "
             "file. PATH may also be the name of a preset: phi-1.5, phi-2, phi-mamba-1.5b, mamba2-1.3b and others.",
    .example = "mohawk inspect run1/student --names",
    CLI_OPTIONS(options),
    CLI_SETTINGS(defaults),
    .check = check,
    .body = inspect,
};
