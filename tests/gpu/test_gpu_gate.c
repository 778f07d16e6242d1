// SPDX-License-Identifier: Apache-2.0
/* The agent's kernels by themselves: they end and open epochs, while blocks come and go, and forget failures. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "gpu/gate.h"
#include "kernels/cuda/step.h"
#include "lib/pace.h"

/* More blocks than doors, so some share one. */
enum { BLOCKS = CUDA_DOORS + 8, WHILE_MS = 3 };

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

static uint64_t look(const uint64_t *word)
{
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static bool comes(const uint64_t *word, uint64_t least)
{
    for (int ms = 0; ms < PACE_PATIENCE_MS && look(word) < least; ms++)
        pace_sleep_ms(1);
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

/* Returns when all blocks are inside. */
static void enter(unsigned blocks)
{
    memset(shared->found, 0, sizeof shared->found);
    __atomic_store_n(&shared->leave, 0, __ATOMIC_RELEASE);
    must(gate_visit(control, shared->found, &shared->leave, blocks, stream));
    for (unsigned i = 0; i < blocks; i++)
        assert_true(comes(&shared->found[i], 1));
}

static void leave(void)
{
    __atomic_store_n(&shared->leave, 1, __ATOMIC_RELEASE);
    must(cudaStreamSynchronize(stream));
}

static void expect_found(uint64_t gate)
{
    for (int i = 0; i < BLOCKS; i++)
        if (look(&shared->found[i]) != gate)
            fail_msg("block %d found %#llx instead of %#llx", i, (unsigned long long)look(&shared->found[i]),
                     (unsigned long long)gate);
}

static void visit(void)
{
    enter(BLOCKS);
    leave();
}

static void set_word(uint64_t *on_device, uint64_t word)
{
    must(cudaMemcpy(on_device, &word, sizeof word, cudaMemcpyHostToDevice));
}

static uint64_t word_of(const uint64_t *on_device)
{
    uint64_t word;
    must(cudaMemcpy(&word, on_device, sizeof word, cudaMemcpyDeviceToHost));
    return word;
}

static void set_door(int door, uint64_t word)
{
    set_word(&control->door[door].word, word);
}

static bool door_becomes(int door, uint64_t word)
{
    for (int ms = 0; ms < PACE_PATIENCE_MS && word_of(&control->door[door].word) != word; ms++)
        pace_sleep_ms(1);
    return word_of(&control->door[door].word) == word;
}

static void an_epoch_is_quiet_when_nobody_is_inside_any_door(void **state)
{
    (void)state;
    for (int door = 0; door < CUDA_DOORS; door++) {
        set_door(door, open(epoch) + 1);
        raise_epoch();
        assert_true(door_becomes(door, shut(epoch) + 1));
        pace_sleep_ms(WHILE_MS);
        assert_true(look(&shared->mailbox.quiet_epoch) < epoch);
        set_door(door, shut(epoch));
        assert_true(comes(&shared->mailbox.quiet_epoch, epoch));
        open_epoch();
    }
}

/* Blocks have entered: the next epoch is not quiet before they leave. */
static void raise_epoch_until_they_leave(void)
{
    raise_epoch();
    pace_sleep_ms(WHILE_MS);
    assert_true(look(&shared->mailbox.quiet_epoch) < epoch);
    leave();
    assert_true(comes(&shared->mailbox.quiet_epoch, epoch));
    open_epoch();
}

static void the_last_block_leaves_for_all(void **state)
{
    (void)state;
    const unsigned counts[] = {1, 2, CUDA_DOORS - 1, CUDA_DOORS, CUDA_DOORS + 1, BLOCKS};
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        enter(counts[i]);
        raise_epoch_until_they_leave();
    }
}

static void blocks_find_the_newest_epoch_and_whether_it_is_open(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++) {
        raise_epoch();
        assert_true(comes(&shared->mailbox.quiet_epoch, epoch));
        assert_int_equal(word_of(&control->gate), shut(epoch));
        visit();
        expect_found(shut(epoch));
        open_epoch();
        assert_int_equal(word_of(&control->gate), open(epoch));
        visit();
        expect_found(open(epoch));
    }
}

/* They found it shut, and do nothing, but they are inside. */
static void the_gate_opens_with_blocks_inside(void **state)
{
    (void)state;
    raise_epoch();
    assert_true(comes(&shared->mailbox.quiet_epoch, epoch));
    enter(BLOCKS);
    expect_found(shut(epoch));
    open_epoch();
    raise_epoch_until_they_leave();
}

static void an_older_epoch_changes_nothing(void **state)
{
    (void)state;
    must(step_launch_raise(control, &shared->mailbox, epoch - 1, agent_stream));
    must(step_launch_open(control, &shared->mailbox, epoch - 1, agent_stream));
    must(cudaStreamSynchronize(agent_stream));
    assert_int_equal(look(&shared->mailbox.quiet_epoch), epoch);
    assert_int_equal(look(&shared->mailbox.open_epoch), epoch);
    visit();
    expect_found(open(epoch));
}

static void set_failure(uint64_t failure, uint64_t detail)
{
    set_word(&control->failure, failure);
    set_word(&control->failure_detail, detail);
}

static void forget(uint64_t failure)
{
    must(step_launch_forget(control, failure, agent_stream));
    must(cudaStreamSynchronize(agent_stream));
}

static void expect_failure(uint64_t failure, uint64_t detail)
{
    assert_int_equal(word_of(&control->failure), failure);
    assert_int_equal(word_of(&control->failure_detail), detail);
}

static void a_failure_is_forgotten_and_no_other(void **state)
{
    (void)state;
    const uint64_t older = 5, newer = 3, entry = 7, nothing = UINT64_MAX;
    set_failure(newer, entry);
    forget(older);
    expect_failure(newer, entry);
    forget(newer);
    expect_failure(0, nothing);
    forget(older);
    expect_failure(0, nothing);
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
        cmocka_unit_test(an_epoch_is_quiet_when_nobody_is_inside_any_door),
        cmocka_unit_test(the_last_block_leaves_for_all),
        cmocka_unit_test(blocks_find_the_newest_epoch_and_whether_it_is_open),
        cmocka_unit_test(the_gate_opens_with_blocks_inside),
        cmocka_unit_test(an_older_epoch_changes_nothing),
        cmocka_unit_test(a_failure_is_forgotten_and_no_other),
    };
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        printf("[  SKIPPED ] there is no CUDA device\n");
        return 77;
    }
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
