// The newest value from one thread to another, whole and wait-free on both sides: three slots, of which the writer
// owns one, the reader one, and the third lies between them.
#pragma once
#include <stdint.h>

namespace ewm {

constexpr uint8_t UNREAD = 4;  // beside the index of the slot in between

struct Handoff {
  char* slots;
  uint64_t slot_bytes;
  alignas(64) uint8_t back;  // the writer's
  alignas(64) uint8_t between;
  alignas(64) uint8_t front;  // the reader's
};

inline void start(Handoff& h, char* slots, uint64_t slot_bytes) {
  h.slots = slots;
  h.slot_bytes = slot_bytes;
  h.back = 0;
  h.between = 1;
  h.front = 2;
}
// Where the writer puts its next value; `publish` hands it over.
inline char* writable(Handoff& h) { return h.slots + h.back * h.slot_bytes; }
inline void publish(Handoff& h) {
  h.back = __atomic_exchange_n(&h.between, static_cast<uint8_t>(h.back | UNREAD), __ATOMIC_ACQ_REL) & 3;
}
// Whether there is a value that the reader has not taken.
inline bool unread(const Handoff& h) { return __atomic_load_n(&h.between, __ATOMIC_ACQUIRE) & UNREAD; }
// The newest value; it stays valid and unchanged until the next call.
inline char* newest(Handoff& h) {
  if (__atomic_load_n(&h.between, __ATOMIC_RELAXED) & UNREAD)
    h.front = __atomic_exchange_n(&h.between, h.front, __ATOMIC_ACQ_REL) & 3;
  return h.slots + h.front * h.slot_bytes;
}

}  // namespace ewm
