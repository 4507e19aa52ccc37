//! Counts the work of a compiler beyond the bytes of the code, while a function is validated.
//!
//! Owns the counts; their bounds are in `rule::bounds`, and `examples/shapes.rs` shows how they were found. A few
//! bytes can name much: a block of a type with a thousand values, ten thousand locals. Each costs memory and time at
//! every place at which paths meet, and on every path there. So the bound is on values × places, over the whole
//! module.

use wasmparser::{
    BlockType, FrameKind, FuncType, FuncValidator, FunctionBody, Operator, WasmModuleResources,
};

/// The counts of a module so far.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Effort {
    /// Parameters and locals of all functions.
    pub(super) locals: u64,
    /// Values beyond the first that blocks take and leave and branches carry.
    pub(super) carried: u64,
    /// In each function, values that its blocks take and leave and its branches carry, times its blocks and branches.
    pub(super) flow: u64,
    /// At the start of each block and at each branch: the locals, and the values that wait on the stack.
    pub(super) tracked: u64,
    function: Flow,
}

/// The counts of the function that is being validated.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Flow {
    /// Values that blocks take and leave and branches carry.
    values: u64,
    /// Places at which paths meet or part: blocks and branches.
    places: u64,
}

impl Effort {
    /// Validates a function, and counts.
    ///
    /// # Errors
    /// The validator's error.
    pub(super) fn validate<R: WasmModuleResources>(
        &mut self,
        types: &[FuncType],
        validator: &mut FuncValidator<R>,
        body: &FunctionBody<'_>,
    ) -> wasmparser::Result<()> {
        let mut locals = body.get_binary_reader();
        validator.read_locals(&mut locals)?;
        self.locals += u64::from(validator.len_locals());
        let mut operators = body.get_operators_reader()?;
        while !operators.eof() {
            let (operator, offset) = operators.read_with_offset()?;
            self.count(types, validator, &operator);
            validator.op(offset, &operator)?;
        }
        let Flow { values, places } = std::mem::take(&mut self.function);
        self.flow += values * places;
        operators.finish()
    }

    /// Counts an operator that is not validated yet, with the stacks in the state before it.
    fn count<R: WasmModuleResources>(
        &mut self,
        types: &[FuncType],
        validator: &FuncValidator<R>,
        operator: &Operator<'_>,
    ) {
        match operator {
            Operator::Block { blockty } | Operator::Loop { blockty } | Operator::If { blockty } => {
                let (parameters, results) = values_of(types, *blockty);
                self.carried += beyond_first(parameters) + beyond_first(results);
                self.meet(validator, parameters + results);
            }
            // At `else` the first arm jumps to the end of its block.
            Operator::Else => {
                self.branch(types, validator, 0);
            }
            Operator::Br { relative_depth } | Operator::BrIf { relative_depth } => {
                self.branch(types, validator, *relative_depth);
            }
            Operator::BrTable { targets } => {
                for target in targets.targets().flatten().chain([targets.default()]) {
                    self.branch(types, validator, target);
                }
            }
            Operator::Return => {
                let outermost = validator.control_stack_height().saturating_sub(1);
                self.carried += beyond_first(values_to(types, validator, outermost));
            }
            _ => {}
        }
    }

    fn branch<R: WasmModuleResources>(
        &mut self,
        types: &[FuncType],
        validator: &FuncValidator<R>,
        depth: u32,
    ) {
        let values = values_to(types, validator, depth);
        self.carried += beyond_first(values);
        self.meet(validator, values);
    }

    /// Counts a place at which paths meet or part, and the values that are handed over there.
    fn meet<R: WasmModuleResources>(&mut self, validator: &FuncValidator<R>, values: usize) {
        self.function.values += values as u64;
        self.function.places += 1;
        self.tracked +=
            u64::from(validator.len_locals()) + u64::from(validator.operand_stack_height());
    }
}

/// Values that a branch to this depth carries.
fn values_to<R: WasmModuleResources>(
    types: &[FuncType],
    validator: &FuncValidator<R>,
    depth: u32,
) -> usize {
    let Some(frame) = validator.get_control_frame(depth as usize) else {
        return 0; // the validator refuses it
    };
    let (parameters, results) = values_of(types, frame.block_type);
    // A branch to a loop goes to its start, which takes parameters; to any other block it goes to
    // the end.
    if frame.kind == FrameKind::Loop {
        parameters
    } else {
        results
    }
}

/// The number of values that a block takes and leaves.
fn values_of(types: &[FuncType], block: BlockType) -> (usize, usize) {
    match block {
        BlockType::Empty => (0, 0),
        BlockType::Type(_) => (0, 1),
        BlockType::FuncType(index) => types
            .get(index as usize)
            .map_or((0, 0), |ty| (ty.params().len(), ty.results().len())),
    }
}

fn beyond_first(values: usize) -> u64 {
    values.saturating_sub(1) as u64
}

#[cfg(test)]
mod tests {
    use wasmparser::{
        CompositeInnerType, FuncValidatorAllocations, Parser, Payload, ValidPayload, Validator,
    };

    use super::*;

    /// The counts of a module with three types: `$two` takes and leaves two values, `$to_three` takes none and leaves
    /// three, `$from_three` takes three and leaves none.
    fn effort_of(functions: &str) -> Effort {
        let module = wat::parse_str(format!(
            "(module
               (type $two (func (param i32 i32) (result i32 i32)))
               (type $to_three (func (result i32 i32 i32)))
               (type $from_three (func (param i32 i32 i32)))
               {functions})"
        ))
        .expect("text");
        let mut validator = Validator::new();
        let mut types = Vec::new();
        let mut effort = Effort::default();
        for payload in Parser::new(0).parse_all(&module) {
            let payload = payload.expect("a module");
            if let Payload::TypeSection(section) = &payload {
                for group in section.clone() {
                    for ty in group.expect("a type").into_types() {
                        if let CompositeInnerType::Func(ty) = ty.composite_type.inner {
                            types.push(ty);
                        }
                    }
                }
            }
            if let ValidPayload::Func(function, body) = validator.payload(&payload).expect("valid")
            {
                let mut function = function.into_validator(FuncValidatorAllocations::default());
                effort
                    .validate(&types, &mut function, &body)
                    .expect("valid");
            }
        }
        effort
    }

    fn counts(of: Effort) -> [u64; 4] {
        [of.locals, of.carried, of.flow, of.tracked]
    }

    #[test]
    fn each_place_is_counted_with_what_it_hands_over_and_what_waits() {
        for (function, expected) in [
            ("(func)", [0, 0, 0, 0]),
            ("(func (param i32) (local i64 i64))", [3, 0, 0, 0]),
            // A place: the compiler tracks a local there.
            ("(func (local i32) (block))", [1, 0, 0, 1]),
            ("(func (local i32) (loop))", [1, 0, 0, 1]),
            // One value is handed over, which is free; one waits on the stack.
            (
                "(func (result i32) i32.const 0 (block (result i32) i32.const 1) i32.add)",
                [0, 0, 1, 1],
            ),
            // Two in, two out: one of each is beyond the first.
            (
                "(func (result i32 i32) i32.const 0 i32.const 1 (block (type $two)))",
                [0, 2, 4, 2],
            ),
            // Two blocks in one function: their values times the places.
            (
                "(func (result i32 i32) i32.const 0 i32.const 1 (block (type $two)) (loop (type $two)))",
                [0, 4, 16, 4],
            ),
            // Two functions: each by itself.
            (
                "(func (result i32) (block (result i32) i32.const 1)) (func (result i32) (block (result i32) i32.const 1))",
                [0, 0, 2, 0],
            ),
            // An if and its else: the else carries what the if leaves.
            (
                "(func (result i32 i32 i32) i32.const 0 (if (type $to_three) (then i32.const 1 i32.const 2 i32.const 3) (else i32.const 4 i32.const 5 i32.const 6)))",
                [0, 4, 12, 4],
            ),
            // A branch to a block carries what it leaves, to a loop what it takes.
            (
                "(func (result i32 i32 i32) (block (type $to_three) i32.const 1 i32.const 2 i32.const 3 br 0))",
                [0, 4, 12, 3],
            ),
            (
                "(func i32.const 1 i32.const 2 i32.const 3 (loop (type $from_three) br 0))",
                [0, 4, 12, 6],
            ),
            // A conditional branch finds its condition on the stack.
            ("(func (block (br_if 0 (i32.const 1))))", [0, 0, 0, 1]),
            // Each target of a table, and the default.
            (
                "(func (block (block (br_table 0 1 1 (i32.const 1)))))",
                [0, 0, 0, 3],
            ),
            // A return carries the results of the function, and is no place.
            (
                "(func (type $to_three) i32.const 1 i32.const 2 i32.const 3 return)",
                [0, 2, 0, 0],
            ),
            (
                "(func (type $to_three) (block i32.const 1 i32.const 2 i32.const 3 return) unreachable)",
                [0, 2, 0, 0],
            ),
        ] {
            assert_eq!(counts(effort_of(function)), expected, "{function}");
        }
    }
}
