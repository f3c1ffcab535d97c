//! GGML blocks as a reference sees them: a decoder written bit by bit from the definition of each format, and makers of test data.
//!
//! It shares no code with [`crate::quant`] nor with a backend, so that each can be checked against the others.

use half::f16;

use super::Input;

/// A format and how its blocks are laid out.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    Q4_0,
    Q8_0,
    Q5_1,
    IQ4_NL,
    Q4_K,
    Q5_K,
    Q6_K,
}

/// One decoded weight.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Value {
    /// The weight, exact.
    pub(crate) w: f64,
    /// The largest magnitude that a code could contribute here: the unit in which a sum that applies scale and minimum after adding up
    /// codes may err.
    pub(crate) reach: f64,
}

const IQ4_NL_VALUES: [i32; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

impl Block {
    pub(crate) const ALL: [Block; 7] = [Block::Q4_0, Block::Q8_0, Block::Q5_1, Block::IQ4_NL, Block::Q4_K, Block::Q5_K, Block::Q6_K];

    /// The format in a kernel name.
    ///
    /// # Panics
    /// If the name has none: a mistake in the catalogue.
    #[allow(clippy::panic)]
    pub(crate) fn of_kernel(name: &str) -> Block {
        let found = Block::ALL.into_iter().find(|b| name.contains(b.suffix()));
        found.unwrap_or_else(|| panic!("{name}: no block format in the name"))
    }

    pub(crate) const fn suffix(self) -> &'static str {
        match self {
            Block::Q4_0 => "q4_0",
            Block::Q8_0 => "q8_0",
            Block::Q5_1 => "q5_1",
            Block::IQ4_NL => "iq4_nl",
            Block::Q4_K => "q4_K",
            Block::Q5_K => "q5_K",
            Block::Q6_K => "q6_K",
        }
    }

    /// Values of a block.
    pub(crate) const fn len(self) -> usize {
        match self {
            Block::Q4_0 | Block::Q8_0 | Block::Q5_1 | Block::IQ4_NL => 32,
            Block::Q4_K | Block::Q5_K | Block::Q6_K => 256,
        }
    }

    /// Bytes of a block.
    pub(crate) const fn bytes(self) -> usize {
        match self {
            Block::Q4_0 | Block::IQ4_NL => 18,
            Block::Q8_0 => 34,
            Block::Q5_1 => 24,
            Block::Q4_K => 144,
            Block::Q5_K => 176,
            Block::Q6_K => 210,
        }
    }

    /// Byte offset of the scale.
    const fn scale_at(self) -> usize {
        if matches!(self, Block::Q6_K) { 208 } else { 0 }
    }

    /// Whether a minimum follows the scale.
    const fn has_min(self) -> bool {
        matches!(self, Block::Q5_1 | Block::Q4_K | Block::Q5_K)
    }

    /// Decodes whole blocks.
    pub(crate) fn decode(self, bytes: &[u8]) -> Vec<Value> {
        bytes.chunks_exact(self.bytes()).flat_map(|block| (0..self.len()).map(move |k| self.value(block, k))).collect()
    }

    /// Value `k` of a block.
    fn value(self, b: &[u8], k: usize) -> Value {
        let half_at = |at: usize| f16::from_bits(u16::from(b[at]) | u16::from(b[at + 1]) << 8).to_f64();
        let bits = |byte: usize, shift: usize, mask: u8| i32::from((b[byte] >> shift) & mask);
        let d = half_at(self.scale_at());
        let min = if self.has_min() { half_at(2) } else { 0.0 };
        // In the formats of 32 values, value j shares byte j mod 16 with value j + 16.
        let nibble32 = |start: usize| bits(start + k % 16, 4 * (k / 16), 15);
        let scaled = |q: i32, largest: i32| Value { w: d * f64::from(q), reach: d.abs() * f64::from(largest) };
        match self {
            Block::Q4_0 => scaled(nibble32(2) - 8, 8),
            Block::Q8_0 => scaled(i32::from(b[2 + k] as i8), 128),
            Block::IQ4_NL => scaled(IQ4_NL_VALUES[nibble32(2) as usize], 127),
            Block::Q5_1 => {
                let q = nibble32(8) | bits(4 + k / 8, k % 8, 1) << 4;
                Value { w: d * f64::from(q) + min, reach: d.abs() * 31.0 + min.abs() }
            }
            Block::Q4_K | Block::Q5_K => {
                let g = k / 32;
                // Eight scales and minima of 6 bits: the first four plain, the upper two bits of the others above them.
                let (scale, offset) = if g < 4 {
                    (bits(4 + g, 0, 63), bits(8 + g, 0, 63))
                } else {
                    (bits(8 + g, 0, 15) | bits(g, 6, 3) << 4, bits(8 + g, 4, 15) | bits(4 + g, 6, 3) << 4)
                };
                let codes = if self == Block::Q4_K { 16 } else { 48 };
                let low = bits(codes + 32 * (g / 2) + k % 32, 4 * (g % 2), 15);
                let (q, largest) = if self == Block::Q4_K { (low, 15.0) } else { (low | bits(16 + k % 32, g, 1) << 4, 31.0) };
                let (scale, offset) = (d * f64::from(scale), min * f64::from(offset));
                Value { w: scale * f64::from(q) - offset, reach: scale.abs() * largest + offset.abs() }
            }
            Block::Q6_K => {
                let (h, g, l) = (k / 128, k % 128 / 32, k % 32);
                let q = bits(64 * h + 32 * (g % 2) + l, 4 * (g / 2), 15) | bits(128 + 32 * h + l, 2 * g, 3) << 4;
                let scale = d * f64::from(b[192 + k / 16] as i8);
                Value { w: scale * f64::from(q - 32), reach: scale.abs() * 32.0 }
            }
        }
    }

    /// Random payload, scales of random sign and of the size that trained weights have.
    pub(crate) fn random(self) -> Input {
        self.input(move |rng, block| {
            let sign = if rng.bool() { 1.0 } else { -1.0 };
            self.set_scales(block, sign * (0.2 + rng.f64()) * self.typical_scale(), (rng.f64() - 0.5) * self.typical_scale());
        })
    }

    /// Scales of ±1 and ±½ with small multipliers: products with small integers are exact in any order.
    pub(crate) fn integers(self) -> Input {
        self.input(move |rng, block| {
            match self {
                Block::Q4_K | Block::Q5_K => {
                    block[4..12].iter_mut().for_each(|b| *b &= 7);
                    block[12..16].iter_mut().for_each(|b| *b &= 0x77);
                }
                Block::Q6_K => block[192..208].iter_mut().for_each(|b| *b = (*b & 7).wrapping_sub(4)),
                _ => {}
            }
            let d = [1.0, -1.0, 0.5, -0.5][rng.usize(..4)];
            self.set_scales(block, d, f64::from(rng.i32(-3..=3)));
        })
    }

    /// Scales that are zero, negative, subnormal or tiny, each with every code.
    pub(crate) fn edges(self) -> Input {
        const SCALES: [f64; 8] = [0.0, -0.5, 6e-8, -6e-8, 2e-5, -2e-5, 3e-4, 0.25];
        Input::custom(move |_, len| {
            let mut bytes: Vec<u8> = (0..len).map(|i| (i * 37 + i / 256) as u8).collect();
            for (i, block) in bytes.chunks_exact_mut(self.bytes()).enumerate() {
                self.set_scales(block, SCALES[i % SCALES.len()], SCALES[(i / 3) % SCALES.len()]);
            }
            bytes
        })
    }

    /// Scales near the largest f16, so that many weights are beyond it.
    pub(crate) fn huge(self) -> Input {
        self.input(move |rng, block| self.set_scales(block, if rng.bool() { 60_000.0 } else { -60_000.0 }, 30_000.0))
    }

    /// A scale with which weights are about 0.02, as in trained models.
    fn typical_scale(self) -> f64 {
        match self {
            Block::Q8_0 | Block::IQ4_NL => 3e-4,
            Block::Q4_0 | Block::Q5_1 => 4e-3,
            Block::Q4_K | Block::Q5_K => 1e-4,
            Block::Q6_K => 2e-5,
        }
    }

    fn set_scales(self, block: &mut [u8], d: f64, min: f64) {
        let at = self.scale_at();
        block[at..at + 2].copy_from_slice(&f16::from_f64(d).to_le_bytes());
        if self.has_min() {
            block[2..4].copy_from_slice(&f16::from_f64(min).to_le_bytes());
        }
    }

    fn input(self, finish: impl Fn(&mut fastrand::Rng, &mut [u8]) + Send + Sync + 'static) -> Input {
        Input::custom(move |rng, len| {
            let mut bytes: Vec<u8> = (0..len).map(|_| rng.u8(..)).collect();
            bytes.chunks_exact_mut(self.bytes()).for_each(|block| finish(rng, block));
            bytes
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sums over a block of bytes `37·i + 11` with scale ½ and minimum ¼, computed by hand with another implementation.
    #[test]
    fn golden_blocks() {
        let golden = [
            (Block::Q4_0, &[(0, -1.5), (1, 1.0), (15, -4.0), (16, -1.5), (31, 0.0)][..], -10.5, -259.0),
            (Block::Q8_0, &[(0, 42.5), (1, 61.0), (15, -64.0), (16, -45.5), (31, -24.0)][..], -88.0, -4040.0),
            (Block::Q5_1, &[(0, 9.75), (1, 12.25), (15, 15.25), (16, 9.75), (31, 2.75)][..], 260.5, 4082.5),
            (Block::IQ4_NL, &[(0, -17.5), (1, 12.5), (15, -63.5), (16, -17.5), (31, 0.5)][..], -128.5, -3459.5),
            (Block::Q4_K, &[(0, 157.75), (31, 80.25), (32, 4.0), (100, 47.5), (129, -3.0), (255, 24.25)][..], 27220.0, 3_786_420.0),
            (Block::Q5_K, &[(0, 405.75), (31, 80.25), (32, 56.0), (100, 117.5), (129, -3.0), (255, 54.25)][..], 58108.0, 8_013_724.0),
            (Block::Q6_K, &[(0, -715.5), (31, -48.0), (32, 115.5), (100, 1261.5), (129, 208.0), (255, -30.0)][..], 2306.0, 392_210.0),
        ];
        for (format, samples, sum, weighted) in golden {
            let mut block: Vec<u8> = (0..format.bytes()).map(|i| (37 * i + 11) as u8).collect();
            format.set_scales(&mut block, 0.5, 0.25);
            let values = format.decode(&block);
            for &(k, w) in samples {
                assert_eq!(values[k].w, w, "{format:?} value {k}");
            }
            assert_eq!(values.iter().map(|v| v.w).sum::<f64>(), sum, "{format:?}");
            assert_eq!(values.iter().enumerate().map(|(i, v)| (i + 1) as f64 * v.w).sum::<f64>(), weighted, "{format:?}");
            assert!(values.iter().all(|v| v.w.abs() <= v.reach), "{format:?}");
        }
    }
}
