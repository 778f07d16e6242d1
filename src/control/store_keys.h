// SPDX-License-Identifier: Apache-2.0
/*
 * The keys of the embedded store. They stand in the order of their last change, so what a client has yet to hear is a
 * suffix of that list: a client that does not read costs no memory, however much changes meanwhile.
 */
#ifndef CONTROL_STORE_KEYS_H
#define CONTROL_STORE_KEYS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "control/store.h"
#include "muster/group.h"

/* A rank may own this many "config/OBJECT/R"; a client that wants more is refused. */
enum { STORE_MAX_CONFIGS = 256 };

enum store_key_kind { KEY_VIEW, KEY_MEMBER, KEY_CONFIG, KEY_PRESENCE, KEY_FENCED };

/* A key's name, understood. */
struct store_key_name {
    enum store_key_kind kind;
    int32_t rank; /* whose key it is; -1 for "view" */
    char text[STORE_MAX_KEY];
};

struct store_key {
    struct store_key_name name;
    uint64_t revision; /* of its last change; never 0 */
    bool gone;
    size_t value_bytes;
    size_t room;
    unsigned char *value;
    struct store_key *older, *newer; /* in the order of revisions */
    struct store_key *next_config; /* of the same rank */
};

struct store_keys {
    int32_t ranks;
    uint64_t revision; /* of the last change of any key */
    struct store_key *oldest, *newest;
    struct store_key *view;
    struct store_key *member[MUSTER_MAX_RANKS];
    struct store_key *presence[MUSTER_MAX_RANKS];
    struct store_key *fenced[MUSTER_MAX_RANKS];
    struct store_key *config[MUSTER_MAX_RANKS]; /* a list */
    int configs[MUSTER_MAX_RANKS];
};

/* False when no key has such a name. `text` need not be terminated. */
bool store_key_parse(const char *text, size_t bytes, int32_t ranks, struct store_key_name *name);

/* The key, also when it is gone; NULL if it never was. */
struct store_key *store_keys_find(struct store_keys *keys, const struct store_key_name *name);

/* Gives the key a value and the next revision. NULL: out of memory, or the rank has STORE_MAX_CONFIGS already. */
struct store_key *store_keys_write(struct store_keys *keys, const struct store_key_name *name, const void *value,
                                   size_t bytes);

/* Deletes the key: its name stays, gone, with the next revision. */
void store_keys_remove(struct store_keys *keys, struct store_key *key);

/* The oldest change that is newer than `revision`; NULL if there is none. */
const struct store_key *store_keys_after(const struct store_keys *keys, uint64_t revision);

/* Deletes all that the rank has said of its configuration. */
void store_keys_remove_configs(struct store_keys *keys, int32_t rank);

/* Drops the names of deleted "config/OBJECT/R" of the rank: of changes up to `heard`, which every client has heard of. */
void store_keys_forget_configs(struct store_keys *keys, int32_t rank, uint64_t heard);

void store_keys_free(struct store_keys *keys);

#endif
