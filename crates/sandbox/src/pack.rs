//! Modules that carry a list of predictions: `evidenceos claim pack` writes them.
//!
//! Owns the layout of such a module's memory. Invariant: all modules of one mode have the same code, byte for byte;
//! lengths are data. Only the number of memory pages differs with the size, so the sandbox compiles such a module
//! once for each mode and each 64 KiB of predictions.
//!
//! Memory: `0..4` items (u32 LE), `4..8` output length (u32 LE), `16..20` the output as a big-endian u32, of which
//! the last bytes are emitted, `64..` the predictions, a byte each.

use wasm_encoder::{
    CodeSection, ConstExpr, CustomSection, DataSection, EntityType, ExportKind, ExportSection,
    Function, FunctionSection, ImportSection, Instruction, MemArg, MemArgTarget, MemorySection,
    MemoryType, Module, Section as _, TypeSection, ValType,
};

use crate::check::PAGE_BYTES;

/// The most predictions in one module: this many surely fit into an admitted one.
pub const MAX_PACKED_ITEMS: usize = (4 << 20) - 1_024;

/// The custom section that names the alphabet.
const SYMBOLS_SECTION: &str = "evidenceos.symbols";

const OUTPUT_LEN_AT: u64 = 4;
const OUTPUT_AT: u64 = 16;
const OUTPUT_END: u64 = OUTPUT_AT + 4;
const VECTOR_AT: usize = 64;

/// The use that a packed module makes of its predictions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Submits them for judgement and emits a symbol chosen in advance; asks nothing, so it is charged for no answer.
    Judge,
    /// Asks about them, is judged on them, and emits the answer. Uses the published imports only.
    AskAndJudge,
    /// Asks about them and emits the answer, but submits nothing: it is never judged.
    AskOnly,
}

/// Predictions, and the options of their module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackOptions<'a> {
    /// One prediction per item of the holdout, in its order, each 0 or 1.
    pub predictions: &'a [u8],
    /// The use of the predictions.
    pub mode: Mode,
    /// Size of the oracle's alphabet, at least 2; it sets the length of the output.
    pub num_symbols: u32,
    /// The symbol that [`Mode::Judge`] emits, less than `num_symbols`; ignored otherwise.
    pub symbol: u32,
}

impl<'a> PackOptions<'a> {
    /// Two symbols, of which [`Mode::Judge`] emits 0.
    pub fn new(predictions: &'a [u8], mode: Mode) -> Self {
        Self {
            predictions,
            mode,
            num_symbols: 2,
            symbol: 0,
        }
    }
}

/// The reason why nothing can be packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// There are no predictions.
    #[error("there are no predictions")]
    Empty,
    /// More predictions than [`MAX_PACKED_ITEMS`].
    #[error("{items} predictions, at most {MAX_PACKED_ITEMS} fit into a module")]
    TooMany {
        /// The number of predictions given.
        items: usize,
    },
    /// A prediction is neither 0 nor 1.
    #[error("prediction {index} is {value}; it must be 0 or 1")]
    NotBinary {
        /// Index of the prediction, from 0.
        index: usize,
        value: u8,
    },
    /// The alphabet has fewer than two symbols.
    #[error("an alphabet has at least 2 symbols, not {num_symbols}")]
    Alphabet { num_symbols: u32 },
    /// The symbol is not in the alphabet.
    #[error("symbol {symbol} is not among the {num_symbols} of the alphabet")]
    Symbol { symbol: u32, num_symbols: u32 },
}

/// Bytes of a symbol of an alphabet of `num_symbols`, emitted big-endian: ⌈⌈log2 n⌉ / 8⌉.
pub const fn output_len(num_symbols: u32) -> u32 {
    (u32::BITS - num_symbols.saturating_sub(1).leading_zeros()).div_ceil(8)
}

/// Builds the module: deterministic, the same bytes for the same options.
///
/// # Errors
/// [`PackError`] names the first invalid option.
pub fn pack(options: &PackOptions<'_>) -> Result<Vec<u8>, PackError> {
    validate(options)?;
    let image = image(options);
    let mut guest = GuestBuilder::default();
    let submit = match options.mode {
        Mode::Judge | Mode::AskOnly => Some(guest.import("submit_predictions")),
        Mode::AskAndJudge => None,
    };
    let ask = match options.mode {
        Mode::AskAndJudge | Mode::AskOnly => Some(guest.import("oracle_query")),
        Mode::Judge => None,
    };
    let emit = guest.import("emit_structured_claim");
    match (ask, submit) {
        (Some(ask), _) => {
            guest.call_with_vector(ask);
            guest.store_output();
        }
        (None, Some(submit)) => {
            guest.call_with_vector(submit);
            guest.code.push(Instruction::Drop);
        }
        (None, None) => {}
    }
    guest.emit_output(emit);
    let mut module = guest.finish(&image);
    // Two is a claim's default. Modules of two symbols stay byte for byte the same.
    if options.num_symbols != 2 {
        let section = CustomSection {
            name: SYMBOLS_SECTION.into(),
            data: options.num_symbols.to_le_bytes().to_vec().into(),
        };
        section.append_to(&mut module);
    }
    Ok(module)
}

/// The alphabet that a packed module is made for, if it names one: a run with another alphabet would ask another
/// question, and emit an output that does not fit.
#[must_use]
pub fn packed_symbols(wasm: &[u8]) -> Option<u32> {
    let payloads = wasmparser::Parser::new(0).parse_all(wasm);
    payloads
        .map_while(Result::ok)
        .find_map(|payload| match payload {
            wasmparser::Payload::CustomSection(section) if section.name() == SYMBOLS_SECTION => {
                section.data().try_into().map(u32::from_le_bytes).ok()
            }
            _ => None,
        })
}

fn validate(options: &PackOptions<'_>) -> Result<(), PackError> {
    let PackOptions {
        predictions,
        num_symbols,
        symbol,
        ..
    } = *options;
    if predictions.is_empty() {
        return Err(PackError::Empty);
    }
    if predictions.len() > MAX_PACKED_ITEMS {
        return Err(PackError::TooMany {
            items: predictions.len(),
        });
    }
    if let Some((index, value)) = predictions
        .iter()
        .copied()
        .enumerate()
        .find(|(_, value)| *value > 1)
    {
        return Err(PackError::NotBinary { index, value });
    }
    if num_symbols < 2 {
        return Err(PackError::Alphabet { num_symbols });
    }
    if symbol >= num_symbols {
        return Err(PackError::Symbol {
            symbol,
            num_symbols,
        });
    }
    Ok(())
}

/// The memory at the start.
fn image(options: &PackOptions<'_>) -> Vec<u8> {
    let mut image = vec![0; VECTOR_AT];
    let items = options.predictions.len() as u32; // at most 4 MiB
    image[..4].copy_from_slice(&items.to_le_bytes());
    image[OUTPUT_LEN_AT as usize..][..4]
        .copy_from_slice(&output_len(options.num_symbols).to_le_bytes());
    image[OUTPUT_AT as usize..][..4].copy_from_slice(&options.symbol.to_be_bytes());
    image.extend_from_slice(options.predictions);
    image
}

/// An endless recursion, from which the sandbox learns the depth of its stack.
pub(crate) fn stack_probe() -> Vec<u8> {
    let mut guest = GuestBuilder::default();
    guest.code.push(Instruction::Call(0));
    guest.finish(&[0])
}

/// A module with imports from `env`, one function `run` and one memory.
#[derive(Default)]
struct GuestBuilder {
    imports: ImportSection,
    imported: u32,
    code: Vec<Instruction<'static>>,
}

/// Indices in the type section.
const HOST_CALL: u32 = 0;
const RUN: u32 = 1;

impl GuestBuilder {
    /// Imports a function `(i32, i32) -> i32` and returns its index.
    fn import(&mut self, name: &str) -> u32 {
        self.imports
            .import("env", name, EntityType::Function(HOST_CALL));
        self.imported += 1;
        self.imported - 1
    }

    /// Calls `function(vector, items)`, leaving its result.
    fn call_with_vector(&mut self, function: u32) {
        self.code.push(Instruction::I32Const(VECTOR_AT as i32));
        self.load(0);
        self.code.push(Instruction::Call(function));
    }

    /// Stores the i32 on the stack as the big-endian output.
    fn store_output(&mut self) {
        self.code.push(Instruction::LocalSet(0));
        for (byte, shift) in [24, 16, 8, 0].into_iter().enumerate() {
            self.code.extend([
                Instruction::I32Const(0),
                Instruction::LocalGet(0),
                Instruction::I32Const(shift),
                Instruction::I32ShrU,
                Instruction::I32Store8(at(OUTPUT_AT + byte as u64, 0)),
            ]);
        }
    }

    /// Emits the last bytes of the output.
    fn emit_output(&mut self, emit: u32) {
        self.code.push(Instruction::I32Const(OUTPUT_END as i32));
        self.load(OUTPUT_LEN_AT);
        self.code.push(Instruction::I32Sub);
        self.load(OUTPUT_LEN_AT);
        self.code
            .extend([Instruction::Call(emit), Instruction::Drop]);
    }

    fn load(&mut self, address: u64) {
        self.code.push(Instruction::I32Const(0));
        self.code.push(Instruction::I32Load(at(address, 2)));
    }

    fn finish(self, image: &[u8]) -> Vec<u8> {
        let mut types = TypeSection::new();
        types
            .ty()
            .function([ValType::I32, ValType::I32], [ValType::I32]);
        types.ty().function([], []);
        let mut functions = FunctionSection::new();
        functions.function(RUN);
        let mut memories = MemorySection::new();
        let pages = (image.len() as u64).div_ceil(PAGE_BYTES);
        let memory = MemoryType {
            minimum: pages,
            maximum: Some(pages),
            memory64: false,
            shared: false,
            page_size_log2: None,
        };
        memories.memory(memory);
        let mut exports = ExportSection::new();
        exports.export("run", ExportKind::Func, self.imported);
        exports.export("memory", ExportKind::Memory, 0);
        let mut run = Function::new([(1, ValType::I32)]);
        for instruction in &self.code {
            run.instruction(instruction);
        }
        run.instruction(&Instruction::End);
        let mut code = CodeSection::new();
        code.function(&run);
        let mut data = DataSection::new();
        data.active(0, &ConstExpr::i32_const(0), image.iter().copied());

        let mut module = Module::new();
        module.section(&types);
        if self.imported > 0 {
            module.section(&self.imports);
        }
        module
            .section(&functions)
            .section(&memories)
            .section(&exports)
            .section(&code)
            .section(&data);
        module.finish()
    }
}

fn at(address: u64, align: u32) -> MemArg {
    MemArg {
        offset: address,
        align,
        target: MemArgTarget::Memory(0),
        ordering: None,
    }
}
