// SPDX-License-Identifier: Apache-2.0
#include "control/store_server.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <unistd.h>

#include "control/store_serving.h"
#include "core/clock.h"
#include "core/config.h"
#include "core/error.h"
#include "core/log.h"
#include "core/mask.h"
#include "core/thread.h"

enum {
    EVENTS_PER_ROUND = 64,
    ROUNDS_PER_POLL = 8,
    ACCEPTS_PER_TURN = 16,
    THREAD_WAIT_MS = 1000,
    LISTEN_AGAIN_NS = 100000000,
    DESCRIPTORS_PER_RANK = 3, /* its connection, its process, its memory */
    DESCRIPTORS_OF_ITS_OWN = 12, /* the epoll set, the pipe, the listener, and connections that have not said hello */
};

/* What other threads ask of the serving one, through a pipe: writes this small are atomic. */
enum command_type { COMMAND_CONNECT, COMMAND_FENCE, COMMAND_STOP };

struct command {
    enum command_type type;
    int32_t fd;
    int32_t rank;
    uint32_t incarnation;
};

int server_watch(struct store_server *server, int operation, int fd, uint32_t events, enum watch_kind kind,
                 uint32_t generation, uint32_t index)
{
    uint64_t tag = (uint64_t)kind << 48 | (uint64_t)index << 32 | generation;
    struct epoll_event event = {.events = events, .data.u64 = tag};
    return epoll_ctl(server->epoll, operation, fd, &event);
}

void server_tell(struct store_server *server, int32_t rank, uint32_t incarnation, const char *what)
{
    log_line(LOG_LEVEL_INFO, "store: rank %d, incarnation %u, process %d %s", rank, incarnation,
             (int)server->holder[rank].pid, what);
    if (server->config.on_event)
        server->config.on_event(server->config.context, rank, incarnation, what);
}

/* ---- life ---- */

/* Tells this store from any other that a client may meet under the same name. */
static uint64_t new_store_id(void)
{
    uint64_t id = 0;
    if (getrandom(&id, sizeof id, GRND_NONBLOCK) != (ssize_t)sizeof id)
        id = clock_ns() ^ (uint64_t)getpid() << 40;
    return id ? id : 1;
}

static int server_open(struct store_server *server)
{
    int ends[2];
    server->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (server->epoll < 0 || pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0)
        return -1;
    server->command_out = ends[0];
    server->command_in = ends[1];
    return server_watch(server, EPOLL_CTL_ADD, server->command_out, EPOLLIN, WATCH_COMMAND, 0, 0);
}

static struct store_server *server_allocate(const struct store_server_config *config)
{
    struct store_server *server = calloc(1, sizeof *server);
    if (!server)
        return NULL;
    server->config = *config;
    if (!config->lease_us)
        server->config.lease_us = config_number(CONFIG_LEASE_US);
    server->id = new_store_id();
    server->keys.ranks = config->ranks;
    server->epoll = server->command_out = server->command_in = server->listener = -1;
    server->listen_again_ns = UINT64_MAX;
    for (int i = 0; i < STORE_MAX_CONNECTIONS; i++)
        server->connection[i].fd = -1;
    ranks_init(server);
    return server;
}

uint64_t store_server_descriptors(int32_t ranks)
{
    return (uint64_t)ranks * DESCRIPTORS_PER_RANK + DESCRIPTORS_OF_ITS_OWN;
}

muster_status store_server_create(const struct store_server_config *config, struct store_server **server)
{
    if (config->ranks < 1 || config->ranks > MUSTER_MAX_RANKS)
        return error_set(MUSTER_ERR_ARGUMENT, "ranks is %d; a store serves 1 to %d", config->ranks, MUSTER_MAX_RANKS);
    struct store_server *created = server_allocate(config);
    if (!created)
        return error_set(MUSTER_ERR_MEMORY, "out of memory for the store");
    if (server_open(created) != 0) {
        int saved = errno;
        store_server_destroy(created);
        return error_set(MUSTER_ERR_SYSTEM, "the store cannot be set up: %s", strerror(saved));
    }
    *server = created;
    return MUSTER_OK;
}

static bool server_command(struct store_server *server, const struct command *command)
{
    return write(server->command_in, command, sizeof *command) == (ssize_t)sizeof *command;
}

static void server_stop_thread(struct store_server *server)
{
    if (!server->threaded)
        return;
    atomic_store(&server->stopping, true);
    server_command(server, &(struct command){.type = COMMAND_STOP}); /* wakes it; if the pipe is full it is awake */
    pthread_join(server->thread, NULL);
    server->threaded = false;
}

static void close_if_open(int fd)
{
    if (fd >= 0)
        close(fd);
}

static void server_discard_commands(struct store_server *server)
{
    struct command command;
    while (server->command_out >= 0 && read(server->command_out, &command, sizeof command) == (ssize_t)sizeof command)
        if (command.type == COMMAND_CONNECT)
            close(command.fd);
}

void store_server_destroy(struct store_server *server)
{
    if (!server)
        return;
    server_stop_thread(server);
    server_discard_commands(server);
    for (int i = 0; i < STORE_MAX_CONNECTIONS; i++)
        close_if_open(server->connection[i].fd);
    ranks_free(server);
    close_if_open(server->listener);
    close_if_open(server->command_out);
    close_if_open(server->command_in);
    close_if_open(server->epoll);
    store_keys_free(&server->keys);
    free(server);
}

/* ---- from any thread ---- */

/* The kernel names the sender only to a socket that asked for it before the message was sent. */
static int pass_credentials(int socket)
{
    int on = 1;
    return setsockopt(socket, SOL_SOCKET, SO_PASSCRED, &on, sizeof on);
}

int store_server_connect(struct store_server *server)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
        return -1;
    struct command command = {.type = COMMAND_CONNECT, .fd = ends[0]};
    if (pass_credentials(ends[0]) == 0 && server_command(server, &command))
        return ends[1];
    int saved = errno;
    close(ends[0]);
    close(ends[1]);
    errno = saved;
    return -1;
}

void store_server_fence(struct store_server *server, int32_t rank, uint32_t incarnation)
{
    if (rank >= 0 && rank < server->config.ranks)
        server_command(server, &(struct command){.type = COMMAND_FENCE, .rank = rank, .incarnation = incarnation});
}

int store_server_present(struct store_server *server, int32_t rank)
{
    return rank >= 0 && rank < server->config.ranks && atomic_load(&server->holder[rank].present) != 0;
}

int store_server_is_founding(const struct store_server *server)
{
    return atomic_load(&server->founding);
}

int store_server_clients(const struct store_server *server)
{
    int clients = 0;
    for (int i = 0; i < STORE_MAX_CONNECTIONS; i++)
        clients += server->connection[i].fd >= 0 && server->connection[i].rank >= 0;
    return clients;
}

/* ---- the listener ---- */

static muster_status listen_failed(int listener, const char *name)
{
    int saved = errno;
    close_if_open(listener);
    muster_status status =
        error_set(MUSTER_ERR_SYSTEM, "the store cannot listen on unix:@%s: %s", name, strerror(saved));
    errno = saved;
    return status;
}

muster_status store_server_listen(struct store_server *server, const char *name)
{
    struct sockaddr_un address;
    socklen_t length;
    if (!socket_address(name, &address, &length))
        return error_set(MUSTER_ERR_ARGUMENT, "the store's name has %zu characters; 1 to %zu are allowed", strlen(name),
                         sizeof address.sun_path - 1);
    if (server->listener >= 0)
        return error_set(MUSTER_ERR_ORDER, "the store listens already");
    int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (listener < 0 || pass_credentials(listener) != 0 || bind(listener, (struct sockaddr *)&address, length) != 0 ||
        listen(listener, STORE_MAX_CONNECTIONS) != 0 ||
        server_watch(server, EPOLL_CTL_ADD, listener, EPOLLIN, WATCH_LISTENER, 0, 0) != 0)
        return listen_failed(listener, name);
    server->listener = listener;
    return MUSTER_OK;
}

/* Out of descriptors: the waiting connection would wake the loop for ever, so it is left alone for a while. */
static void listener_pause(struct store_server *server)
{
    log_line(LOG_LEVEL_WARN, "store: cannot accept a connection now: %s", strerror(errno));
    server_watch(server, EPOLL_CTL_MOD, server->listener, 0, WATCH_LISTENER, 0, 0);
    server->listen_again_ns = clock_ns() + LISTEN_AGAIN_NS;
}

static void listener_resume(struct store_server *server)
{
    if (clock_ns() < server->listen_again_ns)
        return;
    server->listen_again_ns = UINT64_MAX;
    server_watch(server, EPOLL_CTL_MOD, server->listener, EPOLLIN, WATCH_LISTENER, 0, 0);
}

static void listener_accept(struct store_server *server)
{
    for (int i = 0; i < ACCEPTS_PER_TURN; i++) {
        int fd = accept4(server->listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS))
            listener_pause(server);
        if (fd < 0)
            return;
        if (socket_peer_is_us(fd)) {
            connection_add(server, fd, true);
            continue;
        }
        log_line(LOG_LEVEL_WARN, "store: refused a connection of another user");
        close(fd);
    }
}

/* ---- the poll loop ---- */

static void server_do(struct store_server *server, const struct command *command)
{
    if (command->type == COMMAND_CONNECT)
        connection_add(server, command->fd, false);
    if (command->type == COMMAND_FENCE && server->config.inject_fences)
        ranks_injected(server, command->rank, command->incarnation);
}

static void server_do_commands(struct store_server *server)
{
    struct command command;
    while (read(server->command_out, &command, sizeof command) == (ssize_t)sizeof command)
        server_do(server, &command);
}

static void server_handle_connection(struct store_server *server, struct connection *c, uint32_t events)
{
    if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
        c->blocked = false; /* sending works again, or fails and shows that nobody listens */
    connection_read(server, c);
}

/* Events of this round may be about something that an earlier one of it has closed: the generation tells. */
static void server_handle(struct store_server *server, const struct epoll_event *event)
{
    uint32_t generation = (uint32_t)event->data.u64;
    uint32_t index = (uint32_t)(event->data.u64 >> 32) & 0xffff;
    struct connection *c = &server->connection[index];
    switch ((enum watch_kind)(event->data.u64 >> 48)) {
    case WATCH_COMMAND: server_do_commands(server); break;
    case WATCH_LISTENER: listener_accept(server); break;
    case WATCH_CONNECTION:
        if (c->fd >= 0 && c->generation == generation)
            server_handle_connection(server, c, event->events);
        break;
    case WATCH_PROCESS:
        if (server->holder[index].incarnation == generation)
            ranks_exited(server, (int32_t)index);
        break;
    }
}

/* M31: there is no view, or nobody is left of the one that there is. */
static bool group_is_vacant(const struct store_server *server)
{
    struct view view;
    const struct store_key *key = server->keys.view;
    if (!key || wire_get_view(key->value, key->value_bytes, server->config.ranks, &view) != 0)
        return true;
    for (int r = mask_next(view.mask, 0); r >= 0; r = mask_next(view.mask, r + 1))
        if (server->holder[r].fenced < view.incarnation[r])
            return false;
    return true;
}

static bool has_said_something(const struct store_server *server, int rank)
{
    for (const struct store_key *key = server->keys.config[rank]; key; key = key->next_config)
        if (!key->gone)
            return true;
    return false;
}

/* A rank that creates its group tells its configuration first. */
static bool somebody_founds(const struct store_server *server)
{
    if (!group_is_vacant(server))
        return false;
    for (int r = 0; r < server->config.ranks; r++)
        if (atomic_load(&server->holder[r].present) && has_said_something(server, r))
            return true;
    return false;
}

static void server_write_all(struct store_server *server)
{
    for (int i = 0; i < STORE_MAX_CONNECTIONS; i++)
        if (server->connection[i].fd >= 0)
            connection_write(server, &server->connection[i]);
}

void store_server_poll(struct store_server *server)
{
    struct epoll_event events[EVENTS_PER_ROUND];
    listener_resume(server);
    for (int round = 0; round < ROUNDS_PER_POLL; round++) {
        int count = epoll_wait(server->epoll, events, EVENTS_PER_ROUND, 0);
        for (int i = 0; i < count; i++)
            server_handle(server, &events[i]);
        if (count <= 0)
            return;
        atomic_store(&server->founding, somebody_founds(server));
        server_write_all(server);
    }
}

int store_server_fd(const struct store_server *server)
{
    return server->epoll;
}

uint64_t store_server_next_ns(const struct store_server *server)
{
    return server->listen_again_ns;
}

static int thread_wait_ms(const struct store_server *server)
{
    return server->listen_again_ns == UINT64_MAX ? THREAD_WAIT_MS : LISTEN_AGAIN_NS / 1000000;
}

static void *server_thread(void *argument)
{
    struct store_server *server = argument;
    while (!atomic_load(&server->stopping)) {
        struct pollfd work = {.fd = server->epoll, .events = POLLIN};
        poll(&work, 1, thread_wait_ms(server));
        store_server_poll(server);
    }
    return NULL;
}

muster_status store_server_start_thread(struct store_server *server)
{
    muster_status status = thread_start(&server->thread, server_thread, server, "the store's thread");
    server->threaded = status == MUSTER_OK;
    return status;
}
