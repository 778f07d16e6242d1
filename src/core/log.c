// SPDX-License-Identifier: Apache-2.0
#include "core/log.h"

#include <poll.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core/config.h"
#include "core/signals.h"

static _Atomic int log_rank = -1;
static _Atomic bool log_lost;

void log_set_rank(int rank)
{
    atomic_store_explicit(&log_rank, rank, memory_order_relaxed);
}

static enum log_level log_threshold(void)
{
    static const char *const names[] = {"error", "warn", "info", "debug"};
    static _Atomic int known = -1;
    int level = atomic_load_explicit(&known, memory_order_relaxed);
    if (level >= 0)
        return (enum log_level)level;
    level = LOG_LEVEL_WARN;
    for (int i = 0; i < 4; i++)
        if (strcmp(config_text(CONFIG_LOG, NULL), names[i]) == 0)
            level = i;
    atomic_store_explicit(&known, level, memory_order_relaxed);
    return (enum log_level)level;
}

bool log_enabled(enum log_level level)
{
    return level <= log_threshold();
}

/*
 * A pipe that nobody empties, or a terminal that is held, would block the agent, and with it every rank of the group. Whether
 * there is room can change until the write, but only by what others write to the same place at that moment.
 */
static bool log_has_room(void)
{
    struct pollfd out = {.fd = STDERR_FILENO, .events = POLLOUT};
    return poll(&out, 1, 0) != 0;
}

static void log_write(const char *line, size_t length)
{
    struct signals_held held;
    signals_hold(&held);
    ssize_t ignored = write(STDERR_FILENO, line, length);
    (void)ignored;
    signals_let_go(&held);
}

/* Lines that nobody had room for are told when there is room again. */
static void log_tell_lost(void)
{
    static const char text[] = "muster warning: lines for stderr, which nobody read, were left out\n";
    if (atomic_exchange(&log_lost, false))
        log_write(text, sizeof text - 1);
}

/* One write per line, so that lines of several ranks do not mix. */
void log_line(enum log_level level, const char *format, ...)
{
    static const char *const tags[] = {"error", "warning", "info", "debug"};
    if (!log_enabled(level))
        return;
    char line[1024];
    int rank = atomic_load_explicit(&log_rank, memory_order_relaxed);
    int used = rank < 0 ? snprintf(line, sizeof line, "muster %s: ", tags[level])
                        : snprintf(line, sizeof line, "muster %s: rank %d: ", tags[level], rank);
    va_list arguments;
    va_start(arguments, format);
    int text = vsnprintf(line + used, sizeof line - (size_t)used - 1, format, arguments);
    va_end(arguments);
    size_t length = (size_t)used + (size_t)(text < 0 ? 0 : text);
    if (length > sizeof line - 2)
        length = sizeof line - 2;
    line[length++] = '\n';
    if (!log_has_room()) {
        atomic_store(&log_lost, true);
        return;
    }
    log_tell_lost();
    log_write(line, length);
}
