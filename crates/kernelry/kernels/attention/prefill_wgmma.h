// The attention of attention/prefill_mma.h on Hopper: blocks of 128 queries, keys and values by tiles of 128, both in two places each.
//
// Two warpgroups of 64 queries issue their products in turns: the scores of the next tile, then the values of this one. While the unit adds up the
// values, the group computes the softmax of the next tile, and while it has nothing to multiply, the other group has. Weights go from the
// registers of the scores straight into the product. In threadgroup memory everything lies in panels of 64 elements (common/wgmma.h): the
// halves of the queries, keys by rows, and values by rows too, which the product reads with contiguous n. Copies of a tile arrive at one
// barrier of the block, groups that have used theirs up at another, and neither group waits for the other but there.
#include "common/wgmma.h"
#ifdef KN_WGMMA

#define ATTN_PASS_AT 5

// Bytes: panels of 128 rows of a head of D elements; queries in one or two halves, and two tiles each of keys and of values.
#define ATTN_PANELS(D) ((D + 63) / 64 * 16384)
#define ATTN_WGMMA_BYTES(D, SPLIT) (ATTN_PANELS(D) * (SPLIT ? 6 : 5))

// A row's piece of a tile that thread t copies in turn `i`.
template <uint D> KN_FN void attn_wgmma_piece(uint t, uint i, uint& row, uint& piece) {
  constexpr uint PIECES = D / 8;
  if (256 % PIECES == 0) {
    row = t / PIECES + 256 / PIECES * i;
    piece = t % PIECES;
  } else {
    row = (t + 256 * i) / PIECES;
    piece = (t + 256 * i) % PIECES;
  }
}
KN_FN void attn_wgmma_copy(uint to, const void* from, uint bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
// Rows `row` to `row + 127` of keys or values into a tile; rows from `end` on, and elements from `dim` on, are zeros.
template <uint D, class K>
KN_FN void attn_wgmma_load(uint tile, const K* x, uint row, uint end, uint dim, uint t) {
  uint r, c;
  attn_wgmma_piece<D>(t, 0, r, c);
  const K* from = x + ((ulong)row * dim + r * dim + 8 * c);
  if (row + 128 <= end && dim == D) {
    KN_UNROLL for (uint i = 0; i < D / 16; ++i) {
      attn_wgmma_piece<D>(t, i, r, c);
      const K* at = 256 % (D / 8) == 0 ? from + i * (256 / (D / 8) * D) : x + ((ulong)row * D + r * D + 8 * c);
      asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(tile + c / 8 * 16384 + wgmma_place(r, c % 8)), "l"(at) : "memory");
    }
  } else {
    KN_NO_UNROLL for (uint i = 0; i < D / 16; ++i) {
      attn_wgmma_piece<D>(t, i, r, c);
      const bool some = row + r < end && 8 * c < dim;
      attn_wgmma_copy(tile + c / 8 * 16384 + wgmma_place(r, c % 8), x + (some ? (ulong)(row + r) * dim + 8 * c : 0ul), some ? 16u : 0u);
    }
  }
}

// The queries of the block, each scaled by a power of two as in attention/prefill_mma.h, into panels; two threads a query.
template <uint D, bool SPLIT, class Q, class K>
KN_FN void attn_wgmma_queries(uchar* to, float* factor, KN_PRIVATE const Attn& a, const Q* q, uint t) {
  const uint row = t / 2, query = a.first + row, dim = query < a.queries ? a.dim : 0u;
  const Q* x = q + a.q_at + query * a.q_stride;
  const bool vector = kn_aligned(q, 16) && a.dim % 8 == 0;
  float shrink = 1;
  if (SPLIT) {
    float top = 0;
    for (uint d = 4 * (t % 2); d < dim; d += 8)
      KN_UNROLL for (uint e = 0; e < 4; ++e) top = kn_max(top, d + e < dim ? kn_abs(kn_to_f32(x[d + e])) : 0.0f);
    top = kn_max(top, kn_shfl_xor(top, 1));
    const uint exponent = kn_min(kn_max(kn_bits(top) >> 23, 1u), 253u);
    shrink = kn_from_bits((254 - exponent) << 23);
    if (t % 2 == 0) factor[row] = kn_from_bits(exponent << 23);
  }
  for (uint c = t % 2; c < D / 8; c += 2) {
    float y[8];
    KN_UNROLL for (uint e = 0; e < 8; e += 4) {
      float4 w = kn_f4(0, 0, 0, 0);
      const uint d = 8 * c + e;
      if (vector && d < dim) {
        w = kn_load4(x + d);
      } else {
        w.x = d < dim ? kn_to_f32(x[d]) : 0.0f;
        w.y = d + 1 < dim ? kn_to_f32(x[d + 1]) : 0.0f;
        w.z = d + 2 < dim ? kn_to_f32(x[d + 2]) : 0.0f;
        w.w = d + 3 < dim ? kn_to_f32(x[d + 3]) : 0.0f;
      }
      y[e] = w.x * shrink;
      y[e + 1] = w.y * shrink;
      y[e + 2] = w.z * shrink;
      y[e + 3] = w.w * shrink;
    }
    uint hi[4], lo[4];
    KN_UNROLL for (uint i = 0; i < 4; ++i) {
      hi[i] = kn_pack<K>(y[2 * i], y[2 * i + 1]);
      const float2 h = kn_unpack<K>(hi[i]);
      lo[i] = kn_pack<K>(y[2 * i] - h.x, y[2 * i + 1] - h.y);
    }
    uchar* place = to + c / 8 * 16384 + wgmma_place(row, c % 8);
    *(uint4*)place = kn_u4(hi[0], hi[1], hi[2], hi[3]);
    if (SPLIT) *(uint4*)(place + ATTN_PANELS(D)) = kn_u4(lo[0], lo[1], lo[2], lo[3]);
  }
}

KN_FN void attn_store2(float* to, float x, float y) { *(float2*)to = kn_f2(x, y); }
template <class Q> KN_FN void attn_store2(Q* to, float x, float y) { *(uint*)to = kn_pack<Q>(x, y); }

// Scores of a tile of keys, issued.
template <uint D, bool SPLIT, class K> KN_FN void attn_wgmma_scores(float (&s)[64], uint qs, uint ks) {
  wgmma_fence();
  KN_UNROLL for (uint h = 0; h < (SPLIT ? 2 : 1); ++h)
    KN_UNROLL for (uint d = 0; d < D / 16; ++d) {
      const uint at = d / 4 * 16384 + d % 4 * 32;
      Wgmma<K, 128, 0>::ss(s, wgmma_rows(qs + h * ATTN_PANELS(D) + at), wgmma_rows(ks + at), h + d != 0);
    }
  wgmma_commit();
}
// Turns of the two warpgroups: `turn` waits for the other's `pass`.
KN_FN void attn_turn(uint group) { asm volatile("bar.sync %0, 256;" ::"r"(group + 1) : "memory"); }
KN_FN void attn_pass(uint group) { asm volatile("bar.arrive %0, 256;" ::"r"(2 - group) : "memory"); }

// Weights times values, issued; the other group's turn comes before the last of it, lest the unit run dry in between.
template <uint D, bool SPLIT, class K> KN_FN void attn_wgmma_values(float (&o)[D / 2], const uint (&p)[SPLIT ? 64 : 32], uint vs, uint group) {
  wgmma_fence();
  KN_UNROLL for (uint j = 0; j < 8; ++j) {
    KN_UNROLL for (uint h = 0; h < (SPLIT ? 2 : 1); ++h) {
      const uint i = 32 * h + 4 * j;
      Wgmma<K, D, 1>::rs(o, p[i], p[i + 1], p[i + 2], p[i + 3], wgmma_columns(vs + j * 2048, 16384), 1);
    }
    if (j == ATTN_PASS_AT && group < 2) attn_pass(group);
  }
  wgmma_commit();
}

// Scores to weights, in place, and what the rows were before shrinks by.
KN_FN void attn_wgmma_softmax(float (&s)[64], float (&m)[2], float (&l)[2], float (&shrink)[2], const float (&scale)[2], float softcap, bool edge,
                              int hi, int hi_step, int window, int key) {
  const float cap = softcap * ATTN_LOG2E;
  KN_UNROLL for (uint r = 0; r < 2; ++r) {
    float f = scale[r], top = ATTN_FLOOR;
    if (softcap > 0 || !(f > 0)) {
      KN_UNROLL for (uint i = 0; i < 16; ++i)
        KN_UNROLL for (uint j = 4 * i + 2 * r; j < 4 * i + 2 * r + 2; ++j) {
          float x = s[j] * f;
          if (softcap > 0) x = cap - 2 * cap / (kn_exp2_fast(x) + 1);
          s[j] = x;
        }
      f = 1;
    }
    if (edge) {
      const int over = hi + (r ? hi_step : 0) - key, under = window > 0 ? over - window : -key;
      KN_UNROLL for (int i = 0; i < 16; ++i)
        KN_UNROLL for (int j = 0; j < 2; ++j)
          if (8 * i + j < under || 8 * i + j >= over) s[4 * i + 2 * r + j] = -KN_INF;
    }
    float top2 = ATTN_FLOOR;
    KN_UNROLL for (uint i = 0; i < 16; ++i) {
      top = kn_max(top, s[4 * i + 2 * r]);
      top2 = kn_max(top2, s[4 * i + 2 * r + 1]);
    }
    top = kn_max(top, top2);
    top = kn_max(top, kn_shfl_xor(top, 1));
    top = kn_max(top, kn_shfl_xor(top, 2));
    top = kn_max(top * f, m[r]);
    shrink[r] = kn_exp2_fast(m[r] - top);
    m[r] = top;
    float sum = 0, sum2 = 0;
    KN_UNROLL for (uint i = 0; i < 16; ++i) {
      const uint j = 4 * i + 2 * r;
      s[j] = kn_exp2_fast(kn_fma(s[j], f, -top));
      s[j + 1] = kn_exp2_fast(kn_fma(s[j + 1], f, -top));
      sum += s[j];
      sum2 += s[j + 1];
    }
    l[r] = kn_fma(l[r], shrink[r], sum + sum2);
  }
}

template <bool SPLIT, class K> KN_FN void attn_wgmma_weights(uint (&p)[SPLIT ? 64 : 32], const float (&s)[64]) {
  KN_UNROLL for (uint j = 0; j < 8; ++j)
    KN_UNROLL for (uint i = 0; i < 4; ++i) {
      const float x = s[8 * j + 4 * (i / 2) + 2 * (i % 2)], y = s[8 * j + 4 * (i / 2) + 2 * (i % 2) + 1];
      const uint w = kn_pack<K>(x, y);
      p[4 * j + i] = w;
      if (SPLIT) {
        const float2 h = kn_unpack<K>(w);
        p[(SPLIT ? 32 : 0) + 4 * j + i] = kn_pack<K>(x - h.x, y - h.y);
      }
    }
}

// `smem` has ATTN_WGMMA_BYTES at a multiple of 1024 bytes, `shared` 1024 bytes.
template <uint D, bool SPLIT, class Q, class K>
KN_FN void attn_wgmma(KN_PRIVATE const Attn& a, const Q* q, const K* k, const K* v, Q* out, uchar* smem, float* shared, uint t) {
  // One number for the whole warp, as the compiler sees it too.
  const uint lane = t % 32, group = kn_shfl(t / 128, 0u);
  const uint qs = wgmma_address(smem) + group * 8192, ks = wgmma_address(smem) + (SPLIT ? 2 : 1) * ATTN_PANELS(D);
  const uint vs = ks + 2 * ATTN_PANELS(D), first = a.first + group * 64;
  uint begin, end, unused, full_lo, full_hi;
  attn_range(a, a.first, begin, unused);
  attn_range(a, a.first + 127, unused, end);
  attn_range(a, first, unused, full_hi);
  attn_range(a, first + 63, full_lo, unused);
  begin = begin / 128 * 128;
  const K *keys = k + a.kv_at, *values = v + a.kv_at;
  // Factors of the queries; and two barriers: the keys and values of a turn have come, and those of the one before are used up.
  float* factor = shared;
  ulong *full = (ulong*)(shared + 128), *empty = full + 1;
  if (t == 0) {
    wgmma_bar_init(full, 256);
    wgmma_bar_init(empty, 8);
  }
  attn_wgmma_load<D>(ks, keys, begin, end, a.dim, t);
  kn_async_commit();
  attn_wgmma_load<D>(vs, values, begin, end, a.dim, t);
  if (begin + 128 < end) attn_wgmma_load<D>(ks + ATTN_PANELS(D), keys, begin + 128, end, a.dim, t);
  kn_async_commit();
  attn_wgmma_queries<D, SPLIT, Q, K>(smem, factor, a, q, t);
  kn_async_wait<1>();
  wgmma_publish();
  kn_barrier();
  wgmma_bar_arrive_copies(full);

  float scale[2], m[2], l[2], shrink[2];
  KN_UNROLL for (uint r = 0; r < 2; ++r) {
    const uint row = t / 32 * 16 + lane / 4 + 8 * r;
    m[r] = ATTN_FLOOR;
    l[r] = 0;
    scale[r] = a.scale * (SPLIT ? factor[row] : 1.0f) * (a.softcap > 0 ? 2 * ATTN_LOG2E / a.softcap : ATTN_LOG2E);
  }
  // Columns are counted from the lane's first. Queries from `queries` on attend what they like.
  const int hi = (int)(a.causal ? a.keys + a.first + t / 32 * 16 + lane / 4 + 1 - a.queries : a.keys) - (int)(2 * (lane % 4)), hi_step = a.causal ? 8 : 0;
  float o[D / 2], s[64];
  uint p[SPLIT ? 64 : 32];
  KN_UNROLL for (uint i = 0; i < D / 2; ++i) o[i] = 0;
  attn_wgmma_scores<D, SPLIT, K>(s, qs, ks);
  wgmma_wait<0>();
  wgmma_settle(s);
  if (lane == 0) wgmma_bar_arrive(empty);
  attn_wgmma_softmax(s, m, l, shrink, scale, a.softcap, begin + 128 > full_hi || begin < full_lo, hi, hi_step, a.window, begin);
  attn_wgmma_weights<SPLIT, K>(p, s);
  if (group == 1) attn_pass(1);
  uint place = 0;
  KN_NO_UNROLL for (uint key = begin; key + 128 < end; key += 128, place ^= 1) {
    wgmma_bar_wait(full, place);
    wgmma_publish();
    attn_turn(group);
    attn_wgmma_scores<D, SPLIT, K>(s, qs, ks + (place ^ 1) * ATTN_PANELS(D));
    attn_wgmma_values<D, SPLIT, K>(o, p, vs + place * ATTN_PANELS(D), group);
    // The keys of this tile and the values of the one before are used up, by both groups once these have come to here.
    wgmma_bar_wait(empty, place);
    attn_wgmma_load<D>(vs + (place ^ 1) * ATTN_PANELS(D), values, key + 128, end, a.dim, t);
    if (key + 256 < end) attn_wgmma_load<D>(ks + place * ATTN_PANELS(D), keys, key + 256, end, a.dim, t);
    wgmma_bar_arrive_copies(full);
    wgmma_wait<1>();
    wgmma_settle(s);
    attn_wgmma_softmax(s, m, l, shrink, scale, a.softcap, key + 256 > full_hi || key + 128 < full_lo, hi, hi_step, a.window, key + 128);
    // Lest the compiler put it off until the unit is done.
    wgmma_settle(s);
    wgmma_wait<0>();
    wgmma_settle(o);
    if (lane == 0) wgmma_bar_arrive(empty);
    attn_wgmma_weights<SPLIT, K>(p, s);
    // Mostly no maximum grows. Where products come twice, the unit has so much to do that looking costs more than it saves.
    if (SPLIT || __any_sync(0xffffffffu, shrink[0] != 1 || shrink[1] != 1)) {
      KN_UNROLL for (uint i = 0; i < D / 2; ++i) o[i] *= shrink[i / 2 % 2];
    }
  }
  wgmma_bar_wait(full, place);
  wgmma_publish();
  attn_wgmma_values<D, SPLIT, K>(o, p, vs + place * ATTN_PANELS(D), 2);
  wgmma_wait<0>();
  wgmma_settle(o);
  const bool pairs = kn_aligned(out, 2 * (uint)sizeof(Q));
  KN_UNROLL for (uint r = 0; r < 2; ++r) {
    l[r] += kn_shfl_xor(l[r], 1);
    l[r] += kn_shfl_xor(l[r], 2);
    const float f = l[r] == 0 ? 0 : 1 / l[r];
    const uint query = a.first + t / 32 * 16 + lane / 4 + 8 * r;
    Q* to = out + a.q_at + query * a.q_stride;
    KN_UNROLL for (uint i = 0; i < D / 8; ++i) {
      const uint d = 8 * i + 2 * (lane % 4);
      const float x = o[4 * i + 2 * r] * f, y = o[4 * i + 2 * r + 1] * f;
      if (query < a.queries && d < a.dim) {
        if (pairs) {
          attn_store2(to + d, x, y);
        } else {
          to[d] = kn_from_f32<Q>(x);
          to[d + 1] = kn_from_f32<Q>(y);
        }
      }
    }
  }
}
#endif
