// Rows that move: bits unchanged where the types are equal, bf16 widened (its bits are the upper half of the word), f32 narrowed to f16.
// A row goes in groups of four elements where both its ends allow it.

KN_FN void row_move(KN_GLOBAL const uint* s, KN_GLOBAL uint* d) { *d = *s; }
KN_FN void row_move(KN_GLOBAL const ushort* s, KN_GLOBAL ushort* d) { *d = *s; }
KN_FN void row_move(KN_GLOBAL const ushort* s, KN_GLOBAL uint* d) { *d = (uint)*s << 16; }
KN_FN void row_move(KN_GLOBAL const float* s, KN_GLOBAL kn_f16* d) { *d = kn_from_f32<kn_f16>(*s); }

KN_FN void row_move4(KN_GLOBAL const uint* s, KN_GLOBAL uint* d) { kn_store16(d, kn_load16(s)); }
KN_FN void row_move4(KN_GLOBAL const ushort* s, KN_GLOBAL ushort* d) { *(KN_GLOBAL uint2*)d = *(KN_GLOBAL const uint2*)s; }
KN_FN void row_move4(KN_GLOBAL const ushort* s, KN_GLOBAL uint* d) {
  const uint2 w = *(KN_GLOBAL const uint2*)s;
  kn_store16(d, kn_u4(w.x << 16, w.x & 0xffff0000u, w.y << 16, w.y & 0xffff0000u));
}
KN_FN void row_move4(KN_GLOBAL const float* s, KN_GLOBAL kn_f16* d) { kn_store4(d, kn_load4(s)); }

// `n` threads, of which this is `t`, move a row of `len` elements.
template <class S, class D> KN_FN void row_copy(KN_GLOBAL const S* src, KN_GLOBAL D* dst, uint len, uint t, uint n) {
  uint from = 0;
  if (kn_aligned(src, 4 * (uint)sizeof(S)) && kn_aligned(dst, 4 * (uint)sizeof(D))) {
    from = len / 4 * 4;
    for (uint c = 4 * t; c < from; c += 4 * n) row_move4(src + c, dst + c);
  }
  for (uint c = from + t; c < len; c += n) row_move(src + c, dst + c);
}
