// SPDX-License-Identifier: Apache-2.0
/* The router without processes: the test plays the ranks at the other ends of the channels. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "channel.h"
#include "router.h"

enum { RANKS = 3 };

static struct router router;
static int far_end[RANKS];

static void connect_all(int requests, int limit)
{
    router_init(&router, RANKS);
    for (int i = 0; i < requests; i++)
        assert_true(router_add(&router, (const unsigned char *)"abc", 3, limit));
    for (int r = 0; r < RANKS; r++) {
        int fds[2];
        assert_int_equal(channel_pair(fds), 0);
        router_connect(&router, r, fds[0]);
        far_end[r] = fds[1];
    }
    router_assign(&router);
}

static void disconnect_all(void)
{
    router_close(&router);
    for (int r = 0; r < RANKS; r++)
        close(far_end[r]);
}

static void say_token(int rank, int request, int position, int value)
{
    struct channel_message m = {.type = CHANNEL_TOKEN, .request = request, .position = position, .value = value};
    assert_true(channel_send(far_end[rank], &m));
}

static struct channel_message next_message(int rank)
{
    struct channel_message m;
    assert_int_equal(channel_receive(far_end[rank], &m), CHANNEL_GOT);
    return m;
}

static void requests_are_spread(void **state)
{
    (void)state;
    connect_all(6, 2);
    for (int r = 0; r < RANKS; r++) {
        struct channel_message m = next_message(r);
        assert_int_equal(m.type, CHANNEL_REQUEST);
        assert_int_equal(m.position, 3);
        assert_int_equal(m.value, 2);
        assert_memory_equal(m.text, "abc", 3);
        assert_int_equal(router.rank[r].assigned, 2);
    }
    disconnect_all();
}

static void only_the_next_position_counts(void **state)
{
    (void)state;
    connect_all(1, 3);
    say_token(0, 0, 3, 'x');
    say_token(0, 0, 3, 'y'); /* again */
    say_token(0, 0, 5, 'z'); /* 4 is missing */
    say_token(0, 7, 4, 'z'); /* no such request */
    say_token(0, 0, 4, 999); /* no byte */
    say_token(1, 0, 4, 'q'); /* not its request */
    router_read(&router, 0);
    router_read(&router, 1);
    assert_int_equal(router.accepted, 1);
    assert_int_equal(router.repeated, 1);
    assert_int_equal(router.skipped, 1);
    assert_int_equal(router.request[0].length, 4);
    assert_int_equal(router.request[0].text[3], 'x');
    assert_int_equal(router_missing(&router), 2);
    disconnect_all();
}

/* What a dead rank had still said counts; the rest goes on elsewhere, from there. */
static void a_death_loses_nothing(void **state)
{
    (void)state;
    connect_all(3, 3);
    say_token(1, 1, 3, 'x');
    say_token(1, 1, 4, 'y');
    close(far_end[1]);
    router_rank_died(&router, 1);
    assert_int_equal(router.accepted, 2);
    assert_int_equal(router.moved, 1);
    router_assign(&router);
    int heir = router.request[1].rank;
    assert_true(heir == 0 || heir == 2);
    next_message(heir); /* its own */
    struct channel_message m = next_message(heir);
    assert_int_equal(m.request, 1);
    assert_int_equal(m.text_bytes, 5);
    assert_memory_equal(m.text, "abcxy", 5);
    say_token(heir, 1, 4, 'y'); /* it may not say again what came before */
    say_token(heir, 1, 5, 'z');
    router_read(&router, heir);
    assert_int_equal(router.repeated, 1);
    assert_memory_equal(router.request[1].text, "abcxyz", 6);
    far_end[1] = dup(far_end[0]);
    disconnect_all();
}

static void everybody_dies(void **state)
{
    (void)state;
    connect_all(2, 1);
    for (int r = 0; r < RANKS; r++)
        router_rank_died(&router, r);
    router_assign(&router);
    assert_false(router_done(&router));
    assert_int_equal(router_missing(&router), 2);
    disconnect_all();
}

/* A rank that does not read must not block the router; its request is told later. */
static void a_full_channel_is_tried_again(void **state)
{
    (void)state;
    connect_all(1, 1);
    struct channel_message m = {.type = CHANNEL_FINISH};
    while (channel_send(router.rank[1].fd, &m)) {
    }
    assert_true(router_add(&router, (const unsigned char *)"d", 1, 1));
    router.request[1].rank = 1;
    router.request[1].unsent = true;
    router_assign(&router);
    assert_true(router.request[1].unsent);
    while (channel_receive(far_end[1], &m) == CHANNEL_GOT) {
    }
    router_assign(&router);
    assert_false(router.request[1].unsent);
    assert_int_equal(next_message(1).type, CHANNEL_REQUEST);
    disconnect_all();
}

static void malformed_packets_are_skipped(void **state)
{
    (void)state;
    connect_all(1, 2);
    struct channel_message m = {.type = CHANNEL_TOKEN, .position = 3, .value = 'x', .text_bytes = 4000};
    assert_true(send(far_end[0], "hello", 5, 0) == 5);
    m.magic = 1;
    assert_true(send(far_end[0], &m, 100, 0) == 100);
    m.text_bytes = 0;
    m.type = CHANNEL_TYPES;
    channel_send(far_end[0], &m);
    say_token(0, 0, 3, 'x');
    router_read(&router, 0);
    assert_int_equal(router.accepted, 1);
    disconnect_all();
}

static void what_does_not_fit_is_refused(void **state)
{
    (void)state;
    static unsigned char text[CHANNEL_MAX_TEXT];
    router_init(&router, RANKS);
    assert_false(router_add(&router, text, 0, 1));
    assert_false(router_add(&router, text, 1, 0));
    assert_false(router_add(&router, text, CHANNEL_MAX_TEXT, 1));
    assert_true(router_add(&router, text, CHANNEL_MAX_TEXT - 1, 1));
    while (router.requests < ROUTER_MAX_REQUESTS)
        assert_true(router_add(&router, text, 1, 1));
    assert_false(router_add(&router, text, 1, 1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(requests_are_spread),           cmocka_unit_test(only_the_next_position_counts),
        cmocka_unit_test(a_death_loses_nothing),         cmocka_unit_test(everybody_dies),
        cmocka_unit_test(a_full_channel_is_tried_again), cmocka_unit_test(malformed_packets_are_skipped),
        cmocka_unit_test(what_does_not_fit_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
