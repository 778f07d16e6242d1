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
    uint32_t
        exits; /* blocks of the running kernel that have come to its end; above EXITS_VOID those that found the step void */
    muster_mask narrowed; /* what muster_ep_set_mask() said in that epoch */
    uint32_t counted; /* blocks of the running kernel that have counted their tokens: see plan_is_last() */
    uint32_t dealt; /* batches of tokens that blocks of the running kernel have taken: see stream_place() */
};

static_assert(sizeof(struct cuda_exchange) <= EXCHANGE_STATE_BYTES, "the region keeps no more for it");

/* Arrays in this rank's region that are its alone: see exchange_shape. */
struct cuda_arrays {
    unsigned char *base; /* of this rank's region, where kernels need it before they know the view */
    int32_t *counted; /* [EXCHANGE_COUNTERS][1 + R + R * S]: see plan_together() */
    int32_t *rows_from; /* [R] */
    int32_t *words_from; /* [R] */
    int32_t *rows_before; /* [R] */
    uint64_t *token_ranks; /* [T][2] */
    int32_t *token_slots; /* [T][K] */
    float *token_weights; /* [T][K] */
};

/* How plans are chosen: by the number of tokens, or as the setting says; what cannot go in words goes as for few tokens. */
enum cuda_plan_choice { CUDA_PLAN_AUTO, CUDA_PLAN_FEW, CUDA_PLAN_MANY, CUDA_PLAN_WORDS };

/* What plans may use of a device. */
struct cuda_limits {
    enum cuda_plan_choice plan;
    int32_t multiprocessors;
    int32_t shared_bytes; /* of a block */
    bool early; /* see launch_kernel() */
};

/* How blocks, or warps, share a row (cut.cuh): 2^log2_parts of them, each `size` of what a row is counted in, or fewer. */
struct cuda_cut {
    int32_t log2_parts, size;
};

/* How the blocks of a kernel share the work. */
struct cuda_plan {
    int32_t send_blocks, receive_blocks;
    int32_t count_blocks; /* dispatch: so many of those that send count all tokens first; 1 where others send */
    bool shares; /* the same blocks do both, one after the other; otherwise those that send come first in the grid */
    bool early; /* see launch_kernel() */
    bool streams; /* rows leave through stages, which takes few blocks; otherwise with ordinary stores */
    bool words; /* this rank's rows, and their results, travel in words: see words.cuh */
    struct cuda_cut send_cut, receive_cut; /* of rows that are sent, and received, in words, or see receive_alone */
    int32_t receive_alone; /* combine that streams: so many tokens are whole, the others cut by receive_cut */
    int32_t threads;
    int32_t shared_bytes; /* of a block: table and tokens of batches (dispatch), stages */
    int32_t table_bytes; /* dispatch: routes to each slot (senders), or first rows of slots (receivers) */
    int32_t batch_bytes;
    int32_t stage_bytes; /* of each stage: a row on its way through a warp */
    int32_t stages; /* of a block, each a warp's */
};

static inline unsigned plan_blocks(const struct cuda_plan *plan)
{
    int32_t both = plan->send_blocks + plan->receive_blocks;
    int32_t most = plan->send_blocks > plan->receive_blocks ? plan->send_blocks : plan->receive_blocks;
    return (unsigned)(plan->shares ? most : both);
}

/* A number that is often divided by, and 2^CUDA_DIVISOR_SHIFT by it, rounded up: see divide.cuh. */
enum { CUDA_DIVISOR_SHIFT = 30 };

struct cuda_divisor {
    int32_t divisor;
    uint32_t reciprocal;
};

struct cuda_divisors {
    struct cuda_divisor ranks, slots, told_words;
};

/* What every kernel of an exchange is launched with. */
struct cuda_launch {
    struct cuda_control *control;
    struct cuda_mailbox *mailbox; /* host memory, as the device sees it */
    struct cuda_exchange *exchange;
    struct cuda_arrays own;
    struct exchange_shape shape;
    struct cuda_divisors by; /* numbers of the shape */
    struct cuda_plan plan;
    bool begins_step; /* dispatch's send half: no step is open, so this pair is one */
    bool ends_step; /* combine's receive half, likewise */
};

#endif
