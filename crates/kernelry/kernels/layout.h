// Copies, permutations and gathers. Bits move unchanged, but for the two embedding gathers, which multiply, and the one permutation that
// widens bf16 to f32.
//
// What moves rows has blocks with x along the row and y over rows. True transpositions, and strided copies whose source is contiguous
// along the rows of the result, go through square tiles in threadgroup memory, so that both sides are read and written along their rows;
// a word of padding a row keeps columns of the tile in distinct banks.
#include "map.h"
#include "row_copy.h"

struct LayoutScale {
  static KN_FN float of(float a, float, float s) { return a * s; }
};

KN_KERNEL(embedding_gather_scale_f32, MAP_THREADS, EmbeddingGatherParams, KN_IN(0, float, table), KN_OUT(1, float, out),
          KN_IN(2, uint, step)) {
  KN_GLOBAL const float* row = table + (ulong)kn_step(p.token_id, step) * p.row_len;
  map_tile<LayoutScale, false>(row, row, out, p.row_len, p.scale, KN_GROUP_X, KN_THREAD_X);
}

// An index beyond the source takes its last row.
KN_KERNEL(gather_f32, 256, GatherParams, KN_IN(0, uint, src), KN_IN(1, uint, ids), KN_OUT(2, uint, out)) {
  const uint i = KN_GROUP_X * KN_BLOCK_Y + KN_THREAD_Y;
  if (i < p.n_ids) {
    const ulong id = kn_min(ids[i], p.n_rows - 1);
    row_copy(src + id * p.row_len, out + (ulong)i * p.row_len, p.row_len, KN_THREAD_X, KN_BLOCK_X);
  }
}

// x [A, B, C] to [B, A, C]. Group x is b times the shares of the rows a.
#define PERMUTE_021(name, S, D)                                                                                                 \
  KN_KERNEL(name, 256, PermuteParams, KN_IN(0, S, x), KN_OUT(1, D, out)) {                                                      \
    const uint shares = kn_cdiv(p.dim0, KN_BLOCK_Y), b = KN_GROUP_X / shares;                                                   \
    const uint a = KN_GROUP_X % shares * KN_BLOCK_Y + KN_THREAD_Y;                                                              \
    if (a < p.dim0) {                                                                                                           \
      row_copy(x + ((ulong)a * p.dim1 + b) * p.dim2, out + ((ulong)b * p.dim0 + a) * p.dim2, p.dim2, KN_THREAD_X, KN_BLOCK_X);  \
    }                                                                                                                           \
  }
PERMUTE_021(permute_021_f32, uint, uint)
PERMUTE_021(permute_021_bf16, ushort, ushort)
PERMUTE_021(permute_021_bf16_to_f32, ushort, uint)

// 128 bytes a row of the tile, and a word of padding.
#define TILE_SIDE(T) (128u / (uint)sizeof(T))
#define TILE_STRIDE(T) (TILE_SIDE(T) + 4u / (uint)sizeof(T))
#define TILE_ROWS 8u  // rows that a block of 32 x 8 threads takes at once

// out[r, c] = src[r * row_stride + c * col_stride] for one tile of out [rows, cols], where neighbours in r are neighbours in src.
template <class T>
KN_FN void tile_copy(KN_GLOBAL const T* src, KN_GLOBAL T* out, uint rows, uint cols, ulong row_stride, ulong col_stride, uint first_row,
                     uint first_col, KN_LOCAL T* tile, uint tx, uint ty) {
  for (uint j = ty; j < TILE_SIDE(T); j += TILE_ROWS) {
    for (uint i = tx; i < TILE_SIDE(T); i += 32) {
      if (first_row + i < rows && first_col + j < cols) {
        tile[j * TILE_STRIDE(T) + i] = src[(first_row + i) * row_stride + (first_col + j) * col_stride];
      }
    }
  }
  kn_barrier();
  for (uint i = ty; i < TILE_SIDE(T); i += TILE_ROWS) {
    for (uint j = tx; j < TILE_SIDE(T); j += 32) {
      if (first_row + i < rows && first_col + j < cols) {
        out[(ulong)(first_row + i) * cols + first_col + j] = tile[j * TILE_STRIDE(T) + i];
      }
    }
  }
}

// Transposes x [rows, cols]; group x is the tile.
#define TRANSPOSE(T, x, out, rows, cols)                                                                                    \
  tile_copy<T>(x, out, cols, rows, 1, cols, KN_GROUP_X % kn_cdiv(cols, TILE_SIDE(T)) * TILE_SIDE(T),                        \
               KN_GROUP_X / kn_cdiv(cols, TILE_SIDE(T)) * TILE_SIDE(T), tile, KN_THREAD_X, KN_THREAD_Y)

#define TRANSPOSE_2D(name, T)                                                           \
  KN_KERNEL(name, 256, TransposeParams, KN_IN(0, T, x), KN_OUT(1, T, out)) {            \
    KN_SHARED(T, tile, TILE_SIDE(T) * TILE_STRIDE(T));                                  \
    TRANSPOSE(T, x, out, p.rows, p.cols);                                               \
  }
TRANSPOSE_2D(transpose_2d_f32, uint)
TRANSPOSE_2D(transpose_2d_f16, ushort)

#define TRANSPOSE_LAST2(name)                                                           \
  KN_KERNEL(name, 256, PermuteParams, KN_IN(0, ushort, x), KN_OUT(1, ushort, out)) {    \
    KN_SHARED(ushort, tile, TILE_SIDE(ushort) * TILE_STRIDE(ushort));                   \
    for (uint a = KN_GROUP_Y; a < p.dim0; a += KN_GROUPS_Y) {                           \
      const ulong at = (ulong)a * p.dim1 * p.dim2;                                      \
      TRANSPOSE(ushort, x + at, out + at, p.dim1, p.dim2);                              \
      kn_barrier();                                                                     \
    }                                                                                   \
  }
TRANSPOSE_LAST2(transpose_last2_bf16)
TRANSPOSE_LAST2(transpose_last2_f16)

// Group x is the tile of the result. A source that is contiguous along the columns of the result, or repeats one element, needs no tile.
KN_KERNEL(strided_copy_f32, 256, StridedCopyParams, KN_IN(0, uint, src), KN_OUT(1, uint, out)) {
  KN_SHARED(uint, tile, TILE_SIDE(uint) * TILE_STRIDE(uint));
  const uint across = kn_cdiv(p.cols, TILE_SIDE(uint));
  const uint first_row = KN_GROUP_X / across * TILE_SIDE(uint), first_col = KN_GROUP_X % across * TILE_SIDE(uint);
  if (p.col_stride > p.row_stride && p.row_stride != 0) {
    tile_copy<uint>(src, out, p.rows, p.cols, p.row_stride, p.col_stride, first_row, first_col, tile, KN_THREAD_X, KN_THREAD_Y);
  } else {
    const uint c = first_col + KN_THREAD_X;
    KN_UNROLL for (uint i = 0; i < TILE_SIDE(uint); i += TILE_ROWS) {
      const uint r = first_row + i + KN_THREAD_Y;
      if (r < p.rows && c < p.cols) out[(ulong)r * p.cols + c] = src[r * p.row_stride + c * p.col_stride];
    }
  }
}

// A tile of the map a block, by bits. Source and destination may be one buffer where the ranges are apart.
KN_KERNEL(offset_copy_f32, MAP_THREADS, OffsetCopyParams, KN_IN_ALIAS(0, uint, src), KN_OUT_ALIAS(1, uint, dst)) {
  const ulong first = (ulong)KN_GROUP_X * MAP_TILE, left = p.count - first;
  row_copy(src + p.src_offset + first, dst + p.dst_offset + first, left < MAP_TILE ? (uint)left : MAP_TILE, KN_THREAD_X, MAP_THREADS);
}
