// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/pidfd.h>
#include <unistd.h>

#include "control/store_serving.h"
#include "core/log.h"

void ranks_init(struct store_server *server)
{
    for (int r = 0; r < MUSTER_MAX_RANKS; r++)
        server->holder[r].pidfd = server->holder[r].memory = -1;
}

static void close_if_open(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

void ranks_free(struct store_server *server)
{
    for (int r = 0; r < MUSTER_MAX_RANKS; r++) {
        close_if_open(&server->holder[r].pidfd);
        close_if_open(&server->holder[r].memory);
    }
}

/* ---- the keys that the store alone writes ---- */

static struct store_key_name rank_key(const char *kind, int32_t rank)
{
    struct store_key_name name;
    char text[STORE_MAX_KEY];
    int length = snprintf(text, sizeof text, "%s/%d", kind, rank);
    store_key_parse(text, (size_t)length, MUSTER_MAX_RANKS, &name);
    return name;
}

static bool publish_fenced(struct store_server *server, int32_t rank)
{
    unsigned char value[STORE_MAX_VALUE];
    struct store_key_name name = rank_key("fenced", rank);
    return store_keys_write(&server->keys, &name, value, wire_put_fenced(server->holder[rank].fenced, value));
}

static bool publish_presence(struct store_server *server, int32_t rank)
{
    const struct holder *h = &server->holder[rank];
    unsigned char value[STORE_MAX_VALUE];
    struct store_key_name name = rank_key("presence", rank);
    struct presence presence = {.incarnation = h->incarnation, .pid = h->pid};
    return store_keys_write(&server->keys, &name, value, wire_put_presence(&presence, value));
}

static void end_presence(struct store_server *server, int32_t rank)
{
    struct holder *h = &server->holder[rank];
    if (!atomic_load(&h->present))
        return;
    atomic_store(&h->present, 0);
    store_keys_remove(&server->keys, server->keys.presence[rank]);
}

/*
 * The holder has exited or left for good. Its keys were given their room when it arrived, so these writes cannot fail
 * for want of memory: a death is always told.
 */
static void release(struct store_server *server, int32_t rank)
{
    struct holder *h = &server->holder[rank];
    close_if_open(&h->pidfd); /* leaves the epoll set with it */
    if (h->connection)
        connection_unname(h->connection);
    h->connection = NULL;
    h->fenced = h->incarnation;
    store_keys_remove_configs(&server->keys, rank); /* before anybody hears that the next process may come */
    publish_fenced(server, rank);
}

/* ---- hello ---- */

__attribute__((format(printf, 4, 5))) static void refuse(struct connection *c, const struct wire_frame *hello,
                                                         bool try_again, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(c->reason, sizeof c->reason, format, arguments);
    va_end(arguments);
    if (!try_again)
        log_line(LOG_LEVEL_WARN, "store: refused rank %d: %s", hello->rank, c->reason);
    connection_answer(
        c, &(struct answer){.type = WIRE_REFUSED, .request = hello->request, .number = try_again, .peer = -1});
}

static bool is_held(const struct store_server *server)
{
    for (int r = 0; r < MUSTER_MAX_RANKS; r++)
        if (server->holder[r].fenced != server->holder[r].incarnation)
            return true;
    return false;
}

/* The next job has another size: nobody is left to whom the keys of the last one mean anything. */
static void start_afresh(struct store_server *server, int32_t ranks)
{
    uint64_t revision = server->keys.revision;
    for (int i = 0; i < STORE_MAX_CONNECTIONS; i++)
        connection_drop_answers(&server->connection[i]); /* they name keys */
    store_keys_free(&server->keys);
    server->keys.ranks = server->config.ranks = ranks;
    server->keys.revision = revision;
    log_line(LOG_LEVEL_INFO, "store: serves a group of %d ranks from now on", ranks);
}

static void fit_size(struct store_server *server, const struct wire_frame *hello)
{
    bool other = hello->number != (uint64_t)server->config.ranks;
    bool sane = hello->number >= 1 && hello->number <= MUSTER_MAX_RANKS;
    if (server->config.resizes && other && sane && !is_held(server))
        start_afresh(server, (int32_t)hello->number);
}

/* False, and answered, when this hello cannot be welcomed whoever holds the rank. */
static bool hello_is_valid(struct store_server *server, struct connection *c, const struct wire_frame *hello,
                           const struct socket_message *message)
{
    int32_t ranks = server->config.ranks;
    if (message->pid < 1)
        refuse(c, hello, false, "the store cannot see the process (another pid namespace?)");
    else if (message->uid != geteuid())
        refuse(c, hello, false, "it belongs to user %u, the store to user %u", message->uid, geteuid());
    else if (hello->number != (uint64_t)ranks)
        refuse(c, hello, false, "it wants a group of %llu ranks, the store serves %d",
               (unsigned long long)hello->number, ranks);
    else if (hello->rank < 0 || hello->rank >= ranks)
        refuse(c, hello, false, "the rank is not in 0..%d", ranks - 1);
    else if (message->pid == getpid() && !server->config.inject_fences)
        refuse(c, hello, false, "a rank cannot live in the store's own process unless its fences are injected");
    else
        return true;
    return false;
}

/* Presence that was lost never returns under the same incarnation, and two processes never share a rank. */
static bool hello_finds_rank_free(struct store_server *server, struct connection *c, const struct wire_frame *hello)
{
    const struct holder *h = &server->holder[hello->rank];
    if (h->incarnation == UINT32_MAX) {
        refuse(c, hello, false, "the incarnation numbers of the rank are used up");
        return false;
    }
    if (h->fenced == h->incarnation)
        return true;
    if (atomic_load(&h->present))
        refuse(c, hello, true, "process %d holds the rank", (int)h->pid);
    else
        refuse(c, hello, true, "process %d, which held the rank, has not exited yet", (int)h->pid);
    return false;
}

/*
 * The pid names the sender only while the sender lives. Its socket closes before its pid can be used again, so a
 * connection that is still up after the pidfd was opened proves that the pidfd is the sender's.
 */
static int open_process(const struct connection *c, pid_t pid)
{
    int pidfd = pidfd_open(pid, 0);
    if (pidfd < 0)
        return -1;
    struct pollfd up = {.fd = c->fd};
    if (poll(&up, 1, 0) == 0)
        return pidfd;
    close(pidfd);
    errno = ESRCH;
    return -1;
}

/* The process is gone, and another may say hello over its connection; or something has run short, which may pass. */
static bool may_pass(int error)
{
    return error == ESRCH || error == EMFILE || error == ENFILE || error == ENOMEM || error == ENOSPC;
}

static void refuse_unwatched(struct connection *c, const struct wire_frame *hello, pid_t pid, const char *call)
{
    int error = errno;
    bool forbidden = error == EPERM || error == EACCES || error == ENOSYS;
    refuse(c, hello, may_pass(error), "process %d cannot be watched: %s: %s%s", (int)pid, call, strerror(error),
           forbidden ? " (the seccomp profile of a container must allow it)" : "");
    if (may_pass(error))
        connection_complain(c, "%s", c->reason);
}

/* NULL, or the call that failed, with errno. Whom its pidfd could not kill could not be fenced later either. */
static const char *watch_failure(struct store_server *server, const struct connection *c, int32_t rank, pid_t pid)
{
    struct holder *h = &server->holder[rank];
    h->pidfd = open_process(c, pid);
    if (h->pidfd < 0)
        return "pidfd_open";
    if (pidfd_send_signal(h->pidfd, 0, NULL, 0) != 0)
        return "pidfd_send_signal";
    if (server_watch(server, EPOLL_CTL_ADD, h->pidfd, EPOLLIN, WATCH_PROCESS, h->incarnation + 1, (uint32_t)rank) != 0)
        return "epoll_ctl";
    return NULL;
}

static bool watch_process(struct store_server *server, struct connection *c, const struct wire_frame *hello, pid_t pid)
{
    if (server->config.inject_fences)
        return true;
    const char *failed = watch_failure(server, c, hello->rank, pid);
    if (!failed)
        return true;
    refuse_unwatched(c, hello, pid, failed);
    close_if_open(&server->holder[hello->rank].pidfd);
    return false;
}

static void welcome(struct store_server *server, struct connection *c, const struct wire_frame *hello, pid_t pid)
{
    struct holder *h = &server->holder[hello->rank];
    close_if_open(&h->memory); /* nobody asks for an incarnation that has exited once there is a newer one */
    h->pid = pid;
    h->connection = c;
    c->rank = hello->rank;
    c->incarnation = ++h->incarnation;
    c->pid = pid;
    c->last_revision = 0;
    c->last_request = hello->request;
    connection_answer(c, &(struct answer){.type = WIRE_WELCOME,
                                          .request = hello->request,
                                          .number = server->config.lease_us,
                                          .peer = -1});
}

void ranks_hello(struct store_server *server, struct connection *c, const struct wire_frame *hello,
                 const struct socket_message *message)
{
    if (c->rank >= 0) {
        refuse(c, hello, true, "process %d still holds the connection", (int)c->pid);
        return;
    }
    if (message->uid == geteuid())
        fit_size(server, hello);
    if (!hello_is_valid(server, c, hello, message) || !hello_finds_rank_free(server, c, hello))
        return;
    if (!watch_process(server, c, hello, message->pid))
        return;
    int32_t rank = hello->rank;
    welcome(server, c, hello, message->pid);
    struct holder *h = &server->holder[rank];
    if (!publish_fenced(server, rank) || !publish_presence(server, rank)) {
        log_line(LOG_LEVEL_ERROR, "store: out of memory for the keys of rank %d", rank);
        connection_close(server, c);
        return;
    }
    atomic_store(&h->present, h->incarnation);
    server_tell(server, rank, h->incarnation, "arrived");
}

/* ---- the ends of a holder ---- */

void ranks_leave(struct store_server *server, struct connection *c)
{
    int32_t rank = c->rank;
    uint32_t incarnation = c->incarnation;
    if (server->holder[rank].connection != c) {
        connection_unname(c);
        return; /* fenced by injection; somebody else may hold the rank by now */
    }
    release(server, rank);
    end_presence(server, rank);
    server_tell(server, rank, incarnation, "left");
}

static void kill_process(const struct holder *h)
{
    if (h->pidfd >= 0)
        pidfd_send_signal(h->pidfd, SIGKILL, NULL, 0); /* fails only if it has exited, which the pidfd tells */
}

/*
 * Whether a process that has closed its files is not about to exit, which closes them too: a flag of its stat, the seventh
 * field behind the name. Only for what is told of it.
 */
static bool process_goes_on(pid_t pid)
{
    enum { EXITING = 4 };
    char path[48], text[512];
    unsigned flags = EXITING;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *file = fopen(path, "re");
    if (!file)
        return false;
    size_t bytes = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[bytes] = 0;
    const char *name_end = strrchr(text, ')');
    return name_end && sscanf(name_end + 1, " %*c %*d %*d %*d %*d %*d %u", &flags) == 1 && !(flags & EXITING);
}

/*
 * A closed connection ends the presence, but other threads of the process may still run and write: it is killed, and
 * counts as fenced when its pidfd says that it has exited.
 */
void ranks_disconnected(struct store_server *server, struct connection *c)
{
    struct holder *h = &server->holder[c->rank];
    if (h->connection != c)
        return;
    h->connection = NULL;
    end_presence(server, c->rank);
    if (process_goes_on(h->pid))
        server_tell(server, c->rank, h->incarnation, "has closed its connection");
    kill_process(h);
}

void ranks_exited(struct store_server *server, int32_t rank)
{
    struct holder *h = &server->holder[rank];
    uint32_t incarnation = h->incarnation;
    if (h->connection)
        connection_drain(server, h->connection); /* a leave that was sent before the exit counts */
    if (h->fenced == incarnation)
        return;
    end_presence(server, rank);
    release(server, rank);
    server_tell(server, rank, incarnation, "died");
}

void ranks_fence(struct store_server *server, int32_t rank, uint32_t incarnation)
{
    const struct holder *h = &server->holder[rank];
    if (incarnation != h->incarnation || h->fenced == incarnation)
        return; /* it has exited already, and "fenced/R" says so */
    server_tell(server, rank, incarnation, "is to be fenced");
    kill_process(h);
}

void ranks_injected(struct store_server *server, int32_t rank, uint32_t incarnation)
{
    struct holder *h = &server->holder[rank];
    if (incarnation != h->incarnation || h->fenced == incarnation)
        return;
    end_presence(server, rank);
    h->connection = NULL; /* it keeps its name and may go on listening; what it asks for is refused from now on */
    release(server, rank);
    server_tell(server, rank, incarnation, "died");
}

/* ---- memory ---- */

void ranks_share(struct store_server *server, const struct connection *c, int fd)
{
    struct holder *h = &server->holder[c->rank];
    close_if_open(&h->memory);
    h->memory = fd;
    h->memory_incarnation = c->incarnation;
}

int ranks_memory(const struct store_server *server, int32_t rank, uint32_t incarnation)
{
    const struct holder *h = &server->holder[rank];
    return h->memory_incarnation == incarnation ? h->memory : -1;
}
