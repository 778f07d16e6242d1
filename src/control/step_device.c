// SPDX-License-Identifier: Apache-2.0
/*
 * Steps of a group with a device. The calls only enqueue; whether a step may begin, what it acts on and how it ended is
 * decided on the device, in stream order. What is kept here is the order of calls, which is the same while a graph is
 * captured.
 */
#include "control/group_state.h"
#include "core/error.h"

const struct device_ops *group_device_ops(const muster_group *g)
{
    return g->device_ops;
}

struct device *group_device(const muster_group *g)
{
    return g->device;
}

bool group_step_is_open(const muster_group *g)
{
    return g->step.open;
}

void group_step_mark(muster_group *g, bool open)
{
    if (open)
        step_open(g);
    else
        g->step.open = false;
}

muster_status step_device_begin(muster_group *g, void *stream)
{
    if (g->step.open)
        return error_set(MUSTER_ERR_ORDER, "muster_step_begin: a step is still open; end it first");
    muster_status status = g->device_ops->step_begin(g->device, stream);
    if (status == MUSTER_OK)
        step_open(g);
    return status;
}

muster_status step_device_end(muster_group *g, void *stream)
{
    if (!g->step.open)
        return error_set(MUSTER_ERR_ORDER, "muster_step_end: no step is open");
    bool failed = group_step_has_failed(g);
    if (!failed && step_busy(g))
        return error_set(MUSTER_ERR_ORDER, "muster_step_end: an exchange is half done; call its combine first");
    g->step.open = false;
    return g->device_ops->step_end(g->device, failed ? g->step.failed : MUSTER_REASON_NONE, g->step.failed_phase,
                                   stream);
}

/*
 * M5: the agent looks at the device only now and then, and reading the verdict makes the device forget the failure: what
 * is read before the agent has looked would never be told.
 */
static void step_device_report(muster_group *g, const struct device_verdict *v)
{
    if (v->failure && failure_reason(v->failure) != MUSTER_REASON_NOT_READY)
        step_report(g, v->failure, v->overdue);
}

muster_status step_device_verdict(muster_group *g, muster_verdict *verdict)
{
    struct device_verdict v;
    muster_status status = g->device_ops->verdict(g->device, &v);
    if (status != MUSTER_OK)
        return status;
    step_device_report(g, &v);
    bool entry = failure_names_entry(v.failure);
    *verdict = (muster_verdict){
        .step = v.step,
        .status = step_failure_status(v.failure),
        .reason = failure_reason(v.failure),
        .phase = failure_phase(v.failure),
        .peer = v.failure ? failure_peer(v.failure) : -1,
        .epoch = v.epoch ? v.epoch : failure_epoch(v.failure),
        .mask = v.mask,
        .token = entry ? (int32_t)(v.failure_detail >> 32) : -1,
        .k = entry ? (int32_t)(uint32_t)v.failure_detail : -1,
    };
    agent_wake(g); /* ready for the next epoch may hang on it */
    return MUSTER_OK;
}
