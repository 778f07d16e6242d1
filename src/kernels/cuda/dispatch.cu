// SPDX-License-Identifier: Apache-2.0
/* Dispatch: one kernel, whose blocks plan, push or receive; a half of it launches only the blocks it needs. */
#include "kernels/cuda/dispatch_receive.cuh"
#include "kernels/cuda/dispatch_send.cuh"
#include "kernels/cuda/operations.h"

/* What a launch is given; the halves that are not asked for have no blocks. */
struct dispatch_work {
    struct cuda_launch launch;
    struct dispatch_send_args send;
    struct dispatch_receive_args receive;
    enum turn_operation operation;
};

/* Counts of slots and ranks (senders), or the first rows of slots (receivers). */
extern __shared__ int32_t dispatch_shared[];

template <bool FT> static __device__ void dispatch_block(const struct dispatch_work &w, const struct turn *turn)
{
    const struct cuda_plan &plan = w.launch.plan;
    int block = (int)blockIdx.x;
    struct route_counts counts = {dispatch_shared + MUSTER_MAX_RANKS, dispatch_shared};
    if (block >= plan.send_blocks)
        receive_block<FT>(w.launch, turn, w.receive, dispatch_shared, block - plan.send_blocks, plan.receive_blocks);
    else if (block == 0)
        send_plan_block(w.launch, turn, w.send, counts);
    else
        send_push_block(w.launch, turn, w.send, counts, block - 1, plan.send_blocks - 1);
}

template <bool FT>
static __global__ void __launch_bounds__(OPERATIONS_MAX_THREADS)
    dispatch_kernel(const __grid_constant__ struct dispatch_work w)
{
    __shared__ struct turn turn;
    if (turn_enter<FT>(w.launch, w.operation, &turn))
        dispatch_block<FT>(w, &turn);
    turn_leave<FT>(w.launch, w.operation, &turn);
}

/* Half of the blocks push and half receive; a token more than there are blocks makes runs of tokens longer. */
struct cuda_plan dispatch_plan(const struct exchange_shape *shape, int32_t tokens, int32_t multiprocessors)
{
    int32_t half = multiprocessors > 3 ? multiprocessors / 2 : 2;
    int32_t pushing = tokens < half - 1 ? tokens : half - 1;
    size_t slots = (size_t)shape->ranks * (size_t)shape->slots;
    size_t pieces = shape->array[0].row_bytes / 16;
    struct cuda_plan plan = {};
    plan.send_blocks = 1 + (pushing > 0 ? pushing : 1);
    plan.receive_blocks = half;
    plan.threads = pieces >= 768 ? OPERATIONS_MAX_THREADS : pieces >= 256 ? 512 : 256;
    plan.shared_bytes = (int32_t)((slots + MUSTER_MAX_RANKS) * sizeof(int32_t));
    return plan;
}

enum { DISPATCH_MOST_SHARED = (OPERATIONS_MAX_SLOTS + MUSTER_MAX_RANKS) * sizeof(int32_t) };

cudaError_t dispatch_prepare(void)
{
    const void *kernels[] = {(const void *)dispatch_kernel<true>, (const void *)dispatch_kernel<false>};
    for (const void *kernel : kernels) {
        cudaError_t error =
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, DISPATCH_MOST_SHARED);
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
    const struct cuda_plan &plan = w.launch.plan;
    unsigned blocks = (unsigned)(plan.send_blocks + plan.receive_blocks);
    if (ft)
        dispatch_kernel<true><<<blocks, plan.threads, plan.shared_bytes, stream>>>(w);
    else
        dispatch_kernel<false><<<blocks, plan.threads, plan.shared_bytes, stream>>>(w);
    return cudaGetLastError();
}
