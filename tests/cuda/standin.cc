// The stand-in's own state: what is noted, and how graphs are run.
#include "standin.h"

namespace standin {

World world;
thread_local uint32_t current;

static const Machine AS_IS = {12060, 1, 87, 1, 1, 16, 1, 166912, 2, 0, 0, 0, 1ull << 33, 0, 0, 0, 0, 0, "", "", 0, 0};

void fault(const char* format, ...) {
  size_t used = strlen(world.faults);
  va_list rest;
  va_start(rest, format);
  vsnprintf(world.faults + used, sizeof(world.faults) - used, format, rest);
  va_end(rest);
  strncat(world.faults, "\n", sizeof(world.faults) - strlen(world.faults) - 1);
  if (!world.machine.aborts) return;
  fprintf(stderr, "stand-in: %s", world.faults + used);
  abort();
}

// "sm=90 driver=12060 fail=cuMemAlloc_v2:2:1 kernels=/path", from the machine as it is.
void configure(const char* text) {
  Machine& m = world.machine;
  m = AS_IS;
  char copy[2048];
  snprintf(copy, sizeof(copy), "%s", text);
  const struct { const char* name; int* at; } numbers[] = {
      {"driver", &m.driver}, {"devices", &m.devices}, {"sm", &m.sm}, {"integrated", &m.integrated}, {"maps", &m.maps},
      {"processors", &m.processors}, {"cooperative", &m.cooperative}, {"shared", &m.shared}, {"resident", &m.resident},
      {"aborts", &m.aborts}, {"hangs", &m.hangs}, {"cpus", &m.cpus}};
  const struct { const char* name; uint64_t* at; } sizes[] = {
      {"memory", &m.memory}, {"seed", &m.seed}, {"node_bytes", &m.node_bytes}, {"clock_step", &m.clock_step}, {"node_ns", &m.node_ns},
      {"launch_ns", &m.launch_ns}};
  char* rest = nullptr;
  for (char* word = strtok_r(copy, " ", &rest); word != nullptr; word = strtok_r(nullptr, " ", &rest)) {
    char* value = strchr(word, '=');
    if (value == nullptr) abort();
    *value++ = 0;
    bool known = false;
    for (auto& n : numbers)
      if (strcmp(n.name, word) == 0) *n.at = atoi(value), known = true;
    for (auto& n : sizes)
      if (strcmp(n.name, word) == 0) *n.at = strtoull(value, nullptr, 10), known = true;
    if (strcmp(word, "kernels") == 0) snprintf(m.kernels, sizeof(m.kernels), "%s", value), known = true;
    if (strcmp(word, "fail") == 0)
      known = sscanf(value, "%63[^:]:%d:%d", m.fails, &m.fails_with, &m.fails_at) == 3;
    if (!known) abort();
  }
  world.faults[0] = 0;
  world.counts.count = 0;
  world.nodes_run = world.graphs_run = world.clock_ns = world.most_waiting = 0;
  world.dead = 0;
  world.run = nullptr;
  world.begun = true;
}

static uint64_t read_clock(void*) { return world.clock_ns += world.machine.clock_step; }

static bool find_kernels() {
  if (world.run != nullptr) return true;
  void* library = dlopen(world.machine.kernels, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    fault("no kernels to run: %s", dlerror());
    return false;
  }
  world.run = reinterpret_cast<decltype(world.run)>(dlsym(library, "cuda_cpu_launch"));
  world.run_cooperative = reinterpret_cast<decltype(world.run)>(dlsym(library, "cuda_cpu_launch_cooperative"));
  typedef void (*Set)(uint64_t (*)(void*), void*);
  Set set = reinterpret_cast<Set>(dlsym(library, "cuda_cpu_clock"));
  if (world.machine.clock_step != 0 && set != nullptr) set(read_clock, nullptr);
  if (world.run == nullptr) fault("no cuda_cpu_launch in %s", world.machine.kernels);
  return world.run != nullptr;
}

int enter(const char* name, bool wants_context, bool in_capture) {
  if (!world.begun) configure(getenv("EWM_STANDIN") != nullptr ? getenv("EWM_STANDIN") : "");
  uint64_t calls = 0;
  bool seen = false;
  for (uint32_t i = 0; i < world.counts.count; i++)
    if (strcmp(world.counts.at[i].name, name) == 0) calls = ++world.counts.at[i].calls, seen = true;
  if (!seen) calls = world.counts.add(Count{name, 1}).calls;
  if (wants_context && current == 0) {
    fault("%s: no context is current", name);
    return INVALID_CONTEXT;
  }
  for (uint32_t i = 0; i < world.handles.count && !in_capture; i++)
    if (world.handles.at[i]->live && world.handles.at[i]->capturing) {
      fault("%s: called while a stream is captured", name);
      return CAPTURE_UNSUPPORTED;
    }
  if (world.dead != 0) return world.dead;
  if (strcmp(world.machine.fails, name) == 0 && calls == uint64_t(world.machine.fails_at))
    return world.machine.fails_with;
  return SUCCESS;
}

Memory* memory_of(const void* at, uint64_t bytes, Kind kind, bool mapped) {
  for (uint32_t i = 0; i < world.memory.count; i++) {
    Memory& m = world.memory.at[i];
    const char* begin = mapped ? m.mapped : m.at;
    if (m.live && m.kind == kind && at >= begin && static_cast<const char*>(at) + bytes <= begin + m.bytes) return &m;
  }
  return nullptr;
}

Handle* make(What what, const char* name) {
  Handle* h = static_cast<Handle*>(calloc(1, sizeof(Handle)));
  if (h == nullptr) abort();
  h->what = what;
  h->live = true;
  snprintf(h->name, sizeof(h->name), "%s", name);
  return world.handles.add(h);
}

Handle* checked(const void* handle, What what, const char* where) {
  for (uint32_t i = 0; i < world.handles.count; i++) {
    Handle* h = world.handles.at[i];
    if (h != handle) continue;
    if (h->what != what) break;
    if (h->live) return h;
    fault("%s: used after its end", where);
    return nullptr;
  }
  fault("%s: not a handle of that kind", where);
  return nullptr;
}

// What a kernel is given points where its kernel may read and write, now.
static bool check_parameter(const Node& n) {
  const char* name = n.function->name;
  const auto there = [&](const void* at, uint64_t bytes, const char* what) {
    if (memory_of(at, bytes, DEVICE, false) != nullptr || memory_of(at, bytes, HOST, true) != nullptr) return true;
    fault("%s: %s points to no memory of the device", name, what);
    return false;
  };
  if (strcmp(name, "ewm_stamp") == 0) {
    ewm::Stamp s;
    memcpy(&s, n.parameter, sizeof(s));
    return there(s.at_ns, 8, "at_ns");
  }
  const auto call_is_there = [&](const ewm::Launch& l) {
    if (!there(l.calls, (l.call + 1) * sizeof(ewm::Call), "calls")) return false;
    const ewm::Call& c = l.calls[l.call];
    if (!there(l.operands, (c.first_operand + c.operands) * sizeof(ewm::Operand), "operands")) return false;
    for (uint32_t i = 0; i < c.operands; i++) {
      const ewm::Operand& o = l.operands[c.first_operand + i];
      if (!there(l.base[o.space] + o.offset, o.bytes, "an operand")) return false;
    }
    return true;
  };
  if (strcmp(name, "ewm_persistent") == 0) {
    ewm::Persistent p;
    memcpy(&p, n.parameter, sizeof(p));
    if (!there(p.rows, (p.first + p.count) * sizeof(ewm::GpuLaunch), "rows") || !there(p.barrier, 4, "barrier"))
      return false;
    for (uint32_t i = p.first; i < p.first + p.count; i++) {
      p.launch.call = p.rows[i].call;
      if (p.rows[i].shared_bytes > n.shared) fault("%s: row %u wants more shared memory than is there", name, i);
      if (!call_is_there(p.launch)) return false;
    }
    return true;
  }
  ewm::Launch l;
  memcpy(&l, n.parameter, sizeof(l));
  return call_is_there(l);
}

static int run_node(Node& n) {
  world.nodes_run++;
  world.clock_ns += world.machine.node_ns;
  if (n.kind == COPY) {
    memcpy(n.to, n.from, n.bytes);
    return SUCCESS;
  }
  if (n.kind == FILL) {
    for (uint64_t i = 0; i < n.bytes; i += 4) memcpy(n.to + i, &n.value, 4);
    return SUCCESS;
  }
  if (!n.function->module->live) fault("%s: its module was unloaded", n.function->name);
  if (!check_parameter(n) || !find_kernels()) return ILLEGAL_ADDRESS;
  const uint32_t grid[3] = {n.grid, 1, 1}, block[3] = {n.block, 1, 1};
  char text[512] = "";
  if (n.cooperative && world.run_cooperative == nullptr) {
    fault("%s: no cuda_cpu_launch_cooperative", n.function->name);
    return ILLEGAL_ADDRESS;
  }
  const auto run = n.cooperative ? world.run_cooperative : world.run;
  int bad = run(n.function->name, grid, block, n.shared, n.parameter, world.machine.seed, text, sizeof(text));
  if (bad == 0) return SUCCESS;
  fault("%s: %s", n.function->name, text);
  return ILLEGAL_ADDRESS;
}

static int run_work(Work& work) {
  if (work.event != nullptr) work.event->reached = true;
  if (work.event != nullptr) return SUCCESS;
  if (work.exec == nullptr) return run_node(work.node);
  world.graphs_run++;
  for (uint32_t k = 0; k < work.exec->nodes.count; k++)
    if (int bad = run_node(work.exec->nodes.at[k])) return bad;
  return SUCCESS;
}

int run_pending(Handle* stream, const Handle* event) {
  List<Work>& all = stream->pending;
  uint32_t done = 0;
  int bad = SUCCESS;
  while (done < all.count && bad == SUCCESS && (event == nullptr || !event->reached)) bad = run_work(all.at[done++]);
  if (bad != SUCCESS) done = all.count, world.dead = bad;  // as a real one: nothing works after
  memmove(static_cast<void*>(all.at), all.at + done, (all.count - done) * sizeof(Work));
  all.count -= done;
  return bad;
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

int end(const void* handle, What what, const char* name) {
  Handle* h = checked(handle, what, name);
  if (h == nullptr) return INVALID_HANDLE;
  if (h->pending.count != 0) fault("%s: work is still under way", name);
  h->live = false;
  return SUCCESS;
}

void check_closed() {
  static const char* const names[] = {"module", "function", "stream", "event", "graph", "instantiated graph"};
  for (uint32_t i = 0; i < world.handles.count; i++) {
    Handle& h = *world.handles.at[i];
    if (h.live && h.what != FUNCTION) fault("left behind: a %s", names[h.what - MODULE]), h.live = false;
  }
  for (uint32_t i = 0; i < world.memory.count; i++)
    if (world.memory.at[i].live) {
      fault("left behind: %llu bytes of %s", (ull)world.memory.at[i].bytes,
            world.memory.at[i].kind == DEVICE ? "the device" : "mapped memory");
      world.memory.at[i].live = false;
    }
}

}  // namespace standin
