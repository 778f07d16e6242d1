// SPDX-License-Identifier: Apache-2.0
#include "control/store_keys.h"

#include <stdlib.h>
#include <string.h>

/* Ranks are written one way only: decimal, no sign, no leading zero; otherwise one key would have two names. */
static bool rank_parse(const char *text, int32_t ranks, int32_t *rank)
{
    if (!*text || strlen(text) > 3 || (text[0] == '0' && text[1]))
        return false;
    int32_t value = 0;
    for (; *text; text++) {
        if (*text < '0' || *text > '9')
            return false;
        value = value * 10 + (*text - '0');
    }
    *rank = value;
    return value < ranks;
}

/* What follows "KIND/" in `text`, or NULL. */
static const char *after_prefix(const char *text, const char *prefix)
{
    size_t length = strlen(prefix);
    return strncmp(text, prefix, length) == 0 ? text + length : NULL;
}

static bool config_parse_name(const char *rest, int32_t ranks, int32_t *rank)
{
    const char *slash = strchr(rest, '/');
    return slash && slash > rest && rank_parse(slash + 1, ranks, rank);
}

static bool name_classify(struct store_key_name *name, int32_t ranks)
{
    static const struct {
        const char *prefix;
        enum store_key_kind kind;
    } owned[] = {{"member/", KEY_MEMBER}, {"presence/", KEY_PRESENCE}, {"fenced/", KEY_FENCED}};
    name->rank = -1;
    name->kind = KEY_VIEW;
    if (strcmp(name->text, "view") == 0)
        return true;
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) {
        const char *rest = after_prefix(name->text, owned[i].prefix);
        name->kind = owned[i].kind;
        if (rest)
            return rank_parse(rest, ranks, &name->rank);
    }
    const char *rest = after_prefix(name->text, "config/");
    name->kind = KEY_CONFIG;
    return rest && config_parse_name(rest, ranks, &name->rank);
}

bool store_key_parse(const char *text, size_t bytes, int32_t ranks, struct store_key_name *name)
{
    if (bytes >= STORE_MAX_KEY || memchr(text, 0, bytes))
        return false;
    memcpy(name->text, text, bytes);
    name->text[bytes] = 0;
    return name_classify(name, ranks);
}

/* Where the pointer to a key of this kind and rank is kept; for configs, the head of the rank's list. */
static struct store_key **key_place(struct store_keys *keys, const struct store_key_name *name)
{
    switch (name->kind) {
    case KEY_VIEW: return &keys->view;
    case KEY_MEMBER: return &keys->member[name->rank];
    case KEY_PRESENCE: return &keys->presence[name->rank];
    case KEY_FENCED: return &keys->fenced[name->rank];
    case KEY_CONFIG: break;
    }
    return &keys->config[name->rank];
}

struct store_key *store_keys_find(struct store_keys *keys, const struct store_key_name *name)
{
    struct store_key *key = *key_place(keys, name);
    while (key && name->kind == KEY_CONFIG && strcmp(key->name.text, name->text) != 0)
        key = key->next_config;
    return key;
}

static bool key_make_room(struct store_key *key, size_t bytes)
{
    if (bytes <= key->room)
        return true;
    unsigned char *value = realloc(key->value, bytes);
    if (!value)
        return false;
    key->value = value;
    key->room = bytes;
    return true;
}

static void key_place_new(struct store_keys *keys, struct store_key *key)
{
    struct store_key **place = key_place(keys, &key->name);
    if (key->name.kind == KEY_CONFIG) {
        key->next_config = *place;
        keys->configs[key->name.rank]++;
    }
    *place = key;
}

/* With its room, so that a key which is in the tables always has a value and a revision. */
static struct store_key *key_create(struct store_keys *keys, const struct store_key_name *name, size_t bytes)
{
    if (name->kind == KEY_CONFIG && keys->configs[name->rank] == STORE_MAX_CONFIGS)
        return NULL;
    struct store_key *key = calloc(1, sizeof *key);
    if (!key)
        return NULL;
    if (!key_make_room(key, bytes)) {
        free(key);
        return NULL;
    }
    key->name = *name;
    key_place_new(keys, key);
    return key;
}

static void list_unlink(struct store_keys *keys, struct store_key *key)
{
    if (!key->revision)
        return; /* new: it is not in the list yet */
    *(key->older ? &key->older->newer : &keys->oldest) = key->newer;
    *(key->newer ? &key->newer->older : &keys->newest) = key->older;
}

/* Every change takes the next revision and moves its key to the newest end. */
static void key_changed(struct store_keys *keys, struct store_key *key)
{
    list_unlink(keys, key);
    key->older = keys->newest;
    key->newer = NULL;
    *(keys->newest ? &keys->newest->newer : &keys->oldest) = key;
    keys->newest = key;
    key->revision = ++keys->revision;
}

struct store_key *store_keys_write(struct store_keys *keys, const struct store_key_name *name, const void *value,
                                   size_t bytes)
{
    struct store_key *key = store_keys_find(keys, name);
    if (!key)
        key = key_create(keys, name, bytes);
    if (!key || !key_make_room(key, bytes))
        return NULL;
    if (bytes)
        memcpy(key->value, value, bytes);
    key->value_bytes = bytes;
    key->gone = false;
    key_changed(keys, key);
    return key;
}

void store_keys_remove(struct store_keys *keys, struct store_key *key)
{
    key->value_bytes = 0;
    key->gone = true;
    key_changed(keys, key);
}

void store_keys_remove_configs(struct store_keys *keys, int32_t rank)
{
    for (struct store_key *key = keys->config[rank]; key; key = key->next_config)
        if (!key->gone)
            store_keys_remove(keys, key);
}

static void key_destroy(struct store_key *key)
{
    free(key->value);
    free(key);
}

void store_keys_forget_configs(struct store_keys *keys, int32_t rank, uint64_t heard)
{
    for (struct store_key **link = &keys->config[rank]; *link;) {
        struct store_key *key = *link;
        if (!key->gone || key->revision > heard) {
            link = &key->next_config;
            continue;
        }
        *link = key->next_config;
        keys->configs[rank]--;
        list_unlink(keys, key);
        key_destroy(key);
    }
}

/* From the newest end: nearly every client has heard nearly everything. */
const struct store_key *store_keys_after(const struct store_keys *keys, uint64_t revision)
{
    const struct store_key *found = NULL;
    for (const struct store_key *key = keys->newest; key && key->revision > revision; key = key->older)
        found = key;
    return found;
}

void store_keys_free(struct store_keys *keys)
{
    struct store_key *key = keys->oldest;
    while (key) {
        struct store_key *newer = key->newer;
        key_destroy(key);
        key = newer;
    }
    *keys = (struct store_keys){.ranks = keys->ranks};
}
