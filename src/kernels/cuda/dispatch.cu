// SPDX-License-Identifier: Apache-2.0
/* Dispatch: one kernel, whose blocks plan, push or receive; a half of it launches only the blocks it needs. */
#include "kernels/cuda/dispatch_receive.cuh"
#include "kernels/cuda/dispatch_send.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/operations.h"

/* What a launch is given; the halves that are not asked for have no blocks. */
struct dispatch_work {
    struct cuda_launch launch;
    struct dispatch_send_args send;
    struct dispatch_receive_args receive;
    enum turn_operation operation;
};

/* Counts of slots and ranks (senders), or the first rows of slots (receivers). */
extern __shared__ __align__(128) unsigned char dispatch_shared[];

template <bool FT> static __device__ void dispatch_block(const struct dispatch_work &w, const struct turn *turn)
{
    const struct cuda_plan &plan = w.launch.plan;
    int block = (int)blockIdx.x;
    struct route_counts counts = {(int32_t *)dispatch_shared + MUSTER_MAX_RANKS, (int32_t *)dispatch_shared};
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

enum {
    DISPATCH_STAGE_BYTES = 16384, /* longer rows go through in parts */
    DISPATCH_TABLE_BYTES = (OPERATIONS_MAX_SLOTS + MUSTER_MAX_RANKS) * sizeof(int32_t),
    DISPATCH_SHARED_BYTES = 220 * 1024 /* of a block, where the device has as much */
};

static int32_t round_up(size_t bytes, size_t unit)
{
    return (int32_t)((bytes + unit - 1) / unit * unit);
}

/* So many stages as fit behind the table, each for a row of the longest array if that is not too long. */
static void plan_stages(const struct exchange_shape *shape, int32_t shared_bytes, struct cuda_plan *plan)
{
    size_t longest = 16, ranks = (size_t)shape->ranks, slots = (size_t)shape->slots;
    size_t entries = ranks * slots + (slots > MUSTER_MAX_RANKS ? slots : MUSTER_MAX_RANKS);
    for (int a = 0; a < shape->arrays; a++)
        longest = shape->array[a].row_bytes > longest ? shape->array[a].row_bytes : longest;
    plan->table_bytes = round_up(entries * sizeof(int32_t), 128);
    plan->stage_bytes = longest < DISPATCH_STAGE_BYTES ? round_up(longest, 16) : DISPATCH_STAGE_BYTES;
    int32_t stages = (shared_bytes - plan->table_bytes) / plan->stage_bytes, warps = plan->threads / 32;
    plan->receive_warps = stages < warps ? stages : warps;
    plan->shared_bytes = plan->table_bytes + plan->receive_warps * plan->stage_bytes;
}

/* Half of the blocks push and half receive; a token more than there are blocks makes runs of tokens longer. */
struct cuda_plan dispatch_plan(const struct exchange_shape *shape, int32_t tokens, const struct cuda_limits *limits)
{
    int32_t half = limits->multiprocessors > 3 ? limits->multiprocessors / 2 : 2;
    int32_t pushing = tokens < half - 1 ? tokens : half - 1, rows = shape->tokens * shape->ranks;
    size_t pieces = shape->array[0].row_bytes / 16;
    struct cuda_plan plan = {};
    plan.early = limits->early;
    plan.send_blocks = 1 + (pushing > 0 ? pushing : 1);
    plan.receive_blocks = rows < half ? rows : half;
    plan.threads = pieces >= 768 ? OPERATIONS_MAX_THREADS : pieces >= 256 ? 512 : 256;
    plan_stages(shape, limits->shared_bytes, &plan);
    return plan;
}

/* Once per device; returns by how much of its shared memory a block may be given. */
cudaError_t dispatch_prepare(int ordinal, int32_t *shared_bytes)
{
    const void *kernels[] = {(const void *)dispatch_kernel<true>, (const void *)dispatch_kernel<false>};
    struct cudaFuncAttributes attributes;
    int most = 0;
    cudaError_t error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, ordinal);
    for (const void *kernel : kernels) {
        if (error == cudaSuccess)
            error = cudaFuncGetAttributes(&attributes, kernel);
        if (error != cudaSuccess)
            return error;
        int left = most - (int)attributes.sharedSizeBytes;
        *shared_bytes = left < DISPATCH_SHARED_BYTES ? left : DISPATCH_SHARED_BYTES;
        error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, *shared_bytes);
    }
    return error;
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
    return launch_kernel(ft ? dispatch_kernel<true> : dispatch_kernel<false>, w.launch.plan, stream, w);
}
