// What a device can do at best, for `kernelry bench`: reading, copying, f32 multiply-adds, and products of 16-bit values in the matrix unit.
// Each thread has several independent loads or chains of products in flight, and nothing else to do.
// KN_WARP_32_ONLY: fragments of the matrix unit.
#include "common/wgmma.h"

// n: pieces of 16 bytes, or rounds of products.
struct RooflineParams { uint n; };

#define LOADS 8

// out[t] = exclusive or of all words that thread t reads.
KN_KERNEL(roofline_read, 512, RooflineParams, KN_IN(0, uint4, x), KN_OUT(1, uint, out)) {
  const ulong t = KN_GROUP_X * KN_BLOCK_X + KN_THREAD_X, threads = KN_GROUPS_X * KN_BLOCK_X;
  uint4 s = kn_u4(0, 0, 0, 0);
  ulong i = t;
  for (; i + (LOADS - 1) * threads < p.n; i += LOADS * threads) {
    uint4 v[LOADS];
    KN_UNROLL for (uint j = 0; j < LOADS; ++j) v[j] = x[i + j * threads];
    KN_UNROLL for (uint j = 0; j < LOADS; ++j) s = kn_u4(s.x ^ v[j].x, s.y ^ v[j].y, s.z ^ v[j].z, s.w ^ v[j].w);
  }
  for (; i < p.n; i += threads) s = kn_u4(s.x ^ x[i].x, s.y ^ x[i].y, s.z ^ x[i].z, s.w ^ x[i].w);
  out[t] = s.x ^ s.y ^ s.z ^ s.w;
}

KN_KERNEL(roofline_copy, 512, RooflineParams, KN_IN(0, uint4, x), KN_OUT(1, uint4, out)) {
  const ulong t = KN_GROUP_X * KN_BLOCK_X + KN_THREAD_X, threads = KN_GROUPS_X * KN_BLOCK_X;
  ulong i = t;
  for (; i + (LOADS - 1) * threads < p.n; i += LOADS * threads) {
    uint4 v[LOADS];
    KN_UNROLL for (uint j = 0; j < LOADS; ++j) v[j] = x[i + j * threads];
    KN_UNROLL for (uint j = 0; j < LOADS; ++j) out[i + j * threads] = v[j];
  }
  for (; i < p.n; i += threads) out[i] = x[i];
}

// A round is 8 steps of 16 chains c = c / 2 + 1, which come to 2: 256 operations a thread.
KN_KERNEL(roofline_fma, 256, RooflineParams, KN_OUT(0, float, out)) {
  float c[16];
  KN_UNROLL for (uint j = 0; j < 16; ++j) c[j] = (float)(KN_THREAD_X + j);
  KN_NO_UNROLL for (uint i = 0; i < p.n; ++i) {
    KN_UNROLL for (uint u = 0; u < 8; ++u) {
      KN_UNROLL for (uint j = 0; j < 16; ++j) c[j] = kn_fma(c[j], 0.5f, 1.0f);
    }
  }
  float sum = 0.0f;
  KN_UNROLL for (uint j = 0; j < 16; ++j) sum += c[j];
  out[KN_GROUP_X * KN_BLOCK_X + KN_THREAD_X] = sum;
}

// A round is 2^20 operations a warp. Operands are pairs of random f16 between 1 and 2 of either sign: a unit that multiplies what has few bits
// takes less power, and runs faster than it does with real operands.
KN_FN uint roofline_operands(uint i) {
  uint h = (i + 1) * 2654435761u;
  h = (h ^ (h >> 15)) * 2246822519u;
  return ((h ^ (h >> 13)) & 0x83ff83ffu) | 0x3c003c00u;
}
KN_KERNEL(roofline_matrix, 256, RooflineParams, KN_OUT(0, float, out)) {
  uint a[4];
  KN_UNROLL for (uint j = 0; j < 4; ++j) a[j] = roofline_operands(4 * KN_LANE + j);
  float sum = 0.0f;
#ifdef KN_WGMMA
  // A panel of 128 columns by 64 k, the same for both warpgroups; a round is four times its four products of 64 x 128 x 16.
  KN_SHARED(uint, panels, 5120);
  const uint at = (wgmma_address(panels) + 1023) & ~1023u;
  for (uint i = KN_THREAD_X; i < 5120; i += 256) panels[i] = roofline_operands(i);
  wgmma_publish();
  kn_barrier();
  float d[64];
  KN_UNROLL for (uint j = 0; j < 64; ++j) d[j] = 0.0f;
  KN_NO_UNROLL for (uint i = 0; i < p.n; ++i) {
    wgmma_fence();
    KN_UNROLL for (uint j = 0; j < 16; ++j) Wgmma<kn_f16, 128, 0>::rs(d, a[0], a[1], a[2], a[3], wgmma_rows(at + 32 * (j & 3)), 1);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_settle(d);
  }
  KN_UNROLL for (uint j = 0; j < 64; ++j) sum += kn_abs(d[j]);
#else
  // 32 times eight products of 16 x 8 x 16.
  float d[8][4];
  uint b[8][2];
  KN_UNROLL for (uint j = 0; j < 8; ++j) {
    KN_UNROLL for (uint r = 0; r < 4; ++r) d[j][r] = 0.0f;
    b[j][0] = roofline_operands(256 + 16 * KN_LANE + j);
    b[j][1] = roofline_operands(264 + 16 * KN_LANE + j);
  }
  KN_NO_UNROLL for (uint i = 0; i < 32 * p.n; ++i) {
    KN_UNROLL for (uint j = 0; j < 8; ++j) kn_mma<kn_f16>(d[j], a, b[j], KN_LANE);
  }
  KN_UNROLL for (uint j = 0; j < 8; ++j) sum += kn_abs(d[j][0]) + kn_abs(d[j][1]) + kn_abs(d[j][2]) + kn_abs(d[j][3]);
#endif
  out[KN_GROUP_X * KN_BLOCK_X + KN_THREAD_X] = sum;
}
