// SPDX-License-Identifier: Apache-2.0
/* The side of a measurement that is measured: ranks that exchange with the library's own dispatch and combine. */
#ifndef TOOLS_PERF_LIBRARY_H
#define TOOLS_PERF_LIBRARY_H

#include "muster/ep.h"
#include "perf_board.h"

/* The exchange for one of the token counts. */
muster_ep_config perf_library_config(const struct perf_shape *shape, int32_t count);

/* What a rank takes of a device for one of the token counts, beside the exchange's own memory: the caller's arrays. */
uint64_t perf_library_array_bytes(const struct perf_shape *shape, int32_t count);

/*
 * One rank, in a process that has MUSTER_RANK, MUSTER_RANKS and MUSTER_STORE; `id`: of the side with fault tolerance as
 * the shape has it, or of that without. Its exit status.
 */
int perf_library_rank(const char *board_path, enum perf_side_id id);

#endif
