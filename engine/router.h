// SPDX-License-Identifier: Apache-2.0
/*
 * The router owns the requests. It gives each to a rank and keeps what comes back, so that nothing is lost with a rank:
 * when one dies, its channel is read to the end, and its requests go on elsewhere from the next position. It accepts
 * only (request, next position), so no token comes twice. No input or output besides the channels; nothing blocks.
 */
#ifndef ENGINE_ROUTER_H
#define ENGINE_ROUTER_H

#include <stdbool.h>
#include <stdint.h>

#include "channel.h"

enum { ROUTER_MAX_REQUESTS = 256, ROUTER_MAX_RANKS = 16 };

struct router_request {
    unsigned char text[CHANNEL_MAX_TEXT]; /* prompt, then what was generated */
    int32_t prompt, length; /* bytes */
    int32_t limit; /* bytes to generate */
    int32_t rank; /* that works on it; -1: none */
    bool unsent; /* assigned, but the rank has not been told */
};

struct router_rank {
    int fd; /* -1: no channel */
    bool alive;
    int32_t assigned;
};

struct router {
    int32_t ranks, requests;
    struct router_rank rank[ROUTER_MAX_RANKS];
    struct router_request request[ROUTER_MAX_REQUESTS];
    uint64_t accepted; /* tokens */
    uint64_t repeated; /* tokens that had come before, refused */
    uint64_t skipped; /* positions that were missing before a token, which was refused */
    uint64_t moved; /* requests that went from a dead rank to another */
    /* Every message that is not a token. */
    void (*on_message)(void *context, int32_t rank, const struct channel_message *message);
    void *context;
};

void router_init(struct router *router, int32_t ranks);

/* False: too many requests, or prompt and limit do not fit CHANNEL_MAX_TEXT, or one of them is 0. */
bool router_add(struct router *router, const unsigned char *prompt, int32_t prompt_bytes, int32_t limit);

/* The rank's channel; it is alive from now on. */
void router_connect(struct router *router, int32_t rank, int fd);

/* Gives requests without a rank to the least loaded, and tells ranks what could not be told before. */
void router_assign(struct router *router);

/* Takes what the rank has sent. */
void router_read(struct router *router, int32_t rank);

/* The rank is dead: reads its channel to the end, closes it, and takes its requests back. */
void router_rank_died(struct router *router, int32_t rank);

bool router_done(const struct router *router);

/* Tokens that were asked for and have not come. */
uint64_t router_missing(const struct router *router);

void router_close(struct router *router);

#endif
