// SPDX-License-Identifier: Apache-2.0
/*
 * Who is to blame when an operation is late: what this rank reports and what it says in its own defence, whom the next
 * view leaves out, and whether there has to be one.
 */
#include "control/member_state.h"

#include "core/stamp.h"

/* ---- Reporting ---- */

/* M5: an epoch ends at its first failed operation. */
void member_take_failed(struct member *m, const struct member_event *event)
{
    if (!member_runs(m, event->epoch) || m->self.failed == event->epoch)
        return;
    m->self.failed = event->epoch;
    m->unpublished = true;
}

/* M6: a report also says that this rank waits: its kernel may have given up just now, so the blamed count as well. */
void member_take_overdue(struct member *m, const struct member_event *event)
{
    muster_mask blamed = mask_without(mask_and(event->mask, m->view.mask), m->config.rank);
    if (!member_runs(m, event->epoch))
        return;
    if (mask_empty(blamed)) {
        member_take_failed(m, event);
        return;
    }
    if (m->self.overdue_epoch == event->epoch)
        blamed = mask_or(blamed, m->self.overdue);
    m->self.overdue_epoch = event->epoch;
    m->self.overdue = blamed;
    m->self.waiting_epoch = event->epoch;
    m->self.waiting = mask_or(blamed, event->waiting);
    m->unpublished = true;
}

/* ---- Being accused ---- */

/* The members that someone has waited for past the deadline. */
static muster_mask member_accused(const struct member *m)
{
    muster_mask accused = {{0, 0}};
    for (int r = mask_next(m->view.mask, 0); r >= 0; r = mask_next(m->view.mask, r + 1))
        if (member_says(m, r)->overdue_epoch == m->view.epoch)
            accused = mask_or(accused, mask_without(member_says(m, r)->overdue, r));
    return mask_and(accused, m->view.mask);
}

/* Looks eight times within the grace, for a rank that begins to wait in the middle of it; later ever more rarely. */
static void member_look_again(struct member *m)
{
    uint64_t accused_for_ns = m->now_ns - m->accused_ns[m->config.rank];
    uint64_t longer_ns = accused_for_ns > m->config.grace_ns ? accused_for_ns : m->config.grace_ns;
    (void)member_due(m, m->now_ns, longer_ns / 8 + 1);
}

/* M7: who is accused says what it waits for, at once or when it begins to wait within the grace. */
void member_plead(struct member *m)
{
    muster_mask accused = member_accused(m);
    for (int r = mask_next(accused, 0); r >= 0; r = mask_next(accused, r + 1))
        if (m->accused_ns[r] == 0)
            m->accused_ns[r] = m->now_ns;
    if (!mask_has(accused, m->config.rank) || m->self.waiting_epoch == m->view.epoch)
        return;
    if (mask_empty(m->waiting)) {
        member_look_again(m);
        return;
    }
    m->self.waiting_epoch = m->view.epoch;
    m->self.waiting = m->waiting;
    m->unpublished = true;
}

/* ---- Judging ---- */

/* M7, M8: who waits itself is only held up by another; who refused an operation has said so and ended its step. */
static bool member_is_excused(const struct member *m, int r)
{
    const struct record *says = member_says(m, r);
    return (says->waiting_epoch == m->view.epoch && !mask_empty(says->waiting)) || says->failed == m->view.epoch;
}

/* M6: the accused that have had their time to say what they wait for, each counted from its own first accusation. */
static muster_mask member_heard(struct member *m)
{
    muster_mask accused = member_accused(m), heard = {{0, 0}};
    for (int r = mask_next(accused, 0); r >= 0; r = mask_next(accused, r + 1))
        if (member_due(m, m->accused_ns[r], m->config.grace_ns))
            heard = mask_with(heard, r);
    return heard;
}

static muster_mask member_suspects(struct member *m)
{
    muster_mask suspects = {{0, 0}};
    if (m->view.phase == VIEW_PREPARE) { /* M11 */
        muster_mask silent = mask_minus(m->view.mask, member_which(m, member_has_acknowledged));
        bool late = !mask_empty(silent) && member_due(m, m->view_seen_ns, m->config.acknowledge_timeout_ns);
        return late ? silent : suspects;
    }
    muster_mask unready = mask_minus(m->view.mask, member_which(m, member_is_ready));
    if (!mask_empty(unready) && member_due(m, m->view_seen_ns, m->config.ready_timeout_ns)) /* M17 */
        suspects = unready;
    return mask_or(suspects, mask_minus(member_heard(m), member_which(m, member_is_excused))); /* M6 */
}

/* The members that the next view leaves out. */
muster_mask member_out(struct member *m)
{
    muster_mask dead = member_which(m, member_is_dead);
    muster_mask out = mask_or(dead, member_suspects(m));
    /* M30: suspicion needs a judge: where nobody would be left, only the dead go. */
    return mask_equal(out, m->view.mask) ? dead : out;
}

bool member_wants_change(struct member *m, muster_mask out)
{
    if (!mask_empty(out))
        return true;
    if (m->view.phase != VIEW_COMMITTED)
        return false;
    if (!mask_empty(member_which(m, member_has_failed))) /* M5 */
        return true;
    muster_mask accused = member_accused(m);
    if (!mask_empty(accused) && mask_equal(accused, member_heard(m))) /* M9 */
        return true;
    /* M19: a join never disturbs a view that is still being agreed, and is no reason to end a group (M23). */
    return m->begun == m->view.epoch && m->view.epoch < STAMP_MAX_EPOCH && !mask_empty(member_joining(m));
}

/* M29: whose kernels do not return, and whom nobody expels for it, stops by itself after the longer deadline. */
void member_watch_silence(struct member *m, struct member_actions *actions)
{
    uint64_t patience_ns = m->config.acknowledge_timeout_ns + m->config.ready_timeout_ns;
    if (m->view.phase != VIEW_PREPARE || m->self.acknowledged == m->view.epoch)
        return;
    if (member_due(m, m->view_seen_ns, patience_ns))
        member_stop(m, actions, MUSTER_ERR_TIMEOUT, mask_minus(m->view.mask, member_which(m, member_has_acknowledged)));
}
