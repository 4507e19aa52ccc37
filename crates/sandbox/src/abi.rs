//! What a guest may import: names and types.
//!
//! Owns the list that admission and linking both read, so that what is admitted can always be linked. What the
//! functions do is in `host`.

use wasmparser::{FuncType, ValType};

/// The modules from which a guest may import; both offer the same functions.
pub(crate) const MODULES: [&str; 2] = ["env", "kernel"];

/// A function that the host offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HostFunction {
    /// `oracle_query(ptr: i32, len: i32) -> i32`, also as `oracle_bucket`: asks about a vector, gets a symbol.
    Ask,
    /// `submit_predictions(ptr: i32, len: i32) -> i32`: names the vector to be judged; always 0.
    Submit,
    /// `emit_structured_claim(ptr: i32, len: i32)`, with an `i32` result (always 0) or without: the output, once.
    Emit,
    /// `get_logical_epoch() -> i64`: fuel used so far ÷ epoch size.
    Epoch,
}

impl HostFunction {
    /// The function offered as `module::name`.
    pub(crate) fn named(module: &str, name: &str) -> Option<Self> {
        if !MODULES.contains(&module) {
            return None;
        }
        match name {
            "oracle_query" | "oracle_bucket" => Some(Self::Ask),
            "submit_predictions" => Some(Self::Submit),
            "emit_structured_claim" => Some(Self::Emit),
            "get_logical_epoch" => Some(Self::Epoch),
            _ => None,
        }
    }

    /// Whether the function can be imported with type `ty`.
    pub(crate) fn has_type(self, ty: &FuncType) -> bool {
        const VECTOR: &[ValType] = &[ValType::I32, ValType::I32];
        match self {
            Self::Ask | Self::Submit => ty.params() == VECTOR && ty.results() == [ValType::I32],
            Self::Emit => ty.params() == VECTOR && matches!(ty.results(), [] | [ValType::I32]),
            Self::Epoch => ty.params().is_empty() && ty.results() == [ValType::I64],
        }
    }

    /// The accepted types, for people.
    pub(crate) const fn type_text(self) -> &'static str {
        match self {
            Self::Ask | Self::Submit => "(i32, i32) -> i32",
            Self::Emit => "(i32, i32), with or without an i32 result",
            Self::Epoch => "() -> i64",
        }
    }
}
