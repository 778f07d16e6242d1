// SPDX-License-Identifier: Apache-2.0
/* Who a process is, by what launchers have left in its environment: each case is one environment. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "control/identity.h"

enum { MAX_VARIABLES = 12, NOBODY = -1 };

static const char *const names[] = {
    "MUSTER_RANK",   "MUSTER_RANKS",         "MUSTER_STORE",         "RANK",         "WORLD_SIZE",
    "SLURM_JOB_ID",  "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS",
    "SLURM_STEP_ID", "TORCHELASTIC_RUN_ID",  "PMIX_NAMESPACE",
};

struct environment {
    const char *what;
    const char *variables[MAX_VARIABLES]; /* NAME=VALUE */
    int32_t rank, ranks; /* NOBODY: refused */
    const char *says[4]; /* what the error names */
};

/* No sidecar is to be started. */
static void set_environment(const struct environment *e)
{
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        unsetenv(names[i]);
    setenv("MUSTER_STORE", "unix:@nobody", 1);
    for (int i = 0; i < MAX_VARIABLES && e->variables[i]; i++) {
        char name[64];
        size_t length = strcspn(e->variables[i], "=");
        snprintf(name, sizeof name, "%.*s", (int)length, e->variables[i]);
        setenv(name, e->variables[i] + length + 1, 1);
    }
}

static void check(const struct environment *e, const muster_group_config *config)
{
    struct identity found = {.rank = -7};
    set_environment(e);
    muster_status status = identity_find(config, &found);
    if (e->rank != NOBODY) {
        if (status != MUSTER_OK || found.rank != e->rank || found.ranks != e->ranks)
            fail_msg("%s: rank %d of %d, wanted %d of %d (%s)", e->what, found.rank, found.ranks, e->rank, e->ranks,
                     muster_last_error());
        return;
    }
    if (status != MUSTER_ERR_ARGUMENT || found.rank != -7)
        fail_msg("%s: status %d, rank %d of %d, wanted an error", e->what, (int)status, found.rank, found.ranks);
    for (int i = 0; i < 4 && e->says[i]; i++)
        if (!strstr(muster_last_error(), e->says[i]))
            fail_msg("%s: \"%s\" is not in \"%s\"", e->what, e->says[i], muster_last_error());
}

#define MUSTER_RUN(rank, ranks) "MUSTER_RANK=" #rank, "MUSTER_RANKS=" #ranks
#define TORCHRUN(rank, ranks) "RANK=" #rank, "WORLD_SIZE=" #ranks
#define OPEN_MPI(rank, ranks) "OMPI_COMM_WORLD_RANK=" #rank, "OMPI_COMM_WORLD_SIZE=" #ranks
#define SLURM(rank, ranks) "SLURM_PROCID=" #rank, "SLURM_NTASKS=" #ranks

static const struct environment environments[] = {
    {"nobody", {"NOTHING=1"}, NOBODY, 0, {"MUSTER_RANK", "OMPI_COMM_WORLD_RANK"}},
    {"muster run", {MUSTER_RUN(2, 4)}, 2, 4, {NULL}},
    {"torchrun", {TORCHRUN(2, 4)}, 2, 4, {NULL}},
    {"Open MPI", {OPEN_MPI(2, 4)}, 2, 4, {NULL}},
    {"tasks of a step", {SLURM(2, 4), "SLURM_STEP_ID=0"}, 2, 4, {NULL}},
    {"SLURM without a step", {SLURM(0, 1)}, 0, 1, {NULL}},
    {"half a set", {"RANK=3", OPEN_MPI(2, 4)}, 2, 4, {NULL}},

    /* What `muster run` says is meant, whatever is around it. */
    {"muster run inside of torchrun", {MUSTER_RUN(2, 4), TORCHRUN(0, 1)}, 2, 4, {NULL}},
    {"muster run inside of all",
     {MUSTER_RUN(2, 4), TORCHRUN(0, 2), OPEN_MPI(1, 3), SLURM(5, 6), "SLURM_STEP_ID=1"},
     2,
     4,
     {NULL}},

    /* Sets that agree. */
    {"torchrun and Open MPI agree", {TORCHRUN(2, 4), OPEN_MPI(2, 4)}, 2, 4, {NULL}},
    {"a script copies SLURM's", {TORCHRUN(2, 4), SLURM(2, 4), "SLURM_STEP_ID=0"}, 2, 4, {NULL}},
    {"all agree", {TORCHRUN(2, 4), OPEN_MPI(2, 4), SLURM(2, 4), "SLURM_STEP_ID=0"}, 2, 4, {NULL}},
    {"written otherwise", {TORCHRUN(02, 4), OPEN_MPI(2, 04)}, 2, 4, {NULL}},

    /* Sets that do not: who is the inner one cannot be known. */
    {"mpirun with a worker's variables",
     {TORCHRUN(0, 1), OPEN_MPI(2, 4)},
     NOBODY,
     0,
     {"torchrun says RANK=0 WORLD_SIZE=1", "Open MPI says OMPI_COMM_WORLD_RANK=2 OMPI_COMM_WORLD_SIZE=4", "unset",
      "config.rank"}},
    {"torchrun inside of a rank", {TORCHRUN(1, 2), OPEN_MPI(0, 1)}, NOBODY, 0, {"torchrun", "Open MPI"}},
    {"another rank alone", {TORCHRUN(1, 4), OPEN_MPI(2, 4)}, NOBODY, 0, {"RANK=1", "OMPI_COMM_WORLD_RANK=2"}},
    {"another count alone", {TORCHRUN(1, 2), OPEN_MPI(1, 4)}, NOBODY, 0, {"WORLD_SIZE=2", "OMPI_COMM_WORLD_SIZE=4"}},
    {"mpirun in one of several tasks", {OPEN_MPI(1, 4), SLURM(1, 2), "SLURM_STEP_ID=3"}, NOBODY, 0, {"SLURM says"}},
    {"the third disagrees",
     {TORCHRUN(1, 2), OPEN_MPI(1, 2), SLURM(0, 2), "SLURM_STEP_ID=3"},
     NOBODY,
     0,
     {"torchrun says", "SLURM says SLURM_PROCID=0 SLURM_NTASKS=2"}},
    {"no number", {TORCHRUN(x, 4), OPEN_MPI(1, 4)}, NOBODY, 0, {"RANK=x"}},

    /* A SLURM allocation around another launcher. */
    {"mpirun in a batch script", {OPEN_MPI(2, 4), SLURM(0, 1)}, 2, 4, {NULL}},
    {"mpirun in a batch script with tasks", {OPEN_MPI(2, 4), SLURM(0, 8)}, 2, 4, {NULL}},
    {"torchrun in a batch script", {TORCHRUN(3, 4), SLURM(0, 4)}, 3, 4, {NULL}},
    {"torchrun alone in a batch script", {TORCHRUN(0, 1), SLURM(0, 4)}, 0, 1, {NULL}},
    {"a batch step with a number", {OPEN_MPI(2, 4), SLURM(0, 8), "SLURM_STEP_ID=4294967291"}, 2, 4, {NULL}},
    {"an interactive step", {OPEN_MPI(2, 4), SLURM(0, 8), "SLURM_STEP_ID=4294967290"}, 2, 4, {NULL}},
    {"torchrun in a lone task", {TORCHRUN(3, 4), SLURM(0, 1), "SLURM_STEP_ID=0"}, 3, 4, {NULL}},
    {"mpirun in a lone task", {OPEN_MPI(3, 4), SLURM(0, 1), "SLURM_STEP_ID=0"}, 3, 4, {NULL}},
    {"an allocation is no referee",
     {TORCHRUN(0, 1), OPEN_MPI(3, 4), SLURM(0, 1), "SLURM_STEP_ID=0"},
     NOBODY,
     0,
     {"torchrun says", "Open MPI says"}},
};

static void environments_say_who_it_is(void **state)
{
    (void)state;
    muster_group_config config = MUSTER_GROUP_CONFIG_INIT;
    for (size_t i = 0; i < sizeof environments / sizeof *environments; i++)
        check(&environments[i], &config);
}

/* What the caller has said is not asked of anybody. */
static void the_caller_decides(void **state)
{
    (void)state;
    muster_group_config config = MUSTER_GROUP_CONFIG_INIT;
    config.rank = 1;
    check(&(struct environment){"rank given", {TORCHRUN(0, 4), OPEN_MPI(2, 4)}, 1, 4, {NULL}}, &config);
    check(&(struct environment){"rank given", {TORCHRUN(0, 2), OPEN_MPI(0, 4)}, NOBODY, 0, {"WORLD_SIZE=2"}}, &config);
    config.ranks = 8;
    check(&(struct environment){"both given", {TORCHRUN(0, 2), OPEN_MPI(3, 4)}, 1, 8, {NULL}}, &config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(environments_say_who_it_is),
        cmocka_unit_test(the_caller_decides),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
