#include "quantized/blocks.h"
// KN_WARP_32_ONLY: the matrix unit's fragments are spread over 32 lanes.
//
// Products of few input rows with a matrix of GGML blocks: y[m, n] = sum_k x[m, k] w[n, k], weights exact and activations with 22 bits, which is f32
// for all that matters.
//
// An activation, times a power of two that fits its 256 neighbours, is the sum of two f16, high and low. Codes are f16 as they are (blocks.h), so that
// the matrix unit multiplies 16 weight rows by a group of 32 values in two goes, with f32 sums that begin at what makes up for codes that are too
// large; scales come in behind a group. An input row takes two columns, high and low, eight columns are a tile, NT tiles take 4 NT input rows. Where
// there is ONE input row alone, its columns stand four times, and each half of the lanes takes half of the weight rows.
//
// A block stays for many tiles of 16 weight rows. It makes the parts of the activations once, for as many slices of 256 values as find room in
// threadgroup memory (a chunk), and goes through its tiles; with more than one chunk the result is added to what is there. The slices of all
// its tiles are dealt to the warps like cards. A warp copies the slice of the 16 rows in 16-byte pieces, whatever alignment the format has
// there, STAGES slices ahead of use. The warps' sums meet in threadgroup memory after every BATCH tiles, and are added in the order of the warps.
//
// Around it, as `with` says: ROWS_NORM multiplies the input by the weights of an RMS norm, and results by the factor that normalises the row;
// ROWS_GATED takes the matrices of a gate and of what it gates, 2 n rows, tiles of both in turn, and gives silu(gate) * up; ROWS_ADD adds a
// residual. The first two are for rows that are one chunk, and ROWS_GATED for an even BATCH.

#define ROWS_TILE 16u
#define ROWS_NORM 1u
#define ROWS_GATED 2u
#define ROWS_ADD 4u
// Words of one input row in a group, and in a slice of 256 values; a slice has the inverse of its power of two and the sums of its groups too, or of
// their halves where those have scales of their own.
#define ROWS_GROUP 32u
#define ROWS_OF(NT, ONE) ((ONE) ? 1u : 4u * (NT))
#define ROWS_SLICE(NT, ONE) (8 * ROWS_GROUP * ROWS_OF(NT, ONE))
#define ROWS_PARTS(F) (F::HALVES ? 2u : 1u)
#define ROWS_RING(F, S) ((S) * ROWS_TILE * F::STRIDE / 4)
#define ROWS_SUMS(W, B, NT, ONE) (2 * (B) * (W) * ROWS_TILE * ROWS_OF(NT, ONE))
#define ROWS_FREE(F, W, S, B, NT, ONE, words) ((words) - (W) * ROWS_RING(F, S) - ROWS_SUMS(W, B, NT, ONE) - 16)
// Slices of activations for which `words` of threadgroup memory have room.
#define ROWS_CHUNK(F, W, S, B, NT, ONE, words) \
  (ROWS_FREE(F, W, S, B, NT, ONE, words) / (ROWS_SLICE(NT, ONE) + (8 * ROWS_PARTS(F) + 1) * ROWS_OF(NT, ONE)))

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

// The power of two that puts the largest magnitude, given as bits, at 2^14 to 2^15, and its inverse; NaN for one that is not finite.
KN_FN float rows_scale(uint largest, KN_PRIVATE float& inverse) {
  const int exponent = kn_min(kn_max(127 + 14 + 127 - (int)(largest >> 23), 1), 253);
  inverse = largest < 0x7f800000u ? kn_from_bits((uint)(254 - exponent) << 23) : KN_NAN;
  return kn_from_bits((uint)exponent << 23);
}

// The largest magnitude, as bits; not a number counts only where nothing else does, since it shows in its own products.
KN_FN uint rows_largest(float4 v) {
  return kn_bits(kn_max(kn_max(kn_abs(v.x), kn_abs(v.y)), kn_max(kn_abs(v.z), kn_abs(v.w)))) & 0x7fffffffu;
}

// Two activations as high and low f16.
KN_FN void rows_split(float x, float y, KN_PRIVATE uint& high, KN_PRIVATE uint& low) {
  high = kn_pack_f16(x, y);
  const float2 h = kn_unpack_f16(high);
  low = kn_pack_f16(x - h.x, y - h.y);
}

// Adds the products of group `g` of a slice to the sums of scaled codes and of offsets. `own` are the rows whose results the lane has, `x` the
// lane's activations in the slice and `sums` the sums of its input row.
template <class F, uint NT, bool ONE>
KN_FN void rows_group(KN_LOCAL const uchar* bytes0, KN_LOCAL const uchar* bytes1, KN_PRIVATE const uint (&heads)[ONE ? 1 : 2][F::S],
                      KN_LOCAL const uint* x, KN_LOCAL const float* sums, uint g, KN_PRIVATE float (&a)[NT][ONE ? 1 : 2],
                      KN_PRIVATE float (&o)[NT][ONE ? 1 : 2], uint lane) {
  const uint t = lane % 4, skip = F::GROUPS == 1 ? g * F::BYTES : 0, ROWS = ROWS_OF(NT, ONE), OWN = ONE ? 1 : 2, PARTS = ROWS_PARTS(F);
  KN_LOCAL const typename F::Word* b[2] = {(KN_LOCAL const typename F::Word*)(bytes0 + skip), (KN_LOCAL const typename F::Word*)(bytes1 + skip)};
  uint c[2][4];
  float s[OWN][2], offset[OWN];
  KN_UNROLL for (uint i = 0; i < 2; ++i) {
    uint q[F::Q];
    F::load(b[i], g % F::GROUPS, t, q);
    F::small(q, g % F::GROUPS, t, c[i]);
  }
  KN_UNROLL for (uint i = 0; i < OWN; ++i) {
    F::part(ONE && t >= 2 ? b[1] : b[i], heads[i], g % F::GROUPS, s[i][0], s[i][1], offset[i]);
  }
  KN_UNROLL for (uint nt = 0; nt < NT; ++nt) {
    const uint4 v = *(KN_LOCAL const uint4*)(x + (g * ROWS + 4 * nt) * ROWS_GROUP);
    KN_LOCAL const float* sum = sums + (4 * nt * 8 + g) * PARTS;
    float d[4] = {0, 0, 0, 0};
    KN_UNROLL for (uint go = 0; go < 2; ++go) {
      if (go == 0 || F::HALVES) {
        d[0] = d[2] = F::LESS ? sum[go] : 0.0f;
        d[1] = d[3] = 0;
      }
      const uint codes[4] = {c[0][2 * go], c[1][2 * go], c[0][2 * go + 1], c[1][2 * go + 1]};
      const uint pair[2] = {go ? v.z : v.x, go ? v.w : v.y};
      kn_mma<kn_f16>(d, codes, pair, lane);
      if (go == 1 || F::HALVES) {
        KN_UNROLL for (uint i = 0; i < OWN; ++i) {
          a[nt][i] = kn_fma(s[i][go], ONE && t >= 2 ? d[2] : d[2 * i], a[nt][i]);
          a[nt][i] = kn_fma(s[i][go], ONE && t >= 2 ? d[3] : d[2 * i + 1], a[nt][i]);
        }
      }
    }
    if (F::OFFSET) {
      KN_UNROLL for (uint i = 0; i < OWN; ++i) o[nt][i] = kn_fma(offset[i], sum[0], o[nt][i]);
    }
  }
}

// Makes the two parts of 256 activations, eight values a lane, and their sums; the low part is 16 words behind the high one. `big` is the largest
// magnitude.
template <class F> KN_FN void rows_convert(float4 a, float4 b, uint big, KN_LOCAL uint* to, KN_LOCAL float* sum_to, KN_LOCAL float* inverse_to, uint lane) {
  float inverse;
  const float scale = rows_scale(big, inverse);
  float sum0 = kn_fma(a.x, scale, kn_fma(a.y, scale, kn_fma(a.z, scale, a.w * scale)));
  float sum1 = kn_fma(b.x, scale, kn_fma(b.y, scale, kn_fma(b.z, scale, b.w * scale)));
  if (!F::HALVES) sum0 += sum1;
  sum0 += kn_shfl_xor(sum0, 1);
  sum0 += kn_shfl_xor(sum0, 2);
  const float unit = F::LESS ? -(float)F::LESS / (1 << 24) : 1.0f;
  if (F::HALVES) {
    sum1 += kn_shfl_xor(sum1, 1);
    sum1 += kn_shfl_xor(sum1, 2);
    if (lane % 4 == 0) sum_to[1] = sum1 * unit;
  }
  if (lane % 4 == 0) sum_to[0] = sum0 * unit;
  if (lane == 0) *inverse_to = inverse;
  const float first = (F::PLACED & BLK_ODD) && lane / 4 % 2 ? scale * 0.0625f : scale, second = F::PLACED & BLK_SECOND ? scale * 0.0625f : first;
  const bool near = F::PLACED & BLK_NEIGHBOURS;
  uint h[4], l[4];
  rows_split(a.x * first, (near ? a.y : a.z) * first, h[0], l[0]);
  rows_split((near ? a.z : a.y) * first, a.w * first, h[1], l[1]);
  rows_split(b.x * second, (near ? b.y : b.z) * second, h[2], l[2]);
  rows_split((near ? b.z : b.y) * second, b.w * second, h[3], l[3]);
  *(KN_LOCAL uint4*)to = kn_u4(h[0], h[1], h[2], h[3]);
  *(KN_LOCAL uint4*)(to + 16) = kn_u4(l[0], l[1], l[2], l[3]);
}

// First weight row of the block's own tile `tile`, and how many rows it has.
KN_FN uint rows_begin(uint tile, uint first, uint step, uint n, uint with, KN_PRIVATE uint& rows) {
  const uint n0 = (first + (with & ROWS_GATED ? tile / 2 : tile) * step) * ROWS_TILE;
  rows = kn_min(ROWS_TILE, n - n0);
  return with & ROWS_GATED && tile % 2 ? n0 + n : n0;
}

// What the warps have of an element of a tile, whose first slice warp `warp0` of W has: `apart` words from one warp to the next.
template <uint W> KN_FN float rows_sum(KN_LOCAL const float* at, uint apart, uint warp0, uint slices) {
  float all = 0;
  KN_UNROLL for (uint v = 0; v < W; ++v) {
    if ((v >= warp0 ? v - warp0 : v + W - warp0) < slices) all += at[v * apart];
  }
  return all;
}

// The weights are at `w`; input rows are packed, `m` of them, at most 4 NT. The block takes the tiles `first`, `first + step`, ... Every thread
// of the block calls; a barrier comes before the next call. W warps, WORDS of threadgroup memory. `norm`, `eps` and `residual` are used as `with`
// says, and any pointer otherwise.
template <class F, uint W, uint STAGES, uint BATCH, uint WORDS, uint NT, bool ONE>
KN_FN void rows_product(KN_GLOBAL const uchar* w, KN_GLOBAL const float* x, KN_GLOBAL float* y, uint m, uint n, uint k, uint first, uint step,
                        KN_LOCAL uint* shared, uint tid, uint lane, uint warp, uint with, KN_GLOBAL const float* norm, float eps,
                        KN_GLOBAL const float* residual) {
  const uint ROWS = ROWS_OF(NT, ONE), SLICE = ROWS_SLICE(NT, ONE), OWN = ONE ? 1 : 2, AHEAD = 4, PARTS = ROWS_PARTS(F);
  const uint CHUNK = ROWS_CHUNK(F, W, STAGES, BATCH, NT, ONE, WORDS), SLICE_BYTES = 8 / F::GROUPS * F::BYTES;
  static_assert(CHUNK > 0 && WORDS > CHUNK, "room for a slice");
  const uint groups = k / 32, all_slices = kn_cdiv(groups, 8), row_bytes = groups / F::GROUPS * F::BYTES;
  const uint tiles = kn_cdiv(n, ROWS_TILE), by = with & ROWS_GATED ? 1 : 0;
  const uint count = first < tiles ? kn_cdiv(tiles - first, step) << by : 0;
  const uint r = lane / 4, t = lane % 4;
  KN_LOCAL uchar* ring = (KN_LOCAL uchar*)(shared + warp * ROWS_RING(F, STAGES));
  KN_LOCAL float* red = (KN_LOCAL float*)(shared + W * ROWS_RING(F, STAGES));
  KN_LOCAL float* squares = red + ROWS_SUMS(W, BATCH, NT, ONE);  // of each warp
  KN_LOCAL uint* xs = (KN_LOCAL uint*)squares + 16;
  KN_LOCAL float* sums = (KN_LOCAL float*)(xs + CHUNK * SLICE);
  KN_LOCAL float* inverses = sums + CHUNK * ROWS * 8 * PARTS;

  // The lane's place in a slice of activations: column and quarter. Its results are of input row t of a tile.
  const uint place = ONE ? r % 2 * 16 + 4 * t : r * 16 + 4 * t, row_of_tile = ONE ? 0 : t;
  const float unit = (float)(1 << (24 - F::SHIFT));
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

    kn_barrier();
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
      KN_UNROLL for (uint i = 0; i < AHEAD; ++i) big[i] = kn_warp_max(kn_max(rows_largest(v[i][0]), rows_largest(v[i][1])));
      KN_UNROLL for (uint i = 0; i < AHEAD; ++i) {
        const uint at = i0 + i * W, row = at % ROWS, s = at / ROWS;
        if (at < slices * ROWS) {
          // Columns of a tile: high and low of its first row, of its second, ...
          const uint column = ONE ? 0 : row / 4 * 4 * ROWS_GROUP + row % 4 * 32;
          rows_convert<F>(v[i][0], v[i][1], big[i], xs + s * SLICE + lane / 4 * ROWS * ROWS_GROUP + column + 4 * t,
                          sums + ((s * ROWS + row) * 8 + lane / 4) * PARTS, inverses + at, lane);
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
    KN_NO_UNROLL for (uint batch = 0; batch < count; batch += BATCH) {
      const uint end = kn_min(batch + BATCH, count);
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
        KN_LOCAL const uint* parts = xs + slice * SLICE + place;
        KN_LOCAL const float* sum = sums + (slice * ROWS + row_of_tile) * 8 * PARTS;
        float a[NT][OWN], o[NT][OWN], d[OWN], least[OWN], factor[NT];
        KN_UNROLL for (uint i = 0; i < NT; ++i) {
          KN_UNROLL for (uint j = 0; j < OWN; ++j) a[i][j] = o[i][j] = 0;
          factor[i] = inverses[slice * ROWS + 4 * i + row_of_tile];
        }
        kn_async_wait<STAGES - 1>();
        kn_warp_sync();
        uint heads[OWN][F::S];
        F::ahead((KN_LOCAL const typename F::Word*)(ONE && t >= 2 ? bytes1 : bytes0), heads[0]);
        if (!ONE) F::ahead((KN_LOCAL const typename F::Word*)bytes1, heads[OWN - 1]);
        if (F::GROUPS == 8 || here == 8) {
          KN_UNROLL for (uint g = 0; g < 8; ++g) rows_group<F, NT, ONE>(bytes0, bytes1, heads, parts, sum, g, a, o, lane);
        } else {
          KN_NO_UNROLL for (uint g = 0; g < here; ++g) rows_group<F, NT, ONE>(bytes0, bytes1, heads, parts, sum, g, a, o, lane);
        }
        KN_UNROLL for (uint j = 0; j < OWN; ++j) {
          F::whole(heads[j], d[j], least[j]);
          d[j] *= unit;
          KN_UNROLL for (uint i = 0; i < NT; ++i) acc[i][j] += factor[i] * (F::OFFSET ? d[j] * a[i][j] + least[j] * o[i][j] : d[j] * a[i][j]);
        }
        kn_warp_sync();
        ROWS_FETCH(stage)
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        const uint was = tile;
        slice += more_slices;
        tile += more_tiles + (slice >= slices ? 1 : 0);
        slice -= slice >= slices ? slices : 0;
        if (tile != was) {
          KN_LOCAL float* to = meet + ((was - batch) * W + warp) * (ROWS_TILE * ROWS);
          KN_UNROLL for (uint i = 0; i < NT; ++i) {
            KN_UNROLL for (uint j = 0; j < OWN; ++j) {
              if (!ONE || t % 2 == 0) to[ONE ? r + 4 * t : (4 * i + t) * ROWS_TILE + r + 8 * j] = acc[i][j];
              acc[i][j] = 0;
            }
          }
        }
      }
      kn_barrier();
      KN_NO_UNROLL for (uint i = tid; i < ((end - batch) >> by) * m * ROWS_TILE; i += 32 * W) {
        const uint of = i / ROWS_TILE / m, row = i / ROWS_TILE % m, column = (first + ((batch >> by) + of) * step) * ROWS_TILE + i % ROWS_TILE;
        const uint apart = ROWS_TILE * ROWS, place = row * ROWS_TILE + i % ROWS_TILE, own = of << by;
        float all = unnorm * rows_sum<W>(meet + (own * W * apart + place), apart, (batch + own) * slices % W, slices);
        if (with & ROWS_GATED) {
          const float up = unnorm * rows_sum<W>(meet + ((own + 1) * W * apart + place), apart, (batch + own + 1) * slices % W, slices);
          all = all * (1.0f / (1.0f + kn_exp(-all))) * up;
        }
        if (column < n) {
          const ulong at = (ulong)row * n + column;
          if (with & ROWS_ADD && chunk == 0) all += residual[at];
          y[at] = chunk == 0 ? all : y[at] + all;
        }
      }
      meet = meet == red ? red + ROWS_SUMS(W, BATCH, NT, ONE) / 2 : red;
    }
    kn_async_wait<0>();
#undef ROWS_FETCH
  }
}
