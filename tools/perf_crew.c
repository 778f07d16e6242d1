// SPDX-License-Identifier: Apache-2.0
/* The processes of a side that are this tool once more: started, watched, and ended. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/clock.h"
#include "core/thread.h"
#include "inherited.h"
#include "perf.h"
#include "process.h"

#define SECOND_NS UINT64_C(1000000000)
#define LEAVE_NS (10 * SECOND_NS)
#define EXIT_NS (20 * SECOND_NS) /* of a process that was killed: its driver may have to stop kernels first */

/* The measurement that such a process is told to take part in: see tool_perf(). */
static const char *role(enum perf_side_id side)
{
    static const char *const roles[] = {
        [PERF_LIBRARY] = "rank", [PERF_UNCHECKED] = "unchecked", [PERF_MPI] = "", [PERF_NCCL] = "nccl"};
    return roles[side];
}

/* Ranks of the library meet at a store; each crew has one of its own. */
static bool open_store(struct perf_run *run, enum perf_side_id side)
{
    struct store_server_config config = {.ranks = run->options.shape.ranks, .lease_us = 5000000};
    struct store_server **server = &run->crew[side].server;
    if (side == PERF_NCCL)
        return true;
    char text[200];
    if (!inherited_make_room(run->options.shape.ranks, 0, text, sizeof text)) {
        perf_board_fail(run->board, "%s", text);
        return false;
    }
    if (store_server_create(&config, server) == MUSTER_OK && store_server_start_thread(*server) == MUSTER_OK)
        return true;
    perf_board_fail(run->board, "%s", muster_last_error());
    return false;
}

bool perf_crew_start(struct perf_run *run, enum perf_side_id side, uint64_t timeout_ns)
{
    struct perf_crew *crew = &run->crew[side];
    char why[THREAD_TEXT_BYTES];
    perf_board_expect(run->board);
    if (!open_store(run, side))
        return false;
    for (int32_t r = 0; r < run->options.shape.ranks; r++) {
        pid_t pid = process_start_rank(&(struct process_rank){.command = "perf",
                                                              .role = role(side),
                                                              .board = run->board_fd,
                                                              .server = crew->server,
                                                              .rank = r,
                                                              .ranks = run->options.shape.ranks,
                                                              .err = -1});
        if (pid < 0) {
            perf_board_fail(run->board, "rank %d cannot be started: %s", r, thread_explain(errno, why));
            return false;
        }
        crew->pid[r] = pid;
    }
    return perf_await(run, side, timeout_ns);
}

bool perf_crew_has_died(struct perf_run *run, enum perf_side_id side)
{
    int status;
    pid_t *pid = run->crew[side].pid;
    for (int32_t r = 0; r < run->options.shape.ranks; r++) {
        if (pid[r] == 0 || waitpid(pid[r], &status, WNOHANG) != pid[r])
            continue;
        pid[r] = 0;
        perf_board_fail(run->board, "rank %d has ended (%s %d)", r, WIFSIGNALED(status) ? "signal" : "status",
                        WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
        return true;
    }
    return false;
}

static bool any_runs(struct perf_run *run, enum perf_side_id side)
{
    bool any = false;
    pid_t *pid = run->crew[side].pid;
    for (int32_t r = 0; r < run->options.shape.ranks; r++) {
        if (pid[r] && waitpid(pid[r], NULL, WNOHANG) == pid[r])
            pid[r] = 0;
        any |= pid[r] != 0;
    }
    return any;
}

static void wait_for(struct perf_run *run, enum perf_side_id side, uint64_t timeout_ns)
{
    uint64_t end_ns = clock_ns() + timeout_ns;
    while (any_runs(run, side) && clock_ns() < end_ns)
        usleep(2000);
}

void perf_crew_stop(struct perf_run *run, enum perf_side_id side, bool good)
{
    struct perf_crew *crew = &run->crew[side];
    if (good) {
        perf_board_tell(run->board, side, &(struct perf_order){.finish = true});
        wait_for(run, side, LEAVE_NS);
    }
    for (int32_t r = 0; r < run->options.shape.ranks; r++)
        if (crew->pid[r])
            process_signal(crew->pid[r], SIGKILL);
    wait_for(run, side, EXIT_NS);
    store_server_destroy(crew->server);
    crew->server = NULL;
}
