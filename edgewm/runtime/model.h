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
  // Of a file for a GPU:
  const ewm::Gpu* gpu;
  const ewm::Function* functions;
  const ewm::GpuLaunch* launches;
  const char *cubin, *ptx;  // nullptr: no PTX
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
// A whole section as `count` rows of that many bytes; refused where it has another length, or is not there.
int view_rows(const ewm_model& model, const char* name, uint64_t count, uint64_t row_bytes, const void*& rows,
              ewm_fault* fault);
template <class T>
int view(const ewm_model& model, const char* name, uint64_t count, const T*& rows, ewm_fault* fault) {
  const void* data = nullptr;
  int bad = view_rows(model, name, count, sizeof(T), data, fault);
  rows = static_cast<const T*>(data);
  return bad;
}
// 1 to size - 1 characters, of those that `allowed` takes, then zeros.
template <class F>
bool good_text(const char* name, uint32_t size, F allowed) {
  uint32_t n = 0;
  while (n < size && allowed(name[n])) n++;
  if (n == 0 || n == size) return false;
  for (uint32_t i = n; i < size; i++)
    if (name[i] != 0) return false;
  return true;
}

// ---- by what runs the calls (engine.h)

// Sections that its kernels trust beside the program's own, and their rules.
extern const char* const engine_sections[];
extern const uint32_t engine_section_count;
int verify_engine(ewm_model& model, ewm_fault* fault);
// Of a file for a GPU: where the launches of a call begin, or those of the next call that has some.
const GpuLaunch* first_launch(const ewm_model& model, uint32_t call);

}  // namespace ewm
