// SPDX-License-Identifier: Apache-2.0
/* Bytes <-> messages of the embedded store. The only parser of what comes over its sockets; every read is bounded. */
#ifndef CONTROL_WIRE_H
#define CONTROL_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "control/member.h"
#include "control/store.h"

/* The values of the keys "view" and "member/R". Little-endian, fixed fields, then only the ranks below `ranks`. */
size_t wire_put_view(const struct view *view, int ranks, unsigned char out[STORE_MAX_VALUE]);
int wire_get_view(const unsigned char *bytes, size_t size, int ranks, struct view *view); /* 0, or -1: refused */
size_t wire_put_record(const struct record *record, unsigned char out[STORE_MAX_VALUE]);
int wire_get_record(const unsigned char *bytes, size_t size, struct record *record); /* 0, or -1: refused */

/* The value of "presence/R": whose presence it is. */
struct presence {
    uint32_t incarnation;
    int32_t pid; /* as the store sees it; for messages only */
};

size_t wire_put_presence(const struct presence *presence, unsigned char out[STORE_MAX_VALUE]);
int wire_get_presence(const unsigned char *bytes, size_t size, struct presence *presence); /* 0, or -1: refused */

/* The value of "fenced/R": this incarnation and all before it have exited or left; 0 = none yet. */
size_t wire_put_fenced(uint32_t incarnation, unsigned char out[STORE_MAX_VALUE]);
int wire_get_fenced(const unsigned char *bytes, size_t size, uint32_t *incarnation); /* 0, or -1: refused */

/*
 * One frame is one message of a SOCK_SEQPACKET socket: a fixed header, the key, the value. The kernel keeps messages
 * apart, so a frame that was cut or that carries more than its length says is seen at once.
 */
enum wire_type {
    /* client to server */
    WIRE_HELLO = 1, /* rank, number = ranks; the kernel attaches who sent it */
    WIRE_GET, /* key */
    WIRE_PUT, /* key, value */
    WIRE_SWAP, /* key, value, key_revision = the one expected */
    WIRE_REMOVE, /* key */
    WIRE_AGAIN, /* send the whole state once more */
    WIRE_LEAVE,
    WIRE_FENCE, /* peer, peer_incarnation */
    WIRE_SHARE, /* one descriptor travels with it */
    WIRE_ASK, /* peer, peer_incarnation */
    WIRE_PING,
    /* server to client */
    WIRE_WELCOME, /* rank, incarnation, number = lease in microseconds */
    WIRE_REFUSED, /* number = 1: worth trying again; value = the reason as text */
    WIRE_STATE, /* the whole state follows as changes, oldest first */
    WIRE_CHANGE, /* key, value, key_revision; number = 1: deleted */
    WIRE_REPLY, /* status, key, value, key_revision */
    WIRE_MEMORY, /* peer, peer_incarnation; a descriptor travels with it if there is one */
    WIRE_PONG,
    WIRE_TYPES,
};

enum { WIRE_HEADER = 88, WIRE_MAX_FRAME = WIRE_HEADER + STORE_MAX_KEY + STORE_MAX_VALUE };

/* Key and value are borrowed from the caller (put) or from the bytes (get). */
struct wire_frame {
    enum wire_type type;
    muster_status status;
    uint64_t store_id; /* 0 in HELLO: not known yet */
    uint64_t request;
    uint64_t revision; /* of the store, as the sender knows it */
    int32_t rank; /* of the client, in both directions */
    uint32_t incarnation; /* of the client; 0 in HELLO */
    int32_t peer; /* the rank that it is about, or -1 */
    uint32_t peer_incarnation;
    uint64_t key_revision;
    uint64_t number;
    const char *key; /* not terminated */
    size_t key_bytes;
    const unsigned char *value;
    size_t value_bytes;
};

/* The size of the encoded frame. The caller keeps key and value within STORE_MAX_KEY - 1 and STORE_MAX_VALUE. */
size_t wire_put_frame(const struct wire_frame *frame, unsigned char out[WIRE_MAX_FRAME]);

/* NULL, or why the bytes are refused; then *frame is untouched. */
const char *wire_get_frame(const unsigned char *bytes, size_t size, struct wire_frame *frame);

const char *wire_type_name(enum wire_type type);

#endif
