// Counts what planning costs the operating system: system calls of every thread (seccomp traps them, a handler counts
// and makes them), allocations (malloc and its kin, interposed) and page faults.
//
//   count_calls MODEL THREADS PLANS SPIN PAUSE_US
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "edgewm.h"

static uint64_t futexes, placements, others, allocations;
static uint32_t counting;
static int first_other = -1;

static void count(uint64_t& n) {
  if (__atomic_load_n(&counting, __ATOMIC_RELAXED)) __atomic_add_fetch(&n, 1, __ATOMIC_RELAXED);
}

extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void __libc_free(void*);
#pragma GCC visibility push(default)  // seen by the library instead of libc's
void* malloc(size_t n) { return count(allocations), __libc_malloc(n); }
void* calloc(size_t n, size_t m) { return count(allocations), __libc_calloc(n, m); }
void* realloc(void* p, size_t n) { return count(allocations), __libc_realloc(p, n); }
void free(void* p) { __libc_free(p); }
#pragma GCC visibility pop

// The one place whose system calls the filter lets through.
long raw_call(long number, long a, long b, long c, long d, long e, long f);
extern const char raw_call_end[];
}
#if defined(__x86_64__)
__asm__(
    ".text\n.globl raw_call\nraw_call:\n mov %rdi,%rax\n mov %rsi,%rdi\n mov %rdx,%rsi\n mov %rcx,%rdx\n mov %r8,%r10\n"
    " mov %r9,%r8\n mov 8(%rsp),%r9\n syscall\n.globl raw_call_end\nraw_call_end:\n ret\n");
#define ARGUMENT(c, i) ((c)->uc_mcontext.gregs[(const int[]){REG_RDI, REG_RSI, REG_RDX, REG_R10, REG_R8, REG_R9}[i]])
#define RESULT(c) ((c)->uc_mcontext.gregs[REG_RAX])
#elif defined(__aarch64__)
__asm__(
    ".text\n.globl raw_call\nraw_call:\n mov x8,x0\n mov x0,x1\n mov x1,x2\n mov x2,x3\n mov x3,x4\n mov x4,x5\n mov "
    "x5,x6\n"
    " svc #0\n.globl raw_call_end\nraw_call_end:\n ret\n");
#define ARGUMENT(c, i) ((c)->uc_mcontext.regs[i])
#define RESULT(c) ((c)->uc_mcontext.regs[0])
#endif

static void on_call(int, siginfo_t* info, void* context) {
  auto* c = static_cast<ucontext_t*>(context);
  if (info->si_syscall == SYS_futex) {
    count(futexes);
  } else if (info->si_syscall == SYS_sched_setaffinity) {
    count(placements);
  } else {
    if (counting && first_other < 0) first_other = info->si_syscall;
    count(others);
  }
  RESULT(c) = raw_call(info->si_syscall, ARGUMENT(c, 0), ARGUMENT(c, 1), ARGUMENT(c, 2), ARGUMENT(c, 3), ARGUMENT(c, 4),
                       ARGUMENT(c, 5));
}

// On every thread there is. Exits 77 where the kernel refuses.
static void trap_calls() {
  struct sigaction action = {};
  action.sa_sigaction = on_call;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGSYS, &action, nullptr);
  const uint64_t end = reinterpret_cast<uint64_t>(raw_call_end);
  const uint32_t pointer = offsetof(seccomp_data, instruction_pointer);
  sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_rt_sigreturn, 4, 0),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, pointer),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<uint32_t>(end), 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, pointer + 4),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<uint32_t>(end >> 32), 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
  };
  sock_fprog program = {sizeof(filter) / sizeof(filter[0]), filter};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
      syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) != 0) {
    fprintf(stderr, "seccomp: %s\n", strerror(errno));
    exit(77);
  }
}

static uint64_t now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return uint64_t(t.tv_sec) * 1000000000u + uint64_t(t.tv_nsec);
}

static long faults() {
  rusage usage;
  raw_call(SYS_getrusage, RUSAGE_SELF, reinterpret_cast<long>(&usage), 0, 0, 0, 0);
  return usage.ru_minflt + usage.ru_majflt;
}

int main(int argc, char** argv) {
  if (argc != 6) return 2;
  const uint32_t threads = uint32_t(atoi(argv[2]));
  const long plans = atol(argv[3]), pause_us = atol(argv[5]);
  ewm_model* model;
  ewm_loop* loop;
  ewm_fault fault;
  fault.size = sizeof(fault);
  if (ewm_open(argv[1], &model, &fault) != EWM_OK) return fprintf(stderr, "%s: %s\n", fault.where, fault.found), 2;
  uint64_t bytes = ewm_arena_bytes(model, threads);
  void* arena = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ewm_options options = {};
  options.size = sizeof(options);
  options.spin = uint32_t(atoi(argv[4]));
  options.period_ns = 1000000;
  if (ewm_init(model, arena, bytes, threads, &options, &loop, &fault) != EWM_OK)
    return fprintf(stderr, "%s: %s\n", fault.where, fault.found), 2;
  ewm_model_info about;
  about.size = sizeof(about);
  ewm_describe(model, &about);
  static char zeros[1 << 20];
  uint32_t observations[64], seen = 0;
  uint64_t sizes[64];
  for (uint32_t k = 0, port; (port = ewm_entry_port(model, about.plan_entry, k)) != EWM_NONE; k++) {
    ewm_port_info p;
    p.size = sizeof(p);
    ewm_port(model, port, &p);
    if (p.kind == EWM_GOAL || p.kind == EWM_NOISE) ewm_set_goal(loop, port, zeros, p.bytes, nullptr);
    if (p.kind == EWM_OBSERVATION) sizes[seen] = p.bytes, observations[seen++] = port;
  }
  __atomic_store_n(&counting, 0, __ATOMIC_SEQ_CST);  // its page is there from now on
  trap_calls();
  ewm_plan_info plan;
  ewm_act_info act;
  plan.size = sizeof(plan);
  act.size = sizeof(act);
  float action[16];
  int errors = 0;
  long before = 0, after = 0;
  ewm_counts counts, start;
  counts.size = start.size = sizeof(counts);
  const long warm = 10;
  for (long i = 0; i < plans + warm; i++) {
    if (i == warm) {
      for (uint64_t t = now_ns(); now_ns() - t < 20000000;) {  // workers of the last warm plan go to sleep
      }
      ewm_stats(loop, &start);
      before = faults();
      __atomic_store_n(&counting, 1, __ATOMIC_SEQ_CST);
    }
    for (uint32_t k = 0; k < seen; k++)
      errors += ewm_observe(loop, observations[k], zeros, sizes[k], now_ns(), &fault) != EWM_OK;
    errors += ewm_plan(loop, 0, &plan, &fault) != EWM_OK;
    errors += ewm_act(loop, now_ns(), action, &act) != EWM_OK;
    for (uint64_t t = now_ns(); now_ns() - t < uint64_t(pause_us) * 1000;) {
    }
  }
  for (uint64_t t = now_ns(); now_ns() - t < 20000000;) {
  }
  __atomic_store_n(&counting, 0, __ATOMIC_SEQ_CST);
  after = faults();
  ewm_stats(loop, &counts);
  printf(
      "{\"plans\": %ld, \"errors\": %d, \"futexes\": %llu, \"other_calls\": %llu, \"first_other\": %d, "
      "\"allocations\": %llu, ",
      plans, errors, (unsigned long long)futexes, (unsigned long long)others, first_other,
      (unsigned long long)allocations);
  printf("\"page_faults\": %ld, \"futex_calls\": %llu, \"held_up\": %llu, "
      "\"placements\": %llu, \"moved\": %llu}\n", after - before,
         (unsigned long long)(counts.futex_calls - start.futex_calls),
         (unsigned long long)(counts.held_up - start.held_up), (unsigned long long)placements,
         (unsigned long long)(counts.moved - start.moved));
  fflush(stdout);
  raw_call(SYS_exit_group, 0, 0, 0, 0, 0, 0);
}
