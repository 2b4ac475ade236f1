/* Every kernel of every instruction set this machine offers, against the header's reference in
   double, and against the scalar kernels: at sizes around the vector width and the register tile,
   at odd strides, at pointers no vector is aligned to. Every array lies between guards of NaN: a
   number read from outside poisons the result, a number written there is found (and so is one
   written between the rows of a result). Work memory has the size the drivers give it, is full of
   NaN at the start and has guards too. Under the address sanitizer the guards are poisoned for it
   as well. */
#define MOHAWK_IMPLEMENTATION
#define MOHAWK_STATIC
#define MOHAWK_REFERENCE
#include "models.h"
#if defined(__SANITIZE_ADDRESS__)
#define POISON
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define POISON
#endif
#endif
#ifdef POISON
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)0)
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)0)
#endif

#ifdef MOHAWK_DOUBLE
#define EPS 1e-15 /* the reference is no better */
#else
#define EPS 1.2e-7
#endif

/* ---- the machines: one context for each instruction set, the scalar one first ---- */

static mhk_context *contexts[8];
static mhk__kernels tables[8];
static int n_machines;
static const mhk__kernels *ks; /* the one under test */
static int machine;
/* a kernel, taken to be called: how often is counted by the list that the header has of them */
#define NUMBER(result, name, arguments, reference) kernel_##name,
#define HEAD_NUMBER(name, of, reference) kernel_##name,
enum { MHK__ALL_KERNELS(NUMBER, HEAD_NUMBER) N_KERNELS };
static int taken[8][N_KERNELS];
#define KERNEL_OF(i, name) (taken[i][kernel_##name]++, tables[i].name)
#define KERNEL(name) KERNEL_OF(machine, name)
#define EACH_MACHINE for (machine = 0; begin_machine(); machine++)

/* ---- memory between guards ---- */

enum { GUARD = 384, WIDE_GUARD = 16384, MOST_BLOCKS = 512 }; /* bytes */
typedef struct block {
  char *base, *data;
  size_t bytes, all;
  size_t step; /* of the guards: a hole() in each element, or, where elements are no mhk_real, bytes of all ones */
} block;
static block blocks[MOST_BLOCKS];
static int n_blocks;
static char at[256]; /* what is being tested, for messages */

static mhk_real hole(void) { /* the NaN that fills guards and gaps */
#ifdef MOHAWK_DOUBLE
  const uint64_t bits = UINT64_C(0x7FF8A5A5A5A5A5A5);
#else
  const uint32_t bits = 0x7FC5A5A5u;
#endif
  mhk_real x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
static int is_hole(mhk_real x) {
  const mhk_real h = hole();
  return memcmp(&x, &h, sizeof x) == 0;
}

/* n elements of a size, at an odd multiple of it from an aligned address (or aligned), between
   guards */
static void *raw_room(mhk_index n, size_t size, int aligned) {
  static unsigned turn;
  block *b = &blocks[n_blocks++];
  const size_t skew = aligned ? 0 : (turn++ * 6 % 16 + 1) * size, guard = GUARD,
               behind = aligned && size == sizeof(mhk_real) ? WIDE_GUARD : GUARD;
  if (n_blocks > MOST_BLOCKS) exit(3);
  b->bytes = (size_t)n * size;
  b->all = guard + behind + b->bytes + skew + 64;
  b->base = (char *)malloc(b->all);
  if (!b->base) exit(3);
  b->data = b->base + (64 - (uintptr_t)b->base % 64) % 64 + guard + skew;
  b->step = size == sizeof(mhk_real) ? size : 1;
  memset(b->base, 0xFF, b->all);
  if (b->step > 1) {
    const mhk_real h = hole();
    char *p = b->data - (size_t)(b->data - b->base) / size * size;
    for (; p + size <= b->base + b->all; p += size) memcpy(p, &h, size);
  }
  ASAN_POISON_MEMORY_REGION(b->base, (size_t)(b->data - b->base));
  ASAN_POISON_MEMORY_REGION(b->data + b->bytes, (size_t)(b->base + b->all - b->data) - b->bytes);
  return b->data;
}
static mhk_real *room(mhk_index n) { return (mhk_real *)raw_room(n, sizeof(mhk_real), 0); }
static mhk_real *work_room(mhk_index n) { return (mhk_real *)raw_room(n, sizeof(mhk_real), 1); }
static uint64_t seed;
static mhk_real *random_room(mhk_index n, double low, double high) {
  mhk_real *x = room(n);
  test_fill(x, n, low, high, ++seed);
  return x;
}
static mhk_real *copy_room(const mhk_real *x, mhk_index n) {
  mhk_real *y = room(n);
  memcpy(y, x, (size_t)n * sizeof *x);
  return y;
}

/* plain memory, zeroed */
static double *doubles(mhk_index n) {
  double *x = (double *)raw_room(n > 0 ? n : 1, sizeof(double), 1);
  mhk_index i;
  for (i = 0; i < n; i++) x[i] = 0;
  return x;
}
static double *as_doubles(const mhk_real *x, mhk_index n) {
  double *y = doubles(n);
  mhk_index i;
  for (i = 0; i < n; i++) y[i] = (double)x[i];
  return y;
}

/* is the memory from p to end full of what guards hold? */
static int guard_is_whole(const char *p, const char *end, size_t step) {
  const mhk_real h = hole();
  const unsigned char ones = 0xFF;
  return p >= end || (memcmp(p, step > 1 ? (const void *)&h : (const void *)&ones, step) == 0 &&
                      memcmp(p, p + step, (size_t)(end - p) - step) == 0);
}

/* The guards of all blocks from one on are whole; they are freed. */
static void release_from(int first) {
  int i;
  for (i = first; i < n_blocks; i++) {
    block *b = &blocks[i];
    const size_t n = b->step, before = (size_t)(b->data - b->base) / n * n,
                 after = (b->all - (size_t)(b->data - b->base) - b->bytes) / n * n;
    const char *end = b->data + b->bytes;
    long long j;
    ASAN_UNPOISON_MEMORY_REGION(b->base, b->all);
    if (!guard_is_whole(b->data - before, b->data, n) || !guard_is_whole(end, end + after, n)) {
      for (j = -(long long)(before / n);
           j < 0 && guard_is_whole(b->data + j * (long long)n, b->data + (j + 1) * (long long)n, n);)
        j++;
      if (j == 0)
        for (j = (long long)(b->bytes / n);
             guard_is_whole(b->data + j * (long long)n, b->data + (j + 1) * (long long)n, n);)
          j++;
      CHECK(0, "%s: written to element %lld of an array of %lld (number %d of this case)", at, j,
            (long long)(b->bytes / n), i - first);
    }
    free(b->base);
  }
  CHECK(1, "guards");
  n_blocks = first;
}
static void release(void) { release_from(0); }

/* ---- results: against the reference, and against what the scalar kernels gave at the same place
   of the same test ---- */

static mhk_real *scalar_log;
static size_t log_n, log_at, log_room;

static void set_at(const char *format, ...) {
  va_list args;
  const int n = snprintf(at, sizeof at, "%s ", machine < 8 && contexts[machine] ? mhk_isa_name(contexts[machine]) : "");
  va_start(args, format);
  vsnprintf(at + n, sizeof at - (size_t)n, format, args);
  va_end(args);
}

static double worst_of_test;
static void result(const char *name, const mhk_real *got, const double *want, mhk_index n, double tolerance) {
  char what[320];
  double w;
  if (n <= 0) return;
  snprintf(what, sizeof what, "%s: %s", at, name);
  test_state.worst = 0;
  CHECK_CLOSE_TO_DOUBLE(what, got, want, n, tolerance);
  w = test_state.worst;
  if (w > worst_of_test && w < 1e300) {
    worst_of_test = w;
    if (test_state.verbose > 0 && w > 0.5) printf("       %.2f of the tolerance %.1e: %s\n", w, tolerance, what);
  }
  if (machine == 0) {
    if (log_n + (size_t)n > log_room) {
      log_room = 2 * log_room + (size_t)n;
      scalar_log = (mhk_real *)realloc(scalar_log, log_room * sizeof *scalar_log);
      if (!scalar_log) exit(3);
    }
    memcpy(scalar_log + log_n, got, (size_t)n * sizeof *got);
    log_n += (size_t)n;
  } else {
    if (log_at + (size_t)n > log_n)
      CHECK(0, "%s: the scalar kernels have no such result", what);
    else {
      snprintf(what, sizeof what, "%s: %s, scalar", at, name);
      CHECK_CLOSE(what, got, scalar_log + log_at, n, tolerance);
    }
    log_at += (size_t)n;
  }
}
static void result_number(const char *name, double got, double want, double scale, double tolerance) {
  CHECK(fabs(got - want) <= tolerance * scale, "%s: %s is %.12g, should be %.12g", at, name, got, want);
}

static int begin_machine(void) {
  release();
  if (machine == 0) log_n = 0;
  log_at = 0;
  if (machine >= n_machines) return 0;
  ks = &tables[machine];
  seed = 1000;
  set_at("start");
  return 1;
}

/* rows of n numbers, ld apart, as one dense array; the gaps must not have been written */
static mhk_real *dense(const mhk_real *x, mhk_index m, mhk_index n, mhk_index ld) {
  mhk_real *y = room(m * n);
  mhk_index i, j;
  for (i = 0; i < m; i++) {
    for (j = 0; j < n; j++) y[i * n + j] = x[i * ld + j];
    if (i + 1 < m)
      for (; j < ld; j++)
        if (!is_hole(x[i * ld + j])) {
          CHECK(0, "%s: written between the rows, at column %lld of row %lld of %lld x %lld", at, (long long)j,
                (long long)i, (long long)m, (long long)n);
          return y;
        }
  }
  return y;
}
static mhk_real *rows_room(mhk_index m, mhk_index ld, mhk_index n) { return room(m > 0 ? (m - 1) * ld + n : 0); }

/* starts of documents as the kernels want them: kind 0 none (NULL), 1 one document since before the
   first token, 2 several, the first one begun before, 3 several, the first one begins here, 4 a new
   document at every token */
static mhk_index *documents(int kind, mhk_index B, mhk_index T) {
  mhk_index *start, b, t;
  if (kind == 0) return NULL;
  start = (mhk_index *)raw_room(B * T, sizeof *start, 1);
  for (b = 0; b < B; b++) {
    mhk_index now = kind >= 3 ? 0 : -1;
    for (t = 0; t < T; t++) {
      if (kind == 4 || (kind >= 2 && t > 0 && test_random(&seed) % 23 == 0)) now = t;
      start[b * T + t] = now;
    }
  }
  return start;
}

/* ---- numbers stored in other types ---- */

/* n numbers of a type in about [-2,2], and what they are */
static void *stored(mhk_dtype dtype, mhk_index n, double **values) {
  const size_t size = dtype == MHK_F64 ? 8 : dtype == MHK_F32 ? 4 : 2;
  void *data = raw_room(n, size, 0);
  mhk_index i;
  *values = doubles(n);
  for (i = 0; i < n; i++) {
    const double x = test_uniform(&seed, -2, 2);
    if (dtype == MHK_F64)
      ((double *)data)[i] = x;
    else if (dtype == MHK_F32)
      ((float *)data)[i] = (float)x;
    else
      do
        ((uint16_t *)data)[i] = (uint16_t)test_random(&seed);
      while (!(fabs(mhk__ref_element(data, dtype, i)) < 2));
    (*values)[i] = mhk__ref_element(data, dtype, i);
  }
  return data;
}
static const char *type_name(mhk_dtype d) {
  return d == MHK_F64 ? "F64" : d == MHK_F32 ? "F32" : d == MHK_F16 ? "F16" : "BF16";
}

#define COUNT(list) ((int)(sizeof(list) / sizeof *(list)))

/* around every width (1, 2, 4, 8, 16), every register tile (4, 6, 8, 14; 4, 8, 16, 32, 48), and
   some primes */
static const mhk_index tile_sizes[] = {1,  2,  3,  4,  5,  6,  7,  8,  9,  11, 13, 14, 15, 16, 17, 23, 27, 28, 29,
                                       31, 32, 33, 41, 42, 43, 47, 48, 49, 55, 56, 57, 63, 64, 65, 95, 96, 97, 131};
static const mhk_index row_sizes[] = {0,   1,   2,   3,   4,   5,    6,    7,    8,    9,   10,  11,  12,
                                      13,  14,  15,  16,  17,  18,   19,   23,   24,   25,  29,  31,  32,
                                      33,  37,  47,  48,  49,  63,   64,   65,   97,   127, 128, 129, 255,
                                      256, 257, 263, 511, 513, 1023, 1024, 1025, 1031, 2053};

/* ---- products ---- */

/* what a packed operand must be; a panel holds width rows */
static void check_packed(const mhk_real *got, mhk_index width, mhk_index rows, mhk_index k, const double *values,
                         mhk_index row, mhk_index col) {
  mhk_index p, i, j;
  for (p = 0; p < rows; p += width)
    for (j = 0; j < k; j++)
      for (i = 0; i < width; i++) {
        const mhk_real want = p + i < rows ? (mhk_real)values[(p + i) * row + j * col] : 0;
        const mhk_real g = got[p * k + j * width + i];
        if (!(g == want || (g != g && want != want))) {
          CHECK(0, "%s: row %lld, column %lld is %.9g, should be %.9g", at, (long long)(p + i), (long long)j, (double)g,
                (double)want);
          return;
        }
      }
  CHECK(1, "packed");
}

TEST(pack) {
  static const mhk_dtype types[] = {MHK_F32, MHK_F64, MHK_F16, MHK_BF16};
  EACH_MACHINE {
    int way, r, c, side, type;
    for (type = 0; type < 4; type++)
      for (side = 0; side < 2; side++)
        for (way = 0; way < 4; way++)
          for (r = -1; r < COUNT(tile_sizes); r++)
            for (c = r & 3; c < COUNT(tile_sizes); c += types[type] == MHK_REAL ? 4 : 9) {
              const mhk_index width = side ? ks->nr : ks->mr, rows = r < 0 ? 0 : tile_sizes[r],
                              k = c == 0 ? 0 : tile_sizes[c];
              const mhk_index row = way == 0   ? k
                                    : way == 1 ? k + 5
                                    : way == 2 ? 1
                                               : 3,
                              col = way < 2    ? 1
                                    : way == 2 ? rows + 3
                                               : 3 * rows + 2;
              double *values;
              void *data = stored(types[type], rows * k > 0 ? (rows - 1) * row + (k - 1) * col + 1 : 0, &values);
              mhk_real *to = room((rows + width - 1) / width * width * k);
              set_at("pack %s, panels of %lld, %lld x %lld, strides %lld and %lld", type_name(types[type]),
                     (long long)width, (long long)rows, (long long)k, (long long)row, (long long)col);
              KERNEL(pack)(to, width, rows, k, mhk__mat(data, types[type], row, col));
              check_packed(to, width, rows, k, values, row, col);
              release();
            }
  }
}

/* every number of 16 bits there is */
TEST(stored_types) {
  EACH_MACHINE {
    int type, col;
    for (type = 0; type < 2; type++)
      for (col = 1; col <= 256; col += 255) {
        const mhk_dtype dtype = type ? MHK_BF16 : MHK_F16;
        double *values = doubles(65536);
        uint16_t *data = (uint16_t *)raw_room(65536, 2, 0);
        mhk_real *to = room((256 + ks->nr) * 256);
        mhk_index i;
        for (i = 0; i < 65536; i++) {
          data[i] = (uint16_t)i;
          values[i] = mhk__ref_element(data, dtype, i);
        }
        set_at("pack %s, all numbers", type_name(dtype));
        KERNEL(pack)(to, ks->nr, 256, 256, mhk__mat(data, dtype, 256 / col, col));
        check_packed(to, ks->nr, 256, 256, values, 256 / col, col);
        release();
      }
  }
}

TEST(product) {
  enum { MOST = 131 };
  static const mhk_index depths[] = {0, 1, 2, 7, 64};
  EACH_MACHINE {
    mhk_real *a = random_room(MOST * MOST, -1, 1), *b = random_room(MOST * MOST, -1, 1);
    const double *exact_a = as_doubles(a, MOST * MOST), *exact_b = as_doubles(b, MOST * MOST);
    const int kept = n_blocks;
    int d;
    for (d = 0; d < COUNT(depths); d++) {
      const mhk_index k = depths[d];
      static double want[MOST * MOST];
      mhk_index i, j;
      int r, c;
      memset(want, 0, sizeof want);
      mhk__ref_product(MOST, MOST, k, mhk__ref_strided(exact_a, MOST, 1), mhk__ref_strided(exact_b, 1, MOST), want);
      for (r = 0; r < COUNT(tile_sizes); r++)
        for (c = k == 7 ? 0 : r % 3; c < COUNT(tile_sizes); c += k == 7 ? 1 : 3) {
          const mhk_index m = tile_sizes[r], n = tile_sizes[c], ldc = n + (r + c) % 2 * 3;
          const int accumulate = (r + c / 3) & 1;
          mhk_real *pa = room((m + ks->mr - 1) / ks->mr * ks->mr * k),
                   *pb = room((n + ks->nr - 1) / ks->nr * ks->nr * k);
          mhk_real *to = rows_room(m, ldc, n);
          double *exact = doubles(m * n);
          set_at("product %lld x %lld x %lld, %s", (long long)m, (long long)n, (long long)k,
                 accumulate ? "added" : "written");
          KERNEL(pack)(pa, ks->mr, m, k, mhk__mat(a, MHK_REAL, MOST, 1));
          KERNEL(pack)(pb, ks->nr, n, k, mhk__mat(b, MHK_REAL, MOST, 1));
          for (i = 0; i < m; i++)
            for (j = 0; j < n; j++) {
              if (accumulate) to[i * ldc + j] = (mhk_real)(i % 7 - 3);
              exact[i * n + j] = want[i * MOST + j] + (accumulate ? (double)(i % 7 - 3) : 0);
            }
          KERNEL(product)(m, n, k, pa, pb, to, ldc, accumulate);
          result("c", dense(to, m, n, ldc), exact, m * n, 8 * EPS);
          release_from(kept);
        }
    }
    { /* nothing to do */
      mhk_real *none = room(0);
      set_at("product of nothing");
      KERNEL(product)(0, 5, 3, a, b, none, 5, 0);
      KERNEL(product)(5, 0, 3, a, b, none, 5, 1);
    }
  }
}

TEST(epilogue) {
  EACH_MACHINE {
    int i, kind;
    for (i = 0; i < COUNT(tile_sizes); i++)
      for (kind = 0; kind < 16; kind++) {
        const mhk_index n = tile_sizes[i], m = 1 + kind % 4, ldc = n + 3, offset = kind % 3 * (ldc + 1),
                        column = kind % 5;
        const mhk_index all = offset + (m - 1) * ldc + n;
        mhk_real *c = rows_room(m, ldc, n), *bias = random_room(column + n, -1, 1), *residual = random_room(all, -1, 1),
                 *before = room(all);
        double *want = doubles(m * n), *want_before = doubles(m * n);
        mhk__epilogue e;
        mhk_index r, j;
        set_at("epilogue %d of %lld x %lld", kind, (long long)m, (long long)n);
        memset(&e, 0, sizeof e);
        e.bias = kind & 1 ? bias : NULL;
        e.residual = kind & 2 ? residual : NULL;
        e.before = kind & 4 ? before : NULL;
        e.gelu = kind >> 3;
        for (r = 0; r < m; r++)
          for (j = 0; j < n; j++) {
            double x;
            c[r * ldc + j] = (mhk_real)(float)test_uniform(&seed, -2, 2);
            x = (double)c[r * ldc + j];
            if (e.bias) x += (double)bias[column + j];
            if (e.residual) x += (double)residual[offset + r * ldc + j];
            want_before[r * n + j] = x;
            want[r * n + j] = e.gelu ? mhk__ref_gelu(x) : x;
          }
        KERNEL(epilogue)(m, n, c, ldc, offset, &e, column);
        result("c", dense(c, m, n, ldc), want, m * n, 6 * EPS);
        if (e.before) result("before", dense(before + offset, m, n, ldc), want_before, m * n, 2 * EPS);
        release();
      }
  }
}

TEST(rows_times) {
  static const mhk_dtype types[] = {MHK_F32, MHK_F64, MHK_F16, MHK_BF16};
  static const mhk_index depths[] = {1,  2,  3,  7,  8,   9,   15,  16,  17,  31,  32,
                                     33, 63, 64, 65, 127, 128, 129, 131, 255, 257, 1031};
  EACH_MACHINE {
    int type, d;
    mhk_index m;
    for (type = 0; type < 4; type++)
      for (m = 1; m <= 9; m++)
        for (d = 0; d < COUNT(depths); d++) {
          const mhk_index k = depths[d], n = 1 + (d * 5 + m * 3) % 19, ldy = n + 5;
          double *w;
          void *data = stored(types[type], n * k, &w);
          mhk_real *x = random_room(m * k, -1, 1), *y = rows_room(m, ldy, n), *work = work_room((m + 1) * k);
          double *want = doubles(m * n), size = 0, most = 0; /* of the terms and of the sums: a sum may cancel */
          double *one = as_doubles(x, m * k), *terms = doubles(m * n);
          mhk_index i;
          set_at("rows_times %s %lld x %lld x %lld", type_name(types[type]), (long long)m, (long long)n, (long long)k);
          mhk__ref_product(m, n, k, mhk__ref_strided(one, k, 1), mhk__ref_strided(w, 1, k), want);
          for (i = 0; i < m * k; i++) one[i] = fabs(one[i]);
          for (i = 0; i < n * k; i++) w[i] = fabs(w[i]);
          mhk__ref_product(m, n, k, mhk__ref_strided(one, k, 1), mhk__ref_strided(w, 1, k), terms);
          for (i = 0; i < m * n; i++) {
            if (terms[i] > size) size = terms[i];
            if (fabs(want[i]) > most) most = fabs(want[i]);
          }
          KERNEL(rows_times)(m, n, k, x, data, types[type], y, ldy, work);
          result("y", dense(y, m, n, ldy), want, m * n, 4 * EPS * (most > 0 ? size / most : 1));
          release();
        }
  }
}

#ifndef MOHAWK_DOUBLE
/* ---- quantized weights: the same bits of every set with vectors, and of the kernels that one
   chooses by the processor besides those it would do with */

typedef struct q_kernels {
  const char *name;
  void (*prepare)(const mhk__q_args *a, mhk_index row);
  void (*times)(const mhk__q_args *a, mhk_index first, mhk_index last);
  int exact; /* its sums are those of all the others */
} q_kernels;

static int q_all(q_kernels *all) {
  int i, n = 0;
  for (i = 0; i < n_machines; i++, n++) {
    all[n].name = mhk_isa_name(contexts[i]);
    all[n].prepare = KERNEL_OF(i, q_prepare);
    all[n].times = KERNEL_OF(i, q_times);
    all[n].exact = contexts[i]->isa != MHK_ISA_SCALAR;
#if defined(__AARCH64EL__) && !defined(MOHAWK_NO_SIMD)
    if (contexts[i]->isa == MHK_ISA_NEON) {
      all[n + 1] = all[n];
      n++;
      all[n].name = "neon without dot products of bytes";
      all[n].prepare = mhk__q_prepare_neon;
      all[n].times = mhk__q_times_neon;
#if defined(__linux__) && !defined(__clang__)
      CHECK((all[n - 1].times != all[n].times) == ((getauxval(16) & (1ul << 20)) != 0),
            "dot products of bytes: the processor and the kernels disagree");
#endif
      if (test_state.verbose)
        printf("neon: dot products of bytes are %sused\n", all[n - 1].times != all[n].times ? "" : "not ");
    }
#endif
  }
  return n;
}

/* one product of quantized weights: rows n0 .. n0 + N of dtype in groups, with M rows of x.
   way 0: numbers of all sizes, 1: the largest ones, whose sums are the largest integers, 2:
   integers of x whose bytes turn over */
typedef struct q_case {
  mhk_dtype dtype;
  int group, way;
  mhk_index n0, N, K, M;
} q_case;

/* Random weights in q, and x made as the way says. */
static void q_inputs(const q_case *c, mhk_quantized *q, mhk_real *x) {
  const mhk_index blocks = mhk__q_blocks(c->n0 + c->N), bytes = blocks * mhk__q_block_bytes(c->dtype, c->K),
                  scales = blocks * (c->K / c->group) * 16;
  unsigned char *w = (unsigned char *)raw_room(bytes, 1, 0);
  uint16_t *scale = (uint16_t *)raw_room(scales, 2, 0);
  mhk_index i;
  for (i = 0; i < bytes; i++)
    w[i] = (unsigned char)(c->way == 1 ? c->dtype == MHK_Q8 ? 0x80 : 0xFF : test_random(&seed));
  for (i = 0; i < scales; i++)
    scale[i] = (uint16_t)((test_random(&seed) & 0x83FF) | (uint64_t)(8 + test_random(&seed) % 6) << 10);
  for (i = 0; i < c->M * c->K; i++) {
    if (c->way == 0) x[i] *= (mhk_real)ldexp(1, (int)(test_random(&seed) % 12) - 6);
    if (c->way == 1) x[i] = i / c->K % 2 ? -2 : 2;
    if (c->way == 2)
      x[i] = i % c->group == 0
                 ? 32512
                 : (mhk_real)((int)(test_random(&seed) % 255 - 127) * 256 + (int)(test_random(&seed) % 3) + 126);
  }
  memset(q, 0, sizeof *q);
  q->q = w;
  q->scale = scale;
  q->rows = blocks * 16;
  q->group = c->group;
}

/* the product in double; returns how much of its largest number rounding may change */
static double q_want(const q_case *c, const mhk_quantized *q, const mhk_real *x, double *want) {
  double most = 0, off = 0;
  mhk_index i, j, k, p;
  for (i = 0; i < c->M; i++)
    for (j = 0; j < c->N; j++) {
      double room_for = 0, size = 0, largest = 0, sum = 0;
      for (k = 0; k < c->K; k++) {
        const double e = mhk__ref_dequantized(q, c->dtype, c->K, c->n0 + j, k), at_k = (double)x[i * c->K + k];
        if (k % c->group == 0)
          for (largest = 0, p = k; p < k + c->group; p++) largest = fmax(largest, fabs((double)x[i * c->K + p]));
        sum += e * at_k;
        size += fabs(e * at_k);
        room_for += fabs(e) * largest * 0.51 / 32512;
      }
      want[i * c->N + j] = sum;
      most = fmax(most, fabs(sum));
      off = fmax(off, room_for + 4 * EPS * size);
    }
  return off / most;
}

/* Each kernel: within rounding, a row alone, and the same bits of all that are exact. */
static void check_q_case(const q_kernels *all, int n_all, const q_case *c) {
  const mhk_index blocks = mhk__q_blocks(c->n0 + c->N), first = c->n0 / 16, groups = c->K / c->group, M = c->M,
                  N = c->N, K = c->K, ldy = N + 3;
  mhk_real *x = random_room(M * K, -3, 3), *same = NULL;
  double *want = doubles(M * N), off;
  mhk_quantized q;
  mhk__q_args a;
  mhk_index i;
  int v;
  q_inputs(c, &q, x);
  off = q_want(c, &q, x, want);
  memset(&a, 0, sizeof a);
  a.M = M;
  a.N = N;
  a.K = K;
  a.q = &q;
  a.dtype = c->dtype;
  a.n0 = c->n0;
  a.x = x;
  a.ldy = ldy;
  for (v = 0; v < n_all; v++) {
    mhk_real *y = rows_room(M, ldy, N), *rows;
    a.y = y;
    a.digits = (int16_t *)raw_room(M * K, sizeof *a.digits, 0);
    a.scale = (float *)raw_room(M * groups, sizeof *a.scale, 0);
    a.offset = (int32_t *)raw_room(M * groups, sizeof *a.offset, 1);
    machine = 8;
    set_at("%s, %s in groups of %d, %lld x %lld x %lld from %lld, way %d", all[v].name,
           c->dtype == MHK_Q8 ? "int8" : "int4", c->group, (long long)M, (long long)N, (long long)K, (long long)c->n0,
           c->way);
    for (i = 0; i < M; i++) all[v].prepare(&a, i);
    all[v].times(&a, first, blocks);
    rows = dense(y, M, N, ldy);
    CHECK_CLOSE_TO_DOUBLE(at, rows, want, M * N, off);
    if (M > 1) { /* a row alone has the same bits, whatever tile it was in */
      mhk_real *alone = rows_room(1, ldy, N);
      mhk__q_args b = a;
      b.M = 1;
      b.y = alone;
      b.digits = a.digits + (M - 1) * K;
      b.scale = a.scale + (M - 1) * groups;
      b.offset = a.offset + (M - 1) * groups;
      all[v].times(&b, first, blocks);
      CHECK_SAME("the last row alone", dense(alone, 1, N, ldy), rows + (M - 1) * N, N);
    }
    if (all[v].exact && same) CHECK_SAME(at, rows, same, M * N);
    if (all[v].exact && !same) same = rows;
  }
  release();
}

TEST(quantized) {
  static const mhk_index depths[] = {32, 64, 96, 128, 320}, widths[] = {1, 15, 16, 17, 40},
                         firsts[] = {0, 0, 5, 16, 30};
  enum { ROWS = 9, KINDS = 2 * 2 * 3 }; /* of x; groups of 32 or 64, int8 or int4, ways */
  q_kernels all[16];
  const int n_all = q_all(all);
  int i, type;
  for (i = 0; i < COUNT(depths) * COUNT(widths) * ROWS * KINDS; i++) {
    const int kind = i % KINDS, n = i / KINDS / ROWS % COUNT(widths), d = i / KINDS / ROWS / COUNT(widths);
    q_case c;
    c.group = kind % 2 ? 64 : 32;
    c.dtype = kind / 2 % 2 ? MHK_Q4 : MHK_Q8;
    c.way = kind / 4;
    c.n0 = firsts[(d + n) % COUNT(firsts)];
    c.N = widths[n];
    c.K = depths[d];
    c.M = 1 + i / KINDS % ROWS;
    if (c.K % c.group == 0) check_q_case(all, n_all, &c);
  }
  for (type = MHK_Q8; type <= MHK_Q4; type++) { /* more rows than pass over the blocks together */
    const q_case c[] = {{(mhk_dtype)type, 32, 0, 5, 50, 8192, 13}, {(mhk_dtype)type, 64, 2, 0, 33, 1024, 131}};
    check_q_case(all, n_all, &c[0]);
    check_q_case(all, n_all, &c[1]);
  }
}
#endif

/* operands as they lie: the same where they divide into tiles, and nothing touched where they do
   not */
TEST(product_plain) {
  static const mhk_index rows[] = {1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 14, 16, 18, 20, 30, 64},
                         depths[] = {1, 2, 31, 64};
  EACH_MACHINE {
    int r, d, way, done_at_all = 0;
    mhk_index n;
    for (r = 0; r < COUNT(rows); r++)
      for (d = 0; d < COUNT(depths); d++)
        for (n = 8; n <= 64; n += n == 8 ? 9 : n == 17 ? 15 : 32)
          for (way = 0; way < 4; way++) {
            const mhk_index m = rows[r], k = depths[d], ar = way & 1 ? 1 : k + 2, ac = way & 1 ? m + 3 : 1, ldb = n + 1,
                            ldc = n + 5;
            mhk_real *a = random_room(m * (k + 2) + k * (m + 3), -1, 1), *b = random_room(k * ldb, -1, 1),
                     *c = rows_room(m, ldc, n);
            double *want = doubles(m * n);
            mhk_index i, j;
            int done;
            set_at("product_plain %lld x %lld x %lld, way %d", (long long)m, (long long)n, (long long)k, way);
            for (i = 0; i < m; i++)
              for (j = 0; j < n; j++) {
                if (way & 2) c[i * ldc + j] = (mhk_real)0.25;
                want[i * n + j] = way & 2 ? 0.25 : 0;
              }
            mhk__ref_product(m, n, k, mhk__ref_strided(as_doubles(a, m * (k + 2) + k * (m + 3)), ar, ac),
                             mhk__ref_strided(as_doubles(b, k * ldb), ldb, 1), want);
            done = KERNEL(product_plain)(m, n, k, mhk__strided(a, ar, ac), mhk__in_rows(b, ldb), c, ldc, way & 2);
            done_at_all += done;
            if (done) CHECK_CLOSE_TO_DOUBLE(at, dense(c, m, n, ldc), want, m * n, 20 * EPS);
            else if (way & 2)
              for (i = 0; i < m * n; i++)
                CHECK(c[i / n * ldc + i % n] == (mhk_real)0.25, "element %lld was touched", (long long)i);
            release();
          }
    CHECK(done_at_all > 0, "no sizes divide into tiles");
  }
}

/* the driver, with all ways the operands may lie and everything that may follow */
static const mhk_index gemm_sizes[][3] = {
    {0, 3, 3}, {3, 0, 3}, {3, 5, 0}, {1, 1, 1}, {1, 7, 5}, {1, 65, 131}, {2, 33, 64}, {3, 17, 97},
    {4, 129, 65}, {5, 5, 5}, {7, 31, 383}, {13, 33, 2}, {14, 32, 384}, {15, 31, 385}, {16, 16, 769},
    {64, 64, 64}, {65, 63, 67}, {167, 13, 11}, {169, 65, 29}, {337, 31, 7}, {97, 257, 41}, {1, 1031, 16},
    {4, 37, 1031},
    /* several blocks of k, parts of rows, rounds of both */
    {150, 70, 1031}, {520, 33, 67}, {2100, 3, 530}};

/* way 0 .. 7: which operands are transposed, and whether rows have gaps between them */
static void check_gemm(mhk_context *ctx, int s, int way) {
  static const mhk_dtype types[] = {MHK_F32, MHK_BF16, MHK_F16, MHK_F64};
  const mhk_index M = gemm_sizes[s][0], N = gemm_sizes[s][1], K = gemm_sizes[s][2], gap = way >= 4 ? 3 : 0,
                  ldc = N + gap;
  const mhk_index ar = way & 1 ? 1 : K + gap, ac = way & 1 ? M + gap : 1, br = way & 2 ? 1 : N + gap,
                  bc = way & 2 ? K + gap : 1;
  const mhk_dtype type = way == 2 ? types[s % 4] : types[(s + way) % 4];
  const mhk_index na = M * K > 0 ? (M - 1) * ar + (K - 1) * ac + 1 : 0,
                  nb = N * K > 0 ? (N - 1) * bc + (K - 1) * br + 1 : 0;
  double *values;
  void *b = stored(type, nb, &values);
  mhk_real *a = random_room(na, -1, 1), *bias = random_room(N, -1, 1), *residual = random_room(M * ldc, -1, 1),
           *first = NULL;
  double *want = doubles(M * N), *want_before = doubles(M * N);
  mhk__epilogue e;
  mhk_index i, j;
  const int kind = (s + 5 * way) % 11;
  int threads;
  memset(&e, 0, sizeof e);
  e.accumulate = kind & 1;
  e.bias = kind & 2 ? bias : NULL;
  e.residual = kind & 4 ? residual : NULL;
  e.gelu = kind >> 3;
  set_at("gemm %lld x %lld x %lld, %s, way %d, epilogue %d", (long long)M, (long long)N, (long long)K,
         type_name(type), way, kind);
  for (i = 0; i < nb; i++) values[i] = (double)(mhk_real)values[i];
  for (i = 0; i < M * N; i++) want[i] = e.accumulate ? (double)(i % N % 5 - 2) : 0;
  mhk__ref_product(M, N, K, mhk__ref_strided(as_doubles(a, na), ar, ac), mhk__ref_strided(values, br, bc), want);
  for (i = 0; i < M; i++)
    for (j = 0; j < N; j++) {
      double sum = want[i * N + j];
      if (e.bias) sum += (double)bias[j];
      if (e.residual) sum += (double)residual[i * ldc + j];
      want_before[i * N + j] = sum;
      want[i * N + j] = e.gelu ? mhk__ref_gelu(sum) : sum;
    }
  for (threads = 1; threads <= 3; threads += 2) {
    mhk_real *c = rows_room(M, ldc, N), *before = e.gelu ? rows_room(M, ldc, N) : NULL, *got;
    if (e.accumulate)
      for (i = 0; i < M; i++)
        for (j = 0; j < N; j++) c[i * ldc + j] = (mhk_real)(j % 5 - 2);
    e.before = before;
    mhk_set_threads(ctx, threads);
    mhk__gemm(ctx, M, N, K, mhk__mat(a, MHK_REAL, ar, ac), mhk__mat(b, type, br, bc), c, ldc,
              kind == 0 ? NULL : &e);
    CHECK_OK(ctx);
    got = dense(c, M, N, ldc);
    if (threads == 1) {
      result("c", got, want, M * N, 10 * EPS);
      if (before) result("before", dense(before, M, N, ldc), want_before, M * N, 10 * EPS);
      first = got;
    } else if (M * N > 0)
      CHECK_SAME("gemm on other numbers of threads", got, first, M * N);
  }
  mhk_set_threads(ctx, 1);
  release();
}

TEST(gemm) {
  EACH_MACHINE {
    int s, way;
    for (s = 0; s < COUNT(gemm_sizes); s++)
      for (way = 0; way < 8; way++) check_gemm(contexts[machine], s, way);
  }
}

/* ---- products of bfloat16 numbers ---- */

/* contexts of all units that go with the instruction set of the machine under test; NULL: not to be
   had here */
static mhk_context *units[MHK_BF16_AMX + 1];
static void units_close(void) {
  int i;
  for (i = 0; i < COUNT(units); i++) {
    mhk_destroy(units[i]);
    units[i] = NULL;
  }
}
static void units_open(void) {
  int i;
  for (i = MHK_BF16_PLAIN; i < COUNT(units); i++) {
    static const char *const names[] = {"", "plain", "avx512", "amx"};
    units[i] = test_machine(contexts[machine]->isa, (mhk_bf16_unit)i, 0);
    if (units[i])
      CHECK(strcmp(mhk_bf16_name(units[i]), names[i]) == 0, "unit %d is called %s", i, mhk_bf16_name(units[i]));
  }
  CHECK(units[MHK_BF16_PLAIN] != NULL, "the plain unit is to be had everywhere");
}
#define EACH_UNIT for (unit = MHK_BF16_PLAIN; unit < COUNT(units); unit++)

/* Every pattern of the upper half with the lower halves around a tie, through both sides of a
   product with the identity. */
TEST(narrow_rounding) {
  enum { K = 96, M = 4096 };
  static const uint32_t lower[] = {0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF};
  EACH_MACHINE {
    int unit;
    units_open();
    EACH_UNIT {
      mhk_context *ctx = units[unit];
      mhk_real *x, *identity, *c;
      mhk_index i;
      int way;
      if (!ctx) continue;
      x = room(M * K);
      identity = room(K * K);
      c = room(M * K);
      for (i = 0; i < M * K; i++) {
        const uint32_t high = (uint32_t)(i / 6), bits = high << 16 | lower[i % 6];
        float f;
        memcpy(&f, &bits, sizeof f);
        /* infinite then */
        x[i] = (high & 0x7F80) == 0x7F80 || ((high & 0x7FFF) == 0x7F7F && lower[i % 6] >= 0x8000) ? 1 : (mhk_real)f;
      }
      for (i = 0; i < K * K; i++) identity[i] = i / K == i % K ? 1 : 0;
      for (way = 0; way < 4; way++) {
        /* x as it lies, or its K x M numbers as columns */
        const mhk_index row = way & 1 ? 1 : K, col = way & 1 ? M : 1;
        set_at("rounding by %s, way %d", mhk_bf16_name(ctx), way);
        if (way < 2)
          mhk__gemm_narrow(ctx, M, K, K, mhk__mat(x, MHK_REAL, row, col), mhk__mat(identity, MHK_REAL, K, 1), c, K,
                           NULL);
        else
          mhk__gemm_narrow(ctx, K, M, K, mhk__mat(identity, MHK_REAL, K, 1), mhk__mat(x, MHK_REAL, col, row), c, M,
                           NULL);
        CHECK_OK(ctx);
        for (i = 0; i < M * K; i++) {
          const mhk_index at_x = way < 2 ? i / K * row + i % K * col : i / M * col + i % M * row;
          const double want = mhk__ref_bf16_round((double)x[at_x]);
          if ((double)c[i] != want) {
            CHECK(0, "%s: %.9g becomes %.9g, should be %.9g", at, (double)x[at_x], (double)c[i], want);
            break;
          }
        }
      }
      release();
    }
    units_close();
  }
}

/* the kernels alone, packed operands exactly as large as they must be */
TEST(narrow_product) {
  enum { MOST = 131 };
  static const mhk_index depths[] = {1, 2, 7, 31, 64, 97};
  EACH_MACHINE {
    double *values;
    mhk_real *a = random_room(MOST * MOST, -1, 1);
    void *half = stored(MHK_BF16, MOST * MOST, &values);
    double *exact_a = as_doubles(a, MOST * MOST);
    const int kept = n_blocks;
    int d;
    for (d = 0; d < MOST * MOST; d++) exact_a[d] = mhk__ref_bf16_round(exact_a[d]);
    units_open();
    for (d = 0; d < COUNT(depths); d++) {
      const mhk_index k = depths[d];
      static double want[MOST * MOST];
      static mhk_real plain[MOST * MOST];
      mhk_index i, j;
      int r, c, unit;
      memset(want, 0, sizeof want);
      mhk__ref_product(MOST, MOST, k, mhk__ref_strided(exact_a, MOST, 1), mhk__ref_strided(values, 1, MOST), want);
      for (r = 0; r < COUNT(tile_sizes); r++)
        for (c = k == 7 ? 0 : r % 3; c < COUNT(tile_sizes); c += k == 7 ? 1 : 3)
          EACH_UNIT {
            mhk_context *ctx = units[unit];
            const mhk_index m = tile_sizes[r], n = tile_sizes[c], ldc = n + (r + c) % 2 * 3;
            const int accumulate = (r + c / 3) & 1;
            const mhk__narrow *u;
            mhk_real *to;
            void *pa, *pb;
            double *exact;
            if (!ctx) continue;
            u = &ctx->kernels->narrow;
            pa = raw_room(mhk__narrow_bytes(u, mhk__up(m, u->mr), k) / u->size, (size_t)u->size, 1);
            pb = raw_room(mhk__narrow_bytes(u, mhk__up(n, u->nr), k) / u->size, (size_t)u->size, 1);
            to = rows_room(m, ldc, n);
            exact = doubles(m * n);
            set_at("narrow product by %s, %lld x %lld x %lld, %s", mhk_bf16_name(ctx), (long long)m, (long long)n,
                   (long long)k, accumulate ? "added" : "written");
            u->pack_a(pa, m, k, mhk__mat(a, MHK_REAL, MOST, 1));
            u->pack_b(pb, n, k, mhk__mat(half, MHK_BF16, MOST, 1));
            for (i = 0; i < m; i++)
              for (j = 0; j < n; j++) {
                if (accumulate) to[i * ldc + j] = (mhk_real)(i % 7 - 3);
                exact[i * n + j] = want[i * MOST + j] + (accumulate ? (double)(i % 7 - 3) : 0);
              }
            u->product(m, n, k, pa, pb, to, ldc, accumulate);
            to = dense(to, m, n, ldc);
            CHECK_CLOSE_TO_DOUBLE(at, to, exact, m * n, 10 * EPS);
            for (i = 0; i < m * n; i++) /* the instruction makes no subnormal numbers */
              if (fabs((double)to[i]) < 1e-30) to[i] = 0;
            if (unit == MHK_BF16_PLAIN) memcpy(plain, to, (size_t)(m * n) * sizeof *to);
            if (unit == MHK_BF16_AVX512)
              CHECK_SAME("VDPBF16PS beside float32 multiply-adds on rounded numbers", to, plain, m * n);
            release_from(kept);
          }
    }
    units_close();
  }
}

/* the driver, with all ways the operands may lie, beyond one block in every direction */
TEST(narrow_gemm) {
  static const mhk_index sizes[][3] = {{0, 3, 3},     {5, 0, 3},       {6, 5, 0},       {4, 65, 131},  {5, 5, 5},
                                       {7, 31, 383},  {13, 33, 2},     {14, 32, 384},   {15, 31, 511}, {16, 16, 512},
                                       {64, 64, 513}, {65, 63, 67},    {167, 13, 1031}, {193, 65, 29}, {337, 31, 7},
                                       {97, 257, 41}, {33, 2100, 1025}};
  static const mhk_dtype types[] = {MHK_F32, MHK_BF16, MHK_F16, MHK_F64};
  EACH_MACHINE {
    int s, way, threads, unit;
    units_open();
    EACH_UNIT {
      mhk_context *ctx = units[unit];
      if (!ctx) continue;
      for (s = 0; s < COUNT(sizes); s++)
        for (way = 0; way < 8; way++) {
          const mhk_index M = sizes[s][0], N = sizes[s][1], K = sizes[s][2], gap = way >= 4 ? 3 : 0, ldc = N + gap;
          const mhk_index ar = way & 1 ? 1 : K + gap, ac = way & 1 ? M + gap : 1;
          const mhk_index br = way & 2 ? 1 : N + gap, bc = way & 2 ? K + gap : 1;
          const mhk_dtype type = types[(s + way) % 4];
          const mhk_index na = M * K > 0 ? (M - 1) * ar + (K - 1) * ac + 1 : 0,
                          nb = N * K > 0 ? (N - 1) * bc + (K - 1) * br + 1 : 0;
          const int kind = (s + 5 * way) % 11;
          double *values;
          void *b = stored(type, nb, &values);
          mhk_real *a = random_room(na, -1, 1), *bias = random_room(N, -1, 1), *residual = random_room(M * ldc, -1, 1),
                   *first = NULL;
          double *want = doubles(M * N), *ra = doubles(na), *rb = doubles(nb);
          mhk__epilogue e;
          mhk_index i, j;
          if (M * N * K > 20000000 && way % 4 != 2) {
            release();
            continue;
          }
          for (i = 0; i < na; i++) ra[i] = M > 4 ? mhk__ref_bf16_round((double)a[i]) : (double)a[i];
          for (i = 0; i < nb; i++) rb[i] = M > 4 ? mhk__ref_bf16_round(values[i]) : (double)(mhk_real)values[i];
          memset(&e, 0, sizeof e);
          e.accumulate = kind & 1;
          e.bias = kind & 2 ? bias : NULL;
          e.residual = kind & 4 ? residual : NULL;
          e.gelu = kind >> 3;
          set_at("narrow gemm by %s, %lld x %lld x %lld, %s, way %d, epilogue %d", mhk_bf16_name(ctx), (long long)M,
                 (long long)N, (long long)K, type_name(type), way, kind);
          for (i = 0; i < M * N; i++) want[i] = e.accumulate ? (double)(i % N % 5 - 2) : 0;
          mhk__ref_product(M, N, K, mhk__ref_strided(ra, ar, ac), mhk__ref_strided(rb, br, bc), want);
          for (i = 0; i < M; i++)
            for (j = 0; j < N; j++) {
              double sum = want[i * N + j];
              if (e.bias) sum += (double)bias[j];
              if (e.residual) sum += (double)residual[i * ldc + j];
              want[i * N + j] = e.gelu ? mhk__ref_gelu(sum) : sum;
            }
          for (threads = 1; threads <= 3; threads += 2) {
            mhk_real *c = rows_room(M, ldc, N), *got;
            if (e.accumulate)
              for (i = 0; i < M; i++)
                for (j = 0; j < N; j++) c[i * ldc + j] = (mhk_real)(j % 5 - 2);
            mhk_set_threads(ctx, threads);
            mhk__gemm_narrow(ctx, M, N, K, mhk__mat(a, MHK_REAL, ar, ac), mhk__mat(b, type, br, bc), c, ldc,
                             kind == 0 ? NULL : &e);
            CHECK_OK(ctx);
            got = dense(c, M, N, ldc);
            if (threads == 1) {
              CHECK_CLOSE_TO_DOUBLE(at, got, want, M * N, 10 * EPS);
              first = got;
            } else if (M * N > 0)
              CHECK_SAME("narrow gemm on other numbers of threads", got, first, M * N);
          }
          release();
        }
    }
    units_close();
  }
}

/* ---- attention ---- */

enum { LONGEST = 131 }; /* tokens of a case */

typedef struct attention_case {
  mhk_index B, T, S, H, G, N, P, offset; /* N 0: as P */
  int documents;
  double scale; /* of queries */
  int window;   /* 0: no windows; otherwise that of some heads, others have others, see all or are absent */
  int own;      /* with a scale (1), a rest (2) or both (3) */
  int step_heads;
} attention_case;

/* rows of n numbers, row r at x + r * stride, as doubles one after another */
static double *gathered(const mhk_real *x, mhk_index rows, mhk_index n, mhk_index stride) {
  double *y = doubles(rows * n);
  mhk_index r, i;
  for (r = 0; r < rows; r++)
    for (i = 0; i < n; i++) y[r * n + i] = (double)x[r * stride + i];
  return y;
}

/* the other way: adds them to such rows */
static void scattered(const double *x, mhk_index rows, mhk_index n, mhk_index stride, double *y) {
  mhk_index r, i;
  for (r = 0; r < rows; r++)
    for (i = 0; i < n; i++) y[r * stride + i] += x[r * n + i];
}

/* one head of one sequence for the reference, in blocks() of its own; first has room for T
   numbers */
static mhk__ref_attention attention_head(const mhk__attention_args *a, mhk_index b, mhk_index h, int *first) {
  const mhk_index at_q = (b * a->T * a->H + h) * a->N, g = h / (a->H / a->G), S = a->offset + a->T;
  const int plain = a->windows && a->windows[h] == MHK_WINDOW_ALL;
  mhk__ref_attention r;
  mhk_index t;
  r.T = (int)a->T;
  r.S = (int)S;
  r.N = (int)a->N;
  r.P = (int)a->P;
  r.q = gathered(a->q + at_q, a->T, a->N, a->H * a->N);
  r.k = gathered(a->k + b * a->k_batch + g * a->N, S, a->N, a->G * a->N);
  r.v = a->v ? gathered(a->v + b * a->v_batch + g * a->P, S, a->P, a->G * a->P) : NULL;
  r.first = first;
  r.window = a->windows ? (int)a->windows[h] : MHK_WINDOW_ALL;
  r.scale = a->scale && !plain ? (double)a->scale[h] : 1 / sqrt((double)a->N);
  r.rest = a->rest && !plain ? gathered(a->rest + b * a->T * a->H + h, a->T, 1, a->H) : NULL;
  for (t = 0; t < a->T; t++) first[t] = a->start ? (int)a->start[b * a->T + t] : 0;
  return r;
}

/* y, lse and the softmax's numbers (B,H,T,offset+T), 0 where masked; y and lse may be NULL */
static void attention_reference(const mhk__attention_args *a, double *y, double *lse, double *probability) {
  const mhk_index S = a->offset + a->T;
  mhk_index b, h;
  for (b = 0; b < a->B; b++)
    for (h = 0; h < a->H; h++) {
      const int kept = n_blocks;
      int first[LONGEST];
      const mhk__ref_attention r = attention_head(a, b, h, first);
      double *M = probability + (b * a->H + h) * a->T * S, *out = doubles(a->T * a->P);
      mhk__ref_attention_matrix(&r, M, lse ? lse + (b * a->H + h) * a->T : NULL);
      if (y) {
        mhk__ref_mix(r.T, r.S, r.P, M, r.v, out);
        scattered(out, a->T, a->P, a->H * a->P, y + (b * a->T * a->H + h) * a->P);
      }
      release_from(kept);
    }
}

/* keys or values of n numbers; those nobody sees yet, and what lies between the batches, are not
   numbers */
static const mhk_real *attention_cache(const attention_case *c, mhk_index n, mhk_index batch) {
  const mhk_index all = (c->B - 1) * batch + c->S * c->G * n;
  mhk_real *x = random_room(all, -1, 1);
  mhk_index b, i;
  for (b = 0; b < c->B; b++)
    for (i = (c->offset + c->T) * c->G * n; i < batch && b * batch + i < all; i++) x[b * batch + i] = hole();
  return x;
}

/* inputs of a case, with holes where nothing may be read */
static void attention_make(mhk__attention_args *a, const attention_case *c) {
  mhk_index b, i;
  memset(a, 0, sizeof *a);
  a->B = c->B;
  a->T = c->T;
  a->S = c->S;
  a->H = c->H;
  a->G = c->G;
  a->N = c->N ? c->N : c->P;
  a->P = c->P;
  a->offset = c->offset;
  a->step_heads = c->step_heads;
  a->k_batch = c->S * c->G * a->N + (c->B > 1 ? 5 : 0);
  a->v_batch = c->S * c->G * c->P + (c->B > 1 ? 5 : 0);
  a->q = random_room(c->B * c->T * c->H * a->N, -c->scale, c->scale);
  a->k = attention_cache(c, a->N, a->k_batch);
  a->v = attention_cache(c, c->P, a->v_batch);
  if (c->window) {
    int32_t *windows = (int32_t *)raw_room(c->H, sizeof *windows, 1);
    for (i = 0; i < c->H; i++)
      windows[i] = (i + c->window) % 4 == 0   ? MHK_WINDOW_ALL
                   : (i + c->window) % 4 == 2 ? 0
                   : i > 1                    ? (int32_t)(c->T / 2 + 1)
                                              : (int32_t)c->window;
    if (c->H == 1) windows[0] = (int32_t)c->window;
    a->windows = windows;
  }
  if (c->own & 1) { /* one of them is 0, one is negative */
    mhk_real *scale = random_room(c->H, -0.5, 0.9);
    if (c->H > 1) scale[c->window % c->H] = 0;
    a->scale = scale;
  }
  if (c->own & 2) a->rest = random_room(c->B * c->T * c->H, -3, 3);
  {
    mhk_index *start = documents(c->documents, c->B, c->T);
    if (start)
      for (i = 0; i < c->B * c->T; i++) /* positions among the keys */
        start[i] = start[i] < 0 ? -1 : start[i] + c->offset;
    if (start && c->documents == 2)
      for (b = 0; b < c->B; b++) /* the first document may have begun among the cached keys */
        for (i = 0; i < c->T && start[b * c->T + i] < 0; i++) start[b * c->T + i] = c->offset * 2 / 3;
    a->start = start;
  }
  set_at("B %lld, T %lld, S %lld, H %lld, G %lld, N %lld, P %lld, offset %lld, documents %d, scale %g, window %d, "
         "own %d, step_heads %d", (long long)c->B, (long long)c->T, (long long)c->S, (long long)c->H, (long long)c->G,
         (long long)a->N, (long long)c->P, (long long)c->offset, c->documents, c->scale, c->window, c->own,
         c->step_heads);
}

static const mhk_index attention_lengths[] = {1,  2,  5,  6,  7,  13, 14, 15, 16,  17,  55,  56,
                                              57, 59, 60, 61, 63, 64, 65, 97, 127, 128, 129, 131};
static const mhk_index head_sizes[] = {1, 2, 3, 4, 5, 7, 8, 9, 13, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 80};

static void attention_forward_case(const attention_case *c) {
  mhk__attention_args a;
  const mhk_index ny = c->B * c->T * c->H * c->P, nl = c->B * c->H * c->T;
  double *y, *lse, *probability;
  mhk_index b, h;
  int kind;
  attention_make(&a, c);
  y = doubles(ny);
  lse = doubles(nl);
  probability = doubles(nl * c->S);
  attention_reference(&a, y, lse, probability);
  for (kind = 0; kind < 3; kind++) { /* all, only the result, only the sums */
    const mhk_real *v = a.v;
    a.y = kind != 2 ? room(ny) : NULL;
    a.lse = kind != 1 ? room(nl) : NULL;
    if (kind == 2) a.v = NULL;
    for (b = c->B - 1; b >= 0; b--) /* from the last to the first, so that what is written too far shows */
      for (h = c->H - 1; h >= 0; h--) {
        const int kept = n_blocks;
        KERNEL(attention)(&a, b, h, work_room(mhk__attention_work(c->S, a.N, c->P)));
        release_from(kept);
      }
    if (a.y) result("attention y", a.y, y, ny, 10 * EPS * (1 + c->scale));
    if (a.lse) result("attention lse", a.lse, lse, nl, (c->window ? 10 : 6) * EPS);
    a.v = v;
  }
  release();
}

TEST(attention) {
  EACH_MACHINE {
    int i;
    for (i = 0; i < 2 * COUNT(attention_lengths); i++) {
      attention_case c = {0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0};
      c.B = 1 + i % 2;
      c.T = c.S = attention_lengths[i % COUNT(attention_lengths)];
      c.H = i % 3 == 0 ? 4 : 2;
      c.G = i % 3 == 0 ? 2 : i % 3;
      c.P = head_sizes[(i * 5 + 3) % COUNT(head_sizes)];
      c.offset = 0;
      c.documents = (i + i / 5) % 5;
      c.scale = i % 7 == 0 ? 40 : 1;
      attention_forward_case(&c);
      if (c.T > 65) continue;
      c.offset = 1 + i * 7 % 70; /* a cache with room left */
      c.S = c.offset + c.T + i % 4 * 9;
      attention_forward_case(&c);
    }
    for (i = 0; i < COUNT(head_sizes); i++) {
      attention_case c = {0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0};
      c.B = 1;
      c.T = 17;
      c.S = 80;
      c.H = c.G = 1;
      c.P = head_sizes[i];
      c.offset = 50 + i % 13;
      c.documents = i % 4;
      c.scale = 2;
      attention_forward_case(&c);
    }
  }
}

static const int windows_of_cases[] = {1, 2, 7, 16, 17, 31, 33, 64, 97, 500};

/* the number-th case with windows: every length, every window, and what else there is in turn */
static attention_case windowed_case(int number) {
  attention_case c = {0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0};
  c.B = 1 + number % 2;
  c.T = c.S = attention_lengths[number % COUNT(attention_lengths)];
  c.window = windows_of_cases[number / 2 % COUNT(windows_of_cases)];
  c.H = number % 3 == 0 ? 1 : 4;
  c.G = number % 3 == 1 ? 2 : c.H;
  c.N = head_sizes[(number * 5 + 3) % COUNT(head_sizes)];
  c.P = head_sizes[(number * 3 + 1) % COUNT(head_sizes)];
  c.documents = (number + number / 5) % 5;
  c.own = number / 3 % 4;
  return c;
}

TEST(attention_windows) {
  EACH_MACHINE {
    int i;
    for (i = 0; i < 120; i++) {
      attention_case c = windowed_case(i);
      attention_forward_case(&c);
      if (i % 10 == 9) { /* without windows */
        c.window = 0;
        c.own = 3;
        attention_forward_case(&c);
      }
      if (c.T > 65) continue;
      c.offset = 1 + i * 7 % 70; /* a cache with room left */
      c.S = c.offset + c.T + i % 4 * 9;
      attention_forward_case(&c);
    }
  }
}

static void attention_step_case(const attention_case *c) {
  mhk__attention_args a;
  mhk_index ny = c->B * c->T * c->H * c->P, b, h;
  double *y, *probability;
  attention_make(&a, c);
  y = doubles(ny);
  probability = doubles(c->B * c->H * c->T * c->S);
  attention_reference(&a, y, NULL, probability);
  a.y = room(ny);
  for (b = c->B - 1; b >= 0; b--)
    for (h = c->H - 1; h >= 0; h--) {
      const int kept = n_blocks;
      KERNEL(attention_step)(&a, b, h, work_room(mhk__max(1, c->step_heads) * mhk__step_room(c->S, c->P)));
      release_from(kept);
    }
  result("step y", a.y, y, ny, 10 * EPS * (1 + c->scale));
  release();
}

TEST(attention_step) {
  EACH_MACHINE {
    int i;
    for (i = 0; i < 4 * COUNT(head_sizes); i++) {
      attention_case c = {0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0};
      c.B = 1 + i % 2;
      c.T = 1 + i / COUNT(head_sizes);
      c.offset = i % 5 == 0 ? 0 : row_sizes[1 + i * 3 % 41];
      c.S = c.offset + c.T + i % 3 * 7;
      c.H = 6;
      c.G = i % 3 + 1;
      c.P = head_sizes[i % COUNT(head_sizes)];
      c.documents = i % 7 < 5 ? i % 7 : 0;
      c.scale = i % 6 == 0 ? 40 : 1;
      c.step_heads = i % 8; /* more than there are, too */
      attention_step_case(&c);
      c.N = head_sizes[(i * 3 + 1) % COUNT(head_sizes)];
      c.window = i % 4 == 3 ? 0 : windows_of_cases[i % COUNT(windows_of_cases)];
      c.own = i / 2 % 4;
      if (i % 5 == 1) c.H = c.G = 1;
      attention_step_case(&c);
    }
  }
}

/* without: 1 dq, 2 dk, 3 dv is not wanted */
static void attention_back_case(const attention_case *c, int without) {
  mhk__attention_args a;
  attention_make(&a, c);
  const mhk_index ny = c->B * c->T * c->H * c->P, nq = c->B * c->T * c->H * a.N, nl = c->B * c->H * c->T,
                  nk = (c->B - 1) * a.k_batch + c->T * c->G * a.N, nv = (c->B - 1) * a.v_batch + c->T * c->G * c->P;
  double *y = doubles(ny), *lse = doubles(nl), *probability = doubles(nl * c->S);
  mhk_index b, h, g, j;
  attention_reference(&a, y, lse, probability);
  mhk_real *yy = room(ny), *rlse = room(nl);
  for (j = 0; j < ny; j++) yy[j] = (mhk_real)y[j];
  for (j = 0; j < nl; j++) rlse[j] = (mhk_real)lse[j];
  a.yy = yy;
  a.lse = rlse;
  a.dy = random_room(ny, -1, 1);
  const mhk_real *q0 = random_room(nq, -1, 1), *k0 = random_room(nk, -1, 1), *v0 = random_room(nv, -1, 1),
                 *rest0 = random_room(nl, -1, 1);
  double *dq = as_doubles(q0, nq), *dk = as_doubles(k0, nk), *dv = as_doubles(v0, nv), *drest = as_doubles(rest0, nl),
         *dscale = doubles(c->B * c->H);
  for (b = 0; b < c->B; b++)
    for (h = 0; h < c->H; h++) {
      const int kept = n_blocks;
      const mhk_index at_q = (b * c->T * c->H + h) * a.N, at_y = (b * c->T * c->H + h) * c->P, of = h / (c->H / c->G),
                      at_k = b * a.k_batch + of * a.N, at_v = b * a.v_batch + of * c->P;
      int first[LONGEST];
      const mhk__ref_attention r = attention_head(&a, b, h, first);
      double *one_dq = doubles(c->T * a.N), *one_dk = doubles(c->T * a.N), *one_dv = doubles(c->T * c->P),
             *one_drest = doubles(c->T);
      const int scaled = a.scale && !(a.windows && a.windows[h] == MHK_WINDOW_ALL);
      mhk__ref_attention_back(&r, probability + (b * c->H + h) * c->T * c->T,
                              gathered(a.dy + at_y, c->T, c->P, c->H * c->P), one_dq, one_dk, one_dv,
                              r.rest ? one_drest : NULL, scaled ? dscale + b * c->H + h : NULL);
      scattered(one_dq, c->T, a.N, c->H * a.N, dq + at_q);
      scattered(one_dk, c->T, a.N, c->G * a.N, dk + at_k);
      scattered(one_dv, c->T, c->P, c->G * c->P, dv + at_v);
      scattered(one_drest, c->T, 1, c->H, drest + b * c->T * c->H + h);
      release_from(kept);
    }
  a.dq = without == 1 ? NULL : copy_room(q0, nq);
  a.dk = without == 2 ? NULL : copy_room(k0, nk);
  a.dv = without == 3 ? NULL : copy_room(v0, nv);
  a.drest = c->own & 2 ? copy_room(rest0, nl) : NULL;
  a.dscale = c->own & 1 ? room(c->B * c->H) : NULL;
  for (b = c->B - 1; b >= 0; b--)
    for (g = c->G - 1; g >= 0; g--) {
      const int kept = n_blocks;
      KERNEL(attention_back)(&a, b, g, work_room(mhk__attention_back_work(c->T, a.N, c->P)));
      release_from(kept);
    }
  const double tolerance = (c->own & 1 ? 20 : 10) * EPS;
  if (a.dq) result("dq", a.dq, dq, nq, tolerance);
  if (a.dk) result("dk", a.dk, dk, nk, tolerance);
  if (a.dv) result("dv", a.dv, dv, nv, tolerance);
  if (a.drest) result("drest", a.drest, drest, nl, tolerance);
  for (j = 0; a.dscale && j < c->B * c->H; j++) /* a sum of numbers of this size, which may cancel */
    result_number("dscale", (double)a.dscale[j], dscale[j], 1 + sqrt((double)(c->T * a.N * c->P)), 2 * EPS);
  release();
}

TEST(attention_back) {
  EACH_MACHINE {
    int i;
    for (i = 0; i < 2 * COUNT(attention_lengths); i++) {
      attention_case c = {0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0};
      c.B = 1 + i % 2;
      c.T = c.S = attention_lengths[i % COUNT(attention_lengths)];
      c.H = i % 3 == 0 ? 4 : 2;
      c.G = i % 3 == 0 ? 2 : i % 3;
      c.P = head_sizes[(i * 7 + 5) % COUNT(head_sizes)];
      c.documents = (i + i / 5) % 5;
      attention_back_case(&c, i % 4);
    }
    for (i = 0; i < 120; i++) {
      attention_case c = windowed_case(i);
      if (i % 10 == 9) c.window = 0, c.own = 3;
      attention_back_case(&c, i % 4);
    }
  }
}

/* ---- SSD ---- */

typedef struct ssd_case {
  mhk_index B, T, H, G, P, N, Q;
  int documents, initial, skip;
  double decay; /* log_a lies in (-decay,0] */
  int strong;   /* every strong-th token forgets with e^-50; 0: none */
  mhk_index span;
} ssd_case;

static void ssd_make(mhk__ssd_args *a, const ssd_case *c) {
  mhk_index i;
  memset(a, 0, sizeof *a);
  a->B = c->B;
  a->T = c->T;
  a->H = c->H;
  a->G = c->G;
  a->P = c->P;
  a->N = c->N;
  a->Q = c->Q;
  a->x = random_room(c->B * c->T * c->H * c->P, -1, 1);
  {
    mhk_real *la = random_room(c->B * c->T * c->H, -c->decay, 0);
    for (i = 0; c->strong && i < c->B * c->T * c->H; i += c->strong) la[i] = -50;
    a->log_a = la;
  }
  a->b = random_room(c->B * c->T * c->G * c->N, -1, 1);
  a->c = random_room(c->B * c->T * c->G * c->N, -1, 1);
  a->per_task = c->span;
  a->d = c->skip ? random_room(c->H, -1, 1) : NULL;
  a->initial = c->initial ? random_room(c->B * c->H * c->P * c->N, -1, 1) : NULL;
  a->start = documents(c->documents, c->B, c->T);
  set_at(
      "B %lld, T %lld, H %lld, G %lld, P %lld, N %lld, chunk %lld, documents %d, initial %d, decay %g, strong %d, span "
      "%lld",
      (long long)c->B, (long long)c->T, (long long)c->H, (long long)c->G, (long long)c->P, (long long)c->N,
      (long long)c->Q, c->documents, c->initial, c->decay, c->strong, (long long)c->span);
}

/* one head of one sequence for the reference: a document starts with a decay of nothing */
static mhk__ref_ssd ssd_head(const mhk__ssd_args *a, mhk_index b, mhk_index h) {
  const mhk_index g = h / (a->H / a->G);
  double *log_a = gathered(a->log_a + b * a->T * a->H + h, a->T, 1, a->H);
  mhk__ref_ssd r;
  mhk_index t;
  r.T = (int)a->T;
  r.P = (int)a->P;
  r.N = (int)a->N;
  r.x = a->x ? gathered(a->x + (b * a->T * a->H + h) * a->P, a->T, a->P, a->H * a->P) : NULL;
  r.B = gathered(a->b + (b * a->T * a->G + g) * a->N, a->T, a->N, a->G * a->N);
  r.C = gathered(a->c + (b * a->T * a->G + g) * a->N, a->T, a->N, a->G * a->N);
  r.D = a->d ? (double)a->d[h] : 0;
  for (t = 0; t < a->T; t++)
    if (a->start && a->start[b * a->T + t] == t) log_a[t] = -HUGE_VAL;
  r.log_a = log_a;
  return r;
}

/* y, and all states (B,H,T+1,P,N) from before the first token to after the last */
static void ssd_reference(const mhk__ssd_args *a, double *y, double *states) {
  const mhk_index one = a->P * a->N;
  mhk_index b, h, i;
  for (b = 0; b < a->B; b++)
    for (h = 0; h < a->H; h++) {
      const int kept = n_blocks;
      const mhk__ref_ssd r = ssd_head(a, b, h);
      double *state = states + (b * a->H + h) * (a->T + 1) * one, *out = doubles(a->T * a->P);
      for (i = 0; i < one; i++) state[i] = a->initial ? (double)a->initial[(b * a->H + h) * one + i] : 0;
      mhk__ref_ssd_recurrent(&r, state, out);
      scattered(out, a->T, a->P, a->H * a->P, y + (b * a->T * a->H + h) * a->P);
      release_from(kept);
    }
}

static const mhk_index chunk_sizes[] = {1, 7, 16, 32, 64, 100};
static const mhk_index state_sizes[][2] = {{1, 1},  {3, 5},   {8, 16},  {17, 4},  {7, 33}, {16, 15},
                                           {33, 8}, {13, 17}, {32, 31}, {64, 64}, {5, 65}, {9, 1}};

/* the cases of SSD, numbered; 0 after the last */
static int ssd_number(int i, ssd_case *c) {
  const int q = i % COUNT(chunk_sizes), l = i / COUNT(chunk_sizes) % 6, round = i / (COUNT(chunk_sizes) * 6);
  const int s = (i * 5 + round) % COUNT(state_sizes);
  const mhk_index Q = chunk_sizes[q];
  if (round >= 3) return 0;
  c->B = 1 + (i + round) % 2;
  c->T = l == 0 ? 1 : l == 1 ? (Q > 1 ? Q - 1 : 3) : l == 2 ? Q : l == 3 ? Q + 1 : l == 4 ? 2 * Q + 3 : 131;
  c->H = round == 1 ? 4 : round == 2 ? 3 : 2;
  c->G = round == 1 ? 2 : round == 2 ? 1 : 2;
  c->P = state_sizes[s][0];
  c->N = state_sizes[s][1];
  c->Q = Q;
  c->documents = (i + round + i / 5) % 5;
  c->initial = (i / 2 + round) % 2;
  c->skip = (i / 3 + round) % 2;
  c->decay = i % 11 == 10 ? 12 : i % 11 == 4 ? 2 : 0.3;
  c->strong = i % 4 == 1 ? 1 + i % 9 : 0;
  c->span = 1 + i % 3;
  return 1;
}

/* whatever the decay: its logarithms are summed in double */
#define SSD_TOLERANCE (32 * EPS)

/* outputs, last states and the states between chunks against the reference */
static void ssd_forward_case(const ssd_case *c, int recurrent) {
  const mhk_index one = c->P * c->N, ny = c->B * c->T * c->H * c->P, chunks = (c->T + c->Q - 1) / c->Q,
                  bh = c->B * c->H;
  mhk__ssd_args a;
  const double tolerance = recurrent ? 16 * EPS : SSD_TOLERANCE;
  double *y, *final, *states, *want;
  mhk_index b, h, i, k, j;
  int with;
  ssd_make(&a, c);
  y = doubles(ny);
  final = doubles(bh * one);
  states = doubles(bh * (c->T + 1) * one);
  want = doubles(bh * chunks * one);
  ssd_reference(&a, y, states);
  for (i = 0; i < bh; i++) memcpy(final + i * one, states + (i * (c->T + 1) + c->T) * one, (size_t)one * sizeof *final);
  for (i = 0; i < bh; i++)
    for (k = 0; k < chunks; k++)
      for (j = 0; j < one; j++) want[(i * chunks + k) * one + j] = states[(i * (c->T + 1) + k * c->Q) * one + j];
  for (with = 0; with < (recurrent ? 1 : 2); with++) {
    a.y = room(ny);
    a.final = room(bh * one);
    a.states = with ? room(bh * chunks * one) : NULL;
    for (b = c->B - 1; b >= 0; b--)
      for (h = recurrent ? c->H - 1 : (c->H - 1) / c->span; h >= 0; h--) {
        const int kept = n_blocks;
        if (recurrent)
          KERNEL(ssd_step)(&a, b, h, work_room(1));
        else
          KERNEL(ssd)(&a, b, h, work_room(mhk__ssd_work(c->Q, c->N, c->P, c->span)));
        release_from(kept);
      }
    result("ssd y", a.y, y, ny, tolerance);
    result("ssd final", a.final, final, bh * one, tolerance);
    if (with) result("ssd states", a.states, want, bh * chunks * one, tolerance);
  }
  release();
}

TEST(ssd) {
  EACH_MACHINE {
    ssd_case c;
    int i;
    for (i = 0; ssd_number(i, &c); i++) ssd_forward_case(&c, 0);
  }
}

TEST(ssd_step) {
  EACH_MACHINE {
    ssd_case c;
    int i;
    for (i = 0; ssd_number(i, &c); i++) ssd_forward_case(&c, 1);
  }
}

TEST(ssd_back) {
  EACH_MACHINE {
    ssd_case c;
    int i;
    for (i = 0; ssd_number(i, &c); i++) {
      const mhk_index one = c.P * c.N, ny = c.B * c.T * c.H * c.P, nb = c.B * c.T * c.G * c.N,
                      chunks = (c.T + c.Q - 1) / c.Q, bh = c.B * c.H;
      const int without = i % 7; /* 1 dx, 2 dlog_a, 3 db, 4 dc, 5 dinitial is not wanted */
      const double tolerance = SSD_TOLERANCE;
      mhk__ssd_args a;
      double *y, *states, *dx, *dl, *db, *dc, *di, *dd;
      mhk_real *dx0, *dl0, *db0, *dc0, *di0, *st;
      mhk_index b, h, g, n, k, j;
      ssd_make(&a, &c);
      y = doubles(ny);
      states = doubles(bh * (c.T + 1) * one);
      ssd_reference(&a, y, states);
      st = room(bh * chunks * one);
      a.final = room(bh * one); /* as the forward pass left it */
      for (j = 0; j < bh; j++)
        for (n = 0; n < one; n++) a.final[j * one + n] = (mhk_real)states[(j * (c.T + 1) + c.T) * one + n];
      for (j = 0; j < bh; j++)
        for (k = 0; k < chunks; k++)
          for (n = 0; n < one; n++)
            st[(j * chunks + k) * one + n] = (mhk_real)states[(j * (c.T + 1) + k * c.Q) * one + n];
      a.states = st;
      a.dy = random_room(ny, -1, 1);
      a.dfinal = i % 3 ? random_room(bh * one, -1, 1) : NULL;
      dx0 = random_room(ny, -1, 1);
      dl0 = random_room(c.B * c.T * c.H, -1, 1);
      db0 = random_room(nb, -1, 1);
      dc0 = random_room(nb, -1, 1);
      di0 = random_room(bh * one, -1, 1);
      dx = as_doubles(dx0, ny);
      dl = as_doubles(dl0, c.B * c.T * c.H);
      db = as_doubles(db0, nb);
      dc = as_doubles(dc0, nb);
      di = as_doubles(di0, bh * one);
      dd = doubles(bh);
      for (b = 0; b < c.B; b++)
        for (h = 0; h < c.H; h++) {
          const int kept = n_blocks;
          const mhk_index bh_at = b * c.H + h, x_at = (b * c.T * c.H + h) * c.P,
                          b_at = (b * c.T * c.G + h / (c.H / c.G)) * c.N;
          const mhk__ref_ssd r = ssd_head(&a, b, h);
          const mhk__ref_ssd_gradient d = {doubles(c.T * c.P), doubles(c.T), doubles(c.T * c.N), doubles(c.T * c.N),
                                           dd + bh_at};
          double *state = doubles(one);
          for (n = 0; n < one; n++) state[n] = a.dfinal ? (double)a.dfinal[bh_at * one + n] : 0;
          mhk__ref_ssd_back(&r, states + bh_at * (c.T + 1) * one, gathered(a.dy + x_at, c.T, c.P, c.H * c.P), state,
                            &d);
          scattered(d.x, c.T, c.P, c.H * c.P, dx + x_at);
          scattered(d.log_a, c.T, 1, c.H, dl + b * c.T * c.H + h);
          scattered(d.B, c.T, c.N, c.G * c.N, db + b_at);
          scattered(d.C, c.T, c.N, c.G * c.N, dc + b_at);
          scattered(state, 1, one, one, di + bh_at * one);
          release_from(kept);
        }
      a.dx = without == 1 ? NULL : copy_room(dx0, ny);
      a.dlog_a = without == 2 ? NULL : copy_room(dl0, c.B * c.T * c.H);
      a.db = without == 3 ? NULL : copy_room(db0, nb);
      a.dc = without == 4 ? NULL : copy_room(dc0, nb);
      a.dinitial = without == 5 || !a.initial ? NULL : copy_room(di0, bh * one);
      a.dd = a.d ? room(bh) : NULL;
      for (b = c.B - 1; b >= 0; b--)
        for (g = (c.G - 1) / c.span; g >= 0; g--) {
          const int kept = n_blocks;
          KERNEL(ssd_back)(&a, b, g, work_room(mhk__ssd_back_work(c.Q, c.N, c.P, c.span * (c.H / c.G))));
          release_from(kept);
        }
      if (a.dx) result("dx", a.dx, dx, ny, tolerance);
      if (a.dlog_a) result("dlog_a", a.dlog_a, dl, c.B * c.T * c.H, 3 * tolerance);
      if (a.db) result("db", a.db, db, nb, tolerance);
      if (a.dc) result("dc", a.dc, dc, nb, tolerance);
      if (a.dinitial) result("dinitial", a.dinitial, di, bh * one, tolerance);
      if (a.dd) result("dd", a.dd, dd, bh, 3 * tolerance);
      release();
    }
  }
}

/* ---- the stage-1 loss ---- */

/* gradients of everything that the student has, (B,T,H) unless said */
typedef struct orientation_gradients {
  double *log_a, *b, *c; /* b and c (B,T,G,N) */
  double *row_gain, *column_gain, *rest;
  double *d, *scale;     /* (B,H) */
} orientation_gradients;

/* case i: inputs, and the teacher's matrices; every third case is the SSD mixer alone */
static double *orientation_make(int i, mhk__orientation_args *a) {
  static const mhk_index lengths[] = {1, 2, 7, 14, 15, 17, 63, 64, 65, 97, 127, 128, 129, 131};
  static const int32_t sizes[] = {0, 16, 2, MHK_WINDOW_ALL, 33, 1, 100, 7, 64, 31, 65, 1000};
  mhk__attention_args teacher;
  attention_case c;
  memset(&c, 0, sizeof c);
  const int options = i % 3;
  mhk_index nl, nb, n;
  memset(a, 0, sizeof *a);
  a->B = c.B = 1 + i % 2;
  a->T = c.T = c.S = lengths[i % COUNT(lengths)];
  a->H = a->HT = c.H = i / 2 % 3 == 0 ? 4 : 2;
  a->GT = c.G = i % 2 ? 2 : 1;
  a->G = i / 3 % 2 ? 2 : 1;
  a->PT = c.P = a->P = head_sizes[(i * 5 + 2) % COUNT(head_sizes)];
  a->N = head_sizes[(i * 3 + 1) % COUNT(head_sizes)];
  c.offset = 0;
  c.documents = (i + i / 5) % 5;
  c.scale = 2;
  attention_make(&teacher, &c);
  teacher.k_batch = c.T * c.G * c.P;
  teacher.k = random_room(c.B * c.T * c.G * c.P, -1, 1);
  nl = a->B * a->H * a->T;
  nb = a->B * a->T * a->G * a->N;
  double *lse = doubles(nl), *probability = doubles(nl * a->T);
  attention_reference(&teacher, NULL, lse, probability);
  a->lse = room(nl);
  for (n = 0; n < nl; n++) a->lse[n] = (mhk_real)lse[n];
  a->q = teacher.q;
  a->k = teacher.k;
  a->start = teacher.start;
  mhk_real *log_a = random_room(nl, i % 9 == 8 ? -9 : -0.3, 0);
  for (n = 0; i % 4 == 2 && n < nl; n += 37) log_a[n] = -(mhk_real)INFINITY;
  a->log_a = log_a;
  a->b = random_room(nb, -0.5, 0.5);
  a->c = random_room(nb, -0.5, 0.5);
  if (i % 4 != 3) a->d = random_room(a->H, -0.5, 0.5);
  if (options && i % 5 != 1) a->row_gain = random_room(nl, -0.5, 2);
  if (options && i % 5 != 2) a->column_gain = random_room(nl, 0, 2);
  if (options && i % 7) {
    int32_t *windows = (int32_t *)raw_room(a->H, sizeof *windows, 0);
    for (n = 0; n < a->H; n++) windows[n] = sizes[(i + (options == 1) * 5 * n) % COUNT(sizes)];
    a->windows = windows;
    a->near_lse = room(nl);
    a->near_mean = room(nl);
    if (i % 4) a->near_scale = random_room(a->H, -0.5, 1);
    if (i % 11) a->rest = random_room(nl, -2, 2);
  }
  a->difference = doubles(a->B * a->H);
  a->norm = doubles(a->B * a->H);
  a->scale = 0.7 / (double)(a->B * a->H);
  set_at("stage 1, case %d: B %lld, T %lld, H %lld, G %lld, N %lld, teacher G %lld, P %lld, documents %d, windows %d "
         "%d, gains %d %d", i, (long long)a->B, (long long)a->T, (long long)a->H, (long long)a->G, (long long)a->N,
         (long long)a->GT, (long long)a->PT, c.documents, a->windows ? (int)a->windows[0] : 0,
         a->windows ? (int)a->windows[1] : 0, a->row_gain != NULL, a->column_gain != NULL);
  return probability;
}

/* head h of the student for the reference; first has room for T numbers */
static mhk__ref_mixer mixer_head(const mhk__orientation_args *a, mhk_index b, mhk_index h, int *first) {
  const mhk_index at = b * a->T * a->H + h, at_b = (b * a->T * a->G + h / (a->H / a->G)) * a->N;
  const int32_t window = a->windows ? a->windows[h] : 0;
  const int attends = window == MHK_WINDOW_ALL;
  mhk__ref_mixer r;
  memset(&r, 0, sizeof r);
  r.ssd.T = (int)a->T;
  r.ssd.N = (int)a->N;
  r.ssd.log_a = gathered(a->log_a + at, a->T, 1, a->H);
  r.ssd.B = gathered(a->b + at_b, a->T, a->N, a->G * a->N);
  r.ssd.C = gathered(a->c + at_b, a->T, a->N, a->G * a->N);
  r.ssd.D = a->d && !attends ? (double)a->d[h] : 0;
  r.row_gain = a->row_gain ? gathered(a->row_gain + at, a->T, 1, a->H) : NULL;
  r.column_gain = a->column_gain ? gathered(a->column_gain + at, a->T, 1, a->H) : NULL;
  r.window = attends ? (int)a->T : (int)window;
  r.scale = attends || !a->near_scale ? 1 / sqrt((double)a->N) : (double)a->near_scale[h];
  r.rest = attends || !a->rest ? NULL : gathered(a->rest + at, a->T, 1, a->H);
  r.first = first;
  for (mhk_index t = 0; t < a->T; t++) first[t] = a->start ? (int)a->start[b * a->T + t] : 0;
  return r;
}

/* the matrix of a head without options, and its gradients, are those of SSD */
static void check_plain_mixer(const mhk__orientation_args *a, mhk_index b, mhk_index h, const double *student,
                              const double *dM, const mhk__ref_mixer_gradient *d) {
  const mhk_index T = a->T, N = a->N;
  double dd = 0, *M = doubles(T * T);
  mhk__ref_ssd_gradient plain = {NULL, doubles(T), doubles(T * N), doubles(T * N), &dd};
  mhk__ssd_args ssd;
  memset(&ssd, 0, sizeof ssd);
  ssd.B = a->B, ssd.T = T, ssd.H = a->H, ssd.G = a->G, ssd.N = N;
  ssd.log_a = a->log_a, ssd.b = a->b, ssd.c = a->c, ssd.d = a->d, ssd.start = a->start;
  const mhk__ref_ssd r = ssd_head(&ssd, b, h);
  mhk__ref_ssd_matrix(&r, M);
  mhk__ref_ssd_matrix_back(&r, M, dM, &plain);
  for (mhk_index n = 0; n < T * T; n++) result_number("reference M", student[n], M[n], 1, 1e-15);
  for (mhk_index n = 0; n < T; n++) result_number("reference dlog_a", d->ssd.log_a[n], plain.log_a[n], 1, 1e-14);
  for (mhk_index n = 0; n < T * N; n++) {
    result_number("reference dB", d->ssd.B[n], plain.B[n], 1, 1e-14);
    result_number("reference dC", d->ssd.C[n], plain.C[n], 1, 1e-14);
  }
  result_number("reference dD", *d->ssd.D, dd, 1, 1e-14);
}

/* sums of squares, and gradients added to what `want` holds */
static void orientation_reference(const mhk__orientation_args *a, const double *probability, double *difference,
                                  double *norm, const orientation_gradients *want) {
  for (mhk_index b = 0; b < a->B; b++)
    for (mhk_index h = 0; h < a->H; h++) {
      const int from = n_blocks;
      const mhk_index T = a->T, at = b * a->H + h, at_t = b * T * a->H + h,
                      at_b = (b * T * a->G + h / (a->H / a->G)) * a->N;
      const double *teacher = probability + at * T * T;
      int first[LONGEST];
      const mhk__ref_mixer r = mixer_head(a, b, h, first);
      const mhk__ref_mixer_gradient d = {{NULL, doubles(T), doubles(T * a->N), doubles(T * a->N), doubles(1)},
                                         doubles(T), doubles(T), doubles(1), doubles(T)};
      double *student = doubles(T * T), *dM = doubles(T * T);
      mhk__ref_mixer_matrix(&r, student);
      const double distance = mhk__ref_distance((int)(T * T), student, teacher, dM);
      difference[at] = distance * distance;
      for (mhk_index n = 0; n < T * T; n++) norm[at] += teacher[n] * teacher[n];
      for (mhk_index n = 0; n < T * T; n++) dM[n] *= a->scale;
      mhk__ref_mixer_back(&r, student, dM, &d);
      if (r.window == 0 && !a->row_gain && !a->column_gain) check_plain_mixer(a, b, h, student, dM, &d);
      scattered(d.ssd.log_a, T, 1, a->H, want->log_a + at_t);
      scattered(d.ssd.B, T, a->N, a->G * a->N, want->b + at_b);
      scattered(d.ssd.C, T, a->N, a->G * a->N, want->c + at_b);
      scattered(d.row_gain, T, 1, a->H, want->row_gain + at_t);
      scattered(d.column_gain, T, 1, a->H, want->column_gain + at_t);
      scattered(d.rest, T, 1, a->H, want->rest + at_t);
      if (!a->windows || a->windows[h] != MHK_WINDOW_ALL) { /* kept attention has neither */
        want->d[at] = *d.ssd.D;
        want->scale[at] = *d.scale;
      }
      release_from(from);
    }
}

/* n numbers that a gradient is added to, and the same for the reference; NULL: not wanted */
static mhk_real *added_to(mhk_index n, int wanted, double **reference) {
  mhk_real *x = random_room(n, -0.1, 0.1);
  *reference = as_doubles(x, n);
  return wanted ? x : NULL;
}

TEST(orientation) {
  EACH_MACHINE {
    for (int i = 0; i < 3 * 2 * 14; i++) {
      mhk__orientation_args a;
      orientation_gradients want;
      double *probability = orientation_make(i, &a);
      const mhk_index nl = a.B * a.T * a.H, nb = a.B * a.T * a.G * a.N, heads = a.B * a.H;
      const mhk_index work = mhk__orientation_work(a.T, a.N, a.PT);
      const int without = i % 8; /* one of the gradients is not wanted */
      double *difference = doubles(heads), *norm = doubles(heads);
      a.dlog_a = added_to(nl, without != 1, &want.log_a);
      a.db = added_to(nb, without != 2, &want.b);
      a.dc = added_to(nb, without != 3, &want.c);
      a.drow_gain = added_to(nl, without != 4 && a.row_gain, &want.row_gain);
      a.dcolumn_gain = added_to(nl, without != 5 && a.column_gain, &want.column_gain);
      a.drest = added_to(nl, without != 6 && a.rest, &want.rest);
      a.dd = a.d ? room(heads) : NULL;
      a.dnear_scale = a.near_scale ? room(heads) : NULL;
      want.d = doubles(heads);
      want.scale = doubles(heads);
      orientation_reference(&a, probability, difference, norm, &want);
      for (mhk_index n = heads - 1; n >= 0; n--) {
        const int from = n_blocks;
        KERNEL(orientation)(&a, n / a.H, n % a.H, work_room(work));
        release_from(from);
      }
      for (mhk_index n = 0; n < heads; n++) {
        result_number("difference", a.difference[n], difference[n], difference[n] + 1e-3 * norm[n], 40 * EPS);
        result_number("norm", a.norm[n], norm[n], norm[n], 40 * EPS);
      }
      for (mhk_index n = a.B * a.G - 1; n >= 0; n--) {
        const int from = n_blocks;
        KERNEL(orientation_back)(&a, n / a.G, n % a.G, work_room(work));
        release_from(from);
      }
      if (a.dlog_a) result("dlog_a", a.dlog_a, want.log_a, nl, 20 * EPS);
      if (a.db) result("db", a.db, want.b, nb, 20 * EPS);
      if (a.dc) result("dc", a.dc, want.c, nb, 20 * EPS);
      if (a.drow_gain) result("drow_gain", a.drow_gain, want.row_gain, nl, 20 * EPS);
      if (a.dcolumn_gain) result("dcolumn_gain", a.dcolumn_gain, want.column_gain, nl, 20 * EPS);
      if (a.drest) result("drest", a.drest, want.rest, nl, 20 * EPS);
      if (a.dd) result("dd", a.dd, want.d, heads, 20 * EPS);
      for (mhk_index n = 0; a.dnear_scale && n < heads; n++) /* its parts may cancel: it counts as if of dM's size */
        result_number("dscale", (double)a.dnear_scale[n], want.scale[n], a.scale, 20 * EPS);
      release();
    }
  }
}

/* ---- convolution ---- */

enum { CHANNELS = 64 }; /* of one call, as the driver cuts them */

/* n channels from `first` of a convolution, and what it should give, in double: y before and after
   the activation, and the gradients */
typedef struct conv_case {
  mhk__conv_args a;
  mhk_index first, n;
  mhk_real *before; /* y before the activation, all channels */
  double *y, *z, *dx, *dw, *db;
} conv_case;

/* the reference, channel by channel, with dy as the gradient of y */
static void conv_want(conv_case *w, const mhk_real *dy) {
  const mhk__conv_args *a = &w->a;
  const mhk_index B = a->B, T = a->T, C = a->C, W = a->W;
  mhk_index b, t, c;
  for (b = 0; b < B; b++)
    for (c = w->first; c < w->first + w->n; c++) {
      const int kept = n_blocks;
      mhk__ref_conv r;
      int starts[23];
      double *out = doubles(T), *dz = doubles(T), *one_dx = doubles(T);
      for (t = 0; t < T; t++) starts[t] = a->start ? (int)a->start[b * T + t] : -1;
      r.T = (int)T;
      r.W = (int)W;
      r.x = gathered(a->x + b * T * C + c, T, 1, C);
      r.past = NULL;
      r.taps = gathered(a->weight + c * W, W, 1, 1);
      r.bias = a->bias ? (double)a->bias[c] : 0;
      r.first = starts;
      mhk__ref_conv_forward(&r, out);
      for (t = 0; t < T; t++) {
        const mhk_index yi = (b * T + t) * w->n + c - w->first;
        w->z[(b * T + t) * C + c] = out[t];
        w->before[(b * T + t) * C + c] = (mhk_real)out[t];
        w->y[yi] = a->silu ? mhk__ref_silu(out[t]) : out[t];
        dz[t] = (a->silu ? mhk__ref_silu_slope(out[t]) : 1) * (double)dy[yi];
      }
      mhk__ref_conv_back(&r, dz, one_dx, w->dw + c * W, w->db + c);
      scattered(one_dx, T, 1, C, w->dx + b * T * C + c);
      release_from(kept);
    }
}

/* runs the kernel on its channels, the last ones first, as the driver cuts them */
static void conv_run(conv_case *w, void (*kernel)(const mhk__conv_args *, mhk_index, mhk_index, mhk_real *)) {
  mhk_index k;
  for (k = (w->n - 1) / CHANNELS; k >= 0; k--) {
    const mhk_index c0 = w->first + k * CHANNELS, c1 = mhk__min(c0 + CHANNELS, w->first + w->n);
    const int kept = n_blocks;
    kernel(&w->a, c0, c1, work_room(mhk__conv_work(w->a.W)));
    release_from(kept);
  }
}

/* y before the activation: these channels, and nothing written in the others */
static void check_before(const conv_case *w) {
  const mhk_index C = w->a.C;
  mhk_index k, c;
  for (k = 0; k < w->a.B * w->a.T; k++) {
    for (c = 0; c < C; c++)
      if ((c < w->first || c >= w->first + w->n) && !is_hole(w->a.before[k * C + c]))
        CHECK(0, "%s: before is written in channel %lld", at, (long long)c);
    result("before", w->a.before + k * C + w->first, w->z + k * C + w->first, w->n, 6 * EPS);
  }
}

/* The i-th case: forward and back, with documents, with gradients left out. */
static void check_conv(int i) {
  static const mhk_index runs[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 129};
  const mhk_index n = runs[i % COUNT(runs)], W = 1 + (i + i / COUNT(runs)) % 5, T = 1 + i * 7 % 23, B = 1 + i % 2,
                  first = i % 3 * 5, C = first + n + i % 4;
  const mhk_index ny = B * T * n, nx = B * T * C;
  mhk_real *x = random_room(nx, -1, 1), *dx0 = random_room(nx, -1, 1), *before, *dw0, *db0;
  mhk_real *weight = random_room(C * W, -1, 1), *bias = random_room(C, -1, 1), *dy = random_room(ny, -1, 1);
  const int without = i % 5; /* 1 dx, 2 dweight, 3 dbias is not wanted */
  conv_case w;
  mhk__conv_args *a = &w.a;
  mhk_index c, k;
  memset(&w, 0, sizeof w);
  before = room(nx);
  w.before = room(nx);
  w.first = first;
  w.n = n;
  w.y = doubles(ny);
  w.z = doubles(nx);
  a->B = B;
  a->T = T;
  a->C = C;
  a->W = W;
  a->ldy = n;
  a->first = first;
  a->silu = i / 2 % 2;
  set_at("conv B %lld, T %lld, channels %lld..%lld of %lld, width %lld, silu %d", (long long)B, (long long)T,
         (long long)first, (long long)(first + n), (long long)C, (long long)W, a->silu);
  for (k = 0; k < B * T; k++) /* the other channels are none of its business */
    for (c = 0; c < C; c++)
      if (c < first || c >= first + n) x[k * C + c] = hole();
  dw0 = random_room(C * W, -1, 1);
  db0 = random_room(C, -1, 1);
  w.dx = as_doubles(dx0, nx);
  w.dw = as_doubles(dw0, C * W);
  w.db = as_doubles(db0, C);
  a->x = x;
  a->weight = weight;
  a->bias = i % 3 ? bias : NULL;
  a->start = documents(i % 5, B, T);
  conv_want(&w, dy);
  a->y = room(ny);
  a->before = a->silu ? before : NULL;
  conv_run(&w, KERNEL(conv));
  result("y", a->y, w.y, ny, 6 * EPS);
  if (a->before) check_before(&w);
  a->y = NULL;
  a->before = a->silu ? w.before : NULL;
  a->dy = dy;
  a->dx = without == 1 ? NULL : copy_room(dx0, nx);
  a->dweight = without == 2 ? NULL : copy_room(dw0, C * W);
  a->dbias = without == 3 ? NULL : copy_room(db0, C);
  conv_run(&w, KERNEL(conv_back));
  if (a->dx) result("dx", a->dx, w.dx, nx, 8 * EPS);
  if (a->dweight) result("dweight", a->dweight, w.dw, C * W, 10 * EPS);
  if (a->dbias) result("dbias", a->dbias, w.db, C, 10 * EPS);
  release();
}

TEST(conv) {
  EACH_MACHINE {
    int i;
    for (i = 0; i < 75; i++) check_conv(i); /* five times each number of channels */
  }
}

/* T tokens that follow the W - 1 inputs of a state, which moves on */
TEST(conv_with_state) {
  EACH_MACHINE {
    static const mhk_index runs[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 129};
    for (int i = 0; i < 5 * COUNT(runs); i++) {
      mhk__conv_state_args a;
      const mhk_index n = runs[i % COUNT(runs)], W = 1 + (i + i / COUNT(runs)) % 5, T = 1 + i * 7 % 9,
                      first = i % 3 * 5, C = first + n;
      mhk_real *x = random_room(T * C, -1, 1), *state = random_room((W - 1) * C, -1, 1);
      const double *x0 = as_doubles(x, T * C), *past = as_doubles(state, (W - 1) * C);
      double *y = doubles(T * n), *next = doubles((W - 1) * C);
      memset(&a, 0, sizeof a);
      a.T = T;
      a.W = W;
      a.C = a.ldx = C;
      a.ldy = n;
      a.first = first;
      a.silu = i / 2 % 2;
      a.x = x;
      a.taps = random_room(W * C, -1, 1);
      a.bias = i % 3 ? random_room(C, -1, 1) : NULL;
      a.state = state;
      a.y = room(T * n);
      set_at("conv_with_state T %lld, channels %lld..%lld, width %lld, silu %d", (long long)T, (long long)first,
             (long long)C, (long long)W, a.silu);
      for (mhk_index k = 0; k < (W - 1) * C; k++) /* a channel of another run keeps its state */
        next[k] = k % C < first ? past[k] : k + T * C < (W - 1) * C ? past[k + T * C] : x0[k + (T - W + 1) * C];
      for (mhk_index c = first; c < C; c++) {
        const int kept = n_blocks;
        mhk__ref_conv r;
        double *out = doubles(T);
        memset(&r, 0, sizeof r);
        r.T = (int)T;
        r.W = (int)W;
        r.x = gathered(x + c, T, 1, C);
        r.past = gathered(state + c, W - 1, 1, C);
        r.taps = gathered(a.taps + c, W, 1, C);
        r.bias = a.bias ? (double)a.bias[c] : 0;
        mhk__ref_conv_forward(&r, out);
        for (mhk_index t = 0; t < T; t++) y[t * n + c - first] = a.silu ? mhk__ref_silu(out[t]) : out[t];
        release_from(kept);
      }
      KERNEL(conv_with_state)(&a, first, C);
      result("y", a.y, y, T * n, 6 * EPS);
      result("state", state, next, (W - 1) * C, 0);
      release();
    }
  }
}

/* ---- rows ---- */

TEST(norm) {
  EACH_MACHINE {
    int i, kind;
    for (i = 1; i < COUNT(row_sizes); i++)
      for (kind = 0; kind < 4; kind++) {
        const mhk_index n = row_sizes[i];
        const int center = kind & 1;
        /* few numbers less their mean are little more than noise */
        const double few = (n < 8 && center ? 300 : 24) * EPS;
        mhk_real *x = random_room(n, kind & 2 ? 2 : -2, kind & 2 ? 3 : 2), *w = random_room(n, 0.5, 1.5),
                 *b = kind >= 1 ? random_room(n, -1, 1) : NULL;
        mhk_real *dy = random_room(n, -1, 1), *y = room(n), *dx = random_room(n, -1, 1), *mean = room(1),
                 *rstd = room(1);
        double *want = doubles(n), *dwant = as_doubles(dx, n), *normalized = doubles(n), *dn = doubles(n), m, r;
        mhk_index j;
        set_at("norm of %lld, center %d", (long long)n, center);
        r = mhk__ref_normalize((int)n, as_doubles(x, n), 1e-3, center, &m, normalized);
        for (j = 0; j < n; j++) {
          want[j] = normalized[j] * (double)w[j] + (b ? (double)b[j] : 0);
          dn[j] = (double)dy[j] * (double)w[j];
        }
        mhk__ref_normalize_back((int)n, normalized, r, center, dn, dwant);
        KERNEL(norm)(n, x, w, b, (mhk_real)1e-3, center, y, mean, rstd);
        result("y", y, want, n, few);
        CHECK(fabs((double)*mean - m) <= 8 * EPS * 3, "%s: mean %.9g, should be %.9g", at, (double)*mean, m);
        CHECK(fabs((double)*rstd - r) <= 16 * EPS * r, "%s: rstd %.9g, should be %.9g", at, (double)*rstd, r);
        *mean = (mhk_real)m;
        *rstd = (mhk_real)r;
        KERNEL(norm_back)(n, x, w, *mean, *rstd, center, dy, dx);
        result("dx", dx, dwant, n, few);
        release();
      }
  }
}

TEST(softmax) {
  EACH_MACHINE {
    int i, kind;
    for (i = 1; i < COUNT(row_sizes); i++)
      for (kind = 0; kind < 3; kind++) {
        const mhk_index n = row_sizes[i];
        const double range = kind == 0 ? 3 : kind == 1 ? 60 : 1000;
        mhk_real *x = random_room(n, -range, range), *target = random_room(n, -4, 4), *y = room(n),
                 *same = copy_room(x, n), *d = random_room(n, -1, 1);
        double *want = doubles(n), *dwant = as_doubles(d, n), *quarter = doubles(n), most = -INFINITY, scaled, lse, got;
        double *exact = as_doubles(x, n), *exact_target = as_doubles(target, n), *p = doubles(n), *slope = doubles(n);
        mhk_index j;
        set_at("softmax of %lld in +-%g", (long long)n, range);
        for (j = 0; j < n; j++) most = (double)x[j] > most ? (double)x[j] : most, quarter[j] = 0.75 * (double)x[j];
        lse = mhk__ref_softmax((int)n, exact, want);
        scaled = mhk__ref_softmax((int)n, quarter, quarter);
        const double tlse = mhk__ref_softmax((int)n, exact_target, p),
                     dot = lse - mhk__ref_cross_entropy_soft((int)n, exact, exact_target, 1, p, slope);
        KERNEL(softmax)(n, x, y);
        result("y", y, want, n, 14 * EPS);
        KERNEL(softmax)(n, same, same);
        result("y in place", same, want, n, 14 * EPS);
        got = KERNEL(log_sum_exp)(n, x, 1);
        CHECK(fabs(got - lse) <= 4 * EPS * (1 + fabs(most)), "%s: log_sum_exp is %.12g, should be %.12g", at, got, lse);
        got = KERNEL(log_sum_exp)(n, x, (mhk_real)0.75);
        CHECK(fabs(got - scaled) <= 4 * EPS * (1 + fabs(most)),
              "%s: log_sum_exp with a scale is %.12g, should be %.12g", at, got, scaled);
        got = KERNEL(soft_dot)(n, x, target, (mhk_real)tlse);
        CHECK(fabs(got - dot) <= 12 * EPS * range, "%s: soft_dot is %.12g, should be %.12g", at, got, dot);
        if (kind == 0) {
          /* the sums over the row come rounded to mhk_real, as the callers keep them */
          const mhk_real it = (mhk_real)0.5, g = (mhk_real)0.3, tl = (mhk_real)tlse;
          mhk_real *d2 = copy_room(d, n), l;
          double *dwant2 = as_doubles(d, n);
          mhk__ref_cross_entropy_soft((int)n, exact, exact_target, 2, p, slope);
          for (j = 0; j < n; j++) dwant[j] += (double)g * 2 * slope[j];
          for (j = 0; j < n; j++) exact[j] /= 2;
          l = (mhk_real)mhk__ref_softmax((int)n, exact, p);
          for (j = 0; j < n; j++) dwant2[j] += (double)g * p[j];
          KERNEL(soft_back)(n, x, it, l, target, tl, g, d);
          result("soft_back", d, dwant, n, 10 * EPS);
          KERNEL(soft_back)(n, x, it, l, NULL, 0, g, d2);
          result("soft_back without target", d2, dwant2, n, 10 * EPS);
        }
        release();
      }
    KERNEL(soft_back)(0, NULL, 1, 0, NULL, 0, 1, NULL);
    CHECK(KERNEL(soft_dot)(0, NULL, NULL, 0) == 0, "nothing");
  }
}

TEST(gelu_and_gate) {
  EACH_MACHINE {
    int i, kind;
    for (i = 0; i < COUNT(row_sizes); i++)
      for (kind = 0; kind < 6; kind++) {
        const mhk_index n = row_sizes[i];
        const double range = kind < 2 ? 4 : kind < 4 ? 20 : 1000;
        mhk_real *x = random_room(n, -range, range), *z = random_room(n, -range, range),
                 *bias = kind & 1 ? random_room(n, -1, 1) : NULL;
        mhk_real *dy = random_room(n, -1, 1), *y = room(n), *dx = room(n), *same = copy_room(x, n),
                 *dy0 = random_room(n, -1, 1), *dz = room(n), *d;
        double *want = doubles(n), *dwant = doubles(n), *gwant = doubles(n), *dywant = as_doubles(dy0, n),
               *dzwant = doubles(n);
        mhk_index j;
        set_at("gelu and gate of %lld in +-%g", (long long)n, range);
        /* tolerances go by the largest result: let there be one that is not tiny */
        if (n > 0) x[0] = z[0] = same[0] = (mhk_real)1.5;
        for (j = 0; j < n; j++) {
          const double v = (double)x[j], g = (double)dy[j], gate = (double)z[j] + (bias ? (double)bias[j] : 0);
          want[j] = mhk__ref_gelu(v);
          dwant[j] = g * mhk__ref_gelu_slope(v);
          gwant[j] = v * mhk__ref_silu(gate);
          dywant[j] += g * mhk__ref_silu(gate);
          dzwant[j] = g * v * mhk__ref_silu_slope(gate);
        }
        KERNEL(gelu)(n, x, y);
        result("gelu", y, want, n, 4 * EPS);
        KERNEL(gelu)(n, same, same);
        result("gelu in place", same, want, n, 4 * EPS);
        KERNEL(gelu_back)(n, x, dy, dx);
        result("gelu_back", dx, dwant, n, 20 * EPS);
        y = room(n);
        KERNEL(gate)(n, x, z, bias, y);
        result("gate", y, gwant, n, 4 * EPS);
        d = copy_room(dy0, n);
        KERNEL(gate_back)(n, x, z, bias, dy, d, dz);
        result("gate_back dy", d, dywant, n, 4 * EPS);
        result("gate_back dz", dz, dzwant, n, 12 * EPS);
        dz = room(n);
        KERNEL(gate_back)(n, x, z, bias, dy, NULL, dz);
        result("gate_back dz alone", dz, dzwant, n, 12 * EPS);
        d = copy_room(dy0, n);
        KERNEL(gate_back)(n, x, z, bias, dy, d, NULL);
        result("gate_back dy alone", d, dywant, n, 4 * EPS);
        release();
      }
  }
}

TEST(scaled_rows_and_their_sums) {
  EACH_MACHINE {
    int i, kind;
    for (i = 0; i < COUNT(row_sizes); i++)
      for (kind = 0; kind < 4; kind++) {
        const mhk_index n = row_sizes[i];
        const mhk_real s = (mhk_real)(kind < 2 ? 0.7 : -1.3);
        mhk_real *x = random_room(n, -1, 1), *dy = random_room(n, -1, 1), *y = room(n), *d = random_room(n, -1, 1), ds,
                 *near_part = kind & 1 ? random_room(n, -1, 1) : NULL,
                 *far_part = kind & 2 ? random_room(n, -1, 1) : NULL;
        double *exact = as_doubles(x, n), *exact_dy = as_doubles(dy, n), *want = doubles(n), *dwant = as_doubles(d, n),
               dot = mhk__ref_dot((int)n, exact, exact_dy);
        mhk_index j;
        set_at("%lld numbers scaled by %g", (long long)n, (double)s);
        for (j = 0; j < n; j++)
          want[j] = (near_part ? (double)near_part[j] : 0) + (far_part ? (double)far_part[j] : 0);
        mhk__ref_add_scaled((int)n, (double)s, exact, want);
        mhk__ref_add_scaled((int)n, (double)s, exact_dy, dwant);
        KERNEL(scale)(n, s, x, near_part, far_part, y);
        result("scale", y, want, n, 4 * EPS);
        if (near_part) {
          KERNEL(scale)(n, s, x, near_part, far_part, near_part);
          result("scale in place", near_part, want, n, 4 * EPS);
        }
        ds = KERNEL(scale_back)(n, s, x, dy, NULL);
        CHECK(fabs((double)ds - dot) <= 4 * EPS * (1 + (double)n), "%s: ds alone is %g, not %g", at, (double)ds, dot);
        CHECK(KERNEL(scale_back)(n, s, x, dy, d) == ds, "%s: ds differs beside dx", at);
        result("scale_back", d, dwant, n, 4 * EPS);
        release();
      }
  }
}

/* the sums are those of a plain loop over the rows, to the bit */
TEST(column_sums) {
  EACH_MACHINE {
    static const mhk_index rows[] = {0, 1, 2, 3, 4, 5, 7, 8, 9, 31};
    int i, k;
    for (i = 0; i < COUNT(row_sizes); i++)
      for (k = 0; k < COUNT(rows); k++) {
        const mhk_index n = row_sizes[i], ld = n + (k & 1) * 3;
        mhk_real *dy = random_room(rows[k] * ld, -1, 1), *sum = room(n), *plain = room(n);
        double *want = doubles(n), *exact = as_doubles(dy, rows[k] * ld);
        mhk_index r, j;
        set_at("%lld rows of %lld numbers", (long long)rows[k], (long long)n);
        for (j = 0; j < n; j++) plain[j] = 0, want[j] = 0;
        for (r = 0; r < rows[k]; r++) {
          for (j = 0; j < n; j++) plain[j] += dy[r * ld + j];
          mhk__ref_add_scaled((int)n, 1, exact + r * ld, want);
        }
        KERNEL(column_sum)(rows[k], n, ld, dy, sum);
        result("column_sum", sum, want, n, 32 * EPS);
        CHECK_SAME(at, sum, plain, n);
        release();
      }
  }
}

/* what is no number stays none, and infinities do what they should */
TEST(not_numbers) {
  EACH_MACHINE {
    mhk_index n, i;
    for (n = 1; n <= 35; n++)
      for (i = 0; i < n; i++) {
        mhk_real *x = random_room(n, -1, 1), *y = room(n), *one = room(n);
        mhk_index j;
        int bad = 0;
        for (j = 0; j < n; j++) one[j] = 1;
        set_at("NaN at %lld of %lld", (long long)i, (long long)n);
        x[i] = (mhk_real)NAN;
        KERNEL(gelu)(n, x, y);
        for (j = 0; j < n; j++) bad |= (y[j] != y[j]) != (i == j);
        CHECK(!bad, "%s: gelu", at);
        KERNEL(gate)(n, one, x, NULL, y);
        for (bad = 0, j = 0; j < n; j++) bad |= (y[j] != y[j]) != (i == j);
        CHECK(!bad, "%s: gate", at);
        KERNEL(softmax)(n, x, y);
        CHECK(y[i] != y[i], "%s: softmax makes it %g", at, (double)y[i]);
        CHECK(isnan(KERNEL(log_sum_exp)(n, x, 1)), "%s: log_sum_exp", at);
        CHECK(isnan(KERNEL(distance)(n, x, one)), "%s: distance", at);
        x[i] = (mhk_real)INFINITY;
        KERNEL(gelu)(n, x, y);
        CHECK(y[i] == (mhk_real)INFINITY, "%s: gelu of infinity is %g", at, (double)y[i]);
        release();
      }
  }
}

TEST(distance) {
  EACH_MACHINE {
    int i;
    for (i = 0; i < COUNT(row_sizes); i++) {
      const mhk_index n = row_sizes[i];
      mhk_real *x = random_room(n, -1, 1), *y = random_room(n, -1, 1);
      const double norm = mhk__ref_distance((int)n, as_doubles(x, n), as_doubles(y, n), NULL), want = norm * norm;
      set_at("distance of %lld", (long long)n);
      result_number("distance", KERNEL(distance)(n, x, y), want, want, 8 * EPS);
      release();
    }
  }
}

TEST(adamw) {
  EACH_MACHINE {
    int i, step;
    for (i = 0; i < COUNT(row_sizes); i++) {
      const mhk_index n = row_sizes[i];
      mhk_real *p = random_room(n, -1, 1), *g = random_room(n, -1, 1), *m = random_room(n, -0.1, 0.1),
               *v = random_room(n, 0, 0.1), *s = room(7);
      double *wp = as_doubles(p, n), *wm = as_doubles(m, n), *wv = as_doubles(v, n);
      mhk_adamw_desc how;
      memset(&how, 0, sizeof how);
      how.lr = 1e-2;
      how.weight_decay = 0.1;
      how.beta1 = 0.9;
      how.beta2 = 0.95;
      how.eps = 1e-8;
      how.scale = 0.6;
      set_at("adamw of %lld", (long long)n);
      for (step = 1; step <= 3; step++) {
        mhk__ref_adamw((int)n, &how, step, as_doubles(g, n), wp, wm, wv);
        mhk__adamw_factors(how.lr, how.weight_decay, how.beta1, how.beta2, how.eps, how.scale, step, s);
        KERNEL(adamw)(n, p, g, m, v, s);
      }
      result("p", p, wp, n, 8 * EPS);
      result("m", m, wm, n, 8 * EPS);
      result("v", v, wv, n, 8 * EPS);
      release();
    }
  }
}

/* ------------------------------------------------------------------------------ session's work */

static void take_nothing(void *user, mhk_index sequence, mhk_index index, const mhk_real *logits) {
  (void)user, (void)sequence, (void)index, (void)logits;
}

/* How many of the prompts of 1 to longest tokens fail in a session, all their logits wanted. */
static int prompts_that_fail(mhk_session *s, const int32_t *tokens, mhk_index longest) {
  int failed = 0;
  for (mhk_index n = 1; n <= longest; n++) {
    mhk_feed_desc feed;
    memset(&feed, 0, sizeof feed);
    feed.tokens = &tokens;
    feed.lengths = &n;
    feed.take = take_nothing;
    mhk_session_reset(s, 0);
    failed += mhk_feed_batch(s, &feed) != MHK_OK;
    mhk_clear_error(s->object.ctx);
  }
  return failed;
}

/* The drivers of a pass take scratch memory as they need it, and mhk_session_bytes() finds how much
   that is: enough for every prompt, and with one line less some prompt fails. */
TEST(a_session_reserves_the_work_memory_that_its_passes_take) {
  static const mhk_index chunks[] = {1, 7, 40};
  int32_t tokens[40];
  model_tokens(tokens, 40, 31, 2);
  for (int isa = 0; isa < n_machines; isa++)
    for (int kind = 0; kind <= MODEL_KINDS + 1; kind++)
      for (int i = 0; i < 3; i++) {
        mhk_context *ctx = contexts[isa];
        mhk_model *base = kind < MODEL_KINDS ? model_new(ctx, kind, 5) : mhk_load(ctx, "examples/tiny");
        mhk_model *m = kind > MODEL_KINDS ? mhk_quantize(base, NULL) : base;
        mhk_session_desc d;
        memset(&d, 0, sizeof d);
        d.chunk = chunks[i];
        d.capacity = 64;
        mhk_session *s = mhk_session_create(m, &d);
        REQUIRE_OK(ctx);
        const size_t word = m->tokenizer ? mhk__word_room(m->tokenizer, s->word_bytes) : 0;
        CHECK(prompts_that_fail(s, tokens, d.chunk) == 0, "%s, model %d, chunk %d: not enough", mhk_isa_name(ctx), kind,
              (int)d.chunk);
        s->work.first->room -= word + MHK__ALIGN;
        CHECK(prompts_that_fail(s, tokens, d.chunk) > 0, "%s, model %d, chunk %d: more than is taken",
              mhk_isa_name(ctx), kind, (int)d.chunk);
        mhk_session_destroy(s);
        if (m != base) mhk_model_destroy(m);
        mhk_model_destroy(base);
      }
}

/* The header's list of kernels: each entry names a reference (one that does not exist would not
   compile), and the tests above have called each kernel of each instruction set. */
/* ---- jobs of a team of threads */

enum { MOST_TASKS = 1000, MOST_WORKERS = 5 };
typedef struct tasks {
  unsigned char times[MOST_TASKS]; /* how often each task ran; each is one thread's */
  int within[MOST_WORKERS];        /* tasks of a worker that run now; is 1 at most */
  int wrong;
} tasks;
static void count_task(void *arg, mhk_index task, int worker) {
  tasks *t = (tasks *)arg;
  volatile double x = 0;
  if (worker < 0 || worker >= MOST_WORKERS || ++t->within[worker] != 1) t->wrong = 1;
  for (int i = 0; i < (int)(task % 7) * 100; i++) x = x + i;
  t->times[task]++;
  t->within[worker]--;
}
typedef struct jobs { mhk_context *ctx; mhk_index n; int wrong; } jobs;
static void run_jobs(void *arg) {
  jobs *j = (jobs *)arg;
  for (mhk_index n = 0; n <= j->n; n++) {
    static tasks t;
    memset(&t, 0, sizeof t);
    mhk__parallel(j->ctx, n, count_task, &t);
    for (mhk_index i = 0; i < MOST_TASKS; i++) t.wrong |= t.times[i] != (i < n);
    j->wrong |= t.wrong;
  }
}
static void more_threads(void *arg) { mhk_set_threads((mhk_context *)arg, 9); }

/* one after the other in one team, and each in a team of its own; fewer tasks than workers, too */
TEST(each_task_of_a_job_runs_once) {
  for (int workers = 1; workers <= MOST_WORKERS; workers++) {
    mhk_context_desc d;
    jobs j;
    memset(&d, 0, sizeof d);
    memset(&j, 0, sizeof j);
    d.threads = workers;
    j.ctx = mhk_create(&d);
    j.n = MOST_TASKS;
    mhk__with_team(j.ctx, run_jobs, &j);
    j.n = 12;
    run_jobs(&j);
    CHECK(!j.wrong, "%d workers", workers);
#ifdef MHK__TEAM
    mhk__with_team(j.ctx, more_threads, j.ctx);
    CHECK(workers == 1 ? mhk_threads(j.ctx) == 9 : mhk_error(j.ctx) == MHK_ERROR_STATE, "%d workers", workers);
#else
    (void)more_threads;
#endif
    mhk_destroy(j.ctx);
  }
}

TEST(every_kernel_has_a_reference_and_a_test) {
#define ROW(result, name, arguments, reference) {#name, (void (*)(void))mhk__ref_##reference},
#define HEAD_ROW(name, of, reference) {#name, (void (*)(void))mhk__ref_##reference},
  static const struct { const char *name; void (*reference)(void); } list[] = {
      MHK__ALL_KERNELS(ROW, HEAD_ROW)};
  int i, k;
  CHECK(COUNT(list) == N_KERNELS, "the list has %d kernels", COUNT(list));
  for (k = 0; k < N_KERNELS; k++) {
    CHECK(list[k].reference != NULL, "%s has no reference", list[k].name);
#ifdef MOHAWK_DOUBLE /* the tests of quantized weights are in float */
    if (strncmp(list[k].name, "q_", 2) == 0) continue;
#endif
    for (i = 0; i < n_machines && !test_state.filter && !test_state.skipped; i++)
      CHECK(taken[i][k], "no test calls the kernel %s of %s", list[k].name, mhk_isa_name(contexts[i]));
  }
}

int main(int argc, char **argv) {
  int isa;
  test_begin(argc, argv);
  for (isa = MHK_ISA_SCALAR; isa <= MHK_ISA_WASM; isa++) {
    mhk_context *ctx = test_machine((mhk_isa)isa, MHK_BF16_BEST, 1);
    if (!ctx) continue;
    contexts[n_machines] = ctx;
    tables[n_machines++] = *ctx->kernels;
    if (test_state.verbose)
      printf("%s: register tile %d x %d\n", mhk_isa_name(ctx), ctx->kernels->mr, ctx->kernels->nr);
  }
  RUN(pack);
  RUN(stored_types);
  RUN(product);
  RUN(epilogue);
  RUN(rows_times);
#ifndef MOHAWK_DOUBLE
  RUN(quantized);
#endif
  RUN(product_plain);
  RUN(gemm);
  RUN(narrow_rounding);
  RUN(narrow_product);
  RUN(narrow_gemm);
  RUN(attention);
  RUN(attention_windows);
  RUN(attention_step);
  RUN(attention_back);
  RUN(ssd);
  RUN(ssd_step);
  RUN(ssd_back);
  RUN(orientation);
  RUN(conv);
  RUN(conv_with_state);
  RUN(norm);
  RUN(softmax);
  RUN(gelu_and_gate);
  RUN(scaled_rows_and_their_sums);
  RUN(column_sums);
  RUN(not_numbers);
  RUN(distance);
  RUN(adamw);
  RUN(a_session_reserves_the_work_memory_that_its_passes_take);
  RUN(each_task_of_a_job_runs_once);
  RUN(every_kernel_has_a_reference_and_a_test);
  for (isa = 0; isa < n_machines; isa++) mhk_destroy(contexts[isa]);
  free(scalar_log);
  return test_end();
}