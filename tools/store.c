// SPDX-License-Identifier: Apache-2.0
/* `muster store`: the embedded store in a process of its own, a sidecar of ranks that another launcher has started. */
#include <argp.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <unistd.h>

#include "control/store_server.h"
#include "core/clock.h"
#include "inherited.h"
#include "muster/group.h"
#include "tool.h"

#define SECOND_NS UINT64_C(1000000000)

enum { POLL_MAX_MS = 1000 };

struct options {
    const char *name;
    int32_t ranks;
    uint64_t grace_ns; /* how long it goes on without any client */
    uint64_t first_ns; /* how long it waits for the first client */
    bool detach;
    bool served; /* somebody has said hello; it may have left before anybody looks */
    uint64_t end_ns; /* UINT64_MAX: not before the last client has gone */
};

static const struct argp_option option_table[] = {
    {"name", 'N', "NAME", 0, "Serve on the abstract Unix socket NAME; ranks use MUSTER_STORE=unix:@NAME", 0},
    {"ranks", 'n', "N", 0, "Serve a group of N ranks (1 to 128)", 0},
    {"detach", 'd', NULL, 0,
     "Go on in the background; the command itself returns when the store serves, or when another one already does", 0},
    {"grace", 'g', "SECONDS", 0, "End this long after the last client has gone (default 2)", 0},
    {"first", 'f', "SECONDS", 0, "End when no client has come after this long (default 60)", 0},
    {0},
};

static error_t parse_option(int key, char *text, struct argp_state *state)
{
    struct options *o = state->input;
    switch (key) {
    case 'N': o->name = text; return 0;
    case 'n': o->ranks = (int32_t)tool_number(state, "ranks", text, 1, MUSTER_MAX_RANKS); return 0;
    case 'd': o->detach = true; return 0;
    case 'g': o->grace_ns = tool_number(state, "grace", text, 0, 86400) * SECOND_NS; return 0;
    case 'f': o->first_ns = tool_number(state, "first", text, 1, 86400) * SECOND_NS; return 0;
    case ARGP_KEY_END:
        if (!o->name || !o->ranks)
            argp_error(state, "--name and --ranks are needed");
        return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp parser = {
    .options = option_table,
    .parser = parse_option,
    .args_doc = "",
    .doc = "Serves the store of one group, until its last client has gone. Programs that were started by other "
           "launchers than `muster run` start it by themselves.",
};

/* Leaves the caller's terminal, session and streams, whose readers would otherwise wait for our end. */
static void detach_streams(void)
{
    setsid();
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO && null >= 0; fd++)
        dup2(null, fd);
}

static int wait_ms(uint64_t deadline_ns)
{
    uint64_t now_ns = clock_ns();
    uint64_t left_ms = deadline_ns > now_ns ? (deadline_ns - now_ns) / 1000000 + 1 : 0;
    return left_ms < POLL_MAX_MS ? (int)left_ms : POLL_MAX_MS;
}

static void note_event(void *context, int32_t rank, uint32_t incarnation, const char *what)
{
    struct options *o = context;
    (void)rank;
    (void)incarnation;
    (void)what;
    o->served = true;
    o->end_ns = UINT64_MAX;
}

/*
 * Until the last client has gone and the grace after it is over. What moves before the first one has come, a process
 * that only looks whether somebody serves, or one whose hello is still on its way, does not shorten the wait for it.
 */
static void serve(struct store_server *server, struct options *o)
{
    o->end_ns = clock_ns() + o->first_ns;
    while (clock_ns() < o->end_ns) {
        struct pollfd work = {.fd = store_server_fd(server), .events = POLLIN};
        int woken = poll(&work, 1, wait_ms(o->end_ns));
        store_server_poll(server);
        if (store_server_clients(server))
            o->end_ns = UINT64_MAX;
        else if (o->end_ns == UINT64_MAX || (o->served && woken > 0))
            o->end_ns = clock_ns() + o->grace_ns; /* the last one has just gone, or the next is about to say hello */
    }
}

/* Listening begins before the fork, so that the caller finds the store when this command has returned. */
static int start(struct options *o, struct store_server **server)
{
    char text[200];
    if (!inherited_make_room(o->ranks, 0, text, sizeof text)) {
        fprintf(stderr, "muster store: %s\n", text);
        return 1;
    }
    struct store_server_config config = {.ranks = o->ranks, .resizes = 1, .on_event = note_event, .context = o};
    if (store_server_create(&config, server) == MUSTER_OK && store_server_listen(*server, o->name) == MUSTER_OK)
        return 0;
    if (o->detach && errno == EADDRINUSE)
        return -1; /* another rank was faster: its store serves us all */
    fprintf(stderr, "muster store: %s\n", muster_last_error());
    return 1;
}

int tool_store(int argc, char **argv)
{
    struct options o = {.grace_ns = 2 * SECOND_NS, .first_ns = 60 * SECOND_NS};
    struct store_server *server = NULL;
    argp_parse(&parser, argc, argv, 0, NULL, &o);
    if (o.detach)
        close_range(STDERR_FILENO + 1, ~0U, 0); /* what the caller had open is none of ours */
    int failed = start(&o, &server);
    if (failed) {
        store_server_destroy(server);
        return failed < 0 ? 0 : failed;
    }
    if (o.detach) {
        pid_t pid = fork();
        if (pid < 0)
            perror("muster store: fork");
        if (pid != 0)
            _exit(pid < 0);
        detach_streams();
    }
    serve(server, &o);
    store_server_destroy(server);
    return 0;
}
