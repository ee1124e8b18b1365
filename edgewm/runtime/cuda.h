// The few functions of NVIDIA's driver that the runtime calls, found in libcuda.so.1 when a loop begins; and the state of
// a loop that runs on a GPU. Declared here, not included: a library is built where no CUDA is, and needs none to load.
#pragma once
#include "launch.h"
#include "loop.h"

namespace ewm {

typedef int CudaResult;  // CUresult: 0 is success
typedef int CudaDevice;
typedef uint64_t CudaAddress;  // CUdeviceptr
typedef struct CUctx_st* CudaContext;
typedef struct CUmod_st* CudaModule;
typedef struct CUfunc_st* CudaFunction;
typedef struct CUstream_st* CudaStream;
typedef struct CUevent_st* CudaEvent;
typedef struct CUgraph_st* CudaGraph;
typedef struct CUgraphExec_st* CudaGraphExec;

// By cuda.h of CUDA 12.6; none of them has changed its value since CUDA 11.
enum : int {
  CUDA_OUT_OF_MEMORY = 2,
  CUDA_NO_DEVICE = 100,
  CUDA_INVALID_IMAGE = 200,
  CUDA_NO_BINARY = 209,
  CUDA_NOT_READY = 600,
  ATTRIBUTE_PROCESSORS = 16,
  ATTRIBUTE_INTEGRATED = 18,
  ATTRIBUTE_CAN_MAP_HOST_MEMORY = 19,
  ATTRIBUTE_MAJOR = 75,
  ATTRIBUTE_MINOR = 76,
  ATTRIBUTE_COOPERATIVE_LAUNCH = 95,
  ATTRIBUTE_SHARED_BYTES_OF_A_BLOCK = 97,
  FUNCTION_DYNAMIC_SHARED_BYTES = 8,
  STREAM_NON_BLOCKING = 1,
  EVENT_DISABLE_TIMING = 2,
  HOST_ALLOC_MAPPED = 2,
  CAPTURE_OF_THIS_THREAD = 1,
};

// Name, exported symbol (with the version that its signature is of), parameters.
#define EWM_CUDA_FUNCTIONS(F)                                                                                         \
  F(init, "cuInit", (unsigned flags))                                                                                 \
  F(driver_version, "cuDriverGetVersion", (int* version))                                                             \
  F(device_count, "cuDeviceGetCount", (int* count))                                                                   \
  F(device, "cuDeviceGet", (CudaDevice * device, int ordinal))                                                        \
  F(device_name, "cuDeviceGetName", (char* name, int size, CudaDevice device))                                        \
  F(attribute, "cuDeviceGetAttribute", (int* value, int attribute, CudaDevice device))                                \
  F(retain_context, "cuDevicePrimaryCtxRetain", (CudaContext * context, CudaDevice device))                           \
  F(release_context, "cuDevicePrimaryCtxRelease_v2", (CudaDevice device))                                             \
  F(push_context, "cuCtxPushCurrent_v2", (CudaContext context))                                                       \
  F(pop_context, "cuCtxPopCurrent_v2", (CudaContext * context))                                                       \
  F(synchronize, "cuCtxSynchronize", ())                                                                              \
  F(memory, "cuMemGetInfo_v2", (size_t* free, size_t* whole))                                                         \
  F(load_module, "cuModuleLoadData", (CudaModule * module, const void* image))                                        \
  F(unload_module, "cuModuleUnload", (CudaModule module))                                                             \
  F(function, "cuModuleGetFunction", (CudaFunction * function, CudaModule module, const char* name))                  \
  F(set_function, "cuFuncSetAttribute", (CudaFunction function, int attribute, int value))                            \
  F(resident_blocks, "cuOccupancyMaxActiveBlocksPerMultiprocessor",                                                   \
    (int* blocks, CudaFunction function, int threads, size_t shared_bytes))                                           \
  F(allocate, "cuMemAlloc_v2", (CudaAddress * address, size_t bytes))                                                 \
  F(free, "cuMemFree_v2", (CudaAddress address))                                                                      \
  F(allocate_host, "cuMemHostAlloc", (void** at, size_t bytes, unsigned flags))                                       \
  F(free_host, "cuMemFreeHost", (void* at))                                                                           \
  F(mapped_address, "cuMemHostGetDevicePointer_v2", (CudaAddress * address, void* at, unsigned flags))                \
  F(upload, "cuMemcpyHtoD_v2", (CudaAddress to, const void* from, size_t bytes))                                      \
  F(fill, "cuMemsetD8_v2", (CudaAddress at, unsigned char value, size_t bytes))                                       \
  F(copy_in, "cuMemcpyHtoDAsync_v2", (CudaAddress to, const void* from, size_t bytes, CudaStream stream))             \
  F(copy_out, "cuMemcpyDtoHAsync_v2", (void* to, CudaAddress from, size_t bytes, CudaStream stream))                  \
  F(copy, "cuMemcpyDtoDAsync_v2", (CudaAddress to, CudaAddress from, size_t bytes, CudaStream stream))                \
  F(fill_words, "cuMemsetD32Async", (CudaAddress at, unsigned value, size_t words, CudaStream stream))                \
  F(make_stream, "cuStreamCreate", (CudaStream * stream, unsigned flags))                                             \
  F(end_stream, "cuStreamDestroy_v2", (CudaStream stream))                                                            \
  F(begin_capture, "cuStreamBeginCapture_v2", (CudaStream stream, int mode))                                          \
  F(end_capture, "cuStreamEndCapture", (CudaStream stream, CudaGraph * graph))                                        \
  F(launch, "cuLaunchKernel",                                                                                         \
    (CudaFunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,    \
     unsigned block_z, unsigned shared_bytes, CudaStream stream, void** parameters, void** extra))                    \
  F(launch_cooperative, "cuLaunchCooperativeKernel",                                                                  \
    (CudaFunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,    \
     unsigned block_z, unsigned shared_bytes, CudaStream stream, void** parameters))                                  \
  F(instantiate, "cuGraphInstantiateWithFlags", (CudaGraphExec * made, CudaGraph graph, unsigned long long flags))    \
  F(upload_graph, "cuGraphUpload", (CudaGraphExec graph, CudaStream stream))                                          \
  F(launch_graph, "cuGraphLaunch", (CudaGraphExec graph, CudaStream stream))                                          \
  F(end_graph, "cuGraphDestroy", (CudaGraph graph))                                                                   \
  F(end_made_graph, "cuGraphExecDestroy", (CudaGraphExec graph))                                                      \
  F(make_event, "cuEventCreate", (CudaEvent * event, unsigned flags))                                                 \
  F(end_event, "cuEventDestroy_v2", (CudaEvent event))                                                                \
  F(record, "cuEventRecord", (CudaEvent event, CudaStream stream))                                                    \
  F(query, "cuEventQuery", (CudaEvent event))                                                                         \
  F(query_stream, "cuStreamQuery", (CudaStream stream))                                                               \
  F(error_name, "cuGetErrorName", (CudaResult error, const char** name))

struct Driver {
  void* library;
#define EWM_CUDA_FIELD(name, symbol, parameters) CudaResult(*name) parameters;
  EWM_CUDA_FUNCTIONS(EWM_CUDA_FIELD)
#undef EWM_CUDA_FIELD
};

// The graphs of an entry; nullptr where not made. `whole` is the entry as one launch. Where there is a deadline, the
// host paces: `head`, up to the loop that may end early; `round`, one round of that loop, launched again and again;
// `tail`, what follows.
struct EntryGraphs {
  CudaGraphExec whole, head, round, tail;
};

// The state of a loop on a GPU; arrays lie behind it in the loop's own memory.
struct Device {
  Driver cuda;
  CudaDevice device;
  CudaContext context;
  CudaModule module;
  CudaStream stream;
  CudaEvent done[2];  // of a run, or of its rounds in turn
  uint64_t tail_ns;   // what a tail took lately, launch to end; 0: not known
  bool hung;          // a run was given up that had not ended
  bool ptx;           // the module was compiled from it
  bool integrated;  // shares the processor's memory
  uint32_t together;  // blocks of the persistent function that are resident at once
  // Device memory; calls, operands and weights are written once.
  CudaAddress arena, scratch, weights, calls, operands, launches, barrier;
  // Memory that both see: all ports as the arena has them. `..._there`: its address for the device.
  char* ports;
  CudaAddress ports_there;
  uint64_t port_bytes;
  CudaFunction* functions;  // by index in section "functions"; nullptr where the module has none
  EntryGraphs* entries;     // by entry
  uint64_t graph_nodes, graph_bytes, graph_ns;  // of all graphs
  // While it is measured: the plan's graph with a stamp after each launch, and where they are written.
  CudaGraphExec measured;
  CudaAddress stamps;
  uint64_t* stamps_here;
};

// Makes the context the calling thread's as long as it lives, where that succeeds.
struct Current {
  const Driver& cuda;
  const CudaResult error;
  explicit Current(const Device& d) : cuda(d.cuda), error(d.cuda.push_context(d.context)) {}
  ~Current() {
    CudaContext popped;
    if (error == 0) cuda.pop_context(&popped);
  }
};

// A driver's refusal in words: "cuMemAlloc_v2: CUDA_ERROR_OUT_OF_MEMORY".
Text said(const Driver& cuda, const char* call, CudaResult error);

// Calls a function of the driver where nothing has failed; refuses with its name and what the driver said.
#define EWM_CALL(cuda, error, blame, function, ...)                                                       \
  do {                                                                                                    \
    if (CudaResult said_ = (cuda).function(__VA_ARGS__))                                                  \
      return refuse(fault, error, blame, said(cuda, #function, said_), "success");                        \
  } while (0)

// libcuda.so.1 and the functions above, a driver that is new enough, a GPU that fits, its context made current.
int find_device(const ewm_model& model, Device& device, ewm_fault* fault);
// Module, memory and tables.
int load_device(const ewm_model& model, Device& device, ewm_fault* fault);
// Whether the GPU takes every launch of the file: shared memory, and cooperative blocks resident at once.
int check_launches(const ewm_model& model, Device& device, ewm_fault* fault);
// Everything given back; for a state that was only half filled too.
void leave_device(const ewm_model& model, Device& device);

// The graphs of an entry, those not wanted yet excepted: what a deadline needs is made for the plan.
int make_graphs(const ewm_model& model, Device& device, const Entry& entry, EntryGraphs& made, ewm_fault* fault);
void end_graphs(const Device& device, EntryGraphs& made);
// The whole entry, with the time noted twice before its first launch and once after each.
int make_measured_graph(const ewm_model& model, Device& device, const Entry& entry, CudaAddress stamps,
                        CudaGraphExec& made, ewm_fault* fault);
// What making graphs took so far, into the loop's counts.
void tell_graphs(ewm_loop& loop, const Device& device);
// The step that begins the loop that a deadline may end, the one of most rounds; EWM_NONE where the entry has none.
uint32_t anytime_loop(const ewm_model& model, const Entry& entry);
uint64_t stamps_of(const ewm_model& model, const Entry& entry);
// Adds what the stamps of a run say to the times of steps and calls, either of which may be nullptr, less what a stamp
// itself takes: the time between the first two, the least of all runs so far (`stamp_ns`; 0 before the first).
void add_stamps(const ewm_model& model, const Entry& entry, const uint64_t* stamps, uint64_t& stamp_ns,
                uint64_t* step_ns, uint64_t* call_ns);

}  // namespace ewm
