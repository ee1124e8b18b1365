// The engine of a library whose calls run on a GPU: an entry is one launch of its graph, and only the wait for its end
// blocks.
#include "cuda.h"

namespace ewm {
namespace {

// Makes the context the calling thread's as long as it lives.
struct Current {
  const Driver& cuda;
  const bool pushed;
  explicit Current(const Device& d) : cuda(d.cuda), pushed(d.cuda.push_context(d.context) == 0) {}
  ~Current() {
    CudaContext popped;
    if (pushed) cuda.pop_context(&popped);
  }
};

Device& device_of(ewm_loop& loop) { return *static_cast<Device*>(loop.device); }

uint64_t functions_bytes(const ewm_model& m) { return aligned(m.gpu->functions * sizeof(CudaFunction)); }

int failed(const Device& d, const char* call, CudaResult error, ewm_fault* fault) {
  return refuse(fault, EWM_GPU_FAILED, "GPU", said(d.cuda, call, error), "success; open the bundle again");
}

int start(const ewm_model& m, Device& d, ewm_fault* fault) {
  if (int bad = find_device(m, d, fault)) return bad;
  if (int bad = load_device(m, d, fault)) return bad;
  if (int bad = check_launches(m, d, fault)) return bad;
  for (uint32_t i = 0; i < m.sizes->entries; i++)
    if (int bad = make_graph(m, d, m.entries[i], 0, d.entries[i], fault)) return bad;
  EWM_CALL(d.cuda, EWM_NO_GPU, "GPU", synchronize);
  return EWM_OK;
}

// Sleeps, or looks again and again where the caller wants no system call.
CudaResult wait(const ewm_loop& loop, const Device& d) {
  if (!loop.options.spin) return d.cuda.wait(d.done);
  CudaResult error;
  while ((error = d.cuda.query(d.done)) == CUDA_NOT_READY) pause();
  return error;
}

// The plan's graph with stamps; without it nothing is measured.
int make_measured(const ewm_model& m, Device& d, ewm_fault* fault) {
  const Entry& plan = m.entries[m.sizes->plan_entry];
  d.stamp_count = stamps_of(m, plan);
  const uint64_t bytes = d.stamp_count * sizeof(uint64_t);
  void* at = nullptr;
  EWM_CALL(d.cuda, EWM_NO_MEMORY, "GPU", allocate_host, &at, bytes, HOST_ALLOC_MAPPED);
  d.stamps_here = static_cast<uint64_t*>(at);
  EWM_CALL(d.cuda, EWM_NO_MEMORY, "GPU", mapped_address, &d.stamps, at, 0);
  if (int bad = make_graph(m, d, plan, d.stamps, d.measured, fault)) return bad;
  EWM_CALL(d.cuda, EWM_NO_GPU, "GPU", synchronize);
  return EWM_OK;
}

}  // namespace

// The device's state, its functions and the graphs of all entries. Threads have nothing to do.
uint64_t engine_bytes(const ewm_model& m, uint32_t) {
  return aligned(sizeof(Device)) + functions_bytes(m) + aligned(m.sizes->entries * sizeof(CudaGraphExec));
}

int start_engine(ewm_loop& loop, uint32_t, char* room, ewm_fault* fault) {
  const ewm_model& m = *loop.model;
  Device& d = *reinterpret_cast<Device*>(room);
  d.functions = reinterpret_cast<CudaFunction*>(room + aligned(sizeof(Device)));
  d.entries = reinterpret_cast<CudaGraphExec*>(room + aligned(sizeof(Device)) + functions_bytes(m));
  loop.device = &d;
  loop.team.threads = 1;
  if (int bad = start(m, d, fault)) {
    leave_device(m, d);
    return bad;
  }
  loop.arena = d.ports;
  CudaContext popped;
  d.cuda.pop_context(&popped);
  return EWM_OK;
}

void end_engine(ewm_loop& loop) {
  Device& d = device_of(loop);
  d.cuda.push_context(d.context);
  leave_device(*loop.model, d);
}

void measure(ewm_loop& loop) {
  const ewm_model& m = *loop.model;
  Device& d = device_of(loop);
  const bool wanted = loop.step_ns != nullptr || loop.call_ns != nullptr;
  if (!wanted || d.stamp_count != 0 || m.sizes->plan_entry == EWM_NONE) return;
  const Current current(d);
  make_measured(m, d, nullptr);
}

int run_entry(ewm_loop& loop, const Entry& entry, uint64_t deadline_ns, ewm_fault* fault) {
  const ewm_model& m = *loop.model;
  Device& d = device_of(loop);
  const uint32_t index = static_cast<uint32_t>(&entry - m.entries);
  const bool wanted = loop.step_ns != nullptr || loop.call_ns != nullptr;
  const bool measured = wanted && d.measured != nullptr && index == m.sizes->plan_entry;
  const Current current(d);
  const uint64_t now = deadline_ns == 0 ? 0 : clock_ns(loop);
  d.pace->budget_ns = deadline_ns == 0 ? ~uint64_t(0) : deadline_ns > now ? deadline_ns - now : 0;
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  const CudaGraphExec graph = measured ? d.measured : d.entries[index];
  if (CudaResult error = d.cuda.launch_graph(graph, d.stream)) return failed(d, "launch_graph", error, fault);
  if (CudaResult error = d.cuda.record(d.done, d.stream)) return failed(d, "record", error, fault);
  if (CudaResult error = wait(loop, d)) return failed(d, "wait", error, fault);
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  loop.job.iterations = d.pace->iterations;
  loop.job.of = d.pace->of;
  if (measured) add_stamps(m, entry, d.stamps_here, loop.step_ns, loop.call_ns);
  return EWM_OK;
}

}  // namespace ewm
