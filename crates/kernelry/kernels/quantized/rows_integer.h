#include "quantized/blocks.h"
// KN_WARP_32_ONLY: the matrix unit's fragments are spread over 32 lanes.
//
// How rows.h multiplies one or two input rows: activations in fixed point of 23 bits relative to the largest of 256 neighbours.
//
// Codes are bytes, and so are the three parts of an activation: x 2^e = 65536 high + 256 mid + low. The integer matrix unit multiplies 16 weight
// rows by a group of 32 values in one go, with exact sums; f32 comes in where the scale of a group does. Parts are signed, so that mid and low
// are 128 too small: a column of ones counts the codes for that. One input row takes four columns (mid, high; low, ones), eight columns are a
// tile of two input rows. Where there is ONE input row alone, its columns stand twice, and each half of the lanes takes half of the weight rows.

// Magnitudes as bits, which order them with NaN above all.
KN_FN uint rows_integer_largest(float4 v) {
  const uint a = kn_bits(v.x) & 0x7fffffffu, b = kn_bits(v.y) & 0x7fffffffu, c = kn_bits(v.z) & 0x7fffffffu, d = kn_bits(v.w) & 0x7fffffffu;
  return kn_max(kn_max(a, b), kn_max(c, d));
}

// Four activations as four parts of each kind: a sum with 2^23 + 2^22 leaves an integer in the mantissa.
KN_FN void rows_integer_parts(float4 v, float scale, KN_PRIVATE uint& mid, KN_PRIVATE uint& high, KN_PRIVATE uint& low) {
  const uint a = kn_bits(kn_fma(v.x, scale, 12582912.0f)), b = kn_bits(kn_fma(v.y, scale, 12582912.0f));
  const uint c = kn_bits(kn_fma(v.z, scale, 12582912.0f)), d = kn_bits(kn_fma(v.w, scale, 12582912.0f));
  const uint ab = kn_permute(a, b, 0x5140u), cd = kn_permute(c, d, 0x5140u);
  low = kn_permute(ab, cd, 0x5410u) ^ 0x80808080u;
  mid = kn_permute(ab, cd, 0x7632u) ^ 0x80808080u;
  high = (kn_permute(kn_permute(a, b, 0x62u), kn_permute(c, d, 0x62u), 0x5410u) + 0x40404040u) ^ 0x80808080u;
}

template <class F, bool ALONE> struct RowsInteger {
  // Words of a slice of 256 values in all rows; a slice of ones comes FIRST, and more words for the banks.
  enum : uint {
    NT = 1, ONE = ALONE, STEP = ALONE ? 1 : 2, ROWS = STEP, GROUP = 24, SLICE = 8 * GROUP * ROWS, SUMS = 1, FIRST = SLICE + 32,
    OWN = ALONE ? 1 : 2, BITS = 21, AHEAD = 4,
  };

  static KN_FN uint largest(float4 a, float4 b) { return kn_max(rows_integer_largest(a), rows_integer_largest(b)); }
  // As in rows_half.h. Even lanes have the sums of mid and high, which count 2^8, odd ones of low and the ones.
  static KN_FN uint row(uint lane) { return ALONE ? 0 : lane % 4 / 2; }
  static KN_FN float unit(uint lane) { return (lane % 2 ? 1.0f : 256.0f) / (float)(1 << F::BYTE_SHIFT); }
  static KN_FN bool counts(uint lane) { return lane % 2 == 0; }
  static KN_FN bool stores(uint lane) { return lane % 2 == 0; }
  static KN_FN float total(float v) { return v + kn_shfl_xor(v, 1); }
  static KN_FN KN_LOCAL const uint* place(KN_LOCAL const uint* ones, KN_LOCAL const uint* slice, uint lane) {
    const uint r = lane / 4;
    return (r % 4 == 3 ? ones : slice) + ((ALONE ? 0 : r / 4 * GROUP) + r % 4 * 8 + 2 * (lane % 4));
  }

  // Adds the products of group `g` of a slice to the sums of scaled codes and of offsets. `x` are the lane's activations in the slice and `sums`
  // the sums of its input row.
  static KN_FN void group(KN_LOCAL const uchar* bytes0, KN_LOCAL const uchar* bytes1, KN_PRIVATE const uint (&heads)[OWN][F::S],
                    KN_LOCAL const uint* x, KN_LOCAL const float* sums, uint g, KN_PRIVATE float (&a)[NT][OWN],
                    KN_PRIVATE float (&o)[NT][OWN], uint lane) {
    const uint t = lane % 4, skip = F::GROUPS == 1 ? g * F::BYTES : 0;
    const int weight = t % 2 ? 0x8080 : 256;  // of the second column of the lane
    KN_LOCAL const typename F::Word* b[2] = {(KN_LOCAL const typename F::Word*)(bytes0 + skip), (KN_LOCAL const typename F::Word*)(bytes1 + skip)};
    uint c[2][F::BYTE_WORDS];
    float s[OWN][2], offset[OWN];
    KN_UNROLL for (uint i = 0; i < 2; ++i) {
      uint q[F::Q];
      F::load(b[i], g % F::GROUPS, t, q);
      F::bytes(q, g % F::GROUPS, t, c[i]);
    }
    KN_UNROLL for (uint i = 0; i < OWN; ++i) {
      F::part(ALONE && t >= 2 ? b[1] : b[i], heads[i], g % F::GROUPS, s[i][0], s[i][1], offset[i]);
    }
    const uint2 v = *(KN_LOCAL const uint2*)(x + g * ROWS * GROUP);
    KN_UNROLL for (uint side = 0; side < (F::HALVES ? 2 : 1); ++side) {
      const uint all[4] = {side ? 0 : c[0][0], side ? 0 : c[1][0], F::HALVES && !side ? 0 : c[0][1], F::HALVES && !side ? 0 : c[1][1]};
      int d[4] = {0, 0, 0, 0};
      kn_mma_s8(d, all, v.x, v.y, lane);
      if (F::BYTE_WORDS == 4) {
        const uint more[4] = {c[0][F::BYTE_WORDS - 2], c[1][F::BYTE_WORDS - 2], c[0][F::BYTE_WORDS - 1], c[1][F::BYTE_WORDS - 1]};
        kn_mma_s8(d, more, v.x, v.y, lane);
      }
      if (ALONE) {
        a[0][0] += s[0][side] * (float)((t < 2 ? d[0] : d[2]) + (t < 2 ? d[1] : d[3]) * weight);
      } else {
        KN_UNROLL for (uint i = 0; i < OWN; ++i) a[0][i] += s[i][side] * (float)(d[2 * i] + d[2 * i + 1] * weight);
      }
    }
    if (F::OFFSET) {
      KN_UNROLL for (uint i = 0; i < OWN; ++i) o[0][i] += offset[i] * sums[g];
    }
  }

  // Puts 256 activations of a row, eight values a lane, into a slice, and their sums; `scale` fits them.
  static KN_FN void convert(float4 a, float4 b, float scale, uint row, KN_LOCAL uint* slice, KN_LOCAL float* sum_to, uint lane) {
    KN_LOCAL uint* to = slice + (lane / 4 * ROWS + row) * GROUP + 2 * (lane % 4);
    uint mid0, high0, low0, mid1, high1, low1;
    const bool mixed = F::PLACED & BLK_MIXED;
    rows_integer_parts(mixed ? kn_f4(a.x, b.x, a.y, b.y) : a, scale, mid0, high0, low0);
    rows_integer_parts(mixed ? kn_f4(a.z, b.z, a.w, b.w) : b, scale, mid1, high1, low1);
    *(KN_LOCAL uint2*)to = kn_u2(mid0, mid1);
    *(KN_LOCAL uint2*)(to + 8) = kn_u2(high0, high1);
    *(KN_LOCAL uint2*)(to + 16) = kn_u2(low0, low1);
    float sum = kn_fma(a.x, scale, kn_fma(a.y, scale, kn_fma(a.z, scale, a.w * scale)));
    sum = kn_fma(b.x, scale, kn_fma(b.y, scale, kn_fma(b.z, scale, kn_fma(b.w, scale, sum))));
    sum += kn_shfl_xor(sum, 1);
    sum += kn_shfl_xor(sum, 2);
    if (lane % 4 == 0) sum_to[lane / 4] = sum;
  }
};
