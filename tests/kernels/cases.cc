// Runs kernel calls read from standard input and writes each call's arena to standard output: one program for each
// instruction set, run natively or under an emulator.
#include "cases.h"

#include <stdio.h>
#include <stdlib.h>

// Each case: name (64 bytes), Call, Operand[call.operands], bytes of the three spaces (u64), the spaces.
int main() {
  using namespace ewm;
  char name[64];
  while (fread(name, sizeof(name), 1, stdin) == 1) {
    Call call;
    Operand operands[MAX_OPERANDS];
    uint64_t bytes[3];
    if (fread(&call, sizeof(call), 1, stdin) != 1 || call.operands > MAX_OPERANDS ||
        fread(operands, sizeof(Operand), call.operands, stdin) != call.operands || fread(bytes, 8, 3, stdin) != 3)
      return 3;
    Frame frame;
    for (int s = 0; s < 3; s++) {
      frame.base[s] = static_cast<char*>(aligned_alloc(64, bytes[s] + 64));
      if (fread(frame.base[s], 1, bytes[s], stdin) != bytes[s]) return 3;
    }
    Kernel run = nullptr;
    for (const Rows* some = Rows::first; some; some = some->next)
      for (int i = 0; i < some->count; i++)
        if (!strcmp(some->rows[i].name, name)) run = some->rows[i].run;
    if (!run) return 4;
    for (uint32_t lane = 0; lane < call.lanes; lane += TILE) {
      const uint32_t left = call.lanes - lane;
      run(call, operands, frame, Tile{lane, TILE, left < TILE ? left : TILE});
    }
    fwrite(frame.base[0], 1, bytes[0], stdout);
    for (char* space : frame.base) free(space);
  }
  return 0;
}
