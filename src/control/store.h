// SPDX-License-Identifier: Apache-2.0
/*
 * The store as the agent sees it: a linearizable key-value store with compare-and-swap, watches and presence, behind
 * one ops table. Requests do not block; their replies and every change come out of poll().
 *
 * Keys: "view"; "member/R"; "config/OBJECT/R" (what R says of an object of its own: the store deletes it when the
 * process that wrote it has exited or left); written by the store alone: "presence/R" (incarnation and pid; vanishes
 * with its owner), "fenced/R" (the highest incarnation of R that has exited or left).
 * A client sees the changes of all keys in the order of their revisions, beginning with the state at its connection.
 */
#ifndef CONTROL_STORE_H
#define CONTROL_STORE_H

#include <stddef.h>
#include <stdint.h>

#include "muster/status.h"

enum { STORE_MAX_KEY = 64, STORE_MAX_VALUE = 4096 };

enum store_event_type {
    STORE_NOTHING, /* poll() has no more for now */
    STORE_REPLY, /* to request `id`: status OK; AGAIN = the compare-and-swap lost, value/revision are the current */
    STORE_CHANGE, /* key now has value at revision; value_bytes 0 and gone = 1: it was deleted */
    /*
     * fd of the memory of (rank, incarnation), which the receiver owns; or -1 if the store has none, or, with status
     * SYSTEM, if it came and this process has no descriptor left.
     */
    STORE_MEMORY,
    STORE_LOST, /* the store is gone, is another one, or went back in time; nothing comes after it */
};

struct store_event {
    enum store_event_type type;
    uint64_t id;
    muster_status status;
    uint64_t revision;
    int gone;
    int fd;
    int32_t rank;
    uint32_t incarnation;
    size_t value_bytes;
    char key[STORE_MAX_KEY];
    unsigned char value[STORE_MAX_VALUE];
};

struct store_welcome {
    int32_t rank;
    int32_t ranks;
    uint32_t incarnation; /* given by the store: one more than the last process that held this rank */
};

struct store;

struct store_ops {
    size_t size;
    const char *name;
    void (*close)(struct store *s); /* presence ends */
    int (*fd)(const struct store *s); /* readable when poll() has something */
    uint64_t (*next_ns)(const struct store *s); /* when poll() wants to run for a keep-alive; UINT64_MAX = never */
    void (*poll)(struct store *s, uint64_t now_ns, struct store_event *event);
    /* Each returns the id of its reply; never fails (a lost store says so in poll). */
    uint64_t (*get)(struct store *s, const char *key);
    uint64_t (*put)(struct store *s, const char *key, const void *value, size_t bytes);
    uint64_t (*remove)(struct store *s, const char *key); /* a "config/OBJECT/R" of our own */
    uint64_t (*swap)(struct store *s, const char *key, uint64_t revision, const void *value, size_t bytes);
    uint64_t (*watch_again)(struct store *s); /* sends the whole state once more as changes, then the reply */
    void (*leave)(struct store *s); /* orderly: "fenced/R" gets our incarnation, then presence ends */
    void (*fence)(struct store *s, int32_t rank, uint32_t incarnation);
    void (*share_memory)(struct store *s, int fd); /* this incarnation's symmetric memory, for whoever asks */
    void (*ask_memory)(struct store *s, int32_t rank, uint32_t incarnation);
};

struct store {
    const struct store_ops *ops;
    struct store_welcome welcome;
};

/*
 * Connects to the embedded store at `where` ("fd:N" or "unix:@NAME", or several with commas, of which the first that
 * leads to a store is taken) as `rank`, opening its presence. Blocks until the welcome, at most timeout_us. Errors:
 * ARGUMENT (malformed `where`), STORE (refused: says why; or out of reach for good), TIMEOUT.
 */
muster_status store_embedded_open(const char *where, int32_t rank, int32_t ranks, uint64_t timeout_us,
                                  struct store **store);

#endif
