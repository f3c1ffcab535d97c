//! Families of kernels: the folders a reader looks for.

use std::fmt;

macro_rules! families {
    ($($variant:ident = $name:literal, $doc:literal;)*) => {
        /// A family of kernels. It has the same name in `kernels/`, `src/ops/`, the CPU backend and the tests.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
        #[serde(rename_all = "snake_case")]
        #[non_exhaustive]
        pub enum Family { $(#[doc = $doc] $variant),* }

        impl Family {
            /// Every family, in catalogue order.
            pub const ALL: &'static [Family] = &[$(Family::$variant),*];

            /// Lower-case name, as in `kv_cache`.
            pub const fn name(self) -> &'static str {
                match self { $(Family::$variant => $name),* }
            }

            /// What the family computes, in one line.
            pub const fn summary(self) -> &'static str {
                match self { $(Family::$variant => $doc),* }
            }
        }
    };
}
families! {
    Quantized = "quantized", "Products with GGML-quantised weights, and their dequantisation";
    Affine = "affine", "Products with affine-quantised (MLX) weights, and quantise-dequantise passes";
    Matmul = "matmul", "Products with f32, f16 and bf16 weights";
    Attention = "attention", "Scaled dot-product attention: direct, tiled and split over keys";
    KvCache = "kv_cache", "Writes into key and value caches";
    Turboquant = "turboquant", "Key and value caches rotated and quantised by codebook";
    Norm = "norm", "RMS and L2 normalisation, alone and fused with residual additions";
    Rope = "rope", "Rotary position embedding, alone and fused with head norms";
    Activation = "activation", "Gates, GELU, SiLU, softcap and softmax";
    Elementwise = "elementwise", "Additions, products and casts";
    Layout = "layout", "Copies, permutations, gathers and embeddings";
    Sampling = "sampling", "Arg-max, top-k, sorting and sampling over logits";
    Moe = "moe", "Mixture-of-experts routing, activation and combination";
    DeltaNet = "delta_net", "Gated delta rule, its convolution and its helpers";
    Train = "train", "Backward passes and optimiser steps";
}

impl Family {
    /// The family of that name.
    pub fn from_name(name: &str) -> Option<Family> {
        Family::ALL.iter().copied().find(|f| f.name() == name)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
