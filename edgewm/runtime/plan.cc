// The slow loop: newest observations in, one run of the plan entry, the next chunk of actions out.
#define EWM_BUILDING
#include <string.h>

#include "gate.h"
#include "loop.h"

namespace ewm {
namespace {

// Whether what the port holds may be planned on; lowers `stamp_ns` to its observation's.
int ready(ewm_loop& loop, uint32_t index, uint64_t now, uint64_t& stamp_ns, ewm_fault* fault) {
  const Port& p = loop.model->ports[index];
  Kept& kept = loop.kept[index];
  Text where("port %s", p.name);
  if ((p.kind == GOAL || p.kind == NOISE) && !kept.given) {
    count(loop.counts.missing);
    return refuse(fault, EWM_MISSING, where, "never set", "ewm_set_goal before the first plan");
  }
  if (p.kind != OBSERVATION) return EWM_OK;
  const auto* seen = reinterpret_cast<const Observed*>(newest(kept.observed));
  if (seen->epoch != loop.epoch) {
    count(loop.counts.missing);
    return refuse(fault, EWM_MISSING, where, "no observation since the reset", "ewm_observe before ewm_plan");
  }
  if (seen->error != EWM_OK) {
    count(loop.counts.refused_input);
    return refuse(fault, seen->error, where, "its newest observation was refused", "a good one");
  }
  uint64_t age = now > seen->stamp_ns ? now - seen->stamp_ns : 0;
  if (p.max_age_ns != 0 && age > p.max_age_ns) {
    count(loop.counts.stale);
    return refuse(fault, EWM_STALE, where, Text("%llu ns old", (unsigned long long)age),
                  Text("at most %llu", (unsigned long long)p.max_age_ns));
  }
  if (seen->stamp_ns < stamp_ns) stamp_ns = seen->stamp_ns;
  return EWM_OK;
}

const char* held(const ewm_loop& loop, uint32_t index) {
  const Kept& kept = loop.kept[index];
  if (loop.model->ports[index].kind != OBSERVATION) return kept.value;
  return kept.observed.slots + kept.observed.front * kept.observed.slot_bytes + sizeof(Observed);
}

// How far the chunk in play has come, for a plan that follows on it; `due_ns`: when the next one is to begin.
int look_ahead(ewm_loop& loop, uint64_t stamp_ns, uint64_t& due_ns, ewm_fault* fault) {
  due_ns = 0;
  if (loop.periods_begun == EWM_NONE) return EWM_OK;
  uint32_t begun = 0;
  if (loop.generation != loop.forgotten) {
    if (__atomic_load_n(&loop.begun, __ATOMIC_ACQUIRE) != loop.generation)
      return refuse(fault, EWM_TOO_EARLY, "ewm_plan",
                    Text("chunk %llu not in play", (unsigned long long)loop.generation),
                    "ewm_act to begin it before the next plan; ewm_reset after a latched stop");
    const Port& p = action_port(loop);
    const uint64_t period = loop.options.period_ns, began_ns = __atomic_load_n(&loop.begun_ns, __ATOMIC_RELAXED);
    const uint64_t played = periods_between(began_ns, stamp_ns, period);
    if (played < p.elements / p.axes) {  // else it has run out: the robot waits for this plan
      begun = static_cast<uint32_t>(played) + 1;
      due_ns = began_ns + (played + p.commit_steps) * period;
    }
  }
  memcpy(loop.kept[loop.periods_begun].value, &begun, sizeof(begun));
  return EWM_OK;
}

// Forgets the frames of before where the last one is not one model action old.
void look_back(ewm_loop& loop, uint64_t stamp_ns) {
  if (loop.frames_seen == EWM_NONE) return;
  const uint64_t apart = periods_between(loop.planned_ns, stamp_ns, loop.options.period_ns);
  const uint32_t none = 0;
  char* seen = loop.kept[loop.frames_seen].value;
  if (apart == action_port(loop).action_block || memcmp(seen, &none, sizeof(none)) == 0) return;
  memcpy(seen, &none, sizeof(none));
  count(loop.counts.begun_anew);
}

// The plan's actions in the robot's units, one row a control period; false where scaling made one infinite.
bool write_chunk(ewm_loop& loop, uint64_t stamp_ns) {
  const Port& p = action_port(loop);
  auto* chunk = reinterpret_cast<Chunk*>(writable(loop.chunks));
  auto* out = reinterpret_cast<float*>(chunk + 1);
  const auto* in = reinterpret_cast<const float*>(loop.arena + p.offset);
  for (uint32_t i = 0; i < p.elements; i++) {
    float scaled = in[i] * p.scale[i % p.axes];
    out[i] = scaled + p.offset_[i % p.axes];
  }
  *chunk = Chunk{loop.generation + 1, stamp_ns, loop.epoch, p.elements / p.axes};
  return first_non_finite(out, p.elements) == p.elements;
}

// What the next plan starts from.
void feed_back(ewm_loop& loop, const Entry& entry) {
  const ewm_model& m = *loop.model;
  for (uint32_t k = 0; k < entry.ports; k++) {
    uint32_t index = m.entry_ports[entry.first_port + k];
    const Port& p = m.ports[index];
    if (p.kind != STATE || p.feedback == EWM_NONE) continue;
    memcpy(loop.kept[index].value, loop.arena + m.ports[p.feedback].offset, port_bytes(p));
  }
}

int plan(ewm_loop& loop, uint64_t deadline_ns, ewm_plan_info& info, ewm_fault* fault) {
  const ewm_model& m = *loop.model;
  const Entry& entry = plan_entry(loop);
  uint64_t stamp_ns = info.start_ns;
  for (uint32_t k = 0; k < entry.ports; k++)
    if (int bad = ready(loop, m.entry_ports[entry.first_port + k], info.start_ns, stamp_ns, fault)) return bad;
  if (int bad = look_ahead(loop, stamp_ns, info.due_ns, fault)) return bad;
  look_back(loop, stamp_ns);
  for (uint32_t k = 0; k < entry.ports; k++) {
    uint32_t index = m.entry_ports[entry.first_port + k];
    const Port& p = m.ports[index];
    if (input(p)) memcpy(loop.arena + p.offset, held(loop, index), port_bytes(p));
  }
  if (int bad = run_entry(loop, entry, deadline_ns, fault)) return bad;
  info.iterations = loop.job.iterations;
  info.of = loop.job.of;
  info.stamp_ns = stamp_ns;
  uint32_t bad = non_finite_output(loop, entry);
  if (bad == EWM_NONE && !write_chunk(loop, stamp_ns)) bad = m.action_port;
  if (bad != EWM_NONE) {
    count(loop.counts.result_non_finite);
    return refuse(fault, EWM_RESULT_NON_FINITE, Text("port %s", m.ports[bad].name), "NaN or infinity", "numbers");
  }
  __atomic_store_n(&loop.due_ns, info.due_ns, __ATOMIC_RELAXED);
  publish(loop.chunks);
  loop.planned_ns = stamp_ns;
  loop.generation++;
  feed_back(loop, entry);
  count(loop.counts.published);
  return EWM_OK;
}

}  // namespace
}  // namespace ewm

using namespace ewm;

extern "C" int ewm_plan(ewm_loop* loop, uint64_t deadline_ns, ewm_plan_info* info, ewm_fault* fault) {
  if (loop->model->action_port == EWM_NONE)
    return refuse(fault, EWM_BAD_ARGUMENT, "ewm_plan", "a file without a plan", "one with a plan entry");
  ewm_plan_info out{};
  count(loop->counts.plans);
  out.start_ns = clock_ns(*loop);
  int error = plan(*loop, deadline_ns, out, fault);
  out.end_ns = clock_ns(*loop);
  out.generation = loop->generation;
  out.late = error == EWM_OK && deadline_ns != 0 && out.end_ns > deadline_ns;
  if (out.late) count(loop->counts.late);
  if (info != nullptr) hand_out(info, out);
  return error;
}
