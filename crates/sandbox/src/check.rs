//! Admission: one pass over a module that names every broken rule and its place.
//!
//! Owns the decision whether a module can run deterministically and within bounds, and the map of its sections that
//! compilation needs. It does not compile, and it does not judge intentions. Invariant: an admitted module can always
//! be linked and instantiated (given the memory), except that an element segment may miss its table.
//!
//! Spec: WebAssembly Core 2.0, binary format and validation; features by allow-list, see [`FEATURES`].

mod effort;
mod inspector;
mod sections;

use std::ops::Range;

use serde::{Deserialize, Serialize};
use wasmparser::WasmFeatures;

use crate::rule::{Violation, Warning};
use inspector::Inspector;

/// Bytes of a page of linear memory.
pub(crate) const PAGE_BYTES: u64 = 1 << 16;

/// The features that are on; everything else is off, whatever an engine's defaults are. Without `GC_TYPES` there is
/// no `externref`, so the engine needs no collector. Floats are on: the engine gives every NaN the same bits.
pub(crate) const FEATURES: WasmFeatures = WasmFeatures::FLOATS
    .union(WasmFeatures::MUTABLE_GLOBAL)
    .union(WasmFeatures::SIGN_EXTENSION)
    .union(WasmFeatures::SATURATING_FLOAT_TO_INT)
    .union(WasmFeatures::MULTI_VALUE)
    .union(WasmFeatures::BULK_MEMORY)
    .union(WasmFeatures::REFERENCE_TYPES);

/// The facts that admission learnt about a module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleInfo {
    /// SHA-256 of the module's bytes.
    pub sha256: [u8; 32],
    /// Length of the module in bytes.
    pub len: usize,
    /// Imports an oracle (`oracle_query` or `oracle_bucket`).
    pub asks: bool,
    /// Imports `submit_predictions`: judged on the last submitted vector, and not judged if there is none.
    pub submits: bool,
    /// Imports `emit_structured_claim`, as every guest must.
    pub emits: bool,
    /// Functions defined by the module.
    pub functions: u32,
    /// Bytes in all data segments.
    pub data_bytes: u64,
    /// Memory at the start, in pages of 64 KiB.
    pub initial_memory_pages: u64,
    /// The most memory that the module itself allows, in pages; `None`: the lane's limit.
    pub maximum_memory_pages: Option<u64>,
    /// Probable mistakes in the module.
    pub warnings: Vec<Warning>,
}

/// Decides whether `wasm` is admitted: determinism and bounds, nothing else.
///
/// Takes time linear in the module's length; a module longer than
/// [`bounds::MODULE_BYTES`](crate::bounds::MODULE_BYTES) is not read at all.
///
/// # Errors
/// A [`Violation`] for every rule that the module breaks, in the order of the module, up to
/// [`bounds::VIOLATIONS`](crate::bounds::VIOLATIONS) of them.
pub fn check(wasm: &[u8]) -> Result<ModuleInfo, Vec<Violation>> {
    inspect(wasm, Role::Guest).map(|(info, _)| info)
}

/// [`check`] for a policy oracle: no imports, and the exports of its interface.
///
/// # Errors
/// As [`check`].
pub fn check_policy(wasm: &[u8]) -> Result<ModuleInfo, Vec<Violation>> {
    inspect(wasm, Role::Policy).map(|(info, _)| info)
}

/// The use of a module. Features, sizes and everything else are the same for both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Role {
    /// A guest: exports `run` and `memory`, may import the host's functions.
    Guest,
    /// A policy oracle: imports nothing, exports the functions that `policy` calls.
    Policy,
}

/// The names that a module exports, in its order. Empty if the module cannot be read.
#[must_use]
pub fn export_names(wasm: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    for payload in wasmparser::Parser::new(0).parse_all(wasm) {
        match payload {
            Ok(wasmparser::Payload::ExportSection(exports)) => {
                names.extend(
                    exports
                        .into_iter()
                        .flatten()
                        .map(|export| export.name.to_owned()),
                );
            }
            Ok(_) => {}
            Err(_) => break,
        }
    }
    names
}

/// The byte ranges of an admitted module's sections and data.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    /// Section ids and contents, in order, without custom sections.
    pub(crate) sections: Vec<(u8, Range<usize>)>,
    /// Active segments: address and contents.
    pub(crate) segments: Vec<(u32, Range<usize>)>,
    /// A passive segment or a data count exists, so that code may name segments.
    pub(crate) code_may_name_segments: bool,
}

/// [`check`], with the layout.
pub(crate) fn inspect(wasm: &[u8], role: Role) -> Result<(ModuleInfo, Layout), Vec<Violation>> {
    Inspector::read(wasm, role).finish(wasm)
}
