// The engine of a library whose calls run on a GPU: its start, its end, and what it measures (runs: cuda_run.cc).
#include "cuda.h"

namespace ewm {
namespace {

Device& device_of(ewm_loop& loop) { return *static_cast<Device*>(loop.device); }

uint64_t functions_bytes(const ewm_model& m) { return aligned(m.gpu->functions * sizeof(CudaFunction)); }

int start(const ewm_model& m, Device& d, ewm_fault* fault) {
  if (int bad = find_device(m, d, fault)) return bad;
  if (int bad = load_device(m, d, fault)) return bad;
  if (int bad = check_launches(m, d, fault)) return bad;
  const uint32_t plan = m.sizes->plan_entry;
  if (plan != EWM_NONE)  // the others when they are first run
    if (int bad = make_graphs(m, d, m.entries[plan], d.entries[plan], fault)) return bad;
  return EWM_OK;
}

// The plan's graph with stamps; without it nothing is measured.
int make_measured(const ewm_model& m, Device& d, ewm_fault* fault) {
  const Entry& plan = m.entries[m.sizes->plan_entry];
  const uint64_t bytes = stamps_of(m, plan) * sizeof(uint64_t);
  void* at = nullptr;
  EWM_CALL(d.cuda, EWM_NO_MEMORY, "GPU", allocate_host, &at, bytes, HOST_ALLOC_MAPPED);
  d.stamps_here = static_cast<uint64_t*>(at);
  EWM_CALL(d.cuda, EWM_NO_MEMORY, "GPU", mapped_address, &d.stamps, at, 0);
  return make_measured_graph(m, d, plan, d.stamps, d.measured, fault);
}

void forget_measured(Device& d) {
  if (d.measured != nullptr) d.cuda.end_made_graph(d.measured);
  if (d.stamps_here != nullptr) d.cuda.free_host(d.stamps_here);
  d.measured = nullptr;
  d.stamps_here = nullptr;
}

}  // namespace

// The device's state, its functions and the graphs of all entries. Threads have nothing to do.
uint64_t engine_bytes(const ewm_model& m, uint32_t) {
  return aligned(sizeof(Device)) + functions_bytes(m) + aligned(m.sizes->entries * sizeof(EntryGraphs));
}

int start_engine(ewm_loop& loop, uint32_t, char* room, ewm_fault* fault) {
  const ewm_model& m = *loop.model;
  Device& d = *reinterpret_cast<Device*>(room);
  d.functions = reinterpret_cast<CudaFunction*>(room + aligned(sizeof(Device)));
  d.entries = reinterpret_cast<EntryGraphs*>(room + aligned(sizeof(Device)) + functions_bytes(m));
  loop.device = &d;
  loop.team.threads = 1;
  if (int bad = start(m, d, fault)) {
    leave_device(m, d);
    return bad;
  }
  loop.arena = d.ports;
  loop.counts.ptx = d.ptx;
  tell_graphs(loop, d);
  CudaContext popped;
  d.cuda.pop_context(&popped);
  return EWM_OK;
}

void end_engine(ewm_loop& loop) {
  Device& d = device_of(loop);
  d.cuda.push_context(d.context);
  CudaContext popped;
  if (d.hung && d.cuda.query_stream(d.stream) == CUDA_NOT_READY)  // giving back would wait: left to the process's end
    d.cuda.pop_context(&popped);
  else
    leave_device(*loop.model, d);
}

void tell_graphs(ewm_loop& loop, const Device& d) {
  __atomic_store_n(&loop.counts.graph_nodes, d.graph_nodes, __ATOMIC_RELAXED);
  __atomic_store_n(&loop.counts.graph_bytes, d.graph_bytes, __ATOMIC_RELAXED);
  __atomic_store_n(&loop.counts.graph_ns, d.graph_ns, __ATOMIC_RELAXED);
}

int measure(ewm_loop& loop, ewm_fault* fault) {
  const ewm_model& m = *loop.model;
  Device& d = device_of(loop);
  const bool wanted = loop.step_ns != nullptr || loop.call_ns != nullptr;
  if (!wanted || d.measured != nullptr || m.sizes->plan_entry == EWM_NONE) return EWM_OK;
  const Current current(d);
  if (current.error != 0)
    return refuse(fault, EWM_GPU_FAILED, "GPU", said(d.cuda, "push_context", current.error), "success");
  const int bad = make_measured(m, d, fault);
  if (bad != EWM_OK) forget_measured(d);
  tell_graphs(loop, d);
  return bad;
}

}  // namespace ewm
