// Runs of offers of tiles on a team of threads, each tile noting that it was done: argv are threads, runs, whether to
// spin, whether the planning thread goes to another processor after half of them. Prints how many tiles were
// done other than once or out of turn, the futex calls, and how many workers may run where that thread does in the end.
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

bool may_run_on(int32_t tid, int32_t cpu) {
  cpu_set_t allowed;
  return sched_getaffinity(tid, sizeof(allowed), &allowed) == 0 && CPU_ISSET(cpu, &allowed);
}

int32_t another(const Team& team) {
  for (int32_t cpu = 0;; cpu++)
    if (cpu != team.home && CPU_ISSET(cpu, &team.allowed)) return cpu;
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
    if (n == follow_at) go_to(another(run.team));
    run.at = 0;
    for (auto& row : run.done)
      for (uint32_t& times : row) times = 0;
    offer(run.team, tiles_of(run, 0));
    ewm::run(run.team);
    unfinished += run.at != OFFERS || !is_over(run.team);
  }
  uint32_t beside = 0;
  for (uint32_t i = 1; i < made; i++) beside += run.team.home < 0 || may_run_on(run.team.seats[i].tid, run.team.home);
  dismiss(run.team);
  printf("{\"beside\": %u, \"home\": %d, \"moved\": %llu, ", beside, run.team.home, (unsigned long long)run.team.moved);
  printf("\"threads\": %u, \"wrong\": %llu, \"unfinished\": %llu, \"futex_calls\": %llu}\n", made,
         (unsigned long long)run.wrong, (unsigned long long)unfinished, (unsigned long long)run.team.futex_calls);
  return 0;
}
