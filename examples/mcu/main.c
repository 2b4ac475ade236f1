/* main.c: a distilled model on a microcontroller, without heap, files or operating system. The
   weights are a constant array in flash, and the header reads them in place. Everything else is in
   one static array.

     make mcu        distills and quantizes a student, builds this program for a Cortex-M7, runs it
                     in qemu-system-arm and reports its memory

   board_an500.c and an500.ld describe the board (Arm MPS2 with AN500, emulated by QEMU). Replace
   them for another board. board_host.c runs the same program on a computer, where it must write
   the same text. */
#include <stddef.h>
#define MOHAWK_MALLOC(bytes) ((void)(bytes), (void *)0) /* never called: the context below has its own allocator */
#define MOHAWK_FREE(block) ((void)(block))
#define MOHAWK_NO_STDIO
#define MOHAWK_NO_TRAINING
#define MOHAWK_NO_SIMD
#define MOHAWK_IMPLEMENTATION
#include "mohawk.h"

#include "board.h"

/* ---- memory: a first-fit allocator in one array. A free block stores its size and the next free
   block. A block in use needs no header, because the header's release() is told the size. */

#define UNIT sizeof(hole)
typedef union hole {
  struct {
    union hole *next;
    size_t units;
  } h;
  uint64_t align[2];
} hole;

static hole memory[MCU_MEMORY / sizeof(hole)], *holes;
static size_t highest; /* the most units ever in use */

static void *take(void *user, size_t bytes) {
  const size_t units = (bytes + UNIT - 1) / UNIT;
  hole **at = &holes, *x;
  (void)user;
  while (*at && (*at)->h.units < units) at = &(*at)->h.next;
  x = *at;
  if (!x) return NULL;
  if (x->h.units == units)
    *at = x->h.next;
  else {
    hole *rest = x + units;
    rest->h.units = x->h.units - units;
    rest->h.next = x->h.next;
    *at = rest;
  }
  if ((size_t)(x - memory) + units > highest) highest = (size_t)(x - memory) + units;
  return x;
}

static void give(void *user, void *block, size_t bytes) {
  hole *x = (hole *)block, **at = &holes, *before = NULL;
  (void)user;
  while (*at && *at < x) {
    before = *at;
    at = &(*at)->h.next;
  }
  x->h.units = (bytes + UNIT - 1) / UNIT;
  x->h.next = *at;
  *at = x;
  if (x->h.next == x + x->h.units) {
    x->h.units += x->h.next->h.units;
    x->h.next = x->h.next->h.next;
  }
  if (before && before + before->h.units == x) {
    before->h.units += x->h.units;
    before->h.next = x->h.next;
  }
}

/* ---- the program */

static void write_number(size_t x) {
  char text[24], *p = text + sizeof text - 1;
  *p = 0;
  do *--p = (char)('0' + x % 10);
  while ((x /= 10) != 0);
  board_write(p);
}

static int fail(const char *message) {
  board_write(message);
  board_write("\n");
  return 1;
}

int main(void) {
  static const char prompt[] = "Once upon a time";
  mhk_context_desc desc;
  mhk_session_desc small;
  mhk_sampling greedy;
  mhk_context *ctx;
  mhk_model *model;
  mhk_session *session;
  int32_t ids[TOKENS];
  int n, i;

  memory->h.units = sizeof memory / UNIT;
  memory->h.next = NULL;
  holes = memory;
  memset(&desc, 0, sizeof desc);
  desc.allocator.alloc = take;
  desc.allocator.release = give;
  ctx = mhk_create(&desc);
  model = mhk_load_memory(ctx, model_file, model_file_bytes); /* the weights stay in flash */
  memset(&small, 0, sizeof small);
  small.chunk = 4; /* tokens of the prompt that a layer processes at once */
  small.capacity = TOKENS + 64; /* only a model with kept attention has a use for it */
  session = mhk_session_create(model, &small);
  memset(&greedy, 0, sizeof greedy);
  greedy.greedy = 1;

  mhk_feed_text(session, prompt);
  if (mhk_failed(ctx)) return fail(mhk_message(ctx));
  board_write(prompt);
  for (n = 0; n < TOKENS && (ids[n] = mhk_sample(session, &greedy)) >= 0; n++) board_write(mhk_text_out(session));
  board_write("\n");
  for (i = 0; i < n; i++) {
    write_number((size_t)ids[i]);
    board_write(i + 1 < n ? " " : "\n");
  }
  if (mhk_failed(ctx)) return fail(mhk_message(ctx));
  board_report(write_number, highest * UNIT, mhk_session_bytes(model, &small));
  mhk_destroy(ctx);
  return 0;
}
