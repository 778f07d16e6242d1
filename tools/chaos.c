// SPDX-License-Identifier: Apache-2.0
/* `muster chaos`: a campaign of real faults, on GPUs or on the CPU. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chaos.h"
#include "chaos_device.h"
#include "chaos_rank.h"
#include "tool.h"

static const char usage[] = "usage: muster chaos gpu|cpu [OPTION...]\n\n"
                            "  gpu    ranks exchange on GPUs\n"
                            "  cpu    ranks exchange in the memory of this machine\n\n"
                            "`muster chaos cpu --help` says more.\n";

/* Ranks of one device have their blocks side by side, so each may use a part of it only. */
static void share_device(const struct chaos_options *o)
{
    char part[16];
    int32_t sharing = (o->shape.ranks + o->devices - 1) / o->devices;
    if (sharing < 2)
        return;
    snprintf(part, sizeof part, "%d", o->multiprocessors < sharing ? 1 : o->multiprocessors / sharing);
    setenv("MUSTER_MULTIPROCESSORS", part, 0);
}

static bool find_devices(struct chaos_options *o)
{
    if (chaos_device_look(&o->devices, &o->multiprocessors) != MUSTER_OK) {
        fprintf(stderr, "muster chaos gpu: it cannot be done here: %s\n", muster_last_error());
        return false;
    }
    if (o->shape.ranks == 0)
        o->shape.ranks = o->devices < 2 ? 2 : o->devices;
    share_device(o);
    return true;
}

static int run(int argc, char **argv, bool gpu)
{
    struct chaos_options options;
    chaos_parse(argc, argv, gpu, &options);
    if (gpu && !find_devices(&options))
        return TOOL_UNAVAILABLE;
    return chaos_campaign_run(&options);
}

static int run_named(int argc, char **argv, bool gpu)
{
    char name[] = "muster chaos xyz";
    memcpy(name + sizeof name - 4, gpu ? "gpu" : "cpu", 3);
    argv[0] = name; /* what argp calls the program in its messages */
    return run(argc, argv, gpu);
}

int tool_chaos(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    if (strcmp(what, "gpu") == 0 || strcmp(what, "cpu") == 0)
        return run_named(argc - 1, argv + 1, *what == 'g');
    if (strcmp(what, "rank") == 0 && argc == 3) /* how the ranks are started */
        return chaos_rank_run(argv[2]);
    if (strcmp(what, "--help") == 0 || strcmp(what, "-?") == 0) {
        fputs(usage, stdout);
        return EXIT_SUCCESS;
    }
    if (*what)
        fprintf(stderr, "muster chaos: there is nothing called \"%s\" to do it on\n\n", what);
    fputs(usage, stderr);
    return TOOL_USAGE;
}
