// SPDX-License-Identifier: Apache-2.0
/* Groups as a process has them: how many at a time, with which numbers, and what a forked child may do with its parent's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "control/store_server.h"
#include "core/clock.h"
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_named_store_has_one_group_of_a_process),
        cmocka_unit_test(an_inherited_store_has_one_group_of_a_process),
        cmocka_unit_test(a_second_number_of_a_connection_is_no_second_store),
        cmocka_unit_test(other_stores_have_groups_of_their_own),
        cmocka_unit_test(a_place_is_free_after_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
