/* mpi.c: distill on several machines, with MPI. The same bits at any number of processes.

     mpicc -O3 -I. examples/mpi.c -lm -pthread -o mpi
     mpirun -n 2 ./mpi examples/tiny corpus.txt run1           (run again to resume from run1)
     mpirun -n 8 --hostfile hosts ./mpi phi/ corpus.txt run1   (hosts: lines "name slots=CORES")
     srun -n 8 --cpus-per-task=1 ./mpi phi/ corpus.txt run1    (Slurm)

   A batch is cut into as many equal shares as SHARES says (default 4). A process computes one or
   several of them, each in a thread of its own with one core, a trainer and a student. After each
   batch they sum their gradients in an order that depends on the number of shares alone: as many
   processes as shares, half as many or a single one train the same student, to the last bit, and go
   on from each other's checkpoints. That order is why this is not one MPI_Allreduce, whose sums
   depend on the number of processes; it moves as much data as one. With larger SHARES, batches are
   larger too: at least a sequence for each.

   All processes read teacher, text and OUT, which is on a disk that they share; the first one
   writes. If a process ends, MPI ends the others. Build with -fopenmp and set OMP_NUM_THREADS to
   give each share more cores than one. Open MPI binds a process to one core: with several shares or
   threads in a process, start it with --bind-to none.

   24000 tokens of the bundled teacher on two idle cores, start and end of the program included,
   medians of five runs in turn: 2.13 s with one thread, 1.45 s with one process and share of two
   threads, 1.36 s with two processes of one thread. */
#define MOHAWK_IMPLEMENTATION
#include "mohawk.h"
#include <mpi.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_SHARES = 256 };

typedef struct share {
  int number;          /* in the job */
  mhk_real *gradients; /* of this update */
} share;

/* what the shares of this process have in common */
static struct {
  char **argv;
  double tokens, seconds;
  int processes, shares, mine; /* mine: shares of this process, share[0..mine) */
  share share[MOST_SHARES];
  mhk_real *sent, *received; /* room for the gradients, in pieces of one size */
  size_t room;
  pthread_mutex_t lock, end;
  pthread_cond_t turn;
  int waiting, turns;
} job;

/* ends the job, as the others wait for this share; once in a process */
static void stop(int number, const char *message) {
  pthread_mutex_lock(&job.end);
  fprintf(stderr, "mpi: share %d: %s\n", number, message);
  MPI_Abort(MPI_COMM_WORLD, 1);
}

/* waits until all shares of this process are here */
static void meet(void) {
  pthread_mutex_lock(&job.lock);
  const int turn = job.turns;
  if (++job.waiting == job.mine) {
    job.waiting = 0;
    job.turns++;
    pthread_cond_broadcast(&job.turn);
  }
  while (turn == job.turns) pthread_cond_wait(&job.turn, &job.lock);
  pthread_mutex_unlock(&job.lock);
}

static void add(mhk_real *to, const mhk_real *from, size_t n) {
  size_t i;
  for (i = 0; i < n; i++) to[i] += from[i];
}

/* The sum over all processes, in g: each sums one piece of everybody's, as pairs, pairs of pairs
   and so on, then all collect the pieces. */
static int sum_over_processes(mhk_real *g, size_t n) {
  const MPI_Datatype type = sizeof(mhk_real) == sizeof(double) ? MPI_DOUBLE : MPI_FLOAT;
  const size_t processes = (size_t)job.processes, piece = (n + processes - 1) / processes;
  size_t step, i;
  if (piece > 0x7fffffff) return 2;
  if (job.room < piece * processes) {
    job.room = piece * processes;
    free(job.sent), free(job.received);
    job.sent = (mhk_real *)calloc(job.room, sizeof *job.sent);
    job.received = (mhk_real *)calloc(job.room, sizeof *job.received);
  }
  if (!job.sent || !job.received) return 3;
  memcpy(job.sent, g, n * sizeof *g);
  if (MPI_Alltoall(job.sent, (int)piece, type, job.received, (int)piece, type, MPI_COMM_WORLD) != MPI_SUCCESS) return 4;
  for (step = 1; step < processes; step *= 2)
    for (i = 0; i < processes; i += 2 * step) add(job.received + i * piece, job.received + (i + step) * piece, piece);
  if (MPI_Allgather(job.received, (int)piece, type, job.sent, (int)piece, type, MPI_COMM_WORLD) != MPI_SUCCESS)
    return 5;
  memcpy(g, job.sent, n * sizeof *g);
  return 0;
}

/* mhk_distill_desc.exchange: sums the gradients of all shares, in place. Neighbors are added first,
   here within the process: what it sends on is what a process of its own would have sent. */
static int exchange(void *user, mhk_real *gradients, size_t n) {
  static int failed; /* written between two meetings, by the first share */
  share *s = (share *)user;
  int step, i;
  s->gradients = gradients;
  meet();
  if (s == job.share) {
    for (step = 1; step < job.mine; step *= 2)
      for (i = 0; i < job.mine; i += 2 * step) add(job.share[i].gradients, job.share[i + step].gradients, n);
    failed = job.processes > 1 ? sum_over_processes(gradients, n) : 0;
  }
  meet();
  if (s != job.share) memcpy(gradients, job.share[0].gradients, n * sizeof *gradients);
  meet(); /* the first one's gradients stay until all have them */
  return failed;
}

/* One share of the job: examples/distill.c, with an exchange. */
static void *train(void *user) {
  share *s = (share *)user;
  mhk_context_desc options;
  mhk_distill_desc run;
  mhk_corpus_desc text;
  mhk_context *ctx;
  mhk_trainer *trainer;
  char student[512];
  int more = 1, i;
  memset(&options, 0, sizeof options);
  options.threads = getenv("OMP_NUM_THREADS") ? -1 : 1;
  ctx = mhk_create(&options);
  memset(&text, 0, sizeof text);
  text.n_files = 1;
  text.files = (const char *const *)&job.argv[2];
  memset(&run, 0, sizeof run);
  run.teacher = mhk_load(ctx, job.argv[1]); /* mapped: one copy in memory */
  run.corpus = mhk_corpus_load(ctx, mhk_model_tokenizer(run.teacher), &text);
  run.share = 1;
  run.out = job.argv[3];
  run.checkpoint_seconds = job.seconds;
  for (i = 0; i < 3; i++) run.stages[i].tokens = (mhk_index)(job.tokens * (i + 1) / 6);
  run.batch = job.shares > 4 ? job.shares : 4;
  run.exchange = exchange;
  run.exchange_user = s;
  run.world = job.shares;
  run.rank = s->number;
  trainer = mhk_distill(ctx, &run);
  if (trainer && s->number == 0 && mhk_progress(trainer)->resumed) printf("resumed from %s\n", run.out);
  while (more && !mhk_failed(ctx)) {
    const mhk_progress_info *p;
    more = mhk_train_step(trainer);
    p = mhk_progress(trainer);
    if (s->number == 0 && p && (p->step % 10 == 0 || p->stage_done)) {
      printf("stage %d  update %4lld of %lld  loss of the first share %.4f  %.0f tokens/s\n", p->stage,
             (long long)p->step, (long long)p->steps, p->loss_average, p->tokens_per_second);
      fflush(stdout);
    }
  }
  snprintf(student, sizeof student, "%s/student", job.argv[3]);
  if (s->number == 0) mhk_save(mhk_student(trainer), student, MHK_F32);
  if (mhk_failed(ctx)) stop(s->number, mhk_message(ctx));
  mhk_destroy(ctx);
  return NULL;
}

int main(int argc, char **argv) {
  static pthread_t thread[MOST_SHARES];
  int rank, threads, i;
  pthread_mutex_init(&job.lock, NULL);
  pthread_mutex_init(&job.end, NULL);
  MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &threads);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &job.processes);
  if (argc < 4) {
    if (rank == 0) fprintf(stderr, "usage: mpi TEACHER TEXT OUT [TOKENS [SHARES [SECONDS BETWEEN CHECKPOINTS]]]\n");
    MPI_Finalize();
    return 2;
  }
  job.argv = argv;
  job.tokens = argc > 4 ? atof(argv[4]) : 300000; /* a sixth for stage 1, a third for 2, half for 3 */
  job.shares = argc > 5 ? atoi(argv[5]) : job.processes > 4 ? job.processes : 4;
  job.seconds = argc > 6 ? atof(argv[6]) : 0;
  if (job.shares < 1 || job.shares > MOST_SHARES || (job.shares & (job.shares - 1)) || job.shares % job.processes) {
    if (rank == 0)
      fprintf(stderr, "mpi: %d processes for %d shares: both must be powers of two, and shares from processes to %d\n",
              job.processes, job.shares, MOST_SHARES);
    MPI_Finalize();
    return 2;
  }
  if (threads < MPI_THREAD_SERIALIZED && job.shares > job.processes)
    stop(rank, "this MPI allows no threads: start as many processes as shares");
  job.mine = job.shares / job.processes;
  pthread_cond_init(&job.turn, NULL);
  for (i = 0; i < job.mine; i++) job.share[i].number = rank * job.mine + i;
  for (i = 1; i < job.mine; i++)
    if (pthread_create(&thread[i], NULL, train, &job.share[i]) != 0) stop(rank, "cannot start a thread");
  train(&job.share[0]); /* here, and so all MPI calls but MPI_Abort are this thread's */
  for (i = 1; i < job.mine; i++) pthread_join(thread[i], NULL);
  MPI_Barrier(MPI_COMM_WORLD);
  MPI_Finalize();
  return 0;
}
