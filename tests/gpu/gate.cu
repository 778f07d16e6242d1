// SPDX-License-Identifier: Apache-2.0
#include "gpu/gate.h"

#include "kernels/cuda/gate.cuh"
#include "kernels/cuda/launch.cuh"

static __global__ void visit_kernel(struct cuda_control *control, uint64_t *found, const uint64_t *leave)
{
    const uint64_t most_ns = 10000000000;
    if (threadIdx.x == 0) {
        uint64_t gate = gate_enter(control, blockIdx.x), begun_ns = clock_ns();
        word_store(&found[blockIdx.x], gate ? gate : GATE_FOUND_NOTHING);
        while (blockIdx.x == 0 && word_look(leave) == 0 && clock_ns() - begun_ns < most_ns)
            __nanosleep(200);
    }
    __syncwarp();
    if (blockIdx.x == 0)
        gate_leave(control, gridDim.x);
}

extern "C" cudaError_t gate_visit(struct cuda_control *control, uint64_t *found, const uint64_t *leave, unsigned blocks,
                                  cudaStream_t stream)
{
    return launch_plain(visit_kernel, blocks, CUDA_DOORS, stream, control, found, leave);
}
