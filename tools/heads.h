/* heads.h: how far the heads of a teacher look, and what of it a student should keep for a number
   of bytes: `mohawk heads`, and `mohawk distill` with auto. */
#ifndef MOHAWK_HEADS_H
#define MOHAWK_HEADS_H

#include "run.h"

/* ---- measuring: windows (n_layer,n_head) as in mhk_forward_desc */

/* One batch of text and what the unlimited teacher makes of it. */
typedef struct head_scan head_scan;
/* The first B windows of T tokens. NULL after a message. */
head_scan *head_scan_open(mhk_context *ctx, mhk_model *teacher, mhk_corpus *text, mhk_index B, mhk_index T);
void head_scan_close(head_scan *s);
/* KL(unlimited teacher || teacher with these windows), the mean over all tokens, in nats. Only the
   layers from the first that differs from the base on are computed. NaN after a message. */
double head_scan_kl(head_scan *s, const int32_t *windows);
/* Makes these windows the base that others are compared with; NULL: no limits, as at the start. */
int head_scan_base(head_scan *s, const int32_t *windows); /* CLI_GO, or CLI_FAILED after a message */

/* ---- choosing */

/* What to spend state on. */
typedef struct head_budget {
  mhk_config shape;     /* the student without windows and kept layers */
  mhk_index context;    /* tokens at which bytes are counted */
  double bytes;         /* of the whole state of a sequence */
  int least;            /* every head has this window at least, and */
  int largest;          /* this one at most, besides everything; least: nothing between */
  int keeps;            /* heads may see everything: kept attention */
} head_budget;
/* Keeps heads where that lowers KL most per byte, each head measured alone, and shares what is left
   as windows among the others. windows (n_layer,n_head) receives them; heads that are
   MHK_WINDOW_ALL before stay so. CLI_GO, or CLI_FAILED after a message (none after Ctrl-C). */
int head_choose(head_scan *s, const head_budget *budget, int32_t *windows);
/* Bytes of state of a student of this shape with these windows; a layer that keeps all its heads is
   attention. */
double head_bytes(const mhk_config *shape, const int32_t *windows, mhk_index context);
int head_keeps_layer(const int32_t *windows, int layer, int heads); /* all its heads see everything */
/* The shape of a student of this teacher: no gates, no windows. */
mhk_config head_student_shape(const mhk_config *teacher);

/* ---- windows as options: "2.1=64,0.2=32,8", "2.1,1.1" */

/* The windows of all heads, 0 where text says nothing; and those kept, the others as they were.
   CLI_GO, or CLI_FAILED after a message. */
int head_parse_windows(const char *text, const mhk_config *teacher, int32_t *windows);
int head_parse_kept(const char *text, const mhk_config *teacher, int32_t *windows);
/* The options of `mohawk distill` that say these windows. */
void head_flags(const mhk_config *teacher, const int32_t *windows, char *text, size_t capacity);

#endif
