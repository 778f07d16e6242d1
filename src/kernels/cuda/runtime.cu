// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/runtime.h"

#include "kernels/cuda/copy.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/memory.cuh"
#include "kernels/cuda/sum.cuh"

enum { WARP = 32, MOST_THREADS = 512 };

static __global__ void spin_kernel(uint64_t ns)
{
    uint64_t begun_ns = clock_ns();
    while (clock_ns() - begun_ns < ns)
        __nanosleep(500);
}

extern "C" cudaError_t spin_launch(uint64_t ns, cudaStream_t stream)
{
    return launch_plain(spin_kernel, 1, 1, stream, ns);
}

/* ---- rows: a block each ---- */

static __global__ void __launch_bounds__(MOST_THREADS) move_rows_kernel(struct runtime_move m)
{
    size_t to = (size_t)m.to_row[blockIdx.x], from = (size_t)m.from_row[blockIdx.x];
    copy_row((unsigned char *)m.to + to * m.row_bytes, (const unsigned char *)m.from + from * m.row_bytes, m.row_bytes,
             (int)threadIdx.x, (int)blockDim.x);
}

template <enum exchange_type TYPE>
static __global__ void __launch_bounds__(MOST_THREADS) sum_rows_kernel(struct runtime_sum s)
{
    __shared__ struct sum_parts parts;
    bool there = false;
    if ((int)threadIdx.x < s.parts) {
        size_t at = (size_t)blockIdx.x * (size_t)s.parts + threadIdx.x;
        there = s.from_row[at] >= 0;
        parts.row[threadIdx.x] = (const unsigned char *)s.from + (there ? (size_t)s.from_row[at] * s.row_bytes : 0);
        parts.weight[threadIdx.x] = s.weight[at];
    }
    int count = __syncthreads_count(there);
    if (threadIdx.x == 0) {
        parts.count = count;
        parts.aligned = true;
    }
    __syncthreads();
    sum_row<TYPE>(&parts, (unsigned char *)s.to + (size_t)blockIdx.x * s.row_bytes, s.row_bytes);
}

/* As many threads, in whole warps, as leave every thread with the same number of goes at its `bytes`. */
static unsigned threads_for(size_t row_bytes, size_t bytes)
{
    size_t pieces = (row_bytes + bytes - 1) / bytes, goes = (pieces + MOST_THREADS - 1) / MOST_THREADS;
    size_t threads = (pieces + goes - 1) / goes;
    return (unsigned)((threads + WARP - 1) / WARP * WARP);
}

extern "C" cudaError_t move_rows_launch(const struct runtime_move *move, cudaStream_t stream)
{
    unsigned threads = threads_for(move->row_bytes, COPY_PIECES * sizeof(uint4));
    return move->rows > 0 ? launch_plain(move_rows_kernel, (unsigned)move->rows, threads, stream, *move) : cudaSuccess;
}

extern "C" cudaError_t sum_rows_launch(const struct runtime_sum *sum, cudaStream_t stream)
{
    unsigned threads = threads_for(sum->row_bytes, SUM_PIECE);
    auto kernel = sum_rows_kernel<EXCHANGE_FP32>;
    if (sum->type != EXCHANGE_FP32)
        kernel = sum->type == EXCHANGE_BF16 ? sum_rows_kernel<EXCHANGE_BF16> : sum_rows_kernel<EXCHANGE_FP16>;
    return sum->rows > 0 ? launch_plain(kernel, (unsigned)sum->rows, threads, stream, *sum) : cudaSuccess;
}
