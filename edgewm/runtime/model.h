// A verified file: what `ewm_open` made sure of and everything after relies on.
#pragma once
#include "edgewm.h"
#include "fault.h"
#include "format.h"

struct ewm_model {
  const char* file;  // private copy, read-only, 64-byte aligned
  uint64_t file_bytes;
  const ewm::Section* table;
  uint32_t sections;
  const ewm::Sizes* sizes;
  const ewm::Port* ports;
  const ewm::Entry* entries;
  const uint32_t* entry_ports;
  uint32_t entry_port_count;
  const ewm::Step* steps;
  const ewm::Call* calls;
  const ewm::Operand* operands;
  const char* weights;
  uint32_t action_port;  // of the plan; EWM_NONE without one
};

namespace ewm {

constexpr uint64_t MAX_BYTES = uint64_t(1) << 40;  // of an arena: sums of sizes cannot wrap below it
constexpr uint32_t MAX_NESTING = 8;                // of REPEAT in REPEAT

inline bool input(const Port& p) { return p.kind != ACTION && p.kind != RESULT; }
uint64_t port_bytes(const Port& p);

// The tables of a file whose digests hold; fills `action_port`.
int verify(ewm_model& model, ewm_fault* fault);
// Whether this processor has what the kernels were compiled for.
int verify_processor(ewm_fault* fault);

}  // namespace ewm
