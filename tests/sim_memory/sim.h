// SPDX-License-Identifier: Apache-2.0
/*
 * A simulated machine for the data plane: the shipped kernels, exchanges and steps run as coroutines over a memory in
 * which each store becomes visible at a time of its own. Order between plain stores of one rank is not kept; a release
 * store comes after everything its rank stored before. Time, stores, deaths, stops and the agreement on views are
 * events of one loop, and everything is drawn from the seed.
 *
 * Agreement itself is not simulated here, only what it promises (docs/protocol.md, Membership): a new epoch is
 * committed when no member executes a kernel of an older one and every rank left out is fenced, and its steps begin
 * when every member is ready.
 */
#ifndef SIM_MEMORY_SIM_H
#define SIM_MEMORY_SIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <ucontext.h>

#include "control/group_state.h"
#include "muster/ep.h"
#include "sim/random.h"

enum {
    SIM_MAX_RANKS = 4,
    SIM_EXCHANGES = 2,
    SIM_STACK_BYTES = 256 * 1024,
    SIM_STORE_BYTES = 16, /* the most that becomes visible at once */
    SIM_MAX_STORES = 1 << 14,
};

#define SIM_US UINT64_C(1000)

/* A store that this rank has done and that is not visible yet. */
struct sim_store {
    uint64_t due_ns, order;
    unsigned char *to;
    int writer;
    uint32_t bytes;
    unsigned char data[SIM_STORE_BYTES];
};

/* Gone: it has left; what it stored last may still arrive, and then it is fenced. */
enum sim_life { SIM_RUNS, SIM_GONE, SIM_DEAD, SIM_FENCED };

struct sim_rank {
    int rank;
    muster_group group;
    unsigned char *region;
    muster_ep *ep[SIM_EXCHANGES];
    struct sim_mask {
        uint32_t epoch;
        muster_mask mask;
    } mask[SIM_EXCHANGES]; /* as it was set last */

    ucontext_t context;
    unsigned char *stack;
    enum sim_life life;
    uint64_t next_ns; /* when the coroutine goes on */
    uint64_t stopped_ns; /* until when it is stopped; 0 = it is not */
    uint64_t time_stopped; /* in all */
    uint64_t die_at; /* access after which it dies; 0 = never */
    uint64_t stop_at; /* access after which it stops */
    uint64_t leave_ns; /* after which it leaves, when a step has been good; 0 = never */
    uint64_t accesses;
    uint64_t last_due_ns; /* of its stores: a release may not come before */
    uint64_t fenced_ns; /* no further store may come before */
    struct random dice; /* of its caller: delays and misbehaviour */

    /* Its agent. */
    uint64_t tick_ns;
    uint32_t raised, acknowledged, installed, ready;

    uint32_t whole_epoch; /* of `whole` */
    uint64_t whole; /* steps of that epoch, from the first, that were good here with every operation done */

    struct watchdog_operation watched; /* the last wait */
    muster_phase complete; /* of the wait whose flags had all come when the epoch was raised, in step `complete_step` */
    uint64_t complete_step;
    struct kernel_step owed; /* the last step of a peer that has left: it is good here, or should be */

    uint32_t good_epoch; /* of the steps counted by `good` */
    int good; /* good steps after the faults, in one epoch */
};

struct sim {
    uint64_t seed;
    uint64_t now_ns;
    uint64_t hash;
    struct random net, agents, faults;
    bool verbose;
    char failure[320]; /* the first check that did not hold */

    int ranks;
    struct sim_rank rank[SIM_MAX_RANKS];
    struct sim_rank *running; /* NULL: the loop itself, for whom memory is plain */
    ucontext_t loop;

    /* The world's weather. */
    uint64_t store_ns; /* the usual delay of a store is up to this */
    unsigned slow, very_slow; /* permille of stores that take up to 50, 1000 times as long */
    unsigned yields; /* permille of accesses after which another rank may go on */
    unsigned aborts; /* permille of agents' ticks that end the epoch for no reason */
    unsigned refusals; /* permille of operations that a caller leaves out */
    uint64_t freeze_ns, frozen_ns; /* when the whole world stops next, and for how long; 0 = it does not */
    int freezes; /* how often, soon one after the other */
    bool calm; /* nothing else goes wrong: no step may be void for want of time, nor for somebody's leaving */
    uint64_t operation_timeout_ns, step_timeout_ns;
    uint64_t faults_end_ns; /* no fault begins after this */
    uint64_t end_ns; /* and by then everything has been shown to work */
    uint64_t first_sequence;
    muster_ep_config config[SIM_EXCHANGES];

    /* What agreement has come to. */
    uint32_t committed, preparing; /* epochs; preparing 0: none is */
    muster_mask mask, prepared_mask; /* of those */
    uint64_t prepared_ns; /* since when */
    bool end_wanted; /* somebody asked for the end of the committed epoch */
    uint64_t coordinator_ns; /* its next look */
    int views, good_steps, void_steps, deaths;

    struct sim_store store[SIM_MAX_STORES]; /* a heap by (due, order) */
    int stores;
    uint64_t orders;
};

extern struct sim sim;

/* loop.c */
void sim_run(uint64_t seed, bool verbose);
void sim_pause(uint64_t ns); /* the running rank goes on after so long */
__attribute__((format(printf, 1, 2))) void sim_fail(const char *format, ...);
__attribute__((format(printf, 1, 2))) void sim_say(const char *format, ...);
void sim_hash(uint64_t value);

/* memory.c: the other side of kernels/cpu/memory.h */
uint64_t sim_next_store_ns(void);
void sim_deliver(void);
bool sim_stores_pending(int writer);
void sim_delay_stores(uint64_t ns);

/* control.c */
void control_init(void);
void control_kill(struct sim_rank *rank);
void control_leave(struct sim_rank *rank);
uint64_t control_next_ns(void);
void control_run(void);

/* program.c: what the caller of each rank does */
void program_configure(struct random *dice);
uint64_t program_memory_bytes(void);
void program_run(struct sim_rank *self);

#endif
