// SPDX-License-Identifier: Apache-2.0
/*
 * What dispatch and combine must give, computed the slow and plain way from the inputs of all ranks. It knows the
 * documented contract and nothing of the library: no header is shared with it, arrays are plain C arrays.
 *
 * Arrays that a rank receives are allocated whole, in the documented shapes, and filled with ORACLE_CANARY first. So a
 * test fills its own outputs with the same byte and compares whole arrays: what must stay untouched is compared too.
 */
#ifndef ORACLE_H
#define ORACLE_H

#include <stddef.h>
#include <stdint.h>

enum { ORACLE_MAX_PAYLOADS = 7, ORACLE_GROUP = 128, ORACLE_CANARY = 0xA5 };

enum oracle_type { ORACLE_BF16, ORACLE_FP16, ORACLE_FP32, ORACLE_FP8 };
enum oracle_quantise { ORACLE_PLAIN, ORACLE_SCALED, ORACLE_SCALED_POW2 };

struct oracle_shape {
    int ranks;
    int slots; /* per rank */
    int max_tokens;
    int hidden; /* elements */
    int topk;
    enum oracle_type type; /* of hidden rows, results and the output: anything but ORACLE_FP8 */
    enum oracle_quantise quantise; /* of hidden rows on their way to the experts */
    enum oracle_quantise quantise_return; /* of rows of results on their way home */
    int payloads;
    int payload_bytes[ORACLE_MAX_PAYLOADS]; /* per token */
    int pad; /* rows past the count get `invalid` in their ids */
    int32_t invalid;
};

/* What one rank hands in; everything compact. */
struct oracle_rank {
    int active; /* 0: it sends nothing, and routes to it do not exist */
    int tokens;
    const void *hidden; /* [tokens][hidden] */
    const int64_t *slots; /* [tokens][topk]: rank * slots + i, or -1 */
    const float *weights; /* [tokens][topk], or NULL: all 1 */
    const void *payload[ORACLE_MAX_PAYLOADS];
};

/* What one rank receives. Rows: slots * (ranks * max_tokens) for expert-major, otherwise ranks * max_tokens. */
struct oracle_received {
    int rows;
    int groups; /* of rows that are counted together: slots, or ranks */
    unsigned char *hidden;
    float *scales; /* [rows][ceil(hidden / 128)] */
    unsigned char *payload[ORACLE_MAX_PAYLOADS];
    int32_t *counts; /* [groups] */
    int32_t *source; /* [rows][2] */
    int64_t *ranges; /* [slots][ranks], expert-major; [ranks], flat */
    int32_t *slots; /* [rows][topk], rank-major and flat */
    float *weights; /* [rows][topk], likewise */
};

/* Numbers. Each is its own small definition of the format, by value rather than by bits. */
double oracle_decode(enum oracle_type type, const void *elements, size_t index);
void oracle_encode(enum oracle_type type, void *elements, size_t index, double value);
size_t oracle_type_bytes(enum oracle_type type);
uint16_t oracle_bf16_from(double value);
double oracle_bf16_value(uint16_t code);
uint16_t oracle_fp16_from(double value);
double oracle_fp16_value(uint16_t code);
uint8_t oracle_fp8_from(float value);
double oracle_fp8_value(uint8_t code);
/* Quantises one group of at most 128 values; returns its scale. */
float oracle_fp8_group(const float *values, int count, enum oracle_quantise quantise, uint8_t *codes);

/* Whether two arrays are the same bytes, but for the payload and the sign of a NaN. -1, or where they first differ. */
ptrdiff_t oracle_differ(enum oracle_type type, const void *a, const void *b, size_t count);

/* Dispatch, as seen by `rank`. Free with oracle_received_free. */
void oracle_expert_major(const struct oracle_shape *shape, const struct oracle_rank *ranks, int rank,
                         struct oracle_received *out);
void oracle_rank_major(const struct oracle_shape *shape, const struct oracle_rank *ranks, int rank,
                       struct oracle_received *out);
void oracle_flat(const struct oracle_shape *shape, const struct oracle_rank *ranks, int rank,
                 struct oracle_received *out);
void oracle_received_free(struct oracle_received *received);

/* loads [ranks][ranks * slots]: routes from each rank to each slot. */
void oracle_loads(const struct oracle_shape *shape, const struct oracle_rank *ranks, int32_t *loads);

/* Routes of `rank` that do not exist because their rank is inactive. */
int oracle_dropped(const struct oracle_shape *shape, const struct oracle_rank *ranks, int rank);

/*
 * Combine, as seen by `home`: out [tokens][hidden] in shape->type. results[r] is what rank r's experts wrote, in the
 * layout of dispatch: [slots][ranks * max_tokens][hidden], [ranks][max_tokens][hidden] for rank-major, or
 * [ranks * max_tokens][hidden] for flat.
 */
void oracle_combine_exact(const struct oracle_shape *shape, const struct oracle_rank *ranks,
                          unsigned char *const *results, int home, void *out);
void oracle_combine_reduced(const struct oracle_shape *shape, const struct oracle_rank *ranks,
                            unsigned char *const *results, int home, void *out);
void oracle_combine_rank_major(const struct oracle_shape *shape, const struct oracle_rank *ranks,
                               unsigned char *const *results, int home, void *out);
void oracle_combine_flat(const struct oracle_shape *shape, const struct oracle_rank *ranks,
                         unsigned char *const *results, int home, void *out);

/*
 * The same sum of expert-major results in double precision, and the sum of the terms' magnitudes: what the pinned fp32
 * orders must be close to. Both [tokens][hidden].
 */
void oracle_combine_real(const struct oracle_shape *shape, const struct oracle_rank *ranks,
                         unsigned char *const *results, int home, double *sum, double *magnitude);

#endif
