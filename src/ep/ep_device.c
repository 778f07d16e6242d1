// SPDX-License-Identifier: Apache-2.0
/*
 * Exchanges of a group with a device: each call enqueues one kernel. What the kernels act on (epoch, mask, numbers) they
 * read on the device; what is kept here is the order of calls.
 */
#include "ep/ep_state.h"

bool ep_device_in_open_step(const struct muster_ep *ep)
{
    return ep->in_step && ep->in_step == group_step_total(ep->group);
}

/* X12. A step that this exchange opened is ended here, since its combine does not. */
bool ep_device_settle(struct muster_ep *ep, void *stream)
{
    bool open = ep_device_in_open_step(ep), failed = group_step_has_failed(ep->group);
    if (ep->state == EP_IDLE || (open && !failed))
        return failed;
    if (open && ep->own_step)
        muster_step_end(ep->group, stream);
    ep->own_step = false;
    ep->state = EP_IDLE;
    return true;
}

muster_status ep_device_dispatch(struct muster_ep *ep, const struct dispatch_send_args *send,
                                 const struct dispatch_receive_args *receive, void *stream)
{
    bool begins_step = send && !group_step_is_open(ep->group);
    muster_status status = ep->device_ops->dispatch(ep->device, send, receive, begins_step, stream);
    if (status != MUSTER_OK)
        return status;
    if (send) {
        ep->tokens = send->tokens;
        ep->own_step = begins_step;
        if (begins_step)
            group_step_mark(ep->group, true);
        ep->in_step = group_step_total(ep->group);
    }
    ep->state = receive ? EP_DISPATCHED : EP_SENT;
    return MUSTER_OK;
}

muster_status ep_device_combine(struct muster_ep *ep, const struct combine_send_args *send,
                                const struct combine_receive_args *receive, void *stream)
{
    bool ends_step = receive && ep->own_step;
    muster_status status = ep->device_ops->combine(ep->device, send, receive, ep->tokens, ends_step, stream);
    if (status != MUSTER_OK)
        return status;
    if (ends_step)
        group_step_mark(ep->group, false);
    ep->own_step = ep->own_step && !receive;
    ep->state = receive ? EP_IDLE : EP_RETURNING;
    return MUSTER_OK;
}
