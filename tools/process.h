/* process.h: this program started again, beside itself. */
#ifndef MOHAWK_PROCESS_H
#define MOHAWK_PROCESS_H

#include "cli.h"

typedef struct process {
  long long id; /* 0: none */
} process;

/* Starts mohawk with these arguments (argv[0] is set here, NULL at the end); what it prints goes to
   the file `said`. It ends when this process does, and does not get Ctrl-C from the terminal.
   CLI_GO, or CLI_FAILED after a message. */
int process_start(process *p, char **argv, const char *said);
/* Whether it has ended: 1 with its exit code (128 and more: a signal), 0 while it runs. */
int process_ended(process *p, int *code);
void process_stop(const process *p); /* asks it to save and end */
void process_sleep(double seconds);  /* returns early after Ctrl-C */

#endif
