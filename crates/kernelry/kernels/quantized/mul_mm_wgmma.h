#include "quantized/blocks.h"
#include "common/wgmma.h"
#include "matmul/tile.h"
// Products of many rows with a matrix of GGML blocks on Hopper's matrix unit: y^T[n, m] = w[n, k] x^T[k, m], weights from registers and
// activations from threadgroup memory.
//
// A block of two warpgroups takes 128 TILES weight rows by ACT input rows and steps over k by 64. Raw weights of 256 (128 where groups of 32 are
// more than 18 bytes) k fly into a ring of two slots ahead of their use. A quarter of a group of 32 of rows r and r + 8 is, decoded, what a lane
// holds of both products of 16 k: the first has the even words of the quarter, the second the odd ones, so the activations of a group lie as
// values 0 2, 4 6, .. 28 30, 1 3, 5 7, .. 29 31. Products of one group run while the next one is decoded, and activations are turned to f16 for
// the next step; three panels of activations, so that one barrier a step is enough.
//
// Activations are multiplied by a power of two per row as in tile.h: 2^126 at first, which is right for zeros alone or the smallest of numbers;
// a value that becomes infinite makes the block look at the rows of this step, set their factors anew and rescale the sums.
#ifdef KN_WGMMA

#define MMW_SLICE(F) (F::LEN == 32 && F::BYTES > 18 ? 4u : 8u)
#define MMW_SLICE_BYTES(F) (MMW_SLICE(F) / F::GROUPS * F::BYTES)
#define MMW_CHUNKS(F) ((MMW_SLICE_BYTES(F) + (MMW_SLICE_BYTES(F) % 16 ? 14 : 0) + 15) / 16)
#define MMW_STRIDE(F) (16 * (MMW_CHUNKS(F) | 1))  // an odd number of 16-byte pieces: eight rows on different banks
#define MMW_PANELS 3u
#define MMW_UNSEEN 0x1p126f
// Bytes of threadgroup memory; 1023 of them to begin at a multiple of 1024.
#define MMW_BYTES(F, TILES, ACT, PARTS) (1024 + MMW_PANELS * (PARTS) * (ACT) * 128 + (ACT) * 12 + 128 * (TILES) * (2 * MMW_STRIDE(F) + MMW_TABLE(F)))

// Scales and offsets of 8 groups of 32 rows of a warp in f32, where each takes many operations: one row a lane. A row has 72 bytes, for the banks.
#define MMW_TABLE(F) (!F::PLAIN && F::OFFSET ? 72u : 0u)
template <class F> KN_FN void mmw_scales(KN_LOCAL const uchar* row, KN_LOCAL float2* table) {
  KN_LOCAL const typename F::Word* block = (KN_LOCAL const typename F::Word*)row;
  uint shared[F::S];
  float scale, offset;
  F::ahead(block, shared);
  F::whole(shared, scale, offset);
  KN_UNROLL for (uint g = 0; g < 8; ++g) {
    float s0, s1, o;
    F::part(block, shared, g, s0, s1, o);
    table[g] = kn_f2(scale * s0, offset * o);
  }
}

// The eight weights of a quarter in f16: words of values (0, 2), (1, 3) of its first and of its second four.
template <class F>
KN_FN void mmw_decode(KN_LOCAL const uchar* row, KN_LOCAL const float2* table, uint group, uint t, KN_PRIVATE uint (&c)[4]) {
  const uint g = group % F::GROUPS;
  KN_LOCAL const typename F::Word* block = (KN_LOCAL const typename F::Word*)(row + group / F::GROUPS * F::BYTES);
  uint q[F::Q];
  F::load(block, g, t, q);
  F::codes(q, g, t, c);
  if (F::PLAIN) {
    uint h[F::H];
    F::head(block, g, h);
    const uint d = kn_permute(h[0], 0, 0x1010u), least = F::OFFSET ? kn_permute(h[0], 0, 0x3232u) : 0x80008000u;
    KN_UNROLL for (uint j = 0; j < 4; ++j) c[j] = kn_fma_h2(c[j], d, least);
  } else {
    float s0, s1, offset = 0;
    if (MMW_TABLE(F)) {
      const float2 both = table[group];
      s0 = s1 = both.x;
      offset = both.y;
    } else {
      uint shared[F::S];
      float scale;
      F::ahead(block, shared);
      F::whole(shared, scale, offset);
      F::part(block, shared, g, s0, s1, offset);
      s0 *= scale;
      s1 *= scale;
    }
    KN_UNROLL for (uint j = 0; j < 4; ++j) {
      const float2 v = kn_unpack_f16(c[j]);
      const float s = j < 2 ? s0 : s1;
      c[j] = kn_pack_f16(s * v.x + offset, s * v.y + offset);
    }
  }
}

// Four activations as one word of the even and one of the odd; `bad` becomes NaN where one is infinite. With LOW, what they leave.
template <bool LOW> KN_FN void mmw_split(float4 v, float s, KN_PRIVATE uint (&high)[2], KN_PRIVATE uint (&low)[2], KN_PRIVATE uint& bad) {
  v = kn_f4(v.x * s, v.y * s, v.z * s, v.w * s);
  high[0] = kn_pack_f16(v.x, v.z);
  high[1] = kn_pack_f16(v.y, v.w);
  bad = kn_fma_h2(high[0], 0, kn_fma_h2(high[1], 0, bad));
  if (LOW) {
    const float2 a = kn_unpack_f16(high[0]), b = kn_unpack_f16(high[1]);
    low[0] = kn_pack_f16(v.x - a.x, v.z - a.y);
    low[1] = kn_pack_f16(v.y - b.x, v.w - b.y);
  }
}

// w: the matrix, rows of row_bytes (a multiple of 16, as the address is). x: rows x_stride apart, 16-byte pieces. k: a multiple of 64.
template <class F, uint TILES, uint ACT, uint PARTS>
KN_FN void mmw_product(KN_GLOBAL const uchar* w, ulong row_bytes, KN_GLOBAL const float* x, ulong x_stride, KN_GLOBAL float* y, uint m, uint n,
                       uint k, uint m0, uint n0, KN_LOCAL uchar* shared, uint tid) {
  const uint STRIDE = MMW_STRIDE(F), SLICE = MMW_SLICE(F), CHUNKS = MMW_CHUNKS(F), WROWS = 128 * TILES, SLOT = WROWS * STRIDE;
  const uint ITEMS = ACT / 32, PANEL = PARTS * ACT * 128, STEPS = SLICE / 2;
  const uint lane = tid % 32, warp = tid / 32, quad = lane % 8, t = lane % 4;
  const uint panels = (wgmma_address(shared) + 1023) & ~1023u;
  KN_LOCAL uchar* panel = shared + (panels - wgmma_address(shared));
  KN_LOCAL float* factor = (KN_LOCAL float*)(panel + MMW_PANELS * PANEL);
  KN_LOCAL float* scale = factor + ACT;
  KN_LOCAL uint* begin = (KN_LOCAL uint*)(scale + ACT);
  KN_LOCAL uchar* table = (KN_LOCAL uchar*)(begin + ACT);
  KN_LOCAL uchar* raw = table + WROWS * MMW_TABLE(F);
  const uint steps = k / 64;

  // Activations: this thread's rows are xrow + 32 i, its values 4 quad and 32 + 4 quad of a step. Rows beyond the edge are any row.
  const uint xrow = 8 * (warp / 2) + 2 * (lane / 8) + warp % 2;
  x += m0 * x_stride + 4 * quad;
  KN_UNROLL for (uint i = 0; i < ITEMS; ++i) {
    if (quad == 0) {
      scale[xrow + 32 * i] = MMW_UNSEEN;
      begin[xrow + 32 * i] = kn_min(xrow + 32 * i, m - 1 - m0) * (uint)x_stride;
    }
  }
  kn_warp_sync();
  const uint place = xrow * 128 + ((quad / 4 ^ (xrow & 7)) << 4) + 4 * (quad % 4);
  float4 v[ITEMS][2];
  uint bad = 0;

  // Weights: this lane's rows are wrow, wrow + 8 and the same 64 rows on.
  const uint wrow = 64 * TILES * (warp / 4) + 16 * (warp % 4) + lane / 4;
  float acc[TILES][ACT / 2];
  KN_UNROLL for (uint i = 0; i < TILES; ++i) {
    KN_UNROLL for (uint j = 0; j < ACT / 2; ++j) acc[i][j] = 0;
  }
  uint a[2][TILES][8];

#define MMW_COPY(s)                                                                                                               \
  {                                                                                                                               \
    const uint skip = (s) * MMW_SLICE_BYTES(F) & 15;                                                                              \
    const ulong piece = (ulong)(s) * MMW_SLICE_BYTES(F) - skip;                                                                     \
    const uint end = (uint)kn_min((ulong)skip + MMW_SLICE_BYTES(F), row_bytes - piece);                                           \
    KN_LOCAL uchar* slot = raw + (s) % 2 * SLOT;                                                                                  \
    KN_NO_UNROLL for (uint i = 0; i < (WROWS * CHUNKS + 255) / 256; ++i) {                                                        \
      const uint c = tid + 256 * i, r = c / CHUNKS, at = 16 * (c % CHUNKS);                                                       \
      if (r < WROWS && at < end) kn_async_copy16(slot + (r * STRIDE + at), w + (kn_min(n0 + r, n - 1) * row_bytes + piece + at)); \
    }                                                                                                                             \
    kn_async_commit();                                                                                                            \
  }
#define MMW_LOAD(i, steps)                                       \
  {                                                              \
    KN_GLOBAL const float* p = x + begin[xrow + 32 * i];         \
    v[i][0] = kn_load4(p + 64 * (steps));                        \
    v[i][1] = kn_load4(p + 64 * (steps) + 32);                   \
  }
#define MMW_PLACE(i, to)                                                                                      \
  {                                                                                                           \
    const float s = scale[xrow + 32 * (i)];                                                                   \
    KN_UNROLL for (uint h = 0; h < 2; ++h) {                                                                  \
      uint high[2], low[2];                                                                                   \
      mmw_split<PARTS == 2>(v[i][h], s, high, low, bad);                                                      \
      KN_UNROLL for (uint o = 0; o < 2; ++o) {                                                                \
        KN_LOCAL uchar* p = (to) + 4096 * (i) + (place ^ (64 * h + 32 * o));                                  \
        *(KN_LOCAL uint*)p = high[o];                                                                         \
        if (PARTS == 2) *(KN_LOCAL uint*)(p + ACT * 128) = low[o];                                            \
      }                                                                                                       \
    }                                                                                                         \
  }
// Sets the factors of the rows of which a value is out of range, `ahead` steps on, and writes the rows again.
#define MMW_RANGE(to, ahead)                                                                                  \
  {                                                                                                           \
    KN_NO_UNROLL for (uint i = 0; i < ITEMS; ++i) {                                                           \
      KN_GLOBAL const float* from = x + begin[xrow + 32 * i] + 64 * (ahead);                                  \
      float4 u[2] = {kn_load4(from), kn_load4(from + 32)};                                                    \
      float big = 0;                                                                                          \
      KN_UNROLL for (uint h = 0; h < 2; ++h) {                                                                \
        const float e[4] = {kn_abs(u[h].x), kn_abs(u[h].y), kn_abs(u[h].z), kn_abs(u[h].w)};                  \
        KN_UNROLL for (uint j = 0; j < 4; ++j) big = e[j] < KN_INF ? kn_max(big, e[j]) : big;                 \
      }                                                                                                       \
      big = kn_max(big, kn_shfl_xor(big, 1));                                                                 \
      big = kn_max(big, kn_shfl_xor(big, 2));                                                                 \
      big = kn_max(big, kn_shfl_xor(big, 4));                                                                 \
      float s = scale[xrow + 32 * i], by = 1;                                                                 \
      kn_warp_sync();                                                                                         \
      if (big * s > 32768.0f) {                                                                               \
        const float fresh = tile_scale(big);                                                                   \
        by = fresh * tile_inverse(s);                                                                          \
        s = fresh;                                                                                            \
      }                                                                                                       \
      if (quad == 0) {                                                                                        \
        scale[xrow + 32 * i] = s;                                                                             \
        factor[xrow + 32 * i] = by;                                                                           \
      }                                                                                                       \
      KN_UNROLL for (uint h = 0; h < 2; ++h) {                                                                \
        uint high[2], low[2];                                                                                 \
        mmw_split<PARTS == 2>(u[h], s, high, low, bad);                                                       \
        KN_UNROLL for (uint o = 0; o < 2; ++o) {                                                              \
          KN_LOCAL uchar* p = (to) + 4096 * i + (place ^ (64 * h + 32 * o));                                  \
          *(KN_LOCAL uint*)p = high[o];                                                                       \
          if (PARTS == 2) *(KN_LOCAL uint*)(p + ACT * 128) = low[o];                                          \
        }                                                                                                     \
      }                                                                                                       \
    }                                                                                                         \
    bad = 0;                                                                                                  \
    wgmma_publish();                                                                                          \
    kn_barrier();                                                                                             \
  }

  MMW_COPY(0)
  MMW_RANGE(panel, 0)
  KN_UNROLL for (uint i = 0; i < ITEMS; ++i) {
    if (steps > 1) MMW_LOAD(i, 1)
  }
  kn_async_wait<0>();
  kn_barrier();

  uint now = 0;  // the panel of this step
  KN_NO_UNROLL for (uint step = 0; step < steps; ++step) {
    const uint slice = step / STEPS, next = now == MMW_PANELS - 1 ? 0 : now + 1;
    if (step % STEPS == 0) {
      if ((slice + 1) * STEPS < steps) MMW_COPY(slice + 1)
    }
    KN_LOCAL const uchar* rows = raw + slice % 2 * SLOT + wrow * STRIDE + (slice * MMW_SLICE_BYTES(F) & 15);
    KN_LOCAL const float2* scales = (KN_LOCAL const float2*)(table + wrow * MMW_TABLE(F));
    if (MMW_TABLE(F) && step % STEPS == 0) {
      kn_warp_sync();
      if (lane < 16 * TILES) {
        const uint row = 64 * TILES * (warp / 4) + 16 * (warp % 4) + lane % 16 + lane / 16 * 64;
        mmw_scales<F>(raw + slice % 2 * SLOT + row * STRIDE, (KN_LOCAL float2*)(table + row * MMW_TABLE(F)));
      }
      kn_warp_sync();
    }
    const ulong operand = wgmma_rows(panels + now * PANEL);
    KN_LOCAL uchar* to = panel + next * PANEL;
    KN_UNROLL for (uint h = 0; h < 2; ++h) {
      const uint group = 2 * (step % STEPS) + h;
      KN_UNROLL for (uint i = 0; i < TILES; ++i) {
        uint c0[4], c1[4];
        mmw_decode<F>(rows + 64 * i * STRIDE, scales + 8 * i * MMW_TABLE(F), group, t, c0);
        mmw_decode<F>(rows + (64 * i + 8) * STRIDE, scales + (8 * i + 1) * MMW_TABLE(F), group, t, c1);
        KN_UNROLL for (uint o = 0; o < 2; ++o) {
          a[h][i][4 * o] = c0[o];
          a[h][i][4 * o + 1] = c1[o];
          a[h][i][4 * o + 2] = c0[2 + o];
          a[h][i][4 * o + 3] = c1[2 + o];
        }
      }
      wgmma_fence();
      KN_UNROLL for (uint o = 0; o < 2; ++o) {
        KN_UNROLL for (uint part = 0; part < PARTS; ++part) {
          KN_UNROLL for (uint i = 0; i < TILES; ++i) {
            Wgmma<kn_f16, ACT, 0>::rs(acc[i], a[h][i][4 * o], a[h][i][4 * o + 1], a[h][i][4 * o + 2], a[h][i][4 * o + 3],
                                      operand + (part * ACT * 8 + 4 * h + 2 * o), 1);
          }
        }
      }
      wgmma_commit();
      wgmma_wait<1>();
      if (step + 1 < steps) {
        KN_UNROLL for (uint i = h * ITEMS / 2; i < (h + 1) * ITEMS / 2; ++i) MMW_PLACE(i, to)
      }
      if (step + 2 < steps) {
        KN_UNROLL for (uint i = h * ITEMS / 2; i < (h + 1) * ITEMS / 2; ++i) MMW_LOAD(i, 2)
      }
    }
    wgmma_publish();
    if (step % STEPS == STEPS - 1) kn_async_wait<0>();
    if (wgmma_any((bad & 0x7fff7fffu) != 0)) {
      MMW_RANGE(to, 1)
      wgmma_wait<0>();
      KN_UNROLL for (uint i = 0; i < TILES; ++i) {
        wgmma_settle(acc[i]);
        KN_UNROLL for (uint j = 0; j < ACT / 8; ++j) {
          const float2 by = *(KN_LOCAL const float2*)(factor + 8 * j + 2 * t);
          KN_UNROLL for (uint e = 0; e < 4; ++e) acc[i][4 * j + e] *= e % 2 ? by.y : by.x;
        }
      }
      kn_barrier();
    }
    now = next;
    x += 64;
  }
  wgmma_wait<0>();
  KN_UNROLL for (uint i = 0; i < TILES; ++i) wgmma_settle(acc[i]);
  KN_UNROLL for (uint i = 0; i < TILES; ++i) {
    const uint row = n0 + wrow + 64 * i;
    KN_UNROLL for (uint j = 0; j < ACT / 8; ++j) {
      const float2 s = *(KN_LOCAL const float2*)(scale + 8 * j + 2 * t), f = kn_f2(tile_inverse(s.x), tile_inverse(s.y));
      KN_UNROLL for (uint e = 0; e < 4; ++e) {
        const uint col = m0 + 8 * j + 2 * t + e % 2, r = row + e / 2 * 8;
        if (col < m && r < n) y[(ulong)col * n + r] = acc[i][4 * j + e] * (e % 2 ? f.y : f.x);
      }
    }
  }
  kn_barrier();
#undef MMW_COPY
#undef MMW_LOAD
#undef MMW_PLACE
#undef MMW_RANGE
}

// The tile of block `block`, if there is one: of 128 TILES weight rows by ACT input rows. Blocks at work at one time share weights and
// activations: they take tiles column by column from eight rows of tiles.
template <class F, uint PARTS, uint TILES, uint ACT, class P>
KN_FN void mmw_tile(KN_GLOBAL const uchar* w, KN_GLOBAL const float* x, KN_GLOBAL float* y, KN_PARAMS const P& p, ulong row_bytes,
                    KN_LOCAL uchar* shared, uint tid, uint block, uint blocks) {
  const uint down = kn_cdiv(p.m, ACT), along = kn_cdiv(p.n, 128 * TILES), each = down * along;
  KN_NO_UNROLL for (uint i = block; i < each * p.ne12 * p.ne13; i += blocks) {
    const uint z = i / each, in = i % each, first = in / (8 * along) * 8, high = kn_min(down - first, 8u);
    const uint tile_m = first + in % (8 * along) % high, tile_n = in % (8 * along) / high;
    const ulong matrix = z % p.ne12 / p.r2 + (ulong)(z / p.ne12 / p.r3) * p.ne02;
    mmw_product<F, TILES, ACT, PARTS>(w + matrix * p.n * row_bytes, row_bytes, x + z * p.x_batch_stride, p.x_row_stride,
                                      y + (ulong)z * p.m * p.n, p.m, p.n, p.k, tile_m * ACT, tile_n * 128 * TILES, shared, tid);
  }
}
#endif
