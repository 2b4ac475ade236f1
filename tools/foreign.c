/* foreign.c: see foreign.h */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#include "foreign.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#if defined(_WIN32)
#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <io.h>
#include <windows.h>
#else
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

enum { PATH_MOST = 1064 };

/* ---------------------------------------------------------------- files */

#if defined(_WIN32)
static int wide_path(const char *path, wchar_t out[PATH_MOST]) {
  return MultiByteToWideChar(CP_UTF8, 0, path, -1, out, PATH_MOST) > 0;
}
static int kind_of(const char *path) { /* 1 file, 2 folder, 0 neither */
  wchar_t wide[PATH_MOST];
  const DWORD found = wide_path(path, wide) ? GetFileAttributesW(wide) : INVALID_FILE_ATTRIBUTES;
  return found == INVALID_FILE_ATTRIBUTES ? 0 : found & FILE_ATTRIBUTE_DIRECTORY ? 2 : 1;
}
static const char *map_handle(HANDLE file, foreign_bytes *out) { /* NULL or what is wrong */
  LARGE_INTEGER size;
  HANDLE mapping = NULL;
  const char *why = GetFileSizeEx(file, &size) ? NULL : "its size is unknown";
  if (!why && size.QuadPart > 0) {
    const void *bytes = NULL;
    mapping = CreateFileMappingW(file, NULL, PAGE_READONLY, 0, 0, NULL);
    if (mapping) bytes = MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, 0);
    if (mapping) CloseHandle(mapping);
    if (!bytes) why = "cannot map it";
    else out->data = (const unsigned char *)bytes, out->size = (size_t)size.QuadPart;
  }
  return why;
}
static const char *map(const char *path, foreign_bytes *out) {
  wchar_t wide[PATH_MOST];
  HANDLE file = INVALID_HANDLE_VALUE;
  if (wide_path(path, wide))
    file = CreateFileW(wide, GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_DELETE, NULL, OPEN_EXISTING, 0, NULL);
  if (file == INVALID_HANDLE_VALUE) return "cannot open it";
  const char *why = map_handle(file, out);
  CloseHandle(file);
  return why;
}
static FILE *scratch_open(const char *path) { /* D: deleted when it is closed */
  wchar_t wide[PATH_MOST];
  if (wide_path(path, wide) && GetFileAttributesW(wide) == INVALID_FILE_ATTRIBUTES) return _wfopen(wide, L"w+bTD");
  errno = EEXIST;
  return NULL;
}
static const char *scratch_map(FILE *file, foreign_bytes *out) {
  return map_handle((HANDLE)_get_osfhandle(_fileno(file)), out);
}
static long process_id(void) { return (long)GetCurrentProcessId(); }
void foreign_unmap(foreign_bytes *b) {
  if (b->size) UnmapViewOfFile((void *)(uintptr_t)b->data);
  memset(b, 0, sizeof *b);
}
#else
static int kind_of(const char *path) { /* 1 file, 2 folder, 0 neither */
  struct stat info;
  if (stat(path, &info) != 0) return 0;
  return S_ISREG(info.st_mode) ? 1 : S_ISDIR(info.st_mode) ? 2 : 0;
}
static const char *map_handle(int file, foreign_bytes *out) { /* NULL or what is wrong */
  struct stat info;
  const char *why = NULL;
  if (fstat(file, &info) != 0)
    why = strerror(errno);
  else if (!S_ISREG(info.st_mode))
    why = "it is not a regular file";
  else if (info.st_size > 0) {
    void *bytes = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    if (bytes == MAP_FAILED)
      why = strerror(errno);
    else {
      out->data = (const unsigned char *)bytes;
      out->size = (size_t)info.st_size;
    }
  }
  return why;
}
static const char *map(const char *path, foreign_bytes *out) {
  const int file = open(path, O_RDONLY | O_NONBLOCK);
  if (file < 0) return strerror(errno);
  const char *why = map_handle(file, out);
  close(file);
  return why;
}
static FILE *scratch_open(const char *path) {
  const int file = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
  FILE *out = file < 0 ? NULL : fdopen(file, "w+b");
  if (file >= 0) unlink(path); /* what is open stays there until it is closed */
  if (file >= 0 && !out) close(file);
  return out;
}
static const char *scratch_map(FILE *file, foreign_bytes *out) { return map_handle(fileno(file), out); }
static long process_id(void) { return (long)getpid(); }
void foreign_unmap(foreign_bytes *b) {
  if (b->size) munmap((void *)(uintptr_t)b->data, b->size);
  memset(b, 0, sizeof *b);
}
#endif

int foreign_map(mhk_context *ctx, const char *path, foreign_bytes *out) {
  const char *why;
  memset(out, 0, sizeof *out);
  if (mhk_failed(ctx)) return 0;
  out->data = (const unsigned char *)"";
  why = map(path, out);
  if (why) mhk_fail(ctx, MHK_ERROR_FILE, "cannot read %s: %s", path, why);
  return !why;
}

FILE *foreign_scratch(mhk_context *ctx, const char *folder) {
  char path[PATH_MOST], name[40];
  FILE *file = NULL;
  if (mhk_failed(ctx)) return NULL;
  errno = 0;
  for (int i = 0; i < 100 && !file && (i == 0 || errno == EEXIST); i++) {
    snprintf(name, sizeof name, "mohawk-%ld-%d.new", process_id(), i);
    if (!foreign_join(path, sizeof path, folder, name)) break;
    file = scratch_open(path);
  }
  if (!file) mhk_fail(ctx, MHK_ERROR_FILE, "cannot create a file in %s: %s", folder[0] ? folder : ".", strerror(errno));
  return file;
}

int foreign_map_scratch(mhk_context *ctx, FILE *file, foreign_bytes *out) {
  memset(out, 0, sizeof *out);
  const char *why = fflush(file) ? strerror(errno) : scratch_map(file, out);
  if (why) mhk_fail(ctx, MHK_ERROR_FILE, "cannot read a file that was just written: %s", why);
  return !why;
}

int foreign_starts(const char *path, const char *bytes) {
  const size_t n = strlen(bytes);
  foreign_bytes b = {NULL, 0};
  const int found = !map(path, &b) && b.size >= n && memcmp(b.data, bytes, n) == 0;
  foreign_unmap(&b);
  return found;
}

int foreign_is_file(const char *path) { return kind_of(path) == 1; }
int foreign_is_folder(const char *path) { return kind_of(path) == 2; }

int foreign_join(char *out, size_t room, const char *folder, const char *name) {
  const size_t n = strlen(folder);
  const char *slash = n && folder[n - 1] != '/' ? "/" : "";
  if (n + strlen(name) + 2 > room) return 0;
  strcpy(out, folder);
  strcat(out, slash);
  strcat(out, name);
  return 1;
}

void foreign_folder_of(char *out, size_t room, const char *path) {
  size_t n = strlen(path);
#if defined(_WIN32)
  while (n > 0 && !strchr("/\\:", path[n - 1])) n--;
#else
  while (n > 0 && path[n - 1] != '/') n--;
#endif
  if (n >= room) n = 0;
  memcpy(out, path, n);
  out[n] = 0;
}

const char *foreign_printable(const unsigned char *text, size_t length, char out[64]) {
  size_t i, n = length < 60 ? length : 60;
  for (i = 0; i < n; i++) out[i] = (char)(text[i] >= 0x20 && text[i] < 0x7F ? text[i] : '?');
  strcpy(out + n, length > n ? "..." : "");
  return out;
}

/* ---------------------------------------------------------------- JSON */

static void space(foreign_json *j) {
  while (j->at < j->end && strchr(" \t\r\n", *j->at) && *j->at) j->at++;
}

int foreign_json_value(foreign_json *j, foreign_json *value) {
  int depth = 0;
  space(j);
  value->at = j->at;
  while (j->at < j->end) {
    const char c = *j->at, *from = j->at;
    if (c == '"') {
      for (j->at++; j->at < j->end && *j->at != '"'; j->at++)
        if (*j->at == '\\') j->at++;
      if (j->at++ >= j->end) return 0;
    } else if (c && strchr("{[}]", c)) {
      depth += c == '{' || c == '[' ? 1 : -1;
      if (depth < 0) return 0;
      j->at++;
    } else if (depth > 0 && c && strchr(" \t\r\n:,", c))
      j->at++;
    else
      while (j->at < j->end && !strchr(" \t\r\n:,[]{}\"", *j->at)) j->at++;
    if (j->at == from) return 0;
    if (depth == 0) break;
  }
  value->end = j->at;
  return depth == 0 && value->end > value->at;
}

int foreign_json_member(foreign_json *j, foreign_json *key, foreign_json *value) {
  if (!j->at || j->at >= j->end || *j->at == '}') return 0;
  const int first = *j->at++ == '{';
  space(j);
  if (first && j->at < j->end && *j->at == '}') return 0;
  if (foreign_json_value(j, key) && *key->at == '"') {
    space(j);
    if (j->at < j->end && *j->at++ == ':' && foreign_json_value(j, value)) {
      space(j);
      if (j->at < j->end && (*j->at == ',' || *j->at == '}')) return 1;
    }
  }
  j->at = NULL;
  return 0;
}

int foreign_json_find(foreign_json object, const char *name, foreign_json *value) {
  foreign_json key;
  const size_t n = strlen(name);
  if (object.at >= object.end || *object.at != '{') return 0;
  while (foreign_json_member(&object, &key, value))
    if ((size_t)(key.end - key.at) == n + 2 && memcmp(key.at + 1, name, n) == 0) return 1;
  return 0;
}

static int hex4(const char *p, const char *end, unsigned long *out) {
  char digits[5] = {0};
  if (end - p < 4) return 0;
  memcpy(digits, p, 4);
  *out = strtoul(digits, NULL, 16);
  return strspn(digits, "0123456789abcdefABCDEF") == 4;
}

static size_t put_utf8(char *out, unsigned long c) {
  const int more = c < 0x80 ? 0 : c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
  static const unsigned lead[] = {0, 0xC0, 0xE0, 0xF0};
  for (int i = more; i > 0; i--, c >>= 6) out[i] = (char)(0x80 | (c & 0x3F));
  out[0] = (char)(lead[more] | c);
  return (size_t)more + 1;
}

int foreign_json_text(foreign_json string, char *out) {
  static const char escapes[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
  const char *p = string.at, *found;
  unsigned long c, low;
  size_t n = 0;
  if (p >= string.end || *p != '"' || string.end - p < 2) return -1;
  for (p++; p + 1 < string.end; p++) {
    if (*p != '\\') {
      if (!*p) return -1;
      out[n++] = *p;
      continue;
    }
    p++;
    if (*p == 'u' && hex4(p + 1, string.end, &c)) {
      p += 4;
      if (c >= 0xD800 && c < 0xDC00 && string.end - p > 6 && p[1] == '\\' && p[2] == 'u' &&
          hex4(p + 3, string.end, &low) && low >= 0xDC00 && low < 0xE000) {
        c = 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
        p += 6;
      }
      if (c == 0 || (c >= 0xD800 && c < 0xE000)) return -1;
      n += put_utf8(out + n, c);
    } else if (*p && (found = strchr(escapes, *p)) != NULL)
      out[n++] = meant[found - escapes];
    else
      return -1;
  }
  out[n] = 0;
  return (int)n;
}

/* ---------------------------------------------------------------- opening */

/* Is it PyTorch's: an archive, an index of such, or a folder that holds nothing better? Then its
   weights' path goes to file. */
static int is_pytorch(const char *path, char *file, size_t room, int *is_index) {
  static const char names[4][32] = {"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
                                    "pytorch_model.bin.index.json"};
  const size_t n = strlen(path);
  *is_index = 0;
  if (n >= room) return 0;
  if (foreign_is_folder(path)) {
    for (int i = 0; i < 4; i++)
      if (foreign_join(file, room, path, names[i]) && foreign_is_file(file)) {
        *is_index = i == 3;
        return i >= 2;
      }
    return 0;
  }
  strcpy(file, path);
  *is_index = n >= 15 && strcmp(path + n - 15, ".bin.index.json") == 0;
  if (*is_index) return 1;
  return foreign_starts(path, "PK\3\4");
}

mhk_file *foreign_file_open(mhk_context *ctx, const char *path) {
  char file[PATH_MOST];
  int is_index;
  if (mhk_failed(ctx)) return NULL;
  return path && is_pytorch(path, file, sizeof file, &is_index) ? pytorch_open(ctx, file, is_index)
                                                               : mhk_file_open(ctx, path);
}

mhk_tokenizer *foreign_tokenizer_load(mhk_context *ctx, const char *path) {
  char file[PATH_MOST];
  mhk_tokenizer_desc desc;
  foreign_bytes config;
  mhk_tokenizer *k = NULL;
  char *text;
  if (!path || !vocabulary_find(path, file, sizeof file)) return mhk_tokenizer_load(ctx, path);
  text = vocabulary_text(ctx, file, &desc, &config);
  if (text) k = mhk_tokenizer_create(ctx, &desc);
  foreign_unmap(&config);
  free(text);
  return k;
}

mhk_model *foreign_load(mhk_context *ctx, const char *path, const mhk_load_desc *desc) {
  char file[PATH_MOST], folder[PATH_MOST];
  mhk_load_desc d = {0, 0, NULL, NULL};
  mhk_tokenizer_desc tokenizer;
  foreign_bytes config = {NULL, 0};
  char *text = NULL;
  mhk_model *m = NULL;
  int is_index;
  if (desc) d = *desc;
  if (path && !mhk_failed(ctx) && foreign_starts(path, "GGUF"))
    mhk_fail(ctx, MHK_ERROR_UNSUPPORTED,
             "%s is GGUF: `mohawk convert --model %s --out FOLDER` makes it a folder", path, path);
  if (path && !mhk_failed(ctx) && is_pytorch(path, file, sizeof file, &is_index))
    d.weights = pytorch_open(ctx, file, is_index);
  if (path && strlen(path) < sizeof folder) {
    strcpy(folder, path);
    if (!foreign_is_folder(path)) foreign_folder_of(folder, sizeof folder, path);
    if (!mhk_failed(ctx) && vocabulary_find(folder[0] ? folder : ".", file, sizeof file))
      text = vocabulary_text(ctx, file, &tokenizer, &config);
    if (text) d.tokenizer = &tokenizer;
  }
  m = mhk_load_with(ctx, path, &d);
  foreign_unmap(&config);
  free(text);
  return m;
}
