// SPDX-License-Identifier: Apache-2.0
/* How blocks pass the gate, which the agent closes: see control.h. */
#ifndef CUDA_GATE_CUH
#define CUDA_GATE_CUH

#include "kernels/cuda/control.h"
#include "kernels/cuda/memory.cuh"

__device__ __forceinline__ uint32_t gate_epoch(uint64_t gate)
{
    return (uint32_t)(gate >> CUDA_GATE_EPOCH_SHIFT);
}

__device__ __forceinline__ uint64_t *gate_door(struct cuda_control *control, unsigned block)
{
    return &control->door[block % CUDA_DOORS].word;
}

/*
 * Counts the block in, and returns the gate: epoch, and whether it is open. If so, the epoch stays, and the view, for as long as
 * the block is inside. Where gate and door differ an epoch ends, begins or has failed, and the gate counts as shut. One thread.
 */
__device__ __forceinline__ uint64_t gate_enter(struct cuda_control *control, unsigned block)
{
    uint64_t gate = word_look(&control->gate); /* both are under way together, in either order */
    uint64_t door = word_add_acquire(gate_door(control, block), 1) & ~CUDA_DOOR_INSIDE;
    if (gate == door)
        return gate;
    uint32_t newer = gate_epoch(gate > door ? gate : door);
    return (uint64_t)newer << CUDA_GATE_EPOCH_SHIFT;
}

/* What the block has stored is fenced off before, on this device at least. */
__device__ __forceinline__ void gate_leave(struct cuda_control *control, unsigned block)
{
    atomicAdd((unsigned long long *)gate_door(control, block), ~0ull);
}

#endif
