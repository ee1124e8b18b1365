// An entry as graphs: every launch of every round, in the order in which the processor would make its calls, as one; or
// cut at the loop that a deadline may end. Captured once, from a stream on which nothing runs meanwhile.
#include "cuda.h"

namespace ewm {
namespace {

typedef unsigned long long ull;

constexpr const char* GRAPH = "graph";
// Ports so near each other are copied as one: this many bytes more cost less than another node.
constexpr uint64_t NEAR_BYTES = 4096;

// Where the loop that begins at `at` ends.
uint32_t end_of_loop(const ewm_model& m, uint32_t at) {
  for (uint32_t i = at + 1, depth = 1;; i++) {
    if (m.steps[i].kind == REPEAT) depth++;
    if (m.steps[i].kind == END && --depth == 0) return i;
  }
}

// Walks the regions of steps [at, end) in the order they run in, rounds unrolled. `visit` is told of each region, of
// each round before it begins, and of each loop once it is left; it says whether to go on.
template <class Visit>
bool walk(const ewm_model& m, uint32_t at, uint32_t end, Visit& visit) {
  while (at < end) {
    const Step& step = m.steps[at];
    if (step.kind == REGION) {
      if (!visit.region(at)) return false;
      at++;
      continue;
    }
    const uint32_t close = end_of_loop(m, at);
    for (uint32_t round = 0; round < step.count; round++)
      if (!visit.round(step, round) || !walk(m, at + 1, close, visit)) return false;
    if (!visit.left()) return false;
    at = close + 1;
  }
  return true;
}

// Puts what it is told of on the stream that is captured.
struct Recorder {
  const ewm_model& m;
  Device& d;
  CudaAddress stamps;  // 0: none
  ewm_fault* fault;
  int error = EWM_OK;
  uint32_t first = 0, count = 0;  // launches that wait to be run as one
  uint64_t nodes = 0;

  bool good(const char* call, CudaResult result) {
    nodes++;
    if (result == 0) return true;
    error = refuse(fault, EWM_NO_GPU, GRAPH, said(d.cuda, call, result), "success");
    return false;
  }
  bool single(uint32_t function, void* parameter) {
    void* parameters[] = {parameter};
    return good("launch", d.cuda.launch(d.functions[function], 1, 1, 1, 1, 1, 1, 0, d.stream, parameters, nullptr));
  }
  bool stamp() {
    if (stamps == 0) return true;
    Stamp parameter{reinterpret_cast<uint64_t*>(stamps)};
    stamps += sizeof(uint64_t);
    return single(m.gpu->stamp, &parameter);
  }
  // A run that was given up may have left blocks counted.
  bool begin() { return m.gpu->persistent == EWM_NONE || good("fill_words", d.cuda.fill_words(d.barrier, 0, 1, d.stream)); }

  Launch launch(uint32_t call, uint32_t phase) const {
    return {reinterpret_cast<const Call*>(d.calls),
            reinterpret_cast<const Operand*>(d.operands),
            {reinterpret_cast<char*>(d.arena), reinterpret_cast<char*>(d.scratch), reinterpret_cast<char*>(d.weights)},
            call,
            phase};
  }
  bool phase(const GpuLaunch& l) {
    if (m.gpu->persistent != EWM_NONE) return together(static_cast<uint32_t>(&l - m.launches), 1);
    Launch parameter = launch(l.call, l.phase);
    void* parameters[] = {&parameter};
    const CudaFunction function = d.functions[l.function];
    const unsigned threads = m.gpu->threads;
    if (l.cooperative)
      return good("launch_cooperative", d.cuda.launch_cooperative(function, l.blocks, 1, 1, threads, 1, 1,
                                                                  l.shared_bytes, d.stream, parameters));
    return good("launch", d.cuda.launch(function, l.blocks, 1, 1, threads, 1, 1, l.shared_bytes, d.stream, parameters,
                                        nullptr));
  }

  // Where no time is noted between them, launches that follow on each other are one, of blocks that are all resident.
  bool is_persistent() const { return m.gpu->persistent != EWM_NONE && stamps == 0; }

  bool flush() {
    const uint32_t rows = count;
    count = 0;
    return rows == 0 || together(first, rows);
  }
  bool together(uint32_t row, uint32_t rows) {
    uint32_t blocks = 1, shared_bytes = 0;
    for (uint32_t i = row; i < row + rows; i++) {
      if (m.launches[i].blocks > blocks) blocks = m.launches[i].blocks;
      if (m.launches[i].shared_bytes > shared_bytes) shared_bytes = m.launches[i].shared_bytes;
    }
    if (blocks > d.together) blocks = d.together;
    Persistent parameter{launch(0, 0), reinterpret_cast<const GpuLaunch*>(d.launches), row, rows,
                         reinterpret_cast<uint32_t*>(d.barrier)};
    void* parameters[] = {&parameter};
    return good("launch_cooperative",
                d.cuda.launch_cooperative(d.functions[m.gpu->persistent], blocks, 1, 1, m.gpu->threads, 1, 1,
                                          shared_bytes, d.stream, parameters));
  }

  bool region(uint32_t step) {
    const Step& s = m.steps[step];
    for (uint32_t call = s.first_call; call < s.first_call + s.calls; call++) {
      for (const GpuLaunch* l = first_launch(m, call); l < m.launches + m.gpu->launches && l->call == call; l++) {
        if (!is_persistent() || l->cooperative) {
          if (!flush() || !phase(*l)) return false;
          continue;
        }
        const uint32_t row = static_cast<uint32_t>(l - m.launches);
        if (count != 0 && row != first + count && !flush()) return false;
        if (count == 0) first = row;
        count++;
      }
      if (!stamp()) return false;
    }
    return true;
  }
  bool round(const Step& loop, uint32_t round) {
    return flush() && good("fill_words", d.cuda.fill_words(d.arena + loop.counter, round, 1, d.stream));
  }
  bool left() { return flush(); }

  bool copy(uint64_t begin, uint64_t end, bool in) {
    const uint64_t bytes = end - begin;
    const CudaAddress there = d.arena + begin, mapped = d.ports_there + begin;
    if (d.integrated)  // one memory: nothing has to cross a bus
      return good("copy", in ? d.cuda.copy(there, mapped, bytes, d.stream) : d.cuda.copy(mapped, there, bytes, d.stream));
    return in ? good("copy_in", d.cuda.copy_in(there, d.ports + begin, bytes, d.stream))
              : good("copy_out", d.cuda.copy_out(d.ports + begin, there, bytes, d.stream));
  }
  // The entry's ports of one direction, in the order they lie in.
  bool ports(const Entry& entry, bool in) {
    uint64_t begin = 0, end = 0;  // of what is to be copied
    for (uint64_t from = 0;;) {
      const Port* next = nullptr;
      for (uint32_t k = 0; k < entry.ports; k++) {
        const Port& p = m.ports[m.entry_ports[entry.first_port + k]];
        if (input(p) == in && p.offset >= from && (next == nullptr || p.offset < next->offset)) next = &p;
      }
      if (next == nullptr) break;
      if (end != 0 && next->offset > end + NEAR_BYTES) {
        if (!copy(begin, end, in)) return false;
        end = 0;
      }
      if (end == 0) begin = next->offset;
      const uint64_t stop = next->offset + port_bytes(*next);
      if (stop > end) end = stop;
      from = next->offset + 1;
    }
    return end == 0 || copy(begin, end, in);
  }

  bool steps(uint32_t at, uint32_t end) { return walk(m, at, end, *this) && flush(); }
  bool entry(const Entry& e) {
    return begin() && ports(e, true) && stamp() && stamp() && steps(e.first_step, e.first_step + e.steps) && ports(e, false);
  }
};

// Counts stamps, and gives each to its step and call.
struct Stamps {
  const ewm_model& m;
  const uint64_t* at;  // nullptr: only counts
  uint64_t floor;      // what a stamp takes
  uint64_t *step_ns, *call_ns;
  uint64_t count = 2;  // those before the first launch

  bool region(uint32_t step) {
    const Step& s = m.steps[step];
    for (uint32_t call = s.first_call; call < s.first_call + s.calls; call++, count++) {
      if (at == nullptr) continue;
      const uint64_t between = at[count] - at[count - 1];
      const uint64_t ns = between > floor ? between - floor : 0;
      if (step_ns != nullptr) step_ns[step] += ns;
      if (call_ns != nullptr) call_ns[call] += ns;
    }
    return true;
  }
  bool round(const Step&, uint32_t) { return true; }
  bool left() { return true; }
};

// A graph of what `record` puts on the stream.
template <class Record>
int make(const ewm_model& m, Device& d, CudaAddress stamps, CudaGraphExec& made, ewm_fault* fault, Record record) {
  const uint64_t began_ns = monotonic_ns();
  size_t before = 0, after = 0, all = 0;
  d.cuda.memory(&before, &all);
  EWM_CALL(d.cuda, EWM_NO_GPU, GRAPH, begin_capture, d.stream, CAPTURE_OF_THIS_THREAD);
  Recorder recorder{m, d, stamps, fault};
  const bool whole = record(recorder);
  CudaGraph graph = nullptr;
  const CudaResult ended = d.cuda.end_capture(d.stream, &graph);
  CudaResult error = ended;
  if (whole && ended == 0) error = d.cuda.instantiate(&made, graph, 0);
  if (graph != nullptr) d.cuda.end_graph(graph);
  if (!whole) return recorder.error;
  const char* call = ended != 0 ? "end_capture" : "instantiate";
  if (error != 0) made = nullptr;
  if (made != nullptr && (error = d.cuda.upload_graph(made, d.stream)) != 0) {
    call = "upload_graph";
    d.cuda.end_made_graph(made);
    made = nullptr;
  }
  if (error == CUDA_OUT_OF_MEMORY)
    return refuse(fault, EWM_NO_MEMORY, GRAPH, Text("%llu of %llu bytes free", ull(before), ull(all)),
                  Text("room for a graph of %llu nodes", ull(recorder.nodes)));
  if (error != 0) return refuse(fault, EWM_NO_GPU, GRAPH, said(d.cuda, call, error), "success");
  EWM_CALL(d.cuda, EWM_NO_GPU, GRAPH, synchronize);
  d.cuda.memory(&after, &all);
  d.graph_nodes += recorder.nodes;
  d.graph_bytes += before > after ? before - after : 0;
  d.graph_ns += monotonic_ns() - began_ns;
  return EWM_OK;
}

}  // namespace

uint32_t anytime_loop(const ewm_model& m, const Entry& entry) {
  uint32_t found = EWM_NONE;
  for (uint32_t i = entry.first_step; i < entry.first_step + entry.steps; i++)
    if (m.steps[i].kind == REPEAT && m.steps[i].anytime)
      if (found == EWM_NONE || m.steps[i].count > m.steps[found].count) found = i;
  return found;
}

int make_graphs(const ewm_model& m, Device& d, const Entry& e, EntryGraphs& made, ewm_fault* fault) {
  const uint32_t loop = anytime_loop(m, e);
  if (int bad = make(m, d, 0, made.whole, fault, [&](Recorder& r) { return r.entry(e); })) return bad;
  if (&e != m.entries + m.sizes->plan_entry || loop == EWM_NONE) return EWM_OK;
  const uint32_t close = end_of_loop(m, loop);
  const auto head = [&](Recorder& r) { return r.begin() && r.ports(e, true) && r.steps(e.first_step, loop); };
  const auto round = [&](Recorder& r) { return r.steps(loop + 1, close); };
  const auto tail = [&](Recorder& r) { return r.steps(close + 1, e.first_step + e.steps) && r.ports(e, false); };
  if (int bad = make(m, d, 0, made.head, fault, head)) return bad;
  if (int bad = make(m, d, 0, made.round, fault, round)) return bad;
  return make(m, d, 0, made.tail, fault, tail);
}

void end_graphs(const Device& d, EntryGraphs& made) {
  const CudaGraphExec all[] = {made.whole, made.head, made.round, made.tail};
  for (CudaGraphExec graph : all)
    if (graph != nullptr) d.cuda.end_made_graph(graph);
  made = EntryGraphs{};
}

int make_measured_graph(const ewm_model& m, Device& d, const Entry& entry, CudaAddress stamps, CudaGraphExec& made,
                        ewm_fault* fault) {
  return make(m, d, stamps, made, fault, [&](Recorder& r) { return r.entry(entry); });
}

uint64_t stamps_of(const ewm_model& m, const Entry& entry) {
  Stamps stamps{m, nullptr, 0, nullptr, nullptr};
  walk(m, entry.first_step, entry.first_step + entry.steps, stamps);
  return stamps.count;
}

void add_stamps(const ewm_model& m, const Entry& entry, const uint64_t* at, uint64_t& stamp_ns, uint64_t* step_ns,
                uint64_t* call_ns) {
  if (stamp_ns == 0 || at[1] - at[0] < stamp_ns) stamp_ns = at[1] - at[0];
  Stamps stamps{m, at, stamp_ns, step_ns, call_ns};
  walk(m, entry.first_step, entry.first_step + entry.steps, stamps);
}

}  // namespace ewm
