// SPDX-License-Identifier: Apache-2.0
/*
 * libFuzzer target for the store's server: the input is a script of what two ill-behaved clients send over real
 * sockets, from raw bytes to frames that are wrong in one field only. After every act an honest client must find the
 * store in order: its write is accepted, its reads give what it wrote, and what it hears comes in order.
 */
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "control/store_server.h"
#include "control/store_socket.h"
#include "control/wire.h"
#include "core/mask.h"

#define REQUIRE(condition) ((condition) ? (void)0 : abort())

enum { RANKS = 3, CLIENTS = 3, HONEST = 0, MAX_ACTS = 64 };

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The rest of the script; 0 once it is used up. */
struct script {
    const uint8_t *data;
    size_t left;
};

struct client {
    int fd;
    int32_t rank;
    uint32_t incarnation;
    uint64_t request;
    uint64_t revision;
};

struct scene {
    struct script script;
    struct store_server *server;
    uint64_t store_id;
    struct client client[CLIENTS];
    uint64_t seen; /* by the honest client */
};

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    return setenv("MUSTER_LOG", "error", 1);
}

static unsigned next(struct script *s, unsigned limit)
{
    if (!s->left)
        return 0;
    s->left--;
    return *s->data++ % limit;
}

static uint64_t next_number(struct script *s)
{
    static const uint64_t edges[] = {0, 1, 2, 127, 128, UINT32_MAX, UINT64_MAX, UINT64_MAX - 1};
    return edges[next(s, sizeof edges / sizeof *edges)];
}

/* ---- frames ---- */

static void send_frame(const struct client *c, const struct wire_frame *frame, int passed)
{
    unsigned char bytes[WIRE_MAX_FRAME];
    socket_send(c->fd, bytes, wire_put_frame(frame, bytes), passed); /* a full socket or a closed one may refuse it */
}

/* What an honest client would send; the ill-behaved ones spoil it. */
static struct wire_frame frame_of(struct scene *scene, struct client *c, enum wire_type type)
{
    return (struct wire_frame){.type = type,
                               .store_id = scene->store_id,
                               .request = ++c->request,
                               .revision = c->revision,
                               .rank = c->rank,
                               .incarnation = c->incarnation,
                               .peer = -1,
                               .number = type == WIRE_HELLO ? RANKS : 0};
}

static void learn(struct scene *scene, struct client *c, const struct wire_frame *frame)
{
    c->revision = frame->revision;
    if (frame->type != WIRE_WELCOME)
        return;
    scene->store_id = frame->store_id;
    c->incarnation = frame->incarnation;
}

/* False: nothing is there, or the connection is closed. */
static bool receive(struct scene *scene, struct client *c, struct wire_frame *frame, unsigned char *room)
{
    struct socket_message message;
    if (socket_receive(c->fd, room, WIRE_MAX_FRAME, &message) != 0)
        return false;
    if (message.fd >= 0)
        close(message.fd);
    if (!message.bytes)
        return false;
    REQUIRE(!wire_get_frame(room, message.bytes, frame)); /* the server never says what its own parser refuses */
    learn(scene, c, frame);
    return true;
}

static void connect_client(struct scene *scene, int index)
{
    struct client *c = &scene->client[index];
    *c = (struct client){.fd = store_server_connect(scene->server), .rank = index};
    REQUIRE(c->fd >= 0);
}

/* ---- the honest client ---- */

static void check_change(struct scene *scene, const struct wire_frame *frame)
{
    REQUIRE(frame->key_revision > scene->seen && frame->key_revision <= frame->revision);
    scene->seen = frame->key_revision;
}

/* Serves until the reply to the last request of the honest client has come. */
static struct wire_frame await_reply(struct scene *scene, unsigned char *room)
{
    struct client *c = &scene->client[HONEST];
    struct wire_frame frame;
    for (int turn = 0; turn < 1000; turn++) {
        store_server_poll(scene->server);
        while (receive(scene, c, &frame, room)) {
            if (frame.type == WIRE_CHANGE)
                check_change(scene, &frame);
            if (frame.request == c->request && frame.type != WIRE_CHANGE)
                return frame;
        }
    }
    abort(); /* the store serves no more */
}

static void honest_hello(struct scene *scene)
{
    unsigned char room[WIRE_MAX_FRAME];
    struct wire_frame hello = frame_of(scene, &scene->client[HONEST], WIRE_HELLO);
    send_frame(&scene->client[HONEST], &hello, -1);
    REQUIRE(await_reply(scene, room).type == WIRE_WELCOME);
}

static void honest_write_and_read(struct scene *scene)
{
    unsigned char room[WIRE_MAX_FRAME], value[8];
    struct client *c = &scene->client[HONEST];
    memcpy(value, &c->request, sizeof value);
    struct wire_frame frame = frame_of(scene, c, WIRE_PUT);
    frame.key = "config/honest/0";
    frame.key_bytes = strlen(frame.key);
    frame.value = value;
    frame.value_bytes = sizeof value;
    send_frame(c, &frame, -1);
    struct wire_frame reply = await_reply(scene, room);
    REQUIRE(reply.type == WIRE_REPLY && reply.status == MUSTER_OK);
    frame.type = WIRE_GET;
    frame.request = ++c->request;
    frame.revision = c->revision;
    frame.value_bytes = 0;
    send_frame(c, &frame, -1);
    reply = await_reply(scene, room);
    REQUIRE(reply.status == MUSTER_OK && reply.value_bytes == sizeof value);
    REQUIRE(memcmp(reply.value, value, sizeof value) == 0);
}

/* ---- the acts of the others ---- */

static void act_garbage(struct scene *scene, struct client *c)
{
    size_t size = next(&scene->script, 200);
    if (size > scene->script.left)
        size = scene->script.left;
    send(c->fd, scene->script.data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    scene->script.data += size;
    scene->script.left -= size;
}

static const char *choose_key(struct script *s)
{
    static const char *const keys[] = {"view",       "member/1",        "member/2",   "config/a/1",
                                       "config/b/2", "config/honest/0", "presence/1", "fenced/0",
                                       "member/x",   "config//1",       "",           "member/12",
                                       "config/d/1", "config/e/1",      "nonsense"};
    return keys[next(s, sizeof keys / sizeof *keys)];
}

/* A value that its key might accept, or the script's bytes. */
static size_t choose_value(struct scene *scene, const struct client *c, unsigned char out[STORE_MAX_VALUE])
{
    struct script *s = &scene->script;
    struct view view = {.epoch = next(s, 4),
                        .phase = VIEW_PREPARE,
                        .proposer = c->rank,
                        .mask = mask_first(RANKS),
                        .incarnation = {1, 1, 1}};
    struct record record = {.incarnation = c->incarnation, .state = RECORD_ACTIVE};
    unsigned kind = next(s, 3);
    if (kind == 0)
        return wire_put_view(&view, RANKS, out);
    if (kind == 1)
        return wire_put_record(&record, out);
    size_t size = next(s, 64);
    for (size_t i = 0; i < size; i++)
        out[i] = (unsigned char)next(s, 256);
    return size;
}

static void spoil(struct script *s, struct wire_frame *frame)
{
    switch (next(s, 16)) {
    case 1: frame->store_id = next_number(s); break;
    case 2: frame->request = next_number(s); break;
    case 3: frame->revision = next_number(s); break;
    case 4: frame->rank = (int32_t)next(s, 6) - 1; break;
    case 5: frame->incarnation = (uint32_t)next_number(s); break;
    case 6: frame->number = next_number(s); break;
    case 7: frame->status = MUSTER_ERR_AGAIN; break;
    default: break; /* nothing is wrong with it */
    }
}

static void act_frame(struct scene *scene, struct client *c)
{
    struct script *s = &scene->script;
    unsigned char value[STORE_MAX_VALUE];
    struct wire_frame frame = frame_of(scene, c, (enum wire_type)next(s, WIRE_TYPES));
    frame.peer = (int32_t)next(s, RANKS + 2) - 1;
    frame.peer_incarnation = next(s, 4);
    frame.key_revision = next(s, 8);
    frame.key = choose_key(s);
    frame.key_bytes = strlen(frame.key);
    frame.value = value;
    frame.value_bytes = choose_value(scene, c, value);
    spoil(s, &frame);
    send_frame(c, &frame, next(s, 4) == 0 ? c->fd : -1);
}

static void act_hello(struct scene *scene, struct client *c)
{
    struct wire_frame frame = frame_of(scene, c, WIRE_HELLO);
    spoil(&scene->script, &frame);
    send_frame(c, &frame, -1);
}

static void act_read(struct scene *scene, struct client *c)
{
    unsigned char room[WIRE_MAX_FRAME];
    struct wire_frame frame;
    for (unsigned i = next(&scene->script, 16); i > 0 && receive(scene, c, &frame, room); i--) {
    }
}

static void act_reconnect(struct scene *scene, struct client *c)
{
    close(c->fd);
    connect_client(scene, (int)(c - scene->client));
}

static void act_fence(struct scene *scene, struct client *c)
{
    store_server_fence(scene->server, c->rank, next(&scene->script, 4));
}

static void act_shut(struct scene *scene, struct client *c)
{
    shutdown(c->fd, (int)next(&scene->script, 3));
}

/* Out of the same bytes as always, so that a run can be repeated. */
static void play(struct scene *scene)
{
    static void (*const acts[])(struct scene *, struct client *) = {act_frame,     act_hello, act_garbage, act_read,
                                                                    act_reconnect, act_fence, act_shut,    act_frame};
    for (int i = 0; i < MAX_ACTS && scene->script.left; i++) {
        struct client *c = &scene->client[1 + next(&scene->script, CLIENTS - 1)];
        acts[next(&scene->script, sizeof acts / sizeof *acts)](scene, c);
        if (next(&scene->script, 2))
            honest_write_and_read(scene);
    }
}

static int count_descriptors(void)
{
    int count = 0;
    for (int fd = 0; fd < 64; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct scene scene = {.script = {.data = data, .left = size}};
    struct store_server_config config = {.ranks = RANKS, .lease_us = 1000000, .inject_fences = 1};
    int before = count_descriptors();
    REQUIRE(store_server_create(&config, &scene.server) == MUSTER_OK);
    for (int i = 0; i < CLIENTS; i++)
        connect_client(&scene, i);
    honest_hello(&scene);
    play(&scene);
    honest_write_and_read(&scene);
    REQUIRE(store_server_present(scene.server, HONEST));
    for (int i = 0; i < CLIENTS; i++)
        close(scene.client[i].fd);
    store_server_destroy(scene.server);
    REQUIRE(count_descriptors() == before);
    return 0;
}
