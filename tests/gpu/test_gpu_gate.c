// SPDX-License-Identifier: Apache-2.0
/* The gate by itself: the agent's kernels that end and open epochs, and blocks that come and go meanwhile. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "gpu/gate.h"
#include "kernels/cuda/step.h"

/* More blocks than doors, so some share one. */
enum { BLOCKS = CUDA_DOORS + 8, NOBODY = BLOCKS, SOON_MS = 10000, WHILE_MS = 3 };

/* What the host and the device both see. */
struct shared {
    struct cuda_mailbox mailbox;
    uint64_t found[BLOCKS];
    uint64_t leave;
};

static struct cuda_control *control;
static struct shared *shared;
static cudaStream_t agent_stream, stream;
static uint32_t epoch; /* the newest that was raised */

static void must(cudaError_t error)
{
    if (error != cudaSuccess)
        fail_msg("%s", cudaGetErrorString(error));
}

static void sleep_ms(int ms)
{
    struct timespec pause = {ms / 1000, ms % 1000 * 1000000L};
    nanosleep(&pause, NULL);
}

static uint64_t look(const uint64_t *word)
{
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static bool comes(const uint64_t *word, uint64_t least)
{
    for (int ms = 0; ms < SOON_MS && look(word) < least; ms++)
        sleep_ms(1);
    return look(word) >= least;
}

static uint64_t shut(uint32_t of_epoch)
{
    return (uint64_t)of_epoch << CUDA_GATE_EPOCH_SHIFT;
}

static uint64_t open(uint32_t of_epoch)
{
    return shut(of_epoch) | CUDA_GATE_OPEN;
}

static void raise_epoch(void)
{
    must(step_launch_raise(control, &shared->mailbox, ++epoch, agent_stream));
}

static void open_epoch(void)
{
    must(step_launch_open(control, &shared->mailbox, epoch, agent_stream));
    assert_true(comes(&shared->mailbox.open_epoch, epoch));
}

/* Returns when all blocks are inside, or were. */
static void visit(unsigned stays)
{
    memset(shared->found, 0, sizeof shared->found);
    __atomic_store_n(&shared->leave, 0, __ATOMIC_RELEASE);
    must(gate_visit(control, shared->found, &shared->leave, stays, BLOCKS, stream));
    for (int i = 0; i < BLOCKS; i++)
        assert_true(comes(&shared->found[i], 1));
}

static void expect_found(uint64_t gate)
{
    for (int i = 0; i < BLOCKS; i++)
        if (look(&shared->found[i]) != gate)
            fail_msg("block %d found %#llx instead of %#llx", i, (unsigned long long)look(&shared->found[i]),
                     (unsigned long long)gate);
}

static void an_epoch_is_quiet_when_the_last_block_has_left(void **state)
{
    (void)state;
    for (unsigned stays = 0; stays < BLOCKS; stays++) {
        visit(stays);
        expect_found(open(epoch));
        raise_epoch();
        sleep_ms(WHILE_MS);
        assert_true(look(&shared->mailbox.quiet_epoch) < epoch);
        __atomic_store_n(&shared->leave, 1, __ATOMIC_RELEASE);
        assert_true(comes(&shared->mailbox.quiet_epoch, epoch));
        open_epoch();
    }
}

static void blocks_find_the_newest_epoch_and_whether_it_is_open(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++) {
        raise_epoch();
        assert_true(comes(&shared->mailbox.quiet_epoch, epoch));
        visit(NOBODY);
        expect_found(shut(epoch));
        open_epoch();
        visit(NOBODY);
        expect_found(open(epoch));
    }
}

static void set_by_hand(uint64_t gate, uint64_t doors)
{
    struct cuda_door door[CUDA_DOORS] = {{0}};
    for (int i = 0; i < CUDA_DOORS; i++)
        door[i].word = doors;
    must(cudaMemcpy(control->door, door, sizeof door, cudaMemcpyHostToDevice));
    must(cudaMemcpy(&control->gate, &gate, sizeof gate, cudaMemcpyHostToDevice));
}

/* As they are for an instant while an epoch ends or begins, or when it has failed. */
static void where_gate_and_door_differ_it_is_found_shut(void **state)
{
    (void)state;
    const struct {
        uint64_t gate, doors, found;
    } cases[] = {
        {open(epoch), shut(epoch + 1), shut(epoch + 1)}, {shut(epoch + 1), open(epoch), shut(epoch + 1)},
        {shut(epoch), open(epoch), shut(epoch)},         {open(epoch), shut(epoch), shut(epoch)},
        {open(epoch), open(epoch), open(epoch)},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        set_by_hand(cases[i].gate, cases[i].doors);
        visit(NOBODY);
        expect_found(cases[i].found);
    }
}

static void an_older_epoch_changes_nothing(void **state)
{
    (void)state;
    must(step_launch_raise(control, &shared->mailbox, epoch - 1, agent_stream));
    must(step_launch_open(control, &shared->mailbox, epoch - 1, agent_stream));
    must(cudaStreamSynchronize(agent_stream));
    assert_int_equal(look(&shared->mailbox.quiet_epoch), epoch);
    assert_int_equal(look(&shared->mailbox.open_epoch), epoch);
    visit(NOBODY);
    expect_found(open(epoch));
}

static int set_up(void **state)
{
    (void)state;
    must(cudaMalloc((void **)&control, sizeof *control));
    must(cudaMemset(control, 0, sizeof *control));
    must(cudaHostAlloc((void **)&shared, sizeof *shared, cudaHostAllocMapped));
    memset(shared, 0, sizeof *shared);
    must(cudaStreamCreateWithPriority(&agent_stream, cudaStreamNonBlocking, 0));
    must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    must(step_prepare());
    raise_epoch();
    open_epoch();
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    must(cudaDeviceSynchronize());
    must(cudaStreamDestroy(stream));
    must(cudaStreamDestroy(agent_stream));
    must(cudaFreeHost(shared));
    must(cudaFree(control));
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_epoch_is_quiet_when_the_last_block_has_left),
        cmocka_unit_test(blocks_find_the_newest_epoch_and_whether_it_is_open),
        cmocka_unit_test(where_gate_and_door_differ_it_is_found_shut),
        cmocka_unit_test(an_older_epoch_changes_nothing),
    };
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        printf("[  SKIPPED ] there is no CUDA device\n");
        return 77;
    }
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
