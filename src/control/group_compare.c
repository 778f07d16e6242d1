// SPDX-License-Identifier: Apache-2.0
/*
 * What must be the same at every member: the group's configuration, and each object's, with its number and its place in
 * symmetric memory. A rank publishes its own under "config/OBJECT/R" and waits until all that count have done so. The store
 * deletes what a process has published when that process goes.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control/group_state.h"
#include "control/store_keys.h"
#include "core/error.h"

/* An object that was destroyed keeps its key until all have heard that: so not every key is there for those that live. */
enum { MOST_OBJECTS = STORE_MAX_CONFIGS - 56 };

enum { COMPARE_PATIENCE_US = 2000000 };

static const char DESTROYED[] = "destroyed=1\n"; /* a line of an object that its owner has no longer */
static const char REFUSED[] = "refused=1\n"; /* a line of what its owner has found to differ */

/* ---- What the ranks have published ---- */

static struct group_field_set *fields_find(const muster_group *g, const char *object, int rank)
{
    struct group_field_set *set = g->fields;
    while (set && (set->rank != rank || strcmp(set->object, object) != 0))
        set = set->next;
    return set;
}

static const char *fields_of(const muster_group *g, const char *object, int rank)
{
    const struct group_field_set *set = fields_find(g, object, rank);
    return set ? set->fields : NULL;
}

void group_take_fields(muster_group *g, const char *object, int rank, const void *fields, size_t bytes)
{
    struct group_field_set *set = fields_find(g, object, rank);
    if (!set && (set = calloc(1, sizeof *set))) {
        set->rank = rank;
        snprintf(set->object, sizeof set->object, "%s", object);
        set->next = g->fields;
        g->fields = set;
    }
    if (!set)
        return; /* whoever waits for it says in time that it has not come */
    memcpy(set->fields, fields, bytes);
    set->fields[bytes] = 0;
}

/* object NULL: all that the rank has published. */
static void fields_drop(muster_group *g, const char *object, int rank)
{
    for (struct group_field_set **link = &g->fields; *link;) {
        struct group_field_set *set = *link;
        if (set->rank != rank || (object && strcmp(set->object, object) != 0)) {
            link = &set->next;
            continue;
        }
        *link = set->next;
        free(set);
    }
}

void group_drop_fields(muster_group *g, const char *object, int rank)
{
    fields_drop(g, object, rank);
}

void group_drop_rank(muster_group *g, int rank)
{
    fields_drop(g, NULL, rank);
}

static void puts_free(struct group_put *put)
{
    for (struct group_put *next; put; put = next) {
        next = put->next;
        free(put);
    }
}

void group_forget_fields(muster_group *g)
{
    for (struct group_field_set *next, *set = g->fields; set; set = next) {
        next = set->next;
        free(set);
    }
    puts_free(g->mail.puts);
    puts_free(g->removals);
}

/* The value of the line "name=value\n" in fields. False: there is no such line. */
static bool fields_value(const char *fields, const char *name, size_t name_bytes, char *value, size_t bytes)
{
    for (const char *line = fields; *line; line += strcspn(line, "\n") + (line[strcspn(line, "\n")] == '\n'))
        if (strncmp(line, name, name_bytes) == 0 && line[name_bytes] == '=') {
            size_t length = strcspn(line + name_bytes + 1, "\n");
            snprintf(value, bytes, "%.*s", (int)length, line + name_bytes + 1);
            return true;
        }
    snprintf(value, bytes, "?");
    return false;
}

/* ---- Publishing: under the lock ---- */

static struct group_put *put_new(const muster_group *g, const char *object, const char *value)
{
    struct group_put *put = calloc(1, sizeof *put);
    if (!put)
        return NULL;
    snprintf(put->key, sizeof put->key, "config/%s/%d", object, g->config.rank);
    snprintf(put->value, sizeof put->value, "%s", value);
    return put;
}

static void puts_append(struct group_put **list, struct group_put *put)
{
    while (*list)
        list = &(*list)->next;
    *list = put;
}

static bool group_publish(muster_group *g, const char *object, const char *value)
{
    struct group_put *put = put_new(g, object, value);
    if (put)
        puts_append(&g->mail.puts, put);
    agent_wake(g);
    return put;
}

/* ---- Comparing: under the lock ---- */

/* One comparison: of this rank's group, or of an object with this number. */
struct comparison {
    const char *object;
    uint32_t number; /* UINT32_MAX: the group */
    const char *fields; /* of this rank */
};

/* Those that count and have not spoken. */
static muster_mask compare_silent(const muster_group *g, const char *object)
{
    muster_mask silent = {{0, 0}};
    for (int r = mask_next(g->expected, 0); r >= 0; r = mask_next(g->expected, r + 1))
        if (!fields_of(g, object, r))
            silent = mask_with(silent, r);
    return silent;
}

/* What rank r was there with before this rank came: it may be about to leave, and others may follow who agree. */
static bool compare_is_older(const muster_group *g, const struct comparison *c, int r)
{
    if (c->number == UINT32_MAX)
        return !g->founding;
    return c->number < g->objects_before[r];
}

/* Words the first field in which the ranks differ; MUSTER_OK if they agree on it. */
static muster_status compare_field(const muster_group *g, const struct comparison *c, const char *line,
                                   size_t name_bytes, bool *older)
{
    char mine[128], theirs[128], text[768];
    size_t used = 0;
    bool differ = false;
    fields_value(line, line, name_bytes, mine, sizeof mine);
    for (int r = mask_next(g->expected, 0); r >= 0; r = mask_next(g->expected, r + 1)) {
        const char *fields = r == g->config.rank ? c->fields : fields_of(g, c->object, r);
        fields_value(fields, line, name_bytes, theirs, sizeof theirs);
        bool equal = strcmp(mine, theirs) == 0;
        differ = differ || !equal;
        *older = *older || (!equal && compare_is_older(g, c, r));
        if (used + sizeof theirs < sizeof text)
            used += (size_t)snprintf(text + used, sizeof text - used, "%srank %d = %s", used ? ", " : "", r, theirs);
    }
    if (!differ)
        return MUSTER_OK;
    return error_set(MUSTER_ERR_MISMATCH, "%s: %.*s differs: %s", c->object, (int)name_bytes, line, text);
}

static muster_status compare_fields(const muster_group *g, const struct comparison *c, bool *older)
{
    for (const char *line = c->fields; *line;) {
        size_t length = strcspn(line, "\n");
        muster_status status = compare_field(g, c, line, strcspn(line, "="), older);
        if (status != MUSTER_OK)
            return status;
        line += length + (line[length] == '\n');
    }
    return MUSTER_OK;
}

static muster_status compare_timed_out(const muster_group *g, const char *object)
{
    char ranks[256];
    mask_text(compare_silent(g, object), ranks, sizeof ranks);
    return error_set(MUSTER_ERR_TIMEOUT, "%s: after %llu ms these ranks have not arrived: %s", object,
                     (unsigned long long)g->config.start_timeout_us / 1000, ranks);
}

/* A member that had created this object before this rank joined, and has it no longer; -1: there is none. */
static int compare_without(const muster_group *g, const struct comparison *c)
{
    for (int r = mask_next(g->expected, 0); r >= 0; r = mask_next(g->expected, r + 1)) {
        const char *fields = fields_of(g, c->object, r);
        if (r != g->config.rank && c->number < g->objects_before[r] && (!fields || strstr(fields, DESTROYED)))
            return r;
    }
    return -1;
}

static muster_status compare_explain_without(const muster_group *g, const char *object, int rank)
{
    char held[512] = "nothing", offset[32];
    size_t used = 0;
    for (const struct group_field_set *set = g->fields; set; set = set->next) {
        if (set->rank != rank || !fields_value(set->fields, "offset", strlen("offset"), offset, sizeof offset) ||
            strstr(set->fields, DESTROYED) || used + 64 > sizeof held)
            continue;
        used += (size_t)snprintf(held + used, sizeof held - used, "%s%s (offset %s)", used ? ", " : "", set->object,
                                 offset);
    }
    return error_set(MUSTER_ERR_MISMATCH,
                     "%s: rank %d created and destroyed it before this rank joined, and has %s now; a rank that joins "
                     "must have the same objects at the same places, and the place of one that was destroyed is not "
                     "used again: exchanges that newcomers create must be kept",
                     object, rank, held);
}

/* As things stand. AGAIN: somebody has yet to speak. *older: the difference is with what was there before this rank came. */
static muster_status compare_now(const muster_group *g, const struct comparison *c, bool *older)
{
    int without = compare_without(g, c);
    *older = without >= 0;
    if (without >= 0)
        return compare_explain_without(g, c->object, without);
    if (!mask_empty(compare_silent(g, c->object)))
        return MUSTER_ERR_AGAIN;
    return compare_fields(g, c, older);
}

static bool compare_is_over(const muster_group *g, const struct comparison *c)
{
    for (int r = mask_next(g->expected, 0); r >= 0; r = mask_next(g->expected, r + 1)) {
        const char *fields = fields_of(g, c->object, r);
        if (r != g->config.rank && fields && !strstr(fields, REFUSED) && !strstr(fields, DESTROYED))
            return false;
    }
    return true;
}

/*
 * What this rank has said goes when it does, and a slower one would wait for it in vain: so it stays, for a moment at most,
 * until all others have found the difference as well, or have gone.
 */
static muster_status compare_refuse(muster_group *g, const struct comparison *c, muster_status status)
{
    char refused[STORE_MAX_VALUE];
    struct timespec deadline = group_deadline(COMPARE_PATIENCE_US);
    if (snprintf(refused, sizeof refused, "%s%s", c->fields, REFUSED) >= (int)sizeof refused)
        return status;
    group_publish(g, c->object, refused);
    while (!compare_is_over(g, c) && !atomic_load(&g->sticky) && group_wait_change(g, &deadline)) {
    }
    return status;
}

/* Before this rank has joined nobody waits for it: whoever is still there may have much to do before it leaves. */
static uint64_t compare_patience_us(const muster_group *g, const struct comparison *c)
{
    uint64_t longer_us = c->number == UINT32_MAX ? g->config.start_timeout_us / 4 : 0;
    return longer_us > COMPARE_PATIENCE_US ? longer_us : COMPARE_PATIENCE_US;
}

/*
 * Waits, at most the start timeout, until all that count have spoken. Who comes before the last of an earlier group have gone
 * (the next program of a script, say) finds them different; so they have a moment to leave before that is an error.
 */
static muster_status compare_wait(muster_group *g, const struct comparison *c)
{
    struct timespec silence = group_deadline(g->config.start_timeout_us), difference = {0, 0};
    bool differed = false;
    while (!atomic_load(&g->sticky)) {
        bool older;
        muster_status status = compare_now(g, c, &older);
        if (status == MUSTER_OK)
            return status;
        if (status == MUSTER_ERR_MISMATCH && !older)
            return compare_refuse(g, c, status);
        if (status == MUSTER_ERR_MISMATCH && !differed)
            difference = group_deadline(compare_patience_us(g, c));
        differed = status == MUSTER_ERR_MISMATCH;
        if (!group_wait_change(g, differed ? &difference : &silence))
            return differed ? status : compare_timed_out(g, c->object);
    }
    return MUSTER_OK;
}

muster_status group_compare(muster_group *g, const char *fields)
{
    static const char object[] = "group";
    pthread_mutex_lock(&g->lock);
    muster_status status = group_publish(g, object, fields)
                               ? compare_wait(g, &(struct comparison){object, UINT32_MAX, fields})
                               : error_set(MUSTER_ERR_MEMORY, "no memory to tell the others of the configuration");
    g->founder = g->founding;
    pthread_mutex_unlock(&g->lock);
    return status == MUSTER_OK ? group_check(g) : status;
}

/* ---- Objects ---- */

/* A founder has been there for all of them. What a member begins to create from now on needs this rank as well. */
void group_note_objects(muster_group *g)
{
    char next[16];
    pthread_mutex_lock(&g->lock);
    for (int r = 0; r < g->config.ranks && !g->founder; r++) {
        const char *fields = fields_of(g, "objects", r);
        bool known = fields && fields_value(fields, "next", strlen("next"), next, sizeof next);
        g->objects_before[r] = known ? (uint32_t)strtoul(next, NULL, 10) : 0;
    }
    pthread_mutex_unlock(&g->lock);
}

/* In this order: who hears that the number is used has heard of the object. */
static bool object_publish(muster_group *g, const struct group_object *object, const char *fields)
{
    char next[32];
    snprintf(next, sizeof next, "next=%u\n", object->number + 1);
    return group_publish(g, object->name, fields) && group_publish(g, "objects", next);
}

/* All have published this object, so nobody compares an older one any more. */
static void object_remove_older(muster_group *g)
{
    puts_append(&g->mail.puts, g->removals);
    g->removals = NULL;
    agent_wake(g);
}

static muster_status object_agree(muster_group *g, const struct group_object *object, const char *fields)
{
    char all[STORE_MAX_VALUE - sizeof REFUSED - sizeof DESTROYED];
    snprintf(all, sizeof all, "%soffset=%llu\n", fields, (unsigned long long)object->offset);
    pthread_mutex_lock(&g->lock);
    muster_status status = object_publish(g, object, all)
                               ? compare_wait(g, &(struct comparison){object->name, object->number, all})
                               : error_set(MUSTER_ERR_MEMORY, "no memory to tell the others of %s", object->name);
    if (status == MUSTER_OK)
        object_remove_older(g);
    pthread_mutex_unlock(&g->lock);
    return status == MUSTER_OK ? group_check(g) : status;
}

/* More than the store keeps would be compared in vain, until the start timeout. */
static muster_status object_check_count(const muster_group *g, const struct group_object *object)
{
    if (g->objects_held < MOST_OBJECTS)
        return MUSTER_OK;
    return error_set(MUSTER_ERR_UNSUPPORTED, "%s: this rank has %d exchanges, and a group has at most %d at a time",
                     object->name, g->objects_held, MOST_OBJECTS);
}

/*
 * Others may still be comparing it, so what was said stays, marked, until all have published a newer object. Without
 * memory for that it stays for the life of this process, which only a newcomer could hold against us.
 */
static void object_withdraw(muster_group *g, const struct group_object *object)
{
    char marked[STORE_MAX_VALUE] = "";
    pthread_mutex_lock(&g->lock);
    const char *fields = fields_of(g, object->name, g->config.rank);
    if (fields && strlen(fields) < sizeof marked - sizeof DESTROYED)
        strcpy(marked, fields);
    strcat(marked, DESTROYED);
    group_publish(g, object->name, marked);
    struct group_put *removal = put_new(g, object->name, "");
    if (removal) {
        removal->remove = true;
        puts_append(&g->removals, removal);
    }
    pthread_mutex_unlock(&g->lock);
}

muster_status group_object_create(muster_group *g, const char *kind, const char *fields, uint64_t bytes,
                                  struct group_object *object)
{
    uint64_t used = g->region_used;
    object->number = g->objects++;
    snprintf(object->name, sizeof object->name, "%s%u", kind, object->number);
    muster_status status = object_check_count(g, object);
    if (status == MUSTER_OK)
        status = group_memory_take(g, bytes, &object->offset);
    if (status != MUSTER_OK)
        return status;
    status = object_agree(g, object, fields);
    if (status == MUSTER_OK) {
        g->objects_held++;
        return MUSTER_OK;
    }
    g->region_used = used;
    object_withdraw(g, object);
    return status;
}

void group_object_destroy(muster_group *g, const struct group_object *object)
{
    if (group_is_forked(g))
        return;
    g->objects_held--;
    object_withdraw(g, object);
}
