// SPDX-License-Identifier: Apache-2.0
/* The ranks of a campaign: started, watched, and ended. Every wait here has a deadline. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "chaos.h"
#include "chaos_rank.h"
#include "core/clock.h"
#include "core/config.h"
#include "core/mask.h"
#include "core/thread.h"
#include "inherited.h"
#include "muster/status.h"
#include "process.h"

#define SECOND_NS UINT64_C(1000000000)
#define LEAVE_NS (10 * SECOND_NS)
#define EXIT_NS (20 * SECOND_NS) /* of a process that was killed: its driver may have to stop kernels first */

enum { LOOK_US = 300 };

/* ---- failures ---- */

bool chaos_crew_fail(struct chaos_crew *crew, enum chaos_end end, const char *format, ...)
{
    if (crew->failed)
        return false;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(crew->why, sizeof crew->why, format, arguments);
    va_end(arguments);
    crew->failed = true;
    crew->end = end;
    return false;
}

bool chaos_crew_fail_late(struct chaos_crew *crew, const char *what)
{
    char text[CHAOS_REASON_BYTES / 2] = "";
    size_t used = 0;
    for (int32_t r = 0; r < crew->options->shape.ranks && used + 80 < sizeof text; r++) {
        const struct chaos_seat *seat = &crew->board->seat[r];
        const char *at = crew->pid[r] ? chaos_at_name((enum chaos_at)atomic_load(&seat->at)) : "does not run";
        used += (size_t)snprintf(text + used, sizeof text - used, "; rank %d %s, epoch %u", r, at,
                                 atomic_load(&seat->epoch));
    }
    return chaos_crew_fail(crew, CHAOS_HANGS, "%s%s", what, text);
}

/* ---- processes ---- */

static bool start_rank(struct chaos_crew *crew, int32_t rank)
{
    char why[THREAD_TEXT_BYTES];
    crew->wrong += atomic_load(&crew->board->seat[rank].wrong);
    chaos_seat_clear(&crew->board->seat[rank]);
    pid_t pid = process_start_rank(&(struct process_rank){.command = "chaos",
                                                          .role = "rank",
                                                          .board = crew->board_fd,
                                                          .server = crew->server,
                                                          .rank = rank,
                                                          .ranks = crew->options->shape.ranks,
                                                          .err = crew->log_fd});
    if (pid < 0)
        return chaos_crew_fail(crew, CHAOS_ERRED, "rank %d cannot be started: %s", rank, thread_explain(errno, why));
    crew->pid[rank] = pid;
    return true;
}

bool chaos_crew_start(struct chaos_crew *crew)
{
    for (int32_t r = 0; r < crew->options->shape.ranks; r++)
        if (!crew->pid[r] && !start_rank(crew, r))
            return false;
    return true;
}

bool chaos_crew_runs(const struct chaos_crew *crew, int32_t rank)
{
    return crew->pid[rank] != 0;
}

/* What a rank's end means. Fenced by the store, or evicted, it was expelled: a suspicion can be wrong. */
static void judge_end(struct chaos_crew *crew, int32_t rank, int status)
{
    const struct chaos_seat *seat = &crew->board->seat[rank];
    if (status == 0 && atomic_load(&crew->board->finish))
        return;
    bool killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    bool expelled = killed || (WIFEXITED(status) && WEXITSTATUS(status) == CHAOS_EXPELLED);
    if (expelled && rank != crew->victim)
        crew->expelled++;
    if (expelled)
        return;
    enum chaos_failure failure = (enum chaos_failure)atomic_load(&seat->failure);
    enum chaos_end end = failure == CHAOS_HUNG ? CHAOS_HANGS : CHAOS_ERRED;
    if (failure)
        chaos_crew_fail(crew, end, "rank %d: %s", rank, seat->why);
    else if (WIFSIGNALED(status))
        chaos_crew_fail(crew, end, "rank %d died of signal %d", rank, WTERMSIG(status));
    else
        chaos_crew_fail(crew, end, "rank %d ended with status %d", rank, WEXITSTATUS(status));
}

static void reap(struct chaos_crew *crew, bool judge)
{
    for (int32_t r = 0; r < crew->options->shape.ranks; r++) {
        int status;
        if (!crew->pid[r] || waitpid(crew->pid[r], &status, WNOHANG) != crew->pid[r])
            continue;
        crew->pid[r] = 0;
        if (judge)
            judge_end(crew, r, status);
    }
}

static bool any_of(const struct chaos_crew *crew, muster_mask who)
{
    for (int r = mask_next(who, 0); r >= 0; r = mask_next(who, r + 1))
        if (crew->pid[r])
            return true;
    return false;
}

bool chaos_crew_all_run(const struct chaos_crew *crew)
{
    for (int32_t r = 0; r < crew->options->shape.ranks; r++)
        if (!crew->pid[r])
            return false;
    return true;
}

/* ---- waiting ---- */

static bool all_are(const struct chaos_crew *crew, chaos_condition *done, muster_mask who)
{
    for (int r = mask_next(who, 0); r >= 0; r = mask_next(who, r + 1))
        if (crew->pid[r] && !done(&crew->board->seat[r]))
            return false;
    return true;
}

/* Of whom does not run it cannot be true any more; with nobody left there is nobody of whom it is. */
bool chaos_crew_await(struct chaos_crew *crew, chaos_condition *done, muster_mask who, uint64_t timeout_ns)
{
    uint64_t end_ns = clock_ns() + timeout_ns;
    while (any_of(crew, who) && !all_are(crew, done, who)) {
        reap(crew, true);
        if (crew->failed || clock_ns() > end_ns)
            return false;
        usleep(LOOK_US);
    }
    return any_of(crew, who);
}

bool chaos_crew_await_exit(struct chaos_crew *crew, int32_t rank, uint64_t timeout_ns)
{
    uint64_t end_ns = clock_ns() + timeout_ns;
    while (crew->pid[rank]) {
        reap(crew, true);
        if (crew->failed || clock_ns() > end_ns)
            return false;
        usleep(LOOK_US);
    }
    return true;
}

static bool await_exits(struct chaos_crew *crew, bool judge, uint64_t timeout_ns)
{
    muster_mask all = mask_first(crew->options->shape.ranks);
    uint64_t end_ns = clock_ns() + timeout_ns;
    for (reap(crew, judge); any_of(crew, all); reap(crew, judge)) {
        if (clock_ns() > end_ns)
            return false;
        usleep(LOOK_US);
    }
    return true;
}

/* ---- from beginning to end ---- */

/*
 * That operations are overdue, and that a hanging rank was evicted, is what is wanted here: ranks are shown only to whoever
 * has asked for their log. What fails them is on the board.
 */
static int open_log(void)
{
    return config_given(CONFIG_LOG) ? -1 : open("/dev/null", O_WRONLY | O_CLOEXEC);
}

bool chaos_crew_open(struct chaos_crew *crew, const struct chaos_options *options)
{
    struct store_server_config config = {.ranks = options->shape.ranks, .lease_us = 5000000};
    *crew = (struct chaos_crew){.options = options, .log_fd = open_log(), .victim = -1};
    crew->board = chaos_board_create(&options->shape, &crew->board_fd);
    if (!crew->board)
        return chaos_crew_fail(crew, CHAOS_ERRED, "shared memory: %s", strerror(errno));
    atomic_store(&crew->board->victim, 0);
    char text[200];
    if (!inherited_make_room(options->shape.ranks, 0, text, sizeof text))
        return chaos_crew_fail(crew, CHAOS_ERRED, "%s", text);
    if (store_server_create(&config, &crew->server) == MUSTER_OK &&
        store_server_start_thread(crew->server) == MUSTER_OK)
        return true;
    return chaos_crew_fail(crew, CHAOS_ERRED, "the store: %s", muster_last_error());
}

bool chaos_crew_close(struct chaos_crew *crew, bool in_order)
{
    if (crew->board)
        atomic_store(&crew->board->finish, true);
    if (in_order && !await_exits(crew, true, LEAVE_NS))
        chaos_crew_fail_late(crew, "not everybody has left");
    for (int32_t r = 0; r < crew->options->shape.ranks; r++)
        if (crew->pid[r])
            process_signal(crew->pid[r], SIGKILL);
    await_exits(crew, false, EXIT_NS);
    store_server_destroy(crew->server);
    if (crew->log_fd >= 0)
        close(crew->log_fd);
    if (crew->board)
        close(crew->board_fd);
    chaos_board_close(crew->board);
    return !in_order || !crew->failed;
}
