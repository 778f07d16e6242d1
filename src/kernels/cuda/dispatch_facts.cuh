// SPDX-License-Identifier: Apache-2.0
/* What is known of a dispatch when its kernel is compiled. */
#ifndef CUDA_DISPATCH_FACTS_CUH
#define CUDA_DISPATCH_FACTS_CUH

/* How rows are sent. A kernel for each, so that few tokens do not pay for what many need. */
enum dispatch_kind { DISPATCH_PUSHED, DISPATCH_WORDS, DISPATCH_STREAMED, DISPATCH_KINDS };

/* A kernel for each of these too: what one does not need would take registers from the rest (docs/performance.md). */
template <bool FT_, enum dispatch_kind KIND_, bool EXPERT_MAJOR_, bool QUANTISED_>
struct dispatch_facts {
    static constexpr bool FT = FT_; /* promise 10 */
    static constexpr enum dispatch_kind KIND = KIND_;
    static constexpr bool EXPERT_MAJOR = EXPERT_MAJOR_; /* otherwise rank-major or flat */
    static constexpr bool QUANTISED = QUANTISED_; /* hidden states travel as fp8 codes */
    static constexpr int HIDDEN_ARRAYS = QUANTISED_ ? 2 : 1; /* codes and scales, or one for all */
};

#endif
