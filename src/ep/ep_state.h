// SPDX-License-Identifier: Apache-2.0
/* The inside of an exchange, and the two ways its operations are run: on the caller's thread, or enqueued on a device. */
#ifndef EP_EP_STATE_H
#define EP_EP_STATE_H

#include "control/group.h"
#include "ep/args.h"
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
    struct group_object object; /* what the members have agreed on */
    muster_group *group;
    void *kernels; /* what the kernels on the caller's thread keep; NULL with a device */
    const struct device_ops *device_ops; /* of a group with a device; otherwise NULL, like the next */
    struct device_exchange *device;
    muster_ep_config config;
    struct exchange_shape shape;
    struct args_exchange checks;
    unsigned char *region;
    unsigned char *gathered; /* flat, without a device: where received rows lie end to end; see ep_create_gathered() */
    int64_t tensor_shape[3]; /* of the tensors that callers use in place */

    struct ep_epoch now;

    /* The pair that is outstanding. */
    enum ep_state state;
    int32_t tokens;
    bool own_step; /* dispatch opened the step */
    uint64_t in_step; /* with a device: the step it belongs to, see group_step_total() */

    /* The rest of it is kept on the device, if there is one. */
    struct kernel_step step; /* with the mask as it was at dispatch: combine uses the same */
    uint64_t stamp;
    int32_t dropped;
    uint64_t started_ns;
};

/* ep_host.c. Settle: X12, a pair dies with its step; true if the open step is void. */
bool ep_host_in_open_step(const struct muster_ep *ep);
bool ep_host_settle(struct muster_ep *ep);
muster_status ep_host_set_mask(struct muster_ep *ep, muster_mask mask);
void ep_host_keep_own_rows(const struct muster_ep *ep, struct dispatch_send_args *send,
                           struct dispatch_receive_args *receive);
muster_status ep_host_send(struct muster_ep *ep, struct dispatch_send_args *send);
muster_status ep_host_receive(struct muster_ep *ep, struct dispatch_receive_args *receive);
void ep_host_keep_own_results(const struct muster_ep *ep, struct combine_send_args *send,
                              struct combine_receive_args *receive);
muster_status ep_host_return(struct muster_ep *ep, struct combine_send_args *send);
muster_status ep_host_add_up(struct muster_ep *ep, struct combine_receive_args *receive);

/* ep_device.c. Settle: as above, as far as calls can know: true if a call of the open step was refused, or of the pair's. */
bool ep_device_in_open_step(const struct muster_ep *ep);
bool ep_device_settle(struct muster_ep *ep, void *stream);
/* Either of send and receive may be NULL: then the other half alone is enqueued. */
muster_status ep_device_dispatch(struct muster_ep *ep, const struct dispatch_send_args *send,
                                 const struct dispatch_receive_args *receive, void *stream);
muster_status ep_device_combine(struct muster_ep *ep, const struct combine_send_args *send,
                                const struct combine_receive_args *receive, void *stream);

#endif
