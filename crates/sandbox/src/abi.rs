//! The names and types that a module may import and must export.
//!
//! Owns the lists that admission, linking and calling all read, so an admitted module can always be linked and
//! called. `host` implements the host's functions.

use wasmparser::{FuncType, ValType};

use crate::rule::Rule;

/// The modules from which a guest may import; both offer the same functions.
pub(crate) const MODULES: [&str; 2] = ["env", "kernel"];

/// A function that the host offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HostFunction {
    /// `oracle_query(ptr: i32, len: i32) -> i32`, also as `oracle_bucket`: asks about a vector and returns a symbol.
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

    /// The accepted types, as text for a person.
    pub(crate) const fn type_text(self) -> &'static str {
        match self {
            Self::Ask | Self::Submit => "(i32, i32) -> i32",
            Self::Emit => "(i32, i32), with or without an i32 result",
            Self::Epoch => "() -> i64",
        }
    }
}

/// An export that a module must have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequiredExport {
    pub(crate) name: &'static str,
    /// Its type; `None` for a memory.
    pub(crate) function: Option<RequiredFunction>,
    /// The rule that its absence breaks.
    pub(crate) rule: Rule,
}

/// The type of a required function.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequiredFunction {
    pub(crate) params: &'static [ValType],
    pub(crate) results: &'static [ValType],
    /// The type as text for a person, after "must have".
    pub(crate) text: &'static str,
}

const MEMORY: RequiredExport = RequiredExport {
    name: "memory",
    function: None,
    rule: Rule::MemoryExport,
};

/// The exports that a guest must have.
pub(crate) const GUEST_EXPORTS: [RequiredExport; 2] = [
    RequiredExport {
        name: "run",
        function: Some(RequiredFunction {
            params: &[],
            results: &[],
            text: "no parameters and no results",
        }),
        rule: Rule::RunExport,
    },
    MEMORY,
];

/// `alloc(len: i32) -> i32`: room for the input.
pub(crate) const POLICY_ALLOC: &str = "alloc";
/// `policy_oracle_decide(ptr: i32, len: i32) -> i32`: the vote.
pub(crate) const POLICY_DECIDE: &str = "policy_oracle_decide";

/// The exports that a policy oracle must have.
pub(crate) const POLICY_EXPORTS: [RequiredExport; 3] = [
    RequiredExport {
        name: POLICY_ALLOC,
        function: Some(RequiredFunction {
            params: &[ValType::I32],
            results: &[ValType::I32],
            text: "the type (i32) -> i32",
        }),
        rule: Rule::AllocExport,
    },
    RequiredExport {
        name: POLICY_DECIDE,
        function: Some(RequiredFunction {
            params: &[ValType::I32, ValType::I32],
            results: &[ValType::I32],
            text: "the type (i32, i32) -> i32",
        }),
        rule: Rule::DecideExport,
    },
    MEMORY,
];
