// SPDX-License-Identifier: Apache-2.0
/*
 * Four ranks exchange tokens for ever; kill one and watch the others go on:
 *
 *     build/muster run -n 4 build/example_survive
 *     pkill -KILL -n example_survive        (in another terminal)
 *
 * Every rank sends 32 tokens to 2 experts each. An expert multiplies its rows by 2, the routing weights are 1/2, so every
 * token must come home as twice itself.
 *
 * A batch that was good here may have been void on another rank. The next view tells how far the slowest member has come;
 * all go on from there, and a newcomer too.
 */
#include <muster/muster.h>

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { HIDDEN = 256, TOKENS = 32, TOPK = 2, SLOTS = 4 };

static muster_tensor tensor(void *data, muster_dtype dtype, int ndim, int64_t *shape)
{
    return (
        muster_tensor){.data = data, .device = {MUSTER_DEVICE_CPU, 0}, .dtype = dtype, .ndim = ndim, .shape = shape};
}

/* Everything that one rank keeps for its exchange; the tensors only point into the arrays. */
struct work {
    muster_group *group;
    muster_ep *ep;
    int ranks;
    float *in, *out, *received;
    float weights[TOKENS * TOPK];
    int32_t slots[TOKENS * TOPK], counts[SLOTS];
    int64_t hidden_shape[2], route_shape[2], count_shape[1], rows_shape[3];
    muster_tensor t_in, t_out, t_slots, t_weights, t_rows, t_counts;
    muster_ep_dispatch_args dispatch;
    muster_ep_combine_args combine;
};

static int fail(void)
{
    fprintf(stderr, "%s\n", muster_last_error());
    return 1;
}

static muster_status join(struct work *w)
{
    muster_ep_config exchange = MUSTER_EP_CONFIG_INIT;
    exchange.hidden = HIDDEN, exchange.dtype = MUSTER_FP32, exchange.max_tokens = TOKENS;
    exchange.slots_per_rank = SLOTS, exchange.topk = TOPK;

    muster_group_config config = MUSTER_GROUP_CONFIG_INIT;
    const char *ranks = getenv("MUSTER_RANKS"); /* set by `muster run` */
    w->ranks = ranks ? atoi(ranks) : 0;
    muster_status status = muster_ep_memory_bytes(&exchange, w->ranks, &config.memory_bytes);
    if (status == MUSTER_OK)
        status = muster_group_create(&config, &w->group);
    if (status == MUSTER_OK)
        status = muster_ep_create(w->group, &exchange, &w->ep);
    return status;
}

static int prepare(struct work *w)
{
    int64_t rows = (int64_t)w->ranks * TOKENS;
    w->in = calloc(TOKENS * HIDDEN, sizeof(float));
    w->out = calloc(TOKENS * HIDDEN, sizeof(float));
    w->received = calloc((size_t)(SLOTS * rows * HIDDEN), sizeof(float));
    if (!w->in || !w->out || !w->received)
        return -1;
    for (int i = 0; i < TOKENS * TOPK; i++)
        w->weights[i] = 0.5f;

    w->hidden_shape[0] = w->route_shape[0] = TOKENS, w->hidden_shape[1] = HIDDEN, w->route_shape[1] = TOPK;
    w->count_shape[0] = w->rows_shape[0] = SLOTS, w->rows_shape[1] = rows, w->rows_shape[2] = HIDDEN;
    w->t_in = tensor(w->in, MUSTER_FP32, 2, w->hidden_shape);
    w->t_out = tensor(w->out, MUSTER_FP32, 2, w->hidden_shape);
    w->t_slots = tensor(w->slots, MUSTER_INT32, 2, w->route_shape);
    w->t_weights = tensor(w->weights, MUSTER_FP32, 2, w->route_shape);
    w->t_rows = tensor(w->received, MUSTER_FP32, 3, w->rows_shape);
    w->t_counts = tensor(w->counts, MUSTER_INT32, 1, w->count_shape);

    w->dispatch = (muster_ep_dispatch_args)MUSTER_EP_DISPATCH_INIT;
    w->dispatch.hidden = &w->t_in, w->dispatch.topk_slots = &w->t_slots, w->dispatch.topk_weights = &w->t_weights;
    w->dispatch.out_hidden = &w->t_rows, w->dispatch.out_counts = &w->t_counts;
    w->combine = (muster_ep_combine_args)MUSTER_EP_COMBINE_INIT;
    w->combine.results = &w->t_rows, w->combine.out = &w->t_out;
    return 0;
}

/* Spreads the tokens over the ranks that are here. */
static void route(struct work *w, const muster_view *view)
{
    int32_t here[MUSTER_MAX_RANKS] = {0}, count = 0;
    for (int r = 0; r < view->ranks; r++)
        if (view->mask.word[r / 64] >> (r % 64) & 1)
            here[count++] = r;
    for (int t = 0; t < TOKENS; t++)
        for (int k = 0; k < TOPK; k++) {
            int32_t rank = here[(muster_group_rank(w->group) + t + k) % count];
            w->slots[t * TOPK + k] = rank * SLOTS + t % (SLOTS / TOPK) * TOPK + k;
        }
}

static void make_batch(struct work *w, uint64_t batch)
{
    for (uint64_t i = 0; i < TOKENS * HIDDEN; i++)
        w->in[i] = (float)((i + batch) % 97);
}

static void run_experts(struct work *w)
{
    for (int s = 0; s < SLOTS; s++) {
        float *rows = w->received + (int64_t)s * w->rows_shape[1] * HIDDEN;
        for (int i = 0; i < w->counts[s] * HIDDEN; i++)
            rows[i] *= 2;
    }
}

/* One step; true when it is good. */
static int step(struct work *w)
{
    muster_verdict verdict;
    muster_step_begin(w->group, NULL);
    if (muster_ep_dispatch(w->ep, &w->dispatch, NULL) == MUSTER_OK) {
        run_experts(w);
        muster_ep_combine(w->ep, &w->combine, NULL);
    }
    muster_step_end(w->group, NULL);
    muster_step_verdict(w->group, &verdict);
    if (verdict.status != MUSTER_OK)
        printf("step %llu is void: %s\n", (unsigned long long)verdict.step, muster_last_error());
    return verdict.status == MUSTER_OK;
}

static int right(const struct work *w)
{
    for (int i = 0; i < TOKENS * HIDDEN; i++)
        if (w->out[i] != 2 * w->in[i]) {
            fprintf(stderr, "wrong result at %d: %g, not %g\n", i, (double)w->out[i], (double)(2 * w->in[i]));
            return 0;
        }
    return 1;
}

int main(int argc, char **argv)
{
    static struct work w;
    uint64_t batches = argc > 1 ? (uint64_t)atol(argv[1]) : UINT64_MAX; /* for ever */
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (join(&w) != MUSTER_OK || prepare(&w) != 0)
        return fail();

    uint32_t epoch = 0;
    for (uint64_t batch = 0; batch < batches;) {
        muster_view view;
        if (muster_group_wait_ready(w.group, 60000000) != MUSTER_OK || muster_group_view(w.group, &view) != MUSTER_OK)
            return fail();
        if (!view.ready)
            continue; /* another one has come since: how far all are is told when it is ready */
        if (view.epoch != epoch) {
            batch = view.progress_least; /* what others have yet to do is done again here as well */
            printf("epoch %u: %d ranks are here, %llu good steps so far\n", view.epoch, view.active,
                   (unsigned long long)batch);
        }
        epoch = view.epoch;
        route(&w, &view);
        make_batch(&w, batch);
        if (!step(&w))
            continue;
        if (!right(&w))
            return 1;
        batch++;
        usleep(1000);
    }
    muster_ep_destroy(w.ep);
    muster_group_destroy(w.group);
    free(w.in), free(w.out), free(w.received);
    return 0;
}
