#include "quantized/rows.h"
// KN_WARP_32_ONLY: see rows.h.
//
// The products of few rows by name. mul_mv: any number of input rows and batches over shared matrices, two rows at a time; a row's result does
// not depend on the others. mul_mv_ext: 2 to 8 rows with one matrix, all of them in one pass over the weights.

#define MUL_MV_WITH(F, EACH)                                                                                                       \
  rows_product<F, 1, EACH>(w + at, x + row * p.k, y + row * p.n, kn_min(p.m - m0, 2u), p.n, p.k, KN_GROUP_X * ROWS_TILE, shared,   \
                             KN_THREAD_X, KN_LANE, KN_WARP_ID)
#define MUL_MV(NAME, F)                                                                                                            \
  KN_KERNEL_BLOCKS(NAME, 32 * ROWS_WARPS, 7, MulMvParams, KN_IN(0, uchar, w), KN_IN(1, float, x), KN_OUT(2, float, y)) {           \
    KN_SHARED(uint, shared, ROWS_SHARED(F));                                                                                       \
    const ulong matrix = (ulong)(p.k / F::LEN) * F::BYTES * p.n;                                                                   \
    const uint passes = kn_cdiv(p.m, 2), batches = p.ne12 * p.ne13;                                                                \
    for (ulong i = KN_GROUP_Y; i < (ulong)passes * batches; i += KN_GROUPS_Y) {                                                    \
      if (i != KN_GROUP_Y) kn_barrier();                                                                                           \
      uint z = 0, m0 = 2 * (uint)i;                                                                                                \
      ulong at = 0;                                                                                                                \
      if (batches > 1) {                                                                                                           \
        z = (uint)(i / passes);                                                                                                    \
        m0 = 2 * (uint)(i % passes);                                                                                               \
        at = (z % p.ne12 / p.r2 + (ulong)(z / p.ne12 / p.r3) * p.ne02) * matrix;                                                   \
      }                                                                                                                            \
      const ulong row = (ulong)z * p.m + m0;                                                                                       \
      if (p.m == 1) {                                                                                                              \
        MUL_MV_WITH(F, 1);                                                                                                         \
      } else {                                                                                                                     \
        MUL_MV_WITH(F, 2);                                                                                                         \
      }                                                                                                                            \
    }                                                                                                                              \
  }

#define MUL_MV_EXT_WITH(F, NT)                                                                                                     \
  rows_product<F, NT, 2>(w, x + row * p.k, y + row * p.n, p.m, p.n, p.k, KN_GROUP_X * ROWS_TILE, shared, KN_THREAD_X, KN_LANE,     \
                         KN_WARP_ID)
#define MUL_MV_EXT(NAME, F)                                                                                                        \
  KN_KERNEL_BLOCKS(NAME, 32 * ROWS_WARPS, 4, MulMvExtParams, KN_IN(0, uchar, w), KN_IN(1, float, x), KN_OUT(2, float, y)) {        \
    KN_SHARED(uint, shared, ROWS_SHARED(F));                                                                                       \
    for (uint z = KN_GROUP_Y; z < p.batch; z += KN_GROUPS_Y) {                                                                     \
      if (z != KN_GROUP_Y) kn_barrier();                                                                                           \
      const ulong row = (ulong)z * p.m;                                                                                            \
      if (p.m <= 2) {                                                                                                              \
        MUL_MV_EXT_WITH(F, 1);                                                                                                     \
      } else if (p.m <= 4) {                                                                                                       \
        MUL_MV_EXT_WITH(F, 2);                                                                                                     \
      } else {                                                                                                                     \
        MUL_MV_EXT_WITH(F, 4);                                                                                                     \
      }                                                                                                                            \
    }                                                                                                                              \
  }
