#include "quantized/rows.h"
#include "quantized/rows_stream.h"
// KN_WARP_32_ONLY: see rows.h; rows_stream.h for several rows on Hopper.
//
// The products of few rows by name. mul_mv: any number of input rows and batches over shared matrices, two rows at a time; a row's result does
// not depend on the others. mul_mv_ext: 2 to 8 rows with one matrix, all of them in one pass over the weights. fused_norm_mul_mv and
// fused_mul_mv_add: one row with what stands before and behind the product where a model decodes, which saves a launch each.

// Warps of a block, slices that fly, tiles of a batch at least, words of threadgroup memory. Where there is much of that, a block stays on each
// multiprocessor, and mul_mv leaves some for small kernels that run at the same time.
#ifdef KN_TARGET_CUDA
#if __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200  // 227 KiB for a block
// Decoders that take long want more warps.
#define MUL_MV_WARPS(F) (F::BYTE_WORDS > 2 ? 12 : 8)
#define MUL_MV_STAGES(F) (F::STRIDE > 240 || MUL_MV_WARPS(F) > 8 ? 2 : F::STRIDE > 176 ? 3 : 4)
#define MUL_MV_BLOCKS(F) (MUL_MV_WARPS(F) > 8 ? 1 : 2)
#define MUL_MV_WORDS 36864
#else  // 99 KiB or more
#define MUL_MV_WARPS(F) 8
#define MUL_MV_STAGES(F) 2
#define MUL_MV_BLOCKS(F) 1
#define MUL_MV_WORDS 24576
#endif
#define MUL_MV_SHAPE(F) MUL_MV_WARPS(F), MUL_MV_STAGES(F), 4, MUL_MV_WORDS
// Whole rows of activations have to find room beside the ring.
#define MUL_MV_FUSED_STAGES(F) (F::STRIDE > 240 && MUL_MV_WORDS < 32768 ? 1 : MUL_MV_STAGES(F))
#define MUL_MV_FUSED_SHAPE(F) MUL_MV_WARPS(F), MUL_MV_FUSED_STAGES(F), 4, MUL_MV_WORDS
#define MUL_MV_WORDS_OF(NAME, WARPS, WORDS) \
  KN_DYNAMIC_SHARED(NAME, 4 * (WORDS));     \
  KN_RESIDENT(NAME, 32 * (WARPS), 1);       \
  KN_CHAINED(NAME, 1)
#define MUL_MV_KERNEL(NAME, WARPS, BLOCKS, WORDS, P, ...)                                                        \
  MUL_MV_WORDS_OF(NAME, WARPS, WORDS);                                                                           \
  KN_KERNEL_BLOCKS(NAME, 32 * (WARPS), BLOCKS, P, KN_IN_ALIAS(0, uchar, w), KN_IN_ALIAS(1, float, x), __VA_ARGS__) { \
    KN_LOCAL uint* shared = (KN_LOCAL uint*)kn_dynamic_shared; KN_CHAIN_NEXT;
#define MUL_MV_BEGIN(NAME, F, P, ...) MUL_MV_KERNEL(NAME, MUL_MV_WARPS(F), MUL_MV_BLOCKS(F), MUL_MV_WORDS, P, __VA_ARGS__)
#define MUL_MV_FUSED_BEGIN MUL_MV_BEGIN
#ifdef KN_WGMMA
#define MUL_MV_EXT_WARPS STREAM_ALL_WARPS
#define MUL_MV_EXT_SHAPE STREAM_ALL_WARPS, 2, 2, STREAM_BYTES / 4
#define MUL_MV_EXT_BEGIN(NAME)                                                                                                          \
  MUL_MV_WORDS_OF(NAME, MUL_MV_EXT_WARPS, STREAM_BYTES / 4);                                                                            \
  KN_PAIRED(NAME);                                                                                                                      \
  KN_KERNEL_CLUSTERS(NAME, 32 * STREAM_ALL_WARPS, 2, MulMvExtParams, KN_IN_ALIAS(0, uchar, w), KN_IN_ALIAS(1, float, x), KN_OUT(2, float, y)) { \
    KN_LOCAL uint* shared = (KN_LOCAL uint*)kn_dynamic_shared; KN_CHAIN_NEXT;
#else
#define MUL_MV_EXT_WARPS 8
#define MUL_MV_EXT_SHAPE MUL_MV_EXT_WARPS, 1, 2, 24576
#define MUL_MV_EXT_BEGIN(NAME) MUL_MV_KERNEL(NAME, MUL_MV_EXT_WARPS, 1, 24576, MulMvExtParams, KN_OUT(2, float, y))
#endif
#else
#define MUL_MV_SHAPE(F) 2, 1, 2, 8192
#define MUL_MV_FUSED_SHAPE(F) 1, 1, 2, 8192
#define MUL_MV_EXT_SHAPE 2, 1, 2, 8192
#define MUL_MV_KERNEL(NAME, WARPS, P, ...)                                                         \
  KN_RESIDENT(NAME, 32 * (WARPS), 2);                                                              \
  KN_KERNEL(NAME, 32 * (WARPS), P, KN_IN(0, uchar, w), KN_IN(1, float, x), __VA_ARGS__) {          \
    KN_SHARED(uint, shared, 8192);
#define MUL_MV_BEGIN(NAME, F, P, ...) MUL_MV_KERNEL(NAME, 2, P, __VA_ARGS__)
#define MUL_MV_FUSED_BEGIN(NAME, F, P, ...) MUL_MV_KERNEL(NAME, 1, P, __VA_ARGS__)
#define MUL_MV_EXT_BEGIN(NAME) MUL_MV_KERNEL(NAME, 2, MulMvExtParams, KN_OUT(2, float, y))
#endif

#define MUL_MV_WITH(F, ONE)                                                                                                  \
  rows_product<RowsInteger<F, ONE>, F, MUL_MV_SHAPE(F)>(w + at, x + row * p.k, y + row * p.n, kn_min(p.m - m0, 2u), p.n, p.k, KN_GROUP_X, \
                                           KN_GROUPS_X, shared, KN_THREAD_X, KN_LANE, KN_WARP_ID, 0, x, 0, x)
#define MUL_MV(NAME, F)                                                          \
  MUL_MV_BEGIN(NAME, F, MulMvParams, KN_OUT(2, float, y))                           \
    const ulong matrix = (ulong)(p.k / F::LEN) * F::BYTES * p.n;                 \
    const uint passes = kn_cdiv(p.m, 2), batches = p.ne12 * p.ne13;              \
    for (ulong i = KN_GROUP_Y; i < (ulong)passes * batches; i += KN_GROUPS_Y) {  \
      if (i != KN_GROUP_Y) kn_barrier();                                         \
      uint z = 0, m0 = 2 * (uint)i;                                              \
      ulong at = 0;                                                              \
      if (batches > 1) {                                                         \
        z = (uint)(i / passes);                                                  \
        m0 = 2 * (uint)(i % passes);                                             \
        at = (z % p.ne12 / p.r2 + (ulong)(z / p.ne12 / p.r3) * p.ne02) * matrix; \
      }                                                                          \
      const ulong row = (ulong)z * p.m + m0;                                     \
      if (p.m == 1) {                                                            \
        MUL_MV_WITH(F, true);                                                    \
      } else {                                                                   \
        MUL_MV_WITH(F, false);                                                   \
      }                                                                          \
    }                                                                            \
  }

#ifdef KN_WGMMA
#define MUL_MV_EXT_STREAM(F, EIGHT) stream_product<F, EIGHT>(w, x, y, p.m, p.n, p.k, p.batch, kn_dynamic_shared)
#define MUL_MV_EXT_STREAMS(F)             \
  if (stream_takes<F>(w, x, p.k)) {       \
    if (p.m <= 4) MUL_MV_EXT_STREAM(F, 0); \
    else MUL_MV_EXT_STREAM(F, 1);         \
    return;                               \
  }
#else
#define MUL_MV_EXT_STREAMS(F)
#endif
#define MUL_MV_EXT_WITH(F, NT)                                                                                                          \
  rows_product<RowsHalf<F, NT>, F, MUL_MV_EXT_SHAPE>(w, x + row * p.k, y + row * p.n, p.m, p.n, p.k, KN_GROUP_X, KN_GROUPS_X, shared, KN_THREAD_X, \
                                                     KN_LANE, KN_WARP_ID, 0, x, 0, x)
#define MUL_MV_EXT(NAME, F)                                    \
  MUL_MV_EXT_BEGIN(NAME)                                       \
    MUL_MV_EXT_STREAMS(F)                                      \
    for (uint z = KN_GROUP_Y; z < p.batch; z += KN_GROUPS_Y) { \
      if (z != KN_GROUP_Y) kn_barrier();                       \
      const ulong row = (ulong)z * p.m;                        \
      if (p.m <= 4) {                                          \
        MUL_MV_EXT_WITH(F, 1);                                 \
      } else {                                                 \
        MUL_MV_EXT_WITH(F, 2);                                 \
      }                                                        \
    }                                                          \
  }

#define MUL_MV_FUSED_WITH(F, WITH, NORM, EPS, RESIDUAL)                                                                    \
  rows_product<RowsInteger<F, true>, F, MUL_MV_FUSED_SHAPE(F)>(w, x, y, 1, p.n, p.k, KN_GROUP_X, KN_GROUPS_X, shared, KN_THREAD_X, KN_LANE, \
                                                  KN_WARP_ID, WITH, NORM, EPS, RESIDUAL)
#define MUL_MV_FUSED(NORM_NAME, ADD_NAME, F)                                                          \
  MUL_MV_FUSED_BEGIN(NORM_NAME, F, MulMvNormParams, KN_IN_ALIAS(2, float, norm), KN_OUT(3, float, y))    \
    MUL_MV_FUSED_WITH(F, ROWS_NORM | (p.gates == 2 ? ROWS_GATED : 0), norm, p.eps, x);                \
  }                                                                                                   \
  MUL_MV_FUSED_BEGIN(ADD_NAME, F, MulMvAddParams, KN_IN_ALIAS(2, float, r), KN_OUT_ALIAS(3, float, y))   \
    MUL_MV_FUSED_WITH(F, ROWS_ADD, x, 0, r);                                                          \
  }
