// Partitions of the attention of single tokens over keys and values of 16 bits, with the matrix unit: attention/decode_core.h says what a
// partition is and what it leaves.
//
// A product has 16 rows: up to eight query heads that share a KV head, each cut into two halves x = hi + lo rounded to the type of the
// keys, hi in rows 0 to 7 and lo in rows 8 to 15, so that one product has 22 bits of x in f16 and 16 in bf16, and the sum of the two rows is in
// one lane. Weights are cut alike; queries in bf16 have a third part, because the largest score is a result.
//
// A step takes 16 keys. A warp copies their rows to threadgroup memory, asynchronously and by whole lines, keys and values each one step or
// more ahead, and waits for nothing but its own copies. A product may take the elements of a head in any order, so that a lane reads 16 bytes
// at once: of keys, lane / 4 is the key, and lane % 4 which eight of 32 elements; of values, lane / 4 is which eight of 64 elements, and the
// pairs of keys 2 (lane % 4) + {0, 1} and + {8, 9} are the lane's own, as the weights are. Heads of up to 128 elements: each warp takes steps
// of its own, and the warps are merged at the end. Wider heads are cut into DECODE_WARPS pieces, one a warp, and the parts of the scores are
// added up in threadgroup memory.
// KN_WARP_32_ONLY: fragments of the matrix unit.
#include "attention/decode_core.h"

#define DECODE_ROWS 8u
#define DECODE_WARPS 4u

// What a warp has of a head, and how it lies in threadgroup memory, in units of 16 bytes.
template <uint DIM> struct DecodeTile {
  enum : uint {
    CUT = DIM > 128 ? DECODE_WARPS : 1u,
    WIDTH = DIM / CUT,           // elements of a head
    J = (WIDTH + 31) / 32,       // reads of a row of keys
    H = (WIDTH + 63) / 64,       // and of values
    ROW = WIDTH / 8,             // a row
    KEYS = 16 * ROW,             // the keys of a step
    STEP = 2 * KEYS,             // and its values
    DEPTH = WIDTH > 64 ? 1u : 2u,  // steps in flight
    ALL = DEPTH * STEP,
  };
};
#define DECODE_RING(DIM) (DECODE_WARPS * DecodeTile<DIM>::ALL * 4)

// Where piece `c` of row `r` of a step lies: lanes that read at once read other banks.
template <uint DIM> KN_FN uint decode_key_at(uint r, uint c) { return r * DecodeTile<DIM>::ROW + (DecodeTile<DIM>::WIDTH % 64 == 0 ? c ^ r % 2 * 4 : c); }
template <uint DIM> KN_FN uint decode_value_at(uint r, uint c) {
  return DecodeTile<DIM>::KEYS + r * DecodeTile<DIM>::ROW + (DecodeTile<DIM>::WIDTH % 64 == 0 ? c ^ r / 2 % 4 * 2 : c);
}
// Copies a step of keys or values, from key `key` on, as far as there are keys.
template <uint DIM, bool VALUES, bool VECTOR, class T>
KN_FN void decode_fetch(KN_LOCAL uint4* to, KN_GLOBAL const T* x, uint key, uint end, uint lane) {
  KN_UNROLL for (uint i = 0; i < DecodeTile<DIM>::KEYS / 32; ++i) {
    const uint r = (lane + 32 * i) / DecodeTile<DIM>::ROW, c = (lane + 32 * i) % DecodeTile<DIM>::ROW;
    if (key + r < end) {
      KN_LOCAL uint4* place = to + (VALUES ? decode_value_at<DIM>(r, c) : decode_key_at<DIM>(r, c));
      KN_GLOBAL const T* p = x + (ulong)(key + r) * DIM + 8 * c;
      if (VECTOR) kn_async_copy16(place, p);
      else *place = kn_u4((uint)p[0] | (uint)p[1] << 16, (uint)p[2] | (uint)p[3] << 16, (uint)p[4] | (uint)p[5] << 16, (uint)p[6] | (uint)p[7] << 16);
    }
  }
}
KN_FN uint decode_word(uint4 w, uint i) { return i == 0 ? w.x : i == 1 ? w.y : i == 2 ? w.z : w.w; }

// The first key of step `i` of a partition whose first block of 32 keys is `block`.
KN_FN uint decode_key(KN_PRIVATE const Decode& a, uint block, uint i) { return 32 * (block + a.parts * (i / 2)) + 16 * (i % 2); }

template <class T> KN_FN void decode_halves(float x, float y, KN_PRIVATE uint& hi, KN_PRIVATE uint& lo) {
  hi = kn_pack<T>(x, y);
  const float2 h = kn_unpack<T>(hi);
  lo = kn_pack<T>(x - h.x, y - h.y);
}

template <class T> struct DecodeThird { enum { NEEDED = 0 }; };
template <> struct DecodeThird<kn_bf16> { enum { NEEDED = 1 }; };
// What two parts leave of a pair.
template <class T> KN_FN uint decode_third(float x, float y, uint hi, uint lo) {
  const float2 h = kn_unpack<T>(hi), l = kn_unpack<T>(lo);
  return kn_pack<T>(x - h.x - l.x, y - h.y - l.y);
}

template <uint DIM, bool VECTOR, class T>
KN_FN void decode_mma(KN_PRIVATE const Decode& a, KN_GLOBAL const float* q, KN_GLOBAL const T* k, KN_GLOBAL const T* v, KN_GLOBAL float* out,
                      KN_GLOBAL float* partial, KN_LOCAL float* shared, uint t, uint lane, uint warp) {
  typedef DecodeTile<DIM> Tile;
  constexpr uint J = Tile::J, H = Tile::H, DEPTH = Tile::DEPTH, WORKERS = DECODE_WARPS / Tile::CUT;
  const uint r = lane / 4, c = lane % 4, piece = Tile::CUT == 1 ? 0u : warp * Tile::WIDTH;
  KN_LOCAL uint4* ring = (KN_LOCAL uint4*)shared + warp * Tile::ALL;
  k += a.kv_at + piece;
  v += a.kv_at + piece;
  const uint first = a.lo / 32, block = first + (a.part + a.parts - first % a.parts) % a.parts;
  uint step = Tile::CUT == 1 ? warp : 0u;
  KN_UNROLL for (uint i = 0; i < DEPTH; ++i) {
    const uint key = decode_key(a, block, step + i * WORKERS);
    decode_fetch<DIM, false, VECTOR>(ring + i * Tile::STEP, k, key, a.hi, lane);
    kn_async_commit();
    decode_fetch<DIM, true, VECTOR>(ring + i * Tile::STEP, v, key, a.hi, lane);
    kn_async_commit();
  }
  // The query, scaled by a power of two to a largest element from 1 to 2 in this warp's piece, so that none overflows f16.
  KN_GLOBAL const float* x_at = q + a.q_at + r * a.q_stride + piece;
  float part[8 * J], most = 0;
  const bool vector = kn_aligned(q, 16);
  KN_UNROLL for (uint i = 0; i < 2 * J; ++i) {
    const uint d = i / 2 * 32 + 8 * c + 4 * (i % 2);
    float4 y = kn_f4(0, 0, 0, 0);
    if (r < a.heads && d < Tile::WIDTH) y = vector ? kn_load4(x_at + d) : kn_f4(x_at[d], x_at[d + 1], x_at[d + 2], x_at[d + 3]);
    part[4 * i] = y.x;
    part[4 * i + 1] = y.y;
    part[4 * i + 2] = y.z;
    part[4 * i + 3] = y.w;
    most = kn_max(most, kn_max(kn_max(kn_abs(y.x), kn_abs(y.y)), kn_max(kn_abs(y.z), kn_abs(y.w))));
  }
  most = kn_max(most, kn_shfl_xor(most, 1));
  most = kn_max(most, kn_shfl_xor(most, 2));
  const uint exponent = kn_min(kn_max(kn_bits(most) >> 23, 1u), 253u);
  const float small = kn_from_bits((254 - exponent) << 23), scale = a.scale * kn_from_bits(exponent << 23);
  uint x[2 * J][4], third[DecodeThird<T>::NEEDED ? 4 * J : 1];
  KN_UNROLL for (uint i = 0; i < 4 * J; ++i) {
    const float even = part[2 * i] * small, odd = part[2 * i + 1] * small;
    uint hi, lo;
    decode_halves<T>(even, odd, hi, lo);
    x[i / 2][2 * (i % 2)] = hi;
    x[i / 2][2 * (i % 2) + 1] = lo;
    if (DecodeThird<T>::NEEDED) third[i] = decode_third<T>(even, odd, hi, lo);
  }
  float o[8 * H][4], m = DECODE_FLOOR, l = 0;
  KN_UNROLL for (uint i = 0; i < 8 * H; ++i)
    KN_UNROLL for (uint j = 0; j < 4; ++j) o[i][j] = 0;

  uint turn = 0;
  KN_NO_UNROLL for (uint key = decode_key(a, block, step); key < a.hi; step += WORKERS, key = decode_key(a, block, step)) {
    const uint next = decode_key(a, block, step + DEPTH * WORKERS);
    KN_LOCAL uint4* slot = ring + turn * Tile::STEP;
    // Rows behind the last one are read as the last one, with weight zero.
    const uint last = kn_min(a.hi - key, 16u) - 1;
    kn_async_wait<2 * DEPTH - 1>();
    kn_warp_sync();
    float s[2][4];
    KN_UNROLL for (uint i = 0; i < 2; ++i)
      KN_UNROLL for (uint j = 0; j < 4; ++j) s[i][j] = 0;
    KN_UNROLL for (uint j = 0; j < J; ++j)
      KN_UNROLL for (uint i = 0; i < 2; ++i) {
        const uint4 y = 32 * j + 8 * c < Tile::WIDTH ? slot[decode_key_at<DIM>(kn_min(8 * i + r, last), 4 * j + c)] : kn_u4(0, 0, 0, 0);
        KN_UNROLL for (uint h = 0; h < 2; ++h) {
          const uint b[2] = {decode_word(y, 2 * h), decode_word(y, 2 * h + 1)};
          kn_mma<T>(s[i], x[2 * j + h], b, lane);
          if (DecodeThird<T>::NEEDED) {
            const uint remains[4] = {third[4 * j + 2 * h], 0, third[4 * j + 2 * h + 1], 0};
            kn_mma<T>(s[i], remains, b, lane);
          }
        }
      }
    float w[4];
    KN_UNROLL for (uint i = 0; i < 4; ++i) w[i] = (s[i / 2][i % 2] + s[i / 2][i % 2 + 2]) * scale;
    if (Tile::CUT > 1) {
      // The scores of this piece lie where its keys were, until every warp has added them up.
      kn_warp_sync();
      ((KN_LOCAL float4*)slot)[lane] = kn_f4(w[0], w[1], w[2], w[3]);
      kn_barrier();
      float4 sum = kn_f4(0, 0, 0, 0);
      KN_UNROLL for (uint i = 0; i < DECODE_WARPS; ++i) {
        const float4 y = ((KN_LOCAL const float4*)shared)[turn * Tile::STEP + i * Tile::ALL + lane];
        sum = kn_f4(sum.x + y.x, sum.y + y.y, sum.z + y.z, sum.w + y.w);
      }
      kn_barrier();
      w[0] = sum.x;
      w[1] = sum.y;
      w[2] = sum.z;
      w[3] = sum.w;
    }
    kn_warp_sync();
    decode_fetch<DIM, false, VECTOR>(slot, k, next, a.hi, lane);
    kn_async_commit();
    // Weights of the head lane / 4 and of four keys.
    float top = m;
    KN_UNROLL for (uint i = 0; i < 4; ++i) {
      const uint j = key + 2 * c + i % 2 + 8 * (i / 2);
      float y = w[i];
      // tanh(y) = 1 - 2 / (exp(2 y) + 1): what it loses near 0 is nothing to an exponent.
      if (a.softcap > 0) y = a.softcap - 2 * a.softcap / (kn_exp_fast(2 * y / a.softcap) + 1);
      w[i] = j >= a.lo && j < a.hi ? y : -KN_INF;
      top = kn_max(top, w[i]);
    }
    top = kn_max(top, kn_shfl_xor(top, 1));
    top = kn_max(top, kn_shfl_xor(top, 2));
    const float shrink = kn_exp_fast(m - top);
    m = top;
    l *= shrink;
    KN_UNROLL for (uint i = 0; i < 4; ++i) {
      w[i] = kn_exp_fast(w[i] - top);
      l += w[i];
    }
    uint f[4];
    decode_halves<T>(w[0], w[1], f[0], f[1]);
    decode_halves<T>(w[2], w[3], f[2], f[3]);
    KN_UNROLL for (uint i = 0; i < 8 * H; ++i)
      KN_UNROLL for (uint j = 0; j < 4; ++j) o[i][j] *= shrink;
    kn_async_wait<2 * DEPTH - 1>();
    kn_warp_sync();
    KN_UNROLL for (uint h = 0; h < H; ++h) {
      uint4 y[4];
      KN_UNROLL for (uint i = 0; i < 4; ++i)
        y[i] = 64 * h + 8 * r < Tile::WIDTH ? slot[decode_value_at<DIM>(kn_min(2 * c + i % 2 + 8 * (i / 2), last), 8 * h + r)] : kn_u4(0, 0, 0, 0);
      KN_UNROLL for (uint e = 0; e < 8; ++e) {
        uint b[2];
        KN_UNROLL for (uint i = 0; i < 2; ++i)
          b[i] = kn_permute(decode_word(y[2 * i], e / 2), decode_word(y[2 * i + 1], e / 2), e % 2 == 0 ? 0x5410u : 0x7632u);
        kn_mma<T>(o[8 * h + e], f, b, lane);
      }
    }
    kn_warp_sync();
    decode_fetch<DIM, true, VECTOR>(slot, v, next, a.hi, lane);
    kn_async_commit();
    if (DEPTH > 1) turn ^= 1;
  }
  kn_async_wait<0>();
  l += kn_shfl_xor(l, 1);
  l += kn_shfl_xor(l, 2);
  kn_barrier();
  // Where the copies were: for each warp its rows, on other banks in turn, and behind them their sums and maxima.
  constexpr uint STRIDE = Tile::ALL * 4, ROW = Tile::WIDTH + 4, SUMS = DECODE_ROWS * ROW;
  KN_LOCAL float* rows = shared + warp * STRIDE;
  if (r < a.heads) {
    KN_UNROLL for (uint i = 0; i < 4 * H; ++i) {
      const uint d = i / 4 * 64 + 8 * (2 * c + i / 2 % 2) + 4 * (i % 2), j = i / 2 % 2, n = 8 * (i / 4) + 4 * (i % 2);
      if (d < Tile::WIDTH)
        *(KN_LOCAL float4*)(rows + r * ROW + d) =
            kn_f4(o[n][j] + o[n][j + 2], o[n + 1][j] + o[n + 1][j + 2], o[n + 2][j] + o[n + 2][j + 2], o[n + 3][j] + o[n + 3][j + 2]);
    }
    if (c == 0) {
      rows[SUMS + 2 * r] = l;
      rows[SUMS + 2 * r + 1] = m;
    }
  }
  kn_barrier();
  for (uint i = t; i < a.heads * (DIM / 4); i += 32 * DECODE_WARPS) {
    const uint h = i / (DIM / 4), d = 4 * (i % (DIM / 4));
    KN_LOCAL const float* from = shared + d / Tile::WIDTH * STRIDE;
    if (Tile::CUT > 1) {
      decode_store4(a, out, partial, h, d, *(KN_LOCAL const float4*)(from + h * ROW + d % Tile::WIDTH), from[SUMS + 2 * h + 1], from[SUMS + 2 * h]);
    } else {
      float best = DECODE_FLOOR, sum = 0;
      float4 total = kn_f4(0, 0, 0, 0);
      KN_UNROLL for (uint j = 0; j < DECODE_WARPS; ++j) best = kn_max(best, from[j * STRIDE + SUMS + 2 * h + 1]);
      KN_UNROLL for (uint j = 0; j < DECODE_WARPS; ++j) {
        const float g = kn_exp(from[j * STRIDE + SUMS + 2 * h + 1] - best);
        const float4 y = *(KN_LOCAL const float4*)(from + j * STRIDE + h * ROW + d);
        sum = kn_fma(g, from[j * STRIDE + SUMS + 2 * h], sum);
        total = kn_f4(kn_fma(g, y.x, total.x), kn_fma(g, y.y, total.y), kn_fma(g, y.z, total.z), kn_fma(g, y.w, total.w));
      }
      decode_store4(a, out, partial, h, d, total, best, sum);
    }
  }
}

// DEEP where some compiler, unasked, spills registers to fit one more block into a unit.
#define FLASH_ATTN_VEC_MMA(name, T, DIM) FLASH_ATTN_VEC_OF(KN_KERNEL, name, T, DIM)
#define FLASH_ATTN_VEC_MMA_DEEP(name, T, DIM) FLASH_ATTN_VEC_OF(KN_KERNEL_DEEP, name, T, DIM)
#define FLASH_ATTN_VEC_OF(KERNEL, name, T, DIM)                                                                                    \
  KN_CHAINED(name, 0);                                                                                                             \
  KERNEL(name, 128, FlashAttnVecParams, KN_IN_ALIAS(0, float, q), KN_IN_ALIAS(1, T, k), KN_IN_ALIAS(2, T, v), KN_OUT(3, float, out), \
            KN_OUT(4, float, partial), KN_IN_ALIAS(5, uint, step)) {                                                               \
    KN_SHARED(float, shared, DECODE_RING(DIM));                                                                                    \
    KN_CHAIN;                                                                                                                      \
    DECODE_PARTITION(a, p, step, DECODE_ROWS)                                                                                      \
    if (a.parts == 1 ? KN_HAS(3, out) : KN_HAS(4, partial)) {                                                                      \
      if (kn_aligned(k, 16) && kn_aligned(v, 16))                                                                                  \
        decode_mma<DIM, true>(a, q, k, v, out, partial, shared, KN_THREAD_X, KN_LANE, KN_WARP_ID);                                 \
      else                                                                                                                         \
        decode_mma<DIM, false>(a, q, k, v, out, partial, shared, KN_THREAD_X, KN_LANE, KN_WARP_ID);                                \
    }                                                                                                                              \
  }
