// SPDX-License-Identifier: Apache-2.0
/*
 * An exchange on the device, and the launch of its operations. It takes no memory of the device and gives none back: that
 * may wait for kernels of every rank on the device, and they for a rank that takes memory.
 */
#include <stdlib.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/exchange.h"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/step.h"

struct device_exchange {
    struct device *device;
    struct exchange_shape shape;
    struct cuda_divisors by;
    struct cuda_exchange *state; /* these two in the region */
    struct cuda_arrays own;
};

static struct cuda_divisor divisor_of(int32_t divisor)
{
    uint32_t one = 1u << CUDA_DIVISOR_SHIFT, by = (uint32_t)divisor;
    return (struct cuda_divisor){divisor, (one + by - 1) / by};
}

muster_status exchange_create(struct device *device, const struct exchange_shape *shape,
                              struct device_exchange **exchange)
{
    if ((int64_t)shape->ranks * shape->slots > OPERATIONS_MAX_SLOTS)
        return device->config.error(MUSTER_ERR_UNSUPPORTED,
                                    "config: slots_per_rank = %d makes %lld slots, a GPU takes at most %d",
                                    shape->slots, (long long)shape->ranks * shape->slots, OPERATIONS_MAX_SLOTS);
    if (!dispatch_fits(shape, &device->limits))
        return device->config.error(
            MUSTER_ERR_UNSUPPORTED,
            "config: slots_per_rank = %d makes %lld slots: to count for them beside a row takes "
            "more than the %d bytes of shared memory that a block of this GPU can have",
            shape->slots, (long long)shape->ranks * shape->slots, device->limits.shared_bytes);
    struct device_exchange *made = calloc(1, sizeof *made);
    if (!made)
        return device->config.error(MUSTER_ERR_MEMORY, "no memory for an exchange");
    unsigned char *base = device->region.base;
    *made = (struct device_exchange){
        .device = device,
        .shape = *shape,
        .by = {divisor_of(shape->ranks), divisor_of(shape->slots), divisor_of(shape->told_words)},
        .state = (struct cuda_exchange *)(void *)(base + shape->state),
        .own = {.base = base,
                .counted = (int32_t *)(void *)(base + shape->counted),
                .words_from = (int32_t *)(void *)(base + shape->words_from),
                .rows_from = (int32_t *)(void *)(base + shape->rows_from),
                .rows_before = (int32_t *)(void *)(base + shape->rows_before),
                .token_ranks = (uint64_t *)(void *)(base + shape->token_ranks),
                .token_slots = (int32_t *)(void *)(base + shape->token_slots),
                .token_weights = (float *)(void *)(base + shape->token_weights)},
    };
    *exchange = made;
    return MUSTER_OK;
}

void exchange_destroy(struct device_exchange *exchange)
{
    free(exchange); /* what kernels may still use lies in the region */
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
        .own = exchange->own,
        .shape = exchange->shape,
        .by = exchange->by,
    };
}

muster_status exchange_dispatch(struct device_exchange *exchange, const struct dispatch_send_args *send,
                                const struct dispatch_receive_args *receive, bool begins_step, void *stream)
{
    struct device *device = exchange->device;
    struct cuda_launch launch = exchange_launch(exchange);
    launch.begins_step = begins_step;
    launch.plan = dispatch_plan(&exchange->shape, send ? send->tokens : exchange->shape.tokens,
                                send && receive && receive->output[0], &device->limits);
    return device_check(device, dispatch_launch(&launch, send, receive, device->config.fault_tolerance, stream),
                        "muster_ep_dispatch");
}

muster_status exchange_combine(struct device_exchange *exchange, const struct combine_send_args *send,
                               const struct combine_receive_args *receive, int32_t tokens, bool ends_step, void *stream)
{
    struct device *device = exchange->device;
    struct cuda_launch launch = exchange_launch(exchange);
    launch.ends_step = ends_step;
    launch.plan = combine_plan(&exchange->shape, tokens, &device->limits);
    return device_check(device, combine_launch(&launch, send, receive, tokens, device->config.fault_tolerance, stream),
                        "muster_ep_combine");
}
