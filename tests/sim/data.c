// SPDX-License-Identifier: Apache-2.0
/*
 * A minimal data plane: the caller of each rank runs steps of two exchanges; in each exchange a kernel stores its
 * contribution into the memory of every member, in two halves between which it may be killed or stopped, and waits for
 * theirs. What it waits for, and for how long, is what suspicion is made of.
 */
#include "core/stamp.h"
#include "world.h"

bool data_executes(const struct process *p)
{
    return p->activity == ACTIVITY_SENDING || p->activity == ACTIVITY_WAITING || p->activity == ACTIVITY_HUNG;
}

static uint64_t data_stamp(const struct process *p, uint64_t exchange)
{
    return stamp_make(p->step_view.epoch, exchange + 1);
}

/* The members whose contribution to this exchange has not come. */
muster_mask data_missing(const struct world *w, const struct process *p)
{
    muster_mask missing = {{0, 0}};
    for (int r = 0; r < w->plan.ranks; r++)
        if (r != p->rank && mask_has(p->step_view.mask, r) &&
            p->memory[p->exchange & 1][r].stamp < data_stamp(p, p->exchange))
            missing = mask_with(missing, r);
    return missing;
}

static struct sim_event data_event(const struct process *p, enum event_type type)
{
    return (struct sim_event){.type = type, .process = p->id, .generation = p->generation, .revision = p->exchange};
}

static void data_later(struct world *w, const struct process *p, enum event_type type, uint64_t least, uint64_t most)
{
    world_post(w, w->now_ns + random_between(&w->work, least, most), data_event(p, type));
}

/* A kernel has returned, or none runs: what waited for that goes on. */
static void data_returned(struct world *w, struct process *p)
{
    if (p->leaving)
        data_later(w, p, EVENT_LEAVING, 1, SIM_US);
    if (p->raise_epoch == 0 || data_executes(p))
        return;
    struct sim_event event = data_event(p, EVENT_QUIESCED);
    event.epoch = p->raise_epoch;
    world_post(w, w->now_ns + random_between(&w->work, 20 * SIM_US, SIM_MS), event);
}

static void data_void(struct world *w, struct process *p)
{
    p->activity = ACTIVITY_VOID;
    p->verdict_read = false;
    data_later(w, p, EVENT_VERDICT, 50 * SIM_US, 3 * SIM_MS);
    data_returned(w, p);
}

static bool data_is_over(const struct process *p)
{
    return p->live_epoch != p->step_view.epoch;
}

void data_raise(struct world *w, struct process *p)
{
    if (p->activity == ACTIVITY_COMPUTING)
        p->verdict_read = false; /* the open step is void, though its caller does not know yet */
    if (p->activity == ACTIVITY_WAITING)
        data_later(w, p, EVENT_RETURN, 10 * SIM_US, 300 * SIM_US);
    else
        data_returned(w, p);
}

void data_begin(struct world *w, struct process *p)
{
    p->begun_epoch = p->installed_epoch;
    p->begun_ns = w->now_ns;
    p->step_view = *member_installed(&p->member);
    uint64_t least, most;
    member_progress(&p->member, &least, &most);
    check_progress(w, p, least, most);
    p->progress = least; /* what others have to run again is run again here as well */
    p->generation++;
    p->exchange = 0;
    p->activity = ACTIVITY_IDLE;
    data_later(w, p, EVENT_STEP, 1, w->plan.compute_ns);
}

static void data_step(struct world *w, struct process *p)
{
    if (p->ended || data_is_over(p) || p->activity != ACTIVITY_IDLE)
        return;
    p->begun_step = data_stamp(p, p->exchange);
    p->begun_step_ns = w->now_ns;
    p->activity = ACTIVITY_COMPUTING;
    data_later(w, p, EVENT_SEND, 1, w->plan.compute_ns);
}

/* The rank's own check refuses the operation: its part is missing, and it says so. */
static void data_refuse(struct world *w, struct process *p)
{
    p->refuses = false;
    tally.faults[SIM_REFUSE]++;
    data_void(w, p);
    process_tell(w, p, (struct member_event){.type = MEMBER_FAILED, .epoch = p->step_view.epoch});
}

static void data_send(struct world *w, struct process *p)
{
    if (p->activity != ACTIVITY_COMPUTING)
        return;
    if (data_is_over(p)) {
        data_void(w, p);
        return;
    }
    if (p->refuses) {
        data_refuse(w, p);
        return;
    }
    uint64_t first_ns = w->now_ns + random_between(&w->work, 1, 20 * SIM_US);
    p->activity = ACTIVITY_SENDING;
    struct sim_event land = data_event(p, EVENT_LAND);
    land.value = (int)random_below(&w->work, UINT64_C(1) << w->plan.ranks);
    world_post(w, first_ns, land);
    land.ok = true; /* the second half */
    land.value = ~land.value;
    world_post(w, first_ns + random_between(&w->work, 1, 20 * SIM_US), land);
}

static void data_wait(struct world *w, struct process *p)
{
    p->activity = ACTIVITY_WAITING;
    p->waiting_since_ns = w->now_ns;
    world_post(w, w->now_ns + p->operation_timeout_ns, data_event(p, EVENT_DEADLINE));
    if (data_is_over(p))
        data_later(w, p, EVENT_RETURN, 1, 10 * SIM_US);
    data_poll(w, p);
}

static void data_land(struct world *w, struct process *p, const struct sim_event *event)
{
    uint64_t stamp = data_stamp(p, p->exchange);
    if (p->activity != ACTIVITY_SENDING)
        return;
    for (int r = 0; r < w->plan.ranks; r++) {
        if (!mask_has(p->step_view.mask, r) || !(event->value >> r & 1))
            continue;
        struct process *peer = world_find(w, r, p->step_view.incarnation[r]);
        check_landing(w, p, peer, stamp);
        peer->memory[p->exchange & 1][p->rank] = (struct contribution){stamp, p->incarnation};
        if (peer != p)
            data_poll(w, peer);
    }
    if (p->hangs) {
        p->hangs = false;
        p->faulted = true;
        p->activity = ACTIVITY_HUNG;
        tally.faults[SIM_HANG]++;
    } else if (event->ok) {
        data_wait(w, p);
    } else {
        (void)fault_trap(w, p, TRAP_BETWEEN_STORES, true);
    }
}

/* The kernel's look at its flags. */
void data_poll(struct world *w, struct process *p)
{
    if (!p->alive || p->stopped || p->activity != ACTIVITY_WAITING || !mask_empty(data_missing(w, p)))
        return;
    check_exchange(w, p);
    tally.exchanges++;
    p->done_since_heal += w->healed && p->waiting_since_ns >= w->healed_ns;
    p->exchange++;
    p->progress += p->exchange & 1 ? 0 : 1;
    p->activity = p->exchange & 1 ? ACTIVITY_COMPUTING : ACTIVITY_IDLE;
    if (p->activity == ACTIVITY_COMPUTING && data_is_over(p))
        p->verdict_read = false;
    data_later(w, p, p->exchange & 1 ? EVENT_SEND : EVENT_STEP, 1, w->plan.compute_ns);
    data_returned(w, p);
}

/* Since when rank r has owed this kernel its part: since both are in the step. */
static uint64_t data_owed_ns(struct world *w, const struct process *p, int r)
{
    const struct process *peer = world_find(w, r, p->step_view.incarnation[r]);
    bool begun = peer->begun_step >= data_stamp(p, p->exchange & ~UINT64_C(1));
    uint64_t since_ns = peer->begun_step_ns > p->waiting_since_ns ? peer->begun_step_ns : p->waiting_since_ns;
    return begun ? w->now_ns - since_ns : 0;
}

/* Of those that are missing, the ones that have long been inside the same step; after the longer deadline all. */
static muster_mask data_blamed(struct world *w, const struct process *p)
{
    muster_mask missing = data_missing(w, p), blamed = {{0, 0}};
    if (w->now_ns - p->waiting_since_ns >= SIM_STEP)
        return missing;
    for (int r = mask_next(missing, 0); r >= 0; r = mask_next(missing, r + 1))
        if (data_owed_ns(w, p, r) >= p->operation_timeout_ns)
            blamed = mask_with(blamed, r);
    return blamed;
}

static void data_deadline(struct world *w, struct process *p, const struct sim_event *event)
{
    if (p->activity != ACTIVITY_WAITING || p->exchange != event->revision || data_is_over(p))
        return;
    muster_mask blamed = data_blamed(w, p);
    if (mask_empty(blamed)) {
        uint64_t again_ns = w->now_ns + p->operation_timeout_ns / 2;
        uint64_t last_ns = p->waiting_since_ns + SIM_STEP;
        world_post(w, again_ns < last_ns ? again_ns : last_ns, data_event(p, EVENT_DEADLINE));
        return;
    }
    struct member_event report = {.type = MEMBER_OVERDUE, .epoch = p->step_view.epoch, .mask = blamed};
    if (random_chance(&w->work, 500)) /* the report overtakes the kernel's return, or does not */
        report.waiting = data_missing(w, p);
    data_void(w, p);
    process_tell(w, p, report);
}

void data_handle(struct world *w, struct process *p, const struct sim_event *event)
{
    if (event->generation != p->generation)
        return;
    switch (event->type) {
    case EVENT_STEP: data_step(w, p); break;
    case EVENT_SEND: data_send(w, p); break;
    case EVENT_LAND: data_land(w, p, event); break;
    case EVENT_DEADLINE: data_deadline(w, p, event); break;
    case EVENT_RETURN:
        if (p->activity == ACTIVITY_WAITING && data_is_over(p))
            data_void(w, p);
        break;
    default: break;
    }
}
