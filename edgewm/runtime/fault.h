// Refusals: an error with where, what was found and what was expected.
#pragma once
#include "edgewm.h"

namespace ewm {

struct Text {
  char s[128];
  Text(const char* format, ...) __attribute__((format(printf, 2, 3)));
};

// Fills `fault` where the caller gave one; returns `error`.
int refuse(ewm_fault* fault, int error, const Text& where, const Text& found, const Text& expected);

// Copies a struct out to a caller that may know a shorter one: its `size`, set before the call, rules.
template <class T>
int hand_out(T* to, T& from) {
  if (to == nullptr || to->size < sizeof(uint32_t)) return EWM_BAD_ARGUMENT;
  uint32_t size = to->size < sizeof(T) ? to->size : static_cast<uint32_t>(sizeof(T));
  from.size = size;
  __builtin_memcpy(to, &from, size);
  return EWM_OK;
}

}  // namespace ewm
