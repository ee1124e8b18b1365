// The threads of one loop: made at init, asleep on a futex (or spinning) between runs, in step within one.
//
// Within a run a barrier spins: tiles are even, so the wait is short. Only a thread that has waited PATIENCE_NS and
// twice as long as its own work took goes to sleep: somebody was taken off his processor, perhaps by this very spin.
// With `spin` it never does.
#pragma once
#include <pthread.h>
#include <stdint.h>

namespace ewm {

constexpr uint32_t MAX_THREADS = 64;
constexpr uint64_t PATIENCE_NS = 200 * 1000;  // twice what waking a sleeper takes where it takes long

struct Team {
  uint32_t threads;  // the caller's own included
  uint32_t spin, stop;
  void (*work)(void* context, uint32_t thread);
  void* context;
  alignas(64) uint32_t runs;  // futex word: raised for each run
  alignas(64) uint32_t arrived;
  alignas(64) uint32_t phase;     // futex word: raised by the last to arrive
  uint32_t sleepers;              // in a barrier
  uint64_t futex_calls, held_up;  // held up: waits in a barrier that ended in sleep
  struct Seat {
    Team* team;
    uint32_t thread;
    pthread_t id;
  } seats[MAX_THREADS];
};

// Makes the threads; returns how many there are then, the caller included (fewer than asked when the system refuses).
uint32_t assemble(Team& team);
void dismiss(Team& team);
// Runs `work` on every thread. Back when the caller's own share is done: let `work` end in a barrier.
void run(Team& team);
// Returns when every thread has called it; `began_ns` is when the caller began its share of the work before it.
void barrier(Team& team, uint64_t began_ns);

uint64_t monotonic_ns();

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

}  // namespace ewm
