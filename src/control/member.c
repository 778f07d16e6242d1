// SPDX-License-Identifier: Apache-2.0
/*
 * Membership of one rank. Every event is first taken into what this rank knows, then this rank does what follows from
 * all that it knows; no action depends on the order in which news arrived. Rules M1.. are in docs/protocol.md.
 *
 * Timers are not set and cancelled: each step asks of every deadline that now matters whether it is due, and those
 * that are not leave their time in next_ns.
 */
#include "control/member.h"

#include <string.h>

#include "core/stamp.h"

static struct member_action *member_emit(struct member_actions *actions, enum member_action_type type)
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

static struct member_action *member_emit_view(struct member_actions *actions, enum member_action_type type,
                                              const struct view *view)
{
    struct member_action *a = member_emit(actions, type);
    a->epoch = view->epoch;
    a->view = *view;
    return a;
}

static void member_stop(struct member *m, struct member_actions *actions, muster_status status, muster_mask named)
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
static bool member_due(struct member *m, uint64_t since_ns, uint64_t length_ns)
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

/* ---- What this rank knows of the others ---- */

/* What rank r of the view has said; nothing if the record is of another incarnation. */
static const struct record *member_says(const struct member *m, int r)
{
    static const struct record nothing;
    return m->record[r].incarnation == m->view.incarnation[r] ? &m->record[r] : &nothing;
}

/* M4, M20: a member whose presence has ended, or that has exited or left, is out. */
static bool member_is_dead(const struct member *m, int r)
{
    return m->gone[r] >= m->view.incarnation[r] || m->fenced[r] >= m->view.incarnation[r];
}

static bool member_has_acknowledged(const struct member *m, int r)
{
    return member_says(m, r)->acknowledged == m->view.epoch;
}

static bool member_is_ready(const struct member *m, int r)
{
    return member_says(m, r)->ready == m->view.epoch;
}

static bool member_has_failed(const struct member *m, int r)
{
    return member_says(m, r)->failed == m->view.epoch;
}

/* M7, M8: who waits itself is only held up by another; who refused an operation has said so and ended its step. */
static bool member_is_excused(const struct member *m, int r)
{
    const struct record *says = member_says(m, r);
    return (says->waiting_epoch == m->view.epoch && !mask_empty(says->waiting)) || says->failed == m->view.epoch;
}

static muster_mask member_which(const struct member *m, bool (*is)(const struct member *m, int r))
{
    muster_mask set = {{0, 0}};
    for (int r = mask_next(m->view.mask, 0); r >= 0; r = mask_next(m->view.mask, r + 1))
        if (is(m, r))
            set = mask_with(set, r);
    return set;
}

static bool member_all(const struct member *m, bool (*are)(const struct member *m, int r))
{
    return mask_equal(member_which(m, are), m->view.mask);
}

/* The members that someone has waited for past the deadline. */
static muster_mask member_accused(const struct member *m)
{
    muster_mask accused = {{0, 0}};
    for (int r = mask_next(m->view.mask, 0); r >= 0; r = mask_next(m->view.mask, r + 1))
        if (member_says(m, r)->overdue_epoch == m->view.epoch)
            accused = mask_or(accused, mask_without(member_says(m, r)->overdue, r));
    return mask_and(accused, m->view.mask);
}

static bool member_is_in_view(const struct member *m)
{
    return mask_has(m->view.mask, m->config.rank) && m->view.incarnation[m->config.rank] == m->config.incarnation;
}

/* M19: a process that came, says that it wants in, and is the only one of its rank number still alive. */
static bool member_may_enter(const struct member *m, int r)
{
    uint32_t incarnation = m->present[r];
    return incarnation != 0 && m->record[r].incarnation == incarnation && m->record[r].state == RECORD_JOINING &&
           m->fenced[r] + 1 == incarnation;
}

/* M18: who was in the view, or is expelled from it, enters again only as a newer incarnation. */
static muster_mask member_joining(const struct member *m)
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

/* M13: those whom this view expels and who could still write. */
static muster_mask member_unfenced(const struct member *m)
{
    muster_mask unfenced = {{0, 0}};
    for (int r = mask_next(m->view.expelled, 0); r >= 0; r = mask_next(m->view.expelled, r + 1))
        if (m->fenced[r] < m->view.expelled_incarnation[r])
            unfenced = mask_with(unfenced, r);
    return unfenced;
}

/* ---- Taking events ---- */

/* M25: the same key of the same store only ever goes forward. */
static bool member_follows(const struct view *old, const struct view *next)
{
    if (old->phase == VIEW_NONE || next->epoch > old->epoch)
        return true;
    return next->epoch == old->epoch && old->phase == VIEW_PREPARE && next->phase == VIEW_COMMITTED &&
           mask_equal(old->mask, next->mask);
}

static void member_take_view(struct member *m, const struct member_event *event, struct member_actions *actions)
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

static void member_take_swapped(struct member *m, const struct member_event *event, struct member_actions *actions)
{
    member_take_view(m, event, actions);
    if (!event->ok && !m->stopped && m->swap == MEMBER_SWAP_SENT)
        member_read(m, actions);
}

/* M20: who has left has unmapped its peers: that is a fence, but of this process alone, not of one before it. */
static void member_take_left(struct member *m, int r, uint32_t incarnation)
{
    if (m->gone[r] < incarnation)
        m->gone[r] = incarnation;
    if (m->fenced[r] + 1 == incarnation)
        m->fenced[r] = incarnation;
}

static void member_take_record(struct member *m, const struct member_event *event, struct member_actions *actions)
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

static void member_take_presence(struct member *m, const struct member_event *event)
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

static void member_take_fenced(struct member *m, const struct member_event *event)
{
    if (m->fenced[event->rank] < event->incarnation)
        m->fenced[event->rank] = event->incarnation;
}

static bool member_runs(const struct member *m, uint32_t epoch)
{
    return m->view.phase == VIEW_COMMITTED && m->view.epoch == epoch && m->installed.epoch == epoch;
}

/* M16: ready is said of the installed view alone, and once. */
static void member_take_ready(struct member *m, const struct member_event *event)
{
    if (!member_runs(m, event->epoch) || m->self.ready == event->epoch)
        return;
    m->self.ready = event->epoch;
    m->unpublished = true;
}

/* M5: an epoch ends at its first failed operation. */
static void member_take_failed(struct member *m, const struct member_event *event)
{
    if (!member_runs(m, event->epoch) || m->self.failed == event->epoch)
        return;
    m->self.failed = event->epoch;
    m->unpublished = true;
}

/* M6: a report also says that this rank waits: its kernel may have given up just now, so the blamed count as well. */
static void member_take_overdue(struct member *m, const struct member_event *event)
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

static void member_take_leave(struct member *m, struct member_actions *actions)
{
    m->self.state = RECORD_LEFT;
    m->left = true;
    member_emit(actions, MEMBER_DO_PUT);
    member_emit(actions, MEMBER_DO_LEFT);
}

static void member_take_start(struct member *m)
{
    m->started = true;
    m->started_ns = m->now_ns;
    m->self.state = RECORD_JOINING;
    m->unpublished = true;
}

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

/* ---- Writing the view ---- */

static uint64_t member_below_me(const struct member *m, muster_mask set)
{
    uint64_t below = 0;
    for (int r = mask_next(set, 0); r >= 0 && r < m->config.rank; r = mask_next(set, r + 1))
        below++;
    return below;
}

/* M3: the lowest of `electorate` writes at once, each other one a delay later than the one below it. */
static bool member_is_my_turn(struct member *m, enum member_want want, muster_mask electorate)
{
    if (m->want != want) {
        m->want = want;
        m->want_ns = m->now_ns;
    }
    return member_due(m, m->want_ns, member_below_me(m, electorate) * m->config.propose_delay_ns);
}

/* M1: the view moves only from the revision that this rank decided on. */
static void member_swap(struct member *m, const struct view *next, struct member_actions *actions)
{
    if (m->swap != MEMBER_SWAP_IDLE)
        return;
    member_emit_view(actions, MEMBER_DO_SWAP, next)->revision = m->revision;
    m->swap = MEMBER_SWAP_SENT;
    m->swap_started_ns = m->now_ns;
    (void)member_due(m, m->swap_started_ns, m->config.reply_timeout_ns);
}

/* M24: a reply that does not come is resolved by reading; a read that brings nothing new leaves the decision open. */
static void member_resolve_swap(struct member *m, struct member_actions *actions)
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

/* M2: the first view holds every rank. */
static void member_found(struct member *m, struct member_actions *actions)
{
    muster_mask all = mask_first(m->config.ranks);
    muster_mask missing = mask_minus(all, member_joining(m));
    if (!mask_empty(missing)) {
        m->want = MEMBER_WANTS_NOTHING;
        if (member_due(m, m->started_ns, m->config.start_timeout_ns)) /* M28 */
            member_stop(m, actions, MUSTER_ERR_TIMEOUT, missing);
        return;
    }
    if (!member_is_my_turn(m, MEMBER_WANTS_FOUND, all))
        return;
    struct view first = {.epoch = m->config.first_epoch,
                         .phase = VIEW_PREPARE,
                         .proposer = m->config.rank,
                         .mask = all};
    memcpy(first.incarnation, m->present, sizeof first.incarnation);
    member_swap(m, &first, actions);
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

static void member_propose(struct member *m, muster_mask out, struct member_actions *actions)
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
static void member_watch_fences(struct member *m, muster_mask unfenced, struct member_actions *actions)
{
    if (mask_empty(unfenced))
        return;
    if (member_due(m, m->view_seen_ns, m->config.fence_timeout_ns))
        member_stop(m, actions, MUSTER_ERR_UNFENCED, unfenced);
    else
        member_fence(m, unfenced, actions);
}

/* M12, M13: a prepared view commits when every member has acknowledged it and nobody expelled is left alive. */
static void member_commit(struct member *m, muster_mask unfenced, struct member_actions *actions)
{
    bool agreed = member_all(m, member_has_acknowledged);
    if (!agreed || !mask_empty(unfenced) || !member_is_my_turn(m, MEMBER_WANTS_COMMIT, m->view.mask))
        return;
    struct view committed = m->view;
    committed.phase = VIEW_COMMITTED;
    member_swap(m, &committed, actions);
}

/* M16: nobody begins an epoch before every member is ready for it. */
static void member_begin(struct member *m, struct member_actions *actions)
{
    if (m->begun == m->view.epoch || !member_all(m, member_is_ready))
        return;
    m->begun = m->view.epoch;
    member_emit(actions, MEMBER_DO_BEGIN)->epoch = m->begun;
}

/* ---- Judging ---- */

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
static muster_mask member_out(struct member *m)
{
    muster_mask dead = member_which(m, member_is_dead);
    muster_mask out = mask_or(dead, member_suspects(m));
    /* M30: suspicion needs a judge: where nobody would be left, only the dead go. */
    return mask_equal(out, m->view.mask) ? dead : out;
}

static bool member_wants_change(struct member *m, muster_mask out)
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
static void member_watch_silence(struct member *m, struct member_actions *actions)
{
    uint64_t patience_ns = m->config.acknowledge_timeout_ns + m->config.ready_timeout_ns;
    if (m->view.phase != VIEW_PREPARE || m->self.acknowledged == m->view.epoch)
        return;
    if (member_due(m, m->view_seen_ns, patience_ns))
        member_stop(m, actions, MUSTER_ERR_TIMEOUT, mask_minus(m->view.mask, member_which(m, member_has_acknowledged)));
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

/* ---- Following the view ---- */

/* Looks eight times within the grace, for a rank that begins to wait in the middle of it; later ever more rarely. */
static void member_look_again(struct member *m)
{
    uint64_t accused_for_ns = m->now_ns - m->accused_ns[m->config.rank];
    uint64_t longer_ns = accused_for_ns > m->config.grace_ns ? accused_for_ns : m->config.grace_ns;
    (void)member_due(m, m->now_ns, longer_ns / 8 + 1);
}

/* M7: who is accused says what it waits for, at once or when it begins to wait within the grace. */
static void member_plead(struct member *m)
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

/* M10: acknowledging promises that no kernel of an older epoch executes here any more. */
static void member_prepare(struct member *m, struct member_actions *actions)
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

static void member_install(struct member *m, struct member_actions *actions)
{
    if (m->installed.epoch == m->view.epoch)
        return;
    if (m->self.acknowledged != m->view.epoch) { /* M25: no store of ours commits without our word */
        member_stop(m, actions, MUSTER_ERR_STORE, (muster_mask){{0, 0}});
        return;
    }
    m->installed = m->view;
    m->self.state = RECORD_ACTIVE;
    m->unpublished = true;
    member_emit_view(actions, MEMBER_DO_INSTALL, &m->view);
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

/* M26: a store that has forgotten this process, or gave its number away, is not followed any further. */
static void member_check_self(struct member *m, struct member_actions *actions)
{
    int rank = m->config.rank;
    if (m->fenced[rank] >= m->config.incarnation || m->gone[rank] >= m->config.incarnation) {
        bool evicted = m->fenced[rank] >= m->config.incarnation || m->present[rank] > m->config.incarnation;
        member_stop(m, actions, evicted ? MUSTER_ERR_EVICTED : MUSTER_ERR_STORE, (muster_mask){{0, 0}});
    }
}

static void member_publish(struct member *m, struct member_actions *actions)
{
    m->record[m->config.rank] = m->self;
    if (!m->unpublished)
        return;
    m->unpublished = false;
    member_emit(actions, MEMBER_DO_PUT);
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
    if (m->view.phase == VIEW_NONE)
        member_found(m, actions);
    else if (member_is_in_view(m))
        member_take_part(m, actions);
    else
        member_stay_outside(m, actions);
}

/* M27: who slept through a deadline of its own has old news; it judges nobody by the time it slept. */
static void member_wake(struct member *m)
{
    bool slept = m->now_ns > m->next_ns && m->now_ns - m->next_ns > m->config.grace_ns;
    if (!slept || m->slept_revision == m->revision)
        return;
    m->slept_revision = m->revision;
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
    member_wake(m);
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
