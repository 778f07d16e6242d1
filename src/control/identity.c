// SPDX-License-Identifier: Apache-2.0
#include "control/identity.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "control/sidecar.h"
#include "core/config.h"
#include "core/error.h"
#include "core/number.h"

enum { MAX_JOB_VARIABLES = 3 };

/*
 * How a launcher says who a process is. Only `muster run` brings a store; for the others a sidecar is named after the
 * job.
 */
struct launcher {
    const char *name;
    const char *rank, *ranks; /* environment variables */
    const char *local_ranks; /* how many of the ranks are on this host; NULL: see nodes */
    const char *nodes; /* how many hosts there are; NULL: see local_ranks */
    const char *job[MAX_JOB_VARIABLES]; /* what tells this job from any other of this user on this host */
};

enum { MUSTER_RUN, TORCHRUN, OPEN_MPI, SLURM, LAUNCHERS };

static const struct launcher launchers[LAUNCHERS] = {
    [MUSTER_RUN] = {"muster run", "MUSTER_RANK", "MUSTER_RANKS", NULL, NULL, {NULL}},
    [TORCHRUN] = {"torchrun",
                  "RANK",
                  "WORLD_SIZE",
                  "LOCAL_WORLD_SIZE",
                  NULL,
                  {"TORCHELASTIC_RUN_ID", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT"}},
    [OPEN_MPI] = {"Open MPI",
                  "OMPI_COMM_WORLD_RANK",
                  "OMPI_COMM_WORLD_SIZE",
                  "OMPI_COMM_WORLD_LOCAL_SIZE",
                  NULL,
                  {"PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", NULL}},
    [SLURM] = {"SLURM",
               "SLURM_PROCID",
               "SLURM_NTASKS",
               NULL,
               "SLURM_STEP_NUM_NODES",
               {"SLURM_JOB_ID", "SLURM_STEP_ID", NULL}},
};

/* False when the variable is there but is no number of at most `maximum`. */
static bool read_number(const char *text, int32_t maximum, int32_t *number)
{
    uint64_t value;
    if (!number_parse(text, 0, (uint64_t)maximum, &value))
        return false;
    *number = (int32_t)value;
    return true;
}

/* ---- which launcher ---- */

static bool speaks(const struct launcher *l)
{
    return getenv(l->rank) && getenv(l->ranks);
}

/* -1: no number. */
static int32_t number_in(const char *variable)
{
    int32_t number;
    return read_number(getenv(variable), INT32_MAX, &number) ? number : -1;
}

/*
 * A SLURM allocation is what other launchers run in, and what its batch script or a lone task starts inherits their
 * variables: those do not say which rank of several this is. Tasks of a step have a step's number; the script has
 * none, or one of those at the upper end that are reserved for such steps.
 */
static bool is_allocation(const struct launcher *l)
{
    static const unsigned long first_reserved_step = 0xfffffff0;
    const char *step = getenv("SLURM_STEP_ID");
    if (l != &launchers[SLURM])
        return false;
    bool lone = number_in(l->rank) == 0 && number_in(l->ranks) == 1;
    return lone || !step || strtoul(step, NULL, 10) >= first_reserved_step;
}

/* Whether it matters to the caller, who may have said all or part of it, which of the two is right. */
static bool disagree(const muster_group_config *config, const struct launcher *a, const struct launcher *b)
{
    return (config->rank < 0 && number_in(a->rank) != number_in(b->rank)) ||
           (config->ranks < 0 && number_in(a->ranks) != number_in(b->ranks));
}

static muster_status disagreement(const struct launcher *a, const struct launcher *b)
{
    return error_set(
        MUSTER_ERR_ARGUMENT,
        "two launchers disagree on which rank this is: %s says %s=%s %s=%s, and %s says %s=%s %s=%s; unset the "
        "variables of the one that did not start this program, or set config.rank and config.ranks",
        a->name, a->rank, getenv(a->rank), a->ranks, getenv(a->ranks), b->name, b->rank, getenv(b->rank), b->ranks,
        getenv(b->ranks));
}

/* The first that is more than an allocation; or just the first; or NULL. */
static const struct launcher *first_launcher(void)
{
    const struct launcher *first = NULL;
    for (int i = 0; i < LAUNCHERS; i++) {
        if (!speaks(&launchers[i]))
            continue;
        if (!is_allocation(&launchers[i]))
            return &launchers[i];
        first = first ? first : &launchers[i];
    }
    return first;
}

/*
 * `muster run` sets its variables for each rank, so they count whatever else is there. The others inherit what is
 * left of an outer launcher, and who is the inner one cannot be seen: unless they agree nobody is believed.
 */
static muster_status find_launcher(const muster_group_config *config, const struct launcher **from)
{
    const struct launcher *first = first_launcher();
    *from = first;
    if (!first || first == &launchers[MUSTER_RUN])
        return MUSTER_OK;
    for (int i = 0; i < LAUNCHERS; i++) {
        const struct launcher *other = &launchers[i];
        if (speaks(other) && !is_allocation(other) && disagree(config, first, other))
            return disagreement(first, other);
    }
    return MUSTER_OK;
}

/* ---- what it says ---- */

static muster_status take_number(const char *variable, int32_t maximum, int32_t *number)
{
    const char *text = getenv(variable);
    if (read_number(text, maximum, number))
        return MUSTER_OK;
    return error_set(MUSTER_ERR_ARGUMENT, "%s=\"%s\" is not a number from 0 to %d", variable, text, maximum);
}

/* Whatever the caller gave stays; the rest comes from the launcher. */
static muster_status take_numbers(const struct launcher *from, struct identity *identity)
{
    if (identity->ranks < 0) {
        muster_status status = take_number(from->ranks, MUSTER_MAX_RANKS, &identity->ranks);
        if (status != MUSTER_OK)
            return status;
    }
    if (identity->rank < 0)
        return take_number(from->rank, MUSTER_MAX_RANKS - 1, &identity->rank);
    return MUSTER_OK;
}

static muster_status check_numbers(const struct identity *identity)
{
    if (identity->ranks < 1 || identity->ranks > MUSTER_MAX_RANKS)
        return error_set(MUSTER_ERR_ARGUMENT, "ranks is %d; a group has 1 to %d", identity->ranks, MUSTER_MAX_RANKS);
    if (identity->rank < 0 || identity->rank >= identity->ranks)
        return error_set(MUSTER_ERR_ARGUMENT, "rank is %d; with %d ranks it must be 0..%d", identity->rank,
                         identity->ranks, identity->ranks - 1);
    return MUSTER_OK;
}

/*
 * The ranks share memory, so they must share a host; where the launcher says otherwise, better now than by a timeout.
 */
static muster_status check_single_host(const struct launcher *from, int32_t ranks)
{
    const char *local = from->local_ranks ? getenv(from->local_ranks) : NULL;
    const char *nodes = from->nodes ? getenv(from->nodes) : NULL;
    int32_t number;
    if (local && read_number(local, INT32_MAX, &number) && number < ranks)
        return error_set(MUSTER_ERR_UNSUPPORTED,
                         "%s has put %d of %d ranks on this host; all ranks must be on one host", from->name, number,
                         ranks);
    if (nodes && read_number(nodes, INT32_MAX, &number) && number > 1)
        return error_set(MUSTER_ERR_UNSUPPORTED, "%s has spread the ranks over %d hosts; all ranks must be on one host",
                         from->name, number);
    return MUSTER_OK;
}

/* Hashed, because job ids may be longer than a socket's name may be. */
static uint64_t job_hash(const struct launcher *from)
{
    uint64_t hash = XXH3_64bits(from->name, strlen(from->name));
    for (int i = 0; i < MAX_JOB_VARIABLES && from->job[i]; i++) {
        const char *text = getenv(from->job[i]);
        hash = text ? XXH3_64bits_withSeed(text, strlen(text) + 1, hash) : hash + 1;
    }
    return hash;
}

static bool names_a_job(const struct launcher *from)
{
    for (int i = 0; i < MAX_JOB_VARIABLES && from->job[i]; i++)
        if (getenv(from->job[i]))
            return true;
    return false;
}

/*
 * Whose job the sidecar is named after. A script may have copied the numbers into another launcher's variables: then
 * the one that agrees with them names the job. NULL: none does.
 */
static const struct launcher *find_job(const struct launcher *from)
{
    if (!from || names_a_job(from) || from == &launchers[MUSTER_RUN])
        return from && names_a_job(from) ? from : NULL;
    for (int i = 0; i < LAUNCHERS; i++)
        if (speaks(&launchers[i]) && !is_allocation(&launchers[i]) && names_a_job(&launchers[i]))
            return &launchers[i];
    return NULL;
}

static muster_status find_sidecar(const muster_group_config *config, const struct launcher *from,
                                  struct identity *identity)
{
    const struct launcher *job = find_job(from);
    if (!job)
        return error_set(MUSTER_ERR_ARGUMENT, "nothing says where the store is: start the program with "
                                              "`muster run -n N program`, or set config.store or MUSTER_STORE");
    muster_status status = check_single_host(from, identity->ranks);
    if (status == MUSTER_OK)
        status = check_single_host(job, identity->ranks);
    if (status != MUSTER_OK)
        return status;
    char name[64];
    snprintf(name, sizeof name, "muster-%u-%016llx", geteuid(), (unsigned long long)job_hash(job));
    snprintf(identity->store, sizeof identity->store, "unix:@%s", name);
    uint64_t timeout_us = config->start_timeout_us ? config->start_timeout_us : config_number(CONFIG_START_TIMEOUT_US);
    return sidecar_ensure(name, identity->ranks, timeout_us);
}

static muster_status find_store(const muster_group_config *config, const struct launcher *from,
                                struct identity *identity)
{
    const char *where = config->store ? config->store : config_text(CONFIG_STORE, NULL);
    if (!*where)
        return find_sidecar(config, from, identity);
    if (strlen(where) >= sizeof identity->store)
        return error_set(MUSTER_ERR_ARGUMENT, "store has %zu characters; at most %zu are allowed", strlen(where),
                         sizeof identity->store - 1);
    strcpy(identity->store, where);
    return MUSTER_OK;
}

muster_status identity_find(const muster_group_config *config, struct identity *identity)
{
    const struct launcher *from;
    struct identity found = {.rank = config->rank, .ranks = config->ranks};
    muster_status status = find_launcher(config, &from);
    if (status != MUSTER_OK)
        return status;
    if (!from && (found.rank < 0 || found.ranks < 0))
        return error_set(MUSTER_ERR_ARGUMENT,
                         "nothing says which rank this is: start the program with `muster run -n N program`, or set "
                         "config.rank and config.ranks (looked for MUSTER_RANK and MUSTER_RANKS; RANK and WORLD_SIZE "
                         "of torchrun; OMPI_COMM_WORLD_RANK and _SIZE; SLURM_PROCID and SLURM_NTASKS)");
    if (from)
        status = take_numbers(from, &found);
    if (status == MUSTER_OK)
        status = check_numbers(&found);
    if (status == MUSTER_OK)
        status = find_store(config, from, &found);
    if (status == MUSTER_OK)
        *identity = found;
    return status;
}
