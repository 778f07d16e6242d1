// SPDX-License-Identifier: Apache-2.0
/*
 * The embedded store's server: one thread, one poll loop, inside the launcher or a sidecar. It owns the keys, opens a
 * pidfd for every client that comes (the process that the kernel names in SCM_CREDENTIALS), ends presences, and fences.
 */
#ifndef CONTROL_STORE_SERVER_H
#define CONTROL_STORE_SERVER_H

#include <stdint.h>

#include "muster/status.h"

struct store_server;

struct store_server_config {
    int32_t ranks;
    uint64_t lease_us;
    /*
     * Ranks that share this process (tests): a closed connection does not prove an exit, so nothing is killed and
     * store_server_fence() says when a rank counts as fenced.
     */
    int inject_fences;
    int resizes; /* a rank of a group of another size is served, afresh, when no rank is held any more */
    /* Called on the serving thread for a person's eyes: "rank 2 (pid 71) died"; may be NULL. */
    void (*on_event)(void *context, int32_t rank, uint32_t incarnation, const char *what);
    void *context;
};

/* How many descriptors a store for so many ranks may hold at a time, each rank having come in one way. */
uint64_t store_server_descriptors(int32_t ranks);

muster_status store_server_create(const struct store_server_config *config, struct store_server **server);
void store_server_destroy(struct store_server *server);

/*
 * A new connection: the client's end of a socket pair, to be inherited by a child or used in this process. Any
 * thread.
 */
int store_server_connect(struct store_server *server); /* the descriptor, or -1 with errno */

/*
 * Also listens on an abstract Unix socket; only processes of the same user are served. Before the thread is started.
 * Errors: ARGUMENT, ORDER, SYSTEM (errno EADDRINUSE: somebody else serves this name).
 */
muster_status store_server_listen(struct store_server *server, const char *name);

int store_server_fd(const struct store_server *server); /* readable (an epoll set) when there is work */
void store_server_poll(struct store_server *server); /* does what can be done without waiting */
uint64_t store_server_next_ns(const struct store_server *server);

/* Runs poll in a thread of its own, for sidecars and for ranks that share a process. */
muster_status store_server_start_thread(struct store_server *server);

/* With inject_fences: (rank, incarnation) counts as exited. Any thread. */
void store_server_fence(struct store_server *server, int32_t rank, uint32_t incarnation);

/* 1 when a presence of the rank is open. Any thread. */
int store_server_present(struct store_server *server, int32_t rank);

/*
 * 1 while some rank that is present waits for all others, since there is no view with a member that could still be alive: a rank that will not come any more
 * is waited for in vain then (M2). Any thread.
 */
int store_server_is_founding(const struct store_server *server);

/*
 * How many ranks have said hello and are connected. A connection that nobody speaks for any more, because a forked
 * child still holds it, is no client. The serving thread only.
 */
int store_server_clients(const struct store_server *server);

#endif
