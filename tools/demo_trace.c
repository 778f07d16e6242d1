// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "demo.h"

/* The elements of a rank's array, without its brackets, each with a comma behind it. */
static void append_rank(FILE *out, int trace)
{
    char line[1024];
    int fd = trace < 0 ? -1 : dup(trace);
    FILE *in = fd < 0 ? NULL : fdopen(fd, "r");
    while (in && fgets(line, sizeof line, in)) {
        size_t end = strcspn(line, "\n");
        line[end] = 0;
        if (*line != '{')
            continue;
        bool comma = end && line[end - 1] == ',';
        fprintf(out, "%s%s\n", line, comma ? "" : ",");
    }
    if (in)
        fclose(in);
}

/* The launcher's own row stands below those of the ranks. */
static void write_events(FILE *out, const struct job *job)
{
    int32_t launcher = job->plan.ranks;
    for (int32_t i = job->events > JOB_MAX_EVENTS ? job->events - JOB_MAX_EVENTS : 0; i < job->events; i++) {
        const struct job_event *e = &job->event[i % JOB_MAX_EVENTS];
        fprintf(out, "{\"name\":\"%s\",\"ph\":\"i\",\"s\":\"p\",\"pid\":%d,\"tid\":0,\"ts\":%.3f},\n", e->text,
                launcher, (double)e->ns / 1e3);
    }
    fprintf(out, "{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":%d,\"args\":{\"name\":\"launcher\"}},\n", launcher);
}

/* A line through all rows where a rank signalled itself: its own trace has died with it. */
static void write_faults(FILE *out, const struct demo_options *o)
{
    for (int32_t i = 0; i < o->faults; i++) {
        const struct job_fault *f = &o->fault[i];
        const char *name = f->signal == SIGKILL ? "SIGKILL" : "SIGSTOP";
        if (f->fired_ns)
            fprintf(out, "{\"name\":\"%s\",\"ph\":\"i\",\"s\":\"g\",\"pid\":%d,\"tid\":0,\"ts\":%.3f},\n", name,
                    f->rank, (double)f->fired_ns / 1e3);
    }
}

bool demo_write_trace(const struct demo *d)
{
    FILE *out = fopen(d->options.trace, "we");
    if (!out) {
        fprintf(stderr, "muster demo: %s: %s\n", d->options.trace, strerror(errno));
        return false;
    }
    fputs("[\n", out);
    for (int32_t r = 0; r < d->options.ranks; r++)
        append_rank(out, d->run.rank[r].trace);
    write_faults(out, &d->options);
    write_events(out, &d->run);
    fputs("{\"name\":\"trace\",\"ph\":\"M\",\"pid\":0,\"args\":{}}\n]\n", out);
    bool written = !ferror(out);
    written = fclose(out) == 0 && written;
    if (!written)
        fprintf(stderr, "muster demo: %s: cannot be written\n", d->options.trace);
    return written;
}
