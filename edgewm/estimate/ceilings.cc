// The peaks of a machine (kernels/peaks.cc) as JSON: {"1": {...}, "THREADS": {...}, "caches": {...}}, rates in 10^9 a
// second. The best of a few rounds counts, by the time a thread was on a processor: other processes can only make a
// machine look slower than it is.
//   edgewm-ceilings THREADS STREAM_BYTES [NAME BYTES]...     streams through so many bytes, all threads
//                                                             together; sizes of caches by name
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

extern "C" {
int64_t ewm_peak_fp32(int64_t rounds);
int64_t ewm_peak_bf16(int64_t rounds);
int64_t ewm_peak_int8(int64_t rounds);
int64_t ewm_peak_reread(const char* buffer, int64_t bytes, int64_t rounds);
}

namespace {

constexpr int ROUNDS = 15, MOST_THREADS = 256;
constexpr double ROUND_S = 0.01;  // long beside a clock's read, short beside a scheduler's mood
constexpr int64_t TRIED = 10000, SMALLEST_BYTES = 1 << 26;

struct Work {
  int64_t (*compute)(int64_t);  // null: read
  const char* buffer;
  int64_t bytes, rounds;
  double rate;
  pthread_barrier_t* ready;
};

double on_processor_s() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

void* one(void* given) {
  Work& work = *static_cast<Work*>(given);
  pthread_barrier_wait(work.ready);
  const double began = on_processor_s();
  const int64_t n = work.rounds;
  const int64_t units = work.compute ? work.compute(n) : ewm_peak_reread(work.buffer, work.bytes, n);
  work.rate = static_cast<double>(units) / (on_processor_s() - began) / 1e9;
  return nullptr;
}

double rate(const Work* works, int threads) {
  double best = 0;
  for (int round = 0; round < ROUNDS; round++) {
    pthread_t made[MOST_THREADS];
    Work own[MOST_THREADS];
    pthread_barrier_t ready;
    pthread_barrier_init(&ready, nullptr, static_cast<unsigned>(threads));
    for (int i = 0; i < threads; i++) {
      own[i] = works[i];
      own[i].ready = &ready;
      if (i > 0 && pthread_create(&made[i], nullptr, one, &own[i]) != 0) exit(3);
    }
    one(&own[0]);
    double all = own[0].rate;
    for (int i = 1; i < threads; i++) {
      pthread_join(made[i], nullptr);
      all += own[i].rate;
    }
    pthread_barrier_destroy(&ready);
    if (all > best) best = all;
  }
  return best;
}

char* filled(int64_t bytes) {
  char* buffer = static_cast<char*>(malloc(static_cast<size_t>(bytes)));
  if (buffer == nullptr) exit(3);
  memset(buffer, 1, static_cast<size_t>(bytes));
  return buffer;
}

void print_peaks(int threads, int64_t stream_bytes) {
  const int64_t own_bytes = stream_bytes / threads > SMALLEST_BYTES ? stream_bytes / threads : SMALLEST_BYTES;
  const struct {
    const char* name;
    int64_t (*compute)(int64_t);
  } chains[] = {{"fp32_gflops", ewm_peak_fp32}, {"bf16_gflops", ewm_peak_bf16}, {"int8_gops", ewm_peak_int8}};
  Work works[MOST_THREADS];
  printf("\"%d\": {", threads);
  for (const auto& chain : chains) {
    const double began = on_processor_s();
    chain.compute(TRIED);
    const double rounds = static_cast<double>(TRIED) * ROUND_S / (on_processor_s() - began) + 1;
    for (int i = 0; i < threads; i++) works[i] = {chain.compute, nullptr, 0, static_cast<int64_t>(rounds), 0, nullptr};
    printf("\"%s\": %.6f, ", chain.name, rate(works, threads));
  }
  for (int i = 0; i < threads; i++) works[i] = {nullptr, filled(own_bytes), own_bytes, 1, 0, nullptr};
  printf("\"dram_gbps\": %.6f}, ", rate(works, threads));
  for (int i = 0; i < threads; i++) free(const_cast<char*>(works[i].buffer));
}

}  // namespace

int main(int count, char** words) {
  const int threads = count > 2 ? atoi(words[1]) : 0;
  if (threads < 1 || threads > MOST_THREADS || count % 2 == 0) {
    fprintf(stderr, "error: not so\n  where: edgewm-ceilings\n  fix: THREADS STREAM_BYTES [NAME BYTES]...\n");
    return 2;
  }
  printf("{");
  print_peaks(1, atoll(words[2]));
  if (threads > 1) print_peaks(threads, atoll(words[2]));
  printf("\"caches\": {");
  for (int i = 3; i < count; i += 2) {
    const int64_t bytes = atoll(words[i + 1]) / 2;  // half of a cache: a program's own data take some of it
    char* buffer = filled(bytes);
    const Work work = {nullptr, buffer, bytes, SMALLEST_BYTES / bytes + 1, 0, nullptr};
    printf("%s\"%s_gbps\": %.6f", i > 3 ? ", " : "", words[i], rate(&work, 1));
    free(buffer);
  }
  printf("}}\n");
  return 0;
}
