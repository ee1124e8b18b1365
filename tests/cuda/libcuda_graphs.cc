// libcuda.so.1 of the tests, answered by `standin.h`: streams, what is captured from them, graphs and events.
#include "standin.h"

using namespace standin;

namespace {

Handle* capturing(const void* stream, const char* name) {
  Handle* h = checked(stream, STREAM, name);
  if (h == nullptr) return nullptr;
  if (!h->capturing) {
    fault("%s: outside of a capture", name);
    return nullptr;
  }
  if (h->capturing_thread != uint64_t(pthread_self())) fault("%s: captured by another thread", name);
  return h;
}

int add_copy(void* stream, void* to, const void* from, uint64_t bytes, const char* name) {
  Handle* h = capturing(stream, name);
  if (h == nullptr) return INVALID_VALUE;
  Node n{};
  n.kind = COPY;
  n.to = static_cast<char*>(to), n.from = static_cast<char*>(const_cast<void*>(from)), n.bytes = bytes;
  h->nodes.add(n);
  return SUCCESS;
}

int add_launch(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
               unsigned shared, void* stream, void** parameters, bool cooperative, const char* name) {
  Handle *f = checked(function, FUNCTION, name), *h = capturing(stream, name);
  if (f == nullptr || h == nullptr) return INVALID_HANDLE;
  if (!f->module->live) fault("%s: %s of a module that was unloaded", name, f->name);
  if (gx < 1 || gy != 1 || gz != 1 || gx > 0x7fffffff || bx < 1 || bx > 1024 || by != 1 || bz != 1) {
    fault("%s: %s in %u x %u x %u blocks of %u x %u x %u", name, f->name, gx, gy, gz, bx, by, bz);
    return INVALID_VALUE;
  }
  if (int(shared) > f->dynamic_shared || int(shared) > world.machine.shared) {
    fault("%s: %s with %u bytes of shared memory, allowed %d", name, f->name, shared, f->dynamic_shared);
    return INVALID_VALUE;
  }
  if (cooperative && gx > unsigned(world.machine.resident * world.machine.processors)) return COOPERATIVE_TOO_LARGE;
  const bool stamp = strcmp(f->name, "ewm_stamp") == 0;
  if (stamp && (gx != 1 || bx != 1)) fault("%s: %s in %u blocks of %u", name, f->name, gx, bx);
  if (!stamp && bx % 32 != 0) fault("%s: %s in blocks of %u", name, f->name, bx);
  Node n{};
  n.kind = KERNEL;
  n.function = f, n.grid = gx, n.block = bx, n.shared = shared, n.cooperative = cooperative;
  const bool persistent = strcmp(f->name, "ewm_persistent") == 0;
  if (persistent && !cooperative) fault("%s: its blocks wait for each other", f->name);
  const size_t bytes = stamp        ? sizeof(ewm::Stamp)
                       : persistent ? sizeof(ewm::Persistent)
                                    : sizeof(ewm::Launch);
  memcpy(n.parameter, parameters[0], bytes);
  h->nodes.add(n);
  return SUCCESS;
}

}  // namespace

API cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
  ENTER(1, 1);
  void* there = reinterpret_cast<void*>(to);
  if (!on_device(there, bytes, __func__) || !on_host(from, bytes, __func__)) return INVALID_VALUE;
  return add_copy(stream, there, from, bytes, __func__);
}
API cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
  ENTER(1, 1);
  void* there = reinterpret_cast<void*>(from);
  if (!on_host(to, bytes, __func__) || !on_device(there, bytes, __func__)) return INVALID_VALUE;
  return add_copy(stream, to, there, bytes, __func__);
}
API cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* stream) {
  ENTER(1, 1);
  void *a = reinterpret_cast<void*>(to), *b = reinterpret_cast<void*>(from);
  if (!on_device(a, bytes, __func__) || !on_device(b, bytes, __func__)) return INVALID_VALUE;
  return add_copy(stream, a, b, bytes, __func__);
}
API cuMemsetD32Async(uint64_t at, unsigned value, size_t words, void* stream) {
  ENTER(1, 1);
  Handle* h = checked(stream, STREAM, __func__);
  if (h == nullptr || at % 4 != 0 || !on_device(reinterpret_cast<void*>(at), 4 * words, __func__)) return INVALID_VALUE;
  Node n{};
  n.kind = FILL;
  n.to = reinterpret_cast<char*>(at), n.bytes = 4 * words, n.value = value;
  if (h->capturing) h->nodes.add(n);
  else h->pending.add(Work{nullptr, nullptr, n});
  return SUCCESS;
}

API cuStreamCreate(void** stream, unsigned flags) {
  ENTER(1, 0);
  if (flags != 1) fault("cuStreamCreate: it would wait for other streams");
  *stream = make(STREAM, "");
  return SUCCESS;
}
API cuStreamDestroy_v2(void* stream) {
  ENTER(1, 0);
  return end(stream, STREAM, __func__);
}
API cuStreamBeginCapture_v2(void* stream, int mode) {
  ENTER(1, 0);
  Handle* h = checked(stream, STREAM, __func__);
  if (h == nullptr || mode < 0 || mode > 2) return INVALID_VALUE;
  if (h->pending.count != 0) fault("cuStreamBeginCapture_v2: work is still under way");
  h->capturing = true;
  h->capturing_thread = uint64_t(pthread_self());
  h->nodes = List<Node>{};
  return SUCCESS;
}
API cuStreamEndCapture(void* stream, void** graph) {
  int refused = enter(__func__, 1, 1);
  Handle* h = checked(stream, STREAM, __func__);
  *graph = nullptr;
  if (h == nullptr || !h->capturing) return INVALID_VALUE;
  h->capturing = false;
  if (refused) return refused;
  Handle* made = make(GRAPH, "");
  made->nodes = h->nodes;
  *graph = made;
  return SUCCESS;
}
API cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void* stream, void** parameters, void** extra) {
  ENTER(1, 1);
  if (extra != nullptr || parameters == nullptr) return INVALID_VALUE;
  return add_launch(function, gx, gy, gz, bx, by, bz, shared, stream, parameters, false, __func__);
}
API cuLaunchCooperativeKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                              unsigned bz, unsigned shared, void* stream, void** parameters) {
  ENTER(1, 1);
  return add_launch(function, gx, gy, gz, bx, by, bz, shared, stream, parameters, true, __func__);
}
API cuGraphInstantiateWithFlags(void** made, void* graph, unsigned long long) {
  ENTER(1, 0);
  Handle* g = checked(graph, GRAPH, __func__);
  if (g == nullptr) return INVALID_HANDLE;
  const uint64_t bytes = g->nodes.count * world.machine.node_bytes;
  if (world.held + bytes > world.machine.memory) return OUT_OF_MEMORY;
  Handle* h = make(EXEC, "");
  h->nodes = g->nodes;
  world.held += h->bytes = bytes;
  *made = h;
  return SUCCESS;
}
#if !defined(STANDIN_WITHOUT_UPLOAD)
API cuGraphUpload(void* graph, void* stream) {
  ENTER(1, 0);
  return checked(graph, EXEC, __func__) && checked(stream, STREAM, __func__) ? SUCCESS : INVALID_HANDLE;
}
#endif
API cuGraphLaunch(void* graph, void* stream) {
  ENTER(1, 0);
  Handle *g = checked(graph, EXEC, __func__), *s = checked(stream, STREAM, __func__);
  if (g == nullptr || s == nullptr) return INVALID_HANDLE;
  s->pending.add(Work{g, nullptr, {}});
  world.clock_ns += world.machine.launch_ns;
  uint64_t waiting = 0;
  for (uint32_t i = 0; i < s->pending.count; i++) waiting += s->pending.at[i].exec != nullptr;
  if (waiting > world.most_waiting) world.most_waiting = waiting;
  return SUCCESS;
}
API cuGraphDestroy(void* graph) {
  ENTER(1, 0);
  return end(graph, GRAPH, __func__);
}
API cuGraphExecDestroy(void* graph) {
  ENTER(1, 0);
  const Handle* g = checked(graph, EXEC, __func__);
  if (g != nullptr) world.held -= g->bytes;
  return end(graph, EXEC, __func__);
}
API cuEventCreate(void** event, unsigned flags) {
  ENTER(1, 0);
  Handle* h = make(EVENT, "");
  h->flags = flags;
  *event = h;
  return SUCCESS;
}
API cuEventDestroy_v2(void* event) {
  ENTER(1, 0);
  return end(event, EVENT, __func__);
}
API cuEventRecord(void* event, void* stream) {
  ENTER(1, 0);
  Handle *e = checked(event, EVENT, __func__), *s = checked(stream, STREAM, __func__);
  if (e == nullptr || s == nullptr) return INVALID_HANDLE;
  e->stream = s;
  e->queries = 0;
  e->reached = false;
  s->pending.add(Work{nullptr, e, {}});
  return SUCCESS;
}
// What was launched runs when it is waited for, no sooner: who forgets to wait meets what was there before.
API cuEventQuery(void* event) {
  ENTER(1, 0);
  Handle* e = checked(event, EVENT, __func__);
  if (e == nullptr || e->stream == nullptr) return INVALID_HANDLE;
  return world.machine.hangs || ++e->queries < 3 ? int(NOT_READY) : run_pending(e->stream, e);
}
API cuEventSynchronize(void* event) {
  ENTER(1, 0);
  Handle* e = checked(event, EVENT, __func__);
  if (e == nullptr || e->stream == nullptr) return INVALID_HANDLE;
  if (!(e->flags & 1)) fault("cuEventSynchronize: it would spin");
  return run_pending(e->stream, e);
}
API cuStreamQuery(void* stream) {
  ENTER(1, 0);
  Handle* s = checked(stream, STREAM, __func__);
  if (s == nullptr) return INVALID_HANDLE;
  return world.machine.hangs ? int(NOT_READY) : run_pending(s);
}
