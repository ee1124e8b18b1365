// One run of an entry: every thread walks the same steps and takes every n-th tile of each region.
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

void run_region(ewm_loop& loop, const Step& step, uint32_t thread, const Frame& frame) {
  const ewm_model& m = *loop.model;
  uint64_t* call_ns = thread == 0 ? loop.call_ns : nullptr;
  const uint32_t tiles = (step.lanes + step.tile - 1) / step.tile;
  for (uint32_t i = thread; i < tiles; i += loop.team.threads) {
    Tile tile{i * step.tile, step.tile, step.lanes - i * step.tile};
    if (tile.valid > tile.lanes) tile.valid = tile.lanes;
    for (uint32_t c = step.first_call; c < step.first_call + step.calls; c++) {
      const Call& call = m.calls[c];
      uint64_t began = call_ns != nullptr ? monotonic_ns() : 0;
      kernels[call.kernel](call, m.operands + call.first_operand, frame, tile);
      if (call_ns != nullptr) call_ns[c] += monotonic_ns() - began;
    }
  }
}

// A region of one tile: thread 0's.
bool serial(const Step& step) { return step.kind == REGION && step.lanes <= step.tile; }

// Thread 0, before a round: whether the anytime loop is left here, as its longest round would not fit.
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

void walk(void* context, uint32_t thread) {
  ewm_loop& loop = *static_cast<ewm_loop*>(context);
  const ewm_model& m = *loop.model;
  FloatMode mode;
  Frame frame{{loop.arena, loop.scratch + thread * loop.scratch_stride, const_cast<char*>(m.weights)}};
  uint64_t* step_ns = thread == 0 ? loop.step_ns : nullptr;
  uint32_t round[MAX_NESTING], depth = 0, turn = 0;
  const uint32_t end = loop.job.entry->first_step + loop.job.entry->steps;
  for (uint32_t i = loop.job.entry->first_step; i < end;) {
    const Step& step = m.steps[i];
    if (step.kind == REGION) {
      const uint64_t began = monotonic_ns();
      run_region(loop, step, thread, frame);
      const bool more = i + 1 < end && serial(step) && serial(m.steps[i + 1]);
      if (!more) barrier(loop.team, began);  // thread 0 goes from one serial region to the next alone
      if (step_ns != nullptr) step_ns[i] += monotonic_ns() - began;
      i++;
      continue;
    }
    if (step.kind == REPEAT) round[depth++] = 0;
    if (step.kind == END) round[depth - 1]++;
    const uint32_t repeat = step.kind == REPEAT ? i : i - step.count, done = round[depth - 1];
    const Step& loop_step = m.steps[repeat];
    uint32_t& leave = loop.job.leave[turn++ % 2];
    if (thread == 0) {
      leave = out_of_time(loop, loop_step, done);
      if (done < loop_step.count) memcpy(loop.arena + loop_step.counter, &done, sizeof(done));
    }
    barrier(loop.team, monotonic_ns());
    if (done < loop_step.count && !leave) {
      i = repeat + 1;
    } else {
      i = matching_end(m, repeat) + 1;
      depth--;
    }
  }
  if (m.steps[end - 1].kind == END) barrier(loop.team, monotonic_ns());  // `leave` is read after the one before
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
  loop.job.deadline_ns = deadline_ns;
  loop.team.work = walk;
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
