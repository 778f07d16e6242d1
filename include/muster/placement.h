// SPDX-License-Identifier: Apache-2.0
/*
 * Placement: which slot holds which expert. Pure arithmetic on caller-owned arrays; no call blocks; any thread. Time
 * grows with the slots and experts, hardly faster; a few times their size in memory is taken for the call, and without
 * it the error is MEMORY.
 */
#ifndef MUSTER_PLACEMENT_H
#define MUSTER_PLACEMENT_H

#include <stdint.h>

#include "muster/group.h"
#include "muster/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * The contiguous initial placement of one layer: rank r holds experts in order, the first experts % active ranks one
 * more than the others; slots that are left over hold further copies of the experts, round robin, never two of one
 * expert on a rank while another choice exists. Same result on every rank.
 * slot_to_expert: [ranks * slots_per_rank], -1 = empty (also all slots of ranks outside the mask).
 * Errors: ARGUMENT; CAPACITY if active ranks * slots_per_rank < experts. On failure the array is untouched.
 */
MUSTER_API muster_status muster_placement_initial(int32_t experts, int32_t ranks, int32_t slots_per_rank,
                                                  muster_mask mask, int32_t *slot_to_expert);

/*
 * Repairs a placement after the mask changed: slots of ranks that left become -1; experts with no copy left take
 * slots of ranks in the mask: empty ones first, then the second copies of other experts; nothing else moves. Ranks
 * that came (all their slots -1) get copies of the experts with the fewest. Same result on every rank.
 * changed: [ranks * slots_per_rank], set to 1 where the slot holds another expert than before and must be loaded; may
 * be NULL. Errors: ARGUMENT; CAPACITY. On failure both arrays are untouched.
 */
MUSTER_API muster_status muster_placement_repair(int32_t experts, int32_t ranks, int32_t slots_per_rank,
                                                 muster_mask mask, int32_t *slot_to_expert, uint8_t *changed);

/*
 * Picks for each expert the slot that tokens of `rank` are sent to: a copy on `rank` itself if there is one, otherwise
 * the copies in turn, spread by rank. expert_to_slot: [experts]. Errors: ARGUMENT; CAPACITY if an expert has no slot.
 */
MUSTER_API muster_status muster_placement_routes(int32_t experts, int32_t ranks, int32_t slots_per_rank, int32_t rank,
                                                 const int32_t *slot_to_expert, int32_t *expert_to_slot);

#ifdef __cplusplus
}
#endif
#endif
