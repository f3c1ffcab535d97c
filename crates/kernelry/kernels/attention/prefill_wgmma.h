// The attention of attention/prefill_mma.h on Hopper: blocks of 128 queries, keys and values by tiles in two places each, of 128 keys where heads
// have up to 128 elements and of as many as find room where they have more.
//
// Two warpgroups of 64 queries issue their products in turns: the scores of the next tile, then the values of this one. While the unit adds up the
// values, the group computes the softmax of the next tile, and while it has nothing to multiply, the other group has. Weights go from the
// registers of the scores straight into the product. In threadgroup memory everything lies in panels of 64 elements (common/wgmma.h): the
// halves of the queries, keys by rows, and values by rows too, which the product reads with contiguous n. Copies of a tile arrive at one
// barrier of the block, groups that have used theirs up at another, and neither group waits for the other but there.
//
// A warpgroup has registers for the values of 256 elements of a head. Of wider heads a block takes 64 queries, and each group half of the elements;
// both compute all scores.
#include "common/wgmma.h"
#ifdef KN_WGMMA

// Queries of a block, and keys of a tile.
#define ATTN_QUERIES(D) ((D) <= 256 ? 128 : 64)
#define ATTN_TILE(D, SPLIT) ((D) <= 128 ? 128 : ((D) <= 256 ? 64 : 32) / ((SPLIT) ? 2 : 1))
// Bytes: panels of this many rows of a head of D elements; queries in one or two halves, and two tiles each of keys and of values.
#define ATTN_PANELS(D, ROWS) (((D) + 63) / 64 * (ROWS) * 128)
#define ATTN_WGMMA_BYTES(D, SPLIT) (ATTN_PANELS(D, ATTN_QUERIES(D)) * ((SPLIT) ? 2 : 1) + ATTN_PANELS(D, ATTN_TILE(D, SPLIT)) * 4)

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
// KEYS rows of keys or values from `row` on into a tile; rows from `end` on, and elements from `dim` on, are zeros.
template <uint D, uint KEYS, class K>
KN_FN void attn_wgmma_load(uint tile, const K* x, uint row, uint end, uint dim, uint t) {
  constexpr uint TURNS = KEYS * D / 2048, PANEL = KEYS * 128;
  uint r, c;
  attn_wgmma_piece<D>(t, 0, r, c);
  const K* from = x + ((ulong)row * dim + r * dim + 8 * c);
  if (row + KEYS <= end && dim == D) {
    KN_UNROLL for (uint i = 0; i < TURNS; ++i) {
      attn_wgmma_piece<D>(t, i, r, c);
      const K* at = 256 % (D / 8) == 0 ? from + i * (256 / (D / 8) * D) : x + ((ulong)row * D + r * D + 8 * c);
      asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(tile + c / 8 * PANEL + wgmma_place(r, c % 8)), "l"(at) : "memory");
    }
  } else {
    KN_NO_UNROLL for (uint i = 0; i < TURNS; ++i) {
      attn_wgmma_piece<D>(t, i, r, c);
      const bool some = row + r < end && 8 * c < dim;
      attn_wgmma_copy(tile + c / 8 * PANEL + wgmma_place(r, c % 8), x + (some ? (ulong)(row + r) * dim + 8 * c : 0ul), some ? 16u : 0u);
    }
  }
}

// The queries of the block, each scaled by a power of two as in attention/prefill_mma.h, into panels; SHARE threads a query.
template <uint D, bool SPLIT, class Q, class K>
KN_FN void attn_wgmma_queries(uchar* to, float* factor, KN_PRIVATE const Attn& a, const Q* q, uint t) {
  constexpr uint ROWS = ATTN_QUERIES(D), SHARE = 256 / ROWS;
  const uint row = t / SHARE, query = a.first + row, dim = query < a.queries ? a.dim : 0u;
  const Q* x = q + a.q_at + query * a.q_stride;
  const bool vector = kn_aligned(q, 16) && a.dim % 8 == 0;
  float shrink = 1;
  if (SPLIT) {
    float top = 0;
    for (uint d = 4 * (t % SHARE); d < dim; d += 4 * SHARE)
      KN_UNROLL for (uint e = 0; e < 4; ++e) top = kn_max(top, d + e < dim ? kn_abs(kn_to_f32(x[d + e])) : 0.0f);
    KN_UNROLL for (uint i = 1; i < SHARE; i *= 2) top = kn_max(top, kn_shfl_xor(top, i));
    const uint exponent = kn_min(kn_max(kn_bits(top) >> 23, 1u), 253u);
    shrink = kn_from_bits((254 - exponent) << 23);
    if (t % SHARE == 0) factor[row] = kn_from_bits(exponent << 23);
  }
  for (uint c = t % SHARE; c < D / 8; c += SHARE) {
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
    uchar* place = to + c / 8 * (ROWS * 128) + wgmma_place(row, c % 8);
    *(uint4*)place = kn_u4(hi[0], hi[1], hi[2], hi[3]);
    if (SPLIT) *(uint4*)(place + ATTN_PANELS(D, ROWS)) = kn_u4(lo[0], lo[1], lo[2], lo[3]);
  }
}

KN_FN void attn_store2(float* to, float x, float y) { *(float2*)to = kn_f2(x, y); }
template <class Q> KN_FN void attn_store2(Q* to, float x, float y) { *(uint*)to = kn_pack<Q>(x, y); }

// Scores of a tile of keys, issued.
template <uint D, uint KEYS, bool SPLIT, class K> KN_FN void attn_wgmma_scores(float (&s)[KEYS / 2], uint qs, uint ks) {
  constexpr uint PANEL = ATTN_QUERIES(D) * 8;  // in units of 16 bytes
  constexpr uint UNROLL = D <= 128 ? 2 : 1;    // the places of all panels of a wider head would take too many registers
  const ulong b = wgmma_rows(ks);
  wgmma_fence();
  KN_UNROLL for (uint h = 0; h < (SPLIT ? 2 : 1); ++h) {
    const ulong a = wgmma_rows(qs + h * ATTN_PANELS(D, ATTN_QUERIES(D)));
#pragma unroll UNROLL
    for (uint panel = 0; panel < (D + 63) / 64; ++panel)
      KN_UNROLL for (uint d = 0; d < 4 && 64 * panel + 16 * d < D; ++d)
        Wgmma<K, KEYS, 0>::ss(s, a + (panel * PANEL + 2 * d), b + (panel * (KEYS * 8) + 2 * d), h + panel + d != 0);
  }
  wgmma_commit();
}
// Turns of the two warpgroups: `turn` waits for the other's `pass`.
KN_FN void attn_turn(uint group) { wgmma_part_barrier(group + 1, 256); }
KN_FN void attn_pass(uint group) { asm volatile("bar.arrive %0, 256;" ::"r"(2 - group) : "memory"); }

// Weights times values, issued; the other group's turn comes before the last of it, lest the unit run dry in between.
template <uint OWN, uint KEYS, bool SPLIT, class K>
KN_FN void attn_wgmma_values(float (&o)[OWN / 2], const uint (&p)[SPLIT ? KEYS / 2 : KEYS / 4], uint vs, uint group) {
  wgmma_fence();
  KN_UNROLL for (uint j = 0; j < KEYS / 16; ++j) {
    KN_UNROLL for (uint h = 0; h < (SPLIT ? 2 : 1); ++h) {
      const uint i = KEYS / 4 * h + 4 * j;
      Wgmma<K, OWN, 1>::rs(o, p[i], p[i + 1], p[i + 2], p[i + 3], wgmma_columns(vs + j * 2048, KEYS * 128), 1);
    }
    if (j == KEYS / 16 * 5 / 8 && group < 2) attn_pass(group);
  }
  wgmma_commit();
}

// Scores to weights, in place, and what the rows were before shrinks by.
template <uint KEYS>
KN_FN void attn_wgmma_softmax(float (&s)[KEYS / 2], float (&m)[2], float (&l)[2], float (&shrink)[2], const float (&scale)[2], float softcap, bool edge,
                              int hi, int hi_step, int window, int key) {
  const float cap = softcap * ATTN_LOG2E;
  KN_UNROLL for (uint r = 0; r < 2; ++r) {
    float f = scale[r], top = ATTN_FLOOR;
    if (softcap > 0 || !(f > 0)) {
      KN_UNROLL for (uint i = 0; i < KEYS / 8; ++i)
        KN_UNROLL for (uint j = 4 * i + 2 * r; j < 4 * i + 2 * r + 2; ++j) {
          float x = s[j] * f;
          if (softcap > 0) x = cap - 2 * cap / (kn_exp2_fast(x) + 1);
          s[j] = x;
        }
      f = 1;
    }
    if (edge) {
      const int over = hi + (r ? hi_step : 0) - key, under = window > 0 ? over - window : -key;
      KN_UNROLL for (int i = 0; i < (int)KEYS / 8; ++i)
        KN_UNROLL for (int j = 0; j < 2; ++j)
          if (8 * i + j < under || 8 * i + j >= over) s[4 * i + 2 * r + j] = -KN_INF;
    }
    float top2 = ATTN_FLOOR;
    KN_UNROLL for (uint i = 0; i < KEYS / 8; ++i) {
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
    KN_UNROLL for (uint i = 0; i < KEYS / 8; ++i) {
      const uint j = 4 * i + 2 * r;
      s[j] = kn_exp2_fast(kn_fma(s[j], f, -top));
      s[j + 1] = kn_exp2_fast(kn_fma(s[j + 1], f, -top));
      sum += s[j];
      sum2 += s[j + 1];
    }
    l[r] = kn_fma(l[r], shrink[r], sum + sum2);
  }
}

template <uint KEYS, bool SPLIT, class K>
KN_FN void attn_wgmma_weights(uint (&p)[SPLIT ? KEYS / 2 : KEYS / 4], const float (&s)[KEYS / 2]) {
  KN_UNROLL for (uint j = 0; j < KEYS / 16; ++j)
    KN_UNROLL for (uint i = 0; i < 4; ++i) {
      const float x = s[8 * j + 4 * (i / 2) + 2 * (i % 2)], y = s[8 * j + 4 * (i / 2) + 2 * (i % 2) + 1];
      const uint w = kn_pack<K>(x, y);
      p[4 * j + i] = w;
      if (SPLIT) {
        const float2 h = kn_unpack<K>(w);
        p[(SPLIT ? KEYS / 4 : 0) + 4 * j + i] = kn_pack<K>(x - h.x, y - h.y);
      }
    }
}

// `smem` has ATTN_WGMMA_BYTES at a multiple of 1024 bytes, `shared` 1024 bytes.
template <uint D, bool SPLIT, class Q, class K>
KN_FN void attn_wgmma(KN_PRIVATE const Attn& a, const Q* q, const K* k, const K* v, Q* out, uchar* smem, float* shared, uint t) {
  constexpr uint KEYS = ATTN_TILE(D, SPLIT), PANELS = ATTN_PANELS(D, KEYS), ROWS = ATTN_QUERIES(D), OWN = D <= 256 ? D : D / 2;
  // One number for the whole warp, as the compiler sees it too.
  const uint lane = t % 32, group = kn_shfl(t / 128, 0u);
  // The first of the group's queries, in the block, and the thread's; and the first of its elements.
  const uint from = ROWS == 128 ? group * 64 : 0, mine = from + t % 128 / 32 * 16 + lane / 4, element = D == OWN ? 0 : group * OWN;
  const uint qs = wgmma_address(smem) + from * 128, ks = wgmma_address(smem) + (SPLIT ? 2 : 1) * ATTN_PANELS(D, ROWS);
  const uint vs = ks + 2 * PANELS, own_vs = vs + element / 64 * (KEYS * 128), first = a.first + from;
  uint begin, end, unused, full_lo, full_hi;
  attn_range(a, a.first, begin, unused);
  attn_range(a, a.first + ROWS - 1, unused, end);
  attn_range(a, first, unused, full_hi);
  attn_range(a, first + 63, full_lo, unused);
  begin = begin / KEYS * KEYS;
  const K *keys = k + a.kv_at, *values = v + a.kv_at;
  // Factors of the queries; and two barriers: the keys and values of a turn have come, and those of the one before are used up.
  float* factor = shared;
  ulong *full = (ulong*)(shared + 128), *empty = full + 1;
  if (t == 0) {
    wgmma_bar_init(full, 256);
    wgmma_bar_init(empty, 8);
  }
  attn_wgmma_load<D, KEYS>(ks, keys, begin, end, a.dim, t);
  kn_async_commit();
  attn_wgmma_load<D, KEYS>(vs, values, begin, end, a.dim, t);
  if (begin + KEYS < end) attn_wgmma_load<D, KEYS>(ks + PANELS, keys, begin + KEYS, end, a.dim, t);
  kn_async_commit();
  attn_wgmma_queries<D, SPLIT, Q, K>(smem, factor, a, q, t);
  kn_async_wait<1>();
  wgmma_publish();
  kn_barrier();
  wgmma_bar_arrive_copies(full);

  float scale[2], m[2], l[2], shrink[2];
  KN_UNROLL for (uint r = 0; r < 2; ++r) {
    m[r] = ATTN_FLOOR;
    l[r] = 0;
    scale[r] = a.scale * (SPLIT ? factor[mine + 8 * r] : 1.0f) * (a.softcap > 0 ? 2 * ATTN_LOG2E / a.softcap : ATTN_LOG2E);
  }
  // Columns are counted from the lane's first. Queries from `queries` on attend what they like.
  const int hi = (int)(a.causal ? a.keys + a.first + mine + 1 - a.queries : a.keys) - (int)(2 * (lane % 4)), hi_step = a.causal ? 8 : 0;
  float o[OWN / 2], s[KEYS / 2];
  uint p[SPLIT ? KEYS / 2 : KEYS / 4];
  KN_UNROLL for (uint i = 0; i < OWN / 2; ++i) o[i] = 0;
  attn_wgmma_scores<D, KEYS, SPLIT, K>(s, qs, ks);
  wgmma_wait<0>();
  wgmma_settle(s);
  if (lane == 0) wgmma_bar_arrive(empty);
  attn_wgmma_softmax<KEYS>(s, m, l, shrink, scale, a.softcap, begin + KEYS > full_hi || begin < full_lo, hi, hi_step, a.window, begin);
  attn_wgmma_weights<KEYS, SPLIT, K>(p, s);
  if (group == 1) attn_pass(1);
  uint place = 0;
  KN_NO_UNROLL for (uint key = begin; key + KEYS < end; key += KEYS, place ^= 1) {
    wgmma_bar_wait(full, place);
    wgmma_publish();
    attn_turn(group);
    attn_wgmma_scores<D, KEYS, SPLIT, K>(s, qs, ks + (place ^ 1) * PANELS);
    attn_wgmma_values<OWN, KEYS, SPLIT, K>(o, p, own_vs + place * PANELS, group);
    // The keys of this tile and the values of the one before are used up, by both groups once these have come to here.
    wgmma_bar_wait(empty, place);
    attn_wgmma_load<D, KEYS>(vs + (place ^ 1) * PANELS, values, key + KEYS, end, a.dim, t);
    if (key + 2 * KEYS < end) attn_wgmma_load<D, KEYS>(ks + place * PANELS, keys, key + 2 * KEYS, end, a.dim, t);
    wgmma_bar_arrive_copies(full);
    wgmma_wait<1>();
    wgmma_settle(s);
    attn_wgmma_softmax<KEYS>(s, m, l, shrink, scale, a.softcap, key + 2 * KEYS > full_hi || key + KEYS < full_lo, hi, hi_step, a.window, key + KEYS);
    // Lest the compiler put it off until the unit is done.
    wgmma_settle(s);
    wgmma_wait<0>();
    wgmma_settle(o);
    if (lane == 0) wgmma_bar_arrive(empty);
    attn_wgmma_weights<KEYS, SPLIT, K>(p, s);
    // Mostly no maximum grows. Where products come twice and heads are narrow, the unit has so much to do that looking costs more than it saves.
    if ((SPLIT && D <= 128) || __any_sync(0xffffffffu, shrink[0] != 1 || shrink[1] != 1)) {
      KN_UNROLL for (uint i = 0; i < OWN / 2; ++i) o[i] *= shrink[i / 2 % 2];
    }
  }
  wgmma_bar_wait(full, place);
  wgmma_publish();
  attn_wgmma_values<OWN, KEYS, SPLIT, K>(o, p, own_vs + place * PANELS, 2);
  wgmma_wait<0>();
  wgmma_settle(o);
  const bool pairs = kn_aligned(out, 2 * (uint)sizeof(Q));
  KN_UNROLL for (uint r = 0; r < 2; ++r) {
    l[r] += kn_shfl_xor(l[r], 1);
    l[r] += kn_shfl_xor(l[r], 2);
    const float f = l[r] == 0 ? 0 : 1 / l[r];
    const uint query = a.first + mine + 8 * r;
    Q* to = out + a.q_at + query * a.q_stride;
    KN_UNROLL for (uint i = 0; i < OWN / 8; ++i) {
      const uint d = element + 8 * i + 2 * (lane % 4);
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
