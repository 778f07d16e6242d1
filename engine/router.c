// SPDX-License-Identifier: Apache-2.0
#include "router.h"

#include <string.h>
#include <unistd.h>

void router_init(struct router *router, int32_t ranks)
{
    memset(router, 0, sizeof *router);
    router->ranks = ranks;
    for (int r = 0; r < ROUTER_MAX_RANKS; r++)
        router->rank[r].fd = -1;
}

bool router_add(struct router *router, const unsigned char *prompt, int32_t prompt_bytes, int32_t limit)
{
    if (router->requests == ROUTER_MAX_REQUESTS || prompt_bytes < 1 || limit < 1 || prompt_bytes > CHANNEL_MAX_TEXT ||
        limit > CHANNEL_MAX_TEXT - prompt_bytes)
        return false;
    struct router_request *q = &router->request[router->requests++];
    memcpy(q->text, prompt, (size_t)prompt_bytes);
    q->prompt = q->length = prompt_bytes;
    q->limit = limit;
    q->rank = -1;
    return true;
}

void router_connect(struct router *router, int32_t rank, int fd)
{
    router->rank[rank] = (struct router_rank){.fd = fd, .alive = true};
}

static bool router_complete(const struct router_request *q)
{
    return q->length == q->prompt + q->limit;
}

static int32_t router_least_loaded(const struct router *router)
{
    int32_t best = -1;
    for (int32_t r = 0; r < router->ranks; r++)
        if (router->rank[r].alive && (best < 0 || router->rank[r].assigned < router->rank[best].assigned))
            best = r;
    return best;
}

static void router_tell(struct router *router, struct router_request *q)
{
    struct channel_message m = {
        .type = CHANNEL_REQUEST,
        .request = (int32_t)(q - router->request),
        .position = q->prompt,
        .value = q->limit,
        .text_bytes = (uint32_t)q->length,
    };
    memcpy(m.text, q->text, (size_t)q->length);
    q->unsent = !channel_send(router->rank[q->rank].fd, &m); /* a stopped rank must not stop the router */
}

void router_assign(struct router *router)
{
    for (int32_t i = 0; i < router->requests; i++) {
        struct router_request *q = &router->request[i];
        if (router_complete(q))
            continue;
        if (q->rank < 0) {
            q->rank = router_least_loaded(router);
            if (q->rank < 0)
                return;
            router->rank[q->rank].assigned++;
            q->unsent = true;
        }
        if (q->unsent)
            router_tell(router, q);
    }
}

static void router_take_token(struct router *router, int32_t rank, const struct channel_message *m)
{
    if (m->request < 0 || m->request >= router->requests)
        return;
    struct router_request *q = &router->request[m->request];
    if (m->position < q->length) {
        router->repeated++;
    } else if (m->position > q->length) {
        router->skipped += (uint64_t)(m->position - q->length);
    } else if (!router_complete(q) && q->rank == rank && m->value >= 0 && m->value <= UINT8_MAX) {
        q->text[q->length++] = (unsigned char)m->value;
        router->accepted++;
        if (router_complete(q))
            router->rank[rank].assigned--;
    }
}

/* False: nothing more for now, or at the end. */
static bool router_take(struct router *router, int32_t rank)
{
    struct channel_message m;
    if (channel_receive(router->rank[rank].fd, &m) != CHANNEL_GOT)
        return false;
    if (m.type == CHANNEL_TOKEN)
        router_take_token(router, rank, &m);
    else if (router->on_message)
        router->on_message(router->context, rank, &m);
    return true;
}

void router_read(struct router *router, int32_t rank)
{
    while (router->rank[rank].fd >= 0 && router_take(router, rank)) {
    }
}

void router_rank_died(struct router *router, int32_t rank)
{
    struct router_rank *dead = &router->rank[rank];
    if (!dead->alive)
        return;
    router_read(router, rank); /* what it has said counts; only then does the rest move */
    if (dead->fd >= 0)
        close(dead->fd);
    *dead = (struct router_rank){.fd = -1};
    for (int32_t i = 0; i < router->requests; i++) {
        struct router_request *q = &router->request[i];
        if (q->rank != rank || router_complete(q))
            continue;
        q->rank = -1;
        router->moved++;
    }
}

bool router_done(const struct router *router)
{
    return router_missing(router) == 0;
}

uint64_t router_missing(const struct router *router)
{
    uint64_t missing = 0;
    for (int32_t i = 0; i < router->requests; i++) {
        const struct router_request *q = &router->request[i];
        missing += (uint64_t)(q->prompt + q->limit - q->length);
    }
    return missing;
}

void router_close(struct router *router)
{
    for (int32_t r = 0; r < router->ranks; r++)
        if (router->rank[r].fd >= 0)
            close(router->rank[r].fd);
    for (int32_t r = 0; r < router->ranks; r++)
        router->rank[r] = (struct router_rank){.fd = -1};
}
