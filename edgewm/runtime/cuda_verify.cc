// The sections of a file whose calls run on a GPU: every index and extent of a launch, and what the module is for.
#include <string.h>

#include "kernel.h"
#include "model.h"

namespace ewm {
namespace {

#define EXPECT(holds, where, found, expected) \
  if (!(holds)) return refuse(fault, EWM_INVALID, where, found, expected)

constexpr uint32_t THREADS_OF_A_BLOCK = 256, MAX_BLOCKS = 0x7fffffff, MAX_SHARED_BYTES = 227 << 10;

// Of an ELF file's head (gABI), as NVIDIA's tools write it.
constexpr uint32_t ELF_HEAD = 20, EM_CUDA = 190;
constexpr uint8_t OSABI_7 = 0x33, OSABI_8 = 0x41;

int verify_gpu(const ewm_model& m, ewm_fault* fault) {
  const Gpu& g = *m.gpu;
  EXPECT(g.sm >= 50 && g.sm < 200, "gpu", Text("sm_%u", g.sm), "sm_50 to sm_199");
  EXPECT(g.driver >= 11000 && g.driver < 100000, "gpu", Text("driver %u", g.driver), "11000 to 99999");
  EXPECT(g.elf_abi == 7 || g.elf_abi == 8, "gpu", Text("ELF ABI %u", g.elf_abi), "7 or 8");
  EXPECT(g.threads == THREADS_OF_A_BLOCK, "gpu", Text("%u threads", g.threads),
         Text("%u, which kernels are written for", THREADS_OF_A_BLOCK));
  EXPECT(g.stamp < g.functions, "gpu", Text("stamp function %u", g.stamp), Text("below %u", g.functions));
  EXPECT(g.persistent == EWM_NONE || g.persistent < g.functions, "gpu", Text("persistent function %u", g.persistent),
         Text("below %u, or none", g.functions));
  return EWM_OK;
}

int verify_functions(const ewm_model& m, ewm_fault* fault) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
  };
  for (uint32_t i = 0; i < m.gpu->functions; i++)
    EXPECT(good_text(m.functions[i].name, sizeof(Function::name), allowed), Text("function %u", i), "a bad name",
           "1 to 39 of A-Z a-z 0-9 _");
  return EWM_OK;
}

int verify_launches(const ewm_model& m, ewm_fault* fault) {
  for (uint32_t i = 0; i < m.gpu->launches; i++) {
    const GpuLaunch &l = m.launches[i], *before = i > 0 ? &m.launches[i - 1] : nullptr;
    Text where("launch %u", i);
    EXPECT(l.call < m.sizes->calls, where, Text("call %u", l.call), Text("below %u", m.sizes->calls));
    const bool same = before != nullptr && l.call == before->call;
    EXPECT(before == nullptr || l.call >= before->call, where, Text("call %u after call %u", l.call, before->call),
           "calls in their order");
    EXPECT(l.phase == (same ? before->phase + 1 : 0), where, Text("call %u, phase %u", l.call, l.phase),
           Text("phase %u", same ? before->phase + 1 : 0));
    EXPECT(l.function < m.gpu->functions, where, Text("function %u", l.function), Text("below %u", m.gpu->functions));
    EXPECT(l.blocks >= 1 && l.blocks <= MAX_BLOCKS, where, Text("%u blocks", l.blocks), "1 to 2147483647");
    EXPECT(l.shared_bytes <= MAX_SHARED_BYTES, where, Text("%u bytes of shared memory", l.shared_bytes),
           Text("at most %u", MAX_SHARED_BYTES));
    EXPECT(l.cooperative <= 1, where, Text("cooperative %u", l.cooperative), "0 or 1");
  }
  for (uint32_t i = 0; i < m.sizes->steps; i++) {
    const Step& s = m.steps[i];
    if (s.kind != REGION || s.calls == 0) continue;
    const uint32_t last = s.first_call + s.calls - 1;
    const GpuLaunch* l = first_launch(m, last);
    EXPECT(l < m.launches + m.gpu->launches && l->call == last, Text("step %u", i),
           Text("no launch of call %u", last), "at least one of a region's last call");
  }
  return EWM_OK;
}

int verify_cubin(ewm_model& m, ewm_fault* fault) {
  uint64_t bytes = 0;
  m.cubin = static_cast<const char*>(ewm_section(&m, "cubin", &bytes));
  EXPECT(m.cubin != nullptr, "section cubin", "not there", "in every file for a GPU");
  EXPECT(bytes > ELF_HEAD && memcmp(m.cubin, "\177ELF\2\1\1", 7) == 0, "section cubin", "no ELF of 64 bits",
         "a compiled module");
  uint8_t head[ELF_HEAD];
  memcpy(head, m.cubin, ELF_HEAD);
  EXPECT(head[18] == EM_CUDA && head[19] == 0, "section cubin", Text("ELF machine %u", head[18] | head[19] << 8),
         Text("%u, CUDA", EM_CUDA));
  const uint8_t osabi = m.gpu->elf_abi == 7 ? OSABI_7 : OSABI_8;
  EXPECT(head[7] == osabi && head[8] == m.gpu->elf_abi, "section cubin", Text("OS/ABI %#x, version %u", head[7], head[8]),
         Text("%#x, version %u", osabi, m.gpu->elf_abi));
  const char* ptx = static_cast<const char*>(ewm_section(&m, "ptx", &bytes));
  EXPECT(ptx != nullptr, "section ptx", "not there", "in every file for a GPU");
  EXPECT(bytes == 0 || ptx[bytes - 1] == 0, "section ptx", "text without an end", "a 0 at its end");
  m.ptx = bytes == 0 ? nullptr : ptx;
  return EWM_OK;
}

}  // namespace

// Section "launches" is in the order of calls.
const GpuLaunch* first_launch(const ewm_model& m, uint32_t call) {
  uint32_t low = 0, high = m.gpu->launches;
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    if (m.launches[middle].call < call)
      low = middle + 1;
    else
      high = middle;
  }
  return m.launches + low;
}

const char* const engine_sections[] = {"gpu", "functions", "launches", "cubin", "ptx"};
const uint32_t engine_section_count = 5;

int verify_engine(ewm_model& m, ewm_fault* fault) {
  if (int bad = view(m, "gpu", 1, m.gpu, fault)) return bad;
  if (int bad = verify_gpu(m, fault)) return bad;
  if (int bad = view(m, "functions", m.gpu->functions, m.functions, fault)) return bad;
  if (int bad = view(m, "launches", m.gpu->launches, m.launches, fault)) return bad;
  if (int bad = verify_functions(m, fault)) return bad;
  if (int bad = verify_launches(m, fault)) return bad;
  return verify_cubin(m, fault);
}

}  // namespace ewm
