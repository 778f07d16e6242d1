// SPDX-License-Identifier: Apache-2.0
/* The inside of a rank's CUDA device, on the host. */
#ifndef CUDA_DEVICE_H
#define CUDA_DEVICE_H

#include <cuda_runtime_api.h>
#include <pthread.h>

#include "kernels/cuda/exchange.h"
#include "kernels/device.h"

/* This rank's own symmetric memory; peers' is only mapped. */
struct cuda_region {
    unsigned char *base; /* NULL until it is created */
    uint64_t bytes;
};

/* The mask of an epoch. */
struct device_mask {
    uint32_t epoch;
    muster_mask mask;
};

struct device {
    struct device_config config;
    int ordinal;
    struct cuda_limits limits; /* of exchanges */
    cudaStream_t agent_stream; /* of the highest priority: what ends an epoch overtakes what works in it */
    struct cuda_control *control; /* in device memory */
    struct cuda_mailbox *mailbox; /* in host memory; the device sees it at the same address */
    struct cuda_region region;
    pthread_mutex_t lock; /* short sections only: the fields below */
    uint64_t verdicts_read;
    uint64_t newest, voids; /* steps known to have ended, and how many of those are void */
    uint64_t looks; /* at peers' steps, asked for */
    struct device_mask installed[CUDA_VERDICTS]; /* by epoch: what verdicts that are still unread may be about */
    uint64_t forget; /* the failure that the last void verdict told of, until the device is told to forget it; or 0 */
};

/* Makes the device current for this thread; returns the one that was, for device_return(). */
int device_switch(const struct device *device);
void device_return(int before);

/* MUSTER_OK, or SYSTEM in the words of CUDA; `what` names the call. */
muster_status device_check(const struct device *device, cudaError_t error, const char *what);

/* vmm.c: symmetric memory. */
muster_status vmm_create(struct device *device, uint64_t bytes, unsigned char **base, int *fd);
void vmm_destroy(struct device *device);
muster_status vmm_map(struct device *device, int fd, uint64_t bytes, unsigned char **base);
void vmm_unmap(struct device *device, unsigned char *base, uint64_t bytes);

/* exchange.c */
muster_status exchange_create(struct device *device, const struct exchange_shape *shape,
                              struct device_exchange **exchange);
void exchange_destroy(struct device_exchange *exchange);
muster_status exchange_mask(struct device_exchange *exchange, muster_mask mask, void *stream);
muster_status exchange_dispatch(struct device_exchange *exchange, const struct dispatch_send_args *send,
                                const struct dispatch_receive_args *receive, bool begins_step, void *stream);
muster_status exchange_combine(struct device_exchange *exchange, const struct combine_send_args *send,
                               const struct combine_receive_args *receive, int32_t tokens, bool ends_step,
                               void *stream);

#endif
