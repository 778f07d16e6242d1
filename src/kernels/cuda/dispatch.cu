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

template <typename Facts>
static __device__ void dispatch_block(const struct dispatch_work &w, const struct turn *turn, struct send_plan *made)
{
    const struct cuda_plan &plan = w.launch.plan;
    int block = (int)blockIdx.x, receiver = plan.shares ? block : block - plan.send_blocks;
    if (block < plan.send_blocks)
        send_block<Facts>(w.launch, turn, w.send, dispatch_counts(), made, dispatch_shared + plan.table_bytes, block);
    if (plan.shares)
        __syncthreads(); /* the shared memory has another use now */
    if (receiver >= 0 && receiver < plan.receive_blocks)
        receive_block<Facts>(w.launch, turn, w.receive, dispatch_shared, receiver, plan.receive_blocks);
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

template <typename Facts>
static __global__ void
__launch_bounds__(Facts::KIND == DISPATCH_STREAMED ? OPERATIONS_STREAM_WARP_THREADS : OPERATIONS_ROW_THREADS, 1)
    dispatch_kernel(const __grid_constant__ struct dispatch_work w)
{
    __shared__ struct turn turn;
    __shared__ struct send_plan plan; /* of a block that plans */
    if ((int)blockIdx.x < w.launch.plan.send_blocks)
        route_clear(dispatch_counts(), w.launch.shape.slots * w.launch.shape.ranks); /* while the gate is asked */
    if ((int)blockIdx.x < w.launch.plan.count_blocks)
        plan_clear(&plan);
    auto prepare = [&](int thread, int threads) { dispatch_prepare_block<Facts::KIND>(w, thread, threads); };
    if (turn_enter<Facts::FT>(w.launch, w.operation, &turn, prepare))
        dispatch_block<Facts>(w, &turn, &plan);
    turn_leave<Facts::FT>(w.launch, w.operation, &turn, true);
}

typedef void dispatch_function(const struct dispatch_work);

template <bool FT, bool EXPERT_MAJOR, bool QUANTISED> static dispatch_function *kernel_of_kind(enum dispatch_kind kind)
{
    switch (kind) {
    case DISPATCH_WORDS: /* there are none in the other layouts */
        return dispatch_kernel<dispatch_facts<FT, DISPATCH_WORDS, true, QUANTISED>>;
    case DISPATCH_STREAMED: return dispatch_kernel<dispatch_facts<FT, DISPATCH_STREAMED, EXPERT_MAJOR, QUANTISED>>;
    default: return dispatch_kernel<dispatch_facts<FT, DISPATCH_PUSHED, EXPERT_MAJOR, QUANTISED>>;
    }
}

static dispatch_function *kernel_of(bool ft, bool expert_major, bool quantised, enum dispatch_kind kind)
{
    typedef dispatch_function *of_kind(enum dispatch_kind kind);
    static of_kind *const all[2][2][2] = {{{kernel_of_kind<false, false, false>, kernel_of_kind<false, false, true>},
                                           {kernel_of_kind<false, true, false>, kernel_of_kind<false, true, true>}},
                                          {{kernel_of_kind<true, false, false>, kernel_of_kind<true, false, true>},
                                           {kernel_of_kind<true, true, false>, kernel_of_kind<true, true, true>}}};
    return all[ft][expert_major][quantised](kind);
}

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

/* So many stages as fit behind the tables, each for a row of hidden states, or of the longest array, if that is not too long. */
static void plan_stages(const struct exchange_shape *shape, int32_t shared_bytes, struct cuda_plan *plan)
{
    size_t longest = 16, ranks = (size_t)shape->ranks, slots = (size_t)shape->slots;
    size_t entries = ranks * slots + (slots > MUSTER_MAX_RANKS ? slots : MUSTER_MAX_RANKS);
    int32_t token_bytes = plan->streams ? STREAM_AHEAD * (int32_t)sizeof(struct route_token) : 0; /* a warp's tokens */
    int32_t warps = plan->threads / 32, others = plan_others(plan, warps);
    for (int a = 0; a < shape->arrays; a++)
        longest = shape->array[a].row_bytes > longest ? shape->array[a].row_bytes : longest;
    size_t hidden_bytes = shape->array[0].row_bytes + (shape->quantise ? shape->array[1].row_bytes : 0);
    longest = hidden_bytes > longest ? hidden_bytes : longest;
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
    return cut_rows(blocks, tokens * shape->ranks, (int32_t)(shape->array[0].row_bytes / 16), WORDS_WARP_PIECES);
}

/* Of the blocks; one of those that send plans, so there are two at least. */
static int32_t plan_half(int32_t multiprocessors)
{
    return multiprocessors > 3 ? multiprocessors / 2 : 2;
}

/* Few tokens: half of the blocks push and half receive, none without a token or a row. */
static void plan_few(const struct exchange_shape *shape, int32_t tokens, int32_t multiprocessors,
                     struct cuda_plan *plan)
{
    int32_t half = plan_half(multiprocessors), pushing = plan_least(tokens, half - 1);
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
    int32_t blocks = plan_half(multiprocessors) - 1, rows = tokens > 0 ? tokens : 1;
    plan->send_cut = cut_rows(blocks, rows, words_of_hidden(*shape), WORDS_UNIT);
    plan->send_blocks = 1 + plan_least(rows << plan->send_cut.log2_parts, blocks);
}

/*
 * Whether half of the multiprocessors fill the link: measured with two ranks (docs/performance.md). A row is loaded once, so
 * fewer do if it goes to more ranks.
 */
static bool plan_half_fills_link(const struct exchange_shape *shape, int32_t multiprocessors)
{
    int32_t needed = shape->ranks > 2 ? 10 : 16;
    return shape->ranks > 1 && plan_half(multiprocessors) >= needed;
}

/*
 * Many tokens. Rank-major and flat: a row that has come is where it belongs, so blocks first send and then receive. Rows that
 * are copied, to the caller's arrays or (expert-major) to several places, take as many blocks again, which copy them as they
 * come; but to the caller's arrays only if those that are left still fill the link.
 */
static void plan_many(const struct exchange_shape *shape, int32_t tokens, bool copies, int32_t multiprocessors,
                      struct cuda_plan *plan)
{
    enum { LONG_ROW_BYTES = 12288 };
    plan->streams = true;
    plan->threads = shape->array[0].row_bytes >= LONG_ROW_BYTES ? OPERATIONS_STREAM_WARP_THREADS : plan->threads;
    plan->shares = !shape->expert_major && !(copies && plan_half_fills_link(shape, multiprocessors));
    plan->send_blocks = plan->shares ? multiprocessors : multiprocessors / 2;
    plan->receive_blocks = plan->shares ? multiprocessors : multiprocessors - plan->send_blocks;
    plan->count_blocks = plan_least(plan_least(tokens, EXCHANGE_COUNTERS), plan->send_blocks);
    plan->count_blocks = plan->count_blocks > 1 ? plan->count_blocks : 1;
    plan->receive_cut = plan_received(shape, shape->tokens, plan->receive_blocks);
}

struct cuda_plan dispatch_plan(const struct exchange_shape *shape, int32_t tokens, bool copies,
                               const struct cuda_limits *limits)
{
    size_t row_bytes = shape->array[0].row_bytes, pieces = row_bytes / 16;
    bool can_stream = row_bytes % 16 == 0; /* the engine takes no other */
    struct cuda_plan plan = {};
    plan.early = limits->early;
    plan.count_blocks = 1;
    plan.threads = pieces >= 256 ? OPERATIONS_ROW_THREADS : 256;
    if (plan_is_in_words(shape, tokens, limits))
        plan_words(shape, tokens, limits->multiprocessors, &plan);
    else if (can_stream && plan_is_for_many(tokens, limits))
        plan_many(shape, tokens, copies, limits->multiprocessors, &plan);
    else
        plan_few(shape, tokens, limits->multiprocessors, &plan);
    plan_stages(shape, limits->shared_bytes, &plan);
    return plan;
}

bool dispatch_fits(const struct exchange_shape *shape, const struct cuda_limits *limits)
{
    const int32_t counts[] = {1, PLAN_WORD_TOKENS, PLAN_WORD_TOKENS + 1, shape->tokens};
    const bool copies = false; /* they ask for no more of a block */
    for (int32_t count : counts) {
        struct cuda_plan plan = dispatch_plan(shape, plan_least(count, shape->tokens), copies, limits);
        if (plan.stages < 1 || plan.shared_bytes > limits->shared_bytes)
            return false;
    }
    return true;
}

cudaError_t dispatch_prepare(int ordinal, int32_t *shared_bytes)
{
    for (int i = 0; i < 8 * DISPATCH_KINDS; i++) {
        auto kind = (enum dispatch_kind)(i / 8);
        const void *kernel = (const void *)kernel_of(i & 1, i >> 1 & 1, i >> 2 & 1, kind);
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
    const struct exchange_shape &shape = launch->shape;
    return launch_kernel(kernel_of(ft, shape.expert_major, shape.quantise, kind_of(launch)), w.launch.plan, stream, w);
}
