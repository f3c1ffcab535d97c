// Operands of products as tiles read them: four values of a row at a time, zeros beyond the edges.

// Four values of type T from `p`, of which `left` exist; as the words in which they are stored.
KN_FN void tile_load4(KN_GLOBAL const float* p, uint left, bool vector, KN_PRIVATE uint (&r)[4]) {
  if (vector && left >= 4) {
    const float4 v = kn_load4(p);
    r[0] = kn_bits(v.x);
    r[1] = kn_bits(v.y);
    r[2] = kn_bits(v.z);
    r[3] = kn_bits(v.w);
  } else {
    KN_UNROLL for (uint i = 0; i < 4; ++i) r[i] = i < left ? kn_bits(p[i]) : 0u;
  }
}
template <class T> KN_FN void tile_load4(KN_GLOBAL const T* p, uint left, bool vector, KN_PRIVATE uint (&r)[2]) {
  if (vector && left >= 4) {
    const uint2 v = *(KN_GLOBAL const uint2*)p;
    r[0] = v.x;
    r[1] = v.y;
  } else {
    KN_UNROLL for (uint i = 0; i < 2; ++i) {
      r[i] = (2 * i < left ? (uint)(ushort)p[2 * i] : 0u) | (2 * i + 1 < left ? (uint)(ushort)p[2 * i + 1] << 16 : 0u);
    }
  }
}

// Input rows of f32 at a stride.
struct TileRowsF32 {
  enum { REGS = 4 };
  KN_GLOBAL const float* x;
  ulong stride;
  uint m, k;
  bool vector;
  KN_FN void load(uint row, uint at, KN_PRIVATE uint (&r)[REGS]) const {
    tile_load4(x + ((ulong)kn_min(row, m - 1) * stride + at), row < m && at < k ? k - at : 0u, vector, r);
  }
  KN_FN float4 values(KN_PRIVATE const uint (&r)[REGS]) const {
    return kn_f4(kn_from_bits(r[0]), kn_from_bits(r[1]), kn_from_bits(r[2]), kn_from_bits(r[3]));
  }
};

// Packed input rows of 16-bit values.
template <class T> struct TileRows16 {
  enum { REGS = 2 };
  KN_GLOBAL const T* x;
  uint m, k;
  bool vector;
  KN_FN void load(uint row, uint at, KN_PRIVATE uint (&r)[REGS]) const {
    tile_load4(x + ((ulong)kn_min(row, m - 1) * k + at), row < m && at < k ? k - at : 0u, vector, r);
  }
  KN_FN float4 values(KN_PRIVATE const uint (&r)[REGS]) const {
    const float2 a = kn_unpack<T>(r[0]), b = kn_unpack<T>(r[1]);
    return kn_f4(a.x, a.y, b.x, b.y);
  }
};
