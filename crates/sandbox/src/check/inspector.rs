//! Reads a module section by section, as far as it is readable.
//!
//! Owns the walk, the validator, and the messages for bytes that are not a module at all. The rules on single
//! sections are in `sections`. Invariant: an error in one place is reported once and hides no other that can still be
//! seen.

use std::ops::Range;

use sha2::{Digest, Sha256};
use wasmparser::{
    Chunk, FuncType, FuncValidatorAllocations, Parser, Payload, SectionLimited, ValidPayload,
    Validator, WasmFeatures,
};

use super::effort::Effort;
use super::{FEATURES, Layout, ModuleInfo, Role};
use crate::abi::HostFunction;
use crate::rule::{Rule, Violation, Warning, bounds};

pub(super) const CUSTOM_SECTION: u8 = 0;
const LAST_SECTION: u8 = 13;

/// The facts read from a module so far.
pub(super) struct Inspector {
    pub(super) role: Role,
    /// `None` once the module's sections no longer validate: later errors would only repeat the
    /// first.
    validator: Option<Validator>,
    allocations: FuncValidatorAllocations,
    effort: Effort,
    pub(super) types: Vec<FuncType>,
    /// The type of every function, imported ones first.
    pub(super) function_types: Vec<u32>,
    pub(super) imports: Vec<(String, String, u32)>,
    pub(super) defined_functions: u32,
    pub(super) functions_to_read: u32,
    pub(super) data_bytes: u64,
    pub(super) memory_pages: Option<(u64, Option<u64>)>,
    /// Names of the required exports found so far.
    pub(super) exports: Vec<&'static str>,
    /// Reading stopped early: unread parts may contain anything.
    pub(super) is_cut_short: bool,
    /// The module contains something for which a validator, and with it the daemon, would take much
    /// memory.
    is_kept_from_validators: bool,
    pub(super) layout: Layout,
    violations: Vec<Violation>,
}

impl Inspector {
    fn new(role: Role) -> Self {
        Self {
            role,
            validator: Some(Validator::new_with_features(FEATURES)),
            allocations: FuncValidatorAllocations::default(),
            effort: Effort::default(),
            types: Vec::new(),
            function_types: Vec::new(),
            imports: Vec::new(),
            defined_functions: 0,
            functions_to_read: 0,
            data_bytes: 0,
            memory_pages: None,
            exports: Vec::new(),
            is_cut_short: false,
            is_kept_from_validators: false,
            layout: Layout::default(),
            violations: Vec::new(),
        }
    }

    /// Reads as much of the module as is readable.
    pub(super) fn read(wasm: &[u8], role: Role) -> Self {
        let mut inspector = Self::new(role);
        if inspector.is_core_module(wasm) {
            inspector.read_sections(wasm);
            inspector.bound_effort();
            if !inspector.is_cut_short {
                inspector.require_exports();
            }
            inspector.separate_features_from_errors(wasm);
        }
        inspector
    }

    /// The result: the facts, or every violation that was found.
    pub(super) fn finish(self, wasm: &[u8]) -> Result<(ModuleInfo, Layout), Vec<Violation>> {
        if self.violations.is_empty() {
            Ok(self.into_info(wasm))
        } else {
            Err(self.violations)
        }
    }

    fn is_core_module(&mut self, wasm: &[u8]) -> bool {
        let magic = &wasm[..wasm.len().min(4)];
        if wasm.is_empty() {
            self.report(Rule::Empty, None, "the module is empty");
        } else if wasm.len() > bounds::MODULE_BYTES {
            let message = format!(
                "{} bytes, at most {} are allowed",
                wasm.len(),
                bounds::MODULE_BYTES
            );
            self.report(Rule::ModuleSize, Some(bounds::MODULE_BYTES as u64), message);
        } else if !b"\0asm".starts_with(magic) {
            self.report(
                Rule::NotAModule,
                Some(0),
                "a Wasm module starts with the bytes 00 61 73 6d",
            );
        } else if wasm.len() < 8 {
            self.report(
                Rule::Truncated,
                Some(wasm.len() as u64),
                "the module ends inside its header",
            );
        } else if Parser::is_component(wasm) {
            self.report(
                Rule::Component,
                Some(4),
                "a component; core modules are run (build without a component adapter)",
            );
        } else if !Parser::is_core_wasm(wasm) {
            self.report(
                Rule::NotAModule,
                Some(4),
                "the version of the binary format is not 1",
            );
        } else {
            return true;
        }
        false
    }

    fn read_sections(&mut self, wasm: &[u8]) {
        let mut parser = Parser::new(0);
        parser.set_features(FEATURES);
        let mut at = 0;
        loop {
            let rest = &wasm[at..];
            match parser.parse(rest, rest.is_empty()) {
                Ok(Chunk::Parsed { consumed, payload }) => {
                    if let Err(error) = self.section(&payload) {
                        return self.unreadable(wasm, at, &error);
                    }
                    self.validate(&payload);
                    if matches!(payload, Payload::End(_)) {
                        return;
                    }
                    at += consumed;
                }
                Ok(Chunk::NeedMoreData(_)) if self.is_no_section(rest) => {
                    return self.trailing(wasm, at, "no section has this id");
                }
                Ok(Chunk::NeedMoreData(_)) => return self.truncated(wasm),
                Err(_) if rest.is_empty() => return self.truncated(wasm),
                Err(error) => return self.unreadable(wasm, at, &error),
            }
        }
    }

    /// Applies the rules of WebAssembly itself.
    fn validate(&mut self, payload: &Payload<'_>) {
        let Some(validator) = &mut self.validator else {
            return;
        };
        match validator.payload(payload) {
            Ok(ValidPayload::Func(function, body)) => {
                let mut function = function.into_validator(std::mem::take(&mut self.allocations));
                let outcome = self.effort.validate(&self.types, &mut function, &body);
                self.allocations = function.into_allocations();
                // A broken function leaves the others readable: report it and continue.
                if let Err(error) = outcome {
                    self.report(Rule::Invalid, Some(error.offset()), error.message());
                }
            }
            Ok(_) => {}
            Err(error) => {
                self.validator = None;
                self.report(Rule::Invalid, Some(error.offset()), error.message());
            }
        }
    }

    /// Ensures that no validator reads the module, now or later.
    pub(super) fn keep_from_validators(&mut self) {
        self.validator = None;
        self.is_kept_from_validators = true;
    }

    /// Keeps a section that claims more entries than it has bytes from every validator: a validator allocates for the
    /// claimed number before it reads an entry, so a few bytes would take a hundred megabytes.
    pub(super) fn must_fit<T>(&mut self, section: &SectionLimited<'_, T>) {
        let (count, range) = (section.count(), section.range());
        if u64::from(count) > range.end - range.start {
            self.keep_from_validators();
            let message = format!("a section claims {count} entries, more than it has bytes");
            self.report(Rule::Invalid, Some(range.start), message);
        }
    }

    /// Applies the bounds on what functions name beyond their bytes, summed over all functions.
    fn bound_effort(&mut self) {
        let Effort {
            locals,
            carried,
            flow,
            tracked,
            ..
        } = self.effort;
        for (rule, found, most, what) in [
            (
                Rule::Locals,
                locals,
                bounds::LOCALS,
                "parameters and locals of all functions",
            ),
            (
                Rule::Carried,
                carried,
                bounds::CARRIED_VALUES,
                "values beyond the first that blocks and branches carry",
            ),
            (
                Rule::Flow,
                flow,
                bounds::FLOW,
                "values that blocks and branches pass on, times the blocks and branches of their function",
            ),
            (
                Rule::Tracked,
                tracked,
                bounds::TRACKED_VALUES,
                "locals and waiting values at the starts of blocks and at branches",
            ),
        ] {
            if found > most {
                let message = format!("{found} {what}, at most {most} are allowed");
                self.report(rule, None, message);
            }
        }
    }

    /// Reports a feature instead of an error: a module that is valid with every feature on breaks no rule of
    /// WebAssembly, only our choice.
    fn separate_features_from_errors(&mut self, wasm: &[u8]) {
        let is_invalid = |violation: &Violation| violation.rule == Rule::Invalid;
        if !self.is_kept_from_validators
            && self.violations.iter().any(is_invalid)
            && Validator::new_with_features(WasmFeatures::all())
                .validate_all(wasm)
                .is_ok()
        {
            for violation in self
                .violations
                .iter_mut()
                .filter(|violation| is_invalid(violation))
            {
                violation.rule = Rule::Feature;
            }
        }
    }

    /// Whether a section should start at `rest`, but does not. Inside the code section functions follow each other.
    fn is_no_section(&self, rest: &[u8]) -> bool {
        self.functions_to_read == 0 && rest.first().is_none_or(|id| *id > LAST_SECTION)
    }

    fn truncated(&mut self, wasm: &[u8]) {
        self.is_cut_short = true;
        self.report(
            Rule::Truncated,
            Some(wasm.len() as u64),
            "the module ends inside a section",
        );
    }

    fn unreadable(&mut self, wasm: &[u8], at: usize, error: &wasmparser::Error) {
        let is_odd_custom_section = self.functions_to_read == 0 && wasm[at] == CUSTOM_SECTION;
        if self.is_no_section(&wasm[at..]) || is_odd_custom_section {
            return self.trailing(wasm, at, error.message());
        }
        self.is_cut_short = true;
        self.report(Rule::Invalid, Some(error.offset()), error.message());
    }

    /// Reports bytes at `at` that are not a section: trailing data if all before them is a complete
    /// module.
    fn trailing(&mut self, wasm: &[u8], at: usize, why: &str) {
        self.is_cut_short = true;
        let is_whole = !self.is_kept_from_validators
            && Validator::new_with_features(FEATURES)
                .validate_all(&wasm[..at])
                .is_ok();
        if is_whole {
            let message = format!(
                "{} bytes after the end of the module ({why})",
                wasm.len() - at
            );
            self.report(Rule::TrailingData, Some(at as u64), message);
        } else {
            self.report(Rule::Invalid, Some(at as u64), why);
        }
    }

    /// Notes a broken rule; `message` is a clause without a full stop.
    pub(super) fn report(&mut self, rule: Rule, offset: Option<u64>, message: impl Into<String>) {
        if self.violations.len() < bounds::VIOLATIONS {
            let offset = offset.and_then(|offset| usize::try_from(offset).ok());
            self.violations.push(Violation {
                rule,
                offset,
                message: message.into(),
            });
        }
    }

    fn into_info(self, wasm: &[u8]) -> (ModuleInfo, Layout) {
        let imports = |wanted| {
            self.imports
                .iter()
                .any(|(module, name, _)| HostFunction::named(module, name) == Some(wanted))
        };
        let (asks, submits, emits) = (
            imports(HostFunction::Ask),
            imports(HostFunction::Submit),
            imports(HostFunction::Emit),
        );
        let mut warnings = Vec::new();
        if self.role == Role::Guest && !emits {
            warnings.push(Warning::NeverEmits);
        }
        if self.role == Role::Guest && !asks && !submits {
            warnings.push(Warning::NeverJudged);
        }
        let (initial_memory_pages, maximum_memory_pages) = self.memory_pages.unwrap_or_default();
        let info = ModuleInfo {
            sha256: Sha256::digest(wasm).into(),
            len: wasm.len(),
            asks,
            submits,
            emits,
            functions: self.defined_functions,
            data_bytes: self.data_bytes,
            initial_memory_pages,
            maximum_memory_pages,
            warnings,
        };
        (info, self.layout)
    }
}

pub(super) fn to_usize(range: &Range<u64>) -> Range<usize> {
    // A module is at most 4 MiB long.
    range.start as usize..range.end as usize
}
