// SPDX-License-Identifier: Apache-2.0
#include "control/claim.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/error.h"
#include "core/fork.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of the list */
static struct claim *claims;

static void claims_hold(void)
{
    pthread_mutex_lock(&lock);
}

static void claims_let_go(void)
{
    pthread_mutex_unlock(&lock);
}

/* No thread of the parent's is in the middle of a change that a child would find for ever. */
static void claims_watch_forks(void)
{
    pthread_atfork(claims_hold, claims_let_go, claims_let_go);
}

/* Descriptors may be duplicates of each other, and numbers are used again: the connection itself is what counts. */
static ino_t connection_of(const char *store)
{
    struct stat status;
    if (strncmp(store, "fd:", strlen("fd:")) != 0 || fstat(atoi(store + strlen("fd:")), &status) != 0)
        return 0;
    return status.st_ino;
}

/* A connection has one rank, whichever it is said to be; a store with a name has them all. */
static bool same_place(const struct claim *a, const struct claim *b)
{
    if (a->forks != b->forks)
        return false;
    if (a->connection || b->connection)
        return a->connection == b->connection;
    return a->rank == b->rank && strcmp(a->store, b->store) == 0;
}

static bool is_held(const struct claim *claim)
{
    for (const struct claim *c = claims; c; c = c->next)
        if (same_place(c, claim))
            return true;
    return false;
}

muster_status claim_take(struct claim *claim, const char *store, int32_t rank)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, claims_watch_forks);
    *claim = (struct claim){.forks = fork_count(), .rank = rank, .connection = connection_of(store)};
    snprintf(claim->store, sizeof claim->store, "%s", store);
    pthread_mutex_lock(&lock);
    bool held = is_held(claim);
    if (!held) {
        claim->next = claims;
        claims = claim;
    }
    pthread_mutex_unlock(&lock);
    if (!held)
        return MUSTER_OK;
    return error_set(
        MUSTER_ERR_ORDER,
        "muster_group_create: this process has a group in store \"%s\" as rank %d already; destroy that one "
        "first, or give the other group a store of its own",
        store, rank);
}

void claim_release(struct claim *claim)
{
    pthread_mutex_lock(&lock);
    for (struct claim **link = &claims; *link; link = &(*link)->next)
        if (*link == claim) {
            *link = claim->next;
            break;
        }
    pthread_mutex_unlock(&lock);
}
