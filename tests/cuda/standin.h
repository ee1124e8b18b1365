// A stand-in for NVIDIA's driver, for tests: it records every call and checks it as far as a driver could, and further.
// Kernels are run by a library of the test's own (`cuda_cpu_launch`), on the same memory. What is wrong is noted, as text.
#pragma once
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "launch.h"

namespace standin {

typedef unsigned long long ull;

// cuda.h's, as far as they are answered here.
enum Result {
  SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_IMAGE = 200, INVALID_CONTEXT = 201,
  NO_BINARY = 209, UNSUPPORTED_PTX = 222, INVALID_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600,
  ILLEGAL_ADDRESS = 700, COOPERATIVE_TOO_LARGE = 720, CAPTURE_INVALIDATED = 901, CAPTURE_UNSUPPORTED = 900,
};  // clang-format skip

// What the machine has; set by `standin_configure`, or by EWM_STANDIN of the environment.
struct Machine {
  int driver, devices, sm, integrated, maps, processors, cooperative, shared, resident, aborts, hangs, cpus;
  uint64_t memory, seed, node_bytes;  // of the device for each node of a graph
  uint64_t clock_step, node_ns, launch_ns;  // what the clock goes on by: read by a kernel, run a node, launch a graph
  char kernels[1024];                  // the library that runs them
  char fails[64];                      // a function,
  int fails_with, fails_at;            // its answer, and at which of its calls
};

template <class T>
struct List {
  T* at;
  uint32_t count, room;
  T& add(const T& value) {
    if (count == room) {
      room = room ? 2 * room : 16;
      at = static_cast<T*>(realloc(static_cast<void*>(at), room * sizeof(T)));
      if (at == nullptr) abort();
    }
    return at[count++] = value;
  }
};

enum Kind { DEVICE, HOST };
// Guard bytes stand on either side of what was asked for. Memory of the processor that both see has two addresses.
struct Memory {
  Kind kind;
  char *at, *mapped, *base, *mapped_base;
  uint64_t bytes, whole;
  bool live;
};
enum What { MODULE = 0x4d4f, FUNCTION, STREAM, EVENT, GRAPH, EXEC };
enum NodeKind { KERNEL, COPY, FILL };
struct Node {
  NodeKind kind;
  struct Handle* function;
  uint32_t grid, block, shared;
  bool cooperative;
  unsigned char parameter[sizeof(ewm::Persistent)];
  char *to, *from;
  uint64_t bytes;
  uint32_t value;
};
// What a stream has still to do: a graph, a node of its own, or an event that is then reached.
struct Work {
  struct Handle *exec, *event;
  Node node;
};
// Never freed, so that one used after its end is told.
struct Handle {
  What what;
  bool live;
  char name[64];
  const Handle* module;
  bool capturing;
  uint64_t capturing_thread;
  int dynamic_shared;
  unsigned flags;
  List<Node> nodes;       // captured so far, or of a graph
  List<Work> pending;     // given to a stream, not run yet
  Handle* stream;         // of an event
  bool reached;
  uint64_t queries, bytes;
};
struct Count {
  const char* name;
  uint64_t calls;
};

struct World {
  Machine machine;
  List<Memory> memory;
  List<Handle*> handles;
  List<Count> counts;
  uint64_t held, nodes_run, graphs_run, clock_ns, most_waiting;
  int retained, dead;
  bool begun;
  char faults[1 << 14];
  int (*run)(const char*, const uint32_t*, const uint32_t*, uint32_t, const void*, uint64_t, char*, size_t);
  decltype(run) run_cooperative;
};
extern World world;
extern thread_local uint32_t current;  // contexts pushed by this thread

void fault(const char* format, ...) __attribute__((format(printf, 1, 2)));
void configure(const char* text);
// Counts a call; the answer that was planned for it, or what is wrong with when it is made.
int enter(const char* name, bool wants_context, bool in_capture);
int answer(const char* name, int result);

Memory* memory_of(const void* at, uint64_t bytes, Kind kind, bool mapped);
Handle* make(What what, const char* name);
Handle* checked(const void* handle, What what, const char* where);
// What waits on the stream, in order: all of it, or up to an event.
int run_pending(Handle* stream, const Handle* event = nullptr);
void check_closed();
bool on_device(const void* at, uint64_t bytes, const char* name);
bool on_host(const void* at, uint64_t bytes, const char* name);
int end(const void* handle, What what, const char* name);

}  // namespace standin

#define API extern "C" __attribute__((visibility("default"))) int
#define API_OF(type) extern "C" __attribute__((visibility("default"))) type
#define ENTER(context, capture) \
  if (int refused = enter(__func__, context, capture)) return refused  // 1: needs a context; may be called in a capture
