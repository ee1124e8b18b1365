#include "threads.h"

#include <linux/futex.h>
#include <sched.h>
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
  seat->tid = static_cast<int32_t>(syscall(SYS_gettid));
  __atomic_add_fetch(&team.ready, 1, __ATOMIC_RELEASE);
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

// Keeps the workers off the processor that the planning thread is on. One that the kernel will not have kept off runs
// where it may: the plans are the same.
void make_way(Team& team) {
  if (team.home == NOWHERE) return;
  const int32_t here = sched_getcpu();  // no system call: the vDSO or, on aarch64 since glibc 2.35, rseq has it
  if (here == team.home || here < 0) return;
  team.home = here;
  cpu_set_t others = team.allowed;
  CPU_CLR(here, &others);
  for (uint32_t i = 1; i < team.threads; i++) {
    __atomic_add_fetch(&team.moved, 1, __ATOMIC_RELAXED);
    sched_setaffinity(team.seats[i].tid, sizeof(others), &others);
  }
}

// Where the process may use a processor for each thread.
void place(Team& team) {
  const bool places = !team.anywhere && team.threads > 1 &&
                      sched_getaffinity(0, sizeof(team.allowed), &team.allowed) == 0 &&
                      CPU_COUNT(&team.allowed) >= static_cast<int>(team.threads);
  team.home = places ? CPU_SETSIZE : NOWHERE;  // none that there is, so that the first look keeps them off the present one
  make_way(team);
  team.moved = 0;
}

void wake(Team& team) {
  if (!team.spin) make_way(team);  // spinning workers hold their processors: the planning thread does not come there
  __atomic_store_n(&team.runs, team.runs + 1, __ATOMIC_RELEASE);
  if (!team.spin && team.threads > 1) futex(team, &team.runs, FUTEX_WAKE_PRIVATE, team.threads - 1);
}

constexpr uint32_t PAUSES_A_LOOK = 64;  // at the clock
constexpr uint64_t OVER = uint64_t(1) << 63;
uint32_t taken(uint64_t offer) { return uint32_t(offer); }
uint32_t offered(uint64_t offer) { return uint32_t(offer >> 32); }
bool open(uint64_t offer) { return !(offer & OVER) && taken(offer) < offered(offer); }

}  // namespace

uint64_t monotonic_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return uint64_t(t.tv_sec) * 1000000000u + uint64_t(t.tv_nsec);
}

void offer(Team& team, uint32_t tiles) {
  __atomic_store_n(&team.left, tiles, __ATOMIC_RELAXED);
  __atomic_store_n(&team.offer, uint64_t(tiles) << 32, __ATOMIC_RELEASE);
}

void end(Team& team) { __atomic_store_n(&team.offer, OVER, __ATOMIC_RELEASE); }

bool is_over(const Team& team) { return __atomic_load_n(&team.offer, __ATOMIC_ACQUIRE) & OVER; }

uint32_t take(Team& team, uint64_t tile_ns) {
  uint64_t patient_until_ns = 0;
  for (uint32_t pauses = 1;; pauses++) {
    uint64_t now = __atomic_load_n(&team.offer, __ATOMIC_ACQUIRE);
    if (now & OVER) return NO_TILE;
    if (open(now)) {
      // Tiles and count are one word: what is taken belongs to the offer that stands then, be it this one or a later.
      now = __atomic_fetch_add(&team.offer, 1, __ATOMIC_ACQ_REL);
      if (open(now)) return taken(now);
    }
    pause();
    if (pauses % PAUSES_A_LOOK != 0) continue;
    const uint64_t now_ns = monotonic_ns();
    if (patient_until_ns == 0) patient_until_ns = now_ns + PATIENCE_NS + 2 * tile_ns;
    if (now_ns > patient_until_ns) {
      __atomic_add_fetch(&team.held_up, 1, __ATOMIC_RELAXED);
      patient_until_ns = ~uint64_t(0);  // once a wait
    }
  }
}

bool finished(Team& team) { return __atomic_sub_fetch(&team.left, 1, __ATOMIC_ACQ_REL) == 0; }

static uint32_t make_threads(Team& team) {
  end(team);
  uint32_t made = 1;
  for (; made < team.threads; made++) {
    Team::Seat& seat = team.seats[made];
    seat.team = &team;
    seat.thread = made;
    if (pthread_create == nullptr || pthread_join == nullptr || pthread_create(&seat.id, nullptr, serve, &seat) != 0)
      break;
  }
  while (__atomic_load_n(&team.ready, __ATOMIC_ACQUIRE) < made - 1) sched_yield();
  if (made < team.threads) {
    team.threads = made;
    dismiss(team);
    return made;
  }
  place(team);
  return made;
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
