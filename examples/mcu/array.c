/* array.c: a file as a constant array in C.   array FILE >file.c */
#include <stdio.h>

int main(int argc, char **argv) {
  FILE *f = argc == 2 ? fopen(argv[1], "rb") : NULL;
  unsigned long n = 0;
  int c;
  if (!f) {
    fprintf(stderr, "array: %s\n", argc == 2 ? "cannot read the file" : "usage: array FILE");
    return 1;
  }
  /* aligned like the tensors in the file, so that the header can use them in place */
  printf("#include \"board.h\"\n\n__attribute__((aligned(64))) const unsigned char model_file[] = {");
  for (; (c = getc(f)) != EOF; n++) printf("%s%d,", n % 32 ? "" : "\n", c);
  printf("\n};\nconst size_t model_file_bytes = %lu;\n", n);
  fclose(f);
  return 0;
}
