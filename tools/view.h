// SPDX-License-Identifier: Apache-2.0
/* How a run is shown: a picture that is redrawn on a terminal, and lines as things happen anywhere else. */
#ifndef TOOLS_VIEW_H
#define TOOLS_VIEW_H

#include <stdbool.h>
#include <stdint.h>

#include "job.h"

struct view {
    const struct job *job;
    const char *title;
    bool terminal; /* redraw; otherwise print new events */
    int32_t rows, columns; /* of the terminal */
    int32_t shown_events;
    uint64_t tokens, tokens_ns; /* at the last look, for the rate */
    double tokens_per_s;
};

void view_open(struct view *v, const struct job *job, const char *title, bool terminal);

/* Draws or prints what is new; for job_plan.show. Left out while the output takes nothing: the run goes on. */
void view_show(void *view);

void view_close(struct view *v);

#endif
