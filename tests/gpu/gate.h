// SPDX-License-Identifier: Apache-2.0
/* Blocks that stay inside the gate for as long as a test wants. */
#ifndef GPU_GATE_H
#define GPU_GATE_H

#include <cuda_runtime_api.h>

#include "kernels/cuda/control.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * A kernel of so many blocks, which only enqueues: each enters the gate, and tells in `found` (one word each, 0 before) what it
 * found, or GATE_FOUND_NOTHING in place of 0. The first one leaves for all when *leave is not 0, or after some seconds. `found` and
 * `leave` are in host memory that the device sees.
 */
cudaError_t gate_visit(struct cuda_control *control, uint64_t *found, const uint64_t *leave, unsigned blocks,
                       cudaStream_t stream);

#define GATE_FOUND_NOTHING UINT64_MAX

#ifdef __cplusplus
}
#endif

#endif
