// model.ewm, as it lies in the file: little endian, every section 64-byte aligned, read in place from the mapping.
//
//   Header | Section[sections] | sections...
//
// Header.table_sha256 covers the section table; each Section.sha256 covers its bytes; gaps are zero and the last
// section ends the file. A program is a list of Steps for each entry; a region Step runs its Calls for every tile of its
// lanes. The structs below are written by edgewm/emit.py: change both together and raise EWM_FORMAT.
#pragma once
#include <stdint.h>

namespace ewm {

constexpr uint32_t EWM_FORMAT = 1;
constexpr uint32_t MAX_RANK = 6;       // loop dimensions of one call
constexpr uint32_t MAX_OPERANDS = 32;  // operands of one call

struct Header {
  char magic[8];  // "EDGEWM\r\n": a text-mode copy breaks it visibly
  uint32_t format;
  uint32_t sections;
  uint64_t file_bytes;
  uint8_t table_sha256[32];
  uint8_t kernels_sha256[32];  // identity of the kernels the calls index; the library carries the same
  char target[32];             // triple and instruction set the weights are packed for, as the library's ewm_target()
};
static_assert(sizeof(Header) == 120, "");

struct Section {
  char name[16];
  uint64_t offset, bytes;
  uint8_t sha256[32];
};
static_assert(sizeof(Section) == 64, "");

// Section "sizes": one of these.
struct Sizes {
  uint64_t arena_bytes;    // shared between threads: ports, values that cross regions, carries
  uint64_t scratch_bytes;  // for each thread: values of one tile, kernel workspaces
  uint64_t weight_bytes;   // length of section "weights"
  uint32_t entries, ports, steps, calls, operands;
  uint32_t plan_entry;  // index of the entry `ewm_plan` runs; ~0 where the file holds no plan
};
static_assert(sizeof(Sizes) == 48, "");

enum PortKind : uint8_t { OBSERVATION = 0, GOAL = 1, ACTION = 2, NOISE = 3, STATE = 4, RESULT = 5 };
enum DType : uint8_t { F32 = 0, I32 = 1, U32 = 2, I8 = 3, U8 = 4, BF16 = 5 };  // BF16: no port's
enum Control : uint8_t { POSITION = 0, VELOCITY = 1, TORQUE = 2 };

// Section "ports": what callers hand over or fetch, dense row-major at `offset` of the arena. Copied in before an entry
// runs and out after it: the arena holds nothing between runs, so a port's bytes may be reused within one.
struct Port {
  char name[24];
  uint8_t kind, dtype, control, rank;
  uint32_t dim[6];
  uint32_t elements;
  uint64_t offset;  // in the arena, 64-byte aligned
  float low, high;  // each element must lie in [low, high]; -inf/+inf where unbounded. ACTION: in the robot's units
  uint64_t max_age_ns;  // 0: never stale
  // STATE ports: index of the RESULT port whose value replaces this one after a plan; ~0: kept
  uint32_t feedback;
  uint32_t axes;  // ACTION: numbers in one action of the robot (<= 16)
  float slew;     // ACTION: greatest change in one control period, in the robot's units; 0: unbounded
  uint32_t action_block;  // ACTION: control periods in one model action; a model action is action_block x axes numbers
  float safe[16];    // ACTION: safe value
  float scale[16];   // ACTION: robot = model * scale + offset
  float offset_[16];
  uint32_t has_safe;
  uint32_t commit_steps;  // ACTION: control periods played of a plan before the next one starts; 0: as soon as it can
};
static_assert(sizeof(Port) == 296, "");

// Section "entries".
struct Entry {
  char name[24];
  uint32_t first_step, steps;
  uint32_t first_port, ports;  // in section "entry_ports": u32 indices of the ports this entry reads and fills
};
static_assert(sizeof(Entry) == 40, "");

enum StepKind : uint32_t { REGION = 0, REPEAT = 1, END = 2 };

// Section "steps". REPEAT ... END brackets nest, each with a region in it; `counter` is written before each round. An
// anytime loop may be left before any round: what stands then in its carries must be a whole value.
struct Step {
  uint32_t kind;
  uint32_t first_call, calls;  // REGION
  uint32_t lanes, tile;        // REGION: real lanes; lanes of one tile. Tiles are ceil(lanes / tile), dealt to threads
  uint32_t count;              // REPEAT: rounds; END: steps back to its REPEAT
  uint32_t anytime;            // REPEAT: the deadline is looked at before each round; not inside another repeat
  uint32_t reserved;
  uint64_t counter;  // REPEAT: arena offset of the u32 round
};
static_assert(sizeof(Step) == 40, "");

enum Space : uint8_t { ARENA = 0, SCRATCH = 1, WEIGHTS = 2 };

// Section "operands". Address of element (i0, i1, ..., lane l) =
//   base[space] + offset + (sum i_d * stride[d] + l * lane_stride) * size(dtype);
// lanes of SCRATCH operands count from the tile's first lane, those of others from lane 0.
struct Operand {
  uint8_t space, dtype, is_output;
  uint8_t gathered;  // lanes are read and written one by one, real ones only: not aligned, nothing beyond them touched
  uint32_t bytes;   // extent from `offset` that this operand may touch: at least what strides x dims reach, inside its
                    // space (packed weights and workspaces reach further than their strides say)
  uint64_t offset;  // bytes, aligned to 16 numbers where lane_stride is 1 and lanes are not gathered
  int32_t lane_stride;
  int32_t stride[MAX_RANK];
  uint32_t reserved2;
};
static_assert(sizeof(Operand) == 48, "");

// Section "calls".
struct Call {
  uint32_t kernel;  // index in the library's kernel table
  uint32_t first_operand, operands;
  uint32_t rank;
  uint32_t dim[MAX_RANK];
  uint32_t lanes;  // real lanes of the region: padded lanes of a tile beyond this are not read through gathers
  uint32_t cut;    // on a GPU: how blocks share the call, as edgewm/cuda/launches.py has decided; else 0
};
static_assert(sizeof(Call) == 48, "");

// ---- A file whose calls run on a GPU has these sections too, and its compiled module as "cubin". Where "ptx" is not
// empty (text that ends with a 0), the driver of another GPU may compile that instead.

// Section "gpu": one of these.
struct Gpu {
  uint32_t sm;       // what the cubin is for: 87 is compute capability 8.7
  uint32_t driver;   // least version of CUDA that the driver must know, as it says it: 12060 is 12.6
  uint32_t elf_abi;  // of the cubin: 7 by tools of CUDA 12, 8 by those of 13
  uint32_t threads;  // of each block
  uint32_t functions, launches;
  uint32_t stamp;       // function that notes the time
  uint32_t persistent;  // function that runs any launches in turn, as one cooperative launch; ~0: each is launched
};
static_assert(sizeof(Gpu) == 32, "");

// Section "functions": of the module; with a persistent one the module holds it and the stamp, the others are parts of it.
struct Function {
  char name[40];
};
static_assert(sizeof(Function) == 40, "");

// Section "launches": in the order of calls, each call in phases 0, 1, 2, ... A launch may run the calls of its region
// up to its own too; so the last call of each region has one, those before it may have none.
struct GpuLaunch {
  uint32_t call, phase;
  uint32_t function;
  uint32_t blocks;
  uint32_t shared_bytes;  // dynamic
  uint32_t cooperative;   // 1: blocks wait for each other, so all must be resident at once
};
static_assert(sizeof(GpuLaunch) == 24, "");

}  // namespace ewm
