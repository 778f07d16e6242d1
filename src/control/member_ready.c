// SPDX-License-Identifier: Apache-2.0
/* What follows a commit: the view is installed, each member says when it is ready, and all begin together. */
#include "control/member_state.h"

void member_install(struct member *m, struct member_actions *actions)
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

/* M16: ready is said of the installed view alone, and once. */
void member_take_ready(struct member *m, const struct member_event *event)
{
    if (!member_runs(m, event->epoch) || m->self.ready == event->epoch)
        return;
    m->self.ready = event->epoch;
    m->self.progress = event->progress;
    m->unpublished = true;
}

/* M32: every member has begun on the same records, so all that compare their own progress with this decide alike. */
void member_progress(const struct member *m, uint64_t *least, uint64_t *most)
{
    *least = MEMBER_NO_PROGRESS;
    *most = 0;
    for (int r = mask_next(m->view.mask, 0); r >= 0; r = mask_next(m->view.mask, r + 1)) {
        uint64_t progress = member_says(m, r)->progress;
        if (progress == MEMBER_NO_PROGRESS)
            continue;
        *least = progress < *least ? progress : *least;
        *most = progress > *most ? progress : *most;
    }
    if (*least == MEMBER_NO_PROGRESS)
        *least = 0;
}

/* M16: nobody begins an epoch before every member is ready for it. */
void member_begin(struct member *m, struct member_actions *actions)
{
    if (m->begun == m->view.epoch || !member_all(m, member_is_ready))
        return;
    m->begun = m->view.epoch;
    member_emit(actions, MEMBER_DO_BEGIN)->epoch = m->begun;
}
