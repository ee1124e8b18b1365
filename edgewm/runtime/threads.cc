#include "threads.h"

#include <linux/futex.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

// Weak, so that the library needs libc alone: until glibc 2.34 these live in libpthread, which only a process that
// wants more than one thread must have.
extern "C" {
int pthread_create(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*) __attribute__((weak));
int pthread_join(pthread_t, void**) __attribute__((weak));
}

namespace ewm {
namespace {

constexpr uint32_t STACK_TOUCH_BYTES = 128 * 1024;  // of each worker's stack, so that kernels fault on none of it

__attribute__((noinline)) void touch_stack() {
  volatile char stack[STACK_TOUCH_BYTES];
  for (uint32_t i = 0; i < STACK_TOUCH_BYTES; i += 1024) stack[i] = 0;
}

void futex(Team& team, uint32_t* word, int operation, uint32_t value) {
  __atomic_add_fetch(&team.futex_calls, 1, __ATOMIC_RELAXED);
  syscall(SYS_futex, word, operation, value, nullptr);
}

void* serve(void* argument) {
  auto* seat = static_cast<Team::Seat*>(argument);
  Team& team = *seat->team;
  touch_stack();
  barrier(team, monotonic_ns());
  for (uint32_t seen = 0;;) {
    uint32_t now;
    while ((now = __atomic_load_n(&team.runs, __ATOMIC_ACQUIRE)) == seen) {
      if (team.spin)
        pause();
      else
        futex(team, &team.runs, FUTEX_WAIT_PRIVATE, seen);
    }
    seen = now;
    if (team.stop) return nullptr;
    team.work(team.context, seat->thread);
  }
}

void wake(Team& team) {
  __atomic_store_n(&team.runs, team.runs + 1, __ATOMIC_RELEASE);
  if (!team.spin && team.threads > 1) futex(team, &team.runs, FUTEX_WAKE_PRIVATE, team.threads - 1);
}

}  // namespace

uint64_t monotonic_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return uint64_t(t.tv_sec) * 1000000000u + uint64_t(t.tv_nsec);
}

void barrier(Team& team, uint64_t began_ns) {
  if (team.threads == 1) return;
  const uint32_t phase = __atomic_load_n(&team.phase, __ATOMIC_RELAXED);
  if (__atomic_add_fetch(&team.arrived, 1, __ATOMIC_ACQ_REL) == team.threads) {
    __atomic_store_n(&team.arrived, 0, __ATOMIC_RELAXED);
    // Sequentially consistent on both sides: either this sees a sleeper, or the sleeper sees the new phase.
    __atomic_store_n(&team.phase, phase + 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&team.sleepers, __ATOMIC_SEQ_CST) != 0)
      futex(team, &team.phase, FUTEX_WAKE_PRIVATE, team.threads);
    return;
  }
  const uint64_t arrived_ns = monotonic_ns(), patience_ns = PATIENCE_NS + 2 * (arrived_ns - began_ns);
  for (;;) {
    for (int i = 0; i < 64; i++, pause())
      if (__atomic_load_n(&team.phase, __ATOMIC_ACQUIRE) != phase) return;
    if (team.spin || monotonic_ns() - arrived_ns < patience_ns) continue;
    __atomic_add_fetch(&team.held_up, 1, __ATOMIC_RELAXED);
    __atomic_add_fetch(&team.sleepers, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&team.phase, __ATOMIC_SEQ_CST) == phase) futex(team, &team.phase, FUTEX_WAIT_PRIVATE, phase);
    __atomic_sub_fetch(&team.sleepers, 1, __ATOMIC_SEQ_CST);
    return;
  }
}

static uint32_t make_threads(Team& team) {
  for (uint32_t i = 1; i < team.threads; i++) {
    Team::Seat& seat = team.seats[i];
    seat.team = &team;
    seat.thread = i;
    if (pthread_create == nullptr || pthread_join == nullptr || pthread_create(&seat.id, nullptr, serve, &seat) != 0) {
      // The ones made wait in the first barrier: let them through with their own number.
      __atomic_store_n(&team.stop, 1, __ATOMIC_RELAXED);
      team.threads = i;
      if (i > 1) {
        while (__atomic_load_n(&team.arrived, __ATOMIC_ACQUIRE) < i - 1) pause();
        __atomic_store_n(&team.phase, team.phase + 1, __ATOMIC_SEQ_CST);
        futex(team, &team.phase, FUTEX_WAKE_PRIVATE, i);
        dismiss(team);
      }
      return i;
    }
  }
  barrier(team, monotonic_ns());
  return team.threads;
}

uint32_t assemble(Team& team) {
  // The robot's signals go to the robot's threads; faults and profilers must still reach ours.
  sigset_t blocked, before;
  sigfillset(&blocked);
  const int ours[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGPROF};
  for (int signal : ours) sigdelset(&blocked, signal);
  sigprocmask(SIG_SETMASK, &blocked, &before);
  uint32_t made = make_threads(team);
  sigprocmask(SIG_SETMASK, &before, nullptr);
  return made;
}

void dismiss(Team& team) {
  if (team.threads == 1) return;
  team.stop = 1;
  wake(team);
  for (uint32_t i = 1; i < team.threads; i++) pthread_join(team.seats[i].id, nullptr);
}

void run(Team& team) {
  wake(team);
  team.work(team.context, 0);
}

}  // namespace ewm
