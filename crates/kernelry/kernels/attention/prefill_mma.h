// Attention of many queries over keys and values of 16 bits, with the matrix unit where heads are at most 128 wide.
//
// Eight warps of 16 queries share tiles of keys and of values in threadgroup memory: values load while scores are computed, the next keys
// while values are added up. Heads are padded with zeros to D. Queries of f32 are cut into two halves, x = hi + lo, each rounded to the
// type of the keys, and so are the weights: two products give what one in f32 would to 2^-17 or better. Each query is first scaled by a
// power of two to a largest element from 1 to 2, so that none overflows f16. The softmax is to base 2.
// KN_WARP_32_ONLY: fragments of the matrix unit.
#include "attention/tile.h"
#include "attention/prefill_wgmma.h"

#define ATTN_MMA_THREADS 256u
// Queries of a block.
#define ATTN_MMA_ROWS(dim) ((dim) <= 128 ? 128 : ATTN_ROWS)

// D elements of each of KEYS rows of keys or values, `end` keys in all.
template <uint D, uint KEYS, class K>
KN_FN void attn_load_tile(KN_LOCAL ushort* tile, KN_GLOBAL const K* x, ulong at, uint key, uint end, uint dim, bool vector, uint t) {
  constexpr uint PIECES = KEYS * D / 8, TURNS = (PIECES + ATTN_MMA_THREADS - 1) / ATTN_MMA_THREADS;
  KN_UNROLL for (uint turn = 0; turn < TURNS; ++turn) {
    const uint i = t + turn * ATTN_MMA_THREADS, row = i / (D / 8), d = 8 * (i % (D / 8));
    if (PIECES % ATTN_MMA_THREADS != 0 && i >= PIECES) break;
    KN_LOCAL ushort* to = tile + row * (D + 8) + d;
    const ulong from = at + (ulong)(key + row) * dim + d;
    if (vector && key + row < end && d < dim) {
      kn_async_copy16(to, x + from);
    } else {
      KN_NO_UNROLL for (uint e = 0; e < 8; ++e) to[e] = key + row < end && d + e < dim ? (ushort)x[from + e] : (ushort)0;
    }
  }
}

// The two halves of a pair, in words of type K.
template <class K> KN_FN void attn_halves(float x, float y, KN_PRIVATE uint& hi, KN_PRIVATE uint& lo) {
  hi = kn_pack<K>(x, y);
  const float2 h = kn_unpack<K>(hi);
  lo = kn_pack<K>(x - h.x, y - h.y);
}

template <class Q> KN_FN float2 attn_pair(KN_GLOBAL const Q* q, ulong at, uint d, uint dim) {
  return kn_f2(d < dim ? kn_to_f32(q[at + d]) : 0.0f, d + 1 < dim ? kn_to_f32(q[at + d + 1]) : 0.0f);
}

template <uint D, uint KEYS, bool SPLIT, class Q, class K>
KN_FN void attn_mma(KN_PRIVATE const Attn& a, KN_GLOBAL const Q* q, KN_GLOBAL const K* k, KN_GLOBAL const K* v, KN_GLOBAL Q* out,
                    KN_LOCAL ushort* ks, uint t, uint lane, uint warp) {
  const uint stride = D + 8;
  KN_LOCAL ushort* vs = ks + KEYS * stride;
  const bool vector = a.dim % 8 == 0 && kn_aligned(k, 16) && kn_aligned(v, 16);
  const float cap = a.softcap * ATTN_LOG2E;
  uint begin, end, lo[2], hi[2], full_lo, full_hi;
  attn_range(a, a.first, begin, full_hi);
  attn_range(a, a.first + 127, full_lo, end);
  begin = begin / KEYS * KEYS;
  attn_load_tile<D, KEYS>(ks, k, a.kv_at, begin, end, a.dim, vector, t);
  kn_async_commit();

  // Lanes of four hold rows lane / 4 and lane / 4 + 8.
  uint qh[D / 16][4], ql[SPLIT ? D / 16 : 1][4];
  float scale[2], m[2], l[2];
  KN_UNROLL for (uint r = 0; r < 2; ++r) {
    const uint query = a.first + 16 * warp + lane / 4 + 8 * r;
    const ulong at = a.q_at + query * a.q_stride;
    const uint dim = query < a.queries ? a.dim : 0u;
    attn_range(a, query, lo[r], hi[r]);
    m[r] = ATTN_FLOOR;
    l[r] = 0;
    float shrink = 1;
    scale[r] = a.scale;
    if (SPLIT) {
      float top = 0;
      KN_UNROLL for (uint i = 0; i < D / 8; ++i) {
        const float2 x = attn_pair(q, at, 8 * i + 2 * (lane % 4), dim);
        top = kn_max(top, kn_max(kn_abs(x.x), kn_abs(x.y)));
      }
      top = kn_max(top, kn_shfl_xor(top, 1));
      top = kn_max(top, kn_shfl_xor(top, 2));
      const uint exponent = kn_min(kn_max(kn_bits(top) >> 23, 1u), 253u);
      shrink = kn_from_bits((254 - exponent) << 23);
      scale[r] = a.scale * kn_from_bits(exponent << 23);
    }
    KN_UNROLL for (uint i = 0; i < D / 8; ++i) {
      const float2 x = attn_pair(q, at, 8 * i + 2 * (lane % 4), dim);
      if (SPLIT) attn_halves<K>(x.x * shrink, x.y * shrink, qh[i / 2][2 * (i % 2) + r], ql[i / 2][2 * (i % 2) + r]);
      else qh[i / 2][2 * (i % 2) + r] = kn_pack<K>(x.x, x.y);
    }
    scale[r] *= a.softcap > 0 ? 2 * ATTN_LOG2E / a.softcap : ATTN_LOG2E;
  }
  float o[D / 8][4];
  KN_UNROLL for (uint i = 0; i < D / 8; ++i)
    KN_UNROLL for (uint j = 0; j < 4; ++j) o[i][j] = 0;

  for (uint key = begin; key < end; key += KEYS) {
    attn_load_tile<D, KEYS>(vs, v, a.kv_at, key, end, a.dim, vector, t);
    kn_async_commit();
    kn_async_wait<1>();
    kn_barrier();
    float s[KEYS / 8][4];
    KN_UNROLL for (uint i = 0; i < KEYS / 8; ++i)
      KN_UNROLL for (uint j = 0; j < 4; ++j) s[i][j] = 0;
    KN_UNROLL for (uint d = 0; d < D / 16; ++d)
      KN_UNROLL for (uint j = 0; j < KEYS / 16; ++j) {
        uint b[4];
        kn_frag_b(b, ks + 16 * j * stride + 16 * d, stride, lane);
        kn_mma<K>(s[2 * j], qh[d], b, lane);
        kn_mma<K>(s[2 * j + 1], qh[d], b + 2, lane);
        if (SPLIT) {
          kn_mma<K>(s[2 * j], ql[d], b, lane);
          kn_mma<K>(s[2 * j + 1], ql[d], b + 2, lane);
        }
      }
    kn_barrier();
    if (key + KEYS < end) attn_load_tile<D, KEYS>(ks, k, a.kv_at, key + KEYS, end, a.dim, vector, t);
    kn_async_commit();

    const bool edge = key + KEYS > full_hi || key < full_lo;
    KN_UNROLL for (uint r = 0; r < 2; ++r) {
      float top = m[r];
      KN_UNROLL for (uint i = 0; i < KEYS / 8; ++i)
        KN_UNROLL for (uint j = 2 * r; j < 2 * r + 2; ++j) {
          float x = s[i][j] * scale[r];
          // tanh(y) = 1 - 2 / (exp(2 y) + 1): what it loses near 0 is nothing to an exponent.
          if (a.softcap > 0) x = cap - 2 * cap / (kn_exp2_fast(x) + 1);
          const uint c = key + 8 * i + kn_frag_col(lane, j);
          if (edge && (c < lo[r] || c >= hi[r])) x = -KN_INF;
          s[i][j] = x;
          top = kn_max(top, x);
        }
      top = kn_max(top, kn_shfl_xor(top, 1));
      top = kn_max(top, kn_shfl_xor(top, 2));
      const float shrink = kn_exp2_fast(m[r] - top);
      m[r] = top;
      l[r] *= shrink;
      KN_UNROLL for (uint i = 0; i < KEYS / 8; ++i)
        KN_UNROLL for (uint j = 2 * r; j < 2 * r + 2; ++j) {
          s[i][j] = kn_exp2_fast(s[i][j] - top);
          l[r] += s[i][j];
        }
      KN_UNROLL for (uint i = 0; i < D / 8; ++i) {
        o[i][2 * r] *= shrink;
        o[i][2 * r + 1] *= shrink;
      }
    }
    kn_async_wait<1>();
    kn_barrier();
    KN_UNROLL for (uint j = 0; j < KEYS / 16; ++j) {
      uint ph[4], pl[4];
      KN_UNROLL for (uint i = 0; i < 4; ++i) {
        const float x = s[2 * j + i / 2][2 * (i % 2)], y = s[2 * j + i / 2][2 * (i % 2) + 1];
        if (SPLIT) attn_halves<K>(x, y, ph[i], pl[i]);
        else ph[i] = kn_pack<K>(x, y);
      }
      KN_UNROLL for (uint d = 0; d < D / 16; ++d) {
        uint b[4];
        kn_frag_b_trans(b, vs + 16 * j * stride + 16 * d, stride, lane);
        kn_mma<K>(o[2 * d], ph, b, lane);
        kn_mma<K>(o[2 * d + 1], ph, b + 2, lane);
        if (SPLIT) {
          kn_mma<K>(o[2 * d], pl, b, lane);
          kn_mma<K>(o[2 * d + 1], pl, b + 2, lane);
        }
      }
    }
    kn_barrier();
  }
  KN_UNROLL for (uint r = 0; r < 2; ++r) {
    l[r] += kn_shfl_xor(l[r], 1);
    l[r] += kn_shfl_xor(l[r], 2);
    const float f = l[r] == 0 ? 0 : 1 / l[r];
    const uint query = a.first + 16 * warp + lane / 4 + 8 * r;
    const ulong at = a.q_at + query * a.q_stride;
    KN_UNROLL for (uint i = 0; i < D / 8; ++i)
      KN_UNROLL for (uint j = 0; j < 2; ++j) {
        const uint d = 8 * i + 2 * (lane % 4) + j;
        if (query < a.queries && d < a.dim) out[at + d] = kn_from_f32<Q>(f == 0 ? 0 : o[i][2 * r + j] * f);
      }
  }
}

// By width of the head; those above 128 without the matrix unit, but on Hopper.
template <bool SPLIT, class Q, class K>
KN_FN void attn_mma_any(KN_PRIVATE const Attn& a, KN_GLOBAL const Q* q, KN_GLOBAL const K* k, KN_GLOBAL const K* v, KN_GLOBAL Q* out,
                        KN_LOCAL float* shared, uint t, uint lane, uint warp) {
  KN_LOCAL ushort* tiles = (KN_LOCAL ushort*)shared;
#ifdef KN_WGMMA
  if (a.dim % 8 == 0 && kn_aligned(k, 16) && kn_aligned(v, 16)) {
    if (a.dim <= 64) attn_wgmma<64, SPLIT, Q, K>(a, q, k, v, out, kn_dynamic_shared, shared, t);
    else if (a.dim <= 96) attn_wgmma<96, SPLIT, Q, K>(a, q, k, v, out, kn_dynamic_shared, shared, t);
    else if (a.dim <= 128) attn_wgmma<128, SPLIT, Q, K>(a, q, k, v, out, kn_dynamic_shared, shared, t);
    else if (a.dim > 256) attn_wgmma<512, SPLIT, Q, K>(a, q, k, v, out, kn_dynamic_shared, shared, t);
    // There are blocks for ATTN_ROWS queries; every second takes those of two.
    else if (a.first % 128 == 0) attn_wgmma<256, SPLIT, Q, K>(a, q, k, v, out, kn_dynamic_shared, shared, t);
    return;
  }
  // Rows that are no multiples of 16 bytes.
  if (a.dim <= 128) attn_mma<128, 16, SPLIT>(a, q, k, v, out, tiles, t, lane, warp);
#else
  if (a.dim <= 64) attn_mma<64, 64, SPLIT>(a, q, k, v, out, tiles, t, lane, warp);
  else if (a.dim <= 80) attn_mma<80, 64, SPLIT>(a, q, k, v, out, tiles, t, lane, warp);
  else if (a.dim <= 96) attn_mma<96, 64, SPLIT>(a, q, k, v, out, tiles, t, lane, warp);
  else if (a.dim <= 128) attn_mma<128, 48, SPLIT>(a, q, k, v, out, tiles, t, lane, warp);
#endif
  else if (a.dim <= 256) attn_tile<256>(a, q, k, v, out, shared, t);
  else attn_tile<512>(a, q, k, v, out, shared, t);
}

// Threadgroup memory for tiles of the paths that want more than a kernel may declare.
#ifdef KN_WGMMA
#define ATTN_DYNAMIC(name, SPLIT) KN_DYNAMIC_SHARED(name, ATTN_WGMMA_BYTES(256, SPLIT));
static_assert(ATTN_WGMMA_BYTES(256, true) >= ATTN_WGMMA_BYTES(128, true) && ATTN_WGMMA_BYTES(256, true) >= ATTN_WGMMA_BYTES(512, true) &&
              ATTN_WGMMA_BYTES(256, false) >= ATTN_WGMMA_BYTES(128, false) && ATTN_WGMMA_BYTES(256, false) >= ATTN_WGMMA_BYTES(512, false), "");
#else
#define ATTN_DYNAMIC(name, SPLIT)
#endif
#define SDPA_MMA(name, T)                                                                                                          \
  ATTN_DYNAMIC(name, false)                                                                                                        \
  KN_KERNEL(name, 256, SdpaParams, KN_IN(0, T, q), KN_IN(1, T, k), KN_IN(2, T, v), KN_OUT(3, T, out), KN_IN(4, uint, step)) {      \
    KN_SHARED(float, shared, ATTN_SHARED);                                                                                         \
    ATTN_PACKED(a, p, step, p.do_causal, 0, ATTN_MMA_ROWS(p.head_dim))                                                             \
    attn_mma_any<false>(a, q, k, v, out, shared, KN_THREAD_X, KN_LANE, KN_WARP_ID);                                                \
  }
#define SDPA_SLIDING_MMA(name, T)                                                                                                  \
  ATTN_DYNAMIC(name, false)                                                                                                        \
  KN_KERNEL(name, 256, SdpaSlidingParams, KN_IN(0, T, q), KN_IN(1, T, k), KN_IN(2, T, v), KN_OUT(3, T, out), KN_IN(4, uint, step)) { \
    KN_SHARED(float, shared, ATTN_SHARED);                                                                                         \
    ATTN_PACKED(a, p, step, 1, p.window_size + 1, ATTN_MMA_ROWS(p.head_dim))                                                       \
    attn_mma_any<false>(a, q, k, v, out, shared, KN_THREAD_X, KN_LANE, KN_WARP_ID);                                                \
  }
#define ATTENTION_PREFILL_MMA(name, T)                                                                                             \
  ATTN_DYNAMIC(name, true)                                                                                                         \
  KN_KERNEL(name, 256, AttentionPrefillParams, KN_IN(0, float, q), KN_IN(1, T, k), KN_IN(2, T, v), KN_OUT(3, float, out),          \
            KN_IN(4, uint, step)) {                                                                                                \
    KN_SHARED(float, shared, ATTN_SHARED);                                                                                         \
    ATTN_TOKENS(a, p, step, ATTN_MMA_ROWS(p.head_dim))                                                                             \
    attn_mma_any<true>(a, q, k, v, out, shared, KN_THREAD_X, KN_LANE, KN_WARP_ID);                                                 \
  }
