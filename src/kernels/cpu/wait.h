// SPDX-License-Identifier: Apache-2.0
/* The only place where the CPU backend waits. */
#ifndef CPU_WAIT_H
#define CPU_WAIT_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/kernels.h"

/*
 * Waits until line[p].flag has reached `stamp` for every p in `mask`. True: they have, and everything those peers
 * stored before is visible. False: the epoch ended, a peer refused, or the deadline passed; the control block says
 * which (first failure wins).
 */
bool wait_lines(const struct kernel_step *step, const struct exchange_line *line, uint64_t stamp, muster_mask mask,
                muster_phase phase);

/* False once the epoch of the step has ended (recorded); long loops ask from time to time, to make way for the next. */
bool wait_epoch_lives(const struct kernel_step *step, muster_phase phase);

/*
 * The same for loops that only finish what has come, and so are still exact (X1): they may go on for a moment after the epoch
 * has ended, and no longer, since the others wait for this rank's acknowledgement (M11). *ended_ns is 0 at first.
 */
bool wait_may_finish(const struct kernel_step *step, muster_phase phase, uint64_t *ended_ns);

#endif
