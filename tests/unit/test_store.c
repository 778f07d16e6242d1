// SPDX-License-Identifier: Apache-2.0
/* The embedded store: server and clients over real sockets, in one process and with children that real signals kill. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "control/store_keys.h"
#include "control/store_server.h"
#include "control/store_socket.h"
#include "control/wire.h"
#include "core/clock.h"
#include "core/mask.h"
#include "lib/pace.h"

#define PATIENCE_US (PACE_PATIENCE_MS * UINT64_C(1000))
#define WAIT_NS (PACE_PATIENCE_MS * UINT64_C(1000000)) /* far above what anything here takes */

enum { LEASE_US = PACE_PATIENCE_MS * 1000, LONG_LEASE_US = 1000000000, RANKS = 4 };

/* ---- helpers ---- */

struct client {
    int fd;
    struct store *store;
};

/* What the store told its host last about rank 1. */
static char last_event[64];

static void note_event(void *context, int32_t rank, uint32_t incarnation, const char *what)
{
    (void)context;
    (void)incarnation;
    if (rank == 1)
        snprintf(last_event, sizeof last_event, "%s", what);
}

static struct store_server *server_new(int32_t ranks, int inject_fences, uint64_t lease_us)
{
    struct store_server *server = NULL;
    struct store_server_config config = {.ranks = ranks,
                                         .lease_us = lease_us,
                                         .inject_fences = inject_fences,
                                         .on_event = note_event};
    assert_int_equal(store_server_create(&config, &server), MUSTER_OK);
    return server;
}

/* A server on its own thread, for ranks that share this process. */
static struct store_server *server_running(void)
{
    struct store_server *server = server_new(RANKS, 1, LEASE_US);
    assert_int_equal(store_server_start_thread(server), MUSTER_OK);
    return server;
}

static struct client client_open(struct store_server *server, int32_t rank)
{
    struct client c = {.fd = store_server_connect(server)};
    assert_true(c.fd >= 0);
    char where[32];
    snprintf(where, sizeof where, "fd:%d", c.fd);
    if (store_embedded_open(where, rank, RANKS, PATIENCE_US, &c.store) != MUSTER_OK)
        fail_msg("%s", muster_last_error());
    return c;
}

static void client_close(struct client *c)
{
    c->store->ops->close(c->store);
    close(c->fd);
}

/* The next event, or STORE_NOTHING after timeout_ns. */
static void next_event(struct store *s, uint64_t timeout_ns, struct store_event *event)
{
    uint64_t deadline_ns = clock_ns() + timeout_ns;
    for (;;) {
        s->ops->poll(s, clock_ns(), event);
        if (event->type != STORE_NOTHING || clock_ns() >= deadline_ns)
            return;
        struct pollfd readable = {.fd = s->ops->fd(s), .events = POLLIN};
        poll(&readable, 1, 1);
    }
}

/* Skips changes until the reply. */
static struct store_event await_reply(struct store *s, uint64_t id)
{
    struct store_event event;
    do {
        next_event(s, WAIT_NS, &event);
        assert_true(event.type == STORE_CHANGE || event.type == STORE_REPLY);
    } while (event.type != STORE_REPLY);
    assert_int_equal(event.id, id);
    return event;
}

static struct store_event await_change(struct store *s, const char *key)
{
    struct store_event event;
    do {
        next_event(s, WAIT_NS, &event);
        if (event.type != STORE_CHANGE && event.type != STORE_REPLY)
            fail_msg("no change of %s came (event %d)", key, event.type);
    } while (event.type != STORE_CHANGE || strcmp(event.key, key) != 0);
    return event;
}

static void await_lost(struct store *s)
{
    struct store_event event;
    do {
        next_event(s, WAIT_NS, &event);
        assert_true(event.type != STORE_NOTHING);
    } while (event.type != STORE_LOST);
    next_event(s, 0, &event);
    assert_int_equal(event.type, STORE_NOTHING); /* nothing comes after it */
}

static struct store_event put(struct client *c, const char *key, const char *value)
{
    return await_reply(c->store, c->store->ops->put(c->store, key, value, strlen(value)));
}

static struct store_event get(struct client *c, const char *key)
{
    return await_reply(c->store, c->store->ops->get(c->store, key));
}

static size_t make_view(unsigned char out[STORE_MAX_VALUE], uint32_t epoch, int32_t proposer)
{
    struct view view = {.epoch = epoch, .phase = VIEW_PREPARE, .proposer = proposer, .mask = mask_first(RANKS)};
    for (int r = 0; r < RANKS; r++)
        view.incarnation[r] = 1;
    return wire_put_view(&view, RANKS, out);
}

static struct store_event swap_view(struct client *c, uint64_t revision, uint32_t epoch)
{
    unsigned char value[STORE_MAX_VALUE];
    size_t bytes = make_view(value, epoch, c->store->welcome.rank);
    return await_reply(c->store, c->store->ops->swap(c->store, "view", revision, value, bytes));
}

/* ---- keys ---- */

static void test_key_names(void **state)
{
    (void)state;
    static const char *const good[] = {"view", "member/0", "member/127", "config/ep0/5", "presence/9", "fenced/10"};
    static const char *const bad[] = {
        "",          "View",      "view/",      "member",       "member/",           "member/128",
        "member/01", "member/-1", "member/+1",  "member/1 ",    "member/1/2",        "config/3",
        "config//3", "config/a/", "config/a/b", "config/a/2/3", "member/9999999999", "presence/",
        "fenced/x",  "other/1"};
    struct store_key_name name;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        assert_true(store_key_parse(good[i], strlen(good[i]), 128, &name));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (store_key_parse(bad[i], strlen(bad[i]), 128, &name))
            fail_msg("\"%s\" passed for a key", bad[i]);
    assert_false(store_key_parse("member/4", 8, 4, &name));
    assert_false(store_key_parse("view\0", 5, 4, &name));
    assert_true(store_key_parse("config/ep0/3", 12, 4, &name));
    assert_int_equal(name.kind, KEY_CONFIG);
    assert_int_equal(name.rank, 3);
}

static void test_put_and_get(void **state)
{
    (void)state;
    struct store_server *server = server_running();
    struct client c = client_open(server, 1);
    struct store_event written = put(&c, "config/group/1", "ranks=4\n");
    assert_int_equal(written.status, MUSTER_OK);
    struct store_event read = get(&c, "config/group/1");
    assert_int_equal(read.status, MUSTER_OK);
    assert_int_equal(read.revision, written.revision);
    assert_string_equal(read.key, "config/group/1");
    assert_int_equal(read.value_bytes, 8);
    assert_memory_equal(read.value, "ranks=4\n", 8);
    struct store_event absent = get(&c, "config/group/2");
    assert_int_equal(absent.status, MUSTER_OK);
    assert_true(absent.gone);
    assert_int_equal(absent.revision, 0);
    assert_int_equal(get(&c, "nonsense").status, MUSTER_ERR_ARGUMENT);
    client_close(&c);
    store_server_destroy(server);
}

static void test_largest_value(void **state)
{
    (void)state;
    static unsigned char value[STORE_MAX_VALUE + 1];
    memset(value, 7, sizeof value);
    struct store_server *server = server_running();
    struct client c = client_open(server, 1);
    const struct store_ops *ops = c.store->ops;
    assert_int_equal(await_reply(c.store, ops->put(c.store, "config/a/1", value, STORE_MAX_VALUE)).status, MUSTER_OK);
    struct store_event read = get(&c, "config/a/1");
    assert_int_equal(read.value_bytes, STORE_MAX_VALUE);
    assert_memory_equal(read.value, value, STORE_MAX_VALUE);
    assert_int_equal(await_reply(c.store, ops->put(c.store, "config/a/1", value, STORE_MAX_VALUE + 1)).status,
                     MUSTER_ERR_ARGUMENT);
    client_close(&c);
    store_server_destroy(server);
}

static void test_swap(void **state)
{
    (void)state;
    struct store_server *server = server_running();
    struct client a = client_open(server, 0), b = client_open(server, 1);
    struct store_event first = swap_view(&a, 0, 1);
    assert_int_equal(first.status, MUSTER_OK);
    struct store_event lost = swap_view(&b, 0, 2);
    assert_int_equal(lost.status, MUSTER_ERR_AGAIN);
    assert_int_equal(lost.revision, first.revision);
    struct view view;
    assert_int_equal(wire_get_view(lost.value, lost.value_bytes, RANKS, &view), 0);
    assert_int_equal(view.epoch, 1);
    assert_int_equal(view.proposer, 0);
    struct store_event second = swap_view(&b, first.revision, 2);
    assert_int_equal(second.status, MUSTER_OK);
    assert_true(second.revision > first.revision);
    assert_int_equal(swap_view(&a, first.revision, 3).status, MUSTER_ERR_AGAIN);
    client_close(&a);
    client_close(&b);
    store_server_destroy(server);
}

/* Of many swaps with one expected revision exactly one wins. */
static void test_swap_has_one_winner(void **state)
{
    (void)state;
    struct store_server *server = server_running();
    struct client c[RANKS];
    for (int r = 0; r < RANKS; r++)
        c[r] = client_open(server, r);
    uint64_t revision = 0;
    for (uint32_t epoch = 1; epoch <= 50; epoch++) {
        uint64_t id[RANKS], won_at = 0;
        int won = 0;
        unsigned char value[STORE_MAX_VALUE];
        for (int r = 0; r < RANKS; r++)
            id[r] = c[r].store->ops->swap(c[r].store, "view", revision, value, make_view(value, epoch, r));
        for (int r = 0; r < RANKS; r++) {
            struct store_event reply = await_reply(c[r].store, id[r]);
            won += reply.status == MUSTER_OK;
            won_at = reply.revision;
        }
        assert_int_equal(won, 1);
        assert_true(won_at > revision);
        revision = won_at;
    }
    for (int r = 0; r < RANKS; r++)
        client_close(&c[r]);
    store_server_destroy(server);
}

static void assert_refused(struct client *c, uint64_t id)
{
    assert_int_equal(await_reply(c->store, id).status, MUSTER_ERR_ARGUMENT);
}

static void test_refused_writes(void **state)
{
    (void)state;
    struct store_server *server = server_running();
    struct client c = client_open(server, 1);
    const struct store_ops *ops = c.store->ops;
    unsigned char value[STORE_MAX_VALUE];
    struct record record = {.incarnation = 1, .state = RECORD_JOINING};
    size_t bytes = wire_put_record(&record, value);
    assert_int_equal(await_reply(c.store, ops->put(c.store, "member/1", value, bytes)).status, MUSTER_OK);
    assert_refused(&c, ops->put(c.store, "member/2", value, bytes));
    assert_refused(&c, ops->put(c.store, "config/group/0", "x", 1));
    assert_refused(&c, ops->put(c.store, "presence/1", "x", 1));
    assert_refused(&c, ops->put(c.store, "fenced/0", "x", 1));
    assert_refused(&c, ops->swap(c.store, "fenced/0", 0, "x", 1));
    assert_refused(&c, ops->put(c.store, "member/1", "garbage", 7));
    record.incarnation = 2;
    assert_refused(&c, ops->put(c.store, "member/1", value, wire_put_record(&record, value)));
    bytes = make_view(value, 5, 1);
    assert_refused(&c, ops->put(c.store, "view", value, bytes));
    assert_refused(&c, ops->swap(c.store, "view", 0, "garbage", 7));
    struct store_event first = await_reply(c.store, ops->swap(c.store, "view", 0, value, bytes));
    assert_int_equal(first.status, MUSTER_OK);
    bytes = make_view(value, 4, 1); /* epochs only grow */
    assert_refused(&c, ops->swap(c.store, "view", first.revision, value, bytes));
    client_close(&c);
    store_server_destroy(server);
}

static void test_configs_are_bounded(void **state)
{
    (void)state;
    struct store_server *server = server_running();
    struct client c = client_open(server, 2);
    char key[STORE_MAX_KEY];
    for (int i = 0; i < STORE_MAX_CONFIGS; i++) {
        snprintf(key, sizeof key, "config/ep%d/2", i);
        assert_int_equal(put(&c, key, "x").status, MUSTER_OK);
    }
    assert_int_equal(put(&c, "config/one-more/2", "x").status, MUSTER_ERR_MEMORY);
    assert_int_equal(put(&c, "config/ep3/2", "y").status, MUSTER_OK);
    client_close(&c);
    store_server_destroy(server);
}

/* ---- watches ---- */

static void test_changes_come_in_order(void **state)
{
    (void)state;
    struct store_server *server = server_running();
    struct client writer = client_open(server, 0), watcher = client_open(server, 1);
    char value[16];
    for (int i = 0; i < 200; i++) {
        snprintf(value, sizeof value, "%d", i);
        put(&writer, i % 2 ? "config/a/0" : "config/b/0", value);
    }
    uint64_t last = 0;
    int a = -1, b = -1;
    while (a != 199 || b != 198) {
        struct store_event event;
        next_event(watcher.store, WAIT_NS, &event);
        assert_int_equal(event.type, STORE_CHANGE);
        assert_true(event.revision > last);
        last = event.revision;
        int *newest = !strcmp(event.key, "config/a/0") ? &a : !strcmp(event.key, "config/b/0") ? &b : NULL;
        if (!newest)
            continue;
        event.value[event.value_bytes] = 0;
        int now = atoi((const char *)event.value);
        assert_true(now > *newest);
        *newest = now;
    }
    client_close(&writer);
    client_close(&watcher);
    store_server_destroy(server);
}

/* A newcomer hears the state that it finds, and again when it asks. */
static void test_state_is_sent(void **state)
{
    (void)state;
    struct store_server *server = server_running();
    struct client writer = client_open(server, 0);
    put(&writer, "config/a/0", "1");
    put(&writer, "config/a/0", "2");
    struct client late = client_open(server, 1);
    assert_int_equal(await_change(late.store, "config/a/0").value[0], '2');
    await_change(late.store, "presence/1");
    uint64_t id = late.store->ops->watch_again(late.store);
    bool seen_presence = false, seen_config = false;
    struct store_event event;
    do {
        next_event(late.store, WAIT_NS, &event);
        seen_presence |= event.type == STORE_CHANGE && !strcmp(event.key, "presence/0");
        seen_config |= event.type == STORE_CHANGE && !strcmp(event.key, "config/a/0");
        assert_true(event.type == STORE_CHANGE || event.type == STORE_REPLY);
    } while (event.type != STORE_REPLY);
    assert_int_equal(event.id, id);
    assert_true(seen_presence && seen_config);
    client_close(&writer);
    client_close(&late);
    store_server_destroy(server);
}

/* When a reply has come, every change up to its revision has come before it. */
static void test_reply_comes_after_its_changes(void **state)
{
    (void)state;
    struct store_server *server = server_running();
    struct client c = client_open(server, 0), other = client_open(server, 1);
    for (int i = 0; i < 100; i++) {
        put(&other, "config/x/1", "noise");
        uint64_t id = c.store->ops->put(c.store, "config/x/0", "mine", 4), seen = 0;
        struct store_event event;
        do {
            next_event(c.store, WAIT_NS, &event);
            if (event.type == STORE_CHANGE)
                seen = event.revision;
        } while (event.type == STORE_CHANGE);
        assert_int_equal(event.type, STORE_REPLY);
        assert_int_equal(event.id, id);
        assert_true(seen >= event.revision);
    }
    client_close(&c);
    client_close(&other);
    store_server_destroy(server);
}

/* ---- presence ---- */

static uint32_t presence_of(const struct store_event *event)
{
    struct presence presence;
    if (event->gone)
        return 0;
    assert_int_equal(wire_get_presence(event->value, event->value_bytes, &presence), 0);
    return presence.incarnation;
}

static uint32_t fenced_of(const struct store_event *event)
{
    uint32_t incarnation = UINT32_MAX;
    assert_int_equal(wire_get_fenced(event->value, event->value_bytes, &incarnation), 0);
    return incarnation;
}

static void test_presence_and_leave(void **state)
{
    (void)state;
    struct store_server *server = server_running();
    struct client watcher = client_open(server, 0), c = client_open(server, 3);
    assert_int_equal(c.store->welcome.incarnation, 1);
    struct store_event event = await_change(watcher.store, "presence/3");
    assert_int_equal(presence_of(&event), 1);
    assert_true(store_server_present(server, 3));
    c.store->ops->leave(c.store);
    event = await_change(watcher.store, "fenced/3");
    assert_int_equal(fenced_of(&event), 1);
    event = await_change(watcher.store, "presence/3");
    assert_true(event.gone);
    assert_false(store_server_present(server, 3));
    client_close(&c);
    client_close(&watcher);
    store_server_destroy(server);
}

/* After a leave the same inherited descriptor serves the next group of the process, as a new incarnation. */
static void test_rejoin_over_the_same_descriptor(void **state)
{
    (void)state;
    struct store_server *server = server_running();
    struct client c = client_open(server, 2);
    char where[32];
    snprintf(where, sizeof where, "fd:%d", c.fd);
    for (uint32_t incarnation = 1; incarnation <= 5; incarnation++) {
        assert_int_equal(c.store->welcome.incarnation, incarnation);
        assert_int_equal(put(&c, "config/g/2", "x").status, MUSTER_OK);
        c.store->ops->put(c.store, "config/g/2", "unread", 6);
        c.store->ops->leave(c.store);
        c.store->ops->close(c.store);
        assert_int_equal(store_embedded_open(where, 2, RANKS, PATIENCE_US, &c.store), MUSTER_OK);
    }
    client_close(&c);
    store_server_destroy(server);
}

static void test_broken_connection_ends_presence(void **state)
{
    (void)state;
    struct store_server *server = server_running();
    struct client watcher = client_open(server, 0), c = client_open(server, 3);
    await_change(watcher.store, "presence/3");
    client_close(&c);
    struct store_event event = await_change(watcher.store, "presence/3");
    assert_true(event.gone);
    event = get(&watcher, "fenced/3");
    assert_int_equal(fenced_of(&event), 0); /* suspect, not fenced: nobody has injected the fence */
    store_server_fence(server, 3, 1);
    event = await_change(watcher.store, "fenced/3");
    assert_int_equal(fenced_of(&event), 1);
    struct client again = client_open(server, 3);
    assert_int_equal(again.store->welcome.incarnation, 2);
    client_close(&again);
    client_close(&watcher);
    store_server_destroy(server);
}

/* What a fenced incarnation still asks for is refused. */
static void test_fenced_writes_are_refused(void **state)
{
    (void)state;
    struct store_server *server = server_running();
    struct client watcher = client_open(server, 0), c = client_open(server, 1);
    store_server_fence(server, 1, 1);
    struct store_event event;
    do
        event = await_change(watcher.store, "fenced/1");
    while (fenced_of(&event) != 1);
    assert_int_equal(put(&c, "config/g/1", "x").status, MUSTER_ERR_EVICTED);
    assert_int_equal(swap_view(&c, 0, 1).status, MUSTER_ERR_EVICTED);
    struct client next = client_open(server, 1);
    assert_int_equal(next.store->welcome.incarnation, 2);
    c.store->ops->leave(c.store);
    client_close(&c); /* the old one's leave is not the new presence's end */
    assert_int_equal(put(&next, "config/g/1", "x").status, MUSTER_OK);
    assert_true(store_server_present(server, 1));
    store_server_fence(server, 1, 2);
    struct client third = client_open(server, 1);
    assert_int_equal(third.store->welcome.incarnation, 3);
    client_close(&next); /* nor is the end of its connection */
    assert_int_equal(put(&third, "config/g/1", "x").status, MUSTER_OK);
    assert_true(store_server_present(server, 1));
    client_close(&third);
    client_close(&watcher);
    store_server_destroy(server);
}

static muster_status try_open(struct store_server *server, int32_t rank, int32_t ranks, uint64_t timeout_us)
{
    char where[32];
    int fd = store_server_connect(server);
    snprintf(where, sizeof where, "fd:%d", fd);
    struct store *store = NULL;
    muster_status status = store_embedded_open(where, rank, ranks, timeout_us, &store);
    assert_true((status == MUSTER_OK) == (store != NULL));
    if (store)
        store->ops->close(store);
    close(fd);
    return status;
}

/* The deadline passes with the rank still held; on a machine that keeps up, the store has said so by then. */
static void open_while_held(struct store_server *server)
{
    int stretch = 1;
    for (;;) {
        struct pace pace = pace_begin();
        assert_int_equal(try_open(server, 1, RANKS, UINT64_C(100000) * (uint64_t)stretch), MUSTER_ERR_TIMEOUT);
        if (strstr(muster_last_error(), "holds the rank"))
            return;
        if (!pace_again(pace_kept_ms(&pace), 100 * stretch, &stretch))
            fail_msg("%s", muster_last_error());
    }
}

static void test_refused_hellos(void **state)
{
    (void)state;
    struct store_server *server = server_running();
    struct client c = client_open(server, 1);
    open_while_held(server);
    assert_int_equal(try_open(server, 2, RANKS + 1, PATIENCE_US), MUSTER_ERR_STORE);
    assert_non_null(strstr(muster_last_error(), "group of 5 ranks"));
    assert_int_equal(try_open(server, RANKS, RANKS, PATIENCE_US), MUSTER_ERR_STORE);
    assert_int_equal(put(&c, "config/g/1", "still here").status, MUSTER_OK);
    client_close(&c);
    store_server_destroy(server);
}

static void test_malformed_places(void **state)
{
    (void)state;
    static const char *const bad[] = {"", "fd:", "fd:x", "fd:-1", "fd:999999", "fd:1x", "unix:", "unix:@", "tcp:1"};
    struct store *store = NULL;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(store_embedded_open(bad[i], 0, 1, PATIENCE_US, &store), MUSTER_ERR_ARGUMENT);
    int other[2];
    assert_int_equal(pipe(other), 0);
    char where[32];
    snprintf(where, sizeof where, "fd:%d", other[1]); /* a descriptor, but of something else */
    assert_int_equal(store_embedded_open(where, 0, 1, PATIENCE_US, &store), MUSTER_ERR_ARGUMENT);
    assert_null(store);
    close(other[0]);
    close(other[1]);
}

static void test_listener(void **state)
{
    (void)state;
    char name[64], where[80];
    snprintf(name, sizeof name, "muster-test-%d", (int)getpid());
    snprintf(where, sizeof where, "unix:@%s", name);
    struct store *store = NULL;
    assert_int_equal(store_embedded_open(where, 0, RANKS, 50000, &store), MUSTER_ERR_TIMEOUT);
    struct store_server *server = server_new(RANKS, 1, LEASE_US), *second = server_new(RANKS, 1, LEASE_US);
    assert_int_equal(store_server_listen(second, name), MUSTER_OK);
    assert_int_equal(store_server_listen(server, name), MUSTER_ERR_SYSTEM);
    store_server_destroy(second); /* the name is free again with its owner's end */
    assert_int_equal(store_server_listen(server, name), MUSTER_OK);
    assert_int_equal(store_server_listen(server, name), MUSTER_ERR_ORDER);
    assert_int_equal(store_server_start_thread(server), MUSTER_OK);
    assert_int_equal(store_embedded_open(where, 0, RANKS, PATIENCE_US, &store), MUSTER_OK);
    await_change(store, "presence/0");
    store->ops->close(store);
    store_server_destroy(server);
}

/* The first place that leads to a store is taken; a store that has answered is the right one, whatever it says. */
static void test_alternatives(void **state)
{
    (void)state;
    char name[64], where[160];
    struct store *store = NULL;
    struct store_server *server = server_new(RANKS, 1, LEASE_US);
    snprintf(name, sizeof name, "muster-test-alternatives-%d", (int)getpid());
    assert_int_equal(store_server_listen(server, name), MUSTER_OK);
    assert_int_equal(store_server_start_thread(server), MUSTER_OK);
    snprintf(where, sizeof where, "fd:9999,unix:@%s-none,unix:@%s", name, name);
    assert_int_equal(store_embedded_open(where, 0, RANKS, PATIENCE_US, &store), MUSTER_OK);
    store->ops->leave(store);
    store->ops->close(store);

    int fd = store_server_connect(server); /* broken off by the one who had it before */
    shutdown(fd, SHUT_RDWR);
    snprintf(where, sizeof where, "fd:%d,unix:@%s", fd, name);
    assert_int_equal(store_embedded_open(where, 1, RANKS, PATIENCE_US, &store), MUSTER_OK);
    store->ops->leave(store);
    store->ops->close(store);
    close(fd);

    struct client c = client_open(server, 2);
    snprintf(where, sizeof where, "unix:@%s,fd:9999", name);
    assert_int_equal(store_embedded_open(where, 0, RANKS + 1, PATIENCE_US, &store), MUSTER_ERR_STORE);
    assert_non_null(strstr(muster_last_error(), "group of 5 ranks"));
    assert_null(strstr(muster_last_error(), "9999"));
    snprintf(where, sizeof where, "fd:9999,unix:@%s-none", name);
    assert_int_equal(store_embedded_open(where, 0, RANKS, PATIENCE_US, &store), MUSTER_ERR_STORE);
    assert_non_null(strstr(muster_last_error(), "store \"fd:9999\" is not an open connection"));
    assert_non_null(strstr(muster_last_error(), "-none\" cannot be reached: Connection refused"));
    client_close(&c);
    store_server_destroy(server);
}

/* ---- memory ---- */

static int make_memory(const char *text)
{
    int fd = memfd_create("test", MFD_CLOEXEC);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    return fd;
}

static struct store_event ask_memory(struct client *c, int32_t rank, uint32_t incarnation)
{
    struct store_event event;
    c->store->ops->ask_memory(c->store, rank, incarnation);
    do
        next_event(c->store, WAIT_NS, &event);
    while (event.type == STORE_CHANGE);
    assert_int_equal(event.type, STORE_MEMORY);
    assert_int_equal(event.rank, rank);
    assert_int_equal(event.incarnation, incarnation);
    return event;
}

static void assert_memory_is(int fd, const char *text)
{
    char read_back[32] = "";
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, read_back, sizeof read_back - 1, 0), (ssize_t)strlen(text));
    assert_string_equal(read_back, text);
    close(fd);
}

/* From now on no descriptor can be opened in this process; the limit that there was. */
static struct rlimit use_up_descriptors(void)
{
    struct rlimit before, none;
    int next = dup(0);
    assert_true(next > 0);
    close(next);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    none = (struct rlimit){.rlim_cur = (rlim_t)next, .rlim_max = before.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    assert_int_equal(dup(0), -1);
    return before;
}

static void share(struct client *c, const char *text)
{
    int fd = make_memory(text);
    c->store->ops->share_memory(c->store, fd);
    close(fd);
    get(c, "view"); /* requests are served in order: its reply says that the memory has arrived */
}

/* A memory that came, and could not be taken for want of descriptors, is not one that the store does not have. */
static void test_memory_without_descriptors(void **state)
{
    (void)state;
    struct store_server *server = server_running();
    struct client a = client_open(server, 0), b = client_open(server, 1);
    share(&b, "one");
    struct rlimit before = use_up_descriptors();
    struct store_event lost = ask_memory(&a, 1, 1), none = ask_memory(&a, 2, 1);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    assert_int_equal(lost.fd, -1);
    assert_int_equal(lost.status, MUSTER_ERR_SYSTEM);
    assert_int_equal(none.fd, -1);
    assert_int_equal(none.status, MUSTER_OK);
    struct store_event again = ask_memory(&a, 1, 1);
    assert_int_equal(again.status, MUSTER_OK);
    assert_memory_is(again.fd, "one");
    client_close(&a);
    client_close(&b);
    store_server_destroy(server);
}

static void assert_logged(int log, const char *text)
{
    static char all[8192];
    ssize_t size = pread(log, all, sizeof all - 1, 0);
    assert_true(size >= 0);
    all[size] = 0;
    if (!strstr(all, text))
        fail_msg("\"%s\" was not logged: %s", text, all);
}

/* A store that cannot take a rank's memory says what it lacks, and not that the rank has sent nonsense. */
static void test_store_without_descriptors(void **state)
{
    (void)state;
    struct store_server *server = server_running();
    struct client c = client_open(server, 1);
    int memory = make_memory("one"), log = memfd_create("log", MFD_CLOEXEC), shown = dup(STDERR_FILENO);
    assert_true(memory >= 0 && log >= 0 && shown >= 0);
    struct rlimit before = use_up_descriptors();
    dup2(log, STDERR_FILENO);
    c.store->ops->share_memory(c.store, memory);
    await_lost(c.store);
    dup2(shown, STDERR_FILENO);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    assert_logged(log, "rank 1");
    assert_logged(log, "the store has no descriptor left for what came with it");
    close(memory);
    close(log);
    close(shown);
    client_close(&c);
    store_server_destroy(server);
}

/* On the socket: too many descriptors are one thing, no number for the only one is another. */
static void test_lost_descriptors(void **state)
{
    (void)state;
    int ends[2];
    unsigned char room[8];
    struct socket_message message;
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends), 0);
    assert_int_equal(socket_send(ends[0], (const unsigned char *)"frame", 5, 0), 0);
    struct rlimit before = use_up_descriptors();
    int received = socket_receive(ends[1], room, sizeof room, &message);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    assert_int_equal(received, 0);
    assert_true(message.descriptor_lost);
    assert_false(message.cut);
    assert_int_equal(message.bytes, 5);
    assert_int_equal(message.fd, -1);
    assert_int_equal(socket_send(ends[0], (const unsigned char *)"frame is longer", 15, 0), 0);
    assert_int_equal(socket_receive(ends[1], room, sizeof room, &message), 0);
    assert_true(message.cut);
    assert_false(message.descriptor_lost);
    close(message.fd);
    close(ends[0]);
    close(ends[1]);
}

static void test_memory(void **state)
{
    (void)state;
    struct store_server *server = server_running();
    struct client a = client_open(server, 0), b = client_open(server, 1);
    assert_int_equal(ask_memory(&a, 1, 1).fd, -1);
    share(&b, "one");
    assert_memory_is(ask_memory(&a, 1, 1).fd, "one");
    assert_memory_is(ask_memory(&a, 1, 1).fd, "one");
    assert_memory_is(ask_memory(&b, 1, 1).fd, "one");
    assert_int_equal(ask_memory(&a, 1, 2).fd, -1);
    assert_int_equal(ask_memory(&a, 3, 1).fd, -1);
    client_close(&b);
    store_server_fence(server, 1, 1);
    assert_memory_is(ask_memory(&a, 1, 1).fd, "one"); /* kept while there is no newer incarnation */
    b = client_open(server, 1);
    assert_int_equal(ask_memory(&a, 1, 1).fd, -1);
    share(&b, "two");
    assert_memory_is(ask_memory(&a, 1, 2).fd, "two");
    client_close(&a);
    client_close(&b);
    store_server_destroy(server);
}

/* ---- hostile clients ---- */

/* A client without manners: frames are made by hand. */
struct raw {
    int fd;
    uint64_t store_id;
    uint64_t request;
    uint64_t revision;
    int32_t rank;
    uint32_t incarnation;
};

static int raw_send(const struct raw *raw, struct wire_frame frame)
{
    unsigned char bytes[WIRE_MAX_FRAME];
    return socket_send(raw->fd, bytes, wire_put_frame(&frame, bytes), -1);
}

/* A frame that an honest client of this name would send next. */
static struct wire_frame raw_frame(struct raw *raw, enum wire_type type)
{
    return (struct wire_frame){.type = type,
                               .store_id = raw->store_id,
                               .request = ++raw->request,
                               .revision = raw->revision,
                               .rank = raw->rank,
                               .incarnation = raw->incarnation,
                               .peer = -1};
}

/* True when a frame came, false when the connection was closed. */
static bool raw_receive(const struct raw *raw, struct wire_frame *frame, unsigned char room[WIRE_MAX_FRAME])
{
    struct socket_message message;
    struct pollfd readable = {.fd = raw->fd, .events = POLLIN};
    do
        assert_int_equal(poll(&readable, 1, 10000), 1);
    while (socket_receive(raw->fd, room, WIRE_MAX_FRAME, &message) != 0);
    if (!message.bytes)
        return false;
    assert_null(wire_get_frame(room, message.bytes, frame));
    return true;
}

static struct raw raw_open(struct store_server *server, int32_t rank)
{
    struct raw raw = {.fd = store_server_connect(server), .rank = rank};
    unsigned char room[WIRE_MAX_FRAME];
    struct wire_frame hello = raw_frame(&raw, WIRE_HELLO), answer;
    hello.number = RANKS;
    assert_int_equal(raw_send(&raw, hello), 0);
    assert_true(raw_receive(&raw, &answer, room));
    assert_int_equal(answer.type, WIRE_WELCOME);
    raw.store_id = answer.store_id;
    raw.incarnation = answer.incarnation;
    return raw;
}

static void assert_closed(const struct raw *raw)
{
    struct wire_frame frame;
    unsigned char room[WIRE_MAX_FRAME];
    while (raw_receive(raw, &frame, room)) {
    }
    close(raw->fd);
}

/* Each of these ends the connection that sent it. */
static void hostile_garbage(struct raw *raw)
{
    unsigned char bytes[200];
    memset(bytes, 0xa5, sizeof bytes);
    assert_int_equal(send(raw->fd, bytes, sizeof bytes, 0), (ssize_t)sizeof bytes);
}

static void hostile_torn(struct raw *raw)
{
    unsigned char bytes[WIRE_MAX_FRAME];
    struct wire_frame frame = raw_frame(raw, WIRE_PING);
    size_t size = wire_put_frame(&frame, bytes);
    assert_int_equal(send(raw->fd, bytes, size - 1, 0), (ssize_t)size - 1);
}

static void hostile_oversized(struct raw *raw)
{
    static unsigned char bytes[WIRE_MAX_FRAME + 1000];
    assert_int_equal(send(raw->fd, bytes, sizeof bytes, 0), (ssize_t)sizeof bytes);
}

static void hostile_empty(struct raw *raw)
{
    assert_int_equal(send(raw->fd, "", 0, 0), 0);
}

static void hostile_checksum(struct raw *raw)
{
    unsigned char bytes[WIRE_MAX_FRAME];
    struct wire_frame frame = raw_frame(raw, WIRE_PING);
    size_t size = wire_put_frame(&frame, bytes);
    bytes[40] ^= 1;
    assert_int_equal(send(raw->fd, bytes, size, 0), (ssize_t)size);
}

static void hostile_server_frame(struct raw *raw)
{
    assert_int_equal(raw_send(raw, raw_frame(raw, WIRE_CHANGE)), 0);
}

static void hostile_second_hello(struct raw *raw)
{
    assert_int_equal(raw_send(raw, raw_frame(raw, WIRE_HELLO)), 0);
}

static void hostile_other_store(struct raw *raw)
{
    struct wire_frame frame = raw_frame(raw, WIRE_PING);
    frame.store_id ^= 1;
    assert_int_equal(raw_send(raw, frame), 0);
}

static void hostile_other_rank(struct raw *raw)
{
    struct wire_frame frame = raw_frame(raw, WIRE_PING);
    frame.rank = 0;
    assert_int_equal(raw_send(raw, frame), 0);
}

static void hostile_other_incarnation(struct raw *raw)
{
    struct wire_frame frame = raw_frame(raw, WIRE_PING);
    frame.incarnation++;
    assert_int_equal(raw_send(raw, frame), 0);
}

static void hostile_replay(struct raw *raw)
{
    struct wire_frame frame = raw_frame(raw, WIRE_PING);
    assert_int_equal(raw_send(raw, frame), 0);
    assert_int_equal(raw_send(raw, frame), 0);
}

static void hostile_future(struct raw *raw)
{
    struct wire_frame frame = raw_frame(raw, WIRE_PING);
    frame.revision = UINT64_MAX;
    assert_int_equal(raw_send(raw, frame), 0);
}

static void hostile_revision_goes_back(struct raw *raw)
{
    raw->revision = 2;
    assert_int_equal(raw_send(raw, raw_frame(raw, WIRE_PING)), 0);
    raw->revision = 1;
    assert_int_equal(raw_send(raw, raw_frame(raw, WIRE_PING)), 0);
}

static void hostile_many_descriptors(struct raw *raw)
{
    int fds[3] = {0, 0, 0};
    unsigned char bytes[WIRE_MAX_FRAME];
    struct wire_frame frame = raw_frame(raw, WIRE_SHARE);
    struct iovec part = {.iov_base = bytes, .iov_len = wire_put_frame(&frame, bytes)};
    union {
        struct cmsghdr aligned;
        unsigned char room[CMSG_SPACE(sizeof fds)];
    } control = {.room = {0}};
    struct msghdr header = {.msg_iov = &part,
                            .msg_iovlen = 1,
                            .msg_control = &control,
                            .msg_controllen = sizeof control};
    struct cmsghdr *c = CMSG_FIRSTHDR(&header);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof fds);
    memcpy(CMSG_DATA(c), fds, sizeof fds);
    assert_true(sendmsg(raw->fd, &header, 0) > 0);
}

static int open_descriptors(void)
{
    int count = 0;
    for (int fd = 0; fd < 1024; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static void test_hostile_clients(void **state)
{
    (void)state;
    static void (*const attack[])(struct raw * raw) = {
        hostile_garbage,
        hostile_torn,
        hostile_oversized,
        hostile_empty,
        hostile_checksum,
        hostile_server_frame,
        hostile_second_hello,
        hostile_other_store,
        hostile_other_rank,
        hostile_other_incarnation,
        hostile_replay,
        hostile_future,
        hostile_revision_goes_back,
        hostile_many_descriptors,
    };
    struct store_server *server = server_running();
    struct client honest = client_open(server, 0);
    int before = open_descriptors();
    for (uint32_t i = 0; i < sizeof attack / sizeof *attack; i++) {
        struct raw raw = raw_open(server, 1);
        assert_int_equal(raw.incarnation, i + 1);
        attack[i](&raw);
        assert_closed(&raw);
        struct store_event event;
        do
            event = await_change(honest.store, "presence/1");
        while (!event.gone);
        store_server_fence(server, 1, raw.incarnation);
        assert_int_equal(put(&honest, "config/g/0", "unharmed").status, MUSTER_OK);
    }
    assert_int_equal(open_descriptors(), before);
    client_close(&honest);
    store_server_destroy(server);
}

/* Also not when they name the right store and nobody. */
static void test_frames_before_hello(void **state)
{
    (void)state;
    struct store_server *server = server_running();
    struct raw known = raw_open(server, 0);
    for (enum wire_type type = WIRE_GET; type < WIRE_TYPES; type++) {
        struct raw raw = {.fd = store_server_connect(server), .store_id = known.store_id, .rank = -1};
        assert_int_equal(raw_send(&raw, raw_frame(&raw, type)), 0);
        assert_closed(&raw);
    }
    close(known.fd);
    store_server_destroy(server);
}

/* Values that are well-formed frames but nonsense as requests do no more than get refused. */
static void test_nonsense_requests(void **state)
{
    (void)state;
    struct store_server *server = server_running();
    struct raw raw = raw_open(server, 1);
    struct wire_frame frame = raw_frame(&raw, WIRE_FENCE);
    frame.peer = 127;
    frame.peer_incarnation = UINT32_MAX;
    assert_int_equal(raw_send(&raw, frame), 0);
    assert_int_equal(raw_send(&raw, raw_frame(&raw, WIRE_FENCE)), 0);
    assert_int_equal(raw_send(&raw, raw_frame(&raw, WIRE_SHARE)), 0); /* without a descriptor */
    assert_int_equal(raw_send(&raw, raw_frame(&raw, WIRE_ASK)), 0);
    assert_int_equal(raw_send(&raw, raw_frame(&raw, WIRE_PUT)), 0);
    assert_int_equal(raw_send(&raw, raw_frame(&raw, WIRE_PING)), 0);
    unsigned char room[WIRE_MAX_FRAME];
    do
        assert_true(raw_receive(&raw, &frame, room));
    while (frame.type != WIRE_PONG);
    close(raw.fd);
    store_server_destroy(server);
}

/* More connections than there are slots: the last ones are turned away, nobody else notices. */
static void test_connections_are_bounded(void **state)
{
    (void)state;
    enum { MANY = 400 };
    int fd[MANY];
    struct store_server *server = server_running();
    struct client honest = client_open(server, 0);
    for (int i = 0; i < MANY; i++)
        assert_true((fd[i] = store_server_connect(server)) >= 0);
    assert_int_equal(put(&honest, "config/g/0", "x").status, MUSTER_OK);
    struct pollfd closed = {.fd = fd[MANY - 1], .events = POLLIN};
    assert_int_equal(poll(&closed, 1, 10000), 1);
    assert_true(closed.revents & POLLHUP);
    for (int i = 0; i < MANY; i++)
        close(fd[i]);
    struct client later = client_open(server, 1);
    client_close(&later);
    client_close(&honest);
    store_server_destroy(server);
}

/* ---- slow readers ---- */

/* One that reads nothing costs the others nothing, and afterwards hears the newest values only. */
static void test_slow_reader(void **state)
{
    (void)state;
    static char value[STORE_MAX_VALUE];
    struct store_server *server = server_running();
    struct client slow = client_open(server, 1), quick = client_open(server, 0);
    const struct store_ops *ops = quick.store->ops;
    for (int i = 0; i < 3000; i++) {
        memset(value, 'a' + i % 26, sizeof value);
        struct store_event reply = await_reply(quick.store, ops->put(quick.store, "config/g/0", value, sizeof value));
        assert_int_equal(reply.status, MUSTER_OK);
    }
    put(&quick, "config/end/0", "end");
    int changes = 0;
    struct store_event event;
    do {
        next_event(slow.store, WAIT_NS, &event);
        assert_int_equal(event.type, STORE_CHANGE);
        changes++;
    } while (strcmp(event.key, "config/end/0") != 0);
    assert_in_range(changes, 1, 1000); /* what the socket held, then one change per key */
    assert_int_equal(put(&slow, "config/g/1", "alive").status, MUSTER_OK);
    client_close(&slow);
    client_close(&quick);
    store_server_destroy(server);
}

/*
 * One that asks without ever reading the answers blocks itself and nobody else; when it reads, all answers are there.
 */
static void test_flood_without_reading(void **state)
{
    (void)state;
    enum { REQUESTS = 900 };
    struct store_server *server = server_running();
    struct client flood = client_open(server, 1), other = client_open(server, 0);
    static char value[STORE_MAX_VALUE];
    memset(value, 'f', sizeof value);
    put(&other, "config/g/0", "x");
    await_reply(flood.store, flood.store->ops->put(flood.store, "config/g/1", value, sizeof value));
    uint64_t id = 0;
    for (int i = 0; i < REQUESTS; i++)
        id = flood.store->ops->get(flood.store, "config/g/1");
    for (int i = 0; i < 100; i++)
        assert_int_equal(put(&other, "config/g/0", "y").status, MUSTER_OK);
    int replies = 0;
    struct store_event event;
    do {
        next_event(flood.store, WAIT_NS, &event);
        assert_true(event.type == STORE_REPLY || event.type == STORE_CHANGE);
        replies += event.type == STORE_REPLY;
    } while (event.type != STORE_REPLY || event.id != id);
    assert_int_equal(replies, REQUESTS);
    client_close(&flood);
    client_close(&other);
    store_server_destroy(server);
}

/* ---- a store that is lost ---- */

static void test_store_destroyed(void **state)
{
    (void)state;
    struct store_server *server = server_new(RANKS, 1, LONG_LEASE_US);
    assert_int_equal(store_server_start_thread(server), MUSTER_OK);
    struct client c = client_open(server, 1);
    store_server_destroy(server);
    await_lost(c.store); /* not after a lease: that would be a quarter of an hour */
    client_close(&c);
}

static void *serve_until_present(void *argument)
{
    struct store_server *server = argument;
    while (!store_server_present(server, 1)) {
        struct pollfd work = {.fd = store_server_fd(server), .events = POLLIN};
        poll(&work, 1, 100);
        store_server_poll(server);
    }
    return NULL;
}

/* A server that stops serving without closing anything is noticed after the lease, not before. */
static void test_silent_store(void **state)
{
    (void)state;
    enum { SHORT_LEASE_US = 200000 };
    struct store_server *server = server_new(RANKS, 1, SHORT_LEASE_US);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, serve_until_present, server), 0);
    struct pace pace = pace_begin(); /* before anything was heard of it */
    struct client c = client_open(server, 1);
    pthread_join(thread, NULL);
    await_lost(c.store);
    assert_true(pace_wall_ms(&pace) >= SHORT_LEASE_US / 1000);
    assert_true(pace_ms(&pace) <= 10 * SHORT_LEASE_US / 1000);
    client_close(&c);
    store_server_destroy(server);
}

/* False: the store was called lost too early. */
static bool own_pause_is_forgiven(uint64_t lease_us)
{
    struct store_server *server = server_new(RANKS, 1, lease_us);
    pthread_t thread;
    struct store_event event;
    assert_int_equal(pthread_create(&thread, NULL, serve_until_present, server), 0);
    struct client c = client_open(server, 1);
    pthread_join(thread, NULL);
    do
        next_event(c.store, 500 * lease_us, &event); /* half a lease: a ping is out by then */
    while (event.type == STORE_CHANGE);
    bool kept = event.type == STORE_NOTHING;
    pace_sleep_ms((int)(2 * lease_us / 1000));
    uint64_t start_ns = clock_ns();
    next_event(c.store, 0, &event);
    kept = kept && event.type == STORE_NOTHING;
    if (kept) {
        await_lost(c.store);
        kept = clock_ns() - start_ns >= 1000 * lease_us;
    }
    client_close(&c);
    store_server_destroy(server);
    return kept;
}

/* False: the store was called lost. Pings keep a quiet connection up over many leases, and over a pause of our own. */
static bool lease_is_kept(uint64_t lease_us)
{
    struct store_server *server = server_new(RANKS, 1, lease_us);
    assert_int_equal(store_server_start_thread(server), MUSTER_OK);
    struct client c = client_open(server, 1);
    struct store_event event = {.type = STORE_NOTHING};
    uint64_t end_ns = clock_ns() + 4 * lease_us * 1000;
    while (clock_ns() < end_ns && event.type != STORE_LOST) {
        next_event(c.store, 20000000, &event);
        assert_true(event.type == STORE_NOTHING || event.type == STORE_CHANGE || event.type == STORE_LOST);
        assert_true(event.type == STORE_LOST || c.store->ops->next_ns(c.store) <= clock_ns() + lease_us * 1000);
    }
    pace_sleep_ms((int)(3 * lease_us / 1000));
    if (event.type != STORE_LOST)
        next_event(c.store, 0, &event);
    bool kept = event.type == STORE_NOTHING;
    if (kept)
        assert_int_equal(put(&c, "config/g/1", "x").status, MUSTER_OK);
    client_close(&c);
    store_server_destroy(server);
    return kept;
}

/* A lease is a deadline by which the store is judged: longer ones if the machine does not keep up with it. */
static void holds_for_some_lease(bool (*holds)(uint64_t lease_us), uint64_t lease_us)
{
    int stretch = 1;
    for (;;) {
        struct pace pace = pace_begin();
        if (holds(lease_us * (uint64_t)stretch))
            return;
        if (!pace_again(pace_kept_ms(&pace), stretch * (int)(lease_us / 1000) / 2, &stretch))
            fail_msg("the store was called lost before its time");
    }
}

/* What a full socket holds back needs a descriptor of its own: without one it must not go out empty. */
static void test_memory_held_back_without_descriptors(void **state)
{
    (void)state;
    struct store_server *server = server_new(RANKS, 1, LONG_LEASE_US);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, serve_until_present, server), 0);
    struct client c = client_open(server, 1);
    pthread_join(thread, NULL);
    int memory = make_memory("one");
    for (int i = 0; i < 900; i++) /* more than a socket takes that nobody reads */
        c.store->ops->get(c.store, "view");
    struct rlimit before = use_up_descriptors();
    c.store->ops->share_memory(c.store, memory);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    await_lost(c.store);
    close(memory);
    client_close(&c);
    store_server_destroy(server);
}

/* A client that did not run itself gives the store a whole lease anew before it calls it lost. */
static void test_own_pause_is_not_held_against_the_store(void **state)
{
    (void)state;
    holds_for_some_lease(own_pause_is_forgiven, 300000);
}

static void test_lease_is_kept(void **state)
{
    (void)state;
    holds_for_some_lease(lease_is_kept, 400000);
}

/* A store made by hand, for what no honest store says. */
struct forged {
    int fd;
    struct store *store;
    uint64_t hello;
};

static void *forged_welcome(void *argument)
{
    struct forged *forged = argument;
    struct raw raw = {.fd = forged->fd};
    struct wire_frame hello;
    unsigned char room[WIRE_MAX_FRAME];
    struct socket_message message;
    struct pollfd readable = {.fd = forged->fd, .events = POLLIN};
    poll(&readable, 1, 10000);
    if (socket_receive(forged->fd, room, sizeof room, &message) != 0 || wire_get_frame(room, message.bytes, &hello))
        return NULL;
    raw_send(&raw, (struct wire_frame){.type = WIRE_WELCOME,
                                       .store_id = 77,
                                       .request = hello.request,
                                       .revision = 10,
                                       .rank = 1,
                                       .incarnation = 3,
                                       .peer = -1,
                                       .number = LONG_LEASE_US});
    return forged;
}

static void forged_expect_lost(struct wire_frame first, struct wire_frame second)
{
    int ends[2];
    char where[32];
    pthread_t thread;
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    struct forged forged = {.fd = ends[0]};
    snprintf(where, sizeof where, "fd:%d", ends[1]);
    assert_int_equal(pthread_create(&thread, NULL, forged_welcome, &forged), 0);
    assert_int_equal(store_embedded_open(where, 1, RANKS, PATIENCE_US, &forged.store), MUSTER_OK);
    pthread_join(thread, NULL);
    struct raw raw = {.fd = ends[0]};
    struct store_event event;
    assert_int_equal(raw_send(&raw, first), 0);
    next_event(forged.store, WAIT_NS, &event);
    assert_int_equal(event.type, STORE_CHANGE);
    assert_int_equal(raw_send(&raw, second), 0);
    await_lost(forged.store);
    forged.store->ops->close(forged.store);
    close(ends[0]);
    close(ends[1]);
}

static struct wire_frame forged_change(uint64_t store_id, uint64_t revision, uint64_t key_revision)
{
    return (struct wire_frame){.type = WIRE_CHANGE,
                               .store_id = store_id,
                               .revision = revision,
                               .rank = 1,
                               .incarnation = 3,
                               .peer = -1,
                               .key_revision = key_revision,
                               .key = "view",
                               .key_bytes = 4};
}

static void test_store_that_cannot_be_believed(void **state)
{
    (void)state;
    struct wire_frame good = forged_change(77, 12, 12), bad;
    forged_expect_lost(good, forged_change(78, 13, 13)); /* another store */
    forged_expect_lost(good, forged_change(77, 11, 11)); /* went back in time */
    forged_expect_lost(good, forged_change(77, 12, 12)); /* the same change again */
    forged_expect_lost(good, forged_change(77, 13, 14)); /* a change newer than the store */
    bad = forged_change(77, 13, 13);
    bad.incarnation = 2;
    forged_expect_lost(good, bad);
    bad = forged_change(77, 11, 11);
    bad.type = WIRE_REPLY;
    forged_expect_lost(good, bad);
    bad = forged_change(77, 13, 13);
    bad.type = WIRE_HELLO;
    forged_expect_lost(good, bad);
}

/* ---- processes and real signals ---- */

static void child_watch(struct store *store, int pipe_end);

/* A rank of its own process. `act` runs there after the welcome; the child never returns from here. */
static pid_t rank_spawn(struct store_server *server, int32_t rank, void (*act)(struct store *store, int argument),
                        int argument)
{
    int fd = store_server_connect(server);
    assert_true(fd >= 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid > 0) {
        close(fd);
        return pid;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    char where[32];
    struct store *store = NULL;
    snprintf(where, sizeof where, "fd:%d", fd);
    if (store_embedded_open(where, rank, RANKS, PATIENCE_US, &store) != MUSTER_OK)
        _exit(99);
    act(store, argument);
    _exit(0);
}

static void child_idle(struct store *store, int argument)
{
    struct store_event event;
    (void)argument;
    for (;;)
        next_event(store, 100000000, &event);
}

static void child_exit(struct store *store, int argument)
{
    (void)store;
    _exit(argument);
}

static void child_leave(struct store *store, int argument)
{
    (void)argument;
    store->ops->leave(store);
    store->ops->close(store);
}

static void child_break_off(struct store *store, int argument)
{
    (void)argument;
    store->ops->close(store);
    for (;;)
        pause();
}

static void child_fence(struct store *store, int argument)
{
    store->ops->fence(store, argument, 1);
    child_idle(store, 0);
}

/* What a watching rank reports through its pipe. */
struct sighting {
    char key[STORE_MAX_KEY];
    bool gone;
    uint32_t number; /* incarnation present or fenced */
    uint64_t at_ns;
};

static void child_watch(struct store *store, int pipe_end)
{
    struct store_event event;
    for (;;) {
        next_event(store, 100000000, &event);
        if (event.type != STORE_CHANGE)
            continue;
        struct sighting s = {.gone = event.gone, .at_ns = clock_ns()};
        struct presence presence = {.incarnation = 0};
        wire_get_presence(event.value, event.value_bytes, &presence);
        s.number = presence.incarnation;
        if (!strncmp(event.key, "fenced/", 7))
            wire_get_fenced(event.value, event.value_bytes, &s.number);
        strcpy(s.key, event.key);
        if (write(pipe_end, &s, sizeof s) != (ssize_t)sizeof s)
            _exit(1);
    }
}

/* Serves in this thread until the watcher reports `key` in the wanted state. */
static struct sighting serve_until(struct store_server *server, int pipe_end, const char *key, bool gone,
                                   uint32_t number)
{
    uint64_t deadline_ns = clock_ns() + WAIT_NS;
    for (;;) {
        struct pollfd wait[] = {{.fd = store_server_fd(server), .events = POLLIN}, {.fd = pipe_end, .events = POLLIN}};
        poll(wait, 2, 50);
        store_server_poll(server);
        struct sighting s;
        while (read(pipe_end, &s, sizeof s) == (ssize_t)sizeof s)
            if (!strcmp(s.key, key) && s.gone == gone && (gone || s.number == number))
                return s;
        if (clock_ns() > deadline_ns)
            fail_msg("%s was not seen in time", key);
    }
}

static void serve_for(struct store_server *server, uint64_t duration_ns)
{
    uint64_t end_ns = clock_ns() + duration_ns;
    while (clock_ns() < end_ns) {
        struct pollfd work = {.fd = store_server_fd(server), .events = POLLIN};
        poll(&work, 1, 5);
        store_server_poll(server);
    }
}

struct stage {
    struct store_server *server;
    pid_t watcher;
    int pipe_end;
};

static struct stage stage_new(void)
{
    int ends[2];
    struct stage stage = {.server = server_new(RANKS, 0, LEASE_US)};
    assert_int_equal(pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
    stage.watcher = rank_spawn(stage.server, 0, child_watch, ends[1]);
    close(ends[1]);
    stage.pipe_end = ends[0];
    serve_until(stage.server, stage.pipe_end, "presence/0", false, 1);
    return stage;
}

static void stage_end(struct stage *stage)
{
    kill(stage->watcher, SIGKILL);
    waitpid(stage->watcher, NULL, 0);
    close(stage->pipe_end);
    store_server_destroy(stage->server);
}

static int wait_status(pid_t pid)
{
    int status = -1;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

static int compare_numbers(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* A killed rank is known to the others at once; its number then serves a new incarnation. */
static void test_kill_is_seen_quickly(void **state)
{
    (void)state;
    enum { TRIALS = 20 };
    uint64_t gone_ns[TRIALS], fenced_ns[TRIALS], paced_ms[TRIALS];
    struct stage stage = stage_new();
    for (uint32_t i = 0; i < TRIALS; i++) {
        pid_t victim = rank_spawn(stage.server, 2, child_idle, 0);
        serve_until(stage.server, stage.pipe_end, "presence/2", false, i + 1);
        struct pace pace = pace_begin();
        uint64_t killed_ns = clock_ns();
        kill(victim, SIGKILL);
        gone_ns[i] = serve_until(stage.server, stage.pipe_end, "presence/2", true, 0).at_ns - killed_ns;
        fenced_ns[i] = serve_until(stage.server, stage.pipe_end, "fenced/2", false, i + 1).at_ns - killed_ns;
        paced_ms[i] = (uint64_t)pace_ms(&pace);
        assert_true(WIFSIGNALED(wait_status(victim)));
    }
    qsort(gone_ns, TRIALS, sizeof *gone_ns, compare_numbers);
    qsort(fenced_ns, TRIALS, sizeof *fenced_ns, compare_numbers);
    print_message("SIGKILL to presence gone: median %.3f ms, worst %.3f ms; to fenced: median %.3f ms\n",
                  (double)gone_ns[TRIALS / 2] / 1e6, (double)gone_ns[TRIALS - 1] / 1e6,
                  (double)fenced_ns[TRIALS / 2] / 1e6);
    qsort(paced_ms, TRIALS, sizeof *paced_ms, compare_numbers);
    assert_true(paced_ms[TRIALS / 2] < 50); /* for both, without what the machine took */
    stage_end(&stage);
}

/* Being stopped for a while is no death, even while there is much to hear; a fence kills the stopped process. */
static void test_stopped_rank(void **state)
{
    (void)state;
    struct stage stage = stage_new();
    pid_t stopped = rank_spawn(stage.server, 1, child_idle, 0);
    serve_until(stage.server, stage.pipe_end, "presence/1", false, 1);
    kill(stopped, SIGSTOP);
    pid_t busy[60];
    for (uint32_t i = 0; i < 60; i++) { /* presences that come and go, which the stopped rank does not read */
        busy[i] = rank_spawn(stage.server, 2, child_leave, 0);
        serve_until(stage.server, stage.pipe_end, "fenced/2", false, i + 1);
        wait_status(busy[i]);
    }
    serve_for(stage.server, 300000000);
    assert_true(store_server_present(stage.server, 1));
    assert_int_equal(waitpid(stopped, NULL, WNOHANG), 0);
    pid_t fencer = rank_spawn(stage.server, 3, child_fence, 1);
    serve_until(stage.server, stage.pipe_end, "presence/1", true, 0);
    serve_until(stage.server, stage.pipe_end, "fenced/1", false, 1);
    int status = wait_status(stopped);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    kill(fencer, SIGKILL);
    wait_status(fencer);
    stage_end(&stage);
}

/* A process that closes its connection but goes on is killed, and fenced only then. */
static void test_broken_off_process_is_killed(void **state)
{
    (void)state;
    struct stage stage = stage_new();
    pid_t pid = rank_spawn(stage.server, 1, child_break_off, 0);
    serve_until(stage.server, stage.pipe_end, "presence/1", true, 0);
    serve_until(stage.server, stage.pipe_end, "fenced/1", false, 1);
    int status = wait_status(pid);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    stage_end(&stage);
}

/* A forked child speaks over the inherited socket: garbage, a frame, a hello. */
static void child_with_a_talkative_child(struct store *store, int argument)
{
    if (fork() == 0) {
        struct raw raw = {.fd = store->ops->fd(store), .rank = 1, .incarnation = 1};
        struct wire_frame hello = raw_frame(&raw, WIRE_HELLO);
        hello.number = RANKS;
        send(raw.fd, "garbage", 7, 0);
        raw_send(&raw, raw_frame(&raw, WIRE_LEAVE));
        raw_send(&raw, hello);
        _exit(0);
    }
    wait(NULL);
    uint64_t id = store->ops->put(store, "config/g/1", "x", 1);
    struct store_event event;
    do { /* what the store answers to the child is skipped: no frame of ours is refused */
        next_event(store, 5000000000, &event);
        if (event.type == STORE_LOST || event.type == STORE_NOTHING)
            _exit(50);
    } while (event.type != STORE_REPLY || event.id != id);
    child_leave(store, argument);
}

/* Only the process that holds the rank speaks for it, and it does not suffer for what others say over its socket. */
static void test_strangers_are_ignored(void **state)
{
    (void)state;
    struct stage stage = stage_new();
    pid_t pid = rank_spawn(stage.server, 1, child_with_a_talkative_child, 0);
    serve_until(stage.server, stage.pipe_end, "fenced/1", false, 1);
    int status = wait_status(pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    assert_string_equal(last_event, "left");
    stage_end(&stage);
}

/* Much to say, then a leave and the exit, with everything unread that the store has said. */
static void child_leave_late(struct store *store, int argument)
{
    poll(NULL, 0, 30); /* by then the store is not served */
    for (int i = 0; i < 100; i++)
        store->ops->put(store, "config/last/1", "words", 5);
    child_leave(store, argument);
}

static void child_exit_late(struct store *store, int argument)
{
    poll(NULL, 0, 30);
    child_exit(store, argument);
}

/*
 * An exit keeps its status: ending the presence does not turn it into a kill. A leave before it is no death, even if
 * the store hears of both at once.
 */
static void test_exits(void **state)
{
    (void)state;
    struct stage stage = stage_new();
    for (uint32_t i = 0; i < 20; i++) {
        bool leaves = i % 2 == 0;
        pid_t pid = rank_spawn(stage.server, 1, leaves ? child_leave_late : child_exit_late, 7);
        serve_until(stage.server, stage.pipe_end, "presence/1", false, i + 1);
        int status = wait_status(pid);
        serve_until(stage.server, stage.pipe_end, "fenced/1", false, i + 1);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), leaves ? 0 : 7);
        assert_string_equal(last_event, leaves ? "left" : "died");
    }
    stage_end(&stage);
}

/* The store's own process is no rank, or the first broken connection would kill the store. */
static void test_own_process_is_refused(void **state)
{
    (void)state;
    struct store_server *server = server_new(RANKS, 0, LEASE_US);
    assert_int_equal(store_server_start_thread(server), MUSTER_OK);
    assert_int_equal(try_open(server, 0, RANKS, PATIENCE_US), MUSTER_ERR_STORE);
    assert_non_null(strstr(muster_last_error(), "own process"));
    store_server_destroy(server);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_key_names),
        cmocka_unit_test(test_put_and_get),
        cmocka_unit_test(test_largest_value),
        cmocka_unit_test(test_swap),
        cmocka_unit_test(test_swap_has_one_winner),
        cmocka_unit_test(test_refused_writes),
        cmocka_unit_test(test_configs_are_bounded),
        cmocka_unit_test(test_changes_come_in_order),
        cmocka_unit_test(test_state_is_sent),
        cmocka_unit_test(test_reply_comes_after_its_changes),
        cmocka_unit_test(test_presence_and_leave),
        cmocka_unit_test(test_rejoin_over_the_same_descriptor),
        cmocka_unit_test(test_broken_connection_ends_presence),
        cmocka_unit_test(test_fenced_writes_are_refused),
        cmocka_unit_test(test_refused_hellos),
        cmocka_unit_test(test_malformed_places),
        cmocka_unit_test(test_listener),
        cmocka_unit_test(test_alternatives),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_memory_without_descriptors),
        cmocka_unit_test(test_store_without_descriptors),
        cmocka_unit_test(test_lost_descriptors),
        cmocka_unit_test(test_hostile_clients),
        cmocka_unit_test(test_frames_before_hello),
        cmocka_unit_test(test_nonsense_requests),
        cmocka_unit_test(test_connections_are_bounded),
        cmocka_unit_test(test_slow_reader),
        cmocka_unit_test(test_flood_without_reading),
        cmocka_unit_test(test_store_destroyed),
        cmocka_unit_test(test_silent_store),
        cmocka_unit_test(test_memory_held_back_without_descriptors),
        cmocka_unit_test(test_own_pause_is_not_held_against_the_store),
        cmocka_unit_test(test_lease_is_kept),
        cmocka_unit_test(test_store_that_cannot_be_believed),
        cmocka_unit_test(test_kill_is_seen_quickly),
        cmocka_unit_test(test_stopped_rank),
        cmocka_unit_test(test_broken_off_process_is_killed),
        cmocka_unit_test(test_strangers_are_ignored),
        cmocka_unit_test(test_exits),
        cmocka_unit_test(test_own_process_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
