// SPDX-License-Identifier: Apache-2.0
/* One process: the agent that hands events to the shipped member.c and does what it says. */
#include <stdlib.h>
#include <string.h>

#include "world.h"

bool process_runs(const struct process *p)
{
    return p->alive && !p->stopped && !p->ended;
}

/* ---- Life ---- */

static void process_configure(const struct world *w, struct process *p)
{
    struct member_config config = {
        .rank = p->rank,
        .ranks = w->plan.ranks,
        .min_ranks = w->plan.min_ranks,
        .incarnation = p->incarnation,
        .first_epoch = w->plan.first_epoch,
        .propose_delay_ns = SIM_PROPOSE_DELAY,
        .grace_ns = SIM_GRACE,
        .acknowledge_timeout_ns = SIM_ACKNOWLEDGE,
        .ready_timeout_ns = SIM_READY,
        .fence_timeout_ns = SIM_FENCE,
        .reply_timeout_ns = SIM_REPLY,
        .start_timeout_ns = SIM_START,
    };
    member_init(&p->member, &config);
}

/* NULL when the world has no room for another process. */
struct process *process_spawn(struct world *w, int rank)
{
    if (w->processes == SIM_MAX_PROCESSES)
        return NULL;
    struct process *p = &w->process[w->processes];
    struct sim_event *backlog = p->backlog;
    int backlog_space = p->backlog_space;
    uint32_t incarnation = 1;
    for (int i = 0; i < w->processes; i++)
        if (w->process[i].rank == rank)
            incarnation = w->process[i].incarnation + 1;
    memset(p, 0, sizeof *p);
    p->backlog = backlog;
    p->backlog_space = backlog_space;
    p->id = w->processes++;
    p->rank = rank;
    p->incarnation = incarnation;
    p->alive = true;
    p->verdict_read = true;
    p->progress = MEMBER_NO_PROGRESS;
    p->tick_ns = SIM_NEVER;
    p->operation_timeout_ns = random_between(&w->work, SIM_OPERATION_MIN, SIM_OPERATION_MAX);
    process_configure(w, p);
    p->request_ns = w->now_ns + random_below(&w->os, 5 * SIM_MS);
    store_request(w, p, (struct sim_event){.type = EVENT_HELLO});
    return p;
}

void process_exit(struct world *w, struct process *p)
{
    trace_event(w, p, "exit", 0, 0);
    p->alive = false;
    store_exited(w, p);
}

void process_stop(struct world *w, struct process *p)
{
    trace_event(w, p, "stopped by a signal", 0, 0);
    p->stopped = true;
    p->stopped_ns = w->now_ns;
}

static void process_keep(struct process *p, const struct sim_event *event)
{
    if (p->backlog_count == p->backlog_space) {
        p->backlog_space = p->backlog_space ? p->backlog_space * 2 : 64;
        p->backlog = realloc(p->backlog, (size_t)p->backlog_space * sizeof *p->backlog);
        if (!p->backlog)
            abort();
    }
    p->backlog[p->backlog_count++] = *event;
}

/* The kernel looks at its flags first, then the agent reads what came, then timers run: as the shipped agent does. */
void process_continue(struct world *w, struct process *p)
{
    if (!p->stopped || p->stays_stopped)
        return;
    trace_event(w, p, "continued", 0, 0);
    uint64_t idle_ns = random_below(&w->os, SIM_IDLE), stopped_ns = w->now_ns - p->stopped_ns;
    p->stopped = false;
    p->paused_ns = stopped_ns > idle_ns ? stopped_ns - idle_ns : 0;
    p->continued_ns = w->continued_ns = w->now_ns;
    data_poll(w, p);
    for (int timers = 0; timers < 2; timers++)
        for (int i = 0; i < p->backlog_count && p->alive && !p->stopped; i++)
            if (p->backlog[i].process >= 0 && (p->backlog[i].type == EVENT_TICK) == timers) {
                struct sim_event event = p->backlog[i];
                p->backlog[i].process = -1; /* taken: it may be stopped again half-way */
                process_handle(w, p, &event);
            }
    if (!p->stopped)
        p->backlog_count = 0;
}

/* ---- Actions ---- */

static void process_raise(struct world *w, struct process *p, const struct view *view)
{
    p->live_epoch = view->epoch;
    p->raise_epoch = view->epoch;
    p->was_member = true;
    data_raise(w, p);
}

static void process_install(struct world *w, struct process *p, const struct view *view)
{
    uint64_t load_ns = random_between(&w->work, 50 * SIM_US, 5 * SIM_MS);
    if (p->load_ns && !w->healed) {
        load_ns = p->load_ns;
        p->faulted |= load_ns > SIM_READY - SIM_GRACE;
        tally.faults[load_ns > SIM_READY ? SIM_LATE_LOAD : SIM_SLOW_LOAD]++;
    }
    p->load_ns = 0;
    p->installed_epoch = view->epoch;
    world_post(w, w->now_ns + load_ns,
               (struct sim_event){.type = EVENT_LOADED, .process = p->id, .epoch = view->epoch});
}

/* After its group has ended a process goes away soon, or much later; its kernels have returned either way. */
static void process_end(struct world *w, struct process *p, muster_status status)
{
    p->ended = true;
    p->live_epoch = UINT32_MAX;
    tally_stop(status);
    data_raise(w, p);
    world_post(w, w->now_ns + random_between(&w->os, SIM_MS, 50 * SIM_MS),
               (struct sim_event){.type = EVENT_EXIT, .process = p->id});
}

static void process_do(struct world *w, struct process *p, const struct member_action *a)
{
    struct sim_event request = {.rank = a->rank, .incarnation = a->incarnation, .revision = a->revision};
    switch (a->type) {
    case MEMBER_DO_PUT:
        request.type = EVENT_PUT;
        request.value = world_keep_record(w, member_record(&p->member));
        break;
    case MEMBER_DO_SWAP:
        request.type = EVENT_SWAP;
        request.value = world_keep_view(w, &a->view);
        break;
    case MEMBER_DO_READ: request.type = EVENT_READ; break;
    case MEMBER_DO_FENCE: request.type = EVENT_FENCE; break;
    case MEMBER_DO_LEFT: request.type = EVENT_LEAVE; break;
    case MEMBER_DO_RAISE: process_raise(w, p, &a->view); return;
    case MEMBER_DO_INSTALL: process_install(w, p, &a->view); return;
    case MEMBER_DO_BEGIN: data_begin(w, p); return;
    case MEMBER_DO_STOP: process_end(w, p, a->status); return;
    }
    store_request(w, p, request);
    if (a->type == MEMBER_DO_LEFT)
        process_end(w, p, MUSTER_ERR_LEFT);
}

static void process_act(struct world *w, struct process *p)
{
    for (int i = 0; i < w->actions.count && !w->failure; i++) {
        const struct member_action *a = &w->actions.item[i];
        if (fault_trap(w, p, (int)a->type, false))
            return;
        trace_event(w, p, "does", a->type, a->epoch);
        check_action(w, p, a);
        process_do(w, p, a);
        if (fault_trap(w, p, (int)a->type, true))
            return;
    }
}

void process_tell(struct world *w, struct process *p, struct member_event event)
{
    if (p->ended)
        return;
    event.now_ns = w->now_ns;
    event.paused_ns = p->paused_ns;
    p->paused_ns = 0;
    if (p->activity == ACTIVITY_WAITING)
        event.waiting = data_missing(w, p);
    member_step(&p->member, &event, &w->actions);
    process_act(w, p);
    uint64_t next_ns = member_next_ns(&p->member);
    if (next_ns == SIM_NEVER || next_ns == p->tick_ns)
        return;
    p->tick_ns = next_ns;
    world_post(w, (next_ns > w->now_ns ? next_ns : w->now_ns) + random_below(&w->os, 200 * SIM_US),
               (struct sim_event){.type = EVENT_TICK, .process = p->id, .revision = next_ns});
}

/* ---- Events ---- */

/* Kernels of the old epoch have returned, the joiners are mapped. */
static void process_quiesced(struct world *w, struct process *p, uint32_t epoch)
{
    if (p->raise_epoch != epoch)
        return;
    p->raise_epoch = 0;
    check_quiesced(w, p, epoch);
    process_tell(w, p, (struct member_event){.type = MEMBER_QUIESCED, .epoch = epoch});
}

/* Ready needs both: the weights are there, and the caller knows that its step was void. */
static void process_ready(struct world *w, struct process *p)
{
    if (p->loaded_epoch != p->installed_epoch || !p->verdict_read || p->loaded_epoch == 0)
        return;
    check_ready(w, p, p->installed_epoch);
    process_tell(w, p,
                 (struct member_event){.type = MEMBER_READY, .epoch = p->installed_epoch, .progress = p->progress});
}

static void process_loaded(struct world *w, struct process *p, uint32_t epoch)
{
    if (epoch != p->installed_epoch)
        return;
    p->loaded_epoch = epoch;
    process_ready(w, p);
}

static void process_verdict(struct world *w, struct process *p, uint32_t generation)
{
    if (p->generation != generation || p->verdict_read)
        return;
    p->verdict_read = true;
    p->activity = ACTIVITY_IDLE;
    process_ready(w, p);
}

/* Leaves once no kernel executes. */
static void process_leave(struct world *w, struct process *p)
{
    p->leaving = true;
    if (data_executes(p) || p->ended)
        return;
    p->unmapped = true;
    p->live_epoch = UINT32_MAX;
    process_tell(w, p, (struct member_event){.type = MEMBER_LEAVE});
}

static void process_swapped(struct world *w, struct process *p, const struct sim_event *event)
{
    process_tell(w, p,
                 (struct member_event){.type = MEMBER_SWAPPED,
                                       .ok = event->ok,
                                       .revision = event->revision,
                                       .view = event->value >= 0 ? &w->view[event->value] : NULL});
}

static void process_news(struct world *w, struct process *p, const struct sim_event *event)
{
    struct member_event news = {.rank = event->rank,
                                .incarnation = event->incarnation,
                                .ok = event->ok,
                                .revision = event->revision};
    switch (event->type) {
    case EVENT_WELCOME: news.type = MEMBER_START; break;
    case EVENT_PRESENCE: news.type = MEMBER_PRESENCE; break;
    case EVENT_FENCED: news.type = MEMBER_FENCED; break;
    case EVENT_LOST: news.type = MEMBER_LOST; break;
    case EVENT_VIEW:
        news.type = MEMBER_VIEW;
        news.view = &w->view[event->value];
        break;
    case EVENT_RECORD:
        news.type = MEMBER_RECORD;
        news.record = &w->record[event->value];
        break;
    default: return;
    }
    if (news.type == MEMBER_START)
        p->connected_ns = w->now_ns;
    process_tell(w, p, news);
}

static void process_tick(struct world *w, struct process *p, const struct sim_event *event)
{
    if (event->revision != p->tick_ns)
        return;
    p->tick_ns = SIM_NEVER;
    process_tell(w, p, (struct member_event){.type = MEMBER_TICK});
}

void process_handle(struct world *w, struct process *p, const struct sim_event *event)
{
    if (p->stopped) {
        process_keep(p, event);
        return;
    }
    if (event->type != EVENT_TICK || event->revision == p->tick_ns)
        trace_event(w, p, "event", event->type, event->revision + event->epoch + event->incarnation);
    switch (event->type) {
    case EVENT_EXIT: process_exit(w, p); break;
    case EVENT_TICK: process_tick(w, p, event); break;
    case EVENT_QUIESCED: process_quiesced(w, p, event->epoch); break;
    case EVENT_LOADED: process_loaded(w, p, event->epoch); break;
    case EVENT_VERDICT: process_verdict(w, p, event->generation); break;
    case EVENT_LEAVING: process_leave(w, p); break;
    case EVENT_SWAPPED: process_swapped(w, p, event); break;
    default:
        if (event->type < EVENT_TICK)
            process_news(w, p, event);
        else
            data_handle(w, p, event);
    }
}
