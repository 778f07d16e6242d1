// SPDX-License-Identifier: Apache-2.0
/*
 * The inside of the embedded store's server: store_server.c (life, poll loop), store_connection.c (frames in, frames
 * out), store_requests.c (what clients ask for), store_ranks.c (who holds a rank: presence, death, fences, memory). All
 * of it runs on the one serving thread.
 */
#ifndef CONTROL_STORE_SERVING_H
#define CONTROL_STORE_SERVING_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "control/store_keys.h"
#include "control/store_server.h"
#include "control/store_socket.h"
#include "control/wire.h"

enum {
    STORE_MAX_CONNECTIONS = 2 * MUSTER_MAX_RANKS + 32, /* a rank may come by the listener although it was given one */
    CONNECTION_MAX_ANSWERS = 32,
    CONNECTION_MAX_REASON = 160,
};

/* Something that a connection is still to be told, besides the changes of keys. */
struct answer {
    enum wire_type type;
    muster_status status;
    uint64_t request;
    uint64_t after; /* changes up to this revision go first, so that a reply never runs ahead of them */
    uint64_t revision;
    const struct store_key *key; /* of a reply; its value goes along if with_value */
    bool with_value;
    int32_t peer;
    uint32_t peer_incarnation;
    uint64_t number;
};

struct connection {
    int fd; /* -1: this slot is free */
    uint32_t generation;
    uint64_t age; /* counts connections; the eldest nameless one makes room when all slots are taken */
    bool accepted; /* it came through the listener */
    int32_t rank; /* that it speaks for; -1: it has not said hello, or has left */
    uint32_t incarnation;
    pid_t pid;
    bool streaming; /* welcomed: it is told of changes */
    uint64_t seen; /* revision up to which it has been told */
    uint64_t last_request;
    uint64_t last_revision; /* that it has claimed to know */
    bool complained; /* a refused request of it has been logged */
    bool blocked; /* its socket is full */
    bool broken; /* it takes nothing any more */
    uint32_t armed; /* what epoll watches for */
    char reason[CONNECTION_MAX_REASON]; /* of the last refusal of a hello */
    int first, answers;
    struct answer answer[CONNECTION_MAX_ANSWERS];
};

/* One rank number and the process that holds it. It is held while fenced < incarnation. */
struct holder {
    uint32_t incarnation; /* the last one given */
    uint32_t fenced; /* up to this one all have exited or left */
    pid_t pid;
    int pidfd; /* -1: none, or fences are injected */
    struct connection *connection; /* NULL: closed */
    int memory; /* descriptor of the symmetric memory, or -1 */
    uint32_t memory_incarnation;
    _Atomic uint32_t present; /* incarnation whose presence is open; other threads read it */
};

struct store_server {
    struct store_server_config config;
    uint64_t id;
    int epoll;
    int command_out, command_in; /* a pipe: what other threads want done */
    int listener; /* -1: none */
    uint64_t listen_again_ns; /* while accept() is short of descriptors; UINT64_MAX otherwise */
    uint64_t ages;
    struct store_keys keys;
    struct connection connection[STORE_MAX_CONNECTIONS];
    struct holder holder[MUSTER_MAX_RANKS];
    _Atomic bool founding; /* see store_server_is_founding(); other threads read it */
    bool threaded;
    _Atomic bool stopping;
    pthread_t thread;
};

/* What an event of the epoll set is about. */
enum watch_kind { WATCH_COMMAND, WATCH_LISTENER, WATCH_CONNECTION, WATCH_PROCESS };

/* ---- store_server.c ---- */

/* Watches `fd`; the generation tells a stale event of a slot's former user from a new one. 0 or -1. */
int server_watch(struct store_server *server, int operation, int fd, uint32_t events, enum watch_kind kind,
                 uint32_t generation, uint32_t index);
void server_tell(struct store_server *server, int32_t rank, uint32_t incarnation, const char *what);

/* ---- store_connection.c ---- */

/* Serves a new socket, taking ownership; NULL (and the socket closed) when there is no room for it. */
struct connection *connection_add(struct store_server *server, int fd, bool accepted);
void connection_close(struct store_server *server, struct connection *c);
/* Reads and handles what has come, at most a few frames; may close the connection. */
void connection_read(struct store_server *server, struct connection *c);
/* Handles all that a process sent before it exited; may close the connection. */
void connection_drain(struct store_server *server, struct connection *c);
/* Sends what there is to tell, until its socket is full. */
void connection_write(struct store_server *server, struct connection *c);
/* After a hello of its own the connection belongs to nobody again: its process exited or left. */
void connection_unname(struct connection *c);
/* All but the refusals of hellos, which are meant for somebody else. */
void connection_drop_answers(struct connection *c);
void connection_answer(struct connection *c, const struct answer *answer);
/* Logs that a request was refused, once per connection: a flood of bad requests must not become a flood of lines. */
__attribute__((format(printf, 2, 3))) void connection_complain(struct connection *c, const char *format, ...);

/* ---- store_requests.c ---- */

/* NULL, or why nothing that this client says can be believed. */
const char *requests_objection(const struct store_server *server, const struct connection *c,
                               const struct wire_frame *frame);
/* A frame without objection. A descriptor that the request keeps is taken out of *message. */
void requests_handle(struct store_server *server, struct connection *c, const struct wire_frame *frame,
                     struct socket_message *message);

/* ---- store_ranks.c ---- */

void ranks_init(struct store_server *server);
void ranks_free(struct store_server *server);
/* Answers with WELCOME or REFUSED. `pid`, `uid`: as the kernel attached them. */
void ranks_hello(struct store_server *server, struct connection *c, const struct wire_frame *frame,
                 const struct socket_message *message);
void ranks_leave(struct store_server *server, struct connection *c);
void ranks_disconnected(struct store_server *server, struct connection *c);
void ranks_exited(struct store_server *server, int32_t rank);
void ranks_fence(struct store_server *server, int32_t rank, uint32_t incarnation);
/* With inject_fences: it counts as exited. */
void ranks_injected(struct store_server *server, int32_t rank, uint32_t incarnation);
void ranks_share(struct store_server *server, const struct connection *c, int fd);
int ranks_memory(const struct store_server *server, int32_t rank, uint32_t incarnation); /* borrowed, or -1 */

#endif
