#include "quantized/rows_half.h"
#include "quantized/rows_integer.h"
// Products of few input rows with a matrix of GGML blocks: y[m, n] = sum_k x[m, k] w[n, k], weights exact and activations with 22 bits or more, which
// is f32 for all that matters. The matrix unit multiplies 16 weight rows by a group of 32 values of all input rows; how, the method M says:
// RowsInteger or RowsHalf.
//
// A block stays for many tiles of 16 weight rows. It makes the parts of the activations once, for as many slices of 256 values as find room in
// threadgroup memory (a chunk), and goes through its tiles; with more than one chunk the result is added to what is there. The slices of all
// its tiles are dealt to the warps like cards, so that what they fetch at a time lies together. A warp copies the slice of the 16 rows in 16-byte
// pieces, whatever alignment the format has there, STAGES slices ahead of use. What it has of a tile it leaves in threadgroup memory. There the sums
// meet after every batch of tiles, and are added in the order of the warps, or of the slices where those are fewer.
//
// Around it, as `with` says: ROWS_NORM multiplies the input by the weights of an RMS norm, and results by the factor that normalises the row;
// ROWS_GATED takes the matrices of a gate and of what it gates, 2 n rows, tiles of both in turn, and gives silu(gate) * up; ROWS_ADD adds a
// residual. The first two are for rows that are one chunk.

#define ROWS_TILE 16u
#define ROWS_NORM 1u
#define ROWS_GATED 2u
#define ROWS_ADD 4u
#define ROWS_RING(F, S) ((S) * ROWS_TILE * F::STRIDE / 4)
// Sums of two batches of two tiles at least.
#define ROWS_PARTIAL(M, W, B) (2 * (B) * (W) * ROWS_TILE * M::ROWS)
// Slices of activations for which `words` of threadgroup memory have room: a slice has the sums of its groups and the inverses of its scales too.
#define ROWS_CHUNK(M, F, W, S, B, words) \
  (((words) - (W) * ROWS_RING(F, S) - ROWS_PARTIAL(M, W, B) - 16 - M::FIRST) / (M::SLICE + (8 * M::SUMS + 1) * M::ROWS))

// Copies `count` bytes from the same place of each of 16 weight rows to a stage of the ring, each row to a place that begins at the multiple of 16
// below. `w` is the first byte; it lies `skip` bytes behind a multiple of 16, and each row `step` bytes behind the one before, but `last` is the
// last one there is. Eight lanes share a row. Where all lie alike and nothing beyond the matrix is touched (`even`), pieces of 16 bytes fly.
template <class F>
KN_FN void rows_copy(KN_LOCAL uchar* to, KN_GLOBAL const uchar* w, uint skip, ulong step, uint count, bool even, uint last, uint lane) {
  const uint PIECES = (8 / F::GROUPS * F::BYTES + 14 + 127) / 128, c = lane % 8;
  uint row = lane / 8;
  to += row * F::STRIDE;
  if (even) {
    KN_GLOBAL const uchar* from = w + (row * step + 16 * c) - skip;
    const uint end = skip + count;
    KN_UNROLL for (uint i = 0; i < 4; ++i) {
      KN_UNROLL for (uint j = 0; j < PIECES; ++j) {
        if (16 * c + 128 * j < end) kn_async_copy16_shared(to + (16 * c + 4 * i * F::STRIDE + 128 * j), from + 128 * j);
      }
      from += 4 * step;
    }
  } else {
    KN_NO_UNROLL for (uint i = 0; i < 4; ++i) {
      const ulong at = kn_min(row, last) * step;
      const uint behind = (skip + (uint)at) & 15, end = behind + count;
      KN_NO_UNROLL for (uint j = 16 * c; j < end; j += 128) {
        KN_NO_UNROLL for (uint b = kn_max(j, behind); b < kn_min(j + 16, end); b += 2) {
          *(KN_LOCAL ushort*)(to + b) = *(KN_GLOBAL const ushort*)(w + at + (b - behind));
        }
      }
      to += 4 * F::STRIDE;
      row += 4;
    }
  }
}

// The power of two that puts the largest magnitude, given as bits, at 2^BITS to twice that, and its inverse; NaN for one that is not finite.
template <uint BITS> KN_FN float rows_scale(uint largest, KN_PRIVATE float& inverse) {
  const int exponent = kn_min(kn_max(127 + (int)BITS + 127 - (int)(largest >> 23), 1), 253);
  inverse = largest < 0x7f800000u ? kn_from_bits((uint)(254 - exponent) << 23) : KN_NAN;
  return kn_from_bits((uint)exponent << 23);
}

// First weight row of the block's own tile `tile`, and how many rows it has.
KN_FN uint rows_begin(uint tile, uint first, uint step, uint n, uint with, KN_PRIVATE uint& rows) {
  const uint n0 = (first + (with & ROWS_GATED ? tile / 2 : tile) * step) * ROWS_TILE;
  rows = kn_min(ROWS_TILE, n - n0);
  return with & ROWS_GATED && tile % 2 ? n0 + n : n0;
}

// What warps left of an element of a tile that has `slices` slices: `apart` words from one to the next.
template <uint W> KN_FN float rows_sum(KN_LOCAL const float* at, uint apart, uint slices) {
  float all = 0;
  KN_UNROLL for (uint v = 0; v < W; ++v) {
    if (v < slices) all += at[v * apart];
  }
  return all;
}

// The weights are at `w`; input rows are packed, `m` of them, at most M::ROWS. The block takes the tiles `first`, `first + step`, ... Every thread
// of the block calls; a barrier comes before the next call. W warps, WORDS of threadgroup memory, at least BATCH tiles in a batch. `norm`, `eps` and
// `residual` are used as `with` says, and any pointer otherwise.
template <class M, class F, uint W, uint STAGES, uint BATCH, uint WORDS>
KN_FN void rows_product(KN_GLOBAL const uchar* w, KN_GLOBAL const float* x, KN_GLOBAL float* y, uint m, uint n, uint k, uint first, uint step,
                        KN_LOCAL uint* shared, uint tid, uint lane, uint warp, uint with, KN_GLOBAL const float* norm, float eps,
                        KN_GLOBAL const float* residual) {
  constexpr uint ROWS = M::ROWS, NT = M::NT, OWN = M::OWN, ONE = M::ONE, AHEAD = M::AHEAD, APART = ROWS_TILE * ROWS;
  constexpr uint CHUNK = ROWS_CHUNK(M, F, W, STAGES, BATCH, WORDS), SLICE_BYTES = 8 / F::GROUPS * F::BYTES;
  static_assert(CHUNK > 0 && WORDS > CHUNK && BATCH % 2 == 0, "room for a slice");
  const uint groups = k / 32, all_slices = kn_cdiv(groups, 8), row_bytes = groups / F::GROUPS * F::BYTES;
  const uint tiles = kn_cdiv(n, ROWS_TILE), by = with & ROWS_GATED ? 1 : 0;
  const uint count = first < tiles ? kn_cdiv(tiles - first, step) << by : 0;
  if (count == 0) return;
  // Warps that have something of a tile at most, and how many tiles' sums find room twice; or all of them once.
  const uint share = kn_min(W, kn_min(CHUNK, all_slices)), twice = BATCH * W / share / 2 * 2, batch_tiles = count <= 2 * twice ? count : twice;
  const uint r = lane / 4, t = lane % 4;
  KN_LOCAL uchar* ring = (KN_LOCAL uchar*)(shared + warp * ROWS_RING(F, STAGES));
  KN_LOCAL float* red = (KN_LOCAL float*)(shared + W * ROWS_RING(F, STAGES));
  KN_LOCAL float* squares = red + ROWS_PARTIAL(M, W, BATCH);  // of each warp
  KN_LOCAL uint* ones = (KN_LOCAL uint*)squares + 16;
  KN_LOCAL uint* xs = ones + M::FIRST;
  KN_LOCAL float* sums = (KN_LOCAL float*)(xs + CHUNK * M::SLICE);
  KN_LOCAL float* inverses = sums + CHUNK * ROWS * 8 * M::SUMS;
  for (uint i = tid; i < M::FIRST; i += 32 * W) ones[i] = 0x01010101u;
  const uint own_row = M::row(lane);
  const float unit = M::unit(lane);
  const bool even16 = kn_aligned(w, 16) && row_bytes % 16 == 0, vector = kn_aligned(x, 16) && kn_aligned(norm, 16) && k % 4 == 0;
  float square = 0, unnorm = 1;

  KN_NO_UNROLL for (uint chunk = 0; chunk < all_slices; chunk += CHUNK) {
    const uint slices = kn_min(CHUNK, all_slices - chunk), more_tiles = W / slices, more_slices = W % slices;
    // Tile (counted in the block's own) and slice that the warp takes next, and that it copies next.
    uint tile = warp / slices, slice = warp % slices, next_tile = tile, next_slice = slice, stage = 0;
#define ROWS_FETCH(stage)                                                                                                             \
  if (next_tile < count) {                                                                                                            \
    uint rows;                                                                                                                        \
    const uint n0 = rows_begin(next_tile, first, step, n, with, rows), from = (chunk + next_slice) * SLICE_BYTES;                     \
    const ulong begin = (ulong)n0 * row_bytes + from;                                                                                 \
    rows_copy<F>(ring + (stage) * (ROWS_TILE * F::STRIDE), w + begin, (uint)begin & 15, row_bytes, kn_min(SLICE_BYTES, row_bytes - from), \
                 even16 && rows == ROWS_TILE, rows - 1, lane);                                                                        \
    next_slice += more_slices;                                                                                                        \
    next_tile += more_tiles + (next_slice >= slices ? 1 : 0);                                                                         \
    next_slice -= next_slice >= slices ? slices : 0;                                                                                  \
  }                                                                                                                                   \
  kn_async_commit();
    KN_UNROLL for (uint i = 0; i < STAGES; ++i) { ROWS_FETCH(i) }
    if (with & ROWS_NORM) {
      for (uint i = 32 * tid; i < k; i += 32 * 32 * W) kn_prefetch(norm + i);
    }
    if (chunk == 0) { KN_CHAIN_WAIT; }  // weights may be read before, activations not
    else kn_barrier();

    KN_NO_UNROLL for (uint i0 = warp; i0 < slices * ROWS; i0 += AHEAD * W) {
      float4 v[AHEAD][2];
      KN_UNROLL for (uint i = 0; i < AHEAD; ++i) {
        const uint at = i0 + i * W, row = at % ROWS, kx = ((chunk + at / ROWS) * 8 + lane / 4) * 32 + 4 * t;
        v[i][0] = v[i][1] = kn_f4(0, 0, 0, 0);
        if (at < slices * ROWS && row < m && kx < k) {
          KN_GLOBAL const float* from = x + (ulong)row * k + kx;
          if (vector) {
            v[i][0] = kn_load4(from);
            v[i][1] = kn_load4(from + 16);
          } else {
            v[i][0] = kn_f4(from[0], from[1], from[2], from[3]);
            v[i][1] = kn_f4(from[16], from[17], from[18], from[19]);
          }
          if (with & ROWS_NORM) {
            KN_UNROLL for (uint h = 0; h < 2; ++h) {
              KN_GLOBAL const float* f = norm + (kx + 16 * h);
              const float4 u = v[i][h], s = vector ? kn_load4(f) : kn_f4(f[0], f[1], f[2], f[3]);
              square += u.x * u.x + u.y * u.y + (u.z * u.z + u.w * u.w);
              v[i][h] = kn_f4(u.x * s.x, u.y * s.y, u.z * s.z, u.w * s.w);
            }
          }
        }
      }
      uint big[AHEAD];
      KN_UNROLL for (uint i = 0; i < AHEAD; ++i) {
        if (i0 + i * W < slices * ROWS) big[i] = kn_warp_max(M::largest(v[i][0], v[i][1]));
      }
      KN_UNROLL for (uint i = 0; i < AHEAD; ++i) {
        const uint at = i0 + i * W, row = at % ROWS, s = at / ROWS;
        if (at < slices * ROWS) {
          float inverse;
          const float scale = rows_scale<M::BITS>(big[i], inverse);
          M::convert(v[i][0], v[i][1], scale, row, xs + s * M::SLICE, sums + at * 8 * M::SUMS, lane);
          if (lane == 0) inverses[at] = inverse;
        }
      }
    }
    if (with & ROWS_NORM) {
      square = kn_warp_sum(square);
      if (lane == 0) squares[warp] = square;
    }
    kn_barrier();
    if (with & ROWS_NORM) {
      square = 0;
      KN_UNROLL for (uint i = 0; i < W; ++i) square += squares[i];
      unnorm = kn_rsqrt(square / (float)k + eps);
    }

    float acc[NT][OWN];
    KN_UNROLL for (uint i = 0; i < NT; ++i) KN_UNROLL for (uint j = 0; j < OWN; ++j) acc[i][j] = 0;
    KN_LOCAL float* meet = red;
    KN_NO_UNROLL for (uint batch = 0; batch < count; batch += batch_tiles) {
      const uint end = kn_min(batch + batch_tiles, count);
      KN_NO_UNROLL while (tile < end) {
        KN_LOCAL uchar* bytes = ring + stage * (ROWS_TILE * F::STRIDE);
        const uint from = (chunk + slice) * SLICE_BYTES, here = kn_min(8u, groups - (chunk + slice) * 8);
        uint skip0 = from, skip1 = from;
        if (!even16 || F::BYTES % 16 != 0) {
          uint rows;
          const uint n0 = rows_begin(tile, first, step, n, with, rows);
          skip0 += (n0 + kn_min(r, rows - 1)) * row_bytes;
          skip1 += (n0 + kn_min(r + 8, rows - 1)) * row_bytes;
        }
        KN_LOCAL const uchar* bytes0 = bytes + r * F::STRIDE + (skip0 & 15);
        KN_LOCAL const uchar* bytes1 = bytes + (r + 8) * F::STRIDE + (skip1 & 15);
        KN_LOCAL const uint* parts = M::place(ones, xs + slice * M::SLICE, lane);
        KN_LOCAL const float* sum = sums + (slice * ROWS + own_row) * 8 * M::SUMS;
        float a[NT][OWN], o[NT][OWN], d[OWN], least[OWN], factor[NT];
        KN_UNROLL for (uint i = 0; i < NT; ++i) {
          KN_UNROLL for (uint j = 0; j < OWN; ++j) a[i][j] = o[i][j] = 0;
          factor[i] = inverses[slice * ROWS + M::STEP * i + own_row];
        }
        kn_async_wait<STAGES - 1>();
        kn_warp_sync();
        uint heads[OWN][F::S];
        F::ahead((KN_LOCAL const typename F::Word*)(ONE && t >= 2 ? bytes1 : bytes0), heads[0]);
        if (!ONE) F::ahead((KN_LOCAL const typename F::Word*)bytes1, heads[OWN - 1]);
        if (F::GROUPS == 8 || here == 8) {
          KN_UNROLL for (uint g = 0; g < 8; ++g) M::group(bytes0, bytes1, heads, parts, sum, g, a, o, lane);
        } else {
          KN_NO_UNROLL for (uint g = 0; g < here; ++g) M::group(bytes0, bytes1, heads, parts, sum, g, a, o, lane);
        }
        KN_UNROLL for (uint j = 0; j < OWN; ++j) {
          F::whole(heads[j], d[j], least[j]);
          d[j] *= unit;
          if (!M::counts(lane)) least[j] = 0;
          KN_UNROLL for (uint i = 0; i < NT; ++i) acc[i][j] += factor[i] * (F::OFFSET ? d[j] * a[i][j] + least[j] * o[i][j] : d[j] * a[i][j]);
        }
        kn_warp_sync();
        ROWS_FETCH(stage)
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        const uint was = tile, order = slices <= W ? slice : warp;
        slice += more_slices;
        tile += more_tiles + (slice >= slices ? 1 : 0);
        slice -= slice >= slices ? slices : 0;
        if (tile != was) {
          KN_LOCAL float* to = meet + ((was - batch) * share + order) * APART;
          KN_UNROLL for (uint i = 0; i < NT; ++i) {
            KN_UNROLL for (uint j = 0; j < OWN; ++j) {
              const float v = M::total(acc[i][j]);
              if (M::stores(lane)) to[ONE ? r + 4 * t : (M::STEP * i + own_row) * ROWS_TILE + r + 8 * j] = v;
              acc[i][j] = 0;
            }
          }
        }
      }
      kn_barrier();
      KN_NO_UNROLL for (uint i = tid; i < ((end - batch) >> by) * m * ROWS_TILE; i += 32 * W) {
        const uint of = i / ROWS_TILE / m, row = i / ROWS_TILE % m, column = (first + ((batch >> by) + of) * step) * ROWS_TILE + i % ROWS_TILE;
        KN_LOCAL const float* at = meet + (((of << by) * share * ROWS + row) * ROWS_TILE + i % ROWS_TILE);
        float all = unnorm * rows_sum<W>(at, APART, slices);
        if (with & ROWS_GATED) {
          const float up = unnorm * rows_sum<W>(at + share * APART, APART, slices);
          all = all * (1.0f / (1.0f + kn_exp(-all))) * up;
        }
        if (column < n) {
          const ulong to = (ulong)row * n + column;
          if (with & ROWS_ADD && chunk == 0) all += residual[to];
          y[to] = chunk == 0 ? all : y[to] + all;
        }
      }
      meet = meet == red ? red + ROWS_PARTIAL(M, W, BATCH) / 2 : red;
    }
    kn_async_wait<0>();
#undef ROWS_FETCH
  }
}
