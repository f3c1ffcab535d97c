#include "quantized/blocks.h"
#include "matmul/tile.h"
#include "matmul/dense_wgmma.h"
#include "quantized/mul_mm_wgmma.h"
// KN_WARP_32_ONLY: see tile.h.
//
// Products of many rows with a matrix of GGML blocks. The weight is decoded in f32 and rounded once to f16 (formats whose scale is stored as f16 do
// so in one f16 operation, which rounds the exact product likewise). MUL_MM keeps 22 bits of the activations, MUL_MM_HALF and MUL_MM_PERM021
// the 11 of f16.

// Weight rows in blocks. Word is F::Word, or ushort where the matrix is aligned to two bytes only.
template <class F, class Word> struct TileBlocks {
  enum { REGS = 2 * F::Q + F::H };
  KN_GLOBAL const uchar* w;
  uint n;
  ulong row_bytes;
  KN_FN void load(uint row, uint side, uint step, KN_PRIVATE uint (&r)[REGS]) const {
    KN_GLOBAL const Word* block =
        (KN_GLOBAL const Word*)(w + ((ulong)kn_min(row, n - 1) * row_bytes + (ulong)(step / F::GROUPS) * F::BYTES));
    uint q[F::Q], h[F::H];
    KN_UNROLL for (uint i = 0; i < 2; ++i) {
      F::load(block, step % F::GROUPS, 2 * side + i, q);
      KN_UNROLL for (uint j = 0; j < F::Q; ++j) r[i * F::Q + j] = q[j];
    }
    F::head(block, step % F::GROUPS, h);
    KN_UNROLL for (uint j = 0; j < F::H; ++j) r[2 * F::Q + j] = h[j];
  }
  KN_FN void tile(KN_PRIVATE const uint (&r)[REGS], uint side, uint step, KN_PRIVATE uint (&words)[8]) const {
    uint q[F::Q], h[F::H], c[4];
    const uint g = step % F::GROUPS;
    KN_UNROLL for (uint j = 0; j < F::H; ++j) h[j] = r[2 * F::Q + j];
    float s0, s1, offset;
    F::scale(h, g, s0, s1, offset);
    const uint d = (h[0] & 0xffffu) | h[0] << 16, least = F::OFFSET ? (h[0] >> 16) | (h[0] & 0xffff0000u) : 0x80008000u;
    KN_UNROLL for (uint i = 0; i < 2; ++i) {
      KN_UNROLL for (uint j = 0; j < F::Q; ++j) q[j] = r[i * F::Q + j];
      F::codes(q, g, 2 * side + i, c);
      KN_UNROLL for (uint j = 0; j < 4; ++j) {
        const uint to = j / 2 * 4 + 2 * i + j % 2;
        if (F::PLAIN) {
          words[to] = kn_fma_h2(c[j], d, least);
        } else {
          const float2 v = kn_unpack_f16(c[j]);
          const float s = j < 2 ? s0 : s1;
          words[to] = kn_pack_f16(s * v.x + offset, s * v.y + offset);
        }
      }
    }
  }
};

// bf16 input stored head by head, [heads, m, head_dim]: k = head * head_dim + d.
struct TileHeads {
  enum { REGS = 2 };
  KN_GLOBAL const kn_bf16* x;
  uint m, k, head_dim;
  bool vector;
  KN_FN void load(uint row, uint at, KN_PRIVATE uint (&r)[REGS]) const {
    const uint head = at / head_dim;
    tile_load4(x + (((ulong)head * m + kn_min(row, m - 1)) * head_dim + at % head_dim), row < m && at < k ? 4u : 0u, vector, r);
  }
  KN_FN float4 values(KN_PRIVATE const uint (&r)[REGS]) const {
    const float2 a = kn_unpack_bf16(r[0]), b = kn_unpack_bf16(r[1]);
    return kn_f4(a.x, a.y, b.x, b.y);
  }
};

// Few rows take tiles of 32 rows, more take 128: as the launch geometry does.
#define MUL_MM_BM(m) ((m) <= 64 ? 32u : 128u)

template <uint HOW, class W, class X>
KN_FN void mul_mm_tile(KN_PRIVATE const W& weights, KN_PRIVATE const X& inputs, KN_GLOBAL float* y, uint m, uint n, uint k, uint tile_m,
                       uint tile_n, KN_LOCAL uint* shared, uint tid, uint lane, uint warp) {
  if (MUL_MM_BM(m) == 32) {
    tile_product<kn_f16, 32, HOW>(weights, inputs, y, m, n, k, tile_m * 32, tile_n * TILE_N, shared, tid, lane, warp);
  } else {
    tile_product<kn_f16, 128, HOW>(weights, inputs, y, m, n, k, tile_m * 128, tile_n * TILE_N, shared, tid, lane, warp);
  }
}

template <class F, uint HOW, class X>
KN_FN void mul_mm_blocks(KN_GLOBAL const uchar* w, KN_PRIVATE const X& inputs, KN_GLOBAL float* y, uint m, uint n, uint k, uint tile_m, uint tile_n,
                         KN_LOCAL uint* shared, uint tid, uint lane, uint warp) {
  const ulong row_bytes = (ulong)(k / F::LEN) * F::BYTES;
  if (sizeof(typename F::Word) == 2 || kn_aligned(w, 4)) {
    const TileBlocks<F, typename F::Word> weights = {w, n, row_bytes};
    mul_mm_tile<HOW>(weights, inputs, y, m, n, k, tile_m, tile_n, shared, tid, lane, warp);
  } else {
    const TileBlocks<F, ushort> weights = {w, n, row_bytes};
    mul_mm_tile<HOW>(weights, inputs, y, m, n, k, tile_m, tile_n, shared, tid, lane, warp);
  }
}

// Matrix and input of batch z; y of batches is packed.
#define MUL_MM_BATCHES(...)                                                                                                 \
  const uint tiles = kn_cdiv(p.m, MUL_MM_BM(p.m)), batches = p.ne12 * p.ne13;                                                \
  for (ulong i = KN_GROUP_Y; i < (ulong)tiles * batches; i += KN_GROUPS_Y) {                                                 \
    const uint z = (uint)(i / tiles), tile_m = (uint)(i % tiles);                                                            \
    const ulong matrix = z % p.ne12 / p.r2 + (ulong)(z / p.ne12 / p.r3) * p.ne02;                                            \
    KN_GLOBAL const float* rows = x + z * p.x_batch_stride;                                                                  \
    const TileRowsF32 inputs = {rows, p.x_row_stride, p.m, p.k, p.x_row_stride % 4 == 0 && kn_aligned(rows, 16)};            \
    KN_GLOBAL float* to = y + (ulong)z * p.m * p.n;                                                                          \
    __VA_ARGS__                                                                                                              \
  }

#ifdef KN_WGMMA
// Whether the path of wgmma can take the operands: pieces of 16 bytes throughout, and a block for each tile, whose number is of 31 bits.
template <class F, class P> KN_FN bool mul_mm_wgmma(KN_GLOBAL const uchar* w, KN_GLOBAL const float* x, KN_PARAMS const P& p, uint across, uint down) {
  return p.k % 64 == 0 && p.k / F::LEN * (ulong)F::BYTES % 16 == 0 && kn_aligned(w, 16) && kn_aligned(x, 16) && p.x_row_stride % 4 == 0 &&
         p.x_batch_stride % 4 == 0 && p.x_row_stride < 1u << 24 && (ulong)across * down < 1u << 31 &&
         (ulong)kn_cdiv(p.m, p.m <= 64 ? 64u : 128u) * p.ne12 * p.ne13 <= down;
}
// Large tiles read less, small ones keep more multiprocessors at work where there are few.
#define MMW_UNITS 132
#define MUL_MM_TILE(F, HOW, TILES, ACT) \
  mmw_tile<F, (HOW) & TILE_PARTS_2 ? 2 : 1, TILES, ACT>(w, x, y, p, row_bytes, kn_dynamic_shared, KN_THREAD_X, block, blocks)
#define MUL_MM_KERNEL(NAME, F, HOW)                                                                                          \
  KN_DYNAMIC_SHARED(NAME, MMW_BYTES(F, 2, 128, (HOW) & TILE_PARTS_2 ? 2 : 1));                                               \
  KN_KERNEL_DEEP(NAME, 256, MulMmParams, KN_IN(0, uchar, w), KN_IN(1, float, x), KN_OUT(2, float, y)) {                      \
    KN_LOCAL uint* shared = (KN_LOCAL uint*)kn_dynamic_shared;                                                               \
    if (mul_mm_wgmma<F>(w, x, p, KN_GROUPS_X, KN_GROUPS_Y)) {                                                                \
      const ulong row_bytes = (ulong)(p.k / F::LEN) * F::BYTES;                                                              \
      const uint block = KN_GROUP_Y * KN_GROUPS_X + KN_GROUP_X, blocks = KN_GROUPS_X * KN_GROUPS_Y;                          \
      if (p.m <= 64) {                                                                                                       \
        MUL_MM_TILE(F, HOW, 1, 64);                                                                                          \
      } else if ((ulong)kn_cdiv(p.m, 128u) * kn_cdiv(p.n, 256u) * p.ne12 * p.ne13 < MMW_UNITS) {                             \
        MUL_MM_TILE(F, HOW, 1, 128);                                                                                         \
      } else {                                                                                                               \
        MUL_MM_TILE(F, HOW, 2, 128);                                                                                         \
      }                                                                                                                      \
      return;                                                                                                                \
    }
#else
#define MUL_MM_KERNEL(NAME, F, HOW)                                                                                          \
  KN_KERNEL(NAME, 256, MulMmParams, KN_IN(0, uchar, w), KN_IN(1, float, x), KN_OUT(2, float, y)) {                           \
    KN_SHARED(uint, shared, TILE_WORDS(128, (HOW) & TILE_PARTS_2 ? 2 : 1));
#endif
#define MUL_MM_WITH(NAME, F, HOW)                                                                                            \
  MUL_MM_KERNEL(NAME, F, HOW)                                                                                                \
    MUL_MM_BATCHES(mul_mm_blocks<F, HOW>(w + matrix * p.n * (p.k / F::LEN) * F::BYTES, inputs, to, p.m, p.n, p.k, tile_m,    \
                                         KN_GROUP_X, shared, KN_THREAD_X, KN_LANE, KN_WARP_ID);)                             \
  }
#define MUL_MM(NAME, F) MUL_MM_WITH(NAME, F, TILE_PARTS_2 | TILE_RANGE)
#define MUL_MM_HALF(NAME, F) MUL_MM_WITH(NAME, F, TILE_RANGE)

#ifdef KN_WGMMA
#define MUL_MM_F16_KERNEL(NAME)                                                                                              \
  DENSE_KERNEL_WGMMA(NAME, MulMmParams, kn_f16, float, float, true,                                                          \
                     {p.m, p.n, p.k, p.ne12 * p.ne13, p.x_row_stride, p.x_batch_stride, p.ne12, p.ne02, p.r2, p.r3})
#else
#define MUL_MM_F16_KERNEL(NAME)                                                                                              \
  KN_KERNEL(NAME, 256, MulMmParams, KN_IN(0, kn_f16, w), KN_IN(1, float, x), KN_OUT(2, float, y)) {                          \
    KN_SHARED(uint, shared, TILE_WORDS(128, 1));
#endif
#define MUL_MM_F16(NAME)                                                                                                     \
  MUL_MM_F16_KERNEL(NAME)                                                                                                    \
    MUL_MM_BATCHES(KN_GLOBAL const kn_f16* own = w + matrix * p.n * p.k;                                                     \
                   const TileWeights16<kn_f16> weights = TILE_WEIGHTS(own);                                                  \
                   mul_mm_tile<TILE_RANGE>(weights, inputs, to, p.m, p.n, p.k, tile_m, KN_GROUP_X, shared, KN_THREAD_X,      \
                                           KN_LANE, KN_WARP_ID);)                                                            \
  }
#define TILE_WEIGHTS(own) {own, p.n, p.k, p.k % 4 == 0 && kn_aligned(own, 8)}

#define MUL_MM_HEADS(NAME, T, CALL)                                                                                          \
  KN_KERNEL(NAME, 256, Perm021Params, KN_IN(0, T, w), KN_IN(1, kn_bf16, x), KN_OUT(2, float, y)) {                           \
    KN_SHARED(uint, shared, TILE_WORDS(128, 1));                                                                             \
    const uint tiles = kn_cdiv(p.m, MUL_MM_BM(p.m)), k = p.n_heads * p.head_dim;                                             \
    for (ulong i = KN_GROUP_Y; i < (ulong)tiles * p.batch; i += KN_GROUPS_Y) {                                               \
      const ulong z = i / tiles;                                                                                             \
      KN_GLOBAL const kn_bf16* rows = x + z * p.m * k;                                                                       \
      const TileHeads inputs = {rows, p.m, k, p.head_dim, kn_aligned(rows, 8)};                                              \
      CALL(w, inputs, y + z * p.m * p.n, p.m, p.n, k, (uint)(i % tiles), KN_GROUP_X, shared, KN_THREAD_X, KN_LANE,           \
           KN_WARP_ID);                                                                                                      \
    }                                                                                                                        \
  }
#define MUL_MM_PERM021(NAME, F) MUL_MM_HEADS(NAME, uchar, (mul_mm_blocks<F, TILE_RANGE>))

template <class X>
KN_FN void mul_mm_halves(KN_GLOBAL const kn_f16* w, KN_PRIVATE const X& inputs, KN_GLOBAL float* y, uint m, uint n, uint k, uint tile_m,
                         uint tile_n, KN_LOCAL uint* shared, uint tid, uint lane, uint warp) {
  const TileWeights16<kn_f16> weights = {w, n, k, k % 4 == 0 && kn_aligned(w, 8)};
  mul_mm_tile<TILE_RANGE>(weights, inputs, y, m, n, k, tile_m, tile_n, shared, tid, lane, warp);
}
#define MUL_MM_PERM021_F16(NAME) MUL_MM_HEADS(NAME, kn_f16, mul_mm_halves)
