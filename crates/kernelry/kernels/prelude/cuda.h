// Prelude for CUDA, compiled by NVRTC without toolkit headers. Vocabulary and meaning are those of every prelude; see docs/dialect.md.
#pragma once
#define KN_TARGET_CUDA 1
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long long ulong;

// Functions, address spaces, declarations.
#define KN_FN __device__ __forceinline__
#define KN_GLOBAL
#define KN_LOCAL
#define KN_PRIVATE
#define KN_PARAMS
#define KN_TABLE(T, name, n) __device__ __constant__ const T name[n]
#define KN_SHARED(T, name, n) __shared__ __align__(16) T name[n]
#define KN_UNROLL _Pragma("unroll")
#define KN_NO_UNROLL _Pragma("unroll 1")
#define KN_IN(slot, T, name) const T* __restrict__ name
#define KN_OUT(slot, T, name) T* __restrict__ name
#define KN_IN_ALIAS(slot, T, name) const T* name
#define KN_OUT_ALIAS(slot, T, name) T* name
#define KN_HAS(slot, name) ((name) != nullptr)
#define KN_KERNEL(name, block, P, ...) extern "C" __global__ void __launch_bounds__(block) name(__VA_ARGS__, const P p)
// A kernel that hides latency by loads in flight rather than by many warps: the compiler may take every register.
#define KN_KERNEL_DEEP(name, block, P, ...) KN_KERNEL_BLOCKS(name, block, 1, P, __VA_ARGS__)
// The same where `blocks` of them are to find room in a multiprocessor.
#define KN_KERNEL_BLOCKS(name, block, blocks, P, ...) \
  extern "C" __global__ void __launch_bounds__(block, blocks) name(__VA_ARGS__, const P p)

// Threadgroup memory beyond what a kernel may declare: `bytes` of it for kernel `name`, at kn_dynamic_shared. For paths of one GPU alone.
#define KN_DYNAMIC_SHARED(name, bytes) extern "C" __device__ uint name##_dynamic_shared = (bytes)
extern __shared__ __align__(1024) uchar kn_dynamic_shared[];
// Blocks of `block` threads, whatever the catalogue entry says, in clusters of `blocks`: the grid is rounded up to whole ones in x.
#define KN_CLUSTERS(name, block, blocks) \
  extern "C" __device__ uint name##_threads = (block); extern "C" __device__ uint name##_cluster = (blocks)
// Where its catalogue entry gives scratch memory and what it reads lies at multiples of 16 bytes, that memory is the operand KN_PREPARED_AT(x)
// after the last slot, which else is null, and kernel `name` goes after kernel `name`_prepare with the same operands, of which `blocks` blocks
// of `block` threads are launched for each multiprocessor, and itself has one block, or a share in a cluster, for each.
#define KN_PREPARED(name, block, blocks) \
  extern "C" __device__ uint name##_prepare_threads = (block); extern "C" __device__ uint name##_prepare_resident = (blocks)
#define KN_PREPARED_AT(x) uchar* x
// `blocks` blocks of `block` threads on each multiprocessor and no more, however many the catalogue entry says, in x: they go round.
#define KN_RESIDENT(name, block, blocks) \
  extern "C" __device__ uint name##_threads = (block); extern "C" __device__ uint name##_resident = (blocks)
// Kernel `name` begins while the one before it ends, and does not look at what that one writes before its KN_CHAIN, nor writes. It may have read
// the slots in the bits of `ahead` by then, so that they must not be written in the same list of commands.
#if __CUDA_ARCH__ >= 900
#define KN_CHAINED(name, ahead) extern "C" __device__ uint name##_chained = 1; extern "C" __device__ uint name##_ahead = (ahead)
#define KN_CHAIN_NEXT asm volatile("griddepcontrol.launch_dependents;" ::: "memory")
#define KN_CHAIN_WAIT asm volatile("griddepcontrol.wait;" ::: "memory")
#else
#define KN_CHAINED(name, ahead) static_assert(true, "")
#define KN_CHAIN_NEXT
#define KN_CHAIN_WAIT
#endif
#define KN_CHAIN KN_CHAIN_NEXT; KN_CHAIN_WAIT
// With KN_RESIDENT: the blocks of kernel `name` come in clusters of two.
#define KN_PAIRED(name) extern "C" __device__ uint name##_cluster = 2
#define KN_KERNEL_CLUSTERS(name, block, blocks, P, ...) \
  extern "C" __global__ void __cluster_dims__(blocks, 1, 1) __launch_bounds__(block, 1) name(__VA_ARGS__, const P p)

// Identity of the thread: at kernel scope only.
#define KN_GROUP_X blockIdx.x
#define KN_GROUP_Y blockIdx.y
#define KN_GROUP_Z blockIdx.z
#define KN_GROUPS_X gridDim.x
#define KN_GROUPS_Y gridDim.y
#define KN_THREAD_X threadIdx.x
#define KN_THREAD_Y threadIdx.y
#define KN_BLOCK_X blockDim.x
#define KN_BLOCK_Y blockDim.y
#define KN_WARP 32u
#define KN_LANE ((threadIdx.x + blockDim.x * threadIdx.y) & 31u)
#define KN_WARP_ID ((threadIdx.x + blockDim.x * threadIdx.y) >> 5)

// Ordering.
KN_FN void kn_barrier() { __syncthreads(); }
KN_FN void kn_barrier_all() { __threadfence_block(); __syncthreads(); }
KN_FN void kn_warp_sync() { __syncwarp(); }

// Shuffles: every lane of the warp takes part.
KN_FN float kn_shfl(float v, uint lane) { return __shfl_sync(0xffffffffu, v, lane); }
KN_FN uint kn_shfl(uint v, uint lane) { return __shfl_sync(0xffffffffu, v, lane); }
KN_FN float kn_shfl_xor(float v, uint mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
KN_FN uint kn_shfl_xor(uint v, uint mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
#define KN_HAS_WARP_MAX 1
KN_FN uint kn_warp_max(uint v) { return __reduce_max_sync(0xffffffffu, v); }

// Atomics: relaxed, the old value comes back.
KN_FN uint kn_atomic_add(uint* p, uint v) { return atomicAdd(p, v); }
KN_FN uint kn_atomic_max(uint* p, uint v) { return atomicMax(p, v); }
KN_FN uint kn_atomic_min(uint* p, uint v) { return atomicMin(p, v); }
KN_FN uint kn_atomic_or(uint* p, uint v) { return atomicOr(p, v); }
#define kn_atomic_add_local kn_atomic_add
#define kn_atomic_max_local kn_atomic_max
#define kn_atomic_min_local kn_atomic_min
#define kn_atomic_or_local kn_atomic_or

// Bits.
KN_FN uint kn_bits(float v) { return __float_as_uint(v); }
KN_FN float kn_from_bits(uint v) { return __uint_as_float(v); }
KN_FN uint kn_popcount(uint v) { return __popc(v); }
KN_FN bool kn_aligned(const void* p, uint bytes) { return ((ulong)p & (bytes - 1)) == 0; }
KN_FN float2 kn_f2(float a, float b) { return make_float2(a, b); }
KN_FN float4 kn_f4(float a, float b, float c, float d) { return make_float4(a, b, c, d); }
KN_FN uint2 kn_u2(uint a, uint b) { return make_uint2(a, b); }
KN_FN uint4 kn_u4(uint a, uint b, uint c, uint d) { return make_uint4(a, b, c, d); }

// Mathematics: precise to 2 ulp unless the name says `fast`.
KN_FN float kn_exp(float v) { return expf(v); }
KN_FN float kn_exp_fast(float v) { return __expf(v); }
KN_FN float kn_exp2_fast(float v) { float r; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v)); return r; }
KN_FN float kn_log(float v) { return logf(v); }
KN_FN float kn_sqrt(float v) { return sqrtf(v); }
KN_FN float kn_rsqrt(float v) { return 1.0f / sqrtf(v); }
KN_FN float kn_sin(float v) { return sinf(v); }
KN_FN float kn_cos(float v) { return cosf(v); }
KN_FN float kn_tanh(float v) { return tanhf(v); }
KN_FN float kn_pow(float a, float b) { return powf(a, b); }
KN_FN float kn_fma(float a, float b, float c) { return fmaf(a, b, c); }
KN_FN float kn_abs(float v) { return fabsf(v); }
KN_FN float kn_floor(float v) { return floorf(v); }
KN_FN float kn_rint(float v) { return rintf(v); }
KN_FN float kn_max(float a, float b) { return fmaxf(a, b); }
KN_FN float kn_min(float a, float b) { return fminf(a, b); }
KN_FN uint kn_max(uint a, uint b) { return a > b ? a : b; }
KN_FN ulong kn_max(ulong a, ulong b) { return a > b ? a : b; }
KN_FN ulong kn_min(ulong a, ulong b) { return a < b ? a : b; }
KN_FN uint kn_min(uint a, uint b) { return a < b ? a : b; }
KN_FN int kn_max(int a, int b) { return a > b ? a : b; }
KN_FN int kn_min(int a, int b) { return a < b ? a : b; }
// Operations that no compiler may contract into a fused one.
KN_FN float kn_mul_rn(float a, float b) { return __fmul_rn(a, b); }
KN_FN float kn_add_rn(float a, float b) { return __fadd_rn(a, b); }

// Conversions of 16-bit storage by its bits, to nearest even.
KN_FN float kn_f16_to_f32(ushort v) { float r; asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v)); return r; }
KN_FN ushort kn_f32_to_f16(float v) { ushort r; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(v)); return r; }
KN_FN float kn_bf16_to_f32(ushort v) { return __uint_as_float((uint)v << 16); }
KN_FN ushort kn_f32_to_bf16(float v) { ushort r; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(v)); return r; }

#define KN_HAS_PACK 1
KN_FN uint kn_pack_f16(float a, float b) { uint r; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(b), "f"(a)); return r; }
KN_FN uint kn_pack_bf16(float a, float b) { uint r; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(b), "f"(a)); return r; }

// Pairs of f16 in a word: a * b + c with one rounding each. Four bytes out of the eight of (a, b), by the nibbles of `sel` (0..7).
KN_FN uint kn_fma_h2(uint a, uint b, uint c) { uint r; asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c)); return r; }
KN_FN uint kn_permute(uint a, uint b, uint sel) { return __byte_perm(a, b, sel); }
#define KN_HAS_PERMUTE_SIGNS 1
KN_FN uint kn_permute_signs(uint a, uint b, uint sel) { uint r; asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(sel)); return r; }

// Copies 16 bytes to threadgroup memory behind the thread's back; `kn_async_wait<N>` leaves at most N commits in flight.
#define KN_HAS_ASYNC_COPY 1
KN_FN void kn_async_copy16(KN_LOCAL void* dst, KN_GLOBAL const void* src) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((uint)__cvta_generic_to_shared(dst)), "l"(src) : "memory");
}
// The same for pieces that share sectors of 32 bytes with pieces that others of the block take: what was fetched stays near.
KN_FN void kn_async_copy16_shared(KN_LOCAL void* dst, KN_GLOBAL const void* src) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"((uint)__cvta_generic_to_shared(dst)), "l"(src) : "memory");
}
#define KN_HAS_PREFETCH 1
KN_FN void kn_prefetch(KN_GLOBAL const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }
KN_FN void kn_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <uint N> KN_FN void kn_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// Matrix unit; common.h says where the elements of a fragment live.
#define KN_HAS_MMA 1
#define KN_MMA(name, type)                                                                                                       \
  KN_FN void name(float (&d)[4], const uint (&a)[4], uint b0, uint b1) {                                                         \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"      \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));        \
  }
KN_MMA(kn_mma_f16, "f16")
KN_MMA(kn_mma_bf16, "bf16")
#undef KN_MMA
KN_FN void kn_mma_s8(int (&d)[4], const uint (&a)[4], uint b0, uint b1, uint) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// Four 8x8 tiles of 16-bit values from threadgroup memory into fragment words; `row` is the 16-byte row that this lane points at.
KN_FN void kn_ldmatrix4(uint (&r)[4], KN_LOCAL const ushort* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
      : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"((uint)__cvta_generic_to_shared(row)) : "memory");
}
KN_FN void kn_ldmatrix4_trans(uint (&r)[4], KN_LOCAL const ushort* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
      : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"((uint)__cvta_generic_to_shared(row)) : "memory");
}
