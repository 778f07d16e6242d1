// SPDX-License-Identifier: Apache-2.0
/*
 * A turn: one block's part in one kernel, from the gate to the epilogue. Every kernel of the library is
 *
 *     __shared__ struct turn turn;
 *     if (turn_enter<FT>(launch, TURN_..., &turn, prepare)) { ... work; it may return early from its functions ... }
 *     turn_leave<FT>(launch, TURN_..., &turn, told_peers);
 *
 * so no block ever leaves past the epilogue. All threads of a block call both.
 *
 * A kernel begins with an empty instruction cache, and waits for every line of code that it runs over. So what is rarely
 * done is mostly a call, and a loop that goes round once as a rule is told not to be unrolled where that would be much code.
 */
#ifndef CUDA_TURN_CUH
#define CUDA_TURN_CUH

#include "core/stamp.h"
#include "kernels/cuda/exchange.h"
#include "kernels/cuda/gate.cuh"
#include "kernels/cuda/memory.cuh"

enum turn_operation {
    TURN_DISPATCH_SEND,
    TURN_DISPATCH_RECEIVE,
    TURN_DISPATCH,
    TURN_COMBINE_SEND,
    TURN_COMBINE_RECEIVE,
    TURN_COMBINE
};

struct turn {
    /* As they were when the kernel before was over; they stay so until all blocks have left, but for this kernel's own doing. */
    struct cuda_view view;
    struct cuda_step step;
    int32_t rank, ranks;
    uint32_t epoch;
    uint32_t live; /* this block takes part */
    uint64_t number; /* of the step in the epoch */
    uint64_t sequence; /* of the pair in the epoch */
    uint64_t stamp; /* of the pair */
    muster_mask mask; /* of the pair */
};

__device__ __forceinline__ bool turn_has(const struct turn *turn, int rank)
{
    return turn->mask.word[rank >> 6] >> (rank & 63) & 1;
}

/* stamp_make() of core/stamp.h, for the device. */
__device__ __forceinline__ uint64_t turn_stamp(uint32_t epoch, uint64_t sequence)
{
    return (uint64_t)epoch << STAMP_SEQUENCE_BITS | sequence;
}

/* The failure word: see failure_pack() in kernels/kernels.h, whose layout this is. */
__device__ __forceinline__ uint64_t turn_failure(muster_reason reason, muster_phase phase, int peer, uint32_t epoch)
{
    return (uint64_t)reason | (uint64_t)phase << 8 | (uint64_t)(uint16_t)(peer + 1) << 16 | (uint64_t)epoch << 32;
}

/*
 * M5: an epoch ends at its first failed operation. The device itself begins no further step of it, since a step that is
 * queued already, or a replay, may come before the agent has heard of the failure.
 */
__device__ inline void turn_close_epoch(const struct cuda_launch &l, uint32_t epoch)
{
    unsigned long long shut = gate_shut(epoch);
    atomicCAS((unsigned long long *)&l.control->gate, shut | CUDA_GATE_OPEN, shut);
}

/*
 * X14: recorded once, the first writer wins; the agent's copy follows. Any thread.
 */
static __device__ __noinline__ void turn_fail(const struct cuda_launch &l, muster_reason reason, muster_phase phase,
                                              int peer, uint32_t epoch, uint64_t detail)
{
    uint64_t failure = turn_failure(reason, phase, peer, epoch);
    if (reason == MUSTER_REASON_VALUE)
        atomicMin((unsigned long long *)&l.control->failure_detail, (unsigned long long)detail);
    __threadfence_system(); /* whom this thread calls overdue is seen before any failure is */
    if (atomicCAS((unsigned long long *)&l.control->failure, 0ull, (unsigned long long)failure) != 0)
        return; /* the gate stays as it is: the agent hears of what is recorded, and ends the epoch of that alone */
    if (reason != MUSTER_REASON_NOT_READY)
        turn_close_epoch(l, epoch);
    flag_raise(&l.mailbox->failure, failure);
}

/* Whether the step is void by now. One load from this device's memory. */
__device__ __forceinline__ bool turn_void(const struct cuda_launch &l)
{
    return word_look(&l.control->failure) != 0;
}

/*
 * Fills `turn`; false: the step is void, and the block must do nothing but turn_leave(). FT false: nothing is asked
 * (promise 10).
 *
 * Meanwhile the other warps call prepare(thread, threads), in the order of the stream: it may read what the caller gave and
 * what is in this rank's own region, and write shared memory. It knows nothing of the turn, and may be in vain.
 */
template <bool FT, typename Prepare>
__device__ bool turn_enter(const struct cuda_launch &l, enum turn_operation operation, struct turn *turn,
                           Prepare prepare);

/*
 * The block has done its part. The last one to come here writes what the next kernel reads. told_peers: the block may have
 * stored in memory of peers, who must see that before they see the end of the step.
 */
template <bool FT>
__device__ void turn_leave(const struct cuda_launch &l, enum turn_operation operation, const struct turn *turn,
                           bool told_peers);

/* Tells every peer that this rank has begun its step; all threads of one block, once, in the kernel that begins it. */
__device__ void turn_publish_begun(const struct cuda_launch &l, const struct turn *turn);

#include "kernels/cuda/turn_inline.cuh"

#endif
