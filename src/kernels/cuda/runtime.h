// SPDX-License-Identifier: Apache-2.0
/* The one kernel of the tools' runtime. */
#ifndef CUDA_RUNTIME_H
#define CUDA_RUNTIME_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Enqueues one thread that looks at the clock for `ns`; UINT64_MAX: it never ends. */
cudaError_t spin_launch(uint64_t ns, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
