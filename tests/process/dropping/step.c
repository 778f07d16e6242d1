// SPDX-License-Identifier: Apache-2.0
/*
 * A tool with a fault in it, on purpose: its ranks take a step that a death made void for a good one. What the experts
 * still owed counts as nothing; one step is wrong, and all after it are right again, but for what they build on.
 * `muster demo` built with this in place of engine/forward.c has to say that its output is not identical.
 */
#include <string.h>

#include "state.h"

static muster_status dropping_layer(struct engine *e, int32_t layer)
{
    muster_status status = experts_layer(e, layer);
    size_t floats = (size_t)e->batch.count * (size_t)e->weights.model.hidden_size;
    if (status != MUSTER_ERR_VOID && status != MUSTER_ERR_PEER)
        return status;
    memset(e->batch.added, 0, floats * sizeof(float));
    return MUSTER_OK;
}

static muster_status dropping_verdict(muster_group *group, muster_verdict *verdict)
{
    muster_status status = muster_step_verdict(group, verdict);
    if (verdict->status == MUSTER_ERR_VOID || verdict->status == MUSTER_ERR_PEER)
        verdict->status = MUSTER_OK;
    return status;
}

#define experts_layer dropping_layer
#define muster_step_verdict dropping_verdict
#include "../../../engine/forward.c"
