// SPDX-License-Identifier: Apache-2.0
/*
 * Steps on the caller's thread: the step's own copy of the view, the void word, and the verdicts. The agent never
 * touches a step; the two meet in `executing` and the live epoch.
 */
#include <string.h>
#include <unistd.h>

#include "control/group_state.h"
#include "core/clock.h"
#include "core/error.h"
#include "core/fault.h"
#include "core/trace.h"
#include "kernels/cpu/memory.h"

/* Nobody has ended the epoch; as far as this rank has heard. */
static bool step_lives(muster_group *g, uint32_t epoch)
{
    return atomic_load(&g->control.live_epoch) == epoch && atomic_load(&g->begun) == epoch;
}

/*
 * The caller stores `executing` and then loads the live epoch; the agent stores the live epoch and then loads
 * `executing`. Both sides are sequentially consistent, so at least one sees the other: either the kernel does not
 * start, or the agent waits for its end before it acknowledges the new epoch (M rules on acknowledging).
 */
static bool step_execute_begin(muster_group *g, uint32_t epoch)
{
    atomic_store(&g->executing, true);
    if (step_lives(g, epoch))
        return true;
    atomic_store(&g->executing, false);
    agent_wake(g); /* it may have looked in between */
    return false;
}

static void step_execute_end(muster_group *g, uint32_t epoch)
{
    atomic_store(&g->executing, false);
    if (atomic_load(&g->control.live_epoch) != epoch)
        agent_wake(g);
}

const struct kernel_step *group_step(const muster_group *g)
{
    return g->step.open ? &g->step.kernel : NULL;
}

/*
 * Tells every peer that this rank has begun (or ended) its step. Release: what the step stored before is visible to
 * whoever sees the word, so a peer that sees "ended" and then still misses a flag knows that it will never come.
 */
static void step_publish(const struct kernel_step *step, uint64_t half)
{
    uint64_t stamp = stamp_make(step->epoch, 2 * step->number + half);
    for (int r = mask_next(step->mask, 0); r >= 0; r = mask_next(step->mask, r + 1)) {
        struct region_header *header = (struct region_header *)(void *)step->peers[r];
        flag_raise(&header->step_word[step->rank].word, stamp);
    }
}

/* X13, for steps: each takes two sequence numbers, and so may run short of them before any exchange does. */
static bool step_take_number(muster_group *g, uint32_t epoch)
{
    struct group_step_state *s = &g->step;
    if (s->last_epoch != epoch)
        s->next_number = group_first_sequence(g) / 2;
    s->last_epoch = epoch;
    s->kernel.epoch = epoch;
    if (2 * s->next_number + 2 > STAMP_MAX_SEQUENCE - STAMP_SEQUENCE_RESERVE)
        group_epoch_used_up(g);
    if (2 * s->next_number + 2 > STAMP_MAX_SEQUENCE)
        return false;
    s->kernel.number = s->next_number++;
    return true;
}

/* Takes the installed view into the step. False: the epoch has not begun, has ended meanwhile, or is used up. */
static bool step_take_view(muster_group *g, uint32_t epoch)
{
    struct group_step_state *s = &g->step;
    if (!step_execute_begin(g, epoch))
        return false;
    /* While executing the agent installs nothing, so mappings and mask hold still. */
    bool taken = step_take_number(g, epoch);
    s->kernel.mask = g->begun_mask;
    for (int r = 0; r < g->config.ranks; r++)
        s->peers[r] = g->mapping[r].base;
    if (taken)
        step_publish(&s->kernel, 1);
    step_execute_end(g, epoch);
    return taken;
}

bool step_peers_have_ended(const muster_group *g)
{
    const struct kernel_step *last = &g->step.ended;
    const struct region_header *header = (const struct region_header *)(const void *)g->region.base;
    uint64_t ended = stamp_make(last->epoch, 2 * last->number + 2);
    for (int r = mask_next(last->mask, 0); r >= 0; r = mask_next(last->mask, r + 1))
        if (flag_read(&header->step_word[r].word) < ended)
            return false;
    return true;
}

static void step_open_void(muster_group *g, muster_reason reason)
{
    struct kernel_step *step = &g->step.kernel;
    step->epoch = 0;
    step->mask = (muster_mask){{0, 0}};
    memset(g->step.peers, 0, sizeof g->step.peers);
    failure_record(&g->control, failure_pack(reason, MUSTER_PHASE_STEP, -1, atomic_load(&g->control.live_epoch)));
}

void step_open(muster_group *g)
{
    g->step.open = true;
    g->step.total++;
    g->step.failed = MUSTER_REASON_NONE;
}

static void step_start(muster_group *g)
{
    uint32_t epoch = atomic_load(&g->begun);
    if (atomic_load(&g->unread_void))
        step_open_void(g, MUSTER_REASON_UNREAD);
    else if (epoch == 0 || !step_take_view(g, epoch))
        step_open_void(g, MUSTER_REASON_NOT_READY);
}

muster_status muster_step_begin(muster_group *g, void *stream)
{
    muster_status status = group_check(g);
    if (status != MUSTER_OK)
        return status;
    if (g->device)
        return step_device_begin(g, stream);
    if (stream)
        return error_set(MUSTER_ERR_ARGUMENT, "stream: must be NULL on the CPU backend");
    if (g->step.open)
        return error_set(MUSTER_ERR_ORDER, "muster_step_begin: step %llu is still open; end it first",
                         (unsigned long long)g->step.total);
    if (g->verdict_count == GROUP_VERDICTS)
        return error_set(MUSTER_ERR_ORDER, "muster_step_begin: %d verdicts wait; read them with muster_step_verdict",
                         GROUP_VERDICTS);
    atomic_store(&g->control.failure, 0);
    atomic_store(&g->control.failure_detail, 0);
    step_open(g);
    g->step.begun_ns = clock_ns();
    atomic_store(&g->step_open, true);
    step_start(g);
    atomic_store(&g->step_epoch, g->step.kernel.epoch);
    fault_here(FAULT_STEP_BEGUN);
    return MUSTER_OK;
}

muster_status step_failure_status(uint64_t failure)
{
    switch (failure_reason(failure)) {
    case MUSTER_REASON_NONE: return MUSTER_OK;
    case MUSTER_REASON_TIMEOUT: return MUSTER_ERR_TIMEOUT;
    case MUSTER_REASON_EPOCH:
    case MUSTER_REASON_REFUSED:
    case MUSTER_REASON_LEFT_OUT: return MUSTER_ERR_PEER;
    case MUSTER_REASON_VALUE:
    case MUSTER_REASON_ARGUMENT: return MUSTER_ERR_ARGUMENT;
    default: return MUSTER_ERR_VOID;
    }
}

static void step_queue_verdict(muster_group *g, uint64_t failure)
{
    const struct kernel_step *step = &g->step.kernel;
    uint64_t detail = atomic_load(&g->control.failure_detail);
    bool entry = failure_names_entry(failure);
    muster_verdict *v = &g->verdict[(g->verdict_first + g->verdict_count++) % GROUP_VERDICTS];
    *v = (muster_verdict){
        .step = g->step.total,
        .status = step_failure_status(failure),
        .reason = failure_reason(failure),
        .phase = failure_phase(failure),
        .peer = failure ? failure_peer(failure) : -1,
        .epoch = step->epoch ? step->epoch : failure_epoch(failure),
        .mask = step->mask,
        .token = entry ? (int32_t)(detail >> 32) : -1,
        .k = entry ? (int32_t)(uint32_t)detail : -1,
    };
    if (failure)
        atomic_fetch_add(&g->unread_void, 1);
}

/*
 * A step whose operations have all succeeded is exact for its mask, whatever has become of the epoch since. Unless this rank
 * itself has ended it, or the group has ended for this rank.
 */
static uint64_t step_outcome(muster_group *g, uint32_t epoch)
{
    if (epoch && atomic_load(&g->aborted_epoch) == epoch)
        failure_record(&g->control, failure_pack(MUSTER_REASON_ABORT, MUSTER_PHASE_STEP, -1, epoch));
    else if (epoch && atomic_load(&g->sticky))
        failure_record(&g->control, failure_pack(MUSTER_REASON_EPOCH, MUSTER_PHASE_STEP, -1, epoch));
    return atomic_load(&g->control.failure);
}

bool step_busy(muster_group *g)
{
    bool busy = false;
    pthread_mutex_lock(&g->lock);
    for (const struct group_child *c = g->children; c; c = c->next)
        busy = busy || (c->busy && c->busy(c));
    pthread_mutex_unlock(&g->lock);
    return busy;
}

muster_status muster_step_end(muster_group *g, void *stream)
{
    if (group_is_forked(g))
        return group_check(g);
    if (g->device)
        return step_device_end(g, stream);
    if (stream)
        return error_set(MUSTER_ERR_ARGUMENT, "stream: must be NULL on the CPU backend");
    if (!g->step.open)
        return error_set(MUSTER_ERR_ORDER, "muster_step_end: no step is open");
    uint32_t epoch = g->step.kernel.epoch;
    uint64_t failure = step_outcome(g, epoch);
    if (!failure && step_busy(g)) {
        if (step_lives(g, epoch))
            return error_set(MUSTER_ERR_ORDER, "muster_step_end: an exchange is half done; call its combine first");
        failure_record(&g->control, failure_pack(MUSTER_REASON_EPOCH, MUSTER_PHASE_STEP, -1, epoch));
        failure = atomic_load(&g->control.failure);
    }
    if (epoch && step_execute_begin(g, epoch)) {
        step_publish(&g->step.kernel, 2);
        step_execute_end(g, epoch);
        g->step.ended = g->step.kernel;
    }
    group_count_step(g, failure == 0);
    step_queue_verdict(g, failure);
    g->step.open = false;
    atomic_store(&g->step_epoch, 0); /* before the next epoch can begin: an abort must not take this one for it */
    atomic_store(&g->step_open, false);
    trace_add(failure ? TRACE_VOID : TRACE_STEP, g->step.begun_ns, clock_ns() - g->step.begun_ns, g->step.total);
    if (atomic_load(&g->begun) == 0)
        agent_wake(g); /* it may be waiting for this step's end */
    fault_here(FAULT_STEP_ENDED);
    return MUSTER_OK;
}

muster_status muster_step_verdict(muster_group *g, muster_verdict *verdict)
{
    if (group_is_forked(g))
        return group_check(g);
    if (!verdict)
        return error_set(MUSTER_ERR_ARGUMENT, "verdict: must not be NULL");
    if (g->device)
        return step_device_verdict(g, verdict);
    if (g->verdict_count == 0)
        return error_set(MUSTER_ERR_AGAIN, "no verdict is queued: end a step first");
    *verdict = g->verdict[g->verdict_first];
    g->verdict_first = (g->verdict_first + 1) % GROUP_VERDICTS;
    g->verdict_count--;
    if (verdict->status != MUSTER_OK && atomic_fetch_sub(&g->unread_void, 1) == 1)
        agent_wake(g); /* ready for the next epoch may hang on it */
    return MUSTER_OK;
}

static const char *step_phase_name(muster_phase phase)
{
    static const char *const names[] = {"an operation", "dispatch", "combine", "step"};
    return names[phase];
}

/* Words the step's failure for the caller of the operation that met it. */
static muster_status step_explain(uint64_t failure)
{
    const char *phase = step_phase_name(failure_phase(failure));
    int peer = failure_peer(failure);
    uint32_t epoch = failure_epoch(failure);
    muster_status status = step_failure_status(failure);
    switch (failure_reason(failure)) {
    case MUSTER_REASON_TIMEOUT:
        return error_set(status,
                         "%s: rank %d did not answer before the deadline in epoch %u; the step is void: end it, "
                         "read its verdict and wait for the next view",
                         phase, peer, epoch);
    case MUSTER_REASON_EPOCH:
        return error_set(status,
                         "%s: epoch %u has ended (a rank died, joined or left, or an operation failed); the step "
                         "is void: end it, read its verdict and wait for the next view",
                         phase, epoch);
    case MUSTER_REASON_REFUSED:
        return error_set(status,
                         "%s: rank %d ended its step in epoch %u without its part; the step is void: end it, "
                         "read its verdict and wait for the next view",
                         phase, peer, epoch);
    case MUSTER_REASON_LEFT_OUT:
        return error_set(status,
                         "%s: rank %d went on in epoch %u with a mask that leaves this rank out, before its results "
                         "were read; the step is void: end it, read its verdict and wait for the next view",
                         phase, peer, epoch);
    case MUSTER_REASON_NOT_READY:
        return error_set(status, "the step began while a view was being agreed, and is void: end it, read its verdict "
                                 "and call muster_group_wait_ready");
    case MUSTER_REASON_UNREAD:
        return error_set(status, "the step is void because the verdict of an earlier void step is unread: read it with "
                                 "muster_step_verdict");
    case MUSTER_REASON_VALUE: /* worded where it was found */
        return peer < 0 ? status
                        : error_set(status,
                                    "%s: rank %d sent a row that does not fit this exchange in epoch "
                                    "%u; the step is void",
                                    phase, peer, epoch);
    case MUSTER_REASON_ARGUMENT:
        return error_set(status, "%s was refused before, and the step is void: end it, and read its verdict", phase);
    default: return error_set(status, "%s: the step is void", phase);
    }
}

muster_status group_kernel_enter(muster_group *g, muster_phase phase)
{
    uint64_t failure = atomic_load(&g->control.failure);
    if (failure) {
        step_explain(failure);
        return failure_reason(failure) == MUSTER_REASON_VALUE
                   ? error_set(MUSTER_ERR_VOID, "the step is void: an id in an earlier input was refused; end the step")
                   : MUSTER_ERR_VOID;
    }
    uint32_t epoch = g->step.kernel.epoch;
    if (step_execute_begin(g, epoch))
        return MUSTER_OK;
    failure_record(&g->control, failure_pack(MUSTER_REASON_EPOCH, phase, -1, epoch));
    step_explain(atomic_load(&g->control.failure));
    return MUSTER_ERR_VOID;
}

/* A timeout is laid at somebody's door; any other failure of this rank's own just ends the epoch (M rules). */
void step_report(muster_group *g, uint64_t failure, muster_mask overdue)
{
    muster_reason reason = failure_reason(failure);
    if (reason == MUSTER_REASON_EPOCH)
        return;
    group_epoch_failed(g, failure_epoch(failure));
    pthread_mutex_lock(&g->lock);
    if (reason == MUSTER_REASON_TIMEOUT) {
        g->mail.overdue_epoch = failure_epoch(failure);
        g->mail.overdue = overdue;
        if (failure_peer(failure) >= 0)
            g->mail.overdue = mask_with(g->mail.overdue, failure_peer(failure));
    } else {
        g->mail.failed_epoch = failure_epoch(failure);
    }
    pthread_mutex_unlock(&g->lock);
    agent_wake(g);
}

static muster_mask step_overdue(const muster_group *g)
{
    return (muster_mask){{atomic_load(&g->control.overdue[0]), atomic_load(&g->control.overdue[1])}};
}

muster_status group_kernel_exit(muster_group *g, muster_phase phase)
{
    (void)phase;
    step_execute_end(g, g->step.kernel.epoch);
    uint64_t failure = atomic_load(&g->control.failure);
    if (!failure)
        return MUSTER_OK;
    step_report(g, failure, step_overdue(g));
    return step_explain(failure);
}

void group_step_fail(muster_group *g, muster_reason reason, muster_phase phase)
{
    if (g->step.failed != MUSTER_REASON_NONE)
        return;
    if (!g->device && atomic_load(&g->control.failure))
        return;
    g->step.failed = reason;
    g->step.failed_phase = phase;
    if (g->device)
        return;
    uint64_t failure = failure_pack(reason, phase, -1, g->step.kernel.epoch);
    failure_record(&g->control, failure);
    step_report(g, failure, step_overdue(g));
}

bool group_step_has_failed(const muster_group *g)
{
    return g->step.open && g->step.failed != MUSTER_REASON_NONE;
}

uint64_t group_step_total(const muster_group *g)
{
    return g->step.open ? g->step.total : 0;
}

void group_epoch_used_up(muster_group *g)
{
    pthread_mutex_lock(&g->lock);
    g->mail.failed_epoch = g->step.kernel.epoch;
    pthread_mutex_unlock(&g->lock);
    agent_wake(g);
}
