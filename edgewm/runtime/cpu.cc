// Compiled for the plain architecture, unlike the kernels, so that it can tell when they would not run.
#define EWM_BUILDING
#include "model.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace ewm {
namespace {

#if defined(__x86_64__)
struct Feature {
  const char* name;
  unsigned leaf, reg, bit;  // register: 0 eax, 1 ebx, 2 ecx, 3 edx
  unsigned subleaf = 0;
};
[[maybe_unused]] const Feature AVX2_SET[] = {{"avx", 1, 2, 28},   {"fma", 1, 2, 12},          {"f16c", 1, 2, 29},
                                             {"movbe", 1, 2, 22}, {"avx2", 7, 1, 5},          {"bmi", 7, 1, 3},
                                             {"bmi2", 7, 1, 8},   {"lzcnt", 0x80000001, 2, 5}};
[[maybe_unused]] const Feature AVX512_SET[] = {{"avx512f", 7, 1, 16},  {"avx512dq", 7, 1, 17},
                                               {"avx512cd", 7, 1, 28}, {"avx512bw", 7, 1, 30},
                                               {"avx512vl", 7, 1, 31}, {"avx512vnni", 7, 2, 11},
#if defined(EWM_AVX512BF16)
                                               {"avx512bf16", 7, 0, 5, 1},
#endif
};

[[maybe_unused]] int require(const Feature* set, unsigned count, unsigned state, ewm_fault* fault) {
  unsigned r[4] = {};
  bool saves = __get_cpuid(1, &r[0], &r[1], &r[2], &r[3]) && (r[2] & 1u << 27);
  unsigned enabled = 0, high;
  if (saves) __asm__("xgetbv" : "=a"(enabled), "=d"(high) : "c"(0));
  if ((enabled & state) != state)
    return refuse(fault, EWM_NO_INSTRUCTIONS, "this processor", Text("XCR0 %#x", enabled),
                  Text("%#x set in it", state));
  for (unsigned i = 0; i < count; i++) {
    if (!__get_cpuid_count(set[i].leaf, set[i].subleaf, &r[0], &r[1], &r[2], &r[3]) || !(r[set[i].reg] & 1u << set[i].bit))
      return refuse(fault, EWM_NO_INSTRUCTIONS, "this processor", Text("no %s", set[i].name), Text("%s", set[i].name));
  }
  return EWM_OK;
}
#define COUNT(set) (sizeof(set) / sizeof((set)[0]))
#endif

}  // namespace

int verify_processor([[maybe_unused]] ewm_fault* fault) {
#if defined(__x86_64__) && (defined(EWM_AVX2) || defined(EWM_AVX512))
  if (int bad = require(AVX2_SET, COUNT(AVX2_SET), 0x6, fault)) return bad;
#endif
#if defined(__x86_64__) && defined(EWM_AVX512)
  if (int bad = require(AVX512_SET, COUNT(AVX512_SET), 0xe6, fault)) return bad;
#endif
#if defined(__aarch64__) && defined(EWM_NEON)
  const struct {
    const char* name;
    unsigned bit;
  } set[] = {{"asimdhp", 10}, {"atomics", 8}, {"asimddp", 20}};  // arch/arm64/include/uapi/asm/hwcap.h
  unsigned long has = getauxval(AT_HWCAP);
  for (auto& f : set)
    if (!(has >> f.bit & 1))
      return refuse(fault, EWM_NO_INSTRUCTIONS, "this processor", Text("no %s", f.name), Text("%s", f.name));
#endif
  return EWM_OK;
}

}  // namespace ewm
