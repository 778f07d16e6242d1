// SPDX-License-Identifier: Apache-2.0
#include "nccl.h"

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static const char file_name[] = "libnccl.so.2";

/* ISO C has no way from an object's address to a function's but that of its bytes. */
static bool load_function(void *library, const char *name, void *function)
{
    void *symbol = dlsym(library, name);
    memcpy(function, &symbol, sizeof symbol);
    return symbol;
}

/* The name of the first function that is not there, or NULL. */
static const char *load_functions(void *library, struct nccl *n)
{
    const struct {
        const char *name;
        void *function;
    } wanted[] = {{"ncclGetVersion", &n->get_version},
                  {"ncclGetUniqueId", &n->get_unique_id},
                  {"ncclCommInitRank", &n->comm_init_rank},
                  {"ncclCommDestroy", &n->comm_destroy},
                  {"ncclCommAbort", &n->comm_abort},
                  {"ncclCommGetAsyncError", &n->comm_get_async_error},
                  {"ncclGroupStart", &n->group_start},
                  {"ncclGroupEnd", &n->group_end},
                  {"ncclSend", &n->send},
                  {"ncclRecv", &n->recv},
                  {"ncclGetErrorString", &n->get_error_string}};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
        if (!load_function(library, wanted[i].name, wanted[i].function))
            return wanted[i].name;
    return NULL;
}

bool nccl_load(struct nccl *nccl, char *reason, size_t bytes)
{
    void *library = dlopen(file_name, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        snprintf(reason, bytes, "it cannot be loaded: %s", dlerror());
        return false;
    }
    const char *missing = load_functions(library, nccl);
    if (missing)
        snprintf(reason, bytes, "%s has no %s", file_name, missing);
    return !missing;
}
