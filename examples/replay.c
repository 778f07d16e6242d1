// SPDX-License-Identifier: Apache-2.0
/*
 * Ranks with GPUs capture a forward pass once and replay it for ever; kill one, and the others go on with the same graph:
 *
 *     build/muster run -n 2 build/example_replay
 *     pkill -KILL -n example_replay        (in another terminal)
 *
 * The pass is a step of four layers. Each sends 32 tokens to 2 experts each; here the experts leave their rows as they are,
 * and the routing weights are 1/2, so every token must come home as itself. Where there are fewer GPUs than ranks, set
 * MUSTER_MULTIPROCESSORS so that the ranks of a GPU fit beside one another, for example to 16.
 */
#include <cuda_runtime_api.h>
#include <muster/muster.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HIDDEN = 256, TOKENS = 32, TOPK = 2, SLOTS = 4, LAYERS = 4 };

/* Everything that one rank keeps for its passes; the tensors only point into memory of the device. */
struct work {
    muster_group *group;
    muster_ep *ep;
    int ranks, device;
    cudaStream_t stream;
    cudaGraphExec_t graph;
    float *hidden[2]; /* what a layer begins with, and what it ends with; the next one takes them the other way round */
    float *received, *weights;
    int32_t *slots, *counts;
    int64_t hidden_shape[2], route_shape[2], count_shape[1], rows_shape[3];
    muster_tensor t_hidden[2], t_slots, t_weights, t_rows, t_counts;
    float in[TOKENS * HIDDEN], out[TOKENS * HIDDEN]; /* on the host */
};

static int fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, muster_last_error());
    return 1;
}

static int cuda_fail(const char *what, cudaError_t error)
{
    fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
    return 1;
}

/* The number that `muster run` has set. */
static int environment(const char *name)
{
    const char *text = getenv(name);
    return text ? atoi(text) : 0;
}

static muster_status join(struct work *w)
{
    muster_ep_config exchange = MUSTER_EP_CONFIG_INIT;
    exchange.hidden = HIDDEN, exchange.dtype = MUSTER_FP32, exchange.max_tokens = TOKENS;
    exchange.slots_per_rank = SLOTS, exchange.topk = TOPK;

    muster_group_config config = MUSTER_GROUP_CONFIG_INIT;
    config.backend = MUSTER_BACKEND_CUDA, config.device = w->device;
    muster_status status = muster_ep_memory_bytes(&exchange, w->ranks, &config.memory_bytes);
    if (status == MUSTER_OK)
        status = muster_group_create(&config, &w->group);
    if (status == MUSTER_OK)
        status = muster_ep_create(w->group, &exchange, &w->ep);
    return status;
}

static muster_tensor tensor(const struct work *w, void *data, muster_dtype dtype, int ndim, int64_t *shape)
{
    return (muster_tensor){
        .data = data, .device = {MUSTER_DEVICE_CUDA, w->device}, .dtype = dtype, .ndim = ndim, .shape = shape};
}

static cudaError_t allocate(struct work *w)
{
    size_t rows = (size_t)w->ranks * TOKENS, row_bytes = HIDDEN * sizeof(float);
    cudaError_t error = cudaStreamCreateWithFlags(&w->stream, cudaStreamNonBlocking);
    for (int i = 0; i < 2 && error == cudaSuccess; i++)
        error = cudaMalloc((void **)&w->hidden[i], TOKENS * row_bytes);
    if (error == cudaSuccess)
        error = cudaMalloc((void **)&w->received, SLOTS * rows * row_bytes);
    if (error == cudaSuccess)
        error = cudaMalloc((void **)&w->weights, TOKENS * TOPK * sizeof(float));
    if (error == cudaSuccess)
        error = cudaMalloc((void **)&w->slots, TOKENS * TOPK * sizeof(int32_t));
    if (error == cudaSuccess)
        error = cudaMalloc((void **)&w->counts, SLOTS * sizeof(int32_t));
    return error;
}

static cudaError_t prepare(struct work *w)
{
    float weights[TOKENS * TOPK];
    for (int i = 0; i < TOKENS * TOPK; i++)
        weights[i] = 0.5f;
    for (int i = 0; i < TOKENS * HIDDEN; i++)
        w->in[i] = (float)(i % 97);
    w->hidden_shape[0] = w->route_shape[0] = TOKENS, w->hidden_shape[1] = HIDDEN, w->route_shape[1] = TOPK;
    w->count_shape[0] = w->rows_shape[0] = SLOTS, w->rows_shape[1] = (int64_t)w->ranks * TOKENS;
    w->rows_shape[2] = HIDDEN;
    for (int i = 0; i < 2; i++)
        w->t_hidden[i] = tensor(w, w->hidden[i], MUSTER_FP32, 2, w->hidden_shape);
    w->t_slots = tensor(w, w->slots, MUSTER_INT32, 2, w->route_shape);
    w->t_weights = tensor(w, w->weights, MUSTER_FP32, 2, w->route_shape);
    w->t_rows = tensor(w, w->received, MUSTER_FP32, 3, w->rows_shape);
    w->t_counts = tensor(w, w->counts, MUSTER_INT32, 1, w->count_shape);
    return cudaMemcpy(w->weights, weights, sizeof weights, cudaMemcpyDefault);
}

static muster_status enqueue_layer(struct work *w, int layer)
{
    muster_ep_dispatch_args dispatch = MUSTER_EP_DISPATCH_INIT;
    dispatch.hidden = &w->t_hidden[layer % 2], dispatch.topk_slots = &w->t_slots, dispatch.topk_weights = &w->t_weights;
    dispatch.out_hidden = &w->t_rows, dispatch.out_counts = &w->t_counts;
    muster_ep_combine_args combine = MUSTER_EP_COMBINE_INIT;
    combine.results = &w->t_rows, combine.out = &w->t_hidden[(layer + 1) % 2];

    muster_status status = muster_ep_dispatch(w->ep, &dispatch, w->stream);
    /* Here your experts' kernels would turn the received rows into results. */
    return status == MUSTER_OK ? muster_ep_combine(w->ep, &combine, w->stream) : status;
}

static muster_status enqueue_pass(struct work *w)
{
    muster_status status = muster_step_begin(w->group, w->stream);
    for (int layer = 0; layer < LAYERS && status == MUSTER_OK; layer++)
        status = enqueue_layer(w, layer);
    return status == MUSTER_OK ? muster_step_end(w->group, w->stream) : status;
}

/* Nothing of a view is frozen in the graph, so it is captured once. */
static int capture(struct work *w)
{
    cudaGraph_t captured = NULL;
    cudaError_t error = cudaStreamBeginCapture(w->stream, cudaStreamCaptureModeThreadLocal);
    if (error != cudaSuccess)
        return cuda_fail("cudaStreamBeginCapture", error);
    muster_status status = enqueue_pass(w);
    error = cudaStreamEndCapture(w->stream, &captured);
    if (status != MUSTER_OK)
        return fail("a pass");
    if (error == cudaSuccess)
        error = cudaGraphInstantiate(&w->graph, captured, 0);
    cudaGraphDestroy(captured);
    return error == cudaSuccess ? 0 : cuda_fail("cudaGraphInstantiate", error);
}

/* Spreads the tokens over the ranks that are here: the one thing that a view change asks of the caller. */
static cudaError_t route(struct work *w, const muster_view *view)
{
    int32_t slots[TOKENS * TOPK], here[MUSTER_MAX_RANKS] = {0}, count = 0;
    for (int r = 0; r < view->ranks; r++)
        if (view->mask.word[r / 64] >> (r % 64) & 1)
            here[count++] = r;
    for (int i = 0; i < TOKENS * TOPK; i++) {
        int token = i / TOPK, k = i % TOPK, rank = here[(muster_group_rank(w->group) + token + k) % count];
        slots[i] = rank * SLOTS + token % (SLOTS / TOPK) * TOPK + k;
    }
    return cudaMemcpy(w->slots, slots, sizeof slots, cudaMemcpyDefault);
}

/* A pass from the beginning: one that was void may have left anything in its arrays. */
static cudaError_t replay(struct work *w)
{
    cudaError_t error = cudaMemcpyAsync(w->hidden[0], w->in, sizeof w->in, cudaMemcpyDefault, w->stream);
    if (error == cudaSuccess)
        error = cudaGraphLaunch(w->graph, w->stream);
    if (error == cudaSuccess)
        error = cudaMemcpyAsync(w->out, w->hidden[LAYERS % 2], sizeof w->out, cudaMemcpyDefault, w->stream);
    return error == cudaSuccess ? cudaStreamSynchronize(w->stream) : error; /* no kernel waits past its deadline */
}

/* Replays until `passes` were good. */
static int serve(struct work *w, uint64_t passes)
{
    uint32_t epoch = 0;
    for (uint64_t good = 0; good < passes;) {
        muster_view view;
        muster_verdict verdict;
        if (muster_group_wait_ready(w->group, 60000000) != MUSTER_OK || muster_group_view(w->group, &view) != MUSTER_OK)
            return fail("waiting for a view");
        if (!view.ready)
            continue; /* another one has come since: how far all are is told when it is ready */
        if (view.epoch != epoch) {
            good = view.progress_least; /* what others have yet to do is done again here as well */
            printf("epoch %u: %d ranks are here, %llu good passes so far\n", view.epoch, view.active,
                   (unsigned long long)good);
        }
        cudaError_t error = view.epoch != epoch ? route(w, &view) : cudaSuccess;
        epoch = view.epoch;
        if (error == cudaSuccess)
            error = replay(w);
        if (error != cudaSuccess)
            return cuda_fail("a replay", error);
        if (muster_step_verdict(w->group, &verdict) != MUSTER_OK)
            return fail("the verdict");
        if (verdict.status != MUSTER_OK) {
            printf("pass %llu is void: %s\n", (unsigned long long)verdict.step, muster_status_text(verdict.status));
            continue;
        }
        if (memcmp(w->out, w->in, sizeof w->in) != 0) {
            fprintf(stderr, "a token did not come home as it was\n");
            return 1;
        }
        good++;
    }
    return 0;
}

static void leave(struct work *w)
{
    cudaGraphExecDestroy(w->graph);
    muster_ep_destroy(w->ep);
    muster_group_destroy(w->group);
    cudaFree(w->hidden[0]), cudaFree(w->hidden[1]), cudaFree(w->received), cudaFree(w->weights);
    cudaFree(w->slots), cudaFree(w->counts);
    cudaStreamDestroy(w->stream);
}

int main(int argc, char **argv)
{
    static struct work w;
    int devices = 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    w.ranks = environment("MUSTER_RANKS");
    cudaError_t error = cudaGetDeviceCount(&devices);
    if (error == cudaSuccess)
        error = cudaSetDevice(w.device = environment("MUSTER_RANK") % devices);
    if (error == cudaSuccess)
        error = allocate(&w);
    if (error == cudaSuccess)
        error = prepare(&w);
    if (error != cudaSuccess)
        return cuda_fail("preparing the device", error);
    if (join(&w) != MUSTER_OK)
        return fail("joining");
    if (capture(&w) != 0 || serve(&w, argc > 1 ? (uint64_t)atol(argv[1]) : UINT64_MAX) != 0)
        return 1;
    leave(&w);
    return 0;
}
