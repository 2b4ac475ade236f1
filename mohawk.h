/* mohawk.h - v0.3.0 - turn a Transformer into a linear-time state-space model, in one C header

   No warranty. Use it under the MIT license or as public domain, as you choose; both texts are at
   the end of the file.

   Tensor ops, a small autograd, the attention layer of Phi, the SSD layer of Mamba-2, and MOHAWK,
   which distills a Transformer into a state-space model. It first matches the mixing matrices, then
   the hidden states, then the predictions (Bick, Li, Xing, Kolter, Gu: "Transformers to SSMs",
   arXiv 2408.10189). Needs C99 or C++11, libc and libm. OpenMP is optional.

   QUICK START
   In one file of your program, define MOHAWK_IMPLEMENTATION before you include this header. All
   other files only include it. This complete program loads a model and generates text. Build it
   with `cc -O2 app.c -lm`; add -fopenmp for threads.

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

   To distill, describe a run and step the trainer:

      mhk_distill_desc d;
      memset(&d, 0, sizeof d);
      d.teacher = mhk_load(ctx, "phi-1_5");
      d.corpus = text;                              // from mhk_corpus_load() or mhk_corpus_sample()
      d.out = "run1";                             // checkpoints; the same call resumes
      mhk_trainer *t = mhk_distill(ctx, &d);
      while (mhk_train_step(t)) draw(mhk_progress(t));   // the caller owns the loop
      mhk_save(mhk_student(t), "student", MHK_F32);      // PyTorch reads it

   THE IDEA. A sequence mixer is a lower triangular matrix: y_t = sum over s <= t of M[t,s] x_s.
   In attention, M[t,s] is the softmax over q_t . k_s. It needs all pairs of tokens, so time grows
   with T^2, and generation keeps a cache of every key and value. In a state-space layer,
   M[t,s] = (C_t . B_s) a_{s+1} ... a_t, with decays a between 0 and 1. There is no need to compute
   this M, because the same y comes from a recurrence over a state h of fixed size:

      h_t = a_t h_{t-1} + x_t B_t^T          y_t = h_t C_t

   The two forms are equal; this is state-space duality (SSD). Training multiplies chunks of the
   matrix. Generation steps the recurrence, in constant time and memory per token. Both mixers are
   matrices, so one can be trained to match the other. MOHAWK does this from the inside out:

      stage 1   matrix orientation       each student mixer's M learns to match the teacher's
                                         attention matrix
      stage 2   hidden-state alignment   each student mixer's output learns to match the teacher's,
                                         on the teacher's inputs
      stage 3   knowledge distillation   the student copies the teacher's MLPs, norms, embedding and
                                         head (weight transfer), then the whole student learns the
                                         teacher's predictions

   HOW TO READ THIS FILE. For SSD in twenty minutes, read >>ssd: the idea, then recurrence, matrix,
   chunked scan and gradients in plain C, then the fast form. >>attention, >>losses (with stage 1)
   and the other chapters from >>products to >>optimizer have the same structure. >>kernels says how
   the fast form is compiled once per instruction set. >>tape and >>ops are the autograd. >>layers
   builds models from ops, >>mohawk trains them, and >>sessions runs them.

   OPTIONS. Define them before the include. Only MOHAWK_DOUBLE changes structs or signatures. An
   option that removes a feature also removes its declarations. In every file of the program:
      MOHAWK_STATIC               make everything static, for several private copies in one program
      MOHAWK_DOUBLE               compute in double, for checking
      MOHAWK_NO_TRAINING          inference only: no tape, ops, new models, distillation or
                                  evaluation
      MOHAWK_NO_STDIO             no files, no environment, no stdio.h: load models from memory with
                                  mhk_load_memory()
   In the file with the implementation:
      MOHAWK_IMPLEMENTATION       compile the code here
      MOHAWK_NO_SIMD              plain C kernels only
      MOHAWK_MALLOC(bytes), MOHAWK_FREE(block)   the default allocator; define both or neither
      MOHAWK_REFERENCE            compile the plain C references of the chapters, for tests
      MOHAWK_HEADER_NAME          the name under which this file includes itself, if not "mohawk.h"
      MOHAWK_ALLOW_FAST_MATH      accept -ffast-math and its parts, which change the meaning of
                                  comparisons and sums

   MEMORY. A context has one allocator, which you can set at creation. Each object (model, tape,
   session, trainer and so on) owns its blocks until its destroy function or the context frees them.
   Weights of loaded models stay in the mapped file, in their stored type. A tape keeps its memory
   between steps, so a loop allocates only in its first iteration. All sizes from files and callers
   are checked before use.

   THREADS. The size of the problem decides how work is split, never the number of threads, and sums
   have a fixed order. The same build on the same instruction set gives the same bits on any number
   of threads. Threads come from OpenMP if compiled with it, or from the caller
   (mhk_context_desc.parallel_for). Contexts share nothing. Use a context from one thread at a time.

   ERRORS. Nothing here prints, exits or aborts. A context keeps its first error as a code and a
   sentence. After that, every call on the context does nothing, so one check at the end of a chain
   of calls is enough.

   CONTENTS (search for the tag)
      Interface         >>interface     all declarations: shapes, ownership, errors
      Platform          >>platform      CPU features, files, clock, random numbers
      Memory            >>memory        arenas, objects, errors, parallel-for
      Kernels           >>kernels       how kernels are compiled once per instruction set
      Products          >>products      GEMM and GEMV for every stored type, quantized weights
      Tensors           >>tensors       types, shapes, parameters
      Tape              >>tape          recording, backward, recomputation, gradient checks
      Ops               >>ops           elementwise, reductions, layout, embedding, linear layers
      Rows              >>rows          softmax, LayerNorm, RMSNorm, gating
      Rotary            >>rotary        rotary position embedding
      Convolution       >>convolution   causal depthwise convolution
      Attention         >>attention     causal softmax attention in tiles (FlashAttention)
   (FlashAttention)
      SSD               >>ssd           state-space duality, the mixer of Mamba-2
      Losses            >>losses        cross-entropy, KL, distances, matrix orientation (stage 1)
      Optimizer         >>optimizer     AdamW
      Files             >>files         JSON, safetensors
      Tokenizer         >>tokenizer     byte-level BPE
      Models            >>models        configurations, weights, initialization
      Layers            >>layers        mixers, blocks, forward passes on a tape
      Sessions          >>sessions      prefill, step, sampling
      Mohawk            >>mohawk        text, the three stages, optimizer, trainer, evaluation
      Passes            >>passes        the instruction sets, and contexts, which select one
   Each section uses only sections above it. */

/* The version of this text, 10000 major + 100 minor + patch. The implementation includes this file
   again and must find itself, not another version. */
#undef MHK__TEXT
#define MHK__TEXT 300

/* Set during a pass: compile only the parts that exist once per instruction set. If the versions
   differ, the including file reports it. */
#undef MHK__TEMPLATE
#if defined(MHK__PASS) && MHK__TEXT == MHK__VERSION
#define MHK__TEMPLATE
#endif

#ifndef MHK__PASS
#ifndef MOHAWK_H
#define MOHAWK_H

/* =================================================================================================
   INTERFACE                                                                             >>interface
   =================================================================================================
   In four depths; each uses only what stands above it:
      1  Run a model                          load it, feed it text, let it write
      2  Distill one                           a corpus, a student, a trainer, a measurement
      3  Models and sessions in full          contexts, configurations, files, tokenizers, sessions
      4  Tape and ops                         tensors, gradients, layers and losses of your own

   RULES, the same everywhere:
   * Descriptions. What has a default stands in a description, a struct whose zero fields mean the
     default named beside them: memset it and set what you want. NULL means all zero; a description
     that is needed says so.
   * Names. A bare name takes a path, _memory takes bytes. Lists have _count, _at(i), _find(name).
     Sizes end in _bytes: size_t for what exists, double for estimates, which may exceed an address
     space.
   * Ownership. What _create, _load, _open and mhk_corpus_... return is yours to destroy; it dies
     with its context at the latest. Other pointers belong to the object that was asked.
   * Errors. A context keeps its first error; from then on every call on it does nothing and returns
     NULL, zero, -1 or the error, as does a call given NULL for an object. Check once, at the end of
     a chain, with mhk_failed().
   * Threads. A context, with everything made from it, serves one thread at a time.
   * Shapes are written (slowest,...,fastest): B batch, T tokens, D d_model, H heads, P head size of
     the values, G heads of B and C (or of keys and values), N d_state, V vocabulary, L layers. */

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
#define MHK_VERSION_MINOR 3
#define MHK_VERSION_PATCH 0
#define MHK_VERSION "0.3.0"

/* The arithmetic type: float, or double if MOHAWK_DOUBLE is defined (for checking; slow). It must
   be the same in all files of a program. */
#ifdef MOHAWK_DOUBLE
typedef double mhk_real;
#else
typedef float mhk_real;
#endif

typedef ptrdiff_t mhk_index; /* sizes, positions and loop counters: signed, with the width of a pointer */

typedef struct mhk_context mhk_context;     /* memory, kernels, threads and the first error */
typedef struct mhk_model mhk_model;         /* a configuration and its weights */
typedef struct mhk_tokenizer mhk_tokenizer; /* text to token ids and back */
typedef struct mhk_session mhk_session;     /* a model at work on one or more sequences */
typedef struct mhk_tensor mhk_tensor;       /* an array with a shape, and its gradient */
typedef struct mhk_tape mhk_tape;           /* a computation that can be differentiated */
typedef struct mhk_corpus mhk_corpus;       /* training text, as tokens */
typedef struct mhk_trainer mhk_trainer;     /* a distillation in progress */
typedef struct mhk_context_desc mhk_context_desc;
typedef struct mhk_session_desc mhk_session_desc;

typedef enum mhk_result {
  MHK_OK = 0,
  MHK_ERROR_MEMORY = -1,      /* the allocator returned NULL, or a size does not fit in the address space */
  MHK_ERROR_ARGUMENT = -2,    /* an argument is invalid: NULL, out of range, missing */
  MHK_ERROR_SHAPE = -3,       /* the shapes of tensors do not match */
  MHK_ERROR_FILE = -4,        /* a file cannot be opened, read or written */
  MHK_ERROR_FORMAT = -5,      /* the content of a file is invalid */
  MHK_ERROR_CONFIG = -6,      /* a model configuration contradicts itself or the weights */
  MHK_ERROR_UNSUPPORTED = -7, /* valid, but not supported by this version */
  MHK_ERROR_STATE = -8        /* not possible in this state: full cache, finished trainer, diverged training */
} mhk_result;

#define MHK_MAX_RANK 5 /* the most axes of a tensor */

/* types of stored numbers */
typedef enum mhk_dtype {
  MHK_F32 = 1,
  MHK_F64,
  MHK_F16,
  MHK_BF16,
  MHK_I8,
  MHK_U8,
  MHK_I16,
  MHK_U16,
  MHK_I32,
  MHK_U32,
  MHK_I64,
  MHK_U64,
  MHK_BOOL,
  MHK_Q8,
  MHK_Q4 /* quantized matrices of a model: see mhk_quantized */
} mhk_dtype;
#ifdef MOHAWK_DOUBLE
#define MHK_REAL MHK_F64
#else
#define MHK_REAL MHK_F32
#endif

/* Precision of products in linear layers (mhk_linear and its variants) in training, forward and
   backward. BF16 rounds both operands to bfloat16 (to nearest, ties to even, subnormal numbers to
   zero) and sums in float32. Parameters, activations, gradients and everything else stay as they
   are. It speeds up training on CPUs with a bfloat16 instruction; elsewhere the results are the
   same but slower. Products of up to four rows (decoding) stay in full precision, because reading
   the weights takes most of their time. */
typedef enum mhk_precision { MHK_PRECISION_FULL = 0, MHK_PRECISION_BF16 = 1 } mhk_precision;

/* =================================================================================================
   1  RUN A MODEL
   ============================================================================================== */

/* Creates a context: allocator, kernels, threads and the first error. Returns NULL only if the
   context itself cannot be allocated. An invalid description gives a context that has failed and
   says why. */
MHKDEF mhk_context *mhk_create(const mhk_context_desc *desc);
/* Frees the context and everything created from it. */
MHKDEF void mhk_destroy(mhk_context *ctx);

/* Nonzero if ctx is NULL or an error has occurred since creation or mhk_clear_error(). */
MHKDEF int mhk_failed(const mhk_context *ctx);
/* The first error as one sentence that names what is wrong and what would be right; "" if there is
   none. Valid until the context is destroyed or the error is cleared. */
MHKDEF const char *mhk_message(const mhk_context *ctx);

#ifndef MOHAWK_NO_STDIO
/* Loads a model: a folder with config.json, the weights that mhk_file_open() finds there, and
   optionally a tokenizer and generation_config.json; or one .safetensors file from mhk_save(), with
   all of these in its metadata. The weights are mapped and keep their stored type: the model is
   frozen. If the tokenizer cannot be read, the model has none and there is a warning. From
   generation_config.json only the tokens that end a text are used (mhk_model_ends()). A mapped file
   must not change while the model lives. Overwritten bytes become weights immediately, and if the
   file is truncated or its disk fails, the system kills a program that accesses the missing bytes
   (SIGBUS). Other writers must replace files by rename, as mhk_save() does, or you must load with
   `read`. If another model is saved to the folder during loading, it is an error. */
MHKDEF mhk_model *mhk_load(mhk_context *ctx, const char *path);
#endif
MHKDEF void mhk_model_destroy(mhk_model *m);

/* Creates a session, by default with one sequence. The model must outlive it. To use text, the
   model must already have its tokenizer. */
MHKDEF mhk_session *mhk_session_create(mhk_model *m, const mhk_session_desc *desc);
MHKDEF void mhk_session_destroy(mhk_session *s);

/* Feeds UTF-8 text through the model's tokenizer, in sessions of one sequence. At the start of a
   sequence, mhk_tokenizer_start() goes first, as in training, unless the text begins with it, the
   tokenizer's files say that there is none, or mhk_session_desc.no_start is set. */
MHKDEF mhk_result mhk_feed_text(mhk_session *s, const char *text);
/* The same for text that may contain zero characters. */
MHKDEF mhk_result mhk_feed_bytes(mhk_session *s, const char *text, size_t length);

/* added to the token's logit; -INFINITY forbids it */
typedef struct mhk_token_bias { int32_t token; double value; } mhk_token_bias;

/* How to choose the next token. The steps run in this order: bias, penalties, temperature, top_k,
   top_p, min_p, typical. Each filter works on the probabilities that the one before left, scaled to
   sum to 1. Ties go to the smaller id. Order and rules are those of Hugging Face's transformers,
   where it has them. A value outside the range given here is an error. */
typedef struct mhk_sampling {
  double temperature; /* divides the logits, >= 0; 0: 0.8, not greedy, which has its own field: */
  int greedy;         /* 1: the most likely token after bias and penalties; ignores temperature and filters */
  int exact;          /* 1: temperature 0 and top_p 0 mean 1: the model's own distribution unless you say more */
  int top_k;          /* keep the k most likely tokens; 0: all */
  double top_p;       /* keep the likeliest that reach this probability, 0 to 1 (Holtzman et al. 2019); 0: 0.95 */
  double min_p;       /* keep tokens with at least this fraction, 0 to 1, of the highest probability; 0: all */
  uint64_t seed;      /* reseeds if it differs from the session's last seed; 0: continue */
  /* keep the tokens with -log p nearest its mean and this total probability, 0 to 1 (Meister et al.
     2022); 0: 1 */
  double typical;
  /* divides the logit of a recent token by this if positive, otherwise multiplies it (Keskar et al.
     2019); 0: 1 */
  double repetition;
  double frequency;   /* subtracted from a token's logit for each occurrence, */
  double presence;    /* and this once if it occurred */
  /* how many of the last tokens count, including the prompt; 0: all that the session remembers
     (mhk_session_desc.recent) */
  int penalty_tokens;
  const mhk_token_bias *bias;
  int n_bias;
  const int32_t *stop_tokens; /* mhk_sample() also stops at these tokens */
  int n_stop_tokens;
  /* mhk_sample() stops at one of these in the text. mhk_text_out() returns neither it nor what
     follows; text that may become one is held back. */
  const char *const *stop_strings;
  int n_stop_strings;
} mhk_sampling;

/* Draws the next token from the logits and feeds it, in sessions of one sequence. Returns the
   token, or -1 at a stop (which is not fed) or on failure. */
MHKDEF int32_t mhk_sample(mhk_session *s, const mhk_sampling *sampling);
/* The whole characters that the last mhk_sample() completed; 0-terminated, in memory of the
   session. */
MHKDEF const char *mhk_text_out(mhk_session *s);
/* Call this to end the text yourself: returns what is still held back, also in mhk_text_out(). */
MHKDEF const char *mhk_text_rest(mhk_session *s);
/* Why the last mhk_sample() returned -1 (MHK_STOP_NONE: it did not, or it failed). */
typedef enum mhk_stop { MHK_STOP_NONE = 0, MHK_STOP_END = 1, MHK_STOP_TOKEN = 2, MHK_STOP_STRING = 3 } mhk_stop;
MHKDEF mhk_stop mhk_stopped(const mhk_session *s);

/* =================================================================================================
   2  DISTIL ONE
   ============================================================================================== */

#ifndef MOHAWK_NO_STDIO
/* Saves a folder: config.json, model.safetensors, tokenizer.json if the model has a tokenizer, and
   generation_config.json if its ends of text are known. A path that ends in .safetensors becomes
   one file with all of these. dtype: MHK_F32, MHK_F16, MHK_BF16; 0: MHK_F32. PyTorch reads the
   result. Files are written like mhk_file_write_bytes(), so no file is ever incomplete. A folder
   has the old model or the new one, never a mix. If the process is killed while it renames files,
   the folder does not load until a model is saved there again. If the model has no tokenizer, an
   old tokenizer in the folder is removed; files that mhk_load() does not read stay. Other savers to
   the same folder wait (model.lock). With dtype MHK_Q8 or MHK_Q4, a quantized model is saved
   unchanged, and any other as mhk_quantize() quantizes it by default; everything that is not
   quantized is saved as MHK_F32. The quantized matrix NAME (N,K) is stored as NAME of type I8
   (MHK_Q8) or U8 (MHK_Q4), NAME_scale of type F16, and, for rows that stay unquantized, NAME_rest
   of type F32; shapes and order are those of mhk_quantized. */
MHKDEF mhk_result mhk_save(mhk_model *m, const char *path, mhk_dtype dtype);
#endif

#if !defined(MOHAWK_NO_STDIO) || !defined(MOHAWK_NO_TRAINING)
typedef struct mhk_quantize_desc {
  mhk_dtype type;  /* MHK_Q8 or MHK_Q4; 0: MHK_Q8 */
  int group;       /* 32 or 64 neighbors share a scale; 0: 64 for MHK_Q8, 32 for MHK_Q4 */
  mhk_dtype ends;  /* type of embedding and head; 0: as type */
} mhk_quantize_desc;
/* Returns a frozen copy of m with quantized embedding, head and projections. Scales are chosen from
   the weights alone, per group: for MHK_Q8 the largest weight divided by 127, for MHK_Q4 the scale
   with the least squared error. Norms, convolutions, biases and all other vectors become MHK_REAL,
   and so do the rows of in_proj that set the decay (A_log of discrete Mamba-2, dt of Mamba-2) and
   matrices with rows that are not a multiple of the group. If no other matrix is left, the copy is
   not quantized and there is a warning. */
MHKDEF mhk_model *mhk_quantize(mhk_model *m, const mhk_quantize_desc *desc);
#endif

#ifndef MOHAWK_NO_TRAINING
/* ---- training text ---- */

/* Receives progress; a nonzero return value stops the work. */
typedef int (*mhk_progress_fn)(void *user, mhk_index done, mhk_index total);

/* Training text: one long row of tokens; each document starts with mhk_tokenizer_start(). Files are
   UTF-8 (a byte order mark is skipped), and the text <|endoftext|> separates documents. A file is
   refused if one byte in a hundred is zero or invalid; fewer such bytes cause a warning. */
typedef struct mhk_corpus_desc {
  int n_files;
  const char *const *files;
  const int *repeat;             /* uses file i repeat[i] times; NULL: once */
  size_t max_document;           /* splits longer documents at the first line end after this many bytes; 0: never */
  const size_t *max_document_of; /* per file, instead of max_document */
  uint64_t seed;                 /* shuffles the documents; 0: keeps their order */
  const char *const *texts; /* NULL, or per file its content; files[i] then only names it; NULL: read the file */
  const size_t *lengths;    /* of texts, in bytes; NULL: they are 0-terminated */
} mhk_corpus_desc;
#ifndef MOHAWK_NO_STDIO
/* desc must name at least one file. */
MHKDEF mhk_corpus *mhk_corpus_load(mhk_context *ctx, mhk_tokenizer *k, const mhk_corpus_desc *desc);
#endif
/* Copies n tokens of the caller. end: the id that starts a document, -1: none. */
MHKDEF mhk_corpus *mhk_corpus_from_tokens(mhk_context *ctx, const int32_t *tokens, mhk_index n, int32_t end);
/* Samples text from the model, document after document, from its own distribution, to distill
   without a corpus. If progress stops it, the corpus has the tokens so far. The result depends only
   on seed, not on threads. */
MHKDEF mhk_corpus *mhk_corpus_sample(mhk_model *m, mhk_index tokens, uint64_t seed, mhk_progress_fn progress,
                                     void *user);
MHKDEF void mhk_corpus_destroy(mhk_corpus *x);
/* The number of tokens; *tokens (tokens may be NULL) receives a pointer to them. */
MHKDEF mhk_index mhk_corpus_tokens(const mhk_corpus *x, const int32_t **tokens);

/* ---- student ---- */

/* Initialization of a student's new mixers (Bick et al. 2024, section 4; for ATTENTION, the
   default, Wang et al. 2024, "The Mamba in the Llama", arXiv 2408.15237). */
typedef enum mhk_init {
  MHK_INIT_DEFAULT = 0,
  MHK_INIT_IDENTITY = 1,
  MHK_INIT_ATTENTION = 2,
  MHK_INIT_RANDOM = 3
} mhk_init;
typedef struct mhk_student_desc {
  const int *keep_attention; /* layers that keep attention, for a hybrid */
  int n_keep_attention;
  int d_state;               /* 0: the teacher's head size */
  int rotary_dim;            /* rotary features of B and C; 0: as the teacher; -1: none, as the released Phi-Mamba */
  mhk_init init;             /* 0: attention */
  int chunk_size;            /* 0: 128 */
  uint64_t seed;             /* 0: 1 */
} mhk_student_desc;
/* Creates a Phi-Mamba student of a Phi teacher. It copies embedding, norms, MLPs, head and kept
   attention layers (weight transfer); its other mixers are new. */
MHKDEF mhk_model *mhk_student_create(mhk_context *ctx, mhk_model *teacher, const mhk_student_desc *desc);

/* ---- distillation ---- */

/* The defaults of a run. BEST gives the best student at equal tokens: initialization from
   attention, rotary B and C, alignment of hidden states in stage 3 (own_stream), learning rate
   decay over the last half of each stage. PAPER, Bick et al. 2024: initialization as identity,
   neither of the two, decay over the last tenth. */
typedef enum mhk_recipe { MHK_RECIPE_BEST = 0, MHK_RECIPE_PAPER = 1 } mhk_recipe;
/* Which tensors a stage trains. DEFAULT: MATRICES (in_proj, conv1d and D) in stage 1, MIXERS
   (except kept attention) in stage 2, ALL in stage 3. */
typedef enum mhk_trains {
  MHK_TRAIN_DEFAULT = 0,
  MHK_TRAIN_MATRICES = 1,
  MHK_TRAIN_MIXERS = 2,
  MHK_TRAIN_ALL = 3
} mhk_trains;
/* which trained tensors weight decay applies to */
typedef enum mhk_decays { MHK_DECAY_ALL = 0, MHK_DECAY_MATRICES = 1 } mhk_decays;
/* windows at random positions, or documents packed in order with boundaries */
typedef enum mhk_windows { MHK_WINDOWS_RANDOM = 0, MHK_WINDOWS_PACKED = 1 } mhk_windows;

/* One stage. Its learning rate warms up, stays constant, and decays linearly to lr_low. */
typedef struct mhk_stage_desc {
  /* budget, rounded down to whole updates; 0 skips the stage; all three 0: 0.5, 1 and 1.5
     million */
  mhk_index tokens;
  double lr;             /* peak learning rate; 0: from stage and d_model (mhk_distill_defaults) */
  double lr_low;         /* learning rate at the end of the decay; 0: 1e-8 */
  double warmup;         /* fraction of updates; 0: 0.05; negative: none */
  double decay;          /* fraction of updates; 0: 0.5 (PAPER: 0.1); negative: none */
  double weight_decay;   /* 0: 0.1; negative: none */
  double clip;           /* global gradient norm; 0: 1 in stage 3, none in others; negative: none */
  double temperature;    /* stage 3: for the student's logits; 0: 1 */
  double hard_labels;    /* stage 3: weight of cross-entropy against the text; 0: none */
  double own_stream;     /* stage 3: weight of the alignment of hidden states; 0: 0.03 (PAPER: none); negative: none */
  mhk_trains trains;
} mhk_stage_desc;

typedef struct mhk_distill_desc {
  mhk_model *teacher;           /* needed; frozen */
  mhk_model *student;           /* trainable, from mhk_student_create(); NULL: created from student_desc */
  mhk_student_desc student_desc;
  mhk_corpus *corpus;
  mhk_recipe recipe;            /* the source of the defaults of stages and student_desc */
  /* 1 matrix orientation, 2 hidden-state alignment, 3 knowledge distillation */
  mhk_stage_desc stages[3];
  mhk_index batch, length;      /* sequences per batch, tokens per sequence; 0: 8 and 256 */
  mhk_index update_tokens;      /* tokens per update, by gradient accumulation; 0: batch * length */
  mhk_windows windows;
  double beta1, beta2, eps;     /* AdamW; 0: 0.9, 0.95, 1e-8 */
  mhk_decays decays;
  int recompute;                /* stage 3 recomputes blocks in the backward pass: less memory, a third more time */
  mhk_precision precision;      /* for products in updates; evaluation and checkpoints are always float32 */
  uint64_t seed;                /* text windows; 0: 1 */
  /* Folder for checkpoints; NULL: none. The trainer holds a lock on it (out/run.lock). A second
     trainer for it, here or in another process, is an error that names the process. The lock ends
     with its process. Systems and network drives without locks do not lock. */
  const char *out;
  double checkpoint_seconds;    /* between checkpoints; 0: 60; negative: only at the end of a stage and on request */
  int fresh;                    /* start over even if out has a checkpoint */
  /* Sums gradients over the workers of a data-parallel job: called once per update with all
     gradients of the stage (n numbers); a nonzero return value is a failure. world and rank split
     the windows of a batch. */
  int (*exchange)(void *user, mhk_real *gradients, size_t n);
  void *exchange_user;
  int world, rank;              /* 0: 1 worker */
} mhk_distill_desc;

/* The description with all defaults filled in. */
MHKDEF mhk_distill_desc mhk_distill_defaults(const mhk_distill_desc *desc);
/* Peak memory of the run in bytes, without the teacher's file (an upper estimate). */
MHKDEF double mhk_distill_bytes(const mhk_distill_desc *desc);
/* Creates a trainer. It resumes if out has a checkpoint of the same run; if the description
   differs, the error names the difference. */
MHKDEF mhk_trainer *mhk_distill(mhk_context *ctx, const mhk_distill_desc *desc);
MHKDEF void mhk_trainer_destroy(mhk_trainer *tr);
/* Runs one update. Returns 1 after an update (including the last), 0 when finished or failed. A
   loss or gradient that is not finite is an error that names the first such value and its layer in
   teacher or student. */
MHKDEF int mhk_train_step(mhk_trainer *tr);
typedef struct mhk_progress_info {
  int stage;                /* 1..3 */
  int stage_done;           /* the last step ended its stage */
  int resumed;              /* the run continued from a checkpoint */
  mhk_index step, steps;    /* updates done in this stage, and its total */
  mhk_index tokens, total_tokens; /* of this stage */
  double loss;              /* of the last update */
  double loss_average;      /* running mean over about 20 updates */
  double lr, grad_norm;     /* grad_norm before clipping; 0 if not computed */
  double seconds, tokens_per_second, seconds_left; /* for this stage; seconds_left at the average rate so far */
  const double *layer_loss; /* stages 1 and 2: L losses, 0 for kept attention; NULL in stage 3 */
  const double *relative;   /* stage 1: (L,H) relative errors; else NULL */
} mhk_progress_info;
MHKDEF const mhk_progress_info *mhk_progress(mhk_trainer *tr);
/* The student. If the trainer created it, it belongs to the context and outlives the trainer; a
   student of yours must outlive the trainer. */
MHKDEF mhk_model *mhk_student(mhk_trainer *tr);
#ifndef MOHAWK_NO_STDIO
/* Writes out/checkpoint.safetensors with a checksum; the previous one stays as
   out/checkpoint.previous.safetensors. If the last one is damaged, mhk_distill() resumes from the
   previous one with a warning. */
MHKDEF mhk_result mhk_checkpoint(mhk_trainer *tr);
#endif

/* ---- evaluation ---- */

typedef struct mhk_evaluate_desc {
  mhk_model *teacher;   /* to compare with, or NULL */
  mhk_corpus *corpus;   /* needed */
  mhk_index length;     /* tokens per window; predictions stay inside a window; 0: 256 */
  mhk_index windows;    /* number of windows from the start; 0: all */
  mhk_progress_fn progress;
  void *user;
} mhk_evaluate_desc;
typedef struct mhk_evaluation {
  mhk_index tokens;                            /* number of predictions */
  double cross_entropy, cross_entropy_error;   /* nats per token, and standard error over windows */
  double kl, kl_error;                         /* KL(teacher || model); 0 without teacher */
  double agreement, agreement_error;           /* fraction of tokens with the teacher's top-1 */
} mhk_evaluation;
MHKDEF mhk_result mhk_evaluate(mhk_model *m, const mhk_evaluate_desc *desc, mhk_evaluation *result);
#endif

/* =================================================================================================
   3  MODELS AND SESSIONS IN FULL
   ============================================================================================== */

/* ---- contexts ---- */

/* The source of all memory. alloc returns NULL if memory is out; release receives the size that was
   allocated. Blocks need only the alignment of malloc. Both are called from the thread that uses
   the context. */
typedef struct mhk_allocator {
  void *(*alloc)(void *user, size_t bytes);
  void (*release)(void *user, void *block, size_t bytes);
  void *user;
} mhk_allocator;

typedef enum mhk_log_level { MHK_LOG_ERROR = 1, MHK_LOG_WARNING = 2, MHK_LOG_INFO = 3 } mhk_log_level;
typedef void (*mhk_log_fn)(void *user, mhk_log_level level, const char *message);

/* Runs body(arg, task, worker) once for each task in [0,tasks), in any order, and returns when all
   tasks are done. worker is in [0,workers); no two bodies that run at the same time share one. */
typedef void (*mhk_parallel_fn)(void *user, mhk_index tasks, void (*body)(void *arg, mhk_index task, int worker),
                                void *arg);

/* Instruction sets of the kernels. MHK_ISA_BEST is the best one that processor, compiler and build
   support. If the processor also has dot products of bytes (AVX512-VNNI, SDOT of ARMv8.2), products
   with quantized weights use them; the results are bit-identical to the other kernels of the
   set. */
typedef enum mhk_isa {
  MHK_ISA_BEST = 0,
  MHK_ISA_SCALAR = 1,
  MHK_ISA_AVX2 = 2,
  MHK_ISA_AVX512 = 3,
  MHK_ISA_NEON = 4,
  MHK_ISA_WASM = 5
} mhk_isa;

/* Hardware used for bfloat16 products: ordinary FMA on rounded operands (PLAIN), VDPBF16PS of
   AVX512-BF16, or AMX. BEST is AMX if processor, system (Linux) and compiler have it. Otherwise it
   is VDPBF16PS on AMD processors, where it is twice as fast as float32 (on Intel it is half as
   fast), otherwise PLAIN. All three round the operands the same way and sum in float32. With the
   AVX-512 kernels, PLAIN and VDPBF16PS agree to the bit (except subnormal sums); AMX sums in
   another order. */
typedef enum mhk_bf16_unit {
  MHK_BF16_BEST = 0,
  MHK_BF16_PLAIN = 1,
  MHK_BF16_AVX512 = 2,
  MHK_BF16_AMX = 3
} mhk_bf16_unit;

struct mhk_context_desc {
  mhk_allocator allocator;      /* zero: MOHAWK_MALLOC / MOHAWK_FREE */
  mhk_log_fn log;               /* receives warnings and notes; NULL: none */
  void *log_user;
  int threads;                  /* OpenMP threads; 0: one; -1: as many as OpenMP offers. Results do not depend on it. */
  mhk_parallel_fn parallel_for; /* the caller's threads instead of OpenMP */
  void *parallel_user;
  int parallel_workers;         /* number of workers of parallel_for (required with it) */
  mhk_isa isa;                  /* the environment variable MHK_ISA (scalar, avx2, ...) takes precedence */
  mhk_precision precision;      /* for ops that you call; mhk_distill_desc has its own for training */
  mhk_bf16_unit bf16_unit;      /* the environment variable MHK_BF16_UNIT (plain, avx512, amx) takes precedence */
};

MHKDEF mhk_result mhk_error(const mhk_context *ctx); /* the code of the first error */
MHKDEF void mhk_clear_error(mhk_context *ctx);
/* Sets an error with your message (printf format, conversions d i u x X c s e f g p), from ops and
   callbacks. Keeps an earlier error. Returns code. */
MHKDEF mhk_result mhk_fail(mhk_context *ctx, mhk_result code, const char *format, ...)
#if defined(__GNUC__) || defined(__clang__)
    __attribute__((format(printf, 3, 4)))
#endif
    ;

/* The version of the library as text: MHK_VERSION of the compiled header. */
MHKDEF const char *mhk_version(void);
MHKDEF int mhk_threads(const mhk_context *ctx);                 /* workers in use */
MHKDEF mhk_result mhk_set_threads(mhk_context *ctx, int threads); /* as mhk_context_desc.threads */
MHKDEF const char *mhk_isa_name(const mhk_context *ctx);        /* "scalar", "avx2", ... in use */
MHKDEF size_t mhk_memory_in_use(const mhk_context *ctx);        /* bytes that the context has allocated now */
MHKDEF size_t mhk_memory_peak(const mhk_context *ctx);          /* the most it ever had */
#ifndef MOHAWK_NO_TRAINING
/* unit of bfloat16 products: "plain", "avx512", "amx" */
MHKDEF const char *mhk_bf16_name(const mhk_context *ctx);
#endif

/* ---- configurations ---- */

typedef enum mhk_arch { MHK_ARCH_PHI = 1, MHK_ARCH_PHI_MAMBA = 2, MHK_ARCH_MAMBA2 = 3 } mhk_arch;
typedef enum mhk_mixer { MHK_MIXER_ATTENTION = 1, MHK_MIXER_DISCRETE_MAMBA2 = 2, MHK_MIXER_MAMBA2 = 3 } mhk_mixer;
#define MHK_MAX_LAYERS 256

/* The shape of a model. arch determines the form of blocks, the names and config.json; mixer[l] is
   the mixer of layer l. Fields for mixers that are not used are zero. */
typedef struct mhk_config {
  mhk_arch arch;
  int n_layer, d_model, vocab_size;
  int d_mlp;                     /* width of the MLP; 0 for Mamba-2 */
  double norm_eps;
  int tie_embeddings;            /* lm_head shares the embedding */
  int max_position;              /* context length of the teacher: informational, not enforced */
  /* attention */
  int n_head, n_kv_head, head_dim, rotary_dim, qk_layernorm;
  double rope_theta;
  /* state-space mixers: d_inner = ssm_heads * ssm_head_dim; a Mamba-2 normalizes each of the
     ssm_groups parts of d_inner separately, as mamba_ssm and transformers do */
  int ssm_heads, ssm_groups, ssm_head_dim, d_state, d_conv, chunk_size;
  int ssm_rotary_dim;            /* discrete Mamba-2 only; 0: none */
  int conv_silu;                 /* activation after the convolution: 0 identity, 1 silu */
  int conv_bias, proj_bias;      /* Mamba-2: use_conv_bias, use_bias */
  double dt_min, dt_max;         /* Mamba-2: time_step_limit; dt_max 0: none */
  int pad_vocab_multiple;        /* phi-mamba: pad_vocab_size_multiple */
  unsigned char mixer[MHK_MAX_LAYERS]; /* mhk_mixer of each layer */
} mhk_config;

/* Named shapes: "phi-1", "phi-1.5", "phi-2", "phi-mamba-1.5b", "hybrid-phi-mamba-1.5b",
   "mamba2-130m", "mamba2-1.3b". */
MHKDEF mhk_result mhk_config_preset(mhk_context *ctx, const char *name, mhk_config *config);
/* Checks that a configuration is valid; the error is a sentence with the numbers. */
MHKDEF mhk_result mhk_config_check(mhk_context *ctx, const mhk_config *config);
/* Reads the config.json of PhiForCausalLM, Mamba2ForCausalLM, Mamba-2 of mamba_ssm, or phi-mamba
   (plain, or under an outer key "config"). where names the text in errors. Unknown settings cause a
   warning. */
MHKDEF mhk_result mhk_config_parse(mhk_context *ctx, const char *json, size_t length, const char *where,
                                   mhk_config *config);
/* Writes a config.json: at most capacity bytes with a terminating 0. Returns the length without the
   0 (call with NULL, 0 to get it). */
MHKDEF size_t mhk_config_format(const mhk_config *config, char *json, size_t capacity);
MHKDEF double mhk_config_parameters(const mhk_config *config); /* number of parameters */
/* Size of a sequence's state after this many tokens: constant for state-space layers, keys and
   values of all tokens for attention layers. */
MHKDEF double mhk_config_state_bytes(const mhk_config *config, mhk_index tokens);

/* ---- models ---- */

#ifndef MOHAWK_NO_STDIO
typedef struct mhk_load_desc {
  /* warnings are errors: unused tensors, settings without effect, a tokenizer that cannot be
     used... */
  int strict;
  /* reads files into memory of the context instead of mapping them: later changes to them do not
     affect the model */
  int read;
  /* weights from another format instead of those in the folder, see mhk_file_of(). The model takes
     ownership; a load that fails closes them. */
  struct mhk_file *weights;
  /* a tokenizer instead of the one in the folder */
  const struct mhk_tokenizer_desc *tokenizer;
} mhk_load_desc;
/* mhk_load() with options. */
MHKDEF mhk_model *mhk_load_with(mhk_context *ctx, const char *path, const mhk_load_desc *desc);
#endif
/* Loads a model from the bytes of a .safetensors file from mhk_save(). Weights that are aligned to
   their type are used in place, so data must outlive the model. */
MHKDEF mhk_model *mhk_load_memory(mhk_context *ctx, const void *data, size_t bytes);

MHKDEF const mhk_config *mhk_model_config(const mhk_model *m);
MHKDEF mhk_tokenizer *mhk_model_tokenizer(const mhk_model *m); /* the tokenizer of the model, or NULL */
/* Why a loaded model does not use the tokenizer in its folder: a sentence; NULL: there is no
   tokenizer, or it is used. */
MHKDEF const char *mhk_model_tokenizer_error(const mhk_model *m);
/* k must outlive the model. If it has more tokens than the model, there is a warning, and feeding
   such a token is an error. */
MHKDEF mhk_result mhk_model_set_tokenizer(mhk_model *m, mhk_tokenizer *k);
/* The tokens that end a text: mhk_sample() and mhk_speculate() stop at any of them. A loaded model
   uses eos_token_id of generation_config.json, otherwise of config.json. Unless
   generation_config.json was written explicitly (has no _from_model_config), mhk_tokenizer_end() of
   the model's tokenizer is another one. Returns their number; *ids (ids may be NULL) is valid until
   tokenizer or ends change. */
MHKDEF int mhk_model_ends(const mhk_model *m, const int32_t **ids);
/* Replaces the ends of text; n is 0 to 1000. mhk_save() writes them to generation_config.json. */
MHKDEF mhk_result mhk_model_set_ends(mhk_model *m, const int32_t *ids, int n);
MHKDEF int mhk_model_count(const mhk_model *m); /* tensors */
MHKDEF mhk_tensor *mhk_model_at(const mhk_model *m, int i);
MHKDEF mhk_tensor *mhk_model_find(const mhk_model *m, const char *name); /* by checkpoint name, or NULL */
#ifndef MOHAWK_NO_TRAINING
/* Creates a trainable model, initialized as PyTorch initializes its layers. */
MHKDEF mhk_model *mhk_model_create(mhk_context *ctx, const mhk_config *config, uint64_t seed);
/* Converts all parameters to trainable float32 (float64) copies. */
MHKDEF mhk_result mhk_model_make_trainable(mhk_model *m);
/* The two halves of mhk_student_create(), for students created in other ways. Weight transfer
   copies all weights that both models have, except those of state-space mixers. */
MHKDEF mhk_result mhk_model_transfer(mhk_model *student, mhk_model *teacher);
MHKDEF mhk_result mhk_model_init_mixers(mhk_model *student, mhk_model *teacher, mhk_init init, uint64_t seed);
#endif

/* ---- files ---- */

/* safetensors (huggingface/safetensors, format of version 0.4): 8 bytes of header length, a JSON
   header, raw little-endian tensors. Your program can read other formats and pass the tensors to
   mhk_file_of(), as `mohawk convert` does with PyTorch files (pytorch_model.bin). */
typedef struct mhk_file mhk_file;
typedef struct mhk_stored {
  const char *name;
  mhk_dtype dtype; /* 0: an unsupported type (F8_E4M3, C64...); its bytes are still available */
  int rank;
  mhk_index shape[MHK_MAX_RANK]; /* further axes are merged into the last one */
  mhk_index count;
  const void *data; /* in the mapped file: little-endian, may be unaligned */
  size_t bytes;
} mhk_stored;
#ifndef MOHAWK_NO_STDIO
/* Opens a safetensors file, an index of shards, or model.safetensors or its index in a folder. All
   metadata is validated. */
MHKDEF mhk_file *mhk_file_open(mhk_context *ctx, const char *path);
#endif
/* The same from memory, which must outlive the file. */
MHKDEF mhk_file *mhk_file_open_memory(mhk_context *ctx, const void *data, size_t bytes);
/* Creates a file from n little-endian tensors in memory, for readers of other formats. name is for
   messages. The list and names are copied. data must stay valid until release(user) is called: when
   the file closes, or before this function returns NULL. release may be NULL. */
typedef void (*mhk_release_fn)(void *user);
MHKDEF mhk_file *mhk_file_of(mhk_context *ctx, const char *name, int n, const mhk_stored *tensors,
                             mhk_release_fn release, void *user);
MHKDEF void mhk_file_close(mhk_file *f);
MHKDEF int mhk_file_count(const mhk_file *f);
MHKDEF const mhk_stored *mhk_file_at(const mhk_file *f, int i);            /* sorted by name */
MHKDEF const mhk_stored *mhk_file_find(const mhk_file *f, const char *name);
/* The text of a key of __metadata__, or NULL; length may be NULL. */
MHKDEF const char *mhk_file_metadata(const mhk_file *f, const char *key, size_t *length);
/* Copies the elements of a tensor, converted from any number type. */
MHKDEF mhk_result mhk_file_read(mhk_context *ctx, const mhk_stored *x, mhk_real *out);
/* The same for integer types; an error if a value does not fit. */
MHKDEF mhk_result mhk_file_read_i32(mhk_context *ctx, const mhk_stored *x, int32_t *out);
#ifndef MOHAWK_NO_STDIO
/* Writes a safetensors file of n tensors: name, dtype, rank, shape and data (in host byte order) of
   each count. metadata: n_metadata pairs key, value. */
MHKDEF mhk_result mhk_file_write(mhk_context *ctx, const char *path, int n, const mhk_stored *tensors,
                                 int n_metadata, const char *const *metadata);
/* Writes any other file. Like all files here, it is written as path.new (path.new2 and so on if
   others write it too), flushed to disk and renamed. Readers see the old file or the new one, and a
   writer that fails or is killed leaves the old one. The next write of path removes leftovers of
   killed writers. A symbolic link at path is replaced, not followed. The new file keeps the
   permissions of the old one, as far as the umask allows. */
MHKDEF mhk_result mhk_file_write_bytes(mhk_context *ctx, const char *path, const void *data, size_t bytes);
#endif

/* ---- tokenizers ---- */

/* Byte-level BPE as in GPT-2, Phi and GPT-NeoX (with NFC, for the Mamba-2 models). path:
   tokenizer.json or its folder. tokenizer_config.json in the same folder, if present, names the
   tokens that start and end a text. `mohawk convert` reads older layouts (vocab.json with
   merges.txt, encoder.json with vocab.bpe). */
#ifndef MOHAWK_NO_STDIO
MHKDEF mhk_tokenizer *mhk_tokenizer_load(mhk_context *ctx, const char *path);
#endif
/* A tokenizer.json in memory. */
MHKDEF mhk_tokenizer *mhk_tokenizer_load_memory(mhk_context *ctx, const char *json, size_t length);
typedef struct mhk_tokenizer_desc {
  const char *json; /* a tokenizer.json */
  size_t length;
  const char *config; /* a tokenizer_config.json; NULL: none */
  size_t config_length;
  const char *name; /* of the tokenizer.json in messages; NULL: "the tokenizer.json in memory" */
} mhk_tokenizer_desc;
/* The same with its configuration. */
MHKDEF mhk_tokenizer *mhk_tokenizer_create(mhk_context *ctx, const mhk_tokenizer_desc *desc);
MHKDEF void mhk_tokenizer_destroy(mhk_tokenizer *k);
/* Encodes any bytes: writes at most capacity ids and returns their total number (if larger, call
   again with more room); -1 on error. Added tokens in the text become their ids; no tokens are
   added around it. Time is linear in length. mhk_decode() restores the bytes, unless the tokenizer
   uses NFC, add_prefix_space, lstrip or rstrip, which change the text, or has an added token that
   its vocabulary spells in characters for bytes. */
MHKDEF mhk_index mhk_encode(mhk_tokenizer *k, const char *text, size_t length, int32_t *ids, mhk_index capacity);
/* The same with mhk_tokenizer_start() before the text, if mhk_feed_text() would add it. */
MHKDEF mhk_index mhk_encode_prompt(mhk_tokenizer *k, const char *text, size_t length, int32_t *ids, mhk_index capacity);
/* Decodes ids: writes at most capacity bytes (no terminating 0) and returns their total number; -1
   if an id does not exist. */
MHKDEF mhk_index mhk_decode(mhk_tokenizer *k, const int32_t *ids, mhk_index n, char *text, size_t capacity);
MHKDEF int mhk_tokenizer_size(const mhk_tokenizer *k);                    /* the largest id + 1 */
/* The id of an added or special token ("<|endoftext|>"), -1 if absent. */
MHKDEF int32_t mhk_tokenizer_id(mhk_tokenizer *k, const char *token);
/* The bytes of one token, NULL if the id does not exist; length may be NULL. */
MHKDEF const char *mhk_token_bytes(mhk_tokenizer *k, int32_t id, size_t *length);
/* The id of the token that ends a text, -1 if there is none: eos_token of tokenizer_config.json,
   otherwise <|endoftext|>. */
MHKDEF int32_t mhk_tokenizer_end(const mhk_tokenizer *k);
/* The id of the token that starts a text, and each document of mhk_corpus_load(): bos_token of
   tokenizer_config.json, otherwise the token that tokenizer.json adds before a text, otherwise
   mhk_tokenizer_end(). */
MHKDEF int32_t mhk_tokenizer_start(const mhk_tokenizer *k);
/* The tokenizer as a tokenizer.json. */
MHKDEF const char *mhk_tokenizer_json(mhk_tokenizer *k, size_t *length);

/* ---- sessions ---- */

/* A session runs one or more sequences of tokens, numbered from 0, each at its own position.
   State-space layers keep a state of constant size, attention layers the keys and values of the
   tokens so far. All memory is one block of mhk_session_bytes(); after creation, only words longer
   than word_bytes allocate more. The output of a sequence does not depend on the other sequences,
   except for rounding: products of few rows sum in another order than products of many. */
struct mhk_session_desc {
  mhk_index batch;          /* sequences; 0: 1 */
  /* tokens per sequence that attention layers can hold; 0: the model's max_position, or 2048.
     Ignored without attention layers. */
  mhk_index capacity;
  /* attention layers see only the last `window` tokens and are never full; capacity is then
     ignored, and positions keep counting. 0: all tokens */
  mhk_index window;
  mhk_index chunk;          /* tokens of a sequence computed together; more is faster but needs more memory; 0: 256 */
  mhk_index snapshots;      /* number of newest states of each sequence to keep for rewinding */
  mhk_index snapshot_every; /* tokens between automatic snapshots; 0: only mhk_session_snapshot() takes them */
  mhk_index recent;         /* number of last tokens remembered for the penalties of mhk_sampling; 0: 256 */
  size_t stop_bytes;        /* length of the longest stop string of mhk_sampling; 0: 64 */
  void *memory;             /* a block of yours to live in, which must outlast the session; NULL: the context's */
  size_t memory_bytes;      /* its size: at least mhk_session_bytes(); any alignment */
  /* length of the longest word (text without a break) of mhk_feed_text() that the block has room
     for; 0: 1024. A longer one temporarily uses the context's allocator, or is an error if the
     block is yours. */
  size_t word_bytes;
  int no_start;             /* mhk_feed_text() adds no start token */
};
/* Size of the block for a session of this description with the context's current threads (with
   fewer later, some stays unused). 0 on error. */
MHKDEF size_t mhk_session_bytes(const mhk_model *m, const mhk_session_desc *desc);
/* Resets a sequence to the start: no tokens seen, no snapshots. MHK_ALL: every sequence. */
#define MHK_ALL (-1)
MHKDEF mhk_result mhk_session_reset(mhk_session *s, mhk_index sequence);
/* Tokens seen; 0 for a sequence that does not exist. */
MHKDEF mhk_index mhk_session_position(const mhk_session *s, mhk_index sequence);

/* Prefill: feeds n tokens to each sequence, (batch,n). mhk_logits() then has the logits after the
   last one. An invalid token or a full cache is an error before anything changes. */
MHKDEF mhk_result mhk_feed(mhk_session *s, const int32_t *tokens, mhk_index n);
/* Receives the logits (V) after token `index` of a feed. They are valid only during the call, which
   must not use the session. */
typedef void (*mhk_logits_fn)(void *user, mhk_index sequence, mhk_index index, const mhk_real *logits);
typedef struct mhk_feed_desc {
  const int32_t *const *tokens;       /* required: for each sequence b, lengths[b] ids */
  const mhk_index *lengths;           /* required; 0: that sequence does not change */
  mhk_logits_fn take;                 /* called with the logits of a sequence, in order; NULL: not needed */
  void *user;
  const unsigned char *const *wanted; /* call take only if wanted[b][index] is not 0; NULL, or NULL for b: always */
} mhk_feed_desc;
/* The same with a separate number of tokens for each sequence. Nothing is padded, so only these
   tokens cost work. */
MHKDEF mhk_result mhk_feed_batch(mhk_session *s, const mhk_feed_desc *desc);
/* Feeds n tokens to one sequence and returns the natural logarithm of the probability of each,
   given those before it. The sequence must have seen a token (for text: the end-of-text token). */
MHKDEF mhk_result mhk_score(mhk_session *s, mhk_index sequence, const int32_t *tokens, mhk_index n,
                            double *log_probabilities);
/* The logits (V) after the last token of a sequence; NULL if it has none. The logits of all
   sequences are adjacent: (batch,V) from sequence 0. */
MHKDEF const mhk_real *mhk_logits(const mhk_session *s, mhk_index sequence);
/* mhk_sample() for every sequence: tokens (batch). Ends of text and stop tokens are treated like
   any other token. */
MHKDEF mhk_result mhk_sample_batch(mhk_session *s, const mhk_sampling *sampling, int32_t *tokens);

/* The distribution that sampling draws from, for your logits (V): probabilities p (V), zero for
   dropped tokens, sum 1. recent: the tokens for penalties (the last penalty_tokens of them count);
   may be NULL if n_recent is 0. scratch (V). A logit of -INFINITY forbids a token. Returns how many
   tokens are left; 0 if a logit is NaN or too large, no token is possible, or how is invalid. */
MHKDEF mhk_index mhk_probabilities(const mhk_real *logits, mhk_index V, const mhk_sampling *how, const int32_t *recent,
                                   mhk_index n_recent, double *p, int32_t *scratch);
/* Draws a token: the first id where the running sum of p (V) exceeds uniform, which you draw from
   [0,1). */
MHKDEF int32_t mhk_draw(const double *p, mhk_index V, double uniform);

/* ---- the state of a sequence as a value: what it has seen, its logits, the tokens that penalties
   count, and an unfinished character of text; not the random numbers of sampling. Copies include
   text held back for stop strings; saved states do not. The bytes start with a version and a
   fingerprint of the model (configuration and samples of all weights: to catch mistakes, no proof),
   and are the same on every machine whose mhk_real has one size. A session with a smaller `recent`
   keeps the last of the tokens that penalties count. ---- */

/* Current size of the state in bytes: constant without attention, otherwise it grows with the
   position. */
MHKDEF size_t mhk_session_state_bytes(const mhk_session *s, mhk_index sequence);
/* state has room for `bytes` bytes, at least mhk_session_state_bytes(). */
MHKDEF mhk_result mhk_session_save_memory(mhk_session *s, mhk_index sequence, void *state, size_t bytes);
/* Refuses a state of another model, a damaged one, and one that exceeds the capacity, before it
   changes the sequence. */
MHKDEF mhk_result mhk_session_load_memory(mhk_session *s, mhk_index sequence, const void *state, size_t bytes);
#ifndef MOHAWK_NO_STDIO
MHKDEF mhk_result mhk_session_save(mhk_session *s, mhk_index sequence, const char *path); /* never half a file */
MHKDEF mhk_result mhk_session_load(mhk_session *s, mhk_index sequence, const char *path);
#endif
/* Copies a sequence within a session or between sessions of the same model object: one prompt, many
   continuations. */
MHKDEF mhk_result mhk_session_copy(mhk_session *to, mhk_index to_sequence, const mhk_session *from,
                                   mhk_index from_sequence);
/* Takes a snapshot of the current state; it replaces the oldest one if all slots are in use. */
MHKDEF mhk_result mhk_session_snapshot(mhk_session *s, mhk_index sequence);
/* Rewinds to the latest snapshot at or before position and returns its position, so you can feed
   the tokens in between again. Without such a snapshot, this is 0, the start. A model with only
   attention layers (and no window) needs no snapshots and rewinds to position itself. There are no
   logits until the next token. -1 on error. */
MHKDEF mhk_index mhk_session_rewind(mhk_session *s, mhk_index sequence, mhk_index position);
/* The recurrent state of a state-space layer, which you may read and write between calls: the last
   inputs of its convolution (d_conv-1,channels), oldest first, and its state (H,P,N); NULL for
   other layers. */
MHKDEF mhk_real *mhk_session_conv(mhk_session *s, mhk_index sequence, int layer);
MHKDEF mhk_real *mhk_session_ssm(mhk_session *s, mhk_index sequence, int layer);

/* ---- speculative decoding (Leviathan et al. 2023, Chen et al. 2023): a draft session, a student's
   say, proposes tokens, and the target judges all of them in one pass. The output has the
   distribution of mhk_sample() on the target alone, whatever the draft and the sampling; greedy, it
   is the same text. Worthwhile when verifying several tokens costs little more than one, and a
   draft costs much less: a large target whose weights come from memory, a quantized student, a long
   context. ---- */

typedef struct mhk_speculation mhk_speculation;
typedef struct mhk_speculation_desc {
  /* Required. Both must belong to one context, have one sequence and no window, and have seen the
     same text. They belong to the speculation until it is finished or destroyed. */
  mhk_session *target, *draft;
  int tokens; /* tokens to draft per pass; 0: adapts from 1 to 7 to how many were accepted (up to 8 rows are cheap) */
} mhk_speculation_desc;
MHKDEF mhk_speculation *mhk_speculation_create(const mhk_speculation_desc *desc);
/* The sessions stay, as after mhk_speculation_finish(). */
MHKDEF void mhk_speculation_destroy(mhk_speculation *x);
/* Like mhk_sample() on the target, which also has the text and the reason to stop. After -1, the
   speculation is finished. sampling may change between calls, but tokens that are already verified
   stay. */
MHKDEF int32_t mhk_speculate(mhk_speculation *x, const mhk_sampling *sampling);
/* Brings both sessions to the tokens returned so far, including logits. Then use them separately,
   or continue the speculation. */
MHKDEF mhk_result mhk_speculation_finish(mhk_speculation *x);
/* tokens drawn, passes of the target, tokens drafted and accepted */
typedef struct mhk_speculation_info { mhk_index tokens, passes, drafted, accepted; } mhk_speculation_info;
MHKDEF mhk_speculation_info mhk_speculation_progress(const mhk_speculation *x);

/* =================================================================================================
   4  TAPE AND OPS
   ============================================================================================== */

/* ---- tensors ---- */

MHKDEF size_t mhk_dtype_bytes(mhk_dtype dtype);     /* bytes per element; 0 for quantized and unknown types */
MHKDEF const char *mhk_dtype_name(mhk_dtype dtype); /* as in safetensors: "F32", "BF16", ...; "Q8", "Q4" */

/* A quantized matrix (N,K), symmetric: element (n,k) is scale * q, with one scale for each group of
   32 or 64 neighbors k of a row. Rows are in blocks of 16, padded with zeros, so that one vector
   of a kernel holds the same k of many rows and a block is contiguous in memory:
     MHK_Q8   q (blocks,K/4,16,4) signed bytes -128..127; byte (b,c,r,j) is q of row 16 b + r, k = 4
              c + j
     MHK_Q4   q (blocks,K/8,16,4) bytes; the low half of byte (b,c,r,j) is q + 8 of row 16 b + r, k
              = 8 c + j, the high half that of k = 8 c + 4 + j
     scale    (blocks,K/group,16) half-precision numbers
   The last N - rows rows may stay unquantized, as the A_log rows of a state-space mixer do. */
typedef struct mhk_quantized {
  const void *q;
  const uint16_t *scale;   /* host byte order */
  const mhk_real *rest;    /* (N-rows,K), or NULL */
  mhk_index rows;          /* number of quantized rows, at most N */
  int group;               /* 32 or 64; divides K */
} mhk_quantized;

/* A contiguous row-major array. You may read all fields; write only data and grad. Activations have
   dtype MHK_REAL; frozen matrices of a model may keep their stored type. */
struct mhk_tensor {
  void *data;                     /* count elements of dtype; quantized->q if quantized */
  mhk_real *grad;                 /* count elements, or NULL before the first gradient arrives */
  mhk_index shape[MHK_MAX_RANK];  /* shape[0..rank-1]; the rest is 1 */
  mhk_index count;                /* product of the shape */
  int rank;                       /* 0 (a scalar) to MHK_MAX_RANK */
  mhk_dtype dtype;
  int requires_grad;              /* it gets gradients (trained parameters, and all that depends on them) */
  const char *name;               /* parameters: name in the checkpoint; otherwise NULL */
  mhk_context *ctx;
  struct mhk_tensor *base;        /* views: the tensor that owns the memory */
  mhk_index base_offset;          /* views: offset in it, in elements */
  const mhk_quantized *quantized; /* the parts of a tensor of MHK_Q8 or MHK_Q4 (or of a view's base), otherwise NULL */
};

/* The data of an MHK_REAL tensor; NULL for NULL or any other type. */
MHKDEF mhk_real *mhk_data(const mhk_tensor *x);
/* The value of a scalar (or of the first element); NaN for NULL. */
MHKDEF double mhk_value(const mhk_tensor *x);
/* Converts elements [first,first+n) of a tensor of any floating-point or quantized type to
   mhk_real. */
MHKDEF mhk_result mhk_tensor_read(const mhk_tensor *x, mhk_index first, mhk_index n, mhk_real *out);
MHKDEF size_t mhk_tensor_bytes(const mhk_tensor *x); /* of its data */

/* UTF-8 decoder, for loops that decode tokens themselves: returns only whole characters and holds
   back an incomplete one until the next call. Invalid bytes become U+FFFD, one per maximal
   ill-formed prefix (Unicode 3.9). */
typedef struct mhk_stream { unsigned char held[4]; int n_held; } mhk_stream; /* zero to start */
/* Returns the bytes written; out has room for 3 * (length + 4). */
MHKDEF size_t mhk_stream_push(mhk_stream *s, const char *bytes, size_t length, char *out);
/* At the end of the text: an incomplete character becomes U+FFFD (3 bytes). */
MHKDEF size_t mhk_stream_finish(mhk_stream *s, char *out);

#ifndef MOHAWK_NO_TRAINING
/* ---- tape ---- */

/* A tape owns the activations of a computation and what is needed to differentiate it. Ops run
   immediately. If recording is on and an input requires a gradient, they are also recorded.
   Everything on a tape lives until the tape is reset, rewound past it, or destroyed. The tape keeps
   its memory, so a loop of equal steps allocates only in its first iteration. Ops return NULL on
   failure. */
MHKDEF mhk_tape *mhk_tape_create(mhk_context *ctx);
MHKDEF void mhk_tape_destroy(mhk_tape *t);
MHKDEF void mhk_tape_reset(mhk_tape *t);
/* Turns recording on (1, the default) or off (0, no-grad); returns the previous setting. */
MHKDEF int mhk_tape_record(mhk_tape *t, int on);
/* A point to rewind to: drops tensors and records made after it, keeps earlier ones. */
typedef struct mhk_tape_mark { size_t chunk, used; mhk_index records; } mhk_tape_mark;
MHKDEF mhk_tape_mark mhk_tape_here(const mhk_tape *t);
MHKDEF void mhk_tape_rewind(mhk_tape *t, mhk_tape_mark mark);

/* Creates a tensor on the tape. values are copied; NULL means zeros. */
MHKDEF mhk_tensor *mhk_tensor_new(mhk_tape *t, int rank, const mhk_index *shape, const mhk_real *values);
/* Views: the same memory with another shape (same count), or rows [first,first+rows) of the first
   axis. Gradients are shared too. */
MHKDEF mhk_tensor *mhk_reshape(mhk_tape *t, mhk_tensor *x, int rank, const mhk_index *shape);
MHKDEF mhk_tensor *mhk_rows(mhk_tape *t, mhk_tensor *x, mhk_index first, mhk_index rows);
/* The values of x as a constant: shares the memory, but no gradient flows back. */
MHKDEF mhk_tensor *mhk_detach(mhk_tape *t, mhk_tensor *x);
/* Makes a leaf of this tape, or a parameter, require a gradient and sets its gradient to zero.
   Returns x. */
MHKDEF mhk_tensor *mhk_require_grad(mhk_tape *t, mhk_tensor *x);
/* Creates a parameter of yours, not on the tape: it lives as long as ctx and requires a gradient.
   values NULL: zeros. */
MHKDEF mhk_tensor *mhk_parameter(mhk_context *ctx, const char *name, int rank, const mhk_index *shape,
                                 const mhk_real *values);
MHKDEF void mhk_zero_grad(mhk_tensor *x);

/* Adds d(loss)/dx to x->grad of every x that requires a gradient. loss must be a scalar. Runs the
   backward pass of each recorded op once, from the last to the first. This consumes the records;
   the values stay. */
MHKDEF mhk_result mhk_backward(mhk_tape *t, mhk_tensor *loss);
/* The same, from y of any shape and its cotangent d(loss)/dy (count of y). */
MHKDEF mhk_result mhk_backward_from(mhk_tape *t, mhk_tensor *y, const mhk_real *cotangent);

/* Runs f(t,user,x) without keeping its activations, and runs it again when the backward pass needs
   them. This trades time for memory. f must compute the same result each time from x, parameters
   and user. */
typedef mhk_tensor *(*mhk_block_fn)(mhk_tape *t, void *user, mhk_tensor *x);
MHKDEF mhk_tensor *mhk_recompute(mhk_tape *t, mhk_block_fn f, void *user, mhk_tensor *x);

/* Your own op. forward fills out->data; backward reads out->grad and adds to in[i]->grad if
   mhk_wants_grad(t,in[i]), which also allocates the gradient. */
typedef struct mhk_op {
  mhk_tape *tape;
  mhk_tensor *out;
  mhk_tensor *const *in;
  int inputs;
  void *user;
} mhk_op;
typedef struct mhk_custom_desc {
  int inputs;
  mhk_tensor *const *in;
  int rank;                            /* of the output, */
  const mhk_index *shape;              /* and its shape */
  void (*forward)(const mhk_op *op);   /* needed */
  void (*backward)(const mhk_op *op);  /* NULL: no gradient flows through */
  const void *user;                    /* user_bytes of it are copied, so a struct on the stack is fine */
  size_t user_bytes;
} mhk_custom_desc;
/* Returns the output. desc is required. */
MHKDEF mhk_tensor *mhk_custom(mhk_tape *t, const mhk_custom_desc *desc);
MHKDEF int mhk_wants_grad(mhk_tape *t, mhk_tensor *x);

/* Compares the gradient of f with respect to x with central finite differences, element by element
   (at most 256, evenly spread). f builds a scalar from x and other inputs. The error is |analytic -
   numeric| divided by the largest |gradient|. Steps are 1e-2 of the scale of x in float32, 1e-5 in
   float64. Returns the error of the worst element (NaN on failure); report may be NULL. Restores
   the values of x, but not its gradient. */
typedef struct mhk_gradient_report { double error, analytic, numeric; mhk_index at, checked; } mhk_gradient_report;
MHKDEF double mhk_check_gradient(mhk_tape *t, mhk_tensor *(*f)(mhk_tape *t, void *user), void *user, mhk_tensor *x,
                                 mhk_gradient_report *report);

/* One AdamW update (Loshchilov & Hutter, arXiv 1711.05101) of n parameters, for your own training
   loops; an mhk_trainer has its own. Parameters without a gradient do not change. moments belongs
   to you: two numbers for each element of all n parameters, zeros before the first step, always
   used with the same list. step starts at 1. Gradients are set to zero unless keep_grad is set. */
typedef struct mhk_adamw_desc {
  double lr;                /* learning rate; 0 changes nothing */
  double beta1, beta2, eps; /* 0: 0.9, 0.999, 1e-8 */
  double weight_decay;      /* decoupled: subtracts lr * weight_decay * x */
  double scale;             /* factor on the gradients: 1 / batches, a clip; 0: 1 */
  int keep_grad;
} mhk_adamw_desc;
MHKDEF mhk_result mhk_adamw(mhk_context *ctx, int n, mhk_tensor *const *x, mhk_real *moments, int64_t step,
                            const mhk_adamw_desc *desc);

/* ---- ops ---- */

/* Elementwise and reductions. a and b have the same shape, or b is a vector of a's last axis, or b
   is a scalar. */
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
MHKDEF mhk_tensor *mhk_gelu(mhk_tape *t, mhk_tensor *x); /* gelu_new, the tanh approximation, as in Phi */
MHKDEF mhk_tensor *mhk_sum(mhk_tape *t, mhk_tensor *x);  /* over all elements: a scalar */
MHKDEF mhk_tensor *mhk_mean(mhk_tape *t, mhk_tensor *x);
MHKDEF mhk_tensor *mhk_sum_last(mhk_tape *t, mhk_tensor *x);  /* over the last axis: (...,n) -> (...) */
MHKDEF mhk_tensor *mhk_softmax(mhk_tape *t, mhk_tensor *x);   /* over the last axis */
/* (...,m,k) x (...,k,n) -> (...,m,n), leading axes equal; transpose_b: b is (...,n,k) */
MHKDEF mhk_tensor *mhk_matmul(mhk_tape *t, mhk_tensor *a, mhk_tensor *b, int transpose_b);
/* A copy of columns [first,first+width) of the last axis. */
MHKDEF mhk_tensor *mhk_columns(mhk_tape *t, mhk_tensor *x, mhk_index first, mhk_index width);
/* A copy with axes 1 and 2 exchanged: (B,T,H,P) -> (B,H,T,P). */
MHKDEF mhk_tensor *mhk_swap_heads(mhk_tape *t, mhk_tensor *x);

/* weight (V,D), tokens B*T ids below V -> (B,T,D) */
MHKDEF mhk_tensor *mhk_embedding(mhk_tape *t, mhk_tensor *weight, const int32_t *tokens, mhk_index B, mhk_index T);
/* x (...,K), weight (N,K) as in PyTorch's Linear, bias (N) or NULL -> (...,N). _gelu applies
   gelu_new; _add adds residual (...,N). */
MHKDEF mhk_tensor *mhk_linear(mhk_tape *t, mhk_tensor *x, mhk_tensor *weight, mhk_tensor *bias);
MHKDEF mhk_tensor *mhk_linear_gelu(mhk_tape *t, mhk_tensor *x, mhk_tensor *weight, mhk_tensor *bias);
MHKDEF mhk_tensor *mhk_linear_add(mhk_tape *t, mhk_tensor *x, mhk_tensor *weight, mhk_tensor *bias,
                                  mhk_tensor *residual);
/* Over the last axis n: weight (n), bias (n). */
MHKDEF mhk_tensor *mhk_layer_norm(mhk_tape *t, mhk_tensor *x, mhk_tensor *weight, mhk_tensor *bias, double eps);
MHKDEF mhk_tensor *mhk_rms_norm(mhk_tape *t, mhk_tensor *x, mhk_tensor *weight, double eps);
/* y * silu(z + z_bias): y, z (...,E), z_bias (E) or NULL */
MHKDEF mhk_tensor *mhk_gate(mhk_tape *t, mhk_tensor *y, mhk_tensor *z, mhk_tensor *z_bias);

/* ---- mixers ---- */

/* Document boundaries of packed sequences: doc (B,T); a new document starts where the value differs
   from that of the previous token. NULL: one document per row. Attention does not cross a boundary,
   states restart, and rotary positions count from the start of the document. */

/* Rotary embedding (half-split): x (B,T,H,P); rotates features i < dim/2 and i + dim/2 of each head
   by position * theta^(-2i/dim). */
MHKDEF mhk_tensor *mhk_rotary(mhk_tape *t, mhk_tensor *x, int dim, double theta, const int32_t *doc);

/* Causal softmax attention: q (B,T,H,P), k and v (B,T,G,P), G divides H -> (B,T,H,P), scale
   1/sqrt(P). Works in tiles with an online softmax (FlashAttention), without T*T memory. */
MHKDEF mhk_tensor *mhk_attention(mhk_tape *t, mhk_tensor *q, mhk_tensor *k, mhk_tensor *v, const int32_t *doc);
/* The attention matrix after softmax: (B,H,T,T), zeros above the diagonal. */
MHKDEF mhk_tensor *mhk_attention_matrix(mhk_tape *t, mhk_tensor *q, mhk_tensor *k, const int32_t *doc);

typedef struct mhk_conv1d_desc {
  const int32_t *doc;
  int silu;                /* 1: silu after the convolution */
  int parts;               /* number of tensors that the channels are split into; 0: one */
  const mhk_index *widths; /* channels of each part: they add up to C */
  mhk_tensor **out;        /* receives the parts, out[i] (B,T,widths[i]) */
} mhk_conv1d_desc;
/* Causal depthwise convolution: x (B,T,C), weight (C,1,W) with tap W-1 on the current token, bias
   (C) or NULL -> (B,T,C), or the first part. Inputs before a document's first token are zeros. */
MHKDEF mhk_tensor *mhk_conv1d(mhk_tape *t, mhk_tensor *x, mhk_tensor *weight, mhk_tensor *bias,
                              const mhk_conv1d_desc *desc);

/* State-space duality (Dao & Gu 2024, arXiv 2405.21060): h_t = exp(log_a_t) h_{t-1} + x_t B_t^T,
   y_t = h_t C_t (+ D_h x_t). x (B,T,H,P), log_a (B,T,H) <= 0, Bm and Cm (B,T,G,N), head h uses
   group h/(H/G) -> (B,T,H,P). A log_a of minus infinity forgets any finite state. A positive log_a
   is allowed, and NaN gives NaN. */
typedef enum mhk_ssd_form { MHK_SSD_AUTO = 0, MHK_SSD_CHUNKED = 1, MHK_SSD_RECURRENT = 2 } mhk_ssd_form;
typedef struct mhk_ssd_desc {
  mhk_tensor *D;             /* (H) or NULL */
  mhk_tensor *initial_state; /* (B,H,P,N) or NULL for zeros; gets a gradient if it requires one */
  /* if not NULL, receives the state (B,H,P,N) after the last token; gradients may flow into it */
  mhk_tensor **final_state;
  const int32_t *doc;
  mhk_index chunk;           /* tokens per chunk; 0: 32. Results differ only by rounding. */
  mhk_ssd_form form;         /* AUTO: recurrent for a few tokens without gradient, otherwise chunked */
} mhk_ssd_desc;
MHKDEF mhk_tensor *mhk_ssd(mhk_tape *t, mhk_tensor *x, mhk_tensor *log_a, mhk_tensor *Bm, mhk_tensor *Cm,
                           const mhk_ssd_desc *desc);
/* The SSD matrix (B,H,T,T): M[t,s] = (C_t . B_s) exp(log_a_{s+1} + ... + log_a_t) for s <= t, plus
   D_h on the diagonal (D may be NULL) */
MHKDEF mhk_tensor *mhk_ssd_matrix(mhk_tape *t, mhk_tensor *log_a, mhk_tensor *Bm, mhk_tensor *Cm, mhk_tensor *D,
                                  const int32_t *doc);

/* ---- losses ---- */

/* Losses are scalars. logits (...,V); labels have one id per row, and a negative label excludes the
   row. Losses are means over the rows that count. */
MHKDEF mhk_tensor *mhk_cross_entropy(mhk_tape *t, mhk_tensor *logits, const int32_t *labels);
/* Knowledge distillation, the loss of stage 3: cross-entropy of softmax(logits / temperature)
   against softmax(target_logits); the target gets no gradient. */
MHKDEF mhk_tensor *mhk_cross_entropy_soft(mhk_tape *t, mhk_tensor *logits, mhk_tensor *target_logits,
                                          double temperature);
/* KL(softmax(target_logits) || softmax(logits)) */
MHKDEF mhk_tensor *mhk_kl(mhk_tape *t, mhk_tensor *logits, mhk_tensor *target_logits);
/* Hidden-state alignment, the loss of stage 2: mean over rows of || x - target ||_2 over the last
   axis; the target gets no gradient. */
MHKDEF mhk_tensor *mhk_hidden_distance(mhk_tape *t, mhk_tensor *x, mhk_tensor *target);
/* Mean over (B,H) of || x - target ||_F, both (B,H,T,T). */
MHKDEF mhk_tensor *mhk_matrix_distance(mhk_tape *t, mhk_tensor *x, mhk_tensor *target);
typedef struct mhk_orientation_desc {
  mhk_tensor *log_a, *Bm, *Cm, *D; /* the student's mixer, as for mhk_ssd_matrix(); D may be NULL */
  mhk_tensor *q, *k;               /* the teacher's, as for mhk_attention_matrix(); no gradient */
  const int32_t *doc;
  double *relative;                /* (H), if not NULL: || M_s - M_t ||_F / || M_t ||_F of each head, mean over B */
} mhk_orientation_desc;
/* Matrix orientation, the loss of stage 1: mhk_matrix_distance(mhk_ssd_matrix(log_a,Bm,Cm,D),
   mhk_attention_matrix(q,k)) without computing either matrix, so memory grows with T, not T*T. desc
   is required. */
MHKDEF mhk_tensor *mhk_matrix_orientation(mhk_tape *t, const mhk_orientation_desc *desc);

/* ---- layers of a model ---- */

typedef struct mhk_forward_desc {
  const int32_t *doc; /* document of each token (B,T), or NULL */
  int recompute;      /* recompute each block in the backward pass instead of keeping its activations */
  int last_only;      /* logits of only the last token: (B,1,V) */
  /* if not NULL, receives the L+1 hidden states: the inputs of blocks 0..L-1 and the output of the
     last block */
  mhk_tensor **residuals;
} mhk_forward_desc;
/* tokens (B,T) -> logits (B,T,V) */
MHKDEF mhk_tensor *mhk_forward(mhk_tape *t, mhk_model *m, const int32_t *tokens, mhk_index B, mhk_index T,
                               const mhk_forward_desc *desc);
/* Its parts. x (B,T,D) is the hidden state, u is x after the norm of the block. */
MHKDEF mhk_tensor *mhk_forward_embedding(mhk_tape *t, mhk_model *m, const int32_t *tokens, mhk_index B, mhk_index T);
MHKDEF mhk_tensor *mhk_forward_norm(mhk_tape *t, mhk_model *m, int layer, mhk_tensor *x);
MHKDEF mhk_tensor *mhk_forward_mixer(mhk_tape *t, mhk_model *m, int layer, mhk_tensor *u, const mhk_forward_desc *desc);
MHKDEF mhk_tensor *mhk_forward_block(mhk_tape *t, mhk_model *m, int layer, mhk_tensor *x, const mhk_forward_desc *desc);
MHKDEF mhk_tensor *mhk_forward_head(mhk_tape *t, mhk_model *m, mhk_tensor *x);
/* The mixing matrix of a layer: (B,H,T,T). */
MHKDEF mhk_tensor *mhk_forward_matrix(mhk_tape *t, mhk_model *m, int layer, mhk_tensor *u, const int32_t *doc);

/* ---- pieces of a distillation ---- */

/* Runs one update of a stage on your tokens (B,T) at your learning rate: mhk_train_step() without
   schedule and data, for your own loops. Returns the loss (NaN on failure). */
MHKDEF double mhk_train_on(mhk_trainer *tr, int stage, const int32_t *tokens, mhk_index B, mhk_index T,
                           const int32_t *doc, double lr);
typedef struct mhk_stage_loss_desc {
  mhk_model *student, *teacher;
  int stage;                      /* 1..3 */
  const int32_t *tokens;          /* (B,T) */
  mhk_index B, T;
  const int32_t *doc;
  const mhk_stage_desc *settings; /* NULL: the stage's defaults */
  double *layer_loss;             /* receives L values, and */
  double *relative;               /* in stage 1 (L,H) relative errors; either may be NULL */
} mhk_stage_loss_desc;
/* The loss of a stage; adds its gradients to those of the parameters, without an update. NaN on
   failure. desc is required. */
MHKDEF double mhk_stage_loss(mhk_tape *t, const mhk_stage_loss_desc *desc);
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

/* =================================================================================================
   IMPLEMENTATION
   ============================================================================================== */
#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
#ifdef MOHAWK__IMPLEMENTED
#error "mohawk.h: one file includes the implementation twice"
#endif
#define MOHAWK__IMPLEMENTED

#define MHK__VERSION (10000 * MHK_VERSION_MAJOR + 100 * MHK_VERSION_MINOR + MHK_VERSION_PATCH)
#if MHK__TEXT != MHK__VERSION
#error "mohawk.h: the declarations included before the implementation are from another version of this header"
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
#error "mohawk.h: -ffast-math, -ffinite-math-only and -fassociative-math break the checks for NaN and the \
sums that this code relies on: compile it without them, or define MOHAWK_ALLOW_FAST_MATH to try anyway"
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

#if defined(MHK__POSIX) || defined(MHK__WINDOWS)
#define MHK__SYSTEM
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
/* the name under which this file includes itself, to compile the kernels once per instruction
   set */
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

/* =================================================================================================
   PLATFORM: CPU features, files, mapping, clock, parallel-for                            >>platform
   ============================================================================================== */

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

enum { MHK__DIGITS = 800 }; /* room for all decimal digits of a double */

typedef struct mhk__number { /* d.ddd * 10^exponent; no digits means zero */
  int n, exponent;
  char digits[MHK__DIGITS];
} mhk__number;

/* All digits of m * 2^e, exactly. m > 0 has up to 55 bits, and the value is in the range of a
   double. */
static void mhk__decimal(uint64_t m, int e, mhk__number *out) {
  uint32_t w[96]; /* base 10^9, lowest first */
  int n = 0, i, shift;
  out->n = 0;
  for (; e < 0 && m % 2 == 0; e++) m /= 2;
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
      if (out->n || w[i] / place % 10) out->digits[out->n++] = (char)('0' + w[i] / place % 10);
  }
  out->exponent = out->n - 1 + (e < 0 ? e : 0);
}

/* x >= 0 as m * 2^e with m below 2^53 */
static uint64_t mhk__mantissa(double x, int *e) {
  const uint64_t m = (uint64_t)ldexp(frexp(x, e), 53);
  *e -= 53;
  return m;
}

/* Rounds to the first n digits, ties to even; for n <= 0, to zero or to a one before them. */
static void mhk__round_decimal(mhk__number *x, int n) {
  char *digits = x->digits;
  if (n >= x->n) return;
  int up = n >= 0 && digits[n] > '5';
  if (n >= 0 && digits[n] == '5') {
    for (int i = n + 1; !up && i < x->n; i++) up = digits[i] != '0';
    if (!up) up = n > 0 && (digits[n - 1] - '0') % 2;
  }
  x->n = n > 0 ? n : 0;
  for (int i = n; up && i > 0; i--) {
    up = digits[i - 1] == '9';
    digits[i - 1] = up ? '0' : (char)(digits[i - 1] + 1);
  }
  if (!up) return;
  if (n == 0) x->n = 1;
  memmove(digits + 1, digits, (size_t)n);
  digits[0] = '1';
  x->exponent++;
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
  mhk__number d;
  int e = 0, strip = 0;
  if (x < 0) {
    mhk__put_text(p, "-", 1);
    x = -x;
  }
  if (!(x <= DBL_MAX)) {
    mhk__put_text(p, x > 0 ? "inf" : "nan", 3);
    return;
  }
  if (precision < 0) precision = 6;
  d.n = d.exponent = 0;
  const uint64_t m = mhk__mantissa(x, &e);
  if (m) mhk__decimal(m, e, &d);
  if (form == 'g') {
    if (precision == 0) precision = 1;
    mhk__round_decimal(&d, precision);
    form = d.exponent < -4 || d.exponent >= precision ? 'e' : 'f';
    precision -= form == 'e' ? 1 : 1 + d.exponent;
    strip = 1;
  }
  mhk__round_decimal(&d, form == 'e' ? precision + 1 : d.exponent + 1 + precision);
  if (d.n == 0) d.exponent = 0;
  const int last = form == 'e' ? 0 : d.exponent; /* index of the digit before the point */
  /* trailing zeros */
  while (strip && precision > 0 && (last + precision >= d.n || d.digits[last + precision] == '0')) precision--;
  for (int i = last < 0 ? last : 0; i <= last + precision; i++) {
    mhk__put_text(p, i >= 0 && i < d.n ? &d.digits[i] : "0", 1);
    if (i == last && precision > 0) mhk__put_text(p, ".", 1);
  }
  if (form != 'e') return;
  char text[6] = {'e', d.exponent < 0 ? '-' : '+'};
  int n = 2;
  if (d.exponent < 0) d.exponent = -d.exponent;
  if (d.exponent >= 100) text[n++] = (char)('0' + d.exponent / 100);
  text[n++] = (char)('0' + d.exponent / 10 % 10);
  text[n++] = (char)('0' + d.exponent % 10);
  mhk__put_text(p, text, (size_t)n);
}

/* One conversion of a format: %[-0][width][.precision][size]kind. Width and precision are numbers,
   or * to read them from the arguments. */
typedef struct mhk__conversion {
  int left, zero, width, precision; /* precision -1: none */
  int size;                         /* 0 int, 1 long, 2 long long, 3 size_t or ptrdiff_t */
  char kind;
} mhk__conversion;

static const char *mhk__parse_width(const char *format, va_list *args, int *out) {
  *out = 0;
  if (*format == '*') {
    *out = va_arg(*args, int);
    return format + 1;
  }
  for (; *format >= '0' && *format <= '9'; format++) *out = *out % 10000 * 10 + (*format - '0'); /* stays small */
  return format;
}

/* parses from after the % to the letter of the kind */
static const char *mhk__parse_conversion(const char *format, va_list *args, mhk__conversion *c) {
  memset(c, 0, sizeof *c);
  c->precision = -1;
  for (; *format == '-' || *format == '0'; format++) {
    c->left |= *format == '-';
    c->zero |= *format == '0';
  }
  format = mhk__parse_width(format, args, &c->width);
  if (*format == '.') format = mhk__parse_width(format + 1, args, &c->precision);
  for (; *format && strchr("lztjh", *format); format++)
    c->size = *format == 'l' ? c->size + 1 : *format == 'h' ? 0 : *format == 'j' ? 2 : 3;
  c->kind = *format;
  return format;
}

/* d i u x X p c, without the padding on the right */
static void mhk__put_integer(mhk__printed *p, const mhk__conversion *c, va_list *args) {
  const unsigned base = strchr("diu", c->kind) ? 10 : 16;
  char text[24];
  int n = 0, negative = 0;
  uint64_t v = 0;
  if (c->kind == 'd' || c->kind == 'i') {
    const int64_t x = c->size == 0   ? (int64_t)va_arg(*args, int)
                      : c->size == 1 ? (int64_t)va_arg(*args, long)
                      : c->size == 2 ? (int64_t)va_arg(*args, long long)
                                     : (int64_t)va_arg(*args, ptrdiff_t);
    negative = x < 0;
    v = negative ? (uint64_t)0 - (uint64_t)x : (uint64_t)x;
  } else if (c->kind == 'p')
    v = (uint64_t)(uintptr_t)va_arg(*args, void *);
  else if (c->kind == 'c')
    text[23 - n++] = (char)va_arg(*args, int);
  else
    v = c->size == 0   ? (uint64_t)va_arg(*args, unsigned)
        : c->size == 1 ? (uint64_t)va_arg(*args, unsigned long)
        : c->size == 2 ? (uint64_t)va_arg(*args, unsigned long long)
                       : (uint64_t)va_arg(*args, size_t);
  if (c->kind != 'c') {
    do text[23 - n++] = (c->kind == 'X' ? "0123456789ABCDEF" : "0123456789abcdef")[v % base];
    while ((v /= base) != 0);
  }
  if (!c->left && !c->zero) mhk__put_times(p, ' ', c->width - n - negative);
  if (negative) mhk__put_text(p, "-", 1);
  if (!c->left && c->zero) mhk__put_times(p, '0', c->width - n - negative);
  mhk__put_text(p, text + 24 - n, (size_t)n);
}

/* vsnprintf with the conversions d i u x X c s e f g p and %, the flags - and 0, and no wide
   characters. Returns the length. */
static size_t mhk__vprint(char *out, size_t room, const char *format, va_list list) {
  mhk__printed p = {out, room, 0};
  va_list args;
  va_copy(args, list); /* on some machines, va_list is an array and a pointer to this parameter has another type */
  for (; *format; format++) {
    const size_t start = p.n;
    mhk__conversion c;
    if (*format != '%') {
      mhk__put_text(&p, format, 1);
      continue;
    }
    format = mhk__parse_conversion(format + 1, &args, &c);
    if (c.kind && strchr("diuxXpc", c.kind))
      mhk__put_integer(&p, &c, &args);
    else if (c.kind == 's') {
      const char *text = va_arg(args, const char *);
      size_t length = 0;
      if (!text) text = "(null)";
      while ((c.precision < 0 || length < (size_t)c.precision) && text[length]) length++;
      if (!c.left) mhk__put_times(&p, ' ', c.width - (int)length);
      mhk__put_text(&p, text, length);
    } else if (c.kind == 'e' || c.kind == 'f' || c.kind == 'g') {
      const double x = va_arg(args, double);
      mhk__printed length = {NULL, 0, 0}; /* only counts */
      if (c.width > 0 && !c.left) mhk__put_double(&length, x, c.kind, c.precision);
      if (length.n > 0) mhk__put_times(&p, ' ', c.width - (int)length.n);
      mhk__put_double(&p, x, c.kind, c.precision);
    } else if (c.kind)
      mhk__put_text(&p, &c.kind, 1); /* %% and unknown conversions */
    else
      format--; /* the format ends inside a conversion */
    if (c.left) mhk__put_times(&p, ' ', c.width - (int)(p.n - start));
  }
  va_end(args);
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

/* the length of the folder in a path, with its slash */
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

/* ---- files and locks: what each system calls them ---- */

/* The bytes of a file, mapped if the system supports it, otherwise read into memory. */
typedef struct mhk__bytes {
  const unsigned char *data;
  size_t size;
  void *owned; /* what to unmap or free, or NULL */
} mhk__bytes;

#ifndef MOHAWK_NO_STDIO
/* The same functions three times: for POSIX, for Windows and for standard C. They return 0, an
   errno value or MHK__NOT_REGULAR. A file to write is always created, never opened if it exists,
   and stays locked until it is closed. If a temporary file can be locked, a killed process left it.
   On systems without locks, such files stay. */
enum {
  MHK__NOT_REGULAR = -1, /* a pipe, a device, a socket */
  MHK__AT_ONCE = 1 << 30 /* bytes per call: some systems accept less than 2^31 */
};

static const char *mhk__file_reason(int error) {
  return error == MHK__NOT_REGULAR ? "it is not a regular file" : strerror(error);
}

static int mhk__errno(void) { return errno ? errno : EIO; }

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
#ifdef __STRICT_ANSI__
#ifdef __cplusplus
extern "C"
#endif
    int
    fsync(int); /* strict C99 hides this declaration too */
#endif

static int mhk__is_folder(const char *path) {
  struct stat info;
  return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}
static int mhk__is_file(const char *path) {
  struct stat info;
  return stat(path, &info) == 0 && S_ISREG(info.st_mode);
}
static int mhk__new_folder(const char *path) {
  return mkdir(path, S_IRWXU | S_IRWXG | S_IRWXO) == 0 ? 0 : mhk__errno();
}
static int mhk__handle_close(mhk__handle fd) { return close(fd) == 0 || errno == EINTR ? 0 : mhk__errno(); }
static int mhk__handle_flush(mhk__handle fd) { return fsync(fd) == 0 ? 0 : mhk__errno(); }
static int mhk__replace(const char *from, const char *to) { return rename(from, to) == 0 ? 0 : mhk__errno(); }
static void mhk__remove(const char *path) { unlink(path); }

/* opens a regular file to read; for anything else it fails at once and never waits */
static int mhk__handle_open(const char *path, mhk__handle *out, size_t *size) {
  struct stat info;
  int error = 0;
  const int fd = *out = open(path, O_RDONLY | O_NONBLOCK);
  if (fd < 0) return errno == ENXIO ? MHK__NOT_REGULAR : mhk__errno(); /* ENXIO: a socket */
  if (fstat(fd, &info) != 0)
    error = mhk__errno();
  else if (!S_ISREG(info.st_mode))
    error = S_ISDIR(info.st_mode) ? EISDIR : MHK__NOT_REGULAR;
  else if ((uintmax_t)info.st_size > (uintmax_t)PTRDIFF_MAX)
    error = EFBIG;
  if (error)
    close(fd);
  else
    *size = (size_t)info.st_size;
  return error;
}

/* up to n bytes; *done is 0 at the end of the file */
static int mhk__handle_read(mhk__handle fd, void *out, size_t n, size_t *done) {
  ssize_t k;
  do k = read(fd, out, n);
  while (k < 0 && errno == EINTR);
  *done = k < 0 ? 0 : (size_t)k;
  return k < 0 ? mhk__errno() : 0;
}
static int mhk__handle_write(mhk__handle fd, const void *data, size_t n, size_t *done) {
  ssize_t k;
  do k = write(fd, data, n);
  while (k < 0 && errno == EINTR);
  *done = k < 0 ? 0 : (size_t)k;
  return k < 0 ? mhk__errno() : 0;
}

static int mhk__map(mhk__handle fd, size_t size, void **out) {
  *out = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
  if (*out != MAP_FAILED) return 0;
  *out = NULL;
  return errno ? errno : ENOMEM;
}
static void mhk__unmap(void *map, size_t size) { munmap(map, size); }

/* Returns 1 if the handle holds the lock and its file is still at path, 2 if it holds the lock but
   path is another file or gone, 0 if another process holds it, -1 if this file system has no
   locks. */
static int mhk__lock_handle(int fd, const char *path, int wait) {
  struct stat own, found;
#ifdef LOCK_EX
  while (flock(fd, wait ? LOCK_EX : LOCK_EX | LOCK_NB) != 0)
    if (errno != EINTR) return errno == EWOULDBLOCK ? 0 : -1;
#else
  (void)wait;
  return -1;
#endif
  return fstat(fd, &own) == 0 && stat(path, &found) == 0 && own.st_dev == found.st_dev && own.st_ino == found.st_ino
             ? 1
             : 2;
}

/* Returns whether a new file can replace path; *mode gets its permissions. */
static int mhk__can_replace(const char *path, unsigned *mode) {
  struct stat info;
  *mode = S_IRUSR | S_IWUSR | S_IRGRP | S_IWGRP | S_IROTH | S_IWOTH;
  if (stat(path, &info) != 0) return 0;
  *mode = (unsigned)(info.st_mode & (S_IRWXU | S_IRWXG | S_IRWXO));
  return S_ISREG(info.st_mode) ? 0 : S_ISDIR(info.st_mode) ? EISDIR : MHK__NOT_REGULAR;
}

static int mhk__handle_new(const char *path, unsigned mode, mhk__handle *out) {
  const int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, (mode_t)mode);
  if (fd < 0) return mhk__errno();
  fcntl(fd, F_SETFD, FD_CLOEXEC);
  const int got = mhk__lock_handle(fd, path, 0);
  if (got == 1 || got == -1) {
    *out = fd;
    return 0;
  }
  close(fd); /* another process removed it as a leftover before it was locked */
  return EEXIST;
}

static void mhk__remove_left(const char *path) {
  struct stat info;
  const int fd = open(path, O_RDONLY | O_NONBLOCK | MHK__NO_FOLLOW);
  if (fd < 0) return;
  if (fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && mhk__lock_handle(fd, path, 0) == 1) unlink(path);
  close(fd);
}

/* a lock file, open and locked; EBUSY if another process has it */
static int mhk__lock_open(const char *path, int wait, mhk__handle *out) {
  for (;;) {
    struct stat info;
    const int fd =
        open(path, O_RDWR | O_CREAT | MHK__NO_FOLLOW, S_IRUSR | S_IWUSR | S_IRGRP | S_IWGRP | S_IROTH | S_IWOTH);
    if (fd < 0) return mhk__errno();
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    const int regular = fstat(fd, &info) == 0 && S_ISREG(info.st_mode),
              got = regular ? mhk__lock_handle(fd, path, wait) : 0;
    if (got == 1 || got == -1) {
      *out = fd;
      return 0;
    }
    close(fd);
    if (got == 0) return regular ? EBUSY : MHK__NOT_REGULAR;
    /* 2: its owner released it and removed the file while this call opened it */
  }
}

static size_t mhk__process_name(char *out, size_t room) {
  struct utsname system;
  return mhk__print(out, room, "process %ld on %.64s", (long)getpid(),
                    uname(&system) >= 0 ? system.nodename : "this machine");
}

/* Makes a rename survive a power cut. Some file systems cannot; that is not an error. */
static void mhk__flush_folder(const char *path) {
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
}

#elif defined(MHK__WINDOWS)
typedef HANDLE mhk__handle;
#define MHK__NO_HANDLE INVALID_HANDLE_VALUE

/* Paths are UTF-8 here and UTF-16 in Windows. Returns 0 and sets errno if the path is invalid. */
enum { MHK__WIDE_PATH = 1200 };
static int mhk__wide(const char *path, wchar_t out[MHK__WIDE_PATH]) {
  if (MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, out, MHK__WIDE_PATH) > 0) return 1;
  errno = ENOENT;
  return 0;
}

/* the last error of the system as an errno value; never 0 */
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
static int mhk__is_folder(const char *path) {
  const DWORD found = mhk__attributes(path);
  return found != INVALID_FILE_ATTRIBUTES && (found & FILE_ATTRIBUTE_DIRECTORY);
}
static int mhk__is_file(const char *path) {
  const DWORD found = mhk__attributes(path);
  return found != INVALID_FILE_ATTRIBUTES && !(found & FILE_ATTRIBUTE_DIRECTORY);
}
static int mhk__new_folder(const char *path) {
  wchar_t wide[MHK__WIDE_PATH];
  if (!mhk__wide(path, wide)) return errno;
  return CreateDirectoryW(wide, NULL) ? 0 : mhk__windows_errno();
}
static int mhk__handle_close(mhk__handle file) { return CloseHandle(file) ? 0 : mhk__windows_errno(); }
static int mhk__handle_flush(mhk__handle file) { return FlushFileBuffers(file) ? 0 : mhk__windows_errno(); }
static void mhk__remove(const char *path) {
  wchar_t wide[MHK__WIDE_PATH];
  if (mhk__wide(path, wide)) DeleteFileW(wide);
}

/* Replaces a file. Windows cannot replace a mapped file but can move it. It then stays as path.old
   until no program maps it and the next file is written. */
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

/* opens a regular file to read; for anything else it fails at once and never waits */
static int mhk__handle_open(const char *path, mhk__handle *out, size_t *size) {
  wchar_t wide[MHK__WIDE_PATH];
  LARGE_INTEGER bytes;
  int error = 0;
  if (!mhk__wide(path, wide)) return errno;
  *out = CreateFileW(wide, GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE, NULL, OPEN_EXISTING,
                     FILE_ATTRIBUTE_NORMAL, NULL);
  if (*out == INVALID_HANDLE_VALUE) return mhk__windows_errno();
  if (GetFileType(*out) != FILE_TYPE_DISK)
    error = MHK__NOT_REGULAR;
  else if (!GetFileSizeEx(*out, &bytes))
    error = mhk__windows_errno();
  else if ((uint64_t)bytes.QuadPart > (uint64_t)PTRDIFF_MAX)
    error = EFBIG;
  if (error)
    CloseHandle(*out);
  else
    *size = (size_t)bytes.QuadPart;
  return error;
}

static int mhk__handle_read(mhk__handle file, void *out, size_t n, size_t *done) {
  DWORD k = 0;
  const int error = ReadFile(file, out, (DWORD)n, &k, NULL) ? 0 : mhk__windows_errno();
  *done = k;
  return error;
}
static int mhk__handle_write(mhk__handle file, const void *data, size_t n, size_t *done) {
  DWORD k = 0;
  const int error = WriteFile(file, data, (DWORD)n, &k, NULL) ? 0 : mhk__windows_errno();
  *done = k;
  return error;
}

static int mhk__map(mhk__handle file, size_t size, void **out) {
  HANDLE map = CreateFileMappingW(file, NULL, PAGE_READONLY, 0, 0, NULL);
  (void)size;
  *out = map ? MapViewOfFile(map, FILE_MAP_READ, 0, 0, 0) : NULL;
  const int error = *out ? 0 : mhk__windows_errno();
  if (map) CloseHandle(map); /* the view keeps the file open */
  return error;
}
static void mhk__unmap(void *map, size_t size) {
  (void)size;
  UnmapViewOfFile(map);
}

/* shared only for reading and renaming: the lock of the system */
static int mhk__handle_new(const char *path, unsigned mode, mhk__handle *out) {
  wchar_t wide[MHK__WIDE_PATH];
  (void)mode;
  if (!mhk__wide(path, wide)) return errno;
  *out = CreateFileW(wide, GENERIC_WRITE, FILE_SHARE_READ | FILE_SHARE_DELETE, NULL, CREATE_NEW, FILE_ATTRIBUTE_NORMAL,
                     NULL);
  return *out == INVALID_HANDLE_VALUE ? mhk__windows_errno() : 0;
}

static void mhk__remove_left(const char *path) {
  wchar_t wide[MHK__WIDE_PATH];
  if (!mhk__wide(path, wide)) return;
  /* impossible while it is open */
  HANDLE file =
      CreateFileW(wide, DELETE, 0, NULL, OPEN_EXISTING, FILE_FLAG_DELETE_ON_CLOSE | FILE_FLAG_OPEN_REPARSE_POINT, NULL);
  if (file != INVALID_HANDLE_VALUE) CloseHandle(file);
}

static int mhk__lock_open(const char *path, int wait, mhk__handle *out) {
  wchar_t wide[MHK__WIDE_PATH];
  if (!mhk__wide(path, wide)) return errno;
  for (;;) {
    *out = CreateFileW(wide, GENERIC_READ | GENERIC_WRITE | DELETE, FILE_SHARE_READ, NULL, OPEN_ALWAYS,
                       FILE_FLAG_DELETE_ON_CLOSE, NULL);
    if (*out != MHK__NO_HANDLE) return 0;
    if (GetLastError() != ERROR_SHARING_VIOLATION) return mhk__windows_errno();
    if (!wait) return EBUSY;
    Sleep(5);
  }
}

static size_t mhk__process_name(char *out, size_t room) {
  return mhk__print(out, room, "process %ld", (long)GetCurrentProcessId());
}

#else
typedef FILE *mhk__handle;
#define MHK__NO_HANDLE NULL

static int mhk__is_file(const char *path) {
  FILE *f = fopen(path, "rb");
  if (f) fclose(f);
  return f != NULL;
}
static int mhk__is_folder(const char *path) { return !mhk__is_file(path) && strrchr(path, '.') == NULL; }
static int mhk__new_folder(const char *path) {
  (void)path;
  return mhk__errno();
}
static int mhk__handle_close(mhk__handle f) { return fclose(f) == 0 ? 0 : mhk__errno(); }
static int mhk__handle_flush(mhk__handle f) { return fflush(f) == 0 ? 0 : mhk__errno(); }
static int mhk__replace(const char *from, const char *to) { return rename(from, to) == 0 ? 0 : mhk__errno(); }
static void mhk__remove(const char *path) { remove(path); }

static int mhk__handle_open(const char *path, mhk__handle *out, size_t *size) {
  long bytes = -1;
  *out = fopen(path, "rb");
  if (!*out) return mhk__errno();
  if (fseek(*out, 0, SEEK_END) == 0 && (bytes = ftell(*out)) >= 0 && fseek(*out, 0, SEEK_SET) == 0) {
    *size = (size_t)bytes;
    return 0;
  }
  fclose(*out);
  return EIO;
}
static int mhk__handle_read(mhk__handle f, void *out, size_t n, size_t *done) {
  *done = fread(out, 1, n, f);
  return 0;
}
static int mhk__handle_write(mhk__handle f, const void *data, size_t n, size_t *done) {
  *done = fwrite(data, 1, n, f);
  return *done == n ? 0 : mhk__errno();
}
static int mhk__handle_new(const char *path, unsigned mode, mhk__handle *out) {
  (void)mode;
  *out = fopen(path, "wb");
  return *out ? 0 : mhk__errno();
}
static void mhk__remove_left(const char *path) { (void)path; }
#endif
#ifndef MHK__POSIX
static void mhk__flush_folder(const char *path) { (void)path; }
static int mhk__can_replace(const char *path, unsigned *mode) {
  (void)path;
  *mode = 0;
  return 0;
}
#endif

/* Reads the whole file into out, which has room for its size. Returns 0 or an error, EIO if the
   file is now shorter. */
static int mhk__read_all(mhk__handle file, unsigned char *out, size_t n) {
  const size_t most = MHK__AT_ONCE;
  for (size_t done; n > 0; out += done, n -= done) {
    const int error = mhk__handle_read(file, out, n < most ? n : most, &done);
    if (error || done == 0) return error ? error : EIO;
  }
  return 0;
}

static int mhk__write_all(mhk__handle file, const void *data, size_t n) {
  const unsigned char *p = (const unsigned char *)data;
  const size_t most = MHK__AT_ONCE;
  for (size_t done; n > 0; p += done, n -= done) {
    const int error = mhk__handle_write(file, p, n < most ? n : most, &done);
    if (error || done == 0) return error ? error : EIO;
  }
  return 0;
}

/* Returns 0 or an error. An empty file has data "" and size 0. */
static int mhk__bytes_open(const char *path, mhk__bytes *out) {
  mhk__handle file;
  memset(out, 0, sizeof *out);
  errno = 0;
  int error = mhk__handle_open(path, &file, &out->size);
  if (error) return error;
  out->data = (const unsigned char *)"";
  if (out->size > 0) {
#ifdef MHK__SYSTEM
    error = mhk__map(file, out->size, &out->owned);
#else
    out->owned = MOHAWK_MALLOC(out->size);
    error = out->owned ? mhk__read_all(file, (unsigned char *)out->owned, out->size) : ENOMEM;
    if (error && out->owned) MOHAWK_FREE(out->owned);
#endif
    out->data = (const unsigned char *)out->owned;
  }
  mhk__handle_close(file);
  if (error) memset(out, 0, sizeof *out);
  return error;
}

static void mhk__bytes_close(mhk__bytes *b) {
#ifdef MHK__SYSTEM
  if (b->owned) mhk__unmap(b->owned, b->size);
#else
  if (b->owned) MOHAWK_FREE(b->owned);
#endif
  memset(b, 0, sizeof *b);
}

/* Returns 0 if the folder exists afterwards, otherwise errno. The parent must exist. */
static int mhk__make_folder(const char *path) {
  if (mhk__is_folder(path)) return 0;
  errno = 0;
  const int error = mhk__new_folder(path);
  return error && !mhk__is_folder(path) ? error : 0;
}

/* writes dir/name into out; returns 0 if it does not fit */
static int mhk__join_path(char *out, size_t capacity, const char *dir, const char *name) {
  size_t n = strlen(dir), k = strlen(name);
  int slash = n > 0 && mhk__folder_length(dir) != n;
  if (n + k + 2 > capacity) return 0;
  memcpy(out, dir, n);
  if (slash) out[n++] = '/';
  memcpy(out + n, name, k + 1);
  return 1;
}

/* A lock that ends with the process: a file that names its owner and is locked while open. On file
   systems without locks it has no effect. */
typedef struct mhk__lock {
  mhk__handle file;
  char path[1024];
} mhk__lock;

/* Returns 0, EBUSY if another owner has it (also in this process), or errno. wait: wait until it is
   free */
static int mhk__lock_acquire(mhk__lock *l, const char *path, int wait) {
  char who[128];
  l->file = MHK__NO_HANDLE;
  if (strlen(path) >= sizeof l->path) return ENAMETOOLONG;
  strcpy(l->path, path);
#ifdef MHK__SYSTEM
  const int error = mhk__lock_open(path, wait, &l->file);
  if (error) return error;
  memset(who, ' ', sizeof who);
  who[mhk__process_name(who, sizeof who)] = ' '; /* overwrites the terminating zero */
  who[sizeof who - 1] = '\n';
  (void)mhk__write_all(l->file, who, sizeof who); /* the name is informational; the lock works without it */
#else
  (void)wait;
  (void)who;
#endif
  return 0;
}

static void mhk__lock_release(mhk__lock *l) {
  if (l->file == MHK__NO_HANDLE) return;
#ifdef MHK__POSIX
  unlink(l->path);
#endif
  mhk__handle_close(l->file);
  l->file = MHK__NO_HANDLE;
}

#ifndef MOHAWK_NO_TRAINING
/* Renames the file at path, before a new file gets this name. If the system has hard links, path
   exists at all times. */
static void mhk__keep_as(const char *path, const char *other) {
#ifdef MHK__POSIX
  unlink(other);
  if (link(path, other) == 0) return;
#endif
  mhk__replace(path, other);
}
#endif

enum { MHK__WRITERS = 9 }; /* one path at a time */

static int mhk__temporary_path(char out[1024], const char *path, int k) {
  return mhk__print(out, 1024, k > 1 ? "%s.new%d" : "%s.new", path, k) < 1024;
}

/* removes the leftovers of killed writers of path */
static void mhk__remove_temporaries(const char *path) {
  char temporary[1024];
  for (int k = 1; k <= MHK__WRITERS; k++)
    if (mhk__temporary_path(temporary, path, k)) mhk__remove_left(temporary);
}

#ifndef MOHAWK_NO_TRAINING
/* XXH64 with seed 0 (Yann Collet's xxHash), computed incrementally. It detects any change within
   eight aligned bytes; other changes go undetected once in 2^64. It is the same on all machines. */
typedef struct mhk__xxh64 {
  uint64_t lane[4], total;
  unsigned char held[32];
} mhk__xxh64;

#define MHK__XXH_1 11400714785074694791u
#define MHK__XXH_2 14029467366897019727u
#define MHK__XXH_3 1609587929392839161u
#define MHK__XXH_4 9650029242287828579u
#define MHK__XXH_5 2870177450012600261u

static uint64_t mhk__rotate_left(uint64_t x, int bits) { return x << bits | x >> (64 - bits); }

static uint64_t mhk__xxh64_lane(uint64_t lane, const unsigned char *p) {
  uint64_t x = 0;
  if (mhk__little_endian())
    memcpy(&x, p, 8);
  else
    for (int i = 7; i >= 0; i--) x = x << 8 | p[i];
  return mhk__rotate_left(lane + x * MHK__XXH_2, 31) * MHK__XXH_1;
}

static void mhk__xxh64_start(mhk__xxh64 *h) {
  memset(h, 0, sizeof *h);
  h->lane[0] = MHK__XXH_1 + MHK__XXH_2;
  h->lane[1] = MHK__XXH_2;
  h->lane[3] = 0 - MHK__XXH_1;
}

/* adds n bytes: 32 at a time, the rest is kept */
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
  memcpy(lane, h->lane, sizeof lane); /* the compiler must assume that p points there */
  for (; n >= 32; n -= 32, p += 32)
    for (int i = 0; i < 4; i++) lane[i] = mhk__xxh64_lane(lane[i], p + 8 * i);
  memcpy(h->lane, lane, sizeof lane);
  if (n) memcpy(h->held, p, n);
}

/* the hash of all bytes so far */
static uint64_t mhk__xxh64_end(const mhk__xxh64 *h) {
  static const int bits[4] = {1, 7, 12, 18};
  const unsigned char *p = h->held, *end = p + h->total % 32;
  uint64_t x = h->total < 32 ? MHK__XXH_5 : 0, word;
  for (int i = 0; i < 4 && h->total >= 32; i++) x += mhk__rotate_left(h->lane[i], bits[i]);
  for (int i = 0; i < 4 && h->total >= 32; i++)
    x = (x ^ mhk__rotate_left(h->lane[i] * MHK__XXH_2, 31) * MHK__XXH_1) * MHK__XXH_1 + MHK__XXH_4;
  x += h->total;
  for (; end - p >= 8; p += 8) x = mhk__rotate_left(x ^ mhk__xxh64_lane(0, p), 27) * MHK__XXH_1 + MHK__XXH_4;
  for (; end - p >= 4; p += 4) {
    word = (uint64_t)p[0] | (uint64_t)p[1] << 8 | (uint64_t)p[2] << 16 | (uint64_t)p[3] << 24;
    x = mhk__rotate_left(x ^ word * MHK__XXH_1, 23) * MHK__XXH_2 + MHK__XXH_3;
  }
  for (; p < end; p++) x = mhk__rotate_left(x ^ *p * MHK__XXH_5, 11) * MHK__XXH_1;
  x = (x ^ x >> 33) * MHK__XXH_2;
  x = (x ^ x >> 29) * MHK__XXH_3;
  return x ^ x >> 32;
}
#endif
/* A file that is being written under a temporary name (path.new, path.new2...). At the end it is
   flushed to disk and renamed, so the old content stays until the new one is complete. `error`
   keeps the first errno. */
typedef struct mhk__output {
  mhk__handle file;
  int error, busy, flushed; /* busy: all temporary names are in use */
  size_t held;
#ifndef MOHAWK_NO_TRAINING
  int summing;
  mhk__xxh64 sum; /* of all bytes so far, if summing */
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
  unsigned mode;
  mhk__output_clear(o, path);
  errno = 0;
  o->error = mhk__can_replace(path, &mode);
  if (o->error) return o->error;
  o->error = EEXIST;
  mhk__remove_temporaries(path);
  for (int k = 1; k <= MHK__WRITERS && o->error == EEXIST; k++)
    o->error =
        mhk__temporary_path(o->temporary, path, k) ? mhk__handle_new(o->temporary, mode, &o->file) : ENAMETOOLONG;
  o->busy = o->error == EEXIST;
  return o->error;
}

static void mhk__output_put(mhk__output *o, const void *data, size_t bytes) {
  errno = 0;
  if (!o->error && bytes) o->error = mhk__write_all(o->file, data, bytes);
}

/* appends bytes: collects them in a block unless they exceed it */
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

/* flushes everything to disk, still under the temporary name */
static int mhk__output_flush(mhk__output *o) {
  if (o->file == MHK__NO_HANDLE || o->flushed) return o->error;
  mhk__output_put(o, o->block, o->held);
  o->held = 0;
  errno = 0;
  if (!o->error) o->error = mhk__handle_flush(o->file);
  o->flushed = 1;
  return o->error;
}

/* Renames the file, or removes it if keep is 0. The lock is released last, so no other process
   removes the file as a leftover. */
static int mhk__output_close(mhk__output *o, int keep) {
  if (o->file == MHK__NO_HANDLE) return o->error;
  if (keep) mhk__output_flush(o);
#ifndef MHK__SYSTEM
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
  if (o->busy)
    return "too many programs are writing it, or were killed: remove the files next to it that end in .new and a "
           "number";
  return mhk__file_reason(o->error);
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

/* Features of processor and system. On x86: CPUID and the register state that the system saves
   (Intel SDM vol. 1, 13.2 and 15.2). */
#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
#define MHK__X86
enum { MHK__EAX, MHK__EBX, MHK__ECX, MHK__EDX };
static void mhk__cpuid(unsigned leaf, unsigned sub, unsigned r[4]) {
  __asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(sub));
}
/* XCR0, the registers that the system saves: bits 1 and 2 for vectors of 256 bits, 5 to 7 for
   vectors of 512 bits and masks, 17 and 18 for tiles */
static unsigned mhk__saved_registers(void) {
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  (void)high;
  return low;
}

static int mhk__all_of(unsigned x, unsigned bits) { return (x & bits) == bits; }
#endif

/* the best instruction set that processor and system fully support */
static mhk_isa mhk__cpu_best(void) {
#ifdef MHK__X86
  const unsigned fma = 1u << 27 | 1u << 28 | 1u << 12 | 1u << 29;      /* OSXSAVE, AVX, FMA, F16C */
  const unsigned avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F, DQ, BW, VL */
  unsigned r[4];
  mhk__cpuid(0, 0, r);
  if (r[MHK__EAX] < 7) return MHK_ISA_SCALAR;
  mhk__cpuid(1, 0, r);
  if (!mhk__all_of(r[MHK__ECX], fma)) return MHK_ISA_SCALAR;
  const unsigned saved = mhk__saved_registers();
  mhk__cpuid(7, 0, r);
  if (!mhk__all_of(saved, 0x6u) || !mhk__all_of(r[MHK__EBX], 1u << 5)) return MHK_ISA_SCALAR; /* AVX2 */
  return mhk__all_of(saved, 0xE6u) && mhk__all_of(r[MHK__EBX], avx512) ? MHK_ISA_AVX512 : MHK_ISA_AVX2;
#elif defined(__AARCH64EL__)
  return MHK_ISA_NEON;
#elif defined(__wasm_simd128__)
  return MHK_ISA_WASM;
#else
  return MHK_ISA_SCALAR;
#endif
}

/* Units for bfloat16: AVX512-BF16 (CPUID 7.1, EAX bit 5), AMX with bfloat16 (7.0, EDX bits 24 and
   22). */
enum { mhk__cpu_avx512_bf16 = 1, mhk__cpu_amx_bf16 = 2, mhk__cpu_amd = 4 };
#ifndef MOHAWK_NO_TRAINING
static int mhk__cpu_units(void) {
  int units = 0;
#if defined(MHK__X86) && defined(__x86_64__)
  unsigned r[4];
  if (mhk__cpu_best() != MHK_ISA_AVX512) return 0;
  mhk__cpuid(0, 0, r);
  if ((r[MHK__EBX] == 0x68747541u && r[MHK__EDX] == 0x69746E65u && r[MHK__ECX] == 0x444D4163u) || /* AuthenticAMD */
      (r[MHK__EBX] == 0x6F677948u && r[MHK__EDX] == 0x6E65476Eu && r[MHK__ECX] == 0x656E6975u))   /* HygonGenuine */
    units |= mhk__cpu_amd;
  mhk__cpuid(7, 0, r);
  const unsigned subleaves = r[MHK__EAX];
  if (mhk__all_of(r[MHK__EDX], 1u << 22 | 1u << 24) && mhk__all_of(mhk__saved_registers(), 0x60000u))
    units |= mhk__cpu_amx_bf16;
  if (subleaves >= 1) {
    mhk__cpuid(7, 1, r);
    if (r[MHK__EAX] & 1u << 5) units |= mhk__cpu_avx512_bf16;
  }
#endif
  return units;
}
#endif

/* Random numbers: xoshiro256++ (Blackman & Vigna 2019, public domain), seeded by splitmix64.
   Checkpoints save and restore its state. */
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

/* writes and reads the n low bytes of v, little-endian */
static void mhk__put_bytes(unsigned char *to, uint64_t v, int n) {
  for (; n > 0; n--, v >>= 8) *to++ = (unsigned char)(v & 255u);
}
static uint64_t mhk__get_bytes(const unsigned char *from, int n) {
  uint64_t v = 0;
  while (n > 0) v = v << 8 | from[--n];
  return v;
}

/* FNV-1a, 64 bits: distinguishes runs and models, but does not resist tampering */
static uint64_t mhk__hash(uint64_t h, const void *data, size_t n) {
  const unsigned char *p = (const unsigned char *)data;
  for (size_t i = 0; i < n; i++) h = (h ^ p[i]) * 1099511628211u;
  return h;
}
#define MHK__HASH_START 14695981039346656037u
#endif /* MOHAWK_IMPLEMENTATION */
#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
/* =================================================================================================
   MEMORY: arenas, objects, contexts, errors                                                >>memory
   ============================================================================================== */

enum { MHK__ALIGN = 64 }; /* a cache line, and the widest vector */

typedef struct mhk__chunk {
  struct mhk__chunk *next;
  size_t bytes;  /* of the whole block, including this header */
  size_t used;   /* from the first aligned byte */
  size_t room;
} mhk__chunk;

/* How an arena gets its memory: it allocates blocks as needed; or it has one fixed block of the
   caller and never grows; or it has no memory and only counts what would be used, in the header of
   its block, and nothing it returns may be accessed. */
typedef enum mhk__arena_kind { MHK__GROWS, MHK__FIXED, MHK__COUNTS } mhk__arena_kind;

/* A list of blocks that is filled from the front. Rewinding keeps the blocks for reuse. */
typedef struct mhk__arena {
  mhk__chunk *first, *current;
  size_t index; /* of current */
  mhk__arena_kind kind;
} mhk__arena;

typedef struct mhk__mark { size_t chunk, used; } mhk__mark;

/* Every object of a context starts with one of these and lives in its own arena. */
typedef struct mhk__object {
  struct mhk__object *previous, *next;
  mhk_context *ctx;
  void (*destroy)(void *object); /* closes resources other than memory; may be NULL */
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
  int strict; /* set while a model loads strictly: warnings are errors */
  mhk__object *objects;
  mhk__arena scratch; /* every op that uses it rewinds it */
  size_t memory, peak;
  char message[2048];
};

static void *mhk__default_alloc(void *user, size_t bytes) {
  void *block = MOHAWK_MALLOC(bytes);
  (void)user;
#ifdef MHK__HUGE_PAGE
  /* Asks for huge pages for large blocks, on systems that grant them on request. The rows of many
     heads lie a page or two apart, and page lookups are half of what SSD loses between 2048 and
     8192 tokens. A refusal is not an error. */
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

/* mhk_fail() for functions that return a number or a pointer, so a check is one statement: `return
   mhk__no(ctx, code, ...)` returns 0, `return mhk__null(...)` returns NULL. In C++, where void *
   does not convert to other pointers, a class does this. */
#ifdef __cplusplus
extern "C++" {
struct mhk__nothing {
  template <typename T> operator T *() const { return NULL; }
};
}
#define MHK__NOTHING mhk__nothing()
#else
typedef void *mhk__nothing;
#define MHK__NOTHING NULL
#endif
#if defined(__GNUC__) || defined(__clang__)
__attribute__((format(printf, 3, 4)))
#endif
static int mhk__no(mhk_context *ctx, mhk_result code, const char *format, ...) {
  va_list args;
  va_start(args, format);
  mhk__vfail(ctx, code, format, args);
  va_end(args);
  return 0;
}
#if defined(__GNUC__) || defined(__clang__)
__attribute__((format(printf, 3, 4)))
#endif
static mhk__nothing mhk__null(mhk_context *ctx, mhk_result code, const char *format, ...) {
  va_list args;
  va_start(args, format);
  mhk__vfail(ctx, code, format, args);
  va_end(args);
  return MHK__NOTHING;
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

/* a number of a description, or its default; NaN stays, so that it is refused */
static double mhk__or(double value, double otherwise) { return value == 0.0 ? otherwise : value; }

/* Describes what is wrong with a number that must be between low and high (DBL_MIN: above 0;
   DBL_MAX: any finite value), in at most MHK__SETTING bytes. */
enum { MHK__SETTING = 240 };
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

/* the same, as an error of the function `where` */
static int mhk__number_fits(mhk_context *ctx, const char *where, const char *name, double value, double low,
                            double high) {
  char wrong[MHK__SETTING];
  if (!mhk__number_wrong(wrong, name, value, low, high)) return 1;
  return mhk__no(ctx, MHK_ERROR_ARGUMENT, "%s: %s", where, wrong);
}

#ifndef MOHAWK_NO_TRAINING
static int mhk__precision_fits(mhk_context *ctx, mhk_precision precision) {
  if (precision == MHK_PRECISION_FULL || precision == MHK_PRECISION_BF16) return 1;
  return mhk__no(ctx, MHK_ERROR_ARGUMENT, "unknown precision %d: use 0 (full) or 1 (bfloat16)", (int)precision);
}
#endif

/* a*b*c, or 0 with an error if it does not fit; none may be negative */
static size_t mhk__size3(mhk_context *ctx, mhk_index a, mhk_index b, size_t c) {
  if (a >= 0 && b >= 0) {
    size_t x = (size_t)a, y = (size_t)b, most = (size_t)PTRDIFF_MAX;
    if ((y == 0 || x <= most / y) && (c == 0 || x * y <= most / c)) return x * y * c;
  }
  return (size_t)mhk__no(ctx, MHK_ERROR_MEMORY,
                         "an array of %lld x %lld elements of %d bytes does not fit in this machine's address space",
                         (long long)a, (long long)b, (int)c);
}

static void *mhk__raw_alloc(mhk_context *ctx, size_t bytes) {
  void *p = bytes > (size_t)PTRDIFF_MAX ? NULL : ctx->allocator.alloc(ctx->allocator.user, bytes);
  if (!p)
    return mhk__null(ctx, MHK_ERROR_MEMORY, "out of memory: %.1f MB more were needed, %.1f MB are in use",
                     (double)bytes * 1e-6, (double)ctx->memory * 1e-6);
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

/* A new block behind `last`, with room for need bytes. Blocks double in size to keep them few,
   except where memory is scarce. With the address sanitizer each allocation is a block, so that red
   zones work. */
static mhk__chunk *mhk__arena_grow(mhk_context *ctx, mhk__arena *a, mhk__chunk *last, size_t need) {
  size_t room = 4096 - 2 * MHK__ALIGN - sizeof(mhk__chunk);
#ifdef MHK__ASAN
  room = need;
#elif !defined(MOHAWK_NO_TRAINING)
  if (last) room = last->room < ((size_t)1 << 25) ? last->room * 2 : last->room;
#endif
  if (room < need) room = need;
  const size_t bytes = sizeof(mhk__chunk) + MHK__ALIGN + room;
  mhk__chunk *c = (mhk__chunk *)mhk__raw_alloc(ctx, bytes);
  if (!c) return NULL;
  c->next = NULL;
  c->bytes = bytes;
  c->room = room;
  c->used = 0;
  if (last)
    last->next = c;
  else
    a->first = c;
  return c;
}

/* uninitialized memory, aligned to MHK__ALIGN; NULL with an error if memory is out */
static void *mhk__arena_alloc(mhk_context *ctx, mhk__arena *a, size_t bytes) {
  mhk__chunk *c, *last = NULL;
  size_t index = a->index, need;
  if (ctx->result != MHK_OK) return NULL;
  if (bytes > (size_t)PTRDIFF_MAX - 4096)
    return mhk__null(ctx, MHK_ERROR_MEMORY, "out of memory: a block of %.1f MB is too large for this machine",
                     (double)bytes * 1e-6);
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
  if (a->kind == MHK__FIXED)
    return mhk__null(ctx, MHK_ERROR_MEMORY, "the session's block has %.0f bytes of work space and needs %.0f more",
                     (double)a->first->room, (double)need);
  c = mhk__arena_grow(ctx, a, last, need);
  if (!c) return NULL;
  c->used = need;
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

/* Frees everything allocated since the mark for reuse. The blocks stay, except with the address
   sanitizer, which then detects stale uses. */
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
/* Returns whether a mark at this position of the chunk can exist and is not beyond the current
   end. */
static int mhk__arena_has(const mhk__arena *a, size_t chunk, size_t used) {
  const mhk__chunk *c = a->first;
  size_t i = 0;
  while (c && i < chunk) {
    c = c->next;
    i++;
  }
  return c ? used <= c->used : chunk == 0 && used == 0;
}

/* whether p lies in memory that the arena has allocated */
static int mhk__arena_holds(const mhk__arena *a, const void *p) {
  mhk__chunk *c = a->first;
  for (; c; c = c->next)
    if ((uintptr_t)p - (uintptr_t)mhk__chunk_data(c) < c->used) return 1;
  return 0;
}
#endif

/* count * size zeroed bytes of an arena; the product is checked */
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

/* Short-lived memory of an op: set a mark, allocate, rewind. */
static mhk__mark mhk__scratch_mark(mhk_context *ctx) { return mhk__arena_mark(&ctx->scratch); }
static void mhk__scratch_rewind(mhk_context *ctx, mhk__mark m) { mhk__arena_rewind(ctx, &ctx->scratch, m); }
static void *mhk__scratch(mhk_context *ctx, mhk_index count, size_t size) {
  size_t bytes = mhk__size3(ctx, count, 1, size);
  return ctx->result == MHK_OK ? mhk__arena_alloc(ctx, &ctx->scratch, bytes) : NULL;
}
#ifndef MOHAWK_NO_TRAINING
static mhk_real *mhk__scratch_reals(mhk_context *ctx, mhk_index n) {
  return (mhk_real *)mhk__scratch(ctx, n, sizeof(mhk_real));
}
#endif

/* Registers zeroed memory, which starts with a mhk__object and belongs to the arena, as an object
   of the context. */
static void mhk__object_join(mhk_context *ctx, void *object, mhk__arena arena, void (*destroy)(void *object)) {
  mhk__object *o = (mhk__object *)object;
  o->ctx = ctx;
  o->arena = arena;
  o->destroy = destroy;
  o->next = ctx->objects;
  if (ctx->objects) ctx->objects->previous = o;
  ctx->objects = o;
}

/* Creates an object of a context: zeroed, with a mhk__object as its first member. */
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

/* runs body(arg, task, worker) for each task with the caller's threads, with OpenMP, or
   sequentially */
static void mhk__parallel(mhk_context *ctx, mhk_index tasks, void (*body)(void *arg, mhk_index task, int worker),
                          void *arg) {
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
MHKDEF const char *mhk_message(const mhk_context *ctx) {
  return ctx ? ctx->message : "out of memory: cannot create a context";
}
MHKDEF void mhk_clear_error(mhk_context *ctx) {
  if (!ctx) return;
  ctx->result = MHK_OK;
  ctx->message[0] = 0;
}
MHKDEF int mhk_threads(const mhk_context *ctx) { return ctx ? ctx->workers : 0; }
MHKDEF mhk_result mhk_set_threads(mhk_context *ctx, int threads) {
  if (!ctx) return MHK_ERROR_MEMORY;
  if (ctx->parallel_for)
    return mhk_fail(ctx, MHK_ERROR_ARGUMENT,
                    "cannot set the number of threads: this context uses the caller's parallel_for");
  if (threads < -1 || threads > 4096)
    return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "the number of threads cannot be %d: use 1 or more, or -1 for all",
                    threads);
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
/* =================================================================================================
   KERNELS: how loops are compiled once per instruction set                                >>kernels
   =================================================================================================

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

/* y (T,P) = M (T,S) x (S,P): every mixer of this file is such a product with a lower triangular
   M. */
static inline void mhk__ref_mix(int T, int S, int P, const double *M, const double *x, double *y) {
  for (int t = 0; t < T; t++)
    for (int p = 0; p < P; p++) {
      y[t * P + p] = 0;
      for (int s = 0; s < S; s++) y[t * P + p] += M[t * S + s] * x[s * P + p];
    }
}

/* a half-precision number: a sign, 5 bits of exponent, 10 of fraction */
static inline double mhk__ref_f16(uint16_t h) {
  const int exponent = h >> 10 & 31, fraction = h & 1023;
  const double size = exponent == 31 ? (fraction ? NAN : HUGE_VAL)
                      : exponent     ? ldexp(1024 + fraction, exponent - 25)
                                     : ldexp(fraction, -24);
  return h >> 15 ? -size : size;
}
/* a bfloat16 number: 8 bits of exponent, as in float32, 7 of fraction */
static inline double mhk__ref_bf16(uint16_t h) {
  const int exponent = h >> 7 & 255, fraction = h & 127;
  const double size = exponent == 255 ? (fraction ? NAN : HUGE_VAL)
                      : exponent      ? ldexp(128 + fraction, exponent - 134)
                                      : ldexp(fraction, -133);
  return h >> 15 ? -size : size;
}
/* x rounded to bfloat16: to the nearest number with 8 significant bits, ties to even; 0 if x is
   subnormal in float32 */
static inline double mhk__ref_bf16_round(double x) {
  int exponent;
  const double scaled = ldexp(frexp((double)(float)x, &exponent), 8), down = floor(scaled), part = scaled - down;
  const int up = part > 0.5 || (part >= 0.5 && fmod(down, 2) != 0);
  return fabs((double)(float)x) < ldexp(1, -126) ? 0 : ldexp(down + up, exponent - 8);
}

/* element i of an array of floating-point numbers */
static inline double mhk__ref_element(const void *data, mhk_dtype dtype, mhk_index i) {
  switch (dtype) {
    case MHK_F64: return ((const double *)data)[i];
    case MHK_F32: return (double)((const float *)data)[i];
    case MHK_F16: return mhk__ref_f16(((const uint16_t *)data)[i]);
    default: return mhk__ref_bf16(((const uint16_t *)data)[i]);
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
/* x rounded to bfloat16 as VCVTNE2PS2BF16 does: to nearest, ties to even, subnormal numbers to
   zero, NaN stays NaN */
static uint16_t mhk__bf16_round(mhk_real x) {
  const float f = (float)x;
  uint32_t bits;
  memcpy(&bits, &f, 4);
  if ((bits & 0x7F800000u) == 0) return (uint16_t)((bits >> 16) & 0x8000u);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return (uint16_t)((bits >> 16) | 0x40u);
  return (uint16_t)((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}
#endif /* MOHAWK_NO_TRAINING */

/* exact for subnormals too: the multiplication by 2^112 renormalizes; infinity and NaN stay */
static float mhk__f16_to_f32(uint16_t h) {
  uint32_t bits = ((uint32_t)h & 0x7FFFu) << 13;
  float f;
  if (bits >= 0x0F800000u) bits |= 0x7F800000u;
  memcpy(&f, &bits, 4);
  f *= 5192296858534827628530496329220096.0f;
  return h & 0x8000u ? -f : f;
}

static const struct { char name[16]; size_t bytes; } mhk__dtypes[] = { /* in the order of mhk_dtype */
    {"unknown type", 0}, {"F32", 4}, {"F64", 8}, {"F16", 2}, {"BF16", 2}, {"I8", 1},   {"U8", 1}, {"I16", 2},
    {"U16", 2},          {"I32", 4}, {"U32", 4}, {"I64", 8}, {"U64", 8},  {"BOOL", 1}, {"Q8", 0}, {"Q4", 0}};
static unsigned mhk__known_dtype(mhk_dtype dtype) {
  return (unsigned)dtype <= (unsigned)MHK_Q4 ? (unsigned)dtype : 0u;
}
MHKDEF size_t mhk_dtype_bytes(mhk_dtype dtype) { return mhk__dtypes[mhk__known_dtype(dtype)].bytes; }
MHKDEF const char *mhk_dtype_name(mhk_dtype dtype) { return mhk__dtypes[mhk__known_dtype(dtype)].name; }

/* element i of an array of a floating-point dtype */
static mhk_real mhk__element(const void *data, mhk_dtype dtype, mhk_index i) {
  switch (dtype) {
    case MHK_F32: return (mhk_real)((const float *)data)[i];
    case MHK_F64: return (mhk_real)((const double *)data)[i];
    case MHK_F16: return (mhk_real)mhk__f16_to_f32(((const uint16_t *)data)[i]);
    default: return (mhk_real)mhk__bf16_to_f32(((const uint16_t *)data)[i]);
  }
}

/* Quantized matrices, see mhk_quantized. */
enum { MHK__Q_ROWS = 16 }; /* rows a block */
static int mhk__is_quantized(mhk_dtype dtype) { return dtype == MHK_Q8 || dtype == MHK_Q4; }
static mhk_index mhk__q_blocks(mhk_index rows) { return (rows + MHK__Q_ROWS - 1) / MHK__Q_ROWS; }
static mhk_index mhk__q_block_bytes(mhk_dtype dtype, mhk_index k) {
  return dtype == MHK_Q8 ? MHK__Q_ROWS * k : MHK__Q_ROWS * k / 2;
}

/* element (n,k) of such a matrix with rows of K */
static mhk_real mhk__q_element(const mhk_quantized *q, mhk_dtype dtype, mhk_index K, mhk_index n, mhk_index k) {
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

/* A matrix of any strides and stored type: element (i,j) is at data[i * row + j * col]. A quantized
   one has the layout of q and all its columns: one stride is 1, the other is the length of its
   rows; its rows start at row n0 of q, its columns at k0. */
typedef struct mhk__matrix {
  const void *data;
  mhk_dtype dtype;
  mhk_index row, col;
  const mhk_quantized *q;
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

/* a matrix in memory: element (i,k) is at[i * row + k * col] */
typedef struct mhk__operand { const mhk_real *at; mhk_index row, col; } mhk__operand;
static mhk__operand mhk__strided(const mhk_real *at, mhk_index row, mhk_index col) {
  mhk__operand o;
  o.at = at;
  o.row = row;
  o.col = col;
  return o;
}
/* with rows ld apart; and the transpose of such a matrix */
static mhk__operand mhk__in_rows(const mhk_real *at, mhk_index ld) { return mhk__strided(at, ld, 1); }
static mhk__operand mhk__in_columns(const mhk_real *at, mhk_index ld) { return mhk__strided(at, 1, ld); }

/* Products of bfloat16 numbers. A packed number has size bytes, k is padded with zeros to a
   multiple of kr, and tiles are mr x nr. pack_a packs rows x k numbers like ks->pack, pack_b packs
   columns of the right operand, and product is like ks->product. */
typedef struct mhk__narrow {
  int mr, nr, kr, size;
  void (*pack_a)(void *dst, mhk_index rows, mhk_index k, mhk__matrix src);
  void (*pack_b)(void *dst, mhk_index n_columns, mhk_index k, mhk__matrix src);
  void (*product)(mhk_index m, mhk_index n, mhk_index k, const void *a, const void *b, mhk_real *c, mhk_index ldc,
                  int accumulate);
} mhk__narrow;

/* arguments of the kernels of the chapters below */
typedef struct mhk__epilogue mhk__epilogue;
typedef struct mhk__q_args mhk__q_args;
typedef struct mhk__attention_args mhk__attention_args;
typedef struct mhk__ssd_args mhk__ssd_args;
typedef struct mhk__orientation_args mhk__orientation_args;
typedef struct mhk__conv_args mhk__conv_args;
typedef struct mhk__conv_state_args mhk__conv_state_args;

/* The list of kernels, one entry each: result, name, arguments, and the reference in plain C that
   tests/test_kernels.c holds it to, mhk__ref_<that name>. That test walks this list and calls each
   kernel. From the list come the fields of the table, their filling in each pass, and the tasks of
   kernels that take one head. K(result, name, arguments, reference) */
#define MHK__KERNELS(K) \
  /* rows x k elements of src into panels of width rows, zero padded */ \
  K(void, pack, (mhk_real *dst, mhk_index width, mhk_index rows, mhk_index k, mhk__matrix src), element) \
  /* c (m,n) = or += packed a (m,k) times packed b (k,n) */ \
  K(void, product, (mhk_index m, mhk_index n, mhk_index k, const mhk_real *a, const mhk_real *b, mhk_real *c, \
    mhk_index ldc, int accumulate), product) \
  /* the same of operands as they lie, where they divide into whole tiles; 0: they do not, nothing
     was done */ \
  K(int, product_plain, (mhk_index m, mhk_index n, mhk_index k, mhk__operand a, mhk__operand b, mhk_real *c, \
    mhk_index ldc, int accumulate), product) \
  K(void, epilogue, (mhk_index m, mhk_index n, mhk_real *c, mhk_index ldc, mhk_index offset, \
    const mhk__epilogue *e, mhk_index column), gelu) \
  /* y (m,n) = x (m,k) w(n,k)^T for few rows: reads w once; work holds (m + 1) k numbers */ \
  K(void, rows_times, (mhk_index m, mhk_index n, mhk_index k, const mhk_real *x, const void *w, mhk_dtype dtype, \
    mhk_real *y, mhk_index ldy, mhk_real *work), product) \
  K(void, conv_with_state, (const mhk__conv_state_args *a, mhk_index c0, mhk_index c1), conv_forward) \
  /* one row each */ \
  K(void, norm, (mhk_index n, const mhk_real *x, const mhk_real *w, const mhk_real *b, mhk_real eps, int center, \
    mhk_real *y, mhk_real *mean, mhk_real *rstd), normalize) \
  K(double, log_sum_exp, (mhk_index n, const mhk_real *x, mhk_real scale), softmax) \
  K(void, gelu, (mhk_index n, const mhk_real *x, mhk_real *y), gelu) \
  K(void, gate, (mhk_index n, const mhk_real *y, const mhk_real *z, const mhk_real *bias, mhk_real *out), \
    silu)

/* Products with quantized weights: AVX-512 has none of its own, see mhk__isa_fill(). */
#define MHK__QUANTIZED_KERNELS(K) \
  /* fills digits, scale and offset of one row of x */ \
  K(void, q_prepare, (const mhk__q_args *a, mhk_index row), product) \
  /* blocks [first,last) of w, which reach into the rows wanted */ \
  K(void, q_times, (const mhk__q_args *a, mhk_index first, mhk_index last), product)

/* One head h, or one group g of heads, of sequence b. H(name, arguments, reference). The step is
   none of AVX-512's either. */
#define MHK__STEP_KERNELS(H) H(attention_step, attention, attention_matrix)
#define MHK__HEAD_KERNELS(H) \
  H(attention, attention, attention_matrix) \
  H(ssd, ssd, ssd_chunked) \
  H(ssd_step, ssd, ssd_recurrent)

#ifdef MOHAWK_NO_TRAINING
#define MHK__TRAINING_KERNELS(K)
#define MHK__TRAINING_HEAD_KERNELS(H)
#else
#define MHK__TRAINING_HEAD_KERNELS(H) \
  H(attention_back, attention, attention_back) \
  H(ssd_back, ssd, ssd_back) \
  H(orientation, orientation, distance) \
  H(orientation_back, orientation, ssd_matrix_back)
#define MHK__TRAINING_KERNELS(K) \
  K(void, conv, (const mhk__conv_args *a, mhk_index c0, mhk_index c1, mhk_real *work), conv_forward) \
  K(void, conv_back, (const mhk__conv_args *a, mhk_index c0, mhk_index c1, mhk_real *work), conv_back) \
  K(void, norm_back, (mhk_index n, const mhk_real *x, const mhk_real *w, mhk_real mean, mhk_real rstd, int center, \
    const mhk_real *dy, mhk_real *dx), normalize_back) \
  K(void, softmax, (mhk_index n, const mhk_real *x, mhk_real *y), softmax) \
  K(double, soft_dot, (mhk_index n, const mhk_real *logits, const mhk_real *target, mhk_real target_lse), \
    cross_entropy_soft) \
  K(void, soft_back, (mhk_index n, const mhk_real *logits, mhk_real inverse_temperature, mhk_real lse, \
    const mhk_real *target, mhk_real target_lse, mhk_real g, mhk_real *d), cross_entropy_soft) \
  K(void, gelu_back, (mhk_index n, const mhk_real *x, const mhk_real *dy, mhk_real *dx), gelu_slope) \
  K(void, gate_back, (mhk_index n, const mhk_real *y, const mhk_real *z, const mhk_real *bias, const mhk_real *g, \
    mhk_real *dy, mhk_real *dz), silu_slope) \
  K(double, distance, (mhk_index n, const mhk_real *x, const mhk_real *y), distance) \
  K(void, adamw, (mhk_index n, mhk_real *p, const mhk_real *g, mhk_real *m, mhk_real *v, const mhk_real *s), \
    adamw)
#endif

/* f(K,H) of every list: see the table right here */
#define MHK__ALL_KERNELS(K, H) \
  MHK__KERNELS(K) MHK__QUANTIZED_KERNELS(K) MHK__STEP_KERNELS(H) MHK__HEAD_KERNELS(H) \
  MHK__TRAINING_HEAD_KERNELS(H) MHK__TRAINING_KERNELS(K)

#define MHK__FIELD(result, name, arguments, reference) result(*name) arguments;
#define MHK__HEAD_FIELD(name, of, reference) \
  void (*name)(const mhk__##of##_args *a, mhk_index b, mhk_index h, mhk_real *work);
struct mhk__kernels {
  int mr, nr; /* the register tile of products: rows of A, columns of B */
  /* rows of x up to which integer products are faster than float products of dequantized weights:
     all, if dot products of bytes do twice the work */
  mhk_index q_rows;
#ifndef MOHAWK_NO_TRAINING
  mhk__narrow narrow;
#endif
  MHK__ALL_KERNELS(MHK__FIELD, MHK__HEAD_FIELD)
};

static mhk_index mhk__up(mhk_index n, mhk_index step) { return (n + step - 1) / step * step; }
static mhk_index mhk__min(mhk_index a, mhk_index b) { return a < b ? a : b; }
static mhk_index mhk__max(mhk_index a, mhk_index b) { return a > b ? a : b; }

#define MHK__TILE 64 /* rows and columns of a tile of attention and stage-1 matrices */

/* the passes */
#define MHK__SCALAR 1
#define MHK__AVX2 2
#define MHK__AVX512 3
#define MHK__NEON 4
#define MHK__WASM 5
#if !defined(MOHAWK_NO_SIMD) && defined(MHK__X86)
#define MHK__HAS_X86_PASSES
#if !defined(MOHAWK_DOUBLE) && (defined(__clang__) ? __clang_major__ >= 6 : __GNUC__ >= 8)
#define MHK__HAS_VNNI
#endif
#include <immintrin.h>
#elif !defined(MOHAWK_NO_SIMD) && defined(__AARCH64EL__) && (defined(__GNUC__) || defined(__clang__))
#define MHK__HAS_NEON_PASS
#include <arm_neon.h>
/* the dot product of bytes of ARMv8.2; Clang's arm_neon.h has it for single functions from version
   16 */
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
/* ---- the template: MHK__PASS is one of the passes above, MHK__SUFFIX the end of its names ---- */
#define MHK__JOIN2(a, b) a##b
#define MHK__JOIN(a, b) MHK__JOIN2(a, b)
/* not MHK__JOIN: names occur inside its arguments too, and a macro does not expand within itself */
#define MHK__N3(a, b) a##b
#define MHK__N2(a, b) MHK__N3(a, b)
#define MHK__N(name) MHK__N2(name, MHK__SUFFIX)
#define MHK__PASS_DONE MHK__TEXT

/* The vocabulary: MHK__W numbers a vector. Products round once (fused) where the set has it. What a
   pass can, and has code for below:
     MHK__HAS_PREFETCH      asks for lines ahead
     MHK__HAS_32_REGISTERS  of vectors; the others have 16
     MHK__HAS_BLOCKS_OF_4   blocks of four vectors gain by them
     MHK__HAS_DECODING      attention's step and products with quantized weights; AVX-512 decodes by
                            AVX2's, see mhk__isa_fill()
     MHK__HAS_BYTE_DOTS     integers of x as bytes for VNNI or SDOT, see >>passes
   The register tile of packed products has MHK__MR rows, MHK__HALF for what is left at the end, and
   MHK__NV vectors; the one that needs no packing MHK__TALL rows. */
#if MHK__PASS == MHK__SCALAR
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
#define MHK__TALL 8
#define MHK__HAS_DECODING
#elif MHK__PASS == MHK__AVX2
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
#define MHK__LOAD_BF16(p) _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i \
  *)(const void *)(p))), 16))
#define MHK__LOAD_F16(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p)))
#define MHK__WORDS __m256i
#define MHK__LOAD_WORDS(p) _mm256_loadu_si256((const __m256i *)(const void *)(p))
#define MHK__EVEN_BF16(words) _mm256_castsi256_ps(_mm256_slli_epi32(words, 16))
#define MHK__ODD_BF16(words) _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(-65536)))
#define MHK__MASK(n) _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
#define MHK__LOAD_FIRST(p, n) _mm256_maskload_ps(p, MHK__MASK(n))
#define MHK__STORE_FIRST(p, v, n) _mm256_maskstore_ps(p, MHK__MASK(n), v)
#define MHK__FROM(v, w, d) \
  _mm256_blendv_ps(v, w, _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32((int)(d)), _mm256_setr_epi32(0, 1, \
    2, 3, 4, 5, 6, 7))))
#define MHK__POWER2(n) _mm256_castsi256_ps(_mm256_add_epi32(_mm256_slli_epi32(_mm256_castps_si256(n), 23), \
  _mm256_set1_epi32(0x3F800000)))
#endif
#define MHK__MR 6
#define MHK__TALL 6
#define MHK__HALF 4
#define MHK__NV 2
#define MHK__HAS_PREFETCH
#define MHK__HAS_DECODING
#elif MHK__PASS == MHK__AVX512
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
/* maskz: the plain ones of GCC 12 warn inside their own header */
#define MHK__MAX(a, b) _mm512_maskz_max_ps((__mmask16)0xFFFF, a, b)
#define MHK__SQRT(v) _mm512_maskz_sqrt_ps((__mmask16)0xFFFF, v)
#define MHK__MIN(a, b) _mm512_maskz_min_ps((__mmask16)0xFFFF, a, b)
#define MHK__LOAD_BF16(p) \
  _mm512_castsi512_ps(_mm512_maskz_slli_epi32( \
      (__mmask16)0xFFFF, _mm512_maskz_cvtepu16_epi32((__mmask16)0xFFFF, \
          _mm256_loadu_si256((const __m256i *)(const void *)(p))), 16))
#define MHK__LOAD_F16(p) _mm512_maskz_cvtph_ps((__mmask16)0xFFFF, \
  _mm256_loadu_si256((const __m256i *)(const void *)(p)))
#define MHK__WORDS __m512i
#define MHK__LOAD_WORDS(p) _mm512_loadu_si512(p)
#define MHK__EVEN_BF16(words) _mm512_castsi512_ps(_mm512_maskz_slli_epi32((__mmask16)0xFFFF, words, 16))
#define MHK__ODD_BF16(words) _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(-65536)))
#define MHK__MASK(n) ((__mmask16)((1u << (n)) - 1u))
#define MHK__FROM(v, w, d) _mm512_mask_mov_ps(w, (__mmask16)((d) <= 0 ? 0xFFFFu : (d) >= 16 ? 0u : 0xFFFFu << (d)), v)
#define MHK__LOAD_FIRST(p, n) _mm512_maskz_loadu_ps(MHK__MASK(n), p)
#define MHK__STORE_FIRST(p, v, n) _mm512_mask_storeu_ps(p, MHK__MASK(n), v)
#define MHK__POWER2(n) \
  _mm512_castsi512_ps(_mm512_add_epi32(_mm512_maskz_slli_epi32((__mmask16)0xFFFF, _mm512_castps_si512(n), 23), \
    _mm512_set1_epi32(0x3F800000)))
#endif
#define MHK__MR 14
#define MHK__TALL 6
#define MHK__HAS_PREFETCH
#define MHK__HAS_32_REGISTERS
#ifdef MHK__HAS_VNNI
#define MHK__HAS_BYTE_DOTS
#endif
#define MHK__HAS_BLOCKS_OF_4
#define MHK__HALF 8
#define MHK__NV 2
#elif MHK__PASS == MHK__NEON
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
  vbslq_f32(vcgtq_s32(vdupq_n_s32((int32_t)(d)), vcombine_s32(vcreate_s32(0x0000000100000000u), \
    vcreate_s32(0x0000000300000002u))), w, v)
#define MHK__LOAD_F16(p) vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)))
#define MHK__WORDS uint32x4_t
#define MHK__LOAD_WORDS(p) vreinterpretq_u32_u16(vld1q_u16(p))
#define MHK__EVEN_BF16(words) vreinterpretq_f32_u32(vshlq_n_u32(words, 16))
#define MHK__ODD_BF16(words) vreinterpretq_f32_u32(vandq_u32(words, vdupq_n_u32(0xFFFF0000u)))
#define MHK__POWER2(n) vreinterpretq_f32_u32(vaddq_u32(vshlq_n_u32(vreinterpretq_u32_f32(n), 23), \
  vdupq_n_u32(0x3F800000u)))
#endif
#define MHK__MR 8
#define MHK__TALL 8
#define MHK__HALF 4
#define MHK__NV 2 /* MHK__TILE must be a multiple of MHK__NR */
#define MHK__HAS_PREFETCH
#define MHK__HAS_32_REGISTERS
#define MHK__HAS_DECODING
#ifdef MHK__HAS_SDOT
#define MHK__HAS_BYTE_DOTS
#endif
#elif MHK__PASS == MHK__WASM
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
#define MHK__FROM(v, w, d) ((MHK__V)wasm_v128_bitselect((v128_t)(w), (v128_t)(v), \
  wasm_i32x4_gt(wasm_i32x4_splat((int)(d)), wasm_i32x4_make(0, 1, 2, 3))))
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
#define MHK__HAS_DECODING
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

/* e^x. float32: 2^k times a polynomial of degree 7 (coefficients of Moshier's Cephes expf), about 1
   ulp. Arguments are clamped to the range of float32, so e^-1000 is 1e-38, not 0. */
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
  x = MHK__MIN(MHK__SET(88.3f), MHK__MAX(MHK__SET(-87.3f), x)); /* in this order, NaN stays NaN */
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
#endif /* MOHAWK_NO_TRAINING */

/* ---- drivers: cut work into tasks, give each worker its memory ---- */

#ifndef MHK__SMALL
#define MHK__SMALL 1e5 /* multiply-adds that one thread finishes before others wake up */
#endif

/* Runs body over tasks with work memory per worker of the given number of elements. cost is about
   the number of multiply-adds of all tasks. */
typedef struct mhk__job {
  mhk_context *ctx;
  const void *args;
  mhk_real *work;
  mhk_index each; /* elements of work memory per worker */
  mhk_index heads;
} mhk__job;

/* Runs body over tasks with per-worker work memory of `work` elements each; cost is about the
   number of multiply-adds of all tasks. */
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
/* one head, or one group of heads, of one sequence per task */
#define MHK__HEAD_TASK(name, of, reference) \
  static void mhk__##name##_task(void *arg, mhk_index task, int worker) { \
    const mhk__job *job = (const mhk__job *)arg; \
    job->ctx->kernels->name((const mhk__##of##_args *)job->args, task / job->heads, task % job->heads, \
      job->work + worker * job->each); \
  }
MHK__STEP_KERNELS(MHK__HEAD_TASK)
MHK__HEAD_KERNELS(MHK__HEAD_TASK)
MHK__TRAINING_HEAD_KERNELS(MHK__HEAD_TASK)

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
static void mhk__over(mhk_context *ctx, mhk_index n, mhk_index step,
                      void (*body)(mhk_context *ctx, void *args, mhk_index first, mhk_index last), void *args) {
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

/* =================================================================================================
   PRODUCTS: GEMM of every stored type, GEMV, quantized weights                           >>products
   =================================================================================================

   c (m,n) = a (m,k) b (k,n), the GEMM under every linear layer, in five forms:
      packed     both operands are copied into panels, in the order the register tile reads them
      plain      operands as they lie, where they divide into whole tiles or are padded (mhk__block)
      few rows   of x against the rows of a weight matrix: GEMV, as fast as weights can be read
      quantized  rows of x as 16-bit integers against int8 or int4 weights, dequantized by group
      bfloat16   both operands rounded, sums in float32 (mhk__narrow)
   Weights stay in their stored type and are converted where they are read or packed. The order of
   every sum depends on the shapes and the instruction set, not on the number of threads. */

#if MHK__REFERENCE == 1 && !defined(MHK__PASS)
/* ---- reference */

/* a matrix of any strides: element (i,j) at[i * row + j * col] */
typedef struct mhk__ref_matrix { const double *at; mhk_index row, col; } mhk__ref_matrix;
static inline mhk__ref_matrix mhk__ref_strided(const double *at, mhk_index row, mhk_index col) {
  mhk__ref_matrix m;
  m.at = at;
  m.row = row;
  m.col = col;
  return m;
}

/* c (m,n) += a (m,k) b (k,n): GEMM, and GEMV where m is 1 */
static inline void mhk__ref_product(mhk_index m, mhk_index n, mhk_index k, mhk__ref_matrix a, mhk__ref_matrix b,
                                    double *c) {
  for (mhk_index i = 0; i < m; i++)
    for (mhk_index j = 0; j < n; j++) {
      double sum = 0;
      for (mhk_index l = 0; l < k; l++) sum += a.at[i * a.row + l * a.col] * b.at[l * b.row + j * b.col];
      c[i * n + j] += sum;
    }
}

/* Element (n,k) of a quantized matrix with rows of K, dequantized: scale times integer. Its layout
   is that of mhk_quantized. */
static inline double mhk__ref_dequantized(const mhk_quantized *q, mhk_dtype dtype, mhk_index K, mhk_index n,
                                          mhk_index k) {
  const mhk_index block = n / 16, row = n % 16, each = dtype == MHK_Q8 ? 4 : 8;
  if (n >= q->rows) return (double)q->rest[(n - q->rows) * K + k];
  const unsigned char byte = ((const unsigned char *)q->q)[((block * (K / each) + k / each) * 16 + row) * 4 + k % 4];
  const int integer = dtype == MHK_Q8 ? (byte < 128 ? byte : byte - 256) : (k % 8 < 4 ? byte % 16 : byte / 16) - 8;
  return integer * mhk__ref_f16(q->scale[(block * (K / q->group) + k / q->group) * 16 + row]);
}
#endif /* reference */

#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
/* ---- arguments */

/* y (M,N) = x (M,K) w^T for rows n0.. of a quantized matrix w and up to q_rows (see the kernels)
   rows of x. Each group of x is rounded to 16-bit integers, so its dot product with the integers of
   w is exact. The products of groups are summed in float32, in order. The integers differ from x by
   at most 2^-16 of the group's largest number. */
struct mhk__q_args {
  mhk_index M, N, K;
  const mhk_quantized *q;
  mhk_dtype dtype;
  mhk_index n0;
  const mhk_real *x;       /* (M,K) */
  /* (M,K), each four in the order 0 2 1 3: the lanes a vector of bytes falls into when its 16-bit
     words are shifted. Of kernels that multiply bytes: of 32 integers 256 h + l first the signed
     bytes l, then h */
  int16_t *digits;
  float *scale;            /* (M,K/group) */
  /* (M,K/group): what the 8 in the halves of MHK_Q4 adds, negated; of kernels that multiply bytes
     for MHK_Q8 what 128 adds */
  int32_t *offset;
  mhk_real *y;
  mhk_index ldy;
};

/* Bytes of weights to prefetch. Without it, one row of MHK_Q8 on Zen 4 reads 22 to 36 GB/s,
   depending on the address of the loop; with it, 33. */
enum { MHK__Q_AHEAD = 4096 };
enum { MHK__Q_SLAB = 131072 }; /* bytes of integers of x that are multiplied with the blocks of a task together */
/* largest integer of x: times 16 words of 15 * 256 it stays below 2^31, and it is two signed
   bytes */
enum { MHK__Q_LIMIT = 32512 };
#define MHK__Q_TINY 1e-30f /* smaller groups of x count as zero */

/* What to do with a product before it is stored, in this order. */
struct mhk__epilogue {
  int accumulate;           /* c += product instead of c = product */
  const mhk_real *bias;     /* (N), added to each row */
  const mhk_real *residual; /* same layout as c, added */
  mhk_real *before;         /* same layout as c: receives the value before gelu */
  int gelu;
};

/* Which part of a product is needed or nonzero: everything; c on and below, or on and above its
   diagonal; a lower or upper triangular. Skips whole register tiles and does not touch their
   elements. */
enum { mhk__whole, mhk__lower_c, mhk__upper_c, mhk__lower_a, mhk__upper_a };

/* Rows that are needed soon, to prefetch during other work. Rows of one head are pages apart, where
   hardware does not prefetch. */
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

/* A product of operands in work memory, without packing: c = f (c0 + a1 b1) + a2 b2, where row i is
   multiplied by f[i * fs]. The elements of left operands are broadcast one by one, so they may have
   any strides; right operands must be row-major. Edges need no special code: rows of b and c are
   padded to MHK__LD numbers, and reads beyond the rows of a only affect rows beyond those of c. */
typedef struct mhk__block {
  mhk__operand a1, a2; /* a1.at NULL: that product is absent */
  const mhk_real *b1, *b2;
  mhk_index k1, k2, ldb;
  const mhk_real *c0;  /* same layout as c, may be c; NULL: zeros */
  const mhk_real *f;   /* NULL: ones */
  mhk_index fs;
  mhk_real *c;
  mhk_index ldc;
  mhk__ahead *ahead;   /* or NULL */
} mhk__block;
#define MHK__LD(n) (((n) + 15) / 16 * 16) /* the length of a padded row: whole vectors of every instruction set */
enum { MHK__OVER = 8 }; /* the number of rows that a tile may extend beyond the last one */
/* prefetch if rows are this far apart, too far for the hardware */
enum { MHK__ROWS_AHEAD = 16 };
enum { MHK__WIDEN = 64 }; /* numbers of a row converted at once */

/* Work memory of a kernel. Its buffers stand in one table, BUFFERS(D, V, M), which makes the struct
   of pointers name##_room, name##_lay(), which hands out the memory, and name##_work(), how much
   that is:
     D(name, n)        n doubles
     V(name, n)        n numbers
     M(name, rows, n)  rows of n numbers, padded to MHK__LD(n), and MHK__OVER spare rows, which
                       register tiles may read and write */
static mhk_index mhk__matrix_room(mhk_index rows, mhk_index n) { return (rows + MHK__OVER) * MHK__LD(n); }
static mhk_real *mhk__reserve(mhk_real *work, mhk_index *used, mhk_index n) {
  mhk_real *at = work ? work + *used : NULL;
  *used += MHK__LD(n);
  return at;
}
#define MHK__DOUBLES(name, n) double *name;
#define MHK__NUMBERS(name, n) mhk_real *name;
#define MHK__MATRIX(name, rows, n) mhk_real *name;
#define MHK__RESERVE_DOUBLES(name, n) w->name = (double *)mhk__reserve(work, &used, 2 * (n));
#define MHK__RESERVE_NUMBERS(name, n) w->name = mhk__reserve(work, &used, n);
#define MHK__RESERVE_MATRIX(name, rows, n) w->name = mhk__reserve(work, &used, mhk__matrix_room(rows, n));
#define MHK__LIST(...) __VA_ARGS__
#define MHK__ROOM(name, BUFFERS, sizes, given) \
  typedef struct name##_room { BUFFERS(MHK__DOUBLES, MHK__NUMBERS, MHK__MATRIX) } name##_room; \
  static mhk_index name##_lay(name##_room *w, mhk_real *work, MHK__LIST sizes) { \
    mhk_index used = 0; \
    BUFFERS(MHK__RESERVE_DOUBLES, MHK__RESERVE_NUMBERS, MHK__RESERVE_MATRIX) \
    return used; \
  } \
  static mhk_index name##_work sizes { \
    name##_room w; \
    return name##_lay(&w, NULL, MHK__LIST given); \
  }

#ifndef MOHAWK_NO_TRAINING
/* room for a packed operand of this many rows or columns: a multiple of every register tile */
static mhk_index mhk__padded(mhk_index rows) { return rows + 32; }
#endif /* MOHAWK_NO_TRAINING */

/* y for rows [16 block, 16 block + 16) of w, as far as they are wanted, and rows [i, i + m) of x */
static void mhk__q_store(const mhk__q_args *a, mhk_index block, mhk_index i, mhk_index m, const float *sums) {
  const mhk_index n = block * MHK__Q_ROWS - a->n0, from = n < 0 ? -n : 0,
                  to = mhk__min(a->N - n, MHK__Q_ROWS);
  for (mhk_index row = 0; row < m; row++)
    for (mhk_index r = from; r < to; r++) a->y[(i + row) * a->ldy + n + r] = sums[row * MHK__Q_ROWS + r];
}

#if (defined(MHK__HAS_X86_PASSES) || defined(MHK__HAS_NEON_PASS) || defined(MHK__HAS_WASM_PASS)) && \
    !defined(MOHAWK_DOUBLE)
/* Multiplies blocks [first,last) of quantized weights by tiles of one, two or (if available) four
   rows of x with one or two blocks. Rows are split into slabs that stay in the second-level
   cache. */
typedef void (*mhk__q_tile)(const mhk__q_args *a, mhk_index b, mhk_index i);
static void mhk__q_tiles(const mhk__q_args *a, mhk_index first, mhk_index last, mhk__q_tile one, mhk__q_tile two,
                         mhk__q_tile four, mhk__q_tile wide) {
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

/* One generator for the integer tiles of all instruction sets: R rows of x against the 16 rows of
   one block of w, or of two blocks, which are read once. A lane is a row of w. A line of 64 bytes
   holds 4 numbers along k of each row (MHK_Q8) or 8 (MHK_Q4); it is 64 / (4 LANES) vectors.
   d<r><v> adds up, for one group, what row r of x gives in vector v; sum<r><v> the groups' results.
   Named variables, so that no compiler spills an array. What a set brings along, as
   MHK__Q_SET##_LANES and so on:
     LANES, INT, REAL          its vectors, of 32-bit integers and of floats
     LOAD(p), SPREAD(x)        a vector of w; one float in every lane
     SCALES(p)                 16-bit scales as floats
     FMA(a, b, c), PUT(p, v)   multiply-add and store of floats
     SUM, NONE(start),         d: its type, first value and what it comes to, in floats; start is
     TOTAL(d, start)           what the offset of Q8 or Q4 adds, once, at either end
     OFFSET_Q8, OFFSET_Q4      whether there is such an offset: 0 or 1
     STEP_Q8, STEP_Q4          numbers along k of one turn of the inner loop
     TURN_Q8(R, V), TURN_Q4    its lines: V(MHK__Q_LINE_Q8, R, 0) is the first one
     PARTS_Q8, PARTS_Q4        makes of a vector w what is multiplied,
     ROW_Q8(r, v, n), ROW_Q4   and what row r of x does with it, at line n
     TARGET                    an attribute of the function, or nothing
   Multiply, add, dequantize: the integers are exact in any order, the order of float operations
   stands here, so that all sets give the same bits. */
#define MHK__Q2(set, name) set##name
#define MHK__Q1(set, name) MHK__Q2(set, name)
#define MHK__Q(name) MHK__Q1(MHK__Q_SET, name)
#define MHK__Q_R1(f, v, n) f(0, v, n)
#define MHK__Q_R2(f, v, n) f(0, v, n) f(1, v, n)
#define MHK__Q_R4(f, v, n) f(0, v, n) f(1, v, n) f(2, v, n) f(3, v, n)
#define MHK__Q_V1(f, R, n) f(R, 0, n)
#define MHK__Q_V2(f, R, n) f(R, 0, n) f(R, 1, n)
#define MHK__Q_V4(f, R, n) f(R, 0, n) f(R, 1, n) f(R, 2, n) f(R, 3, n)
#define MHK__Q_LOW(f, R, n) f(R, 0, n) f(R, 1, n)
#define MHK__Q_HIGH(f, R, n) f(R, 2, n) f(R, 3, n)
#define MHK__Q_BLOCK(v) ((v) * MHK__Q(_LANES) / MHK__Q_ROWS) /* which block and which of its rows vector v starts at */
#define MHK__Q_AT(v) ((v) * MHK__Q(_LANES) % MHK__Q_ROWS)
#define MHK__Q_START(R, v, n) MHK__Q_R##R(MHK__Q_START_ROW, v, n)
#define MHK__Q_START_ROW(r, v, n) MHK__Q(_REAL) sum##r##v = MHK__Q(_SPREAD)(0.0f);
#define MHK__Q_ZERO(R, v, n) MHK__Q_R##R(MHK__Q_ZERO_ROW, v, n)
#define MHK__Q_ZERO_ROW(r, v, n) MHK__Q(_SUM) d##r##v = MHK__Q(_NONE)(has_offset * offset[(r) * groups]);
#define MHK__Q_LINE_Q8(R, v, n) MHK__Q_LINE(Q8, R, v, n)
#define MHK__Q_LINE_Q4(R, v, n) MHK__Q_LINE(Q4, R, v, n)
#define MHK__Q_LINE(type, R, v, n) { \
    const unsigned char *line = p + MHK__Q_BLOCK(v) * block + 64 * (n); \
    if (MHK__Q_AT(v) == 0) MHK__PREFETCH_L1(line + MHK__Q_AHEAD); \
    const MHK__Q(_INT) w = MHK__Q(_LOAD)(line + 4 * MHK__Q_AT(v)); \
    MHK__Q(_PARTS_##type) \
    MHK__Q_R##R(MHK__Q(_ROW_##type), v, n) \
  }
#define MHK__Q_END(R, v, n) { \
    const MHK__Q(_REAL) by = MHK__Q(_SCALES)(scale + MHK__Q_BLOCK(v) * groups * MHK__Q_ROWS + MHK__Q_AT(v)); \
    MHK__Q_R##R(MHK__Q_END_ROW, v, n) \
  }
#define MHK__Q_END_ROW(r, v, n) \
  sum##r##v = MHK__Q(_FMA)(MHK__Q(_TOTAL)(d##r##v, has_offset * offset[(r) * groups]), \
    by * MHK__Q(_SPREAD)(size[(r) * groups]), sum##r##v);
#define MHK__Q_STORE(R, v, n) MHK__Q_R##R(MHK__Q_STORE_ROW, v, n)
#define MHK__Q_STORE_ROW(r, v, n) \
  MHK__Q(_PUT)(sums + (MHK__Q_BLOCK(v) * rows + (r)) * MHK__Q_ROWS + MHK__Q_AT(v), sum##r##v);
#define MHK__Q_GROUP(type, R, V) { \
    const unsigned char *p = from; \
    const signed char *x = digits; \
    V(MHK__Q_ZERO, R, 0) \
    for (j = 0; j < group; j += MHK__Q(_STEP_##type), x += 2 * MHK__Q(_STEP_##type)) { \
      MHK__Q(_TURN_##type)(R, V) \
      p += MHK__Q(_STEP_##type) * MHK__Q_BYTES_##type; \
    } \
    V(MHK__Q_END, R, 0) \
  }
#define MHK__Q_BYTES_Q8 MHK__Q_ROWS /* of a block for one number along k */
#define MHK__Q_BYTES_Q4 (MHK__Q_ROWS / 2)
/* GROUPS: MHK__Q_GROUP, or MHK__Q_HALVES, which takes the vectors of a block half by half where
   the registers do not hold the integers of all */
#define MHK__Q_HALVES(type, R, V) MHK__Q_GROUP(type, R, MHK__Q_LOW) MHK__Q_GROUP(type, R, MHK__Q_HIGH)
#define MHK__Q_TILE(name, type, R, V, blocks, GROUPS) \
  MHK__Q(_TARGET) static void name(const mhk__q_args *a, mhk_index b, mhk_index i) { \
    const mhk_index K = a->K, group = a->q->group, groups = K / group, block = mhk__q_block_bytes(a->dtype, K); \
    const unsigned char *from = (const unsigned char *)a->q->q + b * block; \
    const uint16_t *scale = a->q->scale + b * groups * MHK__Q_ROWS; \
    const signed char *digits = (const signed char *)(a->digits + i * K); \
    const float *size = a->scale + i * groups; \
    const int32_t has_offset = MHK__Q(_OFFSET_##type), *offset = a->offset + i * groups; \
    enum { rows = R }; \
    float sums[(blocks) * rows * MHK__Q_ROWS]; \
    mhk_index g, j; \
    V(MHK__Q_START, R, 0) \
    for (g = 0; g < groups; g++, scale += MHK__Q_ROWS, size++, offset++) { \
      GROUPS(type, R, V) \
      from += group * MHK__Q_BYTES_##type; \
      digits += 2 * group; \
    } \
    V(MHK__Q_STORE, R, 0) \
    for (j = 0; j < (blocks); j++) mhk__q_store(a, b + j, i, rows, sums + j * rows * MHK__Q_ROWS); \
  }
#endif
#endif /* MOHAWK_IMPLEMENTATION */

#ifdef MHK__TEMPLATE
/* ---- products ---- */

/* W rows of W numbers, row stride rs, transposed: column j goes to dst + j * width, its first n
   numbers */
#if MHK__PASS == MHK__AVX2 && !defined(MOHAWK_DOUBLE)
#define MHK__HAS_TRANSPOSE
/* rows are interleaved in pairs, pairs in fours, and those exchange halves */
static inline void MHK__N(mhk__transpose)(const mhk_real *src, mhk_index rs, mhk_index rows, mhk_real *dst,
                                          mhk_index width, mhk_index n) {
  const __m256 zero = _mm256_setzero_ps();
  __m256 r0, r1, r2, r3, r4, r5, r6, r7, t0, t1, t2, t3, t4, t5, t6, t7;
#define MHK__ROW(i) ((i) < rows ? _mm256_loadu_ps(src + (i) * rs) : zero)
#define MHK__OUT(j, v) \
  if (n >= 8 || (j) < 7) \
    _mm256_storeu_ps(dst + (j) * width, v); \
  else \
    MHK__STORE_FIRST(dst + (j) * width, v, n)
#define MHK__UNPACK(lo, hi, a, b) \
  lo = _mm256_unpacklo_ps(a, b); \
  hi = _mm256_unpackhi_ps(a, b);
  r0 = MHK__ROW(0); r1 = MHK__ROW(1); r2 = MHK__ROW(2); r3 = MHK__ROW(3);
  r4 = MHK__ROW(4); r5 = MHK__ROW(5); r6 = MHK__ROW(6); r7 = MHK__ROW(7);
  MHK__UNPACK(t0, t1, r0, r1)
  MHK__UNPACK(t2, t3, r2, r3)
  MHK__UNPACK(t4, t5, r4, r5)
  MHK__UNPACK(t6, t7, r6, r7)
  r0 = _mm256_shuffle_ps(t0, t2, 0x44);
  r1 = _mm256_shuffle_ps(t0, t2, 0xEE);
  r2 = _mm256_shuffle_ps(t1, t3, 0x44);
  r3 = _mm256_shuffle_ps(t1, t3, 0xEE);
  r4 = _mm256_shuffle_ps(t4, t6, 0x44);
  r5 = _mm256_shuffle_ps(t4, t6, 0xEE);
  r6 = _mm256_shuffle_ps(t5, t7, 0x44);
  r7 = _mm256_shuffle_ps(t5, t7, 0xEE);
  MHK__OUT(0, _mm256_permute2f128_ps(r0, r4, 0x20)); MHK__OUT(1, _mm256_permute2f128_ps(r1, r5, 0x20));
  MHK__OUT(2, _mm256_permute2f128_ps(r2, r6, 0x20)); MHK__OUT(3, _mm256_permute2f128_ps(r3, r7, 0x20));
  MHK__OUT(4, _mm256_permute2f128_ps(r0, r4, 0x31)); MHK__OUT(5, _mm256_permute2f128_ps(r1, r5, 0x31));
  MHK__OUT(6, _mm256_permute2f128_ps(r2, r6, 0x31)); MHK__OUT(7, _mm256_permute2f128_ps(r3, r7, 0x31));
#undef MHK__ROW
#undef MHK__OUT
#undef MHK__UNPACK
}
#elif MHK__PASS == MHK__AVX512 && !defined(MOHAWK_DOUBLE)
#define MHK__HAS_TRANSPOSE
/* four rows at a time are transposed in lanes of four, which then change places */
static inline void MHK__N(mhk__transpose)(const mhk_real *src, mhk_index rs, mhk_index rows, mhk_real *dst,
                                          mhk_index width, mhk_index n) {
  const __mmask16 all = (__mmask16)0xFFFF, keep = n >= 16 ? all : MHK__MASK(n);
  const __m512 zero = _mm512_setzero_ps();
  __m512 a, b, c, d;
#define MHK__ROW(i) ((i) < rows ? _mm512_loadu_ps(src + (i) * rs) : zero)
#define MHK__LO(x, y) _mm512_maskz_unpacklo_ps(all, x, y)
#define MHK__HI(x, y) _mm512_maskz_unpackhi_ps(all, x, y)
#define MHK__LO2(x, y) _mm512_castpd_ps(_mm512_maskz_unpacklo_pd((__mmask8)0xFF, _mm512_castps_pd(x), \
  _mm512_castps_pd(y)))
#define MHK__HI2(x, y) _mm512_castpd_ps(_mm512_maskz_unpackhi_pd((__mmask8)0xFF, _mm512_castps_pd(x), \
  _mm512_castps_pd(y)))
#define MHK__QUAD(i, u0, u1, u2, u3) \
  __m512 u0, u1, u2, u3; \
  a = MHK__ROW(i); b = MHK__ROW(i + 1); c = MHK__ROW(i + 2); d = MHK__ROW(i + 3); \
  u0 = MHK__LO(a, b); u1 = MHK__LO(c, d); u2 = MHK__HI(a, b); u3 = MHK__HI(c, d); \
  a = MHK__LO2(u0, u1); b = MHK__HI2(u0, u1); c = MHK__LO2(u2, u3); d = MHK__HI2(u2, u3); \
  u0 = a; u1 = b; u2 = c; u3 = d;
#define MHK__LANES(x, y, k) _mm512_maskz_shuffle_f32x4(all, x, y, k)
#define MHK__OUT(j, v) _mm512_mask_storeu_ps(dst + (j) * width, keep, v)
#define MHK__FOUR(j, x0, x1, x2, x3) \
  a = MHK__LANES(x0, x1, 0x88); b = MHK__LANES(x2, x3, 0x88); c = MHK__LANES(x0, x1, 0xDD); \
    d = MHK__LANES(x2, x3, 0xDD); \
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
#elif MHK__PASS == MHK__NEON && !defined(MOHAWK_DOUBLE)
#define MHK__HAS_TRANSPOSE
/* interleaving rows 0 and 2, 1 and 3, and then both, is transposing */
static inline void MHK__N(mhk__transpose)(const mhk_real *src, mhk_index rs, mhk_index rows, mhk_real *dst,
                                          mhk_index width, mhk_index n) {
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

/* one panel: it has w rows, the rest of its width becomes zero; scale, if given, multiplies column
   j by scale[j] */
static void MHK__N(mhk__pack_panel)(mhk_real *MHK__RESTRICT dst, mhk_index width, mhk_index w, mhk_index k,
                                    const mhk_real *MHK__RESTRICT s, mhk_index row, mhk_index col,
                                    const mhk_real *scale) {
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
          if (j + 1 < k) /* writes too much and overwrites it later, because masked stores of AVX2 are slow */
            MHK__STORE(dst + j * width + i, v);
          else
            MHK__STORE_FIRST(dst + j * width + i, v, width - i);
        }
      }
  }
#ifdef MHK__HAS_TRANSPOSE
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

/* packs a matrix of rows x k by strides as the left operand (rows of A) or the right one (columns
   of B) */
static void MHK__N(mhk__pack_by)(mhk_real *dst, mhk_index width, mhk_index rows, mhk_index k, const mhk_real *src,
                                 mhk_index row, mhk_index col, const mhk_real *scale) {
  for (mhk_index p = 0; p < rows; p += width, dst += width * k)
    MHK__N(mhk__pack_panel)(dst, width, rows - p < width ? rows - p : width, k, src + p * row, row, col, scale);
}

/* rows of one block of a quantized matrix, from row n on, and k of their columns: dequantized into
   a panel */
static void MHK__N(mhk__dequantize)(mhk_real *to, mhk_index width, mhk_index rows, mhk_index k, const mhk__matrix *src,
                                    mhk_index n) {
  const mhk_quantized *q = src->q;
  const mhk_index K = src->row, each = src->dtype == MHK_Q8 ? 4 : 8, block = n / MHK__Q_ROWS, first = n % MHK__Q_ROWS;
  const unsigned char *from =
      (const unsigned char *)q->q + ((block * (K / each) + src->k0 / each) * MHK__Q_ROWS + first) * 4;
  const uint16_t *scale = q->scale + block * (K / q->group) * MHK__Q_ROWS + first;
  mhk_real s[MHK__Q_ROWS];
  mhk_index group = -1;
  for (mhk_index j = 0; j < k; j += each, from += MHK__Q_ROWS * 4, to += each * width) {
    if ((src->k0 + j) / q->group != group) {
      group = (src->k0 + j) / q->group;
      for (mhk_index i = 0; i < rows; i++) s[i] = (mhk_real)mhk__f16_to_f32(scale[group * MHK__Q_ROWS + i]);
    }
    if (src->dtype == MHK_Q8)
      for (mhk_index i = 0; i < rows; i++) {
        const signed char *four = (const signed char *)from + 4 * i;
        to[i] = (mhk_real)four[0] * s[i];
        to[i + width] = (mhk_real)four[1] * s[i];
        to[i + 2 * width] = (mhk_real)four[2] * s[i];
        to[i + 3 * width] = (mhk_real)four[3] * s[i];
      }
    else
      for (mhk_index i = 0; i < rows; i++)
        for (mhk_index at = 0; at < 4; at++) {
          const int both = from[4 * i + at];
          to[i + at * width] = (mhk_real)((both & 15) - 8) * s[i];
          to[i + (at + 4) * width] = (mhk_real)((both >> 4) - 8) * s[i];
        }
  }
}

/* the same as mhk__pack_by from a quantized matrix */
static void MHK__N(mhk__pack_quantized)(mhk_real *dst, mhk_index width, mhk_index rows, mhk_index k, mhk__matrix src) {
  const int whole_chunks = src.col == 1 && src.k0 % 8 == 0 && k % 8 == 0;
  mhk_index part;
  for (mhk_index p = 0; p < rows; p += width, dst += width * k) {
    const mhk_index w = rows - p < width ? rows - p : width;
    for (mhk_index i = 0; whole_chunks && i < w; i += part) { /* the rows of one block at a time */
      const mhk_index n = src.n0 + p + i;
      part = mhk__min(w - i, MHK__Q_ROWS - n % MHK__Q_ROWS);
      MHK__N(mhk__dequantize)(dst + i, width, part, k, &src, n);
    }
    for (mhk_index j = 0; j < k; j++) {
      for (mhk_index i = 0; !whole_chunks && i < w; i++)
        dst[j * width + i] = src.col == 1 ? mhk__q_element(src.q, src.dtype, src.row, src.n0 + p + i, src.k0 + j)
                                          : mhk__q_element(src.q, src.dtype, src.col, src.n0 + j, src.k0 + p + i);
      for (mhk_index i = w; i < width; i++) dst[j * width + i] = 0;
    }
  }
}

/* Packs any matrix into panels and converts stored types on the way: a few columns at a time if
   rows are contiguous. */
static void MHK__N(mhk__pack)(mhk_real *dst, mhk_index width, mhk_index rows, mhk_index k, mhk__matrix src) {
  const mhk_index size = (mhk_index)mhk_dtype_bytes(src.dtype);
  mhk_index n;
  if (mhk__is_quantized(src.dtype)) {
    MHK__N(mhk__pack_quantized)(dst, width, rows, k, src);
    return;
  }
  if (src.dtype == MHK_REAL) {
    MHK__N(mhk__pack_by)(dst, width, rows, k, (const mhk_real *)src.data, src.row, src.col, NULL);
    return;
  }
  for (mhk_index p = 0; p < rows; p += width, dst += width * k) {
    const mhk_index w = rows - p < width ? rows - p : width;
    const char *from = (const char *)src.data + p * src.row * size;
    if (src.col == 1) /* some columns of all rows, converted in the first-level cache and packed from there */
      for (mhk_index j = 0; j < k; j += n) {
        mhk_real wide[(MHK__NR > MHK__MR ? MHK__NR : MHK__MR) * MHK__WIDEN];
        n = mhk__min(k - j, MHK__WIDEN);
        for (mhk_index i = 0; i < w; i++)
          MHK__N(mhk__widen)(n, from + (i * src.row + j) * size, src.dtype, wide + i * MHK__WIDEN);
        MHK__N(mhk__pack_panel)(dst + j * width, width, w, n, wide, MHK__WIDEN, 1, NULL);
      }
    else
      for (mhk_index j = 0; j < k; j++) {
        if (src.row == 1)
          MHK__N(mhk__widen)(w, from + j * src.col * size, src.dtype, dst + j * width);
        else
          for (mhk_index i = 0; i < w; i++)
            dst[j * width + i] = mhk__element(from, src.dtype, i * src.row + j * src.col);
        for (mhk_index i = w; i < width; i++) dst[j * width + i] = 0;
      }
  }
}

/* The register tile: MHK__MR x MHK__NR sums held in registers while k runs. Named variables, so
   that no compiler spills an array. */
#define MHK__EACH2(M) M(0) M(1)
#define MHK__EACH4(M) MHK__EACH2(M) M(2) M(3)
#define MHK__EACH6(M) MHK__EACH4(M) M(4) M(5)
#define MHK__EACH8(M) MHK__EACH6(M) M(6) M(7)
#define MHK__EACH14(M) MHK__EACH8(M) M(8) M(9) M(10) M(11) M(12) M(13)
#define MHK__EACH(rows, M) MHK__JOIN(MHK__EACH, rows)(M)
/* What a tile of 1, 2 or 4 vectors does with row i: sums start, are taken from memory, multiplied
   by f, grow by a number of a times the vectors of b, and are put into c or added to it. */
#define MHK__SUM2(i) MHK__V s##i##a = zero, s##i##b = zero;
#define MHK__TAKE2(i) s##i##a = MHK__LOAD(from + (i) * ldc); s##i##b = MHK__LOAD(from + (i) * ldc + MHK__W);
#define MHK__TIMES2(i) x = MHK__SET(f[(i) * fs]); s##i##a = s##i##a * x; s##i##b = s##i##b * x;
#define MHK__GO2(i) x = MHK__SET(a[(i) * row]); s##i##a = MHK__FMA(x, ba, s##i##a); s##i##b = MHK__FMA(x, bb, s##i##b);
#define MHK__PUT2(i) MHK__STORE(c + (i) * ldc, s##i##a); MHK__STORE(c + (i) * ldc + MHK__W, s##i##b);
#define MHK__B2 ba = MHK__LOAD(b); bb = MHK__LOAD(b + MHK__W);
#define MHK__SUM4(i) MHK__SUM2(i) MHK__V s##i##c = zero, s##i##d = zero;
#define MHK__TAKE4(i) MHK__TAKE2(i) s##i##c = MHK__LOAD(from + (i) * ldc + 2 * MHK__W); \
  s##i##d = MHK__LOAD(from + (i) * ldc + 3 * MHK__W);
#define MHK__TIMES4(i) MHK__TIMES2(i) s##i##c = s##i##c * x; s##i##d = s##i##d * x;
#define MHK__GO4(i) MHK__GO2(i) s##i##c = MHK__FMA(x, bc, s##i##c); s##i##d = MHK__FMA(x, bd, s##i##d);
#define MHK__PUT4(i) MHK__PUT2(i) MHK__STORE(c + (i) * ldc + 2 * MHK__W, s##i##c); \
  MHK__STORE(c + (i) * ldc + 3 * MHK__W, s##i##d);
#define MHK__B4 MHK__B2 bc = MHK__LOAD(b + 2 * MHK__W); bd = MHK__LOAD(b + 3 * MHK__W);
#define MHK__SUM1(i) MHK__V s##i##a = zero;
#define MHK__TAKE1(i) s##i##a = MHK__LOAD(from + (i) * ldc);
#define MHK__TIMES1(i) s##i##a = s##i##a * MHK__SET(f[(i) * fs]);
#define MHK__GO1(i) s##i##a = MHK__FMA(MHK__SET(a[(i) * row]), ba, s##i##a);
#define MHK__PUT1(i) MHK__STORE(c + (i) * ldc, s##i##a);
#define MHK__B1 ba = MHK__LOAD(b);
#define MHK__VARS4 MHK__V x, ba, bb, bc, bd
#define MHK__VARS2 MHK__V x, ba, bb
#define MHK__VARS1 MHK__V ba
#define MHK__PLUS2(i) s##i##a = MHK__LOAD(c + (i) * ldc) + s##i##a; \
  s##i##b = MHK__LOAD(c + (i) * ldc + MHK__W) + s##i##b;
#define MHK__PLUS4(i) MHK__PLUS2(i) s##i##c = MHK__LOAD(c + (i) * ldc + 2 * MHK__W) + s##i##c; \
  s##i##d = MHK__LOAD(c + (i) * ldc + 3 * MHK__W) + s##i##d;
#define MHK__PANELS(what) MHK__JOIN(what, MHK__NV)
/* prefetch c: 3 to 8 % of large products */
#define MHK__WANT_C(i) MHK__PREFETCH_WRITE(c + i * ldc); MHK__PREFETCH_WRITE(c + i * ldc + MHK__NR - 1);
/* one height of the tile; panels of a are always MHK__MR wide */
#define MHK__TILE_OF(name, rows) \
  static void MHK__N(name)(mhk_index k, const mhk_real *MHK__RESTRICT a, const mhk_real *MHK__RESTRICT b, \
    mhk_real *c, mhk_index ldc, int accumulate) { \
    const MHK__V zero = MHK__SET(MHK__R(0)); \
    const mhk_index next = k * MHK__MR; \
    enum { row = 1 }; /* numbers of a lie side by side */ \
    MHK__PANELS(MHK__VARS); \
    MHK__EACH(rows, MHK__PANELS(MHK__SUM)) \
    MHK__EACH(rows, MHK__WANT_C) \
    for (; k > 0; k--, a += MHK__MR, b += MHK__NR) { \
      MHK__PANELS(MHK__B) \
      MHK__PREFETCH(a + next); \
      MHK__EACH(rows, MHK__PANELS(MHK__GO)) \
    } \
    if (accumulate) { MHK__EACH(rows, MHK__PANELS(MHK__PLUS)) } \
    MHK__EACH(rows, MHK__PANELS(MHK__PUT)) \
  }
MHK__TILE_OF(mhk__tile, MHK__MR)
MHK__TILE_OF(mhk__tile_half, MHK__HALF)

/* a tile at the edge of c with m x n numbers */
static void MHK__N(mhk__tile_edge)(mhk_index m, mhk_index n, mhk_index k, const mhk_real *a, const mhk_real *b,
                                   mhk_real *c, mhk_index ldc, int accumulate) {
  mhk_real edge[MHK__MR * MHK__NR];
  if (m <= MHK__HALF)
    MHK__N(mhk__tile_half)(k, a, b, edge, MHK__NR, 0);
  else
    MHK__N(mhk__tile)(k, a, b, edge, MHK__NR, 0);
  for (mhk_index i = 0; i < m; i++)
    for (mhk_index j = 0; j < n; j += MHK__W) {
      MHK__V v = MHK__LOAD(edge + i * MHK__NR + j);
      if (accumulate) v = v + MHK__LOADN(c + i * ldc + j, n - j);
      MHK__STOREN(c + i * ldc + j, v, n - j);
    }
}

static void MHK__N(mhk__product)(mhk_index m, mhk_index n, mhk_index k, const mhk_real *a, const mhk_real *b,
                                 mhk_real *c, mhk_index ldc, int accumulate) {
  for (mhk_index j = 0; j < n; j += MHK__NR)
    for (mhk_index i = 0; i < m; i += MHK__MR) {
      const mhk_index rows = m - i < MHK__MR ? m - i : MHK__MR, width = n - j < MHK__NR ? n - j : MHK__NR;
      const mhk_real *pa = a + i * k, *pb = b + j * k;
      mhk_real *to = c + i * ldc + j;
      if (width == MHK__NR && rows == MHK__MR)
        MHK__N(mhk__tile)(k, pa, pb, to, ldc, accumulate);
      else if (width == MHK__NR && rows == MHK__HALF)
        MHK__N(mhk__tile_half)(k, pa, pb, to, ldc, accumulate);
      else
        MHK__N(mhk__tile_edge)(rows, width, k, pa, pb, to, ldc, accumulate);
    }
}

/* ---- products of operands that need no packing (mhk__block) ---- */

/* MHK__TALL rows by two vectors of sums, or by one, and with many registers by four: fewer loads
   for as many sums. Named variables, as above. */
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
    if (p->a1.at) { \
      row = p->a1.row; \
      col = p->a1.col; \
      for (k = p->k1, a = p->a1.at + i * row, b = p->b1 + j; k > 0; k--, a += col, b += ldb) { \
        MHK__JOIN(MHK__B, v) \
        MHK__EACH(rows, MHK__JOIN(MHK__GO, v)) \
      } \
    } \
    if (p->f) { \
      const mhk_index fs = p->fs; \
      const mhk_real *f = p->f + i * fs; \
      MHK__EACH(rows, MHK__JOIN(MHK__TIMES, v)) \
    } \
    row = p->a2.row; \
    col = p->a2.col; \
    for (k = k1 - k0, a = p->a2.at + k0 * col + i * row, b = p->b2 + k0 * ldb + j; k > 0; k--, a += col, b += ldb) { \
      MHK__JOIN(MHK__B, v) \
      MHK__EACH(rows, MHK__JOIN(MHK__GO, v)) \
    } \
    MHK__EACH(rows, MHK__JOIN(MHK__PUT, v)) \
  }
#ifdef MHK__HAS_BLOCKS_OF_4
MHK__BLOCK_OF(mhk__block_tall4, MHK__TALL, 4, MHK__VARS4)
MHK__BLOCK_OF(mhk__block_low4, 4, 4, MHK__VARS4)
#endif
MHK__BLOCK_OF(mhk__block_tall2, MHK__TALL, 2, MHK__VARS2)
MHK__BLOCK_OF(mhk__block_tall1, MHK__TALL, 1, MHK__VARS1)
MHK__BLOCK_OF(mhk__block_low2, 4, 2, MHK__VARS2)
MHK__BLOCK_OF(mhk__block_low1, 4, 1, MHK__VARS1)

#ifdef MHK__HAS_PREFETCH
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
#ifdef MHK__HAS_BLOCKS_OF_4
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

/* c (m,n) = f (c0 + a1 b1) + a b with c0, a1 and f of the block, which are then reset; a (m,k) and
   b (k,n) are row-major, rows of c are ldc apart */
static void MHK__N(mhk__multiply)(mhk__block *p, mhk_index m, mhk_index n, mhk_index k, mhk__operand a, mhk__operand b,
                                  mhk_real *c, mhk_index ldc, int part) {
  p->k2 = k;
  p->a2 = a;
  p->b2 = b.at;
  p->ldb = b.row;
  p->c = c;
  p->ldc = ldc;
  MHK__N(mhk__blocks)(p, m, n, part);
  p->c0 = p->a1.at = p->f = NULL;
}

/* Returns whether rows divide into tiles of MHK__TALL and 4 (see mhk__blocks) and columns into
   vectors, so that c needs no extra room. */
static int MHK__N(mhk__fits)(mhk_index m, mhk_index n) {
  const mhk_index rest = m % MHK__TALL;
  return n % MHK__W == 0 && (rest == 0 || rest == 4 || (m >= MHK__TALL && rest + MHK__TALL == 8));
}

static int MHK__N(mhk__product_plain)(mhk_index m, mhk_index n, mhk_index k, mhk__operand a, mhk__operand b,
                                      mhk_real *c, mhk_index ldc, int accumulate) {
  mhk__block p;
  if (!MHK__N(mhk__fits)(m, n)) return 0;
  memset(&p, 0, sizeof p);
  if (accumulate) p.c0 = c;
  MHK__N(mhk__multiply)(&p, m, n, k, a, b, c, ldc, mhk__whole);
  return 1;
}

/* n rows of w numbers, ld apart, to rows of MHK__LD(w), each times its factor if there are any; the
   padding becomes zero */
static void MHK__N(mhk__rows_in)(mhk_index n, mhk_index w, const mhk_real *src, mhk_index ld, const mhk_real *f,
                                 mhk_real *dst) {
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

/* Both at once, plain and times f: rows that are a multiple of the page size apart share few lines
   of the nearest cache, and may be evicted before a second read. */
static void MHK__N(mhk__rows_in_twice)(mhk_index n, mhk_index w, const mhk_real *src, mhk_index ld, const mhk_real *f,
                                       mhk_real *dst, mhk_real *scaled) {
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

/* the same transposed: w rows of MHK__LD(n) */
static void MHK__N(mhk__transposed_in)(mhk_index n, mhk_index w, const mhk_real *src, mhk_index ld, mhk_real *dst) {
  const mhk_index wide = MHK__LD(n);
  mhk_index i, j = 0;
#ifdef MHK__HAS_TRANSPOSE
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

/* n padded rows of w numbers, transposed: to w rows of n */
static void MHK__N(mhk__transposed_out)(mhk_index n, mhk_index w, const mhk_real *src, mhk_real *dst) {
  const mhk_index ld = MHK__LD(w);
  mhk_index i = 0, j;
#ifdef MHK__HAS_TRANSPOSE
  for (; i + MHK__W <= n; i += MHK__W) {
    for (j = 0; j + MHK__W <= w; j += MHK__W)
      MHK__N(mhk__transpose)(src + i * ld + j, ld, MHK__W, dst + j * n + i, n, MHK__W);
    for (; j < w; j++) {
      for (mhk_index l = i; l < i + MHK__W; l++) dst[j * n + l] = src[l * ld + j];
    }
  }
#endif
  for (; i < n; i++)
    for (j = 0; j < w; j++) dst[j * n + i] = src[i * ld + j];
}

/* n padded rows of w numbers to rows ld apart, stored or added: row i of src times f[i], or plus
   f[i] times row i of plus */
static void MHK__N(mhk__rows_out)(mhk_index n, mhk_index w, const mhk_real *src, const mhk_real *f,
                                  const mhk_real *plus, mhk_real *dst, mhk_index ld, int add) {
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
/* transposes one square of MHK__W */
static inline void MHK__N(mhk__transpose_tile)(const mhk_real *src, mhk_index ld, mhk_real *dst, mhk_index wide) {
#ifdef MHK__HAS_TRANSPOSE
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
    mhk_real transposed[MHK__W * MHK__W];
    MHK__N(mhk__transpose_tile)(part, MHK__W, transposed, MHK__W);
    MHK__V sum = MHK__LOAD(transposed);
    for (mhk_index l = 1; l < MHK__W; l++) sum = sum + MHK__LOAD(transposed + l * MHK__W);
    MHK__STOREN(out + i, sum, rows);
  }
}

/* out[i] = sum over j of x_ij y_ij (- u_ij v_ij if u), all rows padded with zeros */
static void MHK__N(mhk__row_dots)(mhk_index n, mhk_index w, const mhk_real *x, const mhk_real *y, const mhk_real *u,
                                  const mhk_real *v, mhk_real *out) {
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

/* gelu_new(x) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3): the tanh form without its
   cancellation */
static inline MHK__V MHK__N(mhk__vgelu_gate)(MHK__V x) {
  return MHK__N(mhk__vsigmoid)(x * MHK__FMA(x * x, MHK__SET(MHK__R(2 * 0.7978845608028654 * 0.044715)),
                                            MHK__SET(MHK__R(2 * 0.7978845608028654))));
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
    /* d(2u)/dx */
    const MHK__V slope =
        MHK__FMA(v * v, MHK__SET(MHK__R(6 * 0.7978845608028654 * 0.044715)), MHK__SET(MHK__R(2 * 0.7978845608028654)));
    const MHK__V d = s * MHK__FMA(v * slope, one - s, one);
    MHK__STOREN(dx + i, d * MHK__LOADN(dy + i, n - i), n - i);
  }
}
#endif /* MOHAWK_NO_TRAINING */

static void MHK__N(mhk__epilogue)(mhk_index m, mhk_index n, mhk_real *c, mhk_index ldc, mhk_index offset,
                                   const mhk__epilogue *e, mhk_index column) {
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

/* Sums of products of rows of w (n,k) with m rows of x. Four cursors in w, each running straight
   through its share of the rows, two where registers are few: it takes that many to read at full
   rate, and lines asked for ahead carry them over page borders. xs holds x in the order in which
   pairs of vectors of w are loaded; what is left of k after the pairs is read from x. Every sum is
   made in the same order, wherever its row stands. */
#define MHK__FEW_ROWS(name, type, pair, number, m, each_row, cursors, each_cursor) \
  static void MHK__N(name)(mhk_index n, mhk_index k, const mhk_real *x, const mhk_real *xs, const type *w, \
    mhk_real *y, mhk_index ldy) { \
    const mhk_index whole = k / (2 * MHK__W) * (2 * MHK__W), each = (n + cursors - 1) / cursors, ahead = (m > 1 ? \
        2048 : 1024) / sizeof *w; \
    mhk_index t, p, r, i; \
    for (t = 0; t < each; t++) { \
      const MHK__V zero = MHK__SET(MHK__R(0)); \
      MHK__V wa, wb; \
      mhk_real sum[cursors][m]; \
      each_cursor(MHK__CURSOR_START, type, each_row) \
      for (p = 0; p < whole; p += 2 * MHK__W) { each_cursor(MHK__CURSOR_STEP, pair, each_row) } \
      each_cursor(MHK__CURSOR_END, type, each_row) \
      for (r = 0; r < cursors && t + r * each < n; r++) \
        for (i = 0; i < m; i++) { \
          for (p = whole; p < k; p++) sum[r][i] += number(w[(t + r * each) * k + p]) * x[i * k + p]; \
          y[i * ldy + t + r * each] = sum[r][i]; \
        } \
    } \
  }
#define MHK__CURSOR_START(r, type, each_row) \
  const type *w##r = w + (t + r * each < n ? t + r * each : t) * k; \
  each_row(MHK__SUM_START, r)
#define MHK__CURSOR_STEP(r, pair, each_row) \
  if (sizeof *w * 2 * MHK__W >= 32) MHK__PREFETCH(w##r + p + ahead); \
  if (sizeof *w * 2 * MHK__W > 64) MHK__PREFETCH(w##r + p + ahead + MHK__W); \
  pair(w##r + p, wa, wb) \
  each_row(MHK__SUM_STEP, r)
#define MHK__CURSOR_END(r, type, each_row) each_row(MHK__SUM_END, r)
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
#ifdef MHK__HAS_32_REGISTERS
#define MHK__FEW_ROWS4(name, type, pair, number) MHK__FEW_ROWS(name, type, pair, number, 4, MHK__ROWS4, 4, \
  MHK__FOUR_STREAMS)
#else
#define MHK__FEW_ROWS4(name, type, pair, number) MHK__FEW_ROWS(name, type, pair, number, 4, MHK__ROWS4, 3, \
  MHK__THREE_STREAMS)
#endif
#define MHK__FEW_ROWS_OF(name, type, pair, number) \
  MHK__FEW_ROWS(MHK__JOIN2(name, 1), type, pair, number, 1, MHK__ROWS1, 4, MHK__FOUR_STREAMS) \
  MHK__FEW_ROWS(MHK__JOIN2(name, 2), type, pair, number, 2, MHK__ROWS2, 4, MHK__FOUR_STREAMS) \
  MHK__FEW_ROWS(MHK__JOIN2(name, 3), type, pair, number, 3, MHK__ROWS3, 4, MHK__FOUR_STREAMS) \
  MHK__FEW_ROWS4(MHK__JOIN2(name, 4), type, pair, number) \
  static void MHK__N(name)(mhk_index m, mhk_index n, mhk_index k, const mhk_real *x, const mhk_real *xs, \
    const type *w, mhk_real *y, mhk_index ldy) { \
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
/* both numbers of each 32-bit word at once: one load and two cheap operations for two vectors, the
   even numbers and the odd ones */
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
static void MHK__N(mhk__rows_times)(mhk_index m, mhk_index n, mhk_index k, const mhk_real *x, const void *w,
                                    mhk_dtype dtype, mhk_real *y, mhk_index ldy, mhk_real *work) {
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
    MHK__N(mhk__widen)(k, (const char *)w + j * k * (mhk_index)mhk_dtype_bytes(dtype), dtype, work);
    MHK__N(mhk__few_rows)(m, 1, k, x, x, work, y + j, ldy);
  }
}

/* ---- rows against quantized weights: with AVX-512 by the kernels of AVX2, or by those for
   AVX512-VNNI further down */

#if defined(MHK__HAS_DECODING) || defined(MHK__HAS_BYTE_DOTS)
/* Compilers vectorize loops of 32 on their own. A number is not finite if its bits, without the
   sign, are at least those of infinity. */
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

#ifdef MHK__HAS_BYTE_DOTS
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

#ifdef MHK__HAS_DECODING
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

#if MHK__PASS != MHK__SCALAR && !defined(MOHAWK_DOUBLE)
/* Multiplies 16-bit words, made from the four bytes of a row by shifts, with pairs of x: the same
   integers as in the plain loop below. The sum of two products of words of AVX-VNNI (VPDPWSSD) was
   not faster than multiplication and addition of AVX2 on Sapphire Rapids: it runs on fewer ports
   and has a longer latency. */
#define MHK__Q_SET MHK__DOTS
#define MHK__DOTS_LANES MHK__W
#define MHK__DOTS_REAL MHK__V
#define MHK__DOTS_SPREAD(x) MHK__SET(x)
#define MHK__DOTS_FMA(a, b, c) MHK__FMA(a, b, c)
#define MHK__DOTS_PUT(p, v) MHK__STORE(p, v)
#define MHK__DOTS_SCALES(p) MHK__LOAD_F16(p)
#if MHK__PASS == MHK__AVX2
#define MHK__DOTS_INT __m256i
#define MHK__DOTS_LOAD(p) _mm256_loadu_si256((const __m256i *)(const void *)(p))
#define MHK__I_SET(x) _mm256_set1_epi32(x)
#define MHK__I_AND(a, b) _mm256_and_si256(a, b)
#define MHK__I_LEFT(a, n) _mm256_slli_epi16(a, n)
#define MHK__I_RIGHT(a, n) _mm256_srai_epi16(a, n)
#define MHK__I_DOWN(a, n) _mm256_srli_epi16(a, n)
#define MHK__I_DOT(sum, a, b) _mm256_add_epi32(sum, _mm256_madd_epi16(a, b))
#define MHK__DOTS_SUM __m256i
#define MHK__DOTS_NONE(start) _mm256_setzero_si256()
#define MHK__DOTS_TOTAL(d, start) _mm256_cvtepi32_ps(_mm256_add_epi32(d, MHK__I_SET(start)))
#elif MHK__PASS == MHK__NEON
#define MHK__DOTS_INT int32x4_t
#define MHK__DOTS_LOAD(p) vreinterpretq_s32_u8(vld1q_u8(p))
#define MHK__I_SET(x) vdupq_n_s32(x)
#define MHK__I_AND(a, b) vandq_s32(a, b)
#define MHK__I_LEFT(a, n) vreinterpretq_s32_s16(vshlq_n_s16(vreinterpretq_s16_s32(a), n))
#define MHK__I_RIGHT(a, n) vreinterpretq_s32_s16(vshrq_n_s16(vreinterpretq_s16_s32(a), n))
#define MHK__I_DOWN(a, n) vreinterpretq_s32_u16(vshrq_n_u16(vreinterpretq_u16_s32(a), n))
/* adds products of words to their neighbors once per group, not at every step */
#define MHK__I_DOT(sum, a, b) mhk__neon_dot(sum, vreinterpretq_s16_s32(a), vreinterpretq_s16_s32(b))
#define MHK__DOTS_SUM int32x4x2_t
#define MHK__DOTS_NONE(start) {{vdupq_n_s32(0), vdupq_n_s32(0)}}
#define MHK__DOTS_TOTAL(d, start) vcvtq_f32_s32(vaddq_s32(vpaddq_s32(d.val[0], d.val[1]), MHK__I_SET(start)))
static inline int32x4x2_t mhk__neon_dot(int32x4x2_t sum, int16x8_t a, int16x8_t b) {
  sum.val[0] = vmlal_s16(sum.val[0], vget_low_s16(a), vget_low_s16(b));
  sum.val[1] = vmlal_high_s16(sum.val[1], a, b);
  return sum;
}
#else
#define MHK__DOTS_INT v128_t
#define MHK__DOTS_LOAD(p) wasm_v128_load(p)
#define MHK__I_SET(x) wasm_i32x4_splat(x)
#define MHK__I_AND(a, b) wasm_v128_and(a, b)
#define MHK__I_LEFT(a, n) wasm_i16x8_shl(a, n)
#define MHK__I_RIGHT(a, n) wasm_i16x8_shr(a, n)
#define MHK__I_DOWN(a, n) wasm_u16x8_shr(a, n)
#define MHK__I_DOT(sum, a, b) wasm_i32x4_add(sum, wasm_i32x4_dot_i16x8(a, b))
#define MHK__DOTS_SUM v128_t
#define MHK__DOTS_NONE(start) wasm_i32x4_splat(0)
#define MHK__DOTS_TOTAL(d, start) ((MHK__V)wasm_f32x4_convert_i32x4(wasm_i32x4_add(d, MHK__I_SET(start))))
#endif
/* two integers of x, in every lane */
static inline MHK__DOTS_INT MHK__N(mhk__q_pair)(const signed char *x) {
  int32_t both;
  memcpy(&both, x, sizeof both);
  return MHK__I_SET(both);
}
#define MHK__DOTS_TARGET
#define MHK__DOTS_OFFSET_Q8 0
#define MHK__DOTS_OFFSET_Q4 1
#define MHK__DOTS_STEP_Q8 4
#define MHK__DOTS_STEP_Q4 8
#define MHK__DOTS_TURN_Q8(R, V) V(MHK__Q_LINE_Q8, R, 0)
#define MHK__DOTS_TURN_Q4(R, V) V(MHK__Q_LINE_Q4, R, 0)
#define MHK__DOTS_PARTS_Q8 const MHK__DOTS_INT w0 = MHK__I_RIGHT(MHK__I_LEFT(w, 8), 8), w1 = MHK__I_RIGHT(w, 8);
#define MHK__DOTS_PARTS_Q4 \
  const MHK__DOTS_INT low = MHK__I_SET(0x000F000F), w0 = MHK__I_AND(w, low), w1 = MHK__I_AND(MHK__I_DOWN(w, 8), low); \
  const MHK__DOTS_INT w2 = MHK__I_AND(MHK__I_DOWN(w, 4), low), w3 = MHK__I_DOWN(w, 12);
#define MHK__DOTS_DOT(r, v, part, at) \
  d##r##v = MHK__I_DOT(d##r##v, part, MHK__N(mhk__q_pair)(x + (r) * 2 * K + 2 * (at)));
#define MHK__DOTS_ROW_Q8(r, v, n) MHK__DOTS_DOT(r, v, w0, 0) MHK__DOTS_DOT(r, v, w1, 2)
#define MHK__DOTS_ROW_Q4(r, v, n) MHK__DOTS_ROW_Q8(r, v, n) MHK__DOTS_DOT(r, v, w2, 4) MHK__DOTS_DOT(r, v, w3, 6)
#if MHK__W == 8
MHK__Q_TILE(MHK__N(mhk__q8_1), Q8, 1, MHK__Q_V2, 1, MHK__Q_GROUP)
MHK__Q_TILE(MHK__N(mhk__q8_2), Q8, 2, MHK__Q_V2, 1, MHK__Q_GROUP)
MHK__Q_TILE(MHK__N(mhk__q8_4), Q8, 4, MHK__Q_V2, 1, MHK__Q_GROUP)
MHK__Q_TILE(MHK__N(mhk__q4_1), Q4, 1, MHK__Q_V2, 1, MHK__Q_GROUP)
MHK__Q_TILE(MHK__N(mhk__q4_2), Q4, 2, MHK__Q_V2, 1, MHK__Q_GROUP)
MHK__Q_TILE(MHK__N(mhk__q4_4), Q4, 4, MHK__Q_V2, 1, MHK__Q_GROUP)
static void MHK__N(mhk__q_times)(const mhk__q_args *a, mhk_index first, mhk_index last) {
  if (a->dtype == MHK_Q8)
    mhk__q_tiles(a, first, last, MHK__N(mhk__q8_1), MHK__N(mhk__q8_2), MHK__N(mhk__q8_4), NULL);
  else
    mhk__q_tiles(a, first, last, MHK__N(mhk__q4_1), MHK__N(mhk__q4_2), MHK__N(mhk__q4_4), NULL);
}
#else /* registers with fewer lanes cannot hold the sums of four rows */
MHK__Q_TILE(MHK__N(mhk__q8_1), Q8, 1, MHK__Q_V4, 1, MHK__Q_GROUP)
MHK__Q_TILE(MHK__N(mhk__q8_2), Q8, 2, MHK__Q_V4, 1, MHK__Q_GROUP)
MHK__Q_TILE(MHK__N(mhk__q4_1), Q4, 1, MHK__Q_V4, 1, MHK__Q_GROUP)
MHK__Q_TILE(MHK__N(mhk__q4_2), Q4, 2, MHK__Q_V4, 1, MHK__Q_GROUP)
static void MHK__N(mhk__q_times)(const mhk__q_args *a, mhk_index first, mhk_index last) {
  if (a->dtype == MHK_Q8)
    mhk__q_tiles(a, first, last, MHK__N(mhk__q8_1), MHK__N(mhk__q8_2), NULL, NULL);
  else
    mhk__q_tiles(a, first, last, MHK__N(mhk__q4_1), MHK__N(mhk__q4_2), NULL, NULL);
}
#endif
#else
/* Dot products of one group of x with that of the rows of a block: integers. Four of x lie in the
   order 0 2 1 3. */
static void MHK__N(mhk__q_group)(const signed char *p, const int16_t *x, mhk_index group, mhk_dtype dtype,
                                 int32_t dot[MHK__Q_ROWS]) {
  const mhk_index each = dtype == MHK_Q8 ? 4 : 8;
  for (mhk_index j = 0; j < group; j += each, x += each, p += 4 * MHK__Q_ROWS)
    for (mhk_index r = 0; r < MHK__Q_ROWS; r++) {
      const signed char *w = p + 4 * r;
      if (dtype == MHK_Q8)
        dot[r] += w[0] * x[0] + w[1] * x[2] + w[2] * x[1] + w[3] * x[3];
      else
        dot[r] += (w[0] & 15) * x[0] + (w[1] & 15) * x[2] + (w[2] & 15) * x[1] + (w[3] & 15) * x[3] +
                  ((w[0] >> 4) & 15) * x[4] + ((w[1] >> 4) & 15) * x[6] + ((w[2] >> 4) & 15) * x[5] +
                  ((w[3] >> 4) & 15) * x[7];
    }
}

static void MHK__N(mhk__q_times)(const mhk__q_args *a, mhk_index first, mhk_index last) {
  const mhk_index K = a->K, group = a->q->group, groups = K / group, bytes = mhk__q_block_bytes(a->dtype, K);
  for (mhk_index b = first; b < last; b++)
    for (mhk_index i = 0; i < a->M; i++) {
      const signed char *p = (const signed char *)a->q->q + b * bytes;
      const uint16_t *scale = a->q->scale + b * groups * MHK__Q_ROWS;
      float sums[MHK__Q_ROWS];
      for (mhk_index r = 0; r < MHK__Q_ROWS; r++) sums[r] = 0;
      for (mhk_index g = 0; g < groups; g++) {
        int32_t dot[MHK__Q_ROWS];
        const float by = a->scale[i * groups + g];
        for (mhk_index r = 0; r < MHK__Q_ROWS; r++) dot[r] = a->dtype == MHK_Q8 ? 0 : a->offset[i * groups + g];
        MHK__N(mhk__q_group)(p + g * (bytes / groups), a->digits + i * K + g * group, group, a->dtype, dot);
        for (mhk_index r = 0; r < MHK__Q_ROWS; r++) sums[r] += (float)dot[r] * (mhk__f16_to_f32(*scale++) * by);
      }
      mhk__q_store(a, b, i, 1, sums);
    }
}
#endif
#endif
#ifndef MOHAWK_NO_TRAINING
/* Products of bfloat16 numbers without hardware for them: packed as usual, then rounded in place.
   The numbers of a pair along k are swapped, because VDPBF16PS adds the second product first. */
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

static void MHK__N(mhk__narrow_product)(mhk_index m, mhk_index n, mhk_index k, const void *a, const void *b,
                                        mhk_real *c, mhk_index ldc, int accumulate) {
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
  } else if (m->data) /* NULL while work memory is only counted */
    at.data = (const char *)m->data + (i * m->row + j * m->col) * (mhk_index)mhk_dtype_bytes(m->dtype);
  return at;
}

static mhk__matrix mhk__mat_transposed(mhk__matrix m) {
  const mhk_index row = m.row;
  m.row = m.col;
  m.col = row;
  return m;
}

/* A weight (N,K), or its transpose (K,N) for products. */
static mhk__matrix mhk__mat_weight(const mhk_tensor *w, int transposed) {
  mhk__matrix m = mhk__mat(w->data, w->dtype, w->shape[1], 1);
  if (w->quantized) {
    m.q = w->quantized;
    m.n0 = w->base_offset / w->shape[1];
  }
  return transposed ? mhk__mat_transposed(m) : m;
}

typedef struct mhk__gemm_args {
  mhk_index M, N, K, kc, nc;    /* a block of B is kc x nc */
  mhk_index i0, m, k0, k;       /* rows and part of K of this round: the packed part of A */
  mhk_index rows;               /* per task; all divide into panels */
  mhk__matrix a, b;
  mhk_real *c, *packed;
  mhk_index ldc;
  const mhk__epilogue *e;
} mhk__gemm_args;

static int mhk__epilogue_works(const mhk__epilogue *e) { return e && (e->bias || e->residual || e->before || e->gelu); }

enum { MHK__PACK_COLUMNS = 64 };
/* rows of A, MHK__GEMM_K long, that stay in the second-level cache; 168 are not faster */
enum { MHK__ROW_BLOCK = 84 };
/* with 256 and 384, the sums in C cost 2 to 8 %; with 768, the blocks exceed the caches */
enum { MHK__GEMM_K = 512 };
enum { MHK__GEMM_N = 256 };
enum { MHK__GEMM_M = 2048 }; /* rows of A packed at once */

/* packs rows of A for one block of k: panels are contiguous, and so are blocks of k */
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

/* Computes some columns of some of the packed rows. Packs its own block of B, which stays in the
   second-level cache. */
static void mhk__gemm_block(void *arg, mhk_index task, int worker) {
  const mhk__job *job = (const mhk__job *)arg;
  const mhk__gemm_args *g = (const mhk__gemm_args *)job->args;
  const mhk__kernels *ks = job->ctx->kernels;
  const mhk_index parts = (g->m + g->rows - 1) / g->rows, j0 = task / parts * g->nc, n = mhk__min(g->nc, g->N - j0);
  const mhk_index from = task % parts * g->rows, to = mhk__min(g->m, from + g->rows),
                  step = MHK__ROW_BLOCK / ks->mr * ks->mr;
  mhk_real *pb = job->work + worker * job->each;
  for (mhk_index k0 = 0; k0 < g->k; k0 += g->kc) {
    const mhk_index k = mhk__min(g->kc, g->k - k0);
    const mhk_real *pa = g->packed + mhk__up(g->m, ks->mr) * k0;
    ks->pack(pb, ks->nr, n, k, mhk__mat_transposed(mhk__mat_from(&g->b, g->k0 + k0, j0)));
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
  ks->rows_times(g->M, n, g->K, (const mhk_real *)g->a.data, mhk__mat_from(&g->b, 0, j).data, g->b.dtype, g->c + j,
                 g->ldc, job->work + worker * job->each);
  if (mhk__epilogue_works(g->e)) ks->epilogue(g->M, n, g->c + j, g->ldc, j, g->e, j);
}

#ifndef MOHAWK_DOUBLE
typedef struct mhk__q_job {
  mhk__q_args args;
  const mhk__epilogue *e;
  mhk_index step, first; /* blocks per task; first row of this round */
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
  const mhk_index first = a->n0 / MHK__Q_ROWS + task * g->step,
                  last = mhk__min(first + g->step, mhk__q_blocks(a->n0 + a->N));
  const mhk_index from = mhk__max(0, first * MHK__Q_ROWS - a->n0),
                  n = mhk__min(a->N, last * MHK__Q_ROWS - a->n0) - from;
  (void)worker;
  ks->q_times(a, first, last);
  if (mhk__epilogue_works(g->e)) ks->epilogue(a->M, n, a->y + from, a->ldy, g->first * a->ldy + from, g->e, from);
}

enum { MHK__Q_ROUND = 512 }; /* rows of x converted to integers at once; the weights are read again for the next rows */

/* c (M,N) = x (M,K) times the transpose of N quantized rows of w */
static void mhk__q_gemm(mhk_context *ctx, mhk_index M, mhk_index N, mhk_index K, const mhk_real *x, mhk__matrix w,
                        mhk_real *c, mhk_index ldc, const mhk__epilogue *e) {
  const mhk__mark mark = mhk__scratch_mark(ctx);
  const mhk_index most = mhk__min(M, MHK__Q_ROUND), blocks = mhk__q_blocks(w.n0 + N) - w.n0 / MHK__Q_ROWS,
                  bytes = mhk__q_block_bytes(w.dtype, K);
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
  /* every task reads many rows again */
  g.step = M > 8 ? mhk__max(4, 262144 / bytes) : mhk__max(1, 65536 / bytes);
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

static void mhk__gemm(mhk_context *ctx, mhk_index M, mhk_index N, mhk_index K, mhk__matrix a, mhk__matrix b,
                      mhk_real *c, mhk_index ldc, const mhk__epilogue *e);

/* mhk__gemm for a b whose rows from `have` are not quantized: two products, either adjacent or
   added */
static void mhk__gemm_mixed(mhk_context *ctx, mhk_index M, mhk_index N, mhk_index K, mhk__matrix a, mhk__matrix b,
                            mhk_real *c, mhk_index ldc, const mhk__epilogue *e, mhk_index have) {
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

/* up to this many rows it is faster to read the weights, four rows at a time, than to pack them */
enum { MHK__FEW = 8 };

/* c (M,N) = a (M,K) b (K,N), then the epilogue (may be NULL). c's rows are ldc apart. b may be
   quantized, a not. */
static void mhk__gemm(mhk_context *ctx, mhk_index M, mhk_index N, mhk_index K, mhk__matrix a, mhk__matrix b,
                      mhk_real *c, mhk_index ldc, const mhk__epilogue *e) {
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
    if (M <= ks->q_rows && b.row == 1 && a.col == 1 && (a.row == K || M == 1) && a.dtype == MHK_REAL &&
        !(e && e->accumulate)) {
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
  if (M <= MHK__FEW && !b.q && b.row == 1 && b.col == K && a.col == 1 && (a.row == K || M == 1) &&
      a.dtype == MHK_REAL && !(e && e->accumulate)) {
    g.nc = mhk__max(16, 262144 / (K * M));
    mhk__run(ctx, &g, (N + g.nc - 1) / g.nc, 0, (M + 1) * K, (double)M * (double)N * (double)K, mhk__gemm_few);
    return;
  }
  /* A is packed once, in rounds of at most 4 MiB that stay in the last cache. B is packed by the
     task that uses it, in 16 tasks or more if there is enough work. A longer kc reads and writes C
     less often, a shorter one leaves more room in the caches. Blocks begin at multiples of 64, like
     groups of quantized weights. */
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
      mhk__run(ctx, &g, (g.k + g.kc - 1) / g.kc * ((g.m + step - 1) / step), 0, 1, (double)g.m * (double)g.k,
               mhk__gemm_pack);
      mhk__run(ctx, &g, n_columns * ((g.m + g.rows - 1) / g.rows), 0, mhk__up(mhk__min(g.nc, N), ks->nr) * g.kc,
               (double)g.m * (double)N * (double)g.k, mhk__gemm_block);
    }
  }
  mhk__scratch_rewind(ctx, mark);
}
#ifndef MOHAWK_NO_TRAINING
/* The same with both operands rounded to bfloat16. If there is hardware for it, packed numbers are
   half as large and blocks of B are larger. */
typedef struct mhk__narrow_args {
  mhk_index M, N, K, mc, nc, j0, n; /* columns j0..j0+n of this round */
  mhk__matrix a, b;
  mhk_real *c;
  unsigned char *packed;
  mhk_index ldc;
  const mhk__epilogue *e;
} mhk__narrow_args;

enum { MHK__NARROW_K = 512 }; /* numbers of a block along k; every kr divides it */

/* bytes of packed rows (or columns) x k, rows counted in whole tiles */
static mhk_index mhk__narrow_bytes(const mhk__narrow *u, mhk_index rows, mhk_index k) {
  return rows * mhk__up(k, u->kr) * u->size;
}

static void mhk__narrow_columns(void *arg, mhk_index task, int worker) {
  const mhk__job *job = (const mhk__job *)arg;
  const mhk__narrow_args *g = (const mhk__narrow_args *)job->args;
  const mhk__narrow *u = &job->ctx->kernels->narrow;
  const mhk_index step = mhk__up(MHK__PACK_COLUMNS, u->nr), groups = (g->n + step - 1) / step;
  const mhk_index k0 = task / groups * MHK__NARROW_K, j = task % groups * step, k = mhk__min(MHK__NARROW_K, g->K - k0);
  (void)worker;
  u->pack_b(g->packed + mhk__narrow_bytes(u, mhk__up(g->n, u->nr), k0) + mhk__narrow_bytes(u, j, k),
            mhk__min(step, g->n - j), k, mhk__mat_transposed(mhk__mat_from(&g->b, k0, g->j0 + j)));
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
    u->product(m, g->n, k, pa, g->packed + mhk__narrow_bytes(u, mhk__up(g->n, u->nr), k0), c, g->ldc,
               k0 > 0 || (g->e && g->e->accumulate));
  }
  if (mhk__epilogue_works(g->e)) ks->epilogue(m, g->n, c, g->ldc, i0 * g->ldc + g->j0, g->e, g->j0);
}

/* c (M,N) = a b of rounded operands. Products with few rows or quantized weights use full
   precision. */
static void mhk__gemm_narrow(mhk_context *ctx, mhk_index M, mhk_index N, mhk_index K, mhk__matrix a, mhk__matrix b,
                             mhk_real *c, mhk_index ldc, const mhk__epilogue *e) {
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
  g.packed = (unsigned char *)mhk__scratch(
      ctx, mhk__size3(ctx, g.nc, mhk__up(K, u->kr), 1) > 0 ? mhk__narrow_bytes(u, g.nc, K) : 0, 1);
  for (; g.packed && g.j0 < N && ctx->result == MHK_OK; g.j0 += g.n) {
    const mhk_index blocks = (K + MHK__NARROW_K - 1) / MHK__NARROW_K, step = mhk__up(MHK__PACK_COLUMNS, u->nr);
    g.n = mhk__min(g.nc, N - g.j0);
    mhk__run(ctx, &g, blocks * ((g.n + step - 1) / step), 0, 1, (double)g.n * (double)K, mhk__narrow_columns);
    mhk__run(ctx, &g, (M + g.mc - 1) / g.mc, 0, mhk__narrow_bytes(u, g.mc, MHK__NARROW_K) / real,
             (double)M * (double)g.n * (double)K, mhk__narrow_rows);
  }
  mhk__scratch_rewind(ctx, mark);
}

/* Many small products, one task each, so threads synchronize once. Matrix i of the batch starts i *
   step_x elements further. */
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
  if (g->b.col == 1 &&
      ks->product_plain(g->M, g->N, g->K,
                        mhk__strided((const mhk_real *)g->a.data + task * g->step_a, g->a.row, g->a.col),
                        mhk__in_rows((const mhk_real *)g->b.data + task * g->step_b, g->b.row),
                        g->c + task * g->step_c, g->ldc, g->accumulate))
    return;
  ks->pack(pa, ks->mr, g->M, g->K,
           mhk__mat((const mhk_real *)g->a.data + task * g->step_a, MHK_REAL, g->a.row, g->a.col));
  ks->pack(pb, ks->nr, g->N, g->K,
           mhk__mat((const mhk_real *)g->b.data + task * g->step_b, MHK_REAL, g->b.col, g->b.row));
  ks->product(g->M, g->N, g->K, pa, pb, g->c + task * g->step_c, g->ldc, g->accumulate);
}

/* c_i = or += a_i b_i for each i of the batch, all of dtype MHK_REAL */
static void mhk__gemm_batch(mhk_context *ctx, mhk_index batch, const mhk__batch_args *g) {
  mhk__epilogue e;
  if (batch > 1 && g->K > 0 && (g->M + g->N) * g->K <= 262144) {
    mhk__run(ctx, g, batch, 0, (mhk__padded(g->M) + mhk__padded(g->N)) * g->K,
             (double)batch * (double)(g->M * g->N) * (double)g->K, mhk__batch_task);
    return;
  }
  memset(&e, 0, sizeof e);
  e.accumulate = g->accumulate;
  for (mhk_index i = 0; i < batch; i++)
    mhk__gemm(ctx, g->M, g->N, g->K,
              mhk__mat((const mhk_real *)g->a.data + i * g->step_a, MHK_REAL, g->a.row, g->a.col),
              mhk__mat((const mhk_real *)g->b.data + i * g->step_b, MHK_REAL, g->b.row, g->b.col), g->c + i * g->step_c,
              g->ldc, &e);
}
#endif /* MOHAWK_NO_TRAINING */
#endif /* MOHAWK_IMPLEMENTATION */

/* =================================================================================================
   TENSORS: types, shapes, parameters                                                      >>tensors
   ============================================================================================== */

#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
/* "(2,37,32)" */
static const char *mhk__shape_text(int rank, const mhk_index *shape, char *out, size_t capacity) {
  size_t n = 0;
  if (capacity < 3) return "";
  out[n++] = '(';
  for (int i = 0; i < rank && n + 24 < capacity; i++)
    n += mhk__print(out + n, capacity - n, i ? ",%lld" : "%lld", (long long)shape[i]);
  out[n++] = ')';
  out[n] = 0;
  return out;
}
#ifndef MOHAWK_NO_TRAINING
/* Sets everything except data. Returns 0 with an error if the shape is invalid. The product of the
   nonzero axes must fit too, so any product of axes fits. Empty tensors leave room for what ops add
   to a shape. */
static int mhk__shape_set(mhk_context *ctx, mhk_tensor *x, int rank, const mhk_index *shape) {
  const mhk_index most = PTRDIFF_MAX / (mhk_index)sizeof(double);
  mhk_index count = 1, empty = 0;
  if (rank < 0 || rank > MHK_MAX_RANK)
    return mhk__no(ctx, MHK_ERROR_SHAPE, "a tensor cannot have rank %d: ranks are 0 to %d", rank, MHK_MAX_RANK);
  if (rank > 0 && !shape)
    return mhk__no(ctx, MHK_ERROR_ARGUMENT, "a tensor of rank %d needs a shape, but the shape is NULL", rank);
  for (int i = 0; i < MHK_MAX_RANK; i++) {
    const mhk_index n = i < rank ? shape[i] : 1;
    if (n < 0)
      return mhk__no(ctx, MHK_ERROR_SHAPE, "axis %d of a new tensor cannot have %lld elements", i, (long long)n);
    empty |= n == 0;
    if (n > 0 && (count > most / n || (empty && count * n > most / 128)))
      return mhk__no(ctx, MHK_ERROR_MEMORY,
                     "a tensor of %lld x %lld or more elements does not fit in this machine's address space",
                     (long long)count, (long long)n);
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

/* the elements of a tensor of the arithmetic type; NULL if there is no tensor */
static mhk_real *mhk__d(const mhk_tensor *x) { return x ? (mhk_real *)x->data : NULL; }
#endif /* MOHAWK_NO_TRAINING */

MHKDEF mhk_real *mhk_data(const mhk_tensor *x) { return x && x->dtype == MHK_REAL ? (mhk_real *)x->data : NULL; }

/* element i of a tensor of any real type */
static mhk_real mhk__tensor_element(const mhk_tensor *x, mhk_index i) {
  if (!x->quantized) return mhk__element(x->data, x->dtype, i);
  i += x->base_offset;
  return mhk__q_element(x->quantized, x->dtype, x->shape[1], i / x->shape[1], i % x->shape[1]);
}

MHKDEF double mhk_value(const mhk_tensor *x) {
  return x && x->data && x->count > 0 ? (double)mhk__tensor_element(x, 0) : (double)NAN;
}

MHKDEF mhk_result mhk_tensor_read(const mhk_tensor *x, mhk_index first, mhk_index n, mhk_real *out) {
  if (!x) return MHK_ERROR_ARGUMENT;
  if (mhk_failed(x->ctx)) return mhk_error(x->ctx);
  if (first < 0 || n < 0 || first > x->count || n > x->count - first || (n && (!x->data || !out)))
    return mhk_fail(x->ctx, MHK_ERROR_ARGUMENT,
                    "cannot read %lld elements from element %lld of %s: it has %lld, or there is no room for them "
                    "(NULL)",
                    (long long)n, (long long)first, x->name ? x->name : "a tensor", (long long)x->count);
  if (x->dtype == MHK_REAL) {
    if (n) memcpy(out, (const mhk_real *)x->data + first, (size_t)n * sizeof(mhk_real));
  } else if (mhk__is_quantized(x->dtype) || x->dtype == MHK_F32 || x->dtype == MHK_F64 || x->dtype == MHK_F16 ||
             x->dtype == MHK_BF16)
    for (mhk_index i = 0; i < n; i++) out[i] = mhk__tensor_element(x, first + i);
  else
    return mhk_fail(x->ctx, MHK_ERROR_UNSUPPORTED, "%s is stored as %s, which cannot be read as real numbers",
                    x->name ? x->name : "a tensor", mhk_dtype_name(x->dtype));
  return MHK_OK;
}

MHKDEF size_t mhk_tensor_bytes(const mhk_tensor *x) {
  const mhk_quantized *q = x ? x->quantized : NULL;
  mhk_index rows;
  if (!x) return 0;
  if (!q) return (size_t)x->count * mhk_dtype_bytes(x->dtype);
  const mhk_index K = x->shape[1];
  rows = mhk__max(0, mhk__min(x->shape[0], q->rows - x->base_offset / K));
  const mhk_index blocks = mhk__q_blocks(rows);
  return (size_t)(blocks * (mhk__q_block_bytes(x->dtype, K) + K / q->group * MHK__Q_ROWS * 2)) +
         (size_t)((x->shape[0] - rows) * K) * sizeof(mhk_real);
}
#ifndef MOHAWK_NO_TRAINING
MHKDEF mhk_tensor *mhk_parameter(mhk_context *ctx, const char *name, int rank, const mhk_index *shape,
                                 const mhk_real *values) {
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

/* =================================================================================================
   TAPE: records, backward, recomputation, gradient checks                                    >>tape
   ============================================================================================== */

#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
#ifndef MOHAWK_NO_TRAINING
enum { MHK__MAX_IN = 8, MHK__MAX_OUT = 4 };

typedef struct mhk__node mhk__node;
struct mhk__node {
  mhk__node *previous;
  mhk_index index;
  void (*backward)(mhk_tape *t, mhk__node *n);
  mhk_tensor *in[MHK__MAX_IN], *out[MHK__MAX_OUT];
  int inputs, outputs;
  void *saved; /* what the op saves for its backward pass */
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
             "rewind: the mark is not from mhk_tape_here() on this tape, or what it marks was already dropped");
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

static mhk_real *mhk__tape_zeros(mhk_tape *t, mhk_index n) {
  return (mhk_real *)mhk__arena_zeros(t->ctx, &t->arena, n, sizeof(mhk_real));
}

/* the gradient of x, allocated and zeroed on first use; NULL only if memory is out */
static mhk_real *mhk__grad(mhk_tape *t, mhk_tensor *x) {
  if (x->grad) return x->grad;
  if (x->base) {
    mhk_real *g = mhk__grad(t, x->base);
    x->grad = g ? g + x->base_offset : NULL;
  } else
    x->grad = mhk__tape_zeros(t, x->count);
  return x->grad;
}

/* the gradient to add to, or NULL if x needs none */
static mhk_real *mhk__into(mhk_tape *t, mhk_tensor *x) { return x && x->requires_grad ? mhk__grad(t, x) : NULL; }
/* The same for an op that can write the whole gradient. If *add is 0, no gradient has arrived yet
   and the memory is uninitialized. Call this after mhk__into() for the op's other inputs, because
   one of them may be the same tensor or a view of it. */
static mhk_real *mhk__into_all(mhk_tape *t, mhk_tensor *x, int *add) {
  *add = 1;
  if (!x || !x->requires_grad || x->grad || x->base || x->count == 0) return mhk__into(t, x);
  *add = 0;
  x->grad = (mhk_real *)mhk__arena_alloc(t->ctx, &t->arena, (size_t)x->count * sizeof(mhk_real));
  return x->grad;
}

MHKDEF int mhk_wants_grad(mhk_tape *t, mhk_tensor *x) {
  return mhk__tape_ready(t) && x && x->requires_grad && mhk__grad(t, x) != NULL;
}

static mhk_tensor *mhk__new(mhk_tape *t, int rank, const mhk_index *shape) {
  return mhk__tensor_in(t->ctx, &t->arena, rank, shape);
}

/* Records an op if one of its inputs needs a gradient; then its outputs need one too. NULL: there
   is nothing to record, or memory is out. */
static mhk__node *mhk__record(mhk_tape *t, void (*backward)(mhk_tape *t, mhk__node *n), int inputs,
                              mhk_tensor *const *in, int outputs, mhk_tensor *const *out, size_t saved) {
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

/* Ends an op with one output: records it with a copy of `saved` for its backward pass and returns
   the output, or NULL after an error. The inputs follow as mhk_tensor *, NULL for an absent one. */
static mhk_tensor *mhk__emit(mhk_tape *t, void (*backward)(mhk_tape *t, mhk__node *n), mhk_tensor *out,
                             const void *saved, size_t bytes, int inputs, ...) {
  mhk_tensor *in[MHK__MAX_IN];
  va_list list;
  va_start(list, inputs);
  for (int i = 0; i < inputs; i++) in[i] = va_arg(list, mhk_tensor *);
  va_end(list);
  mhk__node *n = mhk__record(t, backward, inputs, in, 1, &out, bytes);
  if (n && bytes) memcpy(n->saved, saved, bytes);
  return t->ctx->result == MHK_OK ? out : NULL;
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
  v->data = (char *)x->data + offset * (mhk_index)mhk_dtype_bytes(x->dtype);
  v->quantized = x->quantized;
  v->grad = x->grad ? x->grad + offset : NULL;
  v->requires_grad = x->requires_grad;
  v->base = x->base ? x->base : x;
  v->base_offset = x->base || x->quantized ? x->base_offset + offset : offset;
  v->name = x->name;
  return v;
}

MHKDEF mhk_tensor *mhk_reshape(mhk_tape *t, mhk_tensor *x, int rank, const mhk_index *shape) {
  char from[128], to[128];
  if (!mhk__tape_ready(t) || !x) return NULL;
  mhk_tensor *v = mhk__view(t, x, rank, shape, 0);
  if (v && v->count != x->count)
    return mhk__null(t->ctx, MHK_ERROR_SHAPE, "reshape: %s has %lld elements, %s has %lld",
                     mhk__shape_text(x->rank, x->shape, from, sizeof from), (long long)x->count,
                     mhk__shape_text(rank, shape, to, sizeof to), (long long)v->count);
  if (v && v->quantized && (rank != 2 || shape[1] != x->shape[1]))
    return mhk__null(t->ctx, MHK_ERROR_UNSUPPORTED,
                     "reshape: %s is quantized row by row, so its rows must keep their length",
                     x->name ? x->name : "a tensor");
  return v;
}

MHKDEF mhk_tensor *mhk_rows(mhk_tape *t, mhk_tensor *x, mhk_index first, mhk_index rows) {
  mhk_index shape[MHK_MAX_RANK];
  if (!mhk__tape_ready(t) || !x) return NULL;
  if (x->rank < 1 || first < 0 || rows < 0 || first > x->shape[0] || rows > x->shape[0] - first)
    return mhk__null(t->ctx, MHK_ERROR_SHAPE, "cannot view %lld rows from row %lld of a tensor that has %lld",
                     (long long)rows, (long long)first, (long long)(x->rank < 1 ? 0 : x->shape[0]));
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
  if (x->dtype != MHK_REAL)
    return mhk__null(t->ctx, MHK_ERROR_ARGUMENT, "%s is stored as %s: only %s tensors can have a gradient",
                     x->name ? x->name : "a tensor", mhk_dtype_name(x->dtype), mhk_dtype_name(MHK_REAL));
  const mhk_tensor *owner = x->base ? x->base : x;
  if (!owner->grad && !mhk__arena_holds(&t->arena, owner))
    return mhk__null(
        t->ctx, MHK_ERROR_ARGUMENT,
        "require_grad: %s is not a tensor of this tape: use mhk_parameter(), mhk_model_make_trainable() for a model, "
        "or a copy on the tape",
        x->name ? x->name : "a tensor");
  x->requires_grad = 1;
  return mhk__grad(t, x) ? x : NULL;
}

/* runs the backward passes from the last record down to index stop */
static void mhk__unwind(mhk_tape *t, mhk_index stop) {
  const int was = t->recording;
  t->recording = 0;
  while (t->last && t->last->index >= stop && t->ctx->result == MHK_OK) {
    mhk__node *n = t->last;
    int i, reached = 0;
    t->last = n->previous; /* the number of records keeps growing, so earlier marks stay valid */
    for (i = 0; i < n->outputs; i++) reached |= n->out[i]->grad != NULL || (n->out[i]->base && mhk__grad(t, n->out[i]));
    if (reached) n->backward(t, n);
  }
  t->recording = was;
}

enum { MHK__GRAIN = 8192 }; /* elements per task of an elementwise op */

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
  mhk__axpy_args a = {y, x, f};
  mhk__over(ctx, n, MHK__GRAIN, mhk__axpy_body, &a);
}

/* y = x */
static void mhk__copy_body(mhk_context *ctx, void *args, mhk_index first, mhk_index last) {
  const mhk__axpy_args *a = (const mhk__axpy_args *)args;
  (void)ctx;
  memcpy(a->y + first, a->x + first, (size_t)(last - first) * sizeof(mhk_real));
}

MHKDEF mhk_result mhk_backward_from(mhk_tape *t, mhk_tensor *y, const mhk_real *cotangent) {
  mhk__axpy_args a;
  int add;
  if (!t) return MHK_ERROR_MEMORY;
  if (t->ctx->result != MHK_OK) return t->ctx->result;
  if (!y || !cotangent)
    return mhk_fail(t->ctx, MHK_ERROR_ARGUMENT, "backward: the output or its cotangent is missing (NULL)");
  if (!y->requires_grad)
    return mhk_fail(t->ctx, MHK_ERROR_STATE,
                    "backward: the output depends on nothing that requires a gradient, or recording was off");
  a.x = cotangent;
  a.y = mhk__into_all(t, y, &add);
  a.f = 1;
  if (!a.y) return t->ctx->result;
  mhk__over(t->ctx, y->count, MHK__GRAIN, add ? mhk__axpy_body : mhk__copy_body, &a);
  mhk__unwind(t, 0);
  return t->ctx->result;
}

MHKDEF mhk_result mhk_backward(mhk_tape *t, mhk_tensor *loss) {
  const mhk_real one = 1;
  if (t && loss && loss->count != 1)
    return mhk_fail(t->ctx, MHK_ERROR_SHAPE,
                    "backward: the loss has %lld elements and must have one; use mhk_backward_from() to give a "
                    "cotangent",
                    (long long)loss->count);
  return mhk_backward_from(t, loss, &one);
}

typedef struct mhk__recompute_saved { mhk_block_fn f; void *user; } mhk__recompute_saved;

/* runs it again on a copy of x that shares the gradient of x, and runs the backward passes that
   this recorded */
static void mhk__recompute_op_back(mhk_tape *t, mhk__node *n) {
  const mhk__recompute_saved *s = (const mhk__recompute_saved *)n->saved;
  mhk_tensor *x = n->in[0], *copy, *y;
  mhk_real *g = mhk__into(t, x); /* created before the mark, so it survives the rewind */
  const mhk_tape_mark inner = mhk_tape_here(t);
  t->recording = 1;
  copy = mhk_detach(t, x);
  if (copy && g) { /* adds where x itself would, for the same bits as without recomputation */
    copy->requires_grad = 1;
    copy->grad = g;
  }
  y = copy ? s->f(t, s->user, copy) : NULL;
  if (y && y->count != n->out[0]->count)
    mhk_fail(t->ctx, MHK_ERROR_STATE, "recompute: the function built something different the second time");
  else if (y && y->requires_grad) { /* otherwise neither x nor any parameter inside needs a gradient */
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
  if (!f)
    return mhk__null(t->ctx, MHK_ERROR_ARGUMENT, "recompute: the function is missing (NULL)");
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
  mhk_real *copy = mhk__scratch_reals(t->ctx, count);
  if (copy) memcpy(copy, y->data, (size_t)count * sizeof(mhk_real));
  mhk_tape_rewind(t, mark);
  mhk_tensor *out = copy ? mhk_tensor_new(t, rank, shape, copy) : NULL;
  mhk__scratch_rewind(t->ctx, hold);
  if (!out) return NULL;
  i = x->requires_grad;
  x->requires_grad = 1; /* parameters inside need gradients even if x does not */
  mhk__node *n = mhk__record(t, mhk__recompute_op_back, 1, &x, 1, &out, sizeof(mhk__recompute_saved));
  x->requires_grad = i;
  const mhk__recompute_saved s = {f, user};
  if (n) *(mhk__recompute_saved *)n->saved = s;
  return n ? out : NULL;
}

typedef struct mhk__custom_saved {
  void (*backward)(const mhk_op *op);
  void *user;
} mhk__custom_saved;

static void mhk__custom_op_back(mhk_tape *t, mhk__node *n) {
  const mhk__custom_saved *s = (const mhk__custom_saved *)n->saved;
  const mhk_op op = {t, n->out[0], n->in, n->inputs, s->user};
  s->backward(&op);
}

MHKDEF mhk_tensor *mhk_custom(mhk_tape *t, const mhk_custom_desc *d) {
  if (!mhk__tape_ready(t)) return NULL;
  if (!d || !d->forward || d->inputs < 0 || d->inputs > MHK__MAX_IN || (d->inputs > 0 && !d->in) ||
      (d->user_bytes > 0 && !d->user))
    return mhk__null(
        t->ctx, MHK_ERROR_ARGUMENT,
        "a custom op with %d inputs: it needs at most %d inputs, their list, a forward function, and user when "
        "user_bytes is above 0",
        d ? d->inputs : 0, MHK__MAX_IN);
  for (int i = 0; i < d->inputs; i++)
    if (!d->in[i]) return NULL;
  void *copy = d->user_bytes ? mhk__arena_alloc(t->ctx, &t->arena, d->user_bytes) : NULL;
  if (copy) memcpy(copy, d->user, d->user_bytes);
  mhk_tensor *out = mhk_tensor_new(t, d->rank, d->shape, NULL);
  if (!out) return NULL;
  const mhk_op op = {t, out, d->in, d->inputs, copy};
  d->forward(&op);
  const mhk__custom_saved s = {d->backward, copy};
  mhk__node *n = d->backward ? mhk__record(t, mhk__custom_op_back, d->inputs, d->in, 1, &out, sizeof s) : NULL;
  if (n) *(mhk__custom_saved *)n->saved = s;
  return t->ctx->result == MHK_OK ? out : NULL;
}

/* What one backward pass of f adds to the gradient of x. The measured pass is the second one and
   finds a gradient there, so an op that overwrites gradients instead of adding is caught. */
static mhk_result mhk__added_gradient(mhk_tape *t, mhk_tensor *(*f)(mhk_tape *t, void *user), void *user, mhk_tensor *x,
                                      mhk_real *added) {
  const mhk_tape_mark mark = mhk_tape_here(t);
  const int was = mhk_tape_record(t, 1);
  mhk_zero_grad(x);
  for (int pass = 0; pass < 2 && t->ctx->result == MHK_OK; pass++) {
    memcpy(added, x->grad, (size_t)x->count * sizeof(mhk_real));
    mhk_tensor *y = f(t, user);
    if (!y || mhk_backward(t, y) != MHK_OK) break;
    for (mhk_index i = 0; i < x->count; i++) added[i] = x->grad[i] - added[i];
    mhk_tape_rewind(t, mark);
  }
  mhk_zero_grad(x);
  mhk_tape_record(t, was);
  return t->ctx->result;
}

/* (f(x + step) - f(x - step)) / (2 step) for element i of x, with steps as its type rounds them */
static double mhk__finite_difference(mhk_tape *t, mhk_tensor *(*f)(mhk_tape *t, void *user), void *user, mhk_tensor *x,
                                     mhk_index i, double step) {
  const mhk_tape_mark mark = mhk_tape_here(t);
  mhk_real *at = mhk__d(x) + i;
  const mhk_real keep = *at, high = MHK__R((double)keep + step), low = MHK__R((double)keep - step);
  *at = high;
  const double up = mhk_value(f(t, user));
  mhk_tape_rewind(t, mark);
  *at = low;
  const double down = mhk_value(f(t, user));
  mhk_tape_rewind(t, mark);
  *at = keep;
  return (up - down) / ((double)high - (double)low);
}

MHKDEF double mhk_check_gradient(mhk_tape *t, mhk_tensor *(*f)(mhk_tape *t, void *user), void *user, mhk_tensor *x,
                                 mhk_gradient_report *report) {
  mhk_gradient_report r = {(double)NAN, 0, 0, 0, 0};
  double scale = 0, largest = 0, worst = -1;
  if (report) *report = r;
  if (mhk__tape_ready(t) && !f) mhk_fail(t->ctx, MHK_ERROR_ARGUMENT, "check_gradient: the function is missing (NULL)");
  if (!mhk__tape_ready(t) || !x || !mhk_require_grad(t, x)) return r.error;
  const mhk__mark hold = mhk__scratch_mark(t->ctx);
  const mhk_index n = mhk__min(256, x->count);
  mhk_real *analytic = mhk__scratch_reals(t->ctx, x->count);
  mhk_real *numeric = mhk__scratch_reals(t->ctx, n);
  if (!analytic || !numeric || mhk__added_gradient(t, f, user, x, analytic) != MHK_OK) return r.error;
  for (mhk_index i = 0; i < x->count; i++) {
    scale += (double)mhk__d(x)[i] * (double)mhk__d(x)[i];
    largest = fmax(largest, fabs((double)analytic[i]));
  }
  scale = x->count ? sqrt(scale / (double)x->count) : 0;
  const double step = (sizeof(mhk_real) == 4 ? 1e-2 : 1e-5) * (scale > 0 ? scale : 1);
  const int was = mhk_tape_record(t, 0);
  for (mhk_index k = 0; k < n && t->ctx->result == MHK_OK; k++) {
    numeric[k] = MHK__R(mhk__finite_difference(t, f, user, x, k * x->count / n, step));
    largest = fmax(largest, fabs((double)numeric[k]));
  }
  mhk_tape_record(t, was);
  for (mhk_index k = 0; k < n && t->ctx->result == MHK_OK; k++) {
    const mhk_index i = k * x->count / n;
    const double e = fabs((double)analytic[i] - (double)numeric[k]) / (largest > 0 ? largest : 1);
    if (e <= worst || worst != worst) continue; /* NaN is worst */
    worst = r.error = e;
    r.analytic = (double)analytic[i];
    r.numeric = (double)numeric[k];
    r.at = i;
  }
  r.checked = n;
  if (n == 0) r.error = 0;
  mhk__scratch_rewind(t->ctx, hold);
  if (t->ctx->result != MHK_OK) r.error = (double)NAN;
  if (report) *report = r;
  return r.error;
}
#endif /* MOHAWK_NO_TRAINING */
#endif /* MOHAWK_IMPLEMENTATION */

/* =================================================================================================
   OPS: elementwise, reductions, layout, embedding, linear layers                              >>ops
   =================================================================================================

   An op is a function on the tape. It checks its inputs, makes its output and computes it; where
   an input wants a gradient it also records what its backward pass will need. The backward pass,
   mhk__..._op_back, stands beside it: it reads the gradient of the output and adds to those of the
   inputs. Above each pair stands what it computes: y the output, dy its gradient, and so on. The
   chapters after this one hold the ops that have kernels of their own. */

#if MHK__REFERENCE == 1 && !defined(MHK__PASS)
/* ---- reference */

static inline double mhk__ref_sigmoid(double x) { return 1 / (1 + exp(-x)); }
static inline double mhk__ref_softplus(double x) { return x > 30 ? x + exp(-x) : log1p(exp(x)); }
static inline double mhk__ref_silu(double x) { return x * mhk__ref_sigmoid(x); }
static inline double mhk__ref_silu_slope(double x) {
  const double s = mhk__ref_sigmoid(x);
  return s * (1 + x * (1 - s));
}
/* gelu_new: the approximation with tanh(u) = 2 sigmoid(2 u) - 1 */
static inline double mhk__ref_gelu(double x) {
  return x * mhk__ref_sigmoid(2 * 0.7978845608028654 * (x + 0.044715 * x * x * x));
}
static inline double mhk__ref_gelu_slope(double x) {
  const double s = mhk__ref_sigmoid(2 * 0.7978845608028654 * (x + 0.044715 * x * x * x));
  return s + x * s * (1 - s) * 2 * 0.7978845608028654 * (1 + 3 * 0.044715 * x * x);
}
#endif /* reference */

#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
/* log(1 + e^x), for sessions too */
static mhk_real mhk__softplus(mhk_real x) { return (x > 0 ? x : 0) + MHK__R(log1p(exp(-fabs((double)x)))); }

#ifndef MOHAWK_NO_TRAINING
/* ---- what ops have in common */

/* Returns whether the op can run: the tape has not failed, the first `needed` inputs are present,
   and all present inputs have the arithmetic type. Only weights of linear and embedding may have a
   stored type. The inputs follow as mhk_tensor *. */
static int mhk__ready(mhk_tape *t, const char *op, int needed, int inputs, ...) {
  int ready = mhk__tape_ready(t);
  va_list list;
  va_start(list, inputs);
  for (int i = 0; ready && i < inputs; i++) {
    const mhk_tensor *x = va_arg(list, mhk_tensor *);
    if (!x)
      ready = i >= needed;
    else if (x->dtype != MHK_REAL)
      ready = mhk__no(t->ctx, MHK_ERROR_ARGUMENT,
                      "%s: %s is stored as %s; only weights of linear and embedding may have a stored type", op,
                      x->name ? x->name : "an input", mhk_dtype_name(x->dtype));
  }
  va_end(list);
  return ready;
}

/* checks a condition on the shapes of a and b; if it does not hold, the error is `wanted` */
static int mhk__fits(mhk_tape *t, const char *op, int condition, const mhk_tensor *a, const mhk_tensor *b,
                     const char *want) {
  char x[128], y[128];
  if (condition) return 1;
  return mhk__no(t->ctx, MHK_ERROR_SHAPE, "%s: the shapes of %s%s%s and %s%s%s do not match: %s", op,
                 a->name ? a->name : "", a->name ? " " : "", mhk__shape_text(a->rank, a->shape, x, sizeof x),
                 b->name ? b->name : "", b->name ? " " : "", mhk__shape_text(b->rank, b->shape, y, sizeof y), want);
}

static int mhk__same_shape(const mhk_tensor *a, const mhk_tensor *b) {
  int same = a->rank == b->rank;
  for (int i = 0; same && i < a->rank; i++) same = a->shape[i] == b->shape[i];
  return same;
}

static mhk_index mhk__last(const mhk_tensor *x) { return x->rank > 0 ? x->shape[x->rank - 1] : 1; }
static mhk_index mhk__row_count(const mhk_tensor *x) { return mhk__last(x) > 0 ? x->count / mhk__last(x) : 0; }

/* no bias, or one with n elements */
static int mhk__bias_fits(mhk_tape *t, const char *op, const mhk_tensor *x, const mhk_tensor *bias, mhk_index n) {
  return !bias || mhk__fits(t, op, bias->rank == 1 && bias->shape[0] == n, x, bias,
                            "the bias must have one element for each column of the output");
}

/* a new tensor with the axes of x except the last one */
static mhk_tensor *mhk__new_wide(mhk_tape *t, const mhk_tensor *x, mhk_index last) {
  mhk_index shape[MHK_MAX_RANK];
  for (int i = 0; i < x->rank; i++) shape[i] = x->shape[i];
  shape[x->rank - 1] = last;
  return mhk__new(t, x->rank, shape);
}

/* Sums over rows for each column: out (cols) += sum of dy, or for the weight of a norm, of dy (x -
   mean) rstd. */
typedef struct mhk__columns_args {
  mhk_index rows, cols;
  const mhk_real *dy, *x, *mean, *rstd; /* dy and x (rows,cols), mean and rstd (rows); x NULL: no norm */
  mhk_real *out;
} mhk__columns_args;
/* sums columns [first,last) over all rows; bodies are at most 64 columns wide */
static void mhk__column_sum_body(mhk_context *ctx, void *args, mhk_index first, mhk_index last) {
  const mhk__columns_args *a = (const mhk__columns_args *)args;
  const mhk_index n = last - first;
  mhk_real sum[64], *MHK__RESTRICT s = sum;
  (void)ctx;
  for (mhk_index j = 0; j < n; j++) s[j] = 0;
  for (mhk_index r = 0; r < a->rows; r++) {
    const mhk_real *dy = a->dy + r * a->cols + first;
    if (a->x) {
      const mhk_real *x = a->x + r * a->cols + first, mean = a->mean[r], rstd = a->rstd[r];
      for (mhk_index j = 0; j < n; j++) s[j] += dy[j] * (x[j] - mean) * rstd;
    } else
      for (mhk_index j = 0; j < n; j++) s[j] += dy[j];
  }
  for (mhk_index j = 0; j < n; j++) a->out[first + j] += s[j];
}
/* out (cols) += sum over rows of dy */
static void mhk__column_sum(mhk_context *ctx, mhk_index rows, mhk_index cols, const mhk_real *dy, mhk_real *out) {
  mhk__columns_args a = {rows, cols, dy, NULL, NULL, NULL, out};
  mhk__over(ctx, cols, 64, mhk__column_sum_body, &a);
}

/* calls row(ctx, args, r) for each of `rows` rows of n elements, split among the workers */
typedef void (*mhk__row_fn)(mhk_context *ctx, const void *args, mhk_index r);
typedef struct mhk__each_row { mhk__row_fn row; const void *args; } mhk__each_row;
static void mhk__each_row_body(mhk_context *ctx, void *args, mhk_index first, mhk_index last) {
  const mhk__each_row *e = (const mhk__each_row *)args;
  for (; first < last; first++) e->row(ctx, e->args, first);
}
static void mhk__over_rows(mhk_context *ctx, mhk_index rows, mhk_index n, mhk__row_fn row, const void *args) {
  mhk__each_row e = {row, args};
  mhk__over(ctx, rows, MHK__GRAIN / (n + 1) + 1, mhk__each_row_body, &e);
}

/* The first token of each token's document. It is -1 for the first document of a row, which
   continues what came before. NULL if there are no documents. */
static mhk_index *mhk__starts(mhk_tape *t, const int32_t *doc, mhk_index B, mhk_index T) {
  if (!doc) return NULL;
  mhk_index *start = (mhk_index *)mhk__arena_zeros(t->ctx, &t->arena, B * T, sizeof(mhk_index));
  if (!start) return NULL;
  for (mhk_index b = 0; b < B; b++)
    for (mhk_index i = 0; i < T; i++)
      start[b * T + i] = i == 0 ? -1 : doc[b * T + i] != doc[b * T + i - 1] ? i : start[b * T + i - 1];
  return start;
}

/* ---- elementwise ---- */

/*    y = a + b    da += dy      db += dy
      y = a - b    da += dy      db -= dy
      y = a b      da += dy b    db += dy a
   A vector or scalar b repeats, and its gradient is the sum over the repetitions. */
typedef enum mhk__binary_kind { MHK__ADD2, MHK__SUB2, MHK__MUL2 } mhk__binary_kind;

/* the gradients of a and b; b repeats every `wrap` elements, so its gradient is summed */
static void mhk__binary_op_back(mhk_tape *t, mhk__node *n) {
  const mhk__binary_kind kind = *(const mhk__binary_kind *)n->saved;
  const mhk_index count = n->out[0]->count, wrap = n->in[1]->count;
  const mhk_real *dy = n->out[0]->grad, *a = mhk__d(n->in[0]), *b = mhk__d(n->in[1]);
  mhk_real *da = mhk__into(t, n->in[0]), *db = mhk__into(t, n->in[1]);
  if (da && kind == MHK__MUL2) {
    for (mhk_index i = 0; i < count; i += wrap)
      for (mhk_index j = 0; j < wrap; j++) da[i + j] += dy[i + j] * b[j];
  } else if (da)
    mhk__axpy(t->ctx, count, MHK__R(1), dy, da);
  if (db && wrap < count)
    for (mhk_index j = 0; j < wrap; j++) {
      double sum = 0;
      for (mhk_index i = j; i < count; i += wrap) sum += (double)(kind == MHK__MUL2 ? dy[i] * a[i] : dy[i]);
      db[j] += MHK__R(kind == MHK__SUB2 ? -sum : sum);
    }
  else if (db && kind == MHK__MUL2)
    for (mhk_index i = 0; i < count; i++) db[i] += dy[i] * a[i];
  else if (db)
    mhk__axpy(t->ctx, count, kind == MHK__SUB2 ? MHK__R(-1) : MHK__R(1), dy, db);
}

/* y = a + b, a - b or a b, where b has the shape of a, the shape of its last axis, or one
   element */
static mhk_tensor *mhk__binary_op(mhk_tape *t, const char *name, mhk__binary_kind kind, mhk_tensor *a, mhk_tensor *b) {
  if (!mhk__ready(t, name, 2, 2, a, b)) return NULL;
  if (!mhk__fits(t, name,
                 mhk__same_shape(a, b) || b->count == 1 || (b->rank == 1 && a->rank > 0 && b->count == mhk__last(a)), a,
                 b, "the second must have the shape of the first, the shape of its last axis, or one element"))
    return NULL;
  mhk_tensor *y = mhk__new(t, a->rank, a->shape);
  if (!y) return NULL;
  const mhk_index wrap = b->count > 0 ? b->count : 1;
  const mhk_real *z = mhk__d(b);
  for (mhk_index i = 0; i < a->count; i += wrap) {
    const mhk_real *x = mhk__d(a) + i;
    for (mhk_index j = 0; j < wrap; j++)
      mhk__d(y)[i + j] = kind == MHK__ADD2 ? x[j] + z[j] : kind == MHK__SUB2 ? x[j] - z[j] : x[j] * z[j];
  }
  return mhk__emit(t, mhk__binary_op_back, y, &kind, sizeof kind, 2, a, b);
}
MHKDEF mhk_tensor *mhk_add(mhk_tape *t, mhk_tensor *a, mhk_tensor *b) {
  return mhk__binary_op(t, "add", MHK__ADD2, a, b);
}
MHKDEF mhk_tensor *mhk_sub(mhk_tape *t, mhk_tensor *a, mhk_tensor *b) {
  return mhk__binary_op(t, "sub", MHK__SUB2, a, b);
}
MHKDEF mhk_tensor *mhk_mul(mhk_tape *t, mhk_tensor *a, mhk_tensor *b) {
  return mhk__binary_op(t, "mul", MHK__MUL2, a, b);
}

/* y = f(x), dx += dy f'(x): f is in mhk__unary_body, f' in mhk__unary_back_body */
typedef enum mhk__unary_kind {
  MHK__SCALE1, MHK__SQUARE1, MHK__SQRT1, MHK__EXP1, MHK__LOG1, MHK__SIGMOID1, MHK__SOFTPLUS1, MHK__SILU1, MHK__GELU1
} mhk__unary_kind;
typedef struct mhk__unary_args {
  mhk__unary_kind kind;
  mhk_real factor;
  const mhk_real *x;
  mhk_real *y;
  const mhk_real *dy;
  mhk_real *dx;
} mhk__unary_args;

static mhk_real mhk__sigmoid1(mhk_real x) { return MHK__R(1) / (MHK__R(1) + MHK__REXP(-x)); }

/* elements [first,last) of y = f(x) */
static void mhk__unary_body(mhk_context *ctx, void *args, mhk_index first, mhk_index last) {
  const mhk__unary_args *a = (const mhk__unary_args *)args;
  const mhk_real *x = a->x;
  mhk_real *y = a->y, f = a->factor;
  switch (a->kind) {
    case MHK__SCALE1: for (mhk_index i = first; i < last; i++) y[i] = x[i] * f; break;
    case MHK__SQUARE1: for (mhk_index i = first; i < last; i++) y[i] = x[i] * x[i]; break;
    case MHK__SQRT1: for (mhk_index i = first; i < last; i++) y[i] = MHK__R(sqrt(x[i])); break;
    case MHK__EXP1: for (mhk_index i = first; i < last; i++) y[i] = MHK__REXP(x[i]); break;
    case MHK__LOG1: for (mhk_index i = first; i < last; i++) y[i] = MHK__R(log(x[i])); break;
    case MHK__SIGMOID1: for (mhk_index i = first; i < last; i++) y[i] = mhk__sigmoid1(x[i]); break;
    case MHK__SOFTPLUS1: for (mhk_index i = first; i < last; i++) y[i] = mhk__softplus(x[i]); break;
    case MHK__SILU1: for (mhk_index i = first; i < last; i++) y[i] = x[i] * mhk__sigmoid1(x[i]); break;
    case MHK__GELU1: ctx->kernels->gelu(last - first, x + first, y + first); break;
  }
}

/* elements [first,last) of dx += dy f'(x), from x or from y, whichever is cheaper */
static void mhk__unary_back_body(mhk_context *ctx, void *args, mhk_index first, mhk_index last) {
  const mhk__unary_args *a = (const mhk__unary_args *)args;
  const mhk_real *x = a->x, *y = a->y, *g = a->dy;
  mhk_real *d = a->dx, f = a->factor, s, block[256];
  switch (a->kind) {
    case MHK__SCALE1: for (mhk_index i = first; i < last; i++) d[i] += g[i] * f; break;
    case MHK__SQUARE1: for (mhk_index i = first; i < last; i++) d[i] += g[i] * 2 * x[i]; break;
    /* the subgradient at 0 is 0 */
    case MHK__SQRT1: for (mhk_index i = first; i < last; i++) d[i] += y[i] > 0 ? g[i] / (2 * y[i]) : 0; break;
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
    case MHK__GELU1: /* the kernel writes, this adds */
      for (mhk_index i = first, k; i < last; i += k) {
        k = mhk__min(256, last - i);
        ctx->kernels->gelu_back(k, x + i, g + i, block);
        for (mhk_index j = 0; j < k; j++) d[i + j] += block[j];
      }
      break;
  }
}

static void mhk__unary_op_back(mhk_tape *t, mhk__node *n) {
  mhk__unary_args a = *(const mhk__unary_args *)n->saved;
  a.dx = mhk__into(t, n->in[0]);
  a.dy = n->out[0]->grad;
  if (a.dx) mhk__over(t->ctx, n->in[0]->count, MHK__GRAIN, mhk__unary_back_body, &a);
}

static mhk_tensor *mhk__unary_op(mhk_tape *t, const char *name, mhk__unary_kind kind, double factor, mhk_tensor *x) {
  if (!mhk__ready(t, name, 1, 1, x)) return NULL;
  mhk_tensor *y = mhk__new(t, x->rank, x->shape);
  if (!y) return NULL;
  mhk__unary_args a = {kind, MHK__R(factor), mhk__d(x), mhk__d(y), NULL, NULL};
  mhk__over(t->ctx, x->count, MHK__GRAIN, mhk__unary_body, &a);
  return mhk__emit(t, mhk__unary_op_back, y, &a, sizeof a, 1, x);
}
MHKDEF mhk_tensor *mhk_scale(mhk_tape *t, mhk_tensor *x, double factor) {
  if (!mhk__ready(t, "scale", 1, 1, x) ||
      !mhk__number_fits(t->ctx, "scale", "factor", factor, -MHK__REAL_MOST, MHK__REAL_MOST))
    return NULL;
  return mhk__unary_op(t, "scale", MHK__SCALE1, factor, x);
}
MHKDEF mhk_tensor *mhk_square(mhk_tape *t, mhk_tensor *x) { return mhk__unary_op(t, "square", MHK__SQUARE1, 0, x); }
MHKDEF mhk_tensor *mhk_sqrt(mhk_tape *t, mhk_tensor *x) { return mhk__unary_op(t, "sqrt", MHK__SQRT1, 0, x); }
MHKDEF mhk_tensor *mhk_exp(mhk_tape *t, mhk_tensor *x) { return mhk__unary_op(t, "exp", MHK__EXP1, 0, x); }
MHKDEF mhk_tensor *mhk_log(mhk_tape *t, mhk_tensor *x) { return mhk__unary_op(t, "log", MHK__LOG1, 0, x); }
MHKDEF mhk_tensor *mhk_sigmoid(mhk_tape *t, mhk_tensor *x) { return mhk__unary_op(t, "sigmoid", MHK__SIGMOID1, 0, x); }
MHKDEF mhk_tensor *mhk_softplus(mhk_tape *t, mhk_tensor *x) {
  return mhk__unary_op(t, "softplus", MHK__SOFTPLUS1, 0, x);
}
MHKDEF mhk_tensor *mhk_silu(mhk_tape *t, mhk_tensor *x) { return mhk__unary_op(t, "silu", MHK__SILU1, 0, x); }
MHKDEF mhk_tensor *mhk_gelu(mhk_tape *t, mhk_tensor *x) { return mhk__unary_op(t, "gelu", MHK__GELU1, 0, x); }

/* ---- reductions and layout ---- */

/* y_i = f (sum of each run of n numbers of x)    dx += f dy_i, throughout the run */
static void mhk__sums_op_back(mhk_tape *t, mhk__node *n) {
  mhk_real *d = mhk__into(t, n->in[0]);
  const mhk_real f = *(const mhk_real *)n->saved;
  const mhk_index runs = n->out[0]->count, each = runs ? n->in[0]->count / runs : 0;
  for (mhk_index i = 0; d && i < runs; i++)
    for (mhk_index j = 0; j < each; j++) d[i * each + j] += f * n->out[0]->grad[i];
}

/* the output has the first `rank` axes of x */
static mhk_tensor *mhk__sums_op(mhk_tape *t, const char *name, mhk_tensor *x, int rank, double factor) {
  mhk_tensor *y = mhk__ready(t, name, 1, 1, x) ? mhk__new(t, rank, x->shape) : NULL;
  if (!y) return NULL;
  const mhk_index each = y->count ? x->count / y->count : 0;
  for (mhk_index i = 0; i < y->count; i++) {
    double sum = 0;
    for (mhk_index j = 0; j < each; j++) sum += (double)mhk__d(x)[i * each + j];
    mhk__d(y)[i] = MHK__R(sum * factor);
  }
  const mhk_real f = MHK__R(factor);
  return mhk__emit(t, mhk__sums_op_back, y, &f, sizeof f, 1, x);
}
MHKDEF mhk_tensor *mhk_sum(mhk_tape *t, mhk_tensor *x) { return mhk__sums_op(t, "sum", x, 0, 1); }
MHKDEF mhk_tensor *mhk_mean(mhk_tape *t, mhk_tensor *x) {
  return mhk__sums_op(t, "mean", x, 0, x && x->count ? 1.0 / (double)x->count : 0);
}
MHKDEF mhk_tensor *mhk_sum_last(mhk_tape *t, mhk_tensor *x) {
  return mhk__sums_op(t, "sum_last", x, x && x->rank > 0 ? x->rank - 1 : 0, 1);
}

static mhk__matrix mhk__real_mat(const mhk_real *data, mhk_index row, mhk_index col) {
  return mhk__mat(data, MHK_REAL, row, col);
}

/* a product that is added to the output */
static mhk__epilogue mhk__accumulate(void) {
  mhk__epilogue e;
  memset(&e, 0, sizeof e);
  e.accumulate = 1;
  return e;
}

/* y = a b      da += dy b^T    db += a^T dy
   y = a b^T    da += dy b      db += dy^T a
   y (batch,m,n), a (batch,m,k) */
typedef struct mhk__matmul_saved { mhk_index batch, m, n, k; int transposed; } mhk__matmul_saved;

/* batch times c (M,N) = a (M,K) b (K,N), or added to c */
static void mhk__products(mhk_context *ctx, mhk_index batch, mhk_index M, mhk_index N, mhk_index K, mhk__matrix a,
                          mhk__matrix b, mhk_real *c, int accumulate) {
  mhk__batch_args g = {M, N, K, M * K, K * N, M * N, N, a, b, c, accumulate};
  mhk__gemm_batch(ctx, batch, &g);
}

static void mhk__matmul_op_back(mhk_tape *t, mhk__node *node) {
  const mhk__matmul_saved s = *(const mhk__matmul_saved *)node->saved;
  const mhk_real *g = node->out[0]->grad, *a = mhk__d(node->in[0]), *b = mhk__d(node->in[1]);
  mhk_real *da = mhk__into(t, node->in[0]), *db = mhk__into(t, node->in[1]);
  if (da)
    mhk__products(t->ctx, s.batch, s.m, s.k, s.n, mhk__real_mat(g, s.n, 1),
                  s.transposed ? mhk__real_mat(b, s.k, 1) : mhk__real_mat(b, 1, s.n), da, 1);
  if (db && s.transposed)
    mhk__products(t->ctx, s.batch, s.n, s.k, s.m, mhk__real_mat(g, 1, s.n), mhk__real_mat(a, s.k, 1), db, 1);
  else if (db)
    mhk__products(t->ctx, s.batch, s.k, s.n, s.m, mhk__real_mat(a, 1, s.k), mhk__real_mat(g, s.n, 1), db, 1);
}

MHKDEF mhk_tensor *mhk_matmul(mhk_tape *t, mhk_tensor *a, mhk_tensor *b, int transpose_b) {
  if (!mhk__ready(t, "matmul", 2, 2, a, b)) return NULL;
  int fits = a->rank >= 2 && b->rank == a->rank;
  mhk_index batch = 1;
  for (int r = 0; fits && r < a->rank - 2; r++) {
    fits = a->shape[r] == b->shape[r];
    batch *= a->shape[r];
  }
  if (!mhk__fits(t, "matmul", fits && mhk__last(a) == b->shape[b->rank - (transpose_b ? 1 : 2)], a, b,
                 transpose_b ? "they must be (...,m,k) and (...,n,k)" : "they must be (...,m,k) and (...,k,n)"))
    return NULL;
  const mhk__matmul_saved s = {batch, a->shape[a->rank - 2], b->shape[b->rank - (transpose_b ? 2 : 1)], mhk__last(a),
                               transpose_b != 0};
  mhk_tensor *y = mhk__new_wide(t, a, s.n);
  if (!y) return NULL;
  mhk__products(t->ctx, batch, s.m, s.n, s.k, mhk__real_mat(mhk__d(a), s.k, 1),
                transpose_b ? mhk__real_mat(mhk__d(b), 1, s.k) : mhk__real_mat(mhk__d(b), s.n, 1), mhk__d(y), 0);
  return mhk__emit(t, mhk__matmul_op_back, y, &s, sizeof s, 2, a, b);
}

/* y = columns [first,first+width) of x    dx += dy, in these columns */
static void mhk__columns_op_back(mhk_tape *t, mhk__node *n) {
  mhk_real *d = mhk__into(t, n->in[0]);
  const mhk_index first = *(const mhk_index *)n->saved, wide = mhk__last(n->in[0]), w = mhk__last(n->out[0]),
                  rows = mhk__row_count(n->out[0]);
  for (mhk_index r = 0; d && r < rows; r++)
    for (mhk_index j = 0; j < w; j++) d[r * wide + first + j] += n->out[0]->grad[r * w + j];
}

MHKDEF mhk_tensor *mhk_columns(mhk_tape *t, mhk_tensor *x, mhk_index first, mhk_index width) {
  if (!mhk__ready(t, "columns", 1, 1, x)) return NULL;
  if (x->rank < 1 || first < 0 || width < 0 || first > mhk__last(x) || width > mhk__last(x) - first)
    return mhk__null(t->ctx, MHK_ERROR_SHAPE,
                     "cannot view %lld columns from column %lld of a tensor whose last axis has %lld",
                     (long long)width, (long long)first, (long long)mhk__last(x));
  mhk_tensor *y = mhk__new_wide(t, x, width);
  const mhk_index rows = mhk__row_count(x);
  for (mhk_index r = 0; y && r < rows; r++)
    memcpy(mhk__d(y) + r * width, mhk__d(x) + r * mhk__last(x) + first, (size_t)width * sizeof(mhk_real));
  return y ? mhk__emit(t, mhk__columns_op_back, y, &first, sizeof first, 1, x) : NULL;
}

/* y (B,H,T,P) = or += x (B,T,H,P); the shape is x's, whose axes after the first three are one */
static void mhk__swap(const mhk_tensor *shape, const mhk_real *x, mhk_real *y, int add) {
  const mhk_index T = shape->shape[1], H = shape->shape[2], heads = shape->shape[0] * T * H,
                  P = shape->count ? shape->count / heads : 0;
  for (mhk_index i = 0; i < heads; i++, x += P) {
    const mhk_index b = i / (T * H), s = i / H % T, h = i % H;
    mhk_real *to = y + ((b * H + h) * T + s) * P;
    for (mhk_index p = 0; p < P; p++) to[p] = add ? to[p] + x[p] : x[p];
  }
}

/* y = x with two axes exchanged    dx += dy with the same axes exchanged */
static void mhk__swap_op_back(mhk_tape *t, mhk__node *n) {
  mhk_real *d = mhk__into(t, n->in[0]);
  if (d) mhk__swap(n->out[0], n->out[0]->grad, d, 1);
}

MHKDEF mhk_tensor *mhk_swap_heads(mhk_tape *t, mhk_tensor *x) {
  if (!mhk__ready(t, "swap_heads", 1, 1, x)) return NULL;
  if (x->rank < 3)
    return mhk__null(t->ctx, MHK_ERROR_SHAPE,
                     "swap_heads: a tensor of rank %d has no axes 1 and 2 before its last one", x->rank);
  const mhk_index shape[MHK_MAX_RANK] = {x->shape[0], x->shape[2], x->shape[1], x->shape[3], x->shape[4]};
  mhk_tensor *y = mhk__new(t, x->rank, shape);
  if (!y) return NULL;
  mhk__swap(x, mhk__d(x), mhk__d(y), 0);
  return mhk__emit(t, mhk__swap_op_back, y, NULL, 0, 1, x);
}

/* ---- embedding and linear ---- */

/* y_r = w[token_r]    dw[token_r] += dy_r */
typedef struct mhk__embedding_args {
  const int32_t *tokens;
  mhk_index rows, d;
  const mhk_real *dy;
  mhk_real *dw;
} mhk__embedding_args;

static void mhk__embedding_back_body(mhk_context *ctx, void *args, mhk_index first, mhk_index last) {
  const mhk__embedding_args *a = (const mhk__embedding_args *)args;
  (void)ctx;
  for (mhk_index r = 0; r < a->rows; r++) {
    const mhk_real *g = a->dy + r * a->d;
    mhk_real *w = a->dw + a->tokens[r] * a->d;
    for (mhk_index j = first; j < last; j++) w[j] += g[j];
  }
}

static void mhk__embedding_op_back(mhk_tape *t, mhk__node *n) {
  mhk__embedding_args a = *(const mhk__embedding_args *)n->saved;
  a.dw = mhk__into(t, n->in[0]);
  a.dy = n->out[0]->grad;
  if (a.dw) mhk__over(t->ctx, a.d, 64, mhk__embedding_back_body, &a); /* columns: two rows may be of one token */
}

MHKDEF mhk_tensor *mhk_embedding(mhk_tape *t, mhk_tensor *w, const int32_t *tokens, mhk_index B, mhk_index T) {
  if (!mhk__tape_ready(t) || !w) return NULL;
  if (!tokens && B > 0 && T > 0)
    return mhk__null(t->ctx, MHK_ERROR_ARGUMENT, "embedding: the %lld x %lld tokens are missing (NULL)",
                     (long long)B, (long long)T);
  if (w->rank != 2)
    return mhk__null(t->ctx, MHK_ERROR_SHAPE, "embedding: the weight has rank %d; it must be (vocabulary, d_model)",
                     w->rank);
  const mhk_index shape[3] = {B, T, w->shape[1]};
  mhk_tensor *y = mhk__new(t, 3, shape);
  int32_t *copy = y ? (int32_t *)mhk__arena_zeros(t->ctx, &t->arena, B * T, sizeof(int32_t)) : NULL;
  if (!copy) return NULL;
  for (mhk_index r = 0; r < B * T; r++) {
    if (tokens[r] < 0 || tokens[r] >= w->shape[0])
      return mhk__null(t->ctx, MHK_ERROR_ARGUMENT, "token %lld of the input is %d: the vocabulary has ids 0 to %lld",
                       (long long)r, (int)tokens[r], (long long)w->shape[0] - 1);
    copy[r] = tokens[r];
    mhk_tensor_read(w, tokens[r] * w->shape[1], w->shape[1], mhk__d(y) + r * w->shape[1]);
  }
  const mhk__embedding_args a = {copy, B * T, w->shape[1], NULL, NULL};
  return mhk__emit(t, mhk__embedding_op_back, y, &a, sizeof a, 1, w);
}

/*    y = x w^T + bias            dx += dy w    dw += dy^T x    dbias += sum over rows of dy
      y = gelu(x w^T + bias)      the same with dy gelu'(before) for dy
      y = x w^T + bias + r        dr += dy */
typedef struct mhk__linear_saved {
  mhk_real *before; /* the input of gelu */
  mhk_precision precision;
} mhk__linear_saved;

static void mhk__linear_product(mhk_context *ctx, mhk_precision precision, mhk_index M, mhk_index N, mhk_index K,
                                mhk__matrix a, mhk__matrix b, mhk_real *c, const mhk__epilogue *e) {
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

/* The gradients of residual, bias, weight and x. With gelu, dy is first multiplied by the
   derivative of gelu. */
static void mhk__linear_op_back(mhk_tape *t, mhk__node *n) {
  const mhk__linear_saved *s = (const mhk__linear_saved *)n->saved;
  mhk_context *ctx = t->ctx;
  mhk_tensor *x = n->in[0], *w = n->in[1], *y = n->out[0];
  const mhk_index N = w->shape[0], K = w->shape[1], rows = N ? y->count / N : 0;
  const mhk__mark mark = mhk__scratch_mark(ctx);
  mhk_real *dw = mhk__into(t, w), *db = mhk__into(t, n->in[2]), *dr = mhk__into(t, n->in[3]);
  const mhk_real *g = y->grad;
  mhk__epilogue e = mhk__accumulate();
  int add = 1;
  mhk_real *dx = rows > 0 ? mhk__into_all(t, x, &add) : NULL;
  if (s->before) {
    mhk__gelu_args a = {s->before, g, mhk__scratch_reals(ctx, y->count)};
    if (!a.dx) return;
    mhk__over(ctx, y->count, MHK__GRAIN, mhk__gelu_back_body, &a);
    g = a.dx;
  }
  if (dr) mhk__axpy(ctx, y->count, MHK__R(1), g, dr);
  if (db) mhk__column_sum(ctx, rows, N, g, db);
  if (dw)
    mhk__linear_product(ctx, s->precision, N, K, rows, mhk__real_mat(g, 1, N), mhk__real_mat(mhk__d(x), K, 1), dw, &e);
  e.accumulate = add;
  if (dx) mhk__linear_product(ctx, s->precision, rows, K, N, mhk__real_mat(g, N, 1), mhk__mat_weight(w, 0), dx, &e);
  mhk__scratch_rewind(ctx, mark);
}

/* Checks shapes and types, multiplies with the epilogue that adds bias, gelu or residual, and
   records the op. */
static mhk_tensor *mhk__linear_op(mhk_tape *t, const char *name, mhk_tensor *x, mhk_tensor *w, mhk_tensor *b, int gelu,
                                  mhk_tensor *residual) {
  if (!w || !mhk__ready(t, name, 1, 3, x, b, residual)) return NULL;
  if (!mhk__fits(t, name, w->rank == 2 && x->rank >= 1 && mhk__last(x) == w->shape[1], x, w,
                 "they must be (...,K) and (N,K)") ||
      !mhk__bias_fits(t, name, w, b, w->shape[0]))
    return NULL;
  if (w->dtype != MHK_REAL && w->dtype != MHK_F32 && w->dtype != MHK_F64 && w->dtype != MHK_F16 &&
      w->dtype != MHK_BF16 && !w->quantized)
    return mhk__null(t->ctx, MHK_ERROR_UNSUPPORTED, "%s: %s is stored as %s", name, w->name ? w->name : "the weight",
                     mhk_dtype_name(w->dtype));
  mhk_tensor *y = mhk__new_wide(t, x, w->shape[0]);
  if (!y || (residual && !mhk__fits(t, name, mhk__same_shape(residual, y), y, residual,
                                    "the residual must have the shape of the output")))
    return NULL;
  mhk_tensor *const in[4] = {x, w, b, residual};
  mhk__node *n = mhk__record(t, mhk__linear_op_back, 4, in, 1, &y, sizeof(mhk__linear_saved));
  mhk__linear_saved s = {NULL, t->ctx->precision};
  if (n && gelu) {
    s.before = (mhk_real *)mhk__arena_alloc(t->ctx, &t->arena, (size_t)y->count * sizeof(mhk_real));
    if (!s.before) return NULL;
  }
  if (n) *(mhk__linear_saved *)n->saved = s;
  mhk__epilogue e;
  memset(&e, 0, sizeof e);
  e.bias = mhk__d(b);
  e.residual = mhk__d(residual);
  e.before = s.before;
  e.gelu = gelu;
  mhk__linear_product(t->ctx, s.precision, mhk__row_count(x), w->shape[0], w->shape[1],
                      mhk__real_mat(mhk__d(x), w->shape[1], 1), mhk__mat_weight(w, 1), mhk__d(y), &e);
  return t->ctx->result == MHK_OK ? y : NULL;
}
MHKDEF mhk_tensor *mhk_linear(mhk_tape *t, mhk_tensor *x, mhk_tensor *w, mhk_tensor *b) {
  return mhk__linear_op(t, "linear", x, w, b, 0, NULL);
}
MHKDEF mhk_tensor *mhk_linear_gelu(mhk_tape *t, mhk_tensor *x, mhk_tensor *w, mhk_tensor *b) {
  return mhk__linear_op(t, "linear_gelu", x, w, b, 1, NULL);
}
MHKDEF mhk_tensor *mhk_linear_add(mhk_tape *t, mhk_tensor *x, mhk_tensor *w, mhk_tensor *b, mhk_tensor *residual) {
  return residual ? mhk__linear_op(t, "linear_add", x, w, b, 0, residual) : NULL;
}
#endif /* MOHAWK_NO_TRAINING */
#endif /* MOHAWK_IMPLEMENTATION */

/* =================================================================================================
   ROWS: softmax, LayerNorm, RMSNorm, the gate                                                >>rows
   =================================================================================================

   Functions of one row of numbers each, shared out among the workers by rows:
      softmax    exp(x_i) / sum of exp(x_j); the logarithm of that sum is log-sum-exp
      LayerNorm  (x - mean) / sqrt(variance + eps) * weight + bias; RMSNorm, the same without mean
      gate       y * silu(z), which closes a state-space mixer */

#if MHK__REFERENCE == 1 && !defined(MHK__PASS)
/* ---- reference */

/* y = softmax(x); returns log sum exp(x) */
static inline double mhk__ref_softmax(int n, const double *x, double *y) {
  double largest = -HUGE_VAL, sum = 0;
  for (int i = 0; i < n; i++) largest = fmax(largest, x[i]);
  for (int i = 0; i < n; i++) sum += exp(x[i] - largest);
  for (int i = 0; i < n; i++) y[i] = exp(x[i] - largest) / sum;
  return largest + log(sum);
}

/* LayerNorm, and RMSNorm where center is 0: normalized = (x - mean) / sqrt(variance + eps). Returns
   1 / sqrt(...). */
static inline double mhk__ref_normalize(int n, const double *x, double eps, int center, double *mean,
                                        double *normalized) {
  double variance = 0;
  *mean = 0;
  for (int i = 0; i < n && center; i++) *mean += x[i] / n;
  for (int i = 0; i < n; i++) variance += (x[i] - *mean) * (x[i] - *mean) / n;
  for (int i = 0; i < n; i++) normalized[i] = (x[i] - *mean) / sqrt(variance + eps);
  return 1 / sqrt(variance + eps);
}
/* dx from dn, the gradient of the normalized values */
static inline void mhk__ref_normalize_back(int n, const double *normalized, double rstd, int center, const double *dn,
                                           double *dx) {
  double sum = 0, dot = 0;
  for (int i = 0; i < n; i++) {
    sum += center ? dn[i] / n : 0;
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
static inline mhk_real MHK__N(mhk__row_exp)(mhk_index n, const mhk_real *x, mhk_real scale, mhk_real shift,
                                            mhk_real *y) {
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

/* log sum exp(scale x); adds sums of 256 elements in double, so a large vocabulary loses no
   precision */
static double MHK__N(mhk__log_sum_exp)(mhk_index n, const mhk_real *x, mhk_real scale) {
  const mhk_real most = MHK__N(mhk__row_max)(n, x) * scale;
  double total = 0;
  mhk_real block[256];
  for (mhk_index i = 0; i < n; i += 256)
    total += (double)MHK__N(mhk__row_exp)(n - i < 256 ? n - i : 256, x + i, scale, most, block);
  return (double)most + log(total);
}

/* y = (x - mean) rstd w + b, and mean and rstd for the backward pass; RMSNorm has center 0 */
static void MHK__N(mhk__norm)(mhk_index n, const mhk_real *x, const mhk_real *w, const mhk_real *b, mhk_real eps,
                              int center, mhk_real *y, mhk_real *mean, mhk_real *rstd) {
  mhk_index i;
  MHK__V total = MHK__SET(MHK__R(0)), vm;
  mhk_real m = 0, r, rest = 0;
  if (center) {
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
/* dx += r (g - mean(g) - xhat mean(g xhat)), g = dy w, xhat = (x - m) r; without centering the
   middle term is absent */
static void MHK__N(mhk__norm_back)(mhk_index n, const mhk_real *x, const mhk_real *w, mhk_real m, mhk_real r,
                                   int center, const mhk_real *dy, mhk_real *dx) {
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
  a = center ? (a + MHK__N(mhk__hsum)(sg)) / (mhk_real)n : 0;
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
/* dy += g silu(s); dz = g y silu'(s) is written, and the caller adds it up */
static void MHK__N(mhk__gate_back)(mhk_index n, const mhk_real *y, const mhk_real *z, const mhk_real *bias,
                                   const mhk_real *g, mhk_real *dy, mhk_real *dz) {
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

/* inputs of the ops of this chapter, which they also save for their backward passes */
typedef struct mhk__rows_args {
  mhk_index n, rows;
  const mhk_real *x, *z, *w, *b;  /* x and z (rows,n), w and b (n) */
  mhk_real *y, *mean, *rstd;      /* y (rows,n), mean and rstd (rows) */
  mhk_real eps;
  int center;
  const mhk_real *dy;
  mhk_real *dx, *dz;              /* added to; NULL: not needed */
} mhk__rows_args;

static mhk__rows_args mhk__rows_of(const mhk_tensor *x, const mhk_tensor *y) {
  mhk__rows_args a;
  memset(&a, 0, sizeof a);
  a.n = mhk__last(x);
  a.rows = mhk__row_count(x);
  a.x = mhk__d(x);
  a.y = mhk__d(y);
  return a;
}

/* y = softmax(x)    dx += y (dy - sum of y dy) */
static void mhk__softmax_row(mhk_context *ctx, const void *args, mhk_index r) {
  const mhk__rows_args *a = (const mhk__rows_args *)args;
  ctx->kernels->softmax(a->n, a->x + r * a->n, a->y + r * a->n);
}

/* dx += f y (dy - sum of y dy), for one row */
static void mhk__through_softmax(mhk_index n, const mhk_real *y, const mhk_real *dy, mhk_real f, mhk_real *dx) {
  double dot = 0;
  for (mhk_index j = 0; j < n; j++) dot += (double)(y[j] * dy[j]);
  for (mhk_index j = 0; j < n; j++) dx[j] += f * y[j] * (dy[j] - MHK__R(dot));
}

static void mhk__softmax_row_back(mhk_context *ctx, const void *args, mhk_index r) {
  const mhk__rows_args *a = (const mhk__rows_args *)args;
  (void)ctx;
  mhk__through_softmax(a->n, a->y + r * a->n, a->dy + r * a->n, MHK__R(1), a->dx + r * a->n);
}

static void mhk__softmax_op_back(mhk_tape *t, mhk__node *n) {
  mhk__rows_args a = mhk__rows_of(n->in[0], n->out[0]);
  a.dy = n->out[0]->grad;
  a.dx = mhk__into(t, n->in[0]);
  if (a.dx) mhk__over_rows(t->ctx, a.rows, a.n, mhk__softmax_row_back, &a);
}

MHKDEF mhk_tensor *mhk_softmax(mhk_tape *t, mhk_tensor *x) {
  mhk_tensor *y = mhk__ready(t, "softmax", 1, 1, x) ? mhk__new(t, x->rank, x->shape) : NULL;
  if (!y) return NULL;
  const mhk__rows_args a = mhk__rows_of(x, y);
  mhk__over_rows(t->ctx, a.rows, a.n, mhk__softmax_row, &a);
  return mhk__emit(t, mhk__softmax_op_back, y, NULL, 0, 1, x);
}

/* n = (x - mean) rstd, rstd = 1 / sqrt(variance + eps); y = n w + b
   dx += rstd (g - mean(g) - n mean(g n)) with g = dy w; RMSNorm has no means of x and g
   dw += sum over rows of dy n;  db += sum over rows of dy */
static void mhk__norm_row(mhk_context *ctx, const void *args, mhk_index r) {
  const mhk__rows_args *a = (const mhk__rows_args *)args;
  ctx->kernels->norm(a->n, a->x + r * a->n, a->w, a->b, a->eps, a->center, a->y + r * a->n, a->mean + r, a->rstd + r);
}

static void mhk__norm_row_back(mhk_context *ctx, const void *args, mhk_index r) {
  const mhk__rows_args *a = (const mhk__rows_args *)args;
  ctx->kernels->norm_back(a->n, a->x + r * a->n, a->w, a->mean[r], a->rstd[r], a->center, a->dy + r * a->n,
                          a->dx + r * a->n);
}

static void mhk__norm_op_back(mhk_tape *t, mhk__node *n) {
  mhk__rows_args a = *(const mhk__rows_args *)n->saved;
  mhk_real *dw = mhk__into(t, n->in[1]), *db = mhk__into(t, n->in[2]);
  mhk__columns_args c = {a.rows, a.n, n->out[0]->grad, a.x, a.mean, a.rstd, dw};
  a.dy = n->out[0]->grad;
  a.dx = mhk__into(t, n->in[0]);
  if (a.dx) mhk__over_rows(t->ctx, a.rows, a.n, mhk__norm_row_back, &a);
  if (dw) mhk__over(t->ctx, a.n, 64, mhk__column_sum_body, &c);
  if (db) mhk__column_sum(t->ctx, a.rows, a.n, a.dy, db);
}

/* LayerNorm (center 1, b may be NULL) or RMSNorm (center 0); mean and rstd of each row are saved */
static mhk_tensor *mhk__norm_op(mhk_tape *t, const char *name, mhk_tensor *x, mhk_tensor *w, mhk_tensor *b, double eps,
                                int center) {
  if (!mhk__ready(t, name, 2, 3, x, w, b) || !mhk__number_fits(t->ctx, name, "eps", eps, 0, MHK__REAL_MOST))
    return NULL;
  if (!mhk__fits(t, name, w->rank == 1 && mhk__last(x) == w->shape[0] && mhk__last(x) >= 1, x, w,
                 "the weight must have the size of the last axis") ||
      !mhk__bias_fits(t, name, w, b, w->shape[0]))
    return NULL;
  mhk_tensor *y = mhk__new(t, x->rank, x->shape);
  mhk__rows_args a = mhk__rows_of(x, y);
  a.w = mhk__d(w);
  a.b = mhk__d(b);
  a.eps = MHK__R(eps);
  a.center = center;
  a.mean = mhk__tape_zeros(t, a.rows);
  a.rstd = mhk__tape_zeros(t, a.rows);
  if (!y || !a.mean || !a.rstd) return NULL;
  mhk__over_rows(t->ctx, a.rows, a.n, mhk__norm_row, &a);
  return mhk__emit(t, mhk__norm_op_back, y, &a, sizeof a, 3, x, w, b);
}
MHKDEF mhk_tensor *mhk_layer_norm(mhk_tape *t, mhk_tensor *x, mhk_tensor *w, mhk_tensor *b, double eps) {
  return mhk__norm_op(t, "layer_norm", x, w, b, eps, 1);
}
MHKDEF mhk_tensor *mhk_rms_norm(mhk_tape *t, mhk_tensor *x, mhk_tensor *w, double eps) {
  return mhk__norm_op(t, "rms_norm", x, w, NULL, eps, 0);
}

/* y = x silu(s), s = z + bias    dx += dy silu(s), dz += dy x silu'(s), dbias += sum over rows of
   that */
static void mhk__gate_row(mhk_context *ctx, const void *args, mhk_index r) {
  const mhk__rows_args *a = (const mhk__rows_args *)args;
  ctx->kernels->gate(a->n, a->x + r * a->n, a->z + r * a->n, a->b, a->y + r * a->n);
}

static void mhk__gate_row_back(mhk_context *ctx, const void *args, mhk_index r) {
  const mhk__rows_args *a = (const mhk__rows_args *)args;
  const mhk_index at = r * a->n;
  ctx->kernels->gate_back(a->n, a->x + at, a->z + at, a->b, a->dy + at, a->dx ? a->dx + at : NULL,
                          a->dz ? a->dz + at : NULL);
}

static void mhk__gate_op_back(mhk_tape *t, mhk__node *n) {
  mhk__rows_args a = *(const mhk__rows_args *)n->saved;
  const mhk__mark mark = mhk__scratch_mark(t->ctx);
  mhk_real *dz = mhk__into(t, n->in[1]), *db = mhk__into(t, n->in[2]);
  a.dy = n->out[0]->grad;
  a.dx = mhk__into(t, n->in[0]);
  a.dz = dz || db ? mhk__scratch_reals(t->ctx, a.rows * a.n) : NULL; /* written, not added to */
  if ((dz || db) && !a.dz) return;
  mhk__over_rows(t->ctx, a.rows, a.n, mhk__gate_row_back, &a);
  if (dz) mhk__axpy(t->ctx, a.rows * a.n, MHK__R(1), a.dz, dz);
  if (db) mhk__column_sum(t->ctx, a.rows, a.n, a.dz, db);
  mhk__scratch_rewind(t->ctx, mark);
}

MHKDEF mhk_tensor *mhk_gate(mhk_tape *t, mhk_tensor *x, mhk_tensor *z, mhk_tensor *b) {
  if (!mhk__ready(t, "gate", 2, 3, x, z, b) ||
      !mhk__fits(t, "gate", mhk__same_shape(x, z), x, z, "both must have the same shape") ||
      !mhk__bias_fits(t, "gate", x, b, mhk__last(x)))
    return NULL;
  mhk_tensor *y = mhk__new(t, x->rank, x->shape);
  if (!y) return NULL;
  mhk__rows_args a = mhk__rows_of(x, y);
  a.z = mhk__d(z);
  a.b = mhk__d(b);
  mhk__over_rows(t->ctx, a.rows, a.n, mhk__gate_row, &a);
  return mhk__emit(t, mhk__gate_op_back, y, &a, sizeof a, 3, x, z, b);
}
#endif /* MOHAWK_NO_TRAINING */
#endif /* MOHAWK_IMPLEMENTATION */

/* =================================================================================================
   ROTARY: positions as rotations                                                           >>rotary
   =================================================================================================

   Rotary embedding (Su et al. 2021, arXiv 2104.09864) rotates pairs of features by an angle
   proportional to the token's position, so that q_t . k_s depends on t - s only. Half-split
   form: feature i pairs with i + dim/2, and rotates by position * theta^(-2i/dim). */

#if MHK__REFERENCE == 1 && !defined(MHK__PASS)
/* ---- reference */

/* Rotary embedding of one head at a position: rotates elements i and i + dim/2 by position *
   theta^(-2i/dim). */
static inline void mhk__ref_rotary(int dim, double theta, double position, const double *x, double *y) {
  for (int i = 0; i < dim / 2; i++) {
    const double angle = position * pow(theta, -2.0 * i / dim), low = x[i], high = x[i + dim / 2];
    y[i] = low * cos(angle) - high * sin(angle);
    y[i + dim / 2] = high * cos(angle) + low * sin(angle);
  }
}
#endif /* reference */

#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
/* Rotates n heads of P numbers in place. rotation has c and s, the cosines and sines of
   position * theta^(-2i/dim). With j = i + dim/2:
      x_i = x_i c - x_j s    x_j = x_j c + x_i s    features from dim on stay */
static void mhk__rotate_heads(mhk_index n, mhk_index P, mhk_index dim, const mhk_real *rotation, mhk_real *x) {
  const mhk_index half = dim / 2;
  const mhk_real *MHK__RESTRICT c = rotation, *MHK__RESTRICT s = rotation + half;
  for (mhk_index h = 0; h < n; h++, x += P) {
    mhk_real *MHK__RESTRICT low = x, *MHK__RESTRICT high = x + half;
    for (mhk_index i = 0; i < half; i++) {
      const mhk_real a = low[i], b = high[i];
      low[i] = a * c[i] - b * s[i];
      high[i] = b * c[i] + a * s[i];
    }
  }
}

#ifndef MOHAWK_NO_TRAINING
/* ---- ops */

/* The gradient rotates the other way:  dx_i += dy_i c + dy_j s    dx_j += dy_j c - dy_i s */
typedef struct mhk__rotary_args {
  mhk_index T, H, P, dim;
  const mhk_real *x, *rotation; /* x (B,T,H,P), rotation (T,dim): dim/2 cosines, dim/2 sines */
  const mhk_index *start;
  mhk_real *y;
  const mhk_real *dy;
  mhk_real *dx;
} mhk__rotary_args;

static const mhk_real *mhk__rotation_at(const mhk__rotary_args *a, mhk_index r) {
  const mhk_index from = a->start ? a->start[r] : -1;
  return a->rotation + (r % a->T - (from > 0 ? from : 0)) * a->dim;
}

static void mhk__rotary_row(mhk_context *ctx, const void *args, mhk_index r) {
  const mhk__rotary_args *a = (const mhk__rotary_args *)args;
  const mhk_index n = a->H * a->P;
  (void)ctx;
  memcpy(a->y + r * n, a->x + r * n, (size_t)n * sizeof(mhk_real));
  mhk__rotate_heads(a->H, a->P, a->dim, mhk__rotation_at(a, r), a->y + r * n);
}

static void mhk__rotary_row_back(mhk_context *ctx, const void *args, mhk_index r) {
  const mhk__rotary_args *a = (const mhk__rotary_args *)args;
  const mhk_index half = a->dim / 2;
  const mhk_real *MHK__RESTRICT c = mhk__rotation_at(a, r), *MHK__RESTRICT s = c + half;
  (void)ctx;
  for (mhk_index h = 0; h < a->H; h++) {
    const mhk_real *MHK__RESTRICT dy = a->dy + (r * a->H + h) * a->P;
    mhk_real *MHK__RESTRICT dx = a->dx + (r * a->H + h) * a->P;
    for (mhk_index i = 0; i < half; i++) {
      dx[i] += dy[i] * c[i] + dy[i + half] * s[i];
      dx[i + half] += dy[i + half] * c[i] - dy[i] * s[i];
    }
    for (mhk_index i = a->dim; i < a->P; i++) dx[i] += dy[i];
  }
}

static void mhk__rotary_op_back(mhk_tape *t, mhk__node *n) {
  mhk__rotary_args a = *(const mhk__rotary_args *)n->saved;
  a.dx = mhk__into(t, n->in[0]);
  a.dy = n->out[0]->grad;
  if (a.dx) mhk__over_rows(t->ctx, n->in[0]->shape[0] * a.T, a.H * a.P, mhk__rotary_row_back, &a);
}

MHKDEF mhk_tensor *mhk_rotary(mhk_tape *t, mhk_tensor *x, int dim, double theta, const int32_t *doc) {
  char text[128];
  if (!mhk__ready(t, "rotary", 1, 1, x)) return NULL;
  if (x->rank != 4 || dim < 0 || dim % 2 || dim > x->shape[3])
    return mhk__null(t->ctx, MHK_ERROR_SHAPE,
                     "rotary: %d features of %s: the input must be (B,T,H,P) and the number of features even and at "
                     "most P", dim,
                     mhk__shape_text(x->rank, x->shape, text, sizeof text));
  if (!mhk__number_fits(t->ctx, "rotary", "theta", theta, DBL_MIN, DBL_MAX)) return NULL;
  const mhk_index B = x->shape[0], T = x->shape[1], half = dim / 2;
  mhk_tensor *y = mhk__new(t, 4, x->shape);
  const mhk_index *start = mhk__starts(t, doc, B, T);
  mhk_real *rotation = mhk__tape_zeros(t, T * dim);
  if (!y || !rotation || (doc && !start)) return NULL;
  for (mhk_index j = 0; j < half; j++) {
    const double angle = pow(theta, -2.0 * (double)j / dim);
    for (mhk_index i = 0; i < T; i++) {
      rotation[i * dim + j] = MHK__R(cos((double)i * angle));
      rotation[i * dim + half + j] = MHK__R(sin((double)i * angle));
    }
  }
  const mhk__rotary_args a = {T, x->shape[2], x->shape[3], dim, mhk__d(x), rotation, start, mhk__d(y), NULL, NULL};
  mhk__over_rows(t->ctx, B * T, a.H * a.P, mhk__rotary_row, &a);
  return mhk__emit(t, mhk__rotary_op_back, y, &a, sizeof a, 1, x);
}
#endif /* MOHAWK_NO_TRAINING */
#endif /* MOHAWK_IMPLEMENTATION */

/* =================================================================================================
   CONVOLUTION: causal and depthwise                                                   >>convolution
   =================================================================================================

   y_t = bias + sum over w < W of tap_w x_{t-(W-1)+w}, each channel by itself: the few tokens of
   context that a state-space mixer mixes before its state sees them. Tokens of another document
   do not count. In inference the last W - 1 inputs are the state that is carried from call to
   call. */

#if MHK__REFERENCE == 1 && !defined(MHK__PASS)
/* ---- reference */

typedef struct mhk__ref_conv {
  int T, W;
  const double *x, *past;  /* (T); the (W-1) inputs before the first token, oldest first, or NULL for zeros */
  const double *taps;      /* (W) */
  double bias;
  const int *first;        /* (T): the first token of t's document, -1 if it includes the past; NULL: -1 everywhere */
} mhk__ref_conv;

/* the input under tap w of token t */
static inline double mhk__ref_conv_input(const mhk__ref_conv *a, int t, int w) {
  const int s = t - (a->W - 1 - w), first = a->first ? a->first[t] : -1;
  if (s < 0) return first < 0 && a->past ? a->past[a->W - 1 + s] : 0;
  return s >= first ? a->x[s] : 0;
}
/* z (T), before the activation */
static inline void mhk__ref_conv_forward(const mhk__ref_conv *a, double *z) {
  for (int t = 0; t < a->T; t++) {
    z[t] = a->bias;
    for (int w = 0; w < a->W; w++) z[t] += a->taps[w] * mhk__ref_conv_input(a, t, w);
  }
}
static inline void mhk__ref_conv_back(const mhk__ref_conv *a, const double *dz, double *dx, double *dtaps,
                                      double *dbias) {
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

/* Depthwise convolution of one range of channels. Rows of x have ldx columns, rows of y have
   ldy. */
struct mhk__conv_args {
  mhk_index B, T, C, W;          /* C channels in x */
  const mhk_real *x, *weight, *bias;
  const mhk_index *start;
  int silu;
  mhk_real *y;                   /* output of this range, its first channel at y[0] */
  mhk_index ldy, first;          /* columns of y; first channel of the range in x */
  mhk_real *before;              /* (B,T,C): pre-activation, silu only */
  const mhk_real *dy;
  mhk_real *dx, *dweight, *dbias; /* added to; NULL: not needed */
};

/* The convolution in inference: T tokens of one sequence. Rows of x have ldx columns; channels are
   adjacent everywhere. */
struct mhk__conv_state_args {
  mhk_index T, W, C, ldx, ldy;
  const mhk_real *x, *taps, *bias; /* taps (W,C); the last one is for the token itself */
  mhk_real *state;                 /* (W-1,C): the previous inputs, oldest first; updated */
  int silu;
  mhk_real *y;                     /* channel c goes to column c - first */
  mhk_index first;
};

enum { MHK__CONV_BLOCK = 64 }; /* channels per task of the convolution */
#ifndef MOHAWK_NO_TRAINING
static mhk_index mhk__conv_work(mhk_index W) { return (2 * W + 4) * MHK__CONV_BLOCK; }
#endif /* MOHAWK_NO_TRAINING */
#endif /* MOHAWK_IMPLEMENTATION */

#ifdef MHK__TEMPLATE
#ifndef MOHAWK_NO_TRAINING
/* ---- kernels */

/* the inputs of channels c0... at position s as seen by token t: zeros outside its document */
static inline const mhk_real *MHK__N(mhk__conv_tap)(const mhk__conv_args *a, mhk_index b, mhk_index t, mhk_index s,
                                                    mhk_index c0, const mhk_real *zeros) {
  return s < 0 || (a->start && s < a->start[b * a->T + t]) ? zeros : a->x + (b * a->T + s) * a->C + c0;
}

/* One vector of channels over one sequence, for up to four taps and no documents. The last inputs
   stay in registers. k[0..3] are the taps; unused ones are 0. */
static void MHK__N(mhk__conv_run4)(const mhk__conv_args *a, mhk_index b, mhk_index c, mhk_index n, const MHK__V *k) {
  const mhk_real *x = a->x + b * a->T * a->C + c;
  mhk_real *y = a->y + b * a->T * a->ldy + c - a->first;
  const MHK__V bias = a->bias ? MHK__LOADN(a->bias + c, n) : MHK__SET(MHK__R(0)), k0 = k[0], k1 = k[1], k2 = k[2],
               k3 = k[3];
  MHK__V x0 = MHK__SET(MHK__R(0)), x1 = x0, x2 = x0;
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
static void MHK__N(mhk__conv_back4)(const mhk__conv_args *a, mhk_index b, mhk_index c, mhk_index n, const MHK__V *k,
                                    MHK__V *sums) {
  const MHK__V zero = MHK__SET(MHK__R(0)), one = MHK__SET(MHK__R(1)), k0 = k[0], k1 = k[1], k2 = k[2], k3 = k[3];
  const mhk_real *x = a->x + b * a->T * a->C + c, *dy = a->dy + b * a->T * a->ldy + c - a->first;
  MHK__V g0 = zero, g1 = zero, g2 = zero, x0 = zero, x1 = zero, x2 = zero, s0 = sums[0], s1 = sums[1], s2 = sums[2],
         s3 = sums[3], s4 = sums[4];
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

/* the taps of n channels, tap by tap, with zeros for inputs outside a document */
static void MHK__N(mhk__conv_taps)(const mhk__conv_args *a, mhk_index c0, mhk_index n, mhk_real *taps,
                                   mhk_real *zeros) {
  for (mhk_index w = 0; w < a->W; w++)
    for (mhk_index i = 0; i < n; i++) taps[w * n + i] = a->weight[(c0 + i) * a->W + w];
  for (mhk_index i = 0; i < n; i++) zeros[i] = 0;
}

/* channels [c0,c1) of all sequences: in registers if possible, otherwise tap by tap */
static void MHK__N(mhk__conv)(const mhk__conv_args *a, mhk_index c0, mhk_index c1, mhk_real *work) {
  const mhk_index n = c1 - c0, W = a->W;
  mhk_real *taps = work, *zeros = taps + W * MHK__CONV_BLOCK;
  if (W <= 4 && !a->start) {
    for (mhk_index i = c0; i < c1; i += MHK__W) {
      MHK__V k[4];
      MHK__N(mhk__conv_taps4)(a, i, c1 - i, k);
      for (mhk_index b = 0; b < a->B; b++) MHK__N(mhk__conv_run4)(a, b, i, c1 - i, k);
    }
    return;
  }
  MHK__N(mhk__conv_taps)(a, c0, n, taps, zeros);
  for (mhk_index b = 0; b < a->B; b++)
    for (mhk_index t = 0; t < a->T; t++) {
      mhk_real *MHK__RESTRICT y = a->y + (b * a->T + t) * a->ldy + c0 - a->first;
      for (mhk_index i = 0; i < n; i++) y[i] = a->bias ? a->bias[c0 + i] : 0;
      for (mhk_index w = 0; w < W; w++) {
        const mhk_real *row = MHK__N(mhk__conv_tap)(a, b, t, t - (W - 1 - w), c0, zeros), *k = taps + w * n;
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

/* the gradients of one vector of channels, of up to four taps and no documents */
static void MHK__N(mhk__conv_back_few)(const mhk__conv_args *a, mhk_index c, mhk_index n) {
  MHK__V k[4], sums[5];
  mhk_real lane[MHK__W];
  MHK__N(mhk__conv_taps4)(a, c, n, k);
  for (mhk_index w = 0; w < 5; w++) sums[w] = MHK__SET(MHK__R(0));
  for (mhk_index b = 0; b < a->B; b++) MHK__N(mhk__conv_back4)(a, b, c, n, k, sums);
  for (mhk_index w = 4 - a->W; a->dweight && w < 4; w++) {
    MHK__STORE(lane, sums[w]);
    for (mhk_index j = 0; j < n; j++) a->dweight[(c + j) * a->W + w - 4 + a->W] += lane[j];
  }
  MHK__STORE(lane, sums[4]);
  for (mhk_index j = 0; a->dbias && j < n; j++) a->dbias[c + j] += lane[j];
}

/* the gradients of channels [c0,c1), in the same two ways */
static void MHK__N(mhk__conv_back)(const mhk__conv_args *a, mhk_index c0, mhk_index c1, mhk_real *work) {
  const mhk_index n = c1 - c0, W = a->W;
  mhk_real *taps = work, *zeros = taps + W * MHK__CONV_BLOCK, *dtaps = zeros + MHK__CONV_BLOCK,
           *g = dtaps + (W + 1) * MHK__CONV_BLOCK;
  if (W <= 4 && !a->start) {
    for (mhk_index c = c0; c < c1; c += MHK__W) MHK__N(mhk__conv_back_few)(a, c, mhk__min(c1 - c, MHK__W));
    return;
  }
  MHK__N(mhk__conv_taps)(a, c0, n, taps, zeros);
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
        if (a->dx && s >= 0 && s >= from) {
          mhk_real *MHK__RESTRICT dx = a->dx + (b * a->T + s) * a->C + c0;
          for (mhk_index i = 0; i < n; i++) dx[i] += taps[w * n + i] * g[i];
        }
        if (a->dweight) {
          mhk_real *MHK__RESTRICT dk = dtaps + w * n;
          const mhk_real *row = MHK__N(mhk__conv_tap)(a, b, t, s, c0, zeros);
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

/* input of channels c.. at token t, from x or from the state */
static inline const mhk_real *MHK__N(mhk__conv_state_row)(const mhk__conv_state_args *a, mhk_index t, mhk_index c) {
  return t < 0 ? a->state + (t + a->W - 1) * a->C + c : a->x + t * a->ldx + c;
}

/* channels [c0,c1) of T tokens; updates the state */
static void MHK__N(mhk__conv_with_state)(const mhk__conv_state_args *a, mhk_index c0, mhk_index c1) {
  const mhk_index T = a->T, W = a->W;
  for (mhk_index c = c0; c < c1; c += MHK__W) {
    const mhk_index n = c1 - c;
    const MHK__V bias = a->bias ? MHK__LOADN(a->bias + c, n) : MHK__SET(MHK__R(0));
    mhk_real *y = a->y + c - a->first;
    for (mhk_index t = 0; t < T; t++, y += a->ldy) {
      MHK__V v = bias;
      for (mhk_index w = 0; w < W; w++) {
        const mhk_real *x = MHK__N(mhk__conv_state_row)(a, t - W + 1 + w, c);
        v = MHK__FMA(MHK__LOADN(a->taps + w * a->C + c, n), MHK__LOADN(x, n), v);
      }
      if (a->silu) v = MHK__N(mhk__silu_of)(v);
      MHK__STOREN(y, v, n);
    }
    for (mhk_index w = 0; w + 1 < W; w++) {
      const mhk_real *x = MHK__N(mhk__conv_state_row)(a, T - W + 1 + w, c);
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
  mhk__run(ctx, a, (a->ldy + MHK__CONV_BLOCK - 1) / MHK__CONV_BLOCK, 0, mhk__conv_work(a->W),
           (double)(a->B * a->T * a->W) * (double)a->ldy, mhk__conv_task);
}

/* ---- ops */

/* y = z, or silu(z): z_t = bias + sum over w of tap_w x_{t-(W-1)+w}
   With dz = dy, or dy silu'(z):  dx_s += sum over w of tap_w dz_{s+(W-1)-w},
   dtap_w += sum over t of dz_t x_{t-(W-1)+w},  dbias += sum over t of dz_t
   Each output is a run of channels of its own. */
static void mhk__conv_op_back(mhk_tape *t, mhk__node *n) {
  mhk__conv_args a = *(const mhk__conv_args *)n->saved;
  a.dx = mhk__into(t, n->in[0]);
  a.dweight = mhk__into(t, n->in[1]);
  a.dbias = mhk__into(t, n->in[2]);
  a.first = 0;
  for (int i = 0; i < n->outputs; a.first += a.ldy, i++) {
    a.ldy = mhk__last(n->out[i]);
    a.dy = n->out[i]->grad;
    if (a.dy) mhk__conv_run(t->ctx, &a);
  }
}

MHKDEF mhk_tensor *mhk_conv1d(mhk_tape *t, mhk_tensor *x, mhk_tensor *w, mhk_tensor *bias,
                              const mhk_conv1d_desc *desc) {
  mhk_index total = 0, all = x ? mhk__last(x) : 0;
  mhk_tensor *whole = NULL;
  const int parts = desc ? desc->parts : 0, count = parts ? parts : 1;
  const mhk_index *widths = parts ? desc->widths : &all;
  mhk_tensor **out = parts ? desc->out : &whole;
  for (int i = 0; out && i < count && i < MHK__MAX_OUT; i++) out[i] = NULL;
  if (!mhk__ready(t, "conv1d", 2, 3, x, w, bias)) return NULL;
  mhk_context *ctx = t->ctx;
  if (!out || !widths)
    return mhk__null(ctx, MHK_ERROR_ARGUMENT, "conv1d: the list of %d widths or of the outputs is missing (NULL)",
                     count);
  for (int i = 0; i < count && i < MHK__MAX_OUT && total >= 0; i++)
    total = widths[i] < 0 || widths[i] > x->count - total ? -1 : total + widths[i];
  if (!mhk__fits(t, "conv1d",
                 x->rank == 3 && w->rank == 3 && w->shape[0] == x->shape[2] && w->shape[1] == 1 && w->shape[2] >= 1 &&
                     (!bias || (bias->rank == 1 && bias->shape[0] == x->shape[2])) && total == x->shape[2] &&
                     count >= 1 && count <= MHK__MAX_OUT,
                 x, w, "they must be (B,T,C) and (C,1,W), with a bias of C, and the widths must add up to C"))
    return NULL;
  mhk__conv_args a;
  memset(&a, 0, sizeof a);
  a.B = x->shape[0];
  a.T = x->shape[1];
  a.C = x->shape[2];
  a.W = w->shape[2];
  a.x = mhk__d(x);
  a.weight = mhk__d(w);
  a.bias = mhk__d(bias);
  a.silu = desc && desc->silu;
  a.start = mhk__starts(t, desc ? desc->doc : NULL, a.B, a.T);
  for (int i = 0; i < count; i++) out[i] = mhk__new_wide(t, x, widths[i]);
  if (ctx->result != MHK_OK) return NULL;
  mhk_tensor *const in[3] = {x, w, bias};
  mhk__node *n = mhk__record(t, mhk__conv_op_back, 3, in, count, out, sizeof a);
  if (n && a.silu) a.before = (mhk_real *)mhk__arena_alloc(ctx, &t->arena, (size_t)x->count * sizeof(mhk_real));
  if (ctx->result != MHK_OK) return NULL;
  if (n) *(mhk__conv_args *)n->saved = a;
  for (int i = 0; i < count; a.first += a.ldy, i++) {
    a.ldy = widths[i];
    a.y = mhk__d(out[i]);
    mhk__conv_run(ctx, &a);
  }
  return ctx->result == MHK_OK ? out[0] : NULL;
}
#endif /* MOHAWK_NO_TRAINING */
#endif /* MOHAWK_IMPLEMENTATION */

/* =================================================================================================
   ATTENTION: causal softmax attention in tiles                                          >>attention
   =================================================================================================

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

/* M[t,s] = softmax over the s that t sees of q_t . k_s / sqrt(P); log_sum_exp (T), if not NULL: the
   logarithm of each softmax's denominator */
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

/* From dy, the gradient of y = M v. Through the softmax: dscore = M (dM - sum over s of M dM),
   where dM = dy v^T. */
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

/* Attention over (B,T,H,P) queries and (B,S,G,P) keys and values; query t stands at position offset
   + t. */
struct mhk__attention_args {
  mhk_index B, T, S, H, G, P, offset;
  mhk_index kv_batch;       /* elements between the batches of k and v */
  const mhk_real *q, *k, *v;
  const mhk_index *start;   /* (B,T) first key a query sees, or NULL */
  mhk_real *y;              /* (B,T,H,P) */
  mhk_real *lse;            /* (B,H,T): log of the softmax's denominator, scores scaled; NULL in no-grad */
  const mhk_real *dy, *yy;  /* backward: cotangent and output */
  mhk_real *dq, *dk, *dv;   /* added to; NULL: not needed */
};

/* Tiles of MHK__TILE queries by tiles of as many keys. fade: the factor on earlier sums when the
   largest score grows. */
#define MHK__ATTENTION_BUFFERS(D, V, M) \
  M(keys, S, P) \
  M(values, S, P) \
  M(queries, P, MHK__TILE) /* a tile, transposed */ \
  M(scores, MHK__TILE, MHK__TILE) /* keys by queries */ \
  M(out, MHK__TILE, P) /* y, not yet divided by sum */ \
  V(most, MHK__TILE) /* of each query the largest score */ \
  V(sum, MHK__TILE) /* and the denominator so far */ \
  V(fade, MHK__TILE)
MHK__ROOM(mhk__attention, MHK__ATTENTION_BUFFERS, (mhk_index S, mhk_index P), (S, P))

#ifndef MOHAWK_NO_TRAINING
#define MHK__ATTENTION_BACK_BUFFERS(D, V, M) \
  M(keys_turned, P, T) /* tile after tile */ \
  M(values_turned, P, T) \
  M(keys, T, P) \
  M(dk, T, P) /* sums over queries and heads */ \
  M(dv, T, P) \
  M(queries, MHK__TILE, P) \
  M(dy, MHK__TILE, P) \
  M(dq, MHK__TILE, P) \
  M(m, MHK__TILE, MHK__TILE) /* the matrix, queries by keys here */ \
  M(dscore, MHK__TILE, MHK__TILE) /* dM, then the gradient of scores */ \
  V(mean, MHK__TILE) /* the sum over keys of M dM, which is dy . y */
MHK__ROOM(mhk__attention_back, MHK__ATTENTION_BACK_BUFFERS, (mhk_index T, mhk_index P), (T, P))
#endif /* MOHAWK_NO_TRAINING */
#endif /* MOHAWK_IMPLEMENTATION */

#ifdef MHK__TEMPLATE
/* ---- kernels */

/* Online softmax of one tile of scores, keys by queries. The largest score of each query so far and
   the sum of exp(score - largest) run on from tile to tile; where the largest grows, what was added
   up before shrinks by fade. Leaves exp(score - largest) in the tile. Query i sees the keys j <=
   before + i; where `cut`, documents follow each other, and only queries before until[j] see key
   j. */
static void MHK__N(mhk__online_softmax)(const mhk__attention_room *w, mhk_index keys, mhk_index queries, mhk_index P,
                                        mhk_index before, int cut, const mhk_index *until) {
  const MHK__V zero = MHK__SET(MHK__R(0)), lowest = MHK__SET(MHK__R(-3e38)),
               scale = MHK__SET(MHK__R(1.0 / sqrt((double)P)));
  const mhk_index ld = MHK__LD(queries);
  for (mhk_index i = 0; i < queries; i += MHK__W) { /* one vector of queries at a time */
    /* all of them see the keys before `sure`, none sees the keys from `to` */
    const mhk_index to = mhk__min(keys, before + i + MHK__W), sure = cut ? 0 : mhk__min(keys, before + i + 1);
    mhk_real *at = w->scores + i;
    MHK__V best = lowest, e, total, old = MHK__LOAD(w->most + i);
    mhk_index j;
    for (j = 0; j < sure; j++) best = MHK__MAX(best, MHK__LOAD(at + j * ld));
    for (; j < to; j++) {
      e = MHK__FROM(MHK__LOAD(at + j * ld), lowest, j - before - i);
      if (cut) e = MHK__FROM(lowest, e, until[j] - i);
      best = MHK__MAX(best, e);
    }
    best = MHK__MAX(old, best * scale);
    MHK__STORE(w->most + i, best);
    old = MHK__N(mhk__vexp)(old - best);
    MHK__STORE(w->fade + i, old);
    total = MHK__LOAD(w->sum + i) * old;
    best = zero - best;
    for (j = 0; j < sure; j++) {
      e = MHK__N(mhk__vexp)(MHK__FMA(MHK__LOAD(at + j * ld), scale, best));
      MHK__STORE(at + j * ld, e);
      total = total + e;
    }
    for (; j < to; j++) {
      e = MHK__FROM(MHK__N(mhk__vexp)(MHK__FMA(MHK__LOAD(at + j * ld), scale, best)), zero, j - before - i);
      if (cut) e = MHK__FROM(zero, e, until[j] - i);
      MHK__STORE(at + j * ld, e);
      total = total + e;
    }
    for (; j < keys; j++) MHK__STORE(at + j * ld, zero);
    MHK__STORE(w->sum + i, total);
  }
}

/* FlashAttention: tiles of queries meet tiles of keys, with online softmax (Dao et al., arXiv
   2205.14135). Beside the reference: the matrix is never there as a whole, so the denominator is
   known only at the end, and y is divided by it then. Scores are made transposed, keys by queries:
   maximum and sum then run down the rows, a vector of queries at once, and the tile is the left
   operand of the product with the values as it stands. Keys and values are copied in once, when the
   first tile of queries reaches them. */
static void MHK__N(mhk__attention)(const mhk__attention_args *a, mhk_index b, mhk_index h, mhk_real *work) {
  const mhk_index T = a->T, S = a->S, P = a->P, g = h / (a->H / a->G), kv = a->G * P, ldq = a->H * P, K = MHK__TILE,
                  wide = MHK__LD(P);
  const mhk_real *q = a->q + (b * T * a->H + h) * P, *k = a->k + b * a->kv_batch + g * P,
                 *v = a->v ? a->v + b * a->kv_batch + g * P : NULL;
  const mhk_index *start = a->start ? a->start + b * T : NULL;
  mhk_index i1, ready = 0, until[MHK__TILE];
  mhk__attention_room w;
  mhk__ahead ahead;
  mhk__block block;
  mhk__attention_lay(&w, work, S, P);
  memset(&block, 0, sizeof block);
  block.ahead = &ahead;
  for (mhk_index i0 = 0; i0 < T; i0 = i1) {
    /* tiles of queries end where tiles of keys do */
    const mhk_index rows = mhk__min(T - i0, K - (a->offset + i0) % K), wide_q = MHK__LD(rows),
                    last = a->offset + i0 + rows, after = last + K;
    const mhk_index first = start && start[i0] > 0 ? start[i0] / K * K : 0;
    mhk_real *y = a->y ? a->y + ((b * T + i0) * a->H + h) * P : NULL;
    i1 = i0 + rows;
    for (; ready < last; ready += K) {
      const mhk_index n = mhk__min(K, S - ready);
      if (ready + K <= first) continue;
      MHK__N(mhk__rows_in)(n, P, k + ready * kv, kv, NULL, w.keys + ready * wide);
      if (v) MHK__N(mhk__rows_in)(n, P, v + ready * kv, kv, NULL, w.values + ready * wide);
    }
    MHK__N(mhk__transposed_in)(rows, P, q + i0 * ldq, ldq, w.queries);
    ahead.parts = ahead.now = 0;
    mhk__look_ahead(&ahead, q + i1 * ldq, ldq, P, mhk__min(K, T - i1));
    mhk__look_ahead(&ahead, k + last * kv, kv, P, mhk__min(after, S) - last);
    mhk__look_ahead(&ahead, v ? v + last * kv : NULL, kv, P, mhk__min(after, S) - last);
    mhk__look_ahead(&ahead, y, ldq, P, rows);
    for (mhk_index i = 0; i < wide_q; i += MHK__W) {
      MHK__STORE(w.most + i, MHK__SET(MHK__R(-3e38)));
      MHK__STORE(w.sum + i, MHK__SET(MHK__R(0)));
    }
    for (mhk_index j0 = first; j0 < last; j0 += K) {
      /* query i sees key j <= before + i of the tile */
      const mhk_index n = mhk__min(K, last - j0), before = a->offset + i0 - j0;
      const int corner = before == 0, cut = start && start[i1 - 1] > j0;
      for (mhk_index j = 0, i = 0; cut && j < n; j++) {
        while (i < rows && start[i0 + i] <= j0 + j) i++;
        until[j] = i;
      }
      MHK__N(mhk__multiply)
      (&block, n, rows, P, mhk__in_rows(w.keys + j0 * wide, wide), mhk__in_rows(w.queries, wide_q), w.scores, wide_q,
       corner ? mhk__upper_c : mhk__whole);
      MHK__N(mhk__online_softmax)(&w, n, rows, P, before, cut, until);
      if (!v) continue;
      block.c0 = j0 > first ? w.out : NULL;
      block.f = j0 > first ? w.fade : NULL;
      block.fs = 1;
      MHK__N(mhk__multiply)
      (&block, rows, P, n, mhk__in_columns(w.scores, wide_q), mhk__in_rows(w.values + j0 * wide, wide), w.out, wide,
       corner ? mhk__lower_a : mhk__whole);
    }
    if (y) {
      for (mhk_index i = 0; i < rows; i++) w.fade[i] = MHK__R(1) / w.sum[i];
      MHK__N(mhk__rows_out)(rows, P, w.out, w.fade, NULL, y, ldq, 0);
    }
    if (a->lse)
      for (mhk_index i = 0; i < rows; i++)
        a->lse[(b * a->H + h) * T + i0 + i] = w.most[i] + MHK__R(log((double)w.sum[i]));
  }
}

/* AVX-512 decodes with AVX2: sums across more lanes cost more than they save (1.2 to 1.6 times the
   time, keys in the caches) */
#ifdef MHK__HAS_DECODING
/* y (P) = f times the sum of n rows of v, kv apart, weighted by s */
static void MHK__N(mhk__weighted_rows)(mhk_index n, mhk_index P, const mhk_real *s, const mhk_real *v, mhk_index kv,
                                       mhk_real f, mhk_real *y) {
  const MHK__V zero = MHK__SET(MHK__R(0)), scale = MHK__SET(f);
  const mhk_index ahead = MHK__ROWS_AHEAD * kv;
  mhk_index j, p = 0;
  /* two rows at a time in separate sums: eight chains of multiply-adds */
  for (; p + 4 * MHK__W <= P; p += 4 * MHK__W) {
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
  const mhk_index P = a->P, g = h / (a->H / a->G), kv = a->G * P, ahead = MHK__ROWS_AHEAD * kv,
                  line = 64 / (mhk_index)sizeof(mhk_real);
  const mhk_real *k = a->k + b * a->kv_batch + g * P, *v = a->v + b * a->kv_batch + g * P,
                 scale = MHK__R(1.0 / sqrt((double)P));
  mhk_index j, p;
  for (mhk_index t = 0; t < a->T; t++) {
    const mhk_real *q = a->q + ((b * a->T + t) * a->H + h) * P;
    mhk_real *y = a->y + ((b * a->T + t) * a->H + h) * P, f;
    const mhk_index first = a->start && a->start[b * a->T + t] > 0 ? a->start[b * a->T + t] : 0,
                    last = a->offset + t + 1;
    for (j = first; j + 4 <= last; j += 4) { /* the sums of four keys are independent */
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
/* Recomputes one tile of the matrix from scores, M = exp(score - log-sum-exp), and turns dM into
   the gradient of scores, M (dM - mean) / sqrt(P). On the diagonal (corner), rows are computed to
   the end of their register tile. start: the first visible key of each query, counted from the
   first key of the tile; NULL: all keys are visible. */
static void MHK__N(mhk__softmax_tile_back)(const mhk__attention_back_room *w, mhk_index rows, mhk_index keys,
                                           mhk_index P, const mhk_real *lse, int corner, const mhk_index *start,
                                           mhk_index j0) {
  const MHK__V zero = MHK__SET(MHK__R(0)), scale = MHK__SET(MHK__R(1.0 / sqrt((double)P)));
  const mhk_index ld = MHK__LD(keys);
  for (mhk_index i = 0; i < rows; i++) {
    const MHK__V shift = MHK__SET(-lse[i]), mean = MHK__SET(w->mean[i]);
    const mhk_index to = corner ? mhk__min(keys, i + MHK__OVER) : keys;
    mhk_real *m = w->m + i * ld, *dscore = w->dscore + i * ld;
    for (mhk_index j = 0; j < to; j += MHK__W) {
      MHK__V e = MHK__N(mhk__vexp)(MHK__FMA(MHK__LOAD(m + j), scale, shift)), d;
      if (corner && j + MHK__W > i) e = MHK__FROM(zero, e, i + 1 - j);
      if (start) e = MHK__FROM(e, zero, start[i] - j0 - j);
      d = e * (MHK__LOAD(dscore + j) - mean) * scale;
      MHK__STORE(m + j, e);
      MHK__STORE(dscore + j, d);
    }
  }
}

/* All query heads of one key/value head, tile by tile: dv += M^T dy; dM = dy v^T; dscore = M (dM -
   mean) / sqrt(P); dq += dscore k; dk += dscore^T q. Beside the reference: the mean, the sum over
   keys of M dM, is dy . y, so that one pass over the tiles does. */
static void MHK__N(mhk__attention_back)(const mhk__attention_args *a, mhk_index b, mhk_index g, mhk_real *work) {
  const mhk_index T = a->T, P = a->P, kv = a->G * P, ld = a->H * P, K = MHK__TILE, group = a->H / a->G,
                  wide = MHK__LD(P), from_k = b * a->kv_batch + g * P;
  const mhk_real *k = a->k + from_k, *v = a->v + from_k;
  const mhk_index *start = a->start ? a->start + b * T : NULL;
  mhk__attention_back_room w;
  mhk__ahead ahead;
  mhk__block block;
  mhk__attention_back_lay(&w, work, T, P);
  memset(&block, 0, sizeof block);
  block.ahead = &ahead;
  for (mhk_index task = 0; task < group * ((T + K - 1) / K); task++) { /* head after head, tile after tile of queries */
    const mhk_index h = g * group + task / ((T + K - 1) / K), i0 = task % ((T + K - 1) / K) * K;
    const mhk_index rows = mhk__min(K, T - i0), last = i0 + rows, at = ((b * T + i0) * a->H + h) * P,
                    next = mhk__min(K, T - last);
    const mhk_index first = start && start[i0] > 0 ? start[i0] / K * K : 0;
    const int first_head = h == g * group;
    if (first_head) {
      MHK__N(mhk__transposed_in)(rows, P, k + i0 * kv, kv, w.keys_turned + i0 * P);
      MHK__N(mhk__transposed_in)(rows, P, v + i0 * kv, kv, w.values_turned + i0 * P);
      MHK__N(mhk__rows_in)(rows, P, k + i0 * kv, kv, NULL, w.keys + i0 * wide);
    }
    MHK__N(mhk__rows_in)(rows, P, a->q + at, ld, NULL, w.queries);
    MHK__N(mhk__rows_in)(rows, P, a->dy + at, ld, NULL, w.dy);
    MHK__N(mhk__rows_in)(rows, P, a->yy + at, ld, NULL, w.dq);
    MHK__N(mhk__row_dots)(rows, P, w.dy, w.dq, NULL, NULL, w.mean);
    ahead.parts = ahead.now = 0;
    mhk__look_ahead(&ahead, a->dq ? a->dq + at : NULL, ld, P, rows);
    mhk__look_ahead(&ahead, a->q + at + rows * ld, ld, P, next);
    mhk__look_ahead(&ahead, a->dy + at + rows * ld, ld, P, next);
    mhk__look_ahead(&ahead, a->yy + at + rows * ld, ld, P, next);
    mhk__look_ahead(&ahead, first_head ? k + last * kv : NULL, kv, P, next);
    mhk__look_ahead(&ahead, first_head ? v + last * kv : NULL, kv, P, next);
    for (mhk_index j0 = first; j0 < last; j0 += K) {
      const mhk_index n = mhk__min(K, T - j0), wide_k = MHK__LD(n);
      const int corner = i0 == j0, fresh = corner && first_head;
      const mhk__operand queries = mhk__in_rows(w.queries, wide), dy = mhk__in_rows(w.dy, wide);
      const int part = corner ? mhk__lower_c : mhk__whole, turned_part = corner ? mhk__upper_a : mhk__whole;
      MHK__N(mhk__multiply)
      (&block, rows, n, P, queries, mhk__in_rows(w.keys_turned + j0 * P, wide_k), w.m, wide_k, part);
      MHK__N(mhk__multiply)
      (&block, rows, n, P, dy, mhk__in_rows(w.values_turned + j0 * P, wide_k), w.dscore, wide_k, part);
      MHK__N(mhk__softmax_tile_back)
      (&w, rows, n, P, a->lse + (b * a->H + h) * T + i0, corner, start && start[last - 1] > j0 ? start + i0 : NULL, j0);
      if (a->dv) {
        block.c0 = fresh ? NULL : w.dv + j0 * wide;
        MHK__N(mhk__multiply)
        (&block, n, P, rows, mhk__in_columns(w.m, wide_k), dy, w.dv + j0 * wide, wide, turned_part);
      }
      if (a->dk) {
        block.c0 = fresh ? NULL : w.dk + j0 * wide;
        MHK__N(mhk__multiply)
        (&block, n, P, rows, mhk__in_columns(w.dscore, wide_k), queries, w.dk + j0 * wide, wide, turned_part);
      }
      if (a->dq) {
        block.c0 = j0 > first ? w.dq : NULL;
        MHK__N(mhk__multiply)
        (&block, rows, P, n, mhk__in_rows(w.dscore, wide_k), mhk__in_rows(w.keys + j0 * wide, wide), w.dq, wide,
         corner ? mhk__lower_a : mhk__whole);
      }
    }
    if (a->dq) MHK__N(mhk__rows_out)(rows, P, w.dq, NULL, NULL, a->dq + at, ld, 1);
  }
  if (a->dk) MHK__N(mhk__rows_out)(T, P, w.dk, NULL, NULL, a->dk + from_k, kv, 1);
  if (a->dv) MHK__N(mhk__rows_out)(T, P, w.dv, NULL, NULL, a->dv + from_k, kv, 1);
}
#endif /* MOHAWK_NO_TRAINING */
#endif /* MHK__TEMPLATE */

#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
#ifndef MOHAWK_NO_TRAINING
/* ---- drivers */

static double mhk__attention_cost(const mhk__attention_args *a) {
  return (double)(a->B * a->H * a->P) * (double)(a->T * a->S);
}
static void mhk__attention_forward(mhk_context *ctx, const mhk__attention_args *a) {
  if (a->T <= 4 && a->y && !a->lse)
    mhk__run(ctx, a, a->B * a->H, a->H, a->S + 16, mhk__attention_cost(a), mhk__attention_step_task);
  else
    mhk__run(ctx, a, a->B * a->H, a->H, mhk__attention_work(a->S, a->P), mhk__attention_cost(a), mhk__attention_task);
}
static void mhk__attention_backward(mhk_context *ctx, const mhk__attention_args *a) {
  mhk__run(ctx, a, a->B * a->G, a->G, mhk__attention_back_work(a->T, a->P), mhk__attention_cost(a),
           mhk__attention_back_task);
}

/* ---- ops */

/* y = M v    dv += M^T dy;  through the softmax, dS = M (dM - sum over keys of M dM), dM = dy v^T:
              dq += dS k / sqrt(P),  dk += dS^T q / sqrt(P) */
static void mhk__attention_op_back(mhk_tape *t, mhk__node *n) {
  mhk__attention_args a = *(const mhk__attention_args *)n->saved;
  a.dq = mhk__into(t, n->in[0]);
  a.dk = mhk__into(t, n->in[1]);
  a.dv = mhk__into(t, n->in[2]);
  a.dy = n->out[0]->grad;
  a.yy = mhk__d(n->out[0]);
  mhk__attention_backward(t->ctx, &a);
}

/* checks q (B,T,H,P) against k (B,T,G,P) and fills the sizes */
static int mhk__attention_sizes(mhk_tape *t, const char *name, mhk_tensor *q, mhk_tensor *k, const int32_t *doc,
                                mhk__attention_args *a) {
  memset(a, 0, sizeof *a);
  if (!mhk__ready(t, name, 2, 2, q, k) ||
      !mhk__fits(t, name,
                 q->rank == 4 && k->rank == 4 && q->shape[0] == k->shape[0] && q->shape[1] == k->shape[1] &&
                     q->shape[3] == k->shape[3] && k->shape[2] >= 1 && q->shape[2] % k->shape[2] == 0,
                 q, k, "they must be (B,T,H,P) and (B,T,G,P), and G must divide H"))
    return 0;
  a->B = q->shape[0];
  a->T = a->S = q->shape[1];
  a->H = q->shape[2];
  a->G = k->shape[2];
  a->P = q->shape[3];
  a->kv_batch = a->S * a->G * a->P;
  a->q = mhk__d(q);
  a->k = mhk__d(k);
  a->start = mhk__starts(t, doc, a->B, a->T);
  return t->ctx->result == MHK_OK;
}

MHKDEF mhk_tensor *mhk_attention(mhk_tape *t, mhk_tensor *q, mhk_tensor *k, mhk_tensor *v, const int32_t *doc) {
  mhk__attention_args a;
  if (!mhk__ready(t, "attention", 3, 3, q, k, v) || !mhk__attention_sizes(t, "attention", q, k, doc, &a) ||
      !mhk__fits(t, "attention", mhk__same_shape(k, v), k, v, "keys and values must have the same shape"))
    return NULL;
  mhk_tensor *y = mhk__new(t, 4, q->shape), *const in[3] = {q, k, v};
  if (!y) return NULL;
  a.v = mhk__d(v);
  a.y = mhk__d(y);
  mhk__node *n = mhk__record(t, mhk__attention_op_back, 3, in, 1, &y, sizeof a);
  if (n) {
    a.lse = mhk__tape_zeros(t, a.B * a.H * a.T);
    if (!a.lse) return NULL;
    *(mhk__attention_args *)n->saved = a;
  }
  mhk__attention_forward(t->ctx, &a);
  return t->ctx->result == MHK_OK ? y : NULL;
}

/* M = softmax(S), S = q k^T / sqrt(P)    dS = M (dM - sum over keys of M dM),
   dq += dS k / sqrt(P),  dk += dS^T q / sqrt(P) */
static void mhk__attention_matrix_op_back(mhk_tape *t, mhk__node *n) {
  const mhk__attention_args *a = (const mhk__attention_args *)n->saved;
  const mhk_index T = a->T, P = a->P;
  const mhk_real scale = MHK__R(1.0 / sqrt((double)P));
  const mhk__mark mark = mhk__scratch_mark(t->ctx);
  mhk_real *dq = mhk__into(t, n->in[0]), *dk = mhk__into(t, n->in[1]),
           *ds = mhk__scratch_reals(t->ctx, T * T);
  const mhk__epilogue e = mhk__accumulate();
  for (mhk_index i = 0; ds && i < a->B * a->H; i++) {
    const mhk_index b = i / a->H, h = i % a->H, ldq = a->H * P, ldk = a->G * P, atq = b * T * ldq + h * P,
                    atk = b * T * ldk + h / (a->H / a->G) * P, at = i * T * T;
    memset(ds, 0, (size_t)(T * T) * sizeof(mhk_real));
    for (mhk_index row = 0; row < T; row++)
      mhk__through_softmax(row + 1, mhk__d(n->out[0]) + at + row * T, n->out[0]->grad + at + row * T, scale,
                           ds + row * T);
    if (dq) mhk__gemm(t->ctx, T, P, T, mhk__real_mat(ds, T, 1), mhk__real_mat(a->k + atk, ldk, 1), dq + atq, ldq, &e);
    if (dk) mhk__gemm(t->ctx, T, P, T, mhk__real_mat(ds, 1, T), mhk__real_mat(a->q + atq, ldq, 1), dk + atk, ldk, &e);
  }
  mhk__scratch_rewind(t->ctx, mark);
}

MHKDEF mhk_tensor *mhk_attention_matrix(mhk_tape *t, mhk_tensor *q, mhk_tensor *k, const int32_t *doc) {
  mhk__attention_args a;
  if (!mhk__attention_sizes(t, "attention_matrix", q, k, doc, &a)) return NULL;
  const mhk_index T = a.T, P = a.P, shape[4] = {a.B, a.H, T, T};
  mhk_tensor *y = mhk__new(t, 4, shape);
  for (mhk_index i = 0; y && i < a.B * a.H; i++) {
    const mhk_index b = i / a.H, h = i % a.H;
    mhk_real *m = mhk__d(y) + i * T * T;
    mhk__gemm(t->ctx, T, T, P, mhk__real_mat(a.q + (b * T * a.H + h) * P, a.H * P, 1),
              mhk__real_mat(a.k + (b * T * a.G + h / (a.H / a.G)) * P, 1, a.G * P), m, T, NULL);
    for (mhk_index t1 = 0; t1 < T; t1++) {
      mhk_real *row = m + t1 * T;
      const mhk_index from = a.start && a.start[b * T + t1] > 0 ? a.start[b * T + t1] : 0;
      for (mhk_index j = from; j <= t1; j++) row[j] *= MHK__R(1.0 / sqrt((double)P));
      t->ctx->kernels->softmax(t1 + 1 - from, row + from, row + from);
      for (mhk_index j = 0; j < T; j++) row[j] = j < from || j > t1 ? 0 : row[j];
    }
  }
  return y ? mhk__emit(t, mhk__attention_matrix_op_back, y, &a, sizeof a, 2, q, k) : NULL;
}
#endif /* MOHAWK_NO_TRAINING */
#endif /* MOHAWK_IMPLEMENTATION */

/* =================================================================================================
   SSD: state-space duality, the mixer of Mamba-2                                              >>ssd
   =================================================================================================

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
  const double *x, *log_a; /* (T,P), (T); log_a -HUGE_VAL forgets everything before the token, like a new document */
  const double *B, *C;     /* (T,N) */
  double D;                /* the skip */
} mhk__ref_ssd;
typedef struct mhk__ref_ssd_gradient { double *x, *log_a, *B, *C, *D; } mhk__ref_ssd_gradient; /* D: one number */

/* As a matrix: M[t,s] = (C_t . B_s) exp(log_a_{s+1} + ... + log_a_t) for s <= t, plus D on the
   diagonal */
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

/* As a chunked scan, Q tokens at a time, which is how the kernels compute it: inside a chunk by the
   matrix, across chunks by the state h (P,N), the one before the first token at the start and after
   the last one at the end. work (Q,Q). */
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
    /* the contribution of token t to the state after the chunk */
    for (int t = n_tokens - 1; t >= 0; log_decay += chunk.log_a[t--])
      for (int p = 0; p < P; p++)
        for (int n = 0; n < N; n++) h[p * N + n] += exp(log_decay) * chunk.x[t * P + p] * chunk.B[t * N + n];
  }
}

/* Its gradients, from the last token to the first. g (P,N) is the gradient of the state: at the
   start of the state after the last token (zeros where nothing asks for it), at the end of h_{-1}.
   Each h_t gets what y_t gives it, and a_{t+1} times what h_{t+1} got. states as
   mhk__ref_ssd_recurrent() leaves them. */
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
        *gh *= decay; /* from here, the gradient of h_{t-1} */
      }
      d->x[t * P + p] += a->D * dy[t * P + p];
      *d->D += dy[t * P + p] * a->x[t * P + p];
    }
  }
}

/* Gradients from dM (T,T), that of the matrix M. log_a_{s+1} is a factor of every element that
   leads from a token at or before s to a later one. */
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
  mhk_real *dx, *dlog_a, *db, *dc, *dinitial; /* added to; NULL: not needed */
  mhk_real *dd;                         /* (B,H) written */
  mhk_index per_task;                       /* heads of a task forward, groups backward */
};

enum { MHK__SSD_CHUNK = 32 }; /* default for the tokens of a chunk */
enum { MHK__STEPS = 8 }; /* up to this many tokens use the recurrence instead of a chunk */

/* A log decay for a running sum, clamped at -1000: e^-1000 forgets everything, like minus infinity,
   and the sum keeps the digits of the others. NaN stays. */
static double mhk__log_decay(mhk_real x) { return x < -1000 ? -1000.0 : (double)x; }

/* For chunks of Q tokens and the heads of one task */
#define MHK__SSD_BUFFERS(D, V, M) \
  D(cum, Q) /* the logarithms of decays, summed from the chunk's start on */ \
  V(carry, Q) /* decays from before the chunk to t */ \
  V(tail, Q) /* and from t to its end */ \
  V(hold, 2 * MHK__LD(Q)) /* for mhk__decay_tile() */ \
  M(ct, N, Q) /* C, transposed */ \
  M(b, Q, N) \
  M(bct, Q, Q) /* C B^T, transposed */ \
  M(m, Q, Q) /* decays, then the matrix, transposed */ \
  M(x, Q, P) \
  M(tail_x, Q, P) \
  M(y, Q, P) /* where y itself has no room for whole register tiles */ \
  V(states, heads * mhk__matrix_room(N, P)) /* transposed */
#define MHK__SSD_SIZES (mhk_index Q, mhk_index N, mhk_index P, mhk_index heads)
MHK__ROOM(mhk__ssd, MHK__SSD_BUFFERS, MHK__SSD_SIZES, (Q, N, P, heads))

#ifndef MOHAWK_NO_TRAINING
#define MHK__SSD_BACK_BUFFERS(D, V, M) \
  D(cum, Q) /* as above */ \
  V(carry, Q) \
  V(tail, Q) \
  V(hold, 2 * MHK__LD(Q)) \
  M(b, Q, N) \
  M(bt, N, Q) /* transposed */ \
  M(c, Q, N) \
  M(x, Q, P) \
  M(xt, P, Q) /* transposed */ \
  M(dy, Q, P) \
  M(carry_dy, Q, P) \
  M(cbt, Q, Q) /* C B^T */ \
  M(m, Q, Q) /* decays L, then the matrix M */ \
  M(dcb, Q, Q) /* dM o L, without its diagonal */ \
  V(same, Q) /* that diagonal: what a token gives itself */ \
  M(state, P, N) /* before the chunk */ \
  M(dstate, P, N) /* gradient of the one after it */ \
  M(dx, Q, P) \
  M(db, Q, N) \
  M(dc, Q, N) \
  V(dcum, Q) \
  V(dstates, heads * mhk__matrix_room(N, P)) /* gradients of the states of heads, transposed */
MHK__ROOM(mhk__ssd_back, MHK__SSD_BACK_BUFFERS, MHK__SSD_SIZES, (Q, N, P, heads))
#endif /* MOHAWK_NO_TRAINING */

/* Prefetches what the kernels read and write of head h in the chunk from t0, if there is one, and B
   and C of its group if they are read with it. */
static void mhk__ssd_ahead(const mhk__ssd_args *a, mhk_index b, mhk_index h, mhk_index t0, int with_bc,
                           mhk__ahead *ahead) {
  const mhk_index n = t0 < 0 ? 0 : mhk__min(a->Q, a->T - t0), chunks = (a->T + a->Q - 1) / a->Q;
  ahead->parts = ahead->now = 0;
  if (n <= 0) return;
  const mhk_index ldx = a->H * a->P, ldb = a->G * a->N, xy = ((b * a->T + t0) * a->H + h) * a->P,
                  bc = ((b * a->T + t0) * a->G + h / (a->H / a->G)) * a->N,
                  state = ((b * a->H + h) * chunks + t0 / a->Q) * a->P * a->N;
  if (with_bc) {
    mhk__look_ahead(ahead, a->c + bc, ldb, a->N, n);
    mhk__look_ahead(ahead, a->b + bc, ldb, a->N, n);
  }
  if (!a->dy) {
    mhk__look_ahead(ahead, a->x + xy, ldx, a->P, n);
    mhk__look_ahead(ahead, a->y + xy, ldx, a->P, n);
    mhk__look_ahead(ahead, a->states ? a->states + state : NULL, a->N, a->N, a->P);
    return;
  }
  mhk__look_ahead(ahead, a->dy + xy, ldx, a->P, n);
  mhk__look_ahead(ahead, a->x + xy, ldx, a->P, n);
  mhk__look_ahead(ahead, a->dx ? a->dx + xy : NULL, ldx, a->P, n);
  mhk__look_ahead(ahead, a->dc ? a->dc + bc : NULL, ldb, a->N, n);
  mhk__look_ahead(ahead, a->db ? a->db + bc : NULL, ldb, a->N, n);
  mhk__look_ahead(ahead, t0 > 0 || a->initial ? a->states + state : NULL, a->N, a->N, a->P);
}
#endif /* MOHAWK_IMPLEMENTATION */

#ifdef MHK__TEMPLATE
/* ---- kernels */

/* decay[t][s] = exp(cum_t - cum_s) for s <= t inside the document, else 0, in rows of ld;
   transposed: [s][t]. Rows are written as far as any register tile of the triangle reaches. Sums
   and differences in double: after a strong decay a float sum has no digits left for the weak ones
   that follow. Where the tile spans less than e^60 the exponentials factor into one number a token,
   exp(cum_t) and exp(-cum_s) around cum_0, each with the float rounding of its argument put right:
   2 n exponentials in place of n * n / 2, and as exact. */
static void MHK__N(mhk__decay_tile)(mhk_index n, const double *cum, const mhk_index *start, mhk_index t0,
                                    int transposed, mhk_real *hold, mhk_real *decay, mhk_index ld) {
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
      const MHK__V x = MHK__LOAD(row + i), rest = MHK__LOAD(lane + i), up = MHK__N(mhk__vexp)(x),
                   down = MHK__N(mhk__vexp)(zero - x);
      const MHK__V grow = MHK__FMA(up, rest, up), fall = MHK__FMA(zero - down, rest, down);
      MHK__STORE((transposed ? lane : row) + i, grow);
      MHK__STORE((transposed ? row : lane) + i, fall);
    }
  }
  for (i = 0; i < n; i++, decay += ld) {
    const mhk_index first = transposed ? mhk__max(0, i - MHK__OVER + 1) / MHK__W * MHK__W : 0,
                    last = transposed ? n : mhk__min(n, i + MHK__OVER);
    const MHK__V x = MHK__SET(nearby ? row[i] : MHK__R(0));
    if (!nearby)
      for (mhk_index j = first; j < last; j++) lane[j] = MHK__R(transposed ? cum[j] - cum[i] : cum[i] - cum[j]);
    for (mhk_index j = first; j < last; j += MHK__W) {
      MHK__V v = MHK__LOAD(lane + j);
      if (nearby)
        v = x * v;
      else
        v = MHK__N(mhk__vexp)(v);
      if (transposed)
        v = MHK__FROM(v, zero, i - j);
      else
        v = MHK__FROM(zero, v, i + 1 - j);
      MHK__STORE(decay + j, v);
    }
    decay[i] = 1;
    if (start && !transposed)
      for (mhk_index j = 0; j < start[i] - t0; j++) decay[j] = 0;
    if (start && transposed)
      for (mhk_index j = i + 1; j < n; j++)
        if (start[j] - t0 > i) decay[j] = 0;
  }
}

/* carry[t] = exp(cum_t) if t sees the state from before the chunk, else 0; tail[s] = exp(cum_last -
   cum_s) if the last token sees s, else 0 */
static void MHK__N(mhk__decay_edges)(mhk_index n, const double *cum, const mhk_index *start, mhk_index t0,
                                     mhk_real *carry, mhk_real *tail) {
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

/* The chunked scan, chunk by chunk, the heads of one task in turn: their rows lie side by side, and
   heads of one B/C group share what is made of B and C. Beside the reference: everything is a
   product of matrices that lie transposed as the products want them, the state (N,P) and the matrix
   among them; and what token t leaves in the state carries its decay in x, once for all of N. */
static void MHK__N(mhk__ssd)(const mhk__ssd_args *a, mhk_index b, mhk_index task, mhk_real *work) {
  const mhk_index T = a->T, P = a->P, N = a->N, Q = a->Q, group = a->H / a->G, ldx = a->H * P, ldb = a->G * N,
                  chunks = (T + Q - 1) / Q;
  const mhk_index wide_n = MHK__LD(N), wide_p = MHK__LD(P), each = mhk__matrix_room(N, P), first = task * a->per_task,
                  last = mhk__min(a->H, first + a->per_task);
  const mhk_index *start = a->start ? a->start + b * T : NULL;
  mhk__ssd_room w;
  mhk__ssd_lay(&w, work, Q, N, P, a->per_task);
  for (mhk_index h = first; h < last; h++) {
    mhk_real *state = w.states + (h - first) * each;
    if (a->initial)
      MHK__N(mhk__transposed_in)(P, N, a->initial + (b * a->H + h) * P * N, N, state);
    else
      memset(state, 0, (size_t)(N * wide_p) * sizeof(mhk_real));
  }
  for (mhk_index chunk = 0; chunk < chunks; chunk++) {
    const mhk_index t0 = chunk * Q, n = T - t0 < Q ? T - t0 : Q, wide = MHK__LD(n);
    mhk__ahead ahead;
    mhk__block block;
    memset(&block, 0, sizeof block);
    block.ahead = &ahead;
    for (mhk_index h = first; h < last; h++) {
      const mhk_index xy = ((b * T + t0) * a->H + h) * P, bc = ((b * T + t0) * a->G + h / group) * N;
      const mhk_real *log_a = a->log_a + (b * T + t0) * a->H + h;
      mhk_real *state = w.states + (h - first) * each, *y = a->y + xy;
      const int in_place = MHK__N(mhk__fits)(n, P);
      double sum = 0;
      if (h + 1 < last)
        mhk__ssd_ahead(a, b, h + 1, t0, (h + 1) % group == 0, &ahead);
      else
        mhk__ssd_ahead(a, b, first, t0 + Q, 1, &ahead);
      for (mhk_index t = 0; t < n; t++) w.cum[t] = sum += mhk__log_decay(log_a[t * a->H]);
      MHK__N(mhk__decay_tile)(n, w.cum, start ? start + t0 : NULL, t0, 1, w.hold, w.m, wide);
      MHK__N(mhk__decay_edges)(n, w.cum, start ? start + t0 : NULL, t0, w.carry, w.tail);
      if (h == first || h % group == 0) {
        MHK__N(mhk__transposed_in)(n, N, a->c + bc, ldb, w.ct);
        MHK__N(mhk__rows_in)(n, N, a->b + bc, ldb, NULL, w.b);
        MHK__N(mhk__multiply)
        (&block, n, n, N, mhk__in_rows(w.b, wide_n), mhk__in_rows(w.ct, wide), w.bct, wide, mhk__upper_c);
      }
      MHK__N(mhk__rows_in_twice)(n, P, a->x + xy, ldx, w.tail, w.x, w.tail_x);
      for (mhk_index i = 0; i < n; i++) {
        mhk_real *m = w.m + i * wide;
        const mhk_real *bct = w.bct + i * wide;
        for (mhk_index j = i / MHK__W * MHK__W; j < n; j += MHK__W)
          MHK__STORE(m + j, MHK__LOAD(m + j) * MHK__LOAD(bct + j));
        if (a->d) m[i] += a->d[h]; /* y_t += D x_t comes with the product */
      }
      if (a->states) /* (P,N), for the backward pass */
        MHK__N(mhk__transposed_out)(N, P, state, a->states + ((b * a->H + h) * chunks + chunk) * P * N);
      /* y = carry C state + (C B^T o decays + D) x */
      if (chunk > 0 || a->initial) {
        block.k1 = N;
        block.a1 = mhk__in_columns(w.ct, wide);
        block.b1 = state;
        block.f = w.carry;
        block.fs = 1;
      }
      MHK__N(mhk__multiply)
      (&block, n, P, n, mhk__in_columns(w.m, wide), mhk__in_rows(w.x, wide_p), in_place ? y : w.y,
       in_place ? ldx : wide_p, mhk__lower_a);
      if (!in_place) MHK__N(mhk__rows_out)(n, P, w.y, NULL, NULL, y, ldx, 0);
      /* the state after the chunk: carry_last state + B^T (tail x) */
      block.c0 = state;
      block.f = w.carry + n - 1;
      block.fs = 0;
      MHK__N(mhk__multiply)
      (&block, N, P, n, mhk__in_columns(w.b, wide_n), mhk__in_rows(w.tail_x, wide_p), state, wide_p, mhk__whole);
    }
  }
  for (mhk_index h = first; h < last; h++)
    MHK__N(mhk__transposed_out)(N, P, w.states + (h - first) * each, a->final + (b * a->H + h) * P * N);
}

/* the recurrence itself, token by token */
static void MHK__N(mhk__ssd_step)(const mhk__ssd_args *a, mhk_index b, mhk_index h, mhk_real *work) {
  const mhk_index T = a->T, P = a->P, N = a->N, g = h / (a->H / a->G);
  mhk_real *state = a->final + (b * a->H + h) * P * N;
  mhk_index i;
  (void)work;
  if (a->initial && a->initial != a->final) /* the state may be updated in place */
    memcpy(state, a->initial + (b * a->H + h) * P * N, (size_t)(P * N) * sizeof(mhk_real));
  else if (!a->initial)
    memset(state, 0, (size_t)(P * N) * sizeof(mhk_real));
  for (mhk_index t = 0; t < T; t++) {
    const mhk_index at = (b * T + t) * a->H + h;
    const mhk_real *x = a->x + at * P, *bt = a->b + ((b * T + t) * a->G + g) * N,
                   *ct = a->c + ((b * T + t) * a->G + g) * N;
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
/* ---- the backward kernel

   Chunks from the last to the first, and in each the heads of a B/C group in turn. Inside a chunk
   of n tokens, with L the decays (L[t,s] = exp(cum_t - cum_s) for s <= t), M = C B^T o L + D, h0
   the state before the chunk and dh its gradient after it, the forward pass is

      y = M x + carry C h0              the state after = carry_last h0 + (tail x)^T B

   so that, every line one or two products of matrices,

      dCB = dy x^T o L                              dM, masked by decays
      dx  = M^T dy + tail B dh
      dC  = dCB B + carry dy h0                     dB = dCB^T C + tail x dh
      dh0 = carry_last dh + (carry dy)^T C          which is dh of the chunk before

   The gradient of log_a needs no products of its own. exp(cum_t) only comes with C_t, exp(-cum_s)
   with B_s, and exp(cum_last) with the state after: dcum_t = C_t . dC_t - B_t . dB_t, and h . dh of
   the state after for the last token. log_a_r stands in every cum_t with t >= r: sums from the end.
   What a token gives itself passes no decay, is in C . dC and in B . dB alike, and would leave
   rounding errors where 0 is right: it is kept apart (same) until rows are written. */

/* Decays, rows and products of head h in the chunk from t0 on that the gradients are made of: cum,
   carry, tail, x, dy, carry dy, M and dCB, and the gradient of D, which is the sum of dM's
   diagonal. */
static void MHK__N(mhk__ssd_back_open)(const mhk__ssd_args *a, mhk_index b, mhk_index h, mhk_index t0, mhk_index n,
                                       const mhk__ssd_back_room *w, mhk__block *block) {
  const mhk_index P = a->P, ldx = a->H * P, wide = MHK__LD(n), wide_p = MHK__LD(P),
                  xy = ((b * a->T + t0) * a->H + h) * P;
  const mhk_real *log_a = a->log_a + (b * a->T + t0) * a->H + h;
  const mhk_index *start = a->start ? a->start + b * a->T + t0 : NULL;
  double sum = 0, dd = 0;
  for (mhk_index t = 0; t < n; t++) w->cum[t] = sum += mhk__log_decay(log_a[t * a->H]);
  MHK__N(mhk__decay_tile)(n, w->cum, start, t0, 0, w->hold, w->m, wide);
  MHK__N(mhk__decay_edges)(n, w->cum, start, t0, w->carry, w->tail);
  MHK__N(mhk__rows_in)(n, P, a->x + xy, ldx, NULL, w->x);
  MHK__N(mhk__transposed_in)(n, P, w->x, wide_p, w->xt);
  MHK__N(mhk__rows_in_twice)(n, P, a->dy + xy, ldx, w->carry, w->dy, w->carry_dy);
  MHK__N(mhk__multiply)
  (block, n, n, P, mhk__in_rows(w->dy, wide_p), mhk__in_rows(w->xt, wide), w->dcb, wide, mhk__lower_c);
  for (mhk_index i = 0; i < n; i++) { /* to the end of the tile of row i */
    mhk_real *m = w->m + i * wide, *dcb = w->dcb + i * wide, *cbt = w->cbt + i * wide;
    for (mhk_index j = 0; j < mhk__min(n, i + MHK__OVER); j += MHK__W) {
      const MHK__V decay = MHK__LOAD(m + j);
      MHK__STORE(m + j, decay * MHK__LOAD(cbt + j));
      MHK__STORE(dcb + j, decay * MHK__LOAD(dcb + j));
    }
    if (a->d) m[i] += a->d[h];
    w->same[i] = dcb[i];
    dcb[i] = 0;
    dd += (double)w->same[i];
  }
  if (a->dd) a->dd[b * a->H + h] += MHK__R(dd);
}

/* dB, dC and dlog_a of that head; dstate: of the state after the chunk (N,P) */
static void MHK__N(mhk__ssd_back_bc)(const mhk__ssd_args *a, mhk_index b, mhk_index h, mhk_index t0, mhk_index n,
                                     const mhk__ssd_back_room *w, const mhk_real *dstate, mhk__block *block) {
  const mhk_index P = a->P, N = a->N, chunk = t0 / a->Q, chunks = (a->T + a->Q - 1) / a->Q, ldb = a->G * N;
  const mhk_index wide = MHK__LD(n), wide_n = MHK__LD(N), wide_p = MHK__LD(P),
                  bc = ((b * a->T + t0) * a->G + h / (a->H / a->G)) * N;
  const int before = chunk > 0 || a->initial, after = chunk < chunks - 1 || a->dfinal;
  const mhk_real *state = a->states + ((b * a->H + h) * chunks + chunk) * P * N;
  if (before && N != wide_n) {
    MHK__N(mhk__rows_in)(P, N, state, N, NULL, w->state);
    state = w->state;
  }
  if (after) MHK__N(mhk__transposed_in)(N, P, dstate, wide_p, w->dstate);
  block->k1 = P;
  block->fs = 1;
  block->a1 = mhk__in_rows(before ? w->dy : NULL, wide_p);
  block->b1 = state;
  block->f = w->carry;
  MHK__N(mhk__multiply)
  (block, n, N, n, mhk__in_rows(w->dcb, wide), mhk__in_rows(w->b, wide_n), w->dc, wide_n, mhk__lower_a);
  block->a1 = mhk__in_rows(after ? w->x : NULL, wide_p);
  block->b1 = w->dstate;
  block->f = w->tail;
  MHK__N(mhk__multiply)
  (block, n, N, n, mhk__in_columns(w->dcb, wide), mhk__in_rows(w->c, wide_n), w->db, wide_n, mhk__upper_a);
  if (a->dc) MHK__N(mhk__rows_out)(n, N, w->dc, w->same, w->b, a->dc + bc, ldb, 1);
  if (a->db) MHK__N(mhk__rows_out)(n, N, w->db, w->same, w->c, a->db + bc, ldb, 1);
  if (a->dlog_a) {
    mhk_real *dlog_a = a->dlog_a + (b * a->T + t0) * a->H + h;
    double sum = 0;
    MHK__N(mhk__row_dots)(n, N, w->c, w->dc, w->b, w->db, w->dcum);
    if (after) {
      const mhk_real *state_after = chunk + 1 < chunks ? a->states + ((b * a->H + h) * chunks + chunk + 1) * P * N
                                                       : a->final + (b * a->H + h) * P * N;
      for (mhk_index i = 0; i < P; i++)
        sum += (double)MHK__N(mhk__dot)(N, state_after + i * N, w->dstate + i * wide_n);
    }
    for (mhk_index t = n - 1; t >= 0; t--) {
      sum += (double)w->dcum[t];
      dlog_a[t * a->H] += MHK__R(sum);
    }
  }
}

/* the chunks of the heads of one task, and the gradient of the initial state */
static void MHK__N(mhk__ssd_back)(const mhk__ssd_args *a, mhk_index b, mhk_index task, mhk_real *work) {
  const mhk_index T = a->T, P = a->P, N = a->N, Q = a->Q, group = a->H / a->G, ldx = a->H * P, ldb = a->G * N,
                  chunks = (T + Q - 1) / Q;
  const mhk_index wide_n = MHK__LD(N), wide_p = MHK__LD(P), each = mhk__matrix_room(N, P),
                  first = task * a->per_task * group, last = mhk__min(a->H, first + a->per_task * group);
  mhk__ssd_back_room w;
  mhk__ssd_back_lay(&w, work, Q, N, P, a->per_task * group);
  for (mhk_index h = first; h < last; h++) {
    mhk_real *dstate = w.dstates + (h - first) * each;
    if (a->dfinal)
      MHK__N(mhk__transposed_in)(P, N, a->dfinal + (b * a->H + h) * P * N, N, dstate);
    else
      memset(dstate, 0, (size_t)(N * wide_p) * sizeof(mhk_real));
    if (a->dd) a->dd[b * a->H + h] = 0;
  }
  for (mhk_index chunk = chunks - 1; chunk >= 0; chunk--) {
    const mhk_index t0 = chunk * Q, n = T - t0 < Q ? T - t0 : Q, wide = MHK__LD(n);
    mhk__ahead ahead;
    mhk__block block;
    memset(&block, 0, sizeof block);
    block.ahead = &ahead;
    ahead.parts = ahead.now = 0;
    for (mhk_index h = first; h < last; h++) {
      const mhk_index xy = ((b * T + t0) * a->H + h) * P, bc = ((b * T + t0) * a->G + h / group) * N;
      mhk_real *dstate = w.dstates + (h - first) * each;
      if (h % group == 0) { /* transposed from the copy: see mhk__rows_in_twice */
        MHK__N(mhk__rows_in)(n, N, a->c + bc, ldb, NULL, w.c);
        MHK__N(mhk__rows_in)(n, N, a->b + bc, ldb, NULL, w.b);
        MHK__N(mhk__transposed_in)(n, N, w.b, wide_n, w.bt);
        MHK__N(mhk__multiply)
        (&block, n, n, N, mhk__in_rows(w.c, wide_n), mhk__in_rows(w.bt, wide), w.cbt, wide, mhk__lower_c);
      }
      if (h + 1 < last)
        mhk__ssd_ahead(a, b, h + 1, t0, (h + 1) % group == 0, &ahead);
      else
        mhk__ssd_ahead(a, b, first, t0 - Q, 1, &ahead);
      MHK__N(mhk__ssd_back_open)(a, b, h, t0, n, &w, &block);
      if (a->dx) { /* M^T dy + tail B dh */
        block.k1 = N;
        block.a1 = mhk__in_rows(chunk < chunks - 1 || a->dfinal ? w.b : NULL, wide_n);
        block.b1 = dstate;
        block.f = w.tail;
        block.fs = 1;
        MHK__N(mhk__multiply)
        (&block, n, P, n, mhk__in_columns(w.m, wide), mhk__in_rows(w.dy, wide_p), w.dx, wide_p, mhk__upper_a);
        MHK__N(mhk__rows_out)(n, P, w.dx, NULL, NULL, a->dx + xy, ldx, 1);
      }
      if (a->dc || a->db || a->dlog_a) MHK__N(mhk__ssd_back_bc)(a, b, h, t0, n, &w, dstate, &block);
      if (chunk > 0 || a->dinitial) { /* dh0; not needed if nothing precedes the sequence */
        block.c0 = dstate;
        block.f = w.carry + n - 1;
        block.fs = 0;
        MHK__N(mhk__multiply)
        (&block, N, P, n, mhk__in_columns(w.c, wide_n), mhk__in_rows(w.carry_dy, wide_p), dstate, wide_p, mhk__whole);
      }
    }
  }
  for (mhk_index h = first; a->dinitial && h < last; h++) {
    const mhk_real *dstate = w.dstates + (h - first) * each;
    for (mhk_index i = 0; i < P * N; i++) a->dinitial[(b * a->H + h) * P * N + i] += dstate[i % N * wide_p + i / N];
  }
}
#endif /* MOHAWK_NO_TRAINING */
#endif /* MHK__TEMPLATE */

#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
#ifndef MOHAWK_NO_TRAINING
/* ---- drivers */

static double mhk__ssd_cost(const mhk__ssd_args *a) {
  return 2.0 * (double)(a->B * a->T * a->H) * (double)(a->P * a->N);
}
/* Heads, or groups with their heads, per task: up to 8, if 8 tasks are left. At T 8192, (1,T,32,64)
   takes 15 % longer with two, and also with chunks of 64 tokens instead of 32, which need more
   products; chunks of 16 are not faster. */
static mhk_index mhk__ssd_per_task(mhk_index B, mhk_index n) { return mhk__max(1, mhk__min(8, B * n / 8)); }
static void mhk__ssd_forward(mhk_context *ctx, const mhk__ssd_args *args, int recurrent) {
  mhk__ssd_args a = *args;
  a.per_task = recurrent ? 1 : mhk__ssd_per_task(a.B, a.H);
  const mhk_index tasks = (a.H + a.per_task - 1) / a.per_task;
  mhk__run(ctx, &a, a.B * tasks, tasks, recurrent ? 1 : mhk__ssd_work(a.Q, a.N, a.P, a.per_task), mhk__ssd_cost(&a),
           recurrent ? mhk__ssd_step_task : mhk__ssd_task);
}
static void mhk__ssd_backward(mhk_context *ctx, const mhk__ssd_args *args) {
  mhk__ssd_args a = *args;
  a.per_task = mhk__ssd_per_task(a.B, a.G);
  const mhk_index tasks = (a.G + a.per_task - 1) / a.per_task;
  mhk__run(ctx, &a, a.B * tasks, tasks, mhk__ssd_back_work(a.Q, a.N, a.P, a.per_task * (a.H / a.G)), mhk__ssd_cost(&a),
           mhk__ssd_back_task);
}

/* ---- ops */

/* to (H) += sum over batches of from (B,H) */
static void mhk__sum_batches(mhk_index B, mhk_index H, const mhk_real *from, mhk_real *to) {
  for (mhk_index h = 0; h < H; h++)
    for (mhk_index b = 0; b < B; b++) to[h] += from[b * H + h];
}

/* h_t = a_t h_{t-1} + x_t B_t^T, y_t = h_t C_t + D x_t. With e_t, the gradient of h_t, from behind:
      e_t = dy_t C_t^T + a_{t+1} e_{t+1}    dx_t += e_t B_t + D dy_t    dB_t += e_t^T x_t
      dC_t += h_t^T dy_t                    dlog_a_t += a_t (e_t . h_{t-1})    dD += dy_t . x_t
   The gradient of the final state starts e, and e_0 a_0 is that of the initial one. */
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
  if (dd) a.dd = mhk__scratch_reals(t->ctx, a.B * a.H);
  mhk__ssd_backward(t->ctx, &a);
  if (dd && t->ctx->result == MHK_OK) mhk__sum_batches(a.B, a.H, a.dd, dd);
  mhk__scratch_rewind(t->ctx, mark);
}

/* checks log_a (B,T,H), b and c (B,T,G,N), d (H) or NULL, and fills the sizes */
static int mhk__ssd_sizes(mhk_tape *t, const char *name, mhk_tensor *la, mhk_tensor *b, mhk_tensor *c, mhk_tensor *d,
                          const int32_t *doc, mhk__ssd_args *a) {
  memset(a, 0, sizeof *a);
  if (!mhk__ready(t, name, 3, 4, la, b, c, d) ||
      !mhk__fits(t, name,
                 la->rank == 3 && b->rank == 4 && b->shape[0] == la->shape[0] && b->shape[1] == la->shape[1] &&
                     b->shape[2] >= 1 && la->shape[2] % b->shape[2] == 0,
                 la, b, "log_a must be (B,T,H), B must be (B,T,G,N), and G must divide H") ||
      !mhk__fits(t, name, mhk__same_shape(b, c), b, c, "B and C must have the same shape") ||
      (d && !mhk__fits(t, name, d->rank == 1 && d->shape[0] == la->shape[2], la, d,
                       "D must have one element per head")))
    return 0;
  a->B = la->shape[0];
  a->T = la->shape[1];
  a->H = la->shape[2];
  a->G = b->shape[2];
  a->N = b->shape[3];
  a->log_a = mhk__d(la);
  a->b = mhk__d(b);
  a->c = mhk__d(c);
  a->d = mhk__d(d);
  a->start = mhk__starts(t, doc, a->B, a->T);
  return t->ctx->result == MHK_OK;
}

MHKDEF mhk_tensor *mhk_ssd(mhk_tape *t, mhk_tensor *x, mhk_tensor *la, mhk_tensor *b, mhk_tensor *c,
                           const mhk_ssd_desc *desc) {
  mhk_ssd_desc d;
  mhk__ssd_args a;
  memset(&d, 0, sizeof d);
  if (desc) d = *desc;
  if (d.final_state) *d.final_state = NULL;
  if (!mhk__ready(t, "ssd", 1, 2, x, d.initial_state) || !mhk__ssd_sizes(t, "ssd", la, b, c, d.D, d.doc, &a) ||
      !mhk__fits(t, "ssd", x->rank == 4 && x->shape[0] == a.B && x->shape[1] == a.T && x->shape[2] == a.H, x, la,
                 "x must be (B,T,H,P) and log_a must be (B,T,H)"))
    return NULL;
  a.P = x->shape[3];
  const mhk_index shape[4] = {a.B, a.H, a.P, a.N};
  mhk_tensor *const in[6] = {x, la, b, c, d.D, d.initial_state}, *out[2];
  out[0] = mhk__new(t, 4, x->shape);
  out[1] = mhk__new(t, 4, shape);
  if (!out[0] || !out[1] || (d.initial_state && !mhk__fits(t, "ssd", mhk__same_shape(d.initial_state, out[1]), x,
                                                           d.initial_state, "the initial state must be (B,H,P,N)")))
    return NULL;
  a.x = mhk__d(x);
  a.initial = mhk__d(d.initial_state);
  a.y = mhk__d(out[0]);
  a.final = mhk__d(out[1]);
  a.Q = d.chunk > 0 ? d.chunk : (mhk_index)MHK__SSD_CHUNK;
  if (a.Q > a.T && a.T > 0) a.Q = a.T;
  mhk__node *n = mhk__record(t, mhk__ssd_op_back, 6, in, 2, out, sizeof a);
  const int recurrent = d.form == MHK_SSD_RECURRENT || (d.form == MHK_SSD_AUTO && !n && a.T <= MHK__STEPS);
  if (n) {
    const mhk_index chunks = a.Q > 0 ? (a.T + a.Q - 1) / a.Q : 0;
    a.states = (mhk_real *)mhk__arena_alloc(t->ctx, &t->arena,
                                            mhk__size3(t->ctx, a.B * a.H * chunks, a.P * a.N, sizeof(mhk_real)));
    if (!a.states) return NULL;
    if (recurrent) mhk__ssd_forward(t->ctx, &a, 0); /* the backward pass needs the states between chunks */
    *(mhk__ssd_args *)n->saved = a;
  }
  mhk__ssd_forward(t->ctx, &a, recurrent);
  if (d.final_state) *d.final_state = out[1];
  return t->ctx->result == MHK_OK ? out[0] : NULL;
}

typedef struct mhk__ssd_matrix_saved {
  mhk__ssd_args a;
  double *cum; /* (B,H,T): log_a_1 + ... + log_a_t; in double, for precision in long sequences */
} mhk__ssd_matrix_saved;

/* exp(cum_t - cum_s) for s <= t in one document, else 0 */
static mhk_real mhk__decay(const double *cum, const mhk_index *start, mhk_index t, mhk_index s) {
  if (s > t || (start && start[t] > s)) return 0;
  return MHK__R(exp(cum[t] - cum[s]));
}

/* M[t,s] = (C_t . B_s) decay[t,s] + (t = s) D.  With dS = dM decay and R = dM (M - D on the
   diagonal):
      dC += dS B    dB += dS^T C    dD += sum of dM[t,t]
      dlog_a_t += sum over t' >= t of (row sum - column sum of R at t') */
static void mhk__ssd_matrix_op_back(mhk_tape *t, mhk__node *n) {
  const mhk__ssd_matrix_saved *s = (const mhk__ssd_matrix_saved *)n->saved;
  const mhk__ssd_args *a = &s->a;
  const mhk_index T = a->T, N = a->N, row = a->G * N;
  const mhk__mark mark = mhk__scratch_mark(t->ctx);
  mhk_real *dla = mhk__into(t, n->in[0]), *db = mhk__into(t, n->in[1]), *dc = mhk__into(t, n->in[2]),
           *dd = mhk__into(t, n->in[3]), *ds = mhk__scratch_reals(t->ctx, T * T);
  double *dcum = (double *)mhk__scratch(t->ctx, T, sizeof(double)), run;
  const mhk__epilogue e = mhk__accumulate();
  if (!ds || !dcum) return;
  for (mhk_index k = 0; k < a->B * a->H; k++) {
    const mhk_index b = k / a->H, h = k % a->H, at = b * T * row + h / (a->H / a->G) * N;
    const mhk_real *m = mhk__d(n->out[0]) + k * T * T, *g = n->out[0]->grad + k * T * T;
    memset(dcum, 0, (size_t)T * sizeof(double));
    for (mhk_index i = 0; i < T; i++)
      for (mhk_index j = 0; j < T; j++) {
        const double r = j <= i ? (double)(g[i * T + j] * (m[i * T + j] - (a->d && i == j ? a->d[h] : 0))) : 0;
        ds[i * T + j] =
            j <= i ? g[i * T + j] * mhk__decay(s->cum + k * T, a->start ? a->start + b * T : NULL, i, j) : 0;
        dcum[i] += r;
        dcum[j] -= r;
      }
    if (dc) mhk__gemm(t->ctx, T, N, T, mhk__real_mat(ds, T, 1), mhk__real_mat(a->b + at, row, 1), dc + at, row, &e);
    if (db) mhk__gemm(t->ctx, T, N, T, mhk__real_mat(ds, 1, T), mhk__real_mat(a->c + at, row, 1), db + at, row, &e);
    run = 0;
    for (mhk_index i = T - 1; dla && i >= 0; i--) dla[(b * T + i) * a->H + h] += MHK__R(run += dcum[i]);
    run = 0;
    for (mhk_index i = 0; i < T; i++) run += (double)g[i * T + i];
    if (dd) dd[h] += MHK__R(run);
  }
  mhk__scratch_rewind(t->ctx, mark);
}

MHKDEF mhk_tensor *mhk_ssd_matrix(mhk_tape *t, mhk_tensor *la, mhk_tensor *Bm, mhk_tensor *Cm, mhk_tensor *D,
                                  const int32_t *doc) {
  mhk__ssd_matrix_saved s;
  if (!mhk__ssd_sizes(t, "ssd_matrix", la, Bm, Cm, D, doc, &s.a)) return NULL;
  const mhk__ssd_args *a = &s.a;
  const mhk_index T = a->T, row = a->G * a->N, shape[4] = {a->B, a->H, T, T};
  mhk_tensor *y = mhk__new(t, 4, shape);
  s.cum = (double *)mhk__arena_zeros(t->ctx, &t->arena, a->B * a->H * T, sizeof(double));
  if (!y || !s.cum) return NULL;
  for (mhk_index k = 0; k < a->B * a->H; k++) {
    const mhk_index b = k / a->H, h = k % a->H, at = b * T * row + h / (a->H / a->G) * a->N;
    mhk_real *m = mhk__d(y) + k * T * T;
    double *cum = s.cum + k * T, run = 0;
    for (mhk_index i = 0; i < T; i++) cum[i] = run += mhk__log_decay(a->log_a[(b * T + i) * a->H + h]);
    mhk__gemm(t->ctx, T, T, a->N, mhk__real_mat(a->c + at, row, 1), mhk__real_mat(a->b + at, 1, row), m, T, NULL);
    for (mhk_index i = 0; i < T; i++) {
      for (mhk_index j = 0; j < T; j++) m[i * T + j] *= mhk__decay(cum, a->start ? a->start + b * T : NULL, i, j);
      if (a->d) m[i * T + i] += a->d[h];
    }
  }
  return mhk__emit(t, mhk__ssd_matrix_op_back, y, &s, sizeof s, 4, la, Bm, Cm, D);
}
#endif /* MOHAWK_NO_TRAINING */
#endif /* MOHAWK_IMPLEMENTATION */

/* =================================================================================================
   LOSSES: cross-entropy, KL, distances, and stage 1 in tiles                               >>losses
   =================================================================================================

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

/* Cross-entropy of a row of logits against the correct class: minus the logarithm of its
   probability. d (n) receives the gradient, softmax(logits) - one-hot. */
static inline double mhk__ref_cross_entropy(int n, const double *logits, int label, double *d) {
  const double log_sum_exp = mhk__ref_softmax(n, logits, d);
  d[label] -= 1;
  return log_sum_exp - logits[label];
}

/* Stage 3, knowledge distillation: cross-entropy of softmax(logits / temperature) against the
   teacher's p = softmax(target). p (n) is filled, d (n) receives the gradient. The KL divergence is
   that less the teacher's entropy, and has the same gradient. */
static inline double mhk__ref_cross_entropy_soft(int n, const double *logits, const double *target,
                                                 double temperature, double *p, double *d) {
  mhk__ref_softmax(n, target, p);
  for (int i = 0; i < n; i++) d[i] = logits[i] / temperature;
  double loss = mhk__ref_softmax(n, d, d);
  for (int i = 0; i < n; i++) loss -= p[i] * logits[i] / temperature;
  for (int i = 0; i < n; i++) d[i] = (d[i] - p[i]) / temperature;
  return loss;
}
static inline double mhk__ref_kl(int n, const double *logits, const double *target, double *p, double *d) {
  double kl = mhk__ref_cross_entropy_soft(n, logits, target, 1, p, d);
  for (int i = 0; i < n; i++) kl += p[i] > 0 ? p[i] * log(p[i]) : 0;
  return kl;
}

/* || x - y ||_2: of two hidden states in stage 2, hidden-state alignment; of the T * T numbers of
   two mixing matrices, the Frobenius norm of stage 1, matrix orientation. d, if not NULL, receives
   the gradient with respect to x, zeros where both are equal. */
static inline double mhk__ref_distance(int n, const double *x, const double *y, double *d) {
  double sum = 0;
  for (int i = 0; i < n; i++) sum += (x[i] - y[i]) * (x[i] - y[i]);
  for (int i = 0; d && i < n; i++) d[i] = sum > 0 ? (x[i] - y[i]) / sqrt(sum) : 0;
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
  mhk_real *dlog_a, *db, *dc;    /* added to; NULL: not needed */
  mhk_real *dd;                  /* (B,H) written */
};
#ifndef MOHAWK_NO_TRAINING
/* For both passes; the forward pass uses only some. Tiles of the matrices: MHK__TILE rows of tokens
   t, as many columns of tokens s. */
#define MHK__ORIENTATION_BUFFERS(D, V, M) \
  D(cum, T) /* sums of log-decays */ \
  D(dcum, T) \
  M(b_turned, N, T) /* tile after tile */ \
  M(k_turned, P, T) \
  M(b, T, N) \
  M(db, T, N) \
  M(c, MHK__TILE, N) \
  M(dc, MHK__TILE, N) \
  M(q, MHK__TILE, P) \
  M(student, MHK__TILE, MHK__TILE) \
  M(teacher, MHK__TILE, MHK__TILE) /* its numbers, then the gradient of C B^T */ \
  M(decay, MHK__TILE, MHK__TILE) /* on the diagonal */ \
  V(row_decay, MHK__TILE) /* off it, the factors of a decay */ \
  V(column_decay, MHK__TILE) /* around the tile's corner */ \
  V(row_sums, MHK__TILE) /* of gradient times matrix */ \
  V(column_sums, MHK__TILE) \
  M(part, MHK__TILE, 1) /* one vector a row */
MHK__ROOM(mhk__orientation, MHK__ORIENTATION_BUFFERS, (mhk_index T, mhk_index N, mhk_index P), (T, N, P))
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
      s = MHK__FMA(MHK__N(mhk__vexp)(MHK__FMA(MHK__LOADN(target + i, end - i), one, shift)),
                   MHK__LOADN(logits + i, end - i), s);
    total += (double)MHK__N(mhk__hsum)(s);
  }
  return total;
}

/* d += g (softmax(logits * it) - softmax(target)) */
static void MHK__N(mhk__soft_back)(mhk_index n, const mhk_real *logits, mhk_real it, mhk_real lse,
                                   const mhk_real *target, mhk_real target_lse, mhk_real g, mhk_real *d) {
  const MHK__V vit = MHK__SET(it), vl = MHK__SET(-lse), vt = MHK__SET(-target_lse), vg = MHK__SET(g),
               one = MHK__SET(MHK__R(1));
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

/* One tile of both matrices, rows i0.., columns j0.. of head h. On the diagonal decays are a tile,
   off it row_decay_i column_decay_j: the factors around the tile's corner, all at most 1. On the
   diagonal each row is made to the end of its register tile. */
static void MHK__N(mhk__two_tiles)(const mhk__orientation_args *a, mhk_index b, mhk_index h, mhk_index i0,
                                   mhk_index j0, const mhk__orientation_room *w) {
  const MHK__V zero = MHK__SET(MHK__R(0)), scale = MHK__SET(MHK__R(1.0 / sqrt((double)a->PT)));
  const mhk_index K = MHK__TILE, rows = mhk__min(K, a->T - i0), cols = mhk__min(K, a->T - j0);
  const mhk_index *start = a->start ? a->start + b * a->T + i0 : NULL;
  const mhk_real *lse = a->lse + (b * a->H + h) * a->T + i0;
  const double *cum = w->cum;
  const int corner = i0 == j0, cut = start && start[rows - 1] > j0, part = corner ? mhk__lower_c : mhk__whole;
  mhk__block block;
  memset(&block, 0, sizeof block);
  MHK__N(mhk__multiply)
  (&block, rows, cols, a->N, mhk__in_rows(w->c, MHK__LD(a->N)), mhk__in_rows(w->b_turned + j0 * a->N, MHK__LD(cols)),
   w->student, K, part);
  MHK__N(mhk__multiply)
  (&block, rows, cols, a->PT, mhk__in_rows(w->q, MHK__LD(a->PT)),
   mhk__in_rows(w->k_turned + j0 * a->PT, MHK__LD(cols)), w->teacher, K, part);
  if (corner) {
    mhk_real hold[2 * MHK__TILE];
    MHK__N(mhk__decay_tile)(rows, cum + i0, start, i0, 0, hold, w->decay, K);
    for (mhk_index i = 0; a->d && i < rows; i++) w->student[i * K + i] += a->d[h];
  } else {
    for (mhk_index i = 0; i < rows; i++) w->row_decay[i] = MHK__R(cum[i0 + i] - cum[i0 - 1]);
    for (mhk_index j = 0; j < cols; j++) w->column_decay[j] = MHK__R(cum[i0 - 1] - cum[j0 + j]);
    MHK__N(mhk__row_exp)(rows, w->row_decay, MHK__R(1), 0, w->row_decay);
    MHK__N(mhk__row_exp)(cols, w->column_decay, MHK__R(1), 0, w->column_decay);
  }
  for (mhk_index i = 0; i < rows; i++) {
    const MHK__V shift = MHK__SET(-lse[i]), row_decay = MHK__SET(corner ? MHK__R(1) : w->row_decay[i]);
    const mhk_real *decay = corner ? w->decay + i * K : w->column_decay;
    const mhk_index to = corner ? mhk__min(cols, i + MHK__OVER) : cols;
    mhk_real *to_student = w->student + i * K, *to_teacher = w->teacher + i * K;
    for (mhk_index j = 0; j < to; j += MHK__W) {
      MHK__V student = MHK__LOAD(to_student + j) * row_decay * MHK__LOAD(decay + j),
             teacher = MHK__N(mhk__vexp)(MHK__FMA(MHK__LOAD(to_teacher + j), scale, shift));
      if (corner) teacher = MHK__FROM(zero, teacher, i + 1 - j);
      if (cut) {
        student = MHK__FROM(student, zero, start[i] - j0 - j);
        teacher = MHK__FROM(teacher, zero, start[i] - j0 - j);
      }
      MHK__STORE(to_student + j, student);
      MHK__STORE(to_teacher + j, teacher);
    }
  }
}

/* what both passes need of one head: columns of B and k in tiles, sums of the log-decays */
static void MHK__N(mhk__orientation_pack)(const mhk__orientation_args *a, mhk_index b, mhk_index h,
                                          const mhk__orientation_room *w) {
  const mhk_index T = a->T, g = h / (a->H / a->G), gt = h / (a->HT / a->GT);
  double sum = 0;
  for (mhk_index j0 = 0; j0 < T; j0 += MHK__TILE) {
    const mhk_index n = mhk__min(MHK__TILE, T - j0);
    MHK__N(mhk__transposed_in)
    (n, a->N, a->b + ((b * T + j0) * a->G + g) * a->N, a->G * a->N, w->b_turned + j0 * a->N);
    MHK__N(mhk__transposed_in)
    (n, a->PT, a->k + ((b * T + j0) * a->GT + gt) * a->PT, a->GT * a->PT, w->k_turned + j0 * a->PT);
  }
  for (mhk_index t = 0; t < T; t++) w->cum[t] = sum += mhk__log_decay(a->log_a[(b * T + t) * a->H + h]);
}

/* and of MHK__TILE tokens from i0 on: rows of C and q */
static void MHK__N(mhk__orientation_rows)(const mhk__orientation_args *a, mhk_index b, mhk_index h, mhk_index i0,
                                          const mhk__orientation_room *w) {
  const mhk_index T = a->T, rows = mhk__min(MHK__TILE, T - i0), g = h / (a->H / a->G);
  MHK__N(mhk__rows_in)(rows, a->N, a->c + ((b * T + i0) * a->G + g) * a->N, a->G * a->N, NULL, w->c);
  MHK__N(mhk__rows_in)(rows, a->PT, a->q + ((b * T + i0) * a->HT + h) * a->PT, a->HT * a->PT, NULL, w->q);
}

/* Sums of squares of student - teacher and of the teacher. Beside the reference: neither matrix is
   there as a whole, tiles of both are made, compared and forgotten. */
static void MHK__N(mhk__orientation)(const mhk__orientation_args *a, mhk_index b, mhk_index h, mhk_real *work) {
  const mhk_index T = a->T, K = MHK__TILE;
  double difference = 0, norm = 0;
  mhk__orientation_room w;
  mhk__orientation_lay(&w, work, T, a->N, a->PT);
  MHK__N(mhk__orientation_pack)(a, b, h, &w);
  for (mhk_index i0 = 0; i0 < T; i0 += K) {
    const mhk_index rows = mhk__min(K, T - i0);
    MHK__N(mhk__orientation_rows)(a, b, h, i0, &w);
    for (mhk_index j0 = 0; j0 <= i0; j0 += K) {
      const mhk_index cols = mhk__min(K, T - j0);
      MHK__V d2 = MHK__SET(MHK__R(0)), n2 = d2;
      MHK__N(mhk__two_tiles)(a, b, h, i0, j0, &w);
      for (mhk_index i = 0; i < rows; i++)
        for (mhk_index j = 0; j < (i0 == j0 ? i + 1 : cols); j += MHK__W) {
          const MHK__V t = MHK__LOAD(w.teacher + i * K + j), d = MHK__LOAD(w.student + i * K + j) - t;
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

/* Of one tile: dM = factor (student - teacher), with decays the gradient of C B^T, in place of the
   teacher's numbers; dM o M into the sums that are the gradients of cum; and dM's diagonal into dd,
   the gradient of D. */
static void MHK__N(mhk__orientation_tile_back)(mhk_index rows, mhk_index cols, mhk_index i0, mhk_index j0,
                                               mhk_real factor, const mhk__orientation_room *w, double *dd) {
  const MHK__V zero = MHK__SET(MHK__R(0)), vf = MHK__SET(factor);
  const mhk_index K = MHK__TILE;
  const int corner = i0 == j0;
  mhk_real *column_sums = w->column_sums;
  for (mhk_index j = 0; j < MHK__LD(cols); j += MHK__W) MHK__STORE(column_sums + j, zero);
  for (mhk_index i = 0; i < rows; i++) {
    const MHK__V row_decay = MHK__SET(corner ? MHK__R(1) : w->row_decay[i]);
    const mhk_real *decay = corner ? w->decay + i * K : w->column_decay, *student = w->student + i * K;
    mhk_real *teacher = w->teacher + i * K;
    const mhk_index to = corner ? mhk__min(cols, i + MHK__OVER) : cols;
    MHK__V sum = zero;
    for (mhk_index j = 0; j < to; j += MHK__W) {
      const MHK__V m = MHK__LOAD(student + j), dm = vf * (m - MHK__LOAD(teacher + j));
      MHK__V x = dm * m;
      if (corner) x = MHK__FROM(zero, x, i - j); /* the diagonal has no decay */
      sum = sum + x;
      MHK__STORE(column_sums + j, MHK__LOAD(column_sums + j) + x);
      MHK__STORE(teacher + j, dm * row_decay * MHK__LOAD(decay + j));
    }
    MHK__STORE(w->part + i * MHK__W, sum);
    if (corner) *dd += (double)teacher[i];
  }
  MHK__N(mhk__row_sums)(rows, w->part, w->row_sums);
  for (mhk_index i = 0; i < rows; i++) w->dcum[i0 + i] += (double)w->row_sums[i];
  for (mhk_index j = 0; j < cols; j++) w->dcum[j0 + j] -= (double)column_sums[j];
}

/* The tiles again, for all heads of a B/C group: dC += dCB B, dB += dCB^T C. The gradient of a log
   decay is summed from the end: it stands in every cum_t from its token on. */
static void MHK__N(mhk__orientation_back)(const mhk__orientation_args *a, mhk_index b, mhk_index g, mhk_real *work) {
  const mhk_index T = a->T, K = MHK__TILE, N = a->N, group = a->H / a->G, ldb = a->G * N, wide = MHK__LD(N);
  mhk__orientation_room w;
  mhk__block block;
  mhk__orientation_lay(&w, work, T, N, a->PT);
  memset(&block, 0, sizeof block);
  MHK__N(mhk__rows_in)(T, N, a->b + (b * T * a->G + g) * N, ldb, NULL, w.b);
  for (mhk_index h = g * group; h < (g + 1) * group; h++) {
    const double norm = sqrt(a->difference[b * a->H + h]);
    const mhk_real factor = norm > 0 ? MHK__R(a->scale / norm) : 0; /* equal matrices: subgradient 0 */
    double dd = 0, sum = 0;
    MHK__N(mhk__orientation_pack)(a, b, h, &w);
    for (mhk_index i = 0; i < T; i++) w.dcum[i] = 0;
    for (mhk_index i0 = 0; i0 < T; i0 += K) {
      const mhk_index rows = mhk__min(K, T - i0);
      MHK__N(mhk__orientation_rows)(a, b, h, i0, &w);
      for (mhk_index j0 = 0; j0 <= i0; j0 += K) {
        const mhk_index cols = mhk__min(K, T - j0);
        const int corner = i0 == j0;
        MHK__N(mhk__two_tiles)(a, b, h, i0, j0, &w);
        MHK__N(mhk__orientation_tile_back)(rows, cols, i0, j0, factor, &w, &dd);
        if (a->db) {
          block.c0 = corner && h == g * group ? NULL : w.db + j0 * wide;
          MHK__N(mhk__multiply)
          (&block, cols, N, rows, mhk__in_columns(w.teacher, K), mhk__in_rows(w.c, wide), w.db + j0 * wide, wide,
           corner ? mhk__upper_a : mhk__whole);
        }
        if (a->dc) {
          block.c0 = j0 > 0 ? w.dc : NULL;
          MHK__N(mhk__multiply)
          (&block, rows, N, cols, mhk__in_rows(w.teacher, K), mhk__in_rows(w.b + j0 * wide, wide), w.dc, wide,
           corner ? mhk__lower_a : mhk__whole);
        }
      }
      if (a->dc) MHK__N(mhk__rows_out)(rows, N, w.dc, NULL, NULL, a->dc + ((b * T + i0) * a->G + g) * N, ldb, 1);
    }
    for (mhk_index i = T - 1; a->dlog_a && i >= 0; i--) {
      sum += w.dcum[i];
      a->dlog_a[(b * T + i) * a->H + h] += MHK__R(sum);
    }
    if (a->dd) a->dd[b * a->H + h] = MHK__R(dd);
  }
  if (a->db) MHK__N(mhk__rows_out)(T, N, w.db, NULL, NULL, a->db + (b * T * a->G + g) * N, ldb, 1);
}
#endif /* MOHAWK_NO_TRAINING */
#endif /* MHK__TEMPLATE */

#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
#ifndef MOHAWK_NO_TRAINING
/* ---- ops */

/* A loss that is a mean over rows; the target gets no gradient. */
typedef struct mhk__loss_args mhk__loss_args;
struct mhk__loss_args {
  mhk__row_fn row, row_back; /* both for one row; row writes loss[r], row_back adds to dx */
  mhk_index n, rows;
  const mhk_real *x, *target; /* (rows,n) */
  const int32_t *labels;      /* (rows), in place of a target; negative: the row does not count */
  double *loss;               /* (rows) */
  mhk_real *lse, *target_lse; /* (rows): log-sum-exp */
  mhk_real inverse;           /* 1 / temperature */
  mhk_real share;             /* weight of a row in the mean; in the backward pass also times the cotangent */
  int kl;
  mhk_real *dx;
};

static void mhk__mean_loss_op_back(mhk_tape *t, mhk__node *n) {
  mhk__loss_args a = *(const mhk__loss_args *)n->saved;
  a.dx = mhk__into(t, n->in[0]);
  a.share *= n->out[0]->grad[0] * a.inverse;
  if (a.dx) mhk__over_rows(t->ctx, a.rows, a.n, a.row_back, &a);
}

/* the mean over the `counted` rows that count */
static mhk_tensor *mhk__mean_loss_op(mhk_tape *t, mhk_tensor *x, mhk__loss_args *a, mhk_index counted) {
  double sum = 0;
  mhk_tensor *y = mhk__new(t, 0, NULL);
  a->loss = (double *)mhk__arena_zeros(t->ctx, &t->arena, a->rows, sizeof(double));
  if (!y || !a->loss) return NULL;
  mhk__over_rows(t->ctx, a->rows, a->n, a->row, a);
  for (mhk_index r = 0; r < a->rows; r++) sum += a->loss[r];
  mhk__d(y)[0] = MHK__R(counted ? sum / (double)counted : 0);
  a->share = MHK__R(counted ? 1.0 / (double)counted : 0);
  return mhk__emit(t, mhk__mean_loss_op_back, y, a, sizeof *a, 1, x);
}

/* Of a row with p = softmax(x / temperature), against a label or q = softmax(target):
      cross-entropy    loss = lse - x_label / temperature          dx += (p - 1 at the label) /
                       temperature
                       loss = lse - sum of q x / temperature       dx += (p - q) / temperature
      KL               loss = that + sum of q log q                the same */
static void mhk__cross_entropy_row(mhk_context *ctx, const void *args, mhk_index r) {
  const mhk__loss_args *a = (const mhk__loss_args *)args;
  const mhk_real *x = a->x + r * a->n;
  if (a->labels && a->labels[r] < 0) return;
  const double lse = ctx->kernels->log_sum_exp(a->n, x, a->inverse);
  a->lse[r] = MHK__R(lse);
  if (a->labels) {
    a->loss[r] = lse - (double)(x[a->labels[r]] * a->inverse);
    return;
  }
  const mhk_real *y = a->target + r * a->n;
  const double target_lse = ctx->kernels->log_sum_exp(a->n, y, MHK__R(1));
  a->target_lse[r] = MHK__R(target_lse);
  a->loss[r] = lse - ctx->kernels->soft_dot(a->n, x, y, MHK__R(target_lse)) * (double)a->inverse;
  if (a->kl) a->loss[r] -= target_lse - ctx->kernels->soft_dot(a->n, y, y, MHK__R(target_lse));
}

static void mhk__cross_entropy_row_back(mhk_context *ctx, const void *args, mhk_index r) {
  const mhk__loss_args *a = (const mhk__loss_args *)args;
  if (a->labels && a->labels[r] < 0) return;
  ctx->kernels->soft_back(a->n, a->x + r * a->n, a->inverse, a->lse[r], a->labels ? NULL : a->target + r * a->n,
                          a->labels ? 0 : a->target_lse[r], a->share, a->dx + r * a->n);
  if (a->labels) a->dx[r * a->n + a->labels[r]] -= a->share;
}

/* Mean over rows of cross-entropy against labels (negative ones are excluded) or against the
   softmax of a target, or, if `kl`, of the KL divergence. */
static mhk_tensor *mhk__cross_entropy_op(mhk_tape *t, const char *name, mhk_tensor *x, const int32_t *labels,
                                         mhk_tensor *target, double temperature, int kl) {
  mhk__loss_args a;
  if ((!labels && !target) || !mhk__ready(t, name, 1, 2, x, target)) return NULL;
  if ((target && !mhk__fits(t, name, mhk__last(x) == mhk__last(target) && x->count == target->count, x, target,
                            "both logits must have the same shape")) ||
      !mhk__number_fits(t->ctx, name, "temperature", temperature, MHK__REAL_LEAST, MHK__REAL_MOST))
    return NULL;
  memset(&a, 0, sizeof a);
  a.row = mhk__cross_entropy_row;
  a.row_back = mhk__cross_entropy_row_back;
  a.n = mhk__last(x);
  a.rows = mhk__row_count(x);
  a.x = mhk__d(x);
  a.target = mhk__d(target);
  a.inverse = MHK__R(1 / temperature);
  a.kl = kl;
  a.lse = mhk__tape_zeros(t, a.rows);
  a.target_lse = mhk__tape_zeros(t, target ? a.rows : 0);
  int32_t *copy = (int32_t *)mhk__arena_zeros(t->ctx, &t->arena, labels ? a.rows : 0, sizeof(int32_t));
  if (t->ctx->result != MHK_OK) return NULL;
  mhk_index counted = labels ? 0 : a.rows;
  for (mhk_index r = 0; labels && r < a.rows; r++) {
    if (labels[r] >= a.n)
      return mhk__null(t->ctx, MHK_ERROR_ARGUMENT, "%s: label %lld is %d: the vocabulary has ids 0 to %lld", name,
                       (long long)r, (int)labels[r], (long long)a.n - 1);
    copy[r] = labels[r];
    counted += labels[r] >= 0;
  }
  a.labels = labels ? copy : NULL;
  return mhk__mean_loss_op(t, x, &a, counted);
}
MHKDEF mhk_tensor *mhk_cross_entropy(mhk_tape *t, mhk_tensor *logits, const int32_t *labels) {
  if (mhk__ready(t, "cross_entropy", 1, 1, logits) && !labels)
    return mhk__null(t->ctx, MHK_ERROR_ARGUMENT, "cross_entropy: the labels are missing (NULL)");
  return mhk__cross_entropy_op(t, "cross_entropy", logits, labels, NULL, 1, 0);
}
MHKDEF mhk_tensor *mhk_cross_entropy_soft(mhk_tape *t, mhk_tensor *logits, mhk_tensor *target, double temperature) {
  return mhk__cross_entropy_op(t, "cross_entropy_soft", logits, NULL, target, temperature, 0);
}
MHKDEF mhk_tensor *mhk_kl(mhk_tape *t, mhk_tensor *logits, mhk_tensor *target) {
  return mhk__cross_entropy_op(t, "kl", logits, NULL, target, 1, 1);
}

/* loss = || x - target ||    dx += (x - target) / loss; where both are equal, the subgradient 0 */
static void mhk__distance_row(mhk_context *ctx, const void *args, mhk_index r) {
  const mhk__loss_args *a = (const mhk__loss_args *)args;
  a->loss[r] = sqrt(ctx->kernels->distance(a->n, a->x + r * a->n, a->target + r * a->n));
}

static void mhk__distance_row_back(mhk_context *ctx, const void *args, mhk_index r) {
  const mhk__loss_args *a = (const mhk__loss_args *)args;
  const mhk_real f = a->loss[r] > 0 ? MHK__R((double)a->share / a->loss[r]) : 0;
  const mhk_real *x = a->x + r * a->n, *y = a->target + r * a->n;
  mhk_real *d = a->dx + r * a->n;
  (void)ctx;
  for (mhk_index j = 0; j < a->n; j++) d[j] += f * (x[j] - y[j]);
}

/* mean over rows of n numbers, the last `axes` axes of x */
static mhk_tensor *mhk__distance_op(mhk_tape *t, const char *name, mhk_tensor *x, mhk_tensor *target, int axes) {
  mhk__loss_args a;
  if (!mhk__ready(t, name, 2, 2, x, target) ||
      !mhk__fits(t, name, axes < 2 || x->rank >= axes, x, target, "both must be (...,T,T)") ||
      !mhk__fits(t, name, mhk__same_shape(x, target), x, target, "both must have the same shape"))
    return NULL;
  memset(&a, 0, sizeof a);
  a.row = mhk__distance_row;
  a.row_back = mhk__distance_row_back;
  a.n = mhk__last(x) * (axes == 2 ? x->shape[x->rank - 2] : 1);
  a.rows = a.n > 0 ? x->count / a.n : 0;
  a.x = mhk__d(x);
  a.target = mhk__d(target);
  a.inverse = 1;
  return mhk__mean_loss_op(t, x, &a, a.rows);
}
MHKDEF mhk_tensor *mhk_hidden_distance(mhk_tape *t, mhk_tensor *x, mhk_tensor *target) {
  return mhk__distance_op(t, "hidden_distance", x, target, 1);
}
MHKDEF mhk_tensor *mhk_matrix_distance(mhk_tape *t, mhk_tensor *x, mhk_tensor *target) {
  return mhk__distance_op(t, "matrix_distance", x, target, 2);
}

/* loss = mean over b and h of || M - A ||_F, M of SSD, A of attention    dM = (M - A) /
   || M - A ||_F, and from there as in mhk__ssd_matrix_op_back(), tile by tile */
static void mhk__orientation_op_back(mhk_tape *t, mhk__node *n) {
  mhk__orientation_args a = *(const mhk__orientation_args *)n->saved;
  const mhk__mark mark = mhk__scratch_mark(t->ctx);
  mhk_real *dd = mhk__into(t, n->in[3]);
  a.dlog_a = mhk__into(t, n->in[0]);
  a.db = mhk__into(t, n->in[1]);
  a.dc = mhk__into(t, n->in[2]);
  a.scale *= (double)n->out[0]->grad[0];
  if (dd) a.dd = mhk__scratch_reals(t->ctx, a.B * a.H);
  mhk__run(t->ctx, &a, a.B * a.G, a.G, mhk__orientation_work(a.T, a.N, a.PT),
           (double)(a.B * a.H * a.N) * (double)(a.T * a.T), mhk__orientation_back_task);
  if (dd && t->ctx->result == MHK_OK) mhk__sum_batches(a.B, a.H, a.dd, dd);
  mhk__scratch_rewind(t->ctx, mark);
}

MHKDEF mhk_tensor *mhk_matrix_orientation(mhk_tape *t, const mhk_orientation_desc *d) {
  static const char name[] = "matrix_orientation";
  mhk__ssd_args s;
  mhk__attention_args teacher;
  mhk__orientation_args a;
  if (!d || !mhk__ready(t, name, 2, 2, d->q, d->k) ||
      !mhk__ssd_sizes(t, name, d->log_a, d->Bm, d->Cm, d->D, NULL, &s) ||
      !mhk__attention_sizes(t, name, d->q, d->k, d->doc, &teacher) ||
      !mhk__fits(t, name, teacher.B == s.B && teacher.T == s.T && teacher.H == s.H, d->log_a, d->q,
                 "both mixers must have the same batch, length and number of heads"))
    return NULL;
  memset(&a, 0, sizeof a);
  a.B = s.B;
  a.T = s.T;
  a.H = a.HT = s.H;
  a.G = s.G;
  a.N = s.N;
  a.GT = teacher.G;
  a.PT = teacher.P;
  a.log_a = s.log_a;
  a.b = s.b;
  a.c = s.c;
  a.d = s.d;
  a.q = teacher.q;
  a.k = teacher.k;
  a.start = teacher.start;
  const mhk_index heads = a.B * a.H;
  mhk_tensor *y = mhk__new(t, 0, NULL);
  a.lse = teacher.lse = mhk__tape_zeros(t, heads * a.T);
  a.difference = (double *)mhk__arena_zeros(t->ctx, &t->arena, heads, sizeof(double));
  a.norm = (double *)mhk__arena_zeros(t->ctx, &t->arena, heads, sizeof(double));
  if (!y || !a.lse || !a.difference || !a.norm) return NULL;
  mhk__attention_forward(t->ctx, &teacher); /* denominators only */
  mhk__run(t->ctx, &a, heads, a.H, mhk__orientation_work(a.T, a.N, a.PT),
           (double)(heads * a.N) * (double)(a.T * a.T), mhk__orientation_task);
  if (t->ctx->result != MHK_OK) return NULL;
  double sum = 0;
  for (mhk_index i = 0; i < heads; i++) sum += sqrt(a.difference[i]);
  a.scale = heads > 0 ? 1.0 / (double)heads : 0;
  mhk__d(y)[0] = MHK__R(sum * a.scale);
  for (mhk_index h = 0; d->relative && h < a.H; h++) {
    d->relative[h] = 0;
    for (mhk_index i = h; i < heads; i += a.H) d->relative[h] += sqrt(a.difference[i] / a.norm[i]) / (double)a.B;
  }
  return mhk__emit(t, mhk__orientation_op_back, y, &a, sizeof a, 4, d->log_a, d->Bm, d->Cm, d->D);
}
#endif /* MOHAWK_NO_TRAINING */
#endif /* MOHAWK_IMPLEMENTATION */

/* =================================================================================================
   OPTIMIZER: AdamW                                                                      >>optimizer
   =================================================================================================

   Adam with decoupled weight decay (Loshchilov & Hutter, arXiv 1711.05101). Each parameter and
   its two moments are read and written once an update. */

#if MHK__REFERENCE == 1 && !defined(MHK__PASS) && !defined(MOHAWK_NO_TRAINING)
/* ---- reference */

/* Update number `step` (from 1) of n parameters p with moments m and v and gradients g. The moments
   are running means, corrected for their start at zero. */
static inline void mhk__ref_adamw(int n, const mhk_adamw_desc *s, int step, const double *g, double *p, double *m,
                                  double *v) {
  for (int i = 0; i < n; i++) {
    const double gradient = s->scale * g[i];
    m[i] = s->beta1 * m[i] + (1 - s->beta1) * gradient;
    v[i] = s->beta2 * v[i] + (1 - s->beta2) * gradient * gradient;
    const double mean = m[i] / (1 - pow(s->beta1, step)), square = v[i] / (1 - pow(s->beta2, step));
    p[i] -= s->lr * (s->weight_decay * p[i] + mean / (sqrt(square) + s->eps));
  }
}
#endif /* reference */

#ifdef MHK__TEMPLATE
#ifndef MOHAWK_NO_TRAINING
/* ---- kernels */

/* AdamW (Loshchilov & Hutter, arXiv 1711.05101) in one pass. s: learning rate * decay, beta1,
   beta2, learning rate / (1 - beta1^t), 1 / sqrt(1 - beta2^t), eps, factor on the gradient */
static void MHK__N(mhk__adamw)(mhk_index n, mhk_real *MHK__RESTRICT p, const mhk_real *MHK__RESTRICT g,
                               mhk_real *MHK__RESTRICT m, mhk_real *MHK__RESTRICT v, const mhk_real *s) {
  const MHK__V decay = MHK__SET(s[0]), b2 = MHK__SET(s[2]), rest1 = MHK__SET(MHK__R(1) - s[1]),
               rest2 = MHK__SET(MHK__R(1) - s[2]), rate = MHK__SET(s[3]);
  const MHK__V root = MHK__SET(s[4]), eps = MHK__SET(s[5]), factor = MHK__SET(s[6]);
  for (mhk_index i = 0; i < n; i += MHK__W) {
    const mhk_index k = n - i;
    const MHK__V pi = MHK__LOADN(p + i, k), gi = MHK__LOADN(g + i, k) * factor, mi = MHK__LOADN(m + i, k),
                 mj = MHK__FMA(gi - mi, rest1, mi);
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

/* the arguments of the kernel at update `step` */
static void mhk__adamw_factors(double lr, double decay, double beta1, double beta2, double eps, double scale,
                               double step, mhk_real *s) {
  s[0] = MHK__R(lr * decay);
  s[1] = MHK__R(beta1);
  s[2] = MHK__R(beta2);
  s[3] = MHK__R(lr / (1.0 - pow(beta1, step)));
  s[4] = MHK__R(1.0 / sqrt(1.0 - pow(beta2, step)));
  s[5] = MHK__R(eps);
  s[6] = MHK__R(scale);
}

/* A sequence of parameters, with all that AdamW needs. */
typedef struct mhk__adamw_args {
  int n, keep;           /* keep: keep gradients instead of zeroing them */
  int decay_matrices;    /* weight decay only on tensors of two or more axes */
  mhk_tensor *const *x;
  mhk_real *moments;     /* for each: first moments, then second moments */
  mhk_real s[7];
} mhk__adamw_args;

/* elements first to last of all parameters */
static void mhk__adamw_body(mhk_context *ctx, void *args, mhk_index first, mhk_index last) {
  const mhk__adamw_args *a = (const mhk__adamw_args *)args;
  mhk_index at = 0;
  for (int i = 0; i < a->n && at < last; at += a->x[i++]->count) {
    mhk_tensor *x = a->x[i];
    const mhk_index from = mhk__max(first - at, 0), n = mhk__min(last - at, x->count) - from;
    mhk_real *m = a->moments + 2 * at + from, s[7];
    if (n <= 0 || !x->grad) continue;
    memcpy(s, a->s, sizeof s);
    if (a->decay_matrices && x->rank < 2) s[0] = 0;
    ctx->kernels->adamw(n, (mhk_real *)x->data + from, x->grad + from, m, m + x->count, s);
    if (!a->keep) memset(x->grad + from, 0, (size_t)n * sizeof(mhk_real));
  }
}

/* One update of all parameters; their count is total. */
static void mhk__adamw_update(mhk_context *ctx, mhk__adamw_args *a, mhk_index total) {
  mhk__over(ctx, total, 4 * MHK__GRAIN, mhk__adamw_body, a);
}

MHKDEF mhk_result mhk_adamw(mhk_context *ctx, int n, mhk_tensor *const *x, mhk_real *moments, int64_t step,
                            const mhk_adamw_desc *desc) {
  mhk__adamw_args a;
  mhk_index total = 0;
  if (!ctx) return MHK_ERROR_MEMORY;
  if (ctx->result != MHK_OK) return ctx->result;
  if (n < 0 || (n > 0 && (!x || !moments)) || !desc)
    return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "adamw: parameters, moments or the description are missing (NULL)");
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
        "adamw: step %lld, betas %g and %g, eps %g: steps start at 1, betas must be in (0,1), eps must be above 0 and "
        "finite",
        (long long)step, desc->beta1, desc->beta2, desc->eps);
  for (int i = 0; i < n; i++) {
    if (!x[i] || x[i]->dtype != MHK_REAL)
      return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "adamw: parameter %d of %d is not of type mhk_real", i, n);
    total += x[i]->count;
  }
  memset(&a, 0, sizeof a);
  a.n = n;
  a.keep = d.keep_grad;
  a.x = x;
  a.moments = moments;
  mhk__adamw_factors(d.lr, d.weight_decay, d.beta1, d.beta2, d.eps, d.scale, (double)step, a.s);
  mhk__adamw_update(ctx, &a, total);
  return ctx->result;
}
#endif /* MOHAWK_NO_TRAINING */
#endif /* MOHAWK_IMPLEMENTATION */
#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
/* =================================================================================================
   FILES: numbers, JSON, safetensors                                                         >>files
   ============================================================================================== */

/* ---- small helpers */

/* Merge sort of n pointers, n log n in the worst case; room has space for n more. compare is as for
   qsort. */
static void mhk__sort(const void **x, const void **room, mhk_index n, int (*compare)(const void *, const void *)) {
  const void **from = x, **to = room, **swap;
  for (mhk_index width = 1; width < n; width *= 2) {
    for (mhk_index at = 0; at < n; at += 2 * width) {
      mhk_index i = at, middle = n - at < width ? n : at + width, j = middle,
                end = n - at < 2 * width ? n : at + 2 * width, k;
      for (k = at; k < end; k++)
        to[k] = i < middle && (j >= end || compare(from[i], from[j]) <= 0) ? from[i++] : from[j++];
    }
    swap = from;
    from = to;
    to = swap;
    if (width > n / 2) break;
  }
  if (from != x) memcpy(x, from, (size_t)n * sizeof *x);
}

/* length of the valid UTF-8 character at the start of s, 0 if there is none */
static size_t mhk__utf8_length(const unsigned char *s, size_t n) {
  if (n == 0) return 0;
  const unsigned c = s[0];
  if (c < 0x80) return 1;
  const size_t k = c >= 0xC2 && c < 0xE0 ? 2 : c >= 0xE0 && c < 0xF0 ? 3 : c >= 0xF0 && c < 0xF5 ? 4 : 0;
  if (k == 0 || n < k) return 0;
  for (size_t i = 1; i < k; i++)
    if ((s[i] & 0xC0) != 0x80) return 0;
  if ((c == 0xE0 && s[1] < 0xA0) || (c == 0xED && s[1] > 0x9F) || (c == 0xF0 && s[1] < 0x90) ||
      (c == 0xF4 && s[1] > 0x8F))
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

/* writes one code point and returns its length (1 to 4) */
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
/* maps the whole file, or sets an error that names it */
static int mhk__bytes_open_or_fail(mhk_context *ctx, const char *path, mhk__bytes *out) {
  memset(out, 0, sizeof *out);
  if (mhk_failed(ctx)) return 0;
  const int error = mhk__bytes_open(path, out);
  if (error) mhk_fail(ctx, MHK_ERROR_FILE, "cannot read %s: %s", path, mhk__file_reason(error));
  return error == 0;
}

/* the same, but reads into memory of an arena */
static int mhk__bytes_read(mhk_context *ctx, mhk__arena *a, const char *path, mhk__bytes *out) {
  mhk__handle file;
  size_t n;
  memset(out, 0, sizeof *out);
  errno = 0;
  int error = mhk__handle_open(path, &file, &n);
  if (error) return error;
  unsigned char *block = (unsigned char *)mhk__arena_alloc(ctx, a, n + 1);
  error = block ? mhk__read_all(file, block, n) : ENOMEM;
  mhk__handle_close(file);
  if (error) return error;
  out->data = block;
  out->size = n;
  return 0;
}
static int mhk__bytes_read_or_fail(mhk_context *ctx, mhk__arena *a, const char *path, mhk__bytes *out) {
  if (mhk_failed(ctx)) {
    memset(out, 0, sizeof *out);
    return 0;
  }
  const int error = mhk__bytes_read(ctx, a, path, out);
  if (error) mhk_fail(ctx, MHK_ERROR_FILE, "cannot read %s: %s", path, mhk__file_reason(error));
  return !mhk_failed(ctx);
}

/* turns a failure to write into an error that names the file */
static int mhk__output_ok(mhk_context *ctx, const mhk__output *o) {
  if (o->error && !mhk_failed(ctx)) mhk_fail(ctx, MHK_ERROR_FILE, "cannot write %s: %s", o->path, mhk__output_why(o));
  return !mhk_failed(ctx);
}

/* closes a written file and keeps it unless the context has failed */
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

/* ---- numbers: text to double and back, independent of the locale */

/* Compares x with m * 2^e: below 0, 0 or above 0. */
static int mhk__number_against(const mhk__number *x, uint64_t m, int e) {
  mhk__number y;
  mhk__decimal(m, e, &y);
  if (x->exponent != y.exponent) return x->exponent < y.exponent ? -1 : 1;
  for (int i = 0; i < x->n || i < y.n; i++) {
    const int order = (i < x->n ? x->digits[i] : '0') - (i < y.n ? y.digits[i] : '0');
    if (order) return order;
  }
  return 0;
}

/* The double nearest to x, which has digits; ties to even. Starts from a guess and moves until x
   lies between the midpoints to the neighbors. */
static double mhk__nearest_double(const mhk__number *x, double guess) {
  const uint64_t least = (uint64_t)1 << 52; /* for a normal number; the neighbor below is half as far away */
  int e;
  uint64_t m = mhk__mantissa(guess < DBL_MAX ? guess : DBL_MAX, &e);
  for (; m && e < -1074; e++) m /= 2;
  if (m == 0) e = -1074;
  for (;;) {
    const int up = mhk__number_against(x, 2 * m + 1, e - 1), lowest = m == least && e > -1074;
    if (up > 0 || (up == 0 && m % 2)) {
      if (++m < 2 * least) continue;
      m = least;
      if (++e > 971) return HUGE_VAL;
      continue;
    }
    if (m == 0) return 0.0;
    const int down = lowest ? mhk__number_against(x, 4 * m - 1, e - 2) : mhk__number_against(x, 2 * m - 1, e - 1);
    if (down > 0 || (down == 0 && m % 2 == 0)) return ldexp((double)m, e);
    m = lowest ? 2 * least - 1 : m - 1;
    e -= lowest;
  }
}

/* x * 10^power, exact if both factors and the result are exact */
static double mhk__scale_ten(double x, int power) {
  static const double powers[] = {1e1, 1e2, 1e4, 1e8, 1e16, 1e32, 1e64, 1e128, 1e256};
  double factor = 1.0;
  const int n = power < 0 ? -power : power;
  for (int i = 0; i < 9 && n >> i; i++) {
    if (!(n >> i & 1)) continue;
    if (n <= 22) factor *= powers[i];
    else x = power < 0 ? x / powers[i] : x * powers[i];
  }
  return power < 0 ? x / factor : x * factor;
}

/* Reads a number in JSON's grammar, or Infinity, at the start of text; correctly rounded. */
static double mhk__parse_double(const char *text, size_t length) {
  mhk__number d;
  int exponent = 0, fraction = 0, dropped = 0; /* exponent of the last digit kept */
  uint64_t mantissa = 0;
  size_t i = 0;
  const int negative = length > 0 && text[0] == '-';
  if (negative) i++;
  if (length - i >= 8 && memcmp(text + i, "Infinity", 8) == 0) return negative ? -HUGE_VAL : HUGE_VAL;
  for (d.n = 0; i < length; i++) {
    const char c = text[i];
    if (c == '.' && !fraction) {
      fraction = 1;
      continue;
    }
    if (c < '0' || c > '9') break;
    const int kept = d.n < MHK__DIGITS - 1;
    if (!kept) dropped |= c != '0';
    if (kept && (d.n || c != '0')) d.digits[d.n++] = c;
    if (kept && fraction && exponent > -100000000) exponent--;
    if (!kept && !fraction && exponent < 100000000) exponent++;
  }
  if (i < length && (text[i] == 'e' || text[i] == 'E')) {
    int written = 0, minus = 0;
    i++;
    if (i < length && (text[i] == '-' || text[i] == '+')) minus = text[i++] == '-';
    for (; i < length && text[i] >= '0' && text[i] <= '9'; i++)
      if (written < 100000000) written = written * 10 + (text[i] - '0');
    exponent += minus ? -written : written;
  }
  if (dropped) { /* the digits after those kept only make the number a little larger */
    d.digits[d.n++] = '1';
    exponent--;
  }
  for (; d.n > 0 && d.digits[d.n - 1] == '0'; d.n--) exponent++;
  d.exponent = d.n - 1 + exponent;
  double x = 0.0;
  if (d.n > 0 && d.exponent > 309)
    x = HUGE_VAL;
  else if (d.n > 0 && d.exponent >= -330) {
    const int used = d.n < 19 ? d.n : 19;
    for (int k = 0; k < used; k++) mantissa = mantissa * 10 + (uint64_t)(d.digits[k] - '0');
    exponent = d.exponent - (used - 1);
    x = mhk__scale_ten((double)mantissa, exponent);
    if (d.n > 15 || exponent < -22 || exponent > 22) x = mhk__nearest_double(&d, x);
  }
  return negative ? -x : x;
}

/* Writes a double as short text that reads back to the same bits, in Python's format: 1e-05, 0.1,
   10000.0. Returns the length. */
static size_t mhk__format_double(double value, char out[32]) {
  mhk__number all, d;
  int e = 0;
  const int negative = value < 0 || (value == 0 && 1 / value < 0);
  if (!(value - value == 0.0))
    return mhk__print(out, 32, "%s", value > 0 ? "Infinity" : value < 0 ? "-Infinity" : "NaN");
  if (negative) value = -value;
  const uint64_t m = mhk__mantissa(value, &e);
  if (m == 0) return mhk__print(out, 32, negative ? "-0.0" : "0.0");
  mhk__decimal(m, e, &all);
  for (int n = 15; n <= 17; n++) {
    d = all;
    mhk__round_decimal(&d, n);
    if (mhk__nearest_double(&d, value) == value) break;
  }
  while (d.n > 1 && d.digits[d.n - 1] == '0') d.n--;
  const int fixed = d.exponent >= -4 && d.exponent < 16, decimals = d.n - 1 - (fixed ? d.exponent : 0);
  return mhk__print(out, 32, fixed ? "%s%.*f" : "%s%.*e", negative ? "-" : "", fixed && decimals < 1 ? 1 : decimals,
                    value);
}

/* ---- JSON in: strict (RFC 8259), bounded, in one pass; a key that appears twice in an object is
   an error */

typedef enum mhk__json_type {
  MHK__JSON_NULL = 1,
  MHK__JSON_FALSE,
  MHK__JSON_TRUE,
  MHK__JSON_NUMBER,
  MHK__JSON_STRING,
  MHK__JSON_ARRAY,
  MHK__JSON_OBJECT
} mhk__json_type;

/* One value. The children of arrays and objects are a list in file order: for (x = v->first; x; x =
   x->next). */
typedef struct mhk__json {
  struct mhk__json *next, *first;
  const char *key;           /* members of objects: the key, UTF-8, 0-terminated; else NULL */
  const char *text;          /* strings: the UTF-8 text; numbers: as written; both 0-terminated */
  size_t key_length, length; /* bytes of key and text (a string may hold 0 bytes) */
  size_t at;                 /* byte offset in the text */
  mhk_index count;           /* arrays and objects: how many children */
  mhk__json_type type;
  int seen;                  /* a setting that was read */
} mhk__json;

#define MHK__JSON_DEPTH 100  /* brackets inside brackets */
#define MHK__JSON_INFINITY 1 /* flag: accept Infinity and -Infinity as numbers, as Python writes them */

typedef struct mhk__json_reader {
  mhk_context *ctx;
  mhk__arena *arena;
  const unsigned char *s;
  size_t n, at;
  const char *where;
  int flags;
  char *pool;       /* unescaped text: never longer than its escaped form */
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
  mhk_fail(r->ctx, MHK_ERROR_FORMAT, "%s, line %lld, byte %lld: expected %s, found %s", r->where, line, (long long)at,
           expected, found);
}

static void mhk__json_space(mhk__json_reader *r) {
  while (r->at < r->n && (r->s[r->at] == ' ' || r->s[r->at] == '\n' || r->s[r->at] == '\r' || r->s[r->at] == '\t'))
    r->at++;
}

static int mhk__json_hex4(const mhk__json_reader *r, size_t at, uint32_t *out) {
  uint32_t x = 0;
  if (r->n - at < 4) return 0;
  for (size_t i = 0; i < 4; i++) {
    unsigned c = r->s[at + i];
    unsigned digit = c >= '0' && c <= '9'   ? c - '0'
                     : c >= 'a' && c <= 'f' ? c - 'a' + 10
                     : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                            : 16;
    if (digit == 16) return 0;
    x = x * 16 + digit;
  }
  *out = x;
  return 1;
}

/* reads the string whose opening quote is at r->at */
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
        mhk__json_fail(r, i - 6, "no low surrogate without a high surrogate before it");
        return 0;
      }
      if (code >= 0xD800 && code < 0xDC00) {
        if (r->n - i < 6 || r->s[i] != '\\' || r->s[i + 1] != 'u' || !mhk__json_hex4(r, i + 2, &low) || low < 0xDC00 ||
            low > 0xDFFF) {
          mhk__json_fail(r, i, "the low surrogate of a pair");
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

/* reads a number, checks the grammar, and keeps its text; the value is computed on demand */
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

/* Checks that no key of an object appears twice: by comparing all pairs if there are few, by
   sorting if there are many. */
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
    mhk_fail(r->ctx, MHK_ERROR_FORMAT, "%s, line %lld, byte %lld: the key \"%.100s\" appears twice in one object",
             r->where, line, (long long)twice->at, twice->key);
  }
  return twice == NULL;
}

/* Parses a text into a tree in the arena, which does not refer to the text. where names the text in
   errors. */
static mhk__json *mhk__json_parse(mhk_context *ctx, mhk__arena *a, const char *json, size_t length, const char *where,
                                  int flags) {
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
  if (length > (size_t)PTRDIFF_MAX - 1)
    return mhk__null(ctx, MHK_ERROR_FORMAT, "%s is too long", where);
  r.pool = (char *)mhk__arena_alloc(ctx, a, length + 1);
  if (!r.pool) return NULL;
  for (;;) { /* one value per iteration, with what follows it */
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
    while (depth > 0) { /* commas and closing brackets up to the start of the next value */
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

/* the member of an object, by linear search; NULL if object is NULL, is not an object, or has no
   such key */
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

/* returns whether x is a whole number (2048, also 2048.0 or 2e3) that fits */
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

/* ---- text and JSON out: into an arena, growing, or into a caller's buffer as far as it goes while
   the length counts on */

typedef struct mhk__writer {
  mhk_context *ctx;
  mhk__arena *arena;
  char *data; /* always 0-terminated; NULL before the first byte and after an error */
  size_t length, room;
  /* state of the JSON: open brackets, no spaces and newlines, current bracket still empty */
  int depth, compact, fresh;
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

/* appends to a text in an arena, which grows as needed, or to the caller's buffer, where the rest
   is only counted */
static void mhk__write_bytes(mhk__writer *w, const char *text, size_t length) {
  if (w->arena) {
    if (mhk_failed(w->ctx)) return;
    if (length >= w->room - w->length || !w->data) {
      size_t room = w->room < 512 ? 1024 : w->room * 2;
      if (length > (size_t)PTRDIFF_MAX / 4 || w->length > (size_t)PTRDIFF_MAX / 4) {
        mhk_fail(w->ctx, MHK_ERROR_MEMORY, "a text of %.0f bytes does not fit in this machine's memory",
                 (double)w->length + (double)length);
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

/* quotes and escapes; bytes that are not UTF-8 become U+FFFD */
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

/* call before each value of an array */
static void mhk__write_item(mhk__writer *w) {
  if (!w->fresh) mhk__write_bytes(w, ",", 1);
  w->fresh = 0;
  mhk__write_line(w);
}

/* call before each value of an object */
static void mhk__write_key(mhk__writer *w, const char *key) {
  mhk__write_item(w);
  mhk__write_string(w, key, strlen(key));
  mhk__write_text(w, w->compact ? ":" : ": ");
}

/* opens '{' or '[' as a value; closes '}' or ']' */
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
static uint16_t mhk__half_bf16(float x) {
  uint32_t bits = mhk__float_bits(x);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return (uint16_t)((bits >> 16) | 0x40u);
  return (uint16_t)((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

#endif

#if !defined(MOHAWK_NO_STDIO) || !defined(MOHAWK_NO_TRAINING)
static uint16_t mhk__half_f16(float x) {
  uint32_t bits = mhk__float_bits(x), sign = (bits >> 16) & 0x8000u, rest, half, drop, out;
  bits &= 0x7FFFFFFFu;
  if (bits > 0x7F800000u) return (uint16_t)(sign | 0x7E00u);
  if (bits >= 0x477FF000u) return (uint16_t)(sign | 0x7C00u); /* values from 65520 round to infinity */
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

/* reads n elements of a little-endian array as mhk_real */
static void mhk__from_little(mhk_dtype dtype, const void *data, mhk_index n, mhk_real *out) {
  const unsigned char *p = (const unsigned char *)data;
  const size_t size = mhk_dtype_bytes(dtype);
  if (dtype == MHK_REAL && mhk__little_endian()) {
    if (n) memcpy(out, p, (size_t)n * size);
    return;
  }
  for (mhk_index i = 0; i < n; i++, p += size) {
    const uint64_t bits = mhk__get_bytes(p, (int)size);
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

/* converts n elements from the byte order of the host to little-endian or back; out may be data */
static void mhk__byte_swap(const void *data, mhk_index n, size_t size, void *out) {
  const unsigned char *from = (const unsigned char *)data;
  unsigned char *to = (unsigned char *)out;
  if (mhk__little_endian() || size == 1) {
    if (n && out != data) memcpy(out, data, (size_t)n * size);
    return;
  }
  for (mhk_index i = 0; i < n; i++, from += size, to += size) {
    unsigned char swapped[8];
    for (size_t k = 0; k < size; k++) swapped[k] = from[size - 1 - k];
    memcpy(to, swapped, size);
  }
}

#ifndef MOHAWK_NO_STDIO
/* the same from host memory (tensors in use) */
static void mhk__from_host(mhk_dtype dtype, const void *data, mhk_index n, mhk_real *out) {
  const size_t size = mhk_dtype_bytes(dtype);
  if (mhk__little_endian())
    mhk__from_little(dtype, data, n, out);
  else
    for (mhk_index i = 0; i < n; i++) {
      unsigned char swapped[8];
      mhk__byte_swap((const unsigned char *)data + (size_t)i * size, 1, size, swapped);
      mhk__from_little(dtype, swapped, 1, out + i);
    }
}
#endif

/* ---- safetensors in */

#define MHK__HEADER_MOST 100000000 /* bytes: the limit of the reference implementation */

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
  mhk_stored t; /* first: the part that the caller sees */
  const char *type;  /* type name from the file, if t.dtype is 0 */
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
  mhk_release_fn release; /* of what mhk_file_of() was given */
  void *user;
};

static void mhk__file_destroy(void *object) {
  mhk_file *f = (mhk_file *)object;
  if (f->release) f->release(f->user);
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

/* Fails and names the command that reads a file in another layout. */
static void mhk__needs_convert(mhk_context *ctx, const char *path, const char *what) {
  mhk_fail(ctx, MHK_ERROR_UNSUPPORTED,
           "%s is %s, which the library does not read: `mohawk convert --model FOLDER --out OUT` writes a folder that "
           "it does",
           path, what);
}

/* reads one entry of a header */
static int mhk__read_entry(mhk_file *f, const char *path, const mhk__json *x, size_t room, mhk__stored *out) {
  mhk_context *ctx = f->object.ctx;
  const mhk__json *dtype = mhk__json_get(x, "dtype"), *shape = mhk__json_get(x, "shape"),
                  *offsets = mhk__json_get(x, "data_offsets"), *s;
  mhk_index count = 1;
  int64_t begin, end, size;
  int i = 0;
  if (memchr(x->key, 0, x->key_length))
    return mhk__no(ctx, MHK_ERROR_FORMAT, "%s: the tensor name \"%.200s...\" contains a zero byte", path, x->key);
  if (!mhk__json_is(dtype, MHK__JSON_STRING) || !mhk__json_is(shape, MHK__JSON_ARRAY) ||
      !mhk__json_is(offsets, MHK__JSON_ARRAY) || offsets->count != 2)
    return mhk__no(ctx, MHK_ERROR_FORMAT, "%s: tensor %.200s needs \"dtype\", \"shape\" and two \"data_offsets\"", path,
                   x->key);
  out->t.dtype = mhk__dtype_named(dtype);
  if (!out->t.dtype)
    out->type =
        mhk__arena_text(ctx, &f->object.arena, dtype->text, strlen(dtype->text) < 40 ? strlen(dtype->text) : 40);
  for (i = 0; i < MHK_MAX_RANK; i++) out->t.shape[i] = 1;
  out->t.rank = shape->count < MHK_MAX_RANK ? (int)shape->count : MHK_MAX_RANK;
  const size_t element = mhk_dtype_bytes(out->t.dtype);
  for (s = shape->first, i = 0; s; s = s->next, i++) {
    const mhk_index last = i < MHK_MAX_RANK ? 1 : out->t.shape[MHK_MAX_RANK - 1];
    if (!mhk__json_integer(s, &size) || size < 0 || (uint64_t)size > (uint64_t)PTRDIFF_MAX ||
        (size > 0 && (count > PTRDIFF_MAX / (mhk_index)size / (mhk_index)(element ? element : 1) ||
                      last > PTRDIFF_MAX / (mhk_index)size)))
      return mhk__no(ctx, MHK_ERROR_FORMAT, "%s: axis %d of tensor %.200s has an invalid size", path, i, x->key);
    out->t.shape[i < MHK_MAX_RANK ? i : MHK_MAX_RANK - 1] = last * (mhk_index)size;
    count *= (mhk_index)size;
  }
  if (!mhk__json_integer(offsets->first, &begin) || !mhk__json_integer(offsets->first->next, &end) || begin < 0 ||
      end < begin || (uint64_t)end > (uint64_t)room)
    return mhk__no(
        ctx, MHK_ERROR_FORMAT, "%s: tensor %.200s claims bytes %.24s to %.24s of the data, which has %lld bytes", path,
        x->key, mhk__json_is(offsets->first, MHK__JSON_NUMBER) ? offsets->first->text : "?",
        mhk__json_is(offsets->first->next, MHK__JSON_NUMBER) ? offsets->first->next->text : "?", (long long)room);
  out->t.count = count;
  out->t.bytes = out->t.dtype ? (size_t)count * element : (size_t)(end - begin);
  if ((uint64_t)(end - begin) != (uint64_t)out->t.bytes) {
    char text[160];
    return mhk__no(ctx, MHK_ERROR_FORMAT,
                   "%s: tensor %.200s of shape %s and type %s needs %lld bytes, but its data_offsets give %lld", path,
                   x->key, mhk__shape_text(out->t.rank, out->t.shape, text, sizeof text), mhk_dtype_name(out->t.dtype),
                   (long long)out->t.bytes, (long long)(end - begin));
  }
  out->begin = (size_t)begin;
  out->end = (size_t)end;
  out->t.name = mhk__arena_text(ctx, &f->object.arena, x->key, x->key_length);
  return out->t.name != NULL;
}

/* Reads the header of a shard and returns its *n tensors in *entries. The caller rewinds
   scratch. */
static int mhk__read_header(mhk_file *f, int shard, mhk__stored **entries, int *n) {
  mhk_context *ctx = f->object.ctx;
  const char *path = f->shards[shard].path;
  const mhk__bytes *b = &f->shards[shard].bytes;
  size_t room, at = 0;
  mhk_index count, i = 0;
  char where[512];
  if (b->size < 8)
    return mhk_fail(ctx, MHK_ERROR_FORMAT,
                    "%s has %lld bytes: too short for a safetensors file, which starts with 8 bytes of header length",
                    path, (long long)b->size),
           0;
  if (memcmp(b->data, "PK\3\4", 4) == 0) return mhk__needs_convert(ctx, path, "an archive of PyTorch"), 0;
  const uint64_t length = mhk__get_bytes(b->data, 8);
  if (length > MHK__HEADER_MOST || length > b->size - 8)
    return mhk_fail(ctx, MHK_ERROR_FORMAT,
                    "%s is not a safetensors file, or it is truncated: its first 8 bytes give a header of %llu bytes, "
                    "but the file has %lld bytes",
                    path, (unsigned long long)length, (long long)b->size),
           0;
  room = b->size - 8 - (size_t)length;
  mhk__print(where, sizeof where, "the header of %.480s", path);
  while (at < length && b->data[8 + at] && strchr(" \t\r\n", b->data[8 + at])) at++;
  if (at == length || b->data[8 + at] != '{')
    return mhk__no(ctx, MHK_ERROR_FORMAT, "%s does not start with '{'", where);
  at = 0;
  const mhk__json *root = mhk__json_parse(ctx, &ctx->scratch, (const char *)b->data + 8, (size_t)length, where, 0);
  if (!root) return 0;
  const mhk__json *m = mhk__json_get(root, "__metadata__");
  if (m && m->type != MHK__JSON_NULL) {
    if (m->type != MHK__JSON_OBJECT)
      return mhk__no(ctx, MHK_ERROR_FORMAT, "%s: __metadata__ must be an object of strings", where);
    for (const mhk__json *x = m->first; x; x = x->next) {
      mhk__metadata *y = (mhk__metadata *)mhk__arena_zeros(ctx, &f->object.arena, 1, sizeof *y);
      if (!y) return 0;
      if (x->type != MHK__JSON_STRING)
        return mhk__no(ctx, MHK_ERROR_FORMAT, "%s: the value of \"%.100s\" in __metadata__ must be a string", where,
                       x->key);
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
  if (count > INT_MAX / 2) return mhk__no(ctx, MHK_ERROR_UNSUPPORTED, "%s has too many tensors", path);
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
  /* the tensors must cover the data without gaps or overlaps, so nothing is hidden or shared */
  mhk__sort(order, order + count, count, mhk__stored_place_order);
  for (i = 0; i < count; i++) {
    const mhk__stored *e = (const mhk__stored *)order[i];
    if (e->begin != at)
      return mhk__no(ctx, MHK_ERROR_FORMAT,
                     "%s: tensor %.200s starts at byte %lld of the data instead of %lld: there is %s before it", path,
                     e->t.name, (long long)e->begin, (long long)at, e->begin < at ? "an overlap" : "a hole");
    at = e->end;
  }
  if (at != room)
    return mhk__no(ctx, MHK_ERROR_FORMAT, "%s has %lld bytes of data, but its tensors account for %lld", path,
                   (long long)room, (long long)at);
  return 1;
}

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

/* Sorts the tensors of all lists by name and refuses duplicates. The caller rewinds scratch. */
static int mhk__file_sort(mhk_file *f, mhk__stored *const *lists, const int *counts, int n_lists) {
  mhk_context *ctx = f->object.ctx;
  mhk_index total = 0, at = 0;
  for (int i = 0; i < n_lists; i++) total += counts[i];
  if (total > INT_MAX / 2) return mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "%s has too many tensors", f->path), 0;
  f->sorted = (mhk__stored **)mhk__arena_zeros(ctx, &f->object.arena, total, sizeof(void *));
  const void **order = (const void **)mhk__scratch(ctx, total, 2 * sizeof(void *));
  if (!f->sorted || !order) return 0;
  for (int i = 0; i < n_lists; i++)
    for (int j = 0; j < counts[i]; j++) order[at++] = lists[i] + j;
  mhk__sort(order, order + total, total, mhk__stored_name_order);
  if (total) memcpy(f->sorted, order, (size_t)total * sizeof(void *));
  f->n = (int)total;
  for (int i = 1; i < f->n; i++)
    if (strcmp(f->sorted[i - 1]->t.name, f->sorted[i]->t.name) == 0)
      return mhk__no(ctx, MHK_ERROR_FORMAT, "tensor %.200s appears twice: in %.500s and in %.500s",
                     f->sorted[i]->t.name, f->shards[f->sorted[i - 1]->shard].path,
                     f->shards[f->sorted[i]->shard].path);
  return 1;
}

/* All shards are mapped: reads their headers. Scratch is the caller's to rewind. */
static int mhk__file_finish(mhk_file *f) {
  mhk_context *ctx = f->object.ctx;
  mhk__stored **lists = (mhk__stored **)mhk__scratch(ctx, f->n_shards, sizeof(void *));
  int *counts = (int *)mhk__scratch(ctx, f->n_shards, sizeof(int));
  if (!lists || !counts) return 0;
  for (int i = 0; i < f->n_shards; i++)
    if (!mhk__read_header(f, i, &lists[i], &counts[i])) return 0;
  return mhk__file_sort(f, lists, counts, f->n_shards);
}

#ifndef MOHAWK_NO_STDIO
static int mhk__shard_name_order(const void *a, const void *b) {
  const mhk__json *x = (const mhk__json *)a, *y = (const mhk__json *)b;
  return mhk__text_order(x->text, x->length, y->text, y->length);
}

/* A shard must be in the folder of its index: a name that leads elsewhere is refused. */
static int mhk__plain_name(const mhk__json *x) {
  const char *s = mhk__json_string(x);
  if (!s || x->length == 0 || strlen(s) != x->length || s[0] == '.') return 0;
  return strpbrk(s, "/\\:") == NULL;
}
#endif

/* index of a tensor in sorted order; -1 if absent */
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

/* folder: the folder of the index, "" for the current one; read: read shards instead of mapping
   them */
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
    mhk_fail(ctx, MHK_ERROR_FORMAT, "%s has no \"weight_map\" from tensors to files", path);
    goto done;
  }
  for (x = map->first; x; x = x->next)
    if (!mhk__plain_name(x)) {
      mhk_fail(ctx, MHK_ERROR_FORMAT,
               "%s: the file of tensor %.200s must be a plain file name in the folder of the index, not \"%.200s\"",
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
  /* index and shards must agree */
  for (x = map->first; x; x = x->next) {
    const int at = memchr(x->key, 0, x->key_length) ? -1 : mhk__file_index(f, x->key);
    if (at < 0 || strcmp(f->shards[f->sorted[at]->shard].name, x->text) != 0) {
      mhk_fail(ctx, MHK_ERROR_FORMAT, "%s says that tensor %.200s is in %.200s, which does not have it", path, x->key,
               x->text);
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

#define MHK__PATH_MOST 1000 /* limit on the length of a path, so that names and endings can be appended */

/* opens one file: the bytes of the caller, or if data is NULL, maps it, or reads it if bytes is not
   0 */
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
    mhk_fail(ctx, MHK_ERROR_ARGUMENT, "the path is missing");
  else if (strlen(path) > MHK__PATH_MOST)
    mhk_fail(ctx, MHK_ERROR_ARGUMENT, "a path of %lld bytes is too long: the limit is %d", (long long)strlen(path),
             MHK__PATH_MOST);
  return !mhk_failed(ctx);
}

/* opens a file of any kind, or the first known one in a folder; read: read it instead of mapping */
static mhk_file *mhk__file_open(mhk_context *ctx, const char *path, int read) {
  char inside[MHK__PATH_MOST + 64];
  if (!mhk__path_fits(ctx, path)) return NULL;
  if (mhk__is_folder(path)) {
    static const char names[][32] = {"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
                                     "pytorch_model.bin.index.json"};
    int i = 0;
    while (i < 4 && (mhk__join_path(inside, sizeof inside, path, names[i]), !mhk__is_file(inside))) i++;
    if (i == 0) return mhk__file_open_single(ctx, inside, NULL, read != 0);
    if (i == 1) return mhk__file_open_index(ctx, inside, path, read);
    if (i < 4) mhk__needs_convert(ctx, inside, "PyTorch's own");
    mhk_fail(ctx, MHK_ERROR_FILE, "the folder %s has no model.safetensors and no index of one", path);
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
  if (!data && bytes)
    return mhk__null(ctx, MHK_ERROR_ARGUMENT, "mhk_file_open_memory: %lld bytes are at NULL", (long long)bytes);
  return mhk__file_open_single(ctx, "the file in memory", data ? data : "", bytes);
}

/* Is it a tensor that can be written or handed on, whole numbers of elements of a known type? */
static int mhk__stored_check(mhk_context *ctx, const mhk_stored *x, int i) {
  mhk_index count = 1;
  int j = 0;
  if (!x->name || mhk_dtype_bytes(x->dtype) == 0 || x->rank < 0 || x->rank > MHK_MAX_RANK || x->count < 0 ||
      (!x->data && x->count))
    return mhk_fail(ctx, MHK_ERROR_ARGUMENT,
                    "cannot use tensor %d (%.200s): it needs a name, a type, a rank of at most %d, and data", i,
                    x->name ? x->name : "no name", MHK_MAX_RANK),
           0;
  for (; j < x->rank && x->shape[j] >= 0 && (x->shape[j] == 0 || count <= PTRDIFF_MAX / x->shape[j]); j++)
    count *= x->shape[j];
  if (j < x->rank || count != x->count) {
    char text[160];
    return mhk_fail(ctx, MHK_ERROR_SHAPE, "tensor %.200s of shape %s cannot have %lld elements", x->name,
                    mhk__shape_text(x->rank, x->shape, text, sizeof text), (long long)x->count),
           0;
  }
  return 1;
}

MHKDEF mhk_file *mhk_file_of(mhk_context *ctx, const char *name, int n, const mhk_stored *tensors,
                             mhk_release_fn release, void *user) {
  mhk_file *f = mhk__file_new(ctx, name ? name : "the tensors in memory", 1);
  if (!f) {
    if (release) release(user);
    return NULL;
  }
  const mhk__mark mark = mhk__scratch_mark(ctx);
  f->release = release;
  f->user = user;
  f->shards[0].path = f->path;
  if (n < 0 || (n && !tensors)) mhk_fail(ctx, MHK_ERROR_ARGUMENT, "mhk_file_of: %d tensors are at NULL", n);
  mhk__stored *list = (mhk__stored *)mhk__arena_zeros(ctx, &f->object.arena, n, sizeof *list);
  for (int i = 0; list && i < n && mhk__stored_check(ctx, &tensors[i], i); i++) {
    list[i].t = tensors[i];
    for (int k = list[i].t.rank; k < MHK_MAX_RANK; k++) list[i].t.shape[k] = 1;
    list[i].t.bytes = (size_t)list[i].t.count * mhk_dtype_bytes(list[i].t.dtype);
    list[i].t.name = mhk__arena_text(ctx, &f->object.arena, tensors[i].name, strlen(tensors[i].name));
  }
  const int ok = !mhk_failed(ctx) && mhk__file_sort(f, &list, &n, 1);
  mhk__scratch_rewind(ctx, mark);
  if (ok) return f;
  mhk_file_close(f);
  return NULL;
}

MHKDEF void mhk_file_close(mhk_file *f) { mhk__object_free(f); }

MHKDEF int mhk_file_count(const mhk_file *f) { return f ? f->n : 0; }

MHKDEF const mhk_stored *mhk_file_at(const mhk_file *f, int i) {
  return f && i >= 0 && i < f->n ? &f->sorted[i]->t : NULL;
}

MHKDEF const mhk_stored *mhk_file_find(const mhk_file *f, const char *name) {
  return f && name ? mhk_file_at(f, mhk__file_index(f, name)) : NULL;
}

/* the file that contains a tensor of f */
static const char *mhk__file_path_of(const mhk_file *f, const mhk_stored *x) {
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

/* checks that a stored tensor can be converted: it has data, a supported type and a matching
   size */
static int mhk__file_tensor_ok(mhk_context *ctx, const mhk_stored *x, const void *out) {
  if (mhk_failed(ctx)) return 0;
  if (!x || !x->data || (!out && x->count))
    return mhk__no(ctx, MHK_ERROR_ARGUMENT, "cannot read a tensor: %s is NULL",
                   x && x->data ? "the room" : "the tensor");
  if (!x->dtype)
    return mhk__no(ctx, MHK_ERROR_UNSUPPORTED,
                   "tensor %.200s has an unsupported type: use F64, F32, F16, BF16, BOOL or integers of 8 to 64 bits",
                   x->name ? x->name : "?");
  if (mhk_dtype_bytes(x->dtype) == 0 || x->count < 0 || x->bytes / mhk_dtype_bytes(x->dtype) != (size_t)x->count)
    return mhk__no(ctx, MHK_ERROR_ARGUMENT, "tensor %.200s: %lld elements of type %d are not %lld bytes",
                   x->name ? x->name : "?", (long long)x->count, (int)x->dtype, (long long)x->bytes);
  return 1;
}

MHKDEF mhk_result mhk_file_read(mhk_context *ctx, const mhk_stored *x, mhk_real *out) {
  if (!mhk__file_tensor_ok(ctx, x, out)) return mhk_error(ctx);
  mhk__from_little(x->dtype, x->data, x->count, out);
  return MHK_OK;
}

MHKDEF mhk_result mhk_file_read_i32(mhk_context *ctx, const mhk_stored *x, int32_t *out) {
  if (!mhk__file_tensor_ok(ctx, x, out)) return mhk_error(ctx);
  if (x->dtype == MHK_F32 || x->dtype == MHK_F64 || x->dtype == MHK_F16 || x->dtype == MHK_BF16)
    return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "tensor %.200s has type %s; it must have an integer type",
                    x->name ? x->name : "?", mhk_dtype_name(x->dtype));
  const unsigned char *p = (const unsigned char *)x->data;
  const size_t size = mhk_dtype_bytes(x->dtype);
  const int is_signed = x->dtype == MHK_I8 || x->dtype == MHK_I16 || x->dtype == MHK_I32 || x->dtype == MHK_I64;
  for (mhk_index i = 0; i < x->count; i++, p += size) {
    uint64_t bits = mhk__get_bytes(p, (int)size), magnitude;
    const int negative = is_signed && (p[size - 1] & 0x80);
    if (negative && size < 8) bits |= ~(uint64_t)0 << (8 * size);
    magnitude = negative ? ~bits + 1 : bits;
    if (magnitude > (negative ? (uint64_t)2147483648u : (uint64_t)2147483647u))
      return mhk_fail(ctx, MHK_ERROR_FORMAT, "element %lld of tensor %.200s is %s%llu, which does not fit in 32 bits",
                      (long long)i, x->name ? x->name : "?", negative ? "-" : "", (unsigned long long)magnitude);
    out[i] = negative ? (int32_t)(-(int64_t)magnitude) : (int32_t)magnitude;
  }
  return MHK_OK;
}

#ifndef MOHAWK_NO_STDIO
/* ---- safetensors out */

/* A tensor to write as type dtype from host memory of type from. If data is NULL, it is eight bytes
   of type U8 with the checksum (XXH64, little-endian) of all data before them; the order puts them
   last if no other tensor has one-byte elements. The types may differ if from is MHK_REAL, a float
   type or a quantized one (data is then the mhk_tensor) and dtype is F32, F16 or BF16. */
typedef struct mhk__outgoing {
  const char *name;
  mhk_dtype dtype, from;
  int rank;
  const mhk_index *shape;
  mhk_index count;
  const void *data;
} mhk__outgoing;

static void mhk__outgoing_set(mhk__outgoing *o, const char *name, mhk_dtype dtype, mhk_dtype from, int rank,
                              const mhk_index *shape, const void *data) {
  o->name = name;
  o->dtype = dtype;
  o->from = from;
  o->rank = rank;
  o->shape = shape;
  o->count = 1;
  for (int i = 0; i < rank; i++) o->count *= shape[i];
  o->data = data;
}

/* Tensors that fill whole cache lines come first, so they all start at one. Then large elements
   come before small ones, so each tensor is aligned to its elements. Then the order is by name. */
static int mhk__outgoing_order(const void *a, const void *b) {
  const mhk__outgoing *x = (const mhk__outgoing *)a, *y = (const mhk__outgoing *)b;
  const size_t p = mhk_dtype_bytes(x->dtype), q = mhk_dtype_bytes(y->dtype);
  const int odd = (size_t)x->count * p % MHK__ALIGN != 0, odd_y = (size_t)y->count * q % MHK__ALIGN != 0;
  return odd != odd_y ? odd - odd_y : p != q ? (p > q ? -1 : 1) : strcmp(x->name, y->name);
}

static int mhk__outgoing_name_order(const void *a, const void *b) {
  return strcmp(((const mhk__outgoing *)a)->name, ((const mhk__outgoing *)b)->name);
}

#define MHK__OUT_BLOCK 4096 /* elements per conversion */

/* writes one tensor: as it is if its type matches and the host is little-endian, otherwise
   converted block by block */
static mhk_result mhk__write_outgoing(mhk_context *ctx, mhk__output *out, const mhk__outgoing *x) {
  const size_t from = mhk_dtype_bytes(x->from), to = mhk_dtype_bytes(x->dtype);
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
      if (mhk__is_quantized(x->from))
        mhk_tensor_read((const mhk_tensor *)x->data, at, n, values);
      else
        mhk__from_host(x->from, data, n, values);
      for (mhk_index i = 0; i < n; i++) {
        const float v = (float)values[i];
        const uint32_t wide = mhk__float_bits(v);
        const uint16_t narrow = x->dtype == MHK_F16 ? mhk__half_f16(v) : mhk__half_bf16(v);
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
          return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "element %lld of %.200s is %s: too large for %s; write F32",
                          (long long)(at + i), x->name, number, mhk_dtype_name(x->dtype));
        }
      }
    }
    mhk__byte_swap(bytes, n, to, bytes);
    mhk__output_write(out, bytes, (size_t)n * to);
  }
  mhk__scratch_rewind(ctx, mark);
  return mhk_error(ctx);
}

/* Writes everything into out, which the caller closes in any case. metadata: n_metadata pairs of
   key and value; lengths: of the values, or NULL if they are 0-terminated */
static mhk_result mhk__file_put(mhk_context *ctx, mhk__output *out, const char *path, int n,
                                const mhk__outgoing *tensors, int n_metadata, const char *const *metadata,
                                const size_t *lengths) {
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
    if (!tensors[i].name[0] || strcmp(tensors[i].name, "__metadata__") == 0 ||
        !mhk__utf8_valid(tensors[i].name, strlen(tensors[i].name)))
      mhk_fail(ctx, MHK_ERROR_ARGUMENT,
               "cannot write tensor %d: its name must be valid UTF-8, not empty and not __metadata__", i);
  }
  mhk__sort(order, order + n, n, mhk__outgoing_name_order);
  for (int i = 1; i < n; i++)
    if (mhk__outgoing_name_order(order[i - 1], order[i]) == 0)
      mhk_fail(ctx, MHK_ERROR_ARGUMENT, "cannot write two tensors named %.200s",
               ((const mhk__outgoing *)order[i])->name);
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
        mhk_fail(ctx, MHK_ERROR_ARGUMENT, "the metadata \"%.100s\" is not valid UTF-8", metadata[2 * i]);
      mhk__write_key(&w, metadata[2 * i]);
      mhk__write_string(&w, metadata[2 * i + 1], length);
    }
    mhk__write_close(&w, '}');
  }
  for (int i = 0; i < n; i++) {
    const mhk__outgoing *x = (const mhk__outgoing *)order[i];
    const size_t bytes = mhk__size3(ctx, x->count, 1, mhk_dtype_bytes(x->dtype));
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
    mhk_fail(ctx, MHK_ERROR_ARGUMENT, "%s would need a header of %lld bytes; safetensors allows %d", path,
             (long long)w.length, MHK__HEADER_MOST);
  if (!mhk_failed(ctx)) {
    for (int i = 0; i < 8; i++) size[i] = (unsigned char)(((uint64_t)w.length >> (8 * i)) & 255u);
    mhk__output_open(out, path);
#ifndef MOHAWK_NO_TRAINING
    for (int i = 0; i < n; i++) out->summing |= !tensors[i].data && tensors[i].count;
    mhk__xxh64_start(&out->sum);
#endif
    mhk__output_write(out, size, 8);
    mhk__output_write(out, w.data, w.length);
    for (int i = 0; i < n && !out->error && !mhk_failed(ctx); i++)
      mhk__write_outgoing(ctx, out, (const mhk__outgoing *)order[i]);
  }
  mhk__scratch_rewind(ctx, mark);
  return mhk_error(ctx);
}

static mhk_result mhk__file_write(mhk_context *ctx, const char *path, int n, const mhk__outgoing *tensors,
                                  int n_metadata, const char *const *metadata, const size_t *lengths) {
  mhk__output out;
  mhk__file_put(ctx, &out, path, n, tensors, n_metadata, metadata, lengths);
  return mhk__output_close_or_fail(ctx, &out);
}

MHKDEF mhk_result mhk_file_write_bytes(mhk_context *ctx, const char *path, const void *data, size_t bytes) {
  mhk__output out;
  if (!mhk__path_fits(ctx, path)) return mhk_error(ctx);
  if (!data && bytes)
    return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "cannot write %s: its %.0f bytes are at NULL", path, (double)bytes);
  mhk__output_open(&out, path);
  mhk__output_write(&out, data, bytes);
  return mhk__output_close_or_fail(ctx, &out);
}

MHKDEF mhk_result mhk_file_write(mhk_context *ctx, const char *path, int n, const mhk_stored *tensors,
                                 int n_metadata, const char *const *metadata) {
  mhk__outgoing *list;
  if (mhk_failed(ctx)) return mhk_error(ctx);
  if (n < 0 || n_metadata < 0 || (n && !tensors) || (n_metadata && !metadata))
    return mhk_fail(ctx, MHK_ERROR_ARGUMENT,
                    "mhk_file_write: the array of %d tensors or of %d metadata pairs is missing (NULL)", n,
                    n_metadata);
  for (int i = 0; i < 2 * n_metadata; i++)
    if (!metadata[i]) return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "metadata text %d is NULL", i);
  mhk__mark mark = mhk__scratch_mark(ctx);
  list = (mhk__outgoing *)mhk__scratch(ctx, n, sizeof *list);
  for (int i = 0; i < n && list && mhk__stored_check(ctx, &tensors[i], i); i++) {
    const mhk_stored *x = &tensors[i];
    mhk__outgoing_set(list + i, x->name, x->dtype, x->dtype, x->rank, x->shape, x->data);
  }
  if (!mhk_failed(ctx)) mhk__file_write(ctx, path, n, list, n_metadata, metadata, NULL);
  mhk__scratch_rewind(ctx, mark);
  return mhk_error(ctx);
}
#endif
#endif /* MOHAWK_IMPLEMENTATION */
#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
/* =================================================================================================
   TOKENIZER: byte-level BPE, Unicode classes, streaming decode                          >>tokenizer
   =================================================================================================
   Byte-level BPE (Radford et al. 2019; merges: Sennrich et al. 2016). Text is cut at added tokens,
   the rest into words by the pattern
     's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
   and inside a word the pair of neighbors with the lowest rank is merged until none has a rank.
   Between the added tokens that are looked for in raw text and those that are looked for in
   normalized text, it may be normalized (NFC). Vocabulary files write bytes as characters:
   printable Latin-1 as itself, the other 68 bytes as U+0100..U+0143 in order. */

#define MHK__END_TEXT "<|endoftext|>" /* the token between documents */

#define MHK__OTHER 0u
#define MHK__LETTER 1u
#define MHK__NUMBER 2u
#define MHK__SPACE 3u

/* Unicode 16.0: general categories L* and N*, and White_Space, as runs of code points from U+0000,
   each 4 * length + class. Everything after the last run is MHK__OTHER. */
static const uint16_t mhk__class_runs[] = {
    36,   23,    72,   7,     60,    42,    28,    105,  24,   105,   40,   7,     104,   7,     36,    5,     28,
    10,   4,     5,    12,    6,     5,     4,     14,   4,    93,    4,    125,   4,     1833,  16,    49,    56,
    21,   28,    5,    4,     5,     516,   21,    4,    9,    8,     17,   4,     5,     24,    5,     4,     13,
    4,    5,     4,    81,    4,     333,   4,     557,  32,   665,   4,    153,   8,     5,     24,    165,   284,
    109,  16,    17,   180,   173,   84,    42,    16,   9,    4,     397,  4,     5,     60,    9,     28,    9,
    42,   13,    8,    5,     64,    5,     4,     121,  116,  357,   44,   5,     56,    42,    133,   36,    9,
    16,   5,     20,   89,    16,    5,     36,    5,    12,   5,     92,   101,   28,    45,    20,    97,    4,
    25,   68,    169,  232,   217,   12,    5,     72,   5,    28,    41,   16,    42,    4,     65,    16,    33,
    8,    9,     8,    89,    4,     29,    4,     5,    12,   17,    12,   5,     64,    5,     52,    9,     4,
    13,   16,    42,   9,     8,     26,    8,     5,    32,   25,    16,   9,     8,     89,    4,     29,    4,
    9,    4,     9,    4,     9,     124,   17,    4,    5,    28,    42,   8,     13,    64,    37,    4,     13,
    4,    89,    4,    29,    4,     9,     4,     21,   12,   5,     72,   5,     60,    9,     16,    42,    36,
    5,    44,    33,   8,     9,     8,     89,    4,    29,   4,     9,    4,     21,    12,    5,     120,   9,
    4,    13,    16,   42,    4,     5,     26,    44,   5,    4,     25,   12,    13,    4,     17,    12,    9,
    4,    5,     4,    9,     12,    9,     12,    13,   12,   49,    88,   5,     84,    54,    72,    33,    4,
    13,   4,     93,   4,     65,    12,    5,     104,  13,   8,     5,    8,     9,     16,    42,    32,    30,
    4,    5,     16,   33,    4,     13,    4,     93,   4,    41,    4,    21,    12,    5,     124,   9,     4,
    9,    16,    42,   4,     9,     68,    37,    4,    13,   4,     165,  8,     5,     64,    5,     20,    13,
    4,    30,    13,   16,    78,    4,     25,    20,   73,   12,    97,   4,     37,    4,     5,     8,     29,
    124,  42,    68,   193,   4,     9,     48,    29,   36,   42,    156,  9,     4,     5,     4,     21,    4,
    97,   4,     5,    4,     41,    4,     9,     36,   5,    8,     21,   4,     5,     36,    42,    8,     17,
    128,  5,     124,  82,    48,    33,    4,     145,  108,  21,    460,  173,   80,    5,     42,    24,    25,
    16,   17,    12,   5,     12,    9,     28,    13,   16,   53,    48,   5,     4,     42,    24,    153,   4,
    5,    20,    5,    8,     173,   4,     1333,  4,    17,   8,     29,   4,     5,     4,     17,    8,     165,
    4,    17,    8,    133,   4,     17,    8,     29,   4,    5,     4,    17,    8,     61,    4,     229,   4,
    17,   8,     269,  56,    82,    12,    65,    64,   345,  8,     25,   12,    2481,  8,     69,    7,     105,
    20,   301,   12,   14,    33,    28,    73,    52,   77,   56,    73,   56,    53,    4,     13,    60,    209,
    140,  5,     16,   5,     12,    42,    24,    42,   88,   42,    24,   357,   28,    21,    8,     137,   4,
    5,    20,    281,  40,    125,   156,   42,    121,  8,    21,    44,   177,   16,    105,   24,    46,    148,
    93,   36,    213,  172,   42,    24,    42,    52,   5,    372,   189,  68,    33,    12,    42,    164,   121,
    52,   9,     42,   177,   104,   145,   112,   42,   12,   13,    42,   145,   8,     45,    20,    173,   8,
    13,   164,   17,   4,     25,    4,     9,     12,   5,    20,    769,  256,   1113,  8,     25,    8,     153,
    8,    25,    8,    33,    4,     5,     4,     5,    4,    5,     4,    125,   8,     213,   4,     29,    4,
    5,    12,    13,   4,     29,    12,    17,    8,    25,   16,    53,   20,    13,    4,     29,    12,    47,
    116,  11,    20,   7,     188,   7,     64,    6,    5,    8,     26,   20,    5,     42,    24,    53,    404,
    5,    16,    5,    8,     41,    4,     5,     12,   21,   24,    5,    4,     5,     4,     5,     4,     17,
    4,    45,    8,    17,    20,    21,    16,    5,    4,    206,   9,    22,    2904,  242,   312,   90,    2520,
    122,  4528,  917,  24,    17,    12,    9,     36,   6,    8,     153,  4,     5,     20,    5,     8,     225,
    28,   5,     64,   93,    36,    29,    4,     29,   4,    29,    4,    29,    4,     29,    4,     29,    4,
    29,   4,     29,   320,   5,     1856,  7,     16,   9,    6,     100,  38,    28,    21,    8,     14,    9,
    16,   345,   24,   13,    4,     361,   4,     17,   20,   173,   4,    377,   12,    18,    40,    129,   192,
    65,   128,   42,   120,   34,    4,     62,    128,  42,   156,   62,   1280,  26369, 256,   65533, 23097, 268,
    185,  8,     1077, 12,    65,    42,    9,     80,   189,  64,    125,  8,     281,   42,    156,   37,    8,
    413,  8,     269,  8,     9,     4,     5,     4,    33,   84,    65,   4,     13,    4,     17,    4,     93,
    52,   26,    40,   209,   56,    201,   112,   42,   96,   25,    12,   5,     4,     9,     4,     42,    113,
    40,   93,    100,  117,   28,    189,   112,   5,    42,   24,    21,   4,     41,    42,    21,    4,     165,
    92,   13,    4,    33,    16,    42,    24,    93,   12,   5,     12,   201,   4,     5,     12,    9,     8,
    21,   8,     5,    4,     5,     96,    13,    8,    45,   28,    13,   48,    25,    8,     25,    8,     25,
    36,   29,    4,    29,    4,     173,   4,     57,   24,   461,   52,   42,    24,    44689, 48,    93,    16,
    197,  33808, 1465, 8,     425,   152,   29,    48,   21,   20,    5,    4,     41,    4,     53,    4,     21,
    4,    5,     4,    9,     4,     9,     4,     433,  132,  1453,  72,   257,   8,     217,   160,   49,    464,
    21,   4,     541,  76,    42,    28,    105,   24,   105,  44,    357,  12,    25,    8,     25,    8,     25,
    8,    13,    140,  49,    4,     105,   4,     77,   4,    9,     4,    61,    8,     57,    136,   493,   48,
    182,  48,    230,  68,    10,    976,   117,   12,   197,  64,    110,  16,    129,   18,    36,    81,    6,
    33,   6,     20,   153,   40,    121,   8,     145,  16,   33,    4,    22,    168,   633,   8,     42,    24,
    145,  16,    145,  16,    161,   32,    209,   48,   45,   4,     61,   4,     29,    4,     9,     4,     45,
    4,    61,    4,    29,    4,     9,     12,    209,  48,   1245,  36,   89,    40,    33,    96,    25,    4,
    169,  4,     37,   276,   25,    8,     5,     4,    177,  4,     9,    12,    5,     8,     93,    8,     34,
    93,   8,     30,   125,   32,    38,    192,   77,   4,    9,     20,   22,    89,    26,    16,    105,   280,
    225,  16,    10,   9,     66,    8,     186,   5,    60,   17,    4,    13,    4,     117,   40,    38,    92,
    117,  10,    4,    117,   14,    128,   33,    4,    113,  24,    22,   64,    217,   40,    89,    8,     34,
    77,   20,    34,   73,    92,    30,    320,   293,  220,  205,   52,   205,   28,    26,    145,   48,    42,
    24,   42,    113,  36,    93,    872,   126,   4,    169,  24,    9,    64,    13,    236,   117,   42,    5,
    32,   89,    44,   18,    108,   73,    184,   85,   30,   80,    93,   48,    213,   104,   122,   4,     9,
    8,    5,     52,   181,   128,   101,   28,    42,   36,   145,   60,   42,    16,    5,     8,     5,     32,
    141,  12,    5,    48,    193,   56,    17,    44,   42,   5,     4,    5,     16,    82,    44,    73,    4,
    101,  76,    9,    252,   29,    4,     5,     4,    17,   4,     61,   4,     41,    28,    189,   68,    42,
    44,   33,    8,    9,     8,     89,    4,     29,   4,    9,     4,    21,    12,    5,     72,    5,     48,
    21,   120,   41,   4,     5,     8,     5,     4,    153,  4,     5,    100,   5,     4,     5,     176,   213,
    72,   17,    20,   42,    20,    13,    120,   193,  80,   9,     4,    5,     32,    42,    664,   189,   164,
    17,   144,   193,  80,    5,     44,    42,    152,  173,  52,    5,    28,    42,    24,    82,    112,   109,
    84,   50,    16,   29,    740,   177,   464,   257,  78,   48,    33,   8,     5,     8,     33,    4,     9,
    4,    97,    60,   5,     4,     5,     56,    42,   280,  33,    8,    157,   64,    5,     4,     5,     112,
    5,    40,    161,  28,    5,     84,    5,     44,   185,  76,    5,    72,    293,   796,   133,   60,    42,
    24,   37,    4,    149,   68,    5,     60,    118,  20,   121,   448,  29,    4,     9,     4,     153,   84,
    5,    36,    42,   24,    25,    4,     9,     4,    129,  56,    5,    28,    42,    1240,  77,    60,    5,
    4,    53,    4,    137,   112,   42,    344,   5,    60,   86,    172,  3689,  408,   446,   68,    785,   10544,
    389,  60,    4289, 68,    25,    100,   15981, 20,   2333, 27364, 121,  72,    42,    6936,  2277,  28,    125,
    4,    42,    24,   317,   4,     42,    24,    121,  72,   193,   64,   17,    48,    42,    4,     30,    4,
    85,   20,    77,   1728,  181,   12,    42,    792,  257,  94,    420,  301,   20,    5,     264,   53,    256,
    9,    4,     5,    112,   24545, 32,    4953,  164,  41,   35740, 17,   4,     29,    4,     9,     4,     1165,
    60,   5,     116,  13,    8,     5,     56,    17,   32,   1585,  9232, 429,   20,    53,    12,    37,    28,
    41,   16728, 42,   5912,  82,    48,    82,    432,  102,  540,   341,  4,     285,   4,     9,     8,     5,
    8,    9,     8,    17,    4,     49,    4,     5,    4,    29,    4,    261,   4,     17,    8,     33,    4,
    29,   4,     113,  4,     17,    4,     21,    4,    5,    12,    29,   4,     1361,  8,     101,   4,     101,
    4,    125,   4,    101,   4,     125,   4,     101,  4,    125,   4,    101,   4,     125,   4,     101,   4,
    33,   8,     202,  7168,  125,   24,    25,    1044, 249,  584,   181,  40,    29,    8,     42,    16,    5,
    1284, 121,   72,   177,   16,    42,    1880,  113,  16,   42,    856,  121,   8,     5,     42,    1940,  29,
    4,    17,    4,    9,     4,     61,    4,     789,  8,    38,    192,  273,   28,    5,     16,    42,    3164,
    238,  4,     14,   4,     18,    304,   182,   4,    62,   776,   17,   4,     109,   4,     9,     4,     5,
    8,    5,     4,    41,    4,     17,    4,     5,    4,    5,     24,   5,     16,    5,     4,     5,     4,
    5,    4,     13,   4,     9,     4,     5,     8,    5,    4,     5,    4,     5,     4,     5,     4,     5,
    4,    9,     4,    5,     8,     17,    4,     29,   4,    17,    4,    17,    4,     5,     4,     41,    4,
    69,   20,    13,   4,     21,    4,     69,    2320, 54,   11148, 42,   4120,  65533, 65533, 39817, 128,   16617,
    24,   889,   8,    23049, 56,    29893, 60,    2489, 9864, 2169,  6024, 19757, 20,    16769};

/* Unicode 9.0, the version that Hugging Face's tokenizers follow; later characters stay unchanged.
   Numbers are below 2^21 and start with the low digit: digits 45 to 89 mean 0 to 44 with more to
   follow. 0 is '#'; '?' and '\\' are not used. pairs: the number of second parts of decompositions,
   then each as a difference from the one before. Then twice (pairs that compose again, others):
   their number; for each, 2 * index of the second part + (code points are skipped), how many if so,
   and the first part as a difference from that of the pair before. rest: the number of characters
   that stand for one other; for each, 2 * that one as a difference + (code points are skipped), and
   how many if so. Then the number of runs of one combining class; for each, the code points skipped
   before it, its length - 1, and its class as a difference. A difference x is 2 x, or -2 x - 1
   below 0. */
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

/* the character at the start of n bytes and its length; 0 if it is not well-formed */
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

/* the inverse, as UTF-8: one or two bytes */
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

/* ----------------------------------------------------------------------------------- structures */

/* flags of an id; 0: the id does not exist */
#define MHK__TOKEN_VOCABULARY 1
/* its text in the vocabulary stands for bytes; otherwise the text is literal and no merge makes
   it */
#define MHK__TOKEN_MAPPED 2
#define MHK__TOKEN_ADDED 4

typedef struct mhk__merge { uint32_t left, right, rank; } mhk__merge; /* a slot of the table; rank UINT32_MAX: empty */

typedef struct mhk__added {
  const char *text; /* the text to search for; normalized if it is matched in normalized text */
  const char *content;
  size_t length, content_length;
  int32_t id; /* -1: another token with this text takes precedence */
  unsigned char lstrip, rstrip, special, normalized;
} mhk__added;

/* Sorted by text; tokens that start with byte b are first[b] up to first[b + 1]. */
typedef struct mhk__added_set {
  const mhk__added **tokens;
  mhk_index n;
  mhk_index first[257];
} mhk__added_set;

/* cache of words and their ids: most text consists of few words */
#ifdef MOHAWK_NO_TRAINING
#define MHK__WORD_BITS 6 /* prompts are short: 4 KB instead of 256 */
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

/* Normalization to NFC. The entry of a character: combining class; MHK__NFC_PART times 1 + the
   index of its decomposition; whether it can compose with a character before it; whether NFC always
   replaces it. */
#define MHK__NFC_CLASS 0xFFu
#define MHK__NFC_PART 0x100u
#define MHK__NFC_JOINS 0x100000u
#define MHK__NFC_GOES 0x200000u
#define MHK__NFC_END 0x30000u /* no entries from here */
#define MHK__NFC_HASH 2048u
typedef struct mhk__nfc {
  unsigned char page[MHK__NFC_END / 64];
  uint32_t (*entries)[64];    /* page 0 is empty */
  uint32_t (*parts)[3];       /* a character and its decomposition; [2] is 0 if that is one character */
  uint16_t *pairs;            /* indices + 1 of the pairs that compose, hashed by both parts; 0: empty */
} mhk__nfc;

struct mhk_tokenizer {
  mhk__object object;
  uint32_t *classes; /* starts of the runs of mhk__class_runs, each 4 * first code point + class */
  mhk_index n_classes;
  unsigned char ascii[128];
  int size;             /* the largest id + 1 */
  char *bytes;          /* the bytes of all tokens, each followed by a 0 */
  uint32_t *at, *length; /* by id */
  unsigned char *kind;
  int32_t *slot_ids; /* the vocabulary hashed by bytes; -1: empty */
  uint32_t slot_mask;
  mhk__merge *merges;
  uint32_t merge_mask, n_merges;
  int32_t *merged; /* by rank */
  uint32_t byte_ids[256];
  mhk__added_set added[2]; /* tokens to find first (not normalized), and tokens to find in the rest */
  mhk__word *words;
  mhk__nfc *nfc; /* NULL: text is not normalized */
  int prefix_space, use_regex, ignore_merges;
  int cuts; /* text may be split before any space that follows another character */
  int32_t end, start;
  int puts_start; /* start goes before prompts */
  const char *json, *config; /* tokenizer.json; tokenizer_config.json or NULL */
  size_t json_length, config_length;
};

/* ---------------------------------------------------------------------------- character classes */

/* unpacks the runs of character classes, and a direct table for ASCII */
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

/* The class of the character at the start of n > 0 bytes, and its length. An invalid byte counts as
   one character. */
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
  while (high - low > 1) { /* the last run that starts at or before c */
    const mhk_index middle = low + (high - low) / 2;
    if (k->classes[middle] >> 2 <= c)
      low = middle;
    else
      high = middle;
  }
  return k->classes[low] & 3u;
}

/* --------------------------------------------------------------------------------------- tables */

static uint32_t mhk__hash_bytes(const char *p, size_t n) { /* 64 bits folded */
  const uint64_t h = mhk__hash(MHK__HASH_START, p, n);
  return (uint32_t)(h ^ h >> 32);
}

static uint32_t mhk__hash_pair(uint32_t left, uint32_t right) {
  return (uint32_t)(((uint64_t)left << 32 | right) * 0x9E3779B97F4A7C15u >> 32);
}

/* a power of two that leaves at least half of the slots empty; 0 with an error if there are too
   many */
static uint32_t mhk__table_size(mhk_context *ctx, mhk_index n, const char *where) {
  uint32_t size = 16;
  if (n > ((mhk_index)1 << 28)) {
    mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "%s has %lld entries, more than this version supports", where, (long long)n);
    return 0;
  }
  while (size < 2 * (uint32_t)n) size *= 2;
  return size;
}

/* the id of a token of the vocabulary, or -1; *slot is its slot, or the slot for it */
static int32_t mhk__vocabulary_find(const mhk_tokenizer *k, const char *bytes, size_t n, int mapped, uint32_t *slot) {
  uint32_t s = mhk__hash_bytes(bytes, n) & k->slot_mask;
  for (;; s = (s + 1) & k->slot_mask) {
    const int32_t id = k->slot_ids[s];
    if (slot) *slot = s;
    if (id < 0) return id;
    if (k->length[id] == n && ((k->kind[id] & MHK__TOKEN_MAPPED) != 0) == mapped &&
        memcmp(k->bytes + k->at[id], bytes, n) == 0)
      return id;
  }
}

/* the rank of a pair, UINT32_MAX if it does not merge */
static uint32_t mhk__merge_rank(const mhk_tokenizer *k, uint32_t left, uint32_t right) {
  uint32_t s = mhk__hash_pair(left, right) & k->merge_mask;
  for (;; s = (s + 1) & k->merge_mask) {
    const mhk__merge *m = &k->merges[s];
    if ((m->left == left && m->right == right) || m->rank == UINT32_MAX) return m->rank;
  }
}

/* -------------------------------------------------------------------------------- normalization */

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

/* the writable entry of a character */
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
  for (i = 0; i < number; i++) /* some decompose into marks only, which are reordered */
    if (mhk__nfc_at(k->nfc, k->nfc->parts[i][1]) & MHK__NFC_CLASS)
      *mhk__nfc_entry(k, k->nfc->parts[i][0], &pages) |= MHK__NFC_JOINS;
  return 1;
}

/* Returns whether the text is certainly NFC: the quick check of Unicode's annex 15, where "maybe"
   counts as no. */
static int mhk__nfc_fine(const mhk__nfc *f, const unsigned char *text, size_t n) {
  size_t at = 0, step;
  uint32_t last = 0, c = 0, e;
  for (; at < n; at += step) {
    step = 1;
    e = 0;
    if (text[at] >= 0xCC) { /* characters below U+0300 do not change */
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
  while ((e = mhk__nfc_at(f, c) / MHK__NFC_PART & 0xFFF) != 0) { /* second parts never decompose */
    c = f->parts[e - 1][1];
    if (f->parts[e - 1][2]) second[n++] = f->parts[e - 1][2];
  }
  out[0] = c;
  for (i = 0; i < n; i++) out[1 + i] = second[n - 1 - i];
  return n + 1;
}

/* the composition of two characters, or 0 */
static uint32_t mhk__nfc_join(const mhk__nfc *f, uint32_t a, uint32_t b) {
  uint32_t slot = mhk__hash_pair(a, b) % MHK__NFC_HASH, number;
  if (a >= 0x1100 && a < 0x1113 && b >= 0x1161 && b < 0x1176) return 0xAC00 + ((a - 0x1100) * 21 + b - 0x1161) * 28;
  if (a >= 0xAC00 && a < 0xD7A4 && (a - 0xAC00) % 28 == 0 && b > 0x11A7 && b < 0x11C3) return a + b - 0x11A7;
  for (; (number = f->pairs[slot]) != 0; slot = (slot + 1) % MHK__NFC_HASH)
    if (f->parts[number - 1][1] == a && f->parts[number - 1][2] == b) return f->parts[number - 1][0];
  return 0;
}

/* Sorts marks by class and keeps the order within a class: one pass per class. */
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

/* Normalizes a character and the marks after it: n bytes of well-formed text. Returns the bytes
   written. */
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
    for (i = 0; i < used; i++) { /* the remaining marks go back into a */
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

/* The NFC of n bytes, at most 3 n. Invalid bytes stay, and nothing composes with them. */
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

/* -------------------------------------------------------------------------------------- reading */

/* The sources of a tokenizer; names are for messages. */
typedef struct mhk__token_source {
  const char *where, *config_where;
  const mhk__json *vocabulary, *added, *merges, *post_processor, *config, *decoder;
  const char *config_text;
  size_t config_length;
} mhk__token_source;

/* how many of n bytes to show in a message with "%.*s": few, and whole characters */
static int mhk__shown(const char *text, size_t n) {
  size_t most = n < 60 ? n : 60;
  if (most < n)
    while (most > 0 && ((unsigned char)text[most] & 0xC0u) == 0x80) most--;
  return (int)most;
}

/* Maps the text of a token to bytes and returns 1 if every character stands for a byte; otherwise
   copies the text and returns 0. The result is never longer than the text. */
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

/* Reads text and id of an entry of the vocabulary (text: id) or of the added tokens (objects);
   returns 0 after an error. */
static int mhk__token_entry(mhk_context *ctx, const mhk__json *x, const char *where, const char **text, size_t *length,
                            int32_t *id) {
  const mhk__json *content = x->key ? x : mhk__json_get(x, "content");
  int64_t number = -1;
  if (!x->key && !mhk__json_is(content, MHK__JSON_STRING))
    return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: the added token at byte %lld has no \"content\" string", where,
                    (long long)x->at),
           0;
  *text = x->key ? x->key : content->text;
  *length = x->key ? x->key_length : content->length;
  if (x->key && (*length == 0 || memchr(*text, 0, *length)))
    return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: the token at byte %lld %s", where, (long long)x->at,
                    *length ? "contains a zero character" : "is empty"),
           0;
  if (!mhk__json_integer(x->key ? x : mhk__json_get(x, "id"), &number) || number < 0 || number >= INT32_MAX)
    return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: the id of token \"%.*s\" must be a whole number from 0 to %ld", where,
                    mhk__shown(*text, *length), *text, (long)INT32_MAX - 1),
           0;
  *id = (int32_t)number;
  return 1;
}

/* object[key] as 0 or 1; fallback if it is absent */
static int mhk__token_flag(mhk_context *ctx, const mhk__json *object, const char *key, int fallback,
                           const char *where) {
  const mhk__json *x = mhk__json_get(object, key);
  if (!x) return fallback;
  if (!mhk__json_is(x, MHK__JSON_TRUE) && !mhk__json_is(x, MHK__JSON_FALSE))
    mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: \"%s\" at byte %lld must be true or false", where, key, (long long)x->at);
  return mhk__json_is(x, MHK__JSON_TRUE);
}

static int mhk__added_compare(const void *a, const void *b) {
  const mhk__added *x = (const mhk__added *)a, *y = (const mhk__added *)b;
  return mhk__text_order(x->text, x->length, y->text, y->length);
}

/* Returns whether an id is plausible for one of count tokens; there may be gaps. */
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
      if (!mhk__token_entry(ctx, x, source->where, &text, &length, &id)) return 0;
      if (!mhk__id_plausible(id, count)) {
        mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: id %ld of token \"%.*s\" is far above the number of tokens, %lld",
                 source->where, (long)id, mhk__shown(text, length), text,
                 (long long)count);
        return 0;
      }
      if (id > top) top = id;
      if (pass == 0 && length > *longest) *longest = length;
      total += length + 1; /* cannot overflow: the text was in memory before */
    }
  }
  if (total >= UINT32_MAX)
    return mhk__no(ctx, MHK_ERROR_UNSUPPORTED, "%s has %.0f MB of tokens, more than this version supports",
                   source->where, (double)total * 1e-6);
  n_slots = mhk__table_size(ctx, source->vocabulary->count, source->where);
  if (!n_slots) return 0;
  k->slot_mask = n_slots - 1;
  /* added tokens whose id is in use get ids after all others */
  k->bytes = (char *)mhk__arena_zeros(ctx, arena, (mhk_index)total, 1);
  k->at = (uint32_t *)mhk__arena_zeros(ctx, arena, top + 1 + n_added, sizeof(uint32_t));
  k->length = (uint32_t *)mhk__arena_zeros(ctx, arena, top + 1 + n_added, sizeof(uint32_t));
  k->kind = (unsigned char *)mhk__arena_zeros(ctx, arena, top + 1 + n_added, 1);
  k->slot_ids = (int32_t *)mhk__arena_zeros(ctx, arena, (mhk_index)n_slots, sizeof(int32_t));
  if (!k->slot_ids) return 0;
  memset(k->slot_ids, 0xFF, n_slots * sizeof(int32_t));

  for (const mhk__json *x = source->vocabulary->first; x; x = x->next) {
    if (!mhk__token_entry(ctx, x, source->where, &text, &length, &id)) return 0;
    if (k->kind[id])
      return mhk__no(ctx, MHK_ERROR_FORMAT, "%s: id %ld of \"%.*s\" already belongs to another token", source->where,
                     (long)id, mhk__shown(text, length), text);
    const int mapped = mhk__token_map(text, length, k->bytes + *used, &length);
    if (mhk__vocabulary_find(k, k->bytes + *used, length, mapped, &slot) >= 0)
      return mhk__no(ctx, MHK_ERROR_FORMAT, "%s: token \"%.*s\" appears twice", source->where,
                     mhk__shown(text, x->key_length), text);
    k->slot_ids[slot] = id;
    k->at[id] = (uint32_t)*used;
    k->length[id] = (uint32_t)length;
    k->kind[id] = (unsigned char)(MHK__TOKEN_VOCABULARY | (mapped ? MHK__TOKEN_MAPPED : 0));
    *used += length + 1;
    if (id >= k->size) k->size = (int)id + 1;
  }
  return 1;
}

/* Sets the id of an added token and stores its bytes if it is new. A token of the vocabulary keeps
   that id, and a token whose id is in use gets the next free one, as in Hugging Face's tokenizers.
   Other programs may use the id in the file, so there is a warning. */
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
    const char *why = taken ? "which belongs to another token" : "but another one in the vocabulary";
    mhk__note(ctx, MHK_LOG_WARNING,
              "%s: added token \"%.*s\" has id %ld, %s: it becomes %ld, as in Hugging Face's tokenizers",
              source->where, mhk__shown(a->content, a->content_length), a->content, (long)named, why,
              (long)a->id);
  }
  if (there < 0) { /* its bytes are its literal text */
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

/* Builds one of the two sets to search for: sorted, without duplicate texts. There is the same
   amount of room after the pointers. */
static void mhk__added_sort(mhk__added_set *s, mhk_index room) {
  mhk_index i, n = 0;
  unsigned b = 0;
  mhk__sort((const void **)s->tokens, (const void **)(s->tokens + room), s->n, mhk__added_compare);
  for (i = 0; i < s->n; i++) {
    if (n > 0 && mhk__added_compare(s->tokens[n - 1], s->tokens[i]) == 0) continue; /* they are equal when normalized */
    while (b <= (unsigned char)s->tokens[i]->text[0]) s->first[b++] = n;
    s->tokens[n++] = s->tokens[i];
  }
  s->n = n;
  while (b <= 256) s->first[b++] = n;
}

/* Normalizes the tokens to find in normalized text, and checks whether they allow splits before
   spaces. */
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

/* Builds the sets of added tokens to find in text. */
static int mhk__added_read(mhk_tokenizer *k, const mhk__token_source *source, size_t used) {
  static const char end_text[] = MHK__END_TEXT;
  mhk_context *ctx = k->object.ctx;
  const mhk_index most = source->added ? source->added->count : 0;
  mhk__added *all = (mhk__added *)mhk__arena_zeros(ctx, &k->object.arena, most, sizeof(mhk__added));
  mhk__added *a = all, *kept = NULL;
  mhk_index n = 0;
  for (int set = 0; set < 2; set++) { /* twice the room, for sorting */
    k->added[set].tokens = (const mhk__added **)mhk__arena_zeros(ctx, &k->object.arena, most, 2 * sizeof(mhk__added *));
    if (!all || !k->added[set].tokens) return 0;
  }
  mhk__added **order = (mhk__added **)(void *)k->added[0].tokens;
  for (const mhk__json *x = source->added ? source->added->first : NULL; x; x = x->next) {
    if (!mhk__token_entry(ctx, x, source->where, &a->content, &a->content_length, &a->id)) return 0;
    if (a->content_length == 0) continue; /* as Hugging Face's tokenizers do */
    mhk__added_flags(ctx, x, source->where, a);
    a->content = mhk__arena_text(ctx, &k->object.arena, a->content, a->content_length);
    if (!a->content || mhk_failed(ctx)) return 0;
    a->text = a->content;
    a->length = a->content_length;
    order[n++] = a++;
  }
  mhk__sort((const void **)(void *)order, (const void **)(void *)(order + most), n, mhk__added_compare);
  for (mhk_index i = 0; i < n; i++)
    if (kept && mhk__added_compare(kept, order[i]) == 0) { /* a duplicate: the id of the first, the flags of the last */
      const int32_t id = kept->id;
      const char *text = kept->content;
      *kept = *order[i];
      kept->id = id;
      kept->text = kept->content = text;
      order[i]->id = -1;
    } else
      kept = order[i];
  k->end = mhk__vocabulary_find(k, end_text, sizeof end_text - 1, 1, NULL);
  for (mhk_index i = 0; i < n; i++) {
    a = all + i;
    if (a->id < 0) continue;
    mhk__added_place(k, source, a, &used);
    if (a->length == sizeof end_text - 1 && memcmp(a->text, end_text, a->length) == 0) k->end = a->id;
    if (mhk_failed(ctx) || (a->normalized && !mhk__added_normalize(k, a))) return 0;
  }
  for (mhk_index i = 0; i < n; i++)
    if (all[i].id >= 0) k->added[all[i].normalized].tokens[k->added[all[i].normalized].n++] = all + i;
  for (int set = 0; set < 2; set++) mhk__added_sort(&k->added[set], most);
  return !mhk_failed(ctx);
}

/* Adds one merge: both parts and the result must be in the vocabulary. room has space for two
   tokens of length longest. */
static int mhk__merge_add(mhk_tokenizer *k, const mhk__token_source *source, const char *left, size_t n_left,
                          const char *right, size_t n_right, char *room, size_t longest) {
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
      mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: merge %ld names \"%.*s\", which is not in the vocabulary",
               source->where, (long)k->n_merges + 1, mhk__shown(shown, length), shown);
    else
      mhk_fail(ctx, MHK_ERROR_FORMAT,
               "%s: merge %ld of \"%.*s\" and \"%.*s\" makes a token that is not in the vocabulary",
               source->where, (long)k->n_merges + 1, mhk__shown(left, n_left), left, mhk__shown(right, n_right),
               right);
    return 0;
  }
  k->merged[k->n_merges] = id[2];
  if (mapped[0] && mapped[1]) { /* other tokens do not stand for bytes and never merge */
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

/* splits "left right" into two parts; returns 0 if there are not two */
static int mhk__merge_split(const char *line, size_t n, size_t *n_left) {
  const char *space = (const char *)memchr(line, ' ', n);
  if (!space || space == line) return 0;
  *n_left = (size_t)(space - line);
  return *n_left + 1 < n && !memchr(space + 1, ' ', n - *n_left - 1);
}

/* room: as for mhk__merge_add */
static int mhk__merges_read(mhk_tokenizer *k, const mhk__token_source *source, char *room, size_t longest) {
  mhk_context *ctx = k->object.ctx;
  const mhk_index count = source->merges->count;
  const uint32_t n_slots = mhk__table_size(ctx, count, source->where);
  size_t n_left = 0;
  if (!n_slots) return 0;
  k->merge_mask = n_slots - 1;
  k->merges = (mhk__merge *)mhk__arena_zeros(ctx, &k->object.arena, (mhk_index)n_slots, sizeof(mhk__merge));
  k->merged = (int32_t *)mhk__arena_zeros(ctx, &k->object.arena, count, sizeof(int32_t));
  if (!k->merged || !k->merges) return 0;
  memset(k->merges, 0xFF, n_slots * sizeof(mhk__merge));
  for (const mhk__json *x = source->merges->first; x && !mhk_failed(ctx); x = x->next) {
    const mhk__json *a = x->first, *b = a ? a->next : NULL;
    if (mhk__json_is(x, MHK__JSON_STRING) && mhk__merge_split(x->text, x->length, &n_left))
      mhk__merge_add(k, source, x->text, n_left, x->text + n_left + 1, x->length - n_left - 1, room, longest);
    else if (mhk__json_is(x, MHK__JSON_ARRAY) && x->count == 2 && mhk__json_is(a, MHK__JSON_STRING) &&
             mhk__json_is(b, MHK__JSON_STRING))
      mhk__merge_add(k, source, a->text, a->length, b->text, b->length, room, longest);
    else
      mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: the merge at byte %lld must be \"left right\" or [\"left\",\"right\"]",
               source->where, (long long)x->at);
  }
  return !mhk_failed(ctx);
}

/* the id of a token that a configuration names by text or by an object with "content"; -1 if none
   is named or, with a warning, if it does not exist */
static int32_t mhk__named_token(mhk_tokenizer *k, const mhk__token_source *source, const char *key) {
  const mhk__json *x = mhk__json_get(source->config, key);
  char token[256], *room = token;
  size_t length = 0;
  int mapped;
  if (mhk__json_is(x, MHK__JSON_OBJECT)) x = mhk__json_get(x, "content");
  if (!x || mhk__json_is(x, MHK__JSON_NULL)) return -1;
  if (!mhk__json_is(x, MHK__JSON_STRING)) {
    mhk_fail(k->object.ctx, MHK_ERROR_FORMAT, "%s: \"%s\" must be the text of a token", source->config_where, key);
    return -1;
  }
  int32_t id = mhk_tokenizer_id(k, x->text);
  if (id < 0 && x->length < sizeof token) {
    mapped = mhk__token_map(x->text, x->length, room, &length);
    id = mhk__vocabulary_find(k, room, length, mapped, NULL);
  }
  if (id < 0)
    mhk__note(k->object.ctx, MHK_LOG_WARNING, "%s: %s \"%.*s\" is not in the vocabulary and is ignored",
              source->config_where, key,
              mhk__shown(x->text, x->length), x->text);
  return id;
}

/* The token that a post-processor adds before a text, or -1. *says: the post-processor decides
   this. Other tokens that it adds cause a warning. */
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
    mhk__note(ctx, MHK_LOG_WARNING,
              "%s: post_processor %.60s is not supported: the tokens that it adds to a text are left out",
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
              "%s: of the tokens that post_processor adds to a text, only the first before it is added: add the "
              "others to the ids", source->where);
  return id;
}

/* Warns about tokens that transformers adds from tokenizer_config.json but that tokenizer.json does
   not have. */
static void mhk__token_decoder_check(mhk_tokenizer *k, const mhk__token_source *source) {
  const mhk__json *x, *missing = NULL;
  int n = 0;
  for (x = source->decoder ? source->decoder->first : NULL; x; x = x->next) {
    const mhk__json *content = mhk__json_get(x, "content");
    if (!mhk__json_is(content, MHK__JSON_STRING) || content->length == 0) continue;
    if (mhk_tokenizer_id(k, content->text) >= 0) continue;
    if (n++ == 0) missing = content;
  }
  if (n > 0)
    mhk__note(k->object.ctx, MHK_LOG_WARNING,
              "%s: added_tokens_decoder has %d tokens that %s does not have, the first is \"%.*s\": they are read as "
              "plain text",
              source->config_where, n, source->where, mhk__shown(missing->text, missing->length), missing->text);
}

static void mhk__special_tokens_check(mhk_tokenizer *k, const mhk__token_source *source, const char *key) {
  const mhk__json *x = mhk__json_get(source->config, key);
  for (x = mhk__json_is(x, MHK__JSON_ARRAY) ? x->first : NULL; x; x = x->next) {
    const mhk__json *content = mhk__json_is(x, MHK__JSON_OBJECT) ? mhk__json_get(x, "content") : x;
    if (!mhk__json_is(content, MHK__JSON_STRING) || content->length == 0) continue;
    if (mhk_tokenizer_id(k, content->text) >= 0) continue;
    mhk__note(k->object.ctx, MHK_LOG_WARNING,
              "%s: \"%.*s\" of %s is not an added token of %s: it is read as plain text",
              source->config_where,
              mhk__shown(content->text, content->length), content->text, key, source->where);
    return;
  }
}

/* Reads from tokenizer_config.json and the post-processor which tokens start and end a text. If
   neither decides, prompts begin with the start token, except for tokenizer classes that are known
   to omit it. */
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
    /* transformers builds these tokenizers from this setting */
    k->prefix_space = mhk__token_flag(ctx, c, "add_prefix_space", 0, source->config_where);
  for (i = 0; i < 3; i++)
    if (mhk__json_is(mhk__json_get(c, warned[i]), MHK__JSON_TRUE))
      mhk__note(ctx, MHK_LOG_WARNING, "%s: %s is not supported and is ignored", source->config_where, warned[i]);
  mhk__token_decoder_check(k, source);
  mhk__special_tokens_check(k, source, "extra_special_tokens");
  mhk__special_tokens_check(k, source, "additional_special_tokens");
  k->config = mhk__arena_text(ctx, &k->object.arena, source->config_text, source->config_length);
  k->config_length = source->config_length;
  return k->config && !mhk_failed(ctx);
}

/* Builds a tokenizer from its sources: tokens, merges, added tokens, special tokens. All 256 bytes
   must have a token. */
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
      return mhk__no(
          ctx, MHK_ERROR_FORMAT,
          "%s has no token for byte 0x%02X (\"%s\"): a byte-level vocabulary has one for each of the 256 bytes",
          source->where, (unsigned)b, text);
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
    mhk_fail(ctx, MHK_ERROR_FORMAT, "%s must be a JSON object", where);
  if (source->decoder && !mhk__json_is(source->decoder, MHK__JSON_OBJECT)) source->decoder = NULL;
  return !mhk_failed(ctx);
}

/* A part of tokenizer.json by its type: NULL if it is null or absent; a sequence of one part is
   that part. */
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
           "%s: %s %.60s is not supported: this version reads byte-level BPE with GPT-2's pattern and NFC or no "
           "normalizer",
           where, name, type ? type : part ? "without a type" : "null");
}

/* Refuses unsupported parts that would change ids. Padding, truncation and the tokens that a
   post-processor adds around a text are left to the caller. */
static int mhk__token_settings(mhk_tokenizer *k, const mhk__json *root, const mhk__json *model, const char *where) {
  static const char affixes[2][32] = {"continuing_subword_prefix", "end_of_word_suffix"};
  mhk_context *ctx = k->object.ctx;
  const mhk__json *x = mhk__json_get(model, "type"), *list;
  if (x && !mhk__json_equals(x, "BPE")) {
    mhk__token_part_refused(ctx, model, "model", where);
    return 0;
  }
  x = mhk__json_get(root, "version");
  if (x && !mhk__json_equals(x, "1.0"))
    return mhk__no(ctx, MHK_ERROR_UNSUPPORTED, "%s: \"version\" of the file is not 1.0", where);
  x = mhk__json_get(model, "dropout");
  const double dropout = mhk__json_is(x, MHK__JSON_NUMBER) ? mhk__json_number(x) : 0;
  if (mhk__token_flag(ctx, model, "byte_fallback", 0, where) || !(dropout <= 0))
    return mhk__no(ctx, MHK_ERROR_UNSUPPORTED, "%s: BPE with byte_fallback or dropout is not supported", where);
  for (int i = 0; i < 2; i++) {
    x = mhk__json_get(model, affixes[i]);
    if (x && !mhk__json_is(x, MHK__JSON_NULL) && !mhk__json_equals(x, ""))
      return mhk__no(ctx, MHK_ERROR_UNSUPPORTED, "%s: BPE with %s is not supported", where, affixes[i]);
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
  /* the explicit pattern, then ByteLevel for the bytes only */
  if (mhk__json_is(list, MHK__JSON_ARRAY) && list->count == 2) {
    const mhk__json *split = list->first, *level = split->next;
    if (mhk__json_equals(mhk__json_get(split, "type"), "Split") &&
        mhk__json_equals(mhk__json_get(split, "behavior"), "Isolated") &&
        !mhk__token_flag(ctx, split, "invert", 0, where) &&
        mhk__json_equals(mhk__json_get(mhk__json_get(split, "pattern"), "Regex"),
                         "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+") &&
        mhk__json_equals(mhk__json_get(level, "type"), "ByteLevel") &&
        !mhk__token_flag(ctx, level, "use_regex", 1, where) &&
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

/* name and config_name are for errors; desc->name does not count. */
static mhk_tokenizer *mhk__tokenizer_from(mhk_context *ctx, const mhk_tokenizer_desc *desc, const char *name,
                                          const char *config_name) {
  mhk_tokenizer *k = (mhk_tokenizer *)mhk__object_new(ctx, sizeof(mhk_tokenizer), NULL);
  mhk__token_source source;
  mhk__arena tree;
  int good = 0;
  if (!k) return NULL;
  memset(&source, 0, sizeof source);
  memset(&tree, 0, sizeof tree);
  const mhk__json *root = mhk__json_parse(ctx, &tree, desc->json, desc->length, name, 0);
  if (root && (!desc->config ||
               mhk__token_config_read(ctx, &tree, &source, desc->config, desc->config_length, config_name))) {
    const mhk__json *model = mhk__json_get(root, "model");
    source.post_processor = mhk__json_get(root, "post_processor");
    source.where = name;
    source.vocabulary = mhk__json_get(model, "vocab");
    source.merges = mhk__json_get(model, "merges");
    source.added = mhk__json_get(root, "added_tokens");
    if (mhk__json_is(source.added, MHK__JSON_NULL)) source.added = NULL;
    if (!mhk__json_is(model, MHK__JSON_OBJECT))
      mhk_fail(ctx, MHK_ERROR_FORMAT, "%s has no \"model\": it must be a tokenizer.json", name);
    else if (mhk__token_settings(k, root, model, name)) {
      if (!mhk__json_is(source.vocabulary, MHK__JSON_OBJECT) || !mhk__json_is(source.merges, MHK__JSON_ARRAY))
        mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: \"model\" must have \"vocab\" {text: id, ...} and \"merges\" [...]",
                 name);
      else if (source.added && !mhk__json_is(source.added, MHK__JSON_ARRAY))
        mhk_fail(ctx, MHK_ERROR_FORMAT, "%s: \"added_tokens\" must be an array", name);
      else if (mhk__tokenizer_build(k, &source)) {
        k->json = mhk__arena_text(ctx, &k->object.arena, desc->json, desc->length);
        k->json_length = desc->length;
        good = k->json != NULL;
      }
    }
  }
  mhk__arena_free(ctx, &tree);
  if (good) return k;
  mhk__object_free(k);
  return NULL;
}

MHKDEF mhk_tokenizer *mhk_tokenizer_create(mhk_context *ctx, const mhk_tokenizer_desc *desc) {
  if (mhk_failed(ctx)) return NULL;
  if (!desc || !desc->json) {
    mhk_fail(ctx, MHK_ERROR_ARGUMENT, "a tokenizer needs a tokenizer.json, but the text is missing (NULL)");
    return NULL;
  }
  return mhk__tokenizer_from(ctx, desc, desc->name ? desc->name : "the tokenizer.json in memory",
                             "the tokenizer_config.json in memory");
}

MHKDEF mhk_tokenizer *mhk_tokenizer_load_memory(mhk_context *ctx, const char *json, size_t length) {
  mhk_tokenizer_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.json = json;
  desc.length = length;
  return mhk_tokenizer_create(ctx, &desc);
}

#if !defined(MOHAWK_NO_TRAINING) || !defined(MOHAWK_NO_STDIO)
/* the same tokenizer in another context */
static mhk_tokenizer *mhk__tokenizer_copy(mhk_context *ctx, const mhk_tokenizer *k) {
  const mhk_tokenizer_desc desc = {k->json, k->json_length, k->config, k->config_length, NULL};
  return mhk__tokenizer_from(ctx, &desc, "the tokenizer's copy", "its tokenizer_config.json");
}
#endif

#ifndef MOHAWK_NO_STDIO
/* The files that a folder may have, the first of which counts: tokenizer.json, those of older
   layouts, and those of unsupported kinds. */
static const char mhk__tokenizer_files[][20] = {"tokenizer.json", "vocab.json",      "encoder.json", "merges.txt",
                                                "vocab.bpe",      "tokenizer.model", "vocab.txt"};
enum { MHK__TOKENIZER_OLD = 1, MHK__TOKENIZER_UNKNOWN = 5, MHK__TOKENIZER_NONE = 7 };

static int mhk__tokenizer_file(const char *folder, char *path, size_t room) {
  for (int i = 0; i < MHK__TOKENIZER_NONE; i++)
    if (mhk__join_path(path, room, folder, mhk__tokenizer_files[i]) && mhk__is_file(path)) return i;
  return MHK__TOKENIZER_NONE;
}

MHKDEF mhk_tokenizer *mhk_tokenizer_load(mhk_context *ctx, const char *path) {
  char folder[MHK__PATH_MOST + 64], file[MHK__PATH_MOST + 64], beside[MHK__PATH_MOST + 64];
  mhk_tokenizer *k = NULL;
  mhk__bytes json, config;
  mhk_tokenizer_desc desc;
  int kind = 0;
  if (!mhk__path_fits(ctx, path)) return NULL;
  strcpy(file, path);
  if (mhk__is_folder(path)) {
    strcpy(folder, path);
    kind = mhk__tokenizer_file(path, file, sizeof file);
  } else {
    mhk__folder_of(folder, sizeof folder, path);
    while (kind < MHK__TOKENIZER_NONE && strcmp(path + strlen(folder), mhk__tokenizer_files[kind]) != 0) kind++;
    if (kind == MHK__TOKENIZER_NONE) kind = 0; /* a tokenizer.json of another name */
  }
  if (kind == MHK__TOKENIZER_NONE)
    mhk_fail(ctx, MHK_ERROR_FILE, "the folder %s has no tokenizer.json", path);
  else if (kind >= MHK__TOKENIZER_UNKNOWN)
    mhk_fail(ctx, MHK_ERROR_UNSUPPORTED,
             "%s is an unsupported kind of tokenizer; byte-level BPE in tokenizer.json is supported", file);
  else if (kind >= MHK__TOKENIZER_OLD)
    mhk__needs_convert(ctx, file, "a vocabulary in an old layout");
  if (mhk_failed(ctx)) return NULL;
  memset(&config, 0, sizeof config);
  mhk__join_path(beside, sizeof beside, folder, "tokenizer_config.json");
  if (mhk__ends_with(file, "tokenizer.json") && mhk__is_file(beside) && !mhk__bytes_open_or_fail(ctx, beside, &config))
    return NULL;
  if (mhk__bytes_open_or_fail(ctx, file, &json)) {
    memset(&desc, 0, sizeof desc);
    desc.json = (const char *)json.data;
    desc.length = json.size;
    desc.config = (const char *)config.data;
    desc.config_length = config.size;
    k = mhk__tokenizer_from(ctx, &desc, file, beside);
    mhk__bytes_close(&json);
  }
  mhk__bytes_close(&config);
  return k;
}
#endif

MHKDEF void mhk_tokenizer_destroy(mhk_tokenizer *k) { mhk__object_free(k); }

/* ---------------------------------------------------------------------------------- text to ids */

/* The destination of ids. Ids that do not fit are only counted, unless full() consumes those
   present and makes room. */
typedef struct mhk__ids {
  int32_t *ids;
  mhk_index capacity, n;
  void (*full)(void *user, const int32_t *ids, mhk_index n);
  void *user;
  size_t longest; /* bytes of text per part that scratch memory has room for; 0: no limit */
  int grows;      /* longer parts use the allocator temporarily */
} mhk__ids;

/* Scratch memory for n bytes of text, valid from mhk__room_open() to mhk__room_close(). */
typedef struct mhk__room {
  mhk__arena kept;
  mhk__mark mark;
  int grown;
} mhk__room;

static int mhk__room_open(mhk_context *ctx, const mhk__ids *out, size_t n, mhk__room *room) {
  room->grown = out->longest > 0 && n > out->longest;
  if (room->grown && !out->grows)
    return mhk__no(
        ctx, MHK_ERROR_MEMORY,
        "%.0f bytes of text without a break are too many for the session's block, which has room for %.0f: raise "
        "mhk_session_desc.word_bytes",
        (double)n, (double)out->longest);
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
#define MHK__TEXT_WORD 1024 /* default for the longest word, in bytes, that a session's block has room for */

/* Short words: search all pairs for the lowest rank each time. */
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

/* Long words: symbols in a linked list, pairs in a heap ordered by rank and position, O(n log n).
   Outdated entries of the heap are dropped when they reach the top. Each merge pops one entry and
   pushes at most two, so there are never more than 2 n. */
static void mhk__encode_long(const mhk_tokenizer *k, const unsigned char *word, size_t n, mhk__ids *out) {
  mhk_context *ctx = k->object.ctx;
  mhk__room room;
  uint32_t i, after;
  size_t entries = 0, h;
  if (n >= UINT32_MAX) {
    mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "%.0f MB of text without a break are more than this version can encode",
             (double)n * 1e-6);
    return;
  }
  if (!mhk__room_open(ctx, out, n, &room)) return;
  uint32_t *id = (uint32_t *)mhk__scratch(ctx, (mhk_index)n, sizeof(uint32_t));
  /* of the pair that starts here; UINT32_MAX: no pair, or no symbol */
  uint32_t *rank = (uint32_t *)mhk__scratch(ctx, (mhk_index)n, sizeof(uint32_t));
  uint32_t *previous = (uint32_t *)mhk__scratch(ctx, (mhk_index)n, sizeof(uint32_t));
  uint32_t *next = (uint32_t *)mhk__scratch(ctx, (mhk_index)n, sizeof(uint32_t)); /* n: the end */
  uint64_t *heap = (uint64_t *)mhk__scratch(ctx, (mhk_index)n, 2 * sizeof(uint64_t));
  if (id && rank && previous && next && heap) {
    const uint32_t end = (uint32_t)n;
    for (i = 0; i < end; i++) {
      id[i] = k->byte_ids[word[i]];
      previous[i] = i - 1; /* of the first symbol: never used */
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
      if (rank[i] != r) continue; /* outdated: a merge has changed this pair */
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

/* the most scratch memory for text without a break: as a word, and its copies with a space or
   normalized */
static size_t mhk__word_room(const mhk_tokenizer *k, size_t bytes) {
  return (k->nfc || k->prefix_space ? 36 : 32) * bytes + 12 * MHK__ALIGN;
}

/* The ids of one word: one byte, from the cache of words, by whole lookup if merges are ignored, or
   by merging. */
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
  mhk__word *slot =
      &k->words[((key[0] ^ (key[1] << 29 | key[1] >> 35)) * 0x9E3779B97F4A7C15u) >> (64 - MHK__WORD_BITS)];
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

/* Splits text without added tokens into words. */
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
    if (text[at] == ' ' && end < n) { /* one space belongs to the word after it */
      const unsigned following = mhk__class_at(k, text + end, n - end, &step);
      if (following != MHK__SPACE) {
        kind = following;
        end += step;
      }
    }
    last = at; /* start of the last character of the run */
    while (end < n && mhk__class_at(k, text + end, n - end, &step) == kind) {
      last = end;
      end += step;
    }
    /* the last of several spaces belongs to the next word */
    if (kind == MHK__SPACE && end < n && last > at) end = last;
    mhk__encode_word(k, text + at, end - at, out);
    at = end;
  }
}

/* The longest added token that text starts with, or NULL. */
static const mhk__added *mhk__added_at(const mhk__added_set *s, const unsigned char *text, size_t n) {
  mhk_index low = s->first[*text], high = s->first[*text + 1];
  const mhk__added *found = NULL;
  size_t depth = 1;
  while (low < high) { /* tokens in between agree with the text in their first depth bytes */
    if (s->tokens[low]->length == depth) found = s->tokens[low++];
    if (depth >= n || low >= high) break;
    if (high - low == 1) { /* the common case: one token left */
      const mhk__added *a = s->tokens[low];
      return a->length <= n && memcmp(a->text + depth, text + depth, a->length - depth) == 0 ? a : found;
    } else {
      mhk_index side, a, b, bound[2] = {low, high};
      for (side = 0; side < 2; side++) { /* the first one with a byte not below that of text, then the first above it */
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

/* length of the white space character at the end of text, 0 if there is none */
static size_t mhk__one_space_before(const mhk_tokenizer *k, const unsigned char *text, size_t n) {
  size_t start = n, step = 0;
  if (n == 0) return 0;
  for (start--; start > 0 && n - start < 4 && (text[start] & 0xC0u) == 0x80; start--) continue;
  return mhk__class_at(k, text + start, n - start, &step) == MHK__SPACE && start + step == n ? step : 0;
}

/* length of the white space at the end of text */
static size_t mhk__space_before(const mhk_tokenizer *k, const unsigned char *text, size_t n) {
  size_t left = n, step;
  while ((step = mhk__one_space_before(k, text, left)) != 0) left -= step;
  return n - left;
}

/* The first position from least where the text can be split and its parts encoded separately:
   before a space that follows another character. No word crosses it, and nothing composes across
   it. Returns n if there is none. */
static size_t mhk__cut(const mhk_tokenizer *k, const unsigned char *text, size_t n, size_t least) {
  if (!k->use_regex) return n;
  for (; least < n; least++)
    if (text[least] == ' ' && text[least - 1] != ' ' && !mhk__one_space_before(k, text, least)) return least;
  return n;
}

static void mhk__encode_part(mhk_tokenizer *k, const unsigned char *text, size_t n, int level, mhk__ids *out);

/* Encodes text between added tokens that are found first: normalizes it if needed, one part at a
   time. */
static void mhk__encode_normalized(mhk_tokenizer *k, const unsigned char *text, size_t n, mhk__ids *out) {
  mhk_context *ctx = k->object.ctx;
  const size_t least = out->longest > 0 && out->longest < 1024 ? out->longest / 2 : 512;
  size_t end;
  if (mhk__nfc_fine(k->nfc, text, n)) {
    mhk__encode_part(k, text, n, 1, out);
    return;
  }
  for (size_t at = 0; at < n && !mhk_failed(ctx); at = end) {
    mhk__room room;
    end = k->cuts && n - at > least ? at + mhk__cut(k, text + at, n - at, least) : n;
    if (!mhk__room_open(ctx, out, end - at, &room)) return;
    char *normal = (char *)mhk__scratch(ctx, (mhk_index)(end - at), 3);
    if (normal) {
      const size_t length = mhk__nfc_text(k, text + at, end - at, normal);
      mhk__encode_part(k, (const unsigned char *)normal, length, 1, out);
    }
    mhk__room_close(ctx, &room);
  }
}

/* Encodes text between added tokens: words, with a space added before them if prefix_space is
   set. */
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

/* encodes text without the added tokens of a level */
static void mhk__encode_between(mhk_tokenizer *k, const unsigned char *text, size_t n, int level, mhk__ids *out) {
  if (level == 0 && k->nfc)
    mhk__encode_normalized(k, text, n, out);
  else
    mhk__encode_part(k, text, n, level + 1, out);
}

/* level 0, 1: split at the added tokens of that set; 2: words */
static void mhk__encode_part(mhk_tokenizer *k, const unsigned char *text, size_t n, int level, mhk__ids *out) {
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
    at = stop = at + a->length; /* the space after it may contain another token, as in Hugging Face's tokenizers */
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

/* Returns whether the start token goes before this prompt: not if the text begins with it. Without
   text, it is the whole prompt. */
static int mhk__starts_text(const mhk_tokenizer *k, const unsigned char *text, size_t n) {
  if (k->start < 0 || (!k->puts_start && n > 0)) return 0;
  for (int set = 0; set < 2 && n > 0; set++) {
    const mhk__added *a = mhk__added_at(&k->added[set], text, n);
    if (a && a->id == k->start) return 0;
  }
  return 1;
}

/* mhk_encode(), and with prompt also the start token if the text does not begin with it */
static mhk_index mhk__encode(mhk_tokenizer *k, const char *text, size_t length, int32_t *ids, mhk_index capacity,
                             int prompt) {
  mhk_context *ctx = k ? k->object.ctx : NULL;
  mhk__ids out;
  if (mhk_failed(ctx)) return -1;
  memset(&out, 0, sizeof out);
  if ((!text && length > 0) || length > (size_t)PTRDIFF_MAX || (!ids && capacity > 0)) {
    mhk_fail(ctx, MHK_ERROR_ARGUMENT, "mhk_encode: the %s is missing (NULL)",
             !ids && capacity > 0 ? "array of ids" : "text");
    return -1;
  }
  out.ids = ids;
  out.capacity = capacity;
  if (prompt && mhk__starts_text(k, (const unsigned char *)text, length)) mhk__ids_put(&out, k->start);
  mhk__encode_part(k, (const unsigned char *)text, length, 0, &out);
  return mhk_failed(ctx) ? -1 : out.n;
}

MHKDEF mhk_index mhk_encode(mhk_tokenizer *k, const char *text, size_t length, int32_t *ids, mhk_index capacity) {
  return mhk__encode(k, text, length, ids, capacity, 0);
}

MHKDEF mhk_index mhk_encode_prompt(mhk_tokenizer *k, const char *text, size_t length, int32_t *ids,
                                   mhk_index capacity) {
  return mhk__encode(k, text, length, ids, capacity, 1);
}

/* ---------------------------------------------------------------------------------- ids to text */

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
    mhk_fail(ctx, MHK_ERROR_ARGUMENT, "mhk_decode: %s",
             n < 0           ? "the number of ids is negative"
             : n > 0 && !ids ? "the array of ids is missing (NULL)"
                             : "the buffer for the text is missing (NULL)");
    return -1;
  }
  for (mhk_index i = 0; i < n; i++) {
    const char *bytes = mhk_token_bytes(k, ids[i], &length);
    if (!bytes) {
      mhk_fail(ctx, MHK_ERROR_ARGUMENT, "id %ld at position %lld of %lld is not a token: the vocabulary ends at %d%s",
               (long)ids[i], (long long)i, (long long)n, k->size - 1,
               ids[i] >= 0 && ids[i] < k->size ? " and has a gap there" : "");
      return -1;
    }
    if (total < capacity) memcpy(text + total, bytes, length < capacity - total ? length : capacity - total);
    if (length > (size_t)PTRDIFF_MAX - total) {
      mhk_fail(ctx, MHK_ERROR_MEMORY, "the text of %lld ids does not fit in this machine's address space",
               (long long)n);
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

MHKDEF const char *mhk_tokenizer_json(mhk_tokenizer *k, size_t *length) {
  if (length) *length = k ? k->json_length : 0;
  return k ? k->json : NULL;
}

/* ------------------------------------------------------------------------------------ streaming */

/* Returns whether the byte can follow the n held ones inside a well-formed character (Unicode 16.0,
   table 3-7). */
static int mhk__utf8_fits(const unsigned char *held, int n, unsigned char byte) {
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

/* An incomplete character becomes one U+FFFD, as does each byte that cannot start a character. */
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
    } else if (mhk__utf8_fits(s->held, s->n_held, byte)) {
      const int whole = s->held[0] < 0xE0 ? 2 : s->held[0] < 0xF0 ? 3 : 4;
      i++;
      s->held[s->n_held++] = byte;
      if (s->n_held == whole) {
        memcpy(out + n, s->held, (size_t)whole);
        n += (size_t)whole;
        s->n_held = 0;
      }
    } else { /* process the byte again */
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
/* =================================================================================================
   MODELS: configurations, weights, initialization, transfer                                >>models
   ============================================================================================== */

/* The tensors of a layer. A layer has the tensors of its own mixer; the others are NULL. */
typedef struct mhk__layer {
  mhk_mixer kind;
  mhk_tensor *norm_w, *norm_b;                                       /* norm_b NULL: RMSNorm (Mamba-2) */
  mhk_tensor *q_w, *q_b, *k_w, *k_b, *v_w, *v_b, *dense_w, *dense_b; /* attention */
  mhk_tensor *qn_w, *qn_b, *kn_w, *kn_b;                             /* LayerNorm of queries and keys, or NULL */
  mhk_tensor *in_w, *in_b, *z_bias, *conv_w, *conv_b, *dt_bias, *A_log, *D, *ssm_norm_w, *out_w, *out_b;
  mhk_tensor *fc1_w, *fc1_b, *fc2_w, *fc2_b; /* MLP; NULL: none */
} mhk__layer;

struct mhk_model {
  mhk__object object;
  mhk_config config;
  mhk_tokenizer *tokenizer;
  mhk_file *file;                                            /* mapped weights, or NULL */
  mhk_tensor *embedding, *norm_w, *norm_b, *head_w, *head_b; /* head_w == embedding when tied */
  mhk__layer *layers;
  mhk_tensor **tensors; /* all tensors, in the order of the checkpoint */
  int n_tensors;
  int trainable;
  int owns_tokenizer;
  const char *tokenizer_error; /* error of the tokenizer next to it, or NULL */
  int32_t *ends;               /* n_ends, and room for that of the tokenizer; NULL: none */
  int n_ends, ends_exact;      /* exact: the tokenizer's end does not count */
};

/* ---- the tensors of a configuration ----
   One table says everything about them: naming, making, loading, drawing, training, quantizing and
   transferring weights go through it. */

/* the fields of a row of roles; MHK__ROLE() adds the prefixes */
enum {            /* whose it is */
  MHK__OF_MODEL,  /* tensors of the model, before the layers */
  MHK__OF_BLOCK,  /* tensors of a layer, if it has such a part */
  MHK__OF_ATTENTION,
  MHK__OF_STATE_SPACE,
  MHK__OF_MLP,
  MHK__OF_END     /* tensors of the model, after the layers */
};
enum { MHK__NAMED_PLAIN, MHK__NAMED_EMBEDDING, MHK__NAMED_NORM, MHK__NAMED_FINAL, MHK__NAMED_ATTENTION };
enum { /* what a configuration must have, besides the owner */
  MHK__IF_ALWAYS,
  MHK__IF_LAYER_NORM,
  MHK__IF_QK_NORM,
  MHK__IF_PROJ_BIAS,
  MHK__IF_CONV_BIAS,
  MHK__IF_DISCRETE,
  MHK__IF_MAMBA2,
  MHK__IF_UNTIED
};
enum {                 /* sizes of axes */
  MHK__SIZE_NONE,      /* no second axis: a vector */
  MHK__SIZE_VOCAB,
  MHK__SIZE_MODEL,     /* d_model */
  MHK__SIZE_MLP,
  MHK__SIZE_QUERIES,   /* attention heads times their size */
  MHK__SIZE_KEYS,      /* the same for keys and values */
  MHK__SIZE_HEAD,
  MHK__SIZE_HEADS,     /* state-space heads */
  MHK__SIZE_INNER,     /* the same times their size */
  MHK__SIZE_CHANNELS,  /* x, B and C: the input of the convolution */
  MHK__SIZE_PROJECTED, /* the output of in_proj: channels, gate and decays */
  MHK__SIZE_TAPS       /* for the convolution: two axes, (1,d_conv) */
};
enum {                /* how a new model initializes it */
  MHK__START_ZERO,
  MHK__START_ONE,
  MHK__START_NORMAL,  /* normal with standard deviation 0.02, as usual in language models */
  MHK__START_LINEAR,  /* as PyTorch initializes a Linear or a convolution: uniform in +-1/sqrt(inputs) */
  MHK__START_BIAS,    /* as PyTorch initializes their bias: in the bounds of the weight before it */
  MHK__START_A_LOG,   /* as in Mamba-2: the log of a number uniform in [1,16] */
  MHK__START_DT_BIAS, /* as in Mamba-2: softplus of it is log-uniform in [0.001,0.1] */
  MHK__STARTS
};
enum {               /* the smallest mhk_trains that trains it, if the loss of the stage depends on it */
  MHK__TRAIN_MATRIX, /* MHK_TRAIN_MATRICES; the mixing matrix, and so stage 1, depends on it */
  MHK__TRAIN_MIXER,  /* MHK_TRAIN_MIXERS */
  MHK__TRAIN_NORM,   /* MHK_TRAIN_ALL; stage 1 depends on it */
  MHK__TRAIN_REST    /* MHK_TRAIN_ALL */
};

typedef struct mhk__role {
  size_t at; /* its offset in mhk_model or mhk__layer */
  unsigned char owner, named;
  char name[24];
  unsigned char needs, rows, across, start, trains;
} mhk__role;

#define MHK__ROLE(type, field, owner, named, name, needs, rows, across, start, trains) \
  {offsetof(type, field), MHK__OF_##owner, MHK__NAMED_##named, name, MHK__IF_##needs, MHK__SIZE_##rows, \
   MHK__SIZE_##across, MHK__START_##start, MHK__TRAIN_##trains}
static const mhk__role mhk__roles[] = { /* in the order of the checkpoint */
  MHK__ROLE(mhk_model, embedding, MODEL, EMBEDDING, ".weight", ALWAYS, VOCAB, MODEL, NORMAL, REST),
  MHK__ROLE(mhk__layer, norm_w, BLOCK, NORM, ".weight", ALWAYS, MODEL, NONE, ONE, NORM),
  MHK__ROLE(mhk__layer, norm_b, BLOCK, NORM, ".bias", LAYER_NORM, MODEL, NONE, ZERO, NORM),
  MHK__ROLE(mhk__layer, q_w, ATTENTION, ATTENTION, ".q_proj.weight", ALWAYS, QUERIES, MODEL, LINEAR, MIXER),
  MHK__ROLE(mhk__layer, q_b, ATTENTION, ATTENTION, ".q_proj.bias", ALWAYS, QUERIES, NONE, BIAS, MIXER),
  MHK__ROLE(mhk__layer, k_w, ATTENTION, ATTENTION, ".k_proj.weight", ALWAYS, KEYS, MODEL, LINEAR, MIXER),
  MHK__ROLE(mhk__layer, k_b, ATTENTION, ATTENTION, ".k_proj.bias", ALWAYS, KEYS, NONE, BIAS, MIXER),
  MHK__ROLE(mhk__layer, v_w, ATTENTION, ATTENTION, ".v_proj.weight", ALWAYS, KEYS, MODEL, LINEAR, MIXER),
  MHK__ROLE(mhk__layer, v_b, ATTENTION, ATTENTION, ".v_proj.bias", ALWAYS, KEYS, NONE, BIAS, MIXER),
  MHK__ROLE(mhk__layer, dense_w, ATTENTION, ATTENTION, ".dense.weight", ALWAYS, MODEL, QUERIES, LINEAR, MIXER),
  MHK__ROLE(mhk__layer, dense_b, ATTENTION, ATTENTION, ".dense.bias", ALWAYS, MODEL, NONE, BIAS, MIXER),
  MHK__ROLE(mhk__layer, qn_w, ATTENTION, ATTENTION, ".q_layernorm.weight", QK_NORM, HEAD, NONE, ONE, MIXER),
  MHK__ROLE(mhk__layer, qn_b, ATTENTION, ATTENTION, ".q_layernorm.bias", QK_NORM, HEAD, NONE, ZERO, MIXER),
  MHK__ROLE(mhk__layer, kn_w, ATTENTION, ATTENTION, ".k_layernorm.weight", QK_NORM, HEAD, NONE, ONE, MIXER),
  MHK__ROLE(mhk__layer, kn_b, ATTENTION, ATTENTION, ".k_layernorm.bias", QK_NORM, HEAD, NONE, ZERO, MIXER),
  MHK__ROLE(mhk__layer, in_w, STATE_SPACE, PLAIN, "mixer.in_proj.weight", ALWAYS, PROJECTED, MODEL, LINEAR, MATRIX),
  MHK__ROLE(mhk__layer, in_b, STATE_SPACE, PLAIN, "mixer.in_proj.bias", PROJ_BIAS, PROJECTED, NONE, BIAS, MATRIX),
  MHK__ROLE(mhk__layer, z_bias, STATE_SPACE, PLAIN, "mixer.z_bias", DISCRETE, INNER, NONE, ZERO, MIXER),
  MHK__ROLE(mhk__layer, conv_w, STATE_SPACE, PLAIN, "mixer.conv1d.weight", ALWAYS, CHANNELS, TAPS, LINEAR, MATRIX),
  MHK__ROLE(mhk__layer, conv_b, STATE_SPACE, PLAIN, "mixer.conv1d.bias", CONV_BIAS, CHANNELS, NONE, BIAS, MATRIX),
  MHK__ROLE(mhk__layer, dt_bias, STATE_SPACE, PLAIN, "mixer.dt_bias", MAMBA2, HEADS, NONE, DT_BIAS, MIXER),
  MHK__ROLE(mhk__layer, A_log, STATE_SPACE, PLAIN, "mixer.A_log", MAMBA2, HEADS, NONE, A_LOG, MIXER),
  MHK__ROLE(mhk__layer, D, STATE_SPACE, PLAIN, "mixer.D", ALWAYS, HEADS, NONE, ONE, MATRIX),
  MHK__ROLE(mhk__layer, ssm_norm_w, STATE_SPACE, PLAIN, "mixer.norm.weight", MAMBA2, INNER, NONE, ONE, MIXER),
  MHK__ROLE(mhk__layer, out_w, STATE_SPACE, PLAIN, "mixer.out_proj.weight", ALWAYS, MODEL, INNER, LINEAR, MIXER),
  MHK__ROLE(mhk__layer, out_b, STATE_SPACE, PLAIN, "mixer.out_proj.bias", PROJ_BIAS, MODEL, NONE, BIAS, MIXER),
  MHK__ROLE(mhk__layer, fc1_w, MLP, PLAIN, "mlp.fc1.weight", ALWAYS, MLP, MODEL, LINEAR, REST),
  MHK__ROLE(mhk__layer, fc1_b, MLP, PLAIN, "mlp.fc1.bias", ALWAYS, MLP, NONE, BIAS, REST),
  MHK__ROLE(mhk__layer, fc2_w, MLP, PLAIN, "mlp.fc2.weight", ALWAYS, MODEL, MLP, LINEAR, REST),
  MHK__ROLE(mhk__layer, fc2_b, MLP, PLAIN, "mlp.fc2.bias", ALWAYS, MODEL, NONE, BIAS, REST),
  MHK__ROLE(mhk_model, norm_w, END, FINAL, ".weight", ALWAYS, MODEL, NONE, ONE, REST),
  MHK__ROLE(mhk_model, norm_b, END, FINAL, ".bias", LAYER_NORM, MODEL, NONE, ZERO, REST),
  MHK__ROLE(mhk_model, head_w, END, PLAIN, "lm_head.weight", UNTIED, VOCAB, MODEL, LINEAR, REST),
  MHK__ROLE(mhk_model, head_b, END, PLAIN, "lm_head.bias", LAYER_NORM, VOCAB, NONE, BIAS, REST)};
#undef MHK__ROLE

/* An architecture: the parts of its blocks and the names of its tensors. */
typedef struct mhk__arch {
  char name[12], root[12];  /* root: prefix of the names, except for the head */
  char called[5][20];       /* by MHK__NAMED_... */
  int layer_norm;           /* norms are LayerNorm, not RMSNorm; the head has a bias */
} mhk__arch;

static const mhk__arch *mhk__arch_of(const mhk_config *c) {
  static const mhk__arch archs[] = {
    {"Phi", "model", {"", "embed_tokens", "input_layernorm", "final_layernorm", "self_attn"}, 1},
    {"Phi-Mamba", "backbone", {"", "embedding", "input_layernorm", "final_layernorm", "mixer.self_attn"}, 1},
    {"Mamba-2", "backbone", {"", "embeddings", "norm", "norm_f", "mixer.self_attn"}, 0}};
  return &archs[(int)c->arch - 1];
}

/* A tensor of a model: a role in one layer, with its full name and its shape. */
typedef struct mhk__spec {
  char name[96];
  const mhk__role *role;
  int layer, rank;
  mhk_index shape[3];
} mhk__spec;

static int mhk__role_layered(const mhk__role *r) { return r->owner != MHK__OF_MODEL && r->owner != MHK__OF_END; }

/* matrices of linear and embedding, which may keep their stored type */
static int mhk__role_is_matrix(const mhk__role *r) {
  return r->across != MHK__SIZE_NONE && r->across != MHK__SIZE_TAPS;
}

static mhk_tensor **mhk__slot(mhk_model *m, const mhk__spec *s) {
  char *base = mhk__role_layered(s->role) ? (char *)&m->layers[s->layer] : (char *)m;
  return (mhk_tensor **)(void *)(base + s->role->at);
}

/* whether a layer of this configuration has a tensor of this role */
static int mhk__has_role(const mhk_config *c, int layer, const mhk__role *r) {
  const int kind = c->mixer[layer];
  if (r->owner == MHK__OF_ATTENTION && kind != MHK_MIXER_ATTENTION) return 0;
  if (r->owner == MHK__OF_STATE_SPACE && kind != MHK_MIXER_DISCRETE_MAMBA2 && kind != MHK_MIXER_MAMBA2) return 0;
  if (r->owner == MHK__OF_MLP && c->d_mlp == 0) return 0;
  switch (r->needs) {
    case MHK__IF_LAYER_NORM: return mhk__arch_of(c)->layer_norm;
    case MHK__IF_QK_NORM: return c->qk_layernorm != 0;
    case MHK__IF_PROJ_BIAS: return c->proj_bias != 0;
    case MHK__IF_CONV_BIAS: return c->conv_bias != 0;
    case MHK__IF_DISCRETE: return kind == MHK_MIXER_DISCRETE_MAMBA2;
    case MHK__IF_MAMBA2: return kind == MHK_MIXER_MAMBA2;
    case MHK__IF_UNTIED: return !c->tie_embeddings;
    default: return 1;
  }
}

static mhk_index mhk__d_inner(const mhk_config *c) { return (mhk_index)c->ssm_heads * c->ssm_head_dim; }
static mhk_index mhk__conv_channels(const mhk_config *c) {
  return mhk__d_inner(c) + 2 * (mhk_index)c->ssm_groups * c->d_state;
}

static mhk_index mhk__size_of(const mhk_config *c, int size) {
  switch (size) {
    case MHK__SIZE_VOCAB: return c->vocab_size;
    case MHK__SIZE_MODEL: return c->d_model;
    case MHK__SIZE_MLP: return c->d_mlp;
    case MHK__SIZE_QUERIES: return (mhk_index)c->n_head * c->head_dim;
    case MHK__SIZE_KEYS: return (mhk_index)c->n_kv_head * c->head_dim;
    case MHK__SIZE_HEAD: return c->head_dim;
    case MHK__SIZE_HEADS: return c->ssm_heads;
    case MHK__SIZE_INNER: return mhk__d_inner(c);
    case MHK__SIZE_CHANNELS: return mhk__conv_channels(c);
    case MHK__SIZE_PROJECTED: return mhk__d_inner(c) + mhk__conv_channels(c) + c->ssm_heads;
    default: return 1;
  }
}

/* the name of a tensor after "backbone.layers.3." or after the root, or its full name */
static void mhk__role_name(const mhk_config *c, const mhk__role *r, char out[48]) {
  mhk__print(out, 48, "%s%s", mhk__arch_of(c)->called[r->named], r->name);
}

/* Name and shape of the tensor of a role in a layer; returns 0 if the model has none. */
static int mhk__spec_of(const mhk_config *c, int layer, const mhk__role *r, mhk__spec *s) {
  char name[48];
  if (!mhk__has_role(c, layer, r)) return 0;
  s->role = r;
  s->layer = layer;
  s->rank = r->across == MHK__SIZE_NONE ? 1 : r->across == MHK__SIZE_TAPS ? 3 : 2;
  s->shape[0] = mhk__size_of(c, r->rows);
  s->shape[1] = mhk__size_of(c, r->across);
  s->shape[2] = r->across == MHK__SIZE_TAPS ? c->d_conv : 1;
  mhk__role_name(c, r, name);
  if (mhk__role_layered(r))
    mhk__print(s->name, sizeof s->name, "%s.layers.%d.%s", mhk__arch_of(c)->root, layer, name);
  else if (r->named == MHK__NAMED_PLAIN)
    strcpy(s->name, name);
  else
    mhk__print(s->name, sizeof s->name, "%s.%s", mhk__arch_of(c)->root, name);
  return 1;
}

enum { MHK__ROLES = (int)(sizeof mhk__roles / sizeof *mhk__roles) };

/* Iterates over all tensors in the order of the checkpoint: start with s->role NULL, stop at 0. */
static int mhk__spec_next(const mhk_config *c, mhk__spec *s) {
  if (!s->role) s->layer = 0;
  for (int i = s->role ? (int)(s->role - mhk__roles) + 1 : 0; i < MHK__ROLES; i++) {
    if (mhk__roles[i].owner == MHK__OF_END && mhk__roles[i - 1].owner != MHK__OF_END && s->layer + 1 < c->n_layer) {
      s->layer++;
      i = 1; /* the first of a layer */
    }
    if (mhk__spec_of(c, s->layer, &mhk__roles[i], s)) return 1;
  }
  return 0;
}

/* the settings that determine the shape of a tensor, for errors */
static void mhk__spec_reason(const mhk_config *c, const mhk__spec *s, char *out, size_t room) {
  const mhk__role *r = s->role;
  const int ours = c->arch == MHK_ARCH_PHI_MAMBA, m2 = c->arch == MHK_ARCH_MAMBA2;
  switch (r->rows == MHK__SIZE_MODEL && r->across != MHK__SIZE_NONE ? r->across : r->rows) {
    case MHK__SIZE_VOCAB:
      if (r->across == MHK__SIZE_NONE)
        mhk__print(out, room, "vocab_size %d", c->vocab_size);
      else
        mhk__print(out, room, "vocab_size %d, %s %d", c->vocab_size, ours ? "d_model" : "hidden_size", c->d_model);
      break;
    case MHK__SIZE_MODEL: mhk__print(out, room, "%s %d", ours ? "d_model" : "hidden_size", c->d_model); break;
    case MHK__SIZE_MLP: mhk__print(out, room, "%s %d", ours ? "d_mlp" : "intermediate_size", c->d_mlp); break;
    case MHK__SIZE_QUERIES:
      mhk__print(out, room, "num_attention_heads %d of size %d", c->n_head, c->head_dim);
      break;
    case MHK__SIZE_KEYS: mhk__print(out, room, "num_key_value_heads %d of size %d", c->n_kv_head, c->head_dim); break;
    case MHK__SIZE_HEAD: mhk__print(out, room, "head size %d", c->head_dim); break;
    default:
      mhk__print(out, room,
                 m2 ? "num_heads %d, head_dim %d, n_groups %d, state_size %d, conv_kernel %d"
                    : "n_v_heads %d of size %d, n_qk_heads %d, d_state %d, d_conv %d",
                 c->ssm_heads, c->ssm_head_dim, c->ssm_groups, c->d_state, c->d_conv);
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
  if (!name || !config)
    return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "mhk_config_preset: the name or the configuration is missing (NULL)");
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
      /* 4, 10, 16, 22 keep attention */
      c.mixer[l] = phi || (hybrid && l % 6 == 4) ? MHK_MIXER_ATTENTION : MHK_MIXER_DISCRETE_MAMBA2;
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
    return mhk_fail(ctx, MHK_ERROR_ARGUMENT,
                    "unknown preset \"%.60s\": use phi-1, phi-1.5, phi-2, phi-mamba-1.5b, hybrid-phi-mamba-1.5b, "
                    "mamba2-130m or mamba2-1.3b",
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
  mhk__say(out, MHK_ERROR_CONFIG, "%s is %.0f: it must be between %.0f and %.0f", what, value, low, high);
  return 0;
}

/* checks the number of rotary features and theta, for attention or (ssm) for B and C */
static mhk_result mhk__check_rotary(char *out, int rotary, int size, double theta, int ssm) {
  char factor[32], number[32];
  mhk__format_double((double)rotary / size, factor);
  mhk__format_double(theta, number);
  if (rotary < 0 || rotary > size)
    return mhk__say(out, MHK_ERROR_CONFIG, "%d rotary features do not fit in %s of size %d", rotary,
                    ssm ? "a state (d_state)" : "a head", size);
  if (rotary % 2 && ssm)
    return mhk__say(out, MHK_ERROR_CONFIG, "rotary_dim %d of B and C is odd: features rotate in pairs", rotary);
  if (rotary % 2)
    return mhk__say(out, MHK_ERROR_CONFIG,
                    "%d rotary features per head are an odd number: partial_rotary_factor is %s and the head size %d",
                    rotary, factor, size);
  if (rotary > 0 && !(theta > 0 && theta <= 1e300))
    return mhk__say(out, MHK_ERROR_CONFIG, "rope_theta is %s: it must be above 0", number);
  return MHK_OK;
}

/* returns MHK_OK, or an error with a sentence of at most MHK__SENTENCE bytes */
static mhk_result mhk__config_wrong(char *out, const mhk_config *c) {
  const double most = 1 << 24;
  char number[32];
  mhk__spec s;
  if (c->arch != MHK_ARCH_PHI && c->arch != MHK_ARCH_PHI_MAMBA && c->arch != MHK_ARCH_MAMBA2)
    return mhk__say(out, MHK_ERROR_CONFIG, "unknown architecture %d: use Phi (1), Phi-Mamba (2) or Mamba-2 (3)",
                    (int)c->arch);
  if (!mhk__in_range(out, "the number of layers", c->n_layer, 1, MHK_MAX_LAYERS)) return MHK_ERROR_CONFIG;
  if (!mhk__in_range(out, c->arch == MHK_ARCH_PHI_MAMBA ? "d_model" : "hidden_size", c->d_model, 1, most))
    return MHK_ERROR_CONFIG;
  if (!mhk__in_range(out, "vocab_size", c->vocab_size, 1, most * 16)) return MHK_ERROR_CONFIG;
  if (!mhk__in_range(out, "the width of the MLP", c->d_mlp, c->arch == MHK_ARCH_MAMBA2 ? 0 : 1,
                     c->arch == MHK_ARCH_MAMBA2 ? 0 : most))
    return MHK_ERROR_CONFIG;
  mhk__format_double(c->norm_eps, number);
  if (!(c->norm_eps > 0 && c->norm_eps < 1))
    return mhk__say(out, MHK_ERROR_CONFIG, "the eps of the norms is %s: it must be between 0 and 1; 1e-05 is usual",
                    number);
  for (int l = 0; l < c->n_layer; l++) {
    const int kind = c->mixer[l];
    const int fits = c->arch == MHK_ARCH_PHI      ? kind == MHK_MIXER_ATTENTION
                     : c->arch == MHK_ARCH_MAMBA2 ? kind == MHK_MIXER_MAMBA2
                                                  : kind == MHK_MIXER_ATTENTION || kind == MHK_MIXER_DISCRETE_MAMBA2;
    if (!fits)
      return mhk__say(out, MHK_ERROR_CONFIG, "the mixer of layer %d is %d; %s", l, kind,
                      c->arch == MHK_ARCH_PHI ? "every layer of a Phi has attention (1)"
                      : c->arch == MHK_ARCH_MAMBA2
                          ? "every layer of a Mamba-2 has MHK_MIXER_MAMBA2 (3)"
                          : "layers of a Phi-Mamba have attention (1) or discrete Mamba-2 (2)");
  }
  if (mhk__config_uses(c, MHK_MIXER_ATTENTION)) {
    if (!mhk__in_range(out, "num_attention_heads", c->n_head, 1, 65536)) return MHK_ERROR_CONFIG;
    if (!mhk__in_range(out, "num_key_value_heads", c->n_kv_head, 1, 65536)) return MHK_ERROR_CONFIG;
    if (!mhk__in_range(out, "the size of an attention head", c->head_dim, 1, 65536)) return MHK_ERROR_CONFIG;
    if (!mhk__in_range(out, "num_attention_heads times their size", (double)c->n_head * c->head_dim, 1, most))
      return MHK_ERROR_CONFIG;
    if (c->n_head % c->n_kv_head)
      return mhk__say(out, MHK_ERROR_CONFIG,
                      "%d attention heads cannot share %d key/value heads evenly: num_attention_heads must be a "
                      "multiple of num_key_value_heads",
                      c->n_head, c->n_kv_head);
    if (mhk__check_rotary(out, c->rotary_dim, c->head_dim, c->rope_theta, 0)) return MHK_ERROR_CONFIG;
  }
  if (mhk__config_uses(c, MHK_MIXER_DISCRETE_MAMBA2) || mhk__config_uses(c, MHK_MIXER_MAMBA2)) {
    if (!mhk__in_range(out, "the number of state-space heads", c->ssm_heads, 1, 65536)) return MHK_ERROR_CONFIG;
    if (!mhk__in_range(out, "the number of groups of B and C", c->ssm_groups, 1, 65536)) return MHK_ERROR_CONFIG;
    if (!mhk__in_range(out, "the size of a state-space head", c->ssm_head_dim, 1, 65536)) return MHK_ERROR_CONFIG;
    if (!mhk__in_range(out, "d_state", c->d_state, 1, 65536)) return MHK_ERROR_CONFIG;
    if (!mhk__in_range(out, "d_inner (heads times their size)", (double)c->ssm_heads * c->ssm_head_dim, 1, most))
      return MHK_ERROR_CONFIG;
    if (!mhk__in_range(out, "the width of B and C (groups times d_state)", (double)c->ssm_groups * c->d_state, 1, most))
      return MHK_ERROR_CONFIG;
    if (!mhk__in_range(out, "d_conv", c->d_conv, 1, 64)) return MHK_ERROR_CONFIG;
    if (!mhk__in_range(out, "chunk_size", c->chunk_size, 1, most)) return MHK_ERROR_CONFIG;
    if (c->ssm_heads % c->ssm_groups)
      return mhk__say(out, MHK_ERROR_CONFIG, "%d state-space heads cannot share %d groups of B and C evenly: %s",
                      c->ssm_heads, c->ssm_groups,
                      c->arch == MHK_ARCH_MAMBA2 ? "num_heads must be a multiple of n_groups"
                                                 : "n_v_heads must be a multiple of n_qk_heads");
    if (c->ssm_rotary_dim && c->arch == MHK_ARCH_MAMBA2)
      return mhk__say(out, MHK_ERROR_CONFIG, "rotary_dim is %d: only Phi-Mamba has rotary features of B and C",
                      c->ssm_rotary_dim);
    if (mhk__check_rotary(out, c->ssm_rotary_dim, c->d_state, c->rope_theta, 1)) return MHK_ERROR_CONFIG;
    if (!(c->dt_min >= 0 && c->dt_min < 1e300) || (c->dt_max != 0 && !(c->dt_max > c->dt_min))) {
      char high[32];
      mhk__format_double(c->dt_min, number);
      mhk__format_double(c->dt_max, high);
      return mhk__say(out, MHK_ERROR_CONFIG,
                      "time_step_limit is %s to %s: the first must be at least 0 and the second larger than the first",
                      number, high);
    }
  }
  if (c->pad_vocab_multiple < 0 || (c->pad_vocab_multiple > 1 && c->vocab_size % c->pad_vocab_multiple))
    return mhk__say(out, MHK_ERROR_CONFIG, "a vocabulary of %d is not a multiple of pad_vocab_size_multiple %d",
                    c->vocab_size, c->pad_vocab_multiple);
  s.role = NULL;
  while (mhk__spec_next(c, &s))
    if ((double)s.shape[0] * (double)s.shape[1] * (double)s.shape[2] * 16.0 > (double)PTRDIFF_MAX)
      return mhk__say(out, MHK_ERROR_CONFIG, "%s with %.0f elements does not fit in this machine's address space",
                      s.name, (double)s.shape[0] * (double)s.shape[1] * (double)s.shape[2]);
  return MHK_OK;
}

MHKDEF mhk_result mhk_config_check(mhk_context *ctx, const mhk_config *config) {
  char sentence[MHK__SENTENCE];
  if (mhk_failed(ctx)) return mhk_error(ctx);
  if (!config) return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "mhk_config_check: the configuration is missing (NULL)");
  mhk_result code = mhk__config_wrong(sentence, config);
  return code == MHK_OK ? code : mhk_fail(ctx, code, "%s", sentence);
}

MHKDEF double mhk_config_state_bytes(const mhk_config *c, mhk_index tokens) {
  char sentence[MHK__SENTENCE];
  double numbers = 0;
  if (!c || tokens < 0 || mhk__config_wrong(sentence, c) != MHK_OK) return 0;
  for (int l = 0; l < c->n_layer; l++)
    numbers += c->mixer[l] == MHK_MIXER_ATTENTION
                   ? 2.0 * (double)tokens * c->n_kv_head * c->head_dim
                   : (double)mhk__conv_channels(c) * (c->d_conv - 1) + (double)mhk__d_inner(c) * c->d_state;
  return numbers * (double)sizeof(mhk_real);
}

MHKDEF double mhk_config_parameters(const mhk_config *config) {
  char sentence[MHK__SENTENCE];
  mhk__spec s;
  double n = 0;
  if (!config || mhk__config_wrong(sentence, config) != MHK_OK) return 0;
  s.role = NULL;
  while (mhk__spec_next(config, &s)) n += (double)s.shape[0] * (double)s.shape[1] * (double)s.shape[2];
  return n;
}

#define MHK__LIST_MOST 1500 /* room for a list of names in a message; the rest is only counted */

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
  const char *where, *part; /* the text, and which of its objects ("" for the whole) */
} mhk__settings;

static mhk__settings mhk__settings_of(mhk_context *ctx, const mhk__json *object, const char *where, const char *part) {
  mhk__settings s;
  s.ctx = ctx;
  s.object = object;
  s.where = where;
  s.part = part;
  return s;
}

/* a setting that is present and not null */
static const mhk__json *mhk__setting(const mhk__settings *s, const char *key) {
  const size_t length = strlen(key);
  mhk__json *x = mhk__json_is(s->object, MHK__JSON_OBJECT) ? s->object->first : NULL;
  while (x && (x->key_length != length || memcmp(x->key, key, length) != 0)) x = x->next;
  if (!x || x->type == MHK__JSON_NULL) return NULL;
  x->seen = 1;
  return x;
}

/* whether a list of words, separated by blanks, contains this one */
static int mhk__has_word(const char *words, const char *word) {
  const size_t length = strlen(word);
  for (const char *at = strstr(words, word); at && length; at = strstr(at + 1, word))
    if ((at == words || at[-1] == ' ') && (at[length] == ' ' || at[length] == 0)) return 1;
  return 0;
}

static const char *mhk__first_word(const char *words, char out[32]) {
  size_t n = 0;
  while (n < 31 && words[n] && words[n] != ' ') n++;
  memcpy(out, words, n);
  out[n] = 0;
  return out;
}

/* Reports all settings that were not read in one warning, except those in quiet, which do not
   change what a model computes. */
static void mhk__warn_unseen(const mhk__settings *s, const char *quiet) {
  mhk__mark mark = mhk__scratch_mark(s->ctx);
  mhk__list list;
  mhk__list_start(&list, s->ctx);
  for (const mhk__json *x = mhk__json_is(s->object, MHK__JSON_OBJECT) ? s->object->first : NULL;
       x && !mhk_failed(s->ctx); x = x->next)
    if (!x->seen && x->type != MHK__JSON_NULL && !mhk__has_word(quiet, x->key) && mhk__list_room(&list))
      mhk__write_bytes(&list.text, x->key, x->key_length < 60 ? x->key_length : 60);
  if (list.n)
    mhk__note(s->ctx, MHK_LOG_WARNING, "%s: unknown and ignored%s%s: %s", s->where,
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
  mhk_fail(s->ctx, MHK_ERROR_CONFIG, "%s: %s%s%s must be %s, but is %.60s", s->where, s->part, s->part[0] ? "." : "",
           key, wanted, found);
}

/* reads a count; fallback -1: it is required */
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

/* reads a number; also accepts infinities as transformers writes them: {"__float__": "Infinity"} */
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

/* Refuses an unsupported setting that would change what the model computes. */
static void mhk__setting_refuse(const mhk__settings *s, const char *key, const char *value, const char *known) {
  mhk_fail(s->ctx, MHK_ERROR_UNSUPPORTED, "%s: %s%s%s is \"%.60s\", which is not supported; supported: %s",
           s->where, s->part, s->part[0] ? "." : "", key, value, known);
}

static void mhk__refuse_quantized(const mhk__settings *s) {
  if (mhk__setting(s, "quantization_config"))
    mhk_fail(s->ctx, MHK_ERROR_UNSUPPORTED,
             "%s: quantization_config is set; this version reads weights of F32, F16 and BF16 only", s->where);
}

/* rope_parameters, or rope_scaling, its name in older versions of transformers, which takes
   precedence. Either may say that nothing is scaled. */
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
    mhk__setting_refuse(s, key, type->text ? type->text : "?", "the plain rotary embedding (\"default\")");
  else if (!type && mhk__setting(&r, "factor"))
    mhk__setting_refuse(s, key, "scaled", "the plain rotary embedding");
  return r;
}

/* [low, high] for step sizes */
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

/* ---- the keys of config.json, each once for reading and for writing */

enum {               /* what a key's value is */
  MHK__KEY_INT,      /* a field of mhk_config: a count, */
  MHK__KEY_REAL,     /* a number, */
  MHK__KEY_FLAG,     /* true or false */
  MHK__KEY_WORD,     /* one of those in words, which all mean the same; the first is written */
  MHK__KEY_ON,       /* only true is known */
  MHK__KEY_OFF,      /* only false is known, and it is not written */
  MHK__KEY_MLP,      /* a count, usually 4 d_model */
  MHK__KEY_LIMIT,    /* [dt_min, dt_max]: written where there is one */
  MHK__KEY_SILU,     /* "silu" or "identity" */
  MHK__KEY_ZERO,     /* written as 0.0; without effect */
  MHK__KEY_NONE,     /* written as null; what it may say instead is read by hand */
  /* read by hand, as all that follows from other keys too: */
  MHK__KEY_HEAD_DIM, /* written where the heads do not make up d_model */
  MHK__KEY_ROTARY,   /* the share of a head's features that rotate */
  MHK__KEY_EXPAND,   /* d_inner by d_model */
  MHK__KEY_UNUSUAL = 32 /* added: written only where it is not as usual */
};
#define MHK__NEEDED -1.0

typedef struct mhk__key {
  char name[24];
  unsigned char kind;
  size_t at;    /* of the field in mhk_config */
  double usual; /* its value where the key is missing and the field is still 0; MHK__NEEDED: an error */
  char words[40];
} mhk__key;

#define MHK__KEY(name, kind, field, usual) {name, MHK__KEY_##kind, offsetof(mhk_config, field), usual, ""}
#define MHK__KEY_OF(name, kind, words) {name, MHK__KEY_##kind, 0, 0, words}
#define MHK__KEYS(list) list, (int)(sizeof list / sizeof *list)

static const mhk__key mhk__attention_keys[] = { /* Phi's, and those of attention in a phi-mamba */
  MHK__KEY("hidden_size", INT, d_model, MHK__NEEDED),
  MHK__KEY("num_attention_heads", INT, n_head, 32),
  MHK__KEY("num_key_value_heads", INT, n_kv_head, 0), /* missing: as many as queries */
  MHK__KEY("head_dim", HEAD_DIM, head_dim, 0),
  MHK__KEY("max_position_embeddings", INT, max_position, 2048),
  MHK__KEY("layer_norm_eps", REAL, norm_eps, 1e-5),
  MHK__KEY("qk_layernorm", FLAG, qk_layernorm, 0),
  MHK__KEY_OF("attention_dropout", ZERO, ""),
  MHK__KEY("rope_theta", REAL, rope_theta, 10000),
  MHK__KEY("partial_rotary_factor", ROTARY, rotary_dim, 0),
  MHK__KEY_OF("rope_scaling", NONE, "")};
static const mhk__key mhk__phi_keys[] = { /* those of attention come after the first */
  MHK__KEY("num_hidden_layers", INT, n_layer, MHK__NEEDED),
  MHK__KEY("intermediate_size", INT, d_mlp, MHK__NEEDED),
  MHK__KEY_OF("hidden_act", WORD, "gelu_new gelu_pytorch_tanh gelu_fast"),
  MHK__KEY_OF("embd_pdrop", ZERO, ""),
  MHK__KEY_OF("resid_pdrop", ZERO, ""),
  MHK__KEY("tie_word_embeddings", FLAG, tie_embeddings, 0)};
static const mhk__key mhk__mamba2_keys[] = { /* Mamba-2 of transformers */
  MHK__KEY("num_hidden_layers", INT, n_layer, MHK__NEEDED),
  MHK__KEY("hidden_size", INT, d_model, MHK__NEEDED),
  MHK__KEY("num_heads", INT, ssm_heads, 128),
  MHK__KEY("head_dim", INT, ssm_head_dim, 64),
  MHK__KEY("state_size", INT, d_state, 128),
  MHK__KEY("n_groups", INT, ssm_groups, 8),
  MHK__KEY_OF("expand", EXPAND, ""),
  MHK__KEY("conv_kernel", INT, d_conv, 4),
  MHK__KEY("chunk_size", INT, chunk_size, 256),
  MHK__KEY("use_bias", FLAG, proj_bias, 0),
  MHK__KEY("use_conv_bias", FLAG, conv_bias, 1),
  MHK__KEY_OF("hidden_act", WORD, "silu swish"),
  MHK__KEY("layer_norm_epsilon", REAL, norm_eps, 1e-5),
  MHK__KEY_OF("rms_norm", ON, ""),
  MHK__KEY_OF("time_step_limit", LIMIT, ""),
  MHK__KEY("tie_word_embeddings", FLAG, tie_embeddings, 0),
  MHK__KEY_OF("norm_before_gate", OFF, "")};
static const mhk__key mhk__state_spaces_keys[] = { /* state-spaces' own, which is read only, */
  MHK__KEY("n_layer", INT, n_layer, MHK__NEEDED),
  MHK__KEY("d_model", INT, d_model, MHK__NEEDED),
  MHK__KEY("tie_embeddings", FLAG, tie_embeddings, 1),
  MHK__KEY_OF("rms_norm", ON, "")};
static const mhk__key mhk__ssm_cfg_keys[] = { /* and its ssm_cfg */
  MHK__KEY("headdim", INT, ssm_head_dim, 64),
  MHK__KEY("ngroups", INT, ssm_groups, 1),
  MHK__KEY("d_state", INT, d_state, 128),
  MHK__KEY("d_conv", INT, d_conv, 4),
  MHK__KEY("chunk_size", INT, chunk_size, 256),
  MHK__KEY("conv_bias", FLAG, conv_bias, 1),
  MHK__KEY("bias", FLAG, proj_bias, 0),
  MHK__KEY_OF("dt_limit", LIMIT, ""),
  MHK__KEY_OF("D_has_hdim", OFF, ""),
  MHK__KEY_OF("rmsnorm", ON, ""),
  MHK__KEY_OF("norm_before_gate", OFF, "")};
static const mhk__key mhk__mixer_model_keys[] = { /* phi-mamba: what its authors fix is written where it differs */
  MHK__KEY("d_model", INT, d_model, MHK__NEEDED),
  MHK__KEY("n_layer", INT, n_layer, MHK__NEEDED),
  MHK__KEY_OF("lm_head_prenorm", WORD, "layer"),
  MHK__KEY("d_mlp", MLP + MHK__KEY_UNUSUAL, d_mlp, 0),
  MHK__KEY("layer_norm_eps", REAL + MHK__KEY_UNUSUAL, norm_eps, 1e-5)};
static const mhk__key mhk__discrete_keys[] = { /* core_input of its state-space blocks */
  MHK__KEY("d_state", INT, d_state, 64),
  MHK__KEY("n_v_heads", INT, ssm_heads, 32),
  MHK__KEY("n_qk_heads", INT, ssm_groups, 32),
  MHK__KEY("d_conv", INT, d_conv, 4),
  MHK__KEY("conv_bias", FLAG, conv_bias, 1),
  MHK__KEY("expand", EXPAND, ssm_head_dim, 0),
  MHK__KEY("chunk_size", INT, chunk_size, 128),
  MHK__KEY("activation", SILU, conv_silu, 0),
  MHK__KEY("bias", FLAG, proj_bias, 0),
  MHK__KEY("rotary_dim", INT + MHK__KEY_UNUSUAL, ssm_rotary_dim, 0)};

/* Reads what can be read without other keys. */
static void mhk__keys_read(const mhk__settings *s, const mhk__key *keys, int n, mhk_config *c) {
  for (const mhk__key *k = keys; k < keys + n; k++) {
    void *field = (char *)c + k->at;
    const int kind = k->kind % MHK__KEY_UNUSUAL;
    if (kind == MHK__KEY_INT || kind == MHK__KEY_MLP) {
      const double usual = kind == MHK__KEY_INT ? k->usual : c->d_model <= INT_MAX / 4 ? 4.0 * c->d_model : 0;
      int *x = (int *)field;
      *x = mhk__setting_int(s, k->name, *x ? *x : (int)usual);
    } else if (kind == MHK__KEY_REAL) {
      double *x = (double *)field;
      *x = mhk__setting_double(s, k->name, *x > 0 ? *x : k->usual);
    } else if (kind == MHK__KEY_FLAG)
      *(int *)field = mhk__setting_flag(s, k->name, (int)k->usual);
    else if (kind == MHK__KEY_ON || kind == MHK__KEY_OFF) {
      const int only = kind == MHK__KEY_ON;
      if (mhk__setting_flag(s, k->name, only) != only)
        mhk__setting_refuse(s, k->name, only ? "false" : "true", only ? "true" : "false");
    } else if (kind == MHK__KEY_WORD || kind == MHK__KEY_SILU) {
      const mhk__json *x = mhk__setting(s, k->name);
      const char *words = kind == MHK__KEY_WORD ? k->words : "silu swish", *word = mhk__json_string(x) ? x->text : "";
      char first[32], known[40];
      mhk__print(known, sizeof known, "\"%s\"", mhk__first_word(words, first));
      if (kind == MHK__KEY_SILU) *(int *)field = mhk__has_word(words, word);
      if (x && !mhk__has_word(words, word) && !(kind == MHK__KEY_SILU && strcmp(word, "identity") == 0))
        mhk__setting_refuse(s, k->name, x->text ? x->text : "?",
                            kind == MHK__KEY_SILU ? "\"identity\" and \"silu\"" : known);
    } else if (kind == MHK__KEY_LIMIT)
      mhk__parse_limit(s, k->name, c);
    else if (kind == MHK__KEY_ZERO)
      mhk__setting(s, k->name);
  }
}

/* the fields of these keys from one configuration to another */
static void mhk__keys_copy(const mhk__key *keys, int n, const mhk_config *from, mhk_config *to) {
  for (const mhk__key *k = keys; k < keys + n; k++)
    if (k->at)
      memcpy((char *)to + k->at, (const char *)from + k->at,
             k->kind % MHK__KEY_UNUSUAL == MHK__KEY_REAL ? sizeof(double) : sizeof(int));
}

/* the attention settings of a Phi, in config.json or in a phi_attention block */
static void mhk__parse_attention(const mhk__settings *s, mhk_config *c) {
  const mhk__json *head_dim = mhk__setting(s, "head_dim");
  const mhk__settings r = mhk__parse_rope(s);
  mhk__keys_read(s, MHK__KEYS(mhk__attention_keys), c);
  if (!mhk__setting(s, "num_key_value_heads")) c->n_kv_head = c->n_head;
  if (mhk__setting(&r, "rope_theta")) c->rope_theta = mhk__setting_double(&r, "rope_theta", 0);
  double factor = mhk__setting_double(s, "partial_rotary_factor", 0.5);
  if (mhk__setting(&r, "partial_rotary_factor")) factor = mhk__setting_double(&r, "partial_rotary_factor", 0);
  mhk__warn_unseen(&r, "");
  if (head_dim)
    c->head_dim = mhk__setting_int(s, "head_dim", -1);
  else if (c->n_head < 1 || c->d_model % c->n_head)
    mhk_fail(s->ctx, MHK_ERROR_CONFIG,
             "%s: hidden_size %d cannot be divided into %d attention heads (num_attention_heads)",
             s->where, c->d_model, c->n_head);
  else
    c->head_dim = c->d_model / c->n_head;
  if (!(factor >= 0 && factor <= 1)) {
    char number[32];
    mhk__format_double(factor, number);
    mhk_fail(s->ctx, MHK_ERROR_CONFIG, "%s: partial_rotary_factor is %s: it must be between 0 and 1", s->where,
             number);
  } else
    c->rotary_dim = (int)(factor * c->head_dim); /* truncated, as in transformers */
}

/* settings that transformers writes to every config.json: names and types, training, how its own
   code runs; ends of text are read with the model */
#define MHK__QUIET \
  "_name_or_path architectures auto_map bos_token_id chunk_size_feed_forward dtype eos_token_id id2label " \
  "initializer_range " \
  "is_encoder_decoder label2id model_type output_attentions output_hidden_states pad_token_id problem_type " \
  "return_dict " \
  "torch_dtype transformers_version use_cache "

static void mhk__parse_phi(const mhk__settings *s, mhk_config *c) {
  c->arch = MHK_ARCH_PHI;
  mhk__refuse_quantized(s);
  mhk__keys_read(s, mhk__phi_keys, 1, c);
  mhk__parse_attention(s, c);
  c->vocab_size = mhk__setting_int(s, "vocab_size", -1);
  mhk__keys_read(s, MHK__KEYS(mhk__phi_keys), c);
  for (int l = 0; l < c->n_layer && l < MHK_MAX_LAYERS; l++) c->mixer[l] = MHK_MIXER_ATTENTION;
  mhk__warn_unseen(s, MHK__QUIET);
}

/* d_inner = expand * d_model, a whole number that is divisible by `by`, the setting named what;
   otherwise 0 with an error */
static int mhk__parse_inner(const mhk__settings *s, const mhk_config *c, double fallback, int by, const char *what) {
  const double expand = mhk__setting_double(s, "expand", fallback), inner = expand * c->d_model;
  char number[32];
  if (by >= 1 && inner >= 1 && inner < (1 << 24) && fabs(inner - floor(inner + 0.5)) <= 1e-6 &&
      (int)(inner + 0.5) % by == 0)
    return (int)(inner + 0.5);
  mhk__format_double(expand, number);
  return mhk__no(s->ctx, MHK_ERROR_CONFIG, "%s: %s: expand %s of d_model %d cannot be divided into heads: %s is %d",
                 s->where, s->part, number, c->d_model, what, by);
}

/* vocab_size padded to a multiple, as the authors' code of both state-space models does for the
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

/* config.json of mamba_ssm. It has no field for the eps of its norms, which is 1e-5. */
static void mhk__parse_state_spaces(const mhk__settings *s, mhk_config *c) {
  const mhk__settings ssm = mhk__settings_of(s->ctx, mhk__setting(s, "ssm_cfg"), s->where, "ssm_cfg");
  const mhk__json *layer = mhk__setting(&ssm, "layer"), *attention = mhk__setting(s, "attn_layer_idx");
  c->arch = MHK_ARCH_MAMBA2;
  if (!mhk__json_equals(layer, "Mamba2"))
    mhk_fail(
        s->ctx, MHK_ERROR_UNSUPPORTED,
        "%s describes a Mamba-1 (its ssm_cfg has %s%.60s%s for layer); only Mamba-2 (\"Mamba2\") is supported",
        s->where, layer ? "\"" : "nothing", layer && layer->text ? layer->text : "", layer ? "\"" : "");
  if (attention && attention->count)
    mhk_fail(s->ctx, MHK_ERROR_UNSUPPORTED,
             "%s: attn_layer_idx names %lld layers of attention; hybrids of Mamba-2 and attention are not supported",
             s->where, (long long)attention->count);
  if (mhk__setting_int(s, "d_intermediate", 0) > 0)
    mhk_fail(s->ctx, MHK_ERROR_UNSUPPORTED,
             "%s: d_intermediate is %d: a Mamba-2 with MLPs between its layers is not supported", s->where,
             mhk__setting_int(s, "d_intermediate", 0));
  mhk__keys_read(s, MHK__KEYS(mhk__state_spaces_keys), c);
  mhk__keys_read(&ssm, MHK__KEYS(mhk__ssm_cfg_keys), c);
  mhk__parse_vocabulary(s, 8, c);
  c->pad_vocab_multiple = 0; /* saved by transformers, which stores the actual number of rows */
  c->norm_eps = 1e-5;
  c->conv_silu = 1;
  const int inner = mhk__parse_inner(&ssm, c, 2, c->ssm_head_dim, "headdim");
  c->ssm_heads = c->ssm_head_dim > 0 ? inner / c->ssm_head_dim : 0;
  const int d_ssm = mhk__setting_int(&ssm, "d_ssm", inner);
  if (d_ssm != inner)
    mhk_fail(s->ctx, MHK_ERROR_UNSUPPORTED, "%s: ssm_cfg.d_ssm is %d: only d_inner, here %d, is supported", s->where,
             d_ssm, inner);
  for (int l = 0; l < c->n_layer && l < MHK_MAX_LAYERS; l++) c->mixer[l] = MHK_MIXER_MAMBA2;
  mhk__warn_unseen(s, MHK__QUIET "attn_cfg fused_add_norm residual_in_fp32");
  mhk__warn_unseen(&ssm, "A_init_range conv_init device dt_init_floor dt_max dt_min dtype layer_idx process_group "
                         "sequence_parallel use_mem_eff_path");
}

/* reads the config.json of a Mamba2ForCausalLM */
static void mhk__parse_mamba2(const mhk__settings *s, mhk_config *c) {
  c->arch = MHK_ARCH_MAMBA2;
  mhk__refuse_quantized(s);
  mhk__keys_read(s, MHK__KEYS(mhk__mamba2_keys), c);
  c->vocab_size = mhk__setting_int(s, "vocab_size", -1);
  c->conv_silu = 1;
  const double expand = mhk__setting_double(s, "expand", 2);
  if (!(fabs(expand * c->d_model - (double)c->ssm_heads * c->ssm_head_dim) < 0.5)) {
    char number[32];
    mhk__format_double(expand, number);
    mhk_fail(s->ctx, MHK_ERROR_CONFIG, "%s: expand %s of hidden_size %d is not num_heads %d times head_dim %d",
             s->where, number, c->d_model, c->ssm_heads, c->ssm_head_dim);
  }
  for (int l = 0; l < c->n_layer && l < MHK_MAX_LAYERS; l++) c->mixer[l] = MHK_MIXER_MAMBA2;
  mhk__warn_unseen(
      s, MHK__QUIET
      "rescale_prenorm_residual residual_in_fp32 time_step_floor time_step_max time_step_min time_step_rank");
}

/* reads the core_input of one block into c, which already has the settings of the blocks before */
static void mhk__parse_discrete(const mhk__settings *s, mhk_config *c) {
  mhk__keys_read(s, MHK__KEYS(mhk__discrete_keys), c);
  if (c->ssm_rotary_dim) c->rope_theta = mhk__setting_double(s, "rope_theta", 10000.0);
  const int inner = mhk__parse_inner(s, c, 1, c->ssm_heads, "n_v_heads");
  if (c->ssm_heads > 0) c->ssm_head_dim = inner / c->ssm_heads;
  mhk__warn_unseen(s, "d_model device dtype layer_idx rope_theta");
}

/* What a phi-mamba's blocks have said so far: the settings of their two kinds, one each for all
   layers. */
typedef struct mhk__blocks {
  mhk_config attention, ssm; /* with zeros between the fields: they are compared as bytes */
  int have_attention, have_ssm, layers;
} mhk__blocks;

/* one block of a phi-mamba: a number of layers with one mixer */
static void mhk__parse_block(const mhk__settings *block, mhk_config *c, mhk__blocks *found) {
  mhk_context *ctx = block->ctx;
  const mhk__json *core = mhk__setting(block, "CoreType"), *type = mhk__setting(block, "BlockType");
  const int attention = mhk__json_equals(core, "modules.mixers.phi_attention");
  mhk_config one, *first = attention ? &found->attention : &found->ssm;
  int n = mhk__setting_int(block, "n_layers", 1), *have = attention ? &found->have_attention : &found->have_ssm;
  char part[64];
  mhk__print(part, sizeof part, "%.40s.core_input", block->part);
  const mhk__settings input = mhk__settings_of(ctx, mhk__json_get(block->object, "core_input"), block->where, part);
  if (type && !mhk__json_equals(type, "modules.phi_block"))
    mhk__setting_refuse(block, "BlockType", type->text ? type->text : "?", "\"modules.phi_block\"");
  if (!attention && !mhk__json_equals(core, "modules.mixers.discrete_mamba2"))
    mhk__setting_refuse(block, "CoreType", core && core->text ? core->text : "missing",
                        "\"modules.mixers.discrete_mamba2\" and \"modules.mixers.phi_attention\"");
  if (n > MHK_MAX_LAYERS - found->layers)
    mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "%s: more than %d layers", block->where, MHK_MAX_LAYERS);
  if (mhk_failed(ctx)) return;
  memset(&one, 0, sizeof one);
  one.d_model = c->d_model;
  if (attention) {
    one.norm_eps = c->norm_eps;
    mhk__parse_attention(&input, &one);
    if (one.d_model != c->d_model)
      mhk_fail(ctx, MHK_ERROR_CONFIG, "%s: %s.hidden_size is %d, d_model is %d: they must be equal", block->where,
               part, one.d_model, c->d_model);
    if (one.qk_layernorm && one.norm_eps != c->norm_eps)
      mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "%s: %s.layer_norm_eps differs from the other norms'", block->where, part);
    if (!c->max_position) c->max_position = mhk__setting_int(&input, "max_position_embeddings", 0);
    one.norm_eps = c->norm_eps; /* these need not be those of other blocks */
    one.max_position = c->max_position;
    mhk__warn_unseen(&input, MHK__QUIET "attn_type layer_idx");
  } else
    mhk__parse_discrete(&input, &one);
  if (!*have) memcpy(first, &one, sizeof one);
  *have = 1;
  mhk__warn_unseen(block, "block_input core_input");
  if (!mhk_failed(ctx) && memcmp(&one, first, sizeof one) != 0)
    mhk_fail(ctx, MHK_ERROR_UNSUPPORTED,
             "%s: %s differs from an earlier block of its kind; this version supports one value for all of them",
             block->where, part);
  while (n-- > 0 && !mhk_failed(ctx))
    c->mixer[found->layers++] = attention ? MHK_MIXER_ATTENTION : MHK_MIXER_DISCRETE_MAMBA2;
}

static void mhk__parse_phi_mamba(mhk_context *ctx, const mhk__json *root, const char *where, mhk_config *c) {
  const mhk__json *language = mhk__json_get(mhk__json_get(root, "LanguageModel"), "input"),
                  *mixer = mhk__json_get(mhk__json_get(root, "MixerModel"), "input");
  const mhk__settings lm = mhk__settings_of(ctx, language, where, "LanguageModel.input"),
                      mm = mhk__settings_of(ctx, mixer, where, "MixerModel.input");
  mhk__blocks found;
  c->arch = MHK_ARCH_PHI_MAMBA;
  mhk__parse_vocabulary(&lm, 1, c);
  c->tie_embeddings = mhk__setting_flag(&lm, "tie_embeddings", 0);
  mhk__keys_read(&mm, MHK__KEYS(mhk__mixer_model_keys), c);
  c->max_position = mhk__setting_int(&mm, "max_position_embeddings", 0);
  mhk__warn_unseen(&lm, "");
  mhk__warn_unseen(&mm, "");
  memset(&found, 0, sizeof found);
  for (const mhk__json *b = root->first; b && !mhk_failed(ctx); b = b->next) {
    const mhk__settings block = mhk__settings_of(ctx, b, where, b->key);
    if (strncmp(b->key, "Block", 5) == 0) mhk__parse_block(&block, c, &found);
  }
  if (mhk_failed(ctx)) return;
  if (found.layers != c->n_layer) {
    mhk_fail(ctx, MHK_ERROR_CONFIG, "%s: the blocks have %d layers in total, but MixerModel.input.n_layer is %d", where,
             found.layers, c->n_layer);
    return;
  }
  if (found.have_attention) mhk__keys_copy(MHK__KEYS(mhk__attention_keys), &found.attention, c);
  if (found.have_ssm) {
    mhk__keys_copy(MHK__KEYS(mhk__discrete_keys), &found.ssm, c);
    if (c->ssm_rotary_dim && found.have_attention && c->rotary_dim && found.ssm.rope_theta != c->rope_theta)
      mhk_fail(ctx, MHK_ERROR_UNSUPPORTED,
               "%s: rope_theta differs between attention and state-space blocks; this version supports one value for "
               "both", where);
    if (c->ssm_rotary_dim) c->rope_theta = found.ssm.rope_theta;
  }
}

MHKDEF mhk_result mhk_config_parse(mhk_context *ctx, const char *json, size_t length, const char *where,
                                   mhk_config *config) {
  const mhk__json *type, *architecture;
  mhk_config c;
  char sentence[MHK__SENTENCE];
  if (mhk_failed(ctx)) return mhk_error(ctx);
  if (!json || !config)
    return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "mhk_config_parse: the text or the configuration is missing (NULL)");
  if (!where) where = "config.json";
  memset(&c, 0, sizeof c);
  mhk__mark mark = mhk__scratch_mark(ctx);
  const mhk__json *root = mhk__json_parse(ctx, &ctx->scratch, json, length, where, MHK__JSON_INFINITY);
  const mhk__json *outer = mhk__json_get(root, "config");
  if (mhk__json_is(outer, MHK__JSON_OBJECT) && !mhk__json_get(root, "model_type") && !mhk__json_get(root, "MixerModel"))
    root = outer;
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
               "%s describes %s%.60s%s; supported are PhiForCausalLM, Mamba2ForCausalLM, Mamba-2 of mamba_ssm "
               "(ssm_cfg) and phi-mamba (MixerModel, Block1, ...)",
               where, is ? "\"" : "a model without naming it", is ? is : "", is ? "\"" : "");
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

static void mhk__write_flag_key(mhk__writer *w, const char *key, int on) {
  mhk__write_word_key(w, key, on ? "true" : "false");
}

/* the fraction of a head that rotates, chosen so that truncating fraction * size gives the number
   of features */
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

static void mhk__write_limit(mhk__writer *w, const char *key, const mhk_config *c) {
  if (!(c->dt_min > 0 || c->dt_max > 0)) return; /* readers assume 0 to infinity, and JSON has no infinity */
  mhk__write_key(w, key);
  mhk__write_open(w, '[');
  mhk__write_item(w);
  mhk__write_double(w, c->dt_min);
  mhk__write_item(w);
  mhk__write_double(w, c->dt_max > 0 ? c->dt_max : 1e38); /* lets PyTorch compare float32 and bfloat16 */
  mhk__write_close(w, ']');
}

static void mhk__keys_write(mhk__writer *w, const mhk__key *keys, int n, const mhk_config *c) {
  for (const mhk__key *k = keys; k < keys + n; k++) {
    const int kind = k->kind % MHK__KEY_UNUSUAL, unusual = k->kind >= MHK__KEY_UNUSUAL;
    int whole = 0;
    double real = 0;
    char word[32];
    memcpy(&whole, (const char *)c + k->at, sizeof whole);
    if (kind == MHK__KEY_REAL) memcpy(&real, (const char *)c + k->at, sizeof real);
    switch (kind) {
      case MHK__KEY_INT:
        if (unusual && whole == (int)k->usual) break;
        mhk__write_int_key(w, k->name, whole > 0 || !(k->usual > 0) ? whole : (int)k->usual);
        break;
      case MHK__KEY_MLP:
        if (whole != 4 * (int64_t)c->d_model) mhk__write_int_key(w, k->name, whole);
        break;
      case MHK__KEY_REAL:
        if (!unusual || real < k->usual || real > k->usual) mhk__write_double_key(w, k->name, real);
        break;
      case MHK__KEY_FLAG: mhk__write_flag_key(w, k->name, whole); break;
      case MHK__KEY_ON: mhk__write_flag_key(w, k->name, 1); break;
      case MHK__KEY_ZERO: mhk__write_double_key(w, k->name, 0.0); break;
      case MHK__KEY_NONE: mhk__write_word_key(w, k->name, "null"); break;
      case MHK__KEY_SILU: mhk__write_string_key(w, k->name, whole ? "silu" : "identity"); break;
      case MHK__KEY_WORD:
        mhk__write_string_key(w, k->name, mhk__first_word(k->words, word));
        break;
      case MHK__KEY_HEAD_DIM:
        if ((int64_t)c->n_head * whole != c->d_model) mhk__write_int_key(w, k->name, whole);
        break;
      case MHK__KEY_ROTARY: mhk__write_double_key(w, k->name, mhk__rotary_factor(whole, c->head_dim)); break;
      case MHK__KEY_EXPAND: mhk__write_expand(w, c); break;
      case MHK__KEY_LIMIT: mhk__write_limit(w, k->name, c); break;
      default: break;
    }
  }
}

/* Writes the blocks of a phi-mamba config.json: one for each run of layers with the same mixer. */
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
      mhk__keys_write(w, MHK__KEYS(mhk__attention_keys), c);
      mhk__write_string_key(w, "attn_type", "eager");
    } else {
      mhk__keys_write(w, MHK__KEYS(mhk__discrete_keys), c);
      if (c->ssm_rotary_dim) mhk__write_double_key(w, "rope_theta", c->rope_theta);
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

/* dtype: type of the weights, 0 if unknown; m: the model whose ends of text are also written, or
   NULL */
static void mhk__write_config(mhk__writer *w, const mhk_config *c, mhk_dtype dtype, const mhk_model *m) {
  mhk__write_open(w, '{');
  if (c->arch == MHK_ARCH_PHI_MAMBA) {
    mhk__write_key(w, "LanguageModel");
    mhk__write_open(w, '{');
    mhk__write_key(w, "input");
    mhk__write_open(w, '{');
    mhk__write_int_key(w, "vocab_size", c->vocab_size);
    mhk__write_int_key(
        w, "pad_vocab_size_multiple",
        c->pad_vocab_multiple > 0 && c->vocab_size % c->pad_vocab_multiple == 0 ? c->pad_vocab_multiple : 1);
    if (c->tie_embeddings) mhk__write_flag_key(w, "tie_embeddings", 1);
    mhk__write_close(w, '}');
    mhk__write_close(w, '}');
    mhk__write_key(w, "MixerModel");
    mhk__write_open(w, '{');
    mhk__write_key(w, "input");
    mhk__write_open(w, '{');
    mhk__keys_write(w, MHK__KEYS(mhk__mixer_model_keys), c);
    if (c->max_position > 0 && !mhk__config_uses(c, MHK_MIXER_ATTENTION))
      mhk__write_int_key(w, "max_position_embeddings", c->max_position);
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
    if (phi) {
      mhk__keys_write(w, mhk__phi_keys, 1, c);
      mhk__keys_write(w, MHK__KEYS(mhk__attention_keys), c);
      mhk__write_key(w, "rope_parameters"); /* the same for transformers from version 5 */
      mhk__write_open(w, '{');
      mhk__write_double_key(w, "partial_rotary_factor", mhk__rotary_factor(c->rotary_dim, c->head_dim));
      mhk__write_double_key(w, "rope_theta", c->rope_theta);
      mhk__write_string_key(w, "rope_type", "default");
      mhk__write_close(w, '}');
      mhk__keys_write(w, mhk__phi_keys + 1, (int)(sizeof mhk__phi_keys / sizeof *mhk__phi_keys) - 1, c);
    } else
      mhk__keys_write(w, MHK__KEYS(mhk__mamba2_keys), c);
    if (m && mhk_tokenizer_start(m->tokenizer) >= 0)
      mhk__write_int_key(w, "bos_token_id", mhk_tokenizer_start(m->tokenizer));
    if (m && m->n_ends)
      mhk__write_ends(w, m->ends, m->n_ends);
    else if (m && mhk_tokenizer_end(m->tokenizer) >= 0)
      mhk__write_int_key(w, "eos_token_id", mhk_tokenizer_end(m->tokenizer));
    if (dtype)
      mhk__write_string_key(w, "torch_dtype",
                            dtype == MHK_F16    ? "float16"
                            : dtype == MHK_BF16 ? "bfloat16"
                                                : "float32");
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

#undef MHK__KEY
#undef MHK__KEY_OF
#undef MHK__KEYS
#undef MHK__NEEDED

/* ---- models: memory, creation */

/* Creates a model without weights: all tensors with names and shapes. */
static mhk_model *mhk__model_new(mhk_context *ctx, const mhk_config *config) {
  mhk_model *m = (mhk_model *)mhk__object_new(ctx, sizeof *m, NULL);
  mhk__spec s;
  if (!m) return NULL;
  m->config = *config;
  s.role = NULL;
  while (mhk__spec_next(config, &s)) m->n_tensors++;
  m->layers = (mhk__layer *)mhk__arena_zeros(ctx, &m->object.arena, config->n_layer, sizeof(mhk__layer));
  m->tensors = (mhk_tensor **)mhk__arena_zeros(ctx, &m->object.arena, m->n_tensors, sizeof(mhk_tensor *));
  mhk_tensor *tensors = (mhk_tensor *)mhk__arena_zeros(ctx, &m->object.arena, m->n_tensors, sizeof(mhk_tensor));
  for (int l = 0; l < config->n_layer && m->layers; l++) m->layers[l].kind = (mhk_mixer)config->mixer[l];
  s.role = NULL;
  for (int i = 0; !mhk_failed(ctx) && mhk__spec_next(config, &s); i++) {
    mhk_tensor *x = m->tensors[i] = *mhk__slot(m, &s) = &tensors[i];
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
/* Allocates memory for all tensors as MHK_REAL and for their gradients, which are one block in the
   order of the tensors. data and grads receive the pointers. */
static int mhk__model_memory(mhk_model *m, mhk_real **data, mhk_real **grads) {
  mhk_context *ctx = m->object.ctx;
  mhk_index total = 0;
  for (int i = 0; i < m->n_tensors; i++) {
    const mhk_index count = m->tensors[i]->count;
    if (total > PTRDIFF_MAX - count)
      return mhk__no(ctx, MHK_ERROR_MEMORY, "the model's %.0f weights do not fit in this machine's address space",
                     mhk_config_parameters(&m->config));
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
    x->quantized = NULL;
    x->requires_grad = 1;
    grads += x->count;
  }
  m->trainable = 1;
}

MHKDEF mhk_result mhk_model_make_trainable(mhk_model *m) {
  mhk_context *ctx;
  mhk_real *grads = NULL;
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

static void mhk__set_all(mhk_tensor *x, double value) {
  if (x)
    for (mhk_index i = 0; i < x->count; i++) mhk__d(x)[i] = (mhk_real)value;
}

/* initializes rows [first,first+rows) of a matrix, or elements of a vector, uniform in +-bound */
static void mhk__fill_uniform(mhk__rng *rng, mhk_tensor *x, mhk_index first, mhk_index rows, double bound) {
  if (!x) return;
  const mhk_index row = x->count / x->shape[0];
  mhk_real *p = (mhk_real *)x->data + first * row;
  for (mhk_index i = 0; i < rows * row; i++) p[i] = (mhk_real)((2.0 * mhk__rng_uniform(rng) - 1.0) * bound);
}

/* initializes the weight of a Linear as PyTorch does: uniform in +-1/sqrt(inputs); returns that
   bound */
static double mhk__fill_linear(mhk__rng *rng, mhk_tensor *weight) {
  const double bound = 1.0 / sqrt((double)(weight->count / weight->shape[0]));
  mhk__fill_uniform(rng, weight, 0, weight->shape[0], bound);
  return bound;
}

/* Initializes a tensor as its role says. *bound passes from a weight to the bias after it. */
static void mhk__draw(mhk__rng *rng, mhk_tensor *x, int start, double *bound) {
  mhk_real *at = (mhk_real *)x->data;
  switch (start) {
    case MHK__START_ONE: mhk__set_all(x, 1); break;
    case MHK__START_LINEAR: *bound = mhk__fill_linear(rng, x); break;
    case MHK__START_BIAS:
      if (*bound > 0) mhk__fill_uniform(rng, x, 0, x->count, *bound);
      *bound = 0;
      break;
    case MHK__START_NORMAL:
      for (mhk_index i = 0; i < x->count; i++) at[i] = (mhk_real)(0.02 * mhk__rng_normal(rng));
      break;
    case MHK__START_A_LOG:
      for (mhk_index i = 0; i < x->count; i++) at[i] = (mhk_real)log(1.0 + 15.0 * mhk__rng_uniform(rng));
      break;
    case MHK__START_DT_BIAS:
      for (mhk_index i = 0; i < x->count; i++) {
        const double dt = exp(log(0.001) + mhk__rng_uniform(rng) * (log(0.1) - log(0.001)));
        at[i] = (mhk_real)(dt + log(-expm1(-dt)));
      }
      break;
    default: mhk__set_all(x, 0); break;
  }
}

/* Initializes the tensors of a layer (owner < 0), or only those of one owner: matrices and
   constants first, then A_log, then dt_bias. */
static void mhk__draw_layer(mhk__rng *rng, mhk_model *m, int layer, int owner) {
  mhk__spec s;
  double bound = 0;
  for (int round = MHK__START_BIAS; round < MHK__STARTS; round++)
    for (int i = 0; i < MHK__ROLES; i++) {
      const mhk__role *r = &mhk__roles[i];
      const int its_round = r->start < MHK__START_BIAS ? (int)MHK__START_BIAS : (int)r->start;
      if (its_round == round && mhk__role_layered(r) && (owner < 0 || r->owner == owner) &&
          mhk__spec_of(&m->config, layer, r, &s))
        mhk__draw(rng, *mhk__slot(m, &s), r->start, &bound);
    }
}

/* Initializes linear layers and convolutions as PyTorch does, norms to 1 and 0, the embedding
   normally with standard deviation 0.02, and state-space mixers as published. */
MHKDEF mhk_model *mhk_model_create(mhk_context *ctx, const mhk_config *config, uint64_t seed) {
  mhk__rng rng;
  mhk__spec s;
  double bound = 0;
  mhk_real *grads = NULL;
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
  mhk__draw(&rng, m->embedding, MHK__START_NORMAL, &bound);
  for (int l = 0; l < config->n_layer; l++) mhk__draw_layer(&rng, m, l, -1);
  s.role = NULL;
  while (mhk__spec_next(config, &s))
    if (s.role->owner == MHK__OF_END) mhk__draw(&rng, *mhk__slot(m, &s), s.role->start, &bound);
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
MHKDEF int mhk_model_count(const mhk_model *m) { return m ? m->n_tensors : 0; }
MHKDEF mhk_tensor *mhk_model_at(const mhk_model *m, int i) {
  return m && i >= 0 && i < m->n_tensors ? m->tensors[i] : NULL;
}

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

/* n ids, or room for them if ids is NULL */
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
    return mhk_fail(m->object.ctx, MHK_ERROR_ARGUMENT, "a model cannot have %d ends of text: 0 to 1000 are allowed", n);
  for (int i = 0; i < n; i++)
    if (ids[i] < 0)
      return mhk_fail(m->object.ctx, MHK_ERROR_ARGUMENT, "the end of text %d is not a token: ids start at 0",
                      (int)ids[i]);
  mhk__model_put_ends(m, ids, n, 1);
  return mhk_error(m->object.ctx);
}

/* Gives the model a tokenizer, which the model destroys if it owns it. */
static void mhk__model_adopt_tokenizer(mhk_model *m, mhk_tokenizer *k, int owns) {
  if (m->owns_tokenizer && m->tokenizer != k) mhk_tokenizer_destroy(m->tokenizer);
  m->owns_tokenizer = k && (owns || (m->owns_tokenizer && m->tokenizer == k));
  m->tokenizer = k;
  if (k && !m->ends) mhk__model_put_ends(m, NULL, 0, 0);
  if (k && mhk_tokenizer_size(k) > m->config.vocab_size)
    mhk__note(
        m->object.ctx, MHK_LOG_WARNING,
        "the tokenizer has ids up to %d, but the model's vocabulary ends at %d: the model cannot read the ids in "
        "between",
        mhk_tokenizer_size(k) - 1, m->config.vocab_size - 1);
}

MHKDEF mhk_result mhk_model_set_tokenizer(mhk_model *m, mhk_tokenizer *k) {
  if (!m) return MHK_ERROR_ARGUMENT;
  if (mhk_failed(m->object.ctx)) return mhk_error(m->object.ctx);
  mhk__model_adopt_tokenizer(m, k, 0);
  return mhk_error(m->object.ctx);
}

#if !defined(MOHAWK_NO_TRAINING) || !defined(MOHAWK_NO_STDIO)
/* Copies what a model has besides weights: tokenizer and ends of text. Returns 0 on failure. */
static int mhk__model_follow(mhk_model *copy, const mhk_model *m) {
  mhk_context *ctx = copy->object.ctx;
  if (m->ends && !mhk_failed(ctx)) mhk__model_put_ends(copy, m->ends, m->n_ends, m->ends_exact);
  if (m->tokenizer && !mhk_failed(ctx)) copy->tokenizer = mhk__tokenizer_copy(ctx, m->tokenizer);
  copy->owns_tokenizer = copy->tokenizer != NULL;
  return !mhk_failed(ctx);
}
#endif

/* ---- loading */

/* Returns whether an unused tensor would exist under other settings, such as one more layer or a
   bias that config.json omits. Then file and configuration contradict each other, and ignoring the
   tensor would give another model. */
static int mhk__tensor_contradicts(const mhk_config *c, const char *name) {
  const char *root = mhk__arch_of(c)->root;
  char tail[48];
  int layered = 0;
  if (strncmp(name, root, strlen(root)) == 0 && name[strlen(root)] == '.') name += strlen(root) + 1;
  if (strncmp(name, "layers.", 7) == 0) {
    const size_t digits = strspn(name + 7, "0123456789");
    if (digits == 0 || name[7 + digits] != '.') return 0;
    name += 8 + digits;
    layered = 1;
  }
  for (int i = 0; i < MHK__ROLES; i++) {
    mhk__role_name(c, &mhk__roles[i], tail);
    if (layered == mhk__role_layered(&mhk__roles[i]) && strcmp(name, tail) == 0) return 1;
  }
  return 0;
}

/* The tensor of s by its name in this file: the embedding of a Mamba-2 has different names in
   transformers and in the authors' code. */
static void mhk__spec_in_file(const mhk_file *f, const mhk_config *c, mhk__spec *s) {
  if (s->role->named == MHK__NAMED_EMBEDDING && c->arch == MHK_ARCH_MAMBA2 && mhk__file_index(f, s->name) < 0)
    strcpy(s->name, "backbone.embedding.weight");
}

/* The parts of a quantized matrix in a file: NAME, NAME_scale and perhaps NAME_rest. */
typedef struct mhk__q_parts { const mhk_stored *q, *scale, *rest; } mhk__q_parts;

static const mhk_stored *mhk__file_part(const mhk_file *f, const char *name, const char *part) {
  char whole[128];
  mhk__print(whole, sizeof whole, "%s_%s", name, part);
  return mhk_file_find(f, whole);
}

static int mhk__has_shape(const mhk_stored *x, mhk_dtype dtype, int rank, mhk_index a, mhk_index b, mhk_index c,
                          mhk_index d) {
  return x && x->dtype == dtype && x->rank == rank && x->shape[0] == a && x->shape[1] == b && x->shape[2] == c &&
         x->shape[3] == d;
}

/* Returns whether the tensor of s is quantized in the file (see mhk_quantized). If its parts do not
   fit, `wrong` says how. */
static int mhk__find_quantized(const mhk_file *f, const mhk__spec *s, mhk__q_parts *p, char *wrong, size_t room) {
  const mhk_index N = s->shape[0], K = s->shape[1];
  mhk_index rest;
  wrong[0] = 0;
  memset(p, 0, sizeof *p);
  p->q = mhk_file_find(f, s->name);
  if (!p->q || (p->q->dtype != MHK_I8 && p->q->dtype != MHK_U8) || p->q->rank != 4 || !mhk__role_is_matrix(s->role))
    return 0;
  p->scale = mhk__file_part(f, s->name, "scale");
  p->rest = mhk__file_part(f, s->name, "rest");
  rest = p->rest ? p->rest->shape[0] : 0;
  const mhk_index each = p->q->dtype == MHK_I8 ? 4 : 8;
  const mhk_index groups = p->scale ? p->scale->shape[1] : 0;
  const mhk_index blocks = rest < N ? mhk__q_blocks(N - rest) : 0;
  if (p->rest && (rest >= N || !mhk__has_shape(p->rest, MHK_F32, 2, rest, K, 1, 1)))
    mhk__print(wrong, room, "%s_rest must be F32 with fewer than %lld rows of %lld", s->name, (long long)N,
               (long long)K);
  else if (groups < 1 || K % groups || (K / groups != 32 && K / groups != 64) ||
           !mhk__has_shape(p->scale, MHK_F16, 3, blocks, groups, MHK__Q_ROWS, 1))
    mhk__print(wrong, room, "%s is quantized and needs %s_scale of type F16 and shape (%lld,%lld / 32 or 64,%d)",
               s->name, s->name, (long long)blocks, (long long)K, MHK__Q_ROWS);
  else if (!mhk__has_shape(p->q, p->q->dtype, 4, blocks, K / each, MHK__Q_ROWS, 4))
    mhk__print(wrong, room, "%s is quantized and must have the shape (%lld,%lld,%d,4)", s->name, (long long)blocks,
               (long long)(K / each), MHK__Q_ROWS);
  return 1;
}

static void mhk__mark_used(const mhk_file *f, const mhk_stored *x, char *used) {
  if (x) used[mhk__file_index(f, x->name)] = 1;
}

/* reports how tensor s of the file does not match the model, if so */
static void mhk__match_one(mhk_model *m, const mhk_file *f, const mhk__spec *s, char *used, mhk__list *wrong) {
  const mhk_stored *x = mhk_file_find(f, s->name);
  mhk__q_parts parts;
  char have[160], want[160], reason[160], line[700];
  int k, ok;
  mhk__mark_used(f, x, used);
  if (mhk__find_quantized(f, s, &parts, line, sizeof line)) {
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
    mhk__print(line, sizeof line, "%s has type %s in %.200s; weights must be F32, F16, BF16 or F64", s->name,
               x->dtype ? mhk_dtype_name(x->dtype) : ((const mhk__stored *)(const void *)x)->type, shard);
  else
    mhk__print(line, sizeof line, "%s is %s in %.200s, but config.json asks for %s (%s)", s->name,
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

/* Compares the tensors of the file with the model. The error lists everything that does not match;
   unused tensors cause a warning. */
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
  s.role = NULL;
  while (mhk__spec_next(&m->config, &s)) {
    char name[sizeof s.name];
    strcpy(name, s.name);
    mhk__spec_in_file(f, &m->config, &s);
    if (mhk__file_index(f, s.name) >= 0)
      mhk__match_one(m, f, &s, used, &shapes);
    else if (mhk__list_room(&missing))
      mhk__write_text(&missing.text, name);
  }
  /* a copy of the embedding */
  if (m->config.tie_embeddings) mhk__mark_used(f, mhk_file_find(f, "lm_head.weight"), used);
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
    if (all.data) mhk_fail(ctx, MHK_ERROR_CONFIG, "%.200s does not match %.200s: %s", path, config_path, all.data);
  } else if (unused.n)
    mhk__note(ctx, MHK_LOG_WARNING, "%.200s has %d tensor%s that the model does not use: %s", path, unused.n,
              unused.n == 1 ? "" : "s", mhk__list_end(&unused));
  mhk__scratch_rewind(ctx, mark);
  return !mhk_failed(ctx);
}

/* Whether two tensors of a file have the same values. */
static int mhk__same_tensor(mhk_context *ctx, const mhk_stored *x, const mhk_stored *y) {
  mhk_real a[1024], b[1024];
  if (x->count != y->count || memcmp(x->shape, y->shape, sizeof x->shape) != 0 || !x->dtype || !y->dtype) return 0;
  if (x->dtype == y->dtype) return x->data == y->data || memcmp(x->data, y->data, x->bytes) == 0;
  for (mhk_index i = 0; i < x->count; i += 1024) {
    const mhk_index n = x->count - i < 1024 ? x->count - i : 1024;
    mhk__from_little(x->dtype, (const char *)x->data + (size_t)i * mhk_dtype_bytes(x->dtype), n, a);
    mhk__from_little(y->dtype, (const char *)y->data + (size_t)i * mhk_dtype_bytes(y->dtype), n, b);
    for (mhk_index k = 0; k < n; k++)
      if (!(a[k] == b[k])) return 0;
  }
  return !mhk_failed(ctx);
}

/* A separate head in the file is used even if the configuration ties it, as in transformers from
   version 5. */
static void mhk__untie_head(mhk_context *ctx, mhk_config *c, const mhk_file *f, const char *path,
                            const char *config_path) {
  const mhk_stored *head = mhk_file_find(f, "lm_head.weight"), *embedding;
  mhk__spec s;
  if (!c->tie_embeddings || !head || !mhk__spec_of(c, 0, mhk__roles, &s)) return;
  mhk__spec_in_file(f, c, &s);
  embedding = mhk_file_find(f, s.name);
  if (!embedding || mhk__same_tensor(ctx, head, embedding)) return;
  c->tie_embeddings = 0;
  mhk__note(ctx, MHK_LOG_WARNING,
            "%.200s ties lm_head.weight to the embedding, but %.200s has a different one, which is used", config_path,
            path);
}

/* Loads one tensor: mapped if the layout of the file can be used directly, otherwise copied. */
static int mhk__place_tensor(mhk_model *m, mhk_tensor *x, const mhk_stored *from, int matrix) {
  mhk_context *ctx = m->object.ctx;
  const size_t size = mhk_dtype_bytes(from->dtype);
  if (matrix && from->dtype != MHK_F64) {
    x->dtype = from->dtype;
    if (mhk__little_endian() && (uintptr_t)from->data % size == 0) {
      memcpy(&x->data, &from->data, sizeof x->data); /* frozen, so nothing writes to it */
      return 1;
    }
    x->data = mhk__arena_zeros(ctx, &m->object.arena, x->count, size);
    if (x->data) mhk__byte_swap(from->data, x->count, size, x->data);
  } else {
    x->dtype = MHK_REAL;
    x->data = mhk__arena_zeros(ctx, &m->object.arena, x->count, sizeof(mhk_real));
    if (x->data) mhk__from_little(from->dtype, from->data, x->count, (mhk_real *)x->data);
  }
  return x->data != NULL;
}

/* the same for a quantized matrix: integers are always used in place, scales and floats if the host
   has the byte order of the file */
static int mhk__place_quantized(mhk_model *m, mhk_tensor *x, const mhk__q_parts *p) {
  mhk_context *ctx = m->object.ctx;
  mhk_quantized *q = (mhk_quantized *)mhk__arena_zeros(ctx, &m->object.arena, 1, sizeof *q);
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
    mhk__from_little(MHK_F32, p->rest->data, p->rest->count, copy);
    q->rest = copy;
  }
  x->dtype = p->q->dtype == MHK_I8 ? MHK_Q8 : MHK_Q4;
  x->quantized = q;
  memcpy(&x->data, &q->q, sizeof x->data); /* frozen, so nothing writes to it */
  return 1;
}

/* Creates the model of a configuration with the weights of f, and takes ownership of f, even on
   failure. */
static mhk_model *mhk__model_from_file(mhk_context *ctx, const mhk_config *config, mhk_file *f, const char *path,
                                       const char *config_path) {
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
  s.role = NULL;
  for (int i = 0; mhk__spec_next(&c, &s); i++) {
    mhk__q_parts parts;
    char wrong[700];
    mhk__spec_in_file(f, &c, &s);
    if (mhk__find_quantized(f, &s, &parts, wrong, sizeof wrong)
            ? !mhk__place_quantized(m, m->tensors[i], &parts)
            : !mhk__place_tensor(m, m->tensors[i], parts.q, mhk__role_is_matrix(s.role))) {
      mhk_model_destroy(m);
      return NULL;
    }
  }
  return m;
}

/* Gives the model the tokenizer that was read; if reading it failed, the model stores the
   reason. */
static void mhk__model_got_tokenizer(mhk_model *m, mhk_tokenizer *k) {
  mhk_context *ctx = m->object.ctx;
  char why[sizeof ctx->message];
  if (k) mhk__model_adopt_tokenizer(m, k, 1);
  if (k || mhk_error(ctx) == MHK_ERROR_MEMORY) return;
  mhk__print(why, sizeof why, "%s", ctx->message);
  mhk_clear_error(ctx);
  m->tokenizer_error = mhk__arena_text(ctx, &m->object.arena, why, strlen(why));
  if (!m->tokenizer_error) m->tokenizer_error = "its tokenizer could not be read";
  mhk__note(ctx, MHK_LOG_WARNING, "the model is loaded without its tokenizer: %s", m->tokenizer_error);
}

/* Checks the settings of generation_config.json other than ends of text: sampling settings give a
   note, others that would change the text a warning. Zero, one, false and null have no effect. */
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
    mhk__note(s->ctx, MHK_LOG_INFO, "%s has sampling settings, which are ignored (mhk_sampling sets them): %s",
              s->where, mhk__list_end(&drawn));
  if (lost.n) mhk__note(s->ctx, MHK_LOG_WARNING, "%s: ignored: %s", s->where, mhk__list_end(&lost));
  mhk__scratch_rewind(s->ctx, mark);
}

/* reads eos_token_id of config.json and, after it, of generation_config.json: a token or a list of
   tokens */
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
        mhk__setting_wrong(&s, x, "eos_token_id", "a token id or a list of token ids");
        break;
      }
      if (id >= 0) m->ends[n++] = (int32_t)id; /* -1 says none */
    }
    m->n_ends = n;
  }
  if (root && root->type != MHK__JSON_OBJECT)
    mhk_fail(ctx, MHK_ERROR_FORMAT, "%s is not a JSON object of settings", where);
  if (generation && !mhk_failed(ctx)) mhk__generation_notes(&s);
  mhk__scratch_rewind(ctx, mark);
}

#ifndef MOHAWK_NO_STDIO
/* reads the rest of a model folder: generation_config.json and the tokenizer, if there are any */
static void mhk__pick_up_rest(mhk_model *m, const char *folder, const mhk_tokenizer_desc *tokenizer) {
  mhk_context *ctx = m->object.ctx;
  mhk__mark mark = mhk__scratch_mark(ctx);
  char path[MHK__PATH_MOST + 64];
  mhk__bytes bytes;
  if (mhk__join_path(path, sizeof path, folder, "generation_config.json") && mhk__is_file(path) &&
      mhk__bytes_read_or_fail(ctx, &ctx->scratch, path, &bytes))
    mhk__model_read_ends(m, (const char *)bytes.data, bytes.size, path, 1);
  mhk__scratch_rewind(ctx, mark);
  if (mhk_failed(ctx)) return;
  if (tokenizer)
    mhk__model_got_tokenizer(m, mhk_tokenizer_create(ctx, tokenizer));
  else if (mhk__tokenizer_file(folder, path, sizeof path) != MHK__TOKENIZER_NONE)
    mhk__model_got_tokenizer(m, mhk_tokenizer_load(ctx, folder[0] ? folder : "."));
}
#endif

/* Creates a model from a file that has the configuration, and perhaps the tokenizer, in its
   metadata; takes ownership of the file. NULL without an error: the file has no configuration. */
static mhk_model *mhk__model_in_one(mhk_context *ctx, mhk_file *f, const char *path) {
  char where[MHK__PATH_MOST + 64];
  mhk_config config;
  mhk_tokenizer_desc tokenizer;
  size_t length = 0;
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
  memset(&tokenizer, 0, sizeof tokenizer);
  tokenizer.json = m ? mhk_file_metadata(f, "tokenizer.json", &tokenizer.length) : NULL;
  if (tokenizer.json && !mhk_failed(ctx)) {
    tokenizer.config = mhk_file_metadata(f, "tokenizer_config.json", &tokenizer.config_length);
    mhk__model_got_tokenizer(m, mhk__tokenizer_from(ctx, &tokenizer, "tokenizer.json in the file",
                                                    "tokenizer_config.json in the file"));
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
    mhk_fail(ctx, MHK_ERROR_FORMAT,
             "%s has no config.json in its metadata: it is not a model that mhk_save() wrote as one file", name);
  }
  return m;
}

#ifndef MOHAWK_NO_STDIO
/* Loads the model of a folder. Saving another model to a folder removes config.json first and
   creates it last. If it is the same before the weights are opened and after everything is read,
   all files belong to one model. */
static mhk_model *mhk__load_folder(mhk_context *ctx, const char *folder, const char *path, const mhk_load_desc *desc) {
  char config_path[MHK__PATH_MOST + 64];
  mhk_model *m = NULL;
  mhk_config config;
  mhk__bytes before, after;
  mhk__join_path(config_path, sizeof config_path, folder, "config.json");
  mhk__bytes_read(ctx, &ctx->scratch, config_path, &before); /* errors are reported after the weights are loaded */
  mhk_file *f = desc->weights ? desc->weights : mhk__file_open(ctx, path, desc->read);
  if (!f) return NULL;
  int changed = !before.data && mhk__bytes_read_or_fail(ctx, &ctx->scratch, config_path, &before);
  if (before.data) mhk_config_parse(ctx, (const char *)before.data, before.size, config_path, &config);
  if (mhk_failed(ctx))
    mhk_file_close(f);
  else
    m = mhk__model_from_file(ctx, &config, f, path, config_path);
  if (m) mhk__model_read_ends(m, (const char *)before.data, before.size, config_path, 0);
  if (m && !mhk_failed(ctx)) mhk__pick_up_rest(m, folder, desc->tokenizer);
  if (!m || mhk_failed(ctx)) return m;
  changed = changed || mhk__bytes_read(ctx, &ctx->scratch, config_path, &after) || after.size != before.size ||
            memcmp(after.data, before.data, after.size);
  if (changed)
    mhk_fail(ctx, MHK_ERROR_FILE, "another model was saved to %s during loading: load it again", folder);
  return m;
}

MHKDEF mhk_model *mhk_load_with(mhk_context *ctx, const char *path, const mhk_load_desc *desc) {
  static const mhk_load_desc plain = {0, 0, NULL, NULL};
  char folder[MHK__PATH_MOST + 64];
  mhk_model *m = NULL;
  if (!desc) desc = &plain;
  if (!mhk__path_fits(ctx, path)) {
    mhk_file_close(desc->weights);
    return NULL;
  }
  const mhk__mark mark = mhk__scratch_mark(ctx);
  ctx->strict = desc->strict;
  strcpy(folder, path);
  if (!mhk__is_folder(path)) {
    mhk__folder_of(folder, sizeof folder, path);
    mhk_file *f = desc->weights ? NULL : mhk__file_open(ctx, path, desc->read);
    if (f) m = mhk__model_in_one(ctx, f, path);
    if (!m && !mhk_failed(ctx)) mhk_file_close(f); /* opened again once config.json has been read */
  }
  if (!m && !mhk_failed(ctx)) m = mhk__load_folder(ctx, folder, path, desc);
  mhk__scratch_rewind(ctx, mark);
  ctx->strict = 0;
  if (m && mhk_failed(ctx)) {
    mhk_model_destroy(m);
    return NULL;
  }
  return m;
}

MHKDEF mhk_model *mhk_load(mhk_context *ctx, const char *path) { return mhk_load_with(ctx, path, NULL); }
#endif

/* A fingerprint of a model: its configuration and, for each tensor, name, shape and up to 256
   values. It is the same on all machines. Only samples are used, so a large file is not read
   completely. */
static uint64_t mhk__model_hash(const mhk_model *m) {
  const mhk_config *c = &m->config;
  const int numbers[] = {(int)c->arch,      c->n_layer,        c->d_model,    c->vocab_size,   c->d_mlp,
                         c->tie_embeddings, c->n_head,         c->n_kv_head,  c->head_dim,     c->rotary_dim,
                         c->qk_layernorm,   c->ssm_heads,      c->ssm_groups, c->ssm_head_dim, c->d_state,
                         c->d_conv,         c->ssm_rotary_dim, c->conv_silu,  c->conv_bias,    c->proj_bias};
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
    const size_t size = mhk_dtype_bytes(x->dtype);
    const mhk_index stride = x->count > 256 ? x->count / 256 : 1;
    if (x->name) h = mhk__hash(h, x->name, strlen(x->name));
    for (mhk_index j = 0; j < x->rank; j++) {
      mhk__put_bytes(bytes, (uint64_t)x->shape[j], 8);
      h = mhk__hash(h, bytes, 8);
    }
    for (mhk_index j = 0; j < x->count; j += stride) {
      const unsigned char *at = (const unsigned char *)x->data + (size_t)j * size;
      if (x->quantized) {
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
/* ---- quantizing */

static float mhk__half_of(float v, uint16_t *half) {
  *half = mhk__half_f16(v);
  return mhk__f16_to_f32(*half);
}

static int mhk__round_within(float v, int low, int high) {
  const float limited = v < (float)low ? (float)low : v > (float)high ? (float)high : v;
  return (int)(limited < 0 ? limited - 0.5f : limited + 0.5f);
}

/* The scale of a group of n weights, and their integers; infinite if a weight is not finite. For
   MHK_Q4, the extreme weight is tried at many positions between 5.5 and 8.5, with either sign. For
   the resulting integers, the scale with the least squared error is known, and so is the error: sum
   x^2 - (sum x q)^2 / sum q^2. */
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

typedef struct mhk__q_making {
  const mhk_tensor *from;
  mhk_dtype dtype;
  mhk_index rows;
  int group;
  unsigned char *q;
  uint16_t *scale;
} mhk__q_making;

/* quantizes one block of 16 rows; work holds a row and the integers of a group */
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

/* makes x a copy of from with its first rows quantized */
static int mhk__q_make(mhk_model *m, mhk_tensor *x, const mhk_tensor *from, mhk_dtype dtype, int group,
                       mhk_index rows) {
  mhk_context *ctx = m->object.ctx;
  const mhk_index N = x->shape[0], K = x->shape[1], blocks = mhk__q_blocks(rows),
                  scales = blocks * (K / group) * MHK__Q_ROWS;
  mhk_quantized *q = (mhk_quantized *)mhk__arena_zeros(ctx, &m->object.arena, 1, sizeof *q);
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
      return mhk__no(
          ctx, MHK_ERROR_ARGUMENT,
          "%s cannot be quantized: a weight of row %lld is not finite, or too large for a half-precision scale",
          x->name, (long long)(i / MHK__Q_ROWS / (K / group) * MHK__Q_ROWS + i % MHK__Q_ROWS));
  if (rest) mhk_tensor_read(from, rows * K, (N - rows) * K, rest);
  q->q = a.q;
  q->scale = a.scale;
  q->rest = rest;
  q->rows = rows;
  q->group = group;
  x->dtype = dtype;
  x->data = a.q;
  x->quantized = q;
  return !mhk_failed(ctx);
}

static int mhk__any_quantized(const mhk_model *m) {
  for (int i = 0; i < m->n_tensors; i++)
    if (m->tensors[i]->quantized) return 1;
  return 0;
}

MHKDEF mhk_model *mhk_quantize(mhk_model *m, const mhk_quantize_desc *desc) {
  mhk_context *ctx;
  mhk_quantize_desc d;
  mhk__spec s;
  int i, ok = 1;
  if (!m) return NULL;
  ctx = m->object.ctx;
  if (mhk_failed(ctx)) return NULL;
  memset(&d, 0, sizeof d);
  if (desc) d = *desc;
  if ((int)d.type == 0) d.type = MHK_Q8;
  if ((int)d.ends == 0) d.ends = d.type;
  if (!mhk__is_quantized(d.type) || !mhk__is_quantized(d.ends) || (d.group != 0 && d.group != 32 && d.group != 64))
    return mhk__null(ctx, MHK_ERROR_ARGUMENT,
                     "weights can be quantized as Q8 or Q4 in groups of 32 or 64, not as %s and %s in groups of %d",
                     mhk_dtype_name(d.type), mhk_dtype_name(d.ends), d.group);
  mhk_model *out = mhk__model_new(ctx, &m->config);
  if (!out) return NULL;
  s.role = NULL;
  for (i = 0; ok && mhk__spec_next(&m->config, &s); i++) {
    const mhk_tensor *from = m->tensors[i];
    mhk_tensor *x = out->tensors[i];
    const mhk_dtype type = s.role->rows == MHK__SIZE_VOCAB ? d.ends : d.type;
    /* the rows that compute decays stay floats */
    const mhk_index rows = s.shape[0] - (s.role->rows == MHK__SIZE_PROJECTED ? m->config.ssm_heads : 0);
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
  if (!mhk__any_quantized(out))
    mhk__note(ctx, MHK_LOG_WARNING,
              "no matrix of the model can be quantized: rows must have a multiple of 32 elements");
  return out;
}
#endif

#ifndef MOHAWK_NO_STDIO
/* ---- saving */

/* writes a quantized matrix unchanged; returns how many of the three entries are used */
static int mhk__outgoing_quantized(mhk_context *ctx, mhk__outgoing *o, const mhk_tensor *x) {
  const mhk_quantized *q = x->quantized;
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
  mhk__outgoing_set(o, x->name, x->dtype == MHK_Q8 ? MHK_I8 : MHK_U8, x->dtype == MHK_Q8 ? MHK_I8 : MHK_U8, 4, shape,
                    q->q);
  mhk__outgoing_set(o + 1, names, MHK_F16, MHK_F16, 3, shape + 4, q->scale);
  if (!q->rest) return 2;
  mhk__outgoing_set(o + 2, names + room, MHK_F32, MHK_REAL, 2, shape + 7, q->rest);
  return 3;
}

/* config.json, tokenizer.json, tokenizer_config.json, generation_config.json: files of a folder or
   metadata of a single file */
#define MHK__SAVED_TEXTS 4

/* A file of a model folder other than the weights. text NULL: the model has none, and an old file
   must go. */
typedef struct mhk__beside {
  const char *text;
  size_t length;
  int changes;
  mhk__output out;
} mhk__beside;

/* Returns whether the file in the folder differs from the new text; if so, writes the new one under
   its temporary name. */
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

/* Makes the weights, which have a temporary name, and the texts the model of a folder. If more than
   the weights changes, config.json is removed first and created last, and no reader accepts the
   folder in between. */
static void mhk__folder_replace(mhk_context *ctx, const char *folder, mhk__output *weights, const char *const *texts,
                                const size_t *lengths) {
  /* files that are read if there is no tokenizer.json */
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
      mhk__note(ctx, MHK_LOG_WARNING, "removed %s, which belonged to another model", path[i]);
    }
  }
  mhk__flush_folder(path[0]);
  mhk__scratch_rewind(ctx, mark);
}

/* metadata and lengths: as for a single file, with NULL for texts that the model does not have */
static void mhk__save_folder(mhk_context *ctx, const char *folder, int n, const mhk__outgoing *list,
                             const char *const *metadata, const size_t *lengths) {
  char path[MHK__PATH_MOST + 64];
  mhk__output weights;
  mhk__lock lock;
  int error = mhk__make_folder(folder);
  if (error) {
    mhk_fail(ctx, MHK_ERROR_FILE, "cannot create the folder %s: %s", folder, strerror(error));
    return;
  }
  mhk__join_path(path, sizeof path, folder, "model.safetensors");
  mhk__file_put(ctx, &weights, path, n, list, 1, metadata, lengths);
  mhk__output_flush(&weights);
  if (mhk__output_ok(ctx, &weights)) {
    char name[MHK__PATH_MOST + 64];
    mhk__join_path(name, sizeof name, folder, "model.lock"); /* other savers wait */
    error = mhk__lock_acquire(&lock, name, 1);
    if (error)
      mhk_fail(ctx, MHK_ERROR_FILE, "cannot lock the folder %s with %s: %s", folder, name,
               mhk__file_reason(error));
    else
      mhk__folder_replace(ctx, folder, &weights, metadata + 2, lengths + 1);
    if (!error) mhk__lock_release(&lock);
  }
  mhk__output_close(&weights, 0); /* unless it has been */
}

/* generation_config.json: the ends of text; nothing if they are not known */
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
  if (dtype != MHK_F32 && dtype != MHK_F16 && dtype != MHK_BF16 && !mhk__is_quantized(dtype))
    return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "a model can be saved as F32, F16, BF16, Q8 or Q4, not as %s",
                    mhk_dtype_bytes(dtype) ? mhk_dtype_name(dtype) : "an unknown type");
  if (mhk__is_quantized(dtype) && !mhk__any_quantized(m)) {
    mhk_quantize_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.type = dtype;
    m = made = mhk_quantize(m, &desc);
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
    if (x->quantized && mhk__is_quantized(dtype))
      n += mhk__outgoing_quantized(ctx, list + n, x);
    else
      mhk__outgoing_set(list + n++, x->name, mhk__is_quantized(dtype) ? MHK_F32 : dtype, x->dtype, x->rank, x->shape,
                        x->quantized ? (const void *)x : x->data);
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
/* ---- students: weight transfer, initialization */

static int mhk__can_train(mhk_model *m, const char *what) {
  if (m->trainable) return 1;
  return mhk__no(m->object.ctx, MHK_ERROR_STATE,
                 "%s changes the student's weights, which are frozen: call mhk_model_make_trainable() first", what);
}

/* returns 1 if both are absent or the copy succeeds; an error if the shapes differ */
static int mhk__transfer(mhk_tensor *to, const mhk_tensor *from) {
  char a[160], b[160];
  if (!to || !from || to == from) return 1;
  if (to->rank != from->rank || memcmp(to->shape, from->shape, sizeof to->shape) != 0)
    return mhk__no(to->ctx, MHK_ERROR_SHAPE,
                   "cannot transfer weights: %s of the student is %s, %s of the teacher is %s", to->name,
                   mhk__shape_text(to->rank, to->shape, a, sizeof a), from->name,
                   mhk__shape_text(from->rank, from->shape, b, sizeof b));
  return mhk_tensor_read(from, 0, from->count, (mhk_real *)to->data) == MHK_OK;
}

static int mhk__same_depth(mhk_model *student, mhk_model *teacher) {
  if (student->config.n_layer == teacher->config.n_layer) return 1;
  return mhk__no(student->object.ctx, MHK_ERROR_CONFIG,
                 "the student has %d layers, the teacher %d: the numbers must be equal", student->config.n_layer,
                 teacher->config.n_layer);
}

MHKDEF mhk_result mhk_model_transfer(mhk_model *student, mhk_model *teacher) {
  mhk__spec s;
  if (!student || !teacher)
    return student ? mhk_fail(student->object.ctx, MHK_ERROR_ARGUMENT, "mhk_model_transfer needs a teacher")
                   : MHK_ERROR_ARGUMENT;
  if (mhk_failed(student->object.ctx)) return mhk_error(student->object.ctx);
  if (!mhk__can_train(student, "mhk_model_transfer") || !mhk__same_depth(student, teacher))
    return mhk_error(student->object.ctx);
  for (s.role = NULL; mhk__spec_next(&student->config, &s);)
    if (s.role->owner != MHK__OF_STATE_SPACE && !mhk__transfer(*mhk__slot(student, &s), *mhk__slot(teacher, &s))) break;
  return mhk_error(student->object.ctx);
}

/* Copies the heads of a teacher's projection to rows of `to` from `first`: `heads` blocks of `size`
   rows each. If the teacher has fewer heads, each goes to several. Returns 0 and does nothing if
   the sizes do not match. */
static int mhk__copy_heads(mhk_tensor *to, mhk_index first, int heads, int size, const mhk_tensor *from, int from_heads,
                           int from_size) {
  const mhk_index D = to->shape[1];
  if (!from || size != from_size || from_heads < 1 || heads % from_heads || from->shape[1] != D) return 0;
  for (int h = 0; h < heads; h++) {
    const mhk_index source = (mhk_index)(h / (heads / from_heads)) * size * D;
    mhk_tensor_read(from, source, size * D, (mhk_real *)to->data + (first + (mhk_index)h * size) * D);
  }
  return 1;
}

#define MHK__OPEN_GATE 1.278464542761 /* silu of this is 1 */

/* method: section 4 of Bick et al. 2024 (identity), and "The Mamba in the Llama" (attention) */
static void mhk__init_mixer(mhk__rng *rng, const mhk_config *c, mhk__layer *y, const mhk__layer *teacher,
                            const mhk_config *tc, int attention) {
  const mhk_index E = (mhk_index)c->ssm_heads * c->ssm_head_dim, GN = (mhk_index)c->ssm_groups * c->d_state;
  mhk__fill_linear(rng, y->in_w);
  mhk__set_all(y->in_b, 0);
  mhk__fill_uniform(rng, y->in_w, E + 2 * GN, E, 0); /* z */
  mhk__set_all(y->z_bias, MHK__OPEN_GATE);
  mhk__set_all(y->conv_w, 0);
  for (mhk_index i = 0; i < y->conv_w->shape[0]; i++) ((mhk_real *)y->conv_w->data)[(i + 1) * c->d_conv - 1] = 1;
  mhk__set_all(y->conv_b, 0);
  mhk__set_all(y->D, 1);
  mhk__fill_linear(rng, y->out_w);
  mhk__set_all(y->out_b, 0);
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
    return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "unknown initialization %d: use identity (1), attention (2) or random (3)",
                    (int)init);
  if (init == MHK_INIT_ATTENTION && !teacher)
    return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "initialization from attention needs the teacher");
  if (init == MHK_INIT_ATTENTION && !mhk__same_depth(student, teacher)) return mhk_error(ctx);
  mhk__rng_seed(&rng, seed);
  for (int l = 0; l < student->config.n_layer; l++) {
    mhk__layer *y = &student->layers[l];
    if (y->kind == MHK_MIXER_ATTENTION) continue;
    if (y->kind == MHK_MIXER_MAMBA2 || init == MHK_INIT_RANDOM)
      mhk__draw_layer(&rng, student, l, MHK__OF_STATE_SPACE);
    else
      mhk__init_mixer(&rng, &student->config, y, teacher ? &teacher->layers[l] : NULL,
                      teacher ? &teacher->config : NULL, init == MHK_INIT_ATTENTION);
  }
  return MHK_OK;
}

/* The configuration of a student: discrete Mamba-2 replaces all attention that is not kept, with as
   many heads of the same size as the teacher. Ignores kept layers that the teacher does not
   have. */
static mhk_config mhk__student_config(const mhk_config *teacher, const mhk_student_desc *d) {
  const mhk_config *t = teacher;
  mhk_config c;
  memcpy(&c, t, sizeof c);
  c.arch = MHK_ARCH_PHI_MAMBA;
  c.tie_embeddings = 0;
  c.pad_vocab_multiple = c.vocab_size % 8 == 0 ? 8 : 1; /* no padding: the same vocabulary as the teacher */
  for (int l = 0; l < c.n_layer; l++) c.mixer[l] = MHK_MIXER_DISCRETE_MAMBA2;
  for (int i = 0; i < d->n_keep_attention && d->keep_attention; i++)
    if (d->keep_attention[i] >= 0 && d->keep_attention[i] < c.n_layer)
      c.mixer[d->keep_attention[i]] = MHK_MIXER_ATTENTION;
  if (mhk__config_uses(&c, MHK_MIXER_DISCRETE_MAMBA2)) {
    c.ssm_heads = c.ssm_groups = t->n_head;
    c.ssm_head_dim = t->head_dim;
    c.d_state = d->d_state > 0 ? d->d_state : t->head_dim;
    c.d_conv = 4;
    c.chunk_size = d->chunk_size > 0 ? d->chunk_size : 128;
    c.conv_bias = 1;
    c.ssm_rotary_dim = d->rotary_dim < 0            ? 0
                       : d->rotary_dim              ? d->rotary_dim
                       : t->rotary_dim <= c.d_state ? t->rotary_dim
                                                    : c.d_state / 2 * 2;
  }
  if (!mhk__config_uses(&c, MHK_MIXER_ATTENTION)) {
    c.n_head = c.n_kv_head = c.head_dim = c.rotary_dim = c.qk_layernorm = 0;
    if (c.ssm_rotary_dim == 0) c.rope_theta = 0;
  }
  if (c.ssm_rotary_dim && t->rope_theta <= 0) c.rope_theta = 10000.0;
  return c;
}

MHKDEF mhk_model *mhk_student_create(mhk_context *ctx, mhk_model *teacher, const mhk_student_desc *desc) {
  mhk_student_desc d;
  if (mhk_failed(ctx)) return NULL;
  if (!teacher || mhk_failed(teacher->object.ctx))
    return mhk__null(ctx, MHK_ERROR_ARGUMENT, "mhk_student_create needs a teacher%s%s", teacher ? ": " : "",
                     teacher ? mhk_message(teacher->object.ctx) : "");
  memset(&d, 0, sizeof d);
  if (desc) d = *desc;
  const mhk_config *t = &teacher->config;
  if (t->arch != MHK_ARCH_PHI)
    return mhk__null(ctx, MHK_ERROR_UNSUPPORTED, "a student needs a Phi teacher; this one is a %s",
                     mhk__arch_of(t)->name);
  if (d.n_keep_attention < 0 || (d.n_keep_attention > 0 && !d.keep_attention) || d.d_state < 0 || d.rotary_dim < -1 ||
      d.chunk_size < 0)
    return mhk__null(ctx, MHK_ERROR_ARGUMENT,
                     "a student cannot have n_keep_attention %d%s, d_state %d, rotary_dim %d, chunk_size %d",
                     d.n_keep_attention, d.n_keep_attention > 0 && !d.keep_attention ? " with no list" : "", d.d_state,
                     d.rotary_dim, d.chunk_size);
  for (int i = 0; i < d.n_keep_attention; i++) {
    const int l = d.keep_attention[i];
    if (l < 0 || l >= t->n_layer)
      return mhk__null(ctx, MHK_ERROR_ARGUMENT, "cannot keep attention in layer %d: the teacher has layers 0 to %d",
                       l, t->n_layer - 1);
  }
  const mhk_config c = mhk__student_config(t, &d);
  mhk_model *m = mhk_model_create(ctx, &c, d.seed ? d.seed : 1);
  if (!m) return NULL;
  mhk_model_transfer(m, teacher);
  mhk_model_init_mixers(m, teacher, d.init, d.seed ? d.seed : 1);
  if (!mhk__model_follow(m, teacher)) { /* copies, so the teacher may be destroyed */
    mhk_model_destroy(m);
    return NULL;
  }
  return m;
}
#endif
#endif /* MOHAWK_IMPLEMENTATION */
#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS) && !defined(MOHAWK_NO_TRAINING)
/* =================================================================================================
   LAYERS: mixers, blocks, whole forward passes                                             >>layers
   ============================================================================================== */

/* ---- pieces of a mixer ---- */

/* The inputs of a mixer's core. State-space: x (B,T,H,P), log_a (B,T,H), Bm and Cm (B,T,G,N) after
   convolution and rotary, z (B,T,E), and for Mamba-2 the step sizes dt (B,T,H). Attention: q, k, v
   (B,T,heads,P) after q/k norm and rotary. matrix_only skips what the mixing matrix does not
   need. */
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

static mhk_tensor *mhk__linear_rows(mhk_tape *t, mhk_tensor *u, mhk_tensor *w, mhk_tensor *b, mhk_index first,
                                    mhk_index rows) {
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

/* y (...,n) = x (...,n) times s, one element per row; s repeats if it is shorter (one per head) */
static void mhk__scale_rows_forward(const mhk_op *op) {
  const mhk_index n = mhk__last(op->out), rows = mhk__row_count(op->out), wrap = op->in[1]->count;
  for (mhk_index r = 0; r < rows; r++)
    for (mhk_index j = 0; j < n; j++)
      mhk__d(op->out)[r * n + j] = mhk__d(op->in[0])[r * n + j] * mhk__d(op->in[1])[r % wrap];
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
  mhk_tensor *const in[2] = {x, s};
  if (!x || !s) return NULL;
  const mhk_custom_desc op = {2, in, x->rank, x->shape, mhk__scale_rows_forward, mhk__scale_rows_back, NULL, 0};
  return mhk_custom(t, &op);
}

/* (B,T,G,N) -> (B,T,H,N): repeats the row of each group for every head that uses it */
static void mhk__spread_forward(const mhk_op *op) {
  const mhk_index n = mhk__last(op->out), rows = mhk__row_count(op->out),
                  each = op->out->shape[2] / op->in[0]->shape[2];
  for (mhk_index r = 0; r < rows; r++)
    memcpy(mhk__d(op->out) + r * n, mhk__d(op->in[0]) + r / each * n, (size_t)n * sizeof(mhk_real));
}
static void mhk__spread_back(const mhk_op *op) {
  const mhk_index n = mhk__last(op->out), rows = mhk__row_count(op->out),
                  each = op->out->shape[2] / op->in[0]->shape[2];
  for (mhk_index r = 0; mhk_wants_grad(op->tape, op->in[0]) && r < rows; r++)
    for (mhk_index j = 0; j < n; j++) op->in[0]->grad[r / each * n + j] += op->out->grad[r * n + j];
}
static mhk_tensor *mhk__spread(mhk_tape *t, mhk_tensor *x, mhk_index heads) {
  mhk_index shape[4];
  if (!x) return NULL;
  memcpy(shape, x->shape, sizeof shape);
  shape[2] = heads;
  const mhk_custom_desc op = {1, &x, 4, shape, mhk__spread_forward, mhk__spread_back, NULL, 0};
  return mhk_custom(t, &op);
}

static int mhk__layer_ready(mhk_tape *t, const mhk_model *m, int layer, const mhk_tensor *u) {
  if (!mhk__tape_ready(t) || !m || !u || m->object.ctx != t->ctx) return 0;
  if (layer < 0 || layer >= m->config.n_layer)
    return mhk__no(t->ctx, MHK_ERROR_ARGUMENT, "there is no layer %d: the model has layers 0 to %d", layer,
                   m->config.n_layer - 1);
  if (u->rank != 3 || u->shape[2] != m->config.d_model) {
    char text[128];
    return mhk__no(t->ctx, MHK_ERROR_SHAPE, "the input of layer %d is %s; it must be (B,T,%d)", layer,
                   mhk__shape_text(u->rank, u->shape, text, sizeof text), m->config.d_model);
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
    out->q = mhk_rotary(t, out->q, c->rotary_dim, c->rope_theta, doc);
    out->k = mhk_rotary(t, out->k, c->rotary_dim, c->rope_theta, doc);
    return out->q && out->k && (matrix_only || out->v);
  }
  const mhk_index E = mhk__d_inner(c);
  const mhk_index GN = (mhk_index)c->ssm_groups * c->d_state;
  const mhk_index H = c->ssm_heads;
  {
    const int mamba2 = y->kind == MHK_MIXER_MAMBA2, skip_x = matrix_only;
    const mhk_index at_xbc = mamba2 ? E : 0, at_z = mamba2 ? 0 : E + 2 * GN, at_a = 2 * E + 2 * GN,
                    first = skip_x ? E : 0, channels = E + 2 * GN - first;
    mhk_index widths[3];
    mhk_tensor *parts[3], *xbc = mhk__linear_rows(t, u, y->in_w, y->in_b, at_xbc + first, channels), *a;
    widths[0] = E;
    widths[1] = widths[2] = GN;
    parts[0] = NULL;
    const mhk_conv1d_desc conv = {doc, c->conv_silu, skip_x ? 2 : 3, skip_x ? widths + 1 : widths,
                                  skip_x ? parts + 1 : parts};
    mhk_conv1d(t, xbc, mhk_rows(t, y->conv_w, first, channels),
               y->conv_b ? mhk_rows(t, y->conv_b, first, channels) : NULL, &conv);
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
        const mhk_custom_desc clamp = {1, &out->dt, out->dt->rank, out->dt->shape, mhk__clamp_forward,
                                       mhk__clamp_back, &limits, sizeof limits};
        out->dt = mhk_custom(t, &clamp);
      }
      out->log_a = mhk_mul(t, out->dt, mhk_scale(t, mhk_exp(t, y->A_log), -1));
    } else {
      out->log_a = mhk_scale(t, mhk_softplus(t, a), -1);
      if (c->ssm_rotary_dim > 0) {
        out->Bm = mhk_rotary(t, out->Bm, c->ssm_rotary_dim, c->rope_theta, doc);
        out->Cm = mhk_rotary(t, out->Cm, c->ssm_rotary_dim, c->rope_theta, doc);
      }
    }
  }
  return t->ctx->result == MHK_OK && out->log_a && out->Bm && out->Cm;
}

/* RMSNorm over each group of the last axis separately, as in Mamba-2 */
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

/* The output of a mixer from its parts, through the output projection, plus the residual if there
   is one. */
static mhk_tensor *mhk__mixer_output(mhk_tape *t, mhk_model *m, int layer, const mhk__parts *p, const int32_t *doc,
                                     mhk_tensor *residual) {
  const mhk__layer *y = m->layers + layer;
  mhk_tensor *o, *w = y->out_w, *b = y->out_b;
  mhk_ssd_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.doc = doc;
  if (y->kind == MHK_MIXER_ATTENTION) {
    o = mhk__flat(t, mhk_attention(t, p->q, p->k, p->v, doc));
    w = y->dense_w;
    b = y->dense_b;
  } else if (y->kind == MHK_MIXER_MAMBA2) {
    o = mhk_ssd(t, mhk__scale_rows(t, p->x, p->dt), p->log_a, p->Bm, p->Cm, &desc);
    o = mhk_add(t, o, mhk__scale_rows(t, p->x, y->D));
    o = mhk__group_norm(t, mhk_gate(t, mhk__flat(t, o), p->z, NULL), y->ssm_norm_w, m->config.ssm_groups,
                        m->config.norm_eps);
  } else {
    desc.D = y->D;
    o = mhk_gate(t, mhk__flat(t, mhk_ssd(t, p->x, p->log_a, p->Bm, p->Cm, &desc)), p->z, y->z_bias);
  }
  return residual ? mhk_linear_add(t, o, w, b, residual) : mhk_linear(t, o, w, b);
}

static mhk_tensor *mhk__mixer(mhk_tape *t, mhk_model *m, int layer, mhk_tensor *u, const int32_t *doc,
                              mhk_tensor *residual) {
  mhk__parts p;
  memset(&p, 0, sizeof p);
  return mhk__mixer_parts(t, m, layer, u, doc, &p) ? mhk__mixer_output(t, m, layer, &p, doc, residual) : NULL;
}

MHKDEF mhk_tensor *mhk_forward_mixer(mhk_tape *t, mhk_model *m, int layer, mhk_tensor *u, const mhk_forward_desc *d) {
  return mhk__mixer(t, m, layer, u, d ? d->doc : NULL, NULL);
}

MHKDEF mhk_tensor *mhk_forward_norm(mhk_tape *t, mhk_model *m, int layer, mhk_tensor *x) {
  if (!mhk__layer_ready(t, m, layer, x)) return NULL;
  mhk__layer *y = m->layers + layer;
  return y->norm_b ? mhk_layer_norm(t, x, y->norm_w, y->norm_b, m->config.norm_eps)
                   : mhk_rms_norm(t, x, y->norm_w, m->config.norm_eps);
}

/* Phi and Phi-Mamba: x + mixer(norm(x)) + mlp(norm(x)), in parallel. Mamba-2: x +
   mixer(norm(x)). */
MHKDEF mhk_tensor *mhk_forward_block(mhk_tape *t, mhk_model *m, int layer, mhk_tensor *x, const mhk_forward_desc *d) {
  mhk_tensor *u = mhk_forward_norm(t, m, layer, x);
  mhk_tensor *y = mhk__mixer(t, m, layer, u, d ? d->doc : NULL, x);
  if (!y) return NULL;
  mhk__layer *w = m->layers + layer;
  return w->fc1_w ? mhk_linear_add(t, mhk_linear_gelu(t, u, w->fc1_w, w->fc1_b), w->fc2_w, w->fc2_b, y) : y;
}

MHKDEF mhk_tensor *mhk_forward_embedding(mhk_tape *t, mhk_model *m, const int32_t *tokens, mhk_index B, mhk_index T) {
  if (!mhk__tape_ready(t) || !m) return NULL;
  if (!tokens || B < 1 || T < 1)
    return mhk__null(t->ctx, MHK_ERROR_ARGUMENT,
                     "a forward pass needs at least one sequence and one token, not %lld and %lld", (long long)B,
                     (long long)T);
  return mhk_embedding(t, m->embedding, tokens, B, T);
}

MHKDEF mhk_tensor *mhk_forward_head(mhk_tape *t, mhk_model *m, mhk_tensor *x) {
  if (!mhk__tape_ready(t) || !m || !x) return NULL;
  x = m->norm_b ? mhk_layer_norm(t, x, m->norm_w, m->norm_b, m->config.norm_eps)
                : mhk_rms_norm(t, x, m->norm_w, m->config.norm_eps);
  return mhk_linear(t, x, m->head_w, m->head_b);
}

MHKDEF mhk_tensor *mhk_forward_matrix(mhk_tape *t, mhk_model *m, int layer, mhk_tensor *u, const int32_t *doc) {
  mhk__parts p;
  memset(&p, 0, sizeof p);
  p.matrix_only = 1;
  if (!mhk__mixer_parts(t, m, layer, u, doc, &p)) return NULL;
  if (p.q) return mhk_attention_matrix(t, p.q, p.k, doc);
  if (p.dt) { /* the step size scales the input of a token */
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

MHKDEF mhk_tensor *mhk_forward(mhk_tape *t, mhk_model *m, const int32_t *tokens, mhk_index B, mhk_index T,
                               const mhk_forward_desc *desc) {
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
      if (u && d.doc) { /* kept, because the backward pass reads it again */
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
/* =================================================================================================
   SESSIONS: prefill, step, sampling                                                      >>sessions
   =================================================================================================

   A session runs a model on tokens that arrive over time. Prefill computes a prompt in chunks, all
   tokens of a chunk at once, by the tiles of >>attention and the chunked scan of >>ssd. A decode
   step computes one token, by one row of attention and one step of the recurrence. Both give the
   same numbers but for rounding, and both move on what a sequence keeps:

      state-space layer   the last W - 1 inputs of the convolution (W-1,C) and the state (H,P,N):
                          constant size
      attention layer     a KV cache: keys and values (rows,G,P) of all tokens, or with a sliding
                          window of those that the next tokens can see

   In this order: sampling, the session's one block of memory, a pass through all layers, feeding,
   what a sequence has seen as a value (snapshots, copies, saved states), drawing tokens, and
   speculative decoding. */

/* What a session makes of a layer's weights once: the taps of the convolution transposed, (W,C),
   and -exp(A_log) of Mamba-2. */
typedef struct mhk__prepared { mhk_real *taps, *rate; } mhk__prepared;

/* A stored state of a sequence: the recurrent numbers, and with a window the keys and values that
   the next tokens see. */
typedef struct mhk__snapshot {
  mhk_index position, rows; /* rows: of each cache; position 0: the slot is free */
  mhk_real *numbers;
} mhk__snapshot;

/* A sequence. Its caches hold the keys and values of positions first to position - 1. */
typedef struct mhk__sequence {
  mhk_index position, first;
  int fed;           /* its logits are valid */
  mhk_real *state;   /* for each state-space layer: inputs of the convolution (W-1,C), then the state (H,P,N) */
  mhk_real *cache;   /* for each attention layer: keys (rows,G,P), then values */
  mhk__snapshot *snapshots;
} mhk__sequence;

/* n tokens of a sequence that are computed together; their activations start at `row`. */
typedef struct mhk__span {
  mhk_index sequence, row, n;
  const int32_t *tokens;
} mhk__span;

/* ---- one block of memory, laid out by the code that counts it ---- */

typedef struct mhk__layout { unsigned char *base; size_t used; int fits; } mhk__layout;

/* reserves a * b * size aligned bytes of the block; NULL while counting */
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

/* ---- sampling: what a session keeps for it ---- */

/* Room for remembered tokens. It is larger than the window, so tokens rarely move, and the window
   stays full after a rewind. */
#define MHK__RECENT_ROOM(window) (2 * (window) + 32)
/* Room for text: what is held back for a stop string, and a token's bytes, each of which may become
   a U+FFFD of three; and two zeros. */
#define MHK__TEXT_ROOM(stop_bytes, token_bytes) ((stop_bytes) + 3 * ((token_bytes) + 4) + 2)

typedef struct mhk__sampler {
  uint64_t seed;
  mhk__rng rng;
  mhk_index vocab, window;       /* window: tokens remembered for each row */
  double *p;                     /* (V) */
  mhk_index *n_recent;           /* (rows) */
  int32_t *order;                /* (V) */
  int32_t *recent;               /* (rows,MHK__RECENT_ROOM): the last `window` of n_recent[row] tokens count */
  char *text;                    /* the text of the last sample, 0, the text that is held back */
  size_t text_room, stop_bytes, held_at, held;
  mhk_stream decoder;
  mhk_stop stop;
} mhk__sampler;

/* starts a new sequence in a row: no tokens seen, no text held back; the random state continues */
static void mhk__sampler_reset(mhk__sampler *s, mhk_index row) {
  s->n_recent[row] = 0;
  if (row > 0) return;
  memset(&s->decoder, 0, sizeof s->decoder);
  s->held_at = s->held = 0;
  s->stop = MHK_STOP_NONE;
  if (s->text) s->text[0] = 0;
}

/* Places a sampler, and resets it if there is memory. longest: bytes of the longest token, 0 for no
   text. */
static void mhk__sampler_layout(mhk__sampler *s, mhk__layout *at, mhk_index rows, mhk_index V, mhk_index window,
                                size_t longest, size_t stop_bytes) {
  memset(s, 0, sizeof *s);
  if (longest > SIZE_MAX / 8 || stop_bytes > SIZE_MAX / 8) at->fits = 0;
  s->vocab = V;
  s->window = window;
  s->stop_bytes = stop_bytes;
  s->text_room = longest > 0 && at->fits ? MHK__TEXT_ROOM(stop_bytes, longest) : 0;
  s->p = (double *)mhk__place(at, V, 1, sizeof(double));
  s->order = (int32_t *)mhk__place(at, V, 1, sizeof(int32_t));
  s->n_recent = (mhk_index *)mhk__place(at, rows, 1, sizeof(mhk_index));
  s->recent = (int32_t *)mhk__place(at, rows, MHK__RECENT_ROOM(window), sizeof(int32_t));
  s->text = s->text_room ? (char *)mhk__place(at, (mhk_index)s->text_room, 1, 1) : NULL;
  mhk__rng_seed(&s->rng, 1);
  for (mhk_index row = 0; at->base && row < rows; row++) mhk__sampler_reset(s, row);
}

/* the length of a tokenizer's longest token: room for text */
static size_t mhk__longest_token(mhk_tokenizer *k) {
  size_t longest = 0, length;
  for (int32_t id = 0; id < mhk_tokenizer_size(k); id++)
    if (mhk_token_bytes(k, id, &length) && length > longest) longest = length;
  return longest;
}

/* takes back the last n tokens of a row */
static void mhk__sampler_forget(mhk__sampler *s, mhk_index row, mhk_index n) {
  s->n_recent[row] -= mhk__min(n, s->n_recent[row]);
}

/* adds tokens that were fed to a row */
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

/* the *n tokens that a row remembers */
static const int32_t *mhk__sampler_seen(const mhk__sampler *s, mhk_index row, mhk_index *n) {
  *n = mhk__min(s->n_recent[row], s->window);
  return s->recent + row * MHK__RECENT_ROOM(s->window) + s->n_recent[row] - *n;
}

/* copies a row, as far as its memory has room */
static void mhk__sampler_copy(mhk__sampler *to, mhk_index to_row, const mhk__sampler *from, mhk_index from_row) {
  mhk_index n;
  const int32_t *seen = mhk__sampler_seen(from, from_row, &n);
  to->n_recent[to_row] = 0;
  mhk__sampler_fed(to, to_row, seen, n);
  if (to_row > 0 || from_row > 0) return;
  to->decoder = from->decoder;
  to->held = to->text && from->held < to->stop_bytes ? from->held : 0;
  to->held_at = 1;
  if (to->held) memcpy(to->text + 1, from->text + from->held_at, to->held);
}

/* the description with its defaults in place, in room */
static const mhk_sampling *mhk__sampling_or(const mhk_sampling *how, mhk_sampling *room) {
  if (how)
    *room = *how;
  else
    memset(room, 0, sizeof *room);
  room->temperature = mhk__or(room->temperature, room->exact ? 1.0 : 0.8);
  room->top_p = mhk__or(room->top_p, room->exact ? 1.0 : 0.95);
  return room;
}

/* sets an error if a description of sampling is invalid */
static void mhk__sampling_wrong(const mhk_sampling *how, mhk_index V, char wrong[MHK__SETTING]) {
  const struct { const char *name; double value, least, most; } numbers[] = {
    {"temperature", how->temperature, 0, DBL_MAX},
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
  if (how->n_bias < 0 || (how->n_bias > 0 && !how->bias) || how->n_stop_tokens < 0 ||
      (how->n_stop_tokens > 0 && !how->stop_tokens) || how->n_stop_strings < 0 ||
      (how->n_stop_strings > 0 && !how->stop_strings)) {
    mhk__print(wrong, MHK__SETTING, "the list of %d biases, %d stop tokens or %d stop strings is missing (NULL)",
               how->n_bias, how->n_stop_tokens, how->n_stop_strings);
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
  return (how->repetition > 0 && (how->repetition < 1 || how->repetition > 1)) || fabs(how->frequency) > 0 ||
         fabs(how->presence) > 0;
}

/* x = logits with bias and penalties; count (V) is scratch */
static void mhk__penalise(const mhk_real *logits, mhk_index V, const mhk_sampling *how, const int32_t *recent,
                          mhk_index n, double *x, int32_t *count) {
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

/* Moves the best of ids[0..n) to the front: the fewest with a total weight of at least mass, and at
   most `most`. Returns their number. If mass < 0, only the number counts. A large w is good or,
   with a center, a w whose ratio to it is near 1. Quickselect: linear time. */
static mhk_index mhk__keep_best(const double *w, int32_t *ids, mhk_index n, mhk_index most, double mass,
                                double center) {
#define MHK__GOOD(id) (center > 0 ? (w[id] < center ? w[id] / center : center / w[id]) : w[id])
  const int by_mass = mass >= 0;
  mhk_index low = 0, high = n; /* ids before low are kept, ids from high are dropped */
  uint64_t seed = 1;
  while (low < high && low < most && (!by_mass || mass > 0)) {
    mhk_index i, m = low;
    double good, sum = 0;
    seed = seed * 6364136223846793005u + 1442695040888963407u; /* a random pivot, so no input is slow */
    i = low + (mhk_index)((seed >> 33) % (uint64_t)(high - low));
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
    if (m >= most || (by_mass && sum >= mass)) /* enough mass without the pivot */
      high = m;
    else {
      low = m + 1;
      if (by_mass && (mass -= sum + w[pivot]) < 0) mass = 0;
    }
  }
#undef MHK__GOOD
  return low;
}

/* moves the ids of the k largest of x (V) to the front of ids (V) */
static void mhk__top_k(const double *x, mhk_index V, mhk_index k, int32_t *ids) {
  mhk_index i, n, width = V / 4 / k;
  double least = x[0];
  if (width < 4) { /* too many for the shortcut */
    for (i = 0; i < V; i++) ids[i] = (int32_t)i;
    mhk__keep_best(x, ids, V, k, -1, 0);
    return;
  }
  /* Takes the maximum of each range. The k largest maxima are k numbers, so smaller numbers cannot
     be among the k largest. */
  for (n = 0; n < 4 * k; n++) {
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

/* The tokens that filters have left: ids[0..n), with weights p[id] of sum total; other p are 0. */
typedef struct mhk__left {
  double *p, total;
  int32_t *ids;
  mhk_index n;
} mhk__left;

/* keeps the first ids only */
static void mhk__left_keep(mhk__left *x, mhk_index kept) {
  for (; x->n > kept; x->n--) x->p[x->ids[x->n - 1]] = 0;
  x->total = 0;
  for (mhk_index i = 0; i < x->n; i++) x->total += x->p[x->ids[i]];
}

/* Softmax without the division by its sum: logits (V) in p become exp((logit - largest) /
   temperature). Top-k comes first, so that few exponentials are needed. */
static void mhk__softmax_weights(mhk__left *x, mhk_index V, mhk_index top_k, double largest, double temperature) {
  x->n = V;
  x->total = 0;
  if (top_k > 0 && top_k < V) {
    mhk__top_k(x->p, V, x->n = top_k, x->ids);
    for (mhk_index i = top_k; i < V; i++) x->p[x->ids[i]] = 0;
  } else
    for (mhk_index i = 0; i < V; i++) x->ids[i] = (int32_t)i;
  for (mhk_index i = 0; i < x->n; i++) {
    double *w = x->p + x->ids[i];
    x->total += *w = exp((*w - largest) / temperature);
  }
}

/* Keeps the nucleus (top-p: the likeliest tokens that together reach top_p) and applies min-p (a
   share of the likeliest token's weight, which is 1). Tokens so small that all of them together
   weigh less than what top-p drops are dropped without sorting. */
static void mhk__nucleus(mhk__left *x, double top_p, double min_p) {
  const double drop = (1 - top_p) * x->total / (double)(x->n + 1),
               least = min_p > drop ? (min_p < 1 ? min_p : 1) : drop;
  mhk_index kept = 0;
  for (mhk_index i = 0; i < x->n; i++) {
    const int32_t id = x->ids[i];
    if (x->p[id] > 0 && x->p[id] >= least)
      x->ids[kept++] = id;
    else
      x->p[id] = 0;
  }
  x->n = kept;
  mhk__left_keep(x, top_p < 1 ? mhk__keep_best(x->p, x->ids, kept, kept, top_p * x->total, 0) : kept);
}

/* Locally typical sampling: keeps the tokens whose -log p is nearest to the entropy. The weight
   with exactly that is the weighted geometric mean. */
static void mhk__typical(mhk__left *x, double typical) {
  double center = 0;
  for (mhk_index i = 0; i < x->n; i++) center += x->p[x->ids[i]] * log(x->p[x->ids[i]]);
  mhk__left_keep(x, mhk__keep_best(x->p, x->ids, x->n, x->n, typical * x->total, exp(center / x->total)));
}

MHKDEF mhk_index mhk_probabilities(const mhk_real *logits, mhk_index V, const mhk_sampling *how, const int32_t *recent,
                                   mhk_index n_recent, double *p, int32_t *scratch) {
  mhk_sampling usual;
  mhk_index best = 0, possible = 0;
  char wrong[MHK__SETTING];
  how = mhk__sampling_or(how, &usual);
  if (!logits || V < 1 || V > INT32_MAX || !p || !scratch || (n_recent > 0 && !recent)) return 0;
  mhk__sampling_wrong(how, V, wrong);
  if (*wrong) return 0;
  mhk__penalise(logits, V, how, recent, n_recent, p, scratch);
  for (mhk_index i = 0; i < V; i++) {
    if (!(p[i] <= DBL_MAX)) return 0;
    if (p[i] > p[best]) best = i;
  }
  if (p[best] < -DBL_MAX) return 0;
  if (how->greedy) {
    memset(p, 0, (size_t)V * sizeof *p);
    p[best] = 1;
    return 1;
  }
  mhk__left x = {p, 0, scratch, 0};
  const int typical = how->typical > 0 && how->typical < 1;
  mhk__softmax_weights(&x, V, how->top_k, p[best], how->temperature);
  if (how->top_p < 1 || how->min_p > 0 || typical) mhk__nucleus(&x, how->top_p, how->min_p);
  if (typical) mhk__typical(&x, how->typical);
  for (mhk_index i = 0; i < x.n; i++) {
    p[x.ids[i]] /= x.total;
    possible += p[x.ids[i]] > 0;
  }
  return possible;
}

MHKDEF int32_t mhk_draw(const double *p, mhk_index V, double uniform) {
  double run = 0;
  if (!p) return -1;
  for (mhk_index i = 0; i < V; i += 16) {
    const double *x = p + i;
    if (V - i >= 16) { /* skip ranges by their sums */
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
  for (mhk_index i = V; i-- > 0;) /* rounding: the probabilities sum to less than 1 */
    if (p[i] > 0) return (int32_t)i;
  return -1;
}

/* Draws a token from a row of logits; -1 if no token is possible. Plain greedy sampling needs no
   distribution. */
static int32_t mhk__sampler_draw(mhk__sampler *s, mhk_index row, const mhk_real *logits, const mhk_sampling *how,
                                 double uniform) {
  mhk_index i, best = 0, n;
  const int32_t *recent = mhk__sampler_seen(s, row, &n);
  if (how->greedy && how->n_bias == 0 && !mhk__sampling_penalises(how)) {
    for (i = 0; i < s->vocab; i++) {
      if (!(fabs((double)logits[i]) <= DBL_MAX)) return -1;
      if (logits[i] > logits[best]) best = i;
    }
    return (int32_t)best;
  }
  return mhk_probabilities(logits, s->vocab, how, recent, n, s->p, s->order) > 0 ? mhk_draw(s->p, s->vocab, uniform)
                                                                                 : -1;
}

/* Adds the bytes of a token to the text; at the end of the text, also what is held back. Returns
   whether a stop string ended the text. */
static int mhk__sampler_text(mhk__sampler *s, const mhk_sampling *how, const char *bytes, size_t length, int end) {
  size_t n = s->held, out, i;
  int k, found = 0;
  if (!s->text) return 0;
  memmove(s->text, s->text + s->held_at, n);
  n += mhk_stream_push(&s->decoder, bytes, length, s->text + n);
  if (end) n += mhk_stream_finish(&s->decoder, s->text + n);
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
    for (i = n >= m ? n - m + 1 : 0; i < out; i++) /* a possible start of a stop string at the end of the text */
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
  mhk_index piece, cache_rows;                 /* tokens that a cache stores at once; rows of each cache */
  mhk_index state_numbers, kept_numbers;       /* numbers per sequence; per snapshot */
  int attention_layers, state_layers, workers; /* the number of workers that work memory has room for */
  mhk__sequence *sequences;
  mhk__span *spans;
  mhk_index *fed;                              /* per sequence, during a feed */
  mhk_index *lengths;
  const int32_t **tokens;
  mhk__prepared *layers;
  mhk__arena work;                             /* replaces the scratch memory of the context */
  mhk_real *x, *y, *u;                         /* (rows,D): residual, residual after the mixer, normalized residual */
  mhk_real *wide;                              /* activations inside a block; then logits of many tokens */
  mhk_index wide_numbers;
  double *frequencies[2];                             /* rotary angles per position: for attention, for B and C */
  mhk_real *rotations[2];                         /* (rows,dim): cosines, then sines */
  mhk_index *starts;                           /* (rows): with a window, the first key that a token sees */
  mhk_real *logits;                            /* (batch,V) */
  int32_t *ids;                                /* (chunk) ids of the text being fed; NULL: no tokenizer */
  mhk_index recent;
  size_t stop_bytes, word_bytes;
  int no_start, given;                         /* given: the block belongs to the caller */
  mhk__sampler sampler;
};

/* ---- memory of a session ---- */

/* numbers per row of the activations inside a block, with up to eight aligned parts */
static mhk_index mhk__wide_row(const mhk_config *c, int mixer) {
  if (mixer == MHK_MIXER_ATTENTION) return 2 * (mhk_index)c->head_dim * (c->n_head + c->n_kv_head);
  return 4 * mhk__d_inner(c) + mhk__d_inner(c) + 4 * (mhk_index)c->ssm_groups * c->d_state +
         2 * (mhk_index)c->ssm_heads;
}

/* y (rows,N) = x (rows,K) w^T + bias, then gelu or plus residual */
static void mhk__apply(mhk_context *ctx, mhk_index rows, const mhk_real *x, const mhk_tensor *w, const mhk_tensor *bias,
                       int gelu, const mhk_real *residual, mhk_real *y) {
  mhk__epilogue e;
  memset(&e, 0, sizeof e);
  e.bias = bias ? mhk_data(bias) : NULL;
  e.gelu = gelu;
  e.residual = residual;
  mhk__gemm(ctx, rows, w->shape[0], w->shape[1], mhk__mat(x, MHK_REAL, w->shape[1], 1), mhk__mat_weight(w, 1), y,
            w->shape[0], &e);
}

static mhk_index mhk__span_heads_work(const mhk_session *s) { /* elements of work memory for the kernel of a head */
  const mhk_config *c = &s->model->config;
  mhk_index most = 1;
  if (s->attention_layers) {
    most = s->cache_rows + 16;
    if (s->rows > 4) most = mhk__max(most, mhk__attention_work(s->cache_rows, c->head_dim));
  }
  if (s->state_layers && s->rows > MHK__STEPS)
    most = mhk__max(most, mhk__ssd_work(MHK__SSD_CHUNK, c->d_state, c->ssm_head_dim, 1));
  return most;
}

/* Returns whether two matrices have the same shape and are stored alike. */
static int mhk__alike(const mhk_tensor *x, const mhk_tensor *y) {
  return x->rank == y->rank && x->shape[0] == y->shape[0] && x->shape[1] == y->shape[1] && x->dtype == y->dtype &&
         (!x->quantized || (x->quantized->rows == y->quantized->rows && x->quantized->group == y->quantized->group));
}

/* Bytes of scratch memory that a pass uses: packed operands of products, the workers' tiles of
   attention and SSD, and the tokenizer's longest word. The drivers say how much: they are called
   for each number of rows on a context whose scratch memory only counts, and do not access their
   arguments then. A test checks that this is enough, and that one cache line less is not. */
static size_t mhk__session_work(const mhk_session *s) {
  const mhk_model *m = s->model;
  mhk_context probe = *m->object.ctx;
  mhk__chunk count;
  memset(&count, 0, sizeof count);
  memset(&probe.scratch, 0, sizeof probe.scratch);
  probe.scratch.kind = MHK__COUNTS;
  probe.scratch.first = probe.scratch.current = &count;
  for (int i = 0; i <= m->n_tensors; i++) { /* every matrix, and the head, which may be the embedding */
    const mhk_tensor *w = i < m->n_tensors ? m->tensors[i] : m->head_w;
    int known = w->rank != 2 || (i < m->n_tensors && w == m->embedding);
    for (int j = 0; j < i && !known; j++) known = m->tensors[j] != m->embedding && mhk__alike(m->tensors[j], w);
    for (mhk_index rows = 1; !known && rows <= mhk__min(s->rows, MHK__GEMM_M); rows++) /* more need no more memory */
      mhk__apply(&probe, rows, NULL, w, NULL, 0, NULL, NULL);
  }
  mhk__run(&probe, NULL, 1, 1, mhk__span_heads_work(s), 0, NULL);
  if (m->tokenizer) /* plus a long word, because the tokenizer calls the feed */
    count.room += mhk__word_room(m->tokenizer, s->word_bytes);
  return count.room;
}

/* the count as an index, far below 0 if its bytes are too many */
static mhk_index mhk__at_most(double numbers) {
  return numbers < (double)(PTRDIFF_MAX / 2 / (ptrdiff_t)sizeof(double)) ? (mhk_index)numbers : PTRDIFF_MIN / 2;
}

/* Computes the sizes of a session from a description and lays it out after its struct; if base is
   NULL, only counts. */
static void mhk__session_layout(mhk_session *s, mhk__layout *p, size_t work) {
  const mhk_config *c = &s->model->config;
  const mhk_index D = c->d_model, kv = (mhk_index)c->n_kv_head * c->head_dim;
  const mhk_index state = MHK__LD(s->state_numbers), each = MHK__LD(s->kept_numbers); /* whole cache lines */
  const mhk_index cache = MHK__LD(mhk__at_most(2.0 * (double)s->cache_rows * (double)(s->attention_layers * kv)));
  mhk__chunk *chunk;
  mhk__snapshot *kept;
  mhk_real *numbers[3];
  mhk_index snapshots;
  size_t longest = 0;
  mhk__place(p, 1, 1, sizeof *s);
  s->sequences = (mhk__sequence *)mhk__place(p, s->batch, 1, sizeof *s->sequences);
  s->spans = (mhk__span *)mhk__place(p, s->batch, 1, sizeof *s->spans);
  s->fed = (mhk_index *)mhk__place(p, s->batch, 1, sizeof *s->fed);
  s->lengths = (mhk_index *)mhk__place(p, s->batch, 1, sizeof *s->lengths);
  s->tokens = (const int32_t **)mhk__place(p, s->batch, 1, sizeof *s->tokens);
  s->layers = (mhk__prepared *)mhk__place(p, c->n_layer, 1, sizeof *s->layers);
  for (int l = 0; l < c->n_layer; l++) {
    mhk_real *taps = NULL, *rate = NULL;
    if (c->mixer[l] != MHK_MIXER_ATTENTION)
      taps = (mhk_real *)mhk__place(p, c->d_conv, mhk__conv_channels(c), sizeof(mhk_real));
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
    s->frequencies[i] = (double *)mhk__place(p, used ? dim / 2 : 0, 1, sizeof(double));
    s->rotations[i] = (mhk_real *)mhk__place(p, s->rows, used ? dim : 0, sizeof(mhk_real));
  }
  s->starts = (mhk_index *)mhk__place(p, s->window ? s->rows : 0, 1, sizeof *s->starts);
  s->logits = (mhk_real *)mhk__place(p, s->batch, s->vocab, sizeof(mhk_real));
  if (s->model->tokenizer) {
    longest = mhk__longest_token(s->model->tokenizer);
    s->ids = (int32_t *)mhk__place(p, s->chunk, 1, sizeof *s->ids);
  }
  mhk__sampler_layout(&s->sampler, p, s->batch, s->vocab, s->recent, longest, s->stop_bytes);
  chunk = (mhk__chunk *)mhk__place(p, 1, 1, sizeof *chunk + MHK__ALIGN);
  mhk__place(p, (mhk_index)work, 1, 1);
  if (p->base) {
    memset(chunk, 0, sizeof *chunk);
    chunk->room = work;
    s->work.first = s->work.current = chunk;
    s->work.kind = MHK__FIXED;
  }
}

/* Returns whether the numbers of a description are valid, else fails. */
static int mhk__session_check(mhk_context *ctx, const mhk_session_desc *d) {
  const double most = (double)mhk__min(INT32_MAX, PTRDIFF_MAX / 64);
  const struct { const char *name; double value, most; } numbers[] = {
    {"batch", (double)d->batch, most},
    {"capacity", (double)d->capacity, DBL_MAX},
    {"window", (double)d->window, DBL_MAX},
    {"chunk", (double)d->chunk, most},
    {"snapshots", (double)d->snapshots, most},
    {"snapshot_every", (double)d->snapshot_every, DBL_MAX},
    {"recent", (double)d->recent, most},
    {"word_bytes", (double)d->word_bytes, INT32_MAX / 64}};
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
    if (!mhk__number_fits(ctx, "session", numbers[i].name, numbers[i].value, 0, numbers[i].most)) return 0;
  if (d->capacity <= PTRDIFF_MAX / 64 && d->window <= PTRDIFF_MAX / 64) return 1;
  return mhk__no(
      ctx, MHK_ERROR_MEMORY,
      "a session with a capacity of %lld tokens and a window of %lld does not fit in this machine's address space",
      (long long)d->capacity, (long long)d->window);
}

/* Resolves a description into s and returns the bytes of a session's block, or 0 with an error if
   the description is invalid. */
static size_t mhk__session_plan(const mhk_model *m, const mhk_session_desc *desc, mhk_session *s, size_t *work) {
  mhk_context *ctx = m->object.ctx;
  const mhk_config *c = &m->config;
  mhk_session_desc d;
  mhk__layout p;
  mhk_index wide = c->d_mlp;
  memset(&d, 0, sizeof d);
  memset(s, 0, sizeof *s);
  if (desc) d = *desc;
  if (!mhk__session_check(ctx, &d)) return 0;
  /* the session only reads the weights; a caller may write its own state */
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
  const double state = (double)s->state_layers *
                       ((double)mhk__conv_channels(c) * (c->d_conv - 1) + (double)mhk__d_inner(c) * c->d_state);
  s->state_numbers = s->state_layers ? mhk__at_most(state) : 0;
  s->snapshots = s->state_layers || s->window ? d.snapshots : 0;
  s->snapshot_every = s->snapshots ? d.snapshot_every : 0;
  s->kept_numbers =
      mhk__at_most((double)s->state_numbers +
                   (s->window ? 2.0 * (double)(s->window - 1) * s->attention_layers * c->n_kv_head * c->head_dim : 0));
  s->wide_numbers = mhk__at_most((double)s->rows * ((double)wide + 1) + 16 * 8);
  if (s->wide_numbers >= 0) s->wide_numbers = mhk__max(s->wide_numbers, s->vocab);
  memset(&p, 0, sizeof p);
  p.fits = s->state_numbers >= 0 && s->kept_numbers >= 0 && s->wide_numbers >= 0 &&
           (double)s->cache_rows * (2.0 * MHK__LD(c->head_dim) + 16) * (double)sizeof(mhk_real) * s->workers <
               (double)(PTRDIFF_MAX / 2) &&
           (double)s->rows * (double)wide < (double)(PTRDIFF_MAX / 64);
  *work = p.fits ? mhk__session_work(s) : 0;
  if (p.fits) mhk__session_layout(s, &p, *work);
  if (!p.fits)
    return (size_t)mhk__no(ctx, MHK_ERROR_MEMORY,
                           "a session of %lld sequences with %lld tokens of cache and chunks of %lld does not fit in "
                           "this machine's address space",
                           (long long)s->batch, (long long)s->cache_rows, (long long)s->chunk);
  return sizeof(mhk__chunk) + MHK__ALIGN + p.used;
}

MHKDEF size_t mhk_session_bytes(const mhk_model *m, const mhk_session_desc *desc) {
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
    for (mhk_index i = 0; y->kind == MHK_MIXER_MAMBA2 && i < c->ssm_heads; i++)
      s->layers[l].rate[i] = MHK__R(-exp((double)mhk_data(y->A_log)[i]));
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
    if (desc->memory_bytes < bytes)
      return mhk__null(ctx, MHK_ERROR_MEMORY, "the session's block has %.0f bytes and needs %.0f",
                       (double)desc->memory_bytes, (double)bytes);
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
    const int dim = i ? m->config.ssm_rotary_dim : m->config.rotary_dim,
              used = i ? s->state_layers > 0 : s->attention_layers > 0;
    for (int j = 0; used && j < dim / 2; j++) s->frequencies[i][j] = pow(m->config.rope_theta, -2.0 * (double)j / dim);
  }
  mhk__session_prepare(s);
  return s;
}

MHKDEF void mhk_session_destroy(mhk_session *s) { mhk__object_free(s); }

static mhk_result mhk__session_result(const mhk_session *s) { return s ? s->object.ctx->result : MHK_ERROR_MEMORY; }

static int mhk__sequence_there(const mhk_session *s, mhk_index sequence) {
  if (!s || s->object.ctx->result != MHK_OK) return 0;
  if (sequence >= 0 && sequence < s->batch) return 1;
  return mhk__no(s->object.ctx, MHK_ERROR_ARGUMENT, "there is no sequence %lld: the session has sequences 0 to %lld",
                 (long long)sequence, (long long)s->batch - 1);
}

static void mhk__sequence_reset(mhk_session *s, mhk_index sequence) {
  mhk__sequence *q = s->sequences + sequence;
  q->position = q->first = 0;
  q->fed = 0;
  if (s->state_numbers) memset(q->state, 0, (size_t)s->state_numbers * sizeof(mhk_real));
  for (mhk_index i = 0; i < s->snapshots; i++) q->snapshots[i].position = 0;
  mhk__sampler_reset(&s->sampler, sequence);
}

MHKDEF mhk_result mhk_session_reset(mhk_session *s, mhk_index sequence) {
  if (sequence != MHK_ALL) {
    if (mhk__sequence_there(s, sequence)) mhk__sequence_reset(s, sequence);
  } else {
    for (mhk_index b = 0; s && b < s->batch; b++) mhk__sequence_reset(s, b);
  }
  return mhk__session_result(s);
}
MHKDEF mhk_index mhk_session_position(const mhk_session *s, mhk_index sequence) {
  return s && sequence >= 0 && sequence < s->batch ? s->sequences[sequence].position : 0;
}

/* offset of a state-space layer in the recurrent numbers of its sequence; -1 if it has none */
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

/* While a session computes, its own memory is the scratch memory of the context, and at most as
   many workers run as it has room for. */
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
  /* from: tokens of each span that attention has processed; part: the most for the next step */
  mhk_index spans, rows, state_at, from, part;
  int attention_index;
  mhk_real *q, *k, *v, *o;                       /* attention */
  /* state-space: the projection; x, B, C after the convolution; log-decays; y; x times dt */
  mhk_real *in, *xs, *bm, *cm, *decay, *out, *scaled;
  mhk_index width, at_xbc, at_z, at_a;           /* columns of in */
  const mhk_real *norm_x, *norm_w, *norm_b;
  mhk_real *norm_y;
} mhk__pass;

#define MHK__ROWS_TASK 8    /* rows per task of elementwise work */
#define MHK__CONV_STATE_BLOCK 256 /* channels per task of the convolution */

static void mhk__pass_rows(mhk_context *ctx, const mhk__pass *p, double cost,
                           void (*body)(void *arg, mhk_index task, int worker)) {
  mhk__run(ctx, p, (p->rows + MHK__ROWS_TASK - 1) / MHK__ROWS_TASK, 1, 1, cost * (double)p->rows, body);
}

static void mhk__norm_task(void *arg, mhk_index task, int worker) {
  const mhk__job *job = (const mhk__job *)arg;
  const mhk__pass *p = (const mhk__pass *)job->args;
  const mhk_index D = p->s->model->config.d_model, last = mhk__min(p->rows, (task + 1) * MHK__ROWS_TASK);
  mhk_real mean, rstd;
  (void)worker;
  for (mhk_index r = task * MHK__ROWS_TASK; r < last; r++)
    job->ctx->kernels->norm(D, p->norm_x + r * D, p->norm_w, p->norm_b, MHK__R(p->s->model->config.norm_eps),
                            p->norm_b != NULL, p->norm_y + r * D, &mean, &rstd);
}

static void mhk__pass_norm(mhk_context *ctx, mhk__pass *p, const mhk_real *x, const mhk_tensor *w, const mhk_tensor *b,
                           mhk_real *y) {
  p->norm_x = x;
  p->norm_w = mhk_data(w);
  p->norm_b = b ? mhk_data(b) : NULL;
  p->norm_y = y;
  mhk__pass_rows(ctx, p, 4.0 * (double)p->s->model->config.d_model, mhk__norm_task);
}

/* angles of all rows in double, one table for all layers */
static void mhk__pass_rotations(const mhk__pass *p) {
  mhk_session *s = p->s;
  for (int kind = 0; kind < 2; kind++) {
    const mhk_index dim = kind ? s->model->config.ssm_rotary_dim : s->model->config.rotary_dim;
    if (dim < 2 || !(kind ? s->state_layers : s->attention_layers)) continue;
    for (mhk_index i = 0; i < p->spans; i++)
      for (mhk_index t = 0; t < s->spans[i].n; t++) {
        const double position = (double)(s->sequences[s->spans[i].sequence].position + t);
        mhk_real *row = s->rotations[kind] + (s->spans[i].row + t) * dim;
        for (mhk_index j = 0; j < dim / 2; j++) {
          row[j] = MHK__R(cos(position * s->frequencies[kind][j]));
          row[j + dim / 2] = MHK__R(sin(position * s->frequencies[kind][j]));
        }
      }
  }
}

static mhk_real *mhk__carve(mhk_real **at, mhk_index numbers) {
  mhk_real *part = *at;
  *at += (numbers + 15) / 16 * 16;
  return part;
}

/* attention: q/k norms, rotary */
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
        job->ctx->kernels->norm(P, q + h * P, mhk_data(p->layer->qn_w), mhk_data(p->layer->qn_b), MHK__R(c->norm_eps),
                                1, q + h * P, &mean, &rstd);
      for (mhk_index h = 0; h < c->n_kv_head; h++)
        job->ctx->kernels->norm(P, k + h * P, mhk_data(p->layer->kn_w), mhk_data(p->layer->kn_b), MHK__R(c->norm_eps),
                                1, k + h * P, &mean, &rstd);
    }
    if (c->rotary_dim > 1) {
      mhk__rotate_heads(c->n_head, P, c->rotary_dim, p->s->rotations[0] + r * c->rotary_dim, q);
      mhk__rotate_heads(c->n_kv_head, P, c->rotary_dim, p->s->rotations[0] + r * c->rotary_dim, k);
    }
  }
}

/* the cache of an attention layer: keys; the values follow after cache_rows rows */
static mhk_real *mhk__cache_of(const mhk_session *s, mhk_index sequence, int attention_index) {
  const mhk_index kv = (mhk_index)s->model->config.n_kv_head * s->model->config.head_dim;
  return s->sequences[sequence].cache + 2 * s->cache_rows * kv * attention_index;
}

/* With a window: the position of the first row that stays when n tokens are added to a cache of
   first .. position - 1. */
static mhk_index mhk__window_first(const mhk_session *s, mhk_index first, mhk_index position, mhk_index n) {
  if (!s->window || position - first + n <= s->cache_rows) return first;
  return mhk__max(first, position - (s->window - 1));
}

/* the first row of a span's cache after `from` of its tokens: repeats mhk__window_first() part by
   part */
static mhk_index mhk__first_after(const mhk_session *s, const mhk__span *span, mhk_index from) {
  const mhk__sequence *q = s->sequences + span->sequence;
  mhk_index first = q->first, t;
  for (t = 0; s->window && t < from; t += s->piece)
    first = mhk__window_first(s, first, q->position + t, mhk__min(s->piece, span->n - t));
  return first;
}

/* one head of one range's part */
static void mhk__attend_task(void *arg, mhk_index task, int worker) {
  const mhk__job *job = (const mhk__job *)arg;
  const mhk__pass *p = (const mhk__pass *)job->args;
  const mhk_session *s = p->s;
  const mhk_config *c = &s->model->config;
  const mhk__span *span = s->spans + task / c->n_head;
  const mhk_index n = mhk__min(p->part, span->n - p->from), row = span->row + p->from,
                  kv = (mhk_index)c->n_kv_head * c->head_dim;
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

/* attention of one layer: projections, caches, all heads of all spans, and the output projection */
static void mhk__pass_attention(mhk_context *ctx, mhk__pass *p) {
  mhk_session *s = p->s;
  const mhk_config *c = &s->model->config;
  const mhk__layer *y = p->layer;
  const mhk_index rows = p->rows, kv = (mhk_index)c->n_kv_head * c->head_dim, wide = (mhk_index)c->n_head * c->head_dim;
  mhk_real *at = s->wide;
  mhk_index i, t, longest = 0;
  p->q = mhk__carve(&at, rows * wide);
  p->k = mhk__carve(&at, rows * kv);
  p->v = mhk__carve(&at, rows * kv);
  p->o = mhk__carve(&at, rows * wide);
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
      const mhk_index n = mhk__min(p->part, span->n - p->from),
                      position = s->sequences[span->sequence].position + p->from, row = span->row + p->from;
      mhk_real *keys = mhk__cache_of(s, span->sequence, p->attention_index), *values = keys + s->cache_rows * kv;
      if (n <= 0) continue;
      const mhk_index before = mhk__first_after(s, span, p->from);
      const mhk_index first = mhk__window_first(s, before, position, n);
      if (first > before && position > first) { /* makes room by dropping the rows that left the window */
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

/* The convolution of one block of channels over one span. It writes x, B and C to separate
   arrays. */
static void mhk__conv_state_task(void *arg, mhk_index task, int worker) {
  const mhk__job *job = (const mhk__job *)arg;
  const mhk__pass *p = (const mhk__pass *)job->args;
  const mhk_session *s = p->s;
  const mhk_config *c = &s->model->config;
  const mhk_index E = mhk__d_inner(c), GN = (mhk_index)c->ssm_groups * c->d_state,
                  blocks = (E + 2 * GN + MHK__CONV_STATE_BLOCK - 1) / MHK__CONV_STATE_BLOCK;
  const mhk__span *span = s->spans + task / blocks;
  const mhk_index c0 = task % blocks * MHK__CONV_STATE_BLOCK, c1 = mhk__min(E + 2 * GN, c0 + MHK__CONV_STATE_BLOCK);
  mhk_index run, at = 0;
  mhk__conv_state_args a;
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
  for (run = 0; run < 3; run++) { /* x, B, C get separate arrays */
    const mhk_index end = at + (run ? GN : E);
    a.ldy = end - at;
    a.first = at;
    a.y = (run == 0 ? p->xs : run == 1 ? p->bm : p->cm) + span->row * a.ldy;
    if (mhk__max(c0, at) < mhk__min(c1, end))
      job->ctx->kernels->conv_with_state(&a, mhk__max(c0, at), mhk__min(c1, end));
    at = end;
  }
}

/* state-space: log-decays, rotary of B and C, step sizes */
static void mhk__decays_task(void *arg, mhk_index task, int worker) {
  const mhk__job *job = (const mhk__job *)arg;
  const mhk__pass *p = (const mhk__pass *)job->args;
  const mhk_config *c = &p->s->model->config;
  const mhk_index H = c->ssm_heads, P = c->ssm_head_dim, N = c->d_state,
                  last = mhk__min(p->rows, (task + 1) * MHK__ROWS_TASK);
  const mhk_real low = MHK__R(c->dt_min), high = c->dt_max > 0 ? MHK__R(c->dt_max) : MHK__R(FLT_MAX);
  (void)worker;
  for (mhk_index r = task * MHK__ROWS_TASK; r < last; r++) {
    const mhk_real *a = p->in + r * p->width + p->at_a;
    if (p->layer->kind == MHK_MIXER_MAMBA2) {
      for (mhk_index h = 0; h < H; h++) {
        const mhk_real free = mhk__softplus(a[h] + mhk_data(p->layer->dt_bias)[h]), dt = free < low    ? low
                                                                                         : free > high ? high
                                                                                                       : free;
        p->decay[r * H + h] = dt * p->prepared->rate[h];
        for (mhk_index i = 0; i < P; i++) p->scaled[(r * H + h) * P + i] = p->xs[(r * H + h) * P + i] * dt;
      }
    } else {
      for (mhk_index h = 0; h < H; h++) p->decay[r * H + h] = -mhk__softplus(a[h]);
      if (c->ssm_rotary_dim > 1) {
        mhk__rotate_heads(c->ssm_groups, N, c->ssm_rotary_dim, p->s->rotations[1] + r * c->ssm_rotary_dim,
                        p->bm + r * c->ssm_groups * N);
        mhk__rotate_heads(c->ssm_groups, N, c->ssm_rotary_dim, p->s->rotations[1] + r * c->ssm_rotary_dim,
                        p->cm + r * c->ssm_groups * N);
      }
    }
  }
}

/* one head of one range */
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
  a.per_task = 1;
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
  const mhk_index H = c->ssm_heads, P = c->ssm_head_dim, E = H * P, each = E / c->ssm_groups,
                  last = mhk__min(p->rows, (task + 1) * MHK__ROWS_TASK);
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
      job->ctx->kernels->norm(each, y + i * each, mhk_data(p->layer->ssm_norm_w) + i * each, NULL, MHK__R(c->norm_eps),
                              0, y + i * each, &mean, &rstd);
  }
}

/* state-space mixer of one layer: projection, convolution, scan, gate, and the output projection */
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
  p->in = mhk__carve(&at, rows * p->width);
  p->xs = mhk__carve(&at, rows * E);
  p->bm = mhk__carve(&at, rows * GN);
  p->cm = mhk__carve(&at, rows * GN);
  p->decay = mhk__carve(&at, rows * H);
  p->out = mhk__carve(&at, rows * E);
  p->scaled = mamba2 ? mhk__carve(&at, rows * E) : NULL;
  mhk__apply(ctx, rows, s->u, y->in_w, y->in_b, 0, NULL, p->in);
  mhk__run(ctx, p, p->spans * ((E + 2 * GN + MHK__CONV_STATE_BLOCK - 1) / MHK__CONV_STATE_BLOCK), 1, 1,
           (double)(rows * c->d_conv) * (double)(E + 2 * GN), mhk__conv_state_task);
  mhk__pass_rows(ctx, p, 2.0 * (double)(E + GN), mhk__decays_task);
  mhk__run(ctx, p, p->spans * H, 1, mhk__span_heads_work(s), 2.0 * (double)(rows * E) * c->d_state, mhk__scan_task);
  mhk__pass_rows(ctx, p, 8.0 * (double)E, mhk__gate_task);
  mhk__apply(ctx, rows, p->out, y->out_w, y->out_b, 0, s->x, s->y);
}

/* Runs all layers over the rows of the first spans; then s->x holds the residual. Updates states
   and caches, but not the positions. */
static void mhk__pass_layers(mhk_session *s, mhk_index spans, mhk_index rows) {
  mhk_context *ctx = s->object.ctx;
  const mhk_model *m = s->model;
  const mhk_index D = m->config.d_model, each = mhk__conv_channels(&m->config) * (m->config.d_conv - 1) +
                                                mhk__d_inner(&m->config) * m->config.d_state;
  mhk__pass p;
  memset(&p, 0, sizeof p);
  p.s = s;
  p.spans = spans;
  p.rows = rows;
  for (mhk_index i = 0; i < spans; i++)
    for (mhk_index t = 0; t < s->spans[i].n; t++)
      mhk_tensor_read(m->embedding, s->spans[i].tokens[t] * D, D, s->x + (s->spans[i].row + t) * D);
  mhk__pass_rotations(&p);
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

static int mhk__wants(const mhk_feed_desc *feed, mhk_index sequence, mhk_index index) {
  return feed && (!feed->wanted || !feed->wanted[sequence] || feed->wanted[sequence][index]);
}

/* final norm and head for n rows of x: logits (n,V) */
static void mhk__pass_head(mhk_session *s, mhk_index n, const mhk_real *x, mhk_real *logits) {
  const mhk_model *m = s->model;
  mhk__pass p;
  memset(&p, 0, sizeof p);
  p.s = s;
  p.rows = n;
  mhk__pass_norm(s->object.ctx, &p, x, m->norm_w, m->norm_b, s->u);
  mhk__apply(s->object.ctx, n, s->u, m->head_w, m->head_b, 0, NULL, logits);
}

/* Finds the next row of a pass whose logits are needed, from (*i,*t); 0 at the end. done[b]: tokens
   of the feed before this pass. */
static int mhk__next_wanted(const mhk_session *s, mhk_index spans, const mhk_feed_desc *feed, mhk_index *i,
                            mhk_index *t) {
  for (; *i < spans; (*i)++, *t = 0)
    for (; *t < s->spans[*i].n; (*t)++) {
      const mhk_index b = s->spans[*i].sequence, index = s->fed[b] + *t;
      if (index + 1 == s->lengths[b] || mhk__wants(feed, b, index)) return 1;
    }
  return 0;
}

/* Computes the logits of a pass: for the last token of each feed and for those that the callback
   needs, as many at a time as the block has room for. */
static void mhk__pass_logits(mhk_session *s, mhk_index spans, const mhk_feed_desc *feed) {
  const mhk_index D = s->model->config.d_model, V = s->vocab, room = mhk__min(s->rows, s->wide_numbers / V);
  mhk_index i = 0, t = 0;
  while (s->object.ctx->result == MHK_OK && mhk__next_wanted(s, spans, feed, &i, &t)) {
    mhk_index i0 = i, t0 = t, n = 0, b = s->spans[i].sequence;
    mhk_real *logits = s->wide;
    while (n < room && mhk__next_wanted(s, spans, feed, &i, &t)) {
      if (!feed && s->spans[i].sequence != b + n) break;
      memcpy(s->y + n++ * D, s->x + (s->spans[i].row + t) * D, (size_t)D * sizeof(mhk_real));
      t++;
    }
    if (!feed) logits = s->logits + b * V; /* last tokens of adjacent sequences: write directly to the result */
    mhk__pass_head(s, n, s->y, logits);
    for (n = 0; mhk__next_wanted(s, spans, feed, &i0, &t0) && (i0 < i || (i0 == i && t0 < t)); n++, t0++) {
      const mhk_index index = s->fed[s->spans[i0].sequence] + t0;
      b = s->spans[i0].sequence;
      if (index + 1 == s->lengths[b]) {
        if (feed) memcpy(s->logits + b * V, logits + n * V, (size_t)V * sizeof(mhk_real));
        s->sequences[b].fed = 1;
      }
      if (mhk__wants(feed, b, index)) feed->take(feed->user, b, index, logits + n * V);
    }
  }
}

/* ---- feeding ---- */

static void mhk__snapshot_store(mhk_session *s, mhk_index sequence);

/* Checks everything about a feed before it changes anything. */
static int mhk__feed_makes_sense(mhk_session *s) {
  mhk_context *ctx = s->object.ctx;
  const mhk_index known = s->model->embedding->shape[0];
  for (mhk_index b = 0; b < s->batch; b++) {
    const mhk__sequence *q = s->sequences + b;
    if (s->lengths[b] < 0 || (s->lengths[b] > 0 && !s->tokens[b]))
      return mhk__no(ctx, MHK_ERROR_ARGUMENT, "cannot feed sequence %lld %lld tokens%s", (long long)b,
                     (long long)s->lengths[b], s->lengths[b] > 0 ? " at NULL" : "");
    if (s->attention_layers && !s->window && s->lengths[b] > s->capacity - q->position)
      return mhk__no(
          ctx, MHK_ERROR_STATE,
          "the key/value cache of sequence %lld is full: it holds %lld of %lld tokens and %lld more do not fit; "
          "give the session a larger capacity or a window",
          (long long)b, (long long)q->position, (long long)s->capacity, (long long)s->lengths[b]);
    if (s->lengths[b] > PTRDIFF_MAX / 64 - q->position)
      return mhk__no(ctx, MHK_ERROR_STATE, "sequence %lld cannot count beyond %lld tokens", (long long)b,
                     (long long)(PTRDIFF_MAX / 64));
    for (mhk_index i = 0; i < s->lengths[b]; i++)
      if (s->tokens[b][i] < 0 || s->tokens[b][i] >= known)
        return mhk__no(ctx, MHK_ERROR_ARGUMENT, "token %lld of sequence %lld is %d: the vocabulary has ids 0 to %lld",
                       (long long)i, (long long)b, (int)s->tokens[b][i], (long long)known - 1);
  }
  return 1;
}

/* Prefill: feeds s->lengths tokens at s->tokens, in a session that has been entered. A sequence is
   split into pieces that depend only on itself (chunk, snapshots), so its results do not depend on
   other sequences. A pass processes as many whole pieces as fit. */
static void mhk__feed_entered(mhk_session *s, const mhk_feed_desc *feed) {
  mhk_context *ctx = s->object.ctx;
  mhk_index spans, rows;
  if (!mhk__feed_makes_sense(s)) return;
  if (s->model->trainable) mhk__session_prepare(s);
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
    mhk__pass_logits(s, spans, feed);
    for (mhk_index i = 0; i < spans; i++) {
      mhk__sequence *q = s->sequences + s->spans[i].sequence;
      q->first = mhk__first_after(s, s->spans + i, s->spans[i].n);
      q->position += s->spans[i].n;
      s->fed[s->spans[i].sequence] += s->spans[i].n;
      mhk__sampler_fed(&s->sampler, s->spans[i].sequence, s->spans[i].tokens, s->spans[i].n);
      if (s->snapshot_every && q->position % s->snapshot_every == 0) mhk__snapshot_store(s, s->spans[i].sequence);
    }
    if (ctx->result != MHK_OK) break;
  }
}

static mhk_result mhk__feed(mhk_session *s, const mhk_feed_desc *feed) {
  const mhk__entered entered = mhk__session_enter(s);
  mhk__feed_entered(s, feed);
  mhk__session_leave(s, entered);
  return s->object.ctx->result;
}

MHKDEF mhk_result mhk_feed(mhk_session *s, const int32_t *tokens, mhk_index n) {
  if (!s || s->object.ctx->result != MHK_OK) return mhk__session_result(s);
  if (n < 0 || n > PTRDIFF_MAX / 64 / s->batch)
    return mhk_fail(s->object.ctx, MHK_ERROR_ARGUMENT, "cannot feed each of %lld sequences %lld tokens",
                    (long long)s->batch, (long long)n);
  for (mhk_index b = 0; b < s->batch; b++) {
    s->tokens[b] = tokens ? tokens + b * n : NULL;
    s->lengths[b] = n;
  }
  return mhk__feed(s, NULL);
}

MHKDEF mhk_result mhk_feed_batch(mhk_session *s, const mhk_feed_desc *desc) {
  if (!s || s->object.ctx->result != MHK_OK) return mhk__session_result(s);
  if (!desc || !desc->tokens || !desc->lengths)
    return mhk_fail(s->object.ctx, MHK_ERROR_ARGUMENT,
                    "feed_batch needs tokens and lengths: a list of ids and a count for each sequence");
  for (mhk_index b = 0; b < s->batch; b++) {
    s->tokens[b] = desc->tokens[b];
    s->lengths[b] = desc->lengths[b];
  }
  return mhk__feed(s, desc->take ? desc : NULL);
}

typedef struct mhk__scoring { const mhk_session *s; const int32_t *tokens; mhk_index n; double *out; } mhk__scoring;

static void mhk__score_next(const mhk__scoring *x, mhk_index next, const mhk_real *logits) {
  x->out[next] =
      (double)logits[x->tokens[next]] - x->s->object.ctx->kernels->log_sum_exp(x->s->vocab, logits, MHK__R(1));
}
static void mhk__score_logits(void *user, mhk_index sequence, mhk_index index, const mhk_real *logits) {
  const mhk__scoring *x = (const mhk__scoring *)user;
  (void)sequence;
  if (index + 1 < x->n) mhk__score_next(x, index + 1, logits);
}

MHKDEF mhk_result mhk_score(mhk_session *s, mhk_index sequence, const int32_t *tokens, mhk_index n,
                            double *log_probabilities) {
  mhk__scoring x;
  mhk_feed_desc take;
  if (!mhk__sequence_there(s, sequence)) return mhk__session_result(s);
  if (n < 0 || (n > 0 && (!tokens || !log_probabilities)))
    return mhk_fail(s->object.ctx, MHK_ERROR_ARGUMENT,
                    "scoring %lld tokens needs the tokens and room for as many numbers", (long long)n);
  if (n == 0) return MHK_OK;
  if (!s->sequences[sequence].fed)
    return mhk_fail(s->object.ctx, MHK_ERROR_STATE, "score: feed sequence %lld at least one token first",
                    (long long)sequence);
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
  memset(&take, 0, sizeof take);
  take.take = mhk__score_logits;
  take.user = &x;
  return mhk__feed(s, &take);
}

/* Feeds the ids in the buffer when it is full. The tokenizer calls this while the session is
   entered. */
static void mhk__feed_ids(void *user, const int32_t *ids, mhk_index n) {
  mhk_session *s = (mhk_session *)user;
  if (s->object.ctx->result != MHK_OK) return;
  s->tokens[0] = ids;
  s->lengths[0] = n;
  mhk__feed_entered(s, NULL);
}

MHKDEF mhk_result mhk_feed_bytes(mhk_session *s, const char *text, size_t length) {
  const unsigned char *bytes = (const unsigned char *)text;
  mhk_context *ctx;
  mhk__ids out;
  if (!s || s->object.ctx->result != MHK_OK) return mhk__session_result(s);
  ctx = s->object.ctx;
  mhk_tokenizer *k = s->model->tokenizer;
  if (!k && s->model->tokenizer_error)
    return mhk_fail(ctx, MHK_ERROR_STATE, "the model has no tokenizer: %s", s->model->tokenizer_error);
  if (!k)
    return mhk_fail(ctx, MHK_ERROR_STATE,
                    "the model has no tokenizer: put a tokenizer.json in its folder, or feed token ids");
  if (!s->ids)
    return mhk_fail(ctx, MHK_ERROR_STATE,
                    "the model got its tokenizer after this session was created: create the session afterwards");
  if ((!text && length > 0) || length > (size_t)PTRDIFF_MAX)
    return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "feed_bytes: the text is missing (NULL)");
  if (s->batch != 1)
    return mhk_fail(ctx, MHK_ERROR_ARGUMENT,
                    "feed_text needs a session of one sequence; this one has %lld: feed token ids",
                    (long long)s->batch);
  if (k->object.ctx != ctx)
    return mhk_fail(ctx, MHK_ERROR_ARGUMENT,
                    "the tokenizer belongs to another context: encode the text there and feed token ids");
  memset(&out, 0, sizeof out);
  out.ids = s->ids;
  out.capacity = s->chunk;
  out.full = mhk__feed_ids;
  out.user = s;
  out.longest = s->word_bytes;
  out.grows = !s->given;
  if (s->sequences[0].position == 0 && !s->no_start && mhk__starts_text(k, bytes, length)) mhk__ids_put(&out, k->start);
  mhk__entered entered = mhk__session_enter(s);
  mhk__encode_part(k, bytes, length, 0, &out);
  if (out.n > 0 && ctx->result == MHK_OK) mhk__feed_ids(s, s->ids, out.n);
  mhk__session_leave(s, entered);
  return ctx->result;
}

MHKDEF mhk_result mhk_feed_text(mhk_session *s, const char *text) {
  if (s && s->object.ctx->result == MHK_OK && !text)
    return mhk_fail(s->object.ctx, MHK_ERROR_ARGUMENT, "feed_text: the text is missing (NULL)");
  return mhk_feed_bytes(s, text, text ? strlen(text) : 0);
}

MHKDEF const mhk_real *mhk_logits(const mhk_session *s, mhk_index sequence) {
  return s && sequence >= 0 && sequence < s->batch && s->sequences[sequence].fed ? s->logits + sequence * s->vocab
                                                                                 : NULL;
}

/* ---- what a sequence has seen ---- */

/* the number of last keys and values that the next tokens of a sequence at position see */
static mhk_index mhk__rows_needed(const mhk_session *s, mhk_index position) {
  return !s->attention_layers ? 0 : s->window ? mhk__min(position, s->window - 1) : position;
}

/* The memory that the next tokens of a sequence read, in the order of snapshots and saved states.
   Piece 0 has all recurrent numbers, pieces 1 to 2 * attention_layers have the last rows of each
   cache, keys before values. *n: the length of the piece. */
static mhk_real *mhk__state_piece(const mhk_session *s, const mhk__sequence *q, int piece, mhk_index rows,
                                  mhk_index *n) {
  const mhk_index kv = (mhk_index)s->model->config.n_kv_head * s->model->config.head_dim;
  *n = piece ? rows * kv : s->state_numbers;
  return piece ? q->cache + (s->cache_rows * (piece - 1) + q->position - q->first - rows) * kv : q->state;
}

/* Copies what the next tokens see to numbers, piece by piece. */
static void mhk__state_keep(const mhk_session *s, const mhk__sequence *q, mhk_index rows, mhk_real *numbers) {
  mhk_index n;
  for (int i = 0; i <= 2 * s->attention_layers; i++, numbers += n) {
    const mhk_real *piece = mhk__state_piece(s, q, i, rows, &n);
    if (n > 0) memcpy(numbers, piece, (size_t)n * sizeof(mhk_real));
  }
}

/* Rewinds a sequence to a position where mhk__state_keep() saved numbers. rows 0: the caches still
   hold everything before that position. */
static void mhk__state_back(mhk_session *s, mhk_index sequence, mhk_index position, mhk_index rows,
                            const mhk_real *numbers) {
  mhk__sequence *q = s->sequences + sequence;
  mhk_index n;
  mhk__sampler_forget(&s->sampler, sequence, q->position - position);
  for (mhk_index i = 0; i < s->snapshots; i++) /* from a past that is now invalid */
    if (q->snapshots[i].position > position) q->snapshots[i].position = 0;
  q->position = position;
  if (s->window) q->first = position - rows;
  q->fed = 0;
  for (int i = 0; i <= 2 * s->attention_layers; i++, numbers += n) {
    mhk_real *piece = mhk__state_piece(s, q, i, rows, &n);
    if (n > 0) memcpy(piece, numbers, (size_t)n * sizeof(mhk_real));
  }
}

/* ---- snapshots ---- */

/* Takes a snapshot of a sequence: in the slot of the same position, otherwise in a free slot,
   otherwise in place of the oldest. */
static void mhk__snapshot_store(mhk_session *s, mhk_index sequence) {
  mhk__sequence *q = s->sequences + sequence;
  mhk__snapshot *slot = q->snapshots;
  if (q->position == 0 || s->snapshots == 0) return; /* the start needs no slot */
  for (mhk_index i = 1; i < s->snapshots && slot->position != q->position; i++) {
    mhk__snapshot *x = q->snapshots + i;
    if (x->position == q->position || x->position < slot->position) slot = x;
  }
  slot->position = q->position;
  slot->rows = s->window ? mhk__rows_needed(s, q->position) : 0;
  mhk__state_keep(s, q, slot->rows, slot->numbers);
}

MHKDEF mhk_result mhk_session_snapshot(mhk_session *s, mhk_index sequence) {
  if (!mhk__sequence_there(s, sequence)) return mhk__session_result(s);
  if (s->snapshots == 0 && (s->state_layers || s->window))
    return mhk_fail(s->object.ctx, MHK_ERROR_STATE,
                    "the session keeps no snapshots: set mhk_session_desc.snapshots");
  mhk__snapshot_store(s, sequence);
  return MHK_OK;
}

MHKDEF mhk_index mhk_session_rewind(mhk_session *s, mhk_index sequence, mhk_index position) {
  const mhk__snapshot *best = NULL;
  if (!mhk__sequence_there(s, sequence)) return -1;
  const mhk__sequence *q = s->sequences + sequence;
  if (position < 0 || position > q->position) {
    mhk_fail(s->object.ctx, MHK_ERROR_ARGUMENT, "sequence %lld cannot go back to %lld: it is at %lld",
             (long long)sequence, (long long)position, (long long)q->position);
    return -1;
  }
  if (position == q->position) return position;
  for (mhk_index i = 0; i < s->snapshots; i++) {
    const mhk__snapshot *x = q->snapshots + i;
    if (x->position > 0 && x->position <= position && (!best || x->position > best->position)) best = x;
  }
  if (!s->state_layers && !s->window)
    mhk__state_back(s, sequence, position, 0, NULL);
  else if (best)
    mhk__state_back(s, sequence, best->position, best->rows, best->numbers);
  else
    mhk__sequence_reset(s, sequence);
  return q->position;
}

/* ---- the state as a value ---- */

/* Checks whether a state at position with its last rows of keys and values can become a sequence of
   s. */
static int mhk__state_fits(mhk_session *s, mhk_index position, mhk_index rows) {
  const mhk_index needed = mhk__rows_needed(s, position);
  if (s->attention_layers && !s->window && position > s->capacity)
    return mhk__no(s->object.ctx, MHK_ERROR_STATE, "the state has seen %lld tokens, but the session's cache holds %lld",
                   (long long)position, (long long)s->capacity);
  if (rows < needed)
    return mhk__no(
        s->object.ctx, MHK_ERROR_STATE,
        "the state holds keys and values of the last %lld tokens, but this session's attention sees %lld: the "
        "state comes from a smaller window",
        (long long)rows, (long long)needed);
  return 1;
}

MHKDEF mhk_result mhk_session_copy(mhk_session *to, mhk_index to_sequence, const mhk_session *from,
                                   mhk_index from_sequence) {
  if (!mhk__sequence_there(to, to_sequence)) return mhk__session_result(to);
  if (!from || from_sequence < 0 || from_sequence >= from->batch)
    return mhk_fail(to->object.ctx, MHK_ERROR_ARGUMENT, "there is no sequence %lld to copy", (long long)from_sequence);
  if (from->model != to->model)
    return mhk_fail(to->object.ctx, MHK_ERROR_STATE,
                    "a sequence can only be copied between sessions of the same model");
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
  for (int i = 0; i <= 2 * to->attention_layers; i++) {
    mhk_index n;
    mhk_real *piece = mhk__state_piece(to, b, i, needed, &n);
    if (n > 0) memcpy(piece, mhk__state_piece(from, a, i, needed, &n), (size_t)n * sizeof(mhk_real));
  }
  if (a->fed)
    memcpy(to->logits + to_sequence * to->vocab, from->logits + from_sequence * from->vocab,
           (size_t)to->vocab * sizeof(mhk_real));
  mhk__sampler_copy(&to->sampler, to_sequence, &from->sampler, from_sequence);
  return MHK_OK;
}

/* A saved state: a head of MHK__STATE_HEAD bytes, the pieces of mhk__state_piece(), logits, tokens
   for penalties, and 8 bytes of checksum. All numbers are little-endian. */
#define MHK__STATE_HEAD 64
#define MHK__STATE_VERSION 2

/* The destination of a state, memory or a file, with the checksum so far. */
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
  mhk_real little[64];
  const mhk_index each = mhk__little_endian() ? n : 64;
  for (mhk_index i = 0, some; i < n; i += some) {
    some = mhk__min(each, n - i);
    if (!mhk__little_endian()) mhk__byte_swap(x + i, some, sizeof(mhk_real), little);
    mhk__state_put(o, mhk__little_endian() ? x + i : little, (size_t)some * sizeof(mhk_real));
  }
}

/* bytes of a state with these numbers of rows of keys and values and of tokens; a double, because
   the numbers may come from a file */
static double mhk__state_bytes(const mhk_session *s, double rows, double tokens) {
  const mhk_config *c = &s->model->config;
  return MHK__STATE_HEAD + 8 + 4.0 * tokens +
         ((double)s->state_numbers + 2.0 * rows * s->attention_layers * c->n_kv_head * c->head_dim + (double)s->vocab) *
             (double)sizeof(mhk_real);
}

MHKDEF size_t mhk_session_state_bytes(const mhk_session *s, mhk_index sequence) {
  if (!s || sequence < 0 || sequence >= s->batch) return 0;
  return (size_t)mhk__state_bytes(s, (double)mhk__rows_needed(s, s->sequences[sequence].position), (double)s->recent);
}

/* writes head, pieces, logits, remembered tokens and checksum of a sequence */
static void mhk__state_write(const mhk_session *s, mhk_index sequence, mhk__state_out *o) {
  const mhk__sequence *q = s->sequences + sequence;
  const mhk_index rows = mhk__rows_needed(s, q->position);
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
    head[41] = (unsigned char)s->sampler.decoder.n_held;
    memcpy(head + 42, s->sampler.decoder.held, 4);
  }
  mhk__put_bytes(head + 48, (uint64_t)s->recent, 8);
  mhk__put_bytes(head + 56, (uint64_t)n_seen, 8);
  o->sum = MHK__HASH_START;
  mhk__state_put(o, head, sizeof head);
  for (int i = 0; i <= 2 * s->attention_layers; i++) {
    mhk_index n;
    const mhk_real *piece = mhk__state_piece(s, q, i, rows, &n);
    mhk__state_put_numbers(o, piece, n);
  }
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

MHKDEF mhk_result mhk_session_save_memory(mhk_session *s, mhk_index sequence, void *state, size_t bytes) {
  mhk__state_out o;
  if (!mhk__sequence_there(s, sequence)) return mhk__session_result(s);
  if (!state || bytes < mhk_session_state_bytes(s, sequence))
    return mhk_fail(s->object.ctx, MHK_ERROR_ARGUMENT,
                    "the state of sequence %lld needs %.0f bytes, but there is room for %.0f", (long long)sequence,
                    (double)mhk_session_state_bytes(s, sequence), state ? (double)bytes : 0.0);
  memset(&o, 0, sizeof o);
  o.to = (unsigned char *)state;
  mhk__state_write(s, sequence, &o);
  return MHK_OK;
}

/* The contents of the head of a saved state. */
typedef struct mhk__state_head {
  mhk_index position, rows; /* rows of keys and values */
  mhk_index seen;           /* tokens for penalties */
} mhk__state_head;

/* Checks a saved state before any of it is used: returns MHK_OK and its head, or an error that says
   what is wrong. */
static mhk_result mhk__state_check(mhk_session *s, const unsigned char *p, size_t bytes, const char *where,
                                   mhk__state_head *head) {
  mhk_context *ctx = s->object.ctx;
  if (!p || bytes < MHK__STATE_HEAD + 8 || memcmp(p, "MHKSTATE", 8) != 0)
    return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s is not a saved session state: it does not start like one", where);
  if (mhk__get_bytes(p + 8, 4) != MHK__STATE_VERSION)
    return mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "%s is a session state of version %.0f; this program reads version %d",
                    where, (double)mhk__get_bytes(p + 8, 4), MHK__STATE_VERSION);
  if (mhk__get_bytes(p + 12, 4) != sizeof(mhk_real))
    return mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "%s holds numbers of %.0f bytes, but this build computes with %d",
                    where, (double)mhk__get_bytes(p + 12, 4), (int)sizeof(mhk_real));
  if (mhk__get_bytes(p + 16, 8) != mhk__model_hash(s->model))
    return mhk_fail(ctx, MHK_ERROR_STATE, "%s is the state of another model, or of this one with other weights", where);
  const uint64_t position = mhk__get_bytes(p + 24, 8), rows = mhk__get_bytes(p + 32, 8),
                 room = mhk__get_bytes(p + 48, 8), seen = mhk__get_bytes(p + 56, 8);
  const double should = mhk__state_bytes(s, (double)rows, (double)room);
  if (position > (uint64_t)(PTRDIFF_MAX / 64) || rows > position || seen > position || seen > room ||
      (double)bytes < should || (double)bytes > should)
    return mhk_fail(ctx, MHK_ERROR_FORMAT,
                    "%s is damaged: it has %.0f bytes, and after %.0f tokens with keys and values of %.0f and %.0f "
                    "remembered it should have %.0f",
                    where, (double)bytes, (double)position, (double)rows, (double)seen, should);
  if (mhk__get_bytes(p + bytes - 8, 8) != mhk__hash(MHK__HASH_START, p, bytes - 8))
    return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s is damaged: its checksum is wrong", where);
  if (p[40] > 1 || p[41] > 3)
    return mhk_fail(ctx, MHK_ERROR_FORMAT, "%s is damaged: it claims %d logits and %d bytes of an unfinished character",
                    where, p[40], p[41]);
  head->position = (mhk_index)position;
  head->rows = (mhk_index)rows;
  head->seen = (mhk_index)seen;
  return mhk__state_fits(s, head->position, head->rows) ? MHK_OK : ctx->result;
}

/* restores a sequence from a checked state */
static mhk_result mhk__state_load(mhk_session *s, mhk_index sequence, const void *state, size_t bytes,
                                  const char *where) {
  const unsigned char *p = (const unsigned char *)state;
  const mhk_index kv = (mhk_index)s->model->config.n_kv_head * s->model->config.head_dim;
  mhk__sequence *q = s->sequences + sequence;
  mhk__state_head head;
  memset(&head, 0, sizeof head);
  if (mhk__state_check(s, p, bytes, where, &head) != MHK_OK) return s->object.ctx->result;
  const mhk_index needed = mhk__rows_needed(s, head.position);
  mhk__sequence_reset(s, sequence);
  q->position = head.position;
  q->first = q->position - needed;
  q->fed = p[40];
  if (sequence == 0) {
    s->sampler.decoder.n_held = p[41];
    memcpy(s->sampler.decoder.held, p + 42, 4);
  }
  p += MHK__STATE_HEAD;
  for (int i = 0; i <= 2 * s->attention_layers; i++) {
    mhk_index n;
    mhk_real *piece = mhk__state_piece(s, q, i, needed, &n);
    if (i > 0) p += (size_t)((head.rows - needed) * kv) * sizeof(mhk_real);
    mhk__from_little(MHK_REAL, p, n, piece);
    p += (size_t)n * sizeof(mhk_real);
  }
  mhk__from_little(MHK_REAL, p, s->vocab, s->logits + sequence * s->vocab);
  p += (size_t)s->vocab * sizeof(mhk_real);
  for (mhk_index i = 0; i < head.seen; i++, p += 4) {
    const int32_t token = (int32_t)mhk__get_bytes(p, 4);
    mhk__sampler_fed(&s->sampler, sequence, &token, 1);
  }
  return MHK_OK;
}

MHKDEF mhk_result mhk_session_load_memory(mhk_session *s, mhk_index sequence, const void *state, size_t bytes) {
  if (!mhk__sequence_there(s, sequence)) return mhk__session_result(s);
  return mhk__state_load(s, sequence, state, bytes, "the block");
}

#ifndef MOHAWK_NO_STDIO
MHKDEF mhk_result mhk_session_save(mhk_session *s, mhk_index sequence, const char *path) {
  mhk__output file;
  mhk__state_out o;
  if (!mhk__sequence_there(s, sequence)) return mhk__session_result(s);
  if (!mhk__path_fits(s->object.ctx, path)) return s->object.ctx->result;
  mhk__output_open(&file, path);
  memset(&o, 0, sizeof o);
  o.file = &file;
  mhk__state_write(s, sequence, &o);
  return mhk__output_close_or_fail(s->object.ctx, &file);
}

MHKDEF mhk_result mhk_session_load(mhk_session *s, mhk_index sequence, const char *path) {
  mhk__bytes bytes;
  if (!mhk__sequence_there(s, sequence)) return mhk__session_result(s);
  if (!mhk__path_fits(s->object.ctx, path) || !mhk__bytes_open_or_fail(s->object.ctx, path, &bytes))
    return s->object.ctx->result;
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

/* whether the settings are valid for the session */
static int mhk__sampling_fits(mhk_session *s, const mhk_sampling *how) {
  char wrong[MHK__SETTING];
  mhk__sampling_wrong(how, s->vocab, wrong);
  if (!*wrong && how->penalty_tokens > s->sampler.window)
    mhk__print(wrong, sizeof wrong,
               "penalty_tokens is %d, but the session remembers %lld tokens (recent of mhk_session_desc)",
               how->penalty_tokens, (long long)s->sampler.window);
  for (int k = 0; !*wrong && k < how->n_stop_strings; k++)
    if (strlen(how->stop_strings[k]) > s->sampler.stop_bytes)
      mhk__print(
          wrong, sizeof wrong,
          "stop string %d is longer than the session's limit of %lld bytes (stop_bytes of mhk_session_desc)", k,
          (long long)s->sampler.stop_bytes);
  if (*wrong) mhk_fail(s->object.ctx, MHK_ERROR_ARGUMENT, "sample: %s", wrong);
  return !*wrong;
}

/* Before draws: checks the settings and that there are logits, and seeds the session. */
static int mhk__draw_ready(mhk_session *s, const mhk_sampling *how) {
  mhk_context *ctx = s->object.ctx;
  if (ctx->result != MHK_OK) return 0;
  for (mhk_index b = 0; b < s->batch; b++)
    if (!s->sequences[b].fed)
      return mhk__no(ctx, MHK_ERROR_STATE, "sample: feed sequence %lld at least one token first", (long long)b);
  if (!mhk__sampling_fits(s, how)) return 0;
  if (how->seed && how->seed != s->sampler.seed) {
    s->sampler.seed = how->seed;
    mhk__rng_seed(&s->sampler.rng, how->seed);
  }
  return 1;
}

/* sets the error that says why no token can be drawn; returns 0 */
static int mhk__draw_fails(mhk_session *s, const mhk_real *logits) {
  mhk_index i;
  for (i = 0; i < s->vocab; i++)
    if (!(fabs((double)logits[i]) <= DBL_MAX)) break;
  if (i < s->vocab)
    return mhk__no(s->object.ctx, MHK_ERROR_STATE,
                   "sample: logit %lld is not a number: the weights or the state are broken", (long long)i);
  return mhk__no(s->object.ctx, MHK_ERROR_ARGUMENT, "sample: bias and penalties exclude every token");
}

/* draws a token for each row; `how` is resolved */
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
    return mhk_fail(s->object.ctx, MHK_ERROR_ARGUMENT, "sample_batch: the array for the tokens is missing (NULL)");
  if (!mhk__draw_all(s, mhk__sampling_or(sampling, &usual), tokens)) return s->object.ctx->result;
  return mhk_feed(s, tokens, 1);
}

static void mhk__say_nothing(mhk_session *s) {
  s->sampler.stop = MHK_STOP_NONE;
  if (s->sampler.text) s->sampler.text[0] = 0;
}

/* Adds a drawn token to the text; returns 0 if the text ends. */
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
  if (MHK__TEXT_ROOM(s->sampler.stop_bytes, length) > s->sampler.text_room)
    return mhk__no(s->object.ctx, MHK_ERROR_STATE,
                   "sample: token %d is longer than any token of the session's first tokenizer", (int)token);
  if (mhk__sampler_text(&s->sampler, how, bytes, length, 0)) s->sampler.stop = MHK_STOP_STRING;
  return s->sampler.stop == MHK_STOP_NONE;
}

MHKDEF int32_t mhk_sample(mhk_session *s, const mhk_sampling *sampling) {
  mhk_sampling usual;
  int32_t token;
  if (!s) return -1;
  mhk__say_nothing(s);
  if (s->batch != 1) {
    mhk_fail(s->object.ctx, MHK_ERROR_ARGUMENT,
             "sample needs a session of one sequence; this one has %lld: use mhk_sample_batch()", (long long)s->batch);
    return -1;
  }
  sampling = mhk__sampling_or(sampling, &usual);
  if (!mhk__draw_all(s, sampling, &token) || !mhk__session_say(s, sampling, token)) return -1;
  return mhk_feed(s, &token, 1) == MHK_OK ? token : -1;
}

/* ---- speculative decoding ----

   Leviathan, Kalman and Matias, "Fast Inference from Transformers via Speculative Decoding" (arXiv
   2211.17192). A small model drafts tokens, drawn from its distribution q, and one pass of the
   target judges them all. A drafted token x is accepted with probability min(1, p(x) / q(x)), p
   being the target's distribution there; the first that is refused gives way to a draw from
   max(0, p - q), scaled to sum to 1, and after the last accepted one comes a draw from p. What
   comes out is distributed as if the target alone had drawn it. */

#define MHK__MOST_DRAFTED 16

/* A round starts with both sessions before round[0], the pending token, which was returned last;
   the draft session also lacks `lead` tokens before it. The draft then writes round[1..drafted] and
   the target verifies them. round[1..n) are the accepted tokens and one more, drawn by the
   target. */
struct mhk_speculation {
  mhk__object object;
  mhk_session *target, *draft;
  int fixed, next, lead;                        /* lead: 0 or 1 */
  /* tokens of the round; how many were returned, including the pending one; n is 0 outside a
     round */
  int n, said;
  int accepted, broken;                         /* of this round; broken: a token had no valid distribution */
  int32_t before, round[MHK__MOST_DRAFTED + 2]; /* before: the lead token */
  mhk_index target_at, draft_at;                /* positions at the start of the round */
  /* recurrent numbers at the start of the round; for the draft, also after each of its tokens */
  mhk_real *target_state, *draft_states;
  double *q;                                    /* (MOST_DRAFTED,V): the distributions that the draft drew from */
  int32_t *seen;                                /* tokens for penalties: at the start, then of the round */
  mhk_index n_seen;
  const mhk_sampling *how;                      /* while a round is computed */
  int drafted;
  mhk_speculation_info counts;
};

MHKDEF mhk_speculation *mhk_speculation_create(const mhk_speculation_desc *desc) {
  mhk_speculation *x;
  mhk_context *ctx;
  mhk__arena *arena;
  if (!desc || !desc->target || mhk_failed(ctx = desc->target->object.ctx)) return NULL;
  mhk_session *t = desc->target;
  mhk_session *d = desc->draft;
  if (!d || d->object.ctx != ctx || d == t || t->batch != 1 || d->batch != 1 || t->window || d->window ||
      t->vocab != d->vocab || desc->tokens < 0 || desc->tokens > MHK__MOST_DRAFTED)
    return mhk__null(
        ctx, MHK_ERROR_ARGUMENT,
        "speculation needs two sessions of one context and vocabulary, each with one sequence and no window, and "
        "drafts of at most %d tokens",
        MHK__MOST_DRAFTED);
  x = (mhk_speculation *)mhk__object_new(ctx, sizeof *x, NULL);
  if (!x) return NULL;
  arena = &x->object.arena;
  x->target = t;
  x->draft = d;
  x->fixed = desc->tokens;
  x->next = desc->tokens ? desc->tokens : 4;
  const mhk_index n_slots = x->fixed ? x->fixed : MHK__MOST_DRAFTED;
  x->target_state = (mhk_real *)mhk__arena_zeros(ctx, arena, t->state_numbers + 1, sizeof(mhk_real));
  x->draft_states = d->state_numbers < PTRDIFF_MAX / 32
                        ? (mhk_real *)mhk__arena_zeros(ctx, arena, d->state_numbers * n_slots + 1, sizeof(mhk_real))
                        : NULL;
  x->q = (double *)mhk__arena_zeros(ctx, arena, t->vocab * n_slots, sizeof(double));
  x->seen = (int32_t *)mhk__arena_zeros(ctx, arena, t->sampler.window + MHK__MOST_DRAFTED + 2, sizeof(int32_t));
  if (ctx->result != MHK_OK) {
    mhk__object_free(x);
    return NULL;
  }
  return x;
}

MHKDEF mhk_speculation_info mhk_speculation_progress(const mhk_speculation *x) {
  mhk_speculation_info none;
  memset(&none, 0, sizeof none);
  return x ? x->counts : none;
}

/* Rewinds a session to an earlier position, where its recurrent numbers were `state`. */
static void mhk__step_back(mhk_session *s, mhk_index position, const mhk_real *state) {
  if (s->sequences->position != position) mhk__state_back(s, 0, position, 0, state);
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
  return mhk_probabilities(logits, s->vocab, x->how, x->seen + have - some, some, p, s->sampler.order) > 0 ||
         mhk__draw_fails(s, logits);
}

/* The target's logits after round[index]: accepts the next drafted token with probability min(1,
   p/q), otherwise draws from the positive part of p - q. */
static void mhk__judge(void *user, mhk_index sequence, mhk_index index, const mhk_real *logits) {
  mhk_speculation *x = (mhk_speculation *)user;
  mhk_session *t = x->target;
  double *p = t->sampler.p, *q = x->q + index * t->vocab, left = 0;
  (void)sequence;
  if (x->broken || index > x->accepted) return; /* an earlier token was rejected */
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
    if (left > 0) p = q; /* otherwise p and q differ only by rounding */
  }
  x->round[x->accepted + 1] = mhk_draw(p, t->vocab, mhk__rng_uniform(&t->sampler.rng) * (p == q ? left : 1));
}

/* Saves the positions of both sessions at the start of a round, and the recurrent numbers of the
   target. */
static void mhk__speculation_mark(mhk_speculation *x) {
  x->target_at = x->target->sequences[0].position;
  x->draft_at = x->draft->sequences[0].position;
  mhk__state_keep(x->target, x->target->sequences, 0, x->target_state);
}

/* Runs a round: drafts after the pending token, and verifies the drafts in one pass. */
static int mhk__speculation_round(mhk_speculation *x, const mhk_sampling *how) {
  mhk_session *t = x->target, *d = x->draft;
  const mhk_index room = t->attention_layers ? t->capacity - t->sequences[0].position : PTRDIFF_MAX;
  const mhk_index draft_room = d->attention_layers ? d->capacity - d->sequences[0].position : PTRDIFF_MAX;
  const int32_t *tokens = x->round, *seen;
  mhk_feed_desc feed;
  x->drafted = (int)mhk__min(x->next, mhk__max(0, mhk__min(room - 1, draft_room - x->lead)));
  x->how = how;
  x->accepted = x->broken = 0;
  x->said = 1;
  mhk__speculation_mark(x);
  seen = mhk__sampler_seen(&t->sampler, 0, &x->n_seen);
  memcpy(x->seen, seen, (size_t)x->n_seen * sizeof *seen);
  x->seen[x->n_seen] = x->round[0];
  for (int i = 0; i < x->drafted; i++) { /* the last token is not fed, because it may be rejected */
    double *q = x->q + i * t->vocab;
    int32_t some[2];
    mhk__state_keep(d, d->sequences, 0, x->draft_states + i * d->state_numbers);
    some[0] = x->before;
    some[1] = x->round[i];
    if (mhk_feed(d, i ? some + 1 : some + 1 - x->lead, i ? 1 : 1 + x->lead) != MHK_OK) return 0;
    if (!mhk__speculation_p(x, d, d->logits, i, q)) return 0;
    x->round[i + 1] = mhk_draw(q, t->vocab, mhk__rng_uniform(&t->sampler.rng));
    x->seen[x->n_seen + 1 + i] = x->round[i + 1];
  }
  const mhk_index length = x->drafted + 1;
  memset(&feed, 0, sizeof feed);
  feed.tokens = &tokens;
  feed.lengths = &length;
  if (x->drafted) feed.take = mhk__judge;
  feed.user = x;
  if (mhk_feed_batch(t, &feed) != MHK_OK) return 0;
  if (!x->drafted) mhk__judge(x, 0, 0, t->logits);
  if (x->broken || x->object.ctx->result != MHK_OK) return 0;
  x->n = x->accepted + 2;
  x->counts.passes++;
  x->counts.drafted += x->drafted;
  x->counts.accepted += x->accepted;
  if (!x->fixed && x->drafted)
    x->next = x->accepted == x->drafted ? (int)mhk__min(x->next + 2, MHK__FEW - 1) : (int)mhk__max(x->next - 1, 1);
  return 1;
}

/* Ends a round: moves both sessions to before its last token, which is now pending. */
static void mhk__speculation_settle(mhk_speculation *x) {
  mhk_session *t = x->target, *d = x->draft;
  const int known = x->n - 1; /* tokens of the round that the target keeps */
  const int lead = x->lead;
  if (t->state_numbers && x->accepted < x->drafted) { /* recurrent numbers cannot be rewound in part */
    mhk__step_back(t, x->target_at, x->target_state);
    mhk_feed(t, x->round, known);
  } else
    /* recurrent numbers need no rewind: there are none, or all tokens were accepted */
    mhk__step_back(t, x->target_at + known, x->target_state);
  if (x->drafted == 0) { /* no room to draft: the draft session only catches up */
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

/* The first token comes from existing logits; then it is pending. */
static int32_t mhk__speculation_start(mhk_speculation *x, const mhk_sampling *how) {
  mhk_session *t = x->target, *d = x->draft;
  int32_t token;
  if (!t->sequences[0].fed || !d->sequences[0].fed) {
    mhk_fail(x->object.ctx, MHK_ERROR_STATE, "speculate: feed both sessions the same tokens first, at least one");
    return -1;
  }
  if (!mhk__draw_all(t, how, &token) || !mhk__session_say(t, how, token)) return -1;
  x->round[0] = token;
  x->lead = 0;
  x->n = x->said = 1;
  mhk__speculation_mark(x);
  mhk__state_keep(d, d->sequences, 0, x->draft_states);
  x->counts.tokens++;
  return token;
}

MHKDEF int32_t mhk_speculate(mhk_speculation *x, const mhk_sampling *sampling) {
  mhk_sampling usual;
  if (!x) return -1;
  mhk_session *t = x->target;
  mhk__say_nothing(t);
  if (x->object.ctx->result != MHK_OK) return -1;
  sampling = mhk__sampling_or(sampling, &usual);
  if (!mhk__sampling_fits(t, sampling)) return -1;
  if (x->n == 0) return mhk__speculation_start(x, sampling);
  if (x->said == x->n) { /* all of the round is said */
    if (!mhk__draw_ready(t, sampling)) return -1;
    if (x->n > 1) mhk__speculation_settle(x);
    if (!mhk__speculation_round(x, sampling)) return -1;
  }
  const int32_t token = x->round[x->said];
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
/* =================================================================================================
   MOHAWK: corpus, the three stages, trainer, checkpoints, evaluation                       >>mohawk
   =================================================================================================

   A Transformer becomes a state-space model, after Bick, Li, Xing, Kolter and Gu, "Transformers to
   SSMs: Distilling Quadratic Knowledge to Subquadratic Models" (arXiv 2408.10189), section 4. The
   student has the teacher's blocks with another mixer in them, and comes near the teacher in three
   stages, each starting from the weights of the one before. X_l is the teacher's residual stream
   before block l, u_l = norm(X_l), and phi is what a stage trains:

     1 matrix orientation       min_phi  sum_l || softmax(Q_l K_l^T / sqrt(P)) - M_phi(u_l) ||_F
       head by head, M being the mixing matrix of >>ssd. phi: what M depends on, which is the
       in-projection, the convolution and D.
     2 hidden-state alignment   min_phi  sum_l || block_l(X_l) - block_phi(X_l) ||_2
       token by token. phi: the mixers.
     3 knowledge distillation   min_phi  CE(softmax(teacher(x)), softmax(student_phi(x) / tau))
       end to end. phi: everything. MLPs, norms, embedding and head have been the teacher's from the
       start: mhk_student_create() copies them (weight transfer).

   In stages 1 and 2 each layer is given the teacher's X_l, not what the student's layers before it
   make of the tokens. So layers learn independently of each other in one pass of the teacher, and
   the activations of one block at a time are in memory.

   Each stage has its own budget of tokens and its own learning rate, which follows a
   warmup-stable-decay schedule: up along a straight line, constant, down along a straight line.
   Gradients are clipped by their global norm and AdamW (>>optimizer) updates. A checkpoint holds
   weights, moments, random numbers and the place in the corpus: a run that goes on from one
   computes the same bits as one that was never stopped. */

#define MHK__UPDATE_BLOCK 16384 /* numbers per block of the optimizer */
#define MHK__SAMPLE_BATCH 64    /* sequences that a model samples at once */
#define MHK__WINDOW 256         /* tokens of a window of a batch or of an evaluation, by default */
#define MHK__LOGITS_PIECE ((mhk_index)1 << 21) /* the most logits of each model that an evaluation holds at once */

static int mhk__is_finite(double x) { return x - x == 0.0; }

/* -------------------------------------------------------------------------------------- corpus */

struct mhk_corpus {
  mhk__object object;
  int32_t *tokens;
  mhk_index n;
  mhk_index *start; /* n_documents + 1: the start of each document, then n */
  mhk_index n_documents;
  int32_t largest; /* token */
};

/* A growing array in memory of the context's allocator; free it on every path. */
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

/* reserves room for extra more elements; 0 with an error if memory is out */
static int mhk__pile_room(mhk_context *ctx, mhk__pile *p, mhk_index extra) {
  mhk_index capacity;
  if (ctx->result != MHK_OK) return 0;
  if (extra <= p->capacity - p->n) return 1;
  if (extra > PTRDIFF_MAX / 4 || p->capacity > PTRDIFF_MAX / 4)
    return mhk__no(ctx, MHK_ERROR_MEMORY, "out of memory: a list of more than %lld elements", (long long)p->capacity);
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

/* Puts n elements of size bytes, 16 at most, in random order (Fisher and Yates). */
static void mhk__shuffle(uint64_t seed, void *elements, mhk_index n, size_t size) {
  unsigned char *x = (unsigned char *)elements, keep[16];
  mhk__rng r;
  mhk__rng_seed(&r, seed);
  for (mhk_index i = n - 1; i > 0; i--) {
    unsigned char *a = x + (size_t)i * size, *b = x + (size_t)mhk__rng_below(&r, (uint64_t)i + 1) * size;
    memcpy(keep, a, size);
    memmove(a, b, size);
    memcpy(b, keep, size);
  }
}

typedef struct mhk__corpus_build {
  mhk_context *ctx;
  mhk_tokenizer *tokenizer;
  mhk__pile ids;    /* int32_t tokens: each passage once */
  mhk__pile pieces; /* mhk_index pairs: first token and count of a document, once per use */
} mhk__corpus_build;

#ifndef MOHAWK_NO_STDIO
/* Adds one passage: trims blanks at both ends, tokenizes, and records it `repeat` times. */
static void mhk__corpus_passage(mhk__corpus_build *b, const unsigned char *text, size_t n, int repeat) {
  mhk_index *piece;
  while (n > 0 && mhk__is_blank(text[0])) text++, n--;
  while (n > 0 && mhk__is_blank(text[n - 1])) n--;
  if (n == 0) return;
  const mhk_index room = (mhk_index)n; /* a byte-level token has at least one byte */
  if (!mhk__pile_room(b->ctx, &b->ids, room) || !mhk__pile_room(b->ctx, &b->pieces, repeat)) return;
  mhk_index count = mhk_encode(b->tokenizer, (const char *)text, n, (int32_t *)(void *)b->ids.data + b->ids.n,
                               b->ids.capacity - b->ids.n);
  if (count > b->ids.capacity - b->ids.n) {
    if (!mhk__pile_room(b->ctx, &b->ids, count)) return;
    count = mhk_encode(b->tokenizer, (const char *)text, n, (int32_t *)(void *)b->ids.data + b->ids.n,
                       b->ids.capacity - b->ids.n);
  }
  if (count <= 0) return;
  for (int i = 0; i < repeat; i++) {
    piece = (mhk_index *)(void *)b->pieces.data + 2 * b->pieces.n++;
    piece[0] = b->ids.n;
    piece[1] = count;
  }
  b->ids.n += count;
}

/* Adds one document. If longest > 0, splits it at the first line end after that many bytes. */
static void mhk__corpus_document(mhk__corpus_build *b, const unsigned char *text, size_t n, size_t longest,
                                 int repeat) {
  size_t from = 0, i;
  for (i = 0; longest > 0 && i < n && b->ctx->result == MHK_OK; i++)
    if (text[i] == '\n' && i + 1 - from > longest) {
      mhk__corpus_passage(b, text + from, i + 1 - from, repeat);
      from = i + 1;
    }
  if (b->ctx->result == MHK_OK) mhk__corpus_passage(b, text + from, n - from, repeat);
}

/* Checks that a text is UTF-8: returns 0 with an error if it cannot be, and warns if parts of it
   are not. */
static int mhk__corpus_check(mhk_context *ctx, const char *path, const unsigned char *text, size_t n) {
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
             "%s is not UTF-8 text: %.1f %% of its bytes are zero or invalid, the first at byte %.0f%s",
             path, share, (double)first, looks);
  else
    mhk__note(ctx, MHK_LOG_WARNING,
              "%s is not all UTF-8: %.0f of its %.0f bytes (%.2g %%) are zero or invalid, the first at byte %.0f%s",
              path, (double)bad, (double)n, share, (double)first, looks);
  return share < 1;
}

/* splits a file at <|endoftext|> and adds its documents */
static void mhk__corpus_read(mhk__corpus_build *b, const char *path, const unsigned char *data, size_t size,
                           size_t longest, int repeat) {
  const size_t mark = sizeof(MHK__END_TEXT) - 1;
  size_t from = 0, i;
  if (size >= 3 && memcmp(data, "\xEF\xBB\xBF", 3) == 0) from = 3;
  if (!mhk__corpus_check(b->ctx, path, data, size)) return;
  for (i = from; b->ctx->result == MHK_OK && i < size;) {
    const unsigned char *p = (const unsigned char *)memchr(data + i, '<', size - i);
    if (!p) break;
    i = (size_t)(p - data);
    if (size - i >= mark && memcmp(p, MHK__END_TEXT, mark) == 0) {
      mhk__corpus_document(b, data + from, i - from, longest, repeat);
      from = i += mark;
    } else
      i++;
  }
  if (b->ctx->result == MHK_OK) mhk__corpus_document(b, data + from, size - from, longest, repeat);
}

static void mhk__corpus_file(mhk__corpus_build *b, const char *path, size_t longest, int repeat) {
  mhk__bytes bytes;
  const int error = mhk__bytes_open(path, &bytes);
  if (error)
    mhk_fail(b->ctx, MHK_ERROR_FILE, "cannot read the text %s: %s", path, mhk__file_reason(error));
  else
    mhk__corpus_read(b, path, bytes.data, bytes.size, longest, repeat);
  mhk__bytes_close(&bytes);
}
#endif

/* allocates tokens and documents of a new corpus; NULL with an error if they do not fit in
   memory */
static mhk_corpus *mhk__corpus_new(mhk_context *ctx, mhk_index n, mhk_index documents) {
  mhk_corpus *x = (mhk_corpus *)mhk__object_new(ctx, sizeof(mhk_corpus), NULL);
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
/* The documents of a build behind each other, each after the token that starts one (negative:
   none). */
static mhk_corpus *mhk__corpus_finish(const mhk__corpus_build *b, int32_t start) {
  const mhk_index *piece = (const mhk_index *)(const void *)b->pieces.data;
  mhk_index total = 0, at = 0;
  for (mhk_index i = 0; i < b->pieces.n; i++) {
    const mhk_index count = piece[2 * i + 1] + (start >= 0);
    if (count > PTRDIFF_MAX - total)
      return mhk__null(b->ctx, MHK_ERROR_MEMORY, "the text has more tokens than this machine can count");
    total += count;
  }
  mhk_corpus *x = mhk__corpus_new(b->ctx, total, b->pieces.n);
  for (mhk_index i = 0; x && i < b->pieces.n; i++) {
    x->start[i] = at;
    if (start >= 0) x->tokens[at++] = start;
    memcpy(x->tokens + at, (const int32_t *)(const void *)b->ids.data + piece[2 * i],
           (size_t)piece[2 * i + 1] * sizeof(int32_t));
    at += piece[2 * i + 1];
  }
  if (!x) return NULL;
  x->start[x->n_documents] = total;
  for (mhk_index i = 0; i < total; i++)
    if (x->tokens[i] > x->largest) x->largest = x->tokens[i];
  return x;
}

/* Reads files one after the other into passages, and packs these into a corpus. */
MHKDEF mhk_corpus *mhk_corpus_load(mhk_context *ctx, mhk_tokenizer *k, const mhk_corpus_desc *desc) {
  mhk__corpus_build b;
  mhk_corpus *x = NULL;
  if (mhk_failed(ctx)) return NULL;
  if (!k || !desc || desc->n_files <= 0 || !desc->files)
    return mhk__null(ctx, MHK_ERROR_ARGUMENT, "a text needs a tokenizer and at least one file");
  memset(&b, 0, sizeof b);
  b.ctx = ctx;
  b.tokenizer = k;
  b.ids.size = sizeof(int32_t);
  b.pieces.size = 2 * sizeof(mhk_index);
  for (int f = 0; f < desc->n_files && ctx->result == MHK_OK; f++) {
    const int repeat = desc->repeat ? desc->repeat[f] : 1;
    const size_t longest = desc->max_document_of ? desc->max_document_of[f] : desc->max_document;
    if (!desc->files[f] || repeat < 0 || repeat > 1000000)
      mhk_fail(ctx, MHK_ERROR_ARGUMENT,
               "file %d of a text needs a name and a repeat between 0 and a million, not %d", f, repeat);
    else if (repeat > 0 && desc->texts && desc->texts[f])
      mhk__corpus_read(&b, desc->files[f], (const unsigned char *)desc->texts[f],
                     desc->lengths ? desc->lengths[f] : strlen(desc->texts[f]), longest, repeat);
    else if (repeat > 0)
      mhk__corpus_file(&b, desc->files[f], longest, repeat);
  }
  if (ctx->result == MHK_OK && b.pieces.n == 0)
    mhk_fail(ctx, MHK_ERROR_FORMAT, "there is no text in %s%s", desc->files[0],
             desc->n_files > 1 ? " and the files after it" : "");
  if (desc->seed) mhk__shuffle(desc->seed, b.pieces.data, b.pieces.n, b.pieces.size);
  if (ctx->result == MHK_OK) x = mhk__corpus_finish(&b, mhk_tokenizer_start(k));
  mhk__pile_free(ctx, &b.ids);
  mhk__pile_free(ctx, &b.pieces);
  return x;
}
#endif

MHKDEF mhk_corpus *mhk_corpus_from_tokens(mhk_context *ctx, const int32_t *tokens, mhk_index n, int32_t end) {
  mhk_index i, documents = 1;
  if (mhk_failed(ctx)) return NULL;
  if (!tokens || n <= 0)
    return mhk__null(ctx, MHK_ERROR_ARGUMENT, "a text needs at least one token");
  for (i = 0; i < n; i++) {
    if (tokens[i] < 0)
      return mhk__null(ctx, MHK_ERROR_ARGUMENT, "token %lld of the text is %ld: token ids cannot be negative",
                       (long long)i, (long)tokens[i]);
    if (i > 0 && end >= 0 && tokens[i] == end) documents++;
  }
  mhk_corpus *x = mhk__corpus_new(ctx, n, documents);
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

/* The corpus that a model writes, so far: rounds of sequences behind each other. */
typedef struct mhk__written {
  mhk_session *session;
  mhk_sampling how;
  int32_t end;          /* ends a document, and starts the next */
  int32_t *tokens;      /* (wanted), done of them there */
  mhk_index done, wanted;
  mhk_progress_fn progress;
  void *user;
  int stop;             /* progress said so */
} mhk__written;

/* Samples one round: length tokens of each sequence, by way of grid (length,batch). */
static void mhk__write_round(mhk__written *w, mhk_index length, int32_t *grid) {
  mhk_session *s = w->session;
  mhk_context *ctx = s->object.ctx;
  const mhk_index batch = s->batch;
  mhk_index step = 1;
  mhk_session_reset(s, MHK_ALL);
  for (mhk_index b = 0; b < batch; b++) grid[b] = w->end;
  mhk_feed(s, grid, 1);
  for (; step < length && !w->stop && ctx->result == MHK_OK; step++) {
    int32_t *row = grid + step * batch;
    if (!mhk__draw_all(s, &w->how, row)) return;
    for (mhk_index b = 0; b < batch; b++) /* after an end token other than this one, the next document starts */
      if (row[b - batch] != w->end && mhk__model_ends_at(s->model, row[b - batch])) row[b] = w->end;
    mhk_feed(s, row, 1);
    if (w->progress && step % 16 == 0)
      w->stop = w->progress(w->user, mhk__min(w->done + (step + 1) * batch, w->wanted), w->wanted);
  }
  if (ctx->result != MHK_OK) return;
  for (mhk_index b = 0; b < batch; b++)
    for (mhk_index n = 0; n < step && w->done < w->wanted; n++) w->tokens[w->done++] = grid[n * batch + b];
}

/* Samples rounds of sequences in parallel, each from an end-of-text token. A sequence that ends a
   document continues with the next one, as in the packed text that language models train on, so no
   work is lost. After about 210 to 320 tokens, a new round starts. */
MHKDEF mhk_corpus *mhk_corpus_sample(mhk_model *model, mhk_index tokens, uint64_t seed, mhk_progress_fn progress,
                                     void *user) {
  mhk_context *ctx;
  mhk_session_desc sd;
  mhk__written w;
  mhk__pile all, grid;
  mhk__rng r;
  mhk_corpus *x = NULL;
  if (!model || mhk_failed(ctx = model->object.ctx)) return NULL;
  if (tokens <= 0 || tokens > PTRDIFF_MAX / 64)
    return mhk__null(ctx, MHK_ERROR_ARGUMENT, "cannot sample %lld tokens of text: ask for one or more",
                     (long long)tokens);
  const mhk_index longest = model->config.max_position > 1 ? mhk__min(model->config.max_position, 320) : 320;
  const mhk_index batch = mhk__min((tokens + longest - 1) / longest, MHK__SAMPLE_BATCH), low = longest * 2 / 3;
  memset(&all, 0, sizeof all);
  memset(&grid, 0, sizeof grid);
  all.size = grid.size = sizeof(int32_t);
  memset(&sd, 0, sizeof sd);
  sd.batch = batch;
  sd.capacity = longest + 1;
  memset(&w, 0, sizeof w);
  w.how.exact = 1;
  w.end = model->tokenizer ? mhk_tokenizer_start(model->tokenizer) : -1;
  if (w.end < 0 || w.end >= model->config.vocab_size) w.end = 0; /* without one, documents start with token 0 */
  w.wanted = tokens;
  w.progress = progress;
  w.user = user;
  w.session = mhk_session_create(model, &sd);
  mhk__rng_seed(&r, seed);
  if (mhk__pile_room(ctx, &all, tokens) && mhk__pile_room(ctx, &grid, batch * longest)) {
    w.tokens = (int32_t *)(void *)all.data;
    while (w.session && w.done < tokens && !w.stop && ctx->result == MHK_OK) {
      const mhk_index length = low + (mhk_index)mhk__rng_below(&r, (uint64_t)(longest - low) + 1);
      w.how.seed = mhk__rng_next(&r) | 1u;
      mhk__write_round(&w, mhk__min(length, (tokens - w.done + batch - 1) / batch), (int32_t *)(void *)grid.data);
    }
  }
  if (progress && !w.stop && ctx->result == MHK_OK) progress(user, w.done, tokens);
  mhk_session_destroy(w.session);
  if (ctx->result == MHK_OK) x = mhk_corpus_from_tokens(ctx, w.tokens, w.done, w.end);
  mhk__pile_free(ctx, &all);
  mhk__pile_free(ctx, &grid);
  return x;
}

MHKDEF void mhk_corpus_destroy(mhk_corpus *x) {
  if (x) mhk__object_free(x);
}

MHKDEF mhk_index mhk_corpus_tokens(const mhk_corpus *x, const int32_t **tokens) {
  if (tokens) *tokens = x ? x->tokens : NULL;
  return x ? x->n : 0;
}

/* ------------------------------------------------------------ stages: what they reach and train */

/* What a stage trains of a student of this configuration: how many numbers, and in *blocks how many
   blocks of the optimizer; flags, unless NULL, gets 1 for each tensor of them. Never more than the
   stage's loss depends on, so that all others stay untouched. */
static mhk_index mhk__stage_trains(const mhk_config *c, int stage, mhk_trains trains, unsigned char *flags,
                                   mhk_index *blocks) {
  static const mhk_trains least[] = {MHK_TRAIN_MATRICES, MHK_TRAIN_MIXERS, MHK_TRAIN_ALL, MHK_TRAIN_ALL};
  mhk_index numbers = 0;
  mhk__spec s;
  s.role = NULL;
  *blocks = 0;
  for (int i = 0; mhk__spec_next(c, &s); i++) {
    const int part = s.role->trains, kept = c->mixer[s.layer] == MHK_MIXER_ATTENTION;
    int trained = stage == 3 && trains == MHK_TRAIN_ALL;
    if (!mhk__role_layered(s.role) || kept) /* layers that keep attention learn only in stage 3 */
      trained |= stage == 3 && trains == MHK_TRAIN_MIXERS && s.role->owner == MHK__OF_ATTENTION;
    else if (stage > 1 || part == MHK__TRAIN_MATRIX || part == MHK__TRAIN_NORM)
      trained |= trains >= least[part];
    if (flags) flags[i] = (unsigned char)trained;
    if (!trained) continue;
    const mhk_index count = s.shape[0] * s.shape[1] * s.shape[2];
    numbers += count;
    *blocks += (count + MHK__UPDATE_BLOCK - 1) / MHK__UPDATE_BLOCK;
  }
  return numbers;
}

/* Checks that the teacher can teach this student. stage 0: the requirements of all stages. */
static int mhk__pair_check(mhk_context *ctx, const mhk_model *s, const mhk_model *t, int stage) {
  if (s->object.ctx != ctx || t->object.ctx != ctx)
    return mhk__no(ctx, MHK_ERROR_ARGUMENT, "teacher and student must belong to the context of the training");
  if (s->config.n_layer != t->config.n_layer || s->config.d_model != t->config.d_model ||
      s->config.vocab_size != t->config.vocab_size)
    return mhk__no(ctx, MHK_ERROR_CONFIG,
                   "the student has %d layers, d_model %d and vocabulary %d, the teacher %d, %d and %d: they must be "
                   "equal",
                   s->config.n_layer, s->config.d_model, s->config.vocab_size, t->config.n_layer, t->config.d_model,
                   t->config.vocab_size);
  for (int l = 0; stage == 1 && l < s->config.n_layer; l++) {
    if (s->layers[l].kind == MHK_MIXER_ATTENTION) continue;
    if (s->layers[l].kind != MHK_MIXER_DISCRETE_MAMBA2 || t->layers[l].kind != MHK_MIXER_ATTENTION)
      return mhk__no(ctx, MHK_ERROR_CONFIG,
                     "stage 1 compares a discrete Mamba-2 mixer with attention; layer %d has another pair: skip the "
                     "stage",
                     l);
    if (s->config.ssm_heads != t->config.n_head)
      return mhk__no(ctx, MHK_ERROR_CONFIG,
                     "stage 1 compares matrices head by head, but the student has %d heads and the teacher %d: make "
                     "them equal or skip the stage",
                     s->config.ssm_heads, t->config.n_head);
  }
  return 1;
}

#define MHK__SAME_NORM 1
#define MHK__SAME_MLP 2

/* returns whether a student's parameter has exactly the values of the teacher's, in any stored
   type */
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

/* Finds the layers that still have the teacher's norm and MLP: there, stages 1 and 2 can use those
   of the teacher. */
static void mhk__stage_same(const mhk_model *s, const mhk_model *t, unsigned char *same) {
  for (int l = 0; l < s->config.n_layer; l++) {
    const mhk__layer *a = &s->layers[l], *b = &t->layers[l];
    same[l] = 0;
    if (a->kind == MHK_MIXER_ATTENTION || s->config.arch == MHK_ARCH_MAMBA2 || t->config.arch == MHK_ARCH_MAMBA2)
      continue;
    if (s->config.norm_eps < t->config.norm_eps || s->config.norm_eps > t->config.norm_eps) continue;
    if (mhk__same_values(a->norm_w, b->norm_w) && mhk__same_values(a->norm_b, b->norm_b)) same[l] |= MHK__SAME_NORM;
    if (a->fc1_w && a->fc2_w && mhk__same_values(a->fc1_w, b->fc1_w) && mhk__same_values(a->fc1_b, b->fc1_b) &&
        mhk__same_values(a->fc2_w, b->fc2_w) && mhk__same_values(a->fc2_b, b->fc2_b))
      same[l] |= MHK__SAME_MLP;
  }
}

static int mhk__trains(const mhk_tensor *x) { return x && x->requires_grad; }

/* the block except its mixer */
static int mhk__trains_rest(const mhk__layer *y) {
  return mhk__trains(y->norm_w) || mhk__trains(y->norm_b) || mhk__trains(y->fc1_w) || mhk__trains(y->fc1_b) ||
         mhk__trains(y->fc2_w) || mhk__trains(y->fc2_b);
}

/* ------------------------------------------------------------------------------- stages: losses */

/* The inputs of a stage's loss. If the tape records, gradients are computed with the loss. */
typedef struct mhk__stage_run {
  mhk_context *ctx;
  mhk_tape *tape;
  mhk_model *student, *teacher;
  int stage;                   /* 1..3 */
  const mhk_stage_desc *desc;  /* defaults resolved */
  const unsigned char *same;   /* (L): MHK__SAME_NORM, MHK__SAME_MLP */
  const int32_t *tokens, *doc; /* (B,T) */
  mhk_index B, T;
  int record, recompute;
  double *layer_loss;          /* (L) or NULL */
  double *relative;            /* (L,H), stage 1, or NULL */
  char *why;                   /* mhk__find_first() writes here what was the first value that is not finite */
} mhk__stage_run;

static mhk__stage_run mhk__stage_run_of(mhk_tape *tape, mhk_model *student, mhk_model *teacher, int stage,
                                        const mhk_stage_desc *desc, const unsigned char *same) {
  mhk__stage_run run;
  memset(&run, 0, sizeof run);
  run.ctx = tape->ctx;
  run.tape = tape;
  run.student = student;
  run.teacher = teacher;
  run.stage = stage;
  run.desc = desc;
  run.same = same;
  return run;
}

static int mhk__copy_values(mhk_tensor *to, const mhk_tensor *from) {
  if (!to || !from || to->count != from->count) return 0;
  memcpy(to->data, from->data, (size_t)to->count * sizeof(mhk_real));
  return 1;
}

/* Reads a scalar loss and adds its gradients to the parameters. */
static double mhk__loss_backward(mhk__stage_run *run, mhk_tensor *loss) {
  const double value = mhk_value(loss);
  if (loss && run->record && loss->requires_grad && mhk__is_finite(value)) mhk_backward(run->tape, loss);
  return value;
}

/* The teacher's block after its mixer: y + MLP(u), where y = X + mixer(u). */
static mhk_tensor *mhk__teacher_mlp(mhk__stage_run *run, int l, mhk_tensor *u, mhk_tensor *y) {
  const mhk__layer *layer = run->teacher->layers + l;
  return mhk_linear_add(run->tape, mhk_linear_gelu(run->tape, u, layer->fc1_w, layer->fc1_b), layer->fc2_w,
                        layer->fc2_b, y);
}

/* Stage 1, matrix orientation, of layer l: the mean over batch and heads of || softmax(Q K^T /
   sqrt(P)) - M ||_F on the teacher's X_l. It runs in tiles (>>losses), so neither matrix is ever in
   memory as a whole. If next is not NULL, it receives X_{l+1}. */
static double mhk__orient_layer(mhk__stage_run *run, int l, mhk_tensor *x, mhk_tensor **next) {
  mhk_tape *tape = run->tape;
  mhk_model *student = run->student, *teacher = run->teacher;
  const mhk__layer *layer = student->layers + l;
  mhk_tensor *u = mhk_forward_norm(tape, teacher, l, x), *own = u;
  mhk__parts attention, ssd;
  memset(&attention, 0, sizeof attention);
  memset(&ssd, 0, sizeof ssd);
  attention.matrix_only = next == NULL;
  ssd.matrix_only = 1;
  mhk__mixer_parts(tape, teacher, l, u, run->doc, &attention);
  const mhk_tape_mark mark = mhk_tape_here(tape);
  mhk_tape_record(tape, run->record);
  if (!(run->same[l] & MHK__SAME_NORM) || (run->record && (mhk__trains(layer->norm_w) || mhk__trains(layer->norm_b))))
    own = mhk_forward_norm(tape, student, l, x);
  mhk__mixer_parts(tape, student, l, own, run->doc, &ssd);
  const mhk_orientation_desc matrices = {
      ssd.log_a, ssd.Bm, ssd.Cm, layer->D, attention.q, attention.k, run->doc,
      run->relative ? run->relative + l * student->config.ssm_heads : NULL};
  const double loss = mhk__loss_backward(run, mhk_matrix_orientation(tape, &matrices));
  mhk_tape_record(tape, 0);
  mhk_tape_rewind(tape, mark);
  if (next && run->ctx->result == MHK_OK)
    *next = mhk__teacher_mlp(run, l, u, mhk__mixer_output(tape, teacher, l, &attention, run->doc, x));
  return loss;
}

/* Stage 2, hidden-state alignment, of layer l: the mean over batch and tokens of ||
   block_teacher(X_l) - block_student(X_l) ||_2. While norm and MLP are frozen copies of the
   teacher's, they cancel in the difference, and only the mixers are compared. If next is not NULL,
   it receives X_{l+1}. */
static double mhk__align_layer(mhk__stage_run *run, int l, mhk_tensor *x, mhk_tensor **next) {
  mhk_tape *tape = run->tape;
  mhk_model *student = run->student, *teacher = run->teacher;
  const int both = MHK__SAME_NORM | MHK__SAME_MLP;
  const int mixers = (run->same[l] & both) == both && !(run->record && mhk__trains_rest(student->layers + l));
  mhk_forward_desc plain, own;
  memset(&plain, 0, sizeof plain);
  plain.doc = run->doc;
  own = plain;
  own.recompute = run->recompute;
  mhk_tensor *u = mixers ? mhk_forward_norm(tape, teacher, l, x) : x;
  mhk_tensor *target = u ? mhk_tensor_new(tape, u->rank, u->shape, NULL) : NULL;
  const mhk_tape_mark mark = mhk_tape_here(tape);
  mhk__copy_values(target, mixers ? mhk_forward_mixer(tape, teacher, l, u, &plain)
                                  : mhk_forward_block(tape, teacher, l, x, &plain));
  mhk_tape_rewind(tape, mark);
  mhk_tape_record(tape, run->record);
  const double loss = mhk__loss_backward(
      run, mhk_hidden_distance(tape, mixers ? mhk_forward_mixer(tape, student, l, u, &own)
                                            : mhk_forward_block(tape, student, l, x, &own), target));
  mhk_tape_record(tape, 0);
  mhk_tape_rewind(tape, mark);
  if (next) *next = mixers ? mhk__teacher_mlp(run, l, u, mhk_add(tape, x, target)) : target;
  return loss;
}

/* Stages 1 and 2: one pass of the teacher, with the loss of each student layer on the input X_l of
   the teacher's block. Layers learn independently, so the activations of only one block are in
   memory at a time. Returns the sum over all layers with a new mixer. */
static double mhk__stage_along_teacher(mhk__stage_run *run) {
  const mhk__layer *layers = run->student->layers;
  int last = run->student->config.n_layer - 1;
  double total = 0.0;
  mhk_forward_desc plain;
  memset(&plain, 0, sizeof plain);
  plain.doc = run->doc;
  while (last >= 0 && layers[last].kind == MHK_MIXER_ATTENTION) last--;
  mhk_tensor *x = mhk_forward_embedding(run->tape, run->teacher, run->tokens, run->B, run->T);
  for (int l = 0; l <= last && run->ctx->result == MHK_OK; l++) {
    const mhk_tape_mark mark = mhk_tape_here(run->tape);
    mhk_tensor *next = NULL, **wanted = l < last ? &next : NULL;
    if (layers[l].kind == MHK_MIXER_ATTENTION)
      next = mhk_forward_block(run->tape, run->teacher, l, x, &plain);
    else {
      const double loss = run->stage == 1 ? mhk__orient_layer(run, l, x, wanted) : mhk__align_layer(run, l, x, wanted);
      if (run->layer_loss) run->layer_loss[l] = loss;
      total += loss;
    }
    mhk__copy_values(x, next);
    mhk_tape_rewind(run->tape, mark);
  }
  return total;
}

/* The final hidden state (B,T,D) of a model without gradients; the activations of only one block
   are in memory at a time. If outputs is not NULL, it receives the outputs of the L blocks. */
static mhk_tensor *mhk__last_residual(mhk_tape *tape, mhk_model *model, const int32_t *tokens, mhk_index B,
                                        mhk_index T, const int32_t *doc, mhk_tensor **outputs) {
  const int recording = mhk_tape_record(tape, 0);
  mhk_context *ctx = tape->ctx;
  mhk_forward_desc plain;
  memset(&plain, 0, sizeof plain);
  plain.doc = doc;
  mhk_tensor *x = mhk_forward_embedding(tape, model, tokens, B, T);
  for (int l = 0; l < model->config.n_layer && x && ctx->result == MHK_OK; l++) {
    mhk_tensor *to = x;
    if (outputs) outputs[l] = to = mhk_tensor_new(tape, x->rank, x->shape, NULL);
    const mhk_tape_mark mark = mhk_tape_here(tape);
    mhk__copy_values(to, mhk_forward_block(tape, model, l, x, &plain));
    mhk_tape_rewind(tape, mark);
    x = to;
  }
  mhk_tape_record(tape, recording);
  return ctx->result == MHK_OK ? x : NULL;
}

/* Stage 3, knowledge distillation: the cross-entropy of the whole student's predictions against the
   teacher's, plus hard_labels times the cross-entropy against the text, plus own_stream times the
   distance between each student block's output and the teacher's, each computed on its own
   inputs. */
static double mhk__stage_predictions(mhk__stage_run *run) {
  mhk_context *ctx = run->ctx;
  mhk_tape *tape = run->tape;
  const mhk_stage_desc *d = run->desc;
  const int L = run->student->config.n_layer;
  const mhk_index rows = run->B * run->T;
  const mhk__mark scratch = mhk__scratch_mark(ctx);
  mhk_tensor **teachers = NULL, **own = NULL; /* residual streams */
  int32_t *labels = NULL;
  double value = NAN;
  if (d->own_stream > 0.0) {
    teachers = (mhk_tensor **)mhk__scratch(ctx, L, sizeof *teachers);
    own = (mhk_tensor **)mhk__scratch(ctx, L + 1, sizeof *own);
  }
  if (d->hard_labels > 0.0) labels = (int32_t *)mhk__scratch(ctx, rows, sizeof *labels);
  for (mhk_index i = 0; labels && i < rows; i++) /* the next token in the same row and document */
    labels[i] = (i + 1) % run->T == 0 || (run->doc && run->doc[i + 1] != run->doc[i]) ? -1 : run->tokens[i + 1];
  if (ctx->result == MHK_OK) {
    mhk_tensor *target = mhk__last_residual(tape, run->teacher, run->tokens, run->B, run->T, run->doc, teachers);
    target = mhk_forward_head(tape, run->teacher, target);
    mhk_tape_record(tape, run->record);
    mhk_forward_desc fd;
    memset(&fd, 0, sizeof fd);
    fd.doc = run->doc;
    fd.recompute = run->recompute;
    fd.residuals = own;
    mhk_tensor *logits = mhk_forward(tape, run->student, run->tokens, run->B, run->T, &fd);
    mhk_tensor *loss = mhk_cross_entropy_soft(tape, logits, target, d->temperature);
    if (labels && ctx->result == MHK_OK)
      loss = mhk_add(tape, loss, mhk_scale(tape, mhk_cross_entropy(tape, logits, labels), d->hard_labels));
    for (int l = 0; own && l < L && ctx->result == MHK_OK; l++)
      loss = mhk_add(tape, loss, mhk_scale(tape, mhk_hidden_distance(tape, own[l + 1], teachers[l]), d->own_stream));
    value = mhk__loss_backward(run, loss);
  }
  mhk__scratch_rewind(ctx, scratch);
  return value;
}

/* The loss of a stage; NaN on failure. Rewinds the tape to where it was. */
static double mhk__stage_loss(mhk__stage_run *run) {
  const mhk_tape_mark mark = mhk_tape_here(run->tape);
  run->record = mhk_tape_record(run->tape, 0);
  const double value = run->stage == 3 ? mhk__stage_predictions(run) : mhk__stage_along_teacher(run);
  mhk_tape_record(run->tape, run->record);
  mhk_tape_rewind(run->tape, mark);
  return run->ctx->result == MHK_OK ? value : (double)NAN;
}

/* -------------------------------------------------------------------------------- what diverged */

#define MHK__WHY 256 /* room for the description of the first value that is not finite */

/* If x has a value that is not finite, describes where. A log decay may be minus infinity. */
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

/* Layer l of m on x: its norm, the inputs of its mixer and, unless only the matrix is needed, the
   outputs of the mixer and the block; next receives the latter. */
static int mhk__layer_breaks(mhk__stage_run *run, mhk_model *model, const char *who, int l, mhk_tensor *x,
                             int matrix_only, mhk_tensor *next) {
  mhk_tape *tape = run->tape;
  const mhk_tape_mark mark = mhk_tape_here(tape);
  mhk_forward_desc fd;
  mhk__parts p;
  memset(&fd, 0, sizeof fd);
  memset(&p, 0, sizeof p);
  fd.doc = run->doc;
  p.matrix_only = matrix_only;
  mhk_tensor *u = mhk_forward_norm(tape, model, l, x);
  mhk__mixer_parts(tape, model, l, u, run->doc, &p);
  const struct { const mhk_tensor *x; const char *name; int decay; } parts[] = {
    {u, "the norm", 0}, {p.q, "queries", 0}, {p.k, "keys", 0}, {p.v, "values", 0}, {p.log_a, "the log decay", 1},
    {p.Bm, "B", 0}, {p.Cm, "C", 0}, {p.x, "x of the mixer", 0}, {p.z, "z of the mixer", 0}};
  int found = 0;
  for (size_t i = 0; i < sizeof parts / sizeof *parts && !found; i++)
    found = mhk__breaks(run->why, parts[i].x, parts[i].decay, parts[i].name, l, who);
  if (!found && !matrix_only) {
    found = mhk__breaks(run->why, mhk_forward_mixer(tape, model, l, u, &fd), 0, "the output of the mixer", l, who);
    mhk_tensor *y = found ? NULL : mhk_forward_block(tape, model, l, x, &fd);
    found = found || mhk__breaks(run->why, y, 0, "the output", l, who);
    if (next) mhk__copy_values(next, y);
  }
  mhk_tape_rewind(tape, mark);
  return found;
}

enum { MHK__NOBODY, MHK__TEACHER, MHK__STUDENT };

/* Recomputes the activations of a model in order; for a teacher in stages 1 and 2, also those of
   the student's layers. Returns the model with the first value that is not finite. */
static int mhk__forward_breaks(mhk__stage_run *run, int whose) {
  mhk_tape *tape = run->tape;
  mhk_model *model = whose == MHK__TEACHER ? run->teacher : run->student;
  const char *who = whose == MHK__TEACHER ? "teacher" : "student";
  mhk_tensor *x = mhk_forward_embedding(tape, model, run->tokens, run->B, run->T),
             *next = x ? mhk_tensor_new(tape, x->rank, x->shape, NULL) : NULL;
  if (mhk__breaks(run->why, x, 0, "the embedding", -1, who)) return whose;
  for (int l = 0; l < model->config.n_layer && next; l++) {
    if (mhk__layer_breaks(run, model, who, l, x, 0, next)) return whose;
    if (run->stage != 3 && run->student->layers[l].kind != MHK_MIXER_ATTENTION &&
        mhk__layer_breaks(run, run->student, "student", l, x, run->stage == 1, NULL))
      return MHK__STUDENT;
    mhk_tensor *swap = x;
    x = next;
    next = swap;
  }
  return run->stage == 3 && mhk__breaks(run->why, mhk_forward_head(tape, model, x), 0, "the logits", -1, who) ? whose
                                                                                                         : MHK__NOBODY;
}

/* Recomputes the loss of a stage to find the first value that is not finite: weights, then
   activations in order. run->why describes it; returns whether it belongs to the teacher. */
static int mhk__find_first(mhk__stage_run *run) {
  const mhk_tape_mark mark = mhk_tape_here(run->tape);
  const int recording = mhk_tape_record(run->tape, 0);
  int whose = MHK__NOBODY;
  for (int k = MHK__TEACHER; k <= MHK__STUDENT && !whose; k++) {
    const mhk_model *model = k == MHK__TEACHER ? run->teacher : run->student;
    const char *who = k == MHK__TEACHER ? "teacher" : "student";
    for (int i = 0; i < model->n_tensors && !whose; i++)
      if (mhk__breaks(run->why, model->tensors[i], 0, model->tensors[i]->name, -1, who)) whose = k;
  }
  if (!whose) whose = mhk__forward_breaks(run, MHK__TEACHER);
  if (!whose && run->stage == 3) whose = mhk__forward_breaks(run, MHK__STUDENT);
  mhk_tape_record(run->tape, recording);
  mhk_tape_rewind(run->tape, mark);
  if (run->ctx->result != MHK_OK) mhk_clear_error(run->ctx); /* no memory for the search: report the divergence */
  if (!whose) mhk__print(run->why, MHK__WHY, "the loss itself; the activations are finite");
  return whose == MHK__TEACHER;
}

/* -------------------------------------------------------------------------- stages: description */

/* Measured peak learning rates: small teachers at d_model 128 and 256, and those of Bick et al.
   2024 at 2048; linear in the logarithms in between. */
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

/* the description of a stage with defaults filled in; negative values still mean none */
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
  if (d.trains == MHK_TRAIN_DEFAULT)
    d.trains = stage == 1 ? MHK_TRAIN_MATRICES : stage == 2 ? MHK_TRAIN_MIXERS : MHK_TRAIN_ALL;
  return d;
}

/* the numbers of a stage's description, with defaults filled in */
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

/* what the zeros of a description mean where the paper's recipe differs */
static void mhk__recipe_paper(mhk_distill_desc *d) {
  for (int i = 0; i < 3; i++) d->stages[i].decay = mhk__or(d->stages[i].decay, 0.1);
  d->stages[2].own_stream = mhk__or(d->stages[2].own_stream, -1.0);
  if (d->student_desc.init == MHK_INIT_DEFAULT) d->student_desc.init = MHK_INIT_IDENTITY;
  if (d->student_desc.rotary_dim == 0) d->student_desc.rotary_dim = -1;
}

MHKDEF mhk_distill_desc mhk_distill_defaults(const mhk_distill_desc *desc) {
  static const mhk_index tokens[3] = {500000, 1000000, 1500000};
  mhk_distill_desc d;
  int d_model;
  if (desc)
    d = *desc;
  else
    memset(&d, 0, sizeof d);
  d_model = d.teacher ? d.teacher->config.d_model : d.student ? d.student->config.d_model : 128;
  if (d.recipe == MHK_RECIPE_PAPER) mhk__recipe_paper(&d);
  if (d.stages[0].tokens == 0 && d.stages[1].tokens == 0 && d.stages[2].tokens == 0)
    for (int i = 0; i < 3; i++) d.stages[i].tokens = tokens[i];
  for (int i = 0; i < 3; i++) d.stages[i] = mhk__stage_defaults(&d.stages[i], i + 1, d_model);
  if (d.batch == 0) d.batch = 8;
  if (d.length == 0) d.length = MHK__WINDOW;
  if (d.update_tokens == 0 && d.batch > 0 && d.length > 0 && d.batch <= PTRDIFF_MAX / d.length)
    d.update_tokens = d.batch * d.length;
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

MHKDEF double mhk_stage_loss(mhk_tape *t, const mhk_stage_loss_desc *desc) {
  mhk_context *ctx = t ? t->ctx : NULL;
  mhk_model *const student = desc ? desc->student : NULL, *const teacher = desc ? desc->teacher : NULL;
  const int stage = desc ? desc->stage : 0;
  unsigned char same[MHK_MAX_LAYERS];
  if (mhk_failed(ctx)) return NAN;
  if (!student || !teacher || !desc->tokens || stage < 1 || stage > 3 || desc->B <= 0 || desc->T <= 0) {
    mhk_fail(ctx, MHK_ERROR_ARGUMENT,
             "the loss of a stage needs student, teacher, a stage from 1 to 3 (not %d) and at least one token",
             stage);
    return NAN;
  }
  if (!mhk__pair_check(ctx, student, teacher, stage)) return NAN;
  mhk_stage_desc d = mhk__stage_defaults(desc->settings, stage, student->config.d_model);
  if (!mhk__stage_numbers(ctx, &d, stage) || !mhk__size3(ctx, desc->B, desc->T, 64)) return NAN;
  if (stage != 3) mhk__stage_same(student, teacher, same);
  if (desc->layer_loss) memset(desc->layer_loss, 0, (size_t)student->config.n_layer * sizeof(double));
  if (desc->relative && stage == 1)
    memset(desc->relative, 0, (size_t)student->config.n_layer * (size_t)student->config.ssm_heads * sizeof(double));
  mhk__stage_run run = mhk__stage_run_of(t, student, teacher, stage, &d, same);
  run.tokens = desc->tokens;
  run.doc = desc->doc;
  run.B = desc->B;
  run.T = desc->T;
  run.layer_loss = desc->layer_loss;
  run.relative = desc->relative;
  return mhk__stage_loss(&run);
}

/* -------------------------------------------------------------------------------------- trainer */

/* Elements first to first + n of a trained tensor. Blocks have a fixed size, so sums over them do
   not depend on the number of threads. */
typedef struct mhk__update_block {
  double sum; /* of the squared gradients */
  mhk_index first, n;
  int tensor; /* in trained[] */
} mhk__update_block;

struct mhk_trainer {
  mhk__object object;
  mhk_distill_desc desc; /* defaults resolved */
  mhk_model *student;
  mhk_tape *tape;
  char *path, *previous; /* of the last two checkpoints, or NULL */
#ifndef MOHAWK_NO_STDIO
  /* the file at path is a valid checkpoint of this run: the next one moves it to previous instead
     of replacing it */
  int keeps;
  mhk__lock lock; /* of its folder */
  int locked;
#endif
  char *run;  /* the description as text, one setting per line */
  mhk_index S[3];      /* number of updates of each stage */
  mhk_index micro;     /* batches an update */
  mhk_index rows;      /* sequences of this worker in a batch */
  int stage, finished; /* stage of the next update, 1 to 3 */
  mhk_index step;      /* updates done in this stage */
  mhk_index driven;    /* updates by mhk_train_on() */
  /* optimizer */
  int optimizer_stage; /* the stage that the moments belong to; 0: none */
  mhk_index optimizer_step;
  unsigned char *flags;    /* n_tensors: trained in this stage */
  unsigned char *required; /* n_tensors: requires_grad as the caller set it */
  mhk_tensor **trained;
  mhk_index *trained_at; /* offset of each trained tensor */
  int n_trained;
  mhk_index trained_count, moment_room;
  mhk_real *moments, *staging; /* moments: first, then second, per tensor; staging: gradients */
  mhk__update_block *blocks;
  mhk_index n_blocks, block_room;
  unsigned char same[MHK_MAX_LAYERS];
  char why[MHK__WHY];     /* the first value that is not finite in the current update; "" if all are finite */
  int teacher_broke;      /* and it belongs to the teacher */
  /* data */
  mhk__rng rng;
  int32_t *window, *window_doc;
  mhk_index *order; /* order of the documents in this epoch */
  uint64_t epoch;
  mhk_index document, offset; /* packed: next document and its next token */
  /* progress */
  mhk_progress_info info;
  double loss_average; /* average of the current stage: 0 at its start, while info still shows that of the last stage */
  double *layer_loss, *relative, *layer_now, *relative_now;
  /* time in this stage in earlier processes; clock at the first update of this process */
  double seconds_before, started_seconds;
  mhk_index step_before;                  /* updates of this stage done by earlier processes */
  double checkpoint_clock;
};

static mhk_context *mhk__trainer_context(const mhk_trainer *tr) { return tr ? tr->object.ctx : NULL; }

/* the order of documents in an epoch */
static void mhk__shuffle_documents(mhk_trainer *tr) {
  const mhk_index n = tr->desc.corpus->n_documents;
  for (mhk_index i = 0; i < n; i++) tr->order[i] = i;
  mhk__shuffle((tr->desc.seed ^ 0x5DEECE66Du) + tr->epoch * 0x9E3779B97F4A7C15u, tr->order, n, sizeof *tr->order);
}

/* A packed window: T tokens from the position in the text, across documents. doc numbers the
   documents of the window from 0. to and doc are NULL if the window belongs to another worker. */
static void mhk__packed_window(mhk_trainer *tr, mhk_index T, int32_t *to, int32_t *doc) {
  const mhk_corpus *x = tr->desc.corpus;
  int32_t number = 0;
  for (mhk_index filled = 0; filled < T; number++) {
    const mhk_index d = tr->order[tr->document], from = x->start[d] + tr->offset, left = x->start[d + 1] - from;
    const mhk_index n = mhk__min(left, T - filled);
    if (to) memcpy(to + filled, x->tokens + from, (size_t)n * sizeof(int32_t));
    for (mhk_index i = 0; doc && i < n; i++) doc[filled + i] = number;
    filled += n;
    tr->offset += n;
    if (n < left) continue;
    tr->offset = 0;
    if (++tr->document < x->n_documents) continue;
    tr->document = 0;
    tr->epoch++;
    mhk__shuffle_documents(tr);
  }
}

/* The next batch: every worker draws all windows and keeps its share, so all workers together see
   the same text as a single one. */
static void mhk__next_batch(mhk_trainer *tr) {
  const mhk_corpus *x = tr->desc.corpus;
  const mhk_index T = tr->desc.length, first = tr->rows * tr->desc.rank;
  for (mhk_index row = 0; row < tr->desc.batch; row++) {
    const int mine = row >= first && row < first + tr->rows;
    int32_t *to = mine ? tr->window + (row - first) * T : NULL;
    if (tr->desc.windows == MHK_WINDOWS_PACKED)
      mhk__packed_window(tr, T, to, mine ? tr->window_doc + (row - first) * T : NULL);
    else {
      const mhk_index at = (mhk_index)mhk__rng_below(&tr->rng, (uint64_t)(x->n - T) + 1);
      if (to) memcpy(to, x->tokens + at, (size_t)T * sizeof(int32_t));
    }
  }
}

/* Bytes of the optimizer's memory: blocks, moments, gradients to exchange. */
static double mhk__optimizer_bytes(double count, double blocks, int exchange) {
  return blocks * sizeof(mhk__update_block) + count * (exchange ? 3.0 : 2.0) * sizeof(mhk_real);
}

/* Allocates optimizer memory for the largest of the given stages in one piece; keeps existing
   memory if it is large enough. */
static int mhk__optimizer_room(mhk_trainer *tr, mhk_index count, mhk_index blocks) {
  if (count <= tr->moment_room && blocks <= tr->block_room) return 1;
  const double bytes = mhk__optimizer_bytes((double)count, (double)blocks, tr->desc.exchange != NULL);
  const size_t most = (size_t)PTRDIFF_MAX; /* the arena sets the error if this is too much */
  char *at = (char *)mhk__arena_alloc(tr->object.ctx, &tr->object.arena, bytes < (double)most ? (size_t)bytes : most);
  if (!at) return 0;
  tr->blocks = (mhk__update_block *)(void *)at;
  tr->moments = (mhk_real *)(void *)(at + (size_t)blocks * sizeof *tr->blocks);
  tr->staging = tr->desc.exchange ? tr->moments + 2 * count : NULL;
  tr->moment_room = count;
  tr->block_room = blocks;
  return 1;
}

/* Starts the optimizer of a stage: selects its tensors and zeroes the moments. */
static int mhk__optimizer_start(mhk_trainer *tr, int stage) {
  mhk_model *student = tr->student;
  mhk_index count, blocks, at = 0, n = 0, first;
  tr->optimizer_stage = 0;
  if (!mhk__pair_check(tr->object.ctx, student, tr->desc.teacher, stage)) return 0;
  count = mhk__stage_trains(&student->config, stage, tr->desc.stages[stage - 1].trains, tr->flags, &blocks);
  if (!mhk__optimizer_room(tr, count, blocks)) return 0;
  tr->n_trained = 0;
  for (int i = 0; i < student->n_tensors; i++)
    if (tr->flags[i]) {
      tr->trained[tr->n_trained] = student->tensors[i];
      tr->trained_at[tr->n_trained] = at;
      for (first = 0; first < student->tensors[i]->count; first += MHK__UPDATE_BLOCK) {
        tr->blocks[n].tensor = tr->n_trained;
        tr->blocks[n].first = first;
        tr->blocks[n].n = mhk__min(student->tensors[i]->count - first, MHK__UPDATE_BLOCK);
        n++;
      }
      at += student->tensors[i]->count;
      tr->n_trained++;
    }
  tr->n_blocks = n;
  tr->trained_count = at;
  if (at > 0) memset(tr->moments, 0, (size_t)at * 2 * sizeof(mhk_real));
  if (stage != 3)
    mhk__stage_same(student, tr->desc.teacher, tr->same);
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
  tr->blocks[task].sum = ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

/* Sums gradients over the workers, in one contiguous block. */
static void mhk__exchange(mhk_trainer *tr) {
  for (int i = 0; i < tr->n_trained; i++)
    memcpy(tr->staging + tr->trained_at[i], tr->trained[i]->grad, (size_t)tr->trained[i]->count * sizeof(mhk_real));
  const int answer = tr->desc.exchange(tr->desc.exchange_user, tr->staging, (size_t)tr->trained_count);
  if (answer) {
    mhk_fail(tr->object.ctx, MHK_ERROR_STATE, "the gradient exchange failed with %d in stage %d after %lld updates",
             answer, tr->optimizer_stage, (long long)tr->optimizer_step);
    return;
  }
  for (int i = 0; i < tr->n_trained; i++)
    memcpy(tr->trained[i]->grad, tr->staging + tr->trained_at[i], (size_t)tr->trained[i]->count * sizeof(mhk_real));
}

/* sets the error of an update that is not finite: what, where it started, and what to do */
static void mhk__diverged(mhk_trainer *tr, double value, const char *what, double lr) {
  const char *number = value < 0.0 || value > 0.0 ? "infinite" : "not a number";
  const int stage = tr->optimizer_stage;
  if (tr->teacher_broke) {
    mhk_fail(
        tr->object.ctx, MHK_ERROR_STATE,
        "stage %d diverged at update %lld: %s is %s. First value that is not finite: %s. The teacher computes it on "
        "its own, so no learning rate helps: repair or replace its weights. The student keeps its weights from before "
        "this update",
        stage, (long long)tr->optimizer_step + 1, what, number, tr->why);
    return;
  }
  mhk_fail(
      tr->object.ctx, MHK_ERROR_STATE,
      "stage %d diverged at update %lld: %s is %s at learning rate %g. First value that is not finite: %s. The "
      "student keeps its weights from before this update. Start again with a lower learning rate for this stage "
      "(stages[%d].lr, the top was %g), a longer warmup or a smaller clip",
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

/* One step of the optimizer. Gradients are sums over `parts` batches of mean losses. Returns their
   norm after averaging. */
static double mhk__optimizer_step(mhk_trainer *tr, double loss, double lr, double parts) {
  mhk_context *ctx = tr->object.ctx;
  const mhk_stage_desc *d = &tr->desc.stages[tr->optimizer_stage - 1];
  double norm = 0.0;
  if (tr->desc.exchange) {
    parts *= (double)tr->desc.world;
    mhk__exchange(tr);
    if (ctx->result != MHK_OK) return NAN;
  }
  mhk__parallel(ctx, tr->n_blocks, mhk__square_block, tr);
  for (mhk_index i = 0; i < tr->n_blocks; i++) norm += tr->blocks[i].sum;
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
  double scale = 1.0 / parts;
  if (d->clip > 0.0 && d->clip / (norm + 1e-6) < 1.0) scale *= d->clip / (norm + 1e-6);
  mhk__adamw_args a;
  a.n = tr->n_trained;
  a.keep = 1;
  a.decay_matrices = tr->desc.decays == MHK_DECAY_MATRICES;
  a.x = tr->trained;
  a.moments = tr->moments;
  mhk__adamw_factors(lr, d->weight_decay > 0.0 ? d->weight_decay : 0.0, tr->desc.beta1, tr->desc.beta2, tr->desc.eps,
                     scale, (double)++tr->optimizer_step, a.s);
  mhk__adamw_update(ctx, &a, tr->trained_count);
  return norm;
}

/* One update of a stage: `micro` batches from the text, or one batch of the caller. */
static double mhk__update(mhk_trainer *tr, int stage, const int32_t *tokens, mhk_index B, mhk_index T,
                          const int32_t *doc, mhk_index micro, double lr) {
  mhk_context *ctx = tr->object.ctx;
  mhk_model *student = tr->student;
  const mhk_index L = student->config.n_layer, cells = L * (mhk_index)student->config.ssm_heads;
  double loss = 0.0;
  if (tr->optimizer_stage != stage && !mhk__optimizer_start(tr, stage)) return NAN;
  tr->why[0] = 0;
  tr->teacher_broke = 0;
  for (mhk_index j = 0; j < L; j++) tr->layer_loss[j] = 0.0;
  for (mhk_index j = 0; j < cells; j++) tr->relative[j] = 0.0;
  for (int i = 0; i < student->n_tensors; i++) {
    tr->required[i] = (unsigned char)(student->tensors[i]->requires_grad != 0);
    student->tensors[i]->requires_grad = tr->flags[i];
  }
  mhk__parallel(ctx, tr->n_blocks, mhk__zero_block, tr);
  mhk__stage_run run =
      mhk__stage_run_of(tr->tape, student, tr->desc.teacher, stage, &tr->desc.stages[stage - 1], tr->same);
  run.tokens = tokens ? tokens : tr->window;
  run.doc = tokens ? doc : tr->window_doc;
  run.B = B;
  run.T = T;
  run.recompute = stage == 3 && tr->desc.recompute;
  run.layer_loss = tr->layer_now;
  run.relative = tr->relative_now;
  run.why = tr->why;
  for (mhk_index k = 0; k < micro && ctx->result == MHK_OK; k++) {
    if (!tokens) mhk__next_batch(tr);
    for (mhk_index j = 0; j < L; j++) tr->layer_now[j] = 0.0;
    for (mhk_index j = 0; j < cells; j++) tr->relative_now[j] = 0.0;
    const mhk_precision before = ctx->precision;
    ctx->precision = tr->desc.precision;
    const double value = mhk__stage_loss(&run);
    loss += value / (double)micro;
    if (!mhk__is_finite(value) && ctx->result == MHK_OK && !tr->why[0]) tr->teacher_broke = mhk__find_first(&run);
    ctx->precision = before;
    mhk_tape_reset(tr->tape);
    for (mhk_index j = 0; j < L; j++) tr->layer_loss[j] += tr->layer_now[j] / (double)micro;
    for (mhk_index j = 0; j < cells; j++) tr->relative[j] += tr->relative_now[j] / (double)micro;
  }
  for (int i = 0; i < student->n_tensors; i++) student->tensors[i]->requires_grad = tr->required[i];
  if (ctx->result != MHK_OK) return NAN;
  const double norm = mhk__optimizer_step(tr, loss, lr, (double)micro);
  if (ctx->result != MHK_OK) return NAN;
  tr->info.grad_norm = norm;
  return loss;
}

static mhk_index mhk__share(double share, mhk_index S) {
  const mhk_index n = share > 0.0 ? (mhk_index)((double)S * share * (1.0 + 1e-12)) : 0;
  return share <= 0.0 ? 0 : n < 1 ? 1 : n > S ? S : n;
}

/* the rate of update s of S: warm-up, stable, linear decay to lr_low (Bick et al. 2024) */
static double mhk__learning_rate(const mhk_stage_desc *d, mhk_index s, mhk_index S) {
  const mhk_index warmup = mhk__share(d->warmup, S), decay = mhk__share(d->decay, S);
  if (s < warmup) return d->lr * (double)s / (double)warmup;
  if (s < S - decay || decay == 0) return d->lr;
  return (double)(S - s) / (double)decay * (d->lr - d->lr_low) + d->lr_low;
}

/* Moves to the next stage that has updates left, starting with the current one. */
static void mhk__stage_seek(mhk_trainer *tr) {
  while (tr->stage <= 3 && tr->step >= tr->S[tr->stage - 1]) {
    tr->stage++;
    tr->step = 0;
    tr->optimizer_stage = 0;
    tr->seconds_before = 0.0;
    tr->step_before = 0;
    tr->started_seconds = -1.0;
    tr->loss_average = 0.0;
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
  if (!tr->desc.corpus)
    return mhk__no(ctx, MHK_ERROR_STATE,
                   "this trainer has no text: set one in the description, or call mhk_train_on()");
  stage = tr->stage;
  S = tr->S[stage - 1];
  const mhk_stage_desc *d = &tr->desc.stages[stage - 1];
  if (tr->started_seconds < 0.0) {
    tr->started_seconds = mhk__seconds();
    tr->step_before = tr->step;
  }
  lr = mhk__learning_rate(d, tr->step, S);
  const double loss = mhk__update(tr, stage, NULL, tr->rows, tr->desc.length, NULL, tr->micro, lr);
  if (ctx->result != MHK_OK) return 0;
  tr->step++;
  const double now = mhk__seconds();
  mhk__progress_place(tr, stage, tr->step);
  p->loss = loss;
  p->loss_average = tr->loss_average += (loss - tr->loss_average) / (double)(tr->step < 20 ? tr->step : 20);
  p->lr = lr;
  {
    const double here = now > tr->started_seconds ? now - tr->started_seconds : 0.0;
    const double tokens = (double)(tr->step - tr->step_before) * (double)tr->desc.update_tokens;
    p->seconds = tr->seconds_before + here;
    p->tokens_per_second = here > 0.0 ? tokens / here : 0.0;
    p->seconds_left = p->tokens_per_second > 0.0 ? (double)(p->total_tokens - p->tokens) / p->tokens_per_second : 0.0;
  }
  if (tr->step >= S) {
    p->stage_done = 1;
    mhk__stage_seek(tr);
  }
#ifndef MOHAWK_NO_STDIO
  if (tr->path && (p->stage_done ||
                   (tr->desc.checkpoint_seconds > 0.0 && now - tr->checkpoint_clock >= tr->desc.checkpoint_seconds)))
    mhk_checkpoint(tr);
#endif
  return ctx->result == MHK_OK;
}

MHKDEF double mhk_train_on(mhk_trainer *tr, int stage, const int32_t *tokens, mhk_index B, mhk_index T,
                           const int32_t *doc, double lr) {
  mhk_context *ctx = mhk__trainer_context(tr);
  if (mhk_failed(ctx)) return NAN;
  if (stage < 1 || stage > 3 || !tokens || B <= 0 || T <= 0) {
    mhk_fail(ctx, MHK_ERROR_ARGUMENT, "an update needs a stage from 1 to 3 (not %d) and tokens", stage);
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

/* ---------------------------------------------------------------------------------- checkpoints */

/* "name: value", after the stage unless it is 0 */
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

/* Everything that determines the results of a run, one setting per line. */
static char *mhk__run_text(mhk_trainer *tr) {
  mhk_context *ctx = tr->object.ctx;
  const mhk_distill_desc *d = &tr->desc;
  const size_t config = mhk_config_format(&tr->student->config, NULL, 0);
  char hex[17];
  mhk__writer w;
  mhk__write_to(&w, ctx, &tr->object.arena);
  mhk__fact_text(&w, 0, "arithmetic",
                 d->precision == MHK_PRECISION_BF16 ? MHK__REAL_TEXT " with products of BF16" : MHK__REAL_TEXT);
  mhk__hex(mhk__model_hash(d->teacher), hex);
  mhk__fact_text(&w, 0, "teacher's weights", hex);
  mhk__fact_integer(&w, 0, "tokens of text", d->corpus ? d->corpus->n : 0);
  mhk__hex(d->corpus ? mhk__hash(MHK__HASH_START, d->corpus->tokens, (size_t)d->corpus->n * sizeof(int32_t)) : 0, hex);
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
/* length of the line at text, without the newline */
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
  mhk_fail(ctx, MHK_ERROR_STATE,
           "%s belongs to another run: it has \"%.*s\" where this one has \"%.*s\". Use the same settings, use "
           "another folder, or set fresh to start over",
           path, mhk__line_length(was), was, mhk__line_length(is), is);
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

#ifndef MOHAWK_NO_STDIO
/* A trainer's state in addition to its tensors, as a checkpoint stores it. Version 1 had no driven
   and no checksum. */
typedef struct mhk__saved {
  uint64_t stage, step, finished, optimizer_stage, optimizer_step, random[4];
  uint64_t epoch, document, offset; /* the position in a packed corpus */
  uint64_t loss, seconds;           /* bits of doubles */
  uint64_t driven;
} mhk__saved;
#define MHK__SAVED (sizeof(mhk__saved) / 8)

static void mhk__saved_get(const mhk_trainer *tr, mhk__saved *v) {
  const double here = tr->started_seconds >= 0.0 && tr->step > 0 ? mhk__seconds() - tr->started_seconds : 0.0;
  v->stage = (uint64_t)tr->stage;
  v->step = (uint64_t)tr->step;
  v->finished = (uint64_t)tr->finished;
  v->optimizer_stage = (uint64_t)tr->optimizer_stage;
  v->optimizer_step = tr->optimizer_stage ? (uint64_t)tr->optimizer_step : 0;
  for (int i = 0; i < 4; i++) v->random[i] = tr->rng.s[i];
  v->epoch = tr->epoch;
  v->document = (uint64_t)tr->document;
  v->offset = (uint64_t)tr->offset;
  v->loss = mhk__bits_of(tr->loss_average);
  v->seconds = mhk__bits_of(tr->seconds_before + here);
  v->driven = (uint64_t)tr->driven;
}

/* writes sixteen hexadecimal digits for each value, and a separator */
static void mhk__saved_format(const mhk__saved *saved, char text[MHK__SAVED * 17]) {
  uint64_t v[MHK__SAVED];
  memcpy(v, saved, sizeof v);
  for (size_t i = 0; i < MHK__SAVED; i++) {
    mhk__hex(v[i], text + 17 * i);
    text[17 * i + 16] = i + 1 < MHK__SAVED ? ' ' : 0;
  }
}

#define MHK__CHECKPOINT "mohawk checkpoint 2"

/* Tensor i of a checkpoint: the student's, then first moments, then second moments; returns 0 after
   the last */
static int mhk__checkpoint_tensor(mhk_trainer *tr, int i, mhk__outgoing *o) {
  mhk_context *ctx = tr->object.ctx;
  const mhk_model *student = tr->student;
  const int moments = tr->optimizer_stage ? tr->n_trained : 0, own = i < student->n_tensors,
            second = i >= student->n_tensors + moments;
  const int at = own ? i : i - student->n_tensors - (second ? moments : 0);
  if (i >= student->n_tensors + 2 * moments) return 0;
  const mhk_tensor *x = own ? student->tensors[i] : tr->trained[at];
  mhk__outgoing_set(o, x->name, MHK_REAL, MHK_REAL, x->rank, x->shape,
                    own ? x->data : tr->moments + 2 * tr->trained_at[at] + (second ? x->count : 0));
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
  mhk__saved saved;
  char state[MHK__SAVED * 17];
  const char *metadata[6];
  int n = 0;
  if (mhk_failed(ctx)) return mhk_error(ctx);
  if (!tr->path)
    return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "this trainer has no folder for checkpoints: name one in out");
  tr->checkpoint_clock = mhk__seconds();
  if (tr->desc.rank != 0) return MHK_OK; /* all workers have the same state, so the first one writes */
  mhk__mark mark = mhk__scratch_mark(ctx);
  list = (mhk__outgoing *)mhk__scratch(ctx, 3 * (mhk_index)tr->student->n_tensors + 1, sizeof *list);
  while (list && mhk__checkpoint_tensor(tr, n, list + n)) n++;
  if (ctx->result == MHK_OK) {
    mhk__outgoing_set(list + n++, "checksum.xxh64", MHK_U8, MHK_U8, 1, &eight, NULL);
    mhk__saved_get(tr, &saved);
    mhk__saved_format(&saved, state);
    metadata[0] = "format";
    metadata[1] = MHK__CHECKPOINT;
    metadata[2] = "state";
    metadata[3] = state;
    metadata[4] = "run";
    metadata[5] = tr->run;
    mhk__file_put(ctx, &out, tr->path, n, list, 3, metadata, NULL);
    mhk__output_flush(&out);
    /* if this fails, only one is kept */
    if (mhk__output_ok(ctx, &out) && tr->keeps && mhk__is_file(tr->path)) mhk__keep_as(tr->path, tr->previous);
    if (mhk__output_close_or_fail(ctx, &out) == MHK_OK) {
      if (tr->desc.fresh && !tr->keeps) mhk__remove(tr->previous); /* from the run that this one replaces */
      tr->keeps = 1;
    }
  }
  mhk__scratch_rewind(ctx, mark);
  tr->checkpoint_clock = mhk__seconds();
  return ctx->result;
}

/* reads the first values of such a text; returns 0 for any other text */
static int mhk__saved_parse(const char *text, size_t n, size_t values, mhk__saved *saved) {
  uint64_t v[MHK__SAVED];
  if (!text || n != values * 17 - 1) return 0;
  memcpy(v, saved, sizeof v);
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
  memcpy(saved, v, sizeof v);
  return 1;
}

/* what contradicts a checkpoint of this run, or NULL */
static const char *mhk__saved_wrong(mhk_trainer *tr, const mhk__saved *v) {
  const double loss = mhk__double_of(v->loss), seconds = mhk__double_of(v->seconds);
  const mhk_corpus *x = tr->desc.corpus;
  if (v->stage < 1 || v->stage > 3 || v->finished > 1 || v->optimizer_stage > 3 ||
      v->optimizer_step > (uint64_t)PTRDIFF_MAX)
    return "its position in the run is invalid";
  if (v->finished && (v->stage != 3 || v->step != 0)) return "it says that the run is finished, in the middle of it";
  if (!v->finished && v->step >= (uint64_t)tr->S[v->stage - 1]) return "its stage is over";
  if ((v->optimizer_stage != 0) != (v->optimizer_step != 0)) return "its optimizer belongs to no stage";
  if (v->driven == 0 && (v->optimizer_step != v->step || (v->optimizer_stage != 0 && v->optimizer_stage != v->stage)))
    return "its optimizer and its stage have made different numbers of updates";
  if ((v->random[0] | v->random[1] | v->random[2] | v->random[3]) == 0)
    return "the state of its random generator is invalid";
  if (!mhk__is_finite(loss) || !(seconds >= 0.0) || !mhk__is_finite(seconds))
    return "its loss or its time is not a number";
  if (!tr->order)
    return v->epoch | v->document | v->offset ? "it has a position in the text, but its windows are random" : NULL;
  if (v->document >= (uint64_t)x->n_documents) return "its position in the text is invalid";
  tr->epoch = v->epoch;
  mhk__shuffle_documents(tr);
  return v->offset < (uint64_t)(x->start[tr->order[v->document] + 1] - x->start[tr->order[v->document]])
             ? NULL
             : "its position in a document is invalid";
}

#define MHK__DAMAGE 600

/* Checks that f has all tensors of this run's state (read 0), or reads them (read 1). */
static int mhk__resume_tensors(mhk_trainer *tr, const mhk_file *f, int read, char why[MHK__DAMAGE]) {
  mhk_context *ctx = tr->object.ctx;
  const mhk__mark mark = mhk__scratch_mark(ctx);
  mhk__outgoing o;
  int i, k, same = 1;
  for (i = 0; same && mhk__checkpoint_tensor(tr, i, &o); i++) {
    const mhk_stored *y = mhk_file_find(f, o.name);
    same = y && y->dtype == MHK_REAL && y->rank == o.rank;
    for (k = 0; same && k < o.rank; k++) same = y->shape[k] == o.shape[k];
    if (!same)
      mhk__print(why, MHK__DAMAGE, "it %s tensor %.200s%s", y ? "has" : "lacks", o.name,
                 y ? " in another shape or type" : "");
    else if (read)
      mhk_file_read(ctx, y, (mhk_real *)(uintptr_t)o.data); /* memory of the trainer */
    mhk__scratch_rewind(ctx, mark);
  }
  return same && ctx->result == MHK_OK;
}

/* Restores a checkpoint. Returns 1, 0 with the reason if it is damaged, -1 if the context has
   failed. Restores nothing unless everything is valid. */
static int mhk__resume_read(mhk_trainer *tr, const mhk_file *f, const char *path, int old, char why[MHK__DAMAGE]) {
  mhk_context *ctx = tr->object.ctx;
  const char *format = mhk_file_metadata(f, "format", NULL), *run = mhk_file_metadata(f, "run", NULL), *state, *wrong;
  mhk__saved v;
  size_t n = 0;
  state = mhk_file_metadata(f, "state", &n);
  memset(&v, 0, sizeof v);
  v.driven = (uint64_t)old; /* it does not contain this */
  if (!format || (!old && strcmp(format, MHK__CHECKPOINT) != 0) || !run ||
      !mhk__saved_parse(state, n, old ? MHK__SAVED - 1 : MHK__SAVED, &v)) {
    mhk__print(why, MHK__DAMAGE, "it is not a checkpoint of a training run that this version can read");
    return 0;
  }
  if (strcmp(run, tr->run) != 0) {
    mhk__run_differs(ctx, path, run, tr->run);
    return -1;
  }
  if (old && v.optimizer_stage == 0) v.optimizer_step = 0;
  wrong = mhk__saved_wrong(tr, &v);
  if (wrong) {
    mhk__print(why, MHK__DAMAGE, "it contradicts itself: %s", wrong);
    return 0;
  }
  tr->optimizer_stage = 0;
  if (v.optimizer_stage && !mhk__optimizer_start(tr, (int)v.optimizer_stage)) return -1;
  if (!mhk__resume_tensors(tr, f, 0, why)) {
    tr->optimizer_stage = 0;
    return ctx->result == MHK_OK ? 0 : -1;
  }
  if (!mhk__resume_tensors(tr, f, 1, why)) return -1;
  tr->optimizer_step = (mhk_index)v.optimizer_step;
  tr->stage = (int)v.stage;
  tr->step = (mhk_index)v.step;
  tr->finished = (int)v.finished;
  for (int i = 0; i < 4; i++) tr->rng.s[i] = v.random[i];
  tr->document = (mhk_index)v.document;
  tr->offset = (mhk_index)v.offset;
  tr->driven = (mhk_index)v.driven;
  tr->info.loss_average = tr->loss_average = mhk__double_of(v.loss);
  tr->seconds_before = mhk__double_of(v.seconds);
  tr->info.resumed = 1;
  mhk__progress_place(tr, tr->stage, tr->finished ? tr->S[2] : tr->step);
  return 1;
}

/* The same for an existing file. Checks the checksum first, because nothing in a damaged file can
   be trusted. */
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
    mhk__note(ctx, MHK_LOG_WARNING,
              "the checkpoint %s is from an older version and has no checksum, so damage cannot be detected",
              path);
  return result;
}

/* Resumes from the checkpoint or, if it is damaged, from the one before it. If neither can be used,
   sets an error that says what to do; silently starting over would lose the run. */
static void mhk__resume(mhk_trainer *tr) {
  mhk_context *ctx = tr->object.ctx;
  const char *const path[2] = {tr->path, tr->previous};
  char why[2][MHK__DAMAGE];
  int i, there = 0, got;
  for (i = 0; i < 2; i++) {
    strcpy(why[i], "it does not exist");
    if (!mhk__is_file(path[i])) continue;
    there |= 1 << i;
    got = mhk__resume_from(tr, path[i], why[i]);
    if (got < 0) return;
    if (got > 0) {
      tr->keeps = i == 0;
      if (i == 1)
        mhk__note(ctx, MHK_LOG_WARNING,
                  "the checkpoint %.300s cannot be used: %s. The run continues from the one before it, %.300s", path[0],
                  why[0], path[1]);
      return;
    }
  }
  if (there == 1)
    mhk_fail(ctx, MHK_ERROR_FORMAT,
             "the checkpoint %.300s cannot be resumed: %.250s. Set fresh (--fresh) to start over", path[0], why[0]);
  else if (there)
    mhk_fail(ctx, MHK_ERROR_FORMAT,
             "neither checkpoint can be resumed. %.200s: %.150s. %.200s: %.150s. Set fresh (--fresh) to start over",
             path[0], why[0], path[1], why[1]);
}
#endif

/* -------------------------------------------------------------------------- trainer: making one */

/* Checks a description, with defaults in place, and that model, text and batches fit each other. */
static int mhk__distill_check(mhk_context *ctx, const mhk_distill_desc *d) {
  if (!d->teacher)
    return mhk__no(ctx, MHK_ERROR_ARGUMENT, "distillation needs a teacher");
#ifdef MOHAWK_NO_STDIO
  if (d->out)
    return mhk__no(ctx, MHK_ERROR_UNSUPPORTED,
                   "checkpoints in %.200s are not available: this program was built without files (MOHAWK_NO_STDIO)",
                   d->out);
#else
  const size_t most = MHK__PATH_MOST + 1 - sizeof "/checkpoint.previous.safetensors";
  if (d->out && strlen(d->out) > most)
    return mhk__no(ctx, MHK_ERROR_ARGUMENT, "the path for checkpoints has %lld bytes: %lld are the most",
                   (long long)strlen(d->out), (long long)most);
#endif
  if (d->student && !d->student->trainable)
    return mhk__no(ctx, MHK_ERROR_ARGUMENT,
                   "the student is frozen: make it with mhk_student_create(), or call mhk_model_make_trainable() on "
                   "it");
  if (d->student == d->teacher)
    return mhk__no(ctx, MHK_ERROR_ARGUMENT, "teacher and student are the same model");
  if (d->batch < 1 || d->length < 2 || d->batch > PTRDIFF_MAX / 1024 / d->length)
    return mhk__no(ctx, MHK_ERROR_ARGUMENT,
                   "cannot train on batches of %lld sequences of %lld tokens: use at least 1 sequence of 2 tokens",
                   (long long)d->batch, (long long)d->length);
  if (d->update_tokens < d->batch * d->length || d->update_tokens % (d->batch * d->length) != 0)
    return mhk__no(ctx, MHK_ERROR_ARGUMENT,
                   "an update of %lld tokens is not a whole number of batches: batch %lld x length %lld is %lld",
                   (long long)d->update_tokens, (long long)d->batch, (long long)d->length,
                   (long long)(d->batch * d->length));
  if (d->world < 1 || d->rank < 0 || d->rank >= d->world || d->batch % d->world != 0 ||
      (d->world > 1 && !d->exchange))
    return mhk__no(ctx, MHK_ERROR_ARGUMENT,
                   "worker %d of %d with batch %lld: rank must be below world, world must divide the batch, and "
                   "several workers need an exchange",
                   d->rank, d->world, (long long)d->batch);
  if (!(d->beta1 >= 0.0 && d->beta1 < 1.0 && d->beta2 >= 0.0 && d->beta2 < 1.0 && d->eps > 0.0 &&
        d->eps <= MHK__REAL_MOST))
    return mhk__no(ctx, MHK_ERROR_ARGUMENT,
                   "AdamW with beta1 %g, beta2 %g, eps %g: betas must be in (0,1), eps must be positive and finite",
                   d->beta1, d->beta2, d->eps);
  if (!mhk__number_fits(ctx, "distillation", "checkpoint_seconds", d->checkpoint_seconds, -DBL_MAX, DBL_MAX)) return 0;
  if (!mhk__precision_fits(ctx, d->precision)) return 0;
  if (d->recipe != MHK_RECIPE_BEST && d->recipe != MHK_RECIPE_PAPER)
    return mhk__no(ctx, MHK_ERROR_ARGUMENT, "unknown recipe %d: use 0 (the best one known) or 1 (the paper's)",
                   (int)d->recipe);
  for (int i = 0; i < 3; i++) {
    const mhk_stage_desc *s = &d->stages[i];
    if (!mhk__stage_numbers(ctx, s, i + 1)) return 0;
    if (s->tokens > 0 && s->tokens < d->update_tokens)
      return mhk__no(ctx, MHK_ERROR_ARGUMENT,
                     "stage %d has a budget of %lld tokens, less than one update of %lld: raise it, or set it to 0 to "
                     "skip the stage",
                     i + 1, (long long)s->tokens, (long long)d->update_tokens);
    if (s->tokens > 0 && d->corpus && d->corpus->largest >= d->teacher->config.vocab_size)
      return mhk__no(
          ctx, MHK_ERROR_ARGUMENT,
          "the text has token %ld, but the teacher's vocabulary ends at %d: was it made with another tokenizer?",
          (long)d->corpus->largest, d->teacher->config.vocab_size - 1);
    if (s->tokens > 0 && d->corpus && d->windows == MHK_WINDOWS_RANDOM && d->corpus->n < d->length)
      return mhk__no(ctx, MHK_ERROR_ARGUMENT, "the text has %lld tokens, too few for one window of %lld",
                     (long long)d->corpus->n, (long long)d->length);
  }
  return 1;
}

#ifndef MOHAWK_NO_STDIO
/* "process 123 on NAME", as far as the file can be read */
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

/* Only one trainer writes to a folder. Other workers of its job only read from it. */
static int mhk__trainer_lock(mhk_trainer *tr) {
  const char *out = tr->desc.out;
  char path[MHK__PATH_MOST + 64], who[128];
  if (!mhk__path_fits(tr->object.ctx, out)) return 0;
  if (tr->desc.rank != 0) return 1;
  mhk__join_path(path, sizeof path, out, "run.lock");
  const int error = mhk__lock_acquire(&tr->lock, path, 0);
  tr->locked = !error;
  if (error == EBUSY)
    mhk_fail(tr->object.ctx, MHK_ERROR_STATE,
             "the folder %s is in use: %s trains there. Wait for it, stop it, or name another folder", out,
             mhk__lock_holder(path, who));
  else if (error)
    mhk_fail(tr->object.ctx, MHK_ERROR_FILE, "cannot lock the folder %s for checkpoints with %s: %s", out, path,
             mhk__file_reason(error));
  return !error;
}

#endif

static void mhk__trainer_close(void *object) {
#ifndef MOHAWK_NO_STDIO
  mhk_trainer *tr = (mhk_trainer *)object;
  if (tr->locked) mhk__lock_release(&tr->lock);
#else
  (void)object;
#endif
}

/* Allocates the parts of a trainer. */
static void mhk__trainer_fill(mhk_trainer *tr, mhk_context *ctx) {
  mhk__arena *arena = &tr->object.arena;
  mhk_distill_desc *d = &tr->desc;
  mhk_model *student = tr->student;
  const mhk_index L = student->config.n_layer, cells = L * (mhk_index)student->config.ssm_heads + 1,
                  window = tr->rows * d->length;
  mhk_index count = 0, blocks = 0, c, b;
  if (!mhk__pair_check(ctx, student, d->teacher, tr->S[0] > 0 ? 1 : 0)) return;
  tr->flags = (unsigned char *)mhk__arena_zeros(ctx, arena, student->n_tensors, 1);
  tr->required = (unsigned char *)mhk__arena_zeros(ctx, arena, student->n_tensors, 1);
  tr->trained = (mhk_tensor **)mhk__arena_zeros(ctx, arena, student->n_tensors, sizeof(mhk_tensor *));
  tr->trained_at = (mhk_index *)mhk__arena_zeros(ctx, arena, student->n_tensors, sizeof(mhk_index));
  tr->layer_loss = (double *)mhk__arena_zeros(ctx, arena, L, sizeof(double));
  tr->layer_now = (double *)mhk__arena_zeros(ctx, arena, L, sizeof(double));
  tr->relative = (double *)mhk__arena_zeros(ctx, arena, cells, sizeof(double));
  tr->relative_now = (double *)mhk__arena_zeros(ctx, arena, cells, sizeof(double));
  tr->window = (int32_t *)mhk__arena_zeros(ctx, arena, window, sizeof(int32_t));
  if (d->windows == MHK_WINDOWS_PACKED) {
    tr->window_doc = (int32_t *)mhk__arena_zeros(ctx, arena, window, sizeof(int32_t));
    if (d->corpus) tr->order = (mhk_index *)mhk__arena_zeros(ctx, arena, d->corpus->n_documents, sizeof(mhk_index));
  }
  if (ctx->result != MHK_OK) return;
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
      mhk_fail(ctx, MHK_ERROR_FILE, "cannot create the folder %s for checkpoints: %s", d->out, strerror(error));
    else if (tr->path && mhk__trainer_lock(tr)) {
      tr->previous = tr->path + room;
      mhk__join_path(tr->path, room, d->out, "checkpoint.safetensors");
      mhk__join_path(tr->previous, room, d->out, "checkpoint.previous.safetensors");
    }
  }
#endif
  /* Allocates the optimizer of the largest stage now, not in the middle of the run. It comes last
     because an arena's next block after a large one is as large. */
  for (int i = 1; i <= 3; i++) {
    if (tr->S[i - 1] == 0) continue;
    c = mhk__stage_trains(&student->config, i, d->stages[i - 1].trains, NULL, &b);
    if (c > count) count = c;
    if (b > blocks) blocks = b;
  }
  if (ctx->result == MHK_OK) mhk__optimizer_room(tr, count, blocks);
}

MHKDEF mhk_trainer *mhk_distill(mhk_context *ctx, const mhk_distill_desc *desc) {
  int i, first = 0;
  if (mhk_failed(ctx)) return NULL;
  if (!desc)
    return mhk__null(ctx, MHK_ERROR_ARGUMENT, "distillation needs a description");
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
  tr->desc.out = NULL; /* memory of the caller; path is our copy */
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

/* ------------------------------------------------------------------- trainer: memory beforehand */

/* Numbers per token that one block saves for its backward pass. matrix: stage 1 needs only B, C and
   the decay. */
static double mhk__block_numbers(const mhk_config *c, int attention, int matrix) {
  const double D = c->d_model, E = (double)c->ssm_heads * c->ssm_head_dim, GN = (double)c->ssm_groups * c->d_state,
               H = c->ssm_heads;
  const double A = (double)c->n_head * c->head_dim, KV = (double)c->n_kv_head * c->head_dim;
  if (attention) return D + 2.0 * (A + KV) + KV + A + c->n_head + 2.0 * D + 2.0 * c->d_mlp;
  if (matrix) return D + 6.0 * GN + 4.0 * H; /* projected, convolved, rotated */
  return D + (2.0 * E + 2.0 * GN + H) + (E + 2.0 * GN) + 2.0 * GN + 2.0 * H + E * (2.0 + (double)c->d_state / 64.0) +
         2.0 * D + 2.0 * c->d_mlp;
}

/* memory that an arena needs for this many bytes: its blocks double up to 32 MB, then stay that
   large */
static double mhk__arena_bytes(double bytes) {
  const double most = 33554432.0;
  double room = 65536.0;
  if (bytes >= most) return ceil(bytes / most) * most;
  while (room < bytes) room *= 2.0;
  return room;
}

/* Numbers a token that the tape holds at once in a stage. */
static double mhk__stage_numbers_held(const mhk_distill_desc *d, const mhk_config *teacher, const mhk_config *student,
                                      int stage) {
  const double D = student->d_model, L = student->n_layer, teachers = mhk__block_numbers(teacher, 1, 0);
  double block = 0.0, all = 0.0;
  for (int l = 0; l < student->n_layer; l++) {
    const double n = mhk__block_numbers(student, student->mixer[l] == MHK_MIXER_ATTENTION, 0);
    block = n > block ? n : block;
    all += n;
  }
  if (stage == 1) { /* X_l, and either block's share: queries, keys and values of the teacher's */
    const double both = 2.0 * (teacher->n_head + 2 * teacher->n_kv_head) * teacher->head_dim +
                        2.0 * mhk__block_numbers(student, 0, 1);
    return 2.0 * D + (both > teachers ? both : teachers);
  }
  if (stage == 2) return 3.0 * D + (teachers > 2.0 * block ? teachers : 2.0 * block);
  /* hidden states and logits of the teacher stay; activations and logits of the student count
     twice, with their gradients */
  const double stream = (d->stages[2].own_stream > 0.0 ? L * D : D) + 6.0 * D + 3.0 * student->vocab_size,
               both = stream + (d->recompute ? 2.6 * block + 2.0 * L * D : 2.0 * all);
  return both > teachers ? both : teachers;
}

/* Exact are the student's weights and gradients, the optimizer and the corpus; what the tape and
   scratch memory hold is estimated, rather too high than too low. */
MHKDEF double mhk_distill_bytes(const mhk_distill_desc *desc) {
  const double real = sizeof(mhk_real);
  double optimizer = 0.0, tape = 0.0;
  if (!desc || !desc->teacher) return 0.0;
  const mhk_distill_desc d = mhk_distill_defaults(desc);
  const mhk_config *teacher = &d.teacher->config;
  const mhk_config student = d.student ? d.student->config : mhk__student_config(teacher, &d.student_desc);
  const double rows = (double)(d.batch / (d.world > 0 ? d.world : 1)) * (double)d.length;
  const double D = student.d_model, V = student.vocab_size;
  double scratch = V * D + 4.0 * D * D + rows * D; /* a packed matrix, and scratch memory of ops */
  for (int i = 1; i <= 3; i++) {
    mhk_index blocks;
    if (d.stages[i - 1].tokens == 0) continue;
    const double numbers = (double)mhk__stage_trains(&student, i, d.stages[i - 1].trains, NULL, &blocks);
    const double bytes = mhk__optimizer_bytes(numbers, (double)blocks, d.exchange != NULL),
                 held = mhk__stage_numbers_held(&d, teacher, &student, i);
    optimizer = bytes > optimizer ? bytes : optimizer;
    tape = held > tape ? held : tape;
    if (i == 3) scratch += 2.0 * rows * V;
  }
  double bytes = mhk__arena_bytes(2.0 * mhk_config_parameters(&student) * real) + optimizer +
                 mhk__arena_bytes(1.1 * tape * rows * real) + mhk__arena_bytes(scratch * real);
  if (d.corpus)
    bytes +=
        4.0 * (double)d.corpus->n + 8.0 * (double)d.corpus->n_documents * (d.windows == MHK_WINDOWS_PACKED ? 2.0 : 1.0);
  return bytes + 2e6;
}

/* ----------------------------------------------------------------------------------- evaluation */

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

/* cross-entropy, KL and agreement of a task's rows of logits */
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

/* the mean over windows and its standard error */
static void mhk__window_mean(const double *x, mhk_index n, double *mean, double *error) {
  double sum = 0.0, square = 0.0;
  for (mhk_index i = 0; i < n; i++) sum += x[i];
  *mean = n > 0 ? sum / (double)n : 0.0;
  for (mhk_index i = 0; i < n; i++) square += (x[i] - *mean) * (x[i] - *mean);
  *error = n > 1 ? sqrt(square / (double)(n - 1) / (double)n) : 0.0;
}

/* An evaluation in progress. rows has cross-entropy, divergence and agreement of each token of a
   batch, one after the other; means has their means over each window. */
typedef struct mhk__evaluating {
  mhk_context *ctx;
  mhk_tape *tape;
  mhk_model *model, *teacher; /* teacher: or NULL */
  const mhk_corpus *corpus;
  mhk_index length, windows, batch;
  double *rows;           /* (3, batch * length) */
  double *means;          /* (3, windows) */
  int32_t *labels;        /* (batch * length) */
} mhk__evaluating;

/* logits of rows first to first + n of a residual stream x (1,rows,D) */
static const mhk_real *mhk__logits_of_rows(mhk_tape *tape, mhk_model *model, mhk_tensor *x, mhk_index first,
                                           mhk_index n) {
  mhk_index shape[3] = {1, n, 0};
  shape[2] = model->config.d_model;
  return mhk_data(mhk_forward_head(tape, model, mhk_reshape(tape, mhk_rows(tape, x, first, n), 3, shape)));
}

/* Scores windows w to w + B. The residual streams of all their tokens are held, logits of a piece
   of them at a time. */
static void mhk__evaluate_batch(mhk__evaluating *e, mhk_index w, mhk_index B) {
  const mhk_index V = e->model->config.vocab_size, n = B * e->length, all = e->batch * e->length;
  const mhk_index piece = mhk__min(mhk__max(MHK__LOGITS_PIECE / V, 16), all);
  const int32_t *tokens = e->corpus->tokens + w * e->length;
  mhk_model *models[2] = {e->model, e->teacher};
  mhk_tensor *x[2] = {NULL, NULL};
  mhk_tape_reset(e->tape);
  for (mhk_index i = 0; i < n; i++) /* the last token of a window has no target */
    e->labels[i] = (i + 1) % e->length ? tokens[i + 1] : tokens[i];
  for (int k = 0; k < 2 && models[k]; k++) {
    const mhk_index shape[2] = {n, models[k]->config.d_model};
    x[k] = mhk__last_residual(e->tape, models[k], tokens, B, e->length, NULL, NULL);
    x[k] = mhk_reshape(e->tape, x[k], 2, shape);
  }
  for (mhk_index from = 0; from < n && e->ctx->result == MHK_OK; from += piece) {
    const mhk_tape_mark mark = mhk_tape_here(e->tape);
    mhk__scores s;
    s.kernels = e->ctx->kernels;
    s.rows = mhk__min(piece, n - from);
    s.V = V;
    s.labels = e->labels + from;
    s.logits = mhk__logits_of_rows(e->tape, e->model, x[0], from, s.rows);
    s.target = e->teacher ? mhk__logits_of_rows(e->tape, e->teacher, x[1], from, s.rows) : NULL;
    s.cross_entropy = e->rows + from;
    s.kl = e->rows + all + from;
    s.agree = e->rows + 2 * all + from;
    if (e->ctx->result != MHK_OK) return;
    mhk__parallel(e->ctx, (s.rows + MHK__SCORE_ROWS - 1) / MHK__SCORE_ROWS, mhk__score_rows, &s);
    mhk_tape_rewind(e->tape, mark);
  }
  for (mhk_index i = 0; i < 3 * B; i++) {
    const double *row = e->rows + i / B * all + i % B * e->length;
    double sum = 0.0;
    for (mhk_index j = 0; j + 1 < e->length; j++) sum += row[j];
    e->means[i / B * e->windows + w + i % B] = sum / (double)(e->length - 1);
  }
}

/* what makes an evaluation impossible, as an error */
static mhk_result mhk__evaluate_check(const mhk_model *model, const mhk_evaluate_desc *desc,
                                      const mhk_evaluation *result) {
  mhk_context *ctx = model->object.ctx;
  if (!desc || !desc->corpus || !result || desc->length < 0 || desc->windows < 0 || desc->length == 1)
    return mhk_fail(ctx, MHK_ERROR_ARGUMENT,
                    "an evaluation needs a corpus, a place for the result, and windows of two tokens or more");
  const mhk_model *teacher = desc->teacher;
  const mhk_corpus *corpus = desc->corpus;
  const mhk_index length = desc->length ? desc->length : MHK__WINDOW;
  if (teacher && teacher->config.vocab_size != model->config.vocab_size)
    return mhk_fail(ctx, MHK_ERROR_CONFIG,
                    "the model's vocabulary is %d, but the teacher's is %d: their predictions cannot be compared",
                    model->config.vocab_size, teacher->config.vocab_size);
  if (corpus->largest >= model->config.vocab_size)
    return mhk_fail(ctx, MHK_ERROR_ARGUMENT,
                    "the text has token %ld, but the model's vocabulary ends at %d: was it made with another "
                    "tokenizer?",
                    (long)corpus->largest, model->config.vocab_size - 1);
  if (corpus->n < length)
    return mhk_fail(ctx, MHK_ERROR_ARGUMENT, "the text has %lld tokens, too few for one window of %lld",
                    (long long)corpus->n, (long long)length);
  return MHK_OK;
}

/* Windows are adjacent in the corpus. Windows with 2,048 tokens in total are scored together. */
MHKDEF mhk_result mhk_evaluate(mhk_model *model, const mhk_evaluate_desc *desc, mhk_evaluation *result) {
  mhk__evaluating e;
  mhk_index done = 0;
  int stop = 0;
  if (result) memset(result, 0, sizeof *result);
  if (!model) return MHK_ERROR_ARGUMENT;
  mhk_context *ctx = model->object.ctx;
  if (ctx->result != MHK_OK || mhk__evaluate_check(model, desc, result) != MHK_OK) return ctx->result;
  const mhk__mark scratch = mhk__scratch_mark(ctx);
  e.ctx = ctx;
  e.model = model;
  e.teacher = desc->teacher;
  e.corpus = desc->corpus;
  e.length = desc->length ? desc->length : MHK__WINDOW;
  e.windows = e.corpus->n / e.length;
  if (desc->windows > 0 && desc->windows < e.windows) e.windows = desc->windows;
  e.batch = mhk__min(mhk__max(2048 / e.length, 1), e.windows);
  e.means = (double *)mhk__scratch(ctx, 3 * e.windows, sizeof(double));
  e.rows = (double *)mhk__scratch(ctx, 3 * e.batch * e.length, sizeof(double));
  e.labels = (int32_t *)mhk__scratch(ctx, e.batch * e.length, sizeof(int32_t));
  e.tape = mhk_tape_create(ctx);
  mhk_tape_record(e.tape, 0);
  while (done < e.windows && !stop && ctx->result == MHK_OK) {
    const mhk_index B = mhk__min(e.batch, e.windows - done);
    mhk__evaluate_batch(&e, done, B);
    done += B;
    if (desc->progress && ctx->result == MHK_OK) stop = desc->progress(desc->user, done, e.windows);
  }
  if (ctx->result == MHK_OK) {
    result->tokens = done * (e.length - 1);
    mhk__window_mean(e.means, done, &result->cross_entropy, &result->cross_entropy_error);
    if (e.teacher) {
      mhk__window_mean(e.means + e.windows, done, &result->kl, &result->kl_error);
      mhk__window_mean(e.means + 2 * e.windows, done, &result->agreement, &result->agreement_error);
    }
  }
  mhk_tape_destroy(e.tape);
  mhk__scratch_rewind(ctx, scratch);
  return ctx->result;
}
#endif /* MOHAWK_IMPLEMENTATION */
/* =================================================================================================
   PASSES: the instruction sets, and contexts, which choose one                             >>passes
   =================================================================================================

   The kernels of all chapters, once for each instruction set that compiler and machine may have.
   Then what some processors have besides: dot products of bytes (AVX512-VNNI, SDOT) and of
   bfloat16 numbers (AVX512-BF16, AMX). Nothing compiled for a set is called before the set is
   known to be there. */

#ifdef MHK__TEMPLATE
#define MHK__FILL(result, name, arguments, reference) k->name = MHK__N(mhk__##name);
#define MHK__FILL_HEAD(name, of, reference) k->name = MHK__N(mhk__##name);
static void MHK__N(mhk__fill)(mhk__kernels *k) {
  k->mr = MHK__MR;
  k->nr = MHK__NR;
  k->q_rows = MHK__W == 1 ? 8 : 64;
#ifndef MOHAWK_NO_TRAINING
  k->narrow.mr = MHK__MR;
  k->narrow.nr = MHK__NR;
  k->narrow.kr = 1;
  k->narrow.size = (int)sizeof(mhk_real);
  k->narrow.pack_a = MHK__N(mhk__narrow_pack_a);
  k->narrow.pack_b = MHK__N(mhk__narrow_pack_b);
  k->narrow.product = MHK__N(mhk__narrow_product);
#endif
  MHK__KERNELS(MHK__FILL)
  MHK__HEAD_KERNELS(MHK__FILL_HEAD)
#ifdef MHK__HAS_DECODING
  MHK__QUANTIZED_KERNELS(MHK__FILL)
  MHK__STEP_KERNELS(MHK__FILL_HEAD)
#endif
  MHK__TRAINING_KERNELS(MHK__FILL)
  MHK__TRAINING_HEAD_KERNELS(MHK__FILL_HEAD)
}

/* what each pass has its own of */
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
#undef MHK__FROM
#undef MHK__LOAD_BF16
#undef MHK__LOAD_F16
#undef MHK__WORDS
#undef MHK__LOAD_WORDS
#undef MHK__EVEN_BF16
#undef MHK__ODD_BF16
#undef MHK__LOAD_FIRST
#undef MHK__STORE_FIRST
#undef MHK__FETCH
#undef MHK__FEW_ROWS4
#undef MHK__PAIR_BF16
#undef MHK__PAIR_F16
#undef MHK__MR
#undef MHK__HALF
#undef MHK__NV
#undef MHK__TALL
#undef MHK__HAS_TRANSPOSE
#undef MHK__HAS_BLOCKS_OF_4
#undef MHK__HAS_PREFETCH
#undef MHK__HAS_32_REGISTERS
#undef MHK__HAS_DECODING
#undef MHK__HAS_BYTE_DOTS
#endif /* MHK__TEMPLATE */

#if defined(MOHAWK_IMPLEMENTATION) && !defined(MHK__PASS)
/* Compiles code for an instruction set that the compiler flags do not enable. Clang has no
   push_options, GCC no attribute push. */
#define MHK__PRAGMA(x) _Pragma(#x)
#if defined(__clang__)
#define MHK__PUSH(features) \
  MHK__PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define MHK__POP MHK__PRAGMA(clang attribute pop)
#else
#define MHK__PUSH(features) MHK__PRAGMA(GCC push_options) MHK__PRAGMA(GCC target(features))
#define MHK__POP MHK__PRAGMA(GCC pop_options)
#endif

#define MHK__PASS MHK__SCALAR
#define MHK__SUFFIX _scalar
#include MOHAWK_HEADER_NAME
#if !defined(MHK__PASS_DONE) || MHK__PASS_DONE != MHK__VERSION
#error "mohawk.h: this file includes itself, by the name \"mohawk.h\" unless told, and that is another file \
or version: #define MOHAWK_HEADER_NAME to the name it is included by, in quotes, and use no #pragma once"
#endif
#undef MHK__PASS
#undef MHK__SUFFIX
#undef MHK__PASS_DONE
#ifdef MHK__HAS_X86_PASSES
MHK__PUSH("avx2,fma,f16c")
#define MHK__PASS MHK__AVX2
#define MHK__SUFFIX _avx2
#include MOHAWK_HEADER_NAME
#undef MHK__PASS
#undef MHK__SUFFIX
#undef MHK__PASS_DONE
MHK__POP
MHK__PUSH("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")
#define MHK__PASS MHK__AVX512
#define MHK__SUFFIX _avx512
#include MOHAWK_HEADER_NAME
#undef MHK__PASS
#undef MHK__SUFFIX
#undef MHK__PASS_DONE
MHK__POP
#endif
#ifdef MHK__HAS_NEON_PASS
#define MHK__PASS MHK__NEON
#define MHK__SUFFIX _neon
#include MOHAWK_HEADER_NAME
#undef MHK__PASS
#undef MHK__SUFFIX
#undef MHK__PASS_DONE
#endif
#ifdef MHK__HAS_WASM_PASS
#define MHK__PASS MHK__WASM
#define MHK__SUFFIX _wasm
#include MOHAWK_HEADER_NAME
#undef MHK__PASS
#undef MHK__SUFFIX
#undef MHK__PASS_DONE
#endif

/* ---- dot products of bytes, in addition to the kernels of AVX-512 and NEON ---- */

#ifdef MHK__HAS_VNNI
MHK__PUSH("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
/* AVX512-VNNI: both bytes of x against bytes of w made unsigned by adding 128 (MHK_Q4: 8), the same
   integers as everywhere. Measured on Zen 4 for blocks from memory, one core that reads 31 GB/s:
   with the low byte left out (integers of 8 bits) one row takes as long (MHK_Q4 30 GB/s of weights
   either way, MHK_Q8 31 instead of 28), four rows 0.82 to 0.92, eight 0.71 to 0.85 of the time.
   That is not worth 8 bits of x. */
static inline __m512i mhk__q_four(const signed char *x) {
  int32_t four;
  memcpy(&four, x, sizeof four);
  return _mm512_set1_epi32(four);
}
#undef MHK__Q_SET
#define MHK__Q_SET MHK__VNNI
#define MHK__VNNI_TARGET
#define MHK__VNNI_LANES 16
#define MHK__VNNI_INT __m512i
#define MHK__VNNI_REAL __m512
#define MHK__VNNI_LOAD(p) _mm512_loadu_si512(p)
#define MHK__VNNI_SPREAD(x) _mm512_set1_ps(x)
#define MHK__VNNI_FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define MHK__VNNI_PUT(p, v) _mm512_storeu_ps(p, v)
#define MHK__VNNI_ALL ((__mmask16)0xFFFF)
#define MHK__VNNI_SCALES(p) _mm512_maskz_cvtph_ps(MHK__VNNI_ALL, _mm256_loadu_si256((const __m256i *)(const void *)(p)))
/* What low and high bytes of x give. One row alone has two sums of each, which would wait for each
   other. */
typedef struct mhk__vnni_sum { __m512i low[2], high[2]; } mhk__vnni_sum;
#define MHK__VNNI_SUM mhk__vnni_sum
#define MHK__VNNI_NONE(start) \
  {{_mm512_set1_epi32(start), _mm512_setzero_si512()}, {_mm512_setzero_si512(), _mm512_setzero_si512()}}
#define MHK__VNNI_TOTAL(d, start) _mm512_maskz_cvtepi32_ps(MHK__VNNI_ALL, _mm512_add_epi32(_mm512_maskz_slli_epi32( \
  MHK__VNNI_ALL, _mm512_add_epi32(d.high[0], d.high[1]), 8), _mm512_add_epi32(d.low[0], d.low[1])))
#define MHK__VNNI_OFFSET_Q8 1
#define MHK__VNNI_OFFSET_Q4 1
#define MHK__VNNI_STEP_Q8 32
#define MHK__VNNI_STEP_Q4 32
#define MHK__VNNI_TURN_Q4(R, V) \
  V(MHK__Q_LINE_Q4, R, 0) V(MHK__Q_LINE_Q4, R, 1) V(MHK__Q_LINE_Q4, R, 2) V(MHK__Q_LINE_Q4, R, 3)
#define MHK__VNNI_TURN_Q8(R, V) \
  V(MHK__Q_LINE_Q8, R, 0) V(MHK__Q_LINE_Q8, R, 1) V(MHK__Q_LINE_Q8, R, 2) V(MHK__Q_LINE_Q8, R, 3) \
  V(MHK__Q_LINE_Q8, R, 4) V(MHK__Q_LINE_Q8, R, 5) V(MHK__Q_LINE_Q8, R, 6) V(MHK__Q_LINE_Q8, R, 7)
#define MHK__VNNI_PARTS_Q8 const __m512i w0 = _mm512_xor_si512(w, _mm512_set1_epi32((int)0x80808080u));
#define MHK__VNNI_PARTS_Q4 \
  const __m512i low = _mm512_set1_epi32(0x0F0F0F0F), w0 = _mm512_and_si512(w, low), \
                w1 = _mm512_and_si512(_mm512_srli_epi16(w, 4), low);
#define MHK__VNNI_DOT(r, v, part, four) { \
    enum { which = rows == 1 ? (four) & 1 : 0 }; \
    d##r##v.low[which] = _mm512_dpbusd_epi32(d##r##v.low[which], part, mhk__q_four(x + (r) * 2 * K + 4 * (four))); \
    d##r##v.high[which] = \
      _mm512_dpbusd_epi32(d##r##v.high[which], part, mhk__q_four(x + (r) * 2 * K + 4 * (four) + 32)); \
  }
#define MHK__VNNI_ROW_Q8(r, v, n) MHK__VNNI_DOT(r, v, w0, n)
#define MHK__VNNI_ROW_Q4(r, v, n) MHK__VNNI_DOT(r, v, w0, 2 * (n)) MHK__VNNI_DOT(r, v, w1, 2 * (n) + 1)
MHK__Q_TILE(mhk__vnni_q8_1, Q8, 1, MHK__Q_V1, 1, MHK__Q_GROUP)
MHK__Q_TILE(mhk__vnni_q8_2, Q8, 2, MHK__Q_V1, 1, MHK__Q_GROUP)
MHK__Q_TILE(mhk__vnni_q8_4, Q8, 4, MHK__Q_V1, 1, MHK__Q_GROUP)
MHK__Q_TILE(mhk__vnni_q8_8, Q8, 4, MHK__Q_V2, 2, MHK__Q_GROUP)
MHK__Q_TILE(mhk__vnni_q4_1, Q4, 1, MHK__Q_V1, 1, MHK__Q_GROUP)
MHK__Q_TILE(mhk__vnni_q4_2, Q4, 2, MHK__Q_V1, 1, MHK__Q_GROUP)
MHK__Q_TILE(mhk__vnni_q4_4, Q4, 4, MHK__Q_V1, 1, MHK__Q_GROUP)
MHK__Q_TILE(mhk__vnni_q4_8, Q4, 4, MHK__Q_V2, 2, MHK__Q_GROUP)
static void mhk__q_times_vnni(const mhk__q_args *a, mhk_index first, mhk_index last) {
  if (a->dtype == MHK_Q8)
    mhk__q_tiles(a, first, last, mhk__vnni_q8_1, mhk__vnni_q8_2, mhk__vnni_q8_4, mhk__vnni_q8_8);
  else
    mhk__q_tiles(a, first, last, mhk__vnni_q4_1, mhk__vnni_q4_2, mhk__vnni_q4_4, mhk__vnni_q4_8);
}
MHK__POP
#endif

#ifdef MHK__HAS_SDOT
/* SDOT: both signed bytes of x against the signed bytes of w as they lie (MHK_Q4: its halves, which
   are 8 too large), the same integers as everywhere. Four bytes of x are chosen by their place in a
   vector of 16. Four rows take half a block at a time: their integers fill the registers, their
   sums wait in memory. Counted in the code of GCC 12, a row takes 140 vector instructions for 256
   bytes of MHK_Q4 in groups of 32 alone, 114 in a tile of two, 104 in one of four; for 512 of
   MHK_Q8 100, 98, 98. */
#undef MHK__Q_SET
#define MHK__Q_SET MHK__SDOT
#define MHK__SDOT_TARGET MHK__TARGET_SDOT
#define MHK__SDOT_LANES 4
#define MHK__SDOT_INT int8x16_t
#define MHK__SDOT_REAL float32x4_t
#define MHK__SDOT_LOAD(p) vreinterpretq_s8_u8(vld1q_u8(p))
#define MHK__SDOT_SPREAD(x) vdupq_n_f32(x)
#define MHK__SDOT_FMA(a, b, c) vfmaq_f32(c, a, b)
#define MHK__SDOT_PUT(p, v) vst1q_f32(p, v)
#define MHK__SDOT_SCALES(p) vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)))
/* what low and high bytes of x give */
typedef struct mhk__sdot_sum { int32x4_t low, high; } mhk__sdot_sum;
#define MHK__SDOT_SUM mhk__sdot_sum
#define MHK__SDOT_NONE(start) {vdupq_n_s32(start), vdupq_n_s32(0)}
#define MHK__SDOT_TOTAL(d, start) vcvtq_f32_s32(vaddq_s32(vshlq_n_s32(d.high, 8), d.low))
#define MHK__SDOT_OFFSET_Q8 0
#define MHK__SDOT_OFFSET_Q4 1
#define MHK__SDOT_STEP_Q8 32
#define MHK__SDOT_STEP_Q4 32
/* 16 integers of row r of x, of 32: their low bytes, and their high ones */
#define MHK__SDOT_TAKE(r, v, at) \
  const int8x16_t xl##r = vld1q_s8(x + (r) * 2 * K + (at)), xh##r = vld1q_s8(x + (r) * 2 * K + (at) + 32);
#define MHK__SDOT_TURN_Q8(R, V) { \
    MHK__Q_R##R(MHK__SDOT_TAKE, 0, 0) \
    V(MHK__Q_LINE_Q8, R, 0) V(MHK__Q_LINE_Q8, R, 1) V(MHK__Q_LINE_Q8, R, 2) V(MHK__Q_LINE_Q8, R, 3) \
  } { \
    MHK__Q_R##R(MHK__SDOT_TAKE, 0, 16) \
    V(MHK__Q_LINE_Q8, R, 4) V(MHK__Q_LINE_Q8, R, 5) V(MHK__Q_LINE_Q8, R, 6) V(MHK__Q_LINE_Q8, R, 7) \
  }
#define MHK__SDOT_TURN_Q4(R, V) { \
    MHK__Q_R##R(MHK__SDOT_TAKE, 0, 0) \
    V(MHK__Q_LINE_Q4, R, 0) V(MHK__Q_LINE_Q4, R, 1) \
  } { \
    MHK__Q_R##R(MHK__SDOT_TAKE, 0, 16) \
    V(MHK__Q_LINE_Q4, R, 2) V(MHK__Q_LINE_Q4, R, 3) \
  }
#define MHK__SDOT_PARTS_Q8
#define MHK__SDOT_PARTS_Q4 \
  const int8x16_t even = vandq_s8(w, vdupq_n_s8(15)), \
                  odd = vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(w), 4));
#define MHK__SDOT_DOT(r, v, part, four) \
  d##r##v.low = vdotq_laneq_s32(d##r##v.low, part, xl##r, (four) & 3); \
  d##r##v.high = vdotq_laneq_s32(d##r##v.high, part, xh##r, (four) & 3);
#define MHK__SDOT_ROW_Q8(r, v, n) MHK__SDOT_DOT(r, v, w, n)
#define MHK__SDOT_ROW_Q4(r, v, n) MHK__SDOT_DOT(r, v, even, 2 * (n)) MHK__SDOT_DOT(r, v, odd, 2 * (n) + 1)
MHK__Q_TILE(mhk__sdot_q8_1, Q8, 1, MHK__Q_V4, 1, MHK__Q_GROUP)
MHK__Q_TILE(mhk__sdot_q8_2, Q8, 2, MHK__Q_V4, 1, MHK__Q_GROUP)
MHK__Q_TILE(mhk__sdot_q8_4, Q8, 4, MHK__Q_V4, 1, MHK__Q_HALVES)
MHK__Q_TILE(mhk__sdot_q4_1, Q4, 1, MHK__Q_V4, 1, MHK__Q_GROUP)
MHK__Q_TILE(mhk__sdot_q4_2, Q4, 2, MHK__Q_V4, 1, MHK__Q_GROUP)
MHK__Q_TILE(mhk__sdot_q4_4, Q4, 4, MHK__Q_V4, 1, MHK__Q_HALVES)
static void mhk__q_times_sdot(const mhk__q_args *a, mhk_index first, mhk_index last) {
  if (a->dtype == MHK_Q8)
    mhk__q_tiles(a, first, last, mhk__sdot_q8_1, mhk__sdot_q8_2, mhk__sdot_q8_4, NULL);
  else
    mhk__q_tiles(a, first, last, mhk__sdot_q4_1, mhk__sdot_q4_2, mhk__sdot_q4_4, NULL);
}

/* Known from compiler flags, or asked from the system. If neither works, the plain kernels run. */
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

/* ---- units for bfloat16: AVX512-BF16 and AMX, in addition to the AVX-512 kernels ---- */

#if defined(MHK__HAS_X86_PASSES) && defined(__x86_64__) && !defined(MOHAWK_DOUBLE) && !defined(MOHAWK_NO_TRAINING)
#if defined(__clang__)
#if __clang_major__ >= 9
#define MHK__HAS_BF16_DOT
#endif
#if __clang_major__ >= 12 && defined(__linux__) && !defined(__ILP32__)
#define MHK__HAS_AMX
#endif
#else
#if __GNUC__ >= 10
#define MHK__HAS_BF16_DOT
#endif
#if __GNUC__ >= 11 && defined(__linux__) && !defined(__ILP32__)
#define MHK__HAS_AMX
#endif
#endif
#endif

#ifdef MHK__HAS_BF16_DOT
MHK__PUSH("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
/* Packed operands are words of two numbers that follow each other along k, the first in the low
   half: word (p,i) of a panel belongs to row (or column) i and to k = 2p and 2p + 1. */

/* the first n of 16 numbers in a row, the rest 0 */
static inline __m512 mhk__bf16_floats(const void *p, mhk_dtype dtype, mhk_index n) {
  const __mmask16 mask = n >= 16 ? (__mmask16)0xFFFF : n <= 0 ? (__mmask16)0 : (__mmask16)((1u << n) - 1u);
  if (dtype == MHK_F32) return _mm512_maskz_loadu_ps(mask, p);
  if (dtype == MHK_BF16)
    return _mm512_castsi512_ps(
        _mm512_maskz_slli_epi32(mask, _mm512_maskz_cvtepu16_epi32(mask, _mm256_maskz_loadu_epi16(mask, p)), 16));
  return _mm512_maskz_cvtph_ps(mask, _mm256_maskz_loadu_epi16(mask, p));
}

/* the words of the first n of 32 numbers in a row */
static inline __m512i mhk__bf16_words(const void *p, mhk_dtype dtype, mhk_index n) {
  const char *second = (const char *)p + 16 * (dtype == MHK_F32 ? 4 : 2);
  if (n <= 0) return _mm512_setzero_si512();
  if (dtype == MHK_BF16)
    return _mm512_maskz_loadu_epi16(n >= 32 ? (__mmask32)0xFFFFFFFFu : (__mmask32)((1u << n) - 1u), p);
  return (__m512i)_mm512_cvtne2ps_pbh(n > 16 ? mhk__bf16_floats(second, dtype, n - 16) : _mm512_setzero_ps(),
                                      mhk__bf16_floats(p, dtype, n));
}

/* the words of 16 rows, of which n exist, from two lines of numbers: k even and odd */
static inline __m512i mhk__bf16_lines(const void *even, const void *odd, mhk_dtype dtype, mhk_index n) {
  const __m512i zip = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                       5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512 x = mhk__bf16_floats(even, dtype, n), y = odd ? mhk__bf16_floats(odd, dtype, n) : _mm512_setzero_ps();
  return _mm512_maskz_permutexvar_epi16((__mmask32)0xFFFFFFFFu, zip, (__m512i)_mm512_cvtne2ps_pbh(y, x));
}

/* 16 x 16 words transposed: column j of src goes to dst + j * stride, its words of the mask only,
   for the first n columns */
static void mhk__bf16_transpose(const uint32_t *src, uint32_t *dst, mhk_index stride, __mmask16 mask, mhk_index n) {
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
  a = MHK__LANES(p##j, q##j, 0x88); b = MHK__LANES(r##j, s##j, 0x88); c = MHK__LANES(p##j, q##j, 0xDD); \
    d = MHK__LANES(r##j, s##j, 0xDD); \
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

/* A block of 16 rows x 16 words, from row i and k = 2p on: rows of the source one after the other,
   or (lines) words of the same k. */
static inline void mhk__bf16_rows(uint32_t *block, const char *s, mhk_index size, mhk__matrix src, mhk_index rows,
                                  mhk_index k) {
  for (mhk_index q = 0; q < 16; q++)
    _mm512_store_si512(block + 16 * q,
                       q < rows ? mhk__bf16_words(s + q * src.row * size, src.dtype, k) : _mm512_setzero_si512());
}
static inline __m512i mhk__bf16_line(const char *s, mhk_index size, mhk__matrix src, mhk_index rows, mhk_index k) {
  return k > 0 ? mhk__bf16_lines(s, k > 1 ? s + src.col * size : NULL, src.dtype, rows) : _mm512_setzero_si512();
}

/* The same for strides and types that the vector code does not support. */
static void mhk__bf16_any(uint32_t *block, mhk__matrix src, mhk_index rows, mhk_index k) {
  for (mhk_index i = 0; i < 16; i++)
    for (mhk_index p = 0; p < 16; p++) {
      uint32_t word = 0;
      if (i < rows && 2 * p < k)
        word = mhk__bf16_round(mhk__element(src.data, src.dtype, i * src.row + 2 * p * src.col));
      if (i < rows && 2 * p + 1 < k)
        word |= (uint32_t)mhk__bf16_round(mhk__element(src.data, src.dtype, i * src.row + (2 * p + 1) * src.col)) << 16;
      block[16 * i + p] = word;
    }
}

/* panels of width rows: word p of all rows, then word p + 1; words: along k, padded */
static inline void mhk__bf16_panels(uint32_t *dst, mhk_index width, mhk_index rows, mhk_index k, mhk_index words,
                                    mhk__matrix src) {
  const mhk_index size = (mhk_index)mhk_dtype_bytes(src.dtype), wide = mhk__up(width, 16);
  const __mmask16 last = (__mmask16)(0xFFFFu >> (wide - width));
  uint32_t room[16 * 16 + 16], *block = room + (64 - (uintptr_t)room % 64) % 64 / 4;
  if (src.row == 1 && src.dtype != MHK_F64) { /* along the lines, so each is fetched only once */
    for (mhk_index p = 0; p < words; p++) {
      const char *s = (const char *)src.data + (2 * p < k ? 2 * p * src.col * size : 0);
      uint32_t *to = dst + p * width;
      for (mhk_index i0 = 0; i0 < rows; i0 += width, to += width * words)
        for (mhk_index i = 0; i < width; i += 16) {
          const mhk_index n = mhk__min(rows - i0, width) - i;
          _mm512_mask_storeu_epi32(to + i, i + 16 < wide ? (__mmask16)0xFFFF : last,
                                   mhk__bf16_line(s + (n > 0 ? i0 + i : 0) * size, size, src, n, k - 2 * p));
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
        mhk__bf16_transpose(block, dst + p * width + i, width, i + 16 < wide ? (__mmask16)0xFFFF : last, words - p);
      }
    }
}
#define MHK__DOT_ROWS 14
enum { MHK__DOT_COLUMNS = 32 };
static void mhk__dot_pack_a(void *dst, mhk_index rows, mhk_index k, mhk__matrix src) {
  mhk__bf16_panels((uint32_t *)dst, MHK__DOT_ROWS, rows, k, (k + 1) / 2, src);
}
static void mhk__dot_pack_b(void *dst, mhk_index n_columns, mhk_index k, mhk__matrix src) {
  mhk__bf16_panels((uint32_t *)dst, MHK__DOT_COLUMNS, n_columns, k, (k + 1) / 2, src);
}

/* the register tile: each word of a against 32 of b */
#define MHK__DOT_DECLARE(i) __m512 s##i = _mm512_setzero_ps(), t##i = _mm512_setzero_ps();
#define MHK__DOT_STEP(i) \
  x = (__m512bh)_mm512_set1_epi32((int)a[i]); \
  s##i = _mm512_dpbf16_ps(s##i, x, p); \
  t##i = _mm512_dpbf16_ps(t##i, x, q);
#define MHK__DOT_WRITE(i) _mm512_storeu_ps(c, s##i); _mm512_storeu_ps(c + 16, t##i); c += ldc;
#define MHK__DOT_ADD(i) _mm512_storeu_ps(c, _mm512_loadu_ps(c) + s##i); \
  _mm512_storeu_ps(c + 16, _mm512_loadu_ps(c + 16) + t##i); c += ldc;
static void mhk__dot_tile(mhk_index words, const uint32_t *MHK__RESTRICT a, const uint32_t *MHK__RESTRICT b, float *c,
                          mhk_index ldc, int accumulate) {
  __m512bh x, p, q;
  MHK__EACH(MHK__DOT_ROWS, MHK__DOT_DECLARE)
  for (; words > 0; words--, a += MHK__DOT_ROWS, b += MHK__DOT_COLUMNS) {
    p = (__m512bh)_mm512_loadu_si512(b);
    q = (__m512bh)_mm512_loadu_si512(b + 16);
    MHK__EACH(MHK__DOT_ROWS, MHK__DOT_STEP)
  }
  if (accumulate) {
    MHK__EACH(MHK__DOT_ROWS, MHK__DOT_ADD)
  } else {
    MHK__EACH(MHK__DOT_ROWS, MHK__DOT_WRITE)
  }
}

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

static void mhk__dot_product(mhk_index m, mhk_index n, mhk_index k, const void *a, const void *b, float *c,
                             mhk_index ldc, int accumulate) {
  const mhk_index words = (k + 1) / 2;
  for (mhk_index j = 0; j < n; j += MHK__DOT_COLUMNS)
    for (mhk_index i = 0; i < m; i += MHK__DOT_ROWS) {
      const uint32_t *pa = (const uint32_t *)a + i * words, *pb = (const uint32_t *)b + j * words;
      if (m - i >= MHK__DOT_ROWS && n - j >= MHK__DOT_COLUMNS)
        mhk__dot_tile(words, pa, pb, c + i * ldc + j, ldc, accumulate);
      else {
        float edge[MHK__DOT_ROWS * MHK__DOT_COLUMNS];
        mhk__dot_tile(words, pa, pb, edge, MHK__DOT_COLUMNS, 0);
        mhk__bf16_edge(edge, mhk__min(m - i, MHK__DOT_ROWS), mhk__min(n - j, MHK__DOT_COLUMNS), c + i * ldc + j, ldc,
                       accumulate);
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
/* AMX takes 16 words of k at once: rows of the left operand as they are, 16 rows a tile of 1 KB,
   two such for 32 rows; columns as above. */
enum { MHK__AMX_K = 32 };
static void mhk__amx_pack_a(void *to, mhk_index rows, mhk_index k, mhk__matrix src) {
  const mhk_index size = (mhk_index)mhk_dtype_bytes(src.dtype), words = mhk__up(k, MHK__AMX_K) / 2;
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
          _mm512_store_si512(block + 16 * q,
                             mhk__bf16_line(s + 2 * q * src.col * size, size, src, rows - i, k - 2 * (p + q)));
        mhk__bf16_transpose(block, dst, 16, (__mmask16)0xFFFF, 16);
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
/* On Linux, a process must request the tile registers: arch_prctl(ARCH_REQ_XCOMP_PERM,
   XFEATURE_XTILEDATA), a system call that libc does not wrap. Then all threads of the process can
   use them. */
static int mhk__amx_permission(void) {
  long result;
  __asm__ volatile("syscall" : "=a"(result) : "a"(158L), "D"(0x1023L), "S"(18L) : "rcx", "r11", "memory");
  return result == 0;
}

MHK__PUSH("avx512f,amx-tile,amx-bf16")
/* c (32,32), rows ldc apart: four tiles of sums, two of each operand */
static void mhk__amx_tile(mhk_index words, const uint32_t *a, const uint32_t *b, float *c, mhk_index ldc,
                          int accumulate) {
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

static void mhk__amx_product(mhk_index m, mhk_index n, mhk_index k, const void *a, const void *b, float *c,
                             mhk_index ldc, int accumulate) {
  const mhk_index words = mhk__up(k, MHK__AMX_K) / 2;
  /* of the eight tiles: all 16 rows of 64 bytes */
  struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } shape;
  memset(&shape, 0, sizeof shape);
  shape.palette = 1;
  for (mhk_index i = 0; i < 8; i++) {
    shape.bytes[i] = 64;
    shape.rows[i] = 16;
  }
  /* GCC 12 assumes that only 8 bytes of it are read and does not write the rest */
  __asm__ volatile("" : : "r"(&shape) : "memory");
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
/* called only if AVX-512 is available: CPUID 7, ECX bit 11 */
static int mhk__cpu_vnni(void) {
  unsigned r[4];
  mhk__cpuid(7, 0, r);
  return (r[2] & (1u << 11)) != 0;
}
#endif

/* the best set that processor and build support */
static mhk_isa mhk__isa_best(void) {
  const mhk_isa cpu = mhk__cpu_best();
#if defined(MHK__HAS_X86_PASSES) || defined(MHK__HAS_NEON_PASS) || defined(MHK__HAS_WASM_PASS)
  return cpu;
#else
  (void)cpu;
  return MHK_ISA_SCALAR;
#endif
}

/* Puts the kernels of a set into a table. Returns 0 if the set is not available. Then none of its
   code has run, not even the function that fills the table, which is compiled for the set as
   well. */
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

/* Puts a unit for bfloat16 into a table that has the plain one. Returns 0 if it is not available;
   AMX asks the system last. */
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
      mhk_fail(ctx, MHK_ERROR_ARGUMENT, "MHK_BF16_UNIT is \"%.40s\": it must be plain, avx512 or amx", forced);
    else
      unit = (mhk_bf16_unit)i;
  }
  ctx->bf16_unit = unit;
  if (unit == MHK_BF16_BEST)
    ctx->bf16_unit = mhk__bf16_best(ctx->isa, kernels);
  else if (!mhk__bf16_fill(ctx->isa, unit, kernels)) {
    ctx->bf16_unit = MHK_BF16_PLAIN;
    mhk_fail(ctx, MHK_ERROR_UNSUPPORTED,
             "the bfloat16 unit %s is not available here with the instruction set %s: the best one is %s",
             mhk__bf16_text(unit), mhk__isa_text(ctx->isa), mhk__bf16_text(mhk__bf16_best(ctx->isa, kernels)));
  }
}
#endif /* MOHAWK_NO_TRAINING */

/* Checks that NaN and the order of sums are as in the code. Some compilers have flags that change
   this without a macro, such as -fassociative-math and -fno-honor-nans of Clang. */
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
             "mohawk.h was compiled with flags like -fassociative-math or -fno-honor-nans, which break its sums and "
             "its checks for NaN: compile it without them, or define MOHAWK_ALLOW_FAST_MATH to try anyway");
  if (desc && (desc->allocator.alloc != NULL) != (desc->allocator.release != NULL))
    mhk_fail(ctx, MHK_ERROR_ARGUMENT, "the allocator has only one of alloc and release: give both or neither");
  if (d.parallel_for) {
    ctx->parallel_for = d.parallel_for;
    ctx->parallel_user = d.parallel_user;
    ctx->workers = d.parallel_workers;
    if (d.parallel_workers < 1) {
      ctx->workers = 1;
      mhk_fail(ctx, MHK_ERROR_ARGUMENT,
               "parallel_for has %d workers: set parallel_workers to their number", d.parallel_workers);
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
    if (!found)
      mhk_fail(ctx, MHK_ERROR_ARGUMENT, "MHK_ISA is \"%.40s\": it must be scalar, avx2, avx512, neon or wasm", forced);
  }
  if (!mhk__isa_fill(isa, &block->kernels)) {
    mhk_fail(ctx, MHK_ERROR_UNSUPPORTED, "the instruction set %s is not available here: the best one is %s",
             mhk__isa_text(isa), mhk__isa_text(mhk__isa_best()));
    isa = MHK_ISA_SCALAR;
    mhk__isa_fill(isa, &block->kernels);
  }
  ctx->isa = isa;
#ifndef MOHAWK_NO_TRAINING
  mhk__context_bf16(ctx, d.bf16_unit, &block->kernels);
  if (mhk__precision_fits(ctx, d.precision)) ctx->precision = d.precision;
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
#ifndef MHK__PASS
#undef MHK__TEMPLATE
#undef MHK__TEXT
/*
   REVISIONS
   0.3.0  Renamed. A corpus: mhk_text, mhk_text_desc and mhk_text_load, _from_tokens, _sample,
          _destroy and _tokens to mhk_corpus...; mhk_distill_desc.text to .corpus. A bare name takes
          a path, _memory takes bytes: mhk_session_save and _load to mhk_session_save_memory and
          mhk_session_load_memory, mhk_session_save_file and _load_file to mhk_session_save and
          mhk_session_load, mhk_tokenizer_parse to mhk_tokenizer_load_memory. Lists have _count, _at
          and _find: mhk_file_tensors to mhk_file_count, mhk_file_tensor_at to mhk_file_at, the type
          mhk_file_tensor to mhk_stored, mhk_model_tensors to mhk_model_count, mhk_model_tensor to
          mhk_model_at; mhk_speculation_count and the type mhk_speculation_counts, which is no list,
          to mhk_speculation_progress and mhk_speculation_info. Sizes end in _bytes:
          mhk_session_size to mhk_session_bytes, mhk_session_state_size to
          mhk_session_state_bytes, mhk_dtype_size to mhk_dtype_bytes.
          Merged: mhk_feed_many and mhk_feed_logits into mhk_feed_batch with an mhk_feed_desc;
          mhk_logits and mhk_logits_of into mhk_logits(s, sequence); mhk_session_reset and
          mhk_session_reset_one into mhk_session_reset(s, sequence or MHK_ALL); mhk_conv1d and
          mhk_conv1d_split into mhk_conv1d with an mhk_conv1d_desc; mhk_backward_many
          into mhk_backward_from (several outputs: the sum of each times its cotangent).
          Changed: a zeroed mhk_sampling means what NULL means (temperature 0.8, top_p 0.95), greedy
          and exact have names, a negative temperature is refused. mhk_distill_desc.recipe; budgets
          that are all 0 are 0.5, 1 and 1.5 million tokens.
          Gone, since only sessions need them: mhk_kv_cache and the cache of mhk_attention, the
          state of mhk_conv1d and mhk_conv1d_split, the offset of mhk_rotary. Gone too:
          mhk_tape_context (op->out->ctx has it); mhk_set_precision, which is
          mhk_context_desc.precision now; mhk_learning_rate (mhk_progress() has it).
          Descriptions in place of long lists: mhk_custom_desc, mhk_orientation_desc,
          mhk_evaluate_desc, mhk_stage_loss_desc.
          Moved to tools/: reading of PyTorch archives and of vocabularies older than
          tokenizer.json; mohawk convert and the other commands read them. New: mhk_file_of,
          mhk_release_fn, mhk_load_desc.weights and .tokenizer, mhk_tokenizer_desc,
          mhk_tokenizer_create.
   0.2.0  Renamed: mhk_quantise, mhk_quantise_desc and mhk_quantised to mhk_quantize,
          mhk_quantize_desc and mhk_quantized. New: mhk_load_with, mhk_model_ends,
          mhk_model_set_ends, mhk_model_tokenizer_error, mhk_encode_prompt, mhk_tokenizer_start,
          mhk_feed_bytes, mhk_file_write_bytes; no_start and word_bytes of mhk_session_desc;
          MOHAWK_REFERENCE. A text ends and starts as the model's files say. Checkpoints carry a
          checksum (version 2; version 1 resumes); a folder has one trainer at a time. The file is
          in chapters by topic and includes itself at its end.
   0.1.0  The first one.

   mohawk.h is available under two licenses. Choose whichever you prefer.

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
