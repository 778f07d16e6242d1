// SPDX-License-Identifier: Apache-2.0
/* A rank of a served model: takes requests from its channel, runs steps with the other ranks, sends tokens back. */
#ifndef ENGINE_WORKER_H
#define ENGINE_WORKER_H

#include <stdint.h>

struct worker_config {
    const char *model_dir;
    int32_t slots_per_rank, max_tokens;
    int channel;
};

/*
 * Serves until the router says that it is finished, then leaves in good order. Rank, ranks and store come from the
 * launcher's environment. The exit status of the rank: 0, or 1 with a line on stderr.
 */
int worker_run(const struct worker_config *config);

#endif
