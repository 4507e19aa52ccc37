//! The rules of admission, their numbers, and the report of a broken one.
//!
//! Owns the vocabulary only; `check` applies it. Invariant: a rule is about determinism or about a bound, never about
//! a guest's intentions: what a guest can learn is metered at run time.

use std::fmt;

/// The numbers of admission, all inclusive.
pub mod bounds {
    /// Longest module, in bytes.
    pub const MODULE_BYTES: usize = 4 << 20;
    /// Most functions that a module may define.
    pub const FUNCTIONS: u32 = 10_000;
    /// Most locals in one function, parameters not counted.
    pub const LOCALS_PER_FUNCTION: u64 = 10_000;
    /// Most parameters and locals in all functions.
    pub const LOCALS: u64 = 500_000;
    /// Most values that blocks take and leave and branches carry, in all functions, not counting the first of each:
    /// each value may take the compiler four kilobytes.
    pub const CARRIED_VALUES: u64 = 10_000;
    /// Most values that the blocks of a function take and leave and its branches carry, times its blocks and branches,
    /// in all functions: each may take the compiler ten bytes.
    pub const FLOW: u64 = 8_000_000;
    /// Most locals and values on the stack, counted again at the start of each block and at each branch, in all
    /// functions: the compiler tracks every one on every path to a place at which paths meet, in some eighty bytes.
    pub const TRACKED_VALUES: u64 = 1_000_000;
    /// Longest code section, in bytes (256 KiB). Data is not code: the worst code compiles at 7 µs a byte, so this
    /// bound keeps the compilation of a module made to be slow below two seconds.
    pub const CODE_BYTES: u64 = 256 << 10;
    /// Longest function body, in bytes (64 KiB): compiling is not linear in the length of a function.
    pub const FUNCTION_BYTES: u64 = 64 << 10;
    /// The most tables in a module.
    pub const TABLES: u32 = 10;
    /// Most elements in any one table, at its start and after every `table.grow`.
    pub const TABLE_ELEMENTS: u64 = 10_000;
    /// Largest initial memory, in pages of 64 KiB (512 MiB); a lane may allow less at the run.
    pub const INITIAL_MEMORY_PAGES: u64 = 8_192;
    /// The most globals in a module.
    pub const GLOBALS: u32 = 1_000;
    /// Most data segments, and most element segments.
    pub const SEGMENTS: u32 = 10_000;
    /// Most entries of all element segments: two full tables. Each may take the compiler four kilobytes.
    pub const ELEMENTS: u64 = 20_000;
    /// Most types, and most exports.
    pub const TYPES_OR_EXPORTS: u32 = 10_000;
    /// Most values that all types take and leave: each may take the check twenty bytes, and the compiler eighty.
    pub const TYPE_VALUES: u64 = 65_536;
    /// Most imports: enough for every offered function under every name, many times over.
    pub const IMPORTS: u32 = 100;
    /// Most violations that one check reports; a module as wrong as this needs no complete list.
    pub const VIOLATIONS: usize = 100;
}

/// A rule of admission. [`Rule::name`] is stable and may be matched by programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Rule {
    /// The module has no bytes at all.
    Empty,
    /// The bytes do not start like a Wasm module of version 1.
    NotAModule,
    /// The bytes are a component, not a core module.
    Component,
    /// The module is longer than [`bounds::MODULE_BYTES`].
    ModuleSize,
    /// The module ends in the middle of a section.
    Truncated,
    /// A complete module is followed by bytes that are not a section.
    TrailingData,
    /// The module is not valid WebAssembly.
    Invalid,
    /// The module is valid, but needs a WebAssembly feature that is off.
    Feature,
    /// An import that the host does not offer.
    Import,
    /// An offered function, imported with another type than its own.
    ImportType,
    /// A start function: nothing may run before `run`.
    StartFunction,
    /// `run` is not exported as a function without parameters and results.
    RunExport,
    /// No memory is exported as `memory`.
    MemoryExport,
    /// `alloc` of a policy oracle is not exported as a function `(i32) -> i32`.
    AllocExport,
    /// `policy_oracle_decide` of a policy oracle is not exported as a function `(i32, i32) -> i32`.
    DecideExport,
    /// It defines too many functions.
    Functions,
    /// Too long a code section, or too long a function in it.
    Code,
    /// Too many locals in one function, or in all.
    Locals,
    /// Too many values that blocks and branches carry.
    Carried,
    /// Too many values that blocks and branches hand over in functions with many of them.
    Flow,
    /// Too many locals and values at the starts of blocks and at branches.
    Tracked,
    /// Too many tables, or too large a one.
    Tables,
    /// Too large an initial memory.
    Memory,
    /// It has too many globals.
    Globals,
    /// Too many data or element segments, or too many entries in the latter.
    Segments,
    /// An active data segment lies outside the initial memory.
    DataBounds,
    /// Too many types, imports or exports, or too many values in all types.
    Entries,
}

impl Rule {
    /// The rule's stable name: lower-case words joined by hyphens.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::NotAModule => "not-a-module",
            Self::Component => "component",
            Self::ModuleSize => "module-size",
            Self::Truncated => "truncated",
            Self::TrailingData => "trailing-data",
            Self::Invalid => "invalid",
            Self::Feature => "feature",
            Self::Import => "import",
            Self::ImportType => "import-type",
            Self::StartFunction => "start-function",
            Self::RunExport => "run-export",
            Self::MemoryExport => "memory-export",
            Self::AllocExport => "alloc-export",
            Self::DecideExport => "decide-export",
            Self::Functions => "functions",
            Self::Code => "code",
            Self::Locals => "locals",
            Self::Carried => "carried",
            Self::Flow => "flow",
            Self::Tracked => "tracked",
            Self::Tables => "tables",
            Self::Memory => "memory",
            Self::Globals => "globals",
            Self::Segments => "segments",
            Self::DataBounds => "data-bounds",
            Self::Entries => "entries",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A broken rule, with its place and a message. Displays as one line, `import: … (at byte 0x8f)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The rule that was broken.
    pub rule: Rule,
    /// The byte of the module at which it shows; `None` if something is missing altogether.
    pub offset: Option<usize>,
    /// The error, as a clause without a full stop.
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.message)?;
        match self.offset {
            Some(offset) => write!(f, " (at byte {offset:#x})"),
            None => Ok(()),
        }
    }
}

/// A probable mistake in an admitted module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Warning {
    /// `emit_structured_claim` is not imported, so every run ends with no output.
    NeverEmits,
    /// Neither an oracle nor `submit_predictions` is imported, so there is never anything to judge.
    NeverJudged,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NeverEmits => "the module does not import emit_structured_claim: every run ends with no output",
            Self::NeverJudged => {
                "the module imports neither submit_predictions nor an oracle: none of its runs is ever judged"
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_violation_is_one_line_with_its_offset_in_hexadecimal() {
        let violation = Violation {
            rule: Rule::Import,
            offset: Some(0x8f),
            message: "no `a::b`".into(),
        };
        assert_eq!(violation.to_string(), "import: no `a::b` (at byte 0x8f)");
        let violation = Violation {
            rule: Rule::RunExport,
            offset: None,
            message: "missing".into(),
        };
        assert_eq!(violation.to_string(), "run-export: missing");
    }
}
