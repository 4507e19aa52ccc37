//! Code: from a module to bytes in the child that compiles, and from those bytes to runnable code.

use wasmtime::{Engine, ExternType, InstancePre, Linker, Module, ModuleExport};

use super::host::{Guest, link};
use super::machine::Space;
use crate::abi::{HostFunction, POLICY_ALLOC, POLICY_DECIDE};

/// A guest's code with its imports resolved.
pub(crate) struct GuestCode {
    pub(crate) instance: InstancePre<Guest>,
    pub(crate) run: ModuleExport,
    pub(crate) memory: ModuleExport,
}

/// The code of a policy oracle, which has no imports.
pub(crate) struct PolicyCode {
    pub(crate) instance: InstancePre<Space>,
    pub(crate) memory: ModuleExport,
    pub(crate) alloc: ModuleExport,
    pub(crate) decide: ModuleExport,
}

/// Compiles a module into the engine's own form.
pub(crate) fn compile(engine: &Engine, wasm: &[u8]) -> wasmtime::Result<Vec<u8>> {
    engine.precompile_module(wasm)
}

/// Loads the bytes that [`compile`] made.
///
/// The caller has verified with [`crate::wire::seal`] that these bytes were made by a child of this engine from the
/// module that they are kept for.
pub(crate) fn load(engine: &Engine, code: &[u8]) -> wasmtime::Result<Module> {
    // SAFETY: `code` came from `compile` in a process of this same program, through the parent, which compiles each
    // module in a process of its own; the seal over it was verified. If a module had taken over that process, its
    // output would run here, behind the same walls and limits as the guests themselves.
    #[allow(unsafe_code)]
    unsafe {
        Module::deserialize(engine, code)
    }
}

impl GuestCode {
    pub(crate) fn link(module: &Module) -> wasmtime::Result<Self> {
        let mut linker = Linker::new(module.engine());
        // A module may import the same function many times; the last definition is as good as the first.
        linker.allow_shadowing(true);
        for import in module.imports() {
            let has_result = matches!(import.ty(), ExternType::Func(ty) if ty.results().len() > 0);
            if let Some(function) = HostFunction::named(import.module(), import.name()) {
                link(
                    &mut linker,
                    import.module(),
                    import.name(),
                    function,
                    has_result,
                )?;
            }
        }
        Ok(Self {
            run: export(module, "run")?,
            memory: export(module, "memory")?,
            instance: linker.instantiate_pre(module)?,
        })
    }
}

impl PolicyCode {
    pub(crate) fn link(module: &Module) -> wasmtime::Result<Self> {
        Ok(Self {
            memory: export(module, "memory")?,
            alloc: export(module, POLICY_ALLOC)?,
            decide: export(module, POLICY_DECIDE)?,
            instance: Linker::new(module.engine()).instantiate_pre(module)?,
        })
    }
}

fn export(module: &Module, name: &str) -> wasmtime::Result<ModuleExport> {
    module
        .get_export_index(name)
        .ok_or_else(|| wasmtime::Error::msg(format!("no export `{name}`")))
}
