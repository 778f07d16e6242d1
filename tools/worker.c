// SPDX-License-Identifier: Apache-2.0
/* `muster worker`: one rank of a served model. Started by `muster demo`, with the router's channel as its stdin. */
#include <argp.h>
#include <unistd.h>

#include "tool.h"
#include "worker.h"

static const struct argp_option option_table[] = {
    {"model", 'm', "DIR", 0, "The model: config.json and its safetensors, one file or several", 0},
    {"slots", 's', "N", 0, "Experts of a layer that each rank holds", 0},
    {"batch", 'b', "N", 0, "Most tokens of one step on one rank", 0},
    {0},
};

static error_t parse_option(int key, char *text, struct argp_state *state)
{
    struct worker_config *c = state->input;
    switch (key) {
    case 'm': c->model_dir = text; return 0;
    case 's': c->slots_per_rank = (int32_t)tool_number(state, "slots", text, 1, 65536); return 0;
    case 'b': c->max_tokens = (int32_t)tool_number(state, "batch", text, 1, 65536); return 0;
    case ARGP_KEY_END:
        if (!c->model_dir)
            argp_error(state, "--model is missing");
        return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

int tool_worker(int argc, char **argv)
{
    static const struct argp parser = {
        .options = option_table,
        .parser = parse_option,
        .doc =
            "One rank of a served model: takes requests from its standard input, a socket of the router's. Started by "
            "`muster demo`.",
    };
    struct worker_config config = {.slots_per_rank = 32, .max_tokens = 64, .channel = STDIN_FILENO};
    argp_parse(&parser, argc, argv, 0, NULL, &config);
    return worker_run(&config);
}
