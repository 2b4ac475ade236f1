/* ggml's CPU backend on the cases of `mohawk bench` that it has: products with plain weights,
   decoding with weights in its q8_0 and q4_0 too (mode packed: as its CPU code rearranges them,
   where it does), causal flash attention with 16-bit keys and values, and the sequential
   state-space scan. See peer.h; peers.py builds it where GGML_DIR names ggml's source tree. Its
   interface changes now and then: this was written against commit d99724f2. */
#include "peer.h"
#include <cmath>
#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <ggml.h>
#include <vector>

static struct {
  ggml_backend_t backend;
  ggml_context *ctx;
  ggml_backend_buffer_t buffer;
  ggml_context *weights; /* of decoding */
  ggml_backend_buffer_t weights_buffer;
  std::vector<ggml_cgraph *> graphs; /* one for each copy of the weights */
} gg;

/* with or without the last argument, the number of states kept, which older versions do not have */
template <class F, class... A> static auto scan(F f, A... a) -> decltype(f(a...)) { return f(a...); }
template <class F, class... A> static auto scan(F f, A... a) -> decltype(f(a..., int64_t(1))) {
  return f(a..., int64_t(1));
}

static void fill(ggml_tensor *x, float low, float high) {
  const size_t n = (size_t)ggml_nelements(x);
  float *numbers = peer_numbers(n);
  for (size_t i = 0; i < n; i++) numbers[i] = low + (high - low) * (numbers[i] + 0.5f);
  if (x->type == GGML_TYPE_F16) ggml_fp32_to_fp16_row(numbers, (ggml_fp16_t *)x->data, (int64_t)n);
  if (x->type == GGML_TYPE_BF16) ggml_fp32_to_bf16_row(numbers, (ggml_bf16_t *)x->data, (int64_t)n);
  if (x->type == GGML_TYPE_F32) memcpy(x->data, numbers, n * sizeof(float));
  free(numbers);
}

static ggml_backend_buffer_type_t packing_buffer() {
  ggml_backend_dev_t device = ggml_backend_get_device(gg.backend);
  auto list = (ggml_backend_dev_get_extra_bufts_t)ggml_backend_reg_get_proc_address(
      ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts");
  for (ggml_backend_buffer_type_t *type = list ? list(device) : nullptr; type && *type; type++)
    if (strstr(ggml_backend_buft_name(*type), "REPACK")) return *type;
  return nullptr;
}

/* a token as one graph: 24 layers, which three stand for in turn, and the head */
static int prepare_decode(const peer_case *c) {
  static const struct { const char *name; ggml_type type; } types[] = {
      {"f32", GGML_TYPE_F32}, {"bf16", GGML_TYPE_BF16}, {"q8", GGML_TYPE_Q8_0}, {"q4", GGML_TYPE_Q4_0}};
  static const int64_t shapes[][2] = {{10272, 2048}, {2048, 2048}, {8192, 2048}, {2048, 8192}, {51200, 2048}};
  const bool packed = strcmp(c->mode, "packed") == 0;
  const ggml_init_params params = {(size_t)4 << 20, nullptr, true};
  ggml_type type = GGML_TYPE_COUNT;
  std::vector<ggml_tensor *> w;
  std::vector<char> bytes;
  for (auto &t : types)
    if (strcmp(t.name, c->type) == 0) type = t.type;
  if (type == GGML_TYPE_COUNT || (packed && !ggml_is_quantized(type))) return 0;
  ggml_backend_buffer_type_t place = packed ? packing_buffer() : ggml_backend_get_default_buffer_type(gg.backend);
  if (!place) return 0;
  gg.ctx = ggml_init(params);
  gg.weights = ggml_init(params);
  for (int i = 0; i < 13; i++) {
    auto &s = shapes[i == 12 ? 4 : i % 4];
    w.push_back(ggml_new_tensor_2d(gg.weights, type, s[1], s[0]));
  }
  ggml_tensor *x[2] = {ggml_new_tensor_1d(gg.ctx, GGML_TYPE_F32, 2048),
                       ggml_new_tensor_1d(gg.ctx, GGML_TYPE_F32, 8192)};
  gg.graphs.push_back(ggml_new_graph_custom(gg.ctx, 256, false));
  for (int i = 0; i <= 24 * 4; i++) {
    ggml_tensor *matrix = w[i < 24 * 4 ? (size_t)i % 12 : 12];
    ggml_build_forward_expand(gg.graphs[0], ggml_mul_mat(gg.ctx, matrix, x[matrix->ne[0] == 8192]));
  }
  gg.weights_buffer = ggml_backend_alloc_ctx_tensors_from_buft(gg.weights, place);
  gg.buffer = ggml_backend_alloc_ctx_tensors(gg.ctx, gg.backend);
  if (!gg.weights_buffer || !gg.buffer) return 0;
  for (ggml_tensor *t : w)
    if (packed && !t->extra) return 0; /* it has no other arrangement of these */
  float *numbers = peer_numbers((size_t)ggml_nelements(w[12]));
  bytes.resize(ggml_nbytes(w[12]));
  ggml_quantize_chunk(type, numbers, bytes.data(), 0, w[12]->ne[1], w[12]->ne[0], nullptr);
  free(numbers);
  for (ggml_tensor *t : w) ggml_backend_tensor_set(t, bytes.data(), 0, ggml_nbytes(t));
  for (ggml_tensor *t : x) fill(t, -0.5f, 0.5f);
  return 1;
}

/* tensors and graph of a case; false where there is none */
static int peer_prepare(peer_case *c) {
  const int64_t T = c->m;
  std::vector<ggml_tensor *> random, results;
  ggml_tensor *mask = nullptr, *ids = nullptr, *dt = nullptr, *A = nullptr;
  if (c->kind != PEER_DECODE && strcmp(c->mode, "packed") == 0) return 0;
  if (c->kind != PEER_DECODE && c->kind != PEER_LINEAR && c->kind != PEER_GEMV && c->kind != PEER_ATTENTION &&
      c->kind != PEER_SSD)
    return 0;
  if (!gg.backend) gg.backend = ggml_backend_cpu_init();
  ggml_backend_cpu_set_n_threads(gg.backend, c->threads);
  if (c->kind == PEER_DECODE) return prepare_decode(c);
  const ggml_init_params params = {(size_t)16 << 20, nullptr, true};
  gg.ctx = ggml_init(params);
  auto tensor = [&](ggml_type type, int64_t a, int64_t b, int64_t d, int64_t e) {
    random.push_back(ggml_new_tensor_4d(gg.ctx, type, a, b, d, e));
    return random.back();
  };
  if (c->kind == PEER_ATTENTION) {
    ggml_tensor *q = tensor(GGML_TYPE_F32, 64, T, 32, 1), *k = tensor(GGML_TYPE_F16, 64, T, 32, 1),
                *v = tensor(GGML_TYPE_F16, 64, T, 32, 1);
    mask = ggml_new_tensor_4d(gg.ctx, GGML_TYPE_F16, T, (T + 63) / 64 * 64, 1, 1);
    results.push_back(ggml_flash_attn_ext(gg.ctx, q, k, v, mask, 0.125f, 0.0f, 0.0f));
  } else if (c->kind == PEER_SSD) {
    ggml_tensor *s = tensor(GGML_TYPE_F32, 64, 64, 32, 1), *x = tensor(GGML_TYPE_F32, 64, 32, T, 1);
    ggml_tensor *B = tensor(GGML_TYPE_F32, 64, 32, T, 1), *C = tensor(GGML_TYPE_F32, 64, 32, T, 1);
    dt = ggml_new_tensor_3d(gg.ctx, GGML_TYPE_F32, 32, T, 1);
    A = ggml_new_tensor_2d(gg.ctx, GGML_TYPE_F32, 1, 32);
    ids = ggml_new_tensor_1d(gg.ctx, GGML_TYPE_I32, 1);
    results.push_back(scan(ggml_ssm_scan, gg.ctx, s, x, dt, A, B, C, ids));
  } else {
    ggml_tensor *x = tensor(GGML_TYPE_F32, c->k, c->m, 1, 1);
    for (int i = 0; i < c->copies; i++)
      results.push_back(ggml_mul_mat(gg.ctx, tensor(c->bf16 ? GGML_TYPE_BF16 : GGML_TYPE_F32, c->k, c->n, 1, 1), x));
  }
  for (ggml_tensor *r : results) {
    ggml_cgraph *graph = ggml_new_graph_custom(gg.ctx, 8, false);
    ggml_build_forward_expand(graph, r);
    gg.graphs.push_back(graph);
  }
  gg.buffer = ggml_backend_alloc_ctx_tensors(gg.ctx, gg.backend);
  if (!gg.buffer) return 0;
  for (ggml_tensor *x : random) fill(x, -0.5f, 0.5f);
  if (dt) fill(dt, -1.0f, 1.0f);
  if (A) fill(A, -1.0f, -0.5f);
  if (ids) *(int32_t *)ids->data = 0;
  if (mask)
    for (int64_t i = 0; i < mask->ne[1]; i++)
      for (int64_t j = 0; j < T; j++)
        ((ggml_fp16_t *)mask->data)[i * T + j] = ggml_fp32_to_fp16(j <= i ? 0.0f : -INFINITY);
  return 1;
}

static void peer_finish(peer_case *) {
  gg.graphs.clear();
  if (gg.buffer) ggml_backend_buffer_free(gg.buffer);
  if (gg.ctx) ggml_free(gg.ctx);
  if (gg.weights_buffer) ggml_backend_buffer_free(gg.weights_buffer);
  if (gg.weights) ggml_free(gg.weights);
  gg.weights_buffer = nullptr;
  gg.weights = nullptr;
  gg.buffer = nullptr;
  gg.ctx = nullptr;
}

static void peer_run(peer_case *, int copy) {
  if (ggml_backend_graph_compute(gg.backend, gg.graphs[(size_t)copy]) != GGML_STATUS_SUCCESS) exit(1);
}
