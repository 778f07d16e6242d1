// SPDX-License-Identifier: Apache-2.0
/* From a configuration to the shape of an exchange. Pure arithmetic. */
#ifndef EP_SHAPE_H
#define EP_SHAPE_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"
#include "muster/ep.h"

enum { SHAPE_NAME_BYTES = 31, SHAPE_FIELDS_BYTES = 2048 };

/* OK, or ARGUMENT naming the field and its limit. */
muster_status shape_check(const muster_ep_config *config, int32_t ranks);

/* The shape of a checked configuration whose memory begins at `begin` of every region. */
void shape_make(const muster_ep_config *config, int32_t ranks, uint64_t begin, struct exchange_shape *shape);

/* Rows that a rank can receive from all others, and results that it can have for them, outside expert-major. */
uint64_t shape_rows(const struct exchange_shape *shape);

/* The array of the shape that payload i of the configuration became. */
int shape_payload(const struct exchange_shape *shape, int payload);

/* The configuration as "name=value" lines, for comparison among ranks. */
void shape_fields(const muster_ep_config *config, char out[SHAPE_FIELDS_BYTES]);

#endif
