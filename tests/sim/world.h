// SPDX-License-Identifier: Apache-2.0
/*
 * A simulated group: processes that each drive the shipped member.c, one store, the network between them, a minimal
 * data plane, and the faults of one plan. All of it is one thread, one heap of events ordered by (time, sequence), and
 * dice that come from the seed; so a seed always gives the same run.
 *
 *   world.c    time, the heap, the run of one seed          store.c   the linearizable store and its network
 *   process.c  one process: its agent and member            data.c    its steps: flags in the peers' memory
 *   plan.c     what is drawn from the seed                  fault.c   doing to processes what the plan says
 *   check.c    what must hold, against a log of its own     trace.c   trace hash, last events, counters
 */
#ifndef SIM_WORLD_H
#define SIM_WORLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "control/member.h"
#include "random.h"

enum { SIM_MIN_RANKS = 2, SIM_MAX_RANKS = 8, SIM_MAX_PROCESSES = 64, SIM_MAX_FAULTS = 16, SIM_MAX_EPOCHS = 1024 };

#define SIM_US UINT64_C(1000)
#define SIM_MS UINT64_C(1000000)
#define SIM_NEVER UINT64_MAX

enum event_type {
    /* At the store. */
    EVENT_HELLO, /* a process has connected */
    EVENT_PUT, /* value: index into world.record */
    EVENT_SWAP, /* value: index into world.view; revision */
    EVENT_READ,
    EVENT_FENCE, /* rank, incarnation */
    EVENT_LEAVE,
    EVENT_CLOSED, /* the store sees that the connection is gone */
    EVENT_REAPED, /* the store sees that the process has exited */
    /* In the kernel of the operating system: also happens to a stopped process. */
    EVENT_KILL,
    EVENT_PAUSE, /* value: index into plan.fault */
    EVENT_CONTINUE,
    EVENT_COME, /* rank: a process of it is started, when the one before has exited or left */
    EVENT_FAULT, /* value: index into plan.fault */
    EVENT_HEAL,
    /* In a process; a stopped one takes them when it continues. */
    EVENT_WELCOME,
    EVENT_VIEW, /* value, revision */
    EVENT_RECORD, /* rank, value */
    EVENT_PRESENCE, /* rank, incarnation, ok */
    EVENT_FENCED, /* rank, incarnation */
    EVENT_SWAPPED, /* ok; then value, revision */
    EVENT_LOST,
    EVENT_TICK,
    EVENT_QUIESCED, /* epoch */
    EVENT_LOADED, /* epoch: the weights for it are there */
    EVENT_VERDICT, /* generation: the caller has read the verdict of a void step */
    EVENT_STEP, /* generation: the caller begins a step */
    EVENT_SEND, /* generation: a kernel begins an exchange */
    EVENT_LAND, /* generation, value: which half of the peers: the kernel's stores arrive in their memory */
    EVENT_DEADLINE, /* generation: of the kernel's wait */
    EVENT_RETURN, /* generation: the kernel has seen the live epoch move, and returns */
    EVENT_LEAVING, /* the caller wants to leave */
    EVENT_EXIT, /* the process ends by itself */
};

struct sim_event {
    uint64_t at_ns, sequence;
    enum event_type type;
    int process; /* that it happens in, or that sent it to the store; -1: none */
    int rank;
    int value;
    uint32_t incarnation, epoch, generation;
    bool ok;
    uint64_t revision;
};

enum fault_kind {
    SIM_CRASH, /* SIGKILL */
    SIM_CRASH_SEVERAL, /* of several at once */
    SIM_STOP, /* SIGSTOP, for good */
    SIM_PAUSE, /* SIGSTOP, later SIGCONT */
    SIM_HANG, /* a kernel that neither ends nor waits */
    SIM_DISCONNECT, /* the connection closes, the process lives on */
    SIM_UNKILLABLE, /* stopped, and stuck in a driver: no signal ends it */
    SIM_RESPAWN, /* a rank that has died or left is started again */
    SIM_LEAVE,
    SIM_OVERDUE, /* a report that is not true */
    SIM_FAILED, /* abort: nobody is to blame */
    SIM_REFUSE, /* a rank ends its step without its part of the exchange */
    SIM_SLOW_LOAD, /* weights come late, but in time */
    SIM_LATE_LOAD, /* weights come after the deadline */
    SIM_CRASH_AT, /* SIGKILL at a protocol action, before or after it, or between two stores of a kernel */
    SIM_STOP_AT, /* SIGSTOP there, for good */
    SIM_PAUSE_AT, /* SIGSTOP there, later SIGCONT */
    SIM_CRASH_JOINER, /* SIGKILL of a process that has just been taken in */
    SIM_RESTART, /* the store restarts: every presence is lost */
    SIM_VANISH, /* every rank is killed or leaves, and all are started again */
    SIM_FREEZE, /* nothing in the world runs for a while: a paused container, a suspended machine */
    SIM_PLANNED_KINDS,
    SIM_LOST_REPLY = SIM_PLANNED_KINDS,
    SIM_DOUBLE_REPLY,
    SIM_DELAY,
    SIM_KINDS,
};

/* Where a trap springs: at an action of member.c, or between the two halves of a kernel's stores. */
enum { TRAP_BETWEEN_STORES = MEMBER_DO_LEFT + 1, TRAP_POINTS };

struct fault {
    enum fault_kind kind;
    uint64_t at_ns;
    uint64_t length_ns; /* of a pause */
    int rank; /* victim; it is looked for from here upwards */
    int count; /* victims; or at which pass a trap springs */
    int point; /* of a trap */
    bool after; /* a trap's action is done first */
};

struct plan {
    int ranks, min_ranks;
    uint32_t first_epoch;
    bool slow_network; /* news may take longer than the grace: only safety is promised to the innocent */
    uint64_t delay_ns; /* of one message, at most */
    unsigned spike_permille, lost_permille, double_permille;
    uint64_t kill_ns; /* from SIGKILL to the exit, at most */
    uint64_t compute_ns;
    uint64_t quiet_ns; /* nothing happens before: most groups are to be founded first */
    uint64_t heal_ns;
    int faults;
    struct fault fault[SIM_MAX_FAULTS];
};

/* What a process does in its data plane. Kernels execute in WAITING, SENDING and HUNG. */
enum activity { ACTIVITY_IDLE, ACTIVITY_COMPUTING, ACTIVITY_SENDING, ACTIVITY_WAITING, ACTIVITY_VOID, ACTIVITY_HUNG };

struct contribution {
    uint64_t stamp;
    uint32_t incarnation;
};

struct process {
    int id, rank;
    uint32_t incarnation;
    bool alive; /* has not exited */
    bool stopped; /* by SIGSTOP */
    bool stays_stopped; /* whatever pause of it ends */
    uint64_t stopped_ns; /* since when */
    uint64_t paused_ns; /* what the agent makes of its last stop, until it has told its member */
    bool ended; /* its group has stopped, or it has left */
    bool unmapped; /* it is leaving: no kernel will touch the peers' memory again */
    bool left; /* in the store's eyes, like the next */
    bool connected;
    bool unkillable;
    bool reaped;
    uint64_t connected_ns, gone_ns; /* gone: reaped or left */

    /* Agent. */
    struct member member;
    uint64_t tick_ns; /* when the next EVENT_TICK comes */
    uint64_t stream_ns; /* changes arrive in order: when the last one will have */
    uint64_t request_ns; /* requests too */
    uint32_t live_epoch;
    uint32_t raise_epoch; /* asked for, not answered; 0 = none */
    uint32_t installed_epoch, loaded_epoch, begun_epoch;
    uint64_t begun_ns;
    uint64_t load_ns; /* how long the next load takes; 0 = the usual time */
    bool leaving;
    bool verdict_read;
    uint64_t progress; /* good steps, counted on from the least of each view; or MEMBER_NO_PROGRESS */

    /* Data plane. */
    enum activity activity;
    uint32_t generation; /* of the step; events of an earlier one are void */
    struct view step_view;
    uint64_t exchange; /* within the epoch; two to a step */
    uint64_t waiting_since_ns;
    uint64_t operation_timeout_ns;
    uint64_t begun_step; /* stamp of the newest step begun, readable by all */
    uint64_t begun_step_ns;
    bool hangs, refuses; /* in the next exchange */
    struct contribution memory[2][SIM_MAX_RANKS]; /* two banks, written by the peers */
    uint64_t done_since_heal;

    /* Events that came while it was stopped. */
    struct sim_event *backlog;
    int backlog_count, backlog_space;

    /* What the checks hold against it, or for it. */
    bool faulted; /* a fault was aimed at it, or a false report named it */
    bool disconnected; /* the fault was that its connection closed */
    bool was_member; /* has prepared a view */
    uint64_t continued_ns; /* its last SIGCONT */
};

/* The checks' own log of each epoch, counted from the first. */
struct epoch_log {
    bool known, committed;
    muster_mask mask;
    uint32_t incarnation[SIM_MAX_RANKS];
    muster_mask quiesced, ready;
    bool any; /* member that is ready had some progress: the least of them, and the most */
    uint64_t least, most;
};

struct world {
    uint64_t seed;
    struct plan plan;
    uint64_t now_ns;
    struct random net, work, os;
    bool healed, restarted, over;
    uint64_t restarted_ns, healed_ns;
    uint64_t bound_ns; /* after the healing */
    uint64_t continued_ns; /* the last SIGCONT to anyone */
    uint64_t thawed_ns; /* when the last freeze ended */

    struct sim_event *heap;
    int heap_count, heap_space;
    uint64_t sequence;

    /* Every value that was ever sent; events carry indices. */
    struct view *view;
    int views, view_space;
    struct record *record;
    int records, record_space;

    /* Store. */
    uint64_t revision, view_revision;
    int view_value; /* -1: none */
    int record_value[SIM_MAX_RANKS];
    uint32_t presence[SIM_MAX_RANKS];
    uint32_t fenced[SIM_MAX_RANKS];

    struct process process[SIM_MAX_PROCESSES];
    int processes;
    int trap_count[SIM_MAX_FAULTS];
    struct member_actions actions;
    struct epoch_log epoch[SIM_MAX_EPOCHS];
    uint32_t epochs;
    uint32_t expelled[SIM_MAX_RANKS]; /* the highest incarnation that any view has expelled */

    uint64_t hash;
    uint64_t events;
    const char *failure;
    int failed_process;
};

/* Counters over all seeds of a run. */
struct tally {
    uint64_t schedules, events, faults[SIM_KINDS];
    uint64_t commits, joins, expulsions, exchanges;
    uint64_t together, alone, nobody, restarted; /* how schedules ended: several ranks, one, or none went on */
    uint64_t stops[7]; /* by status: see tally_stop */
    uint64_t slowest_ns, slowest_seed;
};
extern struct tally tally;

/* Deadlines of the simulated groups. The bounds in check.c are made of them. */
#define SIM_PROPOSE_DELAY (2 * SIM_MS)
#define SIM_GRACE (20 * SIM_MS)
#define SIM_ACKNOWLEDGE (150 * SIM_MS)
#define SIM_READY (300 * SIM_MS)
#define SIM_FENCE (200 * SIM_MS)
#define SIM_REPLY (30 * SIM_MS)
#define SIM_START (1500 * SIM_MS)
#define SIM_OPERATION_MIN (40 * SIM_MS)
#define SIM_OPERATION_MAX (100 * SIM_MS)
#define SIM_STEP (200 * SIM_MS)
#define SIM_LEASE (100 * SIM_MS)
#define SIM_IDLE (SIM_GRACE / 2) /* an agent wakes at least as often: what it cannot tell from a pause */

/* world.c */
void world_create(struct world *w);
void world_destroy(struct world *w);
void world_run(struct world *w, uint64_t seed, int ranks); /* ranks 0: drawn; w->failure says what did not hold */
void world_post(struct world *w, uint64_t at_ns, struct sim_event event);
void world_freeze(struct world *w, uint64_t length_ns);
void world_handle(struct world *w, const struct sim_event *event);
int world_keep_view(struct world *w, const struct view *view);
int world_keep_record(struct world *w, const struct record *record);
struct process *world_find(struct world *w, int rank, uint32_t incarnation); /* NULL if there is none */

/* plan.c */
void plan_draw(struct plan *plan, uint64_t seed, int ranks);
void plan_print(const struct plan *plan);
const char *plan_fault_name(enum fault_kind kind);

/* store.c */
void store_handle(struct world *w, const struct sim_event *event);
void store_request(struct world *w, struct process *p, struct sim_event event);
void store_restart(struct world *w, bool forgets_only);
void store_exited(struct world *w, const struct process *p); /* the process is gone: the store will find out */

/* process.c */
struct process *process_spawn(struct world *w, int rank);
void process_handle(struct world *w, struct process *p, const struct sim_event *event);
void process_exit(struct world *w, struct process *p);
void process_stop(struct world *w, struct process *p);
void process_continue(struct world *w, struct process *p);
bool process_runs(const struct process *p); /* alive, not stopped, its group goes on */
void process_tell(struct world *w, struct process *p, struct member_event event);

/* data.c */
void data_begin(struct world *w, struct process *p);
void data_raise(struct world *w, struct process *p); /* the live epoch has moved */
void data_handle(struct world *w, struct process *p, const struct sim_event *event);
void data_poll(struct world *w, struct process *p);
bool data_executes(const struct process *p);
muster_mask data_missing(const struct world *w, const struct process *p);

/* fault.c */
void fault_apply(struct world *w, int index);
void fault_come(struct world *w, int rank);
bool fault_trap(struct world *w, struct process *p, int point, bool after); /* true: p does not go on */
void fault_pause(struct world *w, struct process *p, uint64_t length_ns);
void fault_heal(struct world *w);

/* check.c: each sets w->failure when its rule does not hold. */
void check_view(struct world *w, const struct view *view);
void check_put(struct world *w, const struct process *p, const struct record *record);
void check_action(struct world *w, struct process *p, const struct member_action *action);
void check_quiesced(struct world *w, const struct process *p, uint32_t epoch);
void check_ready(struct world *w, const struct process *p, uint32_t epoch);
void check_progress(struct world *w, const struct process *p, uint64_t least, uint64_t most);
void check_landing(struct world *w, const struct process *from, const struct process *to, uint64_t stamp);
void check_exchange(struct world *w, const struct process *p);
void check_clock(struct world *w);
bool check_converged(struct world *w);
uint64_t check_bound_ns(const struct world *w);
void check_fail(struct world *w, const struct process *p, const char *what);

/* trace.c */
void trace_reset(struct world *w, bool verbose);
void trace_event(struct world *w, const struct process *p, const char *what, uint64_t a, uint64_t b);
void trace_print_last(void);
void tally_stop(muster_status status);
void tally_print(void);
bool tally_complete(void);

#endif
