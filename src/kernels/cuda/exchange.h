// SPDX-License-Identifier: Apache-2.0
/*
 * An exchange on a GPU: what a rank keeps in its device memory from one operation of a pair to the next, and what a
 * kernel is launched with. Everything that a captured graph must not freeze (epoch, mask, numbers, peers) is read from
 * device memory. Read by the host compiler and by nvcc.
 */
#ifndef CUDA_EXCHANGE_H
#define CUDA_EXCHANGE_H

#include <assert.h>

#include "kernels/cuda/control.h"
#include "kernels/exchange.h"

/* The pair that is under way, or was last. Written by the last block of dispatch's send half. */
struct cuda_pair {
    uint32_t epoch;
    uint32_t pad;
    uint64_t sequence; /* of the pair in the epoch; its stamp is made of both */
    muster_mask mask; /* of the ranks that take part */
};

/* At exchange_shape.state of this rank's region. All zero at first. */
struct cuda_exchange {
    struct cuda_pair pair;
    uint32_t narrowed_epoch; /* of `narrowed`; masked mode */
    uint32_t exits; /* blocks of the running kernel that have come to its end */
    muster_mask narrowed; /* what muster_ep_set_mask() said in that epoch */
};

static_assert(sizeof(struct cuda_exchange) <= EXCHANGE_STATE_BYTES, "the region keeps no more for it");

/* Arrays in this rank's region that are its alone: see exchange_shape. */
struct cuda_arrays {
    int32_t *rows_from; /* [R] */
    int32_t *rows_before; /* [R] */
    int32_t *slot_begin; /* [S][R] */
    uint64_t *token_ranks; /* [T][2] */
    int32_t *token_slots; /* [T][K] */
    float *token_weights; /* [T][K] */
};

/* What plans may use of a device. */
struct cuda_limits {
    int32_t multiprocessors;
    int32_t shared_bytes; /* of a block */
    bool early; /* see launch_kernel() */
};

/* How the blocks of a kernel share the work. */
struct cuda_plan {
    int32_t send_blocks; /* the first ones of the grid push rows */
    int32_t receive_blocks; /* the others wait for rows */
    int32_t threads;
    bool early; /* see launch_kernel() */
    int32_t shared_bytes; /* dispatch, like the next three: a table of routes or of first rows, and stages behind it */
    int32_t table_bytes;
    int32_t stage_bytes; /* of each stage: a row on its way through a receiving warp */
    int32_t receive_warps; /* of a receiving block, a stage each */
};

/* What every kernel of an exchange is launched with. */
struct cuda_launch {
    struct cuda_control *control;
    struct cuda_mailbox *mailbox; /* host memory, as the device sees it */
    struct cuda_exchange *exchange;
    struct cuda_arrays own;
    struct exchange_shape shape;
    struct cuda_plan plan;
    bool begins_step; /* dispatch's send half: no step is open, so this pair is one */
    bool ends_step; /* combine's receive half, likewise */
};

#endif
