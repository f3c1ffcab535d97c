#include "matmul/operands.h"
// Products in f32 throughout: y[m, n] = sum_k x[m, k] w[n, k].
//
// A block of 256 threads takes 64 input rows by 128 outputs and steps over k by 16, operands transposed to [k][row] in threadgroup memory while
// the next step's are on their way in registers. A thread has four input rows and two times four outputs, a sum each.

#define F32_M 64u
#define F32_N 128u
#define F32_K 16u
#define F32_WS (F32_N + 4)
#define F32_XS (F32_M + 4)

KN_FN void f32_put(KN_LOCAL float* to, KN_PRIVATE const uint (&r)[4], uint stride) {
  KN_UNROLL for (uint i = 0; i < 4; ++i) to[i * stride] = kn_from_bits(r[i]);
}

KN_FN void f32_product(KN_PRIVATE const TileRowsF32& weights, KN_PRIVATE const TileRowsF32& inputs, KN_GLOBAL float* y, uint m, uint n, uint k,
                       uint m0, uint n0, KN_LOCAL float* ws, KN_LOCAL float* xs, uint tid) {
  const uint wrow = tid / 2, wk = 8 * (tid % 2), xrow = tid / 4, xk = 4 * (tid % 4);
  const uint tm = 4 * (tid / 16), tn = 4 * (tid % 16);
  float acc[4][8];
  KN_UNROLL for (uint i = 0; i < 4; ++i) {
    KN_UNROLL for (uint j = 0; j < 8; ++j) acc[i][j] = 0;
  }
  uint wr[2][4], xr[4];
  weights.load(n0 + wrow, wk, wr[0]);
  weights.load(n0 + wrow, wk + 4, wr[1]);
  inputs.load(m0 + xrow, xk, xr);
  for (uint at = 0; at < k; at += F32_K) {
    kn_barrier();
    f32_put(ws + wk * F32_WS + wrow, wr[0], F32_WS);
    f32_put(ws + (wk + 4) * F32_WS + wrow, wr[1], F32_WS);
    f32_put(xs + xk * F32_XS + xrow, xr, F32_XS);
    kn_barrier();
    if (at + F32_K < k) {
      weights.load(n0 + wrow, at + F32_K + wk, wr[0]);
      weights.load(n0 + wrow, at + F32_K + wk + 4, wr[1]);
      inputs.load(m0 + xrow, at + F32_K + xk, xr);
    }
    KN_UNROLL for (uint e = 0; e < F32_K; ++e) {
      const float4 x4 = *(KN_LOCAL const float4*)(xs + e * F32_XS + tm);
      const float4 a = *(KN_LOCAL const float4*)(ws + e * F32_WS + tn), b = *(KN_LOCAL const float4*)(ws + e * F32_WS + 64 + tn);
      const float xv[4] = {x4.x, x4.y, x4.z, x4.w}, wv[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
      KN_UNROLL for (uint i = 0; i < 4; ++i) {
        KN_UNROLL for (uint j = 0; j < 8; ++j) acc[i][j] = kn_fma(xv[i], wv[j], acc[i][j]);
      }
    }
  }
  const bool vector = n % 4 == 0 && kn_aligned(y, 16);
  KN_UNROLL for (uint i = 0; i < 4; ++i) {
    const uint row = m0 + tm + i;
    KN_UNROLL for (uint h = 0; h < 2; ++h) {
      const uint col = n0 + 64 * h + tn;
      if (row < m && col < n) {
        KN_GLOBAL float* to = y + ((ulong)row * n + col);
        if (vector) {
          kn_store4(to, kn_f4(acc[i][4 * h], acc[i][4 * h + 1], acc[i][4 * h + 2], acc[i][4 * h + 3]));
        } else {
          KN_UNROLL for (uint j = 0; j < 4; ++j) {
            if (col + j < n) to[j] = acc[i][4 * h + j];
          }
        }
      }
    }
  }
  kn_barrier();
}

// Consecutive inputs share a matrix where there are fewer matrices than inputs.
KN_KERNEL_DEEP(hf2q_dense_mm_f32_f32_tensor, 256, BatchedMatmulParams, KN_IN(0, float, w), KN_IN(1, float, x), KN_OUT(2, float, y)) {
  KN_SHARED(float, ws, F32_K * F32_WS);
  KN_SHARED(float, xs, F32_K * F32_XS);
  const uint tiles = kn_cdiv(p.m, F32_M), sharing = p.batch / p.weights;
  for (ulong i = KN_GROUP_Y; i < (ulong)tiles * p.batch; i += KN_GROUPS_Y) {
    const uint z = (uint)(i / tiles);
    KN_GLOBAL const float* matrix = w + (ulong)(z / sharing) * p.n * p.k;
    KN_GLOBAL const float* rows = x + (ulong)z * p.m * p.k;
    const TileRowsF32 weights = {matrix, p.k, p.n, p.k, p.k % 4 == 0 && kn_aligned(matrix, 16)};
    const TileRowsF32 inputs = {rows, p.k, p.m, p.k, p.k % 4 == 0 && kn_aligned(rows, 16)};
    f32_product(weights, inputs, y + (ulong)z * p.m * p.n, p.m, p.n, p.k, (uint)(i % tiles) * F32_M, KN_GROUP_X * F32_N, ws, xs, KN_THREAD_X);
  }
}
