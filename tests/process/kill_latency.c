// SPDX-License-Identifier: Apache-2.0
/*
 * How fast a SIGKILL becomes a new view: 4 ranks step; one is killed; for every survivor the time until it knows (its
 * step ends void, or it can begin none) and until the view without the dead rank is installed. 20 rounds; prints medians
 * over rounds of the slowest survivor, and fails beyond ten times what an idle machine must reach (5 ms and 50 ms).
 */
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "control/store_server.h"
#include "core/clock.h"
#include "lib/pace.h"
#include "muster/group.h"

enum { RANKS = 4, ROUNDS = 20, ALLOWED_FACTOR = 10, KNOW_MS = 5, VIEW_MS = 50 };

/* Written by the ranks, read by the parent. */
struct board {
    _Atomic uint64_t steady[RANKS], knows_ns[RANKS], view_ns[RANKS];
    _Atomic bool finish;
};

static struct board *board;

static void on_view(void *context, const muster_view *view)
{
    if (view->epoch > 1)
        board->view_ns[*(const int *)context] = clock_ns();
}

static bool step_is_good(muster_group *group)
{
    muster_verdict verdict;
    muster_step_begin(group, NULL);
    usleep(100);
    muster_step_end(group, NULL);
    return muster_step_verdict(group, &verdict) == MUSTER_OK && verdict.status == MUSTER_OK;
}

static int run_rank(int rank, int fd)
{
    char store[32];
    snprintf(store, sizeof(store), "fd:%d", fd);
    muster_group_config config = MUSTER_GROUP_CONFIG_INIT;
    config.rank = rank, config.ranks = RANKS, config.store = store;
    config.on_view = on_view, config.context = &rank;
    muster_group *group;
    if (muster_group_create(&config, &group) != MUSTER_OK) {
        fprintf(stderr, "rank %d: %s\n", rank, muster_last_error());
        return 1;
    }
    while (!board->finish) {
        if (step_is_good(group))
            board->steady[rank]++;
        else if (board->knows_ns[rank] == 0)
            board->knows_ns[rank] = clock_ns();
    }
    muster_group_destroy(group);
    return 0;
}

static bool serve_until(struct store_server *server, bool (*done)(int victim), int victim)
{
    struct pace pace = pace_begin();
    while (!done(victim)) {
        struct pollfd ready = {.fd = store_server_fd(server), .events = POLLIN};
        poll(&ready, 1, 1);
        store_server_poll(server);
        if (pace_wall_ms(&pace) > PACE_PATIENCE_MS)
            return false;
    }
    return true;
}

static bool all_steady(int victim)
{
    (void)victim;
    for (int r = 0; r < RANKS; r++)
        if (board->steady[r] < 20)
            return false;
    return true;
}

static bool all_installed(int victim)
{
    for (int r = 0; r < RANKS; r++)
        if (r != victim && (board->view_ns[r] == 0 || board->knows_ns[r] == 0))
            return false;
    return true;
}

static bool all_gone(int victim)
{
    (void)victim;
    return waitpid(-1, NULL, WNOHANG) < 0;
}

static double slowest_ms(const _Atomic uint64_t *at_ns, int victim, uint64_t since_ns)
{
    double slowest = 0;
    for (int r = 0; r < RANKS; r++) {
        double ms = ((double)at_ns[r] - (double)since_ns) / 1e6;
        if (r != victim && ms > slowest)
            slowest = ms;
    }
    return slowest;
}

/* kept_ms: what of it was the machine's, all ranks taken together. */
static bool run_round(int round, double *know_ms, double *view_ms, double *kept_ms)
{
    struct store_server_config config = {.ranks = RANKS, .lease_us = 5000000};
    struct store_server *server;
    pid_t pid[RANKS];
    int victim = round % RANKS;
    *board = (struct board){.finish = false};
    if (store_server_create(&config, &server) != MUSTER_OK)
        return false;
    for (int r = 0; r < RANKS; r++) {
        int fd = store_server_connect(server);
        pid[r] = fork();
        if (pid[r] == 0)
            _exit(run_rank(r, fd));
        close(fd);
    }
    bool good = serve_until(server, all_steady, victim);
    struct pace pace = pace_begin();
    uint64_t killed_ns = clock_ns();
    kill(pid[victim], SIGKILL);
    good = good && serve_until(server, all_installed, victim);
    *kept_ms = pace_kept_ms(&pace);
    *know_ms = slowest_ms(board->knows_ns, victim, killed_ns);
    *view_ms = slowest_ms(board->view_ns, victim, killed_ns);
    board->finish = true;
    good = serve_until(server, all_gone, victim) && good;
    for (int r = 0; r < RANKS && !good; r++)
        kill(pid[r], SIGKILL);
    store_server_destroy(server);
    return good;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(void)
{
    double know[ROUNDS], view[ROUNDS], kept[ROUNDS];
    board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < ROUNDS; i++)
        if (!run_round(i, &know[i], &view[i], &kept[i])) {
            fprintf(stderr, "round %d did not end within %d ms\n", i, PACE_PATIENCE_MS);
            return 1;
        }
    qsort(know, ROUNDS, sizeof(*know), by_size);
    qsort(view, ROUNDS, sizeof(*view), by_size);
    qsort(kept, ROUNDS, sizeof(*kept), by_size);
    printf("after SIGKILL of one of %d ranks, slowest survivor, median (max) of %d:\n", RANKS, ROUNDS);
    printf("knows      %8.2f ms (%.2f)   target %d ms\n", know[ROUNDS / 2], know[ROUNDS - 1], KNOW_MS);
    printf("installed  %8.2f ms (%.2f)   target %d ms\n", view[ROUNDS / 2], view[ROUNDS - 1], VIEW_MS);
    double machine_ms = kept[ROUNDS / 2];
    printf("the machine kept all together waiting for %.2f ms (%.2f) meanwhile\n", machine_ms, kept[ROUNDS - 1]);
    return know[ROUNDS / 2] > KNOW_MS * ALLOWED_FACTOR + machine_ms ||
           view[ROUNDS / 2] > VIEW_MS * ALLOWED_FACTOR + machine_ms;
}
