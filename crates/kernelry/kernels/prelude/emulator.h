// Prelude for the emulator: the text becomes C++, each GPU thread a fiber, and every load and store is shown to the host, because the
// text is compiled with `-fsanitize=thread` and the `__tsan_*` functions below answer it. Vocabulary and meaning are those of every
// prelude; see docs/dialect.md. Nothing is included: the text sees the dialect and no more.
#pragma once
#define KN_TARGET_EMULATOR 1
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { uint x, y; };
struct alignas(16) uint4 { uint x, y, z, w; };
#ifndef KN_WARP
#define KN_WARP 32u
#endif

// One GPU thread, as the host keeps it. `current` is set before the fiber runs.
struct KnFiber {
  uint group[3], thread[3], block[3], grid[3];
  uint linear, pad;
  ulong stack_low, stack_size;  // private memory: not watched
};
enum KnKind { KN_READ, KN_WRITE, KN_ATOMIC };
struct KnHost {
  void (*access)(KnFiber*, const void* address, uint bytes, uint kind, void* code);
  void (*barrier)(KnFiber*, uint all, void* code);
  void (*warp_sync)(KnFiber*, void* code);
  uint (*shuffle)(KnFiber*, uint value, uint lane, void* code);
  void (*gather)(KnFiber*, const uint* words, uint count, uint* all, void* code);
  void* (*shared)(KnFiber*, const char* name, ulong bytes, ulong element);
  void (*undefined)(KnFiber*, const char* what, const char* file, uint line, void* code);
};
#define KN_QUIET __attribute__((no_sanitize("thread"), no_sanitize("undefined")))
extern "C" {
#define KN_EXPORT __attribute__((visibility("default"), used))
extern char __ehdr_start __attribute__((visibility("hidden")));
extern char _end __attribute__((visibility("hidden")));
static KnHost kn_host;
static thread_local KnFiber* kn_current;
extern KN_EXPORT const uint kn_warp_width;
const uint kn_warp_width = KN_WARP;
KN_EXPORT KN_QUIET void kn_attach(const KnHost* host, const char** range) {
  kn_host = *host;
  range[0] = &__ehdr_start;
  range[1] = &_end;
}
KN_EXPORT KN_QUIET KnFiber** kn_current_slot() { return &kn_current; }

// Instrumentation.
KN_QUIET static inline void kn_see(const void* address, uint bytes, uint kind, void* code) {
  KnFiber* fiber = kn_current;
  if ((ulong)address - fiber->stack_low < fiber->stack_size) return;
  kn_host.access(fiber, address, bytes, kind, code);
}
#define KN_SEE(n)                                                                                                     \
  KN_QUIET void __tsan_read##n(void* p) { kn_see(p, n, KN_READ, __builtin_return_address(0)); }                       \
  KN_QUIET void __tsan_write##n(void* p) { kn_see(p, n, KN_WRITE, __builtin_return_address(0)); }                     \
  KN_QUIET void __tsan_unaligned_read##n(void* p) { kn_see(p, n, KN_READ, __builtin_return_address(0)); }             \
  KN_QUIET void __tsan_unaligned_write##n(void* p) { kn_see(p, n, KN_WRITE, __builtin_return_address(0)); }
KN_SEE(1) KN_SEE(2) KN_SEE(4) KN_SEE(8) KN_SEE(16)
#undef KN_SEE
KN_QUIET void __tsan_read_range(void* p, ulong n) { kn_see(p, (uint)n, KN_READ, __builtin_return_address(0)); }
KN_QUIET void __tsan_write_range(void* p, ulong n) { kn_see(p, (uint)n, KN_WRITE, __builtin_return_address(0)); }
KN_QUIET void __tsan_vptr_update(void**, void*) {}
KN_QUIET void __tsan_func_entry(void*) {}
KN_QUIET void __tsan_func_exit() {}
KN_QUIET void __tsan_init() {}

// Alignment, always checked: the optimiser may split what the text loads at once, but not before this has seen the address.
struct KnMismatch { const char* file; uint line, column; void* type; uchar log_alignment, kind; };
KN_EXPORT KN_QUIET void __ubsan_handle_type_mismatch_v1(KnMismatch* what, void* address) {
  kn_host.access(kn_current, address, 1u << what->log_alignment, what->kind == 1 ? KN_WRITE : KN_READ, __builtin_return_address(0));
}

// Undefined behaviour, where the text is compiled with `-fsanitize=undefined`. The first operand begins with the place.
struct KnPlace { const char* file; uint line, column; };
#define KN_UB(name, what, ...)                                                                                        \
  KN_QUIET void __ubsan_handle_##name(KnPlace* at, ##__VA_ARGS__) {                                                   \
    kn_host.undefined(kn_current, what, at->file, at->line, __builtin_return_address(0));                             \
  }
KN_UB(shift_out_of_bounds, "shift by too many bits", void*, void*)
KN_UB(out_of_bounds, "index beyond a local array", void*)
KN_UB(add_overflow, "signed overflow in an addition", void*, void*)
KN_UB(sub_overflow, "signed overflow in a subtraction", void*, void*)
KN_UB(mul_overflow, "signed overflow in a multiplication", void*, void*)
KN_UB(negate_overflow, "signed overflow in a negation", void*)
KN_UB(divrem_overflow, "division by zero, or its overflow", void*, void*)
KN_UB(float_cast_overflow, "conversion of a float that the integer cannot hold", void*)
KN_UB(load_invalid_value, "load of a value that the type cannot hold", void*)
KN_UB(pointer_overflow, "pointer arithmetic beyond the address space", void*, void*)
KN_UB(vla_bound_not_positive, "array of no elements", void*)
KN_UB(missing_return, "function end without a value")
KN_UB(builtin_unreachable, "unreachable code")
#undef KN_UB
}

// Not inlined: the return address says where in the text the call was.
#define KN_CALL KN_QUIET __attribute__((noinline, unused)) static
KN_CALL void* kn_shared(const char* name, ulong bytes, ulong element) { return kn_host.shared(kn_current, name, bytes, element); }

// Functions, address spaces, declarations.
#define KN_FN inline
#define KN_GLOBAL
#define KN_LOCAL
#define KN_PRIVATE
#define KN_PARAMS
#define KN_TABLE(T, name, n) static const T name[n]
#define KN_SHARED(T, name, n) T* const name = (T*)kn_shared(#name, sizeof(T) * (n), sizeof(T))
#define KN_UNROLL
#define KN_NO_UNROLL
#define KN_IN(slot, T, name) const T* name
#define KN_OUT(slot, T, name) T* name
#define KN_IN_ALIAS KN_IN
#define KN_OUT_ALIAS KN_OUT
#define KN_HAS(slot, name) ((name) != nullptr)

// A kernel becomes `name(buffers, params, fiber)`: one signature for all of them.
template <class T> struct KnArg;
template <class T> struct KnArg<T*> { KN_QUIET static T* get(void** b, uint i) { return (T*)b[i]; } };
struct KnBound {  // braces evaluate from left to right, which a call need not
  template <class P, class... A>
  KN_QUIET KnBound(void (*f)(const KnFiber&, P, A...), const KnFiber& fiber, const P& p, A... args) { f(fiber, p, args...); }
};
template <class P, class... A> KN_QUIET static void kn_run(void (*f)(const KnFiber&, P, A...), void** b, const void* p, KnFiber* fiber) {
  P params;
  __builtin_memcpy(&params, p, sizeof(P));
  uint i = 0;
  KnBound{f, *fiber, params, KnArg<A>::get(b, i++)...};
}
#define KN_KERNEL(name, block_size, P, ...)                                                           \
  static void name##_body(const KnFiber& kn, const P p, __VA_ARGS__);                                 \
  extern "C" KN_EXPORT const uint name##_block = block_size;                                                    \
  extern "C" KN_EXPORT KN_QUIET void name(void** b, const void* p, KnFiber* fiber) { kn_run(name##_body, b, p, fiber); } \
  static void name##_body(const KnFiber& kn, const P p, __VA_ARGS__)

#define KN_KERNEL_DEEP KN_KERNEL
#define KN_KERNEL_BLOCKS(name, block, blocks, P, ...) KN_KERNEL(name, block, P, __VA_ARGS__)
#define KN_RESIDENT(name, block, blocks) extern "C" KN_EXPORT const uint name##_resident; const uint name##_resident = (blocks)
#define KN_CHAINED(name, ahead) static_assert(true, "")
#define KN_CHAIN_NEXT
#define KN_CHAIN_WAIT
#define KN_CHAIN

// Identity of the thread: at kernel scope only.
#define KN_GROUP_X (kn.group[0])
#define KN_GROUP_Y (kn.group[1])
#define KN_GROUP_Z (kn.group[2])
#define KN_GROUPS_X (kn.grid[0])
#define KN_GROUPS_Y (kn.grid[1])
#define KN_THREAD_X (kn.thread[0])
#define KN_THREAD_Y (kn.thread[1])
#define KN_BLOCK_X (kn.block[0])
#define KN_BLOCK_Y (kn.block[1])
#define KN_LANE (kn.linear % KN_WARP)
#define KN_WARP_ID (kn.linear / KN_WARP)

// Ordering.
KN_CALL void kn_barrier() { kn_host.barrier(kn_current, 0, __builtin_return_address(0)); }
KN_CALL void kn_barrier_all() { kn_host.barrier(kn_current, 1, __builtin_return_address(0)); }
KN_CALL void kn_warp_sync() { kn_host.warp_sync(kn_current, __builtin_return_address(0)); }

// Bits.
union KnWord { float f; uint u; };
KN_FN uint kn_bits(float v) { KnWord w; w.f = v; return w.u; }
KN_FN float kn_from_bits(uint v) { KnWord w; w.u = v; return w.f; }
KN_FN uint kn_popcount(uint v) { return (uint)__builtin_popcount(v); }
KN_FN bool kn_aligned(const void* p, uint bytes) { return ((ulong)p & (bytes - 1)) == 0; }
KN_FN float2 kn_f2(float a, float b) { return float2{a, b}; }
KN_FN float4 kn_f4(float a, float b, float c, float d) { return float4{a, b, c, d}; }
KN_FN uint2 kn_u2(uint a, uint b) { return uint2{a, b}; }
KN_FN uint4 kn_u4(uint a, uint b, uint c, uint d) { return uint4{a, b, c, d}; }

// Shuffles: every lane of the warp takes part.
KN_CALL uint kn_shfl(uint v, uint lane) { return kn_host.shuffle(kn_current, v, lane, __builtin_return_address(0)); }
KN_CALL float kn_shfl(float v, uint lane) { return kn_from_bits(kn_host.shuffle(kn_current, kn_bits(v), lane, __builtin_return_address(0))); }
KN_CALL uint kn_shfl_xor(uint v, uint mask) {
  return kn_host.shuffle(kn_current, v, (kn_current->linear % KN_WARP) ^ mask, __builtin_return_address(0));
}
KN_CALL float kn_shfl_xor(float v, uint mask) {
  return kn_from_bits(kn_host.shuffle(kn_current, kn_bits(v), (kn_current->linear % KN_WARP) ^ mask, __builtin_return_address(0)));
}

// Atomics: relaxed, the old value comes back.
#define KN_ATOMIC(name, update)                                                       \
  KN_CALL uint name(uint* p, uint v) {                                                \
    kn_see(p, 4, KN_ATOMIC, __builtin_return_address(0));                             \
    uint old = __atomic_load_n(p, __ATOMIC_RELAXED);                                  \
    while (!__atomic_compare_exchange_n(p, &old, update, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {} \
    return old;                                                                       \
  }
KN_ATOMIC(kn_atomic_add, old + v)
KN_ATOMIC(kn_atomic_max, old > v ? old : v)
KN_ATOMIC(kn_atomic_min, old < v ? old : v)
KN_ATOMIC(kn_atomic_or, old | v)
#undef KN_ATOMIC
#define kn_atomic_add_local kn_atomic_add
#define kn_atomic_max_local kn_atomic_max
#define kn_atomic_min_local kn_atomic_min
#define kn_atomic_or_local kn_atomic_or

// Mathematics. `fast` is no less precise here.
KN_FN float kn_exp(float v) { return __builtin_expf(v); }
KN_FN float kn_exp_fast(float v) { return __builtin_expf(v); }
KN_FN float kn_exp2_fast(float v) { return __builtin_exp2f(v); }
KN_FN float kn_log(float v) { return __builtin_logf(v); }
KN_FN float kn_sqrt(float v) { return __builtin_sqrtf(v); }
KN_FN float kn_rsqrt(float v) { return 1.0f / __builtin_sqrtf(v); }
KN_FN float kn_sin(float v) { return __builtin_sinf(v); }
KN_FN float kn_cos(float v) { return __builtin_cosf(v); }
KN_FN float kn_tanh(float v) { return __builtin_tanhf(v); }
KN_FN float kn_pow(float a, float b) { return __builtin_powf(a, b); }
KN_FN float kn_fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
KN_FN float kn_abs(float v) { return __builtin_fabsf(v); }
KN_FN float kn_floor(float v) { return __builtin_floorf(v); }
KN_FN float kn_rint(float v) { return __builtin_rintf(v); }
KN_FN float kn_max(float a, float b) { return __builtin_fmaxf(a, b); }
KN_FN float kn_min(float a, float b) { return __builtin_fminf(a, b); }
KN_FN uint kn_max(uint a, uint b) { return a > b ? a : b; }
KN_FN ulong kn_max(ulong a, ulong b) { return a > b ? a : b; }
KN_FN ulong kn_min(ulong a, ulong b) { return a < b ? a : b; }
KN_FN uint kn_min(uint a, uint b) { return a < b ? a : b; }
KN_FN int kn_max(int a, int b) { return a > b ? a : b; }
KN_FN int kn_min(int a, int b) { return a < b ? a : b; }
// Operations that no compiler may contract into a fused one.
KN_FN float kn_mul_rn(float a, float b) { return a * b; }
KN_FN float kn_add_rn(float a, float b) { return a + b; }

// Conversions of 16-bit storage by its bits, to nearest even.
KN_FN float kn_bf16_to_f32(ushort v) { return kn_from_bits((uint)v << 16); }
KN_FN ushort kn_f32_to_bf16(float v) {
  const uint b = kn_bits(v);
  if ((b & 0x7fffffffu) > 0x7f800000u) return (ushort)((b >> 16) | 0x40u);
  return (ushort)((b + 0x7fffu + ((b >> 16) & 1u)) >> 16);
}
KN_FN float kn_f16_to_f32(ushort v) {
  const uint sign = (uint)(v & 0x8000u) << 16, magnitude = v & 0x7fffu;
  if (magnitude >= 0x7c00u) return kn_from_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  if (magnitude >= 0x400u) return kn_from_bits(sign | ((magnitude << 13) + 0x38000000u));
  return kn_from_bits(sign | kn_bits((float)magnitude * 0x1p-24f));
}
KN_FN ushort kn_f32_to_f16(float v) {
  const uint b = kn_bits(v), sign = (b >> 16) & 0x8000u, magnitude = b & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return (ushort)(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return (ushort)(sign | 0x7c00u);
  // Below the normal numbers, adding 0.5 leaves the rounded count of 2^-24 in the low bits.
  if (magnitude < 0x38800000u) return (ushort)(sign | (kn_bits(kn_from_bits(magnitude) + 0.5f) - 0x3f000000u));
  return (ushort)(sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13));
}

// Pairs of f16 in a word: a * b + c with one rounding each. Four bytes out of the eight of (a, b), by the nibbles of `sel` (0..7).
KN_FN uint kn_fma_h2_half(uint a, uint b, uint c) {
  // Exact in double but for sums that span more than 53 bits, then rounded to odd in f32, so that the last rounding is the only one.
  const double exact = (double)kn_f16_to_f32((ushort)a) * (double)kn_f16_to_f32((ushort)b) + (double)kn_f16_to_f32((ushort)c);
  const float near = (float)exact;
  uint bits = kn_bits(near);
  if ((double)near != exact && near == near && !(bits & 1u)) {
    const bool beyond = near < 0 ? (double)near < exact : (double)near > exact;
    bits = beyond ? bits - 1 : bits | 1u;
  }
  return (uint)kn_f32_to_f16(kn_from_bits(bits));
}
KN_FN uint kn_fma_h2(uint a, uint b, uint c) {
  return kn_fma_h2_half(a & 0xffffu, b & 0xffffu, c & 0xffffu) | kn_fma_h2_half(a >> 16, b >> 16, c >> 16) << 16;
}
KN_FN uint kn_permute(uint a, uint b, uint sel) {
  const ulong both = (ulong)a | (ulong)b << 32;
  uint r = 0;
  for (uint i = 0; i < 4; ++i) r |= (uint)((both >> (8 * ((sel >> (4 * i)) & 7u))) & 0xffu) << (8 * i);
  return r;
}

// Matrix unit: all lanes hand over their fragments at once. common.h says where the elements live.
#define KN_OWN_MMA 1
template <class T> float2 kn_unpack(uint w);
template <class T> KN_CALL void kn_mma(float (&d)[4], const uint (&a)[4], const uint* b, uint lane) {
  const uint mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  uint all[32][6];
  kn_host.gather(kn_current, mine, 6, all[0], __builtin_return_address(0));
  for (uint i = 0; i < 8; ++i) {
    const uint h = i / 4, row = lane / 4 * 4 + i % 4, col = lane % 4 * 8 + i % 4;
    const float2 a0 = kn_unpack<T>(all[row][2 * h]), a1 = kn_unpack<T>(all[row][2 * h + 1]);
    const float2 b0 = kn_unpack<T>(all[col][4 + h]), b1 = kn_unpack<T>(all[col + 4][4 + h]);
    d[0] += a0.x * b0.x + a0.y * b0.y;
    d[1] += a0.x * b1.x + a0.y * b1.y;
    d[2] += a1.x * b0.x + a1.y * b0.y;
    d[3] += a1.x * b1.x + a1.y * b1.y;
  }
}
KN_FN int kn_dot_s8(uint a, uint b, int sum);
KN_CALL void kn_mma_s8(int (&d)[4], const uint (&a)[4], uint b0, uint b1, uint lane) {
  const uint mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
  uint all[32][6];
  kn_host.gather(kn_current, mine, 6, all[0], __builtin_return_address(0));
  for (uint i = 0; i < 8; ++i) {
    const uint h = i / 4, row = lane / 4 * 4 + i % 4, col = lane % 4 * 8 + i % 4;
    for (uint j = 0; j < 4; ++j) d[j] = kn_dot_s8(all[row][2 * h + j / 2], all[col + 4 * (j % 2)][4 + h], d[j]);
  }
}

// Asynchronous copies are done at once.
KN_FN void kn_async_copy16(void* dst, const void* src) { *(uint4*)dst = *(const uint4*)src; }
#define kn_async_copy16_shared kn_async_copy16
KN_FN void kn_async_commit() {}
template <uint N> KN_FN void kn_async_wait() {}
