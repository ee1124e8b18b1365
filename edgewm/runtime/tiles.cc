// One run of an entry on this processor: its regions one after the other, the tiles of each for whoever takes them.
#include <string.h>

#include "loop.h"

namespace ewm {
namespace {

// Rounding and denormals as IEEE says, whatever the caller's thread has set: bits would differ otherwise.
struct FloatMode {
#if defined(__x86_64__)
  unsigned before = __builtin_ia32_stmxcsr();
  FloatMode() { __builtin_ia32_ldmxcsr(0x1f80); }
  ~FloatMode() { __builtin_ia32_ldmxcsr(before); }
#elif defined(__aarch64__)
  uint64_t before;
  FloatMode() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" ::"r"(uint64_t(0)));
  }
  ~FloatMode() { __asm__ volatile("msr fpcr, %0" ::"r"(before)); }
#endif
};

void run_tile(ewm_loop& loop, const Step& step, uint32_t index, uint32_t thread, const Frame& frame) {
  const ewm_model& m = *loop.model;
  uint64_t* call_ns = thread == 0 ? loop.call_ns : nullptr;
  Tile tile{index * step.tile, step.tile, step.lanes - index * step.tile};
  if (tile.valid > tile.lanes) tile.valid = tile.lanes;
  for (uint32_t c = step.first_call; c < step.first_call + step.calls; c++) {
    const Call& call = m.calls[c];
    uint64_t began = call_ns != nullptr ? monotonic_ns() : 0;
    kernels[call.kernel](call, m.operands + call.first_operand, frame, tile);
    if (call_ns != nullptr) call_ns[c] += monotonic_ns() - began;
  }
}

// Before a round: whether the anytime loop is left here, as its longest round would not fit.
bool out_of_time(ewm_loop& loop, const Step& step, uint32_t round) {
  Job& job = loop.job;
  if (!step.anytime) return false;
  job.of = step.count;
  job.iterations = round;
  if (job.deadline_ns == 0 || round == step.count) return false;
  uint64_t now = clock_ns(loop);
  if (round > 0 && now - job.round_began_ns > job.longest_ns) job.longest_ns = now - job.round_began_ns;
  job.round_began_ns = now;
  return now + job.longest_ns >= job.deadline_ns;
}

uint32_t matching_end(const ewm_model& m, uint32_t repeat) {
  uint32_t depth = 0;
  for (uint32_t i = repeat;; i++) {
    if (m.steps[i].kind == REPEAT) depth++;
    if (m.steps[i].kind == END && --depth == 0) return i;
  }
}

// The region that comes next, rounds of loops counted on the way; nullptr at the end.
const Step* next_region(ewm_loop& loop) {
  const ewm_model& m = *loop.model;
  Job& job = loop.job;
  while (job.at < job.entry->first_step + job.entry->steps) {
    const Step& step = m.steps[job.at];
    if (step.kind == REGION) {
      job.at++;
      return &step;
    }
    if (step.kind == REPEAT) job.round[job.depth++] = 0;
    if (step.kind == END) job.round[job.depth - 1]++;
    const uint32_t repeat = step.kind == REPEAT ? job.at : job.at - step.count, done = job.round[job.depth - 1];
    const Step& loop_step = m.steps[repeat];
    const bool leave = out_of_time(loop, loop_step, done);
    if (done < loop_step.count) memcpy(loop.arena + loop_step.counter, &done, sizeof(done));
    if (done < loop_step.count && !leave) {
      job.at = repeat + 1;
    } else {
      job.at = matching_end(m, repeat) + 1;
      job.depth--;
    }
  }
  return nullptr;
}

// Where a thread stands in a run.
struct Place {
  uint32_t thread;
  FloatMode mode;
  Frame frame;
  Place(const ewm_loop& loop, uint32_t thread)
      : thread(thread),
        frame{{loop.arena, loop.scratch + thread * loop.scratch_stride, const_cast<char*>(loop.model->weights)}} {}
};

// Offers the tiles of the next region; a region of one tile is done here and now.
void advance(ewm_loop& loop, const Place& place) {
  Job& job = loop.job;
  for (;;) {
    if (loop.step_ns != nullptr) {
      const uint64_t now = monotonic_ns();
      if (job.step != nullptr) loop.step_ns[job.step - loop.model->steps] += now - job.step_began_ns;
      job.step_began_ns = now;
    }
    job.step = next_region(loop);
    if (job.step == nullptr) return end(loop.team);
    const uint32_t tiles = (job.step->lanes + job.step->tile - 1) / job.step->tile;
    if (tiles > 1) return offer(loop.team, tiles);
    run_tile(loop, *job.step, 0, place.thread, place.frame);
  }
}

void work(void* context, uint32_t thread) {
  ewm_loop& loop = *static_cast<ewm_loop*>(context);
  const Place place(loop, thread);
  uint64_t tile_ns = 0;
  for (uint32_t tile; (tile = take(loop.team, tile_ns)) != NO_TILE;) {
    const uint64_t began = monotonic_ns();
    run_tile(loop, *loop.job.step, tile, thread, place.frame);
    tile_ns = monotonic_ns() - began;
    if (finished(loop.team)) advance(loop, place);
  }
}

// A line apart, so that threads share none.
uint64_t scratch_stride(const ewm_model& m) { return aligned(m.sizes->scratch_bytes) + CACHE_LINE; }

}  // namespace

const char* const engine_sections[] = {nullptr};
const uint32_t engine_section_count = 0;

int verify_engine(ewm_model&, ewm_fault*) { return EWM_OK; }

// The arena, then each thread's scratch.
uint64_t engine_bytes(const ewm_model& m, uint32_t threads) {
  return aligned(m.sizes->arena_bytes) + scratch_stride(m) * threads;
}

int start_engine(ewm_loop& loop, uint32_t threads, char* room, ewm_fault* fault) {
  loop.arena = room;
  loop.scratch = room + aligned(loop.model->sizes->arena_bytes);
  loop.scratch_stride = scratch_stride(*loop.model);
  loop.team.threads = threads;
  loop.team.spin = loop.options.spin;
  loop.team.anywhere = loop.options.anywhere;
  uint32_t made = assemble(loop.team);
  if (made == threads) return EWM_OK;
  return refuse(fault, EWM_NO_THREADS, "ewm_init", Text("%u threads", made),
                Text("%u (a program of before glibc 2.34 must be linked with -pthread)", threads));
}

void end_engine(ewm_loop& loop) { dismiss(loop.team); }

int measure(ewm_loop&, ewm_fault*) { return EWM_OK; }  // looked at while it runs

int run_entry(ewm_loop& loop, const Entry& entry, uint64_t deadline_ns, ewm_fault*) {
  loop.job = Job{};
  loop.job.entry = &entry;
  loop.job.at = entry.first_step;
  loop.job.deadline_ns = deadline_ns;
  advance(loop, Place(loop, 0));
  if (is_over(loop.team)) return EWM_OK;
  loop.team.work = work;
  loop.team.context = &loop;
  run(loop.team);
  return EWM_OK;
}

}  // namespace ewm
