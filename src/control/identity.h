// SPDX-License-Identifier: Apache-2.0
/* Who am I: the rank, the number of ranks and the store, from the caller or from the launcher's environment. */
#ifndef CONTROL_IDENTITY_H
#define CONTROL_IDENTITY_H

#include "muster/group.h"

struct identity {
    int32_t rank;
    int32_t ranks;
    char store[256]; /* "fd:N" or "unix:@NAME", or several with commas */
};

/*
 * Explicit fields of the config come first, then MUSTER_RANK/RANKS/STORE, then torchrun, Open MPI, SLURM. Under the
 * last three it may start a sidecar store. Errors: ARGUMENT: nothing says who this process is, or two launchers say
 * different things (docs/launching.md has the rule); names what was looked for, or found.
 */
muster_status identity_find(const muster_group_config *config, struct identity *identity);

#endif
