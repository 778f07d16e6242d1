// SPDX-License-Identifier: Apache-2.0
/* What the library is compared with: the same exchange over MPI on the host, over NCCL on GPUs, where they are there. */
#include <stdarg.h>
#include <stdio.h>

#include "muster/ep.h"
#include "perf.h"
#include "perf_nccl.h"

#define START_NS UINT64_C(90000000000) /* NCCL: a context on each GPU, then a way from each to each */

bool perf_baseline_refuse(struct perf_run *run, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(run->baseline.reason, sizeof run->baseline.reason, format, arguments);
    va_end(arguments);
    return false;
}

/* ---- NCCL ---- */

static bool nccl_has_counterpart(struct perf_run *run)
{
    const struct perf_shape *s = &run->options.shape;
    if (s->ranks < 2)
        return perf_baseline_refuse(run, "one rank has nobody to exchange with");
    if (s->quantise || s->quantise_return)
        return perf_baseline_refuse(run, "it does neither way --quantise");
    return true;
}

static void start_nccl(struct perf_run *run)
{
    struct perf_baseline *b = &run->baseline;
    if (!nccl_has_counterpart(run) || !perf_nccl_is_there(b->reason, sizeof b->reason))
        return;
    b->running = perf_crew_start(run, PERF_NCCL, START_NS);
    if (!b->running) {
        perf_baseline_drop(run);
        return;
    }
    snprintf(b->command, sizeof b->command, "%s",
             "counts and routes are known on the host beforehand, which favours it: no exchange of counts, no wait for "
             "the host, nothing beside the rows");
}

/* ---- either ---- */

void perf_baseline_start(struct perf_run *run)
{
    run->baseline.side = run->options.shape.cuda ? PERF_NCCL : PERF_MPI;
    if (!run->options.baseline)
        perf_baseline_refuse(run, "--no-baseline was given");
    else if (run->baseline.side == PERF_NCCL)
        start_nccl(run);
    else
        perf_mpi_start(run);
}

void perf_baseline_drop(struct perf_run *run)
{
    struct perf_baseline *b = &run->baseline;
    char line[160] = "";
    if (b->side == PERF_MPI)
        perf_mpi_end(run, line, sizeof line);
    else
        perf_crew_stop(run, PERF_NCCL, false);
    perf_baseline_refuse(run, "%s%s%s", run->board->why, *line ? "; mpirun says: " : "", line);
    b->running = false;
    if (run->series_count)
        run->series_count--; /* it is the last */
    perf_board_expect(run->board); /* its failure is not the run's */
}

void perf_baseline_stop(struct perf_run *run)
{
    if (run->baseline.running && run->baseline.side == PERF_MPI)
        perf_mpi_stop(run);
    else if (run->baseline.running)
        perf_crew_stop(run, PERF_NCCL, true);
    run->baseline.running = false;
}
