// SPDX-License-Identifier: Apache-2.0
/* An exchange on the device: its private memory, and the launch of its operations. */
#include <stdlib.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/exchange.h"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/step.h"

struct device_exchange {
    struct device *device;
    struct exchange_shape shape;
    struct cuda_exchange *state; /* in device memory, with its arrays behind it in one allocation */
};

/* Takes `bytes` of the block of memory that begins at `base`; 16-byte steps. */
static void *exchange_take(unsigned char *base, uint64_t *next, uint64_t bytes)
{
    void *taken = base + *next;
    *next += (bytes + 15) / 16 * 16;
    return taken;
}

/* Where the arrays lie behind the struct; returns the bytes of all. */
static uint64_t exchange_lay_out(const struct exchange_shape *shape, unsigned char *base, struct cuda_exchange *state)
{
    uint64_t next = 0, ranks = (uint64_t)shape->ranks, tokens = (uint64_t)shape->tokens;
    uint64_t routes = tokens * (uint64_t)shape->topk;
    exchange_take(base, &next, sizeof *state);
    state->rows = exchange_take(base, &next, ranks * sizeof(int32_t));
    state->begin = exchange_take(base, &next, (uint64_t)shape->slots * ranks * sizeof(int32_t));
    state->token_ranks = exchange_take(base, &next, tokens * 2 * sizeof(uint64_t));
    state->token_slots = exchange_take(base, &next, routes * sizeof(int32_t));
    state->token_weights = exchange_take(base, &next, routes * sizeof(float));
    return next;
}

static cudaError_t exchange_make_state(struct device_exchange *exchange)
{
    struct cuda_exchange state = {0};
    unsigned char *base = NULL;
    uint64_t bytes = exchange_lay_out(&exchange->shape, NULL, &state);
    cudaError_t error = cudaMalloc((void **)&base, bytes);
    if (error != cudaSuccess)
        return error;
    exchange->state = (struct cuda_exchange *)(void *)base;
    exchange_lay_out(&exchange->shape, base, &state);
    error = cudaMemset(base, 0, bytes);
    return error == cudaSuccess ? cudaMemcpy(base, &state, sizeof state, cudaMemcpyHostToDevice) : error;
}

muster_status exchange_create(struct device *device, const struct exchange_shape *shape,
                              struct device_exchange **exchange)
{
    if ((int64_t)shape->ranks * shape->slots > OPERATIONS_MAX_SLOTS)
        return device->config.error(MUSTER_ERR_UNSUPPORTED,
                                    "config: slots_per_rank = %d makes %lld slots, a GPU takes at most %d",
                                    shape->slots, (long long)shape->ranks * shape->slots, OPERATIONS_MAX_SLOTS);
    struct device_exchange *made = calloc(1, sizeof *made);
    if (!made)
        return device->config.error(MUSTER_ERR_MEMORY, "no memory for an exchange");
    made->device = device;
    made->shape = *shape;
    int before = device_switch(device);
    muster_status status = device_check(device, exchange_make_state(made), "muster_ep_create");
    if (status == MUSTER_OK)
        *exchange = made;
    else
        exchange_destroy(made);
    device_return(before);
    return status;
}

void exchange_destroy(struct device_exchange *exchange)
{
    int before = device_switch(exchange->device);
    cudaFree(exchange->state); /* waits for kernels that may still use it */
    device_return(before);
    free(exchange);
}

muster_status exchange_mask(struct device_exchange *exchange, muster_mask mask, void *stream)
{
    struct device *device = exchange->device;
    return device_check(device, step_launch_mask(device->control, device->mailbox, exchange->state, mask, stream),
                        "muster_ep_set_mask");
}

static struct cuda_launch exchange_launch(const struct device_exchange *exchange)
{
    return (struct cuda_launch){
        .control = exchange->device->control,
        .mailbox = exchange->device->mailbox,
        .exchange = exchange->state,
        .shape = exchange->shape,
    };
}

muster_status exchange_dispatch(struct device_exchange *exchange, const struct dispatch_send_args *send,
                                const struct dispatch_receive_args *receive, bool begins_step, void *stream)
{
    struct device *device = exchange->device;
    struct cuda_launch launch = exchange_launch(exchange);
    launch.begins_step = begins_step;
    launch.plan =
        dispatch_plan(&exchange->shape, send ? send->tokens : exchange->shape.tokens, device->multiprocessors);
    return device_check(device, dispatch_launch(&launch, send, receive, device->config.fault_tolerance, stream),
                        "muster_ep_dispatch");
}

muster_status exchange_combine(struct device_exchange *exchange, const struct combine_send_args *send,
                               const struct combine_receive_args *receive, int32_t tokens, bool ends_step, void *stream)
{
    struct device *device = exchange->device;
    struct cuda_launch launch = exchange_launch(exchange);
    launch.ends_step = ends_step;
    launch.plan = combine_plan(&exchange->shape, tokens, device->multiprocessors);
    return device_check(device, combine_launch(&launch, send, receive, tokens, device->config.fault_tolerance, stream),
                        "muster_ep_combine");
}
