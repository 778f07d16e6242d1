// SPDX-License-Identifier: Apache-2.0
/*
 * Exchanges: the state machine of a dispatch and its combine. Every call checks first and touches later; then its
 * kernels are run in the group's open step, or in a step that dispatch opens and the matching combine closes.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "ep/ep_state.h"
#include "ep/shape.h"

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

/* What the watchdog looks at; it cannot look into a device. */
static const _Atomic uint64_t *ep_flag(const struct group_child *child, muster_phase phase, int32_t peer)
{
    const struct muster_ep *ep = (const struct muster_ep *)(const void *)child;
    uint64_t line = phase == MUSTER_PHASE_COMBINE ? ep->shape.combine_line : ep->shape.dispatch_line;
    return &((const struct exchange_line *)(const void *)(ep->region + line))[peer].flag;
}

static bool ep_in_open_step(const struct muster_ep *ep)
{
    return ep->device ? ep_device_in_open_step(ep) : ep_host_in_open_step(ep);
}

static bool ep_busy(const struct group_child *child)
{
    const struct muster_ep *ep = (const struct muster_ep *)(const void *)child;
    return ep->state != EP_IDLE && ep_in_open_step(ep);
}

static muster_status ep_agree(muster_group *group, const muster_ep_config *config, struct group_object *object)
{
    char fields[SHAPE_FIELDS_BYTES];
    struct exchange_shape shape;
    shape_fields(config, fields);
    shape_make(config, group_ranks(group), 0, &shape);
    return group_object_create(group, "ep", fields, shape.end, object);
}

static void ep_init(struct muster_ep *ep, muster_group *group, const muster_ep_config *config)
{
    ep->group = group;
    ep->device_ops = group_device_ops(group);
    ep->config = *config;
    shape_make(config, group_ranks(group), ep->object.offset, &ep->shape);
    ep->region = group_memory_base(group);
    ep->checks.config = &ep->config;
    ep->checks.shape = &ep->shape;
    ep->checks.region = ep->region;
    ep->checks.device = (muster_device){MUSTER_DEVICE_CPU, 0};
    if (ep->device_ops)
        ep->checks.device = (muster_device){MUSTER_DEVICE_CUDA, ep->device_ops->ordinal(group_device(group))};
    args_name_payloads(&ep->checks);
    for (int i = 0; i < MUSTER_EP_MAX_PAYLOADS; i++)
        ep->config.payload[i].name = NULL; /* the caller's; what is needed of it was copied */
    int64_t rows = (int64_t)shape_rows(&ep->shape), hidden = ep->shape.hidden;
    const int64_t in_blocks[] = {ep->shape.ranks, ep->shape.tokens, hidden}, flat[] = {rows, hidden, 0};
    memcpy(ep->tensor_shape, ep->shape.flat ? flat : in_blocks, sizeof(ep->tensor_shape));
    ep->child = (struct group_child){.flag = ep_flag, .busy = ep_busy, .operation = "ep"};
}

/*
 * Flat rows for a caller that gives no out_hidden lie in ordinary memory, and not moved together where they arrive: a row
 * would come to lie in the block of another source, and a rank that was left out of a narrower mask, and does not know,
 * may still store into its block (X7). Where nobody asks for them no page of it is ever touched.
 */
static bool ep_create_gathered(struct muster_ep *ep)
{
    if (!ep->shape.flat)
        return true;
    ep->gathered = calloc(shape_rows(&ep->shape), ep->shape.array[0].row_bytes);
    ep->checks.gathered = ep->gathered;
    return ep->gathered;
}

static muster_status ep_create_kernels(struct muster_ep *ep)
{
    if (ep->device_ops)
        return ep->device_ops->exchange_create(group_device(ep->group), &ep->shape, &ep->device);
    ep->kernels = cpu_kernel_ops.exchange_create(&ep->shape);
    if (ep->kernels && ep_create_gathered(ep))
        return MUSTER_OK;
    cpu_kernel_ops.exchange_destroy(ep->kernels);
    return error_set(MUSTER_ERR_MEMORY,
                     "muster_ep_create: no ordinary memory for the plans and rows of %d ranks, %d tokens and top-%d",
                     ep->shape.ranks, ep->shape.tokens, ep->shape.topk);
}

muster_status muster_ep_create(muster_group *group, const muster_ep_config *config, muster_ep **ep)
{
    if (!group || !ep)
        return error_set(MUSTER_ERR_ARGUMENT, "muster_ep_create: %s must not be NULL", group ? "ep" : "group");
    muster_status status = group_check(group);
    if (status == MUSTER_OK)
        status = shape_check(config, group_ranks(group));
    if (status != MUSTER_OK)
        return status;
    if (group_step_is_open(group))
        return error_set(MUSTER_ERR_ORDER, "muster_ep_create: a step is open; end it first");
    struct muster_ep *made = calloc(1, sizeof(*made));
    if (!made)
        return error_set(MUSTER_ERR_MEMORY, "muster_ep_create: no memory for %zu bytes", sizeof(*made));
    status = ep_agree(group, config, &made->object);
    if (status != MUSTER_OK)
        goto free_made;
    ep_init(made, group, config);
    status = ep_create_kernels(made);
    if (status != MUSTER_OK)
        goto destroy_object;
    group_add_child(group, &made->child);
    *ep = made;
    return MUSTER_OK;

destroy_object:
    group_object_destroy(group, &made->object);
free_made:
    free(made);
    return status;
}

void muster_ep_destroy(muster_ep *ep)
{
    if (!ep || group_is_forked(ep->group))
        return;
    if (ep_busy(&ep->child)) {
        group_step_fail(ep->group, MUSTER_REASON_ABORT, MUSTER_PHASE_COMBINE); /* it will never combine */
        if (ep->own_step && !ep->device) /* which stream a device's step would end on is not known here */
            muster_step_end(ep->group, NULL);
    }
    group_remove_child(ep->group, &ep->child);
    group_object_destroy(ep->group, &ep->object);
    if (ep->device)
        ep->device_ops->exchange_destroy(ep->device);
    else
        cpu_kernel_ops.exchange_destroy(ep->kernels);
    free(ep->gathered);
    free(ep);
}

/* -------------------------------------------------------------------------------------------------- steps and order */

static muster_status ep_check_handle(const struct muster_ep *ep, const char *call, const void *stream)
{
    if (!ep)
        return error_set(MUSTER_ERR_ARGUMENT, "%s: ep must not be NULL", call);
    muster_status status = group_check(ep->group);
    if (status == MUSTER_OK && stream && !ep->device)
        return error_set(MUSTER_ERR_ARGUMENT, "%s: stream must be NULL on the CPU backend", call);
    return status;
}

static bool ep_settle(struct muster_ep *ep, void *stream)
{
    return ep->device ? ep_device_settle(ep, stream) : ep_host_settle(ep);
}

static muster_status ep_begin_call(struct muster_ep *ep, const char *call, void *stream, enum ep_state wanted)
{
    muster_status status = ep_check_handle(ep, call, stream);
    if (status != MUSTER_OK)
        return status;
    bool died = ep_settle(ep, stream);
    if (ep->state == wanted && !group_step_has_failed(ep->group))
        return MUSTER_OK;
    if (died)
        return error_set(MUSTER_ERR_VOID,
                         "%s: the step is void, and the exchange's pair with it: end the step, read its "
                         "verdict and wait for the next view",
                         call);
    return error_set(MUSTER_ERR_ORDER, "%s: not allowed now: %s", call, ep_state_names[ep->state]);
}

/* Of what a call returns: its operation did not begin. */
static bool ep_is_refusal(const struct muster_ep *ep, muster_status status)
{
    switch (status) {
    case MUSTER_ERR_ARGUMENT: /* on the host of values, too: those have made the step void already */
    case MUSTER_ERR_UNSUPPORTED:
    case MUSTER_ERR_ORDER: return true;
    case MUSTER_ERR_SYSTEM:
    case MUSTER_ERR_MEMORY: return ep->device; /* the launch */
    default: return false;
    }
}

/*
 * X18: what was refused is missing from the open step, which is void for that. A step that this exchange's own dispatch has
 * opened is not: it ends with the right combine alone.
 */
static muster_status ep_end_call(struct muster_ep *ep, muster_phase phase, muster_status status)
{
    if (!ep || !ep_is_refusal(ep, status) || !group_step_is_open(ep->group))
        return status;
    if (!ep->own_step || !ep_in_open_step(ep))
        group_step_fail(ep->group, MUSTER_REASON_ARGUMENT, phase);
    return status;
}

/* --------------------------------------------------------------------------------------------------------- the mask */

static muster_status ep_set_mask(struct muster_ep *ep, muster_mask mask, void *stream)
{
    muster_status status = ep_check_handle(ep, "muster_ep_set_mask", stream);
    if (status != MUSTER_OK)
        return status;
    if (!ep->shape.masked)
        return error_set(MUSTER_ERR_ORDER, "muster_ep_set_mask: the exchange was created with masked = 0");
    ep_settle(ep, stream);
    if (ep->state != EP_IDLE)
        return error_set(MUSTER_ERR_ORDER, "muster_ep_set_mask: not allowed now: %s", ep_state_names[ep->state]);
    int own = muster_group_rank(ep->group);
    if (!mask_has(mask, own))
        return error_set(MUSTER_ERR_ARGUMENT, "muster_ep_set_mask: mask must hold this rank (%d)", own);
    return ep->device ? ep->device_ops->exchange_mask(ep->device, mask, stream) : ep_host_set_mask(ep, mask);
}

muster_status muster_ep_set_mask(muster_ep *ep, muster_mask mask, void *stream)
{
    return ep_end_call(ep, MUSTER_PHASE_NONE, ep_set_mask(ep, mask, stream));
}

/* --------------------------------------------------------------------------------------------------------- dispatch */

/* Either of send and receive may be NULL: then the other half alone is run. */
static muster_status ep_dispatch(struct muster_ep *ep, struct dispatch_send_args *send,
                                 struct dispatch_receive_args *receive, void *stream)
{
    if (ep->device)
        return ep_device_dispatch(ep, send, receive, stream);
    if (send && receive)
        ep_host_keep_own_rows(ep, send, receive);
    muster_status status = send ? ep_host_send(ep, send) : MUSTER_OK;
    return status == MUSTER_OK && receive ? ep_host_receive(ep, receive) : status;
}

static void ep_report_dropped(const struct muster_ep *ep, const muster_ep_dispatch_args *args)
{
    if (args->dropped_routes && !ep->device) /* a device writes it in stream order */
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
        status = ep_dispatch(ep, &send, NULL, stream);
    if (status == MUSTER_OK)
        ep_report_dropped(ep, args);
    return ep_end_call(ep, MUSTER_PHASE_DISPATCH, status);
}

muster_status muster_ep_dispatch_receive(muster_ep *ep, const muster_ep_dispatch_args *args, void *stream)
{
    static const char call[] = "muster_ep_dispatch_receive";
    struct dispatch_receive_args receive;
    muster_status status = ep_begin_call(ep, call, stream, EP_SENT);
    if (status == MUSTER_OK)
        status = args_dispatch(&ep->checks, call, args, NULL, &receive);
    if (status == MUSTER_OK)
        status = ep_dispatch(ep, NULL, &receive, stream);
    if (status == MUSTER_OK)
        ep_report_dropped(ep, args);
    return ep_end_call(ep, MUSTER_PHASE_DISPATCH, status);
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
        status = ep_dispatch(ep, &send, &receive, stream);
    if (status == MUSTER_OK)
        ep_report_dropped(ep, args);
    return ep_end_call(ep, MUSTER_PHASE_DISPATCH, status);
}

/* ---------------------------------------------------------------------------------------------------------- combine */

static muster_status ep_combine(struct muster_ep *ep, struct combine_send_args *send,
                                struct combine_receive_args *receive, void *stream)
{
    if (ep->device)
        return ep_device_combine(ep, send, receive, stream);
    if (send && receive)
        ep_host_keep_own_results(ep, send, receive);
    muster_status status = send ? ep_host_return(ep, send) : MUSTER_OK;
    return status == MUSTER_OK && receive ? ep_host_add_up(ep, receive) : status;
}

muster_status muster_ep_combine_send(muster_ep *ep, const muster_ep_combine_args *args, void *stream)
{
    static const char call[] = "muster_ep_combine_send";
    struct combine_send_args send;
    muster_status status = ep_begin_call(ep, call, stream, EP_DISPATCHED);
    if (status == MUSTER_OK)
        status = args_combine(&ep->checks, call, args, ep->tokens, &send, NULL);
    if (status == MUSTER_OK)
        status = ep_combine(ep, &send, NULL, stream);
    return ep_end_call(ep, MUSTER_PHASE_COMBINE, status);
}

muster_status muster_ep_combine_receive(muster_ep *ep, const muster_ep_combine_args *args, void *stream)
{
    static const char call[] = "muster_ep_combine_receive";
    struct combine_receive_args receive;
    muster_status status = ep_begin_call(ep, call, stream, EP_RETURNING);
    if (status == MUSTER_OK)
        status = args_combine(&ep->checks, call, args, ep->tokens, NULL, &receive);
    if (status == MUSTER_OK)
        status = ep_combine(ep, NULL, &receive, stream);
    return ep_end_call(ep, MUSTER_PHASE_COMBINE, status);
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
        status = ep_combine(ep, &send, &receive, stream);
    return ep_end_call(ep, MUSTER_PHASE_COMBINE, status);
}

/* ---------------------------------------------------------------------------------------------------- rows in place */

static muster_status ep_tensor(struct muster_ep *ep, const char *call, muster_dtype dtype, unsigned char *data,
                               muster_tensor *tensor)
{
    if (!tensor)
        return error_set(MUSTER_ERR_ARGUMENT, "%s: tensor must not be NULL", call);
    if (ep->shape.expert_major)
        return error_set(MUSTER_ERR_ARGUMENT,
                         "%s: needs an exchange with layout = MUSTER_EP_RANK_MAJOR or MUSTER_EP_FLAT: a row of "
                         "MUSTER_EP_EXPERT_MAJOR is copied to each of its slots",
                         call);
    *tensor = (muster_tensor){
        .data = data,
        .device = ep->checks.device,
        .ndim = ep->shape.flat ? 2 : 3,
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
                     ep->gathered ? ep->gathered : ep->region + ep->shape.array[0].offset, tensor);
}

muster_status muster_ep_results(muster_ep *ep, muster_tensor *tensor)
{
    muster_status status = ep_check_handle(ep, "muster_ep_results", NULL);
    if (status != MUSTER_OK)
        return status;
    if (ep->shape.quantise_return)
        return error_set(MUSTER_ERR_ARGUMENT,
                         "muster_ep_results: needs an exchange with quantise_return = MUSTER_EP_QUANTISE_NONE: rows do "
                         "not go home as they are, and cannot be written in place");
    return ep_tensor(ep, "muster_ep_results", ep->config.dtype, ep->region + ep->shape.results, tensor);
}
