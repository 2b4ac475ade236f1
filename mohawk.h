/* mohawk.h - v0.1.0 - turn a Transformer into a linear-time state-space model, in one C header

   No warranty; use it under the MIT licence or as public domain, as you choose (text at the end of
   the file).

   Tensor ops, a small autograd, the Phi attention layer, the Mamba-2 SSD layer, and MOHAWK:
   distillation of a Transformer into a state-space model by matching first the mixing matrices,
   then the hidden states, then the predictions (Bick, Li, Xing, Kolter, Gu: "Transformers to SSMs",
   arXiv 2408.10189). C99 or C++11, libc and libm, optionally OpenMP, nothing else.

   QUICK START
   In one file of a program define MOHAWK_IMPLEMENTATION before including this header; everywhere
   else include it plainly. A complete program that loads a model and lets it write; build it with
   `cc -O2 app.c -lm`, add -fopenmp for threads:

      #define MOHAWK_IMPLEMENTATION
      #include "mohawk.h"
      #include <stdio.h>

      int main(void) {
        mhk_context *ctx = mhk_create(NULL);      // best instruction set, one thread, malloc
        mhk_model *m = mhk_load(ctx, "student");  // config.json, safetensors, tokenizer.json
        mhk_session *s = mhk_session_create(m, NULL);
        mhk_feed_text(s, "Once upon a time");
        for (int i = 0; i < 100 && mhk_sample(s, NULL) >= 0; i++) fputs(mhk_text_out(s), stdout);
        if (mhk_failed(ctx)) fprintf(stderr, "%s\n", mhk_message(ctx)); // one check at the end
        mhk_destroy(ctx);                         // and everything made from it
        return 0;
      }

   To distil, make a student of a teacher and step a trainer:

      mhk_distill_desc d;
      memset(&d, 0, sizeof d);
      d.teacher = mhk_load(ctx, "phi-1_5");
      d.text = text;                              // from mhk_text_load() or mhk_text_sample()
      d.out = "run1";                             // checkpoints; the same call resumes
      d.stages[0].tokens = 500000; d.stages[1].tokens = 1000000; d.stages[2].tokens = 1500000;
      mhk_trainer *t = mhk_distill(ctx, &d);
      while (mhk_train_step(t)) draw(mhk_progress(t));   // the caller owns the loop
      mhk_save(mhk_student(t), "student", MHK_F32);      // PyTorch reads it

   THE IDEA. A sequence mixer is a lower triangular matrix: y_t = sum over s <= t of M[t,s] x_s.
   In attention, M[t,s] is the softmax of q_t . k_s: all pairs of tokens, time in T^2, and a cache
   of every key and value. In a state-space layer, M[t,s] = (C_t . B_s) a_{s+1} ... a_t, with decays
   a between 0 and 1. This M never has to be made: the same y comes from a recurrence over a state h
   of fixed size,

      h_t = a_t h_{t-1} + x_t B_t^T          y_t = h_t C_t

   That both forms are one is state-space duality (SSD): training multiplies chunks of the matrix,
   generation steps the recurrence, in constant time and memory a token. And since both mixers are
   matrices, one can be taught to be the other. MOHAWK does so from the inside out:

      stage 1   matrix orientation       each student mixer's M approaches the teacher's attention
      stage 2   hidden-state alignment   each mixer's output approaches the teacher's, on its inputs
      stage 3   knowledge distillation   MLPs, norms, embedding and head are taken over (weight
                                         transfer), then the whole student learns to predict what
                                         the teacher predicts

   HOW TO READ THIS FILE. SSD in twenty minutes: >>ssd has the idea, then recurrence, matrix,
   chunked scan and gradients in plain C, then the same fast. >>attention, >>losses (stage 1 among
   them) and the other chapters between >>products and >>optimizer are made alike; >>kernels says
   how the fast form is compiled once per instruction set. >>tape and >>ops are the autograd,
   >>layers puts ops together to models, >>mohawk trains them, >>sessions runs them.

   OPTIONS, defined before the include. None changes a struct or a signature, except MOHAWK_DOUBLE;
   what an option leaves out is not declared either. In every file of the program:
      MOHAWK_STATIC               everything is static: several private copies in one program
      MOHAWK_DOUBLE               arithmetic in double, for checking
      MOHAWK_NO_TRAINING          inference only: no tape, no ops, no making of models, no
                                  distillation, no evaluation
      MOHAWK_NO_STDIO             no files, no environment, no stdio.h: models come from memory,
                                  mhk_load_memory()
   In the one with the implementation:
      MOHAWK_IMPLEMENTATION       this file holds the code
      MOHAWK_NO_SIMD              plain C kernels only
      MOHAWK_MALLOC(bytes), MOHAWK_FREE(block)   the default allocator, both or neither
      MOHAWK_REFERENCE            compile the chapters' references in, for tests
      MOHAWK_HEADER_NAME          how this file is found when it includes itself, if not as
                                  "mohawk.h"
      MOHAWK_ALLOW_FAST_MATH      do not refuse -ffast-math and those of its parts that change what
                                  comparisons and sums mean

   MEMORY. A context has one allocator, given at creation. Each object (model, tape, session,
   trainer...) lives in its own blocks of it and dies with its destroy function or with the context.
   Weights of loaded models stay in the mapped file, in their stored type. A tape keeps its memory
   between steps: loops allocate only in their first round. Sizes from outside are checked before
   they are used.

   THREADS. Work is cut by the problem's size, never by the number of threads, and sums have a fixed
   order: the same build on the same instruction set gives the same bits on any number of threads.
   Threads are OpenMP's when compiled with it, or the caller's own (mhk_context_desc.parallel_for).
   Contexts share nothing; one context serves one thread at a time.

   ERRORS. Nothing here prints, exits or aborts. The first error stays in its context as a code and
   a sentence; after it every call on the context does nothing, so that one check at the end of a
   chain is enough.

   CONTENTS (search for the tag)
      Interface         >>interface     every declaration: shapes, ownership, errors
      Platform          >>platform      CPU features, files, clock, random numbers
      Memory            >>memory        arenas, objects, errors, parallel-for
      Kernels           >>kernels       how loops are compiled once per instruction set
      Products          >>products      GEMM of every stored type, GEMV, quantised weights
      Tensors           >>tensors       types, shapes, parameters
      Tape              >>tape          records, backward, recomputation, gradient checks
      Ops               >>ops           elementwise, reductions, layout, embedding, linear layers
      Rows              >>rows          softmax, LayerNorm, RMSNorm, the gate
      Rotary            >>rotary        positions as rotations
      Convolution       >>convolution   causal and depthwise
      Attention         >>attention     causal softmax attention in tiles
      SSD               >>ssd           state-space duality, the mixer of Mamba-2
      Losses            >>losses        cross-entropy, KL, distances, and stage 1 in tiles
      Optimizer         >>optimizer     AdamW
      Files             >>files         JSON, safetensors, PyTorch's archives
      Tokenizer         >>tokenizer     byte-level BPE
      Models            >>models        configurations, weights, initialisation
      Layers            >>layers        mixers, blocks, forward passes on a tape
      Sessions          >>sessions      prefill, step, sampling
      Mohawk            >>mohawk        text, the three stages, optimiser, trainer, evaluation
      Passes            >>passes        the instruction sets, and contexts, which choose one
   Each section uses only what stands above it. */

/* Which text this is, 10000 major + 100 minor + patch: the implementation includes this file again and
   must find itself, not another version. */
#undef MHK__TEXT
#define MHK__TEXT 100

/* A pass of this text: the parts of it that are compiled once per instruction set. Of another version, the file
   that includes this one says what is wrong. */
#undef MHK__TEMPLATE
#if defined(MHK__PASS) && MHK__TEXT == MHK__VERSION
#define MHK__TEMPLATE
#endif

#ifndef MHK__PASS
#ifndef MOHAWK_H
#define MOHAWK_H

/* ====================================================================================================
   INTERFACE                                                                            >>interface
   ====================================================================================================
   Shapes are written (slowest,...,fastest). B batch, T tokens, D d_model, H heads, P head size of the
   values, G heads of B and C (or of keys and values), N d_state, V vocabulary, L layers.

   Common to all functions: a context, and with it everything made from it, belongs to one thread at a
   time. Functions given NULL, or whose context has failed, do nothing and return NULL, zero or the error,
   so that a chain of calls is checked once at its end with mhk_failed(). */

#include <stddef.h>
#include <stdint.h>

#ifdef MOHAWK_STATIC
#if defined(__GNUC__) || defined(__clang__)
#define MHKDEF __attribute__((unused)) static
#else
#define MHKDEF static
#endif
#else
#ifdef __cplusplus
#define MHKDEF extern "C"
#else
#define MHKDEF extern
#endif
#endif

#define MHK_VERSION_MAJOR 0
#define MHK_VERSION_MINOR 1
#define MHK_VERSION_PATCH 0
#define MHK_VERSION "0.1.0"

/* The arithmetic type: float, or double when MOHAWK_DOUBLE is defined (for checking; slow). It must be the same in
   every file of a program. */
#ifdef MOHAWK_DOUBLE
typedef double mhk_real;
#else
typedef float mhk_real;
#endif

typedef ptrdiff_t mhk_index; /* sizes, positions and loop counters: signed, as wide as a pointer */

typedef struct mhk_context mhk_context;
typedef struct mhk_tape mhk_tape;
typedef struct mhk_model mhk_model;
typedef struct mhk_tokenizer mhk_tokenizer;
typedef struct mhk_session mhk_session;
typedef struct mhk_text mhk_text;
typedef struct mhk_trainer mhk_trainer;

/* ---------------------------------------------------------------------------------------- results */

typedef enum mhk_result {
  MHK_OK = 0,
  MHK_ERROR_MEMORY = -1,      /* the allocator returned NULL, or a size does not fit the machine */
  MHK_ERROR_ARGUMENT = -2,    /* a call makes no sense: NULL, out of range, missing */
  MHK_ERROR_SHAPE = -3,       /* tensors do not fit each other */
  MHK_ERROR_FILE = -4,        /* a file cannot be opened, read or written */
  MHK_ERROR_FORMAT = -5,      /* a file was read and its content is wrong */
  MHK_ERROR_CONFIG = -6,      /* a model configuration contradicts itself or the weights */
  MHK_ERROR_UNSUPPORTED = -7, /* well-formed, but not something this version does */
  MHK_ERROR_STATE = -8        /* right call, wrong time: a full cache, a finished trainer, diverged training */
} mhk_result;

/* The library's version as text, equal to MHK_VERSION of the header that was compiled. */
MHKDEF const char *mhk_version(void);

/* ---------------------------------------------------------------------------------------- context */

/* Memory comes from here. alloc returns NULL when there is none; release gets the size back. Blocks need the
   alignment of malloc only. Both are called from the thread that uses the context. */
typedef struct mhk_allocator {
  void *(*alloc)(void *user, size_t bytes);
  void (*release)(void *user, void *block, size_t bytes);
  void *user;
} mhk_allocator;

typedef enum mhk_log_level { MHK_LOG_ERROR = 1, MHK_LOG_WARNING = 2, MHK_LOG_INFO = 3 } mhk_log_level;
typedef void (*mhk_log_fn)(void *user, mhk_log_level level, const char *message);

/* Runs body(arg, task, worker) once for each task in [0,tasks), in any order, and returns when all are done; worker is
   in [0,workers) and no two running bodies share one. */
typedef void (*mhk_parallel_fn)(void *user, mhk_index tasks, void (*body)(void *arg, mhk_index task, int worker), void *arg);

/* Instruction sets of the kernels. MHK_ISA_BEST asks for the best one that processor, compiler and build allow. Where the processor has dot products of bytes
   besides (AVX512-VNNI, ARMv8.2's SDOT), products with quantised weights use them; they give the bits of the set's other kernels. */
typedef enum mhk_isa { MHK_ISA_BEST = 0, MHK_ISA_SCALAR = 1, MHK_ISA_AVX2 = 2, MHK_ISA_AVX512 = 3, MHK_ISA_NEON = 4, MHK_ISA_WASM = 5 } mhk_isa;

/* What multiplies numbers of bfloat16 (see mhk_set_precision): the instruction set's own multiply-adds on operands that were rounded before, AVX512-BF16's
   VDPBF16PS, or the tiles of AMX. BEST: AMX where processor, system (Linux) and compiler have it, else VDPBF16PS on AMD's processors, where it does twice
   the multiply-adds of float32 (on Intel's it does half as many), else PLAIN. All three round the operands alike and sum in float32; PLAIN gives
   VDPBF16PS's very bits under the AVX-512 kernels (subnormal sums excepted), AMX sums in another order. */
typedef enum mhk_bf16_unit { MHK_BF16_BEST = 0, MHK_BF16_PLAIN = 1, MHK_BF16_AVX512 = 2, MHK_BF16_AMX = 3 } mhk_bf16_unit;

/* All zero is a good default. */
typedef struct mhk_context_desc {
  mhk_allocator allocator;      /* zero: MOHAWK_MALLOC / MOHAWK_FREE */
  mhk_log_fn log;               /* warnings and notes; NULL: none */
  void *log_user;
  int threads;                  /* OpenMP threads; 0: one; -1: as many as OpenMP offers. Ignored without OpenMP. Results do not depend on it. */
  mhk_parallel_fn parallel_for; /* the caller's own threads in place of OpenMP */
  void *parallel_user;
  int parallel_workers;         /* how many workers parallel_for has (needed with it) */
  mhk_isa isa;                  /* 0: best. The environment variable MHK_ISA (scalar, avx2, avx512, neon, wasm) comes first. */
  mhk_bf16_unit bf16_unit;      /* 0: best. The environment variable MHK_BF16_UNIT (plain, avx512, amx) comes first. */
} mhk_context_desc;

/* A context: allocator, kernels, threads and the first error. desc may be NULL. Returns NULL only when not even the
   context could be allocated; an impossible description gives a context that has failed and says why. */
MHKDEF mhk_context *mhk_create(const mhk_context_desc *desc);
/* Frees the context and everything made from it. */
MHKDEF void mhk_destroy(mhk_context *ctx);

/* Non-zero when ctx is NULL or an error happened since creation or mhk_clear_error(). */
MHKDEF int mhk_failed(const mhk_context *ctx);
MHKDEF mhk_result mhk_error(const mhk_context *ctx);
/* The first error as one sentence naming the thing that is wrong and what would be right; "" when there is none.
   Valid until the context is destroyed or the error cleared. */
MHKDEF const char *mhk_message(const mhk_context *ctx);
MHKDEF void mhk_clear_error(mhk_context *ctx);
/* Makes ctx fail with the caller's own message (printf format, conversions d i u x X c s e f g p), for user-defined ops and callbacks. Keeps an earlier
   error. Returns code. */
MHKDEF mhk_result mhk_fail(mhk_context *ctx, mhk_result code, const char *format, ...)
#if defined(__GNUC__) || defined(__clang__)
    __attribute__((format(printf, 3, 4)))
#endif
    ;

MHKDEF int mhk_threads(const mhk_context *ctx);                 /* workers in use */
MHKDEF mhk_result mhk_set_threads(mhk_context *ctx, int threads); /* as mhk_context_desc.threads */
MHKDEF const char *mhk_isa_name(const mhk_context *ctx);        /* "scalar", "avx2", ... in use */
MHKDEF size_t mhk_memory_in_use(const mhk_context *ctx);        /* bytes the context holds of its allocator now */
MHKDEF size_t mhk_memory_peak(const mhk_context *ctx);          /* the most it ever held */

/* How the products of linear layers (mhk_linear and its kin) are made from now on, forward and backward. BF16: both operands are rounded to bfloat16 on
   their way into the product (to nearest, ties to even, subnormal numbers to zero), the sums are float32; parameters, activations and gradients stay
   what they are, and so does everything else. For training, where it is faster on processors that have an instruction for it and gives the same numbers,
   slower, elsewhere. Products of up to four rows (decoding) stay as they are: there reading the weights takes the time. Ops remember for their backward
   pass what was set when they ran. Returns what was set before. */
typedef enum mhk_precision { MHK_PRECISION_FULL = 0, MHK_PRECISION_BF16 = 1 } mhk_precision;
#ifndef MOHAWK_NO_TRAINING
MHKDEF mhk_precision mhk_set_precision(mhk_context *ctx, mhk_precision precision);
MHKDEF const char *mhk_bf16_name(const mhk_context *ctx); /* what multiplies numbers of bfloat16: "plain", "avx512", "amx" */
#endif

/* ---------------------------------------------------------------------------------------- tensors */

#define MHK_MAX_RANK 5

typedef enum mhk_dtype {
  MHK_F32 = 1, MHK_F64, MHK_F16, MHK_BF16, MHK_I8, MHK_U8, MHK_I16, MHK_U16, MHK_I32, MHK_U32, MHK_I64, MHK_U64, MHK_BOOL,
  MHK_Q8, MHK_Q4 /* quantised matrices of a model: see mhk_quantised */
} mhk_dtype;
#ifdef MOHAWK_DOUBLE
#define MHK_REAL MHK_F64
#else
#define MHK_REAL MHK_F32
#endif
MHKDEF size_t mhk_dtype_size(mhk_dtype dtype);      /* bytes of one element; 0 for quantised and unknown types */
MHKDEF const char *mhk_dtype_name(mhk_dtype dtype); /* as safetensors spells it: "F32", "BF16", ...; "Q8", "Q4" */

/* A quantised matrix (N,K), symmetric: element (n,k) is scale * q, with one scale for each group of 32 or 64 neighbours k of a row. Rows lie in
   blocks of 16, filled up with zeros, so that one vector of a kernel holds the same k of many rows and a block is one stretch of memory:
     MHK_Q8   q (blocks,K/4,16,4) signed bytes -128..127; byte (b,c,r,j) is q of row 16 b + r, k = 4 c + j
     MHK_Q4   q (blocks,K/8,16,4) bytes; the low half of byte (b,c,r,j) is q + 8 of row 16 b + r, k = 8 c + j, the high half that of k = 8 c + 4 + j
     scale    (blocks,K/group,16) half-precision numbers
   The last N - rows rows may stay numbers, as the A_log rows of a state-space mixer do. */
typedef struct mhk_quantised {
  const void *q;
  const uint16_t *scale;   /* host byte order */
  const mhk_real *rest;    /* (N-rows,K), or NULL */
  mhk_index rows;          /* how many rows are quantised: N, or fewer */
  int group;               /* 32 or 64; divides K */
} mhk_quantised;

/* A contiguous row-major array. Read the fields freely; write only data and grad. Activations have dtype MHK_REAL;
   frozen matrices of a model may stay in the type they were stored in. */
typedef struct mhk_tensor {
  void *data;                     /* count elements of dtype; of a quantised one quantised->q */
  mhk_real *grad;                 /* count elements, or NULL before any gradient has arrived */
  mhk_index shape[MHK_MAX_RANK];  /* shape[0..rank-1]; the rest is 1 */
  mhk_index count;                /* product of the shape */
  int rank;                       /* 0 (a scalar) to MHK_MAX_RANK */
  mhk_dtype dtype;
  int requires_grad;              /* gradients flow into it (parameters being trained, and all that depends on them) */
  const char *name;               /* parameters: checkpoint name; else NULL */
  mhk_context *ctx;
  struct mhk_tensor *base;        /* views: the tensor whose memory this one shows */
  mhk_index base_offset;          /* views: where in it, in elements */
  const mhk_quantised *quantised; /* what a tensor (or the tensor a view shows) of dtype MHK_Q8 or MHK_Q4 consists of, else NULL */
} mhk_tensor;

/* data of a MHK_REAL tensor; NULL for NULL or another type */
MHKDEF mhk_real *mhk_data(const mhk_tensor *x);
/* a scalar's (or first element's) value; NaN for NULL */
MHKDEF double mhk_value(const mhk_tensor *x);
/* elements [first,first+n) of a tensor of any floating-point or quantised type, as numbers */
MHKDEF mhk_result mhk_tensor_read(const mhk_tensor *x, mhk_index first, mhk_index n, mhk_real *out);
MHKDEF size_t mhk_tensor_bytes(const mhk_tensor *x); /* what its data takes, in its type */

#ifndef MOHAWK_NO_TRAINING
/* ---------------------------------------------------------------------------------------- tape */

/* A tape owns the activations of a computation and what is needed to differentiate it. Ops run at once; while recording
   is on and an input requires a gradient they also write themselves down. Everything made on a tape lives until the
   tape is reset, rewound past it, or destroyed. Memory is kept for the next round: a loop of equal steps allocates only
   in its first one. */
MHKDEF mhk_tape *mhk_tape_create(mhk_context *ctx);
MHKDEF void mhk_tape_destroy(mhk_tape *t);
MHKDEF void mhk_tape_reset(mhk_tape *t);
/* recording on (1, the default) or off (0, no-grad); returns what it was */
MHKDEF int mhk_tape_record(mhk_tape *t, int on);
/* a point to rewind to: tensors and records made after it are dropped, earlier ones stay */
typedef struct mhk_tape_mark { size_t chunk, used; mhk_index records; } mhk_tape_mark;
MHKDEF mhk_tape_mark mhk_tape_here(const mhk_tape *t);
MHKDEF void mhk_tape_rewind(mhk_tape *t, mhk_tape_mark mark);
MHKDEF mhk_context *mhk_tape_context(const mhk_tape *t);

/* New tensors on the tape. values may be NULL for zeros; they are copied. */
MHKDEF mhk_tensor *mhk_tensor_new(mhk_tape *t, int rank, const mhk_index *shape, const mhk_real *values);
/* The same memory under another shape (same count), or rows [first,first+rows) of the first axis. Gradients are shared too. */
MHKDEF mhk_tensor *mhk_reshape(mhk_tape *t, mhk_tensor *x, int rank, const mhk_index *shape);
MHKDEF mhk_tensor *mhk_rows(mhk_tape *t, mhk_tensor *x, mhk_index first, mhk_index rows);
/* x's values as a constant: no gradient flows back (shares the memory) */
MHKDEF mhk_tensor *mhk_detach(mhk_tape *t, mhk_tensor *x);
/* Marks a leaf of this tape, or a parameter, as wanting a gradient and gives it a zeroed one. Returns x. */
MHKDEF mhk_tensor *mhk_require_grad(mhk_tape *t, mhk_tensor *x);
/* A parameter of the caller's own (not on the tape): lives as long as ctx, requires a gradient. values NULL: zeros. */
MHKDEF mhk_tensor *mhk_parameter(mhk_context *ctx, const char *name, int rank, const mhk_index *shape, const mhk_real *values);
MHKDEF void mhk_zero_grad(mhk_tensor *x);

/* One update of AdamW (Loshchilov & Hutter, arXiv 1711.05101) over n parameters, each element read and written once, for training loops of one's own; an
   mhk_trainer has its own. Parameters without a gradient stay as they are. moments belongs to the caller: two numbers for each element of all n, zeros
   before the first step, used with the same list every time. step counts from 1. Gradients are zeroed for the next round unless keep_grad. */
typedef struct mhk_adamw_desc {
  double lr;                /* learning rate, as it is */
  double beta1, beta2, eps; /* 0: 0.9, 0.999, 1e-8 */
  double weight_decay;      /* decoupled: x loses lr * weight_decay * x */
  double scale;             /* on the gradients: 1 / batches, a clip; 0: 1 */
  int keep_grad;
} mhk_adamw_desc;
MHKDEF mhk_result mhk_adamw(mhk_context *ctx, int n, mhk_tensor *const *x, mhk_real *moments, int64_t step, const mhk_adamw_desc *desc);

/* Adds d(loss)/dx to x->grad of every x that requires a gradient. loss must be a scalar. Runs each recorded op once, from
   the last to the first; the records are then spent, the values stay. */
MHKDEF mhk_result mhk_backward(mhk_tape *t, mhk_tensor *loss);
/* the same from y of any shape and its cotangent (count of y) */
MHKDEF mhk_result mhk_backward_from(mhk_tape *t, mhk_tensor *y, const mhk_real *cotangent);
/* the same from several outputs at once */
MHKDEF mhk_result mhk_backward_many(mhk_tape *t, int n, mhk_tensor *const *y, const mhk_real *const *cotangents);

/* Runs f(t,user,x) without keeping its activations, and runs it again when the backward pass needs them: memory for time.
   f must compute the same thing each time from x, parameters and user. */
typedef mhk_tensor *(*mhk_block_fn)(mhk_tape *t, void *user, mhk_tensor *x);
MHKDEF mhk_tensor *mhk_recompute(mhk_tape *t, mhk_block_fn f, void *user, mhk_tensor *x);

/* An op of the caller's own. forward fills out->data; backward reads out->grad and adds to in[i]->grad where
   mhk_wants_grad(t,in[i]) (which also makes the gradient's memory). user_size bytes of user are copied, so that a struct on the
   stack serves. Returns the output, of the given shape. */
typedef struct mhk_op {
  mhk_tape *tape;
  mhk_tensor *out;
  mhk_tensor *const *in;
  int inputs;
  void *user;
} mhk_op;
MHKDEF mhk_tensor *mhk_custom(mhk_tape *t, int inputs, mhk_tensor *const *in, int rank, const mhk_index *shape, void (*forward)(const mhk_op *op),
                              void (*backward)(const mhk_op *op), const void *user, size_t user_size);
MHKDEF int mhk_wants_grad(mhk_tape *t, mhk_tensor *x);

/* Compares the tape's gradient of f with respect to x with central finite differences, element by element (at most 256,
   evenly spread). f builds a scalar from x and whatever else it likes. error is |analytic - numeric| over the largest |gradient|
   seen; steps are 1e-2 of x's scale in float32, 1e-5 in float64. Returns the error of the worst element (NaN after a failure);
   report may be NULL. x gets its values back; gradients it held are lost. */
typedef struct mhk_gradient_report { double error, analytic, numeric; mhk_index at, checked; } mhk_gradient_report;
MHKDEF double mhk_check_gradient(mhk_tape *t, mhk_tensor *(*f)(mhk_tape *t, void *user), void *user, mhk_tensor *x, mhk_gradient_report *report);

/* ---------------------------------------------------------------------------------------- ops */

/* Elementwise and reductions. a and b have the same shape, or b is a vector of a's last axis, or b is a scalar. */
MHKDEF mhk_tensor *mhk_add(mhk_tape *t, mhk_tensor *a, mhk_tensor *b);
MHKDEF mhk_tensor *mhk_sub(mhk_tape *t, mhk_tensor *a, mhk_tensor *b);
MHKDEF mhk_tensor *mhk_mul(mhk_tape *t, mhk_tensor *a, mhk_tensor *b);
MHKDEF mhk_tensor *mhk_scale(mhk_tape *t, mhk_tensor *x, double factor);
MHKDEF mhk_tensor *mhk_square(mhk_tape *t, mhk_tensor *x);
MHKDEF mhk_tensor *mhk_sqrt(mhk_tape *t, mhk_tensor *x);
MHKDEF mhk_tensor *mhk_exp(mhk_tape *t, mhk_tensor *x);
MHKDEF mhk_tensor *mhk_log(mhk_tape *t, mhk_tensor *x);
MHKDEF mhk_tensor *mhk_sigmoid(mhk_tape *t, mhk_tensor *x);
MHKDEF mhk_tensor *mhk_softplus(mhk_tape *t, mhk_tensor *x);
MHKDEF mhk_tensor *mhk_silu(mhk_tape *t, mhk_tensor *x);
MHKDEF mhk_tensor *mhk_gelu(mhk_tape *t, mhk_tensor *x); /* gelu_new, the tanh form Phi uses */
MHKDEF mhk_tensor *mhk_sum(mhk_tape *t, mhk_tensor *x);  /* over everything: a scalar */
MHKDEF mhk_tensor *mhk_mean(mhk_tape *t, mhk_tensor *x);
MHKDEF mhk_tensor *mhk_sum_last(mhk_tape *t, mhk_tensor *x);  /* over the last axis: (...,n) -> (...) */
MHKDEF mhk_tensor *mhk_softmax(mhk_tape *t, mhk_tensor *x);   /* over the last axis */
/* (...,m,k) x (...,k,n) -> (...,m,n), leading axes equal; transpose_b: b is (...,n,k) */
MHKDEF mhk_tensor *mhk_matmul(mhk_tape *t, mhk_tensor *a, mhk_tensor *b, int transpose_b);
/* columns [first,first+width) of the last axis, as a copy */
MHKDEF mhk_tensor *mhk_columns(mhk_tape *t, mhk_tensor *x, mhk_index first, mhk_index width);
/* axes 1 and 2 exchanged, as a copy: (B,T,H,P) -> (B,H,T,P) */
MHKDEF mhk_tensor *mhk_swap_heads(mhk_tape *t, mhk_tensor *x);

/* weight (V,D), tokens B*T ids below V -> (B,T,D) */
MHKDEF mhk_tensor *mhk_embedding(mhk_tape *t, mhk_tensor *weight, const int32_t *tokens, mhk_index B, mhk_index T);
/* x (...,K), weight (N,K) as PyTorch's Linear, bias (N) or NULL -> (...,N). _gelu applies gelu_new; _add adds residual (...,N). */
MHKDEF mhk_tensor *mhk_linear(mhk_tape *t, mhk_tensor *x, mhk_tensor *weight, mhk_tensor *bias);
MHKDEF mhk_tensor *mhk_linear_gelu(mhk_tape *t, mhk_tensor *x, mhk_tensor *weight, mhk_tensor *bias);
MHKDEF mhk_tensor *mhk_linear_add(mhk_tape *t, mhk_tensor *x, mhk_tensor *weight, mhk_tensor *bias, mhk_tensor *residual);
/* over the last axis n: weight (n), bias (n) */
MHKDEF mhk_tensor *mhk_layer_norm(mhk_tape *t, mhk_tensor *x, mhk_tensor *weight, mhk_tensor *bias, double eps);
MHKDEF mhk_tensor *mhk_rms_norm(mhk_tape *t, mhk_tensor *x, mhk_tensor *weight, double eps);
/* y * silu(z + z_bias): y, z (...,E), z_bias (E) or NULL */
MHKDEF mhk_tensor *mhk_gate(mhk_tape *t, mhk_tensor *y, mhk_tensor *z, mhk_tensor *z_bias);

/* Document boundaries of packed sequences: doc (B,T); a new document starts wherever the value differs from the token before
   it. NULL: one document a row. Attention does not look across, states restart, rotary positions count from the start. The first
   document of a row continues the given state; offset is the position of its first token. */

/* Rotary embedding (half-split): x (B,T,H,P), feature i < dim/2 of each head turns with feature i + dim/2 by position * theta^(-2i/dim). */
MHKDEF mhk_tensor *mhk_rotary(mhk_tape *t, mhk_tensor *x, int dim, double theta, const int32_t *doc, mhk_index offset);

/* Keys and values of the tokens so far. The arrays are the caller's: (B,capacity,G,P) each. */
typedef struct mhk_kv_cache { mhk_real *k, *v; mhk_index capacity, length; } mhk_kv_cache;

/* Causal softmax attention: q (B,T,H,P), k and v (B,T,G,P), G divides H -> (B,T,H,P), scale 1/sqrt(P). Tiles with a running softmax:
   no T*T memory. With a cache (no-grad only) k and v are appended to it first, and queries see all of it; error when it is full. */
MHKDEF mhk_tensor *mhk_attention(mhk_tape *t, mhk_tensor *q, mhk_tensor *k, mhk_tensor *v, const int32_t *doc, mhk_kv_cache *cache);
/* its matrix after softmax: (B,H,T,T), zeros above the diagonal */
MHKDEF mhk_tensor *mhk_attention_matrix(mhk_tape *t, mhk_tensor *q, mhk_tensor *k, const int32_t *doc);

/* Causal depthwise convolution: x (B,T,C), weight (C,1,W) with tap W-1 on the current token, bias (C) or NULL -> (B,T,C).
   state (B,C,W-1), oldest first, holds the inputs before the first token and is updated (no-grad only); NULL: zeros. silu: applied after. */
MHKDEF mhk_tensor *mhk_conv1d(mhk_tape *t, mhk_tensor *x, mhk_tensor *weight, mhk_tensor *bias, int silu, const int32_t *doc, mhk_real *state);
/* the same with the channels handed out as n tensors of widths[i] channels, out[i] (B,T,widths[i]) */
MHKDEF mhk_result mhk_conv1d_split(mhk_tape *t, mhk_tensor *x, mhk_tensor *weight, mhk_tensor *bias, int silu, const int32_t *doc, mhk_real *state, int n,
                                   const mhk_index *widths, mhk_tensor **out);

/* State-space duality (Dao & Gu 2024, arXiv 2405.21060): h_t = exp(log_a_t) h_{t-1} + x_t B_t^T, y_t = h_t C_t (+ D_h x_t).
   x (B,T,H,P), log_a (B,T,H) <= 0, Bm and Cm (B,T,G,N), head h uses group h/(H/G) -> (B,T,H,P).
   A log_a of minus infinity forgets the state, whatever it was, if that is finite; a positive one is
   computed as it is, and NaN gives NaN. */
typedef enum mhk_ssd_form { MHK_SSD_AUTO = 0, MHK_SSD_CHUNKED = 1, MHK_SSD_RECURRENT = 2 } mhk_ssd_form;
typedef struct mhk_ssd_desc {
  mhk_tensor *D;             /* (H) or NULL */
  mhk_tensor *initial_state; /* (B,H,P,N) or NULL for zeros; gets a gradient if it wants one */
  mhk_tensor **final_state;  /* if not NULL receives the state (B,H,P,N) after the last token; gradients may flow into it */
  const int32_t *doc;
  mhk_index chunk;           /* tokens a chunk; 0: 32. Results differ by rounding only. */
  mhk_ssd_form form;         /* AUTO: recurrent for a few tokens without gradient, else chunked */
} mhk_ssd_desc;
MHKDEF mhk_tensor *mhk_ssd(mhk_tape *t, mhk_tensor *x, mhk_tensor *log_a, mhk_tensor *Bm, mhk_tensor *Cm, const mhk_ssd_desc *desc);
/* its matrix (B,H,T,T): M[t,s] = (C_t . B_s) exp(log_a_{s+1} + ... + log_a_t) for s <= t, plus D_h (or NULL) on the diagonal */
MHKDEF mhk_tensor *mhk_ssd_matrix(mhk_tape *t, mhk_tensor *log_a, mhk_tensor *Bm, mhk_tensor *Cm, mhk_tensor *D, const int32_t *doc);

/* Losses: scalars. logits (...,V); labels one id a row, negative: the row does not count. Means over the rows that count. */
MHKDEF mhk_tensor *mhk_cross_entropy(mhk_tape *t, mhk_tensor *logits, const int32_t *labels);
/* cross-entropy of softmax(logits / temperature) against softmax(target_logits); the target gets no gradient */
MHKDEF mhk_tensor *mhk_cross_entropy_soft(mhk_tape *t, mhk_tensor *logits, mhk_tensor *target_logits, double temperature);
/* KL(softmax(target_logits) || softmax(logits)) */
MHKDEF mhk_tensor *mhk_kl(mhk_tape *t, mhk_tensor *logits, mhk_tensor *target_logits);
/* mean over rows of || x - target ||_2 over the last axis (MOHAWK stage 2); the target gets no gradient */
MHKDEF mhk_tensor *mhk_hidden_distance(mhk_tape *t, mhk_tensor *x, mhk_tensor *target);
/* mean over (B,H) of || x - target ||_F, both (B,H,T,T) (MOHAWK stage 1) */
MHKDEF mhk_tensor *mhk_matrix_distance(mhk_tape *t, mhk_tensor *x, mhk_tensor *target);
/* mhk_matrix_distance(mhk_ssd_matrix(log_a,Bm,Cm,D), mhk_attention_matrix(q,k)) without making either: memory in T, not T*T.
   relative, if not NULL, receives per head || M_s - M_t ||_F / || M_t ||_F, mean over the batch (H values). q and k get no gradient. */
MHKDEF mhk_tensor *mhk_matrix_orientation(mhk_tape *t, mhk_tensor *log_a, mhk_tensor *Bm, mhk_tensor *Cm, mhk_tensor *D, mhk_tensor *q, mhk_tensor *k,
                                          const int32_t *doc, double *relative);
#endif

/* ---------------------------------------------------------------------------------------- models */

typedef enum mhk_arch { MHK_ARCH_PHI = 1, MHK_ARCH_PHI_MAMBA = 2, MHK_ARCH_MAMBA2 = 3 } mhk_arch;
typedef enum mhk_mixer { MHK_MIXER_ATTENTION = 1, MHK_MIXER_DISCRETE_MAMBA2 = 2, MHK_MIXER_MAMBA2 = 3 } mhk_mixer;
#define MHK_MAX_LAYERS 256

/* What a model is. arch decides block form, names and config.json; mixer[l] the mixer of layer l. Fields that do not concern
   the mixers in use are zero. */
typedef struct mhk_config {
  mhk_arch arch;
  int n_layer, d_model, vocab_size;
  int d_mlp;                     /* width of the MLP; 0 for Mamba-2 */
  double norm_eps;
  int tie_embeddings;            /* lm_head shares the embedding */
  int max_position;              /* tokens the teacher was made for; a note, nothing stops there */
  /* attention */
  int n_head, n_kv_head, head_dim, rotary_dim, qk_layernorm;
  double rope_theta;
  /* state-space mixers */
  /* d_inner = ssm_heads * ssm_head_dim; a Mamba-2 normalises each of the ssm_groups parts of
     d_inner for itself, as mamba_ssm and Hugging Face's library do */
  int ssm_heads, ssm_groups, ssm_head_dim, d_state, d_conv, chunk_size;
  int ssm_rotary_dim;            /* discrete Mamba-2 only; 0: none */
  int conv_silu;                 /* activation after the convolution: 0 identity, 1 silu */
  int conv_bias, proj_bias;      /* Mamba-2: use_conv_bias, use_bias */
  double dt_min, dt_max;         /* Mamba-2: time_step_limit; dt_max 0: none */
  int pad_vocab_multiple;        /* phi-mamba: pad_vocab_size_multiple */
  unsigned char mixer[MHK_MAX_LAYERS]; /* mhk_mixer of each layer */
} mhk_config;

/* Named shapes: "phi-1", "phi-1.5", "phi-2", "phi-mamba-1.5b", "hybrid-phi-mamba-1.5b", "mamba2-130m", "mamba2-1.3b". */
MHKDEF mhk_result mhk_config_preset(mhk_context *ctx, const char *name, mhk_config *config);
/* Checks that a configuration makes sense; the error is a sentence with the numbers in it. */
MHKDEF mhk_result mhk_config_check(mhk_context *ctx, const mhk_config *config);
/* config.json of PhiForCausalLM, Mamba2ForCausalLM, the Mamba-2 of state-spaces' mamba_ssm, or
   phi-mamba (plain, or under one outer key "config"). where names the text in errors. Settings that
   are not known are a warning. */
MHKDEF mhk_result mhk_config_parse(mhk_context *ctx, const char *json, size_t length, const char *where, mhk_config *config);
/* The same out again: writes at most capacity bytes with a terminating 0, returns the length without it (call with NULL, 0 to learn it). */
MHKDEF size_t mhk_config_format(const mhk_config *config, char *json, size_t capacity);
MHKDEF double mhk_config_parameters(const mhk_config *config); /* how many numbers the model has */
/* Bytes of a sequence's state after so many tokens: constant for state-space layers, keys and values of every token for attention ones. */
MHKDEF double mhk_config_state_bytes(const mhk_config *config, mhk_index tokens);

#ifndef MOHAWK_NO_STDIO
/* Reads a model: a folder with config.json and what mhk_file_open() finds there, and tokenizer and
   generation_config.json beside it if there are any; or one .safetensors file that mhk_save()
   wrote, with all of them in its metadata. A tokenizer that cannot be read leaves the model without
   one, with a warning. Of generation_config.json the ends of text count (mhk_model_ends()); how to
   draw is said to mhk_sample(). Weights are mapped and stay in their stored type: the model is
   frozen. A mapped file must not change while the model lives: where its bytes go away (it is cut,
   its disk fails), the system ends a program that touches them (SIGBUS), and bytes that are written
   over are weights at once. Files that others write are replaced whole by rename, as mhk_save()
   does it, or read. */
MHKDEF mhk_model *mhk_load(mhk_context *ctx, const char *path);
typedef struct mhk_load_desc {
  int strict; /* what would be a warning is an error: tensors that the model does not use, settings without effect, a tokenizer that cannot be used... */
  int read; /* files are read into memory of the context in place of being mapped: nothing that happens to them later reaches the model */
} mhk_load_desc;
/* The same as desc says it; desc may be NULL. */
MHKDEF mhk_model *mhk_load_with(mhk_context *ctx, const char *path, const mhk_load_desc *desc);
#endif
/* The same from a .safetensors file that mhk_save() wrote, in memory: weights stay where they are (data must outlive the model), as far as they are aligned to
   their type. */
MHKDEF mhk_model *mhk_load_memory(mhk_context *ctx, const void *data, size_t bytes);
#ifndef MOHAWK_NO_TRAINING
/* A new model with weights drawn as PyTorch's layers draw them. Trainable. */
MHKDEF mhk_model *mhk_model_create(mhk_context *ctx, const mhk_config *config, uint64_t seed);
#endif
MHKDEF void mhk_model_destroy(mhk_model *m);
#ifndef MOHAWK_NO_STDIO
/* Writes a folder: config.json, model.safetensors (dtype MHK_F32, MHK_F16, MHK_BF16; 0: MHK_F32),
   tokenizer.json when the model has one, and generation_config.json when it knows where a text
   ends. A path ending in .safetensors is one file with all of them inside. Written as
   mhk_file_write_bytes() says: never half a file. A folder holds the old model or the new one,
   never some of each: all files are written before the first is renamed; then, unless only the
   weights change, config.json goes first and comes last, and a process killed in between leaves a
   folder without it, which does not load until it is saved to again. A tokenizer that the folder
   held goes when the model has none; files that mhk_load() would not read stay. Others who save
   there at the same time wait (model.lock). dtype MHK_Q8 or MHK_Q4: a model that is quantised is
   written as it is, bit for bit, any other as mhk_quantise() makes it by default; everything that
   is not quantised as MHK_F32. The quantised matrix NAME (N,K) is then stored as NAME of type I8
   (MHK_Q8) or U8 (MHK_Q4), NAME_scale of type F16, and NAME_rest of type F32 with the rows that
   stay numbers, if any; shapes and order are those of mhk_quantised. */
MHKDEF mhk_result mhk_save(mhk_model *m, const char *path, mhk_dtype dtype);
#endif

#if !defined(MOHAWK_NO_STDIO) || !defined(MOHAWK_NO_TRAINING)
typedef struct mhk_quantise_desc {
  mhk_dtype type;  /* MHK_Q8 or MHK_Q4; 0: MHK_Q8 */
  int group;       /* 32 or 64 neighbours share a scale; 0: 64 for MHK_Q8, 32 for MHK_Q4 */
  mhk_dtype ends;  /* type of embedding and head; 0: as type */
} mhk_quantise_desc;
/* A frozen copy of m whose embedding, head and projections are quantised; desc may be NULL. Scales are chosen from the weights alone, group by group:
   for MHK_Q8 the largest weight over 127, for MHK_Q4 the scale of least squared error. Norms, convolutions, biases and all other vectors become
   MHK_REAL, as do the rows of in_proj that set the decay (A_log of discrete Mamba-2, dt of Mamba-2) and matrices whose rows no group divides; a model
   that has no others comes back as numbers, with a warning. */
MHKDEF mhk_model *mhk_quantise(mhk_model *m, const mhk_quantise_desc *desc);
#endif

MHKDEF const mhk_config *mhk_model_config(const mhk_model *m);
MHKDEF mhk_tokenizer *mhk_model_tokenizer(const mhk_model *m);             /* the model's, or NULL */
/* why the tokenizer that lies beside a loaded model is not its own: a sentence, the model's memory;
   NULL: there is none, or it is in use */
MHKDEF const char *mhk_model_tokenizer_error(const mhk_model *m);
/* k must live as long as the model. It may know more tokens than the model has (a warning): one
   that has no row is an error when it is fed. */
MHKDEF mhk_result mhk_model_set_tokenizer(mhk_model *m, mhk_tokenizer *k);
/* The tokens that end a text: mhk_sample() and mhk_speculate() stop at any of them. A loaded model
   has eos_token_id of generation_config.json, else of config.json; unless the former was written on
   purpose (has no _from_model_config), mhk_tokenizer_end() of the model's tokenizer is one besides.
   Returns how many there are; *ids (ids may be NULL) is the model's memory, valid until tokenizer
   or ends change. */
MHKDEF int mhk_model_ends(const mhk_model *m, const int32_t **ids);
/* These and no others from now on, n from 0 to 1000; mhk_save() keeps them in
   generation_config.json. */
MHKDEF mhk_result mhk_model_set_ends(mhk_model *m, const int32_t *ids, int n);
MHKDEF int mhk_model_tensors(const mhk_model *m);
MHKDEF mhk_tensor *mhk_model_tensor(const mhk_model *m, int i);
MHKDEF mhk_tensor *mhk_model_find(const mhk_model *m, const char *name);   /* by checkpoint name; NULL if absent */
#ifndef MOHAWK_NO_TRAINING
/* Turns all parameters into trainable float32 (float64) copies. */
MHKDEF mhk_result mhk_model_make_trainable(mhk_model *m);

/* How a student's new mixers start (method: Bick et al. 2024 section 4; "The Mamba in the Llama", arXiv 2408.15237, for attention). */
typedef enum mhk_init { MHK_INIT_DEFAULT = 0, MHK_INIT_IDENTITY = 1, MHK_INIT_ATTENTION = 2, MHK_INIT_RANDOM = 3 } mhk_init;
typedef struct mhk_student_desc {
  const int *keep_attention; /* layers that stay attention: a hybrid */
  int n_keep_attention;
  int d_state;               /* 0: the teacher's head size */
  int rotary_dim;            /* rotary embedding on B and C; 0: the teacher's; -1: none (the released Phi-Mamba) */
  mhk_init init;             /* 0: attention */
  int chunk_size;            /* 0: 128 */
  uint64_t seed;             /* 0: 1 */
} mhk_student_desc;
/* A Phi-Mamba student of a Phi teacher: takes over embedding, norms, MLPs, head and kept attention layers; its other mixers are new. desc may be NULL. */
MHKDEF mhk_model *mhk_student_create(mhk_context *ctx, mhk_model *teacher, const mhk_student_desc *desc);
/* The two halves of it, for models made otherwise. transfer copies every weight that both have and that is no state-space mixer's. */
MHKDEF mhk_result mhk_model_transfer(mhk_model *student, mhk_model *teacher);
MHKDEF mhk_result mhk_model_init_mixers(mhk_model *student, mhk_model *teacher, mhk_init init, uint64_t seed);

typedef struct mhk_forward_desc {
  const int32_t *doc; /* document of each token (B,T), or NULL */
  int recompute;      /* recompute each block in the backward pass instead of keeping its activations */
  int last_only;      /* logits of the last token only: (B,1,V) */
  mhk_tensor **residuals; /* if not NULL receives the L+1 residual streams: input of block 0..L-1 and the last block's output */
} mhk_forward_desc;
/* tokens (B,T) -> logits (B,T,V). desc may be NULL. */
MHKDEF mhk_tensor *mhk_forward(mhk_tape *t, mhk_model *m, const int32_t *tokens, mhk_index B, mhk_index T, const mhk_forward_desc *desc);
/* Its pieces. x (B,T,D) is the residual stream; u is x after the block's norm. */
MHKDEF mhk_tensor *mhk_forward_embedding(mhk_tape *t, mhk_model *m, const int32_t *tokens, mhk_index B, mhk_index T);
MHKDEF mhk_tensor *mhk_forward_norm(mhk_tape *t, mhk_model *m, int layer, mhk_tensor *x);
MHKDEF mhk_tensor *mhk_forward_mixer(mhk_tape *t, mhk_model *m, int layer, mhk_tensor *u, const mhk_forward_desc *desc);
MHKDEF mhk_tensor *mhk_forward_block(mhk_tape *t, mhk_model *m, int layer, mhk_tensor *x, const mhk_forward_desc *desc);
MHKDEF mhk_tensor *mhk_forward_head(mhk_tape *t, mhk_model *m, mhk_tensor *x);
/* the mixing matrix of a layer: (B,H,T,T) */
MHKDEF mhk_tensor *mhk_forward_matrix(mhk_tape *t, mhk_model *m, int layer, mhk_tensor *u, const int32_t *doc);
#endif

/* ---------------------------------------------------------------------------------------- files */

/* safetensors (huggingface/safetensors, format of version 0.4): 8 bytes of header length, a JSON header, raw little-endian tensors.
   PyTorch's own files (torch.save of a state dict, PyTorch 1.6 and later: pytorch_model.bin): a zip archive of raw tensors and a pickle that
   describes them, which is read as data: nothing it names is ever run, and what a state dict does not need is refused. */
typedef struct mhk_file mhk_file;
typedef struct mhk_file_tensor {
  const char *name;
  mhk_dtype dtype; /* 0: a type that is not read here (F8_E4M3, C64...), whose bytes are there all the same */
  int rank;
  mhk_index shape[MHK_MAX_RANK]; /* axes beyond the last of these are folded into it */
  mhk_index count;
  const void *data; /* in the mapped file: little-endian, aligned to the element or not */
  size_t bytes;
} mhk_file_tensor;
#ifndef MOHAWK_NO_STDIO
/* Opens a file of either kind, an index of shards, or what a folder holds: model.safetensors, its index, pytorch_model.bin, its index,
   the first of them that is there. Everything is checked before it is believed, but for the checksums of mapped tensors. */
MHKDEF mhk_file *mhk_file_open(mhk_context *ctx, const char *path);
#endif
MHKDEF mhk_file *mhk_file_open_memory(mhk_context *ctx, const void *data, size_t bytes); /* data must stay; without stdio: safetensors only */
MHKDEF void mhk_file_close(mhk_file *f);
MHKDEF int mhk_file_tensors(const mhk_file *f);
MHKDEF const mhk_file_tensor *mhk_file_tensor_at(const mhk_file *f, int i);            /* sorted by name */
MHKDEF const mhk_file_tensor *mhk_file_find(const mhk_file *f, const char *name);
MHKDEF const char *mhk_file_metadata(const mhk_file *f, const char *key, size_t *length); /* text of __metadata__, or NULL; length may be NULL */
MHKDEF mhk_result mhk_file_read(mhk_context *ctx, const mhk_file_tensor *x, mhk_real *out);     /* converts any number type */
MHKDEF mhk_result mhk_file_read_i32(mhk_context *ctx, const mhk_file_tensor *x, int32_t *out);  /* integer types; error when one does not fit */
#ifndef MOHAWK_NO_STDIO
/* Writing: describe all tensors, then write. data is in host byte order and dtype; metadata is n_metadata pairs key, value. */
MHKDEF mhk_result mhk_file_write(mhk_context *ctx, const char *path, int n, const mhk_file_tensor *tensors, int n_metadata, const char *const *metadata);
/* Any other file. Like all files here it is written as path.new (path.new2 and on while others write it too), flushed to the disk and renamed: readers see
   the old file or the new one, a writer that fails or is killed leaves the old one. What a killed writer left behind goes when path is written again.
   A symbolic link at path is replaced, not followed; a new file has the permissions of the one it replaces, as far as the umask allows. */
MHKDEF mhk_result mhk_file_write_bytes(mhk_context *ctx, const char *path, const void *data, size_t bytes);
#endif

/* ---------------------------------------------------------------------------------------- tokenizer */

/* Byte-level BPE as GPT-2, Phi and GPT-NeoX (with NFC, which the Mamba-2 models have) use it. path: a folder or
   file: tokenizer.json, or vocab.json with merges.txt (and added_tokens.json), or encoder.json with vocab.bpe; and
   the tokenizer_config.json beside them, if there is one: which tokens start and end a text. */
#ifndef MOHAWK_NO_STDIO
MHKDEF mhk_tokenizer *mhk_tokenizer_load(mhk_context *ctx, const char *path);
#endif
MHKDEF mhk_tokenizer *mhk_tokenizer_parse(mhk_context *ctx, const char *json, size_t length); /* a tokenizer.json in memory */
MHKDEF void mhk_tokenizer_destroy(mhk_tokenizer *k);
/* Any bytes in, ids out: writes at most capacity, returns how many there are (call again with more room if larger); -1 on error. Added tokens found in
   the text become their ids; none are put around it. Time is linear in length. mhk_decode() gives the bytes back (unless the tokenizer.json
   asks for NFC, add_prefix_space, lstrip or rstrip, which change the text). */
MHKDEF mhk_index mhk_encode(mhk_tokenizer *k, const char *text, size_t length, int32_t *ids, mhk_index capacity);
/* The same with mhk_tokenizer_start() before the text, where mhk_feed_text() puts it. */
MHKDEF mhk_index mhk_encode_prompt(mhk_tokenizer *k, const char *text, size_t length, int32_t *ids, mhk_index capacity);
/* The bytes of ids: writes at most capacity (no terminating 0), returns how many there are; -1 when an id does not exist. */
MHKDEF mhk_index mhk_decode(mhk_tokenizer *k, const int32_t *ids, mhk_index n, char *text, size_t capacity);
MHKDEF int mhk_tokenizer_size(const mhk_tokenizer *k);                    /* one more than the largest id */
MHKDEF int32_t mhk_tokenizer_id(mhk_tokenizer *k, const char *token);     /* id of an added or special token ("<|endoftext|>"), -1 if absent */
MHKDEF const char *mhk_token_bytes(mhk_tokenizer *k, int32_t id, size_t *length); /* bytes of one token, NULL if the id does not exist */
/* id of the token that ends a text, -1 if there is none: eos_token of the tokenizer_config.json beside
   tokenizer.json, else <|endoftext|> */
MHKDEF int32_t mhk_tokenizer_end(const mhk_tokenizer *k);
/* id of the token that starts one, as it does the documents of mhk_text_load(): its bos_token, what
   tokenizer.json puts before a text, else as above */
MHKDEF int32_t mhk_tokenizer_start(const mhk_tokenizer *k);
MHKDEF const char *mhk_tokenizer_json(mhk_tokenizer *k, size_t *length);  /* the tokenizer as a tokenizer.json; the tokenizer's memory */

/* Streaming: gives back only whole UTF-8 characters, holding an unfinished one until the next call; bytes that can be no character become
   U+FFFD, one for each longest start of a character that breaks off. */
typedef struct mhk_stream { unsigned char held[4]; int n_held; } mhk_stream; /* zero to start */
MHKDEF size_t mhk_stream_push(mhk_stream *s, const char *bytes, size_t length, char *out); /* returns bytes written; out has room for 3 * (length + 4) */
MHKDEF size_t mhk_stream_finish(mhk_stream *s, char *out);                                 /* at the end: what is held, as U+FFFD (3 bytes) or nothing */

/* ---------------------------------------------------------------------------------------- sessions */

/* A session runs a model for inference: one or more sequences of tokens, each at its own position. State-space layers keep a state of constant size,
   attention layers the keys and values of the tokens so far. All its memory is one block, whose size mhk_session_size() tells beforehand: after creation
   nothing more is asked of the allocator, but for words longer than word_bytes. Sequences are numbered from 0. What a sequence answers does not depend on
   the others of its session (products of a few rows are summed in another order than those of many: rounding differs). Zero means the default named here. */
typedef struct mhk_session_desc {
  mhk_index batch;          /* sequences; 0: 1 */
  mhk_index capacity;       /* tokens an attention layer holds of each sequence; 0: the model's max_position, or 2048. Of no meaning without attention. */
  mhk_index window;         /* attention layers see a token and the window - 1 before it, forget the rest, and are never full (capacity then has no
                               meaning; positions go on counting). 0: everything */
  mhk_index chunk;          /* tokens of a sequence computed together; more is faster and takes more memory; 0: 256 */
  mhk_index snapshots;      /* states of each sequence kept to rewind to: the newest ones */
  mhk_index snapshot_every; /* tokens between those that are kept by themselves; 0: only mhk_session_snapshot() keeps them */
  mhk_index recent;         /* last tokens of each sequence remembered for the penalties of mhk_sampling; 0: 256 */
  size_t stop_bytes;        /* bytes of the longest stop string of mhk_sampling; 0: 64 */
  void *memory;             /* the caller's block to live in, which must outlast the session; NULL: from the context's allocator */
  size_t memory_bytes;      /* its size: at least mhk_session_size(), aligned or not */
  /* bytes of the longest word (run without a break) of mhk_feed_text() that the block has room for; 0: 1024.
     A longer one takes memory from the context's allocator for as long as it lasts, or is an error where the
     block is the caller's. */
  size_t word_bytes;
  int no_start;             /* mhk_feed_text() puts no token before the text */
} mhk_session_desc;
/* Bytes of the block that a session of this description takes with this context's threads (fewer later are fine, more stay unused). 0 on error. */
MHKDEF size_t mhk_session_size(const mhk_model *m, const mhk_session_desc *desc);
/* desc may be NULL. The model must outlive the session; its tokenizer, if text is wanted, must be there by now. */
MHKDEF mhk_session *mhk_session_create(mhk_model *m, const mhk_session_desc *desc);
MHKDEF void mhk_session_destroy(mhk_session *s);
/* All sequences, or one of them, to the start: no tokens seen, no snapshots. */
MHKDEF void mhk_session_reset(mhk_session *s);
MHKDEF mhk_result mhk_session_reset_one(mhk_session *s, mhk_index sequence);
MHKDEF mhk_index mhk_session_position(const mhk_session *s, mhk_index sequence); /* tokens seen; 0 for a sequence that is not there */

/* Prefill: n tokens for each sequence, (batch,n). Logits of the last one are then in mhk_logits(). A wrong token or a full cache is found before anything is
   done: the session stays as it was. */
MHKDEF mhk_result mhk_feed(mhk_session *s, const int32_t *tokens, mhk_index n);
/* lengths[b] tokens at tokens[b] for each sequence b; 0: that one stays as it is. Nothing is padded: the work is that of the tokens. */
MHKDEF mhk_result mhk_feed_many(mhk_session *s, const int32_t *const *tokens, const mhk_index *lengths);
/* The same, and take receives the logits (V) after token index of a sequence wherever wanted[sequence][index] is not 0; wanted NULL, or NULL for a sequence:
   after each. A sequence's come in order. logits are gone when take returns; take must not use the session. */
typedef void (*mhk_logits_fn)(void *user, mhk_index sequence, mhk_index index, const mhk_real *logits);
MHKDEF mhk_result mhk_feed_logits(mhk_session *s, const int32_t *const *tokens, const mhk_index *lengths, const unsigned char *const *wanted,
                                  mhk_logits_fn take, void *user);
/* Feeds n tokens to one sequence and tells how likely each was after those before it: n natural logarithms of probabilities. The sequence must have
   seen a token (text: the end-of-text token). */
MHKDEF mhk_result mhk_score(mhk_session *s, mhk_index sequence, const int32_t *tokens, mhk_index n, double *log_probabilities);
/* Text through the model's tokenizer (batch 1): the ids of mhk_encode(). At the start of a sequence
   mhk_tokenizer_start() goes first, as the teachers were trained, unless the text begins with it, the
   tokenizer's files say that none does, or mhk_session_desc.no_start. */
MHKDEF mhk_result mhk_feed_text(mhk_session *s, const char *text);
/* the same, for text with zero characters */
MHKDEF mhk_result mhk_feed_bytes(mhk_session *s, const char *text, size_t length);
MHKDEF const mhk_real *mhk_logits(const mhk_session *s); /* (batch,V) after the last token each was fed; NULL while a sequence has none */
MHKDEF const mhk_real *mhk_logits_of(const mhk_session *s, mhk_index sequence); /* (V) of one sequence; NULL while it has none */

typedef struct mhk_token_bias { int32_t token; double value; } mhk_token_bias; /* added to the token's logit; -INFINITY forbids it */

/* How the next token is chosen. All zero draws from the model's own distribution. What is asked for happens in this order, each filter on the
   probabilities that the one before left, scaled to sum to 1 again: bias, penalties, temperature, top_k, top_p, min_p, typical. Where tokens are
   equally good the smaller id comes first. The order and each rule are those of Hugging Face's transformers, where it has them. */
typedef struct mhk_sampling {
  double temperature; /* logits are divided by it; 0: 1; negative: greedy, the likeliest token after bias and penalties */
  int top_k;          /* keep the k likeliest; 0: all */
  double top_p;       /* keep the likeliest that together reach this probability (Holtzman et al. 2019); 0: 1; above 1 is an error */
  double min_p;       /* keep tokens at least this share, up to 1, of the most likely one's probability; 0: all */
  uint64_t seed;      /* used when it differs from the session's last; 0: keep going */
  double typical;     /* keep the tokens whose -log p is nearest to its mean, that together reach this probability (Meister et al. 2022); 0: 1 */
  double repetition;  /* a token seen: its logit is divided by this if positive, else multiplied (Keskar et al. 2019); 0: 1 */
  double frequency;   /* a token's logit loses this each time it was seen, */
  double presence;    /* and this if it was seen at all */
  int penalty_tokens; /* how many of the last tokens count as seen, the prompt's too; 0: all that are remembered (mhk_session_desc.recent) */
  const mhk_token_bias *bias;
  int n_bias;
  const int32_t *stop_tokens; /* mhk_sample() ends at these as at the end-of-text token */
  int n_stop_tokens;
  const char *const *stop_strings; /* mhk_sample() ends where the text shows one of these. mhk_text_out() never shows it nor what follows: text that may yet
                                      become one is held back. */
  int n_stop_strings;
} mhk_sampling;

/* The distribution that sampling draws from, for logits (V) of the caller's own: probabilities p (V), zero for tokens filtered out, sum 1. how NULL: as
   mhk_sample(). recent: the tokens that penalties count (penalty_tokens takes the last of them), may be NULL if n_recent is 0. scratch (V).
   A logit of -INFINITY is a token that cannot be. Returns how many tokens are left; 0 when a logit is NaN or too large, none is possible, or how is wrong. */
MHKDEF mhk_index mhk_probabilities(const mhk_real *logits, mhk_index V, const mhk_sampling *how, const int32_t *recent, mhk_index n_recent, double *p,
                                   int32_t *scratch);
/* The token where the running sum of p (V), by id, passes uniform, which the caller draws from [0,1). */
MHKDEF int32_t mhk_draw(const double *p, mhk_index V, double uniform);

/* Draws the next token from the logits and feeds it (batch 1). Returns it, or -1 at a stop (which is not fed) or failure.
   sampling NULL: temperature 0.8, top_p 0.95. */
MHKDEF int32_t mhk_sample(mhk_session *s, const mhk_sampling *sampling);
/* the same for every sequence: tokens (batch); end-of-text and stops are tokens like any other */
MHKDEF mhk_result mhk_sample_batch(mhk_session *s, const mhk_sampling *sampling, int32_t *tokens);
MHKDEF const char *mhk_text_out(mhk_session *s);         /* whole characters that mhk_sample() finished in its last call; 0-terminated, session's memory */
MHKDEF const char *mhk_text_rest(mhk_session *s);        /* when the caller ends the text: what is still held back; then in mhk_text_out() too */
/* why the last mhk_sample() returned -1 (MHK_STOP_NONE: it did not, or it failed) */
typedef enum mhk_stop { MHK_STOP_NONE = 0, MHK_STOP_END = 1, MHK_STOP_TOKEN = 2, MHK_STOP_STRING = 3 } mhk_stop;
MHKDEF mhk_stop mhk_stopped(const mhk_session *s);

/* Speculative decoding (Leviathan et al. 2023, Chen et al. 2023): a draft session, of a student say, proposes tokens, and the target judges all of them in
   one pass. What comes out has the distribution of mhk_sample() on the target alone, whatever the draft, under every kind of sampling; greedy, it is the
   same text. It pays where a pass of the target over several tokens costs little more than over one, and drafting costs much less: a large target whose
   weights come from memory, a quantised student, a long context. Both sessions are of one context, hold one sequence without a window, and have been fed
   the same text; they belong to the speculation until it is finished or destroyed. */
typedef struct mhk_speculation mhk_speculation;
typedef struct mhk_speculation_desc {
  mhk_session *target, *draft;
  int tokens; /* drafted for each pass of the target; 0: by how many were accepted before, from 1 to 7: up to 8 rows are cheap, see MHK__FEW */
} mhk_speculation_desc;
typedef struct mhk_speculation_counts { mhk_index tokens, passes, drafted, accepted; } mhk_speculation_counts; /* tokens drawn, passes of the target */
MHKDEF mhk_speculation *mhk_speculation_create(const mhk_speculation_desc *desc);
MHKDEF void mhk_speculation_destroy(mhk_speculation *x); /* the sessions stay, as mhk_speculation_finish() leaves them */
/* As mhk_sample() on the target: its text and reason to stop are the target's. After -1 the speculation is finished. sampling may change between calls, except
   that tokens already judged stand. */
MHKDEF int32_t mhk_speculate(mhk_speculation *x, const mhk_sampling *sampling);
/* Brings both sessions to what was returned so far, logits included: they can be used by themselves, and the speculation goes on after them. */
MHKDEF mhk_result mhk_speculation_finish(mhk_speculation *x);
MHKDEF mhk_speculation_counts mhk_speculation_count(const mhk_speculation *x);

/* The state of a sequence as a value: what it has seen, its logits, the tokens that penalties count, and the start of an unfinished character of text; not
   the random numbers of sampling. A copy has the text that is held back for stop strings too, saved bytes have not. As bytes it starts with a version and a
   fingerprint of the model (configuration and samples of all weights: to catch mistakes, no proof), and is the same on every machine whose mhk_real has one
   size. A session with a smaller `recent` keeps the last of the tokens that penalties count. */
MHKDEF size_t mhk_session_state_size(const mhk_session *s, mhk_index sequence); /* bytes now: constant without attention, else growing with the position */
MHKDEF mhk_result mhk_session_save(mhk_session *s, mhk_index sequence, void *state, size_t bytes); /* bytes: room, at least that size */
/* Everything is checked before the sequence is touched: state of another model, damaged, or longer than the capacity are refused. */
MHKDEF mhk_result mhk_session_load(mhk_session *s, mhk_index sequence, const void *state, size_t bytes);
#ifndef MOHAWK_NO_STDIO
MHKDEF mhk_result mhk_session_save_file(mhk_session *s, mhk_index sequence, const char *path); /* written under another name and renamed */
MHKDEF mhk_result mhk_session_load_file(mhk_session *s, mhk_index sequence, const char *path);
#endif
/* Makes a sequence a copy of another one, of the same session or another of the same model object: one prompt, many continuations. */
MHKDEF mhk_result mhk_session_copy(mhk_session *to, mhk_index to_sequence, const mhk_session *from, mhk_index from_sequence);
/* Keeps the state as it is now (in place of the oldest one when all slots are taken). */
MHKDEF mhk_result mhk_session_snapshot(mhk_session *s, mhk_index sequence);
/* Goes back to the latest kept state at or before position and returns where that is, so that the caller feeds what came between again; with no such snapshot
   that is 0, the start. A model of attention layers only (without window) needs no snapshots: it goes back to position itself. Logits are gone until the next
   token. -1 on error. */
MHKDEF mhk_index mhk_session_rewind(mhk_session *s, mhk_index sequence, mhk_index position);
/* The recurrent numbers themselves: a state-space layer's last inputs of the convolution (d_conv-1,channels), oldest first, and its state (H,P,N); NULL for
   other layers. Read or write them between calls. */
MHKDEF mhk_real *mhk_session_conv(mhk_session *s, mhk_index sequence, int layer);
MHKDEF mhk_real *mhk_session_ssm(mhk_session *s, mhk_index sequence, int layer);

#ifndef MOHAWK_NO_TRAINING
/* ---------------------------------------------------------------------------------------- text */

/* Training text: one long row of tokens, documents each starting with mhk_tokenizer_start(). */
/* n files of text in UTF-8, a byte order mark left out; documents are separated by the end-of-text token written out (<|endoftext|>). A file of which one byte
   in a hundred is zero or part of no character is refused; fewer such bytes are told in a warning. max_document > 0 cuts longer documents at line ends as soon
   as they pass that many bytes. repeat[i] uses file i that many times (NULL: once). Documents are shuffled by seed (0: order kept). */
typedef struct mhk_text_desc {
  int n_files;
  const char *const *files;
  const int *repeat;
  size_t max_document;
  const size_t *max_document_of; /* per file, instead of max_document */
  uint64_t seed;
  const char *const *texts; /* NULL, or per file: its content, files[i] then only names it; NULL: the file is read */
  const size_t *lengths;    /* of texts in bytes; NULL: they end with a zero character */
} mhk_text_desc;
#ifndef MOHAWK_NO_STDIO
MHKDEF mhk_text *mhk_text_load(mhk_context *ctx, mhk_tokenizer *k, const mhk_text_desc *desc);
#endif
/* The caller's tokens, copied; end: the id that starts a document, -1: none. */
MHKDEF mhk_text *mhk_text_from_tokens(mhk_context *ctx, const int32_t *tokens, mhk_index n, int32_t end);
/* Text that the model itself writes, document after document, at temperature 1: for distillation without a corpus. progress, if not NULL, is called
   with tokens done and wanted; non-zero from it stops (the text then holds what there is). Depends on seed only, not on threads. */
typedef int (*mhk_progress_fn)(void *user, mhk_index done, mhk_index total);
MHKDEF mhk_text *mhk_text_sample(mhk_model *m, mhk_index tokens, uint64_t seed, mhk_progress_fn progress, void *user);
MHKDEF void mhk_text_destroy(mhk_text *x);
MHKDEF mhk_index mhk_text_tokens(const mhk_text *x, const int32_t **tokens);

/* ---------------------------------------------------------------------------------------- distillation */

typedef enum mhk_trains { MHK_TRAIN_DEFAULT = 0, MHK_TRAIN_MATRICES = 1, MHK_TRAIN_MIXERS = 2, MHK_TRAIN_ALL = 3 } mhk_trains;
typedef enum mhk_decays { MHK_DECAY_ALL = 0, MHK_DECAY_MATRICES = 1 } mhk_decays; /* which trained tensors weight decay applies to */
/* One stage. Zero means the default named here. */
typedef struct mhk_stage_desc {
  mhk_index tokens;      /* budget, rounded down to whole updates; 0: the stage is skipped */
  double lr;             /* top learning rate; 0: by stage and d_model (mhk_distill_defaults) */
  double lr_low;         /* where the decay ends; 0: 1e-8 */
  double warmup;         /* share of updates; 0: 0.05; negative: none */
  double decay;          /* share of updates; 0: 0.5; negative: none */
  double weight_decay;   /* 0: 0.1; negative: none */
  double clip;           /* global gradient norm; 0: 1 in stage 3, none else; negative: none */
  double temperature;    /* stage 3, on the student's logits; 0: 1 */
  double hard_labels;    /* stage 3: weight of cross-entropy against the text; 0: none */
  double own_stream;     /* stage 3: lambda of own-stream alignment; 0: 0.03; negative: none */
  mhk_trains trains;     /* 0: stage 1 in_proj, conv1d and D; stage 2 the mixers that are not kept attention; stage 3 everything */
} mhk_stage_desc;

typedef enum mhk_windows { MHK_WINDOWS_RANDOM = 0, MHK_WINDOWS_PACKED = 1 } mhk_windows; /* random places, or documents packed with boundaries in order */
typedef struct mhk_distill_desc {
  mhk_model *teacher;           /* frozen */
  mhk_model *student;           /* trainable, from mhk_student_create(); NULL: made from the next line */
  mhk_student_desc student_desc;
  mhk_text *text;
  mhk_stage_desc stages[3];     /* matrices, hidden states, predictions */
  mhk_index batch, length;      /* sequences of how many tokens at once; 0: 8 and 256 */
  mhk_index update_tokens;      /* tokens an update, by gradient accumulation; 0: batch * length */
  mhk_windows windows;
  double beta1, beta2, eps;     /* AdamW; 0: 0.9, 0.95, 1e-8 */
  mhk_decays decays;
  int recompute;                /* stage 3 recomputes blocks in the backward pass: less memory, a third more time */
  mhk_precision precision;      /* of the products in updates; BF16: see mhk_set_precision. Evaluation and checkpoints are float32 either way. */
  uint64_t seed;                /* text windows; 0: 1 */
  const char *out;              /* folder for checkpoints; NULL: none. Locked while the trainer lives, by out/run.lock: another one for it is an error that
                                   names the process, this one too. The lock dies with its process. Systems and network drives without locks lock nothing. */
  double checkpoint_seconds;    /* between checkpoints; 0: 60; negative: only at the end of a stage and on request */
  int fresh;                    /* start over even if out holds a checkpoint */
  /* Sums gradients over the workers of a data-parallel job: called once an update with all gradients of the stage (n numbers); returns non-zero to fail.
     world and rank divide the batch's windows. */
  int (*exchange)(void *user, mhk_real *gradients, size_t n);
  void *exchange_user;
  int world, rank;              /* 0: 1 worker */
} mhk_distill_desc;

/* What a description means after defaults. */
MHKDEF mhk_distill_desc mhk_distill_defaults(const mhk_distill_desc *desc);
/* Memory the run will hold at its peak beyond the teacher's file, in bytes (an estimate from above). */
MHKDEF double mhk_distill_bytes(const mhk_distill_desc *desc);
/* A trainer; resumes when out holds a checkpoint of the same run (a different description is an error that names the difference). */
MHKDEF mhk_trainer *mhk_distill(mhk_context *ctx, const mhk_distill_desc *desc);
MHKDEF void mhk_trainer_destroy(mhk_trainer *tr);
/* One update. Returns 1 when it made one, so that a loop sees the last one too; 0 when there was
   nothing left to do, or on failure. A loss or gradient that is not finite is an error that says what
   was first: which layer of teacher or student, and what of it. */
MHKDEF int mhk_train_step(mhk_trainer *tr);
/* One update of the given stage on the caller's tokens (B,T) at the caller's learning rate: the arithmetic of mhk_train_step() without schedule and
   data, for tests and for loops of one's own. Returns the loss (NaN on failure). */
MHKDEF double mhk_train_on(mhk_trainer *tr, int stage, const int32_t *tokens, mhk_index B, mhk_index T, const int32_t *doc, double lr);
typedef struct mhk_progress_info {
  int stage;                /* 1..3 */
  int stage_done;           /* the last step ended its stage */
  int resumed;              /* the run continued from a checkpoint */
  mhk_index step, steps;    /* updates done in this stage, and its total */
  mhk_index tokens, total_tokens; /* of this stage */
  double loss;              /* of the last update */
  double loss_average;      /* running mean over about the last 20 */
  double lr, grad_norm;     /* grad_norm before clipping; 0 where not computed */
  double seconds, tokens_per_second, seconds_left; /* this stage; left: this stage, from the rate so far */
  const double *layer_loss; /* stages 1 and 2: L losses, 0 for kept attention; NULL in stage 3 */
  const double *relative;   /* stage 1: (L,H) relative errors; else NULL */
} mhk_progress_info;
MHKDEF const mhk_progress_info *mhk_progress(mhk_trainer *tr);
MHKDEF mhk_model *mhk_student(mhk_trainer *tr); /* stays with the context when the trainer is destroyed; one of the caller's own must outlive it */
#ifndef MOHAWK_NO_STDIO
/* Writes out/checkpoint.safetensors, with a checksum of everything in it; the one before stays as out/checkpoint.previous.safetensors. mhk_distill() goes on
   from that when the last one is damaged, with a warning. */
MHKDEF mhk_result mhk_checkpoint(mhk_trainer *tr);
#endif
/* Loss of a stage and its gradients (added to the parameters') without an update. layer_loss: L values or NULL. */
MHKDEF double mhk_stage_loss(mhk_tape *t, mhk_model *student, mhk_model *teacher, int stage, const int32_t *tokens, mhk_index B,
                             mhk_index T, const int32_t *doc,
                             const mhk_stage_desc *desc, double *layer_loss, double *relative);
/* The learning rate of update s of S: warm-up, stable, linear decay to low (Bick et al. 2024).
   NaN for rates that are not finite or counts that are negative. */
MHKDEF double mhk_learning_rate(double top, double low, mhk_index warmup, mhk_index decay, mhk_index s, mhk_index S);

/* ---------------------------------------------------------------------------------------- evaluation */

typedef struct mhk_evaluation {
  mhk_index tokens;                            /* predictions that count */
  double cross_entropy, cross_entropy_error;   /* nats a token, and its standard error over windows */
  double kl, kl_error;                         /* KL(teacher || model); 0 without teacher */
  double agreement, agreement_error;           /* share of tokens with the teacher's top-1 */
} mhk_evaluation;
/* Over the first windows windows (0: all) of length tokens each (0: 256); predictions inside a window only. teacher may be NULL. */
MHKDEF mhk_result mhk_evaluate(mhk_model *m, mhk_model *teacher, mhk_text *text, mhk_index length, mhk_index windows, mhk_progress_fn progress, void *user,
                               mhk_evaluation *result);
#endif

#endif /* MOHAWK_H */
#endif /* MHK__PASS */
#if defined(MOHAWK_REFERENCE) && !defined(MHK__PASS)
#ifdef MHK__REFERENCE /* once in a file: the first time it is included */
#undef MHK__REFERENCE
#define MHK__REFERENCE 2
#else
#define MHK__REFERENCE 1
#include <math.h>
#endif
#endif

/* ====================================================================================================
   IMPLEMENTATION
   ==================================================================================================== */
#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
#ifdef MOHAWK__IMPLEMENTED
#error "mohawk.h: the implementation was asked for twice in one file"
#endif
#define MOHAWK__IMPLEMENTED

#define MHK__VERSION (10000 * MHK_VERSION_MAJOR + 100 * MHK_VERSION_MINOR + MHK_VERSION_PATCH)
#if MHK__TEXT != MHK__VERSION
#error "mohawk.h: the declarations included before the implementation are those of another version of this header"
#endif

/* mhk_create() refuses at run time what has no macro here */
#ifndef MOHAWK_ALLOW_FAST_MATH
#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(_M_FP_FAST)
#define MHK__FAST_MATH
#elif defined(__FINITE_MATH_ONLY__)
#if __FINITE_MATH_ONLY__ > 0
#define MHK__FAST_MATH
#endif
#endif
#ifdef MHK__FAST_MATH
#error "mohawk.h: -ffast-math, -ffinite-math-only and -fassociative-math break the checks for NaN and the sums that this code relies on: \
compile it without them, or define MOHAWK_ALLOW_FAST_MATH to try anyway"
#endif
#endif

#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <string.h>
#ifndef MOHAWK_MALLOC
#include <stdlib.h>
#endif
#ifndef MOHAWK_NO_TRAINING
#include <time.h>
#endif
#ifndef MOHAWK_NO_STDIO
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif
#if (defined(__unix__) || defined(__APPLE__) || defined(__wasi__)) && !defined(MOHAWK_NO_TRAINING)
#include <sys/time.h>
#define MHK__GETTIMEOFDAY
#endif
#if defined(__unix__) || defined(__APPLE__)
#define MHK__POSIX
#ifndef MOHAWK_NO_STDIO
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>
#endif
#elif defined(_WIN32)
#define MHK__WINDOWS
#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#ifndef NOMINMAX
#define NOMINMAX
#endif
#ifndef MOHAWK_NO_STDIO
#include <io.h>
#endif
#if !defined(MOHAWK_NO_STDIO) || !defined(MOHAWK_NO_TRAINING)
#include <windows.h>
#endif
#endif

#if (defined(MOHAWK_MALLOC) || defined(MOHAWK_FREE)) && !(defined(MOHAWK_MALLOC) && defined(MOHAWK_FREE))
#error "mohawk.h: define both of MOHAWK_MALLOC and MOHAWK_FREE, or neither"
#endif
#ifndef MOHAWK_MALLOC
#define MOHAWK_MALLOC(bytes) malloc(bytes)
#define MOHAWK_FREE(block) free(block)
#if defined(__linux__) && defined(MADV_HUGEPAGE) /* declared unless the compiler keeps to ISO C */
#define MHK__HUGE_PAGE ((size_t)2 << 20)
#endif
#endif
#ifndef MOHAWK_ASSERT
#define MOHAWK_ASSERT(condition) ((void)0)
#endif
/* the name under which this file includes itself to compile the kernels once per instruction set */
#ifndef MOHAWK_HEADER_NAME
#define MOHAWK_HEADER_NAME "mohawk.h"
#endif
#ifdef __has_include
#if !__has_include(MOHAWK_HEADER_NAME)
#error "mohawk.h: this file includes itself, by the name \"mohawk.h\" unless told, and there is none: \
#define MOHAWK_HEADER_NAME to the name it is included by, in quotes"
#endif
#endif

#if defined(__SANITIZE_ADDRESS__)
#define MHK__ASAN
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define MHK__ASAN
#endif
#endif

#ifdef __cplusplus
#define MHK__RESTRICT
#elif defined(__GNUC__) || defined(__clang__) || defined(_MSC_VER)
#define MHK__RESTRICT __restrict
#else
#define MHK__RESTRICT
#endif
#if defined(__GNUC__) || defined(__clang__)
#define MHK__PREFETCH(p) __builtin_prefetch(p, 0, 2) /* for the L2 cache */
#define MHK__PREFETCH_L1(p) __builtin_prefetch(p, 0, 3)
#define MHK__PREFETCH_WRITE(p) __builtin_prefetch(p, 1)
#else
#define MHK__PREFETCH(p) ((void)(p))
#define MHK__PREFETCH_L1(p) ((void)(p))
#define MHK__PREFETCH_WRITE(p) ((void)(p))
#endif

/* ====================================================================================================
   PLATFORM: CPU features, files, mapping, clock, parallel-for                            >>platform
   ==================================================================================================== */

#ifndef MOHAWK_NO_TRAINING
static double mhk__seconds(void) {
#ifdef MHK__GETTIMEOFDAY
  struct timeval now;
  gettimeofday(&now, NULL);
  return (double)now.tv_sec + 1e-6 * (double)now.tv_usec;
#elif defined(MHK__WINDOWS)
  LARGE_INTEGER ticks, rate;
  if (!QueryPerformanceCounter(&ticks) || !QueryPerformanceFrequency(&rate)) return 0.0;
  return (double)ticks.QuadPart / (double)rate.QuadPart;
#else
  return (double)clock() / CLOCKS_PER_SEC;
#endif
}
#endif

/* ---- text from values: the printf family without stdio and without locales ---- */

#define MHK__DIGITS 800 /* room for every decimal digit of a double */

/* All digits of a finite number above 0, exactly: x = d.ddd * 10^exponent. Returns how many. */
static int mhk__decimal(double x, char digits[MHK__DIGITS], int *exponent) {
  uint32_t w[96]; /* base 10^9, lowest first */
  int e, n = 0, i, count = 0, shift;
  uint64_t m = (uint64_t)ldexp(frexp(x, &e), 53);
  for (e -= 53; e < 0 && m % 2 == 0; e++) m /= 2;
  for (; m; m /= 1000000000u) w[n++] = (uint32_t)(m % 1000000000u);
  for (shift = e; shift != 0;) { /* times 2^e, or 5^-e for the digits of x * 10^-e */
    const int step = shift > 0 ? (shift < 29 ? shift : 29) : (shift > -12 ? -shift : 12);
    uint64_t factor = 1, carry = 0;
    for (i = 0; i < step; i++) factor *= shift > 0 ? 2u : 5u;
    for (i = 0; i < n; i++) {
      carry += factor * w[i];
      w[i] = (uint32_t)(carry % 1000000000u);
      carry /= 1000000000u;
    }
    if (carry) w[n++] = (uint32_t)carry;
    shift += shift > 0 ? -step : step;
  }
  for (i = n - 1; i >= 0; i--) {
    uint32_t place = 100000000u;
    for (; place; place /= 10)
      if (count || w[i] / place % 10) digits[count++] = (char)('0' + w[i] / place % 10);
  }
  *exponent = count - 1 + (e < 0 ? e : 0);
  return count;
}

/* Rounds to the first n digits, ties to even; with n <= 0 to nothing or a one before them. Returns how many are left. */
static int mhk__round_decimal(char *digits, int count, int n, int *exponent) {
  if (n >= count) return count;
  if (n < 0) return 0;
  int up = digits[n] > '5';
  if (digits[n] == '5') {
    for (int i = n + 1; !up && i < count; i++) up = digits[i] != '0';
    if (!up) up = n > 0 && (digits[n - 1] - '0') % 2;
  }
  for (int i = n; up && i > 0; i--) {
    if (digits[i - 1] < '9') {
      digits[i - 1]++;
      up = 0;
    } else
      digits[i - 1] = '0';
  }
  if (up) {
    memmove(digits + 1, digits, (size_t)n);
    digits[0] = '1';
    ++*exponent;
    if (n == 0) n = 1;
  }
  return n;
}

typedef struct mhk__printed { char *out; size_t room, n; } mhk__printed;

static void mhk__put_text(mhk__printed *p, const char *text, size_t n) {
  for (; n > 0; n--, p->n++)
    if (p->n + 1 < p->room) p->out[p->n] = *text++;
}
static void mhk__put_times(mhk__printed *p, char c, int n) {
  for (; n > 0; n--) mhk__put_text(p, &c, 1);
}

/* form e, f or g */
static void mhk__put_double(mhk__printed *p, double x, char form, int precision) {
  char digits[MHK__DIGITS], text[8];
  int count = 0, exponent = 0, i, strip = 0, n = 0, last;
  if (x < 0) {
    mhk__put_text(p, "-", 1);
    x = -x;
  }
  if (!(x <= DBL_MAX)) {
    mhk__put_text(p, x > 0 ? "inf" : "nan", 3);
    return;
  }
  if (precision < 0) precision = 6;
  if (x > 0) count = mhk__decimal(x, digits, &exponent);
  if (form == 'g') {
    if (precision == 0) precision = 1;
    count = mhk__round_decimal(digits, count, precision, &exponent);
    form = exponent < -4 || exponent >= precision ? 'e' : 'f';
    precision -= form == 'e' ? 1 : 1 + exponent;
    strip = 1;
  }
  count = mhk__round_decimal(digits, count, form == 'e' ? precision + 1 : exponent + 1 + precision, &exponent);
  if (count == 0) exponent = 0;
  while (strip && precision > 0 && (form == 'e' ? precision : exponent + precision) >= count) precision--; /* zeros at the end */
  while (strip && precision > 0 && digits[form == 'e' ? precision : exponent + precision] == '0') precision--;
  last = form == 'e' ? 0 : exponent; /* place of the digit before the point */
  for (i = form == 'e' || exponent > 0 ? 0 : last; i <= last + precision; i++) {
    const char c = i >= 0 && i < count ? digits[i] : '0';
    mhk__put_text(p, &c, 1);
    if (i == last && precision > 0) mhk__put_text(p, ".", 1);
  }
  if (form != 'e') return;
  text[n++] = 'e';
  text[n++] = exponent < 0 ? '-' : '+';
  if (exponent < 0) exponent = -exponent;
  if (exponent >= 100) text[n++] = (char)('0' + exponent / 100);
  text[n++] = (char)('0' + exponent / 10 % 10);
  text[n++] = (char)('0' + exponent % 10);
  mhk__put_text(p, text, (size_t)n);
}

/* vsnprintf, except that there are the conversions d i u x X c s e f g p and %, the flags - and 0, and no wide characters. Returns the length. */
static size_t mhk__vprint(char *out, size_t room, const char *format, va_list args) {
  mhk__printed p;
  p.out = out;
  p.room = room;
  p.n = 0;
  for (; *format; format++) {
    const size_t start = p.n;
    char number[24];
    int left = 0, zero = 0, width = 0, precision = -1, size = 0, negative = 0, n = 0;
    uint64_t v = 0;
    if (*format != '%') {
      mhk__put_text(&p, format, 1);
      continue;
    }
    for (format++; *format == '-' || *format == '0'; format++) {
      left |= *format == '-';
      zero |= *format == '0';
    }
    if (*format == '*') {
      width = va_arg(args, int);
      format++;
    } else
      for (; *format >= '0' && *format <= '9'; format++) width = width % 10000 * 10 + (*format - '0'); /* stays small */
    if (*format == '.') {
      precision = 0;
      if (*++format == '*') {
        precision = va_arg(args, int);
        format++;
      } else
        for (; *format >= '0' && *format <= '9'; format++) precision = precision % 10000 * 10 + (*format - '0');
    }
    for (; *format == 'l' || *format == 'z' || *format == 't' || *format == 'j' || *format == 'h'; format++)
      size = *format == 'l' ? size + 1 : *format == 'h' ? 0 : *format == 'j' ? 2 : 3;
    switch (*format) {
      case 'd':
      case 'i': {
        const int64_t x = size == 0   ? (int64_t)va_arg(args, int)
                          : size == 1 ? (int64_t)va_arg(args, long)
                          : size == 2 ? (int64_t)va_arg(args, long long)
                                      : (int64_t)va_arg(args, ptrdiff_t);
        negative = x < 0;
        v = negative ? (uint64_t)0 - (uint64_t)x : (uint64_t)x;
        break;
      }
      case 'u':
      case 'x':
      case 'X':
        v = size == 0   ? (uint64_t)va_arg(args, unsigned)
            : size == 1 ? (uint64_t)va_arg(args, unsigned long)
            : size == 2 ? (uint64_t)va_arg(args, unsigned long long)
                        : (uint64_t)va_arg(args, size_t);
        break;
      case 'p': v = (uint64_t)(uintptr_t)va_arg(args, void *); break;
      case 'c': number[0] = (char)va_arg(args, int); break;
      case 's': {
        const char *text = va_arg(args, const char *);
        size_t length = 0;
        if (!text) text = "(null)";
        while ((precision < 0 || length < (size_t)precision) && text[length]) length++;
        if (!left) mhk__put_times(&p, ' ', width - (int)length);
        mhk__put_text(&p, text, length);
        break;
      }
      case 'e':
      case 'f':
      case 'g': {
        const double x = va_arg(args, double);
        mhk__printed length;
        memset(&length, 0, sizeof length); /* only counts */
        if (width > 0 && !left) mhk__put_double(&length, x, *format, precision);
        if (length.n > 0) mhk__put_times(&p, ' ', width - (int)length.n);
        mhk__put_double(&p, x, *format, precision);
        break;
      }
      case 0: format--; break;
      default: mhk__put_text(&p, format, 1); break; /* %% and what is not known */
    }
    if (*format && strchr("diuxXpc", *format)) {
      const unsigned base = *format == 'd' || *format == 'i' || *format == 'u' ? 10 : 16;
      if (*format == 'c')
        n = 1;
      else {
        do number[23 - n++] = (*format == 'X' ? "0123456789ABCDEF" : "0123456789abcdef")[v % base];
        while ((v /= base) != 0);
        memmove(number, number + 24 - n, (size_t)n);
      }
      if (!left && !zero) mhk__put_times(&p, ' ', width - n - negative);
      if (negative) mhk__put_text(&p, "-", 1);
      if (!left && zero) mhk__put_times(&p, '0', width - n - negative);
      mhk__put_text(&p, number, (size_t)n);
    }
    if (left) mhk__put_times(&p, ' ', width - (int)(p.n - start));
  }
  if (room > 0) out[p.n < room ? p.n : room - 1] = 0;
  return p.n;
}

#if defined(__GNUC__) || defined(__clang__)
__attribute__((format(printf, 3, 4)))
#endif
static size_t mhk__print(char *out, size_t room, const char *format, ...) {
  va_list args;
  va_start(args, format);
  const size_t n = mhk__vprint(out, room, format, args);
  va_end(args);
  return n;
}

/* the end of the folder in a path, its slash included */
static size_t mhk__folder_length(const char *path) {
  size_t n = strlen(path);
#ifdef MHK__WINDOWS
  while (n > 0 && !strchr("/\\:", path[n - 1])) n--;
#else
  while (n > 0 && path[n - 1] != '/') n--;
#endif
  return n;
}

static int mhk__little_endian(void) {
  const uint16_t one = 1;
  unsigned char first;
  memcpy(&first, &one, 1);
  return first == 1;
}

#ifndef MOHAWK_NO_STDIO
#if defined(__STRICT_ANSI__) && defined(MHK__POSIX)
#ifdef __cplusplus
extern "C"
#endif
    int
    fsync(int); /* strict C99 hides this POSIX declaration */
#endif

#ifdef MHK__WINDOWS
/* Paths are UTF-8 here and UTF-16 there. 0 and a reason in errno when this one is neither. */
#define MHK__WIDE_PATH 1200
static int mhk__wide(const char *path, wchar_t out[MHK__WIDE_PATH]) {
  if (MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, out, MHK__WIDE_PATH) > 0) return 1;
  errno = ENOENT;
  return 0;
}

/* the last error of the system as errno has it; never 0 */
static int mhk__windows_errno(void) {
  switch (GetLastError()) {
    case ERROR_FILE_NOT_FOUND:
    case ERROR_PATH_NOT_FOUND:
    case ERROR_INVALID_NAME: return ENOENT;
    case ERROR_ACCESS_DENIED:
    case ERROR_SHARING_VIOLATION:
    case ERROR_LOCK_VIOLATION: return EACCES;
    case ERROR_NOT_ENOUGH_MEMORY:
    case ERROR_OUTOFMEMORY: return ENOMEM;
    case ERROR_HANDLE_DISK_FULL:
    case ERROR_DISK_FULL: return ENOSPC;
    case ERROR_ALREADY_EXISTS:
    case ERROR_FILE_EXISTS: return EEXIST;
    case ERROR_WRITE_PROTECT: return EROFS;
    default: return EIO;
  }
}

static DWORD mhk__attributes(const char *path) {
  wchar_t wide[MHK__WIDE_PATH];
  return mhk__wide(path, wide) ? GetFileAttributesW(wide) : INVALID_FILE_ATTRIBUTES;
}

/* Puts a file in the place of another, 0 or errno. One that a program has mapped cannot be replaced there, but it can be moved: it then stays
   as path.old until nobody maps it and the next one is written. */
static int mhk__replace(const char *from, const char *to) {
  wchar_t a[MHK__WIDE_PATH], b[MHK__WIDE_PATH], old[MHK__WIDE_PATH + 4];
  if (!mhk__wide(from, a) || !mhk__wide(to, b)) return errno;
  wcscpy(old, b);
  wcscat(old, L".old");
  if (!MoveFileExW(a, b, MOVEFILE_REPLACE_EXISTING)) {
    if (!MoveFileExW(b, old, MOVEFILE_REPLACE_EXISTING)) return mhk__windows_errno();
    if (!MoveFileExW(a, b, 0)) {
      const int error = mhk__windows_errno();
      MoveFileExW(old, b, 0);
      return error;
    }
  }
  DeleteFileW(old);
  return 0;
}
#endif
#endif /* MOHAWK_NO_STDIO */

/* A file's bytes, mapped where the system can, read into memory elsewhere. */
typedef struct mhk__bytes {
  const unsigned char *data;
  size_t size;
  void *owned; /* what to unmap or free; NULL: nothing */
} mhk__bytes;

#ifndef MOHAWK_NO_STDIO
#define MHK__NOT_REGULAR (-1) /* beside the errors of errno: a pipe, a device, a socket */

static const char *mhk__file_reason(int error) {
  return error == MHK__NOT_REGULAR ? "it is not a regular file" : strerror(error);
}

/* A regular file open for reading; opening anything else fails at once and waits for nobody. */
typedef struct mhk__input {
#ifdef MHK__POSIX
  int file;
#elif defined(MHK__WINDOWS)
  HANDLE file;
#else
  FILE *file;
#endif
  size_t size;
} mhk__input;

static void mhk__input_close(mhk__input *in) {
#ifdef MHK__POSIX
  close(in->file);
#elif defined(MHK__WINDOWS)
  CloseHandle(in->file);
#else
  fclose(in->file);
#endif
}

/* 0 or what is wrong */
static int mhk__input_open(const char *path, mhk__input *in) {
  int error = 0;
  memset(in, 0, sizeof *in);
  errno = 0;
#ifdef MHK__POSIX
  {
    struct stat info;
    in->file = open(path, O_RDONLY | O_NONBLOCK);
    if (in->file < 0) return errno == ENXIO ? MHK__NOT_REGULAR : errno ? errno : EIO; /* ENXIO: a socket */
    if (fstat(in->file, &info) != 0)
      error = errno ? errno : EIO;
    else if (!S_ISREG(info.st_mode))
      error = S_ISDIR(info.st_mode) ? EISDIR : MHK__NOT_REGULAR;
    else if ((uintmax_t)info.st_size > (uintmax_t)PTRDIFF_MAX)
      error = EFBIG;
    else
      in->size = (size_t)info.st_size;
  }
#elif defined(MHK__WINDOWS)
  {
    wchar_t wide[MHK__WIDE_PATH];
    LARGE_INTEGER size;
    if (!mhk__wide(path, wide)) return errno;
    in->file = CreateFileW(wide, GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE, NULL,
                           OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, NULL);
    if (in->file == INVALID_HANDLE_VALUE) return mhk__windows_errno();
    if (GetFileType(in->file) != FILE_TYPE_DISK)
      error = MHK__NOT_REGULAR;
    else if (!GetFileSizeEx(in->file, &size))
      error = mhk__windows_errno();
    else if ((uint64_t)size.QuadPart > (uint64_t)PTRDIFF_MAX)
      error = EFBIG;
    else
      in->size = (size_t)size.QuadPart;
  }
#else
  {
    long size = -1;
    in->file = fopen(path, "rb");
    if (!in->file) return errno ? errno : EIO;
    if (fseek(in->file, 0, SEEK_END) != 0 || (size = ftell(in->file)) < 0 || fseek(in->file, 0, SEEK_SET) != 0)
      error = EIO;
    else in->size = (size_t)size;
  }
#endif
  if (error) mhk__input_close(in);
  return error;
}

/* The whole file into out, which has room for its size; 0 or errno, EIO when the file has become
   shorter. */
static int mhk__input_read(mhk__input *in, unsigned char *out) {
  size_t at = 0;
  while (at < in->size) {
#ifdef MHK__WINDOWS
    DWORD n = 0;
    if (!ReadFile(in->file, out + at, in->size - at < (1u << 30) ? (DWORD)(in->size - at) : 1u << 30, &n, NULL))
      return mhk__windows_errno();
    if (n == 0) return EIO;
#elif defined(MHK__POSIX)
    const ssize_t n = read(in->file, out + at, in->size - at < ((size_t)1 << 30) ? in->size - at : (size_t)1 << 30);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return n < 0 && errno ? errno : EIO;
#else
    const size_t n = fread(out + at, 1, in->size - at, in->file);
    if (n == 0) return EIO;
#endif
    at += (size_t)n;
  }
  return 0;
}

/* 0 or what is wrong. Empty files have data "" and size 0. */
static int mhk__bytes_open(const char *path, mhk__bytes *out) {
  mhk__input in;
  memset(out, 0, sizeof *out);
  int error = mhk__input_open(path, &in);
  if (error) return error;
  out->data = (const unsigned char *)"";
  if (in.size > 0) {
#ifdef MHK__POSIX
    void *map = mmap(NULL, in.size, PROT_READ, MAP_PRIVATE, in.file, 0);
    if (map == MAP_FAILED)
      error = errno ? errno : ENOMEM;
    else
      out->owned = map;
#elif defined(MHK__WINDOWS)
    HANDLE map = CreateFileMappingW(in.file, NULL, PAGE_READONLY, 0, 0, NULL);
    if (map) out->owned = MapViewOfFile(map, FILE_MAP_READ, 0, 0, 0);
    if (!out->owned) error = mhk__windows_errno();
    if (map) CloseHandle(map); /* the view keeps what it needs */
#else
    out->owned = MOHAWK_MALLOC(in.size);
    error = out->owned ? mhk__input_read(&in, (unsigned char *)out->owned) : ENOMEM;
    if (error && out->owned) {
      MOHAWK_FREE(out->owned);
      out->owned = NULL;
    }
#endif
  }
  mhk__input_close(&in);
  if (out->owned) {
    out->data = (const unsigned char *)out->owned;
    out->size = in.size;
  }
  return error;
}

static void mhk__bytes_close(mhk__bytes *b) {
  if (b->owned) {
#ifdef MHK__POSIX
    munmap(b->owned, b->size);
#elif defined(MHK__WINDOWS)
    UnmapViewOfFile(b->owned);
#else
    MOHAWK_FREE(b->owned);
#endif
  }
  memset(b, 0, sizeof *b);
}

/* Files being written, and locks: what the systems call them. A file is made anew, never opened where something stands, and is locked until it is closed:
   one that can be locked was left by a process that was killed. Where locks are not to be had, files that were left stay. All functions return 0 or errno. */
#ifdef MHK__POSIX
typedef int mhk__handle;
#define MHK__NO_HANDLE (-1)
#ifdef O_NOFOLLOW
#define MHK__NO_FOLLOW O_NOFOLLOW
#elif defined(__O_NOFOLLOW)
#define MHK__NO_FOLLOW __O_NOFOLLOW /* strict C99 hides the other */
#else
#define MHK__NO_FOLLOW 0
#endif

/* 1: the handle holds the lock of the file that still stands at path; 2: it holds it, and another file or none stands there now; 0: somebody else holds it;
   -1: this file system has no locks */
static int mhk__lock_handle(int fd, const char *path, int wait) {
  struct stat own, found;
#ifdef LOCK_EX
  while (flock(fd, wait ? LOCK_EX : LOCK_EX | LOCK_NB) != 0)
    if (errno != EINTR) return errno == EWOULDBLOCK ? 0 : -1;
#else
  (void)wait;
  return -1;
#endif
  return fstat(fd, &own) == 0 && stat(path, &found) == 0 && own.st_dev == found.st_dev && own.st_ino == found.st_ino ? 1 : 2;
}

static int mhk__file_new_at(const char *path, unsigned mode, mhk__handle *out) {
  int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, (mode_t)mode);
  if (fd < 0) return errno ? errno : EIO;
  fcntl(fd, F_SETFD, FD_CLOEXEC);
  *out = fd;
  switch (mhk__lock_handle(fd, path, 0)) {
    case 1:
    case -1: return 0;
  }
  close(fd); /* taken for one that was left, in the moment before it was locked */
  *out = MHK__NO_HANDLE;
  return EEXIST;
}

static void mhk__remove_left(const char *path) {
  struct stat info;
  int fd = open(path, O_RDONLY | O_NONBLOCK | MHK__NO_FOLLOW);
  if (fd < 0) return;
  if (fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && mhk__lock_handle(fd, path, 0) == 1) unlink(path);
  close(fd);
}

static int mhk__handle_write(mhk__handle fd, const void *data, size_t n) {
  const char *p = (const char *)data;
  while (n > 0) {
    const ssize_t done = write(fd, p, n < 1u << 30 ? n : 1u << 30);
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) return done < 0 && errno ? errno : EIO;
    p += done;
    n -= (size_t)done;
  }
  return 0;
}

static int mhk__handle_flush(mhk__handle fd) { return fsync(fd) == 0 ? 0 : errno ? errno : EIO; }
static int mhk__handle_close(mhk__handle fd) { return close(fd) == 0 || errno == EINTR ? 0 : errno ? errno : EIO; }
static int mhk__replace(const char *from, const char *to) { return rename(from, to) == 0 ? 0 : errno ? errno : EIO; }
static void mhk__remove(const char *path) { unlink(path); }
#elif defined(MHK__WINDOWS)
typedef HANDLE mhk__handle;
#define MHK__NO_HANDLE INVALID_HANDLE_VALUE

/* shared for reading and renaming only: the system's own lock */
static int mhk__file_new_at(const char *path, unsigned mode, mhk__handle *out) {
  wchar_t wide[MHK__WIDE_PATH];
  (void)mode;
  if (!mhk__wide(path, wide)) return errno;
  *out = CreateFileW(wide, GENERIC_WRITE, FILE_SHARE_READ | FILE_SHARE_DELETE, NULL, CREATE_NEW, FILE_ATTRIBUTE_NORMAL, NULL);
  return *out == INVALID_HANDLE_VALUE ? mhk__windows_errno() : 0;
}

static void mhk__remove_left(const char *path) {
  wchar_t wide[MHK__WIDE_PATH];
  if (!mhk__wide(path, wide)) return;
  HANDLE file = CreateFileW(wide, DELETE, 0, NULL, OPEN_EXISTING, FILE_FLAG_DELETE_ON_CLOSE | FILE_FLAG_OPEN_REPARSE_POINT, NULL); /* not while it is open */
  if (file != INVALID_HANDLE_VALUE) CloseHandle(file);
}

static int mhk__handle_write(mhk__handle file, const void *data, size_t n) {
  const char *p = (const char *)data;
  while (n > 0) {
    DWORD done = 0;
    if (!WriteFile(file, p, (DWORD)(n < 1u << 30 ? n : 1u << 30), &done, NULL)) return mhk__windows_errno();
    if (done == 0) return EIO;
    p += done;
    n -= done;
  }
  return 0;
}

static int mhk__handle_flush(mhk__handle file) { return FlushFileBuffers(file) ? 0 : mhk__windows_errno(); }
static int mhk__handle_close(mhk__handle file) { return CloseHandle(file) ? 0 : mhk__windows_errno(); }
static void mhk__remove(const char *path) {
  wchar_t wide[MHK__WIDE_PATH];
  if (mhk__wide(path, wide)) DeleteFileW(wide);
}
#else
typedef FILE *mhk__handle;
#define MHK__NO_HANDLE NULL
static int mhk__file_new_at(const char *path, unsigned mode, mhk__handle *out) {
  (void)mode;
  *out = fopen(path, "wb");
  return *out ? 0 : errno ? errno : EIO;
}
static void mhk__remove_left(const char *path) { (void)path; }
static int mhk__handle_write(mhk__handle f, const void *data, size_t n) { return fwrite(data, 1, n, f) == n ? 0 : errno ? errno : EIO; }
static int mhk__handle_flush(mhk__handle f) { return fflush(f) == 0 ? 0 : errno ? errno : EIO; }
static int mhk__handle_close(mhk__handle f) { return fclose(f) == 0 ? 0 : errno ? errno : EIO; }
static int mhk__replace(const char *from, const char *to) { return rename(from, to) == 0 ? 0 : errno ? errno : EIO; }
static void mhk__remove(const char *path) { remove(path); }
#endif

/* So that a renamed file is found under its name after a power cut. Not every file system can: no error. */
static void mhk__flush_folder(const char *path) {
#ifdef MHK__POSIX
  char folder[1024];
  size_t n = mhk__folder_length(path);
  if (n >= sizeof folder) return;
  memcpy(folder, path, n);
  if (n == 0) folder[n++] = '.';
  folder[n] = 0;
  const int fd = open(folder, O_RDONLY);
  if (fd < 0) return;
  fsync(fd);
  close(fd);
#else
  (void)path;
#endif
}

#define MHK__WRITERS 9 /* of one path at a time */

static int mhk__temporary_path(char out[1024], const char *path, int k) {
  const size_t n = strlen(path);
  if (n + 6 > 1024) return 0;
  strcpy(out, path);
  strcpy(out + n, ".new0");
  out[n + 4] = (char)(k > 1 ? '0' + k : 0);
  return 1;
}

/* takes away what killed writers of path left */
static void mhk__remove_temporaries(const char *path) {
  char temporary[1024];
  for (int k = 1; k <= MHK__WRITERS; k++)
    if (mhk__temporary_path(temporary, path, k)) mhk__remove_left(temporary);
}

#ifndef MOHAWK_NO_TRAINING
/* XXH64 with seed 0 (Yann Collet's xxHash), of bytes as they come: any change within eight aligned bytes shows, any other but once in 2^64. The same on
   every machine. */
typedef struct mhk__xxh64 {
  uint64_t lane[4], total;
  unsigned char held[32];
} mhk__xxh64;

#define MHK__XXH_1 11400714785074694791u
#define MHK__XXH_2 14029467366897019727u
#define MHK__XXH_3 1609587929392839161u
#define MHK__XXH_4 9650029242287828579u
#define MHK__XXH_5 2870177450012600261u

static uint64_t mhk__turn_left(uint64_t x, int bits) { return x << bits | x >> (64 - bits); }

static uint64_t mhk__xxh64_lane(uint64_t lane, const unsigned char *p) {
  uint64_t x = 0;
  if (mhk__little_endian())
    memcpy(&x, p, 8);
  else
    for (int i = 7; i >= 0; i--) x = x << 8 | p[i];
  return mhk__turn_left(lane + x * MHK__XXH_2, 31) * MHK__XXH_1;
}

static void mhk__xxh64_start(mhk__xxh64 *h) {
  memset(h, 0, sizeof *h);
  h->lane[0] = MHK__XXH_1 + MHK__XXH_2;
  h->lane[1] = MHK__XXH_2;
  h->lane[3] = 0 - MHK__XXH_1;
}

static void mhk__xxh64_put(mhk__xxh64 *h, const void *data, size_t n) {
  const unsigned char *p = (const unsigned char *)data;
  const size_t held = (size_t)(h->total % 32);
  uint64_t lane[4];
  h->total += n;
  if (held) {
    const size_t more = n < 32 - held ? n : 32 - held;
    memcpy(h->held + held, p, more);
    if (held + more < 32) return;
    for (int i = 0; i < 4; i++) h->lane[i] = mhk__xxh64_lane(h->lane[i], h->held + 8 * i);
    p += more;
    n -= more;
  }
  memcpy(lane, h->lane, sizeof lane); /* p could point there, for all the compiler knows */
  for (; n >= 32; n -= 32, p += 32)
    for (int i = 0; i < 4; i++) lane[i] = mhk__xxh64_lane(lane[i], p + 8 * i);
  memcpy(h->lane, lane, sizeof lane);
  if (n) memcpy(h->held, p, n);
}

static uint64_t mhk__xxh64_end(const mhk__xxh64 *h) {
  static const int turns[4] = {1, 7, 12, 18};
  const unsigned char *p = h->held, *end = p + h->total % 32;
  uint64_t x = h->total < 32 ? MHK__XXH_5 : 0, word;
  for (int i = 0; i < 4 && h->total >= 32; i++) x += mhk__turn_left(h->lane[i], turns[i]);
  for (int i = 0; i < 4 && h->total >= 32; i++) x = (x ^ mhk__turn_left(h->lane[i] * MHK__XXH_2, 31) * MHK__XXH_1) * MHK__XXH_1 + MHK__XXH_4;
  x += h->total;
  for (; end - p >= 8; p += 8) x = mhk__turn_left(x ^ mhk__xxh64_lane(0, p), 27) * MHK__XXH_1 + MHK__XXH_4;
  for (; end - p >= 4; p += 4) {
    word = (uint64_t)p[0] | (uint64_t)p[1] << 8 | (uint64_t)p[2] << 16 | (uint64_t)p[3] << 24;
    x = mhk__turn_left(x ^ word * MHK__XXH_1, 23) * MHK__XXH_2 + MHK__XXH_3;
  }
  for (; p < end; p++) x = mhk__turn_left(x ^ *p * MHK__XXH_5, 11) * MHK__XXH_1;
  x = (x ^ x >> 33) * MHK__XXH_2;
  x = (x ^ x >> 29) * MHK__XXH_3;
  return x ^ x >> 32;
}
#endif

/* A file being written, under a temporary name (path.new, path.new2...), flushed to the disk and renamed at the end, so that the old content stays until
   the new one is complete. All calls keep the first errno in error. */
typedef struct mhk__output {
  mhk__handle file;
  int error, busy, flushed; /* busy: all temporary names are taken */
  size_t held;
#ifndef MOHAWK_NO_TRAINING
  int summing;
  mhk__xxh64 sum; /* of all bytes so far, while summing */
#endif
  const char *path;
  char temporary[1024];
  unsigned char block[4096];
} mhk__output;

static void mhk__output_clear(mhk__output *o, const char *path) {
  o->file = MHK__NO_HANDLE;
  o->error = o->busy = o->flushed = 0;
  o->held = 0;
#ifndef MOHAWK_NO_TRAINING
  o->summing = 0;
#endif
  o->path = path;
}

static int mhk__output_open(mhk__output *o, const char *path) {
  unsigned mode = 6 * 64 + 6 * 8 + 6; /* rw-rw-rw-: C2y wants octal numbers spelled as no older C can */
#ifdef MHK__POSIX
  struct stat info;
#endif
  mhk__output_clear(o, path);
  o->error = EEXIST;
  errno = 0;
#ifdef MHK__POSIX
  if (stat(path, &info) == 0) {
    if (!S_ISREG(info.st_mode)) return o->error = S_ISDIR(info.st_mode) ? EISDIR : MHK__NOT_REGULAR;
    mode = (unsigned)(info.st_mode & (S_IRWXU | S_IRWXG | S_IRWXO));
  }
#endif
  mhk__remove_temporaries(path);
  for (int k = 1; k <= MHK__WRITERS && o->error == EEXIST; k++)
    o->error = mhk__temporary_path(o->temporary, path, k) ? mhk__file_new_at(o->temporary, mode, &o->file) : ENAMETOOLONG;
  o->busy = o->error == EEXIST;
  return o->error;
}

static void mhk__output_put(mhk__output *o, const void *data, size_t bytes) {
  errno = 0;
  if (!o->error && bytes) o->error = mhk__handle_write(o->file, data, bytes);
}

static void mhk__output_write(mhk__output *o, const void *data, size_t bytes) {
  if (bytes == 0) return;
#ifndef MOHAWK_NO_TRAINING
  if (o->summing) mhk__xxh64_put(&o->sum, data, bytes);
#endif
  if (bytes > sizeof o->block - o->held) {
    mhk__output_put(o, o->block, o->held);
    o->held = 0;
  }
  if (bytes >= sizeof o->block) {
    mhk__output_put(o, data, bytes);
    return;
  }
  memcpy(o->block + o->held, data, bytes);
  o->held += bytes;
}

/* all of it on the disk, still under the temporary name */
static int mhk__output_flush(mhk__output *o) {
  if (o->file == MHK__NO_HANDLE || o->flushed) return o->error;
  mhk__output_put(o, o->block, o->held);
  o->held = 0;
  errno = 0;
  if (!o->error) o->error = mhk__handle_flush(o->file);
  o->flushed = 1;
  return o->error;
}

/* Renames it, or throws it away (keep 0). The lock goes last: nobody takes the file for one that was left. */
static int mhk__output_close(mhk__output *o, int keep) {
  if (o->file == MHK__NO_HANDLE) return o->error;
  if (keep) mhk__output_flush(o);
#if !defined(MHK__POSIX) && !defined(MHK__WINDOWS)
  if (mhk__handle_close(o->file) && !o->error) o->error = EIO;
  o->file = MHK__NO_HANDLE;
#endif
  errno = 0;
  if (keep && !o->error) o->error = mhk__replace(o->temporary, o->path);
  if (!keep || o->error) mhk__remove(o->temporary);
  if (o->file != MHK__NO_HANDLE) mhk__handle_close(o->file);
  o->file = MHK__NO_HANDLE;
  return o->error;
}

static const char *mhk__output_why(const mhk__output *o) {
  if (o->busy) return "so many others are writing it, or were killed where files cannot be locked: remove the files beside it that end in .new and a number";
  return mhk__file_reason(o->error);
}

/* A lock that dies with the process: a file that says who holds it, locked while it is open. Where there are no locks it locks nobody out. */
typedef struct mhk__lock {
  mhk__handle file;
  char path[1024];
} mhk__lock;

/* 0, EBUSY when somebody else has it (a trainer of this process too), or errno. wait: until it is free */
static int mhk__lock_take(mhk__lock *l, const char *path, int wait) {
#ifdef MHK__POSIX
  int fd, got = 2;
  struct stat info;
  struct utsname system;
  char who[128];
  l->file = MHK__NO_HANDLE;
  if (strlen(path) >= sizeof l->path) return ENAMETOOLONG;
  while (got == 2) { /* 2: it was given back, and its file removed, while this one was being opened */
    fd = open(path, O_RDWR | O_CREAT | MHK__NO_FOLLOW, S_IRUSR | S_IWUSR | S_IRGRP | S_IWGRP | S_IROTH | S_IWOTH);
    if (fd < 0) return errno ? errno : EIO;
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    got = fstat(fd, &info) == 0 && S_ISREG(info.st_mode) ? mhk__lock_handle(fd, path, wait) : -2;
    if (got == 2 || got == 0 || got == -2) close(fd);
  }
  if (got == 0 || got == -2) return got ? MHK__NOT_REGULAR : EBUSY;
  memset(who, ' ', sizeof who);
  const size_t n = mhk__print(who, sizeof who, "process %ld on %.64s", (long)getpid(), uname(&system) >= 0 ? system.nodename : "this machine");
  who[n] = ' ';
  who[sizeof who - 1] = '\n';
  (void)mhk__handle_write(fd, who, sizeof who); /* the name is a help; the lock is there without it */
  l->file = fd;
  strcpy(l->path, path);
#elif defined(MHK__WINDOWS)
  wchar_t wide[MHK__WIDE_PATH];
  char who[64];
  l->file = MHK__NO_HANDLE;
  if (!mhk__wide(path, wide)) return errno;
  for (;;) {
    l->file = CreateFileW(wide, GENERIC_READ | GENERIC_WRITE | DELETE, FILE_SHARE_READ, NULL, OPEN_ALWAYS, FILE_FLAG_DELETE_ON_CLOSE, NULL);
    if (l->file != MHK__NO_HANDLE) break;
    if (GetLastError() != ERROR_SHARING_VIOLATION) return mhk__windows_errno();
    if (!wait) return EBUSY;
    Sleep(5);
  }
  mhk__print(who, sizeof who, "process %ld        \n", (long)GetCurrentProcessId());
  mhk__handle_write(l->file, who, strlen(who));
#else
  (void)path;
  (void)wait;
  l->file = MHK__NO_HANDLE;
#endif
  return 0;
}

static void mhk__lock_give(mhk__lock *l) {
  if (l->file == MHK__NO_HANDLE) return;
#ifdef MHK__POSIX
  unlink(l->path);
#endif
  mhk__handle_close(l->file);
  l->file = MHK__NO_HANDLE;
}

#ifndef MOHAWK_NO_TRAINING
/* The file at path gets another name, before a new one takes this one. Where there are hard links there is a file at path all the while. */
static void mhk__keep_as(const char *path, const char *other) {
#ifdef MHK__POSIX
  unlink(other);
  if (link(path, other) == 0) return;
#endif
  mhk__replace(path, other);
}
#endif

static int mhk__is_folder(const char *path) {
#ifdef MHK__POSIX
  struct stat info;
  return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
#elif defined(MHK__WINDOWS)
  const DWORD found = mhk__attributes(path);
  return found != INVALID_FILE_ATTRIBUTES && (found & FILE_ATTRIBUTE_DIRECTORY);
#else
  FILE *f = fopen(path, "rb");
  if (f) fclose(f);
  return !f && strrchr(path, '.') == NULL;
#endif
}

static int mhk__is_file(const char *path) {
#ifdef MHK__POSIX
  struct stat info;
  return stat(path, &info) == 0 && S_ISREG(info.st_mode);
#elif defined(MHK__WINDOWS)
  const DWORD found = mhk__attributes(path);
  return found != INVALID_FILE_ATTRIBUTES && !(found & FILE_ATTRIBUTE_DIRECTORY);
#else
  FILE *f = fopen(path, "rb");
  if (f) fclose(f);
  return f != NULL;
#endif
}

/* 0 when the folder is there afterwards, else errno. The parent must exist. */
static int mhk__make_folder(const char *path) {
  if (mhk__is_folder(path)) return 0;
  errno = 0;
#ifdef MHK__POSIX
  if (mkdir(path, S_IRWXU | S_IRWXG | S_IRWXO) == 0) return 0;
#elif defined(MHK__WINDOWS)
  {
    wchar_t wide[MHK__WIDE_PATH];
    if (mhk__wide(path, wide) && CreateDirectoryW(wide, NULL)) return 0;
    errno = mhk__windows_errno();
  }
#endif
  return mhk__is_folder(path) ? 0 : errno ? errno : EIO;
}

/* dir/name into out; 0 when it does not fit */
static int mhk__join_path(char *out, size_t capacity, const char *dir, const char *name) {
  size_t n = strlen(dir), k = strlen(name);
  int slash = n > 0 && mhk__folder_length(dir) != n;
  if (n + k + 2 > capacity) return 0;
  memcpy(out, dir, n);
  if (slash) out[n++] = '/';
  memcpy(out + n, name, k + 1);
  return 1;
}
#else
static void mhk__bytes_close(mhk__bytes *b) { memset(b, 0, sizeof *b); }
#endif

static const char *mhk__environment(const char *name) {
#ifndef MOHAWK_NO_STDIO
  return getenv(name);
#else
  (void)name;
  return NULL;
#endif
}

/* What processor and system offer. x86: CPUID and the register state that the system saves (Intel SDM vol. 1, 13.2 and 15.2). */
#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
#define MHK__X86
static void mhk__cpuid(unsigned leaf, unsigned sub, unsigned r[4]) {
  __asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(sub));
}
#endif

static mhk_isa mhk__cpu_best(void) {
#ifdef MHK__X86
  unsigned r[4], low, high;
  mhk__cpuid(0, 0, r);
  if (r[0] >= 7) {
    mhk__cpuid(1, 0, r);
    if ((r[2] & (1u << 27)) && (r[2] & (1u << 28)) && (r[2] & (1u << 12)) && (r[2] & (1u << 29))) { /* OSXSAVE, AVX, FMA, F16C */
      __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
      (void)high;
      mhk__cpuid(7, 0, r);
      if ((low & 0x6u) == 0x6u && (r[1] & (1u << 5))) { /* AVX2 */
        const unsigned need = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31); /* F, DQ, BW, VL */
        if ((low & 0xE6u) == 0xE6u && (r[1] & need) == need) return MHK_ISA_AVX512;
        return MHK_ISA_AVX2;
      }
    }
  }
  return MHK_ISA_SCALAR;
#elif defined(__AARCH64EL__)
  return MHK_ISA_NEON;
#elif defined(__wasm_simd128__)
  return MHK_ISA_WASM;
#else
  return MHK_ISA_SCALAR;
#endif
}

/* Units beyond the instruction set: AVX512-BF16 (CPUID 7.1, EAX bit 5), AMX with bfloat16 (7.0, EDX bits 24 and 22; tile state in XCR0 bits 17 and 18). */
enum { mhk__cpu_avx512_bf16 = 1, mhk__cpu_amx_bf16 = 2, mhk__cpu_amd = 4 };
#ifndef MOHAWK_NO_TRAINING
static int mhk__cpu_units(void) {
  int units = 0;
#if defined(MHK__X86) && defined(__x86_64__)
  unsigned r[4], low, high;
  if (mhk__cpu_best() != MHK_ISA_AVX512) return 0;
  mhk__cpuid(0, 0, r);
  if ((r[1] == 0x68747541u && r[3] == 0x69746E65u && r[2] == 0x444D4163u) || /* AuthenticAMD */
      (r[1] == 0x6F677948u && r[3] == 0x6E65476Eu && r[2] == 0x656E6975u))   /* HygonGenuine */
    units |= mhk__cpu_amd;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  (void)high;
  mhk__cpuid(7, 0, r);
  const unsigned subleaves = r[0];
  const unsigned amx = r[3];
  if (subleaves >= 1) {
    mhk__cpuid(7, 1, r);
    if (r[0] & (1u << 5)) units |= mhk__cpu_avx512_bf16;
  }
  if ((amx & (1u << 22)) && (amx & (1u << 24)) && (low & 0x60000u) == 0x60000u) units |= mhk__cpu_amx_bf16;
#endif
  return units;
}
#endif

/* Random numbers: xoshiro256++ (Blackman & Vigna 2019, public domain), seeded by splitmix64. The state is a value: saved and restored with checkpoints. */
typedef struct mhk__rng { uint64_t s[4]; } mhk__rng;

static void mhk__rng_seed(mhk__rng *r, uint64_t seed) {
  for (int i = 0; i < 4; i++) {
    uint64_t z = (seed += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    r->s[i] = z ^ (z >> 31);
  }
}

static uint64_t mhk__rng_next(mhk__rng *r) {
  uint64_t *s = r->s, sum = s[0] + s[3], out = ((sum << 23) | (sum >> 41)) + s[0], t = s[1] << 17;
  s[2] ^= s[0];
  s[3] ^= s[1];
  s[1] ^= s[2];
  s[0] ^= s[3];
  s[2] ^= t;
  s[3] = (s[3] << 45) | (s[3] >> 19);
  return out;
}

/* uniform in [0,1) */
static double mhk__rng_uniform(mhk__rng *r) { return (double)(mhk__rng_next(r) >> 11) * (1.0 / 9007199254740992.0); }

#ifndef MOHAWK_NO_TRAINING
/* uniform in [0,n), n > 0, without bias */
static uint64_t mhk__rng_below(mhk__rng *r, uint64_t n) {
  uint64_t limit = UINT64_MAX - UINT64_MAX % n, x;
  do x = mhk__rng_next(r);
  while (x >= limit);
  return x % n;
}

/* standard normal (Box-Muller) */
static double mhk__rng_normal(mhk__rng *r) {
  double u = 1.0 - mhk__rng_uniform(r), v = mhk__rng_uniform(r);
  return sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v);
}
#endif

/* the n low bytes of v, little-endian, out and in */
static void mhk__put_bytes(unsigned char *to, uint64_t v, int n) {
  for (; n > 0; n--, v >>= 8) *to++ = (unsigned char)(v & 255u);
}
static uint64_t mhk__get_bytes(const unsigned char *from, int n) {
  uint64_t v = 0;
  while (n > 0) v = v << 8 | from[--n];
  return v;
}

/* FNV-1a, 64 bits: tells runs and models apart, no protection against intent */
static uint64_t mhk__hash(uint64_t h, const void *data, size_t n) {
  const unsigned char *p = (const unsigned char *)data;
  for (size_t i = 0; i < n; i++) h = (h ^ p[i]) * 1099511628211u;
  return h;
}
#define MHK__HASH_START 14695981039346656037u
#endif /* MOHAWK_IMPLEMENTATION */
#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
/* ====================================================================================================
   MEMORY: arenas, objects, contexts, errors                                                >>memory
   ==================================================================================================== */

#define MHK__ALIGN 64 /* a cache line, and the widest vector */

typedef struct mhk__chunk {
  struct mhk__chunk *next;
  size_t bytes;  /* of the whole block, this header included */
  size_t used;   /* from the first aligned byte on */
  size_t room;
} mhk__chunk;

/* How an arena gets its memory: blocks as they are needed; one block of somebody else's and never more; none at all: what would be used is counted
   in that block's header, what it hands out must not be touched. */
typedef enum mhk__arena_kind { MHK__GROWS, MHK__FIXED, MHK__COUNTS } mhk__arena_kind;

/* A list of blocks that is filled from the front. Rewinding keeps the blocks for the next round. */
typedef struct mhk__arena {
  mhk__chunk *first, *current;
  size_t index; /* of current */
  mhk__arena_kind kind;
} mhk__arena;

typedef struct mhk__mark { size_t chunk, used; } mhk__mark;

/* Everything a context makes starts with one of these, and lives in its own arena. */
typedef struct mhk__object {
  struct mhk__object *previous, *next;
  mhk_context *ctx;
  void (*destroy)(void *object); /* closes what is not memory; may be NULL */
  mhk__arena arena;
} mhk__object;

typedef struct mhk__kernels mhk__kernels;

struct mhk_context {
  mhk_allocator allocator;
  mhk_log_fn log;
  void *log_user;
  mhk_parallel_fn parallel_for;
  void *parallel_user;
  int workers;
  mhk_isa isa;
  mhk_bf16_unit bf16_unit;
  mhk_precision precision;
  const mhk__kernels *kernels;
  mhk_result result;
  int strict; /* while a model is loaded that way: warnings are errors */
  mhk__object *objects;
  mhk__arena scratch; /* rewound by every op that uses it */
  size_t memory, peak;
  char message[2048];
};

static void *mhk__default_alloc(void *user, size_t bytes) {
  void *block = MOHAWK_MALLOC(bytes);
  (void)user;
#ifdef MHK__HUGE_PAGE
  /* Large pages for large blocks where the system gives them to those who ask: rows of many heads lie a page or two apart, and half of what SSD loses
     between 2048 and 8192 tokens is looking up pages. A refusal is no error. */
  if (block && bytes >= 2 * MHK__HUGE_PAGE) {
    const uintptr_t at = (uintptr_t)block, first = (at + MHK__HUGE_PAGE - 1) / MHK__HUGE_PAGE * MHK__HUGE_PAGE;
    const size_t most = bytes - (size_t)(first - at);
    (void)madvise((void *)first, most / MHK__HUGE_PAGE * MHK__HUGE_PAGE, MADV_HUGEPAGE);
  }
#endif
  return block;
}

static void mhk__default_release(void *user, void *block, size_t bytes) {
  (void)user;
  (void)bytes;
  MOHAWK_FREE(block);
}

static mhk_result mhk__vfail(mhk_context *ctx, mhk_result code, const char *format, va_list args) {
  if (!ctx) return MHK_ERROR_MEMORY;
  if (ctx->result != MHK_OK) return ctx->result;
  ctx->result = code;
  mhk__vprint(ctx->message, sizeof ctx->message,
              format && *format ? format : "an error without a message (its format is empty)", args);
  if (ctx->log) ctx->log(ctx->log_user, MHK_LOG_ERROR, ctx->message);
  return code;
}

MHKDEF mhk_result mhk_fail(mhk_context *ctx, mhk_result code, const char *format, ...) {
  va_list args;
  va_start(args, format);
  mhk_result r = mhk__vfail(ctx, code, format, args);
  va_end(args);
  return r;
}

#if defined(__GNUC__) || defined(__clang__)
__attribute__((format(printf, 3, 4)))
#endif
static void mhk__note(mhk_context *ctx, mhk_log_level level, const char *format, ...) {
  char text[2048];
  va_list args;
  const int refused = ctx && ctx->strict && level == MHK_LOG_WARNING;
  if (!ctx || (!ctx->log && !refused)) return;
  va_start(args, format);
  mhk__vprint(text, sizeof text, format, args);
  va_end(args);
  if (refused)
    mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "%s (refused because loading is strict)", text);
  else
    ctx->log(ctx->log_user, level, text);
}

/* Says what is wrong with a number that must lie between low and high (DBL_MIN: above 0; of
   DBL_MAX: any finite one), in at most MHK__SETTING bytes. */
#define MHK__SETTING 240
static int mhk__number_wrong(char *out, const char *name, double value, double low, double high) {
  char from[40] = "a finite number";
  if (value >= low && value <= high) return 0;
  if (low >= DBL_MIN && low <= DBL_MIN)
    mhk__print(from, sizeof from, "above 0 and finite");
  else if (low > -DBL_MAX)
    mhk__print(from, sizeof from, high < FLT_MAX ? "from %g to %g" : "finite and not below %g", low, high);
  mhk__print(out, MHK__SETTING, "%.100s is %g: it must be %s", name, value, from);
  return 1;
}

#ifndef MOHAWK_NO_TRAINING
/* the same as an error of the function `where` */
static int mhk__number_fits(mhk_context *ctx, const char *where, const char *name, double value, double low,
                            double high) {
  char wrong[MHK__SETTING];
  if (!mhk__number_wrong(wrong, name, value, low, high)) return 1;
  mhk_fail(ctx, MHK_ERROR_ARGUMENT, "%s: %s", where, wrong);
  return 0;
}
#endif

/* a*b*c, or 0 with an error when that does not fit; none may be negative */
static size_t mhk__size3(mhk_context *ctx, mhk_index a, mhk_index b, size_t c) {
  if (a >= 0 && b >= 0) {
    size_t x = (size_t)a, y = (size_t)b, most = (size_t)PTRDIFF_MAX;
    if ((y == 0 || x <= most / y) && (c == 0 || x * y <= most / c)) return x * y * c;
  }
  mhk_fail(ctx, MHK_ERROR_MEMORY, "an array of %lld x %lld elements of %d bytes does not fit this machine's address space", (long long)a, (long long)b, (int)c);
  return 0;
}

static void *mhk__raw_alloc(mhk_context *ctx, size_t bytes) {
  void *p = bytes > (size_t)PTRDIFF_MAX ? NULL : ctx->allocator.alloc(ctx->allocator.user, bytes);
  if (!p) {
    mhk_fail(ctx, MHK_ERROR_MEMORY, "out of memory: %.1f MB more were needed, %.1f MB are in use", (double)bytes * 1e-6, (double)ctx->memory * 1e-6);
    return NULL;
  }
  ctx->memory += bytes;
  if (ctx->memory > ctx->peak) ctx->peak = ctx->memory;
  return p;
}

static void mhk__raw_release(mhk_context *ctx, void *p, size_t bytes) {
  ctx->memory -= bytes;
  ctx->allocator.release(ctx->allocator.user, p, bytes);
}

static unsigned char *mhk__chunk_data(mhk__chunk *c) {
  uintptr_t p = (uintptr_t)(c + 1);
  return (unsigned char *)(c + 1) + ((MHK__ALIGN - p % MHK__ALIGN) % MHK__ALIGN);
}

static void mhk__chunks_release(mhk_context *ctx, mhk__chunk *c) {
  while (c) {
    mhk__chunk *next = c->next;
    mhk__raw_release(ctx, c, c->bytes);
    c = next;
  }
}

static void mhk__arena_free(mhk_context *ctx, mhk__arena *a) {
  mhk__chunks_release(ctx, a->first);
  memset(a, 0, sizeof *a);
}

/* bytes of memory aligned to MHK__ALIGN, content undefined; NULL and an error when there is none */
static void *mhk__arena_alloc(mhk_context *ctx, mhk__arena *a, size_t bytes) {
  mhk__chunk *c, *last = NULL;
  size_t index = a->index, need, room;
  if (ctx->result != MHK_OK) return NULL;
  if (bytes > (size_t)PTRDIFF_MAX - 4096) {
    mhk_fail(ctx, MHK_ERROR_MEMORY, "out of memory: a block of %.1f MB cannot be had on this machine", (double)bytes * 1e-6);
    return NULL;
  }
  need = (bytes + MHK__ALIGN - 1) / MHK__ALIGN * MHK__ALIGN;
  if (need == 0) need = MHK__ALIGN;
  if (a->kind == MHK__COUNTS) {
    c = a->current;
    c->used += need;
    if (c->used > c->room) c->room = c->used;
    return c;
  }
  for (c = a->current; c; last = c, c = c->next, index++)
    if (c->room - c->used >= need) {
      unsigned char *p = mhk__chunk_data(c) + c->used;
      c->used += need;
      a->current = c;
      a->index = index;
      return p;
    }
  if (a->kind == MHK__FIXED) {
    mhk_fail(ctx, MHK_ERROR_MEMORY, "a session's block has %.0f bytes for work and %.0f more were needed", (double)a->first->room, (double)need);
    return NULL;
  }
  /* blocks double, so that there are few, but where memory is dear; with the address sanitizer each allocation is a block, so that red zones work */
#ifdef MHK__ASAN
  room = need;
#elif defined(MOHAWK_NO_TRAINING)
  room = 4096 - 2 * MHK__ALIGN - sizeof(mhk__chunk);
  if (room < need) room = need;
#else
  room = last ? (last->room < ((size_t)1 << 25) ? last->room * 2 : last->room) : 4096 - 2 * MHK__ALIGN - sizeof(mhk__chunk);
  if (room < need) room = need;
#endif
  c = (mhk__chunk *)mhk__raw_alloc(ctx, sizeof(mhk__chunk) + MHK__ALIGN + room);
  if (!c) return NULL;
  c->next = NULL;
  c->bytes = sizeof(mhk__chunk) + MHK__ALIGN + room;
  c->room = room;
  c->used = need;
  if (last)
    last->next = c;
  else
    a->first = c;
  a->current = c;
  a->index = last ? index : 0;
  return mhk__chunk_data(c);
}

static mhk__mark mhk__arena_mark(const mhk__arena *a) {
  mhk__mark m;
  m.chunk = a->index;
  m.used = a->current ? a->current->used : 0;
  return m;
}

static void mhk__arena_rewind(mhk_context *ctx, mhk__arena *a, mhk__mark m) {
  mhk__chunk *c = a->first, *keep = NULL;
  size_t i = 0;
  (void)ctx;
  for (; c; c = c->next, i++) {
    if (i == m.chunk) {
      keep = c;
      c->used = m.used;
    } else if (i > m.chunk)
      c->used = 0;
  }
  a->current = keep;
  a->index = keep ? m.chunk : 0;
#ifdef MHK__ASAN
  if (a->kind != MHK__GROWS) return;
  if (m.used == 0 && m.chunk == 0) {
    mhk__chunks_release(ctx, a->first);
    memset(a, 0, sizeof *a);
  } else if (keep) {
    mhk__chunks_release(ctx, keep->next);
    keep->next = NULL;
  }
#endif
}

#ifndef MOHAWK_NO_TRAINING
/* Was there ever a mark of so many bytes of that chunk, and is it not beyond the end now? */
static int mhk__arena_has(const mhk__arena *a, size_t chunk, size_t used) {
  const mhk__chunk *c = a->first;
  size_t i = 0;
  while (c && i < chunk) {
    c = c->next;
    i++;
  }
  return c ? used <= c->used : chunk == 0 && used == 0;
}

/* whether p lies in what was handed out of an arena */
static int mhk__arena_holds(const mhk__arena *a, const void *p) {
  mhk__chunk *c = a->first;
  for (; c; c = c->next)
    if ((uintptr_t)p - (uintptr_t)mhk__chunk_data(c) < c->used) return 1;
  return 0;
}
#endif

/* count * size bytes of an arena, zeroed; every product checked */
static void *mhk__arena_zeros(mhk_context *ctx, mhk__arena *a, mhk_index count, size_t size) {
  size_t bytes = mhk__size3(ctx, count, 1, size);
  void *p = mhk__arena_alloc(ctx, a, bytes);
  if (p) memset(p, 0, bytes);
  return p;
}

static char *mhk__arena_text(mhk_context *ctx, mhk__arena *a, const char *text, size_t length) {
  char *p = (char *)mhk__arena_alloc(ctx, a, length + 1);
  if (p) {
    memcpy(p, text, length);
    p[length] = 0;
  }
  return p;
}

/* Short-lived memory of an op: take a mark, allocate, rewind. */
static mhk__mark mhk__scratch_mark(mhk_context *ctx) { return mhk__arena_mark(&ctx->scratch); }
static void mhk__scratch_rewind(mhk_context *ctx, mhk__mark m) { mhk__arena_rewind(ctx, &ctx->scratch, m); }
static void *mhk__scratch(mhk_context *ctx, mhk_index count, size_t size) {
  size_t bytes = mhk__size3(ctx, count, 1, size);
  return ctx->result == MHK_OK ? mhk__arena_alloc(ctx, &ctx->scratch, bytes) : NULL;
}

/* Makes zeroed memory, which starts with a mhk__object and goes with the arena, an object of the context. */
static void mhk__object_join(mhk_context *ctx, void *object, mhk__arena arena, void (*destroy)(void *object)) {
  mhk__object *o = (mhk__object *)object;
  o->ctx = ctx;
  o->arena = arena;
  o->destroy = destroy;
  o->next = ctx->objects;
  if (ctx->objects) ctx->objects->previous = o;
  ctx->objects = o;
}

/* A new object of a context: zeroed, its first member a mhk__object. */
static void *mhk__object_new(mhk_context *ctx, size_t bytes, void (*destroy)(void *object)) {
  mhk__arena arena;
  if (!ctx || ctx->result != MHK_OK) return NULL;
  memset(&arena, 0, sizeof arena);
  void *o = mhk__arena_zeros(ctx, &arena, 1, bytes);
  if (o) mhk__object_join(ctx, o, arena, destroy);
  return o;
}

static void mhk__object_free(void *object) {
  mhk__object *o = (mhk__object *)object;
  mhk__arena arena;
  mhk_context *ctx;
  if (!o) return;
  ctx = o->ctx;
  if (o->destroy) o->destroy(object);
  if (o->previous)
    o->previous->next = o->next;
  else
    ctx->objects = o->next;
  if (o->next) o->next->previous = o->previous;
  arena = o->arena; /* the object lives in its own arena */
  mhk__arena_free(ctx, &arena);
}

static void mhk__parallel(mhk_context *ctx, mhk_index tasks, void (*body)(void *arg, mhk_index task, int worker), void *arg) {
  mhk_index i;
  if (tasks > 1 && ctx->workers > 1) {
    if (ctx->parallel_for) {
      ctx->parallel_for(ctx->parallel_user, tasks, body, arg);
      return;
    }
#ifdef _OPENMP
    {
      const int threads = ctx->workers < tasks ? ctx->workers : (int)tasks;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
      for (i = 0; i < tasks; i++) body(arg, i, omp_get_thread_num());
      return;
    }
#endif
  }
  for (i = 0; i < tasks; i++) body(arg, i, 0);
}

MHKDEF const char *mhk_version(void) { return MHK_VERSION; }

MHKDEF int mhk_failed(const mhk_context *ctx) { return !ctx || ctx->result != MHK_OK; }
MHKDEF mhk_result mhk_error(const mhk_context *ctx) { return ctx ? ctx->result : MHK_ERROR_MEMORY; }
MHKDEF const char *mhk_message(const mhk_context *ctx) { return ctx ? ctx->message : "out of memory: not even a context could be made"; }
MHKDEF void mhk_clear_error(mhk_context *ctx) {
  if (!ctx) return;
  ctx->result = MHK_OK;
  ctx->message[0] = 0;
}
MHKDEF int mhk_threads(const mhk_context *ctx) { return ctx ? ctx->workers : 0; }
MHKDEF mhk_result mhk_set_threads(mhk_context *ctx, int threads) {
  if (!ctx) return MHK_ERROR_MEMORY;
  if (ctx->parallel_for) return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "the number of threads cannot be set on a context with the caller's own parallel_for");
  if (threads < -1 || threads > 4096) return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "%d threads make no sense: use 1 or more, or -1 for all", threads);
#ifdef _OPENMP
  ctx->workers = threads == -1 ? omp_get_max_threads() : threads == 0 ? 1 : threads;
#else
  ctx->workers = 1;
#endif
  return MHK_OK;
}
MHKDEF size_t mhk_memory_in_use(const mhk_context *ctx) { return ctx ? ctx->memory : 0; }
MHKDEF size_t mhk_memory_peak(const mhk_context *ctx) { return ctx ? ctx->peak : 0; }
#endif /* MOHAWK_IMPLEMENTATION */
/* ====================================================================================================
   KERNELS: how loops are compiled once per instruction set                                >>kernels
   ====================================================================================================

   Every loop that costs time is a kernel: a function over plain arrays that is called through
   the table of its context, mhk__kernels. Its code stands once, in the chapter of what it
   computes, between #ifdef MHK__TEMPLATE and #endif, and is written in a small vector vocabulary
   (MHK__V, MHK__LOAD, MHK__FMA, ...). At the end of the file, >>passes, the header includes
   itself once per instruction set. Only the parts between those guards are compiled then, under
   names of the pass: MHK__N(mhk__ssd) is mhk__ssd_avx2 in one of them. Plain C is a pass too,
   with vectors of one number.

   Drivers cut the work into tasks by the problem's size, never by the number of threads, so that
   results do not depend on it, and call the kernels. OpenMP stands in drivers only: inside a
   function with a target of its own, Clang would lose the target.

   The chapters from here to >>optimizer hold, in this order: the reference, which is the
   mathematics in plain C, one head of one sequence at a time (T,P) row-major in double, compiled
   in for tests with MOHAWK_REFERENCE; arguments; kernels; drivers; ops on the tape, each forward
   pass beside its gradient. The tests hold every kernel of every instruction set against the
   reference. */

#if MHK__REFERENCE == 1 && !defined(MHK__PASS)
/* ---- reference */

static inline double mhk__ref_dot(int n, const double *x, const double *y) {
  double sum = 0;
  for (int i = 0; i < n; i++) sum += x[i] * y[i];
  return sum;
}

/* y (T,P) = M (T,S) x (S,P): every mixer of this file is such a product with a lower triangular M. */
static inline void mhk__ref_mix(int T, int S, int P, const double *M, const double *x, double *y) {
  for (int t = 0; t < T; t++)
    for (int p = 0; p < P; p++) {
      y[t * P + p] = 0;
      for (int s = 0; s < S; s++) y[t * P + p] += M[t * S + s] * x[s * P + p];
    }
}
#endif /* reference */

#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
#define MHK__R(x) ((mhk_real)(x))
#ifdef MOHAWK_DOUBLE
#define MHK__REXP exp
#define MHK__REAL_MOST DBL_MAX
#define MHK__REAL_LEAST DBL_MIN
#else
#define MHK__REXP expf
#define MHK__REAL_MOST ((double)FLT_MAX)
#define MHK__REAL_LEAST ((double)FLT_MIN)
#endif

static float mhk__bf16_to_f32(uint16_t h) {
  uint32_t bits = (uint32_t)h << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
#ifndef MOHAWK_NO_TRAINING
/* x rounded to bfloat16, as VCVTNE2PS2BF16 does it: to nearest, ties to even, subnormal numbers to zero, NaN stays NaN */
static uint16_t mhk__bf16_round(mhk_real x) {
  const float f = (float)x;
  uint32_t bits;
  memcpy(&bits, &f, 4);
  if ((bits & 0x7F800000u) == 0) return (uint16_t)((bits >> 16) & 0x8000u);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return (uint16_t)((bits >> 16) | 0x40u);
  return (uint16_t)((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}
#endif /* MOHAWK_NO_TRAINING */

/* exact for subnormals too: the multiplication by 2^112 renormalises, and leaves infinity and NaN what they are */
static float mhk__f16_to_f32(uint16_t h) {
  uint32_t bits = ((uint32_t)h & 0x7FFFu) << 13;
  float f;
  if (bits >= 0x0F800000u) bits |= 0x7F800000u;
  memcpy(&f, &bits, 4);
  f *= 5192296858534827628530496329220096.0f;
  return h & 0x8000u ? -f : f;
}

MHKDEF size_t mhk_dtype_size(mhk_dtype dtype) {
  switch (dtype) {
    case MHK_F64: case MHK_I64: case MHK_U64: return 8;
    case MHK_F32: case MHK_I32: case MHK_U32: return 4;
    case MHK_F16: case MHK_BF16: case MHK_I16: case MHK_U16: return 2;
    case MHK_I8: case MHK_U8: case MHK_BOOL: return 1;
    default: return 0;
  }
}

/* element i of an array of a floating-point dtype */
static mhk_real mhk__element(const void *data, mhk_dtype dtype, mhk_index i) {
  switch (dtype) {
    case MHK_F32: return (mhk_real)((const float *)data)[i];
    case MHK_F64: return (mhk_real)((const double *)data)[i];
    case MHK_F16: return (mhk_real)mhk__f16_to_f32(((const uint16_t *)data)[i]);
    default: return (mhk_real)mhk__bf16_to_f32(((const uint16_t *)data)[i]);
  }
}

/* Quantised matrices, see mhk_quantised. */
#define MHK__Q_ROWS 16 /* rows a block */
static int mhk__is_quantised(mhk_dtype dtype) { return dtype == MHK_Q8 || dtype == MHK_Q4; }
static mhk_index mhk__q_blocks(mhk_index rows) { return (rows + MHK__Q_ROWS - 1) / MHK__Q_ROWS; }
static mhk_index mhk__q_block_bytes(mhk_dtype dtype, mhk_index k) { return dtype == MHK_Q8 ? MHK__Q_ROWS * k : MHK__Q_ROWS * k / 2; }

/* element (n,k) of such a matrix with rows of K */
static mhk_real mhk__q_element(const mhk_quantised *q, mhk_dtype dtype, mhk_index K, mhk_index n, mhk_index k) {
  const mhk_index b = n / MHK__Q_ROWS, r = n % MHK__Q_ROWS;
  int value;
  if (n >= q->rows) return q->rest[(n - q->rows) * K + k];
  if (dtype == MHK_Q8)
    value = ((const signed char *)q->q)[((b * (K / 4) + k / 4) * MHK__Q_ROWS + r) * 4 + k % 4];
  else {
    const int both = ((const unsigned char *)q->q)[((b * (K / 8) + k / 8) * MHK__Q_ROWS + r) * 4 + k % 4];
    value = (k & 4 ? both >> 4 : both & 15) - 8;
  }
  return (mhk_real)value * (mhk_real)mhk__f16_to_f32(q->scale[(b * (K / q->group) + k / q->group) * MHK__Q_ROWS + r]);
}

/* A matrix of any strides and stored type: element (i,j) at data[i * row + j * col]. A quantised one lies as q says and has all its columns: one of
   the strides is 1, the other its rows' length; its rows start at row n0 of q, its columns at k0. */
typedef struct mhk__matrix {
  const void *data;
  mhk_dtype dtype;
  mhk_index row, col;
  const mhk_quantised *q;
  mhk_index n0, k0;
} mhk__matrix;

static mhk__matrix mhk__mat(const void *data, mhk_dtype dtype, mhk_index row, mhk_index col) {
  mhk__matrix m;
  m.data = data;
  m.dtype = dtype;
  m.row = row;
  m.col = col;
  m.q = NULL;
  m.n0 = m.k0 = 0;
  return m;
}

/* y (M,N) = x (M,K) w^T for rows n0.. of a quantised matrix w, of up to q_rows (see the kernels) rows of x. Each group of x is brought to 16-bit integers,
   so that its dot product with the integers of w is exact; the groups' products are summed in float32 in their order. The integers are off by at most 2^-16
   of the group's largest number. */
typedef struct mhk__q_args {
  mhk_index M, N, K;
  const mhk_quantised *q;
  mhk_dtype dtype;
  mhk_index n0;
  const mhk_real *x;       /* (M,K) */
  int16_t *digits;         /* (M,K), each four in the order 0 2 1 3: the lanes a vector of bytes falls into when its 16-bit words are shifted. Of kernels
                              that multiply bytes: of 32 integers 256 h + l first the signed bytes l, then h */
  float *scale;            /* (M,K/group) */
  int32_t *offset;         /* (M,K/group): what the 8 in the halves of MHK_Q4 adds, negated; of kernels that multiply bytes for MHK_Q8 what 128 adds */
  mhk_real *y;
  mhk_index ldy;
} mhk__q_args;

/* Bytes of weights to ask for ahead. Left to the processor, one row of MHK_Q8 on Zen 4 reads 22 to 36 GB/s, by where in the program the loop happens to
   lie; so it is 33. */
#define MHK__Q_AHEAD 4096
#define MHK__Q_SLAB 131072 /* bytes of x as integers that pass over the blocks of a task together */
#define MHK__Q_LIMIT 32512 /* largest integer of x: times 16 words of 15 * 256 it stays below 2^31, and it is two signed bytes */
#define MHK__Q_TINY 1e-30f /* groups of x that are smaller count as zero */

/* What happens to a product before it is stored, in this order. */
typedef struct mhk__epilogue {
  int accumulate;           /* c += product instead of c = product */
  const mhk_real *bias;     /* (N), added to each row */
  const mhk_real *residual; /* same layout as c, added */
  mhk_real *before;         /* same layout as c: receives the value before gelu */
  int gelu;
} mhk__epilogue;

/* Which part of a product is wanted or not zero: everything; c on and below, or on and above its diagonal; a lower or upper triangular. Whole register tiles
   are left out, what they would have held is not touched. */
enum { mhk__whole, mhk__lower_c, mhk__upper_c, mhk__lower_a, mhk__upper_a };

/* Rows that are wanted soon, to be asked for while there is something else to do. Rows of one head lie pages apart, where no hardware looks ahead. */
typedef struct mhk__ahead {
  struct { const mhk_real *at; mhk_index ld, w, rows; } part[8];
  int parts, now;
} mhk__ahead;

static void mhk__look_ahead(mhk__ahead *a, const mhk_real *at, mhk_index ld, mhk_index w, mhk_index rows) {
  if (!at || rows < 1) return;
  a->part[a->parts].at = at;
  a->part[a->parts].ld = ld;
  a->part[a->parts].w = w;
  a->part[a->parts].rows = rows;
  a->parts++;
}

/* A product of operands as they lie in work memory: c = f (c0 + a1 b1) + a2 b2, row i of it by f[i * fs]. Element (i,k) of a left operand is at
   a[i * row + k * col]: its numbers are broadcast one by one, so that it may lie either way; only the right ones must lie row by row. Nothing is packed for
   one use alone, and edges need no code of their own: rows of b and c are padded to MHK__LD numbers, and what is read beyond a's rows only reaches rows of
   c beyond its own. */
typedef struct mhk__block {
  const mhk_real *a1, *b1, *a2, *b2; /* a1 NULL: that product is absent */
  mhk_index k1, row1, col1, k2, row2, col2, ldb;
  const mhk_real *c0;                /* same layout as c, may be c; NULL: zeros */
  const mhk_real *f;                 /* NULL: ones */
  mhk_index fs;
  mhk_real *c;
  mhk_index ldc;
  mhk__ahead *ahead;                 /* or NULL */
} mhk__block;
#define MHK__LD(n) (((n) + 15) / 16 * 16) /* numbers in a padded row: whole vectors of every instruction set */
#define MHK__OVER 8                       /* rows that a tile may reach beyond the last one */

/* Products of bfloat16 numbers: packed numbers take size bytes each, k counts in steps of kr (padded with zeros), tiles are mr x nr. pack_a takes rows x k
   numbers as ks->pack does, pack_b the columns of the right operand; product is ks->product on them. */
typedef struct mhk__narrow {
  int mr, nr, kr, size;
  void (*pack_a)(void *dst, mhk_index rows, mhk_index k, mhk__matrix src);
  void (*pack_b)(void *dst, mhk_index n_columns, mhk_index k, mhk__matrix src);
  void (*product)(mhk_index m, mhk_index n, mhk_index k, const void *a, const void *b, mhk_real *c, mhk_index ldc, int accumulate);
} mhk__narrow;

/* what the kernels of the chapters below are called with */
typedef struct mhk__attention_args mhk__attention_args;
typedef struct mhk__ssd_args mhk__ssd_args;
typedef struct mhk__orientation_args mhk__orientation_args;
typedef struct mhk__conv_args mhk__conv_args;
typedef struct mhk__stream_args mhk__stream_args;

struct mhk__kernels {
  int mr, nr; /* the register tile of products: rows of A, columns of B */
#ifndef MOHAWK_NO_TRAINING
  mhk__narrow narrow;
#endif
  /* rows x k numbers, row i's element j at src[i * rs + j * cs], into panels of width rows, zero padded */
  void (*pack)(mhk_real *dst, mhk_index width, mhk_index rows, mhk_index k, mhk__matrix src);
  /* c (m,n) = or += packed a (m,k) times packed b (k,n) */
  void (*product)(mhk_index m, mhk_index n, mhk_index k, const mhk_real *a, const mhk_real *b, mhk_real *c, mhk_index ldc, int accumulate);
  /* the same of operands as they lie, where they divide into whole tiles; 0: they do not, nothing was done */
  int (*product_plain)(mhk_index m, mhk_index n, mhk_index k, const mhk_real *a, mhk_index row, mhk_index col, const mhk_real *b, mhk_index ldb,
                       mhk_real *c, mhk_index ldc, int accumulate);
  void (*epilogue)(mhk_index m, mhk_index n, mhk_real *c, mhk_index ldc, mhk_index offset, const mhk__epilogue *e, mhk_index column);
  /* y (m,n) = x (m,k) w(n,k)^T for few rows: streams w once; work holds (m + 1) k numbers */
  void (*rows_times)(mhk_index m, mhk_index n, mhk_index k, const mhk_real *x, const void *w, mhk_dtype dtype, mhk_real *y, mhk_index ldy, mhk_real *work);
  void (*q_prepare)(const mhk__q_args *a, mhk_index row);                    /* fills digits, scale and offset of one row of x */
  void (*q_times)(const mhk__q_args *a, mhk_index first, mhk_index last); /* blocks [first,last) of w, which reach into the rows wanted */
  mhk_index q_rows; /* rows of x up to which that is faster than float products of weights made wide: all, where dot products of bytes do twice the work */
  void (*attention)(const mhk__attention_args *a, mhk_index b, mhk_index h, mhk_real *work);
  void (*attention_step)(const mhk__attention_args *a, mhk_index b, mhk_index h, mhk_real *work);
  void (*attention_back)(const mhk__attention_args *a, mhk_index b, mhk_index g, mhk_real *work);
  void (*ssd)(const mhk__ssd_args *a, mhk_index b, mhk_index h, mhk_real *work);
  void (*ssd_step)(const mhk__ssd_args *a, mhk_index b, mhk_index h, mhk_real *work);
  void (*ssd_back)(const mhk__ssd_args *a, mhk_index b, mhk_index g, mhk_real *work);
  void (*orientation)(const mhk__orientation_args *a, mhk_index b, mhk_index h, mhk_real *work);
  void (*orientation_back)(const mhk__orientation_args *a, mhk_index b, mhk_index g, mhk_real *work);
  void (*conv)(const mhk__conv_args *a, mhk_index c0, mhk_index c1, mhk_real *work);
  void (*conv_back)(const mhk__conv_args *a, mhk_index c0, mhk_index c1, mhk_real *work);
  void (*conv_stream)(const mhk__stream_args *a, mhk_index c0, mhk_index c1);
  /* one row each */
  void (*norm)(mhk_index n, const mhk_real *x, const mhk_real *w, const mhk_real *b, mhk_real eps, int centre, mhk_real *y, mhk_real *mean, mhk_real *rstd);
  void (*norm_back)(mhk_index n, const mhk_real *x, const mhk_real *w, mhk_real mean, mhk_real rstd, int centre, const mhk_real *dy, mhk_real *dx);
  void (*softmax)(mhk_index n, const mhk_real *x, mhk_real *y);
  double (*log_sum_exp)(mhk_index n, const mhk_real *x, mhk_real scale);
  double (*soft_dot)(mhk_index n, const mhk_real *logits, const mhk_real *target, mhk_real target_lse);
  void (*soft_back)(mhk_index n, const mhk_real *logits, mhk_real inverse_temperature, mhk_real lse, const mhk_real *target,
                    mhk_real target_lse, mhk_real g, mhk_real *d);
  void (*gelu)(mhk_index n, const mhk_real *x, mhk_real *y);
  void (*gelu_back)(mhk_index n, const mhk_real *x, const mhk_real *dy, mhk_real *dx);
  void (*gate)(mhk_index n, const mhk_real *y, const mhk_real *z, const mhk_real *bias, mhk_real *out);
  void (*gate_back)(mhk_index n, const mhk_real *y, const mhk_real *z, const mhk_real *bias, const mhk_real *g, mhk_real *dy, mhk_real *dz);
  double (*distance)(mhk_index n, const mhk_real *x, const mhk_real *y);
  void (*adamw)(mhk_index n, mhk_real *p, const mhk_real *g, mhk_real *m, mhk_real *v, const mhk_real *s);
};

static mhk_index mhk__up(mhk_index n, mhk_index step) { return (n + step - 1) / step * step; }
static mhk_index mhk__min(mhk_index a, mhk_index b) { return a < b ? a : b; }
static mhk_index mhk__max(mhk_index a, mhk_index b) { return a > b ? a : b; }

#define MHK__TILE 64 /* rows and columns of a tile of attention and stage-1 matrices */

#if !defined(MOHAWK_NO_SIMD) && defined(MHK__X86)
#define MHK__HAS_X86_PASSES
#if !defined(MOHAWK_DOUBLE) && (defined(__clang__) ? __clang_major__ >= 6 : __GNUC__ >= 8)
#define MHK__HAS_VNNI
#endif
#include <immintrin.h>
#elif !defined(MOHAWK_NO_SIMD) && defined(__AARCH64EL__) && (defined(__GNUC__) || defined(__clang__))
#define MHK__HAS_NEON_PASS
#include <arm_neon.h>
/* the dot product of bytes that ARMv8.2 brought; Clang's arm_neon.h offers it to single functions from version 16 on */
#if defined(MOHAWK_DOUBLE)
#elif defined(__ARM_FEATURE_DOTPROD)
#define MHK__HAS_SDOT
#define MHK__TARGET_SDOT
#elif defined(__clang__) && __clang_major__ >= 16
#define MHK__HAS_SDOT
#define MHK__TARGET_SDOT __attribute__((target("dotprod")))
#elif !defined(__clang__) && __GNUC__ >= 8
#define MHK__HAS_SDOT
#define MHK__TARGET_SDOT __attribute__((target("arch=armv8.2-a+dotprod")))
#endif
#if defined(MHK__HAS_SDOT) && !defined(__ARM_FEATURE_DOTPROD)
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#endif
#elif !defined(MOHAWK_NO_SIMD) && defined(__wasm_simd128__)
#define MHK__HAS_WASM_PASS
#include <wasm_simd128.h>
#endif
#endif /* MOHAWK_IMPLEMENTATION */

#ifdef MHK__TEMPLATE
/* ---- the template: MHK__PASS 1 scalar, 2 AVX2+FMA, 3 AVX-512, 4 NEON, 5 WASM SIMD128; MHK__SUFFIX names the pass ---- */
#define MHK__JOIN2(a, b) a##b
#define MHK__JOIN(a, b) MHK__JOIN2(a, b)
#define MHK__N3(a, b) a##b /* no MHK__JOIN: names stand inside of its arguments too, and a macro does not expand within itself */
#define MHK__N2(a, b) MHK__N3(a, b)
#define MHK__N(name) MHK__N2(name, MHK__SUFFIX)
#define MHK__PASS_DONE MHK__TEXT

/* The vocabulary: MHK__W numbers a vector. Products round once (fused) where the set has it. */
#if MHK__PASS == 1
#define MHK__W 1
#define MHK__V mhk_real
#define MHK__LOAD(p) (*(p))
#define MHK__STORE(p, v) (*(p) = (v))
#define MHK__SET(x) (x)
#define MHK__FMA(a, b, c) ((a) * (b) + (c))
#define MHK__MAX(a, b) ((a) > (b) ? (a) : (b))
#define MHK__FROM(v, w, d) ((d) <= 0 ? (v) : (w))
#ifdef MOHAWK_DOUBLE
#define MHK__SQRT(v) sqrt(v)
#else
#define MHK__SQRT(v) sqrtf(v)
#endif
#define MHK__MR 4
#define MHK__HALF 2
#define MHK__NV 4
#define MHK__TALL 8 /* rows of the register tile that needs no packing */
#elif MHK__PASS == 2
#ifdef MOHAWK_DOUBLE
#define MHK__W 4
#define MHK__V __m256d
#define MHK__LOAD(p) _mm256_loadu_pd(p)
#define MHK__STORE(p, v) _mm256_storeu_pd(p, v)
#define MHK__SET(x) _mm256_set1_pd(x)
#define MHK__FMA(a, b, c) _mm256_fmadd_pd(a, b, c)
#define MHK__MAX(a, b) _mm256_max_pd(a, b)
#define MHK__SQRT(v) _mm256_sqrt_pd(v)
#else
#define MHK__W 8
#define MHK__V __m256
#define MHK__LOAD(p) _mm256_loadu_ps(p)
#define MHK__STORE(p, v) _mm256_storeu_ps(p, v)
#define MHK__SET(x) _mm256_set1_ps(x)
#define MHK__FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#define MHK__MAX(a, b) _mm256_max_ps(a, b)
#define MHK__SQRT(v) _mm256_sqrt_ps(v)
#define MHK__MIN(a, b) _mm256_min_ps(a, b)
#define MHK__LOAD_BF16(p) _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)(p))), 16))
#define MHK__LOAD_F16(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p)))
#define MHK__WORDS __m256i
#define MHK__LOAD_WORDS(p) _mm256_loadu_si256((const __m256i *)(const void *)(p))
#define MHK__EVEN_BF16(words) _mm256_castsi256_ps(_mm256_slli_epi32(words, 16))
#define MHK__ODD_BF16(words) _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(-65536)))
#define MHK__MASK(n) _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
#define MHK__LOAD_FIRST(p, n) _mm256_maskload_ps(p, MHK__MASK(n))
#define MHK__STORE_FIRST(p, v, n) _mm256_maskstore_ps(p, MHK__MASK(n), v)
#define MHK__FROM(v, w, d) \
  _mm256_blendv_ps(v, w, _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32((int)(d)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))))
#define MHK__POWER2(n) _mm256_castsi256_ps(_mm256_add_epi32(_mm256_slli_epi32(_mm256_castps_si256(n), 23), _mm256_set1_epi32(0x3F800000)))
#endif
#define MHK__MR 6
#define MHK__TALL 6
#define MHK__HALF 4 /* rows of the smaller register tile, for what is left at the end */
#define MHK__NV 2
#elif MHK__PASS == 3
#ifdef MOHAWK_DOUBLE
#define MHK__W 8
#define MHK__V __m512d
#define MHK__LOAD(p) _mm512_loadu_pd(p)
#define MHK__STORE(p, v) _mm512_storeu_pd(p, v)
#define MHK__SET(x) _mm512_set1_pd(x)
#define MHK__FMA(a, b, c) _mm512_fmadd_pd(a, b, c)
#define MHK__MAX(a, b) _mm512_maskz_max_pd((__mmask8)0xFF, a, b)
#define MHK__SQRT(v) _mm512_maskz_sqrt_pd((__mmask8)0xFF, v)
#else
#define MHK__W 16
#define MHK__V __m512
#define MHK__LOAD(p) _mm512_loadu_ps(p)
#define MHK__STORE(p, v) _mm512_storeu_ps(p, v)
#define MHK__SET(x) _mm512_set1_ps(x)
#define MHK__FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define MHK__MAX(a, b) _mm512_maskz_max_ps((__mmask16)0xFFFF, a, b) /* maskz: GCC 12's plain ones warn inside their own header */
#define MHK__SQRT(v) _mm512_maskz_sqrt_ps((__mmask16)0xFFFF, v)
#define MHK__MIN(a, b) _mm512_maskz_min_ps((__mmask16)0xFFFF, a, b)
#define MHK__LOAD_BF16(p) \
  _mm512_castsi512_ps(_mm512_maskz_slli_epi32( \
      (__mmask16)0xFFFF, _mm512_maskz_cvtepu16_epi32((__mmask16)0xFFFF, _mm256_loadu_si256((const __m256i *)(const void *)(p))), 16))
#define MHK__LOAD_F16(p) _mm512_maskz_cvtph_ps((__mmask16)0xFFFF, _mm256_loadu_si256((const __m256i *)(const void *)(p)))
#define MHK__WORDS __m512i
#define MHK__LOAD_WORDS(p) _mm512_loadu_si512(p)
#define MHK__EVEN_BF16(words) _mm512_castsi512_ps(_mm512_maskz_slli_epi32((__mmask16)0xFFFF, words, 16))
#define MHK__ODD_BF16(words) _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(-65536)))
#define MHK__MASK(n) ((__mmask16)((1u << (n)) - 1u))
#define MHK__FROM(v, w, d) _mm512_mask_mov_ps(w, (__mmask16)((d) <= 0 ? 0xFFFFu : (d) >= 16 ? 0u : 0xFFFFu << (d)), v)
#define MHK__LOAD_FIRST(p, n) _mm512_maskz_loadu_ps(MHK__MASK(n), p)
#define MHK__STORE_FIRST(p, v, n) _mm512_mask_storeu_ps(p, MHK__MASK(n), v)
#define MHK__POWER2(n) \
  _mm512_castsi512_ps(_mm512_add_epi32(_mm512_maskz_slli_epi32((__mmask16)0xFFFF, _mm512_castps_si512(n), 23), _mm512_set1_epi32(0x3F800000)))
#endif
#define MHK__MR 14
#define MHK__TALL 6
#define MHK__BROAD
#define MHK__HALF 8
#define MHK__NV 2
#elif MHK__PASS == 4
#ifdef MOHAWK_DOUBLE
#define MHK__W 2
#define MHK__V float64x2_t
#define MHK__LOAD(p) vld1q_f64(p)
#define MHK__STORE(p, v) vst1q_f64(p, v)
#define MHK__SET(x) vdupq_n_f64(x)
#define MHK__FMA(a, b, c) vfmaq_f64(c, a, b)
#define MHK__MAX(a, b) vmaxq_f64(a, b)
#define MHK__SQRT(v) vsqrtq_f64(v)
#else
#define MHK__W 4
#define MHK__V float32x4_t
#define MHK__LOAD(p) vld1q_f32(p)
#define MHK__STORE(p, v) vst1q_f32(p, v)
#define MHK__SET(x) vdupq_n_f32(x)
#define MHK__FMA(a, b, c) vfmaq_f32(c, a, b)
#define MHK__MAX(a, b) vmaxq_f32(a, b)
#define MHK__SQRT(v) vsqrtq_f32(v)
#define MHK__MIN(a, b) vminq_f32(a, b)
#define MHK__LOAD_BF16(p) vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16))
#define MHK__FROM(v, w, d) \
  vbslq_f32(vcgtq_s32(vdupq_n_s32((int32_t)(d)), vcombine_s32(vcreate_s32(0x0000000100000000u), vcreate_s32(0x0000000300000002u))), w, v)
#define MHK__LOAD_F16(p) vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)))
#define MHK__WORDS uint32x4_t
#define MHK__LOAD_WORDS(p) vreinterpretq_u32_u16(vld1q_u16(p))
#define MHK__EVEN_BF16(words) vreinterpretq_f32_u32(vshlq_n_u32(words, 16))
#define MHK__ODD_BF16(words) vreinterpretq_f32_u32(vandq_u32(words, vdupq_n_u32(0xFFFF0000u)))
#define MHK__POWER2(n) vreinterpretq_f32_u32(vaddq_u32(vshlq_n_u32(vreinterpretq_u32_f32(n), 23), vdupq_n_u32(0x3F800000u)))
#endif
#define MHK__MR 8
#define MHK__TALL 8
#define MHK__HALF 4
#define MHK__NV 2 /* MHK__TILE must be a multiple of MHK__NR */
#elif MHK__PASS == 5
#ifdef MOHAWK_DOUBLE
#error "mohawk.h: the WASM kernels are float32 only; define MOHAWK_NO_SIMD with MOHAWK_DOUBLE"
#endif
#define MHK__W 4
typedef float MHK__N(mhk__vector) __attribute__((vector_size(16)));
#define MHK__V MHK__N(mhk__vector)
#define MHK__LOAD(p) ((MHK__V)wasm_v128_load(p))
#define MHK__STORE(p, v) wasm_v128_store(p, (v128_t)(v))
#define MHK__SET(x) ((MHK__V)wasm_f32x4_splat(x))
#define MHK__FMA(a, b, c) ((a) * (b) + (c))
#define MHK__MAX(a, b) ((MHK__V)wasm_f32x4_max((v128_t)(a), (v128_t)(b)))
#define MHK__SQRT(v) ((MHK__V)wasm_f32x4_sqrt((v128_t)(v)))
#define MHK__MIN(a, b) ((MHK__V)wasm_f32x4_min((v128_t)(a), (v128_t)(b)))
#define MHK__FROM(v, w, d) ((MHK__V)wasm_v128_bitselect((v128_t)(w), (v128_t)(v), wasm_i32x4_gt(wasm_i32x4_splat((int)(d)), wasm_i32x4_make(0, 1, 2, 3))))
#define MHK__POWER2(n) ((MHK__V)wasm_i32x4_add(wasm_i32x4_shl((v128_t)(n), 23), wasm_i32x4_splat(0x3F800000)))
#define MHK__LOAD_BF16(p) ((MHK__V)wasm_i32x4_shl(wasm_u32x4_load16x4(p), 16))
#define MHK__LOAD_F16(p) MHK__N(mhk__load_f16)(p)
#define MHK__WORDS v128_t
#define MHK__LOAD_WORDS(p) wasm_v128_load(p)
#define MHK__EVEN_BF16(words) ((MHK__V)wasm_i32x4_shl(words, 16))
#define MHK__ODD_BF16(words) ((MHK__V)wasm_v128_and(words, wasm_i32x4_splat(-65536)))
/* as mhk__f16_to_f32 */
static inline MHK__V MHK__N(mhk__load_f16)(const uint16_t *p) {
  const v128_t h = wasm_u32x4_load16x4(p), bits = wasm_i32x4_shl(wasm_v128_and(h, wasm_i32x4_splat(0x7FFF)), 13);
  const v128_t top = wasm_v128_and(wasm_i32x4_ge(bits, wasm_i32x4_splat(0x0F800000)), wasm_i32x4_splat(0x7F800000));
  const v128_t f = wasm_v128_or(wasm_f32x4_mul(bits, wasm_i32x4_splat(0x77800000)), top);
  return (MHK__V)wasm_v128_or(f, wasm_i32x4_shl(wasm_v128_and(h, wasm_i32x4_splat(0x8000)), 16));
}
#define MHK__MR 4
#define MHK__HALF 2
#define MHK__NV 2
#define MHK__TALL 6
#endif
#define MHK__NR (MHK__NV * MHK__W)
#if MHK__TILE % (MHK__NV * MHK__W) != 0
#error "mohawk.h: packed columns of one tile would run into the next"
#endif

/* the first n < MHK__W numbers, the rest 0; and the first n only */
#ifndef MHK__LOAD_FIRST
static inline MHK__V MHK__N(mhk__load_first)(const mhk_real *p, mhk_index n) {
  mhk_real lane[MHK__W];
  for (mhk_index i = 0; i < MHK__W; i++) lane[i] = i < n ? p[i] : 0;
  return MHK__LOAD(lane);
}
static inline void MHK__N(mhk__store_first)(mhk_real *p, MHK__V v, mhk_index n) {
  mhk_real lane[MHK__W];
  MHK__STORE(lane, v);
  for (mhk_index i = 0; i < n; i++) p[i] = lane[i];
}
#define MHK__LOAD_FIRST(p, n) MHK__N(mhk__load_first)(p, n)
#define MHK__STORE_FIRST(p, v, n) MHK__N(mhk__store_first)(p, v, n)
#endif

/* lanes d and up of v, those below of w */
#ifndef MHK__FROM
static inline MHK__V MHK__N(mhk__from)(MHK__V v, MHK__V w, mhk_index d) {
  mhk_real a[MHK__W], b[MHK__W];
  MHK__STORE(a, v);
  MHK__STORE(b, w);
  for (mhk_index i = 0; i < MHK__W && i < d; i++) a[i] = b[i];
  return MHK__LOAD(a);
}
#define MHK__FROM(v, w, d) MHK__N(mhk__from)(v, w, d)
#endif

static inline mhk_real MHK__N(mhk__hsum)(MHK__V v) {
  mhk_real lane[MHK__W], s = 0;
  MHK__STORE(lane, v);
  for (int i = 0; i < MHK__W; i++) s += lane[i];
  return s;
}

static inline mhk_real MHK__N(mhk__hmax)(MHK__V v) {
  mhk_real lane[MHK__W];
  MHK__STORE(lane, v);
  mhk_real s = lane[0];
  for (int i = 1; i < MHK__W; i++)
    if (lane[i] > s) s = lane[i];
  return s;
}

#define MHK__LOADN(p, n) ((n) >= MHK__W ? MHK__LOAD(p) : MHK__LOAD_FIRST(p, n))
#define MHK__STOREN(p, v, n) \
  do { \
    if ((n) >= MHK__W) \
      MHK__STORE(p, v); \
    else \
      MHK__STORE_FIRST(p, v, n); \
  } while (0)

/* e^x. float32: 2^k times a polynomial of degree 7 (coefficients of Moshier's Cephes expf), about 1 ulp; arguments are kept within what float32
   holds, so that e^-1000 is 1e-38, not 0. */
static inline MHK__V MHK__N(mhk__vexp)(MHK__V x) {
#if MHK__W == 1
  return MHK__REXP(x);
#elif defined(MOHAWK_DOUBLE)
  mhk_real lane[MHK__W];
  MHK__STORE(lane, x);
  for (int i = 0; i < MHK__W; i++) lane[i] = exp(lane[i]);
  return MHK__LOAD(lane);
#else
  const MHK__V magic = MHK__SET(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer in the low bits */
  x = MHK__MIN(MHK__SET(88.3f), MHK__MAX(MHK__SET(-87.3f), x)); /* this order lets NaN through */
  MHK__V n = MHK__FMA(x, MHK__SET(1.44269504f), magic);
  MHK__V r = n - magic;
  MHK__V p = MHK__FMA(r, MHK__SET(-0.693359375f), x);
  p = MHK__FMA(r, MHK__SET(2.12194440e-4f), p);
  r = MHK__FMA(MHK__SET(1.9875691500e-4f), p, MHK__SET(1.3981999507e-3f));
  r = MHK__FMA(r, p, MHK__SET(8.3334519073e-3f));
  r = MHK__FMA(r, p, MHK__SET(4.1665795894e-2f));
  r = MHK__FMA(r, p, MHK__SET(1.6666665459e-1f));
  r = MHK__FMA(r, p, MHK__SET(5.0000001201e-1f));
  r = MHK__FMA(r, p * p, p + MHK__SET(1.0f));
  return r * MHK__POWER2(n);
#endif
}

static inline MHK__V MHK__N(mhk__vsigmoid)(MHK__V x) {
  const MHK__V one = MHK__SET(MHK__R(1));
  return one / (one + MHK__N(mhk__vexp)(MHK__SET(MHK__R(0)) - x));
}

static inline MHK__V MHK__N(mhk__silu_of)(MHK__V v) { return v * MHK__N(mhk__vsigmoid)(v); }
#endif /* MHK__TEMPLATE */

#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
#ifndef MOHAWK_NO_TRAINING
MHKDEF mhk_precision mhk_set_precision(mhk_context *ctx, mhk_precision precision) {
  if (mhk_failed(ctx)) return MHK_PRECISION_FULL;
  mhk_precision before = ctx->precision;
  if (precision != MHK_PRECISION_FULL && precision != MHK_PRECISION_BF16)
    mhk_fail(ctx, MHK_ERROR_ARGUMENT, "precision %d is none: 0 is full, 1 bfloat16", (int)precision);
  else
    ctx->precision = precision;
  return before;
}
#endif /* MOHAWK_NO_TRAINING */

/* ---- drivers: cut work into tasks, give each worker its memory ---- */

#ifndef MHK__SMALL
#define MHK__SMALL 1e5 /* multiply-adds that are done before other threads have woken up */
#endif

/* Runs body over tasks with per-worker work memory of the given number of elements; cost is about how many multiply-adds all tasks take. */
typedef struct mhk__job {
  mhk_context *ctx;
  const void *args;
  mhk_real *work;
  mhk_index each; /* elements of work a worker */
  mhk_index heads;
} mhk__job;

static void mhk__run(mhk_context *ctx, const void *args, mhk_index tasks, mhk_index heads, mhk_index work, double cost,
                     void (*body)(void *arg, mhk_index task, int worker)) {
  const mhk__mark mark = mhk__scratch_mark(ctx);
  mhk__job job;
  job.ctx = ctx;
  job.args = args;
  job.each = (work + 15) / 16 * 16;
  job.heads = heads;
  job.work =
      (mhk_real *)mhk__arena_alloc(ctx, &ctx->scratch, mhk__size3(ctx, job.each, ctx->workers + 1, sizeof(mhk_real)));
  if (job.work && tasks > 0 && ctx->scratch.kind != MHK__COUNTS) {
    if (cost < MHK__SMALL) {
      for (mhk_index i = 0; i < tasks; i++) body(&job, i, 0);
    } else
      mhk__parallel(ctx, tasks, body, &job);
  }
  mhk__scratch_rewind(ctx, mark);
}
#ifndef MOHAWK_NO_TRAINING
/* one head or group of one sequence a task */
#define MHK__HEAD_TASK(name, type, kernel) \
  static void name(void *arg, mhk_index task, int worker) { \
    const mhk__job *job = (const mhk__job *)arg; \
    job->ctx->kernels->kernel((const type *)job->args, task / job->heads, task % job->heads, job->work + worker * job->each); \
  }

/* Rows and columns: body(args, first, last) over [0,n) in pieces of step. */
typedef struct mhk__range {
  mhk_context *ctx;
  void (*body)(mhk_context *ctx, void *args, mhk_index first, mhk_index last);
  void *args;
  mhk_index n, step;
} mhk__range;
static void mhk__range_task(void *arg, mhk_index task, int worker) {
  const mhk__range *r = (const mhk__range *)arg;
  (void)worker;
  r->body(r->ctx, r->args, task * r->step, mhk__min(r->n, (task + 1) * r->step));
}
static void mhk__over(mhk_context *ctx, mhk_index n, mhk_index step, void (*body)(mhk_context *ctx, void *args, mhk_index first, mhk_index last), void *args) {
  mhk__range r;
  if (n <= 0) return;
  r.ctx = ctx;
  r.body = body;
  r.args = args;
  r.n = n;
  r.step = step < 1 ? 1 : step;
  mhk__parallel(ctx, (n + r.step - 1) / r.step, mhk__range_task, &r);
}
#endif /* MOHAWK_NO_TRAINING */
#endif /* MOHAWK_IMPLEMENTATION */

/* ====================================================================================================
   PRODUCTS: GEMM of every stored type, GEMV, quantised weights                            >>products
   ====================================================================================================

   c (m,n) = a (m,k) b (k,n), the GEMM under every linear layer, in five forms:
      packed     both operands are copied into panels, in the order the register tile reads them
      plain      operands as they lie, where they divide into whole tiles or are padded (mhk__block)
      few rows   of x against the rows of a weight matrix: GEMV, as fast as weights can be read
      quantised  rows of x as 16-bit integers against int8 or int4 weights, dequantized by group
      bfloat16   both operands rounded, sums in float32 (mhk__narrow)
   Weights stay in their stored type and are converted where they are read or packed. The order of
   every sum depends on the shapes and the instruction set, not on the number of threads. */

#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
#ifndef MOHAWK_NO_TRAINING
/* room for a packed operand of that many rows or columns: every register tile divides into it */
static mhk_index mhk__padded(mhk_index rows) { return rows + 32; }
#endif /* MOHAWK_NO_TRAINING */

#if (defined(MHK__HAS_X86_PASSES) || defined(MHK__HAS_NEON_PASS) || defined(MHK__HAS_WASM_PASS)) && !defined(MOHAWK_DOUBLE)
/* Blocks [first,last) of quantised weights by tiles of one row of x, of two, and where there are such of four, against one block or against two. The rows
   go in slabs that stay in the second-level cache while the blocks pass. */
typedef void (*mhk__q_tile)(const mhk__q_args *a, mhk_index b, mhk_index i);
static void mhk__q_tiles(const mhk__q_args *a, mhk_index first, mhk_index last, mhk__q_tile one, mhk__q_tile two, mhk__q_tile four, mhk__q_tile wide) {
  const mhk_index slab = mhk__max(8, MHK__Q_SLAB / (a->K * (mhk_index)sizeof(int16_t)) / 4 * 4);
  mhk_index i, both;
  for (mhk_index at = 0; at < a->M; at += slab) {
    const mhk_index end = mhk__min(a->M, at + slab);
    for (mhk_index b = first; b < last; b += both + 1) {
      both = wide && last - b > 1 && end - at >= 4;
      for (i = at; four && end - i >= 4; i += 4) (both ? wide : four)(a, b, i);
      for (; end - i >= 2; i += 2) {
        two(a, b, i);
        if (both) two(a, b + 1, i);
      }
      if (i < end) {
        one(a, b, i);
        if (both) one(a, b + 1, i);
      }
    }
  }
}
#endif
#endif /* MOHAWK_IMPLEMENTATION */

#ifdef MHK__TEMPLATE
/* ---- products ---- */

/* W rows of W numbers, row stride rs, transposed: column j goes to dst + j * width, its first n numbers */
#if MHK__PASS == 2 && !defined(MOHAWK_DOUBLE)
#define MHK__TRANSPOSES
static inline void MHK__N(mhk__transpose)(const mhk_real *src, mhk_index rs, mhk_index rows, mhk_real *dst, mhk_index width, mhk_index n) {
  const __m256 zero = _mm256_setzero_ps();
  __m256 r0, r1, r2, r3, r4, r5, r6, r7, t0, t1, t2, t3, t4, t5, t6, t7;
#define MHK__ROW(i) ((i) < rows ? _mm256_loadu_ps(src + (i) * rs) : zero)
#define MHK__OUT(j, v) \
  if (n >= 8 || (j) < 7) \
    _mm256_storeu_ps(dst + (j) * width, v); \
  else \
    MHK__STORE_FIRST(dst + (j) * width, v, n)
#define MHK__PAIR(lo, hi, a, b) \
  lo = _mm256_unpacklo_ps(a, b); \
  hi = _mm256_unpackhi_ps(a, b);
  r0 = MHK__ROW(0); r1 = MHK__ROW(1); r2 = MHK__ROW(2); r3 = MHK__ROW(3);
  r4 = MHK__ROW(4); r5 = MHK__ROW(5); r6 = MHK__ROW(6); r7 = MHK__ROW(7);
  MHK__PAIR(t0, t1, r0, r1) MHK__PAIR(t2, t3, r2, r3) MHK__PAIR(t4, t5, r4, r5) MHK__PAIR(t6, t7, r6, r7)
  r0 = _mm256_shuffle_ps(t0, t2, 0x44); r1 = _mm256_shuffle_ps(t0, t2, 0xEE); r2 = _mm256_shuffle_ps(t1, t3, 0x44); r3 = _mm256_shuffle_ps(t1, t3, 0xEE);
  r4 = _mm256_shuffle_ps(t4, t6, 0x44); r5 = _mm256_shuffle_ps(t4, t6, 0xEE); r6 = _mm256_shuffle_ps(t5, t7, 0x44); r7 = _mm256_shuffle_ps(t5, t7, 0xEE);
  MHK__OUT(0, _mm256_permute2f128_ps(r0, r4, 0x20)); MHK__OUT(1, _mm256_permute2f128_ps(r1, r5, 0x20));
  MHK__OUT(2, _mm256_permute2f128_ps(r2, r6, 0x20)); MHK__OUT(3, _mm256_permute2f128_ps(r3, r7, 0x20));
  MHK__OUT(4, _mm256_permute2f128_ps(r0, r4, 0x31)); MHK__OUT(5, _mm256_permute2f128_ps(r1, r5, 0x31));
  MHK__OUT(6, _mm256_permute2f128_ps(r2, r6, 0x31)); MHK__OUT(7, _mm256_permute2f128_ps(r3, r7, 0x31));
#undef MHK__ROW
#undef MHK__OUT
#undef MHK__PAIR
}
#elif MHK__PASS == 3 && !defined(MOHAWK_DOUBLE)
#define MHK__TRANSPOSES
static inline void MHK__N(mhk__transpose)(const mhk_real *src, mhk_index rs, mhk_index rows, mhk_real *dst, mhk_index width, mhk_index n) {
  const __mmask16 all = (__mmask16)0xFFFF, keep = n >= 16 ? all : MHK__MASK(n);
  const __m512 zero = _mm512_setzero_ps();
  __m512 a, b, c, d;
#define MHK__ROW(i) ((i) < rows ? _mm512_loadu_ps(src + (i) * rs) : zero)
#define MHK__LO(x, y) _mm512_maskz_unpacklo_ps(all, x, y)
#define MHK__HI(x, y) _mm512_maskz_unpackhi_ps(all, x, y)
#define MHK__LO2(x, y) _mm512_castpd_ps(_mm512_maskz_unpacklo_pd((__mmask8)0xFF, _mm512_castps_pd(x), _mm512_castps_pd(y)))
#define MHK__HI2(x, y) _mm512_castpd_ps(_mm512_maskz_unpackhi_pd((__mmask8)0xFF, _mm512_castps_pd(x), _mm512_castps_pd(y)))
#define MHK__QUAD(i, u0, u1, u2, u3) \
  __m512 u0, u1, u2, u3; \
  a = MHK__ROW(i); b = MHK__ROW(i + 1); c = MHK__ROW(i + 2); d = MHK__ROW(i + 3); \
  u0 = MHK__LO(a, b); u1 = MHK__LO(c, d); u2 = MHK__HI(a, b); u3 = MHK__HI(c, d); \
  a = MHK__LO2(u0, u1); b = MHK__HI2(u0, u1); c = MHK__LO2(u2, u3); d = MHK__HI2(u2, u3); \
  u0 = a; u1 = b; u2 = c; u3 = d;
#define MHK__LANES(x, y, k) _mm512_maskz_shuffle_f32x4(all, x, y, k)
#define MHK__OUT(j, v) _mm512_mask_storeu_ps(dst + (j) * width, keep, v)
#define MHK__FOUR(j, x0, x1, x2, x3) \
  a = MHK__LANES(x0, x1, 0x88); b = MHK__LANES(x2, x3, 0x88); c = MHK__LANES(x0, x1, 0xDD); d = MHK__LANES(x2, x3, 0xDD); \
  MHK__OUT(j, MHK__LANES(a, b, 0x88)); MHK__OUT((j) + 4, MHK__LANES(c, d, 0x88)); \
  MHK__OUT((j) + 8, MHK__LANES(a, b, 0xDD)); MHK__OUT((j) + 12, MHK__LANES(c, d, 0xDD));
  MHK__QUAD(0, p0, p1, p2, p3)
  MHK__QUAD(4, q0, q1, q2, q3)
  MHK__QUAD(8, r0, r1, r2, r3)
  MHK__QUAD(12, s0, s1, s2, s3)
  MHK__FOUR(0, p0, q0, r0, s0)
  MHK__FOUR(1, p1, q1, r1, s1)
  MHK__FOUR(2, p2, q2, r2, s2)
  MHK__FOUR(3, p3, q3, r3, s3)
#undef MHK__ROW
#undef MHK__LO
#undef MHK__HI
#undef MHK__LO2
#undef MHK__HI2
#undef MHK__QUAD
#undef MHK__LANES
#undef MHK__OUT
#undef MHK__FOUR
}
#elif MHK__PASS == 4 && !defined(MOHAWK_DOUBLE)
#define MHK__TRANSPOSES
static inline void MHK__N(mhk__transpose)(const mhk_real *src, mhk_index rs, mhk_index rows, mhk_real *dst, mhk_index width, mhk_index n) {
  const float32x4_t zero = vdupq_n_f32(0);
  const float32x4x2_t a = vzipq_f32(rows > 0 ? vld1q_f32(src) : zero, rows > 2 ? vld1q_f32(src + 2 * rs) : zero);
  const float32x4x2_t b = vzipq_f32(rows > 1 ? vld1q_f32(src + rs) : zero, rows > 3 ? vld1q_f32(src + 3 * rs) : zero);
  const float32x4x2_t c = vzipq_f32(a.val[0], b.val[0]), d = vzipq_f32(a.val[1], b.val[1]);
  if (n >= 4) {
    vst1q_f32(dst, c.val[0]);
    vst1q_f32(dst + width, c.val[1]);
    vst1q_f32(dst + 2 * width, d.val[0]);
    vst1q_f32(dst + 3 * width, d.val[1]);
  } else {
    MHK__STORE_FIRST(dst, c.val[0], n);
    MHK__STORE_FIRST(dst + width, c.val[1], n);
    MHK__STORE_FIRST(dst + 2 * width, d.val[0], n);
    MHK__STORE_FIRST(dst + 3 * width, d.val[1], n);
  }
}
#endif

/* n numbers of a stored type, one after the other */
static void MHK__N(mhk__widen)(mhk_index n, const void *src, mhk_dtype dtype, mhk_real *MHK__RESTRICT dst) {
  mhk_index i = 0;
#ifdef MHK__LOAD_F16
  if (dtype == MHK_BF16)
    for (; i + MHK__W <= n; i += MHK__W) MHK__STORE(dst + i, MHK__LOAD_BF16((const uint16_t *)src + i));
  else if (dtype == MHK_F16)
    for (; i + MHK__W <= n; i += MHK__W) MHK__STORE(dst + i, MHK__LOAD_F16((const uint16_t *)src + i));
#endif
  if (dtype == MHK_F32)
    for (; i < n; i++) dst[i] = (mhk_real)((const float *)src)[i];
  else
    for (; i < n; i++) dst[i] = mhk__element(src, dtype, i);
}

#define MHK__WIDEN 64 /* numbers of a row made wide at once */
#define MHK__ROWS_AHEAD 16 /* at which lines are asked for where rows lie too far apart for the processor's own guesses */

/* one panel: w of its width rows are there, the rest becomes zero; scale, if given, multiplies column j by scale[j] */
static void MHK__N(mhk__pack_panel)(mhk_real *MHK__RESTRICT dst, mhk_index width, mhk_index w, mhk_index k, const mhk_real *MHK__RESTRICT s,
                                    mhk_index row, mhk_index col, const mhk_real *scale) {
  mhk_index i, j = 0;
  if (row == 1) {
    if (w == width)
      for (; j < k; j++) {
        const MHK__V f = MHK__SET(scale ? scale[j] : MHK__R(1));
        MHK__PREFETCH(s + (j + MHK__ROWS_AHEAD) * col);
        MHK__PREFETCH(s + (j + MHK__ROWS_AHEAD) * col + width - 1);
        for (i = 0; i + MHK__W <= width; i += MHK__W) MHK__STORE(dst + j * width + i, MHK__LOAD(s + j * col + i) * f);
        if (i < width) {
          const MHK__V v = MHK__LOAD_FIRST(s + j * col + i, width - i) * f;
          if (j + 1 < k) /* what is written too far is written again: a masked store of AVX2 is slow */
            MHK__STORE(dst + j * width + i, v);
          else
            MHK__STORE_FIRST(dst + j * width + i, v, width - i);
        }
      }
  }
#ifdef MHK__TRANSPOSES
  else if (col == 1 && !scale)
    for (; j + MHK__W <= k; j += MHK__W)
      for (i = 0; i < width; i += MHK__W) {
        for (mhk_index r = i; r < i + MHK__W && r < width; r++) MHK__PREFETCH(s + (width + r) * row + j);
        MHK__N(mhk__transpose)(s + i * row + j, row, w - i, dst + j * width + i, width, width - i);
      }
#endif
  for (; j < k; j++) {
    for (i = 0; i < w; i++) dst[j * width + i] = scale ? s[i * row + j * col] * scale[j] : s[i * row + j * col];
    for (; i < width; i++) dst[j * width + i] = 0;
  }
}

/* packs a matrix of rows x k by strides as the left operand (rows of A) or the right one (columns of B) */
static void MHK__N(mhk__pack_by)(mhk_real *dst, mhk_index width, mhk_index rows, mhk_index k, const mhk_real *src, mhk_index row, mhk_index col,
                                 const mhk_real *scale) {
  for (mhk_index p = 0; p < rows; p += width, dst += width * k)
    MHK__N(mhk__pack_panel)(dst, width, rows - p < width ? rows - p : width, k, src + p * row, row, col, scale);
}

/* the same from a quantised matrix */
static void MHK__N(mhk__pack_quantised)(mhk_real *dst, mhk_index width, mhk_index rows, mhk_index k, mhk__matrix src) {
  const mhk_quantised *q = src.q;
  const mhk_index K = src.col == 1 ? src.row : src.col, each = src.dtype == MHK_Q8 ? 4 : 8;
  mhk_index r;
  for (mhk_index p = 0; p < rows; p += width, dst += width * k) {
    const mhk_index w = rows - p < width ? rows - p : width;
    if (src.col != 1) {
      for (mhk_index j = 0; j < k; j++)
        for (mhk_index i = 0; i < w; i++) dst[j * width + i] = mhk__q_element(q, src.dtype, K, src.n0 + j, src.k0 + p + i);
    } else if (src.k0 % 8 || k % 8) {
      for (mhk_index j = 0; j < k; j++)
        for (mhk_index i = 0; i < w; i++) dst[j * width + i] = mhk__q_element(q, src.dtype, K, src.n0 + p + i, src.k0 + j);
    } else
      for (mhk_index i = 0; i < w; i += r) { /* the rows of one block at a time */
        const mhk_index n = src.n0 + p + i, b = n / MHK__Q_ROWS, first = n % MHK__Q_ROWS, c0 = b * (K / each) + src.k0 / each;
        const unsigned char *from = (const unsigned char *)q->q + (c0 * MHK__Q_ROWS + first) * 4;
        const uint16_t *scale = q->scale + b * (K / q->group) * MHK__Q_ROWS + first;
        mhk_real *to = dst + i;
        mhk_real s[MHK__Q_ROWS];
        mhk_index in, group = -1;
        r = w - i < MHK__Q_ROWS - first ? w - i : MHK__Q_ROWS - first;
        for (mhk_index j = 0; j < k; j += each, from += MHK__Q_ROWS * 4, to += each * width) {
          if ((src.k0 + j) / q->group != group) {
            group = (src.k0 + j) / q->group;
            for (in = 0; in < r; in++) s[in] = (mhk_real)mhk__f16_to_f32(scale[group * MHK__Q_ROWS + in]);
          }
          if (src.dtype == MHK_Q8)
            for (in = 0; in < r; in++) {
              const signed char *four = (const signed char *)from + 4 * in;
              to[in] = (mhk_real)four[0] * s[in];
              to[in + width] = (mhk_real)four[1] * s[in];
              to[in + 2 * width] = (mhk_real)four[2] * s[in];
              to[in + 3 * width] = (mhk_real)four[3] * s[in];
            }
          else
            for (in = 0; in < r; in++) {
              const unsigned char *four = from + 4 * in;
              for (mhk_index at = 0; at < 4; at++) {
                to[in + at * width] = (mhk_real)((four[at] & 15) - 8) * s[in];
                to[in + (at + 4) * width] = (mhk_real)((four[at] >> 4) - 8) * s[in];
              }
            }
        }
      }
    if (w < width)
      for (mhk_index j = 0; j < k; j++)
        for (mhk_index i = w; i < width; i++) dst[j * width + i] = 0;
  }
}

static void MHK__N(mhk__pack)(mhk_real *dst, mhk_index width, mhk_index rows, mhk_index k, mhk__matrix src) {
  const mhk_index size = (mhk_index)mhk_dtype_size(src.dtype);
  mhk_index n;
  if (mhk__is_quantised(src.dtype)) {
    MHK__N(mhk__pack_quantised)(dst, width, rows, k, src);
    return;
  }
  if (src.dtype == MHK_REAL) {
    MHK__N(mhk__pack_by)(dst, width, rows, k, (const mhk_real *)src.data, src.row, src.col, NULL);
    return;
  }
  for (mhk_index p = 0; p < rows; p += width, dst += width * k) {
    const mhk_index w = rows - p < width ? rows - p : width;
    const char *from = (const char *)src.data + p * src.row * size;
    if (src.col == 1) /* some columns of all rows, made wide in the first-level cache and packed from there */
      for (mhk_index j = 0; j < k; j += n) {
        mhk_real wide[(MHK__NR > MHK__MR ? MHK__NR : MHK__MR) * MHK__WIDEN];
        n = k - j < MHK__WIDEN ? k - j : MHK__WIDEN;
        for (mhk_index i = 0; i < w; i++) MHK__N(mhk__widen)(n, from + (i * src.row + j) * size, src.dtype, wide + i * MHK__WIDEN);
        MHK__N(mhk__pack_panel)(dst + j * width, width, w, n, wide, MHK__WIDEN, 1, NULL);
      }
    else
      for (mhk_index j = 0; j < k; j++) {
        if (src.row == 1)
          MHK__N(mhk__widen)(w, from + j * src.col * size, src.dtype, dst + j * width);
        else
          for (mhk_index i = 0; i < w; i++) dst[j * width + i] = mhk__element(from, src.dtype, i * src.row + j * src.col);
        for (mhk_index i = w; i < width; i++) dst[j * width + i] = 0;
      }
  }
}

/* The register tile: MHK__MR x MHK__NR sums held in registers while k runs. Named variables, so that no compiler spills an array. */
#define MHK__EACH2(M) M(0) M(1)
#define MHK__EACH4(M) MHK__EACH2(M) M(2) M(3)
#define MHK__EACH6(M) MHK__EACH4(M) M(4) M(5)
#define MHK__EACH8(M) MHK__EACH6(M) M(6) M(7)
#define MHK__EACH14(M) MHK__EACH8(M) M(8) M(9) M(10) M(11) M(12) M(13)
#define MHK__EACH(rows, M) MHK__JOIN(MHK__EACH, rows)(M)
#if MHK__NV == 2
#define MHK__DECLARE(i) MHK__V s##i##a = zero, s##i##b = zero;
#define MHK__STEP(i) x = MHK__SET(a[i]); s##i##a = MHK__FMA(x, ba, s##i##a); s##i##b = MHK__FMA(x, bb, s##i##b);
#define MHK__WRITE(i) MHK__STORE(c, s##i##a); MHK__STORE(c + MHK__W, s##i##b); c += ldc;
#define MHK__ADD(i) MHK__STORE(c, MHK__LOAD(c) + s##i##a); MHK__STORE(c + MHK__W, MHK__LOAD(c + MHK__W) + s##i##b); c += ldc;
#elif MHK__NV == 3
#define MHK__DECLARE(i) MHK__V s##i##a = zero, s##i##b = zero, s##i##c = zero;
#define MHK__STEP(i) x = MHK__SET(a[i]); s##i##a = MHK__FMA(x, ba, s##i##a); s##i##b = MHK__FMA(x, bb, s##i##b); s##i##c = MHK__FMA(x, bc, s##i##c);
#define MHK__WRITE(i) MHK__STORE(c, s##i##a); MHK__STORE(c + MHK__W, s##i##b); MHK__STORE(c + 2 * MHK__W, s##i##c); c += ldc;
#define MHK__ADD(i) \
  MHK__STORE(c, MHK__LOAD(c) + s##i##a); MHK__STORE(c + MHK__W, MHK__LOAD(c + MHK__W) + s##i##b); \
  MHK__STORE(c + 2 * MHK__W, MHK__LOAD(c + 2 * MHK__W) + s##i##c); c += ldc;
#else
#define MHK__DECLARE(i) MHK__V s##i##a = zero, s##i##b = zero, s##i##c = zero, s##i##d = zero;
#define MHK__STEP(i) \
  x = MHK__SET(a[i]); s##i##a = MHK__FMA(x, ba, s##i##a); s##i##b = MHK__FMA(x, bb, s##i##b); \
  s##i##c = MHK__FMA(x, bc, s##i##c); s##i##d = MHK__FMA(x, bd, s##i##d);
#define MHK__WRITE(i) \
  MHK__STORE(c, s##i##a); MHK__STORE(c + MHK__W, s##i##b); MHK__STORE(c + 2 * MHK__W, s##i##c); MHK__STORE(c + 3 * MHK__W, s##i##d); c += ldc;
#define MHK__ADD(i) \
  MHK__STORE(c, MHK__LOAD(c) + s##i##a); MHK__STORE(c + MHK__W, MHK__LOAD(c + MHK__W) + s##i##b); \
  MHK__STORE(c + 2 * MHK__W, MHK__LOAD(c + 2 * MHK__W) + s##i##c); MHK__STORE(c + 3 * MHK__W, MHK__LOAD(c + 3 * MHK__W) + s##i##d); c += ldc;
#endif

#if MHK__NV == 2
#define MHK__MORE_B
#define MHK__LOAD_B
#elif MHK__NV == 3
#define MHK__MORE_B MHK__V bc;
#define MHK__LOAD_B bc = MHK__LOAD(b + 2 * MHK__W);
#else
#define MHK__MORE_B MHK__V bc, bd;
#define MHK__LOAD_B bc = MHK__LOAD(b + 2 * MHK__W); bd = MHK__LOAD(b + 3 * MHK__W);
#endif
/* c is asked for before it is needed: 3 to 8 % of large products */
#define MHK__WANT_C(i) MHK__PREFETCH_WRITE(c + i * ldc); MHK__PREFETCH_WRITE(c + i * ldc + MHK__NR - 1);
/* one height of the tile; panels of a are MHK__MR wide whatever the height */
#define MHK__TILE_OF(name, rows) \
  static void MHK__N(name)(mhk_index k, const mhk_real *MHK__RESTRICT a, const mhk_real *MHK__RESTRICT b, mhk_real *c, mhk_index ldc, int accumulate) { \
    const MHK__V zero = MHK__SET(MHK__R(0)); \
    const mhk_index next = k * MHK__MR; \
    MHK__V x, ba, bb; \
    MHK__MORE_B \
    MHK__EACH(rows, MHK__DECLARE) \
    MHK__EACH(rows, MHK__WANT_C) \
    for (; k > 0; k--, a += MHK__MR, b += MHK__NR) { \
      ba = MHK__LOAD(b); \
      bb = MHK__LOAD(b + MHK__W); \
      MHK__LOAD_B \
      MHK__PREFETCH(a + next); \
      MHK__EACH(rows, MHK__STEP) \
    } \
    if (accumulate) { \
      MHK__EACH(rows, MHK__ADD) \
    } else { \
      MHK__EACH(rows, MHK__WRITE) \
    } \
  }
MHK__TILE_OF(mhk__tile, MHK__MR)
MHK__TILE_OF(mhk__tile_half, MHK__HALF)

static void MHK__N(mhk__product)(mhk_index m, mhk_index n, mhk_index k, const mhk_real *a, const mhk_real *b, mhk_real *c, mhk_index ldc, int accumulate) {
  for (mhk_index j = 0; j < n; j += MHK__NR)
    for (mhk_index i = 0; i < m; i += MHK__MR) {
      const mhk_index mm = m - i < MHK__MR ? m - i : MHK__MR, nn = n - j < MHK__NR ? n - j : MHK__NR;
      const mhk_real *pa = a + i * k, *pb = b + j * k;
      mhk_real *to_c = c + i * ldc + j;
      if (nn == MHK__NR && mm == MHK__MR)
        MHK__N(mhk__tile)(k, pa, pb, to_c, ldc, accumulate);
      else if (nn == MHK__NR && mm == MHK__HALF)
        MHK__N(mhk__tile_half)(k, pa, pb, to_c, ldc, accumulate);
      else {
        mhk_real edge[MHK__MR * MHK__NR];
        if (mm <= MHK__HALF)
          MHK__N(mhk__tile_half)(k, pa, pb, edge, MHK__NR, 0);
        else
          MHK__N(mhk__tile)(k, pa, pb, edge, MHK__NR, 0);
        for (mhk_index ii = 0; ii < mm; ii++)
          for (mhk_index jj = 0; jj < nn; jj += MHK__W) {
            mhk_real *at = to_c + ii * ldc + jj;
            MHK__V v = MHK__LOAD(edge + ii * MHK__NR + jj);
            if (accumulate) v = v + MHK__LOADN(at, nn - jj);
            MHK__STOREN(at, v, nn - jj);
          }
      }
    }
}

/* ---- products of operands that need no packing (mhk__block) ---- */

/* MHK__TALL rows by two vectors of sums, or by one, with many registers (MHK__BROAD) by four: fewer loads for as many sums. Named variables, as above. */
#define MHK__SUM2(i) MHK__V s##i##a = zero, s##i##b = zero;
#define MHK__TAKE2(i) s##i##a = MHK__LOAD(from + (i) * ldc); s##i##b = MHK__LOAD(from + (i) * ldc + MHK__W);
#define MHK__TIMES2(i) x = MHK__SET(f[(i) * fs]); s##i##a = s##i##a * x; s##i##b = s##i##b * x;
#define MHK__GO2(i) x = MHK__SET(a[(i) * row]); s##i##a = MHK__FMA(x, ba, s##i##a); s##i##b = MHK__FMA(x, bb, s##i##b);
#define MHK__PUT2(i) MHK__STORE(c + (i) * ldc, s##i##a); MHK__STORE(c + (i) * ldc + MHK__W, s##i##b);
#define MHK__B2 ba = MHK__LOAD(b); bb = MHK__LOAD(b + MHK__W);
#define MHK__SUM4(i) MHK__SUM2(i) MHK__V s##i##c = zero, s##i##d = zero;
#define MHK__TAKE4(i) MHK__TAKE2(i) s##i##c = MHK__LOAD(from + (i) * ldc + 2 * MHK__W); s##i##d = MHK__LOAD(from + (i) * ldc + 3 * MHK__W);
#define MHK__TIMES4(i) MHK__TIMES2(i) s##i##c = s##i##c * x; s##i##d = s##i##d * x;
#define MHK__GO4(i) MHK__GO2(i) s##i##c = MHK__FMA(x, bc, s##i##c); s##i##d = MHK__FMA(x, bd, s##i##d);
#define MHK__PUT4(i) MHK__PUT2(i) MHK__STORE(c + (i) * ldc + 2 * MHK__W, s##i##c); MHK__STORE(c + (i) * ldc + 3 * MHK__W, s##i##d);
#define MHK__B4 MHK__B2 bc = MHK__LOAD(b + 2 * MHK__W); bd = MHK__LOAD(b + 3 * MHK__W);
#define MHK__SUM1(i) MHK__V s##i##a = zero;
#define MHK__TAKE1(i) s##i##a = MHK__LOAD(from + (i) * ldc);
#define MHK__TIMES1(i) s##i##a = s##i##a * MHK__SET(f[(i) * fs]);
#define MHK__GO1(i) s##i##a = MHK__FMA(MHK__SET(a[(i) * row]), ba, s##i##a);
#define MHK__PUT1(i) MHK__STORE(c + (i) * ldc, s##i##a);
#define MHK__B1 ba = MHK__LOAD(b);
/* k: the range of the second product */
#define MHK__BLOCK_OF(name, rows, v, VARS) \
  static void MHK__N(name)(const mhk__block *p, mhk_index i, mhk_index j, mhk_index k0, mhk_index k1) { \
    const MHK__V zero = MHK__SET(MHK__R(0)); \
    const mhk_index ldb = p->ldb, ldc = p->ldc; \
    mhk_index row, col; \
    const mhk_real *MHK__RESTRICT a, *MHK__RESTRICT b; \
    mhk_real *c = p->c + i * ldc + j; \
    mhk_index k; \
    VARS; \
    MHK__EACH(rows, MHK__JOIN(MHK__SUM, v)) \
    if (p->c0) { \
      const mhk_real *from = p->c0 + i * ldc + j; \
      MHK__EACH(rows, MHK__JOIN(MHK__TAKE, v)) \
    } \
    if (p->a1) { \
      row = p->row1; \
      col = p->col1; \
      for (k = p->k1, a = p->a1 + i * row, b = p->b1 + j; k > 0; k--, a += col, b += ldb) { \
        MHK__JOIN(MHK__B, v) \
        MHK__EACH(rows, MHK__JOIN(MHK__GO, v)) \
      } \
    } \
    if (p->f) { \
      const mhk_index fs = p->fs; \
      const mhk_real *f = p->f + i * fs; \
      MHK__EACH(rows, MHK__JOIN(MHK__TIMES, v)) \
    } \
    row = p->row2; \
    col = p->col2; \
    for (k = k1 - k0, a = p->a2 + k0 * col + i * row, b = p->b2 + k0 * ldb + j; k > 0; k--, a += col, b += ldb) { \
      MHK__JOIN(MHK__B, v) \
      MHK__EACH(rows, MHK__JOIN(MHK__GO, v)) \
    } \
    MHK__EACH(rows, MHK__JOIN(MHK__PUT, v)) \
  }
#define MHK__VARS4 MHK__V x, ba, bb, bc, bd
#define MHK__VARS2 MHK__V x, ba, bb
#define MHK__VARS1 MHK__V ba
#ifdef MHK__BROAD
MHK__BLOCK_OF(mhk__block_tall4, MHK__TALL, 4, MHK__VARS4)
MHK__BLOCK_OF(mhk__block_low4, 4, 4, MHK__VARS4)
#endif
MHK__BLOCK_OF(mhk__block_tall2, MHK__TALL, 2, MHK__VARS2)
MHK__BLOCK_OF(mhk__block_tall1, MHK__TALL, 1, MHK__VARS1)
MHK__BLOCK_OF(mhk__block_low2, 4, 2, MHK__VARS2)
MHK__BLOCK_OF(mhk__block_low1, 4, 1, MHK__VARS1)

#if MHK__PASS != 1 && MHK__PASS != 5
#define MHK__FETCH(p) MHK__PREFETCH(p)
#else
#define MHK__FETCH(p) ((void)(p))
#endif
static void MHK__N(mhk__fetch)(mhk__ahead *a, mhk_index rows) {
  for (; rows > 0 && a->now < a->parts; rows--) {
    const mhk_real *at = a->part[a->now].at;
    for (mhk_index j = 0; j < a->part[a->now].w; j += 64 / (mhk_index)sizeof(mhk_real)) MHK__FETCH(at + j);
    a->part[a->now].at = at + a->part[a->now].ld;
    if (--a->part[a->now].rows == 0) a->now++;
  }
}

/* m rows of whole vectors that hold n columns */
static void MHK__N(mhk__blocks)(const mhk__block *p, mhk_index m, mhk_index n, int part) {
  mhk_index j, tall;
  for (mhk_index i = 0; i < m; i += tall ? MHK__TALL : 4) {
    mhk_index first = 0, last = n, from = 0, to = p->k2;
    tall = m - i >= MHK__TALL ? m - i != 8 || MHK__TALL == 8 : m - i > 4;
    if (part == mhk__lower_c) last = mhk__min(n, i + (tall ? MHK__TALL : 4));
    if (part == mhk__upper_c) first = i / MHK__W * MHK__W;
    if (part == mhk__lower_a) to = mhk__min(to, i + (tall ? MHK__TALL : 4));
    if (part == mhk__upper_a) from = i;
    if (p->ahead) MHK__N(mhk__fetch)(p->ahead, 16); /* more would fill the queue of misses, fewer come too late */
    j = first;
#ifdef MHK__BROAD
    for (; j + 3 * MHK__W < last; j += 4 * MHK__W)
      if (tall)
        MHK__N(mhk__block_tall4)(p, i, j, from, to);
      else
        MHK__N(mhk__block_low4)(p, i, j, from, to);
#endif
    for (; j + MHK__W < last; j += 2 * MHK__W)
      if (tall)
        MHK__N(mhk__block_tall2)(p, i, j, from, to);
      else
        MHK__N(mhk__block_low2)(p, i, j, from, to);
    if (j < last) {
      if (tall)
        MHK__N(mhk__block_tall1)(p, i, j, from, to);
      else
        MHK__N(mhk__block_low1)(p, i, j, from, to);
    }
  }
}

/* c (m,n) = f (c0 + a1 b1) + a b with what the block says of c0, a1 and f, which are then forgotten; a (m,k) by strides, rows of b and c ldb and ldc apart */
static void MHK__N(mhk__multiply)(mhk__block *p, mhk_index m, mhk_index n, mhk_index k, const mhk_real *a, mhk_index row, mhk_index col, const mhk_real *b,
                                  mhk_index ldb, mhk_real *c, mhk_index ldc, int part) {
  p->k2 = k;
  p->a2 = a;
  p->row2 = row;
  p->col2 = col;
  p->b2 = b;
  p->ldb = ldb;
  p->c = c;
  p->ldc = ldc;
  MHK__N(mhk__blocks)(p, m, n, part);
  p->c0 = p->a1 = p->f = NULL;
}

/* Rows go in tiles of MHK__TALL and of 4 (see mhk__blocks), columns in vectors: is nothing left over, so that c needs no room for it? */
static int MHK__N(mhk__fits)(mhk_index m, mhk_index n) {
  const mhk_index rest = m % MHK__TALL;
  return n % MHK__W == 0 && (rest == 0 || rest == 4 || (m >= MHK__TALL && rest + MHK__TALL == 8));
}

static int MHK__N(mhk__product_plain)(mhk_index m, mhk_index n, mhk_index k, const mhk_real *a, mhk_index row, mhk_index col, const mhk_real *b,
                                      mhk_index ldb, mhk_real *c, mhk_index ldc, int accumulate) {
  mhk__block p;
  if (!MHK__N(mhk__fits)(m, n)) return 0;
  memset(&p, 0, sizeof p);
  if (accumulate) p.c0 = c;
  MHK__N(mhk__multiply)(&p, m, n, k, a, row, col, b, ldb, c, ldc, mhk__whole);
  return 1;
}

/* n rows of w numbers, ld apart, to rows of MHK__LD(w), each times its factor if there are any; the padding becomes zero */
static void MHK__N(mhk__rows_in)(mhk_index n, mhk_index w, const mhk_real *src, mhk_index ld, const mhk_real *f, mhk_real *dst) {
  mhk_index j;
  for (mhk_index i = 0; i < n; i++, src += ld) {
    const MHK__V x = MHK__SET(f ? f[i] : MHK__R(1));
    for (j = 0; j + MHK__W <= w; j += MHK__W, dst += MHK__W) MHK__STORE(dst, MHK__LOAD(src + j) * x);
    if (j < w) {
      MHK__STORE(dst, MHK__LOAD_FIRST(src + j, w - j) * x);
      j += MHK__W;
      dst += MHK__W;
    }
    for (; j < MHK__LD(w); j += MHK__W, dst += MHK__W) MHK__STORE(dst, MHK__SET(MHK__R(0)));
  }
}

/* both at once, plain and times f: rows that lie a multiple of the page apart share few places of the nearest cache and may be gone when read again */
static void MHK__N(mhk__rows_in_twice)(mhk_index n, mhk_index w, const mhk_real *src, mhk_index ld, const mhk_real *f, mhk_real *dst, mhk_real *scaled) {
  mhk_index j;
  for (mhk_index i = 0; i < n; i++, src += ld, dst += MHK__LD(w), scaled += MHK__LD(w)) {
    const MHK__V x = MHK__SET(f[i]);
    for (j = 0; j + MHK__W <= w; j += MHK__W) {
      const MHK__V v = MHK__LOAD(src + j);
      MHK__STORE(dst + j, v);
      MHK__STORE(scaled + j, v * x);
    }
    if (j < w) {
      const MHK__V v = MHK__LOAD_FIRST(src + j, w - j);
      MHK__STORE(dst + j, v);
      MHK__STORE(scaled + j, v * x);
      j += MHK__W;
    }
    for (; j < MHK__LD(w); j += MHK__W) {
      MHK__STORE(dst + j, MHK__SET(MHK__R(0)));
      MHK__STORE(scaled + j, MHK__SET(MHK__R(0)));
    }
  }
}

/* the same turned: w rows of MHK__LD(n) */
static void MHK__N(mhk__turned_in)(mhk_index n, mhk_index w, const mhk_real *src, mhk_index ld, mhk_real *dst) {
  const mhk_index wide = MHK__LD(n);
  mhk_index i, j = 0;
#ifdef MHK__TRANSPOSES
  for (i = 0; i < wide; i += MHK__W)
    for (j = 0; j + MHK__W <= w; j += MHK__W)
      if (n - i >= MHK__W)
        MHK__N(mhk__transpose)(src + i * ld + j, ld, MHK__W, dst + j * wide + i, wide, MHK__W);
      else
        MHK__N(mhk__transpose)(src + i * ld + j, ld, n - i, dst + j * wide + i, wide, MHK__W);
#endif
  for (; j < w; j++) {
    for (i = 0; i < n; i++) dst[j * wide + i] = src[i * ld + j];
    for (; i < wide; i++) dst[j * wide + i] = 0;
  }
}

/* n padded rows of w numbers, turned: to w rows of n */
static void MHK__N(mhk__turned_out)(mhk_index n, mhk_index w, const mhk_real *src, mhk_real *dst) {
  const mhk_index ld = MHK__LD(w);
  mhk_index i = 0, j;
#ifdef MHK__TRANSPOSES
  for (; i + MHK__W <= n; i += MHK__W) {
    for (j = 0; j + MHK__W <= w; j += MHK__W) MHK__N(mhk__transpose)(src + i * ld + j, ld, MHK__W, dst + j * n + i, n, MHK__W);
    for (; j < w; j++) {
      for (mhk_index l = i; l < i + MHK__W; l++) dst[j * n + l] = src[l * ld + j];
    }
  }
#endif
  for (; i < n; i++)
    for (j = 0; j < w; j++) dst[j * n + i] = src[i * ld + j];
}

/* n padded rows of w numbers to rows ld apart, added to what is there or not: row i of src times f[i], or plus f[i] times row i of plus */
static void MHK__N(mhk__rows_out)(mhk_index n, mhk_index w, const mhk_real *src, const mhk_real *f, const mhk_real *plus, mhk_real *dst, mhk_index ld,
                                int add) {
  for (mhk_index i = 0; i < n; i++, src += MHK__LD(w), dst += ld) {
    const MHK__V x = MHK__SET(f ? f[i] : MHK__R(1));
    for (mhk_index j = 0; j < w; j += MHK__W) {
      MHK__V v = MHK__LOAD(src + j);
      if (plus)
        v = MHK__FMA(x, MHK__LOAD(plus + i * MHK__LD(w) + j), v);
      else
        v = v * x;
      if (add) v = v + MHK__LOADN(dst + j, w - j);
      MHK__STOREN(dst + j, v, w - j);
    }
  }
}

static inline mhk_real MHK__N(mhk__dot)(mhk_index n, const mhk_real *x, const mhk_real *y) {
  MHK__V sum = MHK__SET(MHK__R(0));
  mhk_real rest = 0;
  mhk_index i;
  for (i = 0; i + MHK__W <= n; i += MHK__W) sum = MHK__FMA(MHK__LOAD(x + i), MHK__LOAD(y + i), sum);
  for (; i < n; i++) rest += x[i] * y[i];
  return MHK__N(mhk__hsum)(sum) + rest;
}
#ifndef MOHAWK_NO_TRAINING
/* one square of MHK__W, turned */
static inline void MHK__N(mhk__turn_tile)(const mhk_real *src, mhk_index ld, mhk_real *dst, mhk_index wide) {
#ifdef MHK__TRANSPOSES
  MHK__N(mhk__transpose)(src, ld, MHK__W, dst, wide, MHK__W);
#else
  for (mhk_index i = 0; i < MHK__W; i++)
    for (mhk_index j = 0; j < MHK__W; j++) dst[j * wide + i] = src[i * ld + j];
#endif
}

/* out[i] = sum of the n rows of one vector each */
static void MHK__N(mhk__row_sums)(mhk_index n, const mhk_real *part, mhk_real *out) {
  for (mhk_index i = 0; i < n; i += MHK__W, part += MHK__W * MHK__W) {
    const mhk_index rows = mhk__min(MHK__W, n - i);
    mhk_real turned[MHK__W * MHK__W];
    MHK__N(mhk__turn_tile)(part, MHK__W, turned, MHK__W);
    MHK__V sum = MHK__LOAD(turned);
    for (mhk_index l = 1; l < MHK__W; l++) sum = sum + MHK__LOAD(turned + l * MHK__W);
    MHK__STOREN(out + i, sum, rows);
  }
}

/* out[i] = sum over j of x_ij y_ij (- u_ij v_ij if u), all rows padded with zeros */
static void MHK__N(mhk__row_dots)(mhk_index n, mhk_index w, const mhk_real *x, const mhk_real *y, const mhk_real *u, const mhk_real *v, mhk_real *out) {
  mhk_real part[MHK__W * MHK__W];
  for (mhk_index i = 0; i < n; i += MHK__W) {
    const mhk_index rows = mhk__min(MHK__W, n - i);
    for (mhk_index l = 0; l < MHK__W; l++) {
      MHK__V sum = MHK__SET(MHK__R(0));
      for (mhk_index j = 0; l < rows && j < w; j += MHK__W) {
        const mhk_index at = (i + l) * MHK__LD(w) + j;
        sum = MHK__FMA(MHK__LOAD(x + at), MHK__LOAD(y + at), sum);
        if (u) sum = sum - MHK__LOAD(u + at) * MHK__LOAD(v + at);
      }
      MHK__STORE(part + l * MHK__W, sum);
    }
    MHK__N(mhk__row_sums)(rows, part, out + i);
  }
}
#endif /* MOHAWK_NO_TRAINING */

/* gelu_new(x) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3): the tanh form without its cancellation */
static inline MHK__V MHK__N(mhk__vgelu_gate)(MHK__V x) {
  return MHK__N(mhk__vsigmoid)(x * MHK__FMA(x * x, MHK__SET(MHK__R(2 * 0.7978845608028654 * 0.044715)), MHK__SET(MHK__R(2 * 0.7978845608028654))));
}

static void MHK__N(mhk__gelu)(mhk_index n, const mhk_real *x, mhk_real *y) {
  for (mhk_index i = 0; i < n; i += MHK__W) {
    const MHK__V v = MHK__LOADN(x + i, n - i);
    MHK__STOREN(y + i, v * MHK__N(mhk__vgelu_gate)(v), n - i);
  }
}
#ifndef MOHAWK_NO_TRAINING
static void MHK__N(mhk__gelu_back)(mhk_index n, const mhk_real *x, const mhk_real *dy, mhk_real *dx) {
  const MHK__V one = MHK__SET(MHK__R(1));
  for (mhk_index i = 0; i < n; i += MHK__W) {
    const MHK__V v = MHK__LOADN(x + i, n - i), s = MHK__N(mhk__vgelu_gate)(v);
    const MHK__V slope = MHK__FMA(v * v, MHK__SET(MHK__R(6 * 0.7978845608028654 * 0.044715)), MHK__SET(MHK__R(2 * 0.7978845608028654))); /* d(2u)/dx */
    const MHK__V d = s * MHK__FMA(v * slope, one - s, one);
    MHK__STOREN(dx + i, d * MHK__LOADN(dy + i, n - i), n - i);
  }
}
#endif /* MOHAWK_NO_TRAINING */

static void MHK__N(mhk__epilogue_rows)(mhk_index m, mhk_index n, mhk_real *c, mhk_index ldc, mhk_index offset, const mhk__epilogue *e, mhk_index column) {
  for (mhk_index i = 0; i < m; i++) {
    mhk_real *MHK__RESTRICT row = c + i * ldc;
    if (e->bias)
      for (mhk_index j = 0; j < n; j++) row[j] += e->bias[column + j];
    if (e->residual)
      for (mhk_index j = 0; j < n; j++) row[j] += e->residual[offset + i * ldc + j];
    if (e->before) memcpy(e->before + offset + i * ldc, row, (size_t)n * sizeof(mhk_real));
    if (e->gelu) MHK__N(mhk__gelu)(n, row, row);
  }
}

/* ---- few rows of x against rows of w: as fast as w comes from memory ---- */

/* Sums of products of rows of w (n,k) with m rows of x. Four streams of w, each running straight through its share of the rows, two where registers
   are few: it takes that many to read at full rate, and lines asked for ahead carry them over page borders. xs holds x in the order in which pairs of
   vectors of w are loaded; what is left of k after the pairs is read from x. Every sum is made in the same order, wherever its row stands. */
#define MHK__FEW_ROWS(name, type, pair, number, m, each_row, streams, each_stream) \
  static void MHK__N(name)(mhk_index n, mhk_index k, const mhk_real *x, const mhk_real *xs, const type *w, mhk_real *y, mhk_index ldy) { \
    const mhk_index whole = k / (2 * MHK__W) * (2 * MHK__W), each = (n + streams - 1) / streams, ahead = (m > 1 ? 2048 : 1024) / sizeof *w; \
    mhk_index t, p, r, i; \
    for (t = 0; t < each; t++) { \
      const MHK__V zero = MHK__SET(MHK__R(0)); \
      MHK__V wa, wb; \
      mhk_real sum[streams][m]; \
      each_stream(MHK__STREAM_START, type, each_row) \
      for (p = 0; p < whole; p += 2 * MHK__W) { each_stream(MHK__STREAM_STEP, pair, each_row) } \
      each_stream(MHK__STREAM_END, type, each_row) \
      for (r = 0; r < streams && t + r * each < n; r++) \
        for (i = 0; i < m; i++) { \
          for (p = whole; p < k; p++) sum[r][i] += number(w[(t + r * each) * k + p]) * x[i * k + p]; \
          y[i * ldy + t + r * each] = sum[r][i]; \
        } \
    } \
  }
#define MHK__STREAM_START(r, type, each_row) \
  const type *w##r = w + (t + r * each < n ? t + r * each : t) * k; \
  each_row(MHK__SUM_START, r)
#define MHK__STREAM_STEP(r, pair, each_row) \
  if (sizeof *w * 2 * MHK__W >= 32) MHK__PREFETCH(w##r + p + ahead); \
  if (sizeof *w * 2 * MHK__W > 64) MHK__PREFETCH(w##r + p + ahead + MHK__W); \
  pair(w##r + p, wa, wb) \
  each_row(MHK__SUM_STEP, r)
#define MHK__STREAM_END(r, type, each_row) each_row(MHK__SUM_END, r)
#define MHK__SUM_START(r, i) MHK__V s##r##i = zero;
#define MHK__SUM_STEP(r, i) \
  s##r##i = MHK__FMA(wa, MHK__LOAD(xs + i * k + p), s##r##i); \
  s##r##i = MHK__FMA(wb, MHK__LOAD(xs + i * k + p + MHK__W), s##r##i);
#define MHK__SUM_END(r, i) sum[r][i] = MHK__N(mhk__hsum)(s##r##i);
#define MHK__THREE_STREAMS(M, a, b) M(0, a, b) M(1, a, b) M(2, a, b)
#define MHK__FOUR_STREAMS(M, a, b) M(0, a, b) M(1, a, b) M(2, a, b) M(3, a, b)
#define MHK__ROWS1(M, r) M(r, 0)
#define MHK__ROWS2(M, r) M(r, 0) M(r, 1)
#define MHK__ROWS3(M, r) M(r, 0) M(r, 1) M(r, 2)
#define MHK__ROWS4(M, r) M(r, 0) M(r, 1) M(r, 2) M(r, 3)
#if MHK__PASS == 3 || MHK__PASS == 4
#define MHK__FEW_ROWS4(name, type, pair, number) MHK__FEW_ROWS(name, type, pair, number, 4, MHK__ROWS4, 4, MHK__FOUR_STREAMS)
#else
#define MHK__FEW_ROWS4(name, type, pair, number) MHK__FEW_ROWS(name, type, pair, number, 4, MHK__ROWS4, 3, MHK__THREE_STREAMS)
#endif
#define MHK__FEW_ROWS_OF(name, type, pair, number) \
  MHK__FEW_ROWS(MHK__JOIN2(name, 1), type, pair, number, 1, MHK__ROWS1, 4, MHK__FOUR_STREAMS) \
  MHK__FEW_ROWS(MHK__JOIN2(name, 2), type, pair, number, 2, MHK__ROWS2, 4, MHK__FOUR_STREAMS) \
  MHK__FEW_ROWS(MHK__JOIN2(name, 3), type, pair, number, 3, MHK__ROWS3, 4, MHK__FOUR_STREAMS) \
  MHK__FEW_ROWS4(MHK__JOIN2(name, 4), type, pair, number) \
  static void MHK__N(name)(mhk_index m, mhk_index n, mhk_index k, const mhk_real *x, const mhk_real *xs, const type *w, mhk_real *y, mhk_index ldy) { \
    for (; m > 4; m -= 4, x += 4 * k, xs += 4 * k, y += 4 * ldy) MHK__N(MHK__JOIN2(name, 4))(n, k, x, xs, w, y, ldy); \
    if (m == 1) MHK__N(MHK__JOIN2(name, 1))(n, k, x, xs, w, y, ldy); \
    if (m == 2) MHK__N(MHK__JOIN2(name, 2))(n, k, x, xs, w, y, ldy); \
    if (m == 3) MHK__N(MHK__JOIN2(name, 3))(n, k, x, xs, w, y, ldy); \
    if (m == 4) MHK__N(MHK__JOIN2(name, 4))(n, k, x, xs, w, y, ldy); \
  }
#define MHK__PLAIN(v) (v)
#define MHK__PAIR(p, a, b) \
  a = MHK__LOAD(p); \
  b = MHK__LOAD(p + MHK__W);
MHK__FEW_ROWS_OF(mhk__few_rows, mhk_real, MHK__PAIR, MHK__PLAIN)
#if MHK__W == 1
#define MHK__PAIR_BF16(p, a, b) \
  a = mhk__bf16_to_f32((p)[0]); \
  b = mhk__bf16_to_f32((p)[1]);
#define MHK__PAIR_F16(p, a, b) \
  a = mhk__f16_to_f32((p)[0]); \
  b = mhk__f16_to_f32((p)[1]);
#elif defined(MHK__LOAD_F16)
/* both numbers of each 32-bit word at once: one load and two cheap operations for two vectors, the even numbers and the odd ones */
#define MHK__PAIR_BF16(p, a, b) { \
  const MHK__WORDS words = MHK__LOAD_WORDS(p); \
  a = MHK__EVEN_BF16(words); \
  b = MHK__ODD_BF16(words); \
}
#define MHK__PAIR_F16(p, a, b) \
  a = MHK__LOAD_F16(p); \
  b = MHK__LOAD_F16(p + MHK__W);
#endif
#ifdef MHK__PAIR_F16
MHK__FEW_ROWS_OF(mhk__few_rows_bf16, uint16_t, MHK__PAIR_BF16, mhk__bf16_to_f32)
MHK__FEW_ROWS_OF(mhk__few_rows_f16, uint16_t, MHK__PAIR_F16, mhk__f16_to_f32)
#endif

/* y (m,n) = x (m,k) times rows of w (n,k); work holds (m + 1) k numbers */
static void MHK__N(mhk__rows_times)(mhk_index m, mhk_index n, mhk_index k, const mhk_real *x, const void *w, mhk_dtype dtype, mhk_real *y, mhk_index ldy,
                                    mhk_real *work) {
  if (dtype == MHK_REAL) {
    MHK__N(mhk__few_rows)(m, n, k, x, x, (const mhk_real *)w, y, ldy);
    return;
  }
#ifdef MHK__PAIR_F16
  if (dtype == MHK_F16) {
    MHK__N(mhk__few_rows_f16)(m, n, k, x, x, (const uint16_t *)w, y, ldy);
    return;
  }
  if (dtype == MHK_BF16) {
    const mhk_real *from = x;
#if MHK__W > 1
    for (mhk_index i = 0; i < m; i++)
      for (mhk_index p = 0; p + 2 * MHK__W <= k; p += 2 * MHK__W)
        for (mhk_index l = 0; l < MHK__W; l++) {
          work[i * k + p + l] = x[i * k + p + 2 * l];
          work[i * k + p + MHK__W + l] = x[i * k + p + 2 * l + 1];
        }
    from = work;
#endif
    MHK__N(mhk__few_rows_bf16)(m, n, k, x, from, (const uint16_t *)w, y, ldy);
    return;
  }
#endif
  for (mhk_index j = 0; j < n; j++) {
    MHK__N(mhk__widen)(k, (const char *)w + j * k * (mhk_index)mhk_dtype_size(dtype), dtype, work);
    MHK__N(mhk__few_rows)(m, 1, k, x, x, work, y + j, ldy);
  }
}

/* ---- rows against quantised weights: with AVX-512 by the kernels of AVX2, or by those for AVX512-VNNI further down */

#if MHK__PASS != 3 || defined(MHK__HAS_VNNI)
/* y of rows [16 block, 16 block + 16) of w, as far as they are wanted, for rows [i, i + m) of x */
static void MHK__N(mhk__q_store)(const mhk__q_args *a, mhk_index block, mhk_index i, mhk_index m, const float *sums) {
  const mhk_index n = block * MHK__Q_ROWS - a->n0, from = n < 0 ? -n : 0, to = a->N - n < MHK__Q_ROWS ? a->N - n : MHK__Q_ROWS;
  for (mhk_index row = 0; row < m; row++)
    for (mhk_index r = from; r < to; r++) a->y[(i + row) * a->ldy + n + r] = sums[row * MHK__Q_ROWS + r];
}

/* Loops of 32 are what compilers turn into vectors without being told to. A number is not finite when its bits, less the sign, reach those of infinity. */
static inline void MHK__N(mhk__q_round)(const mhk__q_args *a, mhk_index row, mhk_index g, int32_t digits[64]) {
  const mhk_index group = a->q->group, at = row * (a->K / group) + g;
  const mhk_real *MHK__RESTRICT x = a->x + row * a->K + g * group;
  int32_t top = 0, sum = 0;
  float most, size[64];
  for (mhk_index i = 0; i < group; i += 32) {
    int32_t bits[32];
    for (mhk_index j = 0; j < 32; j++) size[i + j] = (float)x[i + j];
    memcpy(bits, size + i, sizeof bits);
    for (mhk_index j = 0; j < 32; j++) top = (bits[j] & 0x7FFFFFFF) > top ? bits[j] & 0x7FFFFFFF : top;
  }
  if (top >= 0x7F800000) {
    memset(digits, 0, (size_t)group * sizeof *digits);
    a->scale[at] = (float)NAN;
    a->offset[at] = 0;
    return;
  }
  memcpy(&most, &top, sizeof most);
  const float up = most > MHK__Q_TINY ? MHK__Q_LIMIT / most : 0;
  for (mhk_index i = 0; i < group; i += 32)
    for (mhk_index j = 0; j < 32; j++) {
      const float v = size[i + j] * up;
      const int32_t digit = (int32_t)(v + (v < 0 ? -0.5f : 0.5f));
      digits[i + j] = digit;
      sum += digit;
    }
  a->scale[at] = most > MHK__Q_TINY ? most / MHK__Q_LIMIT : 0;
  a->offset[at] = -8 * sum;
}

#endif

#if (MHK__PASS == 3 && defined(MHK__HAS_VNNI)) || (MHK__PASS == 4 && defined(MHK__HAS_SDOT))
static void MHK__N(mhk__q_prepare_bytes)(const mhk__q_args *a, mhk_index row) {
  const mhk_index group = a->q->group;
  signed char *MHK__RESTRICT to = (signed char *)(a->digits + row * a->K);
  int32_t digits[64];
  for (mhk_index g = 0; g < a->K / group; g++) {
    MHK__N(mhk__q_round)(a, row, g, digits);
    for (mhk_index i = 0; i < group; i += 32, to += 64) {
      for (mhk_index j = 0; j < 32; j++) to[j] = (signed char)(((digits[i + j] + 128) & 255) - 128);
      for (mhk_index j = 0; j < 32; j++) to[32 + j] = (signed char)((digits[i + j] + 128) >> 8);
    }
    if (a->dtype == MHK_Q8) a->offset[row * (a->K / group) + g] *= 16;
  }
}
#endif

#if MHK__PASS != 3
static void MHK__N(mhk__q_prepare)(const mhk__q_args *a, mhk_index row) {
  const mhk_index group = a->q->group;
  int16_t *MHK__RESTRICT to = a->digits + row * a->K;
  int32_t digits[64];
  for (mhk_index g = 0; g < a->K / group; g++, to += group) {
    MHK__N(mhk__q_round)(a, row, g, digits);
    for (mhk_index j = 0; j < group; j += 4) {
      to[j] = (int16_t)digits[j];
      to[j + 1] = (int16_t)digits[j + 2];
      to[j + 2] = (int16_t)digits[j + 1];
      to[j + 3] = (int16_t)digits[j + 3];
    }
  }
}

#if (MHK__PASS == 2 || MHK__PASS == 4 || MHK__PASS == 5) && !defined(MOHAWK_DOUBLE)
#if MHK__PASS == 2
#define MHK__I __m256i
#define MHK__I_LOAD(p) _mm256_loadu_si256((const __m256i *)(const void *)(p))
#define MHK__I_SET(x) _mm256_set1_epi32(x)
#define MHK__I_AND(a, b) _mm256_and_si256(a, b)
#define MHK__I_LEFT(a, n) _mm256_slli_epi16(a, n)
#define MHK__I_RIGHT(a, n) _mm256_srai_epi16(a, n)
#define MHK__I_DOWN(a, n) _mm256_srli_epi16(a, n)
#define MHK__I_DOT(sum, a, b) _mm256_add_epi32(sum, _mm256_madd_epi16(a, b))
#define MHK__I_ADD(a, b) _mm256_add_epi32(a, b)
#define MHK__I_REAL(a) _mm256_cvtepi32_ps(a)
#define MHK__HALVES(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p)))
#elif MHK__PASS == 4
#define MHK__I int32x4_t
#define MHK__I_LOAD(p) vreinterpretq_s32_s8(vld1q_s8((const int8_t *)(p)))
#define MHK__I_SET(x) vdupq_n_s32(x)
#define MHK__I_AND(a, b) vandq_s32(a, b)
#define MHK__I_LEFT(a, n) vreinterpretq_s32_s16(vshlq_n_s16(vreinterpretq_s16_s32(a), n))
#define MHK__I_RIGHT(a, n) vreinterpretq_s32_s16(vshrq_n_s16(vreinterpretq_s16_s32(a), n))
#define MHK__I_DOWN(a, n) vreinterpretq_s32_u16(vshrq_n_u16(vreinterpretq_u16_s32(a), n))
#define MHK__I_ADD(a, b) vaddq_s32(a, b)
#define MHK__I_REAL(a) ((MHK__V)vcvtq_f32_s32(a))
#define MHK__HALVES(p) MHK__LOAD_F16(p)
/* products of words are added to neighbours once a group, not at every step */
#define MHK__DOTS int32x4x2_t
#define MHK__NO_DOTS(sum) sum.val[0] = sum.val[1] = none;
#define MHK__I_DOT(sum, a, b) mhk__neon_dot(sum, vreinterpretq_s16_s32(a), vreinterpretq_s16_s32(b))
#define MHK__I_TOTAL(a) vpaddq_s32(a.val[0], a.val[1])
static inline int32x4x2_t mhk__neon_dot(int32x4x2_t sum, int16x8_t a, int16x8_t b) {
  sum.val[0] = vmlal_s16(sum.val[0], vget_low_s16(a), vget_low_s16(b));
  sum.val[1] = vmlal_high_s16(sum.val[1], a, b);
  return sum;
}
#else
#define MHK__I v128_t
#define MHK__I_LOAD(p) wasm_v128_load(p)
#define MHK__I_SET(x) wasm_i32x4_splat(x)
#define MHK__I_AND(a, b) wasm_v128_and(a, b)
#define MHK__I_LEFT(a, n) wasm_i16x8_shl(a, n)
#define MHK__I_RIGHT(a, n) wasm_i16x8_shr(a, n)
#define MHK__I_DOWN(a, n) wasm_u16x8_shr(a, n)
#define MHK__I_DOT(sum, a, b) wasm_i32x4_add(sum, wasm_i32x4_dot_i16x8(a, b))
#define MHK__I_ADD(a, b) wasm_i32x4_add(a, b)
#define MHK__I_REAL(a) ((MHK__V)wasm_f32x4_convert_i32x4(a))
#define MHK__HALVES(p) MHK__LOAD_F16(p)
#endif
#ifndef MHK__DOTS
#define MHK__DOTS MHK__I
#define MHK__NO_DOTS(sum) sum = none;
#define MHK__I_TOTAL(a) a
#endif
/* two integers of x, in every lane */
static inline MHK__I MHK__N(mhk__q_pair)(const int16_t *x) {
  int32_t both;
  memcpy(&both, x, sizeof both);
  return MHK__I_SET(both);
}

/* A lane is a row: 16-bit words of its four bytes, made by shifts, against pairs of x. The same integers as the plain loop below. A tile is R rows of x
   against the 16 of a block, which is read once; d<r><v> adds up what row r gives in vector v of the block. AVX-VNNI's sum of two products of words
   (VPDPWSSD) in place of the multiplication and addition of AVX2 was not faster on Sapphire Rapids: it runs on fewer ports and its sums wait longer. */
#if MHK__W == 8
#define MHK__Q_VECTORS(f, R) f(R, 0) f(R, 1)
#else
#define MHK__Q_VECTORS(f, R) f(R, 0) f(R, 1) f(R, 2) f(R, 3)
#endif
#define MHK__Q_ROWS_1(f, v) f(0, v)
#define MHK__Q_ROWS_2(f, v) f(0, v) f(1, v)
#define MHK__Q_ROWS_4(f, v) f(0, v) f(1, v) f(2, v) f(3, v)
#define MHK__Q_START(R, v) MHK__Q_ROWS_##R(MHK__Q_START_ROW, v)
#define MHK__Q_START_ROW(r, v) MHK__V sum##r##v = MHK__SET(0.0f);
#define MHK__Q_ZERO(R, v) MHK__Q_ROWS_##R(MHK__Q_ZERO_ROW, v)
#define MHK__Q_ZERO_ROW(r, v) MHK__DOTS d##r##v; MHK__NO_DOTS(d##r##v)
#define MHK__Q_DOT(r, v, w, at) d##r##v = MHK__I_DOT(d##r##v, w, MHK__N(mhk__q_pair)(x + (r) * K + (at)));
#define MHK__Q8_STEP(R, v) { \
  const MHK__I w = MHK__I_LOAD(p + 4 * MHK__W * (v)), w0 = MHK__I_RIGHT(MHK__I_LEFT(w, 8), 8), w1 = MHK__I_RIGHT(w, 8); \
  MHK__Q_ROWS_##R(MHK__Q8_ROW, v) }
#define MHK__Q8_ROW(r, v) MHK__Q_DOT(r, v, w0, 0) MHK__Q_DOT(r, v, w1, 2)
#define MHK__Q4_STEP(R, v) { \
  const MHK__I w = MHK__I_LOAD(p + 4 * MHK__W * (v)), w0 = MHK__I_AND(w, low), w1 = MHK__I_AND(MHK__I_DOWN(w, 8), low); \
  const MHK__I w2 = MHK__I_AND(MHK__I_DOWN(w, 4), low), w3 = MHK__I_DOWN(w, 12); \
  MHK__Q_ROWS_##R(MHK__Q4_ROW, v) }
#define MHK__Q4_ROW(r, v) MHK__Q_DOT(r, v, w0, 0) MHK__Q_DOT(r, v, w1, 2) MHK__Q_DOT(r, v, w2, 4) MHK__Q_DOT(r, v, w3, 6)
#define MHK__Q_END(R, v) { const MHK__V by = MHK__HALVES(scale + MHK__W * (v)); MHK__Q_ROWS_##R(MHK__Q_END_ROW, v) }
#define MHK__Q_END_ROW(r, v) \
  sum##r##v = MHK__FMA(MHK__I_REAL(MHK__I_ADD(MHK__I_TOTAL(d##r##v), MHK__I_SET(offset[(r) * groups] * less))), by * MHK__SET(size[(r) * groups]), sum##r##v);
#define MHK__Q_STORE(R, v) MHK__Q_ROWS_##R(MHK__Q_STORE_ROW, v)
#define MHK__Q_STORE_ROW(r, v) MHK__STORE(sums + (r) * MHK__Q_ROWS + MHK__W * (v), sum##r##v);
#define MHK__TILE_Q(type, step, factor, R) \
  static void MHK__N(mhk__##type##_##R)(const mhk__q_args *a, mhk_index b, mhk_index i) { \
    const mhk_index K = a->K, group = a->q->group, groups = K / group; \
    const signed char *p = (const signed char *)a->q->q + b * mhk__q_block_bytes(a->dtype, K); \
    const uint16_t *scale = a->q->scale + b * groups * MHK__Q_ROWS; \
    const int16_t *x = a->digits + i * K; \
    const float *size = a->scale + i * groups; \
    const int32_t less = factor, *offset = a->offset + i * groups; \
    const MHK__I low = MHK__I_SET(0x000F000F), none = MHK__I_SET(0); \
    float sums[R * MHK__Q_ROWS]; \
    mhk_index g, j; \
    MHK__Q_VECTORS(MHK__Q_START, R) \
    (void)low; \
    for (g = 0; g < groups; g++, scale += MHK__Q_ROWS, size++, offset++) { \
      MHK__Q_VECTORS(MHK__Q_ZERO, R) \
      for (j = 0; j < group; j += step, p += 4 * MHK__Q_ROWS, x += step) { \
        MHK__PREFETCH_L1(p + MHK__Q_AHEAD); \
        MHK__Q_VECTORS(MHK__##type##_STEP, R) \
      } \
      MHK__Q_VECTORS(MHK__Q_END, R) \
    } \
    MHK__Q_VECTORS(MHK__Q_STORE, R) \
    MHK__N(mhk__q_store)(a, b, i, R, sums); \
  }
MHK__TILE_Q(Q8, 4, 0, 1)
MHK__TILE_Q(Q8, 4, 0, 2)
MHK__TILE_Q(Q4, 8, 1, 1)
MHK__TILE_Q(Q4, 8, 1, 2)
#if MHK__W == 8
MHK__TILE_Q(Q8, 4, 0, 4)
MHK__TILE_Q(Q4, 8, 1, 4)
#define MHK__Q_FOUR(type) MHK__N(mhk__##type##_4)
#else /* the registers of fewer lanes do not hold the sums of four rows */
#define MHK__Q_FOUR(type) NULL
#endif
static void MHK__N(mhk__q_times)(const mhk__q_args *a, mhk_index first, mhk_index last) {
  if (a->dtype == MHK_Q8)
    mhk__q_tiles(a, first, last, MHK__N(mhk__Q8_1), MHK__N(mhk__Q8_2), MHK__Q_FOUR(Q8), NULL);
  else
    mhk__q_tiles(a, first, last, MHK__N(mhk__Q4_1), MHK__N(mhk__Q4_2), MHK__Q_FOUR(Q4), NULL);
}
#undef MHK__I
#undef MHK__I_LOAD
#undef MHK__I_SET
#undef MHK__I_AND
#undef MHK__I_LEFT
#undef MHK__I_RIGHT
#undef MHK__I_DOWN
#undef MHK__I_DOT
#undef MHK__I_ADD
#undef MHK__I_REAL
#undef MHK__I_TOTAL
#undef MHK__DOTS
#undef MHK__NO_DOTS
#undef MHK__HALVES
#undef MHK__Q_FOUR
#undef MHK__Q_VECTORS
#undef MHK__Q_ROWS_1
#undef MHK__Q_ROWS_2
#undef MHK__Q_ROWS_4
#undef MHK__Q_START
#undef MHK__Q_START_ROW
#undef MHK__Q_ZERO
#undef MHK__Q_ZERO_ROW
#undef MHK__Q_DOT
#undef MHK__Q_END
#undef MHK__Q_END_ROW
#undef MHK__Q_STORE
#undef MHK__Q_STORE_ROW
#undef MHK__Q8_STEP
#undef MHK__Q8_ROW
#undef MHK__Q4_STEP
#undef MHK__Q4_ROW
#undef MHK__TILE_Q
#else
static void MHK__N(mhk__q_times)(const mhk__q_args *a, mhk_index first, mhk_index last) {
  const mhk_index K = a->K, groups = K / a->q->group, chunks = a->q->group / (a->dtype == MHK_Q8 ? 4 : 8);
  for (mhk_index b = first; b < last; b++)
    for (mhk_index i = 0; i < a->M; i++) {
      const signed char *p = (const signed char *)a->q->q + b * mhk__q_block_bytes(a->dtype, K);
      const uint16_t *scale = a->q->scale + b * groups * MHK__Q_ROWS;
      const int16_t *x = a->digits + i * K;
      float sums[MHK__Q_ROWS];
      for (mhk_index r = 0; r < MHK__Q_ROWS; r++) sums[r] = 0;
      for (mhk_index g = 0; g < groups; g++) {
        int32_t dot[MHK__Q_ROWS];
        const float by = a->scale[i * groups + g];
        for (mhk_index r = 0; r < MHK__Q_ROWS; r++) dot[r] = a->dtype == MHK_Q8 ? 0 : a->offset[i * groups + g];
        for (mhk_index c = 0; c < chunks; c++, p += 4 * MHK__Q_ROWS) {
          for (mhk_index r = 0; r < MHK__Q_ROWS; r++) {
            const signed char *w = p + 4 * r;
            if (a->dtype == MHK_Q8)
              dot[r] += w[0] * x[0] + w[1] * x[2] + w[2] * x[1] + w[3] * x[3];
            else
              dot[r] += (w[0] & 15) * x[0] + (w[1] & 15) * x[2] + (w[2] & 15) * x[1] + (w[3] & 15) * x[3] + ((w[0] >> 4) & 15) * x[4] +
                        ((w[1] >> 4) & 15) * x[6] + ((w[2] >> 4) & 15) * x[5] + ((w[3] >> 4) & 15) * x[7];
          }
          x += a->dtype == MHK_Q8 ? 4 : 8;
        }
        for (mhk_index r = 0; r < MHK__Q_ROWS; r++) sums[r] += (float)dot[r] * (mhk__f16_to_f32(*scale++) * by);
      }
      MHK__N(mhk__q_store)(a, b, i, 1, sums);
    }
}
#endif
#endif
#ifndef MOHAWK_NO_TRAINING
/* Products of bfloat16 numbers on registers that know none: packed as ever, then rounded in place. The numbers of a pair along k change places, since
   VDPBF16PS adds the second product first. */
static void MHK__N(mhk__narrow_pack)(mhk_real *dst, mhk_index width, mhk_index rows, mhk_index k, mhk__matrix src) {
  MHK__N(mhk__pack)(dst, width, rows, k, src);
  for (mhk_index p = 0; p < rows; p += width, dst += width * k)
    for (mhk_index j = 0; j < k; j += 2) {
      mhk_real *MHK__RESTRICT x = dst + j * width, *MHK__RESTRICT y = x + width;
      if (j + 1 == k) {
        for (mhk_index i = 0; i < width; i++) x[i] = (mhk_real)mhk__bf16_to_f32(mhk__bf16_round(x[i]));
        break;
      }
      for (mhk_index i = 0; i < width; i++) {
        const mhk_real first = (mhk_real)mhk__bf16_to_f32(mhk__bf16_round(x[i]));
        x[i] = (mhk_real)mhk__bf16_to_f32(mhk__bf16_round(y[i]));
        y[i] = first;
      }
    }
}

static void MHK__N(mhk__narrow_pack_a)(void *dst, mhk_index rows, mhk_index k, mhk__matrix src) {
  MHK__N(mhk__narrow_pack)((mhk_real *)dst, MHK__MR, rows, k, src);
}

static void MHK__N(mhk__narrow_pack_b)(void *dst, mhk_index n_columns, mhk_index k, mhk__matrix src) {
  MHK__N(mhk__narrow_pack)((mhk_real *)dst, MHK__NR, n_columns, k, src);
}

static void MHK__N(mhk__narrow_product)(mhk_index m, mhk_index n, mhk_index k, const void *a, const void *b, mhk_real *c, mhk_index ldc, int accumulate) {
  MHK__N(mhk__product)(m, n, k, (const mhk_real *)a, (const mhk_real *)b, c, ldc, accumulate);
}
#endif /* MOHAWK_NO_TRAINING */
#endif /* MHK__TEMPLATE */

#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
/* the matrix that starts at element (i,j) of m */
static mhk__matrix mhk__mat_from(const mhk__matrix *m, mhk_index i, mhk_index j) {
  mhk__matrix at = *m;
  if (m->q) {
    at.n0 += m->col == 1 ? i : j;
    at.k0 += m->col == 1 ? j : i;
  } else if (m->data) /* there is none while work memory is counted */
    at.data = (const char *)m->data + (i * m->row + j * m->col) * (mhk_index)mhk_dtype_size(m->dtype);
  return at;
}

static mhk__matrix mhk__mat_turned(mhk__matrix m) {
  const mhk_index row = m.row;
  m.row = m.col;
  m.col = row;
  return m;
}

/* A weight (N,K), or its transpose (K,N) as products take it. */
static mhk__matrix mhk__mat_weight(const mhk_tensor *w, int turned) {
  mhk__matrix m = mhk__mat(w->data, w->dtype, w->shape[1], 1);
  if (w->quantised) {
    m.q = w->quantised;
    m.n0 = w->base_offset / w->shape[1];
  }
  return turned ? mhk__mat_turned(m) : m;
}

typedef struct mhk__gemm_args {
  mhk_index M, N, K, kc, nc;    /* a block of B is kc x nc */
  mhk_index i0, m, k0, k;       /* this round's rows and part of K: what is packed of A */
  mhk_index rows;               /* of a task; all divide into panels */
  mhk__matrix a, b;
  mhk_real *c, *packed;
  mhk_index ldc;
  const mhk__epilogue *e;
} mhk__gemm_args;

static int mhk__epilogue_works(const mhk__epilogue *e) { return e && (e->bias || e->residual || e->before || e->gelu); }

#define MHK__PACK_COLUMNS 64
#define MHK__ROW_BLOCK 84 /* rows of A, MHK__GEMM_K long, that stay in the second-level cache while the columns of a task pass: 168 gain nothing */
#define MHK__GEMM_K 512   /* with 256 and 384 the sums in C cost 2 to 8 %; with 768 the caches are too small for the blocks */
#define MHK__GEMM_N 256
#define MHK__GEMM_M 2048  /* rows of A packed at once */

/* packs rows of A for one block of k: panels lie one after the other, blocks of k one after the other */
static void mhk__gemm_pack(void *arg, mhk_index task, int worker) {
  const mhk__job *job = (const mhk__job *)arg;
  const mhk__gemm_args *g = (const mhk__gemm_args *)job->args;
  const mhk__kernels *ks = job->ctx->kernels;
  const mhk_index step = mhk__up(MHK__PACK_COLUMNS, ks->mr), groups = (g->m + step - 1) / step;
  const mhk_index k0 = task / groups * g->kc, i = task % groups * step, k = mhk__min(g->kc, g->k - k0);
  (void)worker;
  ks->pack(g->packed + mhk__up(g->m, ks->mr) * k0 + i * k, ks->mr, mhk__min(step, g->m - i), k,
           mhk__mat_from(&g->a, g->i0 + i, g->k0 + k0));
}

/* some columns of some of the packed rows: packs its own block of B, which then stays in the second-level cache */
static void mhk__gemm_block(void *arg, mhk_index task, int worker) {
  const mhk__job *job = (const mhk__job *)arg;
  const mhk__gemm_args *g = (const mhk__gemm_args *)job->args;
  const mhk__kernels *ks = job->ctx->kernels;
  const mhk_index parts = (g->m + g->rows - 1) / g->rows, j0 = task / parts * g->nc, n = mhk__min(g->nc, g->N - j0);
  const mhk_index from = task % parts * g->rows, to = mhk__min(g->m, from + g->rows), step = MHK__ROW_BLOCK / ks->mr * ks->mr;
  mhk_real *pb = job->work + worker * job->each;
  for (mhk_index k0 = 0; k0 < g->k; k0 += g->kc) {
    const mhk_index k = mhk__min(g->kc, g->k - k0);
    const mhk_real *pa = g->packed + mhk__up(g->m, ks->mr) * k0;
    ks->pack(pb, ks->nr, n, k, mhk__mat_turned(mhk__mat_from(&g->b, g->k0 + k0, j0)));
    for (mhk_index i = from; i < to; i += step) {
      const mhk_index m = mhk__min(step, to - i), at = (g->i0 + i) * g->ldc + j0;
      ks->product(m, n, k, pa + i * k, pb, g->c + at, g->ldc, g->k0 + k0 > 0 || (g->e && g->e->accumulate));
      if (g->k0 + k0 + k == g->K && mhk__epilogue_works(g->e)) ks->epilogue(m, n, g->c + at, g->ldc, at, g->e, j0);
    }
  }
}

static void mhk__gemm_few(void *arg, mhk_index task, int worker) {
  const mhk__job *job = (const mhk__job *)arg;
  const mhk__gemm_args *g = (const mhk__gemm_args *)job->args;
  const mhk__kernels *ks = job->ctx->kernels;
  const mhk_index j = task * g->nc, n = mhk__min(g->nc, g->N - j);
  ks->rows_times(g->M, n, g->K, (const mhk_real *)g->a.data, mhk__mat_from(&g->b, 0, j).data, g->b.dtype, g->c + j, g->ldc, job->work + worker * job->each);
  if (mhk__epilogue_works(g->e)) ks->epilogue(g->M, n, g->c + j, g->ldc, j, g->e, j);
}

#ifndef MOHAWK_DOUBLE
typedef struct mhk__q_job {
  mhk__q_args args;
  const mhk__epilogue *e;
  mhk_index step, first; /* blocks a task; the first of this round's rows */
} mhk__q_job;

static void mhk__q_prepare_task(void *arg, mhk_index task, int worker) {
  const mhk__job *job = (const mhk__job *)arg;
  (void)worker;
  job->ctx->kernels->q_prepare(&((const mhk__q_job *)job->args)->args, task);
}

static void mhk__q_task(void *arg, mhk_index task, int worker) {
  const mhk__job *job = (const mhk__job *)arg;
  const mhk__q_job *g = (const mhk__q_job *)job->args;
  const mhk__q_args *a = &g->args;
  const mhk__kernels *ks = job->ctx->kernels;
  const mhk_index first = a->n0 / MHK__Q_ROWS + task * g->step, last = mhk__min(first + g->step, mhk__q_blocks(a->n0 + a->N));
  const mhk_index from = mhk__max(0, first * MHK__Q_ROWS - a->n0), n = mhk__min(a->N, last * MHK__Q_ROWS - a->n0) - from;
  (void)worker;
  ks->q_times(a, first, last);
  if (mhk__epilogue_works(g->e)) ks->epilogue(a->M, n, a->y + from, a->ldy, g->first * a->ldy + from, g->e, from);
}

#define MHK__Q_ROUND 512 /* rows of x made integers at once: the weights are read again for the next */

/* c (M,N) = x (M,K) times the transpose of N quantised rows of w */
static void mhk__q_gemm(mhk_context *ctx, mhk_index M, mhk_index N, mhk_index K, const mhk_real *x, mhk__matrix w, mhk_real *c, mhk_index ldc,
                        const mhk__epilogue *e) {
  const mhk__mark mark = mhk__scratch_mark(ctx);
  const mhk_index most = mhk__min(M, MHK__Q_ROUND), blocks = mhk__q_blocks(w.n0 + N) - w.n0 / MHK__Q_ROWS, bytes = mhk__q_block_bytes(w.dtype, K);
  mhk__q_job g;
  g.args.N = N;
  g.args.K = K;
  g.args.q = w.q;
  g.args.dtype = w.dtype;
  g.args.n0 = w.n0;
  g.args.ldy = ldc;
  g.args.digits = (int16_t *)mhk__scratch(ctx, most * K, sizeof(int16_t));
  g.args.scale = (float *)mhk__scratch(ctx, most * (K / w.q->group), sizeof(float));
  g.args.offset = (int32_t *)mhk__scratch(ctx, most * (K / w.q->group), sizeof(int32_t));
  g.e = e;
  g.step = M > 8 ? mhk__max(4, 262144 / bytes) : mhk__max(1, 65536 / bytes); /* many rows are read again by every task */
  for (g.first = 0; g.args.digits && g.args.scale && g.args.offset && g.first < M; g.first += most) {
    g.args.M = mhk__min(most, M - g.first);
    g.args.x = x ? x + g.first * K : NULL; /* NULL: work memory is counted */
    g.args.y = c ? c + g.first * ldc : NULL;
    mhk__run(ctx, &g, g.args.M, 0, 1, (double)g.args.M * (double)K, mhk__q_prepare_task);
    mhk__run(ctx, &g, (blocks + g.step - 1) / g.step, 0, 1, (double)g.args.M * (double)N * (double)K, mhk__q_task);
  }
  mhk__scratch_rewind(ctx, mark);
}
#endif

static void mhk__gemm(mhk_context *ctx, mhk_index M, mhk_index N, mhk_index K, mhk__matrix a, mhk__matrix b, mhk_real *c, mhk_index ldc,
                      const mhk__epilogue *e);

/* mhk__gemm for a b whose rows from `have` on are not quantised: two products, side by side or one added to the other */
static void mhk__gemm_mixed(mhk_context *ctx, mhk_index M, mhk_index N, mhk_index K, mhk__matrix a, mhk__matrix b, mhk_real *c, mhk_index ldc,
                            const mhk__epilogue *e, mhk_index have) {
  const mhk_index length = b.col == 1 ? b.row : b.col, skip = mhk__max(0, b.n0 - b.q->rows);
  const mhk__matrix rest = mhk__mat(b.q->rest + skip * length + b.k0, MHK_REAL, b.row, b.col);
  mhk__epilogue part;
  memset(&part, 0, sizeof part);
  if (e) part = *e;
  if (b.row == 1) {
    if (have > 0) mhk__gemm(ctx, M, have, K, a, b, c, ldc, e);
    if (part.bias) part.bias += have;
    if (part.residual) part.residual += have;
    if (part.before) part.before += have;
    mhk__gemm(ctx, M, N - have, K, a, rest, c ? c + have : NULL, ldc, &part);
  } else {
    mhk__epilogue first;
    memset(&first, 0, sizeof first);
    first.accumulate = part.accumulate;
    if (have > 0) {
      mhk__gemm(ctx, M, N, have, a, b, c, ldc, &first);
      part.accumulate = 1;
    }
    mhk__gemm(ctx, M, N, K - have, mhk__mat_from(&a, 0, have), rest, c, ldc, &part);
  }
}

#define MHK__FEW 8 /* so many rows are done sooner by streaming the weights, four rows at a time, than by packing them */

/* c (M,N) = a (M,K) b (K,N), then the epilogue (may be NULL). c's rows are ldc apart. b may be quantised, a not. */
static void mhk__gemm(mhk_context *ctx, mhk_index M, mhk_index N, mhk_index K, mhk__matrix a, mhk__matrix b, mhk_real *c, mhk_index ldc,
                      const mhk__epilogue *e) {
  const mhk__kernels *ks = ctx->kernels;
  mhk_index k;
  mhk__gemm_args g;
  if (ctx->result != MHK_OK || M <= 0 || N <= 0) return;
  if (b.q) {
    const mhk_index rows = b.row == 1 ? N : K, have = mhk__max(0, mhk__min(rows, b.q->rows - b.n0));
    if (have < rows) {
      mhk__gemm_mixed(ctx, M, N, K, a, b, c, ldc, e, have);
      return;
    }
#ifndef MOHAWK_DOUBLE
    if (M <= ks->q_rows && b.row == 1 && a.col == 1 && (a.row == K || M == 1) && a.dtype == MHK_REAL && !(e && e->accumulate)) {
      mhk__q_gemm(ctx, M, N, K, (const mhk_real *)a.data, b, c, ldc, e);
      return;
    }
#endif
  }
  g.M = M;
  g.N = N;
  g.K = K;
  g.a = a;
  g.b = b;
  g.c = c;
  g.ldc = ldc;
  g.e = e;
  if (K <= 0) {
    for (mhk_index i = 0; i < M; i++) {
      if (!(e && e->accumulate)) memset(c + i * ldc, 0, (size_t)N * sizeof(mhk_real));
      if (e) ks->epilogue(1, N, c + i * ldc, ldc, i * ldc, e, 0);
    }
    return;
  }
  if (M <= MHK__FEW && !b.q && b.row == 1 && b.col == K && a.col == 1 && (a.row == K || M == 1) && a.dtype == MHK_REAL &&
      !(e && e->accumulate)) {
    g.nc = mhk__max(16, 262144 / (K * M));
    mhk__run(ctx, &g, (N + g.nc - 1) / g.nc, 0, (M + 1) * K, (double)M * (double)N * (double)K, mhk__gemm_few);
    return;
  }
  /* A is packed once for all, in rounds of at most 4 MiB that stay in the last cache, B by the task that uses it: 16 tasks or more where there is work for
     them. A longer kc reads and writes C less often, a shorter one leaves more room in the caches. Blocks begin at multiples of 64, as groups of quantised
     weights do. */
  g.kc = mhk__up((K + (K + MHK__GEMM_K - 1) / MHK__GEMM_K - 1) / ((K + MHK__GEMM_K - 1) / MHK__GEMM_K), 64);
  g.nc = mhk__up(mhk__max(64, mhk__min(MHK__GEMM_N, N / 16)), 64);
  const mhk_index m = mhk__min(M, MHK__GEMM_M / ks->mr * ks->mr);
  k = mhk__min(K, mhk__max(1, ((mhk_index)1 << 20) / m / g.kc) * g.kc);
  const mhk_index n_columns = (N + g.nc - 1) / g.nc;
  g.rows = mhk__up(mhk__max(256, (m * n_columns + 15) / 16), ks->mr);
  mhk__mark mark = mhk__scratch_mark(ctx);
  g.packed = (mhk_real *)mhk__scratch(ctx, mhk__up(m, ks->mr) * k, sizeof(mhk_real));
  for (g.i0 = 0; g.packed && g.i0 < M; g.i0 += g.m) {
    g.m = mhk__min(m, M - g.i0);
    for (g.k0 = 0; g.k0 < K && ctx->result == MHK_OK; g.k0 += g.k) {
      const mhk_index step = mhk__up(MHK__PACK_COLUMNS, ks->mr);
      g.k = mhk__min(k, K - g.k0);
      mhk__run(ctx, &g, (g.k + g.kc - 1) / g.kc * ((g.m + step - 1) / step), 0, 1, (double)g.m * (double)g.k, mhk__gemm_pack);
      mhk__run(ctx, &g, n_columns * ((g.m + g.rows - 1) / g.rows), 0, mhk__up(mhk__min(g.nc, N), ks->nr) * g.kc,
               (double)g.m * (double)N * (double)g.k, mhk__gemm_block);
    }
  }
  mhk__scratch_rewind(ctx, mark);
}
#ifndef MOHAWK_NO_TRAINING
/* The same with both operands rounded to bfloat16. Packed numbers are half as large where a unit for them exists, and B comes in larger blocks. */
typedef struct mhk__narrow_args {
  mhk_index M, N, K, mc, nc, j0, n; /* this round's columns j0..j0+n */
  mhk__matrix a, b;
  mhk_real *c;
  unsigned char *packed;
  mhk_index ldc;
  const mhk__epilogue *e;
} mhk__narrow_args;

#define MHK__NARROW_K 512 /* numbers of a block along k; every kr divides it */

/* bytes of packed rows (or columns) x k, rows counted in whole tiles */
static mhk_index mhk__narrow_bytes(const mhk__narrow *u, mhk_index rows, mhk_index k) { return rows * mhk__up(k, u->kr) * u->size; }

static void mhk__narrow_columns(void *arg, mhk_index task, int worker) {
  const mhk__job *job = (const mhk__job *)arg;
  const mhk__narrow_args *g = (const mhk__narrow_args *)job->args;
  const mhk__narrow *u = &job->ctx->kernels->narrow;
  const mhk_index step = mhk__up(MHK__PACK_COLUMNS, u->nr), groups = (g->n + step - 1) / step;
  const mhk_index k0 = task / groups * MHK__NARROW_K, j = task % groups * step, k = mhk__min(MHK__NARROW_K, g->K - k0);
  (void)worker;
  u->pack_b(g->packed + mhk__narrow_bytes(u, mhk__up(g->n, u->nr), k0) + mhk__narrow_bytes(u, j, k), mhk__min(step, g->n - j), k,
            mhk__mat_turned(mhk__mat_from(&g->b, k0, g->j0 + j)));
}

static void mhk__narrow_rows(void *arg, mhk_index task, int worker) {
  const mhk__job *job = (const mhk__job *)arg;
  const mhk__narrow_args *g = (const mhk__narrow_args *)job->args;
  const mhk__kernels *ks = job->ctx->kernels;
  const mhk__narrow *u = &ks->narrow;
  const mhk_index i0 = task * g->mc, m = mhk__min(g->mc, g->M - i0);
  mhk_real *pa = job->work + worker * job->each, *c = g->c + i0 * g->ldc + g->j0;
  for (mhk_index k0 = 0; k0 < g->K; k0 += MHK__NARROW_K) {
    const mhk_index k = mhk__min(MHK__NARROW_K, g->K - k0);
    u->pack_a(pa, m, k, mhk__mat_from(&g->a, i0, k0));
    u->product(m, g->n, k, pa, g->packed + mhk__narrow_bytes(u, mhk__up(g->n, u->nr), k0), c, g->ldc, k0 > 0 || (g->e && g->e->accumulate));
  }
  if (mhk__epilogue_works(g->e)) ks->epilogue(m, g->n, c, g->ldc, i0 * g->ldc + g->j0, g->e, g->j0);
}

static void mhk__gemm_narrow(mhk_context *ctx, mhk_index M, mhk_index N, mhk_index K, mhk__matrix a, mhk__matrix b, mhk_real *c, mhk_index ldc,
                             const mhk__epilogue *e) {
  const mhk__narrow *u = &ctx->kernels->narrow;
  const mhk_index real = (mhk_index)sizeof(mhk_real);
  mhk__narrow_args g;
  if (M <= 4 || N <= 0 || K <= 0 || b.q) {
    mhk__gemm(ctx, M, N, K, a, b, c, ldc, e);
    return;
  }
  if (ctx->result != MHK_OK) return;
  g.M = M;
  g.N = N;
  g.K = K;
  g.a = a;
  g.b = b;
  g.c = c;
  g.ldc = ldc;
  g.e = e;
  g.j0 = g.n = 0;
  g.mc = mhk__min(192 / u->mr * u->mr, mhk__up((M + 15) / 16, u->mr));
  g.nc = mhk__up(mhk__max(1, mhk__min(N, ((mhk_index)1 << 21) / K)), u->nr);
  mhk__mark mark = mhk__scratch_mark(ctx);
  g.packed = (unsigned char *)mhk__scratch(ctx, mhk__size3(ctx, g.nc, mhk__up(K, u->kr), 1) > 0 ? mhk__narrow_bytes(u, g.nc, K) : 0, 1);
  for (; g.packed && g.j0 < N && ctx->result == MHK_OK; g.j0 += g.n) {
    const mhk_index blocks = (K + MHK__NARROW_K - 1) / MHK__NARROW_K, step = mhk__up(MHK__PACK_COLUMNS, u->nr);
    g.n = mhk__min(g.nc, N - g.j0);
    mhk__run(ctx, &g, blocks * ((g.n + step - 1) / step), 0, 1, (double)g.n * (double)K, mhk__narrow_columns);
    mhk__run(ctx, &g, (M + g.mc - 1) / g.mc, 0, mhk__narrow_bytes(u, g.mc, MHK__NARROW_K) / real, (double)M * (double)g.n * (double)K, mhk__narrow_rows);
  }
  mhk__scratch_rewind(ctx, mark);
}

/* Many small products: one task each, so that threads meet once. Matrix i of the batch lies i * step_x elements further. */
typedef struct mhk__batch_args {
  mhk_index M, N, K, step_a, step_b, step_c, ldc;
  mhk__matrix a, b;
  mhk_real *c;
  int accumulate;
} mhk__batch_args;

static void mhk__batch_task(void *arg, mhk_index task, int worker) {
  const mhk__job *job = (const mhk__job *)arg;
  const mhk__batch_args *g = (const mhk__batch_args *)job->args;
  const mhk__kernels *ks = job->ctx->kernels;
  mhk_real *pb = job->work + worker * job->each, *pa = pb + mhk__padded(g->N) * g->K;
  if (g->b.col == 1 && ks->product_plain(g->M, g->N, g->K, (const mhk_real *)g->a.data + task * g->step_a, g->a.row, g->a.col,
                                         (const mhk_real *)g->b.data + task * g->step_b, g->b.row, g->c + task * g->step_c, g->ldc, g->accumulate))
    return;
  ks->pack(pa, ks->mr, g->M, g->K, mhk__mat((const mhk_real *)g->a.data + task * g->step_a, MHK_REAL, g->a.row, g->a.col));
  ks->pack(pb, ks->nr, g->N, g->K, mhk__mat((const mhk_real *)g->b.data + task * g->step_b, MHK_REAL, g->b.col, g->b.row));
  ks->product(g->M, g->N, g->K, pa, pb, g->c + task * g->step_c, g->ldc, g->accumulate);
}

/* c_i = or += a_i b_i for each i of the batch, all of dtype MHK_REAL */
static void mhk__gemm_batch(mhk_context *ctx, mhk_index batch, const mhk__batch_args *g) {
  mhk__epilogue e;
  if (batch > 1 && g->K > 0 && (g->M + g->N) * g->K <= 262144) {
    mhk__run(ctx, g, batch, 0, (mhk__padded(g->M) + mhk__padded(g->N)) * g->K, (double)batch * (double)(g->M * g->N) * (double)g->K, mhk__batch_task);
    return;
  }
  memset(&e, 0, sizeof e);
  e.accumulate = g->accumulate;
  for (mhk_index i = 0; i < batch; i++)
    mhk__gemm(ctx, g->M, g->N, g->K, mhk__mat((const mhk_real *)g->a.data + i * g->step_a, MHK_REAL, g->a.row, g->a.col),
              mhk__mat((const mhk_real *)g->b.data + i * g->step_b, MHK_REAL, g->b.row, g->b.col), g->c + i * g->step_c, g->ldc, &e);
}
#endif /* MOHAWK_NO_TRAINING */
#endif /* MOHAWK_IMPLEMENTATION */

/* ====================================================================================================
   TENSORS: types, shapes, parameters                                                      >>tensors
   ==================================================================================================== */

#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
MHKDEF const char *mhk_dtype_name(mhk_dtype dtype) {
  switch (dtype) {
    case MHK_F32: return "F32";
    case MHK_F64: return "F64";
    case MHK_F16: return "F16";
    case MHK_BF16: return "BF16";
    case MHK_I8: return "I8";
    case MHK_U8: return "U8";
    case MHK_I16: return "I16";
    case MHK_U16: return "U16";
    case MHK_I32: return "I32";
    case MHK_U32: return "U32";
    case MHK_I64: return "I64";
    case MHK_U64: return "U64";
    case MHK_BOOL: return "BOOL";
    case MHK_Q8: return "Q8";
    case MHK_Q4: return "Q4";
    default: return "unknown type";
  }
}

/* "(2,37,32)" */
static const char *mhk__shape_text(int rank, const mhk_index *shape, char *out, size_t capacity) {
  size_t n = 0;
  if (capacity < 3) return "";
  out[n++] = '(';
  for (int i = 0; i < rank && n + 24 < capacity; i++) n += mhk__print(out + n, capacity - n, i ? ",%lld" : "%lld", (long long)shape[i]);
  out[n++] = ')';
  out[n] = 0;
  return out;
}
#ifndef MOHAWK_NO_TRAINING
/* Fills everything but data; 0 and an error for an impossible shape. The axes that are not 0 are
   multiplied too, so that any product of a shape's axes fits; empty tensors leave room for what
   ops add to one. */
static int mhk__shape_set(mhk_context *ctx, mhk_tensor *x, int rank, const mhk_index *shape) {
  const mhk_index most = PTRDIFF_MAX / (mhk_index)sizeof(double);
  mhk_index count = 1, empty = 0;
  if (rank < 0 || rank > MHK_MAX_RANK) {
    mhk_fail(ctx, MHK_ERROR_SHAPE, "a tensor of rank %d: ranks go from 0 to %d", rank, MHK_MAX_RANK);
    return 0;
  }
  if (rank > 0 && !shape) {
    mhk_fail(ctx, MHK_ERROR_ARGUMENT, "a tensor of rank %d needs a shape, and was given NULL", rank);
    return 0;
  }
  for (int i = 0; i < MHK_MAX_RANK; i++) {
    const mhk_index n = i < rank ? shape[i] : 1;
    if (n < 0) {
      mhk_fail(ctx, MHK_ERROR_SHAPE, "axis %d of a new tensor has %lld elements", i, (long long)n);
      return 0;
    }
    empty |= n == 0;
    if (n > 0 && (count > most / n || (empty && count * n > most / 128))) {
      mhk_fail(ctx, MHK_ERROR_MEMORY, "a tensor of %lld x %lld elements and more does not fit this machine", (long long)count, (long long)n);
      return 0;
    }
    if (n > 0) count *= n;
    x->shape[i] = n;
  }
  x->rank = rank;
  x->count = empty ? 0 : count;
  x->dtype = MHK_REAL;
  x->ctx = ctx;
  return 1;
}

/* a tensor with undefined values in an arena */
static mhk_tensor *mhk__tensor_in(mhk_context *ctx, mhk__arena *arena, int rank, const mhk_index *shape) {
  mhk_tensor *x;
  if (ctx->result != MHK_OK) return NULL;
  x = (mhk_tensor *)mhk__arena_zeros(ctx, arena, 1, sizeof *x);
  if (!x || !mhk__shape_set(ctx, x, rank, shape)) return NULL;
  x->data = mhk__arena_alloc(ctx, arena, (size_t)x->count * sizeof(mhk_real));
  return x->data ? x : NULL;
}
#endif /* MOHAWK_NO_TRAINING */

MHKDEF mhk_real *mhk_data(const mhk_tensor *x) { return x && x->dtype == MHK_REAL ? (mhk_real *)x->data : NULL; }

/* element i of a tensor of any type that holds real numbers */
static mhk_real mhk__tensor_element(const mhk_tensor *x, mhk_index i) {
  if (!x->quantised) return mhk__element(x->data, x->dtype, i);
  i += x->base_offset;
  return mhk__q_element(x->quantised, x->dtype, x->shape[1], i / x->shape[1], i % x->shape[1]);
}

MHKDEF double mhk_value(const mhk_tensor *x) { return x && x->data && x->count > 0 ? (double)mhk__tensor_element(x, 0) : (double)NAN; }

MHKDEF mhk_result mhk_tensor_read(const mhk_tensor *x, mhk_index first, mhk_index n, mhk_real *out) {
  if (!x) return MHK_ERROR_ARGUMENT;
  if (mhk_failed(x->ctx)) return mhk_error(x->ctx);
  if (first < 0 || n < 0 || first > x->count || n > x->count - first || (n && (!x->data || !out)))
    return mhk_fail(x->ctx, MHK_ERROR_ARGUMENT, "%lld elements from %lld on of %s, which has %lld, or no room for them",
                    (long long)n, (long long)first, x->name ? x->name : "a tensor", (long long)x->count);
  if (x->dtype == MHK_REAL) {
    if (n) memcpy(out, (const mhk_real *)x->data + first, (size_t)n * sizeof(mhk_real));
  } else if (mhk__is_quantised(x->dtype) || x->dtype == MHK_F32 || x->dtype == MHK_F64 || x->dtype == MHK_F16 || x->dtype == MHK_BF16)
    for (mhk_index i = 0; i < n; i++) out[i] = mhk__tensor_element(x, first + i);
  else
    return mhk_fail(x->ctx, MHK_ERROR_UNSUPPORTED, "%s is stored as %s: there are no real numbers to read", x->name ? x->name : "a tensor",
                    mhk_dtype_name(x->dtype));
  return MHK_OK;
}

MHKDEF size_t mhk_tensor_bytes(const mhk_tensor *x) {
  const mhk_quantised *q = x ? x->quantised : NULL;
  mhk_index rows;
  if (!x) return 0;
  if (!q) return (size_t)x->count * mhk_dtype_size(x->dtype);
  const mhk_index K = x->shape[1];
  rows = mhk__max(0, mhk__min(x->shape[0], q->rows - x->base_offset / K));
  const mhk_index blocks = mhk__q_blocks(rows);
  return (size_t)(blocks * (mhk__q_block_bytes(x->dtype, K) + K / q->group * MHK__Q_ROWS * 2)) + (size_t)((x->shape[0] - rows) * K) * sizeof(mhk_real);
}
#ifndef MOHAWK_NO_TRAINING
MHKDEF mhk_tensor *mhk_parameter(mhk_context *ctx, const char *name, int rank, const mhk_index *shape, const mhk_real *values) {
  mhk__object *p = (mhk__object *)mhk__object_new(ctx, sizeof(mhk__object), NULL);
  if (!p) return NULL;
  mhk_tensor *x = mhk__tensor_in(ctx, &p->arena, rank, shape);
  if (!x) return NULL;
  x->grad = (mhk_real *)mhk__arena_zeros(ctx, &p->arena, x->count, sizeof(mhk_real));
  x->name = name ? mhk__arena_text(ctx, &p->arena, name, strlen(name)) : NULL;
  x->requires_grad = 1;
  if (ctx->result != MHK_OK) return NULL;
  if (values)
    memcpy(x->data, values, (size_t)x->count * sizeof(mhk_real));
  else
    memset(x->data, 0, (size_t)x->count * sizeof(mhk_real));
  return x;
}

MHKDEF void mhk_zero_grad(mhk_tensor *x) {
  if (x && x->grad) memset(x->grad, 0, (size_t)x->count * sizeof(mhk_real));
}
#endif /* MOHAWK_NO_TRAINING */
#endif /* MOHAWK_IMPLEMENTATION */

/* ====================================================================================================
   TAPE: records, backward, recomputation, gradient checks                                    >>tape
   ==================================================================================================== */

#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
#ifndef MOHAWK_NO_TRAINING
#define MHK__MAX_IN 8
#define MHK__MAX_OUT 4

typedef struct mhk__node mhk__node;
struct mhk__node {
  mhk__node *previous;
  mhk_index index;
  void (*backward)(mhk_tape *t, mhk__node *n);
  mhk_tensor *in[MHK__MAX_IN], *out[MHK__MAX_OUT];
  int inputs, outputs;
  void *saved; /* what the op keeps for its backward pass */
};

struct mhk_tape {
  mhk__object object;
  mhk_context *ctx;
  mhk__arena arena;
  mhk__node *last;
  mhk_index records;
  int recording;
};

static void mhk__tape_close(void *object) {
  mhk_tape *t = (mhk_tape *)object;
  mhk__arena_free(t->ctx, &t->arena);
}

MHKDEF mhk_tape *mhk_tape_create(mhk_context *ctx) {
  mhk_tape *t = (mhk_tape *)mhk__object_new(ctx, sizeof(mhk_tape), mhk__tape_close);
  if (!t) return NULL;
  t->ctx = ctx;
  t->recording = 1;
  return t;
}
MHKDEF void mhk_tape_destroy(mhk_tape *t) { mhk__object_free(t); }
MHKDEF mhk_context *mhk_tape_context(const mhk_tape *t) { return t ? t->ctx : NULL; }

MHKDEF int mhk_tape_record(mhk_tape *t, int on) {
  const int was = t ? t->recording : 0;
  if (t) t->recording = on != 0;
  return was;
}

MHKDEF mhk_tape_mark mhk_tape_here(const mhk_tape *t) {
  mhk_tape_mark m;
  memset(&m, 0, sizeof m);
  if (t) {
    const mhk__mark a = mhk__arena_mark(&t->arena);
    m.chunk = a.chunk;
    m.used = a.used;
    m.records = t->records;
  }
  return m;
}

MHKDEF void mhk_tape_rewind(mhk_tape *t, mhk_tape_mark mark) {
  mhk__mark a;
  if (!t) return;
  if (mark.records < 0 || mark.records > t->records || !mhk__arena_has(&t->arena, mark.chunk, mark.used)) {
    mhk_fail(t->ctx, MHK_ERROR_ARGUMENT,
             "rewind: the mark is none that mhk_tape_here() gave for this tape, or lies behind what was dropped since");
    return;
  }
  while (t->last && t->last->index >= mark.records) t->last = t->last->previous;
  t->records = mark.records;
  a.chunk = mark.chunk;
  a.used = mark.used;
  mhk__arena_rewind(t->ctx, &t->arena, a);
}

MHKDEF void mhk_tape_reset(mhk_tape *t) {
  mhk_tape_mark start;
  memset(&start, 0, sizeof start);
  mhk_tape_rewind(t, start);
}

static int mhk__tape_ready(const mhk_tape *t) { return t && t->ctx->result == MHK_OK; }

/* the gradient of x, made and zeroed when it is not there yet; NULL only without memory */
static mhk_real *mhk__grad(mhk_tape *t, mhk_tensor *x) {
  if (x->grad) return x->grad;
  if (x->base) {
    mhk_real *g = mhk__grad(t, x->base);
    x->grad = g ? g + x->base_offset : NULL;
  } else
    x->grad = (mhk_real *)mhk__arena_zeros(t->ctx, &t->arena, x->count, sizeof(mhk_real));
  return x->grad;
}

/* the gradient to add to, or NULL when x wants none */
static mhk_real *mhk__into(mhk_tape *t, mhk_tensor *x) { return x && x->requires_grad ? mhk__grad(t, x) : NULL; }
/* The same for an op that can write all of it: *add is 0 when nothing has arrived before, and what is there then is no number. Call it after
   mhk__into() of the op's other inputs: one of them may be the same tensor, or a view of it. */
static mhk_real *mhk__into_all(mhk_tape *t, mhk_tensor *x, int *add) {
  *add = 1;
  if (!x || !x->requires_grad || x->grad || x->base || x->count == 0) return mhk__into(t, x);
  *add = 0;
  x->grad = (mhk_real *)mhk__arena_alloc(t->ctx, &t->arena, (size_t)x->count * sizeof(mhk_real));
  return x->grad;
}

MHKDEF int mhk_wants_grad(mhk_tape *t, mhk_tensor *x) { return mhk__tape_ready(t) && x && x->requires_grad && mhk__grad(t, x) != NULL; }

static mhk_tensor *mhk__new(mhk_tape *t, int rank, const mhk_index *shape) { return mhk__tensor_in(t->ctx, &t->arena, rank, shape); }

/* Writes an op down when something upstream wants a gradient; then the outputs want one too. NULL: nothing to record (or no memory). */
static mhk__node *mhk__record(mhk_tape *t, void (*backward)(mhk_tape *t, mhk__node *n), int inputs, mhk_tensor *const *in, int outputs, mhk_tensor *const *out,
                              size_t saved) {
  mhk__node *n;
  int i, wanted = 0;
  if (!t->recording || t->ctx->result != MHK_OK) return NULL;
  for (i = 0; i < inputs; i++) wanted |= in[i] && in[i]->requires_grad;
  if (!wanted) return NULL;
  n = (mhk__node *)mhk__arena_zeros(t->ctx, &t->arena, 1, sizeof *n);
  if (n && saved) n->saved = mhk__arena_zeros(t->ctx, &t->arena, 1, saved);
  if (!n || (saved && !n->saved)) return NULL;
  n->backward = backward;
  n->inputs = inputs;
  n->outputs = outputs;
  for (i = 0; i < inputs; i++) n->in[i] = in[i];
  for (i = 0; i < outputs; i++) {
    n->out[i] = out[i];
    out[i]->requires_grad = 1;
  }
  n->index = t->records++;
  n->previous = t->last;
  t->last = n;
  return n;
}

MHKDEF mhk_tensor *mhk_tensor_new(mhk_tape *t, int rank, const mhk_index *shape, const mhk_real *values) {
  if (!mhk__tape_ready(t)) return NULL;
  mhk_tensor *x = mhk__new(t, rank, shape);
  if (!x) return NULL;
  if (values)
    memcpy(x->data, values, (size_t)x->count * sizeof(mhk_real));
  else
    memset(x->data, 0, (size_t)x->count * sizeof(mhk_real));
  return x;
}

static mhk_tensor *mhk__view(mhk_tape *t, mhk_tensor *x, int rank, const mhk_index *shape, mhk_index offset) {
  mhk_tensor *v = (mhk_tensor *)mhk__arena_zeros(t->ctx, &t->arena, 1, sizeof *v);
  if (!v || !mhk__shape_set(t->ctx, v, rank, shape)) return NULL;
  v->dtype = x->dtype;
  v->data = (char *)x->data + offset * (mhk_index)mhk_dtype_size(x->dtype);
  v->quantised = x->quantised;
  v->grad = x->grad ? x->grad + offset : NULL;
  v->requires_grad = x->requires_grad;
  v->base = x->base ? x->base : x;
  v->base_offset = x->base || x->quantised ? x->base_offset + offset : offset;
  v->name = x->name;
  return v;
}

MHKDEF mhk_tensor *mhk_reshape(mhk_tape *t, mhk_tensor *x, int rank, const mhk_index *shape) {
  char from[128], to[128];
  if (!mhk__tape_ready(t) || !x) return NULL;
  mhk_tensor *v = mhk__view(t, x, rank, shape, 0);
  if (v && v->count != x->count) {
    mhk_fail(t->ctx, MHK_ERROR_SHAPE, "reshape: %s has %lld elements, %s has %lld", mhk__shape_text(x->rank, x->shape, from, sizeof from), (long long)x->count,
             mhk__shape_text(rank, shape, to, sizeof to), (long long)v->count);
    return NULL;
  }
  if (v && v->quantised && (rank != 2 || shape[1] != x->shape[1])) {
    mhk_fail(t->ctx, MHK_ERROR_UNSUPPORTED, "reshape: %s is quantised row by row", x->name ? x->name : "a tensor");
    return NULL;
  }
  return v;
}

MHKDEF mhk_tensor *mhk_rows(mhk_tape *t, mhk_tensor *x, mhk_index first, mhk_index rows) {
  mhk_index shape[MHK_MAX_RANK];
  if (!mhk__tape_ready(t) || !x) return NULL;
  if (x->rank < 1 || first < 0 || rows < 0 || first > x->shape[0] || rows > x->shape[0] - first) {
    mhk_fail(t->ctx, MHK_ERROR_SHAPE, "%lld rows from %lld on of a tensor that has %lld", (long long)rows,
             (long long)first, (long long)(x->rank < 1 ? 0 : x->shape[0]));
    return NULL;
  }
  for (int i = 0; i < x->rank; i++) shape[i] = x->shape[i];
  shape[0] = rows;
  return mhk__view(t, x, x->rank, shape, x->shape[0] ? first * (x->count / x->shape[0]) : 0);
}

MHKDEF mhk_tensor *mhk_detach(mhk_tape *t, mhk_tensor *x) {
  if (!mhk__tape_ready(t) || !x) return NULL;
  mhk_tensor *v = mhk__view(t, x, x->rank, x->shape, 0);
  if (!v) return NULL;
  v->base = NULL;
  v->grad = NULL;
  v->requires_grad = 0;
  return v;
}

MHKDEF mhk_tensor *mhk_require_grad(mhk_tape *t, mhk_tensor *x) {
  if (!mhk__tape_ready(t) || !x) return NULL;
  if (x->dtype != MHK_REAL) {
    mhk_fail(t->ctx, MHK_ERROR_ARGUMENT, "%s is stored as %s: only %s tensors can have a gradient", x->name ? x->name : "a tensor", mhk_dtype_name(x->dtype),
             mhk_dtype_name(MHK_REAL));
    return NULL;
  }
  const mhk_tensor *owner = x->base ? x->base : x;
  if (!owner->grad && !mhk__arena_holds(&t->arena, owner)) {
    mhk_fail(t->ctx, MHK_ERROR_ARGUMENT,
             "require_grad: %s is no tensor of this tape, on which its gradient would lie: use mhk_parameter(), for a "
             "model's mhk_model_make_trainable(), or a copy",
             x->name ? x->name : "a tensor");
    return NULL;
  }
  x->requires_grad = 1;
  return mhk__grad(t, x) ? x : NULL;
}

/* runs the records from the last one down to index stop */
static void mhk__unwind(mhk_tape *t, mhk_index stop) {
  const int was = t->recording;
  t->recording = 0;
  while (t->last && t->last->index >= stop && t->ctx->result == MHK_OK) {
    mhk__node *n = t->last;
    int i, reached = 0;
    t->last = n->previous; /* the count of records goes on, so that earlier marks stay true */
    for (i = 0; i < n->outputs; i++) reached |= n->out[i]->grad != NULL || (n->out[i]->base && mhk__grad(t, n->out[i]));
    if (reached) n->backward(t, n);
  }
  t->recording = was;
}

#define MHK__GRAIN 8192 /* elements a task of an elementwise op takes */

typedef struct mhk__axpy_args { mhk_real *y; const mhk_real *x; mhk_real f; } mhk__axpy_args;
static void mhk__axpy_body(mhk_context *ctx, void *args, mhk_index first, mhk_index last) {
  const mhk__axpy_args *a = (const mhk__axpy_args *)args;
  mhk_real *MHK__RESTRICT y = a->y;
  const mhk_real *MHK__RESTRICT x = a->x;
  const mhk_real f = a->f;
  (void)ctx;
  for (mhk_index i = first; i < last; i++) y[i] += f * x[i];
}
/* y += f x */
static void mhk__axpy(mhk_context *ctx, mhk_index n, mhk_real f, const mhk_real *x, mhk_real *y) {
  mhk__axpy_args a;
  a.y = y;
  a.x = x;
  a.f = f;
  mhk__over(ctx, n, MHK__GRAIN, mhk__axpy_body, &a);
}

/* y = x */
static void mhk__copy_body(mhk_context *ctx, void *args, mhk_index first, mhk_index last) {
  const mhk__axpy_args *a = (const mhk__axpy_args *)args;
  (void)ctx;
  memcpy(a->y + first, a->x + first, (size_t)(last - first) * sizeof(mhk_real));
}

MHKDEF mhk_result mhk_backward_many(mhk_tape *t, int n, mhk_tensor *const *y, const mhk_real *const *cotangents) {
  if (!t) return MHK_ERROR_MEMORY;
  if (t->ctx->result != MHK_OK) return t->ctx->result;
  if (n < 0 || (n > 0 && (!y || !cotangents)))
    return mhk_fail(t->ctx, MHK_ERROR_ARGUMENT,
                    "backward: %d outputs and their cotangents are needed, a list is missing", n);
  for (int i = 0; i < n; i++) {
    mhk__axpy_args a;
    int add;
    if (!y[i] || !cotangents[i]) return mhk_fail(t->ctx, MHK_ERROR_ARGUMENT, "backward: output %d or its cotangent is missing", i);
    if (!y[i]->requires_grad) return mhk_fail(t->ctx, MHK_ERROR_STATE, "backward: nothing that output %d depends on wants a gradient, or recording was off", i);
    a.x = cotangents[i];
    a.y = mhk__into_all(t, y[i], &add);
    a.f = 1;
    if (!a.y) return t->ctx->result;
    mhk__over(t->ctx, y[i]->count, MHK__GRAIN, add ? mhk__axpy_body : mhk__copy_body, &a);
  }
  mhk__unwind(t, 0);
  return t->ctx->result;
}

MHKDEF mhk_result mhk_backward_from(mhk_tape *t, mhk_tensor *y, const mhk_real *cotangent) { return mhk_backward_many(t, 1, &y, &cotangent); }

MHKDEF mhk_result mhk_backward(mhk_tape *t, mhk_tensor *loss) {
  const mhk_real one = 1;
  const mhk_real *p = &one;
  if (t && loss && loss->count != 1)
    return mhk_fail(t->ctx, MHK_ERROR_SHAPE,
                    "backward: the loss has %lld elements and must have one; mhk_backward_from() takes a cotangent", (long long)loss->count);
  return mhk_backward_many(t, 1, &loss, &p);
}

typedef struct mhk__recompute_saved { mhk_block_fn f; void *user; } mhk__recompute_saved;

static void mhk__recompute_back(mhk_tape *t, mhk__node *n) {
  const mhk__recompute_saved *s = (const mhk__recompute_saved *)n->saved;
  mhk_tensor *x = n->in[0], *copy, *y;
  mhk_real *g = mhk__into(t, x); /* before the mark, so that it stays */
  const mhk_tape_mark inner = mhk_tape_here(t);
  t->recording = 1;
  copy = mhk_detach(t, x);
  if (copy && g) { /* adds where x itself would: the same bits as without recomputation */
    copy->requires_grad = 1;
    copy->grad = g;
  }
  y = copy ? s->f(t, s->user, copy) : NULL;
  if (y && y->count != n->out[0]->count)
    mhk_fail(t->ctx, MHK_ERROR_STATE, "recompute: the function built something else the second time");
  else if (y && y->requires_grad) { /* else neither x nor any parameter inside wants a gradient */
    mhk_real *gy = mhk__grad(t, y);
    if (gy) {
      for (mhk_index i = 0; i < y->count; i++) gy[i] += n->out[0]->grad[i];
      mhk__unwind(t, inner.records);
    }
  }
  t->recording = 0;
  if (t->ctx->result == MHK_OK) mhk_tape_rewind(t, inner);
}

MHKDEF mhk_tensor *mhk_recompute(mhk_tape *t, mhk_block_fn f, void *user, mhk_tensor *x) {
  mhk_index shape[MHK_MAX_RANK], count;
  int rank, i;
  if (!mhk__tape_ready(t) || !x) return NULL;
  if (!f) {
    mhk_fail(t->ctx, MHK_ERROR_ARGUMENT, "recompute: the function is missing (NULL)");
    return NULL;
  }
  if (!t->recording) return f(t, user, x);
  mhk_tape_mark mark = mhk_tape_here(t);
  mhk__mark hold = mhk__scratch_mark(t->ctx);
  const int was = mhk_tape_record(t, 0);
  mhk_tensor *y = f(t, user, x);
  mhk_tape_record(t, was);
  if (!y) return NULL;
  count = y->count;
  rank = y->rank;
  for (i = 0; i < MHK_MAX_RANK; i++) shape[i] = y->shape[i];
  mhk_real *copy = (mhk_real *)mhk__scratch(t->ctx, count, sizeof(mhk_real));
  if (copy) memcpy(copy, y->data, (size_t)count * sizeof(mhk_real));
  mhk_tape_rewind(t, mark);
  mhk_tensor *out = copy ? mhk_tensor_new(t, rank, shape, copy) : NULL;
  mhk__scratch_rewind(t->ctx, hold);
  if (!out) return NULL;
  i = x->requires_grad;
  x->requires_grad = 1; /* the parameters inside want gradients even where x does not */
  mhk__node *n = mhk__record(t, mhk__recompute_back, 1, &x, 1, &out, sizeof(mhk__recompute_saved));
  x->requires_grad = i;
  if (!n) return NULL;
  ((mhk__recompute_saved *)n->saved)->f = f;
  ((mhk__recompute_saved *)n->saved)->user = user;
  return out;
}

typedef struct mhk__custom_saved {
  void (*backward)(const mhk_op *op);
  void *user;
} mhk__custom_saved;

static void mhk__custom_back(mhk_tape *t, mhk__node *n) {
  const mhk__custom_saved *s = (const mhk__custom_saved *)n->saved;
  mhk_op op;
  op.tape = t;
  op.out = n->out[0];
  op.in = n->in;
  op.inputs = n->inputs;
  op.user = s->user;
  s->backward(&op);
}

MHKDEF mhk_tensor *mhk_custom(mhk_tape *t, int inputs, mhk_tensor *const *in, int rank, const mhk_index *shape, void (*forward)(const mhk_op *op),
                              void (*backward)(const mhk_op *op), const void *user, size_t user_size) {
  mhk_op op;
  void *copy = NULL;
  if (!mhk__tape_ready(t)) return NULL;
  if (!forward || inputs < 0 || inputs > MHK__MAX_IN || (inputs > 0 && !in) || (user_size > 0 && !user)) {
    mhk_fail(
        t->ctx, MHK_ERROR_ARGUMENT,
        "a custom op of %d inputs: it may have up to %d, and neither their list nor user nor forward may be missing",
        inputs, MHK__MAX_IN);
    return NULL;
  }
  for (int i = 0; i < inputs; i++)
    if (!in[i]) return NULL;
  op.out = mhk_tensor_new(t, rank, shape, NULL);
  if (user_size) {
    copy = mhk__arena_alloc(t->ctx, &t->arena, user_size);
    if (copy) memcpy(copy, user, user_size);
  }
  if (!op.out || t->ctx->result != MHK_OK) return NULL;
  op.tape = t;
  op.in = in;
  op.inputs = inputs;
  op.user = user_size ? copy : NULL;
  forward(&op);
  mhk__node *n = backward ? mhk__record(t, mhk__custom_back, inputs, in, 1, &op.out, sizeof(mhk__custom_saved)) : NULL;
  if (n) {
    ((mhk__custom_saved *)n->saved)->backward = backward;
    ((mhk__custom_saved *)n->saved)->user = op.user;
  }
  return t->ctx->result == MHK_OK ? op.out : NULL;
}

MHKDEF double mhk_check_gradient(mhk_tape *t, mhk_tensor *(*f)(mhk_tape *t, void *user), void *user, mhk_tensor *x, mhk_gradient_report *report) {
  mhk_gradient_report r;
  mhk_real *data;
  double scale = 0, largest = 0, step, worst = -1;
  mhk_index i;
  memset(&r, 0, sizeof r);
  r.error = (double)NAN;
  if (report) *report = r;
  if (mhk__tape_ready(t) && !f) mhk_fail(t->ctx, MHK_ERROR_ARGUMENT, "check_gradient: the function is missing (NULL)");
  if (!mhk__tape_ready(t) || !x || !mhk_require_grad(t, x)) return r.error;
  data = (mhk_real *)x->data;
  mhk_tape_mark mark = mhk_tape_here(t);
  mhk__mark hold = mhk__scratch_mark(t->ctx);
  mhk_real *analytic = (mhk_real *)mhk__scratch(t->ctx, x->count, sizeof(mhk_real));
  if (!analytic) return r.error;
  mhk_zero_grad(x);
  const int was = mhk_tape_record(t, 1);
  mhk_tensor *y = f(t, user);
  if (!y || mhk_backward(t, y) != MHK_OK) {
    mhk_tape_record(t, was);
    return r.error;
  }
  memcpy(analytic, x->grad, (size_t)x->count * sizeof(mhk_real));
  mhk_zero_grad(x);
  mhk_tape_rewind(t, mark);
  mhk_tape_record(t, 0);
  for (i = 0; i < x->count; i++) {
    scale += (double)data[i] * (double)data[i];
    if (fabs((double)analytic[i]) > largest) largest = fabs((double)analytic[i]);
  }
  scale = x->count ? sqrt(scale / (double)x->count) : 0;
  step = (sizeof(mhk_real) == 4 ? 1e-2 : 1e-5) * (scale > 0 ? scale : 1);
  const mhk_index n = x->count < 256 ? x->count : 256;
  {
    mhk_real *numeric = (mhk_real *)mhk__scratch(t->ctx, n, sizeof(mhk_real));
    for (mhk_index k = 0; numeric && k < n && t->ctx->result == MHK_OK; k++) {
      const mhk_real keep = data[i = k * x->count / n];
      data[i] = MHK__R((double)keep + step);
      const double up = mhk_value(f(t, user));
      mhk_tape_rewind(t, mark);
      data[i] = MHK__R((double)keep - step);
      const double down = mhk_value(f(t, user));
      mhk_tape_rewind(t, mark);
      numeric[k] = MHK__R((up - down) / ((double)MHK__R((double)keep + step) - (double)MHK__R((double)keep - step)));
      data[i] = keep;
      if (fabs((double)numeric[k]) > largest) largest = fabs((double)numeric[k]);
    }
    for (mhk_index k = 0; numeric && k < n && t->ctx->result == MHK_OK; k++) {
      const double e = fabs((double)analytic[i = k * x->count / n] - (double)numeric[k]) / (largest > 0 ? largest : 1);
      if (!(e <= worst)) {
        worst = e;
        r.error = e;
        r.analytic = (double)analytic[i];
        r.numeric = (double)numeric[k];
        r.at = i;
      }
    }
  }
  r.checked = n;
  if (n == 0) r.error = 0;
  mhk_tape_record(t, was);
  mhk__scratch_rewind(t->ctx, hold);
  if (t->ctx->result != MHK_OK) r.error = (double)NAN;
  if (report) *report = r;
  return r.error;
}
#endif /* MOHAWK_NO_TRAINING */
#endif /* MOHAWK_IMPLEMENTATION */

/* ====================================================================================================
   OPS: elementwise, reductions, layout, embedding, linear layers                          >>ops
   ====================================================================================================

   An op is a function on the tape. It checks its inputs, makes its output and computes it; where
   an input wants a gradient it also records what its backward pass will need. The backward pass,
   mhk__..._back, stands beside it: it reads the gradient of the output and adds to those of the
   inputs. The chapters after this one hold the ops that have kernels of their own. */

#if MHK__REFERENCE == 1 && !defined(MHK__PASS)
/* ---- reference */

static inline double mhk__ref_sigmoid(double x) { return 1 / (1 + exp(-x)); }
static inline double mhk__ref_softplus(double x) { return x > 30 ? x + exp(-x) : log1p(exp(x)); }
static inline double mhk__ref_silu(double x) { return x * mhk__ref_sigmoid(x); }
static inline double mhk__ref_silu_slope(double x) {
  const double s = mhk__ref_sigmoid(x);
  return s * (1 + x * (1 - s));
}
/* gelu_new: the form with tanh, which is 2 sigmoid(2 u) - 1 */
static inline double mhk__ref_gelu(double x) {
  return x * mhk__ref_sigmoid(2 * 0.7978845608028654 * (x + 0.044715 * x * x * x));
}
static inline double mhk__ref_gelu_slope(double x) {
  const double s = mhk__ref_sigmoid(2 * 0.7978845608028654 * (x + 0.044715 * x * x * x));
  return s + x * s * (1 - s) * 2 * 0.7978845608028654 * (1 + 3 * 0.044715 * x * x);
}
#endif /* reference */

#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
#ifndef MOHAWK_NO_TRAINING
static int mhk__op_ready(const mhk_tape *t, const mhk_tensor *a, const mhk_tensor *b) { return mhk__tape_ready(t) && a && b; }

/* the op computes on the arithmetic type; stored types are for the weights of linear and embedding */
static int mhk__is_real(mhk_tape *t, const char *op, const mhk_tensor *x) {
  if (x->dtype == MHK_REAL) return 1;
  mhk_fail(t->ctx, MHK_ERROR_ARGUMENT, "%s: %s is stored as %s; only the weights of linear and embedding may stay in a stored type", op,
           x->name ? x->name : "an input", mhk_dtype_name(x->dtype));
  return 0;
}

static mhk_tensor *mhk__shape_error(mhk_tape *t, const char *op, const mhk_tensor *a, const mhk_tensor *b, const char *want) {
  char x[128], y[128];
  mhk_fail(t->ctx, MHK_ERROR_SHAPE, "%s: %s%s%s and %s%s%s do not fit: %s", op, a->name ? a->name : "", a->name ? " " : "",
           mhk__shape_text(a->rank, a->shape, x, sizeof x), b->name ? b->name : "", b->name ? " " : "", mhk__shape_text(b->rank, b->shape, y, sizeof y), want);
  return NULL;
}

static int mhk__same_shape(const mhk_tensor *a, const mhk_tensor *b) {
  if (a->rank != b->rank) return 0;
  for (int i = 0; i < a->rank; i++)
    if (a->shape[i] != b->shape[i]) return 0;
  return 1;
}

static mhk_index mhk__last(const mhk_tensor *x) { return x->rank > 0 ? x->shape[x->rank - 1] : 1; }
static mhk_index mhk__row_count(const mhk_tensor *x) { return mhk__last(x) > 0 ? x->count / mhk__last(x) : 0; }
static mhk_real *mhk__d(const mhk_tensor *x) { return (mhk_real *)x->data; }

typedef struct mhk__columns_args { const mhk_real *x, *y; mhk_real *out; mhk_index rows, cols; const mhk_real *mean, *rstd; } mhk__columns_args;
static void mhk__column_sum_body(mhk_context *ctx, void *args, mhk_index first, mhk_index last) {
  const mhk__columns_args *a = (const mhk__columns_args *)args;
  mhk_real sum[64], *MHK__RESTRICT s = sum;
  (void)ctx;
  for (mhk_index j = 0; j < last - first; j++) s[j] = 0;
  for (mhk_index r = 0; r < a->rows; r++) {
    const mhk_real *x = a->x + r * a->cols + first;
    for (mhk_index j = 0; j < last - first; j++) s[j] += x[j];
  }
  for (mhk_index j = first; j < last; j++) a->out[j] += s[j - first];
}
/* out (cols) += sum over rows of x */
static void mhk__column_sum(mhk_context *ctx, mhk_index rows, mhk_index cols, const mhk_real *x, mhk_real *out) {
  mhk__columns_args a;
  memset(&a, 0, sizeof a);
  a.x = x;
  a.out = out;
  a.rows = rows;
  a.cols = cols;
  mhk__over(ctx, cols, 64, mhk__column_sum_body, &a);
}

/* first token of each token's document, -1 for the first document of a row (it continues what came before); NULL without doc */
static mhk_index *mhk__starts(mhk_tape *t, const int32_t *doc, mhk_index B, mhk_index T) {
  if (!doc) return NULL;
  mhk_index *start = (mhk_index *)mhk__arena_zeros(t->ctx, &t->arena, B * T, sizeof(mhk_index));
  if (!start) return NULL;
  for (mhk_index b = 0; b < B; b++)
    for (mhk_index i = 0; i < T; i++) start[b * T + i] = i == 0 ? -1 : doc[b * T + i] != doc[b * T + i - 1] ? i : start[b * T + i - 1];
  return start;
}

/* ---- elementwise ---- */

typedef enum mhk__binary_kind { MHK__ADD2, MHK__SUB2, MHK__MUL2 } mhk__binary_kind;
typedef struct mhk__binary_saved { mhk__binary_kind kind; mhk_index wrap; } mhk__binary_saved; /* wrap: b's element of i is i % wrap */

static void mhk__binary_back(mhk_tape *t, mhk__node *n) {
  const mhk__binary_saved *s = (const mhk__binary_saved *)n->saved;
  mhk_tensor *a = n->in[0], *b = n->in[1], *y = n->out[0];
  mhk_real *da = mhk__into(t, a), *db = mhk__into(t, b);
  if (da) {
    if (s->kind == MHK__MUL2) {
      for (mhk_index i = 0; i < y->count; i += s->wrap)
        for (mhk_index j = 0; j < s->wrap; j++) da[i + j] += y->grad[i + j] * mhk__d(b)[j + (b->count == y->count ? i : 0)];
    } else
      mhk__axpy(t->ctx, y->count, MHK__R(1), y->grad, da);
  }
  if (!db) return;
  if (b->count == y->count) {
    if (s->kind == MHK__MUL2)
      for (mhk_index i = 0; i < y->count; i++) db[i] += y->grad[i] * mhk__d(a)[i];
    else
      mhk__axpy(t->ctx, y->count, s->kind == MHK__SUB2 ? MHK__R(-1) : MHK__R(1), y->grad, db);
  } else
    for (mhk_index j = 0; j < s->wrap; j++) {
      double sum = 0;
      for (mhk_index i = j; i < y->count; i += s->wrap) sum += (double)(s->kind == MHK__MUL2 ? y->grad[i] * mhk__d(a)[i] : y->grad[i]);
      db[j] += MHK__R(s->kind == MHK__SUB2 ? -sum : sum);
    }
}

static mhk_tensor *mhk__binary(mhk_tape *t, const char *name, mhk__binary_kind kind, mhk_tensor *a, mhk_tensor *b) {
  mhk_tensor *in[2];
  if (!mhk__op_ready(t, a, b) || !mhk__is_real(t, name, a) || !mhk__is_real(t, name, b)) return NULL;
  if (!mhk__same_shape(a, b) && b->count != 1 && !(b->rank == 1 && a->rank > 0 && b->count == mhk__last(a)))
    return mhk__shape_error(t, name, a, b, "the second may have the shape of the first, of its last axis, or one element");
  mhk_tensor *y = mhk__new(t, a->rank, a->shape);
  if (!y) return NULL;
  const mhk_index wrap = b->count > 0 ? b->count : 1;
  const mhk_real *x = mhk__d(a);
  const mhk_real *z = mhk__d(b);
  for (mhk_index i = 0; i < a->count; i += wrap)
    for (mhk_index j = 0; j < wrap; j++)
      mhk__d(y)[i + j] = kind == MHK__ADD2 ? x[i + j] + z[j] : kind == MHK__SUB2 ? x[i + j] - z[j] : x[i + j] * z[j];
  in[0] = a;
  in[1] = b;
  mhk__node *n = mhk__record(t, mhk__binary_back, 2, in, 1, &y, sizeof(mhk__binary_saved));
  if (n) {
    ((mhk__binary_saved *)n->saved)->kind = kind;
    ((mhk__binary_saved *)n->saved)->wrap = wrap;
  }
  return y;
}
MHKDEF mhk_tensor *mhk_add(mhk_tape *t, mhk_tensor *a, mhk_tensor *b) { return mhk__binary(t, "add", MHK__ADD2, a, b); }
MHKDEF mhk_tensor *mhk_sub(mhk_tape *t, mhk_tensor *a, mhk_tensor *b) { return mhk__binary(t, "sub", MHK__SUB2, a, b); }
MHKDEF mhk_tensor *mhk_mul(mhk_tape *t, mhk_tensor *a, mhk_tensor *b) { return mhk__binary(t, "mul", MHK__MUL2, a, b); }

typedef enum mhk__unary_kind {
  MHK__SCALE1, MHK__SQUARE1, MHK__SQRT1, MHK__EXP1, MHK__LOG1, MHK__SIGMOID1, MHK__SOFTPLUS1, MHK__SILU1, MHK__GELU1
} mhk__unary_kind;
typedef struct mhk__unary_args { mhk__unary_kind kind; mhk_real factor; const mhk_real *x, *y, *dy; mhk_real *out; } mhk__unary_args;

static mhk_real mhk__sigmoid1(mhk_real x) { return MHK__R(1) / (MHK__R(1) + MHK__REXP(-x)); }

static void mhk__unary_body(mhk_context *ctx, void *args, mhk_index first, mhk_index last) {
  const mhk__unary_args *a = (const mhk__unary_args *)args;
  const mhk_real *x = a->x;
  mhk_real *y = a->out, f = a->factor;
  switch (a->kind) {
    case MHK__SCALE1: for (mhk_index i = first; i < last; i++) y[i] = x[i] * f; break;
    case MHK__SQUARE1: for (mhk_index i = first; i < last; i++) y[i] = x[i] * x[i]; break;
    case MHK__SQRT1: for (mhk_index i = first; i < last; i++) y[i] = MHK__R(sqrt(x[i])); break;
    case MHK__EXP1: for (mhk_index i = first; i < last; i++) y[i] = MHK__REXP(x[i]); break;
    case MHK__LOG1: for (mhk_index i = first; i < last; i++) y[i] = MHK__R(log(x[i])); break;
    case MHK__SIGMOID1: for (mhk_index i = first; i < last; i++) y[i] = mhk__sigmoid1(x[i]); break;
    case MHK__SOFTPLUS1: for (mhk_index i = first; i < last; i++) y[i] = (x[i] > 0 ? x[i] : 0) + MHK__R(log1p(exp(-fabs((double)x[i])))); break;
    case MHK__SILU1: for (mhk_index i = first; i < last; i++) y[i] = x[i] * mhk__sigmoid1(x[i]); break;
    case MHK__GELU1: ctx->kernels->gelu(last - first, x + first, y + first); break;
  }
}

static void mhk__unary_back_body(mhk_context *ctx, void *args, mhk_index first, mhk_index last) {
  const mhk__unary_args *a = (const mhk__unary_args *)args;
  const mhk_real *x = a->x, *y = a->y, *g = a->dy;
  mhk_real *d = a->out, f = a->factor, s;
  switch (a->kind) {
    case MHK__SCALE1: for (mhk_index i = first; i < last; i++) d[i] += g[i] * f; break;
    case MHK__SQUARE1: for (mhk_index i = first; i < last; i++) d[i] += g[i] * 2 * x[i]; break;
    case MHK__SQRT1: for (mhk_index i = first; i < last; i++) d[i] += y[i] > 0 ? g[i] / (2 * y[i]) : 0; break; /* at 0: the subgradient 0 */
    case MHK__EXP1: for (mhk_index i = first; i < last; i++) d[i] += g[i] * y[i]; break;
    case MHK__LOG1: for (mhk_index i = first; i < last; i++) d[i] += g[i] / x[i]; break;
    case MHK__SIGMOID1: for (mhk_index i = first; i < last; i++) d[i] += g[i] * y[i] * (1 - y[i]); break;
    case MHK__SOFTPLUS1: for (mhk_index i = first; i < last; i++) d[i] += g[i] * mhk__sigmoid1(x[i]); break;
    case MHK__SILU1:
      for (mhk_index i = first; i < last; i++) {
        s = mhk__sigmoid1(x[i]);
        d[i] += g[i] * s * (1 + x[i] * (1 - s));
      }
      break;
    case MHK__GELU1:
      for (mhk_index i = first; i < last;) {
        mhk_real block[256];
        const mhk_index k = mhk__min(256, last - i);
        ctx->kernels->gelu_back(k, x + i, g + i, block);
        for (mhk_index j = 0; j < k; j++) d[i + j] += block[j];
        i += k;
      }
      break;
  }
}

static void mhk__unary_back(mhk_tape *t, mhk__node *n) {
  mhk__unary_args a = *(const mhk__unary_args *)n->saved;
  a.out = mhk__into(t, n->in[0]);
  a.dy = n->out[0]->grad;
  if (a.out) mhk__over(t->ctx, n->in[0]->count, MHK__GRAIN, mhk__unary_back_body, &a);
}

static mhk_tensor *mhk__unary(mhk_tape *t, const char *name, mhk__unary_kind kind, double factor, mhk_tensor *x) {
  mhk__unary_args a;
  if (!mhk__op_ready(t, x, x) || !mhk__is_real(t, name, x)) return NULL;
  mhk_tensor *y = mhk__new(t, x->rank, x->shape);
  if (!y) return NULL;
  memset(&a, 0, sizeof a);
  a.kind = kind;
  a.factor = MHK__R(factor);
  a.x = mhk__d(x);
  a.y = a.out = mhk__d(y);
  mhk__over(t->ctx, x->count, MHK__GRAIN, mhk__unary_body, &a);
  mhk__node *n = mhk__record(t, mhk__unary_back, 1, &x, 1, &y, sizeof a);
  if (n) *(mhk__unary_args *)n->saved = a;
  return y;
}
MHKDEF mhk_tensor *mhk_scale(mhk_tape *t, mhk_tensor *x, double factor) {
  if (!mhk__op_ready(t, x, x) || !mhk__number_fits(t->ctx, "scale", "factor", factor, -MHK__REAL_MOST, MHK__REAL_MOST))
    return NULL;
  return mhk__unary(t, "scale", MHK__SCALE1, factor, x);
}
MHKDEF mhk_tensor *mhk_square(mhk_tape *t, mhk_tensor *x) { return mhk__unary(t, "square", MHK__SQUARE1, 0, x); }
MHKDEF mhk_tensor *mhk_sqrt(mhk_tape *t, mhk_tensor *x) { return mhk__unary(t, "sqrt", MHK__SQRT1, 0, x); }
MHKDEF mhk_tensor *mhk_exp(mhk_tape *t, mhk_tensor *x) { return mhk__unary(t, "exp", MHK__EXP1, 0, x); }
MHKDEF mhk_tensor *mhk_log(mhk_tape *t, mhk_tensor *x) { return mhk__unary(t, "log", MHK__LOG1, 0, x); }
MHKDEF mhk_tensor *mhk_sigmoid(mhk_tape *t, mhk_tensor *x) { return mhk__unary(t, "sigmoid", MHK__SIGMOID1, 0, x); }
MHKDEF mhk_tensor *mhk_softplus(mhk_tape *t, mhk_tensor *x) { return mhk__unary(t, "softplus", MHK__SOFTPLUS1, 0, x); }
MHKDEF mhk_tensor *mhk_silu(mhk_tape *t, mhk_tensor *x) { return mhk__unary(t, "silu", MHK__SILU1, 0, x); }
MHKDEF mhk_tensor *mhk_gelu(mhk_tape *t, mhk_tensor *x) { return mhk__unary(t, "gelu", MHK__GELU1, 0, x); }

/* ---- reductions and layout ---- */

typedef struct mhk__sum_saved { mhk_real factor; } mhk__sum_saved;

static void mhk__sum_back(mhk_tape *t, mhk__node *n) {
  mhk_real *d = mhk__into(t, n->in[0]);
  const mhk_real f = ((const mhk__sum_saved *)n->saved)->factor;
  const mhk_index each = n->out[0]->count ? n->in[0]->count / n->out[0]->count : 0;
  for (mhk_index i = 0; d && i < n->out[0]->count; i++)
    for (mhk_index j = 0; j < each; j++) d[i * each + j] += f * n->out[0]->grad[i];
}

/* sums of runs of each elements, times factor */
static mhk_tensor *mhk__sums(mhk_tape *t, const char *name, mhk_tensor *x, int rank, mhk_index each, double factor) {
  if (!mhk__is_real(t, name, x)) return NULL;
  mhk_tensor *y = mhk__new(t, rank, x->shape);
  if (!y) return NULL;
  for (mhk_index i = 0; i < y->count; i++) {
    double sum = 0;
    for (mhk_index j = 0; j < each; j++) sum += (double)mhk__d(x)[i * each + j];
    mhk__d(y)[i] = MHK__R(sum * factor);
  }
  mhk__node *n = mhk__record(t, mhk__sum_back, 1, &x, 1, &y, sizeof(mhk__sum_saved));
  if (n) ((mhk__sum_saved *)n->saved)->factor = MHK__R(factor);
  return y;
}
MHKDEF mhk_tensor *mhk_sum(mhk_tape *t, mhk_tensor *x) { return mhk__op_ready(t, x, x) ? mhk__sums(t, "sum", x, 0, x->count, 1) : NULL; }
MHKDEF mhk_tensor *mhk_mean(mhk_tape *t, mhk_tensor *x) {
  return mhk__op_ready(t, x, x) ? mhk__sums(t, "mean", x, 0, x->count, x->count ? 1.0 / (double)x->count : 0) : NULL;
}
MHKDEF mhk_tensor *mhk_sum_last(mhk_tape *t, mhk_tensor *x) {
  if (!mhk__op_ready(t, x, x)) return NULL;
  return x->rank == 0 ? mhk__sums(t, "sum_last", x, 0, 1, 1) : mhk__sums(t, "sum_last", x, x->rank - 1, mhk__last(x), 1);
}

static mhk__matrix mhk__real_mat(const mhk_real *data, mhk_index row, mhk_index col) { return mhk__mat(data, MHK_REAL, row, col); }

static const mhk__epilogue *mhk__accumulate(mhk__epilogue *e) {
  memset(e, 0, sizeof *e);
  e->accumulate = 1;
  return e;
}

typedef struct mhk__matmul_saved { mhk_index batch, m, n, k, brs, bcs; } mhk__matmul_saved;

static void mhk__products(mhk_context *ctx, mhk_index batch, mhk_index M, mhk_index N, mhk_index K, mhk__matrix a, mhk__matrix b, mhk_real *c, int accumulate) {
  mhk__batch_args g;
  g.M = M;
  g.N = g.ldc = N;
  g.K = K;
  g.step_a = M * K;
  g.step_b = K * N;
  g.step_c = M * N;
  g.a = a;
  g.b = b;
  g.c = c;
  g.accumulate = accumulate;
  mhk__gemm_batch(ctx, batch, &g);
}

static void mhk__matmul_back(mhk_tape *t, mhk__node *node) {
  const mhk__matmul_saved *s = (const mhk__matmul_saved *)node->saved;
  const mhk_real *g = node->out[0]->grad, *a = mhk__d(node->in[0]), *b = mhk__d(node->in[1]);
  mhk_real *da = mhk__into(t, node->in[0]), *db = mhk__into(t, node->in[1]);
  if (da) mhk__products(t->ctx, s->batch, s->m, s->k, s->n, mhk__real_mat(g, s->n, 1), mhk__real_mat(b, s->bcs, s->brs), da, 1);
  if (db && s->bcs == 1) mhk__products(t->ctx, s->batch, s->k, s->n, s->m, mhk__real_mat(a, 1, s->k), mhk__real_mat(g, s->n, 1), db, 1); /* b is (k,n) */
  if (db && s->bcs != 1) mhk__products(t->ctx, s->batch, s->n, s->k, s->m, mhk__real_mat(g, 1, s->n), mhk__real_mat(a, s->k, 1), db, 1);
}

MHKDEF mhk_tensor *mhk_matmul(mhk_tape *t, mhk_tensor *a, mhk_tensor *b, int transpose_b) {
  mhk_index shape[MHK_MAX_RANK];
  mhk__matmul_saved s;
  mhk_tensor *in[2];
  int r;
  if (!mhk__op_ready(t, a, b) || !mhk__is_real(t, "matmul", a) || !mhk__is_real(t, "matmul", b)) return NULL;
  int fits = a->rank >= 2 && b->rank == a->rank;
  for (r = 0; fits && r < a->rank - 2; r++) fits = a->shape[r] == b->shape[r];
  if (!fits || a->shape[a->rank - 1] != b->shape[b->rank - (transpose_b ? 1 : 2)])
    return mhk__shape_error(t, "matmul", a, b, transpose_b ? "(...,m,k) and (...,n,k) are needed" : "(...,m,k) and (...,k,n) are needed");
  for (r = 0; r < a->rank; r++) shape[r] = a->shape[r];
  s.m = a->shape[a->rank - 2];
  s.k = a->shape[a->rank - 1];
  s.n = shape[a->rank - 1] = b->shape[b->rank - (transpose_b ? 2 : 1)];
  s.brs = transpose_b ? 1 : s.n;
  s.bcs = transpose_b ? s.k : 1;
  mhk_tensor *y = mhk__new(t, a->rank, shape);
  if (!y) return NULL;
  for (s.batch = 1, r = 0; r < a->rank - 2; r++) s.batch *= a->shape[r];
  mhk__products(t->ctx, s.batch, s.m, s.n, s.k, mhk__real_mat(mhk__d(a), s.k, 1), mhk__real_mat(mhk__d(b), s.brs, s.bcs), mhk__d(y), 0);
  in[0] = a;
  in[1] = b;
  mhk__node *node = mhk__record(t, mhk__matmul_back, 2, in, 1, &y, sizeof s);
  if (node) *(mhk__matmul_saved *)node->saved = s;
  return t->ctx->result == MHK_OK ? y : NULL;
}

typedef struct mhk__slice_saved { mhk_index first; } mhk__slice_saved;

static void mhk__slice_back(mhk_tape *t, mhk__node *n) {
  mhk_real *d = mhk__into(t, n->in[0]);
  const mhk_index first = ((const mhk__slice_saved *)n->saved)->first, wide = mhk__last(n->in[0]), w = mhk__last(n->out[0]), rows = mhk__row_count(n->out[0]);
  for (mhk_index r = 0; d && r < rows; r++)
    for (mhk_index j = 0; j < w; j++) d[r * wide + first + j] += n->out[0]->grad[r * w + j];
}

MHKDEF mhk_tensor *mhk_columns(mhk_tape *t, mhk_tensor *x, mhk_index first, mhk_index width) {
  mhk_index shape[MHK_MAX_RANK];
  if (!mhk__op_ready(t, x, x) || !mhk__is_real(t, "columns", x)) return NULL;
  if (x->rank < 1 || first < 0 || width < 0 || first > mhk__last(x) || width > mhk__last(x) - first) {
    mhk_fail(t->ctx, MHK_ERROR_SHAPE, "%lld columns from %lld on of a tensor whose last axis has %lld",
             (long long)width, (long long)first, (long long)mhk__last(x));
    return NULL;
  }
  for (int i = 0; i < x->rank; i++) shape[i] = x->shape[i];
  shape[x->rank - 1] = width;
  mhk_tensor *y = mhk__new(t, x->rank, shape);
  if (!y) return NULL;
  const mhk_index rows = mhk__row_count(x);
  for (mhk_index r = 0; r < rows; r++) memcpy(mhk__d(y) + r * width, mhk__d(x) + r * mhk__last(x) + first, (size_t)width * sizeof(mhk_real));
  mhk__node *n = mhk__record(t, mhk__slice_back, 1, &x, 1, &y, sizeof(mhk__slice_saved));
  if (n) ((mhk__slice_saved *)n->saved)->first = first;
  return y;
}

/* out (B,H,T,P) = or += in (B,T,H,P) */
static void mhk__swap(const mhk_real *in, mhk_index B, mhk_index T, mhk_index H, mhk_index P, mhk_real *out, int add) {
  for (mhk_index b = 0; b < B; b++)
    for (mhk_index t = 0; t < T; t++)
      for (mhk_index h = 0; h < H; h++) {
        const mhk_real *x = in + ((b * T + t) * H + h) * P;
        mhk_real *y = out + ((b * H + h) * T + t) * P;
        for (mhk_index p = 0; p < P; p++) y[p] = add ? y[p] + x[p] : x[p];
      }
}

static void mhk__swap_back(mhk_tape *t, mhk__node *n) {
  mhk_real *d = mhk__into(t, n->in[0]);
  const mhk_tensor *y = n->out[0];
  if (d) mhk__swap(y->grad, y->shape[0], y->shape[1], y->shape[2], y->count ? y->count / (y->shape[0] * y->shape[1] * y->shape[2]) : 0, d, 1);
}

MHKDEF mhk_tensor *mhk_swap_heads(mhk_tape *t, mhk_tensor *x) {
  mhk_index shape[MHK_MAX_RANK];
  if (!mhk__op_ready(t, x, x) || !mhk__is_real(t, "swap_heads", x)) return NULL;
  if (x->rank < 3) {
    mhk_fail(t->ctx, MHK_ERROR_SHAPE, "swap_heads: a tensor of rank %d has no axes 1 and 2 before its last one", x->rank);
    return NULL;
  }
  for (int i = 0; i < x->rank; i++) shape[i] = x->shape[i];
  shape[1] = x->shape[2];
  shape[2] = x->shape[1];
  mhk_tensor *y = mhk__new(t, x->rank, shape);
  if (!y) return NULL;
  mhk__swap(mhk__d(x), x->shape[0], x->shape[1], x->shape[2], x->count ? x->count / (x->shape[0] * x->shape[1] * x->shape[2]) : 0, mhk__d(y), 0);
  mhk__record(t, mhk__swap_back, 1, &x, 1, &y, 0);
  return y;
}

/* ---- embedding and linear ---- */

typedef struct mhk__embedding_saved { const int32_t *tokens; mhk_index rows, d; } mhk__embedding_saved;
typedef struct mhk__embedding_args { mhk__embedding_saved s; const mhk_real *dy; mhk_real *dw; } mhk__embedding_args;

static void mhk__embedding_back_body(mhk_context *ctx, void *args, mhk_index first, mhk_index last) {
  const mhk__embedding_args *a = (const mhk__embedding_args *)args;
  (void)ctx;
  for (mhk_index r = 0; r < a->s.rows; r++) {
    const mhk_real *g = a->dy + r * a->s.d;
    mhk_real *w = a->dw + a->s.tokens[r] * a->s.d;
    for (mhk_index j = first; j < last; j++) w[j] += g[j];
  }
}

static void mhk__embedding_back(mhk_tape *t, mhk__node *n) {
  mhk__embedding_args a;
  a.s = *(const mhk__embedding_saved *)n->saved;
  a.dw = mhk__into(t, n->in[0]);
  a.dy = n->out[0]->grad;
  if (a.dw) mhk__over(t->ctx, a.s.d, 64, mhk__embedding_back_body, &a);
}

MHKDEF mhk_tensor *mhk_embedding(mhk_tape *t, mhk_tensor *w, const int32_t *tokens, mhk_index B, mhk_index T) {
  mhk_index shape[3];
  if (!mhk__op_ready(t, w, w)) return NULL;
  if (!tokens && B > 0 && T > 0) {
    mhk_fail(t->ctx, MHK_ERROR_ARGUMENT, "embedding: %lld x %lld tokens are needed, and there are none (NULL)",
             (long long)B, (long long)T);
    return NULL;
  }
  if (w->rank != 2) {
    mhk_fail(t->ctx, MHK_ERROR_SHAPE, "embedding: the weight has rank %d and must be (vocabulary, d_model)", w->rank);
    return NULL;
  }
  shape[0] = B;
  shape[1] = T;
  shape[2] = w->shape[1];
  mhk_tensor *y = mhk__new(t, 3, shape);
  if (!y) return NULL;
  for (mhk_index r = 0; r < B * T; r++) {
    mhk_real *to = mhk__d(y) + r * w->shape[1];
    if (tokens[r] < 0 || tokens[r] >= w->shape[0]) {
      mhk_fail(t->ctx, MHK_ERROR_ARGUMENT, "token %lld of the input is %d: the vocabulary has ids 0 to %lld", (long long)r, (int)tokens[r],
               (long long)w->shape[0] - 1);
      return NULL;
    }
    mhk_tensor_read(w, tokens[r] * w->shape[1], w->shape[1], to);
  }
  mhk__node *n = mhk__record(t, mhk__embedding_back, 1, &w, 1, &y, sizeof(mhk__embedding_saved));
  if (n) {
    mhk__embedding_saved *s = (mhk__embedding_saved *)n->saved;
    int32_t *copy = (int32_t *)mhk__arena_zeros(t->ctx, &t->arena, B * T, sizeof(int32_t));
    if (!copy) return NULL;
    if (B * T > 0) memcpy(copy, tokens, (size_t)(B * T) * sizeof(int32_t));
    s->tokens = copy;
    s->rows = B * T;
    s->d = w->shape[1];
  }
  return y;
}

typedef struct mhk__linear_saved {
  mhk_real *before; /* gelu */
  mhk_precision precision;
} mhk__linear_saved;

static void mhk__linear_product(mhk_context *ctx, mhk_precision precision, mhk_index M, mhk_index N, mhk_index K, mhk__matrix a, mhk__matrix b, mhk_real *c,
                                const mhk__epilogue *e) {
  if (precision == MHK_PRECISION_BF16)
    mhk__gemm_narrow(ctx, M, N, K, a, b, c, N, e);
  else
    mhk__gemm(ctx, M, N, K, a, b, c, N, e);
}

typedef struct mhk__gelu_args { const mhk_real *x, *dy; mhk_real *dx; } mhk__gelu_args;

static void mhk__gelu_back_body(mhk_context *ctx, void *args, mhk_index first, mhk_index last) {
  const mhk__gelu_args *a = (const mhk__gelu_args *)args;
  ctx->kernels->gelu_back(last - first, a->x + first, a->dy + first, a->dx + first);
}

static void mhk__linear_back(mhk_tape *t, mhk__node *n) {
  const mhk__linear_saved *s = (const mhk__linear_saved *)n->saved;
  mhk_context *ctx = t->ctx;
  mhk_tensor *x = n->in[0], *w = n->in[1], *b = n->in[2], *residual = n->in[3], *y = n->out[0];
  const mhk_index N = w->shape[0], K = w->shape[1], rows = N ? y->count / N : 0;
  const mhk__mark mark = mhk__scratch_mark(ctx);
  mhk_real *dw = mhk__into(t, w), *db = mhk__into(t, b), *dr = mhk__into(t, residual), *dx;
  const mhk_real *g = y->grad;
  mhk__epilogue e;
  int add = 1;
  dx = rows > 0 ? mhk__into_all(t, x, &add) : NULL;
  mhk__accumulate(&e);
  if (s->before) {
    mhk__gelu_args a;
    a.x = s->before;
    a.dy = g;
    a.dx = (mhk_real *)mhk__scratch(ctx, y->count, sizeof(mhk_real));
    if (!a.dx) return;
    mhk__over(ctx, y->count, MHK__GRAIN, mhk__gelu_back_body, &a);
    g = a.dx;
  }
  if (dr) mhk__axpy(ctx, y->count, MHK__R(1), g, dr);
  if (db) mhk__column_sum(ctx, rows, N, g, db);
  if (dw) mhk__linear_product(ctx, s->precision, N, K, rows, mhk__real_mat(g, 1, N), mhk__real_mat(mhk__d(x), K, 1), dw, &e);
  e.accumulate = add;
  if (dx) mhk__linear_product(ctx, s->precision, rows, K, N, mhk__real_mat(g, N, 1), mhk__mat_weight(w, 0), dx, &e);
  mhk__scratch_rewind(ctx, mark);
}

static mhk_tensor *mhk__linear(mhk_tape *t, const char *name, mhk_tensor *x, mhk_tensor *w, mhk_tensor *b, int gelu, mhk_tensor *residual) {
  mhk_index shape[MHK_MAX_RANK];
  mhk_tensor *in[4];
  mhk_real *before = NULL;
  mhk__epilogue e;
  if (!mhk__op_ready(t, x, w) || !mhk__is_real(t, name, x)) return NULL;
  if (w->rank != 2 || x->rank < 1 || mhk__last(x) != w->shape[1]) return mhk__shape_error(t, name, x, w, "(...,K) and (N,K) are needed");
  if (b && (b->rank != 1 || b->shape[0] != w->shape[0])) return mhk__shape_error(t, name, w, b, "the bias must have one number an output");
  if (w->dtype != MHK_REAL && w->dtype != MHK_F32 && w->dtype != MHK_F64 && w->dtype != MHK_F16 && w->dtype != MHK_BF16 && !w->quantised) {
    mhk_fail(t->ctx, MHK_ERROR_UNSUPPORTED, "%s: %s is stored as %s", name, w->name ? w->name : "the weight", mhk_dtype_name(w->dtype));
    return NULL;
  }
  for (int i = 0; i < x->rank; i++) shape[i] = x->shape[i];
  shape[x->rank - 1] = w->shape[0];
  mhk_tensor *y = mhk__new(t, x->rank, shape);
  if (!y) return NULL;
  if (residual && !mhk__same_shape(residual, y)) return mhk__shape_error(t, name, y, residual, "the residual must have the output's shape");
  const mhk_index rows = mhk__row_count(x);
  in[0] = x;
  in[1] = w;
  in[2] = b;
  in[3] = residual;
  mhk__node *n = mhk__record(t, mhk__linear_back, 4, in, 1, &y, sizeof(mhk__linear_saved));
  if (n) ((mhk__linear_saved *)n->saved)->precision = t->ctx->precision;
  if (n && gelu) {
    before = (mhk_real *)mhk__arena_alloc(t->ctx, &t->arena, (size_t)y->count * sizeof(mhk_real));
    if (!before) return NULL;
    ((mhk__linear_saved *)n->saved)->before = before;
  }
  memset(&e, 0, sizeof e);
  e.bias = b ? mhk__d(b) : NULL;
  e.residual = residual ? mhk__d(residual) : NULL;
  e.before = before;
  e.gelu = gelu;
  mhk__linear_product(t->ctx, t->ctx->precision, rows, w->shape[0], w->shape[1], mhk__real_mat(mhk__d(x), w->shape[1], 1),
                      mhk__mat_weight(w, 1), mhk__d(y), &e);
  return t->ctx->result == MHK_OK ? y : NULL;
}
MHKDEF mhk_tensor *mhk_linear(mhk_tape *t, mhk_tensor *x, mhk_tensor *w, mhk_tensor *b) { return mhk__linear(t, "linear", x, w, b, 0, NULL); }
MHKDEF mhk_tensor *mhk_linear_gelu(mhk_tape *t, mhk_tensor *x, mhk_tensor *w, mhk_tensor *b) { return mhk__linear(t, "linear_gelu", x, w, b, 1, NULL); }
MHKDEF mhk_tensor *mhk_linear_add(mhk_tape *t, mhk_tensor *x, mhk_tensor *w, mhk_tensor *b, mhk_tensor *residual) {
  return residual ? mhk__linear(t, "linear_add", x, w, b, 0, residual) : NULL;
}
#endif /* MOHAWK_NO_TRAINING */
#endif /* MOHAWK_IMPLEMENTATION */

/* ====================================================================================================
   ROWS: softmax, LayerNorm, RMSNorm, the gate                                             >>rows
   ====================================================================================================

   Functions of one row of numbers each, shared out among the workers by rows:
      softmax    exp(x_i) / sum of exp(x_j); the logarithm of that sum is log-sum-exp
      LayerNorm  (x - mean) / sqrt(variance + eps) * weight + bias; RMSNorm, the same without mean
      gate       y * silu(z), which closes a state-space mixer */

#if MHK__REFERENCE == 1 && !defined(MHK__PASS)
/* ---- reference */

/* y = softmax(x); returns the logarithm of its denominator */
static inline double mhk__ref_softmax(int n, const double *x, double *y) {
  double largest = -HUGE_VAL, sum = 0;
  for (int i = 0; i < n; i++) largest = fmax(largest, x[i]);
  for (int i = 0; i < n; i++) sum += exp(x[i] - largest);
  for (int i = 0; i < n; i++) y[i] = exp(x[i] - largest) / sum;
  return largest + log(sum);
}

/* LayerNorm, and RMSNorm where centre is 0: normalized = (x - mean) / sqrt(variance + eps). Returns 1 / sqrt(...). */
static inline double mhk__ref_normalize(int n, const double *x, double eps, int centre, double *mean, double *normalized) {
  double variance = 0;
  *mean = 0;
  for (int i = 0; i < n && centre; i++) *mean += x[i] / n;
  for (int i = 0; i < n; i++) variance += (x[i] - *mean) * (x[i] - *mean) / n;
  for (int i = 0; i < n; i++) normalized[i] = (x[i] - *mean) / sqrt(variance + eps);
  return 1 / sqrt(variance + eps);
}
/* dx from dn, the gradient of the normalized numbers */
static inline void mhk__ref_normalize_back(int n, const double *normalized, double rstd, int centre, const double *dn,
                                           double *dx) {
  double sum = 0, dot = 0;
  for (int i = 0; i < n; i++) {
    sum += centre ? dn[i] / n : 0;
    dot += dn[i] * normalized[i] / n;
  }
  for (int i = 0; i < n; i++) dx[i] += rstd * (dn[i] - sum - normalized[i] * dot);
}
#endif /* reference */

#ifdef MHK__TEMPLATE
/* ---- kernels */

static inline mhk_real MHK__N(mhk__row_max)(mhk_index n, const mhk_real *x) {
  mhk_real best;
  if (n < MHK__W) {
    best = x[0];
    for (mhk_index i = 1; i < n; i++) best = x[i] > best ? x[i] : best;
    return best;
  }
  MHK__V m = MHK__LOAD(x);
  for (mhk_index i = MHK__W; i + MHK__W <= n; i += MHK__W) m = MHK__MAX(m, MHK__LOAD(x + i));
  m = MHK__MAX(m, MHK__LOAD(x + n - MHK__W));
  return MHK__N(mhk__hmax)(m);
}

/* y = exp(x * scale - shift), returns the sum; x and y may be the same */
static inline mhk_real MHK__N(mhk__row_exp)(mhk_index n, const mhk_real *x, mhk_real scale, mhk_real shift, mhk_real *y) {
  mhk_index i;
  const MHK__V f = MHK__SET(scale), s = MHK__SET(-shift);
  MHK__V total = MHK__SET(MHK__R(0));
  mhk_real rest = 0;
  for (i = 0; i + MHK__W <= n; i += MHK__W) {
    const MHK__V e = MHK__N(mhk__vexp)(MHK__FMA(MHK__LOAD(x + i), f, s));
    MHK__STORE(y + i, e);
    total = total + e;
  }
  if (i < n) {
    const mhk_index k = n - i;
    MHK__STORE_FIRST(y + i, MHK__N(mhk__vexp)(MHK__FMA(MHK__LOAD_FIRST(x + i, k), f, s)), k);
    for (mhk_index j = i; j < n; j++) rest += y[j];
  }
  return MHK__N(mhk__hsum)(total) + rest;
}
#ifndef MOHAWK_NO_TRAINING
static void MHK__N(mhk__softmax)(mhk_index n, const mhk_real *x, mhk_real *y) {
  const mhk_real most = MHK__N(mhk__row_max)(n, x);
  const MHK__V f = MHK__SET(MHK__R(1) / MHK__N(mhk__row_exp)(n, x, MHK__R(1), most, y));
  for (mhk_index i = 0; i < n; i += MHK__W) MHK__STOREN(y + i, MHK__LOADN(y + i, n - i) * f, n - i);
}
#endif /* MOHAWK_NO_TRAINING */

/* log sum exp(scale x); sums blocks of 256 in double so that a large vocabulary loses nothing */
static double MHK__N(mhk__log_sum_exp)(mhk_index n, const mhk_real *x, mhk_real scale) {
  const mhk_real most = MHK__N(mhk__row_max)(n, x) * scale;
  double total = 0;
  mhk_real block[256];
  for (mhk_index i = 0; i < n; i += 256) total += (double)MHK__N(mhk__row_exp)(n - i < 256 ? n - i : 256, x + i, scale, most, block);
  return (double)most + log(total);
}

static void MHK__N(mhk__norm)(mhk_index n, const mhk_real *x, const mhk_real *w, const mhk_real *b, mhk_real eps, int centre, mhk_real *y, mhk_real *mean,
                              mhk_real *rstd) {
  mhk_index i;
  MHK__V total = MHK__SET(MHK__R(0)), vm;
  mhk_real m = 0, r, rest = 0;
  if (centre) {
    for (i = 0; i + MHK__W <= n; i += MHK__W) total = total + MHK__LOAD(x + i);
    for (; i < n; i++) rest += x[i];
    m = (MHK__N(mhk__hsum)(total) + rest) / (mhk_real)n;
  }
  total = MHK__SET(MHK__R(0));
  vm = MHK__SET(m);
  rest = 0;
  for (i = 0; i + MHK__W <= n; i += MHK__W) {
    const MHK__V d = MHK__LOAD(x + i) - vm;
    total = MHK__FMA(d, d, total);
  }
  for (; i < n; i++) rest += (x[i] - m) * (x[i] - m);
  r = MHK__R(1) / MHK__R(sqrt((MHK__N(mhk__hsum)(total) + rest) / (mhk_real)n + eps));
  total = MHK__SET(r);
  for (i = 0; i < n; i += MHK__W) {
    MHK__V v = (MHK__LOADN(x + i, n - i) - vm) * total * MHK__LOADN(w + i, n - i);
    if (b) v = v + MHK__LOADN(b + i, n - i);
    MHK__STOREN(y + i, v, n - i);
  }
  *mean = m;
  *rstd = r;
}
#ifndef MOHAWK_NO_TRAINING
/* dx += r (g - mean(g) - xhat mean(g xhat)), g = dy w, xhat = (x - m) r; without centring the middle term is absent */
static void MHK__N(mhk__norm_back)(mhk_index n, const mhk_real *x, const mhk_real *w, mhk_real m, mhk_real r, int centre, const mhk_real *dy, mhk_real *dx) {
  mhk_index i;
  MHK__V sg = MHK__SET(MHK__R(0)), sx = sg;
  const MHK__V vm = MHK__SET(m), vr = MHK__SET(r);
  mhk_real a = 0, c = 0;
  for (i = 0; i + MHK__W <= n; i += MHK__W) {
    const MHK__V g = MHK__LOAD(dy + i) * MHK__LOAD(w + i);
    sg = sg + g;
    sx = MHK__FMA(g, (MHK__LOAD(x + i) - vm) * vr, sx);
  }
  for (; i < n; i++) {
    a += dy[i] * w[i];
    c += dy[i] * w[i] * (x[i] - m) * r;
  }
  a = centre ? (a + MHK__N(mhk__hsum)(sg)) / (mhk_real)n : 0;
  c = (c + MHK__N(mhk__hsum)(sx)) / (mhk_real)n;
  sg = MHK__SET(a);
  sx = MHK__SET(c);
  for (i = 0; i < n; i += MHK__W) {
    const MHK__V g = MHK__LOADN(dy + i, n - i) * MHK__LOADN(w + i, n - i), d = (MHK__LOADN(x + i, n - i) - vm) * vr;
    MHK__STOREN(dx + i, MHK__FMA(vr, g - sg - d * sx, MHK__LOADN(dx + i, n - i)), n - i);
  }
}
#endif /* MOHAWK_NO_TRAINING */

static void MHK__N(mhk__gate)(mhk_index n, const mhk_real *y, const mhk_real *z, const mhk_real *bias, mhk_real *out) {
  for (mhk_index i = 0; i < n; i += MHK__W) {
    MHK__V s = MHK__LOADN(z + i, n - i);
    if (bias) s = s + MHK__LOADN(bias + i, n - i);
    MHK__STOREN(out + i, MHK__LOADN(y + i, n - i) * s * MHK__N(mhk__vsigmoid)(s), n - i);
  }
}
#ifndef MOHAWK_NO_TRAINING
/* dy += g silu(s); dz = g y silu'(s): written, the caller adds it up */
static void MHK__N(mhk__gate_back)(mhk_index n, const mhk_real *y, const mhk_real *z, const mhk_real *bias, const mhk_real *g, mhk_real *dy, mhk_real *dz) {
  const MHK__V one = MHK__SET(MHK__R(1));
  for (mhk_index i = 0; i < n; i += MHK__W) {
    const mhk_index left = n - i;
    MHK__V s = MHK__LOADN(z + i, left), e, gi = MHK__LOADN(g + i, left);
    if (bias) s = s + MHK__LOADN(bias + i, left);
    e = MHK__N(mhk__vsigmoid)(s);
    if (dy) MHK__STOREN(dy + i, MHK__FMA(gi, s * e, MHK__LOADN(dy + i, left)), left);
    if (dz) MHK__STOREN(dz + i, gi * MHK__LOADN(y + i, left) * e * MHK__FMA(s, one - e, one), left);
  }
}
#endif /* MOHAWK_NO_TRAINING */
#endif /* MHK__TEMPLATE */

#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
#ifndef MOHAWK_NO_TRAINING
/* ---- ops */

typedef struct mhk__rows_args {
  mhk_index n;
  const mhk_real *x, *w, *b, *dy, *y;
  mhk_real *out, *mean, *rstd, *dx, *work;
  mhk_real eps;
  int centre;
} mhk__rows_args;

static void mhk__softmax_body(mhk_context *ctx, void *args, mhk_index first, mhk_index last) {
  const mhk__rows_args *a = (const mhk__rows_args *)args;
  for (; first < last; first++) ctx->kernels->softmax(a->n, a->x + first * a->n, a->out + first * a->n);
}

/* dx += p (dy - sum(p dy)) */
static void mhk__softmax_row_back(mhk_index n, const mhk_real *p, const mhk_real *dy, mhk_real f, mhk_real *dx) {
  double dot = 0;
  for (mhk_index j = 0; j < n; j++) dot += (double)(p[j] * dy[j]);
  for (mhk_index j = 0; j < n; j++) dx[j] += f * p[j] * (dy[j] - MHK__R(dot));
}

static void mhk__softmax_back(mhk_tape *t, mhk__node *n) {
  mhk_real *d = mhk__into(t, n->in[0]);
  const mhk_index k = mhk__last(n->in[0]), rows = mhk__row_count(n->in[0]);
  for (mhk_index r = 0; d && r < rows; r++) mhk__softmax_row_back(k, mhk__d(n->out[0]) + r * k, n->out[0]->grad + r * k, MHK__R(1), d + r * k);
}

MHKDEF mhk_tensor *mhk_softmax(mhk_tape *t, mhk_tensor *x) {
  mhk__rows_args a;
  if (!mhk__op_ready(t, x, x) || !mhk__is_real(t, "softmax", x)) return NULL;
  mhk_tensor *y = mhk__new(t, x->rank, x->shape);
  if (!y) return NULL;
  memset(&a, 0, sizeof a);
  a.n = mhk__last(x);
  a.x = mhk__d(x);
  a.out = mhk__d(y);
  mhk__over(t->ctx, mhk__row_count(x), MHK__GRAIN / (a.n + 1) + 1, mhk__softmax_body, &a);
  mhk__record(t, mhk__softmax_back, 1, &x, 1, &y, 0);
  return y;
}

typedef struct mhk__norm_saved { mhk_real *mean, *rstd; int centre; } mhk__norm_saved;

static void mhk__norm_body(mhk_context *ctx, void *args, mhk_index first, mhk_index last) {
  const mhk__rows_args *a = (const mhk__rows_args *)args;
  for (; first < last; first++)
    ctx->kernels->norm(a->n, a->x + first * a->n, a->w, a->b, a->eps, a->centre, a->out + first * a->n, a->mean + first, a->rstd + first);
}

static void mhk__norm_back_body(mhk_context *ctx, void *args, mhk_index first, mhk_index last) {
  const mhk__rows_args *a = (const mhk__rows_args *)args;
  for (; first < last; first++)
    ctx->kernels->norm_back(a->n, a->x + first * a->n, a->w, a->mean[first], a->rstd[first], a->centre, a->dy + first * a->n, a->dx + first * a->n);
}

/* dw += sum over rows of dy xhat */
static void mhk__norm_weight_body(mhk_context *ctx, void *args, mhk_index first, mhk_index last) {
  const mhk__columns_args *a = (const mhk__columns_args *)args;
  mhk_real sum[64];
  (void)ctx;
  for (mhk_index j = 0; j < last - first; j++) sum[j] = 0;
  for (mhk_index r = 0; r < a->rows; r++) {
    const mhk_real *x = a->x + r * a->cols + first, *g = a->y + r * a->cols + first, m = a->mean[r], s = a->rstd[r];
    for (mhk_index j = 0; j < last - first; j++) sum[j] += g[j] * (x[j] - m) * s;
  }
  for (mhk_index j = first; j < last; j++) a->out[j] += sum[j - first];
}

static void mhk__norm_back(mhk_tape *t, mhk__node *n) {
  const mhk__norm_saved *s = (const mhk__norm_saved *)n->saved;
  mhk_tensor *x = n->in[0], *w = n->in[1], *b = n->in[2], *y = n->out[0];
  const mhk_index k = mhk__last(x), rows = mhk__row_count(x);
  mhk_real *dw = mhk__into(t, w), *db = mhk__into(t, b);
  mhk__rows_args a;
  memset(&a, 0, sizeof a);
  a.n = k;
  a.x = mhk__d(x);
  a.w = mhk__d(w);
  a.mean = s->mean;
  a.rstd = s->rstd;
  a.centre = s->centre;
  a.dy = y->grad;
  a.dx = mhk__into(t, x);
  if (a.dx) mhk__over(t->ctx, rows, MHK__GRAIN / (k + 1) + 1, mhk__norm_back_body, &a);
  if (dw) {
    mhk__columns_args c;
    c.x = a.x;
    c.y = y->grad;
    c.out = dw;
    c.rows = rows;
    c.cols = k;
    c.mean = s->mean;
    c.rstd = s->rstd;
    mhk__over(t->ctx, k, 64, mhk__norm_weight_body, &c);
  }
  if (db) mhk__column_sum(t->ctx, rows, k, y->grad, db);
}

static mhk_tensor *mhk__norm(mhk_tape *t, const char *name, mhk_tensor *x, mhk_tensor *w, mhk_tensor *b, double eps, int centre) {
  mhk__rows_args a;
  mhk_tensor *in[3];
  if (!mhk__op_ready(t, x, w) || !mhk__is_real(t, name, x) || !mhk__is_real(t, name, w)) return NULL;
  if (!mhk__number_fits(t->ctx, name, "eps", eps, 0, MHK__REAL_MOST)) return NULL;
  if (w->rank != 1 || mhk__last(x) != w->shape[0] || mhk__last(x) < 1) return mhk__shape_error(t, name, x, w, "the weight must have the size of the last axis");
  if (b && (b->rank != 1 || b->shape[0] != w->shape[0])) return mhk__shape_error(t, name, w, b, "weight and bias must have one size");
  mhk_tensor *y = mhk__new(t, x->rank, x->shape);
  if (!y) return NULL;
  const mhk_index rows = mhk__row_count(x);
  memset(&a, 0, sizeof a);
  a.n = mhk__last(x);
  a.x = mhk__d(x);
  a.w = mhk__d(w);
  a.b = b ? mhk__d(b) : NULL;
  a.eps = MHK__R(eps);
  a.centre = centre;
  a.out = mhk__d(y);
  a.mean = (mhk_real *)mhk__arena_zeros(t->ctx, &t->arena, rows, sizeof(mhk_real));
  a.rstd = (mhk_real *)mhk__arena_zeros(t->ctx, &t->arena, rows, sizeof(mhk_real));
  if (!a.mean || !a.rstd) return NULL;
  mhk__over(t->ctx, rows, MHK__GRAIN / (a.n + 1) + 1, mhk__norm_body, &a);
  in[0] = x;
  in[1] = w;
  in[2] = b;
  mhk__node *n = mhk__record(t, mhk__norm_back, 3, in, 1, &y, sizeof(mhk__norm_saved));
  if (n) {
    ((mhk__norm_saved *)n->saved)->mean = a.mean;
    ((mhk__norm_saved *)n->saved)->rstd = a.rstd;
    ((mhk__norm_saved *)n->saved)->centre = centre;
  }
  return y;
}
MHKDEF mhk_tensor *mhk_layer_norm(mhk_tape *t, mhk_tensor *x, mhk_tensor *w, mhk_tensor *b, double eps) { return mhk__norm(t, "layer_norm", x, w, b, eps, 1); }
MHKDEF mhk_tensor *mhk_rms_norm(mhk_tape *t, mhk_tensor *x, mhk_tensor *w, double eps) { return mhk__norm(t, "rms_norm", x, w, NULL, eps, 0); }

typedef struct mhk__gate_args { mhk_index n; const mhk_real *y, *z, *bias, *g; mhk_real *out, *dy, *dz; } mhk__gate_args;

static void mhk__gate_body(mhk_context *ctx, void *args, mhk_index first, mhk_index last) {
  const mhk__gate_args *a = (const mhk__gate_args *)args;
  for (; first < last; first++) ctx->kernels->gate(a->n, a->y + first * a->n, a->z + first * a->n, a->bias, a->out + first * a->n);
}

static void mhk__gate_back_body(mhk_context *ctx, void *args, mhk_index first, mhk_index last) {
  const mhk__gate_args *a = (const mhk__gate_args *)args;
  for (; first < last; first++) {
    const mhk_index at = first * a->n;
    ctx->kernels->gate_back(a->n, a->y + at, a->z + at, a->bias, a->g + at, a->dy ? a->dy + at : NULL, a->dz ? a->dz + at : NULL);
  }
}

static void mhk__gate_back(mhk_tape *t, mhk__node *node) {
  mhk_tensor *y = node->in[0], *z = node->in[1], *b = node->in[2];
  const mhk__mark mark = mhk__scratch_mark(t->ctx);
  mhk_real *dz = mhk__into(t, z), *db = mhk__into(t, b);
  mhk__gate_args a;
  a.n = mhk__last(y);
  a.y = mhk__d(y);
  a.z = mhk__d(z);
  a.bias = b ? mhk__d(b) : NULL;
  a.g = node->out[0]->grad;
  a.out = NULL;
  a.dy = mhk__into(t, y);
  a.dz = dz || db ? (mhk_real *)mhk__scratch(t->ctx, y->count, sizeof(mhk_real)) : NULL;
  if ((dz || db) && !a.dz) return;
  mhk__over(t->ctx, mhk__row_count(y), MHK__GRAIN / (a.n + 1) + 1, mhk__gate_back_body, &a);
  if (dz) mhk__axpy(t->ctx, z->count, MHK__R(1), a.dz, dz);
  if (db) mhk__column_sum(t->ctx, mhk__row_count(y), a.n, a.dz, db);
  mhk__scratch_rewind(t->ctx, mark);
}

MHKDEF mhk_tensor *mhk_gate(mhk_tape *t, mhk_tensor *y, mhk_tensor *z, mhk_tensor *b) {
  mhk__gate_args a;
  mhk_tensor *in[3];
  if (!mhk__op_ready(t, y, z) || !mhk__is_real(t, "gate", y) || !mhk__is_real(t, "gate", z)) return NULL;
  if (!mhk__same_shape(y, z)) return mhk__shape_error(t, "gate", y, z, "both must have one shape");
  if (b && (b->rank != 1 || b->shape[0] != mhk__last(y))) return mhk__shape_error(t, "gate", y, b, "the bias must have the size of the last axis");
  mhk_tensor *out = mhk__new(t, y->rank, y->shape);
  if (!out) return NULL;
  memset(&a, 0, sizeof a);
  a.n = mhk__last(y);
  a.y = mhk__d(y);
  a.z = mhk__d(z);
  a.bias = b ? mhk__d(b) : NULL;
  a.out = mhk__d(out);
  mhk__over(t->ctx, mhk__row_count(y), MHK__GRAIN / (a.n + 1) + 1, mhk__gate_body, &a);
  in[0] = y;
  in[1] = z;
  in[2] = b;
  mhk__record(t, mhk__gate_back, 3, in, 1, &out, 0);
  return out;
}
#endif /* MOHAWK_NO_TRAINING */
#endif /* MOHAWK_IMPLEMENTATION */

/* ====================================================================================================
   ROTARY: positions as rotations                                                          >>rotary
   ====================================================================================================

   Rotary embedding (Su et al. 2021, arXiv 2104.09864) turns pairs of features by an angle
   proportional to the token's position, so that q_t . k_s depends on t - s only. Half-split
   form: feature i pairs with i + dim/2, and turns by position * theta^(-2i/dim). */

#if MHK__REFERENCE == 1 && !defined(MHK__PASS)
/* ---- reference */

/* Rotary embedding of one head's numbers at a position: i and i + dim/2 turn by position * theta^(-2i/dim). */
static inline void mhk__ref_rotary(int dim, double theta, double position, const double *x, double *y) {
  for (int i = 0; i < dim / 2; i++) {
    const double angle = position * pow(theta, -2.0 * i / dim), low = x[i], high = x[i + dim / 2];
    y[i] = low * cos(angle) - high * sin(angle);
    y[i + dim / 2] = high * cos(angle) + low * sin(angle);
  }
}
#endif /* reference */

#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
#ifndef MOHAWK_NO_TRAINING
/* ---- ops */

typedef struct mhk__rotary_args {
  mhk_index T, H, P, half;
  const mhk_real *x, *cosine, *sine; /* (positions, half) */
  const mhk_index *start;
  mhk_real *y;
  int back; /* turn the other way and add */
} mhk__rotary_args;

static void mhk__rotary_body(mhk_context *ctx, void *args, mhk_index first, mhk_index last) {
  const mhk__rotary_args *a = (const mhk__rotary_args *)args;
  (void)ctx;
  for (mhk_index r = first; r < last; r++) {
    /* later documents count from 0: the table's second half */
    const mhk_index t = r % a->T, from = a->start ? a->start[r] : -1, at = from > 0 ? t - from + a->T : t;
    const mhk_real *MHK__RESTRICT c = a->cosine + at * a->half, *MHK__RESTRICT s = a->sine + at * a->half;
    for (mhk_index h = 0; h < a->H; h++) {
      const mhk_real *MHK__RESTRICT x = a->x + (r * a->H + h) * a->P;
      mhk_real *MHK__RESTRICT y = a->y + (r * a->H + h) * a->P;
      if (a->back) {
        for (mhk_index i = 0; i < a->half; i++) {
          y[i] += x[i] * c[i] + x[i + a->half] * s[i];
          y[i + a->half] += x[i + a->half] * c[i] - x[i] * s[i];
        }
        for (mhk_index i = 2 * a->half; i < a->P; i++) y[i] += x[i];
      } else {
        for (mhk_index i = 0; i < a->half; i++) {
          y[i] = x[i] * c[i] - x[i + a->half] * s[i];
          y[i + a->half] = x[i + a->half] * c[i] + x[i] * s[i];
        }
        for (mhk_index i = 2 * a->half; i < a->P; i++) y[i] = x[i];
      }
    }
  }
}

static void mhk__rotary_back(mhk_tape *t, mhk__node *n) {
  mhk__rotary_args a = *(const mhk__rotary_args *)n->saved;
  a.y = mhk__into(t, n->in[0]);
  a.x = n->out[0]->grad;
  a.back = 1;
  if (a.y) mhk__over(t->ctx, n->in[0]->shape[0] * a.T, MHK__GRAIN / (a.H * a.P + 1) + 1, mhk__rotary_body, &a);
}

MHKDEF mhk_tensor *mhk_rotary(mhk_tape *t, mhk_tensor *x, int dim, double theta, const int32_t *doc, mhk_index offset) {
  mhk__rotary_args a;
  if (!mhk__op_ready(t, x, x) || !mhk__is_real(t, "rotary", x)) return NULL;
  if (x->rank != 4 || dim < 0 || dim % 2 || dim > x->shape[3]) {
    char text[128];
    mhk_fail(t->ctx, MHK_ERROR_SHAPE, "rotary: %d features of %s: (B,T,H,P) and an even number up to P are needed", dim,
             mhk__shape_text(x->rank, x->shape, text, sizeof text));
    return NULL;
  }
  if (!mhk__number_fits(t->ctx, "rotary", "theta", theta, DBL_MIN, DBL_MAX) ||
      !mhk__number_fits(t->ctx, "rotary", "the first position (offset)", (double)offset, 0, (double)(PTRDIFF_MAX / 64)))
    return NULL;
  mhk_tensor *y = mhk__new(t, 4, x->shape);
  if (!y) return NULL;
  memset(&a, 0, sizeof a);
  a.T = x->shape[1];
  a.H = x->shape[2];
  a.P = x->shape[3];
  a.half = dim / 2;
  a.x = mhk__d(x);
  a.y = mhk__d(y);
  a.start = mhk__starts(t, doc, x->shape[0], a.T);
  const mhk_index positions = doc ? 2 * a.T : a.T;
  mhk_real *c = (mhk_real *)mhk__arena_zeros(t->ctx, &t->arena, positions * a.half, sizeof(mhk_real));
  mhk_real *s = (mhk_real *)mhk__arena_zeros(t->ctx, &t->arena, positions * a.half, sizeof(mhk_real));
  if (!c || !s || (doc && !a.start)) return NULL;
  for (mhk_index j = 0; j < a.half; j++) {
    const double turn = pow(theta, -2.0 * (double)j / dim);
    for (mhk_index i = 0; i < positions; i++) {
      const double angle = (double)(i < a.T ? offset + i : i - a.T) * turn;
      c[i * a.half + j] = MHK__R(cos(angle));
      s[i * a.half + j] = MHK__R(sin(angle));
    }
  }
  a.cosine = c;
  a.sine = s;
  mhk__over(t->ctx, x->shape[0] * a.T, MHK__GRAIN / (a.H * a.P + 1) + 1, mhk__rotary_body, &a);
  mhk__node *n = mhk__record(t, mhk__rotary_back, 1, &x, 1, &y, sizeof a);
  if (n) *(mhk__rotary_args *)n->saved = a;
  return y;
}
#endif /* MOHAWK_NO_TRAINING */
#endif /* MOHAWK_IMPLEMENTATION */

/* ====================================================================================================
   CONVOLUTION: causal and depthwise                                                       >>convolution
   ====================================================================================================

   y_t = bias + sum over w < W of tap_w x_{t-(W-1)+w}, each channel by itself: the few tokens of
   context that a state-space mixer mixes before its state sees them. Tokens of another document
   do not count. In inference the last W - 1 inputs are the state that is carried from call to
   call. */

#if MHK__REFERENCE == 1 && !defined(MHK__PASS)
/* ---- reference */

typedef struct mhk__ref_conv {
  int T, W;
  const double *x, *past;  /* (T); (W-1) inputs before the first token, oldest first, or NULL for zeros */
  const double *taps;      /* (W) */
  double bias;
  const int *first;        /* (T) first token of t's document; -1: the past belongs to it. NULL: -1 throughout */
} mhk__ref_conv;

/* the input that tap w of token t lies on */
static inline double mhk__ref_conv_input(const mhk__ref_conv *a, int t, int w) {
  const int s = t - (a->W - 1 - w), first = a->first ? a->first[t] : -1;
  if (s < 0) return first < 0 && a->past ? a->past[a->W - 1 + s] : 0;
  return s >= first ? a->x[s] : 0;
}
/* z (T), before any activation */
static inline void mhk__ref_conv_forward(const mhk__ref_conv *a, double *z) {
  for (int t = 0; t < a->T; t++) {
    z[t] = a->bias;
    for (int w = 0; w < a->W; w++) z[t] += a->taps[w] * mhk__ref_conv_input(a, t, w);
  }
}
static inline void mhk__ref_conv_back(const mhk__ref_conv *a, const double *dz, double *dx, double *dtaps, double *dbias) {
  for (int t = 0; t < a->T; t++) {
    *dbias += dz[t];
    for (int w = 0; w < a->W; w++) {
      const int s = t - (a->W - 1 - w);
      dtaps[w] += dz[t] * mhk__ref_conv_input(a, t, w);
      if (s >= 0 && s >= (a->first ? a->first[t] : -1)) dx[s] += dz[t] * a->taps[w];
    }
  }
}
#endif /* reference */

#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
/* ---- arguments */

/* Depthwise convolution of one run of channels: x rows have ldx columns, y rows ldy. */
struct mhk__conv_args {
  mhk_index B, T, C, W;          /* C channels in x */
  const mhk_real *x, *weight, *bias;
  const mhk_index *start;
  const mhk_real *state;         /* (B,C,W-1) or NULL */
  int silu;
  mhk_real *y;                   /* this run's output, its first channel at y[0] */
  mhk_index ldy, first;          /* columns of y; first channel of the run in x */
  mhk_real *before;              /* (B,T,C): pre-activation, silu only */
  const mhk_real *dy;
  mhk_real *dx, *dweight, *dbias; /* added to; NULL: not wanted */
};

/* The convolution in inference: T tokens of one sequence. x rows have ldx columns, channels lie side by side everywhere. */
struct mhk__stream_args {
  mhk_index T, W, C, ldx, ldy;
  const mhk_real *x, *taps, *bias; /* taps (W,C), the last one on the token itself */
  mhk_real *state;                 /* (W-1,C) the inputs before, oldest first: moved on */
  int silu;
  mhk_real *y;                     /* channel c goes to column c - first */
  mhk_index first;
};

#define MHK__CONV_BLOCK 64 /* channels a task of the convolution takes */
#ifndef MOHAWK_NO_TRAINING
static mhk_index mhk__conv_work(mhk_index W) { return (2 * W + 4) * MHK__CONV_BLOCK; }
#endif /* MOHAWK_NO_TRAINING */
#endif /* MOHAWK_IMPLEMENTATION */

#ifdef MHK__TEMPLATE
#ifndef MOHAWK_NO_TRAINING
/* ---- kernels */

/* input of channel row at position t - back; out of the document: 0 or the state */
static inline void MHK__N(mhk__conv_tap)(const mhk__conv_args *a, mhk_index b, mhk_index t, mhk_index back, mhk_index c0, mhk_index n, const mhk_real **row,
                                         mhk_real *hold) {
  const mhk_index s = t - back, from = a->start ? a->start[b * a->T + t] : -1;
  if (s >= 0 && s >= from) {
    *row = a->x + (b * a->T + s) * a->C + c0;
    return;
  }
  *row = hold;
  if (s < 0 && from < 0 && a->state) /* the state's last column is the token just before the first */
    for (mhk_index i = 0; i < n; i++) hold[i] = a->state[(b * a->C + c0 + i) * (a->W - 1) + a->W - 1 + s];
  else
    for (mhk_index i = 0; i < n; i++) hold[i] = 0;
}

/* One vector of channels over one sequence, up to four taps and no documents: the last inputs stay in registers. k[0..3] are the taps, unused ones 0. */
static void MHK__N(mhk__conv_run4)(const mhk__conv_args *a, mhk_index b, mhk_index c, mhk_index n, const MHK__V *k) {
  const mhk_real *x = a->x + b * a->T * a->C + c;
  mhk_real *y = a->y + b * a->T * a->ldy + c - a->first, hold[3][MHK__W];
  const MHK__V bias = a->bias ? MHK__LOADN(a->bias + c, n) : MHK__SET(MHK__R(0)), k0 = k[0], k1 = k[1], k2 = k[2], k3 = k[3];
  for (mhk_index j = 0; j < 3; j++) /* what came before: the state's columns, oldest first, or zeros */
    for (mhk_index i = 0; i < MHK__W; i++) {
      const mhk_index column = j - 3 + a->W - 1;
      hold[j][i] = a->state && i < n && column >= 0 ? a->state[(b * a->C + c + i) * (a->W - 1) + column] : 0;
    }
  MHK__V x0 = MHK__LOAD(hold[0]);
  MHK__V x1 = MHK__LOAD(hold[1]);
  MHK__V x2 = MHK__LOAD(hold[2]);
  for (mhk_index t = 0; t < a->T; t++, x += a->C, y += a->ldy) {
    const MHK__V x3 = MHK__LOADN(x, n);
    MHK__V v = MHK__FMA(k3, x3, MHK__FMA(k2, x2, MHK__FMA(k1, x1, MHK__FMA(k0, x0, bias))));
    if (a->before) {
      mhk_real *z = a->before + (b * a->T + t) * a->C + c;
      MHK__STOREN(z, v, n);
    }
    if (a->silu) v = MHK__N(mhk__silu_of)(v);
    MHK__STOREN(y, v, n);
    x0 = x1;
    x1 = x2;
    x2 = x3;
  }
}

/* dx_s = sum over j of k[3-j] g_{s+j}; sums[w] += g_t x_{t-3+w}; sums[4] += g_t */
static void MHK__N(mhk__conv_back4)(const mhk__conv_args *a, mhk_index b, mhk_index c, mhk_index n, const MHK__V *k, MHK__V *sums) {
  const MHK__V zero = MHK__SET(MHK__R(0)), one = MHK__SET(MHK__R(1)), k0 = k[0], k1 = k[1], k2 = k[2], k3 = k[3];
  const mhk_real *x = a->x + b * a->T * a->C + c, *dy = a->dy + b * a->T * a->ldy + c - a->first;
  MHK__V g0 = zero, g1 = zero, g2 = zero, x0 = zero, x1 = zero, x2 = zero, s0 = sums[0], s1 = sums[1], s2 = sums[2], s3 = sums[3], s4 = sums[4];
  for (mhk_index t = 0; t < a->T + 3; t++) {
    MHK__V g = zero;
    if (t < a->T) {
      const MHK__V x3 = MHK__LOADN(x + t * a->C, n);
      g = MHK__LOADN(dy + t * a->ldy, n);
      if (a->silu) {
        const MHK__V v = MHK__LOADN(a->before + (b * a->T + t) * a->C + c, n), e = MHK__N(mhk__vsigmoid)(v);
        g = g * e * MHK__FMA(v, one - e, one);
      }
      s0 = MHK__FMA(g, x0, s0);
      s1 = MHK__FMA(g, x1, s1);
      s2 = MHK__FMA(g, x2, s2);
      s3 = MHK__FMA(g, x3, s3);
      s4 = s4 + g;
      x0 = x1;
      x1 = x2;
      x2 = x3;
    }
    if (a->dx && t >= 3) {
      mhk_real *dx = a->dx + (b * a->T + t - 3) * a->C + c;
      const MHK__V v = MHK__FMA(k3, g0, MHK__FMA(k2, g1, MHK__FMA(k1, g2, MHK__FMA(k0, g, MHK__LOADN(dx, n)))));
      MHK__STOREN(dx, v, n);
    }
    g0 = g1;
    g1 = g2;
    g2 = g;
  }
  sums[0] = s0;
  sums[1] = s1;
  sums[2] = s2;
  sums[3] = s3;
  sums[4] = s4;
}

/* the taps of MHK__W channels, right-aligned to four */
static void MHK__N(mhk__conv_taps4)(const mhk__conv_args *a, mhk_index c, mhk_index n, MHK__V *k) {
  mhk_real lane[MHK__W];
  for (mhk_index w = 0; w < 4; w++) {
    const mhk_index tap = w - 4 + a->W;
    for (mhk_index i = 0; i < MHK__W; i++) lane[i] = i < n && tap >= 0 ? a->weight[(c + i) * a->W + tap] : 0;
    k[w] = MHK__LOAD(lane);
  }
}

static void MHK__N(mhk__conv)(const mhk__conv_args *a, mhk_index c0, mhk_index c1, mhk_real *work) {
  const mhk_index n = c1 - c0, W = a->W;
  mhk_real *taps = work, *hold = taps + W * MHK__CONV_BLOCK;
  if (W <= 4 && !a->start) {
    for (mhk_index i = c0; i < c1; i += MHK__W) {
      MHK__V k[4];
      MHK__N(mhk__conv_taps4)(a, i, c1 - i, k);
      for (mhk_index b = 0; b < a->B; b++) MHK__N(mhk__conv_run4)(a, b, i, c1 - i, k);
    }
    return;
  }
  for (mhk_index w = 0; w < W; w++)
    for (mhk_index i = 0; i < n; i++) taps[w * n + i] = a->weight[(c0 + i) * W + w];
  for (mhk_index b = 0; b < a->B; b++)
    for (mhk_index t = 0; t < a->T; t++) {
      mhk_real *MHK__RESTRICT y = a->y + (b * a->T + t) * a->ldy + c0 - a->first;
      for (mhk_index i = 0; i < n; i++) y[i] = a->bias ? a->bias[c0 + i] : 0;
      for (mhk_index w = 0; w < W; w++) {
        const mhk_real *row, *k = taps + w * n;
        MHK__N(mhk__conv_tap)(a, b, t, W - 1 - w, c0, n, &row, hold);
        for (mhk_index i = 0; i < n; i++) y[i] += k[i] * row[i];
      }
      if (a->before) memcpy(a->before + (b * a->T + t) * a->C + c0, y, (size_t)n * sizeof(mhk_real));
      if (a->silu) {
        for (mhk_index i = 0; i < n; i += MHK__W) {
          const MHK__V v = MHK__LOADN(y + i, n - i);
          MHK__STOREN(y + i, MHK__N(mhk__silu_of)(v), n - i);
        }
      }
    }
}

static void MHK__N(mhk__conv_back)(const mhk__conv_args *a, mhk_index c0, mhk_index c1, mhk_real *work) {
  const mhk_index n = c1 - c0, W = a->W;
  mhk_real *taps = work, *hold = taps + W * MHK__CONV_BLOCK, *dtaps = hold + MHK__CONV_BLOCK, *g = dtaps + (W + 1) * MHK__CONV_BLOCK;
  if (W <= 4 && !a->start && !a->state) {
    for (mhk_index i = c0; i < c1; i += MHK__W) {
      const mhk_index m = c1 - i < MHK__W ? c1 - i : MHK__W;
      MHK__V k[4], sums[5];
      MHK__N(mhk__conv_taps4)(a, i, m, k);
      for (mhk_index w = 0; w < 5; w++) sums[w] = MHK__SET(MHK__R(0));
      for (mhk_index b = 0; b < a->B; b++) MHK__N(mhk__conv_back4)(a, b, i, m, k, sums);
      for (mhk_index w = 0; w < 5; w++) {
        mhk_real lane[MHK__W];
        MHK__STORE(lane, sums[w]);
        if (w == 4 && a->dbias)
          for (mhk_index j = 0; j < m; j++) a->dbias[i + j] += lane[j];
        if (w < 4 && w >= 4 - W && a->dweight)
          for (mhk_index j = 0; j < m; j++) a->dweight[(i + j) * W + w - 4 + W] += lane[j];
      }
    }
    return;
  }
  for (mhk_index w = 0; w < W; w++)
    for (mhk_index i = 0; i < n; i++) taps[w * n + i] = a->weight[(c0 + i) * W + w];
  for (mhk_index i = 0; i < (W + 1) * n; i++) dtaps[i] = 0;
  for (mhk_index b = 0; b < a->B; b++)
    for (mhk_index t = 0; t < a->T; t++) {
      const mhk_index from = a->start ? a->start[b * a->T + t] : -1;
      const mhk_real *dy = a->dy + (b * a->T + t) * a->ldy + c0 - a->first;
      for (mhk_index i = 0; i < n; i++) g[i] = dy[i];
      if (a->silu) {
        const mhk_real *z = a->before + (b * a->T + t) * a->C + c0;
        const MHK__V one = MHK__SET(MHK__R(1));
        for (mhk_index i = 0; i < n; i += MHK__W) {
          const MHK__V v = MHK__LOADN(z + i, n - i), e = MHK__N(mhk__vsigmoid)(v);
          MHK__STOREN(g + i, MHK__LOADN(g + i, n - i) * e * MHK__FMA(v, one - e, one), n - i);
        }
      }
      for (mhk_index w = 0; w < W; w++) {
        const mhk_index s = t - (W - 1 - w);
        const mhk_real *row;
        if (a->dx && s >= 0 && s >= from) {
          mhk_real *MHK__RESTRICT dx = a->dx + (b * a->T + s) * a->C + c0;
          for (mhk_index i = 0; i < n; i++) dx[i] += taps[w * n + i] * g[i];
        }
        if (a->dweight) {
          mhk_real *MHK__RESTRICT dk = dtaps + w * n;
          MHK__N(mhk__conv_tap)(a, b, t, W - 1 - w, c0, n, &row, hold);
          for (mhk_index i = 0; i < n; i++) dk[i] += g[i] * row[i];
        }
      }
      if (a->dbias)
        for (mhk_index i = 0; i < n; i++) dtaps[W * n + i] += g[i];
    }
  for (mhk_index i = 0; i < n; i++) {
    if (a->dweight)
      for (mhk_index w = 0; w < W; w++) a->dweight[(c0 + i) * W + w] += dtaps[w * n + i];
    if (a->dbias) a->dbias[c0 + i] += dtaps[W * n + i];
  }
}
#endif /* MOHAWK_NO_TRAINING */

/* input of channels c.. at token t: of this run or from the state */
static inline const mhk_real *MHK__N(mhk__stream_row)(const mhk__stream_args *a, mhk_index t, mhk_index c) {
  return t < 0 ? a->state + (t + a->W - 1) * a->C + c : a->x + t * a->ldx + c;
}

static void MHK__N(mhk__conv_stream)(const mhk__stream_args *a, mhk_index c0, mhk_index c1) {
  const mhk_index T = a->T, W = a->W;
  for (mhk_index c = c0; c < c1; c += MHK__W) {
    const mhk_index n = c1 - c;
    const MHK__V bias = a->bias ? MHK__LOADN(a->bias + c, n) : MHK__SET(MHK__R(0));
    mhk_real *y = a->y + c - a->first;
    for (mhk_index t = 0; t < T; t++, y += a->ldy) {
      MHK__V v = bias;
      for (mhk_index w = 0; w < W; w++) {
        const mhk_real *x = MHK__N(mhk__stream_row)(a, t - W + 1 + w, c);
        v = MHK__FMA(MHK__LOADN(a->taps + w * a->C + c, n), MHK__LOADN(x, n), v);
      }
      if (a->silu) v = MHK__N(mhk__silu_of)(v);
      MHK__STOREN(y, v, n);
    }
    for (mhk_index w = 0; w + 1 < W; w++) {
      const mhk_real *x = MHK__N(mhk__stream_row)(a, T - W + 1 + w, c);
      const MHK__V v = MHK__LOADN(x, n);
      MHK__STOREN(a->state + w * a->C + c, v, n);
    }
  }
}
#endif /* MHK__TEMPLATE */

#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
#ifndef MOHAWK_NO_TRAINING
/* ---- drivers */

static void mhk__conv_task(void *arg, mhk_index task, int worker) {
  const mhk__job *job = (const mhk__job *)arg;
  const mhk__conv_args *a = (const mhk__conv_args *)job->args;
  const mhk_index c0 = a->first + task * MHK__CONV_BLOCK, c1 = mhk__min(c0 + MHK__CONV_BLOCK, a->first + a->ldy);
  mhk_real *work = job->work + worker * job->each;
  if (a->dy)
    job->ctx->kernels->conv_back(a, c0, c1, work);
  else
    job->ctx->kernels->conv(a, c0, c1, work);
}
static void mhk__conv_run(mhk_context *ctx, const mhk__conv_args *a) {
  mhk__run(ctx, a, (a->ldy + MHK__CONV_BLOCK - 1) / MHK__CONV_BLOCK, 0, mhk__conv_work(a->W), (double)(a->B * a->T * a->W) * (double)a->ldy,
          mhk__conv_task);
}

/* ---- ops */

static void mhk__conv_op_back(mhk_tape *t, mhk__node *n) {
  mhk__conv_args a = *(const mhk__conv_args *)n->saved;
  mhk_index first = 0;
  a.dx = mhk__into(t, n->in[0]);
  a.dweight = mhk__into(t, n->in[1]);
  a.dbias = mhk__into(t, n->in[2]);
  for (int i = 0; i < n->outputs; i++) {
    a.first = first;
    a.ldy = mhk__last(n->out[i]);
    first += a.ldy;
    a.dy = n->out[i]->grad;
    if (a.dy) mhk__conv_run(t->ctx, &a);
  }
}

MHKDEF mhk_result mhk_conv1d_split(mhk_tape *t, mhk_tensor *x, mhk_tensor *w, mhk_tensor *bias, int silu, const int32_t *doc, mhk_real *state, int count,
                                   const mhk_index *widths, mhk_tensor **out) {
  mhk__conv_args a;
  mhk_tensor *in[3];
  mhk_index total = 0, shape[3];
  int i;
  for (i = 0; out && i < count && i < MHK__MAX_OUT; i++) out[i] = NULL;
  if (!mhk__op_ready(t, x, w)) return t ? t->ctx->result : MHK_ERROR_MEMORY;
  if (!out || !widths)
    return mhk_fail(t->ctx, MHK_ERROR_ARGUMENT, "conv1d: %d widths and room for as many tensors are needed", count);
  if (!mhk__is_real(t, "conv1d", x) || !mhk__is_real(t, "conv1d", w)) return t->ctx->result;
  for (i = 0; i < count && i < MHK__MAX_OUT && total >= 0; i++)
    total = widths[i] < 0 || widths[i] > x->count - total ? -1 : total + widths[i];
  if (x->rank != 3 || w->rank != 3 || w->shape[0] != x->shape[2] || w->shape[1] != 1 || w->shape[2] < 1 ||
      (bias && (bias->rank != 1 || bias->shape[0] != x->shape[2])) ||
      total != x->shape[2] || count < 1 || count > MHK__MAX_OUT) {
    mhk__shape_error(t, "conv1d", x, w, "(B,T,C) and (C,1,W) are needed, a bias of C, and widths that add up to C");
    return t->ctx->result;
  }
  memset(&a, 0, sizeof a);
  a.B = x->shape[0];
  a.T = x->shape[1];
  a.C = x->shape[2];
  a.W = w->shape[2];
  a.x = mhk__d(x);
  a.weight = mhk__d(w);
  a.bias = bias ? mhk__d(bias) : NULL;
  a.silu = silu;
  a.start = mhk__starts(t, doc, a.B, a.T);
  a.state = state;
  if (doc && !a.start) return t->ctx->result;
  shape[0] = a.B;
  shape[1] = a.T;
  for (i = 0; i < count; i++) {
    shape[2] = widths[i];
    out[i] = mhk__new(t, 3, shape);
    if (!out[i]) return t->ctx->result;
  }
  in[0] = x;
  in[1] = w;
  in[2] = bias;
  if (state && t->recording && (x->requires_grad || w->requires_grad || (bias && bias->requires_grad)))
    return mhk_fail(t->ctx, MHK_ERROR_STATE, "conv1d: a state that is updated serves inference; turn recording off");
  mhk__node *n = mhk__record(t, mhk__conv_op_back, 3, in, count, out, sizeof a);
  if (n && silu) {
    a.before = (mhk_real *)mhk__arena_alloc(t->ctx, &t->arena, (size_t)x->count * sizeof(mhk_real));
    if (!a.before) return t->ctx->result;
  }
  if (n) *(mhk__conv_args *)n->saved = a;
  for (i = 0, total = 0; i < count; i++) {
    a.first = total;
    a.ldy = widths[i];
    a.y = mhk__d(out[i]);
    mhk__conv_run(t->ctx, &a);
    total += widths[i];
  }
  if (state && a.W > 1) { /* the last W-1 inputs; tokens of an earlier document count as zeros for what follows */
    for (mhk_index b = 0; b < a.B; b++)
      for (mhk_index c = 0; c < a.C; c++) {
        mhk_real *s = state + (b * a.C + c) * (a.W - 1);
        const mhk_index from = a.start && a.T > 0 ? a.start[b * a.T + a.T - 1] : -1;
        for (mhk_index k = 0; k < a.W - 1; k++) {
          const mhk_index at = a.T - (a.W - 1) + k;
          s[k] = at < 0 ? (from < 0 ? s[k + a.T] : 0) : at < from ? 0 : a.x[(b * a.T + at) * a.C + c];
        }
      }
  }
  return t->ctx->result;
}

MHKDEF mhk_tensor *mhk_conv1d(mhk_tape *t, mhk_tensor *x, mhk_tensor *w, mhk_tensor *bias, int silu, const int32_t *doc, mhk_real *state) {
  mhk_tensor *y = NULL;
  mhk_index all = x ? mhk__last(x) : 0;
  return mhk_conv1d_split(t, x, w, bias, silu, doc, state, 1, &all, &y) == MHK_OK ? y : NULL;
}
#endif /* MOHAWK_NO_TRAINING */
#endif /* MOHAWK_IMPLEMENTATION */

/* ====================================================================================================
   ATTENTION: causal softmax attention in tiles                                            >>attention
   ====================================================================================================

   y_t = sum over s <= t of M[t,s] v_s, M[t,s] = softmax over s of q_t . k_s / sqrt(P), head by
   head; H heads of queries share G heads of keys and values (grouped-query attention). M has T^2
   elements and is never made: tiles of queries meet tiles of keys, and as each comes by, a
   running maximum and sum correct what was added up before (online softmax, FlashAttention: Dao
   et al. 2022, arXiv 2205.14135). The backward pass makes each tile of M again from q, k and the
   log-sum-exp of its rows. A single query, as in decoding, walks down the cache of keys and
   values once. */

#if MHK__REFERENCE == 1 && !defined(MHK__PASS)
/* ---- reference */

typedef struct mhk__ref_attention {
  int T, S, P;             /* queries, keys and values, numbers of each; query t is token S - T + t */
  const double *q, *k, *v; /* (T,P), (S,P), (S,P) */
  const int *first;        /* (T) the first key that a query sees; NULL: 0 */
} mhk__ref_attention;

/* M[t,s] = softmax over the s that t sees of q_t . k_s / sqrt(P); log_sum_exp (T), if not NULL: the logarithm
   of each softmax's denominator */
static inline void mhk__ref_attention_matrix(const mhk__ref_attention *a, double *M, double *log_sum_exp) {
  for (int t = 0; t < a->T; t++) {
    const int first = a->first && a->first[t] > 0 ? a->first[t] : 0, last = a->S - a->T + t;
    double *row = M + t * a->S, largest = -HUGE_VAL, sum = 0;
    for (int s = first; s <= last; s++) {
      row[s] = mhk__ref_dot(a->P, a->q + t * a->P, a->k + s * a->P) / sqrt((double)a->P);
      largest = fmax(largest, row[s]);
    }
    for (int s = first; s <= last; s++) sum += exp(row[s] - largest);
    for (int s = 0; s < a->S; s++) row[s] = s < first || s > last ? 0 : exp(row[s] - largest) / sum;
    if (log_sum_exp) log_sum_exp[t] = largest + log(sum);
  }
}

/* From dy, the gradient of y = M v. Through the softmax: dscore = M (dM - sum over s of M dM), where dM = dy v^T. */
static inline void mhk__ref_attention_back(const mhk__ref_attention *a, const double *M, const double *dy, double *dq,
                                           double *dk, double *dv) {
  const int P = a->P;
  for (int t = 0; t < a->T; t++) {
    const double *row = M + t * a->S;
    double mean = 0;
    for (int s = 0; s < a->S; s++) mean += row[s] * mhk__ref_dot(P, dy + t * P, a->v + s * P);
    for (int s = 0; s < a->S; s++) {
      const double dscore = row[s] * (mhk__ref_dot(P, dy + t * P, a->v + s * P) - mean) / sqrt((double)P);
      for (int p = 0; p < P; p++) {
        dv[s * P + p] += row[s] * dy[t * P + p];
        dq[t * P + p] += dscore * a->k[s * P + p];
        dk[s * P + p] += dscore * a->q[t * P + p];
      }
    }
  }
}
#endif /* reference */

#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
/* ---- arguments */

/* Attention over (B,T,H,P) queries and (B,S,G,P) keys and values; query t stands at position offset + t. */
struct mhk__attention_args {
  mhk_index B, T, S, H, G, P, offset;
  mhk_index kv_batch;       /* elements between the batches of k and v */
  const mhk_real *q, *k, *v;
  const mhk_index *start;   /* (B,T) first key a query sees, or NULL */
  mhk_real *y;              /* (B,T,H,P) */
  mhk_real *lse;            /* (B,H,T): log of the softmax's denominator, scores scaled; NULL in no-grad */
  const mhk_real *dy, *yy;  /* backward: cotangent and output */
  mhk_real *dq, *dk, *dv;   /* added to; NULL: not wanted */
};

/* elements of work memory a kernel needs, the widest register tile allowed for */
static mhk_index mhk__attention_work(mhk_index S, mhk_index P) {
  const mhk_index K = MHK__TILE, over = K + MHK__OVER, p = MHK__LD(P);
  return 2 * (S + K) * p + P * K + over * (K + p) + 3 * K + 64;
}
#ifndef MOHAWK_NO_TRAINING
static mhk_index mhk__attention_back_work(mhk_index T, mhk_index P) {
  const mhk_index K = MHK__TILE, over = K + MHK__OVER, p = MHK__LD(P);
  return (T + K) * (2 * P + 3 * p) + over * (3 * p + 2 * K) + 2 * K + 64;
}
#endif /* MOHAWK_NO_TRAINING */
#endif /* MOHAWK_IMPLEMENTATION */

#ifdef MHK__TEMPLATE
/* ---- kernels */

/* Tiles of queries with a running maximum and sum (Dao et al., arXiv 2205.14135). Scores are made turned, keys by queries: maximum and sum then run down the
   rows, a vector of queries at once, and the tile is the left operand of the product with the values as it stands. Keys and values are copied in once,
   when the first tile of queries reaches them. */
static void MHK__N(mhk__attention)(const mhk__attention_args *a, mhk_index b, mhk_index h, mhk_real *work) {
  const mhk_index T = a->T, S = a->S, P = a->P, g = h / (a->H / a->G), kv = a->G * P, ldq = a->H * P, K = MHK__TILE, wide = MHK__LD(P);
  const mhk_real *q = a->q + (b * T * a->H + h) * P, *k = a->k + b * a->kv_batch + g * P, *v = a->v ? a->v + b * a->kv_batch + g * P : NULL;
  const mhk_index *start = a->start ? a->start + b * T : NULL;
  const MHK__V zero = MHK__SET(MHK__R(0)), lowest = MHK__SET(MHK__R(-3e38)), scale = MHK__SET(MHK__R(1.0 / sqrt((double)P)));
  mhk_real *keys = work, *values = keys + (S + K) * wide, *qt = values + (S + K) * wide, *s = qt + P * K, *o = s + (K + MHK__OVER) * K;
  mhk_real *most = o + (K + MHK__OVER) * wide, *sum = most + K, *f = sum + K;
  mhk_index i0, i1, j0, i, j, ready = 0, until[MHK__TILE];
  mhk__ahead ahead;
  mhk__block p;
  memset(&p, 0, sizeof p);
  p.ahead = &ahead;
  for (i0 = 0; i0 < T; i0 = i1) {
    /* tiles of queries end where tiles of keys do */
    const mhk_index rows = mhk__min(T - i0, K - (a->offset + i0) % K), wide_q = MHK__LD(rows), last = a->offset + i0 + rows, after = last + K;
    mhk_index first = start && start[i0] > 0 ? start[i0] / K * K : 0;
    i1 = i0 + rows;
    ahead.parts = ahead.now = 0;
    for (; ready < last; ready += K) {
      const mhk_index n = mhk__min(K, S - ready);
      if (ready + K <= first) continue;
      MHK__N(mhk__rows_in)(n, P, k + ready * kv, kv, NULL, keys + ready * wide);
      if (v) MHK__N(mhk__rows_in)(n, P, v + ready * kv, kv, NULL, values + ready * wide);
    }
    MHK__N(mhk__turned_in)(rows, P, q + i0 * ldq, ldq, qt);
    mhk__look_ahead(&ahead, q + i1 * ldq, ldq, P, mhk__min(K, T - i1));
    mhk__look_ahead(&ahead, k + last * kv, kv, P, mhk__min(after, S) - last);
    mhk__look_ahead(&ahead, v ? v + last * kv : NULL, kv, P, mhk__min(after, S) - last);
    mhk__look_ahead(&ahead, a->y ? a->y + ((b * T + i0) * a->H + h) * P : NULL, ldq, P, rows);
    for (i = 0; i < wide_q; i += MHK__W) {
      MHK__STORE(most + i, lowest);
      MHK__STORE(sum + i, zero);
    }
    for (j0 = first; j0 < last; j0 += K) {
      const mhk_index n = mhk__min(K, last - j0), before = a->offset + i0 - j0; /* query i sees key j <= before + i of the tile */
      const int corner = before == 0, cut = start && start[i1 - 1] > j0;
      if (cut)
        for (j = 0, i = 0; j < n; j++) { /* and only queries before until[j] see key j: documents follow each other */
          while (i < rows && start[i0 + i] <= j0 + j) i++;
          until[j] = i;
        }
      MHK__N(mhk__multiply)(&p, n, rows, P, keys + j0 * wide, wide, 1, qt, wide_q, s, wide_q, corner ? mhk__upper_c : mhk__whole);
      for (i = 0; i < rows; i += MHK__W) {
        const mhk_index to = mhk__min(n, before + i + MHK__W), sure = cut ? 0 : mhk__min(n, before + i + 1); /* rows before sure are seen by all */
        mhk_real *at = s + i;
        MHK__V best = lowest, e, total, old = MHK__LOAD(most + i);
        for (j = 0; j < sure; j++) best = MHK__MAX(best, MHK__LOAD(at + j * wide_q));
        for (; j < to; j++) {
          e = MHK__FROM(MHK__LOAD(at + j * wide_q), lowest, j - before - i);
          if (cut) e = MHK__FROM(lowest, e, until[j] - i);
          best = MHK__MAX(best, e);
        }
        best = MHK__MAX(old, best * scale);
        MHK__STORE(most + i, best);
        old = MHK__N(mhk__vexp)(old - best);
        MHK__STORE(f + i, old);
        total = MHK__LOAD(sum + i) * old;
        best = zero - best;
        for (j = 0; j < sure; j++) {
          e = MHK__N(mhk__vexp)(MHK__FMA(MHK__LOAD(at + j * wide_q), scale, best));
          MHK__STORE(at + j * wide_q, e);
          total = total + e;
        }
        for (; j < to; j++) {
          e = MHK__FROM(MHK__N(mhk__vexp)(MHK__FMA(MHK__LOAD(at + j * wide_q), scale, best)), zero, j - before - i);
          if (cut) e = MHK__FROM(zero, e, until[j] - i);
          MHK__STORE(at + j * wide_q, e);
          total = total + e;
        }
        for (; j < n; j++) MHK__STORE(at + j * wide_q, zero);
        MHK__STORE(sum + i, total);
      }
      if (!v) continue;
      p.c0 = j0 > first ? o : NULL;
      p.f = j0 > first ? f : NULL;
      p.fs = 1;
      MHK__N(mhk__multiply)(&p, rows, P, n, s, 1, wide_q, values + j0 * wide, wide, o, wide, corner ? mhk__lower_a : mhk__whole);
    }
    if (a->y) {
      for (i = 0; i < rows; i++) f[i] = MHK__R(1) / sum[i];
      MHK__N(mhk__rows_out)(rows, P, o, f, NULL, a->y + ((b * T + i0) * a->H + h) * P, ldq, 0);
    }
    if (a->lse)
      for (i = 0; i < rows; i++) a->lse[(b * a->H + h) * T + i0 + i] = most[i] + MHK__R(log((double)sum[i]));
  }
}

#if MHK__PASS != 3 /* AVX-512 decodes with AVX2: sums across more lanes cost more than they save (1.2 to 1.6 times the time, keys in the caches) */
/* y (P) = f times the sum of n rows of v, kv apart, by the weights s */
static void MHK__N(mhk__weighted_rows)(mhk_index n, mhk_index P, const mhk_real *s, const mhk_real *v, mhk_index kv, mhk_real f, mhk_real *y) {
  const MHK__V zero = MHK__SET(MHK__R(0)), scale = MHK__SET(f);
  const mhk_index ahead = MHK__ROWS_AHEAD * kv;
  mhk_index j, p = 0;
  for (; p + 4 * MHK__W <= P; p += 4 * MHK__W) { /* two rows at a time in sums of their own: eight chains of multiply-adds */
    MHK__V a0 = zero, a1 = zero, a2 = zero, a3 = zero, b0 = zero, b1 = zero, b2 = zero, b3 = zero;
    for (j = 0; j + 2 <= n; j += 2) {
      const mhk_real *x = v + j * kv + p, *z = x + kv;
      const MHK__V w = MHK__SET(s[j]), u = MHK__SET(s[j + 1]);
      MHK__PREFETCH(x + ahead);
      MHK__PREFETCH(x + ahead + 2 * MHK__W);
      MHK__PREFETCH(z + ahead);
      MHK__PREFETCH(z + ahead + 2 * MHK__W);
      a0 = MHK__FMA(w, MHK__LOAD(x), a0);
      a1 = MHK__FMA(w, MHK__LOAD(x + MHK__W), a1);
      a2 = MHK__FMA(w, MHK__LOAD(x + 2 * MHK__W), a2);
      a3 = MHK__FMA(w, MHK__LOAD(x + 3 * MHK__W), a3);
      b0 = MHK__FMA(u, MHK__LOAD(z), b0);
      b1 = MHK__FMA(u, MHK__LOAD(z + MHK__W), b1);
      b2 = MHK__FMA(u, MHK__LOAD(z + 2 * MHK__W), b2);
      b3 = MHK__FMA(u, MHK__LOAD(z + 3 * MHK__W), b3);
    }
    if (j < n) {
      const mhk_real *x = v + j * kv + p;
      const MHK__V w = MHK__SET(s[j]);
      a0 = MHK__FMA(w, MHK__LOAD(x), a0);
      a1 = MHK__FMA(w, MHK__LOAD(x + MHK__W), a1);
      a2 = MHK__FMA(w, MHK__LOAD(x + 2 * MHK__W), a2);
      a3 = MHK__FMA(w, MHK__LOAD(x + 3 * MHK__W), a3);
    }
    MHK__STORE(y + p, (a0 + b0) * scale);
    MHK__STORE(y + p + MHK__W, (a1 + b1) * scale);
    MHK__STORE(y + p + 2 * MHK__W, (a2 + b2) * scale);
    MHK__STORE(y + p + 3 * MHK__W, (a3 + b3) * scale);
  }
  for (; p + MHK__W <= P; p += MHK__W) {
    MHK__V a = zero, b = zero, c = zero, d = zero;
    for (j = 0; j + 4 <= n; j += 4) {
      const mhk_real *x = v + j * kv + p;
      MHK__PREFETCH(x + ahead);
      MHK__PREFETCH(x + ahead + kv);
      MHK__PREFETCH(x + ahead + 2 * kv);
      MHK__PREFETCH(x + ahead + 3 * kv);
      a = MHK__FMA(MHK__SET(s[j]), MHK__LOAD(x), a);
      b = MHK__FMA(MHK__SET(s[j + 1]), MHK__LOAD(x + kv), b);
      c = MHK__FMA(MHK__SET(s[j + 2]), MHK__LOAD(x + 2 * kv), c);
      d = MHK__FMA(MHK__SET(s[j + 3]), MHK__LOAD(x + 3 * kv), d);
    }
    for (; j < n; j++) a = MHK__FMA(MHK__SET(s[j]), MHK__LOAD(v + j * kv + p), a);
    MHK__STORE(y + p, ((a + b) + (c + d)) * scale);
  }
  for (; p < P; p++) {
    mhk_real sum = 0;
    for (j = 0; j < n; j++) sum += s[j] * v[j * kv + p];
    y[p] = sum * f;
  }
}

/* a few queries over many keys: decoding */
static void MHK__N(mhk__attention_step)(const mhk__attention_args *a, mhk_index b, mhk_index h, mhk_real *s) {
  const mhk_index P = a->P, g = h / (a->H / a->G), kv = a->G * P, ahead = MHK__ROWS_AHEAD * kv, line = 64 / (mhk_index)sizeof(mhk_real);
  const mhk_real *k = a->k + b * a->kv_batch + g * P, *v = a->v + b * a->kv_batch + g * P, scale = MHK__R(1.0 / sqrt((double)P));
  mhk_index j, p;
  for (mhk_index t = 0; t < a->T; t++) {
    const mhk_real *q = a->q + ((b * a->T + t) * a->H + h) * P;
    mhk_real *y = a->y + ((b * a->T + t) * a->H + h) * P, f;
    const mhk_index first = a->start && a->start[b * a->T + t] > 0 ? a->start[b * a->T + t] : 0, last = a->offset + t + 1;
    for (j = first; j + 4 <= last; j += 4) { /* the sums of four keys do not wait for each other */
      const mhk_real *k0 = k + j * kv, *k1 = k0 + kv, *k2 = k1 + kv, *k3 = k2 + kv;
      MHK__V d0 = MHK__SET(MHK__R(0)), d1 = d0, d2 = d0, d3 = d0;
      mhk_real r0 = 0, r1 = 0, r2 = 0, r3 = 0;
      for (p = 0; p < P; p += line) {
        MHK__PREFETCH(k0 + ahead + p);
        MHK__PREFETCH(k1 + ahead + p);
        MHK__PREFETCH(k2 + ahead + p);
        MHK__PREFETCH(k3 + ahead + p);
      }
      for (p = 0; p + MHK__W <= P; p += MHK__W) {
        const MHK__V x = MHK__LOAD(q + p);
        d0 = MHK__FMA(x, MHK__LOAD(k0 + p), d0);
        d1 = MHK__FMA(x, MHK__LOAD(k1 + p), d1);
        d2 = MHK__FMA(x, MHK__LOAD(k2 + p), d2);
        d3 = MHK__FMA(x, MHK__LOAD(k3 + p), d3);
      }
      for (; p < P; p++) {
        r0 += q[p] * k0[p];
        r1 += q[p] * k1[p];
        r2 += q[p] * k2[p];
        r3 += q[p] * k3[p];
      }
      s[j - first] = MHK__N(mhk__hsum)(d0) + r0;
      s[j - first + 1] = MHK__N(mhk__hsum)(d1) + r1;
      s[j - first + 2] = MHK__N(mhk__hsum)(d2) + r2;
      s[j - first + 3] = MHK__N(mhk__hsum)(d3) + r3;
    }
    for (; j < last; j++) s[j - first] = MHK__N(mhk__dot)(P, q, k + j * kv);
    f = MHK__N(mhk__row_max)(last - first, s) * scale;
    f = MHK__R(1) / MHK__N(mhk__row_exp)(last - first, s, scale, f, s);
    MHK__N(mhk__weighted_rows)(last - first, P, s, v + first * kv, kv, f, y);
  }
}
#endif
#ifndef MOHAWK_NO_TRAINING
/* All query heads of one key/value head. p = exp(s - lse); dv += p^T dy; dp = dy v^T; ds = p (dp - sum(dy y)) scale; dq += ds k; dk += ds^T q. Here tiles stand
   queries by keys. */
static void MHK__N(mhk__attention_back)(const mhk__attention_args *a, mhk_index b, mhk_index g, mhk_real *work) {
  const mhk_index T = a->T, P = a->P, kv = a->G * P, ld = a->H * P, K = MHK__TILE, group = a->H / a->G, wide = MHK__LD(P), from_k = b * a->kv_batch + g * P;
  const mhk_real *k = a->k + from_k, *v = a->v + from_k;
  const mhk_index *start = a->start ? a->start + b * T : NULL;
  const MHK__V zero = MHK__SET(MHK__R(0)), scale = MHK__SET(MHK__R(1.0 / sqrt((double)P)));
  mhk_real *kt = work, *vt = kt + (T + K) * P + MHK__OVER, *kr = vt + (T + K) * P + MHK__OVER, *dk = kr + (T + K) * wide, *dv = dk + (T + K) * wide;
  mhk_real *qr = dv + (T + K) * wide, *dyr = qr + (K + MHK__OVER) * wide, *s = dyr + (K + MHK__OVER) * wide;
  mhk_real *ds = s + (K + MHK__OVER) * K, *dq = ds + (K + MHK__OVER) * K, *delta = dq + (K + MHK__OVER) * wide;
  mhk__ahead ahead;
  mhk__block p;
  memset(&p, 0, sizeof p);
  p.ahead = &ahead;
  for (mhk_index h = g * group; h < (g + 1) * group; h++)
    for (mhk_index i0 = 0; i0 < T; i0 += K) {
      const mhk_index rows = mhk__min(K, T - i0), last = i0 + rows, at = ((b * T + i0) * a->H + h) * P, next = mhk__min(K, T - last);
      const mhk_index first = start && start[i0] > 0 ? start[i0] / K * K : 0;
      const mhk_real *lse = a->lse + (b * a->H + h) * T + i0;
      if (h == g * group) {
        MHK__N(mhk__turned_in)(rows, P, k + i0 * kv, kv, kt + i0 * P);
        MHK__N(mhk__turned_in)(rows, P, v + i0 * kv, kv, vt + i0 * P);
        MHK__N(mhk__rows_in)(rows, P, k + i0 * kv, kv, NULL, kr + i0 * wide);
      }
      MHK__N(mhk__rows_in)(rows, P, a->q + at, ld, NULL, qr);
      MHK__N(mhk__rows_in)(rows, P, a->dy + at, ld, NULL, dyr);
      MHK__N(mhk__rows_in)(rows, P, a->yy + at, ld, NULL, dq);
      MHK__N(mhk__row_dots)(rows, P, dyr, dq, NULL, NULL, delta);
      ahead.parts = ahead.now = 0;
      mhk__look_ahead(&ahead, a->dq ? a->dq + at : NULL, ld, P, rows);
      mhk__look_ahead(&ahead, a->q + at + rows * ld, ld, P, next);
      mhk__look_ahead(&ahead, a->dy + at + rows * ld, ld, P, next);
      mhk__look_ahead(&ahead, a->yy + at + rows * ld, ld, P, next);
      if (h == g * group) {
        mhk__look_ahead(&ahead, k + last * kv, kv, P, next);
        mhk__look_ahead(&ahead, v + last * kv, kv, P, next);
      }
      for (mhk_index j0 = first; j0 < last; j0 += K) {
        const mhk_index n = mhk__min(K, T - j0), wide_k = MHK__LD(n);
        const int corner = i0 == j0, fresh = corner && h == g * group, cut = start && start[last - 1] > j0;
        MHK__N(mhk__multiply)(&p, rows, n, P, qr, wide, 1, kt + j0 * P, wide_k, s, wide_k, corner ? mhk__lower_c : mhk__whole);
        MHK__N(mhk__multiply)(&p, rows, n, P, dyr, wide, 1, vt + j0 * P, wide_k, ds, wide_k, corner ? mhk__lower_c : mhk__whole);
        for (mhk_index i = 0; i < rows; i++) { /* in the corner to the end of the row's tile */
          const MHK__V shift = MHK__SET(-lse[i]), less = MHK__SET(delta[i]);
          const mhk_index to = corner ? mhk__min(n, i + MHK__OVER) : n;
          mhk_real *row = s + i * wide_k, *drow = ds + i * wide_k;
          for (mhk_index j = 0; j < to; j += MHK__W) {
            MHK__V e = MHK__N(mhk__vexp)(MHK__FMA(MHK__LOAD(row + j), scale, shift)), d;
            if (corner && j + MHK__W > i) e = MHK__FROM(zero, e, i + 1 - j);
            if (cut) e = MHK__FROM(e, zero, start[i0 + i] - j0 - j);
            d = e * (MHK__LOAD(drow + j) - less) * scale;
            MHK__STORE(row + j, e);
            MHK__STORE(drow + j, d);
          }
        }
        if (a->dv) {
          p.c0 = fresh ? NULL : dv + j0 * wide;
          MHK__N(mhk__multiply)(&p, n, P, rows, s, 1, wide_k, dyr, wide, dv + j0 * wide, wide, corner ? mhk__upper_a : mhk__whole);
        }
        if (a->dk) {
          p.c0 = fresh ? NULL : dk + j0 * wide;
          MHK__N(mhk__multiply)(&p, n, P, rows, ds, 1, wide_k, qr, wide, dk + j0 * wide, wide, corner ? mhk__upper_a : mhk__whole);
        }
        if (a->dq) {
          p.c0 = j0 > first ? dq : NULL;
          MHK__N(mhk__multiply)(&p, rows, P, n, ds, wide_k, 1, kr + j0 * wide, wide, dq, wide, corner ? mhk__lower_a : mhk__whole);
        }
      }
      if (a->dq) MHK__N(mhk__rows_out)(rows, P, dq, NULL, NULL, a->dq + at, ld, 1);
    }
  if (a->dk) MHK__N(mhk__rows_out)(T, P, dk, NULL, NULL, a->dk + from_k, kv, 1);
  if (a->dv) MHK__N(mhk__rows_out)(T, P, dv, NULL, NULL, a->dv + from_k, kv, 1);
}
#endif /* MOHAWK_NO_TRAINING */
#endif /* MHK__TEMPLATE */

#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
#ifndef MOHAWK_NO_TRAINING
/* ---- drivers */

MHK__HEAD_TASK(mhk__attention_task, mhk__attention_args, attention)
MHK__HEAD_TASK(mhk__attention_step_task, mhk__attention_args, attention_step)
MHK__HEAD_TASK(mhk__attention_back_task, mhk__attention_args, attention_back)

static double mhk__attention_cost(const mhk__attention_args *a) { return (double)(a->B * a->H * a->P) * (double)(a->T * a->S); }
static void mhk__attention_forward(mhk_context *ctx, const mhk__attention_args *a) {
  if (a->T <= 4 && a->y && !a->lse)
    mhk__run(ctx, a, a->B * a->H, a->H, a->S + 16, mhk__attention_cost(a), mhk__attention_step_task);
  else
    mhk__run(ctx, a, a->B * a->H, a->H, mhk__attention_work(a->S, a->P), mhk__attention_cost(a), mhk__attention_task);
}
static void mhk__attention_backward(mhk_context *ctx, const mhk__attention_args *a) {
  mhk__run(ctx, a, a->B * a->G, a->G, mhk__attention_back_work(a->T, a->P), mhk__attention_cost(a), mhk__attention_back_task);
}

/* ---- ops */

static void mhk__attention_op_back(mhk_tape *t, mhk__node *n) {
  mhk__attention_args a = *(const mhk__attention_args *)n->saved;
  a.dq = mhk__into(t, n->in[0]);
  a.dk = mhk__into(t, n->in[1]);
  a.dv = mhk__into(t, n->in[2]);
  a.dy = n->out[0]->grad;
  a.yy = mhk__d(n->out[0]);
  mhk__attention_backward(t->ctx, &a);
}

/* checks q (B,T,H,P) against k (B,S,G,P) and fills the sizes */
static int mhk__attention_sizes(mhk_tape *t, const char *name, const mhk_tensor *q, const mhk_tensor *k, mhk__attention_args *a) {
  memset(a, 0, sizeof *a);
  if (!mhk__is_real(t, name, q) || !mhk__is_real(t, name, k)) return 0;
  if (q->rank != 4 || k->rank != 4 || q->shape[0] != k->shape[0] || q->shape[1] != k->shape[1] || q->shape[3] != k->shape[3] || k->shape[2] < 1 ||
      q->shape[2] % k->shape[2]) {
    mhk__shape_error(t, name, q, k, "(B,T,H,P) and (B,T,G,P) are needed, G dividing H");
    return 0;
  }
  a->B = q->shape[0];
  a->T = a->S = q->shape[1];
  a->H = q->shape[2];
  a->G = k->shape[2];
  a->P = q->shape[3];
  a->kv_batch = a->S * a->G * a->P;
  a->q = mhk__d(q);
  a->k = mhk__d(k);
  return 1;
}

MHKDEF mhk_tensor *mhk_attention(mhk_tape *t, mhk_tensor *q, mhk_tensor *k, mhk_tensor *v, const int32_t *doc, mhk_kv_cache *cache) {
  mhk__attention_args a;
  mhk_tensor *in[3];
  if (!mhk__op_ready(t, q, k) || !v || !mhk__attention_sizes(t, "attention", q, k, &a) || !mhk__is_real(t, "attention", v)) return NULL;
  if (!mhk__same_shape(k, v)) return mhk__shape_error(t, "attention", k, v, "keys and values must have one shape");
  mhk_tensor *y = mhk__new(t, 4, q->shape);
  mhk_index *start = mhk__starts(t, doc, a.B, a.T);
  if (!y || (doc && !start)) return NULL;
  a.v = mhk__d(v);
  a.y = mhk__d(y);
  a.start = start;
  if (cache) {
    const mhk_index row = a.G * a.P;
    if (t->recording && (q->requires_grad || k->requires_grad || v->requires_grad)) {
      mhk_fail(t->ctx, MHK_ERROR_STATE, "attention: a key/value cache serves inference; turn recording off");
      return NULL;
    }
    if (!cache->k || !cache->v || cache->length < 0 || cache->capacity < cache->length ||
        !mhk__size3(t->ctx, a.B * row + 1, cache->capacity, sizeof(mhk_real))) {
      mhk_fail(t->ctx, MHK_ERROR_ARGUMENT,
               "attention: a key/value cache of %lld tokens that holds %lld, or without its arrays",
               (long long)cache->capacity, (long long)cache->length);
      return NULL;
    }
    if (a.T > cache->capacity - cache->length) {
      mhk_fail(t->ctx, MHK_ERROR_STATE, "the key/value cache is full: it holds %lld of %lld tokens and %lld more came; give the session a larger capacity",
               (long long)cache->length, (long long)cache->capacity, (long long)a.T);
      return NULL;
    }
    for (mhk_index b = 0; b < a.B; b++) {
      memcpy(cache->k + (b * cache->capacity + cache->length) * row, a.k + b * a.T * row, (size_t)(a.T * row) * sizeof(mhk_real));
      memcpy(cache->v + (b * cache->capacity + cache->length) * row, a.v + b * a.T * row, (size_t)(a.T * row) * sizeof(mhk_real));
    }
    a.offset = cache->length;
    cache->length += a.T;
    a.S = cache->length;
    a.k = cache->k;
    a.v = cache->v;
    a.kv_batch = cache->capacity * row;
    for (mhk_index i = 0; start && i < a.B * a.T; i++)
      if (start[i] >= 0) start[i] += a.offset;
    mhk__attention_forward(t->ctx, &a);
    return t->ctx->result == MHK_OK ? y : NULL;
  }
  in[0] = q;
  in[1] = k;
  in[2] = v;
  mhk__node *n = mhk__record(t, mhk__attention_op_back, 3, in, 1, &y, sizeof a);
  if (n) {
    a.lse = (mhk_real *)mhk__arena_zeros(t->ctx, &t->arena, a.B * a.H * a.T, sizeof(mhk_real));
    if (!a.lse) return NULL;
    *(mhk__attention_args *)n->saved = a;
  }
  mhk__attention_forward(t->ctx, &a);
  return t->ctx->result == MHK_OK ? y : NULL;
}

typedef struct mhk__matrix_saved { mhk_index B, T, H, G, P; const mhk_index *start; double *cum; } mhk__matrix_saved;

static void mhk__attention_matrix_back(mhk_tape *t, mhk__node *n) {
  const mhk__matrix_saved *s = (const mhk__matrix_saved *)n->saved;
  const mhk_index T = s->T, P = s->P;
  const mhk_real scale = MHK__R(1.0 / sqrt((double)P));
  const mhk__mark mark = mhk__scratch_mark(t->ctx);
  mhk_real *dq = mhk__into(t, n->in[0]), *dk = mhk__into(t, n->in[1]), *ds = (mhk_real *)mhk__scratch(t->ctx, T * T, sizeof(mhk_real));
  mhk__epilogue e;
  mhk__accumulate(&e);
  for (mhk_index b = 0; ds && b < s->B; b++)
    for (mhk_index h = 0; h < s->H; h++) {
      const mhk_index g = h / (s->H / s->G), atq = (b * T * s->H + h) * P, atk = (b * T * s->G + g) * P, at = (b * s->H + h) * T * T;
      memset(ds, 0, (size_t)(T * T) * sizeof(mhk_real));
      for (mhk_index i = 0; i < T; i++) mhk__softmax_row_back(i + 1, mhk__d(n->out[0]) + at + i * T, n->out[0]->grad + at + i * T, scale, ds + i * T);
      if (dq) mhk__gemm(t->ctx, T, P, T, mhk__real_mat(ds, T, 1), mhk__real_mat(mhk__d(n->in[1]) + atk, s->G * P, 1), dq + atq, s->H * P, &e);
      if (dk) mhk__gemm(t->ctx, T, P, T, mhk__real_mat(ds, 1, T), mhk__real_mat(mhk__d(n->in[0]) + atq, s->H * P, 1), dk + atk, s->G * P, &e);
    }
  mhk__scratch_rewind(t->ctx, mark);
}

MHKDEF mhk_tensor *mhk_attention_matrix(mhk_tape *t, mhk_tensor *q, mhk_tensor *k, const int32_t *doc) {
  mhk__attention_args a;
  mhk__matrix_saved s;
  mhk_index shape[4];
  mhk_tensor *in[2];
  if (!mhk__op_ready(t, q, k) || !mhk__attention_sizes(t, "attention_matrix", q, k, &a)) return NULL;
  memset(&s, 0, sizeof s);
  s.B = shape[0] = a.B;
  s.H = shape[1] = a.H;
  s.T = shape[2] = shape[3] = a.T;
  s.G = a.G;
  s.P = a.P;
  mhk_tensor *y = mhk__new(t, 4, shape);
  s.start = mhk__starts(t, doc, a.B, a.T);
  if (!y || (doc && !s.start)) return NULL;
  for (mhk_index b = 0; b < a.B; b++)
    for (mhk_index h = 0; h < a.H; h++) {
      mhk_real *m = mhk__d(y) + (b * a.H + h) * a.T * a.T;
      mhk__gemm(t->ctx, a.T, a.T, a.P, mhk__real_mat(a.q + (b * a.T * a.H + h) * a.P, a.H * a.P, 1),
                mhk__real_mat(a.k + (b * a.T * a.G + h / (a.H / a.G)) * a.P, 1, a.G * a.P), m, a.T, NULL);
      for (mhk_index i = 0; i < a.T; i++) {
        mhk_real *row = m + i * a.T;
        const mhk_index from = s.start && s.start[b * a.T + i] > 0 ? s.start[b * a.T + i] : 0;
        for (mhk_index j = 0; j <= i; j++) row[j] *= MHK__R(1.0 / sqrt((double)a.P));
        for (mhk_index j = 0; j < from; j++) row[j] = 0;
        t->ctx->kernels->softmax(i + 1 - from, row + from, row + from);
        for (mhk_index j = i + 1; j < a.T; j++) row[j] = 0;
      }
    }
  in[0] = q;
  in[1] = k;
  mhk__node *n = mhk__record(t, mhk__attention_matrix_back, 2, in, 1, &y, sizeof s);
  if (n) *(mhk__matrix_saved *)n->saved = s;
  return t->ctx->result == MHK_OK ? y : NULL;
}
#endif /* MOHAWK_NO_TRAINING */
#endif /* MOHAWK_IMPLEMENTATION */

/* ====================================================================================================
   SSD: state-space duality, the mixer of Mamba-2                                          >>ssd
   ====================================================================================================

   One mixer in three forms (Dao & Gu 2024, arXiv 2405.21060), with decays a_t = exp(log_a_t):
      recurrence    h_t = a_t h_{t-1} + x_t B_t^T,  y_t = h_t C_t + D x_t. The state h (P,N) is all
                    that is kept of the past.
      matrix        y = M x,  M[t,s] = (C_t . B_s) a_{s+1} ... a_t for s <= t, D more on the
                    diagonal: attention without softmax, masked by decays. M is semi-separable:
                    below its diagonal no block has a rank above N.
      chunked scan  inside chunks of Q tokens by the matrix, that is by fast products; from chunk to
                    chunk by the state, linear in T. Training and prefill use this form.
   The logarithms of decays are summed in double from the start of a chunk (segment sums); a decay
   from one token to another is the exponential of a difference of two such sums. log_a = -infinity
   forgets everything before its token, and so does a new document. Gradients run through the chunks
   from the last to the first, with the states before each chunk as the forward pass kept them. */

#if MHK__REFERENCE == 1 && !defined(MHK__PASS)
/* ---- reference */

typedef struct mhk__ref_ssd {
  int T, P, N;
  const double *x, *log_a; /* (T,P), (T); log_a -HUGE_VAL forgets everything before the token, as a new document does */
  const double *B, *C;     /* (T,N) */
  double D;                /* the skip */
} mhk__ref_ssd;
typedef struct mhk__ref_ssd_gradient { double *x, *log_a, *B, *C, *D; } mhk__ref_ssd_gradient; /* D: one number */

/* As a matrix: M[t,s] = (C_t . B_s) exp(log_a_{s+1} + ... + log_a_t) for s <= t, and D more on the diagonal */
static inline void mhk__ref_ssd_matrix(const mhk__ref_ssd *a, double *M) {
  for (int t = 0; t < a->T; t++) {
    double log_decay = 0; /* from s to t */
    for (int s = a->T - 1; s > t; s--) M[t * a->T + s] = 0;
    for (int s = t; s >= 0; log_decay += a->log_a[s--])
      M[t * a->T + s] = mhk__ref_dot(a->N, a->C + t * a->N, a->B + s * a->N) * exp(log_decay) + (s == t ? a->D : 0);
  }
}

/* As a recurrence, token by token: all that is kept of the past is the state h (P,N):
     h_t = a_t h_{t-1} + x_t B_t^T          y_t = h_t C_t + D x_t
   states (T+1,P,N) holds h_{-1} in its first place; the others are filled. */
static inline void mhk__ref_ssd_recurrent(const mhk__ref_ssd *a, double *states, double *y) {
  for (int t = 0; t < a->T; t++) {
    const double *past = states + t * a->P * a->N;
    double *h = states + (t + 1) * a->P * a->N;
    for (int p = 0; p < a->P; p++) {
      for (int n = 0; n < a->N; n++)
        h[p * a->N + n] = exp(a->log_a[t]) * past[p * a->N + n] + a->x[t * a->P + p] * a->B[t * a->N + n];
      y[t * a->P + p] = mhk__ref_dot(a->N, h + p * a->N, a->C + t * a->N) + a->D * a->x[t * a->P + p];
    }
  }
}

/* As a chunked scan, Q tokens at a time, which is how the kernels compute it: inside a chunk by the matrix, across
   chunks by the state h (P,N), the one before the first token at the start and after the last one at the end. work (Q,Q). */
static inline void mhk__ref_ssd_chunked(const mhk__ref_ssd *a, int Q, double *h, double *work, double *y) {
  const int P = a->P, N = a->N;
  for (int t0 = 0; t0 < a->T; t0 += Q) {
    const int n_tokens = a->T - t0 < Q ? a->T - t0 : Q;
    const mhk__ref_ssd chunk = {n_tokens, P, N, a->x + t0 * P, a->log_a + t0, a->B + t0 * N, a->C + t0 * N, a->D};
    double log_decay = 0; /* from before the chunk to t */
    mhk__ref_ssd_matrix(&chunk, work);
    mhk__ref_mix(n_tokens, n_tokens, P, work, chunk.x, y + t0 * P);
    for (int t = 0; t < n_tokens; t++) {
      log_decay += chunk.log_a[t];
      for (int p = 0; p < P; p++) y[(t0 + t) * P + p] += exp(log_decay) * mhk__ref_dot(N, h + p * N, chunk.C + t * N);
    }
    for (int i = 0; i < P * N; i++) h[i] *= exp(log_decay);
    log_decay = 0;
    for (int t = n_tokens - 1; t >= 0; log_decay += chunk.log_a[t--]) /* what token t leaves in the state after the chunk */
      for (int p = 0; p < P; p++)
        for (int n = 0; n < N; n++) h[p * N + n] += exp(log_decay) * chunk.x[t * P + p] * chunk.B[t * N + n];
  }
}

/* Its gradients, from the last token to the first. g (P,N) is the gradient of the state: at the start of the state after
   the last token (zeros where nothing asks for it), at the end of h_{-1}. Each h_t gets what y_t gives it, and a_{t+1}
   times what h_{t+1} got. states as mhk__ref_ssd_recurrent() leaves them. */
static inline void mhk__ref_ssd_back(const mhk__ref_ssd *a, const double *states, const double *dy, double *g,
                                     const mhk__ref_ssd_gradient *d) {
  const int P = a->P, N = a->N;
  for (int t = a->T - 1; t >= 0; t--) {
    const double *past = states + t * P * N, *h = past + P * N, decay = exp(a->log_a[t]);
    for (int p = 0; p < P; p++) {
      for (int n = 0; n < N; n++) {
        double *gh = &g[p * N + n];
        *gh += dy[t * P + p] * a->C[t * N + n];
        d->C[t * N + n] += dy[t * P + p] * h[p * N + n];
        d->B[t * N + n] += *gh * a->x[t * P + p];
        d->x[t * P + p] += *gh * a->B[t * N + n];
        d->log_a[t] += *gh * decay * past[p * N + n];
        *gh *= decay; /* from here on the gradient of h_{t-1} */
      }
      d->x[t * P + p] += a->D * dy[t * P + p];
      *d->D += dy[t * P + p] * a->x[t * P + p];
    }
  }
}

/* Gradients from dM (T,T), that of the matrix M. log_a_{s+1} is a factor of every element that leads from a token at or
   before s to a later one. */
static inline void mhk__ref_ssd_matrix_back(const mhk__ref_ssd *a, const double *M, const double *dM,
                                            const mhk__ref_ssd_gradient *d) {
  for (int t = 0; t < a->T; t++) {
    double log_decay = 0, through = 0;
    for (int s = t; s >= 0; log_decay += a->log_a[s--])
      for (int n = 0; n < a->N; n++) {
        d->C[t * a->N + n] += dM[t * a->T + s] * exp(log_decay) * a->B[s * a->N + n];
        d->B[s * a->N + n] += dM[t * a->T + s] * exp(log_decay) * a->C[t * a->N + n];
      }
    for (int s = 0; s < t; s++) d->log_a[s + 1] += through += dM[t * a->T + s] * M[t * a->T + s];
    *d->D += dM[t * a->T + t];
  }
}
#endif /* reference */

#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
/* ---- arguments */

/* SSD over x (B,T,H,P), log_a (B,T,H), b and c (B,T,G,N). */
struct mhk__ssd_args {
  mhk_index B, T, H, G, P, N, Q;        /* Q: tokens a chunk */
  const mhk_real *x, *log_a, *b, *c, *d;
  const mhk_real *initial;              /* (B,H,P,N) or NULL */
  const mhk_index *start;               /* (B,T) first token of the document, -1 for the first one, or NULL */
  mhk_real *y;                          /* (B,T,H,P) */
  mhk_real *states;                     /* (B,H,chunks,P,N) states before each chunk, or NULL */
  mhk_real *final;                      /* (B,H,P,N) */
  const mhk_real *dy, *dfinal;          /* backward */
  mhk_real *dx, *dlog_a, *db, *dc, *dinitial; /* added to; NULL: not wanted */
  mhk_real *dd;                         /* (B,H) written */
  mhk_index span;                       /* heads of a task forward, groups backward */
};

#define MHK__SSD_CHUNK 32 /* tokens of a chunk of the SSD form, unless the caller says */
#define MHK__STEPS 8      /* so many tokens go through the recurrence one by one rather than as a chunk */

/* A log decay in a running sum. e^-1000 forgets all there is: minus infinity is a full reset,
   whose sum with others must keep their digits. NaN stays. */
static double mhk__log_decay(mhk_real x) { return x < -1000 ? -1000.0 : (double)x; }

static mhk_index mhk__ssd_work(mhk_index Q, mhk_index N, mhk_index P, mhk_index heads) { /* heads of one task */
  const mhk_index q = MHK__LD(Q), n = MHK__LD(N), p = MHK__LD(P), over = Q + MHK__OVER;
  return (8 + N + P + 3 * over) * q + over * 4 * (n + p) + 2 * P * n + heads * (N + MHK__OVER) * p + 64;
}
#endif /* MOHAWK_IMPLEMENTATION */

#ifdef MHK__TEMPLATE
/* ---- kernels */

/* decay[t][s] = exp(cum_t - cum_s) for s <= t inside the document, else 0, in rows of ld; turned: [s][t]. Rows are written as far as any register tile of the
   triangle reaches. Sums and differences in double: after a strong decay a float sum has no digits left for the weak ones that follow. Where
   the tile spans less than e^60 the exponentials factor into one number a token, exp(cum_t) and exp(-cum_s) around cum_0, each with the float rounding of its
   argument put right: 2 n exponentials in place of n * n / 2, and as exact. */
static void MHK__N(mhk__decay_tile)(mhk_index n, const double *cum, const mhk_index *start, mhk_index t0, int turned, mhk_real *hold, mhk_real *decay,
                                    mhk_index ld) {
  const MHK__V zero = MHK__SET(MHK__R(0));
  const mhk_index wide = MHK__LD(n);
  mhk_real *row = hold, *lane = hold + wide;
  double least = cum[0], most = cum[0];
  mhk_index i;
  for (i = 1; i < n; i++) {
    least = cum[i] < least ? cum[i] : least;
    most = cum[i] > most ? cum[i] : most;
  }
  const int nearby = most - least < 60;
  if (nearby) {
    for (i = 0; i < n; i++) {
      const double x = cum[i] - cum[0];
      row[i] = MHK__R(x);
      lane[i] = MHK__R(x - (double)row[i]);
    }
    for (; i < wide; i++) row[i] = lane[i] = 0;
    for (i = 0; i < wide; i += MHK__W) {
      const MHK__V x = MHK__LOAD(row + i), rest = MHK__LOAD(lane + i), up = MHK__N(mhk__vexp)(x), down = MHK__N(mhk__vexp)(zero - x);
      const MHK__V grow = MHK__FMA(up, rest, up), fall = MHK__FMA(zero - down, rest, down);
      MHK__STORE((turned ? lane : row) + i, grow);
      MHK__STORE((turned ? row : lane) + i, fall);
    }
  }
  for (i = 0; i < n; i++, decay += ld) {
    const mhk_index first = turned ? mhk__max(0, i - MHK__OVER + 1) / MHK__W * MHK__W : 0, last = turned ? n : mhk__min(n, i + MHK__OVER);
    const MHK__V x = MHK__SET(nearby ? row[i] : MHK__R(0));
    if (!nearby)
      for (mhk_index j = first; j < last; j++) lane[j] = MHK__R(turned ? cum[j] - cum[i] : cum[i] - cum[j]);
    for (mhk_index j = first; j < last; j += MHK__W) {
      MHK__V v = MHK__LOAD(lane + j);
      if (nearby)
        v = x * v;
      else
        v = MHK__N(mhk__vexp)(v);
      if (turned)
        v = MHK__FROM(v, zero, i - j);
      else
        v = MHK__FROM(zero, v, i + 1 - j);
      MHK__STORE(decay + j, v);
    }
    decay[i] = 1;
    if (start && !turned)
      for (mhk_index j = 0; j < start[i] - t0; j++) decay[j] = 0;
    if (start && turned)
      for (mhk_index j = i + 1; j < n; j++)
        if (start[j] - t0 > i) decay[j] = 0;
  }
}

/* carry[t] = exp(cum_t) where the state from before the chunk is seen, else 0; tail[s] = exp(cum_last - cum_s) where the last token sees s */
static void MHK__N(mhk__decay_edges)(mhk_index n, const double *cum, const mhk_index *start, mhk_index t0, mhk_real *carry, mhk_real *tail) {
  const mhk_index open = start && start[n - 1] > t0 ? start[n - 1] - t0 : 0;
  for (mhk_index t = 0; t < n; t++) {
    carry[t] = MHK__R(cum[t]);
    tail[t] = MHK__R(cum[n - 1] - cum[t]);
  }
  MHK__N(mhk__row_exp)(n, carry, MHK__R(1), 0, carry);
  MHK__N(mhk__row_exp)(n, tail, MHK__R(1), 0, tail);
  for (mhk_index t = 0; t < n; t++) {
    if (start && start[t] >= t0) carry[t] = 0;
    if (t < open) tail[t] = 0;
  }
}

/* Chunk by chunk, the heads of one task in turn: their rows lie side by side, and heads of one B/C group share what is made of B and C.
   The state is kept turned, (N,P), as the right operand it is; G = C B^T is made turned too, for which only C must be. */
static void MHK__N(mhk__ssd)(const mhk__ssd_args *a, mhk_index b, mhk_index task, mhk_real *work) {
  const mhk_index T = a->T, P = a->P, N = a->N, Q = a->Q, group = a->H / a->G, ldx = a->H * P, ldb = a->G * N, chunks = (T + Q - 1) / Q;
  const mhk_index q = MHK__LD(Q), wide_n = MHK__LD(N), wide_p = MHK__LD(P), first = task * a->span, last = mhk__min(a->H, first + a->span);
  const mhk_index *start = a->start ? a->start + b * T : NULL;
  double *cum = (double *)work;
  mhk_real *carry = work + 2 * q, *tail = carry + q, *hold = tail + q, *ct = hold + 2 * q, *br = ct + N * q, *cb = br + (Q + MHK__OVER) * wide_n;
  mhk_real *s = cb + (Q + MHK__OVER) * q, *xr = s + (Q + MHK__OVER) * q, *xs = xr + Q * wide_p, *yr = xs + Q * wide_p;
  mhk_real *states = yr + (Q + MHK__OVER) * wide_p;
  const mhk_index each = (N + MHK__OVER) * wide_p;
  for (mhk_index h = first; h < last; h++) {
    mhk_real *state = states + (h - first) * each;
    if (a->initial)
      MHK__N(mhk__turned_in)(P, N, a->initial + (b * a->H + h) * P * N, N, state);
    else
      memset(state, 0, (size_t)(N * wide_p) * sizeof(mhk_real));
  }
  for (mhk_index c = 0; c < chunks; c++) {
    const mhk_index t0 = c * Q, n = T - t0 < Q ? T - t0 : Q, lda = MHK__LD(n);
    mhk__ahead ahead;
    mhk__block k;
    memset(&k, 0, sizeof k);
    k.ahead = &ahead;
    for (mhk_index h = first; h < last; h++) {
      const mhk_index g = h / group;
      const mhk_real *x = a->x + ((b * T + t0) * a->H + h) * P, *la = a->log_a + (b * T + t0) * a->H + h;
      const mhk_real *bm = a->b + ((b * T + t0) * a->G + g) * N, *cm = a->c + ((b * T + t0) * a->G + g) * N;
      mhk_real *state = states + (h - first) * each, *y = a->y + ((b * T + t0) * a->H + h) * P;
      const int direct = MHK__N(mhk__fits)(n, P);
      double sum = 0;
      { /* the next head's rows, or the next chunk's */
        const mhk_index h2 = h + 1 < last ? h + 1 : first, t2 = h + 1 < last ? t0 : t0 + Q, n2 = mhk__min(Q, T - t2), at = (b * T + t2) * a->H + h2;
        ahead.parts = ahead.now = 0;
        if (t2 > t0 || h2 % group == 0) {
          mhk__look_ahead(&ahead, n2 > 0 ? a->c + ((b * T + t2) * a->G + h2 / group) * N : NULL, ldb, N, n2);
          mhk__look_ahead(&ahead, n2 > 0 ? a->b + ((b * T + t2) * a->G + h2 / group) * N : NULL, ldb, N, n2);
        }
        mhk__look_ahead(&ahead, n2 > 0 ? a->x + at * P : NULL, ldx, P, n2);
        mhk__look_ahead(&ahead, n2 > 0 ? a->y + at * P : NULL, ldx, P, n2);
        mhk__look_ahead(&ahead, n2 > 0 && a->states ? a->states + ((b * a->H + h2) * chunks + t2 / Q) * P * N : NULL, N, N, P);
      }
      for (mhk_index t = 0; t < n; t++) cum[t] = sum += mhk__log_decay(la[t * a->H]);
      MHK__N(mhk__decay_tile)(n, cum, start ? start + t0 : NULL, t0, 1, hold, s, lda);
      MHK__N(mhk__decay_edges)(n, cum, start ? start + t0 : NULL, t0, carry, tail);
      if (h == first || h % group == 0) {
        MHK__N(mhk__turned_in)(n, N, cm, ldb, ct);
        MHK__N(mhk__rows_in)(n, N, bm, ldb, NULL, br);
        MHK__N(mhk__multiply)(&k, n, n, N, br, wide_n, 1, ct, lda, cb, lda, mhk__upper_c);
      }
      MHK__N(mhk__rows_in_twice)(n, P, x, ldx, tail, xr, xs);
      for (mhk_index i = 0; i < n; i++) {
        for (mhk_index j = i / MHK__W * MHK__W; j < n; j += MHK__W) MHK__STORE(s + i * lda + j, MHK__LOAD(s + i * lda + j) * MHK__LOAD(cb + i * lda + j));
        if (a->d) s[i * lda + i] += a->d[h]; /* y_t += D x_t comes with the product */
      }
      if (a->states) { /* (P,N) */
        mhk_real *to = a->states + ((b * a->H + h) * chunks + c) * P * N;
        MHK__N(mhk__turned_out)(N, P, state, to);
      }
      /* y = carry C state + (C B^T o decay + D) x */
      if (c > 0 || a->initial) {
        k.k1 = N;
        k.a1 = ct;
        k.row1 = 1;
        k.col1 = lda;
        k.b1 = state;
        k.f = carry;
        k.fs = 1;
      }
      MHK__N(mhk__multiply)(&k, n, P, n, s, 1, lda, xr, wide_p, direct ? y : yr, direct ? ldx : wide_p, mhk__lower_a);
      if (!direct) MHK__N(mhk__rows_out)(n, P, yr, NULL, NULL, y, ldx, 0);
      /* the state after the chunk: carry_last state + B^T (tail x) */
      k.c0 = state;
      k.f = carry + n - 1;
      k.fs = 0;
      MHK__N(mhk__multiply)(&k, N, P, n, br, 1, wide_n, xs, wide_p, state, wide_p, mhk__whole);
    }
  }
  for (mhk_index h = first; h < last; h++) MHK__N(mhk__turned_out)(N, P, states + (h - first) * each, a->final + (b * a->H + h) * P * N);
}

/* the recurrence itself, token by token */
static void MHK__N(mhk__ssd_step)(const mhk__ssd_args *a, mhk_index b, mhk_index h, mhk_real *work) {
  const mhk_index T = a->T, P = a->P, N = a->N, g = h / (a->H / a->G);
  mhk_real *state = a->final + (b * a->H + h) * P * N;
  mhk_index i;
  (void)work;
  if (a->initial && a->initial != a->final) /* the state may be moved on in place */
    memcpy(state, a->initial + (b * a->H + h) * P * N, (size_t)(P * N) * sizeof(mhk_real));
  else if (!a->initial)
    memset(state, 0, (size_t)(P * N) * sizeof(mhk_real));
  for (mhk_index t = 0; t < T; t++) {
    const mhk_index at = (b * T + t) * a->H + h;
    const mhk_real *x = a->x + at * P, *bt = a->b + ((b * T + t) * a->G + g) * N, *ct = a->c + ((b * T + t) * a->G + g) * N;
    const mhk_real decay = a->start && a->start[b * T + t] == t ? 0 : MHK__REXP(a->log_a[at]);
    mhk_real *y = a->y + at * P;
    for (mhk_index p = 0; p < P; p++) {
      mhk_real *row = state + p * N, sum = 0;
      MHK__V total = MHK__SET(MHK__R(0));
      const MHK__V vd = MHK__SET(decay), vx = MHK__SET(x[p]);
      for (i = 0; i + MHK__W <= N; i += MHK__W) {
        const MHK__V hi = MHK__FMA(vx, MHK__LOAD(bt + i), vd * MHK__LOAD(row + i));
        MHK__STORE(row + i, hi);
        total = MHK__FMA(hi, MHK__LOAD(ct + i), total);
      }
      for (; i < N; i++) {
        row[i] = decay * row[i] + x[p] * bt[i];
        sum += row[i] * ct[i];
      }
      y[p] = sum + MHK__N(mhk__hsum)(total) + (a->d ? a->d[h] * x[p] : 0);
    }
  }
}
#ifndef MOHAWK_NO_TRAINING
/* Chunks from the last to the first; the heads of one B/C group in turn. With L the decays, S = C B^T o L, h0 the state before the chunk, hQ after it:
   dG = dy x^T o L, dx = (S + D)^T dy + tail B dhQ, dC = dG B + carry dy h0^T, dB = dG^T C + tail x dhQ^T, dh0 = carry_last dhQ + (carry C)^T dy.
   exp(cum_t) only comes with C_t, exp(-cum_s) with B_s and exp(cum_last) with hQ: dcum_t = C_t dC_t - B_t dB_t, and dhQ . hQ for the last token. What a token
   gives itself is in both and left out of both until the rows are written: a decay that nothing passes has the gradient 0. */
static void MHK__N(mhk__ssd_back)(const mhk__ssd_args *a, mhk_index b, mhk_index task, mhk_real *work) {
  const mhk_index T = a->T, P = a->P, N = a->N, Q = a->Q, group = a->H / a->G, ldx = a->H * P, ldb = a->G * N, chunks = (T + Q - 1) / Q;
  const mhk_index q = MHK__LD(Q), wide_n = MHK__LD(N), wide_p = MHK__LD(P), first = task * a->span, last = mhk__min(a->G, first + a->span);
  const mhk_index *start = a->start ? a->start + b * T : NULL;
  double *cum = (double *)work;
  const mhk_index over = Q + MHK__OVER;
  mhk_real *carry = work + 2 * q, *tail = carry + q, *hold = tail + q, *bt = hold + 2 * q, *xt = bt + N * q, *br = xt + P * q, *cr = br + over * wide_n;
  mhk_real *xr = cr + over * wide_n, *dyr = xr + over * wide_p, *dys = dyr + over * wide_p;
  mhk_real *cb = dys + Q * wide_p, *s = cb + over * q, *dg = s + over * q;
  mhk_real *ht = dg + over * q, *dht = ht + P * wide_n, *dxr = dht + P * wide_n, *dbr = dxr + over * wide_p;
  mhk_real *dcr = dbr + over * wide_n, *dcum = dcr + over * wide_n, *same = dcum + q, *dstates = same + q;
  const mhk_index each = (N + MHK__OVER) * wide_p;
  for (mhk_index h = first * group; h < last * group; h++) {
    mhk_real *dstate = dstates + (h - first * group) * each;
    if (a->dfinal)
      MHK__N(mhk__turned_in)(P, N, a->dfinal + (b * a->H + h) * P * N, N, dstate);
    else
      memset(dstate, 0, (size_t)(N * wide_p) * sizeof(mhk_real));
    if (a->dd) a->dd[b * a->H + h] = 0;
  }
  for (mhk_index c = chunks - 1; c >= 0; c--) {
    const mhk_index t0 = c * Q, n = T - t0 < Q ? T - t0 : Q, lda = MHK__LD(n);
    const int before = c > 0 || a->initial != NULL, after = c < chunks - 1 || a->dfinal != NULL;
    mhk__ahead ahead;
    mhk__block k;
    memset(&k, 0, sizeof k);
    k.ahead = &ahead;
    ahead.parts = ahead.now = 0;
    for (mhk_index g = first; g < last; g++) {
      const mhk_index bc = ((b * T + t0) * a->G + g) * N;
      /* turned from the copy: see mhk__rows_in_twice */
      MHK__N(mhk__rows_in)(n, N, a->c + bc, ldb, NULL, cr);
      MHK__N(mhk__rows_in)(n, N, a->b + bc, ldb, NULL, br);
      MHK__N(mhk__turned_in)(n, N, br, wide_n, bt);
      MHK__N(mhk__multiply)(&k, n, n, N, cr, wide_n, 1, bt, lda, cb, lda, mhk__lower_c);
      for (mhk_index h = g * group; h < (g + 1) * group; h++) {
        const mhk_index xy = ((b * T + t0) * a->H + h) * P;
        const mhk_real *la = a->log_a + (b * T + t0) * a->H + h, *after_h;
        mhk_real *dstate = dstates + (h - first * group) * each;
        double sum = 0, run = 0, dd = 0;
        {
          const mhk_index next = h + 1 < last * group, h2 = next ? h + 1 : first * group, t2 = next ? t0 : t0 - Q, n2 = t2 < 0 ? 0 : mhk__min(Q, T - t2);
          const mhk_index at = ((b * T + t2) * a->H + h2) * P, gt = ((b * T + t2) * a->G + h2 / group) * N;
          ahead.parts = ahead.now = 0;
          if (n2 > 0 && (!next || h2 % group == 0)) {
            mhk__look_ahead(&ahead, a->c + gt, ldb, N, n2);
            mhk__look_ahead(&ahead, a->b + gt, ldb, N, n2);
          }
          if (n2 > 0) {
            mhk__look_ahead(&ahead, a->dy + at, ldx, P, n2);
            mhk__look_ahead(&ahead, a->x + at, ldx, P, n2);
            mhk__look_ahead(&ahead, a->dx ? a->dx + at : NULL, ldx, P, n2);
            mhk__look_ahead(&ahead, a->dc ? a->dc + gt : NULL, ldb, N, n2);
            mhk__look_ahead(&ahead, a->db ? a->db + gt : NULL, ldb, N, n2);
            mhk__look_ahead(&ahead, t2 > 0 || a->initial ? a->states + ((b * a->H + h2) * chunks + t2 / Q) * P * N : NULL, N, N, P);
          }
        }
        for (mhk_index t = 0; t < n; t++) cum[t] = sum += mhk__log_decay(la[t * a->H]);
        MHK__N(mhk__decay_tile)(n, cum, start ? start + t0 : NULL, t0, 0, hold, s, lda);
        MHK__N(mhk__decay_edges)(n, cum, start ? start + t0 : NULL, t0, carry, tail);
        MHK__N(mhk__rows_in)(n, P, a->x + xy, ldx, NULL, xr);
        MHK__N(mhk__turned_in)(n, P, xr, wide_p, xt);
        MHK__N(mhk__rows_in_twice)(n, P, a->dy + xy, ldx, carry, dyr, dys);
        MHK__N(mhk__multiply)(&k, n, n, P, dyr, wide_p, 1, xt, lda, dg, lda, mhk__lower_c);
        for (mhk_index i = 0; i < n; i++) { /* to the end of the tile that row i belongs to */
          for (mhk_index j = 0; j < mhk__min(n, i + MHK__OVER); j += MHK__W) {
            const MHK__V l = MHK__LOAD(s + i * lda + j);
            MHK__STORE(s + i * lda + j, l * MHK__LOAD(cb + i * lda + j));
            MHK__STORE(dg + i * lda + j, l * MHK__LOAD(dg + i * lda + j));
          }
          if (a->d) s[i * lda + i] += a->d[h];
          same[i] = dg[i * lda + i];
          dg[i * lda + i] = 0;
          dd += (double)same[i];
        }
        if (a->dd) a->dd[b * a->H + h] += MHK__R(dd);
        k.col1 = 1;
        k.fs = 1;
        if (a->dx) {
          k.k1 = N;
          k.a1 = after ? br : NULL;
          k.row1 = wide_n;
          k.b1 = dstate;
          k.f = tail;
          MHK__N(mhk__multiply)(&k, n, P, n, s, 1, lda, dyr, wide_p, dxr, wide_p, mhk__upper_a);
          MHK__N(mhk__rows_out)(n, P, dxr, NULL, NULL, a->dx + xy, ldx, 1);
        }
        if (a->dc || a->db || a->dlog_a) {
          const mhk_real *before_h = a->states + ((b * a->H + h) * chunks + c) * P * N;
          if (before && N != wide_n) {
            MHK__N(mhk__rows_in)(P, N, before_h, N, NULL, ht);
            before_h = ht;
          }
          k.k1 = P;
          k.a1 = before ? dyr : NULL;
          k.row1 = wide_p;
          k.b1 = before_h;
          k.f = carry;
          MHK__N(mhk__multiply)(&k, n, N, n, dg, lda, 1, br, wide_n, dcr, wide_n, mhk__lower_a);
          if (after) MHK__N(mhk__turned_in)(N, P, dstate, wide_p, dht);
          k.a1 = after ? xr : NULL;
          k.b1 = dht;
          k.f = tail;
          MHK__N(mhk__multiply)(&k, n, N, n, dg, 1, lda, cr, wide_n, dbr, wide_n, mhk__upper_a);
          if (a->dc) MHK__N(mhk__rows_out)(n, N, dcr, same, br, a->dc + bc, ldb, 1);
          if (a->db) MHK__N(mhk__rows_out)(n, N, dbr, same, cr, a->db + bc, ldb, 1);
        }
        if (a->dlog_a) { /* log_a_r stands in every cum_t with t >= r */
          mhk_real *to = a->dlog_a + (b * T + t0) * a->H + h;
          MHK__N(mhk__row_dots)(n, N, cr, dcr, br, dbr, dcum);
          if (after) {
            after_h = c + 1 < chunks ? a->states + ((b * a->H + h) * chunks + c + 1) * P * N : a->final + (b * a->H + h) * P * N;
            for (mhk_index i = 0; i < P; i++) run += (double)MHK__N(mhk__dot)(N, after_h + i * N, dht + i * wide_n);
          }
          for (mhk_index t = n - 1; t >= 0; t--) {
            run += (double)dcum[t];
            to[t * a->H] += MHK__R(run);
          }
        }
        if (before || a->dinitial) { /* c == 0 without an initial state: its gradient is not wanted */
          k.c0 = dstate;
          k.f = carry + n - 1;
          k.fs = 0;
          MHK__N(mhk__multiply)(&k, N, P, n, cr, 1, wide_n, dys, wide_p, dstate, wide_p, mhk__whole);
        }
      }
    }
  }
  if (a->dinitial)
    for (mhk_index h = first * group; h < last * group; h++) {
      const mhk_real *dstate = dstates + (h - first * group) * each;
      for (mhk_index i = 0; i < P; i++)
        for (mhk_index t = 0; t < N; t++) a->dinitial[((b * a->H + h) * P + i) * N + t] += dstate[t * wide_p + i];
    }
}
#endif /* MOHAWK_NO_TRAINING */
#endif /* MHK__TEMPLATE */

#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
#ifndef MOHAWK_NO_TRAINING
/* ---- drivers */

MHK__HEAD_TASK(mhk__ssd_task, mhk__ssd_args, ssd)
MHK__HEAD_TASK(mhk__ssd_step_task, mhk__ssd_args, ssd_step)
MHK__HEAD_TASK(mhk__ssd_back_task, mhk__ssd_args, ssd_back)

static double mhk__ssd_cost(const mhk__ssd_args *a) { return 2.0 * (double)(a->B * a->T * a->H) * (double)(a->P * a->N); }
/* Heads, or groups with their heads, side by side in one task: up to 8, where 8 tasks are left. At T 8192 (1,T,32,64) takes 15 % longer with two, and with 64
   tokens a chunk in place of 32, which do more products; a chunk of 16 gains nothing more. */
static mhk_index mhk__ssd_span(mhk_index B, mhk_index n) { return mhk__max(1, mhk__min(8, B * n / 8)); }
static void mhk__ssd_forward(mhk_context *ctx, const mhk__ssd_args *args, int recurrent) {
  mhk__ssd_args a = *args;
  a.span = recurrent ? 1 : mhk__ssd_span(a.B, a.H);
  const mhk_index tasks = (a.H + a.span - 1) / a.span;
  mhk__run(ctx, &a, a.B * tasks, tasks, recurrent ? 1 : mhk__ssd_work(a.Q, a.N, a.P, a.span), mhk__ssd_cost(&a),
           recurrent ? mhk__ssd_step_task : mhk__ssd_task);
}
static void mhk__ssd_backward(mhk_context *ctx, const mhk__ssd_args *args) {
  mhk__ssd_args a = *args;
  a.span = mhk__ssd_span(a.B, a.G);
  const mhk_index tasks = (a.G + a.span - 1) / a.span;
  mhk__run(ctx, &a, a.B * tasks, tasks, mhk__ssd_work(a.Q, a.N, a.P, a.span * (a.H / a.G)), mhk__ssd_cost(&a), mhk__ssd_back_task);
}

/* ---- ops */

static void mhk__ssd_op_back(mhk_tape *t, mhk__node *n) {
  mhk__ssd_args a = *(const mhk__ssd_args *)n->saved;
  const mhk__mark mark = mhk__scratch_mark(t->ctx);
  mhk_real *dd = mhk__into(t, n->in[4]);
  a.dx = mhk__into(t, n->in[0]);
  a.dlog_a = mhk__into(t, n->in[1]);
  a.db = mhk__into(t, n->in[2]);
  a.dc = mhk__into(t, n->in[3]);
  a.dinitial = mhk__into(t, n->in[5]);
  a.dy = mhk__grad(t, n->out[0]);
  a.dfinal = n->out[1]->grad;
  if (dd) a.dd = (mhk_real *)mhk__scratch(t->ctx, a.B * a.H, sizeof(mhk_real));
  mhk__ssd_backward(t->ctx, &a);
  if (dd && t->ctx->result == MHK_OK)
    for (mhk_index h = 0; h < a.H; h++)
      for (mhk_index b = 0; b < a.B; b++) dd[h] += a.dd[b * a.H + h];
  mhk__scratch_rewind(t->ctx, mark);
}

/* log_a (B,T,H), b and c (B,T,G,N), d (H) or NULL */
static int mhk__ssd_sizes(mhk_tape *t, const char *name, const mhk_tensor *la, const mhk_tensor *b, const mhk_tensor *c,
                          const mhk_tensor *d, mhk__ssd_args *a) {
  memset(a, 0, sizeof *a);
  if (!mhk__is_real(t, name, la) || !mhk__is_real(t, name, b) || !mhk__is_real(t, name, c) || (d && !mhk__is_real(t, name, d))) return 0;
  if (la->rank != 3 || b->rank != 4 || b->shape[0] != la->shape[0] || b->shape[1] != la->shape[1] || b->shape[2] < 1 || la->shape[2] % b->shape[2]) {
    mhk__shape_error(t, name, la, b, "log_a (B,T,H) and B (B,T,G,N) are needed, G dividing H");
    return 0;
  }
  if (!mhk__same_shape(b, c)) {
    mhk__shape_error(t, name, b, c, "B and C must have one shape");
    return 0;
  }
  if (d && (d->rank != 1 || d->shape[0] != la->shape[2])) {
    mhk__shape_error(t, name, la, d, "D must have one number a head");
    return 0;
  }
  a->B = la->shape[0];
  a->T = la->shape[1];
  a->H = la->shape[2];
  a->G = b->shape[2];
  a->N = b->shape[3];
  a->log_a = mhk__d(la);
  a->b = mhk__d(b);
  a->c = mhk__d(c);
  a->d = d ? mhk__d(d) : NULL;
  return 1;
}

MHKDEF mhk_tensor *mhk_ssd(mhk_tape *t, mhk_tensor *x, mhk_tensor *la, mhk_tensor *b, mhk_tensor *c, const mhk_ssd_desc *desc) {
  mhk_ssd_desc d;
  mhk__ssd_args a;
  mhk_tensor *in[6], *out[2];
  mhk_index shape[4], chunks;
  memset(&d, 0, sizeof d);
  if (desc) d = *desc;
  if (d.final_state) *d.final_state = NULL;
  if (!mhk__op_ready(t, x, la) || !b || !c || !mhk__is_real(t, "ssd", x) || !mhk__ssd_sizes(t, "ssd", la, b, c, d.D, &a)) return NULL;
  if (x->rank != 4 || x->shape[0] != a.B || x->shape[1] != a.T || x->shape[2] != a.H)
    return mhk__shape_error(t, "ssd", x, la, "x (B,T,H,P) and log_a (B,T,H) are needed");
  a.P = x->shape[3];
  shape[0] = a.B;
  shape[1] = a.H;
  shape[2] = a.P;
  shape[3] = a.N;
  out[0] = mhk__new(t, 4, x->shape);
  out[1] = mhk__new(t, 4, shape);
  a.start = mhk__starts(t, d.doc, a.B, a.T);
  if (!out[0] || !out[1] || (d.doc && !a.start)) return NULL;
  if (d.initial_state && !mhk__same_shape(d.initial_state, out[1]))
    return mhk__shape_error(t, "ssd", x, d.initial_state, "the initial state must be (B,H,P,N)");
  a.x = mhk__d(x);
  a.initial = d.initial_state ? mhk__d(d.initial_state) : NULL;
  a.y = mhk__d(out[0]);
  a.final = mhk__d(out[1]);
  a.Q = d.chunk > 0 ? d.chunk : MHK__SSD_CHUNK;
  if (a.Q > a.T && a.T > 0) a.Q = a.T;
  in[0] = x;
  in[1] = la;
  in[2] = b;
  in[3] = c;
  in[4] = d.D;
  in[5] = d.initial_state;
  mhk__node *n = mhk__record(t, mhk__ssd_op_back, 6, in, 2, out, sizeof a);
  const int recurrent = d.form == MHK_SSD_RECURRENT || (d.form == MHK_SSD_AUTO && !n && a.T <= MHK__STEPS);
  if (n) {
    chunks = a.Q > 0 ? (a.T + a.Q - 1) / a.Q : 0;
    a.states = (mhk_real *)mhk__arena_alloc(t->ctx, &t->arena, mhk__size3(t->ctx, a.B * a.H * chunks, a.P * a.N, sizeof(mhk_real)));
    if (!a.states) return NULL;
    if (recurrent) mhk__ssd_forward(t->ctx, &a, 0); /* the backward pass needs the states between chunks */
    *(mhk__ssd_args *)n->saved = a;
  }
  mhk__ssd_forward(t->ctx, &a, recurrent);
  if (d.final_state) *d.final_state = out[1];
  return t->ctx->result == MHK_OK ? out[0] : NULL;
}

/* factor[t][s] = exp(cum_t - cum_s) for s <= t in one document, else 0; cum in double, so that long sequences lose nothing */
static mhk_real mhk__decay(const double *cum, const mhk_index *start, mhk_index t, mhk_index s) {
  if (s > t || (start && start[t] > s)) return 0;
  return MHK__R(exp(cum[t] - cum[s]));
}

static void mhk__ssd_matrix_back(mhk_tape *t, mhk__node *n) {
  const mhk__matrix_saved *s = (const mhk__matrix_saved *)n->saved;
  const mhk_index T = s->T, N = s->P;
  const mhk__mark mark = mhk__scratch_mark(t->ctx);
  mhk_real *dla = mhk__into(t, n->in[0]), *db = mhk__into(t, n->in[1]), *dc = mhk__into(t, n->in[2]), *dd = mhk__into(t, n->in[3]);
  const mhk_real *D = n->in[3] ? mhk__d(n->in[3]) : NULL;
  mhk_real *ds = (mhk_real *)mhk__scratch(t->ctx, T * T, sizeof(mhk_real));
  double *dcum = (double *)mhk__scratch(t->ctx, T, sizeof(double)), run;
  mhk__epilogue e;
  mhk_index i;
  mhk__accumulate(&e);
  if (!ds || !dcum) return;
  for (mhk_index b = 0; b < s->B; b++)
    for (mhk_index h = 0; h < s->H; h++) {
      const mhk_index at = (b * s->H + h) * T * T, row = s->G * N, atg = (b * T * s->G + h / (s->H / s->G)) * N;
      const mhk_real *m = mhk__d(n->out[0]) + at, *g = n->out[0]->grad + at;
      const double *cum = s->cum + (b * s->H + h) * T;
      for (i = 0; i < T; i++) dcum[i] = 0;
      for (i = 0; i < T; i++)
        for (mhk_index j = 0; j < T; j++) {
          const double r = j <= i ? (double)(g[i * T + j] * (m[i * T + j] - (D && i == j ? D[h] : 0))) : 0;
          ds[i * T + j] = j <= i ? g[i * T + j] * mhk__decay(cum, s->start ? s->start + b * T : NULL, i, j) : 0;
          dcum[i] += r;
          dcum[j] -= r;
        }
      if (dc) mhk__gemm(t->ctx, T, N, T, mhk__real_mat(ds, T, 1), mhk__real_mat(mhk__d(n->in[1]) + atg, row, 1), dc + atg, row, &e);
      if (db) mhk__gemm(t->ctx, T, N, T, mhk__real_mat(ds, 1, T), mhk__real_mat(mhk__d(n->in[2]) + atg, row, 1), db + atg, row, &e);
      for (run = 0, i = T - 1; dla && i >= 0; i--) dla[(b * T + i) * s->H + h] += MHK__R(run += dcum[i]);
      for (run = 0, i = 0; i < T; i++) run += (double)g[i * T + i];
      if (dd) dd[h] += MHK__R(run);
    }
  mhk__scratch_rewind(t->ctx, mark);
}

MHKDEF mhk_tensor *mhk_ssd_matrix(mhk_tape *t, mhk_tensor *la, mhk_tensor *Bm, mhk_tensor *Cm, mhk_tensor *D, const int32_t *doc) {
  mhk__ssd_args a;
  mhk__matrix_saved s;
  mhk_index shape[4];
  mhk_tensor *in[4];
  if (!mhk__op_ready(t, la, Bm) || !Cm || !mhk__ssd_sizes(t, "ssd_matrix", la, Bm, Cm, D, &a)) return NULL;
  memset(&s, 0, sizeof s);
  s.B = shape[0] = a.B;
  s.H = shape[1] = a.H;
  s.T = shape[2] = shape[3] = a.T;
  s.G = a.G;
  s.P = a.N;
  mhk_tensor *y = mhk__new(t, 4, shape);
  s.start = mhk__starts(t, doc, a.B, a.T);
  s.cum = (double *)mhk__arena_zeros(t->ctx, &t->arena, a.B * a.H * a.T, sizeof(double));
  if (!y || !s.cum || (doc && !s.start)) return NULL;
  for (mhk_index b = 0; b < a.B; b++)
    for (mhk_index h = 0; h < a.H; h++) {
      mhk_real *m = mhk__d(y) + (b * a.H + h) * a.T * a.T;
      const mhk_index at = (b * a.T * a.G + h / (a.H / a.G)) * a.N;
      double *cum = s.cum + (b * a.H + h) * a.T, run = 0;
      for (mhk_index i = 0; i < a.T; i++) cum[i] = run += mhk__log_decay(a.log_a[(b * a.T + i) * a.H + h]);
      mhk__gemm(t->ctx, a.T, a.T, a.N, mhk__real_mat(a.c + at, a.G * a.N, 1), mhk__real_mat(a.b + at, 1, a.G * a.N), m, a.T, NULL);
      for (mhk_index i = 0; i < a.T; i++) {
        for (mhk_index j = 0; j < a.T; j++) m[i * a.T + j] *= mhk__decay(cum, s.start ? s.start + b * a.T : NULL, i, j);
        if (a.d) m[i * a.T + i] += a.d[h];
      }
    }
  in[0] = la;
  in[1] = Bm;
  in[2] = Cm;
  in[3] = D;
  mhk__node *n = mhk__record(t, mhk__ssd_matrix_back, 4, in, 1, &y, sizeof s);
  if (n) *(mhk__matrix_saved *)n->saved = s;
  return t->ctx->result == MHK_OK ? y : NULL;
}
#endif /* MOHAWK_NO_TRAINING */
#endif /* MOHAWK_IMPLEMENTATION */

/* ====================================================================================================
   LOSSES: cross-entropy, KL, distances, and stage 1 in tiles                              >>losses
   ====================================================================================================

   What the three stages of MOHAWK minimize:
      stage 1, matrix orientation      || M_student - M_teacher ||_F of mixing matrices, mean over
                                       heads
      stage 2, hidden-state alignment  || u - v ||_2 of hidden states, mean over tokens
      stage 3, knowledge distillation  cross-entropy of the student's predictions against the
                                       teacher's
   Stage 1 needs no memory in T^2: both matrices are made tile by tile and compared on the fly, in
   one pass for the distance, and in a second one for its gradient. */

#if MHK__REFERENCE == 1 && !defined(MHK__PASS)
/* ---- reference */

/* Stage 1 of MOHAWK, matrix orientation: || student - teacher ||_F of two mixing matrices (T,T) of a head.
   d, if not NULL, receives its gradient with respect to the student's, zeros where they are equal. */
static inline double mhk__ref_matrix_distance(int T, const double *student, const double *teacher, double *d) {
  double sum = 0;
  for (int i = 0; i < T * T; i++) sum += (student[i] - teacher[i]) * (student[i] - teacher[i]);
  for (int i = 0; d && i < T * T; i++) d[i] = sum > 0 ? (student[i] - teacher[i]) / sqrt(sum) : 0;
  return sqrt(sum);
}
#endif /* reference */

#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
/* ---- arguments */

/* The stage-1 loss of one layer: the SSD matrix against the attention matrix, tile by tile. */
struct mhk__orientation_args {
  mhk_index B, T, H, G, P, N, HT, GT, PT; /* ..T: the teacher's heads, key heads and head size; HT == H */
  const mhk_real *log_a, *b, *c, *d, *q, *k;
  const mhk_index *start;
  mhk_real *lse;                 /* (B,H,T) written by forward, read by backward */
  double *difference, *norm;     /* (B,H): sums of squares of M_s - M_t and of M_t */
  double scale;                  /* backward: cotangent / (B H) */
  mhk_real *dlog_a, *db, *dc;    /* added to; NULL: not wanted */
  mhk_real *dd;                  /* (B,H) written */
};
#ifndef MOHAWK_NO_TRAINING
static mhk_index mhk__orientation_work(mhk_index T, mhk_index N, mhk_index P) {
  const mhk_index K = MHK__TILE, over = K + MHK__OVER, n = MHK__LD(N);
  return 4 * MHK__LD(T) + (T + K) * (N + P + 2 * n) + over * (2 * n + MHK__LD(P) + 3 * K) + 20 * K + 64;
}
#endif /* MOHAWK_NO_TRAINING */
#endif /* MOHAWK_IMPLEMENTATION */

#ifdef MHK__TEMPLATE
#ifndef MOHAWK_NO_TRAINING
/* ---- kernels */

/* sum over i of exp(target_i - target_lse) logits_i, blocks of 1024 summed in double */
static double MHK__N(mhk__soft_dot)(mhk_index n, const mhk_real *logits, const mhk_real *target, mhk_real target_lse) {
  const MHK__V shift = MHK__SET(-target_lse), one = MHK__SET(MHK__R(1)), zero = MHK__SET(MHK__R(0));
  double total = 0;
  for (mhk_index k = 0; k < n; k += 1024) {
    const mhk_index end = mhk__min(n, k + 1024);
    MHK__V s = zero;
    for (mhk_index i = k; i < end; i += MHK__W)
      s = MHK__FMA(MHK__N(mhk__vexp)(MHK__FMA(MHK__LOADN(target + i, end - i), one, shift)), MHK__LOADN(logits + i, end - i), s);
    total += (double)MHK__N(mhk__hsum)(s);
  }
  return total;
}

/* d += g (softmax(logits * it) - softmax(target)) */
static void MHK__N(mhk__soft_back)(mhk_index n, const mhk_real *logits, mhk_real it, mhk_real lse, const mhk_real *target, mhk_real target_lse, mhk_real g,
                                   mhk_real *d) {
  const MHK__V vit = MHK__SET(it), vl = MHK__SET(-lse), vt = MHK__SET(-target_lse), vg = MHK__SET(g), one = MHK__SET(MHK__R(1));
  for (mhk_index i = 0; i < n; i += MHK__W) {
    MHK__V e = MHK__N(mhk__vexp)(MHK__FMA(MHK__LOADN(logits + i, n - i), vit, vl));
    if (target) e = e - MHK__N(mhk__vexp)(MHK__FMA(MHK__LOADN(target + i, n - i), one, vt));
    MHK__STOREN(d + i, MHK__FMA(vg, e, MHK__LOADN(d + i, n - i)), n - i);
  }
}

/* || x - y ||^2 */
static double MHK__N(mhk__distance)(mhk_index n, const mhk_real *x, const mhk_real *y) {
  mhk_index i;
  double total = 0;
  for (mhk_index k = 0; k < n; k += 1024) {
    const mhk_index end = n - k < 1024 ? n : k + 1024;
    MHK__V s = MHK__SET(MHK__R(0));
    mhk_real rest = 0;
    for (i = k; i + MHK__W <= end; i += MHK__W) {
      const MHK__V d = MHK__LOAD(x + i) - MHK__LOAD(y + i);
      s = MHK__FMA(d, d, s);
    }
    for (; i < end; i++) rest += (x[i] - y[i]) * (x[i] - y[i]);
    total += (double)(MHK__N(mhk__hsum)(s) + rest);
  }
  return total;
}

/* One tile of both matrices: rows i0.., columns j0... On the diagonal decay is a tile, off it u_i v_j: the factors around the tile's corner, all at most 1.
   Writes the student's tile to s and the teacher's to p, on the diagonal each row to the end of its register tile. */
static void MHK__N(mhk__two_tiles)(const mhk__orientation_args *a, mhk_index h, const double *cum, const mhk_index *start, const mhk_real *lse, mhk_index i0,
                                   mhk_index rows, mhk_index j0, mhk_index cols, const mhk_real *cr, const mhk_real *bt, const mhk_real *qr,
                                   const mhk_real *kt, mhk_real *s, mhk_real *p, mhk_real *decay, mhk_real *u, mhk_real *v) {
  const MHK__V zero = MHK__SET(MHK__R(0)), scale = MHK__SET(MHK__R(1.0 / sqrt((double)a->PT)));
  const int corner = i0 == j0, cut = start && start[i0 + rows - 1] > j0;
  mhk__block k;
  memset(&k, 0, sizeof k);
  MHK__N(mhk__multiply)(&k, rows, cols, a->N, cr, MHK__LD(a->N), 1, bt, MHK__LD(cols), s, MHK__TILE, corner ? mhk__lower_c : mhk__whole);
  MHK__N(mhk__multiply)(&k, rows, cols, a->PT, qr, MHK__LD(a->PT), 1, kt, MHK__LD(cols), p, MHK__TILE, corner ? mhk__lower_c : mhk__whole);
  if (corner) {
    mhk_real hold[2 * MHK__TILE];
    MHK__N(mhk__decay_tile)(rows, cum + i0, start ? start + i0 : NULL, i0, 0, hold, decay, MHK__TILE);
    for (mhk_index i = 0; a->d && i < rows; i++) s[i * MHK__TILE + i] += a->d[h];
  } else {
    for (mhk_index i = 0; i < rows; i++) u[i] = MHK__R(cum[i0 + i] - cum[i0 - 1]);
    for (mhk_index j = 0; j < cols; j++) v[j] = MHK__R(cum[i0 - 1] - cum[j0 + j]);
    MHK__N(mhk__row_exp)(rows, u, MHK__R(1), 0, u);
    MHK__N(mhk__row_exp)(cols, v, MHK__R(1), 0, v);
  }
  for (mhk_index i = 0; i < rows; i++) {
    const MHK__V shift = MHK__SET(-lse[i0 + i]), ui = MHK__SET(corner ? MHK__R(1) : u[i]);
    const mhk_real *factor = corner ? decay + i * MHK__TILE : v;
    const mhk_index to = corner ? mhk__min(cols, i + MHK__OVER) : cols;
    for (mhk_index j = 0; j < to; j += MHK__W) {
      mhk_real *at = s + i * MHK__TILE + j, *to_p = p + i * MHK__TILE + j;
      MHK__V ms = MHK__LOAD(at) * ui * MHK__LOAD(factor + j), mt = MHK__N(mhk__vexp)(MHK__FMA(MHK__LOAD(to_p), scale, shift));
      if (corner) mt = MHK__FROM(zero, mt, i + 1 - j);
      if (cut) {
        ms = MHK__FROM(ms, zero, start[i0 + i] - j0 - j);
        mt = MHK__FROM(mt, zero, start[i0 + i] - j0 - j);
      }
      MHK__STORE(at, ms);
      MHK__STORE(to_p, mt);
    }
  }
}

/* what both passes need of one head: columns of B and k in tiles, sums of the log-decays */
static void MHK__N(mhk__orientation_pack)(const mhk__orientation_args *a, mhk_index b, mhk_index h, mhk_real *bt, mhk_real *kt, double *cum) {
  const mhk_index T = a->T, g = h / (a->H / a->G), gt = h / (a->HT / a->GT);
  double sum = 0;
  for (mhk_index j0 = 0; j0 < T; j0 += MHK__TILE) {
    const mhk_index n = mhk__min(MHK__TILE, T - j0);
    MHK__N(mhk__turned_in)(n, a->N, a->b + ((b * T + j0) * a->G + g) * a->N, a->G * a->N, bt + j0 * a->N);
    MHK__N(mhk__turned_in)(n, a->PT, a->k + ((b * T + j0) * a->GT + gt) * a->PT, a->GT * a->PT, kt + j0 * a->PT);
  }
  for (mhk_index t = 0; t < T; t++) cum[t] = sum += mhk__log_decay(a->log_a[(b * T + t) * a->H + h]);
}

static void MHK__N(mhk__orientation)(const mhk__orientation_args *a, mhk_index b, mhk_index h, mhk_real *work) {
  const mhk_index T = a->T, K = MHK__TILE, g = h / (a->H / a->G), over = K + MHK__OVER;
  const mhk_index *start = a->start ? a->start + b * T : NULL;
  double *cum = (double *)work;
  mhk_real *bt = work + 2 * MHK__LD(T), *kt = bt + (T + K) * a->N, *cr = kt + (T + K) * a->PT, *qr = cr + over * MHK__LD(a->N);
  mhk_real *s = qr + over * MHK__LD(a->PT), *p = s + over * K, *decay = p + over * K, *u = decay + over * K, *v = u + K;
  const mhk_real *lse = a->lse + (b * a->H + h) * T;
  double difference = 0, norm = 0;
  MHK__N(mhk__orientation_pack)(a, b, h, bt, kt, cum);
  for (mhk_index i0 = 0; i0 < T; i0 += K) {
    const mhk_index rows = mhk__min(K, T - i0);
    MHK__N(mhk__rows_in)(rows, a->N, a->c + ((b * T + i0) * a->G + g) * a->N, a->G * a->N, NULL, cr);
    MHK__N(mhk__rows_in)(rows, a->PT, a->q + ((b * T + i0) * a->HT + h) * a->PT, a->HT * a->PT, NULL, qr);
    for (mhk_index j0 = 0; j0 <= i0; j0 += K) {
      const mhk_index cols = mhk__min(K, T - j0);
      MHK__V d2 = MHK__SET(MHK__R(0)), n2 = d2;
      MHK__N(mhk__two_tiles)(a, h, cum, start, lse, i0, rows, j0, cols, cr, bt + j0 * a->N, qr, kt + j0 * a->PT, s, p, decay, u, v);
      for (mhk_index i = 0; i < rows; i++)
        for (mhk_index j = 0; j < (i0 == j0 ? i + 1 : cols); j += MHK__W) {
          const MHK__V t = MHK__LOAD(p + i * K + j), d = MHK__LOAD(s + i * K + j) - t;
          d2 = MHK__FMA(d, d, d2);
          n2 = MHK__FMA(t, t, n2);
        }
      difference += (double)MHK__N(mhk__hsum)(d2);
      norm += (double)MHK__N(mhk__hsum)(n2);
    }
  }
  a->difference[b * a->H + h] = difference;
  a->norm[b * a->H + h] = norm;
}

static void MHK__N(mhk__orientation_back)(const mhk__orientation_args *a, mhk_index b, mhk_index g, mhk_real *work) {
  const mhk_index T = a->T, K = MHK__TILE, N = a->N, group = a->H / a->G, ldb = a->G * N, over = K + MHK__OVER, wide = MHK__LD(N);
  const mhk_index *start = a->start ? a->start + b * T : NULL;
  double *cum = (double *)work, *dcum = cum + T;
  mhk_real *bt = work + 4 * MHK__LD(T), *kt = bt + (T + K) * N, *br = kt + (T + K) * a->PT, *db = br + T * wide, *cr = db + (T + K) * wide;
  mhk_real *qr = cr + over * wide, *dc = qr + over * MHK__LD(a->PT), *s = dc + over * wide, *p = s + over * K;
  mhk_real *decay = p + over * K, *u = decay + over * K, *v = u + K, *row = v + K, *column = row + K;
  mhk_real *part = column + K;
  mhk__block k;
  memset(&k, 0, sizeof k);
  MHK__N(mhk__rows_in)(T, N, a->b + (b * T * a->G + g) * N, ldb, NULL, br);
  for (mhk_index h = g * group; h < (g + 1) * group; h++) {
    const double norm = sqrt(a->difference[b * a->H + h]);
    const mhk_real f = norm > 0 ? MHK__R(a->scale / norm) : 0; /* equal matrices: the subgradient 0 */
    const mhk_real *lse = a->lse + (b * a->H + h) * T;
    const MHK__V zero = MHK__SET(MHK__R(0)), vf = MHK__SET(f);
    double dd = 0;
    MHK__N(mhk__orientation_pack)(a, b, h, bt, kt, cum);
    for (mhk_index i = 0; i < T; i++) dcum[i] = 0;
    for (mhk_index i0 = 0; i0 < T; i0 += K) {
      const mhk_index rows = mhk__min(K, T - i0);
      const mhk_real *cc = a->c + ((b * T + i0) * a->G + g) * N;
      MHK__N(mhk__rows_in)(rows, a->PT, a->q + ((b * T + i0) * a->HT + h) * a->PT, a->HT * a->PT, NULL, qr);
      MHK__N(mhk__rows_in)(rows, N, cc, ldb, NULL, cr);
      for (mhk_index j0 = 0; j0 <= i0; j0 += K) {
        const mhk_index cols = mhk__min(K, T - j0);
        const int corner = i0 == j0;
        MHK__N(mhk__two_tiles)(a, h, cum, start, lse, i0, rows, j0, cols, cr, bt + j0 * N, qr, kt + j0 * a->PT, s, p, decay, u, v);
        for (mhk_index j = 0; j < MHK__LD(cols); j += MHK__W) MHK__STORE(column + j, zero);
        for (mhk_index i = 0; i < rows; i++) {
          const MHK__V ui = MHK__SET(corner ? MHK__R(1) : u[i]);
          const mhk_real *factor = corner ? decay + i * K : v;
          const mhk_index to = corner ? mhk__min(cols, i + MHK__OVER) : cols;
          MHK__V sum = zero;
          for (mhk_index j = 0; j < to; j += MHK__W) { /* what stands on the diagonal no decay passes */
            const MHK__V ms = MHK__LOAD(s + i * K + j), dm = vf * (ms - MHK__LOAD(p + i * K + j));
            MHK__V x = dm * ms;
            if (corner) x = MHK__FROM(zero, x, i - j);
            sum = sum + x;
            MHK__STORE(column + j, MHK__LOAD(column + j) + x);
            MHK__STORE(p + i * K + j, dm * ui * MHK__LOAD(factor + j));
          }
          MHK__STORE(part + i * MHK__W, sum);
          if (corner) dd += (double)p[i * K + i];
        }
        MHK__N(mhk__row_sums)(rows, part, row);
        for (mhk_index i = 0; i < rows; i++) dcum[i0 + i] += (double)row[i];
        for (mhk_index j = 0; j < cols; j++) dcum[j0 + j] -= (double)column[j];
        if (a->db) {
          k.c0 = corner && h == g * group ? NULL : db + j0 * wide;
          MHK__N(mhk__multiply)(&k, cols, N, rows, p, 1, K, cr, wide, db + j0 * wide, wide, corner ? mhk__upper_a : mhk__whole);
        }
        if (a->dc) {
          k.c0 = j0 > 0 ? dc : NULL;
          MHK__N(mhk__multiply)(&k, rows, N, cols, p, K, 1, br + j0 * wide, wide, dc, wide, corner ? mhk__lower_a : mhk__whole);
        }
      }
      if (a->dc) MHK__N(mhk__rows_out)(rows, N, dc, NULL, NULL, a->dc + ((b * T + i0) * a->G + g) * N, ldb, 1);
    }
    if (a->dlog_a) {
      double run = 0;
      for (mhk_index i = T - 1; i >= 0; i--) {
        run += dcum[i];
        a->dlog_a[(b * T + i) * a->H + h] += MHK__R(run);
      }
    }
    if (a->dd) a->dd[b * a->H + h] = MHK__R(dd);
  }
  if (a->db) MHK__N(mhk__rows_out)(T, N, db, NULL, NULL, a->db + (b * T * a->G + g) * N, ldb, 1);
}
#endif /* MOHAWK_NO_TRAINING */
#endif /* MHK__TEMPLATE */

#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
#ifndef MOHAWK_NO_TRAINING
/* ---- drivers */

MHK__HEAD_TASK(mhk__orientation_task, mhk__orientation_args, orientation)
MHK__HEAD_TASK(mhk__orientation_back_task, mhk__orientation_args, orientation_back)

/* ---- ops */

typedef struct mhk__xent_args {
  mhk_index n, rows;
  const mhk_real *x, *target;
  const int32_t *labels;
  mhk_real *lse, *target_lse, *d;
  double *loss;
  mhk_real it, g; /* 1 / temperature; cotangent over the rows that count */
  int kl;
} mhk__xent_args;

static void mhk__xent_body(mhk_context *ctx, void *args, mhk_index first, mhk_index last) {
  const mhk__xent_args *a = (const mhk__xent_args *)args;
  for (mhk_index r = first; r < last; r++) {
    const mhk_real *x = a->x + r * a->n;
    a->loss[r] = 0;
    if (a->labels && a->labels[r] < 0) continue;
    const double lse = ctx->kernels->log_sum_exp(a->n, x, a->it);
    a->lse[r] = MHK__R(lse);
    if (a->labels)
      a->loss[r] = lse - (double)(x[a->labels[r]] * a->it);
    else {
      const mhk_real *y = a->target + r * a->n;
      const double target_lse = ctx->kernels->log_sum_exp(a->n, y, MHK__R(1));
      a->target_lse[r] = MHK__R(target_lse);
      a->loss[r] = lse - ctx->kernels->soft_dot(a->n, x, y, MHK__R(target_lse)) * (double)a->it;
      if (a->kl) a->loss[r] -= target_lse - ctx->kernels->soft_dot(a->n, y, y, MHK__R(target_lse));
    }
  }
}

static void mhk__xent_back_body(mhk_context *ctx, void *args, mhk_index first, mhk_index last) {
  const mhk__xent_args *a = (const mhk__xent_args *)args;
  for (mhk_index r = first; r < last; r++) {
    if (a->labels && a->labels[r] < 0) continue;
    ctx->kernels->soft_back(a->n, a->x + r * a->n, a->it, a->lse[r], a->labels ? NULL : a->target + r * a->n,
                            a->labels ? 0 : a->target_lse[r], a->g, a->d + r * a->n);
    if (a->labels) a->d[r * a->n + a->labels[r]] -= a->g;
  }
}

static void mhk__xent_back(mhk_tape *t, mhk__node *n) {
  mhk__xent_args a = *(const mhk__xent_args *)n->saved;
  a.d = mhk__into(t, n->in[0]);
  a.g *= n->out[0]->grad[0] * a.it;
  if (a.d) mhk__over(t->ctx, a.rows, MHK__GRAIN / (a.n + 1) + 1, mhk__xent_back_body, &a);
}

/* mean over rows of cross-entropy against labels, or against a target's softmax */
static mhk_tensor *mhk__xent(mhk_tape *t, const char *name, mhk_tensor *x, const int32_t *labels, mhk_tensor *target, double temperature, int kl) {
  mhk__xent_args a;
  mhk_index r, counted = 0;
  double sum = 0;
  if (!mhk__op_ready(t, x, x) || (!labels && !target) || !mhk__is_real(t, name, x)) return NULL;
  if (target && !mhk__is_real(t, name, target)) return NULL;
  if (target && (mhk__last(x) != mhk__last(target) || x->count != target->count))
    return mhk__shape_error(t, name, x, target, "both logits must have one shape");
  if (!mhk__number_fits(t->ctx, name, "temperature", temperature, MHK__REAL_LEAST, MHK__REAL_MOST)) return NULL;
  memset(&a, 0, sizeof a);
  a.n = mhk__last(x);
  a.rows = mhk__row_count(x);
  a.x = mhk__d(x);
  a.target = target ? mhk__d(target) : NULL;
  a.it = MHK__R(1 / temperature);
  a.kl = kl;
  mhk_tensor *y = mhk__new(t, 0, NULL);
  a.lse = (mhk_real *)mhk__arena_zeros(t->ctx, &t->arena, a.rows, sizeof(mhk_real));
  a.target_lse = (mhk_real *)mhk__arena_zeros(t->ctx, &t->arena, target ? a.rows : 0, sizeof(mhk_real));
  if (labels) {
    int32_t *copy = (int32_t *)mhk__arena_zeros(t->ctx, &t->arena, a.rows, sizeof(int32_t));
    for (r = 0; copy && r < a.rows; r++) {
      if (labels[r] >= a.n) {
        mhk_fail(t->ctx, MHK_ERROR_ARGUMENT, "%s: label %lld is %d: the vocabulary has ids 0 to %lld", name, (long long)r, (int)labels[r], (long long)a.n - 1);
        return NULL;
      }
      copy[r] = labels[r];
      counted += labels[r] >= 0;
    }
    a.labels = copy;
  } else
    counted = a.rows;
  mhk__mark mark = mhk__scratch_mark(t->ctx);
  a.loss = (double *)mhk__scratch(t->ctx, a.rows, sizeof(double));
  if (!y || !a.loss || t->ctx->result != MHK_OK) return NULL;
  mhk__over(t->ctx, a.rows, MHK__GRAIN / (a.n + 1) + 1, mhk__xent_body, &a);
  for (r = 0; r < a.rows; r++) sum += a.loss[r];
  mhk__scratch_rewind(t->ctx, mark);
  mhk__d(y)[0] = MHK__R(counted ? sum / (double)counted : 0);
  a.g = MHK__R(counted ? 1.0 / (double)counted : 0);
  a.loss = NULL;
  mhk__node *n = mhk__record(t, mhk__xent_back, 1, &x, 1, &y, sizeof a);
  if (n) *(mhk__xent_args *)n->saved = a;
  return y;
}
MHKDEF mhk_tensor *mhk_cross_entropy(mhk_tape *t, mhk_tensor *logits, const int32_t *labels) {
  if (mhk__op_ready(t, logits, logits) && !labels)
    mhk_fail(t->ctx, MHK_ERROR_ARGUMENT, "cross_entropy: the labels are missing (NULL)");
  return labels ? mhk__xent(t, "cross_entropy", logits, labels, NULL, 1, 0) : NULL;
}
MHKDEF mhk_tensor *mhk_cross_entropy_soft(mhk_tape *t, mhk_tensor *logits, mhk_tensor *target, double temperature) {
  return target ? mhk__xent(t, "cross_entropy_soft", logits, NULL, target, temperature, 0) : NULL;
}
MHKDEF mhk_tensor *mhk_kl(mhk_tape *t, mhk_tensor *logits, mhk_tensor *target) { return target ? mhk__xent(t, "kl", logits, NULL, target, 1, 1) : NULL; }

typedef struct mhk__distance_args { mhk_index n, rows; const mhk_real *x, *y; double *norm; mhk_real *d, g; } mhk__distance_args;

static void mhk__distance_body(mhk_context *ctx, void *args, mhk_index first, mhk_index last) {
  const mhk__distance_args *a = (const mhk__distance_args *)args;
  for (; first < last; first++) a->norm[first] = sqrt(ctx->kernels->distance(a->n, a->x + first * a->n, a->y + first * a->n));
}

static void mhk__distance_back_body(mhk_context *ctx, void *args, mhk_index first, mhk_index last) {
  const mhk__distance_args *a = (const mhk__distance_args *)args;
  (void)ctx;
  for (; first < last; first++) {
    const mhk_real f = a->norm[first] > 0 ? MHK__R((double)a->g / a->norm[first]) : 0; /* where both are equal: the subgradient 0 */
    const mhk_real *x = a->x + first * a->n, *y = a->y + first * a->n;
    mhk_real *d = a->d + first * a->n;
    for (mhk_index j = 0; j < a->n; j++) d[j] += f * (x[j] - y[j]);
  }
}

static void mhk__distance_back(mhk_tape *t, mhk__node *n) {
  mhk__distance_args a = *(const mhk__distance_args *)n->saved;
  a.d = mhk__into(t, n->in[0]);
  a.g *= n->out[0]->grad[0];
  if (a.d) mhk__over(t->ctx, a.rows, MHK__GRAIN / (a.n + 1) + 1, mhk__distance_back_body, &a);
}

/* mean over rows of n elements of || x - target ||_2 */
static mhk_tensor *mhk__mean_distance(mhk_tape *t, const char *name, mhk_tensor *x, mhk_tensor *target, mhk_index n) {
  mhk__distance_args a;
  double sum = 0;
  if (!mhk__is_real(t, name, x) || !mhk__is_real(t, name, target)) return NULL;
  if (!mhk__same_shape(x, target)) return mhk__shape_error(t, name, x, target, "both must have one shape");
  memset(&a, 0, sizeof a);
  a.n = n;
  a.rows = n > 0 ? x->count / n : 0;
  a.x = mhk__d(x);
  a.y = mhk__d(target);
  mhk_tensor *y = mhk__new(t, 0, NULL);
  a.norm = (double *)mhk__arena_zeros(t->ctx, &t->arena, a.rows, sizeof(double));
  if (!y || !a.norm) return NULL;
  mhk__over(t->ctx, a.rows, MHK__GRAIN / (n + 1) + 1, mhk__distance_body, &a);
  for (mhk_index r = 0; r < a.rows; r++) sum += a.norm[r];
  mhk__d(y)[0] = MHK__R(a.rows ? sum / (double)a.rows : 0);
  a.g = MHK__R(a.rows ? 1.0 / (double)a.rows : 0);
  mhk__node *node = mhk__record(t, mhk__distance_back, 1, &x, 1, &y, sizeof a);
  if (node) *(mhk__distance_args *)node->saved = a;
  return y;
}
MHKDEF mhk_tensor *mhk_hidden_distance(mhk_tape *t, mhk_tensor *x, mhk_tensor *target) {
  return mhk__op_ready(t, x, target) ? mhk__mean_distance(t, "hidden_distance", x, target, mhk__last(x)) : NULL;
}
MHKDEF mhk_tensor *mhk_matrix_distance(mhk_tape *t, mhk_tensor *x, mhk_tensor *target) {
  if (!mhk__op_ready(t, x, target)) return NULL;
  if (x->rank < 2) return mhk__shape_error(t, "matrix_distance", x, target, "(...,T,T) is needed");
  return mhk__mean_distance(t, "matrix_distance", x, target, x->shape[x->rank - 1] * x->shape[x->rank - 2]);
}

static void mhk__orientation_op_back(mhk_tape *t, mhk__node *n) {
  mhk__orientation_args a = *(const mhk__orientation_args *)n->saved;
  const mhk__mark mark = mhk__scratch_mark(t->ctx);
  mhk_real *dd = mhk__into(t, n->in[3]);
  a.dlog_a = mhk__into(t, n->in[0]);
  a.db = mhk__into(t, n->in[1]);
  a.dc = mhk__into(t, n->in[2]);
  a.scale *= (double)n->out[0]->grad[0];
  if (dd) a.dd = (mhk_real *)mhk__scratch(t->ctx, a.B * a.H, sizeof(mhk_real));
  mhk__run(t->ctx, &a, a.B * a.G, a.G, mhk__orientation_work(a.T, a.N, a.PT), (double)(a.B * a.H * a.N) * (double)(a.T * a.T),
           mhk__orientation_back_task);
  if (dd && t->ctx->result == MHK_OK)
    for (mhk_index h = 0; h < a.H; h++)
      for (mhk_index b = 0; b < a.B; b++) dd[h] += a.dd[b * a.H + h];
  mhk__scratch_rewind(t->ctx, mark);
}

MHKDEF mhk_tensor *mhk_matrix_orientation(mhk_tape *t, mhk_tensor *la, mhk_tensor *Bm, mhk_tensor *Cm, mhk_tensor *D, mhk_tensor *q, mhk_tensor *k,
                                          const int32_t *doc, double *relative) {
  mhk__ssd_args s;
  mhk__attention_args q_args;
  mhk__orientation_args a;
  mhk_tensor *in[4];
  mhk_index b;
  double sum = 0;
  if (!mhk__op_ready(t, la, Bm) || !Cm || !q || !k) return NULL;
  if (!mhk__ssd_sizes(t, "matrix_orientation", la, Bm, Cm, D, &s) || !mhk__attention_sizes(t, "matrix_orientation", q, k, &q_args)) return NULL;
  if (q_args.B != s.B || q_args.T != s.T || q_args.H != s.H)
    return mhk__shape_error(t, "matrix_orientation", la, q, "both mixers must have one batch, length and number of heads");
  memset(&a, 0, sizeof a);
  a.B = s.B;
  a.T = s.T;
  a.H = a.HT = s.H;
  a.G = s.G;
  a.N = s.N;
  a.GT = q_args.G;
  a.PT = q_args.P;
  a.log_a = s.log_a;
  a.b = s.b;
  a.c = s.c;
  a.d = s.d;
  a.q = q_args.q;
  a.k = q_args.k;
  a.start = q_args.start = mhk__starts(t, doc, a.B, a.T);
  mhk_tensor *y = mhk__new(t, 0, NULL);
  a.lse = q_args.lse = (mhk_real *)mhk__arena_zeros(t->ctx, &t->arena, a.B * a.H * a.T, sizeof(mhk_real));
  a.difference = (double *)mhk__arena_zeros(t->ctx, &t->arena, a.B * a.H, sizeof(double));
  a.norm = (double *)mhk__arena_zeros(t->ctx, &t->arena, a.B * a.H, sizeof(double));
  if (!y || !a.lse || !a.difference || !a.norm || (doc && !a.start)) return NULL;
  mhk__attention_forward(t->ctx, &q_args); /* denominators only */
  mhk__run(t->ctx, &a, a.B * a.H, a.H, mhk__orientation_work(a.T, a.N, a.PT), (double)(a.B * a.H * a.N) * (double)(a.T * a.T), mhk__orientation_task);
  if (t->ctx->result != MHK_OK) return NULL;
  for (mhk_index i = 0; i < a.B * a.H; i++) sum += sqrt(a.difference[i]);
  a.scale = a.B * a.H > 0 ? 1.0 / (double)(a.B * a.H) : 0;
  mhk__d(y)[0] = MHK__R(sum * a.scale);
  for (mhk_index h = 0; relative && h < a.H; h++)
    for (relative[h] = 0, b = 0; b < a.B; b++) relative[h] += sqrt(a.difference[b * a.H + h] / a.norm[b * a.H + h]) / (double)a.B;
  in[0] = la;
  in[1] = Bm;
  in[2] = Cm;
  in[3] = D;
  mhk__node *n = mhk__record(t, mhk__orientation_op_back, 4, in, 1, &y, sizeof a);
  if (n) *(mhk__orientation_args *)n->saved = a;
  return y;
}
#endif /* MOHAWK_NO_TRAINING */
#endif /* MOHAWK_IMPLEMENTATION */

/* ====================================================================================================
   OPTIMIZER: AdamW                                                                        >>optimizer
   ====================================================================================================

   Adam with decoupled weight decay (Loshchilov & Hutter, arXiv 1711.05101). Each parameter and
   its two moments are read and written once an update. */

#ifdef MHK__TEMPLATE
#ifndef MOHAWK_NO_TRAINING
/* ---- kernels */

/* AdamW (Loshchilov & Hutter, arXiv 1711.05101) in one pass. s: learning rate * decay, beta1, beta2, learning rate / (1 - beta1^t),
   1 / sqrt(1 - beta2^t), eps, factor on the gradient */
static void MHK__N(mhk__adamw)(mhk_index n, mhk_real *MHK__RESTRICT p, const mhk_real *MHK__RESTRICT g, mhk_real *MHK__RESTRICT m, mhk_real *MHK__RESTRICT v,
                               const mhk_real *s) {
  const MHK__V decay = MHK__SET(s[0]), b2 = MHK__SET(s[2]), rest1 = MHK__SET(MHK__R(1) - s[1]), rest2 = MHK__SET(MHK__R(1) - s[2]), rate = MHK__SET(s[3]);
  const MHK__V root = MHK__SET(s[4]), eps = MHK__SET(s[5]), factor = MHK__SET(s[6]);
  for (mhk_index i = 0; i < n; i += MHK__W) {
    const mhk_index k = n - i;
    const MHK__V pi = MHK__LOADN(p + i, k), gi = MHK__LOADN(g + i, k) * factor, mi = MHK__LOADN(m + i, k), mj = MHK__FMA(gi - mi, rest1, mi);
    const MHK__V vi = MHK__FMA(gi * gi, rest2, MHK__LOADN(v + i, k) * b2);
    MHK__STOREN(m + i, mj, k);
    MHK__STOREN(v + i, vi, k);
    MHK__STOREN(p + i, pi - pi * decay - rate * mj / MHK__FMA(MHK__SQRT(vi), root, eps), k);
  }
}
#endif /* MOHAWK_NO_TRAINING */
#endif /* MHK__TEMPLATE */

#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
#ifndef MOHAWK_NO_TRAINING
/* ---- ops */

/* the numbers the kernel wants, at update `step` */
static void mhk__adamw_factors(double lr, double decay, double beta1, double beta2, double eps, double scale, double step, mhk_real *s) {
  s[0] = MHK__R(lr * decay);
  s[1] = MHK__R(beta1);
  s[2] = MHK__R(beta2);
  s[3] = MHK__R(lr / (1.0 - pow(beta1, step)));
  s[4] = MHK__R(1.0 / sqrt(1.0 - pow(beta2, step)));
  s[5] = MHK__R(eps);
  s[6] = MHK__R(scale);
}

typedef struct mhk__adamw_args { int n, keep; mhk_tensor *const *x; mhk_real *moments, s[7]; } mhk__adamw_args;

/* elements first to last of all parameters behind each other */
static void mhk__adamw_body(mhk_context *ctx, void *args, mhk_index first, mhk_index last) {
  const mhk__adamw_args *a = (const mhk__adamw_args *)args;
  mhk_index at = 0;
  for (int i = 0; i < a->n && at < last; at += a->x[i++]->count) {
    mhk_tensor *x = a->x[i];
    const mhk_index from = mhk__max(first - at, 0), n = mhk__min(last - at, x->count) - from;
    mhk_real *m = a->moments + 2 * at + from;
    if (n <= 0 || !x->grad) continue;
    ctx->kernels->adamw(n, mhk_data(x) + from, x->grad + from, m, m + x->count, a->s);
    if (!a->keep) memset(x->grad + from, 0, (size_t)n * sizeof(mhk_real));
  }
}

MHKDEF mhk_result mhk_adamw(mhk_context *ctx, int n, mhk_tensor *const *x, mhk_real *moments, int64_t step, const mhk_adamw_desc *desc) {
  mhk__adamw_args a;
  mhk_index total = 0;
  if (!ctx) return MHK_ERROR_MEMORY;
  if (ctx->result != MHK_OK) return ctx->result;
  if (n < 0 || (n > 0 && (!x || !moments)) || !desc) return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "adamw: parameters, moments and a description are needed");
  mhk_adamw_desc d = *desc;
  if (!(d.beta1 > 0)) d.beta1 = d.beta1 == 0 ? 0.9 : -1;
  if (!(d.beta2 > 0)) d.beta2 = d.beta2 == 0 ? 0.999 : -1;
  if (!(d.eps > 0)) d.eps = d.eps == 0 ? 1e-8 : -1;
  if (d.scale == 0) d.scale = 1;
  if (!mhk__number_fits(ctx, "adamw", "lr", d.lr, 0, MHK__REAL_MOST) ||
      !mhk__number_fits(ctx, "adamw", "weight_decay", d.weight_decay, 0, MHK__REAL_MOST) ||
      !mhk__number_fits(ctx, "adamw", "scale", d.scale, -MHK__REAL_MOST, MHK__REAL_MOST))
    return ctx->result;
  if (step < 1 || !(d.beta1 > 0 && d.beta1 < 1 && d.beta2 > 0 && d.beta2 < 1 && d.eps > 0 && d.eps <= MHK__REAL_MOST))
    return mhk_fail(
        ctx, MHK_ERROR_ARGUMENT,
        "adamw: step %lld, betas %g and %g, eps %g; steps count from 1, betas lie in (0,1), eps is above 0 and finite",
        (long long)step, desc->beta1, desc->beta2, desc->eps);
  for (int i = 0; i < n; i++) {
    if (!x[i] || x[i]->dtype != MHK_REAL) return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "adamw: parameter %d of %d is not one of mhk_real", i, n);
    total += x[i]->count;
  }
  a.n = n;
  a.keep = d.keep_grad;
  a.x = x;
  a.moments = moments;
  mhk__adamw_factors(d.lr, d.weight_decay, d.beta1, d.beta2, d.eps, d.scale, (double)step, a.s);
  mhk__over(ctx, total, 4 * MHK__GRAIN, mhk__adamw_body, &a);
  return ctx->result;
}
#endif /* MOHAWK_NO_TRAINING */
#endif /* MOHAWK_IMPLEMENTATION */
#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
/* ====================================================================================================
   FILES: JSON, numbers, safetensors, PyTorch's archives                                      >>files
   ==================================================================================================== */

/* ---- small helpers */

/* Sorts n pointers in n log n whatever they hold; room has space for n more. compare as for qsort. */
static void mhk__sort(const void **x, const void **room, mhk_index n, int (*compare)(const void *, const void *)) {
  const void **from = x, **to = room, **swap;
  for (mhk_index width = 1; width < n; width *= 2) {
    for (mhk_index at = 0; at < n; at += 2 * width) {
      mhk_index i = at, middle = n - at < width ? n : at + width, j = middle, end = n - at < 2 * width ? n : at + 2 * width, k;
      for (k = at; k < end; k++) to[k] = i < middle && (j >= end || compare(from[i], from[j]) <= 0) ? from[i++] : from[j++];
    }
    swap = from;
    from = to;
    to = swap;
    if (width > n / 2) break;
  }
  if (from != x) memcpy(x, from, (size_t)n * sizeof *x);
}

/* bytes of the valid UTF-8 character at the start of s; 0 if there is none */
static size_t mhk__utf8_length(const unsigned char *s, size_t n) {
  if (n == 0) return 0;
  const unsigned c = s[0];
  if (c < 0x80) return 1;
  const size_t k = c >= 0xC2 && c < 0xE0 ? 2 : c >= 0xE0 && c < 0xF0 ? 3 : c >= 0xF0 && c < 0xF5 ? 4 : 0;
  if (k == 0 || n < k) return 0;
  for (size_t i = 1; i < k; i++)
    if ((s[i] & 0xC0) != 0x80) return 0;
  if ((c == 0xE0 && s[1] < 0xA0) || (c == 0xED && s[1] > 0x9F) || (c == 0xF0 && s[1] < 0x90) || (c == 0xF4 && s[1] > 0x8F))
    return 0; /* overlong, surrogate, too large */
  return k;
}

#ifndef MOHAWK_NO_STDIO
static int mhk__utf8_valid(const char *text, size_t n) {
  const unsigned char *s = (const unsigned char *)text;
  size_t i = 0;
  while (i < n) {
    size_t k = mhk__utf8_length(s + i, n - i);
    if (k == 0) return 0;
    i += k;
  }
  return 1;
}
#endif

/* writes one code point, returns its bytes (1 to 4) */
static size_t mhk__utf8_put(char *out, uint32_t c) {
  if (c < 0x80) {
    out[0] = (char)c;
    return 1;
  }
  if (c < 0x800) {
    out[0] = (char)(0xC0 | (c >> 6));
    out[1] = (char)(0x80 | (c & 0x3F));
    return 2;
  }
  if (c < 0x10000) {
    out[0] = (char)(0xE0 | (c >> 12));
    out[1] = (char)(0x80 | ((c >> 6) & 0x3F));
    out[2] = (char)(0x80 | (c & 0x3F));
    return 3;
  }
  out[0] = (char)(0xF0 | (c >> 18));
  out[1] = (char)(0x80 | ((c >> 12) & 0x3F));
  out[2] = (char)(0x80 | ((c >> 6) & 0x3F));
  out[3] = (char)(0x80 | (c & 0x3F));
  return 4;
}

#ifndef MOHAWK_NO_STDIO
/* the whole file, mapped, or an error that names it */
static int mhk__bytes_open_or_fail(mhk_context *ctx, const char *path, mhk__bytes *out) {
  memset(out, 0, sizeof *out);
  if (mhk_failed(ctx)) return 0;
  const int error = mhk__bytes_open(path, out);
  if (error) mhk_fail(ctx, MHK_ERROR_FILE, "cannot read %s: %s", path, mhk__file_reason(error));
  return error == 0;
}

/* the same, read into memory of an arena */
static int mhk__bytes_read_or_fail(mhk_context *ctx, mhk__arena *a, const char *path, mhk__bytes *out) {
  mhk__input in;
  unsigned char *block = NULL;
  memset(out, 0, sizeof *out);
  if (mhk_failed(ctx)) return 0;
  int error = mhk__input_open(path, &in);
  if (!error) {
    block = (unsigned char *)mhk__arena_alloc(ctx, a, in.size + 1);
    if (block) error = mhk__input_read(&in, block);
    mhk__input_close(&in);
  }
  if (error) mhk_fail(ctx, MHK_ERROR_FILE, "cannot read %s: %s", path, mhk__file_reason(error));
  out->data = block;
  out->size = in.size;
  return !mhk_failed(ctx);
}

/* what went wrong while writing is an error that names the file */
static int mhk__output_ok(mhk_context *ctx, const mhk__output *o) {
  if (o->error && !mhk_failed(ctx)) mhk_fail(ctx, MHK_ERROR_FILE, "cannot write %s: %s", o->path, mhk__output_why(o));
  return !mhk_failed(ctx);
}

/* ends a file that was written, kept unless the context has failed */
static mhk_result mhk__output_close_or_fail(mhk_context *ctx, mhk__output *o) {
  const int keep = !mhk_failed(ctx);
  mhk__output_close(o, keep);
  if (mhk__output_ok(ctx, o) && keep) mhk__flush_folder(o->path);
  return mhk_error(ctx);
}
#endif

#ifndef MOHAWK_NO_STDIO
static int mhk__ends_with(const char *text, const char *end) {
  size_t n = strlen(text), k = strlen(end);
  return n >= k && memcmp(text + n - k, end, k) == 0;
}
#endif

/* ---- numbers: text to double and back, whatever the locale says about decimal points */

#define MHK__BIG_WORDS 136  /* 4352 bits: 800 digits over 10^1130, and 128 bits more */
#define MHK__BIG_DIGITS 800 /* 767 decide every double; the rest is one digit that says "and a little more" */

typedef struct mhk__big {
  int n;
  uint32_t w[MHK__BIG_WORDS];
} mhk__big;

static void mhk__big_muladd(mhk__big *x, uint32_t factor, uint32_t add) {
  uint64_t carry = add;
  for (int i = 0; i < x->n; i++) {
    carry += (uint64_t)x->w[i] * factor;
    x->w[i] = (uint32_t)carry;
    carry >>= 32;
  }
  if (carry && x->n < MHK__BIG_WORDS) x->w[x->n++] = (uint32_t)carry;
}

static int mhk__big_bits(const mhk__big *x) {
  if (x->n == 0) return 0;
  int bits = 32 * (x->n - 1);
  for (uint32_t top = x->w[x->n - 1]; top; top >>= 1) bits++;
  return bits;
}

static void mhk__big_shift(mhk__big *x, int bits) {
  int words = bits / 32, rest = bits % 32, i;
  if (bits == 0 || x->n == 0) return;
  for (i = x->n; i > 0; i--)
    if (i - 1 + words < MHK__BIG_WORDS) x->w[i - 1 + words] = x->w[i - 1];
  for (i = 0; i < words && i < MHK__BIG_WORDS; i++) x->w[i] = 0;
  x->n = x->n + words < MHK__BIG_WORDS ? x->n + words : MHK__BIG_WORDS;
  if (rest) mhk__big_muladd(x, (uint32_t)1 << rest, 0);
}

/* x -= y if x >= y; says whether it did */
static int mhk__big_subtract(mhk__big *x, const mhk__big *y) {
  uint64_t borrow = 0;
  if (x->n < y->n) return 0;
  if (x->n == y->n)
    for (int i = x->n - 1; i >= 0; i--) {
      if (x->w[i] > y->w[i]) break;
      if (x->w[i] < y->w[i]) return 0;
    }
  for (int i = 0; i < x->n; i++) {
    uint64_t less = (uint64_t)(i < y->n ? y->w[i] : 0) + borrow, have = x->w[i];
    borrow = have < less;
    x->w[i] = (uint32_t)(have - less);
  }
  while (x->n > 0 && x->w[x->n - 1] == 0) x->n--;
  return 1;
}

/* digits * 10^exponent, correctly rounded, by exact long division */
static double mhk__exact_double(const char *digits, int n, int exponent) {
  mhk__big a, b;
  uint64_t q = 0, rest, half;
  a.n = 0;
  b.n = 1;
  b.w[0] = 1;
  for (int i = 0; i < n; i++) mhk__big_muladd(&a, 10, (uint32_t)(digits[i] - '0'));
  for (int i = 0; i < exponent; i++) mhk__big_muladd(&a, 10, 0);
  for (int i = 0; i > exponent; i--) mhk__big_muladd(&b, 10, 0);
  const int shift = 63 - (mhk__big_bits(&a) - mhk__big_bits(&b)); /* q = a * 2^shift / b has 63 or 64 bits */
  if (shift >= 0)
    mhk__big_shift(&a, shift);
  else
    mhk__big_shift(&b, -shift);
  mhk__big_shift(&b, 63);
  for (int i = 0; i < 64; i++) {
    q = (q << 1) | (uint64_t)mhk__big_subtract(&a, &b);
    mhk__big_shift(&a, 1);
  }
  const int bits = q >> 63 ? 64 : 63;
  const int power = bits - 1 - shift; /* the value lies in [2^power, 2^(power+1)) */
  const int keep = power >= -1022 ? 53 : 53 - (-1022 - power);
  if (keep < 0) return 0.0;
  const int drop = bits - keep;
  rest = drop >= 64 ? q : q & (((uint64_t)1 << drop) - 1);
  half = (uint64_t)1 << (drop - 1);
  q = drop >= 64 ? 0 : q >> drop;
  if (rest > half || (rest == half && (a.n > 0 || (q & 1)))) q++;
  return ldexp((double)q, drop - shift);
}

/* The number at the start of text, in JSON's grammar; correctly rounded. */
static double mhk__parse_double(const char *text, size_t length) {
  char digits[MHK__BIG_DIGITS + 1];
  int n = 0, negative = 0, started = 0, dropped = 0, exponent = 0, fraction = 0;
  long written = 0;
  uint64_t mantissa = 0;
  size_t i = 0;
  double x;
  if (i < length && text[i] == '-') {
    negative = 1;
    i++;
  }
  if (length - i >= 8 && memcmp(text + i, "Infinity", 8) == 0) return negative ? -HUGE_VAL : HUGE_VAL;
  for (; i < length; i++) {
    char c = text[i];
    if (c == '.' && !fraction) {
      fraction = 1;
      continue;
    }
    if (c < '0' || c > '9') break;
    if (c != '0') started = 1;
    if (started && n < MHK__BIG_DIGITS) {
      digits[n++] = c;
      if (n <= 19) mantissa = mantissa * 10 + (uint64_t)(c - '0');
      if (fraction && exponent > -100000000) exponent--;
    } else {
      if (c != '0') dropped = 1;
      if (!fraction && started && exponent < 100000000) exponent++;
      if (fraction && !started && exponent > -100000000) exponent--;
    }
  }
  if (i < length && (text[i] == 'e' || text[i] == 'E')) {
    int minus = 0;
    i++;
    if (i < length && (text[i] == '-' || text[i] == '+')) minus = text[i++] == '-';
    for (; i < length && text[i] >= '0' && text[i] <= '9'; i++)
      if (written < 100000000) written = written * 10 + (text[i] - '0');
    exponent += (int)(minus ? -written : written);
  }
  while (n > 1 && digits[n - 1] == '0' && !dropped) {
    n--;
    exponent++;
    if (n < 19) mantissa /= 10;
  }
  if (n == 0)
    x = 0.0;
  else if (n + exponent > 310)
    x = HUGE_VAL;
  else if (n + exponent < -330)
    x = 0.0;
  else if (n <= 15 && exponent >= -22 && exponent <= 22) { /* both factors are exact, so one rounding is all there is */
    double p = 1.0;
    for (int k = exponent < 0 ? -exponent : exponent; k > 0; k--) p *= 10.0;
    x = exponent < 0 ? (double)mantissa / p : (double)mantissa * p;
  } else {
    if (dropped) {
      digits[n++] = '1';
      exponent--;
    }
    x = mhk__exact_double(digits, n, exponent);
  }
  return negative ? -x : x;
}

/* A double as text that reads back to the same bits, with few digits, as Python prints it: 1e-05, 0.1, 10000.0. Returns the length. */
static size_t mhk__format_double(double value, char out[32]) {
  char text[64], digits[20];
  int precision, n = 0, power = 0, i;
  size_t k = 0;
  if (!(value - value == 0.0)) {
    strcpy(out, value > 0 ? "Infinity" : value < 0 ? "-Infinity" : "NaN");
    return strlen(out);
  }
  if (value < 0 || (value == 0 && 1 / value < 0)) out[k++] = '-';
  if (value < 0) value = -value;
  for (precision = 15; precision <= 17; precision++) {
    const char *p = text;
    int negative = 0;
    mhk__print(text, sizeof text, "%.*e", precision - 1, value);
    for (n = 0; *p && *p != 'e'; p++) /* the decimal point may be anything */
      if (*p >= '0' && *p <= '9' && n < 17) digits[n++] = *p;
    power = 0;
    if (*p == 'e') p++;
    if (*p == '-' || *p == '+') negative = *p++ == '-';
    for (; *p >= '0' && *p <= '9'; p++) power = power * 10 + (*p - '0');
    if (negative) power = -power;
    while (n > 1 && digits[n - 1] == '0') n--;
    if (value == 0 || mhk__exact_double(digits, n, power - (n - 1)) == value) break;
  }
  if (power >= -4 && power < 16) {
    if (power < 0) {
      out[k++] = '0';
      out[k++] = '.';
      for (i = -1; i > power; i--) out[k++] = '0';
    }
    for (i = 0; i < n || i <= power; i++) {
      if (power >= 0 && i == power + 1) out[k++] = '.';
      out[k++] = i < n ? digits[i] : '0';
    }
    if (power >= 0 && n <= power + 1) {
      out[k++] = '.';
      out[k++] = '0';
    }
  } else {
    int p = power < 0 ? -power : power;
    for (i = 0; i < n; i++) {
      if (i == 1) out[k++] = '.';
      out[k++] = digits[i];
    }
    out[k++] = 'e';
    out[k++] = power < 0 ? '-' : '+';
    if (p >= 100) out[k++] = (char)('0' + p / 100);
    out[k++] = (char)('0' + p / 10 % 10);
    out[k++] = (char)('0' + p % 10);
  }
  out[k] = 0;
  return k;
}

/* ---- JSON in: strict (RFC 8259), bounded, in one pass; a key that stands twice in an object is an error */

typedef enum mhk__json_type {
  MHK__JSON_NULL = 1,
  MHK__JSON_FALSE,
  MHK__JSON_TRUE,
  MHK__JSON_NUMBER,
  MHK__JSON_STRING,
  MHK__JSON_ARRAY,
  MHK__JSON_OBJECT
} mhk__json_type;

/* One value. Children of arrays and objects are a list in the order of the file: for (x = v->first; x; x = x->next). */
typedef struct mhk__json {
  struct mhk__json *next, *first;
  const char *key;           /* members of objects: the key, UTF-8, 0-terminated; else NULL */
  const char *text;          /* strings: the UTF-8 text; numbers: as written; both 0-terminated */
  size_t key_length, length; /* bytes of key and text (a string may hold 0 bytes) */
  size_t at;                 /* where in the text, in bytes */
  mhk_index count;           /* arrays and objects: how many children */
  mhk__json_type type;
  int seen;                  /* a setting that was asked for */
} mhk__json;

#define MHK__JSON_DEPTH 100  /* brackets inside brackets */
#define MHK__JSON_INFINITY 1 /* flag: the words Infinity and -Infinity are numbers, as Python writes them */

typedef struct mhk__json_reader {
  mhk_context *ctx;
  mhk__arena *arena;
  const unsigned char *s;
  size_t n, at;
  const char *where;
  int flags;
  char *pool;       /* unescaped text: never longer than what it was written as */
  mhk__json *nodes; /* unused nodes of the last block */
  int nodes_left, block;
} mhk__json_reader;

static void mhk__json_fail(mhk__json_reader *r, size_t at, const char *expected) {
  char found[32];
  long long line = 1;
  for (size_t i = 0; i < at && i < r->n; i++) line += r->s[i] == '\n';
  if (at >= r->n)
    strcpy(found, "the end of the text");
  else if (r->s[at] > ' ' && r->s[at] < 0x7F)
    mhk__print(found, sizeof found, "'%c'", r->s[at]);
  else
    mhk__print(found, sizeof found, "the byte 0x%02X", (unsigned)r->s[at]);
  mhk_fail(r->ctx, MHK_ERROR_FORMAT, "%s, line %lld, byte %lld: expected %s, found %s", r->where, line, (long long)at, expected, found);
}

static void mhk__json_space(mhk__json_reader *r) {
  while (r->at < r->n && (r->s[r->at] == ' ' || r->s[r->at] == '\n' || r->s[r->at] == '\r' || r->s[r->at] == '\t')) r->at++;
}

static int mhk__json_hex4(const mhk__json_reader *r, size_t at, uint32_t *out) {
  uint32_t x = 0;
  if (r->n - at < 4) return 0;
  for (size_t i = 0; i < 4; i++) {
    unsigned c = r->s[at + i];
    unsigned digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : 16;
    if (digit == 16) return 0;
    x = x * 16 + digit;
  }
  *out = x;
  return 1;
}

/* the string whose opening quote is at r->at */
static int mhk__json_text(mhk__json_reader *r, const char **text, size_t *length) {
  char *start = r->pool, *out = r->pool;
  size_t i = r->at + 1;
  for (;;) {
    if (i >= r->n) {
      mhk__json_fail(r, i, "the closing quote of a string");
      return 0;
    }
    const unsigned c = r->s[i];
    if (c == '"') break;
    if (c < 0x20) {
      mhk__json_fail(r, i, "no control character inside a string (it must be escaped)");
      return 0;
    }
    if (c == '\\') {
      uint32_t code = 0, low = 0;
      unsigned e = i + 1 < r->n ? r->s[i + 1] : 0;
      char plain = e == '"'    ? '"'
                   : e == '\\' ? '\\'
                   : e == '/'  ? '/'
                   : e == 'b'  ? '\b'
                   : e == 'f'  ? '\f'
                   : e == 'n'  ? '\n'
                   : e == 'r'  ? '\r'
                   : e == 't'  ? '\t'
                               : 0;
      if (plain) {
        *out++ = plain;
        i += 2;
        continue;
      }
      if (e != 'u' || !mhk__json_hex4(r, i + 2, &code)) {
        mhk__json_fail(r, e == 'u' ? i + 2 : i + 1,
                       e == 'u' ? "four hexadecimal digits after \\u" : "one of \"\\/bfnrtu after a backslash");
        return 0;
      }
      i += 6;
      if (code >= 0xDC00 && code < 0xE000) {
        mhk__json_fail(r, i - 6, "no second half of a surrogate pair without its first");
        return 0;
      }
      if (code >= 0xD800 && code < 0xDC00) {
        if (r->n - i < 6 || r->s[i] != '\\' || r->s[i + 1] != 'u' || !mhk__json_hex4(r, i + 2, &low) || low < 0xDC00 || low > 0xDFFF) {
          mhk__json_fail(r, i, "the second half of a surrogate pair");
          return 0;
        }
        i += 6;
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
      }
      out += mhk__utf8_put(out, code);
    } else if (c < 0x80) {
      *out++ = (char)c;
      i++;
    } else {
      size_t k = mhk__utf8_length(r->s + i, r->n - i);
      if (k == 0) {
        mhk__json_fail(r, i, "valid UTF-8");
        return 0;
      }
      memcpy(out, r->s + i, k);
      out += k;
      i += k;
    }
  }
  *out = 0;
  *text = start;
  *length = (size_t)(out - start);
  r->pool = out + 1;
  r->at = i + 1;
  return 1;
}

static size_t mhk__json_digits(const mhk__json_reader *r, size_t i) {
  while (i < r->n && r->s[i] >= '0' && r->s[i] <= '9') i++;
  return i;
}

static int mhk__json_read_number(mhk__json_reader *r, mhk__json *v) {
  size_t i = r->at, start;
  if (i < r->n && r->s[i] == '-') i++;
  if ((r->flags & MHK__JSON_INFINITY) && r->n - i >= 8 && memcmp(r->s + i, "Infinity", 8) == 0)
    i += 8;
  else {
    start = i;
    i = mhk__json_digits(r, i);
    if (i == start) {
      mhk__json_fail(r, i, i == r->at ? "a value" : "a digit");
      return 0;
    }
    if (r->s[start] == '0' && i > start + 1) {
      mhk__json_fail(r, start + 1, "no digit after a leading zero");
      return 0;
    }
    if (i < r->n && r->s[i] == '.') {
      start = ++i;
      i = mhk__json_digits(r, i);
      if (i == start) {
        mhk__json_fail(r, i, "a digit after the decimal point");
        return 0;
      }
    }
    if (i < r->n && (r->s[i] == 'e' || r->s[i] == 'E')) {
      i++;
      if (i < r->n && (r->s[i] == '+' || r->s[i] == '-')) i++;
      start = i;
      i = mhk__json_digits(r, i);
      if (i == start) {
        mhk__json_fail(r, i, "a digit of the exponent");
        return 0;
      }
    }
  }
  v->type = MHK__JSON_NUMBER;
  v->text = r->pool;
  v->length = i - r->at;
  memcpy(r->pool, r->s + r->at, v->length);
  r->pool[v->length] = 0;
  r->pool += v->length + 1;
  r->at = i;
  return 1;
}

static int mhk__json_word(mhk__json_reader *r, mhk__json *v, const char *word, mhk__json_type type) {
  size_t k = strlen(word), i;
  for (i = 0; i < k; i++)
    if (r->at + i >= r->n || r->s[r->at + i] != (unsigned char)word[i]) {
      char expected[32];
      mhk__print(expected, sizeof expected, "the word %s", word);
      mhk__json_fail(r, r->at + i, expected);
      return 0;
    }
  r->at += k;
  v->type = type;
  return 1;
}

static mhk__json *mhk__json_new(mhk__json_reader *r) {
  if (r->nodes_left == 0) {
    r->block = r->block == 0 ? 16 : r->block < 4096 ? r->block * 2 : r->block;
    r->nodes = (mhk__json *)mhk__arena_zeros(r->ctx, r->arena, r->block, sizeof(mhk__json));
    if (!r->nodes) return NULL;
    r->nodes_left = r->block;
  }
  mhk__json *v = r->nodes++;
  r->nodes_left--;
  return v;
}

static int mhk__text_order(const char *a, size_t a_length, const char *b, size_t b_length) {
  int order = memcmp(a, b, a_length < b_length ? a_length : b_length);
  return order ? order : a_length < b_length ? -1 : a_length > b_length;
}

static int mhk__json_key_order(const void *a, const void *b) {
  const mhk__json *x = (const mhk__json *)a, *y = (const mhk__json *)b;
  return mhk__text_order(x->key, x->key_length, y->key, y->key_length);
}

static int mhk__json_keys_differ(mhk__json_reader *r, const mhk__json *object) {
  const mhk__json *x, *y, *twice = NULL;
  if (object->count <= 16) {
    for (x = object->first; x; x = x->next)
      for (y = object->first; y != x; y = y->next)
        if (mhk__json_key_order(x, y) == 0) twice = x;
  } else {
    mhk__mark mark = mhk__scratch_mark(r->ctx);
    const void **keys = (const void **)mhk__scratch(r->ctx, object->count, 2 * sizeof(void *));
    mhk_index i = 0;
    if (!keys) return 0;
    for (x = object->first; x; x = x->next) keys[i++] = x;
    mhk__sort(keys, keys + object->count, object->count, mhk__json_key_order);
    for (i = 1; i < object->count; i++)
      if (mhk__json_key_order(keys[i - 1], keys[i]) == 0) twice = (const mhk__json *)keys[i];
    mhk__scratch_rewind(r->ctx, mark);
  }
  if (twice) {
    long long line = 1;
    for (size_t i = 0; i < twice->at && i < r->n; i++) line += r->s[i] == '\n';
    mhk_fail(r->ctx, MHK_ERROR_FORMAT, "%s, line %lld, byte %lld: the key \"%.100s\" stands twice in one object", r->where, line,
             (long long)twice->at, twice->key);
  }
  return twice == NULL;
}

/* The tree of a text, in the arena; it does not need the text any more. where names the text in errors. */
static mhk__json *mhk__json_parse(mhk_context *ctx, mhk__arena *a, const char *json, size_t length, const char *where, int flags) {
  mhk__json_reader r;
  mhk__json *stack[MHK__JSON_DEPTH], *last[MHK__JSON_DEPTH], *root = NULL;
  const char *key = NULL;
  size_t key_length = 0;
  int depth = 0;
  if (mhk_failed(ctx)) return NULL;
  memset(&r, 0, sizeof r);
  r.ctx = ctx;
  r.arena = a;
  r.s = (const unsigned char *)json;
  r.n = length;
  r.where = where;
  r.flags = flags;
  if (length > (size_t)PTRDIFF_MAX - 1) {
    mhk_fail(ctx, MHK_ERROR_FORMAT, "%s is too long", where);
    return NULL;
  }
  r.pool = (char *)mhk__arena_alloc(ctx, a, length + 1);
  if (!r.pool) return NULL;
  for (;;) { /* one value a round, with what follows it */
    mhk__json *v = mhk__json_new(&r);
    int c, open = 0;
    if (!v) return NULL;
    mhk__json_space(&r);
    v->at = r.at;
    v->key = key;
    v->key_length = key_length;
    key = NULL;
    key_length = 0;
    if (depth == 0)
      root = v;
    else {
      if (last[depth - 1])
        last[depth - 1]->next = v;
      else
        stack[depth - 1]->first = v;
      last[depth - 1] = v;
      stack[depth - 1]->count++;
    }
    c = r.at < r.n ? r.s[r.at] : -1;
    if (c == '{' || c == '[') {
      if (depth == MHK__JSON_DEPTH) {
        mhk__json_fail(&r, r.at, "no more than 100 nested brackets");
        return NULL;
      }
      v->type = c == '{' ? MHK__JSON_OBJECT : MHK__JSON_ARRAY;
      stack[depth] = v;
      last[depth++] = NULL;
      r.at++;
      open = 1;
    } else if (c == '"') {
      v->type = MHK__JSON_STRING;
      if (!mhk__json_text(&r, &v->text, &v->length)) return NULL;
    } else if (c == 'n' || c == 't' || c == 'f') {
      if (!mhk__json_word(&r, v,
                          c == 'n'   ? "null"
                          : c == 't' ? "true"
                                     : "false",
                          c == 'n'   ? MHK__JSON_NULL
                          : c == 't' ? MHK__JSON_TRUE
                                     : MHK__JSON_FALSE))
        return NULL;
    } else if (!mhk__json_read_number(&r, v))
      return NULL;
    while (depth > 0) { /* commas and closing brackets, up to where the next value begins */
      const int object = stack[depth - 1]->type == MHK__JSON_OBJECT;
      int comma = 0;
      mhk__json_space(&r);
      c = r.at < r.n ? r.s[r.at] : -1;
      if (c == (object ? '}' : ']')) {
        r.at++;
        if (object && !mhk__json_keys_differ(&r, stack[depth - 1])) return NULL;
        depth--;
        open = 0;
        continue;
      }
      if (!open) {
        if (c != ',') {
          mhk__json_fail(&r, r.at, object ? "',' or '}'" : "',' or ']'");
          return NULL;
        }
        r.at++;
        comma = 1;
        mhk__json_space(&r);
      }
      if (object) {
        if (r.at >= r.n || r.s[r.at] != '"') {
          mhk__json_fail(&r, r.at, comma ? "a key in quotes" : "a key in quotes or '}'");
          return NULL;
        }
        if (!mhk__json_text(&r, &key, &key_length)) return NULL;
        mhk__json_space(&r);
        if (r.at >= r.n || r.s[r.at] != ':') {
          mhk__json_fail(&r, r.at, "':' after a key");
          return NULL;
        }
        r.at++;
      }
      break;
    }
    if (depth == 0) break;
  }
  mhk__json_space(&r);
  if (r.at < r.n) {
    mhk__json_fail(&r, r.at, "nothing more after the value");
    return NULL;
  }
  return root;
}

/* the member of an object, by linear search; NULL when object is NULL, something else, or has no such key */
static const mhk__json *mhk__json_get(const mhk__json *object, const char *key) {
  size_t n = strlen(key);
  if (!object || object->type != MHK__JSON_OBJECT) return NULL;
  for (const mhk__json *x = object->first; x; x = x->next)
    if (x->key_length == n && memcmp(x->key, key, n) == 0) return x;
  return NULL;
}

static int mhk__json_is(const mhk__json *x, mhk__json_type type) { return x && x->type == type; }

static int mhk__json_equals(const mhk__json *x, const char *text) {
  return x && x->type == MHK__JSON_STRING && x->length == strlen(text) && memcmp(x->text, text, x->length) == 0;
}

static const char *mhk__json_string(const mhk__json *x) { return x && x->type == MHK__JSON_STRING ? x->text : NULL; }

static double mhk__json_number(const mhk__json *x) {
  return x && x->type == MHK__JSON_NUMBER ? mhk__parse_double(x->text, x->length) : (double)NAN;
}

/* 1: x is a whole number (2048, also 2048.0 or 2e3) that fits */
static int mhk__json_integer(const mhk__json *x, int64_t *out) {
  uint64_t value = 0, most = (uint64_t)INT64_MAX;
  double d;
  if (!x || x->type != MHK__JSON_NUMBER) return 0;
  const char *p = x->text;
  const int negative = *p == '-';
  if (negative) p++;
  for (; *p >= '0' && *p <= '9'; p++) {
    unsigned digit = (unsigned)(*p - '0');
    if (value > (most - digit) / 10) return 0;
    value = value * 10 + digit;
  }
  if (*p) {
    d = mhk__parse_double(x->text, x->length);
    if (!(d >= -9007199254740992.0 && d <= 9007199254740992.0) || d != floor(d)) return 0;
    *out = (int64_t)d;
    return 1;
  }
  *out = negative ? -(int64_t)value : (int64_t)value;
  return 1;
}

/* ---- text and JSON out: into an arena, growing, or into a caller's buffer as far as it goes while the length counts on */

typedef struct mhk__writer {
  mhk_context *ctx;
  mhk__arena *arena;
  char *data; /* always 0-terminated; NULL before the first byte and after a failure */
  size_t length, room;
  int depth, compact, fresh; /* of the JSON being written: brackets open, no spaces and line ends, nothing in this bracket yet */
} mhk__writer;

static void mhk__write_to(mhk__writer *w, mhk_context *ctx, mhk__arena *a) {
  memset(w, 0, sizeof *w);
  w->ctx = ctx;
  w->arena = a;
}

static void mhk__write_into(mhk__writer *w, char *buffer, size_t room) {
  memset(w, 0, sizeof *w);
  w->data = room ? buffer : NULL;
  w->room = buffer ? room : 0;
  if (w->room) w->data[0] = 0;
}

static void mhk__write_bytes(mhk__writer *w, const char *text, size_t length) {
  if (w->arena) {
    if (mhk_failed(w->ctx)) return;
    if (length >= w->room - w->length || !w->data) {
      size_t room = w->room < 512 ? 1024 : w->room * 2;
      if (length > (size_t)PTRDIFF_MAX / 4 || w->length > (size_t)PTRDIFF_MAX / 4) {
        mhk_fail(w->ctx, MHK_ERROR_MEMORY, "a text of %.0f bytes does not fit this machine's memory", (double)w->length + (double)length);
        return;
      }
      if (room < w->length + length + 1) room = w->length + length + 1;
      char *data = (char *)mhk__arena_alloc(w->ctx, w->arena, room);
      if (!data) {
        w->data = NULL;
        return;
      }
      if (w->length) memcpy(data, w->data, w->length);
      w->data = data;
      w->room = room;
    }
    memcpy(w->data + w->length, text, length);
    w->data[w->length + length] = 0;
  } else if (w->room > w->length + 1) {
    size_t n = w->room - w->length - 1 < length ? w->room - w->length - 1 : length;
    memcpy(w->data + w->length, text, n);
    w->data[w->length + n] = 0;
  }
  w->length += length;
}

static void mhk__write_text(mhk__writer *w, const char *text) { mhk__write_bytes(w, text, strlen(text)); }

static void mhk__write_integer(mhk__writer *w, int64_t value) {
  char text[24];
  int n = 24;
  uint64_t rest = value < 0 ? (uint64_t)0 - (uint64_t)value : (uint64_t)value;
  do text[--n] = (char)('0' + (int)(rest % 10));
  while ((rest /= 10) != 0);
  if (value < 0) text[--n] = '-';
  mhk__write_bytes(w, text + n, (size_t)(24 - n));
}

static void mhk__write_double(mhk__writer *w, double value) {
  char text[32];
  mhk__write_bytes(w, text, mhk__format_double(value, text));
}

/* quoted and escaped; bytes that are no UTF-8 become U+FFFD */
static void mhk__write_string(mhk__writer *w, const char *text, size_t length) {
  size_t i = 0, from = 0;
  mhk__write_bytes(w, "\"", 1);
  while (i < length) {
    unsigned c = (unsigned char)text[i];
    char escape[8];
    size_t n = 2, k = mhk__utf8_length((const unsigned char *)text + i, length - i);
    escape[0] = '\\';
    if (c == '"' || c == '\\')
      escape[1] = (char)c;
    else if (c == '\n')
      escape[1] = 'n';
    else if (c == '\r')
      escape[1] = 'r';
    else if (c == '\t')
      escape[1] = 't';
    else if (c < 0x20)
      n = mhk__print(escape, sizeof escape, "\\u%04x", c);
    else if (k == 0)
      n = mhk__utf8_put(escape, 0xFFFD);
    else {
      i += k;
      continue;
    }
    mhk__write_bytes(w, text + from, i - from);
    mhk__write_bytes(w, escape, n);
    from = ++i;
  }
  mhk__write_bytes(w, text + from, length - from);
  mhk__write_bytes(w, "\"", 1);
}

static void mhk__write_line(mhk__writer *w) {
  if (w->compact) return;
  mhk__write_bytes(w, "\n", 1);
  for (int i = 0; i < w->depth; i++) mhk__write_bytes(w, "  ", 2);
}

/* before each value of an array */
static void mhk__write_item(mhk__writer *w) {
  if (!w->fresh) mhk__write_bytes(w, ",", 1);
  w->fresh = 0;
  mhk__write_line(w);
}

/* before each value of an object */
static void mhk__write_key(mhk__writer *w, const char *key) {
  mhk__write_item(w);
  mhk__write_string(w, key, strlen(key));
  mhk__write_text(w, w->compact ? ":" : ": ");
}

/* open '{' or '[' as a value; close '}' or ']' */
static void mhk__write_open(mhk__writer *w, char bracket) {
  mhk__write_bytes(w, &bracket, 1);
  w->depth++;
  w->fresh = 1;
}

static void mhk__write_close(mhk__writer *w, char bracket) {
  w->depth--;
  if (!w->fresh) mhk__write_line(w);
  mhk__write_bytes(w, &bracket, 1);
  w->fresh = 0;
}

/* ---- 16-bit floats */

static float mhk__bits_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

static uint32_t mhk__float_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

#ifndef MOHAWK_NO_STDIO
/* round to nearest, ties to even; NaN stays NaN */
static uint16_t mhk__pack_bf16(float x) {
  uint32_t bits = mhk__float_bits(x);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return (uint16_t)((bits >> 16) | 0x40u);
  return (uint16_t)((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

#endif

#if !defined(MOHAWK_NO_STDIO) || !defined(MOHAWK_NO_TRAINING)
static uint16_t mhk__pack_f16(float x) {
  uint32_t bits = mhk__float_bits(x), sign = (bits >> 16) & 0x8000u, rest, half, drop, out;
  bits &= 0x7FFFFFFFu;
  if (bits > 0x7F800000u) return (uint16_t)(sign | 0x7E00u);
  if (bits >= 0x477FF000u) return (uint16_t)(sign | 0x7C00u); /* 65520 and more round to infinity */
  if (bits >= 0x38800000u) {                                  /* normal */
    out = (bits - 0x38000000u) >> 13;
    rest = bits & 0x1FFFu;
    half = 0x1000u;
  } else if (bits >= 0x33000000u) { /* a multiple of 2^-24 */
    drop = 126 - (bits >> 23);
    bits = (bits & 0x7FFFFFu) | 0x800000u;
    out = bits >> drop;
    rest = bits & (((uint32_t)1 << drop) - 1);
    half = (uint32_t)1 << (drop - 1);
  } else
    return (uint16_t)sign;
  if (rest > half || (rest == half && (out & 1u))) out++;
  return (uint16_t)(sign | out);
}
#endif

/* a little-endian whole number of up to 8 bytes */
static uint64_t mhk__little(const unsigned char *p, size_t bytes) {
  uint64_t x = 0;
  while (bytes > 0) x = (x << 8) | p[--bytes];
  return x;
}

/* n elements of a little-endian array as mhk_real */
static void mhk__unpack(mhk_dtype dtype, const void *data, mhk_index n, mhk_real *out) {
  const unsigned char *p = (const unsigned char *)data;
  const size_t size = mhk_dtype_size(dtype);
  if (dtype == MHK_REAL && mhk__little_endian()) {
    if (n) memcpy(out, p, (size_t)n * size);
    return;
  }
  for (mhk_index i = 0; i < n; i++, p += size) {
    const uint64_t bits = mhk__little(p, size);
    switch (dtype) {
      case MHK_F32: out[i] = (mhk_real)mhk__bits_float((uint32_t)bits); break;
      case MHK_F64: {
        double x;
        memcpy(&x, &bits, sizeof x);
        out[i] = (mhk_real)x;
        break;
      }
      case MHK_F16: out[i] = (mhk_real)mhk__f16_to_f32((uint16_t)bits); break;
      case MHK_BF16: out[i] = (mhk_real)mhk__bf16_to_f32((uint16_t)bits); break;
      case MHK_I8: out[i] = (mhk_real)(bits & 0x80u ? (int)bits - 256 : (int)bits); break;
      case MHK_I16: out[i] = (mhk_real)(bits & 0x8000u ? (int)bits - 65536 : (int)bits); break;
      case MHK_I32: out[i] = (mhk_real)(bits & 0x80000000u ? (int64_t)bits - 4294967296 : (int64_t)bits); break;
      case MHK_I64: out[i] = bits >> 63 ? -(mhk_real)(~bits + 1) : (mhk_real)bits; break;
      default: out[i] = (mhk_real)bits; break;
    }
  }
}

/* n elements from the host's byte order to little-endian, or back; out may be data */
static void mhk__turn(const void *data, mhk_index n, size_t size, void *out) {
  const unsigned char *from = (const unsigned char *)data;
  unsigned char *to = (unsigned char *)out;
  if (mhk__little_endian() || size == 1) {
    if (n && out != data) memcpy(out, data, (size_t)n * size);
    return;
  }
  for (mhk_index i = 0; i < n; i++, from += size, to += size) {
    unsigned char turned[8];
    for (size_t k = 0; k < size; k++) turned[k] = from[size - 1 - k];
    memcpy(to, turned, size);
  }
}

#ifndef MOHAWK_NO_STDIO
/* the same from host memory (tensors in use) */
static void mhk__unpack_host(mhk_dtype dtype, const void *data, mhk_index n, mhk_real *out) {
  const size_t size = mhk_dtype_size(dtype);
  if (mhk__little_endian())
    mhk__unpack(dtype, data, n, out);
  else
    for (mhk_index i = 0; i < n; i++) {
      unsigned char turned[8];
      mhk__turn((const unsigned char *)data + (size_t)i * size, 1, size, turned);
      mhk__unpack(dtype, turned, 1, out + i);
    }
}
#endif

/* ---- safetensors in */

#define MHK__HEADER_MOST 100000000 /* bytes, the limit of the reference implementation */

typedef struct mhk__metadata {
  struct mhk__metadata *next;
  const char *key, *value;
  size_t length;
} mhk__metadata;

typedef struct mhk__shard {
  mhk__bytes bytes;
  const char *path, *name; /* name: without folder */
} mhk__shard;

typedef struct mhk__stored {
  mhk_file_tensor t; /* first: what the caller sees */
  const char *type;  /* as the file spells it, where t.dtype is 0 */
  int shard;
  size_t begin, end;
} mhk__stored;

struct mhk_file {
  mhk__object object;
  const char *path;
  mhk__shard *shards;
  int n_shards, n;
  mhk__stored **sorted; /* by name */
  mhk__metadata *metadata, *last_metadata;
};

static void mhk__file_destroy(void *object) {
  mhk_file *f = (mhk_file *)object;
  for (int i = 0; i < f->n_shards; i++) mhk__bytes_close(&f->shards[i].bytes);
}

static mhk_dtype mhk__dtype_named(const mhk__json *x) {
  for (int d = MHK_F32; d <= MHK_BOOL; d++)
    if (mhk__json_equals(x, mhk_dtype_name((mhk_dtype)d))) return (mhk_dtype)d;
  return (mhk_dtype)0;
}

static int mhk__stored_name_order(const void *a, const void *b) {
  return strcmp(((const mhk__stored *)a)->t.name, ((const mhk__stored *)b)->t.name);
}

static int mhk__stored_place_order(const void *a, const void *b) {
  const mhk__stored *x = (const mhk__stored *)a, *y = (const mhk__stored *)b;
  if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
  return x->end < y->end ? -1 : x->end > y->end;
}

/* one entry of a header */
static int mhk__read_entry(mhk_file *f, const char *path, const mhk__json *x, size_t room, mhk__stored *out) {
  mhk_context *ctx = f->object.ctx;
  const mhk__json *dtype = mhk__json_get(x, "dtype"), *shape = mhk__json_get(x, "shape"), *offsets = mhk__json_get(x, "data_offsets"), *s;
  mhk_index count = 1;
  int64_t begin, end, size;
  int i = 0;
  if (memchr(x->key, 0, x->key_length))
    return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: the tensor name \"%.200s...\" holds a zero byte", path, x->key), 0;
  if (!mhk__json_is(dtype, MHK__JSON_STRING) || !mhk__json_is(shape, MHK__JSON_ARRAY) || !mhk__json_is(offsets, MHK__JSON_ARRAY) ||
      offsets->count != 2)
    return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: tensor %.200s needs \"dtype\", \"shape\" and \"data_offsets\" of two numbers", path,
                    x->key),
           0;
  out->t.dtype = mhk__dtype_named(dtype);
  if (!out->t.dtype)
    out->type =
        mhk__arena_text(ctx, &f->object.arena, dtype->text, strlen(dtype->text) < 40 ? strlen(dtype->text) : 40);
  for (i = 0; i < MHK_MAX_RANK; i++) out->t.shape[i] = 1;
  out->t.rank = shape->count < MHK_MAX_RANK ? (int)shape->count : MHK_MAX_RANK;
  const size_t element = mhk_dtype_size(out->t.dtype);
  for (s = shape->first, i = 0; s; s = s->next, i++) {
    const mhk_index last = i < MHK_MAX_RANK ? 1 : out->t.shape[MHK_MAX_RANK - 1];
    if (!mhk__json_integer(s, &size) || size < 0 || (uint64_t)size > (uint64_t)PTRDIFF_MAX ||
        (size > 0 && (count > PTRDIFF_MAX / (mhk_index)size / (mhk_index)(element ? element : 1) ||
                      last > PTRDIFF_MAX / (mhk_index)size)))
      return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: axis %d of tensor %.200s has an impossible size", path, i, x->key), 0;
    out->t.shape[i < MHK_MAX_RANK ? i : MHK_MAX_RANK - 1] = last * (mhk_index)size;
    count *= (mhk_index)size;
  }
  if (!mhk__json_integer(offsets->first, &begin) || !mhk__json_integer(offsets->first->next, &end) || begin < 0 || end < begin ||
      (uint64_t)end > (uint64_t)room)
    return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: tensor %.200s claims bytes %.24s to %.24s of the data, which has %lld bytes", path, x->key,
                    mhk__json_is(offsets->first, MHK__JSON_NUMBER) ? offsets->first->text : "?",
                    mhk__json_is(offsets->first->next, MHK__JSON_NUMBER) ? offsets->first->next->text : "?", (long long)room),
           0;
  out->t.count = count;
  out->t.bytes = out->t.dtype ? (size_t)count * element : (size_t)(end - begin);
  if ((uint64_t)(end - begin) != (uint64_t)out->t.bytes) {
    char text[160];
    return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: tensor %.200s of shape %s and type %s needs %lld bytes, its data_offsets give %lld", path,
                    x->key, mhk__shape_text(out->t.rank, out->t.shape, text, sizeof text), mhk_dtype_name(out->t.dtype),
                    (long long)out->t.bytes, (long long)(end - begin)),
           0;
  }
  out->begin = (size_t)begin;
  out->end = (size_t)end;
  out->t.name = mhk__arena_text(ctx, &f->object.arena, x->key, x->key_length);
  return out->t.name != NULL;
}

/* Reads the header of a shard; its tensors go to *entries, *n of them. Scratch is the caller's to rewind. */
static int mhk__read_header(mhk_file *f, int shard, mhk__stored **entries, int *n) {
  mhk_context *ctx = f->object.ctx;
  const char *path = f->shards[shard].path;
  const mhk__bytes *b = &f->shards[shard].bytes;
  size_t room, at = 0;
  mhk_index count, i = 0;
  char where[512];
  if (b->size < 8)
    return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s has %lld bytes: a safetensors file starts with 8 bytes of header length", path,
                    (long long)b->size),
           0;
  const uint64_t length = mhk__little(b->data, 8);
  if (length > MHK__HEADER_MOST || length > b->size - 8)
    return mhk_fail(ctx, MHK_ERROR_FORMAT,
                    "%s is no safetensors file (nor one of PyTorch 1.6 or later), or is cut off: its first 8 bytes announce a header of %llu "
                    "bytes, the file has %lld bytes in all",
                    path, (unsigned long long)length, (long long)b->size),
           0;
  room = b->size - 8 - (size_t)length;
  mhk__print(where, sizeof where, "the header of %.480s", path);
  while (at < length && b->data[8 + at] && strchr(" \t\r\n", b->data[8 + at])) at++;
  if (at == length || b->data[8 + at] != '{')
    return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s does not start with '{'", where), 0;
  at = 0;
  const mhk__json *root = mhk__json_parse(ctx, &ctx->scratch, (const char *)b->data + 8, (size_t)length, where, 0);
  if (!root) return 0;
  const mhk__json *m = mhk__json_get(root, "__metadata__");
  if (m && m->type != MHK__JSON_NULL) {
    if (m->type != MHK__JSON_OBJECT) return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: __metadata__ must be an object of texts", where), 0;
    for (const mhk__json *x = m->first; x; x = x->next) {
      mhk__metadata *y = (mhk__metadata *)mhk__arena_zeros(ctx, &f->object.arena, 1, sizeof *y);
      if (!y) return 0;
      if (x->type != MHK__JSON_STRING)
        return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: the value of \"%.100s\" in __metadata__ must be a text", where, x->key), 0;
      y->key = mhk__arena_text(ctx, &f->object.arena, x->key, x->key_length);
      y->value = mhk__arena_text(ctx, &f->object.arena, x->text, x->length);
      y->length = x->length;
      if (!y->key || !y->value) return 0;
      if (f->last_metadata)
        f->last_metadata->next = y;
      else
        f->metadata = y;
      f->last_metadata = y;
    }
  }
  count = root->count - (m ? 1 : 0);
  if (count > INT_MAX / 2) return mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "%s holds too many tensors", path), 0;
  *entries = (mhk__stored *)mhk__arena_zeros(ctx, &f->object.arena, count, sizeof(mhk__stored));
  const void **order = (const void **)mhk__scratch(ctx, count, 2 * sizeof(void *));
  if (!*entries || !order) return 0;
  *n = (int)count;
  for (const mhk__json *x = root->first; x; x = x->next) {
    mhk__stored *e = *entries + i;
    if (x == m) continue;
    if (!mhk__read_entry(f, path, x, room, e)) return 0;
    e->shard = shard;
    e->t.data = b->data + 8 + (size_t)length + e->begin;
    order[i++] = e;
  }
  /* the tensors must cover the data without holes or overlaps: nothing hidden, nothing shared */
  mhk__sort(order, order + count, count, mhk__stored_place_order);
  for (i = 0; i < count; i++) {
    const mhk__stored *e = (const mhk__stored *)order[i];
    if (e->begin != at)
      return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: tensor %.200s starts at byte %lld of the data, %lld expected: there is %s before it",
                      path, e->t.name, (long long)e->begin, (long long)at, e->begin < at ? "an overlap" : "a hole"),
             0;
    at = e->end;
  }
  if (at != room)
    return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s has %lld bytes of data, its tensors account for %lld", path, (long long)room, (long long)at),
           0;
  return 1;
}

#ifndef MOHAWK_NO_STDIO
/* ---- PyTorch's files in: a zip archive of raw tensors, and a pickle that describes them

   The pickle is a program for a stack machine. This reader knows the 31 instructions that torch.save needs for a dictionary of tensors
   (protocol 2), and the names of its storages and of four functions, which stand for what is done here; nothing is looked up or called.
   Its memory and time grow with the bytes of the pickle, whatever these say: no shared value is ever unfolded. */

#define MHK__ZIP_ENTRY 0x04034B50u    /* signatures of APPNOTE.TXT 6.3: a local header, */
#define MHK__ZIP_DIRECTORY 0x02014B50u /* an entry of the directory, */
#define MHK__ZIP_END 0x06054B50u       /* its end, */
#define MHK__ZIP_END64 0x06064B50u     /* its end with sizes of 64 bits */
#define MHK__ZIP_LOCATOR 0x07064B50u   /* and where that is */
#define MHK__PICKLE_MOST ((size_t)1 << 23) /* bytes: room for about 50000 tensors */

typedef struct mhk__packed {
  const unsigned char *name;
  size_t name_length, header, begin, bytes; /* header: where the entry starts; begin: where its bytes do */
  uint32_t crc;                             /* 0: unknown */
} mhk__packed;

static int mhk__packed_place_order(const void *a, const void *b) {
  const mhk__packed *x = (const mhk__packed *)a, *y = (const mhk__packed *)b;
  return x->header < y->header ? -1 : x->header > y->header;
}

static int mhk__packed_name_order(const void *a, const void *b) {
  const mhk__packed *x = (const mhk__packed *)a, *y = (const mhk__packed *)b;
  return mhk__text_order((const char *)x->name, x->name_length, (const char *)y->name, y->name_length);
}

/* text from a file as part of a message: what is not printable becomes '?' */
static const char *mhk__printable(const unsigned char *text, size_t length, char out[64]) {
  size_t i, n = length < 60 ? length : 60;
  for (i = 0; i < n; i++) out[i] = (char)(text[i] >= 0x20 && text[i] < 0x7F ? text[i] : '?');
  strcpy(out + n, length > n ? "..." : "");
  return out;
}

/* one entry of the directory, `left` bytes before its end; the bytes it takes, or 0 */
static size_t mhk__zip_entry(mhk_context *ctx, const char *path, const mhk__bytes *b, size_t directory, const unsigned char *p, size_t left, mhk__packed *out) {
  size_t at;
  const unsigned char *x;
  char shown[64];
  if (left < 46 || mhk__little(p, 4) != MHK__ZIP_DIRECTORY) return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: its zip directory is damaged", path), (size_t)0;
  const unsigned flags = (unsigned)mhk__little(p + 8, 2);
  const unsigned method = (unsigned)mhk__little(p + 10, 2);
  uint64_t packed = mhk__little(p + 20, 4);
  uint64_t bytes = mhk__little(p + 24, 4);
  uint64_t header = mhk__little(p + 42, 4);
  const size_t name = (size_t)mhk__little(p + 28, 2);
  const size_t extra = (size_t)mhk__little(p + 30, 2);
  const size_t whole = 46 + name + extra + (size_t)mhk__little(p + 32, 2);
  if (whole > left) return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: its zip directory is damaged", path), (size_t)0;
  mhk__printable(p + 46, name, shown);
  for (x = p + 46 + name, at = 0; extra - at >= 4;) { /* sizes that need 64 bits stand in the field of id 1, in this order */
    const size_t id = (size_t)mhk__little(x + at, 2), end = at + 4 + (size_t)mhk__little(x + at + 2, 2);
    if (end > extra) break;
    at += 4;
    if (id == 1) {
      uint64_t *fields[3];
      fields[0] = &bytes, fields[1] = &packed, fields[2] = &header;
      for (int i = 0; i < 3; i++)
        if (*fields[i] == 0xFFFFFFFFu && end - at >= 8) {
          *fields[i] = mhk__little(x + at, 8);
          at += 8;
        }
    }
    at = end;
  }
  if (flags & 1) return mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "%s: its entry %s is encrypted", path, shown), (size_t)0;
  if (method != 0)
    return mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "%s: its entry %s is compressed (zip method %u); torch.save stores tensors as they are, and only that is read",
                    path, shown, method),
           (size_t)0;
  const unsigned char *local = b->data + (header <= directory ? (size_t)header : 0);
  if (header > directory || directory - (size_t)header < 30 || mhk__little(local, 4) != MHK__ZIP_ENTRY || mhk__little(local + 8, 2) != 0 ||
      mhk__little(local + 26, 2) != name)
    return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: its zip directory says that %s starts at byte %llu, where it does not", path, shown,
                    (unsigned long long)header),
           (size_t)0;
  out->header = (size_t)header;
  out->begin = 30 + name + (size_t)mhk__little(local + 28, 2);
  if (out->begin > directory - out->header || packed != bytes || bytes > directory - out->header - out->begin)
    return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: its entry %s claims %llu bytes from byte %llu on; the file has %lld bytes", path, shown,
                    (unsigned long long)bytes, (unsigned long long)(out->header + out->begin), (long long)b->size),
           (size_t)0;
  if (memcmp(local + 30, p + 46, name) != 0)
    return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: its entry %s has another name in the zip directory", path, shown), (size_t)0;
  out->begin += out->header;
  out->bytes = (size_t)bytes;
  out->name = p + 46;
  out->name_length = name;
  out->crc = (uint32_t)mhk__little(p + 16, 4);
  return whole;
}

/* The entries of an archive, sorted by name, none twice, none over another. In scratch. */
static const mhk__packed **mhk__zip_entries(mhk_context *ctx, const char *path, const mhk__bytes *b, mhk_index *count) {
  const size_t least = b->size > 65557 ? b->size - 65557 : 0;
  size_t end, at, size, whole;
  mhk__packed *entries;
  mhk_index i;
  char shown[64];
  for (end = b->size >= 22 ? b->size - 22 : 0; b->size >= 22; end--) { /* a comment of any length may stand behind it */
    if (mhk__little(b->data + end, 4) == MHK__ZIP_END && mhk__little(b->data + end + 20, 2) == b->size - end - 22) break;
    if (end == least) break;
  }
  const unsigned char *p = b->data + end;
  if (b->size < 22 || mhk__little(p, 4) != MHK__ZIP_END || mhk__little(p + 20, 2) != b->size - end - 22)
    return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s starts like a zip archive and has no directory at its end: it is cut off", path), (const mhk__packed **)NULL;
  uint64_t n = mhk__little(p + 10, 2);
  uint64_t length = mhk__little(p + 12, 4);
  uint64_t start = mhk__little(p + 16, 4);
  if (end >= 20 && mhk__little(p - 20, 4) == MHK__ZIP_LOCATOR) {
    const uint64_t record = mhk__little(p - 12, 8);
    if (end < 76 || record > end - 76 || mhk__little(b->data + (size_t)record, 4) != MHK__ZIP_END64)
      return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: the end of its zip directory is damaged", path), (const mhk__packed **)NULL;
    end = (size_t)record;
    n = mhk__little(b->data + end + 32, 8);
    length = mhk__little(b->data + end + 40, 8);
    start = mhk__little(b->data + end + 48, 8);
  }
  if (start > end || length != end - start || n > length / 46)
    return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: its zip directory of %llu entries cannot be the %llu bytes from byte %llu on", path, (unsigned long long)n,
                    (unsigned long long)length, (unsigned long long)start),
           (const mhk__packed **)NULL;
  *count = (mhk_index)n;
  entries = (mhk__packed *)mhk__scratch(ctx, *count, sizeof *entries);
  const void **order = (const void **)mhk__scratch(ctx, *count, 2 * sizeof(void *));
  if (!entries || !order) return NULL;
  for (i = 0, at = (size_t)start, size = (size_t)length; i < *count; i++, at += whole, size -= whole) {
    whole = mhk__zip_entry(ctx, path, b, (size_t)start, b->data + at, size, &entries[i]);
    if (whole == 0) return NULL;
    order[i] = &entries[i];
  }
  if (size != 0) return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: its zip directory is damaged", path), (const mhk__packed **)NULL;
  mhk__sort(order, order + *count, *count, mhk__packed_place_order);
  for (i = 1; i < *count; i++) {
    const mhk__packed *x = (const mhk__packed *)order[i - 1], *y = (const mhk__packed *)order[i];
    if (x->begin + x->bytes > y->header)
      return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: its entry %s overlaps the one before it", path, mhk__printable(y->name, y->name_length, shown)),
             (const mhk__packed **)NULL;
  }
  mhk__sort(order, order + *count, *count, mhk__packed_name_order);
  for (i = 1; i < *count; i++)
    if (mhk__packed_name_order(order[i - 1], order[i]) == 0)
      return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: its entry %s stands twice", path,
                      mhk__printable(((const mhk__packed *)order[i])->name, ((const mhk__packed *)order[i])->name_length, shown)),
             (const mhk__packed **)NULL;
  return (const mhk__packed **)order;
}

/* CRC-32 as zip has it (ISO 3309) */
static uint32_t mhk__crc32(const unsigned char *p, size_t n) {
  uint32_t table[16], crc = 0xFFFFFFFFu, i;
  for (i = 0; i < 16; i++) {
    uint32_t x = i;
    for (int bit = 0; bit < 4; bit++) x = x & 1 ? (x >> 1) ^ 0xEDB88320u : x >> 1;
    table[i] = x;
  }
  for (size_t at = 0; at < n; at++) {
    crc ^= p[at];
    crc = (crc >> 4) ^ table[crc & 15];
    crc = (crc >> 4) ^ table[crc & 15];
  }
  return crc ^ 0xFFFFFFFFu;
}

typedef enum mhk__pickled_type {
  MHK__PICKLED_OTHER = 1, /* None, lists, floats: what tensors do not need */
  MHK__PICKLED_MARK,
  MHK__PICKLED_BOOL,
  MHK__PICKLED_INTEGER,
  MHK__PICKLED_TEXT,
  MHK__PICKLED_TUPLE,
  MHK__PICKLED_DICTIONARY,
  MHK__PICKLED_PAIR, /* of a dictionary */
  MHK__PICKLED_STORAGE_TYPE,
  MHK__PICKLED_ORDERED_DICTIONARY, /* functions */
  MHK__PICKLED_REBUILD_TENSOR,
  MHK__PICKLED_REBUILD_PARAMETER,
  MHK__PICKLED_STORAGE,
  MHK__PICKLED_TENSOR
} mhk__pickled_type;

typedef struct mhk__pickled {
  mhk__pickled_type type;
  mhk_dtype dtype;              /* storages and their types, tensors */
  int64_t n;                    /* the integer; bytes of the text; items of the tuple; elements of the storage */
  const unsigned char *bytes;   /* text; storage; first element of the tensor */
  struct mhk__pickled **items;  /* of the tuple */
  struct mhk__pickled *first, *last, *next; /* pairs of the dictionary */
  struct mhk__pickled *key, *value;         /* of the pair */
  mhk_index shape[MHK_MAX_RANK], stride[MHK_MAX_RANK], count; /* tensors; strides in elements */
  int rank, gather;             /* gather: the elements do not stand in order */
} mhk__pickled;

typedef struct mhk__unpickler {
  mhk_context *ctx;
  const char *path;
  const mhk__bytes *file;
  const mhk__packed *const *entries;
  mhk_index n_entries;
  const unsigned char *prefix; /* of all entries' names */
  size_t prefix_length;
  const unsigned char *p;
  size_t n, at, op; /* op: where the instruction stands */
  mhk__pickled **stack, **memo;
  size_t depth, stack_room, memo_room;
  mhk__pickled *spare;
  int spares;
} mhk__unpickler;

#if defined(__GNUC__) || defined(__clang__)
__attribute__((format(printf, 3, 4)))
#endif
static int mhk__pickle_fail(mhk__unpickler *r, mhk_result code, const char *format, ...) {
  char text[512];
  va_list args;
  va_start(args, format);
  mhk__vprint(text, sizeof text, format, args);
  va_end(args);
  mhk_fail(r->ctx, code, "%s, byte %lld of its pickle: %s", r->path, (long long)r->op, text);
  return 0;
}

static mhk__pickled *mhk__pickle_node(mhk__unpickler *r, mhk__pickled_type type) {
  mhk__pickled *x;
  if (r->spares == 0) {
    r->spare = (mhk__pickled *)mhk__arena_zeros(r->ctx, &r->ctx->scratch, 64, sizeof *x);
    if (!r->spare) return NULL;
    r->spares = 64;
  }
  x = r->spare++;
  r->spares--;
  x->type = type;
  return x;
}

/* room for `need` pointers in a list */
static int mhk__pickle_room(mhk__unpickler *r, mhk__pickled ***list, size_t *room, size_t need) {
  size_t more = *room ? *room : 64;
  mhk__pickled **larger;
  if (need <= *room) return 1;
  while (more < need) more *= 2;
  larger = (mhk__pickled **)mhk__arena_zeros(r->ctx, &r->ctx->scratch, (mhk_index)more, sizeof *larger);
  if (!larger) return 0;
  if (*room) memcpy(larger, *list, *room * sizeof *larger);
  *list = larger;
  *room = more;
  return 1;
}

static int mhk__pickle_push(mhk__unpickler *r, mhk__pickled *x) {
  if (!x || !mhk__pickle_room(r, &r->stack, &r->stack_room, r->depth + 1)) return 0;
  r->stack[r->depth++] = x;
  return 1;
}

/* the value on top, which must be of a type (0: any but a mark) */
static mhk__pickled *mhk__pickle_top(mhk__unpickler *r, int type, const char *what) {
  mhk__pickled *x = r->depth ? r->stack[r->depth - 1] : NULL;
  if (x && (type ? (int)x->type == type : x->type != MHK__PICKLED_MARK)) return x;
  mhk__pickle_fail(r, MHK_ERROR_FORMAT, "the instruction needs %s and finds %s", what, x ? "something else" : "nothing");
  return NULL;
}

static mhk__pickled *mhk__pickle_pop(mhk__unpickler *r, int type, const char *what) {
  mhk__pickled *x = mhk__pickle_top(r, type, what);
  if (x) r->depth--;
  return x;
}

/* takes off everything down to the last mark, and the mark; what was taken stays at *items until something is pushed */
static int mhk__pickle_marked(mhk__unpickler *r, mhk__pickled ***items, size_t *n) {
  size_t at = r->depth;
  while (at > 0 && r->stack[at - 1]->type != MHK__PICKLED_MARK) at--;
  if (at == 0) return mhk__pickle_fail(r, MHK_ERROR_FORMAT, "the instruction needs a mark and finds none");
  *items = r->stack + at;
  *n = r->depth - at;
  r->depth = at - 1;
  return 1;
}

static int mhk__pickle_tuple(mhk__unpickler *r, mhk__pickled **items, size_t n) {
  mhk__pickled *x = mhk__pickle_node(r, MHK__PICKLED_TUPLE);
  if (!x) return 0;
  x->n = (int64_t)n;
  if (n) {
    x->items = (mhk__pickled **)mhk__scratch(r->ctx, (mhk_index)n, sizeof *items);
    if (!x->items) return 0;
    memcpy(x->items, items, n * sizeof *items);
  }
  return mhk__pickle_push(r, x);
}

static int mhk__pickle_pair(mhk__unpickler *r, mhk__pickled *dictionary, mhk__pickled *key, mhk__pickled *value) {
  mhk__pickled *x = mhk__pickle_node(r, MHK__PICKLED_PAIR);
  if (!x) return 0;
  x->key = key;
  x->value = value;
  if (dictionary->last)
    dictionary->last->next = x;
  else
    dictionary->first = x;
  dictionary->last = x;
  return 1;
}

static int mhk__pickled_is(const mhk__pickled *x, const char *text) {
  return x->type == MHK__PICKLED_TEXT && (size_t)x->n == strlen(text) && memcmp(x->bytes, text, (size_t)x->n) == 0;
}

static int mhk__pickle_global(mhk__unpickler *r) {
  static const struct {
    char name[40]; /* module and name, as they stand in the file */
    mhk__pickled_type type;
    mhk_dtype dtype;
  } known[] = {{"collections\nOrderedDict\n", MHK__PICKLED_ORDERED_DICTIONARY, MHK_F32},
               {"torch._utils\n_rebuild_tensor_v2\n", MHK__PICKLED_REBUILD_TENSOR, MHK_F32},
               {"torch._utils\n_rebuild_parameter\n", MHK__PICKLED_REBUILD_PARAMETER, MHK_F32},
               {"torch\nFloatStorage\n", MHK__PICKLED_STORAGE_TYPE, MHK_F32},
               {"torch\nHalfStorage\n", MHK__PICKLED_STORAGE_TYPE, MHK_F16},
               {"torch\nBFloat16Storage\n", MHK__PICKLED_STORAGE_TYPE, MHK_BF16},
               {"torch\nDoubleStorage\n", MHK__PICKLED_STORAGE_TYPE, MHK_F64},
               {"torch\nCharStorage\n", MHK__PICKLED_STORAGE_TYPE, MHK_I8},
               {"torch\nByteStorage\n", MHK__PICKLED_STORAGE_TYPE, MHK_U8},
               {"torch\nShortStorage\n", MHK__PICKLED_STORAGE_TYPE, MHK_I16},
               {"torch\nIntStorage\n", MHK__PICKLED_STORAGE_TYPE, MHK_I32},
               {"torch\nLongStorage\n", MHK__PICKLED_STORAGE_TYPE, MHK_I64},
               {"torch\nBoolStorage\n", MHK__PICKLED_STORAGE_TYPE, MHK_BOOL}};
  size_t length = 0, n_lines, i;
  char shown[64];
  for (n_lines = 0; n_lines < 2; length++) {
    if (r->at + length >= r->n) return mhk__pickle_fail(r, MHK_ERROR_FORMAT, "a name without its end");
    if (r->p[r->at + length] == '\n') n_lines++;
  }
  for (i = 0; i < sizeof known / sizeof known[0]; i++)
    if (length == strlen(known[i].name) && memcmp(r->p + r->at, known[i].name, length) == 0) {
      mhk__pickled *x = mhk__pickle_node(r, known[i].type);
      if (!x) return 0;
      x->dtype = known[i].dtype;
      r->at += length;
      return mhk__pickle_push(r, x);
    }
  mhk__printable(r->p + r->at, length - 1, shown);
  for (char *c = shown; *c; c++)
    if (*c == '?') *c = '.';
  return mhk__pickle_fail(r, MHK_ERROR_UNSUPPORTED, "it names %s, which a dictionary of tensors does not need: refused", shown);
}

/* ("storage", type, key, location, elements): the bytes of the entry data/key */
static int mhk__pickle_storage(mhk__unpickler *r) {
  mhk__pickled *args = mhk__pickle_pop(r, MHK__PICKLED_TUPLE, "a tuple that describes a storage"), **x, *out;
  char name[300], shown[64];
  const mhk__packed *found = NULL;
  mhk__packed wanted;
  mhk_index low = 0, high = r->n_entries;
  if (!args) return 0;
  x = args->items;
  if (args->n != 5 || !mhk__pickled_is(x[0], "storage") || x[1]->type != MHK__PICKLED_STORAGE_TYPE || x[2]->type != MHK__PICKLED_TEXT ||
      x[3]->type != MHK__PICKLED_TEXT || x[4]->type != MHK__PICKLED_INTEGER)
    return mhk__pickle_fail(r, MHK_ERROR_FORMAT, "this does not describe a storage: (\"storage\", type, key, location, elements) is needed");
  if (r->prefix_length + (size_t)x[2]->n > sizeof name - 8) return mhk__pickle_fail(r, MHK_ERROR_FORMAT, "the key of a storage is too long");
  memcpy(name, r->prefix, r->prefix_length);
  memcpy(name + r->prefix_length, "data/", 5);
  memcpy(name + r->prefix_length + 5, x[2]->bytes, (size_t)x[2]->n);
  wanted.name = (const unsigned char *)name;
  wanted.name_length = r->prefix_length + 5 + (size_t)x[2]->n;
  while (low < high) {
    const mhk_index middle = low + (high - low) / 2;
    const int order = mhk__packed_name_order(&wanted, r->entries[middle]);
    if (order == 0) {
      found = r->entries[middle];
      break;
    }
    if (order < 0)
      high = middle;
    else
      low = middle + 1;
  }
  if (!found)
    return mhk__pickle_fail(r, MHK_ERROR_FORMAT, "the storage %s is not in the archive", mhk__printable(wanted.name, wanted.name_length, shown));
  const size_t size = mhk_dtype_size(x[1]->dtype);
  if (x[4]->n < 0 || (uint64_t)x[4]->n > (uint64_t)(found->bytes / size) || (size_t)x[4]->n * size != found->bytes)
    return mhk__pickle_fail(r, MHK_ERROR_FORMAT, "the storage %s should have %lld elements of type %s, its entry has %lld bytes",
                            mhk__printable(wanted.name, wanted.name_length, shown), (long long)x[4]->n, mhk_dtype_name(x[1]->dtype),
                            (long long)found->bytes);
  out = mhk__pickle_node(r, MHK__PICKLED_STORAGE);
  if (!out) return 0;
  out->dtype = x[1]->dtype;
  out->n = x[4]->n;
  out->bytes = r->file->data + found->begin;
  return mhk__pickle_push(r, out);
}

/* (storage, offset, shape, strides, requires_grad, hooks) */
static int mhk__pickle_tensor(mhk__unpickler *r, const mhk__pickled *args) {
  mhk__pickled **x = args->items, *out;
  int64_t last, next = 1, count = 1, whole = 1;
  int i, empty = 0;
  if (args->n != 6 || x[0]->type != MHK__PICKLED_STORAGE || x[1]->type != MHK__PICKLED_INTEGER || x[2]->type != MHK__PICKLED_TUPLE ||
      x[3]->type != MHK__PICKLED_TUPLE || x[2]->n != x[3]->n || x[4]->type != MHK__PICKLED_BOOL || x[5]->type != MHK__PICKLED_DICTIONARY)
    return mhk__pickle_fail(r, MHK_ERROR_FORMAT, "this does not describe a tensor: (storage, offset, shape, strides, requires_grad, hooks) is needed");
  if (x[2]->n > MHK_MAX_RANK)
    return mhk__pickle_fail(r, MHK_ERROR_UNSUPPORTED, "a tensor with %lld axes; this version reads up to %d", (long long)x[2]->n, MHK_MAX_RANK);
  out = mhk__pickle_node(r, MHK__PICKLED_TENSOR);
  if (!out) return 0;
  out->dtype = x[0]->dtype;
  out->rank = (int)x[2]->n;
  for (i = 0; i < MHK_MAX_RANK; i++) out->shape[i] = 1;
  last = x[1]->n;
  if (last < 0 || last > x[0]->n) return mhk__pickle_fail(r, MHK_ERROR_FORMAT, "a tensor that starts outside its storage of %lld elements", (long long)x[0]->n);
  for (i = 0; i < out->rank; i++) {
    const mhk__pickled *size = x[2]->items[i], *stride = x[3]->items[i];
    if (size->type != MHK__PICKLED_INTEGER || stride->type != MHK__PICKLED_INTEGER || size->n < 0 || stride->n < 0 || size->n > PTRDIFF_MAX ||
        stride->n > PTRDIFF_MAX)
      return mhk__pickle_fail(r, MHK_ERROR_FORMAT, "axis %d of a tensor has an impossible size or stride", i);
    out->shape[i] = (mhk_index)size->n;
    out->stride[i] = (mhk_index)stride->n;
    empty |= size->n == 0;
    if (size->n > 0 && whole > PTRDIFF_MAX / size->n) return mhk__pickle_fail(r, MHK_ERROR_FORMAT, "axis %d of a tensor has an impossible size or stride", i);
    if (size->n > 0) whole *= size->n;
  }
  for (i = out->rank - 1; i >= 0 && !empty; i--) {
    const int64_t steps = (int64_t)out->shape[i] - 1, stride = (int64_t)out->stride[i];
    if (steps > 0 && stride > (x[0]->n - last) / steps)
      return mhk__pickle_fail(r, MHK_ERROR_FORMAT, "a tensor that reaches outside its storage of %lld elements", (long long)x[0]->n);
    last += steps * stride;
    out->gather |= steps > 0 && stride != next;
    if ((int64_t)out->shape[i] > x[0]->n / count)
      return mhk__pickle_fail(r, MHK_ERROR_UNSUPPORTED, "a tensor of more elements than its storage has (%lld): it shows some twice", (long long)x[0]->n);
    count *= (int64_t)out->shape[i];
    next = count;
  }
  if (!empty && last >= x[0]->n)
    return mhk__pickle_fail(r, MHK_ERROR_FORMAT, "a tensor that reaches outside its storage of %lld elements", (long long)x[0]->n);
  out->count = empty ? 0 : (mhk_index)count;
  out->bytes = x[0]->bytes + (size_t)x[1]->n * mhk_dtype_size(out->dtype);
  return mhk__pickle_push(r, out);
}

static int mhk__pickle_reduce(mhk__unpickler *r) {
  const mhk__pickled *args = mhk__pickle_pop(r, MHK__PICKLED_TUPLE, "a tuple of arguments"), *function;
  if (!args) return 0;
  function = mhk__pickle_pop(r, 0, "a function");
  if (!function) return 0;
  switch (function->type) {
    case MHK__PICKLED_REBUILD_TENSOR: return mhk__pickle_tensor(r, args);
    case MHK__PICKLED_ORDERED_DICTIONARY:
      if (args->n == 0) return mhk__pickle_push(r, mhk__pickle_node(r, MHK__PICKLED_DICTIONARY));
      return mhk__pickle_fail(r, MHK_ERROR_UNSUPPORTED, "an OrderedDict made from arguments");
    case MHK__PICKLED_REBUILD_PARAMETER: /* (tensor, requires_grad, hooks) */
      if (args->n == 3 && args->items[0]->type == MHK__PICKLED_TENSOR) return mhk__pickle_push(r, args->items[0]);
      return mhk__pickle_fail(r, MHK_ERROR_FORMAT, "this does not describe a parameter: (tensor, requires_grad, hooks) is needed");
    default: return mhk__pickle_fail(r, MHK_ERROR_FORMAT, "something is called that is no function");
  }
}

/* reads the next n bytes: where they stand */
static const unsigned char *mhk__pickle_take(mhk__unpickler *r, uint64_t n) {
  const unsigned char *p = r->p + r->at;
  if (n > r->n - r->at) {
    mhk__pickle_fail(r, MHK_ERROR_FORMAT, "the instruction needs %llu bytes, %lld are left", (unsigned long long)n, (long long)(r->n - r->at));
    return NULL;
  }
  r->at += (size_t)n;
  return p;
}

static int mhk__pickle_integer(mhk__unpickler *r, size_t bytes, int is_signed) {
  const unsigned char *p = mhk__pickle_take(r, bytes);
  if (!p) return 0;
  if (bytes > 8) return mhk__pickle_fail(r, MHK_ERROR_UNSUPPORTED, "a whole number of %lld bytes", (long long)bytes);
  mhk__pickled *x = mhk__pickle_node(r, MHK__PICKLED_INTEGER);
  if (!x) return 0;
  uint64_t bits = mhk__little(p, bytes);
  if (is_signed && bytes > 0 && (p[bytes - 1] & 0x80)) {
    if (bytes < 8) bits |= ~(uint64_t)0 << (8 * bytes);
    x->n = -(int64_t)(~bits) - 1;
  } else
    x->n = (int64_t)bits;
  return mhk__pickle_push(r, x);
}

static int mhk__pickle_memo(mhk__unpickler *r, size_t bytes, int put) {
  const unsigned char *p = mhk__pickle_take(r, bytes);
  if (!p) return 0;
  const size_t at = (size_t)mhk__little(p, bytes);
  if (put) { /* places are numbered as they are used, so a number is never above that of the bytes read */
    mhk__pickled *x = mhk__pickle_top(r, 0, "a value to keep");
    if (!x) return 0;
    if (at >= r->at) return mhk__pickle_fail(r, MHK_ERROR_FORMAT, "a value is kept in place %llu, far above those in use", (unsigned long long)at);
    if (!mhk__pickle_room(r, &r->memo, &r->memo_room, at + 1)) return 0;
    r->memo[at] = x;
    return 1;
  }
  if (at >= r->memo_room || !r->memo[at]) return mhk__pickle_fail(r, MHK_ERROR_FORMAT, "nothing is kept in place %llu", (unsigned long long)at);
  return mhk__pickle_push(r, r->memo[at]);
}

/* one instruction: 1 to go on, 0 on errors */
static int mhk__pickle_step(mhk__unpickler *r, int code) {
  mhk__pickled *x, *y, **items = NULL;
  const unsigned char *p;
  size_t n = 0, i;
  switch (code) {
    case '(': return mhk__pickle_push(r, mhk__pickle_node(r, MHK__PICKLED_MARK));
    case '}': return mhk__pickle_push(r, mhk__pickle_node(r, MHK__PICKLED_DICTIONARY));
    case ']':
    case 'N': return mhk__pickle_push(r, mhk__pickle_node(r, MHK__PICKLED_OTHER));
    case 'G': return mhk__pickle_take(r, 8) && mhk__pickle_push(r, mhk__pickle_node(r, MHK__PICKLED_OTHER));
    case 0x88:
    case 0x89: return mhk__pickle_push(r, mhk__pickle_node(r, MHK__PICKLED_BOOL));
    case 'K': return mhk__pickle_integer(r, 1, 0);
    case 'M': return mhk__pickle_integer(r, 2, 0);
    case 'J': return mhk__pickle_integer(r, 4, 1);
    case 0x8A: return (p = mhk__pickle_take(r, 1)) != NULL && mhk__pickle_integer(r, *p, 1);
    case 'X':
      if ((p = mhk__pickle_take(r, 4)) == NULL || (x = mhk__pickle_node(r, MHK__PICKLED_TEXT)) == NULL) return 0;
      x->n = (int64_t)mhk__little(p, 4);
      x->bytes = mhk__pickle_take(r, (uint64_t)x->n);
      return x->bytes && mhk__pickle_push(r, x);
    case ')': return mhk__pickle_tuple(r, NULL, 0);
    case 0x85:
    case 0x86:
    case 0x87:
      n = (size_t)(code - 0x84);
      for (i = 0; i < n; i++)
        if (i >= r->depth || r->stack[r->depth - 1 - i]->type == MHK__PICKLED_MARK)
          return mhk__pickle_fail(r, MHK_ERROR_FORMAT, "the instruction needs %d values and finds %d", (int)n, (int)i);
      r->depth -= n;
      return mhk__pickle_tuple(r, r->stack + r->depth, n);
    case 't': return mhk__pickle_marked(r, &items, &n) && mhk__pickle_tuple(r, items, n);
    case 'a': return mhk__pickle_pop(r, 0, "a value") && mhk__pickle_top(r, MHK__PICKLED_OTHER, "a list");
    case 'e': return mhk__pickle_marked(r, &items, &n) && mhk__pickle_top(r, MHK__PICKLED_OTHER, "a list");
    case 's':
      if ((y = mhk__pickle_pop(r, 0, "a value")) == NULL || (x = mhk__pickle_pop(r, 0, "a key")) == NULL) return 0;
      return mhk__pickle_top(r, MHK__PICKLED_DICTIONARY, "a dictionary") && mhk__pickle_pair(r, r->stack[r->depth - 1], x, y);
    case 'u':
      if (!mhk__pickle_marked(r, &items, &n) || (x = mhk__pickle_top(r, MHK__PICKLED_DICTIONARY, "a dictionary")) == NULL) return 0;
      if (n % 2) return mhk__pickle_fail(r, MHK_ERROR_FORMAT, "a key without a value");
      for (i = 0; i < n; i += 2)
        if (!mhk__pickle_pair(r, x, items[i], items[i + 1])) return 0;
      return 1;
    case 'q': return mhk__pickle_memo(r, 1, 1);
    case 'r': return mhk__pickle_memo(r, 4, 1);
    case 'h': return mhk__pickle_memo(r, 1, 0);
    case 'j': return mhk__pickle_memo(r, 4, 0);
    case 'c': return mhk__pickle_global(r);
    case 'Q': return mhk__pickle_storage(r);
    case 'R': return mhk__pickle_reduce(r);
    case 'b': /* attributes of an OrderedDict: versions of modules */
      return mhk__pickle_pop(r, 0, "attributes") && mhk__pickle_top(r, MHK__PICKLED_DICTIONARY, "a dictionary that gets attributes");
    default: return mhk__pickle_fail(r, MHK_ERROR_UNSUPPORTED, "the instruction 0x%02X, which a dictionary of tensors does not need: refused", (unsigned)code);
  }
}

/* what the pickle makes, or NULL */
static mhk__pickled *mhk__unpickle(mhk__unpickler *r) {
  if (r->n < 2 || r->p[0] != 0x80 || r->p[1] != 2) {
    mhk__pickle_fail(r, MHK_ERROR_UNSUPPORTED, "only protocol 2 is read, which torch.save writes");
    return NULL;
  }
  for (r->at = 2;;) {
    r->op = r->at;
    if (r->at >= r->n) {
      mhk__pickle_fail(r, MHK_ERROR_FORMAT, "it ends without its last instruction");
      return NULL;
    }
    const int code = r->p[r->at++];
    if (code == '.') break;
    if (!mhk__pickle_step(r, code)) return NULL;
  }
  if (r->depth != 1 || r->at != r->n) {
    mhk__pickle_fail(r, MHK_ERROR_FORMAT, "it ends with %lld values on its stack and %lld bytes behind it; it should be 1 and 0",
                     (long long)r->depth, (long long)(r->n - r->at));
    return NULL;
  }
  return mhk__pickle_top(r, MHK__PICKLED_DICTIONARY, "a dictionary of tensors");
}

/* pairs by key; the same key again is found at once, so that time does not grow with what is shared */
static int mhk__pickled_key_order(const void *a, const void *b) {
  const mhk__pickled *x = ((const mhk__pickled *)a)->key, *y = ((const mhk__pickled *)b)->key;
  return x == y ? 0 : mhk__text_order((const char *)x->bytes, (size_t)x->n, (const char *)y->bytes, (size_t)y->n);
}

/* the elements of a tensor in order, copied into the file's memory */
static const void *mhk__pickled_gather(mhk_file *f, const mhk__pickled *x) {
  const size_t size = mhk_dtype_size(x->dtype);
  unsigned char *out = (unsigned char *)mhk__arena_zeros(f->object.ctx, &f->object.arena, x->count, size), *to = out;
  mhk_index at[MHK_MAX_RANK] = {0}, from = 0, i;
  for (i = 0; i < x->count && out; i++, to += size) {
    memcpy(to, x->bytes + (size_t)from * size, size);
    for (int k = x->rank - 1; k >= 0; k--) {
      from += x->stride[k];
      if (++at[k] < x->shape[k]) break;
      from -= at[k] * x->stride[k];
      at[k] = 0;
    }
  }
  return out;
}

/* Reads an archive of PyTorch as mhk__read_header() reads a header. Scratch is the caller's to rewind. */
static int mhk__read_archive(mhk_file *f, int shard, mhk__stored **entries, int *n) {
  mhk_context *ctx = f->object.ctx;
  const char *path = f->shards[shard].path;
  const mhk__bytes *b = &f->shards[shard].bytes;
  const mhk__packed *pickle = NULL;
  const mhk__pickled *root, *x, *inner = NULL;
  mhk__unpickler r;
  mhk_index i, count = 0;
  size_t copied = 0;
  char shown[64];
  memset(&r, 0, sizeof r);
  r.ctx = ctx;
  r.path = path;
  r.file = b;
  r.entries = mhk__zip_entries(ctx, path, b, &r.n_entries);
  if (!r.entries) return 0;
  for (i = 0; i < r.n_entries; i++) {
    const mhk__packed *e = r.entries[i];
    if (e->name_length < 8 || memcmp(e->name + e->name_length - 8, "data.pkl", 8) != 0) continue;
    if (e->name_length > 8 && e->name[e->name_length - 9] != '/') continue;
    if (pickle) return mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "%s holds several pickles: one state dict is read", path), 0;
    pickle = e;
  }
  if (!pickle) return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s is a zip archive without data.pkl: not one that torch.save wrote", path), 0;
  if (pickle->bytes > MHK__PICKLE_MOST)
    return mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "%s: its pickle has %lld bytes; up to %lld are read", path, (long long)pickle->bytes,
                    (long long)MHK__PICKLE_MOST),
           0;
  r.prefix = pickle->name;
  r.prefix_length = pickle->name_length - 8;
  r.p = b->data + pickle->begin;
  r.n = pickle->bytes;
  if (pickle->crc && pickle->crc != mhk__crc32(r.p, r.n))
    return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: its pickle does not have the checksum that the archive gives: the file is damaged", path), 0;
  for (i = 0; i < r.n_entries; i++) {
    const mhk__packed *e = r.entries[i];
    if (e->name_length == r.prefix_length + 9 && memcmp(e->name, r.prefix, r.prefix_length) == 0 && memcmp(e->name + r.prefix_length, "byteorder", 9) == 0 &&
        (e->bytes != 6 || memcmp(b->data + e->begin, "little", 6) != 0))
      return mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "%s was written with the byte order \"%s\"; only little is read", path,
                      mhk__printable(b->data + e->begin, e->bytes, shown)),
             0;
  }
  root = mhk__unpickle(&r);
  if (!root) return 0;
  for (x = root->first; x; x = x->next) {
    if (x->value->type == MHK__PICKLED_DICTIONARY && x->value->first && x->key->type == MHK__PICKLED_TEXT && !inner) inner = x;
    count += x->value->type == MHK__PICKLED_TENSOR;
  }
  if (count == 0 && inner)
    return mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "%s holds no tensors by name, but a dictionary \"%s\": save that alone", path,
                    mhk__printable(inner->key->bytes, (size_t)inner->key->n, shown)),
           0;
  if (count > INT_MAX / 2) return mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "%s holds too many tensors", path), 0;
  const void **order = (const void **)mhk__scratch(ctx, count, 2 * sizeof(void *));
  if (!order) return 0;
  for (x = root->first, i = 0; x; x = x->next) {
    if (x->value->type != MHK__PICKLED_TENSOR) continue; /* a step counter or the like */
    if (x->key->type != MHK__PICKLED_TEXT || x->key->n == 0 || x->key->n > 4096 || memchr(x->key->bytes, 0, (size_t)x->key->n) ||
        !mhk__utf8_valid((const char *)x->key->bytes, (size_t)x->key->n))
      return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: tensor %lld has no usable name", path, (long long)i), 0;
    order[i++] = x;
  }
  mhk__sort(order, order + count, count, mhk__pickled_key_order);
  for (i = 1; i < count; i++)
    if (mhk__pickled_key_order(order[i - 1], order[i]) == 0)
      return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: tensor %s stands twice", path,
                      mhk__printable(((const mhk__pickled *)order[i])->key->bytes, (size_t)((const mhk__pickled *)order[i])->key->n, shown)),
             0;
  *entries = (mhk__stored *)mhk__arena_zeros(ctx, &f->object.arena, count, sizeof(mhk__stored));
  if (!*entries) return 0;
  *n = (int)count;
  for (i = 0; i < count; i++) {
    const mhk__pickled *key = ((const mhk__pickled *)order[i])->key, *t = ((const mhk__pickled *)order[i])->value;
    mhk__stored *e = *entries + i;
    e->shard = shard;
    e->t.name = mhk__arena_text(ctx, &f->object.arena, (const char *)key->bytes, (size_t)key->n);
    e->t.dtype = t->dtype;
    e->t.rank = t->rank;
    memcpy(e->t.shape, t->shape, sizeof t->shape);
    e->t.count = t->count;
    e->t.bytes = (size_t)t->count * mhk_dtype_size(t->dtype);
    e->t.data = t->bytes;
    if (t->gather) {
      if (e->t.bytes > b->size - copied)
        return mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "%s: its transposed tensors together are larger than the file", path), 0;
      copied += e->t.bytes;
      e->t.data = mhk__pickled_gather(f, t);
    }
    if (!e->t.name || !e->t.data) return 0;
  }
  return 1;
}
#endif

static mhk_file *mhk__file_new(mhk_context *ctx, const char *path, mhk_index shards) {
  mhk_file *f = (mhk_file *)mhk__object_new(ctx, sizeof *f, mhk__file_destroy);
  if (!f) return NULL;
  f->path = mhk__arena_text(ctx, &f->object.arena, path, strlen(path));
  f->shards = (mhk__shard *)mhk__arena_zeros(ctx, &f->object.arena, shards, sizeof(mhk__shard));
  if (!f->path || !f->shards) {
    mhk__object_free(f);
    return NULL;
  }
  f->n_shards = (int)shards;
  return f;
}

/* All shards are mapped: reads their headers and sorts the names. Scratch is the caller's to rewind. */
static int mhk__file_finish(mhk_file *f) {
  mhk_context *ctx = f->object.ctx;
  mhk__stored **lists = (mhk__stored **)mhk__scratch(ctx, f->n_shards, sizeof(void *));
  int *counts = (int *)mhk__scratch(ctx, f->n_shards, sizeof(int)), i, j;
  mhk_index total = 0;
  if (!lists || !counts) return 0;
  for (i = 0; i < f->n_shards; i++) {
#ifndef MOHAWK_NO_STDIO
    const mhk__bytes *b = &f->shards[i].bytes;
    const int ok = b->size >= 4 && mhk__little(b->data, 4) == MHK__ZIP_ENTRY ? mhk__read_archive(f, i, &lists[i], &counts[i])
                                                                             : mhk__read_header(f, i, &lists[i], &counts[i]);
#else
    const int ok = mhk__read_header(f, i, &lists[i], &counts[i]);
#endif
    if (!ok) return 0;
    total += counts[i];
  }
  if (total > INT_MAX / 2) return mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "%s holds too many tensors", f->path), 0;
  f->n = (int)total;
  f->sorted = (mhk__stored **)mhk__arena_zeros(ctx, &f->object.arena, total, sizeof(void *));
  const void **order = (const void **)mhk__scratch(ctx, total, 2 * sizeof(void *));
  if (!f->sorted || !order) return 0;
  for (i = 0, total = 0; i < f->n_shards; i++)
    for (j = 0; j < counts[i]; j++) order[total++] = lists[i] + j;
  mhk__sort(order, order + total, total, mhk__stored_name_order);
  if (total) memcpy(f->sorted, order, (size_t)total * sizeof(void *));
  for (i = 1; i < f->n; i++)
    if (strcmp(f->sorted[i - 1]->t.name, f->sorted[i]->t.name) == 0)
      return mhk_fail(ctx, MHK_ERROR_FORMAT, "tensor %.200s stands twice: in %.500s and in %.500s", f->sorted[i]->t.name,
                      f->shards[f->sorted[i - 1]->shard].path, f->shards[f->sorted[i]->shard].path),
             0;
  return 1;
}

#ifndef MOHAWK_NO_STDIO
static int mhk__shard_name_order(const void *a, const void *b) {
  const mhk__json *x = (const mhk__json *)a, *y = (const mhk__json *)b;
  return mhk__text_order(x->text, x->length, y->text, y->length);
}

/* A shard lies beside its index: a name that leads elsewhere is refused. */
static int mhk__plain_name(const mhk__json *x) {
  const char *s = mhk__json_string(x);
  if (!s || x->length == 0 || strlen(s) != x->length || s[0] == '.') return 0;
  return strpbrk(s, "/\\:") == NULL;
}
#endif

/* place of a tensor among the sorted ones; -1: absent */
static int mhk__file_index(const mhk_file *f, const char *name) {
  int low = 0, high = f->n;
  while (low < high) {
    int middle = low + (high - low) / 2, order = strcmp(name, f->sorted[middle]->t.name);
    if (order == 0) return middle;
    if (order < 0)
      high = middle;
    else
      low = middle + 1;
  }
  return -1;
}

#ifndef MOHAWK_NO_STDIO
static int mhk__shard_open(mhk_file *f, int shard, int read) {
  mhk__shard *x = &f->shards[shard];
  mhk_context *ctx = f->object.ctx;
  return read ? mhk__bytes_read_or_fail(ctx, &f->object.arena, x->path, &x->bytes)
              : mhk__bytes_open_or_fail(ctx, x->path, &x->bytes);
}

/* folder: where the index stands, "" for here; read: shards are read, not mapped */
static mhk_file *mhk__file_open_index(mhk_context *ctx, const char *path, const char *folder, int read) {
  mhk__mark mark = mhk__scratch_mark(ctx);
  mhk__bytes text;
  const mhk__json *root, *map, *x;
  const void **order;
  mhk_index i, shards = 0;
  mhk_file *f = NULL;
  int ok = 0, s;
  if (!mhk__bytes_open_or_fail(ctx, path, &text)) return NULL;
  root = mhk__json_parse(ctx, &ctx->scratch, (const char *)text.data, text.size, path, MHK__JSON_INFINITY);
  mhk__bytes_close(&text);
  if (!root) goto done;
  map = mhk__json_get(root, "weight_map");
  if (!mhk__json_is(map, MHK__JSON_OBJECT) || map->count == 0) {
    mhk_fail(ctx, MHK_ERROR_FORMAT, "%s has no \"weight_map\" that says which tensor is in which file", path);
    goto done;
  }
  for (x = map->first; x; x = x->next)
    if (!mhk__plain_name(x)) {
      mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: the file of tensor %.200s must be the plain name of a file beside the index, it is \"%.200s\"",
               path, x->key, mhk__json_string(x) ? x->text : "no text");
      goto done;
    }
  order = (const void **)mhk__scratch(ctx, map->count, 2 * sizeof(void *));
  if (!order) goto done;
  for (x = map->first, i = 0; x; x = x->next) order[i++] = x;
  mhk__sort(order, order + map->count, map->count, mhk__shard_name_order);
  for (i = 0; i < map->count; i++)
    if (i == 0 || mhk__shard_name_order(order[i - 1], order[i]) != 0) order[shards++] = order[i];
  if (shards > 100000) {
    mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "%s names %lld files: too many", path, (long long)shards);
    goto done;
  }
  f = mhk__file_new(ctx, path, shards);
  if (!f) goto done;
  for (s = 0; s < f->n_shards; s++) {
    char full[1200];
    const mhk__json *name = (const mhk__json *)order[s];
    if (!mhk__join_path(full, sizeof full, folder, name->text)) {
      mhk_fail(ctx, MHK_ERROR_FILE, "%s: the path of %.200s is too long", path, name->text);
      goto done;
    }
    f->shards[s].path = mhk__arena_text(ctx, &f->object.arena, full, strlen(full));
    if (!f->shards[s].path) goto done;
    f->shards[s].name = f->shards[s].path + strlen(full) - name->length;
    if (!mhk__shard_open(f, s, read)) goto done;
  }
  if (!mhk__file_finish(f)) goto done;
  /* index and shards must say the same */
  for (x = map->first; x; x = x->next) {
    const int at = memchr(x->key, 0, x->key_length) ? -1 : mhk__file_index(f, x->key);
    if (at < 0 || strcmp(f->shards[f->sorted[at]->shard].name, x->text) != 0) {
      mhk_fail(ctx, MHK_ERROR_FORMAT, "%s says that tensor %.200s is in %.200s, which does not hold it", path, x->key, x->text);
      goto done;
    }
  }
  if (map->count != f->n) {
    const void **keys = (const void **)mhk__scratch(ctx, map->count, 2 * sizeof(void *));
    if (!keys) goto done;
    for (x = map->first, i = 0; x; x = x->next) keys[i++] = x;
    mhk__sort(keys, keys + map->count, map->count, mhk__json_key_order);
    for (i = 0; i < map->count && strcmp(((const mhk__json *)keys[i])->key, f->sorted[i]->t.name) == 0; i++) {
    }
    mhk_fail(ctx, MHK_ERROR_FORMAT, "%s does not name tensor %.200s, which is in %.500s", path, f->sorted[i]->t.name,
             f->shards[f->sorted[i]->shard].path);
    goto done;
  }
  ok = 1;
done:
  mhk__scratch_rewind(ctx, mark);
  if (!ok) {
    mhk_file_close(f);
    return NULL;
  }
  return f;
}
#endif

#define MHK__PATH_MOST 1000 /* bytes of a path, so that names and endings can be put behind it */

/* one file, given as the caller's bytes, or data NULL: mapped, or read where bytes is not 0 */
static mhk_file *mhk__file_open_single(mhk_context *ctx, const char *path, const void *data, size_t bytes) {
  mhk__mark mark = mhk__scratch_mark(ctx);
  mhk_file *f = mhk__file_new(ctx, path, 1);
  if (!f) return NULL;
  f->shards[0].path = f->path;
#ifndef MOHAWK_NO_STDIO
  if (!data) mhk__shard_open(f, 0, bytes != 0);
#endif
  if (data) {
    f->shards[0].bytes.data = (const unsigned char *)data;
    f->shards[0].bytes.size = bytes;
  }
  const int ok = !mhk_failed(ctx) && mhk__file_finish(f);
  mhk__scratch_rewind(ctx, mark);
  if (ok) return f;
  mhk_file_close(f);
  return NULL;
}

#ifndef MOHAWK_NO_STDIO
/* the folder of a path, with its slash, or "" */
static void mhk__folder_of(char *out, size_t room, const char *path) {
  size_t n = mhk__folder_length(path);
  if (n >= room) n = 0;
  memcpy(out, path, n);
  out[n] = 0;
}

static int mhk__path_fits(mhk_context *ctx, const char *path) {
  if (mhk_failed(ctx)) return 0;
  if (!path || !path[0])
    mhk_fail(ctx, MHK_ERROR_ARGUMENT, "a path is needed, none was given");
  else if (strlen(path) > MHK__PATH_MOST)
    mhk_fail(ctx, MHK_ERROR_ARGUMENT, "a path of %lld bytes is too long: %d is the most", (long long)strlen(path), MHK__PATH_MOST);
  return !mhk_failed(ctx);
}

static mhk_file *mhk__file_open(mhk_context *ctx, const char *path, int read) {
  char inside[MHK__PATH_MOST + 64];
  if (!mhk__path_fits(ctx, path)) return NULL;
  if (mhk__is_folder(path)) {
    static const char names[][32] = {"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"};
    for (int i = 0; i < 4; i++) {
      mhk__join_path(inside, sizeof inside, path, names[i]);
      if (mhk__is_file(inside))
        return i % 2 ? mhk__file_open_index(ctx, inside, path, read)
                     : mhk__file_open_single(ctx, inside, NULL, read != 0);
    }
    mhk_fail(ctx, MHK_ERROR_FILE, "the folder %s holds neither model.safetensors nor pytorch_model.bin, nor the index of either", path);
    return NULL;
  }
  if (mhk__ends_with(path, ".json")) {
    mhk__folder_of(inside, sizeof inside, path);
    return mhk__file_open_index(ctx, path, inside, read);
  }
  return mhk__file_open_single(ctx, path, NULL, read != 0);
}

MHKDEF mhk_file *mhk_file_open(mhk_context *ctx, const char *path) { return mhk__file_open(ctx, path, 0); }
#endif

MHKDEF mhk_file *mhk_file_open_memory(mhk_context *ctx, const void *data, size_t bytes) {
  if (mhk_failed(ctx)) return NULL;
  if (!data && bytes) {
    mhk_fail(ctx, MHK_ERROR_ARGUMENT, "mhk_file_open_memory was given %lld bytes at NULL", (long long)bytes);
    return NULL;
  }
  return mhk__file_open_single(ctx, "the file in memory", data ? data : "", bytes);
}

MHKDEF void mhk_file_close(mhk_file *f) { mhk__object_free(f); }

MHKDEF int mhk_file_tensors(const mhk_file *f) { return f ? f->n : 0; }

MHKDEF const mhk_file_tensor *mhk_file_tensor_at(const mhk_file *f, int i) { return f && i >= 0 && i < f->n ? &f->sorted[i]->t : NULL; }

MHKDEF const mhk_file_tensor *mhk_file_find(const mhk_file *f, const char *name) {
  return f && name ? mhk_file_tensor_at(f, mhk__file_index(f, name)) : NULL;
}

/* the file that a tensor of f is in */
static const char *mhk__file_path_of(const mhk_file *f, const mhk_file_tensor *x) {
  return f->shards[((const mhk__stored *)(const void *)x)->shard].path;
}

MHKDEF const char *mhk_file_metadata(const mhk_file *f, const char *key, size_t *length) {
  if (length) *length = 0;
  if (!f || !key) return NULL;
  for (const mhk__metadata *m = f->metadata; m; m = m->next)
    if (strcmp(m->key, key) == 0) {
      if (length) *length = m->length;
      return m->value;
    }
  return NULL;
}

static int mhk__file_tensor_ok(mhk_context *ctx, const mhk_file_tensor *x, const void *out) {
  if (mhk_failed(ctx)) return 0;
  if (!x || !x->data || (!out && x->count)) {
    mhk_fail(ctx, MHK_ERROR_ARGUMENT, "reading a tensor needs the tensor and room for it; %s is NULL",
             x && x->data ? "the room" : "the tensor");
    return 0;
  }
  if (!x->dtype) {
    mhk_fail(ctx, MHK_ERROR_UNSUPPORTED,
             "tensor %.200s has a type that is not read: F64, F32, F16, BF16, BOOL and integers of 8 to 64 bits are",
             x->name ? x->name : "?");
    return 0;
  }
  if (mhk_dtype_size(x->dtype) == 0 || x->count < 0 || x->bytes / mhk_dtype_size(x->dtype) != (size_t)x->count) {
    mhk_fail(ctx, MHK_ERROR_ARGUMENT, "tensor %.200s: %lld elements of type %d are not %lld bytes", x->name ? x->name : "?",
             (long long)x->count, (int)x->dtype, (long long)x->bytes);
    return 0;
  }
  return 1;
}

MHKDEF mhk_result mhk_file_read(mhk_context *ctx, const mhk_file_tensor *x, mhk_real *out) {
  if (!mhk__file_tensor_ok(ctx, x, out)) return mhk_error(ctx);
  mhk__unpack(x->dtype, x->data, x->count, out);
  return MHK_OK;
}

MHKDEF mhk_result mhk_file_read_i32(mhk_context *ctx, const mhk_file_tensor *x, int32_t *out) {
  if (!mhk__file_tensor_ok(ctx, x, out)) return mhk_error(ctx);
  if (x->dtype == MHK_F32 || x->dtype == MHK_F64 || x->dtype == MHK_F16 || x->dtype == MHK_BF16)
    return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "tensor %.200s has the type %s; integers are wanted", x->name ? x->name : "?",
                    mhk_dtype_name(x->dtype));
  const unsigned char *p = (const unsigned char *)x->data;
  const size_t size = mhk_dtype_size(x->dtype);
  const int is_signed = x->dtype == MHK_I8 || x->dtype == MHK_I16 || x->dtype == MHK_I32 || x->dtype == MHK_I64;
  for (mhk_index i = 0; i < x->count; i++, p += size) {
    uint64_t bits = mhk__little(p, size), magnitude;
    const int negative = is_signed && (p[size - 1] & 0x80);
    if (negative && size < 8) bits |= ~(uint64_t)0 << (8 * size);
    magnitude = negative ? ~bits + 1 : bits;
    if (magnitude > (negative ? (uint64_t)2147483648u : (uint64_t)2147483647u))
      return mhk_fail(ctx, MHK_ERROR_FORMAT, "element %lld of tensor %.200s is %s%llu, which does not fit 32 bits", (long long)i,
                      x->name ? x->name : "?", negative ? "-" : "", (unsigned long long)magnitude);
    out[i] = negative ? (int32_t)(-(int64_t)magnitude) : (int32_t)magnitude;
  }
  return MHK_OK;
}

#ifndef MOHAWK_NO_STDIO
/* ---- safetensors out */

/* A tensor to be written as type dtype from host memory that has the type from. data NULL: eight bytes of type U8, which are the checksum (XXH64,
   little-endian) of all before them; the order puts them last where no other tensor has elements of one byte. The types differ only when from is MHK_REAL, a float type or a
   quantised one (data is then the mhk_tensor), and dtype is F32, F16 or BF16. */
typedef struct mhk__outgoing {
  const char *name;
  mhk_dtype dtype, from;
  int rank;
  const mhk_index *shape;
  mhk_index count;
  const void *data;
} mhk__outgoing;

static void mhk__outgoing_set(mhk__outgoing *o, const char *name, mhk_dtype dtype, mhk_dtype from, int rank, const mhk_index *shape, const void *data) {
  o->name = name;
  o->dtype = dtype;
  o->from = from;
  o->rank = rank;
  o->shape = shape;
  o->count = 1;
  for (int i = 0; i < rank; i++) o->count *= shape[i];
  o->data = data;
}

/* first the tensors that fill whole cache lines, so that all of them start at one; then large elements before small ones, so that each is aligned
   to its element; then by name */
static int mhk__outgoing_order(const void *a, const void *b) {
  const mhk__outgoing *x = (const mhk__outgoing *)a, *y = (const mhk__outgoing *)b;
  const size_t p = mhk_dtype_size(x->dtype), q = mhk_dtype_size(y->dtype);
  const int odd = (size_t)x->count * p % MHK__ALIGN != 0, odd_y = (size_t)y->count * q % MHK__ALIGN != 0;
  return odd != odd_y ? odd - odd_y : p != q ? (p > q ? -1 : 1) : strcmp(x->name, y->name);
}

static int mhk__outgoing_name_order(const void *a, const void *b) {
  return strcmp(((const mhk__outgoing *)a)->name, ((const mhk__outgoing *)b)->name);
}

#define MHK__OUT_BLOCK 4096 /* elements converted at a time */

static mhk_result mhk__write_outgoing(mhk_context *ctx, mhk__output *out, const mhk__outgoing *x) {
  const size_t from = mhk_dtype_size(x->from), to = mhk_dtype_size(x->dtype);
  mhk__mark mark = mhk__scratch_mark(ctx);
#ifndef MOHAWK_NO_TRAINING
  if (!x->data && x->count) {
    unsigned char sum[8];
    mhk__put_bytes(sum, mhk__xxh64_end(&out->sum), 8);
    mhk__output_write(out, sum, 8);
    return MHK_OK;
  }
#endif
  if (x->from == x->dtype && mhk__little_endian()) {
    mhk__output_write(out, x->data, (size_t)x->count * to);
    return MHK_OK;
  }
  mhk_real *values = (mhk_real *)mhk__scratch(ctx, MHK__OUT_BLOCK, sizeof(mhk_real));
  unsigned char *bytes = (unsigned char *)mhk__scratch(ctx, MHK__OUT_BLOCK, 8);
  for (mhk_index at = 0; at < x->count && values && bytes && !out->error; at += MHK__OUT_BLOCK) {
    const mhk_index n = x->count - at < MHK__OUT_BLOCK ? x->count - at : MHK__OUT_BLOCK;
    const unsigned char *data = (const unsigned char *)x->data + (size_t)at * from;
    if (x->from == x->dtype)
      memcpy(bytes, data, (size_t)n * to);
    else {
      if (mhk__is_quantised(x->from))
        mhk_tensor_read((const mhk_tensor *)x->data, at, n, values);
      else
        mhk__unpack_host(x->from, data, n, values);
      for (mhk_index i = 0; i < n; i++) {
        const float v = (float)values[i];
        const uint32_t wide = mhk__float_bits(v);
        const uint16_t narrow = x->dtype == MHK_F16 ? mhk__pack_f16(v) : mhk__pack_bf16(v);
        if (x->dtype == MHK_F32)
          memcpy(bytes + 4 * (size_t)i, &wide, 4);
        else
          memcpy(bytes + 2 * (size_t)i, &narrow, 2);
        if (values[i] - values[i] == 0 && (x->dtype == MHK_F32   ? (wide & 0x7F800000u) == 0x7F800000u
                                           : x->dtype == MHK_F16 ? (narrow & 0x7C00u) == 0x7C00u
                                                                 : (narrow & 0x7F80u) == 0x7F80u)) {
          char number[32];
          mhk__format_double((double)values[i], number);
          mhk__scratch_rewind(ctx, mark);
          return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "element %lld of %.200s is %s: too large for %s; write F32", (long long)(at + i),
                          x->name, number, mhk_dtype_name(x->dtype));
        }
      }
    }
    mhk__turn(bytes, n, to, bytes);
    mhk__output_write(out, bytes, (size_t)n * to);
  }
  mhk__scratch_rewind(ctx, mark);
  return mhk_error(ctx);
}

/* Writes all of it into out, which the caller closes whatever happened. metadata: n_metadata pairs key, value; lengths of the values, or NULL for
   0-terminated ones */
static mhk_result mhk__file_put(mhk_context *ctx, mhk__output *out, const char *path, int n, const mhk__outgoing *tensors, int n_metadata,
                                const char *const *metadata, const size_t *lengths) {
  mhk__writer w;
  unsigned char size[8];
  size_t at = 0;
  mhk__output_clear(out, path);
  if (!mhk__path_fits(ctx, path)) return mhk_error(ctx);
  mhk__mark mark = mhk__scratch_mark(ctx);
  const void **order = (const void **)mhk__scratch(ctx, n, 2 * sizeof(void *));
  if (!order) return mhk_error(ctx);
  for (int i = 0; i < n; i++) {
    order[i] = &tensors[i];
    if (!tensors[i].name[0] || strcmp(tensors[i].name, "__metadata__") == 0 || !mhk__utf8_valid(tensors[i].name, strlen(tensors[i].name)))
      mhk_fail(ctx, MHK_ERROR_ARGUMENT, "tensor %d cannot be written: its name must be valid UTF-8, not empty and not __metadata__", i);
  }
  mhk__sort(order, order + n, n, mhk__outgoing_name_order);
  for (int i = 1; i < n; i++)
    if (mhk__outgoing_name_order(order[i - 1], order[i]) == 0)
      mhk_fail(ctx, MHK_ERROR_ARGUMENT, "two tensors to be written are called %.200s", ((const mhk__outgoing *)order[i])->name);
  mhk__sort(order, order + n, n, mhk__outgoing_order);
  mhk__write_to(&w, ctx, &ctx->scratch);
  w.compact = 1;
  mhk__write_open(&w, '{');
  if (n_metadata > 0) {
    mhk__write_key(&w, "__metadata__");
    mhk__write_open(&w, '{');
    for (int i = 0; i < n_metadata; i++) {
      const size_t length = lengths ? lengths[i] : strlen(metadata[2 * i + 1]);
      for (int j = 0; j < i; j++)
        if (strcmp(metadata[2 * j], metadata[2 * i]) == 0)
          mhk_fail(ctx, MHK_ERROR_ARGUMENT, "the metadata key \"%.100s\" is given twice", metadata[2 * i]);
      if (!mhk__utf8_valid(metadata[2 * i], strlen(metadata[2 * i])) || !mhk__utf8_valid(metadata[2 * i + 1], length))
        mhk_fail(ctx, MHK_ERROR_ARGUMENT, "the metadata \"%.100s\" is no valid UTF-8", metadata[2 * i]);
      mhk__write_key(&w, metadata[2 * i]);
      mhk__write_string(&w, metadata[2 * i + 1], length);
    }
    mhk__write_close(&w, '}');
  }
  for (int i = 0; i < n; i++) {
    const mhk__outgoing *x = (const mhk__outgoing *)order[i];
    const size_t bytes = mhk__size3(ctx, x->count, 1, mhk_dtype_size(x->dtype));
    mhk__write_key(&w, x->name);
    mhk__write_open(&w, '{');
    mhk__write_key(&w, "dtype");
    mhk__write_string(&w, mhk_dtype_name(x->dtype), strlen(mhk_dtype_name(x->dtype)));
    mhk__write_key(&w, "shape");
    mhk__write_open(&w, '[');
    for (int j = 0; j < x->rank; j++) {
      mhk__write_item(&w);
      mhk__write_integer(&w, (int64_t)x->shape[j]);
    }
    mhk__write_close(&w, ']');
    mhk__write_key(&w, "data_offsets");
    mhk__write_open(&w, '[');
    mhk__write_item(&w);
    mhk__write_integer(&w, (int64_t)at);
    at += bytes;
    mhk__write_item(&w);
    mhk__write_integer(&w, (int64_t)at);
    mhk__write_close(&w, ']');
    mhk__write_close(&w, '}');
  }
  mhk__write_close(&w, '}');
  while (!mhk_failed(ctx) && (w.length + 8) % MHK__ALIGN != 0) mhk__write_bytes(&w, " ", 1);
  if (!mhk_failed(ctx) && w.length > MHK__HEADER_MOST)
    mhk_fail(ctx, MHK_ERROR_ARGUMENT, "%s would need a header of %lld bytes; safetensors allows %d", path, (long long)w.length,
             MHK__HEADER_MOST);
  if (!mhk_failed(ctx)) {
    for (int i = 0; i < 8; i++) size[i] = (unsigned char)(((uint64_t)w.length >> (8 * i)) & 255u);
    mhk__output_open(out, path);
#ifndef MOHAWK_NO_TRAINING
    for (int i = 0; i < n; i++) out->summing |= !tensors[i].data && tensors[i].count;
    mhk__xxh64_start(&out->sum);
#endif
    mhk__output_write(out, size, 8);
    mhk__output_write(out, w.data, w.length);
    for (int i = 0; i < n && !out->error && !mhk_failed(ctx); i++) mhk__write_outgoing(ctx, out, (const mhk__outgoing *)order[i]);
  }
  mhk__scratch_rewind(ctx, mark);
  return mhk_error(ctx);
}

static mhk_result mhk__file_write(mhk_context *ctx, const char *path, int n, const mhk__outgoing *tensors, int n_metadata,
                                  const char *const *metadata, const size_t *lengths) {
  mhk__output out;
  mhk__file_put(ctx, &out, path, n, tensors, n_metadata, metadata, lengths);
  return mhk__output_close_or_fail(ctx, &out);
}

MHKDEF mhk_result mhk_file_write_bytes(mhk_context *ctx, const char *path, const void *data, size_t bytes) {
  mhk__output out;
  if (!mhk__path_fits(ctx, path)) return mhk_error(ctx);
  if (!data && bytes) return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "%s cannot be written from %.0f bytes at NULL", path, (double)bytes);
  mhk__output_open(&out, path);
  mhk__output_write(&out, data, bytes);
  return mhk__output_close_or_fail(ctx, &out);
}

MHKDEF mhk_result mhk_file_write(mhk_context *ctx, const char *path, int n, const mhk_file_tensor *tensors, int n_metadata,
                                 const char *const *metadata) {
  mhk__outgoing *list;
  int j;
  if (mhk_failed(ctx)) return mhk_error(ctx);
  if (n < 0 || n_metadata < 0 || (n && !tensors) || (n_metadata && !metadata))
    return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "mhk_file_write was given %d tensors and %d metadata pairs without the arrays for them", n,
                    n_metadata);
  for (int i = 0; i < 2 * n_metadata; i++)
    if (!metadata[i]) return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "metadata text %d is NULL", i);
  mhk__mark mark = mhk__scratch_mark(ctx);
  list = (mhk__outgoing *)mhk__scratch(ctx, n, sizeof *list);
  for (int i = 0; i < n && list; i++) {
    const mhk_file_tensor *x = &tensors[i];
    mhk_index count = 1;
    if (!x->name || mhk_dtype_size(x->dtype) == 0 || x->rank < 0 || x->rank > MHK_MAX_RANK || x->count < 0 || (!x->data && x->count)) {
      mhk_fail(ctx, MHK_ERROR_ARGUMENT, "tensor %d (%.200s) cannot be written: name, type, rank (at most %d) and data are needed", i,
               x->name ? x->name : "no name", MHK_MAX_RANK);
      break;
    }
    for (j = 0; j < x->rank; j++) {
      if (x->shape[j] < 0 || (x->shape[j] > 0 && count > PTRDIFF_MAX / x->shape[j])) break;
      count *= x->shape[j];
    }
    if (j < x->rank || count != x->count) {
      char text[160];
      mhk_fail(ctx, MHK_ERROR_SHAPE, "tensor %.200s of shape %s cannot have %lld elements", x->name,
               mhk__shape_text(x->rank, x->shape, text, sizeof text), (long long)x->count);
      break;
    }
    mhk__outgoing_set(list + i, x->name, x->dtype, x->dtype, x->rank, x->shape, x->data);
  }
  if (!mhk_failed(ctx)) mhk__file_write(ctx, path, n, list, n_metadata, metadata, NULL);
  mhk__scratch_rewind(ctx, mark);
  return mhk_error(ctx);
}
#endif
#endif /* MOHAWK_IMPLEMENTATION */
#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
/* ====================================================================================================
   TOKENIZER: byte-level BPE, Unicode classes, streaming decode                             >>tokenizer
   ====================================================================================================
   Byte-level BPE (Radford et al. 2019; merges: Sennrich et al. 2016). Text is cut at added tokens, the rest into words by the pattern
     's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
   and inside a word the pair of neighbours with the lowest rank is merged until none has a rank. Between the added tokens that are
   looked for in raw text and those that are looked for in normalized text, it may be normalized (NFC). Vocabulary files write bytes as
   characters: printable Latin-1 as itself, the other 68 bytes as U+0100..U+0143 in order. */

#define MHK__OTHER 0u
#define MHK__LETTER 1u
#define MHK__NUMBER 2u
#define MHK__SPACE 3u

/* Unicode 16.0: general categories L* and N*, and White_Space, as runs of code points from U+0000 on, each 4 * length + class. What comes
   after the last run is MHK__OTHER. */
static const uint16_t mhk__class_runs[] = {
  36,23,72,7,60,42,28,105,24,105,40,7,104,7,36,5,28,10,4,5,12,6,5,4,14,4,93,4,125,4,1833,16,49,56,21,28,5,4,5,516,21,4,9,8,17,4,5,24,5,4,
  13,4,5,4,81,4,333,4,557,32,665,4,153,8,5,24,165,284,109,16,17,180,173,84,42,16,9,4,397,4,5,60,9,28,9,42,13,8,5,64,5,4,121,116,357,44,5,
  56,42,133,36,9,16,5,20,89,16,5,36,5,12,5,92,101,28,45,20,97,4,25,68,169,232,217,12,5,72,5,28,41,16,42,4,65,16,33,8,9,8,89,4,29,4,5,12,
  17,12,5,64,5,52,9,4,13,16,42,9,8,26,8,5,32,25,16,9,8,89,4,29,4,9,4,9,4,9,124,17,4,5,28,42,8,13,64,37,4,13,4,89,4,29,4,9,4,21,12,5,72,5,
  60,9,16,42,36,5,44,33,8,9,8,89,4,29,4,9,4,21,12,5,120,9,4,13,16,42,4,5,26,44,5,4,25,12,13,4,17,12,9,4,5,4,9,12,9,12,13,12,49,88,5,84,54,
  72,33,4,13,4,93,4,65,12,5,104,13,8,5,8,9,16,42,32,30,4,5,16,33,4,13,4,93,4,41,4,21,12,5,124,9,4,9,16,42,4,9,68,37,4,13,4,165,8,5,64,5,
  20,13,4,30,13,16,78,4,25,20,73,12,97,4,37,4,5,8,29,124,42,68,193,4,9,48,29,36,42,156,9,4,5,4,21,4,97,4,5,4,41,4,9,36,5,8,21,4,5,36,42,8,
  17,128,5,124,82,48,33,4,145,108,21,460,173,80,5,42,24,25,16,17,12,5,12,9,28,13,16,53,48,5,4,42,24,153,4,5,20,5,8,173,4,1333,4,17,8,29,4,
  5,4,17,8,165,4,17,8,133,4,17,8,29,4,5,4,17,8,61,4,229,4,17,8,269,56,82,12,65,64,345,8,25,12,2481,8,69,7,105,20,301,12,14,33,28,73,52,77,
  56,73,56,53,4,13,60,209,140,5,16,5,12,42,24,42,88,42,24,357,28,21,8,137,4,5,20,281,40,125,156,42,121,8,21,44,177,16,105,24,46,148,93,36,
  213,172,42,24,42,52,5,372,189,68,33,12,42,164,121,52,9,42,177,104,145,112,42,12,13,42,145,8,45,20,173,8,13,164,17,4,25,4,9,12,5,20,769,
  256,1113,8,25,8,153,8,25,8,33,4,5,4,5,4,5,4,125,8,213,4,29,4,5,12,13,4,29,12,17,8,25,16,53,20,13,4,29,12,47,116,11,20,7,188,7,64,6,5,8,
  26,20,5,42,24,53,404,5,16,5,8,41,4,5,12,21,24,5,4,5,4,5,4,17,4,45,8,17,20,21,16,5,4,206,9,22,2904,242,312,90,2520,122,4528,917,24,17,12,
  9,36,6,8,153,4,5,20,5,8,225,28,5,64,93,36,29,4,29,4,29,4,29,4,29,4,29,4,29,4,29,320,5,1856,7,16,9,6,100,38,28,21,8,14,9,16,345,24,13,4,
  361,4,17,20,173,4,377,12,18,40,129,192,65,128,42,120,34,4,62,128,42,156,62,1280,26369,256,65533,23097,268,185,8,1077,12,65,42,9,80,189,
  64,125,8,281,42,156,37,8,413,8,269,8,9,4,5,4,33,84,65,4,13,4,17,4,93,52,26,40,209,56,201,112,42,96,25,12,5,4,9,4,42,113,40,93,100,117,
  28,189,112,5,42,24,21,4,41,42,21,4,165,92,13,4,33,16,42,24,93,12,5,12,201,4,5,12,9,8,21,8,5,4,5,96,13,8,45,28,13,48,25,8,25,8,25,36,29,
  4,29,4,173,4,57,24,461,52,42,24,44689,48,93,16,197,33808,1465,8,425,152,29,48,21,20,5,4,41,4,53,4,21,4,5,4,9,4,9,4,433,132,1453,72,257,
  8,217,160,49,464,21,4,541,76,42,28,105,24,105,44,357,12,25,8,25,8,25,8,13,140,49,4,105,4,77,4,9,4,61,8,57,136,493,48,182,48,230,68,10,
  976,117,12,197,64,110,16,129,18,36,81,6,33,6,20,153,40,121,8,145,16,33,4,22,168,633,8,42,24,145,16,145,16,161,32,209,48,45,4,61,4,29,4,
  9,4,45,4,61,4,29,4,9,12,209,48,1245,36,89,40,33,96,25,4,169,4,37,276,25,8,5,4,177,4,9,12,5,8,93,8,34,93,8,30,125,32,38,192,77,4,9,20,22,
  89,26,16,105,280,225,16,10,9,66,8,186,5,60,17,4,13,4,117,40,38,92,117,10,4,117,14,128,33,4,113,24,22,64,217,40,89,8,34,77,20,34,73,92,
  30,320,293,220,205,52,205,28,26,145,48,42,24,42,113,36,93,872,126,4,169,24,9,64,13,236,117,42,5,32,89,44,18,108,73,184,85,30,80,93,48,
  213,104,122,4,9,8,5,52,181,128,101,28,42,36,145,60,42,16,5,8,5,32,141,12,5,48,193,56,17,44,42,5,4,5,16,82,44,73,4,101,76,9,252,29,4,5,4,
  17,4,61,4,41,28,189,68,42,44,33,8,9,8,89,4,29,4,9,4,21,12,5,72,5,48,21,120,41,4,5,8,5,4,153,4,5,100,5,4,5,176,213,72,17,20,42,20,13,120,
  193,80,9,4,5,32,42,664,189,164,17,144,193,80,5,44,42,152,173,52,5,28,42,24,82,112,109,84,50,16,29,740,177,464,257,78,48,33,8,5,8,33,4,9,
  4,97,60,5,4,5,56,42,280,33,8,157,64,5,4,5,112,5,40,161,28,5,84,5,44,185,76,5,72,293,796,133,60,42,24,37,4,149,68,5,60,118,20,121,448,29,
  4,9,4,153,84,5,36,42,24,25,4,9,4,129,56,5,28,42,1240,77,60,5,4,53,4,137,112,42,344,5,60,86,172,3689,408,446,68,785,10544,389,60,4289,68,
  25,100,15981,20,2333,27364,121,72,42,6936,2277,28,125,4,42,24,317,4,42,24,121,72,193,64,17,48,42,4,30,4,85,20,77,1728,181,12,42,792,257,
  94,420,301,20,5,264,53,256,9,4,5,112,24545,32,4953,164,41,35740,17,4,29,4,9,4,1165,60,5,116,13,8,5,56,17,32,1585,9232,429,20,53,12,37,
  28,41,16728,42,5912,82,48,82,432,102,540,341,4,285,4,9,8,5,8,9,8,17,4,49,4,5,4,29,4,261,4,17,8,33,4,29,4,113,4,17,4,21,4,5,12,29,4,1361,
  8,101,4,101,4,125,4,101,4,125,4,101,4,125,4,101,4,125,4,101,4,33,8,202,7168,125,24,25,1044,249,584,181,40,29,8,42,16,5,1284,121,72,177,
  16,42,1880,113,16,42,856,121,8,5,42,1940,29,4,17,4,9,4,61,4,789,8,38,192,273,28,5,16,42,3164,238,4,14,4,18,304,182,4,62,776,17,4,109,4,
  9,4,5,8,5,4,41,4,17,4,5,4,5,24,5,16,5,4,5,4,5,4,13,4,9,4,5,8,5,4,5,4,5,4,5,4,5,4,9,4,5,8,17,4,29,4,17,4,17,4,5,4,41,4,69,20,13,4,21,4,
  69,2320,54,11148,42,4120,65533,65533,39817,128,16617,24,889,8,23049,56,29893,60,2489,9864,2169,6024,19757,20,16769};

/* Unicode 9.0, whose rules are those of Hugging Face's tokenizers; characters that came later stay as
   they are. Numbers below 2^21, low digits first: digits 45 to 89 are 0 to 44 with more to follow.
   0 is '#'; '?' and '\\' are left out.
   pairs: how many second parts of decompositions there are; each, from the one before. Then twice (pairs
   that are composed again, others): how many; of each 2 * number of the second part + (code points are
   left out), how many if so, the first part from that of the pair before.
   rest: how many characters stand for one other; of each 2 * that one from the one before + (code points
   are left out), how many if so. How many runs of one combining class there are; of each the code points
   left out before, its length - 1, its class from the one before. "From" means 2 x, or -2 x - 1 below 0. */
static const char mhk__nfc_pairs[] =
  "y$YF$T&q%fi.gi.Y%_%c$Q$6+p%u%/a$cA{@^$,+&]$|i$hj'nT)zX&Y`+ci.%cIfPXu$M9ayl%cZk%]GbB}f%ohh$jrT$%twj%z)U$T4[)w8{X&56"
  "_A7%bmh$kW$fmi$'vJV$R4S$V$a.q(Kn)a(D{4'^+Yo%+%jWi$V$u26=~qS$%%z7&]'z%##7#=#)#]$#C$'%'##7#)#%+##7#)#>$-%%##7#=#)#&%"
  "/##7#)##+&%3##7#=#)#]$#C$'%'##7#)#%+##7#)#>$-%%##7#=#)#&%/##7#)##+*$#1g%1e$9d$9e$V$d$V$e$#`$#e$7d$7e$-d$-e$5d$5e$5"
  "b$5e$2%b$1e$9d$9e$-d$-e$V$d$V$e$5d$5e$7`$7e$9d$9e$-d$-e$Bd$Be$7b$7e$>%b$=e$1d$1e$9d$9e$V$d$V$e$-d$8&%7e$Bb$Be$$$b$"
  "#e$Bd$Be$5d$5e$$'`$#e$Bd$Be$5d$5e$2&b$1e$9d$9e$_$d$_$e$$%^$#e$Bd$Be$5d$5e$#b$#e$7d$7e$Bd$Be$5d$5e$Bb$Be$5d$5e$>%b$"
  "=e$1d$1e$9d$9e$]$d$]$e$_$d$_$e$V$d$V$e$7`$7e$7`$7e$)d$#%#e$-d$-e$5d$5e$h$Ez$g$e$h$0W$g$e$6@_%5e$5S$5e$5W$5e$5W$5e$"
  "1l'1e$#d$#e$5d$5e$%d$%e$2$g%1e$1`11%1p21e$6%S*5e$5[$5e$V$[$V$e$1x31%5_%5s,5i;$&j$#e$&%U$%e$#y&#e$#b$#e$#>#e$JV+Je$"
  "Nd$Ne$J[$Je$Nd$Ne$J[$Je$Nd$Ne$JW$Je$Nd$Ne$J^$Je$Nd$Ne$J^$Je$Nd$Ne$i$h$i$e$i$b$i$e$6%|$5e$.)r$-e$B[$Be$1R(1e$1f$1e$"
  "-b*-e$1y61%1y71e$$h*U%#VE$$+#'#'$$/$$/#+#g$*<X%);#;#+#'#'#H*<G);#.#/#+$'5)#&O~%)#$$&*&<$'L%&99:-8:Ce$&9()#$$&*&k$$"
  "'[$%&99K:Y%J%:n$Z'9e$:0p$9e$)d$)e$:%Y$9e$*%]*)%)o+)e$)b$)e$2%b$1e$)d$)e$)W$)e$*%k*)%)a+)e$1x$1e$)d$)e$_$d$_$e$)[$)"
  "e$*%[$)e$k%l)X8a$#a$g$l%f$a$k$b$d&Y)b$$Kb$3FS$^0l=S$*3S$%)o%a&l)p%#s%e+T4u%%#v%#~$l$a&R%Y$`%Q%%}$$y%s%q(p$o%c(p$)1"
  "z%#}%$#o$+T%v%i(S%%~%$V%W&j)S&$#U%)T&([&}/W=U$xb$ss%U$$'U$$'U$$'U$$'U$&+U$Lw$U$$'U$%'T$%U$$)Z%k2[w)Y%e$-b$-e$3d$3e"
  "$Fd$Fe$#h'#e$-[*-e$3d$3e$Fd$Fe$Bd$Be$Pd$Pe$%s*%%#$#%PW,Pe$e$d$e$e$9S79%-f8-e$1b$1e$-b$-e$3d$3e$)d$)e$Bd$Be$[%d$[%e"
  "$e$b$e$e$#j'#e$#^*#e$3d$3e$Fd$Fe$3b$3e$1|i*1%Fck*Fe$Pd$Pe$#b$#e$-d$-e$3d$3e$-b$-e$3d$3e$Fd$Fe$Pd$Pe$#l'#e$)d$)e$%y"
  "&%%#$#%#[.#e$-d$-e$-`$-e$3d$3e$1^k*1%Frl*Fe$-b$-e$3d$3e$-^--%---%-Qa*-%-~l*-e$3d$3e$Fd$Fe$Pd$Pe$^%b$^%e$e$d$e$e$Pd"
  "$Pe$#v-#%)%)%=_/=e$3d$3e$%b$%e$#d$#e$)d$)e$-d$-e$3d$3e$-b$-e$)d$)e$-b$-e$7b$7e$3d$3e$Fd$Fe$FG);]$)]$'.$o.4'V13e$@d"
  "$@e$#`'#e$%d$%e$@d$@e$=d$=e$7di*7%#Qh*#%%$%%@$@%=$=%9|g*9%3dp*3e$@d$@e$=d$=e$#h'#e$%d$%e$@d$@e$=d$=e$7Vj*7%@_q*@e$"
  "3d$3e$3W$3e$@d$@e$#h'#e$%d$%e$@d$@e$=d$=e$7kj*7%#|b*#%%$%%@$@%=$=%3$3%3s13e$@d$@e$#}0#%%$%%@$@%=$=%3$3%%[2%e$3d$3e"
  "$@d$@e$=d$=e$M)nHH#%rz)%%#$#%;$;%LX|)H#%h|)%%#$#%;$;%L{z)H#%]{)%%#$#%M%q|)H#%R})%%#$#%M%j{)H#%y{)%%#$#%;$;%L`})H#%"
  "o})%%#$#%;$;%LX|)H#%h|)%%#$#%;$;%L|})H#%^~)%%#$#%;$;%Lm|)H#%||)%%#$#%M%c~)H#%r~)%%#$#%M%S})H#%c})%%#$#%;$;%I$w~)&$"
  "ZQ*$$#<$#Ll})H#%{})%%#$#%;$;%LbQ*H#%qQ*%%#$#%;$;%%bQ*&$+&$'&$'&$/&$/&$+(&oy)'%'%'%'%'%'%'%'%'%'%'%'%'%'%'%'F'%'%'%"
  "'%'%'%'%'%'%'%'%'%'%'%'%'Y%'%'%'%'%'%'%'%'%'%'%'%'%'%'%'%9nQ*1#'qQ*'pQ*',<$-'vT*9ZV*1#%#($#<'UE'du*'lQ*'4<$5']U*%s"
  "V*&$'($#%bV*##;#9wT*1#%F<&E;F9X%1#%#&%TY*##;#9UW*1#%/M$6H#;+;/9p$1#%#I$*%vE('tu*'WQ*'-<$,'lV*%eX*&$7($#0Y,[k*/'05'"
  "0Bp%/+/&0X$Y%0'-0%)0:T$0$'0=R$0%10%'0$)09`m+0$fn+0-K/lm+/'/jn+/%0%=/%0%)/%0))/%0%1/%0%)/%0FZ$///%/'0T$T%/%/L/%0)e$"
  "/%/%/%,Sq$le&,$',$',$',$',$',$',$',$',$',$',$',%),$',$',)1Z$#,$)Z$#,$)Z$#,$)Z$#,$)Z$#,9a%,,y&,0@,$',$',$',$',$',$'"
  ",$',$',$',$',$',%),$',$',)1Z$#,$)Z$#,$)Z$#,$)Z$#,$)Z$#,9a%,%]&+%+%+%,&9v$T^@Yj]$v$$'v$17g%z%[)f%%d&~.q:e&#h&W+f3i&"
  "#l&$#i%l(a.h%%z$$k5hFS$kFxi$R$%R$%R$-R$-R$%R$5R$+n$t%T(m$%n$$=d$x$w(d$%/d$Fh$c$%c$-d$%B|$n(|-{$%Y$X9|R$Y$,7Y$'-Y$'"
  "-Y$'-X%/Y$W&,Y%Y&$#q$z%r$$%r$+{%Y$4g$Y$,7Y$'-Y$'-Y$'-X%/Y$0be&nz)^&r`=Wb,a%$V$c%-4d%#b%wRc$d%#`%{Sc$_&#D#D%D%D%D%D"
  "%D%E$'D%D%D%D%E$'E$'D%E$'D%E$'D%D%D%D%a&Ms$*s$7s$5l$tS>iXl%k$%w$1y$#m&#o&#q&#l${$Q'k$%w$%w$%y$$y$%";
static const char mhk__nfc_rest[] =
  "Q:_i$g5'n$$~*T$q]$,S.+`h$ui&($($($m%$($($c)b$k'%a'-($A*:*d&*Q&*G%il$Zm$,0$}e$$cw2%'Wa1h)mq$&x-hz:`.'WoR$gR>cy5hW7o"
  "Q$wW2^h3qy%|^J#ijGqk@ygBez$ic'aa-_m'Td&qE^@rw&Zh6hk$Xz$ri$j^+wo)S`'hWJnh%U{.al&rW-vU/ntDcd,}S.qv$fi6tq2xX&hz7zY'{Y"
  "&tv%lT2gQEyU$[=_S,yS&ro&Wf%Vm'~R&o*bw&tp'fW%y^$q{5m8}T%YV&lq*]v(a|,|]<wU&Ux1qT%RW*u[&dU-^X(kdCju$k{)}z$g>eW*g:{X/a"
  "VFfV:^m:c$ac7pw$TW&ab,_j({k7wn&lp3vrB_{)xU%tw,gOkb4[X6^x7WS+pz+oj2rq&h}.c{7v`%Xh2[r)X[&}n2`Y5}t4Rw'}V3iv2b~+|k6Wc$"
  "j+~g.Y`-yu%x['Rj&YuCmAWn%jt%wf&nX(rn'vd1wc%RV%z'{iJ|Y-tb%aX5cs;tk$},Z`$s`(zT$}n$ko%tU%f]$xe*hX(Rp(sl$m}Df/wS$WY1mV"
  "/cOfY9p=Yu$lW'zb+ye'Sh5{T'Yh%iM[Z$qz,^3po(_2QT,^d%_*h5zpHx_8pW/Wj%V[>o^,~X$Um(Z*vr'b[%e|&a]%Vf*qv(xm*gw@^U;]ZFnl-p"
  "-rp%xBgs%yAyj$qa%av0^yG]g+ye=qjG[j)ph+nv3mT;ZK_f&^u(bq4mkFZOqZ'^z'Q@tBfW%[m&`N[x'fr'm$|h'sk%TZFaz0kf0wQ2_d$ku+Ve+u"
  "y%{W$[w>XW&qX-wl&k*zDe}'|T$ni0vnBui=nt;h'Zc)RV%{W0Ux3fz+{[&[h7sh&pT*^f)Sm8xx)d^%[`$%{V*$ed-%qw3hw$o[$R&@s&mS2Vf0Yi"
  "$VZ&$hg%$ho%%i4wQ'&X${&g_%Sh)T}%d{Gw>T,uEd%q,^X$a,r+}M],~y$LdU%x5c&z+jq$T0k2fPjh%h1g:^X$v3rPz[%c2P%D;@^''w2u(b@WV$"
  "y$~'V>T0cOf/#hNgc%{.^D~'fHr'~a$k.sb&]<a(VZ@|}d(g}R(R^=%~u$v)aO^L](TAj'Qa$b)S)h)Y]${*z/e$Q;m4cx$@v/S)l=h-Y){.S'~/y("
  "kGw*v'V:e<h13](WU%u(tFfHc$s*d9yAmW&ys%x-|-TA]0r'U7+Z2i$[%o*JZGVOU;n3{6m0aAq4Vp$}0ju$jLW)e$d=T(}&v'-g$t)Z*}EuU${>[="
  "o6kR%X,[-w.Z&T$^'ne$__%okd'9Zx(s}o(}]%|%yR}(k`(}Y4phc(p)cVMhbe$5H{zy'bay'|)X$`)p-t%|)U%g]1Zf[(f|z'@e$q$a_z'awZ(nh1"
  "c&kaz'n`z'X$pe$ef$H|ag)Z[g)]$Ts1Ux1P{&7lx1sQ2+d%}$P'i$f'DH[%L+##`w{'qYm'yg1y$e]|'`[|';y$i0R,e$x%X(g*`%}(e$|%#y$m$D"
  "a$[BW;^;k4V&p[%Th&k<c&[%i.x1%|-fn~'Yh~'7a$u$Dq(fXQ(y(QRQ(Y'T$~)n/T|4]$^[5v'#]vQ(cjQ(y$a$T$RVR({TR(@Vp$lm$gi5Ro5]$_"
  "*h'~ZS(txR(~xR(VuR(-i$~+'wS6^V6w&y${&_[6dah(S_h(a`6//u$Qqi)ali)SpT(#_}p'gn4#tc6~wp(jw:~Wu(Htg6~k6j'LR&U/sx6n%W}6rq"
  "U(WmU(g.3+)U'u$Z&Z$PY'u$3`%Py(g*V&R.hfV(WhV(s(m,d%n+qmV(WhV([+f%y}7~a8y$t%a&p]8{p8l%U{W(gpW(n;i2rw8X~8nQ9X&Ug./cw-"
  "x+XY0WtB}v43;e(NiwX(mUp(~l9b-[5j'ekX(ljX(w,u8j~9pT:n+`)z3VmX(jhX(So:`u:[cY(o^Y(Qu:rw:Q'd%'sRZ(e{1XW2`}Y(bxZ(^nZ(]$"
  "R,k2k&T(t'k&a$X$eeZ(llZ(`9m([z;jT<1goZ(sS[(XEXmZ(^'kiZ([-b%-kj<un<j'9v'{ij'b[j'QZ[([R[(ep[(|c[(X$d%Zi](zd](y$w}](w"
  "6]}](i$Ts=eu=`t=#tT>y$y$u$W)kW>m`>gZ_(VX_(aa_(x[_(kiv'_Zv'^g`(S%f/_W|(T$ut>Sq`(%g&`%}r`('#w&Rx>x}>o|>V*Zu}(]ma(i(q"
  "([^@po~(UVb(fab(w&X`b(Y+~p@lx@L7{_c(l=#`lc(]u@tyR)[pc(/eWAd[S)akc([eA[gA5l%UQe(]vd(hiAerA](}(SyAZkU)t%njU)owU)aee("
  "bne({ke(~+PnXf(h)~Vf(xcf(cbf(X|y'[lk(~tBZ*awBn|Bxg6efz(]$^b=Hz]y'/iy)XRJ[eC9m$^[;U^;+Lo&b|g(d|g(~'[)l)[/q0s&},T:l-"
  "+e$r|g(g>_0c}Y)Z]D+V&]Xk(^Qk(]ph(YS[)3q_[)q<fx[)rvDT$P+q(z%{.y&e0X*}(d%nZEtcEx%jcERlE/mvj(]lj(@xqEctERmNT^i)b3ii`)"
  "H{_Fx)}0S5W~k(fvk(}$Q+Y+ypl(q]a$n]]'_$n'tm]'fX]'z+~Wo(d%din(^+x%yzn(|yn(a<W1'W+yEh%dvo(VTo(hdJfhJVso(`Ti)TyJjx@VSA"
  "a|p(|5sWk)DmWKk}q(u~k)^^l)WXr(#p%Vpr(n_r(q^KSeKZ.d%a(XjK]So)g}s(x=v3ljLt%_qL^nu(j_q)gdq)k:o.Uxu(WXMq^M7@L@_&z`w(d*"
  "T47[-##'#&:##;##C#'+#$G#&H#$G#-H#'r,#&s,#*7##7##6#%6#%7#$6$%7#&6##7##'#$:##7##)#$%##$#$%##$#/(V)'#z(#6#&7##6#%7##2"
  "##&#(7#(6#$7##6#$7##2##/##'##t,##%##%##%##%##%##%##%##%#$%##%##%##%$#%$#%##%$#V,##6$#}+m$*e,##y+##%##%T$#,##%##%##"
  "%##%##%##%##%#$r+#$6#'7##6#$7##63#Z+]%)p+%&###6##7%$#$#6#$7##6G#X+B#n+##6#$7##6#$7#%6##7#$6##7##6#%7##6##7##6##7##"
  "6##7##6#$7k&)###6##7F&#$+#$%#$'#O%6p%07$#6#$7##6#$7##6#%7#%6##k+##%##%#%|+##6#$7#$6#'7a$#z,3#'&#w,##6#$7_%#z,3#'f%"
  "#&3#'f%#&3#'f%#&3#'w%##w%##*#a&##1]%#r&3#'w%##t%##e%$Y'##X'0&b'd%$91&+q$$b'>##$##$#*[$#x&##%$#'(&&%##$$f'##v,$$w,c"
  "$#6h%#f,$$'w$#c,~2%7T8#v,C##h&##-#w,i'#&Y&#.##3##6y'#7##6l$#b,7*w,%#6T$'7#(6#$7##6n%#f,2#'J#w,##6#)7Z$$v,_$#&.$'h$"
  "#&c&%{,$#X-#'s,#$7#&6##7$)X-'#s,)#7&$#d'$###6#)7##6#$7##+##K##/##G#H]$(####)##<##7##6Q3$7#$X-#&Y-#%X-#$Y-'##&$X-##"
  "Y-##6##7#$X-#&s,##7[i$%#W&#v,W%Cw,`/#:##7##+##6#$'a%$l,`z1#y,',#D$#u$$#W)#v,Z'##>4w,^$%6I#b,V%#&/#'`(#w,$$###6%$7("
  "$#$##X$#v,g(##hQ-#FU4)T,#)6#$7n8#6R(##`&'7cI#6$#7L####X-##s,'#b,p&#w,##6kB#b,]$##^$####&j$%{,T$$v,c$#&q$#',#&b%#'#"
  "#&}&####'v$#&3#';)w,&'#k'#v,&#&s%#'##&l(#'##&v%#'n%####&k%#'y@##o|,'2`$)Y-U_-#X-Yn%$k,#%j,&#Q-#'6+*+%'7#$6B&7_&%#V"
  "s$)#$3#%)#$$#$'#YU$)6e%(7##z,";

/* the character at the start of n bytes and its length; 0 when there is no well-formed one */
static size_t mhk__utf8_get(const unsigned char *p, size_t n, uint32_t *c) {
  const size_t length = mhk__utf8_length(p, n);
  if (length == 1) *c = p[0];
  if (length == 2) *c = (p[0] & 0x1Fu) << 6 | (p[1] & 0x3Fu);
  if (length == 3) *c = (p[0] & 0x0Fu) << 12 | (p[1] & 0x3Fu) << 6 | (p[2] & 0x3Fu);
  if (length == 4) *c = (p[0] & 0x07u) << 18 | (p[1] & 0x3Fu) << 12 | (p[2] & 0x3Fu) << 6 | (p[3] & 0x3Fu);
  return length;
}

/* the byte that a character of a vocabulary file stands for, or -1 */
static int mhk__byte_of(uint32_t c) {
  if ((c >= 33 && c <= 126) || (c >= 161 && c <= 255 && c != 173)) return (int)c;
  if (c >= 256 && c <= 288) return (int)c - 256;
  if (c >= 289 && c <= 322) return (int)c - 289 + 127;
  return c == 323 ? 173 : -1;
}

/* the other way round, as UTF-8: one or two bytes */
static size_t mhk__byte_character(unsigned char byte, char *out) {
  uint32_t c = byte;
  if (c <= 32)
    c += 256;
  else if (c >= 127 && c <= 160)
    c += 289 - 127;
  else if (c == 173)
    c = 323;
  return mhk__utf8_put(out, c);
}

/* ---------------------------------------------------------------------------------------- structures */

/* what an id is: any of these; none: the id does not exist */
#define MHK__TOKEN_VOCABULARY 1
#define MHK__TOKEN_MAPPED 2 /* its text in the vocabulary stands for bytes; else the text is meant as it is, and no merge reaches it */
#define MHK__TOKEN_ADDED 4

typedef struct mhk__merge { uint32_t left, right, rank; } mhk__merge; /* a slot of the table; rank UINT32_MAX: empty */

typedef struct mhk__added {
  const char *text; /* as it is looked for: what is matched in normalized text is normalized itself */
  const char *content;
  size_t length, content_length;
  int32_t id; /* -1: another of this text counts */
  unsigned char lstrip, rstrip, special, normalized;
} mhk__added;

/* Sorted by text; those that start with byte b are first[b] up to first[b + 1]. */
typedef struct mhk__added_set {
  const mhk__added **tokens;
  mhk_index n;
  mhk_index first[257];
} mhk__added_set;

/* words met before, with their ids: text is mostly made of few words */
#ifdef MOHAWK_NO_TRAINING
#define MHK__WORD_BITS 6 /* prompts are short: 4 kB instead of 256 */
#else
#define MHK__WORD_BITS 12
#endif
#define MHK__WORD_SLOTS (1 << MHK__WORD_BITS)
#define MHK__WORD_BYTES 16
#define MHK__WORD_IDS 11
typedef struct mhk__word {
  unsigned char text[MHK__WORD_BYTES]; /* rest zero */
  unsigned char length, n, unused[2];  /* length 0: empty */
  int32_t ids[MHK__WORD_IDS];
} mhk__word;

/* Normalization to NFC. A character's entry: combining class; MHK__NFC_PART times 1 + the number of its
   decomposition; whether it may join with a character before it; whether it never stays. */
#define MHK__NFC_CLASS 0xFFu
#define MHK__NFC_PART 0x100u
#define MHK__NFC_JOINS 0x100000u
#define MHK__NFC_GOES 0x200000u
#define MHK__NFC_END 0x30000u /* no entries from here on */
#define MHK__NFC_HASH 2048u
typedef struct mhk__nfc {
  unsigned char page[MHK__NFC_END / 64];
  uint32_t (*entries)[64];    /* page 0 is empty */
  uint32_t (*parts)[3];       /* a character and what it stands for; [2] 0: one character */
  uint16_t *pairs;            /* numbers + 1 of what composes, hashed by both parts; 0: empty */
} mhk__nfc;

struct mhk_tokenizer {
  mhk__object object;
  uint32_t *classes; /* starts of the runs of mhk__class_runs, each 4 * first code point + class */
  mhk_index n_classes;
  unsigned char ascii[128];
  int size;             /* the largest id + 1 */
  char *bytes;          /* all tokens, each followed by a 0 */
  uint32_t *at, *length; /* by id */
  unsigned char *kind;
  int32_t *slot_ids; /* the vocabulary hashed by bytes; -1: empty */
  uint32_t slot_mask;
  mhk__merge *merges;
  uint32_t merge_mask, n_merges;
  int32_t *merged; /* by rank */
  uint32_t byte_ids[256];
  mhk__added_set added[2]; /* those looked for first (not normalized), and the others, looked for in what is left */
  mhk__word *words;
  mhk__nfc *nfc; /* NULL: text is taken as it is */
  int prefix_space, use_regex, ignore_merges;
  int cuts; /* text may be cut before any space that follows something else */
  int32_t end, start;
  int puts_start; /* start goes before prompts */
  const char *json, *config; /* tokenizer.json; tokenizer_config.json or NULL */
  size_t json_length, config_length;
};

/* ---------------------------------------------------------------------------------------- character classes */

static int mhk__classes_make(mhk_tokenizer *k) {
  mhk_context *ctx = k->object.ctx;
  const mhk_index n = (mhk_index)(sizeof mhk__class_runs / sizeof *mhk__class_runs);
  uint32_t at = 0, c;
  mhk_index i, run = 0;
  k->classes = (uint32_t *)mhk__arena_zeros(ctx, &k->object.arena, n + 1, sizeof(uint32_t));
  if (!k->classes) return 0;
  for (i = 0; i < n; i++) {
    k->classes[i] = at << 2 | (mhk__class_runs[i] & 3u);
    at += mhk__class_runs[i] >> 2;
  }
  k->classes[n] = at << 2 | MHK__OTHER;
  k->n_classes = n + 1;
  for (c = 0; c < 128; c++) {
    while (k->classes[run + 1] >> 2 <= c) run++;
    k->ascii[c] = (unsigned char)(k->classes[run] & 3u);
  }
  return 1;
}

/* The class of the character at the start of n > 0 bytes, and how long it is. A byte that is part of no character counts as one. */
static unsigned mhk__class_at(const mhk_tokenizer *k, const unsigned char *p, size_t n, size_t *length) {
  uint32_t c = 0;
  mhk_index low = 0, high = k->n_classes;
  if (*p < 128) {
    *length = 1;
    return k->ascii[*p];
  }
  *length = mhk__utf8_get(p, n, &c);
  if (*length == 0) {
    *length = 1;
    return MHK__OTHER;
  }
  while (high - low > 1) { /* the last run that does not start behind c */
    const mhk_index middle = low + (high - low) / 2;
    if (k->classes[middle] >> 2 <= c)
      low = middle;
    else
      high = middle;
  }
  return k->classes[low] & 3u;
}

/* ---------------------------------------------------------------------------------------- tables */

static uint32_t mhk__hash_bytes(const char *p, size_t n) { /* FNV-1a, its halves folded */
  uint64_t h = 0xCBF29CE484222325u;
  size_t i;
  for (i = 0; i < n; i++) h = (h ^ (unsigned char)p[i]) * 0x100000001B3u;
  return (uint32_t)(h ^ h >> 32);
}

static uint32_t mhk__hash_pair(uint32_t left, uint32_t right) {
  return (uint32_t)(((uint64_t)left << 32 | right) * 0x9E3779B97F4A7C15u >> 32);
}

/* a power of two with at least half of the slots left empty; 0 and an error when there are too many */
static uint32_t mhk__table_size(mhk_context *ctx, mhk_index n, const char *where) {
  uint32_t size = 16;
  if (n > ((mhk_index)1 << 28)) {
    mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "%s has %lld entries, more than this version reads", where, (long long)n);
    return 0;
  }
  while (size < 2 * (uint32_t)n) size *= 2;
  return size;
}

/* the id of a token of the vocabulary, or -1; *slot is where it is or would be */
static int32_t mhk__vocabulary_find(const mhk_tokenizer *k, const char *bytes, size_t n, int mapped, uint32_t *slot) {
  uint32_t s = mhk__hash_bytes(bytes, n) & k->slot_mask;
  for (;; s = (s + 1) & k->slot_mask) {
    const int32_t id = k->slot_ids[s];
    if (slot) *slot = s;
    if (id < 0) return id;
    if (k->length[id] == n && ((k->kind[id] & MHK__TOKEN_MAPPED) != 0) == mapped && memcmp(k->bytes + k->at[id], bytes, n) == 0) return id;
  }
}

/* the rank of a pair, UINT32_MAX when it does not merge */
static uint32_t mhk__merge_rank(const mhk_tokenizer *k, uint32_t left, uint32_t right) {
  uint32_t s = mhk__hash_pair(left, right) & k->merge_mask;
  for (;; s = (s + 1) & k->merge_mask) {
    const mhk__merge *m = &k->merges[s];
    if ((m->left == left && m->right == right) || m->rank == UINT32_MAX) return m->rank;
  }
}

/* ---------------------------------------------------------------------------------------- normalization */

static uint32_t mhk__nfc_number(const char **p) {
  uint32_t value = 0, scale = 1, digit;
  do {
    const uint32_t c = (unsigned char)*(*p)++;
    digit = c - 35 - (c > 63) - (c > 92);
    value += digit % 45 * scale;
    scale *= 45;
  } while (digit >= 45);
  return value;
}

static uint32_t mhk__nfc_from(uint32_t before, uint32_t x) { return x & 1 ? before - (x + 1) / 2 : before + x / 2; }

static uint32_t mhk__nfc_at(const mhk__nfc *f, uint32_t c) {
  return c < MHK__NFC_END ? f->entries[f->page[c / 64]][c % 64] : 0;
}

/* the entry of a character, to be changed */
static uint32_t *mhk__nfc_entry(mhk_tokenizer *k, uint32_t c, uint32_t *pages) {
  unsigned char *page = &k->nfc->page[c / 64];
  if (!*page) *page = (unsigned char)(*pages)++;
  return &k->nfc->entries[*page][c % 64];
}

static void mhk__nfc_pair(mhk__nfc *f, uint32_t number) {
  uint32_t slot = mhk__hash_pair(f->parts[number][1], f->parts[number][2]) % MHK__NFC_HASH;
  while (f->pairs[slot]) slot = (slot + 1) % MHK__NFC_HASH;
  f->pairs[slot] = (uint16_t)(number + 1);
}

/* Unpacks the tables above. */
static int mhk__nfc_make(mhk_tokenizer *k) {
  mhk_context *ctx = k->object.ctx;
  mhk__arena *arena = &k->object.arena;
  uint32_t second[96], seconds, pages = 1, list, i, j, n, code, first, x, number = 0, kind = 0;
  const char *p = mhk__nfc_pairs;
  k->nfc = (mhk__nfc *)mhk__arena_zeros(ctx, arena, 1, sizeof *k->nfc);
  if (!k->nfc) return 0;
  k->nfc->entries = (uint32_t(*)[64])mhk__arena_zeros(ctx, arena, 163, sizeof *k->nfc->entries);
  k->nfc->parts = (uint32_t(*)[3])mhk__arena_zeros(ctx, arena, 2060, sizeof *k->nfc->parts);
  k->nfc->pairs = (uint16_t *)mhk__arena_zeros(ctx, arena, MHK__NFC_HASH, sizeof *k->nfc->pairs);
  if (mhk_failed(ctx)) return 0;
  seconds = mhk__nfc_number(&p);
  for (i = 0; i < seconds; i++) second[i] = mhk__nfc_from(i ? second[i - 1] : 0, mhk__nfc_number(&p));
  for (list = 0; list < 3; list++) {
    if (list == 2) p = mhk__nfc_rest;
    n = mhk__nfc_number(&p);
    for (code = first = i = 0; i < n; i++, number++) {
      uint32_t *part = k->nfc->parts[number];
      x = mhk__nfc_number(&p);
      code += list < 2 && (x & 1) ? 1 + mhk__nfc_number(&p) : 1;
      first = mhk__nfc_from(first, list < 2 ? mhk__nfc_number(&p) : x / 2);
      if (list == 2 && (x & 1)) code += mhk__nfc_number(&p);
      part[0] = code;
      part[1] = first;
      if (list < 2) part[2] = second[x / 2];
      *mhk__nfc_entry(k, code, &pages) |= MHK__NFC_PART * (number + 1) | (list ? MHK__NFC_GOES : 0);
      if (list == 0) {
        *mhk__nfc_entry(k, part[2], &pages) |= MHK__NFC_JOINS;
        mhk__nfc_pair(k->nfc, number);
      }
    }
  }
  n = mhk__nfc_number(&p);
  for (code = i = 0; i < n; i++) {
    code += mhk__nfc_number(&p);
    x = mhk__nfc_number(&p) + 1;
    kind = mhk__nfc_from(kind, mhk__nfc_number(&p));
    for (j = 0; j < x; j++) *mhk__nfc_entry(k, code++, &pages) |= kind;
  }
  for (code = 0x1161; code < 0x11C3; code++) /* Hangul: vowels, and consonants after them */
    if (code < 0x1176 || code > 0x11A7) *mhk__nfc_entry(k, code, &pages) |= MHK__NFC_JOINS;
  for (i = 0; i < number; i++) /* some stand for marks only, which move */
    if (mhk__nfc_at(k->nfc, k->nfc->parts[i][1]) & MHK__NFC_CLASS)
      *mhk__nfc_entry(k, k->nfc->parts[i][0], &pages) |= MHK__NFC_JOINS;
  return 1;
}

/* Is the text known to be NFC? The quick check of Unicode's annex 15; a maybe counts as no. */
static int mhk__nfc_fine(const mhk__nfc *f, const unsigned char *text, size_t n) {
  size_t at = 0, step;
  uint32_t last = 0, c = 0, e;
  for (; at < n; at += step) {
    step = 1;
    e = 0;
    if (text[at] >= 0xCC) { /* U+0300 is the first of interest */
      step = mhk__utf8_get(text + at, n - at, &c);
      if (step == 0)
        step = 1;
      else
        e = mhk__nfc_at(f, c);
    }
    if (e & (MHK__NFC_JOINS | MHK__NFC_GOES)) return 0;
    e &= MHK__NFC_CLASS;
    if (e && e < last) return 0;
    last = e;
  }
  return 1;
}

/* Decomposes c into out, at most four characters; returns how many. */
static size_t mhk__nfc_parts_of(const mhk__nfc *f, uint32_t c, uint32_t *out) {
  size_t n = 0, i;
  uint32_t second[4], e;
  if (c >= 0xAC00 && c < 0xD7A4) {
    c -= 0xAC00;
    out[0] = 0x1100 + c / 588;
    out[1] = 0x1161 + c % 588 / 28;
    out[2] = 0x11A7 + c % 28;
    return c % 28 ? 3 : 2;
  }
  while ((e = mhk__nfc_at(f, c) / MHK__NFC_PART & 0xFFF) != 0) { /* second parts never come apart */
    c = f->parts[e - 1][1];
    if (f->parts[e - 1][2]) second[n++] = f->parts[e - 1][2];
  }
  out[0] = c;
  for (i = 0; i < n; i++) out[1 + i] = second[n - 1 - i];
  return n + 1;
}

/* what two characters become, or 0 */
static uint32_t mhk__nfc_join(const mhk__nfc *f, uint32_t a, uint32_t b) {
  uint32_t slot = mhk__hash_pair(a, b) % MHK__NFC_HASH, number;
  if (a >= 0x1100 && a < 0x1113 && b >= 0x1161 && b < 0x1176) return 0xAC00 + ((a - 0x1100) * 21 + b - 0x1161) * 28;
  if (a >= 0xAC00 && a < 0xD7A4 && (a - 0xAC00) % 28 == 0 && b > 0x11A7 && b < 0x11C3) return a + b - 0x11A7;
  for (; (number = f->pairs[slot]) != 0; slot = (slot + 1) % MHK__NFC_HASH)
    if (f->parts[number - 1][1] == a && f->parts[number - 1][2] == b) return f->parts[number - 1][0];
  return 0;
}

/* Marks in the order of their classes, those of one class as they were: a round for each class there is. */
static void mhk__nfc_order(const mhk__nfc *f, const uint32_t *in, size_t n, uint32_t *out) {
  uint32_t class_now = 0, class_next;
  do {
    class_next = 256;
    for (size_t i = 0; i < n; i++) {
      const uint32_t e = mhk__nfc_at(f, in[i]) & MHK__NFC_CLASS;
      if (e == class_now)
        *out++ = in[i];
      else if (e > class_now && e < class_next)
        class_next = e;
    }
    class_now = class_next;
  } while (class_now < 256);
}

/* A character and what joins with it or is ordered after it: n bytes of well-formed text. Returns the bytes written. */
static size_t mhk__nfc_run(mhk_context *ctx, const mhk__nfc *f, const unsigned char *text, size_t n, char *out) {
  mhk__mark mark = mhk__scratch_mark(ctx);
  uint32_t *a, *b, c = 0, last = 0;
  size_t characters = 0, used = 0, i, j, kept = 0, starter = 0, started = 0;
  for (i = 0; i < n; i++) characters += (text[i] & 0xC0u) != 0x80;
  a = (uint32_t *)mhk__scratch(ctx, (mhk_index)characters, 4 * sizeof *a);
  b = (uint32_t *)mhk__scratch(ctx, (mhk_index)characters, 4 * sizeof *b);
  if (a && b) {
    for (i = 0; i < n;) {
      i += mhk__utf8_get(text + i, n - i, &c);
      used += mhk__nfc_parts_of(f, c, a + used);
    }
    for (i = 0; i < used; i = j) {
      for (j = i; j < used && (mhk__nfc_at(f, a[j]) & MHK__NFC_CLASS) != 0; j++) continue;
      if (j > i) mhk__nfc_order(f, a + i, j - i, b + i);
      if (j < used) b[j] = a[j], j++;
    }
    for (i = 0; i < used; i++) { /* what is kept goes back into a */
      const uint32_t e = mhk__nfc_at(f, b[i]) & MHK__NFC_CLASS;
      const uint32_t joined = started && (kept == starter + 1 || last < e) ? mhk__nfc_join(f, a[starter], b[i]) : 0;
      if (joined) {
        a[starter] = joined;
        continue;
      }
      if (e == 0) {
        starter = kept;
        started = 1;
      }
      last = e;
      a[kept++] = b[i];
    }
    for (used = i = 0; i < kept; i++) used += mhk__utf8_put(out + used, a[i]);
  } else
    used = 0;
  mhk__scratch_rewind(ctx, mark);
  return used;
}

/* The NFC of n bytes, at most 3 n. What is no character stays, and nothing joins with it. */
static size_t mhk__nfc_text(mhk_tokenizer *k, const unsigned char *text, size_t n, char *out) {
  const mhk__nfc *f = k->nfc;
  size_t at = 0, end, step, used = 0;
  uint32_t c = 0;
  while (at < n && !mhk_failed(k->object.ctx)) {
    step = mhk__utf8_get(text + at, n - at, &c);
    end = at + (step ? step : 1);
    if (step)
      while (end < n && (step = mhk__utf8_get(text + end, n - end, &c)) != 0 &&
             (mhk__nfc_at(f, c) & (MHK__NFC_CLASS | MHK__NFC_JOINS)) != 0)
        end += step;
    if (mhk__nfc_fine(f, text + at, end - at)) {
      memcpy(out + used, text + at, end - at);
      used += end - at;
    } else
      used += mhk__nfc_run(k->object.ctx, f, text + at, end - at, out + used);
    at = end;
  }
  return used;
}

/* ---------------------------------------------------------------------------------------- reading */

/* Where a tokenizer comes from. The vocabulary is an object of ids by text; added tokens an array of objects (tokenizer.json), an object
   of ids by text (added_tokens.json) or of objects by id (decoder, in tokenizer_config.json), or not there; merges an array, or lines
   of text. */
typedef struct mhk__token_source {
  const char *where, *merges_where, *added_where, *config_where; /* names in errors */
  const mhk__json *vocabulary, *added, *merges, *post_processor, *config, *decoder;
  const char *merge_lines, *config_text;
  size_t merge_lines_length, config_length;
} mhk__token_source;

/* how many of n bytes to show in a message: short, and whole characters (for "%.*s") */
static int mhk__shown(const char *text, size_t n) {
  size_t most = n < 60 ? n : 60;
  if (most < n)
    while (most > 0 && ((unsigned char)text[most] & 0xC0u) == 0x80) most--;
  return (int)most;
}

/* A token's text as bytes: 1 when every character stands for one; 0: copied as it is. Never longer than the text. */
static int mhk__token_map(const char *text, size_t n, char *out, size_t *length) {
  size_t i = 0, step, used = 0;
  while (i < n) {
    uint32_t c = 0;
    int byte = -1;
    step = mhk__utf8_get((const unsigned char *)text + i, n - i, &c);
    if (step) byte = mhk__byte_of(c);
    if (byte < 0) {
      memcpy(out, text, n);
      *length = n;
      return 0;
    }
    out[used++] = (char)(unsigned char)byte;
    i += step;
  }
  *length = used;
  return 1;
}

/* Text and id of an entry of the vocabulary or of the added tokens; 0 after an error. */
static int mhk__token_entry(mhk_context *ctx, const mhk__json *x, const char *where, const char **text, size_t *length, int32_t *id) {
  const mhk__json *value = x;
  int64_t number = -1;
  size_t at = 0;
  if (x->key && !mhk__json_is(x, MHK__JSON_OBJECT)) {
    *text = x->key;
    *length = x->key_length;
  } else { /* the key, if any, is the id: added_tokens_decoder of a tokenizer_config.json */
    const mhk__json *content = mhk__json_get(x, "content");
    value = x->key ? NULL : mhk__json_get(x, "id");
    for (number = 0; x->key && x->key[at] >= '0' && x->key[at] <= '9' && at < 10; at++)
      number = 10 * number + (x->key[at] - '0');
    if (x->key && (at == 0 || at < x->key_length)) number = -1;
    if (!mhk__json_is(content, MHK__JSON_STRING)) {
      mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: the added token at byte %lld has no text \"content\"", where, (long long)x->at);
      return 0;
    }
    *text = content->text;
    *length = content->length;
  }
  if (value == x && (*length == 0 || memchr(*text, 0, *length))) {
    mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: the token at byte %lld %s", where, (long long)x->at,
             *length ? "has a zero character" : "is empty");
    return 0;
  }
  if ((value || !x->key) && !mhk__json_integer(value, &number)) number = -1;
  if (number < 0 || number >= INT32_MAX) {
    mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: the id of token \"%.*s\" should be a whole number from 0 to %ld", where,
             mhk__shown(*text, *length), *text, (long)INT32_MAX - 1);
    return 0;
  }
  *id = (int32_t)number;
  return 1;
}

/* object[key] as 0 or 1; fallback when it is not there */
static int mhk__token_flag(mhk_context *ctx, const mhk__json *object, const char *key, int fallback, const char *where) {
  const mhk__json *x = mhk__json_get(object, key);
  if (!x) return fallback;
  if (!mhk__json_is(x, MHK__JSON_TRUE) && !mhk__json_is(x, MHK__JSON_FALSE))
    mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: \"%s\" at byte %lld should be true or false", where, key, (long long)x->at);
  return mhk__json_is(x, MHK__JSON_TRUE);
}

static int mhk__added_compare(const void *a, const void *b) {
  const mhk__added *x = (const mhk__added *)a, *y = (const mhk__added *)b;
  return mhk__text_order(x->text, x->length, y->text, y->length);
}

/* Can an id be that of one among count tokens? There may be gaps. */
static int mhk__id_plausible(int32_t id, mhk_index count) { return id / 4 <= count + 16384; }

/* Ids, bytes and kinds of all tokens, and the vocabulary's table. */
static int mhk__tokens_read(mhk_tokenizer *k, const mhk__token_source *source, size_t *longest, size_t *used) {
  mhk_context *ctx = k->object.ctx;
  mhk__arena *arena = &k->object.arena;
  const char *text = NULL;
  size_t length = 0, total = 0;
  uint32_t n_slots, slot = 0;
  const mhk_index n_added = source->added ? source->added->count : 0, count = source->vocabulary->count + n_added;
  int32_t id = 0, top = -1;
  for (int pass = 0; pass < 2; pass++) {
    const mhk__json *list = pass ? source->added : source->vocabulary;
    for (const mhk__json *x = list ? list->first : NULL; x; x = x->next) {
      if (!mhk__token_entry(ctx, x, pass ? source->added_where : source->where, &text, &length, &id)) return 0;
      if (!mhk__id_plausible(id, count)) {
        mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: id %ld of token \"%.*s\" is far beyond the %lld tokens there are",
                 pass ? source->added_where : source->where, (long)id, mhk__shown(text, length), text, (long long)count);
        return 0;
      }
      if (id > top) top = id;
      if (pass == 0 && length > *longest) *longest = length;
      total += length + 1; /* cannot overflow: the text was in memory before */
    }
  }
  if (total >= UINT32_MAX) {
    mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "%s has %.0f MB of tokens, more than this version reads", source->where, (double)total * 1e-6);
    return 0;
  }
  n_slots = mhk__table_size(ctx, source->vocabulary->count, source->where);
  if (!n_slots) return 0;
  k->slot_mask = n_slots - 1;
  /* added tokens whose id is taken go behind all others */
  k->bytes = (char *)mhk__arena_zeros(ctx, arena, (mhk_index)total, 1);
  k->at = (uint32_t *)mhk__arena_zeros(ctx, arena, top + 1 + n_added, sizeof(uint32_t));
  k->length = (uint32_t *)mhk__arena_zeros(ctx, arena, top + 1 + n_added, sizeof(uint32_t));
  k->kind = (unsigned char *)mhk__arena_zeros(ctx, arena, top + 1 + n_added, 1);
  k->slot_ids = (int32_t *)mhk__arena_zeros(ctx, arena, (mhk_index)n_slots, sizeof(int32_t));
  if (!k->slot_ids) return 0;
  memset(k->slot_ids, 0xFF, n_slots * sizeof(int32_t));

  for (const mhk__json *x = source->vocabulary->first; x; x = x->next) {
    if (!mhk__token_entry(ctx, x, source->where, &text, &length, &id)) return 0;
    if (k->kind[id]) {
      mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: id %ld is given to \"%.*s\", and to another token before it", source->where, (long)id,
               mhk__shown(text, length), text);
      return 0;
    }
    const int mapped = mhk__token_map(text, length, k->bytes + *used, &length);
    if (mhk__vocabulary_find(k, k->bytes + *used, length, mapped, &slot) >= 0) {
      mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: token \"%.*s\" is there twice", source->where, mhk__shown(text, x->key_length), text);
      return 0;
    }
    k->slot_ids[slot] = id;
    k->at[id] = (uint32_t)*used;
    k->length[id] = (uint32_t)length;
    k->kind[id] = (unsigned char)(MHK__TOKEN_VOCABULARY | (mapped ? MHK__TOKEN_MAPPED : 0));
    *used += length + 1;
    if (id >= k->size) k->size = (int)id + 1;
  }
  return 1;
}

/* The id of an added token, whose bytes are noted when it is new. One that the vocabulary has keeps that
   id, and one whose id is taken gets the next free one, as with Hugging Face's tokenizers. Other programs
   may go by the file, so a warning tells. */
static void mhk__added_place(mhk_tokenizer *k, const mhk__token_source *source, mhk__added *a, size_t *used) {
  mhk_context *ctx = k->object.ctx;
  size_t length = 0;
  const int mapped = mhk__token_map(a->content, a->content_length, k->bytes + *used, &length);
  const int32_t there = mhk__vocabulary_find(k, k->bytes + *used, length, mapped, NULL), named = a->id;
  const int taken = there < 0 && k->kind[named] != 0;
  if (taken)
    a->id = (int32_t)k->size;
  else if (there >= 0)
    a->id = there;
  if (a->id != named) {
    const char *why = taken ? "which another token has" : "and another one in the vocabulary";
    if (!mhk__json_is(source->added, MHK__JSON_ARRAY)) { /* nobody else reads such a file either */
      mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: added token \"%.*s\" has id %ld, %s", source->added_where,
               mhk__shown(a->content, a->content_length), a->content, (long)named, why);
      return;
    }
    mhk__note(ctx, MHK_LOG_WARNING,
              "%s: added token \"%.*s\" has id %ld, %s: it becomes %ld, as with Hugging Face's tokenizers",
              source->added_where, mhk__shown(a->content, a->content_length), a->content, (long)named, why,
              (long)a->id);
  }
  if (there < 0) { /* its bytes are its text, whatever the characters */
    memcpy(k->bytes + *used, a->content, a->content_length);
    k->bytes[*used + a->content_length] = 0;
    k->at[a->id] = (uint32_t)*used;
    k->length[a->id] = (uint32_t)a->content_length;
    *used += a->content_length + 1;
  }
  k->kind[a->id] = (unsigned char)(k->kind[a->id] | MHK__TOKEN_ADDED);
  if (a->id >= k->size) k->size = (int)a->id + 1;
}

static void mhk__added_flags(mhk_context *ctx, const mhk__json *x, const char *where, mhk__added *a) {
  a->normalized = (unsigned char)mhk__token_flag(ctx, x, "normalized", 0, where);
  a->special = (unsigned char)mhk__token_flag(ctx, x, "special", 0, where);
  a->lstrip = (unsigned char)mhk__token_flag(ctx, x, "lstrip", 0, where);
  a->rstrip = (unsigned char)mhk__token_flag(ctx, x, "rstrip", 0, where);
  if (mhk__token_flag(ctx, x, "single_word", 0, where))
    mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "%s: added token \"%.*s\" has single_word set, which is not supported", where,
             mhk__shown(a->content, a->content_length), a->content);
}

/* One of the two sets that are looked for: sorted, no text twice. Behind the pointers is as much room again. */
static void mhk__added_sort(mhk__added_set *s, mhk_index room) {
  mhk_index i, n = 0;
  unsigned b = 0;
  mhk__sort((const void **)s->tokens, (const void **)(s->tokens + room), s->n, mhk__added_compare);
  for (i = 0; i < s->n; i++) {
    if (n > 0 && mhk__added_compare(s->tokens[n - 1], s->tokens[i]) == 0) continue; /* normalized they are the same */
    while (b <= (unsigned char)s->tokens[i]->text[0]) s->first[b++] = n;
    s->tokens[n++] = s->tokens[i];
  }
  s->n = n;
  while (b <= 256) s->first[b++] = n;
}

/* What is looked for in normalized text. Does it allow cuts before spaces? */
static int mhk__added_normalize(mhk_tokenizer *k, mhk__added *a) {
  if (k->nfc) {
    char *text = (char *)mhk__arena_alloc(k->object.ctx, &k->object.arena, 3 * a->length + 1);
    if (!text) return 0;
    a->length = mhk__nfc_text(k, (const unsigned char *)a->content, a->length, text);
    text[a->length] = 0;
    a->text = text;
  }
  if (a->rstrip) k->cuts = 0;
  for (size_t i = 1; i < a->length; i++)
    if (a->text[i] == ' ' && a->text[i - 1] != ' ') k->cuts = 0;
  return 1;
}

/* Added tokens as they are looked for in text. The end-of-text token of a bare vocabulary counts as one. */
static int mhk__added_read(mhk_tokenizer *k, const mhk__token_source *source, size_t used) {
  mhk_context *ctx = k->object.ctx;
  const char end_text[] = "<|endoftext|>";
  const mhk_index most = 1 + (source->added ? source->added->count : 0);
  const int bare = !mhk__json_is(source->added, MHK__JSON_ARRAY), flags = !bare || source->added == source->decoder;
  mhk__added *all = (mhk__added *)mhk__arena_zeros(ctx, &k->object.arena, most, sizeof(mhk__added));
  mhk__added *a = all, *kept = NULL;
  mhk_index i, n = 0;
  for (int set = 0; set < 2; set++) { /* twice the room: sorting wants it */
    k->added[set].tokens = (const mhk__added **)mhk__arena_zeros(ctx, &k->object.arena, most, 2 * sizeof(mhk__added *));
    if (!all || !k->added[set].tokens) return 0;
  }
  mhk__added **order = (mhk__added **)(void *)k->added[0].tokens;
  for (const mhk__json *x = source->added ? source->added->first : NULL; x; x = x->next) {
    if (!mhk__token_entry(ctx, x, source->added_where, &a->content, &a->content_length, &a->id)) return 0;
    if (a->content_length == 0) continue; /* as Hugging Face's tokenizers do */
    a->normalized = 1;
    if (flags) mhk__added_flags(ctx, x, source->added_where, a);
    a->content = mhk__arena_text(ctx, &k->object.arena, a->content, a->content_length);
    if (!a->content || mhk_failed(ctx)) return 0;
    a->text = a->content;
    a->length = a->content_length;
    order[n++] = a++;
  }
  mhk__sort((const void **)(void *)order, (const void **)(void *)(order + most), n, mhk__added_compare);
  for (i = 0; i < n; i++)
    if (kept && mhk__added_compare(kept, order[i]) == 0) { /* once more: the first one's id, the last one's flags */
      const int32_t id = kept->id;
      const char *text = kept->content;
      *kept = *order[i];
      kept->id = id;
      kept->text = kept->content = text;
      order[i]->id = -1;
    } else
      kept = order[i];
  k->end = mhk__vocabulary_find(k, end_text, sizeof end_text - 1, 1, NULL);
  for (a = all; n > 0; a++, n--) {
    const int is_end = a->length == sizeof end_text - 1 && memcmp(a->text, end_text, a->length) == 0;
    if (a->id < 0) continue;
    mhk__added_place(k, source, a, &used);
    if (is_end) k->end = a->id;
    if (is_end && !flags) { /* special there as well */
      a->normalized = 0;
      a->special = 1;
    }
    if (mhk_failed(ctx) || (a->normalized && !mhk__added_normalize(k, a))) return 0;
  }
  n = a - all;
  if (bare && k->end >= 0 && !(k->kind[k->end] & MHK__TOKEN_ADDED)) {
    a->text = a->content = k->bytes + k->at[k->end];
    a->length = a->content_length = sizeof end_text - 1;
    a->id = k->end;
    a->special = 1;
    k->kind[k->end] = (unsigned char)(k->kind[k->end] | MHK__TOKEN_ADDED);
    n++;
  }
  for (i = 0; i < n; i++)
    if (all[i].id >= 0) k->added[all[i].normalized].tokens[k->added[all[i].normalized].n++] = all + i;
  for (int set = 0; set < 2; set++) mhk__added_sort(&k->added[set], most);
  return !mhk_failed(ctx);
}

/* One merge: both parts and the whole must be in the vocabulary. room has place for two tokens of the length longest. */
static int mhk__merge_add(mhk_tokenizer *k, const mhk__token_source *source, const char *left, size_t n_left, const char *right,
                          size_t n_right, char *room, size_t longest) {
  mhk_context *ctx = k->object.ctx;
  int32_t id[3] = {-1, -1, -1};
  int mapped[2] = {0, 0};
  size_t n[2] = {0, 0};
  mhk__merge *m;
  if (n_left <= longest && n_right <= longest) {
    mapped[0] = mhk__token_map(left, n_left, room, &n[0]);
    id[0] = mhk__vocabulary_find(k, room, n[0], mapped[0], NULL);
    mapped[1] = mhk__token_map(right, n_right, room + n[0], &n[1]);
    id[1] = mhk__vocabulary_find(k, room + n[0], n[1], mapped[1], NULL);
    id[2] = mhk__vocabulary_find(k, room, n[0] + n[1], 1, NULL);
  }
  if (id[0] < 0 || id[1] < 0 || (id[2] < 0 && mapped[0] && mapped[1])) {
    const char *shown = id[0] < 0 ? left : right;
    const size_t length = id[0] < 0 ? n_left : n_right;
    if (id[0] < 0 || id[1] < 0)
      mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: merge %ld names \"%.*s\", which is not in the vocabulary", source->merges_where,
               (long)k->n_merges + 1, mhk__shown(shown, length), shown);
    else
      mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: merge %ld makes a token out of \"%.*s\" and \"%.*s\" that is not in the vocabulary",
               source->merges_where, (long)k->n_merges + 1, mhk__shown(left, n_left), left, mhk__shown(right, n_right), right);
    return 0;
  }
  k->merged[k->n_merges] = id[2];
  if (mapped[0] && mapped[1]) { /* other tokens do not come out of bytes, so there is nothing to merge */
    for (uint32_t s = mhk__hash_pair((uint32_t)id[0], (uint32_t)id[1]) & k->merge_mask;; s = (s + 1) & k->merge_mask) {
      m = &k->merges[s];
      if (m->rank == UINT32_MAX || (m->left == (uint32_t)id[0] && m->right == (uint32_t)id[1])) break;
    }
    m->left = (uint32_t)id[0];
    m->right = (uint32_t)id[1];
    m->rank = k->n_merges;
  }
  k->n_merges++;
  return 1;
}

/* the two parts of "left right"; 0 when there are not two */
static int mhk__merge_split(const char *line, size_t n, size_t *n_left) {
  const char *space = (const char *)memchr(line, ' ', n);
  if (!space || space == line) return 0;
  *n_left = (size_t)(space - line);
  return *n_left + 1 < n && !memchr(space + 1, ' ', n - *n_left - 1);
}

/* room: as for mhk__merge_add */
static int mhk__merges_read(mhk_tokenizer *k, const mhk__token_source *source, char *room, size_t longest) {
  mhk_context *ctx = k->object.ctx;
  mhk_index count = 0, i;
  size_t at, end, n_left = 0;
  if (source->merges)
    count = source->merges->count;
  else
    for (at = 0; at < source->merge_lines_length; at++) count += source->merge_lines[at] == '\n' || at + 1 == source->merge_lines_length;
  const uint32_t n_slots = mhk__table_size(ctx, count, source->merges_where);
  if (!n_slots) return 0;
  k->merge_mask = n_slots - 1;
  k->merges = (mhk__merge *)mhk__arena_zeros(ctx, &k->object.arena, (mhk_index)n_slots, sizeof(mhk__merge));
  k->merged = (int32_t *)mhk__arena_zeros(ctx, &k->object.arena, count, sizeof(int32_t));
  if (!k->merged || !k->merges) return 0;
  memset(k->merges, 0xFF, n_slots * sizeof(mhk__merge));

  if (source->merges) {
    for (const mhk__json *x = source->merges->first; x && !mhk_failed(ctx); x = x->next) {
      const mhk__json *a = x->first, *b = a ? a->next : NULL;
      if (mhk__json_is(x, MHK__JSON_STRING) && mhk__merge_split(x->text, x->length, &n_left))
        mhk__merge_add(k, source, x->text, n_left, x->text + n_left + 1, x->length - n_left - 1, room, longest);
      else if (mhk__json_is(x, MHK__JSON_ARRAY) && x->count == 2 && mhk__json_is(a, MHK__JSON_STRING) && mhk__json_is(b, MHK__JSON_STRING))
        mhk__merge_add(k, source, a->text, a->length, b->text, b->length, room, longest);
      else
        mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: the merge at byte %lld should be \"left right\" or [\"left\",\"right\"]", source->merges_where,
                 (long long)x->at);
    }
  } else
    for (at = 0, i = 1; at < source->merge_lines_length && !mhk_failed(ctx); at = end + 1, i++) {
      const char *line = source->merge_lines + at, *stop = (const char *)memchr(line, '\n', source->merge_lines_length - at);
      size_t n = stop ? (size_t)(stop - line) : source->merge_lines_length - at;
      end = at + n;
      if (n > 0 && line[n - 1] == '\r') n--;
      if (n == 0 || (n >= 8 && memcmp(line, "#version", 8) == 0)) continue;
      if (mhk__merge_split(line, n, &n_left))
        mhk__merge_add(k, source, line, n_left, line + n_left + 1, n - n_left - 1, room, longest);
      else
        mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: line %lld should be two tokens with a space between them", source->merges_where, (long long)i);
    }
  return !mhk_failed(ctx);
}

/* the id of a token that a configuration names, as text or as an object with "content"; -1: none is named,
   or, with a warning, it does not exist */
static int32_t mhk__named_token(mhk_tokenizer *k, const mhk__token_source *source, const char *key) {
  const mhk__json *x = mhk__json_get(source->config, key);
  char token[256], *room = token;
  size_t length = 0;
  int mapped;
  if (mhk__json_is(x, MHK__JSON_OBJECT)) x = mhk__json_get(x, "content");
  if (!x || mhk__json_is(x, MHK__JSON_NULL)) return -1;
  if (!mhk__json_is(x, MHK__JSON_STRING)) {
    mhk_fail(k->object.ctx, MHK_ERROR_FORMAT, "%s: \"%s\" should be a token's text", source->config_where, key);
    return -1;
  }
  int32_t id = mhk_tokenizer_id(k, x->text);
  if (id < 0 && x->length < sizeof token) {
    mapped = mhk__token_map(x->text, x->length, room, &length);
    id = mhk__vocabulary_find(k, room, length, mapped, NULL);
  }
  if (id < 0)
    mhk__note(k->object.ctx, MHK_LOG_WARNING, "%s: %s \"%.*s\" is no token of the vocabulary: it is left out",
              source->config_where, key,
              mhk__shown(x->text, x->length), x->text);
  return id;
}

/* What a post-processor puts before a text: its id, -1 none; *says: it decides that. A warning tells what
   it puts elsewhere. */
static int32_t mhk__post_processor(mhk_tokenizer *k, const mhk__token_source *source, const mhk__json *x, int *says) {
  mhk_context *ctx = k->object.ctx;
  const char *type = mhk__json_string(mhk__json_get(x, "type"));
  const mhk__json *item;
  int32_t id = -1;
  int inside = 0, left_out = 0;
  if (!x || mhk__json_is(x, MHK__JSON_NULL) || (type && !strcmp(type, "ByteLevel"))) return -1;
  if (type && !strcmp(type, "Sequence")) {
    for (item = mhk__json_get(x, "processors"), item = item ? item->first : NULL; item; item = item->next) {
      const int32_t one = mhk__post_processor(k, source, item, says);
      if (one >= 0) id = one;
    }
    return id;
  }
  if (!type || strcmp(type, "TemplateProcessing")) {
    mhk__note(ctx, MHK_LOG_WARNING, "%s: post_processor %.60s is not applied: what it puts around a text is left out",
              source->where, type ? type : "without a type");
    return -1;
  }
  *says = 1;
  for (item = mhk__json_get(x, "single"), item = item ? item->first : NULL; item; item = item->next) {
    const mhk__json *token = mhk__json_get(mhk__json_get(item, "SpecialToken"), "id");
    if (mhk__json_get(item, "Sequence")) inside = 1;
    if (!mhk__json_is(token, MHK__JSON_STRING)) continue;
    if (!inside && id < 0) id = mhk_tokenizer_id(k, token->text);
    if (inside || id < 0 || mhk_tokenizer_id(k, token->text) != id) left_out = 1;
  }
  if (left_out)
    mhk__note(ctx, MHK_LOG_WARNING,
              "%s: of what post_processor puts around a text only the first token before it is put: "
              "add the others to the ids", source->where);
  return id;
}

/* What transformers adds to a tokenizer from tokenizer_config.json but is not known here. */
static void mhk__token_decoder_check(mhk_tokenizer *k, const mhk__token_source *source) {
  const mhk__json *x, *missing = NULL;
  int n = 0;
  if (source->added == source->decoder) return;
  for (x = source->decoder ? source->decoder->first : NULL; x; x = x->next) {
    const mhk__json *content = mhk__json_get(x, "content");
    if (!mhk__json_is(content, MHK__JSON_STRING) || content->length == 0) continue;
    if (mhk_tokenizer_id(k, content->text) >= 0) continue;
    if (n++ == 0) missing = content;
  }
  if (n > 0)
    mhk__note(k->object.ctx, MHK_LOG_WARNING,
              "%s: added_tokens_decoder has %d tokens that %s has not, the first of them \"%.*s\": they are taken for plain text",
              source->config_where, n, source->where, mhk__shown(missing->text, missing->length), missing->text);
}

static void mhk__special_tokens_check(mhk_tokenizer *k, const mhk__token_source *source, const char *key) {
  const mhk__json *x = mhk__json_get(source->config, key);
  for (x = mhk__json_is(x, MHK__JSON_ARRAY) ? x->first : NULL; x; x = x->next) {
    const mhk__json *content = mhk__json_is(x, MHK__JSON_OBJECT) ? mhk__json_get(x, "content") : x;
    if (!mhk__json_is(content, MHK__JSON_STRING) || content->length == 0) continue;
    if (mhk_tokenizer_id(k, content->text) >= 0) continue;
    mhk__note(k->object.ctx, MHK_LOG_WARNING, "%s: \"%.*s\" of %s is no added token of %s: it is taken for plain text",
              source->config_where,
              mhk__shown(content->text, content->length), content->text, key, source->where);
    return;
  }
}

/* What a tokenizer_config.json says beyond tokenizer.json, and a post-processor: which tokens start and end
   a text. Unless one of them decides, prompts start with the token that starts a text, but not those of the
   tokenizers that are known to do without. */
static int mhk__tokenizer_configure(mhk_tokenizer *k, const mhk__token_source *source) {
  static const char without[6][24] = {"GPT2Tokenizer",         "GPT2TokenizerFast", "CodeGenTokenizer",
                                      "CodeGenTokenizerFast",  "GPTNeoXTokenizer",  "GPTNeoXTokenizerFast"};
  static const char warned[3][32] = {"add_eos_token", "split_special_tokens", "clean_up_tokenization_spaces"};
  mhk_context *ctx = k->object.ctx;
  const mhk__json *c = source->config, *add = mhk__json_get(c, "add_bos_token");
  const mhk__json *prefix = mhk__json_get(c, "add_prefix_space");
  int says = 0, i, without_start = 0;
  k->start = k->end;
  k->puts_start = 1;
  int32_t id = mhk__post_processor(k, source, source->post_processor, &says);
  if (says) k->puts_start = id >= 0;
  if (id >= 0) k->start = id;
  if (!c || mhk_failed(ctx)) return !mhk_failed(ctx);
  for (i = 0; i < 6; i++)
    if (mhk__json_equals(mhk__json_get(c, "tokenizer_class"), without[i])) without_start = 1;
  id = mhk__named_token(k, source, "bos_token");
  if (id >= 0 && (k->start == k->end || mhk__json_is(add, MHK__JSON_TRUE))) k->start = id;
  id = mhk__named_token(k, source, "eos_token");
  if (id >= 0) k->end = id;
  if (k->start < 0) k->start = k->end;
  if (add && !mhk__json_is(add, MHK__JSON_NULL))
    k->puts_start = mhk__token_flag(ctx, c, "add_bos_token", 0, source->config_where);
  else if (!says && without_start)
    k->puts_start = 0;
  if (without_start && prefix && !mhk__json_is(prefix, MHK__JSON_NULL))
    k->prefix_space = mhk__token_flag(ctx, c, "add_prefix_space", 0, source->config_where); /* they are made from this */
  for (i = 0; i < 3; i++)
    if (mhk__json_is(mhk__json_get(c, warned[i]), MHK__JSON_TRUE))
      mhk__note(ctx, MHK_LOG_WARNING, "%s: %s is not done here", source->config_where, warned[i]);
  mhk__token_decoder_check(k, source);
  mhk__special_tokens_check(k, source, "extra_special_tokens");
  mhk__special_tokens_check(k, source, "additional_special_tokens");
  k->config = mhk__arena_text(ctx, &k->object.arena, source->config_text, source->config_length);
  k->config_length = source->config_length;
  return k->config && !mhk_failed(ctx);
}

static int mhk__tokenizer_build(mhk_tokenizer *k, const mhk__token_source *source) {
  mhk_context *ctx = k->object.ctx;
  size_t longest = 1, used = 0;
  k->cuts = k->use_regex;
  if (!mhk__classes_make(k) || !mhk__tokens_read(k, source, &longest, &used)) return 0;
  for (int b = 0; b < 256; b++) {
    const char byte = (char)(unsigned char)b;
    const int32_t id = mhk__vocabulary_find(k, &byte, 1, 1, NULL);
    if (id < 0) {
      char text[3] = {0, 0, 0};
      mhk__byte_character((unsigned char)b, text);
      mhk_fail(ctx, MHK_ERROR_FORMAT, "%s has no token for byte 0x%02X (\"%s\"): a byte-level vocabulary has one for each of the 256 bytes",
               source->where, (unsigned)b, text);
      return 0;
    }
    k->byte_ids[b] = (uint32_t)id;
  }
  if (!mhk__added_read(k, source, used)) return 0;
  mhk__mark mark = mhk__scratch_mark(ctx);
  char *room = (char *)mhk__scratch(ctx, (mhk_index)longest, 2);
  const int good = room && mhk__merges_read(k, source, room, longest);
  mhk__scratch_rewind(ctx, mark);
  if (!good) return 0;
  k->words = (mhk__word *)mhk__arena_zeros(ctx, &k->object.arena, MHK__WORD_SLOTS, sizeof(mhk__word));
  return k->words && mhk__tokenizer_configure(k, source);
}

/* Reads tokenizer_config.json; 0 after an error. */
static int mhk__token_config_read(mhk_context *ctx, mhk__arena *tree, mhk__token_source *source, const char *text,
                                  size_t length, const char *where) {
  source->config = mhk__json_parse(ctx, tree, text, length, where, 0);
  source->config_text = text;
  source->config_length = length;
  source->config_where = where;
  source->decoder = mhk__json_get(source->config, "added_tokens_decoder");
  if (source->config && !mhk__json_is(source->config, MHK__JSON_OBJECT))
    mhk_fail(ctx, MHK_ERROR_FORMAT, "%s should be a JSON object", where);
  if (source->decoder && !mhk__json_is(source->decoder, MHK__JSON_OBJECT)) source->decoder = NULL;
  return !mhk_failed(ctx);
}

/* A part of tokenizer.json by its type: NULL when it is null or not there; a sequence of one is that one. */
static const mhk__json *mhk__token_part(const mhk__json *root, const char *name) {
  const mhk__json *x = mhk__json_get(root, name);
  if (!x || mhk__json_is(x, MHK__JSON_NULL)) return NULL;
  if (mhk__json_equals(mhk__json_get(x, "type"), "Sequence")) {
    static const char lists[3][16] = {"normalizers", "pretokenizers", "decoders"};
    for (int i = 0; i < 3; i++) {
      const mhk__json *list = mhk__json_get(x, lists[i]);
      if (mhk__json_is(list, MHK__JSON_ARRAY) && list->count <= 1) return list->first;
    }
  }
  return x;
}

static void mhk__token_part_refused(mhk_context *ctx, const mhk__json *part, const char *name, const char *where) {
  const char *type = mhk__json_string(mhk__json_get(part, "type"));
  mhk_fail(ctx, MHK_ERROR_UNSUPPORTED,
           "%s: %s %.60s is not supported: this reads byte-level BPE with GPT-2's pattern and no normalizer but NFC",
           where, name, type ? type : part ? "without a type" : "null");
}

/* Refuses what changes ids and is not done here. Padding, truncation and the tokens that a post-processor puts around a text are left to
   the caller. */
static int mhk__token_settings(mhk_tokenizer *k, const mhk__json *root, const mhk__json *model, const char *where) {
  static const char affixes[2][32] = {"continuing_subword_prefix", "end_of_word_suffix"};
  mhk_context *ctx = k->object.ctx;
  const mhk__json *x = mhk__json_get(model, "type"), *list;
  if (x && !mhk__json_equals(x, "BPE")) {
    mhk__token_part_refused(ctx, model, "model", where);
    return 0;
  }
  x = mhk__json_get(root, "version");
  if (x && !mhk__json_equals(x, "1.0")) {
    mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "%s: \"version\" of the file is not 1.0", where);
    return 0;
  }
  x = mhk__json_get(model, "dropout");
  const double dropout = mhk__json_is(x, MHK__JSON_NUMBER) ? mhk__json_number(x) : 0;
  if (mhk__token_flag(ctx, model, "byte_fallback", 0, where) || !(dropout <= 0)) {
    mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "%s: BPE with byte_fallback or dropout is not supported", where);
    return 0;
  }
  for (int i = 0; i < 2; i++) {
    x = mhk__json_get(model, affixes[i]);
    if (x && !mhk__json_is(x, MHK__JSON_NULL) && !mhk__json_equals(x, "")) {
      mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "%s: BPE with %s is not supported", where, affixes[i]);
      return 0;
    }
  }
  k->ignore_merges = mhk__token_flag(ctx, model, "ignore_merges", 0, where);

  x = mhk__token_part(root, "normalizer");
  if (x && !mhk__json_equals(mhk__json_get(x, "type"), "NFC")) {
    mhk__token_part_refused(ctx, x, "normalizer", where);
    return 0;
  }
  if (x && !mhk__nfc_make(k)) return 0;
  x = mhk__token_part(root, "decoder");
  if (x && !mhk__json_equals(mhk__json_get(x, "type"), "ByteLevel")) {
    mhk__token_part_refused(ctx, x, "decoder", where);
    return 0;
  }
  x = mhk__token_part(root, "pre_tokenizer");
  list = mhk__json_get(x, "pretokenizers");
  if (mhk__json_is(list, MHK__JSON_ARRAY) && list->count == 2) { /* the pattern written out, then ByteLevel for the bytes only */
    const mhk__json *split = list->first, *level = split->next;
    if (mhk__json_equals(mhk__json_get(split, "type"), "Split") && mhk__json_equals(mhk__json_get(split, "behavior"), "Isolated") &&
        !mhk__token_flag(ctx, split, "invert", 0, where) &&
        mhk__json_equals(mhk__json_get(mhk__json_get(split, "pattern"), "Regex"),
                         "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+") &&
        mhk__json_equals(mhk__json_get(level, "type"), "ByteLevel") && !mhk__token_flag(ctx, level, "use_regex", 1, where) &&
        !mhk__token_flag(ctx, level, "add_prefix_space", 0, where)) {
      k->use_regex = 1;
      return !mhk_failed(ctx);
    }
  }
  if (!mhk__json_equals(mhk__json_get(x, "type"), "ByteLevel")) {
    mhk__token_part_refused(ctx, x, "pre_tokenizer", where);
    return 0;
  }
  k->use_regex = mhk__token_flag(ctx, x, "use_regex", 1, where);
  k->prefix_space = mhk__token_flag(ctx, x, "add_prefix_space", 0, where);
  return !mhk_failed(ctx);
}

/* config: a tokenizer_config.json, or NULL */
static mhk_tokenizer *mhk__tokenizer_from_json(mhk_context *ctx, const char *json, size_t length, const char *where,
                                               const char *config, size_t config_length,
                                               const char *config_where) {
  mhk_tokenizer *k = (mhk_tokenizer *)mhk__object_new(ctx, sizeof(mhk_tokenizer), NULL);
  const mhk__json *model;
  mhk__token_source source;
  mhk__arena tree;
  int good = 0;
  if (!k) return NULL;
  memset(&source, 0, sizeof source);
  memset(&tree, 0, sizeof tree);
  const mhk__json *root = mhk__json_parse(ctx, &tree, json, length, where, 0);
  if (root && (!config || mhk__token_config_read(ctx, &tree, &source, config, config_length, config_where))) {
    model = mhk__json_get(root, "model");
    source.post_processor = mhk__json_get(root, "post_processor");
    source.where = source.merges_where = source.added_where = where;
    source.vocabulary = mhk__json_get(model, "vocab");
    source.merges = mhk__json_get(model, "merges");
    source.added = mhk__json_get(root, "added_tokens");
    if (mhk__json_is(source.added, MHK__JSON_NULL)) source.added = NULL;
    if (!mhk__json_is(model, MHK__JSON_OBJECT))
      mhk_fail(ctx, MHK_ERROR_FORMAT, "%s has no \"model\": it should be a tokenizer.json", where);
    else if (mhk__token_settings(k, root, model, where)) {
      if (!mhk__json_is(source.vocabulary, MHK__JSON_OBJECT) || !mhk__json_is(source.merges, MHK__JSON_ARRAY))
        mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: \"model\" should have \"vocab\" {text: id, ...} and \"merges\" [...]", where);
      else if (source.added && !mhk__json_is(source.added, MHK__JSON_ARRAY))
        mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: \"added_tokens\" should be an array", where);
      else if (mhk__tokenizer_build(k, &source)) {
        k->json = mhk__arena_text(ctx, &k->object.arena, json, length);
        k->json_length = length;
        good = k->json != NULL;
      }
    }
  }
  mhk__arena_free(ctx, &tree);
  if (good) return k;
  mhk__object_free(k);
  return NULL;
}

MHKDEF mhk_tokenizer *mhk_tokenizer_parse(mhk_context *ctx, const char *json, size_t length) {
  if (mhk_failed(ctx)) return NULL;
  if (!json) {
    mhk_fail(ctx, MHK_ERROR_ARGUMENT, "mhk_tokenizer_parse was given no text");
    return NULL;
  }
  return mhk__tokenizer_from_json(ctx, json, length, "the tokenizer.json in memory", NULL, 0, NULL);
}

#if !defined(MOHAWK_NO_TRAINING) || !defined(MOHAWK_NO_STDIO)
/* the same tokenizer in another context */
static mhk_tokenizer *mhk__tokenizer_copy(mhk_context *ctx, mhk_tokenizer *k) {
  size_t length = 0;
  const char *json = mhk_tokenizer_json(k, &length);
  if (!json) {
    mhk_fail(ctx, mhk_error(k->object.ctx), "the tokenizer cannot be copied: %s", mhk_message(k->object.ctx));
    return NULL;
  }
  return mhk__tokenizer_from_json(ctx, json, length, "the tokenizer's copy", k->config, k->config_length,
                                  "its tokenizer_config.json");
}
#endif

#ifndef MOHAWK_NO_STDIO
/* vocab.json with merges.txt and perhaps added_tokens.json, or encoder.json with vocab.bpe */
static mhk_tokenizer *mhk__tokenizer_from_pair(mhk_context *ctx, const char *vocabulary, const char *merges,
                                               const char *added, const mhk__bytes *config,
                                               const char *config_where) {
  mhk_tokenizer *k = (mhk_tokenizer *)mhk__object_new(ctx, sizeof(mhk_tokenizer), NULL);
  mhk__token_source source;
  mhk__bytes file[3];
  mhk__arena tree;
  int good = 0;
  if (!k) return NULL;
  memset(&source, 0, sizeof source);
  memset(file, 0, sizeof file);
  memset(&tree, 0, sizeof tree);
  source.where = vocabulary;
  source.merges_where = merges;
  source.added_where = added;
  if (mhk__bytes_open_or_fail(ctx, vocabulary, &file[0]) && mhk__bytes_open_or_fail(ctx, merges, &file[1]) &&
      (!mhk__is_file(added) || mhk__bytes_open_or_fail(ctx, added, &file[2]))) {
    source.vocabulary = mhk__json_parse(ctx, &tree, (const char *)file[0].data, file[0].size, vocabulary, 0);
    source.merge_lines = (const char *)file[1].data;
    source.merge_lines_length = file[1].size;
    if (file[2].data) source.added = mhk__json_parse(ctx, &tree, (const char *)file[2].data, file[2].size, added, 0);
    if (config->data)
      mhk__token_config_read(ctx, &tree, &source, (const char *)config->data, config->size, config_where);
    if (!source.added && source.decoder) {
      source.added = source.decoder;
      source.added_where = config_where;
    }
    k->use_regex = 1;
    if (!mhk_failed(ctx)) {
      if (!mhk__json_is(source.vocabulary, MHK__JSON_OBJECT) || (source.added && !mhk__json_is(source.added, MHK__JSON_OBJECT)))
        mhk_fail(ctx, MHK_ERROR_FORMAT, "%s should be one JSON object {text: id, ...}",
                 mhk__json_is(source.vocabulary, MHK__JSON_OBJECT) ? added : vocabulary);
      else
        good = mhk__tokenizer_build(k, &source);
    }
  }
  mhk__arena_free(ctx, &tree);
  mhk__bytes_close(&file[0]);
  mhk__bytes_close(&file[1]);
  mhk__bytes_close(&file[2]);
  if (good) return k;
  mhk__object_free(k);
  return NULL;
}

/* what layout a folder holds: 1 tokenizer.json, 2 vocab.json and merges.txt, 3 encoder.json and vocab.bpe, 0 none */
static int mhk__tokenizer_layout(const char *folder) {
  static const char names[3][16] = {"tokenizer.json", "vocab.json", "encoder.json"};
  char path[MHK__PATH_MOST + 64];
  for (int i = 0; i < 3; i++)
    if (mhk__join_path(path, sizeof path, folder, names[i]) && mhk__is_file(path)) return i + 1;
  return 0;
}

MHKDEF mhk_tokenizer *mhk_tokenizer_load(mhk_context *ctx, const char *path) {
  char folder[MHK__PATH_MOST + 64], first[MHK__PATH_MOST + 64], second[MHK__PATH_MOST + 64];
  char third[MHK__PATH_MOST + 64], fourth[MHK__PATH_MOST + 64];
  mhk_tokenizer *k = NULL;
  mhk__bytes file, config;
  int layout;
  if (!mhk__path_fits(ctx, path)) return NULL;
  if (mhk__is_folder(path)) {
    layout = mhk__tokenizer_layout(path);
    if (layout == 0) {
      mhk_fail(ctx, MHK_ERROR_FILE, "%s holds no tokenizer.json, vocab.json with merges.txt, or encoder.json with vocab.bpe", path);
      return NULL;
    }
    strcpy(folder, path);
    mhk__join_path(first, sizeof first, folder, "tokenizer.json");
  } else {
    mhk__folder_of(folder, sizeof folder, path);
    const char *name = path + strlen(folder);
    layout = 1;
    if (!strcmp(name, "vocab.json") || !strcmp(name, "merges.txt")) layout = 2;
    if (!strcmp(name, "encoder.json") || !strcmp(name, "vocab.bpe")) layout = 3;
    strcpy(first, path);
  }
  memset(&config, 0, sizeof config);
  mhk__join_path(fourth, sizeof fourth, folder, "tokenizer_config.json");
  const int named = mhk__ends_with(first, "tokenizer.json") || layout > 1 || mhk__is_folder(path);
  if (named && mhk__is_file(fourth) && !mhk__bytes_open_or_fail(ctx, fourth, &config)) return NULL;
  if (layout == 1) {
    if (mhk__bytes_open_or_fail(ctx, first, &file)) {
      k = mhk__tokenizer_from_json(ctx, (const char *)file.data, file.size, first, (const char *)config.data,
                                   config.size, fourth);
      mhk__bytes_close(&file);
    }
  } else {
    mhk__join_path(first, sizeof first, folder, layout == 2 ? "vocab.json" : "encoder.json");
    mhk__join_path(second, sizeof second, folder, layout == 2 ? "merges.txt" : "vocab.bpe");
    mhk__join_path(third, sizeof third, folder, "added_tokens.json");
    k = mhk__tokenizer_from_pair(ctx, first, second, third, &config, fourth);
  }
  mhk__bytes_close(&config);
  return k;
}
#endif

MHKDEF void mhk_tokenizer_destroy(mhk_tokenizer *k) { mhk__object_free(k); }

/* ---------------------------------------------------------------------------------------- text to ids */

/* Where ids go: what does not fit is only counted, unless full() takes what there is and makes room. */
typedef struct mhk__ids {
  int32_t *ids;
  mhk_index capacity, n;
  void (*full)(void *user, const int32_t *ids, mhk_index n);
  void *user;
  size_t longest; /* bytes of text that the scratch memory is made for at a time; 0: any number */
  int grows;      /* longer ones take the allocator's, for as long as they need it */
} mhk__ids;

/* Scratch memory for work on n bytes of text, from mhk__room_open() to mhk__room_close(). */
typedef struct mhk__room {
  mhk__arena kept;
  mhk__mark mark;
  int grown;
} mhk__room;

static int mhk__room_open(mhk_context *ctx, const mhk__ids *out, size_t n, mhk__room *room) {
  room->grown = out->longest > 0 && n > out->longest;
  if (room->grown && !out->grows) {
    mhk_fail(ctx, MHK_ERROR_MEMORY,
             "%.0f bytes of text without a break are more than the session's block was made for, %.0f: "
             "mhk_session_desc.word_bytes asks for more", (double)n, (double)out->longest);
    return 0;
  }
  if (room->grown) {
    room->kept = ctx->scratch;
    memset(&ctx->scratch, 0, sizeof ctx->scratch);
  }
  room->mark = mhk__scratch_mark(ctx);
  return 1;
}

static void mhk__room_close(mhk_context *ctx, mhk__room *room) {
  mhk__scratch_rewind(ctx, room->mark);
  if (!room->grown) return;
  mhk__arena_free(ctx, &ctx->scratch);
  ctx->scratch = room->kept;
}

static void mhk__ids_put(mhk__ids *out, int32_t id) {
  if (out->full && out->n == out->capacity) {
    out->full(out->user, out->ids, out->n);
    out->n = 0;
  }
  if (out->n < out->capacity) out->ids[out->n] = id;
  out->n++;
}

#define MHK__SHORT_WORD 32
#define MHK__TEXT_WORD 1024 /* bytes of the longest word that a session's block has room for, if it does not say */

/* Short words: the lowest rank is searched for each time. */
static void mhk__encode_short(const mhk_tokenizer *k, const unsigned char *word, size_t n, mhk__ids *out) {
  uint32_t id[MHK__SHORT_WORD], rank[MHK__SHORT_WORD]; /* rank[i]: of the pair i, i + 1 */
  size_t i, at;
  for (i = 0; i < n; i++) id[i] = k->byte_ids[word[i]];
  for (i = 0; i + 1 < n; i++) rank[i] = mhk__merge_rank(k, id[i], id[i + 1]);
  for (;;) {
    uint32_t best = UINT32_MAX;
    for (at = i = 0; i + 1 < n; i++)
      if (rank[i] < best) {
        best = rank[i];
        at = i;
      }
    if (best == UINT32_MAX) break;
    id[at] = (uint32_t)k->merged[best];
    n--;
    for (i = at + 1; i < n; i++) id[i] = id[i + 1];
    for (i = at + 1; i + 1 < n; i++) rank[i] = rank[i + 1];
    if (at + 1 < n) rank[at] = mhk__merge_rank(k, id[at], id[at + 1]);
    if (at > 0) rank[at - 1] = mhk__merge_rank(k, id[at - 1], id[at]);
  }
  for (i = 0; i < n; i++) mhk__ids_put(out, (int32_t)id[i]);
}

static void mhk__heap_down(uint64_t *heap, size_t n, size_t i) {
  const uint64_t x = heap[i];
  for (;;) {
    size_t child = 2 * i + 1;
    if (child >= n) break;
    if (child + 1 < n && heap[child + 1] < heap[child]) child++;
    if (x <= heap[child]) break;
    heap[i] = heap[child];
    i = child;
  }
  heap[i] = x;
}

static void mhk__heap_push(uint64_t *heap, size_t *n, uint64_t x) {
  size_t i = (*n)++;
  while (i > 0 && x < heap[(i - 1) / 2]) {
    heap[i] = heap[(i - 1) / 2];
    i = (i - 1) / 2;
  }
  heap[i] = x;
}

/* Long words: symbols in a linked list, pairs in a heap by rank and place: O(n log n). Entries of the heap that no longer hold are dropped
   when they come up; each merge takes one out and puts at most two in, so that there are never more than 2 n. */
static void mhk__encode_long(const mhk_tokenizer *k, const unsigned char *word, size_t n, mhk__ids *out) {
  mhk_context *ctx = k->object.ctx;
  mhk__room room;
  uint32_t i, after;
  size_t entries = 0, h;
  if (n >= UINT32_MAX) {
    mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "a word of %.0f MB without a break is more than this version encodes", (double)n * 1e-6);
    return;
  }
  if (!mhk__room_open(ctx, out, n, &room)) return;
  uint32_t *id = (uint32_t *)mhk__scratch(ctx, (mhk_index)n, sizeof(uint32_t));
  uint32_t *rank = (uint32_t *)mhk__scratch(ctx, (mhk_index)n, sizeof(uint32_t)); /* of the pair that starts here; UINT32_MAX: none, or no symbol */
  uint32_t *previous = (uint32_t *)mhk__scratch(ctx, (mhk_index)n, sizeof(uint32_t));
  uint32_t *next = (uint32_t *)mhk__scratch(ctx, (mhk_index)n, sizeof(uint32_t)); /* n: the end */
  uint64_t *heap = (uint64_t *)mhk__scratch(ctx, (mhk_index)n, 2 * sizeof(uint64_t));
  if (id && rank && previous && next && heap) {
    const uint32_t end = (uint32_t)n;
    for (i = 0; i < end; i++) {
      id[i] = k->byte_ids[word[i]];
      previous[i] = i - 1; /* of the first one: never used */
      next[i] = i + 1;
    }
    for (i = 0; i < end; i++) {
      rank[i] = i + 1 < end ? mhk__merge_rank(k, id[i], id[i + 1]) : UINT32_MAX;
      if (rank[i] != UINT32_MAX) heap[entries++] = (uint64_t)rank[i] << 32 | i;
    }
    for (h = entries / 2; h > 0; h--) mhk__heap_down(heap, entries, h - 1);
    while (entries > 0) {
      const uint32_t r = (uint32_t)(heap[0] >> 32);
      i = (uint32_t)(heap[0] & UINT32_MAX);
      heap[0] = heap[--entries];
      if (entries > 0) mhk__heap_down(heap, entries, 0);
      if (rank[i] != r) continue; /* something was merged here meanwhile */
      id[i] = (uint32_t)k->merged[r];
      after = next[i];
      rank[after] = UINT32_MAX;
      after = next[i] = next[after];
      rank[i] = UINT32_MAX;
      if (after < end) {
        previous[after] = i;
        rank[i] = mhk__merge_rank(k, id[i], id[after]);
        if (rank[i] != UINT32_MAX) mhk__heap_push(heap, &entries, (uint64_t)rank[i] << 32 | i);
      }
      if (i > 0) {
        const uint32_t before = previous[i];
        rank[before] = mhk__merge_rank(k, id[before], id[i]);
        if (rank[before] != UINT32_MAX) mhk__heap_push(heap, &entries, (uint64_t)rank[before] << 32 | before);
      }
    }
    for (i = 0; i < end; i = next[i]) mhk__ids_put(out, (int32_t)id[i]);
  }
  mhk__room_close(ctx, &room);
}

/* scratch memory that text without a break takes at most: as a word, and copies of it with a space or normalized */
static size_t mhk__word_room(const mhk_tokenizer *k, size_t bytes) {
  return (k->nfc || k->prefix_space ? 36 : 32) * bytes + 12 * MHK__ALIGN;
}

static void mhk__encode_word(mhk_tokenizer *k, const unsigned char *word, size_t n, mhk__ids *out) {
  uint64_t key[2] = {0, 0};
  if (n == 1) {
    mhk__ids_put(out, (int32_t)k->byte_ids[word[0]]);
    return;
  }
  if (n > MHK__WORD_BYTES) {
    const int32_t whole = k->ignore_merges ? mhk__vocabulary_find(k, (const char *)word, n, 1, NULL) : -1;
    if (whole >= 0)
      mhk__ids_put(out, whole);
    else if (n <= MHK__SHORT_WORD)
      mhk__encode_short(k, word, n, out);
    else
      mhk__encode_long(k, word, n, out);
    return;
  }
  memcpy(key, word, n);
  mhk__word *slot = &k->words[((key[0] ^ (key[1] << 29 | key[1] >> 35)) * 0x9E3779B97F4A7C15u) >> (64 - MHK__WORD_BITS)];
  if (slot->length != n || memcmp(slot->text, key, MHK__WORD_BYTES) != 0) {
    int32_t ids[MHK__WORD_BYTES];
    mhk__ids found;
    const int32_t whole = k->ignore_merges ? mhk__vocabulary_find(k, (const char *)word, n, 1, NULL) : -1;
    found.ids = ids;
    found.capacity = MHK__WORD_BYTES;
    found.n = 0;
    found.full = NULL;
    if (whole >= 0)
      mhk__ids_put(&found, whole);
    else
      mhk__encode_short(k, word, n, &found);
    if (found.n > MHK__WORD_IDS) {
      for (mhk_index i = 0; i < found.n; i++) mhk__ids_put(out, ids[i]);
      return;
    }
    memcpy(slot->text, key, MHK__WORD_BYTES);
    slot->length = (unsigned char)n;
    slot->n = (unsigned char)found.n;
    memcpy(slot->ids, ids, (size_t)found.n * sizeof *ids);
  }
  for (mhk_index i = 0; i < slot->n; i++) mhk__ids_put(out, slot->ids[i]);
}

/* Cuts text without added tokens into words. */
static void mhk__encode_words(mhk_tokenizer *k, const unsigned char *text, size_t n, mhk__ids *out) {
  size_t at = 0, end, step = 0, last;
  if (!k->use_regex) {
    mhk__encode_word(k, text, n, out);
    return;
  }
  while (at < n && !mhk_failed(k->object.ctx)) {
    unsigned kind = mhk__class_at(k, text + at, n - at, &step);
    end = at + step;
    if (text[at] == '\'' && end < n) { /* 's 't 'm 'd 're 've 'll */
      const unsigned char a = text[end], b = end + 1 < n ? text[end + 1] : 0;
      size_t more = a == 's' || a == 't' || a == 'm' || a == 'd' ? 1u : 0u;
      if (((a == 'r' || a == 'v') && b == 'e') || (a == 'l' && b == 'l')) more = 2;
      if (more) {
        mhk__encode_word(k, text + at, 1 + more, out);
        at = end + more;
        continue;
      }
    }
    if (text[at] == ' ' && end < n) { /* one space goes with what follows it */
      const unsigned following = mhk__class_at(k, text + end, n - end, &step);
      if (following != MHK__SPACE) {
        kind = following;
        end += step;
      }
    }
    last = at; /* where the last character of the run starts */
    while (end < n && mhk__class_at(k, text + end, n - end, &step) == kind) {
      last = end;
      end += step;
    }
    if (kind == MHK__SPACE && end < n && last > at) end = last; /* the last of several spaces is left for the next word */
    mhk__encode_word(k, text + at, end - at, out);
    at = end;
  }
}

/* The longest added token that text starts with, or NULL. */
static const mhk__added *mhk__added_at(const mhk__added_set *s, const unsigned char *text, size_t n) {
  mhk_index low = s->first[*text], high = s->first[*text + 1];
  const mhk__added *found = NULL;
  size_t depth = 1;
  while (low < high) { /* those between agree with the text in their first depth bytes */
    if (s->tokens[low]->length == depth) found = s->tokens[low++];
    if (depth >= n || low >= high) break;
    if (high - low == 1) { /* the common case: one left */
      const mhk__added *a = s->tokens[low];
      return a->length <= n && memcmp(a->text + depth, text + depth, a->length - depth) == 0 ? a : found;
    } else {
      mhk_index side, a, b, bound[2] = {low, high};
      for (side = 0; side < 2; side++) { /* the first with a byte not below text's, then the first above it */
        for (a = bound[0], b = high; a < b;) {
          const mhk_index middle = a + (b - a) / 2;
          if ((unsigned char)s->tokens[middle]->text[depth] + (side ? 0 : 1) <= text[depth])
            a = middle + 1;
          else
            b = middle;
        }
        bound[side] = a;
      }
      low = bound[0];
      high = bound[1];
      depth++;
    }
  }
  return found;
}

/* bytes of the white space character that text ends with, 0: it ends with another one */
static size_t mhk__one_space_before(const mhk_tokenizer *k, const unsigned char *text, size_t n) {
  size_t start = n, step = 0;
  if (n == 0) return 0;
  for (start--; start > 0 && n - start < 4 && (text[start] & 0xC0u) == 0x80; start--) continue;
  return mhk__class_at(k, text + start, n - start, &step) == MHK__SPACE && start + step == n ? step : 0;
}

/* how many bytes of white space text ends with */
static size_t mhk__space_before(const mhk_tokenizer *k, const unsigned char *text, size_t n) {
  size_t left = n, step;
  while ((step = mhk__one_space_before(k, text, left)) != 0) left -= step;
  return n - left;
}

/* The first place at or after least where text can be cut and its parts encoded one by one: before a space
   that follows something else. A word never crosses it, and nothing joins across it. n: there is none. */
static size_t mhk__cut(const mhk_tokenizer *k, const unsigned char *text, size_t n, size_t least) {
  if (!k->use_regex) return n;
  for (; least < n; least++)
    if (text[least] == ' ' && text[least - 1] != ' ' && !mhk__one_space_before(k, text, least)) return least;
  return n;
}

static void mhk__encode_span(mhk_tokenizer *k, const unsigned char *text, size_t n, int level, mhk__ids *out);

/* Text between added tokens that are looked for first: normalized, if that changes anything, a part at a time. */
static void mhk__encode_normalized(mhk_tokenizer *k, const unsigned char *text, size_t n, mhk__ids *out) {
  mhk_context *ctx = k->object.ctx;
  const size_t least = out->longest > 0 && out->longest < 1024 ? out->longest / 2 : 512;
  size_t end;
  if (mhk__nfc_fine(k->nfc, text, n)) {
    mhk__encode_span(k, text, n, 1, out);
    return;
  }
  for (size_t at = 0; at < n && !mhk_failed(ctx); at = end) {
    mhk__room room;
    end = k->cuts && n - at > least ? at + mhk__cut(k, text + at, n - at, least) : n;
    if (!mhk__room_open(ctx, out, end - at, &room)) return;
    char *normal = (char *)mhk__scratch(ctx, (mhk_index)(end - at), 3);
    if (normal) {
      const size_t length = mhk__nfc_text(k, text + at, end - at, normal);
      mhk__encode_span(k, (const unsigned char *)normal, length, 1, out);
    }
    mhk__room_close(ctx, &room);
  }
}

/* Text between added tokens: words, perhaps with a space put before them. */
static void mhk__encode_prefixed(mhk_tokenizer *k, const unsigned char *text, size_t n, mhk__ids *out) {
  size_t first = 0;
  if (k->prefix_space && text[0] != ' ') {
    mhk_context *ctx = k->object.ctx;
    mhk__room room;
    first = mhk__cut(k, text, n, 1);
    if (!mhk__room_open(ctx, out, first, &room)) return;
    unsigned char *copy = (unsigned char *)mhk__scratch(ctx, (mhk_index)first + 1, 1);
    if (copy) {
      copy[0] = ' ';
      memcpy(copy + 1, text, first);
      mhk__encode_words(k, copy, first + 1, out);
    }
    mhk__room_close(ctx, &room);
  }
  mhk__encode_words(k, text + first, n - first, out);
}

/* text without the added tokens of a level */
static void mhk__encode_between(mhk_tokenizer *k, const unsigned char *text, size_t n, int level, mhk__ids *out) {
  if (level == 0 && k->nfc)
    mhk__encode_normalized(k, text, n, out);
  else
    mhk__encode_span(k, text, n, level + 1, out);
}

/* level 0, 1: cut at the added tokens of that set; 2: words */
static void mhk__encode_span(mhk_tokenizer *k, const unsigned char *text, size_t n, int level, mhk__ids *out) {
  size_t done = 0, at = 0;
  if (n == 0 || mhk_failed(k->object.ctx)) return;
  if (level == 2) {
    mhk__encode_prefixed(k, text, n, out);
    return;
  }
  const mhk__added_set *s = &k->added[level];
  while (s->n > 0 && at < n) {
    const mhk__added *a = s->first[text[at]] < s->first[text[at] + 1] ? mhk__added_at(s, text + at, n - at) : NULL;
    size_t start = at, stop;
    if (!a) {
      at++;
      continue;
    }
    at = stop = at + a->length; /* the space after it may hold another one, as with Hugging Face's tokenizers */
    if (a->lstrip && start > done) start -= mhk__space_before(k, text + done, start - done);
    if (a->rstrip) {
      size_t step = 0;
      if (stop < done) stop = done;
      while (stop < n && mhk__class_at(k, text + stop, n - stop, &step) == MHK__SPACE) stop += step;
    }
    if (start > done) mhk__encode_between(k, text + done, start - done, level, out);
    mhk__ids_put(out, a->id);
    done = stop;
  }
  mhk__encode_between(k, text + done, n - done, level, out);
}

/* Does the start token go before this prompt? A text that begins with it has it; without text it is all. */
static int mhk__starts_text(const mhk_tokenizer *k, const unsigned char *text, size_t n) {
  if (k->start < 0 || (!k->puts_start && n > 0)) return 0;
  for (int set = 0; set < 2 && n > 0; set++) {
    const mhk__added *a = mhk__added_at(&k->added[set], text, n);
    if (a && a->id == k->start) return 0;
  }
  return 1;
}

static mhk_index mhk__encode(mhk_tokenizer *k, const char *text, size_t length, int32_t *ids, mhk_index capacity,
                             int prompt) {
  mhk_context *ctx = k ? k->object.ctx : NULL;
  mhk__ids out;
  if (mhk_failed(ctx)) return -1;
  memset(&out, 0, sizeof out);
  if ((!text && length > 0) || length > (size_t)PTRDIFF_MAX || (!ids && capacity > 0)) {
    mhk_fail(ctx, MHK_ERROR_ARGUMENT, "mhk_encode was given no %s", !ids && capacity > 0 ? "place for the ids" : "text");
    return -1;
  }
  out.ids = ids;
  out.capacity = capacity;
  if (prompt && mhk__starts_text(k, (const unsigned char *)text, length)) mhk__ids_put(&out, k->start);
  mhk__encode_span(k, (const unsigned char *)text, length, 0, &out);
  return mhk_failed(ctx) ? -1 : out.n;
}

MHKDEF mhk_index mhk_encode(mhk_tokenizer *k, const char *text, size_t length, int32_t *ids, mhk_index capacity) {
  return mhk__encode(k, text, length, ids, capacity, 0);
}

MHKDEF mhk_index mhk_encode_prompt(mhk_tokenizer *k, const char *text, size_t length, int32_t *ids,
                                   mhk_index capacity) {
  return mhk__encode(k, text, length, ids, capacity, 1);
}

/* ---------------------------------------------------------------------------------------- ids to text */

MHKDEF const char *mhk_token_bytes(mhk_tokenizer *k, int32_t id, size_t *length) {
  if (length) *length = 0;
  if (!k || id < 0 || id >= k->size || !k->kind[id]) return NULL;
  if (length) *length = k->length[id];
  return k->bytes + k->at[id];
}

MHKDEF mhk_index mhk_decode(mhk_tokenizer *k, const int32_t *ids, mhk_index n, char *text, size_t capacity) {
  mhk_context *ctx = k ? k->object.ctx : NULL;
  size_t total = 0, length = 0;
  if (mhk_failed(ctx)) return -1;
  if (n < 0 || (n > 0 && !ids) || (!text && capacity > 0)) {
    mhk_fail(ctx, MHK_ERROR_ARGUMENT, "mhk_decode was given %s", n < 0 ? "a negative number of ids" : n > 0 && !ids ? "no ids" : "no room");
    return -1;
  }
  for (mhk_index i = 0; i < n; i++) {
    const char *bytes = mhk_token_bytes(k, ids[i], &length);
    if (!bytes) {
      mhk_fail(ctx, MHK_ERROR_ARGUMENT, "id %ld at place %lld of %lld is no token: the vocabulary ends at %d%s", (long)ids[i], (long long)i,
               (long long)n, k->size - 1, ids[i] >= 0 && ids[i] < k->size ? " and has a gap there" : "");
      return -1;
    }
    if (total < capacity) memcpy(text + total, bytes, length < capacity - total ? length : capacity - total);
    if (length > (size_t)PTRDIFF_MAX - total) {
      mhk_fail(ctx, MHK_ERROR_MEMORY, "the text of %lld ids does not fit this machine's address space", (long long)n);
      return -1;
    }
    total += length;
  }
  return (mhk_index)total;
}

MHKDEF int mhk_tokenizer_size(const mhk_tokenizer *k) { return k ? k->size : 0; }
MHKDEF int32_t mhk_tokenizer_end(const mhk_tokenizer *k) { return k ? k->end : -1; }
MHKDEF int32_t mhk_tokenizer_start(const mhk_tokenizer *k) { return k ? k->start : -1; }

MHKDEF int32_t mhk_tokenizer_id(mhk_tokenizer *k, const char *token) {
  if (!k || !token || !*token) return -1;
  const size_t n = strlen(token);
  for (int set = 0; set < 2; set++)
    for (mhk_index i = 0; i < k->added[set].n; i++) {
      const mhk__added *a = k->added[set].tokens[i];
      if (a->content_length == n && memcmp(a->content, token, n) == 0) return a->id;
    }
  return -1;
}

/* ---------------------------------------------------------------------------------------- writing */

/* a token's text as a vocabulary writes it, 0-terminated; room for twice its bytes + 1 */
static size_t mhk__token_text(const mhk_tokenizer *k, int32_t id, char *out) {
  const char *bytes = k->bytes + k->at[id];
  size_t i, n = 0, length = k->length[id];
  if (k->kind[id] & MHK__TOKEN_MAPPED)
    for (i = 0; i < length; i++) n += mhk__byte_character((unsigned char)bytes[i], out + n);
  else {
    memcpy(out, bytes, length);
    n = length;
  }
  out[n] = 0;
  return n;
}

static void mhk__write_flag(mhk__writer *w, const char *key, int value) {
  mhk__write_key(w, key);
  mhk__write_text(w, value ? "true" : "false");
}

static void mhk__write_byte_level(mhk__writer *w, const char *key, int prefix_space, int use_regex) {
  mhk__write_key(w, key);
  mhk__write_open(w, '{');
  mhk__write_key(w, "type");
  mhk__write_text(w, "\"ByteLevel\"");
  mhk__write_flag(w, "add_prefix_space", prefix_space);
  mhk__write_flag(w, "trim_offsets", 1);
  mhk__write_flag(w, "use_regex", use_regex);
  mhk__write_close(w, '}');
}

/* added tokens in the order of their ids */
static void mhk__write_added(mhk__writer *w, const mhk_tokenizer *k, const mhk__added **by_id) {
  for (int set = 0; set < 2; set++)
    for (mhk_index i = 0; i < k->added[set].n; i++) by_id[k->added[set].tokens[i]->id] = k->added[set].tokens[i];
  mhk__write_key(w, "added_tokens");
  mhk__write_open(w, '[');
  for (mhk_index i = 0; i < k->size; i++) {
    const mhk__added *a = by_id[i];
    if (!a) continue;
    mhk__write_item(w);
    mhk__write_open(w, '{');
    mhk__write_key(w, "id");
    mhk__write_integer(w, a->id);
    mhk__write_key(w, "content");
    mhk__write_string(w, a->content, a->content_length);
    mhk__write_flag(w, "single_word", 0);
    mhk__write_flag(w, "lstrip", a->lstrip);
    mhk__write_flag(w, "rstrip", a->rstrip);
    mhk__write_flag(w, "normalized", a->normalized);
    mhk__write_flag(w, "special", a->special);
    mhk__write_close(w, '}');
  }
  mhk__write_close(w, ']');
}

static void mhk__write_tokenizer(mhk__writer *w, const mhk_tokenizer *k, const mhk__added **by_id, const mhk__merge **by_rank, char *room) {
  static const char absent[3][16] = {"truncation", "padding", "normalizer"};
  static const char unset[4][32] = {"dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"};
  mhk__write_open(w, '{');
  mhk__write_key(w, "version");
  mhk__write_text(w, "\"1.0\"");
  for (int i = 0; i < 3; i++) {
    if (i == 2) mhk__write_added(w, k, by_id);
    mhk__write_key(w, absent[i]);
    mhk__write_text(w, "null");
  }
  mhk__write_byte_level(w, "pre_tokenizer", k->prefix_space, k->use_regex);
  mhk__write_byte_level(w, "post_processor", 1, 1);
  mhk__write_byte_level(w, "decoder", 1, 1);
  mhk__write_key(w, "model");
  mhk__write_open(w, '{');
  mhk__write_key(w, "type");
  mhk__write_text(w, "\"BPE\"");
  for (int i = 0; i < 4; i++) {
    mhk__write_key(w, unset[i]);
    mhk__write_text(w, "null");
  }
  mhk__write_flag(w, "fuse_unk", 0);
  mhk__write_flag(w, "byte_fallback", 0);
  mhk__write_flag(w, "ignore_merges", k->ignore_merges);
  mhk__write_key(w, "vocab");
  mhk__write_open(w, '{');
  for (int32_t id = 0; id < k->size; id++)
    if (k->kind[id] & MHK__TOKEN_VOCABULARY) {
      mhk__token_text(k, id, room);
      mhk__write_key(w, room);
      mhk__write_integer(w, id);
    }
  mhk__write_close(w, '}');
  mhk__write_key(w, "merges");
  mhk__write_open(w, '[');
  for (uint32_t s = 0; s <= k->merge_mask; s++)
    if (k->merges[s].rank != UINT32_MAX) by_rank[k->merges[s].rank] = &k->merges[s];
  for (uint32_t s = 0; s < k->n_merges; s++)
    if (by_rank[s]) {
      size_t n = mhk__token_text(k, (int32_t)by_rank[s]->left, room);
      room[n++] = ' ';
      n += mhk__token_text(k, (int32_t)by_rank[s]->right, room + n);
      mhk__write_item(w);
      mhk__write_string(w, room, n);
    }
  mhk__write_close(w, ']');
  mhk__write_close(w, '}');
  mhk__write_close(w, '}');
}

MHKDEF const char *mhk_tokenizer_json(mhk_tokenizer *k, size_t *length) {
  mhk_context *ctx = k ? k->object.ctx : NULL;
  if (length) *length = 0;
  if (mhk_failed(ctx)) return NULL;
  if (!k->json) { /* read from another layout: written at the first call */
    mhk__mark mark = mhk__scratch_mark(ctx);
    const mhk__added **by_id = (const mhk__added **)mhk__scratch(ctx, k->size, sizeof *by_id);
    const mhk__merge **by_rank = (const mhk__merge **)mhk__scratch(ctx, (mhk_index)k->n_merges, sizeof *by_rank);
    mhk__writer w;
    size_t longest = 0;
    char *room, *text = NULL;
    for (int32_t id = 0; id < k->size; id++)
      if (k->length[id] > longest) longest = k->length[id];
    room = (char *)mhk__scratch(ctx, (mhk_index)longest + 1, 4);
    for (int pass = 0; pass < 2 && by_id && by_rank && room; pass++) { /* count, then write */
      if (pass) text = (char *)mhk__arena_alloc(ctx, &k->object.arena, w.length + 1);
      if (pass && !text) break;
      memset(by_id, 0, (size_t)k->size * sizeof *by_id);
      memset(by_rank, 0, k->n_merges * sizeof *by_rank);
      mhk__write_into(&w, text, pass ? w.length + 1 : 0);
      mhk__write_tokenizer(&w, k, by_id, by_rank, room);
    }
    if (text) {
      k->json_length = w.length;
      k->json = text;
    }
    mhk__scratch_rewind(ctx, mark);
  }
  if (length && k->json) *length = k->json_length;
  return k->json;
}

/* ---------------------------------------------------------------------------------------- streaming */

/* Could the byte follow the n held ones inside a well-formed character (Unicode 16.0, table 3-7)? */
static int mhk__stream_fits(const unsigned char *held, int n, unsigned char byte) {
  if ((byte & 0xC0u) != 0x80) return 0;
  if (n > 1) return 1;
  switch (held[0]) {
    case 0xE0: return byte >= 0xA0;
    case 0xED: return byte <= 0x9F;
    case 0xF0: return byte >= 0x90;
    case 0xF4: return byte <= 0x8F;
    default: return 1;
  }
}

/* The start of a character that does not go on becomes one U+FFFD, as does each byte that cannot start one. */
MHKDEF size_t mhk_stream_push(mhk_stream *s, const char *bytes, size_t length, char *out) {
  size_t i = 0, n = 0;
  if (!s || !bytes || !out) return 0;
  while (i < length) {
    const unsigned char byte = (unsigned char)bytes[i];
    if (s->n_held < 1 || s->n_held > 3) {
      i++;
      s->n_held = 0;
      if (byte < 0x80)
        out[n++] = (char)byte;
      else if (byte >= 0xC2 && byte <= 0xF4)
        s->held[s->n_held++] = byte;
      else
        n += mhk__utf8_put(out + n, 0xFFFD);
    } else if (mhk__stream_fits(s->held, s->n_held, byte)) {
      const int whole = s->held[0] < 0xE0 ? 2 : s->held[0] < 0xF0 ? 3 : 4;
      i++;
      s->held[s->n_held++] = byte;
      if (s->n_held == whole) {
        memcpy(out + n, s->held, (size_t)whole);
        n += (size_t)whole;
        s->n_held = 0;
      }
    } else { /* the byte is looked at again */
      n += mhk__utf8_put(out + n, 0xFFFD);
      s->n_held = 0;
    }
  }
  return n;
}

MHKDEF size_t mhk_stream_finish(mhk_stream *s, char *out) {
  if (!s || !out) return 0;
  const size_t n = s->n_held > 0 ? mhk__utf8_put(out, 0xFFFD) : 0;
  s->n_held = 0;
  return n;
}
#endif /* MOHAWK_IMPLEMENTATION */
#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
/* ====================================================================================================
   MODELS: configurations, weights, initialisation, transfer                                >>models
   ==================================================================================================== */

typedef struct mhk__layer {
  mhk_mixer kind;
  mhk_tensor *norm_w, *norm_b;                                       /* norm_b NULL: RMSNorm (Mamba-2) */
  mhk_tensor *q_w, *q_b, *k_w, *k_b, *v_w, *v_b, *dense_w, *dense_b; /* attention */
  mhk_tensor *qn_w, *qn_b, *kn_w, *kn_b;                             /* LayerNorm of queries and keys, or NULL */
  mhk_tensor *in_w, *in_b, *z_bias, *conv_w, *conv_b, *dt_bias, *A_log, *D, *ssm_norm_w, *out_w, *out_b; /* state-space; absent ones NULL */
  mhk_tensor *fc1_w, *fc1_b, *fc2_w, *fc2_b;                                                             /* MLP; NULL: none */
} mhk__layer;

struct mhk_model {
  mhk__object object;
  mhk_config config;
  mhk_tokenizer *tokenizer;
  mhk_file *file;                                            /* mapped weights, or NULL */
  mhk_tensor *embedding, *norm_w, *norm_b, *head_w, *head_b; /* head_w == embedding when tied */
  mhk__layer *layers;
  mhk_tensor **tensors; /* all of them, in the order of the checkpoint */
  int n_tensors;
  int trainable;
  int owns_tokenizer;
  const char *tokenizer_error; /* of the tokenizer that lies beside it; NULL: none */
  int32_t *ends;               /* n_ends, and room for the tokenizer's; NULL: none */
  int n_ends, ends_exact;      /* exact: the tokenizer's does not count besides */
};

/* ---- which tensors a configuration asks for */

typedef enum mhk__role {
  MHK__EMBEDDING,
  MHK__NORM_W, MHK__NORM_B, /* from here on: of each layer */
  MHK__Q_W, MHK__Q_B, MHK__K_W, MHK__K_B, MHK__V_W, MHK__V_B, MHK__DENSE_W, MHK__DENSE_B, MHK__QN_W, MHK__QN_B, MHK__KN_W, MHK__KN_B,
  MHK__IN_W, MHK__IN_B, MHK__Z_BIAS, MHK__CONV_W, MHK__CONV_B, MHK__DT_BIAS, MHK__A_LOG, MHK__D, MHK__SSM_NORM_W, MHK__OUT_W, MHK__OUT_B,
  MHK__FC1_W, MHK__FC1_B, MHK__FC2_W, MHK__FC2_B,
  MHK__FINAL_W, MHK__FINAL_B, MHK__HEAD_W, MHK__HEAD_B, /* of the model again */
  MHK__ROLES
} mhk__role;

typedef struct mhk__spec {
  char name[96];
  mhk__role role;
  int layer, rank;
  mhk_index shape[3];
} mhk__spec;

static mhk_tensor **mhk__slot(mhk_model *m, int layer, mhk__role role) {
  mhk__layer *y = &m->layers[layer];
  switch (role) {
    case MHK__EMBEDDING: return &m->embedding;
    case MHK__FINAL_W: return &m->norm_w;
    case MHK__FINAL_B: return &m->norm_b;
    case MHK__HEAD_W: return &m->head_w;
    case MHK__HEAD_B: return &m->head_b;
    case MHK__NORM_W: return &y->norm_w;
    case MHK__NORM_B: return &y->norm_b;
    case MHK__Q_W: return &y->q_w;
    case MHK__Q_B: return &y->q_b;
    case MHK__K_W: return &y->k_w;
    case MHK__K_B: return &y->k_b;
    case MHK__V_W: return &y->v_w;
    case MHK__V_B: return &y->v_b;
    case MHK__DENSE_W: return &y->dense_w;
    case MHK__DENSE_B: return &y->dense_b;
    case MHK__QN_W: return &y->qn_w;
    case MHK__QN_B: return &y->qn_b;
    case MHK__KN_W: return &y->kn_w;
    case MHK__KN_B: return &y->kn_b;
    case MHK__IN_W: return &y->in_w;
    case MHK__IN_B: return &y->in_b;
    case MHK__Z_BIAS: return &y->z_bias;
    case MHK__CONV_W: return &y->conv_w;
    case MHK__CONV_B: return &y->conv_b;
    case MHK__DT_BIAS: return &y->dt_bias;
    case MHK__A_LOG: return &y->A_log;
    case MHK__D: return &y->D;
    case MHK__SSM_NORM_W: return &y->ssm_norm_w;
    case MHK__OUT_W: return &y->out_w;
    case MHK__OUT_B: return &y->out_b;
    case MHK__FC1_W: return &y->fc1_w;
    case MHK__FC1_B: return &y->fc1_b;
    case MHK__FC2_W: return &y->fc2_w;
    default: return &y->fc2_b;
  }
}

/* matrices of linear and embedding: the ones that may stay in their stored type */
static int mhk__role_is_matrix(mhk__role role) {
  switch (role) {
    case MHK__EMBEDDING:
    case MHK__HEAD_W:
    case MHK__Q_W:
    case MHK__K_W:
    case MHK__V_W:
    case MHK__DENSE_W:
    case MHK__IN_W:
    case MHK__OUT_W:
    case MHK__FC1_W:
    case MHK__FC2_W: return 1;
    default: return 0;
  }
}

/* what a tensor is called behind "layers.3.", or in whole */
static void mhk__role_name(const mhk_config *c, mhk__role role, char out[48]) {
  static const char names[MHK__ROLES][32] = {
      "embed_tokens.weight", "input_layernorm.weight", "input_layernorm.bias", "q_proj.weight", "q_proj.bias", "k_proj.weight",
      "k_proj.bias", "v_proj.weight", "v_proj.bias", "dense.weight", "dense.bias", "q_layernorm.weight", "q_layernorm.bias",
      "k_layernorm.weight", "k_layernorm.bias", "in_proj.weight", "in_proj.bias", "z_bias", "conv1d.weight", "conv1d.bias", "dt_bias",
      "A_log", "D", "norm.weight", "out_proj.weight", "out_proj.bias", "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias",
      "final_layernorm.weight", "final_layernorm.bias", "lm_head.weight", "lm_head.bias"};
  const int attention = role >= MHK__Q_W && role <= MHK__KN_B, ssm = role >= MHK__IN_W && role <= MHK__OUT_B;
  out[0] = 0;
  if ((attention && c->arch == MHK_ARCH_PHI_MAMBA) || ssm) strcat(out, "mixer.");
  if (attention) strcat(out, "self_attn.");
  if (role >= MHK__FC1_W && role <= MHK__FC2_B) strcat(out, "mlp.");
  if (role == MHK__EMBEDDING && c->arch != MHK_ARCH_PHI)
    strcat(out, c->arch == MHK_ARCH_MAMBA2 ? "embeddings.weight" : "embedding.weight");
  else if (c->arch == MHK_ARCH_MAMBA2 &&
           (role == MHK__NORM_W || role == MHK__NORM_B || role == MHK__FINAL_W || role == MHK__FINAL_B)) {
    strcat(out, role == MHK__NORM_W || role == MHK__NORM_B ? "norm" : "norm_f");
    strcat(out, role == MHK__NORM_W || role == MHK__FINAL_W ? ".weight" : ".bias");
  } else strcat(out, names[role]);
}

/* The tensor of a role in a layer: name and shape. 0 when the model has none. */
static int mhk__spec_of(const mhk_config *c, int layer, mhk__role role, mhk__spec *s) {
  const mhk_index D = c->d_model, V = c->vocab_size, Q = (mhk_index)c->n_head * c->head_dim, K = (mhk_index)c->n_kv_head * c->head_dim,
                  E = (mhk_index)c->ssm_heads * c->ssm_head_dim, S = E + 2 * (mhk_index)c->ssm_groups * c->d_state;
  const int layered = role > MHK__EMBEDDING && role < MHK__FINAL_W, kind = layered ? c->mixer[layer] : 0,
            attention = kind == MHK_MIXER_ATTENTION, discrete = kind == MHK_MIXER_DISCRETE_MAMBA2, mamba2 = kind == MHK_MIXER_MAMBA2,
            phi = c->arch != MHK_ARCH_MAMBA2;
  mhk_index a = 0, b = 0;
  int has = 0;
  char tail[48];
  switch (role) {
    case MHK__EMBEDDING: has = 1, a = V, b = D; break;
    case MHK__FINAL_W:
    case MHK__NORM_W: has = 1, a = D; break;
    case MHK__FINAL_B:
    case MHK__NORM_B: has = phi, a = D; break;
    case MHK__HEAD_W: has = !c->tie_embeddings, a = V, b = D; break;
    case MHK__HEAD_B: has = phi, a = V; break;
    case MHK__Q_W: has = attention, a = Q, b = D; break;
    case MHK__Q_B: has = attention, a = Q; break;
    case MHK__K_W:
    case MHK__V_W: has = attention, a = K, b = D; break;
    case MHK__K_B:
    case MHK__V_B: has = attention, a = K; break;
    case MHK__DENSE_W: has = attention, a = D, b = Q; break;
    case MHK__DENSE_B: has = attention, a = D; break;
    case MHK__QN_W:
    case MHK__QN_B:
    case MHK__KN_W:
    case MHK__KN_B: has = attention && c->qk_layernorm, a = c->head_dim; break;
    case MHK__IN_W: has = discrete || mamba2, a = E + S + c->ssm_heads, b = D; break;
    case MHK__IN_B: has = (discrete || mamba2) && c->proj_bias, a = E + S + c->ssm_heads; break;
    case MHK__Z_BIAS: has = discrete, a = E; break;
    case MHK__CONV_W: has = discrete || mamba2, a = S, b = 1; break;
    case MHK__CONV_B: has = (discrete || mamba2) && c->conv_bias, a = S; break;
    case MHK__DT_BIAS:
    case MHK__A_LOG: has = mamba2, a = c->ssm_heads; break;
    case MHK__D: has = discrete || mamba2, a = c->ssm_heads; break;
    case MHK__SSM_NORM_W: has = mamba2, a = E; break;
    case MHK__OUT_W: has = discrete || mamba2, a = D, b = E; break;
    case MHK__OUT_B: has = (discrete || mamba2) && c->proj_bias, a = D; break;
    case MHK__FC1_W: has = c->d_mlp > 0, a = c->d_mlp, b = D; break;
    case MHK__FC1_B: has = c->d_mlp > 0, a = c->d_mlp; break;
    case MHK__FC2_W: has = c->d_mlp > 0, a = D, b = c->d_mlp; break;
    case MHK__FC2_B: has = c->d_mlp > 0, a = D; break;
    default: break;
  }
  if (!has) return 0;
  s->role = role;
  s->layer = layer;
  s->rank = role == MHK__CONV_W ? 3 : b ? 2 : 1;
  s->shape[0] = a;
  s->shape[1] = b ? b : 1;
  s->shape[2] = role == MHK__CONV_W ? c->d_conv : 1;
  mhk__role_name(c, role, tail);
  if (role == MHK__HEAD_W || role == MHK__HEAD_B)
    strcpy(s->name, tail);
  else if (layered)
    mhk__print(s->name, sizeof s->name, "%s.layers.%d.%s", c->arch == MHK_ARCH_PHI ? "model" : "backbone", layer, tail);
  else
    mhk__print(s->name, sizeof s->name, "%s.%s", c->arch == MHK_ARCH_PHI ? "model" : "backbone", tail);
  return 1;
}

/* All tensors one after another, in the order of the checkpoint: start with s->layer = -1 and go on until 0. */
static int mhk__spec_next(const mhk_config *c, mhk__spec *s) {
  int role = s->layer < 0 ? (int)MHK__EMBEDDING : (int)s->role + 1, layer = s->layer < 0 ? 0 : s->layer;
  for (; role < (int)MHK__ROLES; role++) {
    if (role == (int)MHK__FINAL_W && layer + 1 < c->n_layer) {
      layer++;
      role = (int)MHK__NORM_W;
    }
    if (mhk__spec_of(c, layer, (mhk__role)role, s)) return 1;
  }
  return 0;
}

/* the settings that decide a tensor's shape, for errors */
static void mhk__spec_reason(const mhk_config *c, const mhk__spec *s, char *out, size_t room) {
  const int pm = c->arch == MHK_ARCH_PHI_MAMBA, m2 = c->arch == MHK_ARCH_MAMBA2;
  switch (s->role) {
    case MHK__EMBEDDING:
    case MHK__HEAD_W: mhk__print(out, room, "vocab_size %d, %s %d", c->vocab_size, pm ? "d_model" : "hidden_size", c->d_model); break;
    case MHK__HEAD_B: mhk__print(out, room, "vocab_size %d", c->vocab_size); break;
    case MHK__FC1_W:
    case MHK__FC1_B:
    case MHK__FC2_W: mhk__print(out, room, "%s %d", pm ? "d_mlp" : "intermediate_size", c->d_mlp); break;
    case MHK__Q_W:
    case MHK__Q_B:
    case MHK__DENSE_W: mhk__print(out, room, "num_attention_heads %d of size %d", c->n_head, c->head_dim); break;
    case MHK__K_W:
    case MHK__K_B:
    case MHK__V_W:
    case MHK__V_B: mhk__print(out, room, "num_key_value_heads %d of size %d", c->n_kv_head, c->head_dim); break;
    case MHK__QN_W:
    case MHK__QN_B:
    case MHK__KN_W:
    case MHK__KN_B: mhk__print(out, room, "head size %d", c->head_dim); break;
    case MHK__IN_W:
    case MHK__IN_B:
    case MHK__CONV_W:
    case MHK__CONV_B:
    case MHK__Z_BIAS:
    case MHK__D:
    case MHK__OUT_W:
    case MHK__DT_BIAS:
    case MHK__A_LOG:
    case MHK__SSM_NORM_W:
      mhk__print(out, room,
               m2 ? "num_heads %d, head_dim %d, n_groups %d, state_size %d, conv_kernel %d"
                  : "n_v_heads %d of size %d, n_qk_heads %d, d_state %d, d_conv %d",
               c->ssm_heads, c->ssm_head_dim, c->ssm_groups, c->d_state, c->d_conv);
      break;
    default: mhk__print(out, room, "%s %d", pm ? "d_model" : "hidden_size", c->d_model); break;
  }
}

/* ---- configurations: presets, check */

static int mhk__config_uses(const mhk_config *c, int mixer) {
  for (int l = 0; l < c->n_layer && l < MHK_MAX_LAYERS; l++)
    if (c->mixer[l] == mixer) return 1;
  return 0;
}

MHKDEF mhk_result mhk_config_preset(mhk_context *ctx, const char *name, mhk_config *config) {
  mhk_config c;
  if (mhk_failed(ctx)) return mhk_error(ctx);
  if (!name || !config) return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "mhk_config_preset needs a name and a place for the configuration");
  memset(&c, 0, sizeof c);
  const int phi = strcmp(name, "phi-1") == 0 || strcmp(name, "phi-1.5") == 0 || strcmp(name, "phi-2") == 0;
  const int mamba = strcmp(name, "phi-mamba-1.5b") == 0 || strcmp(name, "hybrid-phi-mamba-1.5b") == 0;
  c.norm_eps = 1e-5;
  if (phi || mamba) {
    const int two = strcmp(name, "phi-2") == 0, hybrid = strcmp(name, "hybrid-phi-mamba-1.5b") == 0;
    c.arch = phi ? MHK_ARCH_PHI : MHK_ARCH_PHI_MAMBA;
    c.n_layer = two ? 32 : 24;
    c.d_model = two ? 2560 : 2048;
    c.vocab_size = 51200;
    c.d_mlp = 4 * c.d_model;
    c.max_position = 2048;
    if (phi || hybrid) {
      c.n_head = c.n_kv_head = 32;
      c.head_dim = c.d_model / 32;
      c.rotary_dim = 32;
      c.rope_theta = 10000.0;
    }
    if (mamba) {
      c.ssm_heads = c.ssm_groups = 32;
      c.ssm_head_dim = c.d_state = 64;
      c.d_conv = 4;
      c.chunk_size = 128;
      c.conv_bias = 1;
      c.pad_vocab_multiple = 8;
    }
    for (int l = 0; l < c.n_layer; l++)
      c.mixer[l] = phi || (hybrid && l % 6 == 4) ? MHK_MIXER_ATTENTION : MHK_MIXER_DISCRETE_MAMBA2; /* 4, 10, 16, 22 stay attention */
  } else if (strcmp(name, "mamba2-130m") == 0 || strcmp(name, "mamba2-1.3b") == 0) {
    const int is_130m = strcmp(name, "mamba2-130m") == 0;
    c.arch = MHK_ARCH_MAMBA2;
    c.n_layer = is_130m ? 24 : 48;
    c.d_model = is_130m ? 768 : 2048;
    c.vocab_size = 50288;
    c.tie_embeddings = 1;
    c.ssm_heads = c.d_model / 32; /* expand 2, heads of 64 */
    c.ssm_groups = 1;
    c.ssm_head_dim = 64;
    c.d_state = 128;
    c.d_conv = 4;
    c.chunk_size = 256;
    c.conv_silu = c.conv_bias = 1;
    for (int l = 0; l < c.n_layer; l++) c.mixer[l] = MHK_MIXER_MAMBA2;
  } else
    return mhk_fail(
        ctx, MHK_ERROR_ARGUMENT,
        "there is no preset \"%.60s\": phi-1, phi-1.5, phi-2, phi-mamba-1.5b, hybrid-phi-mamba-1.5b, mamba2-130m and mamba2-1.3b are there",
        name);
  *config = c;
  return MHK_OK;
}

#define MHK__SENTENCE 512

#if defined(__GNUC__) || defined(__clang__)
__attribute__((format(printf, 3, 4)))
#endif
static mhk_result mhk__say(char *out, mhk_result code, const char *format, ...) {
  va_list args;
  va_start(args, format);
  mhk__vprint(out, MHK__SENTENCE, format, args);
  va_end(args);
  return code;
}

static int mhk__in_range(char *out, const char *what, double value, double low, double high) {
  if (value >= low && value <= high) return 1;
  mhk__say(out, MHK_ERROR_CONFIG, "%s is %.0f: it must lie between %.0f and %.0f", what, value, low, high);
  return 0;
}

static mhk_result mhk__check_rotary(char *out, int rotary, int size, double theta, int ssm) {
  char factor[32], number[32];
  mhk__format_double((double)rotary / size, factor);
  mhk__format_double(theta, number);
  if (rotary < 0 || rotary > size)
    return mhk__say(out, MHK_ERROR_CONFIG, "%d rotary features do not fit %s of size %d", rotary, ssm ? "a state (d_state)" : "a head",
                    size);
  if (rotary % 2 && ssm) return mhk__say(out, MHK_ERROR_CONFIG, "rotary_dim %d of B and C is odd: features turn in pairs", rotary);
  if (rotary % 2)
    return mhk__say(out, MHK_ERROR_CONFIG, "%d rotary features per head is odd: partial_rotary_factor %s of head size %d", rotary, factor,
                    size);
  if (rotary > 0 && !(theta > 0 && theta <= 1e300)) return mhk__say(out, MHK_ERROR_CONFIG, "rope_theta is %s: it must be above 0", number);
  return MHK_OK;
}

/* MHK_OK, or what is wrong as a sentence of at most MHK__SENTENCE bytes */
static mhk_result mhk__config_wrong(char *out, const mhk_config *c) {
  const double most = 1 << 24;
  char number[32];
  mhk__spec s;
  if (c->arch != MHK_ARCH_PHI && c->arch != MHK_ARCH_PHI_MAMBA && c->arch != MHK_ARCH_MAMBA2)
    return mhk__say(out, MHK_ERROR_CONFIG, "architecture %d is none of Phi (1), Phi-Mamba (2) and Mamba-2 (3)", (int)c->arch);
  if (!mhk__in_range(out, "the number of layers", c->n_layer, 1, MHK_MAX_LAYERS)) return MHK_ERROR_CONFIG;
  if (!mhk__in_range(out, c->arch == MHK_ARCH_PHI_MAMBA ? "d_model" : "hidden_size", c->d_model, 1, most)) return MHK_ERROR_CONFIG;
  if (!mhk__in_range(out, "vocab_size", c->vocab_size, 1, most * 16)) return MHK_ERROR_CONFIG;
  if (!mhk__in_range(out, "the width of the MLP", c->d_mlp, c->arch == MHK_ARCH_MAMBA2 ? 0 : 1, c->arch == MHK_ARCH_MAMBA2 ? 0 : most))
    return MHK_ERROR_CONFIG;
  mhk__format_double(c->norm_eps, number);
  if (!(c->norm_eps > 0 && c->norm_eps < 1))
    return mhk__say(out, MHK_ERROR_CONFIG, "the eps of the norms is %s: it must lie between 0 and 1, 1e-05 is usual", number);
  for (int l = 0; l < c->n_layer; l++) {
    const int kind = c->mixer[l];
    const int fits = c->arch == MHK_ARCH_PHI      ? kind == MHK_MIXER_ATTENTION
                     : c->arch == MHK_ARCH_MAMBA2 ? kind == MHK_MIXER_MAMBA2
                                                  : kind == MHK_MIXER_ATTENTION || kind == MHK_MIXER_DISCRETE_MAMBA2;
    if (!fits)
      return mhk__say(out, MHK_ERROR_CONFIG, "the mixer of layer %d is %d; %s", l, kind,
                      c->arch == MHK_ARCH_PHI      ? "every layer of a Phi has attention (1)"
                      : c->arch == MHK_ARCH_MAMBA2 ? "every layer of a Mamba-2 has MHK_MIXER_MAMBA2 (3)"
                                                   : "layers of a Phi-Mamba have attention (1) or discrete Mamba-2 (2)");
  }
  if (mhk__config_uses(c, MHK_MIXER_ATTENTION)) {
    if (!mhk__in_range(out, "num_attention_heads", c->n_head, 1, 65536)) return MHK_ERROR_CONFIG;
    if (!mhk__in_range(out, "num_key_value_heads", c->n_kv_head, 1, 65536)) return MHK_ERROR_CONFIG;
    if (!mhk__in_range(out, "the size of an attention head", c->head_dim, 1, 65536)) return MHK_ERROR_CONFIG;
    if (!mhk__in_range(out, "num_attention_heads times their size", (double)c->n_head * c->head_dim, 1, most)) return MHK_ERROR_CONFIG;
    if (c->n_head % c->n_kv_head)
      return mhk__say(
          out, MHK_ERROR_CONFIG,
          "%d attention heads cannot share %d key/value heads evenly: num_attention_heads must be a multiple of num_key_value_heads",
          c->n_head, c->n_kv_head);
    if (mhk__check_rotary(out, c->rotary_dim, c->head_dim, c->rope_theta, 0)) return MHK_ERROR_CONFIG;
  }
  if (mhk__config_uses(c, MHK_MIXER_DISCRETE_MAMBA2) || mhk__config_uses(c, MHK_MIXER_MAMBA2)) {
    if (!mhk__in_range(out, "the number of state-space heads", c->ssm_heads, 1, 65536)) return MHK_ERROR_CONFIG;
    if (!mhk__in_range(out, "the number of groups of B and C", c->ssm_groups, 1, 65536)) return MHK_ERROR_CONFIG;
    if (!mhk__in_range(out, "the size of a state-space head", c->ssm_head_dim, 1, 65536)) return MHK_ERROR_CONFIG;
    if (!mhk__in_range(out, "d_state", c->d_state, 1, 65536)) return MHK_ERROR_CONFIG;
    if (!mhk__in_range(out, "d_inner (heads times their size)", (double)c->ssm_heads * c->ssm_head_dim, 1, most)) return MHK_ERROR_CONFIG;
    if (!mhk__in_range(out, "the width of B and C (groups times d_state)", (double)c->ssm_groups * c->d_state, 1, most))
      return MHK_ERROR_CONFIG;
    if (!mhk__in_range(out, "d_conv", c->d_conv, 1, 64)) return MHK_ERROR_CONFIG;
    if (!mhk__in_range(out, "chunk_size", c->chunk_size, 1, most)) return MHK_ERROR_CONFIG;
    if (c->ssm_heads % c->ssm_groups)
      return mhk__say(
          out, MHK_ERROR_CONFIG, "%d state-space heads cannot share %d groups of B and C evenly: %s", c->ssm_heads, c->ssm_groups,
          c->arch == MHK_ARCH_MAMBA2 ? "num_heads must be a multiple of n_groups" : "n_v_heads must be a multiple of n_qk_heads");
    if (c->ssm_rotary_dim && c->arch == MHK_ARCH_MAMBA2)
      return mhk__say(out, MHK_ERROR_CONFIG, "rotary_dim %d: rotary features of B and C exist in Phi-Mamba only", c->ssm_rotary_dim);
    if (mhk__check_rotary(out, c->ssm_rotary_dim, c->d_state, c->rope_theta, 1)) return MHK_ERROR_CONFIG;
    if (!(c->dt_min >= 0 && c->dt_min < 1e300) || (c->dt_max != 0 && !(c->dt_max > c->dt_min))) {
      char high[32];
      mhk__format_double(c->dt_min, number);
      mhk__format_double(c->dt_max, high);
      return mhk__say(out, MHK_ERROR_CONFIG,
                      "time_step_limit from %s to %s leaves no room: the first must not be negative, the second larger", number, high);
    }
  }
  if (c->pad_vocab_multiple < 0 || (c->pad_vocab_multiple > 1 && c->vocab_size % c->pad_vocab_multiple))
    return mhk__say(out, MHK_ERROR_CONFIG, "a vocabulary of %d is no multiple of pad_vocab_size_multiple %d", c->vocab_size,
                    c->pad_vocab_multiple);
  memset(&s, 0, sizeof s);
  s.layer = -1;
  while (mhk__spec_next(c, &s))
    if ((double)s.shape[0] * (double)s.shape[1] * (double)s.shape[2] * 16.0 > (double)PTRDIFF_MAX)
      return mhk__say(out, MHK_ERROR_CONFIG, "%s with %.0f elements does not fit this machine's address space", s.name,
                      (double)s.shape[0] * (double)s.shape[1] * (double)s.shape[2]);
  return MHK_OK;
}

MHKDEF mhk_result mhk_config_check(mhk_context *ctx, const mhk_config *config) {
  char sentence[MHK__SENTENCE];
  if (mhk_failed(ctx)) return mhk_error(ctx);
  if (!config) return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "mhk_config_check needs a configuration");
  mhk_result code = mhk__config_wrong(sentence, config);
  return code == MHK_OK ? code : mhk_fail(ctx, code, "%s", sentence);
}

static mhk_index mhk__d_inner(const mhk_config *c) { return (mhk_index)c->ssm_heads * c->ssm_head_dim; }
static mhk_index mhk__conv_channels(const mhk_config *c) { return mhk__d_inner(c) + 2 * (mhk_index)c->ssm_groups * c->d_state; }

MHKDEF double mhk_config_state_bytes(const mhk_config *c, mhk_index tokens) {
  char sentence[MHK__SENTENCE];
  double numbers = 0;
  if (!c || tokens < 0 || mhk__config_wrong(sentence, c) != MHK_OK) return 0;
  for (int l = 0; l < c->n_layer; l++)
    numbers += c->mixer[l] == MHK_MIXER_ATTENTION ? 2.0 * (double)tokens * c->n_kv_head * c->head_dim
                                                  : (double)mhk__conv_channels(c) * (c->d_conv - 1) + (double)mhk__d_inner(c) * c->d_state;
  return numbers * (double)sizeof(mhk_real);
}

MHKDEF double mhk_config_parameters(const mhk_config *config) {
  char sentence[MHK__SENTENCE];
  mhk__spec s;
  double n = 0;
  if (!config || mhk__config_wrong(sentence, config) != MHK_OK) return 0;
  memset(&s, 0, sizeof s);
  s.layer = -1;
  while (mhk__spec_next(config, &s)) n += (double)s.shape[0] * (double)s.shape[1] * (double)s.shape[2];
  return n;
}

#define MHK__LIST_MOST 1500 /* bytes of a list of names in a message; the rest is counted */

typedef struct mhk__list {
  mhk__writer text;
  int n, left_out;
} mhk__list;

static void mhk__list_start(mhk__list *list, mhk_context *ctx) {
  memset(list, 0, sizeof *list);
  mhk__write_to(&list->text, ctx, &ctx->scratch);
}

static int mhk__list_room(mhk__list *list) {
  list->n++;
  if (list->text.length > MHK__LIST_MOST / 3) return list->left_out++, 0;
  if (list->n > 1) mhk__write_text(&list->text, "; ");
  return 1;
}

static const char *mhk__list_end(mhk__list *list) {
  if (list->left_out) {
    mhk__write_text(&list->text, " and ");
    mhk__write_integer(&list->text, list->left_out);
    mhk__write_text(&list->text, " more");
  }
  return list->text.data ? list->text.data : "";
}

/* ---- config.json in */

typedef struct mhk__settings {
  mhk_context *ctx;
  const mhk__json *object;
  const char *where, *part; /* the text, and which object of it ("" for the whole) */
} mhk__settings;

static mhk__settings mhk__settings_of(mhk_context *ctx, const mhk__json *object, const char *where, const char *part) {
  mhk__settings s;
  s.ctx = ctx;
  s.object = object;
  s.where = where;
  s.part = part;
  return s;
}

/* a setting that is there and not null */
static const mhk__json *mhk__setting(const mhk__settings *s, const char *key) {
  const size_t length = strlen(key);
  mhk__json *x = mhk__json_is(s->object, MHK__JSON_OBJECT) ? s->object->first : NULL;
  while (x && (x->key_length != length || memcmp(x->key, key, length) != 0)) x = x->next;
  if (!x || x->type == MHK__JSON_NULL) return NULL;
  x->seen = 1;
  return x;
}

/* whether words, with blanks between them, has this one */
static int mhk__has_word(const char *words, const char *word) {
  const size_t length = strlen(word);
  for (const char *at = strstr(words, word); at && length; at = strstr(at + 1, word))
    if ((at == words || at[-1] == ' ') && (at[length] == ' ' || at[length] == 0)) return 1;
  return 0;
}

/* Settings that nobody asked for are one warning, but for those named in quiet, which do not change
   what a model computes. */
static void mhk__warn_unseen(const mhk__settings *s, const char *quiet) {
  mhk__mark mark = mhk__scratch_mark(s->ctx);
  mhk__list list;
  mhk__list_start(&list, s->ctx);
  for (const mhk__json *x = mhk__json_is(s->object, MHK__JSON_OBJECT) ? s->object->first : NULL; x && !mhk_failed(s->ctx); x = x->next)
    if (!x->seen && x->type != MHK__JSON_NULL && !mhk__has_word(quiet, x->key) && mhk__list_room(&list))
      mhk__write_bytes(&list.text, x->key, x->key_length < 60 ? x->key_length : 60);
  if (list.n)
    mhk__note(s->ctx, MHK_LOG_WARNING, "%s: not known here and without effect%s%s: %s", s->where,
              s->part[0] ? ", in " : "", s->part, mhk__list_end(&list));
  mhk__scratch_rewind(s->ctx, mark);
}

static void mhk__setting_wrong(const mhk__settings *s, const mhk__json *x, const char *key, const char *wanted) {
  const char *found = !x                           ? "missing"
                      : x->text                    ? x->text
                      : x->type == MHK__JSON_TRUE  ? "true"
                      : x->type == MHK__JSON_FALSE ? "false"
                      : x->type == MHK__JSON_ARRAY ? "a list"
                                                   : "an object";
  mhk_fail(s->ctx, MHK_ERROR_CONFIG, "%s: %s%s%s must be %s, it is %.60s", s->where, s->part, s->part[0] ? "." : "", key, wanted, found);
}

/* a count; fallback -1: it must be there */
static int mhk__setting_int(const mhk__settings *s, const char *key, int fallback) {
  const mhk__json *x = mhk__setting(s, key);
  int64_t value;
  if (!x && fallback >= 0) return fallback;
  if (!mhk__json_integer(x, &value) || value < 0 || value > INT_MAX) {
    mhk__setting_wrong(s, x, key, "a whole number from 0 to 2147483647");
    return 0;
  }
  return (int)value;
}

/* a number; infinities also as the library of Hugging Face wraps them: {"__float__": "Infinity"} */
static double mhk__setting_value(const mhk__settings *s, const mhk__json *x, const char *key) {
  const mhk__json *wrapped = mhk__json_get(x, "__float__");
  if (mhk__json_is(x, MHK__JSON_NUMBER)) return mhk__json_number(x);
  if (mhk__json_equals(wrapped, "Infinity")) return HUGE_VAL;
  if (mhk__json_equals(wrapped, "-Infinity")) return -HUGE_VAL;
  mhk__setting_wrong(s, x, key, "a number");
  return 0;
}

static double mhk__setting_double(const mhk__settings *s, const char *key, double fallback) {
  const mhk__json *x = mhk__setting(s, key);
  return x ? mhk__setting_value(s, x, key) : fallback;
}

static int mhk__setting_flag(const mhk__settings *s, const char *key, int fallback) {
  const mhk__json *x = mhk__setting(s, key);
  if (!x) return fallback;
  if (x->type != MHK__JSON_TRUE && x->type != MHK__JSON_FALSE) mhk__setting_wrong(s, x, key, "true or false");
  return x->type == MHK__JSON_TRUE;
}

/* Things that would change what the model computes and are not done here: said, not ignored. */
static void mhk__setting_refuse(const mhk__settings *s, const char *key, const char *value, const char *known) {
  mhk_fail(s->ctx, MHK_ERROR_UNSUPPORTED, "%s: %s%s%s is \"%.60s\", which this version does not do; it knows %s", s->where, s->part,
           s->part[0] ? "." : "", key, value, known);
}

static void mhk__refuse_quantized(const mhk__settings *s) {
  if (mhk__setting(s, "quantization_config"))
    mhk_fail(s->ctx, MHK_ERROR_UNSUPPORTED, "%s: quantization_config is set; this version reads weights of F32, F16 and BF16 only",
             s->where);
}

/* rope_parameters, or rope_scaling, as older versions of the library call it and which counts
   before it. Either may say that nothing is scaled. */
static mhk__settings mhk__parse_rope(const mhk__settings *s) {
  const mhk__json *old = mhk__setting(s, "rope_scaling"), *parameters = mhk__setting(s, "rope_parameters");
  const char *key = old && old->count ? "rope_scaling" : "rope_parameters";
  const mhk__json *x = old && old->count ? old : parameters;
  const mhk__settings r = mhk__settings_of(s->ctx, x, s->where, key);
  const mhk__json *type = mhk__setting(&r, "rope_type"), *older = mhk__setting(&r, "type");
  if (!type) type = older;
  if (x && x->type != MHK__JSON_OBJECT)
    mhk__setting_wrong(s, x, key, "an object");
  else if (type && !mhk__json_equals(type, "default"))
    mhk__setting_refuse(s, key, type->text ? type->text : "?", "the plain rotary embedding (\"default\") only");
  else if (!type && mhk__setting(&r, "factor"))
    mhk__setting_refuse(s, key, "scaled", "the plain rotary embedding only");
  return r;
}

/* the attention settings of a Phi, in config.json or in a phi_attention block */
static void mhk__parse_attention(const mhk__settings *s, mhk_config *c) {
  const mhk__json *head_dim = mhk__setting(s, "head_dim");
  const mhk__settings r = mhk__parse_rope(s);
  c->n_head = mhk__setting_int(s, "num_attention_heads", 32);
  c->n_kv_head = mhk__setting_int(s, "num_key_value_heads", c->n_head);
  c->qk_layernorm = mhk__setting_flag(s, "qk_layernorm", 0);
  c->rope_theta = mhk__setting_double(s, "rope_theta", 10000.0);
  if (mhk__setting(&r, "rope_theta")) c->rope_theta = mhk__setting_double(&r, "rope_theta", 0);
  double factor = mhk__setting_double(s, "partial_rotary_factor", 0.5);
  if (mhk__setting(&r, "partial_rotary_factor")) factor = mhk__setting_double(&r, "partial_rotary_factor", 0);
  mhk__warn_unseen(&r, "");
  if (head_dim)
    c->head_dim = mhk__setting_int(s, "head_dim", -1);
  else if (c->n_head < 1 || c->d_model % c->n_head)
    mhk_fail(s->ctx, MHK_ERROR_CONFIG, "%s: hidden_size %d cannot be cut into %d attention heads (num_attention_heads)", s->where,
             c->d_model, c->n_head);
  else
    c->head_dim = c->d_model / c->n_head;
  if (!(factor >= 0 && factor <= 1)) {
    char number[32];
    mhk__format_double(factor, number);
    mhk_fail(s->ctx, MHK_ERROR_CONFIG, "%s: partial_rotary_factor is %s: it must lie between 0 and 1", s->where, number);
  } else
    c->rotary_dim = (int)(factor * c->head_dim); /* cut off, as the library does */
}

/* what Hugging Face's library keeps in every config.json: names and types, training, how its own
   code runs; ends of text are read with the model */
#define MHK__QUIET                                                                                                     \
  "_name_or_path architectures auto_map bos_token_id chunk_size_feed_forward dtype eos_token_id id2label "             \
  "initializer_range "                                                                                                 \
  "is_encoder_decoder label2id model_type output_attentions output_hidden_states pad_token_id problem_type "           \
  "return_dict "                                                                                                       \
  "torch_dtype transformers_version use_cache "

static void mhk__parse_phi(const mhk__settings *s, mhk_config *c) {
  const mhk__json *act = mhk__setting(s, "hidden_act");
  c->arch = MHK_ARCH_PHI;
  mhk__refuse_quantized(s);
  c->n_layer = mhk__setting_int(s, "num_hidden_layers", -1);
  c->d_model = mhk__setting_int(s, "hidden_size", -1);
  c->vocab_size = mhk__setting_int(s, "vocab_size", -1);
  c->d_mlp = mhk__setting_int(s, "intermediate_size", -1);
  c->norm_eps = mhk__setting_double(s, "layer_norm_eps", 1e-5);
  c->tie_embeddings = mhk__setting_flag(s, "tie_word_embeddings", 0);
  c->max_position = mhk__setting_int(s, "max_position_embeddings", 2048);
  if (act && !mhk__json_equals(act, "gelu_new") && !mhk__json_equals(act, "gelu_pytorch_tanh") && !mhk__json_equals(act, "gelu_fast"))
    mhk__setting_refuse(s, "hidden_act", act->text ? act->text : "?", "\"gelu_new\"");
  mhk__parse_attention(s, c);
  for (int l = 0; l < c->n_layer && l < MHK_MAX_LAYERS; l++) c->mixer[l] = MHK_MIXER_ATTENTION;
  mhk__warn_unseen(s, MHK__QUIET "attention_dropout embd_pdrop resid_pdrop");
}

/* [low, high] of step sizes */
static void mhk__parse_limit(const mhk__settings *s, const char *key, mhk_config *c) {
  const mhk__json *limit = mhk__setting(s, key);
  if (!limit) return;
  if (limit->type != MHK__JSON_ARRAY || limit->count != 2) {
    mhk__setting_wrong(s, limit, key, "a list of two numbers");
    return;
  }
  c->dt_min = mhk__setting_value(s, limit->first, key);
  c->dt_max = mhk__setting_value(s, limit->first->next, key);
  if (c->dt_max >= 1e38)
    c->dt_max = 0;
  else if (c->dt_max == 0)
    mhk__setting_wrong(s, limit, key, "a list whose second number is above 0");
}

/* d_inner = expand * d_model, a whole number that `by`, the setting called what, divides; else 0
   and an error */
static int mhk__parse_inner(const mhk__settings *s, const mhk_config *c, double fallback, int by, const char *what) {
  const double expand = mhk__setting_double(s, "expand", fallback), inner = expand * c->d_model;
  char number[32];
  if (by >= 1 && inner >= 1 && inner < (1 << 24) && fabs(inner - floor(inner + 0.5)) <= 1e-6 &&
      (int)(inner + 0.5) % by == 0)
    return (int)(inner + 0.5);
  mhk__format_double(expand, number);
  mhk_fail(s->ctx, MHK_ERROR_CONFIG, "%s: %s: expand %s of d_model %d cannot be cut into heads: %s is %d", s->where,
           s->part, number, c->d_model, what, by);
  return 0;
}

/* vocab_size filled up to a multiple, as the authors' code of either state-space model makes its
   embedding */
static void mhk__parse_vocabulary(const mhk__settings *s, int fallback, mhk_config *c) {
  const int size = mhk__setting_int(s, "vocab_size", -1),
            pad = mhk__setting_int(s, "pad_vocab_size_multiple", fallback);
  c->pad_vocab_multiple = pad < 1 ? 1 : pad;
  if (size > INT_MAX - c->pad_vocab_multiple)
    mhk__setting_wrong(s, mhk__setting(s, "vocab_size"), "vocab_size", "a smaller number");
  else
    c->vocab_size = (size + c->pad_vocab_multiple - 1) / c->pad_vocab_multiple * c->pad_vocab_multiple;
}

/* config.json of state-spaces' own code (mamba_ssm). It has no field for the eps of its norms,
   which is 1e-5. */
static void mhk__parse_state_spaces(const mhk__settings *s, mhk_config *c) {
  const mhk__settings ssm = mhk__settings_of(s->ctx, mhk__setting(s, "ssm_cfg"), s->where, "ssm_cfg");
  const mhk__json *layer = mhk__setting(&ssm, "layer"), *attention = mhk__setting(s, "attn_layer_idx");
  c->arch = MHK_ARCH_MAMBA2;
  if (!mhk__json_equals(layer, "Mamba2"))
    mhk_fail(
        s->ctx, MHK_ERROR_UNSUPPORTED,
        "%s describes a Mamba-1 (its ssm_cfg has %s%.60s%s for layer); of this layout Mamba-2 is known (\"Mamba2\")",
        s->where, layer ? "\"" : "nothing", layer && layer->text ? layer->text : "", layer ? "\"" : "");
  if (attention && attention->count)
    mhk_fail(s->ctx, MHK_ERROR_UNSUPPORTED,
             "%s: attn_layer_idx names %lld layers of attention; a hybrid of Mamba-2 and attention is not known here",
             s->where, (long long)attention->count);
  if (mhk__setting_int(s, "d_intermediate", 0) > 0)
    mhk_fail(s->ctx, MHK_ERROR_UNSUPPORTED,
             "%s: d_intermediate is %d: a Mamba-2 with MLPs between its layers is not known here", s->where,
             mhk__setting_int(s, "d_intermediate", 0));
  c->n_layer = mhk__setting_int(s, "n_layer", -1);
  c->d_model = mhk__setting_int(s, "d_model", -1);
  mhk__parse_vocabulary(s, 8, c);
  c->pad_vocab_multiple = 0; /* saved as Hugging Face's library has it, which counts the rows that are there */
  c->tie_embeddings = mhk__setting_flag(s, "tie_embeddings", 1);
  c->norm_eps = 1e-5;
  if (!mhk__setting_flag(s, "rms_norm", 1)) mhk__setting_refuse(s, "rms_norm", "false", "true");
  c->ssm_head_dim = mhk__setting_int(&ssm, "headdim", 64);
  const int inner = mhk__parse_inner(&ssm, c, 2, c->ssm_head_dim, "headdim");
  c->ssm_heads = c->ssm_head_dim > 0 ? inner / c->ssm_head_dim : 0;
  c->ssm_groups = mhk__setting_int(&ssm, "ngroups", 1);
  c->d_state = mhk__setting_int(&ssm, "d_state", 128);
  c->d_conv = mhk__setting_int(&ssm, "d_conv", 4);
  c->chunk_size = mhk__setting_int(&ssm, "chunk_size", 256);
  c->conv_bias = mhk__setting_flag(&ssm, "conv_bias", 1);
  c->proj_bias = mhk__setting_flag(&ssm, "bias", 0);
  c->conv_silu = 1;
  mhk__parse_limit(&ssm, "dt_limit", c);
  const int d_ssm = mhk__setting_int(&ssm, "d_ssm", inner);
  if (d_ssm != inner)
    mhk_fail(s->ctx, MHK_ERROR_UNSUPPORTED, "%s: ssm_cfg.d_ssm is %d: only d_inner, %d here, is known", s->where, d_ssm,
             inner);
  if (mhk__setting_flag(&ssm, "D_has_hdim", 0)) mhk__setting_refuse(&ssm, "D_has_hdim", "true", "false");
  if (!mhk__setting_flag(&ssm, "rmsnorm", 1)) mhk__setting_refuse(&ssm, "rmsnorm", "false", "true");
  if (mhk__setting_flag(&ssm, "norm_before_gate", 0)) mhk__setting_refuse(&ssm, "norm_before_gate", "true", "false");
  for (int l = 0; l < c->n_layer && l < MHK_MAX_LAYERS; l++) c->mixer[l] = MHK_MIXER_MAMBA2;
  mhk__warn_unseen(s, MHK__QUIET "attn_cfg fused_add_norm residual_in_fp32");
  mhk__warn_unseen(&ssm, "A_init_range conv_init device dt_init_floor dt_max dt_min dtype layer_idx process_group "
                         "sequence_parallel use_mem_eff_path");
}

static void mhk__parse_mamba2(const mhk__settings *s, mhk_config *c) {
  const mhk__json *act = mhk__setting(s, "hidden_act");
  c->arch = MHK_ARCH_MAMBA2;
  mhk__refuse_quantized(s);
  c->n_layer = mhk__setting_int(s, "num_hidden_layers", -1);
  c->d_model = mhk__setting_int(s, "hidden_size", -1);
  c->vocab_size = mhk__setting_int(s, "vocab_size", -1);
  c->norm_eps = mhk__setting_double(s, "layer_norm_epsilon", 1e-5);
  c->tie_embeddings = mhk__setting_flag(s, "tie_word_embeddings", 0);
  c->ssm_heads = mhk__setting_int(s, "num_heads", 128);
  c->ssm_head_dim = mhk__setting_int(s, "head_dim", 64);
  c->ssm_groups = mhk__setting_int(s, "n_groups", 8);
  c->d_state = mhk__setting_int(s, "state_size", 128);
  c->d_conv = mhk__setting_int(s, "conv_kernel", 4);
  c->chunk_size = mhk__setting_int(s, "chunk_size", 256);
  c->conv_bias = mhk__setting_flag(s, "use_conv_bias", 1);
  c->proj_bias = mhk__setting_flag(s, "use_bias", 0);
  c->conv_silu = 1;
  const double expand = mhk__setting_double(s, "expand", 2);
  if (!(fabs(expand * c->d_model - (double)c->ssm_heads * c->ssm_head_dim) < 0.5)) {
    char number[32];
    mhk__format_double(expand, number);
    mhk_fail(s->ctx, MHK_ERROR_CONFIG, "%s: expand %s of hidden_size %d is not num_heads %d times head_dim %d", s->where, number,
             c->d_model, c->ssm_heads, c->ssm_head_dim);
  }
  if (act && !mhk__json_equals(act, "silu") && !mhk__json_equals(act, "swish"))
    mhk__setting_refuse(s, "hidden_act", act->text ? act->text : "?", "\"silu\"");
  if (!mhk__setting_flag(s, "rms_norm", 1)) mhk__setting_refuse(s, "rms_norm", "false", "true");
  if (mhk__setting_flag(s, "norm_before_gate", 0)) mhk__setting_refuse(s, "norm_before_gate", "true", "false");
  mhk__parse_limit(s, "time_step_limit", c);
  for (int l = 0; l < c->n_layer && l < MHK_MAX_LAYERS; l++) c->mixer[l] = MHK_MIXER_MAMBA2;
  mhk__warn_unseen(
      s, MHK__QUIET
      "rescale_prenorm_residual residual_in_fp32 time_step_floor time_step_max time_step_min time_step_rank");
}

/* settings of one block's core_input into c, whose other fields are those of the blocks before */
static void mhk__parse_discrete(const mhk__settings *s, mhk_config *c) {
  const mhk__json *act = mhk__setting(s, "activation");
  c->d_state = mhk__setting_int(s, "d_state", 64);
  c->ssm_heads = mhk__setting_int(s, "n_v_heads", 32);
  c->ssm_groups = mhk__setting_int(s, "n_qk_heads", 32);
  c->d_conv = mhk__setting_int(s, "d_conv", 4);
  c->chunk_size = mhk__setting_int(s, "chunk_size", 128);
  c->conv_bias = mhk__setting_flag(s, "conv_bias", 1);
  c->proj_bias = mhk__setting_flag(s, "bias", 0);
  c->ssm_rotary_dim = mhk__setting_int(s, "rotary_dim", 0);
  if (c->ssm_rotary_dim) c->rope_theta = mhk__setting_double(s, "rope_theta", 10000.0);
  c->conv_silu = mhk__json_equals(act, "silu") || mhk__json_equals(act, "swish");
  if (act && !c->conv_silu && !mhk__json_equals(act, "identity"))
    mhk__setting_refuse(s, "activation", act->text ? act->text : "?", "\"identity\" and \"silu\"");
  const int inner = mhk__parse_inner(s, c, 1, c->ssm_heads, "n_v_heads");
  if (c->ssm_heads > 0) c->ssm_head_dim = inner / c->ssm_heads;
  mhk__warn_unseen(s, "d_model device dtype layer_idx rope_theta");
}

static void mhk__parse_phi_mamba(mhk_context *ctx, const mhk__json *root, const char *where, mhk_config *c) {
  const mhk__json *language = mhk__json_get(mhk__json_get(root, "LanguageModel"), "input"),
                  *mixer = mhk__json_get(mhk__json_get(root, "MixerModel"), "input"), *b;
  mhk__settings lm = mhk__settings_of(ctx, language, where, "LanguageModel.input"),
                mm = mhk__settings_of(ctx, mixer, where, "MixerModel.input");
  const mhk__json *prenorm = mhk__setting(&mm, "lm_head_prenorm");
  mhk_config one, first_attention, first_ssm;
  int have_attention = 0, have_ssm = 0, layers = 0;
  c->arch = MHK_ARCH_PHI_MAMBA;
  mhk__parse_vocabulary(&lm, 1, c);
  c->tie_embeddings = mhk__setting_flag(&lm, "tie_embeddings", 0);
  c->d_model = mhk__setting_int(&mm, "d_model", -1);
  c->n_layer = mhk__setting_int(&mm, "n_layer", -1);
  c->d_mlp = mhk__setting_int(&mm, "d_mlp", c->d_model <= INT_MAX / 4 ? 4 * c->d_model : 0);
  c->norm_eps = mhk__setting_double(&mm, "layer_norm_eps", 1e-5);
  c->max_position = mhk__setting_int(&mm, "max_position_embeddings", 0);
  if (prenorm && !mhk__json_equals(prenorm, "layer"))
    mhk__setting_refuse(&mm, "lm_head_prenorm", prenorm->text ? prenorm->text : "?", "\"layer\"");
  mhk__warn_unseen(&lm, "");
  mhk__warn_unseen(&mm, "");
  if (mhk_failed(ctx)) return;
  memset(&first_attention, 0, sizeof first_attention);
  memset(&first_ssm, 0, sizeof first_ssm);
  for (b = root->first; b; b = b->next) {
    char part[64];
    if (strncmp(b->key, "Block", 5) != 0) continue;
    mhk__settings block = mhk__settings_of(ctx, b, where, b->key);
    const mhk__json *core = mhk__setting(&block, "CoreType");
    const mhk__json *type = mhk__setting(&block, "BlockType");
    mhk__print(part, sizeof part, "%.40s.core_input", b->key);
    mhk__settings input = mhk__settings_of(ctx, mhk__json_get(b, "core_input"), where, part);
    int n = mhk__setting_int(&block, "n_layers", 1);
    const int attention = mhk__json_equals(core, "modules.mixers.phi_attention");
    if (type && !mhk__json_equals(type, "modules.phi_block"))
      mhk__setting_refuse(&block, "BlockType", type->text ? type->text : "?", "\"modules.phi_block\"");
    if (!attention && !mhk__json_equals(core, "modules.mixers.discrete_mamba2"))
      mhk__setting_refuse(&block, "CoreType", core && core->text ? core->text : "missing",
                          "\"modules.mixers.discrete_mamba2\" and \"modules.mixers.phi_attention\"");
    if (n > MHK_MAX_LAYERS - layers) mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "%s: more than %d layers", where, MHK_MAX_LAYERS);
    if (mhk_failed(ctx)) return;
    memset(&one, 0, sizeof one);
    one.d_model = c->d_model;
    if (attention) {
      const int hidden = mhk__setting_int(&input, "hidden_size", c->d_model);
      const double eps = mhk__setting_double(&input, "layer_norm_eps", c->norm_eps);
      mhk__parse_attention(&input, &one);
      if (hidden != c->d_model)
        mhk_fail(ctx, MHK_ERROR_CONFIG, "%s: %s.hidden_size is %d, d_model is %d: they must be the same", where, part, hidden, c->d_model);
      if (one.qk_layernorm && eps != c->norm_eps)
        mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "%s: %s.layer_norm_eps differs from the other norms'", where, part);
      if (!mhk__setting(&mm, "max_position_embeddings")) c->max_position = mhk__setting_int(&input, "max_position_embeddings", 0);
      mhk__warn_unseen(&input, MHK__QUIET "attention_dropout attn_type layer_idx max_position_embeddings");
      if (!have_attention) memcpy(&first_attention, &one, sizeof one); /* with its padding, for the comparison */
      have_attention = 1;
    } else {
      mhk__parse_discrete(&input, &one);
      if (!have_ssm) memcpy(&first_ssm, &one, sizeof one);
      have_ssm = 1;
    }
    mhk__warn_unseen(&block, "block_input core_input");
    if (mhk_failed(ctx)) return;
    if (memcmp(&one, attention ? &first_attention : &first_ssm, sizeof one) != 0) {
      mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "%s: %s differs from an earlier block of its kind; this version has one setting for all of them",
               where, part);
      return;
    }
    while (n-- > 0) c->mixer[layers++] = attention ? MHK_MIXER_ATTENTION : MHK_MIXER_DISCRETE_MAMBA2;
  }
  if (layers != c->n_layer) {
    mhk_fail(ctx, MHK_ERROR_CONFIG, "%s: the blocks have %d layers in all, MixerModel.input.n_layer is %d", where, layers, c->n_layer);
    return;
  }
  if (have_attention) {
    c->n_head = first_attention.n_head;
    c->n_kv_head = first_attention.n_kv_head;
    c->head_dim = first_attention.head_dim;
    c->rotary_dim = first_attention.rotary_dim;
    c->qk_layernorm = first_attention.qk_layernorm;
    c->rope_theta = first_attention.rope_theta;
  }
  if (have_ssm) {
    c->ssm_heads = first_ssm.ssm_heads;
    c->ssm_groups = first_ssm.ssm_groups;
    c->ssm_head_dim = first_ssm.ssm_head_dim;
    c->d_state = first_ssm.d_state;
    c->d_conv = first_ssm.d_conv;
    c->chunk_size = first_ssm.chunk_size;
    c->ssm_rotary_dim = first_ssm.ssm_rotary_dim;
    c->conv_silu = first_ssm.conv_silu;
    c->conv_bias = first_ssm.conv_bias;
    c->proj_bias = first_ssm.proj_bias;
    if (c->ssm_rotary_dim && have_attention && c->rotary_dim && first_ssm.rope_theta != c->rope_theta)
      mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "%s: rope_theta of attention and of state-space blocks differ; this version has one for both",
               where);
    if (c->ssm_rotary_dim) c->rope_theta = first_ssm.rope_theta;
  }
}

MHKDEF mhk_result mhk_config_parse(mhk_context *ctx, const char *json, size_t length, const char *where, mhk_config *config) {
  const mhk__json *type, *architecture;
  mhk_config c;
  char sentence[MHK__SENTENCE];
  if (mhk_failed(ctx)) return mhk_error(ctx);
  if (!json || !config) return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "mhk_config_parse needs a text and a place for the configuration");
  if (!where) where = "config.json";
  memset(&c, 0, sizeof c);
  mhk__mark mark = mhk__scratch_mark(ctx);
  const mhk__json *root = mhk__json_parse(ctx, &ctx->scratch, json, length, where, MHK__JSON_INFINITY);
  const mhk__json *outer = mhk__json_get(root, "config");
  if (mhk__json_is(outer, MHK__JSON_OBJECT) && !mhk__json_get(root, "model_type") && !mhk__json_get(root, "MixerModel")) root = outer;
  if (root) {
    const mhk__settings s = mhk__settings_of(ctx, root, where, "");
    type = mhk__setting(&s, "model_type");
    architecture = mhk__setting(&s, "architectures");
    if (mhk__json_is(architecture, MHK__JSON_ARRAY)) architecture = architecture->first;
    if (mhk__json_get(root, "MixerModel") || mhk__json_get(root, "Block1"))
      mhk__parse_phi_mamba(ctx, root, where, &c);
    else if (mhk__json_get(root, "ssm_cfg") ||
             (!type && !architecture && mhk__json_get(root, "d_model") && mhk__json_get(root, "n_layer")))
      mhk__parse_state_spaces(&s, &c);
    else if (mhk__json_string(type) &&
             ((mhk__json_equals(architecture, "PhiForCausalLM") && !mhk__json_equals(type, "phi")) ||
              (mhk__json_equals(architecture, "Mamba2ForCausalLM") && !mhk__json_equals(type, "mamba2"))))
      mhk_fail(ctx, MHK_ERROR_CONFIG, "%s: architectures says \"%.60s\", model_type \"%.60s\": two different models",
               where, architecture->text, type->text);
    else if (mhk__json_equals(architecture, "PhiForCausalLM") || (!architecture && mhk__json_equals(type, "phi")))
      mhk__parse_phi(&s, &c);
    else if (mhk__json_equals(architecture, "Mamba2ForCausalLM") || (!architecture && mhk__json_equals(type, "mamba2")))
      mhk__parse_mamba2(&s, &c);
    else {
      const char *is = mhk__json_string(architecture) ? architecture->text : mhk__json_string(type) ? type->text : NULL;
      mhk_fail(ctx, MHK_ERROR_UNSUPPORTED,
               "%s describes %s%.60s%s; this version knows PhiForCausalLM, Mamba2ForCausalLM, Mamba-2 of mamba_ssm "
               "(ssm_cfg) and phi-mamba (MixerModel, "
               "Block1, ...)",
               where, is ? "\"" : "no model it names", is ? is : "", is ? "\"" : "");
    }
  }
  mhk__scratch_rewind(ctx, mark);
  if (!mhk_failed(ctx)) {
    const mhk_result code = mhk__config_wrong(sentence, &c);
    if (code != MHK_OK) return mhk_fail(ctx, code, "%s: %s", where, sentence);
    *config = c;
  }
  return mhk_error(ctx);
}

/* ---- config.json out */

static void mhk__write_int_key(mhk__writer *w, const char *key, int64_t value) {
  mhk__write_key(w, key);
  mhk__write_integer(w, value);
}

static void mhk__write_double_key(mhk__writer *w, const char *key, double value) {
  mhk__write_key(w, key);
  mhk__write_double(w, value);
}

static void mhk__write_word_key(mhk__writer *w, const char *key, const char *word) { /* true, false, null */
  mhk__write_key(w, key);
  mhk__write_text(w, word);
}

static void mhk__write_string_key(mhk__writer *w, const char *key, const char *text) {
  mhk__write_key(w, key);
  mhk__write_string(w, text, strlen(text));
}

static void mhk__write_flag_key(mhk__writer *w, const char *key, int on) { mhk__write_word_key(w, key, on ? "true" : "false"); }

/* the share of a head that turns, such that cutting share * size off gives the number of features again */
static double mhk__rotary_factor(int rotary, int size) {
  double factor = (double)rotary / size;
  while ((int)(factor * size) < rotary) factor *= 1 + DBL_EPSILON;
  return factor;
}

static void mhk__write_expand(mhk__writer *w, const mhk_config *c) {
  const int64_t inner = (int64_t)c->ssm_heads * c->ssm_head_dim;
  mhk__write_key(w, "expand");
  if (inner % c->d_model == 0)
    mhk__write_integer(w, inner / c->d_model);
  else
    mhk__write_double(w, (double)inner / c->d_model);
}

static void mhk__write_phi_attention(mhk__writer *w, const mhk_config *c) {
  mhk__write_int_key(w, "hidden_size", c->d_model);
  mhk__write_int_key(w, "num_attention_heads", c->n_head);
  mhk__write_int_key(w, "num_key_value_heads", c->n_kv_head);
  if ((int64_t)c->n_head * c->head_dim != c->d_model) mhk__write_int_key(w, "head_dim", c->head_dim);
  mhk__write_int_key(w, "max_position_embeddings", c->max_position > 0 ? c->max_position : 2048);
  mhk__write_double_key(w, "layer_norm_eps", c->norm_eps);
  mhk__write_flag_key(w, "qk_layernorm", c->qk_layernorm);
  mhk__write_double_key(w, "attention_dropout", 0.0);
  mhk__write_double_key(w, "rope_theta", c->rope_theta);
  mhk__write_double_key(w, "partial_rotary_factor", mhk__rotary_factor(c->rotary_dim, c->head_dim));
  mhk__write_word_key(w, "rope_scaling", "null");
}

static void mhk__write_blocks(mhk__writer *w, const mhk_config *c) {
  int l = 0, block = 0;
  while (l < c->n_layer) {
    const int attention = c->mixer[l] == MHK_MIXER_ATTENTION;
    int end = l;
    char name[32];
    while (end < c->n_layer && c->mixer[end] == c->mixer[l]) end++;
    mhk__print(name, sizeof name, "Block%d", ++block);
    mhk__write_key(w, name);
    mhk__write_open(w, '{');
    mhk__write_int_key(w, "n_layers", end - l);
    mhk__write_string_key(w, "BlockType", "modules.phi_block");
    mhk__write_key(w, "block_input");
    mhk__write_open(w, '{');
    mhk__write_double_key(w, "resid_dropout", 0.0);
    mhk__write_close(w, '}');
    mhk__write_string_key(w, "CoreType", attention ? "modules.mixers.phi_attention" : "modules.mixers.discrete_mamba2");
    mhk__write_key(w, "core_input");
    mhk__write_open(w, '{');
    if (attention) {
      mhk__write_phi_attention(w, c);
      mhk__write_string_key(w, "attn_type", "eager");
    } else {
      mhk__write_int_key(w, "d_state", c->d_state);
      mhk__write_int_key(w, "n_v_heads", c->ssm_heads);
      mhk__write_int_key(w, "n_qk_heads", c->ssm_groups);
      mhk__write_int_key(w, "d_conv", c->d_conv);
      mhk__write_flag_key(w, "conv_bias", c->conv_bias);
      mhk__write_expand(w, c);
      mhk__write_int_key(w, "chunk_size", c->chunk_size);
      mhk__write_string_key(w, "activation", c->conv_silu ? "silu" : "identity");
      mhk__write_flag_key(w, "bias", c->proj_bias);
      if (c->ssm_rotary_dim) {
        mhk__write_int_key(w, "rotary_dim", c->ssm_rotary_dim);
        mhk__write_double_key(w, "rope_theta", c->rope_theta);
      }
    }
    mhk__write_close(w, '}');
    mhk__write_close(w, '}');
    l = end;
  }
}

static void mhk__write_ends(mhk__writer *w, const int32_t *ends, int n) {
  mhk__write_key(w, "eos_token_id");
  if (n != 1) mhk__write_open(w, '[');
  for (int i = 0; i < n; i++) {
    if (n != 1) mhk__write_item(w);
    mhk__write_integer(w, ends[i]);
  }
  if (n != 1) mhk__write_close(w, ']');
}

/* dtype: of the weights beside it, 0 when not known; m: whose ends of text are written too, or NULL
   */
static void mhk__write_config(mhk__writer *w, const mhk_config *c, mhk_dtype dtype, const mhk_model *m) {
  mhk__write_open(w, '{');
  if (c->arch == MHK_ARCH_PHI_MAMBA) {
    mhk__write_key(w, "LanguageModel");
    mhk__write_open(w, '{');
    mhk__write_key(w, "input");
    mhk__write_open(w, '{');
    mhk__write_int_key(w, "vocab_size", c->vocab_size);
    mhk__write_int_key(w, "pad_vocab_size_multiple",
                       c->pad_vocab_multiple > 0 && c->vocab_size % c->pad_vocab_multiple == 0 ? c->pad_vocab_multiple : 1);
    if (c->tie_embeddings) mhk__write_flag_key(w, "tie_embeddings", 1);
    mhk__write_close(w, '}');
    mhk__write_close(w, '}');
    mhk__write_key(w, "MixerModel");
    mhk__write_open(w, '{');
    mhk__write_key(w, "input");
    mhk__write_open(w, '{');
    mhk__write_int_key(w, "d_model", c->d_model);
    mhk__write_int_key(w, "n_layer", c->n_layer);
    mhk__write_string_key(w, "lm_head_prenorm", "layer");
    /* what the authors' code fixes is written where it differs */
    if (c->d_mlp != 4 * (int64_t)c->d_model) mhk__write_int_key(w, "d_mlp", c->d_mlp);
    if (c->norm_eps < 1e-5 || c->norm_eps > 1e-5) mhk__write_double_key(w, "layer_norm_eps", c->norm_eps);
    if (c->max_position > 0 && !mhk__config_uses(c, MHK_MIXER_ATTENTION)) mhk__write_int_key(w, "max_position_embeddings", c->max_position);
    mhk__write_close(w, '}');
    mhk__write_close(w, '}');
    mhk__write_blocks(w, c);
  } else {
    const int phi = c->arch == MHK_ARCH_PHI;
    mhk__write_key(w, "architectures");
    mhk__write_open(w, '[');
    mhk__write_item(w);
    mhk__write_text(w, phi ? "\"PhiForCausalLM\"" : "\"Mamba2ForCausalLM\"");
    mhk__write_close(w, ']');
    mhk__write_string_key(w, "model_type", phi ? "phi" : "mamba2");
    mhk__write_int_key(w, "vocab_size", c->vocab_size);
    mhk__write_int_key(w, "num_hidden_layers", c->n_layer);
    if (phi) {
      mhk__write_phi_attention(w, c);
      mhk__write_key(w, "rope_parameters"); /* the same for the library from version 5 on */
      mhk__write_open(w, '{');
      mhk__write_double_key(w, "partial_rotary_factor", mhk__rotary_factor(c->rotary_dim, c->head_dim));
      mhk__write_double_key(w, "rope_theta", c->rope_theta);
      mhk__write_string_key(w, "rope_type", "default");
      mhk__write_close(w, '}');
      mhk__write_int_key(w, "intermediate_size", c->d_mlp);
      mhk__write_string_key(w, "hidden_act", "gelu_new");
      mhk__write_double_key(w, "embd_pdrop", 0.0);
      mhk__write_double_key(w, "resid_pdrop", 0.0);
    } else {
      mhk__write_int_key(w, "hidden_size", c->d_model);
      mhk__write_int_key(w, "num_heads", c->ssm_heads);
      mhk__write_int_key(w, "head_dim", c->ssm_head_dim);
      mhk__write_int_key(w, "state_size", c->d_state);
      mhk__write_int_key(w, "n_groups", c->ssm_groups);
      mhk__write_expand(w, c);
      mhk__write_int_key(w, "conv_kernel", c->d_conv);
      mhk__write_int_key(w, "chunk_size", c->chunk_size);
      mhk__write_flag_key(w, "use_bias", c->proj_bias);
      mhk__write_flag_key(w, "use_conv_bias", c->conv_bias);
      mhk__write_string_key(w, "hidden_act", "silu");
      mhk__write_double_key(w, "layer_norm_epsilon", c->norm_eps);
      mhk__write_flag_key(w, "rms_norm", 1);
      if (c->dt_min > 0 || c->dt_max > 0) { /* 0 to infinity is what readers assume, and infinity is no JSON */
        mhk__write_key(w, "time_step_limit");
        mhk__write_open(w, '[');
        mhk__write_item(w);
        mhk__write_double(w, c->dt_min);
        mhk__write_item(w);
        mhk__write_double(w, c->dt_max > 0 ? c->dt_max : 1e38); /* what PyTorch can compare float32 and bfloat16 with */
        mhk__write_close(w, ']');
      }
    }
    mhk__write_flag_key(w, "tie_word_embeddings", c->tie_embeddings);
    if (m && mhk_tokenizer_start(m->tokenizer) >= 0)
      mhk__write_int_key(w, "bos_token_id", mhk_tokenizer_start(m->tokenizer));
    if (m && m->n_ends)
      mhk__write_ends(w, m->ends, m->n_ends);
    else if (m && mhk_tokenizer_end(m->tokenizer) >= 0)
      mhk__write_int_key(w, "eos_token_id", mhk_tokenizer_end(m->tokenizer));
    if (dtype) mhk__write_string_key(w, "torch_dtype", dtype == MHK_F16 ? "float16" : dtype == MHK_BF16 ? "bfloat16" : "float32");
  }
  mhk__write_close(w, '}');
  mhk__write_text(w, "\n");
}

MHKDEF size_t mhk_config_format(const mhk_config *config, char *json, size_t capacity) {
  mhk__writer w;
  mhk__write_into(&w, json, capacity);
  if (config && config->d_model > 0 && config->n_layer >= 0 && config->n_layer <= MHK_MAX_LAYERS &&
      (config->head_dim > 0 || !mhk__config_uses(config, MHK_MIXER_ATTENTION)))
    mhk__write_config(&w, config, (mhk_dtype)0, NULL);
  return w.length;
}

/* ---- models: memory, creation */

/* A model without weights: every tensor with its name and shape. */
static mhk_model *mhk__model_new(mhk_context *ctx, const mhk_config *config) {
  mhk_model *m = (mhk_model *)mhk__object_new(ctx, sizeof *m, NULL);
  mhk__spec s;
  if (!m) return NULL;
  m->config = *config;
  memset(&s, 0, sizeof s);
  s.layer = -1;
  while (mhk__spec_next(config, &s)) m->n_tensors++;
  m->layers = (mhk__layer *)mhk__arena_zeros(ctx, &m->object.arena, config->n_layer, sizeof(mhk__layer));
  m->tensors = (mhk_tensor **)mhk__arena_zeros(ctx, &m->object.arena, m->n_tensors, sizeof(mhk_tensor *));
  mhk_tensor *tensors = (mhk_tensor *)mhk__arena_zeros(ctx, &m->object.arena, m->n_tensors, sizeof(mhk_tensor));
  for (int l = 0; l < config->n_layer && m->layers; l++) m->layers[l].kind = (mhk_mixer)config->mixer[l];
  s.layer = -1;
  for (int i = 0; !mhk_failed(ctx) && mhk__spec_next(config, &s); i++) {
    mhk_tensor *x = m->tensors[i] = *mhk__slot(m, s.layer, s.role) = &tensors[i];
    x->name = mhk__arena_text(ctx, &m->object.arena, s.name, strlen(s.name));
    x->rank = s.rank;
    for (int k = 0; k < MHK_MAX_RANK; k++) x->shape[k] = k < 3 ? s.shape[k] : 1;
    x->count = s.shape[0] * s.shape[1] * s.shape[2];
    x->dtype = MHK_REAL;
    x->ctx = ctx;
  }
  if (mhk_failed(ctx)) {
    mhk__object_free(m);
    return NULL;
  }
  if (config->tie_embeddings) m->head_w = m->embedding;
  return m;
}

#ifndef MOHAWK_NO_TRAINING
/* Memory for all tensors as MHK_REAL and for their gradients, the gradients in one block in the order of the tensors.
   data and grads receive what is to be put in place. */
static int mhk__model_memory(mhk_model *m, mhk_real **data, mhk_real **grads) {
  mhk_context *ctx = m->object.ctx;
  mhk_index total = 0;
  for (int i = 0; i < m->n_tensors; i++) {
    const mhk_index count = m->tensors[i]->count;
    if (total > PTRDIFF_MAX - count)
      return mhk_fail(ctx, MHK_ERROR_MEMORY, "the model's %.0f weights do not fit this machine", mhk_config_parameters(&m->config)), 0;
    total += count;
    data[i] = (mhk_real *)mhk__arena_zeros(ctx, &m->object.arena, count, sizeof(mhk_real));
    if (!data[i]) return 0;
  }
  *grads = (mhk_real *)mhk__arena_zeros(ctx, &m->object.arena, total, sizeof(mhk_real));
  return *grads != NULL;
}

static void mhk__model_train(mhk_model *m, mhk_real **data, mhk_real *grads) {
  for (int i = 0; i < m->n_tensors; i++) {
    mhk_tensor *x = m->tensors[i];
    x->data = data[i];
    x->grad = grads;
    x->dtype = MHK_REAL;
    x->quantised = NULL;
    x->requires_grad = 1;
    grads += x->count;
  }
  m->trainable = 1;
}

MHKDEF mhk_result mhk_model_make_trainable(mhk_model *m) {
  mhk_context *ctx;
  mhk_real *grads;
  if (!m) return MHK_ERROR_ARGUMENT;
  ctx = m->object.ctx;
  if (mhk_failed(ctx) || m->trainable) return mhk_error(ctx);
  mhk__mark mark = mhk__scratch_mark(ctx);
  mhk_real **data = (mhk_real **)mhk__scratch(ctx, m->n_tensors, sizeof(mhk_real *));
  if (data && mhk__model_memory(m, data, &grads)) {
    for (int i = 0; i < m->n_tensors; i++) mhk_tensor_read(m->tensors[i], 0, m->tensors[i]->count, data[i]);
    mhk__model_train(m, data, grads);
    mhk_file_close(m->file);
    m->file = NULL;
  }
  mhk__scratch_rewind(ctx, mark);
  return mhk_error(ctx);
}

static void mhk__fill(mhk_tensor *x, double value) {
  if (x)
    for (mhk_index i = 0; i < x->count; i++) ((mhk_real *)x->data)[i] = (mhk_real)value;
}

/* rows [first,first+rows) of a matrix, or a vector's elements, uniform in +-bound */
static void mhk__fill_uniform(mhk__rng *rng, mhk_tensor *x, mhk_index first, mhk_index rows, double bound) {
  if (!x) return;
  const mhk_index row = x->count / x->shape[0];
  mhk_real *p = (mhk_real *)x->data + first * row;
  for (mhk_index i = 0; i < rows * row; i++) p[i] = (mhk_real)((2.0 * mhk__rng_uniform(rng) - 1.0) * bound);
}

/* as PyTorch draws the weight (and bias) of a Linear: uniform in +-1/sqrt(inputs) */
static void mhk__fill_linear(mhk__rng *rng, mhk_tensor *weight, mhk_tensor *bias) {
  if (!weight) return;
  const double bound = 1.0 / sqrt((double)(weight->count / weight->shape[0]));
  mhk__fill_uniform(rng, weight, 0, weight->shape[0], bound);
  if (bias) mhk__fill_uniform(rng, bias, 0, bias->count, bound);
}

/* the state-space mixer of a layer drawn as its published code draws it */
static void mhk__fill_mixer(mhk__rng *rng, mhk__layer *y) {
  mhk__fill_linear(rng, y->in_w, y->in_b);
  mhk__fill_linear(rng, y->conv_w, y->conv_b);
  mhk__fill_linear(rng, y->out_w, y->out_b);
  mhk__fill(y->z_bias, 0);
  mhk__fill(y->D, 1);
  mhk__fill(y->ssm_norm_w, 1);
  if (y->A_log)
    for (mhk_index i = 0; i < y->A_log->count; i++) ((mhk_real *)y->A_log->data)[i] = (mhk_real)log(1.0 + 15.0 * mhk__rng_uniform(rng));
  if (y->dt_bias) /* softplus of it is log-uniform in [0.001,0.1] */
    for (mhk_index i = 0; i < y->dt_bias->count; i++) {
      const double dt = exp(log(0.001) + mhk__rng_uniform(rng) * (log(0.1) - log(0.001)));
      ((mhk_real *)y->dt_bias->data)[i] = (mhk_real)(dt + log(-expm1(-dt)));
    }
}

/* Linear layers and convolutions as PyTorch draws them, norms 1 and 0, the embedding normal with deviation 0.02 as language models
   usually have it, state-space mixers as published. */
MHKDEF mhk_model *mhk_model_create(mhk_context *ctx, const mhk_config *config, uint64_t seed) {
  mhk__rng rng;
  mhk_real *grads;
  if (mhk_config_check(ctx, config) != MHK_OK) return NULL;
  mhk_model *m = mhk__model_new(ctx, config);
  if (!m) return NULL;
  mhk__mark mark = mhk__scratch_mark(ctx);
  mhk_real **data = (mhk_real **)mhk__scratch(ctx, m->n_tensors, sizeof(mhk_real *));
  if (!data || !mhk__model_memory(m, data, &grads)) {
    mhk__scratch_rewind(ctx, mark);
    mhk__object_free(m);
    return NULL;
  }
  mhk__model_train(m, data, grads);
  mhk__scratch_rewind(ctx, mark);
  mhk__rng_seed(&rng, seed);
  for (mhk_index i = 0; i < m->embedding->count; i++) ((mhk_real *)m->embedding->data)[i] = (mhk_real)(0.02 * mhk__rng_normal(&rng));
  for (int l = 0; l < config->n_layer; l++) {
    mhk__layer *y = &m->layers[l];
    mhk__fill(y->norm_w, 1);
    mhk__fill_linear(&rng, y->q_w, y->q_b);
    mhk__fill_linear(&rng, y->k_w, y->k_b);
    mhk__fill_linear(&rng, y->v_w, y->v_b);
    mhk__fill_linear(&rng, y->dense_w, y->dense_b);
    mhk__fill(y->qn_w, 1);
    mhk__fill(y->kn_w, 1);
    mhk__fill_mixer(&rng, y);
    mhk__fill_linear(&rng, y->fc1_w, y->fc1_b);
    mhk__fill_linear(&rng, y->fc2_w, y->fc2_b);
  }
  mhk__fill(m->norm_w, 1);
  if (m->head_w != m->embedding) mhk__fill_linear(&rng, m->head_w, m->head_b);
  return m;
}
#endif

MHKDEF void mhk_model_destroy(mhk_model *m) {
  if (!m) return;
  if (m->owns_tokenizer) mhk_tokenizer_destroy(m->tokenizer);
  mhk_file_close(m->file);
  mhk__object_free(m);
}

MHKDEF const mhk_config *mhk_model_config(const mhk_model *m) { return m ? &m->config : NULL; }
MHKDEF mhk_tokenizer *mhk_model_tokenizer(const mhk_model *m) { return m ? m->tokenizer : NULL; }
MHKDEF int mhk_model_tensors(const mhk_model *m) { return m ? m->n_tensors : 0; }
MHKDEF mhk_tensor *mhk_model_tensor(const mhk_model *m, int i) { return m && i >= 0 && i < m->n_tensors ? m->tensors[i] : NULL; }

MHKDEF mhk_tensor *mhk_model_find(const mhk_model *m, const char *name) {
  if (!m || !name) return NULL;
  for (int i = 0; i < m->n_tensors; i++)
    if (strcmp(m->tensors[i]->name, name) == 0) return m->tensors[i];
  if (m->config.tie_embeddings && strcmp(name, "lm_head.weight") == 0) return m->embedding;
  return NULL;
}

MHKDEF const char *mhk_model_tokenizer_error(const mhk_model *m) {
  return m && !m->tokenizer ? m->tokenizer_error : NULL;
}

MHKDEF int mhk_model_ends(const mhk_model *m, const int32_t **ids) {
  const int32_t end = m && !m->ends_exact ? mhk_tokenizer_end(m->tokenizer) : -1;
  int i, n = m ? m->n_ends : 0;
  for (i = 0; i < n && m->ends[i] != end; i++) {}
  if (ids) *ids = m ? m->ends : NULL;
  if (end < 0 || i < n || !m->ends) return n;
  m->ends[n] = end;
  return n + 1;
}

static int mhk__model_ends_at(const mhk_model *m, int32_t token) {
  const int32_t *ends;
  int n = mhk_model_ends(m, &ends);
  while (n > 0 && ends[n - 1] != token) n--;
  return n > 0;
}

/* n numbers, or with ids NULL room for them */
static int mhk__model_put_ends(mhk_model *m, const int32_t *ids, int n, int exact) {
  int32_t *ends = (int32_t *)mhk__arena_zeros(m->object.ctx, &m->object.arena, (mhk_index)n + 1, sizeof *ends);
  if (!ends) return 0;
  if (ids && n) memcpy(ends, ids, (size_t)n * sizeof *ends);
  m->ends = ends;
  m->n_ends = n;
  m->ends_exact = exact;
  return 1;
}

MHKDEF mhk_result mhk_model_set_ends(mhk_model *m, const int32_t *ids, int n) {
  if (!m) return MHK_ERROR_ARGUMENT;
  if (mhk_failed(m->object.ctx)) return mhk_error(m->object.ctx);
  if (n < 0 || n > 1000 || (n > 0 && !ids))
    return mhk_fail(m->object.ctx, MHK_ERROR_ARGUMENT, "%d ends of text: a model has from 0 to 1000", n);
  for (int i = 0; i < n; i++)
    if (ids[i] < 0)
      return mhk_fail(m->object.ctx, MHK_ERROR_ARGUMENT, "the end of text %d is no token: ids start at 0", (int)ids[i]);
  mhk__model_put_ends(m, ids, n, 1);
  return mhk_error(m->object.ctx);
}

/* The tokenizer becomes the model's, which destroys it if it owns it. */
static void mhk__model_take_tokenizer(mhk_model *m, mhk_tokenizer *k, int owns) {
  if (m->owns_tokenizer && m->tokenizer != k) mhk_tokenizer_destroy(m->tokenizer);
  m->owns_tokenizer = k && (owns || (m->owns_tokenizer && m->tokenizer == k));
  m->tokenizer = k;
  if (k && !m->ends) mhk__model_put_ends(m, NULL, 0, 0);
  if (k && mhk_tokenizer_size(k) > m->config.vocab_size)
    mhk__note(
        m->object.ctx, MHK_LOG_WARNING,
        "the tokenizer has ids up to %d, the model's vocabulary ends at %d: text with the ids between cannot be fed",
        mhk_tokenizer_size(k) - 1, m->config.vocab_size - 1);
}

MHKDEF mhk_result mhk_model_set_tokenizer(mhk_model *m, mhk_tokenizer *k) {
  if (!m) return MHK_ERROR_ARGUMENT;
  if (mhk_failed(m->object.ctx)) return mhk_error(m->object.ctx);
  mhk__model_take_tokenizer(m, k, 0);
  return mhk_error(m->object.ctx);
}

#if !defined(MOHAWK_NO_TRAINING) || !defined(MOHAWK_NO_STDIO)
/* What a copy keeps beside weights: tokenizer and ends of text. 0 on failure. */
static int mhk__model_follow(mhk_model *copy, const mhk_model *m) {
  mhk_context *ctx = copy->object.ctx;
  if (m->ends && !mhk_failed(ctx)) mhk__model_put_ends(copy, m->ends, m->n_ends, m->ends_exact);
  if (m->tokenizer && !mhk_failed(ctx)) copy->tokenizer = mhk__tokenizer_copy(ctx, m->tokenizer);
  copy->owns_tokenizer = copy->tokenizer != NULL;
  return !mhk_failed(ctx);
}
#endif

/* ---- loading */

/* Whether a tensor that the model does not use is one that its architecture has under other
   settings (a layer more, a bias that config.json leaves out): then file and configuration
   contradict each other, and leaving it out would be another model. */
static int mhk__tensor_contradicts(const mhk_config *c, const char *name) {
  const char *root = c->arch == MHK_ARCH_PHI ? "model." : "backbone.";
  char tail[48];
  int role, layered = 0;
  if (strncmp(name, root, strlen(root)) == 0) name += strlen(root);
  if (strncmp(name, "layers.", 7) == 0) {
    const size_t digits = strspn(name + 7, "0123456789");
    if (digits == 0 || name[7 + digits] != '.') return 0;
    name += 8 + digits;
    layered = 1;
  }
  for (role = MHK__EMBEDDING; role < MHK__ROLES; role++) {
    mhk__role_name(c, (mhk__role)role, tail);
    if (layered == (role > MHK__EMBEDDING && role < MHK__FINAL_W) && strcmp(name, tail) == 0) return 1;
  }
  return 0;
}

/* The tensor of s as this file names it: the embedding of a Mamba-2 has one name in Hugging Face's
   library and one in the authors' own. */
static void mhk__spec_in_file(const mhk_file *f, const mhk_config *c, mhk__spec *s) {
  if (s->role == MHK__EMBEDDING && c->arch == MHK_ARCH_MAMBA2 && mhk__file_index(f, s->name) < 0)
    strcpy(s->name, "backbone.embedding.weight");
}

/* The parts of a quantised matrix in a file: NAME, NAME_scale and perhaps NAME_rest. */
typedef struct mhk__q_parts { const mhk_file_tensor *q, *scale, *rest; } mhk__q_parts;

static const mhk_file_tensor *mhk__file_part(const mhk_file *f, const char *name, const char *part) {
  char whole[128];
  mhk__print(whole, sizeof whole, "%s_%s", name, part);
  return mhk_file_find(f, whole);
}

static int mhk__has_shape(const mhk_file_tensor *x, mhk_dtype dtype, int rank, mhk_index a, mhk_index b, mhk_index c, mhk_index d) {
  return x && x->dtype == dtype && x->rank == rank && x->shape[0] == a && x->shape[1] == b && x->shape[2] == c && x->shape[3] == d;
}

/* Whether the file's tensor of s is quantised (see mhk_quantised). If it is but its parts do not fit, wrong says how. */
static int mhk__find_quantised(const mhk_file *f, const mhk__spec *s, mhk__q_parts *p, char *wrong, size_t room) {
  const mhk_index N = s->shape[0], K = s->shape[1];
  mhk_index rest;
  wrong[0] = 0;
  memset(p, 0, sizeof *p);
  p->q = mhk_file_find(f, s->name);
  if (!p->q || (p->q->dtype != MHK_I8 && p->q->dtype != MHK_U8) || p->q->rank != 4 || !mhk__role_is_matrix(s->role)) return 0;
  p->scale = mhk__file_part(f, s->name, "scale");
  p->rest = mhk__file_part(f, s->name, "rest");
  rest = p->rest ? p->rest->shape[0] : 0;
  const mhk_index each = p->q->dtype == MHK_I8 ? 4 : 8;
  const mhk_index groups = p->scale ? p->scale->shape[1] : 0;
  const mhk_index blocks = rest < N ? mhk__q_blocks(N - rest) : 0;
  if (p->rest && (rest >= N || !mhk__has_shape(p->rest, MHK_F32, 2, rest, K, 1, 1)))
    mhk__print(wrong, room, "%s_rest must be F32 with fewer than %lld rows of %lld", s->name, (long long)N, (long long)K);
  else if (groups < 1 || K % groups || (K / groups != 32 && K / groups != 64) || !mhk__has_shape(p->scale, MHK_F16, 3, blocks, groups, MHK__Q_ROWS, 1))
    mhk__print(wrong, room, "%s is quantised and needs %s_scale of type F16 and shape (%lld,%lld / 32 or 64,%d)", s->name, s->name, (long long)blocks,
             (long long)K, MHK__Q_ROWS);
  else if (!mhk__has_shape(p->q, p->q->dtype, 4, blocks, K / each, MHK__Q_ROWS, 4))
    mhk__print(wrong, room, "%s is quantised and must have the shape (%lld,%lld,%d,4)", s->name, (long long)blocks, (long long)(K / each), MHK__Q_ROWS);
  return 1;
}

static void mhk__mark_used(const mhk_file *f, const mhk_file_tensor *x, char *used) {
  if (x) used[mhk__file_index(f, x->name)] = 1;
}

/* what tensor s of the file has against the model; nothing: it fits */
static void mhk__match_one(mhk_model *m, const mhk_file *f, const mhk__spec *s, char *used, mhk__list *wrong) {
  const mhk_file_tensor *x = mhk_file_find(f, s->name);
  mhk__q_parts parts;
  char have[160], want[160], reason[160], line[700];
  int k, ok;
  mhk__mark_used(f, x, used);
  if (mhk__find_quantised(f, s, &parts, line, sizeof line)) {
    mhk__mark_used(f, parts.scale, used);
    mhk__mark_used(f, parts.rest, used);
    if (line[0] && mhk__list_room(wrong)) mhk__write_text(&wrong->text, line);
    return;
  }
  for (k = 0, ok = x->rank == s->rank; k < s->rank && ok; k++) ok = x->shape[k] == s->shape[k];
  if (ok && (x->dtype == MHK_F32 || x->dtype == MHK_F64 || x->dtype == MHK_F16 || x->dtype == MHK_BF16)) return;
  if (!mhk__list_room(wrong)) return;
  const char *shard = mhk__file_path_of(f, x);
  shard += mhk__folder_length(shard);
  mhk__spec_reason(&m->config, s, reason, sizeof reason);
  if (ok)
    mhk__print(line, sizeof line, "%s has the type %s in %.200s, weights must be F32, F16, BF16 or F64", s->name,
               x->dtype ? mhk_dtype_name(x->dtype) : ((const mhk__stored *)(const void *)x)->type, shard);
  else
    mhk__print(line, sizeof line, "%s is %s in %.200s, config.json asks for %s (%s)", s->name,
               mhk__shape_text(x->rank, x->shape, have, sizeof have), shard,
               mhk__shape_text(s->rank, s->shape, want, sizeof want), reason);
  mhk__write_text(&wrong->text, line);
}

static void mhk__list_add(mhk__writer *all, mhk__list *list, const char *what) {
  if (list->n == 0) return;
  mhk__write_text(all, all->length ? "; " : "");
  mhk__write_integer(all, list->n);
  mhk__write_text(all, what);
  mhk__write_text(all, mhk__list_end(list));
}

/* Holds the file's tensors against the model's. The error lists everything that does not fit; what
   is there and not used is a warning. */
static int mhk__match_tensors(mhk_model *m, const mhk_file *f, const char *path, const char *config_path) {
  mhk_context *ctx = m->object.ctx;
  mhk__mark mark = mhk__scratch_mark(ctx);
  char *used = (char *)mhk__arena_zeros(ctx, &ctx->scratch, f->n, 1);
  mhk__list shapes, missing, unused;
  mhk__spec s;
  int i, contrary = 0;
  if (!used) return 0;
  mhk__list_start(&shapes, ctx);
  mhk__list_start(&missing, ctx);
  mhk__list_start(&unused, ctx);
  memset(&s, 0, sizeof s);
  s.layer = -1;
  while (mhk__spec_next(&m->config, &s)) {
    const char *name =
        m->config.arch == MHK_ARCH_MAMBA2 && s.role == MHK__EMBEDDING ? "backbone.embeddings.weight" : s.name;
    mhk__spec_in_file(f, &m->config, &s);
    if (mhk__file_index(f, s.name) >= 0)
      mhk__match_one(m, f, &s, used, &shapes);
    else if (mhk__list_room(&missing))
      mhk__write_text(&missing.text, name);
  }
  if (m->config.tie_embeddings) mhk__mark_used(f, mhk_file_find(f, "lm_head.weight"), used); /* the embedding once more */
  for (i = 0; i < f->n; i++) {
    const char *name = f->sorted[i]->t.name;
    if (used[i]) continue;
    contrary += mhk__tensor_contradicts(&m->config, name);
    if (mhk__list_room(&unused)) mhk__write_bytes(&unused.text, name, strlen(name) < 200 ? strlen(name) : 200);
  }
  if (!mhk_failed(ctx) && shapes.n + missing.n + contrary > 0) {
    mhk__writer all;
    mhk__write_to(&all, ctx, &ctx->scratch);
    mhk__write_text(&all, mhk__list_end(&shapes));
    mhk__list_add(&all, &missing, " missing: ");
    mhk__list_add(&all, &unused, " unexpected: ");
    if (all.data) mhk_fail(ctx, MHK_ERROR_CONFIG, "%.200s does not fit %.200s: %s", path, config_path, all.data);
  } else if (unused.n)
    mhk__note(ctx, MHK_LOG_WARNING, "%.200s holds %d tensor%s that the model does not use: %s", path, unused.n,
              unused.n == 1 ? "" : "s", mhk__list_end(&unused));
  mhk__scratch_rewind(ctx, mark);
  return !mhk_failed(ctx);
}

/* Whether two tensors of a file are the same numbers. */
static int mhk__same_tensor(mhk_context *ctx, const mhk_file_tensor *x, const mhk_file_tensor *y) {
  mhk_real a[1024], b[1024];
  if (x->count != y->count || memcmp(x->shape, y->shape, sizeof x->shape) != 0 || !x->dtype || !y->dtype) return 0;
  if (x->dtype == y->dtype) return x->data == y->data || memcmp(x->data, y->data, x->bytes) == 0;
  for (mhk_index i = 0; i < x->count; i += 1024) {
    const mhk_index n = x->count - i < 1024 ? x->count - i : 1024;
    mhk__unpack(x->dtype, (const char *)x->data + (size_t)i * mhk_dtype_size(x->dtype), n, a);
    mhk__unpack(y->dtype, (const char *)y->data + (size_t)i * mhk_dtype_size(y->dtype), n, b);
    for (mhk_index k = 0; k < n; k++)
      if (!(a[k] == b[k])) return 0;
  }
  return !mhk_failed(ctx);
}

/* A head of its own in the file counts, whatever the configuration says: as Hugging Face's library
   has it from version 5 on. */
static void mhk__untie_head(mhk_context *ctx, mhk_config *c, const mhk_file *f, const char *path,
                            const char *config_path) {
  const mhk_file_tensor *head = mhk_file_find(f, "lm_head.weight"), *embedding;
  mhk__spec s;
  if (!c->tie_embeddings || !head || !mhk__spec_of(c, 0, MHK__EMBEDDING, &s)) return;
  mhk__spec_in_file(f, c, &s);
  embedding = mhk_file_find(f, s.name);
  if (!embedding || mhk__same_tensor(ctx, head, embedding)) return;
  c->tie_embeddings = 0;
  mhk__note(ctx, MHK_LOG_WARNING,
            "%.200s ties lm_head.weight to the embedding, but %.200s holds another one: that one counts", config_path,
            path);
}

/* Puts one stored tensor in place: mapped where the layout of the file serves as it is, else copied. */
static int mhk__place_tensor(mhk_model *m, mhk_tensor *x, const mhk_file_tensor *from, int matrix) {
  mhk_context *ctx = m->object.ctx;
  const size_t size = mhk_dtype_size(from->dtype);
  if (matrix && from->dtype != MHK_F64) {
    x->dtype = from->dtype;
    if (mhk__little_endian() && (uintptr_t)from->data % size == 0) {
      memcpy(&x->data, &from->data, sizeof x->data); /* frozen: nothing writes there */
      return 1;
    }
    x->data = mhk__arena_zeros(ctx, &m->object.arena, x->count, size);
    if (x->data) mhk__turn(from->data, x->count, size, x->data);
  } else {
    x->dtype = MHK_REAL;
    x->data = mhk__arena_zeros(ctx, &m->object.arena, x->count, sizeof(mhk_real));
    if (x->data) mhk__unpack(from->dtype, from->data, x->count, (mhk_real *)x->data);
  }
  return x->data != NULL;
}

/* the same of a quantised matrix: integers are used where they lie, scales and numbers too where the machine's layout is the file's */
static int mhk__place_quantised(mhk_model *m, mhk_tensor *x, const mhk__q_parts *p) {
  mhk_context *ctx = m->object.ctx;
  mhk_quantised *q = (mhk_quantised *)mhk__arena_zeros(ctx, &m->object.arena, 1, sizeof *q);
  if (!q) return 0;
  q->q = p->q->data;
  q->group = (int)(x->shape[1] / p->scale->shape[1]);
  q->rows = x->shape[0] - (p->rest ? p->rest->shape[0] : 0);
  if (mhk__little_endian() && (uintptr_t)p->scale->data % 2 == 0)
    q->scale = (const uint16_t *)p->scale->data;
  else {
    const unsigned char *from = (const unsigned char *)p->scale->data;
    uint16_t *copy = (uint16_t *)mhk__arena_zeros(ctx, &m->object.arena, p->scale->count, sizeof *copy);
    if (!copy) return 0;
    for (mhk_index i = 0; i < p->scale->count; i++) copy[i] = (uint16_t)(from[2 * i] | from[2 * i + 1] << 8);
    q->scale = copy;
  }
  if (p->rest && mhk__little_endian() && MHK_REAL == MHK_F32 && (uintptr_t)p->rest->data % sizeof(mhk_real) == 0)
    q->rest = (const mhk_real *)p->rest->data;
  else if (p->rest) {
    mhk_real *copy = (mhk_real *)mhk__arena_zeros(ctx, &m->object.arena, p->rest->count, sizeof *copy);
    if (!copy) return 0;
    mhk__unpack(MHK_F32, p->rest->data, p->rest->count, copy);
    q->rest = copy;
  }
  x->dtype = p->q->dtype == MHK_I8 ? MHK_Q8 : MHK_Q4;
  x->quantised = q;
  memcpy(&x->data, &q->q, sizeof x->data); /* frozen: nothing writes there */
  return 1;
}

/* The model of a configuration with the weights of f, which it takes over (also when it fails). */
static mhk_model *mhk__model_from_file(mhk_context *ctx, const mhk_config *config, mhk_file *f, const char *path, const char *config_path) {
  mhk_config c = *config;
  mhk__spec s;
  mhk__untie_head(ctx, &c, f, path, config_path);
  mhk_model *m = mhk__model_new(ctx, &c);
  if (!m) {
    mhk_file_close(f);
    return NULL;
  }
  m->file = f;
  if (!mhk__match_tensors(m, f, path, config_path)) {
    mhk_model_destroy(m);
    return NULL;
  }
  memset(&s, 0, sizeof s);
  s.layer = -1;
  for (int i = 0; mhk__spec_next(&c, &s); i++) {
    mhk__q_parts parts;
    char wrong[700];
    mhk__spec_in_file(f, &c, &s);
    if (mhk__find_quantised(f, &s, &parts, wrong, sizeof wrong) ? !mhk__place_quantised(m, m->tensors[i], &parts)
                                                                : !mhk__place_tensor(m, m->tensors[i], parts.q, mhk__role_is_matrix(s.role))) {
      mhk_model_destroy(m);
      return NULL;
    }
  }
  return m;
}

/* A tokenizer that was read, or failed to be: then the model is without one, and knows why. */
static void mhk__model_got_tokenizer(mhk_model *m, mhk_tokenizer *k) {
  mhk_context *ctx = m->object.ctx;
  char why[sizeof ctx->message];
  if (k) mhk__model_take_tokenizer(m, k, 1);
  if (k || mhk_error(ctx) == MHK_ERROR_MEMORY) return;
  mhk__print(why, sizeof why, "%s", ctx->message);
  mhk_clear_error(ctx);
  m->tokenizer_error = mhk__arena_text(ctx, &m->object.arena, why, strlen(why));
  if (!m->tokenizer_error) m->tokenizer_error = "its tokenizer could not be read";
  mhk__note(ctx, MHK_LOG_WARNING, "the model is loaded without its tokenizer: %s", m->tokenizer_error);
}

/* Settings of generation_config.json other than ends of text: how to draw is noted, what else would
   change the text is warned about. Zero, one, false and nothing change nothing. */
static void mhk__generation_notes(const mhk__settings *s) {
  static const char quiet[] = "_from_model_config assistant_confidence_threshold assistant_early_exit "
                              "assistant_ensemble_weight assistant_lookbehind bos_token_id "
                              "cache_config cache_implementation compile_config continuous_batching_config "
                              "decoder_start_token_id disable_compile early_stopping "
                              "is_assistant length_penalty low_memory max_cache_len max_matching_ngram_size "
                              "num_assistant_tokens num_assistant_tokens_schedule "
                              "output_attentions output_hidden_states output_logits output_scores pad_token_id "
                              "prefill_chunk_size prompt_lookup_num_tokens "
                              "remove_invalid_values renormalize_logits return_dict_in_generate speculation_type "
                              "target_lookbehind transformers_version use_cache use_mtp",
                    draws[] = "do_sample max_length max_new_tokens max_time min_p num_return_sequences "
                              "repetition_penalty temperature top_k top_p typical_p";
  mhk__mark mark = mhk__scratch_mark(s->ctx);
  mhk__list drawn, lost;
  mhk__list_start(&drawn, s->ctx);
  mhk__list_start(&lost, s->ctx);
  for (const mhk__json *x = s->object->first; x && !mhk_failed(s->ctx); x = x->next) {
    const double number = mhk__json_is(x, MHK__JSON_NUMBER) ? mhk__json_number(x) : 2;
    mhk__list *list = mhk__has_word(draws, x->key) ? &drawn : &lost;
    if (x->seen || x->type == MHK__JSON_NULL || x->type == MHK__JSON_FALSE || (number >= 0 && number <= 0) ||
        (number >= 1 && number <= 1) || ((x->type == MHK__JSON_ARRAY || x->type == MHK__JSON_OBJECT) && !x->count) ||
        mhk__has_word(quiet, x->key))
      continue;
    if (mhk__list_room(list)) mhk__write_bytes(&list->text, x->key, x->key_length < 60 ? x->key_length : 60);
  }
  if (drawn.n)
    mhk__note(s->ctx, MHK_LOG_INFO, "%s says how to draw; here mhk_sampling does: %s", s->where, mhk__list_end(&drawn));
  if (lost.n) mhk__note(s->ctx, MHK_LOG_WARNING, "%s: without effect here: %s", s->where, mhk__list_end(&lost));
  mhk__scratch_rewind(s->ctx, mark);
}

/* eos_token_id of config.json or, after it, of generation_config.json: a token or a list of them */
static void mhk__model_read_ends(mhk_model *m, const char *json, size_t length, const char *where, int generation) {
  mhk_context *ctx = m->object.ctx;
  mhk__mark mark = mhk__scratch_mark(ctx);
  const mhk__json *root = mhk_failed(ctx)
                              ? NULL
                              : mhk__json_parse(ctx, &ctx->scratch, json, length, where, MHK__JSON_INFINITY),
                  *x, *one;
  const mhk__settings s = mhk__settings_of(ctx, root, where, "");
  int64_t id;
  int n = 0;
  x = mhk__setting(&s, "eos_token_id");
  if (x && mhk__model_put_ends(m, NULL, x->type == MHK__JSON_ARRAY && x->count < 1000 ? (int)x->count : 1,
                               generation && !mhk__json_is(mhk__setting(&s, "_from_model_config"), MHK__JSON_TRUE))) {
    for (one = x->type == MHK__JSON_ARRAY ? x->first : x; one && n < 1000;
         one = x->type == MHK__JSON_ARRAY ? one->next : NULL) {
      if (!mhk__json_integer(one, &id) || id > INT32_MAX) {
        mhk__setting_wrong(&s, x, "eos_token_id", "a token's id or a list of them");
        break;
      }
      if (id >= 0) m->ends[n++] = (int32_t)id; /* -1 says none */
    }
    m->n_ends = n;
  }
  if (root && root->type != MHK__JSON_OBJECT) mhk_fail(ctx, MHK_ERROR_FORMAT, "%s is not an object of settings", where);
  if (generation && !mhk_failed(ctx)) mhk__generation_notes(&s);
  mhk__scratch_rewind(ctx, mark);
}

#ifndef MOHAWK_NO_STDIO
/* what else lies in a model's folder: its tokenizer, if there is one, and generation_config.json */
static void mhk__pick_up_rest(mhk_model *m, const char *folder) {
  static const char names[][20] = {"tokenizer.json", "vocab.json", "encoder.json", "tokenizer.model", "vocab.txt"};
  mhk_context *ctx = m->object.ctx;
  mhk__mark mark = mhk__scratch_mark(ctx);
  char path[MHK__PATH_MOST + 64];
  mhk__bytes bytes;
  if (mhk__join_path(path, sizeof path, folder, "generation_config.json") && mhk__is_file(path) &&
      mhk__bytes_read_or_fail(ctx, &ctx->scratch, path, &bytes))
    mhk__model_read_ends(m, (const char *)bytes.data, bytes.size, path, 1);
  mhk__scratch_rewind(ctx, mark);
  for (int i = 0; i < 5 && !mhk_failed(ctx); i++)
    if (mhk__join_path(path, sizeof path, folder, names[i]) && mhk__is_file(path)) {
      mhk_tokenizer *k = i < 3 ? mhk_tokenizer_load(ctx, folder[0] ? folder : ".") : NULL;
      if (i >= 3)
        mhk_fail(ctx, MHK_ERROR_UNSUPPORTED,
                 "%s is of a kind that is not known here; byte-level BPE in tokenizer.json is", path);
      mhk__model_got_tokenizer(m, k);
      return;
    }
}
#endif

/* The model of a file that has its configuration, and perhaps its tokenizer, among its metadata; takes the file over. NULL without an error: it has none. */
static mhk_model *mhk__model_in_one(mhk_context *ctx, mhk_file *f, const char *path) {
  char where[MHK__PATH_MOST + 64];
  mhk_config config;
  size_t length = 0, settings_length = 0;
  const char *text = mhk_file_metadata(f, "config.json", &length);
  if (!text) return NULL;
  mhk__print(where, sizeof where, "config.json in %s", path);
  if (mhk_config_parse(ctx, text, length, where, &config) != MHK_OK) {
    mhk_file_close(f);
    return NULL;
  }
  mhk_model *m = mhk__model_from_file(ctx, &config, f, path, where);
  if (m) mhk__model_read_ends(m, text, length, where, 0);
  text = m ? mhk_file_metadata(f, "generation_config.json", &length) : NULL;
  if (text) mhk__model_read_ends(m, text, length, "generation_config.json in the file", 1);
  text = m ? mhk_file_metadata(f, "tokenizer.json", &length) : NULL;
  if (text && !mhk_failed(ctx)) {
    const char *settings = mhk_file_metadata(f, "tokenizer_config.json", &settings_length);
    mhk__model_got_tokenizer(m, mhk__tokenizer_from_json(ctx, text, length, "tokenizer.json in the file", settings,
                                                         settings_length, "tokenizer_config.json in the file"));
  }
  if (m && mhk_failed(ctx)) {
    mhk_model_destroy(m);
    return NULL;
  }
  return m;
}

MHKDEF mhk_model *mhk_load_memory(mhk_context *ctx, const void *data, size_t bytes) {
  static const char name[] = "the file in memory";
  mhk_file *f = mhk_file_open_memory(ctx, data, bytes);
  if (!f) return NULL;
  mhk_model *m = mhk__model_in_one(ctx, f, name);
  if (!m && !mhk_failed(ctx)) {
    mhk_file_close(f);
    mhk_fail(ctx, MHK_ERROR_FORMAT, "%s has no config.json in its metadata: it is no model that mhk_save() wrote as one file", name);
  }
  return m;
}

#ifndef MOHAWK_NO_STDIO
static mhk_model *mhk__load(mhk_context *ctx, const char *path, int read) {
  char folder[MHK__PATH_MOST + 64], config_path[MHK__PATH_MOST + 64];
  mhk_config config;
  mhk__bytes bytes;
  mhk_file *f = mhk__file_open(ctx, path, read);
  mhk_model *m;
  if (!f) return NULL;
  if (mhk__is_folder(path))
    strcpy(folder, path);
  else {
    m = mhk__model_in_one(ctx, f, path);
    if (m || mhk_failed(ctx)) return m;
    mhk__folder_of(folder, sizeof folder, path);
  }
  mhk__join_path(config_path, sizeof config_path, folder, "config.json");
  mhk__mark mark = mhk__scratch_mark(ctx);
  if (mhk__bytes_read_or_fail(ctx, &ctx->scratch, config_path, &bytes))
    mhk_config_parse(ctx, (const char *)bytes.data, bytes.size, config_path, &config);
  if (mhk_failed(ctx)) mhk_file_close(f);
  m = mhk_failed(ctx) ? NULL : mhk__model_from_file(ctx, &config, f, path, config_path);
  if (m) mhk__model_read_ends(m, (const char *)bytes.data, bytes.size, config_path, 0);
  mhk__scratch_rewind(ctx, mark);
  if (m && !mhk_failed(ctx)) mhk__pick_up_rest(m, folder);
  if (m && mhk_failed(ctx)) {
    mhk_model_destroy(m);
    return NULL;
  }
  return m;
}

MHKDEF mhk_model *mhk_load_with(mhk_context *ctx, const char *path, const mhk_load_desc *desc) {
  if (!mhk__path_fits(ctx, path)) return NULL;
  ctx->strict = desc && desc->strict;
  mhk_model *m = mhk__load(ctx, path, desc && desc->read);
  ctx->strict = 0;
  return m;
}

MHKDEF mhk_model *mhk_load(mhk_context *ctx, const char *path) { return mhk_load_with(ctx, path, NULL); }
#endif

/* A model's mark: its configuration, and of each tensor name, shape and up to 256 values, the same on every machine. No more than samples: a large
   file is not read through for it. */
static uint64_t mhk__model_hash(const mhk_model *m) {
  const mhk_config *c = &m->config;
  const int numbers[] = {(int)c->arch,    c->n_layer,   c->d_model,   c->vocab_size,     c->d_mlp,    c->tie_embeddings, c->n_head,         c->n_kv_head,
                         c->head_dim,     c->rotary_dim, c->qk_layernorm, c->ssm_heads,  c->ssm_groups, c->ssm_head_dim, c->d_state,        c->d_conv,
                         c->ssm_rotary_dim, c->conv_silu, c->conv_bias, c->proj_bias};
  const double reals[] = {c->norm_eps, c->rope_theta, c->dt_min, c->dt_max};
  unsigned char bytes[8];
  uint64_t h = MHK__HASH_START, bits;
  for (size_t n = 0; n < sizeof numbers / sizeof *numbers; n++) {
    mhk__put_bytes(bytes, (uint64_t)(int64_t)numbers[n], 8);
    h = mhk__hash(h, bytes, 8);
  }
  for (size_t n = 0; n < sizeof reals / sizeof *reals; n++) {
    memcpy(&bits, &reals[n], sizeof bits);
    mhk__put_bytes(bytes, bits, 8);
    h = mhk__hash(h, bytes, 8);
  }
  h = mhk__hash(h, c->mixer, (size_t)c->n_layer);
  for (int i = 0; i < m->n_tensors; i++) {
    const mhk_tensor *x = m->tensors[i];
    const size_t size = mhk_dtype_size(x->dtype);
    const mhk_index stride = x->count > 256 ? x->count / 256 : 1;
    if (x->name) h = mhk__hash(h, x->name, strlen(x->name));
    for (mhk_index j = 0; j < x->rank; j++) {
      mhk__put_bytes(bytes, (uint64_t)x->shape[j], 8);
      h = mhk__hash(h, bytes, 8);
    }
    for (mhk_index j = 0; j < x->count; j += stride) {
      const unsigned char *at = (const unsigned char *)x->data + (size_t)j * size;
      if (x->quantised) {
        mhk__put_bytes(bytes, mhk__float_bits((float)mhk__tensor_element(x, j)), 4);
        h = mhk__hash(h, bytes, 4);
        continue;
      }
      for (size_t k = 0; k < size; k++) bytes[k] = at[mhk__little_endian() ? k : size - 1 - k];
      h = mhk__hash(h, bytes, size);
    }
  }
  return h;
}

#if !defined(MOHAWK_NO_STDIO) || !defined(MOHAWK_NO_TRAINING)
/* ---- quantising */

static float mhk__half_of(float v, uint16_t *half) {
  *half = mhk__pack_f16(v);
  return mhk__f16_to_f32(*half);
}

static int mhk__round_within(float v, int low, int high) {
  const float limited = v < (float)low ? (float)low : v > (float)high ? (float)high : v;
  return (int)(limited < 0 ? limited - 0.5f : limited + 0.5f);
}

/* The scale of a group of n weights, and their integers; infinite when a weight is not finite. For MHK_Q4 the extreme weight is tried at many places
   between 5.5 and 8.5 on either side; for the integers each gives, the scale of least squared error is known, and the error with it:
   sum x^2 - (sum x q)^2 / sum q^2. */
static uint16_t mhk__q_group(mhk_dtype dtype, int n, const mhk_real *x, signed char *out) {
  const int low = dtype == MHK_Q8 ? -127 : -8, high = dtype == MHK_Q8 ? 127 : 7;
  float extreme = 0, scale;
  uint16_t half;
  for (int i = 0; i < n; i++) {
    if (fabsf((float)x[i]) > fabsf(extreme)) extreme = (float)x[i];
    out[i] = 0;
    if (!(x[i] - x[i] == 0)) return 0x7C00u;
  }
  scale = fabsf(extreme) / 127.0f;
  if (dtype == MHK_Q4 && fabsf(extreme) > 0) {
    float best = -1, at;
    scale = -extreme / 8.0f;
    for (int side = -1; side <= 1; side += 2)
      for (at = 5.5f; at <= 8.5f; at += 0.25f) {
        const float up = (float)side * at / extreme;
        float xq = 0, qq = 0;
        for (int i = 0; i < n; i++) {
          const float q = (float)mhk__round_within((float)x[i] * up, low, high);
          xq += (float)x[i] * q;
          qq += q * q;
        }
        if (qq > 0 && xq * xq / qq > best) {
          best = xq * xq / qq;
          scale = xq / qq;
        }
      }
  }
  scale = mhk__half_of(scale, &half);
  for (int i = 0; i < n && scale != 0; i++) out[i] = (signed char)mhk__round_within((float)x[i] / scale, low, high);
  return half;
}

typedef struct mhk__q_making { const mhk_tensor *from; mhk_dtype dtype; mhk_index rows; int group; unsigned char *q; uint16_t *scale; } mhk__q_making;

/* one block of 16 rows; work holds a row and the integers of a group */
static void mhk__q_make_block(void *arg, mhk_index block, int worker) {
  const mhk__job *job = (const mhk__job *)arg;
  const mhk__q_making *a = (const mhk__q_making *)job->args;
  const mhk_index K = a->from->shape[1], groups = K / a->group;
  mhk_real *row = job->work + worker * job->each;
  for (mhk_index r = 0; r < MHK__Q_ROWS; r++) {
    const mhk_index n = block * MHK__Q_ROWS + r;
    for (mhk_index k = 0; k < K; k++) row[k] = n < a->rows ? mhk__tensor_element(a->from, n * K + k) : 0;
    for (mhk_index g = 0; g < groups; g++) {
      signed char q[64];
      a->scale[(block * groups + g) * MHK__Q_ROWS + r] = mhk__q_group(a->dtype, a->group, row + g * a->group, q);
      for (mhk_index k = 0; k < a->group; k++) {
        const mhk_index at = g * a->group + k;
        if (a->dtype == MHK_Q8)
          a->q[((block * (K / 4) + at / 4) * MHK__Q_ROWS + r) * 4 + at % 4] = (unsigned char)q[k];
        else if (at & 4)
          a->q[((block * (K / 8) + at / 8) * MHK__Q_ROWS + r) * 4 + at % 4] |= (unsigned char)((q[k] + 8) << 4);
        else
          a->q[((block * (K / 8) + at / 8) * MHK__Q_ROWS + r) * 4 + at % 4] = (unsigned char)(q[k] + 8);
      }
    }
  }
}

/* x becomes from with its first rows quantised */
static int mhk__q_make(mhk_model *m, mhk_tensor *x, const mhk_tensor *from, mhk_dtype dtype, int group, mhk_index rows) {
  mhk_context *ctx = m->object.ctx;
  const mhk_index N = x->shape[0], K = x->shape[1], blocks = mhk__q_blocks(rows), scales = blocks * (K / group) * MHK__Q_ROWS;
  mhk_quantised *q = (mhk_quantised *)mhk__arena_zeros(ctx, &m->object.arena, 1, sizeof *q);
  mhk_real *rest = rows < N ? (mhk_real *)mhk__arena_zeros(ctx, &m->object.arena, (N - rows) * K, sizeof *rest) : NULL;
  mhk__q_making a;
  a.from = from;
  a.dtype = dtype;
  a.rows = rows;
  a.group = group;
  a.q = (unsigned char *)mhk__arena_zeros(ctx, &m->object.arena, blocks * mhk__q_block_bytes(dtype, K), 1);
  a.scale = (uint16_t *)mhk__arena_zeros(ctx, &m->object.arena, scales, sizeof *a.scale);
  if (!q || !a.q || !a.scale || (rows < N && !rest)) return 0;
  mhk__run(ctx, &a, blocks, 0, K, (double)rows * (double)K * 16, mhk__q_make_block);
  for (mhk_index i = 0; i < scales; i++)
    if ((a.scale[i] & 0x7C00u) == 0x7C00u)
      return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "%s cannot be quantised: a weight of row %lld is not finite, or too large for a half-precision scale",
                      x->name, (long long)(i / MHK__Q_ROWS / (K / group) * MHK__Q_ROWS + i % MHK__Q_ROWS)),
             0;
  if (rest) mhk_tensor_read(from, rows * K, (N - rows) * K, rest);
  q->q = a.q;
  q->scale = a.scale;
  q->rest = rest;
  q->rows = rows;
  q->group = group;
  x->dtype = dtype;
  x->data = a.q;
  x->quantised = q;
  return !mhk_failed(ctx);
}

static int mhk__any_quantised(const mhk_model *m) {
  for (int i = 0; i < m->n_tensors; i++)
    if (m->tensors[i]->quantised) return 1;
  return 0;
}

MHKDEF mhk_model *mhk_quantise(mhk_model *m, const mhk_quantise_desc *desc) {
  mhk_context *ctx;
  mhk_quantise_desc d;
  mhk__spec s;
  int i, ok = 1;
  if (!m) return NULL;
  ctx = m->object.ctx;
  if (mhk_failed(ctx)) return NULL;
  memset(&d, 0, sizeof d);
  if (desc) d = *desc;
  if ((int)d.type == 0) d.type = MHK_Q8;
  if ((int)d.ends == 0) d.ends = d.type;
  if (!mhk__is_quantised(d.type) || !mhk__is_quantised(d.ends) || (d.group != 0 && d.group != 32 && d.group != 64)) {
    mhk_fail(ctx, MHK_ERROR_ARGUMENT, "weights are quantised as Q8 or Q4 in groups of 32 or 64, not as %s and %s in groups of %d", mhk_dtype_name(d.type),
             mhk_dtype_name(d.ends), d.group);
    return NULL;
  }
  mhk_model *out = mhk__model_new(ctx, &m->config);
  if (!out) return NULL;
  memset(&s, 0, sizeof s);
  s.layer = -1;
  for (i = 0; ok && mhk__spec_next(&m->config, &s); i++) {
    const mhk_tensor *from = m->tensors[i];
    mhk_tensor *x = out->tensors[i];
    const mhk_dtype type = s.role == MHK__EMBEDDING || s.role == MHK__HEAD_W ? d.ends : d.type;
    const mhk_index rows = s.shape[0] - (s.role == MHK__IN_W ? m->config.ssm_heads : 0);
    int group = d.group ? d.group : type == MHK_Q8 ? 64 : 32;
    if (mhk__role_is_matrix(s.role) && s.shape[1] % group) group = 32;
    if (mhk__role_is_matrix(s.role) && s.shape[1] % group == 0 && s.shape[1] > 0 && rows > 0)
      ok = mhk__q_make(out, x, from, type, group, rows);
    else {
      x->dtype = MHK_REAL;
      x->data = mhk__arena_zeros(ctx, &out->object.arena, x->count, sizeof(mhk_real));
      ok = x->data && mhk_tensor_read(from, 0, x->count, (mhk_real *)x->data) == MHK_OK;
    }
  }
  if (!ok || !mhk__model_follow(out, m)) {
    mhk_model_destroy(out);
    return NULL;
  }
  if (!mhk__any_quantised(out))
    mhk__note(ctx, MHK_LOG_WARNING, "nothing of the model is quantised: 32 does not divide the rows of any of its matrices");
  return out;
}
#endif

#ifndef MOHAWK_NO_STDIO
/* ---- saving */

/* a quantised matrix as it is; returns how many of the three entries are used */
static int mhk__outgoing_quantised(mhk_context *ctx, mhk__outgoing *o, const mhk_tensor *x) {
  const mhk_quantised *q = x->quantised;
  const mhk_index K = x->shape[1], blocks = mhk__q_blocks(q->rows);
  const size_t room = strlen(x->name) + 8;
  mhk_index *shape = (mhk_index *)mhk__scratch(ctx, 9, sizeof *shape);
  char *names = (char *)mhk__scratch(ctx, (mhk_index)(2 * room), 1);
  if (!shape || !names) return 0;
  shape[0] = shape[4] = blocks;
  shape[1] = x->dtype == MHK_Q8 ? K / 4 : K / 8;
  shape[2] = shape[6] = MHK__Q_ROWS;
  shape[3] = 4;
  shape[5] = K / q->group;
  shape[7] = x->shape[0] - q->rows;
  shape[8] = K;
  mhk__print(names, room, "%s_scale", x->name);
  mhk__print(names + room, room, "%s_rest", x->name);
  mhk__outgoing_set(o, x->name, x->dtype == MHK_Q8 ? MHK_I8 : MHK_U8, x->dtype == MHK_Q8 ? MHK_I8 : MHK_U8, 4, shape, q->q);
  mhk__outgoing_set(o + 1, names, MHK_F16, MHK_F16, 3, shape + 4, q->scale);
  if (!q->rest) return 2;
  mhk__outgoing_set(o + 2, names + room, MHK_F32, MHK_REAL, 2, shape + 7, q->rest);
  return 3;
}

/* config.json, tokenizer.json, tokenizer_config.json, generation_config.json: files of a folder,
   metadata of a single file */
#define MHK__SAVED_TEXTS 4

/* A file of a model's folder beside the weights. text NULL: the model has none, and an old one is not to be taken for its own. */
typedef struct mhk__beside {
  const char *text;
  size_t length;
  int changes;
  mhk__output out;
} mhk__beside;

/* Whether the folder's file differs from what is to be there; then it is written, still under its temporary name. */
static void mhk__beside_write(mhk_context *ctx, mhk__beside *b, char *path) {
  mhk__bytes old;
  mhk__output_clear(&b->out, path);
  if (!b->text)
    b->changes = mhk__is_file(path);
  else if (!b->changes && mhk__bytes_open(path, &old) == 0) {
    b->changes = old.size != b->length || memcmp(old.data, b->text, b->length) != 0;
    mhk__bytes_close(&old);
  } else
    b->changes = 1;
  if (!b->text || !b->changes || mhk_failed(ctx)) return;
  mhk__output_open(&b->out, path);
  mhk__output_write(&b->out, b->text, b->length);
  mhk__output_flush(&b->out);
  mhk__output_ok(ctx, &b->out);
}

/* The weights, written under their temporary name, and the texts become the model of a folder. Where more changes than the weights, the folder is without
   config.json in between, which no reader accepts: so it goes first and comes last. */
static void mhk__folder_replace(mhk_context *ctx, const char *folder, mhk__output *weights, const char *const *texts, const size_t *lengths) {
  /* what is read where there is no tokenizer.json */
  static const char others[][20] = {"vocab.json", "merges.txt", "added_tokens.json", "encoder.json", "vocab.bpe"};
  const int n = texts[3] ? MHK__SAVED_TEXTS : MHK__SAVED_TEXTS + (int)(sizeof others / sizeof *others);
  const mhk__mark mark = mhk__scratch_mark(ctx);
  mhk__beside *b = (mhk__beside *)mhk__scratch(ctx, n, sizeof *b);
  char (*path)[MHK__PATH_MOST + 64] = (char (*)[MHK__PATH_MOST + 64])mhk__scratch(ctx, n, sizeof *path);
  int i, changes = 0;
  if (!b || !path) return;
  for (i = n - 1; i >= 0; i--) {
    memset(&b[i], 0, offsetof(mhk__beside, out));
    b[i].text = i < MHK__SAVED_TEXTS ? texts[2 * i + 1] : NULL;
    b[i].length = i < MHK__SAVED_TEXTS ? lengths[i] : 0;
    b[i].changes = i == 0 && changes;
    mhk__join_path(path[i], sizeof path[i], folder, i < MHK__SAVED_TEXTS ? texts[2 * i] : others[i - MHK__SAVED_TEXTS]);
    mhk__beside_write(ctx, &b[i], path[i]);
    changes |= b[i].changes;
  }
  if (!mhk_failed(ctx)) {
    if (changes) mhk__remove(path[0]);
    mhk__output_close(weights, 1);
    mhk__output_ok(ctx, weights);
  }
  for (i = n - 1; i >= 0; i--) {
    if (b[i].text) {
      mhk__output_close(&b[i].out, !mhk_failed(ctx));
      mhk__output_ok(ctx, &b[i].out);
    } else if (b[i].changes && !mhk_failed(ctx)) {
      mhk__remove(path[i]);
      mhk__note(ctx, MHK_LOG_WARNING, "%s belonged to another model and is removed", path[i]);
    }
  }
  mhk__flush_folder(path[0]);
  mhk__scratch_rewind(ctx, mark);
}

/* metadata and lengths: as of a single file, with NULL where the model has no such text */
static void mhk__save_folder(mhk_context *ctx, const char *folder, int n, const mhk__outgoing *list, const char *const *metadata, const size_t *lengths) {
  char path[MHK__PATH_MOST + 64];
  mhk__output weights;
  mhk__lock lock;
  int error = mhk__make_folder(folder);
  if (error) {
    mhk_fail(ctx, MHK_ERROR_FILE, "cannot make the folder %s: %s", folder, strerror(error));
    return;
  }
  mhk__join_path(path, sizeof path, folder, "model.safetensors");
  mhk__file_put(ctx, &weights, path, n, list, 1, metadata, lengths);
  mhk__output_flush(&weights);
  if (mhk__output_ok(ctx, &weights)) {
    char name[MHK__PATH_MOST + 64];
    mhk__join_path(name, sizeof name, folder, "model.lock"); /* others who save there do so before or after */
    error = mhk__lock_take(&lock, name, 1);
    if (error)
      mhk_fail(ctx, MHK_ERROR_FILE, "the folder %s cannot be locked with %s: %s", folder, name, mhk__file_reason(error));
    else
      mhk__folder_replace(ctx, folder, &weights, metadata + 2, lengths + 1);
    if (!error) mhk__lock_give(&lock);
  }
  mhk__output_close(&weights, 0); /* unless it has been */
}

/* generation_config.json: where a text ends, exactly or as the rest has it; nothing when that is
   not known */
static void mhk__write_generation(mhk__writer *w, const mhk_model *m) {
  const int32_t *ends;
  const int n = mhk_model_ends(m, &ends);
  if (n == 0 && !m->ends_exact) return;
  mhk__write_open(w, '{');
  if (!m->ends_exact) mhk__write_word_key(w, "_from_model_config", "true");
  mhk__write_ends(w, ends, m->n_ends || m->ends_exact ? m->n_ends : n);
  mhk__write_close(w, '}');
  mhk__write_text(w, "\n");
}

MHKDEF mhk_result mhk_save(mhk_model *m, const char *path, mhk_dtype dtype) {
  mhk_context *ctx;
  mhk__outgoing *list;
  mhk__writer config, generation;
  const char *metadata[2 * MHK__SAVED_TEXTS + 2] = {"format",
                                                    "pt",
                                                    "config.json",
                                                    NULL,
                                                    "tokenizer.json",
                                                    NULL,
                                                    "tokenizer_config.json",
                                                    NULL,
                                                    "generation_config.json",
                                                    NULL};
  size_t lengths[MHK__SAVED_TEXTS + 1] = {2, 0, 0, 0, 0};
  mhk_model *made = NULL;
  int i, n = 0, single;
  if (!m) return MHK_ERROR_ARGUMENT;
  ctx = m->object.ctx;
  if (!mhk__path_fits(ctx, path)) return mhk_error(ctx);
  if ((int)dtype == 0) dtype = MHK_F32;
  if (dtype != MHK_F32 && dtype != MHK_F16 && dtype != MHK_BF16 && !mhk__is_quantised(dtype))
    return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "a model can be saved as F32, F16, BF16, Q8 or Q4, not as %s",
                    mhk_dtype_size(dtype) ? mhk_dtype_name(dtype) : "an unknown type");
  if (mhk__is_quantised(dtype) && !mhk__any_quantised(m)) {
    mhk_quantise_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.type = dtype;
    m = made = mhk_quantise(m, &desc);
    if (!made) return mhk_error(ctx);
  }
  single = mhk__ends_with(path, ".safetensors");
  mhk__mark mark = mhk__scratch_mark(ctx);
  if (m->tokenizer) metadata[5] = mhk_tokenizer_json(m->tokenizer, &lengths[2]);
  mhk__write_to(&config, ctx, &ctx->scratch);
  mhk__write_config(&config, &m->config, dtype, m);
  list = (mhk__outgoing *)mhk__scratch(ctx, 3 * (mhk_index)m->n_tensors, sizeof *list);
  for (i = 0; i < m->n_tensors && list; i++) {
    const mhk_tensor *x = m->tensors[i];
    if (x->quantised && mhk__is_quantised(dtype))
      n += mhk__outgoing_quantised(ctx, list + n, x);
    else
      mhk__outgoing_set(list + n++, x->name, mhk__is_quantised(dtype) ? MHK_F32 : dtype, x->dtype, x->rank, x->shape,
                        x->quantised ? (const void *)x : x->data);
  }
  metadata[3] = config.data;
  lengths[1] = config.length;
  if (metadata[5] && m->tokenizer->config) {
    metadata[7] = m->tokenizer->config;
    lengths[3] = m->tokenizer->config_length;
  }
  mhk__write_to(&generation, ctx, &ctx->scratch);
  mhk__write_generation(&generation, m);
  if (generation.length) {
    metadata[9] = generation.data;
    lengths[4] = generation.length;
  }
  if (!mhk_failed(ctx) && single) {
    int k = 1;
    for (i = 1; i <= MHK__SAVED_TEXTS; i++)
      if (metadata[2 * i + 1]) {
        metadata[2 * k] = metadata[2 * i];
        metadata[2 * k + 1] = metadata[2 * i + 1];
        lengths[k++] = lengths[i];
      }
    mhk__file_write(ctx, path, n, list, k, metadata, lengths);
  } else if (!mhk_failed(ctx))
    mhk__save_folder(ctx, path, n, list, metadata, lengths);
  mhk__scratch_rewind(ctx, mark);
  mhk_model_destroy(made);
  return mhk_error(ctx);
}
#endif

#ifndef MOHAWK_NO_TRAINING
/* ---- students: weight transfer, initialisation */

static int mhk__can_train(mhk_model *m, const char *what) {
  if (m->trainable) return 1;
  mhk_fail(m->object.ctx, MHK_ERROR_STATE, "%s changes the student's weights, which are frozen: call mhk_model_make_trainable() first",
           what);
  return 0;
}

/* 1 when both are absent, or copied; an error when the shapes differ */
static int mhk__transfer(mhk_tensor *to, const mhk_tensor *from) {
  char a[160], b[160];
  if (!to || !from || to == from) return 1;
  if (to->rank != from->rank || memcmp(to->shape, from->shape, sizeof to->shape) != 0) {
    mhk_fail(to->ctx, MHK_ERROR_SHAPE, "weights cannot be transferred: %s of the student is %s, %s of the teacher %s", to->name,
             mhk__shape_text(to->rank, to->shape, a, sizeof a), from->name, mhk__shape_text(from->rank, from->shape, b, sizeof b));
    return 0;
  }
  return mhk_tensor_read(from, 0, from->count, (mhk_real *)to->data) == MHK_OK;
}

static int mhk__same_depth(mhk_model *student, mhk_model *teacher) {
  if (student->config.n_layer == teacher->config.n_layer) return 1;
  mhk_fail(student->object.ctx, MHK_ERROR_CONFIG, "the student has %d layers, the teacher %d: they must be as many",
           student->config.n_layer, teacher->config.n_layer);
  return 0;
}

MHKDEF mhk_result mhk_model_transfer(mhk_model *student, mhk_model *teacher) {
  if (!student || !teacher)
    return student ? mhk_fail(student->object.ctx, MHK_ERROR_ARGUMENT, "mhk_model_transfer needs a teacher") : MHK_ERROR_ARGUMENT;
  if (mhk_failed(student->object.ctx)) return mhk_error(student->object.ctx);
  if (!mhk__can_train(student, "mhk_model_transfer") || !mhk__same_depth(student, teacher)) return mhk_error(student->object.ctx);
  mhk__transfer(student->embedding, teacher->embedding);
  mhk__transfer(student->norm_w, teacher->norm_w);
  mhk__transfer(student->norm_b, teacher->norm_b);
  if (student->head_w != student->embedding) mhk__transfer(student->head_w, teacher->head_w);
  mhk__transfer(student->head_b, teacher->head_b);
  for (int l = 0; l < student->config.n_layer && !mhk_failed(student->object.ctx); l++) {
    for (int role = MHK__NORM_W; role <= (int)MHK__FC2_B; role++)
      if (role < (int)MHK__IN_W || role > (int)MHK__OUT_B)
        if (!mhk__transfer(*mhk__slot(student, l, (mhk__role)role), *mhk__slot(teacher, l, (mhk__role)role))) break;
  }
  return mhk_error(student->object.ctx);
}

/* Heads of a teacher's projection into rows of to, from first on: heads blocks of size rows each. A teacher with fewer heads gives each
   to several. 0, and nothing done, when the sizes do not match. */
static int mhk__copy_heads(mhk_tensor *to, mhk_index first, int heads, int size, const mhk_tensor *from, int from_heads, int from_size) {
  const mhk_index D = to->shape[1];
  if (!from || size != from_size || from_heads < 1 || heads % from_heads || from->shape[1] != D) return 0;
  for (int h = 0; h < heads; h++) {
    const mhk_index source = (mhk_index)(h / (heads / from_heads)) * size * D;
    mhk_tensor_read(from, source, size * D, (mhk_real *)to->data + (first + (mhk_index)h * size) * D);
  }
  return 1;
}

#define MHK__OPEN_GATE 1.278464542761 /* silu of it is 1 */

/* method: section 4 of Bick et al. 2024 (identity), and "The Mamba in the Llama" (attention) */
static void mhk__init_mixer(mhk__rng *rng, const mhk_config *c, mhk__layer *y, const mhk__layer *teacher, const mhk_config *tc,
                            int attention) {
  const mhk_index E = (mhk_index)c->ssm_heads * c->ssm_head_dim, GN = (mhk_index)c->ssm_groups * c->d_state;
  mhk__fill_linear(rng, y->in_w, NULL);
  mhk__fill(y->in_b, 0);
  mhk__fill_uniform(rng, y->in_w, E + 2 * GN, E, 0); /* z */
  mhk__fill(y->z_bias, MHK__OPEN_GATE);
  mhk__fill(y->conv_w, 0);
  for (mhk_index i = 0; i < y->conv_w->shape[0]; i++) ((mhk_real *)y->conv_w->data)[(i + 1) * c->d_conv - 1] = 1;
  mhk__fill(y->conv_b, 0);
  mhk__fill(y->D, 1);
  mhk__fill_linear(rng, y->out_w, NULL);
  mhk__fill(y->out_b, 0);
  if (!attention || teacher->kind != MHK_MIXER_ATTENTION) return;
  mhk__copy_heads(y->in_w, 0, c->ssm_heads, c->ssm_head_dim, teacher->v_w, tc->n_kv_head, tc->head_dim);
  mhk__copy_heads(y->in_w, E, c->ssm_groups, c->d_state, teacher->k_w, tc->n_kv_head, tc->head_dim);
  mhk__copy_heads(y->in_w, E + GN, c->ssm_groups, c->d_state, teacher->q_w, tc->n_head, tc->head_dim);
  if (y->out_w->shape[0] == teacher->dense_w->shape[0] && y->out_w->shape[1] == teacher->dense_w->shape[1])
    mhk__transfer(y->out_w, teacher->dense_w);
}

MHKDEF mhk_result mhk_model_init_mixers(mhk_model *student, mhk_model *teacher, mhk_init init, uint64_t seed) {
  mhk_context *ctx;
  mhk__rng rng;
  if (!student) return MHK_ERROR_ARGUMENT;
  ctx = student->object.ctx;
  if (mhk_failed(ctx) || !mhk__can_train(student, "mhk_model_init_mixers")) return mhk_error(ctx);
  if (init == MHK_INIT_DEFAULT) init = MHK_INIT_ATTENTION;
  if (init != MHK_INIT_IDENTITY && init != MHK_INIT_ATTENTION && init != MHK_INIT_RANDOM)
    return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "initialisation %d is none of identity (1), attention (2) and random (3)", (int)init);
  if (init == MHK_INIT_ATTENTION && !teacher) return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "initialisation from attention needs the teacher");
  if (init == MHK_INIT_ATTENTION && !mhk__same_depth(student, teacher)) return mhk_error(ctx);
  mhk__rng_seed(&rng, seed);
  for (int l = 0; l < student->config.n_layer; l++) {
    mhk__layer *y = &student->layers[l];
    if (y->kind == MHK_MIXER_ATTENTION) continue;
    if (y->kind == MHK_MIXER_MAMBA2 || init == MHK_INIT_RANDOM)
      mhk__fill_mixer(&rng, y);
    else
      mhk__init_mixer(&rng, &student->config, y, teacher ? &teacher->layers[l] : NULL, teacher ? &teacher->config : NULL,
                      init == MHK_INIT_ATTENTION);
  }
  return MHK_OK;
}

MHKDEF mhk_model *mhk_student_create(mhk_context *ctx, mhk_model *teacher, const mhk_student_desc *desc) {
  mhk_student_desc d;
  mhk_config c;
  int l;
  if (mhk_failed(ctx)) return NULL;
  if (!teacher || mhk_failed(teacher->object.ctx)) {
    mhk_fail(ctx, MHK_ERROR_ARGUMENT, "mhk_student_create needs a teacher%s%s", teacher ? ": " : "",
             teacher ? mhk_message(teacher->object.ctx) : "");
    return NULL;
  }
  memset(&d, 0, sizeof d);
  if (desc) d = *desc;
  const mhk_config *t = &teacher->config;
  if (t->arch != MHK_ARCH_PHI) {
    mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "a student can be made of a Phi teacher only; this one is a %s",
             t->arch == MHK_ARCH_MAMBA2 ? "Mamba-2" : "Phi-Mamba");
    return NULL;
  }
  if (d.n_keep_attention < 0 || (d.n_keep_attention > 0 && !d.keep_attention) || d.d_state < 0 || d.rotary_dim < -1 || d.chunk_size < 0) {
    mhk_fail(ctx, MHK_ERROR_ARGUMENT, "a student cannot have n_keep_attention %d%s, d_state %d, rotary_dim %d, chunk_size %d",
             d.n_keep_attention, d.n_keep_attention > 0 && !d.keep_attention ? " with no list" : "", d.d_state, d.rotary_dim, d.chunk_size);
    return NULL;
  }
  memcpy(&c, t, sizeof c);
  c.arch = MHK_ARCH_PHI_MAMBA;
  c.tie_embeddings = 0;
  c.pad_vocab_multiple = c.vocab_size % 8 == 0 ? 8 : 1; /* no padding: exactly the teacher's vocabulary */
  for (l = 0; l < c.n_layer; l++) c.mixer[l] = MHK_MIXER_DISCRETE_MAMBA2;
  for (int i = 0; i < d.n_keep_attention; i++) {
    l = d.keep_attention[i];
    if (l < 0 || l >= c.n_layer) {
      mhk_fail(ctx, MHK_ERROR_ARGUMENT, "attention cannot be kept in layer %d: the teacher has layers 0 to %d", l, c.n_layer - 1);
      return NULL;
    }
    c.mixer[l] = MHK_MIXER_ATTENTION;
  }
  if (mhk__config_uses(&c, MHK_MIXER_DISCRETE_MAMBA2)) {
    c.ssm_heads = c.ssm_groups = t->n_head;
    c.ssm_head_dim = t->head_dim;
    c.d_state = d.d_state ? d.d_state : t->head_dim;
    c.d_conv = 4;
    c.chunk_size = d.chunk_size ? d.chunk_size : 128;
    c.conv_bias = 1;
    c.ssm_rotary_dim = d.rotary_dim == -1           ? 0
                       : d.rotary_dim               ? d.rotary_dim
                       : t->rotary_dim <= c.d_state ? t->rotary_dim
                                                    : c.d_state / 2 * 2;
  }
  if (!mhk__config_uses(&c, MHK_MIXER_ATTENTION)) {
    c.n_head = c.n_kv_head = c.head_dim = c.rotary_dim = c.qk_layernorm = 0;
    if (c.ssm_rotary_dim == 0) c.rope_theta = 0;
  }
  if (c.ssm_rotary_dim && t->rope_theta <= 0) c.rope_theta = 10000.0;
  mhk_model *m = mhk_model_create(ctx, &c, d.seed ? d.seed : 1);
  if (!m) return NULL;
  mhk_model_transfer(m, teacher);
  mhk_model_init_mixers(m, teacher, d.init, d.seed ? d.seed : 1);
  if (!mhk__model_follow(m, teacher)) { /* copies, so that the teacher may go */
    mhk_model_destroy(m);
    return NULL;
  }
  return m;
}
#endif
#endif /* MOHAWK_IMPLEMENTATION */
#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS) && !defined(MOHAWK_NO_TRAINING)
/* ====================================================================================================
   LAYERS: mixers, blocks, whole forward passes                                              >>layers
   ==================================================================================================== */

/* ---- pieces of a mixer ---- */

/* What a mixer's core works on. State-space: x (B,T,H,P), log_a (B,T,H), Bm and Cm (B,T,G,N) after convolution and rotary, z (B,T,E), and for Mamba-2 the
   step sizes dt (B,T,H). Attention: q, k, v (B,T,heads,P) after q/k norm and rotary. matrix_only leaves out what the mixing matrix does not need. */
typedef struct mhk__parts {
  int matrix_only;
  mhk_tensor *x, *log_a, *Bm, *Cm, *z, *dt;
  mhk_tensor *q, *k, *v;
} mhk__parts;

static mhk_tensor *mhk__heads(mhk_tape *t, mhk_tensor *x, mhk_index heads) {
  mhk_index shape[4];
  if (!x || heads < 1) return NULL;
  shape[0] = x->shape[0];
  shape[1] = x->shape[1];
  shape[2] = heads;
  shape[3] = x->shape[2] / heads;
  return mhk_reshape(t, x, 4, shape);
}

static mhk_tensor *mhk__flat(mhk_tape *t, mhk_tensor *x) {
  mhk_index shape[3];
  if (!x) return NULL;
  shape[0] = x->shape[0];
  shape[1] = x->shape[1];
  shape[2] = x->shape[2] * x->shape[3];
  return mhk_reshape(t, x, 3, shape);
}

static mhk_tensor *mhk__linear_rows(mhk_tape *t, mhk_tensor *u, mhk_tensor *w, mhk_tensor *b, mhk_index first, mhk_index rows) {
  return mhk_linear(t, u, mhk_rows(t, w, first, rows), b ? mhk_rows(t, b, first, rows) : NULL);
}

typedef struct mhk__clamp { mhk_real low, high; } mhk__clamp;
static void mhk__clamp_forward(const mhk_op *op) {
  const mhk__clamp *c = (const mhk__clamp *)op->user;
  for (mhk_index i = 0; i < op->out->count; i++) {
    const mhk_real x = mhk__d(op->in[0])[i];
    mhk__d(op->out)[i] = x < c->low ? c->low : x > c->high ? c->high : x;
  }
}
static void mhk__clamp_back(const mhk_op *op) {
  const mhk__clamp *c = (const mhk__clamp *)op->user;
  if (!mhk_wants_grad(op->tape, op->in[0])) return;
  for (mhk_index i = 0; i < op->out->count; i++) {
    const mhk_real x = mhk__d(op->in[0])[i];
    if (x >= c->low && x <= c->high) op->in[0]->grad[i] += op->out->grad[i];
  }
}

/* y (...,n) = x (...,n) times s, one number a row; s repeats when it is shorter (one a head) */
static void mhk__scale_rows_forward(const mhk_op *op) {
  const mhk_index n = mhk__last(op->out), rows = mhk__row_count(op->out), wrap = op->in[1]->count;
  for (mhk_index r = 0; r < rows; r++)
    for (mhk_index j = 0; j < n; j++) mhk__d(op->out)[r * n + j] = mhk__d(op->in[0])[r * n + j] * mhk__d(op->in[1])[r % wrap];
}
static void mhk__scale_rows_back(const mhk_op *op) {
  const mhk_index n = mhk__last(op->out), rows = mhk__row_count(op->out), wrap = op->in[1]->count;
  const int dx = mhk_wants_grad(op->tape, op->in[0]), ds = mhk_wants_grad(op->tape, op->in[1]);
  for (mhk_index r = 0; r < rows; r++) {
    const mhk_real *g = op->out->grad + r * n, *x = mhk__d(op->in[0]) + r * n, s = mhk__d(op->in[1])[r % wrap];
    double dot = 0;
    for (mhk_index j = 0; j < n; j++) {
      dot += (double)(g[j] * x[j]);
      if (dx) op->in[0]->grad[r * n + j] += g[j] * s;
    }
    if (ds) op->in[1]->grad[r % wrap] += MHK__R(dot);
  }
}
static mhk_tensor *mhk__scale_rows(mhk_tape *t, mhk_tensor *x, mhk_tensor *s) {
  mhk_tensor *in[2];
  if (!x || !s) return NULL;
  in[0] = x;
  in[1] = s;
  return mhk_custom(t, 2, in, x->rank, x->shape, mhk__scale_rows_forward, mhk__scale_rows_back, NULL, 0);
}

/* (B,T,G,N) -> (B,T,H,N): each group's row once for every head that uses it */
static void mhk__spread_forward(const mhk_op *op) {
  const mhk_index n = mhk__last(op->out), rows = mhk__row_count(op->out), each = op->out->shape[2] / op->in[0]->shape[2];
  for (mhk_index r = 0; r < rows; r++) memcpy(mhk__d(op->out) + r * n, mhk__d(op->in[0]) + r / each * n, (size_t)n * sizeof(mhk_real));
}
static void mhk__spread_back(const mhk_op *op) {
  const mhk_index n = mhk__last(op->out), rows = mhk__row_count(op->out), each = op->out->shape[2] / op->in[0]->shape[2];
  for (mhk_index r = 0; mhk_wants_grad(op->tape, op->in[0]) && r < rows; r++)
    for (mhk_index j = 0; j < n; j++) op->in[0]->grad[r / each * n + j] += op->out->grad[r * n + j];
}
static mhk_tensor *mhk__spread(mhk_tape *t, mhk_tensor *x, mhk_index heads) {
  mhk_index shape[4];
  if (!x) return NULL;
  memcpy(shape, x->shape, sizeof shape);
  shape[2] = heads;
  return mhk_custom(t, 1, &x, 4, shape, mhk__spread_forward, mhk__spread_back, NULL, 0);
}

static int mhk__layer_ready(mhk_tape *t, const mhk_model *m, int layer, const mhk_tensor *u) {
  if (!mhk__tape_ready(t) || !m || !u || m->object.ctx != t->ctx) return 0;
  if (layer < 0 || layer >= m->config.n_layer) {
    mhk_fail(t->ctx, MHK_ERROR_ARGUMENT, "layer %d of a model that has layers 0 to %d", layer, m->config.n_layer - 1);
    return 0;
  }
  if (u->rank != 3 || u->shape[2] != m->config.d_model) {
    char text[128];
    mhk_fail(t->ctx, MHK_ERROR_SHAPE, "layer %d was given %s and takes (B,T,%d)", layer,
             mhk__shape_text(u->rank, u->shape, text, sizeof text), m->config.d_model);
    return 0;
  }
  return 1;
}

/* Non-zero on success. */
static int mhk__mixer_parts(mhk_tape *t, mhk_model *m, int layer, mhk_tensor *u, const int32_t *doc, mhk__parts *out) {
  const int matrix_only = out->matrix_only;
  memset(out, 0, sizeof *out);
  out->matrix_only = matrix_only;
  if (!mhk__layer_ready(t, m, layer, u)) return 0;
  const mhk_config *c = &m->config;
  mhk__layer *y = m->layers + layer;
  if (y->kind == MHK_MIXER_ATTENTION) {
    out->q = mhk__heads(t, mhk_linear(t, u, y->q_w, y->q_b), c->n_head);
    out->k = mhk__heads(t, mhk_linear(t, u, y->k_w, y->k_b), c->n_kv_head);
    if (!matrix_only) out->v = mhk__heads(t, mhk_linear(t, u, y->v_w, y->v_b), c->n_kv_head);
    if (y->qn_w) {
      out->q = mhk_layer_norm(t, out->q, y->qn_w, y->qn_b, c->norm_eps);
      out->k = mhk_layer_norm(t, out->k, y->kn_w, y->kn_b, c->norm_eps);
    }
    out->q = mhk_rotary(t, out->q, c->rotary_dim, c->rope_theta, doc, 0);
    out->k = mhk_rotary(t, out->k, c->rotary_dim, c->rope_theta, doc, 0);
    return out->q && out->k && (matrix_only || out->v);
  }
  const mhk_index E = mhk__d_inner(c);
  const mhk_index GN = (mhk_index)c->ssm_groups * c->d_state;
  const mhk_index H = c->ssm_heads;
  {
    const int mamba2 = y->kind == MHK_MIXER_MAMBA2, skip_x = matrix_only;
    const mhk_index at_xbc = mamba2 ? E : 0, at_z = mamba2 ? 0 : E + 2 * GN, at_a = 2 * E + 2 * GN, first = skip_x ? E : 0, channels = E + 2 * GN - first;
    mhk_index widths[3];
    mhk_tensor *parts[3], *xbc = mhk__linear_rows(t, u, y->in_w, y->in_b, at_xbc + first, channels), *a;
    widths[0] = E;
    widths[1] = widths[2] = GN;
    parts[0] = NULL;
    mhk_conv1d_split(t, xbc, mhk_rows(t, y->conv_w, first, channels), y->conv_b ? mhk_rows(t, y->conv_b, first, channels) : NULL, c->conv_silu, doc,
                     NULL, skip_x ? 2 : 3, skip_x ? widths + 1 : widths, skip_x ? parts + 1 : parts);
    if (!xbc || t->ctx->result != MHK_OK) return 0;
    a = mhk__linear_rows(t, u, y->in_w, y->in_b, at_a, H);
    out->x = skip_x ? NULL : mhk__heads(t, parts[0], H);
    out->Bm = mhk__heads(t, parts[1], c->ssm_groups);
    out->Cm = mhk__heads(t, parts[2], c->ssm_groups);
    if (!matrix_only) out->z = mhk__linear_rows(t, u, y->in_w, y->in_b, at_z, E);
    if (mamba2) {
      out->dt = mhk_softplus(t, mhk_add(t, a, y->dt_bias));
      if (out->dt && (c->dt_min > 0 || c->dt_max > 0)) {
        mhk__clamp limits;
        limits.low = MHK__R(c->dt_min);
        limits.high = c->dt_max > 0 ? MHK__R(c->dt_max) : MHK__R(FLT_MAX);
        out->dt = mhk_custom(t, 1, &out->dt, out->dt->rank, out->dt->shape, mhk__clamp_forward, mhk__clamp_back, &limits, sizeof limits);
      }
      out->log_a = mhk_mul(t, out->dt, mhk_scale(t, mhk_exp(t, y->A_log), -1));
    } else {
      out->log_a = mhk_scale(t, mhk_softplus(t, a), -1);
      if (c->ssm_rotary_dim > 0) {
        out->Bm = mhk_rotary(t, out->Bm, c->ssm_rotary_dim, c->rope_theta, doc, 0);
        out->Cm = mhk_rotary(t, out->Cm, c->ssm_rotary_dim, c->rope_theta, doc, 0);
      }
    }
  }
  return t->ctx->result == MHK_OK && out->log_a && out->Bm && out->Cm;
}

/* RMSNorm of each of the groups of the last axis for itself, as Mamba-2 has it */
static mhk_tensor *mhk__group_norm(mhk_tape *t, mhk_tensor *x, mhk_tensor *w, mhk_index groups, double eps) {
  mhk_index shape[2];
  if (!x || !w || groups <= 1) return mhk_rms_norm(t, x, w, eps);
  shape[1] = mhk__last(x) / groups;
  shape[0] = x->count / shape[1];
  mhk_tensor *ones = mhk_tensor_new(t, 1, shape + 1, NULL);
  if (!ones) return NULL;
  for (mhk_index i = 0; i < shape[1]; i++) mhk_data(ones)[i] = 1;
  mhk_tensor *y = mhk_rms_norm(t, mhk_reshape(t, x, 2, shape), ones, eps);
  return mhk_mul(t, y ? mhk_reshape(t, y, x->rank, x->shape) : NULL, w);
}

/* the mixer of a layer, plus residual when there is one (added by the output projection) */
static mhk_tensor *mhk__mixer(mhk_tape *t, mhk_model *m, int layer, mhk_tensor *u, const int32_t *doc, mhk_tensor *residual) {
  mhk__parts p;
  mhk_tensor *o;
  mhk_ssd_desc desc;
  memset(&p, 0, sizeof p);
  if (!mhk__mixer_parts(t, m, layer, u, doc, &p)) return NULL;
  mhk__layer *y = m->layers + layer;
  if (y->kind == MHK_MIXER_ATTENTION) {
    o = mhk__flat(t, mhk_attention(t, p.q, p.k, p.v, doc, NULL));
    return residual ? mhk_linear_add(t, o, y->dense_w, y->dense_b, residual) : mhk_linear(t, o, y->dense_w, y->dense_b);
  }
  memset(&desc, 0, sizeof desc);
  desc.doc = doc;
  if (y->kind == MHK_MIXER_MAMBA2) {
    o = mhk_ssd(t, mhk__scale_rows(t, p.x, p.dt), p.log_a, p.Bm, p.Cm, &desc);
    o = mhk_add(t, o, mhk__scale_rows(t, p.x, y->D));
    o = mhk__group_norm(t, mhk_gate(t, mhk__flat(t, o), p.z, NULL), y->ssm_norm_w, m->config.ssm_groups, m->config.norm_eps);
  } else {
    desc.D = y->D;
    o = mhk_gate(t, mhk__flat(t, mhk_ssd(t, p.x, p.log_a, p.Bm, p.Cm, &desc)), p.z, y->z_bias);
  }
  return residual ? mhk_linear_add(t, o, y->out_w, y->out_b, residual) : mhk_linear(t, o, y->out_w, y->out_b);
}

MHKDEF mhk_tensor *mhk_forward_mixer(mhk_tape *t, mhk_model *m, int layer, mhk_tensor *u, const mhk_forward_desc *d) {
  return mhk__mixer(t, m, layer, u, d ? d->doc : NULL, NULL);
}

MHKDEF mhk_tensor *mhk_forward_norm(mhk_tape *t, mhk_model *m, int layer, mhk_tensor *x) {
  if (!mhk__layer_ready(t, m, layer, x)) return NULL;
  mhk__layer *y = m->layers + layer;
  return y->norm_b ? mhk_layer_norm(t, x, y->norm_w, y->norm_b, m->config.norm_eps) : mhk_rms_norm(t, x, y->norm_w, m->config.norm_eps);
}

/* Phi and Phi-Mamba: x + mixer(norm(x)) + mlp(norm(x)), side by side. Mamba-2: x + mixer(norm(x)). */
MHKDEF mhk_tensor *mhk_forward_block(mhk_tape *t, mhk_model *m, int layer, mhk_tensor *x, const mhk_forward_desc *d) {
  mhk_tensor *u = mhk_forward_norm(t, m, layer, x);
  mhk_tensor *y = mhk__mixer(t, m, layer, u, d ? d->doc : NULL, x);
  if (!y) return NULL;
  mhk__layer *w = m->layers + layer;
  return w->fc1_w ? mhk_linear_add(t, mhk_linear_gelu(t, u, w->fc1_w, w->fc1_b), w->fc2_w, w->fc2_b, y) : y;
}

MHKDEF mhk_tensor *mhk_forward_embedding(mhk_tape *t, mhk_model *m, const int32_t *tokens, mhk_index B, mhk_index T) {
  if (!mhk__tape_ready(t) || !m) return NULL;
  if (!tokens || B < 1 || T < 1) {
    mhk_fail(t->ctx, MHK_ERROR_ARGUMENT, "a forward pass over %lld sequences of %lld tokens: at least one of each is needed", (long long)B, (long long)T);
    return NULL;
  }
  return mhk_embedding(t, m->embedding, tokens, B, T);
}

MHKDEF mhk_tensor *mhk_forward_head(mhk_tape *t, mhk_model *m, mhk_tensor *x) {
  if (!mhk__tape_ready(t) || !m || !x) return NULL;
  x = m->norm_b ? mhk_layer_norm(t, x, m->norm_w, m->norm_b, m->config.norm_eps) : mhk_rms_norm(t, x, m->norm_w, m->config.norm_eps);
  return mhk_linear(t, x, m->head_w, m->head_b);
}

MHKDEF mhk_tensor *mhk_forward_matrix(mhk_tape *t, mhk_model *m, int layer, mhk_tensor *u, const int32_t *doc) {
  mhk__parts p;
  memset(&p, 0, sizeof p);
  p.matrix_only = 1;
  if (!mhk__mixer_parts(t, m, layer, u, doc, &p)) return NULL;
  if (p.q) return mhk_attention_matrix(t, p.q, p.k, doc);
  if (p.dt) { /* the step size scales what a token puts in */
    p.Bm = mhk__scale_rows(t, mhk__spread(t, p.Bm, m->config.ssm_heads), p.dt);
    p.Cm = mhk__spread(t, p.Cm, m->config.ssm_heads);
  }
  return mhk_ssd_matrix(t, p.log_a, p.Bm, p.Cm, m->layers[layer].D, doc);
}

typedef struct mhk__block_user { mhk_model *m; mhk_forward_desc d; int layer; } mhk__block_user;
static mhk_tensor *mhk__block_again(mhk_tape *t, void *user, mhk_tensor *x) {
  const mhk__block_user *b = (const mhk__block_user *)user;
  return mhk_forward_block(t, b->m, b->layer, x, &b->d);
}

MHKDEF mhk_tensor *mhk_forward(mhk_tape *t, mhk_model *m, const int32_t *tokens, mhk_index B, mhk_index T, const mhk_forward_desc *desc) {
  mhk_tensor *x = mhk_forward_embedding(t, m, tokens, B, T);
  mhk_forward_desc d;
  if (!x) return NULL;
  memset(&d, 0, sizeof d);
  if (desc) d = *desc;
  for (int l = 0; x && l < m->config.n_layer; l++) {
    if (d.residuals) d.residuals[l] = x;
    if (d.recompute && t->recording) {
      mhk__block_user *u = (mhk__block_user *)mhk__arena_zeros(t->ctx, &t->arena, 1, sizeof *u);
      int32_t *doc = NULL;
      if (u && d.doc) { /* the backward pass reads it again */
        doc = (int32_t *)mhk__arena_zeros(t->ctx, &t->arena, B * T, sizeof(int32_t));
        if (doc) memcpy(doc, d.doc, (size_t)(B * T) * sizeof(int32_t));
      }
      if (!u || (d.doc && !doc)) return NULL;
      u->m = m;
      u->layer = l;
      u->d.doc = doc;
      x = mhk_recompute(t, mhk__block_again, u, x);
    } else
      x = mhk_forward_block(t, m, l, x, &d);
  }
  if (x && d.residuals) d.residuals[m->config.n_layer] = x;
  if (x && d.last_only && T > 1) {
    mhk_index shape[3];
    shape[0] = B;
    shape[1] = T * m->config.d_model;
    x = mhk_columns(t, mhk_reshape(t, x, 2, shape), (T - 1) * m->config.d_model, m->config.d_model);
    shape[1] = 1;
    shape[2] = m->config.d_model;
    x = mhk_reshape(t, x, 3, shape);
  }
  return mhk_forward_head(t, m, x);
}
#endif /* MOHAWK_IMPLEMENTATION */
#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
/* ====================================================================================================
   SESSIONS: prefill, step, sampling                                                       >>sessions
   ==================================================================================================== */

/* What a session makes of a layer's weights once: the taps of the convolution turned, (W,C), and -exp(A_log) of Mamba-2. */
typedef struct mhk__prepared { mhk_real *taps, *rate; } mhk__prepared;

/* A stored state of a sequence: the recurrent numbers, and with a window the keys and values that the next tokens see. */
typedef struct mhk__snapshot {
  mhk_index position, rows; /* rows: of each cache; position 0: the slot is free */
  mhk_real *numbers;
} mhk__snapshot;

/* A sequence. Its caches hold the keys and values of positions first, first + 1, ... position - 1. */
typedef struct mhk__sequence {
  mhk_index position, first;
  int fed;           /* its logits are there */
  mhk_real *state;   /* of each state-space layer: inputs of the convolution (W-1,C), then the state (H,P,N) */
  mhk_real *cache;   /* of each attention layer: keys (rows,G,P), then values */
  mhk__snapshot *snapshots;
} mhk__sequence;

/* n tokens of a sequence that are computed together; their activations start at a row. */
typedef struct mhk__span {
  mhk_index sequence, row, n;
  const int32_t *tokens;
} mhk__span;

/* ---- sampling: what a session keeps for it, in one piece of memory of known size */

/* Room for remembered tokens: rarely moved, and after some that were fed last are taken back the window is still full. */
#define MHK__RECENT_ROOM(window) (2 * (window) + 32)

typedef struct mhk__sampler {
  uint64_t seed;
  mhk__rng rng;
  mhk_index rows, vocab, window; /* window: tokens remembered of each row */
  double *p;                     /* (V) */
  mhk_index *n_recent;           /* (rows) */
  int32_t *order;                /* (V) */
  int32_t *recent;               /* (rows,MHK__RECENT_ROOM): the last window of n_recent[row] tokens count */
  char *text;                    /* what the last sample finished, 0, what is held back */
  size_t text_room, stop_bytes, held_at, held;
  mhk_stream stream;
  mhk_stop stop;
} mhk__sampler;

/* a new sequence in a row: nothing was seen, no text is held; random numbers go on */
static void mhk__sampler_reset(mhk__sampler *s, mhk_index row) {
  s->n_recent[row] = 0;
  if (row > 0) return;
  memset(&s->stream, 0, sizeof s->stream);
  s->held_at = s->held = 0;
  s->stop = MHK_STOP_NONE;
  if (s->text) s->text[0] = 0;
}

/* Bytes of a sampler's memory; with memory (aligned for double), also puts the sampler there. 0: too large. longest: bytes of the longest token, 0: no text. */
static size_t mhk__sampler_place(mhk__sampler *s, void *memory, mhk_index rows, mhk_index V, mhk_index window, size_t longest, size_t stop_bytes) {
  const size_t text = longest > 0 ? stop_bytes + 3 * (longest + 4) + 2 : 0;
  const double bytes = 12.0 * (double)V + (double)rows * (8.0 + 4.0 * (double)MHK__RECENT_ROOM(window)) + (double)text;
  char *at = (char *)memory;
  if (rows < 1 || V < 1 || window < 1 || bytes > (double)PTRDIFF_MAX / 2 || longest > SIZE_MAX / 8 || stop_bytes > SIZE_MAX / 8) return 0;
  if (s && at) {
    memset(s, 0, sizeof *s);
    s->rows = rows;
    s->vocab = V;
    s->window = window;
    s->p = (double *)(void *)at;
    s->n_recent = (mhk_index *)(void *)(at += (size_t)V * sizeof(double));
    s->order = (int32_t *)(void *)(at += (size_t)rows * sizeof(mhk_index));
    s->recent = (int32_t *)(void *)(at += (size_t)V * sizeof(int32_t));
    s->text = text ? at + (size_t)rows * (size_t)MHK__RECENT_ROOM(window) * sizeof(int32_t) : NULL;
    s->text_room = text;
    s->stop_bytes = stop_bytes;
    mhk__rng_seed(&s->rng, 1);
    for (mhk_index row = 0; row < rows; row++) mhk__sampler_reset(s, row);
  }
  return (size_t)V * (sizeof(double) + sizeof(int32_t)) + (size_t)rows * (sizeof(mhk_index) + (size_t)MHK__RECENT_ROOM(window) * sizeof(int32_t)) + text;
}

/* bytes of a tokenizer's longest token: room that text needs */
static size_t mhk__longest_token(mhk_tokenizer *k) {
  size_t longest = 0, length;
  for (int32_t id = 0; id < mhk_tokenizer_size(k); id++)
    if (mhk_token_bytes(k, id, &length) && length > longest) longest = length;
  return longest;
}

/* the last n tokens of a row were not fed after all */
static void mhk__sampler_forget(mhk__sampler *s, mhk_index row, mhk_index n) { s->n_recent[row] -= mhk__min(n, s->n_recent[row]); }

/* tokens that a row was fed */
static void mhk__sampler_fed(mhk__sampler *s, mhk_index row, const int32_t *tokens, mhk_index n) {
  int32_t *recent = s->recent + row * MHK__RECENT_ROOM(s->window);
  mhk_index *have = s->n_recent + row;
  const mhk_index most = MHK__RECENT_ROOM(s->window) - s->window;
  if (n > most) {
    tokens += n - most;
    n = most;
  }
  if (*have + n > most + s->window) {
    memmove(recent, recent + *have - s->window, (size_t)s->window * sizeof(int32_t));
    *have = s->window;
  }
  memcpy(recent + *have, tokens, (size_t)n * sizeof(int32_t));
  *have += n;
}

/* the tokens that a row remembers, *n of them */
static const int32_t *mhk__sampler_seen(const mhk__sampler *s, mhk_index row, mhk_index *n) {
  *n = mhk__min(s->n_recent[row], s->window);
  return s->recent + row * MHK__RECENT_ROOM(s->window) + s->n_recent[row] - *n;
}

/* a row becomes a copy of another one, without what its memory does not hold */
static void mhk__sampler_copy(mhk__sampler *to, mhk_index to_row, const mhk__sampler *from, mhk_index from_row) {
  mhk_index n;
  const int32_t *seen = mhk__sampler_seen(from, from_row, &n);
  to->n_recent[to_row] = 0;
  mhk__sampler_fed(to, to_row, seen, n);
  if (to_row > 0 || from_row > 0) return;
  to->stream = from->stream;
  to->held = to->text && from->held < to->stop_bytes ? from->held : 0;
  to->held_at = 1;
  if (to->held) memcpy(to->text + 1, from->text + from->held_at, to->held);
}

static const mhk_sampling *mhk__sampling_or(const mhk_sampling *how, mhk_sampling *room) {
  if (how) return how;
  memset(room, 0, sizeof *room);
  room->temperature = 0.8;
  room->top_p = 0.95;
  return room;
}

/* says what makes a description of sampling senseless, or nothing */
static void mhk__sampling_wrong(const mhk_sampling *how, mhk_index V, char wrong[MHK__SETTING]) {
  const struct { const char *name; double value, least, most; } numbers[] = {
    {"temperature", how->temperature, -DBL_MAX, DBL_MAX},
    {"top_k", (double)how->top_k, 0, DBL_MAX},
    {"top_p", how->top_p, 0, 1},
    {"min_p", how->min_p, 0, 1},
    {"typical", how->typical, 0, 1},
    {"repetition", how->repetition, 0, DBL_MAX},
    {"frequency", how->frequency, -DBL_MAX, DBL_MAX},
    {"presence", how->presence, -DBL_MAX, DBL_MAX},
    {"penalty_tokens", (double)how->penalty_tokens, 0, DBL_MAX}};
  wrong[0] = 0;
  for (int i = 0; i < (int)(sizeof numbers / sizeof *numbers); i++)
    if (mhk__number_wrong(wrong, numbers[i].name, numbers[i].value, numbers[i].least, numbers[i].most)) return;
  if (how->n_bias < 0 || (how->n_bias > 0 && !how->bias) || how->n_stop_tokens < 0 || (how->n_stop_tokens > 0 && !how->stop_tokens) ||
      how->n_stop_strings < 0 || (how->n_stop_strings > 0 && !how->stop_strings)) {
    mhk__print(wrong, MHK__SETTING, "a list is missing: of %d biases, %d stop tokens or %d stop strings", how->n_bias,
               how->n_stop_tokens, how->n_stop_strings);
    return;
  }
  for (int i = 0; i < how->n_bias && !*wrong; i++) {
    const mhk_token_bias *b = how->bias + i;
    if (b->token < 0 || b->token >= V)
      mhk__print(wrong, MHK__SETTING, "bias %d names token %ld, which the vocabulary does not have (0 to %lld)", i,
                 (long)b->token, (long long)V - 1);
    else if (!(b->value <= DBL_MAX))
      mhk__print(wrong, MHK__SETTING, "the bias of token %ld is %g: it must be a finite number, or minus infinity",
                 (long)b->token, b->value);
  }
  for (int i = 0; i < how->n_stop_strings && !*wrong; i++)
    if (!how->stop_strings[i] || !how->stop_strings[i][0])
      mhk__print(wrong, MHK__SETTING, "stop string %d is empty", i);
}

static int mhk__sampling_penalises(const mhk_sampling *how) {
  return (how->repetition > 0 && (how->repetition < 1 || how->repetition > 1)) || fabs(how->frequency) > 0 || fabs(how->presence) > 0;
}

/* x = logits with bias and penalties; count (V) is scratch */
static void mhk__penalise(const mhk_real *logits, mhk_index V, const mhk_sampling *how, const int32_t *recent, mhk_index n, double *x, int32_t *count) {
  for (mhk_index i = 0; i < V; i++) x[i] = (double)logits[i];
  for (mhk_index i = 0; i < how->n_bias; i++) x[how->bias[i].token] += how->bias[i].value;
  if (!mhk__sampling_penalises(how)) return;
  if (how->penalty_tokens > 0 && how->penalty_tokens < n) {
    recent += n - how->penalty_tokens;
    n = how->penalty_tokens;
  }
  for (mhk_index i = 0; i < n; i++)
    if (recent[i] >= 0 && recent[i] < V) count[recent[i]] = 0;
  for (mhk_index i = 0; i < n; i++)
    if (recent[i] >= 0 && recent[i] < V) count[recent[i]]++;
  for (mhk_index i = 0; i < n; i++)
    if (recent[i] >= 0 && recent[i] < V && count[recent[i]] > 0) {
      double *y = x + recent[i];
      if (how->repetition > 0) *y = *y > 0 ? *y / how->repetition : *y * how->repetition;
      *y -= how->frequency * count[recent[i]] + how->presence;
      count[recent[i]] = 0;
    }
}

/* Moves the best of ids[0..n) to the front, as few as together weigh at least mass, at most most of them, and returns how many that are. mass < 0: by
   their number alone. Good is a large w, or, with a centre, one whose ratio to it is near 1. Quickselect: linear time. */
static mhk_index mhk__keep_best(const double *w, int32_t *ids, mhk_index n, mhk_index most, double mass, double centre) {
#define MHK__GOOD(id) (centre > 0 ? (w[id] < centre ? w[id] / centre : centre / w[id]) : w[id])
  const int by_mass = mass >= 0;
  mhk_index low = 0, high = n; /* ids before low are kept, those from high on are not */
  uint64_t turn = 1;
  while (low < high && low < most && (!by_mass || mass > 0)) {
    mhk_index i, m = low;
    double good, sum = 0;
    turn = turn * 6364136223846793005u + 1442695040888963407u; /* no input is slow by design */
    i = low + (mhk_index)((turn >> 33) % (uint64_t)(high - low));
    const int32_t pivot = ids[i];
    ids[i] = ids[high - 1];
    good = MHK__GOOD(pivot);
    for (i = low; i < high - 1; i++) {
      const int32_t id = ids[i];
      const double g = MHK__GOOD(id);
      if (g > good || (g >= good && id < pivot)) {
        sum += w[id];
        ids[i] = ids[m];
        ids[m++] = id;
      }
    }
    ids[high - 1] = ids[m];
    ids[m] = pivot;
    if (m >= most || (by_mass && sum >= mass)) /* enough without the pivot */
      high = m;
    else {
      low = m + 1;
      if (by_mass && (mass -= sum + w[pivot]) < 0) mass = 0;
    }
  }
#undef MHK__GOOD
  return low;
}

/* the k largest of x (V) to the front of ids (V), the others behind them */
static void mhk__top_k(const double *x, mhk_index V, mhk_index k, int32_t *ids) {
  mhk_index i, n, width = V / 4 / k;
  double least = x[0];
  if (width < 4) { /* not worth a look ahead */
    for (i = 0; i < V; i++) ids[i] = (int32_t)i;
    mhk__keep_best(x, ids, V, k, -1, 0);
    return;
  }
  for (n = 0; n < 4 * k; n++) { /* the largest of each stretch; the k best of these are k numbers, so what is below them all is out */
    const mhk_index first = n * width, end = n + 1 < 4 * k ? first + width : V;
    double most = x[first];
    ids[n] = (int32_t)first;
    for (i = first + 1; i < end; i++)
      if (x[i] > most) {
        most = x[i];
        ids[n] = (int32_t)i;
      }
  }
  mhk__keep_best(x, ids, n, k, -1, 0);
  for (least = x[ids[0]], i = 1; i < k; i++)
    if (x[ids[i]] < least) least = x[ids[i]];
  for (i = n = 0; i < V; i++)
    if (x[i] >= least) ids[n++] = (int32_t)i;
  mhk__keep_best(x, ids, n, k, -1, 0);
  for (i = 0; i < V; i++)
    if (!(x[i] >= least)) ids[n++] = (int32_t)i;
}

MHKDEF mhk_index mhk_probabilities(const mhk_real *logits, mhk_index V, const mhk_sampling *how, const int32_t *recent, mhk_index n_recent, double *p,
                                   int32_t *scratch) {
  mhk_sampling usual;
  mhk_index i, n = V, kept = 0, best = 0;
  int32_t *ids = scratch;
  int listed = 0; /* the tokens left are ids[0..n), all others have p = 0 */
  char wrong[MHK__SETTING];
  double temperature, most, total = 0;
  how = mhk__sampling_or(how, &usual);
  if (!logits || V < 1 || V > INT32_MAX || !p || !scratch || (n_recent > 0 && !recent)) return 0;
  mhk__sampling_wrong(how, V, wrong);
  if (*wrong) return 0;
  mhk__penalise(logits, V, how, recent, n_recent, p, scratch);
  for (i = 0; i < V; i++) {
    if (!(p[i] <= DBL_MAX)) return 0;
    if (p[i] > p[best]) best = i;
  }
  most = p[best];
  if (most < -DBL_MAX) return 0;
  temperature = how->temperature > 0 || how->temperature < 0 ? how->temperature : 1;
  if (temperature < 0) {
    memset(p, 0, (size_t)V * sizeof *p);
    p[best] = 1;
    return 1;
  }
  if (how->top_k > 0 && how->top_k < V) { /* before the exponentials, which then are few */
    mhk__top_k(p, V, n = how->top_k, ids);
    listed = 1;
    for (i = n; i < V; i++) p[ids[i]] = 0;
    for (i = 0; i < n; i++) total += p[ids[i]] = exp((p[ids[i]] - most) / temperature);
  } else
    for (i = 0; i < V; i++) total += p[i] = exp((p[i] - most) / temperature);
  if ((how->top_p > 0 && how->top_p < 1) || how->min_p > 0 || (how->typical > 0 && how->typical < 1)) {
    const double top_p = how->top_p > 0 && how->top_p < 1 ? how->top_p : 1;
    /* Tokens so small that all of them weigh less than what top_p drops can be dropped unseen. The likeliest has weight 1. */
    const double drop = (1 - top_p) * total / (double)(n + 1), least = how->min_p > drop ? (how->min_p < 1 ? how->min_p : 1) : drop;
    for (i = 0; i < n; i++) {
      const int32_t id = listed ? ids[i] : (int32_t)i;
      if (p[id] > 0 && p[id] >= least)
        ids[kept++] = id;
      else
        p[id] = 0;
    }
    n = kept;
    listed = 1;
    if (top_p < 1) {
      kept = mhk__keep_best(p, ids, n, n, top_p * total, 0);
      for (; n > kept; n--) p[ids[n - 1]] = 0;
    }
    for (total = 0, i = 0; i < n; i++) total += p[ids[i]];
    if (how->typical > 0 && how->typical < 1) {
      double centre = 0; /* the weight whose -log p is the entropy: the weighted geometric mean */
      for (i = 0; i < n; i++) centre += p[ids[i]] * log(p[ids[i]]);
      kept = mhk__keep_best(p, ids, n, n, how->typical * total, exp(centre / total));
      for (; n > kept; n--) p[ids[n - 1]] = 0;
      for (total = 0, i = 0; i < n; i++) total += p[ids[i]];
    }
  }
  for (i = kept = 0; i < n; i++) {
    double *y = p + (listed ? ids[i] : (int32_t)i);
    *y /= total;
    kept += *y > 0;
  }
  return kept;
}

MHKDEF int32_t mhk_draw(const double *p, mhk_index V, double uniform) {
  double run = 0;
  if (!p) return -1;
  for (mhk_index i = 0; i < V; i += 16) {
    const double *x = p + i;
    if (V - i >= 16) { /* stretches that do not hold it by their sums */
      const double sum = (((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]))) +
                         (((x[8] + x[9]) + (x[10] + x[11])) + ((x[12] + x[13]) + (x[14] + x[15])));
      if (run + sum <= uniform) {
        run += sum;
        continue;
      }
    }
    for (mhk_index j = 0; j < 16 && i + j < V; j++)
      if (x[j] > 0 && (run += x[j]) > uniform) return (int32_t)(i + j);
  }
  for (mhk_index i = V; i-- > 0;) /* rounding left a little of 1 over */
    if (p[i] > 0) return (int32_t)i;
  return -1;
}

/* One draw from a row of logits; -1 when it has no possible token. Greedy without more to it needs no distribution. */
static int32_t mhk__sampler_draw(mhk__sampler *s, mhk_index row, const mhk_real *logits, const mhk_sampling *how, double uniform) {
  mhk_index i, best = 0, n;
  const int32_t *recent = mhk__sampler_seen(s, row, &n);
  if (how->temperature < 0 && how->n_bias == 0 && !mhk__sampling_penalises(how)) {
    for (i = 0; i < s->vocab; i++) {
      if (!(fabs((double)logits[i]) <= DBL_MAX)) return -1;
      if (logits[i] > logits[best]) best = i;
    }
    return (int32_t)best;
  }
  return mhk_probabilities(logits, s->vocab, how, recent, n, s->p, s->order) > 0 ? mhk_draw(s->p, s->vocab, uniform) : -1;
}

/* Takes the bytes of one more token into the text, at the end of the text what is held back too. Returns whether a stop string ended it. */
static int mhk__sampler_text(mhk__sampler *s, const mhk_sampling *how, const char *bytes, size_t length, int end) {
  size_t n = s->held, out, i;
  int k, found = 0;
  if (!s->text) return 0;
  memmove(s->text, s->text + s->held_at, n);
  n += mhk_stream_push(&s->stream, bytes, length, s->text + n);
  if (end) n += mhk_stream_finish(&s->stream, s->text + n);
  out = n;
  for (k = 0; how && k < how->n_stop_strings; k++) {
    const char *stop = how->stop_strings[k];
    const size_t m = strlen(stop);
    for (i = 0; i < out && i + m <= n; i++)
      if (!memcmp(s->text + i, stop, m)) {
        out = i;
        found = 1;
      }
  }
  for (k = 0; how && !found && !end && k < how->n_stop_strings; k++) {
    const char *stop = how->stop_strings[k];
    const size_t m = strlen(stop);
    for (i = n >= m ? n - m + 1 : 0; i < out; i++) /* the start of a stop at the end of the text */
      if (!memcmp(s->text + i, stop, n - i)) out = i;
  }
  s->held = found ? 0 : n - out;
  s->held_at = out + 1;
  memmove(s->text + s->held_at, s->text + out, s->held);
  s->text[out] = 0;
  return found;
}

struct mhk_session {
  mhk__object object;
  mhk_model *model;
  mhk_index batch, vocab, rows, chunk, capacity, window, snapshots, snapshot_every;
  mhk_index piece, cache_rows;                 /* tokens that a cache takes in at once; rows of each */
  mhk_index state_numbers, kept_numbers;       /* of a sequence; of a snapshot */
  int attention_layers, state_layers, workers; /* workers: the work memory is made for */
  mhk__sequence *sequences;
  mhk__span *spans;
  mhk_index *fed;                              /* of each sequence, while feeding */
  mhk_index *lengths;
  const int32_t **tokens;
  mhk__prepared *layers;
  mhk__arena work;                             /* serves in place of the context's scratch memory */
  mhk_real *x, *y, *u;                         /* (rows,D): residual stream, the same after the mixer, its norm */
  mhk_real *wide;                              /* all that lives inside a block; then logits of many tokens */
  mhk_index wide_numbers;
  double *turn[2];                             /* rotary angles a position: of attention, of B and C */
  mhk_real *turned[2];                         /* (rows,dim): cosines, then sines */
  mhk_index *starts;                           /* (rows): the first key a token sees, with a window */
  mhk_real *logits;                            /* (batch,V) */
  int32_t *ids;                                /* (chunk) of text being fed; NULL: no tokenizer */
  mhk_index recent;
  size_t stop_bytes, word_bytes;
  int no_start, given;                         /* given: the block is the caller's */
  mhk__sampler sampler;
};

/* ---- memory: one block, laid out by the same code that counts it ---- */

typedef struct mhk__layout { unsigned char *base; size_t used; int fits; } mhk__layout;

/* a * b * size bytes of the block, aligned; NULL while counting */
static void *mhk__place(mhk__layout *p, mhk_index a, mhk_index b, size_t size) {
  const size_t most = ((size_t)PTRDIFF_MAX / 2 - p->used - MHK__ALIGN) / size;
  void *at = p->base ? p->base + p->used : NULL;
  if (!p->fits || a < 0 || b < 0 || (b > 0 && (size_t)a > most / (size_t)b)) {
    p->fits = 0;
    return NULL;
  }
  p->used += ((size_t)(a * b) * size + MHK__ALIGN - 1) / MHK__ALIGN * MHK__ALIGN;
  return at;
}

/* numbers an activation row takes inside a block, each of up to eight parts aligned */
static mhk_index mhk__wide_row(const mhk_config *c, int mixer) {
  if (mixer == MHK_MIXER_ATTENTION) return 2 * (mhk_index)c->head_dim * (c->n_head + c->n_kv_head);
  return 4 * mhk__d_inner(c) + mhk__d_inner(c) + 4 * (mhk_index)c->ssm_groups * c->d_state + 2 * (mhk_index)c->ssm_heads;
}

/* y (rows,N) = x (rows,K) w^T + bias, then gelu or plus residual */
static void mhk__apply(mhk_context *ctx, mhk_index rows, const mhk_real *x, const mhk_tensor *w, const mhk_tensor *bias, int gelu,
                       const mhk_real *residual, mhk_real *y) {
  mhk__epilogue e;
  memset(&e, 0, sizeof e);
  e.bias = bias ? mhk_data(bias) : NULL;
  e.gelu = gelu;
  e.residual = residual;
  mhk__gemm(ctx, rows, w->shape[0], w->shape[1], mhk__mat(x, MHK_REAL, w->shape[1], 1), mhk__mat_weight(w, 1), y, w->shape[0], &e);
}

static mhk_index mhk__span_heads_work(const mhk_session *s) { /* elements of work a head's kernel may need */
  const mhk_config *c = &s->model->config;
  mhk_index most = 1;
  if (s->attention_layers) {
    most = s->cache_rows + 16;
    if (s->rows > 4) most = mhk__max(most, mhk__attention_work(s->cache_rows, c->head_dim));
  }
  if (s->state_layers && s->rows > MHK__STEPS) most = mhk__max(most, mhk__ssd_work(MHK__SSD_CHUNK, c->d_state, c->ssm_head_dim, 1));
  return most;
}

/* two weights of the same role are stored alike */
static int mhk__alike(const mhk_tensor *x, const mhk_tensor *y) {
  if (!x || !y) return x == y;
  return x->dtype == y->dtype && (!x->quantised || (x->quantised->rows == y->quantised->rows && x->quantised->group == y->quantised->group));
}

/* Bytes of scratch memory that the drivers take for this session: they are called for each number of rows on a context whose scratch memory
   only counts. What is passed to them there is not touched. */
static size_t mhk__session_work(const mhk_session *s) {
  const mhk_model *m = s->model;
  mhk_context probe = *m->object.ctx;
  mhk__chunk count;
  memset(&count, 0, sizeof count);
  memset(&probe.scratch, 0, sizeof probe.scratch);
  probe.scratch.kind = MHK__COUNTS;
  probe.scratch.first = probe.scratch.current = &count;
  for (mhk_index rows = 1; rows <= mhk__min(s->rows, MHK__GEMM_M); rows++) { /* of more rows no product takes more */
    const mhk__layer *before = NULL;
    for (int l = 0; l < m->config.n_layer; l++) {
      const mhk__layer *y = m->layers + l;
      if (before && before->kind == y->kind && l > 1 && mhk__alike(y->in_w, before->in_w) && mhk__alike(y->out_w, before->out_w) &&
          mhk__alike(y->q_w, before->q_w) && mhk__alike(y->k_w, before->k_w) && mhk__alike(y->v_w, before->v_w) &&
          mhk__alike(y->dense_w, before->dense_w) && mhk__alike(y->fc1_w, before->fc1_w) && mhk__alike(y->fc2_w, before->fc2_w))
        continue; /* the same products as in the layer before */
      before = y;
      if (y->in_w) {
        mhk__apply(&probe, rows, NULL, y->in_w, y->in_b, 0, NULL, NULL);
        mhk__apply(&probe, rows, NULL, y->out_w, y->out_b, 0, NULL, NULL);
      } else {
        mhk__apply(&probe, rows, NULL, y->q_w, y->q_b, 0, NULL, NULL);
        mhk__apply(&probe, rows, NULL, y->k_w, y->k_b, 0, NULL, NULL);
        mhk__apply(&probe, rows, NULL, y->v_w, y->v_b, 0, NULL, NULL);
        mhk__apply(&probe, rows, NULL, y->dense_w, y->dense_b, 0, NULL, NULL);
      }
      if (y->fc1_w) {
        mhk__apply(&probe, rows, NULL, y->fc1_w, y->fc1_b, 1, NULL, NULL);
        mhk__apply(&probe, rows, NULL, y->fc2_w, y->fc2_b, 0, NULL, NULL);
      }
    }
    mhk__apply(&probe, rows, NULL, m->head_w, m->head_b, 0, NULL, NULL);
  }
  mhk__run(&probe, NULL, 1, 1, mhk__span_heads_work(s), 0, NULL);
  if (m->tokenizer) /* a long word on top of it: tokens are fed from inside the tokenizer */
    count.room += mhk__word_room(m->tokenizer, s->word_bytes);
  return count.room;
}

/* numbers as an index, far below 0 where they are too many */
static mhk_index mhk__at_most(double numbers) {
  return numbers < (double)(PTRDIFF_MAX / 64) ? (mhk_index)numbers : PTRDIFF_MIN / 2;
}

/* Sets the sizes of a session of a description and lays it out behind itself; base NULL: only counts. */
static void mhk__session_layout(mhk_session *s, mhk__layout *p, size_t work) {
  const mhk_config *c = &s->model->config;
  const mhk_index D = c->d_model, kv = (mhk_index)c->n_kv_head * c->head_dim;
  const mhk_index state = MHK__LD(s->state_numbers), each = MHK__LD(s->kept_numbers); /* whole cache lines */
  const mhk_index cache = MHK__LD(mhk__at_most(2.0 * (double)s->cache_rows * (double)(s->attention_layers * kv)));
  mhk__chunk *chunk;
  mhk__snapshot *kept;
  mhk_real *numbers[3];
  mhk_index snapshots;
  size_t longest = 0, bytes;
  mhk__place(p, 1, 1, sizeof *s);
  s->sequences = (mhk__sequence *)mhk__place(p, s->batch, 1, sizeof *s->sequences);
  s->spans = (mhk__span *)mhk__place(p, s->batch, 1, sizeof *s->spans);
  s->fed = (mhk_index *)mhk__place(p, s->batch, 1, sizeof *s->fed);
  s->lengths = (mhk_index *)mhk__place(p, s->batch, 1, sizeof *s->lengths);
  s->tokens = (const int32_t **)mhk__place(p, s->batch, 1, sizeof *s->tokens);
  s->layers = (mhk__prepared *)mhk__place(p, c->n_layer, 1, sizeof *s->layers);
  for (int l = 0; l < c->n_layer; l++) {
    mhk_real *taps = NULL, *rate = NULL;
    if (c->mixer[l] != MHK_MIXER_ATTENTION) taps = (mhk_real *)mhk__place(p, c->d_conv, mhk__conv_channels(c), sizeof(mhk_real));
    if (c->mixer[l] == MHK_MIXER_MAMBA2) rate = (mhk_real *)mhk__place(p, c->ssm_heads, 1, sizeof(mhk_real));
    if (p->base) {
      s->layers[l].taps = taps;
      s->layers[l].rate = rate;
    }
  }
  snapshots = mhk__at_most((double)s->batch * (double)s->snapshots);
  kept = (mhk__snapshot *)mhk__place(p, snapshots, 1, sizeof *kept);
  numbers[0] = (mhk_real *)mhk__place(p, s->batch, state, sizeof(mhk_real));
  numbers[1] = (mhk_real *)mhk__place(p, s->batch, cache, sizeof(mhk_real));
  numbers[2] = (mhk_real *)mhk__place(p, snapshots, each, sizeof(mhk_real));
  if (!p->fits) return;
  for (mhk_index b = 0; p->base && b < s->batch; b++) {
    mhk__sequence *q = s->sequences + b;
    memset(q, 0, sizeof *q);
    q->state = numbers[0] + b * state;
    q->cache = numbers[1] + b * cache;
    q->snapshots = kept + b * s->snapshots;
    if (state) memset(q->state, 0, (size_t)state * sizeof(mhk_real));
    for (mhk_index i = 0; i < s->snapshots; i++) {
      q->snapshots[i].position = q->snapshots[i].rows = 0;
      q->snapshots[i].numbers = numbers[2] + (b * s->snapshots + i) * each;
    }
  }
  s->x = (mhk_real *)mhk__place(p, s->rows, D, sizeof(mhk_real));
  s->y = (mhk_real *)mhk__place(p, s->rows, D, sizeof(mhk_real));
  s->u = (mhk_real *)mhk__place(p, s->rows, D, sizeof(mhk_real));
  s->wide = (mhk_real *)mhk__place(p, s->wide_numbers, 1, sizeof(mhk_real));
  for (mhk_index i = 0; i < 2; i++) {
    const int dim = i ? c->ssm_rotary_dim : c->rotary_dim, used = i ? s->state_layers > 0 : s->attention_layers > 0;
    s->turn[i] = (double *)mhk__place(p, used ? dim / 2 : 0, 1, sizeof(double));
    s->turned[i] = (mhk_real *)mhk__place(p, s->rows, used ? dim : 0, sizeof(mhk_real));
  }
  s->starts = (mhk_index *)mhk__place(p, s->window ? s->rows : 0, 1, sizeof *s->starts);
  s->logits = (mhk_real *)mhk__place(p, s->batch, s->vocab, sizeof(mhk_real));
  if (s->model->tokenizer) {
    longest = mhk__longest_token(s->model->tokenizer);
    s->ids = (int32_t *)mhk__place(p, s->chunk, 1, sizeof *s->ids);
  }
  bytes = mhk__sampler_place(NULL, NULL, s->batch, s->vocab, s->recent, longest, s->stop_bytes);
  if (!bytes) p->fits = 0;
  void *sampler = mhk__place(p, (mhk_index)bytes, 1, 1);
  if (sampler) mhk__sampler_place(&s->sampler, sampler, s->batch, s->vocab, s->recent, longest, s->stop_bytes);
  chunk = (mhk__chunk *)mhk__place(p, 1, 1, sizeof *chunk + MHK__ALIGN);
  mhk__place(p, (mhk_index)work, 1, 1);
  if (p->base) {
    memset(chunk, 0, sizeof *chunk);
    chunk->room = work;
    s->work.first = s->work.current = chunk;
    s->work.kind = MHK__FIXED;
  }
}

/* Fills s with what a description means and returns the bytes of the block that a session of it takes, 0 and an error when it makes no sense. */
static size_t mhk__session_plan(const mhk_model *m, const mhk_session_desc *desc, mhk_session *s, size_t *work) {
  mhk_context *ctx = m->object.ctx;
  const mhk_config *c = &m->config;
  const mhk_index most = mhk__min(INT32_MAX, PTRDIFF_MAX / 64);
  mhk_session_desc d;
  mhk__layout p;
  mhk_index wide = c->d_mlp;
  memset(&d, 0, sizeof d);
  memset(s, 0, sizeof *s);
  if (desc) d = *desc;
  if (d.batch < 0 || d.capacity < 0 || d.window < 0 || d.chunk < 0 || d.snapshots < 0 || d.snapshot_every < 0 || d.recent < 0 ||
      d.batch > most || d.snapshots > most || d.chunk > most || d.recent > most || d.word_bytes > INT32_MAX / 64) {
    mhk_fail(
        ctx, MHK_ERROR_ARGUMENT,
        "a session cannot have batch %lld, capacity %lld, window %lld, chunk %lld, snapshots %lld, snapshot_every "
        "%lld, recent %lld: none may be negative, and batch, chunk, snapshots and recent not beyond %lld, nor "
        "word_bytes %.0f beyond 2^25",
        (long long)d.batch, (long long)d.capacity, (long long)d.window, (long long)d.chunk, (long long)d.snapshots,
        (long long)d.snapshot_every, (long long)d.recent, (long long)most, (double)d.word_bytes);
    return 0;
  }
  if (d.capacity > PTRDIFF_MAX / 64 || d.window > PTRDIFF_MAX / 64) {
    mhk_fail(ctx, MHK_ERROR_MEMORY,
             "a session with a capacity of %lld tokens and a window of %lld does not fit this machine's address space",
             (long long)d.capacity, (long long)d.window);
    return 0;
  }
  /* the session only reads the weights, except that a caller may write its own state */
  memcpy(&s->model, &m, sizeof m);
  s->workers = ctx->workers;
  s->batch = d.batch ? d.batch : 1;
  s->vocab = c->vocab_size;
  for (int l = 0; l < c->n_layer; l++) {
    if (c->mixer[l] == MHK_MIXER_ATTENTION)
      s->attention_layers++;
    else
      s->state_layers++;
    wide = mhk__max(wide, mhk__wide_row(c, c->mixer[l]));
  }
  s->recent = d.recent ? d.recent : 256;
  s->stop_bytes = d.stop_bytes ? d.stop_bytes : 64;
  s->word_bytes = d.word_bytes ? d.word_bytes : MHK__TEXT_WORD;
  s->no_start = d.no_start;
  s->given = d.memory != NULL;
  s->chunk = d.chunk ? d.chunk : 256;
  if (s->attention_layers) {
    s->window = d.window;
    s->capacity = d.capacity ? d.capacity : c->max_position > 0 ? c->max_position : 2048;
    if (s->window)
      s->piece = mhk__min(s->chunk, mhk__max(32, s->window));
    else
      s->chunk = mhk__min(s->chunk, s->capacity);
    s->cache_rows = s->window ? s->window - 1 + s->piece : s->capacity;
  }
  if (!s->piece) s->piece = s->chunk;
  s->rows = mhk__max(s->chunk, s->batch);
  const double state = (double)s->state_layers * ((double)mhk__conv_channels(c) * (c->d_conv - 1) + (double)mhk__d_inner(c) * c->d_state);
  s->state_numbers = s->state_layers ? mhk__at_most(state) : 0;
  s->snapshots = s->state_layers || s->window ? d.snapshots : 0;
  s->snapshot_every = s->snapshots ? d.snapshot_every : 0;
  s->kept_numbers =
      mhk__at_most((double)s->state_numbers + (s->window ? 2.0 * (double)(s->window - 1) * s->attention_layers * c->n_kv_head * c->head_dim : 0));
  s->wide_numbers = mhk__at_most((double)s->rows * ((double)wide + 1) + 16 * 8);
  if (s->wide_numbers >= 0) s->wide_numbers = mhk__max(s->wide_numbers, s->vocab);
  memset(&p, 0, sizeof p);
  p.fits = s->state_numbers >= 0 && s->kept_numbers >= 0 && s->wide_numbers >= 0 &&
           (double)s->cache_rows * (4.0 * MHK__LD(c->head_dim) + 512) < (double)(PTRDIFF_MAX / 64) &&
           (double)s->rows * (double)wide < (double)(PTRDIFF_MAX / 64);
  *work = p.fits ? mhk__session_work(s) : 0;
  if (p.fits) mhk__session_layout(s, &p, *work);
  if (!p.fits) {
    mhk_fail(ctx, MHK_ERROR_MEMORY, "a session of %lld sequences with %lld tokens of cache and chunks of %lld does not fit this machine's address space",
             (long long)s->batch, (long long)s->cache_rows, (long long)s->chunk);
    return 0;
  }
  return sizeof(mhk__chunk) + MHK__ALIGN + p.used;
}

MHKDEF size_t mhk_session_size(const mhk_model *m, const mhk_session_desc *desc) {
  mhk_session s;
  size_t work;
  return m && m->object.ctx->result == MHK_OK ? mhk__session_plan(m, desc, &s, &work) : 0;
}

static void mhk__session_prepare(mhk_session *s) {
  const mhk_config *c = &s->model->config;
  for (int l = 0; l < c->n_layer; l++) {
    const mhk__layer *y = s->model->layers + l;
    const mhk_index C = mhk__conv_channels(c);
    if (y->kind == MHK_MIXER_ATTENTION) continue;
    for (mhk_index w = 0; w < c->d_conv; w++)
      for (mhk_index i = 0; i < C; i++) s->layers[l].taps[w * C + i] = mhk_data(y->conv_w)[i * c->d_conv + w];
    for (mhk_index i = 0; y->kind == MHK_MIXER_MAMBA2 && i < c->ssm_heads; i++) s->layers[l].rate[i] = MHK__R(-exp((double)mhk_data(y->A_log)[i]));
  }
}

MHKDEF mhk_session *mhk_session_create(mhk_model *m, const mhk_session_desc *desc) {
  mhk_context *ctx;
  mhk_session plan;
  mhk__arena arena;
  mhk__layout p;
  size_t work;
  unsigned char *block;
  const int given = desc && desc->memory;
  if (!m || m->object.ctx->result != MHK_OK) return NULL;
  ctx = m->object.ctx;
  const size_t bytes = mhk__session_plan(m, desc, &plan, &work);
  if (!bytes) return NULL;
  memset(&arena, 0, sizeof arena);
  if (given) {
    if (desc->memory_bytes < bytes) {
      mhk_fail(ctx, MHK_ERROR_MEMORY, "the session was given a block of %.0f bytes and takes %.0f", (double)desc->memory_bytes, (double)bytes);
      return NULL;
    }
    block = (unsigned char *)desc->memory;
    block += (MHK__ALIGN - (uintptr_t)block % MHK__ALIGN) % MHK__ALIGN;
  } else {
    mhk__chunk *chunk = (mhk__chunk *)mhk__raw_alloc(ctx, bytes);
    if (!chunk) return NULL;
    memset(chunk, 0, sizeof *chunk);
    chunk->bytes = bytes;
    arena.first = arena.current = chunk;
    block = mhk__chunk_data(chunk);
  }
  mhk_session *s = (mhk_session *)(void *)block;
  *s = plan;
  memset(&p, 0, sizeof p);
  p.fits = 1;
  p.base = block;
  mhk__session_layout(s, &p, work);
  mhk__object_join(ctx, s, arena, NULL);
  for (int i = 0; i < 2; i++) {
    const int dim = i ? m->config.ssm_rotary_dim : m->config.rotary_dim, used = i ? s->state_layers > 0 : s->attention_layers > 0;
    for (int j = 0; used && j < dim / 2; j++) s->turn[i][j] = pow(m->config.rope_theta, -2.0 * (double)j / dim);
  }
  mhk__session_prepare(s);
  return s;
}

MHKDEF void mhk_session_destroy(mhk_session *s) { mhk__object_free(s); }

static int mhk__sequence_there(const mhk_session *s, mhk_index sequence) {
  if (!s || s->object.ctx->result != MHK_OK) return 0;
  if (sequence >= 0 && sequence < s->batch) return 1;
  mhk_fail(s->object.ctx, MHK_ERROR_ARGUMENT, "sequence %lld of a session that has sequences 0 to %lld", (long long)sequence, (long long)s->batch - 1);
  return 0;
}

static void mhk__sequence_reset(mhk_session *s, mhk_index sequence) {
  mhk__sequence *q = s->sequences + sequence;
  q->position = q->first = 0;
  q->fed = 0;
  if (s->state_numbers) memset(q->state, 0, (size_t)s->state_numbers * sizeof(mhk_real));
  for (mhk_index i = 0; i < s->snapshots; i++) q->snapshots[i].position = 0;
  mhk__sampler_reset(&s->sampler, sequence);
}

MHKDEF void mhk_session_reset(mhk_session *s) {
  for (mhk_index b = 0; s && b < s->batch; b++) mhk__sequence_reset(s, b);
}
MHKDEF mhk_result mhk_session_reset_one(mhk_session *s, mhk_index sequence) {
  if (mhk__sequence_there(s, sequence)) mhk__sequence_reset(s, sequence);
  return s ? s->object.ctx->result : MHK_ERROR_MEMORY;
}
MHKDEF mhk_index mhk_session_position(const mhk_session *s, mhk_index sequence) {
  return s && sequence >= 0 && sequence < s->batch ? s->sequences[sequence].position : 0;
}

/* where a state-space layer's numbers start among its sequence's; -1: none */
static mhk_index mhk__state_at(const mhk_session *s, int layer) {
  const mhk_config *c = &s->model->config;
  const mhk_index each = mhk__conv_channels(c) * (c->d_conv - 1) + mhk__d_inner(c) * c->d_state;
  mhk_index at = 0;
  if (layer < 0 || layer >= c->n_layer || c->mixer[layer] == MHK_MIXER_ATTENTION) return -1;
  for (int l = 0; l < layer; l++)
    if (c->mixer[l] != MHK_MIXER_ATTENTION) at += each;
  return at;
}
MHKDEF mhk_real *mhk_session_conv(mhk_session *s, mhk_index sequence, int layer) {
  const mhk_index at = s && sequence >= 0 && sequence < s->batch ? mhk__state_at(s, layer) : -1;
  return at < 0 ? NULL : s->sequences[sequence].state + at;
}
MHKDEF mhk_real *mhk_session_ssm(mhk_session *s, mhk_index sequence, int layer) {
  mhk_real *conv = mhk_session_conv(s, sequence, layer);
  return conv ? conv + mhk__conv_channels(&s->model->config) * (s->model->config.d_conv - 1) : NULL;
}

/* ---- a pass: all layers over the rows of some spans ---- */

/* While a session computes, its own memory serves as the context's scratch memory, and no more workers run than that was made for. */
typedef struct mhk__entered { mhk__arena scratch; int workers; } mhk__entered;
static mhk__entered mhk__session_enter(mhk_session *s) {
  mhk_context *ctx = s->object.ctx;
  mhk__entered e;
  e.scratch = ctx->scratch;
  e.workers = ctx->workers;
  ctx->scratch = s->work;
  if (ctx->workers > s->workers) ctx->workers = s->workers;
  return e;
}
static void mhk__session_leave(mhk_session *s, mhk__entered e) {
  mhk_context *ctx = s->object.ctx;
  ctx->scratch = e.scratch;
  ctx->workers = e.workers;
}

typedef struct mhk__pass {
  mhk_session *s;
  const mhk__layer *layer;
  const mhk__prepared *prepared;
  mhk_index spans, rows, state_at, from, part; /* from: of each span, tokens that are through the attention; part: the next ones at most */
  int attention_index;
  mhk_real *q, *k, *v, *o;                       /* attention */
  mhk_real *in, *xs, *bm, *cm, *decay, *out, *scaled; /* state-space: the projection; x, B, C after the convolution; log-decays; y; x times dt */
  mhk_index width, at_xbc, at_z, at_a;           /* columns of in */
  const mhk_real *norm_x, *norm_w, *norm_b;
  mhk_real *norm_y;
} mhk__pass;

#define MHK__ROWS_TASK 8    /* rows a task of elementwise work takes */
#define MHK__STREAM_BLOCK 256 /* channels a task of the convolution takes */

static void mhk__pass_rows(mhk_context *ctx, const mhk__pass *p, double cost, void (*body)(void *arg, mhk_index task, int worker)) {
  mhk__run(ctx, p, (p->rows + MHK__ROWS_TASK - 1) / MHK__ROWS_TASK, 1, 1, cost * (double)p->rows, body);
}

static void mhk__norm_task(void *arg, mhk_index task, int worker) {
  const mhk__job *job = (const mhk__job *)arg;
  const mhk__pass *p = (const mhk__pass *)job->args;
  const mhk_index D = p->s->model->config.d_model, last = mhk__min(p->rows, (task + 1) * MHK__ROWS_TASK);
  mhk_real mean, rstd;
  (void)worker;
  for (mhk_index r = task * MHK__ROWS_TASK; r < last; r++)
    job->ctx->kernels->norm(D, p->norm_x + r * D, p->norm_w, p->norm_b, MHK__R(p->s->model->config.norm_eps), p->norm_b != NULL, p->norm_y + r * D, &mean,
                            &rstd);
}

static void mhk__pass_norm(mhk_context *ctx, mhk__pass *p, const mhk_real *x, const mhk_tensor *w, const mhk_tensor *b, mhk_real *y) {
  p->norm_x = x;
  p->norm_w = mhk_data(w);
  p->norm_b = b ? mhk_data(b) : NULL;
  p->norm_y = y;
  mhk__pass_rows(ctx, p, 4.0 * (double)p->s->model->config.d_model, mhk__norm_task);
}

/* turns the first dim features of each of n heads of P, in place; t: dim/2 cosines, then sines */
static void mhk__turn_heads(mhk_index n, mhk_index P, int dim, const mhk_real *t, mhk_real *x) {
  const mhk_index half = dim / 2;
  const mhk_real *MHK__RESTRICT c = t, *MHK__RESTRICT s = t + half;
  for (mhk_index h = 0; h < n; h++, x += P) {
    mhk_real *MHK__RESTRICT low = x, *MHK__RESTRICT high = x + half;
    for (mhk_index i = 0; i < half; i++) {
      const mhk_real a = low[i], b = high[i];
      low[i] = a * c[i] - b * s[i];
      high[i] = b * c[i] + a * s[i];
    }
  }
}

/* angles of all rows, in double: one table serves all layers */
static void mhk__pass_turns(const mhk__pass *p) {
  mhk_session *s = p->s;
  for (int kind = 0; kind < 2; kind++) {
    const mhk_index dim = kind ? s->model->config.ssm_rotary_dim : s->model->config.rotary_dim;
    if (dim < 2 || !(kind ? s->state_layers : s->attention_layers)) continue;
    for (mhk_index i = 0; i < p->spans; i++)
      for (mhk_index t = 0; t < s->spans[i].n; t++) {
        const double position = (double)(s->sequences[s->spans[i].sequence].position + t);
        mhk_real *row = s->turned[kind] + (s->spans[i].row + t) * dim;
        for (mhk_index j = 0; j < dim / 2; j++) {
          row[j] = MHK__R(cos(position * s->turn[kind][j]));
          row[j + dim / 2] = MHK__R(sin(position * s->turn[kind][j]));
        }
      }
  }
}

static mhk_real *mhk__take_part(mhk_real **at, mhk_index numbers) {
  mhk_real *part = *at;
  *at += (numbers + 15) / 16 * 16;
  return part;
}

/* attention: norms of queries and keys, rotary */
static void mhk__queries_task(void *arg, mhk_index task, int worker) {
  const mhk__job *job = (const mhk__job *)arg;
  const mhk__pass *p = (const mhk__pass *)job->args;
  const mhk_config *c = &p->s->model->config;
  const mhk_index P = c->head_dim, last = mhk__min(p->rows, (task + 1) * MHK__ROWS_TASK);
  mhk_real mean, rstd;
  (void)worker;
  for (mhk_index r = task * MHK__ROWS_TASK; r < last; r++) {
    mhk_real *q = p->q + r * c->n_head * P, *k = p->k + r * c->n_kv_head * P;
    if (p->layer->qn_w) {
      for (mhk_index h = 0; h < c->n_head; h++)
        job->ctx->kernels->norm(P, q + h * P, mhk_data(p->layer->qn_w), mhk_data(p->layer->qn_b), MHK__R(c->norm_eps), 1, q + h * P, &mean, &rstd);
      for (mhk_index h = 0; h < c->n_kv_head; h++)
        job->ctx->kernels->norm(P, k + h * P, mhk_data(p->layer->kn_w), mhk_data(p->layer->kn_b), MHK__R(c->norm_eps), 1, k + h * P, &mean, &rstd);
    }
    if (c->rotary_dim > 1) {
      mhk__turn_heads(c->n_head, P, c->rotary_dim, p->s->turned[0] + r * c->rotary_dim, q);
      mhk__turn_heads(c->n_kv_head, P, c->rotary_dim, p->s->turned[0] + r * c->rotary_dim, k);
    }
  }
}

/* the caches of an attention layer: keys; values follow after cache_rows rows */
static mhk_real *mhk__cache_of(const mhk_session *s, mhk_index sequence, int attention_index) {
  const mhk_index kv = (mhk_index)s->model->config.n_kv_head * s->model->config.head_dim;
  return s->sequences[sequence].cache + 2 * s->cache_rows * kv * attention_index;
}

/* With a window: the position of the first row that stays when n tokens come to a cache that holds first .. position - 1. */
static mhk_index mhk__window_first(const mhk_session *s, mhk_index first, mhk_index position, mhk_index n) {
  if (!s->window || position - first + n <= s->cache_rows) return first;
  return mhk__max(first, position - (s->window - 1));
}

/* first row of a span's cache after from tokens of it: what mhk__window_first() came to, part by part */
static mhk_index mhk__first_after(const mhk_session *s, const mhk__span *span, mhk_index from) {
  const mhk__sequence *q = s->sequences + span->sequence;
  mhk_index first = q->first, t;
  for (t = 0; s->window && t < from; t += s->piece) first = mhk__window_first(s, first, q->position + t, mhk__min(s->piece, span->n - t));
  return first;
}

/* one head of one span's part */
static void mhk__attend_task(void *arg, mhk_index task, int worker) {
  const mhk__job *job = (const mhk__job *)arg;
  const mhk__pass *p = (const mhk__pass *)job->args;
  const mhk_session *s = p->s;
  const mhk_config *c = &s->model->config;
  const mhk__span *span = s->spans + task / c->n_head;
  const mhk_index n = mhk__min(p->part, span->n - p->from), row = span->row + p->from, kv = (mhk_index)c->n_kv_head * c->head_dim;
  mhk__attention_args a;
  if (n <= 0) return;
  memset(&a, 0, sizeof a);
  a.B = 1;
  a.T = n;
  a.H = c->n_head;
  a.G = c->n_kv_head;
  a.P = c->head_dim;
  a.offset = s->sequences[span->sequence].position + p->from - mhk__first_after(s, span, p->from + n);
  a.S = a.offset + n;
  a.q = p->q + row * a.H * a.P;
  a.y = p->o + row * a.H * a.P;
  a.k = mhk__cache_of(s, span->sequence, p->attention_index);
  a.v = a.k + s->cache_rows * kv;
  a.kv_batch = s->cache_rows * kv;
  a.start = s->window ? s->starts + row : NULL;
  if (n <= 4)
    job->ctx->kernels->attention_step(&a, 0, task % c->n_head, job->work + worker * job->each);
  else
    job->ctx->kernels->attention(&a, 0, task % c->n_head, job->work + worker * job->each);
}

static void mhk__pass_attention(mhk_context *ctx, mhk__pass *p) {
  mhk_session *s = p->s;
  const mhk_config *c = &s->model->config;
  const mhk__layer *y = p->layer;
  const mhk_index rows = p->rows, kv = (mhk_index)c->n_kv_head * c->head_dim, wide = (mhk_index)c->n_head * c->head_dim;
  mhk_real *at = s->wide;
  mhk_index i, t, longest = 0;
  p->q = mhk__take_part(&at, rows * wide);
  p->k = mhk__take_part(&at, rows * kv);
  p->v = mhk__take_part(&at, rows * kv);
  p->o = mhk__take_part(&at, rows * wide);
  mhk__apply(ctx, rows, s->u, y->q_w, y->q_b, 0, NULL, p->q);
  mhk__apply(ctx, rows, s->u, y->k_w, y->k_b, 0, NULL, p->k);
  mhk__apply(ctx, rows, s->u, y->v_w, y->v_b, 0, NULL, p->v);
  mhk__pass_rows(ctx, p, 2.0 * (double)(wide + kv), mhk__queries_task);
  for (i = 0; i < p->spans; i++) longest = mhk__max(longest, s->spans[i].n);
  p->part = s->window ? s->piece : s->rows;
  for (p->from = 0; p->from < longest; p->from += p->part) {
    double cost = 0;
    for (i = 0; i < p->spans; i++) {
      const mhk__span *span = s->spans + i;
      const mhk_index n = mhk__min(p->part, span->n - p->from), position = s->sequences[span->sequence].position + p->from, row = span->row + p->from;
      mhk_real *keys = mhk__cache_of(s, span->sequence, p->attention_index), *values = keys + s->cache_rows * kv;
      if (n <= 0) continue;
      const mhk_index before = mhk__first_after(s, span, p->from);
      const mhk_index first = mhk__window_first(s, before, position, n);
      if (first > before && position > first) { /* make room: what the window has left behind goes */
        memmove(keys, keys + (first - before) * kv, (size_t)((position - first) * kv) * sizeof(mhk_real));
        memmove(values, values + (first - before) * kv, (size_t)((position - first) * kv) * sizeof(mhk_real));
      }
      memcpy(keys + (position - first) * kv, p->k + row * kv, (size_t)(n * kv) * sizeof(mhk_real));
      memcpy(values + (position - first) * kv, p->v + row * kv, (size_t)(n * kv) * sizeof(mhk_real));
      for (t = 0; s->window && t < n; t++) s->starts[row + t] = mhk__max(0, position + t - (s->window - 1) - first);
      cost += (double)(n * (position - first + n)) * (double)wide;
    }
    mhk__run(ctx, p, p->spans * c->n_head, 1, mhk__span_heads_work(s), cost, mhk__attend_task);
  }
  mhk__apply(ctx, rows, p->o, y->dense_w, y->dense_b, 0, s->x, s->y);
}

static void mhk__stream_task(void *arg, mhk_index task, int worker) {
  const mhk__job *job = (const mhk__job *)arg;
  const mhk__pass *p = (const mhk__pass *)job->args;
  const mhk_session *s = p->s;
  const mhk_config *c = &s->model->config;
  const mhk_index E = mhk__d_inner(c), GN = (mhk_index)c->ssm_groups * c->d_state, blocks = (E + 2 * GN + MHK__STREAM_BLOCK - 1) / MHK__STREAM_BLOCK;
  const mhk__span *span = s->spans + task / blocks;
  const mhk_index c0 = task % blocks * MHK__STREAM_BLOCK, c1 = mhk__min(E + 2 * GN, c0 + MHK__STREAM_BLOCK);
  mhk_index run, at = 0;
  mhk__stream_args a;
  (void)worker;
  a.T = span->n;
  a.W = c->d_conv;
  a.C = E + 2 * GN;
  a.ldx = p->width;
  a.x = p->in + span->row * p->width + p->at_xbc;
  a.taps = p->prepared->taps;
  a.bias = p->layer->conv_b ? mhk_data(p->layer->conv_b) : NULL;
  a.state = s->sequences[span->sequence].state + p->state_at;
  a.silu = c->conv_silu;
  for (run = 0; run < 3; run++) { /* x, B, C go to arrays of their own */
    const mhk_index end = at + (run ? GN : E);
    a.ldy = end - at;
    a.first = at;
    a.y = (run == 0 ? p->xs : run == 1 ? p->bm : p->cm) + span->row * a.ldy;
    if (mhk__max(c0, at) < mhk__min(c1, end)) job->ctx->kernels->conv_stream(&a, mhk__max(c0, at), mhk__min(c1, end));
    at = end;
  }
}

static mhk_real mhk__softplus(mhk_real x) { return (x > 0 ? x : 0) + MHK__R(log1p(exp(-fabs((double)x)))); }

/* state-space: log-decays, rotary of B and C, step sizes */
static void mhk__decays_task(void *arg, mhk_index task, int worker) {
  const mhk__job *job = (const mhk__job *)arg;
  const mhk__pass *p = (const mhk__pass *)job->args;
  const mhk_config *c = &p->s->model->config;
  const mhk_index H = c->ssm_heads, P = c->ssm_head_dim, N = c->d_state, last = mhk__min(p->rows, (task + 1) * MHK__ROWS_TASK);
  const mhk_real low = MHK__R(c->dt_min), high = c->dt_max > 0 ? MHK__R(c->dt_max) : MHK__R(FLT_MAX);
  (void)worker;
  for (mhk_index r = task * MHK__ROWS_TASK; r < last; r++) {
    const mhk_real *a = p->in + r * p->width + p->at_a;
    if (p->layer->kind == MHK_MIXER_MAMBA2) {
      for (mhk_index h = 0; h < H; h++) {
        const mhk_real free = mhk__softplus(a[h] + mhk_data(p->layer->dt_bias)[h]), dt = free < low ? low : free > high ? high : free;
        p->decay[r * H + h] = dt * p->prepared->rate[h];
        for (mhk_index i = 0; i < P; i++) p->scaled[(r * H + h) * P + i] = p->xs[(r * H + h) * P + i] * dt;
      }
    } else {
      for (mhk_index h = 0; h < H; h++) p->decay[r * H + h] = -mhk__softplus(a[h]);
      if (c->ssm_rotary_dim > 1) {
        mhk__turn_heads(c->ssm_groups, N, c->ssm_rotary_dim, p->s->turned[1] + r * c->ssm_rotary_dim, p->bm + r * c->ssm_groups * N);
        mhk__turn_heads(c->ssm_groups, N, c->ssm_rotary_dim, p->s->turned[1] + r * c->ssm_rotary_dim, p->cm + r * c->ssm_groups * N);
      }
    }
  }
}

/* one head of one span */
static void mhk__scan_task(void *arg, mhk_index task, int worker) {
  const mhk__job *job = (const mhk__job *)arg;
  const mhk__pass *p = (const mhk__pass *)job->args;
  const mhk_session *s = p->s;
  const mhk_config *c = &s->model->config;
  const mhk__span *span = s->spans + task / c->ssm_heads;
  const mhk_index E = mhk__d_inner(c), GN = (mhk_index)c->ssm_groups * c->d_state;
  mhk__ssd_args a;
  memset(&a, 0, sizeof a);
  a.B = 1;
  a.T = span->n;
  a.H = c->ssm_heads;
  a.G = c->ssm_groups;
  a.P = c->ssm_head_dim;
  a.N = c->d_state;
  a.Q = mhk__min(MHK__SSD_CHUNK, span->n);
  a.span = 1;
  a.x = (p->scaled ? p->scaled : p->xs) + span->row * E;
  a.log_a = p->decay + span->row * a.H;
  a.b = p->bm + span->row * GN;
  a.c = p->cm + span->row * GN;
  a.d = p->scaled ? NULL : mhk_data(p->layer->D);
  a.final = s->sequences[span->sequence].state + p->state_at + mhk__conv_channels(c) * (c->d_conv - 1);
  a.initial = a.final;
  a.y = p->out + span->row * E;
  if (span->n <= MHK__STEPS)
    job->ctx->kernels->ssd_step(&a, 0, task % a.H, job->work + worker * job->each);
  else
    job->ctx->kernels->ssd(&a, 0, task % a.H, job->work + worker * job->each);
}

/* state-space: D of Mamba-2, gate, its norm */
static void mhk__gate_task(void *arg, mhk_index task, int worker) {
  const mhk__job *job = (const mhk__job *)arg;
  const mhk__pass *p = (const mhk__pass *)job->args;
  const mhk_config *c = &p->s->model->config;
  const mhk_index H = c->ssm_heads, P = c->ssm_head_dim, E = H * P, each = E / c->ssm_groups, last = mhk__min(p->rows, (task + 1) * MHK__ROWS_TASK);
  const mhk_real *bias = p->layer->z_bias ? mhk_data(p->layer->z_bias) : NULL;
  mhk_real mean, rstd;
  (void)worker;
  for (mhk_index r = task * MHK__ROWS_TASK; r < last; r++) {
    mhk_real *y = p->out + r * E;
    if (p->scaled)
      for (mhk_index h = 0; h < H; h++)
        for (mhk_index i = 0; i < P; i++) y[h * P + i] += mhk_data(p->layer->D)[h] * p->xs[(r * H + h) * P + i];
    job->ctx->kernels->gate(E, y, p->in + r * p->width + p->at_z, bias, y);
    for (mhk_index i = 0; p->layer->ssm_norm_w && i < c->ssm_groups; i++)
      job->ctx->kernels->norm(each, y + i * each, mhk_data(p->layer->ssm_norm_w) + i * each, NULL, MHK__R(c->norm_eps), 0, y + i * each, &mean, &rstd);
  }
}

static void mhk__pass_scan(mhk_context *ctx, mhk__pass *p) {
  mhk_session *s = p->s;
  const mhk_config *c = &s->model->config;
  const mhk__layer *y = p->layer;
  const mhk_index rows = p->rows, E = mhk__d_inner(c), GN = (mhk_index)c->ssm_groups * c->d_state, H = c->ssm_heads;
  const int mamba2 = y->kind == MHK_MIXER_MAMBA2;
  mhk_real *at = s->wide;
  p->width = 2 * E + 2 * GN + H;
  p->at_xbc = mamba2 ? E : 0;
  p->at_z = mamba2 ? 0 : E + 2 * GN;
  p->at_a = 2 * E + 2 * GN;
  p->in = mhk__take_part(&at, rows * p->width);
  p->xs = mhk__take_part(&at, rows * E);
  p->bm = mhk__take_part(&at, rows * GN);
  p->cm = mhk__take_part(&at, rows * GN);
  p->decay = mhk__take_part(&at, rows * H);
  p->out = mhk__take_part(&at, rows * E);
  p->scaled = mamba2 ? mhk__take_part(&at, rows * E) : NULL;
  mhk__apply(ctx, rows, s->u, y->in_w, y->in_b, 0, NULL, p->in);
  mhk__run(ctx, p, p->spans * ((E + 2 * GN + MHK__STREAM_BLOCK - 1) / MHK__STREAM_BLOCK), 1, 1, (double)(rows * c->d_conv) * (double)(E + 2 * GN),
           mhk__stream_task);
  mhk__pass_rows(ctx, p, 2.0 * (double)(E + GN), mhk__decays_task);
  mhk__run(ctx, p, p->spans * H, 1, mhk__span_heads_work(s), 2.0 * (double)(rows * E) * c->d_state, mhk__scan_task);
  mhk__pass_rows(ctx, p, 8.0 * (double)E, mhk__gate_task);
  mhk__apply(ctx, rows, p->out, y->out_w, y->out_b, 0, s->x, s->y);
}

/* All layers over the rows of the first spans; s->x then holds the residual stream. Moves states and caches on, not yet the positions. */
static void mhk__pass_layers(mhk_session *s, mhk_index spans, mhk_index rows) {
  mhk_context *ctx = s->object.ctx;
  const mhk_model *m = s->model;
  const mhk_index D = m->config.d_model, each = mhk__conv_channels(&m->config) * (m->config.d_conv - 1) + mhk__d_inner(&m->config) * m->config.d_state;
  mhk__pass p;
  memset(&p, 0, sizeof p);
  p.s = s;
  p.spans = spans;
  p.rows = rows;
  for (mhk_index i = 0; i < spans; i++)
    for (mhk_index t = 0; t < s->spans[i].n; t++) mhk_tensor_read(m->embedding, s->spans[i].tokens[t] * D, D, s->x + (s->spans[i].row + t) * D);
  mhk__pass_turns(&p);
  for (int l = 0; l < m->config.n_layer && ctx->result == MHK_OK; l++) {
    const mhk__layer *y = m->layers + l;
    p.layer = y;
    p.prepared = s->layers + l;
    mhk__pass_norm(ctx, &p, s->x, y->norm_w, y->norm_b, s->u);
    if (y->kind == MHK_MIXER_ATTENTION) {
      mhk__pass_attention(ctx, &p);
      p.attention_index++;
    } else {
      mhk__pass_scan(ctx, &p);
      p.state_at += each;
    }
    if (y->fc1_w) {
      mhk__apply(ctx, rows, s->u, y->fc1_w, y->fc1_b, 1, NULL, s->wide);
      mhk__apply(ctx, rows, s->wide, y->fc2_w, y->fc2_b, 0, s->y, s->x);
    } else {
      mhk_real *x = s->x;
      s->x = s->y;
      s->y = x;
    }
  }
}

/* ---- logits ---- */

typedef struct mhk__take {
  const unsigned char *const *wanted;
  mhk_logits_fn take;
  void *user;
} mhk__take;

static int mhk__wants(const mhk__take *take, mhk_index sequence, mhk_index index) {
  return take && (!take->wanted || !take->wanted[sequence] || take->wanted[sequence][index]);
}

/* norm and head of n rows of x: logits (n,V) */
static void mhk__pass_head(mhk_session *s, mhk_index n, const mhk_real *x, mhk_real *logits) {
  const mhk_model *m = s->model;
  mhk__pass p;
  memset(&p, 0, sizeof p);
  p.s = s;
  p.rows = n;
  mhk__pass_norm(s->object.ctx, &p, x, m->norm_w, m->norm_b, s->u);
  mhk__apply(s->object.ctx, n, s->u, m->head_w, m->head_b, 0, NULL, logits);
}

/* Walks the rows of a pass whose logits somebody wants, from (*i,*t) on; 0 at the end. done[b]: tokens of the feed before this pass. */
static int mhk__next_wanted(const mhk_session *s, mhk_index spans, const mhk__take *take, mhk_index *i, mhk_index *t) {
  for (; *i < spans; (*i)++, *t = 0)
    for (; *t < s->spans[*i].n; (*t)++) {
      const mhk_index b = s->spans[*i].sequence, index = s->fed[b] + *t;
      if (index + 1 == s->lengths[b] || mhk__wants(take, b, index)) return 1;
    }
  return 0;
}

/* Logits of a pass: of each feed's last token, and of those that take wants, as many at a time as the block has room for. */
static void mhk__pass_logits(mhk_session *s, mhk_index spans, const mhk__take *take) {
  const mhk_index D = s->model->config.d_model, V = s->vocab, room = mhk__min(s->rows, s->wide_numbers / V);
  mhk_index i = 0, t = 0;
  while (s->object.ctx->result == MHK_OK && mhk__next_wanted(s, spans, take, &i, &t)) {
    mhk_index i0 = i, t0 = t, n = 0, b = s->spans[i].sequence;
    mhk_real *logits = s->wide;
    while (n < room && mhk__next_wanted(s, spans, take, &i, &t)) {
      if (!take && s->spans[i].sequence != b + n) break;
      memcpy(s->y + n++ * D, s->x + (s->spans[i].row + t) * D, (size_t)D * sizeof(mhk_real));
      t++;
    }
    if (!take) logits = s->logits + b * V; /* last tokens of neighbours: straight to their place */
    mhk__pass_head(s, n, s->y, logits);
    for (n = 0; mhk__next_wanted(s, spans, take, &i0, &t0) && (i0 < i || (i0 == i && t0 < t)); n++, t0++) {
      const mhk_index index = s->fed[s->spans[i0].sequence] + t0;
      b = s->spans[i0].sequence;
      if (index + 1 == s->lengths[b]) {
        if (take) memcpy(s->logits + b * V, logits + n * V, (size_t)V * sizeof(mhk_real));
        s->sequences[b].fed = 1;
      }
      if (mhk__wants(take, b, index)) take->take(take->user, b, index, logits + n * V);
    }
  }
}

/* ---- feeding ---- */

static void mhk__keep(mhk_session *s, mhk_index sequence);

/* Everything that can be wrong with a feed, before anything is done. */
static int mhk__feed_makes_sense(mhk_session *s) {
  mhk_context *ctx = s->object.ctx;
  const mhk_index known = s->model->embedding->shape[0];
  for (mhk_index b = 0; b < s->batch; b++) {
    const mhk__sequence *q = s->sequences + b;
    if (s->lengths[b] < 0 || (s->lengths[b] > 0 && !s->tokens[b])) {
      mhk_fail(ctx, MHK_ERROR_ARGUMENT, "sequence %lld was fed %lld tokens%s", (long long)b, (long long)s->lengths[b], s->lengths[b] > 0 ? " at NULL" : "");
      return 0;
    }
    if (s->attention_layers && !s->window && s->lengths[b] > s->capacity - q->position) {
      mhk_fail(ctx, MHK_ERROR_STATE,
               "the key/value cache of sequence %lld is full: it holds %lld of %lld tokens and %lld more came; give the session a larger capacity or a window",
               (long long)b, (long long)q->position, (long long)s->capacity, (long long)s->lengths[b]);
      return 0;
    }
    if (s->lengths[b] > PTRDIFF_MAX / 64 - q->position) {
      mhk_fail(ctx, MHK_ERROR_STATE, "sequence %lld cannot count beyond %lld tokens", (long long)b, (long long)(PTRDIFF_MAX / 64));
      return 0;
    }
    for (mhk_index i = 0; i < s->lengths[b]; i++)
      if (s->tokens[b][i] < 0 || s->tokens[b][i] >= known) {
        mhk_fail(ctx, MHK_ERROR_ARGUMENT, "token %lld of sequence %lld is %d: the vocabulary has ids 0 to %lld", (long long)i, (long long)b,
                 (int)s->tokens[b][i], (long long)known - 1);
        return 0;
      }
  }
  return 1;
}

/* Feeds s->lengths tokens at s->tokens. A sequence goes in pieces that depend on itself only (chunk, snapshots), so that its numbers do not
   depend on its neighbours; a pass takes as many whole pieces as fit. */
static mhk_result mhk__feed(mhk_session *s, const mhk__take *take) {
  mhk_context *ctx = s->object.ctx;
  mhk_index spans, rows;
  if (!mhk__feed_makes_sense(s)) return ctx->result;
  if (s->model->trainable) mhk__session_prepare(s);
  mhk__entered entered = mhk__session_enter(s);
  for (mhk_index b = 0; b < s->batch; b++) s->fed[b] = 0;
  for (;;) {
    spans = rows = 0;
    for (mhk_index b = 0; b < s->batch; b++) {
      const mhk_index left = s->lengths[b] - s->fed[b];
      mhk_index n = mhk__min(left, s->chunk);
      if (s->snapshot_every) n = mhk__min(n, s->snapshot_every - s->sequences[b].position % s->snapshot_every);
      if (n == 0 || rows + n > s->rows) continue;
      s->spans[spans].sequence = b;
      s->spans[spans].row = rows;
      s->spans[spans].n = n;
      s->spans[spans++].tokens = s->tokens[b] + s->fed[b];
      rows += n;
    }
    if (spans == 0) break;
    mhk__pass_layers(s, spans, rows);
    mhk__pass_logits(s, spans, take);
    for (mhk_index i = 0; i < spans; i++) {
      mhk__sequence *q = s->sequences + s->spans[i].sequence;
      q->first = mhk__first_after(s, s->spans + i, s->spans[i].n);
      q->position += s->spans[i].n;
      s->fed[s->spans[i].sequence] += s->spans[i].n;
      mhk__sampler_fed(&s->sampler, s->spans[i].sequence, s->spans[i].tokens, s->spans[i].n);
      if (s->snapshot_every && q->position % s->snapshot_every == 0) mhk__keep(s, s->spans[i].sequence);
    }
    if (ctx->result != MHK_OK) break;
  }
  mhk__session_leave(s, entered);
  return ctx->result;
}

MHKDEF mhk_result mhk_feed(mhk_session *s, const int32_t *tokens, mhk_index n) {
  if (!s || s->object.ctx->result != MHK_OK) return s ? s->object.ctx->result : MHK_ERROR_MEMORY;
  if (n < 0 || n > PTRDIFF_MAX / 64 / s->batch)
    return mhk_fail(s->object.ctx, MHK_ERROR_ARGUMENT, "each of %lld sequences was fed %lld tokens",
                    (long long)s->batch, (long long)n);
  for (mhk_index b = 0; b < s->batch; b++) {
    s->tokens[b] = tokens ? tokens + b * n : NULL;
    s->lengths[b] = n;
  }
  return mhk__feed(s, NULL);
}

static int mhk__many(mhk_session *s, const int32_t *const *tokens, const mhk_index *lengths) {
  if (!s || s->object.ctx->result != MHK_OK) return 0;
  if (!tokens || !lengths) {
    mhk_fail(s->object.ctx, MHK_ERROR_ARGUMENT, "feeding many sequences takes tokens and lengths of each");
    return 0;
  }
  for (mhk_index b = 0; b < s->batch; b++) {
    s->tokens[b] = tokens[b];
    s->lengths[b] = lengths[b];
  }
  return 1;
}

MHKDEF mhk_result mhk_feed_many(mhk_session *s, const int32_t *const *tokens, const mhk_index *lengths) {
  return mhk__many(s, tokens, lengths) ? mhk__feed(s, NULL) : s ? s->object.ctx->result : MHK_ERROR_MEMORY;
}

MHKDEF mhk_result mhk_feed_logits(mhk_session *s, const int32_t *const *tokens, const mhk_index *lengths, const unsigned char *const *wanted,
                                  mhk_logits_fn take, void *user) {
  mhk__take t;
  t.wanted = wanted;
  t.take = take;
  t.user = user;
  return mhk__many(s, tokens, lengths) ? mhk__feed(s, take ? &t : NULL) : s ? s->object.ctx->result : MHK_ERROR_MEMORY;
}

typedef struct mhk__scoring { const mhk_session *s; const int32_t *tokens; mhk_index n; double *out; } mhk__scoring;

static void mhk__score_next(const mhk__scoring *x, mhk_index next, const mhk_real *logits) {
  x->out[next] = (double)logits[x->tokens[next]] - x->s->object.ctx->kernels->log_sum_exp(x->s->vocab, logits, MHK__R(1));
}
static void mhk__score_take(void *user, mhk_index sequence, mhk_index index, const mhk_real *logits) {
  const mhk__scoring *x = (const mhk__scoring *)user;
  (void)sequence;
  if (index + 1 < x->n) mhk__score_next(x, index + 1, logits);
}

MHKDEF mhk_result mhk_score(mhk_session *s, mhk_index sequence, const int32_t *tokens, mhk_index n, double *log_probabilities) {
  mhk__scoring x;
  mhk__take take;
  if (!mhk__sequence_there(s, sequence)) return s ? s->object.ctx->result : MHK_ERROR_MEMORY;
  if (n < 0 || (n > 0 && (!tokens || !log_probabilities)))
    return mhk_fail(s->object.ctx, MHK_ERROR_ARGUMENT, "scoring %lld tokens takes the tokens and room for as many numbers", (long long)n);
  if (n == 0) return MHK_OK;
  if (!s->sequences[sequence].fed)
    return mhk_fail(s->object.ctx, MHK_ERROR_STATE, "score: feed sequence %lld at least one token first", (long long)sequence);
  for (mhk_index b = 0; b < s->batch; b++) {
    s->tokens[b] = tokens;
    s->lengths[b] = b == sequence ? n : 0;
  }
  if (!mhk__feed_makes_sense(s)) return s->object.ctx->result;
  x.s = s;
  x.tokens = tokens;
  x.n = n;
  x.out = log_probabilities;
  if (tokens[0] < s->vocab) mhk__score_next(&x, 0, s->logits + sequence * s->vocab);
  take.wanted = NULL;
  take.take = mhk__score_take;
  take.user = &x;
  return mhk__feed(s, &take);
}

/* ids that the tokenizer has filled the buffer with */
static void mhk__feed_ids(void *user, const int32_t *ids, mhk_index n) { mhk_feed((mhk_session *)user, ids, n); }

MHKDEF mhk_result mhk_feed_bytes(mhk_session *s, const char *text, size_t length) {
  const unsigned char *bytes = (const unsigned char *)text;
  mhk_context *ctx;
  mhk__ids out;
  if (!s || s->object.ctx->result != MHK_OK) return s ? s->object.ctx->result : MHK_ERROR_MEMORY;
  ctx = s->object.ctx;
  mhk_tokenizer *k = s->model->tokenizer;
  if (!k && s->model->tokenizer_error)
    return mhk_fail(ctx, MHK_ERROR_STATE, "the model is without its tokenizer: %s", s->model->tokenizer_error);
  if (!k) return mhk_fail(ctx, MHK_ERROR_STATE, "the model has no tokenizer: put a tokenizer.json beside it, or feed token ids");
  if (!s->ids) return mhk_fail(ctx, MHK_ERROR_STATE, "the model was given its tokenizer after this session was made: make the session after it");
  if ((!text && length > 0) || length > (size_t)PTRDIFF_MAX)
    return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "feed_bytes was given no text");
  if (s->batch != 1)
    return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "feed_text serves sessions of one sequence, this one has %lld: feed token ids", (long long)s->batch);
  if (k->object.ctx != ctx) return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "the tokenizer is of another context: encode the text there and feed token ids");
  memset(&out, 0, sizeof out);
  out.ids = s->ids;
  out.capacity = s->chunk;
  out.full = mhk__feed_ids;
  out.user = s;
  out.longest = s->word_bytes;
  out.grows = !s->given;
  if (s->sequences[0].position == 0 && !s->no_start && mhk__starts_text(k, bytes, length)) mhk__ids_put(&out, k->start);
  mhk__entered entered = mhk__session_enter(s);
  mhk__encode_span(k, bytes, length, 0, &out);
  if (out.n > 0 && ctx->result == MHK_OK) mhk__feed_ids(s, s->ids, out.n);
  mhk__session_leave(s, entered);
  return ctx->result;
}

MHKDEF mhk_result mhk_feed_text(mhk_session *s, const char *text) {
  if (s && s->object.ctx->result == MHK_OK && !text)
    return mhk_fail(s->object.ctx, MHK_ERROR_ARGUMENT, "feed_text was given no text");
  return mhk_feed_bytes(s, text, text ? strlen(text) : 0);
}

MHKDEF const mhk_real *mhk_logits_of(const mhk_session *s, mhk_index sequence) {
  return s && sequence >= 0 && sequence < s->batch && s->sequences[sequence].fed ? s->logits + sequence * s->vocab : NULL;
}
MHKDEF const mhk_real *mhk_logits(const mhk_session *s) {
  for (mhk_index b = 0; s && b < s->batch; b++)
    if (!s->sequences[b].fed) return NULL;
  return s ? s->logits : NULL;
}

/* ---- snapshots ---- */

/* a copy of numbers that the next tokens see of a cache with a window: rows of keys and of values of each attention layer */
static mhk_index mhk__kept_rows(const mhk_session *s, const mhk__sequence *q) {
  return s->window ? mhk__min(q->position - q->first, s->window - 1) : 0;
}

static void mhk__keep(mhk_session *s, mhk_index sequence) {
  mhk__sequence *q = s->sequences + sequence;
  const mhk_index kv = (mhk_index)s->model->config.n_kv_head * s->model->config.head_dim, rows = mhk__kept_rows(s, q);
  mhk__snapshot *slot = NULL;
  if (q->position == 0) return; /* the start needs no slot */
  for (mhk_index i = 0; i < s->snapshots; i++) { /* the same place again, else a free one, else the oldest */
    mhk__snapshot *x = q->snapshots + i;
    if (x->position == q->position) {
      slot = x;
      break;
    }
    if (!slot || x->position < slot->position) slot = x;
  }
  if (!slot) return;
  slot->position = q->position;
  slot->rows = rows;
  mhk_real *to = slot->numbers;
  if (s->state_numbers) memcpy(to, q->state, (size_t)s->state_numbers * sizeof(mhk_real));
  to += s->state_numbers;
  for (int l = 0; rows && l < 2 * s->attention_layers; l++, to += rows * kv)
    memcpy(to, q->cache + (s->cache_rows * l + q->position - q->first - rows) * kv, (size_t)(rows * kv) * sizeof(mhk_real));
}

MHKDEF mhk_result mhk_session_snapshot(mhk_session *s, mhk_index sequence) {
  if (!mhk__sequence_there(s, sequence)) return s ? s->object.ctx->result : MHK_ERROR_MEMORY;
  if (s->snapshots == 0 && (s->state_layers || s->window))
    return mhk_fail(s->object.ctx, MHK_ERROR_STATE, "the session was made without snapshots: mhk_session_desc.snapshots says how many it keeps");
  mhk__keep(s, sequence);
  return MHK_OK;
}

MHKDEF mhk_index mhk_session_rewind(mhk_session *s, mhk_index sequence, mhk_index position) {
  const mhk__snapshot *best = NULL;
  if (!mhk__sequence_there(s, sequence)) return -1;
  mhk__sequence *q = s->sequences + sequence;
  if (position < 0 || position > q->position) {
    mhk_fail(s->object.ctx, MHK_ERROR_ARGUMENT, "sequence %lld cannot go back to %lld: it is at %lld", (long long)sequence, (long long)position,
             (long long)q->position);
    return -1;
  }
  if (position == q->position) return position;
  q->fed = 0;
  if (!s->state_layers && !s->window) {
    mhk__sampler_forget(&s->sampler, sequence, q->position - position);
    return q->position = position;
  }
  for (mhk_index i = 0; i < s->snapshots; i++) {
    mhk__snapshot *x = q->snapshots + i;
    if (x->position > position)
      x->position = 0; /* of a past that is given up */
    else if (x->position > 0 && (!best || x->position > best->position))
      best = x;
  }
  if (!best) {
    mhk__sequence_reset(s, sequence);
    return 0;
  }
  mhk__sampler_forget(&s->sampler, sequence, q->position - best->position);
  q->position = best->position;
  if (s->state_numbers) memcpy(q->state, best->numbers, (size_t)s->state_numbers * sizeof(mhk_real));
  const mhk_index kv = (mhk_index)s->model->config.n_kv_head * s->model->config.head_dim;
  if (s->window) q->first = best->position - best->rows;
  for (int l = 0; best->rows && l < 2 * s->attention_layers; l++)
    memcpy(q->cache + s->cache_rows * l * kv, best->numbers + s->state_numbers + best->rows * l * kv, (size_t)(best->rows * kv) * sizeof(mhk_real));
  return q->position;
}

/* ---- the state as a value ---- */

/* positions of keys and values that the next tokens of a sequence at position see: the last ones */
static mhk_index mhk__rows_needed(const mhk_session *s, mhk_index position) {
  return !s->attention_layers ? 0 : s->window ? mhk__min(position, s->window - 1) : position;
}

/* Whether a state at position with its last rows of keys and values can become a sequence of s. */
static int mhk__state_fits(mhk_session *s, mhk_index position, mhk_index rows) {
  const mhk_index needed = mhk__rows_needed(s, position);
  if (s->attention_layers && !s->window && position > s->capacity) {
    mhk_fail(s->object.ctx, MHK_ERROR_STATE, "the state has seen %lld tokens and the session's cache takes %lld", (long long)position, (long long)s->capacity);
    return 0;
  }
  if (rows < needed) {
    mhk_fail(s->object.ctx, MHK_ERROR_STATE,
             "the state holds keys and values of the last %lld tokens and this session's attention sees %lld: it was made with a smaller window",
             (long long)rows, (long long)needed);
    return 0;
  }
  return 1;
}

MHKDEF mhk_result mhk_session_copy(mhk_session *to, mhk_index to_sequence, const mhk_session *from, mhk_index from_sequence) {
  if (!mhk__sequence_there(to, to_sequence)) return to ? to->object.ctx->result : MHK_ERROR_MEMORY;
  if (!from || from_sequence < 0 || from_sequence >= from->batch)
    return mhk_fail(to->object.ctx, MHK_ERROR_ARGUMENT, "there is no sequence %lld to copy", (long long)from_sequence);
  if (from->model != to->model) return mhk_fail(to->object.ctx, MHK_ERROR_STATE, "a sequence can be copied between sessions of one model only");
  const mhk__sequence *a = from->sequences + from_sequence;
  mhk__sequence *b = to->sequences + to_sequence;
  if (a == b) return MHK_OK;
  const mhk_index rows = from->attention_layers ? a->position - a->first : 0;
  if (!mhk__state_fits(to, a->position, rows)) return to->object.ctx->result;
  const mhk_index needed = mhk__rows_needed(to, a->position);
  mhk__sequence_reset(to, to_sequence);
  b->position = a->position;
  b->first = a->position - needed;
  b->fed = a->fed;
  if (to->state_numbers) memcpy(b->state, a->state, (size_t)to->state_numbers * sizeof(mhk_real));
  const mhk_index kv = (mhk_index)to->model->config.n_kv_head * to->model->config.head_dim;
  for (int l = 0; needed && l < 2 * to->attention_layers; l++)
    memcpy(b->cache + to->cache_rows * l * kv, a->cache + (from->cache_rows * l + rows - needed) * kv, (size_t)(needed * kv) * sizeof(mhk_real));
  if (a->fed) memcpy(to->logits + to_sequence * to->vocab, from->logits + from_sequence * from->vocab, (size_t)to->vocab * sizeof(mhk_real));
  mhk__sampler_copy(&to->sampler, to_sequence, &from->sampler, from_sequence);
  return MHK_OK;
}

#define MHK__STATE_HEAD 64 /* bytes; then state numbers, keys and values, logits, tokens that penalties count, and 8 bytes of checksum */
#define MHK__STATE_VERSION 2

/* Where a state is written to: memory or a file, with the checksum so far. */
typedef struct mhk__state_out {
  unsigned char *to;
#ifndef MOHAWK_NO_STDIO
  mhk__output *file;
#endif
  uint64_t sum;
} mhk__state_out;

static void mhk__state_put(mhk__state_out *o, const void *bytes, size_t n) {
  o->sum = mhk__hash(o->sum, bytes, n);
#ifndef MOHAWK_NO_STDIO
  if (o->file) {
    mhk__output_write(o->file, bytes, n);
    return;
  }
#endif
  memcpy(o->to, bytes, n);
  o->to += n;
}

static void mhk__state_put_numbers(mhk__state_out *o, const mhk_real *x, mhk_index n) {
  unsigned char turned[64 * sizeof(mhk_real)];
  if (mhk__little_endian()) {
    if (n > 0) mhk__state_put(o, x, (size_t)n * sizeof(mhk_real));
    return;
  }
  for (mhk_index i = 0; i < n; i += 64) {
    const mhk_index some = mhk__min(64, n - i);
    for (mhk_index j = 0; j < some; j++) {
      const unsigned char *p = (const unsigned char *)(x + i + j);
      for (size_t k = 0; k < sizeof(mhk_real); k++) turned[(size_t)j * sizeof(mhk_real) + k] = p[sizeof(mhk_real) - 1 - k];
    }
    mhk__state_put(o, turned, (size_t)some * sizeof(mhk_real));
  }
}

/* bytes of a state with that many rows of keys and values and that much room for tokens; a double, for numbers out of files */
static double mhk__state_bytes(const mhk_session *s, double rows, double tokens) {
  const mhk_config *c = &s->model->config;
  return MHK__STATE_HEAD + 8 + 4.0 * tokens +
         ((double)s->state_numbers + 2.0 * rows * s->attention_layers * c->n_kv_head * c->head_dim + (double)s->vocab) * (double)sizeof(mhk_real);
}

MHKDEF size_t mhk_session_state_size(const mhk_session *s, mhk_index sequence) {
  if (!s || sequence < 0 || sequence >= s->batch) return 0;
  return (size_t)mhk__state_bytes(s, (double)mhk__rows_needed(s, s->sequences[sequence].position), (double)s->recent);
}

static void mhk__state_write(const mhk_session *s, mhk_index sequence, mhk__state_out *o) {
  const mhk__sequence *q = s->sequences + sequence;
  const mhk_index rows = mhk__rows_needed(s, q->position), kv = (mhk_index)s->model->config.n_kv_head * s->model->config.head_dim;
  unsigned char head[MHK__STATE_HEAD];
  mhk_index n_seen;
  const int32_t *seen = mhk__sampler_seen(&s->sampler, sequence, &n_seen);
  memset(head, 0, sizeof head);
  memcpy(head, "MHKSTATE", 8);
  mhk__put_bytes(head + 8, MHK__STATE_VERSION, 4);
  mhk__put_bytes(head + 12, sizeof(mhk_real), 4);
  mhk__put_bytes(head + 16, mhk__model_hash(s->model), 8);
  mhk__put_bytes(head + 24, (uint64_t)q->position, 8);
  mhk__put_bytes(head + 32, (uint64_t)rows, 8);
  head[40] = q->fed != 0;
  if (sequence == 0) {
    head[41] = (unsigned char)s->sampler.stream.n_held;
    memcpy(head + 42, s->sampler.stream.held, 4);
  }
  mhk__put_bytes(head + 48, (uint64_t)s->recent, 8);
  mhk__put_bytes(head + 56, (uint64_t)n_seen, 8);
  o->sum = MHK__HASH_START;
  mhk__state_put(o, head, sizeof head);
  mhk__state_put_numbers(o, q->state, s->state_numbers);
  for (int l = 0; rows && l < 2 * s->attention_layers; l++)
    mhk__state_put_numbers(o, q->cache + (s->cache_rows * l + q->position - q->first - rows) * kv, rows * kv);
  if (q->fed)
    mhk__state_put_numbers(o, s->logits + sequence * s->vocab, s->vocab);
  else
    for (mhk_index i = 0; i < s->vocab; i++) {
      const mhk_real zero = 0;
      mhk__state_put_numbers(o, &zero, 1);
    }
  for (mhk_index i = 0; i < s->recent; i++) {
    mhk__put_bytes(head, i < n_seen ? (uint32_t)seen[i] : 0, 4);
    mhk__state_put(o, head, 4);
  }
  mhk__put_bytes(head, o->sum, 8);
  mhk__state_put(o, head, 8);
}

MHKDEF mhk_result mhk_session_save(mhk_session *s, mhk_index sequence, void *state, size_t bytes) {
  mhk__state_out o;
  if (!mhk__sequence_there(s, sequence)) return s ? s->object.ctx->result : MHK_ERROR_MEMORY;
  if (!state || bytes < mhk_session_state_size(s, sequence))
    return mhk_fail(s->object.ctx, MHK_ERROR_ARGUMENT, "the state of sequence %lld takes %.0f bytes, there is room for %.0f", (long long)sequence,
                    (double)mhk_session_state_size(s, sequence), state ? (double)bytes : 0.0);
  memset(&o, 0, sizeof o);
  o.to = (unsigned char *)state;
  mhk__state_write(s, sequence, &o);
  return MHK_OK;
}

static mhk_result mhk__state_load(mhk_session *s, mhk_index sequence, const void *state, size_t bytes, const char *where) {
  mhk_context *ctx = s->object.ctx;
  const unsigned char *p = (const unsigned char *)state;
  const mhk_index kv = (mhk_index)s->model->config.n_kv_head * s->model->config.head_dim;
  mhk__sequence *q = s->sequences + sequence;
  if (!state || bytes < MHK__STATE_HEAD + 8 || memcmp(p, "MHKSTATE", 8) != 0)
    return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s is no session's state: it does not start like one", where);
  if (mhk__get_bytes(p + 8, 4) != MHK__STATE_VERSION)
    return mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "%s has version %.0f of a session's state and this is %d", where, (double)mhk__get_bytes(p + 8, 4),
                    MHK__STATE_VERSION);
  if (mhk__get_bytes(p + 12, 4) != sizeof(mhk_real))
    return mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "%s holds numbers of %.0f bytes and this build computes with %d", where, (double)mhk__get_bytes(p + 12, 4),
                    (int)sizeof(mhk_real));
  if (mhk__get_bytes(p + 16, 8) != mhk__model_hash(s->model))
    return mhk_fail(ctx, MHK_ERROR_STATE, "%s is the state of another model, or of this one with other weights", where);
  const uint64_t position = mhk__get_bytes(p + 24, 8);
  const uint64_t rows = mhk__get_bytes(p + 32, 8);
  const uint64_t room = mhk__get_bytes(p + 48, 8);
  const uint64_t seen = mhk__get_bytes(p + 56, 8);
  if (position > (uint64_t)(PTRDIFF_MAX / 64) || rows > position || seen > position || seen > room ||
      (double)bytes < mhk__state_bytes(s, (double)rows, (double)room) || (double)bytes > mhk__state_bytes(s, (double)rows, (double)room))
    return mhk_fail(ctx, MHK_ERROR_FORMAT,
                    "%s is damaged: it has %.0f bytes, and after %.0f tokens with keys and values of %.0f and %.0f remembered it should have %.0f", where,
                    (double)bytes, (double)position, (double)rows, (double)seen, mhk__state_bytes(s, (double)rows, (double)room));
  if (mhk__get_bytes(p + bytes - 8, 8) != mhk__hash(MHK__HASH_START, p, bytes - 8))
    return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s is damaged: its checksum is wrong", where);
  if (p[40] > 1 || p[41] > 3)
    return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s is damaged: it claims %d logits and %d bytes of an unfinished character", where, p[40], p[41]);
  if (!mhk__state_fits(s, (mhk_index)position, (mhk_index)rows)) return ctx->result;
  const mhk_index needed = mhk__rows_needed(s, (mhk_index)position);
  mhk__sequence_reset(s, sequence);
  q->position = (mhk_index)position;
  q->first = q->position - needed;
  q->fed = p[40];
  if (sequence == 0) {
    s->sampler.stream.n_held = p[41];
    memcpy(s->sampler.stream.held, p + 42, 4);
  }
  p += MHK__STATE_HEAD;
  mhk__unpack(MHK_REAL, p, s->state_numbers, q->state);
  p += (size_t)s->state_numbers * sizeof(mhk_real);
  for (int l = 0; rows && l < 2 * s->attention_layers; l++, p += (size_t)((mhk_index)rows * kv) * sizeof(mhk_real))
    mhk__unpack(MHK_REAL, p + (size_t)(((mhk_index)rows - needed) * kv) * sizeof(mhk_real), needed * kv, q->cache + s->cache_rows * l * kv);
  mhk__unpack(MHK_REAL, p, s->vocab, s->logits + sequence * s->vocab);
  p += (size_t)s->vocab * sizeof(mhk_real);
  for (mhk_index i = 0; i < (mhk_index)seen; i++, p += 4) {
    const int32_t token = (int32_t)mhk__get_bytes(p, 4);
    mhk__sampler_fed(&s->sampler, sequence, &token, 1);
  }
  return MHK_OK;
}

MHKDEF mhk_result mhk_session_load(mhk_session *s, mhk_index sequence, const void *state, size_t bytes) {
  if (!mhk__sequence_there(s, sequence)) return s ? s->object.ctx->result : MHK_ERROR_MEMORY;
  return mhk__state_load(s, sequence, state, bytes, "the block");
}

#ifndef MOHAWK_NO_STDIO
MHKDEF mhk_result mhk_session_save_file(mhk_session *s, mhk_index sequence, const char *path) {
  mhk__output file;
  mhk__state_out o;
  if (!mhk__sequence_there(s, sequence)) return s ? s->object.ctx->result : MHK_ERROR_MEMORY;
  if (!mhk__path_fits(s->object.ctx, path)) return s->object.ctx->result;
  mhk__output_open(&file, path);
  memset(&o, 0, sizeof o);
  o.file = &file;
  mhk__state_write(s, sequence, &o);
  return mhk__output_close_or_fail(s->object.ctx, &file);
}

MHKDEF mhk_result mhk_session_load_file(mhk_session *s, mhk_index sequence, const char *path) {
  mhk__bytes bytes;
  if (!mhk__sequence_there(s, sequence)) return s ? s->object.ctx->result : MHK_ERROR_MEMORY;
  if (!mhk__path_fits(s->object.ctx, path) || !mhk__bytes_open_or_fail(s->object.ctx, path, &bytes)) return s->object.ctx->result;
  mhk__state_load(s, sequence, bytes.data, bytes.size, path);
  mhk__bytes_close(&bytes);
  return s->object.ctx->result;
}
#endif

MHKDEF const char *mhk_text_out(mhk_session *s) { return s && s->sampler.text ? s->sampler.text : ""; }
MHKDEF mhk_stop mhk_stopped(const mhk_session *s) { return s ? s->sampler.stop : MHK_STOP_NONE; }

MHKDEF const char *mhk_text_rest(mhk_session *s) {
  if (s) mhk__sampler_text(&s->sampler, NULL, "", 0, 1);
  return mhk_text_out(s);
}

/* whether the settings make sense for the session */
static int mhk__sampling_fits(mhk_session *s, const mhk_sampling *how) {
  char wrong[MHK__SETTING];
  mhk__sampling_wrong(how, s->vocab, wrong);
  if (!*wrong && how->penalty_tokens > s->sampler.window)
    mhk__print(wrong, sizeof wrong, "penalty_tokens is %d, and the session remembers %lld (recent of mhk_session_desc)",
               how->penalty_tokens, (long long)s->sampler.window);
  for (int k = 0; !*wrong && k < how->n_stop_strings; k++)
    if (strlen(how->stop_strings[k]) > s->sampler.stop_bytes)
      mhk__print(
          wrong, sizeof wrong,
          "stop string %d is longer than the %lld bytes the session was made for (stop_bytes of mhk_session_desc)", k,
          (long long)s->sampler.stop_bytes);
  if (*wrong) mhk_fail(s->object.ctx, MHK_ERROR_ARGUMENT, "sample: %s", wrong);
  return !*wrong;
}

/* Before draws: whether that is so and there are logits; the session then has its seed. */
static int mhk__draw_ready(mhk_session *s, const mhk_sampling *how) {
  mhk_context *ctx = s->object.ctx;
  if (ctx->result != MHK_OK) return 0;
  if (!mhk_logits(s)) {
    mhk_fail(ctx, MHK_ERROR_STATE, "sample: feed at least one token first");
    return 0;
  }
  if (!mhk__sampling_fits(s, how)) return 0;
  if (how->seed && how->seed != s->sampler.seed) {
    s->sampler.seed = how->seed;
    mhk__rng_seed(&s->sampler.rng, how->seed);
  }
  return 1;
}

/* says why nothing can be drawn from logits; returns 0 */
static int mhk__draw_fails(mhk_session *s, const mhk_real *logits) {
  mhk_index i;
  for (i = 0; i < s->vocab; i++)
    if (!(fabs((double)logits[i]) <= DBL_MAX)) break;
  if (i < s->vocab)
    mhk_fail(s->object.ctx, MHK_ERROR_STATE, "sample: logit %lld is not a number: the weights or the state are broken", (long long)i);
  else
    mhk_fail(s->object.ctx, MHK_ERROR_ARGUMENT, "sample: bias and penalties leave no token possible");
  return 0;
}

/* a draw for each row; how has been filled in */
static int mhk__draw_all(mhk_session *s, const mhk_sampling *how, int32_t *tokens) {
  if (!mhk__draw_ready(s, how)) return 0;
  for (mhk_index b = 0; b < s->batch; b++) {
    const mhk_real *row = s->logits + b * s->vocab;
    tokens[b] = mhk__sampler_draw(&s->sampler, b, row, how, mhk__rng_uniform(&s->sampler.rng));
    if (tokens[b] < 0) return mhk__draw_fails(s, row);
  }
  return 1;
}

MHKDEF mhk_result mhk_sample_batch(mhk_session *s, const mhk_sampling *sampling, int32_t *tokens) {
  mhk_sampling usual;
  if (!s) return MHK_ERROR_MEMORY;
  if (!tokens)
    return mhk_fail(s->object.ctx, MHK_ERROR_ARGUMENT, "sample_batch: there is no room (NULL) for the tokens");
  if (!mhk__draw_all(s, mhk__sampling_or(sampling, &usual), tokens)) return s->object.ctx->result;
  return mhk_feed(s, tokens, 1);
}

static void mhk__say_nothing(mhk_session *s) {
  s->sampler.stop = MHK_STOP_NONE;
  if (s->sampler.text) s->sampler.text[0] = 0;
}

/* Takes a drawn token into the text: returns 0 where the text ends. */
static int mhk__session_say(mhk_session *s, const mhk_sampling *how, int32_t token) {
  mhk_tokenizer *k = s->model->tokenizer;
  size_t length = 0;
  if (mhk__model_ends_at(s->model, token)) s->sampler.stop = MHK_STOP_END;
  for (int i = 0; i < how->n_stop_tokens && s->sampler.stop == MHK_STOP_NONE; i++)
    if (how->stop_tokens[i] == token) s->sampler.stop = MHK_STOP_TOKEN;
  if (s->sampler.stop != MHK_STOP_NONE) {
    mhk__sampler_text(&s->sampler, how, "", 0, 1);
    return 0;
  }
  const char *bytes = k ? mhk_token_bytes(k, token, &length) : NULL;
  if (!bytes) return 1;
  if (s->sampler.stop_bytes + 3 * (length + 4) + 2 > s->sampler.text_room) {
    mhk_fail(s->object.ctx, MHK_ERROR_STATE, "sample: token %d is longer than those of the tokenizer that the session was made with", (int)token);
    return 0;
  }
  if (mhk__sampler_text(&s->sampler, how, bytes, length, 0)) s->sampler.stop = MHK_STOP_STRING;
  return s->sampler.stop == MHK_STOP_NONE;
}

MHKDEF int32_t mhk_sample(mhk_session *s, const mhk_sampling *sampling) {
  mhk_sampling usual;
  int32_t token;
  if (!s) return -1;
  mhk__say_nothing(s);
  if (s->batch != 1) {
    mhk_fail(s->object.ctx, MHK_ERROR_ARGUMENT, "sample serves sessions of one sequence, this one has %lld: use mhk_sample_batch()", (long long)s->batch);
    return -1;
  }
  sampling = mhk__sampling_or(sampling, &usual);
  if (!mhk__draw_all(s, sampling, &token) || !mhk__session_say(s, sampling, token)) return -1;
  return mhk_feed(s, &token, 1) == MHK_OK ? token : -1;
}

/* ---- speculative decoding ---- */

#define MHK__MOST_DRAFTED 16

/* A round starts with the sessions at the tokens before round[0], which was returned last (pending); the draft also lacks the lead tokens before it. The
   draft then writes round[1..drafted], the target judges them, and round[1..n) are what is accepted and one token more, drawn by the target. */
struct mhk_speculation {
  mhk__object object;
  mhk_session *target, *draft;
  int fixed, next, lead;                        /* lead: 0 or 1 */
  int n, said;                                  /* tokens of the round; how many of them were returned, the pending one among them; n 0: no round */
  int accepted, broken;                         /* of this round; broken: a token had no distribution */
  int32_t before, round[MHK__MOST_DRAFTED + 2]; /* before: the lead token */
  mhk_index target_at, draft_at;                /* positions at the start of the round */
  mhk_real *target_state, *draft_states;        /* recurrent numbers at the start of the round; of the draft after each of its tokens too */
  double *q;                                    /* (MOST_DRAFTED,V): what the draft drew from */
  int32_t *seen;                                /* the target's tokens for penalties at the start, then the round's */
  mhk_index n_seen;
  const mhk_sampling *how;                      /* while a round is computed */
  int drafted;
  mhk_speculation_counts counts;
};

MHKDEF mhk_speculation *mhk_speculation_create(const mhk_speculation_desc *desc) {
  mhk_speculation *x;
  mhk_context *ctx;
  mhk__arena *arena;
  if (!desc || !desc->target || mhk_failed(ctx = desc->target->object.ctx)) return NULL;
  mhk_session *t = desc->target;
  mhk_session *d = desc->draft;
  if (!d || d->object.ctx != ctx || d == t || t->batch != 1 || d->batch != 1 || t->window || d->window || t->vocab != d->vocab || desc->tokens < 0 ||
      desc->tokens > MHK__MOST_DRAFTED) {
    mhk_fail(ctx, MHK_ERROR_ARGUMENT,
             "speculation takes two sessions of one context, each of one sequence without a window, with the same vocabulary, and drafts of up to %d tokens",
             MHK__MOST_DRAFTED);
    return NULL;
  }
  x = (mhk_speculation *)mhk__object_new(ctx, sizeof *x, NULL);
  if (!x) return NULL;
  arena = &x->object.arena;
  x->target = t;
  x->draft = d;
  x->fixed = desc->tokens;
  x->next = desc->tokens ? desc->tokens : 4;
  const mhk_index n_slots = x->fixed ? x->fixed : MHK__MOST_DRAFTED;
  x->target_state = (mhk_real *)mhk__arena_zeros(ctx, arena, t->state_numbers + 1, sizeof(mhk_real));
  x->draft_states = d->state_numbers < PTRDIFF_MAX / 32 ? (mhk_real *)mhk__arena_zeros(ctx, arena, d->state_numbers * n_slots + 1, sizeof(mhk_real)) : NULL;
  x->q = (double *)mhk__arena_zeros(ctx, arena, t->vocab * n_slots, sizeof(double));
  x->seen = (int32_t *)mhk__arena_zeros(ctx, arena, t->sampler.window + MHK__MOST_DRAFTED + 2, sizeof(int32_t));
  if (ctx->result != MHK_OK) {
    mhk__object_free(x);
    return NULL;
  }
  return x;
}

MHKDEF mhk_speculation_counts mhk_speculation_count(const mhk_speculation *x) {
  mhk_speculation_counts none;
  memset(&none, 0, sizeof none);
  return x ? x->counts : none;
}

/* Takes a session back to a position that it has passed, where its recurrent numbers were state. */
static void mhk__step_back(mhk_session *s, mhk_index position, const mhk_real *state) {
  mhk__sequence *q = s->sequences;
  if (q->position == position) return;
  mhk__sampler_forget(&s->sampler, 0, q->position - position);
  for (mhk_index i = 0; i < s->snapshots; i++)
    if (q->snapshots[i].position > position) q->snapshots[i].position = 0;
  q->position = position;
  q->fed = 0;
  if (s->state_numbers) memcpy(q->state, state, (size_t)s->state_numbers * sizeof(mhk_real));
}

static void mhk__keep_state(const mhk_session *s, mhk_real *state) {
  if (s->state_numbers) memcpy(state, s->sequences[0].state, (size_t)s->state_numbers * sizeof(mhk_real));
}

MHKDEF mhk_result mhk_speculation_finish(mhk_speculation *x) {
  int32_t tokens[MHK__MOST_DRAFTED + 3];
  if (!x) return MHK_ERROR_MEMORY;
  if (x->object.ctx->result != MHK_OK || x->n == 0) return x->object.ctx->result;
  const int n = x->said;
  x->n = 0;
  tokens[0] = x->before;
  memcpy(tokens + 1, x->round, (size_t)n * sizeof *tokens);
  mhk__step_back(x->target, x->target_at, x->target_state);
  mhk__step_back(x->draft, x->draft_at, x->draft_states);
  mhk_feed(x->target, tokens + 1, n);
  return mhk_feed(x->draft, tokens + 1 - x->lead, n + x->lead);
}

MHKDEF void mhk_speculation_destroy(mhk_speculation *x) {
  if (!x) return;
  mhk_speculation_finish(x);
  mhk__object_free(x);
}

/* probabilities of the token that follows round[0..n] */
static int mhk__speculation_p(mhk_speculation *x, mhk_session *s, const mhk_real *logits, int n, double *p) {
  const mhk_index have = x->n_seen + n + 1, some = mhk__min(have, x->target->sampler.window);
  return mhk_probabilities(logits, s->vocab, x->how, x->seen + have - some, some, p, s->sampler.order) > 0 || mhk__draw_fails(s, logits);
}

/* The target's logits after round[index]: accepts the drafted token that follows with probability min(1, p/q), else draws from what p has more than q. */
static void mhk__judge(void *user, mhk_index sequence, mhk_index index, const mhk_real *logits) {
  mhk_speculation *x = (mhk_speculation *)user;
  mhk_session *t = x->target;
  double *p = t->sampler.p, *q = x->q + index * t->vocab, left = 0;
  (void)sequence;
  if (x->broken || index > x->accepted) return; /* a token before this one was refused */
  if (!mhk__speculation_p(x, t, logits, (int)index, p)) {
    x->broken = 1;
    return;
  }
  if (index < x->drafted) {
    const int32_t token = x->round[index + 1];
    if (mhk__rng_uniform(&t->sampler.rng) * q[token] < p[token]) {
      x->accepted++;
      return;
    }
    for (mhk_index i = 0; i < t->vocab; i++) {
      q[i] = p[i] > q[i] ? p[i] - q[i] : 0;
      left += q[i];
    }
    if (left > 0) p = q; /* else the two differ by rounding only */
  }
  x->round[x->accepted + 1] = mhk_draw(p, t->vocab, mhk__rng_uniform(&t->sampler.rng) * (p == q ? left : 1));
}

/* a round: drafts after the pending token, and has them judged */
static int mhk__speculation_round(mhk_speculation *x, const mhk_sampling *how) {
  mhk_session *t = x->target, *d = x->draft;
  const mhk_index room = t->attention_layers ? t->capacity - t->sequences[0].position : PTRDIFF_MAX;
  const mhk_index draft_room = d->attention_layers ? d->capacity - d->sequences[0].position : PTRDIFF_MAX;
  const int32_t *tokens = x->round, *seen;
  mhk__take take;
  x->drafted = (int)mhk__min(x->next, mhk__max(0, mhk__min(room - 1, draft_room - x->lead)));
  x->how = how;
  x->accepted = x->broken = 0;
  x->said = 1;
  x->target_at = t->sequences[0].position;
  x->draft_at = d->sequences[0].position;
  mhk__keep_state(t, x->target_state);
  seen = mhk__sampler_seen(&t->sampler, 0, &x->n_seen);
  memcpy(x->seen, seen, (size_t)x->n_seen * sizeof *seen);
  x->seen[x->n_seen] = x->round[0];
  for (int i = 0; i < x->drafted; i++) { /* the last token is not fed: it may be refused */
    double *q = x->q + i * t->vocab;
    int32_t some[2];
    mhk__keep_state(d, x->draft_states + i * d->state_numbers);
    some[0] = x->before;
    some[1] = x->round[i];
    if (mhk_feed(d, i ? some + 1 : some + 1 - x->lead, i ? 1 : 1 + x->lead) != MHK_OK) return 0;
    if (!mhk__speculation_p(x, d, d->logits, i, q)) return 0;
    x->round[i + 1] = mhk_draw(q, t->vocab, mhk__rng_uniform(&t->sampler.rng));
    x->seen[x->n_seen + 1 + i] = x->round[i + 1];
  }
  take.wanted = NULL;
  take.take = mhk__judge;
  take.user = x;
  mhk_index length = x->drafted + 1;
  if (!mhk__many(t, &tokens, &length)) return 0;
  if (x->drafted) {
    if (mhk__feed(t, &take) != MHK_OK) return 0;
  } else if (mhk__feed(t, NULL) == MHK_OK)
    mhk__judge(x, 0, 0, t->logits);
  if (x->broken || x->object.ctx->result != MHK_OK) return 0;
  x->n = x->accepted + 2;
  x->counts.passes++;
  x->counts.drafted += x->drafted;
  x->counts.accepted += x->accepted;
  if (!x->fixed && x->drafted) x->next = x->accepted == x->drafted ? (int)mhk__min(x->next + 2, MHK__FEW - 1) : (int)mhk__max(x->next - 1, 1);
  return 1;
}

/* What a round has said becomes the sessions' past: both at the tokens before the last one, which is pending now. */
static void mhk__speculation_settle(mhk_speculation *x) {
  mhk_session *t = x->target, *d = x->draft;
  const int known = x->n - 1; /* tokens of the round that the target keeps */
  const int lead = x->lead;
  if (t->state_numbers && x->accepted < x->drafted) { /* recurrent numbers cannot be taken back in part */
    mhk__step_back(t, x->target_at, x->target_state);
    mhk_feed(t, x->round, known);
  } else
    mhk__step_back(t, x->target_at + known, x->target_state); /* nothing of the recurrent numbers: there are none, or all is accepted */
  if (x->drafted == 0) { /* no room to draft: the draft keeps up */
    if (lead) mhk_feed(d, &x->before, 1);
    mhk_feed(d, x->round, 1);
    x->lead = 0;
  } else if (x->accepted < x->drafted) {
    mhk__step_back(d, x->draft_at + lead + known, x->draft_states + known * d->state_numbers);
    x->lead = 0;
  } else {
    x->before = x->round[x->drafted];
    x->lead = 1;
  }
  x->round[0] = x->round[known];
}

MHKDEF int32_t mhk_speculate(mhk_speculation *x, const mhk_sampling *sampling) {
  mhk_sampling usual;
  int32_t token;
  if (!x) return -1;
  mhk_session *t = x->target;
  mhk__say_nothing(t);
  if (x->object.ctx->result != MHK_OK) return -1;
  sampling = mhk__sampling_or(sampling, &usual);
  if (!mhk__sampling_fits(t, sampling)) return -1;
  if (x->n == 0) { /* the first token comes from logits that are there already */
    if (!t->sequences[0].fed || !x->draft->sequences[0].fed) {
      mhk_fail(x->object.ctx, MHK_ERROR_STATE, "speculate: feed both sessions the same tokens first, at least one");
      return -1;
    }
    if (!mhk__draw_all(t, sampling, &token)) return -1;
    if (!mhk__session_say(t, sampling, token)) return -1;
    x->counts.tokens++;
    x->round[0] = token;
    x->lead = 0;
    x->n = x->said = 1;
    x->target_at = t->sequences[0].position;
    x->draft_at = x->draft->sequences[0].position;
    mhk__keep_state(t, x->target_state);
    mhk__keep_state(x->draft, x->draft_states);
    return token;
  }
  if (x->said == x->n) {
    if (!mhk__draw_ready(t, sampling)) return -1;
    if (x->n > 1) mhk__speculation_settle(x);
    if (!mhk__speculation_round(x, sampling)) return -1;
  }
  token = x->round[x->said];
  if (!mhk__session_say(t, sampling, token)) {
    mhk_speculation_finish(x);
    return -1;
  }
  x->said++;
  x->counts.tokens++;
  return token;
}
#endif /* MOHAWK_IMPLEMENTATION */
#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS) && !defined(MOHAWK_NO_TRAINING)
/* ====================================================================================================
   MOHAWK: text, losses of the three stages, optimiser, schedule, trainer, checkpoints, evaluation  >>mohawk
   ==================================================================================================== */

#define MHK__END_TEXT "<|endoftext|>"
#define MHK__UPDATE_BLOCK 16384 /* numbers a task of the optimiser handles: fixed, so that sums do not depend on the threads */
#define MHK__SAMPLE_BATCH 64    /* sequences a model writes in step */
#define MHK__LOGITS_PIECE ((mhk_index)1 << 21) /* logits that evaluation holds at once, of each model */

static int mhk__is_finite(double x) { return x - x == 0.0; }

/* ---------------------------------------------------------------------------------------- text */

struct mhk_text {
  mhk__object object;
  int32_t *tokens;
  mhk_index n;
  mhk_index *start; /* n_documents + 1: where each document begins, and n */
  mhk_index n_documents;
  int32_t largest; /* token */
};

/* An array that grows, of the context's allocator; free it on every path. */
typedef struct mhk__pile {
  unsigned char *data;
  mhk_index n, capacity;
  size_t size; /* of one element */
} mhk__pile;

static void mhk__pile_free(mhk_context *ctx, mhk__pile *p) {
  if (p->data) mhk__raw_release(ctx, p->data, (size_t)p->capacity * p->size);
  p->data = NULL;
  p->n = p->capacity = 0;
}

/* room for extra more elements; 0 when there is none */
static int mhk__pile_room(mhk_context *ctx, mhk__pile *p, mhk_index extra) {
  mhk_index capacity;
  if (ctx->result != MHK_OK) return 0;
  if (extra <= p->capacity - p->n) return 1;
  if (extra > PTRDIFF_MAX / 4 || p->capacity > PTRDIFF_MAX / 4) {
    mhk_fail(ctx, MHK_ERROR_MEMORY, "out of memory: a list of more than %lld elements", (long long)p->capacity);
    return 0;
  }
  capacity = p->capacity * 2 > p->n + extra ? p->capacity * 2 : p->n + extra;
  if (capacity < 1024) capacity = 1024;
  const size_t bytes = mhk__size3(ctx, capacity, 1, p->size);
  unsigned char *data = ctx->result == MHK_OK ? (unsigned char *)mhk__raw_alloc(ctx, bytes) : NULL;
  if (!data) return 0;
  if (p->n) memcpy(data, p->data, (size_t)p->n * p->size);
  if (p->data) mhk__raw_release(ctx, p->data, (size_t)p->capacity * p->size);
  p->data = data;
  p->capacity = capacity;
  return 1;
}

#ifndef MOHAWK_NO_STDIO
static int mhk__is_blank(unsigned char c) { return c == ' ' || (c >= 9 && c <= 13) || (c >= 28 && c <= 31); }
#endif

typedef struct mhk__text_build {
  mhk_context *ctx;
  mhk_tokenizer *tokenizer;
  mhk__pile ids;    /* int32_t: every passage once */
  mhk__pile pieces; /* mhk_index pairs: first, count of a document, as often as it is used */
} mhk__text_build;

#ifndef MOHAWK_NO_STDIO
/* One passage: blanks at both ends dropped, tokenised, noted repeat times. */
static void mhk__text_passage(mhk__text_build *b, const unsigned char *text, size_t n, int repeat) {
  mhk_index *piece;
  while (n > 0 && mhk__is_blank(text[0])) text++, n--;
  while (n > 0 && mhk__is_blank(text[n - 1])) n--;
  if (n == 0) return;
  const mhk_index room = (mhk_index)n; /* a byte-level token is a byte at least */
  if (!mhk__pile_room(b->ctx, &b->ids, room) || !mhk__pile_room(b->ctx, &b->pieces, repeat)) return;
  mhk_index count = mhk_encode(b->tokenizer, (const char *)text, n, (int32_t *)(void *)b->ids.data + b->ids.n, b->ids.capacity - b->ids.n);
  if (count > b->ids.capacity - b->ids.n) {
    if (!mhk__pile_room(b->ctx, &b->ids, count)) return;
    count = mhk_encode(b->tokenizer, (const char *)text, n, (int32_t *)(void *)b->ids.data + b->ids.n, b->ids.capacity - b->ids.n);
  }
  if (count <= 0) return;
  for (int i = 0; i < repeat; i++) {
    piece = (mhk_index *)(void *)b->pieces.data + 2 * b->pieces.n++;
    piece[0] = b->ids.n;
    piece[1] = count;
  }
  b->ids.n += count;
}

/* One document; longest > 0: cut at line ends as soon as a passage is longer than that. */
static void mhk__text_document(mhk__text_build *b, const unsigned char *text, size_t n, size_t longest, int repeat) {
  size_t from = 0, i;
  for (i = 0; longest > 0 && i < n && b->ctx->result == MHK_OK; i++)
    if (text[i] == '\n' && i + 1 - from > longest) {
      mhk__text_passage(b, text + from, i + 1 - from, repeat);
      from = i + 1;
    }
  if (b->ctx->result == MHK_OK) mhk__text_passage(b, text + from, n - from, repeat);
}

/* Is this text in UTF-8? 0 and an error if it cannot be, a warning if parts of it are not. */
static int mhk__text_check(mhk_context *ctx, const char *path, const unsigned char *text, size_t n) {
  size_t at = 0, first = n, bad = 0, zeros = 0, step;
  const char *looks = "";
  for (; at < n; at += step) {
    step = text[at] < 0x80 ? 1 : mhk__utf8_length(text + at, n - at);
    if (step > 0 && text[at] != 0) continue;
    if (bad++ == 0) first = at;
    zeros += step == 1;
    step = 1;
  }
  if (bad == 0) return 1;
  const double share = 100 * (double)bad / (double)n;
  if (zeros == n)
    looks = ": nothing but zeros";
  else if (n > 1 && ((text[0] == 0xFF && text[1] == 0xFE) || (text[0] == 0xFE && text[1] == 0xFF) || zeros > n / 4))
    looks = ": it looks like UTF-16";
  else if (n > 1 && text[0] == 0x1F && text[1] == 0x8B)
    looks = ": it is compressed by gzip";
  else if (zeros == 0 && share < 25)
    looks = ": it may be Latin-1";
  if (share >= 1)
    mhk_fail(ctx, MHK_ERROR_FORMAT,
             "%s is no text in UTF-8: %.1f %% of its bytes are zero or part of no character, the first at byte %.0f%s",
             path, share, (double)first, looks);
  else
    mhk__note(ctx, MHK_LOG_WARNING,
              "%s is not all UTF-8: %.0f of its %.0f bytes (%.2g %%) are zero or part of no character, the first at "
              "byte %.0f%s", path, (double)bad, (double)n, share, (double)first, looks);
  return share < 1;
}

static void mhk__text_read(mhk__text_build *b, const char *path, const unsigned char *data, size_t size,
                           size_t longest, int repeat) {
  const size_t mark = sizeof(MHK__END_TEXT) - 1;
  size_t from = 0, i;
  if (size >= 3 && memcmp(data, "\xEF\xBB\xBF", 3) == 0) from = 3;
  if (!mhk__text_check(b->ctx, path, data, size)) return;
  for (i = from; b->ctx->result == MHK_OK && i < size;) {
    const unsigned char *p = (const unsigned char *)memchr(data + i, '<', size - i);
    if (!p) break;
    i = (size_t)(p - data);
    if (size - i >= mark && memcmp(p, MHK__END_TEXT, mark) == 0) {
      mhk__text_document(b, data + from, i - from, longest, repeat);
      from = i += mark;
    } else
      i++;
  }
  if (b->ctx->result == MHK_OK) mhk__text_document(b, data + from, size - from, longest, repeat);
}

static void mhk__text_file(mhk__text_build *b, const char *path, size_t longest, int repeat) {
  mhk__bytes bytes;
  const int error = mhk__bytes_open(path, &bytes);
  if (error)
    mhk_fail(b->ctx, MHK_ERROR_FILE, "the text %s cannot be read: %s", path, mhk__file_reason(error));
  else
    mhk__text_read(b, path, bytes.data, bytes.size, longest, repeat);
  mhk__bytes_close(&bytes);
}
#endif

/* tokens and documents of a new text; NULL with an error when they do not fit in memory */
static mhk_text *mhk__text_new(mhk_context *ctx, mhk_index n, mhk_index documents) {
  mhk_text *x = (mhk_text *)mhk__object_new(ctx, sizeof(mhk_text), NULL);
  if (!x) return NULL;
  x->tokens = (int32_t *)mhk__arena_alloc(ctx, &x->object.arena, mhk__size3(ctx, n, 1, sizeof(int32_t)));
  x->start = (mhk_index *)mhk__arena_alloc(ctx, &x->object.arena, mhk__size3(ctx, documents + 1, 1, sizeof(mhk_index)));
  if (ctx->result != MHK_OK) {
    mhk__object_free(x);
    return NULL;
  }
  x->n = n;
  x->n_documents = documents;
  return x;
}

#ifndef MOHAWK_NO_STDIO
MHKDEF mhk_text *mhk_text_load(mhk_context *ctx, mhk_tokenizer *k, const mhk_text_desc *desc) {
  mhk__text_build b;
  mhk_text *x = NULL;
  mhk_index i, j, total = 0, at = 0, *piece;
  if (mhk_failed(ctx)) return NULL;
  if (!k || !desc || desc->n_files <= 0 || !desc->files) {
    mhk_fail(ctx, MHK_ERROR_ARGUMENT, "a text needs a tokenizer and at least one file");
    return NULL;
  }
  memset(&b, 0, sizeof b);
  b.ctx = ctx;
  b.tokenizer = k;
  b.ids.size = sizeof(int32_t);
  b.pieces.size = 2 * sizeof(mhk_index);
  const int32_t end = mhk_tokenizer_start(k);
  for (int f = 0; f < desc->n_files && ctx->result == MHK_OK; f++) {
    const int repeat = desc->repeat ? desc->repeat[f] : 1;
    const size_t longest = desc->max_document_of ? desc->max_document_of[f] : desc->max_document;
    if (!desc->files[f] || repeat < 0 || repeat > 1000000)
      mhk_fail(ctx, MHK_ERROR_ARGUMENT, "file %d of a text: it needs a name and to be used between 0 and a million times, not %d", f,
               repeat);
    else if (repeat > 0 && desc->texts && desc->texts[f])
      mhk__text_read(&b, desc->files[f], (const unsigned char *)desc->texts[f],
                     desc->lengths ? desc->lengths[f] : strlen(desc->texts[f]), longest, repeat);
    else if (repeat > 0)
      mhk__text_file(&b, desc->files[f], longest, repeat);
  }
  if (ctx->result == MHK_OK && b.pieces.n == 0)
    mhk_fail(ctx, MHK_ERROR_FORMAT, "there is no text in %s%s", desc->files[0], desc->n_files > 1 ? " and the files after it" : "");
  piece = (mhk_index *)(void *)b.pieces.data;
  if (ctx->result == MHK_OK && desc->seed) { /* Fisher & Yates */
    mhk__rng r;
    mhk__rng_seed(&r, desc->seed);
    for (i = b.pieces.n - 1; i > 0; i--) {
      const mhk_index o = (mhk_index)mhk__rng_below(&r, (uint64_t)i + 1), first = piece[2 * i], count = piece[2 * i + 1];
      piece[2 * i] = piece[2 * o];
      piece[2 * i + 1] = piece[2 * o + 1];
      piece[2 * o] = first;
      piece[2 * o + 1] = count;
    }
  }
  for (i = 0; i < b.pieces.n && ctx->result == MHK_OK; i++) {
    const mhk_index count = piece[2 * i + 1] + (end >= 0);
    if (count > PTRDIFF_MAX - total) mhk_fail(ctx, MHK_ERROR_MEMORY, "the text has more tokens than this machine can count");
    else total += count;
  }
  if (ctx->result == MHK_OK) x = mhk__text_new(ctx, total, b.pieces.n);
  for (i = 0; x && i < b.pieces.n; i++) {
    const int32_t *from = (const int32_t *)(const void *)b.ids.data + piece[2 * i];
    x->start[i] = at;
    if (end >= 0) x->tokens[at++] = end;
    memcpy(x->tokens + at, from, (size_t)piece[2 * i + 1] * sizeof(int32_t));
    at += piece[2 * i + 1];
  }
  if (x) {
    x->start[x->n_documents] = total;
    for (j = 0; j < total; j++)
      if (x->tokens[j] > x->largest) x->largest = x->tokens[j];
  }
  mhk__pile_free(ctx, &b.ids);
  mhk__pile_free(ctx, &b.pieces);
  return x;
}
#endif

MHKDEF mhk_text *mhk_text_from_tokens(mhk_context *ctx, const int32_t *tokens, mhk_index n, int32_t end) {
  mhk_index i, documents = 1;
  if (mhk_failed(ctx)) return NULL;
  if (!tokens || n <= 0) {
    mhk_fail(ctx, MHK_ERROR_ARGUMENT, "a text needs at least one token");
    return NULL;
  }
  for (i = 0; i < n; i++) {
    if (tokens[i] < 0) {
      mhk_fail(ctx, MHK_ERROR_ARGUMENT, "token %lld of the text is %ld: tokens are not negative", (long long)i, (long)tokens[i]);
      return NULL;
    }
    if (i > 0 && end >= 0 && tokens[i] == end) documents++;
  }
  mhk_text *x = mhk__text_new(ctx, n, documents);
  if (!x) return NULL;
  memcpy(x->tokens, tokens, (size_t)n * sizeof(int32_t));
  documents = 0;
  for (i = 0; i < n; i++) {
    if (i == 0 || (end >= 0 && tokens[i] == end)) x->start[documents++] = i;
    if (tokens[i] > x->largest) x->largest = tokens[i];
  }
  x->start[documents] = n;
  return x;
}

/* Rounds of sequences in step, each from one end-of-text token on. A sequence that ends a document goes on with the next one, as in the
   packed text that language models are trained on, so that no work is lost; after about 210 to 320 tokens a new round starts afresh. */
MHKDEF mhk_text *mhk_text_sample(mhk_model *m, mhk_index tokens, uint64_t seed, mhk_progress_fn progress, void *user) {
  mhk_context *ctx;
  mhk_session_desc sd;
  mhk_sampling how;
  mhk__pile all, round;
  mhk__rng r;
  mhk_text *x = NULL;
  mhk_index batch, longest, done = 0;
  int32_t first[MHK__SAMPLE_BATCH];
  int stop = 0, i;
  if (!m || mhk_failed(ctx = m->object.ctx)) return NULL;
  if (tokens <= 0 || tokens > PTRDIFF_MAX / 64) {
    mhk_fail(ctx, MHK_ERROR_ARGUMENT, "%lld tokens of text cannot be sampled: ask for one or more", (long long)tokens);
    return NULL;
  }
  int32_t end = m->tokenizer ? mhk_tokenizer_start(m->tokenizer) : -1;
  if (end < 0 || end >= m->config.vocab_size) end = 0; /* no end-of-text token known: documents start with token 0 */
  longest = m->config.max_position > 1 && m->config.max_position < 320 ? m->config.max_position : 320;
  batch = (tokens + longest - 1) / longest < MHK__SAMPLE_BATCH ? (tokens + longest - 1) / longest : MHK__SAMPLE_BATCH;
  memset(&all, 0, sizeof all);
  memset(&round, 0, sizeof round);
  all.size = round.size = sizeof(int32_t);
  memset(&sd, 0, sizeof sd);
  sd.batch = batch;
  sd.capacity = longest + 1;
  memset(&how, 0, sizeof how);
  how.temperature = 1.0;
  mhk__rng_seed(&r, seed);
  for (i = 0; i < (int)batch; i++) first[i] = end;
  mhk_session *s = mhk_session_create(m, &sd);
  if (mhk__pile_room(ctx, &all, tokens) && mhk__pile_room(ctx, &round, batch * longest))
    while (s && done < tokens && !stop && ctx->result == MHK_OK) {
      const mhk_index low = longest * 2 / 3, left = (tokens - done + batch - 1) / batch;
      const mhk_index drawn = low + (mhk_index)mhk__rng_below(&r, (uint64_t)(longest - low) + 1);
      const mhk_index length = drawn < left ? drawn : left;
      mhk_index step = 0, b, n;
      int32_t *grid = (int32_t *)(void *)round.data; /* (length, batch) */
      mhk_session_reset(s);
      how.seed = mhk__rng_next(&r) | 1u;
      memcpy(grid, first, (size_t)batch * sizeof(int32_t));
      mhk_feed(s, first, 1);
      for (step = 1; step < length && !stop && ctx->result == MHK_OK; step++) {
        int32_t *row = grid + step * batch;
        if (!mhk__draw_all(s, &how, row)) break;
        for (b = 0; b < batch; b++) /* after another end than this the next document starts */
          if (row[b - batch] != end && mhk__model_ends_at(m, row[b - batch])) row[b] = end;
        mhk_feed(s, row, 1);
        if (progress && step % 16 == 0) {
          n = done + (step + 1) * batch;
          stop = progress(user, n < tokens ? n : tokens, tokens);
        }
      }
      if (ctx->result != MHK_OK) break;
      for (b = 0; b < batch && done < tokens; b++)
        for (n = 0; n < step && done < tokens; n++) ((int32_t *)(void *)all.data)[done++] = grid[n * batch + b];
    }
  if (progress && !stop && ctx->result == MHK_OK) progress(user, done, tokens);
  if (s) mhk_session_destroy(s);
  if (ctx->result == MHK_OK) x = mhk_text_from_tokens(ctx, (const int32_t *)(const void *)all.data, done, end);
  mhk__pile_free(ctx, &all);
  mhk__pile_free(ctx, &round);
  return x;
}

MHKDEF void mhk_text_destroy(mhk_text *x) {
  if (x) mhk__object_free(x);
}

MHKDEF mhk_index mhk_text_tokens(const mhk_text *x, const int32_t **tokens) {
  if (tokens) *tokens = x ? x->tokens : NULL;
  return x ? x->n : 0;
}

/* ---------------------------------------------------------------------------------------- stages: what they reach and train */

static void mhk__flag(const mhk_model *m, const mhk_tensor *x, unsigned char *flags) {
  if (!x) return;
  for (int i = 0; i < m->n_tensors; i++)
    if (m->tensors[i] == x) flags[i] = 1;
}

/* flags[i] = 1 for each tensor of the student that the stage trains: never more than its loss reaches, so that all others stay untouched */
static void mhk__stage_trains(const mhk_model *m, int stage, mhk_trains trains, unsigned char *flags) {
  memset(flags, 0, (size_t)m->n_tensors);
  if (trains == MHK_TRAIN_DEFAULT) trains = stage == 1 ? MHK_TRAIN_MATRICES : stage == 2 ? MHK_TRAIN_MIXERS : MHK_TRAIN_ALL;
  if (stage == 3 && trains == MHK_TRAIN_ALL) {
    memset(flags, 1, (size_t)m->n_tensors);
    return;
  }
  for (int l = 0; l < m->config.n_layer; l++) {
    const mhk__layer *y = &m->layers[l];
    if (y->kind == MHK_MIXER_ATTENTION) {
      if (stage != 3 || trains != MHK_TRAIN_MIXERS) continue;
      mhk__flag(m, y->q_w, flags), mhk__flag(m, y->q_b, flags), mhk__flag(m, y->k_w, flags), mhk__flag(m, y->k_b, flags);
      mhk__flag(m, y->v_w, flags), mhk__flag(m, y->v_b, flags), mhk__flag(m, y->dense_w, flags), mhk__flag(m, y->dense_b, flags);
      mhk__flag(m, y->qn_w, flags), mhk__flag(m, y->qn_b, flags), mhk__flag(m, y->kn_w, flags), mhk__flag(m, y->kn_b, flags);
      continue;
    }
    mhk__flag(m, y->in_w, flags), mhk__flag(m, y->in_b, flags), mhk__flag(m, y->D, flags);
    mhk__flag(m, y->conv_w, flags), mhk__flag(m, y->conv_b, flags);
    if (trains == MHK_TRAIN_ALL) mhk__flag(m, y->norm_w, flags), mhk__flag(m, y->norm_b, flags);
    if (stage == 1 || trains == MHK_TRAIN_MATRICES) continue;
    mhk__flag(m, y->z_bias, flags), mhk__flag(m, y->dt_bias, flags), mhk__flag(m, y->A_log, flags), mhk__flag(m, y->ssm_norm_w, flags);
    mhk__flag(m, y->out_w, flags), mhk__flag(m, y->out_b, flags);
    if (trains == MHK_TRAIN_ALL)
      mhk__flag(m, y->fc1_w, flags), mhk__flag(m, y->fc1_b, flags), mhk__flag(m, y->fc2_w, flags), mhk__flag(m, y->fc2_b, flags);
  }
}

/* The teacher must be able to teach this student. stage 0: what holds for all of them. */
static int mhk__pair_check(mhk_context *ctx, const mhk_model *s, const mhk_model *t, int stage) {
  if (s->object.ctx != ctx || t->object.ctx != ctx) {
    mhk_fail(ctx, MHK_ERROR_ARGUMENT, "teacher and student must be made from the same context as the training");
    return 0;
  }
  if (s->config.n_layer != t->config.n_layer || s->config.d_model != t->config.d_model || s->config.vocab_size != t->config.vocab_size) {
    mhk_fail(ctx, MHK_ERROR_CONFIG, "the student has %d layers, d_model %d and vocabulary %d, the teacher %d, %d and %d: they must be "
             "equal", s->config.n_layer, s->config.d_model, s->config.vocab_size, t->config.n_layer, t->config.d_model,
             t->config.vocab_size);
    return 0;
  }
  for (int l = 0; stage == 1 && l < s->config.n_layer; l++) {
    if (s->layers[l].kind == MHK_MIXER_ATTENTION) continue;
    if (s->layers[l].kind != MHK_MIXER_DISCRETE_MAMBA2 || t->layers[l].kind != MHK_MIXER_ATTENTION) {
      mhk_fail(ctx, MHK_ERROR_CONFIG, "stage 1 compares a discrete Mamba-2 mixer with attention; layer %d has another pair: skip the "
               "stage", l);
      return 0;
    }
    if (s->config.ssm_heads != t->config.n_head) {
      mhk_fail(ctx, MHK_ERROR_CONFIG, "stage 1 compares matrices head by head, but the student has %d heads and the teacher %d: make "
               "them equal or skip the stage", s->config.ssm_heads, t->config.n_head);
      return 0;
    }
  }
  return 1;
}

#define MHK__SAME_NORM 1
#define MHK__SAME_MLP 2

/* 1 when a student's parameter has exactly the value of the teacher's, whatever type that is stored in */
static int mhk__same_values(const mhk_tensor *a, const mhk_tensor *b) {
  if (!a || !b) return a == b;
  if (a->count != b->count || a->dtype != MHK_REAL) return 0;
  if (b->dtype == MHK_REAL) return memcmp(a->data, b->data, (size_t)a->count * sizeof(mhk_real)) == 0;
  for (mhk_index i = 0; i < b->count; i++) {
    const mhk_real value = mhk__tensor_element(b, i);
    if (memcmp(&value, (const mhk_real *)a->data + i, sizeof value) != 0) return 0;
  }
  return 1;
}

/* Which layers still have the teacher's norm and MLP: there stages 1 and 2 can use the teacher's. */
static void mhk__stage_same(const mhk_model *s, const mhk_model *t, unsigned char *same) {
  for (int l = 0; l < s->config.n_layer; l++) {
    const mhk__layer *a = &s->layers[l], *b = &t->layers[l];
    same[l] = 0;
    if (a->kind == MHK_MIXER_ATTENTION || s->config.arch == MHK_ARCH_MAMBA2 || t->config.arch == MHK_ARCH_MAMBA2) continue;
    if (s->config.norm_eps < t->config.norm_eps || s->config.norm_eps > t->config.norm_eps) continue;
    if (mhk__same_values(a->norm_w, b->norm_w) && mhk__same_values(a->norm_b, b->norm_b)) same[l] |= MHK__SAME_NORM;
    if (a->fc1_w && a->fc2_w && mhk__same_values(a->fc1_w, b->fc1_w) && mhk__same_values(a->fc1_b, b->fc1_b) &&
        mhk__same_values(a->fc2_w, b->fc2_w) && mhk__same_values(a->fc2_b, b->fc2_b))
      same[l] |= MHK__SAME_MLP;
  }
}

static int mhk__trains(const mhk_tensor *x) { return x && x->requires_grad; }

/* the block but for its mixer */
static int mhk__trains_rest(const mhk__layer *y) {
  return mhk__trains(y->norm_w) || mhk__trains(y->norm_b) || mhk__trains(y->fc1_w) || mhk__trains(y->fc1_b) || mhk__trains(y->fc2_w) ||
         mhk__trains(y->fc2_b);
}

/* ---------------------------------------------------------------------------------------- stages: losses */

/* One evaluation of a stage's loss with its gradients. */
typedef struct mhk__stage_run {
  mhk_tape *tape;
  mhk_context *ctx;
  mhk_model *student, *teacher;
  const mhk_stage_desc *desc; /* defaults resolved */
  const unsigned char *same;
  const int32_t *tokens, *doc;
  mhk_index B, T;
  int record, recompute;
  double *layer_loss; /* L or NULL */
  double *relative;   /* L * heads or NULL */
} mhk__stage_run;

static int mhk__copy_values(mhk_tensor *to, const mhk_tensor *from) {
  if (!to || !from || to->count != from->count) return 0;
  memcpy(to->data, from->data, (size_t)to->count * sizeof(mhk_real));
  return 1;
}

/* x + MLP(u) of a block */
static mhk_tensor *mhk__mlp_add(mhk_tape *t, const mhk__layer *y, mhk_tensor *u, mhk_tensor *x) {
  return mhk_linear_add(t, mhk_linear_gelu(t, u, y->fc1_w, y->fc1_b), y->fc2_w, y->fc2_b, x);
}

/* A scalar loss into its number, and its gradients into the parameters. */
static double mhk__loss_take(mhk__stage_run *r, mhk_tensor *loss) {
  const double value = mhk_value(loss);
  if (loss && r->record && loss->requires_grad && mhk__is_finite(value)) mhk_backward(r->tape, loss);
  return value;
}

/* Stage 1: mean over (batch, head) of the Frobenius distance of the mixing matrices, layer by layer along the teacher's stream. */
static double mhk__stage_matrices(mhk__stage_run *r) {
  mhk_tape *t = r->tape;
  mhk_model *s = r->student, *m = r->teacher;
  const int H = s->config.ssm_heads;
  double total = 0.0;
  int l, last = s->config.n_layer - 1;
  mhk_forward_desc fd;
  while (last >= 0 && s->layers[last].kind == MHK_MIXER_ATTENTION) last--;
  memset(&fd, 0, sizeof fd);
  fd.doc = r->doc;
  mhk_tape_record(t, 0);
  mhk_tensor *x = mhk_forward_embedding(t, m, r->tokens, r->B, r->T);
  for (l = 0; l <= last && r->ctx->result == MHK_OK; l++) {
    const mhk_tape_mark mark = mhk_tape_here(t);
    const mhk__layer *a = &s->layers[l], *b = &m->layers[l];
    mhk_tensor *next = NULL;
    if (a->kind == MHK_MIXER_ATTENTION)
      next = mhk_forward_block(t, m, l, x, &fd);
    else {
      mhk_tensor *u = mhk_forward_norm(t, m, l, x), *loss, *own = u;
      mhk__parts tp, sp;
      memset(&tp, 0, sizeof tp);
      memset(&sp, 0, sizeof sp);
      tp.matrix_only = l == last;
      sp.matrix_only = 1;
      mhk__mixer_parts(t, m, l, u, r->doc, &tp);
      mhk_tape_mark inner = mhk_tape_here(t);
      mhk_tape_record(t, r->record);
      if (!(r->same[l] & MHK__SAME_NORM) || (r->record && (mhk__trains(a->norm_w) || mhk__trains(a->norm_b))))
        own = mhk_forward_norm(t, s, l, x);
      mhk__mixer_parts(t, s, l, own, r->doc, &sp);
      loss = mhk_matrix_orientation(t, sp.log_a, sp.Bm, sp.Cm, a->D, tp.q, tp.k, r->doc,
                                    r->relative ? r->relative + (mhk_index)l * H : NULL);
      {
        const double value = mhk__loss_take(r, loss);
        if (r->layer_loss) r->layer_loss[l] = value;
        total += value;
      }
      mhk_tape_record(t, 0);
      mhk_tape_rewind(t, inner);
      if (l < last && r->ctx->result == MHK_OK) {
        mhk_tensor *y = mhk_attention(t, tp.q, tp.k, tp.v, r->doc, NULL);
        mhk_index shape[3];
        shape[0] = r->B;
        shape[1] = r->T;
        shape[2] = y ? y->shape[2] * y->shape[3] : 0;
        y = mhk_linear_add(t, mhk_reshape(t, y, 3, shape), b->dense_w, b->dense_b, x);
        next = mhk__mlp_add(t, b, u, y);
      }
    }
    if (l < last) mhk__copy_values(x, next);
    mhk_tape_rewind(t, mark);
  }
  return total;
}

/* Stage 2: mean over (batch, token) of || block_student(X_l) - block_teacher(X_l) ||_2. While norm and MLP are the teacher's and
   frozen they cancel in the difference, and the mixers alone are compared. */
static double mhk__stage_hidden(mhk__stage_run *r) {
  mhk_tape *t = r->tape;
  mhk_model *s = r->student, *m = r->teacher;
  double total = 0.0;
  int l, last = s->config.n_layer - 1;
  mhk_forward_desc fd;
  mhk_tensor *x, *target = NULL;
  while (last >= 0 && s->layers[last].kind == MHK_MIXER_ATTENTION) last--;
  memset(&fd, 0, sizeof fd);
  fd.doc = r->doc;
  mhk_forward_desc sd = fd;
  sd.recompute = r->recompute;
  mhk_tape_record(t, 0);
  x = mhk_forward_embedding(t, m, r->tokens, r->B, r->T);
  if (x) target = mhk_tensor_new(t, x->rank, x->shape, NULL);
  for (l = 0; l <= last && r->ctx->result == MHK_OK; l++) {
    const mhk_tape_mark mark = mhk_tape_here(t);
    const mhk__layer *a = &s->layers[l];
    const int both = MHK__SAME_NORM | MHK__SAME_MLP;
    const int train_rest = r->record && mhk__trains_rest(a);
    double value = 0.0;
    if (a->kind == MHK_MIXER_ATTENTION) {
      if (l < last) mhk__copy_values(x, mhk_forward_block(t, m, l, x, &fd));
    } else if ((r->same[l] & both) == both && !train_rest) {
      mhk_tensor *u = mhk_forward_norm(t, m, l, x);
      const mhk_tape_mark inner = mhk_tape_here(t);
      mhk_tensor *y = mhk_forward_mixer(t, m, l, u, &fd);
      mhk__copy_values(target, y);
      mhk_tape_rewind(t, inner);
      mhk_tape_record(t, r->record);
      value = mhk__loss_take(r, mhk_hidden_distance(t, mhk_forward_mixer(t, s, l, u, &sd), target));
      mhk_tape_record(t, 0);
      mhk_tape_rewind(t, inner);
      if (l < last) mhk__copy_values(x, mhk__mlp_add(t, &m->layers[l], u, mhk_add(t, x, target)));
    } else {
      mhk__copy_values(target, mhk_forward_block(t, m, l, x, &fd));
      mhk_tape_rewind(t, mark);
      mhk_tape_record(t, r->record);
      value = mhk__loss_take(r, mhk_hidden_distance(t, mhk_forward_block(t, s, l, x, &sd), target));
      mhk_tape_record(t, 0);
      mhk_tensor *swap = x; /* the teacher's output is the next block's input */
      x = target;
      target = swap;
    }
    if (a->kind != MHK_MIXER_ATTENTION) {
      if (r->layer_loss) r->layer_loss[l] = value;
      total += value;
    }
    mhk_tape_rewind(t, mark);
  }
  return total;
}

/* A model's last residual stream without gradient: one block's activations at a time. keep, if not NULL, receives the L outputs of the
   blocks. */
static mhk_tensor *mhk__stream(mhk_tape *t, mhk_model *m, const int32_t *tokens, mhk_index B, mhk_index T, const int32_t *doc,
                               mhk_tensor **keep) {
  const int recording = mhk_tape_record(t, 0);
  mhk_context *ctx = mhk_tape_context(t);
  mhk_forward_desc fd;
  mhk_tensor *x = mhk_forward_embedding(t, m, tokens, B, T);
  memset(&fd, 0, sizeof fd);
  fd.doc = doc;
  for (int l = 0; l < m->config.n_layer && x && ctx->result == MHK_OK; l++) {
    mhk_tensor *to = x;
    if (keep) keep[l] = to = mhk_tensor_new(t, x->rank, x->shape, NULL);
    mhk_tape_mark mark = mhk_tape_here(t);
    mhk__copy_values(to, mhk_forward_block(t, m, l, x, &fd));
    mhk_tape_rewind(t, mark);
    x = to;
  }
  mhk_tape_record(t, recording);
  return ctx->result == MHK_OK ? x : NULL;
}

/* Stage 3: cross-entropy against the teacher's prediction end to end, and its two optional terms. */
static double mhk__stage_predictions(mhk__stage_run *r) {
  mhk_tape *t = r->tape;
  mhk_model *s = r->student;
  const int L = s->config.n_layer, align = r->desc->own_stream > 0.0;
  const mhk__mark scratch = mhk__scratch_mark(r->ctx);
  const mhk_index rows = r->B * r->T;
  mhk_tensor **keep = NULL, **own = NULL, *target, *logits, *loss;
  int32_t *labels = NULL;
  mhk_forward_desc fd;
  if (align) {
    keep = (mhk_tensor **)mhk__scratch(r->ctx, L, sizeof *keep);
    own = (mhk_tensor **)mhk__scratch(r->ctx, L + 1, sizeof *own);
  }
  if (r->desc->hard_labels > 0.0 && (labels = (int32_t *)mhk__scratch(r->ctx, rows, sizeof *labels)) != NULL) {
    mhk_index i; /* the next token, within row and document */
    for (i = 0; i < rows; i++) labels[i] = (i + 1) % r->T == 0 || (r->doc && r->doc[i + 1] != r->doc[i]) ? -1 : r->tokens[i + 1];
  }
  if (r->ctx->result != MHK_OK) {
    mhk__scratch_rewind(r->ctx, scratch);
    return NAN;
  }
  mhk_tape_record(t, 0);
  target = mhk__stream(t, r->teacher, r->tokens, r->B, r->T, r->doc, keep);
  target = mhk_forward_head(t, r->teacher, target);
  mhk_tape_record(t, r->record);
  memset(&fd, 0, sizeof fd);
  fd.doc = r->doc;
  fd.recompute = r->recompute;
  fd.residuals = own;
  logits = mhk_forward(t, s, r->tokens, r->B, r->T, &fd);
  loss = mhk_cross_entropy_soft(t, logits, target, r->desc->temperature);
  if (labels && r->ctx->result == MHK_OK) loss = mhk_add(t, loss, mhk_scale(t, mhk_cross_entropy(t, logits, labels), r->desc->hard_labels));
  if (align && r->ctx->result == MHK_OK)
    for (int l = 0; l < L; l++) loss = mhk_add(t, loss, mhk_scale(t, mhk_hidden_distance(t, own[l + 1], keep[l]), r->desc->own_stream));
  const double value = mhk__loss_take(r, loss);
  mhk__scratch_rewind(r->ctx, scratch);
  return value;
}

/* The loss of a stage; NaN on failure. The tape is left as it was found. */
static double mhk__stage_loss(mhk__stage_run *r, int stage) {
  const mhk_tape_mark mark = mhk_tape_here(r->tape);
  const int recording = mhk_tape_record(r->tape, 0);
  r->record = recording;
  const double value = stage == 1 ? mhk__stage_matrices(r) : stage == 2 ? mhk__stage_hidden(r) : mhk__stage_predictions(r);
  mhk_tape_record(r->tape, recording);
  mhk_tape_rewind(r->tape, mark);
  return r->ctx->result == MHK_OK ? value : (double)NAN;
}

/* ---------------------------------------------------------------------------------------- what diverged */

#define MHK__WHY 256 /* bytes of where a computation stopped being finite */

/* Says where when a number of x is not finite. A log decay may be minus infinity. */
static int mhk__breaks(char *why, const mhk_tensor *x, int decay, const char *what, int layer, const char *who) {
  for (mhk_index i = 0; x && i < x->count; i++) {
    const double v = (double)mhk__tensor_element(x, i);
    if (mhk__is_finite(v) || (decay && v < 0)) continue;
    if (layer < 0)
      mhk__print(why, MHK__WHY, "%.120s of the %s (element %lld is %g)", what, who, (long long)i, v);
    else
      mhk__print(why, MHK__WHY, "%s in layer %d of the %s (element %lld is %g)", what, layer, who, (long long)i, v);
    return 1;
  }
  return 0;
}

/* Layer l of m on x: its norm, what its mixer works on, and, unless only its matrix is wanted,
   the mixer's and the block's output, which next receives. */
static int mhk__layer_breaks(mhk__stage_run *r, mhk_model *m, const char *who, int l, mhk_tensor *x, int matrix_only,
                             mhk_tensor *next, char *why) {
  mhk_tape *t = r->tape;
  const mhk_tape_mark mark = mhk_tape_here(t);
  mhk_forward_desc fd;
  mhk__parts p;
  mhk_tensor *u = mhk_forward_norm(t, m, l, x), *y;
  memset(&fd, 0, sizeof fd);
  memset(&p, 0, sizeof p);
  fd.doc = r->doc;
  p.matrix_only = matrix_only;
  mhk__mixer_parts(t, m, l, u, r->doc, &p);
  int found = mhk__breaks(why, u, 0, "the norm", l, who) || mhk__breaks(why, p.q, 0, "queries", l, who) ||
              mhk__breaks(why, p.k, 0, "keys", l, who) || mhk__breaks(why, p.v, 0, "values", l, who) ||
              mhk__breaks(why, p.log_a, 1, "the log decay", l, who) || mhk__breaks(why, p.Bm, 0, "B", l, who) ||
              mhk__breaks(why, p.Cm, 0, "C", l, who) || mhk__breaks(why, p.x, 0, "x of the mixer", l, who) ||
              mhk__breaks(why, p.z, 0, "z of the mixer", l, who);
  if (!found && !matrix_only) {
    y = mhk_forward_mixer(t, m, l, u, &fd);
    found = mhk__breaks(why, y, 0, "the output of the mixer", l, who);
    y = found ? NULL : mhk_forward_block(t, m, l, x, &fd);
    found = found || mhk__breaks(why, y, 0, "the output", l, who);
    if (next) mhk__copy_values(next, y);
  }
  mhk_tape_rewind(t, mark);
  return found;
}

/* Computes the loss of a stage once more, looking for the first numbers that are not finite:
   weights, then activations in their order. Returns whether they are the teacher's. */
static int mhk__find_first(mhk__stage_run *r, int stage, char *why) {
  const char *const names[2] = {"teacher", "student"};
  mhk_model *const models[2] = {r->teacher, r->student};
  mhk_tape *t = r->tape;
  const mhk_tape_mark mark = mhk_tape_here(t);
  const int recording = mhk_tape_record(t, 0), L = r->student->config.n_layer;
  int k, i, found = 0;
  for (k = 0; k < 2; k++)
    for (i = 0; i < models[k]->n_tensors; i++)
      if (mhk__breaks(why, models[k]->tensors[i], 0, models[k]->tensors[i]->name, -1, names[k])) {
        mhk_tape_record(t, recording);
        return k == 0;
      }
  for (k = 0; k < (stage == 3 ? 2 : 1) && !found; k++) {
    mhk_tensor *x = mhk_forward_embedding(t, models[k], r->tokens, r->B, r->T),
               *next = x ? mhk_tensor_new(t, x->rank, x->shape, NULL) : NULL, *swap;
    found = mhk__breaks(why, x, 0, "the embedding", -1, names[k]);
    for (i = 0; i < L && next && !found; i++) {
      found = mhk__layer_breaks(r, models[k], names[k], i, x, 0, next, why);
      if (!found && stage != 3 && r->student->layers[i].kind != MHK_MIXER_ATTENTION &&
          mhk__layer_breaks(r, r->student, names[1], i, x, stage == 1, NULL, why)) {
        k = 1;
        found = 1;
      }
      swap = x;
      x = next;
      next = swap;
    }
    if (!found && stage == 3)
      found = mhk__breaks(why, mhk_forward_head(t, models[k], x), 0, "the logits", -1, names[k]);
    if (found) break;
  }
  mhk_tape_record(t, recording);
  mhk_tape_rewind(t, mark);
  if (r->ctx->result != MHK_OK) mhk_clear_error(r->ctx); /* no memory for looking: the divergence is what counts */
  if (!found) mhk__print(why, MHK__WHY, "the loss itself, from activations that are finite");
  return found && k == 0;
}

/* ---------------------------------------------------------------------------------------- stages: description */

static double mhk__or(double value, double otherwise) { return value == 0.0 ? otherwise : value; } /* NaN stays, to be refused */

/* Top learning rates that were measured: small teachers at d_model 128 and 256, and those of Bick et al. 2024 at 2048; between them
   straight lines in the logarithms. */
static double mhk__default_lr(int stage, int d_model) {
  static const double at[3] = {128.0, 256.0, 2048.0};
  static const double lr[3][3] = {{1e-2, 1e-2, 2e-4}, {5e-3, 3e-3, 1e-4}, {1e-3, 5e-4, 1e-4}};
  const double d = (double)d_model;
  const double *y = lr[stage - 1];
  if (d <= at[0]) return y[0];
  for (int i = 0; i < 2; i++)
    if (d <= at[i + 1]) {
      const double w = (log(d) - log(at[i])) / (log(at[i + 1]) - log(at[i]));
      return w >= 1.0 ? y[i + 1] : exp(log(y[i]) + w * (log(y[i + 1]) - log(y[i])));
    }
  return y[2];
}

static mhk_stage_desc mhk__stage_defaults(const mhk_stage_desc *desc, int stage, int d_model) {
  mhk_stage_desc d;
  if (desc)
    d = *desc;
  else
    memset(&d, 0, sizeof d);
  d.lr = mhk__or(d.lr, mhk__default_lr(stage, d_model));
  d.lr_low = mhk__or(d.lr_low, 1e-8);
  d.warmup = mhk__or(d.warmup, 0.05);
  d.decay = mhk__or(d.decay, 0.5);
  d.weight_decay = mhk__or(d.weight_decay, 0.1);
  d.clip = mhk__or(d.clip, stage == 3 ? 1.0 : -1.0);
  d.temperature = mhk__or(d.temperature, 1.0);
  d.own_stream = mhk__or(d.own_stream, stage == 3 ? 0.03 : -1.0);
  if (d.trains == MHK_TRAIN_DEFAULT) d.trains = stage == 1 ? MHK_TRAIN_MATRICES : stage == 2 ? MHK_TRAIN_MIXERS : MHK_TRAIN_ALL;
  return d;
}

/* the numbers of a stage's description, with defaults in place */
static int mhk__stage_numbers(mhk_context *ctx, const mhk_stage_desc *d, int stage) {
  const double most = MHK__REAL_MOST;
  const struct { const char *name; double value, low, high; } numbers[] = {
    {"the learning rate (lr)", d->lr, DBL_MIN, most},
    {"the lowest learning rate (lr_low)", d->lr_low, -most, most},
    {"warmup", d->warmup, -most, 1},
    {"decay", d->decay, -most, 1},
    {"weight_decay", d->weight_decay, -most, most},
    {"clip", d->clip, -most, most},
    {"temperature", d->temperature, MHK__REAL_LEAST, most},
    {"hard_labels", d->hard_labels, 0, most},
    {"own_stream", d->own_stream, -most, most},
    {"tokens", (double)d->tokens, 0, DBL_MAX},
    {"trains (one of mhk_trains)", (double)(int)d->trains, MHK_TRAIN_MATRICES, MHK_TRAIN_ALL}};
  char where[24];
  mhk__print(where, sizeof where, "stage %d", stage);
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
    if (!mhk__number_fits(ctx, where, numbers[i].name, numbers[i].value, numbers[i].low, numbers[i].high)) return 0;
  return 1;
}

MHKDEF mhk_distill_desc mhk_distill_defaults(const mhk_distill_desc *desc) {
  mhk_distill_desc d;
  int d_model;
  if (desc)
    d = *desc;
  else
    memset(&d, 0, sizeof d);
  d_model = d.teacher ? d.teacher->config.d_model : d.student ? d.student->config.d_model : 128;
  for (int i = 0; i < 3; i++) d.stages[i] = mhk__stage_defaults(&d.stages[i], i + 1, d_model);
  if (d.batch == 0) d.batch = 8;
  if (d.length == 0) d.length = 256;
  if (d.update_tokens == 0 && d.batch > 0 && d.length > 0 && d.batch <= PTRDIFF_MAX / d.length) d.update_tokens = d.batch * d.length;
  d.beta1 = mhk__or(d.beta1, 0.9);
  d.beta2 = mhk__or(d.beta2, 0.95);
  d.eps = mhk__or(d.eps, 1e-8);
  if (d.seed == 0) d.seed = 1;
  if (d.student_desc.init == MHK_INIT_DEFAULT) d.student_desc.init = MHK_INIT_ATTENTION;
  if (d.student_desc.chunk_size == 0) d.student_desc.chunk_size = 128;
  if (d.student_desc.seed == 0) d.student_desc.seed = 1;
  d.checkpoint_seconds = mhk__or(d.checkpoint_seconds, 60.0);
  if (d.world == 0) d.world = 1;
  return d;
}

MHKDEF double mhk_learning_rate(double top, double low, mhk_index warmup, mhk_index decay, mhk_index s, mhk_index S) {
  if (warmup < 0 || decay < 0 || s < 0 || S < s || !(fabs(top) <= DBL_MAX) || !(fabs(low) <= DBL_MAX)) return NAN;
  if (s < warmup) return top * (double)s / (double)warmup;
  if (s < S - decay || decay == 0) return top;
  return (double)(S - s) / (double)decay * (top - low) + low;
}

MHKDEF double mhk_stage_loss(mhk_tape *t, mhk_model *student, mhk_model *teacher, int stage, const int32_t *tokens, mhk_index B,
                             mhk_index T, const int32_t *doc, const mhk_stage_desc *desc, double *layer_loss, double *relative) {
  mhk_context *ctx = t ? mhk_tape_context(t) : NULL;
  mhk__stage_run r;
  unsigned char same[MHK_MAX_LAYERS];
  if (mhk_failed(ctx)) return NAN;
  if (!student || !teacher || !tokens || stage < 1 || stage > 3 || B <= 0 || T <= 0) {
    mhk_fail(ctx, MHK_ERROR_ARGUMENT, "the loss of a stage needs student, teacher, a stage from 1 to 3 (this is %d) and at least one "
             "token", stage);
    return NAN;
  }
  if (!mhk__pair_check(ctx, student, teacher, stage)) return NAN;
  mhk_stage_desc d = mhk__stage_defaults(desc, stage, student->config.d_model);
  if (!mhk__stage_numbers(ctx, &d, stage) || !mhk__size3(ctx, B, T, 64)) return NAN;
  memset(&r, 0, sizeof r);
  if (stage != 3) mhk__stage_same(student, teacher, same);
  if (layer_loss) memset(layer_loss, 0, (size_t)student->config.n_layer * sizeof(double));
  if (relative && stage == 1) memset(relative, 0, (size_t)student->config.n_layer * (size_t)student->config.ssm_heads * sizeof(double));
  r.tape = t;
  r.ctx = ctx;
  r.student = student;
  r.teacher = teacher;
  r.desc = &d;
  r.same = same;
  r.tokens = tokens;
  r.doc = doc;
  r.B = B;
  r.T = T;
  r.layer_loss = layer_loss;
  r.relative = stage == 1 ? relative : NULL;
  return mhk__stage_loss(&r, stage);
}

/* ---------------------------------------------------------------------------------------- trainer */

typedef struct mhk__update_block {
  int tensor; /* in trained[] */
  mhk_index first, n;
} mhk__update_block;

struct mhk_trainer {
  mhk__object object;
  mhk_distill_desc desc; /* defaults resolved */
  mhk_model *student;
  mhk_tape *tape;
  char *path, *previous; /* of the last two checkpoints, or NULL */
#ifndef MOHAWK_NO_STDIO
  int keeps;             /* what stands at path is sound and of this run: the next one does not replace it, but pushes it to previous */
  mhk__lock lock; /* of its folder */
  int locked;
#endif
  char *run;  /* the description as text, one fact a line */
  mhk_index S[3];      /* updates of each stage */
  mhk_index micro;     /* batches an update */
  mhk_index rows;      /* of this worker in a batch */
  int stage, finished; /* stage: 1..3, the next update's */
  mhk_index step;      /* updates done in it */
  mhk_index driven;    /* updates by mhk_train_on() */
  /* optimiser */
  int optimizer_stage; /* the stage that moments belong to; 0: none */
  mhk_index optimizer_step;
  unsigned char *flags;    /* n_tensors: trained in this stage */
  unsigned char *required; /* n_tensors: requires_grad as the caller left it */
  mhk_tensor **trained;
  mhk_index *moment_at; /* where each trained tensor's moments are */
  int n_trained;
  mhk_index trained_count, moment_room;
  mhk_real *moment1, *moment2, *staging;
  mhk__update_block *blocks;
  double *block_sum;
  mhk_index n_blocks, block_room;
  unsigned char same[MHK_MAX_LAYERS];
  char why[MHK__WHY];     /* what was first not finite in the update under way; "": all is */
  int teacher_broke;      /* and that is the teacher's */
  mhk_real factors[2][7]; /* of the update under way, as the kernel wants them: with decay, and without */
  /* data */
  mhk__rng rng;
  int32_t *window, *window_doc;
  mhk_index *order; /* of documents in this epoch */
  uint64_t epoch;
  mhk_index document, offset; /* packed: next document and token of it */
  /* progress */
  mhk_progress_info info;
  double *layer_loss, *relative, *layer_now, *relative_now;
  double seconds_before, started_seconds; /* stage time of earlier processes; clock at the start of this one's first update */
  mhk_index step_before;                  /* updates of this stage done by earlier processes */
  double checkpoint_clock;
};

static mhk_context *mhk__trainer_context(const mhk_trainer *tr) { return tr ? tr->object.ctx : NULL; }

static void mhk__shuffle_documents(mhk_trainer *tr) {
  const mhk_index n = tr->desc.text->n_documents;
  mhk__rng r;
  mhk__rng_seed(&r, (tr->desc.seed ^ 0x5DEECE66Du) + tr->epoch * 0x9E3779B97F4A7C15u);
  for (mhk_index i = 0; i < n; i++) tr->order[i] = i;
  for (mhk_index i = n - 1; i > 0; i--) {
    const mhk_index o = (mhk_index)mhk__rng_below(&r, (uint64_t)i + 1), keep = tr->order[i];
    tr->order[i] = tr->order[o];
    tr->order[o] = keep;
  }
}

/* The next batch: every worker draws all of its windows and keeps its share, so that together they see the same text as one would. */
static void mhk__next_batch(mhk_trainer *tr) {
  const mhk_text *x = tr->desc.text;
  const mhk_index T = tr->desc.length;
  mhk_index row, mine = 0;
  for (row = 0; row < tr->desc.batch; row++) {
    const int keep = row / tr->rows == tr->desc.rank;
    int32_t *to = tr->window + mine * T, *doc = tr->window_doc ? tr->window_doc + mine * T : NULL;
    if (tr->desc.windows == MHK_WINDOWS_RANDOM) {
      const mhk_index at = (mhk_index)mhk__rng_below(&tr->rng, (uint64_t)(x->n - T) + 1);
      if (keep) memcpy(to, x->tokens + at, (size_t)T * sizeof(int32_t));
    } else {
      mhk_index filled = 0;
      int32_t number = 0;
      while (filled < T) {
        const mhk_index d = tr->order[tr->document], from = x->start[d] + tr->offset, left = x->start[d + 1] - from;
        const mhk_index n = left < T - filled ? left : T - filled;
        if (keep) {
          memcpy(to + filled, x->tokens + from, (size_t)n * sizeof(int32_t));
          for (mhk_index i = 0; i < n; i++) doc[filled + i] = number;
        }
        filled += n;
        tr->offset += n;
        number++;
        if (n == left) {
          tr->offset = 0;
          if (++tr->document == x->n_documents) {
            tr->document = 0;
            tr->epoch++;
            mhk__shuffle_documents(tr);
          }
        }
      }
    }
    if (keep) mine++;
  }
}

/* numbers and blocks a stage trains */
static mhk_index mhk__stage_count(const mhk_model *m, const unsigned char *flags, mhk_index *blocks) {
  mhk_index n = 0;
  *blocks = 0;
  for (int i = 0; i < m->n_tensors; i++)
    if (flags[i]) {
      n += m->tensors[i]->count;
      *blocks += (m->tensors[i]->count + MHK__UPDATE_BLOCK - 1) / MHK__UPDATE_BLOCK;
    }
  return n;
}

/* Memory of the optimiser for the largest of the stages asked for; what there is already is kept when it is enough. */
static int mhk__optimizer_room(mhk_trainer *tr, mhk_index count, mhk_index blocks) {
  mhk_context *ctx = tr->object.ctx;
  mhk__arena *arena = &tr->object.arena;
  if (count > tr->moment_room) {
    tr->moment1 = (mhk_real *)mhk__arena_zeros(ctx, arena, count, sizeof(mhk_real));
    tr->moment2 = (mhk_real *)mhk__arena_zeros(ctx, arena, count, sizeof(mhk_real));
    tr->staging = tr->desc.exchange ? (mhk_real *)mhk__arena_zeros(ctx, arena, count, sizeof(mhk_real)) : NULL;
    tr->moment_room = ctx->result == MHK_OK ? count : 0;
  }
  if (blocks > tr->block_room) {
    tr->blocks = (mhk__update_block *)mhk__arena_zeros(ctx, arena, blocks, sizeof *tr->blocks);
    tr->block_sum = (double *)mhk__arena_zeros(ctx, arena, blocks, sizeof(double));
    tr->block_room = ctx->result == MHK_OK ? blocks : 0;
  }
  return ctx->result == MHK_OK;
}

/* A new optimiser for a stage: which tensors, zero moments. */
static int mhk__optimizer_start(mhk_trainer *tr, int stage) {
  mhk_model *m = tr->student;
  mhk_index count, blocks, at = 0, n = 0, first;
  tr->optimizer_stage = 0;
  if (!mhk__pair_check(tr->object.ctx, m, tr->desc.teacher, stage)) return 0;
  mhk__stage_trains(m, stage, tr->desc.stages[stage - 1].trains, tr->flags);
  count = mhk__stage_count(m, tr->flags, &blocks);
  if (!mhk__optimizer_room(tr, count, blocks)) return 0;
  tr->n_trained = 0;
  for (int i = 0; i < m->n_tensors; i++)
    if (tr->flags[i]) {
      tr->trained[tr->n_trained] = m->tensors[i];
      tr->moment_at[tr->n_trained] = at;
      for (first = 0; first < m->tensors[i]->count; first += MHK__UPDATE_BLOCK) {
        tr->blocks[n].tensor = tr->n_trained;
        tr->blocks[n].first = first;
        tr->blocks[n].n = m->tensors[i]->count - first < MHK__UPDATE_BLOCK ? m->tensors[i]->count - first : MHK__UPDATE_BLOCK;
        n++;
      }
      at += m->tensors[i]->count;
      tr->n_trained++;
    }
  tr->n_blocks = n;
  tr->trained_count = at;
  if (at > 0) {
    memset(tr->moment1, 0, (size_t)at * sizeof(mhk_real));
    memset(tr->moment2, 0, (size_t)at * sizeof(mhk_real));
  }
  if (stage != 3)
    mhk__stage_same(m, tr->desc.teacher, tr->same);
  else
    memset(tr->same, 0, sizeof tr->same);
  tr->optimizer_step = 0;
  tr->optimizer_stage = stage;
  return tr->object.ctx->result == MHK_OK;
}

static void mhk__zero_block(void *arg, mhk_index task, int worker) {
  mhk_trainer *tr = (mhk_trainer *)arg;
  const mhk__update_block *b = &tr->blocks[task];
  (void)worker;
  memset(tr->trained[b->tensor]->grad + b->first, 0, (size_t)b->n * sizeof(mhk_real));
}

static void mhk__square_block(void *arg, mhk_index task, int worker) {
  mhk_trainer *tr = (mhk_trainer *)arg;
  const mhk__update_block *b = &tr->blocks[task];
  const mhk_real *g = tr->trained[b->tensor]->grad + b->first;
  double sum[8];
  mhk_index i;
  (void)worker;
  memset(sum, 0, sizeof sum);
  for (i = 0; i + 8 <= b->n; i += 8)
    for (mhk_index j = 0; j < 8; j++) sum[j] += (double)g[i + j] * (double)g[i + j];
  for (mhk_index j = 0; i < b->n; i++, j++) sum[j] += (double)g[i] * (double)g[i];
  tr->block_sum[task] = ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

/* AdamW with decoupled decay, in the order of PyTorch's: decay, moments, step. */
static void mhk__adamw_block(void *arg, mhk_index task, int worker) {
  mhk_trainer *tr = (mhk_trainer *)arg;
  const mhk__update_block *b = &tr->blocks[task];
  const mhk_tensor *x = tr->trained[b->tensor];
  const mhk_index at = tr->moment_at[b->tensor] + b->first;
  const mhk_real *s = tr->factors[tr->desc.decays == MHK_DECAY_MATRICES && x->rank < 2];
  (void)worker;
  tr->object.ctx->kernels->adamw(b->n, (mhk_real *)x->data + b->first, x->grad + b->first, tr->moment1 + at, tr->moment2 + at, s);
}

/* Sums gradients over the workers, through one contiguous block. */
static void mhk__exchange(mhk_trainer *tr) {
  for (int i = 0; i < tr->n_trained; i++)
    memcpy(tr->staging + tr->moment_at[i], tr->trained[i]->grad, (size_t)tr->trained[i]->count * sizeof(mhk_real));
  const int answer = tr->desc.exchange(tr->desc.exchange_user, tr->staging, (size_t)tr->trained_count);
  if (answer) {
    mhk_fail(tr->object.ctx, MHK_ERROR_STATE, "the gradient exchange failed with %d in stage %d after %lld updates", answer,
             tr->optimizer_stage, (long long)tr->optimizer_step);
    return;
  }
  for (int i = 0; i < tr->n_trained; i++)
    memcpy(tr->trained[i]->grad, tr->staging + tr->moment_at[i], (size_t)tr->trained[i]->count * sizeof(mhk_real));
}

static void mhk__diverged(mhk_trainer *tr, double value, const char *what, double lr) {
  const char *number = value < 0.0 || value > 0.0 ? "infinite" : "not a number";
  const int stage = tr->optimizer_stage;
  if (tr->teacher_broke) {
    mhk_fail(tr->object.ctx, MHK_ERROR_STATE,
             "stage %d diverged at update %lld: %s is %s. First not finite: %s. The teacher computes such numbers by "
             "itself: no learning rate helps, mend or replace its weights. The student keeps the weights before this update",
             stage, (long long)tr->optimizer_step + 1, what, number, tr->why);
    return;
  }
  mhk_fail(
      tr->object.ctx, MHK_ERROR_STATE,
      "stage %d diverged at update %lld: %s is %s at learning rate %g. First not finite: %s. The student keeps the "
      "weights before this update; start again with a lower learning rate for this stage (stages[%d].lr, %g was the "
      "top), a longer warm-up or a smaller clip",
      stage, (long long)tr->optimizer_step + 1, what, number, lr, tr->why[0] ? tr->why : "the sum of the losses",
      stage - 1, tr->desc.stages[stage - 1].lr);
}

/* the first trained tensor whose gradient is not finite */
static void mhk__gradient_breaks(mhk_trainer *tr) {
  for (int i = 0; i < tr->n_trained; i++) {
    mhk_tensor gradient = *tr->trained[i];
    gradient.data = gradient.grad;
    if (!mhk__breaks(tr->why, &gradient, 0, gradient.name, -1, "student's gradients")) continue;
    return;
  }
  mhk__print(tr->why, sizeof tr->why, "the norm of the gradients, which are finite");
}

/* The step of the optimiser: gradients are sums over `parts` batches of mean losses. Returns their norm after averaging. */
static double mhk__optimizer_step(mhk_trainer *tr, double loss, double lr, double parts) {
  mhk_context *ctx = tr->object.ctx;
  const mhk_stage_desc *d = &tr->desc.stages[tr->optimizer_stage - 1];
  double norm = 0.0, t, scale;
  mhk_real *f = tr->factors[0];
  if (tr->desc.exchange) {
    parts *= (double)tr->desc.world;
    mhk__exchange(tr);
    if (ctx->result != MHK_OK) return NAN;
  }
  mhk__parallel(ctx, tr->n_blocks, mhk__square_block, tr);
  for (mhk_index i = 0; i < tr->n_blocks; i++) norm += tr->block_sum[i];
  norm = sqrt(norm) / parts;
  if (!mhk__is_finite(loss)) {
    mhk__diverged(tr, loss, "the loss", lr);
    return NAN;
  }
  if (!mhk__is_finite(norm)) {
    mhk__gradient_breaks(tr);
    mhk__diverged(tr, norm, "the gradient", lr);
    return NAN;
  }
  scale = 1.0 / parts;
  if (d->clip > 0.0 && d->clip / (norm + 1e-6) < 1.0) scale *= d->clip / (norm + 1e-6);
  t = (double)++tr->optimizer_step;
  mhk__adamw_factors(lr, d->weight_decay > 0.0 ? d->weight_decay : 0.0, tr->desc.beta1, tr->desc.beta2, tr->desc.eps, scale, t, f);
  memcpy(tr->factors[1], f, sizeof tr->factors[0]);
  tr->factors[1][0] = 0;
  mhk__parallel(ctx, tr->n_blocks, mhk__adamw_block, tr);
  return norm;
}

/* One update of a stage: `micro` batches from the text, or one of the caller's. */
static double mhk__update(mhk_trainer *tr, int stage, const int32_t *tokens, mhk_index B, mhk_index T, const int32_t *doc, mhk_index micro,
                          double lr) {
  mhk_context *ctx = tr->object.ctx;
  mhk_model *m = tr->student;
  const mhk_index L = m->config.n_layer, cells = L * (mhk_index)m->config.ssm_heads;
  mhk__stage_run r;
  mhk_precision before;
  double loss = 0.0, value, norm;
  if (tr->optimizer_stage != stage && !mhk__optimizer_start(tr, stage)) return NAN;
  tr->why[0] = 0;
  tr->teacher_broke = 0;
  for (mhk_index j = 0; j < L; j++) tr->layer_loss[j] = 0.0;
  for (mhk_index j = 0; j < cells; j++) tr->relative[j] = 0.0;
  for (int i = 0; i < m->n_tensors; i++) {
    tr->required[i] = (unsigned char)(m->tensors[i]->requires_grad != 0);
    m->tensors[i]->requires_grad = tr->flags[i];
  }
  mhk__parallel(ctx, tr->n_blocks, mhk__zero_block, tr);
  for (mhk_index k = 0; k < micro && ctx->result == MHK_OK; k++) {
    if (!tokens) mhk__next_batch(tr);
    memset(&r, 0, sizeof r);
    r.tape = tr->tape;
    r.ctx = ctx;
    r.student = m;
    r.teacher = tr->desc.teacher;
    r.desc = &tr->desc.stages[stage - 1];
    r.same = tr->same;
    r.tokens = tokens ? tokens : tr->window;
    r.doc = tokens ? doc : tr->window_doc;
    r.B = B;
    r.T = T;
    r.recompute = stage == 3 && tr->desc.recompute;
    r.layer_loss = stage == 3 ? NULL : tr->layer_now;
    r.relative = stage == 1 ? tr->relative_now : NULL;
    for (mhk_index j = 0; j < L; j++) tr->layer_now[j] = 0.0;
    for (mhk_index j = 0; j < cells; j++) tr->relative_now[j] = 0.0;
    before = mhk_set_precision(ctx, tr->desc.precision);
    value = mhk__stage_loss(&r, stage);
    loss += value / (double)micro;
    if (!mhk__is_finite(value) && ctx->result == MHK_OK && !tr->why[0])
      tr->teacher_broke = mhk__find_first(&r, stage, tr->why);
    ctx->precision = before;
    mhk_tape_reset(tr->tape);
    for (mhk_index j = 0; j < L; j++) tr->layer_loss[j] += tr->layer_now[j] / (double)micro;
    for (mhk_index j = 0; j < cells; j++) tr->relative[j] += tr->relative_now[j] / (double)micro;
  }
  for (int i = 0; i < m->n_tensors; i++) m->tensors[i]->requires_grad = tr->required[i];
  if (ctx->result != MHK_OK) return NAN;
  norm = mhk__optimizer_step(tr, loss, lr, (double)micro);
  if (ctx->result != MHK_OK) return NAN;
  tr->info.grad_norm = norm;
  return loss;
}

static mhk_index mhk__share(double share, mhk_index S) {
  const mhk_index n = share > 0.0 ? (mhk_index)((double)S * share * (1.0 + 1e-12)) : 0;
  return share <= 0.0 ? 0 : n < 1 ? 1 : n > S ? S : n;
}

/* To the next stage with updates to do, from the present one on. */
static void mhk__stage_seek(mhk_trainer *tr) {
  while (tr->stage <= 3 && tr->step >= tr->S[tr->stage - 1]) {
    tr->stage++;
    tr->step = 0;
    tr->optimizer_stage = 0;
    tr->seconds_before = 0.0;
    tr->step_before = 0;
    tr->started_seconds = -1.0;
    tr->info.loss_average = 0.0;
  }
  if (tr->stage > 3) {
    tr->stage = 3;
    tr->finished = 1;
  }
}

static void mhk__progress_place(mhk_trainer *tr, int stage, mhk_index step) {
  mhk_progress_info *p = &tr->info;
  p->stage = stage;
  p->step = step;
  p->steps = tr->S[stage - 1];
  p->tokens = step * tr->desc.update_tokens;
  p->total_tokens = p->steps * tr->desc.update_tokens;
  p->layer_loss = stage == 3 ? NULL : tr->layer_loss;
  p->relative = stage == 1 ? tr->relative : NULL;
}

MHKDEF int mhk_train_step(mhk_trainer *tr) {
  mhk_context *ctx = mhk__trainer_context(tr);
  mhk_index S;
  double lr;
  int stage;
  if (mhk_failed(ctx)) return 0;
  mhk_progress_info *p = &tr->info;
  p->stage_done = 0;
  if (tr->finished) return 0;
  if (!tr->desc.text) {
    mhk_fail(ctx, MHK_ERROR_STATE, "this trainer has no text: give one in the description, or drive it with mhk_train_on()");
    return 0;
  }
  stage = tr->stage;
  S = tr->S[stage - 1];
  const mhk_stage_desc *d = &tr->desc.stages[stage - 1];
  if (tr->started_seconds < 0.0) {
    tr->started_seconds = mhk__seconds();
    tr->step_before = tr->step;
  }
  lr = mhk_learning_rate(d->lr, d->lr_low, mhk__share(d->warmup, S), mhk__share(d->decay, S), tr->step, S);
  double average = p->loss_average;
  const double loss = mhk__update(tr, stage, NULL, tr->rows, tr->desc.length, NULL, tr->micro, lr);
  if (ctx->result != MHK_OK) return 0;
  tr->step++;
  const double now = mhk__seconds();
  mhk__progress_place(tr, stage, tr->step);
  p->loss = loss;
  p->loss_average = average + (loss - average) / (double)(tr->step < 20 ? tr->step : 20);
  p->lr = lr;
  {
    const double here = now > tr->started_seconds ? now - tr->started_seconds : 0.0;
    const double tokens = (double)(tr->step - tr->step_before) * (double)tr->desc.update_tokens;
    p->seconds = tr->seconds_before + here;
    p->tokens_per_second = here > 0.0 ? tokens / here : 0.0;
    p->seconds_left = p->tokens_per_second > 0.0 ? (double)(p->total_tokens - p->tokens) / p->tokens_per_second : 0.0;
  }
  if (tr->step >= S) {
    average = p->loss_average;
    p->stage_done = 1;
    mhk__stage_seek(tr);
  }
#ifndef MOHAWK_NO_STDIO
  if (tr->path && (p->stage_done || (tr->desc.checkpoint_seconds > 0.0 && now - tr->checkpoint_clock >= tr->desc.checkpoint_seconds))) mhk_checkpoint(tr);
#endif
  if (p->stage_done) p->loss_average = average; /* of the stage that ended; the next one starts from its first step */
  return ctx->result == MHK_OK;
}

MHKDEF double mhk_train_on(mhk_trainer *tr, int stage, const int32_t *tokens, mhk_index B, mhk_index T, const int32_t *doc, double lr) {
  mhk_context *ctx = mhk__trainer_context(tr);
  if (mhk_failed(ctx)) return NAN;
  if (stage < 1 || stage > 3 || !tokens || B <= 0 || T <= 0) {
    mhk_fail(ctx, MHK_ERROR_ARGUMENT, "an update needs a stage from 1 to 3 (this is %d) and tokens", stage);
    return NAN;
  }
  if (!mhk__number_fits(ctx, "mhk_train_on", "the learning rate (lr)", lr, 0, MHK__REAL_MOST) ||
      !mhk__size3(ctx, B, T, 64))
    return NAN;
  const double loss = mhk__update(tr, stage, tokens, B, T, doc, 1, lr);
  if (ctx->result != MHK_OK) return NAN;
  tr->driven++;
  tr->info.stage = stage;
  tr->info.loss = loss;
  tr->info.lr = lr;
  tr->info.layer_loss = stage == 3 ? NULL : tr->layer_loss;
  tr->info.relative = stage == 1 ? tr->relative : NULL;
  return loss;
}

MHKDEF const mhk_progress_info *mhk_progress(mhk_trainer *tr) { return tr ? &tr->info : NULL; }
MHKDEF mhk_model *mhk_student(mhk_trainer *tr) { return tr ? tr->student : NULL; }

/* ---------------------------------------------------------------------------------------- checkpoints */

/* "name: value", with the stage before it unless that is 0 */
static void mhk__fact_name(mhk__writer *w, int stage, const char *name) {
  if (stage) {
    mhk__write_text(w, "stage ");
    mhk__write_integer(w, stage);
    mhk__write_text(w, " ");
  }
  mhk__write_text(w, name);
  mhk__write_text(w, ": ");
}

static void mhk__fact_text(mhk__writer *w, int stage, const char *name, const char *value) {
  mhk__fact_name(w, stage, name);
  mhk__write_text(w, value);
  mhk__write_text(w, "\n");
}

static void mhk__fact_integer(mhk__writer *w, int stage, const char *name, mhk_index value) {
  mhk__fact_name(w, stage, name);
  mhk__write_integer(w, (int64_t)value);
  mhk__write_text(w, "\n");
}

static void mhk__fact_number(mhk__writer *w, int stage, const char *name, double value) {
  mhk__fact_name(w, stage, name);
  mhk__write_double(w, value);
  mhk__write_text(w, "\n");
}

static void mhk__hex(uint64_t v, char out[17]) {
  for (int i = 0; i < 16; i++) out[i] = "0123456789abcdef"[(v >> (60 - 4 * i)) & 15u];
  out[16] = 0;
}

#ifdef MOHAWK_DOUBLE
#define MHK__REAL_TEXT "F64"
#else
#define MHK__REAL_TEXT "F32"
#endif

/* Everything that decides what a run computes, a fact a line. */
static char *mhk__run_text(mhk_trainer *tr) {
  mhk_context *ctx = tr->object.ctx;
  const mhk_distill_desc *d = &tr->desc;
  const size_t config = mhk_config_format(&tr->student->config, NULL, 0);
  char hex[17];
  mhk__writer w;
  mhk__write_to(&w, ctx, &tr->object.arena);
  mhk__fact_text(&w, 0, "arithmetic", d->precision == MHK_PRECISION_BF16 ? MHK__REAL_TEXT " with products of BF16" : MHK__REAL_TEXT);
  mhk__hex(mhk__model_hash(d->teacher), hex);
  mhk__fact_text(&w, 0, "teacher's weights", hex);
  mhk__fact_integer(&w, 0, "tokens of text", d->text ? d->text->n : 0);
  mhk__hex(d->text ? mhk__hash(MHK__HASH_START, d->text->tokens, (size_t)d->text->n * sizeof(int32_t)) : 0, hex);
  mhk__fact_text(&w, 0, "text", hex);
  for (int i = 1; i <= 3; i++) {
    const mhk_stage_desc *s = &d->stages[i - 1];
    mhk__fact_integer(&w, i, "tokens", tr->S[i - 1] * d->update_tokens);
    if (tr->S[i - 1] == 0) continue;
    mhk__fact_number(&w, i, "learning rate", s->lr);
    mhk__fact_number(&w, i, "lowest learning rate", s->lr_low);
    mhk__fact_number(&w, i, "warm-up", s->warmup);
    mhk__fact_number(&w, i, "decay", s->decay);
    mhk__fact_number(&w, i, "weight decay", s->weight_decay);
    mhk__fact_number(&w, i, "clip", s->clip);
    mhk__fact_integer(&w, i, "trains", (mhk_index)s->trains);
    if (i != 3) continue;
    mhk__fact_number(&w, i, "temperature", s->temperature);
    mhk__fact_number(&w, i, "hard labels", s->hard_labels);
    mhk__fact_number(&w, i, "own-stream alignment", s->own_stream);
  }
  mhk__fact_integer(&w, 0, "batch", d->batch);
  mhk__fact_integer(&w, 0, "length", d->length);
  mhk__fact_integer(&w, 0, "tokens an update", d->update_tokens);
  mhk__fact_text(&w, 0, "windows", d->windows == MHK_WINDOWS_PACKED ? "packed" : "random");
  mhk__fact_number(&w, 0, "beta1", d->beta1);
  mhk__fact_number(&w, 0, "beta2", d->beta2);
  mhk__fact_number(&w, 0, "eps", d->eps);
  mhk__fact_text(&w, 0, "weight decay on", d->decays == MHK_DECAY_MATRICES ? "matrices" : "everything trained");
  mhk__hex(d->seed, hex);
  mhk__fact_text(&w, 0, "seed", hex);
  mhk__fact_integer(&w, 0, "workers", d->world);
  if (!d->student) {
    mhk__hex(d->student_desc.seed, hex);
    mhk__fact_integer(&w, 0, "student's initialisation", (mhk_index)d->student_desc.init);
    mhk__fact_text(&w, 0, "student's seed", hex);
  }
  char *json = (char *)mhk__arena_alloc(ctx, &tr->object.arena, config + 1);
  if (!json) return NULL;
  mhk_config_format(&tr->student->config, json, config + 1);
  mhk__fact_text(&w, 0, "student", json);
  return w.data;
}

#ifndef MOHAWK_NO_STDIO
/* length of the line at text, without its end */
static int mhk__line_length(const char *text) {
  int n = 0;
  while (text[n] && text[n] != '\n' && n < 200) n++;
  return n;
}

static const char *mhk__line_next(const char *text) {
  while (*text && *text != '\n') text++;
  return *text ? text + 1 : text;
}

static void mhk__run_differs(mhk_context *ctx, const char *path, const char *was, const char *is) {
  while (*was && *is) {
    const char *a = mhk__line_next(was), *b = mhk__line_next(is);
    if (a - was != b - is || memcmp(was, is, (size_t)(a - was)) != 0) break;
    was = a;
    is = b;
  }
  mhk_fail(ctx, MHK_ERROR_STATE, "%s belongs to another run: it has \"%.*s\" where this one has \"%.*s\". Describe the run as it was, "
           "use another folder, or set fresh to start over", path, mhk__line_length(was), was, mhk__line_length(is), is);
}

static uint64_t mhk__bits_of(double x) {
  uint64_t v;
  memcpy(&v, &x, sizeof v);
  return v;
}

static double mhk__double_of(uint64_t v) {
  double x;
  memcpy(&x, &v, sizeof x);
  return x;
}
#endif

#define MHK__SAVED 15 /* 64-bit values of a trainer's state, beside its tensors; version 1 had one less and no checksum */

#ifndef MOHAWK_NO_STDIO
static void mhk__saved_get(const mhk_trainer *tr, uint64_t v[MHK__SAVED]) {
  const double here = tr->started_seconds >= 0.0 && tr->step > 0 ? mhk__seconds() - tr->started_seconds : 0.0;
  v[0] = (uint64_t)tr->stage;
  v[1] = (uint64_t)tr->step;
  v[2] = (uint64_t)tr->finished;
  v[3] = (uint64_t)tr->optimizer_stage;
  v[4] = tr->optimizer_stage ? (uint64_t)tr->optimizer_step : 0;
  for (int i = 0; i < 4; i++) v[5 + i] = tr->rng.s[i];
  v[9] = tr->epoch;
  v[10] = (uint64_t)tr->document;
  v[11] = (uint64_t)tr->offset;
  v[12] = mhk__bits_of(tr->info.loss_average);
  v[13] = mhk__bits_of(tr->seconds_before + here);
  v[14] = (uint64_t)tr->driven;
}

#define MHK__CHECKPOINT "mohawk checkpoint 2"

/* One of a checkpoint's tensors: the student's, then first moments, then second ones; 0 after the last */
static int mhk__checkpoint_tensor(mhk_trainer *tr, int i, mhk__outgoing *o) {
  mhk_context *ctx = tr->object.ctx;
  const mhk_model *m = tr->student;
  const int moments = tr->optimizer_stage ? tr->n_trained : 0, own = i < m->n_tensors, second = i >= m->n_tensors + moments;
  const int at = own ? i : i - m->n_tensors - (second ? moments : 0);
  if (i >= m->n_tensors + 2 * moments) return 0;
  const mhk_tensor *x = own ? m->tensors[i] : tr->trained[at];
  mhk__outgoing_set(o, x->name, MHK_REAL, MHK_REAL, x->rank, x->shape, own ? x->data : (second ? tr->moment2 : tr->moment1) + tr->moment_at[at]);
  if (own) return 1;
  const size_t room = strlen(x->name) + 20;
  char *name = (char *)mhk__scratch(ctx, (mhk_index)room, 1);
  if (name) mhk__print(name, room, "optimizer.%s.%s", second ? "v" : "m", x->name);
  o->name = name;
  return name != NULL;
}

MHKDEF mhk_result mhk_checkpoint(mhk_trainer *tr) {
  static const mhk_index eight = 8;
  mhk_context *ctx = mhk__trainer_context(tr);
  mhk__outgoing *list;
  mhk__output out;
  uint64_t saved[MHK__SAVED];
  char state[MHK__SAVED * 17 + 1];
  const char *metadata[6];
  int i, n = 0;
  if (mhk_failed(ctx)) return mhk_error(ctx);
  if (!tr->path) return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "this trainer has no folder for checkpoints: name one in out");
  tr->checkpoint_clock = mhk__seconds();
  if (tr->desc.rank != 0) return MHK_OK; /* all workers hold the same: the first one writes */
  mhk__mark mark = mhk__scratch_mark(ctx);
  list = (mhk__outgoing *)mhk__scratch(ctx, 3 * (mhk_index)tr->student->n_tensors + 1, sizeof *list);
  while (list && mhk__checkpoint_tensor(tr, n, list + n)) n++;
  if (ctx->result == MHK_OK) {
    mhk__outgoing_set(list + n++, "checksum.xxh64", MHK_U8, MHK_U8, 1, &eight, NULL);
    mhk__saved_get(tr, saved);
    for (i = 0; i < MHK__SAVED; i++) {
      mhk__hex(saved[i], state + 17 * i);
      state[17 * i + 16] = i + 1 < MHK__SAVED ? ' ' : 0;
    }
    metadata[0] = "format";
    metadata[1] = MHK__CHECKPOINT;
    metadata[2] = "state";
    metadata[3] = state;
    metadata[4] = "run";
    metadata[5] = tr->run;
    mhk__file_put(ctx, &out, tr->path, n, list, 3, metadata, NULL);
    mhk__output_flush(&out);
    if (mhk__output_ok(ctx, &out) && tr->keeps && mhk__is_file(tr->path)) mhk__keep_as(tr->path, tr->previous); /* where that fails, one is kept */
    if (mhk__output_close_or_fail(ctx, &out) == MHK_OK) {
      if (tr->desc.fresh && !tr->keeps) mhk__remove(tr->previous); /* of the run that this one replaces */
      tr->keeps = 1;
    }
  }
  mhk__scratch_rewind(ctx, mark);
  tr->checkpoint_clock = mhk__seconds();
  return ctx->result;
}

/* sixteen hexadecimal digits and a separator, so many times; 0 when the text is anything else */
static int mhk__saved_parse(const char *text, size_t n, size_t values, uint64_t v[MHK__SAVED]) {
  if (!text || n != values * 17 - 1) return 0;
  for (size_t i = 0; i < MHK__SAVED; i++) v[i] = 0;
  for (size_t i = 0; i < n; i++) {
    const char c = text[i];
    uint64_t digit;
    if (i % 17 == 16) {
      if (c != ' ') return 0;
      continue;
    }
    if (c >= '0' && c <= '9')
      digit = (uint64_t)(c - '0');
    else if (c >= 'a' && c <= 'f')
      digit = (uint64_t)(c - 'a') + 10u;
    else
      return 0;
    v[i / 17] = v[i / 17] << 4 | digit;
  }
  return 1;
}

/* what cannot be true of a checkpoint of this run, or NULL */
static const char *mhk__saved_wrong(mhk_trainer *tr, const uint64_t v[MHK__SAVED]) {
  const double loss = mhk__double_of(v[12]), seconds = mhk__double_of(v[13]);
  const mhk_text *x = tr->desc.text;
  if (v[0] < 1 || v[0] > 3 || v[2] > 1 || v[3] > 3 || v[4] > (uint64_t)PTRDIFF_MAX) return "its place in the run is impossible";
  if (v[2] && (v[0] != 3 || v[1] != 0)) return "it says that the run is finished, in the middle of it";
  if (!v[2] && v[1] >= (uint64_t)tr->S[v[0] - 1]) return "its stage is over";
  if ((v[3] != 0) != (v[4] != 0)) return "its optimiser belongs to no stage";
  if (v[14] == 0 && (v[4] != v[1] || (v[3] != 0 && v[3] != v[0]))) return "its optimiser and its stage have made different updates";
  if ((v[5] | v[6] | v[7] | v[8]) == 0) return "its generator of random numbers cannot be there";
  if (!mhk__is_finite(loss) || !(seconds >= 0.0) || !mhk__is_finite(seconds)) return "its loss or its time is no number";
  if (!tr->order) return v[9] | v[10] | v[11] ? "it has a place in a text that is drawn from at random" : NULL;
  if (v[10] >= (uint64_t)x->n_documents) return "its place in the text is impossible";
  tr->epoch = v[9];
  mhk__shuffle_documents(tr);
  return v[11] < (uint64_t)(x->start[tr->order[v[10]] + 1] - x->start[tr->order[v[10]]]) ? NULL : "its place in a document is impossible";
}

#define MHK__DAMAGE 600

/* Checks that f has all tensors of this run's state (read 0), or reads them. */
static int mhk__resume_tensors(mhk_trainer *tr, const mhk_file *f, int read, char why[MHK__DAMAGE]) {
  mhk_context *ctx = tr->object.ctx;
  const mhk__mark mark = mhk__scratch_mark(ctx);
  mhk__outgoing o;
  int i, k, same = 1;
  for (i = 0; same && mhk__checkpoint_tensor(tr, i, &o); i++) {
    const mhk_file_tensor *y = mhk_file_find(f, o.name);
    same = y && y->dtype == MHK_REAL && y->rank == o.rank;
    for (k = 0; same && k < o.rank; k++) same = y->shape[k] == o.shape[k];
    if (!same)
      mhk__print(why, MHK__DAMAGE, "it %s tensor %.200s%s", y ? "has" : "lacks", o.name, y ? " in another shape or type" : "");
    else if (read)
      mhk_file_read(ctx, y, (mhk_real *)(uintptr_t)o.data); /* the trainer's own memory */
    mhk__scratch_rewind(ctx, mark);
  }
  return same && ctx->result == MHK_OK;
}

/* Takes over a checkpoint: 1; 0: damaged, and why; -1: the context has failed. Nothing is taken over unless all of it can be. */
static int mhk__resume_read(mhk_trainer *tr, const mhk_file *f, const char *path, int old, char why[MHK__DAMAGE]) {
  mhk_context *ctx = tr->object.ctx;
  const char *format = mhk_file_metadata(f, "format", NULL), *run = mhk_file_metadata(f, "run", NULL), *state, *wrong;
  uint64_t v[MHK__SAVED];
  size_t n = 0;
  state = mhk_file_metadata(f, "state", &n);
  memset(v, 0, sizeof v);
  v[14] = (uint64_t)old; /* it does not say */
  if (!format || (!old && strcmp(format, MHK__CHECKPOINT) != 0) || !run || !mhk__saved_parse(state, n, old ? MHK__SAVED - 1 : MHK__SAVED, v)) {
    mhk__print(why, MHK__DAMAGE, "it is no checkpoint of a training run that this version reads");
    return 0;
  }
  if (strcmp(run, tr->run) != 0) {
    mhk__run_differs(ctx, path, run, tr->run);
    return -1;
  }
  if (old && v[3] == 0) v[4] = 0;
  wrong = mhk__saved_wrong(tr, v);
  if (wrong) {
    mhk__print(why, MHK__DAMAGE, "it contradicts itself: %s", wrong);
    return 0;
  }
  tr->optimizer_stage = 0;
  if (v[3] && !mhk__optimizer_start(tr, (int)v[3])) return -1;
  if (!mhk__resume_tensors(tr, f, 0, why)) {
    tr->optimizer_stage = 0;
    return ctx->result == MHK_OK ? 0 : -1;
  }
  if (!mhk__resume_tensors(tr, f, 1, why)) return -1;
  tr->optimizer_step = (mhk_index)v[4];
  tr->stage = (int)v[0];
  tr->step = (mhk_index)v[1];
  tr->finished = (int)v[2];
  for (int i = 0; i < 4; i++) tr->rng.s[i] = v[5 + i];
  tr->document = (mhk_index)v[10];
  tr->offset = (mhk_index)v[11];
  tr->driven = (mhk_index)v[14];
  tr->info.loss_average = mhk__double_of(v[12]);
  tr->seconds_before = mhk__double_of(v[13]);
  tr->info.resumed = 1;
  mhk__progress_place(tr, tr->stage, tr->finished ? tr->S[2] : tr->step);
  return 1;
}

/* The same of a file that is there. Its checksum comes first: what a damaged file says is not believed. */
static int mhk__resume_from(mhk_trainer *tr, const char *path, char why[MHK__DAMAGE]) {
  static const char first[] = "{\"__metadata__\":{\"format\":\"mohawk checkpoint 1\"";
  mhk_context *ctx = tr->object.ctx;
  mhk__bytes b;
  mhk__xxh64 sum;
  int result, old = 0, error = mhk__bytes_open(path, &b);
  if (!error) {
    const size_t n = b.size < 8 ? 0 : b.size - 8;
    old = n >= sizeof first && memcmp(b.data + 8, first, sizeof first - 1) == 0;
    mhk__xxh64_start(&sum);
    mhk__xxh64_put(&sum, b.data, n);
    result = old || (n > 0 && mhk__get_bytes(b.data + n, 8) == mhk__xxh64_end(&sum));
    mhk__bytes_close(&b);
    if (!result) mhk__print(why, MHK__DAMAGE, "its checksum is wrong");
  } else {
    result = 0;
    mhk__print(why, MHK__DAMAGE, "%s", mhk__file_reason(error));
  }
  if (!result) return 0;
  mhk_file *f = mhk_file_open(ctx, path);
  if (!f) {
    if (ctx->result == MHK_ERROR_MEMORY) return -1;
    mhk__print(why, MHK__DAMAGE, "%s", mhk_message(ctx));
    mhk_clear_error(ctx);
    return 0;
  }
  result = mhk__resume_read(tr, f, path, old, why);
  mhk_file_close(f);
  if (old && result > 0)
    mhk__note(ctx, MHK_LOG_WARNING, "the checkpoint %s is of an older version, without a checksum: damage in its numbers would not show", path);
  return result;
}

/* Continues where a checkpoint stands, or where the one before it did when that one is damaged. Where neither can be used it is an error that says what to
   do: starting over silently would cost the run. */
static void mhk__resume(mhk_trainer *tr) {
  mhk_context *ctx = tr->object.ctx;
  const char *const path[2] = {tr->path, tr->previous};
  char why[2][MHK__DAMAGE];
  int i, there = 0, got;
  for (i = 0; i < 2; i++) {
    strcpy(why[i], "it is not there");
    if (!mhk__is_file(path[i])) continue;
    there |= 1 << i;
    got = mhk__resume_from(tr, path[i], why[i]);
    if (got < 0) return;
    if (got > 0) {
      tr->keeps = i == 0;
      if (i == 1)
        mhk__note(ctx, MHK_LOG_WARNING, "the checkpoint %.300s cannot be used: %s. The run goes on from the one before it, %.300s", path[0], why[0], path[1]);
      return;
    }
  }
  if (there == 1)
    mhk_fail(ctx, MHK_ERROR_FORMAT, "the checkpoint %.300s cannot be resumed: %.250s. Set fresh (--fresh) to start over", path[0], why[0]);
  else if (there)
    mhk_fail(ctx, MHK_ERROR_FORMAT, "neither checkpoint can be resumed. %.200s: %.150s. %.200s: %.150s. Set fresh (--fresh) to start over", path[0], why[0],
             path[1], why[1]);
}
#endif

/* ---------------------------------------------------------------------------------------- trainer: making one */

static int mhk__distill_check(mhk_context *ctx, const mhk_distill_desc *d) {
  if (!d->teacher) {
    mhk_fail(ctx, MHK_ERROR_ARGUMENT, "distillation needs a teacher");
    return 0;
  }
#ifdef MOHAWK_NO_STDIO
  if (d->out) {
    mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "checkpoints in %.200s cannot be had: this program was built without files", d->out);
    return 0;
  }
#endif
  if (d->student && !d->student->trainable) {
    mhk_fail(ctx, MHK_ERROR_ARGUMENT, "the student is frozen: make it with mhk_student_create(), or call mhk_model_make_trainable() on "
             "it");
    return 0;
  }
  if (d->student == d->teacher) {
    mhk_fail(ctx, MHK_ERROR_ARGUMENT, "teacher and student are the same model");
    return 0;
  }
  if (d->batch < 1 || d->length < 2 || d->batch > PTRDIFF_MAX / 1024 / d->length) {
    mhk_fail(ctx, MHK_ERROR_ARGUMENT, "batches of %lld sequences of %lld tokens cannot be trained on: at least 1 of 2",
             (long long)d->batch, (long long)d->length);
    return 0;
  }
  if (d->update_tokens < d->batch * d->length || d->update_tokens % (d->batch * d->length) != 0) {
    mhk_fail(ctx, MHK_ERROR_ARGUMENT, "an update of %lld tokens is not a whole number of batches: batch %lld x length %lld is %lld",
             (long long)d->update_tokens, (long long)d->batch, (long long)d->length, (long long)(d->batch * d->length));
    return 0;
  }
  if (d->world < 1 || d->rank < 0 || d->rank >= d->world || d->batch % d->world != 0 || (d->world > 1 && !d->exchange)) {
    mhk_fail(ctx, MHK_ERROR_ARGUMENT, "worker %d of %d with batch %lld: rank must be below world, world must divide the batch, and "
             "several workers need an exchange", d->rank, d->world, (long long)d->batch);
    return 0;
  }
  if (!(d->beta1 >= 0.0 && d->beta1 < 1.0 && d->beta2 >= 0.0 && d->beta2 < 1.0 && d->eps > 0.0 &&
        d->eps <= MHK__REAL_MOST)) {
    mhk_fail(ctx, MHK_ERROR_ARGUMENT,
             "AdamW with beta1 %g, beta2 %g, eps %g: the betas lie in (0,1), eps is positive and finite", d->beta1,
             d->beta2, d->eps);
    return 0;
  }
  if (!mhk__number_fits(ctx, "distillation", "checkpoint_seconds", d->checkpoint_seconds, -DBL_MAX, DBL_MAX)) return 0;
  if (d->precision != MHK_PRECISION_FULL && d->precision != MHK_PRECISION_BF16) {
    mhk_fail(ctx, MHK_ERROR_ARGUMENT, "precision %d is none: 0 is full, 1 bfloat16", (int)d->precision);
    return 0;
  }
  for (int i = 0; i < 3; i++) {
    const mhk_stage_desc *s = &d->stages[i];
    if (!mhk__stage_numbers(ctx, s, i + 1)) return 0;
    if (s->tokens > 0 && s->tokens < d->update_tokens) {
      mhk_fail(ctx, MHK_ERROR_ARGUMENT, "stage %d has a budget of %lld tokens, less than one update of %lld: raise it, or set it to 0 to "
               "skip the stage", i + 1, (long long)s->tokens, (long long)d->update_tokens);
      return 0;
    }
    if (s->tokens > 0 && d->text && d->text->largest >= d->teacher->config.vocab_size) {
      mhk_fail(ctx, MHK_ERROR_ARGUMENT, "the text has token %ld, the teacher's vocabulary ends at %d: was it made with another "
               "tokenizer?", (long)d->text->largest, d->teacher->config.vocab_size - 1);
      return 0;
    }
    if (s->tokens > 0 && d->text && d->windows == MHK_WINDOWS_RANDOM && d->text->n < d->length) {
      mhk_fail(ctx, MHK_ERROR_ARGUMENT, "the text has %lld tokens, too few for one window of %lld", (long long)d->text->n,
               (long long)d->length);
      return 0;
    }
  }
  return 1;
}

#ifndef MOHAWK_NO_STDIO
/* "process 123 on NAME", as far as it can be read */
static const char *mhk__lock_holder(const char *path, char out[128]) {
  mhk__bytes b;
  size_t n = 0;
  if (mhk__bytes_open(path, &b) == 0) {
    while (n < 127 && n < b.size && b.data[n] >= ' ' && b.data[n] < 127) n++;
    memcpy(out, b.data, n);
    mhk__bytes_close(&b);
  }
  while (n > 0 && out[n - 1] == ' ') n--;
  out[n] = 0;
  return n > 0 ? out : "another process";
}

/* One trainer writes to a folder. Other workers of its job only read there. */
static int mhk__trainer_lock(mhk_trainer *tr) {
  const char *out = tr->desc.out;
  char path[MHK__PATH_MOST + 64], who[128];
  if (!mhk__path_fits(tr->object.ctx, out)) return 0;
  if (tr->desc.rank != 0) return 1;
  mhk__join_path(path, sizeof path, out, "run.lock");
  const int error = mhk__lock_take(&tr->lock, path, 0);
  tr->locked = !error;
  if (error == EBUSY)
    mhk_fail(tr->object.ctx, MHK_ERROR_STATE, "the folder %s is in use: %s trains there. Wait for it, stop it, or name another folder", out,
             mhk__lock_holder(path, who));
  else if (error)
    mhk_fail(tr->object.ctx, MHK_ERROR_FILE, "the folder %s for checkpoints cannot be locked with %s: %s", out, path, mhk__file_reason(error));
  return !error;
}

#endif

static void mhk__trainer_close(void *object) {
#ifndef MOHAWK_NO_STDIO
  mhk_trainer *tr = (mhk_trainer *)object;
  if (tr->locked) mhk__lock_give(&tr->lock);
#else
  (void)object;
#endif
}

/* The parts of a trainer that need memory. */
static void mhk__trainer_fill(mhk_trainer *tr, mhk_context *ctx) {
  mhk__arena *arena = &tr->object.arena;
  mhk_distill_desc *d = &tr->desc;
  mhk_model *m = tr->student;
  const mhk_index L = m->config.n_layer, cells = L * (mhk_index)m->config.ssm_heads + 1, window = tr->rows * d->length;
  mhk_index count = 0, blocks = 0, c, b;
  if (!mhk__pair_check(ctx, m, d->teacher, tr->S[0] > 0 ? 1 : 0)) return;
  tr->flags = (unsigned char *)mhk__arena_zeros(ctx, arena, m->n_tensors, 1);
  tr->required = (unsigned char *)mhk__arena_zeros(ctx, arena, m->n_tensors, 1);
  tr->trained = (mhk_tensor **)mhk__arena_zeros(ctx, arena, m->n_tensors, sizeof(mhk_tensor *));
  tr->moment_at = (mhk_index *)mhk__arena_zeros(ctx, arena, m->n_tensors, sizeof(mhk_index));
  tr->layer_loss = (double *)mhk__arena_zeros(ctx, arena, L, sizeof(double));
  tr->layer_now = (double *)mhk__arena_zeros(ctx, arena, L, sizeof(double));
  tr->relative = (double *)mhk__arena_zeros(ctx, arena, cells, sizeof(double));
  tr->relative_now = (double *)mhk__arena_zeros(ctx, arena, cells, sizeof(double));
  tr->window = (int32_t *)mhk__arena_zeros(ctx, arena, window, sizeof(int32_t));
  if (d->windows == MHK_WINDOWS_PACKED) {
    tr->window_doc = (int32_t *)mhk__arena_zeros(ctx, arena, window, sizeof(int32_t));
    if (d->text) tr->order = (mhk_index *)mhk__arena_zeros(ctx, arena, d->text->n_documents, sizeof(mhk_index));
  }
  if (ctx->result != MHK_OK) return;
  for (int i = 1; i <= 3; i++) { /* the optimiser of the largest stage, now rather than in the middle of the run */
    if (tr->S[i - 1] == 0) continue;
    mhk__stage_trains(m, i, d->stages[i - 1].trains, tr->flags);
    c = mhk__stage_count(m, tr->flags, &b);
    if (c > count) count = c;
    if (b > blocks) blocks = b;
  }
  if (!mhk__optimizer_room(tr, count, blocks)) return;
  mhk__rng_seed(&tr->rng, d->seed);
  if (tr->order) mhk__shuffle_documents(tr);
  tr->run = mhk__run_text(tr);
  tr->tape = mhk_tape_create(ctx);
#ifndef MOHAWK_NO_STDIO
  if (d->out && ctx->result == MHK_OK) {
    const size_t room = strlen(d->out) + 40;
    const int error = d->rank == 0 ? mhk__make_folder(d->out) : 0;
    tr->path = (char *)mhk__arena_zeros(ctx, arena, (mhk_index)(2 * room), 1);
    if (error)
      mhk_fail(ctx, MHK_ERROR_FILE, "the folder %s for checkpoints cannot be made: %s", d->out, strerror(error));
    else if (tr->path && mhk__trainer_lock(tr)) {
      tr->previous = tr->path + room;
      mhk__join_path(tr->path, room, d->out, "checkpoint.safetensors");
      mhk__join_path(tr->previous, room, d->out, "checkpoint.previous.safetensors");
    }
  }
#endif
}

MHKDEF mhk_trainer *mhk_distill(mhk_context *ctx, const mhk_distill_desc *desc) {
  int i, first = 0;
  if (mhk_failed(ctx)) return NULL;
  if (!desc) {
    mhk_fail(ctx, MHK_ERROR_ARGUMENT, "distillation needs a description");
    return NULL;
  }
  mhk_distill_desc d = mhk_distill_defaults(desc);
  if (!mhk__distill_check(ctx, &d)) return NULL;
  mhk_trainer *tr = (mhk_trainer *)mhk__object_new(ctx, sizeof(mhk_trainer), mhk__trainer_close);
  if (!tr) return NULL;
  tr->desc = d;
  tr->student = d.student ? d.student : mhk_student_create(ctx, d.teacher, &d.student_desc);
  tr->micro = d.update_tokens / (d.batch * d.length);
  tr->rows = d.batch / d.world;
  for (i = 2; i >= 0; i--) {
    tr->S[i] = d.stages[i].tokens / d.update_tokens;
    if (tr->S[i] > 0) first = i + 1;
  }
  tr->stage = 1;
  tr->started_seconds = -1.0;
  if (tr->student) mhk__trainer_fill(tr, ctx);
  if (ctx->result == MHK_OK) {
    mhk__stage_seek(tr);
    mhk__progress_place(tr, first ? first : 1, 0);
#ifndef MOHAWK_NO_STDIO
    if (tr->locked) mhk__remove_temporaries(tr->path);
    if (tr->path && !d.fresh) mhk__resume(tr);
#endif
  }
  tr->desc.out = NULL; /* the caller's memory; path is ours */
  tr->desc.student_desc.keep_attention = NULL;
  tr->desc.student_desc.n_keep_attention = 0;
  tr->checkpoint_clock = mhk__seconds();
  if (ctx->result != MHK_OK) {
    mhk_model *made = d.student ? NULL : tr->student;
    mhk_trainer_destroy(tr);
    mhk_model_destroy(made);
    return NULL;
  }
  return tr;
}

MHKDEF void mhk_trainer_destroy(mhk_trainer *tr) {
  mhk_tape *tape;
  if (!tr) return;
  tape = tr->tape;
  mhk__object_free(tr);
  if (tape) mhk_tape_destroy(tape);
}

/* ---------------------------------------------------------------------------------------- trainer: memory beforehand */

/* The student's configuration as far as memory depends on it, without making one. */
static mhk_config mhk__student_shape(const mhk_distill_desc *d) {
  mhk_config c = d->teacher->config;
  const mhk_student_desc *s = &d->student_desc;
  if (d->student) return d->student->config;
  c.arch = MHK_ARCH_PHI_MAMBA;
  c.tie_embeddings = 0;
  c.conv_bias = 1;
  c.ssm_heads = c.ssm_groups = c.n_head;
  c.ssm_head_dim = c.head_dim;
  c.d_state = s->d_state > 0 ? s->d_state : c.head_dim;
  c.d_conv = 4;
  c.chunk_size = s->chunk_size > 0 ? s->chunk_size : 128;
  c.ssm_rotary_dim = s->rotary_dim >= 0 ? c.rotary_dim : 0;
  for (int l = 0; l < c.n_layer; l++) c.mixer[l] = MHK_MIXER_DISCRETE_MAMBA2;
  for (int l = 0; l < s->n_keep_attention && s->keep_attention; l++)
    if (s->keep_attention[l] >= 0 && s->keep_attention[l] < c.n_layer) c.mixer[s->keep_attention[l]] = MHK_MIXER_ATTENTION;
  return c;
}

/* Numbers a token that one block keeps for its backward pass. matrix: stage 1 needs B, C and the decay only. */
static double mhk__block_numbers(const mhk_config *c, int attention, int matrix) {
  const double D = c->d_model, E = (double)c->ssm_heads * c->ssm_head_dim, GN = (double)c->ssm_groups * c->d_state, H = c->ssm_heads;
  const double A = (double)c->n_head * c->head_dim, KV = (double)c->n_kv_head * c->head_dim;
  if (attention) return D + 2.0 * (A + KV) + KV + A + c->n_head + 2.0 * D + 2.0 * c->d_mlp;
  if (matrix) return D + 6.0 * GN + 4.0 * H; /* projected, convolved, turned */
  return D + (2.0 * E + 2.0 * GN + H) + (E + 2.0 * GN) + 2.0 * GN + 2.0 * H + E * (2.0 + (double)c->d_state / 64.0) + 2.0 * D +
         2.0 * c->d_mlp;
}

/* what an arena takes for so many bytes: its blocks double up to 32 MB, then stay that large */
static double mhk__arena_bytes(double bytes) {
  const double most = 33554432.0;
  double room = 65536.0;
  if (bytes >= most) return ceil(bytes / most) * most;
  while (room < bytes) room *= 2.0;
  return room;
}

MHKDEF double mhk_distill_bytes(const mhk_distill_desc *desc) {
  const double real = sizeof(mhk_real);
  double rows, D, V, E, model, teacher_block, mixers = 0.0, trained = 0.0, tape = 0.0, scratch, block = 0.0, all = 0.0, bytes;
  if (!desc || !desc->teacher) return 0.0;
  mhk_distill_desc d = mhk_distill_defaults(desc);
  mhk_config t = d.teacher->config;
  mhk_config c = mhk__student_shape(&d);
  rows = (double)(d.batch / (d.world > 0 ? d.world : 1)) * (double)d.length;
  D = c.d_model;
  V = c.vocab_size;
  E = (double)c.ssm_heads * c.ssm_head_dim;
  model = mhk_config_parameters(&c);
  for (int l = 0; l < c.n_layer; l++) {
    const int attention = c.mixer[l] == MHK_MIXER_ATTENTION;
    const double n = mhk__block_numbers(&c, attention, 0);
    if (!attention) mixers += (2.0 * E + 2.0 * (double)c.ssm_groups * c.d_state + c.ssm_heads + E) * D + 8.0 * (3.0 * E + c.ssm_heads);
    all += n;
    if (n > block) block = n;
  }
  teacher_block = mhk__block_numbers(&t, 1, 0);
  scratch = V * D + 4.0 * D * D + rows * D; /* a packed matrix, and what ops put aside */
  for (int i = 1; i <= 3; i++) {
    double count = d.stages[i - 1].trains == MHK_TRAIN_ALL ? model : mixers, stage;
    if (d.stages[i - 1].tokens == 0) continue;
    if (count > model) count = model;
    if (count > trained) trained = count;
    if (i == 1) {
      stage = 2.0 * D + (double)(t.n_head + 2 * t.n_kv_head) * t.head_dim * 2.0 + 2.0 * mhk__block_numbers(&c, 0, 1);
      if (stage < 2.0 * D + teacher_block) stage = 2.0 * D + teacher_block;
    } else if (i == 2) {
      stage = 3.0 * D + (teacher_block > 2.0 * block ? teacher_block : 2.0 * block);
    } else { /* the teacher's stream and logits stay; the student's activations and logits come twice, with their gradients */
      stage = (d.stages[2].own_stream > 0.0 ? c.n_layer * D : D) + 6.0 * D + 3.0 * V;
      stage += d.recompute ? 2.6 * block + 2.0 * c.n_layer * D : 2.0 * all;
      if (stage < teacher_block) stage = teacher_block;
      scratch += 2.0 * rows * V;
    }
    if (stage > tape) tape = stage;
  }
  bytes = mhk__arena_bytes(2.0 * model * real) + mhk__arena_bytes((d.exchange ? 3.0 : 2.0) * trained * real);
  bytes += mhk__arena_bytes(1.1 * tape * rows * real) + mhk__arena_bytes(scratch * real);
  if (d.text) bytes += 4.0 * (double)d.text->n + 8.0 * (double)d.text->n_documents * (d.windows == MHK_WINDOWS_PACKED ? 2.0 : 1.0);
  return bytes + 2e6;
}

/* ---------------------------------------------------------------------------------------- evaluation */

typedef struct mhk__scores {
  const mhk__kernels *kernels;
  const mhk_real *logits, *target; /* rows * V; target NULL: none */
  const int32_t *labels;           /* rows */
  mhk_index rows, V;
  double *cross_entropy, *kl, *agree; /* rows */
} mhk__scores;

#define MHK__SCORE_ROWS 16

static mhk_index mhk__largest(const mhk_real *x, mhk_index n) {
  mhk_index i, at = 0;
  for (i = 1; i < n; i++)
    if (x[i] > x[at]) at = i;
  return at;
}

static void mhk__score_rows(void *arg, mhk_index task, int worker) {
  const mhk__scores *s = (const mhk__scores *)arg;
  const mhk_index from = task * MHK__SCORE_ROWS, to = mhk__min(from + MHK__SCORE_ROWS, s->rows), V = s->V;
  (void)worker;
  for (mhk_index r = from; r < to; r++) {
    const mhk_real *x = s->logits + r * V, *y = s->target ? s->target + r * V : NULL;
    const double z = s->kernels->log_sum_exp(V, x, 1);
    s->cross_entropy[r] = z - (double)x[s->labels[r]];
    s->kl[r] = s->agree[r] = 0.0;
    if (y) { /* sum p (log p - log q), with log p = y - zy, log q = x - z */
      const double zy = s->kernels->log_sum_exp(V, y, 1);
      s->kl[r] = (s->kernels->soft_dot(V, y, y, MHK__R(zy)) - zy) - (s->kernels->soft_dot(V, x, y, MHK__R(zy)) - z);
      s->agree[r] = mhk__largest(x, V) == mhk__largest(y, V) ? 1.0 : 0.0;
    }
  }
}

/* mean over windows, and the standard error of that mean */
static void mhk__window_mean(const double *x, mhk_index n, double *mean, double *error) {
  double sum = 0.0, square = 0.0;
  for (mhk_index i = 0; i < n; i++) sum += x[i];
  *mean = n > 0 ? sum / (double)n : 0.0;
  for (mhk_index i = 0; i < n; i++) square += (x[i] - *mean) * (x[i] - *mean);
  *error = n > 1 ? sqrt(square / (double)(n - 1) / (double)n) : 0.0;
}

MHKDEF mhk_result mhk_evaluate(mhk_model *m, mhk_model *teacher, mhk_text *text, mhk_index length, mhk_index windows,
                               mhk_progress_fn progress, void *user, mhk_evaluation *result) {
  mhk_context *ctx;
  mhk__scores s;
  mhk_index w;
  int stop = 0;
  if (result) memset(result, 0, sizeof *result);
  if (!m) return MHK_ERROR_ARGUMENT;
  ctx = m->object.ctx;
  if (ctx->result != MHK_OK) return ctx->result;
  if (!text || !result || length < 0 || windows < 0 || length == 1)
    return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "an evaluation needs a text, a place for the result, and windows of two tokens or more");
  if (length == 0) length = 256;
  if (teacher && teacher->config.vocab_size != m->config.vocab_size)
    return mhk_fail(ctx, MHK_ERROR_CONFIG, "the model's vocabulary is %d, the teacher's %d: their predictions cannot be compared",
                    m->config.vocab_size, teacher->config.vocab_size);
  if (text->largest >= m->config.vocab_size)
    return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "the text has token %ld, the model's vocabulary ends at %d: was it made with another "
                    "tokenizer?", (long)text->largest, m->config.vocab_size - 1);
  const mhk_index have = text->n / length;
  if (have == 0)
    return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "the text has %lld tokens, too few for one window of %lld", (long long)text->n,
                    (long long)length);
  if (windows == 0 || windows > have) windows = have;
  const mhk_index V = m->config.vocab_size;
  const mhk_index D = m->config.d_model;
  mhk_index batch = length >= 2048 ? 1 : 2048 / length;
  if (batch > windows) batch = windows;
  const mhk_index rows = batch * length;
  mhk_index piece = MHK__LOGITS_PIECE / V < 16 ? 16 : MHK__LOGITS_PIECE / V;
  if (piece > rows) piece = rows;
  mhk__mark scratch = mhk__scratch_mark(ctx);
  double *window = (double *)mhk__scratch(ctx, 3 * windows, sizeof(double));
  double *row = (double *)mhk__scratch(ctx, 3 * rows, sizeof(double));
  int32_t *labels = (int32_t *)mhk__scratch(ctx, rows, sizeof(int32_t));
  mhk_tape *t = mhk_tape_create(ctx);
  if (t) mhk_tape_record(t, 0);
  for (w = 0; w < windows && t && !stop && ctx->result == MHK_OK; w += batch) {
    const mhk_index B = windows - w < batch ? windows - w : batch, n = B * length;
    const int32_t *tokens = text->tokens + w * length;
    mhk_index shape[3];
    mhk_tensor *x, *y = NULL;
    mhk_tape_reset(t);
    for (mhk_index i = 0; i < n; i++) labels[i] = (i + 1) % length ? tokens[i + 1] : tokens[i]; /* the last of a window does not count */
    x = mhk__stream(t, m, tokens, B, length, NULL, NULL);
    if (teacher) y = mhk__stream(t, teacher, tokens, B, length, NULL, NULL);
    shape[0] = n;
    shape[1] = D;
    x = mhk_reshape(t, x, 2, shape);
    if (teacher) {
      shape[1] = teacher->config.d_model;
      y = mhk_reshape(t, y, 2, shape);
    }
    for (mhk_index from = 0; from < n && ctx->result == MHK_OK; from += piece) {
      const mhk_index k = n - from < piece ? n - from : piece;
      const mhk_tape_mark mark = mhk_tape_here(t);
      mhk_tensor *a, *b = NULL;
      shape[0] = 1;
      shape[1] = k;
      shape[2] = D;
      a = mhk_forward_head(t, m, mhk_reshape(t, mhk_rows(t, x, from, k), 3, shape));
      if (teacher) {
        shape[2] = teacher->config.d_model;
        b = mhk_forward_head(t, teacher, mhk_reshape(t, mhk_rows(t, y, from, k), 3, shape));
      }
      if (!a || (teacher && !b)) break;
      s.kernels = ctx->kernels;
      s.logits = mhk_data(a);
      s.target = mhk_data(b);
      s.labels = labels + from;
      s.rows = k;
      s.V = V;
      s.cross_entropy = row + from;
      s.kl = row + rows + from;
      s.agree = row + 2 * rows + from;
      mhk__parallel(ctx, (k + MHK__SCORE_ROWS - 1) / MHK__SCORE_ROWS, mhk__score_rows, &s);
      mhk_tape_rewind(t, mark);
    }
    if (ctx->result != MHK_OK) break;
    for (mhk_index i = 0; i < B; i++) {
      for (int kind = 0; kind < 3; kind++) {
        const double *from_row = row + (mhk_index)kind * rows + i * length;
        double sum = 0.0;
        for (mhk_index j = 0; j + 1 < length; j++) sum += from_row[j];
        window[(mhk_index)kind * windows + w + i] = sum / (double)(length - 1);
      }
    }
    if (progress) stop = progress(user, w + B, windows);
  }
  if (ctx->result == MHK_OK && t) {
    const mhk_index done = w < windows ? w : windows;
    result->tokens = done * (length - 1);
    mhk__window_mean(window, done, &result->cross_entropy, &result->cross_entropy_error);
    if (teacher) {
      mhk__window_mean(window + windows, done, &result->kl, &result->kl_error);
      mhk__window_mean(window + 2 * windows, done, &result->agreement, &result->agreement_error);
    }
  }
  mhk_tape_destroy(t);
  mhk__scratch_rewind(ctx, scratch);
  return ctx->result;
}
#endif /* MOHAWK_IMPLEMENTATION */
/* ====================================================================================================
   PASSES: the instruction sets, and contexts, which choose one                            >>passes
   ====================================================================================================

   The kernels of all chapters, once for each instruction set that compiler and machine may have.
   Then what some processors have besides: dot products of bytes (AVX512-VNNI, SDOT) and of
   bfloat16 numbers (AVX512-BF16, AMX). Nothing compiled for a set is called before the set is
   known to be there. */

#ifdef MHK__TEMPLATE
static void MHK__N(mhk__fill)(mhk__kernels *k) {
  k->mr = MHK__MR;
  k->nr = MHK__NR;
  k->pack = MHK__N(mhk__pack);
  k->product = MHK__N(mhk__product);
  k->product_plain = MHK__N(mhk__product_plain);
  k->epilogue = MHK__N(mhk__epilogue_rows);
  k->rows_times = MHK__N(mhk__rows_times);
  k->q_rows = MHK__PASS == 1 ? 8 : 64;
#if MHK__PASS != 3
  k->q_prepare = MHK__N(mhk__q_prepare);
  k->q_times = MHK__N(mhk__q_times);
  k->attention_step = MHK__N(mhk__attention_step);
#endif
  k->attention = MHK__N(mhk__attention);
  k->ssd = MHK__N(mhk__ssd);
  k->ssd_step = MHK__N(mhk__ssd_step);
  k->conv_stream = MHK__N(mhk__conv_stream);
  k->norm = MHK__N(mhk__norm);
  k->log_sum_exp = MHK__N(mhk__log_sum_exp);
  k->gelu = MHK__N(mhk__gelu);
  k->gate = MHK__N(mhk__gate);
#ifndef MOHAWK_NO_TRAINING
  k->narrow.mr = MHK__MR;
  k->narrow.nr = MHK__NR;
  k->narrow.kr = 1;
  k->narrow.size = (int)sizeof(mhk_real);
  k->narrow.pack_a = MHK__N(mhk__narrow_pack_a);
  k->narrow.pack_b = MHK__N(mhk__narrow_pack_b);
  k->narrow.product = MHK__N(mhk__narrow_product);
  k->attention_back = MHK__N(mhk__attention_back);
  k->ssd_back = MHK__N(mhk__ssd_back);
  k->orientation = MHK__N(mhk__orientation);
  k->orientation_back = MHK__N(mhk__orientation_back);
  k->conv = MHK__N(mhk__conv);
  k->conv_back = MHK__N(mhk__conv_back);
  k->norm_back = MHK__N(mhk__norm_back);
  k->softmax = MHK__N(mhk__softmax);
  k->soft_dot = MHK__N(mhk__soft_dot);
  k->soft_back = MHK__N(mhk__soft_back);
  k->gelu_back = MHK__N(mhk__gelu_back);
  k->gate_back = MHK__N(mhk__gate_back);
  k->distance = MHK__N(mhk__distance);
  k->adamw = MHK__N(mhk__adamw);
#endif
}

#undef MHK__JOIN2
#undef MHK__JOIN
#undef MHK__N
#undef MHK__N2
#undef MHK__N3
#undef MHK__W
#undef MHK__V
#undef MHK__LOAD
#undef MHK__STORE
#undef MHK__SET
#undef MHK__FMA
#undef MHK__MAX
#undef MHK__SQRT
#undef MHK__MIN
#undef MHK__POWER2
#undef MHK__MASK
#undef MHK__LOAD_BF16
#undef MHK__LOAD_F16
#undef MHK__WIDEN
#undef MHK__FETCH
#undef MHK__WORDS
#undef MHK__LOAD_WORDS
#undef MHK__EVEN_BF16
#undef MHK__ODD_BF16
#undef MHK__FEW_ROWS
#undef MHK__FEW_ROWS4
#undef MHK__FEW_ROWS_OF
#undef MHK__STREAM_START
#undef MHK__STREAM_STEP
#undef MHK__STREAM_END
#undef MHK__SUM_START
#undef MHK__SUM_STEP
#undef MHK__SUM_END
#undef MHK__THREE_STREAMS
#undef MHK__FOUR_STREAMS
#undef MHK__ROWS1
#undef MHK__ROWS2
#undef MHK__ROWS3
#undef MHK__ROWS4
#undef MHK__PLAIN
#undef MHK__PAIR
#undef MHK__PAIR_BF16
#undef MHK__PAIR_F16
#undef MHK__LOAD_FIRST
#undef MHK__STORE_FIRST
#undef MHK__TRANSPOSES
#undef MHK__WANT_C
#undef MHK__FROM
#undef MHK__TALL
#undef MHK__BROAD
#undef MHK__SUM4
#undef MHK__SUM2
#undef MHK__TAKE4
#undef MHK__TAKE2
#undef MHK__TIMES4
#undef MHK__TIMES2
#undef MHK__GO4
#undef MHK__GO2
#undef MHK__PUT4
#undef MHK__PUT2
#undef MHK__B4
#undef MHK__B2
#undef MHK__SUM1
#undef MHK__TAKE1
#undef MHK__TIMES1
#undef MHK__GO1
#undef MHK__PUT1
#undef MHK__B1
#undef MHK__BLOCK_OF
#undef MHK__VARS4
#undef MHK__VARS2
#undef MHK__VARS1
#undef MHK__EACH2
#undef MHK__EACH4
#undef MHK__EACH6
#undef MHK__EACH8
#undef MHK__EACH14
#undef MHK__MORE_B
#undef MHK__LOAD_B
#undef MHK__TILE_OF
#undef MHK__HALF
#undef MHK__MR
#undef MHK__NV
#undef MHK__NR
#undef MHK__LOADN
#undef MHK__STOREN
#undef MHK__EACH
#undef MHK__DECLARE
#undef MHK__STEP
#undef MHK__WRITE
#undef MHK__ADD
#endif /* MHK__TEMPLATE */

#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
/* Code for an instruction set the compiler was not told about. Clang knows no push_options, GCC no attribute push. */
#if defined(__clang__)
#define MHK__PRAGMA(x) _Pragma(#x)
#define MHK__PUSH_AVX2 MHK__PRAGMA(clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function))
#define MHK__PUSH_AVX512 MHK__PRAGMA(clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function))
#define MHK__POP MHK__PRAGMA(clang attribute pop)
#else
#define MHK__PRAGMA(x) _Pragma(#x)
#define MHK__PUSH_AVX2 MHK__PRAGMA(GCC push_options) MHK__PRAGMA(GCC target("avx2,fma,f16c"))
#define MHK__PUSH_AVX512 MHK__PRAGMA(GCC push_options) MHK__PRAGMA(GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"))
#define MHK__POP MHK__PRAGMA(GCC pop_options)
#endif

#define MHK__PASS 1
#define MHK__SUFFIX _scalar
#include MOHAWK_HEADER_NAME
#if !defined(MHK__PASS_DONE) || MHK__PASS_DONE != MHK__VERSION
#error "mohawk.h: this file includes itself, by the name \"mohawk.h\" unless told, and that is another file or version: \
#define MOHAWK_HEADER_NAME to the name it is included by, in quotes, and use no #pragma once"
#endif
#undef MHK__PASS
#undef MHK__SUFFIX
#undef MHK__PASS_DONE
#ifdef MHK__HAS_X86_PASSES
MHK__PUSH_AVX2
#define MHK__PASS 2
#define MHK__SUFFIX _avx2
#include MOHAWK_HEADER_NAME
#undef MHK__PASS
#undef MHK__SUFFIX
#undef MHK__PASS_DONE
MHK__POP
MHK__PUSH_AVX512
#define MHK__PASS 3
#define MHK__SUFFIX _avx512
#include MOHAWK_HEADER_NAME
#undef MHK__PASS
#undef MHK__SUFFIX
#undef MHK__PASS_DONE
MHK__POP
#endif
#ifdef MHK__HAS_NEON_PASS
#define MHK__PASS 4
#define MHK__SUFFIX _neon
#include MOHAWK_HEADER_NAME
#undef MHK__PASS
#undef MHK__SUFFIX
#undef MHK__PASS_DONE
#endif
#ifdef MHK__HAS_WASM_PASS
#define MHK__PASS 5
#define MHK__SUFFIX _wasm
#include MOHAWK_HEADER_NAME
#undef MHK__PASS
#undef MHK__SUFFIX
#undef MHK__PASS_DONE
#endif

/* ---- dot products of bytes: beside the AVX-512 kernels and those of NEON ---- */

#ifdef MHK__HAS_VNNI
#if defined(__clang__)
#define MHK__PUSH_VNNI \
  MHK__PRAGMA(clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"))), apply_to = function))
#else
#define MHK__PUSH_VNNI MHK__PRAGMA(GCC push_options) MHK__PRAGMA(GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"))
#endif
MHK__PUSH_VNNI
/* AVX512-VNNI: both bytes of x against bytes of w made unsigned by adding 128 (MHK_Q4: 8), the same integers as everywhere. Measured on Zen 4 for blocks from
   memory, one core that reads 31 GB/s: with the low byte left out (integers of 8 bits) one row takes as long (MHK_Q4 30 GB/s of weights either way, MHK_Q8
   31 instead of 28), four rows 0.82 to 0.92, eight 0.71 to 0.85 of the time. That is not worth 8 bits of x. */
static inline __m512i mhk__q_four(const signed char *x) {
  int32_t four;
  memcpy(&four, x, sizeof four);
  return _mm512_set1_epi32(four);
}
#define MHK__NEXT(p) MHK__PREFETCH_L1((p) + MHK__Q_AHEAD);
#define MHK__ALL ((__mmask16)0xFFFF)
/* l<s> and h<s> add up what the low and the high bytes of row r give for sum s. One row alone has two of each, which would wait for each other. */
#define MHK__STEP(s, r, w, at) \
  l##s = _mm512_dpbusd_epi32(l##s, w, mhk__q_four(x + (r) * 2 * K + (at))); \
  h##s = _mm512_dpbusd_epi32(h##s, w, mhk__q_four(x + (r) * 2 * K + (at) + 32));
#define MHK__ROWS2(f, w, at) f(0, 0, w, at) f(1, 1, w, at)
#define MHK__ROWS4(f, w, at) MHK__ROWS2(f, w, at) f(2, 2, w, at) f(3, 3, w, at)
#define MHK__OTHER4(f, w, at) f(4, 0, w, at) f(5, 1, w, at) f(6, 2, w, at) f(7, 3, w, at)
#define MHK__STEPS1(at) MHK__STEP(0, 0, even[0], at) MHK__STEP(1, 0, odd[0], (at) + 4)
#define MHK__STEPS2(at) MHK__ROWS2(MHK__STEP, even[0], at) MHK__ROWS2(MHK__STEP, odd[0], (at) + 4)
#define MHK__STEPS4(at) MHK__ROWS4(MHK__STEP, even[0], at) MHK__ROWS4(MHK__STEP, odd[0], (at) + 4)
#define MHK__STEPS8(at) \
  MHK__ROWS4(MHK__STEP, even[0], at) MHK__OTHER4(MHK__STEP, even[1], at) \
  MHK__ROWS4(MHK__STEP, odd[0], (at) + 4) MHK__OTHER4(MHK__STEP, odd[1], (at) + 4)
#define MHK__NONE(s, r, w, at) __m512i l##s = _mm512_set1_epi32(offset[(r) * groups]), h##s = _mm512_setzero_si512();
#define MHK__NONE1 MHK__NONE(0, 0, 0, 0) __m512i l1 = _mm512_setzero_si512(), h1 = l1;
#define MHK__NONE2 MHK__ROWS2(MHK__NONE, 0, 0)
#define MHK__NONE4 MHK__ROWS4(MHK__NONE, 0, 0)
#define MHK__NONE8 MHK__NONE4 MHK__OTHER4(MHK__NONE, 0, 0)
#define MHK__BY(block) _mm512_maskz_cvtph_ps(MHK__ALL, _mm256_loadu_si256((const __m256i *)(const void *)(scale + (block) * groups * MHK__Q_ROWS)))
#define MHK__END(s, r, w, at) \
  sum##s = _mm512_fmadd_ps(_mm512_maskz_cvtepi32_ps(MHK__ALL, _mm512_add_epi32(_mm512_maskz_slli_epi32(MHK__ALL, h##s, 8), l##s)), \
                           _mm512_mul_ps(by, _mm512_set1_ps(size[(r) * groups])), sum##s);
#define MHK__ENDS1 \
  l0 = _mm512_add_epi32(l0, l1); \
  h0 = _mm512_add_epi32(h0, h1); \
  MHK__END(0, 0, 0, 0)
#define MHK__ENDS2 MHK__ROWS2(MHK__END, 0, 0)
#define MHK__ENDS4 MHK__ROWS4(MHK__END, 0, 0)
#define MHK__ENDS8 MHK__ENDS4 by = MHK__BY(1); MHK__OTHER4(MHK__END, 0, 0)
#define MHK__SUM(s, r, w, at) _mm512_storeu_ps(sums + (s) * MHK__Q_ROWS, sum##s);
#define MHK__SUMS1 MHK__SUM(0, 0, 0, 0)
#define MHK__SUMS2 MHK__ROWS2(MHK__SUM, 0, 0)
#define MHK__SUMS4 MHK__ROWS4(MHK__SUM, 0, 0)
#define MHK__SUMS8 MHK__SUMS4 MHK__OTHER4(MHK__SUM, 0, 0)
#define MHK__START(s, r, w, at) __m512 sum##s = _mm512_setzero_ps();
#define MHK__START1 MHK__START(0, 0, 0, 0)
#define MHK__START2 MHK__ROWS2(MHK__START, 0, 0)
#define MHK__START4 MHK__ROWS4(MHK__START, 0, 0)
#define MHK__START8 MHK__START4 MHK__OTHER4(MHK__START, 0, 0)
#define MHK__OPEN_Q8(block) \
  MHK__NEXT(p[block]) \
  MHK__NEXT(p[block] + 64) \
  even[block] = _mm512_xor_si512(_mm512_loadu_si512(p[block]), constant); \
  odd[block] = _mm512_xor_si512(_mm512_loadu_si512(p[block] + 64), constant); \
  p[block] += 128;
#define MHK__OPEN_Q4(block) \
  MHK__NEXT(p[block]) \
  odd[block] = _mm512_loadu_si512(p[block]); \
  even[block] = _mm512_and_si512(odd[block], constant); \
  odd[block] = _mm512_and_si512(_mm512_srli_epi16(odd[block], 4), constant); \
  p[block] += 64;
#define MHK__OPEN1(type) MHK__OPEN_##type(0)
#define MHK__OPEN2(type) MHK__OPEN_##type(0) MHK__OPEN_##type(1)
/* rows [i, i + R) of x against the 16 of each of the blocks from b on: of one, or of two, for which what is read of x serves twice. n: R * blocks */
#define MHK__TILE_Q(type, value, n, R, blocks) \
  static void mhk__vnni_##type##_##n(const mhk__q_args *a, mhk_index b, mhk_index i) { \
    const mhk_index K = a->K, group = a->q->group, groups = K / group; \
    const uint16_t *scale = a->q->scale + b * groups * MHK__Q_ROWS; \
    const __m512i constant = _mm512_set1_epi32(value); \
    const int32_t *offset = a->offset + i * groups; \
    const signed char *x = (const signed char *)(a->digits + i * K); \
    const float *size = a->scale + i * groups; \
    const unsigned char *p[blocks]; \
    float sums[n * MHK__Q_ROWS]; \
    mhk_index g, j; \
    MHK__START##n \
    for (j = 0; j < blocks; j++) p[j] = (const unsigned char *)a->q->q + (b + j) * mhk__q_block_bytes(a->dtype, K); \
    for (g = 0; g < groups; g++, scale += MHK__Q_ROWS, size++, offset++) { \
      __m512 by = MHK__BY(0); \
      MHK__NONE##n \
      for (j = 0; j < group; j += 32, x += 64) { \
        __m512i even[blocks], odd[blocks]; \
        MHK__OPEN##blocks(type) MHK__STEPS##n(0) \
        MHK__OPEN##blocks(type) MHK__STEPS##n(8) \
        MHK__OPEN##blocks(type) MHK__STEPS##n(16) \
        MHK__OPEN##blocks(type) MHK__STEPS##n(24) \
      } \
      MHK__ENDS##n \
    } \
    MHK__SUMS##n \
    for (j = 0; j < blocks; j++) mhk__q_store_avx512(a, b + j, i, R, sums + j * R * MHK__Q_ROWS); \
  }
MHK__TILE_Q(Q8, (int)0x80808080u, 1, 1, 1)
MHK__TILE_Q(Q8, (int)0x80808080u, 2, 2, 1)
MHK__TILE_Q(Q8, (int)0x80808080u, 4, 4, 1)
MHK__TILE_Q(Q8, (int)0x80808080u, 8, 4, 2)
MHK__TILE_Q(Q4, 0x0F0F0F0F, 1, 1, 1)
MHK__TILE_Q(Q4, 0x0F0F0F0F, 2, 2, 1)
MHK__TILE_Q(Q4, 0x0F0F0F0F, 4, 4, 1)
MHK__TILE_Q(Q4, 0x0F0F0F0F, 8, 4, 2)
static void mhk__q_times_vnni(const mhk__q_args *a, mhk_index first, mhk_index last) {
  if (a->dtype == MHK_Q8)
    mhk__q_tiles(a, first, last, mhk__vnni_Q8_1, mhk__vnni_Q8_2, mhk__vnni_Q8_4, mhk__vnni_Q8_8);
  else
    mhk__q_tiles(a, first, last, mhk__vnni_Q4_1, mhk__vnni_Q4_2, mhk__vnni_Q4_4, mhk__vnni_Q4_8);
}
#undef MHK__NEXT
#undef MHK__ALL
#undef MHK__STEP
#undef MHK__ROWS2
#undef MHK__ROWS4
#undef MHK__OTHER4
#undef MHK__STEPS1
#undef MHK__STEPS2
#undef MHK__STEPS4
#undef MHK__STEPS8
#undef MHK__NONE
#undef MHK__NONE1
#undef MHK__NONE2
#undef MHK__NONE4
#undef MHK__NONE8
#undef MHK__BY
#undef MHK__END
#undef MHK__ENDS1
#undef MHK__ENDS2
#undef MHK__ENDS4
#undef MHK__ENDS8
#undef MHK__SUM
#undef MHK__SUMS1
#undef MHK__SUMS2
#undef MHK__SUMS4
#undef MHK__SUMS8
#undef MHK__START
#undef MHK__START1
#undef MHK__START2
#undef MHK__START4
#undef MHK__START8
#undef MHK__OPEN_Q8
#undef MHK__OPEN_Q4
#undef MHK__OPEN1
#undef MHK__OPEN2
#undef MHK__TILE_Q
MHK__POP
#endif

#ifdef MHK__HAS_SDOT
/* SDOT: both signed bytes of x against the signed bytes of w as they lie (MHK_Q4: its halves, which are 8 too large), the same integers as everywhere. A lane
   is a row of w; four bytes of x are chosen by their place in a vector of 16. l<r><v> and h<r><v> add up the low and the high bytes of row r against vector
   v of a block. Four rows take half a block at a time: their integers fill the registers, their sums wait in memory. Counted in the code of GCC 12, a row
   takes 140 vector instructions for 256 bytes of MHK_Q4 in groups of 32 alone, 114 in a tile of two, 104 in one of four; for 512 of MHK_Q8 100, 98, 98. */
#define MHK__EACH1(f, v, x, n) f(0, v, x, n)
#define MHK__EACH2(f, v, x, n) f(0, v, x, n) f(1, v, x, n)
#define MHK__EACH4(f, v, x, n) f(0, v, x, n) f(1, v, x, n) f(2, v, x, n) f(3, v, x, n)
#define MHK__VECTORS1(f, n) f(1, 0, n) f(1, 1, n) f(1, 2, n) f(1, 3, n)
#define MHK__VECTORS2(f, n) f(2, 0, n) f(2, 1, n) f(2, 2, n) f(2, 3, n)
#define MHK__VECTORS4(f, n) f(4, 0, n) f(4, 1, n)
#define MHK__NONE(r, v, x, n) int32x4_t l##r##v = vdupq_n_s32(less * offset[r * groups]), h##r##v = vdupq_n_s32(0);
#define MHK__NONES(R, v, n) MHK__EACH##R(MHK__NONE, v, x, n)
#define MHK__TAKE(r, v, x, at) const int8x16_t xl##r = vld1q_s8(x + r * 2 * K + at), xh##r = vld1q_s8(x + r * 2 * K + at + 32);
#define MHK__DOT(r, v, w, n) \
  l##r##v = vdotq_laneq_s32(l##r##v, w, xl##r, n); \
  h##r##v = vdotq_laneq_s32(h##r##v, w, xh##r, n);
#define MHK__FOUR_Q8(R, v, n) { \
  const int8x16_t w = vld1q_s8(p + 64 * n + 16 * v); \
  MHK__EACH##R(MHK__DOT, v, w, n) }
#define MHK__EIGHT_Q4(R, v, n) { \
  const int8x16_t w = vld1q_s8(p + 64 * n + 16 * v), even = vandq_s8(w, low), odd = vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(w), 4)); \
  MHK__EACH##R(MHK__DOT, v, even, 2 * n) \
  MHK__EACH##R(MHK__DOT, v, odd, 2 * n + 1) }
/* 16 of k, of which lines of the weights are asked for ahead */
#define MHK__SIXTEEN(type, R, n_lines, at) { \
  MHK__EACH##R(MHK__TAKE, 0, x, at) \
  for (n = 0; n < (R < 4 ? n_lines : n_lines / 2); n++) MHK__PREFETCH_L1(p + MHK__Q_AHEAD + 64 * (half * (n_lines / 2) + n)); \
  MHK__SIXTEEN_##type(R) \
  p += 64 * n_lines; }
#define MHK__SIXTEEN_Q8(R) \
  MHK__VECTORS##R(MHK__FOUR_Q8, 0) MHK__VECTORS##R(MHK__FOUR_Q8, 1) MHK__VECTORS##R(MHK__FOUR_Q8, 2) MHK__VECTORS##R(MHK__FOUR_Q8, 3)
#define MHK__SIXTEEN_Q4(R) MHK__VECTORS##R(MHK__EIGHT_Q4, 0) MHK__VECTORS##R(MHK__EIGHT_Q4, 1)
#define MHK__END(r, v, by, n) \
  sum[4 * r + n + v] = vfmaq_f32(sum[4 * r + n + v], vcvtq_f32_s32(vaddq_s32(vshlq_n_s32(h##r##v, 8), l##r##v)), vmulq_n_f32(by, size[r * groups]));
#define MHK__ENDS(R, v, n) { \
  const float32x4_t by = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(scale + 4 * (n + v)))); \
  MHK__EACH##R(MHK__END, v, by, n) }
#define MHK__START(r, v, x, n) sum[4 * r] = sum[4 * r + 1] = sum[4 * r + 2] = sum[4 * r + 3] = vdupq_n_f32(0);
#define MHK__SUM(r, v, x, n) \
  vst1q_f32(sums + 16 * r, sum[4 * r]); \
  vst1q_f32(sums + 16 * r + 4, sum[4 * r + 1]); \
  vst1q_f32(sums + 16 * r + 8, sum[4 * r + 2]); \
  vst1q_f32(sums + 16 * r + 12, sum[4 * r + 3]);
/* rows [i, i + R) of x against the 16 of block b */
#define MHK__TILE_Q(type, n_lines, factor, R) \
  MHK__TARGET_SDOT static void mhk__sdot_##type##_##R(const mhk__q_args *a, mhk_index b, mhk_index i) { \
    const mhk_index K = a->K, group = a->q->group, groups = K / group; \
    const signed char *from = (const signed char *)a->q->q + b * mhk__q_block_bytes(a->dtype, K); \
    const uint16_t *scale = a->q->scale + b * groups * MHK__Q_ROWS; \
    const int32_t less = factor, *offset = a->offset + i * groups; \
    const signed char *xs = (const signed char *)(a->digits + i * K); \
    const float *size = a->scale + i * groups; \
    const int8x16_t low = vdupq_n_s8(15); \
    float32x4_t sum[4 * R]; \
    float sums[R * MHK__Q_ROWS]; \
    mhk_index g, j; \
    int half, n; \
    (void)low; \
    MHK__EACH##R(MHK__START, 0, 0, 0) \
    for (g = 0; g < groups; g++, scale += MHK__Q_ROWS, size++, offset++, from += group * 4 * n_lines, xs += 2 * group) \
      for (half = 0; half < (R < 4 ? 1 : 2); half++) { \
        const signed char *p = from + 32 * half, *x = xs; \
        MHK__VECTORS##R(MHK__NONES, 0) \
        for (j = 0; j < group; j += 32, x += 64) { \
          MHK__SIXTEEN(type, R, n_lines, 0) \
          MHK__SIXTEEN(type, R, n_lines, 16) \
        } \
        MHK__VECTORS##R(MHK__ENDS, (R < 4 ? 0 : 2 * half)) \
      } \
    MHK__EACH##R(MHK__SUM, 0, 0, 0) \
    mhk__q_store_neon(a, b, i, R, sums); \
  }
MHK__TILE_Q(Q8, 4, 0, 1)
MHK__TILE_Q(Q8, 4, 0, 2)
MHK__TILE_Q(Q8, 4, 0, 4)
MHK__TILE_Q(Q4, 2, 1, 1)
MHK__TILE_Q(Q4, 2, 1, 2)
MHK__TILE_Q(Q4, 2, 1, 4)
static void mhk__q_times_sdot(const mhk__q_args *a, mhk_index first, mhk_index last) {
  if (a->dtype == MHK_Q8)
    mhk__q_tiles(a, first, last, mhk__sdot_Q8_1, mhk__sdot_Q8_2, mhk__sdot_Q8_4, NULL);
  else
    mhk__q_tiles(a, first, last, mhk__sdot_Q4_1, mhk__sdot_Q4_2, mhk__sdot_Q4_4, NULL);
}
#undef MHK__EACH1
#undef MHK__EACH2
#undef MHK__EACH4
#undef MHK__VECTORS1
#undef MHK__VECTORS2
#undef MHK__VECTORS4
#undef MHK__NONE
#undef MHK__NONES
#undef MHK__TAKE
#undef MHK__DOT
#undef MHK__FOUR_Q8
#undef MHK__EIGHT_Q4
#undef MHK__SIXTEEN
#undef MHK__SIXTEEN_Q8
#undef MHK__SIXTEEN_Q4
#undef MHK__END
#undef MHK__ENDS
#undef MHK__START
#undef MHK__SUM
#undef MHK__TILE_Q

/* Told to the compiler, or asked from the system. Where neither is known to answer, the plain kernels run. */
static int mhk__cpu_sdot(void) {
#if defined(__ARM_FEATURE_DOTPROD)
  return 1;
#elif defined(__linux__)
  return (getauxval(16) & (1ul << 20)) != 0; /* AT_HWCAP, HWCAP_ASIMDDP */
#elif defined(__APPLE__)
  int has = 0;
  size_t bytes = sizeof has;
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &bytes, NULL, 0) == 0 && has;
#elif defined(MHK__WINDOWS) && (!defined(MOHAWK_NO_STDIO) || !defined(MOHAWK_NO_TRAINING))
  return IsProcessorFeaturePresent(43) != 0; /* PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE */
#else
  return 0;
#endif
}
#endif

/* ---- units for bfloat16: AVX512-BF16 and AMX, beside the AVX-512 kernels ---- */

#if defined(MHK__HAS_X86_PASSES) && defined(__x86_64__) && !defined(MOHAWK_DOUBLE) && !defined(MOHAWK_NO_TRAINING)
#if defined(__clang__)
#if __clang_major__ >= 9
#define MHK__HAS_BF16_DOT
#endif
#if __clang_major__ >= 12 && defined(__linux__) && !defined(__ILP32__)
#define MHK__HAS_AMX
#endif
#define MHK__PUSH_BF16 \
  MHK__PRAGMA(clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"))), apply_to = function))
#define MHK__PUSH_AMX MHK__PRAGMA(clang attribute push(__attribute__((target("avx512f,amx-tile,amx-bf16"))), apply_to = function))
#else
#if __GNUC__ >= 10
#define MHK__HAS_BF16_DOT
#endif
#if __GNUC__ >= 11 && defined(__linux__) && !defined(__ILP32__)
#define MHK__HAS_AMX
#endif
#define MHK__PUSH_BF16 MHK__PRAGMA(GCC push_options) MHK__PRAGMA(GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"))
#define MHK__PUSH_AMX MHK__PRAGMA(GCC push_options) MHK__PRAGMA(GCC target("avx512f,amx-tile,amx-bf16"))
#endif
#endif

#ifdef MHK__HAS_BF16_DOT
MHK__PUSH_BF16
/* Packed operands are words of two numbers that follow each other along k, the first in the low half: word (p,i) of a panel belongs to row (or column) i and
   to k = 2p and 2p + 1. */

/* the first n of 16 numbers in a row, the rest 0 */
static inline __m512 mhk__bf16_floats(const void *p, mhk_dtype dtype, mhk_index n) {
  const __mmask16 mask = n >= 16 ? (__mmask16)0xFFFF : n <= 0 ? (__mmask16)0 : (__mmask16)((1u << n) - 1u);
  if (dtype == MHK_F32) return _mm512_maskz_loadu_ps(mask, p);
  if (dtype == MHK_BF16)
    return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(mask, _mm512_maskz_cvtepu16_epi32(mask, _mm256_maskz_loadu_epi16(mask, p)), 16));
  return _mm512_maskz_cvtph_ps(mask, _mm256_maskz_loadu_epi16(mask, p));
}

/* the words of the first n of 32 numbers in a row */
static inline __m512i mhk__bf16_words(const void *p, mhk_dtype dtype, mhk_index n) {
  const char *second = (const char *)p + 16 * (dtype == MHK_F32 ? 4 : 2);
  if (n <= 0) return _mm512_setzero_si512();
  if (dtype == MHK_BF16) return _mm512_maskz_loadu_epi16(n >= 32 ? (__mmask32)0xFFFFFFFFu : (__mmask32)((1u << n) - 1u), p);
  return (__m512i)_mm512_cvtne2ps_pbh(n > 16 ? mhk__bf16_floats(second, dtype, n - 16) : _mm512_setzero_ps(), mhk__bf16_floats(p, dtype, n));
}

/* the words of 16 rows, n of them there, from two lines of numbers: k even and odd */
static inline __m512i mhk__bf16_lines(const void *even, const void *odd, mhk_dtype dtype, mhk_index n) {
  const __m512i zip = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512 x = mhk__bf16_floats(even, dtype, n), y = odd ? mhk__bf16_floats(odd, dtype, n) : _mm512_setzero_ps();
  return _mm512_maskz_permutexvar_epi16((__mmask32)0xFFFFFFFFu, zip, (__m512i)_mm512_cvtne2ps_pbh(y, x));
}

/* 16 x 16 words transposed: column j of src goes to dst + j * stride, its words of the mask only, for the first n columns */
static void mhk__bf16_turn(const uint32_t *src, uint32_t *dst, mhk_index stride, __mmask16 mask, mhk_index n) {
  const __mmask16 all = (__mmask16)0xFFFF;
  __m512i a, b, c, d;
#define MHK__ROW(i) _mm512_load_si512(src + (i) * 16)
#define MHK__PAIRS(part, x, y) _mm512_maskz_unpack##part##_epi32(all, x, y)
#define MHK__QUADS(part, x, y) _mm512_maskz_unpack##part##_epi64((__mmask8)0xFF, x, y)
#define MHK__LANES(x, y, k) _mm512_maskz_shuffle_i32x4(all, x, y, k)
#define MHK__QUAD(i, x) \
  __m512i x##0, x##1, x##2, x##3; \
  a = MHK__PAIRS(lo, MHK__ROW(i), MHK__ROW(i + 1)); b = MHK__PAIRS(lo, MHK__ROW(i + 2), MHK__ROW(i + 3)); \
  c = MHK__PAIRS(hi, MHK__ROW(i), MHK__ROW(i + 1)); d = MHK__PAIRS(hi, MHK__ROW(i + 2), MHK__ROW(i + 3)); \
  x##0 = MHK__QUADS(lo, a, b); x##1 = MHK__QUADS(hi, a, b); x##2 = MHK__QUADS(lo, c, d); x##3 = MHK__QUADS(hi, c, d);
#define MHK__OUT(j, v) \
  if ((j) < n) _mm512_mask_storeu_epi32(dst + (j) * stride, mask, v)
#define MHK__FOUR(j) \
  a = MHK__LANES(p##j, q##j, 0x88); b = MHK__LANES(r##j, s##j, 0x88); c = MHK__LANES(p##j, q##j, 0xDD); d = MHK__LANES(r##j, s##j, 0xDD); \
  MHK__OUT(j, MHK__LANES(a, b, 0x88)); MHK__OUT(j + 4, MHK__LANES(c, d, 0x88)); \
  MHK__OUT(j + 8, MHK__LANES(a, b, 0xDD)); MHK__OUT(j + 12, MHK__LANES(c, d, 0xDD));
  MHK__QUAD(0, p)
  MHK__QUAD(4, q)
  MHK__QUAD(8, r)
  MHK__QUAD(12, s)
  MHK__FOUR(0)
  MHK__FOUR(1)
  MHK__FOUR(2)
  MHK__FOUR(3)
#undef MHK__ROW
#undef MHK__PAIRS
#undef MHK__QUADS
#undef MHK__LANES
#undef MHK__QUAD
#undef MHK__OUT
#undef MHK__FOUR
}

/* A block of 16 rows x 16 words, from row i and k = 2p on: rows of the source one after the other, or (lines) words of the same k. */
static inline void mhk__bf16_rows(uint32_t *block, const char *s, mhk_index size, mhk__matrix src, mhk_index rows, mhk_index k) {
  for (mhk_index q = 0; q < 16; q++)
    _mm512_store_si512(block + 16 * q, q < rows ? mhk__bf16_words(s + q * src.row * size, src.dtype, k) : _mm512_setzero_si512());
}
static inline __m512i mhk__bf16_line(const char *s, mhk_index size, mhk__matrix src, mhk_index rows, mhk_index k) {
  return k > 0 ? mhk__bf16_lines(s, k > 1 ? s + src.col * size : NULL, src.dtype, rows) : _mm512_setzero_si512();
}

/* The same for strides and types that the vector code does not know. */
static void mhk__bf16_any(uint32_t *block, mhk__matrix src, mhk_index rows, mhk_index k) {
  for (mhk_index i = 0; i < 16; i++)
    for (mhk_index p = 0; p < 16; p++) {
      uint32_t word = 0;
      if (i < rows && 2 * p < k) word = mhk__bf16_round(mhk__element(src.data, src.dtype, i * src.row + 2 * p * src.col));
      if (i < rows && 2 * p + 1 < k) word |= (uint32_t)mhk__bf16_round(mhk__element(src.data, src.dtype, i * src.row + (2 * p + 1) * src.col)) << 16;
      block[16 * i + p] = word;
    }
}

/* panels of width rows: word p of all rows, then word p + 1; words: of k, padded */
static inline void mhk__bf16_panels(uint32_t *dst, mhk_index width, mhk_index rows, mhk_index k, mhk_index words, mhk__matrix src) {
  const mhk_index size = (mhk_index)mhk_dtype_size(src.dtype), wide = mhk__up(width, 16);
  const __mmask16 last = (__mmask16)(0xFFFFu >> (wide - width));
  uint32_t room[16 * 16 + 16], *block = room + (64 - (uintptr_t)room % 64) % 64 / 4;
  if (src.row == 1 && src.dtype != MHK_F64) { /* along the lines: each is fetched once, however far the next one is */
    for (mhk_index p = 0; p < words; p++) {
      const char *s = (const char *)src.data + (2 * p < k ? 2 * p * src.col * size : 0);
      uint32_t *to = dst + p * width;
      for (mhk_index i0 = 0; i0 < rows; i0 += width, to += width * words)
        for (mhk_index i = 0; i < width; i += 16) {
          const mhk_index n = mhk__min(rows - i0, width) - i;
          _mm512_mask_storeu_epi32(to + i, i + 16 < wide ? (__mmask16)0xFFFF : last, mhk__bf16_line(s + (n > 0 ? i0 + i : 0) * size, size, src, n, k - 2 * p));
        }
    }
    return;
  }
  for (; rows > 0; rows -= width, dst += width * words, src.data = (const char *)src.data + width * src.row * size)
    for (mhk_index i = 0; i < width; i += 16) {
      const mhk_index n = mhk__min(rows, width) - i;
      const char *s = (const char *)src.data + (n > 0 ? i * src.row * size : 0);
      for (mhk_index p = 0; p < words; p += 16) {
        if (src.col == 1 && src.dtype != MHK_F64)
          mhk__bf16_rows(block, s + 2 * p * size, size, src, n, k - 2 * p);
        else
          mhk__bf16_any(block, mhk__mat(s + 2 * p * src.col * size, src.dtype, src.row, src.col), n, k - 2 * p);
        mhk__bf16_turn(block, dst + p * width + i, width, i + 16 < wide ? (__mmask16)0xFFFF : last, words - p);
      }
    }
}
#define MHK__DOT_ROWS 14
#define MHK__DOT_COLUMNS 32
static void mhk__dot_pack_a(void *dst, mhk_index rows, mhk_index k, mhk__matrix src) {
  mhk__bf16_panels((uint32_t *)dst, MHK__DOT_ROWS, rows, k, (k + 1) / 2, src);
}
static void mhk__dot_pack_b(void *dst, mhk_index n_columns, mhk_index k, mhk__matrix src) {
  mhk__bf16_panels((uint32_t *)dst, MHK__DOT_COLUMNS, n_columns, k, (k + 1) / 2, src);
}

/* the register tile: each word of a against 32 of b */
#define MHK__EACH(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11) M(12) M(13)
#define MHK__DECLARE(i) __m512 s##i = _mm512_setzero_ps(), t##i = _mm512_setzero_ps();
#define MHK__STEP(i) \
  x = (__m512bh)_mm512_set1_epi32((int)a[i]); \
  s##i = _mm512_dpbf16_ps(s##i, x, p); \
  t##i = _mm512_dpbf16_ps(t##i, x, q);
#define MHK__WRITE(i) _mm512_storeu_ps(c, s##i); _mm512_storeu_ps(c + 16, t##i); c += ldc;
#define MHK__ADD(i) _mm512_storeu_ps(c, _mm512_loadu_ps(c) + s##i); _mm512_storeu_ps(c + 16, _mm512_loadu_ps(c + 16) + t##i); c += ldc;
static void mhk__dot_tile(mhk_index words, const uint32_t *MHK__RESTRICT a, const uint32_t *MHK__RESTRICT b, float *c, mhk_index ldc, int accumulate) {
  __m512bh x, p, q;
  MHK__EACH(MHK__DECLARE)
  for (; words > 0; words--, a += MHK__DOT_ROWS, b += MHK__DOT_COLUMNS) {
    p = (__m512bh)_mm512_loadu_si512(b);
    q = (__m512bh)_mm512_loadu_si512(b + 16);
    MHK__EACH(MHK__STEP)
  }
  if (accumulate) {
    MHK__EACH(MHK__ADD)
  } else {
    MHK__EACH(MHK__WRITE)
  }
}
#undef MHK__EACH
#undef MHK__DECLARE
#undef MHK__STEP
#undef MHK__WRITE
#undef MHK__ADD

/* m x n of a tile's sums, 32 to a row, into c */
static void mhk__bf16_edge(const float *tile, mhk_index m, mhk_index n, float *c, mhk_index ldc, int accumulate) {
  for (mhk_index i = 0; i < m; i++)
    for (mhk_index j = 0; j < n; j += 16) {
      const __mmask16 mask = n - j >= 16 ? (__mmask16)0xFFFF : (__mmask16)((1u << (n - j)) - 1u);
      __m512 v = _mm512_loadu_ps(tile + 32 * i + j);
      if (accumulate) v = v + _mm512_maskz_loadu_ps(mask, c + i * ldc + j);
      _mm512_mask_storeu_ps(c + i * ldc + j, mask, v);
    }
}

static void mhk__dot_product(mhk_index m, mhk_index n, mhk_index k, const void *a, const void *b, float *c, mhk_index ldc, int accumulate) {
  const mhk_index words = (k + 1) / 2;
  for (mhk_index j = 0; j < n; j += MHK__DOT_COLUMNS)
    for (mhk_index i = 0; i < m; i += MHK__DOT_ROWS) {
      const uint32_t *pa = (const uint32_t *)a + i * words, *pb = (const uint32_t *)b + j * words;
      if (m - i >= MHK__DOT_ROWS && n - j >= MHK__DOT_COLUMNS)
        mhk__dot_tile(words, pa, pb, c + i * ldc + j, ldc, accumulate);
      else {
        float edge[MHK__DOT_ROWS * MHK__DOT_COLUMNS];
        mhk__dot_tile(words, pa, pb, edge, MHK__DOT_COLUMNS, 0);
        mhk__bf16_edge(edge, mhk__min(m - i, MHK__DOT_ROWS), mhk__min(n - j, MHK__DOT_COLUMNS), c + i * ldc + j, ldc, accumulate);
      }
    }
}

static void mhk__dot_fill(mhk__narrow *u) {
  u->mr = MHK__DOT_ROWS;
  u->nr = MHK__DOT_COLUMNS;
  u->kr = 2;
  u->size = 2;
  u->pack_a = mhk__dot_pack_a;
  u->pack_b = mhk__dot_pack_b;
  u->product = mhk__dot_product;
}

#ifdef MHK__HAS_AMX
/* AMX takes 16 words of k at once: rows of the left operand as they are, 16 rows a tile of 1 KB, two such for 32 rows; columns as above. */
#define MHK__AMX_K 32
static void mhk__amx_pack_a(void *to, mhk_index rows, mhk_index k, mhk__matrix src) {
  const mhk_index size = (mhk_index)mhk_dtype_size(src.dtype), words = mhk__up(k, MHK__AMX_K) / 2;
  uint32_t room[16 * 16 + 16], *block = room + (64 - (uintptr_t)room % 64) % 64 / 4, *dst = (uint32_t *)to;
  for (mhk_index i = 0; i < mhk__up(rows, 32); i += 16)
    for (mhk_index p = 0; p < words; p += 16, dst += 16 * 16) {
      const char *s = (const char *)src.data + (i < rows ? i * src.row + 2 * p * src.col : 0) * size;
      if ((src.row != 1 && src.col != 1) || src.dtype == MHK_F64)
        mhk__bf16_any(dst, mhk__mat(s, src.dtype, src.row, src.col), rows - i, k - 2 * p);
      else if (src.col == 1)
        mhk__bf16_rows(dst, s, size, src, rows - i, k - 2 * p);
      else {
        for (mhk_index q = 0; q < 16; q++)
          _mm512_store_si512(block + 16 * q, mhk__bf16_line(s + 2 * q * src.col * size, size, src, rows - i, k - 2 * (p + q)));
        mhk__bf16_turn(block, dst, 16, (__mmask16)0xFFFF, 16);
      }
    }
}
static void mhk__amx_pack_b(void *dst, mhk_index n_columns, mhk_index k, mhk__matrix src) {
  mhk__bf16_panels((uint32_t *)dst, 32, n_columns, k, mhk__up(k, MHK__AMX_K) / 2, src);
}
#endif
MHK__POP
#endif

#ifdef MHK__HAS_AMX
/* Linux lets a process use the tile registers only after it has asked: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA), a system call that libc does not
   wrap. Every thread of the process has them from then on. */
static int mhk__amx_permission(void) {
  long result;
  __asm__ volatile("syscall" : "=a"(result) : "a"(158L), "D"(0x1023L), "S"(18L) : "rcx", "r11", "memory");
  return result == 0;
}

MHK__PUSH_AMX
/* c (32,32), rows ldc apart: four tiles of sums, two of each operand */
static void mhk__amx_tile(mhk_index words, const uint32_t *a, const uint32_t *b, float *c, mhk_index ldc, int accumulate) {
  const uint32_t *lower = a + 16 * words; /* rows 16 to 31 */
  const size_t row = (size_t)ldc * sizeof(float);
  if (accumulate) {
    _tile_loadd(0, c, row);
    _tile_loadd(1, c + 16, row);
    _tile_loadd(2, c + 16 * ldc, row);
    _tile_loadd(3, c + 16 * ldc + 16, row);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (; words > 0; words -= 16, a += 256, lower += 256, b += 16 * 32) {
    _tile_loadd(4, a, 64);
    _tile_loadd(6, b, 128);
    _tile_loadd(7, b + 16, 128);
    _tile_loadd(5, lower, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, row);
  _tile_stored(1, c + 16, row);
  _tile_stored(2, c + 16 * ldc, row);
  _tile_stored(3, c + 16 * ldc + 16, row);
}

static void mhk__amx_product(mhk_index m, mhk_index n, mhk_index k, const void *a, const void *b, float *c, mhk_index ldc, int accumulate) {
  const mhk_index words = mhk__up(k, MHK__AMX_K) / 2;
  struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } shape; /* of the eight tiles: all 16 rows of 64 bytes */
  memset(&shape, 0, sizeof shape);
  shape.palette = 1;
  for (mhk_index i = 0; i < 8; i++) {
    shape.bytes[i] = 64;
    shape.rows[i] = 16;
  }
  __asm__ volatile("" : : "r"(&shape) : "memory"); /* GCC 12 believes that only 8 bytes of it are read, and leaves the rest unwritten */
  _tile_loadconfig(&shape);
  for (mhk_index j = 0; j < n; j += 32)
    for (mhk_index i = 0; i < m; i += 32) {
      const uint32_t *pa = (const uint32_t *)a + i * words, *pb = (const uint32_t *)b + j * words;
      if (m - i >= 32 && n - j >= 32)
        mhk__amx_tile(words, pa, pb, c + i * ldc + j, ldc, accumulate);
      else {
        float edge[32 * 32];
        mhk__amx_tile(words, pa, pb, edge, 32, 0);
        mhk__bf16_edge(edge, mhk__min(m - i, 32), mhk__min(n - j, 32), c + i * ldc + j, ldc, accumulate);
      }
    }
  _tile_release();
}

MHK__POP

static void mhk__amx_fill(mhk__narrow *u) {
  u->mr = u->nr = 32;
  u->kr = MHK__AMX_K;
  u->size = 2;
  u->pack_a = mhk__amx_pack_a;
  u->pack_b = mhk__amx_pack_b;
  u->product = mhk__amx_product;
}
#endif

static const char *mhk__isa_text(mhk_isa isa) {
  switch (isa) {
    case MHK_ISA_SCALAR: return "scalar";
    case MHK_ISA_AVX2: return "avx2";
    case MHK_ISA_AVX512: return "avx512";
    case MHK_ISA_NEON: return "neon";
    case MHK_ISA_WASM: return "wasm";
    default: return "best";
  }
}

#ifdef MHK__HAS_VNNI
/* asked where AVX-512 is known to be there: CPUID 7, ECX bit 11 */
static int mhk__cpu_vnni(void) {
  unsigned r[4];
  mhk__cpuid(7, 0, r);
  return (r[2] & (1u << 11)) != 0;
}
#endif

/* the best set that both processor and build have */
static mhk_isa mhk__isa_best(void) {
  const mhk_isa cpu = mhk__cpu_best();
#if defined(MHK__HAS_X86_PASSES) || defined(MHK__HAS_NEON_PASS) || defined(MHK__HAS_WASM_PASS)
  return cpu;
#else
  (void)cpu;
  return MHK_ISA_SCALAR;
#endif
}

/* Puts the kernels of a set into a table. Returns 0 where there is no such set; then nothing of it
   has run, not even what fills its table: that is compiled for the set as well. */
static int mhk__isa_fill(mhk_isa isa, mhk__kernels *k) {
  const mhk_isa best = mhk__isa_best();
  if (isa != MHK_ISA_SCALAR && isa != best && !(isa == MHK_ISA_AVX2 && best == MHK_ISA_AVX512)) return 0;
  switch (isa) {
    case MHK_ISA_SCALAR: mhk__fill_scalar(k); return 1;
#ifdef MHK__HAS_X86_PASSES
    case MHK_ISA_AVX2: mhk__fill_avx2(k); return 1;
    case MHK_ISA_AVX512:
      mhk__fill_avx512(k);
      k->q_prepare = mhk__q_prepare_avx2;
      k->q_times = mhk__q_times_avx2;
      k->attention_step = mhk__attention_step_avx2;
#ifdef MHK__HAS_VNNI
      if (mhk__cpu_vnni()) {
        k->q_prepare = mhk__q_prepare_bytes_avx512;
        k->q_times = mhk__q_times_vnni;
        k->q_rows = PTRDIFF_MAX;
      }
#endif
      return 1;
#endif
#ifdef MHK__HAS_NEON_PASS
    case MHK_ISA_NEON:
      mhk__fill_neon(k);
#ifdef MHK__HAS_SDOT
      if (mhk__cpu_sdot()) {
        k->q_prepare = mhk__q_prepare_bytes_neon;
        k->q_times = mhk__q_times_sdot;
        k->q_rows = PTRDIFF_MAX;
      }
#endif
      return 1;
#endif
#ifdef MHK__HAS_WASM_PASS
    case MHK_ISA_WASM: mhk__fill_wasm(k); return 1;
#endif
    default: return 0;
  }
}
#ifndef MOHAWK_NO_TRAINING
static const char *mhk__bf16_text(mhk_bf16_unit unit) {
  return unit == MHK_BF16_PLAIN ? "plain" : unit == MHK_BF16_AVX512 ? "avx512" : unit == MHK_BF16_AMX ? "amx" : "best";
}

/* Puts a unit for bfloat16 into a table that has the plain one. Returns 0 where there is none such; AMX asks the system last. */
static int mhk__bf16_fill(mhk_isa isa, mhk_bf16_unit unit, mhk__kernels *k) {
  const int units = isa == MHK_ISA_AVX512 ? mhk__cpu_units() : 0;
  (void)units;
  (void)k;
  switch (unit) {
    case MHK_BF16_PLAIN: return 1;
#ifdef MHK__HAS_BF16_DOT
    case MHK_BF16_AVX512:
      if (!(units & mhk__cpu_avx512_bf16)) return 0;
      mhk__dot_fill(&k->narrow);
      return 1;
#endif
#ifdef MHK__HAS_AMX
    case MHK_BF16_AMX:
      if (!(units & mhk__cpu_amx_bf16) || !(units & mhk__cpu_avx512_bf16) || !mhk__amx_permission()) return 0;
      mhk__amx_fill(&k->narrow);
      return 1;
#endif
    default: return 0;
  }
}

static mhk_bf16_unit mhk__bf16_best(mhk_isa isa, mhk__kernels *k) {
  if (mhk__bf16_fill(isa, MHK_BF16_AMX, k)) return MHK_BF16_AMX;
  if ((mhk__cpu_units() & mhk__cpu_amd) && mhk__bf16_fill(isa, MHK_BF16_AVX512, k)) return MHK_BF16_AVX512;
  return MHK_BF16_PLAIN;
}
#endif /* MOHAWK_NO_TRAINING */

/* ---- contexts: here, because they choose their kernels ---- */

typedef struct mhk__context_block { mhk_context ctx; mhk__kernels kernels; } mhk__context_block;
#ifndef MOHAWK_NO_TRAINING
static void mhk__context_bf16(mhk_context *ctx, mhk_bf16_unit unit, mhk__kernels *kernels) {
  const char *forced = mhk__environment("MHK_BF16_UNIT");
  if (forced && forced[0]) {
    int i = MHK_BF16_PLAIN;
    while (i <= MHK_BF16_AMX && strcmp(forced, mhk__bf16_text((mhk_bf16_unit)i)) != 0) i++;
    if (i > MHK_BF16_AMX)
      mhk_fail(ctx, MHK_ERROR_ARGUMENT, "MHK_BF16_UNIT is \"%.40s\": it may be plain, avx512 or amx", forced);
    else
      unit = (mhk_bf16_unit)i;
  }
  ctx->bf16_unit = unit;
  if (unit == MHK_BF16_BEST)
    ctx->bf16_unit = mhk__bf16_best(ctx->isa, kernels);
  else if (!mhk__bf16_fill(ctx->isa, unit, kernels)) {
    ctx->bf16_unit = MHK_BF16_PLAIN;
    mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "the bfloat16 unit %s is not to be had here with the instruction set %s: the best one is %s", mhk__bf16_text(unit),
             mhk__isa_text(ctx->isa), mhk__bf16_text(mhk__bf16_best(ctx->isa, kernels)));
  }
}
#endif /* MOHAWK_NO_TRAINING */

/* Whether NaN and the order of sums are what the code says. Flags that change that have no macro in
   every compiler: Clang's -fassociative-math and -fno-honor-nans for two. */
static int mhk__exact_math(void) {
#ifdef MOHAWK_ALLOW_FAST_MATH
  return 1;
#else
  volatile double large = 1e300, one = 1, not_a_number = NAN;
  const double a = large, b = one, c = not_a_number;
  return c != c && a + b - a == 0;
#endif
}

MHKDEF mhk_context *mhk_create(const mhk_context_desc *desc) {
  mhk_context_desc d;
  mhk__context_block *block;
  mhk_context *ctx;
  mhk_isa isa;
  const char *forced = mhk__environment("MHK_ISA");
  memset(&d, 0, sizeof d);
  if (desc) d = *desc;
  if (!d.allocator.alloc || !d.allocator.release) {
    d.allocator.alloc = mhk__default_alloc;
    d.allocator.release = mhk__default_release;
  }
  block = (mhk__context_block *)d.allocator.alloc(d.allocator.user, sizeof *block);
  if (!block) return NULL;
  memset(block, 0, sizeof *block);
  ctx = &block->ctx;
  ctx->allocator = d.allocator;
  ctx->log = d.log;
  ctx->log_user = d.log_user;
  ctx->kernels = &block->kernels;
  ctx->memory = ctx->peak = sizeof *block;
  ctx->workers = 1;
  if (!mhk__exact_math())
    mhk_fail(ctx, MHK_ERROR_UNSUPPORTED,
             "mohawk.h was compiled by flags like -fassociative-math or -fno-honor-nans, which break its sums and its checks for NaN: "
             "compile it without them, or define MOHAWK_ALLOW_FAST_MATH to try anyway");
  if (desc && (desc->allocator.alloc != NULL) != (desc->allocator.release != NULL))
    mhk_fail(ctx, MHK_ERROR_ARGUMENT, "the allocator has only one of alloc and release: give both or neither");
  if (d.parallel_for) {
    ctx->parallel_for = d.parallel_for;
    ctx->parallel_user = d.parallel_user;
    ctx->workers = d.parallel_workers;
    if (d.parallel_workers < 1) {
      ctx->workers = 1;
      mhk_fail(ctx, MHK_ERROR_ARGUMENT, "parallel_for was given with %d workers: parallel_workers must say how many it has", d.parallel_workers);
    }
  } else
    mhk_set_threads(ctx, d.threads);
  isa = d.isa == MHK_ISA_BEST ? mhk__isa_best() : d.isa;
  if (forced && forced[0]) {
    int i, found = 0;
    for (i = MHK_ISA_SCALAR; i <= MHK_ISA_WASM; i++)
      if (strcmp(forced, mhk__isa_text((mhk_isa)i)) == 0) {
        isa = (mhk_isa)i;
        found = 1;
      }
    if (!found) mhk_fail(ctx, MHK_ERROR_ARGUMENT, "MHK_ISA is \"%.40s\": it may be scalar, avx2, avx512, neon or wasm", forced);
  }
  if (!mhk__isa_fill(isa, &block->kernels)) {
    mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "the instruction set %s is not to be had here: the best one is %s", mhk__isa_text(isa),
             mhk__isa_text(mhk__isa_best()));
    isa = MHK_ISA_SCALAR;
    mhk__isa_fill(isa, &block->kernels);
  }
  ctx->isa = isa;
#ifndef MOHAWK_NO_TRAINING
  mhk__context_bf16(ctx, d.bf16_unit, &block->kernels);
#endif
  return ctx;
}

MHKDEF void mhk_destroy(mhk_context *ctx) {
  mhk_allocator allocator;
  if (!ctx) return;
  while (ctx->objects) mhk__object_free(ctx->objects);
  mhk__arena_free(ctx, &ctx->scratch);
  allocator = ctx->allocator;
  allocator.release(allocator.user, ctx, sizeof(mhk__context_block));
}

MHKDEF const char *mhk_isa_name(const mhk_context *ctx) { return ctx ? mhk__isa_text(ctx->isa) : ""; }
#ifndef MOHAWK_NO_TRAINING
MHKDEF const char *mhk_bf16_name(const mhk_context *ctx) { return ctx ? mhk__bf16_text(ctx->bf16_unit) : ""; }
#endif /* MOHAWK_NO_TRAINING */
#endif /* MOHAWK_IMPLEMENTATION */
#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
/* nothing private stays behind */
#undef MHK__AFTER
#undef MHK__ALIGN
#undef MHK__AMX_K
#undef MHK__ASAN
#undef MHK__BIG_DIGITS
#undef MHK__BIG_WORDS
#undef MHK__CONV_BLOCK
#undef MHK__DIGITS
#undef MHK__DOT_COLUMNS
#undef MHK__DOT_ROWS
#undef MHK__END_TEXT
#undef MHK__GRAIN
#undef MHK__HASH_START
#undef MHK__HAS_AMX
#undef MHK__HAS_BF16_DOT
#undef MHK__HAS_NEON_PASS
#undef MHK__HAS_SDOT
#undef MHK__HAS_WASM_PASS
#undef MHK__HAS_X86_PASSES
#undef MHK__HAS_VNNI
#undef MHK__HEADER_MOST
#undef MHK__HEAD_TASK
#undef MHK__HUGE_PAGE
#undef MHK__JSON_DEPTH
#undef MHK__JSON_INFINITY
#undef MHK__LETTER
#undef MHK__LIST_MOST
#undef MHK__QUIET
#undef MHK__NOT_REGULAR
#undef MHK__LOGITS_PIECE
#undef MHK__MAX_IN
#undef MHK__MAX_OUT
#undef MHK__MOST_DRAFTED
#undef MHK__NARROW_K
#undef MHK__NUMBER
#undef MHK__OPEN_GATE
#undef MHK__OTHER
#undef MHK__OUT_BLOCK
#undef MHK__PACK_COLUMNS
#undef MHK__FEW
#undef MHK__GEMM_M
#undef MHK__GEMM_N
#undef MHK__GEMM_K
#undef MHK__ROW_BLOCK
#undef MHK__Q_ROUND
#undef MHK__Q_AHEAD
#undef MHK__Q_SLAB
#undef MHK__Q_LIMIT
#undef MHK__Q_ROWS
#undef MHK__Q_TINY
#undef MHK__PATH_MOST
#undef MHK__PICKLE_MOST
#undef MHK__POP
#undef MHK__POSIX
#undef MHK__PRAGMA
#undef MHK__PUSH_AMX
#undef MHK__PUSH_AVX2
#undef MHK__PUSH_AVX512
#undef MHK__PUSH_BF16
#undef MHK__PUSH_VNNI
#undef MHK__R
#undef MHK__REAL_LEAST
#undef MHK__REAL_MOST
#undef MHK__REAL_TEXT
#undef MHK__RECENT_ROOM
#undef MHK__RESTRICT
#undef MHK__PREFETCH
#undef MHK__PREFETCH_WRITE
#undef MHK__PREFETCH_L1
#undef MHK__REXP
#undef MHK__ROWS_AHEAD
#undef MHK__ROWS_TASK
#undef MHK__SAME_MLP
#undef MHK__SAME_NORM
#undef MHK__SAMPLE_BATCH
#undef MHK__SAVED
#undef MHK__CHECKPOINT
#undef MHK__SAVED_TEXTS
#undef MHK__SCORE_ROWS
#undef MHK__SENTENCE
#undef MHK__NFC_CLASS
#undef MHK__NFC_END
#undef MHK__NFC_GOES
#undef MHK__NFC_HASH
#undef MHK__NFC_JOINS
#undef MHK__NFC_PART
#undef MHK__SHORT_WORD
#undef MHK__SETTING
#undef MHK__SMALL
#undef MHK__SPACE
#undef MHK__SSD_CHUNK
#undef MHK__LD
#undef MHK__NO_FOLLOW
#undef MHK__NO_HANDLE
#undef MHK__OVER
#undef MHK__STATE_HEAD
#undef MHK__STATE_VERSION
#undef MHK__STEPS
#undef MHK__STREAM_BLOCK
#undef MHK__TARGET_SDOT
#undef MHK__TEXT_WORD
#undef MHK__TILE
#undef MHK__TOKEN_ADDED
#undef MHK__TOKEN_MAPPED
#undef MHK__TOKEN_VOCABULARY
#undef MHK__UPDATE_BLOCK
#undef MHK__WHY
#undef MHK__WIDE_PATH
#undef MHK__DAMAGE
#undef MHK__WRITERS
#undef MHK__XXH_1
#undef MHK__XXH_2
#undef MHK__XXH_3
#undef MHK__XXH_4
#undef MHK__XXH_5
#undef MHK__WINDOWS
#undef MHK__WORD_BYTES
#undef MHK__WORD_IDS
#undef MHK__WORD_BITS
#undef MHK__WORD_SLOTS
#undef MHK__X86
#undef MHK__ZIP_DIRECTORY
#undef MHK__ZIP_END
#undef MHK__ZIP_END64
#undef MHK__ZIP_ENTRY
#undef MHK__ZIP_LOCATOR
#undef MHK__FAST_MATH
#undef MHK__GETTIMEOFDAY
#undef MHK__VERSION
#endif /* MOHAWK_IMPLEMENTATION */

#ifndef MHK__PASS
#undef MHK__TEMPLATE
#undef MHK__TEXT
/*
   mohawk.h is available under two licences. Choose whichever you prefer.

   ------------------------------------------------------------------------------
   ALTERNATIVE A - MIT License

   Copyright (c) 2026 mohawk.h contributors

   Permission is hereby granted, free of charge, to any person obtaining a copy of
   this software and associated documentation files (the "Software"), to deal in
   the Software without restriction, including without limitation the rights to
   use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies
   of the Software, and to permit persons to whom the Software is furnished to do
   so, subject to the following conditions:

   The above copyright notice and this permission notice shall be included in all
   copies or substantial portions of the Software.

   THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
   IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
   FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
   AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
   LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
   OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
   SOFTWARE.

   ------------------------------------------------------------------------------
   ALTERNATIVE B - Public Domain (www.unlicense.org)

   This is free and unencumbered software released into the public domain.

   Anyone is free to copy, modify, publish, use, compile, sell, or distribute this
   software, either in source code form or as a compiled binary, for any purpose,
   commercial or non-commercial, and by any means.

   In jurisdictions that recognize copyright laws, the author or authors of this
   software dedicate any and all copyright interest in the software to the public
   domain. We make this dedication for the benefit of the public at large and to
   the detriment of our heirs and successors. We intend this dedication to be an
   overt act of relinquishment in perpetuity of all present and future rights to
   this software under copyright law.

   THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
   IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
   FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
   AUTHORS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN
   ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION
   WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.

   ------------------------------------------------------------------------------
   The weights in examples/tiny come with a credit line of their own: see
   examples/tiny/CREDITS.
*/
#endif
