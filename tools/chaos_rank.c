// SPDX-License-Identifier: Apache-2.0
#include "chaos_rank.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "chaos_step.h"
#include "core/config.h"
#include "core/mask.h"

enum {
    READY_US = 500, /* between two looks at whether there is a newer view to get ready for */
    STEP_TIMEOUTS = 5, /* a rank may take this many operation timeouts to come to its step */
    PATIENCE_MS = 5000, /* on top of all deadlines, before kernels that do not return count as hung */
};

struct rank {
    struct chaos_board *board;
    struct chaos_seat *seat;
    int32_t number;
    struct chaos_device device;
    struct chaos_step step;
    muster_group *group;
    uint32_t ready_epoch; /* that this rank has said it is ready for: steps can begin in no other */
    uint32_t epoch; /* of the last step that took one */
    uint64_t taken; /* steps in that epoch so far: ranks of one epoch count alike */
    int32_t fault_pair; /* of the step that runs; -1: none */
    enum chaos_kind fault;
};

static void is_at(const struct rank *r, enum chaos_at at)
{
    atomic_store(&r->seat->at, at);
}

/* ---- ends ---- */

/* The process ends at once: a rank that gives up may not be able to leave in good order. */
__attribute__((noreturn)) static void give_up(const struct rank *r, muster_status status, const char *what)
{
    const char *broken = chaos_device_broken(&r->device);
    is_at(r, CHAOS_AT_END);
    if (status == MUSTER_ERR_EVICTED)
        _exit(CHAOS_EXPELLED);
    chaos_fail(r->seat, CHAOS_ERROR, "%s: %s: %s%s%s", what, muster_status_name(status), muster_last_error(),
               broken ? "; the device is in error " : "", broken ? broken : "");
    _exit(EXIT_FAILURE);
}

static void must(const struct rank *r, muster_status status, const char *what)
{
    if (status != MUSTER_OK)
        give_up(r, status, what);
}

/* A peer's death may not leave an error on this rank's device (promise 5). */
static void must_be_unbroken(const struct rank *r)
{
    if (chaos_device_broken(&r->device))
        give_up(r, MUSTER_ERR_SYSTEM, "after a step");
}

/* ---- opening ---- */

static void on_view(void *context, const muster_view *view)
{
    const struct rank *r = context;
    if (!mask_has(view->mask, atomic_load(&r->board->victim)))
        chaos_mark(&r->seat->view_ns);
}

static void open_group(struct rank *r)
{
    const struct chaos_shape *shape = &r->board->shape;
    muster_group_config config = MUSTER_GROUP_CONFIG_INIT;
    for (int32_t i = 0; i < CHAOS_EXCHANGES; i++) {
        muster_ep_config exchange = chaos_step_config(shape, i);
        uint64_t bytes;
        must(r, muster_ep_memory_bytes(&exchange, shape->ranks, &bytes), "muster_ep_memory_bytes");
        config.memory_bytes += bytes;
    }
    config.backend = shape->gpu ? MUSTER_BACKEND_CUDA : MUSTER_BACKEND_CPU;
    config.operation_timeout_us = (uint64_t)shape->timeout_ms * 1000;
    config.step_timeout_us = config.operation_timeout_us * STEP_TIMEOUTS;
    config.manual_ready = 1; /* no epoch begins before this rank has made tokens for it */
    config.on_view = on_view;
    config.context = r;
    must(r, muster_group_create(&config, &r->group), "muster_group_create");
}

static void open_rank(struct rank *r)
{
    const struct chaos_shape *shape = &r->board->shape;
    is_at(r, CHAOS_AT_START);
    must(r, chaos_device_open(&r->device, shape->gpu, r->number), "opening a device");
    must(r, chaos_step_open(&r->step, shape, &r->device, r->number), "memory for a step");
    open_group(r);
    must(r, chaos_step_join(&r->step, r->group), "making the exchanges");
}

static void close_rank(struct rank *r)
{
    chaos_step_close(&r->step);
    muster_group_destroy(r->group);
    is_at(r, CHAOS_AT_END);
}

/* ---- faults of one's own ---- */

static void mark_fault(const struct rank *r)
{
    is_at(r, CHAOS_AT_FAULT);
    chaos_mark(&r->seat->fault_ns);
}

static void before_dispatch(void *context, int32_t pair)
{
    const struct rank *r = context;
    if (pair != r->fault_pair || r->fault != CHAOS_HANG)
        return;
    mark_fault(r);
    must(r, chaos_device_hang(&r->device), "hanging");
}

static int32_t patience_ms(const struct rank *r)
{
    return r->board->shape.timeout_ms * (1 + STEP_TIMEOUTS) + PATIENCE_MS;
}

static void after_dispatch(void *context, int32_t pair)
{
    const struct rank *r = context;
    if (pair != r->fault_pair || r->fault != CHAOS_BETWEEN)
        return;
    must(r, chaos_device_wait(&r->device, patience_ms(r)), "waiting for a dispatch");
    mark_fault(r);
    raise(SIGKILL);
}

/* Whether the step that comes is to be this rank's last. */
static bool take_fault(struct rank *r)
{
    uint32_t fault = atomic_load(&r->seat->fault);
    r->fault_pair = -1;
    if (!fault)
        return false;
    r->fault = (enum chaos_kind)(fault - 1);
    r->fault_pair = atomic_load(&r->seat->fault_pair);
    return true;
}

/* ---- steps ---- */

/* False: not yet, or the view has changed meanwhile. */
static bool get_ready(struct rank *r, struct chaos_when *when)
{
    muster_view view;
    is_at(r, CHAOS_AT_READY);
    must(r, muster_group_view(r->group, &view), "muster_group_view");
    if (view.epoch != r->ready_epoch) {
        muster_status status = muster_group_ready(r->group, view.epoch);
        if (status == MUSTER_ERR_ARGUMENT) /* a newer one was installed since */
            return false;
        must(r, status, "muster_group_ready");
        r->ready_epoch = view.epoch;
    }
    muster_status status = muster_group_wait_ready(r->group, READY_US);
    if (status == MUSTER_ERR_AGAIN)
        return false;
    must(r, status, "muster_group_wait_ready");
    uint64_t step = r->epoch == view.epoch ? r->taken : 0;
    *when = (struct chaos_when){.epoch = view.epoch, .step = step, .mask = view.mask};
    return true;
}

/*
 * A victim's last step is never a replay, since its fault lies between two operations. Where the step was void before it
 * came to that, as it may be on the CPU, the next is the last.
 */
static void run_step(struct rank *r)
{
    const struct chaos_trap trap = {before_dispatch, after_dispatch, r};
    bool fatal = take_fault(r);
    is_at(r, CHAOS_AT_STEP);
    if (r->step.graph && !fatal && atomic_load(&r->board->graph))
        must(r, chaos_step_replay(&r->step), "replaying a step");
    else
        must(r, chaos_step_enqueue(&r->step, fatal ? &trap : NULL), "enqueuing a step");
    while (fatal && r->fault == CHAOS_HANG && atomic_load(&r->seat->fault_ns))
        pause(); /* what was enqueued never ends */
    muster_status status = chaos_device_wait(&r->device, patience_ms(r));
    if (status != MUSTER_ERR_AGAIN) {
        must(r, status, "waiting for a step");
        return;
    }
    chaos_fail(r->seat, CHAOS_HUNG, "a step: %s, though no wait in it may last so long", muster_last_error());
    _exit(EXIT_FAILURE);
}

/* Results are exact for the mask that the verdict names, and tokens were made for that of `when`. */
static void must_match(const struct rank *r, const struct chaos_when *when, const muster_verdict *verdict)
{
    if (verdict->epoch == when->epoch && mask_equal(verdict->mask, when->mask))
        return;
    chaos_fail(r->seat, CHAOS_ERROR, "a step of epoch %u has a good verdict of epoch %u, or of another mask",
               when->epoch, verdict->epoch);
    _exit(EXIT_FAILURE);
}

static void note_right(const struct rank *r, const struct chaos_when *when)
{
    struct chaos_seat *seat = r->seat;
    if (mask_count(when->mask) == r->board->shape.ranks)
        chaos_mark(&seat->full_ns);
    if (mask_has(when->mask, atomic_load(&r->board->victim)) || atomic_load(&seat->good_ns))
        return;
    must_be_unbroken(r);
    atomic_store(&seat->good_mask[0], when->mask.word[0]);
    atomic_store(&seat->good_mask[1], when->mask.word[1]);
    atomic_store(&seat->good_epoch, when->epoch);
    chaos_mark(&seat->good_ns);
}

static void check_good(struct rank *r, const struct chaos_when *when)
{
    uint64_t wrong = 0;
    is_at(r, CHAOS_AT_CHECK);
    must(r, chaos_step_check(&r->step, when, &wrong), "fetching the results");
    atomic_fetch_add(&r->seat->wrong, wrong);
    atomic_fetch_add(&r->seat->steps, 1);
    if (wrong == 0)
        note_right(r, when);
}

static void judge(struct rank *r, const struct chaos_when *when)
{
    muster_verdict verdict;
    must(r, muster_step_verdict(r->group, &verdict), "muster_step_verdict");
    atomic_store(&r->seat->epoch, verdict.epoch);
    if (verdict.status == MUSTER_OK) {
        must_match(r, when, &verdict);
        check_good(r, when);
    } else {
        atomic_fetch_add(&r->seat->voids, 1);
        chaos_mark(&r->seat->void_ns);
        must_be_unbroken(r);
    }
    if (verdict.reason == MUSTER_REASON_NOT_READY)
        return; /* it took no epoch */
    r->taken = r->epoch == verdict.epoch ? r->taken + 1 : 1;
    r->epoch = verdict.epoch;
}

int chaos_rank_run(const char *board_path)
{
    static struct rank r; /* zeroed; its callbacks may run until the process ends */
    r.number = (int32_t)config_number(CONFIG_RANK);
    r.board = chaos_board_open(board_path);
    if (!r.board) {
        fprintf(stderr, "muster chaos: rank %d: %s: %s\n", r.number, board_path, strerror(errno));
        return EXIT_FAILURE;
    }
    r.seat = &r.board->seat[r.number];
    open_rank(&r);
    while (!atomic_load(&r.board->finish)) {
        struct chaos_when when;
        if (!get_ready(&r, &when))
            continue;
        must(&r, chaos_step_load(&r.step, &when), "bringing tokens to the device");
        run_step(&r);
        judge(&r, &when);
    }
    close_rank(&r);
    chaos_board_close(r.board);
    return EXIT_SUCCESS;
}
