// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "control/store_serving.h"
#include "core/log.h"

enum {
    FRAMES_PER_TURN = 32, /* then the others have their turn */
    FRAMES_TO_DRAIN = 4096, /* more than a socket holds; another process may hold the socket and go on writing */
    ANSWERS_PER_FRAME = 2, /* the most that one request causes */
};

/* ---- life ---- */

static struct connection *connection_slot(struct store_server *server)
{
    struct connection *eldest = NULL;
    for (int i = 0; i < STORE_MAX_CONNECTIONS; i++) {
        struct connection *c = &server->connection[i];
        if (c->fd < 0)
            return c;
        if (c->accepted && c->rank < 0 && (!eldest || c->age < eldest->age))
            eldest = c;
    }
    if (eldest)
        connection_close(server, eldest);
    return eldest;
}

static int connection_watch(struct store_server *server, struct connection *c, int operation, uint32_t events)
{
    c->armed = events;
    return server_watch(server, operation, c->fd, events, WATCH_CONNECTION, c->generation,
                        (uint32_t)(c - server->connection));
}

struct connection *connection_add(struct store_server *server, int fd, bool accepted)
{
    struct connection *c = connection_slot(server);
    if (!c) {
        log_line(LOG_LEVEL_WARN, "store: refused a connection: all %d are in use", STORE_MAX_CONNECTIONS);
        close(fd);
        return NULL;
    }
    uint32_t generation = c->generation + 1;
    *c = (struct connection){
        .fd = fd, .generation = generation, .age = ++server->ages, .accepted = accepted, .rank = -1};
    if (connection_watch(server, c, EPOLL_CTL_ADD, EPOLLIN) == 0)
        return c;
    log_line(LOG_LEVEL_ERROR, "store: cannot watch a connection: %s", strerror(errno));
    close(fd);
    c->fd = -1;
    return NULL;
}

void connection_close(struct store_server *server, struct connection *c)
{
    if (c->rank >= 0)
        ranks_disconnected(server, c);
    close(c->fd); /* leaves the epoll set with it */
    c->fd = -1;
    c->rank = -1;
}

void connection_unname(struct connection *c)
{
    c->rank = -1;
    c->incarnation = 0;
    c->streaming = false;
    c->broken = false;
    c->answers = 0;
}

void connection_complain(struct connection *c, const char *format, ...)
{
    if (c->complained)
        return;
    c->complained = true;
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    log_line(LOG_LEVEL_WARN, "store: rank %d (process %d): %s", c->rank, (int)c->pid, text);
}

/* ---- frames out ---- */

void connection_answer(struct connection *c, const struct answer *answer)
{
    if (c->broken || c->answers == CONNECTION_MAX_ANSWERS)
        return; /* the second cannot be: nothing is read from a connection without room for its answers */
    c->answer[(c->first + c->answers++) % CONNECTION_MAX_ANSWERS] = *answer;
}

/* True when it was sent. */
static bool connection_send(struct store_server *server, struct connection *c, struct wire_frame *frame, int passed)
{
    unsigned char bytes[WIRE_MAX_FRAME];
    frame->store_id = server->id;
    frame->revision = server->keys.revision;
    frame->rank = c->rank;
    frame->incarnation = c->incarnation;
    if (socket_send(c->fd, bytes, wire_put_frame(frame, bytes), passed) == 0)
        return true;
    c->blocked = errno == EAGAIN;
    c->broken = !c->blocked; /* that it has closed is learned by reading, which first brings what it still sent */
    return false;
}

static void frame_take_key(struct wire_frame *frame, const struct store_key *key, bool with_value)
{
    frame->key = key->name.text;
    frame->key_bytes = strlen(key->name.text);
    frame->number = key->gone;
    if (!with_value)
        return;
    frame->key_revision = key->revision;
    frame->value = key->value;
    frame->value_bytes = key->value_bytes;
}

static bool send_change(struct store_server *server, struct connection *c, const struct store_key *key)
{
    struct wire_frame frame = {.type = WIRE_CHANGE, .peer = -1};
    frame_take_key(&frame, key, true);
    if (!connection_send(server, c, &frame, -1))
        return false;
    c->seen = key->revision;
    return true;
}

/*
 * The value that goes with a reply is the key's newest, which may be newer than the request: a read may take effect at
 * any moment before its reply, and the swap that lost has lost against the newest value too.
 */
static bool send_answer(struct store_server *server, struct connection *c, const struct answer *a)
{
    struct wire_frame frame = {.type = a->type,
                               .status = a->status,
                               .request = a->request,
                               .peer = a->peer,
                               .peer_incarnation = a->peer_incarnation,
                               .key_revision = a->revision,
                               .number = a->number};
    int passed = -1;
    if (a->key)
        frame_take_key(&frame, a->key, a->with_value);
    if (a->type == WIRE_MEMORY)
        passed = ranks_memory(server, a->peer, a->peer_incarnation);
    if (a->type == WIRE_REFUSED) {
        frame.value = (const unsigned char *)c->reason;
        frame.value_bytes = strlen(c->reason);
    }
    if (!connection_send(server, c, &frame, passed))
        return false;
    c->first = (c->first + 1) % CONNECTION_MAX_ANSWERS;
    c->answers--;
    if (a->type == WIRE_WELCOME || a->type == WIRE_STATE) {
        c->streaming = true;
        c->seen = 0;
    }
    return true;
}

/* One frame: changes in the order of their revisions, an answer when every change before it has gone out. */
static bool send_next(struct store_server *server, struct connection *c)
{
    const struct answer *answer = c->answers ? &c->answer[c->first] : NULL;
    const struct store_key *change = c->streaming ? store_keys_after(&server->keys, c->seen) : NULL;
    if (answer && !(change && change->revision <= answer->after))
        return send_answer(server, c, answer);
    return change && send_change(server, c, change);
}

/* A connection without room for answers is not read: whoever asks without listening blocks only itself. */
static uint32_t connection_wants(const struct connection *c)
{
    uint32_t events = c->blocked ? EPOLLOUT : 0;
    if (c->answers + ANSWERS_PER_FRAME <= CONNECTION_MAX_ANSWERS)
        events |= EPOLLIN;
    return events;
}

void connection_write(struct store_server *server, struct connection *c)
{
    while (!c->broken && !c->blocked && send_next(server, c)) {
    }
    if (c->broken)
        c->answers = 0;
    uint32_t events = connection_wants(c);
    if (events != c->armed)
        connection_watch(server, c, EPOLL_CTL_MOD, events);
}

/* ---- frames in: requests ---- */

static void reply(struct store_server *server, struct connection *c, const struct wire_frame *frame,
                  muster_status status, const struct store_key *key, bool with_value)
{
    connection_answer(c, &(struct answer){.type = WIRE_REPLY,
                                          .status = status,
                                          .request = frame->request,
                                          .after = server->keys.revision,
                                          .revision = key ? key->revision : 0,
                                          .key = key,
                                          .with_value = with_value,
                                          .number = !key,
                                          .peer = -1});
}

static void handle_get(struct store_server *server, struct connection *c, const struct wire_frame *frame,
                       struct socket_message *message)
{
    (void)message;
    struct store_key_name name;
    if (!store_key_parse(frame->key, frame->key_bytes, server->config.ranks, &name)) {
        connection_complain(c, "asked for \"%.*s\", which is no key", (int)frame->key_bytes, frame->key);
        reply(server, c, frame, MUSTER_ERR_ARGUMENT, NULL, false);
        return;
    }
    reply(server, c, frame, MUSTER_OK, store_keys_find(&server->keys, &name), true);
}

static bool view_is_acceptable(struct store_server *server, const struct wire_frame *frame)
{
    struct view next, now;
    const struct store_key *key = server->keys.view;
    int ranks = server->config.ranks;
    if (wire_get_view(frame->value, frame->value_bytes, ranks, &next) != 0)
        return false;
    return !key || wire_get_view(key->value, key->value_bytes, ranks, &now) != 0 || next.epoch >= now.epoch;
}

static bool record_is_acceptable(const struct connection *c, const struct wire_frame *frame)
{
    struct record record;
    return wire_get_record(frame->value, frame->value_bytes, &record) == 0 && record.incarnation == c->incarnation;
}

/* NULL, or why this client may not write this. One client's bad value must not become everybody's bad value. */
static const char *write_objection(struct store_server *server, const struct connection *c,
                                   const struct wire_frame *frame, const struct store_key_name *name)
{
    if (name->kind == KEY_PRESENCE || name->kind == KEY_FENCED)
        return "the store alone writes it";
    if (name->kind == KEY_VIEW && frame->type != WIRE_SWAP)
        return "it only moves by compare-and-swap";
    if (name->kind == KEY_VIEW)
        return view_is_acceptable(server, frame) ? NULL : "the value is no view, or its epoch goes back";
    if (name->rank != c->rank)
        return "it belongs to another rank";
    if (name->kind == KEY_MEMBER && !record_is_acceptable(c, frame))
        return "the value is no record of this incarnation";
    return NULL;
}

static bool is_fenced(const struct store_server *server, const struct connection *c)
{
    return c->incarnation <= server->holder[c->rank].fenced;
}

static bool swap_loses(const struct wire_frame *frame, const struct store_key *key)
{
    uint64_t revision = key && !key->gone ? key->revision : 0;
    return frame->type == WIRE_SWAP && frame->key_revision != revision;
}

static void write_key(struct store_server *server, struct connection *c, const struct wire_frame *frame,
                      const struct store_key_name *name)
{
    struct store_key *key = store_keys_find(&server->keys, name);
    if (swap_loses(frame, key)) {
        reply(server, c, frame, MUSTER_ERR_AGAIN, key, true);
        return;
    }
    key = store_keys_write(&server->keys, name, frame->value, frame->value_bytes);
    reply(server, c, frame, key ? MUSTER_OK : MUSTER_ERR_MEMORY, key, false);
}

static void handle_write(struct store_server *server, struct connection *c, const struct wire_frame *frame,
                         struct socket_message *message)
{
    (void)message;
    if (is_fenced(server, c)) {
        reply(server, c, frame, MUSTER_ERR_EVICTED, NULL, false);
        return;
    }
    struct store_key_name name;
    const char *objection = "no key has this name";
    if (store_key_parse(frame->key, frame->key_bytes, server->config.ranks, &name))
        objection = write_objection(server, c, frame, &name);
    if (!objection) {
        write_key(server, c, frame, &name);
        return;
    }
    connection_complain(c, "refused %s of \"%.*s\": %s", wire_type_name(frame->type), (int)frame->key_bytes, frame->key,
                        objection);
    reply(server, c, frame, MUSTER_ERR_ARGUMENT, NULL, false);
}

static void handle_again(struct store_server *server, struct connection *c, const struct wire_frame *frame,
                         struct socket_message *message)
{
    (void)message;
    connection_answer(c, &(struct answer){.type = WIRE_STATE, .request = frame->request, .peer = -1});
    reply(server, c, frame, MUSTER_OK, NULL, false);
}

static void handle_leave(struct store_server *server, struct connection *c, const struct wire_frame *frame,
                         struct socket_message *message)
{
    (void)frame;
    (void)message;
    ranks_leave(server, c);
}

static bool names_a_peer(const struct store_server *server, const struct wire_frame *frame)
{
    return frame->peer >= 0 && frame->peer < server->config.ranks && frame->peer_incarnation > 0;
}

static void handle_fence(struct store_server *server, struct connection *c, const struct wire_frame *frame,
                         struct socket_message *message)
{
    (void)message;
    if (names_a_peer(server, frame) && !is_fenced(server, c))
        ranks_fence(server, frame->peer, frame->peer_incarnation);
    else
        connection_complain(c, "refused to fence rank %d, incarnation %u", frame->peer, frame->peer_incarnation);
}

static void handle_share(struct store_server *server, struct connection *c, const struct wire_frame *frame,
                         struct socket_message *message)
{
    (void)frame;
    if (message->fd < 0 || is_fenced(server, c)) {
        connection_complain(c, "refused its memory: %s", message->fd < 0 ? "no descriptor came" : "it is fenced");
        return;
    }
    ranks_share(server, c, message->fd);
    message->fd = -1;
}

static void handle_ask(struct store_server *server, struct connection *c, const struct wire_frame *frame,
                       struct socket_message *message)
{
    (void)message;
    if (!names_a_peer(server, frame)) {
        connection_complain(c, "asked for the memory of rank %d, incarnation %u", frame->peer, frame->peer_incarnation);
        return;
    }
    connection_answer(c, &(struct answer){.type = WIRE_MEMORY,
                                          .request = frame->request,
                                          .peer = frame->peer,
                                          .peer_incarnation = frame->peer_incarnation});
}

static void handle_ping(struct store_server *server, struct connection *c, const struct wire_frame *frame,
                        struct socket_message *message)
{
    (void)server;
    (void)message;
    connection_answer(c, &(struct answer){.type = WIRE_PONG, .request = frame->request, .peer = -1});
}

typedef void handler(struct store_server *server, struct connection *c, const struct wire_frame *frame,
                     struct socket_message *message);

static handler *const handlers[WIRE_TYPES] = {
    [WIRE_GET] = handle_get,     [WIRE_PUT] = handle_write,   [WIRE_SWAP] = handle_write,
    [WIRE_AGAIN] = handle_again, [WIRE_LEAVE] = handle_leave, [WIRE_FENCE] = handle_fence,
    [WIRE_SHARE] = handle_share, [WIRE_ASK] = handle_ask,     [WIRE_PING] = handle_ping,
};

/* NULL, or why nothing that this client says can be believed. */
static const char *request_objection(const struct store_server *server, const struct connection *c,
                                     const struct wire_frame *frame)
{
    if (c->rank < 0)
        return "it has not said hello";
    if (frame->type == WIRE_HELLO)
        return "it says hello twice";
    if (!handlers[frame->type])
        return "a client does not send this";
    if (frame->store_id != server->id)
        return "it means another store";
    if (frame->rank != c->rank || frame->incarnation != c->incarnation)
        return "it speaks for another rank or incarnation";
    if (frame->request <= c->last_request)
        return "its request number goes back";
    if (frame->revision < c->last_revision || frame->revision > server->keys.revision)
        return "the revision that it claims to know goes back, or is of the future";
    return NULL;
}

/* False: the connection was closed. */
static bool connection_reject(struct store_server *server, struct connection *c, const char *what, const char *reason)
{
    log_line(LOG_LEVEL_WARN, "store: closed the connection of rank %d (process %d): %s refused: %s", c->rank,
             (int)c->pid, what, reason);
    connection_close(server, c);
    return false;
}

static bool connection_handle(struct store_server *server, struct connection *c, const struct wire_frame *frame,
                              struct socket_message *message)
{
    if (c->rank < 0 && frame->type == WIRE_HELLO) {
        ranks_hello(server, c, frame, message);
        return c->fd >= 0;
    }
    const char *reason = request_objection(server, c, frame);
    if (reason)
        return connection_reject(server, c, wire_type_name(frame->type), reason);
    if (message->pid != c->pid) { /* a child that inherited the socket: not the rank's doing, so not its end */
        connection_complain(c, "ignored a frame of process %d", (int)message->pid);
        return true;
    }
    c->last_request = frame->request;
    c->last_revision = frame->revision;
    handlers[frame->type](server, c, frame, message);
    return true;
}

/* False: the connection was closed. */
static bool connection_take(struct store_server *server, struct connection *c, const unsigned char *bytes,
                            struct socket_message *message)
{
    struct wire_frame frame;
    const char *reason = message->cut ? "it is too long, or carries too many descriptors"
                                      : wire_get_frame(bytes, message->bytes, &frame);
    if (reason)
        return connection_reject(server, c, "a frame", reason);
    return connection_handle(server, c, &frame, message);
}

/* One frame; false: there is none now, or the connection was closed. */
static bool connection_read_one(struct store_server *server, struct connection *c)
{
    unsigned char bytes[WIRE_MAX_FRAME];
    struct socket_message message;
    if (socket_receive(c->fd, bytes, sizeof bytes, &message) != 0) {
        if (errno == ECONNRESET)
            return true; /* it closed without having read all; what it sent before is still to come */
        if (errno != EAGAIN)
            connection_close(server, c);
        return false;
    }
    bool open = false;
    if (message.bytes)
        open = connection_take(server, c, bytes, &message);
    else
        connection_close(server, c);
    if (message.fd >= 0)
        close(message.fd);
    return open;
}

void connection_read(struct store_server *server, struct connection *c)
{
    for (int i = 0; i < FRAMES_PER_TURN && c->answers + ANSWERS_PER_FRAME <= CONNECTION_MAX_ANSWERS; i++)
        if (!connection_read_one(server, c))
            return;
}

void connection_drain(struct store_server *server, struct connection *c)
{
    c->broken = true; /* nobody is left to answer */
    c->answers = 0;
    for (int i = 0; i < FRAMES_TO_DRAIN && c->rank >= 0; i++)
        if (!connection_read_one(server, c))
            return;
}
