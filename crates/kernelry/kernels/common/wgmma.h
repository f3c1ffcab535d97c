// The matrix unit of Hopper (sm_90a) as CUDA has it: D[64, N] (+)= A[64, 16] B[16, N] by a warpgroup of 128 threads, asynchronously, with B, and
// where `wgmma_ss` is called A too, in threadgroup memory. Other targets see nothing of this file: a text that includes it has another path
// for them, chosen by KN_WGMMA.
//
// Where the elements live. In registers, warp w of the group holds rows 16 w to 16 w + 15: word i of A, and words 4 n to 4 n + 3 of D for columns
// 8 n to 8 n + 7, lie as kn_frag_row and kn_frag_col say of a product of 16 rows. In threadgroup memory, operands lie in panels of 64 elements
// of 16 bits: row r of a panel has 128 bytes at 128 r, and its 16-byte piece c is at place c ^ (r % 8) (wgmma_place). Panels start at multiples
// of 1024 bytes. Contiguous k: rows are m or n, 16 k are 32 bytes on in the panel. Contiguous n (TRANS): rows are k, 16 k are 16 rows on, and
// every 64 columns a panel.
#if defined(KN_TARGET_CUDA) && defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define KN_WGMMA 1

// Byte of piece `c` (of 16 bytes) of row `r` in a panel.
KN_FN uint wgmma_place(uint r, uint c) { return r * 128 + ((c ^ (r & 7)) << 4); }
KN_FN uint wgmma_address(const void* p) { return (uint)__cvta_generic_to_shared(p); }
// What the unit is told of an operand with contiguous k at this byte address: rows by eight, 1024 bytes apart.
KN_FN ulong wgmma_rows(uint address) { return (ulong)(address >> 4 & 0x3fffu) | 1ull << 16 | 64ull << 32 | 1ull << 62; }
// Of an operand with contiguous n, whose panels are `panel` bytes apart.
KN_FN ulong wgmma_columns(uint address, uint panel) {
  return (ulong)(address >> 4 & 0x3fffu) | (ulong)(panel >> 4) << 16 | 64ull << 32 | 1ull << 62;
}
// Before the first product, and after registers that a product uses were written.
KN_FN void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
KN_FN void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most N commits are under way.
template <uint N> KN_FN void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }
// Keeps the compiler from using registers that a product is still writing.
template <uint N> KN_FN void wgmma_settle(float (&d)[N]) {
  KN_UNROLL for (uint i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
// Makes what this thread wrote to threadgroup memory visible to the unit; a barrier follows.
KN_FN void wgmma_publish() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// Barriers in threadgroup memory: `count` arrivals, and the bytes that were announced, end a phase; phases have parity 0 and 1 in turn.
KN_FN void wgmma_bar_init(ulong* bar, uint count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(wgmma_address(bar)), "r"(count) : "memory");
}
KN_FN void wgmma_bar_arrive(ulong* bar) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(wgmma_address(bar)) : "memory"); }
// Arrives when the asynchronous copies of this thread have.
KN_FN void wgmma_bar_arrive_copies(ulong* bar) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(wgmma_address(bar)) : "memory");
}
// Arrives and announces `bytes` that the copy engine brings.
KN_FN void wgmma_bar_expect(ulong* bar, uint bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(wgmma_address(bar)), "r"(bytes) : "memory");
}
KN_FN void wgmma_bar_wait(ulong* bar, uint parity) {
  asm volatile("{ .reg .pred p; AGAIN: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @!p bra AGAIN; }" ::"r"(wgmma_address(bar)),
               "r"(parity) : "memory");
}
// Pairs of blocks (clusters of two) reach each other's threadgroup memory, which is laid out alike.
KN_FN uint wgmma_rank() {
  uint r;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return r;
}
// Barriers are set up, each by one thread of its block; every thread of both comes here.
KN_FN void wgmma_pair_ready() {
  asm volatile("fence.mbarrier_init.release.cluster; barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.aligned;" ::: "memory");
}
// Every thread of both blocks comes here before either ends.
KN_FN void wgmma_pair_done() { asm volatile("barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;" ::: "memory"); }
// The same where nothing that this block has sent to the other is still under way.
KN_FN void wgmma_pair_leave() { asm volatile("barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.aligned;" ::: "memory"); }
// What block `rank` of the pair has at this place of its memory.
KN_FN uint wgmma_there(const void* p, uint rank) {
  uint r;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(wgmma_address(p)), "r"(rank));
  return r;
}
KN_FN void wgmma_bar_arrive_there(ulong* bar, uint rank) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(wgmma_there(bar, rank)) : "memory");
}
// The copy engine, one thread asks it: `bytes` (a multiple of 16) from device memory, which count for `bar` when they are there; the same to both
// blocks of a pair, at the same place, for the same barrier of each.
KN_FN void wgmma_fetch(uint to, const void* from, uint bytes, const ulong* bar) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from), "r"(bytes),
               "r"(wgmma_address(bar)) : "memory");
}
KN_FN void wgmma_fetch_pair(uint to, const void* from, uint bytes, const ulong* bar) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;" ::"r"(to),
               "l"(from), "r"(bytes), "r"(wgmma_address(bar)), "h"((ushort)3) : "memory");
}
// Likewise the panel of a map whose first element is in row `row` and column `col`; zeros beyond the last row.
KN_FN void wgmma_fetch_panel(uint to, const void* map, uint row, uint col, const ulong* bar) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to), "l"(map),
               "r"(col), "r"(row), "r"(wgmma_address(bar)) : "memory");
}
KN_FN void wgmma_fetch_panel_pair(uint to, const void* map, uint row, uint col, const ulong* bar) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;"
               ::"r"(to), "l"(map), "r"(col), "r"(row), "r"(wgmma_address(bar)), "h"((ushort)3) : "memory");
}
// What the copy engine must know of a matrix in device memory, in 128 bytes there, at a multiple of 64: `rows` rows of k 16-bit elements (a multiple
// of 8), at a multiple of 16 bytes, of which panels of `high` rows are fetched. A warp writes it, in a launch before that of its readers, by
// way of 128 bytes of threadgroup memory; a reader calls wgmma_map_ready first.
#define WGMMA_MAP(field, type, value) \
  asm volatile("tensormap.replace.tile." field ".shared::cta.b1024." type " [%0], " value ";" ::"r"(at)
KN_FN void wgmma_map(uchar* map, const void* matrix, uint rows, uint k, uint high, uint* by_way, uint lane) {
  const uint at = wgmma_address(by_way);
  by_way[lane] = 0;
  kn_warp_sync();
  if (lane == 0) {
    WGMMA_MAP("global_address", "b64", "%1"), "l"(matrix) : "memory");
    WGMMA_MAP("rank", "b32", "1") : "memory");
    WGMMA_MAP("box_dim", "b32", "0, 64") : "memory");
    WGMMA_MAP("box_dim", "b32", "1, %1"), "r"(high) : "memory");
    WGMMA_MAP("global_dim", "b32", "0, %1"), "r"(k) : "memory");
    WGMMA_MAP("global_dim", "b32", "1, %1"), "r"(rows) : "memory");
    WGMMA_MAP("global_stride", "b64", "0, %1"), "l"((ulong)k * 2) : "memory");
    WGMMA_MAP("element_stride", "b32", "0, 1") : "memory");
    WGMMA_MAP("element_stride", "b32", "1, 1") : "memory");
    WGMMA_MAP("elemtype", "b32", "1") : "memory");           // 16 bits
    WGMMA_MAP("interleave_layout", "b32", "0") : "memory");  // none
    WGMMA_MAP("swizzle_mode", "b32", "3") : "memory");       // pieces of 16 bytes in rows of 128, as wgmma_place says
    WGMMA_MAP("fill_mode", "b32", "0") : "memory");          // zeros
  }
  kn_warp_sync();
  ((uint*)map)[lane] = by_way[lane];
  asm volatile("fence.proxy.tensormap::generic.release.gpu;" ::: "memory");
}
#undef WGMMA_MAP
KN_FN void wgmma_map_ready(const void* map) { asm volatile("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;" ::"l"(map) : "memory"); }
// The registers that each thread of a warpgroup has from here on; all of them call. Those of a block are dealt anew: first come, first served.
template <uint N> KN_FN void wgmma_registers_less() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }
template <uint N> KN_FN void wgmma_registers_more() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }
// A barrier of `threads` threads, number `id` of 15.
KN_FN void wgmma_part_barrier(uint id, uint threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
// A barrier that tells every thread whether any came with `v`.
KN_FN bool wgmma_any(bool v) { return __syncthreads_or(v) != 0; }

template <class T, uint N, uint TRANS> struct Wgmma;

#define WGMMA_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WGMMA_16(i) WGMMA_4(i), WGMMA_4(i + 4), WGMMA_4(i + 8), WGMMA_4(i + 12)
#define WGMMA_R10(t) "%" t "0,%" t "1,%" t "2,%" t "3,%" t "4,%" t "5,%" t "6,%" t "7,%" t "8,%" t "9"
// `ss` and `rs` for one width: N/2 registers, their list, and the numbers of the operands behind them.
#define WGMMA_WIDTH(T, type, N, TRANS, REGS, OUT, P0, P1, P2, P3, P4, P5)                                                        \
  template <> struct Wgmma<T, N, TRANS> {                                                                                        \
    static KN_FN void ss(float (&d)[N / 2], ulong a, ulong b, uint add) {                                                        \
      asm volatile("{ .reg .pred p; setp.ne.b32 p, %" P2 ", 0; wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type    \
                   " {" REGS "}, %" P0 ", %" P1 ", p, 1, 1, 0, " #TRANS "; }"                                                    \
                   : OUT : "l"(a), "l"(b), "r"(add) : "memory");                                                                 \
    }                                                                                                                            \
    static KN_FN void rs(float (&d)[N / 2], uint a0, uint a1, uint a2, uint a3, ulong b, uint add) {                             \
      asm volatile("{ .reg .pred p; setp.ne.b32 p, %" P5 ", 0; wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type    \
                   " {" REGS "}, {%" P0 ", %" P1 ", %" P2 ", %" P3 "}, %" P4 ", p, 1, 1, " #TRANS "; }"                          \
                   : OUT : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(add) : "memory");                                     \
    }                                                                                                                            \
  };
#define WGMMA_WIDTHS(T, type, TRANS)                                                                                             \
  WGMMA_WIDTH(T, type, 16, TRANS, WGMMA_REGS_8, WGMMA_OUT_8, "8", "9", "10", "11", "12", "13")                                   \
  WGMMA_WIDTH(T, type, 32, TRANS, WGMMA_REGS_16, WGMMA_OUT_16, "16", "17", "18", "19", "20", "21")                               \
  WGMMA_WIDTH(T, type, 64, TRANS, WGMMA_REGS_32, WGMMA_OUT_32, "32", "33", "34", "35", "36", "37")                               \
  WGMMA_WIDTH(T, type, 96, TRANS, WGMMA_REGS_48, WGMMA_OUT_48, "48", "49", "50", "51", "52", "53")                               \
  WGMMA_WIDTH(T, type, 128, TRANS, WGMMA_REGS_64, WGMMA_OUT_64, "64", "65", "66", "67", "68", "69")                              \
  WGMMA_WIDTH(T, type, 192, TRANS, WGMMA_REGS_96, WGMMA_OUT_96, "96", "97", "98", "99", "100", "101")                            \
  WGMMA_WIDTH(T, type, 224, TRANS, WGMMA_REGS_112, WGMMA_OUT_112, "112", "113", "114", "115", "116", "117")                      \
  WGMMA_WIDTH(T, type, 256, TRANS, WGMMA_REGS_128, WGMMA_OUT_128, "128", "129", "130", "131", "132", "133")
#define WGMMA_REGS_8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define WGMMA_REGS_16 WGMMA_REGS_8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define WGMMA_REGS_30 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9," WGMMA_R10("1") "," WGMMA_R10("2")
#define WGMMA_REGS_32 WGMMA_REGS_30 ",%30,%31"
#define WGMMA_REGS_48 WGMMA_REGS_30 "," WGMMA_R10("3") ",%40,%41,%42,%43,%44,%45,%46,%47"
#define WGMMA_REGS_60 WGMMA_REGS_30 "," WGMMA_R10("3") "," WGMMA_R10("4") "," WGMMA_R10("5")
#define WGMMA_REGS_64 WGMMA_REGS_60 ",%60,%61,%62,%63"
#define WGMMA_REGS_90 WGMMA_REGS_60 "," WGMMA_R10("6") "," WGMMA_R10("7") "," WGMMA_R10("8")
#define WGMMA_REGS_96 WGMMA_REGS_90 ",%90,%91,%92,%93,%94,%95"
#define WGMMA_REGS_110 WGMMA_REGS_90 "," WGMMA_R10("9") "," WGMMA_R10("10")
#define WGMMA_REGS_112 WGMMA_REGS_110 ",%110,%111"
#define WGMMA_REGS_128 WGMMA_REGS_110 "," WGMMA_R10("11") ",%120,%121,%122,%123,%124,%125,%126,%127"
#define WGMMA_OUT_8 WGMMA_4(0), WGMMA_4(4)
#define WGMMA_OUT_16 WGMMA_16(0)
#define WGMMA_OUT_32 WGMMA_16(0), WGMMA_16(16)
#define WGMMA_OUT_48 WGMMA_OUT_32, WGMMA_16(32)
#define WGMMA_OUT_64 WGMMA_OUT_48, WGMMA_16(48)
#define WGMMA_OUT_96 WGMMA_OUT_64, WGMMA_16(64), WGMMA_16(80)
#define WGMMA_OUT_112 WGMMA_OUT_96, WGMMA_16(96)
#define WGMMA_OUT_128 WGMMA_OUT_112, WGMMA_16(112)
WGMMA_WIDTHS(kn_f16, "f16", 0)
WGMMA_WIDTHS(kn_f16, "f16", 1)
WGMMA_WIDTHS(kn_bf16, "bf16", 0)
WGMMA_WIDTHS(kn_bf16, "bf16", 1)
#endif
