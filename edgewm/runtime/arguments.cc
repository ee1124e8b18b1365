#include "arguments.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int complain(const char* what, const char* where, const char* fix) {
  fprintf(stderr, "error: %s\n  where: %s\n  fix: %s\n", what, where, fix);
  return 2;
}

static bool number(const char* text, double low, double high, double* to) {
  char* end;
  *to = text != nullptr ? strtod(text, &end) : 0;
  return text != nullptr && end != text && *end == 0 && *to >= low && *to <= high;
}

int parse(int argc, char** argv, Arguments& a, Realtime& realtime) {
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
