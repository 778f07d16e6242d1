// SPDX-License-Identifier: Apache-2.0
/*
 * The membership protocol of one rank as a pure state machine: no system call, clock, malloc or thread. The agent and
 * the simulator drive the same object file: they hand in events, and do the actions that come out, in order.
 * docs/protocol.md numbers the rules; comments name the rule they keep.
 */
#ifndef CONTROL_MEMBER_H
#define CONTROL_MEMBER_H

#include <stdbool.h>
#include <stdint.h>

#include "core/mask.h"
#include "muster/group.h"

enum view_phase { VIEW_NONE, VIEW_PREPARE, VIEW_COMMITTED };

/* The value of the one key "view". It only moves by compare-and-swap. */
struct view {
    uint32_t epoch;
    enum view_phase phase;
    int32_t proposer;
    muster_mask mask;
    muster_mask expelled; /* left out since the last commit: each must be fenced before this view commits */
    uint32_t incarnation[MUSTER_MAX_RANKS]; /* of the ranks in mask */
    uint32_t expelled_incarnation[MUSTER_MAX_RANKS]; /* of the ranks in expelled */
};

/* Of a process that has not begun an epoch yet: it has nothing that the others would have to go back to. */
#define MEMBER_NO_PROGRESS UINT64_MAX

enum record_state { RECORD_NONE, RECORD_JOINING, RECORD_ACTIVE, RECORD_LEFT };

/* The value of the key "member/R": what rank R says of itself. Only R writes it. */
struct record {
    uint32_t incarnation;
    enum record_state state;
    uint32_t acknowledged; /* epoch whose prepare this rank has acknowledged */
    uint32_t ready; /* epoch this rank is ready for */
    uint64_t progress; /* how far its caller had come when it said so, or MEMBER_NO_PROGRESS; fixed with `ready` */
    uint32_t failed; /* epoch in which an operation failed here, or abort was called: it must end */
    uint32_t overdue_epoch; /* epoch of the report below */
    muster_mask overdue; /* the peers for which this rank has waited past the deadline */
    uint32_t waiting_epoch; /* epoch of the next line */
    muster_mask waiting; /* the peers this rank waits for; published when it is accused or overdue itself */
};

struct member_config {
    int32_t rank;
    int32_t ranks;
    int32_t min_ranks;
    uint32_t incarnation;
    uint32_t first_epoch; /* of the first view, normally 1; tests start near the end */
    uint64_t propose_delay_ns; /* the i-th lowest member waits i times this before it proposes; 2 ms */
    uint64_t grace_ns; /* an accused rank has this long to say what it waits for; 20 ms */
    uint64_t acknowledge_timeout_ns; /* of a prepare; then the silent are suspects */
    uint64_t ready_timeout_ns; /* of a committed view; longer: weights are loaded in it */
    uint64_t fence_timeout_ns; /* then MUSTER_ERR_UNFENCED */
    uint64_t reply_timeout_ns; /* of a request to the store; then the state is read, never retried blindly */
    uint64_t start_timeout_ns; /* for all ranks to arrive */
};

enum member_event_type {
    MEMBER_START, /* connected: publish the record */
    MEMBER_VIEW, /* the key "view" as read, watched or returned by a compare-and-swap: view, revision */
    MEMBER_SWAPPED, /* the reply to a compare-and-swap: ok (then view/revision are what was written) or not */
    MEMBER_RECORD, /* "member/R": rank, record */
    MEMBER_PRESENCE, /* "presence/R": rank, incarnation, ok = present */
    MEMBER_FENCED, /* "fenced/R": rank, incarnation: that one and all before have exited */
    MEMBER_QUIESCED, /* raise of `epoch` done: no kernel of an older epoch executes here, newcomers are mapped */
    MEMBER_READY, /* the caller has read its verdict and has what it needs for the installed `epoch` */
    MEMBER_OVERDUE, /* a wait in `epoch` passed its deadline: mask = the peers that are to blame */
    MEMBER_FAILED, /* an operation failed in `epoch` with nobody to blame, or abort: end the epoch */
    MEMBER_LEAVE, /* this rank leaves; its kernels have ended and its peers are unmapped */
    MEMBER_TICK, /* the time in member.next_ns has come */
    MEMBER_LOST, /* the store is gone */
};

struct member_event {
    enum member_event_type type;
    uint64_t now_ns;
    muster_mask waiting; /* in every event: the peers that the running kernel here waits for at this moment */
    uint64_t
        paused_ns; /* in every event: how long the driver has just not run (stopped, frozen), as far as it can tell */
    bool ok;
    int32_t rank;
    uint32_t incarnation;
    uint32_t epoch;
    muster_mask mask;
    uint64_t progress; /* of MEMBER_READY */
    uint64_t revision;
    const struct view *view;
    const struct record *record;
};

enum member_action_type {
    MEMBER_DO_PUT, /* write member.self to "member/R" */
    MEMBER_DO_SWAP, /* compare-and-swap "view": `revision` (0: must not exist) to `view`; answer MEMBER_SWAPPED */
    MEMBER_DO_READ, /* read "view" and every record, presence and fence again; answer with their events */
    MEMBER_DO_RAISE, /* raise the live epoch to view.epoch, map newcomers, then answer MEMBER_QUIESCED */
    MEMBER_DO_INSTALL, /* `view` is committed: install it; when the caller is ready answer MEMBER_READY */
    MEMBER_DO_BEGIN, /* every member of epoch is ready: steps may begin */
    MEMBER_DO_FENCE, /* make (rank, incarnation) exit; MEMBER_FENCED follows when it has */
    MEMBER_DO_STOP, /* this rank's group ends with `status`; nothing comes after it */
    MEMBER_DO_LEFT, /* the leave is published: the agent may close */
};

struct member_action {
    enum member_action_type type;
    int32_t rank;
    uint32_t incarnation;
    uint32_t epoch;
    muster_status status;
    muster_mask mask; /* with STOP: the ranks that the message should name (missing, unfenced) */
    uint64_t revision;
    struct view view;
};

/* The most actions one event can cause: one fence per rank and a few more. */
enum { MEMBER_MAX_ACTIONS = MUSTER_MAX_RANKS + 8 };

struct member_actions {
    int count;
    struct member_action item[MEMBER_MAX_ACTIONS];
};

struct member; /* plain data, see below: hashable, copyable by memcpy */

void member_init(struct member *m, const struct member_config *config);

/*
 * Takes one event; fills `actions` (count may be 0). Never fails: what does not fit the state is ignored.
 * A driver hands in all that the store has sent before it hands in MEMBER_TICK: deadlines are judged at ticks alone.
 */
void member_step(struct member *m, const struct member_event *event, struct member_actions *actions);

/* When MEMBER_TICK is wanted next, perhaps already in the past; UINT64_MAX = never. */
uint64_t member_next_ns(const struct member *m);

/* What this rank has published, for MEMBER_DO_PUT. */
const struct record *member_record(const struct member *m);

/* At MEMBER_DO_BEGIN, the same at every member: the least and the most progress of those that have any; 0, 0 if none. */
void member_progress(const struct member *m, uint64_t *least, uint64_t *most);

/*
 * There is no view, or no member of the one that there is has its presence: a group will be founded (M2), as soon as the last
 * of the members before has exited or left (M31).
 */
bool member_is_deserted(const struct member *m);

/*
 * Whose configuration counts when a rank joins or creates something: every rank if a group will be founded, otherwise the
 * members that are present, and this rank.
 */
muster_mask member_expected(const struct member *m);

/* The installed view (phase VIEW_COMMITTED), or one with epoch 0. */
const struct view *member_installed(const struct member *m);

/* What a member would write to the key "view", and so what its turn is counted for. */
enum member_want {
    MEMBER_WANTS_NOTHING,
    MEMBER_WANTS_FOUND,
    MEMBER_WANTS_CHANGE,
    MEMBER_WANTS_COMMIT,
};

enum member_swap {
    MEMBER_SWAP_IDLE,
    MEMBER_SWAP_SENT, /* the reply to a compare-and-swap is awaited */
    MEMBER_SWAP_READING, /* it was lost, or the swap was: the view is being read, and decides */
};

struct member {
    struct member_config config;
    struct record self; /* as published */
    struct record record[MUSTER_MAX_RANKS]; /* of all, as last seen; [rank] mirrors self */
    uint32_t present[MUSTER_MAX_RANKS]; /* incarnation whose presence is open; 0 = none */
    uint32_t gone[MUSTER_MAX_RANKS]; /* incarnations up to this one have lost their presence */
    uint32_t fenced[MUSTER_MAX_RANKS]; /* incarnations up to this one have exited or left */
    struct view view; /* newest value of the key that was seen */
    uint64_t revision; /* of the key; 0 = it does not exist yet */
    struct view installed;
    muster_mask waiting; /* the peers that the kernel here waits for, as of this event */
    uint32_t raised; /* epoch that DO_RAISE was given for; 0 = never was in a view */
    uint32_t quiesced;
    uint32_t begun;
    uint32_t fence_epoch; /* epoch in which this rank has asked for the fences */
    bool started, stopped, left;
    bool unpublished; /* self has changed since the last DO_PUT */
    enum member_swap swap;
    enum member_want want;
    uint64_t slept_revision; /* of the view for which this rank has forgiven itself a short sleep */
    /* Times; 0 = not running. The clock of events is never 0. */
    uint64_t accused_ns[MUSTER_MAX_RANKS]; /* in this view, of each rank: when the first report named it */
    uint64_t now_ns, ticked_ns, started_ns, view_seen_ns, want_ns, swap_started_ns;
    uint64_t next_ns;
};

#endif
