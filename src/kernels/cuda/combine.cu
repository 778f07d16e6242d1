// SPDX-License-Identifier: Apache-2.0
/* Combine: one kernel, whose blocks send rows home or add up this rank's tokens; a half launches only those it needs. */
#include "kernels/cuda/combine_receive.cuh"
#include "kernels/cuda/combine_send.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/operations.h"

struct combine_work {
    struct cuda_launch launch;
    struct combine_send_args send;
    struct combine_receive_args receive;
    int32_t tokens;
    enum turn_operation operation;
};

template <bool FT, bool QUANTISED>
static __device__ void combine_block(const struct combine_work &w, const struct turn *turn)
{
    const struct cuda_plan &plan = w.launch.plan;
    int block = (int)blockIdx.x;
    if (block < plan.send_blocks) {
        if (block == 0)
            raise_combine_lines(w.launch, turn);
        send_rows_home<QUANTISED>(w.launch, turn, w.send, block, plan.send_blocks);
        return;
    }
    block -= plan.send_blocks;
    add_up_tokens<FT, QUANTISED>(w.launch, turn, w.receive, w.tokens, block, plan.receive_blocks);
    if (block == 0)
        await_combine_lines<FT>(w.launch, turn);
}

/* QUANTISED is a kernel of its own: together with the other it would not fit into the registers. */
template <bool FT, bool QUANTISED>
static __global__ void __launch_bounds__(OPERATIONS_MAX_THREADS)
    combine_kernel(const __grid_constant__ struct combine_work w)
{
    __shared__ struct turn turn;
    if (turn_enter<FT>(w.launch, w.operation, &turn))
        combine_block<FT, QUANTISED>(w, &turn);
    turn_leave<FT>(w.launch, w.operation, &turn);
}

typedef void combine_function(const struct combine_work);

static combine_function *const combine_kernels[2][2] = {{combine_kernel<false, false>, combine_kernel<false, true>},
                                                        {combine_kernel<true, false>, combine_kernel<true, true>}};

/* Senders read up to K rows for each that they send, so they get two thirds of the blocks. */
struct cuda_plan combine_plan(const struct exchange_shape *shape, int32_t tokens, const struct cuda_limits *limits)
{
    int32_t multiprocessors = limits->multiprocessors;
    int32_t third = multiprocessors > 3 ? multiprocessors / 3 : 1;
    size_t pieces = shape->result_bytes / SUM_PIECE;
    struct cuda_plan plan = {};
    plan.early = limits->early;
    plan.send_blocks = multiprocessors > 3 ? multiprocessors - third : 1;
    if (plan.send_blocks > shape->tokens * shape->ranks)
        plan.send_blocks = shape->tokens * shape->ranks;
    plan.receive_blocks = tokens < third ? (tokens > 0 ? tokens : 1) : third;
    plan.threads = pieces <= 128 ? 128 : (int32_t)((pieces + 31) / 32 * 32);
    plan.threads = plan.threads < OPERATIONS_MAX_THREADS ? plan.threads : OPERATIONS_MAX_THREADS;
    return plan;
}

cudaError_t combine_prepare(void)
{
    for (int i = 0; i < 4; i++) {
        const void *kernel = (const void *)combine_kernels[i / 2][i % 2];
        cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                                 cudaSharedmemCarveoutMaxShared); /* what dispatch has left, it finds */
        struct cudaFuncAttributes attributes;
        if (error == cudaSuccess)
            error = cudaFuncGetAttributes(&attributes, kernel); /* loads it */
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
    combine_function *kernel = combine_kernels[ft][launch->shape.quantise_return != MUSTER_EP_QUANTISE_NONE];
    return launch_kernel(kernel, w.launch.plan, stream, w);
}
