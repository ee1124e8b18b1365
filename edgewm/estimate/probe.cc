// Times what the entries of a bundle do, where nothing but libc is: `edgewm targets probe` brings this there.
//   edgewm-probe calls MODEL SECONDS           {ENTRY: {"calls": [ns], "beyond": ns}}: each call, all its tiles
//                                              together, and what a run takes beyond its calls
//   edgewm-probe runs MODEL THREADS TIMES      {ENTRY: {"any": ns, "together": ns}}: whole runs; those in which all
//                                              threads ran at once and none was sent off its processor, null where
//                                              there are not enough of them
//   edgewm-probe sleep TIMES PERIOD_NS         {"p50": us, "max": us}: how late a sleeper wakes
// Of many runs the lower quartile counts: whatever else a machine does can only add.
#include <edgewm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>

namespace {

constexpr uint32_t LEAST_RUNS = 12, MOST_RUNS = 4096, PORTS = 64;
constexpr uint32_t PATIENCE = 10;  // times as many runs as asked for, until enough were undisturbed
constexpr uint32_t TOGETHER_PERCENT = 85;  // of all threads' time, spent on processors: they spin while they wait
constexpr uint64_t PERIOD_NS = 20000000;  // of a control loop that does not run

uint64_t now_ns(clockid_t clock = CLOCK_MONOTONIC) {
  timespec t;
  clock_gettime(clock, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1000000000u + static_cast<uint64_t>(t.tv_nsec);
}

long times_sent_off() {
  rusage used;
  getrusage(RUSAGE_SELF, &used);
  return used.ru_nivcsw;
}

int by_size(const void* a, const void* b) {
  const uint64_t x = *static_cast<const uint64_t*>(a), y = *static_cast<const uint64_t*>(b);
  return (x > y) - (x < y);
}

uint64_t quantile(uint64_t* values, uint32_t n, uint32_t percent) {
  qsort(values, n, sizeof(*values), by_size);
  return values[static_cast<uint64_t>(n - 1) * percent / 100];
}

int refuse(const char* what, const char* where, const char* fix) {
  fprintf(stderr, "error: %s\n  where: %s\n  fix: %s\n", what, where, fix);
  return 2;
}

int refuse(const ewm_fault& fault) {
  char what[sizeof(fault.found) + sizeof(fault.expected) + 16];
  snprintf(what, sizeof(what), "%s; expected %s", fault.found, fault.expected);
  return refuse(what, fault.where, "run `edgewm targets probe` again");
}

struct Robot {
  ewm_model* model = nullptr;
  ewm_loop* loop = nullptr;
  ewm_model_info info{};
  ewm_fault fault{};
};

bool start(Robot& robot, const char* path, uint32_t threads) {
  robot.fault.size = sizeof(robot.fault);
  robot.info.size = sizeof(robot.info);
  if (ewm_open(path, &robot.model, &robot.fault) != EWM_OK) return false;
  ewm_describe(robot.model, &robot.info);
  const uint64_t bytes = ewm_arena_bytes(robot.model, threads);
  void* arena = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (arena == MAP_FAILED) {
    snprintf(robot.fault.where, sizeof(robot.fault.where), "arena");
    snprintf(robot.fault.found, sizeof(robot.fault.found), "out of memory");
    snprintf(robot.fault.expected, sizeof(robot.fault.expected), "%llu bytes", (unsigned long long)bytes);
    return false;
  }
  madvise(arena, bytes, MADV_HUGEPAGE);
  ewm_options options{};
  options.size = sizeof(options);
  options.period_ns = PERIOD_NS;
  return ewm_init(robot.model, arena, bytes, threads, &options, &robot.loop, &robot.fault) == EWM_OK;
}

// About normal, of standard deviation 1: sum of four uniform numbers.
float draw(uint64_t& state) {
  float sum = 0;
  for (int i = 0; i < 4; i++) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    sum += static_cast<float>(state >> 40) / static_cast<float>(1 << 24) - 0.5f;
  }
  return sum * 1.7320508f;
}

void fill(const ewm_port_info& port, void* data, uint64_t& state) {
  memset(data, 0, port.bytes);
  for (uint32_t i = 0; i < port.elements; i++) {
    if (port.dtype == EWM_F32) {
      const float x = draw(state);
      static_cast<float*>(data)[i] = x < port.low ? port.low : x > port.high ? port.high : x;
    } else if (port.dtype == EWM_I8 || port.dtype == EWM_U8) {
      static_cast<uint8_t*>(data)[i] = 1;
    } else {
      static_cast<uint32_t*>(data)[i] = 1;
    }
  }
}

// An entry with values for what it reads and room for what it gives.
struct Entry {
  ewm_entry_info info{};
  ewm_buffer inputs[PORTS], outputs[PORTS];
  uint32_t input_count = 0, output_count = 0;
};

bool prepare(const Robot& robot, uint32_t index, Entry& entry) {
  entry.info.size = sizeof(entry.info);
  ewm_entry(robot.model, index, &entry.info);
  uint64_t state = 1;
  for (uint32_t i = 0; i < entry.info.ports; i++) {
    const uint32_t number = ewm_entry_port(robot.model, index, i);
    ewm_port_info port{};
    port.size = sizeof(port);
    ewm_port(robot.model, number, &port);
    const bool is_output = port.kind == EWM_RESULT || port.kind == EWM_ACTION;
    uint32_t& count = is_output ? entry.output_count : entry.input_count;
    void* data = malloc(port.bytes);
    if (data == nullptr || count == PORTS) return false;
    if (!is_output) fill(port, data, state);
    (is_output ? entry.outputs : entry.inputs)[count++] = ewm_buffer{number, data, port.bytes};
  }
  return true;
}

void release(Entry& entry) {
  for (uint32_t i = 0; i < entry.input_count; i++) free(entry.inputs[i].data);
  for (uint32_t i = 0; i < entry.output_count; i++) free(entry.outputs[i].data);
}

bool once(Robot& robot, uint32_t index, Entry& entry) {
  return ewm_run_entry(robot.loop, index, entry.inputs, entry.input_count, entry.outputs, entry.output_count,
                       &robot.fault) == EWM_OK;
}

uint64_t sum(const uint64_t* values, uint32_t n) {
  uint64_t all = 0;
  for (uint32_t i = 0; i < n; i++) all += values[i];
  return all;
}

// Each call is between two reads of the clock and pays for one: what a run takes beyond its calls tells a read's price.
bool time_calls(Robot& robot, uint32_t index, double seconds) {
  const uint32_t calls = robot.info.calls, steps = robot.info.steps;
  Entry entry;
  uint64_t* step_ns = static_cast<uint64_t*>(calloc(steps, sizeof(uint64_t)));
  uint64_t* call_ns = static_cast<uint64_t*>(calloc(calls, sizeof(uint64_t)));
  uint64_t* kept = static_cast<uint64_t*>(malloc((calls + 1ull) * MOST_RUNS * sizeof(uint64_t)));  // a row a call
  bool good = step_ns && call_ns && kept && prepare(robot, index, entry) && once(robot, index, entry);
  uint32_t runs = 0;
  const uint64_t end = now_ns() + static_cast<uint64_t>(seconds * 1e9);
  while (good && runs < MOST_RUNS && (runs < LEAST_RUNS || now_ns() < end)) {
    memset(step_ns, 0, steps * sizeof(uint64_t));
    memset(call_ns, 0, calls * sizeof(uint64_t));
    good = ewm_profile(robot.loop, step_ns, call_ns, &robot.fault) == EWM_OK && once(robot, index, entry);
    ewm_profile(robot.loop, nullptr, nullptr, nullptr);
    for (uint32_t i = 0; i < calls; i++) kept[i * static_cast<uint64_t>(MOST_RUNS) + runs] = call_ns[i];
    const uint64_t in_steps = sum(step_ns, steps), in_calls = sum(call_ns, calls);
    kept[calls * static_cast<uint64_t>(MOST_RUNS) + runs++] = in_steps > in_calls ? in_steps - in_calls : 0;
  }
  if (good) {
    printf("\"%s\": {\"calls\": [", entry.info.name);
    const char* between = "";
    for (uint32_t i = entry.info.first_step; i < entry.info.first_step + entry.info.steps; i++) {
      ewm_step_info step{};
      step.size = sizeof(step);
      ewm_step(robot.model, i, &step);
      for (uint32_t c = step.first_call; step.kind == 0 && c < step.first_call + step.calls; c++, between = ", ")
        printf("%s%llu", between, (unsigned long long)quantile(kept + c * static_cast<uint64_t>(MOST_RUNS), runs, 25));
    }
    uint64_t* beyond = kept + calls * static_cast<uint64_t>(MOST_RUNS);
    printf("], \"beyond\": %llu}", (unsigned long long)quantile(beyond, runs, 25));
  }
  release(entry);
  free(step_ns);
  free(call_ns);
  free(kept);
  return good;
}

bool time_runs(Robot& robot, uint32_t index, uint32_t threads, uint32_t times) {
  Entry entry;
  const uint32_t most = PATIENCE * times;
  uint64_t* took = static_cast<uint64_t*>(malloc(2ull * most * sizeof(uint64_t)));
  bool good = took && prepare(robot, index, entry) && once(robot, index, entry);
  uint64_t* alone = took + most;
  uint32_t runs = 0, undisturbed = 0;
  for (; good && (runs < times || (undisturbed < LEAST_RUNS && runs < most)); runs++) {
    const long sent_off = times_sent_off();
    const uint64_t ran_before = now_ns(CLOCK_PROCESS_CPUTIME_ID), began = now_ns();
    good = once(robot, index, entry);
    const uint64_t ns = now_ns() - began, ran = now_ns(CLOCK_PROCESS_CPUTIME_ID) - ran_before;
    took[runs] = ns;
    if (times_sent_off() == sent_off && 100 * ran >= TOGETHER_PERCENT * threads * ns) alone[undisturbed++] = ns;
  }
  if (good) printf("\"%s\": {\"any\": %llu, ", entry.info.name, (unsigned long long)quantile(took, runs, 25));
  if (good && undisturbed >= LEAST_RUNS)
    printf("\"together\": %llu}", (unsigned long long)quantile(alone, undisturbed, 25));
  else if (good)
    printf("\"together\": null}");
  release(entry);
  free(took);
  return good;
}

int sleeper(uint32_t times, uint64_t period_ns) {
  uint64_t* late = static_cast<uint64_t*>(malloc(times * sizeof(uint64_t)));
  if (late == nullptr) return refuse("out of memory", "sleep", "ask for fewer");
  uint64_t due = now_ns() + period_ns;
  for (uint32_t i = 0; i < times; i++, due += period_ns) {
    const timespec until = {static_cast<time_t>(due / 1000000000u), static_cast<long>(due % 1000000000u)};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr);
    const uint64_t now = now_ns();
    late[i] = now > due ? now - due : 0;
    if (now > due + period_ns) due = now;
  }
  printf("{\"p50\": %.3f, ", static_cast<double>(quantile(late, times, 50)) / 1e3);
  printf("\"max\": %.3f}\n", static_cast<double>(quantile(late, times, 100)) / 1e3);
  return 0;
}

}  // namespace

int main(int count, char** words) {
  const char* what = count > 1 ? words[1] : "";
  if (strcmp(what, "sleep") == 0 && count == 4 && atoi(words[2]) > 0)
    return sleeper(static_cast<uint32_t>(atoi(words[2])), static_cast<uint64_t>(atoll(words[3])));
  const bool calls = strcmp(what, "calls") == 0 && count == 4;
  const bool runs = strcmp(what, "runs") == 0 && count == 5 && atoi(words[3]) > 0 && atoi(words[4]) > 0;
  if (!calls && !runs) return refuse("not so", "edgewm-probe", "calls MODEL SECONDS, runs MODEL THREADS TIMES");
  Robot robot;
  const uint32_t threads = runs ? static_cast<uint32_t>(atoi(words[3])) : 1;
  if (!start(robot, words[2], threads)) return refuse(robot.fault);
  printf("{");
  for (uint32_t i = 0; i < robot.info.entries; i++) {
    if (i > 0) printf(", ");
    const bool good = calls ? time_calls(robot, i, atof(words[3]))
                            : time_runs(robot, i, threads, static_cast<uint32_t>(atoi(words[4])));
    if (!good) return refuse(robot.fault);
  }
  printf("}\n");
  ewm_end(robot.loop);
  ewm_close(robot.model);
  return 0;
}
