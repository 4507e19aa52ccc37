//! The Wasm engine's settings, and the name that identifies them.
//!
//! Owns every choice on which the result of a run could depend, all made here and none left to an engine's default:
//! features, fuel, NaNs, stack, code for the architecture's baseline. Invariant: two engines with equal [`engine_id`]
//! turn the same module, limits and answers into the same report.

use std::fmt::Write;
use std::hash::{Hash, Hasher};

use sha2::{Digest, Sha256};
use wasmtime::{Config, Engine, ModuleVersionStrategy, OptLevel, RegallocAlgorithm, WasmFeatures};

/// The release of wasmtime in use; a test holds it against Cargo.lock.
const WASMTIME_VERSION: &str = "48.0.8";

/// Raised when this crate changes the result of a run: host functions, their cost, the layout of data.
const HOST_REVISION: u32 = 1;

/// Stack of a guest, in bytes. Deeper recursion ends the run as out of memory.
const STACK_BYTES: usize = 256 << 10;

/// Address space reserved for a memory: all of its four GiB, so that code needs no bounds checks and growth never
/// moves it. Address space is not memory: only pages that a guest touches are.
const RESERVED_BYTES: u64 = 4 << 30;

/// The engine for all guests.
pub(crate) fn new_engine() -> wasmtime::Result<Engine> {
    let mut config = Config::new();
    // Switch everything off first, so that a feature that a later engine has on by default stays
    // off.
    config
        .wasm_features(WasmFeatures::all(), false)
        .wasm_features(features(), true);
    if let Some(target) = baseline_target() {
        // Naming the target switches off the processor's own extensions to the baseline.
        config.target(target)?;
    }
    config.module_version(ModuleVersionStrategy::Custom(format!(
        "{WASMTIME_VERSION}/{HOST_REVISION}"
    )))?;

    // Fuel alone ends a run. An interruption by the clock would make its end depend on the machine.
    config
        .consume_fuel(true)
        .epoch_interruption(false)
        .max_wasm_stack(STACK_BYTES);
    // Processors make NaNs of different bits, and a guest can look at them.
    config.cranelift_nan_canonicalization(true);

    // A guest runs once, for microseconds: the time to compile it dominates.
    config
        .cranelift_opt_level(OptLevel::None)
        .cranelift_regalloc_algorithm(RegallocAlgorithm::SinglePass);
    config
        .wasm_backtrace_max_frames(None)
        .generate_address_map(false)
        .native_unwind_info(false);

    config
        .memory_reservation(RESERVED_BYTES)
        .memory_may_move(false)
        .memory_init_cow(false);
    Engine::new(&config)
}

/// The name of the engine: `wasmtime-VERSION/ARCH/DIGEST`, where DIGEST is 16 hexadecimal digits over all settings
/// that shape compiled code, [`HOST_REVISION`] and `stack_probe`.
///
/// `stack_probe` measures the depth of an endless recursion: the stack is counted from the host's own frame, so it is
/// the one observable that another build of the host could move.
pub(crate) fn engine_id(engine: &Engine, stack_probe: u64) -> String {
    let mut digest = DigestHasher(Sha256::new());
    engine.precompile_compatibility_hash().hash(&mut digest);
    digest.write_usize(STACK_BYTES);
    digest.write_u64(stack_probe);
    let mut id = format!("wasmtime-{WASMTIME_VERSION}/{}/", std::env::consts::ARCH);
    for byte in &digest.0.finalize()[..8] {
        // Writing to a string does not fail.
        let _ = write!(id, "{byte:02x}");
    }
    id
}

/// The engine's own names for the features of admission (`check::FEATURES`); a test compares the two.
fn features() -> WasmFeatures {
    WasmFeatures::FLOATS
        | WasmFeatures::MUTABLE_GLOBAL
        | WasmFeatures::SIGN_EXTENSION
        | WasmFeatures::SATURATING_FLOAT_TO_INT
        | WasmFeatures::MULTI_VALUE
        | WasmFeatures::BULK_MEMORY
        | WasmFeatures::REFERENCE_TYPES
}

/// The host's architecture and system without any extension of the processor; `None`: left to the engine.
fn baseline_target() -> Option<&'static str> {
    match (std::env::consts::ARCH, std::env::consts::OS) {
        ("x86_64", "linux") => Some("x86_64-unknown-linux-gnu"),
        ("aarch64", "linux") => Some("aarch64-unknown-linux-gnu"),
        ("aarch64", "macos") => Some("aarch64-apple-darwin"),
        _ => None,
    }
}

/// Lets `Hash` write into SHA-256: the standard hashers do not promise stable values.
struct DigestHasher(Sha256);

impl Hasher for DigestHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let digest = self.0.clone().finalize();
        u64::from_le_bytes([
            digest[0], digest[1], digest[2], digest[3], digest[4], digest[5], digest[6], digest[7],
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_named_version_is_the_one_in_use() {
        let lock = include_str!("../../../../Cargo.lock");
        assert!(lock.contains(&format!(
            "name = \"wasmtime\"\nversion = \"{WASMTIME_VERSION}\""
        )));
    }

    #[test]
    fn the_engine_and_admission_agree_on_features() {
        // The types come from different releases of one library, so their names are compared.
        assert_eq!(
            format!("{:?}", features()),
            format!("{:?}", crate::check::FEATURES)
        );
    }

    #[test]
    fn the_id_is_stable_and_moves_with_the_stack() {
        let (one, other) = (
            new_engine().expect("settings are valid"),
            new_engine().expect("settings are valid"),
        );
        assert_eq!(engine_id(&one, 7), engine_id(&other, 7));
        assert_ne!(engine_id(&one, 7), engine_id(&one, 8));
    }
}
