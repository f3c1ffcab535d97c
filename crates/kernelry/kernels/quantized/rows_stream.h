#include "common/wgmma.h"
#include "quantized/rows.h"
// Products of several input rows with a matrix of GGML blocks on Hopper: what rows.h computes by RowsHalf, with k cut over a pair of blocks, weights
// by the copy engine, and activations that stay in registers.
//
// A block of a pair has half of the slices of 256 values of k, at most eight at a time (a part). Eight warps take a slice each, or several the same
// one, split the activations of that into high and low f16, as fragments of the matrix unit, and keep them while the tiles of 16 weight rows come
// by. Four warps more, which leave their registers to them, ask for what a tile has of the part, four rows each, into a ring; at the beginning not
// for more than keeps the memory busy until the activations are there, which would wait behind it. A warp's sums of a tile go to the first block of the
// pair for even tiles and to the second for odd ones, with a barrier there that counts their bytes. There they are added, in the order of k, after
// every batch of tiles.
#ifdef KN_WGMMA

#define STREAM_WARPS 8u  // that multiply
#define STREAM_ALL_WARPS 12u
#define STREAM_EARLY 3u   // tiles that are asked for before there are activations
#define STREAM_STAGES 16u  // of the ring, at most
#define STREAM_SUMS 57344u  // bytes of sums, of one batch or of two
#define STREAM_BYTES 231424u
#define STREAM_KEPT 4096u  // bytes of what warps keep for themselves
#define STREAM_RING (STREAM_BYTES - STREAM_SUMS - STREAM_KEPT - 384u)

struct StreamBarriers {
  ulong full[STREAM_STAGES], empty[STREAM_STAGES], sums[2], free[2], begun;
};

// How codes become fragments: as blocks.h has it, without a TABLE behind the ring.
template <class F> struct StreamCodes {
  enum : uint { TABLE = 0 };
  typedef F Format;
  static KN_FN void fill(uchar*, uint, uint) {}
  static KN_FN void codes(const uchar* bytes, const uchar*, uint g, uint lane, uint (&c)[4]) { RowsHalf<F, 1>::codes(bytes, g, lane, c); }
};
// Operations on bytes and bits take twice as long as others, and codes that stand for values of a table need most. So a byte finds both of its values
// as f16 in threadgroup memory: each pair stands there 32 times, in 128 of 256 bytes, where each lane has a bank of its own, and the byte and
// four times the lane are the address, put together by one operation.
template <> struct StreamCodes<BlkIQ4_NL> {
  enum : uint { TABLE = 65536 };
  struct Format : BlkIQ4_NL {
    enum { SHIFT = 24, LESS = 0 };
  };
  // By STREAM_WARPS warps.
  static KN_FN void fill(uchar* table, uint warp, uint lane) {
    KN_UNROLL for (uint i = 0; i < 256 / STREAM_WARPS; i += 4) {
      const uint byte = warp * (256 / STREAM_WARPS) + i + lane / 8, v = BlkIQ4_NL::look_up(byte);
      const uint two = kn_pack_f16((float)(v & 255) - 128, (float)(v >> 8 & 255) - 128);
      *(uint4*)(table + byte * 256 + lane % 8 * 16) = kn_u4(two, two, two, two);
    }
    wgmma_part_barrier(1, 32 * STREAM_WARPS);
  }
  static KN_FN void codes(const uchar* bytes, const uchar* table, uint g, uint lane, uint (&c)[4]) {
    const uchar* from = bytes + (g * BlkIQ4_NL::BYTES + 2 + lane % 4 * 4);
    uint low, high;  // bytes 0 and 1 of the one, 2 and 3 of the other
    if (g % 2) {
      low = high = *(const uint*)from;
    } else {
      low = *(const ushort*)from;
      high = (uint)*(const ushort*)(from + 2) << 16;
    }
    KN_UNROLL for (uint i = 0; i < 4; ++i) c[i] = *(const uint*)(table + kn_permute(i < 2 ? low : high, lane * 4, 0x5504u + 16 * i));
  }
};

// The parts and sums of a slice, in registers; what they give with weights. The matrix unit has eight columns: high and low of four input rows in turn,
// where EIGHT is 0, or eight input rows, the high parts first and then the low ones. A lane has results of input row lane % 4, or of two from
// 2 (lane % 4) on. Sums of halves would be too many registers: they are in threadgroup memory, 32 float2 or twice as many of the warp.
template <class FORMAT, uint EIGHT> struct StreamSlice {
  typedef StreamCodes<FORMAT> Codes;
  typedef typename Codes::Format F;
  typedef RowsHalf<F, 1> M;
  enum : uint { OWN = EIGHT ? 2 : 1 };
  uint4 words[8][OWN];
  float all[F::HALVES ? 1 : 8][OWN], inverse[OWN];
  const float2* halves;

  // Of 256 values of each input row, the first of which are at `x`, `k` apart.
  KN_FN void load(const float* x, uint m, ulong k, float2* kept, uint lane) {
    const uint row = EIGHT ? lane / 4 : lane / 8, own = EIGHT ? lane % 4 * 2 : lane % 4, to = EIGHT ? 4 : 8;
    const float* from = x + row * k + lane % 4 * 4;
    float4 v[8][2];
    KN_UNROLL for (uint g = 0; g < 8; ++g) {
      KN_UNROLL for (uint i = 0; i < 2; ++i) v[g][i] = row < m ? kn_load4(from + (32 * g + 16 * i)) : kn_f4(0, 0, 0, 0);
    }
    uint largest = 0;
    KN_UNROLL for (uint g = 0; g < 8; ++g) largest = kn_max(largest, M::largest(v[g][0], v[g][1]));
    largest = kn_max(largest, kn_shfl_xor(largest, 1));
    largest = kn_max(largest, kn_shfl_xor(largest, 2));
    float less;
    const float scale = rows_scale<M::BITS>(largest, less);
    KN_UNROLL for (uint i = 0; i < OWN; ++i) inverse[i] = kn_shfl(less, (own + i) * to);
    halves = kept + own;
    if (F::HALVES) kn_warp_sync();
    KN_UNROLL for (uint g = 0; g < 8; ++g) {
      uint h[4], l[4];
      float s[2];
      M::parts(v[g][0], v[g][1], scale, g, h, l, s);
      const bool low = !EIGHT && lane / 4 % 2;
      words[g][0] = kn_u4(low ? l[0] : h[0], low ? l[1] : h[1], low ? l[2] : h[2], low ? l[3] : h[3]);
      if (EIGHT) words[g][OWN - 1] = kn_u4(l[0], l[1], l[2], l[3]);
      if (F::HALVES) {
        if (lane % to == 0) kept[g * 4 * OWN + row] = kn_f2(s[0], s[1]);
      } else {
        KN_UNROLL for (uint i = 0; i < OWN; ++i) all[F::HALVES ? 0 : g][i] = kn_shfl(s[0], (own + i) * to);
      }
    }
    if (F::HALVES) kn_warp_sync();
  }

  // The products with two weight rows, by input rows, but for the scales of `unit`.
  KN_FN void multiply(const uchar* bytes0, const uchar* bytes1, const uchar* table, float (&v)[2 * OWN], uint lane) const {
    uint heads[2][F::S];
    F::ahead((const typename F::Word*)bytes0, heads[0]);
    F::ahead((const typename F::Word*)bytes1, heads[1]);
    float a[OWN][2], o[OWN][2];
    KN_UNROLL for (uint i = 0; i < OWN; ++i) a[i][0] = a[i][1] = o[i][0] = o[i][1] = 0;
    KN_UNROLL for (uint g = 0; g < 8; ++g) {
      uint c[2][4];
      float s[2][2], offset[2], d[4];
      KN_UNROLL for (uint j = 0; j < 2; ++j) {
        const uchar* bytes = j ? bytes1 : bytes0;
        Codes::codes(bytes, table, g, lane, c[j]);
        F::part(M::block(bytes, g), heads[j], g % F::GROUPS, s[j][0], s[j][1], offset[j]);
      }
      float2 half[OWN];
      if (F::HALVES) {
        KN_UNROLL for (uint i = 0; i < OWN; ++i) half[i] = halves[g * 4 * OWN + i];
      }
      KN_UNROLL for (uint go = 0; go < 2; ++go) {
        if (go == 0 || F::HALVES) {
          KN_UNROLL for (uint i = 0; i < 2; ++i) {
            const uint of = i < OWN ? i : 0;
            d[i] = d[2 + i] = F::LESS && i < OWN ? F::HALVES ? (go ? half[of].y : half[of].x) : all[F::HALVES ? 0 : g][of] : 0.0f;
          }
        }
        KN_UNROLL for (uint i = 0; i < OWN; ++i) {
          const uint4 w = words[g][i];
          const uint pair[2] = {go ? w.z : w.x, go ? w.w : w.y};
          const uint rows[4] = {c[0][2 * go], c[1][2 * go], c[0][2 * go + 1], c[1][2 * go + 1]};
          kn_mma<kn_f16>(d, rows, pair, lane);
        }
        if (go == 1 || F::HALVES) {
          KN_UNROLL for (uint j = 0; j < 2; ++j) {
            KN_UNROLL for (uint i = 0; i < 2; ++i) a[i % OWN][j] = kn_fma(s[j][go], d[2 * j + i], a[i % OWN][j]);
          }
        }
      }
      if (F::OFFSET) {
        KN_UNROLL for (uint i = 0; i < OWN; ++i) {
          KN_UNROLL for (uint j = 0; j < 2; ++j) o[i][j] = kn_fma(offset[j], all[F::HALVES ? 0 : g][i], o[i][j]);
        }
      }
    }
    KN_UNROLL for (uint j = 0; j < 2; ++j) {
      float d, least;
      F::whole(heads[j], d, least);
      d *= M::unit(lane);
      KN_UNROLL for (uint i = 0; i < OWN; ++i) v[2 * i + j] = inverse[i] * (F::OFFSET ? d * a[i][j] + least * o[i][j] : d * a[i][j]);
    }
  }
};

// Sums of a lane to the block `rank` of the pair, which count for a barrier there.
KN_FN void stream_put(float2* to, float (&v)[2], ulong* bar, uint rank) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(wgmma_there(to, rank)), "f"(v[0]),
               "f"(v[1]), "r"(wgmma_there(bar, rank)) : "memory");
}
KN_FN void stream_put(float4* to, float (&v)[4], ulong* bar, uint rank) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(wgmma_there(to, rank)),
               "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]), "r"(wgmma_there(bar, rank)) : "memory");
}
template <uint N> struct StreamVector;
template <> struct StreamVector<2> { typedef float2 T; };
template <> struct StreamVector<4> { typedef float4 T; };

// How the slices and tiles of a product are cut, for both blocks of a pair.
template <class F> struct StreamShape {
  enum : uint { SLICE_BYTES = 8 / F::GROUPS * F::BYTES, RING = STREAM_RING - StreamCodes<F>::TABLE };
  uint slices, half, part, parts, pitch, stages, row_bytes, tiles, first, step;
  KN_FN StreamShape(uint n, uint k, uint pair, uint pairs) {
    slices = k / 256;
    half = kn_cdiv(slices, 2);
    parts = kn_cdiv(half, STREAM_WARPS);
    part = parts == 1 ? half : kn_cdiv(half, parts);
    row_bytes = slices * SLICE_BYTES;
    pitch = pitch_of(part);
    // Divisions take time where nothing else can go on, so the usual case does without.
    stages = part == STREAM_WARPS ? stages_of(pitch_of(STREAM_WARPS)) : stages_of(pitch);
    tiles = kn_cdiv(n, ROWS_TILE);
    first = pair;
    step = pairs;
  }
  // Rows begin on banks that differ by four words; those of a format that is not cut at multiples of 16 bytes, up to 14 bytes later.
  static constexpr KN_FN uint pitch_of(uint part) { return (part * SLICE_BYTES + (SLICE_BYTES % 16 ? 14 : 0) + 127) / 128 * 128 + 16; }
  static constexpr KN_FN uint stages_of(uint pitch) {
    return RING / (ROWS_TILE * pitch) < STREAM_STAGES ? RING / (ROWS_TILE * pitch) : STREAM_STAGES;
  }
  // First slice of a part of the block `rank`, and how many it has.
  KN_FN uint begin(uint rank, uint i) const { return rank * half + i * part; }
  KN_FN uint size(uint rank, uint i) const {
    const uint from = begin(rank, i), to = kn_min(slices, kn_min((rank + 1) * half, from + part));
    return from < to ? to - from : 0;
  }
};

// Whether rows of weights and of activations lie as this file wants them.
template <class F> KN_FN bool stream_takes(const uchar* w, const float* x, uint k) {
  return k % 256 == 0 && k / 256 * StreamShape<F>::SLICE_BYTES % 16 == 0 && kn_aligned(w, 16) && kn_aligned(x, 16);
}

// Asks for four rows, the first of which is `row`, of each tile of all parts, `times` times; a warp.
template <class F>
KN_FN void stream_fetch(const uchar* w, uint n, uint times, const StreamShape<F>& s, uchar* ring, StreamBarriers* bars, uint rank, uint row, uint lane) {
  uint at = 0, parity = 1, asked = 0;
  for (uint i = 0; i < times; ++i) {
    for (uint part = 0; part < s.parts; ++part) {
      const uint size = s.size(rank, part);
      for (uint tile = s.first; size != 0 && tile < s.tiles; tile += s.step) {
        const uint n0 = tile * ROWS_TILE, rows = kn_min(ROWS_TILE, n - n0);
        const ulong begin = (ulong)n0 * s.row_bytes + s.begin(rank, part) * StreamShape<F>::SLICE_BYTES;
        const uint skip = (uint)begin & 15, bytes = kn_cdiv(skip + size * StreamShape<F>::SLICE_BYTES, 16) * 16;
        if (asked++ == STREAM_EARLY) wgmma_bar_wait(&bars->begun, 0);
        wgmma_bar_wait(bars->empty + at, parity);
        if (row + lane == 0) wgmma_bar_expect(bars->full + at, rows * bytes);
        if (lane < 4 && row + lane < rows) {
          const uint of = row + lane;
          wgmma_fetch(wgmma_address(ring) + (at * ROWS_TILE + of) * s.pitch, w + (begin - skip + (ulong)of * s.row_bytes), bytes, bars->full + at);
        }
        if (++at == s.stages) {
          at = 0;
          parity ^= 1;
        }
      }
    }
  }
}

// How many z there are from z0 by zs below `batch`.
KN_FN uint stream_times(uint batch, uint z0, uint zs) { return batch - z0 <= zs ? 1 : kn_cdiv(batch - z0, zs); }

// Multiplies and adds; STREAM_WARPS warps.
template <class F, uint EIGHT>
KN_FN void stream_multiply(const float* x, float* y, uint m, uint n, uint k, uint batch, uint z0, uint zs, const StreamShape<F>& s, const uchar* ring,
                           uchar* sums, StreamBarriers* bars, uint rank, uint tid, uint lane, uint warp) {
  constexpr uint OWN = StreamSlice<F, EIGHT>::OWN;
  typedef typename StreamVector<2 * OWN>::T Vector;
  float2* kept = (float2*)(sums + STREAM_SUMS + warp * (STREAM_KEPT / STREAM_WARPS));
  uchar* table = sums - StreamCodes<F>::TABLE;
  StreamCodes<F>::fill(table, warp, lane);
  KN_CHAIN_WAIT;  // weights may be read before, activations not
  const uint r = lane / 4, t = lane % 4;
  uint round = 0, rounds = 0, count = 0, per = 1, stage = 0, parity = 0;
  for (uint z = z0; z < batch; z += zs) {
    for (uint part = 0; part < s.parts; ++part) {
      const uint size = s.size(rank, part), others = s.size(rank ^ 1, part);
      // Warps by slices, and so often as there are warps for all; those beyond have none.
      uint slice = warp, share = 0, shares = 0;
      for (uint left = STREAM_WARPS; size != 0 && left >= size; left -= size) ++shares;
      for (; size != 0 && slice >= size; slice -= size) ++share;
      StreamSlice<F, EIGHT> own;
      if (share < shares) own.load(x + (ulong)z * m * k + (s.begin(rank, part) + slice) * 256, m, k, kept, lane);
      if (rounds == 0) {
        if (lane == 0) wgmma_bar_arrive(&bars->begun);
        // Tiles, and those of a batch: all, or an even number that finds room twice.
        const uint tile_bytes = 2 * 32 * sizeof(Vector), passes = s.parts * stream_times(batch, z0, zs);
        const uint room = s.part == STREAM_WARPS ? STREAM_SUMS / (STREAM_WARPS * tile_bytes) : STREAM_SUMS / (s.part * tile_bytes);
        count = s.first < s.tiles ? kn_cdiv(s.tiles - s.first, s.step) : 0;
        per = passes == 1 && kn_cdiv(count, 2) <= room ? kn_max(count, 1u) : room / 2 * 2;
        rounds = passes * (per < count ? kn_cdiv(count, per) : 1);
      }
      for (uint begin = 0; begin < count; begin += per, ++round) {
        const uint end = kn_min(begin + per, count), which = round & 1, mine = (end - begin + 1 - rank) / 2;
        uchar* meet = sums + which * (STREAM_SUMS / 2);
        if (tid == 0) wgmma_bar_expect(bars->sums + which, mine * (size + others) * 32 * sizeof(Vector));
        if (round >= 2) wgmma_bar_wait(bars->free + which, (round >> 1 & 1) ^ 1);
        uint turn = 0;
        for (uint tile = begin; size != 0 && tile < end; ++tile) {
          wgmma_bar_wait(bars->full + stage, parity);
          if (turn == share) {
            const uint skip = StreamShape<F>::SLICE_BYTES % 16 ? s.begin(rank, part) * StreamShape<F>::SLICE_BYTES & 15 : 0;
            const uchar* bytes0 = ring + ((stage * ROWS_TILE + r) * s.pitch + skip + slice * StreamShape<F>::SLICE_BYTES);
            const uchar* bytes1 = bytes0 + 8 * s.pitch;
            float v[2 * OWN];
            own.multiply(bytes0, bytes1, table, v, lane);
            const uint to = (tile - begin) % 2, at = ((tile - begin) / 2 * (size + others) + (rank ? others : 0) + slice) * 32 + lane;
            stream_put((Vector*)meet + at, v, bars->sums + which, to);
            // These depend on all that was read of the stage, which an arrival by itself would not wait for.
            kn_warp_sync();
            if (lane == 0) wgmma_bar_arrive(bars->empty + stage);
          } else if (lane == 0) {
            wgmma_bar_arrive(bars->empty + stage);
          }
          turn = turn + 1 == shares ? 0 : turn + 1;
          if (++stage == s.stages) {
            stage = 0;
            parity ^= 1;
          }
        }
        wgmma_bar_wait(bars->sums + which, round >> 1 & 1);
        for (uint i = tid; i < mine * 32; i += 32 * STREAM_WARPS) {
          const Vector* at = (const Vector*)meet + (i / 32 * (size + others) * 32 + lane);
          float all[2 * OWN];
          KN_UNROLL for (uint j = 0; j < 2 * OWN; ++j) all[j] = 0;
          KN_UNROLL for (uint from = 0; from < 2 * STREAM_WARPS; ++from) {
            if (from < size + others) {
              const Vector v = at[from * 32];
              KN_UNROLL for (uint j = 0; j < 2 * OWN; ++j) all[j] += ((const float*)&v)[j];
            }
          }
          const uint n0 = (s.first + (begin + 2 * (i / 32) + rank) * s.step) * ROWS_TILE;
          KN_UNROLL for (uint j = 0; j < 2 * OWN; ++j) {
            const uint row = OWN * t + j / 2, column = n0 + r + j % 2 * 8;
            if (row < m && column < n) {
              float* to = y + ((ulong)z * m + row) * n + column;
              *to = part == 0 ? all[j] : *to + all[j];
            }
          }
        }
        kn_warp_sync();
        if (round + 2 < rounds && lane < 2) wgmma_bar_arrive_there(bars->free + which, lane);
      }
    }
  }
}

// Who is asking, anew, so that no register holds it where the registers are dealt anew.
KN_FN uint stream_thread() {
  uint r;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(r));
  return r;
}
KN_FN uint stream_group_y() {
  uint r;
  asm volatile("mov.u32 %0, %%ctaid.y;" : "=r"(r));
  return r;
}

// The product; every thread of a grid of pairs of blocks calls, `shared` are STREAM_BYTES. y[z, m, n] = sum_k x[z, m, k] w[n, k], where z counts on by
// the height of the grid, which is not above `batch`.
template <class F, uint EIGHT>
KN_FN void stream_product(const uchar* w, const float* x, float* y, uint m, uint n, uint k, uint batch, uchar* shared) {
  uchar* sums = shared + STREAM_RING;
  StreamBarriers* bars = (StreamBarriers*)(sums + STREAM_SUMS + STREAM_KEPT);
  const uint tid = stream_thread();
  // A thread of each warp, since those of one would do it one after the other.
  for (uint i = tid / 32; tid % 32 == 0 && i < STREAM_STAGES; i += STREAM_ALL_WARPS) {
    wgmma_bar_init(bars->full + i, 1);
    wgmma_bar_init(bars->empty + i, STREAM_WARPS);
    if (i < 2) {
      wgmma_bar_init(bars->sums + i, 1);
      wgmma_bar_init(bars->free + i, 2 * STREAM_WARPS);
    }
    if (i == 2) wgmma_bar_init(&bars->begun, STREAM_WARPS);
  }
  wgmma_pair_ready();
  if (tid >= 32 * STREAM_WARPS) {
    wgmma_registers_less<24>();
    const uint lane = stream_thread() % 32, warp = stream_thread() / 32;
    const StreamShape<F> s(n, k, blockIdx.x / 2, gridDim.x / 2);
    stream_fetch<F>(w, n, stream_times(batch, stream_group_y(), gridDim.y), s, shared, bars, wgmma_rank(), (warp - STREAM_WARPS) * 4, lane);
  } else {
    wgmma_registers_more<240>();
    const uint thread = stream_thread();
    const StreamShape<F> s(n, k, blockIdx.x / 2, gridDim.x / 2);
    stream_multiply<F, EIGHT>(x, y, m, n, k, batch, stream_group_y(), gridDim.y, s, shared, sums, bars, wgmma_rank(), thread, thread % 32, thread / 32);
  }
  // What this block has sent the other has waited for, so that either may end behind this.
  wgmma_pair_leave();
}
#endif
