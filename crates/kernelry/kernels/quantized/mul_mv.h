#include "quantized/rows.h"
// KN_WARP_32_ONLY: see rows.h.
//
// The products of few rows by name. mul_mv: any number of input rows and batches over shared matrices, four rows at a time; a row's result does
// not depend on the others. mul_mv_ext: 2 to 8 rows with one matrix, all of them in one pass over the weights.

#define MUL_MV(NAME, F)                                                                                                            \
  KN_KERNEL_DEEP(NAME, 32 * F::WARPS, MulMvParams, KN_IN(0, uchar, w), KN_IN(1, float, x), KN_OUT(2, float, y)) {                  \
    KN_SHARED(uint, shared, ROWS_SHARED(F));                                                                                       \
    const ulong matrix = (ulong)(p.k / F::LEN) * F::BYTES * p.n;                                                                   \
    const uint passes = kn_cdiv(p.m, 4), batches = p.ne12 * p.ne13;                                                                \
    for (ulong i = KN_GROUP_Y; i < (ulong)passes * batches; i += KN_GROUPS_Y) {                                                    \
      const uint z = (uint)(i / passes), m0 = 4 * (uint)(i % passes);                                                              \
      const ulong at = (z % p.ne12 / p.r2 + (ulong)(z / p.ne12 / p.r3) * p.ne02) * matrix;                                         \
      const ulong bytes = (ulong)p.ne02 * (p.ne13 / p.r3) * matrix - at, row = (ulong)z * p.m + m0;                                \
      rows_product<F, 1>(w + at, bytes, x + row * p.k, y + row * p.n, kn_min(p.m - m0, 4u), p.n, p.k, KN_GROUP_X * ROWS_TILE,      \
                         shared, KN_THREAD_X, KN_LANE, KN_WARP_ID);                                                                \
    }                                                                                                                              \
  }

#define MUL_MV_EXT(NAME, F)                                                                                                        \
  KN_KERNEL_DEEP(NAME, 32 * F::WARPS, MulMvExtParams, KN_IN(0, uchar, w), KN_IN(1, float, x), KN_OUT(2, float, y)) {               \
    KN_SHARED(uint, shared, ROWS_SHARED(F));                                                                                       \
    const ulong bytes = (ulong)(p.k / F::LEN) * F::BYTES * p.n;                                                                    \
    for (uint z = KN_GROUP_Y; z < p.batch; z += KN_GROUPS_Y) {                                                                     \
      const ulong row = (ulong)z * p.m;                                                                                            \
      if (p.m <= 4) {                                                                                                              \
        rows_product<F, 1>(w, bytes, x + row * p.k, y + row * p.n, p.m, p.n, p.k, KN_GROUP_X * ROWS_TILE, shared, KN_THREAD_X,     \
                           KN_LANE, KN_WARP_ID);                                                                                   \
      } else {                                                                                                                     \
        rows_product<F, 2>(w, bytes, x + row * p.k, y + row * p.n, p.m, p.n, p.k, KN_GROUP_X * ROWS_TILE, shared, KN_THREAD_X,     \
                           KN_LANE, KN_WARP_ID);                                                                                   \
      }                                                                                                                            \
    }                                                                                                                              \
  }
