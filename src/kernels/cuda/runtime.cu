// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/runtime.h"

#include "kernels/cuda/memory.cuh"

static __global__ void spin_kernel(uint64_t ns)
{
    uint64_t begun_ns = clock_ns();
    while (clock_ns() - begun_ns < ns)
        __nanosleep(500);
}

extern "C" cudaError_t spin_launch(uint64_t ns, cudaStream_t stream)
{
    spin_kernel<<<1, 1, 0, stream>>>(ns);
    return cudaGetLastError();
}
