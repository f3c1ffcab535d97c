//! The catalogue: everything that is known of a kernel, said once.
//!
//! Each family builds its entries in `ops/<family>`; `list`, `info`, launch checks, the conformance suite, benches and documentation
//! are made from them.

mod family;
mod kernel;
mod params;
mod shape;
mod text;

pub use bytemuck::{Pod, Zeroable};
pub use family::Family;
pub use kernel::{Access, Binding, ConstantSpec, Cost, Geometry, Kernel, KernelBuilder};
pub use params::{NoParams, ParamField, ParamKind, ParamLayout, ParamSpec, Params, StepU32};
#[doc(hidden)]
pub use params::{field_spec as params_field, layout as params_layout};
pub use shape::{Dims, Shape};
pub use text::{Instance, Text};
pub(crate) use text::{assemble, standalone};

use std::sync::LazyLock;

/// All kernels that ship with the library, in the order of their families.
///
/// Building it allocates and parses shape expressions once per process; nothing is compiled and no device is needed.
pub fn builtin() -> &'static [Kernel] {
    static KERNELS: LazyLock<Vec<Kernel>> = LazyLock::new(crate::ops::all);
    &KERNELS
}

/// The names that are part of the contract: none is ever renamed or removed. Further kernels come and go with the library's own needs.
pub fn core_names() -> impl Iterator<Item = &'static str> {
    include_str!("names.txt").lines()
}

fn is_core_name(name: &str) -> bool {
    static NAMES: LazyLock<hashbrown::HashSet<&'static str>> = LazyLock::new(|| core_names().collect());
    NAMES.contains(name)
}

/// The built-in kernel of that name.
pub fn find(name: &str) -> Option<&'static Kernel> {
    static INDEX: LazyLock<hashbrown::HashMap<&'static str, &'static Kernel>> =
        LazyLock::new(|| builtin().iter().map(|k| (k.name(), k)).collect());
    INDEX.get(name).copied()
}

#[cfg(test)]
mod tests {
    use super::{builtin, core_names, find};

    #[test]
    fn every_promised_name_is_there_once() {
        assert_eq!(core_names().count(), 348);
        for name in core_names() {
            assert!(find(name).is_some_and(|k| !k.is_extra()), "{name} is missing");
        }
        assert_eq!(builtin().iter().filter(|k| !k.is_extra()).count(), 348);
    }
}
