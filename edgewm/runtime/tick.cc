// edgewm-tick: drive a bundle at its control rate and say, as JSON, how late its actions were.
//
// Releases are absolute: t0 + k periods. An action's lateness runs from the release it was meant for, so a stall counts
// against every period it swallowed, those that never got an action of their own included.
//
// A plan starts when as many periods of the chunk in play have passed as the file commits to; the chunk goes on until
// the next one is there. With `--replan free` it starts in each period that the planning thread is free in. A plan that
// follows on the chunk in play (state port periods_begun) starts right after the first action of that chunk, always.
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

#include "arguments.h"
#include "golden.h"
#include "histogram.h"
#include "realtime.h"
#include "spans.h"

typedef unsigned long long ull;

namespace {

struct Input {
  uint32_t port, kind;
  char* data;
  uint64_t bytes;
};

struct Run {
  const Arguments* arguments;
  ewm_model* model;
  ewm_loop* loop;
  uint64_t period_ns, t0;
  Input inputs[64];
  uint32_t input_count;
  uint32_t stop;           // set by the control thread, read by the planning thread; so are
  uint32_t taken, stopped;  // the chunk in play (the low half of its generation), and the latched stop,
  uint64_t due;             // and the tick the next plan starts in, written before `taken`
  uint32_t planned;         // the chunk published last
  uint32_t commit;          // periods; 0: plan whenever free
  bool on_cpu;
  bool follows;             // the plan begins where what is committed of the chunk in play ends
  uint32_t planning;        // a plan that follows is under way, or woken
  sem_t wake;               // the planning thread, where it follows
  int plan_error;
  ewm_fault fault;
  uint64_t began_ns, cold_ns, first_plan_ns, late_plans, misses, elapsed_ns, published;
  uint64_t missed_now, missed_longest, skipped;  // periods in a row, and those without an action of their own
  uint64_t plan_total_ns, observe_ns;
  uint64_t *step_ns, *call_ns;
  Histogram late, act, plan, age, iterations;
  Histogram tick;  // what a period's work took from when it began: what a clock that starts late would say
  Spans spans;
  Watch watch;
};

constexpr uint64_t LONGEST_SERIES = 1u << 20;

Run run;  // static: some 190 KB
Realtime realtime;

using ::complain;

int complain(const ewm_fault& f) {
  char what[320];
  snprintf(what, sizeof(what), "%s: found %s; expected %s", ewm_strerror(f.error), f.found, f.expected);
  const char* fix = f.error >= 400   ? "report it with this bundle"
                    : f.error >= 300 ? "run it on a machine that has what it needs"
                    : f.error >= 200 ? "copy or build the bundle again, for this target"
                                     : "mend the call";
  return complain(what, f.where, fix);
}

uint64_t now_ns() { return read_ns(CLOCK_MONOTONIC); }

// Nothing where the clock was set back meanwhile.
uint64_t since(uint64_t then, uint64_t now) { return now > then ? now - then : 0; }

void sleep_until(uint64_t ns) {
  timespec t{time_t(ns / 1000000000u), long(ns % 1000000000u)};
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, nullptr) == EINTR) {
  }
}

uint64_t release(uint64_t tick) { return run.t0 + tick * run.period_ns; }

void observe(uint64_t stamp_ns) {
  for (uint32_t i = 0; i < run.input_count; i++) {
    const Input& in = run.inputs[i];
    if (in.kind == EWM_OBSERVATION) ewm_observe(run.loop, in.port, in.data, in.bytes, stamp_ns, nullptr);
  }
}

void plan() {
  const double deadline_ms = run.arguments->deadline_ms;
  ewm_plan_info info;
  info.size = sizeof(info);
  uint64_t began = now_ns();
  int error = ewm_plan(run.loop, deadline_ms > 0 ? began + uint64_t(deadline_ms * 1e6) : 0, &info, &run.fault);
  if (error != EWM_OK && error != EWM_STALE) run.plan_error = error;  // a stall makes old what was seen, and is counted
  if (error != EWM_OK) return;
  add(run.plan, info.end_ns - info.start_ns);
  if (info.of != 0) add(run.iterations, info.iterations);
  __atomic_store_n(&run.planned, uint32_t(info.generation), __ATOMIC_RELAXED);
  run.late_plans += info.late;
  __atomic_store_n(&run.plan_total_ns, run.plan_total_ns + (info.end_ns - info.start_ns), __ATOMIC_RELAXED);
  __atomic_store_n(&run.published, run.published + 1, __ATOMIC_RELAXED);
}

// Whether a plan starts in this tick. A stopped loop takes no chunk: it goes on planning for the time that takes, where
// it can.
bool due(uint64_t tick) {
  const bool in_play = __atomic_load_n(&run.taken, __ATOMIC_ACQUIRE) == __atomic_load_n(&run.planned, __ATOMIC_RELAXED);
  if (run.follows) return in_play && !__atomic_load_n(&run.stopped, __ATOMIC_RELAXED);
  if (run.commit == 0 || __atomic_load_n(&run.stopped, __ATOMIC_RELAXED)) return true;
  return in_play && tick >= run.due;
}

// After each action: which chunk it is of, and, where that is a new one, when the next is wanted.
void note_played(const ewm_act_info& info, uint64_t tick) {
  if (info.state == EWM_STOPPED) __atomic_store_n(&run.stopped, 1, __ATOMIC_RELAXED);
  if (uint32_t(info.generation) == run.taken) return;
  run.due = tick + run.commit;
  __atomic_store_n(&run.taken, uint32_t(info.generation), __ATOMIC_RELEASE);
}

void* plan_when_woken(void*) {
  for (;;) {
    while (sem_wait(&run.wake) != 0) {
    }
    if (__atomic_load_n(&run.stop, __ATOMIC_ACQUIRE)) return nullptr;
    plan();
    __atomic_store_n(&run.planning, 0, __ATOMIC_RELEASE);
  }
}

// After the action of a tick: a plan that follows on the chunk it is of.
void follow(uint64_t tick) {
  if (!run.follows || __atomic_load_n(&run.planning, __ATOMIC_ACQUIRE) || !due(tick)) return;
  if (!run.arguments->async) return plan();
  __atomic_store_n(&run.planning, 1, __ATOMIC_RELAXED);
  sem_post(&run.wake);
}

void* plan_when_due(void*) {
  for (uint64_t tick = 0; !__atomic_load_n(&run.stop, __ATOMIC_ACQUIRE);) {
    sleep_until(release(tick));
    if (due(tick)) plan();
    tick = since(run.t0, now_ns()) / run.period_ns + 1;
  }
  return nullptr;
}

// Room for a series of one for each tick, of the first ones where that would be too long; every page of it there.
bool keep_series(Histogram& h, uint64_t ticks) {
  if (ticks > LONGEST_SERIES) ticks = LONGEST_SERIES;
  h.series = static_cast<uint64_t*>(malloc(ticks * sizeof(uint64_t)));
  if (h.series == nullptr) return false;
  h.room = ticks;
  memset(h.series, 0xff, ticks * sizeof(uint64_t));
  return true;
}

int drive() {
  const Arguments& a = *run.arguments;
  float action[16];
  ewm_act_info info;
  info.size = sizeof(info);
  observe(now_ns());
  for (uint64_t i = 0; i <= a.warmup; i++) {
    uint64_t began = now_ns();
    if (run.follows) ewm_reset(run.loop, 0, nullptr);  // else it would wait for the chunk before to be played
    observe(began);
    plan();
    if (run.plan_error != EWM_OK) return complain(run.fault);
    if (i == 0) run.first_plan_ns = now_ns() - began;
    ewm_act(run.loop, began, action, &info);
    if (i == 0) run.cold_ns = now_ns() - run.began_ns;
  }
  Histogram* const all[] = {&run.late, &run.plan, &run.age, &run.iterations, &run.act};
  for (Histogram* h : all) *h = Histogram{};
  Histogram* const kept[] = {&run.late, &run.plan, &run.age, &run.act};
  for (Histogram* h : kept)
    if (!keep_series(*h, a.ticks)) return complain("out of memory", "samples", "ask for fewer ticks");
  run.late_plans = run.published = run.plan_total_ns = 0;
  divide(run.spans, a.ticks);
  run.taken = run.planned;  // by the last action before the start: the first tick plans
  // On a GPU measuring takes time of its own: only where it is asked for.
  const bool steps = a.kernels || run.on_cpu;
  if (ewm_profile(run.loop, steps ? run.step_ns : nullptr, a.kernels ? run.call_ns : nullptr, &run.fault) != EWM_OK)
    return complain(run.fault);
  lock_memory(realtime);
  run.t0 = now_ns() + run.period_ns;
  pthread_t planner;
  sem_init(&run.wake, 0, 0);
  if (a.async && !make_thread(realtime, &planner, run.follows ? plan_when_woken : plan_when_due))
    return complain("cannot make the planning thread", "edgewm-tick", "raise the limit of threads, or use --inline");
  lead(realtime);
  for (uint64_t tick = 0, done = 0; done < a.ticks;) {
    sleep_until(release(tick));
    uint64_t began = now_ns();
    look(run.watch, began);
    uint64_t current = since(run.t0, began) / run.period_ns;
    if (current > tick) tick = current < a.ticks ? current : a.ticks - 1;
    observe(release(tick) < began ? release(tick) : began);
    run.observe_ns += now_ns() - began;
    if (!a.async && !run.follows && due(tick)) plan();
    uint64_t called = now_ns();
    ewm_act(run.loop, release(tick), action, &info);
    uint64_t ended = now_ns();
    add(run.act, ended - called);
    note_played(info, tick);
    if (info.state != EWM_WAITING && info.state != EWM_STOPPED) add(run.age, info.age_ns + since(release(tick), ended));
    add(run.tick, since(began, ended));
    follow(tick);
    run.skipped += tick - done;
    for (; done <= tick; done++) {
      const uint64_t late = since(release(done), ended);
      const bool missed = late >= run.period_ns;
      add(run.late, late);
      add(run.spans, late, missed);
      run.misses += missed;
      run.missed_now = missed ? run.missed_now + 1 : 0;
      if (run.missed_now > run.missed_longest) run.missed_longest = run.missed_now;
    }
    tick++;
    if (run.spans.now.ticks >= run.spans.ticks_each || done == a.ticks)
      close(run.spans, since(run.t0, ended), __atomic_load_n(&run.published, __ATOMIC_RELAXED),
            __atomic_load_n(&run.plan_total_ns, __ATOMIC_RELAXED));
  }
  run.elapsed_ns = now_ns() - run.t0;
  __atomic_store_n(&run.stop, 1, __ATOMIC_RELEASE);
  sem_post(&run.wake);
  if (a.async) pthread_join(planner, nullptr);
  return 0;
}

// What the plan is given: the first golden record of its entry, else zeros (or the end of the range nearest to zero).
int gather_inputs(const ewm_model_info& about) {
  uint64_t bytes = 0, at = 0;
  const char* data = static_cast<const char*>(ewm_section(run.model, "golden", &bytes));
  static GoldenRecord record;
  bool found = false;
  while (data != nullptr && !found && golden_next(run.model, data, bytes, &at, &record) == 1)
    found = record.entry == about.plan_entry;
  for (uint32_t k = 0;; k++) {
    uint32_t port = ewm_entry_port(run.model, about.plan_entry, k);
    ewm_port_info p;
    p.size = sizeof(p);
    if (port == EWM_NONE || ewm_port(run.model, port, &p) != EWM_OK) return 0;
    if (p.kind == EWM_STATE && strcmp(p.name, "periods_begun") == 0) run.follows = true;
    if (p.kind != EWM_OBSERVATION && p.kind != EWM_GOAL && p.kind != EWM_NOISE) continue;
    if (run.input_count == 64) return complain("more than 64 inputs", "plan entry", "use the library directly");
    Input& in = run.inputs[run.input_count++];
    in = Input{port, p.kind, static_cast<char*>(calloc(1, p.bytes)), p.bytes};
    if (in.data == nullptr) return complain("out of memory", p.name, "free some");
    float value = p.low > 0 ? p.low : p.high < 0 ? p.high : 0;
    for (uint32_t i = 0; p.dtype == EWM_F32 && i < p.elements; i++) memcpy(in.data + 4 * i, &value, 4);
    for (uint32_t i = 0; found && i < record.inputs; i++)
      if (record.input[i].port == port) memcpy(in.data, record.input[i].data, p.bytes);
    if (p.kind != EWM_OBSERVATION && ewm_set_goal(run.loop, port, in.data, in.bytes, &run.fault) != EWM_OK)
      return complain(run.fault);
  }
}

void print_report(const ewm_model_info& about, FILE* out) {
  const Arguments& a = *run.arguments;
  ewm_counts n;
  n.size = sizeof(n);
  ewm_stats(run.loop, &n);
  fprintf(out,
          "{\"schema_version\": 1, \"target\": \"%s\", \"mode\": \"%s\", \"rate_hz\": %.9g, \"ticks\": %llu, "
          "\"threads\": %u, \"replan\": \"%s\", \"commit_steps\": %u, ",
          ewm_target(), a.async ? "async" : "inline", a.rate_hz, (ull)a.ticks, a.threads,
          run.follows ? "follow" : run.commit == 0 ? "free" : "commit", run.commit);
  fprintf(out, "\"spin\": %s, \"elapsed_ns\": %llu, \"cold_ns\": %llu, \"first_plan_ns\": %llu,\n \"scheduler\": ",
          a.spin ? "true" : "false", (ull)run.elapsed_ns, (ull)run.cold_ns, (ull)run.first_plan_ns);
  print_json(realtime, out);
  fprintf(out,
          ",\n \"misses_in_a_row\": %llu, \"skipped\": %llu, \"observe_ns\": %llu, \"clock\": {\"looks\": %llu, "
          "\"steps\": %llu, \"largest_step_ns\": %llu},\n \"spans\": ",
          (ull)run.missed_longest, (ull)run.skipped, (ull)run.observe_ns, (ull)run.watch.looks, (ull)run.watch.steps,
          (ull)run.watch.largest_ns);
  print_json(run.spans, out);
  fprintf(out, ",\n");
  fprintf(out, " \"misses\": %llu, \"plans\": %llu, \"late_plans\": %llu, \"plan_error\": %d, \"plans_per_s\": %.9g,\n",
          (ull)run.misses, (ull)run.published, (ull)run.late_plans, run.plan_error,
          double(run.published) * 1e9 / double(run.elapsed_ns));
  const struct {
    const char* name;
    const Histogram& h;
  } all[] = {{"act_late_ns", run.late},
             {"act_ns", run.act},
             {"tick_ns", run.tick},
             {"plan_ns", run.plan},
             {"plan_age_ns", run.age},
             {"plan_iterations", run.iterations}};
  for (auto& each : all) {
    fprintf(out, " \"%s\": ", each.name);
    print_json(each.h, out);
    fprintf(out, ",\n");
  }
  fprintf(out,
          " \"stats\": {\"waiting\": %llu, \"fresh\": %llu, \"hold\": %llu, \"ramp\": %llu, \"stopped\": %llu, "
          "\"skipped\": %llu, \"limited\": "
          "%llu, \"chunks\": %llu, \"stale\": %llu, \"refused_input\": %llu, \"result_non_finite\": %llu, "
          "\"futex_calls\": %llu, \"held_up\": %llu, \"begun_late\": %llu, \"begun_anew\": %llu},\n",
          (ull)n.waiting, (ull)n.fresh, (ull)n.hold, (ull)n.ramp, (ull)n.stopped, (ull)n.skipped, (ull)n.limited,
          (ull)n.chunks, (ull)n.stale, (ull)n.refused_input, (ull)n.result_non_finite, (ull)n.futex_calls,
          (ull)n.held_up, (ull)n.begun_late, (ull)n.begun_anew);
  if (about.gpu != 0)
    fprintf(out,
            " \"gpu\": {\"sm\": %u, \"module\": \"%s\", \"graph_nodes\": %llu, \"graph_bytes\": %llu, "
            "\"graph_ns\": %llu, \"stamp_ns\": %llu, \"launched\": \"%s\", \"measured\": \"%s\"},\n",
            about.gpu, n.ptx ? "ptx" : "cubin", (ull)n.graph_nodes, (ull)n.graph_bytes, (ull)n.graph_ns,
            (ull)n.stamp_ns, about.persistent ? "together" : "apart", a.kernels ? "apart" : "not");
  // Planning thread's time, barriers included: regions of the plan, then (with --kernels) its own share of each call.
  fprintf(out, " \"steps\": [");
  bool first = true;
  for (uint32_t i = 0; i < about.steps; i++) {
    if (run.step_ns[i] == 0) continue;
    fprintf(out, "%s{\"step\": %u, \"ns\": %llu}", first ? "" : ", ", i, (ull)run.step_ns[i]);
    first = false;
  }
  fprintf(out, "],\n \"calls\": [");
  first = true;
  for (uint32_t i = 0; i < about.calls; i++) {
    if (run.call_ns[i] == 0) continue;
    fprintf(out, "%s{\"call\": %u, \"kernel\": \"%s\", \"ns\": %llu}", first ? "" : ", ", i,
            ewm_call_kernel(run.model, i), (ull)run.call_ns[i]);
    first = false;
  }
  fprintf(out, "]}\n");
}

void print_summary(FILE* out) {
  fprintf(out, "%llu ticks at %g Hz, %llu misses, %.3g plans/s\n", (ull)run.late.count, run.arguments->rate_hz,
          (ull)run.misses, double(run.published) * 1e9 / double(run.elapsed_ns));
  fprintf(out, "plan ms p50 %.3f max %.3f; action late ms p50 %.3f max %.3f; act us max %.1f\n",
          double(quantile(run.plan, .5)) / 1e6, double(run.plan.max) / 1e6, double(quantile(run.late, .5)) / 1e6,
          double(run.late.max) / 1e6, double(run.act.max) / 1e3);
}

int start(const Arguments& a, ewm_model_info& about) {
  run.arguments = &a;
  run.fault.size = sizeof(run.fault);
  struct stat is;
  char path[4096];
  bool folder = stat(a.model, &is) == 0 && S_ISDIR(is.st_mode);
  snprintf(path, sizeof(path), folder ? "%s/model.ewm" : "%s", a.model);
  if (ewm_open(path, &run.model, &run.fault) != EWM_OK) return complain(run.fault);
  about.size = sizeof(about);
  ewm_describe(run.model, &about);
  run.on_cpu = about.gpu == 0;
  if (run.on_cpu) enter(realtime);
  uint64_t bytes = ewm_arena_bytes(run.model, a.threads);
  void* arena = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (arena == MAP_FAILED) return complain("out of memory", "arena", "use fewer threads or a smaller plan");
  madvise(arena, bytes, MADV_HUGEPAGE);
  run.period_ns = uint64_t(1e9 / a.rate_hz);
  ewm_options options{};
  options.size = sizeof(options);
  options.spin = a.spin;
  options.period_ns = run.period_ns;
  options.max_hold_periods = a.hold_periods;
  options.ramp_periods = a.ramp_periods;
  if (ewm_init(run.model, arena, bytes, a.threads, &options, &run.loop, &run.fault) != EWM_OK)
    return complain(run.fault);
  if (!run.on_cpu) enter(realtime);  // a driver's own threads keep what they have: they must run beside the planner
  ewm_port_info action;
  action.size = sizeof(action);
  if (!a.free && ewm_port(run.model, about.action_port, &action) == EWM_OK) run.commit = action.commit_steps;
  run.step_ns = static_cast<uint64_t*>(calloc(about.steps + 1, sizeof(uint64_t)));
  run.call_ns = static_cast<uint64_t*>(calloc(about.calls + 1, sizeof(uint64_t)));
  return run.step_ns != nullptr && run.call_ns != nullptr ? 0 : complain("out of memory", "profile", "free some");
}

}  // namespace

int main(int argc, char** argv) {
  run.began_ns = now_ns();
  Arguments arguments;
  ewm_model_info about;
  if (int bad = parse(argc, argv, arguments, realtime)) return bad;
  if (int bad = start(arguments, about)) return bad;
  if (arguments.golden) {
    int verdict = golden_replay(run.model, run.loop, true);
    ewm_end(run.loop);
    return verdict;
  }
  if (about.plan_entry == EWM_NONE)
    return complain("this file holds no plan", arguments.model, "use --golden, or build with a planner");
  if (int bad = gather_inputs(about)) return bad;
  if (int bad = drive()) return bad;
  FILE* out = arguments.json == nullptr || strcmp(arguments.json, "-") == 0 ? stdout : fopen(arguments.json, "w");
  if (out == nullptr) return complain(strerror(errno), arguments.json, "give a file that can be written");
  if (arguments.json != nullptr)
    print_report(about, out);
  else
    print_summary(out);
  if (fflush(out) != 0 || ferror(out)) return complain("cannot write the report", arguments.json, "free some space");
  ewm_end(run.loop);
  return 0;
}
