// SPDX-License-Identifier: Apache-2.0
/* A client of the embedded store: one socket, no thread of its own. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "control/store_client.h"
#include "core/clock.h"
#include "core/log.h"

enum {
    QUEUE_MAX = 1024, /* requests that a full socket holds back; more: the store does not read any more */
    FLUSH_AGAIN_NS = 1000000, /* until the next try while requests are held back */
    BEATS_PER_LEASE = 3, /* pings */
    CLOSE_FLUSH_NS = 500000000 /* how long close() waits for requests that are held back to go out */
};

static struct embedded *embedded_of(struct store *s)
{
    return (struct embedded *)s;
}

static void embedded_lose(struct embedded *e, const char *reason)
{
    if (!e->lost)
        log_line(LOG_LEVEL_WARN, "store: lost: %s", reason);
    e->lost = true;
}

/* ---- requests ---- */

static void queue_drop_first(struct embedded *e)
{
    struct queued *first = e->queue;
    e->queue = first->next;
    if (!e->queue)
        e->queue_end = &e->queue;
    e->queued--;
    if (first->passed >= 0)
        close(first->passed);
    free(first);
}

static void queue_append(struct embedded *e, const unsigned char *frame, size_t bytes, int passed)
{
    struct queued *q = e->queued < QUEUE_MAX ? malloc(sizeof *q + bytes) : NULL;
    if (!q) {
        embedded_lose(e, "it does not take requests any more");
        return;
    }
    int kept = passed < 0 ? -1 : fcntl(passed, F_DUPFD_CLOEXEC, 0);
    if (passed >= 0 && kept < 0) {
        embedded_lose(e, "no descriptor is left (ulimit -n) to pass on what it does not take now");
        free(q);
        return;
    }
    *q = (struct queued){.passed = kept, .bytes = bytes};
    memcpy(q->frame, frame, bytes);
    *e->queue_end = q;
    e->queue_end = &q->next;
    e->queued++;
}

/* True when the frame is out of our hands: sent, or bound for a store that is gone, which reading will show. */
static bool embedded_try(struct embedded *e, const unsigned char *frame, size_t bytes, int passed)
{
    return socket_send(e->fd, frame, bytes, passed) == 0 || errno != EAGAIN;
}

void embedded_flush(struct embedded *e)
{
    while (e->queue && embedded_try(e, e->queue->frame, e->queue->bytes, e->queue->passed))
        queue_drop_first(e);
}

uint64_t embedded_send(struct embedded *e, struct wire_frame *frame, int passed)
{
    unsigned char bytes[WIRE_MAX_FRAME];
    frame->request = ++e->last_request;
    frame->store_id = e->store_id;
    frame->revision = e->revision;
    frame->rank = e->store.welcome.rank;
    frame->incarnation = e->store.welcome.incarnation;
    size_t size = wire_put_frame(frame, bytes);
    if (e->lost && frame->type != WIRE_LEAVE)
        return frame->request;
    if (e->queue || !embedded_try(e, bytes, size, passed))
        queue_append(e, bytes, size, passed); /* behind the others, or requests would overtake each other */
    return frame->request;
}

/* A key or value that no frame can hold would only be a mistake of the caller: it goes out empty and is refused. */
static void frame_set(struct wire_frame *frame, const char *key, const void *value, size_t bytes)
{
    frame->key = key;
    frame->key_bytes = strlen(key) < STORE_MAX_KEY ? strlen(key) : 0;
    frame->value = value;
    frame->value_bytes = bytes <= STORE_MAX_VALUE ? bytes : 0;
    if (bytes > STORE_MAX_VALUE)
        frame->key_bytes = 0;
}

static uint64_t embedded_get(struct store *s, const char *key)
{
    struct wire_frame frame = {.type = WIRE_GET, .peer = -1};
    frame_set(&frame, key, NULL, 0);
    return embedded_send(embedded_of(s), &frame, -1);
}

static uint64_t embedded_put(struct store *s, const char *key, const void *value, size_t bytes)
{
    struct wire_frame frame = {.type = WIRE_PUT, .peer = -1};
    frame_set(&frame, key, value, bytes);
    return embedded_send(embedded_of(s), &frame, -1);
}

static uint64_t embedded_remove(struct store *s, const char *key)
{
    struct wire_frame frame = {.type = WIRE_REMOVE, .peer = -1};
    frame_set(&frame, key, NULL, 0);
    return embedded_send(embedded_of(s), &frame, -1);
}

static uint64_t embedded_swap(struct store *s, const char *key, uint64_t revision, const void *value, size_t bytes)
{
    struct wire_frame frame = {.type = WIRE_SWAP, .peer = -1, .key_revision = revision};
    frame_set(&frame, key, value, bytes);
    return embedded_send(embedded_of(s), &frame, -1);
}

static uint64_t embedded_watch_again(struct store *s)
{
    return embedded_send(embedded_of(s), &(struct wire_frame){.type = WIRE_AGAIN, .peer = -1}, -1);
}

/* Said even to a store that was lost: if it still serves, our exit must not look like a death to the others. */
static void embedded_leave(struct store *s)
{
    embedded_of(s)->left = true;
    embedded_send(embedded_of(s), &(struct wire_frame){.type = WIRE_LEAVE, .peer = -1}, -1);
}

static void embedded_fence(struct store *s, int32_t rank, uint32_t incarnation)
{
    struct wire_frame frame = {.type = WIRE_FENCE, .peer = rank, .peer_incarnation = incarnation};
    embedded_send(embedded_of(s), &frame, -1);
}

static void embedded_share_memory(struct store *s, int fd)
{
    embedded_send(embedded_of(s), &(struct wire_frame){.type = WIRE_SHARE, .peer = -1}, fd);
}

static void embedded_ask_memory(struct store *s, int32_t rank, uint32_t incarnation)
{
    struct wire_frame frame = {.type = WIRE_ASK, .peer = rank, .peer_incarnation = incarnation};
    embedded_send(embedded_of(s), &frame, -1);
}

/* ---- keep-alive ---- */

static uint64_t embedded_beat_ns(const struct embedded *e)
{
    return e->lease_ns / BEATS_PER_LEASE;
}

/*
 * Only an unanswered ping tells that the store is gone, and only to a process that was itself running: after a long
 * pause of ours the time starts anew.
 */
static void embedded_beat(struct embedded *e, uint64_t now_ns)
{
    if (now_ns > e->polled_ns + e->lease_ns / 2)
        e->heard_ns = now_ns;
    e->polled_ns = now_ns;
    if (!e->ping_sent_ns && now_ns >= e->ping_next_ns) {
        e->ping_sent_ns = now_ns;
        embedded_send(e, &(struct wire_frame){.type = WIRE_PING, .peer = -1}, -1);
    }
}

/* Called when everything that had come has been read. */
static void embedded_check_lease(struct embedded *e, uint64_t now_ns)
{
    uint64_t since = e->heard_ns > e->ping_sent_ns ? e->heard_ns : e->ping_sent_ns;
    if (e->ping_sent_ns && now_ns > since && now_ns - since >= e->lease_ns)
        embedded_lose(e, "it has said nothing for a whole lease");
}

static uint64_t embedded_next_ns(const struct store *s)
{
    const struct embedded *e = (const struct embedded *)s;
    if (e->lost)
        return e->told ? UINT64_MAX : 0;
    uint64_t next = e->polled_ns + embedded_beat_ns(e);
    if (!e->ping_sent_ns && e->ping_next_ns < next)
        next = e->ping_next_ns;
    return e->queue ? e->polled_ns + FLUSH_AGAIN_NS : next;
}

/* ---- what the store says ---- */

/* NULL, or why this store cannot be believed any more. */
static const char *frame_objection(const struct embedded *e, const struct wire_frame *frame)
{
    if (frame->store_id != e->store_id)
        return "it is another one";
    if (frame->rank != e->store.welcome.rank || frame->incarnation != e->store.welcome.incarnation)
        return "it takes us for another rank or incarnation";
    if (frame->revision < e->revision || frame->key_revision > frame->revision)
        return "it went back in time";
    if (frame->type == WIRE_CHANGE && frame->key_revision <= e->seen)
        return "its changes went back in time";
    return NULL;
}

static void event_take(struct store_event *event, enum store_event_type type, const struct wire_frame *frame)
{
    event->type = type;
    event->id = frame->request;
    event->status = frame->status;
    event->revision = frame->key_revision;
    event->gone = frame->number != 0;
    event->rank = frame->peer;
    event->incarnation = frame->peer_incarnation;
    event->value_bytes = frame->value_bytes;
    memcpy(event->key, frame->key, frame->key_bytes);
    event->key[frame->key_bytes] = 0;
    memcpy(event->value, frame->value, frame->value_bytes);
}

/* True when the frame is an event for the caller. */
static bool embedded_take(struct embedded *e, const struct wire_frame *frame, struct store_event *event)
{
    switch (frame->type) {
    case WIRE_PONG:
        e->ping_sent_ns = 0;
        e->ping_next_ns = e->polled_ns + embedded_beat_ns(e);
        return false;
    case WIRE_STATE: e->seen = 0; return false;
    case WIRE_CHANGE:
        e->seen = frame->key_revision;
        event_take(event, STORE_CHANGE, frame);
        return true;
    case WIRE_REPLY: event_take(event, STORE_REPLY, frame); return true;
    case WIRE_MEMORY: event_take(event, STORE_MEMORY, frame); return true;
    case WIRE_REFUSED: return false; /* a hello that another process sent over our socket */
    default: embedded_lose(e, "it says what no store says"); return false;
    }
}

/* The bytes of one message. True when they are an event for the caller. */
static bool embedded_understand(struct embedded *e, const struct socket_message *message, struct store_event *event)
{
    struct wire_frame frame;
    const char *reason = message->bytes ? wire_get_frame(e->frame, message->bytes, &frame) : "it closed the connection";
    if (!reason)
        reason = frame_objection(e, &frame);
    if (reason) {
        embedded_lose(e, reason);
        return false;
    }
    e->revision = frame.revision;
    e->heard_ns = e->polled_ns;
    return embedded_take(e, &frame, event);
}

/* Reads one message; *event tells whether there is more to do. False: there was none. */
static bool embedded_read(struct embedded *e, struct store_event *event)
{
    struct socket_message message;
    if (socket_receive(e->fd, e->frame, sizeof e->frame, &message) != 0) {
        if (errno == ECONNRESET)
            return true;
        if (errno == EBADF || errno == ENOTSOCK)
            embedded_lose(e, "this program has closed its descriptor (close_range, closefrom)");
        else if (errno != EAGAIN)
            embedded_lose(e, strerror(errno));
        return false;
    }
    bool taken = embedded_understand(e, &message, event);
    if (taken && event->type == STORE_MEMORY) {
        event->fd = message.fd;
        event->status = message.descriptor_lost ? MUSTER_ERR_SYSTEM : MUSTER_OK;
    } else if (message.fd >= 0)
        close(message.fd);
    return true;
}

static void embedded_poll(struct store *s, uint64_t now_ns, struct store_event *event)
{
    struct embedded *e = embedded_of(s);
    event->type = STORE_NOTHING;
    event->fd = -1;
    if (!e->lost) {
        embedded_beat(e, now_ns);
        embedded_flush(e);
    }
    while (!e->lost && event->type == STORE_NOTHING && embedded_read(e, event)) {
    }
    if (!e->lost && event->type == STORE_NOTHING)
        embedded_check_lease(e, now_ns);
    if (!e->lost || e->told)
        return;
    e->told = true;
    event->type = STORE_LOST;
}

static int embedded_fd(const struct store *s)
{
    return ((const struct embedded *)s)->fd;
}

/* ---- life ---- */

void embedded_free(struct embedded *e)
{
    while (e->queue)
        queue_drop_first(e);
    if (e->fd >= 0 && !e->inherited)
        close(e->fd);
    free(e);
}

/* A leave that is still held back must get out, or this process would count as having broken off. */
static void embedded_flush_before_close(struct embedded *e)
{
    uint64_t deadline_ns = clock_ns() + CLOSE_FLUSH_NS;
    embedded_flush(e);
    while (e->queue && !e->lost && clock_ns() < deadline_ns) {
        struct pollfd writable = {.fd = e->fd, .events = POLLOUT};
        poll(&writable, 1, STORE_RETRY_MS);
        embedded_flush(e);
    }
}

/*
 * An inherited descriptor stays open after a leave: the next group of this process, or the next program of a wrapper
 * script, says hello over it again. Without a leave the connection is broken off for all who share it.
 */
static void embedded_close(struct store *s)
{
    struct embedded *e = embedded_of(s);
    embedded_flush_before_close(e);
    if (!e->left)
        shutdown(e->fd, SHUT_RDWR);
    embedded_free(e);
}

static const struct store_ops embedded_ops = {
    .size = sizeof(struct store_ops),
    .name = "embedded",
    .close = embedded_close,
    .fd = embedded_fd,
    .next_ns = embedded_next_ns,
    .poll = embedded_poll,
    .get = embedded_get,
    .put = embedded_put,
    .remove = embedded_remove,
    .swap = embedded_swap,
    .watch_again = embedded_watch_again,
    .leave = embedded_leave,
    .fence = embedded_fence,
    .share_memory = embedded_share_memory,
    .ask_memory = embedded_ask_memory,
};

struct embedded *embedded_create(void)
{
    struct embedded *e = calloc(1, sizeof *e);
    if (!e)
        return NULL;
    e->store.ops = &embedded_ops;
    e->fd = -1;
    e->queue_end = &e->queue;
    e->last_request = clock_ns(); /* above what an earlier user of an inherited connection has used */
    return e;
}

void embedded_take_welcome(struct embedded *e, const struct wire_frame *frame)
{
    e->store_id = frame->store_id;
    e->revision = frame->revision;
    e->store.welcome.incarnation = frame->incarnation;
    e->lease_ns = clock_ns_of_us(frame->number);
    e->polled_ns = e->heard_ns = clock_ns();
    e->ping_next_ns = e->polled_ns + embedded_beat_ns(e);
}
