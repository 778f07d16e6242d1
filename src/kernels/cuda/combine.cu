// SPDX-License-Identifier: Apache-2.0
/* Combine: one kernel, whose blocks send rows home or add up this rank's tokens; a half launches only those it needs. */
#include "kernels/cuda/combine_receive.cuh"
#include "kernels/cuda/combine_send.cuh"
#include "kernels/cuda/combine_stream.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/plan.cuh"

struct combine_work {
    struct cuda_launch launch;
    struct combine_send_args send;
    struct combine_receive_args receive;
    int32_t tokens;
    enum turn_operation operation;
};

/* Stages for rows (senders), or what is added up (receivers), where rows are streamed. */
extern __shared__ __align__(128) unsigned char combine_shared[];

/* The lines are raised by a block that has to wait anyway, where there is one; before it does. */
static __device__ __forceinline__ void combine_raise(const struct combine_work &w, const struct turn *turn)
{
    const struct cuda_plan &plan = w.launch.plan;
    if (plan.send_blocks > 0 && (int)blockIdx.x == (plan.receive_blocks > 0 ? plan.send_blocks : 0))
        raise_combine_lines(w.launch, turn);
}

/* How this rank's tokens come home. A kernel for each: together they would not fit into the registers. */
enum combine_kind { COMBINE_PLAIN, COMBINE_WORDS, COMBINE_QUANTISED, COMBINE_STREAMED, COMBINE_KINDS };

/* What a block finds out about its first rows or tokens while it enters. */
union combine_findings {
    struct returning returning;
    struct adding adding;
};

template <enum combine_kind KIND>
static __device__ __forceinline__ void combine_prepare_block(const struct combine_work &w, int thread, int threads,
                                                             union combine_findings *found)
{
    int block = (int)blockIdx.x, sends = w.launch.plan.send_blocks;
    if (KIND == COMBINE_STREAMED)
        return;
    if (block < sends)
        returning_prepare(w.launch, w.send, block, thread, threads, &found->returning);
    else
        adding_prepare(w.launch, w.tokens, block - sends, thread, &found->adding);
}

template <bool FT, enum combine_kind KIND>
static __device__ void combine_block(const struct combine_work &w, const struct turn *turn,
                                     union combine_findings *found)
{
    const struct cuda_launch &l = w.launch;
    int block = (int)blockIdx.x, sends = l.plan.send_blocks, receives = l.plan.receive_blocks;
    combine_raise(w, turn);
    if (block < sends) {
        if (KIND == COMBINE_STREAMED)
            stream_send_block(l, turn, w.send, combine_shared, block, sends);
        else
            send_rows_home<KIND == COMBINE_QUANTISED>(l, turn, w.send, block, sends, &found->returning);
        return;
    }
    block -= sends;
    if (KIND == COMBINE_STREAMED)
        stream_receive_block<FT>(l, turn, w.receive, w.tokens, combine_shared, block, receives);
    else
        add_up_tokens<FT, KIND == COMBINE_QUANTISED, KIND == COMBINE_WORDS>(l, turn, w.receive, w.tokens, block,
                                                                            receives, &found->adding);
    if (block == 0)
        await_combine_lines<FT>(l, turn);
}

template <bool FT, enum combine_kind KIND>
static __global__ void __launch_bounds__(KIND == COMBINE_WORDS ? OPERATIONS_WORD_THREADS : OPERATIONS_MAX_THREADS, 1)
    combine_kernel(const __grid_constant__ struct combine_work w)
{
    __shared__ struct turn turn;
    __shared__ union combine_findings found;
    auto prepare = [&](int thread, int threads) { combine_prepare_block<KIND>(w, thread, threads, &found); };
    if (turn_enter<FT>(w.launch, w.operation, &turn, prepare))
        combine_block<FT, KIND>(w, &turn, &found);
    turn_leave<FT>(w.launch, w.operation, &turn, (int)blockIdx.x <= w.launch.plan.send_blocks);
}

typedef void combine_function(const struct combine_work);

static combine_function *const combine_kernels[2][COMBINE_KINDS] = {
    {combine_kernel<false, COMBINE_PLAIN>, combine_kernel<false, COMBINE_WORDS>,
     combine_kernel<false, COMBINE_QUANTISED>, combine_kernel<false, COMBINE_STREAMED>},
    {combine_kernel<true, COMBINE_PLAIN>, combine_kernel<true, COMBINE_WORDS>, combine_kernel<true, COMBINE_QUANTISED>,
     combine_kernel<true, COMBINE_STREAMED>}};

static enum combine_kind kind_of(const struct cuda_launch *launch)
{
    if (launch->plan.streams)
        return COMBINE_STREAMED;
    if (launch->plan.words)
        return COMBINE_WORDS;
    return launch->shape.quantise_return == MUSTER_EP_QUANTISE_NONE ? COMBINE_PLAIN : COMBINE_QUANTISED;
}

/*
 * So many blocks as there are rows to be sent, and tokens to be added up, or parts of them (in words); few of the threads
 * have nothing to do.
 */
static void plan_few(const struct exchange_shape *shape, int32_t tokens, struct cuda_plan *plan)
{
    int32_t pieces = (int32_t)(shape->result_bytes / SUM_PIECE);
    int32_t most = plan->words ? (int32_t)OPERATIONS_WORD_THREADS : (int32_t)OPERATIONS_MAX_THREADS;
    int32_t cut_for = plan->words ? tokens : shape->tokens, rows = tokens > 0 ? tokens : 1;
    plan->send_cut = plan_cut(plan->send_blocks, cut_for * shape->ranks, pieces, WORDS_WARP_PIECES);
    plan->receive_cut = plan_cut(plan->words ? plan->receive_blocks : 0, rows, pieces, WORDS_WARP_PIECES);
    plan->send_blocks = plan_least(plan->send_blocks, shape->tokens * shape->ranks << plan->send_cut.log2_parts);
    plan->receive_blocks = plan_least(plan->receive_blocks, rows << plan->receive_cut.log2_parts);
    plan->threads = pieces <= 128 ? 128 : plan_least((pieces + 31) / 32 * 32, most);
}

static void plan_many(const struct exchange_shape *shape, int32_t shared_bytes, struct cuda_plan *plan)
{
    plan->streams = true;
    plan->threads = OPERATIONS_MAX_THREADS;
    plan->stage_bytes = plan_stage_bytes(shape->return_bytes);
    plan->stages = plan_least(shared_bytes / plan->stage_bytes, plan->threads / 32 - 1); /* and the postman */
    plan->shared_bytes = plan->stages * plan->stage_bytes;
    int32_t parts_bytes = plan->threads / 32 * (int32_t)sizeof(struct owed);
    plan->shared_bytes = plan->shared_bytes > parts_bytes ? plan->shared_bytes : parts_bytes;
}

/*
 * Few tokens: senders read up to K rows for each that they send, so they get two thirds of the blocks. Many: to send
 * takes as long as to add up.
 */
struct cuda_plan combine_plan(const struct exchange_shape *shape, int32_t tokens, const struct cuda_limits *limits)
{
    int32_t blocks = limits->multiprocessors, third = blocks > 3 ? blocks / 3 : 1;
    bool can_stream = !shape->expert_major && !shape->quantise_return;
    bool streams = can_stream && plan_is_for_many(tokens, limits);
    struct cuda_plan plan = {};
    plan.early = limits->early;
    plan.words = plan_is_in_words(shape, tokens, limits);
    plan.receive_blocks = streams && blocks > 3 ? blocks - blocks / 2 : third;
    plan.send_blocks = blocks > 3 ? blocks - plan.receive_blocks : 1;
    if (streams)
        plan_many(shape, limits->shared_bytes, &plan);
    else
        plan_few(shape, tokens, &plan);
    return plan;
}

cudaError_t combine_prepare(int ordinal, int32_t *shared_bytes)
{
    for (int ft = 0; ft < 2; ft++)
        for (int kind = 0; kind < COMBINE_KINDS; kind++) {
            cudaError_t error = launch_prepare((const void *)combine_kernels[ft][kind], ordinal, shared_bytes);
            if (error != cudaSuccess)
                return error;
        }
    return cudaSuccess;
}

static enum turn_operation combine_operation(bool sends, bool receives)
{
    if (sends && receives)
        return TURN_COMBINE;
    return sends ? TURN_COMBINE_SEND : TURN_COMBINE_RECEIVE;
}

cudaError_t combine_launch(const struct cuda_launch *launch, const struct combine_send_args *send,
                           const struct combine_receive_args *receive, int32_t tokens, bool ft, cudaStream_t stream)
{
    struct combine_work w = {};
    w.launch = *launch;
    w.tokens = tokens;
    w.operation = combine_operation(send, receive);
    if (send)
        w.send = *send;
    else
        w.launch.plan.send_blocks = 0;
    if (receive)
        w.receive = *receive;
    else
        w.launch.plan.receive_blocks = 0;
    return launch_kernel(combine_kernels[ft][kind_of(launch)], w.launch.plan, stream, w);
}
