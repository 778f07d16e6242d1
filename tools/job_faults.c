// SPDX-License-Identifier: Apache-2.0
/* What came of the faults of a run: when each was noticed, agreed on and got over. */
#include "core/mask.h"
#include "job.h"

const struct job_fault *job_fault_fired(struct job *job, int32_t rank, uint64_t ns)
{
    for (int32_t i = 0; i < job->faults; i++) {
        struct job_fault *f = &job->fault[i];
        if (f->rank != rank || f->fired_ns)
            continue;
        f->fired_ns = ns;
        return f;
    }
    return NULL;
}

bool job_spared(const struct job *job, int32_t rank)
{
    for (int32_t i = 0; i < job->faults; i++)
        if (job->fault[i].rank == rank && job->fault[i].fired_ns)
            return false;
    return true;
}

/* The first view that `rank` installed without `victim`; NULL: none yet. */
static const struct job_note *first_view_without(const struct job *job, int32_t rank, int32_t victim)
{
    for (int32_t i = 0; i < job->notes; i++) {
        const struct job_note *n = &job->note[i];
        if (n->type == CHANNEL_VIEW && n->rank == rank && !mask_has(n->mask, victim))
            return n;
    }
    return NULL;
}

/* When `rank` had finished its first good step in that view or a later one; 0: not yet. */
static uint64_t first_good_step_ns(const struct job *job, int32_t rank, uint32_t epoch)
{
    for (int32_t i = 0; i < job->notes; i++) {
        const struct job_note *n = &job->note[i];
        if (n->type == CHANNEL_RESUMED && n->rank == rank && n->epoch >= epoch)
            return n->ns;
    }
    return 0;
}

static uint64_t later(uint64_t a_ns, uint64_t b_ns)
{
    return a_ns > b_ns ? a_ns : b_ns;
}

/* False: some survivor is not there yet. */
static bool settle(const struct job *job, struct job_fault *f)
{
    uint64_t agreed_ns = 0, resumed_ns = 0;
    f->detected_ns = job->rank[f->rank].first_trouble_ns;
    for (int32_t r = 0; r < job->plan.ranks; r++) {
        if (!job_spared(job, r) || job->rank[r].pid == 0)
            continue;
        const struct job_note *view = first_view_without(job, r, f->rank);
        uint64_t step_ns = view ? first_good_step_ns(job, r, view->epoch) : 0;
        if (step_ns == 0)
            return false;
        agreed_ns = later(agreed_ns, view->ns);
        resumed_ns = later(resumed_ns, step_ns);
    }
    f->agreed_ns = agreed_ns;
    f->resumed_ns = resumed_ns;
    return true;
}

bool job_faults_settle(struct job *job)
{
    bool settled = true;
    for (int32_t i = 0; i < job->faults; i++)
        if (job->fault[i].fired_ns && job->fault[i].resumed_ns == 0)
            settled = settle(job, &job->fault[i]) && settled;
    return settled;
}

double job_weights_ms(const struct job *job)
{
    double longest = 0;
    for (int32_t i = 0; i < job->notes; i++) {
        const struct job_note *n = &job->note[i];
        double ms = (double)(n->end_ns - n->ns) / 1e6;
        if (n->type == CHANNEL_LOADED && n->value > 0 && n->epoch > 1 && ms > longest)
            longest = ms;
    }
    return longest;
}
