// SPDX-License-Identifier: Apache-2.0
/* What reading a verdict of a device tells the agent, with a device that only has verdicts: no GPU is needed for that. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "control/group_state.h"
#include "core/mask.h"

enum { EPOCH = 7 };

static struct device_verdict next;

static muster_status fake_verdict(struct device *device, struct device_verdict *verdict)
{
    (void)device;
    *verdict = next;
    return MUSTER_OK;
}

static const struct device_ops fake_ops = {.version = DEVICE_OPS_VERSION, .verdict = fake_verdict};

/* A group in the middle of an epoch. */
static int open_group(void **state)
{
    muster_group *g = calloc(1, sizeof *g);
    if (!g)
        return -1;
    pthread_mutex_init(&g->lock, NULL);
    g->wake_fd = eventfd(0, EFD_NONBLOCK);
    g->device_ops = &fake_ops;
    atomic_store(&g->begun, EPOCH);
    g->view.epoch = EPOCH;
    g->view.ready = 1;
    *state = g;
    return 0;
}

static int close_group(void **state)
{
    muster_group *g = *state;
    close(g->wake_fd);
    pthread_mutex_destroy(&g->lock);
    free(g);
    return 0;
}

static muster_verdict read_verdict(muster_group *g, muster_reason reason, int peer)
{
    muster_verdict verdict;
    uint64_t failure = reason ? failure_pack(reason, MUSTER_PHASE_DISPATCH, peer, EPOCH) : 0;
    next = (struct device_verdict){.step = 1, .failure = failure, .epoch = EPOCH};
    next.overdue = mask_with((muster_mask){{0, 0}}, 5);
    assert_int_equal(step_device_verdict(g, &verdict), MUSTER_OK);
    assert_int_equal(verdict.reason, reason);
    return verdict;
}

static void expect_epoch(const muster_group *g, int lives)
{
    assert_int_equal(atomic_load(&g->begun), lives ? EPOCH : 0);
    assert_int_equal(g->view.ready, lives);
}

/* M5: no step of the epoch begins here any more, and M6: who was waited for in vain is named. */
static void a_timeout_ends_the_epoch_and_accuses(void **state)
{
    muster_group *g = *state;
    read_verdict(g, MUSTER_REASON_TIMEOUT, 3);
    expect_epoch(g, 0);
    assert_int_equal(g->mail.overdue_epoch, EPOCH);
    assert_true(mask_equal(g->mail.overdue, mask_with(next.overdue, 3)));
    assert_int_equal(g->mail.failed_epoch, 0);
}

static void a_refusal_ends_the_epoch(void **state)
{
    muster_group *g = *state;
    read_verdict(g, MUSTER_REASON_REFUSED, 3);
    expect_epoch(g, 0);
    assert_int_equal(g->mail.failed_epoch, EPOCH);
    assert_int_equal(g->mail.overdue_epoch, 0);
}

/* A step that the epoch's end made void, or that came too early, is nobody's failure; and a good one is none. */
static void others_tell_nothing(void **state)
{
    static const muster_reason reasons[] = {MUSTER_REASON_NONE, MUSTER_REASON_EPOCH, MUSTER_REASON_NOT_READY};
    muster_group *g = *state;
    for (size_t i = 0; i < sizeof reasons / sizeof *reasons; i++) {
        read_verdict(g, reasons[i], -1);
        expect_epoch(g, 1);
        assert_int_equal(g->mail.failed_epoch, 0);
        assert_int_equal(g->mail.overdue_epoch, 0);
    }
}

/* A void step of an epoch that is over by now must not end the one that has begun since. */
static void an_old_failure_ends_no_new_epoch(void **state)
{
    muster_group *g = *state;
    atomic_store(&g->begun, EPOCH + 1);
    g->view.epoch = EPOCH + 1;
    read_verdict(g, MUSTER_REASON_TIMEOUT, 3);
    assert_int_equal(atomic_load(&g->begun), EPOCH + 1);
    assert_int_equal(g->view.ready, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_timeout_ends_the_epoch_and_accuses, open_group, close_group),
        cmocka_unit_test_setup_teardown(a_refusal_ends_the_epoch, open_group, close_group),
        cmocka_unit_test_setup_teardown(others_tell_nothing, open_group, close_group),
        cmocka_unit_test_setup_teardown(an_old_failure_ends_no_new_epoch, open_group, close_group),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
