#include "quantized/blocks.h"
// KN_WARP_32_ONLY: the matrix unit's fragments are spread over 32 lanes.
//
// Products of few input rows with a matrix of GGML blocks: y[m, n] = sum_k x[m, k] w[n, k], weights exact and activations in fixed point of 23 bits
// relative to the largest of their neighbours, which is f32 for all that matters.
//
// Codes are bytes, and so are the three parts of an activation: x 2^e = 65536 high + 256 mid + low. The integer matrix unit multiplies 16 weight
// rows by a group of 32 values in one go, with exact sums; f32 comes in where the scale of a group does. Parts are signed, so that mid and low
// are 128 too small: a column of ones counts the codes for that. One input row takes four columns (mid, high; low, ones), eight columns are a
// tile, NT tiles take 2 NT input rows.
//
// A block takes 16 weight rows. Its two warps take slices of 256 values in turn, each on its own: the slice of the 16 rows is copied to
// threadgroup memory in 16-byte pieces, two slices in flight, whatever alignment the format has there; of the activations 256 / NT values
// at once are made into parts. At the end the warps' sums are added in the order of the warps.

#define ROWS_TILE 16u
#define ROWS_WARPS 2u
// Groups of activations that are in threadgroup memory at once, words of one group (8 more, for the banks), and of the sums of groups.
#define ROWS_GROUPS(NT) (8 / (NT))
#define ROWS_STEP(NT) (64 * (NT) + 8)
#define ROWS_X (8 * 72u)
#define ROWS_RING(F) (2 * ROWS_TILE * F::STRIDE / 4)
#define ROWS_WARP(F) (ROWS_RING(F) + ROWS_X + 32)
#define ROWS_SHARED(F) (ROWS_WARPS * ROWS_WARP(F))

// Copies `count` bytes from the same place of each of 16 weight rows to a stage of the ring, each row to a place that begins at the multiple of 16
// below. `w` is the first byte; it lies `skip` bytes behind a multiple of 16, and each row `step` bytes behind the one before, but `last` is the
// last one there is. Eight lanes share a row. Where all lie alike and nothing beyond the matrix is touched (`even`), pieces of 16 bytes fly.
template <class F>
KN_FN void rows_copy(KN_LOCAL uchar* to, KN_GLOBAL const uchar* w, uint skip, ulong step, uint count, bool even, uint last, uint lane) {
  const uint PIECES = (8 / F::GROUPS * F::BYTES + 14 + 127) / 128, c = lane % 8;
  uint row = lane / 8;
  to += row * F::STRIDE;
  if (even) {
    KN_GLOBAL const uchar* from = w + (row * step + 16 * c) - skip;
    const uint end = skip + count;
    KN_UNROLL for (uint i = 0; i < 4; ++i) {
      KN_UNROLL for (uint j = 0; j < PIECES; ++j) {
        if (16 * c + 128 * j < end) kn_async_copy16(to + (16 * c + 4 * i * F::STRIDE + 128 * j), from + 128 * j);
      }
      from += 4 * step;
    }
  } else {
    KN_NO_UNROLL for (uint i = 0; i < 4; ++i) {
      const ulong at = kn_min(row, last) * step;
      const uint behind = (skip + (uint)at) & 15, end = behind + count;
      KN_NO_UNROLL for (uint j = 16 * c; j < end; j += 128) {
        KN_NO_UNROLL for (uint b = kn_max(j, behind); b < kn_min(j + 16, end); b += 2) {
          *(KN_LOCAL ushort*)(to + b) = *(KN_GLOBAL const ushort*)(w + at + (b - behind));
        }
      }
      to += 4 * F::STRIDE;
      row += 4;
    }
  }
}

// The power of two that puts the largest magnitude, given as bits, at 2^21 to 2^22, and its inverse; NaN for one that is not finite.
KN_FN float rows_scale(uint largest, KN_PRIVATE float& inverse) {
  const int exponent = kn_min(kn_max(127 + 21 + 127 - (int)(largest >> 23), 1), 253);
  inverse = largest < 0x7f800000u ? kn_from_bits((uint)(254 - exponent) << 23) : KN_NAN;
  return kn_from_bits((uint)exponent << 23);
}

// Magnitudes as bits, which order them with NaN above all.
KN_FN uint rows_largest(float4 v) {
  const uint a = kn_bits(v.x) & 0x7fffffffu, b = kn_bits(v.y) & 0x7fffffffu, c = kn_bits(v.z) & 0x7fffffffu, d = kn_bits(v.w) & 0x7fffffffu;
  return kn_max(kn_max(a, b), kn_max(c, d));
}

// Four activations as four parts of each kind: a sum with 2^23 + 2^22 leaves an integer in the mantissa.
KN_FN void rows_parts(float4 v, float scale, KN_PRIVATE uint& mid, KN_PRIVATE uint& high, KN_PRIVATE uint& low) {
  const uint a = kn_bits(kn_fma(v.x, scale, 12582912.0f)), b = kn_bits(kn_fma(v.y, scale, 12582912.0f));
  const uint c = kn_bits(kn_fma(v.z, scale, 12582912.0f)), d = kn_bits(kn_fma(v.w, scale, 12582912.0f));
  const uint ab = kn_permute(a, b, 0x5140u), cd = kn_permute(c, d, 0x5140u);
  low = kn_permute(ab, cd, 0x5410u) ^ 0x80808080u;
  mid = kn_permute(ab, cd, 0x7632u) ^ 0x80808080u;
  high = (kn_permute(kn_permute(a, b, 0x62u), kn_permute(c, d, 0x62u), 0x5410u) + 0x40404040u) ^ 0x80808080u;
}

// Adds the products of group `g` of a slice, whose first group of activations is `first`, to the sums of scaled codes and of offsets.
template <class F, uint NT>
KN_FN void rows_group(KN_LOCAL const uchar* bytes0, KN_LOCAL const uchar* bytes1, KN_PRIVATE const uint (&h0)[F::S],
                      KN_PRIVATE const uint (&h1)[F::S], KN_LOCAL const uint* xs, KN_LOCAL const float* sums, uint g, uint first,
                      KN_PRIVATE float (&a)[NT][2], KN_PRIVATE float (&o)[NT][2], uint lane) {
  const uint t = lane % 4, skip = F::GROUPS == 1 ? g * F::BYTES : 0, i = g - first;
  const int weight = t % 2 ? 0x8080 : 256;  // of the second column of the lane
  KN_LOCAL const typename F::Word* b0 = (KN_LOCAL const typename F::Word*)(bytes0 + skip);
  KN_LOCAL const typename F::Word* b1 = (KN_LOCAL const typename F::Word*)(bytes1 + skip);
  uint q0[F::Q], q1[F::Q], c0[2], c1[2];
  F::load(b0, g % F::GROUPS, t, q0);
  F::load(b1, g % F::GROUPS, t, q1);
  F::bytes(q0, g % F::GROUPS, t, c0);
  F::bytes(q1, g % F::GROUPS, t, c1);
  float s00, s01, s10, s11, o0, o1;
  F::part(b0, h0, g % F::GROUPS, s00, s01, o0);
  F::part(b1, h1, g % F::GROUPS, s10, s11, o1);
  KN_UNROLL for (uint nt = 0; nt < NT; ++nt) {
    const uint2 x = *(KN_LOCAL const uint2*)(xs + i * ROWS_STEP(NT) + nt * 64 + 2 * lane);
    const uint all[4] = {c0[0], c1[0], F::HALVES ? 0 : c0[1], F::HALVES ? 0 : c1[1]};
    int d[4];
    kn_mma_s8(d, all, x.x, x.y, lane);
    a[nt][0] += s00 * (float)(d[0] + d[1] * weight);
    a[nt][1] += s10 * (float)(d[2] + d[3] * weight);
    if (F::HALVES) {
      const uint second[4] = {0, 0, c0[1], c1[1]};
      kn_mma_s8(d, second, x.x, x.y, lane);
      a[nt][0] += s01 * (float)(d[0] + d[1] * weight);
      a[nt][1] += s11 * (float)(d[2] + d[3] * weight);
    }
    if (F::OFFSET) {
      const float sum = sums[(i * NT + nt) * 4 + t];
      o[nt][0] += o0 * sum;
      o[nt][1] += o1 * sum;
    }
  }
}

// The weights are at `w`; input rows are packed, `m` of them, at most 2 * NT. Every thread of the block calls; a barrier comes before the next
// call. EACH: input rows of a tile, 1 for one input row alone.
template <class F, uint NT, uint EACH>
KN_FN void rows_product(KN_GLOBAL const uchar* w, KN_GLOBAL const float* x, KN_GLOBAL float* y, uint m, uint n, uint k, uint n0,
                        KN_LOCAL uint* shared, uint tid, uint lane, uint warp) {
  const uint WARPS = ROWS_WARPS, XG = ROWS_GROUPS(NT), STEP = ROWS_STEP(NT), LANES = 32 / NT;
  const uint SLICE_BYTES = 8 / F::GROUPS * F::BYTES;
  const uint groups = k / 32, slices = kn_cdiv(groups, 8), row_bytes = groups / F::GROUPS * F::BYTES;
  const uint r = lane / 4, t = lane % 4;
  KN_LOCAL uint* mine = shared + warp * ROWS_WARP(F);
  KN_LOCAL uchar* ring = (KN_LOCAL uchar*)mine;
  KN_LOCAL uint* xs = mine + ROWS_RING(F);
  KN_LOCAL float* sums = (KN_LOCAL float*)(xs + ROWS_X);

  // Places in the matrix count from a multiple of 16 if it starts at one.
  const ulong begin = (ulong)n0 * row_bytes;
  const uint last = kn_min(ROWS_TILE, n - n0) - 1;
  const uint skip0 = (uint)begin + kn_min(r, last) * row_bytes, skip1 = (uint)begin + kn_min(r + 8, last) * row_bytes;
  const bool even = kn_aligned(w, 16) && row_bytes % 16 == 0 && last == ROWS_TILE - 1;

  // Activations of XG groups for the lane: eight values of one row of its tile. Zeros beyond the edges.
  const bool vector = kn_aligned(x, 16);
  const uint tile = lane / LANES, group = lane % LANES / 4;
  KN_GLOBAL const float* x0 = x + (ulong)(2 * tile) * k;
  float4 ahead[EACH][2];
#define ROWS_AHEAD(group0)                                                                              \
  KN_UNROLL for (uint odd = 0; odd < EACH; ++odd) {                                                \
    const uint kx = ((group0) + group) * 32 + 4 * t;                                                    \
    ahead[odd][0] = ahead[odd][1] = kn_f4(0, 0, 0, 0);                                                \
    if ((EACH == 1 || 2 * tile + odd < m) && kx < k) {                                               \
      KN_GLOBAL const float* at = x0 + kx + (odd ? k : 0);                                             \
      if (vector) {                                                                                     \
        ahead[odd][0] = kn_load4(at);                                                                  \
        ahead[odd][1] = kn_load4(at + 16);                                                             \
      } else {                                                                                          \
        ahead[odd][0] = kn_f4(at[0], at[1], at[2], at[3]);                                             \
        ahead[odd][1] = kn_f4(at[16], at[17], at[18], at[19]);                                         \
      }                                                                                                 \
    }                                                                                                   \
  }
  ROWS_AHEAD(warp * 8)

  // Columns of input rows that are not there stay zero.
  const uint ones = lane / 4 % 4 == 3 ? 0x01010101u : 0u;
  KN_UNROLL for (uint i = 0; i < 8; ++i) *(KN_LOCAL uint2*)(xs + i / NT * STEP + i % NT * 64 + 2 * lane) = kn_u2(ones, ones);
  sums[lane] = 0;
  // Even lanes have the sums of mid and high, which count 2^8, odd ones of low and the ones.
  const float unit = (t % 2 ? 1.0f : 256.0f) / (float)(1 << F::SHIFT);

  float acc[NT][2], factor[NT];
  KN_UNROLL for (uint i = 0; i < NT; ++i) acc[i][0] = acc[i][1] = factor[i] = 0;
  // The stage of each slice is filled two turns before it is used.
  KN_NO_UNROLL for (uint turn = warp, stage = 0; turn < slices + 2 * WARPS; turn += WARPS, stage ^= 1) {
    KN_LOCAL uchar* place = ring + stage * (ROWS_TILE * F::STRIDE);
    if (turn >= 2 * WARPS) {
      const uint slice = turn - 2 * WARPS, here = kn_min(8u, groups - slice * 8), from = slice * SLICE_BYTES;
      KN_LOCAL const uchar* bytes0 = place + r * F::STRIDE + ((skip0 + from) & 15);
      KN_LOCAL const uchar* bytes1 = place + (r + 8) * F::STRIDE + ((skip1 + from) & 15);
      uint h0[F::S], h1[F::S];
      KN_UNROLL for (uint first = 0; first < 8; first += XG) {
        if (first < here) {
          // Parts of the activations of XG groups: eight values a lane, one row of each tile at once.
          kn_warp_sync();
          KN_UNROLL for (uint odd = 0; odd < EACH; ++odd) {
            if (odd < m) {
              const float4 a = ahead[odd][0], b = ahead[odd][1];
              uint big = kn_max(rows_largest(a), rows_largest(b));
              if (NT == 1) {
                big = kn_warp_max(big);
              } else {
                KN_UNROLL for (uint o = LANES / 2; o; o >>= 1) big = kn_max(big, kn_shfl_xor(big, o));
              }
              float inverse;
              const float scale = rows_scale(big, inverse);
              KN_UNROLL for (uint i = 0; i < NT; ++i) {
                const float f = kn_shfl(inverse, i * LANES);
                factor[i] = t / 2 == odd ? f * unit : factor[i];
              }
              uint mid0, high0, low0, mid1, high1, low1;
              rows_parts(a, scale, mid0, high0, low0);
              rows_parts(b, scale, mid1, high1, low1);
              KN_LOCAL uint* to = xs + group * STEP + tile * 64 + odd * 32 + 2 * t;
              *(KN_LOCAL uint2*)to = kn_u2(mid0, mid1);
              *(KN_LOCAL uint2*)(to + 8) = kn_u2(high0, high1);
              *(KN_LOCAL uint2*)(to + 16) = kn_u2(low0, low1);
              if (F::OFFSET) {
                float sum = kn_fma(a.x, scale, kn_fma(a.y, scale, kn_fma(a.z, scale, a.w * scale)));
                sum = kn_fma(b.x, scale, kn_fma(b.y, scale, kn_fma(b.z, scale, kn_fma(b.w, scale, sum))));
                sum += kn_shfl_xor(sum, 1);
                sum += kn_shfl_xor(sum, 2);
                if (t == 0) sums[(group * NT + tile) * 4 + 2 * odd] = sum * (1.0f / 256);
              }
            }
          }
          ROWS_AHEAD(first + XG < here ? slice * 8 + first + XG : (slice + WARPS) * 8)
          if (first == 0) kn_async_wait<1>();
          kn_warp_sync();
          if (first == 0) {
            F::ahead((KN_LOCAL const typename F::Word*)bytes0, h0);
            F::ahead((KN_LOCAL const typename F::Word*)bytes1, h1);
          }
          float a[NT][2], o[NT][2];
          KN_UNROLL for (uint i = 0; i < NT; ++i) a[i][0] = a[i][1] = o[i][0] = o[i][1] = 0;
          if (F::GROUPS == 8 || first + XG <= here) {
            KN_UNROLL for (uint i = 0; i < XG; ++i) rows_group<F, NT>(bytes0, bytes1, h0, h1, xs, sums, first + i, first, a, o, lane);
          } else {
            KN_NO_UNROLL for (uint g = first; g < here; ++g) rows_group<F, NT>(bytes0, bytes1, h0, h1, xs, sums, g, first, a, o, lane);
          }
          float d0, d1, m0, m1;
          F::whole(h0, d0, m0);
          F::whole(h1, d1, m1);
          KN_UNROLL for (uint i = 0; i < NT; ++i) {
            acc[i][0] += factor[i] * (F::OFFSET ? d0 * a[i][0] + m0 * o[i][0] : d0 * a[i][0]);
            acc[i][1] += factor[i] * (F::OFFSET ? d1 * a[i][1] + m1 * o[i][1] : d1 * a[i][1]);
          }
        }
      }
    }
    kn_warp_sync();
    if (turn < slices) {
      const uint from = turn * SLICE_BYTES, count = kn_min(SLICE_BYTES, row_bytes - from);
      rows_copy<F>(place, w + (begin + from), ((uint)begin + from) & 15, row_bytes, count, even, last, lane);
    }
    kn_async_commit();
  }
#undef ROWS_AHEAD
  kn_async_wait<0>();

  // Sums of the warps: [tile][weight row / 8][lane] in the place of the activations; even lanes have them.
  KN_LOCAL float* red = (KN_LOCAL float*)xs;
  kn_warp_sync();
  KN_UNROLL for (uint i = 0; i < NT; ++i) {
    red[(2 * i) * 32 + lane] = acc[i][0] + kn_shfl_xor(acc[i][0], 1);
    red[(2 * i + 1) * 32 + lane] = acc[i][1] + kn_shfl_xor(acc[i][1], 1);
  }
  kn_barrier();
  for (uint i = tid; i < ROWS_TILE * m; i += 32 * WARPS) {
    const uint j = i / ROWS_TILE, row = i % ROWS_TILE;
    const uint at = (j / 2 * 2 + row / 8) * 32 + row % 8 * 4 + 2 * (j % 2);
    float sum = 0;
    for (uint v = 0; v < WARPS; ++v) sum += ((KN_LOCAL const float*)(shared + v * ROWS_WARP(F) + ROWS_RING(F)))[at];
    if (n0 + row < n) y[(ulong)j * n + n0 + row] = sum;
  }
}
