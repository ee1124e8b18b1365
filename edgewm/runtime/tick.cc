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

#include "golden.h"
#include "histogram.h"
#include "realtime.h"

typedef unsigned long long ull;

namespace {

struct Arguments {
  const char* model;
  const char* json;
  double rate_hz, deadline_ms;
  uint64_t ticks, warmup;
  uint32_t threads, hold_periods, ramp_periods;
  bool async, spin, golden, kernels, free;
};

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
  bool follows;             // the plan begins where what is committed of the chunk in play ends
  uint32_t planning;        // a plan that follows is under way, or woken
  sem_t wake;               // the planning thread, where it follows
  int plan_error;
  ewm_fault fault;
  uint64_t first_plan_ns, late_plans, misses, elapsed_ns, published;
  uint64_t *step_ns, *call_ns;
  Histogram late, act, plan, age, iterations;
};

constexpr uint64_t LONGEST_SERIES = 100000;

Run run;  // static: some 150 KB
Realtime realtime;

int complain(const char* what, const char* where, const char* fix) {
  fprintf(stderr, "error: %s\n  where: %s\n  fix: %s\n", what, where, fix);
  return 2;
}

int complain(const ewm_fault& f) {
  char what[320];
  snprintf(what, sizeof(what), "%s: found %s; expected %s", ewm_strerror(f.error), f.found, f.expected);
  const char* fix = f.error >= 400   ? "report it with this bundle"
                    : f.error >= 300 ? "run it on a machine that has what it needs"
                    : f.error >= 200 ? "copy or build the bundle again, for this target"
                                     : "mend the call";
  return complain(what, f.where, fix);
}

uint64_t now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return uint64_t(t.tv_sec) * 1000000000u + uint64_t(t.tv_nsec);
}

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
  if (error != EWM_OK) run.plan_error = error;
  if (error != EWM_OK) return;
  add(run.plan, info.end_ns - info.start_ns);
  if (info.of != 0) add(run.iterations, info.iterations);
  __atomic_store_n(&run.planned, uint32_t(info.generation), __ATOMIC_RELAXED);
  run.late_plans += info.late;
  run.published++;
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
    uint64_t current = (now_ns() - run.t0) / run.period_ns;
    tick = current + 1;
  }
  return nullptr;
}

// No samples, and room for a series of one for each tick, every page of it there.
bool clear(Histogram& h, uint64_t ticks) {
  h = Histogram{};
  if (ticks > LONGEST_SERIES) return true;
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
  }
  Histogram* const all[] = {&run.late, &run.plan, &run.age, &run.iterations, &run.act};
  for (Histogram* h : all)
    if (!clear(*h, a.ticks)) return complain("out of memory", "samples", "ask for fewer ticks");
  run.late_plans = run.published = 0;
  run.taken = run.planned;  // by the last action before the start: the first tick plans
  ewm_profile(run.loop, run.step_ns, a.kernels ? run.call_ns : nullptr);
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
    uint64_t current = (began - run.t0) / run.period_ns;
    if (current > tick) tick = current < a.ticks ? current : a.ticks - 1;
    observe(release(tick) < began ? release(tick) : began);
    if (!a.async && !run.follows && due(tick)) plan();
    uint64_t called = now_ns();
    ewm_act(run.loop, release(tick), action, &info);
    uint64_t ended = now_ns();
    add(run.act, ended - called);
    note_played(info, tick);
    if (info.state != EWM_WAITING && info.state != EWM_STOPPED) add(run.age, info.age_ns + (ended - release(tick)));
    follow(tick);
    for (; done <= tick; done++) {
      add(run.late, ended - release(done));
      run.misses += ended - release(done) >= run.period_ns;
    }
    tick++;
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
  fprintf(out, "\"spin\": %s, \"elapsed_ns\": %llu, \"first_plan_ns\": %llu,\n \"scheduler\": ",
          a.spin ? "true" : "false", (ull)run.elapsed_ns, (ull)run.first_plan_ns);
  print_json(realtime, out);
  fprintf(out, ",\n");
  fprintf(out, " \"misses\": %llu, \"plans\": %llu, \"late_plans\": %llu, \"plan_error\": %d, \"plans_per_s\": %.9g,\n",
          (ull)run.misses, (ull)run.published, (ull)run.late_plans, run.plan_error,
          double(run.published) * 1e9 / double(run.elapsed_ns));
  const struct {
    const char* name;
    const Histogram& h;
  } all[] = {{"act_late_ns", run.late},
             {"act_ns", run.act},
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

bool number(const char* text, double low, double high, double* to) {
  char* end;
  *to = text != nullptr ? strtod(text, &end) : 0;
  return text != nullptr && end != text && *end == 0 && *to >= low && *to <= high;
}

int parse(int argc, char** argv, Arguments& a) {
  const char usage[] =
      "edgewm-tick BUNDLE [--rate-hz 50] [--ticks 3000] [--warmup 3] [--threads 1] [--async|--inline] [--spin] "
      "[--replan commit|free] [--plan-deadline-ms X] [--hold-periods 3] [--ramp-periods 10] [--kernels] "
      "[--pin CPU[,CPU]] [--fifo 2..99] [--mlock] [--json FILE] [--golden]";
  a = Arguments{nullptr, nullptr, 50, 0, 3000, 3, 1, 3, 10, true, false, false, false, false};
  for (int i = 1; i < argc; i++) {
    const char *flag = argv[i], *next = i + 1 < argc ? argv[i + 1] : nullptr;
    double value = 0;
    bool good = true;
    if (strcmp(flag, "--rate-hz") == 0)
      good = number(next, 0.001, 1e6, &a.rate_hz), i++;
    else if (strcmp(flag, "--ticks") == 0)
      good = number(next, 1, 1e12, &value), a.ticks = uint64_t(value), i++;
    else if (strcmp(flag, "--warmup") == 0)
      good = number(next, 0, 1e9, &value), a.warmup = uint64_t(value), i++;
    else if (strcmp(flag, "--threads") == 0)
      good = number(next, 1, 64, &value), a.threads = uint32_t(value), i++;
    else if (strcmp(flag, "--hold-periods") == 0)
      good = number(next, 0, 1e9, &value), a.hold_periods = uint32_t(value), i++;
    else if (strcmp(flag, "--ramp-periods") == 0)
      good = number(next, 0, 1e9, &value), a.ramp_periods = uint32_t(value), i++;
    else if (strcmp(flag, "--plan-deadline-ms") == 0)
      good = number(next, 0, 1e9, &a.deadline_ms), i++;
    else if (strcmp(flag, "--replan") == 0)
      a.free = next != nullptr && strcmp(next, "free") == 0,
      good = a.free || (next != nullptr && strcmp(next, "commit") == 0), i++;
    else if (strcmp(flag, "--json") == 0)
      good = next != nullptr, a.json = next, i++;
    else if (strcmp(flag, "--pin") == 0)
      good = next != nullptr && parse_cpus(next, realtime), i++;
    else if (strcmp(flag, "--fifo") == 0)
      good = number(next, FIFO_LOWEST, FIFO_HIGHEST, &value), realtime.fifo = int(value), i++;
    else if (strcmp(flag, "--mlock") == 0)
      realtime.lock = true;
    else if (strcmp(flag, "--inline") == 0)
      a.async = false;
    else if (strcmp(flag, "--async") == 0)
      a.async = true;
    else if (strcmp(flag, "--spin") == 0)
      a.spin = true;
    else if (strcmp(flag, "--kernels") == 0)
      a.kernels = true;
    else if (strcmp(flag, "--golden") == 0)
      a.golden = true;
    else if (flag[0] != '-' && a.model == nullptr)
      a.model = flag;
    else
      return complain("unknown argument", flag, usage);
    if (!good) return complain("a flag needs a value in its range", flag, usage);
  }
  return a.model != nullptr ? 0 : complain("no bundle given", "edgewm-tick", usage);
}

int start(const Arguments& a, ewm_model_info& about) {
  enter(realtime);
  run.arguments = &a;
  run.fault.size = sizeof(run.fault);
  struct stat is;
  char path[4096];
  bool folder = stat(a.model, &is) == 0 && S_ISDIR(is.st_mode);
  snprintf(path, sizeof(path), folder ? "%s/model.ewm" : "%s", a.model);
  if (ewm_open(path, &run.model, &run.fault) != EWM_OK) return complain(run.fault);
  about.size = sizeof(about);
  ewm_describe(run.model, &about);
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
  ewm_port_info action;
  action.size = sizeof(action);
  if (!a.free && ewm_port(run.model, about.action_port, &action) == EWM_OK) run.commit = action.commit_steps;
  run.step_ns = static_cast<uint64_t*>(calloc(about.steps + 1, sizeof(uint64_t)));
  run.call_ns = static_cast<uint64_t*>(calloc(about.calls + 1, sizeof(uint64_t)));
  return run.step_ns != nullptr && run.call_ns != nullptr ? 0 : complain("out of memory", "profile", "free some");
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments;
  ewm_model_info about;
  if (int bad = parse(argc, argv, arguments)) return bad;
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
