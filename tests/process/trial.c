// SPDX-License-Identifier: Apache-2.0
/*
 * One rank of a trial: a real process that exchanges in steps, compares every good step with the oracle, and does what
 * the campaign tells it over its link. trial RANK RANKS STORE_FD LINK_FD CASE STRETCH [MANUAL]
 *
 * Told: stop | abort | arm POINT SIGNAL | cross | refuse | slow MS.
 * Says: created | armed | good EPOCH MASK (first good step of an epoch) | ended TEXT | wrong TEXT.
 * Exit status: 0 left in good order, 2 no group, 3 wrong numbers, 4 the group ended, 5 a misuse.
 */
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "core/fault.h"
#include "core/mask.h"
#include "lib/crew.h"
#include "lib/party.h"

enum { EXIT_NO_GROUP = 2, EXIT_WRONG = 3, EXIT_ENDED = 4, EXIT_MISUSE = 5 };

struct trial {
    int rank, ranks, link, stretch;
    bool manual, stop, cross, refuse;
    int slow_ms;
    const struct exchange_case *c;
    muster_group *group;
    muster_ep *ep[2];
    uint32_t epoch; /* of the last step that took one */
    uint64_t taken; /* steps in that epoch so far; ranks of one epoch count alike */
    uint32_t said; /* epoch of the last "good" */
};

__attribute__((format(printf, 2, 3))) static void say(const struct trial *t, const char *format, ...)
{
    char text[CREW_MESSAGE];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    send(t->link, text, strlen(text), MSG_NOSIGNAL);
}

__attribute__((noreturn, format(printf, 3, 4))) static void quit(const struct trial *t, int status, const char *format,
                                                                 ...)
{
    char text[CREW_MESSAGE];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    say(t, "%s %s", status == EXIT_WRONG ? "wrong" : "ended", text);
    _exit(status);
}

static void nap(int ms)
{
    struct timespec rest = {ms / 1000, (long)(ms % 1000) * 1000000};
    nanosleep(&rest, NULL);
}

static void trial_arm(const struct trial *t, const char *point, const char *signal)
{
    for (int p = FAULT_NONE + 1; p < FAULT_POINTS; p++)
        if (strcmp(fault_name((enum fault_point)p), point) == 0) {
            fault_arm((enum fault_point)p, strcmp(signal, "STOP") == 0 ? SIGSTOP : SIGKILL, 1);
            say(t, "armed");
            return;
        }
    quit(t, EXIT_MISUSE, "no such point: %s", point);
}

static void trial_obey(struct trial *t, const char *text)
{
    char point[64], signal[8];
    if (sscanf(text, "arm %63s %7s", point, signal) == 2)
        trial_arm(t, point, signal);
    else if (sscanf(text, "slow %d", &t->slow_ms) == 1)
        say(t, "armed");
    else if (strcmp(text, "stop") == 0)
        t->stop = true;
    else if (strcmp(text, "abort") == 0)
        muster_group_abort(t->group);
    else if (strcmp(text, "cross") == 0)
        t->cross = true;
    else if (strcmp(text, "refuse") == 0)
        t->refuse = true;
    else
        quit(t, EXIT_MISUSE, "not understood: %s", text);
}

/* A link that is closed means that the campaign is gone. */
static void trial_listen(struct trial *t)
{
    char text[CREW_MESSAGE];
    for (;;) {
        ssize_t bytes = recv(t->link, text, sizeof(text) - 1, MSG_DONTWAIT);
        if (bytes < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (bytes <= 0)
            _exit(EXIT_MISUSE);
        text[bytes] = 0;
        trial_obey(t, text);
    }
}

static muster_group_config trial_config(const struct trial *t, int store_fd)
{
    static char store[32];
    uint64_t stretch = (uint64_t)t->stretch;
    muster_group_config config = MUSTER_GROUP_CONFIG_INIT;
    muster_ep_config ep = case_config(t->c);
    uint64_t bytes = 0;
    if (muster_ep_memory_bytes(&ep, t->ranks, &bytes) != MUSTER_OK)
        quit(t, EXIT_MISUSE, "%s", muster_last_error());
    snprintf(store, sizeof(store), "fd:%d", store_fd);
    config.rank = t->rank;
    config.ranks = t->ranks;
    config.memory_bytes = 2 * bytes;
    config.store = store;
    config.operation_timeout_us = stretch * CREW_OPERATION_MS * 1000;
    config.step_timeout_us = stretch * CREW_STEP_MS * 1000;
    config.start_timeout_us = stretch * CREW_START_MS * 1000;
    config.manual_ready = t->manual;
    return config;
}

static void trial_create(struct trial *t, int store_fd)
{
    muster_group_config config = trial_config(t, store_fd);
    muster_ep_config ep = case_config(t->c);
    if (muster_group_create(&config, &t->group) != MUSTER_OK)
        quit(t, EXIT_NO_GROUP, "%s", muster_last_error());
    for (int i = 0; i < 2; i++)
        if (muster_ep_create(t->group, &ep, &t->ep[i]) != MUSTER_OK)
            quit(t, EXIT_NO_GROUP, "%s", muster_last_error());
    say(t, "created");
}

static void trial_leave(struct trial *t)
{
    muster_ep_destroy(t->ep[0]);
    muster_ep_destroy(t->ep[1]);
    muster_group_destroy(t->group);
    exit(0);
}

/* With manual_ready: "loads weights", then says that this rank is ready for the view that is installed. */
static void trial_load(struct trial *t)
{
    muster_view view;
    if (!t->manual || muster_group_view(t->group, &view) != MUSTER_OK || view.ready)
        return;
    nap(t->slow_ms);
    t->slow_ms = 0;
    muster_group_ready(t->group, view.epoch); /* another view may have come meanwhile: then again */
}

static bool trial_await(struct trial *t)
{
    trial_load(t);
    muster_status status = muster_group_wait_ready(t->group, t->manual ? 2000 : 20000);
    if (status != MUSTER_OK && status != MUSTER_ERR_AGAIN)
        quit(t, EXIT_ENDED, "%s: %s", muster_status_name(status), muster_last_error());
    return status == MUSTER_OK;
}

static muster_status trial_operate(struct trial *t, struct party *const p[2])
{
    int first = t->cross ? 1 : 0;
    t->cross = false;
    if (t->refuse)
        ((int64_t *)(void *)p[0]->slots.whole)[0] = 9999;
    t->refuse = false;
    muster_status status = party_exchange(p[first], t->ep[first]);
    return status == MUSTER_OK ? party_exchange(p[1 - first], t->ep[1 - first]) : status;
}

static void trial_judge(struct trial *t, const muster_verdict *verdict, muster_status status, struct party *const p[2])
{
    if (verdict->status != MUSTER_OK)
        return;
    if (status != MUSTER_OK)
        quit(t, EXIT_WRONG, "a good step with an operation that gave %s", muster_status_name(status));
    for (int i = 0; i < 2; i++)
        if (!party_right(p[i]))
            quit(t, EXIT_WRONG, "epoch %u, step %llu, exchange %d: %s", verdict->epoch, (unsigned long long)t->taken, i,
                 p[i]->why);
    if (t->said == verdict->epoch)
        return;
    t->said = verdict->epoch;
    say(t, "good %u %llx", verdict->epoch, (unsigned long long)verdict->mask.word[0]);
}

/* The inputs of the step that is open. If it took an older view than the one that is installed now, it is void. */
static void trial_exchange(struct trial *t, const muster_view *view)
{
    struct world *w[2];
    struct party *p[2];
    muster_verdict verdict;
    uint64_t index = t->epoch == view->epoch ? t->taken : 0;
    for (int i = 0; i < 2; i++) {
        w[i] = world_make(t->c, t->ranks, view->mask, ((uint64_t)view->epoch << 20) + 2 * index + (uint64_t)i);
        p[i] = party_open(w[i], t->rank);
    }
    muster_status status = trial_operate(t, p);
    if (muster_step_end(t->group, NULL) != MUSTER_OK || muster_step_verdict(t->group, &verdict) != MUSTER_OK)
        quit(t, EXIT_MISUSE, "step_end or verdict: %s", muster_last_error());
    if (verdict.status == MUSTER_OK && (verdict.epoch != view->epoch || !mask_equal(verdict.mask, view->mask)))
        quit(t, EXIT_WRONG, "a step of epoch %u has the verdict of epoch %u or another mask", view->epoch,
             verdict.epoch);
    trial_judge(t, &verdict, status, p);
    if (verdict.reason != MUSTER_REASON_NOT_READY && verdict.reason != MUSTER_REASON_UNREAD) {
        t->taken = t->epoch == verdict.epoch ? t->taken + 1 : 1;
        t->epoch = verdict.epoch;
    }
    for (int i = 0; i < 2; i++) {
        party_close(p[i]);
        world_free(w[i]);
    }
}

static void trial_step(struct trial *t)
{
    muster_view view;
    muster_status status = muster_step_begin(t->group, NULL);
    if (status == MUSTER_OK)
        status = muster_group_view(t->group, &view);
    if (status != MUSTER_OK)
        quit(t, EXIT_ENDED, "%s: %s", muster_status_name(status), muster_last_error());
    trial_exchange(t, &view);
}

int main(int argc, char **argv)
{
    if (argc < 7) {
        fprintf(stderr, "usage: trial RANK RANKS STORE_FD LINK_FD CASE STRETCH [MANUAL]; started by campaign\n");
        return EXIT_MISUSE;
    }
    struct trial t = {.rank = atoi(argv[1]),
                      .ranks = atoi(argv[2]),
                      .link = atoi(argv[4]),
                      .c = crew_case(atoi(argv[5])),
                      .stretch = atoi(argv[6]),
                      .manual = argc > 7};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    trial_create(&t, atoi(argv[3]));
    while (!t.stop) {
        trial_listen(&t);
        if (!t.stop && trial_await(&t))
            trial_step(&t);
    }
    trial_leave(&t);
}
