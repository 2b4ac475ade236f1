/* oneDNN (version 2, as Debian has it) on the products of `mohawk bench`; see peer.h. Modes: plain
   uses weights as they lie, packed lets the library choose their layout, which is not timed. cc -O2
   -fopenmp peer_onednn.c -ldnnl */
#include "peer.h"
#include <oneapi/dnnl/dnnl.h>
#include <omp.h>
#if DNNL_VERSION_MAJOR != 2
#error "this program needs oneDNN 2: version 3 has another interface"
#endif

static struct {
  dnnl_engine_t engine;
  dnnl_stream_t stream;
  dnnl_primitive_t product;
  dnnl_memory_t a, b[PEER_MAX_COPIES], c;
  int copies;
} dnn;

static void must(dnnl_status_t status, const char *what) {
  if (status == dnnl_success) return;
  fprintf(stderr, "oneDNN: %s failed with status %d\n", what, (int)status);
  exit(1);
}

/* a matrix, or 64 behind each other, with the given distance between rows and between columns */
static dnnl_memory_desc_t layout(int batch, int rows, int columns, int row, int column, dnnl_data_type_t type) {
  dnnl_memory_desc_t d;
  dnnl_dims_t dims, strides;
  int r = 0;
  if (batch > 1) {
    dims[r] = batch;
    strides[r++] = (dnnl_dim_t)rows * columns;
  }
  dims[r] = rows;
  strides[r++] = row;
  dims[r] = columns;
  strides[r++] = column;
  must(dnnl_memory_desc_init_by_strides(&d, r, dims, type, strides), "a layout");
  return d;
}

/* memory of layout to, holding the numbers in from; the numbers themselves where the layouts
   agree */
static dnnl_memory_t take(float *numbers, dnnl_memory_desc_t from, const dnnl_memory_desc_t *to) {
  dnnl_memory_t source, target;
  dnnl_primitive_desc_t pd;
  dnnl_primitive_t change;
  dnnl_exec_arg_t args[2];
  must(dnnl_memory_create(&source, &from, dnn.engine, numbers), "memory");
  if (dnnl_memory_desc_equal(&from, to)) return source;
  must(dnnl_memory_create(&target, to, dnn.engine, DNNL_MEMORY_ALLOCATE), "memory");
  must(dnnl_reorder_primitive_desc_create(&pd, &from, dnn.engine, to, dnn.engine, NULL), "a change of layout");
  must(dnnl_primitive_create(&change, pd), "a change of layout");
  args[0].arg = DNNL_ARG_FROM;
  args[0].memory = source;
  args[1].arg = DNNL_ARG_TO;
  args[1].memory = target;
  must(dnnl_primitive_execute(change, dnn.stream, 2, args), "a change of layout");
  must(dnnl_stream_wait(dnn.stream), "waiting");
  dnnl_primitive_destroy(change);
  dnnl_primitive_desc_destroy(pd);
  dnnl_memory_destroy(source);
  return target;
}

/* the primitive of a case and its memory; 0 where there is none */
static int peer_prepare(peer_case *c) {
  const dnnl_data_type_t f32 = dnnl_f32, type = c->bf16 ? dnnl_bf16 : dnnl_f32;
  const int packed = strcmp(c->mode, "packed") == 0, batch = c->kind == PEER_BATCH ? 64 : 1;
  const int m = c->m, n = c->n, k = c->k;
  dnnl_memory_desc_t a, b, out, want_a, want_b;
  dnnl_matmul_desc_t product;
  dnnl_primitive_desc_t pd;
  float *in = c->x, *weights = c->w, *result = c->y;
  int i;
  omp_set_num_threads(c->threads);
  if (c->kind > PEER_GEMV) return 0;
  if (packed && (c->kind == PEER_DW || c->kind == PEER_BATCH)) return 0; /* nothing there stays the same */
  if (!dnn.engine) {
    must(dnnl_engine_create(&dnn.engine, dnnl_cpu, 0), "the engine");
    must(dnnl_stream_create(&dnn.stream, dnn.engine, dnnl_stream_default_flags), "the stream");
  }
  switch (c->kind) {
    case PEER_DX:
      in = c->y;
      result = c->x;
      a = layout(1, m, n, n, 1, f32);
      b = layout(1, n, k, k, 1, f32);
      out = layout(1, m, k, k, 1, f32);
      break;
    case PEER_DW:
      in = c->y;
      weights = c->x;
      result = c->w;
      a = layout(1, n, m, 1, n, f32);
      b = layout(1, m, k, k, 1, f32);
      out = layout(1, n, k, k, 1, f32);
      break;
    case PEER_BATCH:
      a = layout(batch, m, k, k, 1, f32);
      b = layout(batch, k, n, n, 1, f32);
      out = layout(batch, m, n, n, 1, f32);
      break;
    default:
      a = layout(1, m, k, k, 1, f32);
      b = layout(1, k, n, 1, k, f32);
      out = layout(1, m, n, n, 1, f32);
      break;
  }
  want_a = a;
  want_b = b;
  if (c->bf16) {
    want_a = layout(1, m, k, k, 1, type);
    want_b = layout(1, k, n, 1, k, type);
  }
  if (packed) must(dnnl_memory_desc_init_by_tag(&want_b, b.ndims, b.dims, type, dnnl_format_tag_any), "a layout");
  must(dnnl_matmul_desc_init(&product, &want_a, &want_b, NULL, &out), "the product");
  if (dnnl_primitive_desc_create(&pd, &product, NULL, dnn.engine, NULL) != dnnl_success) return 0;
  must(dnnl_primitive_create(&dnn.product, pd), "the product");
  want_b = *dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
  dnnl_primitive_desc_destroy(pd);
  dnn.a = take(in, a, &want_a);
  for (i = 0; i < c->copies; i++)
    dnn.b[i] = take(weights + (c->bf16 ? 0 : (size_t)i * (size_t)n * (size_t)k), b, &want_b);
  dnn.copies = c->copies;
  must(dnnl_memory_create(&dnn.c, &out, dnn.engine, result), "memory");
  return 1;
}

static void peer_finish(peer_case *c) {
  int i;
  (void)c;
  if (!dnn.product) return;
  dnnl_primitive_destroy(dnn.product);
  dnnl_memory_destroy(dnn.a);
  dnnl_memory_destroy(dnn.c);
  for (i = 0; i < dnn.copies; i++) dnnl_memory_destroy(dnn.b[i]);
  dnn.product = NULL;
}

static void peer_run(peer_case *c, int copy) {
  dnnl_exec_arg_t args[3];
  (void)c;
  args[0].arg = DNNL_ARG_SRC;
  args[0].memory = dnn.a;
  args[1].arg = DNNL_ARG_WEIGHTS;
  args[1].memory = dnn.b[copy];
  args[2].arg = DNNL_ARG_DST;
  args[2].memory = dnn.c;
  must(dnnl_primitive_execute(dnn.product, dnn.stream, 3, args), "the product");
  must(dnnl_stream_wait(dnn.stream), "waiting");
}
