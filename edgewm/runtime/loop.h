// One robot's state, all of it inside the caller's arena.
#pragma once
#include "handoff.h"
#include "kernel.h"
#include "model.h"
#include "threads.h"

namespace ewm {

constexpr uint64_t CACHE_LINE = 64;

inline uint64_t aligned(uint64_t bytes) { return (bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE; }

// What an observation slot begins with; the data follow.
struct alignas(64) Observed {
  uint64_t stamp_ns;
  uint32_t epoch;  // of the reset it came after
  int32_t error;   // EWM_OK, or why it was refused
};

// One plan's actions in the robot's units: `periods` rows of the port's axes follow.
struct alignas(64) Chunk {
  uint64_t generation, stamp_ns;
  uint32_t epoch, periods;
};

// What is kept of one port between plans.
struct Kept {
  Handoff observed;  // OBSERVATION
  char* value;       // GOAL, NOISE, STATE
  bool given;        // GOAL, NOISE: has been set
};

// One run of an entry: changed by the thread that finished a region's last tile, while no tile is offered.
struct Job {
  const Entry* entry;
  uint64_t deadline_ns;  // 0: none
  uint64_t longest_ns;   // round of the anytime loop
  uint64_t round_began_ns, step_began_ns;
  uint32_t iterations, of;
  const Step* step;  // the region whose tiles are offered
  uint32_t at;       // index of the step after it
  uint32_t depth, round[MAX_NESTING];
};

// What `ewm_act` remembers; only its thread looks in here.
struct Player {
  const Chunk* chunk;   // nullptr: none since the reset
  uint64_t release_ns;  // when its first action was due
  uint64_t generation, last_ns;
  uint32_t epoch;
  bool acted, known, stopped;  // known: `last` holds an action
  float last[16];
};

}  // namespace ewm

struct ewm_loop {
  const ewm_model* model;
  ewm_options options;
  char* arena;  // as callers see it: where the ports lie
  char* scratch;
  uint64_t scratch_stride;
  void* device;  // an engine's own state
  ewm::Kept* kept;  // by port
  ewm::Handoff chunks;
  ewm::Team team;
  ewm::Job job;
  ewm::Player player;
  uint64_t generation;  // of the last published chunk
  // Where a plan follows on the chunk in play:
  uint64_t due_ns;      // when the last published chunk is to begin, 0: at once; written before it is published
  uint64_t begun;       // generation of the chunk in play, written by `ewm_act` after
  uint64_t begun_ns;    // when it began
  uint64_t forgotten;   // the last generation of before the reset
  uint64_t planned_ns;  // stamp of the observation behind the last published chunk
  uint32_t periods_begun, frames_seen;  // state ports of the plan; EWM_NONE where it has none
  uint32_t epoch;       // raised by each reset
  uint64_t* step_ns;
  uint64_t* call_ns;
  ewm_counts counts;
};

namespace ewm {

inline void count(uint64_t& n, uint64_t by = 1) { __atomic_add_fetch(&n, by, __ATOMIC_RELAXED); }
uint64_t clock_ns(const ewm_loop& loop);  // the loop's own clock
// Whole periods from one time to a later one, to the nearest.
inline uint64_t periods_between(uint64_t from, uint64_t to, uint64_t period) {
  return to > from ? (to - from + period / 2) / period : 0;
}

// Index of the first of the entry's f32 outputs that is not finite; EWM_NONE where all are.
uint32_t non_finite_output(const ewm_loop& loop, const Entry& entry);
inline const Entry& plan_entry(const ewm_loop& loop) { return loop.model->entries[loop.model->sizes->plan_entry]; }
inline const Port& action_port(const ewm_loop& loop) { return loop.model->ports[loop.model->action_port]; }

// ---- The engine, what runs calls: threads of this processor (tiles.cc) or a GPU (cuda.cc). A library has one of them.

// What it wants of the loop's own memory, and its start there, which says where the ports lie (`loop.arena`).
uint64_t engine_bytes(const ewm_model& model, uint32_t threads);
int start_engine(ewm_loop& loop, uint32_t threads, char* room, ewm_fault* fault);
void end_engine(ewm_loop& loop);
// Runs an entry whose input ports are filled, to the end; its result ports are filled then.
int run_entry(ewm_loop& loop, const Entry& entry, uint64_t deadline_ns, ewm_fault* fault);
// What is to be measured (`step_ns`, `call_ns`) has changed.
int measure(ewm_loop& loop, ewm_fault* fault);

}  // namespace ewm
