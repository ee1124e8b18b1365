// What callers run and fetch, whatever computes it.
#define EWM_BUILDING
#include <string.h>

#include "gate.h"
#include "loop.h"

namespace ewm {
namespace {

bool given(const ewm_buffer* buffers, uint32_t count, uint32_t port) {
  for (uint32_t i = 0; i < count; i++)
    if (buffers[i].port == port) return true;
  return false;
}

int check_buffer(const ewm_model& m, const Entry& entry, const ewm_buffer& b, bool is_input, ewm_fault* fault) {
  bool of_entry = false;
  for (uint32_t k = 0; k < entry.ports; k++) of_entry = of_entry || m.entry_ports[entry.first_port + k] == b.port;
  if (!of_entry || input(m.ports[b.port]) != is_input)
    return refuse(fault, EWM_BAD_ARGUMENT, Text("entry %s", entry.name), Text("port %u", b.port),
                  is_input ? "an input of this entry" : "an output of this entry");
  const Port& p = m.ports[b.port];
  if (b.data == nullptr || b.bytes != port_bytes(p))
    return refuse(fault, EWM_WRONG_SIZE, Text("port %s", p.name), Text("%llu bytes", (unsigned long long)b.bytes),
                  Text("%llu bytes", (unsigned long long)port_bytes(p)));
  return EWM_OK;
}

}  // namespace

uint64_t clock_ns(const ewm_loop& loop) {
  return loop.options.clock != nullptr ? loop.options.clock(loop.options.clock_state) : monotonic_ns();
}

uint32_t non_finite_output(const ewm_loop& loop, const Entry& entry) {
  for (uint32_t k = 0; k < entry.ports; k++) {
    uint32_t index = loop.model->entry_ports[entry.first_port + k];
    const Port& p = loop.model->ports[index];
    if (!input(p) && p.dtype == F32 && first_non_finite(loop.arena + p.offset, p.elements) < p.elements) return index;
  }
  return EWM_NONE;
}

}  // namespace ewm

using namespace ewm;

extern "C" int ewm_run_entry(ewm_loop* loop, uint32_t entry, const ewm_buffer* inputs, uint32_t input_count,
                             const ewm_buffer* outputs, uint32_t output_count, ewm_fault* fault) {
  const ewm_model& m = *loop->model;
  if (entry >= m.sizes->entries)
    return refuse(fault, EWM_BAD_ARGUMENT, "ewm_run_entry", Text("entry %u", entry),
                  Text("below %u", m.sizes->entries));
  const Entry& e = m.entries[entry];
  for (uint32_t i = 0; i < input_count; i++)
    if (int bad = check_buffer(m, e, inputs[i], true, fault)) return bad;
  for (uint32_t i = 0; i < output_count; i++)
    if (int bad = check_buffer(m, e, outputs[i], false, fault)) return bad;
  for (uint32_t k = 0; k < e.ports; k++) {
    uint32_t port = m.entry_ports[e.first_port + k];
    if (input(m.ports[port]) && !given(inputs, input_count, port))
      return refuse(fault, EWM_MISSING, Text("entry %s", e.name), Text("no port %s", m.ports[port].name),
                    "every input");
  }
  for (uint32_t i = 0; i < input_count; i++)
    memcpy(loop->arena + m.ports[inputs[i].port].offset, inputs[i].data, inputs[i].bytes);
  if (int bad = run_entry(*loop, e, 0, fault)) return bad;
  for (uint32_t i = 0; i < output_count; i++)
    memcpy(outputs[i].data, loop->arena + m.ports[outputs[i].port].offset, outputs[i].bytes);
  return EWM_OK;
}

extern "C" int ewm_profile(ewm_loop* loop, uint64_t* step_ns, uint64_t* call_ns, ewm_fault* fault) {
  loop->step_ns = step_ns;
  loop->call_ns = call_ns;
  return measure(*loop, fault);
}
