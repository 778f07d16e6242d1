// SPDX-License-Identifier: Apache-2.0
/*
 * Dispatch of the fewest tokens: how their rows leave in words (dispatch_take_words.cuh is the other end). A row has two words
 * for each route, then its arrays:
 *
 *     word 2 k      local slot (-1: the route goes elsewhere) | index of the route in its slot << 32
 *     word 2 k + 1  weight
 *
 * Rows lie by token, so a block need not know how many tokens before its own go where; a receiver is told which tokens
 * come, and numbers their rows itself. From there on they are rows like others.
 */
#ifndef CUDA_DISPATCH_WORDS_CUH
#define CUDA_DISPATCH_WORDS_CUH

#include "kernels/cuda/dispatch_push.cuh"
#include "kernels/cuda/words.cuh"

/* Of hidden states on their way: as much as 256 values in fp8, of which two scales may share a word. */
enum { WORDS_UNIT = 32 };

/* What a block prepares in shared memory, behind the table of counts: see words_shared_bytes(). */
struct words_stage {
    int64_t *id; /* [word_tokens][K] of the tokens up to the block's own, or of all (planner) */
    float *weight; /* [K] of its own */
    unsigned char *row; /* its share of the hidden states, as the caller gave them */
    unsigned char *codes; /* quantised: the same as it travels */
    float *scale;
};

/* Of the caller's, for as much of a row as is 8 bytes on its way. */
__host__ __device__ __forceinline__ int32_t words_source_bytes(const struct exchange_shape &shape)
{
    return shape.quantise ? 8 * (int32_t)(shape.result_bytes / (size_t)shape.hidden) : 8;
}

__host__ __device__ __forceinline__ int32_t words_of_hidden(const struct exchange_shape &shape)
{
    return (int32_t)(shape.array[0].row_bytes / 8);
}

/* Rounded up, so that what follows begins on 16 bytes. */
__host__ __device__ __forceinline__ int32_t words_staged_ids(const struct exchange_shape &shape)
{
    return (shape.word_tokens * shape.topk + 1) / 2 * 2;
}

__host__ __device__ __forceinline__ int32_t words_staged_weights(const struct exchange_shape &shape)
{
    return (shape.topk + 3) / 4 * 4;
}

static inline int32_t words_shared_bytes(const struct exchange_shape *shape, const struct cuda_cut &cut)
{
    int32_t words = cut.size, scales = words * 8 / MUSTER_EP_FP8_GROUP;
    int32_t bytes =
        8 * words_staged_ids(*shape) + 4 * words_staged_weights(*shape) + words * words_source_bytes(*shape);
    return bytes + (shape->quantise ? 8 * words + 4 * scales : 0);
}

__device__ __forceinline__ struct words_stage words_stage(const struct cuda_launch &l, unsigned char *shared)
{
    const struct exchange_shape &shape = l.shape;
    int32_t words = l.plan.send_cut.size;
    struct words_stage stage;
    stage.id = (int64_t *)shared;
    stage.weight = (float *)(stage.id + words_staged_ids(shape));
    stage.row = (unsigned char *)(stage.weight + words_staged_weights(shape));
    stage.codes = stage.row + words * words_source_bytes(shape);
    stage.scale = (float *)(stage.codes + words * 8);
    return stage;
}

/* Blocks share the parts of all tokens; this one is the plan for them. */
enum { WORDS_PLAN = -1 };

/* Of the hidden states, in words. */
__device__ __forceinline__ struct cut_share words_sent_share(const struct cuda_launch &l, int32_t unit)
{
    return cut_share(l.plan.send_cut, words_of_hidden(l.shape), unit);
}

/* From the caller's memory; rows there may begin on any element. */
__device__ inline void words_stage_bytes(unsigned char *to, const unsigned char *from, int32_t bytes, int thread,
                                         int threads)
{
    if (copy_width(copy_bits(from)) == 16)
        for (int32_t at = 16 * thread; at < bytes; at += 16 * threads)
            *(uint4 *)(to + at) = *(const uint4 *)(from + at);
    else
        for (int32_t at = 2 * thread; at < bytes; at += 2 * threads)
            *(uint16_t *)(to + at) = *(const uint16_t *)(from + at);
}

/* A block's first unit while the turn is entered: see turn_enter(). */
__device__ inline void words_prepare(const struct cuda_launch &l, const struct dispatch_send_args &send,
                                     unsigned char *shared, int32_t unit, int thread, int threads)
{
    struct words_stage stage = words_stage(l, shared);
    struct route_input in = send_routes(l, NULL, send);
    int32_t topk = l.shape.topk, token = cut_row(l.plan.send_cut, unit);
    int32_t tokens = unit == WORDS_PLAN ? send.tokens : token + 1;
    if (tokens > send.tokens)
        return;
#pragma unroll 1
    for (int32_t i = thread; i < tokens * topk; i += threads)
        stage.id[i] = route_id(in, i / topk, i % topk);
    if (unit == WORDS_PLAN)
        return;
#pragma unroll 1
    for (int32_t k = thread; k < topk; k += threads)
        stage.weight[k] = route_weight(in, token, k);
    struct cut_share share = words_sent_share(l, unit);
    int32_t source = words_source_bytes(l.shape);
    words_stage_bytes(stage.row, send.input[0].data + (size_t)token * send.input[0].stride + share.begin * source,
                      (share.end - share.begin) * source, thread, threads);
}

/* What was prepared, in the caller's place. */
__device__ __forceinline__ struct dispatch_send_args
words_staged(const struct cuda_launch &l, const struct dispatch_send_args &send, const struct words_stage &stage)
{
    struct dispatch_send_args staged = send;
    staged.topk_slots = {(const unsigned char *)stage.id, (size_t)l.shape.topk * sizeof(int64_t)};
    staged.wide = true;
    return staged;
}

/* A lane is a route: how many routes of the tokens before go to its slot. */
__device__ inline int32_t words_index(const struct words_stage &stage, int32_t before, int32_t topk, int32_t slot)
{
    int32_t lane = (int32_t)threadIdx.x & 31, index = 0;
    for (int32_t base = 0; base < before; base += 32) {
        int64_t id = base + lane < before ? stage.id[base + lane] : -1;
        for (int32_t k = 0; k < topk; k++) {
            int32_t wanted = __shfl_sync(~0u, slot, k);
            int32_t found = __popc(__ballot_sync(~0u, wanted >= 0 && id == wanted));
            index += k == lane ? found : 0;
        }
    }
    return index;
}

/* One warp. */
__device__ inline void words_place(const struct cuda_launch &l, const struct turn *turn,
                                   const struct dispatch_send_args &send, const struct words_stage &stage,
                                   int32_t token, struct route_token *out)
{
    int32_t topk = l.shape.topk, lane = (int32_t)threadIdx.x & 31;
    bool has = lane < topk;
    route_read(send_routes(l, turn, send), token, has ? stage.id[token * topk + lane] : -1,
               has ? stage.weight[lane] : 0.0f, out);
    int32_t index = words_index(stage, token * topk, topk, has ? out->slot[lane] : -1);
    if (has)
        out->index[lane] = index;
}

/* Warps from the second on; all lanes of one go round together, since a group's lanes exchange their maximum. */
__device__ inline void words_quantise(const struct cuda_launch &l, const struct words_stage &stage,
                                      const struct cut_share &share)
{
    int32_t values = (share.end - share.begin) * 8, pieces = values / QUANTISE_PIECE;
    for (int32_t piece = (int32_t)threadIdx.x - 32; piece < (pieces + 31) / 32 * 32;
         piece += (int32_t)blockDim.x - 32) {
        float value[QUANTISE_PIECE];
        quantise_load(stage.row, l.shape.type, piece * QUANTISE_PIECE, values, value);
        float scale = quantise_scale(value, l.shape.quantise == MUSTER_EP_QUANTISE_FP8_POW2);
        if (piece >= pieces)
            continue;
        *(uint4 *)(stage.codes + piece * QUANTISE_PIECE) = quantise_codes(value, scale);
        if (piece % QUANTISE_LANES == 0)
            stage.scale[piece / QUANTISE_LANES] = scale;
    }
}

/* Four or eight bytes; a caller's may be aligned to less. */
__device__ __forceinline__ uint64_t words_load(const unsigned char *from, int32_t bytes)
{
    if (bytes == 8 && (copy_bits(from) & 7) == 0)
        return *(const uint64_t *)from;
    uint64_t value = 0;
#pragma unroll 1
    for (int32_t i = 0; i < bytes; i++)
        value |= (uint64_t)from[i] << 8 * i;
    return value;
}

/* Words of an array, from `begin` to before `end`, to all destinations; `from` is what lies in the first of them. */
__device__ inline void words_send(const struct cuda_launch &l, const struct turn *turn, const struct route_token *token,
                                  int32_t t, int array, int32_t begin, int32_t end, const unsigned char *from)
{
    const struct exchange_array &a = l.shape.array[array];
    for (int32_t n = threadIdx.x; n < end - begin; n += blockDim.x) {
        uint64_t value = words_load(from + n * a.word_bytes, a.word_bytes);
        for (int i = 0; i < token->destinations; i++)
            word_publish(words_row(l, region_at(turn, token->rank[i], l.shape.word_rows), turn->rank, t) +
                             a.first_word + begin + n,
                         value, turn->stamp);
    }
}

/* By the threads at the end of the block, since those at its beginning are the first to send. */
__device__ inline void words_send_routes(const struct cuda_launch &l, const struct turn *turn,
                                         const struct route_token *token, int32_t t)
{
    int32_t topk = l.shape.topk;
    for (int32_t n = (int32_t)(blockDim.x - 1 - threadIdx.x); n < token->destinations * topk;
         n += (int32_t)blockDim.x) {
        int32_t i = n / topk, k = n % topk, rank = token->rank[i], slot = token->slot[k] - rank * l.shape.slots;
        bool here = token->slot[k] >= 0 && slot >= 0 && slot < l.shape.slots;
        struct exchange_word *route = words_row(l, region_at(turn, rank, l.shape.word_rows), turn->rank, t) + 2 * k;
        word_publish(route, here ? (uint64_t)token->index[k] << 32 | (uint32_t)slot : (uint64_t)(uint32_t)-1,
                     turn->stamp);
        word_publish(route + 1, here ? __float_as_uint(token->weight[k]) : 0, turn->stamp);
    }
}

template <typename Facts>
__device__ inline void words_send_share(const struct cuda_launch &l, const struct turn *turn,
                                        const struct words_stage &stage, const struct route_token *token, int32_t t,
                                        const struct cut_share &share)
{
    words_send(l, turn, token, t, 0, share.begin, share.end, Facts::QUANTISED ? stage.codes : stage.row);
    if (!Facts::QUANTISED || share.begin == share.end) /* an empty share may end within another one's group */
        return;
    int32_t wide = l.shape.array[1].word_bytes, all = (int32_t)l.shape.array[1].row_bytes;
    int32_t group_words = MUSTER_EP_FP8_GROUP / 8, end = (share.end + group_words - 1) / group_words * 4;
    words_send(l, turn, token, t, 1, share.begin / group_words * 4 / wide, (end < all ? end : all) / wide,
               (const unsigned char *)stage.scale);
}

/* A part of one token's row. The first one also brings what lies beside it, and keeps what combine has to know. */
template <typename Facts>
__device__ inline void words_send_unit(const struct cuda_launch &l, const struct turn *turn,
                                       const struct dispatch_send_args &send, const struct words_stage &stage,
                                       int32_t unit)
{
    __shared__ struct route_token token;
    int32_t t = cut_row(l.plan.send_cut, unit);
    struct cut_share share = words_sent_share(l, unit);
    if (threadIdx.x < 32)
        words_place(l, turn, send, stage, t, &token);
    else if (Facts::QUANTISED)
        words_quantise(l, stage, share);
    __syncthreads();
    words_send_share<Facts>(l, turn, stage, &token, t, share);
    if (cut_part(l.plan.send_cut, unit) != 0)
        return;
    words_send_routes(l, turn, &token, t);
    for (int array = Facts::QUANTISED ? 2 : 1; array < l.shape.arrays; array++)
        words_send(l, turn, &token, t, array, 0,
                   (int32_t)l.shape.array[array].row_bytes / l.shape.array[array].word_bytes,
                   send.input[array].data + (size_t)t * send.input[array].stride);
    push_keep(l, &token, t, threadIdx.x, blockDim.x);
}

/* The first of the block's units was prepared. */
template <typename Facts>
__device__ inline void send_words_block(const struct cuda_launch &l, const struct turn *turn,
                                        const struct dispatch_send_args &send, unsigned char *shared, int block,
                                        int blocks)
{
    struct words_stage stage = words_stage(l, shared);
    for (int32_t unit = block; unit < send.tokens << l.plan.send_cut.log2_parts; unit += blocks) {
        if (unit != block) {
            __syncthreads(); /* the one before is sent */
            words_prepare(l, send, shared, unit, threadIdx.x, blockDim.x);
            __syncthreads();
        }
        words_send_unit<Facts>(l, turn, send, stage, unit);
    }
}

#endif
