// Many launches as one, for programs whose kernels take less time than it takes to launch them: blocks that are all
// resident run the launches' blocks in turn, and wait for each other after each launch.
#pragma once
#include "lanes_cuda.h"

namespace ewm {

// run_function(function, call, operands, frame, block) is generated for each bundle.
template <class RunFunction> inline void run_rows(const Persistent& l, RunFunction run_function) {
  const Frame frame{{l.launch.base[0], l.launch.base[1], l.launch.base[2]}};
  const uint32_t end = l.first + l.count;
  GpuLaunch row = l.rows[l.first];
  for (uint32_t i = l.first; i < end;) {
    const Call& c = l.launch.calls[row.call];
    for (uint32_t block = block_index(); block < row.blocks; block += block_count()) {
      run_function(row.function, c, l.launch.operands + c.first_operand, frame, block);
      block_sync();  // shared memory is used again
    }
    if (++i == end) return;
    row = l.rows[i];  // there when the others are
    grid_sync(l.barrier);
  }
}

}  // namespace ewm
