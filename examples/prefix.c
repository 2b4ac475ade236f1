/* prefix.c: read a prompt once, continue it several ways, and save it for later.

     cc -O3 -I. examples/prefix.c -lm -o prefix
     ./prefix build/demo/student "Once upon a time there was a fox who could not sleep."

   The state of a session can be copied, saved and loaded. Here one sequence reads the prompt. The
   program copies its state into three sequences, which continue differently in one batch. It then
   saves the state to a file and loads it again, as a program does that restarts with the same long
   prompt. Both sessions have a size that is known in advance. */
#define MOHAWK_IMPLEMENTATION
#include "mohawk.h"
#include <stdio.h>
#include <time.h>

enum { WAYS = 3, TOKENS = 24 };

static double milliseconds(clock_t since) { return 1e3 * (double)(clock() - since) / CLOCKS_PER_SEC; }

int main(int argc, char **argv) {
  const char *prompt =
      argc > 2 ? argv[2]
               : "Once upon a time there was a little fox who could not sleep. Every night he went to the river and";
  const char *file = argc > 3 ? argv[3] : "prefix.state";
  mhk_context *ctx = mhk_create(NULL);
  mhk_model *model = mhk_load(ctx, argc > 1 ? argv[1] : "build/demo/student");
  mhk_tokenizer *tokenizer = mhk_model_tokenizer(model);
  mhk_session_desc desc;
  mhk_session *session, *reader;
  mhk_sampling sampling;
  int32_t tokens[TOKENS][WAYS], token;
  char text[64];
  clock_t start;
  double fed, copied, saved, loaded;
  mhk_index n;
  int i, way, failed;

  memset(&desc, 0, sizeof desc);
  desc.capacity = 512;                           /* ignored by state-space models */
  reader = mhk_session_create(model, &desc);     /* one sequence */
  desc.batch = WAYS;
  session = mhk_session_create(model, &desc);    /* three sequences per step */
  printf("sessions: %.0f KB\n", 1e-3 * (double)(mhk_session_bytes(model, &desc)));

  start = clock();
  mhk_feed_text(reader, prompt);
  fed = milliseconds(start);
  n = mhk_session_position(reader, 0);

  start = clock();
  for (way = 0; way < WAYS; way++) mhk_session_copy(session, way, reader, 0);
  copied = milliseconds(start);
  start = clock();
  mhk_session_save(reader, 0, file);
  saved = milliseconds(start);

  memset(&sampling, 0, sizeof sampling);
  sampling.temperature = 0.9;
  sampling.seed = 7;
  for (i = 0; i < TOKENS; i++) mhk_sample_batch(session, &sampling, tokens[i]);
  for (way = 0; way < WAYS && !mhk_failed(ctx); way++) {
    printf("%d: ...", way + 1);
    for (i = 0; i < TOKENS; i++) {
      const mhk_index bytes = mhk_decode(tokenizer, &tokens[i][way], 1, text, sizeof text);
      fwrite(text, 1, bytes > 0 && bytes < (mhk_index)sizeof text ? (size_t)bytes : 0, stdout);
    }
    putchar('\n');
  }

  /* later: no token of the prompt is computed again */
  mhk_session_reset(reader, MHK_ALL);
  start = clock();
  mhk_session_load(reader, 0, file);
  loaded = milliseconds(start);
  sampling.greedy = 1; /* the same continuation as without the save */
  printf("loaded: ...");
  for (i = 0; i < TOKENS && (token = mhk_sample(reader, &sampling)) >= 0; i++) fputs(mhk_text_out(reader), stdout);
  printf("\n%lld tokens: fed in %.2f ms, copied %d times in %.2f ms, saved (%.0f KB) in %.2f ms, loaded in %.2f ms\n",
         (long long)n, fed, WAYS, copied, 1e-3 * (double)mhk_session_state_bytes(reader, 0), saved, loaded);

  failed = mhk_failed(ctx);
  if (failed) fprintf(stderr, "%s\n", mhk_message(ctx));
  mhk_destroy(ctx);
  return failed;
}