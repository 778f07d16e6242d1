// SPDX-License-Identifier: Apache-2.0
/*
 * Exchanges: the state machine of a dispatch and its combine. Every call checks first and touches later; then it runs
 * one or two kernels in the group's open step, or in a step that dispatch opens and the matching combine closes.
 */
#include <stdio.h>
#include <stdlib.h>

#include "control/group.h"
#include "core/clock.h"
#include "core/error.h"
#include "core/trace.h"
#include "ep/args.h"
#include "ep/shape.h"
#include "kernels/kernels.h"
#include "muster/ep.h"

enum ep_state { EP_IDLE, EP_SENT, EP_DISPATCHED, EP_RETURNING };

/* All that counts within an epoch; begun afresh when a step of another epoch is met (X10). */
struct ep_epoch {
    uint32_t epoch;
    uint64_t pairs; /* sequence number of the next pair */
    bool narrowed; /* muster_ep_set_mask() was called */
    muster_mask mask; /* then: the ranks that take part */
};

struct muster_ep {
    struct group_child child;
    muster_group *group;
    const struct kernel_ops *ops;
    void *kernels; /* what the backend keeps */
    muster_ep_config config;
    struct exchange_shape shape;
    struct args_exchange checks;
    unsigned char *region;
    int64_t tensor_shape[3]; /* of the tensors that lie in symmetric memory */

    struct ep_epoch now;

    /* The pair that is outstanding. */
    enum ep_state state;
    bool own_step; /* dispatch opened the step */
    struct kernel_step step; /* with the mask as it was at dispatch: combine uses the same */
    uint64_t stamp;
    int32_t tokens;
    int32_t dropped;
    uint64_t started_ns;
};

static const char *const ep_state_names[] = {"no dispatch is outstanding", "a dispatch has been sent and not received",
                                             "a dispatch is outstanding", "a combine has been sent and not received"};

/* ---------------------------------------------------------------------------------------------- creation and memory */

muster_status muster_ep_memory_bytes(const muster_ep_config *config, int32_t ranks, uint64_t *bytes)
{
    struct exchange_shape shape;
    if (!bytes)
        return error_set(MUSTER_ERR_ARGUMENT, "bytes: must not be NULL");
    muster_status status = shape_check(config, ranks);
    if (status != MUSTER_OK)
        return status;
    shape_make(config, ranks, 0, &shape);
    *bytes = shape.end;
    return MUSTER_OK;
}

static const _Atomic uint64_t *ep_flag(const struct group_child *child, muster_phase phase, int32_t peer)
{
    const struct muster_ep *ep = (const struct muster_ep *)(const void *)child;
    uint64_t line = phase == MUSTER_PHASE_COMBINE ? ep->shape.combine_line : ep->shape.dispatch_line;
    return &((const struct exchange_line *)(const void *)(ep->region + line))[peer].flag;
}

/* Whether the pair belongs to the step that is open: a pair dies with its step. */
static bool ep_in_open_step(const struct muster_ep *ep)
{
    const struct kernel_step *open = group_step(ep->group);
    return open && open->epoch == ep->step.epoch && open->number == ep->step.number;
}

static bool ep_busy(const struct group_child *child)
{
    const struct muster_ep *ep = (const struct muster_ep *)(const void *)child;
    return ep->state != EP_IDLE && ep_in_open_step(ep);
}

/*
 * Configurations are compared before memory is taken, under a number that counts attempts: the same on every rank, and
 * what was said in an attempt that failed is not held against the next.
 */
static muster_status ep_agree(muster_group *group, const muster_ep_config *config, uint64_t *offset)
{
    char object[16], fields[SHAPE_FIELDS_BYTES];
    struct exchange_shape shape;
    snprintf(object, sizeof(object), "ep%u", group_next_object(group));
    shape_fields(config, fields);
    muster_status status = group_compare(group, object, fields);
    if (status != MUSTER_OK)
        return status;
    shape_make(config, group_ranks(group), 0, &shape);
    return group_memory_take(group, shape.end, offset);
}

static void ep_init(struct muster_ep *ep, muster_group *group, const muster_ep_config *config, uint64_t offset)
{
    ep->group = group;
    ep->ops = &cpu_kernel_ops;
    ep->config = *config;
    shape_make(config, group_ranks(group), offset, &ep->shape);
    ep->region = group_memory_base(group);
    ep->checks.config = &ep->config;
    ep->checks.shape = &ep->shape;
    ep->checks.region = ep->region;
    args_name_payloads(&ep->checks);
    for (int i = 0; i < MUSTER_EP_MAX_PAYLOADS; i++)
        ep->config.payload[i].name = NULL; /* the caller's; what is needed of it was copied */
    ep->tensor_shape[0] = ep->shape.ranks;
    ep->tensor_shape[1] = ep->shape.tokens;
    ep->tensor_shape[2] = ep->shape.hidden;
    ep->child = (struct group_child){.flag = ep_flag, .busy = ep_busy, .operation = "ep"};
}

muster_status muster_ep_create(muster_group *group, const muster_ep_config *config, muster_ep **ep)
{
    uint64_t offset;
    if (!group || !ep)
        return error_set(MUSTER_ERR_ARGUMENT, "muster_ep_create: %s must not be NULL", group ? "ep" : "group");
    muster_status status = group_check(group);
    if (status == MUSTER_OK)
        status = shape_check(config, group_ranks(group));
    if (status != MUSTER_OK)
        return status;
    if (group_step(group))
        return error_set(MUSTER_ERR_ORDER, "muster_ep_create: a step is open; end it first");
    struct muster_ep *made = calloc(1, sizeof(*made));
    if (!made)
        return error_set(MUSTER_ERR_MEMORY, "muster_ep_create: no memory for %zu bytes", sizeof(*made));
    status = ep_agree(group, config, &offset);
    if (status != MUSTER_OK)
        goto free_made;
    ep_init(made, group, config, offset);
    made->kernels = made->ops->exchange_create(&made->shape);
    if (!made->kernels) {
        status = error_set(MUSTER_ERR_MEMORY,
                           "muster_ep_create: no ordinary memory for the plans of %d ranks, %d tokens "
                           "and top-%d",
                           made->shape.ranks, made->shape.tokens, made->shape.topk);
        goto free_made;
    }
    group_add_child(group, &made->child);
    *ep = made;
    return MUSTER_OK;

free_made:
    free(made);
    return status;
}

void muster_ep_destroy(muster_ep *ep)
{
    if (!ep)
        return;
    if (ep_busy(&ep->child)) {
        group_step_fail(ep->group, MUSTER_REASON_ABORT, MUSTER_PHASE_COMBINE, -1, 0); /* it will never combine */
        if (ep->own_step)
            muster_step_end(ep->group, NULL);
    }
    group_remove_child(ep->group, &ep->child);
    ep->ops->exchange_destroy(ep->kernels);
    free(ep);
}

/* -------------------------------------------------------------------------------------------------- steps and order */

static muster_status ep_check_handle(const struct muster_ep *ep, const char *call, const void *stream)
{
    if (!ep)
        return error_set(MUSTER_ERR_ARGUMENT, "%s: ep must not be NULL", call);
    if (stream)
        return error_set(MUSTER_ERR_ARGUMENT, "%s: stream must be NULL on the CPU backend", call);
    return group_check(ep->group);
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
    bool own_step = ep->own_step && ep_in_open_step(ep);
    ep->state = EP_IDLE;
    ep->own_step = false;
    muster_status ended = own_step ? muster_step_end(ep->group, NULL) : MUSTER_OK;
    return status == MUSTER_OK ? ended : status;
}

/* X12: a pair dies with its step; the exchange is then idle, whatever half of it was done. */
static bool ep_settle(struct muster_ep *ep)
{
    bool open = ep_in_open_step(ep), failed = ep_step_void(ep);
    if (ep->state == EP_IDLE || (open && !failed))
        return failed;
    ep_end_pair(ep, MUSTER_OK);
    return true;
}

static muster_status ep_begin_call(struct muster_ep *ep, const char *call, const void *stream, enum ep_state wanted)
{
    muster_status status = ep_check_handle(ep, call, stream);
    if (status != MUSTER_OK)
        return status;
    bool died = ep_settle(ep);
    if (ep->state == wanted)
        return MUSTER_OK;
    if (died)
        return error_set(MUSTER_ERR_VOID,
                         "%s: the step is void, and the exchange's pair with it: end the step, read its "
                         "verdict and wait for the next view",
                         call);
    return error_set(MUSTER_ERR_ORDER, "%s: not allowed now: %s", call, ep_state_names[ep->state]);
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
    int own = muster_group_rank(ep->group);
    int stranger = mask_next(mask_minus(mask, view), 0);
    if (!mask_has(mask, own))
        return error_set(MUSTER_ERR_ARGUMENT, "muster_ep_set_mask: mask must hold this rank (%d)", own);
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

muster_status muster_ep_set_mask(muster_ep *ep, muster_mask mask, void *stream)
{
    uint32_t epoch;
    muster_mask view;
    muster_status status = ep_check_handle(ep, "muster_ep_set_mask", stream);
    if (status != MUSTER_OK)
        return status;
    if (!ep->shape.masked)
        return error_set(MUSTER_ERR_ORDER, "muster_ep_set_mask: the exchange was created with masked = 0");
    ep_settle(ep);
    if (ep->state != EP_IDLE)
        return error_set(MUSTER_ERR_ORDER, "muster_ep_set_mask: not allowed now: %s", ep_state_names[ep->state]);
    status = ep_view(ep, &epoch, &view);
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
    uint64_t failure = atomic_load(&ep->step.control->failure);
    return failure_reason(failure) == MUSTER_REASON_VALUE && failure_peer(failure) < 0;
}

static muster_status ep_run_dispatch_send(struct muster_ep *ep, struct dispatch_send_args *send)
{
    muster_status status = group_kernel_enter(ep->group, MUSTER_PHASE_DISPATCH);
    if (status != MUSTER_OK)
        return status;
    status = ep_take_stamp(ep);
    if (status != MUSTER_OK) {
        group_step_fail(ep->group, MUSTER_REASON_ABORT, MUSTER_PHASE_DISPATCH, -1, 0);
        group_kernel_exit(ep->group, MUSTER_PHASE_DISPATCH);
        return status;
    }
    send->stamp = ep->stamp;
    send->dropped_routes = &ep->dropped;
    ep->ops->dispatch_send(ep->kernels, &ep->step, send);
    status = group_kernel_exit(ep->group, MUSTER_PHASE_DISPATCH);
    return status != MUSTER_OK && ep_value_refused(ep) ? ep_explain_value(ep, send) : status;
}

static muster_status ep_send(struct muster_ep *ep, struct dispatch_send_args *send)
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

static muster_status ep_receive(struct muster_ep *ep, struct dispatch_receive_args *receive)
{
    muster_status status = group_kernel_enter(ep->group, MUSTER_PHASE_DISPATCH);
    if (status != MUSTER_OK)
        return ep_end_pair(ep, status);
    receive->stamp = ep->stamp;
    group_watch(ep->group, &ep->child, MUSTER_PHASE_DISPATCH, ep->stamp, ep->step.mask);
    ep->ops->dispatch_receive(ep->kernels, &ep->step, receive);
    status = group_kernel_exit(ep->group, MUSTER_PHASE_DISPATCH);
    if (status != MUSTER_OK)
        return ep_end_pair(ep, status);
    trace_add(TRACE_DISPATCH, ep->started_ns, clock_ns() - ep->started_ns, ep->stamp);
    ep->state = EP_DISPATCHED;
    return MUSTER_OK;
}

static void ep_report_dropped(const struct muster_ep *ep, const muster_ep_dispatch_args *args)
{
    if (args->dropped_routes)
        *args->dropped_routes = ep->dropped;
}

muster_status muster_ep_dispatch_send(muster_ep *ep, const muster_ep_dispatch_args *args, void *stream)
{
    static const char call[] = "muster_ep_dispatch_send";
    struct dispatch_send_args send;
    muster_status status = ep_begin_call(ep, call, stream, EP_IDLE);
    if (status == MUSTER_OK)
        status = args_dispatch(&ep->checks, call, args, &send, NULL);
    if (status == MUSTER_OK)
        status = ep_send(ep, &send);
    if (status == MUSTER_OK)
        ep_report_dropped(ep, args);
    return status;
}

muster_status muster_ep_dispatch_receive(muster_ep *ep, const muster_ep_dispatch_args *args, void *stream)
{
    static const char call[] = "muster_ep_dispatch_receive";
    struct dispatch_receive_args receive;
    muster_status status = ep_begin_call(ep, call, stream, EP_SENT);
    if (status == MUSTER_OK)
        status = args_dispatch(&ep->checks, call, args, NULL, &receive);
    if (status == MUSTER_OK)
        status = ep_receive(ep, &receive);
    if (status == MUSTER_OK)
        ep_report_dropped(ep, args);
    return status;
}

muster_status muster_ep_dispatch(muster_ep *ep, const muster_ep_dispatch_args *args, void *stream)
{
    static const char call[] = "muster_ep_dispatch";
    struct dispatch_send_args send;
    struct dispatch_receive_args receive;
    muster_status status = ep_begin_call(ep, call, stream, EP_IDLE);
    if (status == MUSTER_OK)
        status = args_dispatch(&ep->checks, call, args, &send, &receive);
    if (status == MUSTER_OK)
        status = ep_send(ep, &send);
    if (status == MUSTER_OK)
        status = ep_receive(ep, &receive);
    if (status == MUSTER_OK)
        ep_report_dropped(ep, args);
    return status;
}

/* ---------------------------------------------------------------------------------------------------------- combine */

static muster_status ep_return(struct muster_ep *ep, struct combine_send_args *send)
{
    muster_status status = group_kernel_enter(ep->group, MUSTER_PHASE_COMBINE);
    if (status != MUSTER_OK)
        return ep_end_pair(ep, status);
    ep->started_ns = clock_ns();
    send->stamp = ep->stamp;
    ep->ops->combine_send(ep->kernels, &ep->step, send);
    status = group_kernel_exit(ep->group, MUSTER_PHASE_COMBINE);
    if (status != MUSTER_OK)
        return ep_end_pair(ep, status);
    ep->state = EP_RETURNING;
    return MUSTER_OK;
}

static muster_status ep_add_up(struct muster_ep *ep, struct combine_receive_args *receive)
{
    muster_status status = group_kernel_enter(ep->group, MUSTER_PHASE_COMBINE);
    if (status != MUSTER_OK)
        return ep_end_pair(ep, status);
    receive->stamp = ep->stamp;
    group_watch(ep->group, &ep->child, MUSTER_PHASE_COMBINE, ep->stamp, ep->step.mask);
    ep->ops->combine_receive(ep->kernels, &ep->step, receive);
    status = group_kernel_exit(ep->group, MUSTER_PHASE_COMBINE);
    if (status == MUSTER_OK)
        trace_add(TRACE_COMBINE, ep->started_ns, clock_ns() - ep->started_ns, ep->stamp);
    return ep_end_pair(ep, status);
}

muster_status muster_ep_combine_send(muster_ep *ep, const muster_ep_combine_args *args, void *stream)
{
    static const char call[] = "muster_ep_combine_send";
    struct combine_send_args send;
    muster_status status = ep_begin_call(ep, call, stream, EP_DISPATCHED);
    if (status == MUSTER_OK)
        status = args_combine(&ep->checks, call, args, ep->tokens, &send, NULL);
    return status == MUSTER_OK ? ep_return(ep, &send) : status;
}

muster_status muster_ep_combine_receive(muster_ep *ep, const muster_ep_combine_args *args, void *stream)
{
    static const char call[] = "muster_ep_combine_receive";
    struct combine_receive_args receive;
    muster_status status = ep_begin_call(ep, call, stream, EP_RETURNING);
    if (status == MUSTER_OK)
        status = args_combine(&ep->checks, call, args, ep->tokens, NULL, &receive);
    return status == MUSTER_OK ? ep_add_up(ep, &receive) : status;
}

muster_status muster_ep_combine(muster_ep *ep, const muster_ep_combine_args *args, void *stream)
{
    static const char call[] = "muster_ep_combine";
    struct combine_send_args send;
    struct combine_receive_args receive;
    muster_status status = ep_begin_call(ep, call, stream, EP_DISPATCHED);
    if (status == MUSTER_OK)
        status = args_combine(&ep->checks, call, args, ep->tokens, &send, &receive);
    if (status == MUSTER_OK)
        status = ep_return(ep, &send);
    return status == MUSTER_OK ? ep_add_up(ep, &receive) : status;
}

/* ----------------------------------------------------------------------------------------- rows in symmetric memory */

static muster_status ep_tensor(struct muster_ep *ep, const char *call, muster_dtype dtype, uint64_t offset,
                               muster_tensor *tensor)
{
    if (!tensor)
        return error_set(MUSTER_ERR_ARGUMENT, "%s: tensor must not be NULL", call);
    if (ep->shape.expert_major)
        return error_set(MUSTER_ERR_ARGUMENT, "%s: needs an exchange with layout = MUSTER_EP_RANK_MAJOR", call);
    *tensor = (muster_tensor){
        .data = ep->region + offset,
        .device = {MUSTER_DEVICE_CPU, 0},
        .ndim = 3,
        .dtype = dtype,
        .shape = ep->tensor_shape,
    };
    return MUSTER_OK;
}

muster_status muster_ep_received(muster_ep *ep, muster_tensor *tensor)
{
    muster_status status = ep_check_handle(ep, "muster_ep_received", NULL);
    if (status != MUSTER_OK)
        return status;
    return ep_tensor(ep, "muster_ep_received", ep->shape.quantise ? MUSTER_FP8 : ep->config.dtype,
                     ep->shape.array[0].offset, tensor);
}

muster_status muster_ep_results(muster_ep *ep, muster_tensor *tensor)
{
    muster_status status = ep_check_handle(ep, "muster_ep_results", NULL);
    if (status != MUSTER_OK)
        return status;
    return ep_tensor(ep, "muster_ep_results", ep->config.dtype, ep->shape.results, tensor);
}
