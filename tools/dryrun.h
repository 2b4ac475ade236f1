/* dryrun.h: what a run will need, measured on a teacher of the same width with few layers. */
#ifndef MOHAWK_DRYRUN_H
#define MOHAWK_DRYRUN_H
#include "cli.h"

typedef struct dry_cost {
  double bytes;   /* the most memory that the run had by the end of this stage, beyond the mapped teacher */
  double seconds; /* of all updates of the stage, without checkpoints and evaluations */
  mhk_index updates;
} dry_cost;

/* Measures the stages of a run with a few updates in contexts of its own. `folder` exists and
   receives a file for as long as this takes. Returns CLI_GO, or CLI_FAILED after a message. */
int dry_measure(const mhk_distill_desc *run, int threads, const char *folder, dry_cost cost[3]);
/* Says what one stage will need, name before it, as a line of text or of JSON. */
void dry_print(const char *name, int stage, const dry_cost *cost, double update_tokens, int json);
#endif
