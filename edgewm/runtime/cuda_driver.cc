// The driver: its functions, a GPU that fits, and what is said where there is none.
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "cuda.h"

namespace ewm {
namespace {

constexpr const char* LIBRARY = "libcuda.so.1";

// 12060 is CUDA 12.6.
Text cuda_version(int version) { return Text("CUDA %d.%d", version / 1000, version % 1000 / 10); }

// The first symbol that is missing; nullptr where all are there.
const char* resolve(Driver& cuda) {
  const char* missing = nullptr;
  const auto find = [&](const char* symbol) {
    void* at = dlsym(cuda.library, symbol);
    if (at == nullptr && missing == nullptr) missing = symbol;
    return at;
  };
#define EWM_CUDA_RESOLVE(name, symbol, parameters) \
  cuda.name = reinterpret_cast<CudaResult(*) parameters>(find(symbol));
  EWM_CUDA_FUNCTIONS(EWM_CUDA_RESOLVE)
#undef EWM_CUDA_RESOLVE
  return missing;
}

int check_driver(const ewm_model& m, Driver& cuda, ewm_fault* fault) {
  const Text wanted("a driver that knows %s", cuda_version(int(m.gpu->driver)).s);
  cuda.library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
  if (cuda.library == nullptr) return refuse(fault, EWM_NO_GPU, LIBRARY, Text("%s", dlerror()), wanted);
  const char* missing = resolve(cuda);
  int version = 0;
  if (cuda.driver_version != nullptr) cuda.driver_version(&version);
  if (version < int(m.gpu->driver))
    return refuse(fault, EWM_NO_GPU, LIBRARY, Text("a driver of %s", cuda_version(version).s), wanted);
  if (missing != nullptr) return refuse(fault, EWM_NO_GPU, LIBRARY, Text("no %s in it", missing), wanted);
  const CudaResult error = cuda.init(0);
  if (error == CUDA_NO_DEVICE) return refuse(fault, EWM_NO_GPU, LIBRARY, "no GPU", "a GPU");
  if (error != 0) return refuse(fault, EWM_NO_GPU, LIBRARY, said(cuda, "init", error), "success");
  return EWM_OK;
}

struct Found {
  CudaDevice device;
  char name[64];
  int sm, integrated;
};

int look_at(const Driver& cuda, int ordinal, Found& found, ewm_fault* fault) {
  int major = 0, minor = 0;
  EWM_CALL(cuda, EWM_NO_GPU, Text("GPU %d", ordinal), device, &found.device, ordinal);
  EWM_CALL(cuda, EWM_NO_GPU, Text("GPU %d", ordinal), device_name, found.name, int(sizeof(found.name)), found.device);
  EWM_CALL(cuda, EWM_NO_GPU, Text("%s", found.name), attribute, &major, ATTRIBUTE_MAJOR, found.device);
  EWM_CALL(cuda, EWM_NO_GPU, Text("%s", found.name), attribute, &minor, ATTRIBUTE_MINOR, found.device);
  EWM_CALL(cuda, EWM_NO_GPU, Text("%s", found.name), attribute, &found.integrated, ATTRIBUTE_INTEGRATED, found.device);
  found.sm = 10 * major + minor;
  return EWM_OK;
}

// The first GPU that the cubin is for; without one, the first that PTX may be compiled for.
int choose(const ewm_model& m, const Driver& cuda, Found& chosen, ewm_fault* fault) {
  int count = 0;
  EWM_CALL(cuda, EWM_NO_GPU, LIBRARY, device_count, &count);
  const int wanted = int(m.gpu->sm);
  bool compiled = false;
  Text there("no GPU");
  for (int i = 0; i < count; i++) {
    Found found{};
    if (int bad = look_at(cuda, i, found, fault)) return bad;
    if (i == 0) there = Text("%s, sm_%d", found.name, found.sm);
    if (found.sm == wanted) {
      chosen = found;
      return EWM_OK;
    }
    if (m.ptx != nullptr && found.sm > wanted && !compiled) chosen = found, compiled = true;
  }
  if (compiled) return EWM_OK;
  return refuse(fault, EWM_NO_GPU, "GPU", there, Text("sm_%d, which the kernels were compiled for", wanted));
}

}  // namespace

Text said(const Driver& cuda, const char* call, CudaResult error) {
  const char* name = nullptr;
  if (cuda.error_name(error, &name) != 0 || name == nullptr) return Text("%s: error %d", call, error);
  return Text("%s: %s", call, name);
}

int find_device(const ewm_model& m, Device& d, ewm_fault* fault) {
  Driver& cuda = d.cuda;
  if (int bad = check_driver(m, cuda, fault)) return bad;
  Found found{};
  if (int bad = choose(m, cuda, found, fault)) return bad;
  int maps = 0;
  const Text where("%s", found.name);
  EWM_CALL(cuda, EWM_NO_GPU, where, attribute, &maps, ATTRIBUTE_CAN_MAP_HOST_MEMORY, found.device);
  if (!maps)
    return refuse(fault, EWM_NO_GPU, where, "it sees no memory of the processor",
                  "mapped memory, which its ports lie in");
  d.device = found.device;
  d.integrated = found.integrated != 0;
  EWM_CALL(cuda, EWM_NO_GPU, where, retain_context, &d.context, d.device);
  if (CudaResult error = cuda.push_context(d.context)) {
    cuda.release_context(d.device);
    d.context = nullptr;
    return refuse(fault, EWM_NO_GPU, where, said(cuda, "push_context", error), "success");
  }
  return EWM_OK;
}

}  // namespace ewm
