// SPDX-License-Identifier: Apache-2.0
/* Groups as a process has them: how many at a time, with which numbers, and what a forked child may do with its parent's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "control/store_server.h"
#include "core/clock.h"
#include "core/mask.h"
#include "lib/backend.h"
#include "lib/rounds.h"
#include "muster/muster.h"

enum { START_US = 20000000 };

/* A store in this process, with a name and with connections of its own. */
struct place {
    struct store_server *server;
    char name[64], named[80];
};

static void place_open(struct place *place, int ranks)
{
    static int number;
    struct store_server_config config = {.ranks = ranks, .lease_us = 30000000, .inject_fences = 1};
    setenv("MUSTER_LOG", "error", 0);
    snprintf(place->name, sizeof place->name, "muster-test-group-%d-%d", (int)getpid(), number++);
    snprintf(place->named, sizeof place->named, "unix:@%s", place->name);
    assert_int_equal(store_server_create(&config, &place->server), MUSTER_OK);
    assert_int_equal(store_server_listen(place->server, place->name), MUSTER_OK);
    assert_int_equal(store_server_start_thread(place->server), MUSTER_OK);
}

static void place_close(struct place *place)
{
    store_server_destroy(place->server);
}

static muster_group_config config_of(const char *store, int rank, int ranks)
{
    muster_group_config config = MUSTER_GROUP_CONFIG_INIT;
    config.rank = rank;
    config.ranks = ranks;
    config.store = store;
    config.memory_bytes = 1 << 16;
    config.start_timeout_us = START_US;
    return config;
}

static muster_group *group_of(const char *store, int rank, int ranks)
{
    muster_group_config config = config_of(store, rank, ranks);
    muster_group *group = NULL;
    muster_status status = muster_group_create(&config, &group);
    if (status != MUSTER_OK)
        print_error("muster_group_create: %s\n", muster_last_error());
    assert_int_equal(status, MUSTER_OK);
    return group;
}

static muster_group *group_alone(const char *store)
{
    return group_of(store, 0, 1);
}

/* ---- one group in a place ---- */

static void expect_taken(const char *store, int ranks)
{
    muster_group_config config = config_of(store, 0, ranks);
    muster_group *group = NULL;
    uint64_t begun_ns = clock_ns();
    assert_int_equal(muster_group_create(&config, &group), MUSTER_ERR_ORDER);
    assert_null(group);
    assert_true(clock_ns() - begun_ns < UINT64_C(1000) * START_US / 2);
    assert_non_null(strstr(muster_last_error(), store));
    assert_non_null(strstr(muster_last_error(), "destroy"));
}

/* Rank 1, a thread of this process: it stays while rank 0 comes and goes. */
struct companion {
    const char *store;
    pthread_t thread;
    muster_group *group;
};

static void *companion_main(void *argument)
{
    struct companion *c = argument;
    c->group = group_of(c->store, 1, 2);
    return NULL;
}

static void have_one_at_a_time(const struct place *place, const char *store)
{
    struct companion companion = {.store = place->named};
    assert_int_equal(pthread_create(&companion.thread, NULL, companion_main, &companion), 0);
    for (int i = 0; i < 2; i++) {
        muster_group *group = group_of(store, 0, 2);
        expect_taken(store, 2);
        expect_taken(store, 2);
        assert_int_equal(muster_group_wait_ready(group, START_US), MUSTER_OK);
        muster_group_destroy(group);
    }
    pthread_join(companion.thread, NULL);
    muster_group_destroy(companion.group);
}

static void a_named_store_has_one_group_of_a_process(void **state)
{
    (void)state;
    struct place place;
    place_open(&place, 2);
    have_one_at_a_time(&place, place.named);
    place_close(&place);
}

static void an_inherited_store_has_one_group_of_a_process(void **state)
{
    (void)state;
    struct place place;
    char store[32];
    place_open(&place, 2);
    int fd = store_server_connect(place.server);
    snprintf(store, sizeof store, "fd:%d", fd);
    have_one_at_a_time(&place, store);
    close(fd);
    place_close(&place);
}

static void a_second_number_of_a_connection_is_no_second_store(void **state)
{
    (void)state;
    struct place place;
    char store[32], again[32];
    place_open(&place, 1);
    int fd = store_server_connect(place.server), copy = dup(fd);
    snprintf(store, sizeof store, "fd:%d", fd);
    snprintf(again, sizeof again, "fd:%d", copy);
    muster_group *group = group_alone(store);
    expect_taken(again, 1);
    muster_group_destroy(group);
    close(copy);
    close(fd);
    place_close(&place);
}

static void other_stores_have_groups_of_their_own(void **state)
{
    (void)state;
    struct place first, second;
    place_open(&first, 1);
    place_open(&second, 1);
    muster_group *one = group_alone(first.named), *other = group_alone(second.named);
    muster_group_destroy(one);
    muster_group_destroy(other);
    place_close(&second);
    place_close(&first);
}

/* A creation that failed holds nothing. */
static void a_place_is_free_after_an_error(void **state)
{
    (void)state;
    struct place place;
    place_open(&place, 2);
    muster_group_config config = config_of(place.named, 0, 2);
    muster_group *group = NULL;
    config.start_timeout_us = 50000; /* nobody else comes */
    for (int i = 0; i < 2; i++)
        assert_int_equal(muster_group_create(&config, &group), MUSTER_ERR_TIMEOUT);
    place_close(&place);
}

/* ---- a forked child ---- */

enum { FORKS = 100, CHILD_SECONDS = 20 };

static const struct exchange_case forked_case = {
    .name = "forked", .hidden = 16, .max_tokens = 4, .slots = 2, .topk = 2, .masked = 1};

struct busy {
    muster_group *group;
    atomic_bool ended;
};

/* The agent and this thread have the group's lock most of the time. */
static void *keep_busy(void *argument)
{
    struct busy *busy = argument;
    for (int i = 0; !atomic_load(&busy->ended); i++) {
        muster_view view;
        muster_group_view(busy->group, &view);
        if (i % 64 == 0)
            muster_group_abort(busy->group);
    }
    return NULL;
}

/* Every call that takes the group or the exchange. 0: all say that they are the parent's; otherwise which does not. */
static int call_all(struct cluster_rank *self, muster_ep *ep, struct party *p)
{
    muster_group *g = self->group;
    muster_view view;
    muster_verdict verdict;
    muster_tensor tensor;
    muster_ep *other;
    muster_ep_config config = case_config(&forked_case);
    int no_stream = 0;
    const muster_status said[] = {
        muster_group_wait_ready(g, 0),
        muster_group_wait_ready(g, 1000),
        muster_group_view(g, &view),
        muster_group_ready(g, 1),
        muster_group_abort(g),
        muster_group_leave(g),
        muster_step_begin(g, NULL),
        muster_step_end(g, NULL),
        muster_step_verdict(g, &verdict),
        muster_ep_create(g, &config, &other),
        muster_ep_set_mask(ep, mask_first(1), NULL),
        muster_ep_dispatch(ep, &p->dispatch, NULL),
        muster_ep_dispatch(ep, &p->dispatch, &no_stream),
        muster_ep_dispatch_send(ep, &p->dispatch, NULL),
        muster_ep_dispatch_receive(ep, &p->dispatch, NULL),
        muster_ep_combine(ep, &p->combine, NULL),
        muster_ep_combine(ep, NULL, NULL),
        muster_ep_combine_send(ep, &p->combine, NULL),
        muster_ep_combine_receive(ep, &p->combine, NULL),
        muster_ep_received(ep, &tensor),
        muster_ep_results(ep, &tensor),
    };
    for (int i = 0; i < (int)(sizeof(said) / sizeof(said[0])); i++)
        if (said[i] != MUSTER_ERR_FORKED)
            return i + 1;
    return muster_group_rank(g) == self->rank ? 0 : 100;
}

static void fork_once(struct cluster_rank *self, muster_ep *ep, struct party *p)
{
    int status = 0;
    pid_t child = fork();
    if (child == 0) {
        alarm(CHILD_SECONDS); /* ends a child that hangs */
        int wrong = call_all(self, ep, p);
        muster_ep_destroy(ep);
        muster_group_destroy(self->group);
        _exit(wrong);
    }
    expect(child > 0 && waitpid(child, &status, 0) == child, "no child");
    expect(!WIFSIGNALED(status), "a child was ended by signal %d: it hangs", WTERMSIG(status));
    expect(WEXITSTATUS(status) == 0, "call %d in a child does not say that the group is its parent's",
           WEXITSTATUS(status));
}

static void fork_often(struct cluster_rank *self)
{
    const struct world *world = self->context;
    muster_ep *ep = rounds_create(self, &forked_case);
    struct party *p = party_open(world, self->rank);
    struct busy busy = {.group = self->group};
    pthread_t thread;
    expect_status(muster_step_begin(self->group, NULL), MUSTER_OK, "step_begin");
    expect_status(party_dispatch(p, ep), MUSTER_OK,
                  "dispatch"); /* half an exchange is outstanding when the child destroys it */
    expect(pthread_create(&thread, NULL, keep_busy, &busy) == 0, "no thread");
    for (int i = 0; i < FORKS; i++)
        fork_once(self, ep, p);
    atomic_store(&busy.ended, true);
    pthread_join(thread, NULL);
    party_close(p);
    muster_ep_destroy(ep);
    expect_status(muster_step_end(self->group, NULL), MUSTER_OK, "step_end of the parent");
    muster_verdict verdict = cluster_verdict(self);
    expect(verdict.status != MUSTER_OK, "the step that was aborted is good");
}

static void a_forked_child_keeps_off_and_never_waits(void **state)
{
    (void)state;
    struct cluster_options options = {.ranks = 1,
                                      .memory_bytes = rounds_memory_bytes(&forked_case, 1, 1),
                                      .limit_s = 200};
    struct world *world = world_make(&forked_case, 1, mask_first(1), 5);
    assert_true(cluster_run(&options, fork_often, world));
    world_free(world);
}

/* A child is another process: that the place is taken is for the store to say, which waits whether it becomes free. */
static void a_forked_child_holds_no_place(void **state)
{
    (void)state;
    struct place place;
    place_open(&place, 1);
    muster_group *group = group_alone(place.named);
    int status = 0;
    pid_t child = fork();
    if (child == 0) {
        muster_group_config config = config_of(place.named, 0, 1);
        muster_group *own;
        config.start_timeout_us = 50000;
        alarm(CHILD_SECONDS);
        _exit(muster_group_create(&config, &own) != MUSTER_ERR_TIMEOUT);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    muster_group_destroy(group);
    place_close(&place);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_named_store_has_one_group_of_a_process),
        cmocka_unit_test(an_inherited_store_has_one_group_of_a_process),
        cmocka_unit_test(a_second_number_of_a_connection_is_no_second_store),
        cmocka_unit_test(other_stores_have_groups_of_their_own),
        cmocka_unit_test(a_place_is_free_after_an_error),
        cmocka_unit_test(a_forked_child_keeps_off_and_never_waits),
        cmocka_unit_test(a_forked_child_holds_no_place),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
