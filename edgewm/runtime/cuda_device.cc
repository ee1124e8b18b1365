// What a loop holds on a GPU: its module, device memory with the tables and weights in it, memory that both sides see.
#include <string.h>

#include "cuda.h"

namespace ewm {
namespace {

typedef unsigned long long ull;

constexpr const char* GPU = "GPU";
constexpr uint32_t SHARED_BYTES_OF_ANY = 48 << 10;

int allocate(Device& d, const char* what, uint64_t bytes, CudaAddress& at, ewm_fault* fault) {
  const CudaResult error = d.cuda.allocate(&at, bytes == 0 ? 1 : bytes);
  if (error == 0) return EWM_OK;
  at = 0;
  if (error != CUDA_OUT_OF_MEMORY) return refuse(fault, EWM_NO_GPU, GPU, said(d.cuda, "allocate", error), "success");
  size_t free = 0, whole = 0;
  d.cuda.memory(&free, &whole);
  return refuse(fault, EWM_NO_MEMORY, Text("GPU, %s", what), Text("%llu of %llu bytes free", (ull)free, (ull)whole),
                Text("%llu", (ull)bytes));
}

int load_module(const ewm_model& m, Device& d, ewm_fault* fault) {
  const CudaResult error = d.cuda.load_module(&d.module, m.cubin);
  if (error == 0) return EWM_OK;
  d.module = nullptr;
  if (error == CUDA_OUT_OF_MEMORY)
    return refuse(fault, EWM_NO_MEMORY, "cubin", said(d.cuda, "load_module", error), "room for its code");
  if (m.ptx == nullptr || (error != CUDA_NO_BINARY && error != CUDA_INVALID_IMAGE))
    return refuse(fault, EWM_NO_GPU, "cubin", said(d.cuda, "load_module", error),
                  Text("a GPU of sm_%u, and a driver that reads ELF ABI %u", m.gpu->sm, m.gpu->elf_abi));
  const CudaResult again = d.cuda.load_module(&d.module, m.ptx);
  d.ptx = again == 0;
  if (d.ptx) return EWM_OK;
  d.module = nullptr;
  return refuse(fault, EWM_NO_GPU, "PTX", said(d.cuda, "load_module", again), "a driver that compiles it");
}

// Whether the module has a function of its own: parts of the persistent one have none.
bool is_launched(const ewm_model& m, uint32_t function) {
  return m.gpu->persistent == EWM_NONE || function == m.gpu->persistent || function == m.gpu->stamp;
}

int find_functions(const ewm_model& m, Device& d, ewm_fault* fault) {
  for (uint32_t i = 0; i < m.gpu->functions; i++)
    if (is_launched(m, i)) EWM_CALL(d.cuda, EWM_NO_GPU, Text("function %s", m.functions[i].name), function, &d.functions[i], d.module,
             m.functions[i].name);
  return EWM_OK;
}

int upload(Device& d, const char* what, const void* from, uint64_t bytes, CudaAddress& at, ewm_fault* fault) {
  if (int bad = allocate(d, what, bytes, at, fault)) return bad;
  if (bytes != 0) EWM_CALL(d.cuda, EWM_NO_GPU, GPU, upload, at, from, bytes);
  return EWM_OK;
}

int make_empty(Device& d, const char* what, uint64_t bytes, CudaAddress& at, ewm_fault* fault) {
  if (int bad = allocate(d, what, bytes, at, fault)) return bad;
  if (bytes != 0) EWM_CALL(d.cuda, EWM_NO_GPU, GPU, fill, at, 0, bytes);
  return EWM_OK;
}

// All ports, in memory that stays in place and that the device sees.
int map_ports(const ewm_model& m, Device& d, ewm_fault* fault) {
  d.port_bytes = 0;
  for (uint32_t i = 0; i < m.sizes->ports; i++) {
    const uint64_t end = aligned(m.ports[i].offset + port_bytes(m.ports[i]));
    if (end > d.port_bytes) d.port_bytes = end;
  }
  const uint64_t bytes = d.port_bytes == 0 ? 1 : d.port_bytes;
  void* at = nullptr;
  if (CudaResult error = d.cuda.allocate_host(&at, bytes, HOST_ALLOC_MAPPED))
    return refuse(fault, EWM_NO_MEMORY, "memory for ports", said(d.cuda, "allocate_host", error),
                  Text("%llu bytes that stay in place", (ull)bytes));
  memset(at, 0, bytes);
  d.ports = static_cast<char*>(at);
  EWM_CALL(d.cuda, EWM_NO_GPU, GPU, mapped_address, &d.ports_there, at, 0);
  return EWM_OK;
}

// More than every GPU gives has to be asked for, a function at a time.
int ask_for_shared(const ewm_model& m, Device& d, ewm_fault* fault) {
  for (uint32_t f = 0; f < m.gpu->functions; f++) {
    uint32_t most = 0;
    for (uint32_t i = 0; i < m.gpu->launches; i++)
      if ((m.launches[i].function == f || f == m.gpu->persistent) && m.launches[i].shared_bytes > most) most = m.launches[i].shared_bytes;
    if (most > SHARED_BYTES_OF_ANY && is_launched(m, f))
      EWM_CALL(d.cuda, EWM_NO_GPU, Text("function %s, %u bytes of shared memory", m.functions[f].name, most),
               set_function, d.functions[f], FUNCTION_DYNAMIC_SHARED_BYTES, int(most));
  }
  return EWM_OK;
}

int check_resident(const ewm_model& m, Device& d, const GpuLaunch& l, int processors, ewm_fault* fault) {
  const CudaFunction function = d.functions[l.function];
  const Text where("call %u, %s", l.call, m.functions[l.function].name);
  int resident = 0;
  EWM_CALL(d.cuda, EWM_NO_GPU, where, resident_blocks, &resident, function, int(m.gpu->threads), l.shared_bytes);
  if (resident < 1)
    return refuse(fault, EWM_NO_GPU, where, "no block fits on a multiprocessor",
                  Text("room for %u threads and %u bytes of shared memory", m.gpu->threads, l.shared_bytes));
  if (l.cooperative && uint64_t(resident) * uint64_t(processors) < l.blocks)
    return refuse(fault, EWM_NO_GPU, where,
                  Text("%d multiprocessors, %d blocks resident at once", processors, resident * processors),
                  Text("%u: a power mode with more multiprocessors, or a bundle built for this one", l.blocks));
  return EWM_OK;
}

// How many blocks of the persistent function there may be: with the shared memory of any of its launches.
int count_together(const ewm_model& m, Device& d, int processors, bool cooperative, ewm_fault* fault) {
  const Text where("function %s", m.functions[m.gpu->persistent].name);
  if (!cooperative)
    return refuse(fault, EWM_NO_GPU, where, "a GPU whose blocks cannot wait for each other", "cooperative launches");
  uint32_t most = 0;
  for (uint32_t i = 0; i < m.gpu->launches; i++)
    if (m.launches[i].shared_bytes > most) most = m.launches[i].shared_bytes;
  int resident = 0;
  EWM_CALL(d.cuda, EWM_NO_GPU, where, resident_blocks, &resident, d.functions[m.gpu->persistent], int(m.gpu->threads),
           most);
  if (resident < 1)
    return refuse(fault, EWM_NO_GPU, where, "no block fits on a multiprocessor",
                  Text("room for %u threads and %u bytes of shared memory", m.gpu->threads, most));
  d.together = uint32_t(resident) * uint32_t(processors);
  return EWM_OK;
}

}  // namespace

int load_device(const ewm_model& m, Device& d, ewm_fault* fault) {
  const Sizes& n = *m.sizes;
  if (int bad = load_module(m, d, fault)) return bad;
  if (int bad = find_functions(m, d, fault)) return bad;
  if (int bad = map_ports(m, d, fault)) return bad;
  if (int bad = make_empty(d, "arena", n.arena_bytes, d.arena, fault)) return bad;
  if (int bad = make_empty(d, "scratch", n.scratch_bytes, d.scratch, fault)) return bad;
  if (int bad = make_empty(d, "barrier", sizeof(uint32_t), d.barrier, fault)) return bad;
  if (int bad = upload(d, "weights", m.weights, n.weight_bytes, d.weights, fault)) return bad;
  if (int bad = upload(d, "calls", m.calls, n.calls * sizeof(Call), d.calls, fault)) return bad;
  if (int bad = upload(d, "operands", m.operands, n.operands * sizeof(Operand), d.operands, fault)) return bad;
  const uint64_t launch_bytes = m.gpu->launches * sizeof(GpuLaunch);
  if (int bad = upload(d, "launches", m.launches, launch_bytes, d.launches, fault)) return bad;
  EWM_CALL(d.cuda, EWM_NO_GPU, GPU, make_stream, &d.stream, STREAM_NON_BLOCKING);
  for (CudaEvent& done : d.done) EWM_CALL(d.cuda, EWM_NO_GPU, GPU, make_event, &done, EVENT_DISABLE_TIMING);
  EWM_CALL(d.cuda, EWM_NO_GPU, GPU, synchronize);  // an upload may be on its way when its function returns
  return EWM_OK;
}

int check_launches(const ewm_model& m, Device& d, ewm_fault* fault) {
  int processors = 0, most_shared = 0, cooperative = 0;
  EWM_CALL(d.cuda, EWM_NO_GPU, GPU, attribute, &processors, ATTRIBUTE_PROCESSORS, d.device);
  EWM_CALL(d.cuda, EWM_NO_GPU, GPU, attribute, &most_shared, ATTRIBUTE_SHARED_BYTES_OF_A_BLOCK, d.device);
  EWM_CALL(d.cuda, EWM_NO_GPU, GPU, attribute, &cooperative, ATTRIBUTE_COOPERATIVE_LAUNCH, d.device);
  for (uint32_t i = 0; i < m.gpu->launches; i++) {
    const GpuLaunch& l = m.launches[i];
    const Text where("call %u, %s", l.call, m.functions[l.function].name);
    if (l.cooperative && !cooperative)
      return refuse(fault, EWM_NO_GPU, where, "a GPU whose blocks cannot wait for each other", "cooperative launches");
    if (l.shared_bytes > uint32_t(most_shared))
      return refuse(fault, EWM_NO_GPU, where, Text("%d bytes of shared memory for a block", most_shared),
                    Text("%u", l.shared_bytes));
  }
  if (int bad = ask_for_shared(m, d, fault)) return bad;
  if (m.gpu->persistent != EWM_NONE) return count_together(m, d, processors, cooperative != 0, fault);
  for (uint32_t i = 0; i < m.gpu->launches; i++)
    if (int bad = check_resident(m, d, m.launches[i], processors, fault)) return bad;
  return EWM_OK;
}

// The library stays: a driver has threads of its own.
void leave_device(const ewm_model& m, Device& d) {
  const Driver& cuda = d.cuda;
  if (d.context != nullptr) {
    CudaContext popped;
    for (uint32_t i = 0; i < m.sizes->entries; i++) end_graphs(d, d.entries[i]);
    if (d.measured != nullptr) cuda.end_made_graph(d.measured);
    if (d.stream != nullptr) cuda.end_stream(d.stream);
    for (CudaEvent done : d.done)
      if (done != nullptr) cuda.end_event(done);
    const CudaAddress held[] = {d.arena, d.scratch, d.barrier, d.weights, d.calls, d.operands, d.launches};
    for (CudaAddress at : held)
      if (at != 0) cuda.free(at);
    if (d.stamps_here != nullptr) cuda.free_host(d.stamps_here);
    if (d.ports != nullptr) cuda.free_host(d.ports);
    if (d.module != nullptr) cuda.unload_module(d.module);
    cuda.pop_context(&popped);
    cuda.release_context(d.device);
  }
  d = Device{};
}

}  // namespace ewm
