// What kernels use of a GPU: a few names over CUDA's built-ins and inline PTX, for NVRTC, which has no standard headers.
// Tests have a file of the same name that runs the same kernels on a CPU (tests/cuda/device.h).
#pragma once

typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
typedef unsigned long long uintptr_t;

#define __builtin_inff() __int_as_float(0x7f800000)  // NVRTC has no such built-in; functors are written with it

// A kernel of whose blocks a multiprocessor holds RESIDENT at once (so that a thread has at most 128 registers).
#define EWM_KERNEL(name, Params) extern "C" __global__ void __launch_bounds__(ewm::THREADS, ewm::RESIDENT) name(const Params l)
// The same with up to 255 registers, where few blocks have much to do.
#define EWM_WIDE_KERNEL(name, Params) extern "C" __global__ void __launch_bounds__(ewm::THREADS, 1) name(const Params l)
#define EWM_THREAD(name, Params) extern "C" __global__ void __launch_bounds__(1) name(const Params l)

namespace ewm {

inline uint32_t thread_index() { return threadIdx.x; }
inline uint32_t block_index() { return blockIdx.x; }
inline uint32_t block_count() { return gridDim.x; }

inline char* shared_memory() {  // of the block, as many bytes as it was launched with
  extern __shared__ __align__(128) char memory[];
  return memory;
}

inline void block_sync() { __syncthreads(); }
inline void warp_sync() { __syncwarp(); }
inline uint32_t ballot(bool holds) { return __ballot_sync(0xffffffffu, holds); }
inline void count_shared(uint32_t* counter) { atomicAdd(counter, 1u); }

// All blocks of a cooperative launch wait for each other. Each adds what makes 2^31 of all: the highest bit of `barrier`
// turns when the last one comes, and nothing has to be reset. It was 0 before the first launch.
inline void grid_sync(uint32_t* barrier) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    const uint32_t before = atomicAdd(barrier, blockIdx.x == 0 ? 0x80000000u - (gridDim.x - 1) : 1u);
    while (((before ^ *static_cast<volatile uint32_t*>(barrier)) & 0x80000000u) == 0) {
    }
    __threadfence();
  }
  __syncthreads();
}

// 16 bytes from global to shared memory, both aligned to 16, past the registers; there after wait and block_sync.
inline void async_copy(char* to, const char* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from)
               : "memory");
}
inline void async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int groups> inline void async_wait() {  // until at most so many groups of this thread are on their way
  asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
}

// Four 8x8 matrices of 16-bit numbers; lane i gives the row of 16 bytes i % 8 of matrix i / 8.
inline void load_matrices(uint32_t* x, const char* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}

// sum += a b: a 16 x 32 bytes, b 32 bytes x 8; fragments as in the PTX manual, "mma.m16n8k32" and "mma.m16n8k16".
inline void multiply_matrices(int32_t* sum, const uint32_t* a, const uint32_t* b) {  // i8
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
inline void multiply_matrices(float* sum, const uint32_t* a, const uint32_t* b) {  // bf16
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
struct OfHalves {  // a sum of products of half
  float value;
  OfHalves& operator+=(OfHalves other) { return value += other.value, *this; }
};
inline void multiply_matrices(OfHalves* sum, const uint32_t* a, const uint32_t* b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0].value), "+f"(sum[1].value), "+f"(sum[2].value), "+f"(sum[3].value)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

constexpr uint32_t SECTOR = 32;  // bytes that are brought together
// The sector of `at` on its way to where it is near; nothing waits for it.
inline void touch(const void* at) {
  asm volatile("{\n\t.reg .u32 %%touched;\n\tld.global.u32 %%touched, [%0];\n\t}" ::"l"(at));
}

inline uint64_t clock_ns() {
  uint64_t now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  return now;
}

inline float bits_float(uint32_t x) { return __uint_as_float(x); }
inline uint32_t float_bits(float x) { return __float_as_uint(x); }
inline float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
inline float quotient(float a, float b) { return __fdiv_rn(a, b); }
inline float square_root(float a) { return __fsqrt_rn(a); }
inline float to_even(float a) { return rintf(a); }
inline float floor_of(float a) { return floorf(a); }
// a < b ? a : b, spelled out: where b is a constant, the compiler would take min, which puts -0 below 0.
#define EWM_FIRST_IF(name, compare)                                                                                \
  inline float name(float a, float b) {                                                                            \
    float x;                                                                                                       \
    asm("{\n\t.reg .pred %%first;\n\tsetp." compare ".f32 %%first, %1, %2;\n\tselp.f32 %0, %1, %2, %%first;\n\t}" \
        : "=f"(x)                                                                                                  \
        : "f"(a), "f"(b));                                                                                         \
    return x;                                                                                                      \
  }
EWM_FIRST_IF(lesser, "lt")
EWM_FIRST_IF(greater, "gt")
#undef EWM_FIRST_IF
inline int32_t ones(uint32_t x) { return __popc(x); }

}  // namespace ewm
