// SPDX-License-Identifier: Apache-2.0
/* kernels/cuda/launch.cuh for kernels that the engine runs. */
#ifndef CUDA_LAUNCH_CUH
#define CUDA_LAUNCH_CUH

#include "kernels/cuda/exchange.h"
#include "simt/stream.h"

inline cudaError_t launch_load(const void *)
{
    return cudaSuccess;
}

/* Kernels have no shared memory beside what they are given. */
inline cudaError_t launch_prepare(const void *, int ordinal, int32_t *shared_bytes)
{
    int most = 0;
    cudaError_t error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, ordinal);
    if (error == cudaSuccess && most < *shared_bytes)
        *shared_bytes = most;
    return error;
}

template <typename... Arguments>
cudaError_t launch_plain(void (*kernel)(Arguments...), unsigned blocks, unsigned threads, cudaStream_t stream,
                         Arguments... arguments)
{
    return simt_enqueue(stream, [=] { simt_run(blocks, threads, simt_late_ms(), [&] { kernel(arguments...); }); });
}

template <typename Work>
cudaError_t launch_kernel(void (*kernel)(Work), const struct cuda_plan &plan, cudaStream_t stream, const Work &work)
{
    return launch_plain<Work>(kernel, plan_blocks(&plan), (unsigned)plan.threads, stream, work);
}

#endif
