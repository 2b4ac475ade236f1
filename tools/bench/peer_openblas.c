/* OpenBLAS on the products of `mohawk bench`; see peer.h. cc -O2 peer_openblas.c -lopenblas */
#include "peer.h"
#include <cblas.h>

static int peer_prepare(peer_case *c) {
  openblas_set_num_threads(c->threads);
  return !c->bf16 && c->kind <= PEER_GEMV;
}

static void peer_finish(peer_case *c) { (void)c; }

static void peer_run(peer_case *c, int copy) {
  const int m = c->m, n = c->n, k = c->k;
  float *w = c->w + (size_t)copy * (size_t)n * (size_t)k;
  int i;
  switch (c->kind) {
    case PEER_LINEAR:
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, k, 1, c->x, k, w, k, 0, c->y, n);
      break;
    case PEER_DX:
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, m, k, n, 1, c->y, n, w, k, 0, c->x, k);
      break;
    case PEER_DW:
      cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, n, k, m, 1, c->y, n, c->x, k, 0, w, k);
      break;
    case PEER_BATCH:
      for (i = 0; i < 64; i++)
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, m, n, k, 1, c->x + i * m * k, k, c->w + i * k * n, n, 0,
                    c->y + i * m * n, n);
      break;
    case PEER_GEMV: cblas_sgemv(CblasRowMajor, CblasNoTrans, n, k, 1, w, k, c->x, 1, 0, c->y, 1); break;
    default: break;
  }
}
