// SPDX-License-Identifier: Apache-2.0
/*
 * Exchanges whose kernels run on the caller's thread: each call enters the step, runs one or two kernels, and leaves
 * with their result. A step that dispatch opened is closed by the matching combine.
 */
#include "core/clock.h"
#include "core/error.h"
#include "core/trace.h"
#include "ep/ep_state.h"

/* -------------------------------------------------------------------------------------------------- steps and order */

/* Whether the pair belongs to the step that is open: a pair dies with its step. */
bool ep_host_in_open_step(const struct muster_ep *ep)
{
    const struct kernel_step *open = group_step(ep->group);
    return open && open->epoch == ep->step.epoch && open->number == ep->step.number;
}

static void ep_meet_epoch(struct muster_ep *ep, uint32_t epoch)
{
    if (ep->now.epoch != epoch)
        ep->now = (struct ep_epoch){.epoch = epoch, .pairs = group_first_sequence(ep->group)};
}

static bool ep_step_void(const struct muster_ep *ep)
{
    const struct kernel_step *step = group_step(ep->group);
    return step && atomic_load(&step->control->failure);
}

/* The pair ends; the step that dispatch opened ends with it. */
static muster_status ep_end_pair(struct muster_ep *ep, muster_status status)
{
    bool own_step = ep->own_step && ep_host_in_open_step(ep);
    ep->state = EP_IDLE;
    ep->own_step = false;
    muster_status ended = own_step ? muster_step_end(ep->group, NULL) : MUSTER_OK;
    return status == MUSTER_OK ? ended : status;
}

/* X12: a pair dies with its step; the exchange is then idle, whatever half of it was done. */
bool ep_host_settle(struct muster_ep *ep)
{
    bool open = ep_host_in_open_step(ep), failed = ep_step_void(ep);
    if (ep->state == EP_IDLE || (open && !failed))
        return failed;
    ep_end_pair(ep, MUSTER_OK);
    return true;
}

static muster_status ep_enter_step(struct muster_ep *ep)
{
    bool own_step = !group_step(ep->group);
    muster_status status = own_step ? muster_step_begin(ep->group, NULL) : MUSTER_OK;
    if (status != MUSTER_OK)
        return status;
    ep->own_step = own_step;
    ep->step = *group_step(ep->group);
    return MUSTER_OK;
}

/*
 * X10: the pair's stamp, above every one that this epoch or an older one has used. X13: when they run short, the group
 * is asked for a same-mask epoch; so many are kept in reserve that the one that runs can go on until it comes.
 */
static muster_status ep_take_stamp(struct muster_ep *ep)
{
    ep_meet_epoch(ep, ep->step.epoch);
    if (ep->now.pairs > STAMP_MAX_SEQUENCE - STAMP_SEQUENCE_RESERVE)
        group_epoch_used_up(ep->group);
    if (ep->now.pairs >= STAMP_MAX_SEQUENCE)
        return error_set(MUSTER_ERR_EXHAUSTED,
                         "muster_ep_dispatch: the sequence numbers of epoch %u are used up, and no "
                         "new epoch has come",
                         ep->step.epoch);
    if (ep->now.narrowed)
        ep->step.mask = mask_and(ep->step.mask, ep->now.mask);
    ep->stamp = stamp_make(ep->step.epoch, ++ep->now.pairs);
    return MUSTER_OK;
}

/* --------------------------------------------------------------------------------------------------------- the mask */

/* The ranks that may take part in the next dispatch as things stand, and the epoch that holds for. */
static muster_status ep_view(const struct muster_ep *ep, uint32_t *epoch, muster_mask *mask)
{
    const struct kernel_step *step = group_step(ep->group);
    if (step && step->epoch) {
        *epoch = step->epoch;
        *mask = step->mask;
        return MUSTER_OK;
    }
    muster_view view;
    muster_status status = muster_group_view(ep->group, &view);
    if (status != MUSTER_OK)
        return status;
    *epoch = view.epoch;
    *mask = view.mask;
    return MUSTER_OK;
}

static muster_status ep_check_mask(const struct muster_ep *ep, muster_mask mask, muster_mask view)
{
    int stranger = mask_next(mask_minus(mask, view), 0);
    if (stranger >= 0)
        return error_set(MUSTER_ERR_ARGUMENT,
                         "muster_ep_set_mask: mask holds rank %d, which is not in the view of epoch "
                         "%u",
                         stranger, ep->now.epoch);
    stranger = ep->now.narrowed ? mask_next(mask_minus(mask, ep->now.mask), 0) : -1;
    if (stranger >= 0)
        return error_set(MUSTER_ERR_ARGUMENT,
                         "muster_ep_set_mask: mask holds rank %d, which the mask before left out; "
                         "within an epoch (%u) it only shrinks",
                         stranger, ep->now.epoch);
    return MUSTER_OK;
}

muster_status ep_host_set_mask(struct muster_ep *ep, muster_mask mask)
{
    uint32_t epoch;
    muster_mask view;
    muster_status status = ep_view(ep, &epoch, &view);
    if (status != MUSTER_OK)
        return status;
    ep_meet_epoch(ep, epoch);
    status = ep_check_mask(ep, mask, view);
    if (status != MUSTER_OK)
        return status;
    ep->now.narrowed = true;
    ep->now.mask = mask;
    return MUSTER_OK;
}

/* --------------------------------------------------------------------------------------------------------- dispatch */

static int64_t ep_slot_at(const struct dispatch_send_args *send, int32_t token, int32_t k)
{
    const unsigned char *row = send->topk_slots.data + (size_t)token * send->topk_slots.stride;
    return send->wide ? ((const int64_t *)(const void *)row)[k] : ((const int32_t *)(const void *)row)[k];
}

/* X11: words what the kernel refused: nothing was sent, and the step is void. */
static muster_status ep_explain_value(const struct muster_ep *ep, const struct dispatch_send_args *send)
{
    uint64_t detail = atomic_load(&ep->step.control->failure_detail);
    int32_t token = (int32_t)(detail >> 32), k = (int32_t)(uint32_t)detail;
    int64_t slot = ep_slot_at(send, token, k), limit = (int64_t)ep->shape.ranks * ep->shape.slots;
    if (slot < -1 || slot >= limit)
        return error_set(MUSTER_ERR_ARGUMENT, "topk_slots[%d][%d] = %lld, must be -1 to %lld; the step is void", token,
                         k, (long long)slot, (long long)limit - 1);
    int rank = (int)(slot / ep->shape.slots);
    if (!mask_has(ep->step.mask, rank) && !ep->shape.masked)
        return error_set(MUSTER_ERR_ARGUMENT,
                         "topk_slots[%d][%d] = %lld is on rank %d, which is not active in epoch %u; "
                         "the step is void",
                         token, k, (long long)slot, rank, ep->step.epoch);
    return error_set(MUSTER_ERR_ARGUMENT,
                     "topk_slots[%d][%d] = %lld is there twice, must be in a token at most once; the "
                     "step is void",
                     token, k, (long long)slot);
}

/* Whether it was this rank's own input that was refused; a peer's rows are worded by the group. */
static bool ep_value_refused(const struct muster_ep *ep)
{
    return failure_names_entry(atomic_load(&ep->step.control->failure));
}

static muster_status ep_run_dispatch_send(struct muster_ep *ep, struct dispatch_send_args *send)
{
    muster_status status = group_kernel_enter(ep->group, MUSTER_PHASE_DISPATCH);
    if (status != MUSTER_OK)
        return status;
    status = ep_take_stamp(ep);
    if (status != MUSTER_OK) {
        group_step_fail(ep->group, MUSTER_REASON_ABORT, MUSTER_PHASE_DISPATCH);
        group_kernel_exit(ep->group, MUSTER_PHASE_DISPATCH);
        return status;
    }
    send->stamp = ep->stamp;
    send->dropped_routes = &ep->dropped;
    cpu_kernel_ops.dispatch_send(ep->kernels, &ep->step, send);
    status = group_kernel_exit(ep->group, MUSTER_PHASE_DISPATCH);
    return status != MUSTER_OK && ep_value_refused(ep) ? ep_explain_value(ep, send) : status;
}

/*
 * With both halves in one call, rows of this rank to itself need not pass through its region: as long as they are not
 * changed on the way, and are wanted elsewhere.
 */
void ep_host_keep_own_rows(const struct muster_ep *ep, struct dispatch_send_args *send,
                           struct dispatch_receive_args *receive)
{
    if (ep->shape.quantise)
        return;
    for (int a = 0; a < ep->shape.arrays; a++)
        if (!receive->output[a])
            return;
    send->keeps_own = true;
    receive->own = send;
}

muster_status ep_host_send(struct muster_ep *ep, struct dispatch_send_args *send)
{
    uint64_t started_ns = clock_ns();
    muster_status status = ep_enter_step(ep);
    if (status != MUSTER_OK)
        return status;
    status = ep_run_dispatch_send(ep, send);
    if (status != MUSTER_OK)
        return ep_end_pair(ep, status);
    ep->started_ns = started_ns;
    ep->tokens = send->tokens;
    ep->state = EP_SENT;
    return MUSTER_OK;
}

muster_status ep_host_receive(struct muster_ep *ep, struct dispatch_receive_args *receive)
{
    muster_status status = group_kernel_enter(ep->group, MUSTER_PHASE_DISPATCH);
    if (status != MUSTER_OK)
        return ep_end_pair(ep, status);
    receive->stamp = ep->stamp;
    group_watch(ep->group, &ep->child, MUSTER_PHASE_DISPATCH, ep->stamp, ep->step.mask);
    cpu_kernel_ops.dispatch_receive(ep->kernels, &ep->step, receive);
    status = group_kernel_exit(ep->group, MUSTER_PHASE_DISPATCH);
    if (status != MUSTER_OK)
        return ep_end_pair(ep, status);
    trace_add(TRACE_DISPATCH, ep->started_ns, clock_ns() - ep->started_ns, ep->stamp);
    ep->state = EP_DISPATCHED;
    return MUSTER_OK;
}

/* ---------------------------------------------------------------------------------------------------------- combine */

/*
 * Likewise: results for this rank's own tokens are added up where they are. Not sums that have to be made first, not rows
 * that are quantised on the way, and not what lies in the region: with the combine flag this rank lets go of all that
 * dispatch brought there.
 */
void ep_host_keep_own_results(const struct muster_ep *ep, struct combine_send_args *send,
                              struct combine_receive_args *receive)
{
    const unsigned char *begin = ep->region + ep->shape.begin, *end = ep->region + ep->shape.end;
    size_t ranks = (size_t)ep->shape.ranks, tokens = (size_t)ep->shape.tokens;
    size_t block_bytes = ep->shape.flat ? tokens * send->results.stride : send->block_stride;
    bool in_region = send->results.data < end && send->results.data + ranks * block_bytes > begin;
    if (ep->shape.expert_major || ep->shape.quantise_return || !send->results.data || in_region)
        return;
    send->keeps_own = true;
    receive->own = send;
}

muster_status ep_host_return(struct muster_ep *ep, struct combine_send_args *send)
{
    muster_status status = group_kernel_enter(ep->group, MUSTER_PHASE_COMBINE);
    if (status != MUSTER_OK)
        return ep_end_pair(ep, status);
    ep->started_ns = clock_ns();
    send->stamp = ep->stamp;
    cpu_kernel_ops.combine_send(ep->kernels, &ep->step, send);
    status = group_kernel_exit(ep->group, MUSTER_PHASE_COMBINE);
    if (status != MUSTER_OK)
        return ep_end_pair(ep, status);
    ep->state = EP_RETURNING;
    return MUSTER_OK;
}

muster_status ep_host_add_up(struct muster_ep *ep, struct combine_receive_args *receive)
{
    muster_status status = group_kernel_enter(ep->group, MUSTER_PHASE_COMBINE);
    if (status != MUSTER_OK)
        return ep_end_pair(ep, status);
    receive->stamp = ep->stamp;
    group_watch(ep->group, &ep->child, MUSTER_PHASE_COMBINE, ep->stamp, ep->step.mask);
    cpu_kernel_ops.combine_receive(ep->kernels, &ep->step, receive);
    status = group_kernel_exit(ep->group, MUSTER_PHASE_COMBINE);
    if (status == MUSTER_OK)
        trace_add(TRACE_COMBINE, ep->started_ns, clock_ns() - ep->started_ns, ep->stamp);
    return ep_end_pair(ep, status);
}
