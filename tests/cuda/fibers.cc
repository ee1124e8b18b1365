// Runs CUDA kernels on a CPU: every CUDA thread is a fiber, switched by hand where it waits for others.
//
// A normal grid runs block by block, a cooperative one keeps all blocks alive. Who goes on is drawn from a seed: 0 is the
// order of indices; up to 99 warps in random order, their lanes rotated; from 100 on unfairly, one random block running
// far ahead of the others. Faults (a barrier that not all threads reach, memory used by two threads without one between
// them, what was never awaited) end the launch with a report. Built with -fsanitize-coverage=trace-loads,trace-stores,
// kernels report each access to memory; `race.h` judges them.
#pragma clang attribute push(__attribute__((no_sanitize("coverage"))), apply_to = function)  // kernels are watched
#include "device.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#include "race.h"

namespace ewm {

Here here;
static Registered* kernels;
Registered::Registered(const char* name, uint32_t bytes, void (*run)(const void*))
    : name(name), bytes(bytes), run(run), next(kernels) {
  kernels = this;
}

namespace {

// ------------------------------------------------------------------------------------------------ switching

extern "C" void ewm_switch(void** save, void* to);
#if defined(__x86_64__)
constexpr int SAVED = 6;
__asm__(
    ".text\n.type ewm_switch,@function\newm_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");
constexpr int RETURN = SAVED, FRAME = SAVED + 2;  // in words; a function begins 8 bytes off 16
#elif defined(__aarch64__)
__asm__(
    ".text\n.type ewm_switch,@function\newm_switch:\n"
    "stp x29, x30, [sp, #-160]!\nstp x19, x20, [sp, #16]\nstp x21, x22, [sp, #32]\nstp x23, x24, [sp, #48]\n"
    "stp x25, x26, [sp, #64]\nstp x27, x28, [sp, #80]\nstp d8, d9, [sp, #96]\nstp d10, d11, [sp, #112]\n"
    "stp d12, d13, [sp, #128]\nstp d14, d15, [sp, #144]\n"
    "mov x9, sp\nstr x9, [x0]\nmov sp, x1\n"
    "ldp x19, x20, [sp, #16]\nldp x21, x22, [sp, #32]\nldp x23, x24, [sp, #48]\nldp x25, x26, [sp, #64]\n"
    "ldp x27, x28, [sp, #80]\nldp d8, d9, [sp, #96]\nldp d10, d11, [sp, #112]\nldp d12, d13, [sp, #128]\n"
    "ldp d14, d15, [sp, #144]\nldp x29, x30, [sp], #160\nret\n");
constexpr int RETURN = 1, FRAME = 20;
#endif

// ------------------------------------------------------------------------------------------------ state

enum State : uint8_t { READY, AT_BLOCK, AT_WARP, AT_GRID, DONE };
constexpr uint32_t STACK_BYTES = 64 << 10, MOST_FIBERS = 1 << 13, MOST_COPIES = 64, WARP = 32;

struct Copy {
  char* to;
  const char* from;
  uint32_t group;
};
struct Fiber {
  void* stack;
  const void* site;
  State state;
  uint32_t committed, copies, grids;  // of copies: groups, those on their way; grid barriers met
  Copy copy[MOST_COPIES];
};
struct Block {
  uint32_t ready, waiting, live;
  char* shared;
};
struct Warp {
  uint32_t ready, waiting;
  char exchange[WARP * EXCHANGE_BYTES];
};

Fiber* fibers;
Block* blocks;
Warp* warps;
void* scheduler;
uint32_t self;      // index of the running fiber
uint32_t threads;   // of a block
uint32_t first_block, block_total, at_grid, live;
const Registered* running;
const void* parameter;
char* message;
size_t message_bytes;
bool failed;
uint64_t random_state;
uint64_t (*given_clock)(void*);
void* clock_state;

uint32_t random(uint32_t below) {  // xorshift64*
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  return static_cast<uint32_t>((random_state * 0x2545F4914F6CDD1Dull) >> 33) % below;
}

void back() { ewm_switch(&fibers[self].stack, scheduler); }

void fail(const char* what, uint32_t block, uint32_t thread, const char* detail) {
  if (!failed && message_bytes)
    snprintf(message, message_bytes, "%s: %s, block %u, thread %u%s", running->name, what, block, thread, detail);
  failed = true;
}

uint32_t block_of(uint32_t fiber) { return fiber / threads; }

void set(uint32_t fiber, State state) {
  Fiber& f = fibers[fiber];
  Block& b = blocks[block_of(fiber)];
  Warp& w = warps[fiber / WARP];
  b.ready += (state == READY) - (f.state == READY);
  w.ready += (state == READY) - (f.state == READY);
  f.state = state;
}

void main_of_fiber() {
  running->run(parameter);
  set(self, DONE);
  back();
  abort();
}

void make_fiber(uint32_t i) {
  Fiber& f = fibers[i];
  auto* top = reinterpret_cast<void**>(reinterpret_cast<char*>(fibers + MOST_FIBERS) + size_t(i + 1) * STACK_BYTES);
  void** frame = top - FRAME;
  memset(frame, 0, FRAME * sizeof(void*));
  frame[RETURN] = reinterpret_cast<void*>(main_of_fiber);
  f.stack = frame;
  f.state = READY;
  f.copies = f.committed = f.grids = 0;
}

// ------------------------------------------------------------------------------------------------ planted faults

const void* sites[4][256];
uint32_t site_count[4], broken_site;
constexpr int WRONG_LANE = 4;
int broken = -1;  // index in sites: a barrier or wait of that site is missing; or WRONG_LANE

bool is_broken(int kind, const void* site) {
  uint32_t i = 0;
  while (i < site_count[kind] && sites[kind][i] != site) i++;
  if (i == site_count[kind] && i < 256) sites[kind][site_count[kind]++] = site;
  return broken == kind && broken_site == i;
}

// ------------------------------------------------------------------------------------------------ waiting

void open_block(uint32_t block) {
  const uint32_t first = block * threads;
  for (uint32_t i = first; i < first + threads; i++)
    if (fibers[i].site != fibers[first].site)
      return fail("threads of a block wait at different barriers", first_block + block, i - first, "");
  blocks[block].waiting = 0;
  race::next_epoch(block);
  for (uint32_t i = first; i < first + threads; i++) set(i, READY);
}

// The running fiber stops here.
void rest(State state, const void* site) {
  fibers[self].site = site;
  set(self, state);
}

}  // namespace

void wait_block(const void* site) {
  if (is_broken(0, site)) return;
  const uint32_t block = block_of(self);
  rest(AT_BLOCK, site);
  if (++blocks[block].waiting == threads) open_block(block);
  back();
}

void wait_warp(const void* site) {
  Warp& w = warps[self / WARP];
  rest(AT_WARP, site);
  if (++w.waiting == WARP) {
    w.waiting = 0;
    for (uint32_t i = self / WARP * WARP, end = i + WARP; i < end; i++) set(i, READY);
  }
  back();
}

void order_warp(const void* site) {
  if (is_broken(3, site)) return;
  wait_warp(site);
  race::next_warp_epoch(self / WARP, self % WARP);
}

void wait_grid(const void* site) {
  if (broken == 1 && broken_site == fibers[self].grids++) return wait_block(site);
  rest(AT_GRID, site);
  if (++at_grid == live) {
    at_grid = 0;
    race::next_grid();
    for (uint32_t b = 0; b < block_total; b++) race::next_epoch(b);
    for (uint32_t i = 0; i < block_total * threads; i++) set(i, READY);
  }
  back();
}

char* exchange() { return warps[self / WARP].exchange; }

void issue_copy(char* to, const char* from) {
  Fiber& f = fibers[self];
  if (f.copies == MOST_COPIES || reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16) {
    fail(f.copies == MOST_COPIES ? "too many copies" : "a copy that is not aligned", here.block, here.thread, "");
    return back();
  }
  race::copy_begins(to, from);
  memset(to, 0x7f, 16);
  f.copy[f.copies++] = Copy{to, from, f.committed};
}

void commit_copies() { fibers[self].committed++; }

void wait_copies(uint32_t groups, const void* site) {
  Fiber& f = fibers[self];
  if (is_broken(2, site)) groups++;
  uint32_t kept = 0;
  for (uint32_t i = 0; i < f.copies; i++)
    if (f.copy[i].group + groups < f.committed) {
      memcpy(f.copy[i].to, f.copy[i].from, 16);
      race::copy_ends(f.copy[i].to);
    } else {
      f.copy[kept++] = f.copy[i];
    }
  f.copies = kept;
}

uint64_t clock_ns() {
  if (given_clock) return given_clock(clock_state);
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return uint64_t(now.tv_sec) * 1000000000u + uint64_t(now.tv_nsec);
}

void count_shared(uint32_t* counter) { __atomic_add_fetch(counter, 1, __ATOMIC_RELAXED); }

uint32_t lane_of(uint32_t lane) { return broken == WRONG_LANE ? (lane + 1) % WARP : lane; }

namespace race {
Access now() { return {self, block_of(self), threads}; }
void report(const char* what, const void* at, uint32_t other) {
  char detail[96];
  const char* base = blocks[block_of(self)].shared;
  const bool shared = at >= base && at < base + SHARED_BYTES;
  snprintf(detail, sizeof(detail), ", with thread %u of block %u, %s byte %lld", other % threads,
           first_block + other / threads, shared ? "shared" : "global",
           static_cast<long long>(shared ? static_cast<const char*>(at) - base : offset_of(at)));
  fail(what, here.block, here.thread, detail);
}
}  // namespace race

namespace {

// ------------------------------------------------------------------------------------------------ scheduling

void go_on(uint32_t fiber) {
  self = fiber;
  const uint32_t block = block_of(fiber);
  here.thread = fiber % threads;
  here.block = first_block + block;
  here.shared = blocks[block].shared;
  race::enter(block);
  ewm_switch(&scheduler, fibers[fiber].stack);
  race::leave();
  if (fibers[fiber].state == DONE) {
    live--;
    Block& b = blocks[block];
    b.live--;
    if (b.waiting > 0) fail("a thread left while others wait at a barrier", here.block, here.thread, "");
    if (fibers[fiber].copies) fail("a thread left before its copies arrived", here.block, here.thread, "");
    if (at_grid > 0) fail("a thread left while others wait for the grid", here.block, here.thread, "");
  }
}

void run_warp(uint32_t warp, uint32_t turn) {
  const uint32_t lanes = threads < WARP ? threads : WARP;
  for (uint32_t i = 0; i < lanes && !failed; i++) {
    const uint32_t fiber = warp * lanes + (i + turn) % lanes;
    if (fibers[fiber].state == READY) go_on(fiber);
  }
}

bool stuck() {
  for (uint32_t b = 0; b < block_total; b++)
    if (blocks[b].ready) return false;
  return true;
}

void run_blocks(uint64_t seed) {
  const uint32_t in_block = threads < WARP ? 1 : threads / WARP;
  uint32_t block = 0, burst = 0;
  while (live && !failed) {
    if (stuck()) {
      for (uint32_t i = 0; i < block_total * threads; i++)
        if (fibers[i].state != DONE) {
          const char* at = fibers[i].state == AT_BLOCK ? " at a block barrier" : fibers[i].state == AT_WARP
                                                             ? " in its warp" : " for the grid";
          return fail("deadlock, waits", first_block + i / threads, i % threads, at);
        }
    }
    if (seed >= 100) {  // unfair: one block for a long while
      if (burst == 0 || !blocks[block].ready) {
        do block = random(block_total);
        while (!blocks[block].ready);
        burst = 1 + random(400);
      }
      burst--;
    } else if (seed > 0) {
      block = random(block_total);
    } else {
      block = (block + 1) % block_total;
    }
    if (!blocks[block].ready) continue;
    for (uint32_t w = 0; w < in_block && !failed; w++) {
      const uint32_t of_block = seed ? random(in_block) : w;
      run_warp(block * in_block + of_block, seed ? random(WARP) : 0);
    }
  }
}

void start_blocks(uint32_t first, uint32_t count, uint32_t shared_bytes) {
  first_block = first, block_total = count, at_grid = 0, live = count * threads;
  for (uint32_t b = 0; b < count; b++) {
    blocks[b] = Block{threads, 0, threads, blocks[b].shared};
    memset(blocks[b].shared, 0xCD, SHARED_BYTES);
    race::begin_block(b, blocks[b].shared, shared_bytes);
  }
  for (uint32_t i = 0; i < count * threads; i++) make_fiber(i);
  for (uint32_t w = 0; w < (count * threads + WARP - 1) / WARP; w++)
    warps[w].waiting = 0, warps[w].ready = threads < WARP ? threads : WARP;
}

}  // namespace
}  // namespace ewm

using namespace ewm;

#define EXPORT extern "C" __attribute__((visibility("default")))

static int launch(const char* kernel, const uint32_t grid[3], const uint32_t block[3], uint32_t shared_bytes,
                  const void* launch_params, uint64_t schedule_seed, bool cooperative, char* fault,
                  size_t fault_bytes) {
  running = kernels;
  while (running && strcmp(running->name, kernel)) running = running->next;
  message = fault, message_bytes = fault_bytes, failed = false;
  if (!running || shared_bytes > SHARED_BYTES) {
    snprintf(fault, fault_bytes, "%s: %s", kernel, running ? "too much shared memory" : "no such kernel");
    return 1;
  }
  if (!fibers) {
    const size_t bytes = MOST_FIBERS * (sizeof(Fiber) + size_t(STACK_BYTES));
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    fibers = static_cast<Fiber*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0));
    blocks = static_cast<Block*>(calloc(MOST_FIBERS, sizeof(Block)));
    warps = static_cast<Warp*>(calloc(MOST_FIBERS, sizeof(Warp)));
    if (fibers == MAP_FAILED || !blocks || !warps) abort();
  }
  threads = block[0] * block[1] * block[2];
  const uint32_t count = grid[0] * grid[1] * grid[2], together = cooperative ? count : 1;
  if (together * threads > MOST_FIBERS || (threads > WARP && threads % WARP)) {
    snprintf(fault, fault_bytes, "%s: %u blocks of %u threads", kernel, count, threads);
    return 1;
  }
  for (uint32_t b = 0; b < together; b++)
    if (!blocks[b].shared) blocks[b].shared = static_cast<char*>(aligned_alloc(128, SHARED_BYTES));
  random_state = schedule_seed * 0x9E3779B97F4A7C15ull + 1;
  here.blocks = count;
  parameter = launch_params;
  race::next_grid();
  for (uint32_t b = 0; b < count && !failed; b += together) {
    start_blocks(b, together, shared_bytes);
    run_blocks(schedule_seed);
  }
  return failed;
}

// One launch; 0 where it ended well, else `fault` says why.
EXPORT int cuda_cpu_launch(const char* kernel, const uint32_t grid[3], const uint32_t block[3], uint32_t shared_bytes,
                           const void* launch_params, uint64_t schedule_seed, char* fault, size_t fault_bytes) {
  return launch(kernel, grid, block, shared_bytes, launch_params, schedule_seed, false, fault, fault_bytes);
}
// The same of a cooperative kernel: all blocks are there at once.
EXPORT int cuda_cpu_launch_cooperative(const char* kernel, const uint32_t grid[3], const uint32_t block[3],
                                       uint32_t shared_bytes, const void* launch_params, uint64_t schedule_seed,
                                       char* fault, size_t fault_bytes) {
  return launch(kernel, grid, block, shared_bytes, launch_params, schedule_seed, true, fault, fault_bytes);
}

EXPORT void cuda_cpu_clock(uint64_t (*ns)(void*), void* state) { given_clock = ns, clock_state = state; }

// Bytes that kernels may use (or, where `forbidden`, may not); bytes 0 at first forgets all.
EXPORT void cuda_cpu_watch(const void* at, uint64_t bytes, bool forbidden) { race::watch(at, bytes, forbidden); }

// Plants a fault: 0 the block barrier of a site left out, 1 the grid barrier that comes as `site`th, 2 a wait that is one group late, 3 a
// warp's barrier left out, 4 warps that read their neighbour's lane; -1 none, and no site met yet.
EXPORT void cuda_cpu_break(int kind, uint32_t site) {
  broken = kind, broken_site = site;
  if (kind < 0) memset(site_count, 0, sizeof(site_count));
}
// How many sites of a kind were met.
EXPORT uint32_t cuda_cpu_sites(int kind) { return kind < WRONG_LANE ? site_count[kind] : 1; }
#pragma clang attribute pop
