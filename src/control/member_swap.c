// SPDX-License-Identifier: Apache-2.0
/*
 * The one key "view": taken as it comes from the store, written by compare-and-swap from the revision that this rank
 * has decided on, each member at its turn.
 */
#include "control/member_state.h"

#include <string.h>

/* M25: the same key of the same store only ever goes forward. */
static bool member_follows(const struct view *old, const struct view *next)
{
    if (old->phase == VIEW_NONE || next->epoch > old->epoch)
        return true;
    return next->epoch == old->epoch && old->phase == VIEW_PREPARE && next->phase == VIEW_COMMITTED &&
           mask_equal(old->mask, next->mask);
}

void member_take_view(struct member *m, const struct member_event *event, struct member_actions *actions)
{
    bool answer = m->swap == MEMBER_SWAP_READING && event->revision == m->revision;
    if (answer)
        m->swap = MEMBER_SWAP_IDLE;
    if (!event->view || event->revision <= m->revision)
        return;
    if (!member_follows(&m->view, event->view)) {
        member_stop(m, actions, MUSTER_ERR_STORE, (muster_mask){{0, 0}});
        return;
    }
    m->view = *event->view;
    m->revision = event->revision;
    m->view_seen_ns = m->now_ns;
    memset(m->accused_ns, 0, sizeof m->accused_ns);
    m->want = MEMBER_WANTS_NOTHING;
    m->swap = MEMBER_SWAP_IDLE;
}

/* M24: the store's answer to a swap that did not succeed is the view as it is now, not another try. */
static void member_read(struct member *m, struct member_actions *actions)
{
    member_emit(actions, MEMBER_DO_READ);
    m->swap = MEMBER_SWAP_READING;
    m->swap_started_ns = m->now_ns;
}

void member_take_swapped(struct member *m, const struct member_event *event, struct member_actions *actions)
{
    member_take_view(m, event, actions);
    if (!event->ok && !m->stopped && m->swap == MEMBER_SWAP_SENT)
        member_read(m, actions);
}

uint64_t member_below_me(const struct member *m, muster_mask set)
{
    uint64_t below = 0;
    for (int r = mask_next(set, 0); r >= 0 && r < m->config.rank; r = mask_next(set, r + 1))
        below++;
    return below;
}

/* M3: the lowest of `electorate` writes at once, each other one a delay later than the one below it. */
bool member_is_my_turn(struct member *m, enum member_want want, muster_mask electorate)
{
    if (m->want != want) {
        m->want = want;
        m->want_ns = m->now_ns;
    }
    return member_due(m, m->want_ns, member_below_me(m, electorate) * m->config.propose_delay_ns);
}

/* M1: the view moves only from the revision that this rank decided on. */
void member_swap(struct member *m, const struct view *next, struct member_actions *actions)
{
    if (m->swap != MEMBER_SWAP_IDLE)
        return;
    member_emit_view(actions, MEMBER_DO_SWAP, next)->revision = m->revision;
    m->swap = MEMBER_SWAP_SENT;
    m->swap_started_ns = m->now_ns;
    (void)member_due(m, m->swap_started_ns, m->config.reply_timeout_ns);
}

/* M24: a reply that does not come is resolved by reading; a read that brings nothing new leaves the decision open. */
void member_resolve_swap(struct member *m, struct member_actions *actions)
{
    if (m->swap == MEMBER_SWAP_IDLE || !member_due(m, m->swap_started_ns, m->config.reply_timeout_ns))
        return;
    if (m->swap == MEMBER_SWAP_READING) {
        m->swap = MEMBER_SWAP_IDLE;
        return;
    }
    member_read(m, actions);
    (void)member_due(m, m->swap_started_ns, m->config.reply_timeout_ns);
}
