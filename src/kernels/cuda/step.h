// SPDX-License-Identifier: Apache-2.0
/*
 * The small kernels around the exchanges: those that end and begin an epoch, on the agent's stream, and those that
 * begin and end a step, on the caller's. A launch only enqueues.
 */
#ifndef CUDA_STEP_H
#define CUDA_STEP_H

#include <cuda_runtime_api.h>

#include "kernels/cuda/exchange.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Closes the gate for every epoch before `epoch`, waits until no block is inside, and says so in the mailbox. */
cudaError_t step_launch_raise(struct cuda_control *control, struct cuda_mailbox *mailbox, uint32_t epoch,
                              cudaStream_t stream);

/* The view is passed by value; after a raise of its epoch. */
cudaError_t step_launch_install(struct cuda_control *control, const struct cuda_view *view, cudaStream_t stream);

/* Opens the gate, unless a newer epoch was raised, and says so in the mailbox. */
cudaError_t step_launch_open(struct cuda_control *control, struct cuda_mailbox *mailbox, uint32_t epoch,
                             cudaStream_t stream);

/* Forgets this failure, if it stands: the caller has read the verdicts of all void steps that are known, and it was the last. */
cudaError_t step_launch_forget(struct cuda_control *control, uint64_t failure, cudaStream_t stream);

/* Says in the mailbox, under the number `look`, whether all members have ended the last step that this rank has ended. */
cudaError_t step_launch_look(const struct cuda_control *control, struct cuda_mailbox *mailbox, const unsigned char *own,
                             uint64_t look, cudaStream_t stream);

cudaError_t step_launch_begin(struct cuda_control *control, struct cuda_mailbox *mailbox, cudaStream_t stream);
/* reason: NONE, or what makes the step void that is not void by then. A graph keeps it: an operation is missing there. */
cudaError_t step_launch_end(struct cuda_control *control, struct cuda_mailbox *mailbox, muster_reason reason,
                            muster_phase phase, cudaStream_t stream);

/* Masked mode: from the next dispatch on. A mask that is not allowed voids the step that uses it. */
cudaError_t step_launch_mask(struct cuda_control *control, struct cuda_mailbox *mailbox, struct cuda_exchange *exchange,
                             muster_mask mask, cudaStream_t stream);

/* Loads the kernels of this file. */
cudaError_t step_prepare(void);

#ifdef __cplusplus
}
#endif

#endif
