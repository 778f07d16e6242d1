// SPDX-License-Identifier: Apache-2.0
/* How the kernels of an exchange are launched. */
#ifndef CUDA_LAUNCH_CUH
#define CUDA_LAUNCH_CUH

#include <cuda_runtime.h>

#include "kernels/cuda/exchange.h"

/* Loads a kernel: what is first launched later waits for kernels of other streams. */
static inline cudaError_t launch_load(const void *kernel)
{
    struct cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, kernel);
}

/*
 * Loads a kernel, and lets its blocks have *shared_bytes, which becomes less if the device has less. All kernels prefer the
 * same division of a multiprocessor's memory, so that none has to wait until it is divided anew.
 */
static inline cudaError_t launch_prepare(const void *kernel, int ordinal, int32_t *shared_bytes)
{
    struct cudaFuncAttributes attributes;
    int most = 0;
    cudaError_t error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, ordinal);
    if (error == cudaSuccess)
        error = cudaFuncGetAttributes(&attributes, kernel);
    if (error != cudaSuccess)
        return error;
    int left = most - (int)attributes.sharedSizeBytes;
    *shared_bytes = left < *shared_bytes ? left : *shared_bytes;
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, *shared_bytes);
    if (error == cudaSuccess)
        error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                     cudaSharedmemCarveoutMaxShared);
    return error;
}

/* A kernel that is part of no plan, on a few threads. */
template <typename... Arguments>
static cudaError_t launch_plain(void (*kernel)(Arguments...), unsigned blocks, unsigned threads, cudaStream_t stream,
                                Arguments... arguments)
{
    kernel<<<blocks, threads, 0, stream>>>(arguments...);
    return cudaGetLastError();
}

/*
 * With plan.early the blocks may come to the device while the kernel before is on its way out, which hides most of what a
 * launch takes; they sleep until it is over (turn_await_stream()). Not where ranks share a device: a sleeping block of
 * one would take the place of a block of another, for which the first one's kernel may be waiting.
 */
template <typename Work>
static cudaError_t launch_kernel(void (*kernel)(Work), const struct cuda_plan &plan, cudaStream_t stream,
                                 const Work &work)
{
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(plan_blocks(&plan));
    config.blockDim = dim3((unsigned)plan.threads);
    config.dynamicSmemBytes = (size_t)plan.shared_bytes;
    config.stream = stream;
    config.attrs = &early;
    config.numAttrs = plan.early ? 1 : 0;
    cudaError_t error = cudaLaunchKernelEx(&config, kernel, work);
    cudaGetLastError(); /* returned here; a later call should not say it again */
    return error;
}

#endif
