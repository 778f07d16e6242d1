// SPDX-License-Identifier: Apache-2.0
/*
 * The agent: the thread that drives member.c. It turns what the store and the caller's threads say into events, does
 * the actions that come back, and is the only one that changes mappings and the live epoch.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "control/group_state.h"
#include "control/wire.h"
#include "core/clock.h"
#include "core/descriptors.h"
#include "core/error.h"
#include "core/fault.h"
#include "core/log.h"
#include "core/thread.h"
#include "core/trace.h"

enum {
    AGENT_IDLE_NS = 50 * 1000 * 1000, /* the caller does not wake the agent for each operation it watches */
    AGENT_JUDGING_NS = 10 * 1000 * 1000, /* while a deadline of the members runs: a pause should not pass for a sleep */
    AGENT_PAUSE_NS = 50 * 1000 * 1000, /* who comes later than this did not wait for a core, but did not run */
    AGENT_MEMORY_AGAIN_NS = 50 * 1000 * 1000,
    AGENT_MEMORY_ROUNDS = 6, /* less than the others wait for an acknowledgement, or its reason would not be heard */
    AGENT_DEVICE_IDLE_NS = 500 * 1000,
    AGENT_DEVICE_BUSY_NS = 20 * 1000,
};

void agent_wake(muster_group *g)
{
    uint64_t one = 1;
    ssize_t ignored = write(g->wake_fd, &one, sizeof one); /* a full counter is awake already */
    (void)ignored;
}

/* X17, M27: nobody is judged by a time in which this process did not run. */
static void agent_note_pause(muster_group *g, uint64_t pause_ns, uint64_t now_ns)
{
    if (pause_ns <= AGENT_PAUSE_NS)
        return;
    log_line(LOG_LEVEL_INFO, "this process did not run for %llu ms", (unsigned long long)pause_ns / 1000000);
    bool is_long = pause_ns > atomic_load(&g->control.operation_timeout_ns) / 2;
    g->paused_ns = pause_ns > g->paused_ns ? pause_ns : g->paused_ns;
    if (is_long)
        watchdog_restart(&g->watchdog, now_ns);
    if (g->device || is_long)
        g->pause_end_ns = now_ns;
}

/*
 * Shortly after a pause a deadline that has passed proves nothing: those who are late did not run either, perhaps. Waits of
 * the host know of shorter ones themselves; on a busy machine there are many, and somebody must blame who hangs.
 */
static bool agent_was_paused(const muster_group *g)
{
    return g->pause_end_ns && clock_ns() - g->pause_end_ns < 2 * (uint64_t)AGENT_PAUSE_NS;
}

/* What the running kernel waits for; after a timeout, what it waited for: the defence of a rank that is accused. */
static muster_mask agent_waiting(muster_group *g)
{
    muster_mask waiting = {{atomic_load(&g->control.waiting_for[0]), atomic_load(&g->control.waiting_for[1])}};
    if (mask_empty(waiting) && g->overdue_epoch == atomic_load(&g->control.live_epoch))
        waiting = g->overdue;
    return waiting;
}

/* Whoever compares configurations waits for these. */
static void agent_note_expected(muster_group *g)
{
    muster_mask expected = member_expected(&g->member);
    bool founding = member_is_deserted(&g->member);
    if (mask_equal(expected, g->expected) && founding == g->founding) /* nobody else writes them */
        return;
    pthread_mutex_lock(&g->lock);
    g->expected = expected;
    g->founding = founding;
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->lock);
}

static void agent_act(muster_group *g, const struct member_action *action);

static void agent_event(muster_group *g, struct member_event event)
{
    if (g->stopped)
        return;
    event.now_ns = clock_ns();
    event.waiting = agent_waiting(g);
    event.paused_ns = g->paused_ns;
    g->paused_ns = 0;
    member_step(&g->member, &event, &g->actions);
    agent_note_expected(g);
    for (int i = 0; i < g->actions.count && !g->stopped; i++)
        agent_act(g, &g->actions.item[i]);
}

/* ---- Actions ---- */

static void agent_put_record(muster_group *g)
{
    unsigned char value[STORE_MAX_VALUE];
    char key[STORE_MAX_KEY];
    size_t bytes = wire_put_record(member_record(&g->member), value);
    snprintf(key, sizeof key, "member/%d", g->config.rank);
    g->store->ops->put(g->store, key, value, bytes);
}

static void agent_swap(muster_group *g, const struct member_action *action)
{
    unsigned char value[STORE_MAX_VALUE];
    size_t bytes = wire_put_view(&action->view, g->config.ranks, value);
    g->swap_view = action->view;
    g->swap_id = g->store->ops->swap(g->store, "view", action->revision, value, bytes);
    bool commit = action->view.phase == VIEW_COMMITTED;
    trace_add(commit ? TRACE_COMMITTED : TRACE_PROPOSED, clock_ns(), 0, action->view.epoch);
    fault_here(commit ? FAULT_VIEW_COMMITTING : FAULT_VIEW_PROPOSED);
}

static bool agent_mapped(const muster_group *g, int rank, uint32_t incarnation)
{
    return rank == g->config.rank || g->mapping[rank].incarnation == incarnation ||
           g->prepared[rank].incarnation == incarnation;
}

static void agent_ask_memory(muster_group *g)
{
    const struct view *view = &g->raising;
    for (int r = mask_next(view->mask, 0); r >= 0; r = mask_next(view->mask, r + 1))
        if (!agent_mapped(g, r, view->incarnation[r]))
            g->store->ops->ask_memory(g->store, r, view->incarnation[r]);
}

static void agent_raise(muster_group *g, const struct view *view)
{
    g->opening = 0;
    g->unmapped = MUSTER_OK; /* it is asked for again */
    atomic_store(&g->begun, 0);
    atomic_store(&g->control.live_epoch, view->epoch); /* running kernels return */
    if (g->device)
        g->device_ops->epoch_raise(g->device, view->epoch);
    trace_add(TRACE_RAISED, clock_ns(), 0, view->epoch);
    fault_here(FAULT_VIEW_RAISED);
    pthread_mutex_lock(&g->lock);
    g->view.ready = 0;
    pthread_mutex_unlock(&g->lock);
    g->raising = *view;
    g->memory_again_ns = 0;
    g->memory_rounds = 0;
    agent_ask_memory(g);
}

static void agent_unmap(muster_group *g, struct group_mapping *mapping)
{
    if (mapping->incarnation)
        group_memory_unmap(g, mapping->base);
    *mapping = (struct group_mapping){0};
}

static void agent_unmap_peers(muster_group *g)
{
    for (int r = 0; r < g->config.ranks; r++) {
        agent_unmap(g, &g->prepared[r]);
        if (r != g->config.rank)
            agent_unmap(g, &g->mapping[r]);
    }
}

/*
 * Nothing of the old epoch executes and nothing of the new one has begun, so mappings may change here: newcomers come
 * in, ranks that are out (each of them fenced) go.
 */
static void agent_install_mappings(muster_group *g, const struct view *view)
{
    for (int r = 0; r < g->config.ranks; r++) {
        if (r == g->config.rank)
            continue;
        bool in = mask_has(view->mask, r);
        if (!in || g->mapping[r].incarnation != view->incarnation[r])
            agent_unmap(g, &g->mapping[r]);
        if (in && g->prepared[r].incarnation == view->incarnation[r]) {
            g->mapping[r] = g->prepared[r];
            g->prepared[r] = (struct group_mapping){0};
        }
        agent_unmap(g, &g->prepared[r]);
    }
}

static void agent_publish_view(muster_group *g, const struct view *view)
{
    muster_view shown = {.epoch = view->epoch,
                         .ranks = g->config.ranks,
                         .active = mask_count(view->mask),
                         .mask = view->mask};
    pthread_mutex_lock(&g->lock);
    memcpy(shown.incarnation, g->view.incarnation, sizeof shown.incarnation);
    for (int r = mask_next(view->mask, 0); r >= 0; r = mask_next(view->mask, r + 1))
        shown.incarnation[r] = view->incarnation[r];
    g->view = shown;
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->lock);
    if (g->config.on_view)
        g->config.on_view(g->config.context, &shown);
}

static void agent_install_on_device(muster_group *g, const struct view *view)
{
    unsigned char *peers[MUSTER_MAX_RANKS];
    for (int r = 0; r < g->config.ranks; r++)
        peers[r] = mask_has(view->mask, r) ? g->mapping[r].base : NULL;
    g->device_ops->view_install(g->device, &(struct device_view){view->epoch, view->mask, peers});
}

static void agent_install(muster_group *g, const struct view *view)
{
    agent_install_mappings(g, view);
    if (g->device)
        agent_install_on_device(g, view);
    g->begun_mask = view->mask;
    trace_add(TRACE_COMMITTED, clock_ns(), 0, view->epoch);
    fault_here(FAULT_VIEW_INSTALLED);
    log_line(LOG_LEVEL_INFO, "view %u: %d of %d ranks", view->epoch, mask_count(view->mask), g->config.ranks);
    agent_publish_view(g, view);
}

/* From here on the caller's steps may begin. */
static void agent_begun(muster_group *g, uint32_t epoch)
{
    trace_add(TRACE_BEGUN, clock_ns(), 0, epoch);
    fault_here(FAULT_VIEW_BEGUN); /* before the caller knows: who is stopped here does no step of this view */
    atomic_store(&g->progress_counted, g->progress_least); /* what others have to run again is run again here as well */
    if (g->device)
        g->device_steps = g->device_ops->good_steps(g->device);
    g->opening = 0;
    atomic_store(&g->begun, epoch);
    pthread_mutex_lock(&g->lock);
    g->view.progress_least = g->progress_least;
    g->view.progress_most = g->progress_most;
    g->view.ready = 1;
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->lock);
}

static void agent_begin(muster_group *g, uint32_t epoch)
{
    member_progress(&g->member, &g->progress_least, &g->progress_most);
    if (!g->device) {
        agent_begun(g, epoch);
        return;
    }
    g->device_ops->epoch_begin(g->device, epoch);
    g->opening = epoch;
}

/* A device opens the epoch when it comes to it. */
static void agent_check_open(muster_group *g)
{
    if (g->opening && g->device_ops->epoch_open(g->device, g->opening))
        agent_begun(g, g->opening);
}

static void agent_stop(muster_group *g, const struct member_action *action)
{
    char ranks[256], text[512];
    mask_text(action->mask, ranks, sizeof ranks);
    const char *what = muster_status_text(action->status);
    if (action->status == MUSTER_ERR_TIMEOUT && mask_has(action->mask, g->config.rank))
        snprintf(text, sizeof text, "the members of epoch %u did not take rank %d in before the start timeout",
                 action->epoch, g->config.rank);
    else if (action->status == MUSTER_ERR_TIMEOUT)
        snprintf(text, sizeof text, "these ranks did not arrive before the start timeout: %s", ranks);
    else if (action->status == MUSTER_ERR_UNFENCED)
        snprintf(text, sizeof text, "these ranks were killed but did not exit in time: %s; %s", ranks, what);
    else if (action->status == MUSTER_ERR_CAPACITY)
        snprintf(text, sizeof text, "%s: min_ranks is %d", what, g->config.min_ranks);
    else
        snprintf(text, sizeof text, "%s (epoch %u)", what, action->epoch);
    group_stop(g, action->status, text);
}

/* M20: nothing of this rank's executes any more, and its peers are unmapped. */
static void agent_depart(muster_group *g)
{
    g->departed = true;
    g->store->ops->leave(g->store);
}

static void agent_act(muster_group *g, const struct member_action *action)
{
    switch (action->type) {
    case MEMBER_DO_PUT: agent_put_record(g); break;
    case MEMBER_DO_SWAP: agent_swap(g, action); break;
    case MEMBER_DO_READ: g->store->ops->watch_again(g->store); break;
    case MEMBER_DO_RAISE: agent_raise(g, &action->view); break;
    case MEMBER_DO_INSTALL: agent_install(g, &action->view); break;
    case MEMBER_DO_BEGIN: agent_begin(g, action->epoch); break;
    case MEMBER_DO_FENCE:
        trace_add(TRACE_SUSPECTED, clock_ns(), 0, (uint64_t)action->rank);
        g->store->ops->fence(g->store, action->rank, action->incarnation);
        break;
    case MEMBER_DO_STOP: agent_stop(g, action); break;
    case MEMBER_DO_LEFT:
        agent_depart(g);
        group_stop(g, MUSTER_ERR_LEFT, "this rank has left");
        break;
    }
}

/* ---- What the store says ---- */

static void agent_view_event(muster_group *g, enum member_event_type type, bool ok, const struct store_event *e)
{
    struct view view;
    if (wire_get_view(e->value, e->value_bytes, g->config.ranks, &view) != 0) {
        log_line(LOG_LEVEL_ERROR, "the store's view (%zu bytes) is malformed and ignored", e->value_bytes);
        return;
    }
    agent_event(g, (struct member_event){.type = type, .ok = ok, .view = &view, .revision = e->revision});
}

/* The store deletes what a process said when it has exited; what follows from its end may not wait for that. */
static void agent_forget_rank(muster_group *g, int rank)
{
    pthread_mutex_lock(&g->lock);
    group_drop_rank(g, rank);
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->lock);
}

static void agent_presence(muster_group *g, int rank, const struct store_event *e)
{
    struct presence presence = {.incarnation = g->presence[rank]};
    if (!e->gone && wire_get_presence(e->value, e->value_bytes, &presence) != 0)
        return;
    g->presence[rank] = presence.incarnation;
    if (e->gone) {
        trace_add(TRACE_DEATH, clock_ns(), 0, (uint64_t)rank);
        agent_forget_rank(g, rank);
    }
    agent_event(g, (struct member_event){
                       .type = MEMBER_PRESENCE, .rank = rank, .incarnation = presence.incarnation, .ok = !e->gone});
}

static void agent_fenced(muster_group *g, int rank, const struct store_event *e)
{
    uint32_t incarnation;
    if (e->gone || wire_get_fenced(e->value, e->value_bytes, &incarnation) != 0)
        return;
    agent_event(g, (struct member_event){.type = MEMBER_FENCED, .rank = rank, .incarnation = incarnation});
}

static void agent_record(muster_group *g, int rank, const struct store_event *e)
{
    struct record record;
    if (e->gone || wire_get_record(e->value, e->value_bytes, &record) != 0)
        return;
    if (record.state == RECORD_LEFT)
        agent_forget_rank(g, rank);
    agent_event(g, (struct member_event){.type = MEMBER_RECORD, .rank = rank, .record = &record});
}

/* What a rank says of its configuration, for group_compare.c. */
static void agent_config(muster_group *g, const struct store_event *e)
{
    char object[24];
    int rank;
    if (sscanf(e->key, "config/%23[^/]/%d", object, &rank) != 2 || rank < 0 || rank >= g->config.ranks)
        return;
    pthread_mutex_lock(&g->lock);
    if (e->gone)
        group_drop_fields(g, object, rank);
    else
        group_take_fields(g, object, rank, e->value, e->value_bytes);
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->lock);
}

static void agent_change(muster_group *g, const struct store_event *e)
{
    int rank = -1;
    const char *slash = strchr(e->key, '/');
    if (strncmp(e->key, "config/", 7) == 0) {
        agent_config(g, e);
        return;
    }
    if (slash)
        rank = atoi(slash + 1);
    if (rank >= g->config.ranks)
        return;
    if (strcmp(e->key, "view") == 0 && !e->gone)
        agent_view_event(g, MEMBER_VIEW, true, e);
    else if (strncmp(e->key, "member/", 7) == 0)
        agent_record(g, rank, e);
    else if (strncmp(e->key, "presence/", 9) == 0)
        agent_presence(g, rank, e);
    else if (strncmp(e->key, "fenced/", 7) == 0)
        agent_fenced(g, rank, e);
}

static void agent_reply(muster_group *g, const struct store_event *e)
{
    if (e->status != MUSTER_OK && e->status != MUSTER_ERR_AGAIN)
        log_line(LOG_LEVEL_ERROR, "the store refused a request for \"%s\": %s", e->key, muster_status_name(e->status));
    if (e->id != g->swap_id)
        return;
    g->swap_id = 0;
    if (e->status == MUSTER_OK)
        agent_event(g, (struct member_event){
                           .type = MEMBER_SWAPPED, .ok = true, .view = &g->swap_view, .revision = e->revision});
    else if (e->value_bytes)
        agent_view_event(g, MEMBER_SWAPPED, false, e);
    else
        g->store->ops->watch_again(g->store);
}

static void agent_map(muster_group *g, int rank, const struct store_event *e)
{
    unsigned char *base;
    muster_status status = group_memory_map(g, e->fd, &base);
    if (status == MUSTER_OK) {
        agent_unmap(g, &g->prepared[rank]);
        g->prepared[rank] = (struct group_mapping){.incarnation = e->incarnation, .base = base};
        return;
    }
    g->unmapped = status;
    snprintf(g->unmapped_text, sizeof g->unmapped_text, "memory of rank %d: %s", rank, muster_last_error());
}

/* Asked for again; then the group ends here and says why, since the others wait for this rank. */
static void agent_memory_was_cut(muster_group *g, int rank)
{
    if (g->memory_rounds == AGENT_MEMORY_ROUNDS) {
        g->unmapped = MUSTER_ERR_SYSTEM;
        snprintf(g->unmapped_text, sizeof g->unmapped_text,
                 "memory of rank %d: no descriptor is left for it; at most %llu files may be open (ulimit -n)", rank,
                 (unsigned long long)descriptors_limit());
        return;
    }
    if (!g->memory_again_ns && g->memory_rounds == 0)
        log_line(LOG_LEVEL_WARN, "no descriptor is left for the memory of rank %d; it is asked for again", rank);
    g->memory_again_ns = clock_ns() + AGENT_MEMORY_AGAIN_NS;
}

static void agent_check_memory(muster_group *g)
{
    if (g->stopped || !g->memory_again_ns || clock_ns() < g->memory_again_ns)
        return;
    g->memory_again_ns = 0;
    g->memory_rounds++;
    agent_ask_memory(g);
}

/* A newcomer's memory; one that came for a view that is no longer being prepared is dropped. */
static void agent_memory(muster_group *g, const struct store_event *e)
{
    int r = e->rank;
    bool wanted = mask_has(g->raising.mask, r) && g->raising.incarnation[r] == e->incarnation &&
                  !agent_mapped(g, r, e->incarnation);
    if (wanted && e->fd >= 0)
        agent_map(g, r, e);
    else if (wanted && e->status != MUSTER_OK)
        agent_memory_was_cut(g, r);
    if (e->fd >= 0)
        close(e->fd);
}

/* False when there is nothing more for now. */
static bool agent_take_store_event(muster_group *g)
{
    struct store_event e;
    g->store->ops->poll(g->store, clock_ns(), &e);
    switch (e.type) {
    case STORE_NOTHING: return false;
    case STORE_REPLY: agent_reply(g, &e); return true;
    case STORE_CHANGE: agent_change(g, &e); return true;
    case STORE_MEMORY: agent_memory(g, &e); return true;
    case STORE_LOST: agent_event(g, (struct member_event){.type = MEMBER_LOST}); return false;
    }
    return false;
}

/* ---- What the caller says ---- */

/* A device is called back first: what the caller has enqueued there may still be at work in peers' memory. */
static void agent_begin_to_leave(muster_group *g)
{
    g->leaving = true;
    atomic_store(&g->begun, 0);
    if (g->device)
        g->device_ops->epoch_raise(g->device, STAMP_MAX_EPOCH + 1);
}

/* Nothing executes: the caller's thread is inside leave(), and a device is quiet. */
static void agent_check_leaving(muster_group *g)
{
    if (!g->leaving || (g->device && !g->device_ops->epoch_quiet(g->device, STAMP_MAX_EPOCH + 1)))
        return;
    g->leaving = false;
    agent_unmap_peers(g);
    agent_event(g, (struct member_event){.type = MEMBER_LEAVE});
}

/* After a pause nobody is to blame; the operation has failed all the same. A device's kernels run on while we do not. */
static void agent_report_overdue(muster_group *g, uint32_t epoch, muster_mask overdue)
{
    g->overdue_epoch = epoch;
    g->overdue = overdue;
    bool blames = !agent_was_paused(g);
    agent_event(g, (struct member_event){.type = blames ? MEMBER_OVERDUE : MEMBER_FAILED,
                                         .epoch = epoch,
                                         .mask = overdue});
}

static void agent_put(muster_group *g, struct group_put *put)
{
    for (struct group_put *next; put; put = next) {
        next = put->next;
        if (put->remove)
            g->store->ops->remove(g->store, put->key);
        else
            g->store->ops->put(g->store, put->key, put->value, strlen(put->value));
        free(put);
    }
}

/* Returns false when the agent is to end. */
static bool agent_take_mail(muster_group *g)
{
    pthread_mutex_lock(&g->lock);
    struct group_mail mail = g->mail;
    g->mail = (struct group_mail){0};
    pthread_mutex_unlock(&g->lock);

    agent_put(g, mail.puts);
    if (mail.start)
        agent_event(g, (struct member_event){.type = MEMBER_START});
    if (mail.overdue_epoch)
        agent_report_overdue(g, mail.overdue_epoch, mail.overdue);
    if (mail.failed_epoch)
        agent_event(g, (struct member_event){.type = MEMBER_FAILED, .epoch = mail.failed_epoch});
    if (mail.leave)
        agent_begin_to_leave(g);
    return !mail.quit;
}

/* M rules on acknowledging: not while a kernel of the old epoch executes, not before every newcomer is mapped. */
static void agent_check_quiesced(muster_group *g)
{
    const struct view *view = &g->raising;
    if (g->stopped || view->epoch == 0 || atomic_load(&g->executing))
        return;
    if (g->device && !g->device_ops->epoch_quiet(g->device, view->epoch))
        return;
    if (g->unmapped != MUSTER_OK) { /* the others go on without this rank, and need not wait for a deadline to do so */
        g->raising = (struct view){0};
        agent_unmap_peers(g);
        agent_depart(g);
        group_stop(g, g->unmapped, g->unmapped_text);
        return;
    }
    for (int r = mask_next(view->mask, 0); r >= 0; r = mask_next(view->mask, r + 1))
        if (!agent_mapped(g, r, view->incarnation[r]))
            return;
    uint32_t epoch = view->epoch;
    g->raising = (struct view){0};
    trace_add(TRACE_ACKNOWLEDGED, clock_ns(), 0, epoch);
    agent_event(g, (struct member_event){.type = MEMBER_QUIESCED, .epoch = epoch});
    fault_here(FAULT_VIEW_ACKNOWLEDGED);
}

/* A device's steps end when it comes to them; those of older epochs must have, and have been read if they were void. */
static bool agent_device_is_behind(muster_group *g, uint32_t epoch)
{
    struct device_report report;
    if (!g->device)
        return false;
    g->device_ops->report(g->device, &report);
    return report.failure || report.unread || (report.step_open && report.step_epoch != epoch);
}

/* A failure that the device has recorded, once: what step_report() is for steps that run on the caller's thread. */
static void agent_take_device_failure(muster_group *g, const struct device_report *report)
{
    if (report->failure == g->device_failure)
        return;
    g->device_failure = report->failure;
    muster_reason reason = failure_reason(report->failure);
    uint32_t epoch = failure_epoch(report->failure);
    if (reason == MUSTER_REASON_NONE || reason == MUSTER_REASON_EPOCH || reason == MUSTER_REASON_NOT_READY)
        return;
    group_epoch_failed(g, epoch);
    if (reason != MUSTER_REASON_TIMEOUT) {
        agent_event(g, (struct member_event){.type = MEMBER_FAILED, .epoch = epoch});
        return;
    }
    agent_report_overdue(g, epoch, report->overdue);
}

/* X13, once for each epoch: what group_epoch_used_up() is for steps that run on the caller's thread. */
static void agent_take_device_numbers(muster_group *g, const struct device_report *report)
{
    if (report->used_up_epoch == g->device_used_up)
        return;
    g->device_used_up = report->used_up_epoch;
    agent_event(g, (struct member_event){.type = MEMBER_FAILED, .epoch = report->used_up_epoch});
}

static void agent_look_at_device(muster_group *g)
{
    struct device_report report;
    if (!g->device)
        return;
    g->device_ops->report(g->device, &report);
    (void)g->device_ops->good_steps(g->device); /* while the verdicts are there to be counted */
    agent_take_device_failure(g, &report);
    agent_take_device_numbers(g, &report);
}

/* M32: how far this rank's caller has come; a device counts the steps itself. */
static uint64_t agent_progress(muster_group *g)
{
    uint64_t said = atomic_load(&g->progress_said), counted = atomic_load(&g->progress_counted);
    if (said != MEMBER_NO_PROGRESS)
        return said;
    bool device_counts = g->device && counted != MEMBER_NO_PROGRESS;
    return device_counts ? counted + g->device_ops->good_steps(g->device) - g->device_steps : counted;
}

/*
 * Ready: no step of an older epoch is open, every void verdict has been read, and a caller that loads weights has said
 * that it has them.
 */
static void agent_check_ready(muster_group *g)
{
    uint32_t epoch = member_installed(&g->member)->epoch;
    if (epoch == 0 || g->ready_sent == epoch || g->raising.epoch || atomic_load(&g->control.live_epoch) != epoch)
        return;
    if (atomic_load(&g->step_open) || atomic_load(&g->unread_void) || agent_device_is_behind(g, epoch))
        return;
    if (g->config.manual_ready && atomic_load(&g->ready_called) != epoch)
        return;
    g->ready_sent = epoch;
    trace_add(TRACE_READY, clock_ns(), 0, epoch);
    agent_event(g, (struct member_event){.type = MEMBER_READY, .epoch = epoch, .progress = agent_progress(g)});
    fault_here(FAULT_VIEW_READY);
}

static uint64_t agent_watch(muster_group *g)
{
    muster_wait_report report;
    uint64_t next_ns;
    pthread_mutex_lock(&g->lock);
    bool overdue = watchdog_poll(&g->watchdog, clock_ns(), atomic_load(&g->control.operation_timeout_ns),
                                 atomic_load(&g->control.live_epoch), &report, &next_ns);
    pthread_mutex_unlock(&g->lock);
    if (!overdue)
        return next_ns;
    report.waiting_for = agent_waiting(g);
    char ranks[256];
    mask_text(report.missing, ranks, sizeof ranks);
    log_line(LOG_LEVEL_WARN, "%s phase %d overdue after %llu ms: no flag from rank %s", report.operation,
             (int)report.phase, (unsigned long long)report.elapsed_us / 1000, ranks);
    if (g->config.on_wait)
        g->config.on_wait(g->config.context, &report);
    return clock_ns();
}

/* ---- The thread ---- */

/* A device cannot wake the agent: it is looked at often, and more so while something of it is waited for. */
static uint64_t agent_idle_ns(const muster_group *g)
{
    if (!g->device)
        return !g->stopped && member_next_ns(&g->member) != UINT64_MAX ? AGENT_JUDGING_NS : AGENT_IDLE_NS;
    return g->raising.epoch || g->opening || g->leaving ? AGENT_DEVICE_BUSY_NS : AGENT_DEVICE_IDLE_NS;
}

static void agent_sleep(muster_group *g, uint64_t watch_ns)
{
    uint64_t now_ns = clock_ns();
    agent_note_pause(g, now_ns - g->ran_ns, now_ns);
    uint64_t wake_ns = now_ns + agent_idle_ns(g);
    uint64_t store_ns = g->stopped ? UINT64_MAX : g->store->ops->next_ns(g->store);
    uint64_t member_ns = g->stopped ? UINT64_MAX : member_next_ns(&g->member);
    wake_ns = watch_ns < wake_ns ? watch_ns : wake_ns;
    wake_ns = store_ns < wake_ns ? store_ns : wake_ns;
    wake_ns = member_ns < wake_ns ? member_ns : wake_ns;
    uint64_t sleep_ns = wake_ns > now_ns ? wake_ns - now_ns : 0;
    struct timespec timeout = clock_timespec(sleep_ns);
    struct pollfd fds[2] = {{.fd = g->deaf ? -1 : g->wake_fd, .events = POLLIN},
                            {.fd = g->stopped ? -1 : g->store->ops->fd(g->store), .events = POLLIN}};
    ppoll(fds, 2, &timeout, NULL);
    g->ran_ns = clock_ns();
    agent_note_pause(g, g->ran_ns - now_ns > sleep_ns ? g->ran_ns - now_ns - sleep_ns : 0, g->ran_ns);
    uint64_t count;
    if (fds[0].revents & POLLNVAL)
        g->deaf = true; /* the program has closed it; without this the agent would not sleep any more */
    if (fds[0].revents & POLLIN) {
        ssize_t ignored = read(g->wake_fd, &count, sizeof count);
        (void)ignored;
    }
}

static void *agent_main(void *argument)
{
    muster_group *g = argument;
    uint64_t watch_ns = 0;
    bool more;
    g->ran_ns = clock_ns();
    do {
        agent_sleep(g, watch_ns);
        while (!g->stopped && agent_take_store_event(g)) {
        }
        if (!g->stopped && member_next_ns(&g->member) <= clock_ns())
            agent_event(g, (struct member_event){.type = MEMBER_TICK});
        agent_look_at_device(g);
        agent_check_memory(g);
        agent_check_quiesced(g);
        agent_check_ready(g);
        agent_check_open(g);
        watch_ns = agent_watch(g);
        more = agent_take_mail(g);
        agent_check_leaving(g);
    } while (more);
    return NULL;
}

/* Signals are the program's business: they must not land on this thread. */
muster_status agent_start(muster_group *g)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    muster_status status = thread_start(&g->thread, agent_main, g, "the agent's thread");
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return status;
}
