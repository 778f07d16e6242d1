// SPDX-License-Identifier: Apache-2.0
/* What is known of a combine when its kernel is compiled. */
#ifndef CUDA_COMBINE_FACTS_CUH
#define CUDA_COMBINE_FACTS_CUH

#include "kernels/exchange.h"

/* How this rank's tokens come home. */
enum combine_kind { COMBINE_PLAIN, COMBINE_WORDS, COMBINE_QUANTISED, COMBINE_STREAMED, COMBINE_KINDS };

/* A kernel for each: what one does not need would take registers from the rest (docs/performance.md). */
template <bool FT_, enum combine_kind KIND_, enum exchange_type TYPE_, bool SUMS_> struct combine_facts {
    static constexpr bool FT = FT_; /* promise 10 */
    static constexpr enum combine_kind KIND = KIND_;
    static constexpr enum exchange_type TYPE = TYPE_;
    static constexpr bool SUMS = SUMS_; /* expert-major, reduced: results are added up before they go home */
    static constexpr bool QUANTISED = KIND_ == COMBINE_QUANTISED; /* they go home in codes (quantise_return) */
};

#endif
