// What a kernel sees: its call, its operands, where the spaces lie, and one tile of lanes.
#pragma once
#include "format.h"

namespace ewm {

struct Frame {
  char* base[3];  // by Space; SCRATCH is this thread's own
};

struct Tile {
  uint32_t lane0;  // first lane of the tile
  uint32_t lanes;  // lanes of the tile (the region's `tile`, a multiple of 16)
  uint32_t valid;  // how many of them are real: min(lanes, call.lanes - lane0)
};

using Kernel = void (*)(const Call& call, const Operand* operands, const Frame& frame, Tile tile);

constexpr uint32_t SIZE[] = {4, 4, 4, 1, 1, 2};  // bytes, by DType

// One operand at the current outer index, lane 0 of the tile; strides in bytes.
struct View {
  char* at;
  int64_t step;  // along the call's innermost loop
  int64_t lane;  // from lane to lane
};

inline char* start(const Operand& o, const Frame& f, Tile t) {
  int64_t lane = o.space == SCRATCH ? 0 : static_cast<int64_t>(t.lane0) * o.lane_stride;
  return f.base[o.space] + o.offset + lane * SIZE[o.dtype];
}

// Generated for each bundle beside the functors: the table and its identity.
extern const Kernel kernels[];
extern const char* const kernel_names[];
extern const uint32_t kernel_count;
extern const uint8_t kernels_sha256[32];
// Of the sections whose dims, strides and offsets the kernels trust (format.py: program_sha256). A file whose digests
// all hold, but which is another program, is refused with it.
extern const uint8_t program_sha256[32];
extern const char target_name[32];

}  // namespace ewm
