// What edgewm-tick does in a period beside observing, planning and acting (`drive` in runtime/tick.cc), again and again:
// four readings of the clock, a look at the other clock, four histograms with their series, the parts of the run.
//
//   clock_cost PERIODS ROUNDS     {"ns": [each round's, for one period], "allocations": in all rounds}
#include <stdio.h>
#include <stdlib.h>

#include "histogram.h"
#include "spans.h"

extern "C" void* __libc_malloc(size_t);
extern "C" void* __libc_calloc(size_t, size_t);
static uint64_t allocations;
extern "C" void* malloc(size_t bytes) { return allocations++, __libc_malloc(bytes); }
extern "C" void* calloc(size_t count, size_t bytes) { return allocations++, __libc_calloc(count, bytes); }

static Histogram late, act, age, tick;
static Histogram* const all[] = {&late, &act, &age, &tick};
static Spans spans;
static Watch watch;

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const uint64_t periods = strtoull(argv[1], nullptr, 10), rounds = strtoull(argv[2], nullptr, 10), period_ns = 1000000;
  for (Histogram* h : all) {
    h->series = h == &tick ? nullptr : static_cast<uint64_t*>(calloc(periods, sizeof(uint64_t)));
    h->room = h->series == nullptr ? 0 : periods;
    for (uint64_t i = 0; i < h->room; i++) h->series[i] = ~0ull;  // every page of it there
  }
  uint64_t observed = 0, misses = 0, in_a_row = 0, longest = 0;
  setvbuf(stdout, nullptr, _IONBF, 0);
  printf("{\"ns\": [");
  const uint64_t before = allocations;
  for (uint64_t round = 0; round < rounds; round++) {
    for (Histogram* h : all) h->count = 0;
    divide(spans, periods);
    const uint64_t start = read_ns(CLOCK_MONOTONIC);
    for (uint64_t i = 0; i < periods; i++) {
      const uint64_t began = read_ns(CLOCK_MONOTONIC);
      look(watch, began);
      observed += read_ns(CLOCK_MONOTONIC) - began;
      const uint64_t called = read_ns(CLOCK_MONOTONIC), ended = read_ns(CLOCK_MONOTONIC);
      add(act, ended - called);
      add(age, ended - start);
      add(tick, ended - began);
      const bool missed = ended - began >= period_ns;
      add(late, ended - began);
      add(spans, ended - began, missed);
      misses += missed;
      in_a_row = missed ? in_a_row + 1 : 0;
      if (in_a_row > longest) longest = in_a_row;
      if (spans.now.ticks >= spans.ticks_each) close(spans, ended - start, i, observed);
    }
    printf("%s%.2f", round == 0 ? "" : ", ", double(read_ns(CLOCK_MONOTONIC) - start) / double(periods));
  }
  const uint64_t after = allocations;
  printf("], \"allocations\": %llu, \"misses\": %llu}\n", (unsigned long long)(after - before),
         (unsigned long long)(misses + longest * 0));
  return 0;
}
