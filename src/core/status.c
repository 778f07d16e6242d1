// SPDX-License-Identifier: Apache-2.0
#include "core/error.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

struct status_entry {
    muster_status status;
    const char *name;
    const char *text;
};

static const struct status_entry status_table[] = {
    {MUSTER_OK, "MUSTER_OK", "success"},
    {MUSTER_ERR_ARGUMENT, "MUSTER_ERR_ARGUMENT", "an argument is wrong; nothing was touched"},
    {MUSTER_ERR_UNSUPPORTED, "MUSTER_ERR_UNSUPPORTED", "this build or backend does not serve the request"},
    {MUSTER_ERR_ORDER, "MUSTER_ERR_ORDER", "this call is not allowed now; nothing was touched"},
    {MUSTER_ERR_VOID, "MUSTER_ERR_VOID", "the step is void; the operation did nothing"},
    {MUSTER_ERR_AGAIN, "MUSTER_ERR_AGAIN", "not yet; try again later"},
    {MUSTER_ERR_CAPACITY, "MUSTER_ERR_CAPACITY", "too few ranks are left"},
    {MUSTER_ERR_MEMORY, "MUSTER_ERR_MEMORY", "memory is used up"},
    {MUSTER_ERR_EXHAUSTED, "MUSTER_ERR_EXHAUSTED", "the epoch numbers of this group are used up"},
    {MUSTER_ERR_TIMEOUT, "MUSTER_ERR_TIMEOUT", "a peer did not answer before the deadline"},
    {MUSTER_ERR_PEER, "MUSTER_ERR_PEER", "a peer died or refused its part; the epoch has ended"},
    {MUSTER_ERR_UNFENCED, "MUSTER_ERR_UNFENCED", "a suspect could not be made to exit before the deadline"},
    {MUSTER_ERR_MISMATCH, "MUSTER_ERR_MISMATCH", "the ranks were configured differently"},
    {MUSTER_ERR_STORE, "MUSTER_ERR_STORE", "the store is gone or has forgotten this rank"},
    {MUSTER_ERR_EVICTED, "MUSTER_ERR_EVICTED", "the others went on without this rank"},
    {MUSTER_ERR_LEFT, "MUSTER_ERR_LEFT", "this rank has left the group"},
    {MUSTER_ERR_SYSTEM, "MUSTER_ERR_SYSTEM", "a system call failed"},
    {MUSTER_ERR_FORKED, "MUSTER_ERR_FORKED", "the handle belongs to the parent process"},
};

static const struct status_entry *status_find(muster_status status)
{
    for (size_t i = 0; i < sizeof status_table / sizeof *status_table; i++)
        if (status_table[i].status == status)
            return &status_table[i];
    return NULL;
}

const char *muster_status_name(muster_status status)
{
    const struct status_entry *entry = status_find(status);
    return entry ? entry->name : "MUSTER_ERR_?";
}

const char *muster_status_text(muster_status status)
{
    const struct status_entry *entry = status_find(status);
    return entry ? entry->text : "unknown status";
}

static _Thread_local char last_error[1024];

const char *muster_last_error(void)
{
    return last_error;
}

muster_status error_set(muster_status status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    return status;
}

const char *muster_version(void)
{
    return MUSTER_VERSION;
}
