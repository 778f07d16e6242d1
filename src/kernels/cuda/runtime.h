// SPDX-License-Identifier: Apache-2.0
/* The kernels of the tools' runtime. */
#ifndef CUDA_RUNTIME_H
#define CUDA_RUNTIME_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "kernels/runtime.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Enqueues one thread that looks at the clock for `ns`; UINT64_MAX: it never ends. */
cudaError_t spin_launch(uint64_t ns, cudaStream_t stream);

/* Enqueue what kernels/runtime.h says of the structs. */
cudaError_t move_rows_launch(const struct runtime_move *move, cudaStream_t stream);
cudaError_t sum_rows_launch(const struct runtime_sum *sum, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
