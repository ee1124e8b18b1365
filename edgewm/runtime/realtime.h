// What a control loop asks of the kernel: CPUs of its own, a real-time priority, memory that stays. The kernel may
// refuse; a refusal is kept in its own words and told in the report, beside the settings as they read back.
#pragma once
#include <pthread.h>
#include <sched.h>
#include <stdio.h>

struct Realtime {
  cpu_set_t cpus;
  bool pin, lock;
  int fifo;  // priority of the control thread; the threads that plan run one below it. 0: not asked for
  char refused[4][96];
  int refusals;
};

constexpr int FIFO_LOWEST = 2, FIFO_HIGHEST = 99;

// "2,3" or "2-5"; false where the text names no CPU or one that cannot exist.
bool parse_cpus(const char* text, Realtime& to);
// Before any thread is made that is to inherit it: the CPUs, and the priority of those that plan.
void enter(Realtime& realtime);
// A thread of its own; where its stack is more than may be locked, the lock is given up and told as refused.
bool make_thread(Realtime& realtime, pthread_t* thread, void* (*run)(void*));
// The calling thread, one above the threads it has made: it must not wait for a plan.
void lead(Realtime& realtime);
// Every page there is and will be, so that none is fetched while a period runs.
void lock_memory(Realtime& realtime);
// {"policy":, "priority":, "cpus": [...], "memory_locked":, "refused": [...]} of the calling thread.
void print_json(const Realtime& realtime, FILE* out);
