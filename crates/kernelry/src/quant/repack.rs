//! The same weights in another format, without a change of any value.

use half::f16;

use super::GgmlType;

/// Appends a block in the other format; `None` if it cannot hold it.
type RepackBlock = fn(&[u8], &mut Vec<u8>) -> Option<()>;

/// `bytes` in a format that matmul kernels take, if there is one that holds exactly the same weights: Q5_0 and Q4_1 as Q5_1, Q3_K as
/// Q6_K. `None` for other types, and for Q5_0 blocks whose offset `-16·d` is beyond f16.
pub fn repack(ty: GgmlType, bytes: &[u8]) -> Option<(GgmlType, Vec<u8>)> {
    let (to, block): (GgmlType, RepackBlock) = match ty {
        GgmlType::Q5_0 => (GgmlType::Q5_1, q5_0_as_q5_1),
        GgmlType::Q4_1 => (GgmlType::Q5_1, q4_1_as_q5_1),
        GgmlType::Q3_K => (GgmlType::Q6_K, q3_k_as_q6_k),
        _ => return None,
    };
    let mut out = Vec::with_capacity(bytes.len() / ty.block_bytes() * to.block_bytes());
    bytes.chunks_exact(ty.block_bytes()).try_for_each(|b| block(b, &mut out))?;
    Some((to, out))
}

/// `d·(q − 16) = d·q + m` with `m = −16·d`, exact unless it overflows.
fn q5_0_as_q5_1(block: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let (d, codes) = block.split_first_chunk::<2>()?;
    let scale = f16::from_le_bytes(*d).to_f32();
    let min = f16::from_f32(-16.0 * scale);
    if scale.is_finite() && !min.is_finite() {
        return None;
    }
    out.extend_from_slice(d);
    out.extend_from_slice(&min.to_le_bytes());
    out.extend_from_slice(codes);
    Some(())
}

/// Codes of 4 bits are codes of 5 bits without the fifth.
fn q4_1_as_q5_1(block: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let (scales, codes) = block.split_first_chunk::<4>()?;
    out.extend_from_slice(scales);
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(codes);
    Some(())
}

/// Both are `d · scale · code` with a signed scale for every 16 values: codes `−4..=3` are stored as `code + 32` in 6 bits.
fn q3_k_as_q6_k(block: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let (high, rest) = block.split_first_chunk::<32>()?;
    let (low, rest) = rest.split_first_chunk::<64>()?;
    let (packed, d) = rest.split_first_chunk::<12>()?;
    let code = |k: usize| {
        let (half, shift, lane) = (k / 128, k % 128 / 32 * 2, k % 32);
        let bit = (high[lane] >> (k / 32)) & 1;
        ((low[32 * half + lane] >> shift) & 3) + 4 * bit + 28
    };
    let scale = |i: usize| ((packed[i % 8] >> (4 * (i / 8))) & 15) | (((packed[8 + i % 4] >> (2 * (i / 4))) & 3) << 4);
    let (mut ql, mut qh) = ([0u8; 128], [0u8; 64]);
    for k in 0..256 {
        let (half, group, lane) = (k / 128, k % 128 / 32, k % 32);
        ql[64 * half + 32 * (group % 2) + lane] |= (code(k) & 15) << (4 * (group / 2));
        qh[32 * half + lane] |= (code(k) >> 4) << (2 * group);
    }
    out.extend_from_slice(&ql);
    out.extend_from_slice(&qh);
    out.extend((0..16).map(|i| scale(i).wrapping_sub(32)));
    out.extend_from_slice(d);
    Some(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::quant::dequantize_to_vec;

    #[test]
    fn no_weight_changes() {
        let mut rng = fastrand::Rng::with_seed(11);
        for (ty, scale_at) in [(GgmlType::Q5_0, 0), (GgmlType::Q4_1, 0), (GgmlType::Q3_K, 108)] {
            let mut bytes: Vec<u8> = (0..64 * ty.block_bytes()).map(|_| rng.u8(..)).collect();
            for (i, block) in bytes.chunks_mut(ty.block_bytes()).enumerate() {
                let scale = [0.01, -3.0, 0.0, 6e-8, 2e-5][i % 5];
                block[scale_at..scale_at + 2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
                if ty == GgmlType::Q4_1 {
                    block[2..4].copy_from_slice(&f16::from_f32(0.3 - scale).to_le_bytes());
                }
            }
            let (to, packed) = repack(ty, &bytes).unwrap();
            assert_eq!(dequantize_to_vec(ty, &bytes).unwrap(), dequantize_to_vec(to, &packed).unwrap(), "{ty} as {to}, seed 11");
        }
    }

    #[test]
    fn an_offset_beyond_f16_is_refused() {
        let mut block = vec![0u8; 22];
        block[..2].copy_from_slice(&f16::from_f32(5000.0).to_le_bytes());
        assert!(repack(GgmlType::Q5_0, &block).is_none());
        assert!(repack(GgmlType::Q4_0, &block[..18]).is_none());
    }
}
