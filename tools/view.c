// SPDX-License-Identifier: Apache-2.0
#include "view.h"

#include <poll.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "core/clock.h"

enum { VIEW_BAR = 24, VIEW_ROWS = 24, VIEW_COLUMNS = 80, VIEW_MAX_COLUMNS = 160, VIEW_FIXED_ROWS = 7, VIEW_MOST = 16 };

#define VIEW_BOLD "\033[1m"
#define VIEW_DIM "\033[2m"
#define VIEW_GREEN "\033[32m"
#define VIEW_YELLOW "\033[33m"
#define VIEW_RED "\033[31m"
#define VIEW_PLAIN "\033[0m"
#define VIEW_END "\033[K\n" /* clears what an earlier picture left on the line */

/* ---- What is shown ---- */

static void view_rate(struct view *v, uint64_t now_ns)
{
    uint64_t tokens = v->job->router.accepted;
    if (v->tokens_ns && now_ns > v->tokens_ns) {
        double rate = (double)(tokens - v->tokens) * 1e9 / (double)(now_ns - v->tokens_ns);
        v->tokens_per_s = v->tokens_per_s > 0 ? 0.7 * v->tokens_per_s + 0.3 * rate : rate;
    }
    v->tokens = tokens;
    v->tokens_ns = now_ns;
}

static int32_t view_oldest(const struct job *job, int32_t count)
{
    count = count < JOB_MAX_EVENTS ? count : JOB_MAX_EVENTS;
    return job->events > count ? job->events - count : 0;
}

static double view_seconds(const struct job *job, int32_t event)
{
    return (double)(job->event[event % JOB_MAX_EVENTS].ns - job->started_ns) / 1e9;
}

struct view_state {
    const char *colour, *word;
};

static struct view_state view_state(const struct job *job, int32_t rank)
{
    const struct job_rank *r = &job->rank[rank];
    if (r->pid && r->first_trouble_ns)
        return (struct view_state){VIEW_YELLOW, "suspected"};
    if (r->pid && !job_spared(job, rank))
        return (struct view_state){VIEW_YELLOW, "hit"};
    if (r->pid)
        return r->epoch ? (struct view_state){VIEW_GREEN, "serving"} : (struct view_state){VIEW_DIM, "starting"};
    return r->first_trouble_ns ? (struct view_state){VIEW_RED, "dead"} : (struct view_state){VIEW_DIM, "left"};
}

/* ---- The picture ---- */

static void view_ranks(const struct job *job)
{
    printf(VIEW_DIM "  rank  state      epoch  requests  steps     routes  to other ranks  loaded" VIEW_PLAIN VIEW_END);
    for (int32_t r = 0; r < job->plan.ranks; r++) {
        const struct job_rank *rank = &job->rank[r];
        struct view_state state = view_state(job, r);
        printf("  %4d  %s%-9s" VIEW_PLAIN "  %5u  %8d  %5llu  %9llu  %14llu  %6llu" VIEW_END, r, state.colour,
               state.word, rank->epoch, job->router.rank[r].assigned, (unsigned long long)rank->steps,
               (unsigned long long)rank->routes, (unsigned long long)rank->remote_routes,
               (unsigned long long)rank->experts_loaded);
    }
}

static void view_bar(const struct view *v)
{
    const struct router *router = &v->job->router;
    uint64_t all = router->accepted + router_missing(router);
    int filled = all ? (int)(router->accepted * VIEW_BAR / all) : 0;
    printf("  [");
    for (int i = 0; i < VIEW_BAR; i++)
        putchar(i < filled ? '#' : '.');
    printf("] %llu of %llu tokens, %.0f per second" VIEW_END, (unsigned long long)router->accepted,
           (unsigned long long)all, v->tokens_per_s);
}

/* The end of a prompt and its answer, on one line; the answer stands out. */
static void view_text(const struct router_request *q, int32_t columns)
{
    int32_t room = columns - 3, from = q->length > room ? q->length - room : 0;
    printf("  " VIEW_DIM);
    for (int32_t i = from; i < q->length; i++) {
        if (i == q->prompt || (i == from && from > q->prompt))
            printf(VIEW_PLAIN);
        putchar(q->text[i] >= 32 && q->text[i] < 127 ? q->text[i] : ' ');
    }
    printf(VIEW_PLAIN VIEW_END);
}

static void view_events(const struct view *v, int32_t count)
{
    for (int32_t i = view_oldest(v->job, count); i < v->job->events; i++)
        printf("  %8.3f s  %.*s" VIEW_END, view_seconds(v->job, i), v->columns - 15,
               v->job->event[i % JOB_MAX_EVENTS].text);
}

/* Texts and events share what the ranks leave of the screen; the last row stays free for the cursor. */
static void view_draw(const struct view *v)
{
    const struct job *job = v->job;
    int32_t rest = v->rows - VIEW_FIXED_ROWS - job->plan.ranks;
    int32_t texts = rest / 2 < VIEW_MOST ? rest / 2 : VIEW_MOST;
    printf("\033[H" VIEW_BOLD "  %s" VIEW_PLAIN VIEW_END VIEW_END, v->title);
    view_ranks(job);
    printf(VIEW_END);
    view_bar(v);
    for (int32_t i = 0; i < texts && i < job->router.requests; i++)
        view_text(&job->router.request[i], v->columns);
    printf(VIEW_END);
    if (rest > texts)
        view_events(v, rest - texts);
    printf("\033[J");
}

/* ---- Lines ---- */

static void view_print(struct view *v)
{
    const struct job *job = v->job;
    int32_t oldest = view_oldest(job, JOB_MAX_EVENTS);
    for (int32_t i = v->shown_events > oldest ? v->shown_events : oldest; i < job->events; i++)
        printf("%9.3f s  %s\n", view_seconds(job, i), job->event[i % JOB_MAX_EVENTS].text);
    v->shown_events = job->events;
}

/* ---- The view ---- */

static void view_measure(struct view *v)
{
    struct winsize size;
    v->rows = VIEW_ROWS;
    v->columns = VIEW_COLUMNS;
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_row == 0 || size.ws_col < VIEW_COLUMNS / 2)
        return;
    v->rows = size.ws_row;
    v->columns = size.ws_col < VIEW_MAX_COLUMNS ? size.ws_col : VIEW_MAX_COLUMNS;
}

void view_open(struct view *v, const struct job *job, const char *title, bool terminal)
{
    *v = (struct view){.job = job, .title = title, .terminal = terminal};
    if (terminal)
        printf("\033[2J\033[?25l"); /* an empty screen without a cursor */
    else
        printf("%s\n", title);
    fflush(stdout);
}

/* A terminal that stands still must not hold up the store, which this thread serves too. */
void view_show(void *view)
{
    struct view *v = view;
    struct pollfd out = {.fd = STDOUT_FILENO, .events = POLLOUT};
    view_rate(v, clock_ns());
    if (poll(&out, 1, 0) != 1)
        return;
    if (v->terminal) {
        view_measure(v);
        view_draw(v);
    } else {
        view_print(v);
    }
    fflush(stdout);
}

void view_close(struct view *v)
{
    if (v->terminal)
        printf("\033[?25h");
    else
        view_print(v);
    fflush(stdout);
}
