#include "golden.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool take(const char* data, uint64_t bytes, uint64_t* at, void* to, uint64_t n) {
  if (n > bytes - *at) return false;
  memcpy(to, data + *at, n);
  *at += n;
  return true;
}

static uint32_t find_entry(const ewm_model* model, const char* name) {
  ewm_entry_info info;
  info.size = sizeof(info);
  for (uint32_t i = 0; ewm_entry(model, i, &info) == EWM_OK; i++)
    if (strncmp(info.name, name, sizeof(info.name)) == 0) return i;
  return EWM_NONE;
}

int golden_next(const ewm_model* model, const char* data, uint64_t bytes, uint64_t* at, GoldenRecord* record) {
  if (*at == bytes) return 0;
  char name[24];
  uint32_t ports;
  if (!take(data, bytes, at, name, sizeof(name)) || !take(data, bytes, at, &ports, 4)) return -1;
  record->entry = find_entry(model, name);
  record->inputs = record->outputs = 0;
  if (record->entry == EWM_NONE || ports > 64) return -1;
  for (uint32_t i = 0; i < ports; i++) {
    uint32_t head[2];
    ewm_port_info port;
    port.size = sizeof(port);
    if (!take(data, bytes, at, head, sizeof(head)) || head[1] > bytes - *at) return -1;
    if (ewm_port(model, head[0], &port) != EWM_OK || port.bytes != head[1]) return -1;
    bool is_output = port.kind == EWM_RESULT || port.kind == EWM_ACTION;
    ewm_buffer& b = is_output ? record->output[record->outputs++] : record->input[record->inputs++];
    b = ewm_buffer{head[0], const_cast<char*>(data + *at), head[1]};
    *at += head[1];
  }
  return 1;
}

// The bits of a result against the recorded ones.
static bool same(const ewm_buffer& found, const ewm_buffer& expected, const char* where) {
  uint64_t first = 0, differing = 0;
  for (uint64_t b = found.bytes; b-- > 0;)
    if (static_cast<char*>(found.data)[b] != static_cast<char*>(expected.data)[b]) first = b, differing++;
  if (differing == 0) return true;
  fprintf(stderr, "%s differs in %llu of %llu bytes, first at byte %llu\n", where, (unsigned long long)differing,
          (unsigned long long)found.bytes, (unsigned long long)first);
  return false;
}

// Numbers against the recorded ones: finite, and no further from them than a fraction of the largest. `worst` is raised
// to the greatest fraction seen.
static bool near(const ewm_buffer& found, const ewm_buffer& expected, double tolerance, double& worst,
                 const char* where) {
  double largest = 0, difference = 0;
  for (uint64_t i = 0; i < found.bytes / 4; i++) {
    float x, y;
    memcpy(&x, static_cast<char*>(found.data) + 4 * i, 4);
    memcpy(&y, static_cast<char*>(expected.data) + 4 * i, 4);
    if (!__builtin_isfinite(x)) return fprintf(stderr, "%s: element %llu is %g\n", where, (unsigned long long)i, double(x)), false;
    largest = __builtin_fmax(largest, __builtin_fabs(double(y)));
    difference = __builtin_fmax(difference, __builtin_fabs(double(x) - double(y)));
  }
  const double fraction = difference == 0 ? 0 : difference / largest;
  worst = __builtin_fmax(worst, fraction);
  if (fraction <= tolerance) return true;
  fprintf(stderr, "%s differs by %.3g of its largest, %.3g allowed\n", where, fraction, tolerance);
  return false;
}

static int replay(ewm_loop* loop, const ewm_model* model, const GoldenRecord& record, uint32_t number,
                  double tolerance, bool print) {
  ewm_buffer found[64];
  ewm_fault fault;
  fault.size = sizeof(fault);
  for (uint32_t i = 0; i < record.outputs; i++) {
    found[i] = record.output[i];
    found[i].data = malloc(found[i].bytes);
  }
  int error = ewm_run_entry(loop, record.entry, record.input, record.inputs, found, record.outputs, &fault);
  int verdict = error == EWM_OK ? 0 : 2;
  if (error != EWM_OK)
    fprintf(stderr, "golden %u: %s: %s; expected %s\n", number, fault.where, fault.found, fault.expected);
  ewm_entry_info entry;
  entry.size = sizeof(entry);
  ewm_entry(model, record.entry, &entry);
  const bool any = !__builtin_isfinite(tolerance);
  double worst = 0;
  for (uint32_t i = 0; i < record.outputs; i++) {
    ewm_port_info port;
    port.size = sizeof(port);
    ewm_port(model, found[i].port, &port);
    char where[96];
    snprintf(where, sizeof(where), "golden %u: entry %s, port %s", number, entry.name, port.name);
    const bool numbers = tolerance > 0 && port.dtype == EWM_F32;
    if (error == EWM_OK && !(numbers ? near(found[i], record.output[i], tolerance, worst, where)
                                     : any || same(found[i], record.output[i], where)))
      verdict = 1;
    free(found[i].data);
  }
  if (!print || verdict != 0) return verdict;
  printf("golden %u: entry %s, %u results, ", number, entry.name, record.outputs);
  if (tolerance == 0)
    printf("bit-identical\n");
  else if (any)
    printf("finite: it chooses by numbers that are rounded otherwise here\n");
  else
    printf("within %.3g of the largest, %.3g allowed\n", worst, tolerance);
  return verdict;
}

int golden_replay(const ewm_model* model, ewm_loop* loop, bool print) {
  uint64_t bytes = 0, at = 0;
  const char* data = static_cast<const char*>(ewm_section(model, "golden", &bytes));
  if (data == nullptr || bytes == 0) {
    fprintf(stderr, "error: nothing to replay\n  where: section golden\n  fix: build the bundle with golden vectors\n");
    return 2;
  }
  uint64_t allowed_bytes = 0;
  const char* allowed = static_cast<const char*>(ewm_section(model, "tolerances", &allowed_bytes));
  int worst = 0;
  GoldenRecord record;
  for (uint32_t number = 0;; number++) {
    int got = golden_next(model, data, bytes, &at, &record);
    if (got == 0) return worst;
    if (got < 0) {
      fprintf(stderr, "error: record %u is malformed\n  where: section golden\n  fix: build the bundle again\n",
              number);
      return 2;
    }
    float tolerance = 0;
    if (allowed != nullptr && (number + 1) * sizeof(tolerance) <= allowed_bytes)
      memcpy(&tolerance, allowed + number * sizeof(tolerance), sizeof(tolerance));
    int verdict = replay(loop, model, record, number, double(tolerance), print);
    if (verdict > worst) worst = verdict;
  }
}
