/* edgewm: run a compiled world model and its planner at a control rate.
 *
 *   ewm_open -> ewm_init -> ewm_set_goal, then in parallel if you like, one thread each:
 *     sensors   ewm_observe     hand over the newest observation, stamped
 *     planning  ewm_plan        plan from the newest observation, publish the next chunk of actions
 *     control   ewm_act         every control period: the action to play now (wait-free, microseconds)
 *   -> ewm_end -> ewm_close
 *
 * ewm_set_goal, ewm_reset, ewm_warm_start, ewm_run_entry and ewm_profile belong to the planning thread.
 *
 * Which action plays when. A file whose plan has no state port `periods_begun` plans from the observation on: its chunk
 * begins in the period in which ewm_act first sees it. One that has it is planned while the last chunk is played: the
 * plan rolls the latent through the commit_steps periods of that chunk that come next, counted from the observation,
 * and its own chunk begins when they have been played (`due_ns`), or as soon as it is there where that was missed; the
 * last chunk goes on until then. So a plan wants the last chunk in play (EWM_TOO_EARLY else), and has commit_steps
 * periods of time. After a reset, or once the last chunk has run out, nothing is rolled and the chunk begins at once.
 * A plan with a history (state port `frames_seen`) looks back at the frames of the plans before it, one model action
 * apart; where the last one is not, the history begins anew.
 *
 * A file for a GPU holds that GPU's memory, and some that both sides see, beside the loop's arena: ewm_init takes it,
 * ewm_end gives it back. A plan is one launch there, and waits, napping unless options.spin; with a deadline it is one
 * launch for each round of the anytime loop, at most one ahead of those that have ended, and one before and after.
 * ewm_act never touches the GPU. What the plan needs there is made by ewm_init, another entry's graph when it first runs.
 *
 * After ewm_init nothing allocates, and nothing but two futex calls for each plan enters the kernel: one wakes the
 * workers, one each puts them to sleep; none with options.spin. Where the planning thread has come to run on another
 * processor, one more for each sleeping worker keeps it off there (counted as `moved`; not with options.anywhere). On
 * aarch64 with glibc before 2.35, asking for that processor is a call too. A loop does not outlive a fork: the child
 * opens its own. Structs begin with their size: set it to sizeof before the call, so that old callers meet new
 * libraries. Functions return EWM_OK or an error; where `fault` is not NULL it is told what was found and expected. */
#ifndef EDGEWM_H
#define EDGEWM_H
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(EWM_BUILDING)
#define EWM_API __attribute__((visibility("default")))
#else
#define EWM_API
#endif

#define EWM_ABI 1
#define EWM_NONE 0xffffffffu

/* Grouped by blame: who can mend it. */
typedef enum ewm_error {
  EWM_OK = 0,
  /* the caller */
  EWM_BAD_ARGUMENT = 100, /* null, misaligned, unknown index, thread count out of range */
  EWM_WRONG_SIZE = 101,   /* data of another length than the port's */
  EWM_NON_FINITE = 102,   /* NaN or infinity handed over */
  EWM_OUT_OF_RANGE = 103, /* a number outside its port's [low, high] */
  EWM_STALE = 104,        /* an observation older than its port allows, or stamped in the future */
  EWM_MISSING = 105,      /* no observation, no goal, no action yet, or an entry that needs one more input */
  EWM_TOO_EARLY = 106,    /* a plan to follow a chunk that has not begun */
  /* the file */
  EWM_NOT_EWM = 200, /* not a model.ewm */
  EWM_FORMAT_VERSION = 201,
  EWM_TRUNCATED = 202,     /* the file has not the length it says */
  EWM_CORRUPT = 203,       /* a SHA-256 or a zero gap does not hold */
  EWM_WRONG_TARGET = 204,  /* packed for another target than this library */
  EWM_WRONG_KERNELS = 205, /* written for another library than this one */
  EWM_INVALID = 206,       /* whole, but a table in it breaks a rule */
  /* the machine */
  EWM_CANNOT_READ = 300,
  EWM_NO_MEMORY = 301,
  EWM_NO_THREADS = 302,
  EWM_NO_INSTRUCTIONS = 303, /* the processor lacks instructions the kernels use */
  EWM_NO_GPU = 304,          /* no GPU, or driver, that takes what the file holds */
  EWM_GPU_FAILED = 305,      /* it took it, and failed at a run: nothing of that was used */
  /* edgewm itself */
  EWM_RESULT_NON_FINITE = 400, /* a plan or entry computed NaN or infinity: nothing of it was used */
} ewm_error;

typedef struct ewm_fault {
  uint32_t size;
  int32_t error;
  char where[96]; /* file, section and row, or port */
  char found[128];
  char expected[128];
} ewm_fault;

typedef struct ewm_model ewm_model; /* a verified file, read-only */
typedef struct ewm_loop ewm_loop;   /* one robot's state; lives in the arena the caller gives */

EWM_API uint32_t ewm_abi(void);
EWM_API const char* ewm_target(void);
EWM_API const char* ewm_strerror(int error);

/* Verifies the file wholly, once; there is no faster way in. The bytes are copied, so the file may be replaced. */
EWM_API int ewm_open(const char* path, ewm_model** model, ewm_fault* fault);
EWM_API int ewm_open_bytes(const void* data, uint64_t bytes, ewm_model** model, ewm_fault* fault);
EWM_API void ewm_close(ewm_model* model);

/* ---- what is inside */

typedef struct ewm_model_info {
  uint32_t size;
  uint32_t entries, ports, steps, calls, kernels;
  uint32_t plan_entry;  /* EWM_NONE where the file holds no plan */
  uint32_t action_port; /* of the plan; EWM_NONE without one */
  uint64_t arena_bytes, scratch_bytes, weight_bytes, file_bytes;
  uint32_t gpu; /* what its calls run on: 87 for a GPU of sm_87; 0: this processor */
  uint32_t persistent; /* 1: on the GPU calls that follow on each other are one launch, except while they are measured */
} ewm_model_info;

typedef struct ewm_entry_info {
  uint32_t size;
  uint32_t ports, first_step, steps;
  char name[24];
} ewm_entry_info;

typedef enum ewm_kind { EWM_OBSERVATION, EWM_GOAL, EWM_ACTION, EWM_NOISE, EWM_STATE, EWM_RESULT } ewm_kind;
typedef enum ewm_dtype { EWM_F32, EWM_I32, EWM_U32, EWM_I8, EWM_U8 } ewm_dtype;

typedef struct ewm_port_info {
  uint32_t size;
  uint32_t kind, dtype, rank, dim[6], elements;
  uint64_t bytes;
  float low, high;
  uint64_t max_age_ns;
  uint32_t axes, action_block; /* ACTION: numbers in one robot action; control periods in one model action */
  uint32_t commit_steps;       /* ACTION: control periods played of a plan before the next starts; 0: when it can */
  char name[24];
} ewm_port_info;

typedef struct ewm_step_info {
  uint32_t size;
  uint32_t kind; /* 0 region, 1 repeat, 2 end */
  uint32_t first_call, calls, lanes, tile, count, anytime;
} ewm_step_info;

EWM_API int ewm_describe(const ewm_model* model, ewm_model_info* info);
EWM_API int ewm_entry(const ewm_model* model, uint32_t entry, ewm_entry_info* info);
EWM_API uint32_t ewm_entry_port(const ewm_model* model, uint32_t entry, uint32_t nth); /* port index or EWM_NONE */
EWM_API int ewm_port(const ewm_model* model, uint32_t port, ewm_port_info* info);
EWM_API int ewm_step(const ewm_model* model, uint32_t step, ewm_step_info* info);
EWM_API const char* ewm_call_kernel(const ewm_model* model, uint32_t call);                 /* kernel's name or NULL */
EWM_API const void* ewm_section(const ewm_model* model, const char* name, uint64_t* bytes); /* NULL if not there */

/* ---- one loop */

typedef struct ewm_options {
  uint32_t size;
  uint32_t spin;             /* workers spin between plans: no system call at all, one busy core each */
  uint64_t period_ns;        /* control period of ewm_act */
  uint32_t max_hold_periods; /* how long the last action is held when a chunk has run out */
  uint32_t ramp_periods;     /* then how long the way to the safe value takes; then stopped until ewm_reset */
  uint64_t (*clock)(void*);  /* NULL: CLOCK_MONOTONIC in ns */
  void* clock_state;
  uint32_t anywhere; /* workers may run on the planning thread's processor too, where a short plan may wait for them
                        for ms; so they do where the caller of ewm_init may use fewer processors than threads */
  uint64_t gpu_wait_ns; /* how long a run on a GPU is waited for, from its start or, where it has one, its deadline on;
                           EWM_GPU_FAILED after, and until that run has ended. 0: 10 s */
} ewm_options;

/* Bytes of arena that ewm_init wants (64-byte aligned); everything a loop ever uses lies in it. 0 for bad arguments. */
EWM_API uint64_t ewm_arena_bytes(const ewm_model* model, uint32_t threads);
/* `threads` counts the caller of ewm_plan; the others are made here and sleep between plans. */
EWM_API int ewm_init(const ewm_model* model, void* arena, uint64_t bytes, uint32_t threads, const ewm_options* options,
                     ewm_loop** loop, ewm_fault* fault);
EWM_API void ewm_end(ewm_loop* loop); /* joins the threads; the arena is the caller's again */

/* GOAL and NOISE ports. */
EWM_API int ewm_set_goal(ewm_loop* loop, uint32_t port, const void* data, uint64_t bytes, ewm_fault* fault);
/* Forgets observations, chunks, state and a latched stop; `seed` fills the state port `seed`. Goals stay. */
EWM_API int ewm_reset(ewm_loop* loop, uint64_t seed, ewm_fault* fault);
/* Mean the next plan starts from: the state port `warm_mean`, in the model's action units. */
EWM_API int ewm_warm_start(ewm_loop* loop, const void* mean, uint64_t bytes, ewm_fault* fault);

/* Newest observation of one port, taken at stamp_ns of the loop's clock. A refused one also withdraws the port's last
 * one: nothing is planned on it until a good one comes. One thread for each port. */
EWM_API int ewm_observe(ewm_loop* loop, uint32_t port, const void* data, uint64_t bytes, uint64_t stamp_ns,
                        ewm_fault* fault);

typedef struct ewm_plan_info {
  uint32_t size;
  uint32_t late;       /* 1: it ended after the deadline */
  uint32_t iterations; /* rounds of the anytime loop that were done, */
  uint32_t of;         /* of how many */
  uint64_t generation; /* of the published chunk; unchanged where none was */
  uint64_t start_ns, end_ns;
  uint64_t stamp_ns; /* of the oldest observation it used */
  uint64_t due_ns;   /* when its first action is to play; 0: as soon as it is there */
} ewm_plan_info;

/* Plan and publish. `deadline_ns` on the loop's clock, 0 for none, is looked at before each round of the anytime loop:
 * a round that would end after it, judged by the longest so far, is not begun; on a GPU what follows the loop is counted
 * too, as it was measured before (the first time: as a round). While it is measured there, all rounds are done. */
EWM_API int ewm_plan(ewm_loop* loop, uint64_t deadline_ns, ewm_plan_info* info, ewm_fault* fault);

typedef enum ewm_state {
  EWM_WAITING, /* no chunk since the reset: the safe value */
  EWM_FRESH,   /* an action of the newest chunk */
  EWM_HOLD,    /* the chunk has run out: its last action */
  EWM_RAMP,    /* on the way to the safe value */
  EWM_STOPPED, /* the safe value, latched until ewm_reset */
} ewm_state;

typedef struct ewm_act_info {
  uint32_t size;
  uint32_t state;
  uint32_t index;      /* control periods since the chunk's first action */
  uint32_t limited;    /* numbers that limits or slew changed */
  uint32_t skipped;    /* control periods that passed without a call since the last one */
  uint64_t generation; /* of the chunk played */
  uint64_t age_ns;     /* of the observation behind it */
} ewm_act_info;

/* The action for the period that begins at now_ns (give the intended release, not the time it became): `axes` floats in
 * the robot's units. EWM_MISSING, with `action` untouched, before the first plan of a position port without safe value.
 */
EWM_API int ewm_act(ewm_loop* loop, uint64_t now_ns, float* action, ewm_act_info* info);

typedef struct ewm_buffer {
  uint32_t port;
  void* data;
  uint64_t bytes;
} ewm_buffer;

/* Runs any entry once: every port it reads must be among `inputs`; `outputs` are fetched after. Independent of the
 * state between plans. */
EWM_API int ewm_run_entry(ewm_loop* loop, uint32_t entry, const ewm_buffer* inputs, uint32_t input_count,
                          const ewm_buffer* outputs, uint32_t output_count, ewm_fault* fault);

/* Nanoseconds the planning thread spends in each step (with its barrier) and call, added up; NULL: not measured. On a
 * GPU another graph is run for it, which launches each call for itself and notes the time after it: that takes longer.
 * It is made, by allocations, when first asked for; where that fails nothing is measured, and it may be asked again. */
EWM_API int ewm_profile(ewm_loop* loop, uint64_t* step_ns, uint64_t* call_ns, ewm_fault* fault);

typedef struct ewm_counts {
  uint32_t size, reserved;
  uint64_t plans, published, late, stale, missing, refused_input, result_non_finite; /* of ewm_plan */
  uint64_t observed, wrong_size, non_finite, out_of_range, bad_stamp;                /* of ewm_observe */
  uint64_t acts, waiting, fresh, hold, ramp, stopped, skipped, limited, chunks;      /* of ewm_act */
  uint64_t futex_calls, held_up; /* of all threads; held up: waits for another's tile, over 0.2 ms and twice one's own */
  uint64_t begun_late; /* of ewm_act: chunks that began in a later period than the one they were due in */
  uint64_t begun_anew; /* of ewm_plan: histories, as the frame before was not one model action old */
  uint64_t moved;      /* of workers: kept off the processor that the planning thread has come to */
  /* of a loop on a GPU */
  uint64_t graph_nodes, graph_bytes, graph_ns; /* of its graphs: launches and copies; free memory and time they took */
  uint64_t ptx;      /* 1: the driver compiled the file's PTX, as the module in it does not fit the GPU */
  uint64_t stamp_ns; /* what noting the time took, the least of all measured runs: taken off each call's */
} ewm_counts;

EWM_API int ewm_stats(const ewm_loop* loop, ewm_counts* counts);

#ifdef __cplusplus
}
#endif
#endif
