// SPDX-License-Identifier: Apache-2.0
/*
 * What the links between GPUs carry: every rank copies to every other rank at the same time, in an order that gives each
 * a target of its own, through mapped memory and by the copy engines. No kernel can do better, so this is what the rates
 * of exchanges are held against.
 */
#ifndef TOOLS_PERF_LINK_H
#define TOOLS_PERF_LINK_H

#include <stdbool.h>
#include <stdint.h>

#include "perf_board.h"
#include "perf_device.h"

/*
 * One rank's part. That links cannot be measured is said on the board, and is no failure. False: not all ranks came, which
 * the board says too.
 */
bool perf_link_measure(struct perf_board *board, const struct perf_device *device, int32_t rank, uint32_t *round);

/*
 * What leaves a GPU in one direction, in 10^9 bytes a second: what each has sent by the time of the slowest, the median of
 * all rounds but the first. 0: it was not measured.
 */
double perf_link_rate_gbs(const struct perf_board *board);

#endif
