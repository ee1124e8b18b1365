// The threads of one loop: made at init, asleep on a futex (or spinning) between runs. Within a run none of them ever
// enters the kernel.
//
// A run is a sequence of offers, each of some tiles; whoever is on a processor takes the next one. So a thread that was
// taken off its own holds the others up only if it had a tile in hand, and never by being late. Who finishes the last
// tile of an offer makes the next one: no thread is in charge. Which thread computes a tile changes no bit of it.
//
// A worker that wakes on the processor of the thread that woke it waits for the scheduler's next look, some ms: perhaps
// all of a short plan. So workers are kept off the planning thread's processor, wherever it has come to run, and the kernel
// places them on the others as it sees fit.
#pragma once
#include <pthread.h>
#include <sched.h>
#include <stdint.h>

namespace ewm {

constexpr uint32_t MAX_THREADS = 64;
constexpr uint64_t PATIENCE_NS = 200 * 1000;  // of a wait that nothing held up
constexpr uint32_t NO_TILE = ~0u;
constexpr int32_t NOWHERE = -1;

struct Team {
  uint32_t threads;  // the caller's own included
  uint32_t spin, stop, anywhere;
  int32_t home;       // the processor of the planning thread when last looked at; NOWHERE: nobody is kept off it
  cpu_set_t allowed;  // to the caller of assemble
  void (*work)(void* context, uint32_t thread);
  void* context;
  alignas(64) uint32_t runs;   // futex word: raised for each run
  uint32_t ready;              // threads made so far, their stacks touched
  alignas(64) uint64_t offer;  // tiles << 32 | how many of them are taken; OVER between runs
  alignas(64) uint32_t left;   // of the offer's tiles: not finished
  alignas(64) uint64_t futex_calls, held_up, moved;
  struct Seat {
    Team* team;
    uint32_t thread;
    pthread_t id;
    int32_t tid;
  } seats[MAX_THREADS];
};

// Makes the threads; returns how many there are then, the caller included (fewer than asked when the system refuses).
uint32_t assemble(Team& team);
void dismiss(Team& team);
// Runs `work` on every thread; back when the caller's own returns.
void run(Team& team);

// What `work` is made of. One thread at a time makes offers: at first the caller of `run`, before it calls it, then
// the one that `finished` tells so.
void offer(Team& team, uint32_t tiles);
void end(Team& team);
bool is_over(const Team& team);
// One tile of the offer at hand, waiting for the next where all are taken; NO_TILE once the run is over. `tile_ns` is
// what the caller's last tile took: longer waits than twice that count as held up.
uint32_t take(Team& team, uint64_t tile_ns);
// A taken tile is done; true: it was the last one of its offer.
bool finished(Team& team);

uint64_t monotonic_ns();

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

}  // namespace ewm
