// libcuda.so.1 of the tests, answered by `standin.h`: the machine, its memory, modules and their functions.
#include "standin.h"

using namespace standin;

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
API_OF(uint64_t) standin_most_waiting() { return world.most_waiting; }
API_OF(uint64_t) standin_clock_ns() { return world.clock_ns; }

// ---- the driver

API cuInit(unsigned) {
  ENTER(0, 1);
  cpu_set_t mine;
  CPU_ZERO(&mine);
  if (sched_getaffinity(0, sizeof(mine), &mine) != 0 || CPU_COUNT(&mine) < world.machine.cpus)
    fault("cuInit: its threads may use %d processors only", CPU_COUNT(&mine));
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
