// SPDX-License-Identifier: Apache-2.0
/* Scenarios of one rank's membership: what it hears, and what it must do. Each names the rules it holds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "control/member.h"
#include "core/stamp.h"

#define MS UINT64_C(1000000)

/* One member under test; the others exist only in what it is told of them. */
struct bench {
    struct member m;
    struct member_actions actions; /* of the last event */
    struct record said[8];
    struct view view; /* in the store */
    uint64_t revision, now_ns;
    muster_mask waiting;
};

static struct bench bench;

static const struct member_config usual = {.ranks = 3,
                                           .min_ranks = 1,
                                           .incarnation = 1,
                                           .first_epoch = 1,
                                           .propose_delay_ns = 2 * MS,
                                           .grace_ns = 20 * MS,
                                           .acknowledge_timeout_ns = 100 * MS,
                                           .ready_timeout_ns = 400 * MS,
                                           .fence_timeout_ns = 200 * MS,
                                           .reply_timeout_ns = 30 * MS,
                                           .start_timeout_ns = 1000 * MS};

static muster_mask ranks(unsigned bits)
{
    return (muster_mask){{bits, 0}};
}

/* ---- Telling ---- */

static void tell(struct member_event event)
{
    event.now_ns = bench.now_ns;
    event.waiting = bench.waiting;
    member_step(&bench.m, &event, &bench.actions);
}

static void tell_type(enum member_event_type type, uint32_t epoch)
{
    tell((struct member_event){.type = type, .epoch = epoch});
}

static void tell_presence(int rank, uint32_t incarnation, bool ok)
{
    tell((struct member_event){.type = MEMBER_PRESENCE, .rank = rank, .incarnation = incarnation, .ok = ok});
}

static void tell_fenced(int rank, uint32_t incarnation)
{
    tell((struct member_event){.type = MEMBER_FENCED, .rank = rank, .incarnation = incarnation});
}

static void tell_record(int rank)
{
    tell((struct member_event){.type = MEMBER_RECORD, .rank = rank, .record = &bench.said[rank]});
}

static void tell_overdue(unsigned blamed)
{
    tell((struct member_event){.type = MEMBER_OVERDUE, .epoch = bench.view.epoch, .mask = ranks(blamed)});
}

static void tell_view(void)
{
    bench.revision++;
    tell((struct member_event){.type = MEMBER_VIEW, .view = &bench.view, .revision = bench.revision});
}

static void comes(int rank, uint32_t incarnation)
{
    bench.said[rank] = (struct record){.incarnation = incarnation, .state = RECORD_JOINING};
    tell_presence(rank, incarnation, true);
    tell_record(rank);
}

static void acknowledges(int rank)
{
    bench.said[rank].acknowledged = bench.view.epoch;
    tell_record(rank);
}

static void comes_so_far(int rank, uint64_t progress)
{
    bench.said[rank].progress = progress;
    bench.said[rank].ready = bench.view.epoch;
    tell_record(rank);
}

static void is_ready(int rank)
{
    bench.said[rank].ready = bench.view.epoch;
    tell_record(rank);
}

static void reports(int rank, unsigned blamed)
{
    struct record *said = &bench.said[rank];
    said->overdue_epoch = said->waiting_epoch = bench.view.epoch;
    said->overdue = said->waiting = ranks(blamed);
    tell_record(rank);
}

/* Time passes, tick by tick, until something is done or `ns` are over. */
static void passes(uint64_t ns)
{
    uint64_t end_ns = bench.now_ns + ns;
    bench.actions.count = 0;
    while (bench.actions.count == 0 && member_next_ns(&bench.m) <= end_ns) {
        if (member_next_ns(&bench.m) > bench.now_ns)
            bench.now_ns = member_next_ns(&bench.m);
        tell_type(MEMBER_TICK, 0);
    }
    if (bench.actions.count == 0)
        bench.now_ns = end_ns;
}

/* ---- Looking at what it does ---- */

static const struct member_action *does(enum member_action_type type)
{
    for (int i = 0; i < bench.actions.count; i++)
        if (bench.actions.item[i].type == type)
            return &bench.actions.item[i];
    return NULL;
}

static void assert_does(enum member_action_type type)
{
    assert_non_null(does(type));
}

static void assert_does_nothing(void)
{
    assert_int_equal(bench.actions.count, 0);
}

static void assert_stops(muster_status status, unsigned named)
{
    assert_does(MEMBER_DO_STOP);
    assert_int_equal(does(MEMBER_DO_STOP)->status, status);
    assert_int_equal(does(MEMBER_DO_STOP)->mask.word[0], named);
    assert_true(member_next_ns(&bench.m) == UINT64_MAX);
}

static void assert_proposes(uint32_t epoch, unsigned mask, unsigned expelled)
{
    const struct member_action *swap = does(MEMBER_DO_SWAP);
    assert_non_null(swap);
    assert_true(swap->revision == bench.revision);
    assert_int_equal(swap->view.phase, VIEW_PREPARE);
    assert_int_equal(swap->view.epoch, epoch);
    assert_int_equal(swap->view.mask.word[0], mask);
    assert_int_equal(swap->view.expelled.word[0], expelled);
}

/* The swap that it has just asked for succeeds; the view is seen first, the reply comes after it. */
static void swap_succeeds(void)
{
    assert_does(MEMBER_DO_SWAP);
    bench.view = does(MEMBER_DO_SWAP)->view;
    tell_view();
    struct member_actions seen = bench.actions;
    tell((struct member_event){.type = MEMBER_SWAPPED, .ok = true, .view = &bench.view, .revision = bench.revision});
    assert_does_nothing();
    bench.actions = seen;
}

/* ---- Where scenarios begin ---- */

static void starts(struct member_config config)
{
    memset(&bench, 0, sizeof bench);
    bench.now_ns = 5000 * MS;
    member_init(&bench.m, &config);
    tell_type(MEMBER_START, 0);
    assert_does(MEMBER_DO_PUT);
    assert_int_equal(member_record(&bench.m)->state, RECORD_JOINING);
    tell_presence(config.rank, config.incarnation, true);
}

static void others(void (*does_it)(int rank))
{
    for (int r = 0; r < bench.m.config.ranks; r++)
        if (r != bench.m.config.rank && mask_has(bench.view.mask, r))
            does_it(r);
}

/* Another member has proposed this; it has been seen. */
static void others_propose(uint32_t epoch, unsigned mask, unsigned expelled)
{
    struct view next = {.epoch = epoch, .phase = VIEW_PREPARE, .mask = ranks(mask), .expelled = ranks(expelled)};
    next.proposer = mask_next(mask_without(next.mask, bench.m.config.rank), 0);
    for (int r = 0; r < bench.m.config.ranks; r++) {
        next.incarnation[r] = mask_has(next.mask, r) ? bench.m.present[r] : 0;
        next.expelled_incarnation[r] = mask_has(next.expelled, r) ? bench.view.incarnation[r] : 0;
    }
    bench.view = next;
    tell_view();
}

static void quiesces(void)
{
    tell_type(MEMBER_QUIESCED, bench.view.epoch);
    assert_does(MEMBER_DO_PUT);
    assert_int_equal(member_record(&bench.m)->acknowledged, bench.view.epoch);
}

static void commits(void)
{
    bench.view.phase = VIEW_COMMITTED;
    tell_view();
    assert_does(MEMBER_DO_INSTALL);
    assert_int_equal(member_installed(&bench.m)->epoch, bench.view.epoch);
}

static void begins(void)
{
    tell_type(MEMBER_READY, bench.view.epoch);
    others(is_ready);
    assert_does(MEMBER_DO_BEGIN);
}

/* A group of three whose first view is prepared: not yet acknowledged by anyone. */
static void prepared(struct member_config config)
{
    starts(config);
    for (int r = 0; r < config.ranks; r++)
        if (r != config.rank)
            comes(r, 1);
    others_propose(config.first_epoch, (1u << config.ranks) - 1, 0);
    assert_does(MEMBER_DO_RAISE);
}

static void committed(struct member_config config)
{
    prepared(config);
    quiesces();
    others(acknowledges);
    commits();
}

static void running(int rank)
{
    struct member_config config = usual;
    config.rank = rank;
    committed(config);
    begins();
}

static void running_with(struct member_config config)
{
    committed(config);
    begins();
}

/* ---- Founding ---- */

static void m2_first_view_waits_for_every_rank(void **state)
{
    (void)state;
    starts(usual);
    comes(1, 1);
    assert_null(does(MEMBER_DO_SWAP));
    comes(2, 1);
    assert_proposes(1, 7, 0);
}

static void m3_the_next_rank_founds_if_the_lowest_does_not(void **state)
{
    (void)state;
    struct member_config config = usual;
    config.rank = 2;
    starts(config);
    comes(0, 1);
    comes(1, 1);
    assert_does_nothing();
    passes(3 * MS);
    assert_does_nothing();
    passes(1 * MS);
    assert_proposes(1, 7, 0);
}

static void m28_start_timeout_names_the_missing(void **state)
{
    (void)state;
    starts(usual);
    comes(1, 1);
    passes(1000 * MS);
    assert_stops(MUSTER_ERR_TIMEOUT, 4);
}

static void m28_joiner_that_nobody_takes_in_gives_up(void **state)
{
    (void)state;
    struct member_config config = usual;
    config.rank = 2;
    config.incarnation = 2;
    starts(config);
    bench.view = (struct view){.epoch = 4, .phase = VIEW_COMMITTED, .mask = ranks(3), .incarnation = {1, 1}};
    tell_view();
    assert_does_nothing();
    passes(1000 * MS);
    assert_stops(MUSTER_ERR_TIMEOUT, 4);
}

/* All three ranks were in a view that was committed, and this newcomer of rank 0 hears of it. */
static void starts_after(enum view_phase phase)
{
    struct member_config config = usual;
    config.incarnation = 2;
    starts(config);
    bench.view = (struct view){.epoch = 7, .phase = phase, .mask = ranks(7), .incarnation = {1, 1, 1}};
    tell_view();
    tell_fenced(0, 1);
}

static void m31_who_comes_when_all_have_gone_founds_the_next_epoch(void **state)
{
    (void)state;
    starts_after(VIEW_COMMITTED);
    tell_fenced(1, 1);
    comes(1, 2);
    tell_fenced(2, 1);
    assert_null(does(MEMBER_DO_SWAP));
    comes(2, 2);
    assert_proposes(8, 7, 0);
    assert_int_equal(does(MEMBER_DO_SWAP)->view.incarnation[1], 2);
    assert_int_equal(does(MEMBER_DO_SWAP)->revision, bench.revision);
}

static void m31_a_view_that_was_being_prepared_likewise(void **state)
{
    (void)state;
    starts_after(VIEW_PREPARE);
    for (int r = 1; r < 3; r++) {
        tell_fenced(r, 1);
        comes(r, 2);
    }
    assert_proposes(8, 7, 0);
}

static void m31_not_while_a_member_has_not_exited(void **state)
{
    (void)state;
    starts_after(VIEW_COMMITTED);
    tell_fenced(1, 1);
    comes(1, 2);
    tell_presence(2, 1, false);
    comes(2, 2);
    assert_null(does(MEMBER_DO_SWAP));
    passes(1000 * MS);
    assert_stops(MUSTER_ERR_TIMEOUT, 1); /* it is not taken in: one of that group may still live */
}

static void m31_names_the_missing(void **state)
{
    (void)state;
    starts_after(VIEW_COMMITTED);
    tell_fenced(1, 1);
    tell_fenced(2, 1);
    comes(1, 2);
    passes(1000 * MS);
    assert_stops(MUSTER_ERR_TIMEOUT, 4);
}

static void m31_whose_configuration_counts(void **state)
{
    (void)state;
    starts_after(VIEW_COMMITTED);
    tell_presence(1, 1, true);
    tell_presence(2, 1, true);
    assert_true(mask_equal(member_expected(&bench.m), ranks(7)));
    tell_presence(1, 1, false); /* dead, and not yet left out: nobody waits for what it might say */
    assert_true(mask_equal(member_expected(&bench.m), ranks(5)));
    assert_false(member_is_deserted(&bench.m));
    tell_presence(2, 1, false); /* the last of them is about to exit: all will come, and found a group anew */
    assert_true(member_is_deserted(&bench.m));
    assert_true(mask_equal(member_expected(&bench.m), ranks(7)));
    tell_fenced(1, 1);
    tell_fenced(2, 1);
    assert_true(mask_equal(member_expected(&bench.m), ranks(7)));
}

/* Rank 2 comes when the presences of others have ended, of which it hears nothing. */
static void m31_who_was_never_seen_does_not_count(void **state)
{
    (void)state;
    struct member_config config = usual;
    config.rank = 2;
    config.incarnation = 2;
    member_init(&bench.m, &config);
    bench.now_ns = MS;
    bench.revision = 0;
    bench.view = (struct view){.epoch = 1, .phase = VIEW_COMMITTED, .mask = ranks(3), .incarnation = {1, 1}};
    tell_view();
    tell_presence(1, 1, true);
    assert_true(mask_equal(member_expected(&bench.m), ranks(6)));
    tell_presence(1, 1, false);
    assert_true(member_is_deserted(&bench.m));
    assert_true(mask_equal(member_expected(&bench.m), ranks(7)));
}

/* ---- Progress ---- */

static void m32_the_least_and_the_most_of_the_members(void **state)
{
    (void)state;
    uint64_t least, most;
    committed(usual);
    tell((struct member_event){.type = MEMBER_READY, .epoch = 1, .progress = 8});
    assert_int_equal(member_record(&bench.m)->progress, 8);
    comes_so_far(1, 9);
    comes_so_far(2, MEMBER_NO_PROGRESS);
    assert_does(MEMBER_DO_BEGIN);
    member_progress(&bench.m, &least, &most);
    assert_int_equal(least, 8);
    assert_int_equal(most, 9);
}

static void m32_said_once_for_an_epoch(void **state)
{
    (void)state;
    committed(usual);
    tell((struct member_event){.type = MEMBER_READY, .epoch = 1, .progress = 8});
    tell((struct member_event){.type = MEMBER_READY, .epoch = 1, .progress = 9});
    assert_int_equal(member_record(&bench.m)->progress, 8);
}

static void m32_nobody_has_come_anywhere(void **state)
{
    (void)state;
    uint64_t least = 1, most = 1;
    committed(usual);
    tell((struct member_event){.type = MEMBER_READY, .epoch = 1, .progress = MEMBER_NO_PROGRESS});
    comes_so_far(1, MEMBER_NO_PROGRESS);
    comes_so_far(2, MEMBER_NO_PROGRESS);
    member_progress(&bench.m, &least, &most);
    assert_int_equal(least, 0);
    assert_int_equal(most, 0);
}

/* ---- One whole view change ---- */

static void m4_m10_m12_m13_m16_death_of_a_rank(void **state)
{
    (void)state;
    running(0);
    tell_presence(2, 1, false);
    assert_proposes(2, 3, 4);
    swap_succeeds();
    assert_does(MEMBER_DO_RAISE);
    assert_does(MEMBER_DO_FENCE);
    assert_int_equal(does(MEMBER_DO_FENCE)->rank, 2);
    assert_int_equal(does(MEMBER_DO_FENCE)->incarnation, 1);
    assert_int_equal(member_record(&bench.m)->acknowledged, 1);
    quiesces();
    acknowledges(1);
    assert_does_nothing(); /* M13: rank 2 may still write */
    tell_fenced(2, 1);
    assert_does(MEMBER_DO_SWAP);
    assert_int_equal(does(MEMBER_DO_SWAP)->view.phase, VIEW_COMMITTED);
    swap_succeeds();
    assert_does(MEMBER_DO_INSTALL);
    is_ready(1);
    assert_does_nothing(); /* M16: this rank is not ready itself */
    tell_type(MEMBER_READY, 2);
    assert_does(MEMBER_DO_PUT);
    assert_does(MEMBER_DO_BEGIN);
}

static void m4_a_fence_alone_is_a_death_too(void **state)
{
    (void)state;
    running(0);
    tell_fenced(1, 1);
    assert_proposes(2, 5, 2);
}

static void m10_an_older_raise_is_no_acknowledgement(void **state)
{
    (void)state;
    running(0);
    tell_presence(2, 1, false);
    swap_succeeds();
    tell_type(MEMBER_QUIESCED, 1);
    assert_does_nothing();
    assert_int_equal(member_record(&bench.m)->acknowledged, 1);
}

static void m12_a_former_process_does_not_acknowledge(void **state)
{
    (void)state;
    running(0);
    tell_presence(2, 1, false);
    swap_succeeds();
    quiesces();
    tell_fenced(2, 1);
    bench.said[1].incarnation = 7; /* rank 1 is another process than the view means */
    acknowledges(1);
    assert_null(does(MEMBER_DO_SWAP));
}

static void m16_others_begin_only_when_all_are_ready(void **state)
{
    (void)state;
    committed(usual);
    tell_type(MEMBER_READY, 1);
    assert_null(does(MEMBER_DO_BEGIN));
    is_ready(1);
    assert_null(does(MEMBER_DO_BEGIN));
    is_ready(2);
    assert_does(MEMBER_DO_BEGIN);
}

static void m16_ready_for_an_older_epoch_counts_for_nothing(void **state)
{
    (void)state;
    running(1);
    others_propose(2, 7, 0);
    tell_type(MEMBER_READY, 1);
    assert_does_nothing();
    quiesces();
    others(acknowledges);
    commits();
    tell_type(MEMBER_READY, 1);
    assert_does_nothing();
}

static void m1_a_death_during_prepare_takes_the_next_epoch(void **state)
{
    (void)state;
    running(0);
    tell_presence(2, 1, false);
    swap_succeeds();
    quiesces();
    tell_presence(1, 1, false);
    assert_proposes(3, 1, 6); /* M18: rank 2 stays expelled */
}

static void m18_the_expelled_must_be_fenced_though_another_change_came(void **state)
{
    (void)state;
    running(0);
    others_propose(2, 5, 2);
    tell_presence(2, 1, false);
    assert_proposes(3, 1, 6);
    swap_succeeds();
    quiesces();
    tell_fenced(2, 1);
    assert_does_nothing();
    tell_fenced(1, 1);
    assert_does(MEMBER_DO_SWAP);
}

static void m18_the_expelled_do_not_come_back_as_they_were(void **state)
{
    (void)state;
    running(0);
    others_propose(2, 7, 0);
    quiesces();
    bench.said[2] = (struct record){.incarnation = 1, .state = RECORD_JOINING};
    tell_record(2); /* it has never got further than joining */
    acknowledges(1);
    passes(100 * MS);
    assert_proposes(3, 3, 4); /* not taken in again at once, although it looks like a joiner */
    swap_succeeds();
    quiesces();
    tell_presence(1, 1, false);
    assert_proposes(4, 1, 6);
}

static void m3_turns(void **state)
{
    (void)state;
    running(2);
    tell_presence(0, 1, false);
    assert_does_nothing();
    passes(1 * MS);
    assert_does_nothing();
    passes(1 * MS); /* one survivor is below it */
    assert_proposes(2, 6, 1);
}

/* ---- Suspicion ---- */

static void m6_m7_the_one_that_does_not_wait_is_to_blame(void **state)
{
    (void)state;
    running(0);
    bench.waiting = ranks(6);
    tell_overdue(6); /* rank 1 only waits for rank 2 */
    assert_does(MEMBER_DO_PUT);
    assert_int_equal(member_record(&bench.m)->overdue.word[0], 6);
    bench.said[1].waiting_epoch = 1;
    bench.said[1].waiting = ranks(4);
    tell_record(1);
    passes(19 * MS);
    assert_does_nothing();
    passes(1 * MS);
    assert_proposes(2, 3, 4);
}

static void m6_a_reporter_is_excused(void **state)
{
    (void)state;
    running(0);
    bench.waiting = ranks(4);
    tell_overdue(4);
    reports(1, 5); /* rank 1 blames this rank and rank 2 */
    bench.waiting = ranks(0); /* its own kernel has given up by now */
    passes(20 * MS);
    assert_proposes(2, 3, 4);
}

static void m6_each_has_a_grace_of_its_own(void **state)
{
    (void)state;
    running(0);
    tell_overdue(4);
    passes(15 * MS);
    tell_overdue(2);
    passes(5 * MS);
    assert_proposes(2, 3, 4); /* rank 1 has not been heard yet */
}

static void m7_the_accused_says_what_it_waits_for(void **state)
{
    (void)state;
    running(1);
    bench.waiting = ranks(4);
    reports(0, 6);
    assert_does(MEMBER_DO_PUT);
    assert_int_equal(member_record(&bench.m)->waiting_epoch, 1);
    assert_int_equal(member_record(&bench.m)->waiting.word[0], 4);
}

static void m7_also_when_it_begins_to_wait_within_the_grace(void **state)
{
    (void)state;
    running(1);
    reports(0, 6);
    assert_does_nothing();
    passes(10 * MS);
    assert_does_nothing();
    bench.waiting = ranks(4);
    passes(5 * MS);
    assert_does(MEMBER_DO_PUT);
    assert_int_equal(member_record(&bench.m)->waiting.word[0], 4);
}

static void m7_and_after_the_grace_since_its_judge_may_sleep(void **state)
{
    (void)state;
    running(1);
    reports(0, 2);
    passes(60 * MS);
    assert_does_nothing();
    bench.waiting = ranks(1);
    passes(10 * MS);
    assert_does(MEMBER_DO_PUT);
    assert_int_equal(member_record(&bench.m)->waiting.word[0], 1);
}

static void m3_a_suspect_proposes_nothing(void **state)
{
    (void)state;
    running(0);
    reports(1, 1);
    passes(100 * MS);
    assert_does_nothing();
}

static void m8_m5_a_refused_operation_costs_nobody_its_place(void **state)
{
    (void)state;
    running(1);
    reports(0, 4);
    bench.said[2].failed = 1;
    tell_record(2);
    passes(20 * MS);
    assert_proposes(2, 7, 0);
    passes(20 * MS);
    assert_int_equal(bench.m.view.epoch, 1);
}

static void m8_not_even_when_its_grace_is_over(void **state)
{
    (void)state;
    running(0);
    bench.said[2].failed = 1;
    bench.m.swap = MEMBER_SWAP_SENT; /* a swap of ours is under way until then */
    bench.m.swap_started_ns = bench.now_ns;
    reports(1, 4);
    tell_record(2);
    passes(30 * MS);
    assert_does(MEMBER_DO_READ);
    passes(30 * MS);
    assert_proposes(2, 7, 0);
}

static void m5_a_failed_operation_ends_the_epoch(void **state)
{
    (void)state;
    running(0);
    tell_type(MEMBER_FAILED, 1);
    assert_does(MEMBER_DO_PUT);
    assert_int_equal(member_record(&bench.m)->failed, 1);
    assert_proposes(2, 7, 0);
}

static void m9_nobody_to_blame_is_the_same_mask(void **state)
{
    (void)state;
    running(0);
    bench.waiting = ranks(2);
    tell_overdue(2);
    reports(1, 1);
    passes(20 * MS);
    assert_proposes(2, 7, 0);
}

/* ---- Joining and leaving ---- */

/* Rank 2 dies, and the view without it runs. */
static void running_without_rank_2(void)
{
    running(0);
    tell_presence(2, 1, false);
    swap_succeeds();
    quiesces();
    acknowledges(1);
    tell_fenced(2, 1);
    swap_succeeds();
    begins();
}

static void m19_a_new_incarnation_joins(void **state)
{
    (void)state;
    running_without_rank_2();
    comes(2, 2);
    assert_proposes(3, 7, 0);
    assert_int_equal(does(MEMBER_DO_SWAP)->view.incarnation[2], 2);
}

static void m19_only_when_its_predecessor_is_fenced(void **state)
{
    (void)state;
    running_without_rank_2();
    comes(2, 3); /* incarnation 2 was started and has not exited */
    assert_does_nothing();
    tell_fenced(2, 2);
    assert_proposes(3, 7, 0);
}

static void m19_a_join_does_not_disturb_an_unbegun_view(void **state)
{
    (void)state;
    running(0);
    tell_presence(2, 1, false);
    swap_succeeds();
    quiesces();
    tell_fenced(2, 1);
    comes(2, 2);
    assert_null(does(MEMBER_DO_SWAP));
    acknowledges(1);
    assert_int_equal(does(MEMBER_DO_SWAP)->view.phase, VIEW_COMMITTED);
    swap_succeeds();
    assert_null(does(MEMBER_DO_SWAP));
    tell_type(MEMBER_READY, 2);
    assert_null(does(MEMBER_DO_SWAP));
    is_ready(1);
    assert_does(MEMBER_DO_BEGIN);
    tell_record(1);
    assert_proposes(3, 7, 0);
}

static void m19_but_is_folded_into_another_change(void **state)
{
    (void)state;
    running(0);
    tell_presence(2, 1, false);
    swap_succeeds();
    tell_fenced(2, 1);
    comes(2, 2);
    tell_presence(1, 1, false);
    assert_proposes(3, 5, 6);
    assert_int_equal(does(MEMBER_DO_SWAP)->view.incarnation[2], 2);
    assert_int_equal(does(MEMBER_DO_SWAP)->view.expelled_incarnation[2], 1);
}

static void m20_who_leaves_is_gone_and_fenced(void **state)
{
    (void)state;
    running(0);
    bench.said[2].state = RECORD_LEFT;
    tell_record(2);
    assert_proposes(2, 3, 4);
    swap_succeeds();
    assert_null(does(MEMBER_DO_FENCE));
    quiesces();
    acknowledges(1);
    assert_int_equal(does(MEMBER_DO_SWAP)->view.phase, VIEW_COMMITTED);
}

static void m20_leaving_is_no_fence_for_a_predecessor(void **state)
{
    (void)state;
    running(0);
    tell_presence(2, 1, false); /* disconnected: it may still run */
    swap_succeeds();
    comes(2, 2);
    bench.said[2].state = RECORD_LEFT;
    tell_record(2);
    quiesces();
    acknowledges(1);
    assert_null(does(MEMBER_DO_SWAP));
    tell_fenced(2, 1);
    assert_int_equal(does(MEMBER_DO_SWAP)->view.phase, VIEW_COMMITTED);
}

static void m20_leaving_publishes_it_first(void **state)
{
    (void)state;
    running(1);
    tell_type(MEMBER_LEAVE, 0);
    assert_int_equal(bench.actions.count, 2);
    assert_int_equal(bench.actions.item[0].type, MEMBER_DO_PUT);
    assert_int_equal(bench.actions.item[1].type, MEMBER_DO_LEFT);
    assert_int_equal(member_record(&bench.m)->state, RECORD_LEFT);
    tell_presence(0, 1, false);
    assert_does_nothing();
}

/* ---- Deadlines ---- */

static void m11_the_silent_are_left_out(void **state)
{
    (void)state;
    running(0);
    tell_type(MEMBER_FAILED, 1);
    swap_succeeds();
    quiesces();
    acknowledges(1);
    passes(99 * MS);
    assert_does_nothing();
    passes(1 * MS);
    assert_proposes(3, 3, 4);
}

static void m17_the_unready_are_left_out(void **state)
{
    (void)state;
    committed(usual);
    tell_type(MEMBER_READY, 1);
    is_ready(1);
    passes(399 * MS);
    assert_does_nothing();
    passes(1 * MS);
    assert_proposes(2, 3, 4);
}

static void m30_where_all_are_late_nobody_is_judged(void **state)
{
    (void)state;
    committed(usual);
    passes(1000 * MS);
    assert_does_nothing();
    tell_type(MEMBER_READY, 1);
    others(is_ready);
    assert_does(MEMBER_DO_BEGIN);
}

static void m30_the_last_one_is_not_its_own_judge(void **state)
{
    (void)state;
    running(0);
    reports(1, 1); /* rank 1 blames this rank, then dies with rank 2 */
    passes(50 * MS);
    tell_presence(2, 1, false);
    tell_presence(1, 1, false);
    assert_proposes(2, 1, 6);
}

static void m14_m15_a_rank_that_cannot_be_fenced(void **state)
{
    (void)state;
    running(0);
    tell_presence(2, 1, false);
    assert_null(does(MEMBER_DO_FENCE)); /* M14: not before the view is in the store */
    swap_succeeds();
    assert_does(MEMBER_DO_FENCE);
    quiesces();
    acknowledges(1);
    passes(199 * MS);
    assert_does_nothing();
    passes(1 * MS);
    assert_stops(MUSTER_ERR_UNFENCED, 4);
}

static void m14_others_fence_when_the_proposer_does_not(void **state)
{
    (void)state;
    running(1);
    tell_presence(2, 1, false);
    others_propose(2, 3, 4);
    assert_does(MEMBER_DO_RAISE);
    assert_null(does(MEMBER_DO_FENCE));
    passes(4 * MS);
    assert_does(MEMBER_DO_FENCE);
    assert_int_equal(does(MEMBER_DO_FENCE)->rank, 2);
    passes(50 * MS);
    assert_does_nothing();
}

static void m29_whose_kernels_never_return_stops(void **state)
{
    (void)state;
    running(0);
    tell_type(MEMBER_FAILED, 1);
    swap_succeeds();
    others(acknowledges);
    passes(499 * MS);
    assert_does_nothing(); /* M3: silent itself, it proposes nothing */
    passes(1 * MS);
    assert_stops(MUSTER_ERR_TIMEOUT, 1);
}

static void m27_news_is_read_before_anybody_is_judged(void **state)
{
    (void)state;
    running(0);
    tell_type(MEMBER_FAILED, 1);
    swap_succeeds();
    quiesces();
    bench.now_ns += 110 * MS; /* both have spoken in time, and this rank reads it late */
    acknowledges(1);
    assert_null(does(MEMBER_DO_SWAP));
    acknowledges(2);
    assert_int_equal(does(MEMBER_DO_SWAP)->view.phase, VIEW_COMMITTED);
}

static void m27_who_slept_judges_nobody_by_its_sleep(void **state)
{
    (void)state;
    running(0);
    tell_type(MEMBER_FAILED, 1);
    swap_succeeds();
    quiesces();
    bench.now_ns += 5000 * MS;
    tell_type(MEMBER_TICK, 0);
    assert_null(does(MEMBER_DO_SWAP));
    passes(99 * MS);
    assert_null(does(MEMBER_DO_SWAP));
    passes(1 * MS);
    assert_proposes(3, 1, 6); /* it waits once more, not for ever */
}

static void m27_a_second_pause_is_forgiven_as_well(void **state)
{
    (void)state;
    running(0);
    tell_type(MEMBER_FAILED, 1);
    swap_succeeds();
    quiesces();
    for (int i = 0; i < 3; i++) {
        bench.now_ns += 5000 * MS;
        tell_type(MEMBER_TICK, 0);
        assert_null(does(MEMBER_DO_SWAP));
    }
}

static void m27_a_pause_that_no_deadline_shows(void **state)
{
    (void)state;
    running(0);
    tell_type(MEMBER_FAILED, 1);
    swap_succeeds();
    quiesces();
    bench.now_ns += 105 * MS; /* the deadline is over by less than the grace */
    tell((struct member_event){.type = MEMBER_TICK, .paused_ns = 90 * MS});
    assert_null(does(MEMBER_DO_SWAP));
    passes(99 * MS);
    assert_null(does(MEMBER_DO_SWAP));
    passes(1 * MS);
    assert_proposes(3, 1, 6);
}

/* ---- Ends ---- */

static void m22_too_few_are_left(void **state)
{
    (void)state;
    struct member_config config = usual;
    config.min_ranks = 2;
    running_with(config);
    tell_presence(1, 1, false);
    assert_proposes(2, 5, 2);
    tell_presence(2, 1, false);
    assert_stops(MUSTER_ERR_CAPACITY, 6);
}

static void m23_the_last_epoch(void **state)
{
    (void)state;
    struct member_config config = usual;
    config.first_epoch = STAMP_MAX_EPOCH - 1;
    running_with(config);
    tell_presence(2, 1, false);
    assert_proposes(STAMP_MAX_EPOCH, 3, 4);
    swap_succeeds();
    quiesces();
    tell_fenced(2, 1);
    acknowledges(1);
    swap_succeeds();
    begins();
    comes(2, 2);
    assert_does_nothing(); /* a join is no reason to end the group */
    tell_presence(1, 1, false);
    assert_stops(MUSTER_ERR_EXHAUSTED, 0);
}

static void m21_a_member_that_is_left_out_stops_at_once(void **state)
{
    (void)state;
    running(1);
    others_propose(2, 5, 2);
    assert_stops(MUSTER_ERR_EVICTED, 0);
    tell_type(MEMBER_QUIESCED, 2);
    assert_does_nothing();
}

static void m21_also_when_its_number_has_gone_to_another(void **state)
{
    (void)state;
    running(1);
    tell_presence(1, 2, true);
    assert_stops(MUSTER_ERR_EVICTED, 0);
}

static void m26_the_store_is_gone(void **state)
{
    (void)state;
    running(1);
    tell_type(MEMBER_LOST, 0);
    assert_stops(MUSTER_ERR_STORE, 0);
}

static void m26_the_store_has_forgotten_this_rank(void **state)
{
    (void)state;
    running(1);
    tell_presence(1, 1, false);
    assert_stops(MUSTER_ERR_STORE, 0);
}

static void m26_this_rank_was_fenced(void **state)
{
    (void)state;
    running(1);
    tell_fenced(1, 1);
    assert_stops(MUSTER_ERR_EVICTED, 0);
}

/* ---- The store's replies ---- */

static void m24_a_lost_reply_is_resolved_by_reading(void **state)
{
    (void)state;
    running(0);
    tell_presence(2, 1, false);
    assert_proposes(2, 3, 4);
    bench.view = does(MEMBER_DO_SWAP)->view; /* it has succeeded, but the reply is lost */
    passes(30 * MS);
    assert_does(MEMBER_DO_READ);
    assert_null(does(MEMBER_DO_SWAP));
    tell_view();
    assert_does(MEMBER_DO_RAISE);
    assert_null(does(MEMBER_DO_SWAP));
}

static void m24_a_swap_that_never_happened_is_decided_afresh(void **state)
{
    (void)state;
    running(0);
    tell_presence(2, 1, false);
    assert_proposes(2, 3, 4);
    passes(30 * MS);
    assert_does(MEMBER_DO_READ);
    tell_presence(1, 1, false);
    assert_null(does(MEMBER_DO_SWAP)); /* not before the answer */
    tell((struct member_event){.type = MEMBER_VIEW, .view = &bench.view, .revision = bench.revision});
    assert_proposes(2, 1, 6);
}

static void m24_a_swap_that_lost_is_read_too(void **state)
{
    (void)state;
    running(0);
    tell_presence(2, 1, false);
    tell((struct member_event){.type = MEMBER_SWAPPED});
    assert_does(MEMBER_DO_READ);
    assert_null(does(MEMBER_DO_SWAP));
    others_propose(2, 3, 4);
    assert_does(MEMBER_DO_RAISE);
}

static void m25_late_views_are_ignored(void **state)
{
    (void)state;
    running(0);
    struct view old = bench.view;
    others_propose(2, 7, 0);
    tell((struct member_event){.type = MEMBER_VIEW, .view = &old, .revision = bench.revision - 1});
    assert_does_nothing();
    assert_int_equal(bench.m.view.epoch, 2);
}

static void m25_an_epoch_that_goes_back_is_another_store(void **state)
{
    (void)state;
    running(0);
    others_propose(2, 7, 0);
    bench.view.epoch = 1;
    tell_view();
    assert_stops(MUSTER_ERR_STORE, 0);
}

static void m25_so_is_another_mask_under_the_same_epoch(void **state)
{
    (void)state;
    running(0);
    others_propose(2, 7, 0);
    bench.view.mask = ranks(3);
    bench.view.phase = VIEW_COMMITTED;
    tell_view();
    assert_stops(MUSTER_ERR_STORE, 0);
}

static void m25_so_is_a_commit_without_our_acknowledgement(void **state)
{
    (void)state;
    running(0);
    others_propose(2, 7, 0);
    bench.view.phase = VIEW_COMMITTED;
    tell_view();
    assert_stops(MUSTER_ERR_STORE, 0);
}

static void news_of_no_rank_is_ignored(void **state)
{
    (void)state;
    running(0);
    tell_presence(-1, 1, false);
    tell_presence(3, 1, false);
    tell_presence(1, 0, true);
    tell_fenced(128, 9);
    tell((struct member_event){.type = MEMBER_RECORD, .rank = 1});
    assert_does_nothing();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(m2_first_view_waits_for_every_rank),
        cmocka_unit_test(m3_the_next_rank_founds_if_the_lowest_does_not),
        cmocka_unit_test(m28_start_timeout_names_the_missing),
        cmocka_unit_test(m28_joiner_that_nobody_takes_in_gives_up),
        cmocka_unit_test(m4_m10_m12_m13_m16_death_of_a_rank),
        cmocka_unit_test(m4_a_fence_alone_is_a_death_too),
        cmocka_unit_test(m10_an_older_raise_is_no_acknowledgement),
        cmocka_unit_test(m12_a_former_process_does_not_acknowledge),
        cmocka_unit_test(m16_others_begin_only_when_all_are_ready),
        cmocka_unit_test(m16_ready_for_an_older_epoch_counts_for_nothing),
        cmocka_unit_test(m1_a_death_during_prepare_takes_the_next_epoch),
        cmocka_unit_test(m18_the_expelled_must_be_fenced_though_another_change_came),
        cmocka_unit_test(m18_the_expelled_do_not_come_back_as_they_were),
        cmocka_unit_test(m3_turns),
        cmocka_unit_test(m6_m7_the_one_that_does_not_wait_is_to_blame),
        cmocka_unit_test(m6_a_reporter_is_excused),
        cmocka_unit_test(m6_each_has_a_grace_of_its_own),
        cmocka_unit_test(m7_the_accused_says_what_it_waits_for),
        cmocka_unit_test(m7_also_when_it_begins_to_wait_within_the_grace),
        cmocka_unit_test(m7_and_after_the_grace_since_its_judge_may_sleep),
        cmocka_unit_test(m3_a_suspect_proposes_nothing),
        cmocka_unit_test(m8_m5_a_refused_operation_costs_nobody_its_place),
        cmocka_unit_test(m8_not_even_when_its_grace_is_over),
        cmocka_unit_test(m5_a_failed_operation_ends_the_epoch),
        cmocka_unit_test(m9_nobody_to_blame_is_the_same_mask),
        cmocka_unit_test(m19_a_new_incarnation_joins),
        cmocka_unit_test(m19_only_when_its_predecessor_is_fenced),
        cmocka_unit_test(m19_a_join_does_not_disturb_an_unbegun_view),
        cmocka_unit_test(m19_but_is_folded_into_another_change),
        cmocka_unit_test(m20_who_leaves_is_gone_and_fenced),
        cmocka_unit_test(m20_leaving_is_no_fence_for_a_predecessor),
        cmocka_unit_test(m20_leaving_publishes_it_first),
        cmocka_unit_test(m11_the_silent_are_left_out),
        cmocka_unit_test(m17_the_unready_are_left_out),
        cmocka_unit_test(m30_where_all_are_late_nobody_is_judged),
        cmocka_unit_test(m30_the_last_one_is_not_its_own_judge),
        cmocka_unit_test(m14_m15_a_rank_that_cannot_be_fenced),
        cmocka_unit_test(m14_others_fence_when_the_proposer_does_not),
        cmocka_unit_test(m29_whose_kernels_never_return_stops),
        cmocka_unit_test(m27_news_is_read_before_anybody_is_judged),
        cmocka_unit_test(m27_who_slept_judges_nobody_by_its_sleep),
        cmocka_unit_test(m27_a_second_pause_is_forgiven_as_well),
        cmocka_unit_test(m27_a_pause_that_no_deadline_shows),
        cmocka_unit_test(m31_who_comes_when_all_have_gone_founds_the_next_epoch),
        cmocka_unit_test(m31_a_view_that_was_being_prepared_likewise),
        cmocka_unit_test(m31_not_while_a_member_has_not_exited),
        cmocka_unit_test(m31_names_the_missing),
        cmocka_unit_test(m31_whose_configuration_counts),
        cmocka_unit_test(m31_who_was_never_seen_does_not_count),
        cmocka_unit_test(m32_the_least_and_the_most_of_the_members),
        cmocka_unit_test(m32_said_once_for_an_epoch),
        cmocka_unit_test(m32_nobody_has_come_anywhere),
        cmocka_unit_test(m22_too_few_are_left),
        cmocka_unit_test(m23_the_last_epoch),
        cmocka_unit_test(m21_a_member_that_is_left_out_stops_at_once),
        cmocka_unit_test(m21_also_when_its_number_has_gone_to_another),
        cmocka_unit_test(m26_the_store_is_gone),
        cmocka_unit_test(m26_the_store_has_forgotten_this_rank),
        cmocka_unit_test(m26_this_rank_was_fenced),
        cmocka_unit_test(m24_a_lost_reply_is_resolved_by_reading),
        cmocka_unit_test(m24_a_swap_that_never_happened_is_decided_afresh),
        cmocka_unit_test(m24_a_swap_that_lost_is_read_too),
        cmocka_unit_test(m25_late_views_are_ignored),
        cmocka_unit_test(m25_an_epoch_that_goes_back_is_another_store),
        cmocka_unit_test(m25_so_is_another_mask_under_the_same_epoch),
        cmocka_unit_test(m25_so_is_a_commit_without_our_acknowledgement),
        cmocka_unit_test(news_of_no_rank_is_ignored),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
