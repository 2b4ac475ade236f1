/* families.h: how closely structured matrices approach a given causal one, by family and order:
   `mohawk matrices`. */
#ifndef MOHAWK_FAMILIES_H
#define MOHAWK_FAMILIES_H

#include "cli.h"

/* Families of (T,T) matrices, and what no semi-separable one can fall below. In the order of their
   expected errors. */
typedef enum family {
  FAMILY_TOEPLITZ,        /* one value a diagonal, the mean of it; it has no order */
  FAMILY_LOW_RANK,        /* the first r terms of the singular value decomposition */
  FAMILY_CAUSAL_LOW_RANK, /* the same, zero above the diagonal */
  FAMILY_SSD,             /* M[t,s] = (C_t . B_s) a_{s+1} ... a_t, r numbers in B_s and C_t, 0 < a < 1 */
  FAMILY_SEMISEPARABLE,   /* the same with r decays a token, one for each of the r numbers */
  FAMILY_BOUND,           /* a lower bound for the two above, from ranks of blocks */
  FAMILIES
} family;
extern const char *const family_names[FAMILIES], *const family_keys[FAMILIES];

enum { FAMILY_MOST_ORDERS = 16, FAMILY_MOST_UPDATES = 20000 };

typedef struct family_desc {
  mhk_index T;
  const int *orders; /* ascending, from 1 to T */
  int n;
  int (*fitted)(void *user); /* called after each fit; nonzero: stop. NULL: none */
  void *user;
} family_desc;

typedef struct family_errors {
  double relative[FAMILIES][FAMILY_MOST_ORDERS]; /* || X - M ||_F / || M ||_F */
  int unfinished; /* fits that ended at FAMILY_MOST_UPDATES */
} family_errors;

/* All distances of one matrix M (T,T), zero above the diagonal and not all zero. ctx serves the
   fits and is used by no other thread. Returns 1; 0 when it was stopped, or failed, which ctx then
   says. */
int family_measure(mhk_context *ctx, const double *M, const family_desc *d, family_errors *out);

#endif
