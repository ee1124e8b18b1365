// What a GPU charges, by its driver alone: `edgewm targets probe` brings this there. JSON, {"why": TEXT} where it cannot.
//   edgewm-gpu-probe look                     {"name", "sm", "driver", "processors"}
//   edgewm-gpu-probe measure PTX RUNS ROUNDS BYTES NODES RESIDENT
//     RUNS of everything that is timed, of which the lower quartile counts; ROUNDS of each thread of a ceiling; BYTES
//     that memory is streamed through; NODES of a graph, and barriers of a launch of RESIDENT blocks a multiprocessor
// Kernels are timed by the GPU's own clock, between two stamps in one graph; launches and waits by this machine's.
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cuda.h"

using namespace ewm;

namespace {

constexpr const char* LIBRARY = "libcuda.so.1";
constexpr uint32_t THREADS = 256, TABLE_BYTES = 256, MOST_RUNS = 1024;
constexpr uint64_t LONGEST_WAIT_NS = 10000000000;
constexpr long NAP_NS = 20000;                      // as the runtime naps (cuda_run.cc)
constexpr uint32_t COPIES = 4, EACH = 16;           // launches of one stream; 16 bytes of each thread, so often
constexpr uint32_t BLOCKS_A_PROCESSOR = 8, WARP = 32, CHAINS = 8;
constexpr double OPERATIONS_I8 = 8192, OPERATIONS_BF16 = 4096;  // of one product of a warp

uint64_t now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1000000000u + static_cast<uint64_t>(t.tv_nsec);
}

// Says why nothing is measured, and ends.
[[noreturn]] void give_up(const char* what, const char* why) {
  char text[512];
  snprintf(text, sizeof(text), "%s: %s", what, why);
  for (char* at = text; *at; at++)
    if (*at == '"' || *at == '\\' || *at < ' ') *at = '\'';
  printf("{\"why\": \"%s\"}\n", text);
  exit(0);
}

Driver cuda;

void check(const char* call, CudaResult error) {
  const char* name = nullptr;
  if (error == 0) return;
  if (cuda.error_name(error, &name) != 0 || name == nullptr) name = "an error without a name";
  give_up(call, name);
}
#define CALL(function, ...) check(#function, cuda.function(__VA_ARGS__))

struct Machine {
  CudaDevice device;
  CudaStream stream;
  CudaEvent done;
  CudaModule module;
  int sm, driver, processors, cooperative;
  char name[96];
  uint64_t* stamps;  // two
  CudaAddress stamps_there;
  CudaFunction stamp;
};

int attribute(const Machine& gpu, int which) {
  int value = 0;
  CALL(attribute, &value, which, gpu.device);
  return value;
}

void look(Machine& gpu) {
  cuda.library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
  if (cuda.library == nullptr) give_up("no NVIDIA driver", dlerror());
#define RESOLVE(name, symbol, parameters)                                              \
  cuda.name = reinterpret_cast<CudaResult(*) parameters>(dlsym(cuda.library, symbol)); \
  if (cuda.name == nullptr) give_up("no such function in libcuda.so.1", symbol);
  EWM_CUDA_FUNCTIONS(RESOLVE)
#undef RESOLVE
  int count = 0;
  CALL(init, 0);
  CALL(device_count, &count);
  if (count == 0) give_up(LIBRARY, "no GPU");
  CALL(driver_version, &gpu.driver);
  CALL(device, &gpu.device, 0);
  CALL(device_name, gpu.name, sizeof(gpu.name), gpu.device);
  gpu.sm = 10 * attribute(gpu, ATTRIBUTE_MAJOR) + attribute(gpu, ATTRIBUTE_MINOR);
  gpu.processors = attribute(gpu, ATTRIBUTE_PROCESSORS);
  gpu.cooperative = attribute(gpu, ATTRIBUTE_COOPERATIVE_LAUNCH);
}

void start(Machine& gpu, const char* ptx) {
  CudaContext context;
  CALL(retain_context, &context, gpu.device);
  CALL(push_context, context);
  CALL(make_stream, &gpu.stream, STREAM_NON_BLOCKING);
  CALL(make_event, &gpu.done, EVENT_DISABLE_TIMING);
  CALL(load_module, &gpu.module, ptx);
  CALL(function, &gpu.stamp, gpu.module, "ewm_stamp");
  void* at = nullptr;
  CALL(allocate_host, &at, 2 * sizeof(uint64_t), HOST_ALLOC_MAPPED);
  gpu.stamps = static_cast<uint64_t*>(at);
  CALL(mapped_address, &gpu.stamps_there, at, 0);
}

// One kernel, `count` times one after the other.
struct Work {
  CudaFunction function;
  uint32_t blocks, count;
  bool cooperative;
  Launch given;
};

void record_stamp(const Machine& gpu, int which) {
  Stamp to{reinterpret_cast<uint64_t*>(gpu.stamps_there) + which};
  void* parameters[] = {&to};
  CALL(launch, gpu.stamp, 1, 1, 1, 1, 1, 1, 0, gpu.stream, parameters, nullptr);
}

CudaGraphExec graph_of(const Machine& gpu, const Work& work, bool stamped) {
  CudaGraph plain = nullptr;
  CudaGraphExec made = nullptr;
  Launch given = work.given;
  void* parameters[] = {&given};
  CALL(begin_capture, gpu.stream, CAPTURE_OF_THIS_THREAD);
  if (stamped) record_stamp(gpu, 0);
  for (uint32_t i = 0; i < work.count; i++)
    if (work.cooperative)
      CALL(launch_cooperative, work.function, work.blocks, 1, 1, THREADS, 1, 1, 0, gpu.stream, parameters);
    else
      CALL(launch, work.function, work.blocks, 1, 1, THREADS, 1, 1, 0, gpu.stream, parameters, nullptr);
  if (stamped) record_stamp(gpu, 1);
  CALL(end_capture, gpu.stream, &plain);
  CALL(instantiate, &made, plain, 0);
  CALL(end_graph, plain);
  CALL(upload_graph, made, gpu.stream);
  CALL(synchronize);
  return made;
}

// ns that the call to launch takes, and ns until its end is seen.
struct Took {
  uint64_t call, whole;
};

Took run(const Machine& gpu, CudaGraphExec graph, bool naps) {
  const uint64_t began = now_ns();
  CALL(launch_graph, graph, gpu.stream);
  const uint64_t launched = now_ns();
  CALL(record, gpu.done, gpu.stream);
  for (CudaResult error; (error = cuda.query(gpu.done)) != 0;) {
    if (error != CUDA_NOT_READY) check("query", error);
    if (now_ns() - began > LONGEST_WAIT_NS) give_up(gpu.name, "a run that has not ended after 10 s");
    const timespec nap{0, NAP_NS};
    if (naps) nanosleep(&nap, nullptr);
  }
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  return {launched - began, now_ns() - began};
}

int by_size(const void* a, const void* b) {
  const uint64_t x = *static_cast<const uint64_t*>(a), y = *static_cast<const uint64_t*>(b);
  return (x > y) - (x < y);
}

double lower_quartile(uint64_t* values, uint32_t n) {
  qsort(values, n, sizeof(*values), by_size);
  return static_cast<double>(values[(n - 1) / 4]);
}

// us of all of `work` by the GPU's clock; the first run, which may wake it, does not count.
double gpu_us(const Machine& gpu, const Work& work, uint32_t runs) {
  uint64_t took[MOST_RUNS];
  const CudaGraphExec graph = graph_of(gpu, work, true);
  run(gpu, graph, false);
  for (uint32_t i = 0; i < runs; i++) {
    run(gpu, graph, false);
    took[i] = gpu.stamps[1] - gpu.stamps[0];
  }
  CALL(end_made_graph, graph);
  const double ns = lower_quartile(took, runs);
  if (!(ns > 0)) give_up(gpu.name, "its clock stands still");
  return ns / 1e3;
}

struct Memory {
  CudaAddress tables, two[2];
};

Work work_of(const Machine& gpu, const Memory& memory, const char* name, uint32_t blocks, uint32_t count, uint32_t phase) {
  Work work{};
  CALL(function, &work.function, gpu.module, name);
  work.blocks = blocks;
  work.count = count;
  work.given.calls = reinterpret_cast<const Call*>(memory.tables);
  work.given.operands = reinterpret_cast<const Operand*>(memory.tables);
  work.given.stop = reinterpret_cast<const uint32_t*>(memory.tables);
  work.given.base[0] = reinterpret_cast<char*>(memory.two[0]);
  work.given.base[1] = reinterpret_cast<char*>(memory.two[1]);
  work.given.base[2] = reinterpret_cast<char*>(memory.tables);
  work.given.phase = phase;
  return work;
}

// What was found, printed when all is.
struct List {
  struct {
    const char* name;
    double value;  // nan: there is none
  } at[16];
  uint32_t count;
  void add(const char* name, double value) { at[count++] = {name, value}; }
};

void time_launches(const Machine& gpu, const Memory& memory, uint32_t runs, List& found) {
  uint64_t calls[MOST_RUNS], spun[MOST_RUNS], napped[MOST_RUNS];
  const CudaGraphExec graph = graph_of(gpu, work_of(gpu, memory, "ceiling_nothing", 1, 1, 0), false);
  run(gpu, graph, false);
  for (uint32_t i = 0; i < runs; i++) {
    const Took took = run(gpu, graph, false);
    calls[i] = took.call;
    spun[i] = took.whole;
    napped[i] = run(gpu, graph, true).whole;
  }
  CALL(end_made_graph, graph);
  found.add("launch_us", lower_quartile(calls, runs) / 1e3);
  found.add("answer_us", lower_quartile(spun, runs) / 1e3);
  found.add("answer_napping_us", lower_quartile(napped, runs) / 1e3);
}

void measure(const Machine& gpu, uint32_t runs, uint32_t rounds, uint64_t bytes, uint32_t nodes, uint32_t resident) {
  Memory memory{};
  List found{};
  CALL(allocate, &memory.tables, TABLE_BYTES);
  CALL(fill, memory.tables, 0, TABLE_BYTES);
  for (CudaAddress& at : memory.two) {
    CALL(allocate, &at, bytes);
    CALL(fill, at, 0, bytes);
  }
  CALL(synchronize);
  const auto us = [&](const char* kernel, uint32_t blocks, uint32_t count, uint32_t phase) {
    return gpu_us(gpu, work_of(gpu, memory, kernel, blocks, count, phase), runs);
  };
  const uint32_t processors = static_cast<uint32_t>(gpu.processors), blocks = BLOCKS_A_PROCESSOR * processors;
  const double threads = 1.0 * blocks * THREADS, of_warps = threads / WARP * CHAINS * rounds;
  found.add("fp32_gflops", threads * 4 * CHAINS * 2 * rounds / us("ceiling_f32", blocks, 1, rounds) / 1e3);
  found.add("bf16_gflops", of_warps * OPERATIONS_BF16 / us("ceiling_bf16", blocks, 1, rounds) / 1e3);
  found.add("int8_gops", of_warps * OPERATIONS_I8 / us("ceiling_i8", blocks, 1, rounds) / 1e3);
  const uint32_t wide = static_cast<uint32_t>(bytes / (THREADS * 16 * EACH));
  const double streamed = 1.0 * wide * THREADS * 16 * EACH * COPIES;
  found.add("dram_gbps", streamed / us("ceiling_read", wide, COPIES, EACH) / 1e3);
  found.add("copy_gbps", 2 * streamed / us("ceiling_copy", wide, COPIES, EACH) / 1e3);
  found.add("graph_node_us", us("ceiling_nothing", 1, nodes, 0) / (nodes + 1));
  CALL(fill, memory.two[1], 0, sizeof(uint32_t));
  CALL(synchronize);
  Work meet = work_of(gpu, memory, "ceiling_meet", resident * processors, 1, nodes);
  meet.cooperative = true;
  found.add("barrier_us", gpu.cooperative ? gpu_us(gpu, meet, runs) / nodes : NAN);
  time_launches(gpu, memory, runs, found);
  for (uint32_t i = 0; i < found.count; i++) {
    printf("%s\"%s\": ", i == 0 ? "{" : ", ", found.at[i].name);
    if (found.at[i].value == found.at[i].value)
      printf("%.6g", found.at[i].value);
    else
      printf("null");
  }
  printf("}\n");
}

char* text_of(const char* path) {
  FILE* file = fopen(path, "rb");
  if (file == nullptr) give_up(path, "cannot be read");
  char* text = nullptr;
  size_t bytes = 0, room = 0;
  do {
    room += 1 << 20;
    text = static_cast<char*>(realloc(text, room + 1));
    if (text == nullptr) give_up(path, "out of memory");
    bytes += fread(text + bytes, 1, room - bytes, file);
  } while (bytes == room);
  fclose(file);
  text[bytes] = 0;
  return text;
}

}  // namespace

int main(int count, char** words) {
  Machine gpu{};
  if (count == 2 && strcmp(words[1], "look") == 0) {
    look(gpu);
    printf("{\"name\": \"%s\", \"sm\": %d, \"driver\": %d, \"processors\": %d}\n", gpu.name, gpu.sm, gpu.driver,
           gpu.processors);
    return 0;
  }
  const long runs = count == 8 ? atol(words[3]) : 0;
  if (count != 8 || strcmp(words[1], "measure") != 0 || runs < 1 || runs > MOST_RUNS) {
    fprintf(stderr, "error: not so\n  where: edgewm-gpu-probe\n  fix: look, measure PTX RUNS ROUNDS BYTES NODES RESIDENT\n");
    return 2;
  }
  look(gpu);
  start(gpu, text_of(words[2]));
  measure(gpu, uint32_t(runs), uint32_t(atol(words[4])), uint64_t(atoll(words[5])), uint32_t(atol(words[6])),
          uint32_t(atol(words[7])));
  return 0;
}
