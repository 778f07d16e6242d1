// SPDX-License-Identifier: Apache-2.0
/* Dispatch: one kernel, whose blocks plan, push or receive; a half of it launches only the blocks it needs. */
#include "kernels/cuda/dispatch_receive.cuh"
#include "kernels/cuda/dispatch_send.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/plan.cuh"

/* What a launch is given; the halves that are not asked for have no blocks. */
struct dispatch_work {
    struct cuda_launch launch;
    struct dispatch_send_args send;
    struct dispatch_receive_args receive;
    enum turn_operation operation;
};

/* See cuda_plan. */
extern __shared__ __align__(128) unsigned char dispatch_shared[];

/* The table as the sending half sees it. */
static __device__ __forceinline__ struct route_counts dispatch_counts()
{
    return {(int32_t *)dispatch_shared + MUSTER_MAX_RANKS, (int32_t *)dispatch_shared};
}

template <bool FT, enum dispatch_kind KIND>
static __device__ void dispatch_block(const struct dispatch_work &w, const struct turn *turn, struct send_plan *made)
{
    const struct cuda_plan &plan = w.launch.plan;
    int block = (int)blockIdx.x, receiver = plan.shares ? block : block - plan.send_blocks;
    if (block < plan.send_blocks)
        send_block<FT, KIND>(w.launch, turn, w.send, dispatch_counts(), made, dispatch_shared + plan.table_bytes,
                             block);
    if (plan.shares)
        __syncthreads(); /* the shared memory has another use now */
    if (receiver >= 0 && receiver < plan.receive_blocks)
        receive_block<FT, KIND == DISPATCH_WORDS>(w.launch, turn, w.receive, dispatch_shared, receiver,
                                                  plan.receive_blocks);
}

/* What can be done before the turn is known. */
template <enum dispatch_kind KIND>
static __device__ __forceinline__ void dispatch_prepare_block(const struct dispatch_work &w, int thread, int threads)
{
    int block = (int)blockIdx.x, blocks = w.launch.plan.send_blocks;
    if (block >= blocks)
        return;
    if (KIND == DISPATCH_WORDS)
        words_prepare(w.launch, w.send, dispatch_shared + w.launch.plan.table_bytes, block - 1, thread, threads);
    else if (KIND == DISPATCH_PUSHED && block > 0)
        push_prepare(w.launch, w.send, block - 1, blocks - 1, thread, threads);
}

template <bool FT, enum dispatch_kind KIND>
static __global__ void __launch_bounds__(KIND == DISPATCH_WORDS ? OPERATIONS_WORD_THREADS : OPERATIONS_MAX_THREADS, 1)
    dispatch_kernel(const __grid_constant__ struct dispatch_work w)
{
    __shared__ struct turn turn;
    __shared__ struct send_plan plan; /* of a block that plans */
    if ((int)blockIdx.x < w.launch.plan.send_blocks)
        route_clear(dispatch_counts(), w.launch.shape.slots * w.launch.shape.ranks); /* while the gate is asked */
    if ((int)blockIdx.x < w.launch.plan.count_blocks)
        plan_clear(&plan);
    auto prepare = [&](int thread, int threads) { dispatch_prepare_block<KIND>(w, thread, threads); };
    if (turn_enter<FT>(w.launch, w.operation, &turn, prepare))
        dispatch_block<FT, KIND>(w, &turn, &plan);
    turn_leave<FT>(w.launch, w.operation, &turn, true);
}

typedef void dispatch_function(const struct dispatch_work);

static dispatch_function *const dispatch_kernels[2][DISPATCH_KINDS] = {{dispatch_kernel<false, DISPATCH_PUSHED>,
                                                                        dispatch_kernel<false, DISPATCH_WORDS>,
                                                                        dispatch_kernel<false, DISPATCH_STREAMED>},
                                                                       {dispatch_kernel<true, DISPATCH_PUSHED>,
                                                                        dispatch_kernel<true, DISPATCH_WORDS>,
                                                                        dispatch_kernel<true, DISPATCH_STREAMED>}};

static enum dispatch_kind kind_of(const struct cuda_launch *launch)
{
    if (launch->plan.streams)
        return DISPATCH_STREAMED;
    return launch->plan.words ? DISPATCH_WORDS : DISPATCH_PUSHED;
}

/* Warps without a stage: who place tokens and post flags, who hear while the rest looks out for rows, or one for the summary. */
static int32_t plan_others(const struct cuda_plan *plan, int32_t warps)
{
    if (plan->streams)
        return 1 + warps / 4;
    return plan->words ? warps / 2 : 1;
}

/* So many stages as fit behind the tables, each for a row of the longest array if that is not too long. */
static void plan_stages(const struct exchange_shape *shape, int32_t shared_bytes, struct cuda_plan *plan)
{
    size_t longest = 16, ranks = (size_t)shape->ranks, slots = (size_t)shape->slots;
    size_t entries = ranks * slots + (slots > MUSTER_MAX_RANKS ? slots : MUSTER_MAX_RANKS);
    int32_t token_bytes = plan->streams ? STREAM_AHEAD * (int32_t)sizeof(struct route_token) : 0; /* a warp's tokens */
    int32_t warps = plan->threads / 32, others = plan_others(plan, warps);
    for (int a = 0; a < shape->arrays; a++)
        longest = shape->array[a].row_bytes > longest ? shape->array[a].row_bytes : longest;
    plan->table_bytes = plan_round_up(entries * sizeof(int32_t), 128);
    plan->stage_bytes = plan_stage_bytes(longest);
    plan->stages =
        plan_least((shared_bytes - plan->table_bytes - 128) / (plan->stage_bytes + token_bytes), warps - others);
    plan->batch_bytes = plan_round_up((size_t)plan->stages * (size_t)token_bytes, 128);
    plan->shared_bytes = plan->table_bytes + plan->batch_bytes + plan->stages * plan->stage_bytes;
    int32_t words_bytes = plan->words ? plan->table_bytes + words_shared_bytes(shape, plan->send_cut) : 0;
    plan->shared_bytes = plan->shared_bytes > words_bytes ? plan->shared_bytes : words_bytes;
}

/* How rows that come in words are shared, if other ranks have as many tokens. */
static struct cuda_cut plan_received(const struct exchange_shape *shape, int32_t tokens, int32_t blocks)
{
    return plan_cut(blocks, tokens * shape->ranks, (int32_t)(shape->array[0].row_bytes / 16), WORDS_WARP_PIECES);
}

/* Few tokens: half of the blocks push and half receive, none without a token or a row. */
static void plan_few(const struct exchange_shape *shape, int32_t tokens, int32_t multiprocessors,
                     struct cuda_plan *plan)
{
    int32_t half = multiprocessors > 3 ? multiprocessors / 2 : 2, pushing = plan_least(tokens, half - 1);
    plan->send_blocks = 1 + (pushing > 0 ? pushing : 1);
    plan->receive_cut = plan_received(shape, tokens, half);
    plan->receive_blocks = plan_least(shape->tokens * shape->ranks << plan->receive_cut.log2_parts, half);
}

/* In words: as many blocks push a row as there are for it. */
static void plan_words(const struct exchange_shape *shape, int32_t tokens, int32_t multiprocessors,
                       struct cuda_plan *plan)
{
    plan_few(shape, tokens, multiprocessors, plan);
    plan->words = true;
    plan->threads = plan_least(plan->threads, OPERATIONS_WORD_THREADS);
    int32_t blocks = multiprocessors / 2 - 1, rows = tokens > 0 ? tokens : 1;
    plan->send_cut = plan_cut(blocks, rows, words_of_hidden(*shape), WORDS_UNIT);
    plan->send_blocks = 1 + plan_least(rows << plan->send_cut.log2_parts, blocks);
}

/*
 * Many tokens. Rank-major and flat: a row that has come is where it belongs, or is copied in one piece, so blocks first send
 * and then receive. Expert-major: each row is copied to several places, which takes as many blocks again.
 */
static void plan_many(const struct exchange_shape *shape, int32_t tokens, int32_t multiprocessors,
                      struct cuda_plan *plan)
{
    plan->streams = true;
    plan->shares = !shape->expert_major;
    plan->send_blocks = plan->shares ? multiprocessors : multiprocessors / 2;
    plan->receive_blocks = plan->shares ? multiprocessors : multiprocessors - plan->send_blocks;
    plan->count_blocks = plan_least(plan_least(tokens, EXCHANGE_COUNTERS), plan->send_blocks);
    plan->count_blocks = plan->count_blocks > 1 ? plan->count_blocks : 1;
    plan->receive_cut = plan_received(shape, shape->tokens, plan->receive_blocks);
}

struct cuda_plan dispatch_plan(const struct exchange_shape *shape, int32_t tokens, const struct cuda_limits *limits)
{
    size_t row_bytes = shape->array[0].row_bytes, pieces = row_bytes / 16;
    bool can_stream = row_bytes % 16 == 0; /* the engine takes no other */
    struct cuda_plan plan = {};
    plan.early = limits->early;
    plan.count_blocks = 1;
    plan.threads = pieces >= 768 ? OPERATIONS_MAX_THREADS : pieces >= 256 ? 512 : 256;
    if (plan_is_in_words(shape, tokens, limits))
        plan_words(shape, tokens, limits->multiprocessors, &plan);
    else if (can_stream && plan_is_for_many(tokens, limits))
        plan_many(shape, tokens, limits->multiprocessors, &plan);
    else
        plan_few(shape, tokens, limits->multiprocessors, &plan);
    plan_stages(shape, limits->shared_bytes, &plan);
    return plan;
}

cudaError_t dispatch_prepare(int ordinal, int32_t *shared_bytes)
{
    for (int i = 0; i < 2 * DISPATCH_KINDS; i++) {
        const void *kernel = (const void *)dispatch_kernels[i / DISPATCH_KINDS][i % DISPATCH_KINDS];
        cudaError_t error = launch_prepare(kernel, ordinal, shared_bytes);
        if (error != cudaSuccess)
            return error;
    }
    return cudaSuccess;
}

static enum turn_operation dispatch_operation(bool sends, bool receives)
{
    if (sends && receives)
        return TURN_DISPATCH;
    return sends ? TURN_DISPATCH_SEND : TURN_DISPATCH_RECEIVE;
}

cudaError_t dispatch_launch(const struct cuda_launch *launch, const struct dispatch_send_args *send,
                            const struct dispatch_receive_args *receive, bool ft, cudaStream_t stream)
{
    struct dispatch_work w = {};
    w.launch = *launch;
    w.operation = dispatch_operation(send, receive);
    if (send)
        w.send = *send;
    else
        w.launch.plan.send_blocks = 0;
    if (receive)
        w.receive = *receive;
    else
        w.launch.plan.receive_blocks = 0;
    return launch_kernel(dispatch_kernels[ft][kind_of(launch)], w.launch.plan, stream, w);
}
