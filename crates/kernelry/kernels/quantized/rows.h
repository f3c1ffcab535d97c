#include "quantized/blocks.h"
// KN_WARP_32_ONLY: the matrix unit's fragments are spread over 32 lanes.
//
// Products of few input rows with a matrix of GGML blocks: y[m, n] = sum_k x[m, k] w[n, k], weights exact and activations in f32.
//
// A block of threads takes 16 weight rows, and its warps take slices of k in turn, each on its own: a slice of the 16 rows is copied to
// threadgroup memory in 16-byte pieces, two slices in flight, whatever alignment the format has there. Codes are integers of few bits, so that
// they are exact in f16 and the matrix unit multiplies them: A is 16 weight rows by 16 codes, a column pair of B is one input row as high and
// low part (f16 each, 22 bits together, after a power of two has put the row into range), f32 sums are multiplied by the scale of their
// group. Up to four input rows cost what one does. At the end the warps' sums are added in the order of the warps.

#define ROWS_TILE 16u
// Words of threadgroup memory of a warp: two stages of a slice, activations of 128 / NT values of k, their sums, scales of input rows.
#define ROWS_X 512u
#define ROWS_RING(F) (2 * ROWS_TILE * F::STRIDE / 4)
#define ROWS_WARP(F) (ROWS_RING(F) + ROWS_X + 16 + 8)
#define ROWS_SHARED(F) (F::WARPS * (ROWS_WARP(F) + 8))

// Copies the bytes [begin, end) of a weight row, whose place in threadgroup memory begins at the multiple of 16 below `begin`. Four lanes share
// the row. Pieces that reach beyond `safe` bytes after `w` are copied by two bytes.
KN_FN void rows_copy(KN_LOCAL uchar* to, KN_GLOBAL const uchar* w, ulong begin, ulong end, ulong safe, uint t) {
  const ulong base = begin & ~(ulong)15;
  for (ulong at = base + 16 * t; at < end; at += 64) {
    if (at + 16 <= safe) {
      kn_async_copy16(to + (uint)(at - base), w + at);
    } else {
      for (ulong i = at; i < at + 16; i += 2) {
        if (i >= begin && i < end) *(KN_LOCAL ushort*)(to + (uint)(i - base)) = *(KN_GLOBAL const ushort*)(w + i);
      }
    }
  }
}

// The weights are at `w`, of which `bytes` may be read; input rows are packed, `m` of them, at most 4 * NT. Every thread of the block calls.
template <class F, uint NT>
KN_FN void rows_product(KN_GLOBAL const uchar* w, ulong bytes, KN_GLOBAL const float* x, KN_GLOBAL float* y, uint m, uint n, uint k, uint n0,
                        KN_LOCAL uint* shared, uint tid, uint lane, uint warp) {
  const uint WARPS = F::WARPS, XK = 128 / NT, SLICE_BYTES = F::SLICE / F::GROUPS * F::BYTES;
  const uint groups = k / 32, slices = kn_cdiv(groups, F::SLICE);
  const ulong row_bytes = (ulong)(groups / F::GROUPS) * F::BYTES;
  const uint r = lane / 4, t = lane % 4;
  const ulong row0 = (ulong)kn_min(n0 + r, n - 1) * row_bytes, row1 = (ulong)kn_min(n0 + r + 8, n - 1) * row_bytes;
  const ulong safe = kn_aligned(w, 16) ? bytes : 0;
  KN_LOCAL uint* mine = shared + warp * ROWS_WARP(F);
  KN_LOCAL uchar* ring = (KN_LOCAL uchar*)mine;
  KN_LOCAL uint* xs = mine + ROWS_RING(F);
  KN_LOCAL float* sums = (KN_LOCAL float*)(xs + ROWS_X);
  KN_LOCAL float* scales = sums + 16;
  KN_LOCAL float* largest = (KN_LOCAL float*)(shared + WARPS * ROWS_WARP(F));

#define ROWS_FETCH(slice, stage)                                                                                            \
  if ((slice) < slices) {                                                                                                   \
    const ulong from = (ulong)(slice) * SLICE_BYTES;                                                                        \
    const ulong to = from + kn_min((ulong)SLICE_BYTES, row_bytes - from);                                                   \
    KN_LOCAL uchar* place = ring + (stage) * (ROWS_TILE * F::STRIDE);                                                       \
    rows_copy(place + r * F::STRIDE, w, row0 + from, row0 + to, safe, t);                                                   \
    rows_copy(place + (r + 8) * F::STRIDE, w, row1 + from, row1 + to, safe, t);                                             \
  }                                                                                                                         \
  kn_async_commit();

  ROWS_FETCH(warp, 0u)
  ROWS_FETCH(warp + WARPS, 1u)

  // The largest magnitude of each input row, for its power of two. Columns of B without a row stay zero.
  const bool vector = kn_aligned(x, 16);
  for (uint i = lane; i < ROWS_X + 16; i += 32) xs[i] = 0;
  for (uint j = 0; j < m; ++j) {
    KN_GLOBAL const float* row = x + (ulong)j * k;
    float big = 0;
    if (vector) {
      for (uint i = 4 * tid; i < k; i += 128 * WARPS) {
        const float4 v = kn_load4(row + i);
        big = kn_max(kn_max(big, kn_max(kn_abs(v.x), kn_abs(v.y))), kn_max(kn_abs(v.z), kn_abs(v.w)));
      }
    } else {
      for (uint i = tid; i < k; i += 32 * WARPS) big = kn_max(big, kn_abs(row[i]));
    }
    big = kn_warp_max(big);
    if (lane == 0) largest[8 * warp + j] = big;
  }
  kn_barrier();
  if (lane < m) {
    float big = 0;
    for (uint i = 0; i < WARPS; ++i) big = kn_max(big, largest[8 * i + lane]);
    scales[lane] = blk_range_scale(big, 13);
  }
  kn_warp_sync();

  float acc[NT][2];
  KN_UNROLL for (uint i = 0; i < NT; ++i) acc[i][0] = acc[i][1] = 0;
  uint stage = 0;
  for (uint slice = warp; slice < slices; slice += WARPS) {
    kn_async_wait<1>();
    const uint here = kn_min((uint)F::SLICE, groups - slice * F::SLICE);
    const ulong from = (ulong)slice * SLICE_BYTES;
    KN_LOCAL const uchar* place = ring + stage * (ROWS_TILE * F::STRIDE);
    KN_LOCAL const uchar* bytes0 = place + r * F::STRIDE + (uint)((row0 + from) & 15);
    KN_LOCAL const uchar* bytes1 = place + (r + 8) * F::STRIDE + (uint)((row1 + from) & 15);
    uint h0[F::H], h1[F::H];
    for (uint part = 0; part * (XK / 32) < here; ++part) {
      kn_warp_sync();
      // Activations of this part: NT rows at once, four values a lane.
      const uint quad = lane % (32 / NT), first = 4 * quad;
      const uint kx = slice * (32 * F::SLICE) + part * XK + first;
      KN_UNROLL for (uint j0 = 0; j0 < 4 * NT; j0 += NT) {
        const uint j = j0 + lane / (32 / NT);
        if (j0 < m) {
          float4 v = kn_f4(0, 0, 0, 0);
          const bool there = j < m && kx < k;
          if (there) {
            KN_GLOBAL const float* at = x + ((ulong)j * k + kx);
            const float s = scales[j];
            v = vector ? kn_load4(at) : kn_f4(at[0], at[1], at[2], at[3]);
            v = kn_f4(v.x * s, v.y * s, v.z * s, v.w * s);
            uint2 high, low;
            blk_split(v, high, low);
            const uint column = ((quad / 8 * NT + j / 4) * 32 + 2 * (j % 4) * 4 + quad % 4) * 4 + (quad / 4 % 2) * 2;
            xs[column] = high.x;
            xs[column + 1] = high.y;
            xs[column + 16] = low.x;
            xs[column + 17] = low.y;
          }
          if (F::OFFSET) {
            float sum = (v.x + v.y) + (v.z + v.w);
            sum += kn_shfl_xor(sum, 1);
            sum += kn_shfl_xor(sum, 2);
            sum += kn_shfl_xor(sum, 4);
            if (there && quad % 8 == 0) sums[j * (XK / 32) + quad / 8] = sum;
          }
        }
      }
      kn_warp_sync();
      KN_UNROLL for (uint i = 0; i < XK / 32; ++i) {
        const uint group = part * (XK / 32) + i;
        if (group < here) {
          const uint g = F::GROUPS == 1 ? 0 : group;
          const uint skip = F::GROUPS == 1 ? group * F::BYTES : 0;
          KN_LOCAL const typename F::Word* b0 = (KN_LOCAL const typename F::Word*)(bytes0 + skip);
          KN_LOCAL const typename F::Word* b1 = (KN_LOCAL const typename F::Word*)(bytes1 + skip);
          uint q0[F::Q], q1[F::Q], c0[4], c1[4];
          F::load(b0, g, t, q0);
          F::load(b1, g, t, q1);
          F::codes(q0, g, t, c0);
          F::codes(q1, g, t, c1);
          if (F::H < 4 || group == 0) {
            F::head(b0, g, h0);
            F::head(b1, g, h1);
          }
          float s00, s01, s10, s11, o0, o1;
          F::scale(h0, g, s00, s01, o0);
          F::scale(h1, g, s10, s11, o1);
          const uint a0[4] = {c0[0], c1[0], c0[1], c1[1]}, a1[4] = {c0[2], c1[2], c0[3], c1[3]};
          KN_UNROLL for (uint nt = 0; nt < NT; ++nt) {
            const uint4 word = *(KN_LOCAL const uint4*)(xs + ((i * NT + nt) * 32 + lane) * 4);
            const uint b[4] = {word.x, word.y, word.z, word.w};
            float d[4] = {0, 0, 0, 0};
            kn_mma<kn_f16>(d, a0, b, lane);
            if (F::HALVES) {
              acc[nt][0] += s00 * (d[0] + d[1]);
              acc[nt][1] += s10 * (d[2] + d[3]);
              d[0] = d[1] = d[2] = d[3] = 0;
            }
            kn_mma<kn_f16>(d, a1, b + 2, lane);
            acc[nt][0] += s01 * (d[0] + d[1]);
            acc[nt][1] += s11 * (d[2] + d[3]);
            if (F::OFFSET) {
              const float sum = sums[(4 * nt + t) * (XK / 32) + i];
              acc[nt][0] += o0 * sum;
              acc[nt][1] += o1 * sum;
            }
          }
        }
      }
    }
    kn_warp_sync();
    ROWS_FETCH(slice + 2 * WARPS, stage)
    stage ^= 1;
  }
#undef ROWS_FETCH
  kn_async_wait<0>();

  // Sums of the warps: [input row / 4][weight row / 8][lane] in the place of the activations.
  KN_LOCAL float* red = (KN_LOCAL float*)xs;
  kn_warp_sync();
  KN_UNROLL for (uint nt = 0; nt < NT; ++nt) {
    red[(2 * nt) * 32 + lane] = acc[nt][0];
    red[(2 * nt + 1) * 32 + lane] = acc[nt][1];
  }
  kn_barrier();
  for (uint i = tid; i < ROWS_TILE * m; i += 32 * WARPS) {
    const uint j = i / ROWS_TILE, row = i % ROWS_TILE;
    const uint at = (2 * (j / 4) + row / 8) * 32 + row % 8 * 4 + j % 4;
    float sum = 0;
    for (uint v = 0; v < WARPS; ++v) sum += ((KN_LOCAL const float*)(shared + v * ROWS_WARP(F) + ROWS_RING(F)))[at];
    if (n0 + row < n) y[(ulong)j * n + n0 + row] = sum * blk_inverse(scales[j]);
  }
  kn_barrier();
}
