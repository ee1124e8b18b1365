// Whether two threads use the same byte, one of them writing, with nothing between that orders them.
//
// Each byte of shared memory and of watched global memory remembers who wrote and who read it last, and when: the number
// of the barrier interval of that thread's block (never used twice), of its warp's, and of the grid's. Accesses of one
// thread, of one warp or block in different intervals, or before and after a grid barrier or a launch are ordered.
#pragma once
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

namespace ewm {

constexpr uint32_t SHARED_BYTES = 160 << 10;

namespace race {

struct Access {
  uint32_t thread, block, threads;  // of the launch; of a block
};
Access now();  // who asks
void report(const char* what, const void* at, uint32_t other);

struct Mark {
  uint32_t writer, write_epoch, write_warp, write_grid;
  uint32_t reader, read_epoch, read_warp, read_grid;
  uint32_t far_reader, far_grid;  // the last one of another block than `reader`
  bool in_flight;
  bool lanes, warps;  // `reader` is not the only one of its warp in its interval; nor of its block's warps
};

struct Range {
  const char* at;
  uint64_t bytes;
  bool forbidden;
  Mark* marks;
};

inline Range ranges[16];
inline uint32_t range_count, epochs, grid;
inline uint32_t epoch_of[1 << 13];
inline uint32_t warp_epoch_of_lane[1 << 13];  // by fiber
inline Range shared_of[1 << 13];
inline bool inside;  // a kernel is running
inline uint32_t current;

inline void next_epoch(uint32_t block) { epoch_of[block] = ++epochs; }
inline void next_warp_epoch(uint32_t warp, uint32_t lane) { warp_epoch_of_lane[warp * 32 + lane]++; }
inline void next_grid() { grid++; }
inline void enter(uint32_t block) { current = block, inside = true; }
inline void leave() { inside = false; }
inline void begin_block(uint32_t block, char* shared, uint32_t bytes) {
  next_epoch(block);
  Range& r = shared_of[block];
  if (!r.marks) r.marks = static_cast<Mark*>(calloc(SHARED_BYTES, sizeof(Mark)));
  memset(r.marks, 0, size_t(bytes) * sizeof(Mark));
  r.at = shared, r.bytes = bytes;
}
inline void watch(const void* at, uint64_t bytes, bool forbidden) {
  if (!bytes) {
    for (uint32_t i = 0; i < range_count; i++) free(ranges[i].marks);
    range_count = 0;
    return;
  }
  if (range_count == 16) abort();
  Mark* marks = forbidden ? nullptr : static_cast<Mark*>(calloc(bytes, sizeof(Mark)));
  ranges[range_count++] = Range{static_cast<const char*>(at), bytes, forbidden, marks};
}
inline int64_t offset_of(const void* at) {
  for (uint32_t i = 0; i < range_count; i++)
    if (at >= ranges[i].at && at < ranges[i].at + ranges[i].bytes) return static_cast<const char*>(at) - ranges[i].at;
  return -1;
}

inline Mark* mark_of(const char* at, bool* known_outside) {
  const Range& own = shared_of[current];
  const uint64_t in_shared = static_cast<uint64_t>(at - own.at);
  if (in_shared < SHARED_BYTES) {
    if (in_shared < own.bytes) return own.marks + in_shared;
    *known_outside = true;
    return nullptr;
  }
  for (uint32_t i = 0; i < range_count; i++)
    if (static_cast<uint64_t>(at - ranges[i].at) < ranges[i].bytes) {
      if (!ranges[i].forbidden) return ranges[i].marks + (at - ranges[i].at);
      *known_outside = true;
      return nullptr;
    }
  return nullptr;
}

// Whether what `other` did in that interval comes before what `who` does.
inline bool ordered(const Access& who, uint32_t other, uint32_t epoch, uint32_t warp_epoch, uint32_t at_grid) {
  if (other == who.thread + 1 || at_grid != grid) return true;
  if ((other - 1) / 32 == who.thread / 32 && warp_epoch != warp_epoch_of_lane[who.thread]) return true;
  return (other - 1) / who.threads == who.block && epoch != epoch_of[who.block];
}

template <bool writes> inline void access(const void* address, uint32_t bytes, bool begins_copy = false) {
  if (!inside) return;
  const Access who = now();
  const uint32_t me = who.thread + 1, epoch = epoch_of[who.block], warp_epoch = warp_epoch_of_lane[who.thread];
  for (uint32_t i = 0; i < bytes; i++) {
    const char* at = static_cast<const char*>(address) + i;
    bool outside = false;
    Mark* m = mark_of(at, &outside);
    if (outside) return report("memory that is not the kernel's is used", at, who.thread);
    if (!m) return;
    if (m->in_flight) return report("a copy on its way is used", at, m->writer - 1);
    if (m->writer && !ordered(who, m->writer, m->write_epoch, m->write_warp, m->write_grid))
      return report(writes ? "written twice" : "read while it is written", at, m->writer - 1);
    const bool read_now = m->reader && m->read_grid == grid;
    const bool same_block = read_now && (m->reader - 1) / who.threads == who.block && m->read_epoch == epoch;
    const bool same_warp = same_block && (m->reader - 1) / 32 == who.thread / 32;
    if (writes) {
      if (m->far_reader && m->far_grid == grid && (m->far_reader - 1) / who.threads != who.block)
        return report("written while it is read", at, m->far_reader - 1);
      if (read_now && !ordered(who, m->reader, m->read_epoch, m->read_warp, m->read_grid))
        return report("written while it is read", at, m->reader - 1);
      if ((same_block && m->warps) || (same_warp && m->lanes && m->read_warp == warp_epoch))
        return report("written while it is read", at, m->reader - 1);
      m->writer = me, m->write_epoch = epoch, m->write_warp = warp_epoch, m->write_grid = grid;
      m->in_flight = begins_copy;
    } else {
      if (read_now && (m->reader - 1) / who.threads != who.block) m->far_reader = m->reader, m->far_grid = grid;
      m->warps = same_block && (m->warps || !same_warp);
      m->lanes = same_warp && m->read_warp == warp_epoch && (m->lanes || m->reader != me);
      m->reader = me, m->read_epoch = epoch, m->read_warp = warp_epoch, m->read_grid = grid;
    }
  }
}

inline void copy_begins(const char* to, const char* from) {
  access<false>(from, 16);
  access<true>(to, 16, true);
}
inline Mark arrived(Mark m, const Access& who) {
  m.in_flight = false;
  m.write_epoch = epoch_of[who.block], m.write_warp = warp_epoch_of_lane[who.thread], m.write_grid = grid;
  return m;
}
inline void copy_ends(const char* to) {
  const Access who = now();
  for (uint32_t i = 0; i < 16; i++) {
    bool outside = false;
    Mark* m = mark_of(to + i, &outside);
    if (m) *m = arrived(*m, who);
  }
}

}  // namespace race
}  // namespace ewm

#define EWM_WATCHED(bytes)                                                                                           \
  extern "C" void __sanitizer_cov_load##bytes(const void* at) { ewm::race::access<false>(at, bytes); }                \
  extern "C" void __sanitizer_cov_store##bytes(const void* at) { ewm::race::access<true>(at, bytes); }
EWM_WATCHED(1)
EWM_WATCHED(2)
EWM_WATCHED(4)
EWM_WATCHED(8)
EWM_WATCHED(16)
