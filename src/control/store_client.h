// SPDX-License-Identifier: Apache-2.0
/*
 * The inside of the embedded store's client: store_embedded.c (an open connection), store_opening.c (how it is
 * opened).
 */
#ifndef CONTROL_STORE_CLIENT_H
#define CONTROL_STORE_CLIENT_H

#include <stdbool.h>

#include "control/store_socket.h"
#include "control/wire.h"

enum { STORE_RETRY_MS = 5 }; /* between hellos, and between attempts to connect or to send */

/* A request that found the socket full. */
struct queued {
    struct queued *next;
    int passed; /* descriptor, owned; or -1 */
    size_t bytes;
    unsigned char frame[];
};

struct embedded {
    struct store store; /* first: a pointer to it is a pointer to this */
    int fd;
    bool inherited; /* the descriptor came with the process and outlives this client */
    bool lost, told, left;
    uint64_t store_id;
    uint64_t last_request;
    uint64_t revision; /* of the store, as of the newest frame */
    uint64_t seen; /* revision of the newest change */
    uint64_t lease_ns;
    uint64_t polled_ns;
    uint64_t heard_ns; /* when the last frame came */
    uint64_t ping_sent_ns; /* of the ping that is unanswered; 0: none is */
    uint64_t ping_next_ns;
    struct queued *queue, **queue_end;
    size_t queued;
    unsigned char frame[WIRE_MAX_FRAME];
};

/* NULL: out of memory. */
struct embedded *embedded_create(void);
/* Drops what is held back, closes the descriptor if it is ours, frees. */
void embedded_free(struct embedded *e);

/* Sends, or holds back behind what is held back already; the request's number. `passed`: a descriptor, or -1. */
uint64_t embedded_send(struct embedded *e, struct wire_frame *frame, int passed);
/* Sends what is held back, as far as the socket takes it. */
void embedded_flush(struct embedded *e);
/* The connection is open: who we are, and the keep-alive begins. */
void embedded_take_welcome(struct embedded *e, const struct wire_frame *frame);

#endif
