#include "common/wgmma.h"
#include "matmul/tile.h"
// Products of many rows with a matrix of 16-bit values on Hopper's matrix unit: y[m, n] = sum_k x[m, k] w[n, k], inputs rounded to the type of the
// weights, sums in f32.
//
// Two kernels, of which the first prepares scratch memory for the second. It rounds f32 inputs, with RANGE each row times a power of two that puts
// its largest value at 2^14, and lays them out in panels of 64 rows by 64 k as the matrix unit wants them in threadgroup memory. And it tells
// the copy engine of the weights, and of inputs that have 16 bits as they are. So the second has nothing to do with what it reads.
//
// There, two blocks work as a pair on two tiles of 128 rows and the same N columns, or on one of 128 rows and 2 N columns: what they share, each
// fetches half of, for both. In a block, two warpgroups multiply 64 rows each, and one thread asks for the operands, 64 k at a time, in a ring
// of stages. There are as many blocks as multiprocessors, and each goes on to its next tile while the results of the last are on their way.
#ifdef KN_WGMMA

#define DENSE_THREADS 384
#define DENSE_STAGE(N) ((N) * 128 + 16384)
#define DENSE_RING 230400u
#define DENSE_STAGES(N) (DENSE_RING / DENSE_STAGE(N))
#define DENSE_MOST_STAGES 8u
// 1023 of the bytes to begin at a multiple of 1024, and barriers.
#define DENSE_BYTES (1024 + 256 + DENSE_RING)

struct DenseShape {
  uint m, n, k, batches;
  ulong x_row, x_batch;          // elements from row to row, and from input to input
  uint ne12, ne02, r2, r3;       // input z has matrix z % ne12 / r2 + z / ne12 / r3 * ne02
};
KN_FN uint dense_matrix(KN_PARAMS const DenseShape& d, uint z) { return z % d.ne12 / d.r2 + z / d.ne12 / d.r3 * d.ne02; }

// Scratch memory: maps of the weights and of 16-bit inputs, and counts of finished parts; sums of parts; and of rounded inputs the panels, tile of
// rows by tile of rows, two for each 64 k of one, and then what the sums of each row are to be multiplied by.
#define DENSE_COUNTS 256u
#define DENSE_MOST_COUNTS 192u
#define DENSE_PARTS 1024u
#define DENSE_PART_BYTES 65536u
KN_FN ulong dense_tile_bytes(KN_PARAMS const DenseShape& d) { return 256ul * d.k; }
// Tiles of 128 by 128; where there are few, room for the sums of all parts that many multiprocessors make of them.
#define DENSE_FEW 96u
KN_FN uchar* dense_inputs(uchar* scratch, KN_PARAMS const DenseShape& d) {
  const ulong tiles = (ulong)kn_cdiv(d.m, 128) * kn_cdiv(d.n, 128) * d.batches;
  return scratch + DENSE_PARTS + (tiles <= DENSE_FEW ? 2 * DENSE_FEW * DENSE_PART_BYTES : 0u);
}
KN_FN float* dense_factors(uchar* scratch, KN_PARAMS const DenseShape& d) {
  return (float*)(dense_inputs(scratch, d) + (ulong)kn_cdiv(d.m, 128) * d.batches * dense_tile_bytes(d));
}

// Pairs of tiles of this width, one above the other (`high`) or side by side.
KN_FN uint dense_count(KN_PARAMS const DenseShape& d, uint width, bool high) {
  const uint down = kn_cdiv(d.m, 128), along = kn_cdiv(d.n, width);
  return (high ? kn_cdiv(down, 2) * along : down * kn_cdiv(along, 2)) * d.batches;
}
KN_FN bool dense_high(KN_PARAMS const DenseShape& d, uint width) { return dense_count(d, width, true) <= dense_count(d, width, false); }
KN_FN uint dense_cost(KN_PARAMS const DenseShape& d, uint width, uint pairs) {
  return kn_cdiv(dense_count(d, width, dense_high(d, width)), pairs) * (width + 16);
}
// Of the widths of a tile the one with which so many pairs of blocks are done first; 16 columns are what a tile costs besides.
KN_FN uint dense_width(KN_PARAMS const DenseShape& d, uint pairs) {
  uint width = 256, least = dense_cost(d, 256, pairs);
  const uint others[3] = {224, 192, 128};
  KN_UNROLL for (uint i = 0; i < 3; ++i) {
    const uint cost = dense_cost(d, others[i], pairs);
    if (cost < least) {
      least = cost;
      width = others[i];
    }
  }
  return width;
}

// Into how many parts k is cut, so that as many pairs of blocks as there are have something to do. A tile is 128 columns wide then.
KN_FN uint dense_parts(KN_PARAMS const DenseShape& d, uint width, uint pairs) {
  const uint count = dense_count(d, width, dense_high(d, width));
  uint parts = 1;
  while (width == 128 && 2 * parts * count <= kn_min(pairs, DENSE_FEW) && 16 * parts <= d.k / 64 && 4 * count <= DENSE_MOST_COUNTS) parts *= 2;
  return parts;
}

// The first kernel rounds rows. A block holds two slices of a piece of eight values a thread: of two rows, or of one that is longer, in which it
// then goes on by two slices.
#define DENSE_PREPARERS 256u
#define DENSE_PREPARE_WARPS 8u
#define DENSE_PREPARE_BLOCKS 6
template <class T, bool RANGE>
KN_FN void dense_rows(const float* x, uchar* scratch, KN_PARAMS const DenseShape& d, float* most, uint tid, uint block, uint blocks) {
  const uint pieces = d.k / 8, rows = d.m * d.batches, tiles = kn_cdiv(d.m, 128), lane = tid % 32;
  const uint both = pieces <= DENSE_PREPARERS ? 0 : 1, step = (1 + both) * DENSE_PREPARERS;
  // Where the factor must be known and the row is longer than what threads hold, it is read twice.
  const uint rounds = RANGE && pieces > step ? 2 : 1;
  KN_NO_UNROLL for (uint first = block * (2 - both); first < rows; first += blocks * (2 - both)) {
    float scale[2] = {1, 1}, big[2] = {0, 0};
    KN_NO_UNROLL for (uint round = 0; round < rounds; ++round) {
      KN_NO_UNROLL for (uint base = 0; base < pieces; base += step) {
        float4 v[4];
        KN_UNROLL for (uint i = 0; i < 2; ++i) {
          const uint r = both ? first : first + i, at = base + both * i * DENSE_PREPARERS + tid;
          v[2 * i] = v[2 * i + 1] = kn_f4(0, 0, 0, 0);
          if (r < rows && at < pieces) {
            const float* from = x + (r / d.m * d.x_batch + r % d.m * d.x_row + 8 * at);
            v[2 * i] = kn_load4(from);
            v[2 * i + 1] = kn_load4(from + 4);
          }
        }
        if (RANGE && round == 0) {
          KN_UNROLL for (uint i = 0; i < 4; ++i) {
            const float e[4] = {kn_abs(v[i].x), kn_abs(v[i].y), kn_abs(v[i].z), kn_abs(v[i].w)};
            KN_UNROLL for (uint j = 0; j < 4; ++j) big[i / 2] = e[j] < KN_INF ? kn_max(big[i / 2], e[j]) : big[i / 2];
          }
          if (base + step >= pieces) {
            kn_barrier();
            KN_UNROLL for (uint i = 0; i < 2; ++i) {
              const uint b = kn_warp_max(kn_bits(big[i]));
              if (lane == 0) most[DENSE_PREPARE_WARPS * i + tid / 32] = kn_from_bits(b);
            }
            kn_barrier();
            KN_UNROLL for (uint i = 0; i < 2; ++i) {
              const uint of = both ? lane % (2 * DENSE_PREPARE_WARPS) : DENSE_PREPARE_WARPS * i + lane % DENSE_PREPARE_WARPS;
              const uint exponent = kn_warp_max(kn_bits(most[of])) >> 23, r = first + i;
              scale[i] = kn_from_bits(kn_min(254 + 14 - exponent, 253u) << 23);
              if (tid == i && r < rows && i + both < 2) dense_factors(scratch, d)[r / d.m * tiles * 128 + r % d.m] = tile_inverse(scale[i]);
            }
          }
        }
        if (round + 1 < rounds) continue;
        KN_UNROLL for (uint i = 0; i < 2; ++i) {
          const uint r = both ? first : first + i, at = base + both * i * DENSE_PREPARERS + tid, in = r % d.m;
          const float4 a = v[2 * i], b = v[2 * i + 1];
          const float s = scale[i];
          if (r < rows && at < pieces) {
            uchar* tile = dense_inputs(scratch, d) + (r / d.m * tiles + in / 128) * dense_tile_bytes(d);
            kn_store16(tile + (at / 8 * 16384 + in % 128 / 64 * 8192 + wgmma_place(in % 64, at % 8)),
                       kn_u4(kn_pack<T>(a.x * s, a.y * s), kn_pack<T>(a.z * s, a.w * s), kn_pack<T>(b.x * s, b.y * s),
                             kn_pack<T>(b.z * s, b.w * s)));
          }
        }
      }
    }
  }
}

// What the first kernel does for each type of inputs, beyond the map of the weights.
template <class T, bool RANGE, class X> struct DensePrepare;
template <class T, bool RANGE> struct DensePrepare<T, RANGE, float> {
  static KN_FN void inputs(const float* x, uchar* scratch, KN_PARAMS const DenseShape& d, uint*, float* most, uint tid, uint block, uint blocks) {
    dense_rows<T, RANGE>(x, scratch, d, most, tid, block, blocks);
  }
};
template <class T> struct DensePrepare<T, false, T> {
  static KN_FN void inputs(const T* x, uchar* scratch, KN_PARAMS const DenseShape& d, uint* by_way, float*, uint tid, uint block, uint) {
    if (block == 0 && tid / 32 == 1) wgmma_map(scratch + 128, x, d.m, d.k, 64, by_way + 32, tid % 32);
  }
};
template <class T, bool RANGE, class X>
KN_FN void dense_prepare(const T* w, const X* x, uchar* scratch, KN_PARAMS const DenseShape& d, uint* by_way, float* most, uint tid, uint block,
                         uint blocks, uint pairs) {
  if (block == 0 && tid / 32 == 0) {
    const uint matrices = dense_matrix(d, d.batches - 1) + 1;
    wgmma_map(scratch, w, matrices * d.n, d.k, dense_width(d, pairs) / 2, by_way, tid % 32);
  }
  if (block == 0 && tid < DENSE_MOST_COUNTS) ((uint*)(scratch + DENSE_COUNTS))[tid] = 0;
  DensePrepare<T, RANGE, X>::inputs(x, scratch, d, by_way, most, tid, block, blocks);
}

struct DenseBarriers {
  ulong full[DENSE_MOST_STAGES], free[DENSE_MOST_STAGES];
  uint others[2];  // parts of a tile that were finished before, for each group
};

// The tile of a block. Pairs at work at one time are at work on sixteen tiles of rows, column by column, and share what they read.
KN_FN void dense_place(KN_PARAMS const DenseShape& d, uint width, bool high, uint rank, uint i, uint& z, uint& tile, uint& n0) {
  const uint down = high ? kn_cdiv(d.m, 256) : kn_cdiv(d.m, 128), along = kn_cdiv(d.n, high ? width : 2 * width), each = down * along;
  const uint rows = high ? 8 : 16, in = i % each, first = in / (rows * along) * rows, most = kn_min(down - first, rows);
  const uint row = first + in % (rows * along) % most, col = in % (rows * along) / most;
  z = i / each;
  tile = high ? 2 * row + rank : row;
  n0 = (high ? col : 2 * col + rank) * width;
}

// The first step of a part.
KN_FN uint dense_begin(KN_PARAMS const DenseShape& d, uint part, uint parts) { return d.k / 64 * part / parts; }

// The thread that fetches: a stage has two panels of inputs, and then those of N weight rows.
template <uint N, bool PANELS> struct DenseFetcher {
  const uchar* scratch;
  uchar* stage;
  DenseBarriers* bars;
  uint rank;

  // Steps `first` to `last` of a tile.
  KN_FN void tile(KN_PARAMS const DenseShape& d, uint z, uint tile, uint n0, bool high, uint first, uint last, uint& slot, uint& parity) {
    const uint w0 = dense_matrix(d, z) * d.n + n0, tiles = kn_cdiv(d.m, 128), half = rank * (N / 2);
    // A pair's second tile of rows may lie beyond the last.
    const uint rows = kn_min(tile, tiles - 1);
    const uchar* panels = dense_inputs((uchar*)scratch, d) + (z * tiles + rows) * dense_tile_bytes(d) + first * 16384;
    KN_NO_UNROLL for (uint step = first; step < last; ++step) {
      const uint to = wgmma_address(stage) + slot * DENSE_STAGE(N);
      ulong* bar = bars->full + slot;
      wgmma_bar_wait(bars->free + slot, parity ^ 1);
      wgmma_bar_expect(bar, DENSE_STAGE(N));
      if (high) {
        if (PANELS) {
          wgmma_fetch(to, panels, 16384, bar);
        } else {
          wgmma_fetch_panel(to, scratch + 128, rows * 128, 64 * step, bar);
          wgmma_fetch_panel(to + 8192, scratch + 128, rows * 128 + 64, 64 * step, bar);
        }
        wgmma_fetch_panel_pair(to + 16384 + half * 128, scratch, w0 + half, 64 * step, bar);
      } else {
        if (PANELS) {
          wgmma_fetch_pair(to + rank * 8192, panels + rank * 8192, 8192, bar);
        } else {
          wgmma_fetch_panel_pair(to + rank * 8192, scratch + 128, rows * 128 + rank * 64, 64 * step, bar);
        }
        wgmma_fetch_panel(to + 16384, scratch, w0, 64 * step, bar);
        wgmma_fetch_panel(to + 16384 + N * 64, scratch, w0 + N / 2, 64 * step, bar);
      }
      panels += 16384;
      if (++slot == DENSE_STAGES(N)) {
        slot = 0;
        parity ^= 1;
      }
    }
  }
};

// A warpgroup that multiplies: 64 rows by N columns.
template <class T, uint N> struct DenseMultiplier {
  uchar* stage;
  DenseBarriers* bars;
  uint group, lane, warp;

  // Both blocks fetch for this slot.
  KN_FN void release(uint slot) {
    if (lane < 2) wgmma_bar_arrive_there(bars->free + slot, lane);
  }

  // The sum of the parts of a tile, in their order, for whoever finishes the last; false for the others. `own` has the sums of all parts.
  KN_FN bool whole_sum(float (&acc)[N / 2], float4* own, uint* count, uint part, uint parts) {
    const uint t = 32 * (warp % 4) + lane;
    KN_UNROLL for (uint j = 0; j < N / 8; ++j) {
      own[(part * (N / 8) + j) * 128 + t] = kn_f4(acc[4 * j], acc[4 * j + 1], acc[4 * j + 2], acc[4 * j + 3]);
    }
    __threadfence();
    wgmma_part_barrier(1 + group, 128);
    if (t == 0) bars->others[group] = kn_atomic_add(count, 1);
    wgmma_part_barrier(1 + group, 128);
    if (bars->others[group] != parts - 1) return false;
    __threadfence();
    KN_UNROLL for (uint j = 0; j < N / 2; ++j) acc[j] = 0;
    KN_NO_UNROLL for (uint p = 0; p < parts; ++p) {
      KN_UNROLL for (uint j = 0; j < N / 8; ++j) {
        const float4 v = __ldcg(own + (p * (N / 8) + j) * 128 + t);
        acc[4 * j] += v.x;
        acc[4 * j + 1] += v.y;
        acc[4 * j + 2] += v.z;
        acc[4 * j + 3] += v.w;
      }
    }
    return true;
  }

  // Part `part` of `parts` of a tile, number `number` of all; `factors` of its rows, or none.
  template <class Y>
  KN_FN void tile(Y* y, const float* factors, uchar* scratch, KN_PARAMS const DenseShape& d, uint m0, uint n0, uint number, uint part, uint parts,
                  uint& slot, uint& parity) {
    const uint steps = dense_begin(d, part + 1, parts) - dense_begin(d, part, parts), r = 64 * group + 16 * (warp % 4) + lane / 4;
    float acc[N / 2];
    KN_UNROLL for (uint j = 0; j < N / 2; ++j) acc[j] = 0;
    uint before = 0;
    KN_NO_UNROLL for (uint step = 0; step < steps; ++step) {
      const uint at = wgmma_address(stage) + slot * DENSE_STAGE(N);
      wgmma_bar_wait(bars->full + slot, parity);
      const ulong a = wgmma_rows(at + group * 8192), b = wgmma_rows(at + 16384);
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
    release(before);

    if (N == 128 && parts > 1) {
      float4* own = (float4*)(scratch + DENSE_PARTS + (number * 2 + group) * parts * (DENSE_PART_BYTES / 2));
      if (!whole_sum(acc, own, (uint*)(scratch + DENSE_COUNTS) + number * 2 + group, part, parts)) return;
    }
    // Two neighbouring lanes exchange, so that each has four values of a row.
    const uint odd = lane % 2, col = n0 + 8 * odd + 2 * (lane % 4 - odd);
    const bool whole = d.n % 4 == 0 && kn_aligned(y, 4 * sizeof(Y));
    KN_UNROLL for (uint e = 0; e < 2; ++e) {
      const uint row = m0 + r + 8 * e;
      const float f = factors && row < d.m ? factors[r + 8 * e] : 1.0f;
      Y* to = y + (ulong)row * d.n;
      KN_UNROLL for (uint j = 0; j < N / 16; ++j) {
        float* a = acc + 8 * j + 2 * e;
        if (whole) {
          const float c0 = kn_shfl_xor(odd ? a[0] : a[4], 1), c1 = kn_shfl_xor(odd ? a[1] : a[5], 1);
          const float4 v = odd ? kn_f4(c0 * f, c1 * f, a[4] * f, a[5] * f) : kn_f4(a[0] * f, a[1] * f, c0 * f, c1 * f);
          if (row < d.m && col + 16 * j < d.n) kn_store4(to + (col + 16 * j), v);
        } else if (row < d.m) {
          KN_UNROLL for (uint h = 0; h < 2; ++h) {
            const uint c = n0 + 16 * j + 8 * h + 2 * (lane % 4);
            if (c < d.n) tile_store<Y>(to + c, a[4 * h] * f, a[4 * h + 1] * f, d.n - c, false);
          }
        }
      }
    }
  }
};

template <class T, uint N, bool RANGE, bool PANELS, class Y>
KN_FN void dense_tiles(uchar* scratch, Y* y, KN_PARAMS const DenseShape& d, uchar* shared, uint tid, uint pair, uint pairs) {
  uchar* stage = shared + (0u - wgmma_address(shared) & 1023u);
  DenseBarriers* bars = (DenseBarriers*)(stage + DENSE_RING);
  const uint rank = wgmma_rank(), warp = tid / 32, group = tid / 128, lane = tid % 32, tiles = kn_cdiv(d.m, 128);
  if (tid == 0) {
    KN_UNROLL for (uint i = 0; i < DENSE_STAGES(N); ++i) {
      wgmma_bar_init(bars->full + i, 1);
      wgmma_bar_init(bars->free + i, 16);
    }
  }
  wgmma_pair_ready();
  const bool high = dense_high(d, N);
  const uint parts = N == 128 ? dense_parts(d, N, pairs) : 1, count = dense_count(d, N, high) * parts;
  uint slot = 0, parity = 0, z, tile, n0;
  if (group < 2) {
    DenseMultiplier<T, N> multiplier = {stage, bars, group, lane, warp};
    KN_NO_UNROLL for (uint i = pair; i < count; i += pairs) {
      dense_place(d, N, high, rank, i / parts, z, tile, n0);
      const float* factors = RANGE ? dense_factors(scratch, d) + (z * tiles + tile) * 128 : (const float*)0;
      multiplier.tile(y + (ulong)z * d.m * d.n, factors, scratch, d, tile * 128, n0, i / parts * 2 + rank, i % parts, parts, slot, parity);
    }
  } else if (tid == 256) {
    DenseFetcher<N, PANELS> fetcher = {scratch, stage, bars, rank};
    wgmma_map_ready(scratch);
    if (!PANELS) wgmma_map_ready(scratch + 128);
    KN_NO_UNROLL for (uint i = pair; i < count; i += pairs) {
      dense_place(d, N, high, rank, i / parts, z, tile, n0);
      fetcher.tile(d, z, tile, n0, high, dense_begin(d, i % parts, parts), dense_begin(d, i % parts + 1, parts), slot, parity);
    }
  }
  // A block's memory lives as long as the other may reach for it.
  kn_warp_sync();
  wgmma_pair_done();
}

template <class T, bool RANGE, bool PANELS, class Y>
KN_FN void dense_wgmma(uchar* scratch, Y* y, KN_PARAMS const DenseShape& d, uchar* shared, uint tid, uint pair, uint pairs) {
  const uint width = dense_width(d, pairs);
  if (width == 256) {
    dense_tiles<T, 256, RANGE, PANELS>(scratch, y, d, shared, tid, pair, pairs);
  } else if (width == 224) {
    dense_tiles<T, 224, RANGE, PANELS>(scratch, y, d, shared, tid, pair, pairs);
  } else if (width == 192) {
    dense_tiles<T, 192, RANGE, PANELS>(scratch, y, d, shared, tid, pair, pairs);
  } else {
    dense_tiles<T, 128, RANGE, PANELS>(scratch, y, d, shared, tid, pair, pairs);
  }
}

// The head of a kernel with operands w, x and y, and the kernel that prepares it; `...` is the DenseShape of its parameters. The product where
// there is scratch memory, which there is for sizes and strides that suit; else what follows, for which 256 threads stay.
#define DENSE_OPERANDS(T, X, Y) KN_IN_ALIAS(0, T, w), KN_IN_ALIAS(1, X, x), KN_OUT_ALIAS(2, Y, y), KN_PREPARED_AT(scratch)
#define DENSE_KERNEL_WGMMA(NAME, P, T, X, Y, RANGE, ...)                                                               \
  KN_CHAINED(NAME, 0);                                                                                                 \
  KN_DYNAMIC_SHARED(NAME, DENSE_BYTES);                                                                                \
  KN_CLUSTERS(NAME, DENSE_THREADS, 2);                                                                                 \
  KN_PREPARED(NAME, DENSE_PREPARERS, DENSE_PREPARE_BLOCKS);                                                            \
  KN_KERNEL_BLOCKS(NAME##_prepare, DENSE_PREPARERS, 4, P, DENSE_OPERANDS(T, X, Y)) {                                   \
    KN_SHARED(uint, by_way, 64);                                                                                       \
    KN_SHARED(float, most, 2 * DENSE_PREPARE_WARPS);                                                                   \
    KN_CHAIN;                                                                                                          \
    const DenseShape shape = __VA_ARGS__;                                                                              \
    const uint pairs = KN_GROUPS_X / DENSE_PREPARE_BLOCKS / 2;                                                         \
    dense_prepare<T, RANGE>(w, x, scratch, shape, by_way, most, KN_THREAD_X, KN_GROUP_X, KN_GROUPS_X, pairs);          \
  }                                                                                                                    \
  KN_KERNEL_CLUSTERS(NAME, DENSE_THREADS, 2, P, DENSE_OPERANDS(T, X, Y)) {                                             \
    KN_CHAIN;                                                                                                          \
    const DenseShape shape = __VA_ARGS__;                                                                              \
    if (scratch) {                                                                                                     \
      const uint pair = KN_GROUP_X / 2, pairs = KN_GROUPS_X / 2;                                                       \
      dense_wgmma<T, RANGE, sizeof(X) == 4>(scratch, y, shape, kn_dynamic_shared, KN_THREAD_X, pair, pairs);           \
      return;                                                                                                          \
    }                                                                                                                  \
    if (KN_THREAD_X >= 256) return;                                                                                    \
    KN_LOCAL uint* shared = (KN_LOCAL uint*)kn_dynamic_shared;
#endif
