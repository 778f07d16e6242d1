// SPDX-License-Identifier: Apache-2.0
#include "core/fault.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/config.h"
#include "core/log.h"
#include "core/signals.h"

static const char *const fault_names[FAULT_POINTS] = {
    [FAULT_NONE] = "none",
    [FAULT_STEP_BEGUN] = "step.begun",
    [FAULT_DISPATCH_ENTRY] = "dispatch.entry",
    [FAULT_DISPATCH_ROW] = "dispatch.row",
    [FAULT_DISPATCH_BEFORE_FLAG] = "dispatch.before_flag",
    [FAULT_DISPATCH_BETWEEN_FLAGS] = "dispatch.between_flags",
    [FAULT_DISPATCH_SENT] = "dispatch.sent",
    [FAULT_DISPATCH_WAITED] = "dispatch.waited",
    [FAULT_DISPATCH_DONE] = "dispatch.done",
    [FAULT_COMBINE_ENTRY] = "combine.entry",
    [FAULT_COMBINE_ROW] = "combine.row",
    [FAULT_COMBINE_BEFORE_FLAG] = "combine.before_flag",
    [FAULT_COMBINE_BETWEEN_FLAGS] = "combine.between_flags",
    [FAULT_COMBINE_SENT] = "combine.sent",
    [FAULT_COMBINE_WAITED] = "combine.waited",
    [FAULT_COMBINE_DONE] = "combine.done",
    [FAULT_STEP_ENDED] = "step.ended",
    [FAULT_VIEW_PROPOSED] = "view.proposed",
    [FAULT_VIEW_RAISED] = "view.raised",
    [FAULT_VIEW_ACKNOWLEDGED] = "view.acknowledged",
    [FAULT_VIEW_COMMITTING] = "view.committing",
    [FAULT_VIEW_INSTALLED] = "view.installed",
    [FAULT_VIEW_READY] = "view.ready",
    [FAULT_VIEW_BEGUN] = "view.begun",
};

_Atomic bool fault_active;
static _Atomic int fault_point;
static _Atomic int fault_signal;
static _Atomic unsigned fault_countdown;
static int fault_list_fd = -1;
static void (*_Atomic fault_observer)(enum fault_point point);
static _Atomic bool fault_listed[FAULT_POINTS];

const char *fault_name(enum fault_point point)
{
    return fault_names[point];
}

void fault_arm(enum fault_point point, int signal, unsigned count)
{
    atomic_store(&fault_signal, signal);
    atomic_store(&fault_countdown, count);
    atomic_store(&fault_point, point);
    atomic_store(&fault_active, signal != 0 || fault_list_fd >= 0);
}

void fault_observe(void (*fired)(enum fault_point point))
{
    atomic_store(&fault_observer, fired);
}

static enum fault_point fault_find(const char *name, size_t length)
{
    for (int p = FAULT_NONE + 1; p < FAULT_POINTS; p++)
        if (strlen(fault_names[p]) == length && strncmp(fault_names[p], name, length) == 0)
            return (enum fault_point)p;
    return FAULT_NONE;
}

/* "POINT:SIGNAL[:COUNT]" */
static void fault_parse(const char *text)
{
    size_t name = strcspn(text, ":");
    enum fault_point point = fault_find(text, name);
    const char *rest = text[name] ? text + name + 1 : "";
    size_t word = strcspn(rest, ":");
    int signal = strncmp(rest, "KILL", word) == 0 ? SIGKILL : strncmp(rest, "STOP", word) == 0 ? SIGSTOP : 0;
    bool none = word == 4 && strncmp(rest, "NONE", 4) == 0;
    unsigned long count = rest[word] ? strtoul(rest + word + 1, NULL, 10) : 1;
    if (point == FAULT_NONE || word != 4 || (!signal && !none) || count == 0) {
        log_line(LOG_LEVEL_WARN, "MUSTER_FAULT=\"%s\" ignored: want POINT:KILL|STOP|NONE[:COUNT]", text);
        return;
    }
    fault_arm(point, signal, (unsigned)count);
}

static void fault_read_settings(void)
{
    if (config_given(CONFIG_FAULT_LIST)) {
        fault_list_fd = (int)config_number(CONFIG_FAULT_LIST);
        atomic_store(&fault_active, true);
    }
    if (config_given(CONFIG_FAULT))
        fault_parse(config_text(CONFIG_FAULT, NULL));
}

void fault_configure(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, fault_read_settings);
}

static void fault_list(enum fault_point point)
{
    if (fault_list_fd < 0 || atomic_exchange(&fault_listed[point], true))
        return;
    char line[64];
    size_t length = strlen(fault_names[point]);
    memcpy(line, fault_names[point], length);
    line[length] = '\n';
    struct signals_held held;
    signals_hold(&held);
    ssize_t ignored = write(fault_list_fd, line, length + 1);
    (void)ignored;
    signals_let_go(&held);
}

void fault_reached(enum fault_point point)
{
    fault_list(point);
    int signal = atomic_load(&fault_signal);
    if (signal == 0 || atomic_load(&fault_point) != (int)point)
        return;
    if (atomic_fetch_sub(&fault_countdown, 1) != 1)
        return;
    void (*fired)(enum fault_point) = atomic_load(&fault_observer);
    if (fired)
        fired(point);
    kill(getpid(), signal);
}
