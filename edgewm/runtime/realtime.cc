#include "realtime.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static void refuse(Realtime& r, const char* asked, int error) {
  constexpr int room = sizeof(r.refused) / sizeof(r.refused[0]);
  if (r.refusals < room) snprintf(r.refused[r.refusals++], sizeof(r.refused[0]), "%s: %s", asked, strerror(error));
}

static void prioritise(Realtime& r, int priority) {
  sched_param at{};
  at.sched_priority = priority;
  if (sched_setscheduler(0, SCHED_FIFO, &at) == 0) return;
  char asked[32];
  snprintf(asked, sizeof(asked), "--fifo %d", r.fifo);
  refuse(r, asked, errno);
  r.fifo = 0;  // one refusal is told once
}

bool parse_cpus(const char* text, Realtime& to) {
  CPU_ZERO(&to.cpus);
  to.pin = true;
  for (const char* at = text;; at++) {
    char* end;
    if (*at < '0' || *at > '9') return false;
    unsigned long first = strtoul(at, &end, 10), last = first;
    if (*end == '-') {
      if (end[1] < '0' || end[1] > '9') return false;
      last = strtoul(end + 1, &end, 10);
    }
    if (first > last || last >= CPU_SETSIZE) return false;
    for (unsigned long cpu = first; cpu <= last; cpu++) CPU_SET(cpu, &to.cpus);
    if (*end == 0) return true;
    if (*end != ',') return false;
    at = end;
  }
}

void enter(Realtime& r) {
  if (r.pin && sched_setaffinity(0, sizeof(r.cpus), &r.cpus) != 0) refuse(r, "--pin", errno);
  if (r.fifo != 0) prioritise(r, r.fifo - 1);
}

void lead(Realtime& r) {
  if (r.fifo != 0) prioritise(r, r.fifo);
}

static void unlock(Realtime& r, int error) {
  munlockall();
  refuse(r, "--mlock", error);
  r.lock = false;
}

void lock_memory(Realtime& r) {
  if (r.lock && mlockall(MCL_CURRENT | MCL_FUTURE) != 0) unlock(r, errno);
}

bool make_thread(Realtime& r, pthread_t* thread, void* (*run)(void*)) {
  int error = pthread_create(thread, nullptr, run, nullptr);
  if (error == 0 || !r.lock) return error == 0;
  unlock(r, ENOMEM);  // of the limit
  return pthread_create(thread, nullptr, run, nullptr) == 0;
}

void print_json(const Realtime& r, FILE* out) {
  sched_param at{};
  sched_getparam(0, &at);
  int policy = sched_getscheduler(0);
  const char* name = policy == SCHED_FIFO ? "fifo" : policy == SCHED_RR ? "rr" : policy == SCHED_OTHER ? "other" : "else";
  fprintf(out, "{\"policy\": \"%s\", \"priority\": %d, \"cpus\": [", name, at.sched_priority);
  cpu_set_t mine;
  CPU_ZERO(&mine);
  sched_getaffinity(0, sizeof(mine), &mine);
  const char* comma = "";
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
    if (CPU_ISSET(cpu, &mine)) fprintf(out, "%s%d", comma, cpu), comma = ", ";
  fprintf(out, "], \"memory_locked\": %s, \"refused\": [", r.lock ? "true" : "false");
  for (int i = 0; i < r.refusals; i++) fprintf(out, "%s\"%s\"", i == 0 ? "" : ", ", r.refused[i]);
  fprintf(out, "]}");
}
