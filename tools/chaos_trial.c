// SPDX-License-Identifier: Apache-2.0
/* One trial: a fault, what the survivors make of it, and the victim's return. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "chaos.h"
#include "core/clock.h"
#include "core/config.h"
#include "core/mask.h"
#include "process.h"

#define SECOND_NS UINT64_C(1000000000)
#define START_NS (60 * SECOND_NS) /* for a process to come up and take part */
#define LOOK_NS (SECOND_NS / 5)

/* How many operation timeouts there may be from a fault to the next good step: see STEP_TIMEOUTS in chaos_rank.c. */
enum { TIMEOUTS = 20 };

/* Beyond the deadlines, a suspect may take its time to exit; if it takes too long, the group says so. */
static uint64_t bound_ns(const struct chaos_crew *crew)
{
    uint64_t fence_ns = clock_ns_of_us(config_number(CONFIG_FENCE_TIMEOUT_US));
    return fence_ns + fence_ns / 2 + (uint64_t)crew->options->shape.timeout_ms * TIMEOUTS * 1000000;
}

static bool is_full(const struct chaos_seat *seat)
{
    return atomic_load(&seat->full_ns);
}

static bool is_struck(const struct chaos_seat *seat)
{
    return atomic_load(&seat->fault_ns);
}

static bool has_resumed(const struct chaos_seat *seat)
{
    return atomic_load(&seat->good_ns) && atomic_load(&seat->view_ns);
}

/* A rank may be expelled while it comes in, if it is too slow: then it is started once more. */
bool chaos_trial_gather(struct chaos_crew *crew)
{
    muster_mask all = mask_first(crew->options->shape.ranks);
    uint64_t end_ns = clock_ns() + START_NS;
    while (!crew->failed && clock_ns() < end_ns)
        if (chaos_crew_start(crew) && chaos_crew_await(crew, is_full, all, LOOK_NS) && chaos_crew_all_run(crew))
            return true;
    return chaos_crew_fail_late(crew, "no exact step of all ranks came about");
}

/* ---- before the fault ---- */

static void set_up(struct chaos_crew *crew, const struct chaos_plan *plan)
{
    atomic_store(&crew->board->graph, plan->graph);
    atomic_store(&crew->board->victim, plan->victim);
    crew->victim = plan->victim;
    for (int32_t r = 0; r < crew->options->shape.ranks; r++) {
        struct chaos_seat *seat = &crew->board->seat[r];
        atomic_store(&seat->void_ns, 0);
        atomic_store(&seat->view_ns, 0);
        atomic_store(&seat->good_ns, 0);
    }
}

static void sleep_ns(uint64_t ns)
{
    struct timespec rest = clock_timespec(ns);
    nanosleep(&rest, NULL);
}

/* ---- the fault ---- */

static muster_mask only(int32_t rank)
{
    return mask_with((muster_mask){{0, 0}}, rank);
}

/* A signal comes from here; what must happen at a certain place in a step the victim does itself. */
static bool strike(struct chaos_crew *crew, const struct chaos_plan *plan)
{
    struct chaos_seat *seat = &crew->board->seat[plan->victim];
    if (plan->kind == CHAOS_KILL || plan->kind == CHAOS_STOP) {
        chaos_mark(&seat->fault_ns);
        process_signal(crew->pid[plan->victim], plan->kind == CHAOS_KILL ? SIGKILL : SIGSTOP);
        return true;
    }
    atomic_store(&seat->fault_pair, plan->pair);
    atomic_store(&seat->fault, 1 + (uint32_t)plan->kind);
    if (chaos_crew_await(crew, is_struck, only(plan->victim), bound_ns(crew)))
        return true;
    if (chaos_crew_runs(crew, plan->victim))
        return chaos_crew_fail_late(crew, "the victim's fault has not come");
    chaos_mark(&seat->fault_ns); /* it is gone: the fault came in the meantime, or it was expelled before */
    return !crew->failed;
}

/* ---- what the survivors make of it ---- */

/* Marks from before the fault, of steps that were void for another reason, do not count. */
static uint64_t after(uint64_t ns, uint64_t fault_ns)
{
    return ns >= fault_ns ? ns : UINT64_MAX;
}

static double ms_between(uint64_t begin_ns, uint64_t end_ns)
{
    return end_ns > begin_ns ? (double)(end_ns - begin_ns) / 1e6 : 0;
}

static void take_times(const struct chaos_crew *crew, const struct chaos_plan *plan, struct chaos_outcome *outcome)
{
    uint64_t fault_ns = atomic_load(&crew->board->seat[plan->victim].fault_ns);
    uint64_t detect_ns = UINT64_MAX, agree_ns = 0, resume_ns = 0;
    for (int32_t r = 0; r < crew->options->shape.ranks; r++) {
        const struct chaos_seat *seat = &crew->board->seat[r];
        if (r == plan->victim || !chaos_crew_runs(crew, r))
            continue;
        uint64_t void_ns = after(atomic_load(&seat->void_ns), fault_ns), view_ns = atomic_load(&seat->view_ns);
        uint64_t first_ns = void_ns < view_ns ? void_ns : view_ns, good_ns = atomic_load(&seat->good_ns);
        detect_ns = first_ns < detect_ns ? first_ns : detect_ns;
        agree_ns = view_ns > agree_ns ? view_ns : agree_ns;
        resume_ns = good_ns > resume_ns ? good_ns : resume_ns;
    }
    outcome->detect_ms = ms_between(fault_ns, detect_ns);
    outcome->agree_ms = ms_between(fault_ns, agree_ns);
    outcome->resume_ms = ms_between(fault_ns, resume_ns);
}

static bool same_mask(const struct chaos_seat *a, const struct chaos_seat *b)
{
    return atomic_load(&a->good_mask[0]) == atomic_load(&b->good_mask[0]) &&
           atomic_load(&a->good_mask[1]) == atomic_load(&b->good_mask[1]);
}

/* Promise 3: survivors whose first good step was in the same epoch had the same mask there. */
static bool masks_agree(struct chaos_crew *crew, const struct chaos_plan *plan)
{
    for (int32_t a = 0; a < crew->options->shape.ranks; a++)
        for (int32_t b = 0; b < a; b++) {
            const struct chaos_seat *one = &crew->board->seat[a], *other = &crew->board->seat[b];
            bool both = a != plan->victim && b != plan->victim && chaos_crew_runs(crew, a) && chaos_crew_runs(crew, b);
            if (both && atomic_load(&one->good_epoch) == atomic_load(&other->good_epoch) && !same_mask(one, other))
                return false;
        }
    return true;
}

static bool survive(struct chaos_crew *crew, const struct chaos_plan *plan, struct chaos_outcome *outcome)
{
    muster_mask survivors = mask_without(mask_first(crew->options->shape.ranks), plan->victim);
    if (!chaos_crew_await(crew, has_resumed, survivors, bound_ns(crew)))
        return chaos_crew_fail_late(crew, "the survivors have not finished a good step without the victim");
    if (!masks_agree(crew, plan))
        return chaos_crew_fail(crew, CHAOS_ERRED, "two survivors had different masks in one epoch");
    take_times(crew, plan, outcome);
    return true;
}

/* ---- the victim's return ---- */

static bool come_back(struct chaos_crew *crew, const struct chaos_plan *plan)
{
    if (!chaos_crew_await_exit(crew, plan->victim, bound_ns(crew)))
        return chaos_crew_fail_late(crew, "the victim's process has not exited");
    crew->victim = -1;
    for (int32_t r = 0; r < crew->options->shape.ranks; r++)
        atomic_store(&crew->board->seat[r].full_ns, 0); /* while one is missing nobody sets it */
    return chaos_trial_gather(crew);
}

/* ---- the whole ---- */

/* What came about between two trials is the later one's; what a process did that has died since is lost, but not bytes. */
static void add_up(struct chaos_crew *crew, struct chaos_outcome *outcome)
{
    for (int32_t r = 0; r < crew->options->shape.ranks; r++) {
        struct chaos_seat *seat = &crew->board->seat[r];
        outcome->steps += atomic_exchange(&seat->steps, 0);
        outcome->voids += atomic_exchange(&seat->voids, 0);
        outcome->wrong += atomic_exchange(&seat->wrong, 0);
    }
    outcome->wrong += crew->wrong;
    outcome->expelled = crew->expelled;
    crew->wrong = 0;
    crew->expelled = 0;
}

void chaos_trial_run(struct chaos_crew *crew, const struct chaos_plan *plan, struct chaos_outcome *outcome)
{
    *outcome = (struct chaos_outcome){.end = CHAOS_GOOD};
    set_up(crew, plan);
    sleep_ns(plan->delay_ns);
    bool good = strike(crew, plan) && survive(crew, plan, outcome) && come_back(crew, plan);
    add_up(crew, outcome);
    if (good)
        return;
    outcome->end = crew->end;
    snprintf(outcome->why, sizeof outcome->why, "%s", crew->why);
}
