// Runs of offers of tiles on a team of threads, each tile noting that it was done: argv are threads, runs, whether to
// spin, whether the planning thread goes to the first worker's processor after half of them. Prints how many tiles were
// done other than once or out of turn, the futex calls, and where everybody may run in the end.
#include "threads.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

namespace {
using namespace ewm;

constexpr uint32_t OFFERS = 40, MOST = 9;

struct Run {
  Team team;
  uint32_t number, at;          // of the run, of the offer
  uint32_t done[OFFERS][MOST];  // how often, in this run
  uint64_t wrong;
};

uint32_t tiles_of(const Run& run, uint32_t offer) { return 1 + (run.number * 7 + offer * 5) % MOST; }

void work(void* context, uint32_t thread) {
  Run& run = *static_cast<Run*>(context);
  for (uint32_t tile; (tile = take(run.team, 0)) != NO_TILE;) {
    const uint32_t now = __atomic_load_n(&run.at, __ATOMIC_RELAXED);
    if ((run.number + now + tile + thread) % 101 == 0) sched_yield();  // a thread taken off its processor, tile in hand
    __atomic_add_fetch(&run.done[now][tile], 1, __ATOMIC_RELAXED);
    if (now != __atomic_load_n(&run.at, __ATOMIC_RELAXED)) __atomic_add_fetch(&run.wrong, 1, __ATOMIC_RELAXED);
    if (!finished(run.team)) continue;
    for (uint32_t i = 0; i < tiles_of(run, now); i++)
      if (run.done[now][i] != 1) __atomic_add_fetch(&run.wrong, 1, __ATOMIC_RELAXED);
    __atomic_store_n(&run.at, now + 1, __ATOMIC_RELAXED);
    if (now + 1 == OFFERS)
      end(run.team);
    else
      offer(run.team, tiles_of(run, now + 1));
  }
}

// The processor that a thread is kept on; -1: it may use several.
int32_t kept_on(int32_t tid) {
  cpu_set_t allowed;
  if (sched_getaffinity(tid, sizeof(allowed), &allowed) != 0 || CPU_COUNT(&allowed) != 1) return -1;
  for (int32_t cpu = 0;; cpu++)
    if (CPU_ISSET(cpu, &allowed)) return cpu;
}

void go_to(int32_t cpu) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  sched_setaffinity(0, sizeof(one), &one);
}
}  // namespace

int main(int, char** argv) {
  static Run run;
  run.team.threads = static_cast<uint32_t>(atoi(argv[1]));
  run.team.spin = static_cast<uint32_t>(atoi(argv[3]));
  run.team.work = work;
  run.team.context = &run;
  const uint32_t made = assemble(run.team);
  const uint32_t runs = static_cast<uint32_t>(atoi(argv[2])), follow_at = atoi(argv[4]) ? runs / 2 : runs;
  uint64_t unfinished = 0;
  for (uint32_t n = 0; n < runs; n++) {
    run.number = n;
    if (n == follow_at) go_to(run.team.seats[1].cpu);
    run.at = 0;
    for (auto& row : run.done)
      for (uint32_t& times : row) times = 0;
    offer(run.team, tiles_of(run, 0));
    ewm::run(run.team);
    unfinished += run.at != OFFERS || !is_over(run.team);
  }
  printf("{\"kept_on\": [%d", run.team.home);
  for (uint32_t i = 1; i < made; i++) printf(", %d", kept_on(run.team.seats[i].tid));
  dismiss(run.team);
  printf("], \"moved\": %llu, ", (unsigned long long)run.team.moved);
  printf("\"threads\": %u, \"wrong\": %llu, \"unfinished\": %llu, \"futex_calls\": %llu}\n", made,
         (unsigned long long)run.wrong, (unsigned long long)unfinished, (unsigned long long)run.team.futex_calls);
  return 0;
}
