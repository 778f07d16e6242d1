// SPDX-License-Identifier: Apache-2.0
/*
 * Checks of what a caller hands in, and its translation for the kernels. Every error names the argument and the limit,
 * and is found before anything is touched (promise 9).
 */
#ifndef EP_ARGS_H
#define EP_ARGS_H

#include "kernels/kernels.h"
#include "muster/ep.h"

enum { ARGS_NAME_BYTES = 56 };

/* What the checks need to know of an exchange. */
struct args_exchange {
    const muster_ep_config *config;
    const struct exchange_shape *shape;
    const unsigned char *region; /* this rank's own */
    unsigned char *gathered; /* hidden rows go there that the caller wants in place; NULL: they stay in the region */
    muster_device device; /* on which tensors must lie */
    char payload_name[MUSTER_EP_MAX_PAYLOADS][ARGS_NAME_BYTES];
    char out_payload_name[MUSTER_EP_MAX_PAYLOADS][ARGS_NAME_BYTES];
};

/* Makes the names of payloads in error messages: "payload[0] (router logits)". */
void args_name_payloads(struct args_exchange *x);

/* Each fills what is not NULL of its results: `send` from the inputs, `receive` from the outputs of `args`. */
muster_status args_dispatch(const struct args_exchange *x, const char *call, const muster_ep_dispatch_args *args,
                            struct dispatch_send_args *send, struct dispatch_receive_args *receive);
/* tokens: of the dispatch that is outstanding. */
muster_status args_combine(const struct args_exchange *x, const char *call, const muster_ep_combine_args *args,
                           int32_t tokens, struct combine_send_args *send, struct combine_receive_args *receive);

#endif
