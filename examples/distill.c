/* distill.c: distill a model from C. The caller owns the loop: draw, log, evaluate or stop after
   any update.

     cc -O3 -fopenmp -I. examples/distill.c -lm -o distill        (without -fopenmp: one thread)
     ./distill examples/tiny corpus.txt run1                      (run again to resume from run1)
*/
#define MOHAWK_IMPLEMENTATION
#include "mohawk.h"
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv) {
  mhk_context_desc options;
  mhk_context *ctx;
  mhk_model *teacher;
  mhk_distill_desc run;
  mhk_corpus_desc text;
  mhk_trainer *trainer;
  char student[512];
  int more = 1, failed;
  if (argc < 4) {
    fprintf(stderr, "usage: distill TEACHER TEXT OUT\n");
    return 2;
  }

  memset(&options, 0, sizeof options); /* in every description, zero means the default */
  options.threads = -1;                /* all CPUs; results do not depend on it */
  ctx = mhk_create(&options);
  teacher = mhk_load(ctx, argv[1]);

  memset(&text, 0, sizeof text);
  text.n_files = 1;
  text.files = (const char *const *)&argv[2];

  memset(&run, 0, sizeof run);
  run.teacher = teacher;
  run.corpus = mhk_corpus_load(ctx, mhk_model_tokenizer(teacher), &text);
  run.out = argv[3];             /* checkpoints; resumes a run it finds there */
  run.stages[0].tokens = 50000;  /* matrix orientation */
  run.stages[1].tokens = 100000; /* hidden-state alignment */
  run.stages[2].tokens = 150000; /* knowledge distillation */
  if (!mhk_failed(ctx)) printf("up to %.0f MB of memory\n", mhk_distill_bytes(&run) * 1e-6);

  trainer = mhk_distill(ctx, &run);
  while (more && !mhk_failed(ctx)) {
    const mhk_progress_info *p;
    more = mhk_train_step(trainer);
    p = mhk_progress(trainer);
    if (p && (p->step % 10 == 0 || p->stage_done))
      printf("stage %d  update %4lld of %lld  loss %.4f\n", p->stage, (long long)p->step, (long long)p->steps,
             p->loss_average);
  }

  snprintf(student, sizeof student, "%s/student", argv[3]);
  mhk_save(mhk_student(trainer), student, MHK_F32); /* config.json, safetensors, tokenizer.json: PyTorch reads it */
  failed = mhk_failed(ctx);
  if (failed) fprintf(stderr, "%s\n", mhk_message(ctx));
  mhk_destroy(ctx);
  return failed;
}
