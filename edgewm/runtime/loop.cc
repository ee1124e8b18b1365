// A loop's life: its layout in the arena, and what callers hand over between plans.
#define EWM_BUILDING
#include "loop.h"

#include <string.h>

#include "gate.h"

namespace ewm {
namespace {

struct Cursor {
  char* base;  // nullptr while only counting
  uint64_t at;
  char* take(uint64_t bytes) {
    uint64_t here = at;
    at += aligned(bytes);
    return base != nullptr ? base + here : nullptr;
  }
};

// Walks the loop's memory once: counts with `loop` null, fills it in otherwise; `engine` is where its engine's begins.
uint64_t lay_out(const ewm_model& m, uint32_t threads, char* base, ewm_loop* loop, char** engine) {
  Cursor cursor{base, 0};
  cursor.take(sizeof(ewm_loop));
  char* kept = cursor.take(m.sizes->ports * sizeof(Kept));
  if (loop != nullptr) loop->kept = reinterpret_cast<Kept*>(kept);
  for (uint32_t i = 0; i < m.sizes->ports; i++) {
    const Port& p = m.ports[i];
    if (p.kind == OBSERVATION) {
      uint64_t slot = sizeof(Observed) + aligned(port_bytes(p));
      char* slots = cursor.take(3 * slot);
      if (loop != nullptr) start(loop->kept[i].observed, slots, slot);
    } else if (input(p)) {
      char* value = cursor.take(port_bytes(p));
      if (loop != nullptr) loop->kept[i].value = value;
    }
  }
  if (m.action_port != EWM_NONE) {
    uint64_t slot = sizeof(Chunk) + aligned(port_bytes(m.ports[m.action_port]));
    char* slots = cursor.take(3 * slot);
    if (loop != nullptr) start(loop->chunks, slots, slot);
  }
  char* room = cursor.take(engine_bytes(m, threads));
  if (engine != nullptr) *engine = room;
  return cursor.at;
}

int check_port(const ewm_loop& loop, uint32_t port, uint32_t kinds, const char* wanted, const void* data,
               uint64_t bytes, ewm_fault* fault) {
  const ewm_model& m = *loop.model;
  if (port >= m.sizes->ports || !(kinds >> m.ports[port].kind & 1) || data == nullptr)
    return refuse(fault, EWM_BAD_ARGUMENT, Text("port %u", port), data == nullptr ? "no data" : "another kind, or none",
                  Text("%s", wanted));
  const Port& p = m.ports[port];
  if (bytes != port_bytes(p))
    return refuse(fault, EWM_WRONG_SIZE, Text("port %s", p.name), Text("%llu bytes", (unsigned long long)bytes),
                  Text("%llu bytes, %u elements", (unsigned long long)port_bytes(p), p.elements));
  return EWM_OK;
}

int check_values(const Port& p, const void* data, ewm_fault* fault) {
  if (p.dtype != F32) return EWM_OK;
  uint64_t bad = first_non_finite(data, p.elements);
  int error = bad < p.elements ? EWM_NON_FINITE : EWM_OUT_OF_RANGE;
  if (error != EWM_NON_FINITE) bad = first_outside(data, p.elements, p.low, p.high);
  if (bad == p.elements) return EWM_OK;
  float x;
  memcpy(&x, static_cast<const char*>(data) + 4 * bad, 4);
  return refuse(fault, error, Text("port %s, element %llu", p.name, (unsigned long long)bad), Text("%g", double(x)),
                Text("a number in [%g, %g]", double(p.low), double(p.high)));
}

void withdraw(ewm_loop& loop, uint32_t port, int error) {
  Handoff& h = loop.kept[port].observed;
  auto* slot = reinterpret_cast<Observed*>(writable(h));
  *slot = Observed{0, __atomic_load_n(&loop.epoch, __ATOMIC_RELAXED), error};
  publish(h);
}

// A state port of the plan by its name; EWM_NONE where it has none.
uint32_t find_state(const ewm_model& m, const char* name) {
  for (uint32_t k = 0; m.action_port != EWM_NONE && k < m.entries[m.sizes->plan_entry].ports; k++) {
    uint32_t port = m.entry_ports[m.entries[m.sizes->plan_entry].first_port + k];
    if (m.ports[port].kind == STATE && strcmp(m.ports[port].name, name) == 0) return port;
  }
  return EWM_NONE;
}

}  // namespace
}  // namespace ewm

using namespace ewm;

extern "C" uint64_t ewm_arena_bytes(const ewm_model* model, uint32_t threads) {
  if (model == nullptr || threads < 1 || threads > MAX_THREADS) return 0;
  return lay_out(*model, threads, nullptr, nullptr, nullptr);
}

extern "C" int ewm_init(const ewm_model* model, void* arena, uint64_t bytes, uint32_t threads,
                        const ewm_options* options, ewm_loop** out, ewm_fault* fault) {
  if (model == nullptr || out == nullptr || arena == nullptr || reinterpret_cast<uintptr_t>(arena) % CACHE_LINE != 0)
    return refuse(fault, EWM_BAD_ARGUMENT, "ewm_init", "null or misaligned",
                  Text("a 64-byte aligned arena, a model and a place"));
  *out = nullptr;
  if (threads < 1 || threads > MAX_THREADS)
    return refuse(fault, EWM_BAD_ARGUMENT, "ewm_init", Text("%u threads", threads), Text("1 to %u", MAX_THREADS));
  uint64_t needed = ewm_arena_bytes(model, threads);
  if (bytes < needed)
    return refuse(fault, EWM_WRONG_SIZE, "arena", Text("%llu bytes", (unsigned long long)bytes),
                  Text("%llu", (unsigned long long)needed));
  ewm_options chosen{};
  if (options != nullptr) memcpy(&chosen, options, options->size < sizeof(chosen) ? options->size : sizeof(chosen));
  if (chosen.period_ns == 0 && model->action_port != EWM_NONE)
    return refuse(fault, EWM_BAD_ARGUMENT, "options", "period_ns 0", "the control period");
  memset(arena, 0, needed);  // every page is there from now on
  auto* loop = static_cast<ewm_loop*>(arena);
  loop->model = model;
  loop->options = chosen;
  char* room = nullptr;
  lay_out(*model, threads, static_cast<char*>(arena), loop, &room);
  loop->periods_begun = find_state(*model, "periods_begun");
  loop->frames_seen = find_state(*model, "frames_seen");
  if (int bad = start_engine(*loop, threads, room, fault)) return bad;
  *out = loop;
  return ewm_reset(loop, 0, fault);
}

extern "C" void ewm_end(ewm_loop* loop) {
  if (loop != nullptr) end_engine(*loop);
}

extern "C" int ewm_reset(ewm_loop* loop, uint64_t seed, ewm_fault* fault) {
  const ewm_model& m = *loop->model;
  const uint32_t port = find_state(m, "seed");
  uint32_t words[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  uint64_t room = port == EWM_NONE ? 0 : port_bytes(m.ports[port]);
  if (port != EWM_NONE && room < sizeof(words) && words[1] != 0)
    return refuse(fault, EWM_OUT_OF_RANGE, "port seed", Text("seed %llu", (unsigned long long)seed),
                  "a seed of 32 bits");
  for (uint32_t i = 0; i < m.sizes->ports; i++)
    if (m.ports[i].kind == STATE) memset(loop->kept[i].value, 0, port_bytes(m.ports[i]));
  if (port != EWM_NONE) memcpy(loop->kept[port].value, words, room < sizeof(words) ? room : sizeof(words));
  loop->forgotten = loop->generation;
  // Observations and chunks of before carry the old epoch and are not looked at again.
  __atomic_add_fetch(&loop->epoch, 1, __ATOMIC_RELEASE);
  return EWM_OK;
}

extern "C" int ewm_set_goal(ewm_loop* loop, uint32_t port, const void* data, uint64_t bytes, ewm_fault* fault) {
  if (int bad = check_port(*loop, port, 1u << GOAL | 1u << NOISE, "a goal or noise port", data, bytes, fault))
    return bad;
  if (int bad = check_values(loop->model->ports[port], data, fault)) return bad;
  memcpy(loop->kept[port].value, data, bytes);
  loop->kept[port].given = true;
  return EWM_OK;
}

extern "C" int ewm_warm_start(ewm_loop* loop, const void* mean, uint64_t bytes, ewm_fault* fault) {
  const uint32_t port = find_state(*loop->model, "warm_mean");
  if (port == EWM_NONE)
    return refuse(fault, EWM_BAD_ARGUMENT, "ewm_warm_start", "a plan without warm start", "a state port warm_mean");
  if (int bad = check_port(*loop, port, 1u << STATE, "warm_mean", mean, bytes, fault)) return bad;
  if (int bad = check_values(loop->model->ports[port], mean, fault)) return bad;
  memcpy(loop->kept[port].value, mean, bytes);
  return EWM_OK;
}

extern "C" int ewm_observe(ewm_loop* loop, uint32_t port, const void* data, uint64_t bytes, uint64_t stamp_ns,
                           ewm_fault* fault) {
  ewm_counts& n = loop->counts;
  int error = check_port(*loop, port, 1u << OBSERVATION, "an observation port", data, bytes, fault);
  if (error == EWM_BAD_ARGUMENT) return error;
  const Port& p = loop->model->ports[port];
  if (error == EWM_OK) error = check_values(p, data, fault);
  if (error == EWM_OK) {
    uint64_t now = clock_ns(*loop);
    if (stamp_ns > now)
      error = refuse(fault, EWM_STALE, Text("port %s", p.name),
                     Text("stamped %llu ns in the future", (unsigned long long)(stamp_ns - now)),
                     "a stamp of the loop's clock");
  }
  if (error != EWM_OK) {
    count(error == EWM_WRONG_SIZE     ? n.wrong_size
          : error == EWM_NON_FINITE   ? n.non_finite
          : error == EWM_OUT_OF_RANGE ? n.out_of_range
                                      : n.bad_stamp);
    withdraw(*loop, port, error);
    return error;
  }
  Handoff& h = loop->kept[port].observed;
  auto* slot = reinterpret_cast<Observed*>(writable(h));
  *slot = Observed{stamp_ns, __atomic_load_n(&loop->epoch, __ATOMIC_ACQUIRE), EWM_OK};
  memcpy(slot + 1, data, bytes);
  publish(h);
  count(n.observed);
  return EWM_OK;
}

extern "C" int ewm_stats(const ewm_loop* loop, ewm_counts* counts) {
  ewm_counts copy;
  const auto* from = reinterpret_cast<const uint64_t*>(&loop->counts);
  auto* to = reinterpret_cast<uint64_t*>(&copy);
  for (uint64_t i = 0; i < sizeof(copy) / sizeof(uint64_t); i++) to[i] = __atomic_load_n(from + i, __ATOMIC_RELAXED);
  copy.futex_calls = __atomic_load_n(&loop->team.futex_calls, __ATOMIC_RELAXED);
  copy.held_up = __atomic_load_n(&loop->team.held_up, __ATOMIC_RELAXED);
  copy.moved = __atomic_load_n(&loop->team.moved, __ATOMIC_RELAXED);
  return hand_out(counts, copy);
}
