/* embed.c: a distilled model in your own program. This is all the code it takes.

     cc -O3 -I. examples/embed.c -lm -o embed
     ./embed build/demo/student "Once upon a time"

   A state-space student needs the same memory after ten tokens as after a million. */
#define MOHAWK_IMPLEMENTATION
#include "mohawk.h"
#include <stdio.h>

int main(int argc, char **argv) {
  mhk_context *ctx = mhk_create(NULL); /* defaults: best instruction set, 1 thread, malloc */
  mhk_model *model = mhk_load(ctx, argc > 1 ? argv[1] : "build/demo/student"); /* a folder, or one .safetensors file */
  mhk_session *session = mhk_session_create(model, NULL);
  int i, failed;

  mhk_feed_text(session, argc > 2 ? argv[2] : "Once upon a time");
  for (i = 0; i < 100 && mhk_sample(session, NULL) >= 0; i++)
    fputs(mhk_text_out(session), stdout); /* whole characters only */
  putchar('\n');

  failed = mhk_failed(ctx); /* one check at the end: after an error, calls do nothing */
  if (failed) fprintf(stderr, "%s\n", mhk_message(ctx));
  mhk_destroy(ctx); /* and everything made from it */
  return failed;
}
