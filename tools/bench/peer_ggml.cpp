/* ggml's CPU backend on the cases of `mohawk bench` that it has: products with plain weights, causal flash attention
   with 16-bit keys and values, and the sequential state-space scan. See peer.h; peers.py builds it where GGML_DIR names
   ggml's source tree. Its interface changes now and then: this was written against commit d99724f2. */
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

static int peer_prepare(peer_case *c) {
  const int64_t T = c->m;
  std::vector<ggml_tensor *> random, results;
  ggml_tensor *mask = nullptr, *ids = nullptr, *dt = nullptr, *A = nullptr;
  if (c->kind != PEER_LINEAR && c->kind != PEER_GEMV && c->kind != PEER_ATTENTION && c->kind != PEER_SSD) return 0;
  if (!gg.backend) gg.backend = ggml_backend_cpu_init();
  ggml_backend_cpu_set_n_threads(gg.backend, c->threads);
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
  gg.buffer = nullptr;
  gg.ctx = nullptr;
}

static void peer_run(peer_case *, int copy) {
  if (ggml_backend_graph_compute(gg.backend, gg.graphs[(size_t)copy]) != GGML_STATUS_SUCCESS) exit(1);
}
