// SPDX-License-Identifier: Apache-2.0
/* The event loop: whoever is due first goes on, a rank, a store or an agent. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sim_memory/sim.h"

struct sim sim;

void sim_fail(const char *format, ...)
{
    va_list list;
    if (sim.failure[0])
        return;
    int used = sim.running ? snprintf(sim.failure, sizeof(sim.failure), "rank %d: ", sim.running->rank) : 0;
    va_start(list, format);
    vsnprintf(sim.failure + used, sizeof(sim.failure) - (size_t)used, format, list);
    va_end(list);
}

void sim_say(const char *format, ...)
{
    va_list list;
    if (!sim.verbose)
        return;
    printf("%10.3f us  ", (double)sim.now_ns / 1e3);
    if (sim.running)
        printf("rank %d: ", sim.running->rank);
    va_start(list, format);
    vprintf(format, list);
    va_end(list);
    printf("\n");
}

void sim_hash(uint64_t value)
{
    sim.hash = (sim.hash ^ value ^ sim.now_ns) * UINT64_C(0x9e3779b97f4a7c15);
    sim.hash ^= sim.hash >> 29;
}

/* ------------------------------------------------------------------------------------------------------- coroutines */

void sim_pause(uint64_t ns)
{
    struct sim_rank *self = sim.running;
    self->next_ns = sim.now_ns + ns;
    swapcontext(&self->context, &sim.loop);
}

/* The context's start; its caller's programme never returns while the world lives. */
static void coroutine_main(void)
{
    program_run(sim.running);
    sim_fail("the programme ended");
    for (;;)
        sim_pause(1);
}

static void coroutine_open(struct sim_rank *rank)
{
    rank->stack = malloc(SIM_STACK_BYTES);
    if (!rank->stack || getcontext(&rank->context))
        abort();
    rank->context.uc_stack.ss_sp = rank->stack;
    rank->context.uc_stack.ss_size = SIM_STACK_BYTES;
    rank->context.uc_link = NULL;
    makecontext(&rank->context, coroutine_main, 0);
}

static void coroutine_go_on(struct sim_rank *rank)
{
    if (rank->stopped_ns) {
        sim_say("rank %d goes on after a stop", rank->rank);
        rank->time_stopped += rank->stopped_ns - rank->next_ns;
        rank->stopped_ns = 0;
    }
    sim.running = rank;
    swapcontext(&sim.loop, &rank->context);
    sim.running = NULL;
}

/* -------------------------------------------------------------------------------------------------------- the world */

static uint64_t rank_due_ns(const struct sim_rank *rank)
{
    return rank->stopped_ns > rank->next_ns ? rank->stopped_ns : rank->next_ns;
}

static struct sim_rank *next_rank(void)
{
    struct sim_rank *next = NULL;
    for (int r = 0; r < sim.ranks; r++) {
        struct sim_rank *rank = &sim.rank[r];
        if (rank->life == SIM_RUNS && (!next || rank_due_ns(rank) < rank_due_ns(next)))
            next = rank;
    }
    return next;
}

static void delay(uint64_t *at_ns)
{
    *at_ns += *at_ns ? sim.frozen_ns : 0;
}

/* Clocks go on, and nothing else does: everything that was to happen happens that much later. */
static void freeze_world(void)
{
    sim_say("the world stands still for %llu ms", (unsigned long long)sim.frozen_ns / 1000000);
    for (int r = 0; r < sim.ranks; r++) {
        struct sim_rank *rank = &sim.rank[r];
        uint64_t *times[] = {&rank->next_ns, &rank->stopped_ns, &rank->last_due_ns, &rank->fenced_ns, &rank->tick_ns};
        for (size_t i = 0; i < sizeof times / sizeof *times; i++)
            delay(times[i]);
        delay(&rank->leave_ns);
        rank->time_stopped += sim.frozen_ns;
    }
    sim_delay_stores(sim.frozen_ns);
    delay(&sim.prepared_ns);
    delay(&sim.coordinator_ns);
    sim.faults_end_ns += sim.frozen_ns;
    sim.end_ns += sim.frozen_ns;
    sim.now_ns += sim.frozen_ns;
    sim.freeze_ns = --sim.freezes ? sim.now_ns + 10 * SIM_US : 0;
}

static void step_world(void)
{
    if (sim.freeze_ns && sim.now_ns >= sim.freeze_ns)
        freeze_world();
    struct sim_rank *rank = next_rank();
    uint64_t rank_ns = rank ? rank_due_ns(rank) : UINT64_MAX;
    uint64_t store_ns = sim_next_store_ns(), control_ns = control_next_ns();
    uint64_t due_ns = rank_ns < store_ns ? rank_ns : store_ns;
    due_ns = control_ns < due_ns ? control_ns : due_ns;
    sim.now_ns = due_ns > sim.now_ns ? due_ns : sim.now_ns;
    if (due_ns == store_ns)
        sim_deliver();
    else if (due_ns == control_ns)
        control_run();
    else
        coroutine_go_on(rank);
}

/* After the faults: every rank that lives has had two good steps, in the one epoch that all of them are in. */
static bool all_recovered(void)
{
    for (int r = 0; r < sim.ranks; r++) {
        const struct sim_rank *rank = &sim.rank[r];
        bool recovered = rank->good >= 2 && rank->good_epoch == sim.committed && mask_has(sim.mask, r);
        if (rank->life == SIM_RUNS && !recovered)
            return false;
    }
    return sim.now_ns > sim.faults_end_ns;
}

static void draw_weather(struct random *dice)
{
    static const unsigned rare[] = {0, 0, 1, 5, 20};
    sim.store_ns = 20 + random_below(dice, 2000);
    sim.slow = (unsigned)random_below(dice, 40);
    sim.very_slow = rare[random_below(dice, 5)] / 5;
    sim.yields = 30 + (unsigned)random_below(dice, 500);
    sim.aborts = rare[random_below(dice, 5)];
    sim.refusals = rare[random_below(dice, 5)];
    sim.faults_end_ns = 500 * SIM_US + random_below(dice, 6000) * SIM_US;
    sim.end_ns = sim.faults_end_ns + 60000 * SIM_US;
}

/*
 * Now and then everything is near the end of its numbers: the group's epochs, or the sequence of each epoch, of which
 * a step takes two; that leaves room for the good steps that are asked for after the faults.
 */
static void draw_numbers(struct random *dice)
{
    uint64_t sequence_left = 8 + 2 * random_below(dice, 6);
    sim.committed = random_chance(dice, 300) ? STAMP_MAX_EPOCH - 1 - (uint32_t)random_below(dice, 40) : 1;
    sim.first_sequence = random_chance(dice, 300) ? STAMP_MAX_SEQUENCE - STAMP_SEQUENCE_RESERVE - sequence_left : 0;
}

/* A death or a stop comes at a drawn access of a rank: between any two stores. At least one rank stays alive. */
/*
 * In a calm world nobody is late by the deadlines, in which time that was frozen does not count: one freeze is longer than they
 * are, or several are, together.
 */
static void draw_freeze(struct random *dice)
{
    bool several = random_chance(dice, 500);
    sim.operation_timeout_ns = (!sim.calm ? 300 : several ? 250000 : 3000) * SIM_US;
    sim.step_timeout_ns = (!sim.calm ? 1500 : several ? 500000 : 6000) * SIM_US;
    if (!random_chance(dice, 400))
        return;
    sim.freezes = several ? 4 : 1;
    sim.freeze_ns = 1 + random_below(dice, sim.faults_end_ns);
    sim.frozen_ns = (60 + random_below(dice, several ? 50 : 200)) * 1000 * SIM_US;
}

static void draw_faults(struct random *dice)
{
    sim.calm = random_chance(dice, 400);
    draw_freeze(dice);
    for (int r = 1; r < sim.ranks; r++)
        if (random_chance(dice, 150))
            sim.rank[r].leave_ns = 1 + random_below(dice, sim.faults_end_ns);
    if (sim.calm) {
        sim.slow = sim.very_slow = sim.aborts = sim.refusals = 0;
        return;
    }
    int deaths = random_chance(dice, 600) ? 1 + (int)random_below(dice, (uint64_t)sim.ranks - 1) : 0;
    int first = (int)random_below(dice, (uint64_t)sim.ranks);
    for (int i = 0; i < deaths; i++)
        sim.rank[(first + i) % sim.ranks].die_at = 1 + random_below(dice, 3000);
    for (int r = 0; r < sim.ranks; r++)
        if (r != (first + deaths) % sim.ranks && random_chance(dice, 150))
            sim.rank[r].stop_at = 1 + random_below(dice, 3000);
}

static void world_open(uint64_t seed, bool verbose)
{
    struct random dice = random_stream(seed, 0);
    memset(&sim, 0, offsetof(struct sim, store));
    sim.stores = 0;
    sim.orders = 0;
    sim.seed = seed;
    sim.verbose = verbose;
    sim.net = random_stream(seed, 1);
    sim.agents = random_stream(seed, 2);
    sim.faults = random_stream(seed, 3);
    sim.ranks = 2 + (int)random_below(&dice, SIM_MAX_RANKS - 1);
    draw_weather(&dice);
    draw_numbers(&dice);
    program_configure(&dice);
    uint64_t bytes = (sizeof(struct region_header) + program_memory_bytes() + 63) / 64 * 64;
    for (int r = 0; r < sim.ranks; r++) {
        struct sim_rank *rank = &sim.rank[r];
        rank->rank = r;
        rank->dice = random_stream(seed, 10 + (uint64_t)r);
        rank->region = aligned_alloc(64, bytes);
        if (!rank->region)
            abort();
        memset(rank->region, 0, bytes);
        coroutine_open(rank);
    }
    draw_faults(&dice);
    control_init();
}

static void world_close(void)
{
    for (int r = 0; r < sim.ranks; r++) {
        for (int e = 0; e < SIM_EXCHANGES; e++)
            muster_ep_destroy(sim.rank[r].ep[e]);
        pthread_mutex_destroy(&sim.rank[r].group.lock);
    }
    for (int r = 0; r < sim.ranks; r++) {
        free(sim.rank[r].region);
        free(sim.rank[r].stack);
    }
}

/* The numbers of epochs may be used up; then the group has ended, and there is nothing more to show. */
static bool epochs_used_up(void)
{
    return sim.committed >= STAMP_MAX_EPOCH - 1 || sim.preparing >= STAMP_MAX_EPOCH - 1;
}

void sim_run(uint64_t seed, bool verbose)
{
    world_open(seed, verbose);
    while (!sim.failure[0] && !all_recovered() && !epochs_used_up()) {
        step_world();
        if (sim.now_ns > sim.end_ns)
            sim_fail("no good step of all living ranks within %llu us of the last fault",
                     (unsigned long long)(sim.end_ns - sim.faults_end_ns) / 1000);
    }
    world_close();
}
