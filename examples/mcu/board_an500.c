/* board_an500.c: startup, output and memory of the Arm MPS2 with AN500, emulated by
   qemu-system-arm -M mps2-an500 -semihosting. */
#include "board.h"
#include <stdint.h>

/* defined in an500.ld */
extern uint32_t data_start[], data_end[], data_in_flash[], bss_start[], bss_end[], stack_top[];
extern char flash_end[];

int main(void);
void reset(void);

#define UNTOUCHED 0xA5A5A5A5u /* fills the stack, to measure its use */

/* Arm semihosting: services of the debugger */
enum { SYS_WRITE0 = 4, SYS_EXIT_EXTENDED = 0x20 };
static void semihost(uint32_t service, const void *argument) {
  register uint32_t r0 __asm__("r0") = service;
  register const void *r1 __asm__("r1") = argument;
  __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
}

void board_write(const char *text) { semihost(SYS_WRITE0, text); }

static void leave(uint32_t code) {
  const uint32_t why[2] = {0x20026, code}; /* ADP_Stopped_ApplicationExit */
  semihost(SYS_EXIT_EXTENDED, why);
  for (;;) {
  }
}

static void fault(void) {
  board_write("fault\n");
  leave(2);
}

void reset(void) {
  uint32_t *p;
  const uint32_t *from = data_in_flash;
  *(volatile uint32_t *)0xE000ED88 |= 0xFu << 20; /* CPACR: enable the floating-point unit */
  __asm__ volatile("dsb\n\tisb" ::: "memory");
  for (p = data_start; p < data_end; p++) *p = *from++;
  for (p = bss_start; p < bss_end; p++) *p = 0;
  for (p = bss_end; p < (uint32_t *)__builtin_frame_address(0) - 64; p++) *p = UNTOUCHED;
  leave((uint32_t)main());
}

/* the first sixteen exceptions; interrupts stay disabled */
__attribute__((section(".vectors"), used)) static const struct {
  void *stack;
  void (*handlers[15])(void);
} vectors = {stack_top, {reset, fault, fault, fault, fault, fault, 0, 0, 0, 0, fault, fault, 0, fault, fault}};

static void line(void (*write_number)(size_t), const char *what, size_t bytes) {
  board_write(what);
  write_number(bytes);
  board_write(" bytes\n");
}

void board_report(void (*write_number)(size_t), size_t used, size_t session) {
  const uint32_t *p = bss_end;
  while (p < stack_top && *p == UNTOUCHED) p++;
  line(write_number, "flash         ", (size_t)(flash_end - (char *)0));
  line(write_number, "  weights     ", model_file_bytes);
  line(write_number, "static memory ", (size_t)((char *)bss_end - (char *)data_start));
  line(write_number, "  in use      ", used);
  line(write_number, "  session     ", session);
  line(write_number, "stack         ", (size_t)((char *)stack_top - (const char *)p));
}
