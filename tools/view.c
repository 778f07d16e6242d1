// SPDX-License-Identifier: Apache-2.0
#include "view.h"

#include "core/clock.h"

enum { VIEW_EVENTS = 7, VIEW_TEXTS = 5, VIEW_WIDTH = 78, VIEW_BAR = 24 };

static void view_rate(struct view_screen *v, uint64_t now_ns)
{
    const struct job *job = v->job;
    if (v->tokens_ns && now_ns > v->tokens_ns) {
        double rate = (double)(job->router.accepted - v->tokens) * 1e9 / (double)(now_ns - v->tokens_ns);
        v->tokens_per_s = v->tokens_per_s > 0 ? 0.7 * v->tokens_per_s + 0.3 * rate : rate;
    }
    v->tokens = job->router.accepted;
    v->tokens_ns = now_ns;
}

static const char *view_state(const struct job *job, int32_t rank)
{
    if (job->rank[rank].pid > 0)
        return job->rank[rank].first_trouble_ns ? "\033[33msuspected\033[0m" : "\033[32mserving\033[0m";
    return job->rank[rank].first_trouble_ns ? "\033[31mdead\033[0m" : "left";
}

static void view_ranks(const struct job *job)
{
    for (int32_t r = 0; r < job->plan.ranks; r++)
        printf("  rank %-2d  %-20s  epoch %-3u  %2d requests   %8llu of %8llu routes to others\033[K\n", r,
               view_state(job, r), job->rank[r].epoch, job->router.rank[r].assigned,
               (unsigned long long)job->rank[r].remote_routes, (unsigned long long)job->rank[r].routes);
}

static void view_bar(const struct job *job)
{
    uint64_t all = job->router.accepted + router_missing(&job->router);
    int filled = all ? (int)(job->router.accepted * VIEW_BAR / all) : 0;
    printf("  [");
    for (int i = 0; i < VIEW_BAR; i++)
        putchar(i < filled ? '#' : '.');
    printf("] %llu of %llu tokens", (unsigned long long)job->router.accepted, (unsigned long long)all);
}

/* The end of what a request has come to, on one line. */
static void view_text(const struct router_request *q)
{
    int32_t from = q->length > VIEW_WIDTH - 6 ? q->length - (VIEW_WIDTH - 6) : 0;
    printf("    ");
    for (int32_t i = from; i < q->length; i++)
        putchar(q->text[i] >= 32 && q->text[i] < 127 ? q->text[i] : ' ');
    printf("\033[K\n");
}

static void view_events(const struct job *job, int32_t first)
{
    for (int32_t i = first; i < job->events; i++)
        printf("  %8.3f s  %s\033[K\n", (double)job->event[i % JOB_MAX_EVENTS].ns / 1e9,
               job->event[i % JOB_MAX_EVENTS].text);
}

static void view_draw(struct view_screen *v)
{
    const struct job *job = v->job;
    printf("\033[H\033[1m%s\033[0m\033[K\n\033[K\n", v->title);
    view_ranks(job);
    view_bar(job);
    printf(", %.0f tokens/s\033[K\n\033[K\n", v->tokens_per_s);
    for (int32_t i = 0; i < VIEW_TEXTS && i < job->router.requests; i++)
        view_text(&job->router.request[i]);
    printf("\033[K\n");
    view_events(job, job->events > VIEW_EVENTS ? job->events - VIEW_EVENTS : 0);
    printf("\033[J");
}

static void view_print(struct view_screen *v)
{
    const struct job *job = v->job;
    int32_t oldest = job->events > JOB_MAX_EVENTS ? job->events - JOB_MAX_EVENTS : 0;
    for (int32_t i = v->shown_events > oldest ? v->shown_events : oldest; i < job->events; i++)
        printf("%9.3f s  %s\n", (double)job->event[i % JOB_MAX_EVENTS].ns / 1e9, job->event[i % JOB_MAX_EVENTS].text);
    v->shown_events = job->events;
}

void view_show(void *screen)
{
    struct view_screen *v = screen;
    view_rate(v, clock_ns());
    if (v->terminal)
        view_draw(v);
    else
        view_print(v);
    fflush(stdout);
}
