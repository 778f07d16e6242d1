// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/step.h"

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/turn.cuh"

/* ------------------------------------------------------------------------------------------- the gate, by the agent */

/*
 * Blocks that are inside see the new epoch at their next look and leave; blocks that enter from now on get it with
 * their ticket and do nothing. So the counts fall to zero, and only blocks that do nothing raise them again. A lane has a
 * door; nobody else changes more than its count.
 */
static __global__ void raise_kernel(struct cuda_control *control, struct cuda_mailbox *mailbox, uint32_t epoch)
{
    uint64_t *door = gate_door(control, threadIdx.x);
    uint64_t before = word_look(door) & ~CUDA_DOOR_INSIDE, after = gate_shut(epoch);
    if (!__all_sync(~0u, gate_epoch(before) < epoch))
        return;
    if (threadIdx.x == 0)
        word_store(&control->gate, after);
    __syncwarp();
    __threadfence(); /* whoever finds a door of the new epoch finds the gate so, too */
    atomicAdd((unsigned long long *)door, (unsigned long long)(after - before));
    while (word_look(door) & CUDA_DOOR_INSIDE)
        __nanosleep(200);
    __threadfence_system();
    __syncwarp();
    if (threadIdx.x == 0)
        flag_raise(&mailbox->quiet_epoch, epoch);
}

static __global__ void install_kernel(struct cuda_control *control, const __grid_constant__ struct cuda_view view)
{
    const uint64_t *from = (const uint64_t *)&view;
    uint64_t *to = (uint64_t *)&control->view;
    for (unsigned i = threadIdx.x; i < sizeof(view) / sizeof(*to); i += blockDim.x)
        to[i] = from[i];
}

/* The kernel before has installed the view. A lane has a door. */
static __global__ void open_kernel(struct cuda_control *control, struct cuda_mailbox *mailbox, uint32_t epoch)
{
    uint64_t *door = gate_door(control, threadIdx.x);
    if (!__all_sync(~0u, gate_epoch(word_look(door)) == epoch))
        return;
    __threadfence(); /* whoever finds the door open sees the view */
    atomicOr((unsigned long long *)door, (unsigned long long)CUDA_GATE_OPEN);
    __syncwarp();
    if (threadIdx.x != 0)
        return;
    atomicOr((unsigned long long *)&control->gate, (unsigned long long)CUDA_GATE_OPEN);
    flag_raise(&mailbox->open_epoch, epoch);
}

/*
 * M33: whether every member's word says that it has ended the step that this rank has ended last, of this epoch. On the stream
 * that installs views, so the view stays. `own`: this rank's region.
 */
static __global__ void look_kernel(const struct cuda_control *control, struct cuda_mailbox *mailbox,
                                   const unsigned char *own, uint64_t look)
{
    const struct cuda_view *view = &control->view;
    struct cuda_step step = control->step;
    uint64_t ended = turn_stamp(step.epoch, 2 * step.number + 2) - 2 * step.open; /* of an open step: the one before */
    bool any = step.epoch != 0 && step.epoch == view->epoch && (step.number > 0 || !step.open), all = true;
    for (int r = (int)threadIdx.x; any && r < view->ranks; r += 32)
        if (view->mask.word[r >> 6] >> (r & 63) & 1 && r != view->rank)
            all = all && flag_read((const uint64_t *)(own + (size_t)r * 64)) >= ended;
    all = __all_sync(~0u, all);
    if (threadIdx.x == 0)
        flag_raise(&mailbox->look, look << 1 | (all ? 1 : 0));
}

/* Only this failure, which stays until then: what has failed since the verdict that told of it has a verdict of its own. */
static __global__ void forget_kernel(struct cuda_control *control, uint64_t failure)
{
    if (word_look(&control->failure) != failure)
        return;
    control->failure_detail = ~UINT64_C(0);
    __threadfence();
    word_store(&control->failure, 0);
}

/* ------------------------------------------------------------------------------------------- a step, by the caller */

/* Returns the gate. If it is open, the view stays meanwhile. */
static __device__ uint64_t step_enter(struct cuda_control *control)
{
    gate_enter(control, 0);
    return flag_read(&control->gate);
}

static __device__ void step_leave(struct cuda_control *control)
{
    __threadfence();
    gate_leave(control, 1);
}

static __global__ void step_begin_kernel(struct cuda_launch l)
{
    __shared__ struct turn turn;
    uint64_t gate = step_enter(l.control);
    turn.view = l.control->view;
    turn.step = l.control->step;
    turn.epoch = gate_epoch(gate);
    turn.live = !turn_void(l);
    turn.number = 0;
    if (turn.live && !(gate & CUDA_GATE_OPEN)) {
        turn_fail(l, MUSTER_REASON_NOT_READY, MUSTER_PHASE_STEP, -1, turn.epoch, 0);
        turn.live = false;
    }
    if (turn.live) {
        turn_take_step(l, turn.step, &turn);
        turn.live = turn_has_number(2 * turn.number + 2);
        if (turn.live)
            turn_publish_begun(l, &turn);
        else
            turn_fail(l, MUSTER_REASON_ABORT, MUSTER_PHASE_STEP, -1, turn.epoch, 0);
    }
    step_tell_begun(l, &turn);
    step_note_begun(l, &turn);
    step_leave(l.control);
}

/*
 * An epoch that ended before the step did makes it void: its last operation may have been the one that was called off. So
 * does `reason`, unless it is NONE: a call of the step was refused on the host, which the device cannot see.
 */
static __global__ void step_end_kernel(struct cuda_launch l, muster_reason reason, muster_phase phase)
{
    uint64_t gate = step_enter(l.control);
    uint32_t epoch = l.control->step.epoch;
    if (!turn_void(l) && epoch == 0)
        turn_fail(l, turn_void_from_start(gate), MUSTER_PHASE_STEP, -1, gate_epoch(gate), 0);
    else if (!turn_void(l) && gate_epoch(gate) != epoch)
        turn_fail(l, MUSTER_REASON_EPOCH, MUSTER_PHASE_STEP, -1, epoch, 0);
    else if (!turn_void(l) && reason != MUSTER_REASON_NONE)
        turn_fail(l, reason, phase, -1, epoch, 0);
    __threadfence_system();
    step_note_ended(l, &l.control->view, l.control->step, word_look(&l.control->failure), gate_epoch(gate));
    step_leave(l.control);
}

static __device__ bool mask_allowed(const struct cuda_exchange *x, const struct cuda_view *view, uint32_t epoch,
                                    muster_mask mask)
{
    bool narrowed = x->narrowed_epoch == epoch;
    for (int i = 0; i < 2; i++) {
        uint64_t limit = narrowed ? x->narrowed.word[i] : view->mask.word[i];
        if (mask.word[i] & ~limit)
            return false;
    }
    return true;
}

static __global__ void mask_kernel(struct cuda_launch l, muster_mask mask)
{
    uint64_t gate = step_enter(l.control);
    uint32_t epoch = gate_epoch(gate);
    struct cuda_exchange *x = l.exchange;
    if (!turn_void(l) && l.control->view.epoch == epoch) {
        if (!mask_allowed(x, &l.control->view, epoch, mask))
            turn_fail(l, MUSTER_REASON_VALUE, MUSTER_PHASE_NONE, -1, epoch, ~UINT64_C(0));
        x->narrowed = mask;
        x->narrowed_epoch = epoch;
    }
    step_leave(l.control);
}

/* --------------------------------------------------------------------------------------------------------- launches */

extern "C" cudaError_t step_launch_raise(struct cuda_control *control, struct cuda_mailbox *mailbox, uint32_t epoch,
                                         cudaStream_t stream)
{
    return launch_plain(raise_kernel, 1, CUDA_DOORS, stream, control, mailbox, epoch);
}

extern "C" cudaError_t step_launch_install(struct cuda_control *control, const struct cuda_view *view,
                                           cudaStream_t stream)
{
    return launch_plain(install_kernel, 1, 128, stream, control, *view);
}

extern "C" cudaError_t step_launch_open(struct cuda_control *control, struct cuda_mailbox *mailbox, uint32_t epoch,
                                        cudaStream_t stream)
{
    return launch_plain(open_kernel, 1, CUDA_DOORS, stream, control, mailbox, epoch);
}

extern "C" cudaError_t step_launch_forget(struct cuda_control *control, uint64_t failure, cudaStream_t stream)
{
    return launch_plain(forget_kernel, 1, 1, stream, control, failure);
}

extern "C" cudaError_t step_launch_look(const struct cuda_control *control, struct cuda_mailbox *mailbox,
                                        const unsigned char *own, uint64_t look, cudaStream_t stream)
{
    return launch_plain(look_kernel, 1, 32, stream, control, mailbox, own, look);
}

static struct cuda_launch step_launch(struct cuda_control *control, struct cuda_mailbox *mailbox,
                                      struct cuda_exchange *exchange)
{
    struct cuda_launch l = {};
    l.control = control;
    l.mailbox = mailbox;
    l.exchange = exchange;
    l.begins_step = true;
    return l;
}

extern "C" cudaError_t step_launch_begin(struct cuda_control *control, struct cuda_mailbox *mailbox,
                                         cudaStream_t stream)
{
    return launch_plain(step_begin_kernel, 1, 1, stream, step_launch(control, mailbox, NULL));
}

extern "C" cudaError_t step_launch_end(struct cuda_control *control, struct cuda_mailbox *mailbox, muster_reason reason,
                                       muster_phase phase, cudaStream_t stream)
{
    return launch_plain(step_end_kernel, 1, 1, stream, step_launch(control, mailbox, NULL), reason, phase);
}

extern "C" cudaError_t step_launch_mask(struct cuda_control *control, struct cuda_mailbox *mailbox,
                                        struct cuda_exchange *exchange, muster_mask mask, cudaStream_t stream)
{
    return launch_plain(mask_kernel, 1, 1, stream, step_launch(control, mailbox, exchange), mask);
}

extern "C" cudaError_t step_prepare(void)
{
    const void *kernels[] = {(const void *)raise_kernel,      (const void *)install_kernel,
                             (const void *)open_kernel,       (const void *)forget_kernel,
                             (const void *)step_begin_kernel, (const void *)step_end_kernel,
                             (const void *)mask_kernel,       (const void *)look_kernel};
    for (const void *kernel : kernels) {
        cudaError_t error = launch_load(kernel);
        if (error != cudaSuccess)
            return error;
    }
    return cudaSuccess;
}
