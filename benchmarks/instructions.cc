// Plans once for each observation of a file: what `instructions.py` runs under callgrind, which counts ewm_plan alone.
//
//   instructions MODEL.ewm OBSERVATIONS     one record after the other: each observation port's bytes, in port order
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "edgewm.h"

namespace {

struct Input {
  uint32_t port, kind;
  uint64_t bytes;
  char* data;
};

uint64_t stopped(void*) { return 1; }  // a clock that costs no system call and lets no observation grow old

int complain(const char* doing, const ewm_fault& fault) {
  fprintf(stderr, "%s: %s, expected %s\n", doing, fault.found, fault.expected);
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  ewm_fault fault;
  fault.size = sizeof(fault);
  ewm_model* model;
  if (ewm_open(argv[1], &model, &fault) != EWM_OK) return complain("ewm_open", fault);
  ewm_model_info about;
  about.size = sizeof(about);
  ewm_describe(model, &about);
  Input inputs[64];
  uint32_t count = 0;
  for (uint32_t k = 0;; k++) {
    uint32_t port = ewm_entry_port(model, about.plan_entry, k);
    ewm_port_info p;
    p.size = sizeof(p);
    if (port == EWM_NONE || ewm_port(model, port, &p) != EWM_OK || count == 64) break;
    if (p.kind == EWM_OBSERVATION || p.kind == EWM_GOAL)
      inputs[count++] = Input{port, p.kind, p.bytes, static_cast<char*>(calloc(1, p.bytes))};
  }
  uint64_t bytes = ewm_arena_bytes(model, 1);
  void* arena = aligned_alloc(64, (bytes + 63) / 64 * 64);
  ewm_options options{};
  options.size = sizeof(options);
  options.period_ns = 20000000;
  options.clock = stopped;
  ewm_loop* loop;
  if (ewm_init(model, arena, bytes, 1, &options, &loop, &fault) != EWM_OK) return complain("ewm_init", fault);
  ewm_reset(loop, 0, &fault);
  FILE* file = fopen(argv[2], "rb");
  if (file == nullptr) return 2;
  bool more = true;
  for (uint64_t plan = 0; more; plan++) {
    for (uint32_t i = 0; i < count && more; i++) {
      const Input& in = inputs[i];
      if (in.kind == EWM_GOAL) {
        if (plan == 0 && ewm_set_goal(loop, in.port, in.data, in.bytes, &fault) != EWM_OK)
          return complain("ewm_set_goal", fault);
        continue;
      }
      more = fread(in.data, 1, in.bytes, file) == in.bytes;
      if (more && ewm_observe(loop, in.port, in.data, in.bytes, stopped(nullptr), &fault) != EWM_OK)
        return complain("ewm_observe", fault);
    }
    ewm_plan_info info;
    info.size = sizeof(info);
    if (more && ewm_plan(loop, 0, &info, &fault) != EWM_OK) return complain("ewm_plan", fault);
  }
  ewm_end(loop);
  return 0;
}
