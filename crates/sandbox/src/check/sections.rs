//! The rules of admission on single sections: counts, imports, exports, the place of data.
//!
//! Owns the demands beyond WebAssembly's own validity. Invariant: work is linear in the module's length, even for a
//! module made to be refused: only the allowed part of a section that is too long is read.

use wasmparser::{
    Data, DataKind, Element, ElementItems, Export, ExternalKind, FromReader, FunctionBody, Import,
    Imports, Operator, Payload, SectionLimited, TypeRef, TypeSectionReader,
};

use super::inspector::{CUSTOM_SECTION, Inspector, to_usize};
use super::{PAGE_BYTES, Role};
use crate::abi::{GUEST_EXPORTS, HostFunction, MODULES, POLICY_EXPORTS, RequiredExport};
use crate::rule::{Rule, bounds};

impl Inspector {
    /// Reads the types, up to the allowed number.
    fn types(&mut self, types: &TypeSectionReader<'_>) -> wasmparser::Result<()> {
        let mut values = 0;
        for ty in types.clone().into_iter_err_on_gc_types() {
            let ty = ty?;
            values += (ty.params().len() + ty.results().len()) as u64;
            if values > bounds::TYPE_VALUES {
                // A validator keeps every value of every type, however many there are.
                self.keep_from_validators();
                let most = bounds::TYPE_VALUES;
                self.report(
                    Rule::Entries,
                    Some(types.range().start),
                    format!("the types have more than {most} parameters and results"),
                );
                return Ok(());
            }
            self.types.push(ty);
        }
        Ok(())
    }

    /// Counts the entries of element segments: the compiler allocates for each of them, even for those that fit into
    /// no table.
    fn elements(&mut self, segments: &SectionLimited<'_, Element<'_>>) -> wasmparser::Result<()> {
        let mut entries = 0;
        for segment in self.entries(
            segments,
            Rule::Segments,
            bounds::SEGMENTS,
            "element segments",
        ) {
            let (offset, segment) = segment?;
            entries += u64::from(match segment.items {
                ElementItems::Functions(items) => items.count(),
                ElementItems::Expressions(_, items) => items.count(),
            });
            if entries > bounds::ELEMENTS {
                let message = format!(
                    "{entries} entries of element segments, at most {} are allowed",
                    bounds::ELEMENTS
                );
                self.report(Rule::Segments, Some(offset), message);
                break;
            }
        }
        Ok(())
    }

    /// Applies our bounds to a section. An error means that nothing after it can be read.
    pub(super) fn section(&mut self, payload: &Payload<'_>) -> wasmparser::Result<()> {
        if let Some((id, range)) = payload.as_section()
            && id != CUSTOM_SECTION
        {
            self.layout.sections.push((id, to_usize(&range)));
        }
        match payload {
            Payload::TypeSection(types) => {
                self.count(types, Rule::Entries, bounds::TYPES_OR_EXPORTS, "types");
                self.types(types)?;
            }
            Payload::ImportSection(imports) => {
                for entry in self.entries(imports, Rule::Entries, bounds::IMPORTS, "imports") {
                    if let (_, Imports::Single(offset, import)) = entry? {
                        self.import(offset, &import);
                    }
                }
            }
            Payload::FunctionSection(functions) => {
                self.defined_functions = functions.count();
                for ty in self.entries(functions, Rule::Functions, bounds::FUNCTIONS, "functions") {
                    self.function_types.push(ty?.1);
                }
            }
            Payload::TableSection(tables) => {
                for entry in self.entries(tables, Rule::Tables, bounds::TABLES, "tables") {
                    let (offset, table) = entry?;
                    let elements = table.ty.initial;
                    self.at_most(
                        Rule::Tables,
                        elements,
                        bounds::TABLE_ELEMENTS,
                        "elements in a table",
                        offset,
                    );
                }
            }
            Payload::TagSection(tags) => self.must_fit(tags),
            Payload::MemorySection(memories) => {
                self.must_fit(memories);
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
                    // One memory is all that the features allow: the validator refuses a second
                    // one.
                    self.memory_pages.get_or_insert((pages, memory.maximum));
                }
            }
            Payload::GlobalSection(globals) => {
                self.count(globals, Rule::Globals, bounds::GLOBALS, "globals");
            }
            Payload::ExportSection(exports) => {
                for entry in
                    self.entries(exports, Rule::Entries, bounds::TYPES_OR_EXPORTS, "exports")
                {
                    let (offset, export) = entry?;
                    self.export(offset, &export);
                }
            }
            Payload::StartSection { range, .. } => {
                let message = match self.role {
                    Role::Guest => "a start function; nothing may run before `run`",
                    Role::Policy => "a start function; nothing may run before `alloc`",
                };
                self.report(Rule::StartFunction, Some(range.start), message);
            }
            Payload::ElementSection(segments) => self.elements(segments)?,
            Payload::DataCountSection { .. } => self.layout.code_may_name_segments = true,
            Payload::DataSection(segments) => {
                for segment in
                    self.entries(segments, Rule::Segments, bounds::SEGMENTS, "data segments")
                {
                    self.data(&segment?.1)?;
                }
            }
            Payload::CodeSectionStart {
                count,
                unchecked_range: range,
                ..
            } => {
                self.functions_to_read = *count;
                let len = range.end - range.start;
                self.at_most(
                    Rule::Code,
                    len,
                    bounds::CODE_BYTES,
                    "bytes of code",
                    range.start,
                );
            }
            Payload::CodeSectionEntry(body) => {
                self.functions_to_read -= 1;
                let range = body.range();
                let len = range.end - range.start;
                self.at_most(
                    Rule::Code,
                    len,
                    bounds::FUNCTION_BYTES,
                    "bytes in a function",
                    range.start,
                );
                self.locals(body)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// The first `most` entries of a section with their offsets; further ones break `rule`.
    fn entries<'a, T: FromReader<'a>>(
        &mut self,
        section: &SectionLimited<'a, T>,
        rule: Rule,
        most: u32,
        what: &str,
    ) -> impl Iterator<Item = wasmparser::Result<(u64, T)>> + use<'a, T> {
        self.count(section, rule, most, what);
        section.clone().into_iter_with_offsets().take(most as usize)
    }

    fn import(&mut self, offset: u64, import: &Import<'_>) {
        let (module, name) = (import.module, import.name);
        if self.role == Role::Policy {
            if let TypeRef::Func(ty) = import.ty {
                self.function_types.push(ty);
            }
            let message = format!("`{module}::{name}`; a policy oracle may import nothing");
            return self.report(Rule::Import, Some(offset), message);
        }
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

    fn export(&mut self, offset: u64, export: &Export<'_>) {
        let required = self.required_exports().iter();
        let Some(required) = required.copied().find(|it| it.name == export.name) else {
            return;
        };
        self.exports.push(required.name);
        let name = required.name;
        match (required.function, export.kind) {
            (None, ExternalKind::Memory) => {}
            (None, _) => {
                let message = format!("`{name}` is exported, but is not a memory");
                self.report(required.rule, Some(offset), message);
            }
            (Some(function), ExternalKind::Func) => {
                let ty = self.function_types.get(export.index as usize);
                if let Some(ty) = ty.and_then(|ty| self.types.get(*ty as usize))
                    && !(ty.params() == function.params && ty.results() == function.results)
                {
                    let message = format!("`{name}` must have {}, not {ty}", function.text);
                    self.report(required.rule, Some(offset), message);
                }
            }
            (Some(_), _) => {
                let message = format!("`{name}` is exported, but is not a function");
                self.report(required.rule, Some(offset), message);
            }
        }
    }

    fn required_exports(&self) -> &'static [RequiredExport] {
        match self.role {
            Role::Guest => &GUEST_EXPORTS,
            Role::Policy => &POLICY_EXPORTS,
        }
    }

    fn data(&mut self, segment: &Data<'_>) -> wasmparser::Result<()> {
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

    /// Checks the required exports, once everything has been read.
    pub(super) fn require_exports(&mut self) {
        for required in self.required_exports() {
            if !self.exports.contains(&required.name) {
                let message = match required.function {
                    Some(_) => format!("the module does not export a function `{}`", required.name),
                    None => "the module does not export its memory as `memory`".to_owned(),
                };
                self.report(required.rule, None, message);
            }
        }
    }

    /// More than `most` entries in a section break `rule`.
    fn count<T>(&mut self, section: &SectionLimited<'_, T>, rule: Rule, most: u32, what: &str) {
        self.must_fit(section);
        let found = section.count().into();
        self.at_most(rule, found, most.into(), what, section.range().start);
    }

    fn at_most(&mut self, rule: Rule, found: u64, most: u64, what: &str, offset: u64) {
        if found > most {
            self.report(
                rule,
                Some(offset),
                format!("{found} {what}, at most {most} are allowed"),
            );
        }
    }
}
