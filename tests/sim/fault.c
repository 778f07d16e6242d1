// SPDX-License-Identifier: Apache-2.0
/* Doing to processes what the plan says, and healing what can be healed. */
#include "world.h"

static struct process *fault_newest(struct world *w, int rank)
{
    struct process *newest = NULL;
    for (int i = 0; i < w->processes; i++)
        if (w->process[i].rank == rank)
            newest = &w->process[i];
    return newest;
}

/* The first rank from `rank` upwards that still runs. */
static struct process *fault_victim(struct world *w, int rank)
{
    for (int i = 0; i < w->plan.ranks; i++) {
        struct process *p = fault_newest(w, (rank + i) % w->plan.ranks);
        if (process_runs(p))
            return p;
    }
    return NULL;
}

void fault_pause(struct world *w, struct process *p, uint64_t length_ns)
{
    uint64_t until_ns = w->now_ns + length_ns;
    p->faulted = true;
    process_stop(w, p);
    world_post(w, until_ns < w->plan.heal_ns ? until_ns : w->plan.heal_ns,
               (struct sim_event){.type = EVENT_CONTINUE, .process = p->id});
}

static void fault_disconnect(struct world *w, struct process *p)
{
    p->faulted = p->disconnected = true;
    world_post(w, w->now_ns + random_between(&w->os, 20 * SIM_US, SIM_MS),
               (struct sim_event){.type = EVENT_CLOSED, .process = p->id});
    world_post(w, w->now_ns + random_between(&w->os, 20 * SIM_US, SIM_LEASE),
               (struct sim_event){.type = EVENT_LOST, .process = p->id});
}

/* A new process of a rank whose old one has lost its presence; the old one may not have exited yet. */
static bool fault_respawn(struct world *w, int rank)
{
    if (w->restarted)
        return false;
    for (int i = 0; i < w->plan.ranks; i++) {
        int r = (rank + i) % w->plan.ranks;
        const struct process *old = fault_newest(w, r);
        bool gone = old->connected_ns != 0 && w->presence[r] == 0;
        if (gone)
            return process_spawn(w, r) != NULL;
    }
    return false;
}

/* A process of the rank comes when its predecessor has gone for good, or not at all. */
void fault_come(struct world *w, int rank)
{
    const struct process *old = fault_newest(w, rank);
    bool going = !old->alive || old->ended || old->leaving;
    if (w->restarted || !going)
        return;
    if (old->reaped || old->left)
        process_spawn(w, rank);
    else if (!w->healed)
        world_post(w, w->now_ns + 2 * SIM_MS, (struct sim_event){.type = EVENT_COME, .process = -1, .rank = rank});
}

/* Every rank goes, in one of two ways, and a new process of each comes a little later. */
static void fault_vanish(struct world *w)
{
    for (int r = 0; r < w->plan.ranks; r++) {
        struct process *p = fault_newest(w, r);
        p->faulted = true;
        if (process_runs(p) && random_chance(&w->os, 300))
            world_post(w, w->now_ns, (struct sim_event){.type = EVENT_LEAVING, .process = p->id});
        else if (p->alive && !p->unkillable)
            process_exit(w, p);
        world_post(w, w->now_ns + random_between(&w->os, SIM_MS, 40 * SIM_MS),
                   (struct sim_event){.type = EVENT_COME, .process = -1, .rank = r});
    }
    tally.faults[SIM_VANISH]++;
}

/* A moment of the past, as it would be had the time of the freeze not passed. */
static void fault_later(uint64_t *at_ns, uint64_t length_ns)
{
    *at_ns += *at_ns ? length_ns : 0;
}

/* What kernels (X17) and checks do not count. */
static void fault_freeze_process(struct process *p, uint64_t length_ns)
{
    uint64_t *times[] = {&p->waiting_since_ns, &p->begun_step_ns, &p->continued_ns};
    for (size_t i = 0; i < sizeof times / sizeof *times; i++)
        fault_later(times[i], length_ns);
}

/* Clocks go on, and nothing else does. */
static void fault_freeze(struct world *w, uint64_t length_ns)
{
    for (int i = 0; i < w->processes; i++) {
        uint64_t idle_ns = random_below(&w->os, SIM_IDLE);
        fault_freeze_process(&w->process[i], length_ns);
        if (process_runs(&w->process[i]))
            w->process[i].paused_ns = length_ns > idle_ns ? length_ns - idle_ns : 0;
    }
    fault_later(&w->continued_ns, length_ns);
    fault_later(&w->restarted_ns, length_ns);
    w->thawed_ns = w->now_ns + length_ns;
    world_freeze(w, length_ns);
    tally.faults[SIM_FREEZE]++;
}

/* A report that blames whoever the dice name. */
static bool fault_overdue(struct world *w, struct process *p)
{
    uint32_t epoch = p->begun_epoch;
    muster_mask blamed = {{random_below(&w->os, UINT64_C(1) << w->plan.ranks), 0}};
    if (epoch == 0 || p->live_epoch != epoch || mask_empty(blamed))
        return false;
    for (int r = mask_next(blamed, 0); r >= 0; r = mask_next(blamed, r + 1))
        fault_newest(w, r)->faulted = true;
    process_tell(w, p, (struct member_event){.type = MEMBER_OVERDUE, .epoch = epoch, .mask = blamed});
    return true;
}

static bool fault_failed(struct world *w, struct process *p)
{
    if (p->begun_epoch == 0 || p->live_epoch != p->begun_epoch)
        return false;
    process_tell(w, p, (struct member_event){.type = MEMBER_FAILED, .epoch = p->begun_epoch});
    return true;
}

static bool fault_on(struct world *w, struct process *p, const struct fault *fault)
{
    switch (fault->kind) {
    case SIM_CRASH: process_exit(w, p); return true;
    case SIM_STOP:
    case SIM_UNKILLABLE:
        p->faulted = p->stays_stopped = true;
        p->unkillable = fault->kind == SIM_UNKILLABLE;
        process_stop(w, p);
        return true;
    case SIM_PAUSE: fault_pause(w, p, fault->length_ns); return true;
    case SIM_DISCONNECT: fault_disconnect(w, p); return true;
    case SIM_LEAVE:
        p->faulted = true;
        world_post(w, w->now_ns, (struct sim_event){.type = EVENT_LEAVING, .process = p->id});
        return true;
    case SIM_OVERDUE: return fault_overdue(w, p);
    case SIM_FAILED: return fault_failed(w, p);
    /* The following count when they happen. */
    case SIM_HANG: p->hangs = true; return false;
    case SIM_REFUSE: p->refuses = true; return false;
    case SIM_SLOW_LOAD:
    case SIM_LATE_LOAD: p->load_ns = fault->length_ns; return false;
    default: return false;
    }
}

static void fault_crash_several(struct world *w, const struct fault *fault)
{
    int victims = 0;
    for (int i = 0; i < fault->count; i++) {
        struct process *p = fault_victim(w, fault->rank + i);
        if (p) {
            process_exit(w, p);
            victims++;
        }
    }
    tally.faults[SIM_CRASH_SEVERAL] += victims > 1;
}

void fault_apply(struct world *w, int index)
{
    const struct fault *fault = &w->plan.fault[index];
    struct process *p = fault_victim(w, fault->rank);
    trace_event(w, p, plan_fault_name(fault->kind), (uint64_t)index, 0);
    if (fault->kind == SIM_CRASH_SEVERAL) {
        fault_crash_several(w, fault);
    } else if (fault->kind == SIM_RESPAWN) {
        tally.faults[SIM_RESPAWN] += fault_respawn(w, fault->rank);
    } else if (fault->kind == SIM_VANISH) {
        fault_vanish(w);
    } else if (fault->kind == SIM_FREEZE) {
        fault_freeze(w, fault->length_ns);
    } else if (fault->kind == SIM_RESTART) {
        tally.faults[SIM_RESTART]++;
        store_restart(w, fault->after);
    } else if (p) {
        tally.faults[fault->kind] += fault_on(w, p, fault);
    }
}

static bool fault_is_sprung(struct world *w, int index, const struct process *p, int point, bool after)
{
    const struct fault *fault = &w->plan.fault[index];
    if (fault->at_ns != SIM_NEVER || fault->point != point || fault->after != after)
        return false;
    if (fault->kind == SIM_CRASH_JOINER && p->incarnation == 1)
        return false;
    return ++w->trap_count[index] == fault->count;
}

static void fault_spring(struct world *w, struct process *p, int index)
{
    enum fault_kind kind = w->plan.fault[index].kind;
    tally.faults[kind]++;
    p->faulted = true;
    if (kind == SIM_PAUSE_AT) { /* in a moment: what it was about to do is done first */
        world_post(w, w->now_ns, (struct sim_event){.type = EVENT_PAUSE, .process = p->id, .value = index});
    } else if (kind == SIM_STOP_AT) {
        p->stays_stopped = true;
        process_stop(w, p);
    } else {
        process_exit(w, p);
    }
}

bool fault_trap(struct world *w, struct process *p, int point, bool after)
{
    for (int i = 0; i < w->plan.faults && !w->healed; i++) {
        if (!fault_is_sprung(w, i, p, point, after))
            continue;
        trace_event(w, p, plan_fault_name(w->plan.fault[i].kind), (uint64_t)i, (uint64_t)point);
        fault_spring(w, p, i);
        return w->plan.fault[i].kind != SIM_PAUSE_AT;
    }
    return false;
}

/* Who is stopped for good, hangs or cannot be killed stays so: the group has to manage without. */
void fault_heal(struct world *w)
{
    w->healed = true;
    w->healed_ns = w->now_ns;
    w->bound_ns = check_bound_ns(w);
    for (int i = 0; i < w->processes; i++)
        w->process[i].hangs = w->process[i].refuses = false;
}
