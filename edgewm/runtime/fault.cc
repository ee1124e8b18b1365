#define EWM_BUILDING
#include "fault.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

namespace ewm {

Text::Text(const char* format, ...) {
  va_list rest;
  va_start(rest, format);
  vsnprintf(s, sizeof(s), format, rest);
  va_end(rest);
  for (char* c = s; *c != 0; c++)  // a damaged file's bytes end up on somebody's terminal
    if (static_cast<unsigned char>(*c) < 0x20 || *c == 0x7f) *c = '?';
}

static void copy(char* to, size_t size, const char* from) {
  strncpy(to, from, size - 1);
  to[size - 1] = 0;
}

int refuse(ewm_fault* fault, int error, const Text& where, const Text& found, const Text& expected) {
  if (fault != nullptr && fault->size >= sizeof(ewm_fault)) {
    fault->error = error;
    copy(fault->where, sizeof(fault->where), where.s);
    copy(fault->found, sizeof(fault->found), found.s);
    copy(fault->expected, sizeof(fault->expected), expected.s);
  }
  return error;
}

}  // namespace ewm

extern "C" const char* ewm_strerror(int error) {
  switch (error) {
    case EWM_OK: return "no error";
    case EWM_BAD_ARGUMENT: return "bad argument";
    case EWM_WRONG_SIZE: return "data of the wrong size";
    case EWM_NON_FINITE: return "NaN or infinity in the input";
    case EWM_OUT_OF_RANGE: return "input outside its port's range";
    case EWM_STALE: return "stale observation";
    case EWM_MISSING: return "something it needs was not given";
    case EWM_TOO_EARLY: return "the last chunk has not begun";
    case EWM_NOT_EWM: return "not a model.ewm";
    case EWM_FORMAT_VERSION: return "model.ewm of another format version";
    case EWM_TRUNCATED: return "model.ewm has the wrong length";
    case EWM_CORRUPT: return "model.ewm is damaged";
    case EWM_WRONG_TARGET: return "model.ewm was built for another target";
    case EWM_WRONG_KERNELS: return "model.ewm and libedgewm.so do not belong together";
    case EWM_INVALID: return "model.ewm breaks a rule of its format";
    case EWM_CANNOT_READ: return "cannot read the file";
    case EWM_NO_MEMORY: return "out of memory";
    case EWM_NO_THREADS: return "cannot make threads";
    case EWM_NO_INSTRUCTIONS: return "this processor lacks instructions the model was built for";
    case EWM_NO_GPU: return "no GPU or driver that the model was built for";
    case EWM_GPU_FAILED: return "the GPU failed";
    case EWM_RESULT_NON_FINITE: return "the result has NaN or infinity in it";
  }
  return "unknown error";
}
