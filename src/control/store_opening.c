// SPDX-License-Identifier: Apache-2.0
/* How a connection to the embedded store is opened: the socket, the hello, and what may come instead of a welcome. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "control/store_client.h"
#include "core/clock.h"
#include "core/error.h"
#include "core/log.h"
#include "core/number.h"

enum { ALTERNATIVE_BYTES = 128 };

#define TELL_NS UINT64_C(3000000000) /* a wait that lasts longer is told: it may last a minute */

/* What is tried until when, and what stood in the way last. */
struct opening {
    char where[ALTERNATIVE_BYTES]; /* one of the alternatives */
    bool first; /* nothing else was tried before it */
    uint64_t deadline_ns;
    uint64_t tell_ns; /* UINT64_MAX: it has been told */
    bool unreachable; /* there is no way to the store here; otherwise the store itself has answered */
    char obstacle[192];
};

static bool time_is_up(const struct opening *o)
{
    return clock_ns() >= o->deadline_ns;
}

static const char *obstacle(const struct opening *o)
{
    return *o->obstacle ? o->obstacle : "it does not answer";
}

/* Once, to whoever wonders why nothing happens. */
static void tell_wait(struct opening *o)
{
    uint64_t now_ns = clock_ns();
    if (now_ns < o->tell_ns || now_ns >= o->deadline_ns)
        return;
    o->tell_ns = UINT64_MAX;
    log_line(LOG_LEVEL_WARN, "store \"%s\" is waited for: %s; at most %llu s more", o->where, obstacle(o),
             (unsigned long long)((o->deadline_ns - now_ns) / 1000000000 + 1));
}

/* A descriptor number from the environment may by now be something else of this process: it is looked at first. */
static bool is_store_socket(int fd)
{
    int domain = 0, type = 0;
    socklen_t size = sizeof domain;
    return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0 && domain == AF_UNIX &&
           getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == SOCK_SEQPACKET;
}

static muster_status open_inherited(struct embedded *e, struct opening *o)
{
    uint64_t fd;
    if (!number_parse(o->where + strlen("fd:"), 0, INT32_MAX, &fd))
        return error_set(MUSTER_ERR_ARGUMENT, "store \"%s\": a descriptor number must follow \"fd:\"", o->where);
    if (!is_store_socket((int)fd)) {
        o->unreachable = true;
        return error_set(
            MUSTER_ERR_ARGUMENT,
            "store \"%s\" is not an open connection to a store in this process: what started it has closed the "
            "descriptors that it inherited (Python's subprocess does, unless pass_fds names them)",
            o->where);
    }
    e->fd = (int)fd;
    e->inherited = true;
    fcntl(e->fd, F_SETFD, FD_CLOEXEC); /* what this process starts is not this rank */
    return MUSTER_OK;
}

static bool connect_once(struct embedded *e, struct opening *o, const struct sockaddr_un *address, socklen_t length)
{
    e->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (e->fd >= 0 && connect(e->fd, (const struct sockaddr *)address, length) == 0)
        return true;
    int saved = errno;
    snprintf(o->obstacle, sizeof o->obstacle, "%s", strerror(saved));
    if (e->fd >= 0)
        close(e->fd);
    e->fd = -1;
    errno = saved;
    return false;
}

/*
 * The store may not have been started yet, or have many who come at once. Who was handed a socket, and has lost it, was
 * started after the store.
 */
static bool may_be_reached_later(const struct opening *o)
{
    return errno == EAGAIN || errno == EINTR || (errno == ECONNREFUSED && o->first);
}

static muster_status open_named(struct embedded *e, struct opening *o)
{
    struct sockaddr_un address;
    socklen_t length;
    if (!socket_address(o->where + strlen("unix:@"), &address, &length))
        return error_set(MUSTER_ERR_ARGUMENT, "store \"%s\": a name of 1 to %zu characters must follow \"unix:@\"",
                         o->where, sizeof address.sun_path - 1);
    while (!connect_once(e, o, &address, length)) {
        if (!may_be_reached_later(o) || time_is_up(o)) {
            o->unreachable = true;
            return error_set(time_is_up(o) ? MUSTER_ERR_TIMEOUT : MUSTER_ERR_STORE,
                             "store \"%s\" cannot be reached: %s", o->where, o->obstacle);
        }
        tell_wait(o);
        poll(NULL, 0, STORE_RETRY_MS);
    }
    *o->obstacle = 0; /* it is reached */
    if (socket_peer_is_us(e->fd))
        return MUSTER_OK;
    return error_set(MUSTER_ERR_STORE, "store \"%s\" belongs to another user", o->where);
}

static muster_status open_socket(struct embedded *e, struct opening *o)
{
    if (strncmp(o->where, "fd:", strlen("fd:")) == 0)
        return open_inherited(e, o);
    if (strncmp(o->where, "unix:@", strlen("unix:@")) == 0)
        return open_named(e, o);
    return error_set(MUSTER_ERR_ARGUMENT, "store \"%s\" must be \"fd:N\" or \"unix:@NAME\"", o->where);
}

static uint64_t send_hello(struct embedded *e, int32_t rank, int32_t ranks)
{
    e->store.welcome = (struct store_welcome){.rank = rank, .ranks = ranks};
    return embedded_send(e, &(struct wire_frame){.type = WIRE_HELLO, .peer = -1, .number = (uint64_t)ranks}, -1);
}

/*
 * Waits for the answer to `request`. What an earlier user of an inherited connection left unread, damaged or not, is
 * skipped. False: none came in time, or the connection ended (bytes = 0).
 */
static bool await_answer(struct embedded *e, struct opening *o, uint64_t request, struct wire_frame *answer,
                         struct socket_message *message)
{
    message->bytes = 1;
    while (!time_is_up(o)) {
        embedded_flush(e);
        if (socket_receive(e->fd, e->frame, sizeof e->frame, message) != 0) {
            struct pollfd readable = {.fd = e->fd, .events = POLLIN};
            poll(&readable, 1, STORE_RETRY_MS);
            tell_wait(o);
            continue;
        }
        if (message->fd >= 0)
            close(message->fd);
        if (!message->bytes)
            return false;
        if (!wire_get_frame(e->frame, message->bytes, answer) && answer->request == request &&
            (answer->type == WIRE_WELCOME || answer->type == WIRE_REFUSED))
            return true;
    }
    return false;
}

/* One hello and its answer. AGAIN: refused for now. */
static muster_status greet(struct embedded *e, struct opening *o, int32_t rank, int32_t ranks)
{
    struct wire_frame answer;
    struct socket_message message;
    if (!await_answer(e, o, send_hello(e, rank, ranks), &answer, &message)) {
        o->unreachable = !message.bytes;
        if (!message.bytes)
            return error_set(MUSTER_ERR_STORE, "store \"%s\" closed the connection of rank %d", o->where, rank);
        return MUSTER_ERR_AGAIN;
    }
    if (answer.type == WIRE_WELCOME) {
        embedded_take_welcome(e, &answer);
        return MUSTER_OK;
    }
    snprintf(o->obstacle, sizeof o->obstacle, "%.*s", (int)answer.value_bytes, (const char *)answer.value);
    if (answer.number)
        return MUSTER_ERR_AGAIN;
    return error_set(MUSTER_ERR_STORE, "store \"%s\" refused rank %d: %s", o->where, rank, o->obstacle);
}

/* The former holder of the rank may still be about to exit, so a refusal for now is tried again. */
static muster_status greet_until(struct embedded *e, struct opening *o, int32_t rank, int32_t ranks)
{
    for (;;) {
        muster_status status = greet(e, o, rank, ranks);
        if (status != MUSTER_ERR_AGAIN)
            return status;
        if (time_is_up(o))
            return error_set(MUSTER_ERR_TIMEOUT, "store \"%s\" did not welcome rank %d in time: %s", o->where, rank,
                             obstacle(o));
        tell_wait(o);
        poll(NULL, 0, STORE_RETRY_MS);
    }
}

static muster_status open_one(struct opening *o, int32_t rank, int32_t ranks, struct store **store)
{
    struct embedded *e = embedded_create();
    if (!e)
        return error_set(MUSTER_ERR_MEMORY, "out of memory for a connection to the store");
    muster_status status = open_socket(e, o);
    if (status == MUSTER_OK)
        status = greet_until(e, o, rank, ranks);
    if (status == MUSTER_OK)
        *store = &e->store;
    else
        embedded_free(e);
    return status;
}

/* Takes the next alternative of a list with commas; false when there is none, or it is too long. */
static bool next_alternative(const char **list, char where[ALTERNATIVE_BYTES])
{
    size_t length = strcspn(*list, ",");
    if (length >= ALTERNATIVE_BYTES)
        return false;
    memcpy(where, *list, length);
    where[length] = 0;
    *list += length + ((*list)[length] == ',');
    return true;
}

/* In their order, until the store has answered. What each one said stands in the error, the first one first. */
muster_status store_embedded_open(const char *where, int32_t rank, int32_t ranks, uint64_t timeout_us,
                                  struct store **store)
{
    char said[512] = "";
    struct opening o = {.first = true, .deadline_ns = clock_ns_after_us(timeout_us), .tell_ns = clock_ns() + TELL_NS};
    for (;;) {
        if (!next_alternative(&where, o.where))
            return error_set(MUSTER_ERR_ARGUMENT, "store \"%s\": at most %d characters are allowed", where,
                             ALTERNATIVE_BYTES - 1);
        o.unreachable = false;
        muster_status status = open_one(&o, rank, ranks, store);
        if (status == MUSTER_OK)
            return MUSTER_OK;
        size_t used = strlen(said);
        snprintf(said + used, sizeof said - used, "%s%s", used ? "; " : "", muster_last_error());
        if (!o.unreachable || !*where)
            return error_set(status, "%s", said);
        o.first = false;
    }
}
