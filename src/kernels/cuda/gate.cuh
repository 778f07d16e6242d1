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

/* The gate of an epoch that has not begun, or that has failed. */
__device__ __forceinline__ uint64_t gate_shut(uint32_t epoch)
{
    return (uint64_t)epoch << CUDA_GATE_EPOCH_SHIFT;
}

__device__ __forceinline__ uint64_t *gate_door(struct cuda_control *control, unsigned block)
{
    return &control->door[block % CUDA_DOORS].word;
}

/*
 * Counts the block in, and returns its door: epoch, and open. If it is, the view stays for as long as the block is inside, and
 * this thread sees it. Whether the epoch goes on is asked at the gate, afterwards: that is never of an older one. One thread.
 */
__device__ __forceinline__ uint64_t gate_enter(struct cuda_control *control, unsigned block)
{
    return word_add_acquire(gate_door(control, block), 1) & ~CUDA_DOOR_INSIDE;
}

/* Whether this epoch has begun, whatever has failed in it since, and no newer one is to follow yet. */
__device__ __forceinline__ bool gate_in_epoch(struct cuda_control *control, uint32_t epoch)
{
    return (word_look(gate_door(control, 0)) & ~CUDA_DOOR_INSIDE) == (gate_shut(epoch) | CUDA_GATE_OPEN);
}

/*
 * For all blocks of a kernel, by the last of them: until then none of them is outside, so no other epoch begins while some have
 * yet to enter. What they have stored has been seen, and is fenced off on this device at least. By the first warp, of which a
 * thread has a door: one that leaves by 32 doors takes 6 us. (A kernel of one block needs one thread.)
 */
__device__ __forceinline__ void gate_leave(struct cuda_control *control, unsigned blocks)
{
    unsigned door = threadIdx.x, inside = (blocks - door + CUDA_DOORS - 1) / CUDA_DOORS;
    if (door < CUDA_DOORS && door < blocks)
        word_add(gate_door(control, door), -(uint64_t)inside);
}

#endif
