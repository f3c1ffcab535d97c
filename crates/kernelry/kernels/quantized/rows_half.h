#include "quantized/blocks.h"
// KN_WARP_32_ONLY: the matrix unit's fragments are spread over 32 lanes.
//
// How rows.h multiplies several input rows: activations with 22 bits, in f16.
//
// An activation, times a power of two that fits its 256 neighbours, is the sum of two f16, high and low. Codes are f16 as they are (blocks.h), so
// that the matrix unit multiplies 16 weight rows by a group of 32 values in two goes, with f32 sums that begin at what makes up for codes that are
// too large. An input row takes two columns, high and low, eight columns are a tile, NT tiles take 4 NT input rows.

// The largest magnitude, as bits; not a number counts only where nothing else does, since it shows in its own products.
KN_FN uint rows_half_largest(float4 v) {
  return kn_bits(kn_max(kn_max(kn_abs(v.x), kn_abs(v.y)), kn_max(kn_abs(v.z), kn_abs(v.w)))) & 0x7fffffffu;
}

// Two activations as high and low f16.
KN_FN void rows_half_split(float x, float y, KN_PRIVATE uint& high, KN_PRIVATE uint& low) {
  high = kn_pack_f16(x, y);
  const float2 h = kn_unpack_f16(high);
  low = kn_pack_f16(x - h.x, y - h.y);
}

template <class F, uint TILES> struct RowsHalf {
  // Words of a slice of 256 values in all rows, high parts and low ones by columns; sums of a group, or of its halves where those have scales of
  // their own. Weight rows of a lane; where the largest value is put; slices of activations on their way at once.
  enum : uint {
    NT = TILES, ONE = 0, STEP = 4, ROWS = STEP * NT, GROUP = 32, SLICE = 8 * GROUP * ROWS, SUMS = F::HALVES ? 2 : 1, FIRST = 0,
    OWN = 2, BITS = 14, AHEAD = 4,
  };

  static KN_FN uint largest(float4 a, float4 b) { return kn_max(rows_half_largest(a), rows_half_largest(b)); }
  // Which input row of a tile the results of the lane belong to, what they are too large by, whether the offsets of its weight rows are its own, and
  // whether it has a result; what lanes have together.
  static KN_FN uint row(uint lane) { return lane % 4; }
  static KN_FN float unit(uint) { return (float)(1 << (24 - F::SHIFT)); }
  static KN_FN bool counts(uint) { return true; }
  static KN_FN bool stores(uint) { return true; }
  static KN_FN float total(float v) { return v; }
  // The lane's activations in a slice: column and quarter.
  static KN_FN KN_LOCAL const uint* place(KN_LOCAL const uint*, KN_LOCAL const uint* slice, uint lane) { return slice + 4 * lane; }

  // Group `g` of a weight row whose slice is at `bytes`.
  static KN_FN KN_LOCAL const typename F::Word* block(KN_LOCAL const uchar* bytes, uint g) {
    return (KN_LOCAL const typename F::Word*)(bytes + (F::GROUPS == 1 ? g * F::BYTES : 0));
  }
  // Its codes, a quarter of them.
  static KN_FN void codes(KN_LOCAL const uchar* bytes, uint g, uint lane, KN_PRIVATE uint (&c)[4]) {
    uint q[F::Q];
    F::load(block(bytes, g), g % F::GROUPS, lane % 4, q);
    F::small(q, g % F::GROUPS, lane % 4, c);
  }

  // Adds the products of group `g` of a slice to the sums of scaled codes and of offsets. `x` are the lane's activations in the slice and `sums`
  // the sums of its input row.
  static KN_FN void group(KN_LOCAL const uchar* bytes0, KN_LOCAL const uchar* bytes1, KN_PRIVATE const uint (&heads)[OWN][F::S],
                    KN_LOCAL const uint* x, KN_LOCAL const float* sums, uint g, KN_PRIVATE float (&a)[NT][OWN],
                    KN_PRIVATE float (&o)[NT][OWN], uint lane) {
    uint c[OWN][4];
    float s[OWN][2], offset[OWN];
    KN_UNROLL for (uint i = 0; i < OWN; ++i) {
      KN_LOCAL const uchar* bytes = i ? bytes1 : bytes0;
      codes(bytes, g, lane, c[i]);
      F::part(block(bytes, g), heads[i], g % F::GROUPS, s[i][0], s[i][1], offset[i]);
    }
    KN_UNROLL for (uint nt = 0; nt < NT; ++nt) {
      const uint4 v = *(KN_LOCAL const uint4*)(x + (g * ROWS + STEP * nt) * GROUP);
      KN_LOCAL const float* sum = sums + (STEP * nt * 8 + g) * SUMS;
      float d[4] = {0, 0, 0, 0};
      KN_UNROLL for (uint go = 0; go < 2; ++go) {
        if (go == 0 || F::HALVES) {
          d[0] = d[2] = F::LESS ? sum[go] : 0.0f;
          d[1] = d[3] = 0;
        }
        const uint pair[2] = {go ? v.z : v.x, go ? v.w : v.y};
        const uint rows[4] = {c[0][2 * go], c[1][2 * go], c[0][2 * go + 1], c[1][2 * go + 1]};
        kn_mma<kn_f16>(d, rows, pair, lane);
        if (go == 1 || F::HALVES) {
          KN_UNROLL for (uint i = 0; i < OWN; ++i) {
            a[nt][i] = kn_fma(s[i][go], d[2 * i], a[nt][i]);
            a[nt][i] = kn_fma(s[i][go], d[2 * i + 1], a[nt][i]);
          }
        }
      }
      if (F::OFFSET) {
        KN_UNROLL for (uint i = 0; i < OWN; ++i) o[nt][i] = kn_fma(offset[i], sum[0], o[nt][i]);
      }
    }
  }

  // The values 4 t to 4 t + 3 and 16 + 4 t to 16 + 4 t + 3 of group `g`, times `scale`, as codes meet them: high parts, what these leave, and the
  // sums of all eight, or of four and four.
  static KN_FN void parts(float4 a, float4 b, float scale, uint g, KN_PRIVATE uint (&h)[4], KN_PRIVATE uint (&l)[4], KN_PRIVATE float (&sum)[2]) {
    sum[0] = kn_fma(a.x, scale, kn_fma(a.y, scale, kn_fma(a.z, scale, a.w * scale)));
    sum[1] = kn_fma(b.x, scale, kn_fma(b.y, scale, kn_fma(b.z, scale, b.w * scale)));
    if (!F::HALVES) sum[0] += sum[1];
    const float unit = F::LESS ? -(float)F::LESS / (1 << 24) : 1.0f;
    KN_UNROLL for (uint i = 0; i < SUMS; ++i) {
      sum[i] += kn_shfl_xor(sum[i], 1);
      sum[i] += kn_shfl_xor(sum[i], 2);
      sum[i] *= unit;
    }
    const float first = (F::PLACED & BLK_ODD) && g % 2 ? scale * 0.0625f : scale, second = F::PLACED & BLK_SECOND ? scale * 0.0625f : first;
    const bool mixed = F::PLACED & BLK_MIXED;
    rows_half_split(a.x * first, (mixed ? b.x : a.z) * first, h[0], l[0]);
    rows_half_split(a.y * first, (mixed ? b.y : a.w) * first, h[1], l[1]);
    rows_half_split((mixed ? a.z : b.x) * second, b.z * second, h[2], l[2]);
    rows_half_split((mixed ? a.w : b.y) * second, b.w * second, h[3], l[3]);
  }

  // Puts 256 activations of a row, eight values a lane, into a slice, and their sums; `scale` fits them. Columns of a tile are high and low of its
  // first row, of its second, ...
  static KN_FN void convert(float4 a, float4 b, float scale, uint row, KN_LOCAL uint* slice, KN_LOCAL float* sum_to, uint lane) {
    KN_LOCAL uint* to = slice + (lane / 4 * ROWS + row / STEP * STEP) * GROUP + row % STEP * 32 + lane % 4 * 4;
    uint h[4], l[4];
    float sum[2];
    parts(a, b, scale, lane / 4, h, l, sum);
    if (lane % 4 == 0) {
      KN_UNROLL for (uint i = 0; i < SUMS; ++i) sum_to[lane / 4 * SUMS + i] = sum[i];
    }
    *(KN_LOCAL uint4*)to = kn_u4(h[0], h[1], h[2], h[3]);
    *(KN_LOCAL uint4*)(to + 16) = kn_u4(l[0], l[1], l[2], l[3]);
  }
};
