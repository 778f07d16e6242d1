// SPDX-License-Identifier: Apache-2.0
/*
 * Membership of one rank: its one entry point, member_step(). Every event is first taken into what this rank knows, then
 * this rank does what follows from all that it knows; no action depends on the order in which news arrived. Rules M1..
 * are in docs/protocol.md; member_state.h lists the parts.
 *
 * Timers are not set and cancelled: each step asks of every deadline that now matters whether it is due, and those
 * that are not leave their time in next_ns.
 */
#include "control/member_state.h"

#include <string.h>

/* ---- Taking events ---- */

/* News of a rank that this group does not have, or of no process, is no news. */
static bool member_is_sane(const struct member *m, const struct member_event *event)
{
    bool has_rank = event->rank >= 0 && event->rank < m->config.ranks;
    switch (event->type) {
    case MEMBER_RECORD: return has_rank && event->record;
    case MEMBER_PRESENCE:
    case MEMBER_FENCED: return has_rank && event->incarnation != 0;
    default: return true;
    }
}

static void member_take_start(struct member *m)
{
    m->started = true;
    m->started_ns = m->now_ns;
    m->self.state = RECORD_JOINING;
    m->unpublished = true;
}

static void member_take_leave(struct member *m, struct member_actions *actions)
{
    m->self.state = RECORD_LEFT;
    m->left = true;
    member_emit(actions, MEMBER_DO_PUT);
    member_emit(actions, MEMBER_DO_LEFT);
}

static void member_take(struct member *m, const struct member_event *event, struct member_actions *actions)
{
    switch (event->type) {
    case MEMBER_START: member_take_start(m); break;
    case MEMBER_VIEW: member_take_view(m, event, actions); break;
    case MEMBER_SWAPPED: member_take_swapped(m, event, actions); break;
    case MEMBER_RECORD: member_take_record(m, event, actions); break;
    case MEMBER_PRESENCE: member_take_presence(m, event); break;
    case MEMBER_FENCED: member_take_fenced(m, event); break;
    case MEMBER_QUIESCED: m->quiesced = event->epoch; break;
    case MEMBER_READY: member_take_ready(m, event); break;
    case MEMBER_OVERDUE: member_take_overdue(m, event); break;
    case MEMBER_FAILED: member_take_failed(m, event); break;
    case MEMBER_LEAVE: member_take_leave(m, actions); break;
    case MEMBER_TICK: break;
    case MEMBER_LOST: member_stop(m, actions, MUSTER_ERR_STORE, (muster_mask){{0, 0}}); break; /* M26 */
    }
}

/* ---- Taking part ---- */

static void member_publish(struct member *m, struct member_actions *actions)
{
    m->record[m->config.rank] = m->self;
    if (!m->unpublished)
        return;
    m->unpublished = false;
    member_emit(actions, MEMBER_DO_PUT);
}

/* M26: a store that has forgotten this process, or gave its number away, is not followed any further. */
static void member_check_self(struct member *m, struct member_actions *actions)
{
    int rank = m->config.rank;
    if (m->fenced[rank] >= m->config.incarnation || m->gone[rank] >= m->config.incarnation) {
        bool evicted = m->fenced[rank] >= m->config.incarnation || m->present[rank] > m->config.incarnation;
        member_stop(m, actions, evicted ? MUSTER_ERR_EVICTED : MUSTER_ERR_STORE, (muster_mask){{0, 0}});
    }
}

/* M21: an incarnation that was left out never comes back, so it stops at once, in a prepared view too. */
static void member_stay_outside(struct member *m, struct member_actions *actions)
{
    int rank = m->config.rank;
    bool replaced = m->view.incarnation[rank] > m->config.incarnation;
    bool expelled = mask_has(m->view.expelled, rank) && m->view.expelled_incarnation[rank] >= m->config.incarnation;
    if (m->raised != 0 || replaced || expelled)
        member_stop(m, actions, MUSTER_ERR_EVICTED, (muster_mask){{0, 0}});
    else if (member_due(m, m->started_ns, m->config.start_timeout_ns)) /* M28 */
        member_stop(m, actions, MUSTER_ERR_TIMEOUT, mask_with((muster_mask){{0, 0}}, rank));
}

static void member_decide(struct member *m, struct member_actions *actions)
{
    muster_mask none = {{0, 0}};
    muster_mask unfenced = m->view.phase == VIEW_PREPARE ? member_unfenced(m) : none;
    member_watch_fences(m, unfenced, actions);
    if (!m->stopped)
        member_watch_silence(m, actions);
    if (m->stopped)
        return;
    muster_mask out = member_out(m);
    if (member_wants_change(m, out))
        member_propose(m, out, actions);
    else if (m->view.phase == VIEW_PREPARE)
        member_commit(m, unfenced, actions);
    else
        member_begin(m, actions);
}

/* Own words are put before the view is written: a commit never overtakes the acknowledgement that it counts. */
static void member_take_part(struct member *m, struct member_actions *actions)
{
    if (m->view.phase == VIEW_PREPARE)
        member_prepare(m, actions);
    else
        member_install(m, actions);
    if (m->stopped)
        return;
    member_plead(m);
    member_publish(m, actions);
    member_decide(m, actions);
}

static void member_advance(struct member *m, struct member_actions *actions)
{
    member_check_self(m, actions);
    if (m->stopped)
        return;
    member_publish(m, actions);
    member_resolve_swap(m, actions);
    if (member_is_founding(m))
        member_found(m, actions);
    else if (member_is_in_view(m))
        member_take_part(m, actions);
    else
        member_stay_outside(m, actions);
}

/* ---- The public calls ---- */

/*
 * M27: who did not run has old news, and judges nobody by the time it slept: its deadlines start anew. A pause that is no
 * longer than those of a busy machine counts once per view: who is always a little late has to judge in the end.
 */
static void member_wake(struct member *m, uint64_t paused_ns)
{
    uint64_t late_ns = m->now_ns > m->next_ns ? m->now_ns - m->next_ns : 0;
    uint64_t slept_ns = late_ns > paused_ns ? late_ns : paused_ns;
    bool is_long = slept_ns > m->config.acknowledge_timeout_ns / 2;
    if (slept_ns <= m->config.grace_ns || (!is_long && m->slept_revision == m->revision))
        return;
    if (!is_long)
        m->slept_revision = m->revision;
    m->started_ns = m->now_ns;
    m->view_seen_ns = m->now_ns;
    m->want_ns = m->now_ns;
    for (int r = 0; r < m->config.ranks; r++)
        if (m->accused_ns[r] != 0)
            m->accused_ns[r] = m->now_ns;
}

void member_step(struct member *m, const struct member_event *event, struct member_actions *actions)
{
    actions->count = 0;
    if (m->stopped || m->left)
        return;
    m->now_ns = event->now_ns;
    if (event->type == MEMBER_TICK)
        m->ticked_ns = m->now_ns;
    m->waiting = event->waiting;
    member_wake(m, event->paused_ns);
    m->next_ns = UINT64_MAX;
    if (member_is_sane(m, event))
        member_take(m, event, actions);
    if (m->started && !m->stopped && !m->left)
        member_advance(m, actions);
    if (m->stopped || m->left)
        m->next_ns = UINT64_MAX;
}

void member_init(struct member *m, const struct member_config *config)
{
    memset(m, 0, sizeof *m);
    m->config = *config;
    m->self.incarnation = config->incarnation;
    m->next_ns = UINT64_MAX;
}

uint64_t member_next_ns(const struct member *m)
{
    return m->next_ns;
}

const struct record *member_record(const struct member *m)
{
    return &m->self;
}

const struct view *member_installed(const struct member *m)
{
    return &m->installed;
}
