// SPDX-License-Identifier: Apache-2.0
/* Combine: one kernel, whose blocks send rows home or add up this rank's tokens; a half launches only those it needs. */
#include "kernels/cuda/combine_facts.cuh"
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

/* At most: rows in words take more registers of each, and sums by warps some more. */
__host__ __device__ constexpr int combine_threads(enum combine_kind kind)
{
    switch (kind) {
    case COMBINE_WORDS: return OPERATIONS_ROW_THREADS;
    case COMBINE_STREAMED: return OPERATIONS_SUM_WARP_THREADS;
    default: return OPERATIONS_MAX_THREADS;
    }
}

/* What a block finds out about its first rows or tokens while it enters. */
union combine_findings {
    struct returning returning;
    struct adding adding;
};

template <typename Facts>
static __device__ __forceinline__ void combine_prepare_block(const struct combine_work &w, int thread, int threads,
                                                             union combine_findings *found)
{
    int block = (int)blockIdx.x, sends = w.launch.plan.send_blocks;
    if (Facts::KIND == COMBINE_STREAMED)
        return;
    if (block < sends)
        returning_prepare<Facts>(w.launch, w.send, block, thread, threads, &found->returning);
    else
        adding_prepare<Facts>(w.launch, w.tokens, block - sends, thread, &found->adding);
}

template <typename Facts>
static __device__ void combine_block(const struct combine_work &w, const struct turn *turn,
                                     union combine_findings *found)
{
    const struct cuda_launch &l = w.launch;
    int block = (int)blockIdx.x, sends = l.plan.send_blocks, receives = l.plan.receive_blocks;
    combine_raise(w, turn);
    if (block < sends) {
        if (Facts::KIND == COMBINE_STREAMED)
            stream_send_block(l, turn, w.send, combine_shared, block, sends);
        else
            send_rows_home<Facts>(l, turn, w.send, block, sends, &found->returning);
        return;
    }
    block -= sends;
    if (Facts::KIND == COMBINE_STREAMED)
        stream_receive_block<Facts>(l, turn, w.receive, w.tokens, combine_shared, block, receives);
    else
        add_up_tokens<Facts>(l, turn, w.receive, w.tokens, block, receives, &found->adding);
    if (block == 0)
        await_combine_lines<Facts::FT>(l, turn);
}

template <typename Facts>
static __global__ void __launch_bounds__(combine_threads(Facts::KIND), 1)
    combine_kernel(const __grid_constant__ struct combine_work w)
{
    __shared__ struct turn turn;
    __shared__ union combine_findings found;
    auto prepare = [&](int thread, int threads) { combine_prepare_block<Facts>(w, thread, threads, &found); };
    if (turn_enter<Facts::FT>(w.launch, w.operation, &turn, prepare))
        combine_block<Facts>(w, &turn, &found);
    turn_leave<Facts::FT>(w.launch, w.operation, &turn, (int)blockIdx.x <= w.launch.plan.send_blocks);
}

typedef void combine_function(const struct combine_work);

template <bool FT, enum exchange_type TYPE, bool SUMS> static combine_function *kernel_of_kind(enum combine_kind kind)
{
    switch (kind) {
    case COMBINE_WORDS: return combine_kernel<combine_facts<FT, COMBINE_WORDS, TYPE, SUMS>>;
    case COMBINE_QUANTISED: return combine_kernel<combine_facts<FT, COMBINE_QUANTISED, TYPE, SUMS>>;
    case COMBINE_STREAMED: /* what is streamed is not added up */
        return combine_kernel<combine_facts<FT, COMBINE_STREAMED, TYPE, false>>;
    default: return combine_kernel<combine_facts<FT, COMBINE_PLAIN, TYPE, SUMS>>;
    }
}

static combine_function *kernel_of(bool ft, enum exchange_type type, bool sums, enum combine_kind kind)
{
    typedef combine_function *of_kind(enum combine_kind kind);
    static of_kind *const all[2][EXCHANGE_TYPES][2] = {
        {{kernel_of_kind<false, EXCHANGE_BF16, false>, kernel_of_kind<false, EXCHANGE_BF16, true>},
         {kernel_of_kind<false, EXCHANGE_FP16, false>, kernel_of_kind<false, EXCHANGE_FP16, true>},
         {kernel_of_kind<false, EXCHANGE_FP32, false>, kernel_of_kind<false, EXCHANGE_FP32, true>}},
        {{kernel_of_kind<true, EXCHANGE_BF16, false>, kernel_of_kind<true, EXCHANGE_BF16, true>},
         {kernel_of_kind<true, EXCHANGE_FP16, false>, kernel_of_kind<true, EXCHANGE_FP16, true>},
         {kernel_of_kind<true, EXCHANGE_FP32, false>, kernel_of_kind<true, EXCHANGE_FP32, true>}}};
    return all[ft][type][sums](kind);
}

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
    int32_t most = combine_threads(plan->words ? COMBINE_WORDS : COMBINE_PLAIN);
    int32_t cut_for = plan->words ? tokens : shape->tokens, rows = tokens > 0 ? tokens : 1;
    plan->send_cut = cut_rows(plan->send_blocks, cut_for * shape->ranks, pieces, WORDS_WARP_PIECES);
    plan->receive_cut = cut_rows(plan->words ? plan->receive_blocks : 0, rows, pieces, WORDS_WARP_PIECES);
    plan->send_blocks = plan_least(plan->send_blocks, shape->tokens * shape->ranks << plan->send_cut.log2_parts);
    plan->receive_blocks = plan_least(plan->receive_blocks, rows << plan->receive_cut.log2_parts);
    plan->threads = pieces <= 128 ? 128 : plan_least((pieces + 31) / 32 * 32, most);
}

/* Two warps share each of the last tokens, as many as all warps can share, if a row is long enough. */
static void plan_last(const struct exchange_shape *shape, int32_t tokens, struct cuda_plan *plan)
{
    enum { SHARES = 2, UNIT = 32 * SUM_LANE_PIECES };
    int32_t pieces = (int32_t)(shape->result_bytes / SUM_PIECE), warps = plan->receive_blocks * (plan->threads / 32);
    plan->receive_cut = cut_rows(plan_least(SHARES, pieces / UNIT), 1, pieces, UNIT);
    int32_t shared = warps >> plan->receive_cut.log2_parts;
    plan->receive_alone = tokens > shared ? tokens - shared : 0;
}

/*
 * A row for each stage is on its way at a time. More than fill the link would only come later, all of them: what peers could
 * add up meanwhile would come at the end.
 */
static void plan_many(const struct exchange_shape *shape, int32_t tokens, int32_t shared_bytes, struct cuda_plan *plan)
{
    enum { UNDER_WAY = 4 << 20 };
    plan->streams = true;
    plan->threads = OPERATIONS_SUM_WARP_THREADS;
    plan_last(shape, tokens, plan);
    plan->stage_bytes = plan_stage_bytes(shape->return_bytes);
    plan->stages = plan_least(shared_bytes / plan->stage_bytes, plan->threads / 32 - 1); /* and the postman */
    int32_t each_bytes = plan->send_blocks * plan->stage_bytes;
    plan->stages = plan_least(plan->stages, (UNDER_WAY + each_bytes - 1) / each_bytes);
    plan->shared_bytes = plan->stages * plan->stage_bytes;
    int32_t awaited_bytes = plan->threads / 32 * (int32_t)sizeof(struct awaited);
    plan->shared_bytes = plan->shared_bytes > awaited_bytes ? plan->shared_bytes : awaited_bytes;
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
        plan_many(shape, tokens, limits->shared_bytes, &plan);
    else
        plan_few(shape, tokens, &plan);
    return plan;
}

cudaError_t combine_prepare(int ordinal, int32_t *shared_bytes)
{
    for (int i = 0; i < 4 * EXCHANGE_TYPES * COMBINE_KINDS; i++) {
        auto type = (enum exchange_type)(i / 4 % EXCHANGE_TYPES);
        auto kind = (enum combine_kind)(i / 4 / EXCHANGE_TYPES);
        const void *kernel = (const void *)kernel_of(i & 1, type, i >> 1 & 1, kind);
        cudaError_t error = launch_prepare(kernel, ordinal, shared_bytes);
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
    const struct exchange_shape &shape = launch->shape;
    return launch_kernel(kernel_of(ft, shape.type, shape.expert_major && !shape.exact, kind_of(launch)), w.launch.plan,
                         stream, w);
}
