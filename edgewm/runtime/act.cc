// The fast loop: one action for each control period, whatever the planner does.
//
//   periods since the chunk's first action   0 ... n-1 | n ... n+hold-1 | ... +ramp-1 | later
//   played                                   the chunk | its last one   | towards the | the safe value,
//                                                      |                | safe value  | latched until reset
#define EWM_BUILDING
#include <string.h>

#include "loop.h"

namespace ewm {
namespace {

float clamp(float x, float low, float high) { return x < low ? low : x > high ? high : x; }

// The port's safe value; where it declares none: nothing for velocity and torque, the last action for a position.
float safe(const Port& p, const Player& player, uint32_t axis) {
  if (p.has_safe) return p.safe[axis];
  return p.control == POSITION ? player.last[axis] : clamp(0.0f, p.low, p.high);
}

void forget(Player& player, const Port& p, uint32_t epoch) {
  bool known = player.known;
  float last[16];
  memcpy(last, player.last, sizeof(last));
  player = Player{};
  player.epoch = epoch;
  player.known = known || p.has_safe;
  memcpy(player.last, known ? last : p.safe, sizeof(last));
}

// The rung for this period, and what is aimed at before limits and slew.
uint32_t aim(const ewm_loop& loop, const Player& player, uint64_t index, float* target) {
  const Port& p = action_port(loop);
  const Chunk* chunk = player.chunk;
  const uint64_t hold = loop.options.max_hold_periods, ramp = loop.options.ramp_periods;
  uint32_t state = EWM_WAITING;
  if (player.stopped)
    state = EWM_STOPPED;
  else if (chunk != nullptr)
    state = index < chunk->periods                 ? EWM_FRESH
            : index < chunk->periods + hold        ? EWM_HOLD
            : index < chunk->periods + hold + ramp ? EWM_RAMP
                                                   : EWM_STOPPED;
  const float* rows = chunk != nullptr ? reinterpret_cast<const float*>(chunk + 1) : nullptr;
  for (uint32_t a = 0; a < p.axes; a++) {
    if (state == EWM_WAITING || state == EWM_STOPPED) {
      target[a] = safe(p, player, a);
      continue;
    }
    uint64_t row = index < chunk->periods ? index : chunk->periods - 1;
    target[a] = clamp(rows[row * p.axes + a], p.low, p.high);
    if (state == EWM_RAMP) {
      float way = static_cast<float>(index - chunk->periods - hold + 1) / static_cast<float>(ramp + 1);
      target[a] += (safe(p, player, a) - target[a]) * way;
    }
    if (state == EWM_FRESH) target[a] = rows[row * p.axes + a];
  }
  return state;
}

// A chunk that follows on the one in play waits until what that one was committed to has been played.
bool may_begin(const ewm_loop& loop, uint64_t now_ns) {
  if (!unread(loop.chunks)) return true;
  return __atomic_load_n(&loop.due_ns, __ATOMIC_RELAXED) <= now_ns + loop.options.period_ns / 2;
}

// The chunk plays from now on; a plan that is to follow on it learns when it began.
void begin(ewm_loop& loop, const Chunk* chunk, uint64_t now_ns) {
  const uint64_t due_ns = __atomic_load_n(&loop.due_ns, __ATOMIC_RELAXED);
  loop.player.chunk = chunk;
  loop.player.generation = chunk->generation;
  loop.player.release_ns = now_ns;
  __atomic_store_n(&loop.begun_ns, now_ns, __ATOMIC_RELAXED);
  __atomic_store_n(&loop.begun, chunk->generation, __ATOMIC_RELEASE);
  count(loop.counts.chunks);
  count(loop.counts.begun_late, due_ns != 0 && periods_between(due_ns, now_ns, loop.options.period_ns) > 0);
}

// Limits, then slew from the last action; how many numbers they changed.
uint32_t limit(const Port& p, const Player& player, float* action) {
  uint32_t changed = 0;
  for (uint32_t a = 0; a < p.axes; a++) {
    float x = clamp(action[a], p.low, p.high);
    if (p.slew > 0 && player.known) x = clamp(x, player.last[a] - p.slew, player.last[a] + p.slew);
    changed += x != action[a];
    action[a] = x;
  }
  return changed;
}

uint64_t& counter(ewm_counts& n, uint32_t state) {
  return state == EWM_WAITING ? n.waiting
         : state == EWM_FRESH ? n.fresh
         : state == EWM_HOLD  ? n.hold
         : state == EWM_RAMP  ? n.ramp
                              : n.stopped;
}

}  // namespace
}  // namespace ewm

using namespace ewm;

extern "C" int ewm_act(ewm_loop* loop, uint64_t now_ns, float* action, ewm_act_info* info) {
  if (loop->model->action_port == EWM_NONE || action == nullptr) return EWM_BAD_ARGUMENT;
  const Port& p = action_port(*loop);
  Player& player = loop->player;
  const uint32_t epoch = __atomic_load_n(&loop->epoch, __ATOMIC_ACQUIRE);
  if (player.epoch != epoch) forget(player, p, epoch);
  if (!player.stopped && may_begin(*loop, now_ns)) {
    const auto* chunk = reinterpret_cast<const Chunk*>(newest(loop->chunks));
    if (chunk->epoch == epoch && chunk->generation != player.generation) {
      begin(*loop, chunk, now_ns);
    } else if (chunk->epoch != epoch) {
      player.chunk = nullptr;  // its slot was taken back by a plan from before the reset
    }
  }
  ewm_act_info out{};
  const uint64_t index = periods_between(player.release_ns, now_ns, loop->options.period_ns);
  const uint64_t gone = player.acted ? periods_between(player.last_ns, now_ns, loop->options.period_ns) : 0;
  out.index = index < EWM_NONE ? static_cast<uint32_t>(index) : EWM_NONE;
  out.skipped = gone > 1 ? static_cast<uint32_t>(gone - 1) : 0;
  player.acted = true;
  player.last_ns = now_ns;
  count(loop->counts.acts);
  count(loop->counts.skipped, out.skipped);
  float aimed[16] = {};
  out.state = aim(*loop, player, index, aimed);
  out.generation = player.generation;
  if (player.chunk != nullptr && now_ns > player.chunk->stamp_ns) out.age_ns = now_ns - player.chunk->stamp_ns;
  count(counter(loop->counts, out.state));
  const bool nothing = out.state == EWM_WAITING && !player.known && p.control == POSITION;
  if (!nothing) {
    out.limited = limit(p, player, aimed);
    count(loop->counts.limited, out.limited);
    memcpy(player.last, aimed, sizeof(aimed));
    memcpy(action, aimed, p.axes * sizeof(float));
    player.known = true;
    player.stopped = out.state == EWM_STOPPED;
  }
  if (info != nullptr) hand_out(info, out);
  return nothing ? EWM_MISSING : EWM_OK;
}
