//! WebAssembly modules, before any compiler sees them.

use evidenceos_sandbox::{ModuleInfo, bounds, check as admit, check_policy, export_names};
use sha2::{Digest as _, Sha256};
use wasmparser::{Validator, WasmFeatures};

/// An admitted module is valid WebAssembly within the bounds, with the exports that it needs; any other module is
/// refused for at least one reason, and for at most [`bounds::VIOLATIONS`].
pub fn check(wasm: &[u8]) {
    let names = export_names(wasm);
    match admit(wasm) {
        Ok(info) => {
            within_bounds(wasm, &info);
            for needed in ["run", "memory"] {
                assert!(names.iter().any(|name| name == needed), "{needed}");
            }
        }
        Err(violations) => assert!((1..=bounds::VIOLATIONS).contains(&violations.len())),
    }
    match check_policy(wasm) {
        Ok(info) => {
            within_bounds(wasm, &info);
            assert!(!(info.asks || info.submits || info.emits), "no imports");
            assert!(names.iter().any(|name| name == "memory"));
        }
        Err(violations) => assert!((1..=bounds::VIOLATIONS).contains(&violations.len())),
    }
}

fn within_bounds(wasm: &[u8], info: &ModuleInfo) {
    // Without what the engine's collector or wider registers would be needed for.
    let features = WasmFeatures::WASM2
        .difference(WasmFeatures::SIMD)
        .difference(WasmFeatures::GC_TYPES);
    let valid = Validator::new_with_features(features).validate_all(wasm);
    assert!(valid.is_ok(), "{:?}", valid.err());
    assert_eq!(info.sha256, <[u8; 32]>::from(Sha256::digest(wasm)));
    assert_eq!(info.len, wasm.len());
    assert!(info.len <= bounds::MODULE_BYTES);
    assert!(info.functions <= bounds::FUNCTIONS);
    assert!(info.data_bytes <= wasm.len() as u64);
    assert!(info.initial_memory_pages <= bounds::INITIAL_MEMORY_PAGES);
    let most = info.maximum_memory_pages.unwrap_or(1 << 16);
    assert!((info.initial_memory_pages..=1 << 16).contains(&most));
}
