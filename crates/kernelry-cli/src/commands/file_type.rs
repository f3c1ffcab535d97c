//! Block formats of whole files: the types and mixes that `--type` names, and what each tensor gets.

use kernelry::quant::GgmlType;

/// What `--type` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) ty: GgmlType,
    /// More bits for the tensors that suffer most.
    pub(crate) mix: bool,
    /// The number that `general.file_type` has for it.
    pub(crate) file_type: u32,
}

const fn row(name: &'static str, ty: GgmlType, mix: bool, file_type: u32) -> Target {
    Target { name, ty, mix, file_type }
}

const TARGETS: &[Target] = &[
    row("F32", GgmlType::F32, false, 0),
    row("F16", GgmlType::F16, false, 1),
    row("BF16", GgmlType::BF16, false, 32),
    row("Q4_0", GgmlType::Q4_0, false, 2),
    row("Q4_1", GgmlType::Q4_1, false, 3),
    row("Q5_0", GgmlType::Q5_0, false, 8),
    row("Q5_1", GgmlType::Q5_1, false, 9),
    row("Q8_0", GgmlType::Q8_0, false, 7),
    row("IQ4_NL", GgmlType::IQ4_NL, false, 25),
    row("Q4_K", GgmlType::Q4_K, false, 14),
    row("Q4_K_S", GgmlType::Q4_K, false, 14),
    row("Q4_K_M", GgmlType::Q4_K, true, 15),
    row("Q5_K", GgmlType::Q5_K, false, 16),
    row("Q5_K_S", GgmlType::Q5_K, false, 16),
    row("Q5_K_M", GgmlType::Q5_K, true, 17),
    row("Q6_K", GgmlType::Q6_K, false, 18),
];

/// Reads the name of a target.
pub(crate) fn parse(text: &str) -> Result<Target, String> {
    TARGETS.iter().copied().find(|t| t.name.eq_ignore_ascii_case(text)).ok_or_else(|| {
        let names: Vec<&str> = TARGETS.iter().map(|t| t.name).collect();
        format!("expected one of: {}", names.join(", "))
    })
}

/// The type that a tensor gets, which has `stored` now, in a model of `layers` layers.
pub(crate) fn choose(name: &str, shape: &[usize], stored: GgmlType, target: Target, layers: usize) -> GgmlType {
    if !is_weight(name, shape) {
        return stored;
    }
    let k = shape.last().copied().unwrap_or(1);
    let k_type = target.ty.block_len() == 256;
    let outer = matches!(name, "output.weight" | "token_embd.weight");
    let ty = if k_type && (outer || (target.mix && deserves_more(name, layers))) { GgmlType::Q6_K } else { target.ty };
    let ty = match ty {
        GgmlType::Q4_K if !k.is_multiple_of(256) => GgmlType::Q5_0,
        GgmlType::Q5_K if !k.is_multiple_of(256) => GgmlType::Q5_1,
        GgmlType::Q6_K if !k.is_multiple_of(256) => GgmlType::Q8_0,
        other => other,
    };
    if k.is_multiple_of(ty.block_len()) { ty } else { GgmlType::F16 }
}

/// Matrices that are multiplied with activations, and embeddings. Not norms, biases, routers, convolutions and position tables.
fn is_weight(name: &str, shape: &[usize]) -> bool {
    let kept = ["_norm", "ffn_gate_inp", "ssm_conv1d", "position_embd", "token_types", "attn_rel_b", "rope_"];
    shape.len() >= 2 && name.ends_with(".weight") && !kept.iter().any(|k| name.contains(k))
}

/// Whether the mixes spend more bits on it: value and down projections of the first and last eighth of the layers, and of every
/// third layer between.
fn deserves_more(name: &str, layers: usize) -> bool {
    let sensitive = ["attn_v.weight", "ffn_down.weight", "ffn_down_exps.weight"].iter().any(|n| name.ends_with(n));
    let Some(layer) = layer_of(name).filter(|_| sensitive) else { return false };
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

/// The number in `blk.7.attn_v.weight`.
pub(crate) fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_types() {
        assert_eq!(parse("q4_k_m").map(|t| (t.ty, t.mix, t.file_type)), Ok((GgmlType::Q4_K, true, 15)));
        assert!(parse("Q3_K").is_err_and(|e| e.contains("Q4_K_M")));
    }

    #[test]
    fn sensitive_layers_of_a_mix() {
        let more: Vec<usize> = (0..32).filter(|l| deserves_more(&format!("blk.{l}.ffn_down.weight"), 32)).collect();
        assert_eq!(more, [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]);
        assert!(!deserves_more("blk.0.ffn_up.weight", 32) && !deserves_more("output.weight", 32));
    }
}
