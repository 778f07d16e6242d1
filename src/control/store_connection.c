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

static struct connection *free_slot(struct store_server *server)
{
    for (int i = 0; i < STORE_MAX_CONNECTIONS; i++)
        if (server->connection[i].fd < 0)
            return &server->connection[i];
    return NULL;
}

/* Some of the nameless may have closed, which has only not been read yet. */
static void read_nameless(struct store_server *server)
{
    for (int i = 0; i < STORE_MAX_CONNECTIONS; i++)
        if (server->connection[i].fd >= 0 && server->connection[i].rank < 0)
            connection_read(server, &server->connection[i]);
}

/* The eldest of those that came through the listener and have never said hello makes room. */
static struct connection *evict_nameless(struct store_server *server)
{
    struct connection *eldest = NULL;
    for (int i = 0; i < STORE_MAX_CONNECTIONS; i++) {
        struct connection *c = &server->connection[i];
        if (c->accepted && c->rank < 0 && (!eldest || c->age < eldest->age))
            eldest = c;
    }
    if (eldest)
        connection_close(server, eldest);
    return eldest;
}

static struct connection *connection_slot(struct store_server *server)
{
    struct connection *c = free_slot(server);
    if (c)
        return c;
    read_nameless(server);
    c = free_slot(server);
    return c ? c : evict_nameless(server);
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

/* Where nobody is left to listen, somebody else may still have said hello: the refusal is what he waits for. */
void connection_answer(struct connection *c, const struct answer *answer)
{
    if (c->broken && answer->type != WIRE_REFUSED)
        return;
    if (c->answers == CONNECTION_MAX_ANSWERS)
        return; /* cannot be: nothing is read from a connection without room for its answers */
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

/* ---- frames in ---- */

/* False: the connection was closed. */
static bool connection_reject(struct store_server *server, struct connection *c, const char *what, const char *reason)
{
    log_line(LOG_LEVEL_WARN, "store: closed the connection of rank %d (process %d): %s refused: %s", c->rank,
             (int)c->pid, what, reason);
    connection_close(server, c);
    return false;
}

/*
 * A process other than the one that holds the rank, over the same inherited socket: a forked child, or the next program
 * of a wrapper script. Only its hello is listened to; nothing that it says is the holder's doing, so not its end.
 */
static bool is_stranger(const struct connection *c, const struct socket_message *message)
{
    return c->rank >= 0 && message->pid != c->pid;
}

static bool connection_handle(struct store_server *server, struct connection *c, const struct wire_frame *frame,
                              struct socket_message *message)
{
    if (frame->type == WIRE_HELLO && (c->rank < 0 || is_stranger(c, message))) {
        ranks_hello(server, c, frame, message);
        return c->fd >= 0;
    }
    const char *reason = requests_objection(server, c, frame);
    if (reason)
        return connection_reject(server, c, wire_type_name(frame->type), reason);
    c->last_request = frame->request;
    c->last_revision = frame->revision;
    requests_handle(server, c, frame, message);
    return true;
}

/* NULL and the frame, or why it is refused. */
static const char *frame_take(const unsigned char *bytes, const struct socket_message *message,
                              struct wire_frame *frame)
{
    if (message->cut)
        return "it is too long, or carries too many descriptors";
    if (message->descriptor_lost)
        return "the store has no descriptor left for what came with it; the limit of open files (ulimit -n) is too low";
    return wire_get_frame(bytes, message->bytes, frame);
}

/* False: the connection was closed. */
static bool connection_take(struct store_server *server, struct connection *c, const unsigned char *bytes,
                            struct socket_message *message)
{
    struct wire_frame frame = {.type = WIRE_PING};
    const char *reason = frame_take(bytes, message, &frame);
    if (is_stranger(c, message) && (reason || frame.type != WIRE_HELLO)) {
        connection_complain(c, "ignored a frame of process %d", (int)message->pid);
        return true;
    }
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

void connection_drop_answers(struct connection *c)
{
    int kept = 0;
    for (int i = 0; i < c->answers; i++) {
        struct answer answer = c->answer[(c->first + i) % CONNECTION_MAX_ANSWERS];
        if (answer.type == WIRE_REFUSED)
            c->answer[(c->first + kept++) % CONNECTION_MAX_ANSWERS] = answer;
    }
    c->answers = kept;
}

void connection_drain(struct store_server *server, struct connection *c)
{
    c->broken = true; /* nobody is left to answer */
    connection_drop_answers(c);
    for (int i = 0; i < FRAMES_TO_DRAIN && c->rank >= 0; i++)
        if (!connection_read_one(server, c))
            return;
}
