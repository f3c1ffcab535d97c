#include "common/wgmma.h"
#include "matmul/tile.h"
// Products of many rows with a matrix of 16-bit values on Hopper's matrix unit: y[m, n] = sum_k x[m, k] w[n, k], inputs rounded to the type of the
// weights, sums in f32.
//
// Two blocks work as a pair on the same 128 input rows, each on N weight rows of its own. In a block, two warpgroups multiply 64 rows each, and a third
// brings the operands, 64 k at a time, into a ring of stages: it copies the weights of the block, and of the rows it reads half as many as are
// multiplied, for the two blocks: rounded to 16 bits they go into its own memory and from there to the other block, in one copy. That halves
// what a block reads of f32 inputs, which would else be half of all that it reads, and reading is what limits the product.
//
// Where inputs are rounded to f16 with RANGE, each row is multiplied by a power of two as in tile.h: 2^126 at first, which is right for zeros alone or
// the smallest of numbers; a value that becomes infinite makes the warp look at its rows of this stage again and set their factors anew, and
// the stage says by what the sums so far are to be multiplied.
#ifdef KN_WGMMA

#define DENSE_THREADS 384
#define DENSE_UNSEEN 0x1p126f
// Half of the input rows of a stage: a panel, then what the sums of a row are multiplied by before, its factor, and a flag for each warp that set any.
#define DENSE_HALF 9216u
#define DENSE_SENT(RANGE) ((RANGE) ? 8192u + 64 * 8 + 16 : 8192u)
#define DENSE_STAGE(N) ((N) * 128 + 2 * DENSE_HALF)
#define DENSE_RING 221184u
#define DENSE_STAGES(N) (DENSE_RING / DENSE_STAGE(N))
#define DENSE_MOST_STAGES 8u
// 1023 of the bytes to begin at a multiple of 1024, and barriers.
#define DENSE_BYTES (2048 + DENSE_RING)

struct DenseShape {
  uint m, n, k, batches;
  ulong x_row, x_batch;          // elements from row to row, and from input to input
  uint ne12, ne02, r2, r3;       // input z has matrix z % ne12 / r2 + z / ne12 / r3 * ne02
};

// Four f32 as four values of type T, and whether any became infinite (`bad` becomes NaN).
template <class T> KN_FN uint2 dense_round(float4 v, float s, uint& bad);
template <> KN_FN uint2 dense_round<kn_f16>(float4 v, float s, uint& bad) {
  const uint2 r = kn_u2(wgmma_pack(v.x * s, v.y * s), wgmma_pack(v.z * s, v.w * s));
  bad = kn_fma_h2(r.x, 0, kn_fma_h2(r.y, 0, bad));
  return r;
}
template <> KN_FN uint2 dense_round<kn_bf16>(float4 v, float, uint&) {
  uint2 r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r.x) : "f"(v.y), "f"(v.x));
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r.y) : "f"(v.w), "f"(v.z));
  return r;
}
KN_FN float4 dense_f32(uint4 v) { return kn_f4(kn_from_bits(v.x), kn_from_bits(v.y), kn_from_bits(v.z), kn_from_bits(v.w)); }

struct DenseBarriers {
  ulong weights[DENSE_MOST_STAGES], own[DENSE_MOST_STAGES], sent[DENSE_MOST_STAGES];  // arrived: weights, own half of the rows, the other half
  ulong weights_free[DENSE_MOST_STAGES], rows_free[DENSE_MOST_STAGES];  // used up; own half of the rows by both blocks
};

// The warpgroup that brings operands.
template <class T, uint N, bool RANGE, class X> struct DenseLoader {
  enum { WIDE = sizeof(X) == 4, ACROSS = WIDE ? 16 : 8, ROWS = 128 / ACROSS, TURNS = 64 / ROWS };
  uchar* stage;
  DenseBarriers* bars;
  uint rank, t, lane;

  // 16 bytes each of this thread's rows.
  static KN_FN void load(uint4 (&v)[TURNS], const X* x, ulong x_row, uint row, uint last, uint step) {
    KN_UNROLL for (uint i = 0; i < TURNS; ++i) v[i] = kn_load16(x + (kn_min(row + ROWS * i, last) * x_row + 64 * step));
  }

  KN_FN void tile(const T* w, const X* x, KN_PARAMS const DenseShape& d, uint m0, uint n0, uint& slot, uint& parity) {
    const uint steps = d.k / 64, row = m0 + 64 * rank + t / ACROSS, last = d.m - 1;
    const uint place = WIDE ? wgmma_place(t / 16, t % 16 / 2) + 8 * (t % 2) : wgmma_place(t / 8, t % 8);
    const uint own = N * 128 + rank * DENSE_HALF;
    w += 8 * (t % 8);
    x += (WIDE ? 4 : 8) * (t % ACROSS);
    uint4 v[TURNS];
    float scale[TURNS];
    KN_UNROLL for (uint i = 0; i < TURNS; ++i) scale[i] = RANGE ? DENSE_UNSEEN : 1.0f;
    load(v, x, d.x_row, row, last, 0);
    KN_NO_UNROLL for (uint step = 0; step < steps; ++step) {
      uchar* to = stage + slot * DENSE_STAGE(N);
      wgmma_bar_wait(bars->weights_free + slot, parity ^ 1);
      const uint panel = wgmma_address(to) + wgmma_place(t / 8, t % 8);
      KN_UNROLL for (uint i = 0; i < N / 16; ++i) {
        const T* from = w + ((ulong)kn_min(n0 + t / 8 + 16 * i, d.n - 1) * d.k + 64 * step);
        asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(panel + 2048 * i), "l"(from) : "memory");
      }
      wgmma_bar_arrive_copies(bars->weights + slot);

      uint bad = 0;
      if (WIDE) {
        KN_UNROLL for (uint i = 0; i < TURNS; ++i) {
          const uint2 r = dense_round<T>(dense_f32(v[i]), scale[i], bad);
          v[i].x = r.x;
          v[i].y = r.y;
        }
      }
      uint4 now[TURNS];
      KN_UNROLL for (uint i = 0; i < TURNS; ++i) now[i] = v[i];
      if (step + 1 < steps) load(v, x, d.x_row, row, last, step + 1);
      wgmma_bar_wait(bars->rows_free + slot, parity ^ 1);
      uchar* half = to + own;
      if (RANGE) {
        bool again = step == 0 || (bad & 0x7fff7fffu) != 0, changed = false;
        if (__any_sync(0xffffffffu, again)) {
          KN_UNROLL for (uint i = 0; i < TURNS; ++i) {
            const float4 u = dense_f32(kn_load16(x + (kn_min(row + ROWS * i, last) * d.x_row + 64 * step)));
            const float e[4] = {kn_abs(u.x), kn_abs(u.y), kn_abs(u.z), kn_abs(u.w)};
            float big = 0, by = 1;
            KN_UNROLL for (uint j = 0; j < 4; ++j) big = e[j] < KN_INF ? kn_max(big, e[j]) : big;
            KN_UNROLL for (uint j = 1; j < 16; j *= 2) big = kn_max(big, kn_shfl_xor(big, j));
            if (big * scale[i] > 32768.0f) {
              const float fresh = tile_scale(big);
              by = fresh * tile_inverse(scale[i]);
              scale[i] = fresh;
              changed = step != 0;
            }
            if (t % 16 == 0) ((float*)(half + 8192))[t / 16 + 8 * i] = by;
            const uint2 r = dense_round<T>(u, scale[i], bad);
            now[i].x = r.x;
            now[i].y = r.y;
          }
          changed = __any_sync(0xffffffffu, changed);
        }
        if (lane == 0) ((uint*)(half + 8192 + 512))[t / 32] = changed;
        if (step + 1 == steps && t % 16 == 0) {
          KN_UNROLL for (uint i = 0; i < TURNS; ++i) ((float*)(half + 8192 + 256))[t / 16 + 8 * i] = scale[i];
        }
      }
      KN_UNROLL for (uint i = 0; i < TURNS; ++i) {
        if (WIDE) {
          *(uint2*)(half + place + 1024 * i) = kn_u2(now[i].x, now[i].y);
        } else {
          *(uint4*)(half + place + 2048 * i) = now[i];
        }
      }
      wgmma_publish();
      wgmma_part_barrier(1, 128);
      if (t == 0) {
        wgmma_bar_arrive(bars->own + slot);
        wgmma_bar_expect(bars->sent + slot, DENSE_SENT(RANGE));
        wgmma_send(half, DENSE_SENT(RANGE), bars->sent + slot, rank ^ 1);
      }
      if (++slot == DENSE_STAGES(N)) {
        slot = 0;
        parity ^= 1;
      }
    }
  }
};

// A warpgroup that multiplies: 64 rows by N columns.
template <class T, uint N, bool RANGE> struct DenseMultiplier {
  uchar* stage;
  DenseBarriers* bars;
  ulong* rows;  // the barrier of its half of the rows
  uint group, lane, warp;

  KN_FN void release(uint slot) {
    if (lane == 0) {
      wgmma_bar_arrive(bars->weights_free + slot);
      wgmma_bar_arrive_there(bars->rows_free + slot, group);
    }
  }

  template <class Y> KN_FN void tile(Y* y, KN_PARAMS const DenseShape& d, uint m0, uint n0, uint& slot, uint& parity) {
    const uint steps = d.k / 64, r = 16 * (warp % 4) + lane / 4;
    float acc[N / 2];
    KN_UNROLL for (uint j = 0; j < N / 2; ++j) acc[j] = 0;
    uint before = 0;
    KN_NO_UNROLL for (uint step = 0; step < steps; ++step) {
      const uchar* at = stage + slot * DENSE_STAGE(N);
      const uchar* half = at + N * 128 + group * DENSE_HALF;
      wgmma_bar_wait(bars->weights + slot, parity);
      wgmma_bar_wait(rows + slot, parity);
      wgmma_publish();
      if (RANGE) {
        const uint4 flags = *(const uint4*)(half + 8192 + 512);
        if (flags.x | flags.y | flags.z | flags.w) {
          const bool mine = ((const uint*)(half + 8192 + 512))[lane / 8] != 0;
          const float* by = (const float*)(half + 8192);
          const float b0 = mine ? by[r] : 1.0f, b1 = mine ? by[r + 8] : 1.0f;
          wgmma_wait<0>();
          wgmma_settle(acc);
          KN_UNROLL for (uint j = 0; j < N / 2; ++j) acc[j] *= j % 4 < 2 ? b0 : b1;
        }
      }
      const ulong a = wgmma_rows(wgmma_address(half)), b = wgmma_rows(wgmma_address(at));
      wgmma_fence();
      KN_UNROLL for (uint kk = 0; kk < 4; ++kk) Wgmma<T, N, 0>::ss(acc, a + 2 * kk, b + 2 * kk, 1);
      wgmma_commit();
      wgmma_wait<1>();
      if (step) release(before);
      before = slot;
      if (++slot == DENSE_STAGES(N)) {
        slot = 0;
        parity ^= 1;
      }
    }
    wgmma_wait<0>();
    wgmma_settle(acc);
    float f[2] = {1, 1};
    if (RANGE) {
      const float* scale = (const float*)(stage + before * DENSE_STAGE(N) + N * 128 + group * DENSE_HALF + 8192 + 256);
      f[0] = tile_inverse(scale[r]);
      f[1] = tile_inverse(scale[r + 8]);
      kn_warp_sync();
    }
    release(before);

    // Two neighbouring lanes exchange, so that each has four values of a row.
    const uint odd = lane % 2, col = n0 + 8 * odd + 2 * (lane % 4 - odd);
    const bool whole = d.n % 4 == 0 && kn_aligned(y, 4 * sizeof(Y));
    KN_UNROLL for (uint e = 0; e < 2; ++e) {
      const uint row = m0 + 64 * group + r + 8 * e;
      Y* to = y + (ulong)row * d.n;
      KN_UNROLL for (uint j = 0; j < N / 16; ++j) {
        float* a = acc + 8 * j + 2 * e;
        if (whole) {
          const float c0 = kn_shfl_xor(odd ? a[0] : a[4], 1), c1 = kn_shfl_xor(odd ? a[1] : a[5], 1);
          const float4 v = odd ? kn_f4(c0 * f[e], c1 * f[e], a[4] * f[e], a[5] * f[e]) : kn_f4(a[0] * f[e], a[1] * f[e], c0 * f[e], c1 * f[e]);
          if (row < d.m && col + 16 * j < d.n) kn_store4(to + (col + 16 * j), v);
        } else if (row < d.m) {
          KN_UNROLL for (uint h = 0; h < 2; ++h) {
            const uint c = n0 + 16 * j + 8 * h + 2 * (lane % 4);
            if (c < d.n) tile_store<Y>(to + c, a[4 * h] * f[e], a[4 * h + 1] * f[e], d.n - c, false);
          }
        }
      }
    }
  }
};

// Pairs of blocks take pairs of tiles: at one time they are at work on eight tiles of rows, column by column, and share what they read.
template <class T, uint N, bool RANGE, class X, class Y>
KN_FN void dense_pairs(const T* w, const X* x, Y* y, KN_PARAMS const DenseShape& d, uchar* shared, uint tid, uint pair, uint pairs) {
  uchar* base = shared + (0u - wgmma_address(shared) & 1023u);
  DenseBarriers* bars = (DenseBarriers*)base;
  uchar* stage = base + 1024;
  const uint rank = wgmma_rank(), warp = tid / 32, group = tid / 128, lane = tid % 32;
  if (tid == 0) {
    KN_UNROLL for (uint i = 0; i < DENSE_STAGES(N); ++i) {
      wgmma_bar_init(bars->weights + i, 128);
      wgmma_bar_init(bars->own + i, 1);
      wgmma_bar_init(bars->sent + i, 1);
      wgmma_bar_init(bars->weights_free + i, 8);
      wgmma_bar_init(bars->rows_free + i, 8);
    }
  }
  wgmma_pair_ready();
  const uint down = kn_cdiv(d.m, 128), along = kn_cdiv(kn_cdiv(d.n, N), 2), each = down * along;
  uint slot = 0, parity = 0;
  KN_NO_UNROLL for (uint i = pair; i < each * d.batches; i += pairs) {
    const uint z = i / each, in = i % each, first = in / (8 * along) * 8, high = kn_min(down - first, 8u);
    const uint m0 = (first + in % (8 * along) % high) * 128, n0 = (2 * (in % (8 * along) / high) + rank) * N;
    if (group == 2) {
      DenseLoader<T, N, RANGE, X> loader = {stage, bars, rank, tid % 128, lane};
      const ulong matrix = z % d.ne12 / d.r2 + (ulong)(z / d.ne12 / d.r3) * d.ne02;
      loader.tile(w + matrix * d.n * d.k, x + z * d.x_batch, d, m0, n0, slot, parity);
    } else {
      DenseMultiplier<T, N, RANGE> multiplier = {stage, bars, group == rank ? bars->own : bars->sent, group, lane, warp};
      multiplier.tile(y + (ulong)z * d.m * d.n, d, m0, n0, slot, parity);
    }
  }
  // A block's memory lives as long as the other may reach for it: until it has used up all rows.
  if (group == 2) {
    KN_NO_UNROLL for (uint i = 0; i < DENSE_STAGES(N); ++i) {
      wgmma_bar_wait(bars->rows_free + slot, parity ^ 1);
      if (++slot == DENSE_STAGES(N)) {
        slot = 0;
        parity ^= 1;
      }
    }
  }
}

// Of the widths of a tile the one with which the multiprocessors, two to a pair, are done first; 32 columns are what a tile costs besides.
#define DENSE_UNITS 66
KN_FN uint dense_cost(KN_PARAMS const DenseShape& d, uint width) {
  return kn_cdiv(kn_cdiv(d.m, 128) * kn_cdiv(kn_cdiv(d.n, width), 2) * d.batches, DENSE_UNITS) * (width + 32);
}
template <class T, bool RANGE, class X, class Y>
KN_FN void dense_wgmma(const T* w, const X* x, Y* y, KN_PARAMS const DenseShape& d, uchar* shared, uint tid, uint pair, uint pairs) {
  const uint c256 = dense_cost(d, 256), c224 = dense_cost(d, 224), c192 = dense_cost(d, 192), c128 = dense_cost(d, 128);
  const uint least = kn_min(kn_min(c256, c224), kn_min(c192, c128));
  if (c256 == least) {
    dense_pairs<T, 256, RANGE>(w, x, y, d, shared, tid, pair, pairs);
  } else if (c224 == least) {
    dense_pairs<T, 224, RANGE>(w, x, y, d, shared, tid, pair, pairs);
  } else if (c192 == least) {
    dense_pairs<T, 192, RANGE>(w, x, y, d, shared, tid, pair, pairs);
  } else {
    dense_pairs<T, 128, RANGE>(w, x, y, d, shared, tid, pair, pairs);
  }
}

// Whether pieces of 16 bytes lie at multiples of 16. Few rows are better off with the small tiles of tile.h.
template <class T, class X> KN_FN bool dense_suits(const T* w, const X* x, KN_PARAMS const DenseShape& d) {
  const uint piece = 16 / sizeof(X);
  return d.m > 64 && d.k % 64 == 0 && kn_aligned(w, 16) && kn_aligned(x, 16) && d.x_row % piece == 0 && d.x_batch % piece == 0;
}
#define DENSE_LAUNCH(NAME)              \
  KN_DYNAMIC_SHARED(NAME, DENSE_BYTES); \
  KN_CLUSTERS(NAME, DENSE_THREADS, 2)
// The product, where it suits the operands; else what follows, for which 256 threads stay.
#define DENSE_WGMMA(T, RANGE)                                                                                       \
  if (dense_suits(w, x, shape)) {                                                                                   \
    const uint block = KN_GROUP_Y * KN_GROUPS_X + KN_GROUP_X, blocks = KN_GROUPS_X * KN_GROUPS_Y;                   \
    dense_wgmma<T, RANGE>(w, x, y, shape, kn_dynamic_shared, KN_THREAD_X, block / 2, blocks / 2);                   \
    return;                                                                                                         \
  }                                                                                                                 \
  if (KN_THREAD_X >= 256) return;
#endif
