// What a caller may ask about a verified file.
#define EWM_BUILDING
#include <string.h>

#include "kernel.h"
#include "model.h"

using namespace ewm;

extern "C" uint32_t ewm_abi(void) { return EWM_ABI; }
extern "C" const char* ewm_target(void) { return target_name; }

extern "C" const void* ewm_section(const ewm_model* model, const char* name, uint64_t* bytes) {
  for (uint32_t i = 0; i < model->sections; i++) {
    const Section& s = model->table[i];
    if (strcmp(s.name, name) != 0) continue;
    if (bytes != nullptr) *bytes = s.bytes;
    return model->file + s.offset;
  }
  return nullptr;
}

extern "C" int ewm_describe(const ewm_model* model, ewm_model_info* info) {
  const Sizes& n = *model->sizes;
  ewm_model_info out{};
  out.entries = n.entries;
  out.ports = n.ports;
  out.steps = n.steps;
  out.calls = n.calls;
  out.kernels = kernel_count;
  out.plan_entry = n.plan_entry;
  out.action_port = model->action_port;
  out.arena_bytes = n.arena_bytes;
  out.scratch_bytes = n.scratch_bytes;
  out.weight_bytes = n.weight_bytes;
  out.file_bytes = model->file_bytes;
  out.gpu = model->gpu != nullptr ? model->gpu->sm : 0;
  out.persistent = model->gpu != nullptr && model->gpu->persistent != EWM_NONE;
  return hand_out(info, out);
}

extern "C" int ewm_entry(const ewm_model* model, uint32_t entry, ewm_entry_info* info) {
  if (entry >= model->sizes->entries) return EWM_BAD_ARGUMENT;
  const Entry& e = model->entries[entry];
  ewm_entry_info out{};
  out.ports = e.ports;
  out.first_step = e.first_step;
  out.steps = e.steps;
  memcpy(out.name, e.name, sizeof(out.name));
  return hand_out(info, out);
}

extern "C" uint32_t ewm_entry_port(const ewm_model* model, uint32_t entry, uint32_t nth) {
  if (entry >= model->sizes->entries || nth >= model->entries[entry].ports) return EWM_NONE;
  return model->entry_ports[model->entries[entry].first_port + nth];
}

extern "C" int ewm_port(const ewm_model* model, uint32_t port, ewm_port_info* info) {
  if (port >= model->sizes->ports) return EWM_BAD_ARGUMENT;
  const Port& p = model->ports[port];
  ewm_port_info out{};
  out.kind = p.kind;
  out.dtype = p.dtype;
  out.rank = p.rank;
  memcpy(out.dim, p.dim, sizeof(out.dim));
  out.elements = p.elements;
  out.bytes = port_bytes(p);
  out.low = p.low;
  out.high = p.high;
  out.max_age_ns = p.max_age_ns;
  out.axes = p.axes;
  out.action_block = p.action_block;
  out.commit_steps = p.commit_steps;
  memcpy(out.name, p.name, sizeof(out.name));
  return hand_out(info, out);
}

extern "C" int ewm_step(const ewm_model* model, uint32_t step, ewm_step_info* info) {
  if (step >= model->sizes->steps) return EWM_BAD_ARGUMENT;
  const Step& s = model->steps[step];
  ewm_step_info out{};
  out.kind = s.kind;
  out.first_call = s.first_call;
  out.calls = s.calls;
  out.lanes = s.lanes;
  out.tile = s.tile;
  out.count = s.count;
  out.anytime = s.anytime;
  return hand_out(info, out);
}

extern "C" const char* ewm_call_kernel(const ewm_model* model, uint32_t call) {
  if (call >= model->sizes->calls || model->calls[call].kernel >= kernel_count) return nullptr;
  return kernel_names[model->calls[call].kernel];
}
