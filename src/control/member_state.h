// SPDX-License-Identifier: Apache-2.0
/*
 * What the parts of the membership protocol share. They all work on the one struct member and are as pure as it is; what
 * a function promises stands above its definition.
 */
#ifndef CONTROL_MEMBER_STATE_H
#define CONTROL_MEMBER_STATE_H

#include "control/member.h"

/* ---- member_state.c: actions, deadlines, and what is known of the ranks ---- */

struct member_action *member_emit(struct member_actions *actions, enum member_action_type type);
struct member_action *member_emit_view(struct member_actions *actions, enum member_action_type type,
                                       const struct view *view);
/* Ends this rank's group; the caller looks at m->stopped and does nothing more. */
void member_stop(struct member *m, struct member_actions *actions, muster_status status, muster_mask named);
bool member_due(struct member *m, uint64_t since_ns, uint64_t length_ns);

void member_take_record(struct member *m, const struct member_event *event, struct member_actions *actions);
void member_take_presence(struct member *m, const struct member_event *event);
void member_take_fenced(struct member *m, const struct member_event *event);

const struct record *member_says(const struct member *m, int r);
bool member_is_dead(const struct member *m, int r);
bool member_has_acknowledged(const struct member *m, int r);
bool member_is_ready(const struct member *m, int r);
bool member_has_failed(const struct member *m, int r);
/* The members of the view of which `is` holds, and whether `are` holds of every one. */
muster_mask member_which(const struct member *m, bool (*is)(const struct member *m, int r));
bool member_all(const struct member *m, bool (*are)(const struct member *m, int r));
bool member_is_in_view(const struct member *m);
/* Whether this rank has installed the view of `epoch`, and nobody has proposed another. */
bool member_runs(const struct member *m, uint32_t epoch);

/* ---- member_swap.c: the key "view", read and written ---- */

void member_take_view(struct member *m, const struct member_event *event, struct member_actions *actions);
void member_take_swapped(struct member *m, const struct member_event *event, struct member_actions *actions);
/* The members of `set` with a lower rank than this one. */
uint64_t member_below_me(const struct member *m, muster_mask set);
bool member_is_my_turn(struct member *m, enum member_want want, muster_mask electorate);
void member_swap(struct member *m, const struct view *next, struct member_actions *actions);
void member_resolve_swap(struct member *m, struct member_actions *actions);

/* ---- member_view.c: found or propose, acknowledge, fence, commit ---- */

muster_mask member_joining(const struct member *m);
bool member_is_founding(const struct member *m);
void member_found(struct member *m, struct member_actions *actions);
void member_propose(struct member *m, muster_mask out, struct member_actions *actions);
void member_prepare(struct member *m, struct member_actions *actions);
muster_mask member_unfenced(const struct member *m);
void member_watch_fences(struct member *m, muster_mask unfenced, struct member_actions *actions);
void member_commit(struct member *m, muster_mask unfenced, struct member_actions *actions);

/* ---- member_ready.c: install, say ready, begin ---- */

void member_install(struct member *m, struct member_actions *actions);
void member_take_ready(struct member *m, const struct member_event *event);
void member_begin(struct member *m, struct member_actions *actions);

/* ---- member_suspicion.c: who is to blame, and whether the view must change ---- */

void member_take_failed(struct member *m, const struct member_event *event);
void member_take_overdue(struct member *m, const struct member_event *event);
void member_plead(struct member *m);
muster_mask member_out(struct member *m);
bool member_wants_change(struct member *m, muster_mask out);
void member_watch_silence(struct member *m, struct member_actions *actions);

#endif
