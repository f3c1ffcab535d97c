#include "matmul/tile.h"
#include "matmul/dense_wgmma.h"
// KN_WARP_32_ONLY: see tile.h.
//
// Products of many rows with a matrix of 16-bit values: y[m, n] = sum_k x[m, k] w[n, k], weights as they are, f32 activations rounded to the type
// of the weights, sums in f32.
//
// Tiles of 128 outputs by 32 input rows, 128 where there are more than 64, as the launch geometry has them; on Hopper's matrix unit those of
// dense_wgmma.h.

template <class T, class Y, class X>
KN_FN void dense_mm(KN_GLOBAL const T* w, KN_PRIVATE const X& inputs, KN_GLOBAL Y* y, uint m, uint n, uint k, uint tile_m, uint tile_n,
                    KN_LOCAL uint* shared, uint tid, uint lane, uint warp) {
  const TileWeights16<T> weights = {w, n, k, k % 4 == 0 && kn_aligned(w, 8)};
  if (m <= 64) {
    tile_product<T, 32, 0>(weights, inputs, y, m, n, k, tile_m * 32, tile_n * TILE_N, shared, tid, lane, warp);
  } else {
    tile_product<T, 128, 0>(weights, inputs, y, m, n, k, tile_m * 128, tile_n * TILE_N, shared, tid, lane, warp);
  }
}

#ifdef KN_WGMMA
#define DENSE_KERNEL(NAME, P, X, T, Y, ...) DENSE_KERNEL_WGMMA(NAME, P, T, X, Y, false, __VA_ARGS__)
#else
#define DENSE_KERNEL(NAME, P, X, T, Y, ...)                                                                                    \
  KN_KERNEL(NAME, 256, P, KN_IN(0, T, w), KN_IN(1, X, x), KN_OUT(2, Y, y)) {                                                   \
    KN_SHARED(uint, shared, TILE_WORDS(128, 1));
#endif

// Consecutive inputs share a matrix where there are fewer matrices than inputs.
#define DENSE_MM(NAME, T)                                                                                                      \
  DENSE_KERNEL(NAME, BatchedMatmulParams, float, T, float,                                                                     \
               {p.m, p.n, p.k, p.batch, p.k, (ulong)p.m * p.k, p.batch, 0, p.batch / p.weights, 1})                            \
    const uint tiles = kn_cdiv(p.m, p.m <= 64 ? 32u : 128u), sharing = p.batch / p.weights;                                    \
    for (ulong i = KN_GROUP_Y; i < (ulong)tiles * p.batch; i += KN_GROUPS_Y) {                                                 \
      const uint z = (uint)(i / tiles);                                                                                        \
      KN_GLOBAL const float* rows = x + (ulong)z * p.m * p.k;                                                                  \
      const TileRowsF32 inputs = {rows, p.k, p.m, p.k, p.k % 4 == 0 && kn_aligned(rows, 16)};                                  \
      dense_mm<T>(w + (ulong)(z / sharing) * p.n * p.k, inputs, y + (ulong)z * p.m * p.n, p.m, p.n, p.k, (uint)(i % tiles),    \
                  KN_GROUP_X, shared, KN_THREAD_X, KN_LANE, KN_WARP_ID);                                                       \
    }                                                                                                                          \
  }

#define DENSE_GEMM(NAME, T)                                                                                                    \
  DENSE_KERNEL(NAME, MatmulParams, T, T, T, {p.m, p.n, p.k, 1, p.k, 0, 1, 0, 1, 1})                                            \
    const TileRows16<T> inputs = {x, p.m, p.k, p.k % 4 == 0 && kn_aligned(x, 8)};                                              \
    for (uint i = KN_GROUP_Y; i < kn_cdiv(p.m, p.m <= 64 ? 32u : 128u); i += KN_GROUPS_Y) {                                    \
      dense_mm<T>(w, inputs, y, p.m, p.n, p.k, i, KN_GROUP_X, shared, KN_THREAD_X, KN_LANE, KN_WARP_ID);                       \
    }                                                                                                                          \
  }

DENSE_MM(hf2q_dense_mm_bf16_f32_tensor, kn_bf16)
DENSE_MM(hf2q_dense_mm_bf16_f32_tensor_v2, kn_bf16)
DENSE_MM(hf2q_dense_mm_f16_f32_tensor, kn_f16)
DENSE_GEMM(dense_gemm_f16, kn_f16)
