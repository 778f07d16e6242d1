// SPDX-License-Identifier: Apache-2.0
/* A change of the view up to its commit: founded or proposed, acknowledged, its expelled fenced, committed. */
#include "control/member_state.h"

#include <string.h>

#include "core/stamp.h"

/* ---- Proposing ---- */

/* M19: a process that came, says that it wants in, and is the only one of its rank number still alive. */
static bool member_may_enter(const struct member *m, int r)
{
    uint32_t incarnation = m->present[r];
    return incarnation != 0 && m->record[r].incarnation == incarnation && m->record[r].state == RECORD_JOINING &&
           m->fenced[r] + 1 == incarnation;
}

/* M18: who was in the view, or is expelled from it, enters again only as a newer incarnation. */
muster_mask member_joining(const struct member *m)
{
    muster_mask joining = {{0, 0}};
    for (int r = 0; r < m->config.ranks; r++) {
        bool was_in = mask_has(m->view.mask, r) && m->view.incarnation[r] >= m->present[r];
        bool was_out = mask_has(m->view.expelled, r) && m->view.expelled_incarnation[r] >= m->present[r];
        if (!was_in && !was_out && member_may_enter(m, r))
            joining = mask_with(joining, r);
    }
    return joining;
}

static bool member_is_fenced(const struct member *m, int r)
{
    return m->fenced[r] >= m->view.incarnation[r];
}

/* M31: there is no view, or every member of the one that there is has exited or left. */
bool member_is_founding(const struct member *m)
{
    return m->view.phase == VIEW_NONE || member_all(m, member_is_fenced);
}

/* M1: numbers go on where the group before left off. */
static uint32_t member_founding_epoch(const struct member *m)
{
    return m->view.phase == VIEW_NONE ? m->config.first_epoch : m->view.epoch + 1;
}

/* M2, M31: the first view of a group holds every rank. */
void member_found(struct member *m, struct member_actions *actions)
{
    muster_mask all = mask_first(m->config.ranks);
    muster_mask missing = mask_minus(all, member_joining(m));
    if (member_founding_epoch(m) > STAMP_MAX_EPOCH) { /* M23 */
        member_stop(m, actions, MUSTER_ERR_EXHAUSTED, (muster_mask){{0, 0}});
        return;
    }
    if (!mask_empty(missing)) {
        m->want = MEMBER_WANTS_NOTHING;
        if (member_due(m, m->started_ns, m->config.start_timeout_ns)) /* M28 */
            member_stop(m, actions, MUSTER_ERR_TIMEOUT, missing);
        return;
    }
    if (!member_is_my_turn(m, MEMBER_WANTS_FOUND, all))
        return;
    struct view first = {.epoch = member_founding_epoch(m),
                         .phase = VIEW_PREPARE,
                         .proposer = m->config.rank,
                         .mask = all};
    memcpy(first.incarnation, m->present, sizeof first.incarnation);
    member_swap(m, &first, actions);
}

/* Who has come after a presence had ended heard of no end, and of no presence either. */
static bool member_is_present(const struct member *m, int r)
{
    return m->present[r] == m->view.incarnation[r] && !member_is_dead(m, r);
}

bool member_is_deserted(const struct member *m)
{
    return m->view.phase == VIEW_NONE || mask_empty(member_which(m, member_is_present));
}

muster_mask member_expected(const struct member *m)
{
    if (member_is_deserted(m))
        return mask_first(m->config.ranks);
    return mask_with(member_which(m, member_is_present), m->config.rank);
}

/* M1: one more than the newest epoch, whatever became of that. M18: the expelled stay so until a view commits. */
static void member_build_next(const struct member *m, muster_mask out, struct view *next)
{
    *next = m->view;
    next->epoch = m->view.epoch + 1;
    next->phase = VIEW_PREPARE;
    next->proposer = m->config.rank;
    if (m->view.phase == VIEW_COMMITTED) {
        next->expelled = (muster_mask){{0, 0}};
        memset(next->expelled_incarnation, 0, sizeof next->expelled_incarnation);
    }
    next->mask = mask_minus(next->mask, out);
    next->expelled = mask_or(next->expelled, out);
    for (int r = mask_next(out, 0); r >= 0; r = mask_next(out, r + 1)) {
        next->expelled_incarnation[r] = m->view.incarnation[r];
        next->incarnation[r] = 0;
    }
    muster_mask joining = member_joining(m);
    next->mask = mask_or(next->mask, joining);
    for (int r = mask_next(joining, 0); r >= 0; r = mask_next(joining, r + 1))
        next->incarnation[r] = m->present[r];
}

void member_propose(struct member *m, muster_mask out, struct member_actions *actions)
{
    struct view next;
    if (mask_has(out, m->config.rank)) /* M3: who is to be expelled has no say in it */
        return;
    if (m->view.epoch >= STAMP_MAX_EPOCH) { /* M23 */
        member_stop(m, actions, MUSTER_ERR_EXHAUSTED, (muster_mask){{0, 0}});
        return;
    }
    member_build_next(m, out, &next);
    if (mask_count(next.mask) < m->config.min_ranks) { /* M22 */
        member_stop(m, actions, MUSTER_ERR_CAPACITY, out);
        return;
    }
    if (member_is_my_turn(m, MEMBER_WANTS_CHANGE, mask_minus(m->view.mask, out)))
        member_swap(m, &next, actions);
}

/* ---- Acknowledging ---- */

/* M10: acknowledging promises that no kernel of an older epoch executes here any more. */
void member_prepare(struct member *m, struct member_actions *actions)
{
    if (m->raised != m->view.epoch) {
        m->raised = m->view.epoch;
        member_emit_view(actions, MEMBER_DO_RAISE, &m->view);
    }
    if (m->quiesced == m->view.epoch && m->self.acknowledged != m->view.epoch) {
        m->self.acknowledged = m->view.epoch;
        m->unpublished = true;
    }
}

/* ---- Fencing and committing ---- */

/* M13: those whom this view expels and who could still write. */
muster_mask member_unfenced(const struct member *m)
{
    muster_mask unfenced = {{0, 0}};
    for (int r = mask_next(m->view.expelled, 0); r >= 0; r = mask_next(m->view.expelled, r + 1))
        if (m->fenced[r] < m->view.expelled_incarnation[r])
            unfenced = mask_with(unfenced, r);
    return unfenced;
}

/* M14: fences are asked for once the view that expels is in the store, by its proposer, then by each member in turn. */
static void member_fence(struct member *m, muster_mask unfenced, struct member_actions *actions)
{
    uint64_t wait_ns = (member_below_me(m, m->view.mask) + 1) * m->config.propose_delay_ns;
    if (m->fence_epoch == m->view.epoch)
        return;
    if (m->view.proposer != m->config.rank && !member_due(m, m->view_seen_ns, wait_ns))
        return;
    m->fence_epoch = m->view.epoch;
    for (int r = mask_next(unfenced, 0); r >= 0; r = mask_next(unfenced, r + 1)) {
        struct member_action *a = member_emit(actions, MEMBER_DO_FENCE);
        a->rank = r;
        a->incarnation = m->view.expelled_incarnation[r];
        a->epoch = m->view.epoch;
    }
}

/* M15: who cannot be made to exit could still write; rather no group than a wrong result. */
void member_watch_fences(struct member *m, muster_mask unfenced, struct member_actions *actions)
{
    if (mask_empty(unfenced))
        return;
    if (member_due(m, m->view_seen_ns, m->config.fence_timeout_ns))
        member_stop(m, actions, MUSTER_ERR_UNFENCED, unfenced);
    else
        member_fence(m, unfenced, actions);
}

/* M12, M13: a prepared view commits when every member has acknowledged it and nobody expelled is left alive. */
void member_commit(struct member *m, muster_mask unfenced, struct member_actions *actions)
{
    bool agreed = member_all(m, member_has_acknowledged);
    if (!agreed || !mask_empty(unfenced) || !member_is_my_turn(m, MEMBER_WANTS_COMMIT, m->view.mask))
        return;
    struct view committed = m->view;
    committed.phase = VIEW_COMMITTED;
    member_swap(m, &committed, actions);
}
