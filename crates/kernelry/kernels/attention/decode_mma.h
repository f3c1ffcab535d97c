// Partitions of the attention of single tokens over keys and values of 16 bits, with the matrix unit: attention/decode_core.h says what a
// partition is and what it leaves.
//
// A product has 16 rows: up to eight query heads that share a KV head, each cut into two halves x = hi + lo rounded to the type of the
// keys, hi in rows 0 to 7 and lo in rows 8 to 15, so that one product has 22 bits of x in f16 and 16 in bf16, and the sum of the two rows is in one
// lane. Weights are cut alike; queries in bf16 have a third part, kept in threadgroup memory, because the largest score is a result. Keys and values go from memory to the lanes that multiply them, 16 bytes a load, with no trip through threadgroup
// memory, because a product may take the elements of a head in any order: lane / 4 of a load of keys is the key, and lane % 4 which eight of 32
// elements; of a load of values it is which eight of 64 elements, and the pairs of keys 2 (lane % 4) + {0, 1} and + {8, 9} are the lane's own, as
// the weights are. A step takes 16 keys: values are loaded before the scores, the next keys before the values are added up.
// KN_WARP_32_ONLY: fragments of the matrix unit.
#include "attention/decode_core.h"

#define DECODE_ROWS 8u
#define DECODE_WARPS 4u
#define DECODE_MMA_SHARED(DIM) (DECODE_WARPS * DECODE_ROWS * (DIM))

template <bool VECTOR, class T> KN_FN uint4 decode_words(KN_GLOBAL const T* p, uint n) {
  if (n == 0) return kn_u4(0, 0, 0, 0);
  if (VECTOR) return kn_load16(p);
  return kn_u4((uint)p[0] | (uint)p[1] << 16, (uint)p[2] | (uint)p[3] << 16, (uint)p[4] | (uint)p[5] << 16, (uint)p[6] | (uint)p[7] << 16);
}
KN_FN uint decode_word(uint4 w, uint i) { return i == 0 ? w.x : i == 1 ? w.y : i == 2 ? w.z : w.w; }

// Sixteen keys from `key` on, rows from the end on being the last one again.
template <uint DIM, bool VECTOR, class T>
KN_FN void decode_keys(KN_PRIVATE uint4 (&x)[2][(DIM + 31) / 32], KN_PRIVATE const Decode& a, KN_GLOBAL const T* k, uint key, uint lane) {
  KN_UNROLL for (uint i = 0; i < 2; ++i) {
    const ulong row = a.kv_at + (ulong)kn_min(key + 8 * i + lane / 4, a.hi - 1) * DIM;
    KN_UNROLL for (uint j = 0; j < (DIM + 31) / 32; ++j) {
      const uint d = 32 * j + 8 * (lane % 4);
      x[i][j] = decode_words<VECTOR>(k + row + d, d < DIM ? 8u : 0u);
    }
  }
}

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
                      KN_GLOBAL float* partial, KN_LOCAL float* shared, KN_LOCAL float* sums, uint t, uint lane, uint warp) {
  constexpr uint J = (DIM + 31) / 32, H = (DIM + 63) / 64;
  const uint r = lane / 4, c = lane % 4;
  // The query, scaled by a power of two to a largest element from 1 to 2, so that none overflows f16.
  const ulong at = a.q_at + r * a.q_stride;
  float most = 0;
  KN_UNROLL for (uint i = 0; i < 8 * J; ++i) {
    const uint d = i / 8 * 32 + 8 * c + i % 8;
    if (r < a.heads && d < DIM) most = kn_max(most, kn_abs(q[at + d]));
  }
  most = kn_max(most, kn_shfl_xor(most, 1));
  most = kn_max(most, kn_shfl_xor(most, 2));
  const uint exponent = kn_min(kn_max(kn_bits(most) >> 23, 1u), 253u);
  const float small = kn_from_bits((254 - exponent) << 23), scale = a.scale * kn_from_bits(exponent << 23);
  uint x[2 * J][4];
  // The lane's own words, where its warp's sums will be.
  KN_LOCAL uint* third = (KN_LOCAL uint*)(shared + warp * DECODE_ROWS * DIM) + 4 * lane;
  KN_UNROLL for (uint i = 0; i < 4 * J; ++i) {
    const uint d = i / 4 * 32 + 8 * c + 2 * (i % 4);
    const bool some = r < a.heads && d < DIM;
    const float even = some ? q[at + d] * small : 0.0f, odd = some ? q[at + d + 1] * small : 0.0f;
    uint hi, lo;
    decode_halves<T>(even, odd, hi, lo);
    x[i / 2][2 * (i % 2)] = hi;
    x[i / 2][2 * (i % 2) + 1] = lo;
    if (DecodeThird<T>::NEEDED) third[i / 4 * 128 + i % 4] = decode_third<T>(even, odd, hi, lo);
  }
  float o[8 * H][4], m = DECODE_FLOOR, l = 0;
  KN_UNROLL for (uint i = 0; i < 8 * H; ++i)
    KN_UNROLL for (uint j = 0; j < 4; ++j) o[i][j] = 0;

  const uint first = a.lo / 32;
  uint key = 32 * (first + (a.part + a.parts - first % a.parts) % a.parts + a.parts * warp);
  uint4 kx[2][J];
  if (key < a.hi) decode_keys<DIM, VECTOR>(kx, a, k, key, lane);
  while (key < a.hi) {
    const uint next = key % 32 == 0 ? key + 16 : key - 16 + 32 * a.parts * DECODE_WARPS;
    uint4 vx[H][4];
    KN_UNROLL for (uint i = 0; i < 4; ++i) {
      const ulong row = a.kv_at + (ulong)kn_min(key + 2 * c + i % 2 + 8 * (i / 2), a.hi - 1) * DIM;
      KN_UNROLL for (uint h = 0; h < H; ++h) vx[h][i] = decode_words<VECTOR>(v + row + 64 * h + 8 * r, 64 * h + 8 * r < DIM ? 8u : 0u);
    }
    float s[2][4];
    KN_UNROLL for (uint i = 0; i < 2; ++i)
      KN_UNROLL for (uint j = 0; j < 4; ++j) s[i][j] = 0;
    KN_UNROLL for (uint j = 0; j < J; ++j) {
      // Lest the compiler load all of the third parts at once, for which there are no registers.
      if (DecodeThird<T>::NEEDED) kn_warp_sync();
      KN_UNROLL for (uint h = 0; h < 2; ++h) {
        const uint2 rest = DecodeThird<T>::NEEDED ? *(KN_LOCAL const uint2*)(third + 128 * j + 2 * h) : kn_u2(0, 0);
        const uint remains[4] = {rest.x, 0, rest.y, 0};
        KN_UNROLL for (uint i = 0; i < 2; ++i) {
          const uint b[2] = {decode_word(kx[i][j], 2 * h), decode_word(kx[i][j], 2 * h + 1)};
          kn_mma<T>(s[i], x[2 * j + h], b, lane);
          if (DecodeThird<T>::NEEDED) kn_mma<T>(s[i], remains, b, lane);
        }
      }
    }
    if (next < a.hi) decode_keys<DIM, VECTOR>(kx, a, k, next, lane);
    // Weights of the head lane / 4 and of four keys.
    float w[4], top = m;
    KN_UNROLL for (uint i = 0; i < 4; ++i) {
      const uint j = key + 2 * c + i % 2 + 8 * (i / 2);
      float y = (s[i / 2][i % 2] + s[i / 2][i % 2 + 2]) * scale;
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
    KN_UNROLL for (uint h = 0; h < H; ++h)
      KN_UNROLL for (uint e = 0; e < 8; ++e) {
        uint b[2];
        KN_UNROLL for (uint i = 0; i < 2; ++i) {
          const uint even = decode_word(vx[h][2 * i], e / 2), odd = decode_word(vx[h][2 * i + 1], e / 2);
          b[i] = e % 2 == 0 ? (even & 0xffffu) | odd << 16 : even >> 16 | (odd & 0xffff0000u);
        }
        KN_UNROLL for (uint j = 0; j < 4; ++j) o[8 * h + e][j] *= shrink;
        kn_mma<T>(o[8 * h + e], f, b, lane);
      }
    key = next;
  }
  l += kn_shfl_xor(l, 1);
  l += kn_shfl_xor(l, 2);
  const uint mine = warp * DECODE_ROWS + r;
  kn_warp_sync();
  KN_UNROLL for (uint i = 0; i < 8 * H; ++i)
    KN_UNROLL for (uint j = 0; j < 2; ++j) {
      const uint d = i / 8 * 64 + 8 * (2 * c + j) + i % 8;
      if (d < DIM) shared[mine * DIM + d] = o[i][j] + o[i][j + 2];
    }
  if (c == 0) {
    sums[2 * mine] = l;
    sums[2 * mine + 1] = m;
  }
  kn_barrier();
  for (uint i = t; i < a.heads * DIM; i += 32 * DECODE_WARPS) {
    const uint h = i / DIM, d = i % DIM;
    float best = DECODE_FLOOR, sum = 0, total = 0;
    KN_UNROLL for (uint j = 0; j < DECODE_WARPS; ++j) best = kn_max(best, sums[2 * (j * DECODE_ROWS + h) + 1]);
    KN_UNROLL for (uint j = 0; j < DECODE_WARPS; ++j) {
      const uint from = j * DECODE_ROWS + h;
      const float g = kn_exp(sums[2 * from + 1] - best);
      sum = kn_fma(g, sums[2 * from], sum);
      total = kn_fma(g, shared[from * DIM + d], total);
    }
    decode_store(a, out, partial, h, d, total, best, sum);
  }
}

#define FLASH_ATTN_VEC_MMA(name, T, DIM)                                                                                           \
  KN_KERNEL_DEEP(name, 128, FlashAttnVecParams, KN_IN(0, float, q), KN_IN(1, T, k), KN_IN(2, T, v), KN_OUT(3, float, out),         \
            KN_OUT(4, float, partial), KN_IN(5, uint, step)) {                                                                     \
    KN_SHARED(float, shared, DECODE_MMA_SHARED(DIM));                                                                              \
    KN_SHARED(float, sums, 2 * DECODE_WARPS * DECODE_ROWS);                                                                        \
    DECODE_PARTITION(a, p, step, DECODE_ROWS)                                                                                      \
    if (a.parts == 1 ? KN_HAS(3, out) : KN_HAS(4, partial)) {                                                                      \
      if (kn_aligned(k, 16) && kn_aligned(v, 16))                                                                                  \
        decode_mma<DIM, true>(a, q, k, v, out, partial, shared, sums, KN_THREAD_X, KN_LANE, KN_WARP_ID);                           \
      else                                                                                                                         \
        decode_mma<DIM, false>(a, q, k, v, out, partial, shared, sums, KN_THREAD_X, KN_LANE, KN_WARP_ID);                          \
    }                                                                                                                              \
  }
