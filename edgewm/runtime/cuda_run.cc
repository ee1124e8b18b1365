// A run on a GPU. Without a deadline an entry is one launch of its graph. With one, the host paces the loop that may
// end early, by its own clock: one round is launched again and again, at most one ahead of what has ended.
#include <time.h>

#include "cuda.h"

namespace ewm {
namespace {

constexpr const char* GPU = "GPU";
constexpr long NAP_NS = 20 * 1000;
// A GPU that has not ended by then hangs: options.gpu_wait_ns says otherwise.
constexpr uint64_t LONGEST_WAIT_NS = 10ull * 1000 * 1000 * 1000;

// What a run is waited for with.
struct Wait {
  ewm_loop& loop;
  Device& d;
  uint64_t began_ns, until_ns;  // CLOCK_MONOTONIC: the loop's own clock may stand still
  ewm_fault* fault;

  // Naps, or looks again and again where the caller wants no system call. cuEventSynchronize would know no end.
  template <class Query>
  CudaResult ended(Query query) {
    for (;;) {
      const bool last = monotonic_ns() >= until_ns;  // looked at first: this thread may have been off its processor
      const CudaResult error = query();
      if (error != CUDA_NOT_READY || last) return error;
      const timespec nap{0, NAP_NS};
      if (loop.options.spin)
        pause();
      else
        nanosleep(&nap, nullptr);
    }
  }

  int hangs() {
    d.hung = true;
    const unsigned long long ms = (monotonic_ns() - began_ns) / 1000000;
    return refuse(fault, EWM_GPU_FAILED, GPU, Text("a run that has not ended after %llu ms", ms),
                  "its end within options.gpu_wait_ns; if it does hang, end this process");
  }
  // Nothing of the run may still write when the caller hears that it failed.
  int failed(const char* call, CudaResult error) {
    if (ended([&] { return d.cuda.query_stream(d.stream); }) == CUDA_NOT_READY) return hangs();
    return said_to_fail(call, error);
  }
  // A context that failed stays so, and is the whole process's.
  int said_to_fail(const char* call, CudaResult error) {
    return refuse(fault, EWM_GPU_FAILED, GPU, said(d.cuda, call, error),
                  "success; end every use of this GPU's context in the process, then open the bundle again");
  }
  int launch(CudaGraphExec graph, CudaEvent done) {
    if (CudaResult error = d.cuda.launch_graph(graph, d.stream)) return failed("launch_graph", error);
    if (CudaResult error = d.cuda.record(done, d.stream)) return failed("record", error);
    return EWM_OK;
  }
  int end(CudaEvent done) {
    const CudaResult error = ended([&] { return d.cuda.query(done); });
    if (error == CUDA_NOT_READY) return hangs();
    return error == 0 ? EWM_OK : failed("query", error);
  }
};

// One round of a loop; the counter that its calls read is written before it.
int launch_round(Wait& wait, const Step& step, CudaGraphExec graph, uint32_t round) {
  Device& d = wait.d;
  if (CudaResult error = d.cuda.fill_words(d.arena + step.counter, round, 1, d.stream))
    return wait.failed("fill_words", error);
  return wait.launch(graph, d.done[round % 2]);
}

// Rounds are launched while the longest so far, and what follows the loop, would end in time; the next one while the
// one before it runs, once it is known how long one takes. A round that was launched is waited for and counts.
int run_rounds(Wait& wait, const Step& step, CudaGraphExec graph, uint64_t deadline_ns, uint32_t& done) {
  Device& d = wait.d;
  uint64_t began_ns = 0, longest_ns = 0;
  for (uint32_t launched = done = 0;;) {
    while (launched < step.count && launched - done < 2) {
      const bool ahead = launched != done;
      if (ahead && longest_ns == 0) break;
      const uint64_t now = clock_ns(wait.loop), free = ahead ? began_ns + longest_ns : now;
      const uint64_t tail_ns = d.tail_ns != 0 ? d.tail_ns : longest_ns;
      if ((free > now ? free : now) + longest_ns + tail_ns >= deadline_ns) break;
      if (!ahead) began_ns = now;
      if (int bad = launch_round(wait, step, graph, launched++)) return bad;
    }
    if (launched == done) return EWM_OK;
    if (int bad = wait.end(d.done[done++ % 2])) return bad;
    const uint64_t now = clock_ns(wait.loop);
    if (now - began_ns > longest_ns) longest_ns = now - began_ns;
    began_ns = now;
  }
}

// Longer at once, shorter little by little: one short tail says little of the next.
void learn(uint64_t& tail_ns, uint64_t measured_ns) {
  tail_ns = measured_ns >= tail_ns ? measured_ns : tail_ns - (tail_ns - measured_ns) / 8;
}

int run_paced(Wait& wait, const EntryGraphs& graphs, const Step& step, uint64_t deadline_ns) {
  Device& d = wait.d;
  if (int bad = wait.launch(graphs.head, d.done[0])) return bad;
  if (int bad = wait.end(d.done[0])) return bad;
  uint32_t done = 0;
  if (int bad = run_rounds(wait, step, graphs.round, deadline_ns, done)) return bad;
  const uint64_t launched_ns = clock_ns(wait.loop);
  if (int bad = wait.launch(graphs.tail, d.done[0])) return bad;
  if (int bad = wait.end(d.done[0])) return bad;
  learn(d.tail_ns, clock_ns(wait.loop) - launched_ns);
  wait.loop.job.iterations = done;
  return EWM_OK;
}

int run_whole(Wait& wait, CudaGraphExec graph) {
  if (int bad = wait.launch(graph, wait.d.done[0])) return bad;
  return wait.end(wait.d.done[0]);
}

// A run that was given up is in the way of the next until it has ended.
int recover(Wait& wait) {
  Device& d = wait.d;
  if (!d.hung) return EWM_OK;
  if (d.cuda.query_stream(d.stream) == CUDA_NOT_READY) return wait.hangs();
  d.hung = false;
  return EWM_OK;
}

}  // namespace

int run_entry(ewm_loop& loop, const Entry& entry, uint64_t deadline_ns, ewm_fault* fault) {
  const ewm_model& m = *loop.model;
  Device& d = *static_cast<Device*>(loop.device);
  const uint32_t index = static_cast<uint32_t>(&entry - m.entries), begins = anytime_loop(m, entry);
  EntryGraphs& graphs = d.entries[index];
  const Current current(d);
  const uint64_t now = monotonic_ns(), limit = loop.options.gpu_wait_ns;
  const uint64_t start_ns = deadline_ns == 0 ? 0 : clock_ns(loop);
  const uint64_t budget_ns = deadline_ns > start_ns ? deadline_ns - start_ns : 0;
  const uint64_t until = now + (limit != 0 ? limit : LONGEST_WAIT_NS);
  Wait wait{loop, d, now, budget_ns < ~until ? until + budget_ns : ~uint64_t(0), fault};
  if (current.error != 0) return wait.said_to_fail("push_context", current.error);
  if (int bad = recover(wait)) return bad;
  if (graphs.whole == nullptr)
    if (int bad = make_graphs(m, d, entry, graphs, fault)) return bad;
  tell_graphs(loop, d);
  const bool wanted = loop.step_ns != nullptr || loop.call_ns != nullptr;
  const bool measured = wanted && d.measured != nullptr && index == m.sizes->plan_entry;
  loop.job.iterations = loop.job.of = begins == EWM_NONE ? 0 : m.steps[begins].count;
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  const bool paced = deadline_ns != 0 && graphs.round != nullptr && !measured;
  if (int bad = paced ? run_paced(wait, graphs, m.steps[begins], deadline_ns)
                      : run_whole(wait, measured ? d.measured : graphs.whole))
    return bad;
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  if (measured) add_stamps(m, entry, d.stamps_here, loop.counts.stamp_ns, loop.step_ns, loop.call_ns);
  return EWM_OK;
}

}  // namespace ewm
