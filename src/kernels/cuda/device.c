// SPDX-License-Identifier: Apache-2.0
/*
 * The CUDA backend, host side: one rank's device, its gate, and its mailbox. Nothing here waits for a peer, and nothing
 * waits for a kernel but closing, which waits for kernels that keep deadlines.
 */
#include "kernels/cuda/device.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/operations.h"
#include "kernels/cuda/step.h"

int device_switch(const struct device *device)
{
    int before = device->ordinal;
    cudaGetDevice(&before);
    if (before != device->ordinal)
        cudaSetDevice(device->ordinal);
    return before;
}

void device_return(int before)
{
    int now = before;
    cudaGetDevice(&now);
    if (now != before)
        cudaSetDevice(before);
}

muster_status device_check(const struct device *device, cudaError_t error, const char *what)
{
    if (error == cudaSuccess)
        return MUSTER_OK;
    cudaGetLastError(); /* said; a later call should not say it again */
    muster_status status = error == cudaErrorMemoryAllocation ? MUSTER_ERR_MEMORY : MUSTER_ERR_SYSTEM;
    return device->config.error(status, "device %d: %s: %s (%s)", device->ordinal, what, cudaGetErrorString(error),
                                cudaGetErrorName(error));
}

/* ------------------------------------------------------------------------------------------------------ open, close */

static muster_status device_choose(struct device *device)
{
    int devices = 0;
    cudaError_t error = cudaGetDeviceCount(&devices);
    if (error != cudaSuccess || devices == 0)
        return device->config.error(MUSTER_ERR_UNSUPPORTED, "there is no CUDA device: %s", cudaGetErrorString(error));
    device->ordinal = device->config.ordinal < 0 ? device->config.rank % devices : device->config.ordinal;
    if (device->ordinal >= devices)
        return device->config.error(MUSTER_ERR_ARGUMENT, "config.device = %d: must be -1 to %d", device->ordinal,
                                    devices - 1);
    return MUSTER_OK;
}

static cudaError_t device_load_kernels(struct device *device)
{
    cudaError_t error = step_prepare();
    device->limits.shared_bytes = OPERATIONS_SHARED_BYTES;
    if (error == cudaSuccess)
        error = dispatch_prepare(device->ordinal, &device->limits.shared_bytes);
    return error == cudaSuccess ? combine_prepare(device->ordinal, &device->limits.shared_bytes) : error;
}

static cudaError_t device_make_control(struct device *device)
{
    struct cuda_control control = {
        .failure_detail = ~UINT64_C(0),
        .operation_timeout_ns = device->config.operation_timeout_ns,
        .step_timeout_ns = device->config.step_timeout_ns,
        .view = {.rank = device->config.rank, .ranks = device->config.ranks},
    };
    cudaError_t error = cudaMalloc((void **)&device->control, sizeof control);
    if (error == cudaSuccess)
        error = cudaMemcpy(device->control, &control, sizeof control, cudaMemcpyHostToDevice);
    return error;
}

static cudaError_t device_make_mailbox(struct device *device)
{
    cudaError_t error =
        cudaHostAlloc((void **)&device->mailbox, sizeof *device->mailbox, cudaHostAllocMapped | cudaHostAllocPortable);
    if (error == cudaSuccess)
        memset(device->mailbox, 0, sizeof *device->mailbox);
    return error;
}

static cudaError_t device_make_stream(struct device *device)
{
    int least, greatest;
    cudaError_t error = cudaDeviceGetStreamPriorityRange(&least, &greatest);
    if (error != cudaSuccess)
        return error;
    return cudaStreamCreateWithPriority(&device->agent_stream, cudaStreamNonBlocking, greatest);
}

static cudaError_t device_count_multiprocessors(struct device *device)
{
    int wanted = device->config.multiprocessors, generation = 0;
    cudaError_t error =
        cudaDeviceGetAttribute(&device->limits.multiprocessors, cudaDevAttrMultiProcessorCount, device->ordinal);
    if (error == cudaSuccess && wanted > 0 && wanted < device->limits.multiprocessors)
        device->limits.multiprocessors = wanted < OPERATIONS_LEAST_BLOCKS ? OPERATIONS_LEAST_BLOCKS : wanted;
    else if (error == cudaSuccess) /* alone on the device */
        error = cudaDeviceGetAttribute(&generation, cudaDevAttrComputeCapabilityMajor, device->ordinal);
    device->limits.early = generation >= 9;
    device->limits.plan = (enum cuda_plan_choice)device->config.plan;
    return error;
}

static cudaError_t device_set_up(struct device *device)
{
    cudaError_t error = device_count_multiprocessors(device);
    if (error == cudaSuccess)
        error = device_load_kernels(device);
    if (error == cudaSuccess)
        error = device_make_control(device);
    if (error == cudaSuccess)
        error = device_make_mailbox(device);
    return error == cudaSuccess ? device_make_stream(device) : error;
}

static void device_free(struct device *device)
{
    if (device->region.base)
        vmm_destroy(device);
    if (device->agent_stream)
        cudaStreamDestroy(device->agent_stream);
    cudaFreeHost(device->mailbox);
    cudaFree(device->control);
    pthread_mutex_destroy(&device->lock);
    free(device);
}

static muster_status device_open(const struct device_config *config, struct device **opened)
{
    struct device *device = calloc(1, sizeof *device);
    if (!device)
        return config->error(MUSTER_ERR_MEMORY, "no memory for a device");
    device->config = *config;
    pthread_mutex_init(&device->lock, NULL);
    muster_status status = device_choose(device);
    if (status != MUSTER_OK) {
        device_free(device);
        return status;
    }
    int before = device_switch(device);
    status = device_check(device, device_set_up(device), "setting up");
    if (status == MUSTER_OK)
        *opened = device;
    else
        device_free(device);
    device_return(before);
    return status;
}

static void device_close(struct device *device)
{
    int before = device_switch(device);
    cudaStreamSynchronize(device->agent_stream);
    cudaDeviceSynchronize(); /* the caller's streams: their kernels may still be on their way out */
    device_free(device);
    device_return(before);
}

static int32_t device_ordinal(const struct device *device)
{
    return device->ordinal;
}

/* ----------------------------------------------------------------------------------------------- epochs, by the agent */

/* A launch that fails leaves the epoch where it is: the agent's deadlines then tell. */
static void device_say(const struct device *device, cudaError_t error, const char *what)
{
    device_check(device, error, what);
}

/* Kernels that have waited for long look at the mailbox, so they are called back even if no launch gets through. */
static void device_epoch_raise(struct device *device, uint32_t epoch)
{
    __atomic_store_n(&device->mailbox->live_epoch, epoch, __ATOMIC_SEQ_CST);
    int before = device_switch(device);
    device_say(device, step_launch_raise(device->control, device->mailbox, epoch, device->agent_stream), "epoch_raise");
    device_return(before);
}

static bool device_epoch_quiet(struct device *device, uint32_t epoch)
{
    return __atomic_load_n(&device->mailbox->quiet_epoch, __ATOMIC_ACQUIRE) >= epoch;
}

static void device_view_install(struct device *device, const struct device_view *view)
{
    struct cuda_view installed = {
        .epoch = view->epoch,
        .rank = device->config.rank,
        .ranks = device->config.ranks,
        .mask = view->mask,
        .first_sequence = device->config.first_sequence,
    };
    memcpy(installed.peers, view->peers, (size_t)device->config.ranks * sizeof *view->peers);
    pthread_mutex_lock(&device->lock);
    device->installed[view->epoch % CUDA_VERDICTS] = (struct device_mask){view->epoch, view->mask};
    pthread_mutex_unlock(&device->lock);
    int before = device_switch(device);
    device_say(device, step_launch_install(device->control, &installed, device->agent_stream), "view_install");
    device_return(before);
}

static void device_epoch_begin(struct device *device, uint32_t epoch)
{
    int before = device_switch(device);
    device_say(device, step_launch_open(device->control, device->mailbox, epoch, device->agent_stream), "epoch_begin");
    device_return(before);
}

static bool device_epoch_open(struct device *device, uint32_t epoch)
{
    return __atomic_load_n(&device->mailbox->open_epoch, __ATOMIC_ACQUIRE) >= epoch;
}

static bool device_verdict_waits(const struct device *device, uint64_t step)
{
    const struct cuda_verdict *v = &device->mailbox->verdict[(step - 1) % CUDA_VERDICTS];
    return __atomic_load_n(&v->word, __ATOMIC_ACQUIRE) >> CUDA_VERDICT_STEP_SHIFT >= step;
}

static muster_mask device_overdue(const struct cuda_mailbox *mailbox)
{
    muster_mask overdue = {{0, 0}};
    for (int r = 0; r < MUSTER_MAX_RANKS; r++)
        if (__atomic_load_n(&mailbox->overdue[r], __ATOMIC_RELAXED))
            overdue.word[r >> 6] |= UINT64_C(1) << (r & 63);
    return overdue;
}

/* Of a verdict that is there; the caller holds the lock. */
static struct device_verdict device_take_verdict(const struct device *device, const struct cuda_verdict *v)
{
    uint64_t word = __atomic_load_n(&v->word, __ATOMIC_ACQUIRE);
    struct device_verdict taken = {.step = word >> CUDA_VERDICT_STEP_SHIFT,
                                   .epoch = (uint32_t)(word & (CUDA_VERDICT_VOID - 1))};
    const struct device_mask *installed = &device->installed[taken.epoch % CUDA_VERDICTS];
    if (installed->epoch == taken.epoch)
        taken.mask = installed->mask;
    if (word & CUDA_VERDICT_VOID) {
        taken.failure = v->failure;
        taken.failure_detail = v->failure_detail;
        taken.overdue = device_overdue(device->mailbox);
    }
    return taken;
}

static uint64_t device_good_steps(struct device *device)
{
    pthread_mutex_lock(&device->lock);
    while (device_verdict_waits(device, device->newest + 1)) {
        const struct cuda_verdict *v = &device->mailbox->verdict[device->newest % CUDA_VERDICTS];
        uint64_t word = __atomic_load_n(&v->word, __ATOMIC_ACQUIRE);
        device->newest = word >> CUDA_VERDICT_STEP_SHIFT;
        if (word & CUDA_VERDICT_VOID)
            device->voids = v->voids;
    }
    uint64_t good = device->newest - device->voids;
    pthread_mutex_unlock(&device->lock);
    return good;
}

static bool device_peers_ended(struct device *device)
{
    uint64_t look = __atomic_load_n(&device->mailbox->look, __ATOMIC_ACQUIRE);
    pthread_mutex_lock(&device->lock);
    bool answered = look >> 1 == device->looks, ended = answered && look & 1 && device->looks;
    uint64_t next = answered && !ended ? ++device->looks : 0;
    pthread_mutex_unlock(&device->lock);
    if (!next)
        return ended;
    int before = device_switch(device);
    device_say(device,
               step_launch_look(device->control, device->mailbox, device->region.base, next, device->agent_stream),
               "peers_ended");
    device_return(before);
    return false;
}

/* Whether a void verdict is among those that wait, or the failure of one that was read is still being forgotten. */
static bool device_void_unread(struct device *device)
{
    pthread_mutex_lock(&device->lock);
    uint64_t step = device->verdicts_read + 1;
    bool unread = device->forget != 0;
    pthread_mutex_unlock(&device->lock);
    for (; !unread && device_verdict_waits(device, step); step++)
        unread = __atomic_load_n(&device->mailbox->verdict[(step - 1) % CUDA_VERDICTS].word, __ATOMIC_ACQUIRE) &
                 CUDA_VERDICT_VOID;
    return unread;
}

static void device_report_state(struct device *device, struct device_report *report)
{
    const struct cuda_mailbox *mailbox = device->mailbox;
    uint64_t open = __atomic_load_n(&mailbox->step_open, __ATOMIC_ACQUIRE);
    *report = (struct device_report){
        .failure = __atomic_load_n(&mailbox->failure, __ATOMIC_ACQUIRE),
        .overdue = device_overdue(mailbox),
        .step_open = open & 1,
        .step_epoch = (uint32_t)(open >> 1),
        .unread = device_void_unread(device),
        .used_up_epoch = (uint32_t)__atomic_load_n(&mailbox->used_up_epoch, __ATOMIC_RELAXED),
    };
}

/* ------------------------------------------------------------------------------------------------ steps, by the caller */

static muster_status device_step_begin(struct device *device, void *stream)
{
    return device_check(device, step_launch_begin(device->control, device->mailbox, stream), "muster_step_begin");
}

static muster_status device_step_end(struct device *device, muster_reason reason, muster_phase phase, void *stream)
{
    return device_check(device, step_launch_end(device->control, device->mailbox, reason, phase, stream),
                        "muster_step_end");
}

/* If it stands here, it does on the device, which finds no other until it has forgotten this one. */
static void device_forget_report(struct cuda_mailbox *mailbox, uint64_t failure)
{
    if (__atomic_load_n(&mailbox->failure, __ATOMIC_ACQUIRE) != failure)
        return;
    memset(mailbox->overdue, 0, sizeof mailbox->overdue);
    __atomic_store_n(&mailbox->failure, 0, __ATOMIC_SEQ_CST);
}

/*
 * Verdicts are numbered; one that the device has overwritten since is skipped. What the last one told of is forgotten when
 * none is there any more: on the agent's stream, hence before the next epoch is begun on it. Not what has failed since, in a
 * step that began when an earlier verdict had been read, and this one had not.
 */
static muster_status device_verdict(struct device *device, struct device_verdict *verdict)
{
    pthread_mutex_lock(&device->lock);
    uint64_t step = device->verdicts_read + 1;
    bool written = device_verdict_waits(device, step);
    const struct cuda_verdict *v = &device->mailbox->verdict[(step - 1) % CUDA_VERDICTS];
    if (written) {
        *verdict = device_take_verdict(device, v);
        device->verdicts_read = verdict->step;
        device->forget = verdict->failure ? verdict->failure : device->forget;
    }
    pthread_mutex_unlock(&device->lock);
    if (!written)
        return device->config.error(MUSTER_ERR_AGAIN, "the verdict of step %llu is not there yet",
                                    (unsigned long long)step);
    if (!device->forget || device_verdict_waits(device, step + 1))
        return MUSTER_OK;
    uint64_t failure = device->forget;
    device_forget_report(device->mailbox, failure);
    int before = device_switch(device);
    muster_status status =
        device_check(device, step_launch_forget(device->control, failure, device->agent_stream), "verdict");
    device_return(before);
    pthread_mutex_lock(&device->lock);
    device->forget = 0;
    pthread_mutex_unlock(&device->lock);
    return status;
}

static const struct device_ops ops = {
    .version = DEVICE_OPS_VERSION,
    .name = "cuda",
    .open = device_open,
    .close = device_close,
    .ordinal = device_ordinal,
    .region_create = vmm_create,
    .map = vmm_map,
    .unmap = vmm_unmap,
    .epoch_raise = device_epoch_raise,
    .epoch_quiet = device_epoch_quiet,
    .view_install = device_view_install,
    .epoch_begin = device_epoch_begin,
    .epoch_open = device_epoch_open,
    .report = device_report_state,
    .peers_ended = device_peers_ended,
    .good_steps = device_good_steps,
    .step_begin = device_step_begin,
    .step_end = device_step_end,
    .verdict = device_verdict,
    .exchange_create = exchange_create,
    .exchange_destroy = exchange_destroy,
    .exchange_mask = exchange_mask,
    .dispatch = exchange_dispatch,
    .combine = exchange_combine,
};

__attribute__((visibility("default"))) const struct device_ops *muster_cuda_backend(void);

const struct device_ops *muster_cuda_backend(void)
{
    return &ops;
}
