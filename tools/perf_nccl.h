// SPDX-License-Identifier: Apache-2.0
/*
 * The baseline of `muster perf ep` on GPUs: ranks that permute rows and exchange them with NCCL, as one does without the
 * library. NCCL is loaded at run time.
 */
#ifndef TOOLS_PERF_NCCL_H
#define TOOLS_PERF_NCCL_H

#include <stdbool.h>
#include <stddef.h>

/* Whether NCCL can be loaded here; if not, why. */
bool perf_nccl_is_there(char *reason, size_t bytes);

/* One rank, in a process that has MUSTER_RANK. Its exit status. */
int perf_nccl_rank(const char *board_path);

#endif
