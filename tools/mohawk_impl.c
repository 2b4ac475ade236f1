/* The implementation of mohawk.h for the command line, compiled once. */
#define MOHAWK_IMPLEMENTATION
#include "../mohawk.h"
