// SPDX-License-Identifier: Apache-2.0
/*
 * First half of dispatch: push each token once to every rank that holds one of its experts. One block plans, or several
 * (dispatch_plan.cuh). The others send rows: the fewest tokens in words, which takes the least time (dispatch_words.cuh);
 * few with ordinary stores (dispatch_push.cuh); many through shared memory, which takes the fewest blocks
 * (dispatch_stream.cuh).
 */
#ifndef CUDA_DISPATCH_SEND_CUH
#define CUDA_DISPATCH_SEND_CUH

#include "kernels/cuda/dispatch_plan.cuh"
#include "kernels/cuda/dispatch_stream.cuh"
#include "kernels/cuda/dispatch_words.cuh"

/*
 * The first block plans, and where rows are streamed the first few: they then send like the others, since that takes few
 * blocks. The counts are all 0, and the plan is clear.
 */
template <typename Facts>
__device__ inline void send_block_of_many(const struct cuda_launch &l, const struct turn *turn,
                                          const struct dispatch_send_args &send, const struct route_counts &counts,
                                          struct send_plan *plan, unsigned char *shared, int block)
{
    if (block < l.plan.count_blocks) {
        plan_together<Facts>(l, turn, send, counts, plan, block);
        __syncthreads(); /* all have been told */
        route_clear(counts, l.shape.slots * l.shape.ranks);
        __syncthreads();
    }
    send_stream_block<Facts>(l, turn, send, counts, shared);
}

template <typename Facts>
__device__ inline void send_block(const struct cuda_launch &l, const struct turn *turn,
                                  const struct dispatch_send_args &send, const struct route_counts &counts,
                                  struct send_plan *plan, unsigned char *shared, int block)
{
    int others = l.plan.send_blocks - 1;
    if (Facts::KIND == DISPATCH_STREAMED)
        send_block_of_many<Facts>(l, turn, send, counts, plan, shared, block);
    else if (Facts::KIND == DISPATCH_WORDS && block == 0)
        plan_alone<Facts>(l, turn, words_staged(l, send, words_stage(l, shared)), counts, plan);
    else if (block == 0)
        plan_alone<Facts>(l, turn, send, counts, plan);
    else if (Facts::KIND == DISPATCH_WORDS)
        send_words_block<Facts>(l, turn, send, shared, block - 1, others);
    else
        send_push_block<Facts>(l, turn, send, counts, block - 1, others);
}

#endif
