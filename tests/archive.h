/* Zip archives as torch.save lays them out, for tests. */
#ifndef TEST_ARCHIVE_H
#define TEST_ARCHIVE_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct part {
  const char *name;
  const void *data;
  size_t n;
} part;

static unsigned char made[1 << 20];
static size_t made_n, directory; /* where the directory starts */

static inline void put(const void *data, size_t n) {
  if (made_n + n > sizeof made) abort();
  if (n) memcpy(made + made_n, data, n);
  made_n += n;
}
static inline void number(uint64_t x, int bytes) {
  unsigned char b;
  while (bytes-- > 0) b = (unsigned char)(x & 255), put(&b, 1), x >>= 8;
}
static inline uint32_t crc(const unsigned char *p, size_t n) {
  uint32_t c = ~(uint32_t)0;
  int k;
  while (n--)
    for (c ^= *p++, k = 0; k < 8; k++) c = c & 1 ? (c >> 1) ^ 0xEDB88320u : c >> 1;
  return ~c;
}

/* wide: all sizes in zip64 fields */
static inline void archive(int n, const part *parts, int wide) {
  size_t at[16];
  int i;
  made_n = 0;
  for (i = 0; i < n; i++) {
    at[i] = made_n;
    number(0x04034B50u, 4), number(0, 2), number(0x0808, 2), number(0, 2), number(0, 4);
    number(0, 4), number(0, 4), number(0, 4); /* known only behind the data */
    number(strlen(parts[i].name), 2), number(5, 2);
    put(parts[i].name, strlen(parts[i].name));
    put("FB\1\0Z", 5); /* padding, as torch.save does it */
    put(parts[i].data, parts[i].n);
    number(0x08074B50u, 4), number(crc((const unsigned char *)parts[i].data, parts[i].n), 4), number(parts[i].n, 4),
        number(parts[i].n, 4);
  }
  directory = made_n;
  for (i = 0; i < n; i++) {
    const uint64_t size = wide ? 0xFFFFFFFFu : parts[i].n;
    number(0x02014B50u, 4), number(0, 4), number(0x0808, 2), number(0, 2), number(0, 4);
    number(crc((const unsigned char *)parts[i].data, parts[i].n), 4), number(size, 4), number(size, 4);
    number(strlen(parts[i].name), 2), number(wide ? 33 : 0, 2), number(0, 2), number(0, 8),
        number(wide ? 0xFFFFFFFFu : at[i], 4);
    put(parts[i].name, strlen(parts[i].name));
    if (wide)
      put("XY\1\0Z", 5), number(1, 2), number(24, 2), number(parts[i].n, 8), number(parts[i].n, 8), number(at[i], 8);
  }
  if (wide) {
    const size_t end = made_n;
    number(0x06064B50u, 4), number(44, 8), number(0, 4), number(0, 8), number((uint64_t)n, 8), number((uint64_t)n, 8);
    number(end - directory, 8), number(directory, 8);
    number(0x07064B50u, 4), number(0, 4), number(end, 8), number(1, 4);
    number(0x06054B50u, 4), number(0, 4), number(0xFFFF, 2), number(0xFFFF, 2), number(0xFFFFFFFFu, 4),
        number(0xFFFFFFFFu, 4), number(0, 2);
  } else {
    const size_t end = made_n;
    number(0x06054B50u, 4), number(0, 4), number((uint64_t)n, 2), number((uint64_t)n, 2), number(end - directory, 4),
        number(directory, 4), number(0, 2);
  }
}
#endif