//! What a compiler does beyond the bytes of the code, counted while a function is validated.
//!
//! Owns the counts; their bounds are in `rule::bounds`, and how they were found in `examples/shapes.rs`. A few bytes can
//! name much: a block of a type with a thousand values, ten thousand locals. Each costs memory and time at every place
//! where paths meet, and on every path there. So what is bounded is values × places, over the whole module.

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
    /// Blocks and branches.
    places: u64,
}

impl Effort {
    /// Validates a function, and counts.
    ///
    /// # Errors
    /// As the validator.
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

    /// Counts an operator that is not validated yet, with the stacks as they are before it.
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

    /// A place where paths meet or part, and the values that are handed over there.
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
    if frame.kind == FrameKind::Loop {
        parameters
    } else {
        results
    }
}

/// How many values a block takes and leaves.
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
