// Opens mutated files: every one must be refused, with an error and a message, or be the original.
//
//   fuzz_open MODEL MUTATIONS SEED FIX      FIX 1: digests are made good again after each mutation
// Prints how often each error came, as JSON. Exit 1: a mutated file was accepted.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "edgewm.h"
#include "format.h"
#include "sha256.h"

static uint64_t state;
static uint32_t random32() {  // splitmix64
  uint64_t z = state += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return uint32_t((z ^ z >> 31) >> 32);
}

static void mutate(unsigned char* data, uint64_t begin, uint64_t end) {
  const uint32_t values[] = {0,          1,          2,          15,     16,         63,        64,
                             0x7fffffff, 0x80000000, 0xffffffff, 0xffff, 0x7fc00000, 0x7f800000};
  uint64_t at = begin + random32() % (end - begin);
  uint32_t value = random32() % 3 ? values[random32() % 13] : random32();
  switch (random32() % 3) {
    case 0: data[at] ^= static_cast<unsigned char>(1u << random32() % 8); break;
    case 1: data[at] = static_cast<unsigned char>(value); break;
    default: at = begin + (at - begin) / 4 * 4; memcpy(data + at, &value, at + 4 <= end ? 4 : end - at);
  }
}

// May differ from what the library was compiled for.
static bool is_free(const ewm::Section& s) { return strcmp(s.name, "weights") == 0 || strcmp(s.name, "golden") == 0; }

static void fix(unsigned char* data) {
  auto* h = reinterpret_cast<ewm::Header*>(data);
  auto* table = reinterpret_cast<ewm::Section*>(data + sizeof(*h));
  for (uint32_t i = 0; i < h->sections; i++) ewm::sha256(data + table[i].offset, table[i].bytes, table[i].sha256);
  ewm::sha256(table, h->sections * sizeof(*table), h->table_sha256);
}

int main(int argc, char** argv) {
  FILE* file = argc == 5 ? fopen(argv[1], "rb") : nullptr;
  if (file == nullptr) return 2;
  static unsigned char original[1 << 20];
  const uint64_t bytes = fread(original, 1, sizeof(original), file);
  const long mutations = atol(argv[2]);
  state = strtoull(argv[3], nullptr, 10);
  const bool fixing = atoi(argv[4]) != 0;
  auto* data = static_cast<unsigned char*>(malloc(bytes));
  const auto* table = reinterpret_cast<const ewm::Section*>(original + sizeof(ewm::Header));
  const uint32_t sections = reinterpret_cast<const ewm::Header*>(original)->sections;
  long seen[500] = {}, accepted = 0, silent = 0;
  for (long i = 0; i < mutations; i++) {
    memcpy(data, original, bytes);
    for (uint32_t k = 0; k <= random32() % 3; k++) {
      const ewm::Section& s = table[random32() % sections];
      if (s.bytes == 0 || is_free(s)) continue;
      if (fixing)
        mutate(data, s.offset, s.offset + s.bytes);
      else
        mutate(data, 0, bytes);
    }
    if (memcmp(data, original, bytes) == 0) continue;
    if (fixing) fix(data);
    ewm_model* model;
    ewm_fault fault;
    memset(&fault, 0, sizeof(fault));
    fault.size = sizeof(fault);
    int error = ewm_open_bytes(data, bytes, &model, &fault);
    if (error == EWM_OK)
      accepted++, ewm_close(model);
    else
      seen[error]++, silent += fault.error != error || !fault.where[0] || !fault.found[0] || !fault.expected[0];
  }
  printf("{\"accepted\": %ld, \"silent\": %ld", accepted, silent);
  for (int e = 0; e < 500; e++)
    if (seen[e]) printf(", \"%d\": %ld", e, seen[e]);
  printf("}\n");
  free(data);
  return accepted != 0 || silent != 0;
}
