// Section "golden": recorded inputs and the answers they must give, bit for bit; or, where section "tolerances" (a float
// for each record) says otherwise, within that fraction of the largest, or, where it is infinite, finite.
#pragma once
#include "edgewm.h"

// One record: entry, its inputs and its expected results, in place.
struct GoldenRecord {
  uint32_t entry, inputs, outputs;
  ewm_buffer input[64], output[64];
};

// Reads the record at *at (moved past it); 1: read, 0: none left, -1: malformed.
int golden_next(const ewm_model* model, const char* data, uint64_t bytes, uint64_t* at, GoldenRecord* record);

// Replays every record; prints a line for each to stdout when `print`. 0: as it must be, 1: differs, 2: could not run.
int golden_replay(const ewm_model* model, ewm_loop* loop, bool print);
