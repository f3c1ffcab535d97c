#include "common/wgmma.h"
#include "matmul/operands.h"
// KN_WARP_32_ONLY: the matrix unit's fragments are spread over 32 lanes.
//
// Products by tiles on the matrix unit: y[m, n] = sum_k x[m, k] w[n, k] with both operands in 16 bits and sums in f32.
//
// A block of 256 threads takes BM input rows by 128 outputs and steps over k by 32: it holds the next step's raw operands in registers
// while it multiplies this one's, which lie in threadgroup memory as [row][k]. Rows are 40 elements apart, so that the eight rows that a
// fragment load reads fall on different banks. Within each four values, k is in the order 0, 2, 1, 3 on both sides (the order in which block
// decoders give codes).
//
// An f32 activation becomes one or two parts of 16 bits. Two f16 parts keep 22 bits of it. In f16 a row of activations is multiplied by a power of two
// that puts it inside the range, found as the row is read: the first values that are not zero set it, and values 1024 times as large set it
// again and rescale the row's sums so far, which costs nothing where it does not happen. So results are finite where exact ones are.
//
// Weights W and activations X are structs of pointers and sizes, set up by the kernel, with
//   W: load(n, side, step, regs), tile(regs, side, words): 16 values of a weight row, all 8-value runs 8h and 16 + 8h, as words of pairs
//   X: load(row, k, regs), values(regs): four values of an input row; rows and k beyond the edges are zeros.

#define TILE_N 128u
#define TILE_K 32u
#define TILE_STRIDE 40u
#define TILE_THREADS 256u

// A barrier of the threads that multiply. Blocks of kernels that have another path on Hopper hold more, which have ended by then: the barrier of a
// whole block allows for that, but tools that look for races do not in clusters.
KN_FN void tile_barrier() {
#ifdef KN_WGMMA
  wgmma_part_barrier(1, TILE_THREADS);
#else
  kn_barrier();
#endif
}

// How a kernel treats its activations.
#define TILE_PARTS_2 1u  // high and low part
#define TILE_RANGE 2u    // power of two per row

// Words of threadgroup memory: tile of weights, parts of the tile of activations, a factor for each row, two flags.
#define TILE_WORDS(BM, PARTS) ((TILE_N + (PARTS) * (BM)) * TILE_STRIDE / 2 + (BM) + 4)

// Stores two neighbouring results, of which only those before the edge exist.
template <class T> KN_FN void tile_store(KN_GLOBAL T* y, float a, float b, uint left, bool pair);
template <> KN_FN void tile_store<float>(KN_GLOBAL float* y, float a, float b, uint left, bool pair) {
  if (pair) {
    *(KN_GLOBAL float2*)y = kn_f2(a, b);
  } else {
    y[0] = a;
    if (left > 1) y[1] = b;
  }
}
template <> KN_FN void tile_store<kn_f16>(KN_GLOBAL kn_f16* y, float a, float b, uint left, bool pair) {
  if (pair) {
    *(KN_GLOBAL uint*)y = kn_pack_f16(a, b);
  } else {
    y[0] = kn_from_f32<kn_f16>(a);
    if (left > 1) y[1] = kn_from_f32<kn_f16>(b);
  }
}

// The power of two that puts `largest` at 2^5 to 2^6; 1 for zero, infinity and NaN.
KN_FN float tile_scale(float largest) {
  const int exponent = (int)((kn_bits(largest) >> 23) & 0xffu);
  return kn_from_bits((uint)kn_min(kn_max(254 + 5 - exponent, 1), 253) << 23);
}
KN_FN float tile_inverse(float scale) { return kn_from_bits((254u - (kn_bits(scale) >> 23)) << 23); }

// Four values in two words of high parts, and what they leave in two words of low parts.
template <class T> KN_FN void tile_pack(float4 v, KN_PRIVATE uint2& high, KN_PRIVATE uint2& low) {
  high = kn_u2(kn_pack<T>(v.x, v.z), kn_pack<T>(v.y, v.w));
  const float2 a = kn_unpack<T>(high.x), b = kn_unpack<T>(high.y);
  low = kn_u2(kn_pack<T>(v.x - a.x, v.z - a.y), kn_pack<T>(v.y - b.x, v.w - b.y));
}

// y[m0 .. m0 + BM, n0 .. n0 + 128] with rows of n outputs. T: type of the operands in threadgroup memory.
template <class T, uint BM, uint HOW, class Y, class W, class X>
KN_FN void tile_product(KN_PRIVATE const W& weights, KN_PRIVATE const X& inputs, KN_GLOBAL Y* y, uint m, uint n, uint k, uint m0, uint n0,
                        KN_LOCAL uint* shared, uint tid, uint lane, uint warp) {
  const uint PARTS = HOW & TILE_PARTS_2 ? 2 : 1;
  const uint ITEMS = BM / 32;                        // rows of activations of a thread
  const uint WARPS_M = BM / 64 ? BM / 64 : 1;        // warps along m
  const uint MT = BM / 16 / WARPS_M, NT = TILE_N / (8 / WARPS_M) / 8;  // 16-row and 8-column tiles of a warp
  KN_LOCAL ushort* wt = (KN_LOCAL ushort*)shared;
  KN_LOCAL ushort* xt = wt + TILE_N * TILE_STRIDE;
  KN_LOCAL float* factor = (KN_LOCAL float*)(shared + (TILE_N + PARTS * BM) * TILE_STRIDE / 2);
  KN_LOCAL uint* flag = (KN_LOCAL uint*)(factor + BM);
  const uint steps = kn_cdiv(k, TILE_K);
  const uint wrow = tid / 2, side = tid % 2, xrow = tid / 8, quad = tid % 8;
  const uint am = warp / (8 / WARPS_M) * (16 * MT), an = warp % (8 / WARPS_M) * (8 * NT);

  float acc[MT][NT][4];
  KN_UNROLL for (uint i = 0; i < MT; ++i) {
    KN_UNROLL for (uint j = 0; j < NT; ++j) {
      KN_UNROLL for (uint e = 0; e < 4; ++e) acc[i][j][e] = 0;
    }
  }
  float scale[ITEMS];
  KN_UNROLL for (uint i = 0; i < ITEMS; ++i) scale[i] = 0;  // not set yet

  uint wr[W::REGS], xr[ITEMS][X::REGS];
  weights.load(n0 + wrow, side, 0, wr);
  KN_UNROLL for (uint i = 0; i < ITEMS; ++i) inputs.load(m0 + xrow + 32 * i, 4 * quad, xr[i]);
  if (HOW & TILE_RANGE) {
    if (tid < 2) flag[tid] = 0;
  }
  for (uint step = 0; step < steps; ++step) {
    tile_barrier();
    uint words[8];
    weights.tile(wr, side, step, words);
    KN_LOCAL uint* wto = (KN_LOCAL uint*)(wt + wrow * TILE_STRIDE + 8 * side);
    *(KN_LOCAL uint4*)wto = kn_u4(words[0], words[1], words[2], words[3]);
    *(KN_LOCAL uint4*)(wto + 8) = kn_u4(words[4], words[5], words[6], words[7]);
    if ((HOW & TILE_RANGE) && tid == 0) flag[(step + 1) % 2] = 0;
    KN_UNROLL for (uint i = 0; i < ITEMS; ++i) {
      float4 v = inputs.values(xr[i]);
      if (HOW & TILE_RANGE) {
        float big = kn_max(kn_max(kn_abs(v.x), kn_abs(v.y)), kn_max(kn_abs(v.z), kn_abs(v.w)));
        big = kn_max(big, kn_shfl_xor(big, 1));
        big = kn_max(big, kn_shfl_xor(big, 2));
        big = kn_max(big, kn_shfl_xor(big, 4));
        float by = 1;
        if (big > 0 && big < KN_INF && (scale[i] == 0 || big * scale[i] > 32768.0f)) {
          const float fresh = tile_scale(big);
          by = scale[i] == 0 ? 1.0f : fresh * tile_inverse(scale[i]);
          scale[i] = fresh;
          if (quad == 0 && by != 1) kn_atomic_or_local(flag + step % 2, 1);
        }
        if (quad == 0) factor[xrow + 32 * i] = by;
        const float s = scale[i] == 0 ? 1.0f : scale[i];
        v = kn_f4(v.x * s, v.y * s, v.z * s, v.w * s);
      }
      uint2 high, low;
      tile_pack<T>(v, high, low);
      KN_LOCAL ushort* xto = xt + (xrow + 32 * i) * TILE_STRIDE + 4 * quad;
      *(KN_LOCAL uint2*)xto = high;
      if (PARTS == 2) *(KN_LOCAL uint2*)(xto + BM * TILE_STRIDE) = low;
    }
    tile_barrier();
    if (step + 1 < steps) {
      weights.load(n0 + wrow, side, step + 1, wr);
      KN_UNROLL for (uint i = 0; i < ITEMS; ++i) inputs.load(m0 + xrow + 32 * i, (step + 1) * TILE_K + 4 * quad, xr[i]);
    }
    if ((HOW & TILE_RANGE) && flag[step % 2] != 0) {
      KN_UNROLL for (uint i = 0; i < MT; ++i) {
        const float f0 = factor[am + 16 * i + lane / 4], f1 = factor[am + 16 * i + lane / 4 + 8];
        KN_UNROLL for (uint j = 0; j < NT; ++j) {
          acc[i][j][0] *= f0;
          acc[i][j][1] *= f0;
          acc[i][j][2] *= f1;
          acc[i][j][3] *= f1;
        }
      }
    }
    KN_UNROLL for (uint kk = 0; kk < TILE_K; kk += 16) {
      uint b[NT / 2][4];
      KN_UNROLL for (uint j = 0; j < NT / 2; ++j) kn_frag_b(b[j], wt + (an + 16 * j) * TILE_STRIDE + kk, TILE_STRIDE, lane);
      KN_UNROLL for (uint i = 0; i < MT; ++i) {
        KN_UNROLL for (uint part = 0; part < PARTS; ++part) {
          uint a[4];
          kn_frag_a(a, xt + (part * BM + am + 16 * i) * TILE_STRIDE + kk, TILE_STRIDE, lane);
          KN_UNROLL for (uint j = 0; j < NT; ++j) kn_mma<T>(acc[i][j], a, b[j / 2] + 2 * (j % 2), lane);
        }
      }
    }
  }
  if (HOW & TILE_RANGE) {
    tile_barrier();
    KN_UNROLL for (uint i = 0; i < ITEMS; ++i) {
      if (quad == 0) factor[xrow + 32 * i] = scale[i] == 0 ? 1.0f : tile_inverse(scale[i]);
    }
    tile_barrier();
  }
  const bool even = n % 2 == 0 && kn_aligned(y, 2 * (uint)sizeof(Y));
  KN_UNROLL for (uint i = 0; i < MT; ++i) {
    KN_UNROLL for (uint e = 0; e < 2; ++e) {
      const uint r = am + 16 * i + lane / 4 + 8 * e, row = m0 + r;
      const float f = HOW & TILE_RANGE ? factor[r] : 1.0f;
      if (row < m) {
        KN_UNROLL for (uint j = 0; j < NT; ++j) {
          const uint col = n0 + an + 8 * j + 2 * (lane % 4);
          if (col < n) tile_store<Y>(y + ((ulong)row * n + col), acc[i][j][2 * e] * f, acc[i][j][2 * e + 1] * f, n - col, even);
        }
      }
    }
  }
  tile_barrier();
}

// Packed weight rows of 16-bit values, multiplied as they are.
template <class T> struct TileWeights16 {
  enum { REGS = 8 };
  KN_GLOBAL const T* w;
  uint n, k;
  bool vector;
  KN_FN void load(uint row, uint side, uint step, KN_PRIVATE uint (&r)[REGS]) const {
    KN_GLOBAL const T* p = w + (ulong)kn_min(row, n - 1) * k;
    KN_UNROLL for (uint i = 0; i < 4; ++i) {
      const uint at = step * TILE_K + 16 * (i / 2) + 8 * side + 4 * (i % 2);
      uint two[2];
      tile_load4(p + at, at < k ? k - at : 0u, vector, two);
      r[2 * i] = two[0];
      r[2 * i + 1] = two[1];
    }
  }
  KN_FN void tile(KN_PRIVATE const uint (&r)[REGS], uint, uint, KN_PRIVATE uint (&words)[8]) const {
    KN_UNROLL for (uint i = 0; i < 4; ++i) {
      words[2 * i] = (r[2 * i] & 0xffffu) | r[2 * i + 1] << 16;
      words[2 * i + 1] = r[2 * i] >> 16 | (r[2 * i + 1] & 0xffff0000u);
    }
  }
};
