//! Admission: one pass over a module that names every broken rule and where.
//!
//! Owns the decision whether a module can be run deterministically and within bounds, and the map of its sections
//! that compilation needs. It does not compile, and it does not judge intentions. Invariant: an admitted module can
//! always be linked and instantiated (given the memory), except that an element segment may miss its table.
//!
//! Spec: WebAssembly Core 2.0, binary format and validation; features by allow-list, see [`FEATURES`].

use std::ops::Range;

use sha2::{Digest, Sha256};
use wasmparser::{
    Chunk, DataKind, ExternalKind, FuncType, FuncValidatorAllocations, FunctionBody, Imports,
    Operator, Parser, Payload, TypeRef, ValidPayload, Validator, WasmFeatures,
};

use crate::abi::{HostFunction, MODULES};
use crate::rule::{Rule, Violation, Warning, bounds};

const CUSTOM_SECTION: u8 = 0;
const LAST_SECTION: u8 = 13;

/// Bytes of a page of linear memory.
pub(crate) const PAGE_BYTES: u64 = 1 << 16;

/// The features that are on; everything else is off, whatever an engine's defaults say. Without `GC_TYPES` there is
/// no `externref`, so the engine needs no collector. Floats are on: the engine gives every NaN the same bits.
pub(crate) const FEATURES: WasmFeatures = WasmFeatures::FLOATS
    .union(WasmFeatures::MUTABLE_GLOBAL)
    .union(WasmFeatures::SIGN_EXTENSION)
    .union(WasmFeatures::SATURATING_FLOAT_TO_INT)
    .union(WasmFeatures::MULTI_VALUE)
    .union(WasmFeatures::BULK_MEMORY)
    .union(WasmFeatures::REFERENCE_TYPES);

/// What admission learnt about a module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleInfo {
    /// SHA-256 of the module's bytes.
    pub sha256: [u8; 32],
    /// Length of the module in bytes.
    pub len: usize,
    /// Imports an oracle (`oracle_query` or `oracle_bucket`).
    pub asks: bool,
    /// Imports `submit_predictions`: judged on the last vector submitted, and on nothing if none is.
    pub submits: bool,
    /// Imports `emit_structured_claim`.
    pub emits: bool,
    /// Functions defined by the module.
    pub functions: u32,
    /// Bytes in all data segments.
    pub data_bytes: u64,
    /// Memory at the start, in pages of 64 KiB.
    pub initial_memory_pages: u64,
    /// Most memory that the module itself allows, in pages; `None`: whatever the lane allows.
    pub maximum_memory_pages: Option<u64>,
    /// What is probably a mistake.
    pub warnings: Vec<Warning>,
}

/// Decides whether `wasm` is admitted: determinism and bounds, nothing else.
///
/// Takes time linear in the module's length; a module longer than [`bounds::MODULE_BYTES`] is not read at all.
///
/// # Errors
/// Every rule that the module breaks, up to [`bounds::VIOLATIONS`] of them, in the order of the module.
pub fn check(wasm: &[u8]) -> Result<ModuleInfo, Vec<Violation>> {
    inspect(wasm).map(|(info, _)| info)
}

/// Where an admitted module's sections and data are, as byte ranges of the module.
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
pub(crate) fn inspect(wasm: &[u8]) -> Result<(ModuleInfo, Layout), Vec<Violation>> {
    let mut inspector = Inspector::default();
    if inspector.is_core_module(wasm) {
        inspector.read_sections(wasm);
        inspector.require_exports();
        inspector.separate_features_from_errors(wasm);
    }
    if !inspector.violations.is_empty() {
        return Err(inspector.violations);
    }
    Ok(inspector.into_info(wasm))
}

struct Inspector {
    /// `None` once the module's sections no longer validate: later errors would only be echoes.
    validator: Option<Validator>,
    allocations: FuncValidatorAllocations,
    types: Vec<FuncType>,
    /// The type of every function, imported ones first.
    function_types: Vec<u32>,
    imports: Vec<(String, String, u32)>,
    defined_functions: u32,
    functions_to_read: u32,
    data_bytes: u64,
    memory_pages: Option<(u64, Option<u64>)>,
    exports_run: bool,
    exports_memory: bool,
    /// Reading stopped early: what was not seen may still be there.
    is_cut_short: bool,
    layout: Layout,
    violations: Vec<Violation>,
}

impl Default for Inspector {
    fn default() -> Self {
        Self {
            validator: Some(Validator::new_with_features(FEATURES)),
            allocations: FuncValidatorAllocations::default(),
            types: Vec::new(),
            function_types: Vec::new(),
            imports: Vec::new(),
            defined_functions: 0,
            functions_to_read: 0,
            data_bytes: 0,
            memory_pages: None,
            exports_run: false,
            exports_memory: false,
            is_cut_short: false,
            layout: Layout::default(),
            violations: Vec::new(),
        }
    }
}

impl Inspector {
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
                    if let Err(error) = self.payload(&payload) {
                        return self.unreadable(wasm, at, &error);
                    }
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

    /// Applies our own bounds to a payload, then the validator. An error means that nothing after it can be read.
    fn payload(&mut self, payload: &Payload<'_>) -> wasmparser::Result<()> {
        if let Some((id, range)) = payload.as_section()
            && id != CUSTOM_SECTION
        {
            self.layout.sections.push((id, to_usize(&range)));
        }
        match payload {
            Payload::TypeSection(types) => {
                self.at_most(
                    Rule::Entries,
                    types.count(),
                    bounds::TYPES_OR_EXPORTS,
                    "types",
                    types.range().start,
                );
                self.types = types
                    .clone()
                    .into_iter_err_on_gc_types()
                    .collect::<Result<_, _>>()?;
            }
            Payload::ImportSection(imports) => {
                self.at_most(
                    Rule::Entries,
                    imports.count(),
                    bounds::IMPORTS,
                    "imports",
                    imports.range().start,
                );
                for entry in imports.clone() {
                    if let Imports::Single(offset, import) = entry? {
                        self.import(offset, &import);
                    }
                }
            }
            Payload::FunctionSection(functions) => {
                self.defined_functions = functions.count();
                let start = functions.range().start;
                self.at_most(
                    Rule::Functions,
                    functions.count(),
                    bounds::FUNCTIONS,
                    "functions",
                    start,
                );
                for ty in functions.clone() {
                    self.function_types.push(ty?);
                }
            }
            Payload::TableSection(tables) => {
                self.at_most(
                    Rule::Tables,
                    tables.count(),
                    bounds::TABLES,
                    "tables",
                    tables.range().start,
                );
                for entry in tables.clone().into_iter_with_offsets() {
                    let (offset, table) = entry?;
                    self.at_most(
                        Rule::Tables,
                        table.ty.initial,
                        bounds::TABLE_ELEMENTS,
                        "elements in a table",
                        offset,
                    );
                }
            }
            Payload::MemorySection(memories) => {
                for entry in memories.clone().into_iter_with_offsets() {
                    let (offset, memory) = entry?;
                    let pages = memory.initial;
                    self.at_most(
                        Rule::Memory,
                        pages,
                        bounds::INITIAL_MEMORY_PAGES,
                        "pages of initial memory",
                        offset,
                    );
                    self.memory_pages.get_or_insert((pages, memory.maximum));
                }
            }
            Payload::GlobalSection(globals) => {
                self.at_most(
                    Rule::Globals,
                    globals.count(),
                    bounds::GLOBALS,
                    "globals",
                    globals.range().start,
                );
            }
            Payload::ExportSection(exports) => {
                let start = exports.range().start;
                self.at_most(
                    Rule::Entries,
                    exports.count(),
                    bounds::TYPES_OR_EXPORTS,
                    "exports",
                    start,
                );
                for entry in exports.clone().into_iter_with_offsets() {
                    let (offset, export) = entry?;
                    self.export(offset, &export);
                }
            }
            Payload::StartSection { range, .. } => {
                self.report(
                    Rule::StartFunction,
                    Some(range.start),
                    "a start function; nothing may run before `run`",
                );
            }
            Payload::ElementSection(segments) => {
                let start = segments.range().start;
                self.at_most(
                    Rule::Segments,
                    segments.count(),
                    bounds::SEGMENTS,
                    "element segments",
                    start,
                );
            }
            Payload::DataCountSection { .. } => self.layout.code_may_name_segments = true,
            Payload::DataSection(segments) => {
                let start = segments.range().start;
                self.at_most(
                    Rule::Segments,
                    segments.count(),
                    bounds::SEGMENTS,
                    "data segments",
                    start,
                );
                for segment in segments.clone() {
                    self.data(&segment?)?;
                }
            }
            Payload::CodeSectionStart { count, .. } => self.functions_to_read = *count,
            Payload::CodeSectionEntry(body) => {
                self.functions_to_read -= 1;
                self.locals(body)?;
            }
            _ => {}
        }
        self.validate(payload)
    }

    fn import(&mut self, offset: u64, import: &wasmparser::Import<'_>) {
        let (module, name) = (import.module, import.name);
        let TypeRef::Func(ty) = import.ty else {
            return self.report(
                Rule::Import,
                Some(offset),
                format!("`{module}::{name}` is not a function"),
            );
        };
        self.function_types.push(ty);
        let Some(function) = HostFunction::named(module, name) else {
            let message = format!(
                "`{module}::{name}` is not offered; {} offer oracle_query, oracle_bucket, submit_predictions, \
                 emit_structured_claim and get_logical_epoch",
                MODULES.join(" and ")
            );
            return self.report(Rule::Import, Some(offset), message);
        };
        match self.types.get(ty as usize) {
            Some(signature) if function.has_type(signature) => {}
            Some(signature) => {
                let message = format!(
                    "`{module}::{name}` is {}, not {signature}",
                    function.type_text()
                );
                self.report(Rule::ImportType, Some(offset), message);
            }
            None => {} // the validator names the missing type
        }
        // One name is linked once, so it has one type.
        let is_other_type = |(m, n, t): &(String, String, u32)| {
            m == module && n == name && self.types.get(*t as usize) != self.types.get(ty as usize)
        };
        if self.imports.iter().any(is_other_type) {
            self.report(
                Rule::ImportType,
                Some(offset),
                format!("`{module}::{name}` is imported with two types"),
            );
        }
        self.imports.push((module.to_owned(), name.to_owned(), ty));
    }

    fn export(&mut self, offset: u64, export: &wasmparser::Export<'_>) {
        match (export.name, export.kind) {
            ("run", ExternalKind::Func) => {
                self.exports_run = true;
                let ty = self.function_types.get(export.index as usize);
                if let Some(ty) = ty.and_then(|ty| self.types.get(*ty as usize))
                    && !(ty.params().is_empty() && ty.results().is_empty())
                {
                    let message = format!("`run` must have no parameters and no results, not {ty}");
                    self.report(Rule::RunExport, Some(offset), message);
                }
            }
            ("run", _) => {
                self.exports_run = true;
                self.report(
                    Rule::RunExport,
                    Some(offset),
                    "`run` is exported, but is not a function",
                );
            }
            ("memory", ExternalKind::Memory) => self.exports_memory = true,
            ("memory", _) => {
                self.exports_memory = true;
                self.report(
                    Rule::MemoryExport,
                    Some(offset),
                    "`memory` is exported, but is not a memory",
                );
            }
            _ => {}
        }
    }

    fn data(&mut self, segment: &wasmparser::Data<'_>) -> wasmparser::Result<()> {
        self.data_bytes += segment.data.len() as u64;
        let DataKind::Active { offset_expr, .. } = &segment.kind else {
            self.layout.code_may_name_segments = true;
            return Ok(());
        };
        let Operator::I32Const { value } = offset_expr.get_operators_reader().read()? else {
            // No global can be imported and no arithmetic is on, so the validator refuses this one.
            return Ok(());
        };
        let address = value.cast_unsigned();
        let end = u64::from(address) + segment.data.len() as u64;
        let memory_bytes = self
            .memory_pages
            .map_or(0, |(initial, _)| initial.saturating_mul(PAGE_BYTES));
        if end > memory_bytes {
            let message = format!(
                "a data segment ends at address {end}, the initial memory at {memory_bytes}"
            );
            self.report(Rule::DataBounds, Some(segment.range.start), message);
        }
        let file_end = segment.range.end;
        self.layout.segments.push((
            address,
            to_usize(&(file_end - segment.data.len() as u64..file_end)),
        ));
        Ok(())
    }

    fn locals(&mut self, body: &FunctionBody<'_>) -> wasmparser::Result<()> {
        let mut locals = 0;
        for group in body.get_locals_reader()? {
            locals += u64::from(group?.0);
        }
        self.at_most(
            Rule::Locals,
            locals,
            bounds::LOCALS_PER_FUNCTION,
            "locals in a function",
            body.range().start,
        );
        Ok(())
    }

    fn validate(&mut self, payload: &Payload<'_>) -> wasmparser::Result<()> {
        let Some(validator) = &mut self.validator else {
            return Ok(());
        };
        match validator.payload(payload) {
            Ok(ValidPayload::Func(function, body)) => {
                let mut function = function.into_validator(std::mem::take(&mut self.allocations));
                let outcome = function.validate(&body);
                self.allocations = function.into_allocations();
                // A broken function leaves the others readable: report it and go on.
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
        Ok(())
    }

    fn require_exports(&mut self) {
        if self.is_cut_short {
            return;
        }
        if !self.exports_run {
            self.report(
                Rule::RunExport,
                None,
                "the module does not export a function `run`",
            );
        }
        if !self.exports_memory {
            self.report(
                Rule::MemoryExport,
                None,
                "the module does not export its memory as `memory`",
            );
        }
    }

    /// A module that is valid once every feature is on breaks no rule of WebAssembly, only our choice.
    fn separate_features_from_errors(&mut self, wasm: &[u8]) {
        let is_invalid = |violation: &Violation| violation.rule == Rule::Invalid;
        if self.violations.iter().any(is_invalid)
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

    /// Bytes at `at` that are no section: trailing data if all before them is a complete module.
    fn trailing(&mut self, wasm: &[u8], at: usize, why: &str) {
        self.is_cut_short = true;
        if Validator::new_with_features(FEATURES)
            .validate_all(&wasm[..at])
            .is_ok()
        {
            let message = format!(
                "{} bytes after the end of the module ({why})",
                wasm.len() - at
            );
            self.report(Rule::TrailingData, Some(at as u64), message);
        } else {
            self.report(Rule::Invalid, Some(at as u64), why);
        }
    }

    fn at_most(
        &mut self,
        rule: Rule,
        found: impl Into<u64>,
        most: impl Into<u64>,
        what: &str,
        offset: u64,
    ) {
        let (found, most) = (found.into(), most.into());
        if found > most {
            self.report(
                rule,
                Some(offset),
                format!("{found} {what}, at most {most} are allowed"),
            );
        }
    }

    fn report(&mut self, rule: Rule, offset: Option<u64>, message: impl Into<String>) {
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
        if !emits {
            warnings.push(Warning::NeverEmits);
        }
        if !asks && !submits {
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

fn to_usize(range: &Range<u64>) -> Range<usize> {
    // A module is at most 4 MiB long.
    range.start as usize..range.end as usize
}
