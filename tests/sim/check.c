// SPDX-License-Identifier: Apache-2.0
/*
 * What must hold, after every event. These functions see the truth (who is alive, which kernel executes, what was
 * written to the store) and keep a log of their own; they ask member.c nothing.
 */
#include "core/stamp.h"
#include "world.h"

void check_fail(struct world *w, const struct process *p, const char *what)
{
    if (w->failure)
        return;
    w->failure = what;
    w->failed_process = p ? p->id : -1;
}

static struct epoch_log *check_epoch(struct world *w, uint32_t epoch)
{
    static struct epoch_log none;
    uint32_t index = epoch - w->plan.first_epoch;
    if (index >= SIM_MAX_EPOCHS) {
        check_fail(w, NULL, "an epoch out of all proportion");
        return &none;
    }
    if (index >= w->epochs)
        w->epochs = index + 1;
    return &w->epoch[index];
}

static bool check_is_member(const struct view *view, const struct process *p)
{
    return mask_has(view->mask, p->rank) && view->incarnation[p->rank] == p->incarnation;
}

static void check_same_mask(struct world *w, const struct view *view)
{
    struct epoch_log *log = check_epoch(w, view->epoch);
    if (!log->known) {
        log->known = true;
        log->mask = view->mask;
        for (int r = 0; r < w->plan.ranks; r++)
            log->incarnation[r] = view->incarnation[r];
    }
    bool same = mask_equal(log->mask, view->mask);
    for (int r = 0; r < w->plan.ranks; r++)
        same &= log->incarnation[r] == view->incarnation[r];
    if (!same)
        check_fail(w, NULL, "promise 3: one epoch with two masks");
}

/* ---- Changes of the view, as the store takes them ---- */

/*
 * Who waits itself, or was never touched by a fault, is not to be blamed. Where news is slow that cannot be promised;
 * nor just after a rank was continued: who was held up by it, and computes again, cannot be told from the culprit.
 */
static void check_expelled(struct world *w, const struct process *p)
{
    if (w->plan.slow_network || w->restarted || !process_runs(p) || !p->connected || p->disconnected)
        return;
    bool recovering = w->continued_ns != 0 && w->now_ns - w->continued_ns < SIM_OPERATION_MAX + 2 * SIM_GRACE;
    if (!p->faulted && !recovering)
        check_fail(w, p, "a rank is expelled that no fault has touched");
    uint64_t since_ns = p->waiting_since_ns > p->continued_ns ? p->waiting_since_ns : p->continued_ns;
    if (p->activity == ACTIVITY_WAITING && w->now_ns - since_ns > SIM_GRACE + 5 * SIM_MS)
        check_fail(w, p, "a rank is expelled that was itself waiting");
}

/* A rank number is never given to a process while an older one of that number could still write. */
static void check_joined(struct world *w, const struct process *joiner)
{
    for (int i = 0; i < w->processes; i++) {
        const struct process *p = &w->process[i];
        bool gone = !p->alive || p->unmapped;
        if (p->rank == joiner->rank && p->incarnation < joiner->incarnation && !gone)
            check_fail(w, joiner, "a rank joins while its predecessor lives");
    }
}

static bool check_is_listed(const struct view *view, const struct process *p)
{
    return check_is_member(view, p) ||
           (mask_has(view->expelled, p->rank) && view->expelled_incarnation[p->rank] == p->incarnation);
}

/* A view that goes on with nobody of the one before: all ranks come, and nobody of that one could still write. */
static void check_founded(struct world *w, const struct view *old, const struct view *view)
{
    bool goes_on = false;
    for (int i = 0; old && i < w->processes; i++)
        goes_on |= check_is_member(old, &w->process[i]) && check_is_member(view, &w->process[i]);
    if (goes_on)
        return;
    if (!mask_equal(view->mask, mask_first(w->plan.ranks)))
        check_fail(w, NULL, "the first view does not hold every rank");
    for (int i = 0; old && i < w->processes; i++) {
        const struct process *p = &w->process[i];
        if (check_is_listed(old, p) && p->alive && !p->unmapped)
            check_fail(w, p, "a group is founded anew while somebody of the one before lives");
    }
}

static void check_prepared(struct world *w, const struct view *old, const struct view *view)
{
    if (old && view->epoch != old->epoch + 1)
        check_fail(w, NULL, "an epoch is not one more than the one before");
    check_founded(w, old, view);
    if (view->epoch > STAMP_MAX_EPOCH)
        check_fail(w, NULL, "an epoch beyond the last one");
    if (mask_count(view->mask) < w->plan.min_ranks)
        check_fail(w, NULL, "a view below min_ranks");
    int came = 0;
    for (int i = 0; i < w->processes; i++) {
        const struct process *p = &w->process[i];
        came += check_is_member(view, p) && p->connected_ns != 0;
        bool was = old && check_is_member(old, p), is = check_is_member(view, p);
        if (was && !is)
            check_expelled(w, p);
        if (is && !was)
            check_joined(w, p);
        if (was && !is && w->expelled[p->rank] < p->incarnation) {
            w->expelled[p->rank] = p->incarnation;
            tally.expulsions++;
        }
        tally.joins += old && is && !was;
    }
    if (came != mask_count(view->mask))
        check_fail(w, NULL, "a view holds a process that never came");
}

/* Everyone in the view has acknowledged it, and nobody else who ever held a mapping is left alive. */
static void check_committed(struct world *w, const struct view *old, const struct view *view)
{
    struct epoch_log *log = check_epoch(w, view->epoch);
    log->committed = true;
    tally.commits++;
    if (!old || old->epoch != view->epoch || old->phase != VIEW_PREPARE)
        check_fail(w, NULL, "a view is committed that was not prepared");
    if (!mask_equal(log->quiesced, view->mask))
        check_fail(w, NULL, "a view is committed before every member's kernels have returned");
    for (int i = 0; i < w->processes; i++) {
        const struct process *p = &w->process[i];
        bool could_write = p->alive && p->was_member && !p->unmapped;
        if (could_write && !check_is_member(view, p))
            check_fail(w, p, "promise 4: a view is committed while an expelled process is alive");
    }
}

void check_view(struct world *w, const struct view *view)
{
    const struct view *old = w->view_value >= 0 ? &w->view[w->view_value] : NULL;
    check_same_mask(w, view);
    if (view->phase == VIEW_COMMITTED)
        check_committed(w, old, view);
    else
        check_prepared(w, old, view);
}

/* ---- What ranks say and do ---- */

void check_put(struct world *w, const struct process *p, const struct record *record)
{
    if (record->acknowledged && !mask_has(check_epoch(w, record->acknowledged)->quiesced, p->rank))
        check_fail(w, p, "a rank acknowledges while its kernel of an older epoch executes");
    if (record->ready && !mask_has(check_epoch(w, record->ready)->ready, p->rank))
        check_fail(w, p, "a rank says that it is ready, and is not");
}

void check_quiesced(struct world *w, const struct process *p, uint32_t epoch)
{
    struct epoch_log *log = check_epoch(w, epoch);
    if (data_executes(p))
        check_fail(w, p, "the simulated agent is wrong: a kernel executes");
    if (mask_has(log->mask, p->rank) && log->incarnation[p->rank] == p->incarnation)
        log->quiesced = mask_with(log->quiesced, p->rank);
}

void check_ready(struct world *w, const struct process *p, uint32_t epoch)
{
    struct epoch_log *log = check_epoch(w, epoch);
    if (p->progress != MEMBER_NO_PROGRESS && !mask_has(log->ready, p->rank)) {
        log->least = !log->any || p->progress < log->least ? p->progress : log->least;
        log->most = p->progress > log->most ? p->progress : log->most;
        log->any = true;
    }
    log->ready = mask_with(log->ready, p->rank);
}

/* M32: what every member is told when it begins is what all of them had when they became ready. */
void check_progress(struct world *w, const struct process *p, uint64_t least, uint64_t most)
{
    const struct epoch_log *log = check_epoch(w, p->begun_epoch);
    if (log->least != least || log->most != most)
        check_fail(w, p, "a member begins with a progress that is not the least and the most of all");
}

static void check_raise(struct world *w, const struct process *p, const struct view *view)
{
    check_same_mask(w, view);
    if (view->epoch <= p->live_epoch)
        check_fail(w, p, "the live epoch does not grow");
    if (!check_is_member(view, p))
        check_fail(w, p, "a rank prepares a view that it is not in");
}

static void check_install(struct world *w, const struct process *p, const struct view *view)
{
    check_same_mask(w, view);
    if (!check_epoch(w, view->epoch)->committed)
        check_fail(w, p, "a view is installed that is not committed");
    if (view->epoch != p->live_epoch || !check_is_member(view, p))
        check_fail(w, p, "a rank installs a view that it has not prepared");
}

static void check_begin(struct world *w, const struct process *p, uint32_t epoch)
{
    const struct epoch_log *log = check_epoch(w, epoch);
    if (epoch != p->installed_epoch || epoch <= p->begun_epoch)
        check_fail(w, p, "an epoch begins that is not the installed one, or twice");
    if (!mask_equal(log->mask, log->ready))
        check_fail(w, p, "an epoch begins before every member is ready");
}

/* ---- Stops: only for the stated reasons ---- */

static bool check_may_be_short(struct world *w)
{
    int sound = 0;
    const struct view *view = &w->view[w->view_value];
    for (int i = 0; i < w->processes; i++) {
        const struct process *p = &w->process[i];
        sound += check_is_member(view, p) && process_runs(p) && !p->faulted && p->connected;
    }
    return w->plan.slow_network || w->restarted || sound < w->plan.min_ranks;
}

static bool check_may_be_unfenced(struct world *w, muster_mask named)
{
    bool unkillable = false;
    for (int i = 0; i < w->processes; i++) {
        const struct process *p = &w->process[i];
        unkillable |= mask_has(named, p->rank) && p->alive && (p->unkillable || w->restarted || w->plan.slow_network);
    }
    return unkillable || (w->plan.slow_network && !mask_empty(named));
}

static bool check_may_be_evicted(struct world *w, const struct process *p)
{
    return w->expelled[p->rank] >= p->incarnation || w->fenced[p->rank] >= p->incarnation ||
           w->presence[p->rank] > p->incarnation;
}

/* Whether that is so long ago that what should follow must have followed. */
static bool check_long_since(const struct world *w, uint64_t since_ns)
{
    return w->now_ns - since_ns > SIM_READY && w->now_ns - w->thawed_ns > SIM_READY;
}

/* Someone has long run in the newest view, and nothing keeps it from taking this rank in. */
static bool check_could_join(const struct world *w, const struct process *joiner)
{
    bool runs = false, predecessor = false;
    const struct view *view = w->view_value >= 0 ? &w->view[w->view_value] : NULL;
    if (!view || view->phase != VIEW_COMMITTED || view->epoch == STAMP_MAX_EPOCH || w->restarted)
        return false;
    for (int i = 0; i < w->processes; i++) {
        const struct process *p = &w->process[i];
        bool begun = process_runs(p) && p->begun_epoch == view->epoch && p->activity != ACTIVITY_HUNG;
        runs |= begun && check_long_since(w, p->begun_ns);
        predecessor |= p->rank == joiner->rank && p->incarnation < joiner->incarnation && !p->reaped && !p->left;
    }
    return runs && !predecessor;
}

/* Nobody is left of the newest view, and a process of every rank has long been there to found the group anew. */
static bool check_could_found(const struct world *w)
{
    int waiting = 0;
    const struct view *view = w->view_value >= 0 ? &w->view[w->view_value] : NULL;
    if (!view || view->epoch == STAMP_MAX_EPOCH || w->restarted)
        return false;
    for (int i = 0; i < w->processes; i++) {
        const struct process *p = &w->process[i];
        bool gone = (p->reaped || p->left) && check_long_since(w, p->gone_ns);
        bool waits = process_runs(p) && p->connected && !p->was_member && p->connected_ns != 0;
        if (check_is_listed(view, p) && !gone)
            return false;
        waiting += waits && check_long_since(w, p->connected_ns) && w->presence[p->rank] == p->incarnation;
    }
    return waiting == w->plan.ranks;
}

/* Nobody came to found the group with, or took this rank in; or its kernels hang. */
static bool check_may_time_out(const struct world *w, const struct process *p)
{
    if (p->was_member)
        return data_executes(p);
    return w->now_ns - p->connected_ns >= SIM_START && !check_could_join(w, p) && !check_could_found(w);
}

static bool check_may_stop(struct world *w, const struct process *p, const struct member_action *a)
{
    switch (a->status) {
    case MUSTER_ERR_TIMEOUT: return check_may_time_out(w, p);
    case MUSTER_ERR_CAPACITY: return check_may_be_short(w);
    case MUSTER_ERR_UNFENCED: return check_may_be_unfenced(w, a->mask);
    case MUSTER_ERR_EVICTED: return check_may_be_evicted(w, p);
    case MUSTER_ERR_STORE: return w->restarted || p->disconnected;
    case MUSTER_ERR_EXHAUSTED: return w->view[w->view_value].epoch == STAMP_MAX_EPOCH;
    default: return false;
    }
}

static void check_fence(struct world *w, const struct process *p, const struct member_action *a)
{
    if (w->expelled[a->rank] < a->incarnation)
        check_fail(w, p, "a rank is fenced that no view in the store expels");
}

void check_action(struct world *w, struct process *p, const struct member_action *a)
{
    switch (a->type) {
    case MEMBER_DO_RAISE: check_raise(w, p, &a->view); break;
    case MEMBER_DO_INSTALL: check_install(w, p, &a->view); break;
    case MEMBER_DO_BEGIN: check_begin(w, p, a->epoch); break;
    case MEMBER_DO_FENCE: check_fence(w, p, a); break;
    case MEMBER_DO_STOP:
        if (!check_may_stop(w, p, a))
            check_fail(w, p, "a rank stops without a reason");
        break;
    default: break;
    }
}

/* ---- Data plane ---- */

void check_landing(struct world *w, const struct process *from, const struct process *to, uint64_t stamp)
{
    if (to->begun_epoch > stamp_epoch(stamp))
        check_fail(w, from, "promise 4: a store of an old epoch lands in a newer one");
}

/* Promise 2: exact for one agreed mask: the contribution of every member of the epoch's view, and of this exchange. */
void check_exchange(struct world *w, const struct process *p)
{
    const struct epoch_log *log = check_epoch(w, p->step_view.epoch);
    uint64_t stamp = stamp_make(p->step_view.epoch, p->exchange + 1);
    bool exact = log->committed && mask_equal(log->mask, p->step_view.mask);
    for (int r = 0; r < w->plan.ranks; r++) {
        const struct contribution *c = &p->memory[p->exchange & 1][r];
        if (mask_has(log->mask, r))
            exact &= c->stamp == stamp && c->incarnation == log->incarnation[r];
    }
    if (!exact)
        check_fail(w, p, "promise 2: an exchange is not exact");
}

/* ---- Liveness ---- */

/*
 * Each rank that is stopped, hangs or loads for too long costs at most one round of deadlines; so does one change that
 * was under way, and one that follows. Processes that find no group to join give up after the start timeout.
 */
uint64_t check_bound_ns(const struct world *w)
{
    const uint64_t round_ns =
        SIM_OPERATION_MAX + SIM_STEP + SIM_GRACE + SIM_ACKNOWLEDGE + SIM_READY + SIM_FENCE + SIM_REPLY;
    uint64_t rounds = 2;
    for (int i = 0; i < w->processes; i++) {
        const struct process *p = &w->process[i];
        bool loads = p->installed_epoch != p->loaded_epoch;
        rounds += p->alive && !p->ended && (p->stopped || p->activity == ACTIVITY_HUNG || loads);
    }
    return rounds * round_ns + SIM_START;
}

void check_clock(struct world *w)
{
    if (w->healed && w->now_ns - w->healed_ns > w->bound_ns)
        check_fail(w, NULL, "liveness: no agreed view and exact exchange within the bound");
    if (w->restarted && w->now_ns - w->restarted_ns > 3 * SIM_LEASE)
        for (int i = 0; i < w->processes; i++)
            if (process_runs(&w->process[i]) && w->process[i].connected_ns != 0)
                check_fail(w, &w->process[i], "a rank outlives its store");
}

/* Where every kernel that is left hangs in a committed view, nobody waits for anybody: nothing is left to agree on. */
static bool check_only_hangs(const struct world *w)
{
    bool hang = w->view_value >= 0 && w->view[w->view_value].phase == VIEW_COMMITTED;
    for (int i = 0; i < w->processes; i++)
        hang &= !process_runs(&w->process[i]) || w->process[i].activity == ACTIVITY_HUNG;
    return hang;
}

/* Every process that runs is in the committed view, has begun it, and has finished an exchange after the healing. */
bool check_converged(struct world *w)
{
    if (check_only_hangs(w))
        return true;
    for (int i = 0; i < w->processes; i++) {
        const struct process *p = &w->process[i];
        if (!process_runs(p) || (w->restarted && p->connected_ns == 0))
            continue;
        if (w->restarted || w->view_value < 0 || p->done_since_heal == 0)
            return false;
        const struct view *view = &w->view[w->view_value];
        if (view->phase != VIEW_COMMITTED || !check_is_member(view, p) || p->begun_epoch != view->epoch)
            return false;
    }
    return true;
}
