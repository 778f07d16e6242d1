// SPDX-License-Identifier: Apache-2.0
/*
 * What the router and a rank's worker say to each other: one SOCK_SEQPACKET socket per rank, one message a packet. Both
 * ends are the same program on the same host; what does not look like a message is dropped.
 */
#ifndef ENGINE_CHANNEL_H
#define ENGINE_CHANNEL_H

#include <stdbool.h>
#include <stdint.h>

#include "muster/group.h"

enum { CHANNEL_MAX_TEXT = 2048 };

enum channel_type {
    /* router to worker */
    CHANNEL_REQUEST =
        1, /* request; text = prompt and what was generated so far; position = prompt bytes; value = limit */
    CHANNEL_ARM, /* a fault to come: step, layer = value, signal = request */
    CHANNEL_FINISH, /* leave in good order */
    /* worker to router */
    CHANNEL_TOKEN, /* request, position, value = token */
    CHANNEL_VIEW, /* epoch installed at ns; value = active ranks; mask */
    CHANNEL_LOADED, /* epoch; value = experts, experts_loaded = since the start was over; from ns to end_ns */
    CHANNEL_RESUMED, /* ns: the end of the first good step of epoch */
    CHANNEL_FIRED, /* ns: an armed fault is about to happen here */
    CHANNEL_STATISTICS, /* routes, remote_routes, experts_loaded, steps */
    CHANNEL_TYPES,
};

struct channel_message {
    uint32_t magic;
    uint32_t type;
    int32_t request;
    int32_t position;
    int32_t value;
    uint32_t epoch;
    uint64_t ns, end_ns; /* CLOCK_MONOTONIC */
    uint64_t step;
    uint64_t routes, remote_routes, experts_loaded, steps;
    muster_mask mask;
    uint32_t text_bytes;
    unsigned char text[CHANNEL_MAX_TEXT];
};

/* A pair of connected ends, close-on-exec and nonblocking. 0, or -1 with errno. */
int channel_pair(int fds[2]);

/* Sends without blocking; magic is set here. False: no room now, or the other end is gone. */
bool channel_send(int fd, struct channel_message *message);

enum channel_result { CHANNEL_GOT, CHANNEL_EMPTY, CHANNEL_CLOSED };

/* The next message; malformed packets are skipped. Never blocks. */
enum channel_result channel_receive(int fd, struct channel_message *message);

#endif
