// Every index, extent and bracket of the tables, so that running them needs no check.
#define EWM_BUILDING
#include <string.h>

#include "gate.h"
#include "kernel.h"
#include "model.h"

namespace ewm {
namespace {

#define EXPECT(holds, where, found, expected) \
  if (!(holds)) return refuse(fault, EWM_INVALID, where, found, expected)

typedef unsigned long long ull;

bool good_name(const char* name, uint32_t size) {
  return good_text(name, size, [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_'; });
}

bool is_result(const Port& p) { return p.kind == ACTION || p.kind == RESULT; }

bool inside(uint64_t offset, uint64_t bytes, uint64_t space) { return offset <= space && bytes <= space - offset; }

int verify_sizes(const ewm_model& m, ewm_fault* fault) {
  const Sizes& n = *m.sizes;
  EXPECT(n.arena_bytes <= MAX_BYTES && n.scratch_bytes <= MAX_BYTES, "sizes",
         Text("arena %llu, scratch %llu bytes", (ull)n.arena_bytes, (ull)n.scratch_bytes),
         Text("at most %llu each", (ull)MAX_BYTES));
  EXPECT(n.entries > 0, "sizes", "no entries", "at least one");
  EXPECT(n.plan_entry == EWM_NONE || n.plan_entry < n.entries, "sizes", Text("plan_entry %u", n.plan_entry),
         Text("below %u, or none", n.entries));
  return EWM_OK;
}

int verify_action(const Port& p, ewm_fault* fault) {
  Text where("port %s", p.name);
  EXPECT(p.dtype == F32 && p.rank == 2, where, Text("dtype %u, rank %u", p.dtype, p.rank),
         "f32 of shape (steps, block x axes)");
  EXPECT(p.axes >= 1 && p.axes <= 16 && p.action_block >= 1, where, Text("%u axes, block %u", p.axes, p.action_block),
         "1 to 16 axes, block 1 or more");
  EXPECT(uint64_t(p.axes) * p.action_block == p.dim[1], where, Text("block %u x axes %u", p.action_block, p.axes),
         Text("%u, its last dimension", p.dim[1]));
  EXPECT(p.commit_steps <= uint64_t(p.dim[0]) * p.action_block, where, Text("commit_steps %u", p.commit_steps),
         Text("at most the %llu periods of a plan", (ull)p.dim[0] * p.action_block));
  EXPECT(p.control <= TORQUE, where, Text("control %u", p.control), "position, velocity or torque");
  EXPECT(finite(p.slew) && p.slew >= 0, where, Text("slew %g", double(p.slew)), "0 or more");
  EXPECT(p.has_safe <= 1, where, Text("has_safe %u", p.has_safe), "0 or 1");
  for (uint32_t a = 0; a < p.axes; a++) {
    EXPECT(finite(p.scale[a]) && finite(p.offset_[a]), where,
           Text("axis %u: scale %g, offset %g", a, double(p.scale[a]), double(p.offset_[a])), "finite numbers");
    EXPECT(!p.has_safe || (finite(p.safe[a]) && p.safe[a] >= p.low && p.safe[a] <= p.high), where,
           Text("axis %u: safe value %g", a, double(p.safe[a])),
           Text("inside [%g, %g]", double(p.low), double(p.high)));
  }
  return EWM_OK;
}

int verify_ports(const ewm_model& m, ewm_fault* fault) {
  for (uint32_t i = 0; i < m.sizes->ports; i++) {
    const Port& p = m.ports[i];
    EXPECT(good_name(p.name, sizeof(p.name)), Text("port %u", i), "a bad name", "1 to 23 of a-z 0-9 _");
    Text where("port %s", p.name);
    EXPECT(p.kind <= RESULT && p.dtype <= U8 && p.rank <= 6, where,
           Text("kind %u, dtype %u, rank %u", p.kind, p.dtype, p.rank), "kind <= 5, dtype <= 4, rank <= 6");
    uint64_t elements = 1;
    for (uint32_t d = 0; d < p.rank && elements <= m.sizes->arena_bytes; d++) elements *= p.dim[d];
    EXPECT(elements == p.elements && elements > 0, where, Text("%u elements", p.elements),
           Text("%llu, the product of its dims", (ull)elements));
    EXPECT(p.offset % 64 == 0 && inside(p.offset, port_bytes(p), m.sizes->arena_bytes), where,
           Text("offset %llu, %llu bytes", (ull)p.offset, (ull)port_bytes(p)),
           Text("64-aligned, inside the arena of %llu", (ull)m.sizes->arena_bytes));
    EXPECT(p.low <= p.high, where, Text("range [%g, %g]", double(p.low), double(p.high)), "low <= high");
    if (p.feedback != EWM_NONE) {
      EXPECT(p.kind == STATE && p.feedback < m.sizes->ports, where, Text("feedback %u", p.feedback),
             "a port's index, on a state port");
      const Port& from = m.ports[p.feedback];
      EXPECT(from.kind == RESULT && from.dtype == p.dtype && from.elements == p.elements, where,
             Text("feedback from port %u: kind %u, dtype %u, %u elements", p.feedback, from.kind, from.dtype,
                  from.elements),
             Text("a result, dtype %u, %u elements", p.dtype, p.elements));
    }
    if (p.kind == ACTION)
      if (int bad = verify_action(p, fault)) return bad;
  }
  return EWM_OK;
}

int verify_operand(const ewm_model& m, const Call& c, const Step& s, uint32_t call, uint32_t index, ewm_fault* fault) {
  const Operand& o = m.operands[c.first_operand + index];
  Text where("call %u, operand %u", call, index);
  EXPECT(o.space <= WEIGHTS && o.dtype <= BF16 && o.is_output <= 1 && o.gathered <= 1 && o.reserved2 == 0, where,
         Text("space %u, dtype %u, is_output %u, gathered %u", o.space, o.dtype, o.is_output, o.gathered),
         "space <= 2, dtype <= 5, is_output and gathered <= 1");
  EXPECT(!(o.is_output && o.space == WEIGHTS), where, "an output in the weights", "arena or scratch");
  const bool neighbours = o.lane_stride == 1 && !o.gathered;
  uint32_t align = (neighbours ? 16 : 1) * SIZE[o.dtype];
  EXPECT(o.offset % align == 0, where, Text("offset %llu", (ull)o.offset), Text("a multiple of %u", align));
  // Farthest lane touched: whole tiles where lanes are neighbours, real ones through a gather.
  uint64_t padded = (uint64_t(s.lanes) + s.tile - 1) / s.tile * s.tile;
  uint64_t lanes = neighbours ? (o.space == SCRATCH ? s.tile : padded)
                              : (o.space == SCRATCH && s.tile < s.lanes ? s.tile : s.lanes);
  __int128 low = 0, high = 0;
  for (uint32_t d = 0; d <= c.rank; d++) {
    __int128 reach = d < c.rank ? __int128(c.dim[d] - 1) * o.stride[d] : __int128(lanes - 1) * o.lane_stride;
    (reach < 0 ? low : high) += reach;
  }
  const uint64_t space = o.space == ARENA     ? m.sizes->arena_bytes
                         : o.space == SCRATCH ? m.sizes->scratch_bytes
                                              : m.sizes->weight_bytes;
  __int128 reach = (high + 1) * SIZE[o.dtype];
  EXPECT(low == 0, where, "strides that reach before its offset", "an offset at the lowest element");
  EXPECT(reach <= o.bytes, where,
         Text("strides that reach %llu bytes", reach > __int128(MAX_BYTES) ? ~0ull : (ull)reach),
         Text("at most %u, its extent", o.bytes));
  EXPECT(inside(o.offset, o.bytes, space), where, Text("offset %llu, extent %u", (ull)o.offset, o.bytes),
         Text("inside %llu bytes", (ull)space));
  return EWM_OK;
}

int verify_region(const ewm_model& m, uint32_t step, ewm_fault* fault) {
  const Step& s = m.steps[step];
  Text where("step %u", step);
  EXPECT(s.tile > 0 && s.tile % 16 == 0 && s.tile <= 65536 && s.lanes > 0, where,
         Text("%u lanes in tiles of %u", s.lanes, s.tile), "tiles of a multiple of 16, up to 65536");
  EXPECT(uint64_t(s.first_call) + s.calls <= m.sizes->calls, where, Text("calls %u + %u", s.first_call, s.calls),
         Text("at most %u", m.sizes->calls));
  for (uint32_t i = s.first_call; i < s.first_call + s.calls; i++) {
    const Call& c = m.calls[i];
    Text call("call %u", i);
    EXPECT(c.kernel < kernel_count, call, Text("kernel %u", c.kernel), Text("below %u", kernel_count));
    EXPECT(c.rank <= MAX_RANK && c.operands <= MAX_OPERANDS, call, Text("rank %u, %u operands", c.rank, c.operands),
           Text("at most %u and %u", MAX_RANK, MAX_OPERANDS));
    EXPECT(uint64_t(c.first_operand) + c.operands <= m.sizes->operands, call,
           Text("operands %u + %u", c.first_operand, c.operands), Text("at most %u", m.sizes->operands));
    EXPECT(c.lanes == s.lanes, call, Text("%u lanes", c.lanes), Text("%u, its region's", s.lanes));
    for (uint32_t d = 0; d < c.rank; d++) EXPECT(c.dim[d] > 0, call, Text("dim %u is 0", d), "1 or more");
    for (uint32_t o = 0; o < c.operands; o++)
      if (int bad = verify_operand(m, c, s, i, o, fault)) return bad;
  }
  return EWM_OK;
}

// Brackets of one entry balance, and each holds a region: the barrier after it is what keeps rounds apart.
int verify_steps(const ewm_model& m, const Entry& e, ewm_fault* fault) {
  uint32_t open[MAX_NESTING], regions_at[MAX_NESTING], depth = 0, regions = 0;
  for (uint32_t i = e.first_step; i < e.first_step + e.steps; i++) {
    const Step& s = m.steps[i];
    Text where("entry %s, step %u", e.name, i);
    EXPECT(s.kind <= END, where, Text("kind %u", s.kind), "region, repeat or end");
    if (s.kind == REGION) {
      if (int bad = verify_region(m, i, fault)) return bad;
      regions++;
    } else if (s.kind == REPEAT) {
      EXPECT(depth < MAX_NESTING, where, "one more repeat", Text("at most %u nested", MAX_NESTING));
      EXPECT(s.count > 0 && s.anytime <= 1 && !(s.anytime && depth > 0), where,
             Text("%u rounds, anytime %u, depth %u", s.count, s.anytime, depth),
             "1 round or more; anytime only outermost");
      EXPECT(s.counter % 4 == 0 && inside(s.counter, 4, m.sizes->arena_bytes), where,
             Text("counter at %llu", (ull)s.counter), Text("4-aligned, inside %llu", (ull)m.sizes->arena_bytes));
      regions_at[depth] = regions;
      open[depth++] = i;
    } else {
      EXPECT(depth > 0, where, "an end without a repeat", "brackets that balance");
      depth--;
      EXPECT(s.count == i - open[depth], where, Text("%u steps back", s.count),
             Text("%u, to its repeat", i - open[depth]));
      EXPECT(regions > regions_at[depth], where, "a repeat without a region", "at least one");
    }
  }
  EXPECT(depth == 0, Text("entry %s", e.name), Text("%u repeats left open", depth), "brackets that balance");
  EXPECT(regions > 0, Text("entry %s", e.name), "no region", "at least one");
  return EWM_OK;
}

int verify_entries(ewm_model& m, ewm_fault* fault) {
  m.action_port = EWM_NONE;
  for (uint32_t i = 0; i < m.sizes->entries; i++) {
    const Entry& e = m.entries[i];
    EXPECT(good_name(e.name, sizeof(e.name)), Text("entry %u", i), "a bad name", "1 to 23 of a-z 0-9 _");
    Text where("entry %s", e.name);
    for (uint32_t j = 0; j < i; j++)
      EXPECT(strcmp(m.entries[j].name, e.name) != 0, where, "there twice", "each name once");
    EXPECT(uint64_t(e.first_step) + e.steps <= m.sizes->steps, where, Text("steps %u + %u", e.first_step, e.steps),
           Text("at most %u", m.sizes->steps));
    EXPECT(uint64_t(e.first_port) + e.ports <= m.entry_port_count, where, Text("ports %u + %u", e.first_port, e.ports),
           Text("at most %u", m.entry_port_count));
    uint32_t actions = 0;
    for (uint32_t k = 0; k < e.ports; k++) {
      uint32_t port = m.entry_ports[e.first_port + k];
      EXPECT(port < m.sizes->ports, where, Text("port %u", port), Text("below %u", m.sizes->ports));
      for (uint32_t j = 0; j < k; j++) {
        const Port &p = m.ports[port], &other = m.ports[m.entry_ports[e.first_port + j]];
        EXPECT(is_result(p) != is_result(other) || strcmp(p.name, other.name) != 0, where,
               Text("port %s twice", p.name), "each name once among what it reads, and once among its results");
      }
      if (m.ports[port].kind != ACTION) continue;
      actions++;
      if (i == m.sizes->plan_entry) m.action_port = port;
    }
    for (uint32_t k = 0; k < e.ports && i == m.sizes->plan_entry; k++) {
      const Port& p = m.ports[m.entry_ports[e.first_port + k]];
      bool fed = p.feedback == EWM_NONE;
      for (uint32_t j = 0; j < e.ports; j++) fed = fed || m.entry_ports[e.first_port + j] == p.feedback;
      EXPECT(fed, where, Text("state %s fed back from port %u", p.name, p.feedback), "one of the plan's results");
    }
    EXPECT(i != m.sizes->plan_entry || actions == 1, where, Text("%u action ports", actions), "one, as it is the plan");
    if (int bad = verify_steps(m, e, fault)) return bad;
  }
  return EWM_OK;
}

}  // namespace

uint64_t port_bytes(const Port& p) { return uint64_t(p.elements) * SIZE[p.dtype]; }

int verify(ewm_model& m, ewm_fault* fault) {
  if (int bad = verify_sizes(m, fault)) return bad;
  if (int bad = verify_ports(m, fault)) return bad;
  return verify_entries(m, fault);
}

}  // namespace ewm
