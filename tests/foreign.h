/* The tools' readers of foreign layouts, for tests that are one file and mohawk.h. */
#ifndef TEST_FOREIGN_H
#define TEST_FOREIGN_H
#include "../tools/foreign.c"
#ifndef TEST_OWN_GGUF /* else the test includes them */
#include "../tools/gguf.c"
#include "../tools/vocabulary.c"
#endif
#ifndef TEST_OWN_PYTORCH /* else the test includes it */
#include "../tools/pytorch.c"
#endif
#endif
