// SPDX-License-Identifier: Apache-2.0
/*
 * The seam to a backend whose kernels run on a device, in stream order: what a group and its exchanges ask of it. The
 * host only enqueues; epoch, mask, numbers and verdicts live in device memory, so a captured graph freezes none of them.
 *
 * The backend is a shared object of its own, loaded at run time (see device_load()). It knows nothing of stores and
 * views; the agent tells it when an epoch ends and begins. Unless said otherwise a function may be called from the
 * caller's and the agent's thread at the same time, blocks for no peer, and returns MUSTER_OK or an error whose text
 * was given to device_config.error.
 */
#ifndef KERNELS_DEVICE_H
#define KERNELS_DEVICE_H

#include "kernels/exchange.h"
#include "muster/group.h"

enum { DEVICE_OPS_VERSION = 4 };

struct device; /* one rank's part of a device */
struct device_exchange;

struct device_config {
    int32_t ordinal; /* which device of this process; -1: the rank modulo their number */
    int32_t rank, ranks;
    uint64_t operation_timeout_ns, step_timeout_ns;
    uint64_t first_sequence; /* of a new epoch */
    bool fault_tolerance; /* false: kernels without any check (promise 10) */
    int32_t multiprocessors; /* that kernels may use; 0: all */
    int32_t plan; /* MUSTER_PLAN */
    muster_status (*error)(muster_status status, const char *format, ...);
};

struct device_view {
    uint32_t epoch;
    muster_mask mask;
    unsigned char *const *peers; /* [ranks] base of each rank's region as this device sees it; NULL: not mapped */
};

/* What the agent looks at between its other duties. */
struct device_report {
    uint64_t failure; /* failure_pack() of the oldest void step whose verdict is unread; 0: none */
    muster_mask overdue; /* with a timeout: whom this rank waited for in vain */
    bool step_open;
    uint32_t step_epoch; /* of the step that is open; 0: void from its start */
    bool unread; /* a void step's verdict waits to be read */
    uint32_t used_up_epoch; /* the last one whose sequence numbers ran short (X13); 0: none did */
};

/* How a step ended. */
struct device_verdict {
    uint64_t step; /* counted from 1 over the life of the group */
    uint64_t failure, failure_detail;
    muster_mask overdue; /* of a failure that is a timeout: see device_report */
    uint32_t epoch;
    muster_mask mask;
};

struct device_ops {
    uint32_t version; /* DEVICE_OPS_VERSION */
    const char *name;

    /* Loads every kernel too, so that nothing is loaded while another rank of the same device waits. */
    muster_status (*open)(const struct device_config *config, struct device **device);
    /* Waits for this rank's own kernels, at most the deadlines that they keep. */
    void (*close)(struct device *device);
    int32_t (*ordinal)(const struct device *device);

    /* Symmetric memory: zeroed; fd stays the caller's. A device has one region; close() frees it. */
    muster_status (*region_create)(struct device *device, uint64_t bytes, unsigned char **base, int *fd);
    /* Maps a peer's region of the same size; fd is only borrowed. */
    muster_status (*map)(struct device *device, int fd, uint64_t bytes, unsigned char **base);
    void (*unmap)(struct device *device, unsigned char *base, uint64_t bytes);

    /* The agent's, in this order for each epoch. Quiet: no kernel of an older epoch is executing (M rules). */
    void (*epoch_raise)(struct device *device, uint32_t epoch);
    bool (*epoch_quiet)(struct device *device, uint32_t epoch);
    void (*view_install)(struct device *device, const struct device_view *view);
    void (*epoch_begin)(struct device *device, uint32_t epoch);
    /* Whether that has come into force: before, a step that begins would be refused. */
    bool (*epoch_open)(struct device *device, uint32_t epoch);
    void (*report)(struct device *device, struct device_report *report);
    /*
     * Whether a look at the members' step words, enqueued by an earlier call, has found that all have ended the last step that
     * this rank has ended. Enqueues the next look otherwise: to be called until true, or until the epoch ends.
     */
    bool (*peers_ended)(struct device *device);
    /* Good steps that have ended over the life of the device. */
    uint64_t (*good_steps)(struct device *device);

    /* The caller's, in stream order. */
    muster_status (*step_begin)(struct device *device, void *stream);
    /* reason: NONE, or why the step is void if the device has found nothing, as the calls found it; with the phase. */
    muster_status (*step_end)(struct device *device, muster_reason reason, muster_phase phase, void *stream);
    /* The oldest verdict that has not been read; AGAIN if the device has not written it yet. */
    muster_status (*verdict)(struct device *device, struct device_verdict *verdict);

    muster_status (*exchange_create)(struct device *device, const struct exchange_shape *shape,
                                     struct device_exchange **exchange);
    void (*exchange_destroy)(struct device_exchange *exchange);
    muster_status (*exchange_mask)(struct device_exchange *exchange, muster_mask mask, void *stream);
    /* Either of send and receive may be NULL: then only the other half is enqueued. */
    muster_status (*dispatch)(struct device_exchange *exchange, const struct dispatch_send_args *send,
                              const struct dispatch_receive_args *receive, bool begins_step, void *stream);
    muster_status (*combine)(struct device_exchange *exchange, const struct combine_send_args *send,
                             const struct combine_receive_args *receive, int32_t tokens, bool ends_step, void *stream);
};

/* Loads the CUDA backend. UNSUPPORTED, with the reason, if it is not there or there is no device. */
muster_status device_load(const struct device_ops **ops);

#endif
