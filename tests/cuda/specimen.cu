// A kernel with everything that the PTX interpreter must get right: copies in flight, matrices, warps, blocks.
// out[m][n] = sum_k a[m][k] b[n][k] of int8, m and n up to 64 and 32 a block, k a multiple of 32; best[m] the largest.
typedef signed char int8_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;

constexpr int STAGES = 3, ROWS = 64, COLUMNS = 32, DEPTH = 32;  // bytes of k a stage

inline uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

extern "C" __global__ void __launch_bounds__(128) product(const int8_t* a, const int8_t* b, int* out, int* best, int m,
                                                          int n, int depth) {
  __shared__ __align__(128) int8_t rows[STAGES][ROWS * DEPTH], columns[STAGES][COLUMNS * DEPTH];
  __shared__ int most[4][16];
  const int t = threadIdx.x, lane = t % 32, warp = t / 32, steps = depth / DEPTH;
  const int row0 = blockIdx.x * ROWS, column0 = blockIdx.y * COLUMNS;
  auto fetch = [&](int step) {
    const int slot = step % STAGES, row = t / 2, at = t % 2 * 16;
    if (step < steps) {
      if (row0 + row < m)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(rows[slot] + row * DEPTH + at)),
                     "l"(a + (row0 + row) * depth + step * DEPTH + at));
      if (row < COLUMNS)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                         shared_address(columns[slot] + row * DEPTH + at)),
                     "l"(column0 + row < n ? b + (column0 + row) * depth + step * DEPTH + at : b),
                     "r"(column0 + row < n ? 16 : 0));
    }
    asm volatile("cp.async.commit_group;");
  };
  int sum[4][4] = {};
  for (int s = 0; s < STAGES - 1; s++) fetch(s);
  for (int step = 0; step < steps; step++) {
    asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2));
    __syncthreads();
    const int slot = step % STAGES;
    uint32_t x[4];
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(shared_address(rows[slot] + (warp * 16 + lane % 16) * DEPTH + lane / 16 * 16)));
    for (int j = 0; j < 4; j++) {
      const int8_t* y = columns[slot] + (j * 8 + lane / 4) * DEPTH + lane % 4 * 4;
      asm volatile(
          "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
          "%3};"
          : "+r"(sum[j][0]), "+r"(sum[j][1]), "+r"(sum[j][2]), "+r"(sum[j][3])
          : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(*reinterpret_cast<const uint32_t*>(y)),
            "r"(*reinterpret_cast<const uint32_t*>(y + 16)));
    }
    fetch(step + STAGES - 1);
  }
  for (int half = 0; half < 2; half++) {
    const int row = warp * 16 + half * 8 + lane / 4;
    int largest = -2147483647 - 1;
    for (int j = 0; j < 4; j++)
      for (int i = 0; i < 2; i++) {
        const int column = column0 + j * 8 + lane % 4 * 2 + i;
        if (column >= n) continue;
        largest = max(largest, sum[j][half * 2 + i]);
        if (row0 + row < m) out[(row0 + row) * n + column] = sum[j][half * 2 + i];
      }
    for (int away = 1; away < 4; away *= 2) largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, away));
    if (lane % 4 == 0) most[warp][half * 8 + lane / 4] = largest;
  }
  __syncthreads();
  if (t < ROWS && row0 + t < m) atomicMax(best + row0 + t, most[t / 16][t % 16]);
}

// Divergence, conversions, bytes and shifts: out[i] of i in [0, n).
extern "C" __global__ void __launch_bounds__(64) scalars(const float* x, const unsigned char* bytes, float* out,
                                                         uint32_t* bits, int n) {
  const int i = blockIdx.x * 64 + threadIdx.x;
  if (i >= n) return;
  float y = x[i];
  uint32_t word = bytes[i] | bytes[(i + 1) % n] << 8 | bytes[(i + 2) % n] << 16;
  for (int k = 0; k < i % 5; k++) {
    y = __fmaf_rn(y, 0.75f, __fdiv_rn(1.0f, 3.0f + k));
    if (word & 1) y = -y;
    word = (word >> 1) ^ (word & 1 ? 0xEDB88320u : 0u);
  }
  out[i] = __fsqrt_rn(fabsf(y)) + rintf(y * 8.0f) + static_cast<float>(static_cast<int>(y));
  bits[i] = static_cast<uint32_t>((static_cast<uint64_t>(word) * 0xD2511F53u) >> 32) ^ __popc(word);
}
