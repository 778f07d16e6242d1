// SPDX-License-Identifier: Apache-2.0
/* What one rank knows of the others, in the words of the rules; and how it says what is to be done, and by when. */
#include "control/member_state.h"

/* ---- Actions and deadlines ---- */

struct member_action *member_emit(struct member_actions *actions, enum member_action_type type)
{
    struct member_action *a = &actions->item[actions->count++];
    a->type = type;
    a->rank = -1;
    a->incarnation = 0;
    a->epoch = 0;
    a->status = MUSTER_OK;
    a->mask = (muster_mask){{0, 0}};
    a->revision = 0;
    return a;
}

struct member_action *member_emit_view(struct member_actions *actions, enum member_action_type type,
                                       const struct view *view)
{
    struct member_action *a = member_emit(actions, type);
    a->epoch = view->epoch;
    a->view = *view;
    return a;
}

void member_stop(struct member *m, struct member_actions *actions, muster_status status, muster_mask named)
{
    struct member_action *a = member_emit(actions, MEMBER_DO_STOP);
    a->status = status;
    a->mask = named;
    a->epoch = m->view.epoch;
    m->stopped = true;
}

/*
 * True once `length_ns` have passed since `since_ns`; until then next_ns is no later than that moment. M27: time passes
 * at ticks alone, which come when all news has been read, so that nobody is judged on half of it.
 */
bool member_due(struct member *m, uint64_t since_ns, uint64_t length_ns)
{
    if (length_ns == 0)
        return true;
    if (length_ns > UINT64_MAX - since_ns)
        return false;
    uint64_t due_ns = since_ns + length_ns;
    if (m->ticked_ns >= due_ns)
        return true;
    if (due_ns < m->next_ns)
        m->next_ns = due_ns;
    return false;
}

/* ---- What the store tells of the ranks ---- */

/* M20: who has left has unmapped its peers: that is a fence, but of this process alone, not of one before it. */
static void member_take_left(struct member *m, int r, uint32_t incarnation)
{
    if (m->gone[r] < incarnation)
        m->gone[r] = incarnation;
    if (m->fenced[r] + 1 == incarnation)
        m->fenced[r] = incarnation;
}

void member_take_record(struct member *m, const struct member_event *event, struct member_actions *actions)
{
    int r = event->rank;
    const struct record *record = event->record;
    if (record->incarnation < m->record[r].incarnation)
        return;
    if (record->state == RECORD_LEFT)
        member_take_left(m, r, record->incarnation);
    if (r != m->config.rank)
        m->record[r] = *record;
    else if (record->incarnation > m->config.incarnation)
        member_stop(m, actions, MUSTER_ERR_EVICTED, (muster_mask){{0, 0}});
}

void member_take_presence(struct member *m, const struct member_event *event)
{
    int r = event->rank;
    uint32_t gone = event->ok ? event->incarnation - 1 : event->incarnation;
    if (m->gone[r] < gone)
        m->gone[r] = gone;
    if (event->ok && event->incarnation > m->gone[r])
        m->present[r] = event->incarnation;
    if (m->present[r] <= m->gone[r])
        m->present[r] = 0;
}

void member_take_fenced(struct member *m, const struct member_event *event)
{
    if (m->fenced[event->rank] < event->incarnation)
        m->fenced[event->rank] = event->incarnation;
}

/* ---- What is known of them ---- */

/* What rank r of the view has said; nothing if the record is of another incarnation. */
const struct record *member_says(const struct member *m, int r)
{
    static const struct record nothing;
    return m->record[r].incarnation == m->view.incarnation[r] ? &m->record[r] : &nothing;
}

/* M4, M20: a member whose presence has ended, or that has exited or left, is out. */
bool member_is_dead(const struct member *m, int r)
{
    return m->gone[r] >= m->view.incarnation[r] || m->fenced[r] >= m->view.incarnation[r];
}

bool member_has_acknowledged(const struct member *m, int r)
{
    return member_says(m, r)->acknowledged == m->view.epoch;
}

bool member_is_ready(const struct member *m, int r)
{
    return member_says(m, r)->ready == m->view.epoch;
}

bool member_has_failed(const struct member *m, int r)
{
    return member_says(m, r)->failed == m->view.epoch;
}

muster_mask member_which(const struct member *m, bool (*is)(const struct member *m, int r))
{
    muster_mask set = {{0, 0}};
    for (int r = mask_next(m->view.mask, 0); r >= 0; r = mask_next(m->view.mask, r + 1))
        if (is(m, r))
            set = mask_with(set, r);
    return set;
}

bool member_all(const struct member *m, bool (*are)(const struct member *m, int r))
{
    return mask_equal(member_which(m, are), m->view.mask);
}

bool member_is_in_view(const struct member *m)
{
    return mask_has(m->view.mask, m->config.rank) && m->view.incarnation[m->config.rank] == m->config.incarnation;
}

bool member_runs(const struct member *m, uint32_t epoch)
{
    return m->view.phase == VIEW_COMMITTED && m->view.epoch == epoch && m->installed.epoch == epoch;
}
