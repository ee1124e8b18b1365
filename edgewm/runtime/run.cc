// One run of an entry: its regions one after the other, the tiles of each for whoever takes them.
#define EWM_BUILDING
#include <string.h>

#include "gate.h"
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

bool given(const ewm_buffer* buffers, uint32_t count, uint32_t port) {
  for (uint32_t i = 0; i < count; i++)
    if (buffers[i].port == port) return true;
  return false;
}

int check_buffer(const ewm_model& m, const Entry& entry, const ewm_buffer& b, bool is_input, ewm_fault* fault) {
  bool of_entry = false;
  for (uint32_t k = 0; k < entry.ports; k++) of_entry = of_entry || m.entry_ports[entry.first_port + k] == b.port;
  if (!of_entry || input(m.ports[b.port]) != is_input)
    return refuse(fault, EWM_BAD_ARGUMENT, Text("entry %s", entry.name), Text("port %u", b.port),
                  is_input ? "an input of this entry" : "an output of this entry");
  const Port& p = m.ports[b.port];
  if (b.data == nullptr || b.bytes != port_bytes(p))
    return refuse(fault, EWM_WRONG_SIZE, Text("port %s", p.name), Text("%llu bytes", (unsigned long long)b.bytes),
                  Text("%llu bytes", (unsigned long long)port_bytes(p)));
  return EWM_OK;
}

}  // namespace

uint64_t clock_ns(const ewm_loop& loop) {
  return loop.options.clock != nullptr ? loop.options.clock(loop.options.clock_state) : monotonic_ns();
}

void run_entry(ewm_loop& loop, const Entry& entry, uint64_t deadline_ns) {
  loop.job = Job{};
  loop.job.entry = &entry;
  loop.job.at = entry.first_step;
  loop.job.deadline_ns = deadline_ns;
  advance(loop, Place(loop, 0));
  if (is_over(loop.team)) return;
  loop.team.work = work;
  loop.team.context = &loop;
  run(loop.team);
}

uint32_t non_finite_output(const ewm_loop& loop, const Entry& entry) {
  for (uint32_t k = 0; k < entry.ports; k++) {
    uint32_t index = loop.model->entry_ports[entry.first_port + k];
    const Port& p = loop.model->ports[index];
    if (!input(p) && p.dtype == F32 && first_non_finite(loop.arena + p.offset, p.elements) < p.elements) return index;
  }
  return EWM_NONE;
}

}  // namespace ewm

using namespace ewm;

extern "C" int ewm_run_entry(ewm_loop* loop, uint32_t entry, const ewm_buffer* inputs, uint32_t input_count,
                             const ewm_buffer* outputs, uint32_t output_count, ewm_fault* fault) {
  const ewm_model& m = *loop->model;
  if (entry >= m.sizes->entries)
    return refuse(fault, EWM_BAD_ARGUMENT, "ewm_run_entry", Text("entry %u", entry),
                  Text("below %u", m.sizes->entries));
  const Entry& e = m.entries[entry];
  for (uint32_t i = 0; i < input_count; i++)
    if (int bad = check_buffer(m, e, inputs[i], true, fault)) return bad;
  for (uint32_t i = 0; i < output_count; i++)
    if (int bad = check_buffer(m, e, outputs[i], false, fault)) return bad;
  for (uint32_t k = 0; k < e.ports; k++) {
    uint32_t port = m.entry_ports[e.first_port + k];
    if (input(m.ports[port]) && !given(inputs, input_count, port))
      return refuse(fault, EWM_MISSING, Text("entry %s", e.name), Text("no port %s", m.ports[port].name),
                    "every input");
  }
  for (uint32_t i = 0; i < input_count; i++)
    memcpy(loop->arena + m.ports[inputs[i].port].offset, inputs[i].data, inputs[i].bytes);
  run_entry(*loop, e, 0);
  for (uint32_t i = 0; i < output_count; i++)
    memcpy(outputs[i].data, loop->arena + m.ports[outputs[i].port].offset, outputs[i].bytes);
  return EWM_OK;
}

extern "C" void ewm_profile(ewm_loop* loop, uint64_t* step_ns, uint64_t* call_ns) {
  loop->step_ns = step_ns;
  loop->call_ns = call_ns;
}
