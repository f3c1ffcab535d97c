// The order of elements and how threadgroup memory is sorted by it: by value descending, equal values (both zeros are equal) by index, NaN after
// everything. A word is the key of a value, which orders like that, above the index: words are unique, and one comparison tells which goes first.

#define SORT_ROOM 2048u  // words that a block sorts at most
#define SORT_END 0xffffffffu
#define SORT_NOTHING (~(ulong)0)  // a word behind all others

KN_FN uint sort_key(float v) {
  if (kn_isnan(v)) return SORT_END;
  const uint bits = (kn_bits(v) & 0x7fffffffu) == 0 ? 0u : kn_bits(v);
  return ~((bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u);
}

KN_FN ulong sort_word(uint key, uint i) { return (ulong)key << 32 | i; }
KN_FN uint sort_word_key(ulong word) { return (uint)(word >> 32); }

// Makes each run of `merged` words sorted, of `size` in all, from two sorted halves, or from a bitonic run where `bitonic` says so. Powers of two.
// Halves meet as mirrored partners, so that all comparisons point one way. Steps whose pairs stay within what a warp holds need no more than
// the warp's own order; `next` is the reach of what the caller does after the last.
KN_FN void sort_merge(KN_LOCAL ulong* words, uint size, uint merged, bool bitonic, uint next, uint t, uint n) {
  for (uint span = merged; span >= 2; span /= 2) {
    const uint reach = span / 2;
    for (uint q = t; q < size / 2; q += n) {
      const uint i = 2 * q - (q & (reach - 1)), j = span == merged && !bitonic ? i ^ (merged - 1) : i + reach;
      const ulong a = words[i], b = words[j];
      if (b < a) {
        words[i] = b;
        words[j] = a;
      }
    }
    if (span <= 2 * KN_WARP && (span > 2 || next <= 2 * KN_WARP)) {
      kn_warp_sync();
    } else {
      kn_barrier();
    }
  }
}

// Sorts each run of `run` words, of `size` in all, powers of two.
KN_FN void sort_runs(KN_LOCAL ulong* words, uint size, uint run, uint t, uint n) {
  for (uint merged = 2; merged <= run; merged *= 2) sort_merge(words, size, merged, false, merged < run ? 2 * merged : SORT_END, t, n);
}

// Leaves the first `keep` of `count` words sorted, a power of two from 2 on; where there are fewer, SORT_NOTHING follows. There is room for
// `count` rounded up to a power of two. Two sorted runs, one reversed, give the first half of both together by one comparison each, bitonic.
KN_FN void sort_first(KN_LOCAL ulong* words, uint count, uint keep, uint t, uint n) {
  uint size = keep;
  while (size < count) size *= 2;
  for (uint i = count + t; i < size; i += n) words[i] = SORT_NOTHING;
  kn_barrier();
  sort_runs(words, size, keep, t, n);
  for (size /= 2; size >= keep; size /= 2) {
    for (uint i = t; i < size; i += n) {
      const ulong other = words[size + (i ^ (keep - 1))];
      if (other < words[i]) words[i] = other;
    }
    kn_barrier();
    sort_merge(words, size, keep, true, SORT_END, t, n);
  }
}
