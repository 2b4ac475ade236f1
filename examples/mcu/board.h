/* board.h: what the program needs of the machine it runs on. */
#ifndef BOARD_H
#define BOARD_H
#include <stddef.h>

#ifndef MCU_MEMORY
#define MCU_MEMORY (sizeof(void *) * 168 * 1024) /* bytes for everything but weights and stack */
#endif
#ifndef TOKENS
#define TOKENS 40
#endif

extern const unsigned char model_file[]; /* a model in one safetensors file, made into an array by array.c */
extern const size_t model_file_bytes;

void board_write(const char *text);
/* says what memory the program takes; used: bytes of its array that were ever in use; session:
   those of the session */
void board_report(void (*write_number)(size_t), size_t used, size_t session);
#endif
