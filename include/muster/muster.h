// SPDX-License-Identifier: Apache-2.0
/*
 * Muster: expert-parallel communication that keeps working when ranks die. This header includes all the others.
 *
 * A rank, started by `muster run -n 4 ./a.out`, sends its tokens to the experts and gets the sums back:
 *
 *     muster_ep_config exchange = MUSTER_EP_CONFIG_INIT; // bf16, expert-major, exact
 *     exchange.hidden = 2048, exchange.max_tokens = 128, exchange.topk = 8, exchange.slots_per_rank = 16;
 *
 *     muster_group_config config = MUSTER_GROUP_CONFIG_INIT; // rank, ranks and store come from the launcher
 *     muster_ep_memory_bytes(&exchange, 4, &config.memory_bytes);
 *     muster_group *group;
 *     muster_ep *ep;
 *     if (muster_group_create(&config, &group) || muster_ep_create(group, &exchange, &ep))
 *         return fprintf(stderr, "%s\n", muster_last_error()), 1;
 *
 *     muster_view view = {0};
 *     uint32_t epoch = 0;
 *     for (uint64_t batch = 0; batch < batches;) {
 *         if (muster_group_wait_ready(group, UINT64_MAX) || muster_group_view(group, &view)) // waits while one is agreed
 *             return fprintf(stderr, "%s\n", muster_last_error()), 1; // the group has ended for this rank
 *         if (!view.ready)
 *             continue; // another one has come since: how far all are is told when it is ready
 *         if (view.epoch != epoch)
 *             batch = view.progress_least; // where the slowest rank is: a step may be good here and void there
 *         epoch = view.epoch;
 *         load_batch(batch);
 *         muster_step_begin(group, NULL);
 *         for (int layer = 0; layer < layers; layer++) {
 *             muster_ep_dispatch(ep, &dispatch[layer], NULL); // hidden, topk_slots, topk_weights -> rows by expert
 *             run_experts(layer);
 *             muster_ep_combine(ep, &combine[layer], NULL); // results -> [tokens, hidden]
 *         }
 *         muster_step_end(group, NULL);
 *
 *         muster_verdict verdict;
 *         muster_step_verdict(group, &verdict);
 *         if (verdict.status == MUSTER_OK)
 *             use_results(batch++); // otherwise a rank died: nothing counts, and the batch is run again on the survivors
 *     }
 *     muster_ep_destroy(ep);
 *     muster_group_destroy(group);
 *
 * Errors: every call returns a muster_status; muster_last_error() says what to do about the last one. See status.h.
 * Threads: one at a time per handle; muster_group_view() and muster_group_abort() from any.
 */
#ifndef MUSTER_MUSTER_H
#define MUSTER_MUSTER_H

#include "muster/ep.h"
#include "muster/group.h"
#include "muster/memory.h"
#include "muster/placement.h"
#include "muster/status.h"

#endif
