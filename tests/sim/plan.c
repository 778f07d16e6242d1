// SPDX-License-Identifier: Apache-2.0
/*
 * What is drawn from the seed. Each seed first draws which kinds of fault it has at all, so that some runs are full of
 * one kind and others mix two, instead of all runs being alike.
 */
#include <stdio.h>

#include "core/stamp.h"
#include "world.h"

static const char *const plan_names[SIM_KINDS] = {
    [SIM_CRASH] = "crash",
    [SIM_CRASH_SEVERAL] = "crash of several",
    [SIM_STOP] = "stop",
    [SIM_PAUSE] = "pause",
    [SIM_HANG] = "hanging kernel",
    [SIM_DISCONNECT] = "disconnect",
    [SIM_UNKILLABLE] = "unkillable",
    [SIM_RESPAWN] = "respawn",
    [SIM_LEAVE] = "leave",
    [SIM_OVERDUE] = "false report",
    [SIM_FAILED] = "failed operation",
    [SIM_REFUSE] = "refused operation",
    [SIM_SLOW_LOAD] = "slow load",
    [SIM_LATE_LOAD] = "late load",
    [SIM_CRASH_AT] = "crash at an action",
    [SIM_STOP_AT] = "stop at an action",
    [SIM_PAUSE_AT] = "pause at an action",
    [SIM_CRASH_JOINER] = "crash of a joiner",
    [SIM_RESTART] = "store restart",
    [SIM_VANISH] = "all gone and back",
    [SIM_FREEZE] = "frozen world",
    [SIM_LOST_REPLY] = "lost reply",
    [SIM_DOUBLE_REPLY] = "doubled reply",
    [SIM_DELAY] = "delay",
};

const char *plan_fault_name(enum fault_kind kind)
{
    return plan_names[kind];
}

/* How often a kind is drawn, relative to the others. */
static const unsigned plan_weight[SIM_PLANNED_KINDS] = {
    [SIM_CRASH] = 20,     [SIM_CRASH_SEVERAL] = 6, [SIM_STOP] = 8,         [SIM_PAUSE] = 14,    [SIM_HANG] = 5,
    [SIM_DISCONNECT] = 5, [SIM_UNKILLABLE] = 1,    [SIM_RESPAWN] = 30,     [SIM_LEAVE] = 8,     [SIM_OVERDUE] = 8,
    [SIM_FAILED] = 6,     [SIM_REFUSE] = 6,        [SIM_SLOW_LOAD] = 6,    [SIM_LATE_LOAD] = 4, [SIM_CRASH_AT] = 16,
    [SIM_STOP_AT] = 8,    [SIM_PAUSE_AT] = 10,     [SIM_CRASH_JOINER] = 5, [SIM_RESTART] = 1,   [SIM_VANISH] = 6,
    [SIM_FREEZE] = 10,
};

static enum fault_kind plan_draw_kind(struct random *random, const bool *enabled)
{
    uint64_t sum = 0;
    for (int k = 0; k < SIM_PLANNED_KINDS; k++)
        sum += enabled[k] ? plan_weight[k] : 0;
    uint64_t drawn = random_below(random, sum);
    for (int k = 0; k < SIM_PLANNED_KINDS; k++) {
        uint64_t weight = enabled[k] ? plan_weight[k] : 0;
        if (drawn < weight)
            return (enum fault_kind)k;
        drawn -= weight;
    }
    return SIM_CRASH;
}

static bool plan_is_trap(enum fault_kind kind)
{
    return kind == SIM_CRASH_AT || kind == SIM_STOP_AT || kind == SIM_PAUSE_AT || kind == SIM_CRASH_JOINER;
}

static struct fault plan_draw_fault(struct random *random, const struct plan *plan, enum fault_kind kind)
{
    static const int joiner_points[] = {MEMBER_DO_PUT, MEMBER_DO_RAISE, MEMBER_DO_INSTALL, MEMBER_DO_BEGIN};
    struct fault fault = {
        .kind = kind,
        .at_ns = random_between(random, plan->quiet_ns, plan->heal_ns - 50 * SIM_MS),
        .rank = (int)random_below(random, (uint64_t)plan->ranks),
        .length_ns = random_between(random, SIM_MS, random_chance(random, 500) ? 60 * SIM_MS : 600 * SIM_MS),
        .count = (int)random_between(random, 1, (uint64_t)plan->ranks),
        .point = (int)random_below(random, TRAP_POINTS),
        .after = random_chance(random, 500),
    };
    if (plan_is_trap(kind)) {
        fault.at_ns = SIM_NEVER;
        fault.count = (int)random_between(random, 1, 24);
        fault.after |= fault.point == TRAP_BETWEEN_STORES;
    }
    if (kind == SIM_CRASH_JOINER) {
        fault.point = joiner_points[random_below(random, 4)];
        fault.count = (int)random_between(random, 1, 3);
    }
    if (kind == SIM_SLOW_LOAD)
        fault.length_ns = random_between(random, 20 * SIM_MS, SIM_READY * 8 / 10);
    if (kind == SIM_LATE_LOAD)
        fault.length_ns = random_between(random, SIM_READY + 20 * SIM_MS, SIM_READY * 2);
    return fault;
}

static void plan_draw_faults(struct random *random, struct plan *plan)
{
    bool enabled[SIM_PLANNED_KINDS];
    for (int k = 0; k < SIM_PLANNED_KINDS; k++)
        enabled[k] = random_chance(random, 450);
    enabled[SIM_CRASH] |= random_chance(random, 500);
    enabled[SIM_RESPAWN] |= enabled[SIM_CRASH_JOINER];
    enabled[SIM_RESTART] = random_chance(random, 100);
    enabled[SIM_UNKILLABLE] = random_chance(random, 150);
    bool any = false;
    for (int k = 0; k < SIM_PLANNED_KINDS; k++)
        any |= enabled[k];
    plan->faults = any ? (int)random_below(random, SIM_MAX_FAULTS - 4) : 0;
    for (int i = 0; i < plan->faults; i++)
        plan->fault[i] = plan_draw_fault(random, plan, plan_draw_kind(random, enabled));
    /* What joined late must be killed or stopped as well, so some deaths are always followed by a respawn. */
    for (int i = 0; i < plan->faults && plan->faults < SIM_MAX_FAULTS; i++) {
        bool ends = plan->fault[i].kind == SIM_CRASH || plan->fault[i].kind == SIM_DISCONNECT;
        if (!ends || !enabled[SIM_RESPAWN])
            continue;
        plan->fault[plan->faults] = plan->fault[i];
        plan->fault[plan->faults].kind = SIM_RESPAWN;
        plan->fault[plan->faults].at_ns += random_between(random, SIM_MS, 40 * SIM_MS);
        plan->faults++;
    }
}

static void plan_draw_network(struct random *random, struct plan *plan)
{
    plan->slow_network = random_chance(random, 250);
    plan->delay_ns = random_between(random, 40 * SIM_US, plan->slow_network ? 15 * SIM_MS : 800 * SIM_US);
    plan->spike_permille = plan->slow_network ? (unsigned)random_below(random, 60) : 0;
    plan->lost_permille = random_chance(random, 500) ? (unsigned)random_below(random, 400) : 0;
    plan->double_permille = random_chance(random, 500) ? (unsigned)random_below(random, 400) : 0;
}

void plan_draw(struct plan *plan, uint64_t seed, int ranks)
{
    struct random random = random_stream(seed, 0);
    int drawn = (int)random_between(&random, SIM_MIN_RANKS, SIM_MAX_RANKS);
    plan->ranks = ranks ? ranks : drawn;
    plan->min_ranks = random_chance(&random, 800) ? 1 : (int)random_between(&random, 1, (uint64_t)plan->ranks);
    /* Near the end of the numbers now and then: an epoch that runs out must end the group with an error. */
    plan->first_epoch = random_chance(&random, 950) ? 1 : STAMP_MAX_EPOCH - (uint32_t)random_below(&random, 4);
    plan->quiet_ns = random_chance(&random, 850) ? 30 * SIM_MS : SIM_MS;
    plan->kill_ns = random_between(&random, 200 * SIM_US, 60 * SIM_MS);
    plan->compute_ns = random_between(&random, 2 * SIM_MS, 15 * SIM_MS);
    plan->heal_ns = random_between(&random, 300 * SIM_MS, 1200 * SIM_MS);
    plan_draw_network(&random, plan);
    plan_draw_faults(&random, plan);
}

void plan_print(const struct plan *plan)
{
    printf("ranks %d, min_ranks %d, first epoch %u, %s network: delay up to %.3f ms, spikes %u, lost %u, doubled %u "
           "permille; kill up to %.1f ms, compute up to %.1f ms, healed at %.1f ms\n",
           plan->ranks, plan->min_ranks, plan->first_epoch, plan->slow_network ? "slow" : "calm",
           (double)plan->delay_ns / 1e6, plan->spike_permille, plan->lost_permille, plan->double_permille,
           (double)plan->kill_ns / 1e6, (double)plan->compute_ns / 1e6, (double)plan->heal_ns / 1e6);
    for (int i = 0; i < plan->faults; i++) {
        const struct fault *f = &plan->fault[i];
        if (f->at_ns == SIM_NEVER)
            printf("  fault %d: %s %d, %s, time %d\n", i, plan_names[f->kind], f->point,
                   f->after ? "after it" : "before it", f->count);
        else
            printf("  fault %d: at %.3f ms: %s, rank %d, count %d, length %.1f ms\n", i, (double)f->at_ns / 1e6,
                   plan_names[f->kind], f->rank, f->count, (double)f->length_ns / 1e6);
    }
}
