#include "quantized/blocks.h"
// Expansion of GGML blocks. dequant: out[n, k] = f16(w[n, k]), the exact f32 weight rounded once. get_rows: out[i] = table[ids[i]] * scale, zeros
// where the table has no such row.
//
// A thread decodes one quarter of a group, eight values, and stores them as two vectors, so that four threads read neighbouring words of a block
// and write 32 neighbouring values. Blocks aligned to two bytes only are read by two bytes.

template <class F, class W> KN_FN void dequant_quarter(KN_GLOBAL const uchar* w, ulong group, uint t, KN_PRIVATE float4& a, KN_PRIVATE float4& b) {
  blk_values<F>((KN_GLOBAL const W*)(w + group / F::GROUPS * F::BYTES), (uint)(group % F::GROUPS), t, a, b);
}
template <class F> KN_FN void dequant_eight(KN_GLOBAL const uchar* w, ulong group, uint t, KN_PRIVATE float4& a, KN_PRIVATE float4& b) {
  if (sizeof(typename F::Word) == 4 && kn_aligned(w, 4)) {
    dequant_quarter<F, typename F::Word>(w, group, t, a, b);
  } else {
    dequant_quarter<F, ushort>(w, group, t, a, b);
  }
}

template <class T> KN_FN void dequant_store(KN_GLOBAL T* y, float4 v, bool vector) {
  if (vector) {
    kn_store4(y, v);
  } else {
    y[0] = kn_from_f32<T>(v.x);
    y[1] = kn_from_f32<T>(v.y);
    y[2] = kn_from_f32<T>(v.z);
    y[3] = kn_from_f32<T>(v.w);
  }
}
