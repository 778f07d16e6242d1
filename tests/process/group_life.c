// SPDX-License-Identifier: Apache-2.0
/*
 * A rank that creates its group LIVES times, runs STEPS batches each time, and leaves: for the tests of a group's life. Each
 * life says how many ranks it began with, and how many of its steps were void. group_life LIVES STEPS [PAUSE-MS]
 * MUSTER_TEST_MIN_RANKS: the group's min_ranks. MUSTER_TEST_DEADLINE_MS: its operation timeout. MUSTER_TEST_COMPUTE_MS: how
 * long rank 0 computes in each step, while the others wait for it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "lib/party.h"
#include "muster/muster.h"

static const struct exchange_case c = {.name = "life", .hidden = 16, .max_tokens = 4, .slots = 2, .topk = 2};

static unsigned long setting(const char *name, unsigned long fallback)
{
    const char *text = getenv(name);
    return text ? strtoul(text, NULL, 10) : fallback;
}

static int fail(const char *what)
{
    printf("%s: %s\n", what, muster_last_error());
    return 1;
}

static muster_status create(int ranks, muster_group **group, muster_ep **ep)
{
    muster_ep_config exchange = case_config(&c);
    muster_group_config config = MUSTER_GROUP_CONFIG_INIT;
    config.min_ranks = (int32_t)setting("MUSTER_TEST_MIN_RANKS", 1);
    config.operation_timeout_us = setting("MUSTER_TEST_DEADLINE_MS", 5000) * 1000;
    muster_status status = muster_ep_memory_bytes(&exchange, ranks, &config.memory_bytes);
    if (status == MUSTER_OK)
        status = muster_group_create(&config, group);
    return status == MUSTER_OK ? muster_ep_create(*group, &exchange, ep) : status;
}

/* Time of this thread alone: a process that is stopped meanwhile has as much left to do afterwards. */
static void compute(unsigned long ms)
{
    struct timespec now, start;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &start);
    do
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    while ((unsigned long)(now.tv_sec - start.tv_sec) * 1000 + (unsigned long)(now.tv_nsec / 1000000) <
           ms + (unsigned long)(start.tv_nsec / 1000000));
}

/* Dispatch, experts, combine; what fails of it the verdict tells. */
static void exchange(muster_group *group, struct party *p, muster_ep *ep)
{
    if (party_dispatch(p, ep) != MUSTER_OK)
        return;
    if (muster_group_rank(group) == 0)
        compute(setting("MUSTER_TEST_COMPUTE_MS", 0));
    party_experts(p);
    party_combine(p, ep);
}

/* One batch, whose inputs depend on its number and on who is here. */
static int run_batch(muster_group *group, muster_ep *ep, const muster_view *view, uint64_t batch, int *voids)
{
    struct world *world = world_make(&c, view->ranks, view->mask, batch);
    struct party *p = party_open(world, muster_group_rank(group));
    muster_verdict verdict;
    muster_step_begin(group, NULL);
    exchange(group, p, ep);
    muster_step_end(group, NULL);
    int failed = muster_step_verdict(group, &verdict) != MUSTER_OK;
    int good = !failed && verdict.status == MUSTER_OK;
    if (good && !party_right(p)) {
        printf("wrong: batch %llu: %s\n", (unsigned long long)batch, p->why);
        failed = 1;
    }
    *voids += !good;
    party_close(p);
    world_free(world);
    return failed ? -1 : good;
}

static int run_batches(muster_group *group, muster_ep *ep, uint64_t batches, useconds_t pause_us, int *voids)
{
    muster_view view = {0};
    uint32_t epoch = 0;
    for (uint64_t batch = 0; batch < batches;) {
        if (muster_group_wait_ready(group, 60000000) != MUSTER_OK || muster_group_view(group, &view) != MUSTER_OK)
            return fail("waiting for a view");
        if (!view.ready)
            continue;
        if (view.epoch != epoch) {
            batch = view.progress_least;
            printf("epoch %u: %d ranks, batch %llu\n", view.epoch, view.active, (unsigned long long)batch);
        }
        epoch = view.epoch;
        int good = run_batch(group, ep, &view, batch, voids);
        if (good < 0)
            return 1;
        batch += (uint64_t)good;
        usleep(pause_us);
    }
    return 0;
}

int main(int argc, char **argv)
{
    int lives = argc > 1 ? atoi(argv[1]) : 1, ranks = (int)setting("MUSTER_RANKS", setting("SLURM_NTASKS", 1));
    uint64_t batches = argc > 2 ? strtoull(argv[2], NULL, 10) : 10;
    useconds_t pause_us = argc > 3 ? (useconds_t)atoi(argv[3]) * 1000 : 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int life = 1; life <= lives; life++) {
        muster_group *group = NULL;
        muster_ep *ep = NULL;
        int voids = 0;
        if (create(ranks, &group, &ep) != MUSTER_OK)
            return fail("creating");
        printf("life %d: process %d\n", life, (int)getpid());
        int status = run_batches(group, ep, batches, pause_us, &voids);
        muster_ep_destroy(ep);
        muster_group_destroy(group);
        if (status)
            return status;
        printf("life %d is over: %d void\n", life, voids);
    }
    return 0;
}
