// libcuda.so.1 of the tests: the functions of the driver that edgewm's runtime calls, answered by `standin.h`.
#include "standin.h"

using namespace standin;

#define API extern "C" __attribute__((visibility("default"))) int
#define API_OF(type) extern "C" __attribute__((visibility("default"))) type
#define ENTER(context, capture) \
  if (int refused = enter(__func__, context, capture)) return refused  // 1: needs a context; may be called in a capture

namespace {

constexpr uint64_t GUARD = 256;
constexpr int POISON = 0xEE, GUARD_BYTE = 0xA5;
int context_word;  // its address is the context

uint64_t page(uint64_t bytes) { return (bytes + 4095) / 4096 * 4096; }

bool guards_hold(const Memory& m) {
  for (uint64_t i = 0; i < GUARD; i++)
    if (uint8_t(m.base[i]) != GUARD_BYTE || uint8_t(m.at[m.bytes + i]) != GUARD_BYTE) return false;
  return true;
}

// Two views of one piece of memory where `kind` is HOST, so that the wrong one is noticed.
int allocate(Kind kind, uint64_t bytes, Memory& m) {
  m = Memory{};
  m.kind = kind;
  m.bytes = bytes;
  m.whole = page(bytes + 2 * GUARD);
  int file = memfd_create("stand-in", 0);
  if (file < 0 || ftruncate(file, off_t(m.whole)) != 0) abort();
  char** const views[] = {&m.base, &m.mapped_base};
  for (char** base : views) {
    *base = static_cast<char*>(mmap(nullptr, m.whole, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
    if (*base == MAP_FAILED) abort();
  }
  close(file);
  memset(m.base, GUARD_BYTE, m.whole);
  memset(m.base + GUARD, POISON, bytes);
  m.at = m.base + GUARD;
  m.mapped = m.mapped_base + GUARD;
  m.live = true;
  world.held += bytes;
  world.memory.add(m);
  return SUCCESS;
}

int release(const void* at, Kind kind, const char* name) {
  for (uint32_t i = 0; i < world.memory.count; i++) {
    Memory& m = world.memory.at[i];
    if (!m.live || m.kind != kind || m.at != at) continue;
    if (!guards_hold(m)) fault("%s: written beyond %llu bytes", name, (ull)m.bytes);
    m.live = false;
    world.held -= m.bytes;
    munmap(m.base, m.whole);
    munmap(m.mapped_base, m.whole);
    return SUCCESS;
  }
  fault("%s: no such memory, or freed before", name);
  return INVALID_VALUE;
}

bool contains(const char* text, uint64_t bytes, const char* word, uint64_t n) {
  for (uint64_t i = 0; i + n <= bytes; i++)
    if (memcmp(text + i, word, n) == 0) return true;
  return false;
}

// Bytes of a cubin: to the end of its section table.
uint64_t elf_bytes(const unsigned char* elf) {
  uint64_t table;
  uint16_t size, count;
  memcpy(&table, elf + 40, 8), memcpy(&size, elf + 58, 2), memcpy(&count, elf + 60, 2);
  return table + uint64_t(size) * count;
}

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

bool on_device(const void* at, uint64_t bytes, const char* name) {
  if (memory_of(at, bytes, DEVICE, false) || memory_of(at, bytes, HOST, true)) return true;
  fault("%s: not memory of the device", name);
  return false;
}
bool on_host(const void* at, uint64_t bytes, const char* name) {
  if (memory_of(at, bytes, HOST, false)) return true;
  fault("%s: not memory that stays in place", name);
  return false;
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
  const bool round = strcmp(f->name, "ewm_begin") == 0 || strcmp(f->name, "ewm_round") == 0;
  if ((stamp || round) && (gx != 1 || bx != 1)) fault("%s: %s in %u blocks of %u", name, f->name, gx, bx);
  if (!stamp && !round && bx % 32 != 0) fault("%s: %s in blocks of %u", name, f->name, bx);
  Node n{};
  n.kind = KERNEL;
  n.function = f, n.grid = gx, n.block = bx, n.shared = shared, n.cooperative = cooperative;
  const bool persistent = strcmp(f->name, "ewm_persistent") == 0;
  if (persistent && !cooperative) fault("%s: its blocks wait for each other", f->name);
  const size_t bytes = stamp        ? sizeof(ewm::Stamp)
                       : round      ? sizeof(ewm::Round)
                       : persistent ? sizeof(ewm::Persistent)
                                    : sizeof(ewm::Launch);
  memcpy(n.parameter, parameters[0], bytes);
  h->nodes.add(n);
  return SUCCESS;
}

int end(const void* handle, What what, const char* name) {
  Handle* h = checked(handle, what, name);
  if (h == nullptr) return INVALID_HANDLE;
  if (h->pending.count != 0) fault("%s: work is still under way", name);
  h->live = false;
  return SUCCESS;
}

}  // namespace

// ---- for tests

API_OF(void) standin_configure(const char* text) { configure(text); }
API_OF(const char*) standin_faults() { return world.faults; }
API_OF(uint64_t) standin_count(const char* name) {
  for (uint32_t i = 0; i < world.counts.count; i++)
    if (strcmp(world.counts.at[i].name, name) == 0) return world.counts.at[i].calls;
  return 0;
}
API_OF(uint64_t) standin_graphs_run() { return world.graphs_run; }
API_OF(uint64_t) standin_nodes_run() { return world.nodes_run; }

// ---- the driver

API cuInit(unsigned) {
  ENTER(0, 1);
  return world.machine.devices > 0 ? SUCCESS : NO_DEVICE;
}
API cuDriverGetVersion(int* version) {
  ENTER(0, 1);
  *version = world.machine.driver;
  return SUCCESS;
}
API cuDeviceGetCount(int* count) {
  ENTER(0, 1);
  *count = world.machine.devices;
  return SUCCESS;
}
API cuDeviceGet(int* device, int ordinal) {
  ENTER(0, 1);
  *device = ordinal;
  return ordinal < world.machine.devices ? SUCCESS : INVALID_VALUE;
}
API cuDeviceGetName(char* name, int size, int device) {
  ENTER(0, 1);
  snprintf(name, size_t(size), "Stand-in %d", device);
  return SUCCESS;
}
API cuDeviceGetAttribute(int* value, int attribute, int) {
  ENTER(0, 1);
  const Machine& m = world.machine;
  switch (attribute) {
    case 16: *value = m.processors; return SUCCESS;
    case 18: *value = m.integrated; return SUCCESS;
    case 19: *value = m.maps; return SUCCESS;
    case 75: *value = m.sm / 10; return SUCCESS;
    case 76: *value = m.sm % 10; return SUCCESS;
    case 95: *value = m.cooperative; return SUCCESS;
    case 97: *value = m.shared; return SUCCESS;
  }
  fault("cuDeviceGetAttribute: %d is not known here", attribute);
  return INVALID_VALUE;
}
API cuDevicePrimaryCtxRetain(void** context, int) {
  ENTER(0, 1);
  world.retained++;
  *context = &context_word;
  return SUCCESS;
}
API cuDevicePrimaryCtxRelease_v2(int) {
  int refused = enter(__func__, 0, 1);
  if (world.retained == 0) fault("cuDevicePrimaryCtxRelease_v2: more often than retained");
  if (--world.retained == 0) check_closed();
  return refused;
}
API cuCtxPushCurrent_v2(void* context) {
  ENTER(0, 1);
  if (context != &context_word || world.retained == 0) fault("cuCtxPushCurrent_v2: no context");
  current++;
  return SUCCESS;
}
API cuCtxPopCurrent_v2(void** context) {
  int refused = enter(__func__, 0, 1);
  *context = &context_word;
  if (current == 0) fault("cuCtxPopCurrent_v2: none was pushed");
  current -= current != 0;
  return refused;
}
API cuCtxSynchronize() {
  ENTER(1, 0);
  for (uint32_t i = 0; i < world.handles.count; i++)
    if (world.handles.at[i]->live && world.handles.at[i]->what == STREAM)
      if (int bad = run_pending(world.handles.at[i])) return bad;
  return SUCCESS;
}
API cuMemGetInfo_v2(size_t* free, size_t* whole) {
  ENTER(1, 0);
  *whole = world.machine.memory;
  *free = world.machine.memory > world.held ? world.machine.memory - world.held : 0;
  return SUCCESS;
}

API cuModuleLoadData(void** module, const void* image) {
  ENTER(1, 0);
  const Machine& m = world.machine;
  const auto* elf = static_cast<const unsigned char*>(image);
  const char* text = static_cast<const char*>(image);
  if (memcmp(elf, "\177ELF", 4) == 0) {
    if (elf[4] != 2 || elf[18] != 190) return INVALID_IMAGE;
    uint32_t flags;
    memcpy(&flags, elf + 48, 4);
    const bool seven = elf[7] == 0x33 && elf[8] == 7, eight = elf[7] == 0x41 && elf[8] == 8;
    const int sm = int(eight ? flags >> 8 & 0xff : flags & 0xff);
    if (!seven && !eight) fault("cuModuleLoadData: OS/ABI %#x, version %u", elf[7], elf[8]);
    if ((eight && m.driver < 13000) || (seven && m.driver < 12000)) return NO_BINARY;
    if (sm / 10 != m.sm / 10 || sm > m.sm) return NO_BINARY;
  } else {
    const char *version = strstr(text, ".version "), *target = strstr(text, ".target sm_");
    int major = 0, minor = 0;
    if (version == nullptr || target == nullptr || sscanf(version, ".version %d.%d", &major, &minor) != 2)
      return INVALID_IMAGE;
    // By the release notes: CUDA 12.x knows PTX up to 8.x, 12.6 8.5; 13.0 knows 9.0.
    const int known = m.driver >= 13000 ? 90 + (m.driver - 13000) / 10 : 80 + (m.driver - 12000) / 10 - 1;
    if (10 * major + minor > known) return UNSUPPORTED_PTX;
    if (atoi(target + 11) > m.sm) return NO_BINARY;
  }
  Handle* h = make(MODULE, "");
  h->module = reinterpret_cast<const Handle*>(image);  // read when functions are looked for
  *module = h;
  return SUCCESS;
}
API cuModuleUnload(void* module) {
  ENTER(1, 0);
  return end(module, MODULE, __func__);
}
API cuModuleGetFunction(void** function, void* module, const char* name) {
  ENTER(1, 0);
  Handle* m = checked(module, MODULE, __func__);
  if (m == nullptr) return INVALID_HANDLE;
  const char* image = reinterpret_cast<const char*>(m->module);
  char word[128];
  int n;
  bool there;
  if (memcmp(image, "\177ELF", 4) == 0) {
    n = snprintf(word, sizeof(word), ".text.%s", name) + 1;
    there = contains(image, elf_bytes(reinterpret_cast<const unsigned char*>(image)), word, uint64_t(n));
  } else {
    n = snprintf(word, sizeof(word), ".entry %s(", name);
    there = strstr(image, word) != nullptr;
  }
  if (!there) return NOT_FOUND;
  Handle* h = make(FUNCTION, name);
  h->module = m;
  h->dynamic_shared = 48 << 10;
  *function = h;
  return SUCCESS;
}
API cuFuncSetAttribute(void* function, int attribute, int value) {
  ENTER(1, 0);
  Handle* f = checked(function, FUNCTION, __func__);
  if (f == nullptr || attribute != 8 || value < 0 || value > world.machine.shared) return INVALID_VALUE;
  f->dynamic_shared = value;
  return SUCCESS;
}
API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void* function, int threads, size_t shared) {
  ENTER(1, 0);
  Handle* f = checked(function, FUNCTION, __func__);
  if (f == nullptr || threads < 1 || threads > 1024) return INVALID_VALUE;
  if (shared > uint64_t(f->dynamic_shared)) fault("%s: more shared memory than %s may take", __func__, f->name);
  *blocks = world.machine.resident;
  return SUCCESS;
}

API cuMemAlloc_v2(uint64_t* address, size_t bytes) {
  ENTER(1, 0);
  if (bytes == 0) return INVALID_VALUE;
  if (world.held + bytes > world.machine.memory) return OUT_OF_MEMORY;
  Memory m;
  allocate(DEVICE, bytes, m);
  *address = reinterpret_cast<uint64_t>(m.at);
  return SUCCESS;
}
API cuMemFree_v2(uint64_t address) {
  ENTER(1, 0);
  return release(reinterpret_cast<void*>(address), DEVICE, __func__);
}
API cuMemHostAlloc(void** at, size_t bytes, unsigned flags) {
  ENTER(1, 0);
  if (!(flags & 2)) fault("cuMemHostAlloc: not mapped");
  Memory m;
  allocate(HOST, bytes, m);
  *at = m.at;
  return SUCCESS;
}
API cuMemFreeHost(void* at) {
  ENTER(1, 0);
  return release(at, HOST, __func__);
}
API cuMemHostGetDevicePointer_v2(uint64_t* address, void* at, unsigned) {
  ENTER(1, 0);
  Memory* m = memory_of(at, 1, HOST, false);
  if (m == nullptr) return INVALID_VALUE;
  *address = reinterpret_cast<uint64_t>(m->mapped + (static_cast<char*>(at) - m->at));
  return SUCCESS;
}
API cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t bytes) {
  ENTER(1, 0);
  if (!on_device(reinterpret_cast<void*>(to), bytes, __func__)) return INVALID_VALUE;
  memcpy(reinterpret_cast<void*>(to), from, bytes);
  return SUCCESS;
}
API cuMemsetD8_v2(uint64_t at, unsigned char value, size_t bytes) {
  ENTER(1, 0);
  if (!on_device(reinterpret_cast<void*>(at), bytes, __func__)) return INVALID_VALUE;
  memset(reinterpret_cast<void*>(at), value, bytes);
  return SUCCESS;
}
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
  Handle* h = capturing(stream, __func__);
  if (h == nullptr || at % 4 != 0 || !on_device(reinterpret_cast<void*>(at), 4 * words, __func__)) return INVALID_VALUE;
  Node n{};
  n.kind = FILL;
  n.to = reinterpret_cast<char*>(at), n.bytes = 4 * words, n.value = value;
  h->nodes.add(n);
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
  Handle* h = make(EXEC, "");
  h->nodes = g->nodes;
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
  s->pending.add(g);
  return SUCCESS;
}
API cuGraphDestroy(void* graph) {
  ENTER(1, 0);
  return end(graph, GRAPH, __func__);
}
API cuGraphExecDestroy(void* graph) {
  ENTER(1, 0);
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
  return SUCCESS;
}
// What was launched runs when it is waited for, no sooner: who forgets to wait meets what was there before.
API cuEventQuery(void* event) {
  ENTER(1, 0);
  Handle* e = checked(event, EVENT, __func__);
  if (e == nullptr || e->stream == nullptr) return INVALID_HANDLE;
  return ++e->queries < 3 ? int(NOT_READY) : run_pending(e->stream);
}
API cuEventSynchronize(void* event) {
  ENTER(1, 0);
  Handle* e = checked(event, EVENT, __func__);
  if (e == nullptr || e->stream == nullptr) return INVALID_HANDLE;
  if (!(e->flags & 1)) fault("cuEventSynchronize: it would spin");
  return run_pending(e->stream);
}
API cuGetErrorName(int error, const char** name) {
  const struct { int error; const char* name; } names[] = {
      {1, "CUDA_ERROR_INVALID_VALUE"}, {2, "CUDA_ERROR_OUT_OF_MEMORY"}, {100, "CUDA_ERROR_NO_DEVICE"},
      {200, "CUDA_ERROR_INVALID_IMAGE"}, {201, "CUDA_ERROR_INVALID_CONTEXT"},
      {209, "CUDA_ERROR_NO_BINARY_FOR_GPU"}, {222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"},
      {400, "CUDA_ERROR_INVALID_HANDLE"}, {500, "CUDA_ERROR_NOT_FOUND"}, {700, "CUDA_ERROR_ILLEGAL_ADDRESS"},
      {720, "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE"}, {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"}};
  *name = nullptr;
  for (auto& n : names)
    if (n.error == error) *name = n.name;
  return *name == nullptr ? INVALID_VALUE : SUCCESS;
}
